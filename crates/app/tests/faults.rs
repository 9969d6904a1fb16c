//! Single system calls that fail: reads, writes, renames, deletions and syncs that end with an I/O error or for want of
//! room. Each is told by its code and with the exit code that its caller needs, nothing that was acknowledged is lost,
//! nothing partial stands under its final name, and the same command, run again when the cause is gone, succeeds.
//!
//! `strace` fails calls that are chosen from a run that is left alone. `PGPROOF_TEST_SEED` repeats the random choices.

mod support;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use support::faults::{
    Call, READS, WRITES, accounts, backups, contents, copy_folder, expirable, file_name, hold_archiving,
    kept_objects, left_in_tmp, nothing_is_missing, random, segments, small_world, some_of, stored_segments,
    traced, verify_is_clean,
};
use support::{Ended, Random, World};

/// Of so many of its first write-like calls each fails once in every way.
const SWEPT: usize = 40;

#[track_caller]
fn reads_back(world: &World, name: &str, bytes: &[u8]) {
    let into = world.scratch().join("read-back");
    let _ = std::fs::remove_file(&into);
    world.run(&["wal", "get", name, &into.display().to_string()]).ok();
    assert!(
        std::fs::read(&into).expect("the segment") == bytes,
        "{name} reads back otherwise"
    );
}

/// A command that met an I/O error either did without, or says so in our words.
#[track_caller]
fn told(ended: &Ended, codes: &[&str], call: &Call) {
    let first = ended.codes().first().copied();
    assert!(
        ended.code == 0 || first.is_some_and(|first| codes.contains(&first)),
        "exit code {}, {first:?} after {}:\n{}",
        ended.code,
        call.shown,
        ended.stderr
    );
}

#[test]
fn each_write_of_a_push_that_fails_is_told_and_the_next_push_puts_it_right() {
    let test = "each_write_of_a_push_that_fails_is_told_and_the_next_push_puts_it_right";
    let Some(world) = small_world(test) else { return };
    hold_archiving(&world);
    let path = segments(&world, 1, &mut random()).remove(0);
    let bytes = std::fs::read(&path).expect("the segment");
    let (name, shown) = (file_name(&path), path.display().to_string());
    let push = ["wal", "push", shown.as_str()];
    // The folders and the claim are made anew each time, too.
    let anew = || std::fs::remove_dir_all(world.repository().join("clusters")).expect("removed");
    let pushing = traced(&world, &world.repository(), WRITES);
    world.run(&push).ok();
    anew();
    let calls = pushing.all_calls(&push);
    let (mut met, mut failures, mut unlinks) = (0, 0, 0);
    for call in calls.iter().take(SWEPT) {
        for error in ["EIO", "ENOSPC"] {
            anew();
            let (output, made) = pushing.run(Some((call, &format!("error={error}"))), &push);
            let pushed = Ended::of(&output);
            met += usize::from(made.iter().any(|call| call.injected));
            assert!(
                (0..=125).contains(&pushed.code),
                "{}: {}",
                call.shown,
                pushed.code
            );
            told(&pushed, &["store-io", "store-full"], call);
            failures += usize::from(pushed.code != 0);
            unlinks += usize::from(call.name.starts_with("unlink"));
            if pushed.code == 0 {
                reads_back(&world, &name, &bytes);
            }
            world.run(&push).ok();
            reads_back(&world, &name, &bytes);
        }
    }
    println!(
        "{} calls, {met} of them failed again, {failures} failed pushes",
        calls.len()
    );
    assert!(
        met >= 50 && failures > 20,
        "{met} calls failed, {failures} pushes"
    );
    assert!(left_in_tmp(&world) <= unlinks, "unfinished objects pile up");
    verify_is_clean(&world);
}

#[test]
fn what_a_push_finds_there_already_is_made_durable_before_it_is_acknowledged() {
    let test = "what_a_push_finds_there_already_is_made_durable_before_it_is_acknowledged";
    let Some(world) = small_world(test) else { return };
    hold_archiving(&world);
    let mut paths = segments(&world, 2, &mut random()).into_iter();
    let pushing = traced(&world, &world.repository(), WRITES);
    let push = |inject: Option<(&Call, &str)>, path: &Path| {
        let (output, calls) = pushing.run(inject, &["wal", "push", &path.display().to_string()]);
        (Ended::of(&output), calls)
    };
    let (first, second) = (paths.next().expect("a path"), paths.next().expect("a path"));
    let (pushed, calls) = push(None, &first);
    pushed.ok();
    let folder = world.repository().join(
        kept_objects(&world)
            .keys()
            .find(|path| file_name(path).len() == 57)
            .expect("an object"),
    );
    let folder = folder.parent().expect("its folder");
    let syncs = |call: &&Call| call.name.contains("sync") && call.names(folder);
    let sync = calls.iter().find(syncs);
    let sync = sync.unwrap_or_else(|| panic!("{} is not synced: {calls:#?}", folder.display()));

    // The object has its name, and nobody knows whether the name outlives a crash of the machine.
    let (failed, _) = push(Some((sync, "error=EIO")), &second);
    failed.failed(1, "store-io");
    assert!(stored_segments(&world).contains(&file_name(&second)));
    let (again, calls) = push(None, &second);
    again.ok();
    assert!(
        calls.iter().any(|call| syncs(&call)),
        "acknowledged without a sync of {}: {calls:#?}",
        folder.display()
    );
}

#[test]
fn a_backup_makes_the_packs_durable_that_an_interrupted_one_has_left() {
    let test = "a_backup_makes_the_packs_durable_that_an_interrupted_one_has_left";
    let Some(world) = small_world(test) else { return };
    let packs = world.repository().join("clusters/main/packs");
    let backing_up = traced(&world, &packs, WRITES);
    let calls = backing_up.watched(&["backup", "--full", "--threads", "1"]);
    let folder = packs.join(&backups(&world)[0]);
    let sync = calls
        .iter()
        .find(|call| call.name.contains("sync") && call.names(&folder))
        .expect("the packs' folder is synced");
    // Its first pack has its name, and then the machine, for all we know, is gone.
    let (_, _) = backing_up.run(
        Some((sync, "signal=SIGKILL")),
        &["backup", "--full", "--threads", "1"],
    );
    let left: Vec<PathBuf> = std::fs::read_dir(&packs)
        .expect("packs")
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| *path != folder)
        .collect();
    assert_eq!(left.len(), 1, "an interrupted run with a pack");
    let (output, calls) = backing_up.run(None, &["backup", "--full", "--json"]);
    let backup = Ended::of(&output).ok().json();
    assert!(backup["pages_reused"].as_u64() > Some(0), "{backup:#}");
    assert!(
        calls
            .iter()
            .any(|call| call.name.contains("sync") && call.names(&left[0])),
        "the record was written without a sync of {}",
        left[0].display()
    );
    verify_is_clean(&world);
}

#[test]
fn a_source_that_cannot_be_read_ends_the_backup_and_the_push_by_name() {
    let test = "a_source_that_cannot_be_read_ends_the_backup_and_the_push_by_name";
    let Some(world) = small_world(test) else { return };
    let mut random = random();
    let data = world.production.data_directory().to_owned();
    let reading = traced(&world, &data, READS);
    let backup = ["backup", "--full", "--threads", "1"];
    let calls = reading.watched(&backup);
    let before = backups(&world);
    let pages: Vec<Call> = calls
        .iter()
        .filter(|call| call.names_below(&data.join("base")))
        .cloned()
        .collect();
    assert!(pages.len() > 100, "{} reads of relations", pages.len());
    let others: Vec<Call> = calls
        .iter()
        .filter(|call| !pages.contains(call))
        .cloned()
        .collect();
    let chosen = some_of(&pages, 2, &mut random)
        .into_iter()
        .chain(some_of(&others, 2, &mut random));
    let mut failures = 0;
    for call in chosen {
        let (output, made) = reading.run(Some((call, "error=EIO")), &backup);
        let ended = Ended::of(&output);
        let met = made.iter().filter(|call| call.injected).any(|call| call.ours);
        println!("{}: {} {:?}", call.shown, ended.code, ended.codes());
        if !met {
            // The calls before it came otherwise this time.
            continue;
        }
        assert_eq!(
            ended.code, 1,
            "a backup without {} was made: {}",
            call.shown, ended.stderr
        );
        told(
            &ended,
            &[
                "file-read",
                "control-file-read",
                "data-directory-read",
                "configuration-read",
            ],
            call,
        );
        failures += 1;
        assert_eq!(backups(&world), before);
    }
    assert!(failures > 2, "only {failures} backups failed");
    world.json(&["backup"]);
    verify_is_clean(&world);

    hold_archiving(&world);
    let path = segments(&world, 1, &mut random).remove(0);
    let (name, shown) = (file_name(&path), path.display().to_string());
    let bytes = std::fs::read(&path).expect("the segment");
    let push = ["wal", "push", shown.as_str()];
    let calls = reading.watched(&push);
    std::fs::remove_file(world.repository().join(object_of(&world, &name))).expect("removed");
    for call in calls.iter().filter(|call| call.names(&path)) {
        let (output, made) = reading.run(Some((call, "error=EIO")), &push);
        assert!(made.iter().any(|call| call.injected && call.ours));
        Ended::of(&output).failed(1, "file-read");
        assert!(!stored_segments(&world).contains(&name));
    }
    world.run(&push).ok();
    reads_back(&world, &name, &bytes);
}

/// The object of a segment, below the repository.
fn object_of(world: &World, segment: &str) -> PathBuf {
    let kept = kept_objects(world);
    let found = kept
        .keys()
        .find(|path| file_name(path).starts_with(&format!("{segment}.")) && file_name(path).len() == 57);
    found.expect("the segment's object").clone()
}

#[test]
fn a_repository_that_cannot_be_read_is_never_taken_for_an_empty_or_a_damaged_one() {
    let test = "a_repository_that_cannot_be_read_is_never_taken_for_an_empty_or_a_damaged_one";
    let Some(world) = small_world(test) else { return };
    let mut random = random();
    world.json(&["backup"]);
    world.archive_all();
    world.json(&["backup"]);
    hold_archiving(&world);
    let kept = kept_objects(&world);
    let reading = traced(&world, &world.repository(), READS);
    let into = world.scratch().join("restored");
    let shown = into.display().to_string();
    let placed = world.scratch().join("placed");
    let placed_shown = placed.display().to_string();
    let name = stored_segments(&world).into_iter().next().expect("a segment");
    support::retain(&world, "keep_last = 1");
    let commands: [(&[&str], i32, usize); 6] = [
        (&["wal", "get", &name, &placed_shown], 126, 40),
        (
            &["wal", "get", "0000000100000FFF000000FF", &placed_shown],
            126,
            40,
        ),
        (
            &["restore", "--to", "latest", "--into", &shown, "--threads", "1"],
            1,
            4,
        ),
        (&["verify", "--threads", "1"], 1, 4),
        (&["expire", "--dry-run"], 1, 4),
        (&["list"], 1, 4),
    ];
    for (arguments, code, count) in commands {
        let clear = || {
            let _ = std::fs::remove_dir_all(&into);
            let _ = std::fs::remove_file(&placed);
        };
        clear();
        let (output, calls) = reading.run(None, arguments);
        let right = Ended::of(&output).code;
        let ours: Vec<Call> = calls.into_iter().filter(|call| call.ours).collect();
        assert!(ours.len() > 2, "{arguments:?}: {ours:?}");
        let mut failures = 0;
        for call in some_of(&ours, count, &mut random) {
            clear();
            let (output, made) = reading.run(Some((call, "error=EIO")), arguments);
            if !made.iter().any(|call| call.injected && call.ours) {
                continue;
            }
            let ended = Ended::of(&output);
            println!(
                "{arguments:?}: {}: {} {:?}",
                call.shown,
                ended.code,
                ended.codes()
            );
            assert!(
                ended.code == right || ended.code == code,
                "{arguments:?} ended with {} after {}:\n{}",
                ended.code,
                call.shown,
                ended.stderr
            );
            if ended.code != right {
                failures += 1;
                told(&ended, &["store-io"], call);
                assert!(!placed.exists() && !into.join("global/pg_control").exists());
            }
        }
        assert!(failures > 1, "{arguments:?} failed {failures} times");
    }
    assert!(kept_objects(&world) == kept, "something changed");
    world.run(&["restore", "--to", "latest", "--into", &shown]).ok();
    verify_is_clean(&world);
}

#[test]
fn what_cannot_be_brought_to_disk_is_not_there_for_a_backup_or_a_restore() {
    let test = "what_cannot_be_brought_to_disk_is_not_there_for_a_backup_or_a_restore";
    let Some(world) = small_world(test) else { return };
    let mut random = random();
    world.json(&["backup"]);
    world.archive_all();
    let repository = world.repository();
    let writing = traced(&world, &repository, WRITES);
    let backup = ["backup", "--full", "--threads", "1"];
    let calls = writing.watched(&backup);
    let mut before = backups(&world);
    let syncs: Vec<Call> = calls
        .iter()
        .filter(|call| call.name.contains("sync"))
        .cloned()
        .collect();
    let others: Vec<Call> = calls
        .iter()
        .filter(|call| !call.name.contains("sync"))
        .cloned()
        .collect();
    let chosen = some_of(&syncs, 3, &mut random)
        .into_iter()
        .chain(some_of(&others, 2, &mut random));
    for (number, call) in chosen.enumerate() {
        let error = ["error=EIO", "error=ENOSPC"][number % 2];
        let (output, made) = writing.run(Some((call, error)), &backup);
        let ended = Ended::of(&output);
        println!("{error} {}: {} {:?}", call.shown, ended.code, ended.codes());
        if !made.iter().any(|call| call.injected && call.ours) {
            before = backups(&world);
            continue;
        }
        told(&ended, &["store-io", "store-full"], call);
        let now = backups(&world);
        // The record's own folder may have failed to sync: then it is there, and it is whole.
        assert!(
            now.len() <= before.len() + 1 && (ended.code != 0 || now.len() > before.len()),
            "{now:?} after {before:?}"
        );
        before = now;
    }
    verify_is_clean(&world);
    world.json(&["backup"]);
    assert_eq!(left_in_tmp(&world), 0);

    let expected = testing::row_digest(&world.production.conninfo()).expect("digest");
    world.archive_all();
    let into = world.scratch().join("restored");
    let shown = into.display().to_string();
    let restore = [
        "restore",
        "--to",
        "latest",
        "--into",
        shown.as_str(),
        "--threads",
        "1",
    ];
    let restoring = traced(&world, &into, WRITES);
    let calls = restoring.watched(&restore);
    let whole = restored_files(&into);
    let syncs: Vec<Call> = calls
        .iter()
        .filter(|call| call.name.contains("sync"))
        .cloned()
        .collect();
    let others: Vec<Call> = calls
        .iter()
        .filter(|call| !call.name.contains("sync"))
        .cloned()
        .collect();
    let chosen = some_of(&syncs, 6, &mut random)
        .into_iter()
        .chain(some_of(&others, 4, &mut random));
    let mut failures = 0;
    for (number, call) in chosen.enumerate() {
        std::fs::remove_dir_all(&into).expect("removed");
        let error = ["error=EIO", "error=ENOSPC"][number % 2];
        let (output, made) = restoring.run(Some((call, error)), &restore);
        if !made.iter().any(|call| call.injected && call.ours) {
            continue;
        }
        let ended = Ended::of(&output);
        println!("{error} {}: {} {:?}", call.shown, ended.code, ended.codes());
        told(&ended, &["restore-write", "restore-owner", "aside-rename"], call);
        failures += usize::from(ended.code != 0);
        let can_start = into.join("global/pg_control").exists();
        assert!(
            !can_start || restored_files(&into) == whole,
            "a half restored directory can start after {}",
            call.shown
        );
        let says_so = ended.stderr.contains("cannot start (it has no pg_control)");
        assert!(
            !(says_so && can_start),
            "told to be unable to start, and able to, after {}:\n{}",
            call.shown,
            ended.stderr
        );
    }
    assert!(failures > 4, "only {failures} restores failed");
    std::fs::remove_dir_all(&into).expect("removed");
    world.run(&restore).ok();
    assert!(restored_files(&into) == whole);
    let restored = world.start_restored(&into);
    let found = testing::row_digest(&restored.conninfo()).expect("digest of the restored server");
    restored.stop();
    assert_eq!(found, expected);
}

/// A restored directory, but for what says when the restore was done.
fn restored_files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    contents(folder, |path| !path.contains("pgproof"))
}

/// Each of these calls of an expiry fails once.
fn failed_expiries(test: &str, choose: impl Fn(&[Call], &mut Random) -> Vec<Call>) {
    let Some(world) = World::start(test) else { return };
    accounts(&world);
    let mut random = random();
    expirable(&world);
    hold_archiving(&world);
    let (repository, before) = (world.repository(), world.scratch().join("before"));
    copy_folder(&repository, &before);
    let expiring = traced(&world, &repository, WRITES);
    let calls = expiring.watched(&["expire"]);
    let whole = kept_objects(&world);
    let mut failures = 0;
    for (number, call) in choose(&calls, &mut random).into_iter().enumerate() {
        copy_folder(&before, &repository);
        let error = ["error=EIO", "error=ENOSPC", "error=EROFS"][number % 3];
        let (output, made) = expiring.run(Some((&call, error)), &["expire"]);
        if !made.iter().any(|call| call.injected && call.ours) {
            continue;
        }
        let ended = Ended::of(&output);
        println!("{error} {}: {} {:?}", call.shown, ended.code, ended.codes());
        told(&ended, &["store-io", "store-full", "store-denied"], &call);
        failures += usize::from(ended.code != 0);
        let now = kept_objects(&world);
        for (path, bytes) in &whole {
            assert_eq!(
                now.get(path),
                Some(bytes),
                "{} after {}",
                path.display(),
                call.shown
            );
        }
        nothing_is_missing(&world);
        world.run(&["expire"]).ok();
        assert!(kept_objects(&world) == whole, "after {}", call.shown);
    }
    assert!(failures > 5, "only {failures} expiries failed");
    verify_is_clean(&world);
}

#[test]
fn an_expiry_whose_deletions_and_statements_fail_goes_on_when_it_is_run_again() {
    let test = "an_expiry_whose_deletions_and_statements_fail_goes_on_when_it_is_run_again";
    failed_expiries(test, |calls, random| {
        let of = |part: &str| -> Vec<Call> {
            let named = calls.iter().filter(|call| call.name.contains(part));
            named.cloned().collect()
        };
        let kinds = [of("unlink"), of("rename"), of("sync"), of("write")];
        let chosen = kinds.iter().flat_map(|calls| some_of(calls, 1, random));
        chosen.cloned().collect()
    });
}

#[test]
#[ignore = "every write of an expiry; ./test --long runs it"]
fn each_write_of_an_expiry_that_fails_is_put_right_by_the_next() {
    let test = "each_write_of_an_expiry_that_fails_is_put_right_by_the_next";
    failed_expiries(test, |calls, _| calls.to_vec());
}
