//! Who wants to hear how far a restore is.

use serde::{Deserialize, Serialize};

/// The steps of a restore, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// The existing directory is kept aside.
    KeepAside,
    /// What is there is compared, and what does not belong is removed: a delta restore.
    Compare,
    /// Files are written.
    Write,
    /// Everything is brought to disk.
    Sync,
    /// `pg_control` is put in place.
    Finish,
}

/// Called from several threads, and asked whether to go on.
pub trait Progress: Sync {
    /// A step begins; totals are those of the whole restore.
    fn step(&self, _step: Step, _bytes_total: u64, _files_total: u64) {}
    /// So much more was written (zero blocks included).
    fn advance(&self, _bytes: u64, _files: u64) {}
    /// Whether the restore is to go no further; looked at before each piece of work while files are written. It ends
    /// with the error `restore-stopped`, as one that was interrupted there.
    fn is_to_stop(&self) -> bool {
        false
    }
}

/// Silence.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoProgress;

impl Progress for NoProgress {}
