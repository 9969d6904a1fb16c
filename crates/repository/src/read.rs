//! Reading blocks back: whole leaves, or some of their blocks, of one or of several files.
//!
//! Invariants: nothing reaches the caller that was not authenticated, has the length that the map says and
//! the digest that it records; each frame is fetched with its neighbours in one request and decoded about
//! once; memory is a constant: one range, and a few frames that were decoded and not used up.

use std::sync::Arc;

use diagnostic::{Error, Result};

use crate::container::damaged;
use crate::map::{BLOCK_BYTES, Content, FRAME_BYTES, FileEntry, FrameRef, Leaf};
use crate::names::{PackKind, PackRef};
use crate::nodes::{PackKey, PackKeys};
use crate::repository::ClusterRepository;
use crate::seal::{Decoder, FRAME_OVERHEAD, stored_bytes_max};
use crate::tree_reader::TreeReader;

/// Decoded frames that are kept for whoever comes next: 4 MiB.
const FRAMES_KEPT: usize = 32;
/// What lies between two wanted frames is fetched too if it is not more than this.
const GAP_BYTES: u64 = 64 << 10;

/// Consecutive bytes of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Piece<'a> {
    Data(&'a [u8]),
    /// So many zero bytes.
    Zeros(u64),
}

/// A leaf that is wanted, with the caller's own number for it.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    pub item: usize,
    pub leaf: &'a Leaf,
    /// Of the whole file, in bytes: says how long the last block is.
    pub size: u64,
}

/// Takes (item, byte offset in the file, piece).
pub type Sink<'a> = dyn FnMut(usize, u64, Piece<'_>) -> Result<()> + 'a;

/// Blocks that stand together in a frame and in a file.
struct Need<'a> {
    frame: FrameRef,
    slot: u8,
    blocks: u16,
    wanted: &'a Wanted<'a>,
    /// Index in the leaf.
    index: u32,
}

struct KeptFrame {
    pack: PackRef,
    frame: u32,
    plain: Vec<u8>,
    /// For finding the one that was not used for longest.
    used: u64,
}

/// One thread's way of reading blocks: decodes each frame about once, fetches neighbouring frames together.
pub struct BlockReader {
    cluster: ClusterRepository,
    keys: Arc<PackKeys>,
    decoder: Decoder,
    kept: Vec<KeptFrame>,
    clock: u64,
    range: Vec<u8>,
    plain: Vec<u8>,
    frames_decoded: u64,
}

impl BlockReader {
    /// Error: `key-role` for a recipient that may not read rows.
    pub fn new(cluster: &ClusterRepository) -> Result<Self> {
        cluster.keychain().current().private()?;
        Self::sharing(Arc::new(PackKeys::new(cluster, PackKind::Rows)))
    }

    /// One more reader, for another thread; packs' keys are opened once for both.
    pub fn another(&self) -> Result<Self> {
        Self::sharing(self.keys.clone())
    }

    fn sharing(keys: Arc<PackKeys>) -> Result<Self> {
        Ok(BlockReader {
            cluster: keys.cluster().clone(),
            keys,
            decoder: Decoder::new()?,
            kept: Vec::new(),
            clock: 0,
            range: Vec::new(),
            plain: Vec::with_capacity(FRAME_BYTES),
            frames_decoded: 0,
        })
    }

    /// Gives all blocks of a leaf to `sink` as (byte offset in the file, piece), each verified and its digest
    /// compared; in the order in which frames lie, which need not be that of the file. Errors:
    /// `object-missing`, `object-damaged`, `key-epoch`, and the sink's.
    pub fn read_leaf(
        &mut self,
        leaf: &Leaf,
        size: u64,
        sink: &mut dyn FnMut(u64, Piece<'_>) -> Result<()>,
    ) -> Result<()> {
        let wanted = [Wanted { item: 0, leaf, size }];
        self.read(&wanted, &|_, _| true, &mut |_, offset, piece| sink(offset, piece))
    }

    /// The same for leaves of several (neighbouring, small) files: a frame that they share is decoded once.
    pub fn read_leaves(&mut self, wanted: &[Wanted<'_>], sink: &mut Sink<'_>) -> Result<()> {
        self.read(wanted, &|_, _| true, sink)
    }

    /// Only some blocks of several leaves: `want` is asked with (item, index).
    pub fn read_some(
        &mut self,
        wanted: &[Wanted<'_>],
        want: &dyn Fn(usize, usize) -> bool,
        sink: &mut Sink<'_>,
    ) -> Result<()> {
        self.read(wanted, want, sink)
    }

    /// Only some blocks of a leaf: `want` is asked with each index.
    pub fn read_blocks(
        &mut self,
        leaf: &Leaf,
        size: u64,
        want: &dyn Fn(usize) -> bool,
        sink: &mut dyn FnMut(u64, Piece<'_>) -> Result<()>,
    ) -> Result<()> {
        let wanted = [Wanted { item: 0, leaf, size }];
        self.read(&wanted, &|_, index| want(index), &mut |_, offset, piece| {
            sink(offset, piece)
        })
    }

    /// The content of a small file; refuses one of more than `bytes_max`. Error: `file-too-large`.
    pub fn read_file(&mut self, tree: &TreeReader, entry: &FileEntry, bytes_max: u64) -> Result<Vec<u8>> {
        if entry.size > bytes_max {
            return Err(Error::new(
                "file-too-large",
                format!(
                    "file \"{}\" of the backup is too large to be read whole",
                    entry.path
                ),
            )
            .detail(format!(
                "It has {} bytes; at most {bytes_max} were expected.",
                entry.size
            )));
        }
        let mut bytes = vec![0; entry.size as usize];
        let nothing = Content::Leaves(Vec::new());
        for leaf in tree.leaves(TreeReader::content(entry).unwrap_or(&nothing)) {
            self.read_leaf(&leaf?, entry.size, &mut |offset, piece| {
                if let Piece::Data(data) = piece
                    && let Some(room) = bytes.get_mut(offset as usize..offset as usize + data.len())
                {
                    room.copy_from_slice(data);
                }
                Ok(())
            })?;
        }
        Ok(bytes)
    }

    /// Frames that were decoded so far.
    pub fn frames_decoded(&self) -> u64 {
        self.frames_decoded
    }

    fn read(
        &mut self,
        wanted: &[Wanted<'_>],
        want: &dyn Fn(usize, usize) -> bool,
        sink: &mut Sink<'_>,
    ) -> Result<()> {
        let mut needs = Vec::new();
        for wanted in wanted {
            collect(wanted, want, &mut needs, sink)?;
        }
        needs.sort_by_key(|need| (need.frame.pack, need.frame.offset, need.frame.frame));
        let mut rest: &[Need<'_>] = &needs;
        while let Some(first) = rest.first() {
            let frame = first.frame;
            let same = rest.iter().take_while(|need| need.frame == frame).count();
            let at = self
                .kept
                .iter()
                .position(|kept| kept.pack == frame.pack && kept.frame == frame.frame);
            if let Some(kept) = at.and_then(|at| self.kept.get_mut(at)) {
                self.clock += 1;
                kept.used = self.clock;
                let name = self.keys.of(&frame.pack)?;
                for need in rest.get(..same).unwrap_or_default() {
                    give(&self.cluster, &name.name, need, &kept.plain, sink)?;
                }
                rest = rest.get(same..).unwrap_or_default();
                continue;
            }
            rest = self.fetch(rest, sink)?;
        }
        Ok(())
    }

    /// Fetches as many of the first frames as belong into one range, and gives what they hold; returns the
    /// needs that are left.
    fn fetch<'n>(&mut self, needs: &'n [Need<'n>], sink: &mut Sink<'_>) -> Result<&'n [Need<'n>]> {
        let Some(first) = needs.first() else {
            return Ok(needs);
        };
        let pack = first.frame.pack;
        let key = self.keys.of(&pack)?;
        let most = self.cluster.store().range_bytes() as u64;
        let start = first.frame.offset;
        let mut end = start;
        let mut count = 0;
        for need in needs {
            let frame = &need.frame;
            let stored = frame.stored_length as usize;
            if stored > stored_bytes_max(FRAME_BYTES) || stored < FRAME_OVERHEAD {
                return Err(damaged(
                    &key.name,
                    "a reference to one of its frames has an impossible length",
                ));
            }
            let frame_end = frame.offset.saturating_add(u64::from(frame.stored_length));
            let near = frame.pack == pack
                && frame.offset <= end.saturating_add(GAP_BYTES)
                && frame_end - start <= most;
            if count > 0 && !near {
                break;
            }
            end = end.max(frame_end);
            count += 1;
        }
        let mut range = std::mem::take(&mut self.range);
        range.resize((end - start) as usize, 0);
        self.cluster
            .store()
            .read_range_into(&key.name, start, &mut range)?;
        let (these, rest) = needs.split_at(count);
        let mut opened = Ok(());
        for same in these.chunk_by(|one, two| one.frame == two.frame) {
            opened = self.open(&key, same, start, &mut range, sink);
            if opened.is_err() {
                break;
            }
        }
        self.range = range;
        opened.map(|()| rest)
    }

    /// Opens one frame of a range and gives what is needed of it.
    fn open(
        &mut self,
        key: &PackKey,
        needs: &[Need<'_>],
        start: u64,
        range: &mut [u8],
        sink: &mut Sink<'_>,
    ) -> Result<()> {
        let Some(frame) = needs.first().map(|need| need.frame) else {
            return Ok(());
        };
        let from = (frame.offset - start) as usize;
        let stored = range
            .get_mut(from..from + frame.stored_length as usize)
            .ok_or_else(|| damaged(&key.name, "references to its frames overlap"))?;
        let mut plain = std::mem::take(&mut self.plain);
        let number = u64::from(frame.frame);
        self.decoder
            .open(&key.keys, &key.name, number, stored, FRAME_BYTES, &mut plain)?;
        self.frames_decoded += 1;
        for need in needs {
            give(&self.cluster, &key.name, need, &plain, sink)?;
        }
        let used: usize = needs.iter().map(|need| usize::from(need.blocks)).sum();
        if used < plain.len().div_ceil(BLOCK_BYTES) {
            self.keep(&frame, plain);
        } else {
            self.plain = plain;
        }
        Ok(())
    }

    /// Keeps a frame that has more than was asked for; the buffer of the one that makes room is used again.
    fn keep(&mut self, frame: &FrameRef, plain: Vec<u8>) {
        self.clock += 1;
        let kept = KeptFrame {
            pack: frame.pack,
            frame: frame.frame,
            plain,
            used: self.clock,
        };
        if self.kept.len() < FRAMES_KEPT {
            self.kept.push(kept);
        } else if let Some(oldest) = self.kept.iter_mut().min_by_key(|kept| kept.used) {
            self.plain = std::mem::replace(oldest, kept).plain;
        }
    }
}

/// What of a leaf must be fetched; zero blocks are given at once.
fn collect<'a>(
    wanted: &'a Wanted<'a>,
    want: &dyn Fn(usize, usize) -> bool,
    needs: &mut Vec<Need<'a>>,
    sink: &mut Sink<'_>,
) -> Result<()> {
    let leaf = wanted.leaf;
    for (first, pack, run) in leaf.runs() {
        let mut at = 0;
        while at < run.blocks {
            let index = first + u32::from(at);
            let left = u32::from(run.blocks - at);
            let count = (index..index + left)
                .take_while(|index| want(wanted.item, *index as usize))
                .count() as u16;
            if count == 0 {
                at += 1;
                continue;
            }
            match pack {
                None => {
                    let offset = u64::from(leaf.first_block + index) * BLOCK_BYTES as u64;
                    let bytes = wanted
                        .size
                        .saturating_sub(offset)
                        .min(u64::from(count) * BLOCK_BYTES as u64);
                    sink(wanted.item, offset, Piece::Zeros(bytes))?;
                }
                Some(pack) => {
                    let frame = FrameRef {
                        pack,
                        frame: run.frame,
                        offset: run.offset,
                        stored_length: run.stored_length,
                    };
                    needs.push(Need {
                        frame,
                        slot: run.slot + at as u8,
                        blocks: count,
                        wanted,
                        index,
                    });
                }
            }
            at += count;
        }
    }
    Ok(())
}

/// Gives blocks of a decoded frame to the sink, once their digests are compared.
fn give(
    cluster: &ClusterRepository,
    name: &str,
    need: &Need<'_>,
    plain: &[u8],
    sink: &mut Sink<'_>,
) -> Result<()> {
    let leaf = need.wanted.leaf;
    let offset = u64::from(leaf.first_block + need.index) * BLOCK_BYTES as u64;
    let blocks = usize::from(need.blocks) * BLOCK_BYTES;
    let bytes = need.wanted.size.saturating_sub(offset).min(blocks as u64) as usize;
    let start = usize::from(need.slot) * BLOCK_BYTES;
    let data = plain
        .get(start..start + bytes)
        .filter(|_| bytes > blocks - BLOCK_BYTES)
        .ok_or_else(|| {
            damaged(
                name,
                &format!("frame {} is shorter than the map says", need.frame.frame),
            )
        })?;
    for (index, block) in (need.index as usize..).zip(data.chunks(BLOCK_BYTES)) {
        if leaf.digest(index) != Some(cluster.identity().digest(block)) {
            return Err(damaged(
                name,
                &format!(
                    "a block of frame {} has another digest than the map says",
                    need.frame.frame
                ),
            ));
        }
    }
    sink(need.wanted.item, offset, Piece::Data(data))
}
