//! Headers of WAL pages: 24 bytes, and 40 on the first page of a segment (`xlog_internal.h`).

use diagnostic::{Error, Result};
use serde::{Deserialize, Serialize};

use crate::{Lsn, Major, SystemIdentifier, TimelineId, bytes, valid_segment_size};

/// `XLP_FIRST_IS_CONTRECORD`: the page begins inside a record
const CONTINUES: u16 = 0x0001;
/// `XLP_LONG_HEADER`
const LONG: u16 = 0x0002;
/// `XLP_FIRST_IS_OVERWRITE_CONTRECORD`: the record that should go on here was given up after a crash
const OVERWRITES: u16 = 0x0008;
const ALL_FLAGS: u16 = 0x000F;

/// `XLogPageHeaderData`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PageHeaderWal {
    pub magic: u16,
    pub flags: u16,
    pub timeline: TimelineId,
    pub address: Lsn,
    /// bytes of the record begun before that are still to come, this page's included
    pub remaining_length: u32,
}

impl PageHeaderWal {
    /// Reads the header; `None` when `page` has fewer than 24 bytes.
    #[inline]
    pub fn parse(page: &[u8]) -> Option<PageHeaderWal> {
        let header: [u8; 24] = bytes::array(page, 0)?;
        Some(PageHeaderWal {
            magic: bytes::u16_at(&header, 0)?,
            flags: bytes::u16_at(&header, 2)?,
            timeline: TimelineId(bytes::u32_at(&header, 4)?),
            address: Lsn(bytes::u64_at(&header, 8)?),
            remaining_length: bytes::u32_at(&header, 16)?,
        })
    }

    /// The header's length in bytes.
    pub fn length(&self) -> usize {
        if self.is_long() { 40 } else { 24 }
    }

    /// This is the first page of a segment.
    pub fn is_long(&self) -> bool {
        self.flags & LONG != 0
    }

    /// The page begins inside a record.
    pub fn continues(&self) -> bool {
        self.flags & CONTINUES != 0
    }

    /// The record begun before is to be dropped.
    pub fn overwrites(&self) -> bool {
        self.flags & OVERWRITES != 0
    }

    pub(crate) fn flags_are_valid(&self) -> bool {
        self.flags & !ALL_FLAGS == 0
    }
}

/// The header of a segment's first page (`XLogLongPageHeaderData`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SegmentHeader {
    pub magic: u16,
    pub major: Major,
    pub timeline: TimelineId,
    /// the LSN of the segment's first byte
    pub page_address: Lsn,
    pub system_identifier: SystemIdentifier,
    /// bytes
    pub segment_size: u32,
    /// bytes of a WAL page
    pub block_size: u32,
    /// bytes of a record from the segment before that are still to come
    pub remaining_length: u32,
    /// the record that the segment before left unfinished is to be dropped
    pub overwrites: bool,
}

impl SegmentHeader {
    /// Reads the first bytes (40 or more) of a segment. Error codes: `wal-segment-damaged`,
    /// `wal-segment-version` (a magic we do not know).
    pub fn parse(segment: &[u8]) -> Result<SegmentHeader> {
        let damaged = |what: String| {
            Error::new("wal-segment-damaged", "the WAL segment's first page is damaged").detail(what)
        };
        let short = || damaged(format!("It has {} bytes only.", segment.len()));
        let first = PageHeaderWal::parse(segment).ok_or_else(short)?;
        let major = Major::from_wal_magic(first.magic).ok_or_else(|| {
            if segment.iter().take(24).all(|b| *b == 0) {
                return damaged("It begins with zeros: nothing was written to it.".into());
            }
            Error::new(
                "wal-segment-version",
                format!("WAL page magic {:04X} is not known", first.magic),
            )
            .hint("pgproof supports released versions of PostgreSQL 13 to 18 on little-endian machines.")
        })?;
        if !first.is_long() || !first.flags_are_valid() {
            return Err(damaged(format!("Its flags are {:04X}.", first.flags)));
        }
        let system_identifier = bytes::u64_at(segment, 24).ok_or_else(short)?;
        let segment_size = bytes::u32_at(segment, 32).ok_or_else(short)?;
        let block_size = bytes::u32_at(segment, 36).ok_or_else(short)?;
        if !valid_segment_size(segment_size) {
            return Err(damaged(format!("Its segment size is {segment_size}.")));
        }
        if !block_size.is_power_of_two() || !(1024..=65536).contains(&block_size) {
            return Err(damaged(format!("Its page size is {block_size}.")));
        }
        if first.address.offset_in_segment(segment_size) != 0 {
            return Err(damaged(format!(
                "Its address {} does not begin a segment.",
                first.address
            )));
        }
        Ok(SegmentHeader {
            magic: first.magic,
            major,
            timeline: first.timeline,
            page_address: first.address,
            system_identifier: SystemIdentifier(system_identifier),
            segment_size,
            block_size,
            remaining_length: if first.continues() {
                first.remaining_length
            } else {
                0
            },
            overwrites: first.overwrites(),
        })
    }

    /// The number of the segment.
    pub fn number(&self) -> u64 {
        self.page_address.segment(self.segment_size)
    }
}
