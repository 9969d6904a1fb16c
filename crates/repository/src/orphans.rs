//! Using the packs of runs that were interrupted: their blocks need not be stored again.
//!
//! Invariants: a block is found only by path, number and 128-bit digest together, so whatever the interrupted
//! run meant to do with it does not matter; the index holds a few bytes for each file of a pack, and the
//! footers of a few packs.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use diagnostic::Result;

use crate::blocks::FilePart;
use crate::container::{Container, Kind, damaged};
use crate::extents;
use crate::identity::{BlockDigest, Identity};
use crate::map::{FrameRef, Location};
use crate::names::{ClusterNames, PackKind, PackRef, RunId};
use crate::nodes::lock;
use crate::path::RelativePath;
use crate::repository::ClusterRepository;
use crate::seal::Decoder;

/// Decoded footers that are kept at hand.
const FOOTERS_MAX: usize = 3;

/// A complete rows pack that no record refers to.
pub(crate) struct OrphanPack {
    pub(crate) pack: PackRef,
    pub(crate) size: u64,
    pub(crate) blocks: u64,
}

/// Where the blocks of a file may be: in this pack, between these numbers.
struct Span {
    pack: u32,
    first: u32,
    last: u32,
}

/// The packs of interrupted runs, by file.
pub(crate) struct OrphanIndex {
    cluster: ClusterRepository,
    pub(crate) packs: Vec<OrphanPack>,
    /// By digest of the path; another file under the same digest is told apart by the footer.
    spans: HashMap<u64, Vec<Span>>,
    footers: Mutex<Vec<(u32, Arc<Footer>)>>,
}

struct Footer {
    extents: Vec<extents::Extent>,
    frames: Vec<(u64, u32)>,
}

/// Blocks of one part of a file that interrupted runs have stored, by number.
#[derive(Default)]
pub(crate) struct OrphanBlocks(Vec<(u32, BlockDigest, Location)>);

impl OrphanBlocks {
    pub(crate) fn find(&self, block: u32, digest: &BlockDigest) -> Option<Location> {
        let first = self.0.partition_point(|(known, _, _)| *known < block);
        let same = self
            .0
            .iter()
            .skip(first)
            .take_while(|(known, _, _)| *known == block);
        same.into_iter()
            .find(|(_, known, _)| known == digest)
            .map(|(_, _, location)| *location)
    }
}

fn path_key(identity: &Identity, path: &RelativePath) -> u64 {
    let digest = identity.digest(path.as_bytes()).0;
    digest.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

impl OrphanIndex {
    /// Reads the footers of all complete rows packs of these runs, but not of those that `skip` names. A pack
    /// that cannot be read is left alone.
    pub(crate) fn load(
        cluster: &ClusterRepository,
        runs: &[RunId],
        skip: &dyn Fn(&PackRef) -> bool,
    ) -> Result<Self> {
        let mut index = OrphanIndex {
            cluster: cluster.clone(),
            packs: Vec::new(),
            spans: HashMap::new(),
            footers: Mutex::new(Vec::new()),
        };
        for run in runs {
            for object in cluster.store().list(&cluster.names().packs_of(*run))? {
                let file = object.name.rsplit('/').next().unwrap_or_default();
                let Some((PackKind::Rows, number)) = ClusterNames::parse_pack(file) else {
                    continue;
                };
                let pack = PackRef { run: *run, number };
                if skip(&pack) {
                    continue;
                }
                match index.read(&pack, object.size) {
                    Ok(footer) => index.add(pack, object.size, &footer),
                    // Damage is verify's business; here it only means that the blocks are stored again.
                    Err(error)
                        if matches!(error.code(), "object-damaged" | "object-missing" | "key-epoch") => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(index)
    }

    fn read(&self, pack: &PackRef, size: u64) -> Result<Footer> {
        let name = self.cluster.names().pack(PackKind::Rows, pack);
        let store = &**self.cluster.store();
        let mut decoder = Decoder::new()?;
        let keychain = self.cluster.keychain();
        let container = Container::open(store, keychain, Kind::RowsPack, &name, Some(size), &mut decoder)?;
        let extents = extents::decode(&container.body, &name)?;
        let frames = (0..container.frames.len())
            .map(|frame| container.range(frame))
            .collect::<Result<Vec<_>>>()?;
        if extents
            .iter()
            .any(|extent| extent.frame as usize >= frames.len() || extent.blocks.len() > 16)
        {
            return Err(damaged(
                &name,
                "its list of blocks names a frame that it does not have",
            ));
        }
        Ok(Footer { extents, frames })
    }

    fn add(&mut self, pack: PackRef, size: u64, footer: &Footer) {
        let number = self.packs.len() as u32;
        let identity = self.cluster.identity();
        let mut blocks = 0;
        let mut spans: HashMap<u64, (u32, u32)> = HashMap::new();
        for extent in &footer.extents {
            blocks += extent.blocks.len() as u64;
            let span = spans
                .entry(path_key(identity, &extent.path))
                .or_insert((u32::MAX, 0));
            for (block, _, _) in &extent.blocks {
                *span = (span.0.min(*block), span.1.max(*block));
            }
        }
        for (path, (first, last)) in spans {
            self.spans.entry(path).or_default().push(Span {
                pack: number,
                first,
                last,
            });
        }
        self.packs.push(OrphanPack { pack, size, blocks });
    }

    fn footer(&self, number: u32) -> Result<Option<Arc<Footer>>> {
        if let Some((_, footer)) = lock(&self.footers).iter().find(|(known, _)| *known == number) {
            return Ok(Some(footer.clone()));
        }
        let Some(pack) = self.packs.get(number as usize) else {
            return Ok(None);
        };
        let footer = Arc::new(self.read(&pack.pack, pack.size)?);
        let mut footers = lock(&self.footers);
        if footers.len() >= FOOTERS_MAX {
            footers.remove(0);
        }
        footers.push((number, footer.clone()));
        Ok(Some(footer))
    }

    /// What there is of a part of a file.
    pub(crate) fn blocks(&self, part: &FilePart) -> Result<OrphanBlocks> {
        let Some(spans) = self.spans.get(&path_key(self.cluster.identity(), &part.path)) else {
            return Ok(OrphanBlocks::default());
        };
        let end = part.first_block.saturating_add(part.blocks);
        let mut found = Vec::new();
        for span in spans
            .iter()
            .filter(|span| span.first < end && span.last >= part.first_block)
        {
            let (Some(footer), Some(pack)) = (self.footer(span.pack)?, self.packs.get(span.pack as usize))
            else {
                continue;
            };
            for extent in footer.extents.iter().filter(|extent| extent.path == part.path) {
                let Some((offset, stored_length)) = footer.frames.get(extent.frame as usize).copied() else {
                    continue;
                };
                let frame = FrameRef {
                    pack: pack.pack,
                    frame: extent.frame,
                    offset,
                    stored_length,
                };
                for (slot, (block, _, digest)) in (extent.slot..).zip(&extent.blocks) {
                    if (part.first_block..end).contains(block) {
                        found.push((*block, *digest, Location { frame, slot }));
                    }
                }
            }
        }
        found.sort_unstable_by_key(|(block, _, location)| (*block, location.frame.pack));
        Ok(OrphanBlocks(found))
    }
}
