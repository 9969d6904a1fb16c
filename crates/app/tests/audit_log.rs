//! The record of what people did with a cluster's backups: who restored, adopted and failed to back up is told in order
//! of time, from before the first write, without secrets, under the hash chain; and nothing depends on it.

mod support;

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use cluster::StopMode;
use serde_json::Value;
use support::{Ended, World};

/// Stands in a connection string, and nowhere else.
const PASSWORD: &str = "correct-horse-battery-staple";
/// How often a restore is killed until one was killed in its middle.
const KILLS: usize = 20;

fn protected(test: &str) -> Option<World> {
    let world = World::start(test)?;
    world
        .session()
        .execute("create table public.orders as select n, md5(n::text) v from generate_series(1, 20000) n")
        .expect("a table");
    world.json(&["backup"]);
    world.archive_all();
    Some(world)
}

fn log(world: &World) -> Value {
    world.json(&["audit-log"])
}

/// The lines about one kind of thing.
fn of<'a>(log: &'a Value, what: &str) -> Vec<&'a Value> {
    let entries = log["entries"].as_array().expect("entries");
    entries.iter().filter(|entry| entry["what"] == what).collect()
}

fn text<'a>(entry: &'a Value, key: &str) -> &'a str {
    entry[key]
        .as_str()
        .unwrap_or_else(|| panic!("no {key} in {entry:#}"))
}

/// The files of the records of actions, by their path in the repository.
fn records(world: &World) -> BTreeMap<PathBuf, Vec<u8>> {
    support::faults::contents(&world.repository(), |path| path.contains("/evidence/action_"))
}

fn restore(world: &World, into: &Path, further: &[&str]) -> Ended {
    let into = into.display().to_string();
    let mut arguments = vec!["restore", "--to", "latest", "--into", &into];
    arguments.extend(further);
    world.run(&arguments)
}

#[test]
fn who_restored_adopted_and_failed_to_back_up_is_told_without_secrets() {
    let Some(mut world) = protected("who_restored_adopted_and_failed_to_back_up_is_told_without_secrets")
    else {
        return;
    };
    let one = world.scratch().join("one");
    let place = one.display().to_string();
    restore(&world, &one, &["--dry-run"]).ok();
    assert!(records(&world).is_empty(), "a dry run is recorded");

    let arguments = ["restore", "--to", "latest", "--into", &place];
    let mut command = world.command(&arguments);
    let output = command
        .env("SUDO_USER", "ann")
        .output()
        .expect("the program starts");
    Ended::of(&output).ok();
    let seen = log(&world);
    let restores = of(&seen, "restore");
    assert_eq!(restores.len(), 1, "{seen:#}");
    let (line, begun) = (restores[0], &restores[0]["record"]["begun"]);
    let backup = of(&seen, "backup")[0]["on"].as_str().expect("a backup");
    for part in [backup, "from local", &place, "--to latest", "timeline 1"] {
        assert!(text(line, "on").contains(part), "{part}: {line:#}");
    }
    assert!(text(line, "who").starts_with("ann (as "), "{line:#}");
    assert!(text(line, "outcome").starts_with("done, "), "{line:#}");
    assert_eq!(begun["by"]["sudo_user"], "ann");
    assert_eq!(begun["by"]["uid"].as_u64(), Some(u64::from(uid())));
    assert!(
        line["record"]["ended"]["bytes"].as_u64() > Some(1 << 20),
        "{line:#}"
    );

    // Over the directory; and a refusal before anything is touched is none of it.
    assert_eq!(restore(&world, &one, &["--delta", "--confirm", "mian"]).code, 2);
    restore(&world, &one, &["--delta", "--confirm", "main"]).ok();
    world.run(&["restore", "--adopt", &place]);
    let server = world.start_restored(&one);
    server.stop();
    world.run(&["restore", "--adopt", &place]).ok();
    let seen = log(&world);
    assert_eq!(of(&seen, "restore").len(), 1);
    assert_eq!(of(&seen, "restore-delta").len(), 1, "{seen:#}");
    let adoptions: Vec<&str> = of(&seen, "adopt")
        .iter()
        .map(|line| text(line, "outcome"))
        .collect();
    assert_eq!(adoptions, ["FAILED: recovery-unfinished", "done"]);

    // A drill is its own evidence, and what people do leaves it as it is.
    let facts = world.sound_drill();
    let drill = facts.pointer("/identity/drill_id").expect("an id");
    let seen = log(&world);
    let drills = of(&seen, "drill");
    assert_eq!((drills.len(), &drills[0]["name"]), (1, drill));
    assert_eq!(text(drills[0], "outcome"), world.sound_verdict());
    assert_eq!(
        of(&seen, "restore").len(),
        1,
        "a drill's own restore is an action"
    );
    world.run(&["drill", "audit"]).ok();

    // A connection that leads nowhere, with a password in it.
    world.json(&["pin", backup, "--reason", "audit"]);
    let file = world.scratch().join("pgproof.toml");
    let right = std::fs::read_to_string(&file).expect("the configuration");
    let line = right
        .lines()
        .find(|line| line.starts_with("connection = "))
        .expect("a connection");
    let wrong = format!("connection = \"host=/nowhere user=postgres password={PASSWORD}\"");
    support::overwrite(&file, right.replace(line, &wrong).as_bytes());
    let failed = world.run(&["backup"]);
    assert_eq!(failed.code, 1, "{}", failed.stderr);
    world.production.stop(StopMode::Fast).expect("production stops");
    support::overwrite(&file, right.as_bytes());
    support::give_to_account(&file);
    assert_eq!(world.run(&["backup", "--dry-run"]).code, 1);
    assert_eq!(world.run(&["backup"]).code, 1);

    let seen = log(&world);
    let outcomes: Vec<&str> = of(&seen, "backup")
        .iter()
        .map(|line| text(line, "outcome"))
        .collect();
    assert_eq!(outcomes.len(), 3, "{outcomes:?}");
    assert!(outcomes[0].starts_with("done, "), "{outcomes:?}");
    assert_eq!(outcomes[1..], ["FAILED: server-unreachable"; 2]);
    let pin = of(&seen, "pin")[0];
    assert_eq!((text(pin, "on"), text(pin, "outcome")), (backup, "done: audit"));
    assert!(text(pin, "who").contains(" on "), "{pin:#}");
    let rates = world.json(&["drill", "list"])["rates"][0]["rates"].clone();
    let rate = rates
        .as_array()
        .expect("rates")
        .iter()
        .find(|rate| rate["id"] == "backups");
    let rate = rate.expect("the rate");
    assert_eq!(
        (text(rate, "actual"), text(rate, "result")),
        ("1 of 3 (33 %)", "not met")
    );

    // In order of time, from any moment on; whole; and nothing of what is secret.
    let times: Vec<jiff::Timestamp> = seen["entries"]
        .as_array()
        .expect("entries")
        .iter()
        .map(|entry| text(entry, "at").parse().expect("a time"))
        .collect();
    assert!(times.is_sorted() && times.len() >= 9, "{times:?}");
    assert_eq!(world.json(&["audit-log", "--since", "1 hour ago"]), seen);
    let none = world.json(&["audit-log", "--since", "now"]);
    assert_eq!(none["entries"].as_array().map(Vec::len), Some(0));
    assert_eq!(
        (&none["chains"], &none["chains"][0]["holds"]),
        (&seen["chains"], &Value::Bool(true))
    );
    let key = std::fs::read_to_string(world.scratch().join("local.key")).expect("the key");
    let key = key.split_whitespace().nth(1).expect("its digits");
    let printed = world.run(&["audit-log"]).ok().stdout;
    assert!(
        printed.contains("FAILED: server-unreachable") && printed.contains("holds; "),
        "{printed}"
    );
    for secret in [PASSWORD, key] {
        for said in [&seen.to_string(), &printed, &failed.stderr] {
            assert!(!said.contains(secret), "{secret} is in {said}");
        }
    }
}

fn uid() -> u32 {
    match rustix::process::geteuid() {
        root if root.is_root() => testing::account().expect("account").0,
        own => own.as_raw(),
    }
}

#[test]
fn a_restore_is_recorded_before_its_first_write_and_one_that_was_killed_is_told_as_such() {
    let Some(world) =
        protected("a_restore_is_recorded_before_its_first_write_and_one_that_was_killed_is_told_as_such")
    else {
        return;
    };
    let into = world.scratch().join("copy");
    let place = into.display().to_string();
    let arguments = ["restore", "--to", "latest", "--threads", "1", "--into", &place];
    for kill in 1..=KILLS {
        let _ = std::fs::remove_dir_all(&into);
        let mut command = world.command(&arguments);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().expect("the program starts");
        let end = Instant::now() + Duration::from_secs(60);
        while !into.exists() {
            assert!(Instant::now() < end, "the restore does not begin");
            std::thread::sleep(Duration::from_micros(200));
        }
        let begun = records(&world)
            .keys()
            .filter(|path| path.ends_with("begun.json"))
            .count();
        // It may have come to its end already.
        let _ = child.kill();
        let killed = !child.wait().expect("it ends").success();
        assert_eq!(begun, kill, "the directory is there, and no record of it");
        if killed {
            break;
        }
    }
    let seen = log(&world);
    let restores = of(&seen, "restore");
    let last = restores.last().expect("a restore");
    assert!(text(last, "outcome").starts_with("NOT ENDED"), "{last:#}");
    assert_eq!(last["record"]["ended"], Value::Null);
    // The next one goes on as if there were no record.
    restore(&world, &into, &[]).ok();
    let seen = log(&world);
    let last = of(&seen, "restore").pop().cloned().expect("a restore");
    assert!(text(&last, "outcome").starts_with("done"), "{last:#}");
}

#[test]
fn a_repository_that_cannot_be_written_stops_neither_a_restore_nor_an_adoption() {
    let Some(mut world) =
        protected("a_repository_that_cannot_be_written_stops_neither_a_restore_nor_an_adoption")
    else {
        return;
    };
    let expected = testing::row_digest(&world.production.conninfo()).expect("digest");
    world.production.stop(StopMode::Fast).expect("production stops");
    let into = world.scratch().join("copy");
    let place = into.display().to_string();
    let warned = |ended: &Ended, what: &str| {
        let warning = format!("warning: no copy of the backups took the record of this {what}");
        assert_eq!(ended.stderr.matches(&warning).count(), 1, "{}", ended.stderr);
    };
    set_modes(&world.repository(), 0o500);
    let ended = restore(&world, &into, &[]).ok();
    warned(&ended, "restore");
    let server = world.start_restored(&into);
    let found = testing::row_digest(&server.conninfo()).expect("digest of the restored server");
    server.stop();
    assert_eq!(found, expected);
    let ended = world.run(&["restore", "--adopt", &place]).ok();
    warned(&ended, "adopt");
    set_modes(&world.repository(), 0o700);
    let seen = log(&world);
    assert!(
        of(&seen, "restore").is_empty() && of(&seen, "adopt").is_empty(),
        "{seen:#}"
    );

    // Without a configuration nobody knows where the record belongs.
    let again = world.scratch().join("again");
    restore(&world, &again, &[]).ok();
    world.start_restored(&again).stop();
    let place = again.display().to_string();
    let nowhere = world.scratch().join("nowhere.toml");
    let mut command = world.command_with(&nowhere, &["restore", "--adopt", &place]);
    let ended = Ended::of(&command.output().expect("the program starts")).ok();
    warned(&ended, "adopt");
    assert!(!again.join("pgproof.restored").exists());
}

/// Of a folder and all folders below it.
fn set_modes(folder: &Path, mode: u32) {
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(mode)).expect("mode");
    for entry in std::fs::read_dir(folder).expect("folder").flatten() {
        if entry.path().is_dir() {
            set_modes(&entry.path(), mode);
        }
    }
}

#[test]
fn a_record_that_was_removed_or_changed_is_noticed() {
    let Some(world) = protected("a_record_that_was_removed_or_changed_is_noticed") else {
        return;
    };
    restore(&world, &world.scratch().join("copy"), &[]).ok();
    let whole = log(&world);
    assert_eq!(
        (&whole["chains"][0]["holds"], &whole["chains"][0]["links"]),
        (&Value::Bool(true), &Value::from(2))
    );
    let findings = |what: &str| -> Vec<String> {
        let ended = world.run(&["audit-log", "--json"]);
        assert_eq!(ended.code, 3, "{what}: {}", ended.stderr);
        let chain = ended.json()["chains"][0].clone();
        assert_eq!(chain["holds"], false, "{what}");
        let findings = chain["findings"].as_array().expect("findings").iter();
        findings.map(|finding| text(finding, "code").to_owned()).collect()
    };
    let links = support::faults::contents(&world.repository(), |path| path.contains("/evidence-chain/"));
    let records = records(&world);
    assert_eq!((links.len(), records.len()), (2, 2));
    for (path, content) in &records {
        let (path, shown) = (world.repository().join(path), path.display().to_string());
        std::fs::remove_file(&path).expect("removed");
        assert_eq!(findings(&shown), ["evidence-missing"]);
        let mut damaged = content.clone();
        damaged[150] ^= 1;
        put_back(&path, &damaged);
        assert_eq!(findings(&shown), ["evidence-damaged"]);
        put_back(&path, content);
    }
    // The older link; without the newest one the chain ends earlier, and the record says that no link names it.
    let (first, content) = links.first_key_value().expect("links");
    let first = world.repository().join(first);
    std::fs::remove_file(&first).expect("removed");
    assert_eq!(findings("the first link"), ["evidence-chain"]);
    put_back(&first, content);
    assert_eq!(log(&world), whole);
    let (last, content) = links.last_key_value().expect("links");
    let last = world.repository().join(last);
    std::fs::remove_file(&last).expect("removed");
    let cut = log(&world);
    assert!(cut["chains"][0]["head"] != whole["chains"][0]["head"]);
    let line = of(&cut, "restore").pop().expect("the restore");
    assert!(
        text(line, "outcome").contains("no link of the hash chain names it"),
        "{line:#}"
    );
    put_back(&last, content);
    assert_eq!(log(&world), whole);
}

fn put_back(path: &Path, content: &[u8]) {
    std::fs::write(path, content).expect("write");
    support::give_to_account(path);
}
