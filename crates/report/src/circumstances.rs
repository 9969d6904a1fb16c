//! What a document says beside the facts of its drill: who has signed since, what was done about it, and how earlier
//! drills went. All of it is evidence of its own, and is pointed to by its file.

use drill::Status;
use drill::facts::FailureKind;
use drill::follow_up::FollowUp;
use drill::sign_off::Signature;
use jiff::Timestamp;

/// Beside the facts.
#[derive(Debug, Clone, Default)]
pub struct Circumstances {
    /// Good signatures.
    pub signatures: Vec<Signature>,
    /// What was entered for this drill.
    pub follow_ups: Vec<FollowUp>,
    /// Earlier drills of this cluster, oldest first; this one is not among them.
    pub earlier: Vec<Earlier>,
    /// The backups that the repository holds.
    pub backups: Vec<BackupSize>,
    /// How the backups of the last days ended; nothing where that could not be read.
    pub backup_runs: Option<BackupRuns>,
    /// The rule by which the next drill is due, in words: `quarterly`.
    pub frequency: Option<String>,
}

/// A backup, by what it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupSize {
    pub backup: String,
    pub finished_at: Timestamp,
    /// What a restore of it writes.
    pub bytes: u64,
}

/// How backups ended within [`BACKUP_RUNS_DAYS`](crate::trend::BACKUP_RUNS_DAYS), in order of time.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BackupRuns {
    /// The backups that were made, also those that were expired since.
    pub succeeded: Vec<String>,
    /// The records of those that failed.
    pub failed: Vec<String>,
}

/// An earlier drill.
#[derive(Debug, Clone, PartialEq)]
pub struct Earlier {
    pub drill: String,
    pub profile: String,
    pub started_at: Timestamp,
    pub status: Status,
    /// Milliseconds of recovery.
    pub rto_ms: Option<u64>,
    pub rpo_seconds: Option<f64>,
    /// Whether its copy got to the target; nothing where it was stopped, or could not be told, before.
    pub restored: Option<bool>,
    /// A fault was planted: a drill of the drill.
    pub planted: bool,
}

impl Earlier {
    pub fn of(facts: &drill::Facts, status: Status) -> Earlier {
        let reached = facts
            .target
            .stops
            .first()
            .is_some_and(|stop| stop.outcome.is_reached());
        let untold = facts
            .failure
            .as_ref()
            .is_some_and(|failure| failure.kind != FailureKind::Finding);
        Earlier {
            restored: (reached || !untold).then_some(reached),
            planted: !facts.planted_faults.is_empty(),
            drill: facts.identity.drill_id.clone(),
            profile: facts.identity.profile.clone(),
            started_at: facts.started_at,
            status,
            rto_ms: facts.rto.as_ref().map(|rto| rto.total_ms),
            rpo_seconds: facts.rpo.as_ref().and_then(|rpo| rpo.seconds),
        }
    }
}
