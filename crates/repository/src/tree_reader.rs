//! Reading a backup's map: its directory page by page, its files leaf by leaf.
//!
//! Invariants: a leaf that is handed out has its overlay applied and describes the blocks it was asked for;
//! memory holds a few pages and leaves, however large the backup is.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use diagnostic::Result;

use crate::backup::Backup;
use crate::container::damaged;
use crate::leaf_builder::apply;
use crate::map::{
    Content, EntryKind, FileEntry, FrameRef, LEAF_BLOCKS, Leaf, LeafRef, Overlay, Page, Root, decode_node,
};
use crate::nodes::{NodeReader, lock};
use crate::path::RelativePath;
use crate::repository::ClusterRepository;

/// Decoded pages that are kept at hand.
const PAGES_MAX: usize = 4;
/// Leaves that are read ahead.
const LEAVES_AHEAD: usize = 8;

/// Reads a backup's directory and leaves. Shared between threads; holds a few pages.
pub struct TreeReader {
    nodes: NodeReader,
    root: Root,
    late: Page,
    /// Page number and page, the latest last.
    pages: Mutex<Vec<(usize, Arc<Page>)>>,
}

/// A leaf of a parent, with what is needed to refer to it again.
pub(crate) struct SharedLeaf {
    /// The overlay applied.
    pub(crate) leaf: Leaf,
    /// `None` for an inline leaf.
    pub(crate) reference: Option<LeafRef>,
    /// The indexes that the overlay replaces.
    pub(crate) replaced: Vec<u16>,
}

impl TreeReader {
    /// Reads the root. Errors: `object-missing`, `object-damaged`, `repository-format`, `key-epoch`.
    pub fn open(cluster: &ClusterRepository, backup: &Backup) -> Result<Self> {
        let nodes = NodeReader::new(cluster);
        let root: Root = nodes.node(&backup.tree.root)?;
        let late = nodes.node(&root.late)?;
        Ok(TreeReader {
            nodes,
            root,
            late,
            pages: Mutex::new(Vec::new()),
        })
    }

    pub(crate) fn nodes(&self) -> &NodeReader {
        &self.nodes
    }

    pub(crate) fn root(&self) -> &Root {
        &self.root
    }

    fn page(&self, number: usize) -> Result<Option<Arc<Page>>> {
        let Some(reference) = self.root.pages.get(number) else {
            return Ok(None);
        };
        if let Some((_, page)) = lock(&self.pages).iter().find(|(known, _)| *known == number) {
            return Ok(Some(page.clone()));
        }
        let page: Page = self.nodes.node(&reference.frame)?;
        self.check_page(number, &page)?;
        let page = Arc::new(page);
        let mut pages = lock(&self.pages);
        if pages.len() >= PAGES_MAX {
            pages.remove(0);
        }
        pages.push((number, page.clone()));
        Ok(Some(page))
    }

    /// The entries of a page, read anew.
    pub(crate) fn page_entries(&self, number: usize) -> Result<Vec<FileEntry>> {
        let Some(reference) = self.root.pages.get(number) else {
            return Ok(Vec::new());
        };
        let page: Page = self.nodes.node(&reference.frame)?;
        self.check_page(number, &page)?;
        Ok(page.entries)
    }

    /// A page holds exactly the paths from its first one to the next page's.
    fn check_page(&self, number: usize, page: &Page) -> Result<()> {
        let Some(reference) = self.root.pages.get(number) else {
            return Ok(());
        };
        let after = self.root.pages.get(number + 1).map(|next| &next.first_path);
        let first = page.entries.first().map(|entry| &entry.path);
        let last = page.entries.last().map(|entry| &entry.path);
        if first != Some(&reference.first_path) || after.is_some_and(|after| last >= Some(after)) {
            return Err(damaged(
                &self.nodes.name(&reference.frame),
                "a directory page holds other paths than the root says",
            ));
        }
        Ok(())
    }

    /// The entry under a path, late ones included.
    pub fn find(&self, path: &RelativePath) -> Result<Option<FileEntry>> {
        if let Ok(at) = self.late.entries.binary_search_by(|entry| entry.path.cmp(path)) {
            return Ok(self.late.entries.get(at).cloned());
        }
        let after = self.root.pages.partition_point(|page| page.first_path <= *path);
        let Some(page) = after
            .checked_sub(1)
            .map(|number| self.page(number))
            .transpose()?
            .flatten()
        else {
            return Ok(None);
        };
        let found = page.entries.binary_search_by(|entry| entry.path.cmp(path)).ok();
        Ok(found.and_then(|at| page.entries.get(at).cloned()))
    }

    /// All entries in path order, but for the late ones. Stops after an error.
    pub fn entries(&self) -> Entries<'_> {
        Entries {
            tree: self,
            next_page: 0,
            page: Vec::new().into_iter(),
        }
    }

    /// `global/pg_control`, `backup_label`, `tablespace_map`, in path order.
    pub fn late(&self) -> Result<Vec<FileEntry>> {
        Ok(self.late.entries.clone())
    }

    /// A leaf, its overlay applied.
    pub fn leaf(&self, leaf: &LeafRef) -> Result<Leaf> {
        let base = self.nodes.node(&leaf.base)?;
        Ok(self.overlaid(base, leaf)?.leaf)
    }

    fn overlaid(&self, base: Leaf, reference: &LeafRef) -> Result<SharedLeaf> {
        let Some(frame) = &reference.overlay else {
            return Ok(SharedLeaf {
                leaf: base,
                reference: Some(reference.clone()),
                replaced: Vec::new(),
            });
        };
        let overlay: Overlay = self.nodes.node(frame)?;
        let leaf = apply(&base, &overlay)
            .ok_or_else(|| damaged(&self.nodes.name(frame), "an overlay does not belong to its base"))?;
        Ok(SharedLeaf {
            leaf,
            reference: Some(reference.clone()),
            replaced: overlay.replaced,
        })
    }

    /// The leaf that begins with block `index` x 1024, of a file of `size` bytes.
    pub fn leaf_of(&self, content: &Content, index: usize) -> Result<Option<Leaf>> {
        Ok(self.shared_leaf(content, index)?.map(|shared| shared.leaf))
    }

    pub(crate) fn shared_leaf(&self, content: &Content, index: usize) -> Result<Option<SharedLeaf>> {
        match content {
            Content::Inline(leaf) if index == 0 => Ok(Some(SharedLeaf {
                leaf: leaf.clone(),
                reference: None,
                replaced: Vec::new(),
            })),
            Content::Inline(_) => Ok(None),
            Content::Leaves(leaves) => {
                let Some(reference) = leaves.get(index) else {
                    return Ok(None);
                };
                self.shared_leaf_at(reference, index, index + 1 == leaves.len())
                    .map(Some)
            }
        }
    }

    /// The leaf behind a reference that stands at this index of its file.
    pub(crate) fn shared_leaf_at(&self, reference: &LeafRef, index: usize, last: bool) -> Result<SharedLeaf> {
        let base = self.nodes.node(&reference.base)?;
        let shared = self.overlaid(base, reference)?;
        self.check_leaf(&shared.leaf, index, last, &reference.base)?;
        Ok(shared)
    }

    /// A leaf in the right place has the right blocks; only the last one may be short.
    fn check_leaf(&self, leaf: &Leaf, index: usize, last: bool, frame: &FrameRef) -> Result<()> {
        let starts = u64::from(leaf.first_block) == index as u64 * u64::from(LEAF_BLOCKS);
        let full = leaf.blocks() == LEAF_BLOCKS || (last && leaf.blocks() > 0);
        if starts && full {
            return Ok(());
        }
        Err(damaged(
            &self.nodes.name(frame),
            "a leaf describes other blocks than its file says",
        ))
    }

    /// All leaves of a file in order, read ahead. Stops after an error.
    pub fn leaves<'a>(&'a self, content: &'a Content) -> Leaves<'a> {
        Leaves {
            tree: self,
            content,
            next: 0,
            ahead: VecDeque::new(),
        }
    }

    /// The content of an entry, if it is a file.
    pub fn content(entry: &FileEntry) -> Option<&Content> {
        match &entry.kind {
            EntryKind::File { content, .. } => Some(content),
            _ => None,
        }
    }
}

/// See [`TreeReader::entries`].
pub struct Entries<'a> {
    tree: &'a TreeReader,
    next_page: usize,
    page: std::vec::IntoIter<FileEntry>,
}

impl Iterator for Entries<'_> {
    type Item = Result<FileEntry>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(entry) = self.page.next() {
                return Some(Ok(entry));
            }
            self.tree.root.pages.get(self.next_page)?;
            match self.tree.page_entries(self.next_page) {
                Ok(entries) => self.page = entries.into_iter(),
                Err(error) => {
                    self.next_page = usize::MAX;
                    return Some(Err(error));
                }
            }
            self.next_page += 1;
        }
    }
}

/// See [`TreeReader::leaves`].
pub struct Leaves<'a> {
    tree: &'a TreeReader,
    content: &'a Content,
    /// The next leaf that is not in `ahead`.
    next: usize,
    ahead: VecDeque<Leaf>,
}

impl Leaves<'_> {
    fn fetch(&mut self) -> Result<()> {
        let leaves = match self.content {
            Content::Inline(leaf) => {
                if self.next == 0 && leaf.blocks() > 0 {
                    self.ahead.push_back(leaf.clone());
                }
                self.next = usize::MAX;
                return Ok(());
            }
            Content::Leaves(leaves) => leaves,
        };
        let end = self.next.saturating_add(LEAVES_AHEAD).min(leaves.len());
        let wanted = leaves.get(self.next..end).unwrap_or_default();
        let bases: Vec<FrameRef> = wanted.iter().map(|leaf| leaf.base).collect();
        for (reference, plain) in wanted.iter().zip(self.tree.nodes.plain(&bases)?) {
            let base = decode_node(&plain, &self.tree.nodes.name(&reference.base))?;
            let leaf = self.tree.overlaid(base, reference)?.leaf;
            self.tree
                .check_leaf(&leaf, self.next, self.next + 1 == leaves.len(), &reference.base)?;
            self.ahead.push_back(leaf);
            self.next += 1;
        }
        Ok(())
    }
}

impl Iterator for Leaves<'_> {
    type Item = Result<Leaf>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ahead.is_empty()
            && let Err(error) = self.fetch()
        {
            self.next = usize::MAX;
            self.ahead.clear();
            return Some(Err(error));
        }
        self.ahead.pop_front().map(Ok)
    }
}
