//! Writing large files past the page cache.
//!
//! A restore writes the whole database once, and the kernel's share of that (copying into the page cache,
//! finding pages, writing them back behind our back) costs more CPU than decrypting and decompressing. So
//! neighbouring pieces are gathered in one aligned buffer and written with `O_DIRECT` where the file system
//! takes it, and as ordinary large writes where not.
//!
//! Invariants: what [`Gatherer::write`] was given is in the file after [`Gatherer::flush`]; a direct write
//! never touches bytes that it was not given, so the ends that are not aligned go through the page cache; the
//! gatherer's memory is a constant.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use diagnostic::Result;
use rustix::fs::OFlags;

use crate::sync::write_error;

/// What `O_DIRECT` asks of addresses, offsets and lengths on every file system that PostgreSQL runs on.
const ALIGNMENT: usize = 4096;
/// Bytes written at once.
const WRITE_BYTES: usize = 1 << 20;

/// A large file that several threads fill.
pub(crate) struct LargeFile {
    file: File,
    direct: Option<File>,
    /// The file system has refused a direct write.
    refused: AtomicBool,
    pub(crate) path: PathBuf,
    /// Bytes.
    pub(crate) size: u64,
}

impl LargeFile {
    /// Takes a new, empty file that is open for writing under this path, and gives it its size.
    pub(crate) fn new(file: File, path: PathBuf, size: u64) -> Result<LargeFile> {
        file.set_len(size).map_err(|error| write_error(&path, &error))?;
        let direct = open_direct(&path);
        Ok(LargeFile {
            file,
            direct,
            refused: AtomicBool::new(false),
            path,
            size,
        })
    }

    fn write(&self, bytes: &[u8], offset: u64) -> std::io::Result<()> {
        let aligned = offset.is_multiple_of(ALIGNMENT as u64) && bytes.len().is_multiple_of(ALIGNMENT);
        if let Some(direct) = &self.direct
            && aligned
            && !self.refused.load(Ordering::Relaxed)
        {
            match direct.write_all_at(bytes, offset) {
                Err(error) if error.kind() == std::io::ErrorKind::InvalidInput => {
                    self.refused.store(true, Ordering::Relaxed);
                }
                done => return done,
            }
        }
        self.file.write_all_at(bytes, offset)
    }
}

/// `None` where the file system does not know direct writes.
fn open_direct(path: &Path) -> Option<File> {
    let flags = OFlags::DIRECT | OFlags::NOFOLLOW;
    OpenOptions::new()
        .write(true)
        .custom_flags(flags.bits() as i32)
        .open(path)
        .ok()
}

/// Gathers neighbouring pieces of one file at a time. One for each thread.
pub(crate) struct Gatherer {
    buffer: Vec<u8>,
    /// The first aligned byte of the buffer.
    start: usize,
    /// What is gathered, from `start` on.
    length: usize,
    /// Where it belongs in the file.
    offset: u64,
}

impl Gatherer {
    pub(crate) fn new() -> Gatherer {
        let buffer = vec![0; WRITE_BYTES + ALIGNMENT];
        // The buffer never grows, so that it stays where it is.
        let start = buffer.as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT);
        Gatherer {
            buffer,
            start,
            length: 0,
            offset: 0,
        }
    }

    /// Takes bytes of the file. All calls up to the next [`flush`](Self::flush) are about the same file.
    pub(crate) fn write(&mut self, file: &LargeFile, mut bytes: &[u8], mut offset: u64) -> Result<()> {
        while !bytes.is_empty() {
            if self.length == WRITE_BYTES || self.offset + self.length as u64 != offset {
                self.flush(file)?;
                self.offset = offset;
            }
            let (now, later) = bytes.split_at(bytes.len().min(WRITE_BYTES - self.length));
            let from = self.start + self.length;
            if let Some(room) = self.buffer.get_mut(from..from + now.len()) {
                room.copy_from_slice(now);
            }
            self.length += now.len();
            offset += now.len() as u64;
            bytes = later;
        }
        Ok(())
    }

    /// Writes what is gathered.
    pub(crate) fn flush(&mut self, file: &LargeFile) -> Result<()> {
        let gathered = self
            .buffer
            .get(self.start..self.start + self.length)
            .unwrap_or_default();
        // A file's last block may be short.
        let (whole, tail) = gathered.split_at(gathered.len() / ALIGNMENT * ALIGNMENT);
        for (part, offset) in [(whole, self.offset), (tail, self.offset + whole.len() as u64)] {
            if !part.is_empty() {
                file.write(part, offset)
                    .map_err(|error| write_error(&file.path, &error))?;
            }
        }
        self.length = 0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn restored(pieces: &[(u64, &[u8])], size: u64) -> Vec<u8> {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("16384");
        let file = LargeFile::new(File::create_new(&path).unwrap(), path.clone(), size).unwrap();
        let mut gatherer = Gatherer::new();
        for (offset, bytes) in pieces {
            gatherer.write(&file, bytes, *offset).unwrap();
        }
        gatherer.flush(&file).unwrap();
        std::fs::read(path).unwrap()
    }

    #[test]
    fn pieces_in_any_order_with_holes_and_a_short_end_arrive() {
        let block = |fill: u8, length: usize| vec![fill; length];
        let (one, two, three) = (block(1, 3 << 20), block(2, 8192), block(3, 5000));
        let size = (4 << 20) + 8192 + 5000;
        let content = restored(&[(4 << 20, &two), ((4 << 20) + 8192, &three), (0, &one)], size);
        assert_eq!(content.len() as u64, size);
        assert!(content[..3 << 20].iter().all(|byte| *byte == 1));
        assert!(content[3 << 20..4 << 20].iter().all(|byte| *byte == 0));
        assert!(content[4 << 20..][..8192].iter().all(|byte| *byte == 2));
        assert!(content[(4 << 20) + 8192..].iter().all(|byte| *byte == 3));
    }

    #[test]
    fn bytes_that_begin_nowhere_special_arrive() {
        let content = restored(&[(10, &[7; 20_000]), (20_010, &[8; 100])], 30_000);
        assert_eq!(content.iter().filter(|byte| **byte == 7).count(), 20_000);
        assert_eq!(content[20_010], 8);
        assert_eq!(content[9], 0);
    }
}
