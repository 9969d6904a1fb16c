//! The marker `pgproof.restored`: this directory was restored, and is not production until it is adopted.
//!
//! `wal push` refuses from a marked directory (hard rule 23). The marker also says how far a restore came, so
//! that one that was interrupted can be run again. Invariants: the marker is written before the first file
//! and replaced by renaming; a directory counts as half restored, and may be emptied by the next restore,
//! only when its marker says that files were being written **and** it has no `global/pg_control`.

use std::path::{Path, PathBuf};

use diagnostic::{Error, Result};
use serde::{Deserialize, Serialize};

use crate::plan::KeptAside;
use crate::sync::write_durably;

/// Its name, in the data directory.
pub const MARKER_NAME: &str = "pgproof.restored";

/// While what exists is being moved aside, the same contents stand under this name: the old directory is not
/// marked as restored by a move that never came to pass.
pub(crate) const JOURNAL_NAME: &str = "pgproof.keeping-aside";

/// While a delta restore overwrites a directory, the same contents stand under this name. A directory that has it
/// and no `pg_control` is half done; one that has both was not touched yet, or is finished.
pub(crate) const DELTA_NAME: &str = "pgproof.delta";

/// How far a restore came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// What existed is being moved aside; what is still here may be the old directory's. Only in the journal.
    KeepingAside,
    /// What is here is being overwritten where it differs from the backup. Only in the journal of a delta restore.
    Delta,
    /// Files are being written; nothing here is anybody's but ours.
    Writing,
    /// Everything is written and synced; only `pg_control` may still be missing.
    Complete,
}

/// What the marker says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marker {
    /// The version of this file, 1.
    pub version: u32,
    pub phase: Phase,
    /// The cluster's name in the repository.
    pub cluster: String,
    pub backup: String,
    pub system_identifier: postgres::SystemIdentifier,
    /// The target, in words.
    pub target: String,
    /// When the restore was planned.
    pub planned_at: jiff::Timestamp,
    /// What was kept aside, by this restore or by an interrupted one before it.
    pub kept_aside: Vec<KeptAside>,
    /// Tablespaces that the restore fills, by OID and location.
    pub outside: Vec<(postgres::Oid, PathBuf)>,
}

/// Reads the marker of a data directory, if it has one. Error: `marker-damaged`.
pub fn read_marker(data_directory: &Path) -> Result<Option<Marker>> {
    read(data_directory, MARKER_NAME)
}

/// Reads the journal of a move that was interrupted.
pub(crate) fn read_journal(data_directory: &Path) -> Result<Option<Marker>> {
    read(data_directory, JOURNAL_NAME)
}

/// Reads the journal of a delta restore.
pub(crate) fn read_delta(data_directory: &Path) -> Result<Option<Marker>> {
    read(data_directory, DELTA_NAME)
}

fn read(data_directory: &Path, name: &str) -> Result<Option<Marker>> {
    let path = data_directory.join(name);
    let text = match std::fs::read(&path) {
        Ok(text) => text,
        Err(error)
            if matches!(
                error.kind(),
                std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory
            ) =>
        {
            return Ok(None);
        }
        Err(error) => {
            return Err(Error::io(
                "marker-read",
                format!("cannot read \"{}\"", path.display()),
                &error,
            ));
        }
    };
    serde_json::from_slice(&text).map(Some).map_err(|error| {
        Error::new("marker-damaged", format!("\"{}\" cannot be read", path.display()))
            .caused_by(&error)
            .detail("The directory was restored by pgproof, or by another version of it.")
    })
}

/// Whether the directory carries the marker, readable or not.
pub(crate) fn is_marked(data_directory: &Path) -> bool {
    std::fs::symlink_metadata(data_directory.join(MARKER_NAME)).is_ok()
}

impl Marker {
    /// Writes it durably, replacing an older one.
    pub(crate) fn write(&self, data_directory: &Path, owner: Option<(u32, u32)>) -> Result<()> {
        let text = self.text()?;
        let name = if self.phase == Phase::KeepingAside {
            JOURNAL_NAME
        } else {
            MARKER_NAME
        };
        write_durably(&data_directory.join(name), &text, 0o600, owner)
    }

    pub(crate) fn text(&self) -> Result<Vec<u8>> {
        let mut text = serde_json::to_vec_pretty(self)
            .map_err(|error| Error::new("marker-write", "cannot encode the marker").caused_by(&error))?;
        text.push(b'\n');
        Ok(text)
    }
}
