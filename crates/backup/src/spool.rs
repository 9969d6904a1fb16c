//! What a push that ran ahead leaves for the archive_command that will ask for the file: a small note that it is
//! durable, or why it could not be pushed. `docs/design/0021`.
//!
//! Invariants: a note counts only for the very file that was read (device, inode, size, times of its last change), for
//! the same cluster, data directory, policy and program, in the same boot of the machine, and for an hour; whatever
//! else is found is as if it were not there, and the file is pushed. So a note needs no sync: after a crash of the
//! machine none counts. A note appears under its name complete. The folder belongs to this account alone; nothing in
//! PostgreSQL's data directory is written.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use diagnostic::{Error, Result};
use jiff::{SignedDuration, Timestamp};
use postgres::SystemIdentifier;
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

/// An older note is left alone: by then the archiver has long asked, or something else is wrong.
const NOTE_AGE_MAX: SignedDuration = SignedDuration::from_hours(1);
/// A failure is told to the call that comes at once; a later one tries itself.
const FAILURE_AGE_MAX: SignedDuration = SignedDuration::from_secs(10);
/// A note is a few lines.
const NOTE_BYTES_MAX: u64 = 1 << 20;
/// So long a call waits for another process that is pushing the same file, before it pushes the file itself.
const BUSY_WAIT_MAX: Duration = Duration::from_secs(120);
/// Locked by the process that pushes ahead.
const WORKER_LOCK: &str = "worker.lock";
/// What that process wrote to standard error.
const WORKER_LOG: &str = "worker.log";
/// Its time is that of the last warning.
const WARNED: &str = "warned";

/// Which file it was. Writing to it, replacing it and renaming it all change this.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileIdentity {
    device: u64,
    inode: u64,
    size: u64,
    /// Seconds and nanoseconds.
    modified: (i64, i64),
    changed: (i64, i64),
}

impl FileIdentity {
    pub(crate) fn of(metadata: &std::fs::Metadata) -> FileIdentity {
        FileIdentity {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// Of the file at `path`; an error of the operating system otherwise.
    pub fn at(path: &Path) -> std::io::Result<FileIdentity> {
        std::fs::metadata(path).map(|metadata| FileIdentity::of(&metadata))
    }

    /// When it was last written or renamed.
    pub(crate) fn changed_at(&self) -> Option<Timestamp> {
        let (seconds, nanoseconds) = self.changed.max(self.modified);
        Timestamp::new(seconds, i32::try_from(nanoseconds).ok()?).ok()
    }
}

/// On whose behalf, and where: a note of other circumstances does not count.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Circumstances {
    /// Of this program.
    pub version: String,
    /// Names this run of the operating system.
    pub boot: String,
    pub system: SystemIdentifier,
    /// Device and inode.
    pub data_directory: (u64, u64),
    /// Stands for the copies, how many of them must acknowledge, and whatever else decides what "durable" means.
    pub policy: u64,
}

/// What became of a file that was pushed ahead.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// In these copies, as many as the policy says; and what a person should know all the same.
    Durable {
        copies: Vec<String>,
        warnings: Vec<String>,
    },
    Failed {
        code: String,
        message: String,
        causes: Vec<String>,
        detail: Option<String>,
        hint: Option<String>,
    },
}

impl Outcome {
    pub(crate) fn of(error: &Error) -> Outcome {
        let json = error.to_json();
        let causes = json["error"]["causes"].as_array();
        Outcome::Failed {
            code: error.code().to_owned(),
            message: error.message().to_owned(),
            causes: causes
                .into_iter()
                .flatten()
                .filter_map(|cause| cause.as_str().map(str::to_owned))
                .collect(),
            detail: error.detail_text().map(str::to_owned),
            hint: error.hint_text().map(str::to_owned),
        }
    }

    /// The failure as the error that it was.
    fn into_result(self) -> Result<Acknowledged> {
        match self {
            Outcome::Durable { copies, warnings } => Ok(Acknowledged { copies, warnings }),
            Outcome::Failed {
                code,
                message,
                causes,
                detail,
                hint,
            } => {
                // Codes are static texts; this process ends with the error, so that leaking one is no leak.
                let mut error = Error::new(Box::leak(code.into_boxed_str()), message);
                for cause in causes.into_iter().map(std::io::Error::other) {
                    error = error.caused_by(&cause);
                }
                if let Some(detail) = detail {
                    error = error.detail(detail);
                }
                Err(match hint {
                    Some(hint) => error.hint(hint),
                    None => error,
                })
            }
        }
    }
}

/// A file that was pushed ahead and is durable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acknowledged {
    /// The copies that hold it.
    pub copies: Vec<String>,
    pub warnings: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Note {
    about: Circumstances,
    file: FileIdentity,
    at: Timestamp,
    outcome: Outcome,
}

impl Note {
    /// `None`: torn, or another version's; as if it were not there.
    fn parse(bytes: &[u8]) -> Option<Note> {
        serde_json::from_slice(bytes).ok()
    }

    fn is_fresh(&self, now: Timestamp) -> bool {
        let age = now.duration_since(self.at);
        let limit = match self.outcome {
            Outcome::Durable { .. } => NOTE_AGE_MAX,
            Outcome::Failed { .. } => FAILURE_AGE_MAX,
        };
        age >= SignedDuration::ZERO && age <= limit
    }
}

/// A note as it is read, for [`crate::readers`].
pub(crate) fn read_note(bytes: &[u8]) {
    if let Some(note) = Note::parse(bytes) {
        for now in [Timestamp::MIN, Timestamp::UNIX_EPOCH, Timestamp::MAX] {
            std::hint::black_box((note.is_fresh(now), note.file.changed_at()));
        }
        if let Err(error) = note.outcome.into_result() {
            std::hint::black_box(error.render());
        }
    }
}

/// The folder of notes of one data directory.
#[derive(Debug, Clone)]
pub struct Spool {
    folder: PathBuf,
}

/// Held while a file is being pushed; released when dropped, or when the process ends in whatever way.
#[derive(Debug)]
pub struct Busy {
    _file: File,
    path: PathBuf,
}

impl Drop for Busy {
    fn drop(&mut self) {
        // Whoever waits holds the file open. A third process that makes the name anew pushes the file a second time,
        // which is recognised.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Held by the one process that pushes ahead.
#[derive(Debug)]
pub struct Worker {
    _file: File,
}

impl Spool {
    /// Opens the folder, and makes it and those above it if need be. Errors: `spool-unusable`.
    pub fn open(folder: &Path) -> Result<Spool> {
        let unusable = |what: String| {
            Error::new(
                "spool-unusable",
                format!("cannot use \"{}\" as the spool", folder.display()),
            )
            .detail(what)
            .hint(
                "Set spool in the cluster's section to a folder that belongs to the server's account alone.",
            )
        };
        let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
        made.map_err(|error| unusable(error.to_string()))?;
        let metadata = std::fs::symlink_metadata(folder).map_err(|error| unusable(error.to_string()))?;
        if !metadata.is_dir() || metadata.uid() != rustix::process::geteuid().as_raw() {
            return Err(unusable("It is not a folder of this account's.".into()));
        }
        if metadata.mode() & 0o022 != 0 {
            return Err(unusable("Others may write to it.".into()));
        }
        Ok(Spool {
            folder: folder.to_path_buf(),
        })
    }

    /// Where the process that pushes ahead writes what it has to say.
    pub fn worker_log(&self) -> PathBuf {
        self.folder.join(WORKER_LOG)
    }

    /// Whether a warning is due again: says yes once in `every`, for all processes together.
    pub fn warning_due(&self, every: Duration, now: Timestamp) -> bool {
        let path = self.folder.join(WARNED);
        let last = std::fs::metadata(&path).and_then(|metadata| metadata.modified());
        let elapsed = last.ok().and_then(|last| Timestamp::try_from(last).ok());
        let elapsed = elapsed.and_then(|last| Duration::try_from(now.duration_since(last)).ok());
        elapsed.is_none_or(|elapsed| elapsed >= every) && std::fs::write(&path, b"").is_ok()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.note"))
    }

    /// The note that counts for this file as it is now, taken out of the spool: it is told once. An error is that of
    /// the push that ran ahead.
    pub fn take(
        &self,
        name: &str,
        file: &FileIdentity,
        about: &Circumstances,
        now: Timestamp,
    ) -> Option<Result<Acknowledged>> {
        let note = self.read(name, file, about, now)?;
        if std::fs::remove_file(self.path(name)).is_err() {
            // It would be told again, and the file system is in an odd state: better push.
            return None;
        }
        Some(note.outcome.into_result())
    }

    /// Whether there is a note that would count.
    pub(crate) fn has(&self, name: &str, file: &FileIdentity, about: &Circumstances, now: Timestamp) -> bool {
        self.read(name, file, about, now)
            .is_some_and(|note| matches!(note.outcome, Outcome::Durable { .. }))
    }

    fn read(&self, name: &str, file: &FileIdentity, about: &Circumstances, now: Timestamp) -> Option<Note> {
        let path = self.path(name);
        let metadata = std::fs::symlink_metadata(&path).ok()?;
        if !metadata.is_file() || metadata.len() > NOTE_BYTES_MAX {
            return None;
        }
        let note = Note::parse(&std::fs::read(&path).ok()?)?;
        (note.is_fresh(now) && note.about == *about && note.file == *file).then_some(note)
    }

    /// Leaves a note. Only what is durable may be called so.
    pub(crate) fn leave(
        &self,
        name: &str,
        file: FileIdentity,
        about: &Circumstances,
        at: Timestamp,
        outcome: Outcome,
    ) -> Result<()> {
        let note = Note {
            about: about.clone(),
            file,
            at,
            outcome,
        };
        let path = self.path(name);
        let temporary = self.folder.join(format!("{name}.{}.tmp", std::process::id()));
        let write = || -> std::io::Result<()> {
            let bytes = serde_json::to_vec(&note).map_err(std::io::Error::other)?;
            let mut options = OpenOptions::new();
            let options = options.write(true).create(true).truncate(true).mode(0o600);
            options.open(&temporary)?.write_all(&bytes)?;
            std::fs::rename(&temporary, &path)
        };
        write().map_err(|error| {
            let _ = std::fs::remove_file(&temporary);
            Error::io(
                "spool-write",
                format!("cannot write \"{}\"", path.display()),
                &error,
            )
        })
    }

    fn lock_file(&self, name: &str) -> Option<File> {
        let mut options = OpenOptions::new();
        let options = options.write(true).create(true).truncate(false).mode(0o600);
        options.open(self.folder.join(name)).ok()
    }

    /// `None`: another process or thread is pushing the file.
    pub(crate) fn try_busy(&self, name: &str) -> Option<Busy> {
        let lock = format!("{name}.lock");
        let file = self.lock_file(&lock)?;
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).ok()?;
        Some(Busy {
            _file: file,
            path: self.folder.join(lock),
        })
    }

    /// Waits until nobody else is pushing the file. `None` when that takes too long or cannot be told; the lock only
    /// spares work, so that the caller may go on without it.
    pub fn wait_busy(&self, name: &str) -> Option<Busy> {
        let lock = format!("{name}.lock");
        let file = self.lock_file(&lock)?;
        let began = Instant::now();
        loop {
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {
                    return Some(Busy {
                        _file: file,
                        path: self.folder.join(lock),
                    });
                }
                Err(rustix::io::Errno::WOULDBLOCK) if began.elapsed() < BUSY_WAIT_MAX => {
                    let waited = began.elapsed();
                    std::thread::sleep(
                        (waited / 16).clamp(Duration::from_millis(1), Duration::from_millis(50)),
                    );
                }
                Err(_) => return None,
            }
        }
    }

    /// Becomes the one process that pushes ahead; `None` when there is one.
    pub fn try_worker(&self) -> Option<Worker> {
        let file = self.lock_file(WORKER_LOCK)?;
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).ok()?;
        Some(Worker { _file: file })
    }

    /// Removes the notes of files that no longer wait, and what killed processes left. `waits` says of a file's name
    /// whether it still does.
    pub(crate) fn sweep(&self, _worker: &Worker, waits: impl Fn(&str) -> bool) {
        let Ok(entries) = std::fs::read_dir(&self.folder) else {
            return;
        };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let Some((file, kind)) = name.to_str().and_then(|name| name.split_once('.')) else {
                continue;
            };
            let stale = match kind {
                "note" | "lock" => file != "worker" && !waits(file),
                // The only writer of these was a process that pushed ahead, and that is us now.
                kind => kind.ends_with(".tmp"),
            };
            if stale {
                match std::fs::remove_file(entry.path()) {
                    Err(error) if error.kind() != ErrorKind::NotFound => return,
                    _ => {}
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: &str = "000000010000000000000007";

    fn about() -> Circumstances {
        Circumstances {
            version: "1".into(),
            boot: "b".into(),
            system: SystemIdentifier(7),
            data_directory: (1, 2),
            policy: 3,
        }
    }

    fn durable() -> Outcome {
        Outcome::Durable {
            copies: vec!["local".into()],
            warnings: Vec::new(),
        }
    }

    fn spool() -> (tempfile::TempDir, Spool, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let spool = Spool::open(&directory.path().join("a/spool")).unwrap();
        let file = directory.path().join(NAME);
        std::fs::write(&file, b"segment").unwrap();
        (directory, spool, file)
    }

    #[test]
    fn a_note_is_told_once_and_only_for_the_very_file_and_circumstances() {
        let (_directory, spool, file) = spool();
        let now = Timestamp::now();
        let was = FileIdentity::at(&file).unwrap();
        let leave = || spool.leave(NAME, was, &about(), now, durable()).unwrap();
        leave();
        type Change = fn(&mut Circumstances);
        let changes: [Change; 5] = [
            |about| about.version.push('x'),
            |about| about.boot.push('x'),
            |about| about.system.0 += 1,
            |about| about.data_directory.1 += 1,
            |about| about.policy += 1,
        ];
        for change in changes {
            let mut other = about();
            change(&mut other);
            assert!(spool.take(NAME, &was, &other, now).is_none(), "{other:?}");
        }
        let late = now + SignedDuration::from_secs(3601);
        let early = now - SignedDuration::from_secs(1);
        assert!(spool.take(NAME, &was, &about(), late).is_none());
        assert!(spool.take(NAME, &was, &about(), early).is_none());
        assert!(
            spool
                .take("000000010000000000000008", &was, &about(), now)
                .is_none()
        );
        assert_eq!(
            spool.take(NAME, &was, &about(), now).unwrap().unwrap().copies,
            ["local"]
        );
        assert!(spool.take(NAME, &was, &about(), now).is_none(), "told twice");

        // The same name, the same length, other content.
        leave();
        std::thread::sleep(Duration::from_millis(20));
        std::fs::write(&file, b"SEGMENT").unwrap();
        assert!(
            spool
                .take(NAME, &FileIdentity::at(&file).unwrap(), &about(), now)
                .is_none()
        );
        // Replaced by a copy that pretends to be as old.
        std::fs::remove_file(&file).unwrap();
        std::fs::write(&file, b"SEGMENT").unwrap();
        let modified = std::time::UNIX_EPOCH + Duration::new(was.modified.0 as u64, was.modified.1 as u32);
        File::options()
            .write(true)
            .open(&file)
            .unwrap()
            .set_modified(modified)
            .unwrap();
        assert!(
            spool
                .take(NAME, &FileIdentity::at(&file).unwrap(), &about(), now)
                .is_none()
        );
    }

    #[test]
    fn a_failure_is_told_as_it_was_and_for_a_moment_only() {
        let (_directory, spool, file) = spool();
        let now = Timestamp::now();
        let was = FileIdentity::at(&file).unwrap();
        let failure = Error::new("store-full", "cannot create object \"x\"")
            .caused_by(&std::io::Error::other("no space"))
            .detail("d")
            .hint("Make room.");
        let leave = || {
            spool
                .leave(NAME, was, &about(), now, Outcome::of(&failure))
                .unwrap()
        };
        leave();
        assert!(!spool.has(NAME, &was, &about(), now));
        let told = spool.take(NAME, &was, &about(), now).unwrap().unwrap_err();
        assert_eq!(told.render(), failure.render());
        leave();
        let later = now + SignedDuration::from_secs(11);
        assert!(spool.take(NAME, &was, &about(), later).is_none());
    }

    #[test]
    fn a_torn_note_and_a_folder_that_others_may_write_to_count_for_nothing() {
        use std::os::unix::fs::PermissionsExt;
        let (directory, spool, file) = spool();
        let now = Timestamp::now();
        let was = FileIdentity::at(&file).unwrap();
        spool.leave(NAME, was, &about(), now, durable()).unwrap();
        let whole = std::fs::read(spool.path(NAME)).unwrap();
        for length in [0, 1, whole.len() / 2, whole.len() - 1] {
            std::fs::write(spool.path(NAME), &whole[..length]).unwrap();
            assert!(spool.take(NAME, &was, &about(), now).is_none(), "{length}");
        }
        let folder = directory.path().join("a/spool");
        std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o777)).unwrap();
        assert_eq!(Spool::open(&folder).unwrap_err().code(), "spool-unusable");
    }

    #[test]
    fn a_warning_is_due_once_in_a_while() {
        let (_directory, spool, _) = spool();
        let minute = Duration::from_secs(60);
        assert!(spool.warning_due(minute, Timestamp::now()));
        assert!(!spool.warning_due(minute, Timestamp::now()));
        assert!(spool.warning_due(minute, Timestamp::now() + SignedDuration::from_secs(61)));
    }

    #[test]
    fn one_worker_and_one_pusher_of_a_file_at_a_time_and_what_was_left_is_swept() {
        let (_directory, spool, file) = spool();
        let worker = spool.try_worker().unwrap();
        assert!(spool.try_worker().is_none());
        let busy = spool.try_busy(NAME).unwrap();
        assert!(spool.try_busy(NAME).is_none());
        let waiting = std::thread::scope(|scope| {
            let waiting = scope.spawn(|| spool.wait_busy(NAME));
            std::thread::sleep(Duration::from_millis(30));
            drop(busy);
            waiting.join().unwrap()
        });
        assert!(waiting.is_some());
        drop(waiting);

        let was = FileIdentity::at(&file).unwrap();
        for name in [NAME, "000000010000000000000009"] {
            spool
                .leave(name, was, &about(), Timestamp::now(), durable())
                .unwrap();
        }
        std::fs::write(spool.folder.join(format!("{NAME}.99.tmp")), b"{").unwrap();
        spool.sweep(&worker, |name| name == NAME);
        let mut left: Vec<_> = std::fs::read_dir(&spool.folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        assert_eq!(left, [format!("{NAME}.note"), "worker.lock".to_string()]);
        drop(worker);
        assert!(spool.try_worker().is_some());
    }
}
