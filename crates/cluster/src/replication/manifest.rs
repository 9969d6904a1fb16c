//! The server's `backup_manifest`, read as it comes: what was sent, with sizes and checksums.
//!
//! Invariants: one file's line at a time is in memory; a manifest whose own checksum is wrong, or that ends early, is
//! never believed; a line of another shape than PostgreSQL's is an error and not passed over. Source: "Backup
//! Manifest Format" of the manual, `AddFileToBackupManifest` of `backup_manifest.c`: each file stands on a
//! line of its own.

use aws_lc_rs::digest;
use diagnostic::{Error, Result};
use postgres::{Lsn, TimelineId};
use serde::Deserialize;

/// The longest line that is taken.
const LINE_BYTES_MAX: usize = 1 << 20;

/// One file of the manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManifestFile {
    /// Relative to the data directory.
    pub path: Vec<u8>,
    pub size: u64,
    /// CRC-32C of the content as it was sent; `None` for another kind of checksum, or none.
    pub crc32c: Option<u32>,
}

/// What a manifest says besides its files.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Manifest {
    pub version: u32,
    /// From version 2 (PostgreSQL 17).
    pub system_identifier: Option<u64>,
    /// The WAL that the backup needs.
    pub wal_ranges: Vec<(TimelineId, Lsn, Lsn)>,
    pub files: u64,
}

/// See the module.
pub struct ManifestReader {
    line: Vec<u8>,
    digest: digest::Context,
    manifest: Manifest,
    finished: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileLine {
    #[serde(rename = "Path")]
    path: Option<String>,
    #[serde(rename = "Encoded-Path")]
    encoded_path: Option<String>,
    #[serde(rename = "Size")]
    size: u64,
    #[serde(rename = "Last-Modified")]
    _last_modified: Option<String>,
    #[serde(rename = "Checksum-Algorithm")]
    algorithm: Option<String>,
    #[serde(rename = "Checksum")]
    checksum: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RangeLine {
    #[serde(rename = "Timeline")]
    timeline: u32,
    #[serde(rename = "Start-LSN")]
    start: String,
    #[serde(rename = "End-LSN")]
    end: String,
}

fn wrong(what: impl Into<String>) -> Error {
    Error::new(
        "backup-manifest-damaged",
        "the server's backup manifest makes no sense",
    )
    .detail(what)
}

impl Default for ManifestReader {
    fn default() -> Self {
        ManifestReader {
            line: Vec::new(),
            digest: digest::Context::new(&digest::SHA256),
            manifest: Manifest::default(),
            finished: false,
        }
    }
}

impl ManifestReader {
    /// Takes the next bytes; `file` is told each file as it is complete.
    pub fn add(&mut self, bytes: &[u8], file: &mut dyn FnMut(ManifestFile) -> Result<()>) -> Result<()> {
        let mut rest = bytes;
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let (piece, after) = rest.split_at(end + 1);
            self.line.extend_from_slice(piece);
            rest = after;
            self.take_line(file)?;
            self.line.clear();
        }
        self.line.extend_from_slice(rest);
        if self.line.len() > LINE_BYTES_MAX {
            return Err(wrong("A line is too long."));
        }
        Ok(())
    }

    fn take_line(&mut self, file: &mut dyn FnMut(ManifestFile) -> Result<()>) -> Result<()> {
        let text = std::str::from_utf8(&self.line)
            .map_err(|_| wrong("It is not UTF-8."))?
            .trim();
        if self.finished {
            return Err(wrong("There is something behind its end."));
        }
        if let Some(rest) = text.strip_prefix("\"Manifest-Checksum\":") {
            let stated = rest.trim().trim_end_matches('}').trim().trim_matches('"');
            let context = std::mem::replace(&mut self.digest, digest::Context::new(&digest::SHA256));
            let computed: String = context
                .finish()
                .as_ref()
                .iter()
                .map(|b| format!("{b:02x}"))
                .collect();
            if stated != computed {
                return Err(wrong("Its own checksum is wrong."));
            }
            self.finished = true;
            return Ok(());
        }
        self.digest.update(&self.line);
        let object = text.trim_end_matches(',');
        if let Some(rest) = text
            .strip_prefix("{ \"PostgreSQL-Backup-Manifest-Version\":")
            .or_else(|| text.strip_prefix("{\"PostgreSQL-Backup-Manifest-Version\":"))
        {
            self.manifest.version = value(rest)?;
            if !(1..=2).contains(&self.manifest.version) {
                return Err(wrong(format!("Its version is {}.", self.manifest.version)));
            }
        } else if let Some(rest) = text.strip_prefix("\"System-Identifier\":") {
            self.manifest.system_identifier = Some(value(rest)?);
        } else if object.starts_with('{') && text.contains("\"Start-LSN\"") {
            let range: RangeLine = parsed(object)?;
            let lsn = |text: &str| text.parse().map_err(|_| wrong("A range of WAL is malformed."));
            self.manifest
                .wal_ranges
                .push((TimelineId(range.timeline), lsn(&range.start)?, lsn(&range.end)?));
        } else if object.starts_with('{') {
            let line: FileLine = parsed(object)?;
            self.manifest.files += 1;
            file(line.into_file()?)?;
        } else if !matches!(
            text,
            "" | "\"Files\": [" | "\"Files\": [ ]," | "\"WAL-Ranges\": [" | "]," | "]" | "],\n"
        ) {
            return Err(wrong(format!("A line reads: {}", text.escape_debug())));
        }
        Ok(())
    }

    /// The manifest's end. Error: `backup-manifest-damaged`.
    pub fn finish(mut self) -> Result<Manifest> {
        if !self.line.is_empty() {
            // The last line has no line feed in some versions.
            self.line.push(b'\n');
            self.take_line(&mut |_| Err(wrong("A file stands at its end.")))?;
        }
        match self.finished {
            true => Ok(self.manifest),
            false => Err(wrong("It ends early.")),
        }
    }
}

fn value<T: std::str::FromStr>(text: &str) -> Result<T> {
    text.trim()
        .trim_end_matches(',')
        .parse()
        .map_err(|_| wrong(format!("A number reads: {}", text.escape_debug())))
}

fn parsed<'a, T: Deserialize<'a>>(text: &'a str) -> Result<T> {
    serde_json::from_str(text).map_err(|error| wrong(format!("A line of it cannot be read: {error}")))
}

impl FileLine {
    fn into_file(self) -> Result<ManifestFile> {
        let path = match (self.path, self.encoded_path) {
            (Some(path), None) => path.into_bytes(),
            (None, Some(encoded)) => from_hex(&encoded).ok_or_else(|| wrong("A path is malformed."))?,
            _ => return Err(wrong("A file has no path, or two.")),
        };
        // pg_checksum_final() gives the number's bytes as they lie in memory.
        let crc32c = match (self.algorithm.as_deref(), &self.checksum) {
            (Some("CRC32C"), Some(checksum)) => {
                let bytes = from_hex(checksum).ok_or_else(|| wrong("A checksum is malformed."))?;
                let bytes = bytes.try_into().map_err(|_| wrong("A checksum is malformed."))?;
                Some(u32::from_le_bytes(bytes))
            }
            _ => None,
        };
        Ok(ManifestFile {
            path,
            size: self.size,
            crc32c,
        })
    }
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u8>> = text
        .chars()
        .map(|digit| digit.to_digit(16).map(|digit| digit as u8))
        .collect();
    let digits = digits?;
    (digits.len() % 2 == 0).then(|| {
        digits
            .chunks(2)
            .map(|pair| pair.iter().fold(0, |sum, digit| sum << 4 | digit))
            .collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text() -> String {
        let body = "{ \"PostgreSQL-Backup-Manifest-Version\": 2,\n\"System-Identifier\": 7,\n\"Files\": [\n\
            { \"Path\": \"backup_label\", \"Size\": 226, \"Last-Modified\": \"2026-01-01 00:00:00 GMT\", \
            \"Checksum-Algorithm\": \"CRC32C\", \"Checksum\": \"01020304\" },\n\
            { \"Encoded-Path\": \"ff41\", \"Size\": 0, \"Last-Modified\": \"2026-01-01 00:00:00 GMT\" }\n],\n\
            \"WAL-Ranges\": [\n{ \"Timeline\": 1, \"Start-LSN\": \"0/2000028\", \"End-LSN\": \"0/2000100\" }\n],\n";
        let hash = digest::digest(&digest::SHA256, body.as_bytes());
        let hex: String = hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{body}\"Manifest-Checksum\": \"{hex}\"}}\n")
    }

    fn read(text: &str, piece: usize) -> Result<(Manifest, Vec<ManifestFile>)> {
        let mut reader = ManifestReader::default();
        let mut files = Vec::new();
        for piece in text.as_bytes().chunks(piece) {
            reader.add(piece, &mut |file| {
                files.push(file);
                Ok(())
            })?;
        }
        Ok((reader.finish()?, files))
    }

    #[test]
    fn a_manifest_is_read_in_pieces_of_any_size() {
        for piece in [1, 7, 100, 10_000] {
            let (manifest, files) = read(&text(), piece).unwrap();
            assert_eq!(manifest.system_identifier, Some(7));
            assert_eq!(
                manifest.wal_ranges,
                [(TimelineId(1), Lsn(0x200_0028), Lsn(0x200_0100))]
            );
            assert_eq!(files[0].crc32c, Some(0x0403_0201));
            assert_eq!(files[1].path, [0xff, b'A']);
        }
    }

    #[test]
    fn a_changed_or_shortened_manifest_is_not_believed() {
        let changed = text().replace("226", "227");
        assert_eq!(read(&changed, 100).unwrap_err().code(), "backup-manifest-damaged");
        let short = text();
        let short = &short[..short.len() - 80];
        assert_eq!(read(short, 100).unwrap_err().code(), "backup-manifest-damaged");
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_a_manifest_or_an_error(text in ".*") {
            let _ = read(&text, 50);
        }
    }
}
