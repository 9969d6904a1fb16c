//! The WAL archive of a cluster: segments with their indexes, and the files beside them. `docs/format.md`
//! sections 1 and 6.
//!
//! Invariants: a name carries the digest of the content, so nothing is overwritten, and pushing again
//! recognises its own work; a segment with other content under the same name is an error, never a second
//! truth; a segment's index can be read without the row key.

use std::io::Write;

use diagnostic::{Error, Result};
use postgres::{SegmentIndex, SystemIdentifier, TimelineId, WalFile, segment_name, valid_segment_size};

use crate::container::{Container, Kind, Method, damaged};
use crate::framed::{put_framed, read_framed};
use crate::repository::ClusterRepository;
use crate::seal::Decoder;
use crate::store::{ObjectInfo, Put};

/// Bytes of a file beside the segments, at most: a partial segment can be as large as a segment.
const FILE_BYTES_MAX: u64 = 1 << 30;

/// What pushing did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PutWal {
    pub object: String,
    /// False: it was there already, with the same content.
    pub created: bool,
    /// Bytes of the object, 0 if it was there already.
    pub stored_bytes: u64,
}

/// An archived segment, as a listing tells it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct WalSegmentObject {
    pub system: SystemIdentifier,
    pub timeline: TimelineId,
    pub number: u64,
    /// Of the plain bytes, as in the object's name.
    pub digest: String,
    pub object: String,
    /// Bytes of the object.
    pub stored_bytes: u64,
}

/// What kind a file beside the segments is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WalFileKind {
    /// `00000002.history`
    History,
    /// `00000001000000000000000A.00000028.backup`
    Label,
    /// `00000001000000000000000A.partial`
    Partial,
}

impl WalFileKind {
    fn folder(self) -> &'static str {
        match self {
            WalFileKind::History => "history",
            WalFileKind::Label => "label",
            WalFileKind::Partial => "partial",
        }
    }

    /// Whether PostgreSQL could have given a file of this kind this name.
    fn names(self, name: &str) -> bool {
        let digits = |text: &str, count: usize| {
            text.len() == count && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'A'..=b'F'))
        };
        match self {
            WalFileKind::History => name
                .strip_suffix(".history")
                .is_some_and(|timeline| digits(timeline, 8)),
            WalFileKind::Partial => name
                .strip_suffix(".partial")
                .is_some_and(|segment| digits(segment, 24)),
            WalFileKind::Label => name
                .strip_suffix(".backup")
                .and_then(|name| name.split_once('.'))
                .is_some_and(|(segment, offset)| digits(segment, 24) && digits(offset, 8)),
        }
    }

    fn method(self) -> Method {
        match self {
            WalFileKind::Partial => Method::RowKey,
            _ => Method::MapKey,
        }
    }
}

/// An archived file beside the segments.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct WalFileObject {
    pub system: SystemIdentifier,
    pub kind: WalFileKind,
    /// PostgreSQL's name of it.
    pub name: String,
    pub digest: String,
    pub object: String,
    /// Bytes of the object.
    pub stored_bytes: u64,
}

/// Splits `<name>.<digest>`.
pub(crate) fn split_digest(file: &str) -> Option<(&str, &str)> {
    let (name, digest) = file.rsplit_once('.')?;
    let digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    (digest.len() == 32 && digest.bytes().all(digit)).then_some((name, digest))
}

/// What an object below `wal/` is, by the rest of its name; `None`: not an object of ours.
pub(crate) fn wal_object_kind(rest: &str) -> Option<Kind> {
    let (name, _) = rest.split_once('/')?.1.rsplit_once('/')?;
    match name.split('/').next()? {
        "claims" => Some(Kind::Statement),
        "history" | "label" | "partial" => Some(Kind::WalFile),
        "rollups" => Some(Kind::MapPack),
        timeline => (timeline.len() == 8).then_some(Kind::WalSegment),
    }
}

impl ClusterRepository {
    fn system(&self, system: SystemIdentifier) -> String {
        format!("{}{}/", self.names().wal(), system.0)
    }

    fn timeline(&self, system: SystemIdentifier, timeline: TimelineId) -> String {
        format!("{}{}/", self.system(system), timeline.hex8())
    }

    /// `clusters/<c>/wal/<system>/<tli>/<log>/<segment>`
    fn segment(
        &self,
        system: SystemIdentifier,
        timeline: TimelineId,
        number: u64,
        size: u32,
    ) -> Result<String> {
        if !valid_segment_size(size) {
            return Err(Error::new(
                "wal-segment-size",
                format!("{size} bytes is not a size of WAL segments"),
            ));
        }
        let name = segment_name(timeline, number, size);
        let log = name.get(8..16).unwrap_or_default();
        Ok(format!("{}{log}/{name}", self.timeline(system, timeline)))
    }

    /// Stores a segment with its index. Pushing it again is fine. Errors: `wal-conflict` (the same segment
    /// with other content is there), `wal-segment-size`, `wal-segment-name` (name, index and bytes do not
    /// belong together).
    pub fn put_segment(
        &self,
        system: SystemIdentifier,
        name: &WalFile,
        bytes: &[u8],
        index: &SegmentIndex,
    ) -> Result<PutWal> {
        self.check_index(system, name, bytes, index)?;
        Ok(self
            .put_segment_with(system, name, bytes, |_| Ok(index.clone()))?
            .0)
    }

    /// The same for a segment that is not indexed yet: another thread calls `index` with its bytes while this one
    /// compresses. The index is given back; `None` if the segment was there already. Also errors as `index`
    /// does; nothing is stored then. Bytes that are given away are let go before the object is made durable.
    pub fn put_segment_with<P: AsRef<[u8]>>(
        &self,
        system: SystemIdentifier,
        name: &WalFile,
        plain: P,
        index: impl FnOnce(&[u8]) -> Result<SegmentIndex> + Send,
    ) -> Result<(PutWal, Option<SegmentIndex>)> {
        let bytes = plain.as_ref();
        let WalFile::Segment { timeline, number } = *name else {
            return Err(Error::new(
                "wal-segment-name",
                "only complete WAL segments are pushed as segments",
            ));
        };
        let size = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let prefix = self.segment(system, timeline, number, size)?;
        let digest = self.identity().object_digest(bytes);
        let object = format!("{prefix}.{digest}");
        if self.conflicts(&prefix, &object)? {
            // Whoever created it may have been killed before it was durable; it is acknowledged now.
            self.store().make_durable(&object)?;
            return Ok((
                PutWal {
                    object,
                    created: false,
                    stored_bytes: 0,
                },
                None,
            ));
        }
        let (finished, index) =
            put_framed(self, Kind::WalSegment, Method::RowKey, &object, plain, |bytes| {
                let index = index(bytes)?;
                self.check_index(system, name, bytes, &index)?;
                Ok((index.encode(), index))
            })?;
        if !self.repository().conditional_creation() {
            self.conflicts(&prefix, &object)?;
        }
        let created = finished.put == Put::Created;
        let stored_bytes = if created { finished.size } else { 0 };
        Ok((
            PutWal {
                object,
                created,
                stored_bytes,
            },
            Some(index),
        ))
    }

    /// Name, index and bytes belong together.
    fn check_index(
        &self,
        system: SystemIdentifier,
        name: &WalFile,
        bytes: &[u8],
        index: &SegmentIndex,
    ) -> Result<()> {
        let size = index.segment_size;
        let WalFile::Segment { timeline, number } = *name else {
            return Err(Error::new(
                "wal-segment-name",
                "only complete WAL segments are pushed as segments",
            ));
        };
        if !valid_segment_size(size) || bytes.len() as u64 != u64::from(size) {
            return Err(Error::new("wal-segment-size", "a WAL segment is not complete")
                .detail(format!("It has {} bytes instead of {size}.", bytes.len())));
        }
        if index.timeline != timeline || index.number != number || index.system_identifier != system {
            let name = name.name(size);
            return Err(Error::new(
                "wal-segment-name",
                format!("WAL segment {name} is not what it is called"),
            )
            .detail("Its index names another system, timeline or number."));
        }
        Ok(())
    }

    /// Whether `object` is there; an error if any other object of that name is.
    fn conflicts(&self, prefix: &str, object: &str) -> Result<bool> {
        let mut there = false;
        for other in self.store().list(&format!("{prefix}."))? {
            if other.name == object {
                there = true;
            } else if split_digest(&other.name).is_some_and(|(name, _)| name == prefix) {
                let name = prefix.rsplit('/').next().unwrap_or_default();
                let message = format!("{name} was archived already, with other content");
                return Err(Error::new("wal-conflict", message)
                    .detail(format!(
                        "Object \"{}\" holds it. Two servers that were one, or one server that was set \
                         back to an older state, have written different WAL under this name; which one is \
                         right, only a person can say.",
                        other.name
                    ))
                    .hint(
                        "If this server is a copy, turn its archive_mode off. If it is production and was \
                         set back, promote it to a new timeline, and run `pgproof backup`.",
                    ));
            }
        }
        Ok(there)
    }

    /// The object of a segment. Error: `wal-conflict` if there are several.
    pub fn get_segment(
        &self,
        system: SystemIdentifier,
        timeline: TimelineId,
        number: u64,
        wal_segment_size: u32,
    ) -> Result<Option<WalSegmentObject>> {
        let prefix = self.segment(system, timeline, number, wal_segment_size)?;
        let mut found = None;
        for object in self.store().list(&format!("{prefix}."))? {
            let Some(segment) = parse_segment(object, system, wal_segment_size) else {
                continue;
            };
            if segment.timeline == timeline && segment.number == number && found.replace(segment).is_some() {
                return self.conflicts(&prefix, "").map(|_| None);
            }
        }
        Ok(found)
    }

    /// Writes a segment's plain bytes, each frame verified before it is written, and at the end the whole by
    /// its digest: whoever writes to a file renames it only after Ok. Returns how many bytes there were.
    /// Errors: `object-missing`, `object-damaged`, `key-role`, `file-write`.
    pub fn read_segment(&self, segment: &WalSegmentObject, to: &mut dyn Write) -> Result<u64> {
        read_framed(self, Kind::WalSegment, &segment.object, segment.stored_bytes, to)
    }

    /// A segment's index. Works without the row key.
    pub fn read_index(&self, segment: &WalSegmentObject) -> Result<SegmentIndex> {
        let mut decoder = Decoder::new()?;
        let container = Container::open(
            &**self.store(),
            self.keychain(),
            Kind::WalSegment,
            &segment.object,
            Some(segment.stored_bytes),
            &mut decoder,
        )?;
        let index = SegmentIndex::decode(&container.body).map_err(|error| {
            error.context(format!("cannot read the index of object \"{}\"", segment.object))
        })?;
        if index.timeline != segment.timeline
            || index.number != segment.number
            || index.system_identifier != segment.system
        {
            return Err(damaged(&segment.object, "its index belongs to another segment"));
        }
        Ok(index)
    }

    /// All segments of a timeline in order, listed log by log as the iterator goes on. Two objects of one
    /// number (which pushing refuses) both appear.
    pub fn list_segments(
        &self,
        system: SystemIdentifier,
        timeline: TimelineId,
        wal_segment_size: u32,
    ) -> Result<Segments> {
        self.list_segments_from(system, timeline, wal_segment_size, 0)
    }

    /// The same, from this number on: logs before it are not listed.
    pub fn list_segments_from(
        &self,
        system: SystemIdentifier,
        timeline: TimelineId,
        wal_segment_size: u32,
        first: u64,
    ) -> Result<Segments> {
        // Also refuses an impossible size.
        let prefix = self.segment(system, timeline, first, wal_segment_size)?;
        let first_log = prefix.rsplit('/').nth(1).unwrap_or_default().to_string();
        let mut logs = self.logs(system, timeline)?;
        logs.retain(|log| *log >= first_log);
        logs.reverse();
        Ok(Segments {
            cluster: self.clone(),
            system,
            timeline,
            wal_segment_size,
            first,
            logs,
            pending: Vec::new().into_iter(),
        })
    }

    /// Logs of a timeline, ascending.
    fn logs(&self, system: SystemIdentifier, timeline: TimelineId) -> Result<Vec<String>> {
        let mut logs = self.store().list_folders(&self.timeline(system, timeline))?;
        logs.retain(|log| {
            log.len() == 8 && log.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'A'..=b'F'))
        });
        Ok(logs)
    }

    fn segments_of_log(
        &self,
        system: SystemIdentifier,
        timeline: TimelineId,
        log: &str,
        wal_segment_size: u32,
    ) -> Result<Vec<WalSegmentObject>> {
        let objects = self
            .store()
            .list(&format!("{}{log}/", self.timeline(system, timeline)))?;
        let mut segments: Vec<_> = objects
            .into_iter()
            .filter_map(|object| parse_segment(object, system, wal_segment_size))
            .filter(|segment| segment.timeline == timeline)
            .collect();
        segments.sort_by(|one, two| (one.number, &one.digest).cmp(&(two.number, &two.digest)));
        Ok(segments)
    }

    /// Systems that have WAL here, ascending.
    pub fn list_systems(&self) -> Result<Vec<SystemIdentifier>> {
        let folders = self.store().list_folders(&self.names().wal())?;
        let mut systems: Vec<_> = folders
            .iter()
            .filter_map(|folder| folder.parse().ok().map(SystemIdentifier))
            .collect();
        systems.sort();
        Ok(systems)
    }

    /// Timelines that have segments here, ascending.
    pub fn list_timelines(&self, system: SystemIdentifier) -> Result<Vec<TimelineId>> {
        let folders = self.store().list_folders(&self.system(system))?;
        let hex =
            |folder: &String| crate::hex::decode(folder).map(|bytes| TimelineId(u32::from_be_bytes(bytes)));
        Ok(folders.iter().filter_map(hex).collect())
    }

    /// The segment with the highest number.
    pub fn newest_segment(
        &self,
        system: SystemIdentifier,
        timeline: TimelineId,
        wal_segment_size: u32,
    ) -> Result<Option<WalSegmentObject>> {
        for log in self.logs(system, timeline)?.iter().rev() {
            let segments = self.segments_of_log(system, timeline, log, wal_segment_size)?;
            if let Some(newest) = segments.into_iter().next_back() {
                return Ok(Some(newest));
            }
        }
        Ok(None)
    }

    /// The segment with the lowest number.
    pub fn oldest_segment(
        &self,
        system: SystemIdentifier,
        timeline: TimelineId,
        wal_segment_size: u32,
    ) -> Result<Option<WalSegmentObject>> {
        self.list_segments(system, timeline, wal_segment_size)?
            .next()
            .transpose()
    }

    /// Stores a history, backup history or partial file under PostgreSQL's name for it. Errors:
    /// `wal-conflict` (other content is there; not for partial ones, of which several may stand side by
    /// side), `wal-file-name`, `wal-file-size`.
    pub fn put_file(
        &self,
        system: SystemIdentifier,
        kind: WalFileKind,
        name: &str,
        bytes: &[u8],
    ) -> Result<PutWal> {
        let prefix = self.file(system, kind, name)?;
        if bytes.len() as u64 > FILE_BYTES_MAX {
            return Err(Error::new("wal-file-size", format!("{name} is too large"))
                .detail(format!("It has {} bytes.", bytes.len())));
        }
        let object = format!("{prefix}.{}", self.identity().object_digest(bytes));
        let there = match kind {
            WalFileKind::Partial => self.store().size(&object)?.is_some(),
            _ => self.conflicts(&prefix, &object)?,
        };
        if there {
            self.store().make_durable(&object)?;
            return Ok(PutWal {
                object,
                created: false,
                stored_bytes: 0,
            });
        }
        let nothing = |_: &[u8]| Ok((Vec::new(), ()));
        let (finished, ()) = put_framed(self, Kind::WalFile, kind.method(), &object, bytes, nothing)?;
        let created = finished.put == Put::Created;
        Ok(PutWal {
            object,
            created,
            stored_bytes: if created { finished.size } else { 0 },
        })
    }

    fn file(&self, system: SystemIdentifier, kind: WalFileKind, name: &str) -> Result<String> {
        if !kind.names(name) {
            return Err(Error::new(
                "wal-file-name",
                format!(
                    "\"{}\" is not the name of a {} file",
                    name.escape_default(),
                    kind.folder()
                ),
            ));
        }
        Ok(format!("{}{}/{name}", self.system(system), kind.folder()))
    }

    /// The content of each file of that name: several only for partial ones, or after a conflict.
    pub fn get_file(&self, system: SystemIdentifier, kind: WalFileKind, name: &str) -> Result<Vec<Vec<u8>>> {
        let prefix = self.file(system, kind, name)?;
        let objects = self.store().list(&format!("{prefix}."))?;
        let files = objects
            .into_iter()
            .filter_map(|object| parse_file(object, system, kind));
        files
            .filter(|file| file.name == name)
            .map(|file| self.read_file_object(&file))
            .collect()
    }

    pub fn read_file_object(&self, file: &WalFileObject) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        read_framed(self, Kind::WalFile, &file.object, file.stored_bytes, &mut bytes)?;
        Ok(bytes)
    }

    /// All files of a kind, sorted by name.
    pub fn list_files(&self, system: SystemIdentifier, kind: WalFileKind) -> Result<Vec<WalFileObject>> {
        let objects = self
            .store()
            .list(&format!("{}{}/", self.system(system), kind.folder()))?;
        Ok(objects
            .into_iter()
            .filter_map(|object| parse_file(object, system, kind))
            .collect())
    }
}

fn parse_segment(
    object: ObjectInfo,
    system: SystemIdentifier,
    wal_segment_size: u32,
) -> Option<WalSegmentObject> {
    let (name, digest) = split_digest(object.name.rsplit('/').next()?)?;
    let WalFile::Segment { timeline, number } = WalFile::parse(name, wal_segment_size)? else {
        return None;
    };
    let digest = digest.to_string();
    Some(WalSegmentObject {
        system,
        timeline,
        number,
        digest,
        object: object.name,
        stored_bytes: object.size,
    })
}

fn parse_file(object: ObjectInfo, system: SystemIdentifier, kind: WalFileKind) -> Option<WalFileObject> {
    let (name, digest) = split_digest(object.name.rsplit('/').next()?)?;
    let (name, digest) = (name.to_string(), digest.to_string());
    kind.names(&name).then_some(WalFileObject {
        system,
        kind,
        name,
        digest,
        object: object.name,
        stored_bytes: object.size,
    })
}

/// See [`ClusterRepository::list_segments`].
pub struct Segments {
    cluster: ClusterRepository,
    system: SystemIdentifier,
    timeline: TimelineId,
    wal_segment_size: u32,
    first: u64,
    /// The next one last.
    logs: Vec<String>,
    pending: std::vec::IntoIter<WalSegmentObject>,
}

impl Iterator for Segments {
    type Item = Result<WalSegmentObject>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(segment) = self.pending.find(|segment| segment.number >= self.first) {
                return Some(Ok(segment));
            }
            let log = self.logs.pop()?;
            match self
                .cluster
                .segments_of_log(self.system, self.timeline, &log, self.wal_segment_size)
            {
                Ok(segments) => self.pending = segments.into_iter(),
                Err(error) => {
                    self.logs.clear();
                    return Some(Err(error));
                }
            }
        }
    }
}
