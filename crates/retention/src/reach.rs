//! Which points can be reached, and which no longer: sets of intervals of LSNs, each end with its time.

use jiff::Timestamp;
use postgres::{Lsn, SystemIdentifier, TimelineId};
use serde::Serialize;

use crate::facts::BackupFacts;

/// Points of a timeline from one to the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Interval {
    pub system: SystemIdentifier,
    pub timeline: TimelineId,
    pub from_lsn: Lsn,
    pub from: Timestamp,
    pub to_lsn: Lsn,
    pub to: Timestamp,
}

/// What a backup reaches while all WAL behind it is kept.
pub(crate) fn whole(backup: &BackupFacts) -> Vec<Interval> {
    let interval = |reach: &crate::facts::Reach| Interval {
        system: backup.system,
        timeline: reach.timeline,
        from_lsn: reach.from_lsn,
        from: reach.from,
        to_lsn: reach.to_lsn,
        to: reach.to,
    };
    backup.reaches.iter().map(interval).collect()
}

/// What it reaches with its own WAL alone.
pub(crate) fn own(backup: &BackupFacts) -> Interval {
    Interval {
        system: backup.system,
        timeline: backup.timeline,
        from_lsn: backup.stop_lsn,
        from: backup.finished_at,
        to_lsn: backup.stop_lsn,
        to: backup.finished_at,
    }
}

/// The same points in as few intervals as possible, in order.
pub(crate) fn union(mut intervals: Vec<Interval>) -> Vec<Interval> {
    intervals.sort();
    let mut union: Vec<Interval> = Vec::new();
    for interval in intervals {
        match union.last_mut() {
            Some(last)
                if (last.system, last.timeline) == (interval.system, interval.timeline)
                    && interval.from_lsn <= last.to_lsn =>
            {
                if interval.to_lsn > last.to_lsn {
                    last.to_lsn = interval.to_lsn;
                    last.to = interval.to.max(last.to);
                }
            }
            _ => union.push(interval),
        }
    }
    union
}

/// The points of `before` that are not in `after` (both unions), to the next point that is.
pub(crate) fn difference(before: &[Interval], after: &[Interval]) -> Vec<Interval> {
    let mut lost = Vec::new();
    for interval in before {
        let mut rest = Some(*interval);
        let kept = after
            .iter()
            .filter(|kept| (kept.system, kept.timeline) == (interval.system, interval.timeline));
        for kept in kept {
            let Some(piece) = rest else { break };
            if kept.to_lsn < piece.from_lsn || kept.from_lsn > piece.to_lsn {
                continue;
            }
            if kept.from_lsn > piece.from_lsn {
                lost.push(Interval {
                    to_lsn: kept.from_lsn,
                    to: kept.from,
                    ..piece
                });
            }
            rest = (kept.to_lsn < piece.to_lsn).then_some(Interval {
                from_lsn: kept.to_lsn,
                from: kept.to,
                ..piece
            });
        }
        lost.extend(rest);
    }
    lost
}
