//! Rows of `pg_class` as the WAL has them: names of relations that no catalog snapshot knows yet.
//!
//! Invariants: total over any bytes; only what an INSERT into a given file of `pg_class` says is told, from the row in the
//! record or in an uncompressed page image; what cannot be read (a compressed image, a record that spans two segments) is
//! left out, never guessed. Sources: `pg_class.h` (columns up to `relkind` have a fixed width; 18 has one more),
//! `heapam_xlog.h` (`xl_heap_insert`, `xl_heap_header`), `bufpage.h`, `htup_details.h`.

use crate::wal::resource_manager;
use crate::{Fork, Lsn, Major, Oid, Record, RecordReader, SegmentHeader, TimelineId, Xid, bytes};

/// A relation that was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelationRow {
    /// Where the row was inserted; whether that transaction committed is not said here.
    pub lsn: Lsn,
    pub xid: Xid,
    pub database: Oid,
    pub oid: Oid,
    pub name: String,
    pub schema: Oid,
    pub filenode: u32,
    /// `relkind`
    pub kind: char,
    /// `relpersistence`
    pub persistence: char,
}

const NAME_BYTES: usize = 64;

/// Rows that this segment inserts into `pg_class`. `pg_class`: whether a file (database, file number) is one of it.
pub fn relation_rows(
    segment: &[u8],
    timeline: TimelineId,
    pg_class: &dyn Fn(Oid, u32) -> bool,
) -> Vec<RelationRow> {
    let Ok(header) = SegmentHeader::parse(segment) else {
        return Vec::new();
    };
    let mut rows = Vec::new();
    let mut reader = RecordReader::new(&header, timeline, header.page_address);
    let mut feed = reader.feed(segment);
    while let Ok(Some(raw)) = feed.next() {
        if raw.resource_manager() != resource_manager::HEAP || raw.info() & 0x70 != 0 {
            continue;
        }
        let Ok(record) = Record::decode(&raw, header.major) else {
            continue;
        };
        let Some(block) = record.blocks.first() else {
            continue;
        };
        if block.fork != Fork::Main || !pg_class(block.locator.database, block.locator.relation) {
            continue;
        }
        let columns = match block.page(&raw) {
            Some(page) => {
                let offset = bytes::u16_at(record.main_data(&raw), 0).unwrap_or_default();
                columns_in_page(page.as_slice(), offset).map(<[u8]>::to_vec)
            }
            None => columns_in_record(block.data(&raw)).map(<[u8]>::to_vec),
        };
        if let Some(row) = columns.and_then(|columns| {
            let mut row = read_columns(&columns, header.major)?;
            row.lsn = raw.start;
            row.xid = raw.xid();
            row.database = block.locator.database;
            Some(row)
        }) {
            rows.push(row);
        }
    }
    rows
}

/// The row behind `xl_heap_header`, whose last byte says where the columns begin in the whole tuple.
fn columns_in_record(data: &[u8]) -> Option<&[u8]> {
    const HEADER: usize = 5;
    const TUPLE_HEADER: usize = 23;
    let columns_offset = usize::from(bytes::u8_at(data, 4)?);
    data.get(HEADER + columns_offset.checked_sub(TUPLE_HEADER)?..)
}

/// The row with this offset number (from 1) on a page.
fn columns_in_page(page: &[u8], offset: u16) -> Option<&[u8]> {
    let pointer = 24 + usize::from(offset.checked_sub(1)?) * 4;
    let tuple = (bytes::u32_at(page, pointer)? & 0x7FFF) as usize;
    let columns = usize::from(bytes::u8_at(page, tuple + 22)?);
    page.get(tuple + columns..)
}

fn read_columns(columns: &[u8], major: Major) -> Option<RelationRow> {
    let name = columns.get(4..4 + NAME_BYTES)?;
    let end = name.iter().position(|byte| *byte == 0)?;
    // 18 put relallfrozen before reltoastrelid.
    let flags = if major >= Major(18) { 116 } else { 112 };
    let letter = |at: usize| {
        bytes::u8_at(columns, at)
            .filter(u8::is_ascii_alphabetic)
            .map(char::from)
    };
    Some(RelationRow {
        lsn: Lsn(0),
        xid: Xid(0),
        database: 0,
        oid: bytes::u32_at(columns, 0)?,
        name: String::from_utf8_lossy(name.get(..end)?).into_owned(),
        schema: bytes::u32_at(columns, 68)?,
        filenode: bytes::u32_at(columns, 88)?,
        kind: letter(flags + 3)?,
        persistence: letter(flags + 2)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_read_from_a_record_and_from_a_page() {
        let mut columns = vec![0; 120];
        columns[..4].copy_from_slice(&16_400_u32.to_le_bytes());
        columns[4..10].copy_from_slice(b"orders");
        columns[68..72].copy_from_slice(&2200_u32.to_le_bytes());
        columns[88..92].copy_from_slice(&16_401_u32.to_le_bytes());
        columns[114..116].copy_from_slice(b"pr");
        // A null bitmap of five bytes and padding: the columns begin at 32.
        let mut data = vec![0, 0, 0, 0, 32];
        data.extend([0xFF; 9]);
        data.extend(&columns);
        let row = read_columns(columns_in_record(&data).unwrap(), Major(15)).unwrap();
        assert_eq!(
            (row.name.as_str(), row.oid, row.filenode),
            ("orders", 16_400, 16_401)
        );
        assert_eq!((row.kind, row.persistence, row.schema), ('r', 'p', 2200));
        assert_eq!(read_columns(&columns, Major(18)), None);
        let mut page = vec![0; 8192];
        page[28..32].copy_from_slice(&(8000_u32 | 152 << 17 | 1 << 15).to_le_bytes());
        page[8022] = 32;
        page[8032..8152].copy_from_slice(&columns);
        assert_eq!(
            read_columns(columns_in_page(&page, 2).unwrap(), Major(15)).unwrap(),
            row
        );
        assert_eq!(columns_in_page(&page, 0), None);
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_read_or_left_out(data in proptest::collection::vec(0u8.., 0..300), offset in 0u16..) {
            let _ = columns_in_record(&data).and_then(|columns| read_columns(columns, Major(18)));
            let _ = columns_in_page(&data, offset).and_then(|columns| read_columns(columns, Major(13)));
            let _ = relation_rows(&data, TimelineId(1), &|_, _| true);
        }
    }
}
