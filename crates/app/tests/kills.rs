//! Commands that are killed while they write: a rerun puts everything right, and nothing that was acknowledged is lost.
//!
//! `strace` sends SIGKILL as a chosen system call begins, so that each kill falls where it was meant to fall:
//! after the first call that writes to the repository or the restored directory, and before the last. The
//! calls to choose from are taken from one run that is left alone. `PGPROOF_TEST_SEED` repeats a campaign.

mod support;

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;

use support::faults::{
    Call, Traced, WRITES, accounts, contents, copy_folder, expirable, hold_archiving, kept_objects,
    nothing_is_missing, segments, verify_is_clean,
};
use support::{Random, World, seed};

/// Kills in each campaign, and in the long ones.
const KILLS: usize = 20;
const KILLS_LONG: usize = 200;

/// When a command was killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kill {
    /// Not at all.
    Missed,
    /// Before it had written anything.
    Before,
    /// After its first write and before its last.
    Between,
}

/// How many kills of a campaign there were, and where.
#[derive(Debug, Default)]
struct Tally {
    kills: usize,
    between: usize,
    missed: usize,
}

impl Tally {
    fn count(&mut self, kill: Kill) {
        match kill {
            Kill::Missed => self.missed += 1,
            Kill::Before => self.kills += 1,
            Kill::Between => {
                self.kills += 1;
                self.between += 1;
            }
        }
        let (kills, missed) = (self.kills, self.missed);
        assert!(
            missed < 20 + 2 * kills,
            "{missed} attempts to kill were missed, {kills} hit"
        );
    }

    /// Says how it went, and that enough of the kills fell between the first and the last write.
    fn judge(&self, seed: u64) {
        println!("{self:?} (seed {seed})");
        assert!(self.between * 5 >= self.kills * 4, "{self:?} (seed {seed})");
    }
}

/// Kills the command at one of these calls, the first one left out. Where the call is not made again (threads share
/// their work otherwise), the command ends well, and the kill was [`Kill::Missed`].
fn kill(victim: &Traced<'_>, calls: &[Call], random: &mut Random, arguments: &[&str]) -> Kill {
    let call = &calls[1 + random.below(calls.len() as u64 - 1) as usize];
    let (output, made) = victim.run(Some((call, "signal=SIGKILL")), arguments);
    let kill = match output.status.signal() {
        Some(9) if made.iter().filter(|call| call.ours).count() > 1 => Kill::Between,
        Some(9) => Kill::Before,
        _ => Kill::Missed,
    };
    println!("{} {}: {kill:?}", call.name, call.nth);
    assert!(
        kill != Kill::Missed || output.status.success(),
        "{arguments:?} neither was killed nor succeeded: {:?}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    kill
}

/// A command that writes below a folder.
fn victim<'a>(world: &'a World, folder: &Path) -> Traced<'a> {
    Traced {
        world,
        folder: folder.to_owned(),
        calls: WRITES,
    }
}

fn world(test: &str) -> Option<World> {
    let world = World::start(test)?;
    accounts(&world);
    Some(world)
}

fn killed_backups(test: &str, kills: usize) {
    let Some(world) = world(test) else { return };
    let seed = seed();
    let mut random = Random(seed);
    println!("seed {seed}");
    let victim = victim(&world, &world.repository());
    let change = || {
        world
            .session()
            .execute("update public.accounts set balance = balance + 1 where id % 7 = 0")
            .expect("load");
    };
    world.json(&["backup"]);
    change();
    let calls = victim.watched(&["backup"]);
    let mut tally = Tally::default();
    while tally.kills < kills {
        change();
        tally.count(kill(&victim, &calls, &mut random, &["backup"]));
        if tally.kills % 5 == 4 {
            // Several interrupted runs lie there by now.
            world.json(&["backup"]);
            verify_is_clean(&world);
        }
    }
    world.json(&["backup"]);
    verify_is_clean(&world);
    let expected = testing::row_digest(&world.production.conninfo()).expect("digest");
    world.archive_all();
    let into = world.scratch().join("restored");
    world.json(&["restore", "--to", "latest", "--into", &into.display().to_string()]);
    let restored = world.start_restored(&into);
    let found = testing::row_digest(&restored.conninfo()).expect("digest of the restored server");
    restored.stop();
    assert_eq!(found, expected, "seed {seed}");
    tally.judge(seed);
}

fn killed_pushes(test: &str, kills: usize) {
    let Some(world) = world(test) else { return };
    let seed = seed();
    let mut random = Random(seed);
    println!("seed {seed}");
    world.json(&["backup"]);
    world.archive_all();
    hold_archiving(&world);
    let victim = victim(&world, &world.repository());
    let mut tally = Tally::default();
    // By digest: two hundred segments are gigabytes.
    let mut acknowledged: BTreeMap<String, String> = BTreeMap::new();
    let digest = |path: &Path| drill::evidence::sha256_hex(&std::fs::read(path).expect("the segment"));
    let mut calls = None;
    while tally.kills < kills {
        for path in segments(&world, 10, &mut random) {
            let shown = path.display().to_string();
            let name = path.file_name().expect("a name").to_string_lossy().into_owned();
            let arguments = ["wal", "push", &shown];
            match &calls {
                None => calls = Some(victim.watched(&arguments)),
                Some(calls) => {
                    tally.count(kill(&victim, calls, &mut random, &arguments));
                    world.run(&arguments).ok();
                }
            }
            acknowledged.insert(name, digest(&path));
        }
        // Here the server may recycle what it sees archived; all of it was pushed.
        for (name, pushed) in &acknowledged {
            let into = world.scratch().join("read-back");
            let _ = std::fs::remove_file(&into);
            world.run(&["wal", "get", name, &into.display().to_string()]).ok();
            assert_eq!(
                digest(&into),
                *pushed,
                "{name} reads back otherwise (seed {seed})"
            );
        }
    }
    verify_is_clean(&world);
    tally.judge(seed);
}

fn killed_gets(test: &str, kills: usize) {
    let Some(world) = world(test) else { return };
    let seed = seed();
    let mut random = Random(seed);
    println!("seed {seed}");
    hold_archiving(&world);
    let path = segments(&world, 1, &mut random).remove(0);
    let bytes = std::fs::read(&path).expect("the segment");
    world.run(&["wal", "push", &path.display().to_string()]).ok();
    let name = path.file_name().expect("a name").to_string_lossy().into_owned();
    let folder = world.scratch().join("pg_wal");
    std::fs::create_dir(&folder).expect("a folder");
    support::give_to_account(&folder);
    let victim = victim(&world, &folder);
    let into = folder.join("RECOVERYXLOG");
    let shown = into.display().to_string();
    let arguments = ["wal", "get", &name, &shown];
    let calls = victim.watched(&arguments);
    let mut tally = Tally::default();
    while tally.kills < kills {
        std::fs::remove_file(&into).expect("it was placed");
        tally.count(kill(&victim, &calls, &mut random, &arguments));
        if let Ok(placed) = std::fs::read(&into) {
            assert!(
                placed == bytes,
                "a partial segment under its final name (seed {seed})"
            );
        }
        world.run(&arguments).ok();
        assert!(std::fs::read(&into).expect("placed") == bytes, "seed {seed}");
    }
    let left = std::fs::read_dir(&folder).expect("folder").count();
    assert_eq!(
        left, 1,
        "killed runs leave something behind for ever (seed {seed})"
    );
    tally.judge(seed);
}

/// A restored directory, but for what says when the restore was done.
fn restored_files(folder: &Path) -> BTreeMap<std::path::PathBuf, Vec<u8>> {
    contents(folder, |path| !path.contains("pgproof"))
}

fn killed_restores(test: &str, kills: usize) {
    let Some(world) = world(test) else { return };
    let seed = seed();
    let mut random = Random(seed);
    println!("seed {seed}");
    world.json(&["backup"]);
    let expected = testing::row_digest(&world.production.conninfo()).expect("digest");
    world.archive_all();
    let into = world.scratch().join("restored");
    let shown = into.display().to_string();
    let arguments = ["restore", "--to", "immediate", "--into", &shown];
    let victim = victim(&world, &into);
    let calls = victim.watched(&arguments);
    let whole = restored_files(&into);
    let mut tally = Tally::default();
    while tally.kills < kills {
        std::fs::remove_dir_all(&into).expect("removed");
        let kill = kill(&victim, &calls, &mut random, &arguments);
        tally.count(kill);
        if kill == Kill::Missed || into.join("global/pg_control").exists() {
            // `pg_control` is last: with it in place everything else is.
            assert!(
                restored_files(&into) == whole,
                "a half restored directory can start (seed {seed})"
            );
            continue;
        }
        world.run(&arguments).ok();
        assert!(
            restored_files(&into) == whole,
            "the rerun restored something else (seed {seed})"
        );
    }
    let restored = world.start_restored(&into);
    let found = testing::row_digest(&restored.conninfo()).expect("digest of the restored server");
    restored.stop();
    assert_eq!(found, expected);
    tally.judge(seed);
}

fn killed_expires(test: &str, kills: usize) {
    let Some(world) = world(test) else { return };
    let seed = seed();
    let mut random = Random(seed);
    println!("seed {seed}");
    expirable(&world);
    hold_archiving(&world);
    let expected = testing::row_digest(&world.production.conninfo()).expect("digest");
    let (repository, before) = (world.repository(), world.scratch().join("before"));
    copy_folder(&repository, &before);
    let kept = || kept_objects(&world);
    let acknowledged = kept();
    let victim = victim(&world, &repository);
    let calls = victim.watched(&["expire"]);
    let whole = kept();
    let gone = |part: &str| {
        let there = |all: &BTreeMap<std::path::PathBuf, Vec<u8>>| {
            let named = |path: &&std::path::PathBuf| path.to_string_lossy().contains(part);
            all.keys().filter(named).count()
        };
        there(&acknowledged) - there(&whole)
    };
    for part in ["/backups/", "/packs/", "/wal/"] {
        assert!(gone(part) > 0, "nothing of {part} expires");
    }
    let mut tally = Tally::default();
    while tally.kills < kills {
        copy_folder(&before, &repository);
        tally.count(kill(&victim, &calls, &mut random, &["expire"]));
        // What stays is there in every moment, and nothing that is left refers to what is gone.
        for (path, bytes) in &whole {
            let found = std::fs::read(repository.join(path));
            assert!(
                found.as_ref().is_ok_and(|found| found == bytes),
                "{} is gone or changed (seed {seed})",
                path.display()
            );
        }
        nothing_is_missing(&world);
        world.run(&["expire"]).ok();
        let after = kept();
        assert!(
            after == whole,
            "the rerun left {:?} and took {:?} (seed {seed})",
            after
                .keys()
                .filter(|path| !whole.contains_key(*path))
                .collect::<Vec<_>>(),
            whole
                .keys()
                .filter(|path| !after.contains_key(*path))
                .collect::<Vec<_>>()
        );
    }
    verify_is_clean(&world);
    assert_eq!(world.run(&["wal", "gaps"]).code, 0, "what was let go is no gap");
    let into = world.scratch().join("restored");
    world.json(&["restore", "--to", "latest", "--into", &into.display().to_string()]);
    let restored = world.start_restored(&into);
    let found = testing::row_digest(&restored.conninfo()).expect("digest of the restored server");
    restored.stop();
    assert_eq!(found, expected, "seed {seed}");
    tally.judge(seed);
}

#[test]
fn backups_that_were_killed_are_put_right_by_the_next() {
    killed_backups("backups_that_were_killed_are_put_right_by_the_next", KILLS);
}

#[test]
fn pushes_that_were_killed_lose_nothing_that_was_acknowledged() {
    killed_pushes(
        "pushes_that_were_killed_lose_nothing_that_was_acknowledged",
        KILLS,
    );
}

#[test]
fn gets_that_were_killed_never_leave_a_partial_segment() {
    killed_gets("gets_that_were_killed_never_leave_a_partial_segment", KILLS);
}

#[test]
fn restores_that_were_killed_cannot_start_until_a_rerun_is_through() {
    killed_restores(
        "restores_that_were_killed_cannot_start_until_a_rerun_is_through",
        KILLS,
    );
}

#[test]
fn expiries_that_were_killed_leave_everything_that_stays_and_a_rerun_finishes() {
    killed_expires(
        "expiries_that_were_killed_leave_everything_that_stays_and_a_rerun_finishes",
        KILLS,
    );
}

#[test]
#[ignore = "a campaign of some minutes; ./test --long runs it"]
fn a_thousand_kills_lose_nothing() {
    killed_backups("a_thousand_kills_lose_nothing", KILLS_LONG);
    killed_pushes("a_thousand_kills_lose_nothing", KILLS_LONG);
    killed_gets("a_thousand_kills_lose_nothing", KILLS_LONG);
    killed_restores("a_thousand_kills_lose_nothing", KILLS_LONG);
    killed_expires("a_thousand_kills_lose_nothing", KILLS_LONG);
}
