//! Facts + policy + now -> a plan. Pure: nothing is read, nothing is left to decide.
//!
//! How a backup is kept decides how much WAL stays for it: *continuously* kept ones keep all WAL from their
//! redo point on, of every timeline; the others keep the WAL that makes them consistent, and no more.

use std::collections::{BTreeMap, BTreeSet};

use diagnostic::{Error, Result};
use jiff::{SignedDuration, Timestamp};
use postgres::{SystemIdentifier, TimelineId};
use repository::{BackupId, CLOCK_TOLERANCE, Collected, ExpiredWal, PackKind, PackRef, RunId};
use serde::Serialize;

use crate::facts::{BackupFacts, Facts, Standing, SystemFacts, TimelineFacts};
use crate::policy::{Calendar, Policy};
use crate::reach::{self, Interval};

/// A clock may lie this far behind what it finds.
const CLOCK_BEHIND_MAX: SignedDuration = SignedDuration::from_mins(2);

/// Why a backup stays.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// One of the newest `of`, counted from 1.
    Last { number: u32, of: u32 },
    /// It ended inside the recovery window.
    Window,
    /// The window's first points on that timeline are reached from it.
    WindowBase(TimelineId),
    /// The last one of a span of the calendar.
    Calendar { every: Calendar, span: String },
    /// The newest good backup.
    LastGood,
    /// The newest good backup that reaches a timeline which was written to since the newest one of all began: a
    /// server that was set back goes on there.
    LastGoodOn(TimelineId),
    /// The newest backup that a verification found good.
    LastVerified,
    Pinned {
        reason: String,
        until: Option<Timestamp>,
    },
    /// Somebody reads it.
    Lease(String),
    /// A running backup builds on it.
    Parent(RunId),
    /// It is not whole, does not count, and no older good one is kept in its place.
    NotReplaced(String),
}

impl Reason {
    /// WAL behind the backup stays too.
    fn continuous(&self, policy: &Policy) -> bool {
        match self {
            Reason::Last { .. }
            | Reason::Window
            | Reason::WindowBase(_)
            | Reason::LastGood
            | Reason::LastGoodOn(_)
            | Reason::Lease(_) => true,
            Reason::Calendar { .. } => !policy.bounds_wal(),
            Reason::LastVerified | Reason::Pinned { .. } | Reason::Parent(_) | Reason::NotReplaced(_) => {
                false
            }
        }
    }

    /// Somebody other than the policy keeps it.
    pub fn is_protection(&self) -> bool {
        matches!(
            self,
            Reason::Pinned { .. } | Reason::Lease(_) | Reason::Parent(_) | Reason::LastVerified
        )
    }
}

/// A backup that stays.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Kept {
    pub backup: BackupId,
    pub finished_at: Timestamp,
    pub reasons: Vec<Reason>,
    /// All WAL from its redo point on stays; otherwise it can be recovered to its own end only.
    pub continuous: bool,
    pub verified_at: Option<Timestamp>,
}

/// A backup that goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Removed {
    pub backup: BackupId,
    pub finished_at: Timestamp,
    /// What else is to be said about it.
    pub note: Option<String>,
}

/// WAL that goes: everything archived of a timeline between these segment numbers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct WalRange {
    #[serde(flatten)]
    pub range: ExpiredWal,
    pub first_name: String,
    pub last_name: String,
    pub segments: u64,
    pub bytes: u64,
}

/// Everything that will be done to one copy.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ExpirePlan {
    pub cluster: String,
    pub copy: String,
    pub at: Timestamp,
    pub policy: Policy,
    /// The beginning of the recovery window.
    pub cutoff: Option<Timestamp>,
    pub keep: Vec<Kept>,
    pub remove: Vec<Removed>,
    pub wal: Vec<WalRange>,
    pub reachable_before: Vec<Interval>,
    pub reachable_after: Vec<Interval>,
    pub lost: Vec<Interval>,
    /// Packs that nothing refers to once the backups are gone (they are deleted in a later step), and their
    /// bytes.
    pub packs: u64,
    pub packs_bytes: u64,
    /// Packs that nothing refers to already.
    pub collection: Collected,
    pub notes: Vec<String>,
}

/// Segments that stay, of each timeline: inclusive ranges, in order.
type Needed = BTreeMap<(SystemIdentifier, TimelineId), Vec<(u64, u64)>>;

/// Errors: `retention-missing` (no policy), `clock-behind`.
pub fn plan(facts: &Facts, policy: &Policy, now: Timestamp) -> Result<ExpirePlan> {
    if policy.is_empty() {
        return Err(
            Error::usage("retention-missing", "nothing says what may be deleted")
                .detail("The configuration has no [retention], so everything is kept.")
                .hint("Add for example `[retention]` with `recovery_window = \"30 days\"`."),
        );
    }
    check_clock(facts, now)?;
    let cutoff = policy.cutoff(now);
    let mut reasons = reasons(facts, policy, cutoff);
    let continuous_from = |reasons: &BTreeMap<BackupId, Vec<Reason>>| {
        let continuous = facts.backups.iter().filter(|backup| {
            let reasons = reasons.get(&backup.backup).map(Vec::as_slice).unwrap_or_default();
            backup.is_good() && reasons.iter().any(|reason| reason.continuous(policy))
        });
        continuous.map(|backup| backup.finished_at).min()
    };
    // A bad one is only given up for good ones that reach further back.
    let oldest = continuous_from(&reasons);
    for backup in &facts.backups {
        if let Standing::Bad(why) = &backup.standing
            && oldest.is_none_or(|oldest| backup.finished_at >= oldest)
        {
            reasons
                .entry(backup.backup)
                .or_default()
                .push(Reason::NotReplaced(why.clone()));
        }
    }
    let mut keep = Vec::new();
    let mut remove = Vec::new();
    for backup in &facts.backups {
        match reasons.remove(&backup.backup) {
            Some(reasons) => keep.push(Kept {
                backup: backup.backup,
                finished_at: backup.finished_at,
                continuous: reasons.iter().any(|reason| reason.continuous(policy)),
                reasons,
                verified_at: backup.verified_at,
            }),
            None => remove.push(Removed {
                backup: backup.backup,
                finished_at: backup.finished_at,
                note: match &backup.standing {
                    Standing::Good => None,
                    Standing::Bad(why) => Some(why.clone()),
                },
            }),
        }
    }
    let kept: BTreeMap<BackupId, bool> = keep.iter().map(|kept| (kept.backup, kept.continuous)).collect();
    let mut notes = facts.notes.clone();
    let wal = unneeded_wal(facts, &kept, &mut notes);
    let good = || facts.backups.iter().filter(|backup| backup.is_good());
    let reachable_before = reach::union(good().flat_map(reach::whole).collect());
    let reachable_after = reach::union(
        good()
            .filter_map(|backup| Some((backup, kept.get(&backup.backup)?)))
            .flat_map(|(backup, continuous)| match continuous {
                true => reach::whole(backup),
                false => vec![reach::own(backup)],
            })
            .collect(),
    );
    let lost = reach::difference(&reachable_before, &reachable_after);
    let (packs, packs_bytes) = freed_packs(facts, &kept);
    if good().next().is_none() && !facts.backups.is_empty() {
        notes.push("no backup is known to be whole, so none is removed".to_owned());
    }
    Ok(ExpirePlan {
        cluster: facts.cluster.clone(),
        copy: facts.copy.clone(),
        at: now,
        policy: policy.clone(),
        cutoff,
        keep,
        remove,
        wal,
        reachable_before,
        reachable_after,
        lost,
        packs,
        packs_bytes,
        collection: facts.collection.clone(),
        notes,
    })
}

fn check_clock(facts: &Facts, now: Timestamp) -> Result<()> {
    match &facts.newest_moment {
        Some((newest, what)) if newest.duration_since(now) > CLOCK_BEHIND_MAX => Err(Error::new(
            "clock-behind",
            format!(
                "this host's clock says {now}, which lies before what copy \"{}\" holds",
                facts.copy
            ),
        )
        .detail(format!(
            "The newest is {what}, of {newest}. Nothing is deleted on the word of a clock that may be wrong."
        ))
        .hint("Set the clock (`timedatectl status`), then run the command again.")),
        _ => Ok(()),
    }
}

/// Why each backup that stays does so; without the bad ones that nothing replaces.
fn reasons(facts: &Facts, policy: &Policy, cutoff: Option<Timestamp>) -> BTreeMap<BackupId, Vec<Reason>> {
    let mut reasons: BTreeMap<BackupId, Vec<Reason>> = BTreeMap::new();
    let mut keep = |backup: &BackupFacts, reason| reasons.entry(backup.backup).or_default().push(reason);
    let mut good: Vec<&BackupFacts> = facts.backups.iter().filter(|backup| backup.is_good()).collect();
    good.sort_by_key(|backup| (backup.finished_at, backup.backup));
    if let Some(of) = policy.keep_last {
        for (number, backup) in (1..=of).zip(good.iter().rev()) {
            keep(backup, Reason::Last { number, of });
        }
    }
    if let Some(cutoff) = cutoff {
        for backup in good.iter().filter(|backup| backup.finished_at > cutoff) {
            keep(backup, Reason::Window);
        }
        for system in &facts.systems {
            for timeline in &system.timelines {
                // All that was stored of it lies before the window.
                if timeline.last_activity < cutoff {
                    continue;
                }
                let base = good.iter().rev().find(|backup| {
                    backup.finished_at <= cutoff && backup.reaches_on(system.system, timeline.timeline)
                });
                if let Some(base) = base {
                    keep(base, Reason::WindowBase(timeline.timeline));
                }
            }
        }
    }
    for (every, count) in policy.calendars() {
        let mut spans = BTreeSet::new();
        for backup in good.iter().rev() {
            if spans.len() >= count as usize {
                break;
            }
            let span = every.span(backup.finished_at);
            if spans.insert(span.clone()) {
                keep(backup, Reason::Calendar { every, span });
            }
        }
    }
    if let Some(newest) = good.last() {
        keep(newest, Reason::LastGood);
        for (system, timeline) in timelines(facts).filter(|(_, timeline)| is_active(timeline, newest)) {
            let reaches = |backup: &&&BackupFacts| backup.reaches_on(system.system, timeline.timeline);
            match good.iter().rev().find(reaches) {
                Some(on) if on.backup != newest.backup => keep(on, Reason::LastGoodOn(timeline.timeline)),
                _ => {}
            }
        }
    }
    let verified = good.iter().rev().find(|backup| backup.verified_at.is_some());
    if let Some(verified) = verified {
        keep(verified, Reason::LastVerified);
    }
    for backup in &facts.backups {
        if let Some((reason, until)) = &backup.pin {
            let (reason, until) = (reason.clone(), *until);
            keep(backup, Reason::Pinned { reason, until });
        }
        for lease in &backup.leases {
            keep(backup, Reason::Lease(lease.clone()));
        }
        if let Some(run) = facts.run_on(backup.backup) {
            keep(backup, Reason::Parent(run));
        }
    }
    // Nothing good at all: what there is stays, whatever it is worth (as bad ones that nothing replaces).
    reasons
}

fn timelines(facts: &Facts) -> impl Iterator<Item = (&SystemFacts, &TimelineFacts)> {
    let of = |system| move |timeline| (system, timeline);
    facts
        .systems
        .iter()
        .flat_map(move |system| system.timelines.iter().map(of(system)))
}

/// WAL of it was stored since the newest good backup began, as far as clocks can tell: what is archived there
/// now may be production's, and the WAL of a backup that is running.
fn is_active(timeline: &TimelineFacts, newest_good: &BackupFacts) -> bool {
    let since = newest_good.started_at.saturating_sub(CLOCK_TOLERANCE);
    timeline.last_activity >= since.unwrap_or(newest_good.started_at)
}

fn needed(facts: &Facts, kept: &BTreeMap<BackupId, bool>) -> Needed {
    let mut needed = Needed::new();
    for system in &facts.systems {
        for timeline in &system.timelines {
            let mut ranges = Vec::new();
            for backup in facts
                .backups
                .iter()
                .filter(|backup| backup.system == system.system)
            {
                let (first, last) = backup.own_segments();
                match kept.get(&backup.backup) {
                    Some(true) => ranges.push((first, u64::MAX)),
                    Some(false) if backup.lineage.contains(&timeline.timeline) => ranges.push((first, last)),
                    _ => {}
                }
            }
            ranges.sort_unstable();
            let mut joined: Vec<(u64, u64)> = Vec::new();
            for (first, last) in ranges {
                match joined.last_mut() {
                    Some(before) if first <= before.1.saturating_add(1) => before.1 = before.1.max(last),
                    _ => joined.push((first, last)),
                }
            }
            needed.insert((system.system, timeline.timeline), joined);
        }
    }
    needed
}

fn unneeded_wal(facts: &Facts, kept: &BTreeMap<BackupId, bool>, notes: &mut Vec<String>) -> Vec<WalRange> {
    let needed = needed(facts, kept);
    let newest_good = facts
        .backups
        .iter()
        .filter(|backup| backup.is_good())
        .max_by_key(|backup| backup.finished_at);
    // Without any good backup nobody can say which WAL a way back will need.
    let Some(newest_good) = newest_good else {
        return Vec::new();
    };
    let mut ranges = Vec::new();
    for system in &facts.systems {
        let of_system = |backup: &&BackupFacts| backup.system == system.system;
        let open_ended = facts
            .backups
            .iter()
            .filter(of_system)
            .any(|backup| kept.get(&backup.backup) == Some(&true));
        // Another system's: what is archived now may be the beginning of its first backup.
        let retired = newest_good.system != system.system
            && !system
                .timelines
                .iter()
                .any(|timeline| is_active(timeline, newest_good));
        if !open_ended && !retired {
            notes.push(format!(
                "WAL of system identifier {} stays: no backup of it is kept for recovery, and it may be in use",
                system.system
            ));
            continue;
        }
        for timeline in &system.timelines {
            let reached = facts.backups.iter().any(|backup| {
                kept.get(&backup.backup) == Some(&true)
                    && backup.is_good()
                    && backup.reaches_on(system.system, timeline.timeline)
            });
            if is_active(timeline, newest_good) && !reached {
                notes.push(format!(
                    "WAL of timeline {} stays: it is written to, and no backup reaches it yet",
                    timeline.timeline
                ));
                continue;
            }
            let stays = needed
                .get(&(system.system, timeline.timeline))
                .map(Vec::as_slice)
                .unwrap_or_default();
            ranges.extend(ranges_between(system, timeline, stays));
        }
    }
    ranges
}

/// What lies between the ranges that stay, from the first archived segment on, where anything is stored.
fn ranges_between(system: &SystemFacts, timeline: &TimelineFacts, stays: &[(u64, u64)]) -> Vec<WalRange> {
    let all = || timeline.segments.iter().chain(&timeline.beside);
    let (Some(begin), Some(end)) = (
        all().map(|(number, _)| *number).min(),
        all().map(|(number, _)| *number).max(),
    ) else {
        return Vec::new();
    };
    let mut holes = Vec::new();
    let mut next = begin;
    for (first, last) in stays {
        if *first > next {
            holes.push((next, first - 1));
        }
        next = next.max(last.saturating_add(1));
        if *last == u64::MAX {
            next = u64::MAX;
        }
    }
    if next <= end {
        holes.push((next, end));
    }
    let mut ranges = Vec::new();
    for (first, last) in holes {
        let within = |segments: &[(u64, u64)]| {
            segments
                .iter()
                .filter(|(number, _)| (first..=last).contains(number))
                .fold((0_u64, 0_u64), |(count, bytes), (_, size)| {
                    (count + 1, bytes + size)
                })
        };
        let (segments, bytes) = within(&timeline.segments);
        let (beside, beside_bytes) = within(&timeline.beside);
        if segments + beside == 0 {
            continue;
        }
        let name = |number| postgres::segment_name(timeline.timeline, number, system.wal_segment_size);
        ranges.push(WalRange {
            range: ExpiredWal {
                system: system.system,
                timeline: timeline.timeline,
                first,
                last,
                segment_size: system.wal_segment_size,
            },
            first_name: name(first),
            last_name: name(last),
            segments,
            bytes: bytes + beside_bytes,
        });
    }
    ranges
}

/// Packs of removed backups that no kept one refers to.
fn freed_packs(facts: &Facts, kept: &BTreeMap<BackupId, bool>) -> (u64, u64) {
    let stays: BTreeSet<&(PackKind, PackRef)> = facts
        .backups
        .iter()
        .filter(|backup| kept.contains_key(&backup.backup))
        .flat_map(|backup| backup.packs.keys())
        .collect();
    let goes: BTreeMap<&(PackKind, PackRef), u64> = facts
        .backups
        .iter()
        .filter(|backup| !kept.contains_key(&backup.backup))
        .flat_map(|backup| &backup.packs)
        .filter(|(pack, _)| !stays.contains(pack))
        .map(|(pack, size)| (pack, *size))
        .collect();
    (goes.len() as u64, goes.values().sum())
}
