//! Helpers around WAL archiving on a live server: a switch that really switches, and how the archiver fares.
//!
//! Invariant (hard rule 22): `pg_switch_wal()` does nothing when the current segment is empty, so a commit is
//! written first; that commit is also what a time target just before it needs.

use crate::facts::{boolean, column, parsed, single};
use crate::session::{Session, sqlstate};
use diagnostic::{Error, Result};
use postgres::Lsn;
use serde::{Deserialize, Serialize};

/// `pg_stat_archiver`, and what waits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArchiverStatus {
    pub archived_count: u64,
    pub last_archived: Option<String>,
    pub last_archived_at: Option<jiff::Timestamp>,
    pub failed_count: u64,
    pub last_failed: Option<String>,
    pub last_failed_at: Option<jiff::Timestamp>,
    /// Names of the files that wait to be archived, in order; `None` when the server does not let us look.
    pub ready_files: Option<Vec<String>>,
}

impl ArchiverStatus {
    /// Is the last thing that happened a failure?
    pub fn is_failing(&self) -> bool {
        self.last_failed_at.is_some() && self.last_failed_at > self.last_archived_at
    }
}

/// Switches to a new segment and gives the end of the WAL in the old one. Error codes besides those of the
/// session: `server-in-recovery`.
pub fn switch_wal(session: &mut Session) -> Result<Lsn> {
    if boolean(&single(session, "SELECT pg_is_in_recovery()")?) {
        return Err(Error::new(
            "server-in-recovery",
            "a server in recovery writes no WAL that could be switched",
        )
        .hint("Connect to the primary."));
    }
    // A transaction with an xid of its own ends with a commit record even when it changed nothing.
    session.execute("SELECT pg_current_xact_id()")?;
    parsed(Some(single(session, "SELECT pg_switch_wal()")?), "pg_switch_wal")
}

/// How the archiver fares.
pub fn archiver_status(session: &mut Session) -> Result<ArchiverStatus> {
    let row = session.one(
        "SELECT archived_count, \
                last_archived_wal, (extract(epoch FROM last_archived_time) * 1000000)::bigint, \
                failed_count, last_failed_wal, (extract(epoch FROM last_failed_time) * 1000000)::bigint \
           FROM pg_stat_archiver",
    )?;
    let time = |index| {
        let microseconds = column(&row, index)?.parse().ok()?;
        jiff::Timestamp::from_microsecond(microseconds).ok()
    };
    let ready = session
        .rows("SELECT left(name, -6) FROM pg_ls_archive_statusdir() WHERE name LIKE '%.ready' ORDER BY name");
    let ready_files = match ready {
        Ok(rows) => Some(rows.iter().filter_map(|row| column(row, 0)).collect()),
        Err(error) if sqlstate(&error) == Some("42501") => None,
        Err(error) => return Err(error),
    };
    Ok(ArchiverStatus {
        archived_count: parsed(column(&row, 0), "archived_count")?,
        last_archived: column(&row, 1).filter(|name| !name.is_empty()),
        last_archived_at: time(2),
        failed_count: parsed(column(&row, 3), "failed_count")?,
        last_failed: column(&row, 4).filter(|name| !name.is_empty()),
        last_failed_at: time(5),
        ready_files,
    })
}
