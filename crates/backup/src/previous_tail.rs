//! The end of the segment before, so that the record that spans the seam can be indexed.
//!
//! Only the last pages of that segment are read: a page's header says how much of an earlier record is still to come,
//! so that a reader can join in at any page. Invariant: what cannot be had for certain is `None`, never a guess; the
//! seam then stays unresolved, which the index says.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use postgres::{Lsn, RecordReader, SegmentHeader, TimelineId, segment_name};

/// A record is followed back through so many segments, then given up.
const SEGMENTS_MAX: u64 = 4;
/// Timelines below the segment's own that are tried: the first segment of a timeline follows one of its parent's.
const TIMELINES_MAX: u32 = 8;

/// The bytes from the start of the record that goes on in segment `number` to that segment's start; `None` when no
/// record does, or when the segment before is not there, or is not WAL up to its end.
pub(crate) fn previous_tail(
    pg_wal: &Path,
    timeline: TimelineId,
    number: u64,
    wal_segment_size: u32,
) -> Option<Vec<u8>> {
    let mut following = Vec::new();
    let mut timeline = timeline;
    for back in 1..=SEGMENTS_MAX {
        let number = number.checked_sub(back)?;
        let (file, found) = open(pg_wal, timeline, number, wal_segment_size)?;
        timeline = found;
        match tail_of(&file, timeline, number, wal_segment_size)? {
            Tail::Begins(mut bytes) => {
                bytes.append(&mut following);
                return Some(bytes);
            }
            // The record fills this whole segment and began before it.
            Tail::Continues => {
                let mut bytes = vec![0; wal_segment_size as usize];
                file.read_exact_at(&mut bytes, 0).ok()?;
                bytes.append(&mut following);
                following = bytes;
            }
            Tail::Nothing => return None,
        }
    }
    None
}

/// The segment's file under the name of this timeline or of one shortly before it.
fn open(
    pg_wal: &Path,
    timeline: TimelineId,
    number: u64,
    wal_segment_size: u32,
) -> Option<(File, TimelineId)> {
    let oldest = timeline.0.saturating_sub(TIMELINES_MAX).max(1);
    (oldest..=timeline.0).rev().map(TimelineId).find_map(|timeline| {
        let file = File::open(pg_wal.join(segment_name(timeline, number, wal_segment_size))).ok()?;
        (file.metadata().ok()?.len() == u64::from(wal_segment_size)).then_some((file, timeline))
    })
}

enum Tail {
    /// The record that goes on, from its start.
    Begins(Vec<u8>),
    /// The segment is all the middle of one record.
    Continues,
    /// No record goes on.
    Nothing,
}

/// Looks at ever more of the segment's last pages until a record's start is among them.
fn tail_of(file: &File, timeline: TimelineId, number: u64, wal_segment_size: u32) -> Option<Tail> {
    let mut first = [0; 40];
    file.read_exact_at(&mut first, 0).ok()?;
    let header = SegmentHeader::parse(&first).ok()?;
    let start = number.checked_mul(u64::from(wal_segment_size))?;
    if header.page_address != Lsn(start) || header.segment_size != wal_segment_size {
        return None;
    }
    let mut pages: u64 = 1;
    loop {
        let length = (pages * u64::from(header.block_size)).min(u64::from(wal_segment_size));
        let offset = u64::from(wal_segment_size) - length;
        let mut bytes = vec![0; usize::try_from(length).ok()?];
        file.read_exact_at(&mut bytes, offset).ok()?;
        let begin = Lsn(start + offset);
        let mut reader = RecordReader::new(&header, timeline, begin);
        let mut whole_records = false;
        let mut feed = reader.feed(&bytes);
        while feed.next().ok()?.is_some() {
            whole_records = true;
        }
        match reader.unfinished() {
            Some((record, _)) => {
                let at = usize::try_from(record.0.checked_sub(begin.0)?).ok()?;
                return Some(Tail::Begins(bytes.get(at..)?.to_vec()));
            }
            // A record was seen to end here and none to begin: it ends with the segment.
            None if whole_records => return Some(Tail::Nothing),
            None if offset == 0 => return Some(Tail::Continues),
            None => pages *= 4,
        }
    }
}
