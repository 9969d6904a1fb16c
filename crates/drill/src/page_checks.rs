//! Page checksums of a whole copy, read from its files while no server runs on it.
//!
//! Invariants: every block of every relation's file is looked at, in every fork; a page that is not whole is
//! bad; a file that cannot be read is "could not look", never good.

use std::collections::VecDeque;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use cluster::{Entry, EntryKind};
use diagnostic::{Error, Result};
use postgres::{BLOCK_SIZE, PageVerdict, verify_page};

use crate::options::Watcher;
use crate::rows::aborted;

/// Blocks read at once.
const BLOCKS_AT_ONCE: usize = 128;
/// Bad pages that are named; all are counted.
const NAMED_MAX: usize = 20;

/// What a look at all pages gave.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PageCheck {
    /// Relation files.
    pub files: u64,
    /// Pages looked at.
    pub pages: u64,
    /// Pages that are all zero.
    pub new_pages: u64,
    /// Pages that are wrong.
    pub bad_pages: u64,
    /// `path block N: what is wrong`, the first of them.
    pub named: Vec<String>,
}

/// Looks at every page below a data directory. `relation_segment_blocks`: blocks in one file of a relation.
pub fn check_pages(
    data_directory: &Path,
    major: postgres::Major,
    relation_segment_blocks: u32,
    threads: usize,
    abort: &AtomicBool,
    watcher: &dyn Watcher,
) -> Result<PageCheck> {
    let entries = cluster::list(data_directory, &[], major)?;
    let size = |entry: &Entry| match entry.kind {
        EntryKind::File { size, .. } => size,
        _ => 0,
    };
    let mut files: Vec<&Entry> = entries
        .iter()
        .filter(|entry| entry.relation.is_some() && matches!(entry.kind, EntryKind::File { .. }))
        .collect();
    files.sort_by_key(|entry| std::cmp::Reverse(size(entry)));
    let total: u64 = files.iter().map(|entry| size(entry)).sum();
    let count = files.len() as u64;
    let queue = Mutex::new(VecDeque::from(files));
    let found = Mutex::new(PageCheck {
        files: count,
        ..PageCheck::default()
    });

    let work = || -> Result<()> {
        let mut buffer = vec![0_u8; BLOCKS_AT_ONCE * BLOCK_SIZE];
        loop {
            if abort.load(Ordering::Relaxed) {
                return Err(aborted());
            }
            let next = queue.lock().ok().and_then(|mut queue| queue.pop_front());
            let Some(entry) = next else { return Ok(()) };
            let one = check_file(entry, relation_segment_blocks, &mut buffer, abort)?;
            if let Ok(mut found) = found.lock() {
                found.pages += one.pages;
                found.new_pages += one.new_pages;
                found.bad_pages += one.bad_pages;
                let room = NAMED_MAX.saturating_sub(found.named.len());
                found.named.extend(one.named.into_iter().take(room));
                watcher.advance(found.pages * BLOCK_SIZE as u64, Some(total), "bytes");
            }
        }
    };
    std::thread::scope(|scope| {
        let handles: Vec<_> = (1..threads.clamp(1, 16)).map(|_| scope.spawn(work)).collect();
        let mut result = work();
        for handle in handles {
            let other = handle
                .join()
                .unwrap_or_else(|_| Err(Error::new("thread-ended", "a thread ended badly")));
            result = result.and(other);
        }
        result
    })?;
    Ok(found.into_inner().unwrap_or_default())
}

fn check_file(
    entry: &Entry,
    relation_segment_blocks: u32,
    buffer: &mut [u8],
    abort: &AtomicBool,
) -> Result<PageCheck> {
    let mut check = PageCheck::default();
    let segment = entry.relation.as_ref().map_or(0, |relation| relation.segment);
    let first = segment.wrapping_mul(relation_segment_blocks);
    let unreadable = |error: &std::io::Error| {
        Error::io(
            "copy-read",
            format!("cannot read {}", entry.absolute.display()),
            error,
        )
    };
    let mut file = File::open(&entry.absolute).map_err(|error| unreadable(&error))?;
    let mut block = first;
    loop {
        if abort.load(Ordering::Relaxed) {
            return Err(aborted());
        }
        let filled = fill(&mut file, buffer).map_err(|error| unreadable(&error))?;
        let Some(bytes) = buffer.get(..filled) else { break };
        for page in bytes.chunks(BLOCK_SIZE) {
            check.pages += 1;
            let wrong = match verify_page(page, block, true) {
                PageVerdict::Good => None,
                PageVerdict::New => {
                    check.new_pages += 1;
                    None
                }
                PageVerdict::Bad { stored, computed } => {
                    Some(format!("checksum {stored}, computed {computed}"))
                }
                PageVerdict::Malformed => Some("not a valid page".to_string()),
            };
            if let Some(wrong) = wrong {
                check.bad_pages += 1;
                if check.named.len() < NAMED_MAX {
                    let path = String::from_utf8_lossy(&entry.path);
                    check
                        .named
                        .push(format!("{path} block {}: {wrong}", block.wrapping_sub(first)));
                }
            }
            block = block.wrapping_add(1);
        }
        if filled < buffer.len() {
            break;
        }
    }
    Ok(check)
}

/// Reads until the buffer is full or the file ends.
fn fill(file: &mut File, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match file.read(rest) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}
