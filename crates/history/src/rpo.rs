//! Exact loss: what would be gone if the server and its disks vanished now.
//!
//! A pure function of two facts, the end of the archive and the tail of WAL that is not archived yet.
//! Invariant: it counts commits by their records; no heartbeat and no table's newest row is asked (field
//! guide 1.8).

use postgres::{Lsn, Timestamp, TransactionEnd};
use serde::{Deserialize, Serialize};

use crate::point::{CommitPoint, committed};

/// WAL that the server has written behind the archive's end.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LiveTail {
    /// Where the server's WAL ends now.
    pub end: Lsn,
    /// Commits in it, counted by the caller's reader or by [`LiveTail::of`].
    pub commits: u64,
    /// The newest commit in it.
    pub newest: Option<CommitPoint>,
    /// Whether all bytes between the archive's end and `end` were read; otherwise `commits` is a lower bound.
    pub complete: bool,
}

impl LiveTail {
    /// From the transactions of the live segments, in any order; those that the archive has are left out.
    pub fn of<'a>(
        archived_end: Lsn,
        end: Lsn,
        transactions: impl IntoIterator<Item = &'a TransactionEnd>,
        complete: bool,
    ) -> LiveTail {
        let mut tail = LiveTail {
            end,
            commits: 0,
            newest: None,
            complete,
        };
        for transaction in transactions {
            if transaction.start < archived_end || !committed(transaction) {
                continue;
            }
            tail.commits += 1;
            if tail
                .newest
                .as_ref()
                .is_none_or(|newest| newest.lsn < transaction.start)
            {
                tail.newest = Some(CommitPoint::of(transaction));
            }
        }
        tail
    }
}

/// What would be lost.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Rpo {
    /// From the newest commit that the archive holds to the newest one that happened; 0 if it holds all.
    /// `None` if the archive holds no commit to count from.
    pub seconds: Option<f64>,
    /// Bytes of WAL behind the archive's end.
    pub bytes: u64,
    /// Commits in them.
    pub commits: u64,
    /// False if not all of these bytes could be read: then the figures are lower bounds.
    pub exact: bool,
}

/// The loss, from where the archive ends, its newest commit's time, and the live tail.
pub fn rpo(archived_end: Lsn, archived_commit: Option<Timestamp>, tail: &LiveTail) -> Rpo {
    let bytes = tail.end.checked_sub(archived_end).unwrap_or(0);
    let seconds = match (&tail.newest, archived_commit) {
        (None, _) => Some(0.0),
        (Some(newest), Some(archived)) => {
            Some((newest.time.0.saturating_sub(archived.0)).max(0) as f64 / 1e6)
        }
        (Some(_), None) => None,
    };
    Rpo {
        seconds,
        bytes,
        commits: tail.commits,
        exact: tail.complete,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use postgres::{TransactionEndKind, Xid};

    fn end(start: u64, time: i64, kind: TransactionEndKind) -> TransactionEnd {
        TransactionEnd {
            start: Lsn(start),
            end: Lsn(start + 40),
            xid: Xid(start as u32),
            time: Timestamp(time),
            kind,
            subxids: Vec::new(),
        }
    }

    #[test]
    fn loss_is_counted_in_commits_behind_the_archives_end() {
        let live = [
            end(80, 900_000, TransactionEndKind::Commit),
            end(120, 1_000_000, TransactionEndKind::Commit),
            end(160, 1_500_000, TransactionEndKind::Abort),
            end(200, 2_690_000, TransactionEndKind::CommitPrepared),
        ];
        let tail = LiveTail::of(Lsn(100), Lsn(300), &live, true);
        let rpo = rpo(Lsn(100), Some(Timestamp(1_000_000)), &tail);
        assert_eq!(
            rpo,
            Rpo {
                seconds: Some(1.69),
                bytes: 200,
                commits: 2,
                exact: true
            }
        );
    }

    #[test]
    fn an_idle_server_loses_no_seconds_however_old_its_last_commit_is() {
        let tail = LiveTail::of(
            Lsn(100),
            Lsn(180),
            &[end(20, 0, TransactionEndKind::Commit)],
            true,
        );
        let rpo = rpo(Lsn(100), Some(Timestamp(0)), &tail);
        assert_eq!((rpo.seconds, rpo.commits, rpo.bytes), (Some(0.0), 0, 80));
    }

    #[test]
    fn a_clock_that_went_backwards_does_not_make_a_negative_loss() {
        let tail = LiveTail::of(
            Lsn(100),
            Lsn(300),
            &[end(120, 5, TransactionEndKind::Commit)],
            true,
        );
        assert_eq!(rpo(Lsn(100), Some(Timestamp(9)), &tail).seconds, Some(0.0));
    }
}
