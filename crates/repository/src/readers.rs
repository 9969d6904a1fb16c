//! Everything here that reads stored bytes, by name: what the fuzzer feeds with arbitrary ones.
//!
//! Most of it lies behind encryption, where only somebody who has a key can put something strange; that a host that may
//! only write cannot bring down one that reads is worth as much as the rest. Invariant: a reader gives a value or an
//! error, whatever it is given, and needs memory in proportion to its input.

use std::hint::black_box;

use diagnostic::Result;
use serde::de::DeserializeOwned;

use crate::actions::{ActionBegun, ActionEnded};
use crate::backup::{Backup, PackUse};
use crate::claims::Claim;
use crate::container::{self, Container, Kind};
use crate::evidence_chain::{Chain, ChainLink};
use crate::expiries::Expiry;
use crate::keys::{self, RecipientKey};
use crate::leaf_builder::apply;
use crate::leases::Lease;
use crate::map::{Content, Leaf, NODE_VERSION, Node, Overlay, Page, Root, decode_node, encode_node};
use crate::names::{ClusterNames, PackKind, PackRef, RunId};
use crate::nodes::NodeReader;
use crate::path::RelativePath;
use crate::pins::Pin;
use crate::repository::{ClusterRepository, RepositoryHeader};
use crate::run::Intent;
use crate::seal::Decoder;
use crate::verifications::Verification;
use crate::wal::{split_digest, wal_object_kind};

/// A name, and the reader.
pub type Reader = (&'static str, fn(&[u8]));

/// The object's name in messages.
const NAME: &str = "clusters/main/packs/20260815T020003Z/00000001.rows";

/// All of them.
pub const READERS: [Reader; 12] = [
    ("object-header-and-trailer", header_and_trailer),
    ("object-footer", footer),
    ("rows-pack-footer", extents),
    ("map-node", node),
    ("map-overlay", overlay),
    ("pack-table", pack_table),
    ("record-and-statements", statements),
    ("repository-json", repository_json),
    ("sealed-keyring", sealed_keyring),
    ("key-file", key_file),
    ("object-names", names),
    ("s3-answers", crate::store::read_answers),
];

/// As it is, and with CRCs made right: these keep out accidents, and nobody who means it.
fn header_and_trailer(bytes: &[u8]) {
    black_box(container::decode_outside(bytes, NAME)).ok();
    let mut object = bytes.to_vec();
    let length = object.len();
    let Some((footer, trailer)) = object
        .get_mut(128..)
        .and_then(|rest| rest.split_at_mut_checked(length.saturating_sub(160)))
    else {
        return;
    };
    let footer_length = u32::try_from(footer.len()).unwrap_or(0).min(100);
    let kept = footer.len() - footer_length as usize;
    let crc = crc32c::crc32c(footer.get(kept..).unwrap_or_default());
    for (place, value) in [(0, 128 + kept as u32), (4, 0), (8, footer_length), (16, crc)] {
        if let Some(bytes) = trailer.get_mut(place..place + 4) {
            bytes.copy_from_slice(&value.to_le_bytes());
        }
    }
    let crc = crc32c::crc32c(object.get(..124).unwrap_or_default());
    if let Some(bytes) = object.get_mut(124..128) {
        bytes.copy_from_slice(&crc.to_le_bytes());
    }
    black_box(container::decode_outside(&object, NAME)).ok();
}

fn footer(bytes: &[u8]) {
    black_box(container::decode_footer(bytes, NAME)).ok();
}

fn extents(bytes: &[u8]) {
    if let Ok(extents) = crate::extents::decode(bytes, NAME) {
        for extent in &extents {
            // As a run does that takes up an interrupted one.
            black_box((extent.slot..).zip(&extent.blocks).count());
        }
    }
}

fn look_at_leaf(leaf: &Leaf) {
    black_box(leaf.runs().count());
    for (index, location) in leaf.locations().enumerate() {
        black_box((leaf.lsn(index), leaf.flags(index), leaf.digest(index), location));
    }
}

fn round_trip<N: Node + PartialEq + std::fmt::Debug>(bytes: &[u8]) -> Option<N> {
    let node: N = decode_node(bytes, NAME).ok()?;
    let again = encode_node(&node)
        .and_then(|bytes| decode_node::<N>(&bytes, NAME))
        .ok();
    assert_eq!(
        again.as_ref(),
        Some(&node),
        "what was read is written in the same way"
    );
    Some(node)
}

fn node(bytes: &[u8]) {
    if let Some(leaf) = round_trip::<Leaf>(bytes) {
        look_at_leaf(&leaf);
    }
    if let Some(page) = round_trip::<Page>(bytes) {
        for entry in &page.entries {
            black_box((entry.blocks(), entry.path.file_name()));
            if let crate::map::EntryKind::File {
                content: Content::Inline(leaf),
                ..
            } = &entry.kind
            {
                look_at_leaf(leaf);
            }
        }
    }
    black_box(round_trip::<Root>(bytes));
    if let Some(overlay) = round_trip::<Overlay>(bytes) {
        look_at_leaf(&overlay.leaf);
    }
}

/// A leaf and an overlay, one behind the other: four bytes say where the second begins.
fn overlay(bytes: &[u8]) {
    let Some((length, rest)) = bytes.split_first_chunk() else {
        return;
    };
    let Some((base, overlay)) = rest.split_at_checked(u32::from_le_bytes(*length) as usize) else {
        return;
    };
    if let (Ok(base), Ok(overlay)) = (
        decode_node::<Leaf>(base, NAME),
        decode_node::<Overlay>(overlay, NAME),
    ) && let Some(leaf) = apply(&base, &overlay)
    {
        assert_eq!(leaf.blocks(), base.blocks());
        look_at_leaf(&leaf);
        let plain = encode_node(&leaf).unwrap_or_default();
        assert!(
            decode_node::<Leaf>(&plain, NAME).is_ok(),
            "what is made of two nodes is a node"
        );
    }
}

fn pack_table(bytes: &[u8]) {
    if let Some((&NODE_VERSION, body)) = bytes.split_first() {
        black_box(postcard::from_bytes::<Vec<PackUse>>(body)).ok();
    }
}

fn json<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    serde_json::from_slice(bytes).ok()
}

fn statements(bytes: &[u8]) {
    black_box(json::<Backup>(bytes));
    black_box(json::<Intent>(bytes));
    black_box(json::<Claim>(bytes));
    black_box(json::<Lease>(bytes));
    black_box(json::<Pin>(bytes));
    black_box(json::<Expiry>(bytes));
    black_box(json::<Verification>(bytes));
    black_box(json::<ChainLink>(bytes));
    black_box(crate::actions::decode::<ActionBegun>(bytes)).ok();
    black_box(crate::actions::decode::<ActionEnded>(bytes)).ok();
    black_box(Chain::from_file(bytes).is_ok_and(|chain| chain.check().findings.is_empty()));
}

/// A JSON object with its checksum made right.
fn checked(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut members: serde_json::Map<String, serde_json::Value> = json(bytes)?;
    members.remove("crc32c");
    let encoded = crate::checked_json::encode(NAME, &members).ok()?;
    let again: serde_json::Map<String, serde_json::Value> =
        crate::checked_json::decode(NAME, &encoded).ok()?;
    assert_eq!(again, members, "what was written with its checksum is read");
    Some(encoded)
}

fn repository_json(bytes: &[u8]) {
    black_box(RepositoryHeader::decode(bytes)).ok();
    if let Some(bytes) = checked(bytes) {
        black_box(RepositoryHeader::decode(&bytes)).ok();
    }
}

fn sealed_keyring(bytes: &[u8]) {
    // Not with a passphrase: Argon2id is slow on purpose.
    let Ok(key) = RecipientKey::from_key_file_text(KEY_FILE) else {
        return;
    };
    let Some(name) = keys::candidate(1, &key) else {
        return;
    };
    black_box(keys::repository_of(&name, bytes)).ok();
    // Addressed to this key, under the name that belongs to it, with its checksum.
    let Some(mut members) = json::<serde_json::Map<String, serde_json::Value>>(bytes) else {
        return;
    };
    let recipient = name.rsplit('/').next().unwrap_or_default();
    members.insert("recipient".into(), recipient.into());
    let bytes = serde_json::to_vec(&members).unwrap_or_default();
    if let Some(bytes) = checked(&bytes)
        && let Ok(id) = keys::repository_of(&name, &bytes)
    {
        black_box(keys::open_keyring(&name, &bytes, &id, &key)).ok();
    }
}

/// Of a repository that nobody has.
const KEY_FILE: &str =
    "pgproof-key-1 0101010101010101010101010101010101010101010101010101010101010101 95dbfb2f";

fn key_file(bytes: &[u8]) {
    if let Ok(key) = RecipientKey::from_key_file_text(&String::from_utf8_lossy(bytes)) {
        assert!(key.to_key_file_text().is_ok());
    }
}

fn names(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Ok(run) = text.parse::<RunId>() {
        assert_eq!(run.to_string().parse::<RunId>().ok(), Some(run));
    }
    black_box(ClusterNames::parse_pack(&text));
    black_box(split_digest(&text));
    black_box(wal_object_kind(&text));
    black_box(crate::names::check_cluster_name(&text)).ok();
    if let Ok(path) = RelativePath::new(bytes) {
        assert!(path.under(std::path::Path::new("/d")).starts_with("/d"));
    }
}

/// The plain bytes of what a repository holds, by the name of the reader that reads them: where a corpus begins.
pub fn plain_parts(cluster: &ClusterRepository) -> Result<Vec<(&'static str, Vec<u8>)>> {
    let mut parts = Vec::new();
    let mut decoder = Decoder::new()?;
    let nodes = NodeReader::new(cluster);
    for id in cluster.backup_ids()? {
        let backup = cluster.backup(id)?;
        parts.push(("pack-table", nodes.joined(&backup.tree.pack_table)?));
        parts.push((
            "record-and-statements",
            serde_json::to_vec(&backup).unwrap_or_default(),
        ));
    }
    let prefix = cluster.names().packs();
    let mut leaf: Option<Vec<u8>> = None;
    for object in cluster.store().list(&prefix)? {
        let mut components = object.name.rsplit('/');
        let file = components.next().unwrap_or_default();
        let run = components.next().and_then(|run| run.parse::<RunId>().ok());
        let (Some((kind, number)), Some(run)) = (ClusterNames::parse_pack(file), run) else {
            continue;
        };
        parts.push(("object-names", file.as_bytes().to_vec()));
        let bytes = cluster.store().read(&object.name)?.unwrap_or_default();
        // Nobody looks at the frames between.
        let ends = [bytes.get(..128), bytes.get(bytes.len().saturating_sub(300)..)];
        parts.push((
            "object-header-and-trailer",
            ends.into_iter().flatten().flatten().copied().collect(),
        ));
        let of = match kind {
            PackKind::Rows => Kind::RowsPack,
            PackKind::Map => Kind::MapPack,
        };
        let container = Container::from_bytes(cluster.keychain(), of, &object.name, &bytes, &mut decoder)?;
        parts.push(("object-footer", container.encode_footer()?));
        if kind == PackKind::Rows {
            parts.push(("rows-pack-footer", container.body.clone()));
            continue;
        }
        for frame in 0..container.frames.len() {
            let (offset, stored_length) = container.range(frame)?;
            let reference = crate::map::FrameRef {
                pack: PackRef { run, number },
                frame: frame as u32,
                offset,
                stored_length,
            };
            let plain = nodes.plain_of(&reference)?;
            if decode_node::<Leaf>(&plain, NAME).is_ok() {
                leaf = Some(plain.clone());
            } else if let (Some(leaf), true) = (&leaf, decode_node::<Overlay>(&plain, NAME).is_ok()) {
                let length = (leaf.len() as u32).to_le_bytes();
                parts.push(("map-overlay", [&length[..], leaf, &plain].concat()));
            }
            parts.push(("map-node", plain));
        }
    }
    for folder in ["intents/", "wal/"] {
        for object in cluster
            .store()
            .list(&format!("{}/{folder}", cluster.names().prefix))?
        {
            if let Ok(Some(text)) = cluster.get_small(Kind::Statement, &object.name) {
                parts.push(("record-and-statements", text));
            }
            parts.push(("object-names", object.name.into_bytes()));
        }
    }
    for (name, reader) in [
        ("repository.json", "repository-json"),
        ("keys/", "sealed-keyring"),
    ] {
        for object in cluster.store().list(name)? {
            parts.push((reader, cluster.store().read(&object.name)?.unwrap_or_default()));
        }
    }
    parts.push(("key-file", KEY_FILE.as_bytes().to_vec()));
    Ok(parts)
}
