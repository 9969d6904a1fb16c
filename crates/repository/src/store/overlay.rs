//! A store over another one: what is written, changed and removed stays above, and the store below is only read.
//!
//! It is a clone of a repository that costs nothing, for whoever must damage one without touching it: a self-test of
//! drills plants its faults here. Invariants: nothing is ever written to the store below; what was hidden, cut or
//! changed here is so for every reader of the overlay; objects that were created here win over those below.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::path::Path;
use std::sync::{Arc, RwLock};

use diagnostic::{Error, Result};

use super::{LocalFolder, ObjectInfo, ObjectWriter, Put, RequestCounts, Store, missing};

/// The bits of a byte that a changed byte has the other way round.
const FLIPPED_BITS: u8 = 0x10;

/// See the module.
pub struct OverlayStore {
    below: Arc<dyn Store>,
    above: LocalFolder,
    changes: Arc<RwLock<Changes>>,
}

/// What is not as it is below.
#[derive(Debug, Default)]
struct Changes {
    hidden: BTreeSet<String>,
    flipped: BTreeMap<String, u64>,
    cut: BTreeMap<String, u64>,
}

/// What a reader is to know of one object below.
#[derive(Debug, Clone, Copy, Default)]
struct Change {
    hidden: bool,
    flipped: Option<u64>,
    cut: Option<u64>,
}

impl OverlayStore {
    /// A clone of `below` that keeps what is written to it in a folder, which is made. Errors as
    /// [`LocalFolder::create`].
    pub fn new(below: Arc<dyn Store>, folder: &Path) -> Result<OverlayStore> {
        Ok(OverlayStore {
            below,
            above: LocalFolder::create(folder)?,
            changes: Arc::default(),
        })
    }

    /// The object is gone, for readers of this clone.
    pub fn hide(&self, name: &str) -> Result<()> {
        self.above.delete(name)?;
        self.change(|changes| {
            changes.hidden.insert(name.into());
        })
    }

    /// Bits of one byte of an object below are the other way round.
    pub fn flip(&self, name: &str, offset: u64) -> Result<()> {
        self.change(|changes| {
            changes.flipped.insert(name.into(), offset);
        })
    }

    /// An object below ends after so many bytes.
    pub fn cut(&self, name: &str, size: u64) -> Result<()> {
        self.change(|changes| {
            changes.cut.insert(name.into(), size);
        })
    }

    fn change(&self, how: impl FnOnce(&mut Changes)) -> Result<()> {
        how(&mut *self.changes.write().map_err(|_| poisoned())?);
        Ok(())
    }

    fn change_of(&self, name: &str) -> Result<Change> {
        let changes = self.changes.read().map_err(|_| poisoned())?;
        Ok(Change {
            hidden: changes.hidden.contains(name),
            flipped: changes.flipped.get(name).copied(),
            cut: changes.cut.get(name).copied(),
        })
    }

    fn size_below(&self, name: &str) -> Result<Option<u64>> {
        let change = self.change_of(name)?;
        if change.hidden {
            return Ok(None);
        }
        let size = self.below.size(name)?;
        Ok(size.map(|size| change.cut.map_or(size, |cut| size.min(cut))))
    }
}

fn poisoned() -> Error {
    Error::new(
        "store-failing",
        "another thread ended badly while it changed a clone",
    )
}

fn flip(bytes: &mut [u8], first: u64, at: Option<u64>) {
    let byte = at
        .and_then(|at| at.checked_sub(first))
        .and_then(|index| bytes.get_mut(usize::try_from(index).ok()?));
    if let Some(byte) = byte {
        *byte ^= FLIPPED_BITS;
    }
}

impl Store for OverlayStore {
    fn url(&self) -> String {
        format!("{} (a clone)", self.below.url())
    }

    fn put_new(&self, name: &str, content: &[u8]) -> Result<Put> {
        match self.size_below(name)? {
            Some(_) => Ok(Put::Exists),
            None => self.above.put_new(name, content),
        }
    }

    fn writer(&self, name: &str) -> Result<Box<dyn ObjectWriter>> {
        Ok(Box::new(OverlayWriter {
            taken: self.size_below(name)?.is_some(),
            above: self.above.writer(name)?,
        }))
    }

    fn read(&self, name: &str) -> Result<Option<Vec<u8>>> {
        if let Some(content) = self.above.read(name)? {
            return Ok(Some(content));
        }
        let change = self.change_of(name)?;
        if change.hidden {
            return Ok(None);
        }
        let mut content = self.below.read(name)?;
        if let Some(content) = &mut content {
            if let Some(cut) = change.cut {
                content.truncate(usize::try_from(cut).unwrap_or(usize::MAX));
            }
            flip(content, 0, change.flipped);
        }
        Ok(content)
    }

    fn read_range_into(&self, name: &str, offset: u64, buffer: &mut [u8]) -> Result<()> {
        if self.above.size(name)?.is_some() {
            return self.above.read_range_into(name, offset, buffer);
        }
        let change = self.change_of(name)?;
        if change.hidden {
            return Err(missing(name));
        }
        if change
            .cut
            .is_some_and(|cut| offset.saturating_add(buffer.len() as u64) > cut)
        {
            return Err(Error::new(
                "object-damaged",
                format!("object \"{name}\" ends before what is read of it"),
            ));
        }
        self.below.read_range_into(name, offset, buffer)?;
        flip(buffer, offset, change.flipped);
        Ok(())
    }

    fn make_durable(&self, name: &str) -> Result<()> {
        match self.above.size(name)? {
            Some(_) => self.above.make_durable(name),
            None => Ok(()),
        }
    }

    fn size(&self, name: &str) -> Result<Option<u64>> {
        match self.above.size(name)? {
            Some(size) => Ok(Some(size)),
            None => self.size_below(name),
        }
    }

    fn list(&self, prefix: &str) -> Result<Vec<ObjectInfo>> {
        let mut objects = BTreeMap::new();
        for mut object in self.below.list(prefix)? {
            let change = self.change_of(&object.name)?;
            if !change.hidden {
                object.size = change.cut.map_or(object.size, |cut| object.size.min(cut));
                objects.insert(object.name.clone(), object);
            }
        }
        for object in self.above.list(prefix)? {
            objects.insert(object.name.clone(), object);
        }
        Ok(objects.into_values().collect())
    }

    fn list_folders(&self, prefix: &str) -> Result<Vec<String>> {
        let mut folders: BTreeSet<String> = self.above.list_folders(prefix)?.into_iter().collect();
        for folder in self.below.list_folders(prefix)? {
            let within = format!("{prefix}{folder}/");
            let untouched = {
                let changes = self.changes.read().map_err(|_| poisoned())?;
                changes
                    .hidden
                    .range(within.clone()..)
                    .next()
                    .is_none_or(|name| !name.starts_with(&within))
            };
            // Where something of it is hidden, something else must be left.
            if untouched || !self.list(&within)?.is_empty() {
                folders.insert(folder);
            }
        }
        Ok(folders.into_iter().collect())
    }

    fn delete(&self, name: &str) -> Result<()> {
        self.hide(name)
    }

    fn requests(&self) -> RequestCounts {
        self.below.requests()
    }

    fn sweep(&self, before: jiff::Timestamp) -> Result<u64> {
        self.above.sweep(before)
    }

    fn is_remote(&self) -> bool {
        self.below.is_remote()
    }

    fn range_bytes(&self) -> usize {
        self.below.range_bytes()
    }
}

/// An object that is being written above.
struct OverlayWriter {
    /// The name was taken below when the writing began; nothing is created there meanwhile.
    taken: bool,
    above: Box<dyn ObjectWriter>,
}

impl Write for OverlayWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.above.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.above.flush()
    }
}

impl ObjectWriter for OverlayWriter {
    fn position(&self) -> u64 {
        self.above.position()
    }

    fn finish(self: Box<Self>) -> Result<Put> {
        match self.taken {
            true => Ok(Put::Exists),
            false => self.above.finish(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn overlay(below: &Path, above: &Path) -> (Arc<LocalFolder>, OverlayStore) {
        let below = Arc::new(LocalFolder::create(below).unwrap());
        let overlay = OverlayStore::new(Arc::clone(&below) as Arc<dyn Store>, above).unwrap();
        (below, overlay)
    }

    #[test]
    fn it_behaves_as_every_store_does_and_leaves_the_one_below_empty() {
        let folder = tempfile::tempdir().unwrap();
        let (below, overlay) = overlay(&folder.path().join("below"), &folder.path().join("above"));
        super::super::conformance(&overlay);
        assert_eq!(below.list("").unwrap(), []);
    }

    #[test]
    fn what_is_changed_above_stays_above() {
        let folder = tempfile::tempdir().unwrap();
        let (below, overlay) = overlay(&folder.path().join("below"), &folder.path().join("above"));
        for name in ["a/flipped", "a/cut", "b/hidden", "c/written-anew"] {
            below.put_new(name, b"0123456789").unwrap();
        }
        assert_eq!(overlay.put_new("a/cut", b"other").unwrap(), Put::Exists);
        overlay.flip("a/flipped", 3).unwrap();
        overlay.cut("a/cut", 4).unwrap();
        overlay.hide("b/hidden").unwrap();
        overlay.delete("c/written-anew").unwrap();
        assert_eq!(overlay.put_new("c/written-anew", b"other").unwrap(), Put::Created);

        assert_eq!(overlay.read("a/flipped").unwrap().unwrap(), b"012#456789");
        assert_eq!(overlay.read_range("a/flipped", 2, 3).unwrap(), b"2#4");
        assert_eq!(overlay.read_range("a/flipped", 4, 3).unwrap(), b"456");
        assert_eq!(overlay.read("a/cut").unwrap().unwrap(), b"0123");
        assert_eq!(overlay.size("a/cut").unwrap(), Some(4));
        assert_eq!(
            overlay.read_range("a/cut", 2, 3).unwrap_err().code(),
            "object-damaged"
        );
        assert_eq!(overlay.read("b/hidden").unwrap(), None);
        assert_eq!(
            overlay.read_range("b/hidden", 0, 1).unwrap_err().code(),
            "object-missing"
        );
        assert_eq!(overlay.list_folders("").unwrap(), ["a", "c"]);
        assert_eq!(overlay.read("c/written-anew").unwrap().unwrap(), b"other");
        let sizes: Vec<u64> = overlay
            .list("")
            .unwrap()
            .iter()
            .map(|object| object.size)
            .collect();
        assert_eq!(sizes, [4, 10, 5]);

        for object in below.list("").unwrap() {
            assert_eq!(
                below.read(&object.name).unwrap().unwrap(),
                b"0123456789",
                "{}",
                object.name
            );
        }
        assert_eq!(below.list("").unwrap().len(), 4);
    }
}
