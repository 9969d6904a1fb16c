//! Serving WAL to recovery: one file, whole, in its place, or the certainty that there is none. Hard rules 20
//! and 27.
//!
//! Invariants: the file appears under its final name by renaming, complete and verified; it is never linked
//! to anything that is kept. [`PlacedWal::Absent`] means that *every* copy answered, none has the file, and
//! none has a later segment of that timeline. Everything else is an error, which the caller turns into an
//! exit code that stops recovery.

use std::ffi::{OsStr, OsString};
use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use diagnostic::{Error, Result};
use postgres::{ControlFile, SegmentHeader, SystemIdentifier, TimelineId, WalFile, segment_name};
use repository::{ClusterRepository, WalFileKind};
use serde::{Deserialize, Serialize};

/// Whose WAL is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlaceOptions {
    /// Of the data directory that recovers: see [`identify`].
    pub system: SystemIdentifier,
    /// Bytes.
    pub wal_segment_size: u32,
}

/// The file is in its place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placed {
    /// The copy it came from, by its URL.
    pub copy: String,
    pub bytes: u64,
    /// Copies that could not be read before it was found, with their errors.
    pub failed: Vec<String>,
}

/// The file does not exist.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Absent {
    /// The copies that said so.
    pub copies: Vec<String>,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum PlacedWal {
    Placed(Placed),
    Absent(Absent),
}

/// System identifier and segment size of a data directory (recovery's working directory). Errors:
/// `control-file-read`, `control-file-damaged`.
pub fn identify(data_directory: &Path) -> Result<PlaceOptions> {
    let path = data_directory.join("global/pg_control");
    let bytes = std::fs::read(&path).map_err(|error| {
        Error::io(
            "control-file-read",
            format!("cannot read \"{}\"", path.display()),
            &error,
        )
    })?;
    let control = ControlFile::parse(&bytes)?;
    Ok(PlaceOptions {
        system: control.system_identifier,
        wal_segment_size: control.wal_segment_size,
    })
}

/// Puts the file that recovery asks for (`%f`) where it wants it (`%p`).
///
/// Errors: `wal-file-name`, `wal-gap` (later segments exist), `wal-unavailable` (a copy could not be asked
/// and none has it), `wal-segment-name` (its content is another segment's), `history-ambiguous`, those of
/// reading and writing.
pub fn place_wal(
    file: &str,
    destination: &Path,
    copies: &[ClusterRepository],
    options: &PlaceOptions,
) -> Result<PlacedWal> {
    if copies.is_empty() {
        return Err(Error::usage(
            "copy-missing",
            "no copy is configured to read WAL from",
        ));
    }
    match WalFile::parse(file, options.wal_segment_size) {
        Some(WalFile::Segment { timeline, number }) => {
            segment(timeline, number, destination, copies, options)
        }
        Some(WalFile::History { .. }) => whole_file(file, WalFileKind::History, destination, copies, options),
        Some(WalFile::BackupHistory { .. }) => {
            whole_file(file, WalFileKind::Label, destination, copies, options)
        }
        Some(WalFile::Partial { .. }) | None => Err(Error::usage(
            "wal-file-name",
            format!(
                "\"{}\" is not a file that recovery asks for",
                file.escape_default()
            ),
        )
        .hint("Use it as restore_command: `pgproof wal get %f %p`.")),
    }
}

fn segment(
    timeline: TimelineId,
    number: u64,
    destination: &Path,
    copies: &[ClusterRepository],
    options: &PlaceOptions,
) -> Result<PlacedWal> {
    let name = segment_name(timeline, number, options.wal_segment_size);
    let mut failed: Vec<(String, Error)> = Vec::new();
    let mut absent = Vec::new();
    for copy in copies {
        let url = copy.repository().store().url();
        match from_copy(copy, timeline, number, &name, destination, options) {
            Ok(Some(bytes)) => {
                let failed = failed
                    .iter()
                    .map(|(url, error)| format!("{url}: {error}"))
                    .collect();
                return Ok(PlacedWal::Placed(Placed {
                    copy: url,
                    bytes,
                    failed,
                }));
            }
            Ok(None) => absent.push(url),
            // Our own disk is not a copy's fault; another copy will not help.
            Err(Failure::Here(error)) => return Err(error),
            Err(Failure::Copy(error)) => failed.push((url, error)),
        }
    }
    if let Some((url, error)) = failed.into_iter().next() {
        return Err(unavailable(&name, &url, error));
    }
    for copy in copies {
        let newest = copy
            .newest_segment(options.system, timeline, options.wal_segment_size)
            .map_err(|error| unavailable(&name, &copy.repository().store().url(), error))?;
        if let Some(newest) = newest.filter(|newest| newest.number > number) {
            let later = segment_name(timeline, newest.number, options.wal_segment_size);
            return Err(Error::new(
                "wal-gap",
                format!("WAL segment {name} is in no copy, and later ones are"),
            )
            .detail(format!(
                "The newest archived segment of timeline {timeline} is {later}."
            ))
            .hint(format!(
                "If the segment is still in the primary's pg_wal, run `pgproof wal push {name}` \
                     there; otherwise \
                     restore to a point before the gap."
            )));
        }
    }
    all_answered(&name, copies)?;
    Ok(PlacedWal::Absent(Absent { copies: absent }))
}

/// Nothing was found in any copy; this makes sure that each was there to be looked at.
fn all_answered(name: &str, copies: &[ClusterRepository]) -> Result<()> {
    for copy in copies {
        copy.repository()
            .still_there()
            .map_err(|error| unavailable(name, &copy.repository().store().url(), error))?;
    }
    Ok(())
}

pub(crate) enum Failure {
    /// Writing the file failed.
    Here(Error),
    /// The copy could not be read, or holds something wrong.
    Copy(Error),
}

fn from_copy(
    copy: &ClusterRepository,
    timeline: TimelineId,
    number: u64,
    name: &str,
    destination: &Path,
    options: &PlaceOptions,
) -> Result<Option<u64>, Failure> {
    let Some(fetched) = fetch(copy, timeline, number, name, destination, options)? else {
        return Ok(None);
    };
    fetched.file.place(destination).map_err(Failure::Here)?;
    Ok(Some(fetched.bytes))
}

/// A whole, verified segment in a file beside its destination; removed unless it is placed.
pub(crate) struct Fetched {
    pub(crate) file: Temporary,
    /// As in the object's name.
    pub(crate) digest: String,
    pub(crate) bytes: u64,
}

/// `None`: the copy does not have it.
pub(crate) fn fetch(
    copy: &ClusterRepository,
    timeline: TimelineId,
    number: u64,
    name: &str,
    destination: &Path,
    options: &PlaceOptions,
) -> Result<Option<Fetched>, Failure> {
    let size = options.wal_segment_size;
    let Some(object) = copy
        .get_segment(options.system, timeline, number, size)
        .map_err(Failure::Copy)?
    else {
        return Ok(None);
    };
    let mut file = Temporary::create(destination).map_err(Failure::Here)?;
    let read = copy.read_segment(&object, &mut file);
    if let Some(error) = file.failure.take() {
        return Err(Failure::Here(write_error(destination, &error)));
    }
    let bytes = read.map_err(Failure::Copy)?;
    check_first_page(&file.first, bytes, timeline, number, name, options).map_err(Failure::Copy)?;
    Ok(Some(Fetched {
        file,
        digest: object.digest,
        bytes,
    }))
}

/// Whether a file of so many bytes that begins so is the segment of that name. Error: `wal-segment-name`.
pub(crate) fn check_first_page(
    first: &[u8],
    bytes: u64,
    timeline: TimelineId,
    number: u64,
    name: &str,
    options: &PlaceOptions,
) -> Result<()> {
    let wrong = |what: String| {
        Error::new(
            "wal-segment-name",
            format!("WAL segment {name} holds something else"),
        )
        .detail(what)
    };
    let size = options.wal_segment_size;
    let header = SegmentHeader::parse(first)?;
    if bytes != u64::from(size) {
        return Err(wrong(format!("It has {bytes} bytes instead of {size}.")));
    }
    if header.number() != number || header.system_identifier != options.system || header.timeline > timeline {
        return Err(wrong(format!(
            "Its first page says system identifier {}, timeline {}, address {}.",
            header.system_identifier, header.timeline, header.page_address
        )));
    }
    Ok(())
}

/// History files: small, and wrong in a costly way when two of one name differ.
fn whole_file(
    name: &str,
    kind: WalFileKind,
    destination: &Path,
    copies: &[ClusterRepository],
    options: &PlaceOptions,
) -> Result<PlacedWal> {
    let mut found: Option<(String, Vec<u8>)> = None;
    let mut failed: Vec<(String, Error)> = Vec::new();
    let mut absent = Vec::new();
    for copy in copies {
        let url = copy.repository().store().url();
        match copy.get_file(options.system, kind, name) {
            Ok(contents) if contents.is_empty() => absent.push(url),
            Ok(contents) => {
                for content in contents {
                    match &found {
                        Some((_, other)) if *other != content => {
                            return Err(Error::new(
                                "history-ambiguous",
                                format!(
                                    "{name} is archived with \
                             different contents"
                                ),
                            )
                            .detail("Two servers were promoted without knowing of each other.")
                            .hint(
                                "Restore with --timeline naming a timeline whose history is one, or \
                                 take a new backup.",
                            ));
                        }
                        Some(_) => {}
                        None => found = Some((url.clone(), content)),
                    }
                }
            }
            Err(error) => failed.push((url, error)),
        }
    }
    match (found, failed.into_iter().next()) {
        (Some((copy, content)), first_failure) => {
            let mut file = Temporary::create(destination)?;
            file.write_all(&content)
                .map_err(|error| write_error(destination, &error))?;
            file.place(destination)?;
            let failed = first_failure
                .map(|(url, error)| format!("{url}: {error}"))
                .into_iter()
                .collect();
            Ok(PlacedWal::Placed(Placed {
                copy,
                bytes: content.len() as u64,
                failed,
            }))
        }
        (None, Some((url, error))) => Err(unavailable(name, &url, error)),
        (None, None) => {
            all_answered(name, copies)?;
            Ok(PlacedWal::Absent(Absent { copies: absent }))
        }
    }
}

fn unavailable(name: &str, url: &str, error: Error) -> Error {
    let detail = format!("It may be in the copy at {url}, which could not be read: {error}.");
    let code_detail = error
        .detail_text()
        .map(|text| format!("{detail}\n{text}"))
        .unwrap_or(detail);
    error
        .context(format!("cannot tell whether WAL file {name} exists"))
        .detail(code_detail)
}

/// A file beside its final place; removed unless it is placed.
pub(crate) struct Temporary {
    file: std::fs::File,
    path: PathBuf,
    placed: bool,
    /// The first bytes, for the header.
    first: Vec<u8>,
    /// A failed write, kept: the reader of a copy would tell it as its own.
    failure: Option<std::io::Error>,
}

pub(crate) const HEADER_BYTES: usize = 64;

impl Temporary {
    fn create(destination: &Path) -> Result<Temporary> {
        let mut random = [0; 8];
        getrandom::fill(&mut random)
            .map_err(|error| Error::new("random", "cannot get random bytes").detail(error.to_string()))?;
        let folder = destination.parent().unwrap_or(Path::new("."));
        let prefix = temporary_prefix(destination);
        remove_leftovers(folder, &prefix);
        let mut name = prefix;
        name.push(format!("{:016x}.tmp", u64::from_le_bytes(random)));
        let path = folder.join(name);
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .map_err(|error| write_error(&path, &error))?;
        // Says that somebody is at it; where the file system knows no locks, so be it.
        let _ = file.try_lock();
        Ok(Temporary {
            file,
            path,
            placed: false,
            first: Vec::with_capacity(HEADER_BYTES),
            failure: None,
        })
    }

    /// Not synced: after a crash recovery asks again for every file.
    pub(crate) fn place(mut self, destination: &Path) -> Result<()> {
        std::fs::rename(&self.path, destination).map_err(|error| write_error(destination, &error))?;
        self.placed = true;
        Ok(())
    }
}

impl Write for Temporary {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let wanted = HEADER_BYTES.saturating_sub(self.first.len()).min(bytes.len());
        self.first
            .extend_from_slice(bytes.get(..wanted).unwrap_or_default());
        match self.file.write_all(bytes) {
            Ok(()) => Ok(bytes.len()),
            Err(error) => {
                let told = std::io::Error::new(error.kind(), error.to_string());
                self.failure = Some(error);
                Err(told)
            }
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.placed {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn temporary_prefix(destination: &Path) -> OsString {
    let mut prefix = OsString::from(".pgproof-");
    prefix.push(destination.file_name().unwrap_or_default());
    prefix.push("-");
    prefix
}

/// Removes what runs that were killed have left for the same destination. One that still runs holds a lock.
fn remove_leftovers(folder: &Path, prefix: &OsStr) {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let name = name.as_encoded_bytes();
        if !name.starts_with(prefix.as_encoded_bytes()) || !name.ends_with(b".tmp") {
            continue;
        }
        let free = OpenOptions::new()
            .write(true)
            .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits() as i32)
            .open(entry.path())
            .is_ok_and(|file| file.try_lock().is_ok());
        if free {
            // Whatever stays is met again by the next run.
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

fn write_error(path: &Path, error: &std::io::Error) -> Error {
    Error::io("wal-place", format!("cannot write \"{}\"", path.display()), error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_placed_leaves_nothing_behind() {
        let scratch = tempfile::tempdir().unwrap();
        let destination = scratch.path().join("RECOVERYXLOG");
        let mut file = Temporary::create(&destination).unwrap();
        file.write_all(&[1; 100]).unwrap();
        assert_eq!(file.first.len(), HEADER_BYTES);
        drop(file);
        assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 0);
        let mut file = Temporary::create(&destination).unwrap();
        file.write_all(b"whole").unwrap();
        file.place(&destination).unwrap();
        assert_eq!(std::fs::read(&destination).unwrap(), b"whole");
        assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_a_killed_run_left_is_removed_by_the_next_and_a_running_one_is_not_disturbed() {
        let scratch = tempfile::tempdir().unwrap();
        let destination = scratch.path().join("RECOVERYXLOG");
        let killed = Temporary::create(&destination).unwrap();
        let leftover = killed.path.clone();
        // As after SIGKILL: the lock is gone, the file stays.
        killed.file.unlock().unwrap();
        std::mem::forget(killed);
        let other = Temporary::create(&scratch.path().join("RECOVERYHISTORY")).unwrap();
        assert!(leftover.exists());
        let running = Temporary::create(&destination).unwrap();
        assert!(!leftover.exists());
        let next = Temporary::create(&destination).unwrap();
        assert!(running.path.exists() && next.path.exists() && other.path.exists());
    }
}
