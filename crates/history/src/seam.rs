//! The record that spans two segments: about one in each segment, and it may be a commit.
//!
//! It is resolved when a segment is archived, if the one before still lay beside it. Otherwise its bytes are
//! put together here from both objects. Invariant: a seam that cannot be resolved stays marked; it is never
//! taken for "nothing there".

use std::io::Write;

use diagnostic::Result;
use postgres::{Lsn, SegmentIndex, SegmentIndexer, TimelineId, WalFile};

use crate::source::WalSource;

/// A segment of more bytes is not read again for the sake of one record.
const SEGMENT_BYTES_MAX: u32 = 64 << 20;
/// A record may span several segments; more are not put together.
const SEGMENTS_MAX: u64 = 4;

/// Where the record began that ends in this segment and could not be read; its place is known only to the
/// segment.
pub(crate) fn unresolved(index: &SegmentIndex) -> Option<Lsn> {
    (index.head.length > 0 && index.head.ends_here && !index.head.resolved && !index.overwrites_tail)
        .then(|| index.start())
}

/// The index with its head resolved, if that was needed and possible. `before` tells the timeline whose file
/// of a segment lies on the way.
pub(crate) fn resolved(
    source: &dyn WalSource,
    index: SegmentIndex,
    before: &dyn Fn(u64) -> Option<TimelineId>,
) -> SegmentIndex {
    if unresolved(&index).is_none() || index.segment_size > SEGMENT_BYTES_MAX {
        return index;
    }
    // A key that may not read rows, a copy that went away, damage: in each case the seam stays what it is.
    match put_together(source, &index, before) {
        Ok(Some(resolved)) if resolved.head.resolved => resolved,
        _ => index,
    }
}

fn put_together(
    source: &dyn WalSource,
    index: &SegmentIndex,
    before: &dyn Fn(u64) -> Option<TimelineId>,
) -> Result<Option<SegmentIndex>> {
    let mut pieces: Vec<Vec<u8>> = Vec::new();
    for back in 1..=SEGMENTS_MAX {
        let Some(number) = index.number.checked_sub(back) else {
            return Ok(None);
        };
        let Some(timeline) = before(number) else {
            return Ok(None);
        };
        let Some(earlier) = source.index(timeline, number)? else {
            return Ok(None);
        };
        let Some(tail) = earlier.tail else { return Ok(None) };
        let Some(skip) = tail.start.checked_sub(earlier.start()) else {
            return Ok(None);
        };
        let mut end = Tail {
            skip,
            kept: Vec::new(),
        };
        if !source.read(timeline, number, &mut end)? {
            return Ok(None);
        }
        pieces.push(end.kept);
        if tail.total_length.is_some() {
            pieces.reverse();
            let mut bytes = Vec::with_capacity(index.segment_size as usize);
            if !source.read(index.timeline, index.number, &mut bytes)? {
                return Ok(None);
            }
            let name = WalFile::Segment {
                timeline: index.timeline,
                number: index.number,
            };
            return SegmentIndexer::index(&bytes, &name, Some(&pieces.concat())).map(Some);
        }
    }
    Ok(None)
}

/// Keeps what is written behind the first `skip` bytes.
struct Tail {
    skip: u64,
    kept: Vec<u8>,
}

impl Write for Tail {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let skipped = self.skip.min(bytes.len() as u64);
        self.skip -= skipped;
        // `skipped` is at most the length.
        self.kept
            .extend_from_slice(bytes.get(skipped as usize..).unwrap_or_default());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
