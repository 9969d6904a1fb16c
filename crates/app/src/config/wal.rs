//! `[cluster.NAME.archive]`: how far pushing and fetching run ahead, and when waiting WAL is worth a warning.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use super::values::{Length, parse_bytes};

/// Segments pushed at once by the process that runs ahead.
const PUSH_AHEAD: u32 = 2;
const PUSH_AHEAD_MAX: u32 = 64;
const PREFETCH_BYTES: u64 = 128 << 20;
const WARN_FILES: u64 = 64;
const WARN_AGE: Duration = Duration::from_secs(5 * 60);
const WARN_FULL_WITHIN: Duration = Duration::from_secs(2 * 3600);

/// As written.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WalSection {
    spool: Option<PathBuf>,
    push_ahead: Option<u32>,
    prefetch: Option<String>,
    warn_files: Option<u64>,
    warn_age: Option<Length>,
    warn_full_within: Option<Length>,
}

/// With defaults filled in.
#[derive(Debug, Clone)]
pub struct WalSettings {
    /// Where notes of what was pushed ahead are kept; a folder of the server's account.
    pub spool: PathBuf,
    /// Segments that are pushed at once behind the one asked for; 0: none.
    pub push_ahead: u32,
    /// Bytes of segments that are fetched for recovery before it asks; 0: none.
    pub prefetch_bytes: u64,
    /// A warning is due when more files wait than this ...
    pub warn_files: u64,
    /// ... when one has waited for longer ...
    pub warn_age: Duration,
    /// ... or when the file system of pg_wal is full sooner than this at the present rate.
    pub warn_full_within: Duration,
}

impl WalSection {
    /// `base` is the configuration file's folder. An error names the key.
    pub(super) fn resolve(self, base: &Path) -> Result<WalSettings, (&'static str, String)> {
        let push_ahead = self.push_ahead.unwrap_or(PUSH_AHEAD);
        if push_ahead > PUSH_AHEAD_MAX {
            return Err((
                "push_ahead",
                format!("`push_ahead` must be between 0 and {PUSH_AHEAD_MAX}"),
            ));
        }
        let prefetch_bytes = match &self.prefetch {
            Some(text) => parse_bytes(text).ok_or_else(|| {
                let why = format!("{text:?} is not a number of bytes such as \"128 MB\"");
                ("prefetch", why)
            })?,
            None => PREFETCH_BYTES,
        };
        let length = |given: Option<Length>, otherwise| given.map_or(otherwise, |length| length.duration);
        Ok(WalSettings {
            spool: base.join(self.spool.unwrap_or_else(|| "spool".into())),
            push_ahead,
            prefetch_bytes,
            warn_files: self.warn_files.unwrap_or(WARN_FILES),
            warn_age: length(self.warn_age, WARN_AGE),
            warn_full_within: length(self.warn_full_within, WARN_FULL_WITHIN),
        })
    }
}

impl WalSettings {
    pub(super) fn shown(&self) -> [(&'static str, String); 6] {
        let seconds = |length: Duration| format!("\"{} s\"", length.as_secs());
        [
            ("spool", format!("{:?}", self.spool.display().to_string())),
            ("push_ahead", self.push_ahead.to_string()),
            ("prefetch", format!("\"{} MB\"", self.prefetch_bytes >> 20)),
            ("warn_files", self.warn_files.to_string()),
            ("warn_age", seconds(self.warn_age)),
            ("warn_full_within", seconds(self.warn_full_within)),
        ]
    }
}
