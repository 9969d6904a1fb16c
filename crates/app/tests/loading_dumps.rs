//! Loading a dump into a recovered server: what PostgreSQL says then, and the commands that help, as
//! docs/operations.md has them. Each message is made to happen, and each command is taken from the page and run.

mod support;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use support::World;
use testing::TestCluster;

/// The third column of each row by its first: the commands between backquotes.
fn page() -> BTreeMap<String, Vec<String>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/operations.md");
    let page = std::fs::read_to_string(path).expect("the page");
    let (_, section) = page
        .split_once("### When a dump is loaded into a recovered server\n")
        .expect("the section");
    let rows = section
        .lines()
        .skip_while(|line| !line.starts_with("| --- "))
        .skip(1)
        .take_while(|line| line.starts_with("| "));
    rows.map(|row| {
        let cells: Vec<&str> = row
            .trim_start_matches("| ")
            .trim_end_matches(" |")
            .split(" | ")
            .collect();
        let [message, _, helps] = cells[..] else {
            panic!("three cells in {row}")
        };
        let commands = helps.split('`').skip(1).step_by(2);
        let commands = commands.map(|command| command.replace("\\|", "|")).collect();
        (message.to_owned(), commands)
    })
    .collect()
}

/// A recovered server, the production beside it, and the page.
struct Recovered {
    socket: PathBuf,
    production: PathBuf,
    programs: PathBuf,
    folder: PathBuf,
    page: BTreeMap<String, Vec<String>>,
}

impl Recovered {
    fn shell(&self, command: &str) -> Command {
        let mut shell = Command::new("/bin/sh");
        let path = format!("{}:/usr/bin:/bin", self.programs.display());
        shell
            .args(["-c", command])
            .env_clear()
            .env("PATH", path)
            .env("PGHOST", &self.socket)
            .env("PGPORT", "5432")
            .env("PGUSER", "postgres")
            .env("LC_ALL", "C")
            .current_dir(&self.folder)
            .stdin(Stdio::null());
        shell
    }

    /// Whether it succeeded, and what it said.
    fn run(&self, command: &str) -> (bool, String) {
        let output = self.shell(command).output().expect("a shell");
        let said = [output.stdout, output.stderr].concat();
        (
            output.status.success(),
            String::from_utf8_lossy(&said).into_owned(),
        )
    }

    fn succeeds(&self, command: &str) -> String {
        let (succeeded, said) = self.run(command);
        assert!(succeeded, "{command}: {said}");
        said
    }

    fn fails_with(&self, command: &str, message: &str) {
        let (succeeded, said) = self.run(command);
        assert!(!succeeded && said.contains(message), "{command}: {said}");
        // The page says it with a name in the place of this one.
        let known = self.page.keys().any(|row| {
            let words = row.split('`').skip(1).step_by(2);
            words.into_iter().any(|words| {
                let mut parts = words.split("NAME");
                parts.all(|part| message.contains(part))
            })
        });
        assert!(known, "the page does not know {message:?}");
    }

    /// The command of this place in the page's row, with names in place of its placeholders.
    fn helping(&self, row: &str, at: usize, names: &[(&str, &str)]) -> String {
        let found = self.page.iter().find(|(message, _)| message.contains(row));
        let (_, commands) = found.unwrap_or_else(|| panic!("the page has no row {row:?}"));
        let command = commands.get(at).unwrap_or_else(|| panic!("{row}: {commands:?}"));
        names
            .iter()
            .fold(command.clone(), |command, (placeholder, name)| {
                assert!(command.contains(placeholder), "{placeholder} in {command}");
                command.replace(placeholder, name)
            })
    }
}

#[test]
fn what_a_dump_meets_in_a_recovered_server_is_what_the_page_says_and_its_command_helps() {
    let name = "what_a_dump_meets_in_a_recovered_server_is_what_the_page_says_and_its_command_helps";
    let Some(programs) = testing::programs_or_skip(name) else {
        return;
    };
    let Some(pg_restore) = testing::client_program(&programs, "pg_restore") else {
        eprintln!("SKIPPED: {name} needs PostgreSQL's client programs");
        return;
    };
    let mut options = World::options(programs);
    options
        .settings
        .push(("max_prepared_transactions".into(), "5".into()));
    let production = TestCluster::start(&options).expect("the throw-away cluster starts");
    let world = World::protect(production);
    world
        .session()
        .execute(
            "create role owner_of_all login; create role impatient superuser login; \
             alter role impatient set statement_timeout = '50ms'",
        )
        .and_then(|_| world.session().execute("create database shop"))
        .expect("roles and a database");
    let shop = || cluster::Session::connect(&world.production.conninfo_of("shop")).expect("a session");
    shop()
        .execute(
            "create table public.orders as select n from generate_series(1, 1000) n; \
             alter table public.orders owner to owner_of_all; create table public.waiting (n int)",
        )
        .expect("tables");
    shop()
        .execute("begin; lock table public.waiting; prepare transaction 'held'")
        .expect("a prepared transaction");
    world.json(&["backup"]);
    let row = world.session().one("select pg_current_wal_insert_lsn()");
    let point = row.expect("a point")[0].clone().expect("an LSN");
    shop()
        .execute("rollback prepared 'held'")
        .and_then(|_| shop().execute("create role late login; grant select on public.orders to late"))
        .expect("what comes later");
    world.archive_all();
    let into = world.scratch().join("recovered");
    world.json(&[
        "restore",
        "--to",
        &point,
        "--action",
        "pause",
        "--into",
        &into.display().to_string(),
    ]);
    let prepared = ("max_prepared_transactions".to_owned(), "5".to_owned());
    let server = world.start_restored_with(&into, &[prepared]);
    let folder = tempfile::tempdir().expect("folder");
    let recovered = Recovered {
        socket: world.scratch().join("recovered.s"),
        production: world.production.socket_directory().to_path_buf(),
        programs: pg_restore.parent().expect("a folder").to_path_buf(),
        folder: folder.path().to_path_buf(),
        page: page(),
    };
    let from = recovered.production.display().to_string();
    recovered.succeeds(&format!("pg_dump -h {from} -Fc -f shop.dump shop"));
    let dump = ("FILE", "shop.dump");

    // It stands at its target and waits.
    let read_only = "cannot execute CREATE DATABASE in a read-only transaction";
    recovered.fails_with("createdb loaded", read_only);
    recovered.succeeds(&recovered.helping(read_only, 0, &[]));
    let end = Instant::now() + Duration::from_secs(60);
    while recovered
        .succeeds("psql -Atc 'select pg_is_in_recovery()'")
        .trim()
        != "f"
    {
        assert!(Instant::now() < end, "it is not promoted");
        std::thread::sleep(Duration::from_millis(50));
    }

    // A role that came after the point: in a dump, and at login.
    recovered.succeeds("createdb loaded");
    let missing = "role \"late\" does not exist";
    recovered.fails_with("pg_restore -d loaded shop.dump", missing);
    recovered.fails_with("psql -U late -d postgres -c 'select 1'", missing);
    let by_role = "does not exist` (42704)";
    recovered.succeeds("createdb without_roles");
    recovered.succeeds(&recovered.helping(by_role, 1, &[("NEW", "without_roles"), dump]));
    recovered.succeeds(&recovered.helping(by_role, 0, &[("PRODUCTION", &from)]));
    recovered.succeeds("psql -U late -d postgres -c 'select 1'");

    // What was to be made is there already: the database, and a table in it.
    recovered.fails_with("createdb shop", "database \"shop\" already exists");
    recovered.succeeds(&recovered.helping(
        "database \"NAME\" already exists",
        0,
        &[("NEW", "shop_again"), dump],
    ));
    recovered.fails_with(
        "pg_restore -d loaded shop.dump",
        "relation \"orders\" already exists",
    );
    recovered.succeeds(&recovered.helping(
        "relation \"NAME\" already exists",
        0,
        &[("NAME", "loaded"), dump],
    ));
    let rows = "psql -Atd loaded -c 'select count(*) from public.orders'";
    assert_eq!(recovered.succeeds(rows).trim(), "1000");

    // A transaction that came back prepared holds its lock, and so does a session.
    let lock = "canceling statement due to lock timeout";
    recovered.fails_with(
        "psql -d shop -c \"set lock_timeout = '200ms'\" -c 'drop table public.waiting'",
        lock,
    );
    let prepared = recovered.helping(lock, 2, &[]);
    assert!(
        recovered
            .succeeds(&format!("psql -Atc \"{prepared}\""))
            .contains("held")
    );
    let end_it = recovered.helping(lock, 3, &[("GID", "held")]);
    recovered.succeeds(&format!("psql -d shop -c \"{end_it}\""));
    recovered.succeeds("psql -d shop -c 'drop table public.waiting'");
    let mut holder = cluster::Session::connect(&server.instance.conninfo("loaded")).expect("a session");
    holder.execute("begin; lock table public.orders").expect("a lock");
    let mut waiting = recovered
        .shell("psql -d loaded -c 'drop table public.orders'")
        .stdout(Stdio::null())
        .spawn()
        .expect("psql");
    let look = recovered.helping(lock, 0, &[]);
    let end = Instant::now() + Duration::from_secs(60);
    let blocker = loop {
        let said = recovered.succeeds(&look);
        let found = said.split('{').nth(1).and_then(|rest| rest.split('}').next());
        if let Some(found) = found.filter(|_| said.contains("drop table")) {
            break found.to_owned();
        }
        assert!(Instant::now() < end, "nobody waits: {said}");
        std::thread::sleep(Duration::from_millis(50));
    };
    let end_it = recovered.helping(lock, 1, &[("PID", &blocker)]);
    recovered.succeeds(&format!("psql -c \"{end_it}\""));
    assert!(waiting.wait().expect("psql ends").success());

    // Sessions are in the way of a database that is to be dropped.
    let _user = cluster::Session::connect(&server.instance.conninfo("shop")).expect("a session");
    let in_use = "is being accessed by other users";
    recovered.fails_with(
        "psql -d postgres -c 'drop database shop'",
        "database \"shop\" is being accessed by other users",
    );
    recovered.succeeds(&recovered.helping(in_use, 0, &[("NAME", "shop")]));

    // A setting of the role's came back with it.
    std::fs::write(folder.path().join("slow.sql"), "select pg_sleep(0.5);\n").expect("write");
    let timeout = "canceling statement due to statement timeout";
    let as_impatient = |command: &str| format!("export PGUSER=impatient PGDATABASE=postgres; {command}");
    recovered.fails_with(&as_impatient("psql -v ON_ERROR_STOP=1 -f slow.sql"), timeout);
    let patient = recovered.helping(timeout, 0, &[("FILE", "slow.sql -v ON_ERROR_STOP=1")]);
    recovered.succeeds(&as_impatient(&patient));

    // What is not installed here, and what is cut.
    recovered.fails_with(
        "psql -c 'create extension nonesuch'",
        "extension \"nonesuch\" is not available",
    );
    recovered.succeeds("head -c $(($(wc -c < shop.dump) * 3 / 4)) shop.dump > cut.dump; createdb cut");
    recovered.fails_with(
        "pg_restore -d cut cut.dump",
        "pg_restore: error: could not read from input file: end of file",
    );
    server.stop();
}
