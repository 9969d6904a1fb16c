//! Writing a backup's map: leaves as they come, directory pages in path order, then the root and the pack
//! table.
//!
//! Invariants: a node with the same content as its counterpart in the parent is not stored again, unless its
//! pack is mostly dead; entries stand in strictly ascending path order; every pack that the tree refers to is
//! in the pack table with the number of blocks or nodes that are referred to. Entries that come early wait,
//! encoded, until their turn; those of a run that comes in any order wait until the end ([`crate::arrivals`]).

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::sync::Mutex;

use diagnostic::{Error, Result};

use crate::arrivals::Arrivals;
use crate::backup::{PackUse, Tree};
use crate::blocks::FilePart;
use crate::container::{ContainerWriter, Kind, Method, Placed};
use crate::leaf_builder::overlay;
use crate::map::{
    Content, EntryKind, FileEntry, FrameRef, INLINE_BLOCKS, LEAF_BLOCKS, Leaf, LeafRef, NODE_VERSION, Node,
    OVERLAY_BLOCKS_MAX, PAGE_BYTES_MAX, PAGE_ENTRIES_MAX, Page, PageRef, Root, blocks_of, encode_node,
};
use crate::names::{PackKind, PackRef, RunId};
use crate::nodes::lock;
use crate::path::RelativePath;
use crate::repository::ClusterRepository;
use crate::seal::Coder;
use crate::tree_reader::{SharedLeaf, TreeReader};

/// A pack is closed when its stored length reaches this.
pub(crate) const PACK_BYTES: u64 = 64 << 20;
/// Catalog and pack table are cut into pieces of this size.
const PIECE_BYTES: usize = 1 << 20;

/// What a run takes from its parent.
pub(crate) struct Parent {
    pub(crate) tree: TreeReader,
    /// The parent's pack table.
    pub(crate) packs: HashMap<(PackKind, PackRef), PackUse>,
}

impl Parent {
    /// A pack of which the next backup stores the live parts again.
    pub(crate) fn retiring(&self, kind: PackKind, pack: &PackRef) -> bool {
        // A pack that the parent's table does not name must not be referred to on its word.
        self.packs.get(&(kind, *pack)).is_none_or(PackUse::mostly_dead)
    }
}

/// Writes a backup's directory. Shared between threads.
pub struct TreeWriter {
    cluster: ClusterRepository,
    parent: Option<Arc<Parent>>,
    state: Mutex<State>,
}

/// Where an entry belongs.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Slot {
    Sequence(u64),
    Late(RelativePath),
}

/// A file of which some leaves are missing.
struct OpenFile {
    part: FilePart,
    /// For a file whose leaf is inside its entry.
    inline: Option<Leaf>,
    leaves: Vec<Option<LeafRef>>,
    missing: usize,
}

struct State {
    map: MapPacks,
    open: HashMap<Slot, OpenFile>,
    /// Entries that wait for their turn, encoded; `None`: vanished.
    early: BTreeMap<u64, Option<(RelativePath, Vec<u8>)>>,
    /// All entries, when sequence numbers say nothing about their order.
    arrivals: Option<Arrivals>,
    next: u64,
    page: PageBuilder,
    last_path: Option<RelativePath>,
    pages: Vec<PageRef>,
    late: BTreeMap<RelativePath, FileEntry>,
    /// Blocks that the tree refers to, by rows pack.
    rows_live: HashMap<PackRef, u64>,
    /// Rows packs that this run wrote or adopted.
    rows_packs: HashMap<PackRef, (u64, u64)>,
    bytes: u64,
    files: u64,
}

/// What is counted of a finished tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TreeStatistics {
    pub files: u64,
    /// Bytes of all files: what a restore writes.
    pub bytes: u64,
    /// Bytes of the map packs that were written.
    pub map_bytes_stored: u64,
}

#[derive(Default)]
struct PageBuilder {
    first_path: Option<RelativePath>,
    entries: usize,
    encoded: Vec<u8>,
}

/// The run's map packs.
struct MapPacks {
    cluster: ClusterRepository,
    run: RunId,
    coder: Coder,
    open: Option<ContainerWriter>,
    number: u32,
    /// Nodes that the tree refers to, by map pack.
    live: HashMap<PackRef, u64>,
    written: Vec<PackUse>,
    bytes_stored: u64,
}

impl MapPacks {
    fn put_bytes(&mut self, plain: &[u8]) -> Result<FrameRef> {
        let writer = match &mut self.open {
            Some(writer) => writer,
            None => {
                self.number += 1;
                let name = self.cluster.names().pack(
                    PackKind::Map,
                    &PackRef {
                        run: self.run,
                        number: self.number,
                    },
                );
                let store = &**self.cluster.store();
                let keychain = self.cluster.keychain();
                self.open.insert(ContainerWriter::create(
                    store,
                    keychain,
                    Kind::MapPack,
                    Method::MapKey,
                    &name,
                )?)
            }
        };
        let pack = PackRef {
            run: self.run,
            number: self.number,
        };
        let Placed {
            frame,
            offset,
            stored_length,
        } = writer.frame(&mut self.coder, plain)?;
        let full = writer.position() >= PACK_BYTES;
        *self.live.entry(pack).or_default() += 1;
        if full {
            self.close()?;
        }
        Ok(FrameRef {
            pack,
            frame,
            offset,
            stored_length,
        })
    }

    fn put<N: Node>(&mut self, node: &N) -> Result<FrameRef> {
        self.put_bytes(&encode_node(node)?)
    }

    fn put_pieces(&mut self, bytes: &[u8]) -> Result<Vec<FrameRef>> {
        bytes
            .chunks(PIECE_BYTES)
            .map(|piece| self.put_bytes(piece))
            .collect()
    }

    fn close(&mut self) -> Result<()> {
        let Some(writer) = self.open.take() else {
            return Ok(());
        };
        let pack = PackRef {
            run: self.run,
            number: self.number,
        };
        let items = u64::from(writer.frame_count());
        let finished = writer.finish(&mut self.coder, Vec::new())?;
        crate::blocks::must_be_ours(finished.put, &self.cluster.names().pack(PackKind::Map, &pack))?;
        self.bytes_stored += finished.size;
        self.written.push(PackUse {
            kind: PackKind::Map,
            pack,
            size: finished.size,
            items,
            live: 0,
        });
        Ok(())
    }

    /// Refers to a node that is there already.
    fn refer(&mut self, frame: &FrameRef) {
        *self.live.entry(frame.pack).or_default() += 1;
    }
}

fn order(message: String) -> Error {
    Error::new("tree-order", message)
        .detail("This is a mistake of the program; nothing of the backup was published.")
}

impl TreeWriter {
    pub(crate) fn new(cluster: &ClusterRepository, run: RunId, parent: Option<Arc<Parent>>) -> Result<Self> {
        let map = MapPacks {
            cluster: cluster.clone(),
            run,
            coder: Coder::new()?,
            open: None,
            number: 0,
            live: HashMap::new(),
            written: Vec::new(),
            bytes_stored: 0,
        };
        let state = State {
            map,
            open: HashMap::new(),
            early: BTreeMap::new(),
            arrivals: None,
            next: 0,
            page: PageBuilder::default(),
            last_path: None,
            pages: Vec::new(),
            late: BTreeMap::new(),
            rows_live: HashMap::new(),
            rows_packs: HashMap::new(),
            bytes: 0,
            files: 0,
        };
        Ok(TreeWriter {
            cluster: cluster.clone(),
            parent,
            state: Mutex::new(state),
        })
    }

    /// From now on sequence numbers only tell files apart: entries come in any order, each path once, and are put
    /// into path order at the end. `folder`: where a temporary file may lie.
    pub fn take_in_any_order(&self, folder: &Path) {
        lock(&self.state).arrivals = Some(Arrivals::new(folder));
    }

    /// A directory or symbolic link; its place in path order. Files come by way of a
    /// [`PackWriter`](crate::PackWriter).
    pub fn add(&self, sequence: u64, entry: FileEntry) -> Result<()> {
        let mut state = lock(&self.state);
        self.place(&mut state, Slot::Sequence(sequence), entry)
    }

    /// The place stays empty: the file vanished.
    pub fn skip(&self, sequence: u64) -> Result<()> {
        let mut state = lock(&self.state);
        if state.early.insert(sequence, None).is_some() || sequence < state.next {
            return Err(order(format!(
                "place {sequence} of the directory was given twice"
            )));
        }
        self.advance(&mut state)
    }

    /// Announces a file, or a further part of one.
    pub(crate) fn open_file(&self, part: &FilePart) -> Result<()> {
        let slot = slot(part);
        let mut state = lock(&self.state);
        if let Some(open) = state.open.get(&slot) {
            let same = |one: &FilePart, two: &FilePart| one.path == two.path && one.size == two.size;
            if !same(&open.part, part) {
                return Err(order(format!(
                    "parts of file \"{}\" do not belong together",
                    part.path
                )));
            }
            return Ok(());
        }
        let missing = blocks_of(part.size).div_ceil(LEAF_BLOCKS).max(1) as usize;
        let file = OpenFile {
            part: part.clone(),
            inline: None,
            leaves: vec![None; missing],
            missing,
        };
        state.open.insert(slot, file);
        Ok(())
    }

    /// Takes a finished leaf: decides whether it is the parent's, an overlay on it, or a new one. `changed`:
    /// indexes (ascending) of the blocks that are not exactly as in `parent`, a leaf of as many blocks.
    pub(crate) fn leaf(
        &self,
        part: &FilePart,
        index: usize,
        leaf: Leaf,
        parent: Option<&SharedLeaf>,
        changed: &[u16],
    ) -> Result<()> {
        let inline = blocks_of(part.size) <= INLINE_BLOCKS;
        // The same content in the same places: also byte for byte the same, whatever the order it was found
        // in.
        let same = parent.filter(|_| changed.is_empty());
        let leaf = same.map_or(leaf, |parent| parent.leaf.clone());
        let shared = parent.and_then(|parent| Some((parent, parent.reference.as_ref()?)));
        let shared = shared.filter(|(_, reference)| self.sharable(&reference.base));
        enum Stored<'a> {
            Inline,
            Again(&'a LeafRef),
            Overlay(FrameRef, Vec<u8>),
            Full(Vec<u8>),
        }
        let stored = match shared {
            _ if inline => Stored::Inline,
            Some((_, reference))
                if same.is_some() && reference.overlay.is_none_or(|frame| self.sharable(&frame)) =>
            {
                Stored::Again(reference)
            }
            Some((parent, reference)) if same.is_none() => {
                let replaced = merged(&parent.replaced, changed);
                if replaced.len() <= OVERLAY_BLOCKS_MAX && replaced.len() * 2 <= leaf.blocks() as usize {
                    Stored::Overlay(reference.base, encode_node(&overlay(&leaf, replaced))?)
                } else {
                    Stored::Full(encode_node(&leaf)?)
                }
            }
            _ => Stored::Full(encode_node(&leaf)?),
        };

        let mut state = lock(&self.state);
        let state = &mut *state;
        let reference = match stored {
            Stored::Inline => None,
            Stored::Again(reference) => {
                state.map.refer(&reference.base);
                if let Some(overlay) = &reference.overlay {
                    state.map.refer(overlay);
                }
                Some(reference.clone())
            }
            Stored::Overlay(base, overlay) => {
                state.map.refer(&base);
                Some(LeafRef {
                    base,
                    overlay: Some(state.map.put_bytes(&overlay)?),
                })
            }
            Stored::Full(leaf) => Some(LeafRef {
                base: state.map.put_bytes(&leaf)?,
                overlay: None,
            }),
        };
        for (_, pack, run) in leaf.runs() {
            if let Some(pack) = pack {
                *state.rows_live.entry(pack).or_default() += u64::from(run.blocks);
            }
        }
        let slot = slot(part);
        let Some(file) = state.open.get_mut(&slot) else {
            return Err(order(format!("file \"{}\" was not announced", part.path)));
        };
        match reference {
            None => file.inline = Some(leaf),
            Some(reference) => match file.leaves.get_mut(index) {
                Some(place @ None) => *place = Some(reference),
                _ => {
                    return Err(order(format!(
                        "leaf {index} of file \"{}\" was given twice",
                        part.path
                    )));
                }
            },
        }
        file.missing -= 1;
        if file.missing > 0 {
            return Ok(());
        }
        let Some(file) = state.open.remove(&slot) else {
            return Ok(());
        };
        let content = match file.inline {
            Some(leaf) => Content::Inline(leaf),
            None => Content::Leaves(file.leaves.into_iter().flatten().collect()),
        };
        let FilePart {
            path,
            mode,
            size,
            format,
            ..
        } = file.part;
        state.bytes += size;
        state.files += 1;
        self.place(
            state,
            slot,
            FileEntry {
                path,
                mode,
                size,
                kind: EntryKind::File { format, content },
            },
        )
    }

    /// A node of the parent may be referred to again.
    fn sharable(&self, frame: &FrameRef) -> bool {
        self.parent
            .as_ref()
            .is_some_and(|parent| !parent.retiring(PackKind::Map, &frame.pack))
    }

    /// A finished rows pack of this run, or one of an interrupted run that is used.
    pub(crate) fn rows_pack(&self, pack: PackRef, size: u64, blocks: u64) {
        lock(&self.state).rows_packs.insert(pack, (size, blocks));
    }

    fn place(&self, state: &mut State, slot: Slot, entry: FileEntry) -> Result<()> {
        match slot {
            Slot::Late(path) => {
                state.late.insert(path, entry);
                Ok(())
            }
            Slot::Sequence(sequence) => {
                let encoded = postcard::to_stdvec(&entry).map_err(|error| {
                    Error::new("map-encode", "cannot encode a directory entry").caused_by(&error)
                })?;
                if let Some(arrivals) = &mut state.arrivals {
                    return arrivals.push(entry.path, &encoded);
                }
                if sequence < state.next
                    || state
                        .early
                        .insert(sequence, Some((entry.path, encoded)))
                        .is_some()
                {
                    return Err(order(format!(
                        "place {sequence} of the directory was given twice"
                    )));
                }
                self.advance(state)
            }
        }
    }

    /// Moves entries whose turn has come into pages.
    fn advance(&self, state: &mut State) -> Result<()> {
        while let Some(entry) = state.early.remove(&state.next) {
            state.next += 1;
            let Some((path, encoded)) = entry else { continue };
            if state.last_path.as_ref().is_some_and(|last| *last >= path) {
                return Err(order(format!("\"{path}\" is out of order in the directory")));
            }
            let ends = self.cluster.identity().digest(path.as_bytes()).0[0] == 0;
            let page = &mut state.page;
            page.first_path.get_or_insert_with(|| path.clone());
            page.entries += 1;
            page.encoded.extend_from_slice(&encoded);
            let full = page.entries >= PAGE_ENTRIES_MAX || page.encoded.len() >= PAGE_BYTES_MAX;
            state.last_path = Some(path);
            if ends || full {
                self.close_page(state)?;
            }
        }
        Ok(())
    }

    fn close_page(&self, state: &mut State) -> Result<()> {
        let PageBuilder {
            first_path,
            entries,
            encoded,
        } = std::mem::take(&mut state.page);
        let Some(first_path) = first_path else {
            return Ok(());
        };
        let mut plain = postcard::to_extend(&entries, vec![NODE_VERSION])
            .map_err(|error| Error::new("map-encode", "cannot encode a directory page").caused_by(&error))?;
        plain.extend_from_slice(&encoded);
        let frame = match self.same_page(&first_path, &plain)? {
            Some(frame) => {
                state.map.refer(&frame);
                frame
            }
            None => state.map.put_bytes(&plain)?,
        };
        state.pages.push(PageRef { first_path, frame });
        Ok(())
    }

    /// The parent's page of the same content.
    fn same_page(&self, first_path: &RelativePath, plain: &[u8]) -> Result<Option<FrameRef>> {
        let Some(parent) = &self.parent else {
            return Ok(None);
        };
        let pages = &parent.tree.root().pages;
        let at = pages
            .binary_search_by(|page| page.first_path.cmp(first_path))
            .ok();
        match at.and_then(|at| pages.get(at)) {
            Some(page) if !parent.retiring(PackKind::Map, &page.frame.pack) => {
                Ok((parent.tree.nodes().plain_of(&page.frame)? == plain).then_some(page.frame))
            }
            _ => Ok(None),
        }
    }

    /// Writes what is left, the root, the catalog and the pack table. All pack writers have finished, and
    /// every sequence number up to the last one was used; anything else is the error `tree-incomplete`.
    pub fn finish(&self, catalog: &[u8]) -> Result<Tree> {
        let mut state = lock(&self.state);
        let state = &mut *state;
        if let Some(file) = state.open.values().next() {
            return Err(Error::new(
                "tree-incomplete",
                format!("file \"{}\" was not finished", file.part.path),
            ));
        }
        if let Some(arrivals) = state.arrivals.take() {
            arrivals.in_order(|path, encoded| {
                state.early.insert(state.next, Some((path, encoded)));
                self.advance(state)
            })?;
        }
        if let Some((place, _)) = state.early.first_key_value() {
            let next = state.next;
            return Err(Error::new(
                "tree-incomplete",
                format!("place {next} of the directory was never given"),
            )
            .detail(format!("Place {place} was.")));
        }
        self.close_page(state)?;
        let late = Page {
            entries: std::mem::take(&mut state.late).into_values().collect(),
        };
        let late = state.map.put(&late)?;
        let root = state.map.put(&Root {
            pages: std::mem::take(&mut state.pages),
            late,
        })?;
        let catalog = state.map.put_pieces(catalog)?;
        state.map.close()?;

        let table = self.pack_table(state)?;
        let encoded = postcard::to_extend(&table, vec![NODE_VERSION])
            .map_err(|error| Error::new("map-encode", "cannot encode the pack table").caused_by(&error))?;
        // In a pack of its own, since it states the sizes of all others.
        let pack_table = state.map.put_pieces(&encoded)?;
        state.map.close()?;
        let pack_table_size = state.map.written.last().map_or(0, |pack| pack.size);
        Ok(Tree {
            root,
            pack_table,
            pack_table_size,
            catalog,
        })
    }

    fn pack_table(&self, state: &State) -> Result<Vec<PackUse>> {
        let parent = |kind, pack: &PackRef| {
            self.parent
                .as_ref()
                .and_then(|parent| parent.packs.get(&(kind, *pack)))
        };
        let unknown = |kind, pack: &PackRef| {
            let name = self.cluster.names().pack(kind, pack);
            order(format!(
                "the size of pack \"{name}\", which the backup refers to, is not known"
            ))
        };
        let mut table = Vec::new();
        for (pack, live) in &state.rows_live {
            let own = state.rows_packs.get(pack).copied();
            let inherited = || parent(PackKind::Rows, pack).map(|known| (known.size, known.items));
            let (size, items) = own
                .or_else(inherited)
                .ok_or_else(|| unknown(PackKind::Rows, pack))?;
            table.push(PackUse {
                kind: PackKind::Rows,
                pack: *pack,
                size,
                items,
                live: *live,
            });
        }
        for (pack, live) in &state.map.live {
            let own = state.map.written.iter().find(|written| written.pack == *pack);
            let known = own
                .or_else(|| parent(PackKind::Map, pack))
                .ok_or_else(|| unknown(PackKind::Map, pack))?;
            table.push(PackUse {
                live: *live,
                ..*known
            });
        }
        table.sort_by_key(|line| (line.kind, line.pack));
        Ok(table)
    }

    /// What the tree holds so far.
    pub fn statistics(&self) -> TreeStatistics {
        let state = lock(&self.state);
        TreeStatistics {
            files: state.files,
            bytes: state.bytes,
            map_bytes_stored: state.map.bytes_stored,
        }
    }
}

fn slot(part: &FilePart) -> Slot {
    match part.sequence {
        Some(sequence) => Slot::Sequence(sequence),
        None => Slot::Late(part.path.clone()),
    }
}

/// Two ascending lists as one.
fn merged(one: &[u16], two: &[u16]) -> Vec<u16> {
    let mut all = [one, two].concat();
    all.sort_unstable();
    all.dedup();
    all
}
