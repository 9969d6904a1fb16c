//! What goes wrong around the program: a wrong key, a clock that is set back or jumps ahead, a server that dies in the
//! middle, two servers that push under one name, a server that is another one than it is taken for. Each is told by its
//! code, what is stored stays as it is, and the right command succeeds afterwards.

mod support;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use cluster::StopMode;
use repository::RecipientKey;
use support::faults::{
    READS, accounts, backups, contents, copy_folder, file_name, hold_archiving, kept_objects, random,
    segments, traced, verify_is_clean, wait_until,
};
use support::{Ended, World};
use testing::{TestCluster, TestOptions};

fn world(test: &str) -> Option<World> {
    let world = World::start(test)?;
    accounts(&world);
    Some(world)
}

fn change(world: &World) {
    world
        .session()
        .execute("update public.accounts set balance = balance + 1 where id % 7 = 0")
        .expect("load");
}

/// All that the repository holds.
fn objects(world: &World) -> BTreeMap<PathBuf, Vec<u8>> {
    contents(&world.repository(), |_| true)
}

/// Runs a command with another configuration, in this folder.
fn run_with(world: &World, configuration: &Path, folder: &Path, arguments: &[&str]) -> Ended {
    let mut command = world.command_with(configuration, arguments);
    Ended::of(&command.current_dir(folder).output().expect("runs"))
}

/// The configuration with one text replaced, under another name.
fn configuration(world: &World, name: &str, replaced: &[(&str, &str)]) -> PathBuf {
    let mut text = std::fs::read_to_string(world.scratch().join("pgproof.toml")).expect("configuration");
    for (from, to) in replaced {
        assert!(text.contains(from), "{from:?} is not in {text}");
        text = text.replace(from, to);
    }
    let path = world.scratch().join(name);
    std::fs::write(&path, text).expect("configuration");
    support::give_to_account(&path);
    path
}

#[test]
fn a_key_that_is_wrong_missing_or_cut_is_told_and_nothing_is_read_or_written() {
    let test = "a_key_that_is_wrong_missing_or_cut_is_told_and_nothing_is_read_or_written";
    let Some(world) = world(test) else { return };
    world.json(&["backup"]);
    world.archive_all();
    hold_archiving(&world);
    let path = segments(&world, 1, &mut random()).remove(0);
    let pushed = path.display().to_string();
    let into = world.scratch().join("into");
    let shown = into.display().to_string();
    let before = objects(&world);

    let key = world.scratch().join("local.key");
    let right = std::fs::read(&key).expect("the key");
    let other = RecipientKey::generate().expect("a key");
    let other = other.to_key_file_text().expect("a key file").as_bytes().to_vec();
    let mut mistyped = right.clone();
    let last = mistyped.iter().rposition(u8::is_ascii_hexdigit).expect("a digit");
    mistyped[last] = if mistyped[last] == b'0' { b'1' } else { b'0' };
    let cases: [(Option<&[u8]>, &str); 4] = [
        (Some(&other), "key-wrong"),
        (Some(&mistyped), "key-file"),
        (Some(b""), "key-file"),
        (None, "key-missing"),
    ];
    for (content, code) in cases {
        match content {
            Some(content) => support::overwrite(&key, content),
            None => std::fs::remove_file(&key).expect("removed"),
        }
        for (arguments, exit) in [
            (&["backup"] as &[&str], 1),
            (&["list"], 1),
            (&["verify"], 1),
            (&["expire"], 1),
            (&["restore", "--to", "latest", "--into", &shown], 1),
            (&["drill", "run"], 1),
            (&["wal", "push", &pushed], 1),
            (&["wal", "get", &file_name(&path), &shown], 126),
            (&["wal", "get", "00000002.history", &shown], 126),
        ] {
            let told = world.run(arguments);
            println!("{code}: {arguments:?}: {} {:?}", told.code, told.codes());
            let told = told.failed(exit, code);
            assert!(told.stderr.contains("hint:"), "{}", told.stderr);
            assert!(!into.exists());
        }
        assert!(objects(&world) == before, "the repository changed with {code}");
        std::fs::write(&key, &right).expect("the key");
        support::give_to_account(&key);
    }
    world.run(&["wal", "push", &pushed]).ok();
    verify_is_clean(&world);
}

/// Runs a command by a clock that is so many seconds off; monotonic time goes on as it is.
fn run_by_clock(world: &World, offset: &str, arguments: &[&str]) -> Ended {
    let mut command = world.command_below("faketime", &["-m", "-f", offset], arguments);
    let output = command
        .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
        .stdin(Stdio::null())
        .output()
        .expect("faketime runs: apt-get install faketime");
    Ended::of(&output)
}

#[test]
fn a_clock_that_is_set_back_loses_no_backup_and_a_wrong_clock_deletes_nothing() {
    let test = "a_clock_that_is_set_back_loses_no_backup_and_a_wrong_clock_deletes_nothing";
    let Some(world) = world(test) else { return };
    world.json(&["backup"]);
    change(&world);
    // Set back between two backups, by a little and by a lot.
    for offset in ["-30s", "-3d"] {
        let set_back = run_by_clock(&world, offset, &["backup", "--json"]).ok().json();
        let pages = set_back["pages_reused"].as_u64();
        assert!(
            pages > Some(100),
            "the one before is not its parent: {set_back:#}"
        );
        change(&world);
    }
    world.json(&["backup"]);
    world.archive_all();
    let all = backups(&world);
    assert_eq!(all.len(), 4, "{all:?}");
    verify_is_clean(&world);

    // A lease of a restore that goes on, or of the server that it has made.
    let into = world.scratch().join("leased").display().to_string();
    world.run(&["restore", "--to", "latest", "--into", &into]).ok();
    let leases = || contents(&world.repository(), |path| path.contains("/leases/"));
    let (leased, kept) = (leases(), kept_objects(&world));
    assert!(!leased.is_empty());
    // Nothing is due by the first policy, and everything by the second.
    for (policy, offset, code) in [
        ("keep_last = 9", "-2h", "clock-behind"),
        ("keep_last = 1", "-2h", "clock-behind"),
        ("recovery_window = \"1 day\"", "+400d", "clock-differs"),
        ("keep_last = 9", "+400d", "clock-differs"),
    ] {
        support::retain(&world, policy);
        run_by_clock(&world, offset, &["expire"]).failed(1, code);
        assert!(
            kept_objects(&world) == kept,
            "{policy} at {offset} has deleted something"
        );
        assert!(leases() == leased, "{policy} at {offset} has deleted a lease");
    }

    // What it would have let go does not count as let go: should it be lost now, that is a gap.
    let segment = kept
        .keys()
        .filter(|path| file_name(path).len() == 57)
        .nth(1)
        .expect("a segment");
    let (object, aside) = (world.repository().join(segment), world.scratch().join("aside"));
    std::fs::rename(&object, &aside).expect("taken away");
    assert_eq!(world.run(&["wal", "gaps"]).code, 3, "a lost segment is no gap");
    std::fs::rename(&aside, &object).expect("put back");

    // By the right clock the newest backup, whatever it is called, is among those that stay.
    support::retain(&world, "keep_last = 1");
    world.run(&["expire"]).ok();
    verify_is_clean(&world);
    world.comes_back("after-the-clock", &[]);
}

#[test]
fn a_server_that_dies_during_a_backup_leaves_no_backup_and_no_row_is_lost() {
    let test = "a_server_that_dies_during_a_backup_leaves_no_backup_and_no_row_is_lost";
    let Some(mut world) = world(test) else { return };
    world.json(&["backup"]);
    let before = backups(&world);
    let data = world.production.data_directory().to_owned();
    let intents = world.repository().join("clusters/main/intents");
    let runs = || std::fs::read_dir(&intents).map_or(0, |entries| entries.count());
    let already = runs();
    let slowly = traced(&world, &data, READS);
    // Some milliseconds for each read: it is in the middle for long.
    let mut child = slowly
        .command(
            Some("?preadv2,?pread64:delay_enter=5000"),
            &["backup", "--full", "--threads", "1"],
        )
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("strace runs");
    wait_until("the backup's beginning", || runs() > already);
    change(&world);
    std::thread::sleep(std::time::Duration::from_millis(500));
    assert!(
        child.try_wait().expect("a child").is_none(),
        "it is through already"
    );
    let postmaster = std::fs::read_to_string(data.join("postmaster.pid")).expect("postmaster.pid");
    let postmaster: i32 = postmaster
        .lines()
        .next()
        .expect("a line")
        .parse()
        .expect("a number");
    let pid = rustix::process::Pid::from_raw(postmaster).expect("a process");
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("killed");
    let told = Ended::of(&child.wait_with_output().expect("it ends"));
    println!("{:?}", told.codes());
    told.failed(1, "backup-aborted");
    assert_eq!(backups(&world), before);

    // Nobody could archive the last changes: they lie in the old directory alone, which a restore does not give up.
    // (PostgreSQL's processes end by themselves without their parent.)
    wait_until("the end of the server's processes", || {
        !std::fs::read_dir("/proc")
            .expect("/proc")
            .flatten()
            .any(|entry| std::fs::read_link(entry.path().join("cwd")).is_ok_and(|cwd| cwd == data))
    });
    let instead = world.scratch().join("crashed");
    copy_folder(&data, &instead);
    world
        .production
        .stop(StopMode::Immediate)
        .expect("it is known to be gone");
    world.production.start_again().expect("the server starts again");
    let expected = world.digests();
    let shown = instead.display().to_string();
    let restored = world.json(&["restore", "--to", "latest", "--into", &shown]);
    assert!(
        !restored["result"]["kept_aside"]
            .as_array()
            .expect("kept")
            .is_empty(),
        "{restored:#}"
    );
    let server = world.start_restored(&instead);
    let found = server.digests();
    server.stop();
    assert_eq!(found, expected, "what only the old pg_wal had");

    world.json(&["backup"]);
    verify_is_clean(&world);
    world.comes_back("after-the-crash", &[]);
}

#[test]
fn of_two_servers_that_push_under_one_name_one_is_archived_and_the_other_is_told() {
    let test = "of_two_servers_that_push_under_one_name_one_is_archived_and_the_other_is_told";
    let Some(world) = world(test) else { return };
    hold_archiving(&world);
    let origin = world.production.data_directory().to_owned();
    let path = segments(&world, 1, &mut random()).remove(0);
    let name = file_name(&path);
    // A clone under another path has written other WAL under the same name.
    let clone = world.scratch().join("clone");
    for folder in ["pg_wal", "global"] {
        std::fs::create_dir_all(clone.join(folder)).expect("a folder");
    }
    std::fs::copy(origin.join("global/pg_control"), clone.join("global/pg_control")).expect("pg_control");
    let ours = std::fs::read(&path).expect("the segment");
    let mut theirs = ours.clone();
    let place = theirs.len() / 2;
    theirs[place] ^= 0x5a;
    std::fs::write(clone.join("pg_wal").join(&name), &theirs).expect("the segment");
    support::give_to_account(&clone);

    let relative = format!("pg_wal/{name}");
    let settings = world.scratch().join("pgproof.toml");
    let mut won = [0, 0];
    for _ in 0..12 {
        let _ = std::fs::remove_dir_all(world.repository().join("clusters"));
        let children = [&origin, &clone].map(|folder| {
            let mut command = world.command_with(&settings, &["wal", "push", &relative]);
            command
                .current_dir(folder)
                .stdout(Stdio::piped())
                .stderr(Stdio::piped());
            command.spawn().expect("starts")
        });
        let pushed = children.map(|child| Ended::of(&child.wait_with_output().expect("it ends")));
        let winner = pushed
            .iter()
            .position(|pushed| pushed.code == 0)
            .expect("one of them archives");
        won[winner] += 1;
        let loser = &pushed[1 - winner];
        assert_eq!(
            (loser.code, loser.codes().first().copied()),
            (1, Some("wal-second-writer")),
            "{}",
            loser.stderr
        );
        let into = world.scratch().join("read-back");
        let _ = std::fs::remove_file(&into);
        world
            .run(&["wal", "get", &name, &into.display().to_string()])
            .ok();
        let found = std::fs::read(&into).expect("the segment");
        assert!(
            found == *[&ours, &theirs][winner],
            "the archive holds the other one's WAL"
        );
    }
    println!("{won:?}");

    // The one that was there first keeps its segment whoever takes over; what differs is refused for good.
    let _ = std::fs::remove_dir_all(world.repository().join("clusters"));
    run_with(&world, &settings, &origin, &["wal", "push", &relative]).ok();
    let kept = kept_objects(&world);
    run_with(&world, &settings, &clone, &["wal", "push", &relative]).failed(1, "wal-second-writer");
    assert!(
        kept_objects(&world) == kept,
        "a second writer has stored something"
    );
    let origin_text = origin.display().to_string();
    let clone_text = clone.display().to_string();
    let of_clone = configuration(&world, "clone.toml", &[(&origin_text, &clone_text)]);
    run_with(&world, &of_clone, &clone, &["wal", "take-over"]).ok();
    let refused = run_with(&world, &of_clone, &clone, &["wal", "push", &relative]);
    refused.failed(1, "wal-conflict");
    run_with(&world, &settings, &origin, &["wal", "push", &relative]).failed(1, "wal-second-writer");
    run_with(&world, &settings, &origin, &["wal", "take-over"]).ok();
    run_with(&world, &settings, &origin, &["wal", "push", &relative]).ok();
    for (path, bytes) in &kept {
        assert_eq!(
            std::fs::read(world.repository().join(path)).ok().as_ref(),
            Some(bytes)
        );
    }
    verify_is_clean(&world);
}

#[test]
fn a_server_with_a_foreign_system_identifier_is_never_mixed_with_ours() {
    let test = "a_server_with_a_foreign_system_identifier_is_never_mixed_with_ours";
    let Some(world) = world(test) else { return };
    world.json(&["backup"]);
    let expected = world.digests();
    world.archive_all();
    let ours = backups(&world);
    let mut options = TestOptions {
        programs: Some(world.programs.clone()),
        ..TestOptions::default()
    };
    options.settings.push(("archive_mode".into(), "on".into()));
    let mut other = TestCluster::start(&options).expect("another cluster");
    let settings = world.scratch().join("pgproof.toml");
    let here = world.scratch().to_owned();
    // But for the record that a backup has failed.
    let stored = || contents(&world.repository(), |path| !path.contains("/evidence"));
    let before = stored();

    // The connection leads to one server, the directory is the other's.
    let (origin, foreign) = (
        world.production.data_directory(),
        other.data_directory().to_owned(),
    );
    let (origin_text, foreign_text) = (origin.display().to_string(), foreign.display().to_string());
    let mixed = configuration(&world, "mixed.toml", &[(&origin_text, &foreign_text)]);
    run_with(&world, &mixed, &here, &["backup"]).failed(1, "data-directory-mismatch");

    // A segment of the other server in our directory, and one of ours in its.
    let mut session = other.session().expect("a session");
    session
        .execute("create table public.theirs (n int)")
        .expect("work");
    let name = session
        .one("select pg_walfile_name(pg_current_wal_lsn())")
        .expect("a name");
    let theirs = name[0].clone().expect("a name");
    session.one("select pg_switch_wal()").expect("switch");
    drop(session);
    let planted = world.scratch().join("planted");
    for folder in ["pg_wal", "global"] {
        std::fs::create_dir_all(planted.join(folder)).expect("a folder");
    }
    std::fs::copy(
        origin.join("global/pg_control"),
        planted.join("global/pg_control"),
    )
    .expect("pg_control");
    std::fs::copy(
        foreign.join("pg_wal").join(&theirs),
        planted.join("pg_wal").join(&theirs),
    )
    .expect("a segment");
    support::give_to_account(&planted);
    let relative = format!("pg_wal/{theirs}");
    run_with(&world, &settings, &planted, &["wal", "push", &relative]).failed(1, "wal-segment-system");
    assert!(stored() == before, "something of the other server was stored");

    // Restoring in place over the other server's directory.
    other.stop(StopMode::Fast).expect("it stops");
    let untouched = contents(&foreign, |_| true);
    let delta = [
        "restore",
        "--delta",
        "--confirm",
        "main",
        "--to",
        "latest",
        "--into",
        &foreign_text,
    ];
    world.run(&delta).failed(1, "destination-foreign");
    assert!(
        contents(&foreign, |_| true) == untouched,
        "the other server's directory was touched"
    );
    other.start_again().expect("it starts");

    // Its WAL is archived beside ours, and what ours asks for is never answered with it.
    run_with(&world, &settings, &foreign, &["wal", "push", &relative]).ok();
    let systems = std::fs::read_dir(world.repository().join("clusters/main/wal"))
        .expect("wal")
        .count();
    assert_eq!(systems, 2);
    let placed = world.scratch().join("placed");
    let placed_text = placed.display().to_string();
    let got = run_with(&world, &settings, origin, &["wal", "get", &theirs, &placed_text]);
    if got.code == 0 {
        let header =
            postgres::SegmentHeader::parse(&std::fs::read(&placed).expect("placed")).expect("a header");
        let control = std::fs::read(origin.join("global/pg_control")).expect("pg_control");
        let control = postgres::ControlFile::parse(&control).expect("pg_control");
        assert_eq!(header.system_identifier, control.system_identifier);
    }

    // What follows under the cluster's name (after pg_upgrade, say) takes no page of ours.
    let conninfo = world.production.conninfo();
    let next = configuration(
        &world,
        "next.toml",
        &[(&origin_text, &foreign_text), (&conninfo, &other.conninfo())],
    );
    let archive = format!(
        "alter system set archive_command = '{} --config {} wal push --cluster main %p'",
        world.binary().display(),
        next.display()
    );
    let mut session = other.session().expect("a session");
    session.execute(&archive).expect("archive_command");
    session.execute("select pg_reload_conf()").expect("reload");
    let backup = run_with(&world, &next, &here, &["backup", "--json"]).ok().json();
    assert_eq!(backup["pages_reused"], 0, "{backup:#}");
    verify_is_clean(&world);
    let into = here.join("ours");
    let shown = into.display().to_string();
    world.json(&[
        "restore",
        "--to",
        "immediate",
        "--backup",
        &ours[0],
        "--into",
        &shown,
    ]);
    let restored = world.start_restored(&into);
    let found = restored.digests();
    restored.stop();
    assert_eq!(found, expected);
}
