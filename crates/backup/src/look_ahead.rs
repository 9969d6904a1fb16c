//! Pushes the segments that wait behind the one that the archiver asked for, several at once. `docs/design/0021`.
//!
//! Invariants: each file goes through [`push`](crate::wal_push::push) exactly as if the archiver had asked for it; a
//! note that it is durable is left only after that has succeeded; the first failure ends the work, and the call for
//! that file tells it; nothing waits here for ever: without work the process ends, and so it does when the server is
//! gone.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use diagnostic::{Error, Result};
use jiff::{SignedDuration, Timestamp};
use postgres::{TimelineId, segment_name};

use crate::room::Room;
use crate::spool::{Circumstances, FileIdentity, Outcome, Spool, Worker};
use crate::wal_push::{Copy, PushOptions, push_within};

/// Segments of all threads together are at most so many bytes, unless one alone is larger. A push holds its segment in
/// memory until it is compressed, and half of the threads do so at a time, while the others make theirs durable.
const BYTES_AT_ONCE_MAX: u64 = 32 << 20;
/// So many numbers behind the next expected one are tried: one that was archived meanwhile no longer waits.
const PROBES: u64 = 8;
/// How often a process without work looks again.
const PAUSE: Duration = Duration::from_millis(20);
/// The times of a file change in steps: what is written in the same step as the last change cannot be seen in them.
/// A file is read only when its last change is older.
const SETTLED_AFTER: SignedDuration = SignedDuration::from_millis(20);

/// What to push ahead.
pub struct AheadOptions<'a> {
    pub spool: &'a Spool,
    pub about: &'a Circumstances,
    /// Also names the data directory; its path is not used.
    pub push: &'a PushOptions,
    /// The folder of the segments, with `archive_status` in it.
    pub pg_wal: &'a Path,
    /// The first segment that may be waiting.
    pub first: (TimelineId, u64),
    /// Bytes.
    pub wal_segment_size: u32,
    /// Segments, at most.
    pub at_once: usize,
    /// What to say with each file, besides what its push says.
    pub warnings: &'a [String],
    /// Ends when nothing was to do for so long.
    pub idle: Duration,
    pub clock: &'a (dyn Fn() -> Timestamp + Sync),
}

/// What was done.
#[derive(Debug, Clone, Default)]
pub struct AheadResult {
    pub pushed: u64,
    /// What ended the work early.
    pub failure: Option<Error>,
}

/// The `.ready` file of a segment that waits.
pub fn ready_file(pg_wal: &Path, name: &str) -> PathBuf {
    pg_wal.join("archive_status").join(format!("{name}.ready"))
}

/// Pushes what waits, until nothing does for a while. The caller is the one process that does.
pub fn push_ahead(copies: &[Copy<'_>], options: &AheadOptions<'_>, worker: &Worker) -> AheadResult {
    let waits = |name: &str| ready_file(options.pg_wal, name).exists();
    options.spool.sweep(worker, waits);
    let fitting = BYTES_AT_ONCE_MAX / u64::from(options.wal_segment_size.max(1));
    let threads = options.at_once.min(usize::try_from(fitting).unwrap_or(1)).max(1);
    let work = Work {
        copies,
        options,
        room: Room::new(threads / 2),
        next: Mutex::new(options.first.1),
        last_found: Mutex::new(Instant::now()),
        busy: AtomicU64::new(0),
        pushed: AtomicU64::new(0),
        stop: AtomicBool::new(false),
        failure: Mutex::new(None),
    };
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| work.run());
        }
    });
    options.spool.sweep(worker, waits);
    AheadResult {
        pushed: work.pushed.into_inner(),
        failure: work.failure.into_inner().unwrap_or_else(PoisonError::into_inner),
    }
}

struct Work<'a> {
    copies: &'a [Copy<'a>],
    options: &'a AheadOptions<'a>,
    /// For the segments in memory.
    room: Room,
    /// The number to look for next. It only grows.
    next: Mutex<u64>,
    last_found: Mutex<Instant>,
    /// Threads that are pushing.
    busy: AtomicU64,
    pushed: AtomicU64,
    stop: AtomicBool,
    failure: Mutex<Option<Error>>,
}

impl Work<'_> {
    fn run(&self) {
        while !self.stop.load(Ordering::Relaxed) {
            if !self.server_runs() {
                return;
            }
            let Some(name) = self.take() else {
                let found = *self.last_found.lock().unwrap_or_else(PoisonError::into_inner);
                if self.busy.load(Ordering::Relaxed) == 0 && found.elapsed() > self.options.idle {
                    return;
                }
                std::thread::sleep(PAUSE);
                continue;
            };
            self.busy.fetch_add(1, Ordering::Relaxed);
            let pushed = self.push(&name);
            self.busy.fetch_sub(1, Ordering::Relaxed);
            *self.last_found.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
            match pushed {
                Ok(true) => {
                    self.pushed.fetch_add(1, Ordering::Relaxed);
                }
                Ok(false) => {}
                Err(error) => {
                    self.stop.store(true, Ordering::Relaxed);
                    self.failure
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .get_or_insert(error);
                }
            }
        }
    }

    /// A server that was stopped asks for nothing any more, and its directory may be about to be moved.
    fn server_runs(&self) -> bool {
        self.options.push.data_directory.join("postmaster.pid").exists()
    }

    /// The next segment that waits.
    fn take(&self) -> Option<String> {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let (timeline, size) = (self.options.first.0, self.options.wal_segment_size);
        for number in *next..next.saturating_add(PROBES) {
            let name = segment_name(timeline, number, size);
            if ready_file(self.options.pg_wal, &name).exists() {
                *next = number.saturating_add(1);
                return Some(name);
            }
        }
        None
    }

    /// Whether it was pushed here.
    fn push(&self, name: &str) -> Result<bool> {
        let AheadOptions {
            spool, about, clock, ..
        } = *self.options;
        // The archiver was faster.
        let Some(_busy) = spool.try_busy(name) else {
            return Ok(false);
        };
        let path = self.options.pg_wal.join(name);
        let Ok(file) = FileIdentity::at(&path) else {
            return Ok(false);
        };
        if !ready_file(self.options.pg_wal, name).exists() || spool.has(name, &file, about, clock()) {
            return Ok(false);
        }
        if let Some(changed) = file.changed_at() {
            let age = clock().duration_since(changed);
            if age < SETTLED_AFTER && age >= SignedDuration::ZERO {
                std::thread::sleep((SETTLED_AFTER - age).unsigned_abs());
            }
        }
        let options = PushOptions {
            path: path.clone(),
            ..self.options.push.clone()
        };
        match push_within(Some(&self.room), self.copies, &options, clock()) {
            // Replaced while we waited: it is durable, but this note could not tell it from what comes later.
            Ok(result) if result.identity != Some(file) => Ok(true),
            Ok(result) => {
                let durable = Outcome::Durable {
                    copies: result
                        .copies
                        .iter()
                        .filter(|copy| copy.stored.is_ok())
                        .map(|copy| copy.copy.clone())
                        .collect(),
                    warnings: [self.options.warnings, &result.warnings].concat(),
                };
                spool.leave(name, file, about, clock(), durable)?;
                Ok(true)
            }
            Err(error) => {
                // Without the note the call for the file meets the error itself.
                let _ = spool.leave(name, file, about, clock(), Outcome::of(&error));
                Err(error)
            }
        }
    }
}
