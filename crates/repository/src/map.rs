//! The map: which block of which file lies where. Values and their encoding; `docs/format.md` section 4.
//!
//! Invariants, checked whenever a node is decoded: a leaf has at most 1024 blocks, its runs cover them
//! exactly, a run stays within its frame, and an overlay's blocks are in its base. Whoever holds a decoded
//! node need not check again.

use diagnostic::{Error, Result};
use postgres::Lsn;
use serde::{Deserialize, Serialize};

use crate::identity::BlockDigest;
use crate::names::PackRef;
use crate::path::RelativePath;

/// The bytes of a whole block.
pub const BLOCK_BYTES: usize = 8192;
/// Blocks in a frame, at most.
pub const FRAME_BLOCKS: usize = 16;
/// Plain bytes in a frame of blocks, at most.
pub const FRAME_BYTES: usize = BLOCK_BYTES * FRAME_BLOCKS;
/// Blocks that one leaf describes.
pub const LEAF_BLOCKS: u32 = 1024;
/// A file of at most so many blocks has its leaf inside its entry.
pub const INLINE_BLOCKS: u32 = 32;
/// An overlay replaces at most so many blocks.
pub const OVERLAY_BLOCKS_MAX: usize = 256;
/// Entries of a directory page, at most.
pub(crate) const PAGE_ENTRIES_MAX: usize = 2048;
/// Plain bytes of a directory page, about, at most.
pub(crate) const PAGE_BYTES_MAX: usize = 4 << 20;
/// The version byte of every node.
pub(crate) const NODE_VERSION: u8 = 1;
/// Plain bytes of a node, at most.
pub(crate) const NODE_BYTES_MAX: usize = 64 << 20;

/// A frame of a pack, reachable by one range request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct FrameRef {
    pub pack: PackRef,
    /// Its number within the pack, from 0.
    pub frame: u32,
    /// Where its stored bytes begin.
    pub offset: u64,
    /// Stored bytes, the tag included.
    pub stored_length: u32,
}

/// What is known of a block besides its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct BlockFlags(pub u8);

impl BlockFlags {
    /// The page checksum was bad; the backup's record lists the page, and says whether it was excused.
    pub const EXCUSED: BlockFlags = BlockFlags(1);
    /// All bytes are zero; the block is stored nowhere.
    pub const ZERO: BlockFlags = BlockFlags(2);
    /// `pd_upper` is 0.
    pub const NEW: BlockFlags = BlockFlags(4);

    pub fn contains(self, other: BlockFlags) -> bool {
        self.0 & other.0 == other.0
    }
}

impl std::ops::BitOr for BlockFlags {
    type Output = BlockFlags;

    fn bitor(self, other: BlockFlags) -> BlockFlags {
        BlockFlags(self.0 | other.0)
    }
}

/// Where a block lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Location {
    pub frame: FrameRef,
    /// The block's place in the frame: its bytes begin at `slot` x 8192.
    pub slot: u8,
}

/// Neighbouring blocks of a leaf that stand in neighbouring slots of one frame; all zero if `stored_length`
/// is 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockRun {
    pub blocks: u16,
    /// Index into the leaf's `packs`.
    pub pack: u16,
    pub frame: u32,
    pub offset: u64,
    pub stored_length: u32,
    pub slot: u8,
}

/// Up to 1024 blocks of a file.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Leaf {
    pub first_block: u32,
    pub(crate) lsns: Vec<u64>,
    #[serde(with = "crate::bytes")]
    pub(crate) flags: Vec<u8>,
    #[serde(with = "crate::bytes")]
    pub(crate) digests: Vec<u8>,
    pub(crate) packs: Vec<PackRef>,
    pub(crate) runs: Vec<BlockRun>,
}

impl Leaf {
    /// How many blocks it describes.
    pub fn blocks(&self) -> u32 {
        self.lsns.len() as u32
    }

    /// The page LSN of the block at this index, 0 where a file has no pages.
    pub fn lsn(&self, index: usize) -> Option<Lsn> {
        self.lsns.get(index).map(|lsn| Lsn(*lsn))
    }

    pub fn flags(&self, index: usize) -> Option<BlockFlags> {
        self.flags.get(index).map(|flags| BlockFlags(*flags))
    }

    pub fn digest(&self, index: usize) -> Option<BlockDigest> {
        let digest = self.digests.get(index * 16..)?.first_chunk::<16>()?;
        Some(BlockDigest(*digest))
    }

    /// The runs, with the packs they lie in (`None`: zero blocks), and the index of each run's first block.
    pub fn runs(&self) -> impl Iterator<Item = (u32, Option<PackRef>, &BlockRun)> {
        let mut index = 0;
        self.runs.iter().map(move |run| {
            let first = index;
            index += u32::from(run.blocks);
            let pack = if run.stored_length == 0 {
                None
            } else {
                self.packs.get(usize::from(run.pack)).copied()
            };
            (first, pack, run)
        })
    }

    /// Where each block lies, in order; `None` is a zero block.
    pub fn locations(&self) -> impl Iterator<Item = Option<Location>> {
        self.runs().flat_map(|(_, pack, run)| {
            (0..run.blocks).map(move |at| {
                pack.map(|pack| Location {
                    frame: FrameRef {
                        pack,
                        frame: run.frame,
                        offset: run.offset,
                        stored_length: run.stored_length,
                    },
                    slot: run.slot.wrapping_add(at as u8),
                })
            })
        })
    }

    fn check(&self) -> Result<(), &'static str> {
        let blocks = self.lsns.len();
        if blocks > LEAF_BLOCKS as usize || self.flags.len() != blocks || self.digests.len() != blocks * 16 {
            return Err("a leaf's lengths disagree");
        }
        if self.first_block.checked_add(blocks as u32).is_none() {
            return Err("a leaf's block numbers overflow");
        }
        let mut covered = 0;
        for run in &self.runs {
            if run.blocks == 0 {
                return Err("a run is empty");
            }
            let flags = self
                .flags
                .get(covered..covered + usize::from(run.blocks))
                .ok_or("runs exceed the leaf")?;
            covered += usize::from(run.blocks);
            if run.stored_length == 0 {
                if flags
                    .iter()
                    .any(|flags| !BlockFlags(*flags).contains(BlockFlags::ZERO))
                {
                    return Err("a block that is not zero has no location");
                }
                continue;
            }
            if usize::from(run.pack) >= self.packs.len() {
                return Err("a run lies in an unknown pack");
            }
            if usize::from(run.slot) + usize::from(run.blocks) > FRAME_BLOCKS {
                return Err("a run leaves its frame");
            }
            if run.offset.checked_add(u64::from(run.stored_length)).is_none() {
                return Err("a run's offset overflows");
            }
        }
        if covered != blocks {
            return Err("runs do not cover the leaf");
        }
        Ok(())
    }
}

/// Blocks of a base leaf, replaced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Overlay {
    /// Indexes into the base, ascending; the overlay's leaf has a block for each.
    pub(crate) replaced: Vec<u16>,
    pub(crate) leaf: Leaf,
}

impl Overlay {
    fn check(&self) -> Result<(), &'static str> {
        self.leaf.check()?;
        if self.replaced.len() != self.leaf.lsns.len() || self.replaced.len() > OVERLAY_BLOCKS_MAX {
            return Err("an overlay's lengths disagree");
        }
        if !self.replaced.is_sorted_by(|one, two| one < two) {
            return Err("an overlay's indexes are not ascending");
        }
        Ok(())
    }
}

/// Where a leaf of a file is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeafRef {
    pub base: FrameRef,
    pub overlay: Option<FrameRef>,
}

/// How a file's blocks are to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FileFormat {
    /// PostgreSQL pages with a header: relation files.
    Pages,
    /// Anything else.
    Opaque,
}

/// The blocks of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Content {
    /// Up to 32 blocks.
    Inline(Leaf),
    /// One for each 1024 blocks.
    Leaves(Vec<LeafRef>),
}

/// What stands under a path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum EntryKind {
    Directory,
    /// With its target.
    Symlink(#[serde(with = "crate::bytes")] Vec<u8>),
    File {
        format: FileFormat,
        content: Content,
    },
}

/// One file, directory or symbolic link of a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    pub path: RelativePath,
    /// Permission bits as `st_mode & 07777`.
    pub mode: u32,
    /// Bytes; 0 for what is not a file.
    pub size: u64,
    pub kind: EntryKind,
}

impl FileEntry {
    /// Blocks of a file, the last one perhaps short.
    pub fn blocks(&self) -> u32 {
        blocks_of(self.size)
    }

    fn check(&self) -> Result<(), &'static str> {
        let EntryKind::File { content, .. } = &self.kind else {
            return Ok(());
        };
        if self.size > u64::from(u32::MAX) * BLOCK_BYTES as u64 {
            return Err("a file is too large");
        }
        match content {
            Content::Inline(leaf) => {
                leaf.check()?;
                if leaf.blocks() != self.blocks() || leaf.first_block != 0 {
                    return Err("an entry's size and its blocks disagree");
                }
            }
            Content::Leaves(leaves) => {
                if leaves.len() as u64 != u64::from(self.blocks().div_ceil(LEAF_BLOCKS)) {
                    return Err("an entry's size and its leaves disagree");
                }
            }
        }
        Ok(())
    }
}

/// Blocks of a file of this size.
pub fn blocks_of(size: u64) -> u32 {
    u32::try_from(size.div_ceil(BLOCK_BYTES as u64)).unwrap_or(u32::MAX)
}

/// A part of the directory: entries in path order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Page {
    pub entries: Vec<FileEntry>,
}

/// Where a page of the directory is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageRef {
    pub first_path: RelativePath,
    pub frame: FrameRef,
}

/// The node from which everything is reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Root {
    pub pages: Vec<PageRef>,
    /// The page of the files that are written last.
    pub late: FrameRef,
}

/// A node: what a frame of a map pack holds.
pub(crate) trait Node: Serialize + for<'de> Deserialize<'de> {
    const NAME: &'static str;
    fn check(&self) -> Result<(), &'static str>;
}

impl Node for Leaf {
    const NAME: &'static str = "leaf";
    fn check(&self) -> Result<(), &'static str> {
        Leaf::check(self)
    }
}

impl Node for Overlay {
    const NAME: &'static str = "overlay";
    fn check(&self) -> Result<(), &'static str> {
        Overlay::check(self)
    }
}

impl Node for Page {
    const NAME: &'static str = "directory page";
    fn check(&self) -> Result<(), &'static str> {
        if !self.entries.is_sorted_by(|one, two| one.path < two.path) {
            return Err("a directory page is out of order");
        }
        self.entries.iter().try_for_each(FileEntry::check)
    }
}

impl Node for Root {
    const NAME: &'static str = "root";
    fn check(&self) -> Result<(), &'static str> {
        if !self
            .pages
            .is_sorted_by(|one, two| one.first_path < two.first_path)
        {
            return Err("the root is out of order");
        }
        Ok(())
    }
}

/// A node's plain text.
pub(crate) fn encode_node<N: Node>(node: &N) -> Result<Vec<u8>> {
    postcard::to_extend(node, vec![NODE_VERSION])
        .map_err(|error| Error::new("map-encode", format!("cannot encode a {}", N::NAME)).caused_by(&error))
}

/// Reads a node's plain text; every invariant holds afterwards. Errors: `repository-format`,
/// `object-damaged`.
pub(crate) fn decode_node<N: Node>(plain: &[u8], object: &str) -> Result<N> {
    let damaged = |why: &str| {
        Error::new(
            "object-damaged",
            format!("object \"{object}\" holds a damaged {}", N::NAME),
        )
        .detail(format!("{why}."))
    };
    match plain.split_first() {
        Some((&NODE_VERSION, body)) => {
            let (node, rest) =
                postcard::take_from_bytes::<N>(body).map_err(|error| damaged(&error.to_string()))?;
            if !rest.is_empty() {
                return Err(damaged("Bytes follow it"));
            }
            node.check().map_err(damaged)?;
            Ok(node)
        }
        Some((version, _)) => Err(crate::container::newer_format(object, u32::from(*version))),
        None => Err(damaged("It is empty")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hostile_length_allocates_nothing() {
        // A list that says it has 2^63 elements, in each place where a node has one.
        let huge = [0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x7F];
        for zeros in 0..8 {
            let bytes = [&[NODE_VERSION], vec![0; zeros].as_slice(), &huge].concat();
            assert_eq!(
                decode_node::<Leaf>(&bytes, "x").unwrap_err().code(),
                "object-damaged"
            );
            assert_eq!(
                decode_node::<Overlay>(&bytes, "x").unwrap_err().code(),
                "object-damaged"
            );
            assert_eq!(
                decode_node::<Page>(&bytes, "x").unwrap_err().code(),
                "object-damaged"
            );
            assert_eq!(
                decode_node::<Root>(&bytes, "x").unwrap_err().code(),
                "object-damaged"
            );
        }
    }

    #[test]
    fn a_leaf_whose_parts_disagree_is_refused() {
        let run = BlockRun {
            blocks: 2,
            pack: 0,
            frame: 0,
            offset: 128,
            stored_length: 100,
            slot: 0,
        };
        let pack = PackRef {
            run: "20260815T020003Z".parse().unwrap(),
            number: 1,
        };
        let good = Leaf {
            first_block: 0,
            lsns: vec![1, 2],
            flags: vec![0, 0],
            digests: vec![7; 32],
            packs: vec![pack],
            runs: vec![run],
        };
        let decoded = |leaf: &Leaf| decode_node::<Leaf>(&encode_node(leaf).unwrap(), "x");
        assert_eq!(decoded(&good).unwrap(), good);
        let runs = |run| Leaf {
            runs: vec![run],
            ..good.clone()
        };
        for bad in [
            Leaf {
                lsns: vec![1],
                ..good.clone()
            },
            Leaf {
                digests: vec![7; 31],
                ..good.clone()
            },
            Leaf {
                packs: vec![],
                ..good.clone()
            },
            Leaf {
                first_block: u32::MAX,
                ..good.clone()
            },
            Leaf {
                runs: vec![run, run],
                ..good.clone()
            },
            runs(BlockRun { blocks: 0, ..run }),
            runs(BlockRun { blocks: 1, ..run }),
            runs(BlockRun { slot: 15, ..run }),
            runs(BlockRun {
                offset: u64::MAX,
                ..run
            }),
            runs(BlockRun {
                stored_length: 0,
                ..run
            }),
        ] {
            assert_eq!(decoded(&bad).unwrap_err().code(), "object-damaged", "{bad:?}");
        }
        let mut newer = encode_node(&good).unwrap();
        newer[0] = 2;
        assert_eq!(
            decode_node::<Leaf>(&newer, "x").unwrap_err().code(),
            "repository-format"
        );
    }
}
