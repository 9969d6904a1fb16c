//! Faults that are planted into a copy, so that a drill has something to find (the drill of the drill).
//!
//! Formats: `bufpage.h` (line pointers), `htup_details.h` (rows), `nbtree.h` (pages of a B-tree), `sequence.h`.
//! Invariants: only files below the copy's own data directory are touched, and only while no server runs on
//! it; where a page is changed on purpose, its checksum is right again, so that no check of form sees it; the page is
//! the one whose last change is the oldest, since replay, which begins anew, is least likely to write it again.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Component, Path, PathBuf};

use diagnostic::{Error, Result};
use postgres::{BLOCK_SIZE, Lsn, page_checksum, page_lsn};

/// Where a tuple's flags say that its inserter committed and that nobody deleted it.
const XMIN_COMMITTED: u16 = 0x0100;
const XMAX_INVALID: u16 = 0x0800;
const HAS_EXTERNAL: u16 = 0x0004;
/// Members of a chain of updates (`HEAP_HOT_UPDATED`, `HEAP_ONLY_TUPLE`).
const IN_A_CHAIN: u16 = 0xC000;
/// Longer tuples may hold compressed values, whose change would be an error instead of another value.
const TUPLE_BYTES_MAX: usize = 500;
/// A row's header without its bitmap of nulls.
const TUPLE_HEADER_BYTES: usize = 23;
/// Blocks searched in one table.
const BLOCKS_MAX: u64 = 4096;
/// `LP_NORMAL`, and a line pointer that is `LP_DEAD`.
const LP_NORMAL: u32 = 1;
const DEAD_POINTER: u32 = 3 << 15;
/// `BTP_LEAF`, and with it `BTP_DELETED`, `BTP_META`, `BTP_HALF_DEAD`.
const BTREE_LEAF: u16 = 1;
const BTREE_KINDS: u16 = 1 | 4 | 8 | 16;
/// An index tuple whose TID is something else (a list of TIDs).
const ALTERNATIVE_TID: u16 = 0x2000;
/// `IndexTupleData`
const INDEX_TUPLE_HEADER_BYTES: usize = 8;

type Page = [u8; BLOCK_SIZE];

/// A relation's file that may be changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Relative to the data directory.
    pub path: String,
    /// `database.schema.table`.
    pub name: String,
}

/// A file of the copy.
struct PageFile {
    path: PathBuf,
    file: File,
    /// In blocks.
    length: u64,
    checksums: bool,
}

impl PageFile {
    /// `None`: there is no such file, or the path leads out of the data directory.
    fn open(data_directory: &Path, relative: &str, checksums: bool) -> Result<Option<PageFile>> {
        let relative = Path::new(relative);
        let mut parts = relative.components();
        if !parts.all(|part| matches!(part, Component::Normal(_))) {
            return Ok(None);
        }
        let path = data_directory.join(relative);
        let file = match OpenOptions::new().read(true).write(true).open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(unable(&path, &error)),
        };
        let length = file.metadata().map_err(|error| unable(&path, &error))?.len() / BLOCK_SIZE as u64;
        Ok(Some(PageFile {
            path,
            file,
            length,
            checksums,
        }))
    }

    fn read(&self, block: u64) -> Result<Page> {
        let mut page = [0; BLOCK_SIZE];
        let read = self.file.read_exact_at(&mut page, block * BLOCK_SIZE as u64);
        read.map_err(|error| unable(&self.path, &error))?;
        Ok(page)
    }

    /// Writes a page under a checksum that is right.
    fn write(&self, block: u64, page: &mut Page) -> Result<()> {
        if self.checksums {
            let checksum = page_checksum(page, block as u32);
            page[8..10].copy_from_slice(&checksum.to_le_bytes());
        }
        self.write_as_it_is(block, page)
    }

    fn write_as_it_is(&self, block: u64, page: &Page) -> Result<()> {
        let written = self.file.write_all_at(page, block * BLOCK_SIZE as u64);
        written
            .and_then(|()| self.file.sync_all())
            .map_err(|error| unable(&self.path, &error))
    }

    /// The page that was changed the longest time ago, of those in which `find` finds something.
    fn oldest<T>(&self, find: impl Fn(&Page) -> Option<T>) -> Result<Option<(u64, Page, T)>> {
        let mut best: Option<(Lsn, u64, Page, T)> = None;
        for block in 0..self.length.min(BLOCKS_MAX) {
            let page = self.read(block)?;
            let lsn = page_lsn(&page);
            if best.as_ref().is_none_or(|(oldest, ..)| lsn < *oldest)
                && let Some(found) = find(&page)
            {
                best = Some((lsn, block, page, found));
            }
        }
        Ok(best.map(|(_, block, page, found)| (block, page, found)))
    }

    /// The newest change of any of its pages.
    fn newest_change(&self) -> Result<Lsn> {
        let mut newest = Lsn(0);
        for block in 0..self.length.min(BLOCKS_MAX) {
            newest = newest.max(page_lsn(&self.read(block)?));
        }
        Ok(newest)
    }
}

fn unable(path: &Path, error: &std::io::Error) -> Error {
    Error::io(
        "fault-not-planted",
        format!("cannot change {}", path.display()),
        error,
    )
}

/// There is nothing in the copy that this fault could be planted into.
pub fn nothing_to_change(what: &str, hint: &str) -> Error {
    Error::new("fault-not-planted", format!("the copy has {what}")).hint(hint)
}

/// Changes one row, under a checksum that is right again. Gives what was changed, without its value.
pub fn change_one_row(data_directory: &Path, candidates: &[Candidate], checksums: bool) -> Result<String> {
    for candidate in candidates {
        let Some(file) = PageFile::open(data_directory, &candidate.path, checksums)? else {
            continue;
        };
        if let Some((block, mut page, row)) = file.oldest(settled_row)? {
            flip_last_byte(&mut page, row);
            file.write(block, &mut page)?;
            return Ok(format!("{} block {block}, one bit of one row", candidate.name));
        }
    }
    Err(no_settled_row())
}

/// Takes one row out of its page: its line pointer says that it is dead.
pub fn lose_one_row(data_directory: &Path, candidates: &[Candidate], checksums: bool) -> Result<String> {
    let outside_of_chains = |page: &Page| {
        items(page).find(|item| {
            is_settled(page, item) && half(page, item.offset + 18).unwrap_or(IN_A_CHAIN) & IN_A_CHAIN == 0
        })
    };
    for candidate in candidates {
        let Some(file) = PageFile::open(data_directory, &candidate.path, checksums)? else {
            continue;
        };
        if let Some((block, mut page, row)) = file.oldest(outside_of_chains)? {
            put(&mut page, row.pointer_at, &DEAD_POINTER.to_le_bytes());
            file.write(block, &mut page)?;
            return Ok(format!("{} block {block}, one row", candidate.name));
        }
    }
    Err(no_settled_row())
}

fn no_settled_row() -> Error {
    nothing_to_change(
        "no row that could be changed",
        "Put a table with some rows, vacuumed or read once, into the drilled cluster.",
    )
}

/// Removes the file of the table whose newest change is the oldest.
pub fn lose_a_relation(data_directory: &Path, candidates: &[Candidate]) -> Result<String> {
    let mut oldest: Option<(Lsn, &Candidate, PathBuf)> = None;
    for candidate in candidates {
        let Some(file) = PageFile::open(data_directory, &candidate.path, false)? else {
            continue;
        };
        if file.length == 0 {
            continue;
        }
        let newest = file.newest_change()?;
        if oldest.as_ref().is_none_or(|(known, ..)| newest < *known) {
            oldest = Some((newest, candidate, file.path));
        }
    }
    let Some((_, candidate, path)) = oldest else {
        return Err(nothing_to_change(
            "no table with rows",
            "Put a table with some rows into the drilled cluster.",
        ));
    };
    std::fs::remove_file(&path).map_err(|error| unable(&path, &error))?;
    Ok(format!("the file of {}", candidate.name))
}

/// Changes a byte of a page below `folder` (`base/4`), whose checksum is wrong from then on.
pub fn damage_a_page(data_directory: &Path, folder: &str) -> Result<String> {
    let path = data_directory.join(folder);
    let mut names: Vec<String> = std::fs::read_dir(&path)
        .map_err(|error| unable(&path, &error))?
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()))
        .collect();
    names.sort();
    for name in names {
        let relative = format!("{folder}/{name}");
        let Some(file) = PageFile::open(data_directory, &relative, true)? else {
            continue;
        };
        let written = |page: &Page| page.iter().any(|byte| *byte != 0).then_some(());
        if let Some((block, mut page, ())) = file.oldest(written)? {
            page[BLOCK_SIZE / 2] ^= 1;
            file.write_as_it_is(block, &page)?;
            return Ok(format!("{relative} block {block}, one bit"));
        }
    }
    Err(nothing_to_change(
        "no page that no query reads",
        "No database of the cluster refuses connections, as template0 does.",
    ))
}

/// Lets two neighbouring entries of a leaf of a B-tree change places.
pub fn disorder_an_index(data_directory: &Path, candidates: &[Candidate], checksums: bool) -> Result<String> {
    for candidate in candidates {
        let Some(file) = PageFile::open(data_directory, &candidate.path, checksums)? else {
            continue;
        };
        if let Some((block, mut page, (first, second))) = file.oldest(neighbours)? {
            let pointer = |at: usize| -> [u8; 4] {
                let bytes = page.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
                bytes.unwrap_or_default()
            };
            let (a, b) = (pointer(first), pointer(second));
            put(&mut page, first, &b);
            put(&mut page, second, &a);
            file.write(block, &mut page)?;
            return Ok(format!("{} block {block}, two entries", candidate.name));
        }
    }
    Err(nothing_to_change(
        "no B-tree index with two different entries in one page",
        "Put a table with a primary key and some rows into the drilled cluster.",
    ))
}

/// The line pointers of two different neighbours.
fn neighbours(page: &Page) -> Option<(usize, usize)> {
    let special = usize::from(half(page, 16)?);
    if half(page, special + 12)? & BTREE_KINDS != BTREE_LEAF {
        return None;
    }
    // A page with a right neighbour begins with its high key.
    let next = u32::from(half(page, special + 4)?) | u32::from(half(page, special + 6)?) << 16;
    let entries: Vec<Item> = items(page).skip(usize::from(next != 0)).collect();
    let key = |item: &Item| -> Option<&[u8]> {
        if item.flags != LP_NORMAL || half(page, item.offset + 6)? & ALTERNATIVE_TID != 0 {
            return None;
        }
        page.get(item.offset + INDEX_TUPLE_HEADER_BYTES..item.offset + item.length)
    };
    entries.windows(2).find_map(|pair| {
        let [first, second] = pair else { return None };
        (key(first)? != key(second)?).then_some((first.pointer_at, second.pointer_at))
    })
}

/// A sequence, and where it begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SequenceCandidate {
    /// Its file and name.
    pub relation: Candidate,
    /// The first value that it hands out.
    pub start: i64,
}

/// Sets the sequence back whose last change is the oldest.
pub fn rewind_a_sequence(
    data_directory: &Path,
    candidates: &[SequenceCandidate],
    checksums: bool,
) -> Result<String> {
    let mut oldest: Option<(Lsn, &SequenceCandidate, PageFile, Page)> = None;
    for candidate in candidates {
        let Some(file) = PageFile::open(data_directory, &candidate.relation.path, checksums)? else {
            continue;
        };
        if file.length == 0 {
            continue;
        }
        let page = file.read(0)?;
        let lsn = page_lsn(&page);
        if oldest.as_ref().is_none_or(|(known, ..)| lsn < *known) {
            oldest = Some((lsn, candidate, file, page));
        }
    }
    let nothing = || {
        nothing_to_change(
            "no sequence that has handed out values",
            "Put a table with an identity column and some rows into the drilled cluster.",
        )
    };
    let (_, candidate, file, mut page) = oldest.ok_or_else(nothing)?;
    let row = items(&page).next().ok_or_else(nothing)?;
    let data = row.offset + usize::from(page.get(row.offset + 22).copied().unwrap_or_default());
    // `last_value` and `log_cnt`; whether it was called stays as it is.
    put(&mut page, data, &candidate.start.to_le_bytes());
    put(&mut page, data + 8, &[0; 8]);
    file.write(0, &mut page)?;
    Ok(candidate.relation.name.clone())
}

/// Changes the last byte of the row at a place that the copy itself has named: its block and number (`ctid`).
pub fn change_row_at(
    data_directory: &Path,
    relation: &Candidate,
    (block, number): (u64, usize),
    checksums: bool,
) -> Result<String> {
    let gone = || nothing_to_change("another row there", "Run it again.");
    let file = PageFile::open(data_directory, &relation.path, checksums)?.ok_or_else(gone)?;
    if block >= file.length {
        return Err(gone());
    }
    let mut page = file.read(block)?;
    let row = number.checked_sub(1).and_then(|skip| items(&page).nth(skip));
    let row = row.filter(|row| row.flags == LP_NORMAL).ok_or_else(gone)?;
    flip_last_byte(&mut page, row);
    file.write(block, &mut page)?;
    Ok(format!("{} block {block}, one bit of one row", relation.name))
}

/// What a line pointer names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Item {
    pointer_at: usize,
    offset: usize,
    flags: u32,
    length: usize,
}

/// All line pointers of a page, those that lead out of it left out.
fn items(page: &Page) -> impl Iterator<Item = Item> {
    let lower = usize::from(half(page, 12).unwrap_or_default());
    (24..lower.min(BLOCK_SIZE - 4)).step_by(4).map_while(move |at| {
        let pointer = u32::from(half(page, at)?) | u32::from(half(page, at + 2)?) << 16;
        let item = Item {
            pointer_at: at,
            offset: (pointer & 0x7FFF) as usize,
            flags: pointer >> 15 & 3,
            length: (pointer >> 17) as usize,
        };
        (item.offset + item.length <= BLOCK_SIZE).then_some(item)
    })
}

fn half(page: &Page, at: usize) -> Option<u16> {
    Some(u16::from_le_bytes([*page.get(at)?, *page.get(at + 1)?]))
}

fn put(page: &mut Page, at: usize, bytes: &[u8]) {
    if let Some(place) = page.get_mut(at..at + bytes.len()) {
        place.copy_from_slice(bytes);
    }
}

fn flip_last_byte(page: &mut Page, row: Item) {
    if let Some(byte) = page.get_mut((row.offset + row.length).saturating_sub(1)) {
        *byte ^= 1;
    }
}

/// A row that everybody sees, and in which another last byte is another value.
fn settled_row(page: &Page) -> Option<Item> {
    items(page).find(|item| is_settled(page, item))
}

fn is_settled(page: &Page, item: &Item) -> bool {
    let settled = || -> Option<bool> {
        if item.flags != LP_NORMAL || item.length <= TUPLE_HEADER_BYTES + 1 || item.length > TUPLE_BYTES_MAX {
            return Some(false);
        }
        let infomask = half(page, item.offset + 20)?;
        let data = usize::from(*page.get(item.offset + 22)?);
        let committed = infomask & XMIN_COMMITTED != 0 && infomask & XMAX_INVALID != 0;
        Some(committed && infomask & HAS_EXTERNAL == 0 && data < item.length)
    };
    settled().unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set_pointer(page: &mut Page, number: usize, offset: u32, length: u32) {
        put(
            page,
            24 + 4 * number,
            &(offset | 1 << 15 | length << 17).to_le_bytes(),
        );
    }

    fn page_with_a_row(infomask: u16) -> Page {
        let mut page = [0_u8; BLOCK_SIZE];
        page[12..14].copy_from_slice(&28_u16.to_le_bytes());
        page[14..16].copy_from_slice(&8000_u16.to_le_bytes());
        page[16..18].copy_from_slice(&8192_u16.to_le_bytes());
        page[18..20].copy_from_slice(&0x2004_u16.to_le_bytes());
        set_pointer(&mut page, 0, 8000, 32);
        page[8020..8022].copy_from_slice(&infomask.to_le_bytes());
        page[8022] = 24;
        page
    }

    fn candidate(path: &str) -> Candidate {
        Candidate {
            path: path.into(),
            name: format!("d.public.{path}"),
        }
    }

    fn good(page: &[u8]) -> bool {
        postgres::verify_page(page, 0, true) == postgres::PageVerdict::Good
    }

    #[test]
    fn only_a_row_that_everybody_sees_is_changed() {
        let found = |page: &Page| settled_row(page).map(|row| row.offset + row.length);
        assert_eq!(found(&page_with_a_row(XMIN_COMMITTED | XMAX_INVALID)), Some(8032));
        assert_eq!(found(&page_with_a_row(XMIN_COMMITTED)), None);
        assert_eq!(found(&[0; BLOCK_SIZE]), None);
        assert_eq!(found(&[0xFF; BLOCK_SIZE]), None);
        assert_eq!(neighbours(&[0xFF; BLOCK_SIZE]), None);
    }

    #[test]
    fn a_row_that_is_changed_or_lost_has_a_checksum_that_is_right() {
        let folder = tempfile::tempdir().expect("a folder");
        let page = page_with_a_row(XMIN_COMMITTED | XMAX_INVALID);
        let place = folder.path().join("t");
        let candidates = [candidate("../t"), candidate("missing"), candidate("t")];
        std::fs::write(&place, page).expect("writes");
        let text = change_one_row(folder.path(), &candidates, true).expect("plants");
        assert!(text.starts_with("d.public.t block 0"));
        let changed = std::fs::read(&place).expect("reads");
        assert!(changed[8031] != page[8031] && good(&changed));

        lose_one_row(folder.path(), &candidates, true).expect("plants");
        let lost = std::fs::read(&place).expect("reads");
        assert_eq!(lost[24..28], DEAD_POINTER.to_le_bytes());
        assert!(good(&lost));
        let error = change_one_row(folder.path(), &candidates, true).expect_err("no row is left");
        assert_eq!(error.code(), "fault-not-planted");
    }

    #[test]
    fn two_entries_of_an_index_change_places() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut page = page_with_a_row(0);
        page[12..14].copy_from_slice(&32_u16.to_le_bytes());
        page[16..18].copy_from_slice(&8176_u16.to_le_bytes());
        set_pointer(&mut page, 0, 8000, 16);
        set_pointer(&mut page, 1, 8016, 16);
        (page[8008], page[8024]) = (1, 2);
        (page[8006], page[8007], page[8022]) = (16, 0, 16);
        page[8188] = BTREE_LEAF as u8;
        std::fs::write(folder.path().join("i"), page).expect("writes");
        disorder_an_index(folder.path(), &[candidate("i")], true).expect("plants");
        let changed = std::fs::read(folder.path().join("i")).expect("reads");
        assert_eq!(
            (&changed[24..28], &changed[28..32]),
            (&page[28..32], &page[24..28])
        );
        assert!(good(&changed));
    }

    #[test]
    fn a_page_that_is_damaged_has_a_wrong_checksum() {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::create_dir_all(folder.path().join("base/4")).expect("a folder");
        let mut page = page_with_a_row(0);
        let checksum = page_checksum(&page, 0);
        page[8..10].copy_from_slice(&checksum.to_le_bytes());
        std::fs::write(folder.path().join("base/4/PG_VERSION"), "15").expect("writes");
        std::fs::write(folder.path().join("base/4/1259"), page).expect("writes");
        let text = damage_a_page(folder.path(), "base/4").expect("plants");
        assert_eq!(text, "base/4/1259 block 0, one bit");
        assert!(!good(
            &std::fs::read(folder.path().join("base/4/1259")).expect("reads")
        ));
    }
}
