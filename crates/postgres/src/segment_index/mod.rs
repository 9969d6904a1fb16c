//! What one WAL segment says, kept beside it for ever, so that no later question reads the WAL again.
//!
//! Made once when a segment is archived. It holds no row data: places, transaction ends with their times,
//! events that matter to recovery, which blocks changed, and how many rows where many rows were changed.
//!
//! Invariants
//! - Everything comes from records whose CRC is right, up to the place where valid WAL ends; the verdict
//!   names that place and the reason.
//! - A record counts in the segment in which it *ends*. For the record that spans the start of the segment
//!   the end of the segment before is needed: without it `head.resolved` is false, and that one record is
//!   counted nowhere.
//! - Two segments fit together when [`SegmentIndex::follows`] says so; only then is the WAL unbroken there.

mod changed_pages;
mod changes;
mod codec;
mod event;
mod indexer;
mod window;

pub use changed_pages::{ChangedPages, NoMap};
pub use event::{Event, EventKind};
pub use indexer::{SegmentIndexer, tail_bytes};
pub use window::{Excuse, WindowOfWal};

use serde::{Deserialize, Serialize};

use crate::wal::EndReason;
use crate::{Fork, Lsn, RelationLocator, SystemIdentifier, TimelineId, Timestamp, Xid};

/// The index of one segment.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SegmentIndex {
    /// of the file's name; the pages may be of earlier timelines (a segment copied at promotion)
    pub timeline: TimelineId,
    /// LSN / segment size
    pub number: u64,
    /// bytes
    pub segment_size: u32,
    /// bytes of a WAL page
    pub wal_block_size: u32,
    pub system_identifier: SystemIdentifier,
    /// `xlp_magic`: the major version (`Major::from_wal_magic`)
    pub magic: u16,
    /// the timeline that the first page says
    pub first_page_timeline: TimelineId,
    /// the first record that begins here
    pub first_record: Option<Lsn>,
    /// the record before `first_record`, as that one says (`xl_prev`)
    pub first_record_previous: Option<Lsn>,
    /// the start of the last complete record that ends here
    pub last_record: Option<Lsn>,
    /// where the next record may begin after the last complete one; the segment's end after a switch; the
    /// segment's start when no record ends here
    pub end: Lsn,
    /// a switch ends the segment early
    pub switched: bool,
    /// the first page says that the record left unfinished in the segment before is to be dropped
    pub overwrites_tail: bool,
    /// the rest of a record that began in the segment before
    pub head: Seam,
    /// the record that goes on in the next segment
    pub tail: Option<TailSeam>,
    pub verdict: Verdict,
    /// for each resource manager that occurs, by number
    pub statistics: Vec<Statistics>,
    /// in WAL order; times need not rise
    pub transactions: Vec<TransactionEnd>,
    /// in WAL order
    pub events: Vec<Event>,
    /// by locator and fork; the free space map is left out
    pub changed: Vec<ChangedRelation>,
    pub row_changes: Vec<RowChanges>,
}

/// The head of a segment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Seam {
    /// bytes of the record still to come at the start of the segment, without page headers; 0: no such record
    pub length: u32,
    /// the record ends in this segment
    pub ends_here: bool,
    /// its beginning was at hand: it is verified and counted here
    pub resolved: bool,
}

/// The tail of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct TailSeam {
    /// the start of the record; the segment's start when the record began before it
    pub start: Lsn,
    /// `xl_tot_len`; `None` when the record began before this segment: then the bytes to hand on are those of
    /// the segment before followed by all of this one
    pub total_length: Option<u32>,
    /// bytes still to come, without page headers
    pub missing: u32,
}

/// Whether the segment is whole.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Verdict {
    /// Valid to its end, or to a switch.
    Good,
    /// Valid WAL ends early and nothing was written after it: a partial segment, or one still being written.
    Incomplete { at: Lsn },
    /// Valid WAL ends early, and something else follows.
    Damaged { at: Lsn, reason: EndReason },
}

/// Counts as `pg_waldump --stats` makes them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Statistics {
    pub resource_manager: u8,
    pub records: u32,
    /// without page images
    pub record_bytes: u64,
    /// of full page images
    pub fpi_bytes: u64,
}

/// How a transaction ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum TransactionEndKind {
    Commit = 0,
    Abort = 1,
    CommitPrepared = 2,
    AbortPrepared = 3,
}

impl TransactionEndKind {
    /// Its changes are there.
    pub fn is_commit(self) -> bool {
        matches!(
            self,
            TransactionEndKind::Commit | TransactionEndKind::CommitPrepared
        )
    }
}

/// A commit or abort record. A subtransaction that was rolled back has an abort record of its own.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct TransactionEnd {
    pub start: Lsn,
    pub end: Lsn,
    /// of the prepared transaction where it was one
    pub xid: Xid,
    pub time: Timestamp,
    pub kind: TransactionEndKind,
    /// committed or aborted with it
    pub subxids: Vec<Xid>,
}

/// The blocks of one fork of a relation that records of this segment refer to.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ChangedRelation {
    pub locator: RelationLocator,
    pub fork: Fork,
    /// by number
    pub blocks: Vec<ChangedBlock>,
}

/// A changed block; block numbers count from the relation's first segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ChangedBlock {
    pub block: u32,
    /// a full page image that replay restores
    pub image: bool,
    /// a record that makes the page anew
    pub will_init: bool,
}

/// Rows that one transaction changed in one relation, in this segment.
///
/// Listed for a transaction that ends in this segment where deletes and updates are 32 or more together (its
/// subtransactions counted in), and for each transaction that goes on after it, without a limit; then the xid
/// may be a subtransaction's, which the commit record of the top one will list. Rows moved to another
/// partition count as updates. Whether the transaction commits is not said here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct RowChanges {
    pub xid: Xid,
    pub locator: RelationLocator,
    pub inserts: u32,
    pub updates: u32,
    pub deletes: u32,
}

impl SegmentIndex {
    /// The LSN of the segment's first byte.
    pub fn start(&self) -> Lsn {
        Lsn(self.number.saturating_mul(u64::from(self.segment_size)))
    }

    /// The LSN after the segment's last byte.
    pub fn segment_end(&self) -> Lsn {
        self.start().saturating_add(u64::from(self.segment_size))
    }

    /// Whether WAL goes on without a break from `previous` (the segment before) to this one: same cluster,
    /// next number, and the record at the seam is the same one seen from both sides.
    pub fn follows(&self, previous: &SegmentIndex) -> bool {
        let neighbours = self.system_identifier == previous.system_identifier
            && self.segment_size == previous.segment_size
            && self.magic == previous.magic
            && previous.number.checked_add(1) == Some(self.number)
            && previous.verdict == Verdict::Good;
        if !neighbours {
            return false;
        }
        let record_before = match previous.tail {
            Some(_) if self.overwrites_tail => previous.last_record,
            Some(tail) => {
                if self.head.length != tail.missing {
                    return false;
                }
                // Of a record that began even earlier the start is not known here.
                tail.total_length.map(|_| tail.start)
            }
            None if self.head.length != 0 => return false,
            None => previous.last_record,
        };
        match (record_before, self.first_record_previous) {
            (Some(before), Some(said)) => before == said,
            _ => true,
        }
    }

    /// The changes of one fork of a relation.
    pub fn changes_of(&self, locator: &RelationLocator, fork: Fork) -> Option<&ChangedRelation> {
        let place = self
            .changed
            .binary_search_by_key(&(*locator, fork), |changed| (changed.locator, changed.fork));
        place.ok().and_then(|index| self.changed.get(index))
    }
}

impl ChangedRelation {
    /// What is known of one block.
    pub fn block(&self, block: u32) -> Option<&ChangedBlock> {
        let place = self.blocks.binary_search_by_key(&block, |changed| changed.block);
        place.ok().and_then(|index| self.blocks.get(index))
    }
}
