//! One thread of a backup: reads, verifies, and gives every block to its own pack writer.
//!
//! Invariants: a buffer of 128 KiB is all that a thread holds of a file; every page of a relation that is read is verified
//! before it is given away; a page whose checksum is bad is read again, and only when it stays bad noted as such; a page is left
//! unread only where the WAL says that it has not changed and the parent has it ([`Unread`]).

use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use cluster::Entry;
use diagnostic::Result;
use postgres::{BLOCK_SIZE, Lsn, PageVerdict, RelationFile, page_lsn, verify_page};
use repository::{
    BlockFacts, BlockFlags, FRAME_BYTES, FileFormat, FilePart, LEAF_BLOCKS, PackWriter, RelativePath,
    TreeWriter,
};

use super::dispatch::{Dispatcher, Item, Source, Work, settle};
use super::read::SourceFile;
use super::unread::Unread;

/// Pauses before a page with a bad checksum is read again: the server may be writing it just now.
const PAUSES_MS: [u64; 5] = [0, 1, 10, 50, 200];
/// After so many bad pages they are read again only once, without a pause: it is not the server's writing.
const PATIENT_PAGES: u64 = 100;
/// Bad pages that are noted one by one; beyond, they are only counted.
pub(super) const NOTED_PAGES_MAX: usize = 10_000;

/// A page that stayed bad.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct BadPage {
    pub(super) path: RelativePath,
    pub(super) relation: RelationFile,
    /// Within the file.
    pub(super) block: u32,
    /// Within the relation's fork.
    pub(super) relation_block: u32,
    pub(super) lsn: Lsn,
    pub(super) problem: String,
}

/// What the threads of a backup share.
pub(super) struct Shared<'a> {
    pub(super) items: &'a [Item],
    pub(super) dispatcher: &'a Dispatcher<'a>,
    pub(super) tree: &'a TreeWriter,
    pub(super) checksums: bool,
    /// In blocks.
    pub(super) relation_segment_size: u32,
    /// What need not be read; `None`: everything is read.
    pub(super) unread: Option<Unread>,
    pub(super) abort: AtomicBool,
    pub(super) files_done: AtomicU64,
    pub(super) bytes_done: AtomicU64,
    pub(super) bytes_read: AtomicU64,
    pub(super) bad_pages_count: AtomicU64,
    pub(super) bad_pages: Mutex<Vec<BadPage>>,
}

impl<'a> Shared<'a> {
    fn aborted(&self) -> bool {
        self.abort.load(Ordering::Relaxed)
    }

    /// Works until there is nothing left or somebody failed.
    pub(super) fn work(&self, writer: &mut PackWriter) -> Result<()> {
        let mut buffer = vec![0; FRAME_BYTES];
        while let Some(work) = self.dispatcher.next()? {
            match work {
                Work::Batch(range) => {
                    for index in range {
                        if self.aborted() {
                            return Ok(());
                        }
                        if let Some(item) = self.items.get(index) {
                            self.small(index, item, writer, &mut buffer)?;
                        }
                    }
                }
                Work::Part {
                    item: index,
                    file,
                    size,
                    first_block,
                    blocks,
                } => {
                    if let Some(item) = self.items.get(index)
                        && let Source::File { entry, .. } = &item.source
                    {
                        let part = self.part(index, item, format_of(entry), size, first_block, blocks);
                        self.file(part, entry, &file, writer, &mut buffer)?;
                        if u64::from(first_block) + u64::from(blocks)
                            >= u64::from(repository::blocks_of(size))
                        {
                            self.files_done.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                }
            }
            if self.aborted() {
                return Ok(());
            }
        }
        Ok(())
    }

    fn small(&self, index: usize, item: &Item, writer: &mut PackWriter, buffer: &mut [u8]) -> Result<()> {
        match &item.source {
            Source::Directory | Source::Symlink(_) => return settle(self.tree, index, item),
            Source::Memory(content) => {
                let size = content.len() as u64;
                let part = self.part(
                    index,
                    item,
                    FileFormat::Opaque,
                    size,
                    0,
                    repository::blocks_of(size),
                );
                store_bytes(writer, part, content)?;
                self.bytes_done.fetch_add(size, Ordering::Relaxed);
            }
            Source::File { entry, size: listed } => match SourceFile::open(&entry.absolute)? {
                Some(file) => {
                    // A file that has grown since it was listed is taken as far as one part reaches; what is beyond
                    // came after the start of the backup and is in its WAL.
                    let size = file.size(&entry.absolute)?.min(largest_small_file());
                    let part = self.part(
                        index,
                        item,
                        format_of(entry),
                        size,
                        0,
                        repository::blocks_of(size),
                    );
                    self.file(part, entry, &file, writer, buffer)?;
                    // The total was made from the listing.
                    if *listed > size {
                        self.bytes_done.fetch_add(*listed - size, Ordering::Relaxed);
                    }
                }
                None => {
                    self.tree.skip(index as u64)?;
                    self.bytes_done.fetch_add(*listed, Ordering::Relaxed);
                }
            },
        }
        self.files_done.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn part(
        &self,
        index: usize,
        item: &Item,
        format: FileFormat,
        size: u64,
        first_block: u32,
        blocks: u32,
    ) -> FilePart {
        FilePart {
            sequence: Some(index as u64),
            path: item.path.clone(),
            mode: item.mode,
            size,
            format,
            first_block,
            blocks,
        }
    }

    /// Reads a part of a file and stores it.
    fn file(
        &self,
        part: FilePart,
        entry: &Entry,
        file: &SourceFile,
        writer: &mut PackWriter,
        buffer: &mut [u8],
    ) -> Result<()> {
        let (first, size, path) = (part.first_block, part.size, part.path.clone());
        let end = size.min((u64::from(first) + u64::from(part.blocks)) * BLOCK_SIZE as u64);
        let mut offset = u64::from(first) * BLOCK_SIZE as u64;
        let mut facts = [BlockFacts::default(); FRAME_BYTES / BLOCK_SIZE];
        let mut output = writer.file(part)?;
        while offset < end {
            if self.aborted() {
                return Ok(());
            }
            let first_block = (offset / BLOCK_SIZE as u64) as u32;
            let mut wanted = usize::try_from(end - offset)
                .unwrap_or(usize::MAX)
                .min(buffer.len());
            let unread = self.unread.as_ref().zip(entry.relation.as_ref());
            let mut audited = None;
            if let Some((unread, relation)) = unread {
                // Within one leaf.
                let left = u32::try_from((end - offset).div_ceil(BLOCK_SIZE as u64)).unwrap_or(u32::MAX);
                let room = left.min(LEAF_BLOCKS - first_block % LEAF_BLOCKS);
                let relation_block = self.relation_block(relation, first_block);
                let mut blocks = room.min((FRAME_BYTES / BLOCK_SIZE) as u32);
                if unread.audits(&path, first_block) {
                    audited = Some((unread, relation, relation_block));
                } else if output.parent_leaf().is_some() {
                    let kept = output.keep(unread.unchanged(relation, relation_block, room))?;
                    if kept > 0 {
                        unread.count_kept(kept);
                        let bytes = (u64::from(kept) * BLOCK_SIZE as u64).min(end - offset);
                        self.bytes_done.fetch_add(bytes, Ordering::Relaxed);
                        offset += bytes;
                        continue;
                    }
                    blocks = unread.worth_reading(relation, relation_block, blocks);
                }
                wanted = wanted.min(blocks as usize * BLOCK_SIZE);
            }
            let chunk = buffer.get_mut(..wanted).unwrap_or_default();
            let read = file.read_at(&entry.absolute, chunk, offset)?;
            // A file that has become shorter ends in zeros, as in pg_basebackup: its WAL brings it right.
            chunk.get_mut(read..).unwrap_or_default().fill(0);
            match &entry.relation {
                Some(relation) => {
                    self.verify(&path, relation, entry, file, first_block, chunk, read, &mut facts)?
                }
                None => facts.fill(BlockFacts::default()),
            }
            let facts = facts.get(..wanted.div_ceil(BLOCK_SIZE)).unwrap_or_default();
            if let Some((unread, relation, relation_block)) = audited {
                unread.audit(&output, &path, relation, relation_block, chunk, facts);
            }
            output.add(chunk, facts)?;
            offset += wanted as u64;
            self.bytes_read.fetch_add(read as u64, Ordering::Relaxed);
            self.bytes_done.fetch_add(wanted as u64, Ordering::Relaxed);
        }
        output.finish()
    }

    /// Judges the pages in `chunk`, of which the first `read` bytes came from the file, and writes a fact for each block.
    #[allow(clippy::too_many_arguments)]
    fn verify(
        &self,
        path: &RelativePath,
        relation: &RelationFile,
        entry: &Entry,
        file: &SourceFile,
        first_block: u32,
        chunk: &mut [u8],
        read: usize,
        facts: &mut [BlockFacts],
    ) -> Result<()> {
        for (index, (page, fact)) in chunk.chunks_mut(BLOCK_SIZE).zip(facts.iter_mut()).enumerate() {
            *fact = BlockFacts::default();
            let block = first_block + index as u32;
            if index * BLOCK_SIZE >= read || page.len() < BLOCK_SIZE {
                // Beyond the end, or a last block that the server is about to complete: no page to judge.
                continue;
            }
            let relation_block = self.relation_block(relation, block);
            let mut verdict = verify_page(page, relation_block, self.checksums);
            if !matches!(verdict, PageVerdict::Good | PageVerdict::New) {
                verdict = self.read_again(&entry.absolute, file, block, relation_block, page, verdict)?;
            }
            fact.lsn = page_lsn(page);
            match verdict {
                PageVerdict::Good => {}
                PageVerdict::New => fact.flags = BlockFlags::NEW,
                bad => {
                    fact.flags = BlockFlags::EXCUSED;
                    if matches!(page.get(14..16), Some([0, 0])) {
                        fact.flags = fact.flags | BlockFlags::NEW;
                    }
                    self.note(BadPage {
                        path: path.clone(),
                        relation: *relation,
                        block,
                        relation_block,
                        lsn: fact.lsn,
                        problem: problem(bad),
                    });
                }
            }
        }
        Ok(())
    }

    /// The number of a file's block within its relation's fork.
    fn relation_block(&self, relation: &RelationFile, block: u32) -> u32 {
        relation
            .segment
            .wrapping_mul(self.relation_segment_size)
            .wrapping_add(block)
    }

    /// Reads a page again until it is good or patience ends; `page` then holds what was read last.
    fn read_again(
        &self,
        absolute: &Path,
        file: &SourceFile,
        block: u32,
        relation_block: u32,
        page: &mut [u8],
        mut verdict: PageVerdict,
    ) -> Result<PageVerdict> {
        let patient = self.bad_pages_count.load(Ordering::Relaxed) < PATIENT_PAGES;
        for pause_ms in PAUSES_MS.iter().take(if patient { PAUSES_MS.len() } else { 1 }) {
            std::thread::sleep(Duration::from_millis(*pause_ms));
            let read = file.read_at(absolute, page, u64::from(block) * BLOCK_SIZE as u64)?;
            if read < BLOCK_SIZE {
                // The file has been truncated in the meantime: zeros, and the WAL knows.
                page.fill(0);
                return Ok(PageVerdict::New);
            }
            verdict = verify_page(page, relation_block, self.checksums);
            if matches!(verdict, PageVerdict::Good | PageVerdict::New) {
                break;
            }
        }
        Ok(verdict)
    }

    fn note(&self, page: BadPage) {
        self.bad_pages_count.fetch_add(1, Ordering::Relaxed);
        let mut pages = self
            .bad_pages
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if pages.len() < NOTED_PAGES_MAX {
            pages.push(page);
        }
    }
}

/// Stores a small file whose content is at hand.
pub(super) fn store_bytes(writer: &mut PackWriter, part: FilePart, content: &[u8]) -> Result<()> {
    let mut output = writer.file(part)?;
    for chunk in content.chunks(FRAME_BYTES) {
        let facts = [BlockFacts::default(); FRAME_BYTES / BLOCK_SIZE];
        output.add(
            chunk,
            facts.get(..chunk.len().div_ceil(BLOCK_SIZE)).unwrap_or_default(),
        )?;
    }
    output.finish()
}

/// What was listed as small is taken up to one part, however it has grown.
fn largest_small_file() -> u64 {
    u64::from(repository::LEAF_BLOCKS) * BLOCK_SIZE as u64
}

fn format_of(entry: &Entry) -> FileFormat {
    if entry.relation.is_some() {
        FileFormat::Pages
    } else {
        FileFormat::Opaque
    }
}

pub(super) fn problem(verdict: PageVerdict) -> String {
    match verdict {
        PageVerdict::Bad { stored, computed } => {
            format!("checksum {stored:#06x} is stored, {computed:#06x} would be right")
        }
        _ => "the page header is invalid".into(),
    }
}

#[cfg(test)]
#[path = "worker_tests.rs"]
mod tests;
