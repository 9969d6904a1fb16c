//! A point in the WAL that a person can be told: the end of a transaction, and the nearest point that can be
//! reached.
//!
//! Invariant: a [`Nearest`] is always a point that recovery from the backup at hand really reaches, in words
//! that the command line takes back.

use postgres::{Lsn, Timestamp, TransactionEnd, TransactionEndKind, Xid};
use serde::{Deserialize, Serialize};

/// The end of one transaction, as its commit or abort record says it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommitPoint {
    /// Where the record begins: recovering to this LSN, exclusive, leaves the transaction out.
    pub lsn: Lsn,
    /// Where the record ends.
    pub end: Lsn,
    /// The top transaction.
    pub xid: Xid,
    /// The time in the record, by the server's clock.
    pub time: Timestamp,
    /// False for an abort.
    pub committed: bool,
}

impl CommitPoint {
    /// From the index of a segment.
    pub fn of(transaction: &TransactionEnd) -> CommitPoint {
        CommitPoint {
            lsn: transaction.start,
            end: transaction.end,
            xid: transaction.xid,
            time: transaction.time,
            committed: committed(transaction),
        }
    }
}

/// Whether the record commits (an ordinary or a prepared transaction).
pub(crate) fn committed(transaction: &TransactionEnd) -> bool {
    matches!(
        transaction.kind,
        TransactionEndKind::Commit | TransactionEndKind::CommitPrepared
    )
}

/// The nearest point that can be reached, when the one asked for cannot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nearest {
    /// Recovery replays every record that begins before this LSN.
    pub lsn: Lsn,
    /// The newest commit that is then there, if one is known.
    pub last_commit: Option<CommitPoint>,
    /// Options of `pgproof restore` that reach it: `--to latest`, `--to '2A/8F000000'`.
    pub options: String,
}

impl std::fmt::Display for Nearest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.lsn)?;
        if let Some(commit) = &self.last_commit {
            write!(f, " (last commit {})", commit.time)?;
        }
        Ok(())
    }
}
