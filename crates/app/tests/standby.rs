//! Backups of a standby: read beside its data directory and over the replication protocol, while its primary works, and
//! what makes them unsafe refused by name.

mod support;

use cluster::{BackupSession, Instance, Session, StartOptions, StopMode};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use support::{Ended, World, give_to_account};

/// A standby of the world's cluster.
struct Standby {
    instance: Instance,
    data: PathBuf,
}

impl Standby {
    /// A copy of the stopped primary that follows it.
    fn start(world: &mut World) -> Standby {
        world.production.stop(StopMode::Fast).expect("stop");
        let data = world.scratch().join("standby");
        let copied = Command::new("cp")
            .arg("-a")
            .arg(world.production.data_directory())
            .arg(&data)
            .status()
            .expect("cp");
        assert!(copied.success());
        world.production.start_again().expect("the primary starts");
        std::fs::write(data.join("standby.signal"), "").expect("signal");
        let conninfo = world.production.conninfo().replace('\'', "");
        let settings = std::fs::read_to_string(data.join("postgresql.auto.conf")).expect("settings");
        std::fs::write(
            data.join("postgresql.auto.conf"),
            format!("{settings}\nprimary_conninfo = '{conninfo}'\n"),
        )
        .expect("settings");
        for file in ["standby.signal", "postgresql.auto.conf"] {
            give_to_account(&data.join(file));
        }
        let socket_directory = world.production.scratch().subfolder("t").expect("socket folder");
        let mut instance = Instance::open(&world.programs, &data).expect("the standby opens");
        instance
            .start(&StartOptions {
                socket_directory,
                port: 5432,
                settings: [
                    ("listen_addresses", ""),
                    ("fsync", "off"),
                    ("archive_mode", "on"),
                    ("max_connections", "40"),
                    ("wal_receiver_status_interval", "1"),
                ]
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .to_vec(),
                log_file: world.scratch().join("standby.log"),
                timeout: Duration::from_secs(120),
                launcher: None,
                environment: Vec::new(),
            })
            .expect("the standby starts");
        Standby { instance, data }
    }

    fn conninfo(&self) -> String {
        self.instance.conninfo("postgres")
    }

    fn session(&self) -> Session {
        Session::connect(&self.conninfo()).expect("the standby answers")
    }

    /// Waits until the standby has replayed what the primary has written so far.
    fn catch_up(&self, world: &World) {
        let lsn = world
            .session()
            .one("select pg_current_wal_insert_lsn()")
            .expect("lsn")[0]
            .clone()
            .expect("lsn");
        let end = Instant::now() + Duration::from_secs(60);
        loop {
            let replayed = self
                .session()
                .one(&format!("select pg_last_wal_replay_lsn() >= '{lsn}'"))
                .expect("replayed");
            if replayed[0].as_deref() == Some("t") {
                return;
            }
            assert!(Instant::now() < end, "{}", self.instance.log_tail(4000));
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

fn configuration(world: &World, standby: &Standby, name: &str, by_files: bool) -> PathBuf {
    let path = world.scratch().join(name);
    let directory = match by_files {
        true => format!("data_directory = \"{}\"\n", standby.data.display()),
        false => String::new(),
    };
    let text = format!(
        "[cluster.main]\nconnection = \"{}\"\nprimary_connection = \"{}\"\n{directory}copies = [\"local\"]\n\n\
         [copy.local]\nurl = \"file://{}\"\nkey = {{ file = \"{}\" }}\n",
        standby.conninfo(),
        world.production.conninfo(),
        world.repository().display(),
        world.scratch().join("local.key").display()
    );
    std::fs::write(&path, text).expect("configuration");
    give_to_account(&path);
    path
}

fn run(world: &World, configuration: &Path, arguments: &[&str]) -> Ended {
    let output = world
        .command_with(configuration, arguments)
        .output()
        .expect("the program starts");
    Ended::of(&output)
}

#[test]
fn a_backup_of_a_standby_restores_the_primarys_rows_by_files_and_over_the_protocol() {
    let name = "a_backup_of_a_standby_restores_the_primarys_rows_by_files_and_over_the_protocol";
    let Some(mut world) = World::start(name) else {
        return;
    };
    world
        .session()
        .execute(
            "create table public.orders (id int primary key, v text); \
             insert into public.orders select n, md5(n::text) || repeat('x', 200) from generate_series(1, 40000) n",
        )
        .expect("table");
    let standby = Standby::start(&mut world);
    let load = testing::Workload::start(&world.production.conninfo(), 2).expect("load");
    standby.catch_up(&world);
    let mut made: Vec<Value> = Vec::new();
    for (name, by_files) in [("files", true), ("protocol", false)] {
        let configuration = configuration(&world, &standby, &format!("{name}.toml"), by_files);
        made.push(run(&world, &configuration, &["backup", "--json"]).ok().json());
    }
    load.stop().expect("the load ends");
    let stored = |value: &Value| value["pages_stored"].as_u64().expect("pages");
    assert!(stored(&made[1]) * 2 < stored(&made[0]), "{made:#?}");
    world.archive_all();
    let before = testing::row_digest(&world.production.conninfo()).expect("digest");
    for backup in &made {
        let id = backup["backup"].as_str().expect("id");
        let into = world.scratch().join(format!("restored-{id}"));
        world.json(&[
            "restore",
            "--backup",
            id,
            "--to",
            "latest",
            "--into",
            &into.display().to_string(),
        ]);
        let restored = world.start_restored(&into);
        assert_eq!(
            testing::row_digest(&restored.conninfo()).expect("digest"),
            before,
            "{id}"
        );
        restored.stop();
    }
}

#[test]
fn a_standby_that_is_promoted_or_whose_primary_writes_no_full_pages_is_refused_by_name() {
    let name = "a_standby_that_is_promoted_or_whose_primary_writes_no_full_pages_is_refused_by_name";
    let Some(mut world) = World::start(name) else {
        return;
    };
    let standby = Standby::start(&mut world);
    let execute = |statement: &str| {
        world.session().execute(statement).expect(statement);
    };
    execute("create table public.t as select n from generate_series(1, 1000) n");
    execute("alter system set full_page_writes = off");
    execute("select pg_reload_conf()");
    std::thread::sleep(Duration::from_millis(500));
    execute("insert into public.t select n from generate_series(1, 1000) n");
    execute("checkpoint");
    standby.catch_up(&world);
    for (name, by_files) in [("files", true), ("protocol", false)] {
        let configuration = configuration(&world, &standby, &format!("{name}.toml"), by_files);
        let ended = run(&world, &configuration, &["backup", "--json"]);
        assert_eq!(ended.code, 1, "{name}: {}", ended.stderr);
        assert!(
            ended.stderr.contains("[standby-without-full-page-writes]"),
            "{name}: {}",
            ended.stderr
        );
    }
    execute("alter system set full_page_writes = on");
    execute("select pg_reload_conf()");
    std::thread::sleep(Duration::from_millis(500));
    execute("checkpoint");
    standby.catch_up(&world);
    standby.session().execute("checkpoint").expect("restartpoint");

    let (session, _) = BackupSession::start(&standby.conninfo(), "promoted", true).expect("a backup begins");
    standby
        .session()
        .execute("select pg_promote(true, 60)")
        .expect("promotion");
    let error = session.stop().expect_err("the standby was promoted");
    assert_eq!(error.code(), "backup-aborted", "{}", error.render());
    let list = world.json(&["list"]);
    assert_eq!(list["backups"].as_array().map(Vec::len), Some(0), "{list:#}");

    // It is a primary of timeline 2 now, whose history comes over the wire.
    world
        .production
        .stop(StopMode::Immediate)
        .expect("the old primary stops");
    let promoted = configuration(&world, &standby, "promoted.toml", false);
    let text = std::fs::read_to_string(&promoted).expect("configuration");
    let lines: Vec<&str> = text
        .lines()
        .filter(|line| !line.starts_with("primary_connection"))
        .collect();
    std::fs::write(&promoted, lines.join("\n")).expect("configuration");
    let made = run(&world, &promoted, &["backup", "--json"]).ok().json();
    assert_eq!(made["timeline"], 2, "{made:#}");
}

#[test]
fn a_receiver_follows_its_server_onto_the_next_timeline() {
    let Some(mut world) = World::start("a_receiver_follows_its_server_onto_the_next_timeline") else {
        return;
    };
    world
        .session()
        .execute("create table public.t as select n from generate_series(1, 1000) n")
        .expect("table");
    let standby = Standby::start(&mut world);
    // A cluster of its own in the repository: the primary's archiver is another writer of "main".
    let path = configuration(&world, &standby, "receive.toml", false);
    let text = std::fs::read_to_string(&path).expect("configuration");
    std::fs::write(&path, text.replace("[cluster.main]", "[cluster.other]")).expect("configuration");
    let log = std::fs::File::create(world.scratch().join("receive.log")).expect("log");
    let mut receiver = world
        .command_with(&path, &["wal", "receive"])
        .stdout(log.try_clone().expect("log"))
        .stderr(log)
        .spawn()
        .expect("the receiver starts");
    let wait_for = |what: &str, holds: &dyn Fn() -> bool| {
        let end = Instant::now() + Duration::from_secs(60);
        while !holds() {
            let log = std::fs::read_to_string(world.scratch().join("receive.log")).unwrap_or_default();
            assert!(Instant::now() < end, "{what}:\n{log}");
            std::thread::sleep(Duration::from_millis(50));
        }
    };
    let senders = || {
        let query = "select 1 from pg_stat_replication where application_name like 'pgproof receive%'";
        standby.session().rows(query).expect("senders").len()
    };
    wait_for("the receiver connects", &|| senders() == 1);
    for _ in 0..2 {
        world
            .session()
            .execute("insert into public.t select n from generate_series(1, 1000) n")
            .expect("insert");
        cluster::archiving::switch_wal(&mut world.session()).expect("switch");
    }
    standby.catch_up(&world);
    standby
        .session()
        .execute("select pg_promote(true, 60)")
        .expect("promotion");
    cluster::archiving::switch_wal(&mut standby.session()).expect("switch");
    let said = |what: &str| {
        std::fs::read_to_string(world.scratch().join("receive.log"))
            .unwrap_or_default()
            .contains(what)
    };
    wait_for("the history is stored", &|| said("00000002.history is durable"));
    wait_for("a segment of timeline 2 is stored", &|| {
        said("\n0000000200000000")
    });
    assert!(said("\n0000000100000000"));
    rustix::process::kill_process(
        rustix::process::Pid::from_child(&receiver),
        rustix::process::Signal::TERM,
    )
    .expect("the receiver is told to end");
    assert!(receiver.wait().expect("it ends").success());
}
