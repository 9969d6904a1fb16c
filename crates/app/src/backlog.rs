//! How archiving fares: what waits in `pg_wal`, what the server says of its archiver, and what of it is worth a warning.

use std::path::Path;

use backup::{Backlog, BacklogLimits};
use cluster::{ArchiverStatus, Session};
use diagnostic::Result;
use jiff::Timestamp;
use serde::Serialize;

use crate::config::Cluster;
use crate::output;

/// What was seen.
#[derive(Debug, Clone, Serialize)]
pub struct Archiving {
    pub backlog: Backlog,
    pub seconds_until_full: Option<f64>,
    /// `pg_stat_archiver`; nothing where there is no connection.
    pub archiver: Option<ArchiverStatus>,
    pub warnings: Vec<String>,
}

/// The configured limits.
pub fn limits(cluster: &Cluster) -> BacklogLimits {
    BacklogLimits {
        files: cluster.archive.warn_files,
        age: cluster.archive.warn_age,
        full_within: cluster.archive.warn_full_within,
    }
}

/// Looks at the data directory, and asks the server if there is a session.
pub fn look(
    cluster: &Cluster,
    data_directory: &Path,
    wal_segment_size: u32,
    session: Option<&mut Session>,
    now: Timestamp,
) -> Result<Archiving> {
    let backlog = Backlog::look(data_directory, wal_segment_size, now)?;
    let archiver = session.map(cluster::archiver_status).transpose()?;
    let mut warnings = backlog.warnings(&limits(cluster), now);
    if let Some(archiver) = archiver.as_ref().filter(|archiver| archiver.is_failing()) {
        warnings.push(format!(
            "the archiver fails: the last of {} failed attempts was with {} at {}; the server's log holds what pgproof said",
            archiver.failed_count,
            archiver.last_failed.as_deref().unwrap_or("an unknown file"),
            archiver.last_failed_at.map_or("an unknown time".to_owned(), output::moment),
        ));
    }
    Ok(Archiving {
        seconds_until_full: backlog.seconds_until_full(),
        backlog,
        archiver,
        warnings,
    })
}

impl Archiving {
    /// One line for a person.
    pub fn text(&self, now: Timestamp) -> String {
        let backlog = &self.backlog;
        let waits = match (&backlog.oldest, backlog.age(now)) {
            (Some(oldest), Some(age)) => format!(
                "{} files wait ({}), the oldest, {}, for {}",
                backlog.files,
                output::bytes(backlog.bytes),
                oldest.file,
                output::seconds(age.as_secs_f64())
            ),
            _ => "nothing waits".to_owned(),
        };
        let room = match (backlog.free_bytes, self.seconds_until_full) {
            (Some(free), Some(seconds)) => format!(
                "; pg_wal has {} free, {} of WAL at the present rate",
                output::bytes(free),
                output::seconds(seconds)
            ),
            (Some(free), None) => format!("; pg_wal has {} free", output::bytes(free)),
            _ => String::new(),
        };
        waits + &room
    }
}
