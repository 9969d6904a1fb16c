//! Entries of a directory that come in an order that is not that of their paths, kept until all are there.
//!
//! A server that sends a base backup walks its directories in the file system's order, while a backup's directory
//! stands in path order. Invariants: memory holds for each entry its path and where it lies, and of the
//! entries themselves no more than [`MEMORY_BYTES`]; the rest is in a file without a name, which is gone with
//! the process. An entry holds paths, sizes, LSNs and keyed digests, and no rows.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use diagnostic::{Error, Result};
use rustix::fs::{Mode, OFlags};

use crate::path::RelativePath;

/// Bytes of entries in memory.
const MEMORY_BYTES: usize = 32 << 20;

/// See the module.
pub(crate) struct Arrivals {
    folder: PathBuf,
    /// Path, offset, length.
    index: Vec<(RelativePath, u64, u32)>,
    /// What is not in the file yet: from offset `spilled` on.
    memory: Vec<u8>,
    file: Option<File>,
    spilled: u64,
    memory_max: usize,
}

impl Arrivals {
    /// `folder`: where the file may lie.
    pub(crate) fn new(folder: &Path) -> Arrivals {
        Arrivals {
            folder: folder.to_path_buf(),
            index: Vec::new(),
            memory: Vec::new(),
            file: None,
            spilled: 0,
            memory_max: MEMORY_BYTES,
        }
    }

    pub(crate) fn push(&mut self, path: RelativePath, encoded: &[u8]) -> Result<()> {
        let length = u32::try_from(encoded.len())
            .map_err(|_| Error::new("map-encode", format!("the entry of \"{path}\" is too long")))?;
        let offset = self.spilled + self.memory.len() as u64;
        self.memory.extend_from_slice(encoded);
        self.index.push((path, offset, length));
        if self.memory.len() < self.memory_max {
            return Ok(());
        }
        let file = match &self.file {
            Some(file) => file,
            None => self.file.insert(nameless(&self.folder)?),
        };
        file.write_all_at(&self.memory, self.spilled)
            .map_err(|error| failed(&self.folder, &error))?;
        self.spilled += self.memory.len() as u64;
        self.memory.clear();
        Ok(())
    }

    /// Gives the entries in path order.
    pub(crate) fn in_order(
        mut self,
        mut take: impl FnMut(RelativePath, Vec<u8>) -> Result<()>,
    ) -> Result<()> {
        self.index.sort_unstable_by(|one, two| one.0.cmp(&two.0));
        for (path, offset, length) in std::mem::take(&mut self.index) {
            let mut encoded = vec![0; length as usize];
            match (offset.checked_sub(self.spilled), &self.file) {
                (Some(at), _) => {
                    let at = at as usize;
                    let entry = self.memory.get(at..at + encoded.len()).unwrap_or_default();
                    encoded = entry.to_vec();
                }
                (None, Some(file)) => file
                    .read_exact_at(&mut encoded, offset)
                    .map_err(|error| failed(&self.folder, &error))?,
                (None, None) => {}
            }
            take(path, encoded)?;
        }
        Ok(())
    }
}

/// A file that nobody else can open.
fn nameless(folder: &Path) -> Result<File> {
    let mode = Mode::RUSR | Mode::WUSR;
    match rustix::fs::open(folder, OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC, mode) {
        Ok(file) => Ok(file.into()),
        // A file system without O_TMPFILE: made, opened, and its name taken away.
        Err(_) => {
            let path = folder.join(format!("pgproof-{}.arrivals", std::process::id()));
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            let file = rustix::fs::open(&path, flags, mode).map_err(|errno| failed(folder, &errno.into()))?;
            std::fs::remove_file(&path).map_err(|error| failed(folder, &error))?;
            Ok(file.into())
        }
    }
}

fn failed(folder: &Path, error: &std::io::Error) -> Error {
    Error::io(
        "spill-file",
        format!("cannot use a temporary file in \"{}\"", folder.display()),
        error,
    )
    .hint("Set TMPDIR to a folder with room for it: about 1 KiB for each file of the cluster at most.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_come_back_in_path_order_from_memory_and_from_the_file() {
        for memory_max in [1, 10, 1 << 20] {
            let folder = tempfile::tempdir().unwrap();
            let mut arrivals = Arrivals::new(folder.path());
            arrivals.memory_max = memory_max;
            for name in ["b/2", "a", "b", "c/1", "b/10"] {
                arrivals
                    .push(RelativePath::new(name).unwrap(), format!("<{name}>").as_bytes())
                    .unwrap();
            }
            let mut seen = Vec::new();
            arrivals
                .in_order(|path, encoded| {
                    seen.push(format!("{path}={}", String::from_utf8(encoded).unwrap()));
                    Ok(())
                })
                .unwrap();
            assert_eq!(seen, ["a=<a>", "b=<b>", "b/10=<b/10>", "b/2=<b/2>", "c/1=<c/1>"]);
            assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        }
    }
}
