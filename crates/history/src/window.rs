//! What can be recovered: for each backup, from its end to the end of the WAL that is unbroken behind it.
//!
//! Invariant: a window never reaches over a gap; two backups on either side of one have two windows.

use diagnostic::Result;
use postgres::{Lsn, TimelineHistory, TimelineId, Timestamp};
use repository::Backup;
use serde::{Deserialize, Serialize};

use crate::archive::{Archive, ArchiveEnd, Gap};
use crate::timelines::WalPath;

/// What one backup can be recovered to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Window {
    /// The backup.
    pub backup: String,
    /// The timeline of the way: the backup's own.
    pub timeline: TimelineId,
    /// The earliest point: the backup's stop.
    pub from_lsn: Lsn,
    /// When the backup ended; later times can be targets.
    pub from: Timestamp,
    /// The end of unbroken WAL; `None` if WAL that the backup itself needs is missing.
    pub to_lsn: Option<Lsn>,
    /// The newest commit up to there: the latest point that a person can name by time.
    pub to: Option<Timestamp>,
    /// The first gap behind the backup's redo point that is not WAL which retention has let go.
    pub gap: Option<Gap>,
}

/// The history of a backup's timeline, as its record says it.
pub fn history_of(backup: &Backup) -> TimelineHistory {
    TimelineHistory {
        timeline: backup.timeline,
        steps: backup
            .history
            .iter()
            .map(|step| postgres::HistoryStep {
                parent: step.parent,
                switch: step.switch_lsn,
                reason: String::new(),
            })
            .collect(),
    }
}

impl Archive {
    /// The window of each backup of this system, in the order given. Backups of another system are left out.
    pub fn windows(&self, backups: &[Backup]) -> Result<Vec<Window>> {
        let mut windows = Vec::with_capacity(backups.len());
        // Backups of one timeline mostly end in the same place: look there once.
        let mut ends: Vec<(TimelineId, u64, Option<ArchiveEnd>)> = Vec::new();
        for backup in backups
            .iter()
            .filter(|backup| backup.system_identifier == self.system())
        {
            let path = WalPath::of(&history_of(backup));
            let first = backup.redo_lsn.segment(self.segment_size());
            let end = match self.unbroken_to(&path, first) {
                None => None,
                Some(last) => {
                    let known = ends
                        .iter()
                        .find(|(timeline, segment, _)| *timeline == backup.timeline && *segment == last);
                    match known {
                        Some((_, _, end)) => end.clone(),
                        None => {
                            let end = self.end_on(&path, backup.redo_lsn)?;
                            ends.push((backup.timeline, last, end.clone()));
                            end
                        }
                    }
                }
            };
            let end = end.filter(|end| end.lsn >= backup.stop_lsn);
            let from = Timestamp::from_jiff(backup.finished_at);
            let commit = end.as_ref().and_then(|end| end.last_commit.as_ref());
            windows.push(Window {
                backup: backup.backup.to_string(),
                timeline: backup.timeline,
                from_lsn: backup.stop_lsn,
                from,
                to_lsn: end.as_ref().map(|end| end.lsn),
                to: end
                    .as_ref()
                    .map(|_| commit.map_or(from, |commit| commit.time.max(from))),
                gap: (self.gaps_on(&path, backup.redo_lsn).iter())
                    .flat_map(|gap| self.not_expired(gap.timeline, gap.first_missing, gap.last_missing))
                    .next(),
            });
        }
        Ok(windows)
    }
}
