//! Storing blocks: gathered into frames, the frames into rows packs. `docs/format.md` section 3.
//!
//! One [`PackWriter`] for each thread: blocks are compressed and sealed where they were read, and go from
//! there into the pack; nothing is copied between threads. Sixteen neighbours are sealed straight from the
//! caller's buffer; what is left over gathers in one frame of its own, and the leaves that have blocks in it
//! wait until it is written.
//!
//! Invariants: every block is in exactly one frame; a leaf goes to the tree only when all of its blocks are
//! in a pack; memory is a constant: one open pack, one gathered frame, the few leaves that wait.

use std::collections::HashMap;
use std::sync::Arc;

use diagnostic::{Error, Result};
use postgres::Lsn;

use crate::container::{ContainerWriter, Kind, Method, Placed};
use crate::extents::{BlockIdentity, ExtentList};
use crate::file_writer::WaitingLeaf;
use crate::identity::BlockDigest;
use crate::map::{BLOCK_BYTES, BlockFlags, FRAME_BLOCKS, FRAME_BYTES, FileFormat, FrameRef, Location};
use crate::names::{PackKind, PackRef};
use crate::path::RelativePath;
use crate::run::RunInner;
use crate::seal::Coder;
use crate::store::Put;
use crate::tree_writer::PACK_BYTES;

pub use crate::file_writer::FileWriter;

/// A pack holds at most so many blocks (128 MiB), so that its footer stays small however well they compress:
/// each thread keeps the footer of its open pack in memory, 24 bytes a block and more while it is encoded.
pub(crate) const PACK_BLOCKS: u64 = 16_384;
/// The gathered frame is written, full or not, when so many others were written since it was begun.
const FRAMES_UNTIL_FLUSH: u32 = 64;

/// What the caller knows of a block that it has read. [`BlockFlags::ZERO`] is found out here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BlockFacts {
    /// The page's LSN; 0 where a file has no pages.
    pub lsn: Lsn,
    pub flags: BlockFlags,
}

/// A file, or some consecutive leaves of one, that one thread is going to store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FilePart {
    /// The place of the file's entry in path order: 0, 1, 2, ...; `None` for a file that is written last.
    pub sequence: Option<u64>,
    pub path: RelativePath,
    /// Permission bits.
    pub mode: u32,
    /// Of the whole file, in bytes; a file that shrinks is filled up with zeros, and what is beyond is left
    /// to WAL.
    pub size: u64,
    pub format: FileFormat,
    /// The part's first block: a multiple of 1024.
    pub first_block: u32,
    /// The part's blocks: a multiple of 1024, or up to the file's end.
    pub blocks: u32,
}

/// What a thread has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PackStatistics {
    /// Blocks stored in packs of this run.
    pub blocks_stored: u64,
    /// Blocks that the parent has.
    pub blocks_reused: u64,
    /// Blocks that an interrupted run had stored.
    pub blocks_adopted: u64,
    pub blocks_zero: u64,
    /// Bytes of the packs that were written.
    pub bytes_stored: u64,
    pub packs: u64,
}

impl PackStatistics {
    /// Of two threads together.
    pub fn plus(self, other: PackStatistics) -> PackStatistics {
        PackStatistics {
            blocks_stored: self.blocks_stored + other.blocks_stored,
            blocks_reused: self.blocks_reused + other.blocks_reused,
            blocks_adopted: self.blocks_adopted + other.blocks_adopted,
            blocks_zero: self.blocks_zero + other.blocks_zero,
            bytes_stored: self.bytes_stored + other.bytes_stored,
            packs: self.packs + other.packs,
        }
    }
}

/// A pack's name is taken only once: a run's identifier is its own.
pub(crate) fn must_be_ours(put: Put, name: &str) -> Result<()> {
    match put {
        Put::Created => Ok(()),
        Put::Exists => Err(Error::new(
            "run-conflict",
            format!("object \"{name}\" was written by another run"),
        )
        .detail("Two runs have the same identifier. Nothing of this backup was published.")
        .hint("Run the command again.")),
    }
}

struct OpenPack {
    container: ContainerWriter,
    pack: PackRef,
    extents: ExtentList,
    blocks: u64,
}

/// Path, first slot and blocks of a piece of a frame.
type FrameExtent<'a> = (&'a RelativePath, u8, &'a [BlockIdentity]);

/// A block in the frame that is being gathered.
struct Gathered {
    path: Arc<RelativePath>,
    block: u32,
    lsn: Lsn,
    digest: BlockDigest,
}

/// One thread's way of storing blocks: gathers them into frames, the frames into packs.
pub struct PackWriter {
    pub(crate) run: Arc<RunInner>,
    coder: Coder,
    pack: Option<OpenPack>,
    plain: Vec<u8>,
    gathered: Vec<Gathered>,
    frames_since: u32,
    pub(crate) waiting: Vec<WaitingLeaf>,
    pub(crate) statistics: PackStatistics,
    /// Digests of zero blocks by length; almost always of one length.
    zero_digests: HashMap<usize, BlockDigest>,
}

impl PackWriter {
    pub(crate) fn new(run: Arc<RunInner>) -> Result<Self> {
        Ok(PackWriter {
            run,
            coder: Coder::new()?,
            pack: None,
            plain: Vec::with_capacity(FRAME_BYTES),
            gathered: Vec::with_capacity(FRAME_BLOCKS),
            frames_since: 0,
            waiting: Vec::new(),
            statistics: PackStatistics::default(),
            zero_digests: HashMap::new(),
        })
    }

    /// Begins a file or a part of one. Nothing of the file is visible before its [`FileWriter::finish`].
    pub fn file(&mut self, part: FilePart) -> Result<FileWriter<'_>> {
        FileWriter::new(self, part)
    }

    pub(crate) fn zero_digest(&mut self, block: &[u8]) -> BlockDigest {
        let identity = self.run.cluster.identity();
        *self
            .zero_digests
            .entry(block.len())
            .or_insert_with(|| identity.digest(block))
    }

    /// Stores sixteen whole neighbours as a frame of their own, straight from the caller's buffer.
    pub(crate) fn store_frame(
        &mut self,
        path: &RelativePath,
        bytes: &[u8],
        blocks: &[BlockIdentity],
    ) -> Result<FrameRef> {
        let frame = self.put_frame(None, bytes, &[(path, 0, blocks)])?;
        if !self.gathered.is_empty() {
            self.frames_since += 1;
        }
        self.close_if_full()?;
        Ok(frame)
    }

    /// Adds a block to the gathered frame; its slot. The caller's leaf waits for the frame; see
    /// [`Self::flush_if_due`].
    pub(crate) fn gather(
        &mut self,
        path: &Arc<RelativePath>,
        block: u32,
        lsn: Lsn,
        digest: BlockDigest,
        bytes: &[u8],
    ) -> u8 {
        let slot = self.gathered.len();
        // A block before may have been the short last one of its file.
        self.plain.resize(slot * BLOCK_BYTES, 0);
        self.plain.extend_from_slice(bytes);
        self.gathered.push(Gathered {
            path: path.clone(),
            block,
            lsn,
            digest,
        });
        slot as u8
    }

    pub(crate) fn gathered_is_full(&self) -> bool {
        self.gathered.len() >= FRAME_BLOCKS
    }

    pub(crate) fn flush_is_due(&self) -> bool {
        self.frames_since >= FRAMES_UNTIL_FLUSH
    }

    /// Writes the gathered frame, if there is anything in it; where it lies.
    pub(crate) fn flush(&mut self) -> Result<Option<FrameRef>> {
        self.frames_since = 0;
        if self.gathered.is_empty() {
            return Ok(None);
        }
        let gathered = std::mem::take(&mut self.gathered);
        let plain = std::mem::take(&mut self.plain);
        let blocks: Vec<_> = gathered
            .iter()
            .map(|block| (block.block, block.lsn, block.digest))
            .collect();
        let mut extents: Vec<FrameExtent<'_>> = Vec::new();
        let mut start = 0;
        for chunk in gathered.chunk_by(|one, two| Arc::ptr_eq(&one.path, &two.path)) {
            if let (Some(first), Some(blocks)) = (chunk.first(), blocks.get(start..start + chunk.len())) {
                extents.push((&*first.path, start as u8, blocks));
            }
            start += chunk.len();
        }
        let frame = self.put_frame(Some(blocks.len()), &plain, &extents)?;
        self.gathered = gathered;
        self.gathered.clear();
        self.plain = plain;
        self.plain.clear();
        for leaf in std::mem::take(&mut self.waiting) {
            leaf.resolve(&self.run, &frame)?;
        }
        Ok(Some(frame))
    }

    fn put_frame(
        &mut self,
        blocks: Option<usize>,
        plain: &[u8],
        extents: &[FrameExtent<'_>],
    ) -> Result<FrameRef> {
        let pack = match &mut self.pack {
            Some(pack) => pack,
            None => {
                let reference = self.run.next_rows_pack();
                let cluster = &self.run.cluster;
                let name = cluster.names().pack(PackKind::Rows, &reference);
                let store = &**cluster.store();
                let container = ContainerWriter::create(
                    store,
                    cluster.keychain(),
                    Kind::RowsPack,
                    Method::RowKey,
                    &name,
                )?;
                self.pack.insert(OpenPack {
                    container,
                    pack: reference,
                    extents: ExtentList::default(),
                    blocks: 0,
                })
            }
        };
        let Placed {
            frame,
            offset,
            stored_length,
        } = pack.container.frame(&mut self.coder, plain)?;
        for (path, slot, blocks) in extents {
            pack.extents.push(path, frame, *slot, blocks)?;
        }
        let count = blocks.unwrap_or(FRAME_BLOCKS) as u64;
        pack.blocks += count;
        self.statistics.blocks_stored += count;
        Ok(FrameRef {
            pack: pack.pack,
            frame,
            offset,
            stored_length,
        })
    }

    /// Closes the pack when it is large enough. The gathered frame may go into the next one.
    pub(crate) fn close_if_full(&mut self) -> Result<()> {
        match &self.pack {
            Some(pack) if pack.container.position() >= PACK_BYTES || pack.blocks >= PACK_BLOCKS => {
                self.close()
            }
            _ => Ok(()),
        }
    }

    fn close(&mut self) -> Result<()> {
        let Some(pack) = self.pack.take() else {
            return Ok(());
        };
        let finished = pack.container.finish(&mut self.coder, pack.extents.finish()?)?;
        must_be_ours(
            finished.put,
            &self.run.cluster.names().pack(PackKind::Rows, &pack.pack),
        )?;
        self.run.tree.rows_pack(pack.pack, finished.size, pack.blocks);
        self.statistics.bytes_stored += finished.size;
        self.statistics.packs += 1;
        Ok(())
    }

    /// Stores what is gathered and closes the pack. Every thread calls it before `TreeWriter::finish`.
    pub fn finish(mut self) -> Result<PackStatistics> {
        self.flush()?;
        self.close()?;
        Ok(self.statistics)
    }

    /// What was done so far; bytes count when a pack is closed.
    pub fn statistics(&self) -> PackStatistics {
        self.statistics
    }
}

/// The places of a frame's blocks.
pub(crate) fn slot_of(frame: FrameRef, slot: usize) -> Location {
    Location {
        frame,
        slot: slot as u8,
    }
}
