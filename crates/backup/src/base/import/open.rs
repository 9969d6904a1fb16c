//! Opens what somebody brings: a file, plain or compressed, as a stream of plain bytes.
//!
//! Invariants: what a file is, its first bytes say and not its name; a compressed file that is cut or damaged is an error
//! of the stream (`import-archive-damaged`), never a silent end; memory does not depend on a file's size.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;

use diagnostic::{Error, Result};

/// How a file is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Packing {
    Plain,
    Gzip,
    Zstd,
    Lz4,
}

/// Bytes that decide.
const MAGIC_BYTES: usize = 4;

/// By the magic numbers of RFC 1952, RFC 8878 (frame or skippable frame) and LZ4's frame format.
fn packing(first: &[u8]) -> Packing {
    match first {
        [0x1F, 0x8B, ..] => Packing::Gzip,
        [0x28, 0xB5, 0x2F, 0xFD, ..] => Packing::Zstd,
        [0x04, 0x22, 0x4D, 0x18, ..] => Packing::Lz4,
        _ => Packing::Plain,
    }
}

/// The plain bytes of `source`, whatever it is packed with.
pub(super) fn unpacked<'a>(mut source: impl Read + Send + 'a) -> io::Result<Box<dyn Read + Send + 'a>> {
    let mut first = [0; MAGIC_BYTES];
    let count = fill(&mut source, &mut first)?;
    let first = first.get(..count).unwrap_or_default().to_vec();
    let kind = packing(&first);
    let whole = io::Cursor::new(first).chain(source);
    Ok(match kind {
        Packing::Plain => Box::new(whole),
        Packing::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(BufReader::with_capacity(
            64 << 10,
            whole,
        ))),
        Packing::Zstd => Box::new(zstd::stream::read::Decoder::new(whole)?),
        Packing::Lz4 => Box::new(WholeLz4(lz4_flex::frame::FrameDecoder::new(Tail {
            source: BufReader::with_capacity(64 << 10, whole),
            seen: 0,
            checksum: false,
            last: [1; 8],
        }))),
    })
}

/// LZ4's decoder takes a file that ends between two blocks for whole; a frame ends with a block of length 0. Content that
/// ends in zeros may stand in for it: then the archive's own end mark, or the segment's size, tells.
struct WholeLz4<R: Read>(lz4_flex::frame::FrameDecoder<Tail<R>>);

/// What was read last, and whether the frame's header promises a checksum of the content behind the end mark.
struct Tail<R> {
    source: R,
    seen: u64,
    checksum: bool,
    last: [u8; 8],
}

impl<R: Read> Read for Tail<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.source.read(buffer)?;
        for byte in buffer.get(..count).unwrap_or_default() {
            // The fifth byte, FLG: bit 2.
            if self.seen == 4 {
                self.checksum = byte & 4 != 0;
            }
            self.seen += 1;
        }
        let kept = count.min(self.last.len());
        self.last.rotate_left(kept);
        let new = buffer.get(count - kept..count).unwrap_or_default();
        let from = self.last.len() - kept;
        if let Some(end) = self.last.get_mut(from..) {
            end.copy_from_slice(new);
        }
        Ok(count)
    }
}

impl<R: Read> Read for WholeLz4<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.0.read(buffer)?;
        if count == 0 && !buffer.is_empty() {
            let tail = self.0.get_ref();
            let end = if tail.checksum {
                tail.last.get(..4)
            } else {
                tail.last.get(4..)
            };
            if end != Some(&[0; 4]) {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(count)
    }
}

/// Opens a file for reading. Errors: `import-read`, `import-archive-damaged`.
pub(super) fn open(path: &Path) -> Result<Box<dyn Read + Send>> {
    let file = File::open(path).map_err(|error| unreadable(path, &error))?;
    unpacked(file).map_err(|error| broken(&path.display().to_string(), &error))
}

/// Fills `buffer` as far as the source reaches.
pub(super) fn fill(source: &mut dyn Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match source.read(rest) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

pub(super) fn unreadable(path: &Path, error: &io::Error) -> Error {
    Error::io(
        "import-read",
        format!("cannot read \"{}\"", path.display()),
        error,
    )
    .hint("It must be readable for the account that the repository belongs to; root works as that account.")
}

/// An error of a stream: a packed file that is cut or damaged looks like any other.
pub(super) fn broken(what: &str, error: &io::Error) -> Error {
    Error::io(
        "import-archive-damaged",
        format!("\"{what}\" is cut or damaged"),
        error,
    )
    .hint("Nothing of it was recorded as a backup. Copy the file again from where it was made, and compare the sizes.")
}

/// A name without the ending that says how it is packed.
pub(super) fn plain_name(name: &str) -> &str {
    [".gz", ".zst", ".lz4"]
        .iter()
        .find_map(|ending| name.strip_suffix(ending))
        .unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn lz4(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = lz4_flex::frame::FrameEncoder::new(Vec::new());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn read(bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut all = Vec::new();
        unpacked(io::Cursor::new(bytes.to_vec()))?.read_to_end(&mut all)?;
        Ok(all)
    }

    #[test]
    fn each_packing_is_recognised_by_its_bytes_and_a_cut_one_is_an_error() {
        let mut plain: Vec<u8> = (0..300_000_u32)
            .flat_map(|n| (n ^ n >> 5).to_le_bytes())
            .collect();
        plain.extend([7; 8]);
        assert_eq!(read(&plain).unwrap(), plain);
        assert_eq!(read(b"ab").unwrap(), b"ab");
        for packed in [
            gzip(&plain),
            zstd::encode_all(plain.as_slice(), 1).unwrap(),
            lz4(&plain),
        ] {
            assert_eq!(read(&packed).unwrap(), plain);
            for cut in [
                packed.len() / 2,
                packed.len() - 5,
                packed.len() - 4,
                packed.len() - 1,
            ] {
                assert!(read(&packed[..cut]).is_err(), "{cut} of {}", packed.len());
            }
        }
        let two = [gzip(b"one "), gzip(b"two")].concat();
        assert_eq!(read(&two).unwrap(), b"one two");
    }
}
