//! Reads tar archives as people make them: ustar, GNU and pax headers, from any stream, piece by piece.
//!
//! Invariants: total on any bytes; a name that is absolute or climbs out is refused, as are kinds of members that no data
//! directory has; an archive must end with its end mark, so that one that was cut is told from a whole one; memory does
//! not depend on the size of a member, and names are bounded. Sources: POSIX pax (ustar, extended headers), GNU tar
//! manual "Basic Tar Format".

use std::io::{self, Read};

use diagnostic::{Error, Result};

use super::open::{broken, fill};

const BLOCK: usize = 512;
/// Long names and extended headers are no longer than this.
const HEADER_BYTES_MAX: u64 = 1 << 20;

/// A member of an archive, its name checked: relative, without "." and "..".
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Member {
    pub(super) path: Vec<u8>,
    /// Permission bits.
    pub(super) mode: u32,
    pub(super) kind: Kind,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    File { size: u64 },
    Directory,
    Symlink { target: Vec<u8> },
}

/// See the module. Reading from it gives the content of the last member.
pub(super) struct Archive<R> {
    source: R,
    /// For messages.
    name: String,
    remaining: u64,
    padding: u64,
    ended: bool,
}

/// What extended headers say of the next member.
#[derive(Default)]
struct Extended {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
}

impl<R: Read> Archive<R> {
    pub(super) fn new(source: R, name: String) -> Archive<R> {
        Archive {
            source,
            name,
            remaining: 0,
            padding: 0,
            ended: false,
        }
    }

    fn damaged(&self, what: &str) -> Error {
        Error::new(
            "import-archive-damaged",
            format!("\"{}\" is cut or damaged", self.name),
        )
        .detail(what.to_owned())
        .hint("Copy the file again from where it was made, and compare the sizes.")
    }

    fn failed(&self, error: &io::Error) -> Error {
        broken(&self.name, error)
    }

    /// The next member; what was not read of the one before is passed over.
    pub(super) fn next_member(&mut self) -> Result<Option<Member>> {
        let mut extended = Extended::default();
        loop {
            if self.ended {
                return Ok(None);
            }
            self.pass_over(self.remaining.saturating_add(self.padding))?;
            (self.remaining, self.padding) = (0, 0);
            let mut header = [0; BLOCK];
            match fill(&mut self.source, &mut header).map_err(|error| self.failed(&error))? {
                BLOCK => {}
                0 => return Err(self.damaged("It ends without the end mark of a tar archive.")),
                _ => return Err(self.damaged("It ends within a header.")),
            }
            if header.iter().all(|byte| *byte == 0) {
                self.read_end()?;
                return Ok(None);
            }
            let field = |from: usize, to: usize| header.get(from..to).unwrap_or_default();
            let sum: u64 = header
                .iter()
                .enumerate()
                .map(|(at, byte)| u64::from(if (148..156).contains(&at) { b' ' } else { *byte }))
                .sum();
            if number(field(148, 156)) != Some(sum) {
                return Err(self.damaged("The checksum of a header is wrong."));
            }
            let (Some(mode), Some(stated)) = (number(field(100, 108)), number(field(124, 136))) else {
                return Err(self.damaged("A header has no proper numbers."));
            };
            let kind = header.get(156).copied().unwrap_or_default();
            if matches!(kind, b'L' | b'K' | b'x' | b'g') {
                if stated > HEADER_BYTES_MAX {
                    return Err(self.damaged("An extended header is too long."));
                }
                self.begin(stated);
                let mut content = vec![0; stated as usize];
                self.exactly(&mut content)?;
                match kind {
                    b'L' => extended.path = Some(until_nul(&content)),
                    b'K' => extended.link = Some(until_nul(&content)),
                    b'x' => self.pax(&content, &mut extended)?,
                    // Of the whole archive: comments and the like.
                    _ => {}
                }
                continue;
            }
            let mut path = Vec::new();
            // GNU's own format has other things where ustar has the prefix.
            if field(257, 263) == b"ustar\0" && header.get(345).is_some_and(|byte| *byte != 0) {
                path = until_nul(field(345, 500));
                path.push(b'/');
            }
            path.extend(until_nul(field(0, 100)));
            let link = extended.link.take().unwrap_or_else(|| until_nul(field(157, 257)));
            let path = extended.path.take().unwrap_or(path);
            let size = extended.size.take().unwrap_or(stated);
            let path = self.checked(&path)?;
            let kind = match kind {
                b'0' | 0 | b'7' => Kind::File { size },
                b'5' => Kind::Directory,
                b'2' => Kind::Symlink { target: link },
                other => return Err(self.strange(&path, other)),
            };
            if let Kind::File { size } = kind {
                if size > i64::MAX as u64 {
                    return Err(self.damaged("A member is said to be larger than any file."));
                }
                self.begin(size);
            }
            if path.is_empty() {
                continue;
            }
            return Ok(Some(Member {
                path,
                mode: (mode & 0o7777) as u32,
                kind,
            }));
        }
    }

    fn begin(&mut self, size: u64) {
        self.remaining = size;
        self.padding = size.next_multiple_of(BLOCK as u64) - size;
    }

    fn exactly(&mut self, content: &mut [u8]) -> Result<()> {
        let count = self.read(content).map_err(|error| self.failed(&error))?;
        match count == content.len() {
            true => Ok(()),
            false => Err(self.damaged("It ends within a header.")),
        }
    }

    fn pass_over(&mut self, mut rest: u64) -> Result<()> {
        let mut sink = [0; 8192];
        while rest > 0 {
            let wanted = usize::try_from(rest).unwrap_or(usize::MAX).min(sink.len());
            let piece = sink.get_mut(..wanted).unwrap_or_default();
            let count = fill(&mut self.source, piece).map_err(|error| broken(&self.name, &error))?;
            if count < wanted {
                return Err(self.damaged("It ends within a member."));
            }
            rest -= wanted as u64;
        }
        Ok(())
    }

    /// Behind the end mark nothing but zeros may follow; reading it also proves that the packing is whole.
    fn read_end(&mut self) -> Result<()> {
        self.ended = true;
        let mut rest = [0; 8192];
        loop {
            let count = fill(&mut self.source, &mut rest).map_err(|error| self.failed(&error))?;
            if count == 0 {
                return Ok(());
            }
            if rest.iter().take(count).any(|byte| *byte != 0) {
                return Err(self.damaged("There is something behind the end of the archive."));
            }
        }
    }

    /// Records of a pax header: length, space, key=value, newline.
    fn pax(&self, content: &[u8], extended: &mut Extended) -> Result<()> {
        let wrong = || self.damaged("An extended header is malformed.");
        let mut rest = content;
        while !rest.is_empty() {
            let space = rest.iter().position(|byte| *byte == b' ').ok_or_else(wrong)?;
            let length = rest
                .get(..space)
                .and_then(|digits| std::str::from_utf8(digits).ok())
                .and_then(|digits| digits.parse::<usize>().ok())
                .filter(|length| *length > space + 1)
                .ok_or_else(wrong)?;
            let record = rest.get(space + 1..length).ok_or_else(wrong)?;
            rest = rest.get(length..).unwrap_or_default();
            let record = record.strip_suffix(b"\n").ok_or_else(wrong)?;
            let equals = record.iter().position(|byte| *byte == b'=').ok_or_else(wrong)?;
            let (key, value) = record.split_at(equals);
            let value = value.get(1..).unwrap_or_default();
            match key {
                b"path" => extended.path = Some(value.to_vec()),
                b"linkpath" => extended.link = Some(value.to_vec()),
                b"size" => {
                    let text = std::str::from_utf8(value).map_err(|_| wrong())?;
                    extended.size = Some(text.parse().map_err(|_| wrong())?);
                }
                key if key.starts_with(b"GNU.sparse") => return Err(self.strange(b"a file", b'S')),
                _ => {}
            }
        }
        Ok(())
    }

    /// Without "." and slashes at the end; empty for the archive's own root.
    fn checked(&self, path: &[u8]) -> Result<Vec<u8>> {
        let hostile = path.first() == Some(&b'/')
            || path.contains(&0)
            || path.len() > 4096
            || path.split(|byte| *byte == b'/').any(|part| part == b"..");
        if hostile {
            return Err(Error::new(
                "import-hostile-name",
                format!("\"{}\" holds a name that leads out of it", self.name),
            )
            .detail(format!(
                "A member is called \"{}\". Nothing was written.",
                path.escape_ascii()
            ))
            .hint("Make the archive with relative names (`tar -C DIRECTORY ...`, without -P)."));
        }
        let parts: Vec<&[u8]> = path
            .split(|byte| *byte == b'/')
            .filter(|part| !matches!(*part, b"" | b"."))
            .collect();
        Ok(parts.join(&b'/'))
    }

    fn strange(&self, path: &[u8], kind: u8) -> Error {
        let kind = match kind {
            b'1' => "a hard link",
            b'3' | b'4' => "a device",
            b'6' => "a pipe",
            b'S' => "a sparse file",
            _ => "of a kind that is not known",
        };
        let error = Error::new(
            "import-member-kind",
            format!("\"{}\" holds what no data directory holds", self.name),
        )
        .detail(format!("\"{}\" is {kind}.", path.escape_ascii()));
        match kind {
            "a sparse file" => error.hint("Make the archive without --sparse."),
            "a hard link" => error.hint("Make the archive with --hard-dereference."),
            _ => error,
        }
    }
}

impl<R: Read> Read for Archive<R> {
    /// Fills `buffer`, and gives fewer bytes only at the member's end. An archive that ends before is an error.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = usize::try_from(self.remaining)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        let count = fill(&mut self.source, buffer.get_mut(..wanted).unwrap_or_default())?;
        self.remaining -= count as u64;
        match count == wanted {
            true => Ok(count),
            false => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

fn until_nul(bytes: &[u8]) -> Vec<u8> {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default().to_vec()
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
    let mut digits = digits.peekable();
    digits.peek()?;
    digits.try_fold(0_u64, |sum, digit| {
        let digit = (digit as char).to_digit(8)?;
        sum.checked_mul(8)?.checked_add(u64::from(digit))
    })
}

/// Whether these first bytes begin a tar archive. Old archives without a magic number are not taken for one.
pub(super) fn looks_like_tar(first: &[u8]) -> bool {
    first.get(257..262) == Some(b"ustar")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(path: &str, kind: u8, size: u64, magic: &[u8]) -> Vec<u8> {
        let mut header = vec![0; BLOCK];
        let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, path.as_bytes());
        put(100, b"0000600\0");
        put(124, format!("{size:011o}\0").as_bytes());
        put(156, &[kind]);
        put(257, magic);
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        header
    }

    fn with_content(mut header: Vec<u8>, content: &[u8]) -> Vec<u8> {
        header.extend_from_slice(content);
        header.resize(header.len().next_multiple_of(BLOCK), 0);
        header
    }

    fn archive(bytes: &[u8]) -> Archive<&[u8]> {
        Archive::new(bytes, "x.tar".into())
    }

    #[test]
    fn long_names_of_gnu_and_pax_are_read() {
        let long = "./data/".to_owned() + &"a".repeat(150);
        let mut bytes = with_content(
            header("././@LongLink", b'L', long.len() as u64 + 1, b"ustar  \0"),
            format!("{long}\0").as_bytes(),
        );
        bytes.extend(with_content(header("cut", b'0', 3, b"ustar  \0"), b"abc"));
        let record = "22 path=data/pax/name\n";
        assert_eq!(record.len(), 22);
        bytes.extend(with_content(
            header("pax", b'x', record.len() as u64, b"ustar\x0000"),
            record.as_bytes(),
        ));
        bytes.extend(header("short", b'5', 0, b"ustar\x0000"));
        bytes.extend([0; 2 * BLOCK]);
        let mut archive = archive(&bytes);
        let member = archive.next_member().unwrap().unwrap();
        assert_eq!(member.path, long.trim_start_matches("./").as_bytes());
        let mut content = [0; 10];
        assert_eq!(archive.read(&mut content).unwrap(), 3);
        let member = archive.next_member().unwrap().unwrap();
        assert_eq!(
            (member.path.as_slice(), member.kind),
            (&b"data/pax/name"[..], Kind::Directory)
        );
        assert!(archive.next_member().unwrap().is_none());
    }

    #[test]
    fn what_leads_out_or_is_no_file_is_refused_and_a_cut_archive_is_damaged() {
        for (path, kind, code) in [
            ("/etc/passwd", b'0', "import-hostile-name"),
            ("data/../../x", b'0', "import-hostile-name"),
            ("..", b'5', "import-hostile-name"),
            ("data/dev", b'3', "import-member-kind"),
            ("data/pipe", b'6', "import-member-kind"),
            ("data/hard", b'1', "import-member-kind"),
            ("data/sparse", b'S', "import-member-kind"),
        ] {
            let bytes = header(path, kind, 0, b"ustar\x0000");
            assert_eq!(archive(&bytes).next_member().unwrap_err().code(), code, "{path}");
        }
        let mut whole = with_content(header("a", b'0', 600, b"ustar\x0000"), &[7; 600]);
        whole.extend([0; 2 * BLOCK]);
        // The last one ends behind a member, where a reader that trusts the end of the file would be content.
        for cut in [100, 700, 1000, 1536] {
            let mut archive = archive(&whole[..cut]);
            let mut outcome = Ok(());
            while outcome.is_ok() {
                outcome = archive
                    .next_member()
                    .map(|member| assert!(member.is_some(), "{cut} bytes are not the whole"));
            }
            assert_eq!(outcome.unwrap_err().code(), "import-archive-damaged", "{cut}");
        }
    }

    #[test]
    fn any_bytes_are_an_archive_or_an_error() {
        let mut state = 1_u64;
        for length in 0..1500 {
            let mut bytes = with_content(header("a", b'0', 5, b"ustar\x0000"), b"abcde");
            bytes.resize(length, 0);
            for _ in 0..8 {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                if let Some(byte) = bytes.get_mut((state >> 33) as usize % length.max(1)) {
                    *byte ^= (state >> 20) as u8;
                }
            }
            let mut archive = archive(&bytes);
            while let Ok(Some(_)) = archive.next_member() {}
        }
    }
}
