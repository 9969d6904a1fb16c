//! What a rows pack's footer says: which blocks of which files stand in which slots. `docs/format.md` section
//! 3.
//!
//! It lets a later run use the packs of one that was interrupted. Extents are encoded as they come, so that
//! an open pack holds little more than their bytes.

use diagnostic::{Error, Result};
use postgres::Lsn;
use serde::{Deserialize, Serialize};

use crate::container::{damaged, newer_format};
use crate::identity::BlockDigest;
use crate::map::FRAME_BLOCKS;
use crate::path::RelativePath;

const EXTENTS_VERSION: u8 = 1;

/// Number, page LSN and digest of a block.
pub(crate) type BlockIdentity = (u32, Lsn, BlockDigest);

/// Blocks of one file in neighbouring slots of a frame.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Extent {
    pub(crate) path: RelativePath,
    pub(crate) frame: u32,
    pub(crate) slot: u8,
    pub(crate) blocks: Vec<BlockIdentity>,
}

/// The extents of an open pack.
#[derive(Debug, Default)]
pub(crate) struct ExtentList {
    count: usize,
    encoded: Vec<u8>,
}

impl ExtentList {
    pub(crate) fn push(
        &mut self,
        path: &RelativePath,
        frame: u32,
        slot: u8,
        blocks: &[BlockIdentity],
    ) -> Result<()> {
        #[derive(Serialize)]
        struct Borrowed<'a> {
            path: &'a RelativePath,
            frame: u32,
            slot: u8,
            blocks: &'a [BlockIdentity],
        }
        let encoded = std::mem::take(&mut self.encoded);
        self.encoded = postcard::to_extend(
            &Borrowed {
                path,
                frame,
                slot,
                blocks,
            },
            encoded,
        )
        .map_err(|error| Error::new("footer-encode", "cannot encode a pack's footer").caused_by(&error))?;
        self.count += 1;
        Ok(())
    }

    /// The footer's body.
    pub(crate) fn finish(self) -> Result<Vec<u8>> {
        let mut body = vec![EXTENTS_VERSION];
        body.reserve(self.encoded.len() + 10);
        let mut body = postcard::to_extend(&self.count, body).map_err(|error| {
            Error::new("footer-encode", "cannot encode a pack's footer").caused_by(&error)
        })?;
        body.extend_from_slice(&self.encoded);
        Ok(body)
    }
}

/// Reads a footer's body. No extent leaves its frame.
pub(crate) fn decode(body: &[u8], object: &str) -> Result<Vec<Extent>> {
    let extents: Vec<Extent> = match body.split_first() {
        Some((&EXTENTS_VERSION, body)) => postcard::from_bytes(body)
            .map_err(|error| damaged(object, &format!("its list of blocks says nothing: {error}")))?,
        Some((version, _)) => return Err(newer_format(object, u32::from(*version))),
        None => return Err(damaged(object, "its list of blocks is empty")),
    };
    let leaves_its_frame = |extent: &Extent| usize::from(extent.slot) + extent.blocks.len() > FRAME_BLOCKS;
    if extents.iter().any(leaves_its_frame) {
        return Err(damaged(object, "its list of blocks leaves a frame"));
    }
    Ok(extents)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_list_made_piece_by_piece_reads_as_a_whole() {
        let path = RelativePath::new("base/5/16384").unwrap();
        let blocks: Vec<_> = (0..16)
            .map(|at| (at, Lsn(1 << 33), BlockDigest([at as u8; 16])))
            .collect();
        let mut list = ExtentList::default();
        list.push(&path, 0, 0, &blocks).unwrap();
        list.push(&path, 1, 3, &blocks[..2]).unwrap();
        let extents = decode(&list.finish().unwrap(), "x").unwrap();
        assert_eq!(extents.len(), 2);
        assert_eq!(extents[0].blocks, blocks);
        assert_eq!(
            (extents[1].frame, extents[1].slot, extents[1].blocks.len()),
            (1, 3, 2)
        );
        assert_eq!(decode(&[2], "x").unwrap_err().code(), "repository-format");
    }

    proptest! {
        #[test]
        fn arbitrary_lists_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(&bytes, "x");
            let _ = decode(&[&[1], bytes.as_slice()].concat(), "x");
        }
    }
}
