//! The WAL between the parent's start and this backup's: which pages may have changed since.
//!
//! What is archived is asked of the segments' indexes; what is not, the segment of the start included, is read in the
//! server's own `pg_wal`. Invariants: there is a map only if the stretch is unbroken from the parent's start to this
//! backup's and ends in the WAL of the very server that is backed up; whatever stands in the way is a reason to read everything,
//! never an error.

use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use cluster::Session;
use diagnostic::Result;
use postgres::{
    ChangedPages, Lsn, SegmentIndex, SegmentIndexer, SystemIdentifier, TailSeam, TimelineId, WalFile,
    segment_name,
};
use repository::{ClusterRepository, WalSegmentObject};

use crate::live_wal::read_live_tail_behind;

/// Larger segments are not read again here: a whole one is held in memory.
const SEGMENT_BYTES_MAX: u32 = 64 << 20;
/// So many segments may still wait for the archiver.
const UNARCHIVED_MAX: u64 = 64;
/// Indexes that are fetched at once, and the threads that fetch them: a round trip each.
const FETCHED_AT_ONCE: usize = 16;
const THREADS: usize = 8;

/// A stretch of WAL of one timeline.
pub(super) struct Stretch<'a> {
    pub(super) repository: &'a ClusterRepository,
    pub(super) data_directory: &'a Path,
    pub(super) system: SystemIdentifier,
    pub(super) timeline: TimelineId,
    pub(super) wal_segment_size: u32,
    /// The parent's start.
    pub(super) from: Lsn,
    /// This backup's start.
    pub(super) to: Lsn,
    /// The server's WAL is on its disk up to here, at or behind `to`.
    pub(super) flush: Lsn,
}

/// Where the server's WAL is on its disk; on a standby, where it has received or replayed it.
pub(super) fn flush_lsn(session: &mut Session, standby: bool) -> Result<Lsn> {
    let function = if standby {
        "greatest(pg_catalog.pg_last_wal_receive_lsn(), pg_catalog.pg_last_wal_replay_lsn())"
    } else {
        "pg_catalog.pg_current_wal_flush_lsn()"
    };
    let row = session.one(&format!("select {function}"))?;
    let text = row.into_iter().next().flatten().unwrap_or_default();
    text.parse()
}

/// The map, or why there is none.
pub(super) fn read(stretch: &Stretch<'_>) -> Result<ChangedPages, String> {
    let size = stretch.wal_segment_size;
    if size > SEGMENT_BYTES_MAX {
        return Err(format!("WAL segments of {size} bytes are not read again"));
    }
    let (first, last) = (stretch.from.segment(size), stretch.to.segment(size));
    let archived = archived(stretch, first, last).map_err(|error| {
        format!(
            "the archived WAL since the parent could not be listed: {}",
            error.message()
        )
    })?;
    // The segment of the start is always read in pg_wal: it shows that the archive is this server's.
    let unarchived = archived.last().map_or(first, |segment| segment.number + 1);
    if stretch.flush.segment(size).saturating_sub(unarchived) > UNARCHIVED_MAX {
        return Err(format!(
            "{} WAL segments have not been archived yet",
            stretch.flush.segment(size) - unarchived
        ));
    }
    let (mut map, last) = of_objects(stretch.repository, &archived, size)?;
    if let Some(segment) = archived.last() {
        is_the_servers(stretch, segment)?;
    }
    let begin = Lsn(unarchived.saturating_mul(u64::from(size)));
    let tail = || tail_of(stretch.repository, archived.last()?, last.as_ref()?);
    let live = read_live_tail_behind(
        stretch.data_directory,
        stretch.timeline,
        begin,
        stretch.flush,
        tail,
    )
    .map_err(|error| error.message().to_owned())?;
    if live.segments.is_empty() {
        return Err("the segment of the backup's start is not in pg_wal".into());
    }
    for index in live.segments {
        map.add(index, Some(stretch.to)).map_err(|why| why.to_string())?;
    }
    Ok(map)
}

/// The map of segments that are archived, such as a backup's own. Each must be whole.
pub(super) fn of_archived(
    repository: &ClusterRepository,
    segments: &[WalSegmentObject],
    wal_segment_size: u32,
) -> Result<ChangedPages, String> {
    of_objects(repository, segments, wal_segment_size).map(|(map, _)| map)
}

/// The same, and where the last one ends.
fn of_objects(
    repository: &ClusterRepository,
    segments: &[WalSegmentObject],
    wal_segment_size: u32,
) -> Result<(ChangedPages, Option<TailSeam>), String> {
    let mut map = ChangedPages::new();
    let mut before: Option<(&WalSegmentObject, Option<TailSeam>)> = None;
    for chunk in segments.chunks(at_once(wal_segment_size)) {
        for (segment, index) in chunk.iter().zip(fetch(repository, chunk)) {
            let mut index = index.map_err(|error| error.message().to_owned())?;
            if let (Some((object, Some(tail))), true) =
                (before, index.head.length > 0 && !index.head.resolved)
                && let Some(resolved) = resolved(repository, object, &tail, segment)
            {
                index = resolved;
            }
            before = Some((segment, index.tail));
            map.add(index, None).map_err(|why| why.to_string())?;
        }
    }
    Ok((map, before.and_then(|(_, tail)| tail)))
}

/// The index of a segment whose first record could not be read when it was archived, because the server had already removed
/// the segment before: that one is in the archive too. `None` where this host may not read rows.
fn resolved(
    repository: &ClusterRepository,
    before: &WalSegmentObject,
    tail: &TailSeam,
    segment: &WalSegmentObject,
) -> Option<SegmentIndex> {
    let tail = tail_of(repository, before, tail)?;
    let mut bytes = Vec::new();
    repository.read_segment(segment, &mut bytes).ok()?;
    let name = WalFile::Segment {
        timeline: segment.timeline,
        number: segment.number,
    };
    SegmentIndexer::index(&bytes, &name, Some(&tail)).ok()
}

/// The bytes of the record that goes on behind a segment; `None` if it began even earlier.
fn tail_of(repository: &ClusterRepository, segment: &WalSegmentObject, tail: &TailSeam) -> Option<Vec<u8>> {
    tail.total_length?;
    let mut bytes = Vec::new();
    repository.read_segment(segment, &mut bytes).ok()?;
    let size = bytes.len() as u64;
    let start = segment.number.checked_mul(size)?;
    let offset = usize::try_from(tail.start.0.checked_sub(start)?).ok()?;
    Some(bytes.get(offset..)?.to_vec())
}

/// Indexes grow with their segments.
fn at_once(wal_segment_size: u32) -> usize {
    (FETCHED_AT_ONCE * (16 << 20) / wal_segment_size.max(1) as usize).clamp(1, FETCHED_AT_ONCE)
}

/// The archived segments from `first` on that stand before `last`, unbroken; less when the archiver is behind.
fn archived(stretch: &Stretch<'_>, first: u64, last: u64) -> Result<Vec<WalSegmentObject>> {
    let mut found: Vec<WalSegmentObject> = Vec::new();
    let segments = stretch.repository.list_segments_from(
        stretch.system,
        stretch.timeline,
        stretch.wal_segment_size,
        first,
    )?;
    for segment in segments {
        let segment = segment?;
        // Two contents of one number, or a hole: what follows must be in pg_wal, or there is no map.
        if segment.number >= last || segment.number != first + found.len() as u64 {
            break;
        }
        found.push(segment);
    }
    Ok(found)
}

/// Indexes in the order of the segments.
fn fetch(repository: &ClusterRepository, segments: &[WalSegmentObject]) -> Vec<Result<SegmentIndex>> {
    let next = AtomicUsize::new(0);
    let fetched = Mutex::new(Vec::with_capacity(segments.len()));
    let work = || {
        while let Some((place, segment)) = {
            let place = next.fetch_add(1, Ordering::Relaxed);
            segments.get(place).map(|segment| (place, segment))
        } {
            let index = repository.read_index(segment);
            fetched
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner)
                .push((place, index));
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..THREADS.min(segments.len()) {
            // Without a further thread this one does it all.
            let _ = std::thread::Builder::new().spawn_scoped(scope, work);
        }
        work();
    });
    let mut fetched = fetched
        .into_inner()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    fetched.sort_by_key(|(place, _)| *place);
    fetched.into_iter().map(|(_, index)| index).collect()
}

/// What is still in `pg_wal` under the segment's name is what was archived under it: the server was not set back to an
/// earlier state whose WAL somebody else, or it itself, archived before.
fn is_the_servers(stretch: &Stretch<'_>, segment: &WalSegmentObject) -> Result<(), String> {
    let name = segment_name(segment.timeline, segment.number, stretch.wal_segment_size);
    match std::fs::read(stretch.data_directory.join("pg_wal").join(&name)) {
        Ok(bytes) if stretch.repository.identity().object_digest(&bytes) == segment.digest => Ok(()),
        Ok(_) => Err(format!(
            "pg_wal holds another WAL segment {name} than the archive"
        )),
        // It was removed or used again, which is no sign of anything.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(format!("WAL segment {name} in pg_wal could not be read: {error}")),
    }
}
