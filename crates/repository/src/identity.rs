//! Digests: what names content without telling it.
//!
//! Every digest is BLAKE3 in keyed mode under the identity key, which stays the same over all epochs, so that
//! digests of different epochs compare. Without the key, nobody can tell whether known content has a given
//! digest.

use std::fmt;

use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, ZeroizeOnDrop};

/// The digest of a block: 128 bits over its bytes as they stand in the file.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct BlockDigest(pub [u8; 16]);

impl fmt::Debug for BlockDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&crate::hex::encode(&self.0))
    }
}

/// The identity key, ready for use.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct Identity {
    key: [u8; 32],
}

impl Identity {
    pub(crate) fn new(key: [u8; 32]) -> Self {
        Identity { key }
    }

    /// The digest of a block's bytes.
    pub fn digest(&self, bytes: &[u8]) -> BlockDigest {
        let hash = blake3::keyed_hash(&self.key, bytes);
        let mut digest = [0; 16];
        digest.copy_from_slice(&hash.as_bytes()[..16]);
        BlockDigest(digest)
    }

    /// For bytes that come piece by piece.
    pub(crate) fn hasher(&self) -> Hasher {
        Hasher(blake3::Hasher::new_keyed(&self.key))
    }

    /// The digest of an object's plain bytes as it stands in object names: 32 lower-case hexadecimal digits.
    pub fn object_digest(&self, bytes: &[u8]) -> String {
        crate::hex::encode(&self.digest(bytes).0)
    }
}

/// See [`Identity::hasher`].
pub(crate) struct Hasher(blake3::Hasher);

impl Hasher {
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    pub(crate) fn finish(&self) -> [u8; 16] {
        let mut digest = [0; 16];
        digest.copy_from_slice(&self.0.finalize().as_bytes()[..16]);
        digest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_the_key_nobody_knows_a_contents_digest() {
        let (one, two) = (Identity::new([1; 32]), Identity::new([2; 32]));
        let page = [7; 8192];
        assert_eq!(one.digest(&page), one.digest(&page));
        assert_ne!(one.digest(&page), two.digest(&page));
        let mut hasher = one.hasher();
        page.chunks(1000).for_each(|piece| hasher.update(piece));
        assert_eq!(hasher.finish(), one.digest(&page).0);
    }
}
