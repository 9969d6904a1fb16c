//! Reading frames of packs: where keys are kept at hand, and how many frames come with one request.
//!
//! Invariant: lengths that a reference states are bounded before anything is read or allocated for them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use diagnostic::Result;

use crate::container::{HEADER_BYTES, Kind, damaged, open_header};
use crate::map::{FrameRef, NODE_BYTES_MAX, Node, decode_node};
use crate::names::{PackKind, PackRef};
use crate::repository::ClusterRepository;
use crate::seal::{Decoder, ObjectKeys, stored_bytes_max};

/// Keys of so many packs are kept at hand.
const KEYS_MAX: usize = 1024;

/// A poisoned lock only means that another thread ended by a panic; what these locks guard stays whole.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The keys of a cluster's packs of one kind, opened once.
pub(crate) struct PackKeys {
    cluster: ClusterRepository,
    kind: PackKind,
    keys: Mutex<HashMap<PackRef, Arc<PackKey>>>,
}

/// A pack's name and keys.
pub(crate) struct PackKey {
    pub(crate) name: String,
    pub(crate) keys: ObjectKeys,
}

impl PackKeys {
    pub(crate) fn new(cluster: &ClusterRepository, kind: PackKind) -> Self {
        PackKeys {
            cluster: cluster.clone(),
            kind,
            keys: Mutex::new(HashMap::new()),
        }
    }

    pub(crate) fn cluster(&self) -> &ClusterRepository {
        &self.cluster
    }

    /// Reads the pack's header, the first time.
    pub(crate) fn of(&self, pack: &PackRef) -> Result<Arc<PackKey>> {
        if let Some(key) = lock(&self.keys).get(pack) {
            return Ok(key.clone());
        }
        let name = self.cluster.names().pack(self.kind, pack);
        let header = self.cluster.store().read_range(&name, 0, HEADER_BYTES)?;
        let kind = match self.kind {
            PackKind::Rows => Kind::RowsPack,
            PackKind::Map => Kind::MapPack,
        };
        let keys = open_header(self.cluster.keychain(), kind, &name, &header)?;
        let key = Arc::new(PackKey { name, keys });
        let mut known = lock(&self.keys);
        if known.len() >= KEYS_MAX {
            known.clear();
        }
        known.insert(*pack, key.clone());
        Ok(key)
    }
}

/// Reads nodes of map packs. Usable from several threads.
pub(crate) struct NodeReader {
    keys: PackKeys,
    decoders: Mutex<Vec<Decoder>>,
}

impl NodeReader {
    pub(crate) fn new(cluster: &ClusterRepository) -> Self {
        NodeReader {
            keys: PackKeys::new(cluster, PackKind::Map),
            decoders: Mutex::new(Vec::new()),
        }
    }

    pub(crate) fn cluster(&self) -> &ClusterRepository {
        self.keys.cluster()
    }

    /// Plain bytes of each frame. Neighbouring frames come with one request.
    pub(crate) fn plain(&self, frames: &[FrameRef]) -> Result<Vec<Vec<u8>>> {
        let mut decoder = match lock(&self.decoders).pop() {
            Some(decoder) => decoder,
            None => Decoder::new()?,
        };
        let range_bytes = self.cluster().store().range_bytes() as u64;
        let mut plains = Vec::with_capacity(frames.len());
        let mut rest = frames;
        while let Some(first) = rest.first() {
            let key = self.keys.of(&first.pack)?;
            let mut bytes = 0;
            let mut count = 0;
            for frame in rest {
                if frame.stored_length as usize > stored_bytes_max(NODE_BYTES_MAX) {
                    return Err(damaged(&key.name, "a reference to it is longer than any node"));
                }
                let follows =
                    frame.pack == first.pack && first.offset.checked_add(bytes) == Some(frame.offset);
                if count > 0 && (!follows || bytes + u64::from(frame.stored_length) > range_bytes) {
                    break;
                }
                bytes += u64::from(frame.stored_length);
                count += 1;
            }
            let mut stored = self
                .cluster()
                .store()
                .read_range(&key.name, first.offset, bytes as usize)?;
            let mut stored = stored.as_mut_slice();
            for frame in rest.get(..count).unwrap_or_default() {
                let (mine, after) = std::mem::take(&mut stored)
                    .split_at_mut_checked(frame.stored_length as usize)
                    .ok_or_else(|| damaged(&key.name, "it is cut short"))?;
                stored = after;
                let mut plain = Vec::new();
                decoder.open(
                    &key.keys,
                    &key.name,
                    u64::from(frame.frame),
                    mine,
                    NODE_BYTES_MAX,
                    &mut plain,
                )?;
                plains.push(plain);
            }
            rest = rest.get(count..).unwrap_or_default();
        }
        lock(&self.decoders).push(decoder);
        Ok(plains)
    }

    pub(crate) fn plain_of(&self, frame: &FrameRef) -> Result<Vec<u8>> {
        Ok(self.plain(std::slice::from_ref(frame))?.pop().unwrap_or_default())
    }

    pub(crate) fn node<N: Node>(&self, frame: &FrameRef) -> Result<N> {
        let plain = self.plain_of(frame)?;
        decode_node(&plain, &self.name(frame))
    }

    pub(crate) fn name(&self, frame: &FrameRef) -> String {
        self.cluster().names().pack(PackKind::Map, &frame.pack)
    }

    /// The bytes that were cut into these frames.
    pub(crate) fn joined(&self, frames: &[FrameRef]) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        for frame in frames {
            bytes.append(&mut self.plain_of(frame)?);
            if bytes.len() > crate::repository::SMALL_BYTES_MAX * 2 {
                return Err(damaged(
                    &self.name(frame),
                    "what it holds is longer than anything that is written",
                ));
            }
        }
        Ok(bytes)
    }
}
