//! What makes an incremental backup lose data elsewhere (hard rules 8 to 10): after each, a second backup restores to
//! exactly what stood in production, and not to what its parent held.

mod support;

use cluster::{Session, StopMode};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use support::World;

/// A cluster that writes nothing by itself.
fn world(test: &str, major: u16, checksums: bool) -> Option<World> {
    let programs = testing::programs_of_major_or_skip(test, major)?;
    let mut options = World::options(programs);
    options.checksums = checksums;
    for (name, value) in [("autovacuum", "off"), ("bgwriter_lru_maxpages", "0")] {
        options.settings.push((name.into(), value.into()));
    }
    Some(World::protect(
        testing::TestCluster::start(&options).expect("the throw-away cluster starts"),
    ))
}

/// The files of relations, all forks, by path.
fn relation_files(data: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut all = BTreeMap::new();
    for folder in fs::read_dir(data.join("base")).expect("base").flatten() {
        for file in fs::read_dir(folder.path()).expect("a database").flatten() {
            let name = file.file_name().to_string_lossy().into_owned();
            if name.starts_with(|c: char| c.is_ascii_digit()) {
                let path = format!("{}/{name}", folder.file_name().to_string_lossy());
                all.insert(path, fs::read(file.path()).expect("a relation's file"));
            }
        }
    }
    all
}

/// Backs up, and demands that what is restored has the same bytes in all files of relations, before any server touches
/// it. Production writes nothing meanwhile.
fn backup_equals_production(world: &World, name: &str) -> serde_json::Value {
    world.session().execute("checkpoint").expect("checkpoint");
    let backup = world.json(&["backup"]);
    let into = world.scratch().join(name);
    let id = backup["backup"].as_str().expect("id");
    world.archive_all();
    let place = into.display().to_string();
    world.json(&["restore", "--to", "immediate", "--backup", id, "--into", &place]);
    let (ours, theirs) = (
        relation_files(&into),
        relation_files(world.production.data_directory()),
    );
    let names = |files: &BTreeMap<String, Vec<u8>>| files.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&ours), names(&theirs));
    for (path, bytes) in &theirs {
        assert!(
            ours[path] == *bytes,
            "{path} of {name} is not what stands in production"
        );
    }
    fs::remove_dir_all(&into).expect("the copy can be removed");
    backup
}

/// Runs statements one by one: VACUUM cannot share its transaction.
fn run(mut session: Session, statements: &[&str]) {
    for statement in statements {
        session.execute(statement).expect(statement);
    }
}

fn path_of(world: &World, relation: &str) -> std::path::PathBuf {
    let path = world
        .session()
        .one(&format!("select pg_relation_filepath('{relation}')"))
        .expect("path")[0]
        .clone()
        .expect("a path");
    world.production.data_directory().join(path)
}

fn truncated_tail(test: &str, major: u16) {
    let Some(mut world) = world(test, major, true) else {
        return;
    };
    run(
        world.session(),
        &[
            "create table public.t as select n, repeat('x', 100) v from generate_series(1, 2000) n",
            "vacuum (freeze) public.t",
        ],
    );
    backup_equals_production(&world, "first");
    let path = path_of(&world, "public.t");
    let full = fs::metadata(&path).expect("file").len();
    run(
        world.session(),
        &[
            "delete from public.t where n > 1200",
            "vacuum public.t",
            "checkpoint",
        ],
    );
    let cut = fs::metadata(&path).expect("file").len();
    assert!(cut < full, "VACUUM truncated nothing");
    // A server that extends the file again and crashes before it writes the pages leaves zeros.
    world.production.stop(StopMode::Immediate).expect("crash");
    fs::OpenOptions::new()
        .write(true)
        .open(&path)
        .and_then(|file| file.set_len(full))
        .expect("extended");
    world.production.start_again().expect("starts");
    assert_eq!(
        fs::metadata(&path).expect("file").len(),
        full,
        "recovery cut the zeros off again"
    );
    backup_equals_production(&world, "second");
    world.comes_back("back", &[]);
    let count = world
        .session()
        .one("select count(*) from public.t")
        .expect("count")[0]
        .clone();
    assert_eq!(count.as_deref(), Some("1200"));
}

#[test]
fn postgresql_13_rows_behind_a_truncated_tail_do_not_return() {
    truncated_tail("postgresql_13_rows_behind_a_truncated_tail_do_not_return", 13);
}

#[test]
fn postgresql_15_rows_behind_a_truncated_tail_do_not_return() {
    truncated_tail("postgresql_15_rows_behind_a_truncated_tail_do_not_return", 15);
}

#[test]
fn postgresql_18_rows_behind_a_truncated_tail_do_not_return() {
    truncated_tail("postgresql_18_rows_behind_a_truncated_tail_do_not_return", 18);
}

fn reused_oid(test: &str, major: u16) {
    let Some(world) = world(test, major, true) else {
        return;
    };
    // Two templates with a table of the same file number and size. The pages of the one that comes second have LSNs
    // below the first one's, so that by LSN alone nothing has changed.
    let fill = |template: &str, value: &str| {
        world
            .session()
            .execute(&format!("create database {template} template template0"))
            .expect("template");
        let session = Session::connect(&world.production.conninfo_of(template)).expect("connects");
        let table = format!(
            "create table public.t as select n, '{value}' || n v from generate_series(10000, 15000) n"
        );
        run(session, &[&table, "vacuum (freeze) public.t"]);
    };
    fill("new", "new");
    fill("old", "old");
    let create = |template: &str| {
        world
            .session()
            .execute(&format!(
                "create database shop oid 50000 template {template} strategy file_copy"
            ))
            .expect("database");
    };
    create("old");
    backup_equals_production(&world, "first");
    world.session().execute("drop database shop").expect("drop");
    create("new");
    backup_equals_production(&world, "second");
    world.comes_back("back", &[]);
    world.sound_drill();
}

// The OID of a database can be chosen from 15 on.
#[test]
fn postgresql_15_a_database_with_a_reused_oid_is_the_new_one() {
    reused_oid("postgresql_15_a_database_with_a_reused_oid_is_the_new_one", 15);
}

#[test]
fn postgresql_18_a_database_with_a_reused_oid_is_the_new_one() {
    reused_oid("postgresql_18_a_database_with_a_reused_oid_is_the_new_one", 18);
}

#[test]
fn postgresql_15_checksums_that_were_switched_on_offline_are_backed_up() {
    let test = "postgresql_15_checksums_that_were_switched_on_offline_are_backed_up";
    let Some(mut world) = world(test, 15, false) else {
        return;
    };
    let program = world.programs.directory.join("pg_checksums");
    if !program.exists() {
        println!("SKIPPED: {test}: this installation has no pg_checksums");
        return;
    }
    run(
        world.session(),
        &[
            "create table public.t as select n, md5(n::text) v from generate_series(1, 20000) n",
            "vacuum (freeze) public.t",
        ],
    );
    let first = backup_equals_production(&world, "first");
    world.production.stop(StopMode::Fast).expect("stops");
    let mut command = Command::new(program);
    command
        .args(["--enable", "--no-sync", "-D"])
        .arg(world.production.data_directory());
    if rustix::process::geteuid().is_root() {
        use std::os::unix::process::CommandExt;
        let (uid, gid) = testing::account().expect("account");
        command.uid(uid).gid(gid);
    }
    let output = command.output().expect("runs");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    world.production.start_again().expect("starts");
    let second = backup_equals_production(&world, "second");
    // No LSN has changed, and nearly every page has.
    assert!(
        second["pages_stored"].as_u64() > first["pages_stored"].as_u64().map(|pages| pages / 2),
        "{second:#}"
    );
    let into = world.comes_back("back", &[]);
    let control = cluster::read_control_file(&into).expect("pg_control").1;
    assert_eq!(control.data_checksum_version, 1);
    world.sound_drill();
}

fn created_databases(test: &str, major: u16, strategies: &[&str]) {
    let Some(world) = world(test, major, true) else {
        return;
    };
    world.json(&["backup"]);
    for (number, strategy) in strategies.iter().enumerate() {
        world
            .session()
            .execute(&format!(
                "create database made{number} template template0 {strategy}"
            ))
            .expect("database");
        let conninfo = world.production.conninfo_of(&format!("made{number}"));
        Session::connect(&conninfo)
            .and_then(|mut session| {
                session.execute(
                    "create table public.t as select n, md5(n::text) v from generate_series(1, 3000) n",
                )
            })
            .expect("table");
    }
    // By replay of the WAL alone, then as part of a backup.
    let into = world.comes_back("by-wal", &[]);
    fs::remove_dir_all(into).expect("the copy can be removed");
    backup_equals_production(&world, "second");
    world.comes_back("by-backup", &[]);
    world.sound_drill();
}

#[test]
fn postgresql_13_a_created_database_comes_back() {
    created_databases("postgresql_13_a_created_database_comes_back", 13, &[""]);
}

#[test]
fn postgresql_15_databases_created_by_both_strategies_come_back() {
    created_databases(
        "postgresql_15_databases_created_by_both_strategies_come_back",
        15,
        &["strategy file_copy", "strategy wal_log"],
    );
}

#[test]
fn postgresql_18_databases_created_by_both_strategies_come_back() {
    created_databases(
        "postgresql_18_databases_created_by_both_strategies_come_back",
        18,
        &["strategy file_copy", "strategy wal_log"],
    );
}

fn maps(test: &str, major: u16) {
    let Some(world) = world(test, major, true) else {
        return;
    };
    run(
        world.session(),
        &[
            "create table public.t (n int primary key, v text) with (fillfactor = 50)",
            "insert into public.t select n, repeat('x', 200) from generate_series(1, 20000) n",
            "vacuum (freeze) public.t",
        ],
    );
    backup_equals_production(&world, "first");
    // The free space map is not in the WAL, and the visibility map's bits are cleared by flags alone.
    run(
        world.session(),
        &[
            "delete from public.t where n % 3 = 0",
            "update public.t set v = 'short' where n % 7 = 0",
            "vacuum public.t",
            "update public.t set v = 'again' where n between 100 and 200",
        ],
    );
    for name in ["vm", "fsm"] {
        let path = path_of(&world, "public.t");
        let map = path.with_file_name(format!(
            "{}_{name}",
            path.file_name().expect("name").to_string_lossy()
        ));
        assert!(
            fs::metadata(&map).expect("the map").len() >= 8192,
            "{}",
            map.display()
        );
    }
    backup_equals_production(&world, "second");
    world.comes_back("back", &[]);
}

#[test]
fn postgresql_13_free_space_and_visibility_maps_are_those_of_production() {
    maps(
        "postgresql_13_free_space_and_visibility_maps_are_those_of_production",
        13,
    );
}

#[test]
fn postgresql_15_free_space_and_visibility_maps_are_those_of_production() {
    maps(
        "postgresql_15_free_space_and_visibility_maps_are_those_of_production",
        15,
    );
}

#[test]
fn postgresql_18_free_space_and_visibility_maps_are_those_of_production() {
    maps(
        "postgresql_18_free_space_and_visibility_maps_are_those_of_production",
        18,
    );
}

fn fork(test: &str, major: u16) {
    let Some(mut world) = world(test, major, true) else {
        return;
    };
    run(
        world.session(),
        &[
            "create table public.t as select n, md5(n::text) v from generate_series(1, 10000) n",
            "vacuum (freeze) public.t",
        ],
    );
    let before_the_fork = world.json(&["backup"]);
    run(
        world.session(),
        &["update public.t set v = 'good' where n <= 100"],
    );
    let good = world.digests();
    let target = world
        .session()
        .one("select pg_current_wal_insert_lsn()::text")
        .expect("lsn")[0]
        .clone()
        .expect("an LSN");
    // The accident, and a backup of it, on the branch that is then left.
    run(
        world.session(),
        &[
            "update public.t set v = 'bad' where n > 100",
            "vacuum (freeze) public.t",
        ],
    );
    let of_the_branch = world.json(&["backup"]);
    world.archive_all();

    // Restored in production's place, adopted, and backed up on the new timeline.
    world.production.stop(StopMode::Fast).expect("stops");
    let data = world.production.data_directory().display().to_string();
    world.json(&["restore", "--to", &target, "--into", &data]);
    world
        .production
        .start_again()
        .expect("the restored server starts");
    for _ in 0..600 {
        let recovering = world
            .session()
            .one("select pg_is_in_recovery()")
            .expect("answers")[0]
            .clone();
        if recovering.as_deref() == Some("f") {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    assert_eq!(world.digests(), good);
    world.production.stop(StopMode::Fast).expect("stops");
    world.json(&["restore", "--adopt", &data]);
    world.production.start_again().expect("starts as production");
    run(
        world.session(),
        &["update public.t set v = 'new branch' where n <= 50"],
    );
    let on_the_new_timeline = backup_equals_production(&world, "second");
    assert_eq!(on_the_new_timeline["timeline"], 2, "{on_the_new_timeline:#}");
    let parent = &on_the_new_timeline["parent"];
    assert_ne!(
        *parent, of_the_branch["backup"],
        "a backup of the branch that was left became the parent"
    );
    assert!(
        parent.is_null() || *parent == before_the_fork["backup"],
        "{parent}"
    );
    world.comes_back("back", &[]);
    world.sound_drill();
}

#[test]
fn postgresql_13_a_backup_after_a_fork_has_no_parent_on_the_branch_that_was_left() {
    fork(
        "postgresql_13_a_backup_after_a_fork_has_no_parent_on_the_branch_that_was_left",
        13,
    );
}

#[test]
fn postgresql_15_a_backup_after_a_fork_has_no_parent_on_the_branch_that_was_left() {
    fork(
        "postgresql_15_a_backup_after_a_fork_has_no_parent_on_the_branch_that_was_left",
        15,
    );
}

#[test]
fn postgresql_18_a_backup_after_a_fork_has_no_parent_on_the_branch_that_was_left() {
    fork(
        "postgresql_18_a_backup_after_a_fork_has_no_parent_on_the_branch_that_was_left",
        18,
    );
}
