//! The live tail of a running server's WAL: what happened but is not archived yet. Input of the exact RPO.
//!
//! Invariants: only WAL up to the flush LSN that the caller got from the server is looked at, so that nothing half
//! written and nothing left over in a recycled file counts; a transaction counts when its record *ends* after the LSN
//! asked for; what could not be read is said, never passed over.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use diagnostic::{Error, Result};
use postgres::{
    Lsn, SegmentIndex, SegmentIndexer, SystemIdentifier, TimelineId, TransactionEnd, WalFile, segment_name,
    tail_bytes,
};

use crate::previous_tail::previous_tail;

/// What `pg_wal` holds after a given LSN.
#[derive(Debug, Clone, PartialEq)]
pub struct LiveTail {
    pub system: SystemIdentifier,
    pub timeline: TimelineId,
    /// What the caller asked for.
    pub after: Lsn,
    /// Up to where WAL was read: the flush LSN.
    pub end: Lsn,
    /// WAL bytes from `after` to `end`.
    pub bytes: u64,
    /// Commits and aborts whose record ends after `after`, in WAL order.
    pub transactions: Vec<TransactionEnd>,
    /// The indexes they were taken from, in order; the last one covers a segment that is not complete.
    pub segments: Vec<SegmentIndex>,
    /// A record that spans `after` could not be read, because the segment before it is gone: there may be one
    /// transaction more.
    pub seam_unresolved: bool,
}

/// Reads `pg_wal` of `data_directory` from `after` to `flush` (the server's `pg_current_wal_flush_lsn()`) on `timeline`.
///
/// Errors: `live-wal-missing` when a segment in between is not there (removed, or of another timeline), and those of the
/// file system and of the indexer.
pub fn read_live_tail(
    data_directory: &Path,
    timeline: TimelineId,
    after: Lsn,
    flush: Lsn,
) -> Result<LiveTail> {
    read_live_tail_behind(data_directory, timeline, after, flush, || None)
}

/// The same; `before` gives the bytes of the record that goes on in the first segment, up to that segment's start, should
/// the segment before not be in `pg_wal` any more.
pub(crate) fn read_live_tail_behind(
    data_directory: &Path,
    timeline: TimelineId,
    after: Lsn,
    flush: Lsn,
    before: impl FnOnce() -> Option<Vec<u8>>,
) -> Result<LiveTail> {
    let (_, control) = cluster::read_control_file(data_directory)?;
    let size = control.wal_segment_size;
    let pg_wal = data_directory.join("pg_wal");
    let mut tail = LiveTail {
        system: control.system_identifier,
        timeline,
        after,
        end: after.max(flush),
        bytes: flush.checked_sub(after).unwrap_or(0),
        transactions: Vec::new(),
        segments: Vec::new(),
        seam_unresolved: false,
    };
    if flush <= after {
        return Ok(tail);
    }
    let first = after.segment(size);
    let last = Lsn(flush.0 - 1).segment(size);
    let mut carried = previous_tail(&pg_wal, timeline, first, size).or_else(before);
    for number in first..=last {
        let segment = read_segment(&pg_wal, timeline, number, size, flush)?;
        let name = WalFile::Segment { timeline, number };
        let index = SegmentIndexer::index(&segment, &name, carried.as_deref())
            .map_err(|error| error.context(format!("cannot read WAL segment {}", name.name(size))))?;
        if number == first && index.head.length > 0 && !index.head.resolved && seam_matters(&index, after) {
            tail.seam_unresolved = true;
        }
        let ended = index
            .transactions
            .iter()
            .filter(|transaction| transaction.end > after);
        tail.transactions.extend(ended.cloned());
        carried = match index.tail {
            // The record covers the whole segment: its bytes so far go on with this segment's.
            Some(seam) if seam.total_length.is_none() => carried.map(|mut bytes| {
                bytes.extend_from_slice(&segment);
                bytes
            }),
            _ => tail_bytes(&segment, &index).map(<[u8]>::to_vec),
        };
        tail.segments.push(index);
    }
    Ok(tail)
}

/// Whether the record at the head of the segment may end after `after`.
fn seam_matters(index: &SegmentIndex, after: Lsn) -> bool {
    index.first_record.is_none_or(|first| first > after)
}

/// A segment's bytes; what is not flushed yet is zero.
fn read_segment(pg_wal: &Path, timeline: TimelineId, number: u64, size: u32, flush: Lsn) -> Result<Vec<u8>> {
    let path = pg_wal.join(segment_name(timeline, number, size));
    let file = File::open(&path).map_err(|error| {
        if error.kind() == std::io::ErrorKind::NotFound {
            Error::new(
                "live-wal-missing",
                format!(
                    "WAL segment {} is not in pg_wal",
                    segment_name(timeline, number, size)
                ),
            )
            .detail(format!(
                "\"{}\" does not exist. What it held cannot be counted.",
                path.display()
            ))
            .hint("Run `pgproof wal gaps` to see whether a copy has it.")
        } else {
            Error::io(
                "file-read",
                format!("cannot open file \"{}\"", path.display()),
                &error,
            )
        }
    })?;
    let mut bytes = vec![0; size as usize];
    let start = Lsn(number.saturating_mul(u64::from(size)));
    let valid = flush.checked_sub(start).unwrap_or(0).min(u64::from(size)) as usize;
    let flushed = bytes.get_mut(..valid).unwrap_or_default();
    file.read_exact_at(flushed, 0).map_err(|error| {
        Error::io(
            "file-read",
            format!("cannot read file \"{}\"", path.display()),
            &error,
        )
    })?;
    Ok(bytes)
}
