//! Which kind of point was recovered to, how it was chosen, and what proves a point of the past.

use jiff::Timestamp;
use postgres::Lsn;
use serde::{Deserialize, Serialize};

/// How the point was chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PointKind {
    /// Made by the drill itself.
    Bracket,
    /// Named by whoever ran the drill.
    Chosen,
    /// Drawn at random from what can be recovered.
    Random,
    /// The one whose recovery is predicted to take longest.
    Worst,
}

/// The point.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PointFacts {
    /// How it was chosen.
    pub kind: PointKind,
    /// As it was asked for: `1 minute ago`.
    pub requested: String,
    /// What that came to: a time or an LSN, as `restore --to` takes it; absent for a bracket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resolved: Option<String>,
    /// The seed of the choice, in hex: the same seed over the same window gives the same point.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<String>,
    /// From where to where could have been chosen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<PointWindow>,
    /// Bytes of WAL that the recovery to it replays, as predicted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub predicted_wal_bytes: Option<u64>,
    /// Standing markers around it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub markers: Vec<StandingMarker>,
}

/// What could be recovered to when the point was chosen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PointWindow {
    /// The earliest point.
    pub from: Timestamp,
    /// The latest one.
    pub to: Timestamp,
    /// Pieces that it is made of: more than one where WAL is missing in between.
    pub pieces: u32,
}

/// A row that pgproof committed in production earlier, with the LSN of its commit as the WAL says it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StandingMarker {
    /// `mark_<UTC>_<random>`.
    pub id: String,
    /// Start of its commit record.
    pub commit_lsn: Lsn,
    /// When it was committed, by the server's clock.
    pub committed_at: Timestamp,
    /// Whether the copy must hold it at the point.
    pub expected: bool,
    /// Whether it does; absent when nobody could look.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub found: Option<bool>,
}
