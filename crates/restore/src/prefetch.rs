//! WAL that is fetched before recovery asks for it. `docs/design/0022`.
//!
//! Invariants: a prefetched segment stands under its name whole and verified, on the file system of `pg_wal`, and is moved
//! into place by renaming; it counts for one recovery only (one start of one server in one boot); that a segment is *not*
//! here says nothing, absence is always asked of the copies; every failure here ends in fetching plainly; everything is
//! removed when recovery has ended or has not asked for a while.

use std::collections::BTreeSet;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use postgres::{TimelineId, WalFile, segment_name};
use repository::ClusterRepository;
use rustix::fs::FlockOperation;

use crate::wal::{Failure, HEADER_BYTES, PlaceOptions, Placed, check_first_page, fetch};

/// The folder, in `pg_wal`.
pub const FOLDER: &str = "pgproof.prefetch";
const WORKER_LOCK: &str = "worker.lock";
const WORKER_LOG: &str = "worker.log";
/// Holds the name of the segment that recovery got last.
const ASKED: &str = "asked";
/// Digits of a digest in a name.
const DIGEST_DIGITS: usize = 32;
/// So long a call waits for the segment that is being fetched at this moment.
const BUSY_WAIT_MAX: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(10);
/// A segment that no copy had is asked for again after this.
const ABSENT_PAUSE: Duration = Duration::from_secs(5);
/// How often it is looked whether recovery still goes on.
const ALIVE_PAUSE: Duration = Duration::from_secs(1);
/// Segments fetched at once: an object is held in memory while it is read.
const THREADS: usize = 2;
const BYTES_AT_ONCE_MAX: u64 = 32 << 20;

/// Where segments for one recovery wait.
#[derive(Debug, Clone)]
pub struct Prefetched {
    /// `pg_wal/pgproof.prefetch`
    folder: PathBuf,
    /// In it, named after the recovery.
    segments: PathBuf,
}

/// Held by the one process that fetches ahead.
#[derive(Debug)]
pub struct Fetcher {
    _file: File,
}

/// Held while a segment is being fetched.
struct Busy {
    _file: File,
    path: PathBuf,
}

impl Drop for Busy {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Prefetched {
    /// `recovery` names one start of one server, in hexadecimal digits. Nothing is made yet.
    pub fn of(pg_wal: &Path, recovery: &str) -> Prefetched {
        let folder = pg_wal.join(FOLDER);
        Prefetched {
            segments: folder.join(recovery),
            folder,
        }
    }

    /// Moves the segment into its place, if it is here; waits for it while it is being fetched. `None`: fetch it plainly.
    pub fn place(&self, file: &str, destination: &Path, options: &PlaceOptions) -> Option<Placed> {
        let WalFile::Segment { timeline, number } = WalFile::parse(file, options.wal_segment_size)? else {
            return None;
        };
        if let Some(placed) = self.place_now(file, timeline, number, destination, options) {
            return Some(placed);
        }
        self.wait_while_fetched(file)?;
        self.place_now(file, timeline, number, destination, options)
    }

    fn place_now(
        &self,
        file: &str,
        timeline: TimelineId,
        number: u64,
        destination: &Path,
        options: &PlaceOptions,
    ) -> Option<Placed> {
        let path = self.entries().find(|entry| entry.segment == file)?.path;
        let metadata = std::fs::symlink_metadata(&path).ok()?;
        let mut first = Vec::with_capacity(HEADER_BYTES);
        let mut open = File::open(&path).ok()?;
        Read::by_ref(&mut open)
            .take(HEADER_BYTES as u64)
            .read_to_end(&mut first)
            .ok()?;
        let whole = metadata.is_file()
            && metadata.nlink() == 1
            && check_first_page(&first, metadata.len(), timeline, number, file, options).is_ok();
        if !whole {
            let _ = std::fs::remove_file(&path);
            return None;
        }
        std::fs::rename(&path, destination).ok()?;
        Some(Placed {
            copy: "prefetched".into(),
            bytes: metadata.len(),
            failed: Vec::new(),
        })
    }

    /// `None` when nobody is fetching it.
    fn wait_while_fetched(&self, file: &str) -> Option<()> {
        let lock = File::open(self.segments.join(format!("{file}.lock"))).ok()?;
        let began = Instant::now();
        while rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            if began.elapsed() > BUSY_WAIT_MAX {
                return None;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Some(())
    }

    /// Recovery has got this segment: the ones behind it are next.
    pub fn told(&self, file: &str) {
        // Without it the process that fetches ahead stops some segments further on.
        let _ = write(&self.segments.join(ASKED), file);
    }

    /// Where the process that fetches ahead writes what it has to say.
    pub fn worker_log(&self) -> PathBuf {
        self.folder.join(WORKER_LOG)
    }

    /// Makes the folder if need be, and tells whether a process that fetches ahead may be started: there is none, and
    /// there is room for `bytes` and as much again.
    pub fn wants_fetcher(&self, bytes: u64) -> bool {
        let mut builder = DirBuilder::new();
        let builder = builder.recursive(true).mode(0o700);
        builder.create(&self.segments).is_ok() && self.has_room(bytes) && self.try_fetcher().is_some()
    }

    fn has_room(&self, bytes: u64) -> bool {
        rustix::fs::statvfs(&self.folder)
            .is_ok_and(|room| room.f_bavail.saturating_mul(room.f_frsize) / 2 > bytes)
    }

    /// Becomes the one process that fetches ahead; `None` when there is one.
    pub fn try_fetcher(&self) -> Option<Fetcher> {
        let mut options = OpenOptions::new();
        let options = options.write(true).create(true).truncate(false).mode(0o600);
        let file = options.open(self.folder.join(WORKER_LOCK)).ok()?;
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).ok()?;
        Some(Fetcher { _file: file })
    }

    /// Removes all segments: their room is needed for the one that recovery waits for.
    pub fn clear(&self) {
        for entry in self.entries() {
            let _ = std::fs::remove_file(entry.path);
        }
    }

    /// Removes what other recoveries left, of which none can be going on in this directory.
    fn sweep(&self, _fetcher: &Fetcher) {
        for entry in std::fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            if entry.path() != self.segments && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                let _ = std::fs::remove_dir_all(entry.path());
            }
        }
        for entry in std::fs::read_dir(&self.segments).into_iter().flatten().flatten() {
            if entry
                .path()
                .extension()
                .is_some_and(|ending| ending == "tmp" || ending == "lock")
            {
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }

    fn remove(&self, _fetcher: &Fetcher) {
        let _ = std::fs::remove_dir_all(&self.segments);
        let _ = std::fs::remove_file(self.folder.join(WORKER_LOG));
        let _ = std::fs::remove_file(self.folder.join(WORKER_LOCK));
        let _ = std::fs::remove_dir(&self.folder);
    }

    fn entries(&self) -> impl Iterator<Item = Entry> {
        let entries = std::fs::read_dir(&self.segments).into_iter().flatten().flatten();
        entries.filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let (segment, digest) = name.split_once('.')?;
            let whole = digest.len() == DIGEST_DIGITS && digest.bytes().all(|byte| byte.is_ascii_hexdigit());
            whole.then(|| Entry {
                segment: segment.to_owned(),
                path: entry.path(),
            })
        })
    }

    fn asked(&self, wal_segment_size: u32) -> Option<(TimelineId, u64)> {
        let name = std::fs::read_to_string(self.segments.join(ASKED)).ok()?;
        match WalFile::parse(&name, wal_segment_size)? {
            WalFile::Segment { timeline, number } => Some((timeline, number)),
            _ => None,
        }
    }

    fn try_busy(&self, segment: &str) -> Option<Busy> {
        let path = self.segments.join(format!("{segment}.lock"));
        let mut options = OpenOptions::new();
        let options = options.write(true).create(true).truncate(false).mode(0o600);
        let file = options.open(&path).ok()?;
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).ok()?;
        Some(Busy { _file: file, path })
    }
}

struct Entry {
    segment: String,
    path: PathBuf,
}

fn write(path: &Path, text: &str) -> std::io::Result<()> {
    let temporary = path.with_extension(format!("{}.tmp", std::process::id()));
    std::fs::write(&temporary, text)?;
    std::fs::rename(&temporary, path)
}

/// What to fetch ahead.
pub struct FetchAhead<'a> {
    pub place: Prefetched,
    pub copies: &'a [ClusterRepository],
    pub options: PlaceOptions,
    /// Bytes of segments that wait, at most; at least one segment.
    pub bytes: u64,
    /// Ends when recovery has asked for nothing for so long.
    pub idle: Duration,
    /// Whether the recovery that this is for still goes on.
    pub alive: &'a (dyn Fn() -> bool + Sync),
}

/// What is next.
struct Next {
    timeline: TimelineId,
    /// The last that recovery got.
    asked: u64,
    asked_at: Instant,
    number: u64,
    /// Not before this moment: no copy had it.
    not_before: Option<Instant>,
    alive_at: Instant,
    stop: bool,
    why: String,
}

/// Fetches what recovery will ask for, until it has ended, or does not ask any more, or something fails; then removes
/// what is left. Says why it ended.
pub fn fetch_ahead(work: &FetchAhead<'_>, fetcher: &Fetcher) -> String {
    work.place.sweep(fetcher);
    let size = work.options.wal_segment_size;
    let Some((timeline, asked)) = work.place.asked(size) else {
        return "recovery has asked for nothing".into();
    };
    let next = Mutex::new(Next {
        timeline,
        asked,
        asked_at: Instant::now(),
        number: asked.saturating_add(1),
        not_before: None,
        alive_at: Instant::now(),
        stop: false,
        why: String::new(),
    });
    let fitting = usize::try_from(BYTES_AT_ONCE_MAX / u64::from(size.max(1))).unwrap_or(1);
    std::thread::scope(|scope| {
        for _ in 0..THREADS.min(fitting).max(1) {
            scope.spawn(|| run(work, &next));
        }
    });
    work.place.remove(fetcher);
    next.into_inner().unwrap_or_else(PoisonError::into_inner).why
}

fn run(work: &FetchAhead<'_>, next: &Mutex<Next>) {
    loop {
        let step = {
            let mut next = next.lock().unwrap_or_else(PoisonError::into_inner);
            step(work, &mut next)
        };
        let (timeline, number) = match step {
            Step::End => return,
            Step::Wait => {
                std::thread::sleep(PAUSE);
                continue;
            }
            Step::Fetch(timeline, number) => (timeline, number),
        };
        let outcome = one(work, timeline, number);
        let mut next = next.lock().unwrap_or_else(PoisonError::into_inner);
        match outcome {
            Ok(true) => {}
            Ok(false) => {
                next.not_before = Some(Instant::now() + ABSENT_PAUSE);
                if next.timeline == timeline {
                    next.number = next.number.min(number);
                }
            }
            // Recovery will meet it itself, and say so.
            Err(why) => end(&mut next, why),
        }
    }
}

enum Step {
    Fetch(TimelineId, u64),
    Wait,
    End,
}

fn end(next: &mut Next, why: String) {
    if !next.stop {
        next.why = why;
    }
    next.stop = true;
}

fn step(work: &FetchAhead<'_>, next: &mut Next) -> Step {
    let size = work.options.wal_segment_size;
    if next.stop {
        return Step::End;
    }
    match work.place.asked(size) {
        Some((timeline, asked)) if (timeline, asked) != (next.timeline, next.asked) => {
            if timeline != next.timeline || asked < next.asked || asked >= next.number {
                next.number = asked.saturating_add(1);
                next.not_before = None;
            }
            (next.timeline, next.asked, next.asked_at) = (timeline, asked, Instant::now());
            // What recovery got otherwise, and what it no longer follows.
            let window = work.bytes / u64::from(size.max(1));
            let wanted: BTreeSet<String> = (asked.saturating_add(1)..=asked.saturating_add(window.max(1)))
                .map(|number| segment_name(timeline, number, size))
                .collect();
            for entry in work.place.entries() {
                if !wanted.contains(&entry.segment) {
                    let _ = std::fs::remove_file(entry.path);
                }
            }
        }
        Some(_) => {}
        None => end(next, "the folder is gone".into()),
    }
    if next.asked_at.elapsed() > work.idle {
        end(next, "recovery asks for nothing any more".into());
    }
    if next.alive_at.elapsed() > ALIVE_PAUSE {
        next.alive_at = Instant::now();
        if !(work.alive)() {
            end(next, "recovery has ended".into());
        }
    }
    if next.stop {
        return Step::End;
    }
    let window = (work.bytes / u64::from(size.max(1))).max(1);
    let absent = next.not_before.is_some_and(|moment| Instant::now() < moment);
    if absent || next.number > next.asked.saturating_add(window) {
        return Step::Wait;
    }
    next.number += 1;
    Step::Fetch(next.timeline, next.number - 1)
}

/// Whether some copy has it. An error says why no more should be fetched.
fn one(work: &FetchAhead<'_>, timeline: TimelineId, number: u64) -> Result<bool, String> {
    let size = work.options.wal_segment_size;
    let name = segment_name(timeline, number, size);
    if work.place.entries().any(|entry| entry.segment == name) {
        return Ok(true);
    }
    if !work.place.has_room(2 * u64::from(size)) {
        return Err("the file system of pg_wal is nearly full".into());
    }
    let Some(_busy) = work.place.try_busy(&name) else {
        return Ok(true);
    };
    let beside = work.place.segments.join(&name);
    for copy in work.copies {
        match fetch(copy, timeline, number, &name, &beside, &work.options) {
            Ok(Some(fetched)) => {
                let path = work.place.segments.join(format!("{name}.{}", fetched.digest));
                fetched.file.place(&path).map_err(|error| error.render())?;
                return Ok(true);
            }
            Ok(None) => {}
            Err(Failure::Here(error) | Failure::Copy(error)) => return Err(error.render()),
        }
    }
    Ok(false)
}
