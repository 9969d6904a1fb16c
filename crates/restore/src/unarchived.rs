//! WAL that the directory to be replaced holds and the archive does not. Hard rule 26.
//!
//! After a crash, or with an archiver that lags, the newest transactions exist only in the old `pg_wal`.
//! Recovery asks the archive first and then looks into `pg_wal`, so these segments are copied into the
//! restored directory. Invariants: only files whose first page confirms their name and system identifier
//! count (recycled segments do not); how far they are valid is found by reading them, as recovery will; they
//! are copied, never linked or moved.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use diagnostic::{Error, Result};
use history::{KnownHistory, WalSource};
use postgres::{
    SegmentHeader, SegmentIndex, SegmentIndexer, SystemIdentifier, TimelineId, WalFile, segment_name,
    tail_bytes,
};

use crate::destination::DestinationState;
use crate::plan::KeptAside;

/// A `pg_wal` folder.
pub(crate) struct PgWal {
    folder: PathBuf,
    segment_size: u32,
    segments: BTreeMap<TimelineId, BTreeSet<u64>>,
}

/// Where the old directory is, if the destination is, or was before an interrupted restore, a data directory.
pub(crate) fn old_directory(destination: &Path, state: &DestinationState) -> Option<PathBuf> {
    match state {
        DestinationState::DataDirectory { .. } => Some(destination.to_owned()),
        DestinationState::HalfRestored(marker) | DestinationState::HalfKeptAside(marker) => {
            marker.kept_aside.iter().find_map(kept_at)
        }
        DestinationState::HalfDelta { marker, .. } => marker.kept_aside.iter().find_map(kept_at),
        _ => None,
    }
}

/// Where a data directory is kept aside.
pub(crate) fn kept_at(kept: &KeptAside) -> Option<PathBuf> {
    match kept {
        KeptAside::Rename { to, .. } | KeptAside::Contents { to, .. } => Some(to.clone()),
        // Its folder `pg_wal` alone.
        KeptAside::Wal { to, .. } => to.parent().map(Path::to_owned),
        KeptAside::Tablespace { .. } => None,
    }
}

/// Names in `pg_wal` that would be lost with it: segments of this system that `archived` does not have, or that
/// the server has not handed over yet; partial segments; histories. Error: `pg-wal-read`.
pub(crate) fn at_risk(
    data_directory: &Path,
    system: SystemIdentifier,
    segment_size: u32,
    archived: &dyn Fn(TimelineId, u64) -> bool,
) -> Result<Vec<String>> {
    let Some(pg_wal) = PgWal::open(data_directory, system, segment_size)? else {
        return Ok(Vec::new());
    };
    let mut names = Vec::new();
    for entry in std::fs::read_dir(&pg_wal.folder).map_err(|error| cannot_read(&pg_wal.folder, &error))? {
        let entry = entry.map_err(|error| cannot_read(&pg_wal.folder, &error))?;
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        if !entry.file_type().is_ok_and(|kind| kind.is_file()) {
            continue;
        }
        let lost = match WalFile::parse(&name, segment_size) {
            Some(WalFile::Segment { timeline, number }) => {
                let ready = pg_wal.folder.join(format!("archive_status/{name}.ready"));
                let ours = pg_wal
                    .segments
                    .get(&timeline)
                    .is_some_and(|numbers| numbers.contains(&number));
                ours && (!archived(timeline, number) || ready.exists())
            }
            Some(WalFile::Partial { .. } | WalFile::History { .. }) => true,
            _ => false,
        };
        if lost {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

impl PgWal {
    /// Lists the segments of this system; `None` if there is no such folder. Error: `pg-wal-read`.
    pub(crate) fn open(
        data_directory: &Path,
        system: SystemIdentifier,
        segment_size: u32,
    ) -> Result<Option<PgWal>> {
        let folder = data_directory.join("pg_wal");
        let entries = match std::fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(cannot_read(&folder, &error)),
        };
        let mut segments: BTreeMap<TimelineId, BTreeSet<u64>> = BTreeMap::new();
        for entry in entries {
            let entry = entry.map_err(|error| cannot_read(&folder, &error))?;
            let name = entry.file_name();
            let parsed = name.to_str().and_then(|name| WalFile::parse(name, segment_size));
            let Some(WalFile::Segment { timeline, number }) = parsed else {
                continue;
            };
            let mut first = Vec::with_capacity(64);
            let file = File::open(entry.path()).map_err(|error| cannot_read(&entry.path(), &error))?;
            file.take(64)
                .read_to_end(&mut first)
                .map_err(|error| cannot_read(&entry.path(), &error))?;
            // A recycled segment has its next name already, and old content.
            let Ok(header) = SegmentHeader::parse(&first) else {
                continue;
            };
            let ours = header.system_identifier == system && header.segment_size == segment_size;
            if ours && header.number() == number && header.timeline <= timeline {
                segments.entry(timeline).or_default().insert(number);
            }
        }
        Ok(Some(PgWal {
            folder,
            segment_size,
            segments,
        }))
    }

    fn bytes(&self, timeline: TimelineId, number: u64) -> Result<Option<Vec<u8>>> {
        if !self
            .segments
            .get(&timeline)
            .is_some_and(|numbers| numbers.contains(&number))
        {
            return Ok(None);
        }
        let path = self
            .folder
            .join(segment_name(timeline, number, self.segment_size));
        std::fs::read(&path)
            .map(Some)
            .map_err(|error| cannot_read(&path, &error))
    }
}

impl WalSource for PgWal {
    fn timelines(&self) -> Result<Vec<TimelineId>> {
        Ok(self.segments.keys().copied().collect())
    }

    fn segments(&self, timeline: TimelineId) -> Result<Vec<u64>> {
        Ok(self
            .segments
            .get(&timeline)
            .into_iter()
            .flatten()
            .copied()
            .collect())
    }

    fn index(&self, timeline: TimelineId, number: u64) -> Result<Option<SegmentIndex>> {
        let Some(bytes) = self.bytes(timeline, number)? else {
            return Ok(None);
        };
        let name = |number| WalFile::Segment { timeline, number };
        // The segment before gives the beginning of the record that spans the two, if it begins there.
        let before = number
            .checked_sub(1)
            .map(|before| self.bytes(timeline, before))
            .transpose()?
            .flatten();
        if let Some(before) = before
            && let Ok(index) = SegmentIndexer::index(&before, &name(number - 1), None)
            && index.tail.is_some_and(|tail| tail.total_length.is_some())
        {
            let tail = tail_bytes(&before, &index);
            return SegmentIndexer::index(&bytes, &name(number), tail).map(Some);
        }
        SegmentIndexer::index(&bytes, &name(number), None).map(Some)
    }

    fn read(&self, timeline: TimelineId, number: u64, to: &mut dyn Write) -> Result<bool> {
        let Some(bytes) = self.bytes(timeline, number)? else {
            return Ok(false);
        };
        to.write_all(&bytes)
            .map(|()| true)
            .map_err(|error| Error::io("segment-write", "cannot pass a segment on", &error))
    }

    fn histories(&self) -> Result<Vec<KnownHistory>> {
        // The way is decided from the archive and the backups alone.
        Ok(Vec::new())
    }

    fn claimed(&self) -> Result<BTreeSet<TimelineId>> {
        Ok(BTreeSet::new())
    }
}

fn cannot_read(path: &Path, error: &std::io::Error) -> Error {
    Error::io(
        "pg-wal-read",
        format!("cannot read \"{}\"", path.display()),
        error,
    )
    .hint("Run pgproof as the account that owns the data directory, or as root.")
}
