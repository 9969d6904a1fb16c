//! A cluster that is promoted several times: a standby takes over and archives into the same repository, the old primary
//! goes on alone, is made the standby's image and takes over again, and somebody promotes without the archive. What is
//! followed, what is refused, and which timeline a refusal names.

mod support;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use cluster::{Instance, Session, StartOptions, StopMode};
use support::{Ended, World};

#[test]
fn promotions_are_followed_by_number_and_refusals_name_the_timeline_that_holds_the_target() {
    let Some(mut world) = World::start(
        "promotions_are_followed_by_number_and_refusals_name_the_timeline_that_holds_the_target",
    ) else {
        return;
    };
    world
        .session()
        .execute("create table public.work (phase int, n int); insert into public.work select 0, n from generate_series(1, 5000) n")
        .expect("tables");
    let first = world.json(&["backup"])["backup"]
        .as_str()
        .expect("a backup")
        .to_owned();
    work(&world.production.conninfo(), 1);
    let before_fork = position(&world.production.conninfo());
    work(&world.production.conninfo(), 2);

    // A standby takes over: timeline 2, archived into the same repository.
    let mut standby = standby(&mut world);
    work(&world.production.conninfo(), 3);
    let end = position(&world.production.conninfo());
    wait(
        &standby.0.conninfo("postgres"),
        &format!("select pg_last_wal_replay_lsn() >= '{end}'"),
    );
    world
        .production
        .stop(StopMode::Immediate)
        .expect("the primary dies");
    standby
        .0
        .promote(Duration::from_secs(60))
        .expect("the standby is promoted");
    let second = standby.0.conninfo("postgres");
    assert_eq!(timeline(&second), 2);
    work(&second, 20);
    archived(&second);

    // The old primary comes back and goes on alone: a point that only timeline 1 has.
    world.production.start_again().expect("the old primary starts");
    work(&world.production.conninfo(), 10);
    let alone = testing::row_digest(&world.production.conninfo()).expect("digest");
    world
        .session()
        .one("select pg_create_restore_point('alone')")
        .expect("a restore point");
    work(&world.production.conninfo(), 11);
    archived(&world.production.conninfo());
    world
        .production
        .stop(StopMode::Fast)
        .expect("the old primary stops");

    assert_eq!(followed(&world, &["--to", "latest"]), Some(1));
    assert_eq!(
        followed(&world, &["--to", "latest", "--timeline", "current"]),
        Some(1)
    );
    assert_eq!(
        followed(&world, &["--to", "latest", "--timeline", "latest"]),
        Some(2)
    );
    refused(
        &plan(&world, &["--to", "latest", "--timeline", "9"]),
        "timeline-unknown",
        &["2"],
    );
    let names = ["Timeline 1 holds it", "--timeline 1"];
    refused(
        &plan(&world, &["--to-name", "alone", "--timeline", "2"]),
        "unknown-restore-point",
        &names,
    );
    let digests = recovered(&world, "alone", &["--to-name", "alone", "--timeline", "1"]);
    assert_eq!(digests, alone, "the point on the old timeline, behind the fork");

    // Failing back: the old primary's directory becomes the image of timeline 2, in place, and takes over: timeline 3.
    let expected = testing::row_digest(&second).expect("digest");
    archived(&second);
    standby.0.stop(StopMode::Fast).expect("the standby stops");
    let directory = world.production.data_directory().to_owned();
    let text = directory.display().to_string();
    world.json(&[
        "restore",
        "--delta",
        "--confirm",
        "main",
        "--to",
        "latest",
        "--timeline",
        "latest",
        "--into",
        &text,
    ]);
    world
        .production
        .start_again()
        .expect("the old primary starts as the image of the new one");
    wait(&world.production.conninfo(), "select not pg_is_in_recovery()");
    assert_eq!(
        testing::row_digest(&world.production.conninfo()).expect("digest"),
        expected
    );
    assert_eq!(timeline(&world.production.conninfo()), 3);
    world.production.stop(StopMode::Fast).expect("it stops");
    world.run(&["restore", "--adopt", &text]).ok();
    world.production.start_again().expect("production again");
    work(&world.production.conninfo(), 30);
    let third = testing::row_digest(&world.production.conninfo()).expect("digest");
    archived(&world.production.conninfo());
    assert_eq!(
        followed(&world, &["--to", "latest", "--timeline", "latest"]),
        Some(3)
    );
    let digests = recovered(
        &world,
        "across",
        &["--to", "latest", "--timeline", "3", "--backup", &first],
    );
    assert_eq!(digests, third, "one backup, three timelines");

    // A backup behind the forks cannot serve a point before them; the older one does.
    let newest = world.json(&["backup"])["backup"]
        .as_str()
        .expect("a backup")
        .to_owned();
    let names = [first.as_str()];
    refused(
        &plan(&world, &["--to", &before_fork, "--backup", &newest]),
        "target-before-backup-end",
        &names,
    );
    let chosen = plan(&world, &["--to", &before_fork]).ok().json();
    assert_eq!(chosen["plan"]["backup"].as_str(), Some(first.as_str()));
    assert_eq!(chosen["plan"]["timeline"].as_u64(), Some(3));

    // Somebody promotes without the archive: another timeline 2. Its writer is refused, and its history too.
    let other = world.scratch().join("other");
    let other_text = other.display().to_string();
    world.json(&[
        "restore",
        "--to-name",
        "alone",
        "--timeline",
        "1",
        "--into",
        &other_text,
    ]);
    let mut restored = world.start_restored(&other);
    for statement in [
        "alter system set restore_command = 'false'",
        "select pg_reload_conf()",
    ] {
        restored
            .session()
            .execute(statement)
            .expect("without the archive");
    }
    std::thread::sleep(Duration::from_millis(500));
    restored
        .instance
        .promote(Duration::from_secs(60))
        .expect("it is promoted");
    assert_eq!(timeline(&restored.conninfo()), 2);
    restored.instance.stop(StopMode::Fast).expect("it stops");
    world.run(&["restore", "--adopt", &other_text]).ok();
    let push = || {
        let mut command = world.command(&["wal", "push", "pg_wal/00000002.history"]);
        let output = command.current_dir(&other).output().expect("it runs");
        (
            output.status.code(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    };
    let (code, said) = push();
    assert_eq!(
        (code, said.contains("wal-second-writer")),
        (Some(1), true),
        "{said}"
    );
    let theirs = world.scratch().join("other.toml");
    let configuration = std::fs::read_to_string(world.scratch().join("pgproof.toml")).expect("configuration");
    std::fs::write(&theirs, configuration.replace(&text, &other_text)).expect("write");
    let taken = world
        .command_with(&theirs, &["wal", "take-over"])
        .output()
        .expect("it runs");
    assert!(
        taken.status.success(),
        "{}",
        String::from_utf8_lossy(&taken.stderr)
    );
    // Its history is another one: the number stays with the one that was first.
    let (code, said) = push();
    assert_eq!((code, said.contains("wal-conflict")), (Some(1), true), "{said}");
    assert_eq!(
        followed(&world, &["--to", "latest", "--timeline", "2", "--backup", &first]),
        Some(2)
    );
    assert_eq!(
        followed(&world, &["--to", "latest", "--timeline", "latest"]),
        Some(3)
    );
    assert_eq!(followed(&world, &["--to", "latest"]), Some(3));
}

/// The plan of a restore, printed.
fn plan(world: &World, arguments: &[&str]) -> Ended {
    let into = world.scratch().join("x").display().to_string();
    let all: Vec<&str> = ["restore", "--dry-run", "--json", "--into", &into]
        .iter()
        .chain(arguments)
        .copied()
        .collect();
    world.run(&all)
}

/// The timeline that such a restore follows.
fn followed(world: &World, arguments: &[&str]) -> Option<u64> {
    plan(world, arguments).ok().json()["plan"]["timeline"].as_u64()
}

fn refused(ended: &Ended, code: &str, names: &[&str]) {
    assert_eq!(ended.code, 1, "{}\n{}", ended.stdout, ended.stderr);
    assert!(ended.stderr.contains(code), "{}", ended.stderr);
    for name in names {
        assert!(ended.stderr.contains(name), "{name} is not in:\n{}", ended.stderr);
    }
}

/// A standby of production: a copy of its stopped directory that follows it.
fn standby(world: &mut World) -> (Instance, StartOptions) {
    let directory = world.scratch().join("standby");
    let origin = world.production.data_directory().to_owned();
    world.production.stop(StopMode::Fast).expect("production stops");
    let copied = Command::new("cp")
        .arg("-a")
        .args([&origin, &directory])
        .status()
        .expect("cp");
    assert!(copied.success());
    world.production.start_again().expect("production starts");
    std::fs::write(directory.join("standby.signal"), "").expect("write");
    support::give_to_account(&directory.join("standby.signal"));
    let mut instance = Instance::open(&world.programs, &directory).expect("the standby opens");
    let sockets = world.production.scratch().subfolder("t").expect("folder");
    let mut start = StartOptions::new(&sockets, 5433, &world.scratch().join("standby.log"));
    for (name, value) in [
        ("fsync", "off"),
        ("archive_mode", "on"),
        ("max_connections", "40"),
        ("primary_conninfo", &world.production.conninfo()),
    ] {
        start.settings.push((name.to_owned(), value.to_owned()));
    }
    instance.start(&start).expect("the standby starts");
    (instance, start)
}

fn work(conninfo: &str, phase: u32) {
    Session::connect(conninfo)
        .expect("the server answers")
        .execute(&format!(
            "insert into public.work select {phase}, n from generate_series(1, 500) n"
        ))
        .expect("work");
}

fn position(conninfo: &str) -> String {
    one(conninfo, "select pg_current_wal_insert_lsn()::text")
}

fn timeline(conninfo: &str) -> u32 {
    let name = one(conninfo, "select pg_walfile_name(pg_current_wal_lsn() - 1)");
    u32::from_str_radix(&name[..8], 16).expect("a number")
}

fn one(conninfo: &str, query: &str) -> String {
    let mut session = Session::connect(conninfo).expect("the server answers");
    session.one(query).expect("an answer")[0]
        .clone()
        .expect("a value")
}

fn wait(conninfo: &str, condition: &str) {
    let end = Instant::now() + Duration::from_secs(60);
    while one(conninfo, condition) != "t" {
        assert!(Instant::now() < end, "{condition}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Switches to a new segment and waits until everything before it is archived.
fn archived(conninfo: &str) {
    let mut session = Session::connect(conninfo).expect("the server answers");
    // A promotion's checkpoint writes the new timeline into pg_control.
    session.execute("checkpoint").expect("checkpoint");
    cluster::archiving::switch_wal(&mut session).expect("switch");
    let end = Instant::now() + Duration::from_secs(120);
    loop {
        let status = cluster::archiving::archiver_status(&mut session).expect("archiver status");
        if status.ready_files.as_ref().is_some_and(Vec::is_empty) {
            return;
        }
        assert!(
            Instant::now() < end,
            "the archiver does not come to an end: {status:?}"
        );
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn recovered(world: &World, name: &str, arguments: &[&str]) -> BTreeMap<String, String> {
    let into = world.scratch().join(name);
    let text = into.display().to_string();
    let all: Vec<&str> = ["restore", "--into", &text]
        .iter()
        .chain(arguments)
        .copied()
        .collect();
    world.json(&all);
    let restored = world.start_restored(&into);
    let digests = testing::row_digest(&restored.conninfo()).expect("digest of the restored server");
    restored.stop();
    remove(&into);
    digests
}

fn remove(path: &Path) {
    std::fs::remove_dir_all(path).expect("the copy can be removed");
}
