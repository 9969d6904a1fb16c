//! What a plan is made from: values only, gathered before.

use std::collections::BTreeMap;

use jiff::Timestamp;
use postgres::{Lsn, SystemIdentifier, TimelineId};
use repository::{BackupId, Collected, LiveRun, PackKind, PackRef, RunId};
use serde::Serialize;

/// Everything that is known of one copy of one cluster.
#[derive(Debug, Clone, PartialEq)]
pub struct Facts {
    pub cluster: String,
    /// The copy's name.
    pub copy: String,
    /// Oldest first.
    pub backups: Vec<BackupFacts>,
    pub systems: Vec<SystemFacts>,
    pub runs: Vec<LiveRun>,
    /// The newest moment that anything in the copy states, and what.
    pub newest_moment: Option<(Timestamp, String)>,
    /// Packs that nothing refers to already.
    pub collection: Collected,
    /// What could not be looked at, or is left alone.
    pub notes: Vec<String>,
}

/// Whether a backup counts as a way back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// Its record, pack table, packs and WAL from redo to stop are there, and no verification found fault.
    Good,
    /// Why not.
    Bad(String),
}

/// One backup.
#[derive(Debug, Clone, PartialEq)]
pub struct BackupFacts {
    pub backup: BackupId,
    pub system: SystemIdentifier,
    pub wal_segment_size: u32,
    pub timeline: TimelineId,
    /// Its own timeline and those that it descends from.
    pub lineage: Vec<TimelineId>,
    pub started_at: Timestamp,
    pub finished_at: Timestamp,
    pub redo_lsn: Lsn,
    pub stop_lsn: Lsn,
    pub standing: Standing,
    /// The newest verification that looked at it and found nothing.
    pub verified_at: Option<Timestamp>,
    /// Why it is pinned, if it is, and until when.
    pub pin: Option<(String, Option<Timestamp>)>,
    /// Live leases on it, in words.
    pub leases: Vec<String>,
    /// With their stored bytes.
    pub packs: BTreeMap<(PackKind, PackRef), u64>,
    /// The points that it reaches on each timeline.
    pub reaches: Vec<Reach>,
}

/// Points of one timeline that a backup can be recovered to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reach {
    pub timeline: TimelineId,
    /// The backup's stop, or where the timeline begins.
    pub from_lsn: Lsn,
    pub from: Timestamp,
    /// Where unbroken WAL ends.
    pub to_lsn: Lsn,
    pub to: Timestamp,
}

/// WAL of one system identifier.
#[derive(Debug, Clone, PartialEq)]
pub struct SystemFacts {
    pub system: SystemIdentifier,
    pub wal_segment_size: u32,
    pub timelines: Vec<TimelineFacts>,
}

/// Archived WAL of one timeline.
#[derive(Debug, Clone, PartialEq)]
pub struct TimelineFacts {
    pub timeline: TimelineId,
    /// Number and stored bytes of each segment, ascending.
    pub segments: Vec<(u64, u64)>,
    /// Number and stored bytes of backup history and partial files.
    pub beside: Vec<(u64, u64)>,
    /// When the newest object was stored.
    pub last_activity: Timestamp,
}

impl Facts {
    pub(crate) fn run_on(&self, parent: BackupId) -> Option<RunId> {
        let run = self.runs.iter().find(|run| run.parent == Some(parent))?;
        Some(run.run)
    }
}

impl BackupFacts {
    pub(crate) fn is_good(&self) -> bool {
        self.standing == Standing::Good
    }

    pub(crate) fn reaches_on(&self, system: SystemIdentifier, timeline: TimelineId) -> bool {
        self.system == system && self.reaches.iter().any(|reach| reach.timeline == timeline)
    }

    /// The segments without which it cannot be restored at all.
    pub(crate) fn own_segments(&self) -> (u64, u64) {
        let first = self.redo_lsn.segment(self.wal_segment_size);
        let last = Lsn(self.stop_lsn.0.saturating_sub(1)).segment(self.wal_segment_size);
        (first, last.max(first))
    }
}
