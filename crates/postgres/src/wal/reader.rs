//! Records out of consecutive WAL bytes, each with a verified CRC and a verified link to the record before.
//!
//! The reader is fed; it reads no file. A record inside one page is lent out of the fed bytes, one that
//! crosses pages is put together in a buffer that grows with the bytes fed, never by the length that a
//! record claims. Once valid WAL has ended the reader says so for ever.

use super::page_header::PageHeaderWal;
use super::{EndOfWal, EndReason, RECORD_LENGTH_MAX, SegmentHeader, resource_manager};
use crate::{Lsn, Major, TimelineId, Xid, bytes};

const RECORD_HEADER_LENGTH: usize = 24;

/// A record whose CRC is right.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RawRecord<'a> {
    pub start: Lsn,
    /// where the next record may begin, a multiple of 8; the segment's end for a switch
    pub end: Lsn,
    /// the whole record without page headers; 24 bytes or more
    pub bytes: &'a [u8],
}

impl RawRecord<'_> {
    /// The transaction that wrote the record; 0 for none.
    pub fn xid(&self) -> Xid {
        Xid(bytes::u32_at(self.bytes, 4).unwrap_or_default())
    }

    /// `xl_prev`.
    pub fn prev(&self) -> Lsn {
        Lsn(bytes::u64_at(self.bytes, 8).unwrap_or_default())
    }

    /// `xl_info`.
    pub fn info(&self) -> u8 {
        bytes::u8_at(self.bytes, 16).unwrap_or_default()
    }

    /// `xl_rmid`.
    pub fn resource_manager(&self) -> u8 {
        bytes::u8_at(self.bytes, 17).unwrap_or_default()
    }

    /// `XLOG_SWITCH`: the rest of the segment is empty.
    pub fn is_switch(&self) -> bool {
        self.resource_manager() == resource_manager::XLOG && self.info() & 0xF0 == 0x40
    }
}

/// Reads records from bytes that are fed in order.
#[derive(Debug, Clone)]
pub struct RecordReader {
    major: Major,
    magic: u16,
    segment_size: u32,
    page_size: u32,
    /// no page may say a higher one
    timeline_max: TimelineId,
    /// that of the last page seen
    timeline: TimelineId,
    /// the next byte that is wanted
    position: Lsn,
    previous: Option<Lsn>,
    pending: Option<Pending>,
    buffer: Vec<u8>,
    overwritten: Option<Lsn>,
    ended: Option<EndOfWal>,
    /// a record may be joined in its middle: only before the first record
    may_skip: bool,
}

/// A record of which some bytes are still to come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Pending {
    start: Lsn,
    missing: u32,
    /// its beginning was never fed: its bytes are passed over
    skipped: bool,
}

impl RecordReader {
    /// A reader for the WAL to which `segment` belongs, from `start` on: either the start of a record, or the
    /// first byte of a page (the rest of a record that began before is then passed over). No page may have a
    /// timeline above `timeline`.
    pub fn new(segment: &SegmentHeader, timeline: TimelineId, start: Lsn) -> RecordReader {
        RecordReader {
            major: segment.major,
            magic: segment.magic,
            segment_size: segment.segment_size,
            page_size: segment.block_size,
            timeline_max: timeline,
            timeline: TimelineId(0),
            position: start,
            previous: None,
            pending: None,
            buffer: Vec::new(),
            overwritten: None,
            ended: None,
            may_skip: true,
        }
    }

    /// The next byte that must be fed.
    pub fn position(&self) -> Lsn {
        self.position
    }

    /// The record that has begun and whose end was not fed yet: its start, and how many of its bytes (without
    /// page headers) are missing. A record whose beginning was never fed is not reported.
    pub fn unfinished(&self) -> Option<(Lsn, u32)> {
        self.pending
            .filter(|pending| !pending.skipped)
            .map(|pending| (pending.start, pending.missing))
    }

    /// Bytes still to come of a record whose beginning was never fed.
    pub(crate) fn skipping(&self) -> Option<u32> {
        self.pending
            .filter(|pending| pending.skipped)
            .map(|pending| pending.missing)
    }

    /// Where valid WAL ended, once it has.
    pub fn end_of_wal(&self) -> Option<&EndOfWal> {
        self.ended.as_ref()
    }

    /// From now on pages may have timelines up to this one: WAL went on in a file of another timeline.
    pub fn allow_timeline(&mut self, timeline: TimelineId) {
        self.timeline_max = self.timeline_max.max(timeline);
    }

    /// The start of the last complete record.
    pub fn last_record(&self) -> Option<Lsn> {
        self.previous
    }

    /// The start of the last unfinished record that a page told us to drop.
    pub fn overwritten(&self) -> Option<Lsn> {
        self.overwritten
    }

    /// Takes the next bytes; the first one must be the one at [`RecordReader::position`]. Bytes that could
    /// not be used yet (fewer than a page header at the end) must be fed again: see `position`.
    pub fn feed<'a>(&'a mut self, bytes: &'a [u8]) -> Feed<'a> {
        let base = self.position;
        // No cluster gets near the end of the LSN space; nothing is read there, so that no sum can overflow.
        let room = usize::try_from((u64::MAX - (1 << 31)).saturating_sub(base.0)).unwrap_or(usize::MAX);
        Feed {
            reader: self,
            bytes: bytes.get(..room).unwrap_or(bytes),
            base,
        }
    }

    #[cold]
    fn stop<T>(&mut self, at: Lsn, reason: EndReason) -> Result<T, EndOfWal> {
        let end = EndOfWal { at, reason };
        self.ended = Some(end.clone());
        Err(end)
    }

    /// Judges a page's header; returns its length.
    #[inline(never)]
    fn enter_page(&mut self, header: &PageHeaderWal, at: Lsn) -> Result<usize, EndOfWal> {
        // What a broken continuation spoils is the record, so the end is at the record's start.
        let place = self
            .pending
            .filter(|pending| !pending.skipped)
            .map_or(at, |pending| pending.start);
        if header.magic != self.magic {
            let empty = header.magic == 0 && header.address == Lsn(0);
            let reason = match self.pending {
                Some(pending) if empty => EndReason::Continuation {
                    expected: pending.missing,
                    found: 0,
                },
                None if empty => EndReason::Zeros,
                _ => EndReason::PageMagic {
                    expected: self.magic,
                    found: header.magic,
                },
            };
            return self.stop(place, reason);
        }
        let starts_segment = at.offset_in_segment(self.segment_size) == 0;
        if !header.flags_are_valid() || header.is_long() != starts_segment {
            return self.stop(place, EndReason::PageFlags { found: header.flags });
        }
        if header.address != at {
            return self.stop(
                place,
                EndReason::PageAddress {
                    expected: at,
                    found: header.address,
                },
            );
        }
        if header.timeline > self.timeline_max || header.timeline < self.timeline {
            return self.stop(
                place,
                EndReason::PageTimeline {
                    found: header.timeline,
                },
            );
        }
        self.timeline = header.timeline;

        if header.overwrites() {
            // A crash left the record unfinished; PostgreSQL went on at this page with a record that says so.
            self.overwritten = self.unfinished().map(|(start, _)| start);
            self.pending = None;
            self.buffer.clear();
            if header.continues() {
                return self.stop(at, EndReason::PageFlags { found: header.flags });
            }
            return Ok(header.length());
        }
        let found = if header.continues() {
            header.remaining_length
        } else {
            0
        };
        let expected = self.pending.map_or(0, |pending| pending.missing);
        if expected != found {
            if expected == 0 && self.may_skip {
                self.pending = Some(Pending {
                    start: at,
                    missing: found,
                    skipped: true,
                });
            } else {
                return self.stop(place, EndReason::Continuation { expected, found });
            }
        }
        if header.continues() && (found == 0 || found > RECORD_LENGTH_MAX) {
            return self.stop(place, EndReason::Continuation { expected, found });
        }
        Ok(header.length())
    }

    /// Judges a record's first 24 bytes.
    #[inline(always)]
    fn check_header(&mut self, header: &[u8], start: Lsn) -> Result<(), EndOfWal> {
        let manager = bytes::u8_at(header, 17).unwrap_or_default();
        let custom = manager >= resource_manager::FIRST_CUSTOM && self.major >= Major(15);
        if manager > resource_manager::LAST_BUILT_IN && !custom {
            return self.stop(start, EndReason::ResourceManager { found: manager });
        }
        let found = Lsn(bytes::u64_at(header, 8).unwrap_or_default());
        match self.previous {
            Some(expected) if expected != found => self.stop(start, EndReason::Previous { expected, found }),
            None if found >= start => self.stop(
                start,
                EndReason::Previous {
                    expected: start,
                    found,
                },
            ),
            _ => Ok(()),
        }
    }
}

/// Verifies a complete record.
#[inline(always)]
fn check_crc(record: &[u8]) -> Result<(), EndReason> {
    let (Some(header), Some(body)) = (record.get(..20), record.get(RECORD_HEADER_LENGTH..)) else {
        return Err(EndReason::Length {
            found: record.len() as u32,
        });
    };
    let stored = bytes::u32_at(record, 20).unwrap_or_default();
    let computed = crc32c::crc32c_append(crc32c::crc32c(body), header);
    if stored == computed {
        Ok(())
    } else {
        Err(EndReason::Crc { stored, computed })
    }
}

/// The records in one run of fed bytes.
#[derive(Debug)]
pub struct Feed<'a> {
    reader: &'a mut RecordReader,
    bytes: &'a [u8],
    base: Lsn,
}

/// Where a complete record's bytes are.
enum Found {
    /// offset in the fed bytes, length
    Lent(usize, usize),
    /// in the reader's buffer
    Gathered,
}

impl Feed<'_> {
    /// The next record; `None` when the bytes are used up (a begun record is kept for the next feed).
    #[allow(clippy::should_implement_trait)] // it lends: an Iterator cannot
    #[inline(always)] // measured: lending through memory costs as much as the CRC of a short record
    pub fn next(&mut self) -> Result<Option<RawRecord<'_>>, EndOfWal> {
        if let Some(end) = &self.reader.ended {
            return Err(end.clone());
        }
        match self.find()? {
            None => Ok(None),
            Some((start, end, found)) => {
                let bytes = match found {
                    Found::Lent(offset, length) => self
                        .bytes
                        .get(offset..)
                        .and_then(|b| b.get(..length))
                        .unwrap_or_default(),
                    Found::Gathered => self.reader.buffer.as_slice(),
                };
                Ok(Some(RawRecord { start, end, bytes }))
            }
        }
    }

    /// The reader, between two records.
    pub fn reader(&self) -> &RecordReader {
        self.reader
    }

    #[inline(always)]
    fn find(&mut self) -> Result<Option<(Lsn, Lsn, Found)>, EndOfWal> {
        let page_size = u64::from(self.reader.page_size);
        loop {
            let at = self.reader.position;
            let offset = (at.0 - self.base.0) as usize;
            let rest = self.bytes.get(offset..).unwrap_or_default();
            // Page sizes are powers of two: see SegmentHeader.
            let in_page = at.0 & (page_size - 1);
            if in_page == 0 {
                let Some(header) = PageHeaderWal::parse(rest) else {
                    return Ok(None);
                };
                if rest.len() < header.length() {
                    return Ok(None);
                }
                let length = self.reader.enter_page(&header, at)?;
                self.reader.position = Lsn(at.0 + length as u64);
                continue;
            }
            let page_rest = (page_size - in_page) as usize;
            let rest = rest.get(..page_rest).unwrap_or(rest);
            if let Some(pending) = self.reader.pending {
                if rest.is_empty() {
                    return Ok(None);
                }
                if let Some(found) = self.go_on(pending, rest, at)? {
                    return Ok(Some(found));
                }
                continue;
            }
            // Records begin at multiples of 8, and so do pages: the length is always in one piece.
            if rest.len() < 8 {
                return Ok(None);
            }
            let length = bytes::u32_at(rest, 0).unwrap_or_default();
            if length < RECORD_HEADER_LENGTH as u32 {
                let reason = if length == 0 {
                    EndReason::Zeros
                } else {
                    EndReason::Length { found: length }
                };
                return self.reader.stop(at, reason);
            }
            if length > RECORD_LENGTH_MAX {
                return self.reader.stop(at, EndReason::TooLong { found: length });
            }
            if let Some(header) = rest.get(..RECORD_HEADER_LENGTH) {
                self.reader.check_header(header, at)?;
            }
            if let Some(record) = rest.get(..length as usize) {
                if let Err(reason) = check_crc(record) {
                    return self.reader.stop(at, reason);
                }
                let end = self.finish(at, Lsn(at.0 + u64::from(length)), record);
                return Ok(Some((at, end, Found::Lent(offset, length as usize))));
            }
            self.reader.buffer.clear();
            self.reader.may_skip = false;
            self.reader.pending = Some(Pending {
                start: at,
                missing: length,
                skipped: false,
            });
        }
    }

    /// Takes the part of the pending record that is in `rest` (bytes of one page, from `at` on).
    #[inline(never)]
    fn go_on(
        &mut self,
        pending: Pending,
        rest: &[u8],
        at: Lsn,
    ) -> Result<Option<(Lsn, Lsn, Found)>, EndOfWal> {
        let part = rest.get(..pending.missing as usize).unwrap_or(rest);
        let missing = pending.missing - part.len() as u32;
        let reader = &mut *self.reader;
        reader.position = Lsn(at.0 + part.len() as u64);
        if !pending.skipped {
            let before = reader.buffer.len();
            reader.buffer.extend_from_slice(part);
            if before < RECORD_HEADER_LENGTH && reader.buffer.len() >= RECORD_HEADER_LENGTH {
                let header: [u8; RECORD_HEADER_LENGTH] = bytes::array(&reader.buffer, 0).unwrap_or_default();
                reader.check_header(&header, pending.start)?;
            }
        }
        if missing > 0 {
            reader.pending = Some(Pending { missing, ..pending });
            return Ok(None);
        }
        reader.pending = None;
        if pending.skipped {
            reader.position = reader.position.align8();
            return Ok(None);
        }
        if let Err(reason) = check_crc(&reader.buffer) {
            return reader.stop(pending.start, reason);
        }
        let record = std::mem::take(&mut self.reader.buffer);
        let end = self.finish(pending.start, self.reader.position, &record);
        self.reader.buffer = record;
        Ok(Some((pending.start, end, Found::Gathered)))
    }

    /// Moves on behind a complete record that ends before `end`; returns where the next one may begin.
    #[inline(always)]
    fn finish(&mut self, start: Lsn, end: Lsn, record: &[u8]) -> Lsn {
        let mut end = end.align8();
        if (RawRecord {
            start,
            end,
            bytes: record,
        })
        .is_switch()
        {
            let size = u64::from(self.reader.segment_size);
            end = Lsn(end.0.div_ceil(size).saturating_mul(size));
        }
        self.reader.previous = Some(start);
        self.reader.may_skip = false;
        self.reader.position = end;
        end
    }
}
