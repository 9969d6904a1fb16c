//! Faults that are planted into a copy, so that a drill has something to find (the drill of the drill).
//!
//! Invariant: only files below the copy's own data directory are touched, and only while no server runs on
//! it.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Component, Path};
use std::time::Duration;

use cluster::{ConnectOptions, Session};
use diagnostic::{Error, Result};
use postgres::{BLOCK_SIZE, Lsn, page_checksum, page_lsn};

/// Where a tuple's flags say that its inserter committed and that nobody deleted it.
const XMIN_COMMITTED: u16 = 0x0100;
const XMAX_INVALID: u16 = 0x0800;
const HAS_EXTERNAL: u16 = 0x0004;
/// Longer tuples may hold compressed values, whose change would be an error instead of another value.
const TUPLE_BYTES_MAX: usize = 500;
/// Blocks searched in one table.
const BLOCKS_MAX: u64 = 4096;

/// A table whose last column can take another value without becoming unreadable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Relative to the data directory.
    path: String,
    /// `database.schema.table`.
    pub name: String,
}

/// Tables in which a changed last byte gives another value, the best first.
pub fn candidates(conninfo: &str, database: &str) -> Result<Vec<Candidate>> {
    let options = ConnectOptions {
        database: Some(database.into()),
        statement_timeout: Duration::from_secs(60),
        read_only: true,
        ..ConnectOptions::default()
    };
    let mut session = Session::connect_with(conninfo, &options)?;
    let rows = session.rows(
        "SELECT pg_relation_filepath(c.oid), n.nspname || '.' || c.relname \
         FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
           JOIN LATERAL (SELECT t.typname FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid \
             WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum DESC LIMIT \
             1) l ON true \
         WHERE c.relkind = 'r' AND c.relpersistence = 'p' AND n.nspname NOT IN ('pg_catalog', \
         'information_schema', 'pgproof') \
           AND l.typname IN ('int8', 'int4', 'int2', 'timestamptz', 'timestamp', 'date', 'float8', \
           'bpchar', 'varchar', 'text', 'jsonb') \
         ORDER BY array_position(ARRAY['int8', 'int4', 'int2', 'timestamptz', 'timestamp', 'date', \
         'float8', 'bpchar', \
           'varchar', 'text', 'jsonb']::name[], l.typname), 2",
    )?;
    let mut found = Vec::new();
    for row in rows {
        let mut columns = row.into_iter().flatten();
        if let (Some(path), Some(name)) = (columns.next(), columns.next()) {
            found.push(Candidate {
                path,
                name: format!("{database}.{name}"),
            });
        }
    }
    Ok(found)
}

/// Changes one row in a stopped copy, under a checksum that is right again. The page is the one whose last
/// change is the oldest: replay is least likely to write it anew. Gives what was changed, without its value.
pub fn change_one_row(data_directory: &Path, candidates: &[Candidate], checksums: bool) -> Result<String> {
    for candidate in candidates {
        let relative = Path::new(&candidate.path);
        if !relative
            .components()
            .all(|part| matches!(part, Component::Normal(_)))
        {
            continue;
        }
        if let Some(text) = change_in_file(&data_directory.join(relative), checksums)? {
            return Ok(format!("{} {text}", candidate.name));
        }
    }
    Err(
        Error::new("fault-not-planted", "the copy has no row that could be changed")
            .hint("Put a table with some rows, vacuumed or read once, into the drilled cluster."),
    )
}

fn change_in_file(path: &Path, checksums: bool) -> Result<Option<String>> {
    let failed = |error: &std::io::Error| {
        Error::io(
            "fault-not-planted",
            format!("cannot change {}", path.display()),
            error,
        )
    };
    let file = match OpenOptions::new().read(true).write(true).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(&error)),
    };
    let blocks = file.metadata().map_err(|error| failed(&error))?.len() / BLOCK_SIZE as u64;
    let mut best: Option<(Lsn, u64, usize, [u8; BLOCK_SIZE])> = None;
    for block in 0..blocks.min(BLOCKS_MAX) {
        let page = read_block(&file, block).map_err(|error| failed(&error))?;
        let lsn = page_lsn(&page);
        if best.as_ref().is_none_or(|(oldest, ..)| lsn < *oldest)
            && let Some(offset) = last_byte_of_a_row(&page)
        {
            best = Some((lsn, block, offset, page));
        }
    }
    let Some((_, block, offset, mut page)) = best else {
        return Ok(None);
    };
    if let Some(byte) = page.get_mut(offset) {
        *byte ^= 1;
    }
    if checksums {
        let checksum = page_checksum(&page, block as u32);
        page[8..10].copy_from_slice(&checksum.to_le_bytes());
    }
    file.write_all_at(&page, block * BLOCK_SIZE as u64)
        .map_err(|error| failed(&error))?;
    file.sync_all().map_err(|error| failed(&error))?;
    Ok(Some(format!("block {block}, one bit of one row")))
}

fn read_block(file: &File, block: u64) -> std::io::Result<[u8; BLOCK_SIZE]> {
    let mut page = [0; BLOCK_SIZE];
    file.read_exact_at(&mut page, block * BLOCK_SIZE as u64)?;
    Ok(page)
}

/// The offset of the last byte of a row that everybody sees.
fn last_byte_of_a_row(page: &[u8; BLOCK_SIZE]) -> Option<usize> {
    let half = |at: usize| Some(u16::from_le_bytes([*page.get(at)?, *page.get(at + 1)?]));
    let lower = usize::from(half(12)?);
    for at in (24..lower.min(BLOCK_SIZE)).step_by(4) {
        let pointer = u32::from(half(at)?) | u32::from(half(at + 2)?) << 16;
        let (offset, flags, length) = (
            (pointer & 0x7FFF) as usize,
            pointer >> 15 & 3,
            (pointer >> 17) as usize,
        );
        let header = 24;
        if flags != 1 || length <= header || length > TUPLE_BYTES_MAX || offset + length > BLOCK_SIZE {
            continue;
        }
        let infomask = half(offset + 20)?;
        let data = usize::from(*page.get(offset + 22)?);
        let committed = infomask & XMIN_COMMITTED != 0 && infomask & XMAX_INVALID != 0;
        if committed && infomask & HAS_EXTERNAL == 0 && data < length {
            return Some(offset + length - 1);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page_with_a_row(infomask: u16) -> [u8; BLOCK_SIZE] {
        let mut page = [0_u8; BLOCK_SIZE];
        let (offset, length) = (8000_u32, 32_u32);
        page[12..14].copy_from_slice(&28_u16.to_le_bytes());
        page[24..28].copy_from_slice(&(offset | 1 << 15 | length << 17).to_le_bytes());
        page[8020..8022].copy_from_slice(&infomask.to_le_bytes());
        page[8022] = 24;
        page
    }

    #[test]
    fn only_a_row_that_everybody_sees_is_changed() {
        assert_eq!(
            last_byte_of_a_row(&page_with_a_row(XMIN_COMMITTED | XMAX_INVALID)),
            Some(8031)
        );
        assert_eq!(last_byte_of_a_row(&page_with_a_row(XMIN_COMMITTED)), None);
        assert_eq!(last_byte_of_a_row(&[0; BLOCK_SIZE]), None);
        assert_eq!(last_byte_of_a_row(&[0xFF; BLOCK_SIZE]), None);
    }

    #[test]
    fn the_changed_page_has_a_checksum_that_is_right() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut page = page_with_a_row(XMIN_COMMITTED | XMAX_INVALID);
        page[14..16].copy_from_slice(&8000_u16.to_le_bytes());
        page[16..18].copy_from_slice(&8192_u16.to_le_bytes());
        page[18..20].copy_from_slice(&0x2004_u16.to_le_bytes());
        std::fs::write(folder.path().join("t"), page).expect("writes");
        let candidate = Candidate {
            path: "t".into(),
            name: "d.public.t".into(),
        };
        let outside = Candidate {
            path: "../t".into(),
            name: "d.public.x".into(),
        };
        let text = change_one_row(folder.path(), &[outside, candidate], true).expect("plants");
        assert!(text.starts_with("d.public.t block 0"));
        let changed = std::fs::read(folder.path().join("t")).expect("reads");
        assert_ne!(changed[8031], page[8031]);
        assert_eq!(
            postgres::verify_page(&changed, 0, true),
            postgres::PageVerdict::Good
        );
    }
}
