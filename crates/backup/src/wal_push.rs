//! Pushes one file of `pg_wal` into all configured copies: what `archive_command` runs.
//!
//! Invariants: nothing is acknowledged before it is durable in as many copies as the policy says; a file is stored only
//! under the name that its content confirms, and under the system identifier of the archiver's own data directory; a
//! second writer is refused before anything is stored anywhere; a retry of the same content succeeds and stores nothing;
//! the same name with other content is an error, never an overwrite; from a restored directory that is not adopted
//! nothing is archived.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use diagnostic::{Error, Result};
use postgres::{
    ControlFile, SegmentHeader, SegmentIndex, SegmentIndexer, SystemIdentifier, TimelineHistory, Verdict,
    WalFile,
};
use repository::{ClusterRepository, PutWal, WalFileKind, Writer};
use serde::Serialize;

use crate::previous_tail::previous_tail;
use crate::room::{Held, Room};
use crate::spool::FileIdentity;

/// Stands in a restored data directory until it is adopted; nothing is archived from such a directory.
pub const RESTORED_MARKER: &str = "pgproof.restored";

/// History and backup history files are a few lines.
const SMALL_FILE_BYTES_MAX: u64 = 1 << 20;

/// One copy to push into.
#[derive(Clone, Copy)]
pub struct Copy<'a> {
    pub name: &'a str,
    pub repository: &'a ClusterRepository,
}

/// What to push, and on whose behalf.
#[derive(Debug, Clone)]
pub struct PushOptions {
    /// The file, as the archiver gives it in `%p`: relative to the data directory, or absolute.
    pub path: PathBuf,
    /// The data directory the archiver belongs to.
    pub data_directory: PathBuf,
    /// Names this host in a claim, for example the machine id.
    pub host_id: String,
    /// In how many copies the file must be durable before it is acknowledged; at least 1.
    pub acknowledge: usize,
}

/// How a push spent its time. Some of it passes at the same time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct PushPhases {
    /// Reading `pg_control` and the file.
    pub read: Duration,
    /// Indexing it, while it is compressed.
    pub index: Duration,
    /// Claim, digest, compression (and, beside it, the index), sealing, writing, making durable.
    pub store: Duration,
    pub total: Duration,
}

/// What became of a push in one copy.
#[derive(Debug, Clone)]
pub struct CopyOutcome {
    pub copy: String,
    pub stored: Result<PutWal>,
}

/// An acknowledged push: the archiver may recycle the file.
#[derive(Debug, Clone)]
pub struct PushResult {
    pub file: String,
    /// In the order in which they were given. A copy that failed is in need of the file still.
    pub copies: Vec<CopyOutcome>,
    /// What a person should know although the push succeeded.
    pub warnings: Vec<String>,
    pub phases: PushPhases,
    /// The file as it was before and after it was read.
    pub identity: Option<FileIdentity>,
}

/// A copy's share in what a file holds: the memory is free again when every copy has compressed it.
#[derive(Clone)]
struct Share<'r>(Arc<Held<'r>>);

impl AsRef<[u8]> for Share<'_> {
    fn as_ref(&self) -> &[u8] {
        &self.0.bytes
    }
}

/// The file that is to be pushed, recognised.
struct Source {
    system: SystemIdentifier,
    file: WalFile,
    name: String,
    /// As it was read; `None` for what came over the wire.
    identity: Option<FileIdentity>,
    /// Where the segment before may lie; `None` for what came over the wire.
    pg_wal: Option<PathBuf>,
    wal_segment_size: u32,
}

/// A WAL file that came over the replication protocol.
#[derive(Debug)]
pub(crate) struct Received {
    pub(crate) system: SystemIdentifier,
    /// A segment's or a history file's name.
    pub(crate) name: String,
    pub(crate) bytes: Vec<u8>,
    pub(crate) wal_segment_size: u32,
}

/// Pushes the file; `Ok` means that the policy's number of copies holds it durably.
///
/// Errors: `wal-restored-directory`, `wal-file-name`, `wal-file-missing`, `wal-file-changed`, `wal-segment-name`, `wal-segment-size`,
/// `wal-segment-system`, `wal-second-writer`, `wal-conflict`, `wal-not-acknowledged`, and those of the stores.
pub fn push(copies: &[Copy<'_>], options: &PushOptions, now: jiff::Timestamp) -> Result<PushResult> {
    push_within(None, copies, options, now)
}

/// The same; waits for room before it reads the file.
pub(crate) fn push_within(
    room: Option<&Room>,
    copies: &[Copy<'_>],
    options: &PushOptions,
    now: jiff::Timestamp,
) -> Result<PushResult> {
    let began = Instant::now();
    let mut phases = PushPhases::default();
    let needed = options.acknowledge.max(1);
    if copies.len() < needed {
        return Err(Error::usage(
            "wal-not-acknowledged",
            format!("{needed} copies must acknowledge, but there are {}", copies.len()),
        )
        .hint("Correct copies and acknowledge of the cluster in the configuration file."));
    }
    refuse_restored(&options.data_directory)?;
    let (_, control) = cluster::read_control_file(&options.data_directory)?;
    let mut held = room.map_or_else(|| Held::alone(Vec::new()), Room::take);
    let source = read(options, &control, &mut held.bytes)?;
    phases.read = began.elapsed();

    match source.file {
        WalFile::Segment { .. } | WalFile::Partial { .. } => drop(check_header(&source, &held.bytes)?),
        WalFile::History { timeline } => drop(TimelineHistory::parse(timeline, &held.bytes)?),
        WalFile::BackupHistory { .. } => {}
    }

    let storing = Instant::now();
    let writer = Writer {
        host_id: options.host_id.clone(),
        data_directory: options.data_directory.to_string_lossy().into_owned(),
    };
    let outcomes = in_parallel(copies.to_vec(), |copy| {
        claim(copy.repository, &source, &writer, now)
    });
    // A second writer is refused before anything is stored in any copy.
    if let Some(error) = outcomes
        .iter()
        .filter_map(|claim| claim.as_ref().err())
        .find(|e| e.code() == "wal-second-writer")
    {
        return Err(error.clone());
    }
    let share = Share(Arc::new(held));
    let claimed: Vec<_> = (copies.iter().copied().zip(outcomes))
        .map(|(copy, claim)| (copy, claim, share.clone()))
        .collect();
    drop(share);
    // Made once for all copies, beside the compression, and not at all when every copy has the segment already.
    let indexed = OnceLock::new();
    let stored = in_parallel(claimed, |(copy, claim, share)| {
        claim?;
        store(copy.repository, &source, share, |bytes| {
            let (index, _) = indexed.get_or_init(|| {
                let began = Instant::now();
                (index(&source, bytes), began.elapsed())
            });
            index.clone()
        })
    });
    let outcomes = copies
        .iter()
        .zip(stored)
        .map(|(copy, stored)| CopyOutcome {
            copy: copy.name.to_owned(),
            stored,
        })
        .collect::<Vec<_>>();
    phases.store = storing.elapsed();
    phases.total = began.elapsed();
    let mut warnings = Vec::new();
    if let Some((index, elapsed)) = indexed.into_inner() {
        phases.index = elapsed;
        warnings.extend(index.ok().and_then(|index| warning(&source.name, &index.verdict)));
    }
    acknowledge(&source.name, &outcomes, needed)?;
    for outcome in &outcomes {
        if let Err(error) = &outcome.stored {
            warnings.push(format!(
                "copy \"{}\" does not hold {}: {}",
                outcome.copy,
                source.name,
                error.message()
            ));
        }
    }
    Ok(PushResult {
        file: source.name,
        copies: outcomes,
        warnings,
        phases,
        identity: source.identity,
    })
}

/// Hard rule 23. Error: `wal-restored-directory`.
pub fn refuse_restored(data_directory: &Path) -> Result<()> {
    let marker = data_directory.join(RESTORED_MARKER);
    match marker.symlink_metadata() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Error::io("file-read", format!("cannot examine \"{}\"", marker.display()), &error)),
        Ok(_) => Err(Error::new("wal-restored-directory", "a restored data directory may not archive")
            .detail(format!(
                "\"{}\" marks the directory as a restored one. WAL from it would mix with that of the cluster it is a \
                 copy of.",
                marker.display()
            ))
            .hint("To make it production, run `pgproof restore --adopt`; else set archive_mode = off.")),
    }
}

/// Reads the file into the empty buffer.
fn read(options: &PushOptions, control: &ControlFile, bytes: &mut Vec<u8>) -> Result<Source> {
    let path = options.data_directory.join(&options.path);
    let size = control.wal_segment_size;
    let name = path
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    let Some(file) = WalFile::parse(&name, size) else {
        return Err(Error::usage(
            "wal-file-name",
            format!(
                "\"{}\" is not a file that PostgreSQL archives",
                name.escape_debug()
            ),
        )
        .detail(format!(
            "Names are those of segments of {size} bytes, of histories, and of partial segments."
        ))
        .hint("In archive_command, write %p for the path."));
    };
    let limit = match file {
        WalFile::Segment { .. } | WalFile::Partial { .. } => u64::from(size),
        WalFile::History { .. } | WalFile::BackupHistory { .. } => SMALL_FILE_BYTES_MAX,
    };
    let identity = read_file(&path, limit, bytes)?;
    if matches!(file, WalFile::Segment { .. } | WalFile::Partial { .. }) && bytes.len() as u64 != limit {
        return Err(Error::new(
            "wal-segment-size",
            format!("WAL segment {name} has {} bytes instead of {limit}", bytes.len()),
        )
        .detail("PostgreSQL writes segments in full length; this file is not complete."));
    }
    let pg_wal = path.parent().unwrap_or(&options.data_directory).to_path_buf();
    Ok(Source {
        system: control.system_identifier,
        file,
        name,
        identity: Some(identity),
        pg_wal: Some(pg_wal),
        wal_segment_size: size,
    })
}

/// Stores a received file in one copy, under the same rules as [`push`]. Errors: `wal-file-name`,
/// `wal-segment-name`, `wal-segment-size`, `wal-segment-system`, `wal-second-writer`, `wal-conflict`, and the store's.
pub(crate) fn push_received(
    repository: &ClusterRepository,
    received: Received,
    writer: &Writer,
    now: jiff::Timestamp,
) -> Result<PutWal> {
    let (source, bytes) = recognised(received)?;
    claim(repository, &source, writer, now)?;
    store(repository, &source, bytes, |bytes| index(&source, bytes))
}

/// Whether a received file is what its name says.
fn recognised(received: Received) -> Result<(Source, Vec<u8>)> {
    let Some(file) = WalFile::parse(&received.name, received.wal_segment_size) else {
        return Err(Error::new(
            "wal-file-name",
            format!("\"{}\" is no WAL file", received.name.escape_debug()),
        ));
    };
    let source = Source {
        system: received.system,
        file,
        name: received.name,
        identity: None,
        pg_wal: None,
        wal_segment_size: received.wal_segment_size,
    };
    let bytes = received.bytes;
    match source.file {
        WalFile::History { timeline } => drop(TimelineHistory::parse(timeline, &bytes)?),
        WalFile::BackupHistory { .. } => {}
        _ if bytes.len() as u64 != u64::from(source.wal_segment_size) => {
            return Err(Error::new(
                "wal-segment-size",
                format!("WAL segment {} is not complete", source.name),
            ));
        }
        _ => drop(check_header(&source, &bytes)?),
    }
    Ok((source, bytes))
}

/// Stores a file that somebody brought from another archive, under the same rules as [`push`] but for the claim: who brings
/// old WAL is not who writes the timeline. Errors as [`push_received`], without `wal-second-writer`.
pub(crate) fn push_imported(repository: &ClusterRepository, received: Received) -> Result<PutWal> {
    let (source, bytes) = recognised(received)?;
    store(repository, &source, bytes, |bytes| index(&source, bytes))
}

/// Reads at most `limit` bytes into the empty buffer; a longer file is an error, and so is one that changes meanwhile.
fn read_file(path: &Path, limit: u64, bytes: &mut Vec<u8>) -> Result<FileIdentity> {
    let failed = |error: &std::io::Error| {
        if error.kind() == std::io::ErrorKind::NotFound {
            Error::new(
                "wal-file-missing",
                format!("file \"{}\" does not exist", path.display()),
            )
        } else {
            Error::io(
                "file-read",
                format!("cannot read file \"{}\"", path.display()),
                error,
            )
        }
    };
    let file = std::fs::File::open(path).map_err(|error| failed(&error))?;
    let identity = |file: &std::fs::File| {
        file.metadata()
            .map(|metadata| FileIdentity::of(&metadata))
            .map_err(|error| failed(&error))
    };
    let before = identity(&file)?;
    bytes.reserve_exact(usize::try_from(limit).unwrap_or(0).saturating_add(1));
    (&file)
        .take(limit.saturating_add(1))
        .read_to_end(bytes)
        .map_err(|error| failed(&error))?;
    if bytes.len() as u64 > limit {
        return Err(Error::new(
            "wal-segment-size",
            format!("file \"{}\" is larger than {limit} bytes", path.display()),
        ));
    }
    if identity(&file)? != before {
        return Err(Error::new(
            "wal-file-changed",
            format!("file \"{}\" changed while it was read", path.display()),
        )
        .detail(
            "PostgreSQL does not write to a file any more that it wants archived. It will be tried again.",
        ));
    }
    Ok(before)
}

/// Holds the first page against the name and against the archiver's own cluster.
fn check_header(source: &Source, bytes: &[u8]) -> Result<SegmentHeader> {
    let header = SegmentHeader::parse(bytes)?;
    if header.system_identifier != source.system {
        return Err(Error::new(
            "wal-segment-system",
            format!("WAL segment {} is of another cluster", source.name),
        )
        .detail(format!(
            "Its first page has system identifier {}, the data directory's is {}.",
            header.system_identifier, source.system
        )));
    }
    if header.segment_size != source.wal_segment_size {
        return Err(Error::new(
            "wal-segment-size",
            format!("WAL segment {} is of another segment size", source.name),
        ));
    }
    if source.file.start(source.wal_segment_size) != Some(header.page_address)
        || header.timeline > source.file.timeline()
    {
        return Err(Error::new(
            "wal-segment-name",
            format!("WAL segment {} holds other WAL than its name says", source.name),
        )
        .detail(format!(
            "Its first page is at {} of timeline {}.",
            header.page_address, header.timeline
        ))
        .hint(
            "Do not copy or rename files in pg_wal. If the server itself left it so, run `pgproof check`.",
        ));
    }
    Ok(header)
}

/// Indexes a segment, with the record that spans its start when the segment before is still there.
fn index(source: &Source, bytes: &[u8]) -> Result<SegmentIndex> {
    let header = check_header(source, bytes)?;
    let before = Some(()).filter(|()| header.remaining_length > 0).and_then(|()| {
        previous_tail(
            source.pg_wal.as_deref()?,
            source.file.timeline(),
            header.number(),
            source.wal_segment_size,
        )
    });
    SegmentIndexer::index(bytes, &source.file, before.as_deref())
}

/// A segment in which valid WAL ends early is kept all the same: refusing it would stop the archiver, and its index says
/// what is wrong with it.
fn warning(name: &str, verdict: &Verdict) -> Option<String> {
    match verdict {
        Verdict::Good => None,
        Verdict::Incomplete { at } => Some(format!("valid WAL in {name} ends at {at}")),
        Verdict::Damaged { at, reason } => Some(format!("valid WAL in {name} ends at {at}: {reason}")),
    }
}

/// Hard rule 19. Partial segments are of a timeline that ends: whoever has one may push it.
fn claim(
    repository: &ClusterRepository,
    source: &Source,
    writer: &Writer,
    now: jiff::Timestamp,
) -> Result<()> {
    match source.file {
        WalFile::Partial { .. } => Ok(()),
        _ => repository.claim(source.system, source.file.timeline(), writer, now),
    }
}

fn store(
    repository: &ClusterRepository,
    source: &Source,
    bytes: impl AsRef<[u8]>,
    index: impl FnOnce(&[u8]) -> Result<SegmentIndex> + Send,
) -> Result<PutWal> {
    let kind = match source.file {
        WalFile::Segment { .. } => {
            return repository
                .put_segment_with(source.system, &source.file, bytes, index)
                .map(|(put, _)| put);
        }
        WalFile::Partial { .. } => WalFileKind::Partial,
        WalFile::History { .. } => WalFileKind::History,
        WalFile::BackupHistory { .. } => WalFileKind::Label,
    };
    repository.put_file(source.system, kind, &source.name, bytes.as_ref())
}

/// The policy, and what overrules it: content that contradicts what is archived is never passed over.
fn acknowledge(name: &str, outcomes: &[CopyOutcome], needed: usize) -> Result<()> {
    let failures = || {
        outcomes
            .iter()
            .filter_map(|outcome| Some((outcome, outcome.stored.as_ref().err()?)))
    };
    if let Some((_, error)) = failures().find(|(_, error)| error.code() == "wal-conflict") {
        return Err(error.clone());
    }
    let durable = outcomes.len() - failures().count();
    if durable >= needed {
        return Ok(());
    }
    // With one copy its own error says everything.
    if let ([_], Some((_, error))) = (outcomes, failures().next()) {
        return Err(error.clone());
    }
    let reasons: Vec<String> = failures()
        .map(|(outcome, error)| format!("Copy \"{}\": {}.", outcome.copy, error.message()))
        .collect();
    Err(Error::new(
        "wal-not-acknowledged",
        format!("{name} is durable in {durable} copies of {needed} that must hold it"),
    )
    .detail(format!(
        "{} PostgreSQL keeps the file and tries again.",
        reasons.join(" ")
    )))
}

/// Runs `work` for each item, in threads when there are several.
fn in_parallel<I: Send, T: Send>(items: Vec<I>, work: impl Fn(I) -> Result<T> + Sync) -> Vec<Result<T>> {
    if items.len() == 1 {
        return items.into_iter().map(work).collect();
    }
    let work = &work;
    std::thread::scope(|scope| {
        let threads: Vec<_> = items
            .into_iter()
            .map(|item| scope.spawn(move || work(item)))
            .collect();
        let ended = || Error::new("wal-push", "a thread of the push ended unexpectedly");
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|_| Err(ended())))
            .collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(copy: &str, stored: Result<PutWal>) -> CopyOutcome {
        CopyOutcome {
            copy: copy.into(),
            stored,
        }
    }

    fn put() -> PutWal {
        PutWal {
            object: "x".into(),
            created: true,
            stored_bytes: 1,
        }
    }

    #[test]
    fn one_copy_of_two_is_enough_only_if_the_policy_says_so() {
        let outcomes = [
            outcome("local", Ok(put())),
            outcome("far", Err(Error::new("store-unreachable", "no answer"))),
        ];
        assert!(acknowledge("X", &outcomes, 1).is_ok());
        let error = acknowledge("X", &outcomes, 2).unwrap_err();
        assert_eq!(error.code(), "wal-not-acknowledged");
        assert!(error.detail_text().unwrap().contains("Copy \"far\": no answer."));
    }

    #[test]
    fn a_conflict_in_any_copy_is_never_acknowledged() {
        let outcomes = [
            outcome("local", Ok(put())),
            outcome("far", Err(Error::new("wal-conflict", "other content"))),
        ];
        assert_eq!(acknowledge("X", &outcomes, 1).unwrap_err().code(), "wal-conflict");
    }

    #[test]
    fn the_only_copys_error_is_the_pushs_error() {
        let outcomes = [outcome("local", Err(Error::new("store-full", "no space")))];
        assert_eq!(acknowledge("X", &outcomes, 1).unwrap_err().code(), "store-full");
    }
}
