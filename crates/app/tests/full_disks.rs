//! Full disks: of the server, of the repository, of the destination, each a small tmpfs where one may be mounted (by
//! root). What a command could not do it says by its code; nothing that was acknowledged is lost; nothing half done can
//! start or stands under its final name; with room again everything goes on where it stopped.

mod support;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Stdio;

use cluster::StopMode;
use support::faults::{
    Call, SmallDisk, WRITES, accounts, backups, contents, kept_objects, left_in_tmp, small_segments,
    small_world, stored_segments, traced, verify_is_clean, wait_until,
};
use support::{Ended, World};
use testing::TestCluster;

/// What the archiver was told to be safe is in the repository; looked at in this order, so that it holds at any time.
#[track_caller]
fn acknowledged_is_stored(world: &World) {
    let folder = world.production.data_directory().join("pg_wal/archive_status");
    let done: BTreeSet<String> = std::fs::read_dir(folder)
        .expect("archive_status")
        .flatten()
        .filter_map(|entry| Some(entry.file_name().to_str()?.strip_suffix(".done")?.to_owned()))
        .filter(|name| name.len() == 24)
        .collect();
    let stored = stored_segments(world);
    let lost: Vec<&String> = done.difference(&stored).collect();
    assert!(lost.is_empty(), "acknowledged and not stored: {lost:?}");
}

#[test]
fn a_full_repository_is_told_by_every_command_and_loses_nothing() {
    let test = "a_full_repository_is_told_by_every_command_and_loses_nothing";
    let Some(options) = small_segments(test) else {
        return;
    };
    let mut disk = None;
    let cluster = TestCluster::start(&options).expect("the throw-away cluster starts");
    let world = World::protect_in(cluster, |scratch| {
        let place = scratch.join("repository");
        disk = SmallDisk::mount(test, &place, 96);
        vec!["--repository".to_owned(), format!("file://{}", place.display())]
    });
    // Taken away before the world is.
    let Some(disk) = disk else { return };
    accounts(&world);
    world.json(&["backup"]);
    world
        .session()
        .execute("create table public.bulk as select n, md5(n::text) v from generate_series(1, 60000) n")
        .expect("a table");
    let change = |times: usize| {
        for _ in 0..times {
            let mut session = world.session();
            session
                .execute("update public.bulk set v = md5(v)")
                .expect("load");
            session.one("select pg_switch_wal()").expect("switch");
        }
    };

    // WAL that the second backup does not need.
    change(5);
    world.archive_all();
    world.json(&["backup"]);
    let before = backups(&world);

    // In the middle: the intent fits, what changed does not.
    change(1);
    world.archive_all();
    let ballast = disk.fill(600 << 10);
    world
        .run(&["backup", "--archive-timeout", "5"])
        .failed(1, "store-full");
    assert_eq!(backups(&world), before);
    std::fs::remove_file(&ballast).expect("removed");

    // Nothing fits at all.
    change(1);
    world.archive_all();
    let ballast = disk.fill(0);
    world.run(&["backup"]).failed(1, "store-full");
    change(1);
    let waiting = || {
        let status = cluster::archiving::archiver_status(&mut world.session()).expect("archiver status");
        status.ready_files.unwrap_or_default()
    };
    wait_until("the archiver's failure", || {
        let status = cluster::archiving::archiver_status(&mut world.session()).expect("archiver status");
        status.is_failing() && !waiting().is_empty()
    });
    let oldest = waiting().into_iter().min().expect("a segment that waits");
    let path = world.production.data_directory().join("pg_wal").join(&oldest);
    world
        .run(&["wal", "push", &path.display().to_string()])
        .failed(1, "store-full");
    assert!(!stored_segments(&world).contains(&oldest));
    acknowledged_is_stored(&world);
    // What is there can be read all the same, and looked at.
    assert_eq!(backups(&world), before);
    verify_is_clean(&world);
    // The archiver may be trying at this moment.
    wait_until("an empty tmp/", || left_in_tmp(&world) == 0);

    // The evidence of a drill: it says that it could not be kept there, and it is kept in the other place.
    let drilled = world.run(&["drill", "run", "--target", "immediate", "--json"]);
    assert!(drilled.codes().contains(&"store-full"), "{}", drilled.stderr);
    let facts = drilled.json();
    let report = PathBuf::from(facts["report"].as_str().expect("the report's path"));
    assert!(report.with_extension("").join("facts.json").is_file());

    // Not even the room that is put by for it: an expiry that cannot say so first deletes nothing.
    support::retain(&world, "keep_last = 1");
    let kept = kept_objects(&world);
    let reserve = world.repository().join("tmp/reserve");
    let taken = world.scratch().join("reserve");
    std::fs::copy(&reserve, &taken).expect("copied");
    std::fs::remove_file(&reserve).expect("removed");
    let more = disk.fill_with("ballast-2", 0);
    world.run(&["expire"]).failed(1, "store-full");
    assert!(
        kept_objects(&world) == kept,
        "an expiry that could not say so has deleted something"
    );
    std::fs::remove_file(&more).expect("removed");
    std::fs::copy(&taken, &reserve).expect("copied");
    support::give_to_account(&reserve);
    disk.fill_with("ballast-2", 0);

    let owed: BTreeSet<String> = waiting().into_iter().filter(|name| name.len() == 24).collect();

    // With it the full disk is no longer full, and everything goes on where it stopped.
    world.run(&["expire"]).ok();
    assert_eq!(backups(&world), before[1..]);
    assert!(disk.free_bytes() > 0);
    // Another segment wakes the archiver, which waits for a minute otherwise.
    cluster::archiving::switch_wal(&mut world.session()).expect("switch");
    wait_until("the archiver's success", || waiting().is_empty());
    assert!(owed.is_subset(&stored_segments(&world)), "{owed:?}");
    std::fs::remove_file(&ballast).expect("removed");
    world.json(&["backup"]);
    world.run(&["expire"]).ok();
    assert!(reserve.is_file(), "no room is put by for the next time");
    verify_is_clean(&world);
    world.comes_back("after-the-full-disk", &[]);
    drop(disk);
}

#[test]
fn a_full_destination_never_starts_and_a_rerun_finishes_when_there_is_room() {
    let test = "a_full_destination_never_starts_and_a_rerun_finishes_when_there_is_room";
    let Some(world) = small_world(test) else { return };
    let Some(disk) = SmallDisk::mount(test, &world.scratch().join("small"), 12) else {
        return;
    };
    world.json(&["backup"]);
    world.archive_all();
    let expected = testing::row_digest(&world.production.conninfo()).expect("digest");
    let into = world.scratch().join("small/restored");
    let shown = into.display().to_string();
    let control = into.join("global/pg_control");
    let restore = ["restore", "--to", "latest", "--into", shown.as_str()];
    let full = |ended: Ended| {
        let ended = ended.failed(1, "restore-write");
        assert!(ended.stderr.contains("Make room"), "{}", ended.stderr);
    };
    // Too small from the beginning, and full on the way.
    world.run(&restore).failed(1, "destination-too-small");
    assert!(!into.exists());
    disk.resize(200);
    let slowly = traced(&world, &into, WRITES);
    let child = slowly
        .command(Some("?write,?pwrite64,?ftruncate:delay_enter=3000"), &restore)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("strace runs");
    wait_until("the restore's beginning", || into.join("base").exists());
    let ballast = disk.fill(1 << 20);
    full(Ended::of(&child.wait_with_output().expect("it ends")));
    assert!(!control.exists(), "a half restored directory could start");
    std::fs::remove_file(&ballast).expect("removed");
    world.run(&restore).ok();
    let restored = world.start_restored(&into);
    let found = testing::row_digest(&restored.conninfo()).expect("digest of the restored server");
    assert_eq!(found, expected);

    // In place: full at once nothing is touched, and full on the way it cannot start.
    restored
        .session()
        .execute("update public.accounts set balance = -1")
        .expect("changes");
    restored.stop();
    let base = contents(&into, |path| path.starts_with("base/"));
    for path in base.keys().take(base.len() / 2) {
        std::fs::remove_file(into.join(path)).expect("removed");
    }
    let before = contents(&into, |_| true);
    let delta: Vec<&str> = restore
        .iter()
        .copied()
        .chain(["--delta", "--confirm", "main"])
        .collect();
    let ballast = disk.fill(0);
    full(world.run(&delta));
    assert!(contents(&into, |_| true) == before, "something was touched");
    std::fs::remove_file(&ballast).expect("removed");
    let child = slowly
        .command(Some("?write,?pwrite64,?ftruncate:delay_enter=3000"), &delta)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("strace runs");
    wait_until("the delta's beginning", || !control.exists());
    let ballast = disk.fill(200 << 10);
    full(Ended::of(&child.wait_with_output().expect("it ends")));
    assert!(!control.exists(), "a half restored directory could start");
    std::fs::remove_file(&ballast).expect("removed");
    world.run(&delta).ok();
    let restored = world.start_restored(&into);
    let found = testing::row_digest(&restored.conninfo()).expect("digest of the restored server");
    restored.stop();
    assert_eq!(found, expected);

    // Recovery's own segment.
    let name = stored_segments(&world).into_iter().next().expect("a segment");
    let pg_wal = world.scratch().join("small/wanted");
    std::fs::create_dir(&pg_wal).expect("a folder");
    support::give_to_account(&pg_wal);
    let placed = pg_wal.join("RECOVERYXLOG");
    let shown = placed.display().to_string();
    for room in [0, 500 << 10] {
        let ballast = disk.fill(room);
        world.run(&["wal", "get", &name, &shown]).failed(126, "wal-place");
        let left = std::fs::read_dir(&pg_wal).expect("the folder").count();
        assert_eq!(left, 0, "something partial is left with {room} bytes of room");
        std::fs::remove_file(&ballast).expect("removed");
    }
    world.run(&["wal", "get", &name, &shown]).ok();
    assert_eq!(std::fs::metadata(&placed).expect("placed").len(), 1 << 20);
    drop(disk);
}

#[test]
fn a_server_whose_disk_is_full_is_not_made_worse_by_a_backup() {
    let test = "a_server_whose_disk_is_full_is_not_made_worse_by_a_backup";
    let Some(options) = small_segments(test) else {
        return;
    };
    let scratch = testing::Scratch::new("cluster").expect("a scratch folder");
    let Some(disk) = SmallDisk::mount(test, &scratch.path().join("data"), 200) else {
        return;
    };
    let cluster = TestCluster::start_in(scratch, &options).expect("the throw-away cluster starts");
    let mut world = World::protect(cluster);
    // Taken away before the world is.
    let disk = disk;
    accounts(&world);
    world.json(&["backup"]);
    world.archive_all();
    let before = backups(&world);
    let expected = world.digests();
    let ballast = disk.fill(0);
    let refused = world
        .session()
        .execute("create table public.more as select n from generate_series(1, 100000) n");
    assert!(refused.is_err(), "the disk is not full");

    let data = world.production.data_directory().to_owned();
    let (output, calls) = traced(&world, &data, WRITES).run(None, &["backup", "--archive-timeout", "5"]);
    let told = Ended::of(&output);
    println!(
        "a backup of a server with a full disk: {} {:?}",
        told.code,
        told.codes()
    );
    assert!(
        told.code == 0 || told.code == 1 && !told.codes().is_empty(),
        "{}",
        told.stderr
    );
    let ours: Vec<&Call> = calls.iter().filter(|call| call.ours).collect();
    assert!(
        ours.is_empty(),
        "the backup writes to the data directory: {ours:#?}"
    );
    assert_eq!(backups(&world).len(), before.len() + usize::from(told.code == 0));
    verify_is_clean(&world);

    // Room: the server, should it have ended for want of it, comes back with every row, and so do backups of it.
    std::fs::remove_file(&ballast).expect("removed");
    if !world.production.instance().is_running() || world.production.session().is_err() {
        world.production.stop(StopMode::Immediate).expect("it stops");
        world.production.start_again().expect("the server starts again");
    }
    assert_eq!(world.digests(), expected);
    world.json(&["backup"]);
    verify_is_clean(&world);
    world.comes_back("after-the-full-disk", &[]);
    drop(disk);
}
