//! One file on its way into a backup: each block is compared with the parent's, and stored only where it
//! differs.
//!
//! Invariants: a block is taken from the parent, or from an interrupted run, only if its 128-bit keyed digest
//! equals the one recorded for the same path and block (a page's LSN never decides here), and never from a
//! pack that is retiring; blocks come in order and without gaps, exactly as many as the part has.

use std::sync::Arc;

use diagnostic::{Error, Result};
use postgres::Lsn;

use crate::blocks::{BlockFacts, FilePart, PackWriter, slot_of};
use crate::extents::BlockIdentity;
use crate::identity::BlockDigest;
use crate::leaf_builder::{LeafBuilder, Place};
use crate::map::{
    BLOCK_BYTES, BlockFlags, Content, EntryKind, FRAME_BLOCKS, FRAME_BYTES, FrameRef, LEAF_BLOCKS, Leaf,
    Location, blocks_of,
};
use crate::names::PackKind;
use crate::orphans::OrphanBlocks;
use crate::path::RelativePath;
use crate::run::RunInner;
use crate::tree_reader::SharedLeaf;

/// A leaf that has blocks in the frame that is being gathered.
pub(crate) struct WaitingLeaf {
    part: Arc<FilePart>,
    index: usize,
    builder: LeafBuilder,
    parent: Option<SharedLeaf>,
    changed: Vec<u16>,
}

impl WaitingLeaf {
    pub(crate) fn resolve(mut self, run: &RunInner, frame: &FrameRef) -> Result<()> {
        self.builder.resolve(frame);
        self.hand_over(run)
    }

    fn hand_over(self, run: &RunInner) -> Result<()> {
        let WaitingLeaf {
            part,
            index,
            builder,
            parent,
            changed,
        } = self;
        run.tree
            .leaf(&part, index, builder.finish(), parent.as_ref(), &changed)
    }
}

/// The parent's leaf beside the one that is being made.
struct ParentLeaf {
    shared: SharedLeaf,
    locations: Vec<Option<Location>>,
}

/// Takes a part's blocks in order. Blocks that the parent has with the same content are not stored again.
pub struct FileWriter<'w> {
    writer: &'w mut PackWriter,
    part: Arc<FilePart>,
    path: Arc<RelativePath>,
    next: u32,
    end: u32,
    parent_size: u64,
    parent_content: Option<Content>,
    parent: Option<ParentLeaf>,
    builder: LeafBuilder,
    changed: Vec<u16>,
    orphans: OrphanBlocks,
}

impl<'w> FileWriter<'w> {
    pub(crate) fn new(writer: &'w mut PackWriter, part: FilePart) -> Result<Self> {
        let total = blocks_of(part.size);
        let end = part.first_block.saturating_add(part.blocks);
        let whole_leaves = end == total || part.blocks.is_multiple_of(LEAF_BLOCKS);
        let reaches = part.blocks > 0 || (total == 0 && part.first_block == 0);
        if !part.first_block.is_multiple_of(LEAF_BLOCKS) || end > total || !whole_leaves || !reaches {
            return Err(Error::new(
                "file-part",
                format!("a part of file \"{}\" is not made of whole leaves", part.path),
            )
            .detail(format!(
                "Blocks {} to {end} of {total} were given.",
                part.first_block
            )));
        }
        writer.run.tree.open_file(&part)?;
        let entry = match &writer.run.parent {
            Some(parent) => parent.tree.find(&part.path)?,
            None => None,
        };
        let parent_size = entry.as_ref().map_or(0, |entry| entry.size);
        let parent_content = match entry.map(|entry| entry.kind) {
            Some(EntryKind::File { content, .. }) => Some(content),
            _ => None,
        };
        let orphans = writer.run.orphan_blocks(&part)?;
        let path = Arc::new(part.path.clone());
        let first = part.first_block;
        let mut file = FileWriter {
            writer,
            part: Arc::new(part),
            path,
            next: first,
            end,
            parent_size,
            parent_content,
            parent: None,
            builder: LeafBuilder::new(first),
            changed: Vec::new(),
            orphans,
        };
        file.begin_leaf()?;
        Ok(file)
    }

    /// The number of the block that comes next.
    pub fn next_block(&self) -> u32 {
        self.next
    }

    fn index(&self) -> usize {
        self.builder.blocks() as usize
    }

    fn begin_leaf(&mut self) -> Result<()> {
        self.builder = LeafBuilder::new(self.next);
        self.changed.clear();
        self.parent = None;
        let (Some(content), Some(parent)) = (&self.parent_content, &self.writer.run.parent) else {
            return Ok(());
        };
        if let Some(shared) = parent
            .tree
            .shared_leaf(content, (self.next / LEAF_BLOCKS) as usize)?
        {
            let locations = shared.leaf.locations().collect();
            self.parent = Some(ParentLeaf { shared, locations });
        }
        Ok(())
    }

    /// The parent's leaf that holds the next block, and the block's index in it, if there is one. A page
    /// whose LSN is not the recorded one need not be compared; one whose LSN is may still differ.
    pub fn parent_leaf(&self) -> Option<(&Leaf, usize)> {
        let parent = self.parent.as_ref()?;
        let index = self.index();
        (index < parent.shared.leaf.blocks() as usize).then_some((&parent.shared.leaf, index))
    }

    /// Blocks of the leaf that is being made.
    fn leaf_blocks(&self) -> u32 {
        LEAF_BLOCKS.min(blocks_of(self.part.size) - self.next / LEAF_BLOCKS * LEAF_BLOCKS)
    }

    /// Bytes of a block of this file.
    fn block_bytes(&self, block: u32) -> usize {
        let rest = self.part.size - u64::from(block) * BLOCK_BYTES as u64;
        rest.min(BLOCK_BYTES as u64) as usize
    }

    /// Takes the next blocks: `bytes` are whole blocks but for the last one of the file; one fact for each.
    pub fn add(&mut self, bytes: &[u8], facts: &[BlockFacts]) -> Result<()> {
        let mut digests = Vec::with_capacity(facts.len());
        for block in bytes.chunks(BLOCK_BYTES) {
            digests.push(if is_zero(block) {
                self.writer.zero_digest(block)
            } else {
                self.writer.run.cluster.identity().digest(block)
            });
        }
        self.add_digested(bytes, facts, &digests)
    }

    /// The same when the digests are known already.
    pub fn add_digested(
        &mut self,
        bytes: &[u8],
        facts: &[BlockFacts],
        digests: &[BlockDigest],
    ) -> Result<()> {
        let count = facts.len();
        let last_bytes = match count.checked_sub(1) {
            Some(last) if count as u64 <= u64::from(self.end - self.next) => {
                last * BLOCK_BYTES + self.block_bytes(self.next + last as u32)
            }
            Some(_) => usize::MAX,
            None => 0,
        };
        if bytes.len() != last_bytes || digests.len() != count {
            return Err(Error::new(
                "file-part",
                format!("blocks of file \"{}\" do not fit it", self.part.path),
            )
            .detail(format!(
                "{count} blocks of {} bytes were given from block {} on.",
                bytes.len(),
                self.next
            )));
        }
        let (mut bytes, mut facts, mut digests) = (bytes, facts, digests);
        while !facts.is_empty() {
            let room = (self.leaf_blocks() - self.builder.blocks()) as usize;
            let take = room.min(facts.len());
            let (these_bytes, rest_bytes) = bytes.split_at((take * BLOCK_BYTES).min(bytes.len()));
            let (these_facts, rest_facts) = facts.split_at(take);
            let (these_digests, rest_digests) = digests.split_at(take);
            self.add_to_leaf(these_bytes, these_facts, these_digests)?;
            (bytes, facts, digests) = (rest_bytes, rest_facts, rest_digests);
        }
        Ok(())
    }

    /// Blocks of one leaf. Runs of blocks that must be stored are stored together.
    fn add_to_leaf(&mut self, bytes: &[u8], facts: &[BlockFacts], digests: &[BlockDigest]) -> Result<()> {
        let mut store_from = 0;
        for (at, ((block, fact), digest)) in bytes.chunks(BLOCK_BYTES).zip(facts).zip(digests).enumerate() {
            // Blocks before this one may not be in the builder yet.
            let index = self.index() + (at - store_from);
            let known = self.known_place(index, block, fact, digest);
            let Some((place, flags, changed)) = known else {
                continue;
            };
            self.store(bytes, facts, digests, store_from, at)?;
            store_from = at + 1;
            if changed {
                self.changed.push(self.index() as u16);
            }
            self.push(fact.lsn, flags, digest, place)?;
        }
        self.store(bytes, facts, digests, store_from, facts.len())
    }

    /// Where the block at this index of the leaf lies already, its flags, and whether that differs from the
    /// parent.
    fn known_place(
        &mut self,
        index: usize,
        block: &[u8],
        fact: &BlockFacts,
        digest: &BlockDigest,
    ) -> Option<(Place, BlockFlags, bool)> {
        let zero = is_zero(block);
        let flags = if zero {
            fact.flags | BlockFlags::ZERO
        } else {
            fact.flags
        };
        if let Some(parent) = &self.parent {
            let leaf = &parent.shared.leaf;
            let location = parent.locations.get(index).copied();
            if let Some(location) = location
                && leaf.digest(index) == Some(*digest)
                && location.is_none() == zero
                && !location
                    .is_some_and(|location| self.writer.run.retiring(PackKind::Rows, &location.frame.pack))
            {
                let same_facts = leaf.lsn(index) == Some(fact.lsn) && leaf.flags(index) == Some(flags);
                match zero {
                    true => self.writer.statistics.blocks_zero += 1,
                    false => self.writer.statistics.blocks_reused += 1,
                }
                return Some((location.into(), flags, !same_facts));
            }
        }
        if zero {
            self.writer.statistics.blocks_zero += 1;
            return Some((Place::Zero, flags, true));
        }
        let location = self
            .orphans
            .find(self.builder.first_block() + index as u32, digest)?;
        self.writer.statistics.blocks_adopted += 1;
        Some((Place::At(location), flags, true))
    }

    /// Stores blocks `from..to` of these, which are the next ones of the leaf.
    fn store(
        &mut self,
        bytes: &[u8],
        facts: &[BlockFacts],
        digests: &[BlockDigest],
        from: usize,
        to: usize,
    ) -> Result<()> {
        let mut at = from;
        while at < to {
            let whole = bytes.get(at * BLOCK_BYTES..at * BLOCK_BYTES + FRAME_BYTES);
            if let Some(frame_bytes) = whole
                && at + FRAME_BLOCKS <= to
            {
                let blocks: Vec<BlockIdentity> = (self.next..)
                    .zip(facts.iter().zip(digests).skip(at).take(FRAME_BLOCKS))
                    .map(|(block, (fact, digest))| (block, fact.lsn, *digest))
                    .collect();
                let frame = self.writer.store_frame(&self.path, frame_bytes, &blocks)?;
                for (slot, (fact, digest)) in
                    facts.iter().zip(digests).skip(at).take(FRAME_BLOCKS).enumerate()
                {
                    self.changed.push(self.index() as u16);
                    self.push(fact.lsn, fact.flags, digest, Place::At(slot_of(frame, slot)))?;
                }
                at += FRAME_BLOCKS;
                self.flush_if(self.writer.flush_is_due())?;
                continue;
            }
            let end = ((at + 1) * BLOCK_BYTES).min(bytes.len());
            if let (Some(block), Some(fact), Some(digest)) =
                (bytes.get(at * BLOCK_BYTES..end), facts.get(at), digests.get(at))
            {
                let slot = self
                    .writer
                    .gather(&self.path, self.next, fact.lsn, *digest, block);
                self.changed.push(self.index() as u16);
                self.push(fact.lsn, fact.flags, digest, Place::Waiting(slot))?;
                self.flush_if(self.writer.gathered_is_full())?;
            }
            at += 1;
        }
        Ok(())
    }

    fn flush_if(&mut self, due: bool) -> Result<()> {
        if due {
            if let Some(frame) = self.writer.flush()? {
                self.builder.resolve(&frame);
            }
            self.writer.close_if_full()?;
        }
        Ok(())
    }

    fn push(&mut self, lsn: Lsn, flags: BlockFlags, digest: &BlockDigest, place: Place) -> Result<()> {
        self.builder.push(lsn, flags, digest, place);
        let full = self.builder.blocks() == self.leaf_blocks();
        self.next += 1;
        if full {
            self.end_leaf()?;
            if self.next < self.end {
                self.begin_leaf()?;
            }
        }
        Ok(())
    }

    fn end_leaf(&mut self) -> Result<()> {
        let builder = std::mem::take(&mut self.builder);
        let changed = std::mem::take(&mut self.changed);
        // Only a leaf of as many blocks can be shared or overlaid.
        let parent = self.parent.take().map(|parent| parent.shared);
        let parent = parent.filter(|parent| parent.leaf.blocks() == builder.blocks());
        let index = (builder.first_block() / LEAF_BLOCKS) as usize;
        let leaf = WaitingLeaf {
            part: self.part.clone(),
            index,
            builder,
            parent,
            changed,
        };
        if leaf.builder.is_waiting() {
            self.writer.waiting.push(leaf);
            return Ok(());
        }
        leaf.hand_over(&self.writer.run)
    }

    /// The digest by which a block is compared with the parent's.
    pub fn digest(&self, block: &[u8]) -> BlockDigest {
        self.writer.run.cluster.identity().digest(block)
    }

    /// Takes up to so many of the next blocks from the parent, unread; how many were taken. It stops before a
    /// block that the parent does not have, whose pack is retiring, or that was no ordinary page (all zero, new, or with
    /// a bad checksum): that one must be read and added.
    pub fn keep(&mut self, blocks: u32) -> Result<u32> {
        let mut kept = 0;
        while kept < blocks && self.next < self.end {
            let index = self.index();
            let Some(parent) = &self.parent else { break };
            let leaf = &parent.shared.leaf;
            let (Some(lsn), Some(flags), Some(digest), Some(location)) = (
                leaf.lsn(index),
                leaf.flags(index),
                leaf.digest(index),
                parent.locations.get(index).copied(),
            ) else {
                break;
            };
            if flags != BlockFlags::default() {
                break;
            }
            // A last block that was short and is not any more has other content.
            let parent_bytes = self
                .parent_size
                .saturating_sub(u64::from(self.next) * BLOCK_BYTES as u64);
            if parent_bytes.min(BLOCK_BYTES as u64) != self.block_bytes(self.next) as u64
                || location
                    .is_some_and(|location| self.writer.run.retiring(PackKind::Rows, &location.frame.pack))
            {
                break;
            }
            self.writer.statistics.blocks_reused += 1;
            self.push(lsn, flags, &digest, location.into())?;
            kept += 1;
        }
        Ok(kept)
    }

    /// All blocks were given. The entry goes to the tree when its last frame is written. Error: `file-part`.
    pub fn finish(mut self) -> Result<()> {
        if self.next != self.end {
            return Err(Error::new(
                "file-part",
                format!("file \"{}\" was not read to its end", self.part.path),
            )
            .detail(format!("Block {} of {} is missing.", self.next, self.end)));
        }
        if self.part.size == 0 {
            self.end_leaf()?;
        }
        Ok(())
    }
}

/// Whether all bytes are zero.
fn is_zero(bytes: &[u8]) -> bool {
    // Most blocks are told by their first bytes; the rest is compared without branches.
    bytes.iter().take(16).all(|byte| *byte == 0)
        && bytes
            .chunks(64)
            .all(|chunk| chunk.iter().fold(0, |all, byte| all | byte) == 0)
}
