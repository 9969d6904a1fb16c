//! Reads files of a live data directory.
//!
//! Invariants: nothing is locked or written; what production did not hold in the page cache is not left there (Linux
//! 6.14 and later: `RWF_DONTCACHE`, which drops only what the read itself brought in), and what it did hold is never
//! evicted; a file that has shrunk is read up to its end, without an error.

use std::io::IoSliceMut;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use diagnostic::{Error, Result};
use rustix::fs::{Advice, Mode, OFlags};
use rustix::io::{Errno, ReadWriteFlags};

/// `RWF_DONTCACHE` of `linux/fs.h`, which older kernels and some file systems refuse.
const DONTCACHE: ReadWriteFlags = ReadWriteFlags::from_bits_retain(0x80);

/// Set once a read with `DONTCACHE` was refused: from then on reads are plain.
static PLAIN_READS: AtomicBool = AtomicBool::new(false);

/// A file of the data directory, open for reading.
pub(super) struct SourceFile {
    file: OwnedFd,
}

impl SourceFile {
    /// `None`: the file is not there (any more). Errors: `file-read`.
    pub(super) fn open(path: &Path) -> Result<Option<SourceFile>> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
        match rustix::fs::open(path, flags, Mode::empty()) {
            Ok(file) => Ok(Some(SourceFile { file })),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => {
                let error = Error::io(
                    "file-read",
                    format!("cannot open file \"{}\"", path.display()),
                    &errno.into(),
                );
                Err(if errno == Errno::ACCESS {
                    error.hint("Run pgproof as the operating system's user that owns the data directory.")
                } else {
                    error
                })
            }
        }
    }

    /// Bytes of the file now.
    pub(super) fn size(&self, path: &Path) -> Result<u64> {
        let status = rustix::fs::fstat(&self.file).map_err(|errno| {
            Error::io(
                "file-read",
                format!("cannot examine \"{}\"", path.display()),
                &errno.into(),
            )
        })?;
        Ok(u64::try_from(status.st_size).unwrap_or(0))
    }

    /// Tells the kernel that the file is read from front to back. Advice only.
    pub(super) fn will_be_sequential(&self) {
        let _ = rustix::fs::fadvise(&self.file, 0, None, Advice::Sequential);
    }

    /// Fills `buffer` from `offset`; fewer bytes only at the end of the file.
    pub(super) fn read_at(&self, path: &Path, buffer: &mut [u8], offset: u64) -> Result<usize> {
        let mut filled = 0;
        while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match read_some(&self.file, rest, offset + filled as u64) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(Errno::INTR) => {}
                Err(errno) => {
                    return Err(Error::io(
                        "file-read",
                        format!(
                            "cannot read file \"{}\" at offset {}",
                            path.display(),
                            offset + filled as u64
                        ),
                        &errno.into(),
                    ));
                }
            }
        }
        Ok(filled)
    }
}

fn read_some(file: &OwnedFd, buffer: &mut [u8], offset: u64) -> Result<usize, Errno> {
    if !PLAIN_READS.load(Ordering::Relaxed) {
        match rustix::io::preadv2(file, &mut [IoSliceMut::new(buffer)], offset, DONTCACHE) {
            Err(Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS) => PLAIN_READS.store(true, Ordering::Relaxed),
            result => return result,
        }
    }
    rustix::io::pread(file, buffer, offset)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_to_its_end_and_no_further() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, vec![7; 10_000]).unwrap();
        let file = SourceFile::open(&path).unwrap().unwrap();
        file.will_be_sequential();
        assert_eq!(file.size(&path).unwrap(), 10_000);
        let mut buffer = vec![0; 8192];
        assert_eq!(file.read_at(&path, &mut buffer, 0).unwrap(), 8192);
        assert_eq!(file.read_at(&path, &mut buffer, 8192).unwrap(), 1808);
        assert_eq!(file.read_at(&path, &mut buffer, 16384).unwrap(), 0);
        assert!(SourceFile::open(&folder.path().join("gone")).unwrap().is_none());
    }

    #[test]
    fn a_symbolic_link_in_place_of_a_file_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let link = folder.path().join("link");
        std::os::unix::fs::symlink("/etc/hostname", &link).unwrap();
        assert_eq!(SourceFile::open(&link).err().unwrap().code(), "file-read");
    }
}
