//! Reads the tar archives that a server sends in a base backup, piece by piece: plain ustar.
//!
//! Invariants: total on any bytes; nothing is skipped in silence (a kind of member that the server never sends is an
//! error); memory does not depend on the size of a member; the archive may end behind any member, with or
//! without the two blocks of zeros (PostgreSQL 13 and 14 send none). Source: `tarCreateHeader` and
//! `print_tar_number` of `src/port/tar.c`: sizes of 8 GiB and more are base-256, names of directories and
//! links end in a slash.

use std::io::{self, Read};

use diagnostic::{Error, Result};

const BLOCK: usize = 512;

/// A member of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TarEntry {
    /// Without a slash at its end.
    pub path: Vec<u8>,
    /// Permission bits.
    pub mode: u32,
    pub kind: TarKind,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TarKind {
    /// `size` bytes follow; read them from the reader.
    File {
        size: u64,
    },
    Directory,
    Symlink {
        target: Vec<u8>,
    },
}

/// See the module. `read` gives the content of the last file that [`TarReader::next_entry`] gave.
pub struct TarReader<R> {
    source: R,
    /// Of the current file's content.
    remaining: u64,
    padding: u64,
    ended: bool,
}

fn damaged(what: &str) -> Error {
    Error::new(
        "backup-stream-damaged",
        "the server's backup stream makes no sense",
    )
    .detail(what.to_owned())
}

impl<R: Read> TarReader<R> {
    pub fn new(source: R) -> TarReader<R> {
        TarReader {
            source,
            remaining: 0,
            padding: 0,
            ended: false,
        }
    }

    /// The next member; what was not read of the one before is passed over. `None` at the archive's end.
    pub fn next_entry(&mut self) -> Result<Option<TarEntry>> {
        if self.ended {
            return Ok(None);
        }
        let mut rest = self.remaining + self.padding;
        let mut sink = [0; 8192];
        while rest > 0 {
            let wanted = usize::try_from(rest).unwrap_or(usize::MAX).min(sink.len());
            let piece = sink.get_mut(..wanted).unwrap_or_default();
            self.source.read_exact(piece).map_err(stream_error)?;
            rest -= wanted as u64;
        }
        self.remaining = 0;
        self.padding = 0;
        let mut header = [0; BLOCK];
        if !self.block(&mut header)? {
            self.ended = true;
            return Ok(None);
        }
        if header.iter().all(|byte| *byte == 0) {
            // The end: nothing but zeros may follow.
            let mut more = [0; BLOCK];
            while self.block(&mut more)? {
                if more.iter().any(|byte| *byte != 0) {
                    return Err(damaged("There is something behind the end of an archive."));
                }
            }
            self.ended = true;
            return Ok(None);
        }
        let entry = parse_header(&header)?;
        if let TarKind::File { size } = entry.kind {
            self.remaining = size;
            self.padding = size.next_multiple_of(BLOCK as u64) - size;
        }
        Ok(Some(entry))
    }

    /// Fills a block; `false` when the archive is at its end.
    fn block(&mut self, block: &mut [u8; BLOCK]) -> Result<bool> {
        let mut filled = 0;
        while let Some(rest) = block.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match self.source.read(rest) {
                Ok(0) if filled == 0 => return Ok(false),
                Ok(0) => return Err(damaged("An archive ends within a block.")),
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(stream_error(error)),
            }
        }
        Ok(true)
    }

    /// The content of the current file: fills `buffer`, and gives fewer bytes only at the file's end. Error:
    /// `backup-stream-damaged` when the stream ends before the file.
    pub fn read_content(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let wanted = usize::try_from(self.remaining)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        self.source
            .read_exact(buffer.get_mut(..wanted).unwrap_or_default())
            .map_err(stream_error)?;
        self.remaining -= wanted as u64;
        Ok(wanted)
    }

    /// The whole content of the current file, if it is no longer than `limit`.
    pub fn read_whole(&mut self, limit: u64) -> Result<Vec<u8>> {
        if self.remaining > limit {
            return Err(damaged("A file that is always small is not."));
        }
        let mut content = vec![0; self.remaining as usize];
        self.read_content(&mut content)?;
        Ok(content)
    }
}

/// The stream's own error, if it is one of ours in disguise, or else its early end.
fn stream_error(error: io::Error) -> Error {
    match error.downcast::<StreamFailure>() {
        Ok(StreamFailure(error)) => error,
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            damaged("An archive ends within a file.")
        }
        Err(error) => Error::io("replication-lost", "the backup stream broke off", &error),
    }
}

/// An error of ours on its way through `io::Read`.
#[derive(Debug)]
pub struct StreamFailure(pub Error);

impl std::fmt::Display for StreamFailure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0.message())
    }
}

impl std::error::Error for StreamFailure {}

fn parse_header(header: &[u8; BLOCK]) -> Result<TarEntry> {
    let field = |from: usize, to: usize| header.get(from..to).unwrap_or_default();
    let text = |from, to| -> Vec<u8> {
        field(from, to)
            .split(|byte| *byte == 0)
            .next()
            .unwrap_or_default()
            .to_vec()
    };
    let sum: u64 = header
        .iter()
        .enumerate()
        .map(|(at, byte)| u64::from(if (148..156).contains(&at) { b' ' } else { *byte }))
        .sum();
    if number(field(148, 156)) != Some(sum) {
        return Err(damaged("The checksum of a member's header is wrong."));
    }
    if field(257, 262) != b"ustar" {
        return Err(damaged("A member's header is not of the ustar format."));
    }
    let mut path = text(345, 500);
    if !path.is_empty() {
        path.push(b'/');
    }
    path.extend_from_slice(&text(0, 100));
    while path.last() == Some(&b'/') {
        path.pop();
    }
    // "./pg_wal/archive_status", alone among all names.
    if let Some(rest) = path.strip_prefix(b"./") {
        path = rest.to_vec();
    }
    let shown = path.escape_ascii().to_string();
    let (Some(mode), Some(size)) = (number(field(100, 108)), number(field(124, 136))) else {
        return Err(damaged(&format!(
            "The header of \"{shown}\" has no proper numbers."
        )));
    };
    let kind = match header.get(156) {
        Some(b'0' | 0) => TarKind::File { size },
        Some(b'5') => TarKind::Directory,
        Some(b'2') => {
            let mut target = text(157, 257);
            // The server ends it with a slash in some versions; "/" itself stays.
            while target.len() > 1 && target.last() == Some(&b'/') {
                target.pop();
            }
            TarKind::Symlink { target }
        }
        other => {
            return Err(damaged(&format!(
                "\"{shown}\" is of a kind that PostgreSQL does not send ({other:?})."
            )));
        }
    };
    if size > i64::MAX as u64 {
        return Err(damaged(&format!("\"{shown}\" is said to have {size} bytes.")));
    }
    Ok(TarEntry {
        path,
        mode: (mode & 0o7777) as u32,
        kind,
    })
}

/// Octal digits, or base-256 behind a first byte of 0x80.
fn number(field: &[u8]) -> Option<u64> {
    if let Some((0x80, digits)) = field.split_first() {
        return digits.iter().try_fold(0_u64, |sum, digit| {
            sum.checked_mul(256)?.checked_add(u64::from(*digit))
        });
    }
    let digits = field
        .iter()
        .copied()
        .skip_while(|byte| *byte == b' ')
        .take_while(|byte| *byte != 0 && *byte != b' ');
    let mut count = 0;
    let sum = digits.clone().try_fold(0_u64, |sum, digit| {
        count += 1;
        let digit = (digit as char).to_digit(8)?;
        sum.checked_mul(8)?.checked_add(u64::from(digit))
    })?;
    (count > 0).then_some(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(path: &str, kind: u8, size: &[u8], link: &str) -> Vec<u8> {
        let mut header = vec![0; BLOCK];
        let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, path.as_bytes());
        put(100, b"0000600\0");
        put(124, size);
        put(156, &[kind]);
        put(157, link.as_bytes());
        put(257, b"ustar\x0000");
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        header
    }

    fn archive() -> Vec<u8> {
        let mut bytes = header("./base/1/", b'5', b"00000000000\0", "");
        bytes.extend(header("base/1/112", b'0', b"00000001002\0", "")); // 514 bytes
        bytes.extend(vec![7; 514]);
        bytes.extend(vec![0; 510]);
        bytes.extend(header("pg_tblspc/16385/", b'2', b"00000000000\0", "/srv/space/"));
        bytes.extend(header("empty", b'0', b"00000000000\0", ""));
        bytes
    }

    #[test]
    fn members_come_one_after_the_other_with_and_without_an_end() {
        for end in [0, 2 * BLOCK] {
            let mut bytes = archive();
            bytes.extend(vec![0; end]);
            let mut tar = TarReader::new(bytes.as_slice());
            let entry = tar.next_entry().unwrap().unwrap();
            assert_eq!(
                (entry.path.as_slice(), entry.kind),
                (&b"base/1"[..], TarKind::Directory)
            );
            let entry = tar.next_entry().unwrap().unwrap();
            assert_eq!((entry.mode, entry.kind), (0o600, TarKind::File { size: 514 }));
            let mut content = [0; 1000];
            assert_eq!(tar.read_content(&mut content[..500]).unwrap(), 500);
            assert_eq!(tar.read_content(&mut content).unwrap(), 14);
            let entry = tar.next_entry().unwrap().unwrap();
            let target = b"/srv/space".to_vec();
            assert_eq!(entry.kind, TarKind::Symlink { target });
            assert_eq!(tar.next_entry().unwrap().unwrap().kind, TarKind::File { size: 0 });
            assert!(tar.next_entry().unwrap().is_none());
            assert!(tar.next_entry().unwrap().is_none());
        }
    }

    #[test]
    fn a_file_beyond_8_gib_has_its_size() {
        let mut size = [0; 12];
        size[0] = 0x80;
        size[4..].copy_from_slice(&(9_u64 << 30).to_be_bytes());
        let bytes = header("base/1/2", b'0', &size, "");
        let entry = TarReader::new(bytes.as_slice()).next_entry().unwrap().unwrap();
        assert_eq!(entry.kind, TarKind::File { size: 9 << 30 });
    }

    #[test]
    fn a_stream_that_breaks_off_is_an_error() {
        let bytes = archive();
        for cut in [100, 600, 1100, 1500] {
            let mut tar = TarReader::new(&bytes[..cut]);
            let mut outcome = Ok(());
            while outcome.is_ok() {
                outcome = match tar.next_entry() {
                    Ok(Some(_)) => tar.read_whole(1000).map(drop),
                    Ok(None) => panic!("{cut} bytes are not the whole"),
                    Err(error) => Err(error),
                };
            }
            assert_eq!(outcome.unwrap_err().code(), "backup-stream-damaged", "{cut}");
        }
        let fifo = header("x", b'6', b"00000000000\0", "");
        assert!(TarReader::new(fifo.as_slice()).next_entry().is_err());
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_an_archive_or_an_error(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..2000)) {
            let mut tar = TarReader::new(bytes.as_slice());
            while let Ok(Some(_)) = tar.next_entry() {}
        }
    }
}
