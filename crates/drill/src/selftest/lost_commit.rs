//! A commit that never happened: its record in archived WAL is made one of an abort, under a CRC that is right.
//!
//! No check of form sees it: WAL, index and page checksums are whole, and recovery ends where it should; only what the
//! transaction wrote is missing. Formats: `xlogrecord.h`, `xact.h` (`XLOG_XACT_COMMIT`, `XLOG_XACT_ABORT`), `xlog_internal.h`.

use diagnostic::{Error, Result};
use postgres::{Lsn, SegmentIndexer, TransactionEnd, TransactionEndKind, WalFile, Xid, tail_bytes};

use super::artifacts::ArtifactClone;

/// `SizeOfXLogRecord`, and where `xl_info` and `xl_crc` stand in it.
const HEADER_BYTES: usize = 24;
const INFO: usize = 16;
const CRC: usize = 20;
/// `XLOG_XACT_OPMASK`, and the kind of record that an abort is.
const OPERATION: u8 = 0x70;
const ABORT: u8 = 0x20;
/// `SizeOfXLogShortPHD`: the pages of a segment but its first begin with so much.
const PAGE_HEADER_BYTES: u64 = 24;

/// Segments before the place that are searched.
const SEGMENTS_BACK: u64 = 8;

/// Lets the transaction abort in the clone that production has committed shortly before `before`. Errors:
/// `fault-not-planted`, and those of reading.
pub(super) fn lose(clone: &ArtifactClone, xid: Xid, before: Lsn) -> Result<String> {
    let size = clone.segment_size;
    let newest = before.segment(size);
    for number in (newest.saturating_sub(SEGMENTS_BACK)..=newest).rev() {
        let Some(object) = clone.segment(number)? else {
            break;
        };
        let index = clone.repository.read_index(&object)?;
        let found = index
            .transactions
            .iter()
            .find(|end| end.xid == xid && end.kind == TransactionEndKind::Commit);
        let Some(end) = found else { continue };
        let mut bytes = read(clone, number)?;
        let block = u64::from(index.wal_block_size);
        make_an_abort(&mut bytes, end, index.start(), block)?;
        let name = WalFile::Segment {
            timeline: clone.timeline,
            number,
        };
        let tail = previous_tail(clone, number)?;
        let anew = SegmentIndexer::index(&bytes, &name, tail.as_deref())?;
        clone.store.hide(&object.object)?;
        clone.repository.put_segment(clone.system, &name, &bytes, &anew)?;
        return Ok(format!("the commit record at {} says that it aborted", end.start));
    }
    Err(Error::new(
        "fault-not-planted",
        "the commit of the drill's own marker is not in the archived WAL before the point",
    ))
}

fn read(clone: &ArtifactClone, number: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(clone.segment_size as usize);
    if let Some(object) = clone.segment(number)? {
        clone.repository.read_segment(&object, &mut bytes)?;
    }
    Ok(bytes)
}

/// What the segment before leaves unfinished.
fn previous_tail(clone: &ArtifactClone, number: u64) -> Result<Option<Vec<u8>>> {
    let Some(previous) = number.checked_sub(1) else {
        return Ok(None);
    };
    let Some(object) = clone.segment(previous)? else {
        return Ok(None);
    };
    let index = clone.repository.read_index(&object)?;
    let bytes = read(clone, previous)?;
    Ok(tail_bytes(&bytes, &index).map(<[u8]>::to_vec))
}

/// Changes the record in a segment that begins at `start`, whatever pages it crosses.
fn make_an_abort(segment: &mut [u8], end: &TransactionEnd, start: Lsn, page: u64) -> Result<()> {
    let other = || {
        Error::new(
            "fault-not-planted",
            "the commit record is not what its index says",
        )
    };
    let first = end.start.0.checked_sub(start.0).ok_or_else(other)?;
    let length = segment
        .get(first as usize..first as usize + 4)
        .and_then(|bytes| bytes.try_into().ok())
        .map(u32::from_le_bytes)
        .ok_or_else(other)?;
    let places = places(first, u64::from(length), page);
    let mut record: Vec<u8> = places
        .iter()
        .map(|place| segment.get(*place as usize).copied())
        .collect::<Option<_>>()
        .ok_or_else(other)?;
    let [.., b20, b21, b22, b23] = record.get(..HEADER_BYTES).ok_or_else(other)? else {
        return Err(other());
    };
    if u32::from_le_bytes([*b20, *b21, *b22, *b23]) != crc(&record) {
        return Err(other());
    }
    let info = record.get_mut(INFO).ok_or_else(other)?;
    *info = *info & !OPERATION | ABORT;
    let crc = crc(&record).to_le_bytes();
    record
        .get_mut(CRC..HEADER_BYTES)
        .ok_or_else(other)?
        .copy_from_slice(&crc);
    for (place, byte) in places.iter().zip(record) {
        if let Some(there) = segment.get_mut(*place as usize) {
            *there = byte;
        }
    }
    Ok(())
}

/// The offsets of a record's bytes: page headers lie between them.
fn places(first: u64, length: u64, page: u64) -> Vec<u64> {
    let mut places = Vec::new();
    let mut at = first;
    for _ in 0..length {
        if at.is_multiple_of(page) {
            at += PAGE_HEADER_BYTES;
        }
        places.push(at);
        at += 1;
    }
    places
}

/// The CRC covers what follows the header, then the header up to it.
fn crc(record: &[u8]) -> u32 {
    let (header, body) = record.split_at(HEADER_BYTES.min(record.len()));
    crc32c::crc32c_append(crc32c::crc32c(body), header.get(..CRC).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use postgres::Timestamp;

    #[test]
    fn a_commit_becomes_an_abort_also_where_it_crosses_a_page() {
        let (page, start) = (8192_u64, Lsn(0x100_0000));
        for first in [8192_u64 + 24, 2 * 8192 - 8, 2 * 8192 - 16] {
            let mut record = vec![7_u8; 34];
            record[..4].copy_from_slice(&34_u32.to_le_bytes());
            record[INFO] = 0x80;
            let sum = crc(&record);
            record[CRC..HEADER_BYTES].copy_from_slice(&sum.to_le_bytes());
            let mut segment = vec![0xAA_u8; 4 * 8192];
            let places = places(first, 34, page);
            for (place, byte) in places.iter().zip(&record) {
                segment[*place as usize] = *byte;
            }
            let end = TransactionEnd {
                start: Lsn(start.0 + first),
                end: Lsn(start.0 + first + 40),
                xid: Xid(7),
                time: Timestamp(0),
                kind: TransactionEndKind::Commit,
                subxids: vec![],
            };
            let before = segment.clone();
            make_an_abort(&mut segment, &end, start, page).expect("changes it");
            let changed: Vec<u8> = places.iter().map(|place| segment[*place as usize]).collect();
            assert_eq!(changed[INFO], 0x80 | ABORT);
            assert_eq!(changed[CRC..HEADER_BYTES], crc(&changed).to_le_bytes());
            let others = (0..segment.len() as u64).filter(|at| !places.contains(at));
            for at in others {
                assert_eq!(segment[at as usize], before[at as usize], "byte {at}");
            }
            segment[places[8] as usize] ^= 1;
            let error = make_an_abort(&mut segment, &end, start, page).expect_err("a wrong CRC");
            assert_eq!(error.code(), "fault-not-planted");
        }
    }
}
