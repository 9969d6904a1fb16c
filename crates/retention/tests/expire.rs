//! Expiring a repository while others use it, and while its store dies: nothing that is referred to is ever missing.

#[path = "../../repository/tests/common/mod.rs"]
mod common;
mod support;

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use common::restore;
use jiff::{SignedDuration, Timestamp};
use repository::{Backup, RecipientKey, VerifyOptions, verify};
use retention::{ExecuteOptions, ExpireResult, Policy, execute, gather, plan};
use support::*;

fn policy() -> Policy {
    Policy {
        keep_last: Some(2),
        ..Policy::default()
    }
}

fn expire_by(world: &World, policy: &Policy, now: Timestamp) -> diagnostic::Result<ExpireResult> {
    world.faults.set_now(now);
    let clock = || world.faults.now();
    let plan = plan(&gather("local", &world.cluster, now)?, policy, now)?;
    execute(&plan, &world.cluster, &ExecuteOptions::new("here", &clock))
}

fn expire(world: &World, now: Timestamp) -> diagnostic::Result<ExpireResult> {
    expire_by(world, &policy(), now)
}

fn minutes(minutes: i64) -> Timestamp {
    day(6) + SignedDuration::from_mins(minutes)
}

/// Everything that is left is whole, and every backup can be restored as it was.
fn is_whole(world: &World) {
    let options = VerifyOptions {
        decode: true,
        threads: 1,
    };
    let result = verify(&world.cluster, options).unwrap();
    assert_eq!(result.findings, []);
    for backup in world.cluster.backups().unwrap() {
        let number = (backup.redo_lsn.0 / u64::from(SEGMENT) - 1) / 3;
        assert!(
            restore(&world.cluster, &backup).unwrap() == files(number),
            "{}",
            backup.backup
        );
        let segment = backup.redo_lsn.segment(SEGMENT);
        let there = world
            .cluster
            .get_segment(SYSTEM, backup.timeline, segment, SEGMENT)
            .unwrap();
        assert!(there.is_some(), "the WAL of {} is gone", backup.backup);
    }
}

/// A world that is built once, and copied for each test of many.
struct Original {
    folder: tempfile::TempDir,
    key: RecipientKey,
    dates: HashMap<String, Timestamp>,
}

impl Original {
    fn new() -> Original {
        let folder = tempfile::tempdir().unwrap();
        let key = RecipientKey::generate().unwrap();
        let dates = dates(&build(folder.path(), &key));
        Original { folder, key, dates }
    }

    fn copy(&self, to: &Path) -> World {
        copy(self.folder.path(), to);
        open(to, &self.key, &self.dates, day(6))
    }
}

fn segments(world: &World) -> Vec<u64> {
    let objects = world.cluster.wal_objects(SYSTEM, SEGMENT).unwrap();
    objects.iter().map(|object| object.number).collect()
}

#[test]
fn what_is_not_kept_goes_in_two_steps_and_the_rest_is_whole() {
    let original = Original::new();
    let folder = tempfile::tempdir().unwrap();
    let world = original.copy(folder.path());
    let packs = world.cluster.stored_packs().unwrap().len() as u64;
    let first = expire(&world, minutes(0)).unwrap();
    assert_eq!((first.removed.len(), first.packs.deleted), (3, 0));
    assert!(first.packs.condemned > 0);
    assert_eq!(segments(&world), (10..=15).collect::<Vec<_>>());
    is_whole(&world);
    // Too early: they wait.
    let early = expire(&world, minutes(60)).unwrap();
    assert_eq!(
        (early.packs.deleted, early.packs.waiting),
        (0, first.packs.condemned)
    );
    let second = expire(&world, minutes(71)).unwrap();
    assert_eq!(second.packs.deleted, first.packs.condemned);
    assert_eq!(
        world.cluster.stored_packs().unwrap().len() as u64,
        packs - second.packs.deleted
    );
    is_whole(&world);
    let third = expire(&world, minutes(300)).unwrap();
    assert_eq!(
        (third.removed.len(), third.wal_objects, third.packs.deleted),
        (0, 0, 0)
    );
    let last = world.cluster.last_finished_expiry().unwrap().unwrap();
    assert_eq!(last.at, minutes(300));
    assert_eq!(
        last.wal
            .iter()
            .map(|range| (range.first, range.last))
            .collect::<Vec<_>>(),
        [(1, 9)]
    );
}

#[test]
fn killed_at_any_change_it_leaves_a_whole_repository_and_a_rerun_finishes() {
    let original = Original::new();
    let finish = |world: &World| {
        for at in [200, 271, 600] {
            expire(world, minutes(at)).unwrap();
        }
        objects(world)
    };
    let folder = tempfile::tempdir().unwrap();
    let expected = finish(&original.copy(folder.path()));
    let mut deaths = 0;
    for at in 0.. {
        let folder = tempfile::tempdir().unwrap();
        let world = original.copy(folder.path());
        *world.faults.die_at.lock().unwrap() = Some(at);
        let ended = expire(&world, minutes(0)).and_then(|_| expire(&world, minutes(71)));
        *world.faults.die_at.lock().unwrap() = None;
        is_whole(&world);
        assert_eq!(finish(&world), expected, "after a death at change {at}");
        is_whole(&world);
        match ended {
            Ok(_) => break,
            Err(_) => deaths += 1,
        }
    }
    assert!(deaths > 20, "{deaths}");
}

/// Lets somebody act before every single change that two expiries make, one after the other, and calls `after` with what
/// he got.
fn beside<T: Send + 'static>(
    act: impl Fn(&World) -> T + Send + Sync + Copy + 'static,
    after: impl Fn(&World, T),
) {
    let original = Original::new();
    let mut at = 0;
    loop {
        let folder = tempfile::tempdir().unwrap();
        let world = original.copy(folder.path());
        let other = World {
            faults: world.faults.clone(),
            cluster: world.cluster.clone(),
        };
        let got = Arc::new(Mutex::new(None));
        let put = got.clone();
        *world.faults.hook.lock().unwrap() = Some((
            at,
            Box::new(move || {
                *put.lock().unwrap() = Some(act(&other));
            }),
        ));
        expire(&world, minutes(0)).unwrap();
        expire(&world, minutes(71)).unwrap();
        let Some(got) = got.lock().unwrap().take() else {
            assert!(at > 20, "{at}");
            return;
        };
        after(&world, got);
        is_whole(&world);
        at += 1;
    }
}

/// The newest backup that goes.
fn going(world: &World) -> Option<Backup> {
    world.cluster.backup(repository::RunId::at(day(2))).ok()
}

#[test]
fn a_backup_that_builds_on_one_that_goes_is_whole_or_refused() {
    beside(
        |world| {
            let parent = going(world)?;
            let now = world.faults.now();
            let run = world.cluster.start_run(Some(&parent), now).ok()?;
            Some((run, parent, now))
        },
        |world, started| {
            let Some((run, parent, now)) = started else { return };
            // It goes on beside a third expiry, and publishes as late as it may.
            let backup = fill(&world.cluster, &run, 6, Some(&parent));
            for segment in 19..=21 {
                push(&world.cluster, segment);
            }
            let later = world.faults.now().max(now + SignedDuration::from_mins(59));
            if later < now + SignedDuration::from_mins(60) {
                expire(world, later).unwrap();
            }
            match run.publish(&backup, later) {
                Ok(()) => assert!(restore(&world.cluster, &backup).unwrap() == files(6)),
                Err(error) => assert_eq!(error.code(), "run-lapsed"),
            }
            expire(world, minutes(300)).unwrap();
            expire(world, minutes(400)).unwrap();
        },
    );
}

#[test]
fn a_backup_that_adopts_an_interrupted_run_is_whole() {
    beside(
        |world| {
            let now = world.faults.now();
            let run = world.cluster.start_run(None, now).unwrap();
            let bytes = run.adopt_unfinished_runs(now).unwrap();
            (run, bytes, now)
        },
        |world, (run, _, now)| {
            if let Err(error) = run.renew(world.faults.now()) {
                // What it adopted may be gone, and it may not go on.
                assert_eq!(error.code(), "run-lapsed");
                assert!(world.faults.now() >= now + SignedDuration::from_mins(60));
                return;
            }
            let backup = fill(&world.cluster, &run, 5, None);
            for segment in 16..=18 {
                push(&world.cluster, segment);
            }
            let now = now + SignedDuration::from_mins(30);
            match run.publish(&backup, world.faults.now().max(now)) {
                Ok(()) => assert!(restore(&world.cluster, &backup).unwrap() == files(5)),
                Err(error) => assert_eq!(error.code(), "run-lapsed"),
            }
            expire(world, minutes(300)).unwrap();
            expire(world, minutes(400)).unwrap();
        },
    );
}

#[test]
fn who_holds_a_lease_can_read_on_and_who_pinned_keeps() {
    beside(
        |world| {
            let backup = going(world)?;
            let lease = world
                .cluster
                .take_lease(&backup, "restore", "there", minutes(71))
                .ok()?;
            Some((lease, backup))
        },
        |world, taken| {
            let Some((_, backup)) = taken else { return };
            assert!(restore(&world.cluster, &backup).unwrap() == files(2));
            let segment = backup.redo_lsn.segment(SEGMENT);
            assert!(segments(world).contains(&segment) && segments(world).contains(&(segment + 1)));
            // The lease ends, and the backup goes.
            expire(world, minutes(400)).unwrap();
            assert!(going(world).is_none());
        },
    );
    beside(
        |world| {
            let backup = going(world)?;
            world
                .cluster
                .pin(backup.backup, "audit", None, None, minutes(0))
                .ok()
        },
        |world, pinned| {
            if pinned.is_some() {
                let backup = going(world).expect("the pinned backup is there");
                assert!(restore(&world.cluster, &backup).unwrap() == files(2));
            }
        },
    );
}

#[test]
fn two_expiries_at_once_end_as_one() {
    let original = Original::new();
    let folder = tempfile::tempdir().unwrap();
    let alone = original.copy(folder.path());
    for at in [0, 71, 400] {
        expire(&alone, minutes(at)).unwrap();
    }
    let expected = objects(&alone);
    beside(
        |world| expire(world, world.faults.now()).unwrap(),
        move |world, _| {
            expire(world, minutes(400)).unwrap();
            assert_eq!(objects(world).len(), expected.len());
        },
    );
}

#[test]
fn a_pin_ends_and_packs_of_an_interrupted_run_stay_until_its_intent_has_lapsed() {
    let original = Original::new();
    let folder = tempfile::tempdir().unwrap();
    let world = original.copy(folder.path());
    let oldest = world.cluster.backup_ids().unwrap()[0];
    world
        .cluster
        .pin(oldest, "audit", Some(minutes(10)), None, minutes(-1))
        .unwrap();
    let run = world.cluster.start_run(None, minutes(-10)).unwrap();
    common::store_files(&run, &files(6), 1, 1, 1 << 20);
    let its_packs = || {
        let packs = world.cluster.stored_packs().unwrap();
        packs.keys().filter(|(_, pack)| pack.run == run.id()).count()
    };
    assert!(its_packs() > 0);
    expire(&world, minutes(0)).unwrap();
    assert!(world.cluster.backup_ids().unwrap().contains(&oldest));
    expire(&world, minutes(11)).unwrap();
    assert!(!world.cluster.backup_ids().unwrap().contains(&oldest));
    expire(&world, minutes(59)).unwrap();
    assert!(its_packs() > 0);
    // Lapsed 50 minutes after, and 10 of tolerance: condemned, then deleted.
    expire(&world, minutes(61)).unwrap();
    expire(&world, minutes(132)).unwrap();
    assert_eq!(its_packs(), 0);
    assert_eq!(run.renew(minutes(132)).unwrap_err().code(), "run-lapsed");
    is_whole(&world);
}

#[test]
fn clocks_that_cannot_be_trusted_delete_nothing() {
    let original = Original::new();
    let folder = tempfile::tempdir().unwrap();
    let world = original.copy(folder.path());
    let before = objects(&world);
    // Behind what is stored.
    let error = expire(&world, day(3)).unwrap_err();
    assert_eq!(error.code(), "clock-behind");
    // Ahead of the store's.
    let now = day(40);
    let plan = plan(&gather("local", &world.cluster, now).unwrap(), &policy(), now).unwrap();
    world.faults.set_now(day(6));
    let clock = || now;
    let error = execute(&plan, &world.cluster, &ExecuteOptions::new("here", &clock)).unwrap_err();
    assert_eq!(error.code(), "clock-differs");
    assert_eq!(objects(&world), before);
}

#[test]
fn a_host_that_may_not_delete_is_told_so_and_nothing_is_half_done() {
    let original = Original::new();
    let folder = tempfile::tempdir().unwrap();
    let world = original.copy(folder.path());
    let before = objects(&world);
    world.faults.deny_delete.store(true, Ordering::SeqCst);
    let error = expire(&world, minutes(0)).unwrap_err();
    assert_eq!(error.code(), "store-denied");
    assert!(error.render().contains("may not delete"), "{}", error.render());
    assert_eq!(objects(&world), before);
}

#[test]
fn a_verification_s_findings_count_and_a_lost_segment_makes_a_backup_not_count() {
    let original = Original::new();
    let folder = tempfile::tempdir().unwrap();
    let world = original.copy(folder.path());
    // The newest backup's own segment is gone, and the one before it was found damaged.
    let lost = world.cluster.wal_objects(SYSTEM, SEGMENT).unwrap();
    let lost = lost.iter().find(|object| object.number == 13).unwrap();
    world.cluster.delete_wal(lost).unwrap();
    let ids = world.cluster.backup_ids().unwrap();
    let finding = repository::Finding {
        code: "object-damaged".into(),
        object: "a pack".into(),
        detail: String::new(),
        affects: vec![format!("backup {}, file \"base/1\"", ids[3])],
    };
    let verification = repository::Verification {
        version: 1,
        began_at: day(5),
        finished_at: day(5),
        decoded: true,
        objects: 1,
        bytes: 1,
        backups: ids.clone(),
        findings: vec![finding],
        findings_total: 1,
    };
    world.cluster.state_verification(verification).unwrap();
    let facts = gather("local", &world.cluster, day(6)).unwrap();
    let policy = Policy {
        keep_last: Some(1),
        ..Policy::default()
    };
    let plan = plan(&facts, &policy, day(6)).unwrap();
    let kept: Vec<_> = plan.keep.iter().map(|kept| kept.backup).collect();
    assert_eq!(kept, ids[2..], "{plan}");
    assert!(plan.keep[0].continuous && plan.keep[0].verified_at.is_some());
}

#[test]
fn the_way_to_another_timeline_stays_with_its_history() {
    let original = Original::new();
    let folder = tempfile::tempdir().unwrap();
    let world = original.copy(folder.path());
    // Set back to the third day, the server goes on as timeline 2 in segment 8.
    let history = format!("1\t0/{:X}\tset back\n", 8 * u64::from(SEGMENT) + 4096);
    world
        .cluster
        .put_file(
            SYSTEM,
            repository::WalFileKind::History,
            "00000002.history",
            history.as_bytes(),
        )
        .unwrap();
    for number in 8..12 {
        push_on(&world.cluster, 2, number);
    }
    let facts = gather("local", &world.cluster, minutes(0)).unwrap();
    let reached: Vec<(usize, u32)> = facts
        .backups
        .iter()
        .enumerate()
        .flat_map(|(index, backup)| backup.reaches.iter().map(move |reach| (index, reach.timeline.0)))
        .collect();
    assert_eq!(
        reached,
        [(0, 1), (0, 2), (1, 1), (1, 2), (2, 1), (2, 2), (3, 1), (4, 1)]
    );
    let policy = Policy {
        keep_last: Some(1),
        ..Policy::default()
    };
    let result = expire_by(&world, &policy, minutes(0)).unwrap();
    let ids = world.cluster.backup_ids().unwrap();
    assert_eq!(
        (result.removed.len(), ids.len()),
        (3, 2),
        "the newest of all, and the newest that reaches timeline 2"
    );
    is_whole(&world);
    let facts = gather("local", &world.cluster, minutes(5)).unwrap();
    assert!(facts.backups[0].reaches.iter().any(|reach| reach.timeline.0 == 2));
    assert!(segments(&world).iter().all(|number| *number >= 7));
}

#[test]
fn what_was_let_go_is_no_gap_and_what_was_lost_is_one() {
    let original = Original::new();
    let folder = tempfile::tempdir().unwrap();
    let world = original.copy(folder.path());
    let oldest = world.cluster.backup_ids().unwrap()[0];
    world.cluster.pin(oldest, "", None, None, minutes(-1)).unwrap();
    expire(&world, minutes(0)).unwrap();
    assert_eq!(segments(&world)[..2], [1, 10]);
    let copies = [world.cluster.clone()];
    let gaps = || history::Archive::load(&copies, SYSTEM, SEGMENT).unwrap().gaps();
    assert_eq!(gaps(), []);
    let objects = world.cluster.wal_objects(SYSTEM, SEGMENT).unwrap();
    world
        .cluster
        .delete_wal(objects.iter().find(|object| object.number == 12).unwrap())
        .unwrap();
    let found: Vec<_> = gaps()
        .iter()
        .map(|gap| (gap.first_missing, gap.last_missing))
        .collect();
    assert_eq!(found, [(12, 12)]);
}
