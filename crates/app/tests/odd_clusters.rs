//! Clusters that are not as `initdb` makes them by default: each is backed up, comes back row by row, and passes a drill,
//! or the drill says precisely why not.

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use support::World;
use testing::{Scratch, TestCluster, TestOptions};

const TABLES: &str = "
    create table public.orders (id int primary key, v text);
    insert into public.orders select n, md5(n::text) from generate_series(1, 20000) n;";

/// A protected cluster that differs from the ordinary one in what `change` changes.
fn world(test: &str, major: u16, change: impl FnOnce(&mut TestOptions)) -> Option<World> {
    let programs = testing::programs_of_major_or_skip(test, major)?;
    let mut options = World::options(programs);
    change(&mut options);
    Some(World::protect(
        TestCluster::start(&options).expect("the throw-away cluster starts"),
    ))
}

/// Backs up, changes something behind the backup, restores, and drills.
fn round_trip(world: &World) {
    world.json(&["backup"]);
    world
        .session()
        .execute("create table public.behind as select n from generate_series(1, 500) n")
        .expect("work behind the backup");
    let into = world.comes_back("back", &[]);
    fs::remove_dir_all(into).expect("the copy can be removed");
    world.sound_drill();
    world.run(&["verify"]).ok();
}

fn wal_segments(test: &str, major: u16, megabytes: u32) {
    let Some(world) = world(test, major, |options| {
        options.wal_segment_size = Some(megabytes << 20);
        if megabytes > 512 {
            options.settings.push(("min_wal_size".into(), "2GB".into()));
        }
    }) else {
        return;
    };
    world.session().execute(TABLES).expect("tables");
    round_trip(&world);
    let status = world.json(&["wal", "status"]);
    assert_eq!(
        status["wal_segment_size"],
        u64::from(megabytes) << 20,
        "{status:#}"
    );
    assert_eq!(status["gaps"].as_array().map(Vec::len), Some(0), "{status:#}");
}

#[test]
fn postgresql_13_with_wal_segments_of_1_megabyte() {
    wal_segments("postgresql_13_with_wal_segments_of_1_megabyte", 13, 1);
}

#[test]
fn postgresql_18_with_wal_segments_of_64_megabytes() {
    wal_segments("postgresql_18_with_wal_segments_of_64_megabytes", 18, 64);
}

#[test]
#[ignore = "reads and writes several gigabytes"]
fn postgresql_15_with_wal_segments_of_1_gigabyte() {
    wal_segments("postgresql_15_with_wal_segments_of_1_gigabyte", 15, 1024);
}

fn tablespaces(test: &str, major: u16) {
    let Some(world) = world(test, major, |_| ()) else {
        return;
    };
    let place = world.production.scratch().subfolder("a space").expect("folder");
    let mut session = world.session();
    session.execute(TABLES).expect("tables");
    session
        .execute("set allow_in_place_tablespaces = on")
        .expect("setting");
    for statement in [
        &format!("create tablespace \"out side\" location '{}'", place.display()),
        "create tablespace inside location ''",
        "create table public.far (id int primary key using index tablespace inside, v text) tablespace \"out side\"",
        "insert into public.far select n, md5(n::text) from generate_series(1, 5000) n",
        "create table public.near tablespace inside as select * from public.far",
        "create database elsewhere tablespace \"out side\"",
    ] {
        session.execute(statement).expect(statement);
    }
    let mut other = cluster::Session::connect(&world.production.conninfo_of("elsewhere")).expect("connects");
    other
        .execute("create table public.t as select n from generate_series(1, 1000) n")
        .expect("table");
    drop(other);
    world.json(&["backup"]);
    // One in place that only the WAL knows lies in the copy, so that nothing has to be refused.
    for statement in [
        "create tablespace \"inside too\" location ''",
        "create table public.behind tablespace \"inside too\" as select n from generate_series(1, 500) n",
    ] {
        session.execute(statement).expect(statement);
    }
    drop(session);
    let into = world.comes_back("back", &[]);
    fs::remove_dir_all(into).expect("the copy can be removed");
    world.sound_drill();

    // Put where somebody says.
    let chosen = world.production.scratch().subfolder("chosen").expect("folder");
    let choice = format!("out side={}", chosen.display());
    let into = world.comes_back("chosen-back", &["--tablespace", &choice]);
    let link = fs::read_dir(into.join("pg_tblspc"))
        .expect("pg_tblspc")
        .flatten()
        .find_map(|entry| fs::read_link(entry.path()).ok());
    assert_eq!(link, Some(chosen.clone()));
    assert!(fs::read_dir(&chosen).expect("folder").count() == 1);

    // A tablespace that only the WAL knows: a drill may not write to production's place.
    let late = world.production.scratch().subfolder("late").expect("folder");
    let mut session = world.session();
    session
        .execute(&format!("create tablespace late location '{}'", late.display()))
        .expect("tablespace");
    session
        .execute("create table public.late tablespace late as select 1 n")
        .expect("table");
    drop(session);
    let before = listed(&late);
    let ended = world.run(&["drill", "run", "--json"]);
    let facts = ended.json();
    // Replay cannot be kept from that path, so the drill says why it cannot look, and tries nothing.
    assert_eq!(
        (ended.code, facts["verdict"].as_str()),
        (4, Some("INCONCLUSIVE")),
        "{facts:#}"
    );
    assert!(
        facts["reasons"].to_string().contains("creates a tablespace"),
        "{:#}",
        facts["reasons"]
    );
    assert_eq!(listed(&late), before, "production's tablespace was touched");
    // The next backup holds it, and all is well again.
    world.json(&["backup"]);
    world.sound_drill();
}

/// Everything below a folder, with sizes and times.
fn listed(folder: &Path) -> Vec<(PathBuf, u64, std::time::SystemTime)> {
    let mut all = Vec::new();
    for entry in fs::read_dir(folder).expect("folder").flatten() {
        let metadata = entry.metadata().expect("metadata");
        if metadata.is_dir() {
            all.extend(listed(&entry.path()));
        }
        all.push((entry.path(), metadata.len(), metadata.modified().expect("time")));
    }
    all.sort();
    all
}

#[test]
fn postgresql_13_with_tablespaces_also_in_place() {
    tablespaces("postgresql_13_with_tablespaces_also_in_place", 13);
}

#[test]
fn postgresql_15_with_tablespaces_also_in_place() {
    tablespaces("postgresql_15_with_tablespaces_also_in_place", 15);
}

#[test]
fn postgresql_18_with_tablespaces_also_in_place() {
    tablespaces("postgresql_18_with_tablespaces_also_in_place", 18);
}

#[test]
fn postgresql_15_with_names_that_nobody_expects() {
    let Some(world) = world("postgresql_15_with_names_that_nobody_expects", 15, |_| ()) else {
        return;
    };
    let long = "ä".repeat(31) + "x";
    assert_eq!(long.len(), 63);
    let names = [
        "UPPER Case",
        "quo\"te'd",
        "back\\slash",
        "two\nlines\tand a tab",
        "'; drop table public.orders; --",
        "$$ || pg_sleep(9) || $$",
        "日本語 🐘",
        "%p %f ${HOME} $(id)",
        " ",
        "select",
        "host=elsewhere dbname=x",
        long.as_str(),
    ];
    let quoted = |name: &str| cluster::Session::identifier(name);
    world.session().execute(TABLES).expect("tables");
    for name in names {
        let role = quoted(name);
        let mut session = world.session();
        session.execute(&format!("create role {role} login")).expect(name);
        session
            .execute(&format!("create database {role} owner {role}"))
            .expect(name);
        session.execute(&format!("create schema {role}")).expect(name);
        session
            .execute(&format!(
                "create table {role}.{role} ({role} int primary key, v text); \
                 insert into {role}.{role} select n, md5(n::text) from generate_series(1, 300) n; \
                 create sequence {role}.{}; alter table {role}.{role} owner to {role}",
                quoted(&format!("s{name}").chars().take(20).collect::<String>())
            ))
            .expect(name);
        let mut other = cluster::Session::connect(&world.production.conninfo_of(name)).expect(name);
        other
            .execute(&format!(
                "create table public.{role} as select n from generate_series(1, 50) n"
            ))
            .expect(name);
    }
    round_trip(&world);
    // What happened to each is found by its name as a user would write it.
    for name in names {
        let role = quoted(name);
        world
            .session()
            .execute(&format!("drop table {role}.{role}"))
            .expect(name);
    }
    world.archive_all();
    for name in names {
        let qualified = format!("{}.{}", quoted(name), quoted(name));
        let found = world.json(&["find", "--table", &qualified, "--event", "drop"]);
        assert_eq!(
            found["events"].as_array().map(Vec::len),
            Some(1),
            "{qualified}: {found:#}"
        );
    }
}

#[test]
fn postgresql_15_with_a_file_of_more_than_1_gigabyte() {
    let Some(mut world) = world("postgresql_15_with_a_file_of_more_than_1_gigabyte", 15, |_| ()) else {
        return;
    };
    // A relation that a crash left extended by zero pages is one that PostgreSQL has to live with: rows are then
    // inserted behind them, into the second file. Writing a gigabyte of rows is the long campaign's.
    let mut session = world.session();
    session
        .execute("create table public.large as select n, md5(n::text) v from generate_series(1, 1000) n; checkpoint")
        .expect("table");
    let path = session
        .one("select pg_relation_filepath('public.large')")
        .expect("path")[0]
        .clone()
        .expect("path");
    drop(session);
    world.production.stop(cluster::StopMode::Fast).expect("stops");
    let first = world.production.data_directory().join(&path);
    fs::OpenOptions::new()
        .write(true)
        .open(&first)
        .and_then(|file| file.set_len(1 << 30))
        .expect("the first file is extended");
    let second = first.with_file_name(format!(
        "{}.1",
        first.file_name().expect("name").to_string_lossy()
    ));
    fs::File::create(&second)
        .and_then(|file| file.set_len(8192))
        .expect("the second file is made");
    fs::set_permissions(&second, fs::Permissions::from_mode(0o600)).expect("mode");
    support::give_to_account(&second);
    world.production.start_again().expect("starts");
    world
        .session()
        .execute(
            "insert into public.large select n, md5(n::text) from generate_series(1, 50000) n; checkpoint",
        )
        .expect("rows");
    assert!(fs::metadata(&second).expect("second file").len() > 1 << 20);
    world.json(&["backup"]);
    // Only the pages that change are stored again, in the second file too.
    world
        .session()
        .execute("update public.large set v = 'changed' where n = 49999; checkpoint")
        .expect("update");
    let next = world.json(&["backup"]);
    assert!(
        next["pages_stored"].as_u64().is_some_and(|pages| pages < 1000),
        "{next:#}"
    );
    world.comes_back("again", &[]);
}

#[test]
#[ignore = "writes several gigabytes"]
fn postgresql_15_with_a_table_of_more_than_1_gigabyte_of_rows() {
    let Some(world) = world(
        "postgresql_15_with_a_table_of_more_than_1_gigabyte_of_rows",
        15,
        |_| (),
    ) else {
        return;
    };
    let mut session = world.session();
    session.execute("create table public.large (id int, v text); alter table public.large alter v set storage external").expect("table");
    session
        .execute(
            "insert into public.large select n, repeat(md5(n::text), 60) from generate_series(1, 600000) n",
        )
        .expect("rows");
    drop(session);
    round_trip(&world);
}

#[test]
fn postgresql_15_with_pg_wal_elsewhere_and_files_that_hold_nothing() {
    let test = "postgresql_15_with_pg_wal_elsewhere_and_files_that_hold_nothing";
    let Some(programs) = testing::programs_of_major_or_skip(test, 15) else {
        return;
    };
    let scratch = Scratch::new("cluster").expect("scratch");
    let wal = scratch.subfolder("wal").expect("folder");
    let mut options = World::options(programs);
    options.initdb.push(format!("--waldir={}", wal.display()).into());
    let world = World::protect(TestCluster::start_in(scratch, &options).expect("the cluster starts"));
    let pg_wal = world.production.data_directory().join("pg_wal");
    assert!(fs::symlink_metadata(&pg_wal).expect("pg_wal").is_symlink());
    world
        .session()
        .execute(
            "create table public.orders (id int primary key, v text);
             insert into public.orders select n, md5(n::text) from generate_series(1, 20000) n;
             create table public.empty (id int primary key, v text);
             create unlogged table public.fleeting (id int primary key, v text);
             insert into public.fleeting select n, md5(n::text) from generate_series(1, 20000) n;
             create unlogged sequence public.counter owned by public.fleeting.id; select nextval('public.counter');
             checkpoint",
        )
        .expect("tables");
    // Files that are nobody's, in places where people leave them.
    for name in ["stray", "base/left behind", "base/5/99999"] {
        let path = world.production.data_directory().join(name);
        fs::File::create(&path).expect("file");
        support::give_to_account(&path);
    }
    world.json(&["backup"]);
    let into = world.comes_back("back", &[]);
    assert_eq!(fs::metadata(into.join("stray")).expect("kept").len(), 0);
    assert!(
        fs::symlink_metadata(into.join("pg_wal"))
            .expect("pg_wal")
            .is_dir()
    );
    let restored = world.start_restored(&into);
    let fleeting = restored
        .session()
        .one("select pg_is_in_recovery() or not exists (select from public.fleeting)")
        .expect("recovery has emptied the unlogged table")[0]
        .clone();
    assert_eq!(fleeting.as_deref(), Some("t"));
    restored.stop();
    let facts = world.sound_drill();
    assert!(
        facts.to_string().contains("public.fleeting"),
        "the unlogged table is named as excluded"
    );
}

fn relations(test: &str, number: u32) {
    // No transaction could hold a lock on each of them.
    let few = ("max_locks_per_transaction".to_owned(), "10".to_owned());
    let Some(world) = world(test, 15, |options| options.settings.push(few)) else {
        return;
    };
    for from in (0..number).step_by(200) {
        let to = (from + 200).min(number) - 1;
        world
            .session()
            .execute(&format!(
                "do $$ begin for n in {from}..{to} loop \
                 execute format('create table public.t%s as select %s as n', n, n); end loop; end $$"
            ))
            .expect("tables");
    }
    round_trip(&world);
}

#[test]
fn postgresql_15_with_2000_tables() {
    relations("postgresql_15_with_2000_tables", 2000);
}

#[test]
#[ignore = "takes minutes"]
fn postgresql_15_with_20000_tables() {
    relations("postgresql_15_with_20000_tables", 20_000);
}

fn locales(test: &str, major: u16) {
    // Without checksums, too: what can be proved then is proved, and what cannot is said.
    let Some(world) = world(test, major, |options| options.checksums = false) else {
        return;
    };
    let icu = match major {
        15.. => "locale_provider icu icu_locale 'de-DE' locale 'C.UTF-8'",
        _ => "locale 'C.UTF-8'",
    };
    for statement in [
        &format!("create database german template template0 {icu}"),
        "create database latin template template0 encoding 'LATIN1' locale 'C'",
        "create database bytes template template0 encoding 'SQL_ASCII' locale 'C'",
    ] {
        world.session().execute(statement).expect(statement);
    }
    let collation = "create collation public.swedish (provider = icu, locale = 'sv-SE')";
    for (database, value) in [
        ("german", "'Äpfel und Öl ' || n"),
        ("latin", "'Äpfel und Öl ' || n"),
        ("bytes", "convert_from('\\xfffe80'::bytea, 'SQL_ASCII') || n"),
    ] {
        let mut session =
            cluster::Session::connect(&world.production.conninfo_of(database)).expect("connects");
        session
            .execute(&format!(
                "create table public.words as select n, {value} as v from generate_series(1, 3000) n; \
                 create index on public.words (v)"
            ))
            .expect(database);
        if database == "german" {
            session.execute(collation).expect("collation");
            session
                .execute("create index on public.words (v collate public.swedish)")
                .expect("index");
        }
    }
    world.session().execute(TABLES).expect("tables");
    world.json(&["backup"]);
    world.comes_back("back", &[]);
    // Without data checksums pages cannot be checked: that is said, and is no failure.
    let facts = world.drill("PASSED WITH OBSERVATIONS", &["quarantine", "page-checksums"]);
    let pages = support::check_of(&facts, "page-checksums");
    assert_eq!(pages["result"], "NOT RUN", "{pages:#}");
    assert!(
        pages.to_string().contains("initialised without data checksums"),
        "{pages:#}"
    );
}

#[test]
fn postgresql_13_with_other_encodings_and_no_checksums() {
    locales("postgresql_13_with_other_encodings_and_no_checksums", 13);
}

#[test]
fn postgresql_15_with_icu_other_encodings_and_no_checksums() {
    locales("postgresql_15_with_icu_other_encodings_and_no_checksums", 15);
}

#[test]
fn postgresql_18_with_icu_other_encodings_and_no_checksums() {
    locales("postgresql_18_with_icu_other_encodings_and_no_checksums", 18);
}

/// As Debian has it: `/etc/postgresql/<major>/main` and `/var/lib/postgresql/<major>/main`.
fn configuration_outside(test: &str, major: u16) {
    let Some(programs) = testing::programs_of_major_or_skip(test, major) else {
        return;
    };
    let mut production = TestCluster::start(&World::options(programs)).expect("the cluster starts");
    production.stop(cluster::StopMode::Fast).expect("stops");
    let outside = production.scratch().subfolder("etc").expect("folder");
    let data = production.data_directory().to_path_buf();
    fs::create_dir(outside.join("conf.d")).expect("conf.d");
    for file in ["postgresql.conf", "pg_hba.conf", "pg_ident.conf"] {
        fs::rename(data.join(file), outside.join(file)).expect("moved");
    }
    let conf = outside.join("postgresql.conf");
    let text = fs::read_to_string(&conf).expect("postgresql.conf");
    let places = format!(
        "\ndata_directory = '{}'\nhba_file = '{}'\nident_file = '{}'\ninclude_dir 'conf.d'\n",
        data.display(),
        outside.join("pg_hba.conf").display(),
        outside.join("pg_ident.conf").display()
    );
    fs::write(&conf, text + &places).expect("postgresql.conf");
    fs::write(outside.join("conf.d/mine.conf"), "work_mem = '7MB'\n").expect("mine.conf");
    support::give_to_account(&outside);
    let setting = ("config_file".to_owned(), conf.display().to_string());
    production.start_options().settings.push(setting);
    production
        .start_again()
        .expect("starts with its configuration outside");
    let world = World::protect(production);
    world.session().execute(TABLES).expect("tables");
    world.json(&["backup"]);
    let before = world.digests();
    world.archive_all();
    let into = world.scratch().join("back");
    world.json(&["restore", "--to", "latest", "--into", &into.display().to_string()]);
    // The generated pg_hba.conf lets in the account that runs the server alone; we may be root.
    let hba = world.scratch().join("trust.conf");
    fs::write(&hba, "local all all trust\n").expect("pg_hba.conf");
    support::give_to_account(&hba);
    let restored = world.start_restored_with(&into, &[("hba_file".to_owned(), hba.display().to_string())]);
    assert_eq!(restored.digests(), before);
    restored.stop();
    // What was captured stands beside, whole.
    let captured = find(&into.join("pgproof.reference"), "mine.conf").expect("mine.conf was captured");
    assert_eq!(
        fs::read_to_string(captured).expect("mine.conf"),
        "work_mem = '7MB'\n"
    );
    assert!(find(&into.join("pgproof.reference"), "pg_hba.conf").is_some());
    world.sound_drill();
}

fn find(folder: &Path, name: &str) -> Option<PathBuf> {
    for entry in fs::read_dir(folder).ok()?.flatten() {
        let path = entry.path();
        if path.is_dir() {
            if let Some(found) = find(&path, name) {
                return Some(found);
            }
        } else if entry.file_name() == name {
            return Some(path);
        }
    }
    None
}

#[test]
fn postgresql_13_with_its_configuration_outside_of_the_data_directory() {
    configuration_outside(
        "postgresql_13_with_its_configuration_outside_of_the_data_directory",
        13,
    );
}

#[test]
fn postgresql_15_with_its_configuration_outside_of_the_data_directory() {
    configuration_outside(
        "postgresql_15_with_its_configuration_outside_of_the_data_directory",
        15,
    );
}

#[test]
fn postgresql_18_with_its_configuration_outside_of_the_data_directory() {
    configuration_outside(
        "postgresql_18_with_its_configuration_outside_of_the_data_directory",
        18,
    );
}
