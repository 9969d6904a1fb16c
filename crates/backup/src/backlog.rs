//! WAL that waits to be archived: how much, since when, and how long the file system of `pg_wal` can still hold it.
//!
//! Everything is read from the data directory: `archive_status/NAME.ready` waits, `NAME.done` does not, and the time of
//! either is when PostgreSQL finished the file (renaming one to the other keeps it). Invariant: looking changes nothing,
//! and judging is a function of what was seen; nothing is ever dropped because it waits.

use std::path::Path;
use std::time::Duration;

use diagnostic::{Error, Result};
use jiff::{SignedDuration, Timestamp};
use postgres::WalFile;
use serde::Serialize;

/// The present rate is that of the last minutes.
const RATE_WINDOW: SignedDuration = SignedDuration::from_mins(10);
/// Fewer segments say nothing about a rate.
const RATE_SEGMENTS_MIN: u64 = 2;
/// With so few waiting, archiving keeps up, and WAL is recycled instead of filling the disk.
const FILES_BEHIND_MIN: u64 = 3;

/// What was seen.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Backlog {
    /// Files that wait, histories and the like included.
    pub files: u64,
    /// Of the segments among them.
    pub bytes: u64,
    /// The first in PostgreSQL's order of names, and when it was finished.
    pub oldest: Option<Waiting>,
    /// Left on the file system of `pg_wal`, for an ordinary account.
    pub free_bytes: Option<u64>,
    /// At which segments were finished of late.
    pub wal_bytes_per_second: Option<f64>,
}

/// A file that waits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Waiting {
    pub file: String,
    pub since: Timestamp,
}

/// When waiting WAL is worth a warning.
#[derive(Debug, Clone, Copy)]
pub struct BacklogLimits {
    /// More files than this,
    pub files: u64,
    /// one that waits for longer,
    pub age: Duration,
    /// or a file system that is full sooner.
    pub full_within: Duration,
}

impl Backlog {
    /// Looks into `pg_wal` of a data directory. `wal_segment_size` in bytes. Error: `file-read`.
    pub fn look(data_directory: &Path, wal_segment_size: u32, now: Timestamp) -> Result<Backlog> {
        let pg_wal = data_directory.join("pg_wal");
        let folder = pg_wal.join("archive_status");
        let failed = |error| {
            Error::io(
                "file-read",
                format!("cannot list \"{}\"", folder.display()),
                &error,
            )
        };
        let size = u64::from(wal_segment_size);
        let mut backlog = Backlog {
            files: 0,
            bytes: 0,
            oldest: None,
            free_bytes: rustix::fs::statvfs(&pg_wal)
                .ok()
                .map(|room| room.f_bavail.saturating_mul(room.f_frsize)),
            wal_bytes_per_second: None,
        };
        let (mut lately, mut earliest) = (0, now);
        for entry in std::fs::read_dir(&folder).map_err(failed)? {
            let name = entry.as_ref().map(std::fs::DirEntry::file_name);
            let name = name
                .ok()
                .and_then(|name| name.into_string().ok())
                .unwrap_or_default();
            let Some((file, state)) = name.rsplit_once('.') else {
                continue;
            };
            let waits = state == "ready";
            let Some(kind) = WalFile::parse(file, wal_segment_size).filter(|_| waits || state == "done")
            else {
                continue;
            };
            let modified = entry.and_then(|entry| entry.metadata()?.modified());
            let Some(finished) = modified.ok().and_then(|time| Timestamp::try_from(time).ok()) else {
                // Archived or recycled since the listing.
                continue;
            };
            let segment = matches!(kind, WalFile::Segment { .. });
            if segment && now.duration_since(finished) <= RATE_WINDOW {
                lately += 1;
                earliest = earliest.min(finished);
            }
            if !waits {
                continue;
            }
            backlog.files += 1;
            backlog.bytes += if segment { size } else { 0 };
            if backlog
                .oldest
                .as_ref()
                .is_none_or(|oldest| file < oldest.file.as_str())
            {
                backlog.oldest = Some(Waiting {
                    file: file.to_owned(),
                    since: finished,
                });
            }
        }
        let seconds = now.duration_since(earliest).as_secs_f64();
        if lately >= RATE_SEGMENTS_MIN && seconds > 0.0 {
            // The first one only marks the beginning.
            backlog.wal_bytes_per_second = Some((lately - 1) as f64 * size as f64 / seconds);
        }
        Ok(backlog)
    }

    /// How long until the file system of `pg_wal` is full if nothing is archived and WAL goes on as of late.
    pub fn seconds_until_full(&self) -> Option<f64> {
        let rate = self.wal_bytes_per_second.filter(|rate| *rate > 0.0)?;
        Some(self.free_bytes? as f64 / rate)
    }

    /// How long the oldest file has waited.
    pub fn age(&self, now: Timestamp) -> Option<Duration> {
        let waited = now.duration_since(self.oldest.as_ref()?.since);
        Some(Duration::try_from(waited).unwrap_or_default())
    }

    /// What a person should know: nothing while archiving keeps up.
    pub fn warnings(&self, limits: &BacklogLimits, now: Timestamp) -> Vec<String> {
        let mut warnings = Vec::new();
        let Some(oldest) = &self.oldest else {
            return warnings;
        };
        let age = self.age(now).unwrap_or_default();
        if self.files > limits.files || age > limits.age {
            warnings.push(format!(
                "archiving falls behind: {} WAL files ({} MiB) wait, the oldest, {}, for {} s",
                self.files,
                self.bytes >> 20,
                oldest.file,
                age.as_secs()
            ));
        }
        if let Some(seconds) = self.seconds_until_full()
            && self.files >= FILES_BEHIND_MIN
            && seconds < limits.full_within.as_secs_f64()
        {
            warnings.push(format!(
                "pg_wal has room for {} MiB more, which at the present {:.1} MiB/s of WAL is full in {} min; the server \
                 stops when it is",
                self.free_bytes.unwrap_or(0) >> 20,
                self.wal_bytes_per_second.unwrap_or(0.0) / f64::from(1 << 20),
                (seconds / 60.0).floor()
            ));
        }
        warnings
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u32 = 16 << 20;
    const LIMITS: BacklogLimits = BacklogLimits {
        files: 64,
        age: Duration::from_secs(300),
        full_within: Duration::from_secs(7200),
    };

    /// A data directory in which these status files were made so many seconds before `now`.
    fn directory(files: &[(&str, i64)], now: Timestamp) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        let folder = directory.path().join("pg_wal/archive_status");
        std::fs::create_dir_all(&folder).unwrap();
        for (name, seconds) in files {
            let file = std::fs::File::create(folder.join(name)).unwrap();
            let at = now - SignedDuration::from_secs(*seconds);
            file.set_modified(at.into()).unwrap();
        }
        directory
    }

    #[test]
    fn what_waits_is_counted_with_its_age_and_the_rate_at_which_wal_is_written() {
        let now = Timestamp::now();
        let files = [
            ("000000010000000000000003.done", 100),
            ("000000010000000000000004.ready", 75),
            ("000000010000000000000005.ready", 50),
            ("000000010000000000000006.ready", 25),
            ("00000002.history.ready", 1),
            ("000000010000000000000002.done", 9000),
            ("some.file", 1),
            ("000000010000000000000001.00000028.backup.done", 3),
        ];
        let directory = directory(&files, now);
        let backlog = Backlog::look(directory.path(), SIZE, now).unwrap();
        assert_eq!((backlog.files, backlog.bytes), (4, 3 * u64::from(SIZE)));
        let oldest = backlog.oldest.clone().unwrap();
        assert_eq!(oldest.file, "000000010000000000000004");
        assert_eq!(backlog.age(now).unwrap().as_secs(), 75);
        // Three segments since the first of the last minutes, in 100 s.
        let rate = backlog.wal_bytes_per_second.unwrap();
        assert!((rate - 3.0 * f64::from(SIZE) / 100.0).abs() < 1000.0, "{rate}");
        assert!(backlog.free_bytes.unwrap() > 0);
    }

    #[test]
    fn a_warning_comes_with_number_age_and_room_and_not_while_archiving_keeps_up() {
        let now: Timestamp = "2026-11-20T12:00:00Z".parse().unwrap();
        let backlog = |files: u64, seconds: i64, free: u64| Backlog {
            files,
            bytes: files * u64::from(SIZE),
            oldest: (files > 0).then(|| Waiting {
                file: "000000010000000000000004".into(),
                since: now - SignedDuration::from_secs(seconds),
            }),
            free_bytes: Some(free),
            wal_bytes_per_second: Some(f64::from(SIZE)),
        };
        let quiet = Vec::<String>::new();
        assert_eq!(backlog(0, 0, 0).warnings(&LIMITS, now), quiet);
        assert_eq!(backlog(2, 3, 1 << 20).warnings(&LIMITS, now), quiet);
        assert_eq!(backlog(64, 300, 1 << 50).warnings(&LIMITS, now), quiet);
        let warned = backlog(65, 3, 1 << 50).warnings(&LIMITS, now);
        assert_eq!(
            warned,
            [
                "archiving falls behind: 65 WAL files (1040 MiB) wait, the oldest, 000000010000000000000004, for 3 s"
            ]
        );
        assert_eq!(backlog(1, 301, 1 << 50).warnings(&LIMITS, now).len(), 1);
        let full = backlog(3, 3, 10 << 30).warnings(&LIMITS, now);
        assert_eq!(
            full,
            [
                "pg_wal has room for 10240 MiB more, which at the present 16.0 MiB/s of WAL is full in 10 min; the server stops \
              when it is"
            ]
        );
    }
}
