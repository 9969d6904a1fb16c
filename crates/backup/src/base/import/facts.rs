//! What somebody brings, looked at from beginning to end before anything is stored.
//!
//! Invariants: every byte of the base is read and, where there is a manifest, held against it; every segment of WAL is
//! checked and parsed; in memory are, for each file, its path, size and CRC-32C, and for each segment a few numbers. What
//! was not understood is named or refused, never passed over in silence.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::Read;

use cluster::replication::{Manifest, ManifestFile, ManifestReader};
use diagnostic::{Error, Result};
use postgres::{
    EventKind, Lsn, SegmentHeader, SegmentIndexer, SystemIdentifier, TimelineId, Timestamp, Verdict, WalFile,
    valid_segment_size,
};

use super::archive::{Kind, Member};
use super::open::{broken, fill, plain_name, unpacked};

/// `pg_control`, `backup_label`, `tablespace_map`, history files.
pub(super) const SMALL_BYTES_MAX: u64 = 1 << 20;
/// So many of them are kept; an archive with more is nobody's backup.
const TELLING_MAX: usize = 64;
/// Of a segment, enough to tell how long it is.
const HEADER_BYTES: usize = 8192;
/// Names for which every size of segment allows the name.
const SMALLEST_SEGMENT: u32 = 1 << 20;
/// Names of ignored files that are kept for showing.
const NAMED_MAX: usize = 20;

/// A file of the base.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FileFacts {
    pub(super) size: u64,
    pub(super) crc32c: u32,
}

/// Small files that decide, with their whole paths in the archive.
pub(super) const TELLING: [&[u8]; 4] = [
    b"global/pg_control",
    b"backup_label",
    b"tablespace_map",
    b"backup_manifest",
];

/// A manifest and its files.
#[derive(Debug, Default)]
pub(super) struct ManifestFacts {
    pub(super) manifest: Manifest,
    pub(super) files: Vec<ManifestFile>,
}

/// The base, as it was found; paths are those in the archive, a leading directory included.
#[derive(Debug, Default)]
pub(super) struct BaseFacts {
    pub(super) files: HashMap<Vec<u8>, FileFacts>,
    pub(super) directories: BTreeSet<Vec<u8>>,
    pub(super) links: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Contents of the telling files, by path.
    pub(super) telling: BTreeMap<Vec<u8>, Vec<u8>>,
    pub(super) manifests: BTreeMap<Vec<u8>, ManifestFacts>,
    pub(super) bytes: u64,
}

impl BaseFacts {
    /// Takes a member and reads its content. WAL below `pg_wal` goes to `wal`.
    pub(super) fn member(
        &mut self,
        source: &str,
        member: &Member,
        content: &mut (dyn Read + Send),
        wal: &mut WalFacts,
    ) -> Result<()> {
        let twice = || {
            Error::new(
                "import-duplicate-member",
                format!("\"{source}\" holds a file twice"),
            )
            .detail(format!(
                "Both are called \"{}\"; which one is right cannot be told.",
                member.path.escape_ascii()
            ))
        };
        match &member.kind {
            Kind::Directory => {
                if self.files.contains_key(&member.path) || self.links.contains_key(&member.path) {
                    return Err(twice());
                }
                self.directories.insert(member.path.clone());
            }
            Kind::Symlink { target } => {
                if self.files.contains_key(&member.path)
                    || self.links.insert(member.path.clone(), target.clone()).is_some()
                {
                    return Err(twice());
                }
            }
            Kind::File { size } => {
                if self.files.contains_key(&member.path) || self.links.contains_key(&member.path) {
                    return Err(twice());
                }
                let crc32c = match wal_name(&member.path) {
                    Some(name) if in_pg_wal(&member.path) => {
                        wal.file(source, &name, *size, content, Origin::Base)?;
                        0
                    }
                    _ => self.file(source, member, *size, content)?,
                };
                self.bytes += size;
                let facts = FileFacts { size: *size, crc32c };
                self.files.insert(member.path.clone(), facts);
            }
        }
        Ok(())
    }

    fn file(&mut self, source: &str, member: &Member, size: u64, content: &mut dyn Read) -> Result<u32> {
        let telling = TELLING
            .iter()
            .find(|name| ends_with_path(&member.path, name))
            .copied();
        if telling == Some(b"backup_manifest") {
            let mut facts = ManifestFacts::default();
            let mut reader = ManifestReader::default();
            let crc = each_piece(source, content, &mut |piece| {
                reader.add(piece, &mut |file| {
                    facts.files.push(file);
                    Ok(())
                })
            })?;
            facts.manifest = reader.finish()?;
            self.manifests.insert(member.path.clone(), facts);
            return Ok(crc);
        }
        if telling.is_some() && size <= SMALL_BYTES_MAX && self.telling.len() < TELLING_MAX {
            let content = whole(source, content, size)?;
            let crc = crc32c::crc32c(&content);
            self.telling.insert(member.path.clone(), content);
            return Ok(crc);
        }
        each_piece(source, content, &mut |_| Ok(()))
    }
}

/// Reads to the end; the CRC-32C of it all.
fn each_piece(
    source: &str,
    content: &mut dyn Read,
    take: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<u32> {
    let mut buffer = vec![0; 64 << 10];
    let mut crc = 0;
    loop {
        let count = fill(content, &mut buffer).map_err(|error| broken(source, &error))?;
        let piece = buffer.get(..count).unwrap_or_default();
        if piece.is_empty() {
            return Ok(crc);
        }
        crc = crc32c::crc32c_append(crc, piece);
        take(piece)?;
    }
}

/// The whole content, which has `size` bytes at most.
pub(super) fn whole(source: &str, content: &mut dyn Read, size: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    content
        .take(size)
        .read_to_end(&mut bytes)
        .map_err(|error| broken(source, &error))?;
    Ok(bytes)
}

/// `path` is `name`, or ends with a slash and it.
pub(super) fn ends_with_path(path: &[u8], name: &[u8]) -> bool {
    path.strip_suffix(name)
        .is_some_and(|rest| rest.is_empty() || rest.last() == Some(&b'/'))
}

fn in_pg_wal(path: &[u8]) -> bool {
    path.rsplit(|byte| *byte == b'/').nth(1) == Some(b"pg_wal")
}

/// The name of a WAL file, as PostgreSQL gives it, if the path's last part is one; perhaps packed by itself.
pub(super) fn wal_name(path: &[u8]) -> Option<String> {
    let name = path.rsplit(|byte| *byte == b'/').next()?;
    let name = plain_name(std::str::from_utf8(name).ok()?);
    WalFile::parse(name, SMALLEST_SEGMENT).map(|_| name.to_owned())
}

/// Where a WAL file comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Origin {
    /// From an archive of WAL.
    Archive,
    /// From the `pg_wal` of the base: pg_basebackup may have ended its last segment early.
    Base,
}

/// One segment, as far as it decides.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct SegmentFacts {
    pub(super) origin: Origin,
    pub(super) source: String,
    pub(super) crc32c: u32,
    pub(super) system: SystemIdentifier,
    pub(super) segment_size: u32,
    /// Where valid WAL ends.
    pub(super) end: Lsn,
    pub(super) verdict: Verdict,
    /// The ends of base backups: where they began, and the record's end.
    pub(super) backup_ends: Vec<(Lsn, Lsn)>,
    /// Checkpoints: the record's beginning, and its time.
    pub(super) checkpoints: Vec<(Lsn, Timestamp)>,
    /// The last commit or abort: its end and time.
    pub(super) commits: Vec<(Lsn, Timestamp)>,
}

/// All WAL that was found.
#[derive(Debug, Default)]
pub(super) struct WalFacts {
    pub(super) segments: BTreeMap<(TimelineId, u64), SegmentFacts>,
    /// History, backup history and partial files, by name, as [`kept`].
    pub(super) others: BTreeMap<String, Vec<u8>>,
    pub(super) ignored: u64,
    pub(super) ignored_names: Vec<String>,
}

impl WalFacts {
    pub(super) fn ignore(&mut self, name: &str) {
        self.ignored += 1;
        if self.ignored_names.len() < NAMED_MAX {
            self.ignored_names.push(name.to_owned());
        }
    }

    /// Reads a WAL file. `stated` is its size, packed or not.
    pub(super) fn file(
        &mut self,
        source: &str,
        name: &str,
        stated: u64,
        content: &mut (dyn Read + Send),
        origin: Origin,
    ) -> Result<()> {
        let Some(kind) = WalFile::parse(name, SMALLEST_SEGMENT) else {
            self.ignore(name);
            return Ok(());
        };
        let shown = format!("{source}: {name}");
        let bytes = wal_bytes(&shown, stated, content)?;
        match kind {
            WalFile::Segment { .. } => self.segment(&shown, name, &bytes, origin),
            WalFile::History { .. } | WalFile::BackupHistory { .. }
                if bytes.len() as u64 > SMALL_BYTES_MAX =>
            {
                self.ignore(&shown);
                Ok(())
            }
            // pg_receivewal does not fill up a packed one: recovery could not use it.
            WalFile::Partial { .. }
                if SegmentHeader::parse(&bytes)
                    .is_ok_and(|header| header.segment_size as usize != bytes.len())
                    || SegmentHeader::parse(&bytes).is_err() =>
            {
                self.ignore(&shown);
                Ok(())
            }
            WalFile::Partial { .. } | WalFile::History { .. } | WalFile::BackupHistory { .. } => {
                match self.others.insert(name.to_owned(), kept(&kind, bytes)) {
                    Some(before) if Some(&before) != self.others.get(name) => Err(two_contents(name, source)),
                    _ => Ok(()),
                }
            }
        }
    }

    fn segment(&mut self, shown: &str, name: &str, bytes: &[u8], origin: Origin) -> Result<()> {
        let header = match SegmentHeader::parse(bytes) {
            Ok(header) => header,
            // What a server has prepared for later stands in its pg_wal, too.
            Err(_) if origin == Origin::Base => {
                self.ignore(shown);
                return Ok(());
            }
            Err(error) => return Err(error.context(format!("WAL segment \"{shown}\" cannot be read"))),
        };
        let size = header.segment_size;
        let (Some(file), true) = (WalFile::parse(name, size), bytes.len() == size as usize) else {
            let error =
                |message: &str| Error::new("wal-segment-size", format!("WAL segment \"{shown}\" {message}"));
            return Err(match bytes.len() > size as usize {
                true => error("is longer than a segment").detail(format!("It has more than {size} bytes.")),
                false => error("is not complete")
                    .detail(format!("It has {} bytes instead of {size}.", bytes.len()))
                    .hint("Bring the whole segment; a copy that was cut short cannot be used."),
            });
        };
        if file.start(size) != Some(header.page_address) || header.timeline > file.timeline() {
            if origin == Origin::Base {
                self.ignore(shown);
                return Ok(());
            }
            return Err(Error::new(
                "wal-segment-name",
                format!("WAL segment \"{shown}\" holds other WAL than its name says"),
            )
            .detail(format!(
                "Its first page is at {} of timeline {}.",
                header.page_address, header.timeline
            )));
        }
        let index = SegmentIndexer::index(bytes, &file, None)?;
        let mut facts = SegmentFacts {
            origin,
            source: shown.to_owned(),
            crc32c: crc32c::crc32c(bytes),
            system: header.system_identifier,
            segment_size: size,
            end: index.end,
            verdict: index.verdict,
            backup_ends: Vec::new(),
            checkpoints: Vec::new(),
            commits: Vec::new(),
        };
        for event in &index.events {
            match event.kind {
                EventKind::BackupEnd { start } => facts.backup_ends.push((start, event.end)),
                EventKind::Checkpoint { time, .. } => facts.checkpoints.push((event.lsn, time)),
                _ => {}
            }
        }
        // Enough to tell the last one before any point to within a segment's sixteenth.
        let step = (index.transactions.len() / 16).max(1);
        let last = index.transactions.len().saturating_sub(1);
        for (at, transaction) in index.transactions.iter().enumerate() {
            if at % step == 0 || at == last {
                facts.commits.push((transaction.end, transaction.time));
            }
        }
        self.add(name, (file.timeline(), header.number()), facts)
    }

    /// The archive's segment counts where there are two: pg_basebackup leaves when it has what it needs, and what it wrote
    /// then is a segment's beginning.
    fn add(&mut self, name: &str, key: (TimelineId, u64), facts: SegmentFacts) -> Result<()> {
        let Some(before) = self.segments.get(&key) else {
            self.segments.insert(key, facts);
            return Ok(());
        };
        if before.crc32c == facts.crc32c {
            if facts.origin < before.origin {
                self.segments.insert(key, facts);
            }
            return Ok(());
        }
        let early = |facts: &SegmentFacts| {
            facts.origin == Origin::Base && matches!(facts.verdict, Verdict::Incomplete { .. })
        };
        match (early(before), early(&facts)) {
            (true, false) => {
                self.segments.insert(key, facts);
                Ok(())
            }
            (false, true) => Ok(()),
            _ => Err(two_contents(
                name,
                &format!("{}\" and \"{}", before.source, facts.source),
            )),
        }
    }
}

/// What is remembered of a file beside the segments: the few lines of a history, of a partial segment what tells it apart.
pub(super) fn kept(kind: &WalFile, bytes: Vec<u8>) -> Vec<u8> {
    match kind {
        WalFile::Partial { .. } => {
            let mut mark = crc32c::crc32c(&bytes).to_le_bytes().to_vec();
            mark.extend((bytes.len() as u64).to_le_bytes());
            mark
        }
        _ => bytes,
    }
}

fn two_contents(name: &str, sources: &str) -> Error {
    Error::new(
        "import-wal-conflict",
        format!("{name} was brought twice, with different contents"),
    )
    .detail(format!(
        "It stands in \"{sources}\". Two servers that were one have written different WAL; which one is right, only a \
         person can say."
    ))
    .hint("Bring one archive of one server at a time.")
}

/// The plain bytes of a WAL file, which may be packed by itself: of a segment as many as its header says, of what has
/// no such header no more than [`SMALL_BYTES_MAX`], and in both cases one more if there are more. A few packed bytes
/// can stand for very many.
pub(super) fn wal_bytes(shown: &str, stated: u64, content: &mut (dyn Read + Send)) -> Result<Vec<u8>> {
    let failed = |error: std::io::Error| broken(shown, &error);
    let mut plain = unpacked(content).map_err(failed)?;
    let mut bytes = vec![0; HEADER_BYTES];
    let count = fill(&mut plain, &mut bytes).map_err(failed)?;
    bytes.truncate(count);
    let most = match SegmentHeader::parse(&bytes) {
        Ok(header) => u64::from(header.segment_size),
        Err(_) => SMALL_BYTES_MAX,
    };
    bytes.reserve(usize::try_from(stated.min(most)).unwrap_or(0));
    let rest = (most + 1).saturating_sub(count as u64);
    plain.take(rest).read_to_end(&mut bytes).map_err(failed)?;
    Ok(bytes)
}

/// The size of the segments, if it is a possible one.
pub(super) fn checked_segment_size(size: u32) -> Result<u32> {
    match valid_segment_size(size) {
        true => Ok(size),
        false => Err(Error::new(
            "geometry-unsupported",
            format!("the base's WAL segments have {size} bytes"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// So many zeros, in a thousandth of the bytes.
    fn zeros(count: u64) -> Vec<u8> {
        let mut packed = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
        std::io::copy(&mut std::io::repeat(0).take(count), &mut packed).unwrap();
        packed.finish().unwrap()
    }

    #[test]
    fn a_few_packed_bytes_that_stand_for_very_many_are_not_unpacked() {
        let packed = zeros(300 << 20);
        assert!(packed.len() < 100_000);
        let read =
            |bytes: &[u8]| wal_bytes("x", bytes.len() as u64, &mut std::io::Cursor::new(bytes.to_vec()));
        assert_eq!(read(&packed).unwrap().len() as u64, SMALL_BYTES_MAX + 1);
        let mut wal = WalFacts::default();
        for (name, origin) in [
            ("00000002.history", Origin::Archive),
            ("000000010000000000000001.00000028.backup", Origin::Archive),
            ("000000010000000000000001.partial", Origin::Archive),
            ("000000010000000000000001", Origin::Base),
        ] {
            let mut content = std::io::Cursor::new(packed.clone());
            wal.file("wal", name, packed.len() as u64, &mut content, origin)
                .unwrap();
        }
        assert_eq!((wal.ignored, wal.others.len(), wal.segments.len()), (4, 0, 0));
    }
}
