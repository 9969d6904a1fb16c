//! What would be lost if the server and its disks vanished now: gathers the facts for `history::rpo`.

use cluster::Session;
use diagnostic::{Error, Result};
use history::{Archive, LiveTail, Rpo};
use postgres::Lsn;

use crate::config::Cluster;

/// What would be lost, and the two commits that its seconds lie between.
pub struct Loss {
    pub rpo: Rpo,
    pub newest_commit_at: Option<jiff::Timestamp>,
    pub newest_kept_commit_at: Option<jiff::Timestamp>,
}

impl Loss {
    fn of(archived_end: Lsn, kept: Option<postgres::Timestamp>, live: &LiveTail) -> Loss {
        let newest = live.newest.as_ref().map(|commit| commit.time);
        Loss {
            rpo: history::rpo(archived_end, kept, live),
            // Where nothing lies behind the archive's end, its newest commit is the newest there is.
            newest_commit_at: newest.or(kept).map(postgres::Timestamp::to_jiff),
            newest_kept_commit_at: kept.map(postgres::Timestamp::to_jiff),
        }
    }
}

/// Exact seconds, bytes and commits. Error codes besides those of the rooms: `archive-empty`, `server-in-recovery`.
pub fn measure(cluster: &Cluster, archive: &Archive) -> Result<Rpo> {
    look(cluster, archive).map(|loss| loss.rpo)
}

/// The same with the commits.
pub fn look(cluster: &Cluster, archive: &Archive) -> Result<Loss> {
    let mut session = Session::connect(&cluster.connection)?;
    let facts = cluster::gather(&mut session)?;
    if facts.in_recovery {
        return Err(Error::new(
            "server-in-recovery",
            "the server is in recovery and writes no WAL of its own",
        )
        .hint("Connect to the primary to measure what would be lost."));
    }
    if facts.system_identifier != archive.system() {
        return Err(
            Error::new("server-foreign", "the server is another one than the archive's").detail(format!(
                "System identifiers: {} and {}.",
                facts.system_identifier,
                archive.system()
            )),
        );
    }
    let end = archive.end(facts.timeline)?.ok_or_else(|| {
        Error::new(
            "archive-empty",
            format!("no WAL of timeline {} is archived", facts.timeline),
        )
        .detail("All that was ever written would be lost.")
        .hint("Run `pgproof check`.")
    })?;
    let flush = session.one("SELECT pg_current_wal_flush_lsn()")?;
    let flush: Lsn = flush
        .first()
        .and_then(Option::as_deref)
        .ok_or_else(|| Error::new("server-error", "pg_current_wal_flush_lsn() gave nothing"))?
        .parse()?;
    let last_commit = end.last_commit.map(|commit| commit.time);
    let Some(data_directory) = cluster.data_directory.as_deref() else {
        // The WAL itself is not at hand: bytes are exact, commits are not known unless there are none.
        let live = LiveTail::of(end.lsn, flush.max(end.lsn), &[], end.lsn >= flush);
        return Ok(Loss::of(end.lsn, last_commit, &live));
    };
    let tail = backup::read_live_tail(data_directory, facts.timeline, end.lsn, flush)?;
    let complete = !tail.seam_unresolved && tail.end >= flush;
    let live = LiveTail::of(end.lsn, flush.max(end.lsn), &tail.transactions, complete);
    Ok(Loss::of(end.lsn, last_commit, &live))
}
