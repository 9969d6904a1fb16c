//! Which timeline `latest` means, and on which other one a target that is not reached lies. Hard rule 10.
//!
//! Invariants: the answer is a number, from a history that carries a backup, written by somebody that is known; a
//! number that stands for two histories is refused, never chosen between.

use std::collections::BTreeSet;

use diagnostic::Result;
use history::{Archive, Standing, Start, Wanted, history_of};
use postgres::{TimelineId, Timestamp};
use repository::{Backup, BackupId};
use serde::{Deserialize, Serialize};

use crate::facts::known_timelines;

/// Another timeline, or another backup, from which everything that was asked for is reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alternative {
    pub timeline: TimelineId,
    pub backup: BackupId,
}

/// Refusals search no more ways than this.
const WAYS_MAX: usize = 16;

/// The newest timeline that some backup can be recovered along, and that a server which is known wrote: what
/// `--timeline latest` means. Error: `timeline-ambiguous`.
pub fn newest_timeline(backups: &[Backup], archive: &Archive) -> Result<Option<TimelineId>> {
    let ours: Vec<&Backup> = backups
        .iter()
        .filter(|backup| backup.system_identifier == archive.system())
        .collect();
    let backed_up: BTreeSet<TimelineId> = ours.iter().map(|backup| backup.timeline).collect();
    let timelines = known_timelines(archive, backups);
    let mut numbers: BTreeSet<TimelineId> = timelines.all().map(|known| known.history.timeline).collect();
    numbers.extend(&backed_up);
    for timeline in numbers.into_iter().rev() {
        if archive.standing(timeline, &backed_up) == Standing::Unknown {
            continue;
        }
        let mut ambiguous = None;
        for backup in &ours {
            let own = history_of(backup);
            match timelines.path_to(timeline, Some((&own, backup.stop_lsn))) {
                Ok(path) if path.carries(&own, backup.stop_lsn).is_ok() => return Ok(Some(timeline)),
                Ok(_) => {}
                Err(error) => ambiguous = Some(error),
            }
        }
        if let Some(error) = ambiguous {
            return Err(error);
        }
    }
    Ok(None)
}

/// Other ways on which every target is reached: one backup for each timeline. `tried`: what need not be tried.
pub(crate) fn alternatives(
    archive: &Archive,
    backups: &[Backup],
    wanted: &[Wanted],
    tried: &dyn Fn(TimelineId, BackupId) -> bool,
) -> Result<Vec<Alternative>> {
    let timelines = known_timelines(archive, backups);
    let mut numbers: BTreeSet<TimelineId> = timelines.all().map(|known| known.history.timeline).collect();
    numbers.insert(TimelineId(1));
    let mut candidates: Vec<&Backup> = backups
        .iter()
        .filter(|backup| backup.system_identifier == archive.system())
        .collect();
    candidates.sort_by_key(|backup| std::cmp::Reverse((backup.finished_at, backup.stop_lsn)));
    numbers.extend(candidates.iter().map(|backup| backup.timeline));
    let mut found = Vec::new();
    for timeline in numbers.into_iter().rev().take(WAYS_MAX) {
        for backup in &candidates {
            if tried(timeline, backup.backup) {
                continue;
            }
            let own = history_of(backup);
            let Ok(path) = timelines.path_to(timeline, Some((&own, backup.stop_lsn))) else {
                continue;
            };
            if path.carries(&own, backup.stop_lsn).is_err() {
                continue;
            }
            let start = Start {
                redo: backup.redo_lsn,
                stop: backup.stop_lsn,
                ended_at: Timestamp::from_jiff(backup.finished_at),
                path,
            };
            let trace = archive.trace(&start, wanted, None)?;
            if trace.targets.iter().all(Result::is_ok) {
                found.push(Alternative {
                    timeline,
                    backup: backup.backup,
                });
                break;
            }
            let older = trace
                .targets
                .iter()
                .filter_map(|target| target.as_ref().err())
                .any(history::Unreachable::older_may_reach);
            if !older {
                break;
            }
        }
    }
    Ok(found)
}
