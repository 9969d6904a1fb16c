//! Putting leaves together, block by block; applying and making overlays.
//!
//! Invariant: neighbouring blocks in neighbouring slots of one frame are one run, so that equal content in
//! equal places gives equal bytes. A block whose frame is not written yet waits: all waiting blocks of a
//! builder are in one and the same frame.

use postgres::Lsn;

use crate::identity::BlockDigest;
use crate::map::{BlockFlags, BlockRun, FrameRef, Leaf, Location, Overlay};
use crate::names::PackRef;

/// A run's pack while its frame is still being gathered; a leaf has at most 1024 packs.
const WAITING: u16 = u16::MAX;

/// Where a block goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    Zero,
    At(Location),
    /// In this slot of the frame that is being gathered.
    Waiting(u8),
}

impl From<Option<Location>> for Place {
    fn from(location: Option<Location>) -> Self {
        location.map_or(Place::Zero, Place::At)
    }
}

/// A leaf in the making.
#[derive(Debug, Default)]
pub(crate) struct LeafBuilder {
    leaf: Leaf,
    waiting: bool,
}

impl LeafBuilder {
    pub(crate) fn new(first_block: u32) -> Self {
        LeafBuilder {
            leaf: Leaf {
                first_block,
                ..Leaf::default()
            },
            waiting: false,
        }
    }

    pub(crate) fn blocks(&self) -> u32 {
        self.leaf.blocks()
    }

    pub(crate) fn first_block(&self) -> u32 {
        self.leaf.first_block
    }

    pub(crate) fn is_waiting(&self) -> bool {
        self.waiting
    }

    pub(crate) fn push(&mut self, lsn: Lsn, flags: BlockFlags, digest: &BlockDigest, place: Place) {
        self.leaf.lsns.push(lsn.0);
        self.leaf.flags.push(flags.0);
        self.leaf.digests.extend_from_slice(&digest.0);
        let run = match place {
            Place::Zero => BlockRun {
                blocks: 1,
                pack: 0,
                frame: 0,
                offset: 0,
                stored_length: 0,
                slot: 0,
            },
            Place::Waiting(slot) => {
                self.waiting = true;
                BlockRun {
                    blocks: 1,
                    pack: WAITING,
                    frame: 0,
                    offset: 0,
                    stored_length: 1,
                    slot,
                }
            }
            Place::At(Location { frame, slot }) => BlockRun {
                blocks: 1,
                pack: pack_index(&mut self.leaf.packs, frame.pack),
                frame: frame.frame,
                offset: frame.offset,
                stored_length: frame.stored_length,
                slot,
            },
        };
        if let Some(last) = self.leaf.runs.last_mut() {
            let same_frame = (last.pack, last.frame, last.offset, last.stored_length)
                == (run.pack, run.frame, run.offset, run.stored_length);
            let next_slot =
                run.stored_length == 0 || u16::from(last.slot) + last.blocks == u16::from(run.slot);
            if same_frame && next_slot {
                last.blocks += 1;
                return;
            }
        }
        self.leaf.runs.push(run);
    }

    /// The frame that blocks waited for has been written.
    pub(crate) fn resolve(&mut self, frame: &FrameRef) {
        let Leaf { packs, runs, .. } = &mut self.leaf;
        for run in runs
            .iter_mut()
            .filter(|run| run.pack == WAITING && run.stored_length != 0)
        {
            run.pack = pack_index(packs, frame.pack);
            run.frame = frame.frame;
            run.offset = frame.offset;
            run.stored_length = frame.stored_length;
        }
        self.waiting = false;
    }

    /// The leaf; nothing waits any more.
    pub(crate) fn finish(self) -> Leaf {
        debug_assert!(!self.waiting);
        self.leaf
    }
}

fn pack_index(packs: &mut Vec<PackRef>, pack: PackRef) -> u16 {
    match packs.iter().rposition(|known| *known == pack) {
        Some(index) => index as u16,
        None => {
            packs.push(pack);
            (packs.len() - 1) as u16
        }
    }
}

/// A base with an overlay's blocks in place of its own. `None`: the overlay does not belong to this base.
pub(crate) fn apply(base: &Leaf, overlay: &Overlay) -> Option<Leaf> {
    if overlay.leaf.first_block != base.first_block
        || overlay
            .replaced
            .last()
            .is_some_and(|last| u32::from(*last) >= base.blocks())
    {
        return None;
    }
    let mut builder = LeafBuilder::new(base.first_block);
    let mut replaced = overlay
        .replaced
        .iter()
        .zip(overlay.leaf.locations())
        .enumerate()
        .peekable();
    for (index, location) in base.locations().enumerate() {
        match replaced.next_if(|(_, (at, _))| usize::from(**at) == index) {
            Some((from, (_, location))) => {
                let leaf = &overlay.leaf;
                builder.push(
                    leaf.lsn(from)?,
                    leaf.flags(from)?,
                    &leaf.digest(from)?,
                    location.into(),
                );
            }
            None => builder.push(
                base.lsn(index)?,
                base.flags(index)?,
                &base.digest(index)?,
                location.into(),
            ),
        }
    }
    Some(builder.finish())
}

/// The overlay that makes `leaf` of its base, if `replaced` (ascending) names all blocks that differ.
pub(crate) fn overlay(leaf: &Leaf, replaced: Vec<u16>) -> Overlay {
    let mut builder = LeafBuilder::new(leaf.first_block);
    let mut wanted = replaced.iter().peekable();
    for (index, location) in leaf.locations().enumerate() {
        if wanted.next_if(|at| usize::from(**at) == index).is_none() {
            continue;
        }
        if let (Some(lsn), Some(flags), Some(digest)) =
            (leaf.lsn(index), leaf.flags(index), leaf.digest(index))
        {
            builder.push(lsn, flags, &digest, location.into());
        }
    }
    Overlay {
        replaced,
        leaf: builder.finish(),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::map::{decode_node, encode_node};
    use proptest::prelude::*;

    pub(crate) fn location(pack: u32, frame: u32, slot: u8) -> Location {
        let pack = PackRef {
            run: "20260815T020003Z".parse().unwrap(),
            number: pack,
        };
        Location {
            frame: FrameRef {
                pack,
                frame,
                offset: 128 + u64::from(frame) * 1000,
                stored_length: 1000,
            },
            slot,
        }
    }

    /// A leaf whose blocks lie as the numbers say: 0 is a zero block, others choose pack, frame and slot.
    fn leaf(choices: &[u8]) -> Leaf {
        let mut builder = LeafBuilder::new(1024);
        for (at, choice) in choices.iter().enumerate() {
            let place = match choice {
                0 => Place::Zero,
                _ => Place::At(location(
                    u32::from(choice % 3),
                    u32::from(choice % 7),
                    (at % 16) as u8,
                )),
            };
            let flags = if *choice == 0 {
                BlockFlags::ZERO
            } else {
                BlockFlags(0)
            };
            builder.push(Lsn(at as u64 * 8), flags, &BlockDigest([*choice; 16]), place);
        }
        builder.finish()
    }

    #[test]
    fn neighbours_in_a_frame_are_one_run() {
        let mut builder = LeafBuilder::new(0);
        for block in 0..32u8 {
            let place = Place::At(location(1, u32::from(block / 16), block % 16));
            builder.push(Lsn(1), BlockFlags(0), &BlockDigest([block; 16]), place);
        }
        let leaf = builder.finish();
        assert_eq!(leaf.runs().count(), 2);
        assert_eq!(leaf.locations().nth(17), Some(Some(location(1, 1, 1))));
    }

    #[test]
    fn blocks_that_wait_get_their_frame() {
        let mut builder = LeafBuilder::new(0);
        builder.push(Lsn(1), BlockFlags(0), &BlockDigest([1; 16]), Place::Waiting(3));
        builder.push(Lsn(2), BlockFlags(0), &BlockDigest([2; 16]), Place::Waiting(4));
        builder.push(
            Lsn(3),
            BlockFlags(0),
            &BlockDigest([3; 16]),
            Place::At(location(2, 9, 0)),
        );
        assert!(builder.is_waiting());
        builder.resolve(&location(1, 5, 0).frame);
        let leaf = builder.finish();
        let expected = [location(1, 5, 3), location(1, 5, 4), location(2, 9, 0)].map(Some);
        assert_eq!(leaf.locations().collect::<Vec<_>>(), expected);
    }

    proptest! {
        #[test]
        fn an_overlay_turns_its_base_into_the_leaf_it_was_made_of(
            base in proptest::collection::vec(0u8..20, 1..300),
            changes in proptest::collection::btree_map(0usize..300, 0u8..20, 0..40),
        ) {
            let mut changed = base.clone();
            let mut replaced = Vec::new();
            for (at, choice) in changes {
                if let Some(there) = changed.get_mut(at) {
                    *there = choice;
                    replaced.push(at as u16);
                }
            }
            let (base, changed) = (leaf(&base), leaf(&changed));
            let overlay = overlay(&changed, replaced);
            let bytes = encode_node(&overlay).unwrap();
            let overlay: Overlay = decode_node(&bytes, "x").unwrap();
            let merged = apply(&base, &overlay).unwrap();
            prop_assert_eq!(merged.locations().collect::<Vec<_>>(), changed.locations().collect::<Vec<_>>());
            prop_assert_eq!(&merged.lsns, &changed.lsns);
            prop_assert_eq!((&merged.flags, &merged.digests), (&changed.flags, &changed.digests));
        }

        #[test]
        fn a_leaf_survives_its_encoding_and_any_bytes_decode_or_are_refused(
            choices in proptest::collection::vec(0u8..20, 0..1024),
            flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
            cut in any::<prop::sample::Index>(),
        ) {
            let leaf = leaf(&choices);
            let mut bytes = encode_node(&leaf).unwrap();
            prop_assert_eq!(&decode_node::<Leaf>(&bytes, "x").unwrap(), &leaf);
            for (at, value) in flips {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
            if let Ok(leaf) = decode_node::<Leaf>(&bytes, "x") {
                prop_assert_eq!(leaf.locations().count(), leaf.blocks() as usize);
            }
            bytes.truncate(cut.index(bytes.len()));
            let _ = decode_node::<Leaf>(&bytes, "x");
            let _ = decode_node::<Overlay>(&bytes, "x");
            let _ = decode_node::<crate::map::Page>(&bytes, "x");
            let _ = decode_node::<crate::map::Root>(&bytes, "x");
        }

        #[test]
        fn arbitrary_nodes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut bytes = bytes;
            bytes.insert(0, 1);
            let _ = decode_node::<Leaf>(&bytes, "x");
            let _ = decode_node::<Overlay>(&bytes, "x");
            let _ = decode_node::<crate::map::Page>(&bytes, "x");
            let _ = decode_node::<crate::map::Root>(&bytes, "x");
        }
    }
}
