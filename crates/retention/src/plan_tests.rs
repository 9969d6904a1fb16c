//! Claims about plans: printed ones, and properties over many worlds made by chance.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use postgres::{Lsn, SystemIdentifier, TimelineId};
use proptest::prelude::*;
use repository::{Collected, LiveRun, PackKind, PackRef, RunId};

use crate::facts::{BackupFacts, Facts, Reach, Standing, SystemFacts, TimelineFacts};
use crate::plan::{ExpirePlan, Reason, plan};
use crate::policy::Policy;

const SIZE: u32 = 16 << 20;
const SYSTEM: SystemIdentifier = SystemIdentifier(7);

fn start() -> Timestamp {
    "2026-06-01T00:00:00Z".parse().unwrap()
}

/// The moment at which a segment was written: one every 6 hours.
fn at(segment: u64) -> Timestamp {
    start() + SignedDuration::from_hours(6 * segment as i64)
}

/// What is stored: by timeline, the numbers of the segments. Timeline 2, if any, leaves timeline 1 at the beginning
/// of segment `fork`.
#[derive(Debug, Clone)]
struct World {
    segments: BTreeMap<u32, BTreeSet<u64>>,
    fork: u64,
    /// Timeline, segment (the backup lies within it), whether its packs are whole.
    backups: Vec<(u32, u64, bool)>,
}

impl World {
    fn has(&self, timeline: u32, segment: u64) -> bool {
        self.segments
            .get(&timeline)
            .is_some_and(|there| there.contains(&segment))
    }

    /// The last segment that a recovery of this backup along `timeline` reads, if it gets onto that timeline.
    fn reach(&self, backup: (u32, u64, bool), timeline: u32) -> Option<u64> {
        let (own, segment, _) = backup;
        let file = |number: u64| {
            if timeline == 2 && number >= self.fork {
                2
            } else {
                1
            }
        };
        if own == 2 && timeline == 1 || own == 1 && timeline == 2 && segment >= self.fork {
            return None;
        }
        let mut number = segment;
        while self.has(file(number), number) {
            number += 1;
        }
        let last = number.checked_sub(1).filter(|last| *last >= segment)?;
        (timeline == own || last >= self.fork).then_some(last)
    }

    fn facts(&self) -> Facts {
        let mut backups = Vec::new();
        for (index, backup) in self.backups.iter().enumerate() {
            let (timeline, segment, whole) = *backup;
            let begin = segment * u64::from(SIZE);
            let reaches: Vec<Reach> = [1, 2]
                .into_iter()
                .filter_map(|on| {
                    let last = self.reach(*backup, on)?;
                    let from = if on == timeline {
                        begin + 200
                    } else {
                        self.fork * u64::from(SIZE)
                    };
                    Some(Reach {
                        timeline: TimelineId(on),
                        from_lsn: Lsn(from),
                        from: at(segment),
                        to_lsn: Lsn((last + 1) * u64::from(SIZE)),
                        to: at(last),
                    })
                })
                .collect();
            let own = reaches.iter().any(|reach| reach.timeline == TimelineId(timeline));
            let run = RunId::at(at(segment) + SignedDuration::from_secs(index as i64));
            let pack = PackRef { run, number: 1 };
            backups.push(BackupFacts {
                backup: run,
                system: SYSTEM,
                wal_segment_size: SIZE,
                timeline: TimelineId(timeline),
                lineage: (1..=timeline).map(TimelineId).collect(),
                started_at: at(segment),
                finished_at: at(segment) + SignedDuration::from_secs(index as i64),
                redo_lsn: Lsn(begin + 100),
                stop_lsn: Lsn(begin + 200),
                standing: match (whole, own) {
                    (true, true) => Standing::Good,
                    (false, _) => Standing::Bad("a pack is missing".into()),
                    (_, false) => Standing::Bad("its WAL is not all there".into()),
                },
                verified_at: None,
                pin: None,
                leases: Vec::new(),
                packs: BTreeMap::from([((PackKind::Rows, pack), 1000)]),
                reaches,
            });
        }
        backups.sort_by_key(|backup| backup.backup);
        let timelines = self.segments.iter().filter(|(_, segments)| !segments.is_empty());
        Facts {
            cluster: "main".into(),
            copy: "local".into(),
            backups,
            systems: vec![SystemFacts {
                system: SYSTEM,
                wal_segment_size: SIZE,
                timelines: timelines
                    .map(|(timeline, segments)| TimelineFacts {
                        timeline: TimelineId(*timeline),
                        segments: segments.iter().map(|number| (*number, 100)).collect(),
                        beside: Vec::new(),
                        last_activity: at(segments.last().copied().unwrap_or(0)),
                    })
                    .collect(),
            }],
            runs: Vec::new(),
            newest_moment: None,
            collection: Collected::default(),
            notes: Vec::new(),
        }
    }

    /// What is left when the plan has been executed.
    fn after(&self, facts: &Facts, plan: &ExpirePlan) -> World {
        let mut after = self.clone();
        for (timeline, segments) in &mut after.segments {
            segments.retain(|number| {
                !plan.wal.iter().any(|wal| {
                    wal.range.timeline == TimelineId(*timeline)
                        && (wal.range.first..=wal.range.last).contains(number)
                })
            });
        }
        let kept = |index: usize| {
            let (_, segment, _) = self.backups[index];
            let id = RunId::at(at(segment) + SignedDuration::from_secs(index as i64));
            assert!(facts.backups.iter().any(|backup| backup.backup == id));
            plan.keep.iter().any(|kept| kept.backup == id)
        };
        after.backups = (0..self.backups.len())
            .filter(|index| kept(*index))
            .map(|index| self.backups[index])
            .collect();
        after
    }

    /// Segments of timelines that whole backups can be recovered through, from the backup's own on.
    fn reachable(&self) -> BTreeSet<(u32, u64)> {
        let mut reachable = BTreeSet::new();
        for backup in self.backups.iter().filter(|backup| backup.2) {
            for timeline in [1, 2] {
                if let Some(last) = self.reach(*backup, timeline) {
                    // On timeline 2 the points before the fork are timeline 1's.
                    let first = if timeline == 2 {
                        backup.1.max(self.fork)
                    } else {
                        backup.1
                    };
                    reachable.extend((first..=last).map(|segment| (timeline, segment)));
                }
            }
        }
        reachable
    }
}

fn days(days: u64) -> Option<Duration> {
    Some(Duration::from_secs(days * 86_400))
}

/// One timeline, a backup each day for `days` days.
fn daily(days: u64) -> World {
    World {
        segments: BTreeMap::from([(1, (0..days * 4).collect())]),
        fork: u64::MAX,
        backups: (0..days).map(|day| (1, day * 4, true)).collect(),
    }
}

#[test]
fn a_plan_says_what_goes_why_the_rest_stays_and_which_points_are_lost() {
    let mut facts = daily(12).facts();
    facts.backups[1].pin = Some(("audit".into(), None));
    facts.backups[3].standing = Standing::Bad("pack 1 is missing".into());
    facts.backups[5].verified_at = Some(at(24));
    let policy = Policy {
        recovery_window: days(3),
        weekly: Some(2),
        ..Policy::default()
    };
    let plan = plan(&facts, &policy, at(46)).unwrap();
    let expected = "\
Copy local of cluster main, 2026-06-12 12:00:00+00
Policy: every point of the last 3 days, 2 weekly
Backups that stay:
  20260602T000001Z  pinned (audit) [to its own end only]
  20260606T000005Z  the newest verified backup [to its own end only]
  20260607T000006Z  weekly 2026-W23 [to its own end only]
  20260609T000008Z  the recovery window's beginning on timeline 1
  20260610T000009Z  in the recovery window
  20260611T000010Z  in the recovery window
  20260612T000011Z  in the recovery window; weekly 2026-W24; the newest good backup
Backups that go:
  20260601T000000Z  nothing keeps it
  20260603T000002Z  nothing keeps it
  20260604T000003Z  pack 1 is missing
  20260605T000004Z  nothing keeps it
  20260608T000007Z  nothing keeps it
WAL that goes:
  000000010000000000000000 to 000000010000000000000003: 4 segments, 400 B
  000000010000000000000005 to 000000010000000000000013: 15 segments, 1.5 KiB
  000000010000000000000015 to 000000010000000000000017: 3 segments, 300 B
  000000010000000000000019 to 00000001000000000000001F: 7 segments, 700 B
Reachable now:
  timeline 1: 2026-06-01 00:00:00+00 (0/C8) to 2026-06-12 18:00:00+00 (0/30000000)
No longer reachable afterwards:
  timeline 1: 2026-06-01 00:00:00+00 (0/C8) to 2026-06-02 00:00:01+00 (0/40000C8)
  timeline 1: 2026-06-02 00:00:01+00 (0/40000C8) to 2026-06-06 00:00:05+00 (0/140000C8)
  timeline 1: 2026-06-06 00:00:05+00 (0/140000C8) to 2026-06-07 00:00:06+00 (0/180000C8)
  timeline 1: 2026-06-07 00:00:06+00 (0/180000C8) to 2026-06-09 00:00:00+00 (0/200000C8)
Reachable afterwards:
  timeline 1: 2026-06-02 00:00:01+00 (0/40000C8) to 2026-06-02 00:00:01+00 (0/40000C8)
  timeline 1: 2026-06-06 00:00:05+00 (0/140000C8) to 2026-06-06 00:00:05+00 (0/140000C8)
  timeline 1: 2026-06-07 00:00:06+00 (0/180000C8) to 2026-06-07 00:00:06+00 (0/180000C8)
  timeline 1: 2026-06-09 00:00:00+00 (0/200000C8) to 2026-06-12 18:00:00+00 (0/30000000)
Packs that only these backups use: 5, 4.9 KiB; deleted by an expire at least 70 minutes later
";
    assert_eq!(plan.to_string(), expected);
}

#[test]
fn without_a_policy_nothing_is_planned_and_a_clock_that_lies_behind_is_refused() {
    let mut facts = daily(3).facts();
    let error = plan(&facts, &Policy::default(), at(20)).unwrap_err();
    assert_eq!(error.code(), "retention-missing");
    facts.newest_moment = Some((at(12), "an object".into()));
    let policy = Policy {
        keep_last: Some(1),
        ..Policy::default()
    };
    assert!(plan(&facts, &policy, at(12)).is_ok());
    let error = plan(&facts, &policy, at(11)).unwrap_err();
    assert_eq!(error.code(), "clock-behind");
}

#[test]
fn damaged_backups_do_not_count_and_the_last_good_one_stays_whatever_the_policy_says() {
    let mut facts = daily(6).facts();
    for index in [3, 4, 5] {
        facts.backups[index].standing = Standing::Bad("damaged".into());
    }
    let policy = Policy {
        keep_last: Some(1),
        ..Policy::default()
    };
    let plan = plan(&facts, &policy, at(400)).unwrap();
    let kept: Vec<_> = plan
        .keep
        .iter()
        .map(|kept| (kept.backup, kept.continuous))
        .collect();
    // The third is the last good one; those behind it are not replaced by anything.
    assert_eq!(kept.len(), 4);
    assert_eq!(kept[0], (facts.backups[2].backup, true));
    assert!(matches!(plan.keep[1].reasons[..], [Reason::NotReplaced(_)]));
    assert_eq!(plan.wal.len(), 1);
    assert_eq!(plan.wal[0].range.last, 7);
}

#[test]
fn where_nothing_is_good_nothing_goes() {
    let mut facts = daily(3).facts();
    for backup in &mut facts.backups {
        backup.standing = Standing::Bad("damaged".into());
    }
    // Not even because somebody reads a newer one.
    facts.backups[2].leases.push("a restore".into());
    let policy = Policy {
        keep_last: Some(1),
        ..Policy::default()
    };
    let plan = plan(&facts, &policy, at(400)).unwrap();
    assert_eq!((plan.remove.len(), plan.wal.len(), plan.packs), (0, 0, 0));
}

#[test]
fn a_retired_system_goes_but_the_wal_of_one_that_begins_stays() {
    let mut facts = daily(4).facts();
    let other = |activity| SystemFacts {
        system: SystemIdentifier(8),
        wal_segment_size: SIZE,
        timelines: vec![TimelineFacts {
            timeline: TimelineId(1),
            segments: vec![(1, 100), (2, 100)],
            beside: vec![(1, 10)],
            last_activity: activity,
        }],
    };
    let policy = Policy {
        keep_last: Some(9),
        ..Policy::default()
    };
    // Older than the newest good backup of the system that followed: nobody will need it.
    facts.systems.push(other(at(1)));
    let before = plan(&facts, &policy, at(20)).unwrap();
    assert_eq!(before.wal.len(), 1);
    assert_eq!((before.wal[0].segments, before.wal[0].bytes), (2, 210));
    // Archived since: the first backup of a new system may be running.
    facts.systems.pop();
    facts.systems.push(other(at(13)));
    let after = plan(&facts, &policy, at(20)).unwrap();
    assert_eq!(after.wal, []);
    assert_eq!(after.notes.len(), 1);
}

#[test]
fn a_server_that_was_set_back_keeps_the_way_to_its_new_timeline() {
    // Daily backups up to segment 32; restored to segment 14, it goes on as timeline 2 and is not backed up yet.
    let mut world = daily(9);
    world.fork = 14;
    world.segments.insert(2, (14..20).collect());
    let mut facts = world.facts();
    facts.systems[0].timelines[1].last_activity = at(37);
    let policy = Policy {
        keep_last: Some(2),
        ..Policy::default()
    };
    let plan = plan(&facts, &policy, at(38)).unwrap();
    let on = plan
        .keep
        .iter()
        .find(|kept| kept.reasons == [Reason::LastGoodOn(TimelineId(2))]);
    assert_eq!(
        on.map(|kept| kept.backup),
        Some(facts.backups[3].backup),
        "{plan}"
    );
    assert!(plan.wal.iter().all(|wal| wal.range.last < 12), "{plan}");
    // With no backup that reaches it, its WAL stays for the one that may be running.
    facts.backups.drain(..4);
    let plan = crate::plan::plan(&facts, &policy, at(38)).unwrap();
    assert!(
        plan.wal.iter().all(|wal| wal.range.timeline == TimelineId(1)),
        "{plan}"
    );
    assert_eq!(plan.notes.len(), 1);
}

fn world() -> impl Strategy<Value = World> {
    let length = 60_u64;
    (
        8..length - 8,
        prop::collection::btree_set(0..length, 0..4),
        prop::collection::btree_set(0..length, 0..3),
        prop::collection::vec((1..=2_u32, 0..length, prop::bool::weighted(0.85)), 1..14),
        1..length,
        any::<bool>(),
    )
        .prop_map(move |(fork, holes, holes2, backups, end, forked)| {
            // Timeline 1 may have gone on behind the fork for a while.
            let one: BTreeSet<u64> = (0..if forked { fork + end % 9 } else { end })
                .filter(|number| !holes.contains(number))
                .collect();
            let two: BTreeSet<u64> = match forked {
                true => (fork..length).filter(|number| !holes2.contains(number)).collect(),
                false => BTreeSet::new(),
            };
            let mut backups: Vec<_> = backups
                .into_iter()
                .filter(|(timeline, segment, _)| match timeline {
                    1 => one.last().is_some_and(|last| segment <= last),
                    _ => forked && *segment >= fork,
                })
                .collect();
            backups.sort_by_key(|(timeline, segment, _)| (*segment, *timeline));
            World {
                segments: BTreeMap::from([(1, one), (2, two)]),
                fork,
                backups,
            }
        })
}

fn policy() -> impl Strategy<Value = Policy> {
    (
        prop::option::of(1..20_u64),
        prop::option::of(1..5_u32),
        prop::option::of(1..6_u32),
        prop::option::of(1..4_u32),
        prop::option::of(1..3_u32),
    )
        .prop_map(|(window, keep_last, daily, weekly, monthly)| Policy {
            recovery_window: window.and_then(days),
            keep_last,
            daily,
            weekly,
            monthly,
        })
        .prop_filter("a policy", |policy| !policy.is_empty())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn the_window_and_the_last_good_way_back_survive_every_plan(
        world in world(),
        policy in policy(),
        verified in prop::collection::btree_set(0..14_usize, 0..3),
        pinned in prop::collection::btree_set(0..14_usize, 0..2),
        leased in prop::collection::btree_set(0..14_usize, 0..2),
        parent in prop::option::of(0..14_usize),
        later in 0..40_u64,
    ) {
        let mut facts = world.facts();
        for (index, backup) in facts.backups.iter_mut().enumerate() {
            if verified.contains(&index) && backup.is_good() {
                backup.verified_at = Some(backup.finished_at);
            }
            if pinned.contains(&index) {
                backup.pin = Some((String::new(), None));
            }
            if leased.contains(&index) {
                backup.leases.push("a restore".into());
            }
        }
        if let Some(parent) = parent.and_then(|parent| facts.backups.get(parent)) {
            let run = RunId::at(at(100));
            let parent = Some(parent.backup);
            facts.runs.push(LiveRun { run, parent, adopts: Vec::new(), expires_at: at(101) });
        }
        let now = at(60 + later);
        let plan = plan(&facts, &policy, now).unwrap();
        let after = world.after(&facts, &plan);
        let kept = |backup: &BackupFacts| plan.keep.iter().any(|kept| kept.backup == backup.backup);

        prop_assert_eq!(plan.keep.len() + plan.remove.len(), facts.backups.len());
        // The last good way back, and the last verified one.
        let good = || facts.backups.iter().filter(|backup| backup.is_good());
        let newest = good().max_by_key(|backup| (backup.finished_at, backup.backup));
        prop_assert!(newest.is_none_or(&kept));
        let verified = good().filter(|backup| backup.verified_at.is_some());
        prop_assert!(verified.max_by_key(|backup| (backup.finished_at, backup.backup)).is_none_or(&kept));
        if newest.is_none() {
            prop_assert!(plan.remove.is_empty() && plan.wal.is_empty());
        }
        for backup in &facts.backups {
            let used = backup.pin.is_some() || !backup.leases.is_empty() || facts.run_on(backup.backup).is_some();
            prop_assert!(!used || kept(backup));
        }
        // What stays can be restored still.
        for (index, backup) in world.backups.iter().enumerate() {
            let id = RunId::at(at(backup.1) + SignedDuration::from_secs(index as i64));
            let fact = facts.backups.iter().find(|fact| fact.backup == id).unwrap();
            if kept(fact) && fact.is_good() {
                prop_assert!(after.reach(*backup, backup.0).is_some(), "{} lost its own WAL", id);
            }
            if !fact.leases.is_empty() {
                for timeline in [1, 2] {
                    prop_assert_eq!(after.reach(*backup, timeline), world.reach(*backup, timeline));
                }
            }
        }
        // Every point inside the window that could be reached still can be.
        let reachable = after.reachable();
        if let Some(cutoff) = plan.cutoff {
            for point in world.reachable() {
                prop_assert!(
                    at(point.1) < cutoff || reachable.contains(&point),
                    "{:?} was reachable and is in the window", point
                );
            }
        }
        // Where production may be going on, nothing that could be reached is lost.
        if let Some(newest) = newest {
            for (timeline, segments) in &world.segments {
                let Some(last) = segments.last().filter(|last| at(**last) >= newest.started_at) else { continue };
                if world.reachable().contains(&(*timeline, *last)) {
                    prop_assert!(reachable.contains(&(*timeline, *last)), "timeline {} is cut off", timeline);
                }
            }
        }
        // What is promised is so.
        for interval in &plan.reachable_after {
            let first = interval.from_lsn.segment(SIZE);
            let last = Lsn(interval.to_lsn.0 - 1).segment(SIZE).max(first);
            for segment in first..=last {
                prop_assert!(reachable.contains(&(interval.timeline.0, segment)));
            }
        }
        // A second look finds nothing more to do.
        let again = after.facts();
        prop_assert_eq!(again.backups.len(), plan.keep.len());
    }
}
