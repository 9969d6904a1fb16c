//! One WAL record taken apart: header, block references, main data (`xlogrecord.h`, `DecodeXLogRecord`).
//!
//! Invariants: every range lies inside the record's bytes; the lengths in the headers add up to the record's
//! length exactly, as PostgreSQL demands.

use serde::{Deserialize, Serialize};

use super::EndReason;
use super::reader::RawRecord;
use crate::{BLOCK_SIZE, Fork, Lsn, Major, RelationLocator, Xid, bytes};

const HEADER_LENGTH: usize = 24;

const ID_DATA_SHORT: u8 = 255;
const ID_DATA_LONG: u8 = 254;
const ID_ORIGIN: u8 = 253;
const ID_TOPLEVEL_XID: u8 = 252;
const BLOCK_ID_MAX: u8 = 32;

const FORK_MASK: u8 = 0x0F;
const HAS_IMAGE: u8 = 0x10;
const HAS_DATA: u8 = 0x20;
const WILL_INIT: u8 = 0x40;
const SAME_RELATION: u8 = 0x80;

const IMAGE_HAS_HOLE: u8 = 0x01;

/// A record; offsets count bytes from the record's first byte.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Record {
    pub start: Lsn,
    /// where the next record may begin; the segment's end for a switch
    pub end: Lsn,
    pub xid: Xid,
    pub resource_manager: u8,
    /// upper four bits: the resource manager's; lower four: flags
    pub info: u8,
    pub prev: Lsn,
    pub total_length: u32,
    pub blocks: Vec<BlockReference>,
    pub main_data_offset: u32,
    pub main_data_length: u32,
    /// the top transaction, where the record is the first of a subtransaction (`wal_level=logical`, 14+)
    pub toplevel_xid: Option<Xid>,
    pub origin: Option<u16>,
}

/// A block that a record changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct BlockReference {
    pub id: u8,
    pub locator: RelationLocator,
    pub fork: Fork,
    pub block: u32,
    pub has_image: bool,
    /// the image is restored by replay (an image for `wal_consistency_checking` only is not)
    pub apply_image: bool,
    /// replay makes the page anew
    pub will_init: bool,
    pub has_data: bool,
    pub image_offset: u32,
    /// bytes in the record
    pub image_length: u16,
    pub image_is_compressed: bool,
    /// the part of the page that was left out of an image
    pub hole_offset: u16,
    pub hole_length: u16,
    pub data_offset: u32,
    pub data_length: u16,
}

impl Record {
    /// Takes a record apart. `Malformed` when the headers do not add up.
    pub fn decode(raw: &RawRecord<'_>, major: Major) -> Result<Record, EndReason> {
        let mut record = Record::empty();
        record.decode_from(raw, major)?;
        Ok(record)
    }

    /// A record to decode into, so that its list of blocks is used again.
    pub(crate) fn empty() -> Record {
        Record {
            start: Lsn(0),
            end: Lsn(0),
            xid: Xid(0),
            resource_manager: 0,
            info: 0,
            prev: Lsn(0),
            total_length: 0,
            blocks: Vec::new(),
            main_data_offset: 0,
            main_data_length: 0,
            toplevel_xid: None,
            origin: None,
        }
    }

    /// The record's main data.
    pub fn main_data<'a>(&self, raw: &RawRecord<'a>) -> &'a [u8] {
        slice(raw.bytes, self.main_data_offset, self.main_data_length)
    }

    /// The sum of the lengths of all page images, bytes.
    pub fn image_bytes(&self) -> u64 {
        self.blocks
            .iter()
            .filter(|block| block.has_image)
            .map(|block| u64::from(block.image_length))
            .sum()
    }

    pub(crate) fn decode_from(&mut self, raw: &RawRecord<'_>, major: Major) -> Result<(), EndReason> {
        self.start = raw.start;
        self.end = raw.end;
        self.xid = raw.xid();
        self.resource_manager = raw.resource_manager();
        self.info = raw.info();
        self.prev = raw.prev();
        self.total_length = raw.bytes.len() as u32;
        self.blocks.clear();
        self.main_data_offset = 0;
        self.main_data_length = 0;
        self.toplevel_xid = None;
        self.origin = None;
        self.decode_body(raw.bytes, major).map_err(EndReason::malformed)
    }

    fn decode_body(&mut self, record: &[u8], major: Major) -> Result<(), &'static str> {
        const SHORT: &str = "a header runs past the end";
        let mut cursor = HEADER_LENGTH;
        // Bytes of images and data that the headers read so far have announced.
        let mut announced = 0usize;
        let mut main_length = 0usize;
        let mut last_id = None;
        let mut locator = None;
        while record.len().saturating_sub(cursor) > announced {
            let id = bytes::u8_at(record, cursor).ok_or(SHORT)?;
            match id {
                ID_DATA_SHORT => {
                    main_length = usize::from(bytes::u8_at(record, cursor + 1).ok_or(SHORT)?);
                    cursor += 2;
                    announced += main_length;
                    // By convention the main data's header is the last one.
                    break;
                }
                ID_DATA_LONG => {
                    main_length = bytes::u32_at(record, cursor + 1).ok_or(SHORT)? as usize;
                    cursor += 5;
                    announced = announced.checked_add(main_length).ok_or(SHORT)?;
                    break;
                }
                ID_ORIGIN => {
                    self.origin = Some(bytes::u16_at(record, cursor + 1).ok_or(SHORT)?);
                    cursor += 3;
                }
                ID_TOPLEVEL_XID if major >= Major(14) => {
                    self.toplevel_xid = Some(Xid(bytes::u32_at(record, cursor + 1).ok_or(SHORT)?));
                    cursor += 5;
                }
                id if id <= BLOCK_ID_MAX => {
                    if last_id.is_some_and(|last| id <= last) {
                        return Err("block references are out of order");
                    }
                    last_id = Some(id);
                    cursor = self.decode_block(record, cursor, id, major, &mut locator)?;
                    if let Some(block) = self.blocks.last() {
                        announced += usize::from(block.image_length) + usize::from(block.data_length);
                    }
                }
                _ => return Err("invalid block reference number"),
            }
        }
        if record.len().checked_sub(cursor) != Some(announced) {
            return Err("the lengths of its parts do not add up");
        }
        // The payload: for each block its image, then its data; the main data last.
        let mut offset = cursor as u32;
        for block in &mut self.blocks {
            block.image_offset = offset;
            offset += u32::from(block.image_length);
            block.data_offset = offset;
            offset += u32::from(block.data_length);
        }
        self.main_data_offset = offset;
        self.main_data_length = main_length as u32;
        Ok(())
    }

    /// Reads one block's header at `cursor`; returns where the next header begins.
    #[inline]
    fn decode_block(
        &mut self,
        record: &[u8],
        mut cursor: usize,
        id: u8,
        major: Major,
        last_locator: &mut Option<RelationLocator>,
    ) -> Result<usize, &'static str> {
        const SHORT: &str = "a block reference runs past the end";
        let flags = bytes::u8_at(record, cursor + 1).ok_or(SHORT)?;
        let data_length = bytes::u16_at(record, cursor + 2).ok_or(SHORT)?;
        cursor += 4;
        let fork = Fork::from_number(u32::from(flags & FORK_MASK)).ok_or("invalid fork")?;
        let has_data = flags & HAS_DATA != 0;
        if has_data != (data_length != 0) {
            return Err("a block's data length contradicts its flags");
        }
        let has_image = flags & HAS_IMAGE != 0;
        let mut image = Image::default();
        if has_image {
            let length = bytes::u16_at(record, cursor).ok_or(SHORT)?;
            let hole_offset = bytes::u16_at(record, cursor + 2).ok_or(SHORT)?;
            let info = bytes::u8_at(record, cursor + 4).ok_or(SHORT)?;
            cursor += 5;
            // 15 moved APPLY to make room for more methods of compression.
            let (apply, compressed) = if major >= Major(15) {
                (info & 0x02, info & 0x1C)
            } else {
                (info & 0x04, info & 0x02)
            };
            image = Image {
                length,
                apply: apply != 0,
                compressed: compressed != 0,
                hole_offset,
                hole_length: 0,
            };
            if image.compressed {
                if info & IMAGE_HAS_HOLE != 0 {
                    image.hole_length = bytes::u16_at(record, cursor).ok_or(SHORT)?;
                    cursor += 2;
                }
            } else {
                image.hole_length = (BLOCK_SIZE as u16)
                    .checked_sub(length)
                    .ok_or("an image above a page's size")?;
            }
            if usize::from(image.hole_offset) + usize::from(image.hole_length) > BLOCK_SIZE {
                return Err("an image's hole runs past the page");
            }
        }
        let locator = if flags & SAME_RELATION != 0 {
            last_locator.ok_or("the same relation as before, but there is none before")?
        } else {
            let found = RelationLocator {
                tablespace: bytes::u32_at(record, cursor).ok_or(SHORT)?,
                database: bytes::u32_at(record, cursor + 4).ok_or(SHORT)?,
                relation: bytes::u32_at(record, cursor + 8).ok_or(SHORT)?,
            };
            cursor += 12;
            *last_locator = Some(found);
            found
        };
        let block = bytes::u32_at(record, cursor).ok_or(SHORT)?;
        self.blocks.push(BlockReference {
            id,
            locator,
            fork,
            block,
            has_image,
            apply_image: image.apply,
            will_init: flags & WILL_INIT != 0,
            has_data,
            image_offset: 0,
            image_length: image.length,
            image_is_compressed: image.compressed,
            hole_offset: image.hole_offset,
            hole_length: image.hole_length,
            data_offset: 0,
            data_length,
        });
        Ok(cursor + 4)
    }
}

#[derive(Default)]
struct Image {
    length: u16,
    apply: bool,
    compressed: bool,
    hole_offset: u16,
    hole_length: u16,
}

impl BlockReference {
    /// The block's data in the record.
    pub fn data<'a>(&self, raw: &RawRecord<'a>) -> &'a [u8] {
        slice(raw.bytes, self.data_offset, u32::from(self.data_length))
    }

    /// The bytes of the page image as they stand in the record: without the hole, perhaps compressed.
    pub fn image<'a>(&self, raw: &RawRecord<'a>) -> &'a [u8] {
        slice(raw.bytes, self.image_offset, u32::from(self.image_length))
    }

    /// The whole page of an image that is not compressed.
    pub fn page(&self, raw: &RawRecord<'_>) -> Option<Box<[u8; BLOCK_SIZE]>> {
        if !self.has_image || self.image_is_compressed {
            return None;
        }
        let image = self.image(raw);
        let (before, after) = image.split_at_checked(usize::from(self.hole_offset))?;
        let mut page = Box::new([0u8; BLOCK_SIZE]);
        page.get_mut(..before.len())?.copy_from_slice(before);
        let after_start = usize::from(self.hole_offset) + usize::from(self.hole_length);
        let rest = page.get_mut(after_start..)?;
        if rest.len() != after.len() {
            return None;
        }
        rest.copy_from_slice(after);
        Some(page)
    }
}

fn slice(bytes: &[u8], offset: u32, length: u32) -> &[u8] {
    bytes
        .get(offset as usize..)
        .and_then(|rest| rest.get(..length as usize))
        .unwrap_or_default()
}
