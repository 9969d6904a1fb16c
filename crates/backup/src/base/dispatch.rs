//! Hands out the work of a backup, in path order, to threads that ask for it.
//!
//! Invariants: every entry of the listing is handed out once, or is settled here (directories, links, large files that
//! vanished); a file of more than 1024 blocks goes out in parts of 1024 blocks, all of one size of the file, taken when
//! its first part goes out; small files go out in batches, so that a thousand tables cost few hand-overs.

use std::sync::{Arc, Mutex, PoisonError};

use cluster::{Entry, EntryKind};
use diagnostic::{Error, Result};
use repository::{BLOCK_BYTES, FileEntry, LEAF_BLOCKS, RelativePath, TreeWriter, blocks_of};

use super::read::SourceFile;

/// Bytes of a part of a large file.
const PART_BYTES: u64 = LEAF_BLOCKS as u64 * BLOCK_BYTES as u64;
/// A batch of small files ends when it has so many bytes or files.
const BATCH_BYTES: u64 = 4 << 20;
const BATCH_FILES: usize = 128;

/// What is to be backed up, at its place in path order.
pub(super) struct Item {
    pub(super) path: RelativePath,
    pub(super) mode: u32,
    pub(super) source: Source,
}

/// Where the bytes are.
pub(super) enum Source {
    /// A file of the cluster, as it was listed.
    File {
        entry: Entry,
        size: u64,
    },
    /// Content that is at hand (captured configuration).
    Memory(Vec<u8>),
    Directory,
    Symlink(Vec<u8>),
}

impl Item {
    pub(super) fn from_entry(entry: Entry) -> Result<Item> {
        let path = RelativePath::new(entry.path.clone())?;
        let mode = entry.mode;
        let source = match &entry.kind {
            EntryKind::File { size } => Source::File { size: *size, entry },
            EntryKind::Directory => Source::Directory,
            EntryKind::Symlink { target } => {
                use std::os::unix::ffi::OsStrExt;
                Source::Symlink(target.as_os_str().as_bytes().to_vec())
            }
        };
        Ok(Item { path, mode, source })
    }

    pub(super) fn bytes(&self) -> u64 {
        match &self.source {
            Source::File { size, .. } => *size,
            Source::Memory(content) => content.len() as u64,
            Source::Directory | Source::Symlink(_) => 0,
        }
    }
}

/// What one thread does next.
pub(super) enum Work {
    /// Whole small files: items of this range that are files.
    Batch(std::ops::Range<usize>),
    /// Some blocks of a large file.
    Part {
        item: usize,
        file: Arc<SourceFile>,
        size: u64,
        first_block: u32,
        blocks: u32,
    },
}

/// See the module.
pub(super) struct Dispatcher<'a> {
    items: &'a [Item],
    tree: &'a TreeWriter,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    next: usize,
    large: Option<Large>,
    failed: bool,
}

struct Large {
    item: usize,
    file: Arc<SourceFile>,
    size: u64,
    next_block: u32,
}

impl<'a> Dispatcher<'a> {
    /// `items` are in path order; the index of an item is its sequence number in the tree.
    pub(super) fn new(items: &'a [Item], tree: &'a TreeWriter) -> Self {
        Dispatcher {
            items,
            tree,
            state: Mutex::new(State::default()),
        }
    }

    /// No more work is handed out.
    pub(super) fn stop(&self) {
        self.lock().failed = true;
    }

    /// The next piece of work; `None` when there is none, or after [`Dispatcher::stop`].
    pub(super) fn next(&self) -> Result<Option<Work>> {
        let mut state = self.lock();
        loop {
            if state.failed {
                return Ok(None);
            }
            if let Some(work) = next_part(&mut state.large) {
                return Ok(Some(work));
            }
            let first = state.next;
            let Some(item) = self.items.get(first) else {
                return Ok(None);
            };
            match &item.source {
                Source::File { entry, size } if *size > PART_BYTES => {
                    state.next += 1;
                    match SourceFile::open(&entry.absolute)? {
                        Some(file) => {
                            file.will_be_sequential();
                            let size = file.size(&entry.absolute)?;
                            if size > u64::from(u32::MAX) * BLOCK_BYTES as u64 {
                                return Err(Error::new(
                                    "file-too-large",
                                    format!("file \"{}\" is too large", item.path),
                                )
                                .detail("A file of 32 TiB or more cannot be backed up."));
                            }
                            state.large = Some(Large {
                                item: first,
                                file: Arc::new(file),
                                size,
                                next_block: 0,
                            });
                        }
                        None => self.tree.skip(first as u64)?,
                    }
                }
                Source::File { .. } | Source::Memory(_) => {
                    let mut bytes = 0;
                    let mut end = first;
                    while let Some(item) = self.items.get(end) {
                        let small = matches!(&item.source, Source::File { size, .. } if *size <= PART_BYTES)
                            || matches!(item.source, Source::Memory(_));
                        // A directory among small files does not break the batch: its worker settles it.
                        let passive = matches!(item.source, Source::Directory | Source::Symlink(_));
                        if !(small || passive)
                            || end - first >= BATCH_FILES
                            || (end > first && bytes >= BATCH_BYTES)
                        {
                            break;
                        }
                        bytes += item.bytes();
                        end += 1;
                    }
                    state.next = end;
                    return Ok(Some(Work::Batch(first..end)));
                }
                Source::Directory | Source::Symlink(_) => {
                    state.next += 1;
                    settle(self.tree, first, item)?;
                }
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        // The state is plain numbers, right after every statement: a panic elsewhere does not spoil it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Enters what has no bytes into the tree.
pub(super) fn settle(tree: &TreeWriter, index: usize, item: &Item) -> Result<()> {
    let kind = match &item.source {
        Source::Symlink(target) => repository::EntryKind::Symlink(target.clone()),
        _ => repository::EntryKind::Directory,
    };
    tree.add(
        index as u64,
        FileEntry {
            path: item.path.clone(),
            mode: item.mode,
            size: 0,
            kind,
        },
    )
}

/// The next part of the large file at hand; clears it when that was the last one.
fn next_part(large: &mut Option<Large>) -> Option<Work> {
    let at_hand = large.as_mut()?;
    let total = blocks_of(at_hand.size);
    let first_block = at_hand.next_block;
    let blocks = total.saturating_sub(first_block).min(LEAF_BLOCKS);
    at_hand.next_block = first_block.saturating_add(blocks);
    let work = Work::Part {
        item: at_hand.item,
        file: at_hand.file.clone(),
        size: at_hand.size,
        first_block,
        blocks,
    };
    if at_hand.next_block >= total {
        *large = None;
    }
    Some(work)
}
