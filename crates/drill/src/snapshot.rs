//! Which LSN a snapshot of production stands for.
//!
//! A snapshot sees a set of transactions; recovery to an LSN sees the transactions whose commit record begins
//! before it. The two are the same exactly when the snapshot's visible set is a prefix of the order of commit
//! records, and then the LSN is the start of the first commit record that the snapshot does not see,
//! exclusive. Pure.

use postgres::{Lsn, Xid};

/// `pg_current_snapshot()`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotView {
    /// Every transaction below had ended.
    pub xmin: u64,
    /// No transaction from here on had begun to be visible.
    pub xmax: u64,
    /// Top transactions in between that were running.
    pub running: Vec<u64>,
}

impl SnapshotView {
    /// Reads PostgreSQL's text form `xmin:xmax:xip,xip`.
    pub fn parse(text: &str) -> Option<SnapshotView> {
        let mut parts = text.trim().split(':');
        let xmin = parts.next()?.parse().ok()?;
        let xmax = parts.next()?.parse().ok()?;
        let list = parts.next()?;
        if parts.next().is_some() || xmin > xmax {
            return None;
        }
        let mut running = Vec::new();
        for item in list.split(',').filter(|item| !item.is_empty()) {
            running.push(item.parse().ok()?);
        }
        running.sort_unstable();
        Some(SnapshotView { xmin, xmax, running })
    }

    /// The 64-bit number of a 32-bit one in WAL: the one nearest to the snapshot.
    fn widen(&self, xid: Xid) -> u64 {
        let distance = xid.0.wrapping_sub(self.xmax as u32) as i32;
        self.xmax.saturating_add_signed(i64::from(distance))
    }

    /// Whether the snapshot sees what this top transaction committed.
    pub fn sees(&self, xid: Xid) -> bool {
        let xid = self.widen(xid);
        xid < self.xmin || (xid < self.xmax && self.running.binary_search(&xid).is_err())
    }
}

/// A transaction's end, in the order of WAL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// Start of its commit or abort record.
    pub lsn: Lsn,
    /// The top transaction.
    pub xid: Xid,
    /// False for an abort.
    pub committed: bool,
}

/// The LSN at which a recovery, exclusive, shows exactly what the snapshot sees; `None` if no LSN does.
/// `ended` is in the order of WAL and reaches beyond the snapshot (the caller commits a sentinel after it).
pub fn exact_lsn(view: &SnapshotView, ended: &[Ended]) -> Option<Lsn> {
    let mut commits = ended.iter().filter(|end| end.committed);
    let first_unseen = commits.by_ref().find(|end| !view.sees(end.xid))?;
    commits.all(|end| !view.sees(end.xid)).then_some(first_unseen.lsn)
}

/// Transactions that were running in the snapshot and whose end is not among `ended`: their commit record may
/// lie before the part of WAL that was looked at, so the caller asks the server about them.
pub fn unresolved(view: &SnapshotView, ended: &[Ended]) -> Vec<u64> {
    let known: std::collections::BTreeSet<u64> = ended.iter().map(|end| view.widen(end.xid)).collect();
    view.running
        .iter()
        .copied()
        .filter(|xid| !known.contains(xid))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn commits(xids: &[u32]) -> Vec<Ended> {
        let at = |(index, xid): (usize, &u32)| Ended {
            lsn: Lsn(1000 + index as u64 * 8),
            xid: Xid(*xid),
            committed: true,
        };
        xids.iter().enumerate().map(at).collect()
    }

    #[test]
    fn a_prefix_of_the_commit_order_has_an_lsn() {
        let view = SnapshotView::parse("100:105:100,103").expect("a snapshot");
        // 100 and 103 were running; 101, 102, 104 are seen.
        assert_eq!(
            exact_lsn(&view, &commits(&[101, 104, 102, 103, 100, 106])),
            Some(Lsn(1024))
        );
        assert_eq!(unresolved(&view, &commits(&[101, 104, 102, 103, 106])), [100]);
    }

    #[test]
    fn a_commit_seen_behind_one_that_is_not_seen_has_no_lsn() {
        let view = SnapshotView::parse("100:105:100,103").expect("a snapshot");
        assert_eq!(exact_lsn(&view, &commits(&[101, 103, 102, 100])), None);
        assert_eq!(
            exact_lsn(&view, &commits(&[101, 102])),
            None,
            "without a later commit nothing is sure"
        );
    }

    #[test]
    fn an_abort_between_does_not_matter() {
        let view = SnapshotView::parse("100:105:100,103").expect("a snapshot");
        let mut ended = commits(&[103, 101, 100]);
        ended[0].committed = false;
        assert_eq!(exact_lsn(&view, &ended), Some(Lsn(1016)));
    }

    #[test]
    fn numbers_wrap_around_as_postgresql_s_do() {
        let base = 3_u64 << 32;
        let view = SnapshotView::parse(&format!("{}:{}:", base - 2, base + 2)).expect("a snapshot");
        assert!(view.sees(Xid(u32::MAX)));
        assert!(view.sees(Xid(1)));
        assert!(!view.sees(Xid(2)));
        assert!(!view.sees(Xid(500)));
    }

    #[test]
    fn texts_that_are_no_snapshot_are_refused() {
        for text in ["", "1", "1:2", "2:1:", "1:2:x", "1:2:3:4", "a:b:c"] {
            assert_eq!(SnapshotView::parse(text), None, "{text}");
        }
        assert_eq!(SnapshotView::parse("5:5:").map(|view| view.running), Some(vec![]));
    }
}
