//! From the bytes of a segment to its index, in one pass.

use diagnostic::{Error, Result};

use super::changes::{ChangedBlocks, ChangedRows, RowCount};
use super::event::{self, Decoded};
use super::{Event, EventKind, Seam, SegmentIndex, Statistics, TailSeam, Verdict};
use crate::wal::{
    EndOfWal, EndReason, PageHeaderWal, RawRecord, Record, RecordReader, SegmentHeader, resource_manager,
};
use crate::{Fork, Lsn, Major, WalFile, bytes, segment_name};

/// Makes the index of a segment.
#[derive(Debug, Clone, Copy)]
pub struct SegmentIndexer;

impl SegmentIndexer {
    /// Indexes one whole segment (or partial one, of full length), named `name`.
    ///
    /// `previous_tail`: what [`tail_bytes`] gave for the segment before, when it is at hand; then the record
    /// that spans the seam is verified and counted here.
    ///
    /// Error codes: `wal-segment-name` (address or timeline inside contradict the name, or the name is not
    /// of a segment), `wal-segment-size` (not as long as it says), `wal-segment-damaged`,
    /// `wal-segment-version`. A segment whose first page is right but in which valid WAL ends early is no
    /// error: see the verdict.
    pub fn index(segment: &[u8], name: &WalFile, previous_tail: Option<&[u8]>) -> Result<SegmentIndex> {
        let (WalFile::Segment { timeline, number } | WalFile::Partial { timeline, number }) = *name else {
            return Err(Error::new("wal-segment-name", "not the name of a WAL segment"));
        };
        let header = SegmentHeader::parse(segment)?;
        if segment.len() as u64 != u64::from(header.segment_size) {
            return Err(Error::new(
                "wal-segment-size",
                "the WAL segment has not the size that it says",
            )
            .detail(format!(
                "The file has {} bytes; its header says {}.",
                segment.len(),
                header.segment_size
            )));
        }
        if header.number() != number || header.timeline > timeline || header.timeline.0 == 0 {
            let called = segment_name(timeline, number, header.segment_size);
            let inside = segment_name(header.timeline, header.number(), header.segment_size);
            return Err(Error::new(
                "wal-segment-name",
                "the WAL segment's content is not what its name says",
            )
            .detail(format!(
                "The file is called {called}; its first page is of segment {inside}."
            )));
        }
        let mut pass = Pass::new(&header, name);
        let spoiled = match pass.read(segment, previous_tail) {
            Ok(()) => None,
            // The record at the seam is bad: tell so, and index the rest without it.
            Err(end) => {
                pass = Pass::new(&header, name);
                // Without a tail a pass never fails in this way.
                let _ = pass.read(segment, None);
                Some(end)
            }
        };
        let mut index = pass.finish(segment);
        if let Some(EndOfWal { at, reason }) = spoiled {
            let unwritten = matches!(
                reason,
                EndReason::Continuation { .. } | EndReason::PageAddress { .. }
            );
            index.verdict = match index.verdict {
                // The record was not finished, and nothing was written after that: no damage.
                Verdict::Incomplete { .. } if unwritten => Verdict::Incomplete { at },
                _ => Verdict::Damaged { at, reason },
            };
        }
        Ok(index)
    }
}

/// The bytes of the record that goes on in the next segment: raw, page headers included. `None` when the
/// segment ends between two records.
///
/// When `index.tail` has no total length, the record began before this segment: then what must be handed on
/// is the tail that was used here, followed by these bytes.
pub fn tail_bytes<'a>(segment: &'a [u8], index: &SegmentIndex) -> Option<&'a [u8]> {
    let tail = index.tail?;
    let offset = usize::try_from(tail.start.checked_sub(index.start())?).ok()?;
    segment.get(offset..).filter(|bytes| !bytes.is_empty())
}

/// One pass over a segment.
struct Pass {
    header: SegmentHeader,
    index: SegmentIndex,
    /// records and bytes by resource manager
    statistics: Box<[Statistics; 256]>,
    blocks: ChangedBlocks,
    rows: ChangedRows,
    record: Record,
    decoded: Decoded,
    /// the first record that could not be understood although its CRC is right
    malformed: Option<EndOfWal>,
    ended: Option<EndOfWal>,
}

impl Pass {
    fn new(header: &SegmentHeader, name: &WalFile) -> Pass {
        let start = header.page_address;
        Pass {
            header: *header,
            index: SegmentIndex {
                timeline: name.timeline(),
                number: header.number(),
                segment_size: header.segment_size,
                wal_block_size: header.block_size,
                system_identifier: header.system_identifier,
                magic: header.magic,
                first_page_timeline: header.timeline,
                first_record: None,
                first_record_previous: None,
                last_record: None,
                end: start,
                switched: false,
                overwrites_tail: header.overwrites,
                head: Seam {
                    length: header.remaining_length,
                    ends_here: false,
                    resolved: false,
                },
                tail: None,
                verdict: Verdict::Good,
                statistics: Vec::new(),
                transactions: Vec::new(),
                events: Vec::new(),
                changed: Vec::new(),
                row_changes: Vec::new(),
            },
            statistics: Box::new([Statistics::default(); 256]),
            blocks: ChangedBlocks::new(),
            rows: ChangedRows::new(),
            record: Record::empty(),
            decoded: Decoded::default(),
            malformed: None,
            ended: None,
        }
    }

    /// Reads the segment. An error: the record that spans the start of the segment is bad, as far as the tail
    /// that was given can be believed. Other ends of WAL are kept for the verdict.
    fn read(&mut self, segment: &[u8], previous_tail: Option<&[u8]>) -> Result<(), EndOfWal> {
        let start = self.header.page_address;
        let timeline = self.index.timeline;
        let mut reader = RecordReader::new(&self.header, timeline, start);
        let mut handed_on = None;
        if let Some(tail) = previous_tail.filter(|tail| !tail.is_empty() && self.index.head.length > 0)
            && let Some(tail_start) = start.0.checked_sub(tail.len() as u64).map(Lsn)
        {
            let mut joined = RecordReader::new(&self.header, timeline, tail_start);
            // Nothing but the beginning of one record may be in there.
            let complete = joined.feed(tail).next()?.is_some();
            let unfinished = joined.unfinished();
            if !complete && joined.position() == start && unfinished.is_some_and(|(at, _)| at == tail_start) {
                reader = joined;
                handed_on = Some(tail_start);
            } else {
                let reason =
                    EndReason::malformed("the tail of the segment before is not the beginning of one record");
                return Err(EndOfWal {
                    at: tail_start,
                    reason,
                });
            }
        }

        let mut feed = reader.feed(segment);
        loop {
            match feed.next() {
                Ok(Some(raw)) => self.take(&raw),
                Ok(None) => break,
                Err(end) => {
                    if handed_on == Some(end.at) {
                        return Err(end);
                    }
                    self.ended = Some(end);
                    break;
                }
            }
        }

        self.index.head.resolved =
            handed_on.is_some() && self.index.last_record.is_some() || self.index.head.length == 0;
        let skipping = reader.skipping();
        let segment_end = self.index.segment_end();
        // A record of which nothing but passed-over bytes were seen has its end in a later segment.
        self.index.head.ends_here = self.index.head.length > 0
            && skipping.is_none()
            && reader.unfinished().is_none_or(|(at, _)| at >= start)
            && self.ended.as_ref().is_none_or(|end| end.at > start);
        if self.ended.is_none() && reader.position() == segment_end {
            self.index.tail = match (reader.unfinished(), skipping) {
                (Some((at, missing)), _) if at >= start => {
                    let offset = (at.0 - start.0) as usize;
                    Some(TailSeam {
                        start: at,
                        total_length: bytes::u32_at(segment, offset),
                        missing,
                    })
                }
                (Some((_, missing)), _) | (None, Some(missing)) => Some(TailSeam {
                    start,
                    total_length: None,
                    missing,
                }),
                (None, None) => None,
            };
        }
        if let Some(tail) = self.index.tail.filter(|tail| tail.total_length.is_some()) {
            self.note_first_record(tail.start, segment);
        }
        Ok(())
    }

    /// The tail may be the only record that begins in the segment.
    fn note_first_record(&mut self, at: Lsn, segment: &[u8]) {
        if self.index.first_record.is_none() {
            self.index.first_record = Some(at);
            // xl_prev may be on the next page, or in the next segment.
            let offset = (at.0 - self.header.page_address.0) as usize;
            let page_rest = self.header.block_size as usize - offset % self.header.block_size as usize;
            let prev = if page_rest >= 16 {
                bytes::u64_at(segment, offset + 8)
            } else {
                let next_page = segment.get(offset + page_rest..);
                next_page.and_then(|page| bytes::u64_at(page, PageHeaderWal::parse(page)?.length()))
            };
            self.index.first_record_previous = prev.map(Lsn);
        }
    }

    /// Counts one record.
    #[inline(always)]
    fn take(&mut self, raw: &RawRecord<'_>) {
        let index = &mut self.index;
        if raw.start >= self.header.page_address && index.first_record.is_none() {
            index.first_record = Some(raw.start);
            index.first_record_previous = Some(raw.prev());
        }
        index.last_record = Some(raw.start);
        index.end = raw.end;

        let major = self.header.major;
        let manager = raw.resource_manager();
        let statistics = &mut self.statistics[usize::from(manager)];
        statistics.records += 1;
        let first_of_manager = statistics.records == 1;
        if let Err(reason) = self.record.decode_from(raw, major) {
            statistics.record_bytes += raw.bytes.len() as u64;
            self.malformed.get_or_insert(EndOfWal {
                at: raw.start,
                reason,
            });
            return;
        }
        let images = self.record.image_bytes();
        statistics.fpi_bytes += images;
        statistics.record_bytes += (raw.bytes.len() as u64).saturating_sub(images);

        for block in &self.record.blocks {
            if block.fork != Fork::Fsm {
                let image = block.has_image && block.apply_image;
                self.blocks
                    .add(block.locator, block.fork, block.block, image, block.will_init);
            }
        }
        if let Some(top) = self.record.toplevel_xid {
            self.rows.assign(top, &[self.record.xid]);
        }
        if manager == resource_manager::HEAP || manager == resource_manager::HEAP2 {
            self.count_rows(raw);
        }
        if manager >= resource_manager::FIRST_CUSTOM && first_of_manager {
            self.push_event(raw, EventKind::CustomResourceManager(manager));
        }
        if event::matters(manager, raw.info()) {
            self.take_event(raw, major);
        }
    }

    #[inline(never)]
    fn take_event(&mut self, raw: &RawRecord<'_>, major: Major) {
        let mut decoded = std::mem::take(&mut self.decoded);
        if let Err(what) = event::decode(&self.record, raw, major, &mut decoded) {
            self.malformed.get_or_insert(EndOfWal {
                at: raw.start,
                reason: EndReason::malformed(what),
            });
        }
        for kind in decoded.events.drain(..) {
            if kind == EventKind::Switch {
                self.index.switched = true;
            }
            self.push_event(raw, kind);
        }
        if let Some((top, subxids)) = decoded.assignment.take() {
            self.rows.assign(top, &subxids);
        }
        if let Some(end) = decoded.transaction.take() {
            self.rows.end(&end);
            // The storage that a prepared transaction removes is its own doing, not the finisher's.
            for event in self
                .index
                .events
                .iter_mut()
                .rev()
                .take_while(|event| event.lsn == raw.start)
            {
                event.xid = end.xid;
            }
            self.index.transactions.push(end);
        }
        self.decoded = decoded;
    }

    fn push_event(&mut self, raw: &RawRecord<'_>, kind: EventKind) {
        let event = Event {
            lsn: raw.start,
            end: raw.end,
            xid: raw.xid(),
            kind,
        };
        self.index.events.push(event);
    }

    /// Rows of heap records (`heapam_xlog.h`; these operations and fields are the same in 13 to 18).
    #[inline]
    fn count_rows(&mut self, raw: &RawRecord<'_>) {
        const DELETE_IS_SUPER: u8 = 1 << 3;
        const DELETE_IS_PARTITION_MOVE: u8 = 1 << 4;
        let Some(block) = self.record.blocks.first() else {
            return;
        };
        let data = self.record.main_data(raw);
        let mut count = RowCount::default();
        match (self.record.resource_manager, self.record.info & 0x70) {
            (resource_manager::HEAP, 0x00) => count.inserts = 1,
            (resource_manager::HEAP, 0x10) => {
                let flags = bytes::u8_at(data, 7).unwrap_or_default();
                if flags & DELETE_IS_SUPER != 0 {
                    // An insertion that was given up: no row that anybody saw.
                    return;
                }
                if flags & DELETE_IS_PARTITION_MOVE != 0 {
                    count.updates = 1
                } else {
                    count.deletes = 1
                }
            }
            (resource_manager::HEAP, 0x20 | 0x40) => count.updates = 1,
            // XLOG_HEAP2_MULTI_INSERT
            (resource_manager::HEAP2, 0x50) => {
                count.inserts = u32::from(bytes::u16_at(data, 2).unwrap_or_default());
            }
            _ => return,
        }
        self.rows.add(self.record.xid, block.locator, count);
    }

    fn finish(mut self, segment: &[u8]) -> SegmentIndex {
        let numbered = (0u8..=255).zip(self.statistics.iter());
        self.index.statistics = numbered
            .filter(|(_, statistics)| statistics.records > 0)
            .map(|(manager, statistics)| Statistics {
                resource_manager: manager,
                ..*statistics
            })
            .collect();
        self.index.changed = self.blocks.finish();
        self.index.row_changes = self.rows.finish();
        self.index.verdict = match (self.ended, self.malformed) {
            (None, None) => Verdict::Good,
            (Some(end), _) if nothing_follows(segment, &self.header, &end) => {
                Verdict::Incomplete { at: end.at }
            }
            (Some(EndOfWal { at, reason }), None) | (None, Some(EndOfWal { at, reason })) => {
                Verdict::Damaged { at, reason }
            }
            (Some(end), Some(malformed)) => {
                let EndOfWal { at, reason } = if malformed.at < end.at { malformed } else { end };
                Verdict::Damaged { at, reason }
            }
        };
        self.index
    }
}

/// Whether the segment was simply not written any further: after the place where valid WAL ends, the page has
/// nothing but zeros, or a record that was not finished, and no later page claims to belong to this segment
/// (a recycled file still holds pages of an older one).
fn nothing_follows(segment: &[u8], header: &SegmentHeader, end: &EndOfWal) -> bool {
    let page_size = header.block_size as usize;
    let Some(offset) = end
        .at
        .checked_sub(header.page_address)
        .and_then(|o| usize::try_from(o).ok())
    else {
        return false;
    };
    let may_be_unwritten = matches!(
        end.reason,
        EndReason::Zeros
            | EndReason::Continuation { .. }
            | EndReason::PageAddress { .. }
            | EndReason::PageMagic { .. }
    );
    if !may_be_unwritten {
        return false;
    }
    let in_page = offset % page_size;
    let mut page_at = offset - in_page;
    // Bytes of the record that begins at the end of valid WAL and lies in pages to come.
    let mut missing = 0;
    if in_page != 0 {
        let Some(rest) = segment.get(offset..(page_at + page_size).min(segment.len())) else {
            return false;
        };
        page_at += page_size;
        if end.reason != EndReason::Zeros {
            missing = (bytes::u32_at(rest, 0).unwrap_or_default() as usize).saturating_sub(rest.len());
        } else if rest.iter().any(|b| *b != 0) {
            return false;
        }
    }
    while let Some(page) = segment.get(page_at..page_at + page_size) {
        let page_header = PageHeaderWal::parse(page);
        let address = page_header.map_or(Lsn(0), |page| page.address);
        if address == header.page_address.saturating_add(page_at as u64) {
            // A page of this segment: only one that goes on with that record may be there.
            let goes_on = page_header
                .filter(|page| missing > 0 && page.continues() && page.remaining_length as usize == missing);
            let Some(page_header) = goes_on else { return false };
            missing = missing.saturating_sub(page_size - page_header.length());
        } else {
            missing = 0;
            let empty = address == Lsn(0) && page.iter().all(|b| *b == 0);
            if !empty && address >= header.page_address {
                return false;
            }
        }
        page_at += page_size;
    }
    true
}
