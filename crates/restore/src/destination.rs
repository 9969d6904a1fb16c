//! What stands where the restore is to go. Only looks.

use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use diagnostic::{Error, Result};
use postgres::{ControlFile, Oid, SystemIdentifier};
use serde::{Deserialize, Serialize};

use crate::marker::{self, Marker};
use crate::sync::temporary_name;

/// What is at a tablespace's location.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LocationState {
    Missing,
    Empty,
    /// With some names of what is there.
    Occupied(Vec<String>),
    NotADirectory,
}

/// What is at the destination.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DestinationState {
    Missing,
    Empty,
    NotADirectory,
    /// A data directory: it has `PG_VERSION` or `global/pg_control`.
    DataDirectory {
        /// `None` if its `pg_control` is missing or cannot be read.
        system_identifier: Option<SystemIdentifier>,
        /// Tablespaces by the links in `pg_tblspc`.
        tablespaces: Vec<(Oid, PathBuf)>,
    },
    /// Left by a restore that was interrupted while it wrote: nothing in it is anybody's but ours.
    HalfRestored(Box<Marker>),
    /// A restore was interrupted while it moved what existed aside.
    HalfKeptAside(Box<Marker>),
    /// A delta restore was interrupted: it has the journal and no `pg_control`.
    HalfDelta {
        marker: Box<Marker>,
        /// Tablespaces by the links that are in `pg_tblspc` now.
        tablespaces: Vec<(Oid, PathBuf)>,
    },
    /// Something else, with some names of what is there.
    Other(Vec<String>),
}

/// The destination as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DestinationFacts {
    pub path: PathBuf,
    pub state: DestinationState,
    /// It cannot be renamed: its contents are moved instead.
    pub mount_point: bool,
    /// The process of a server that runs on it.
    pub live_pid: Option<i32>,
    /// Was restored by pgproof earlier.
    pub marked: bool,
    /// User, group and permission bits of an existing destination.
    pub owner: Option<(u32, u32)>,
    pub mode: Option<u32>,
    /// The nearest directory above that exists.
    pub existing_parent: PathBuf,
    /// Bytes that may still be written to that file system.
    pub free_bytes: u64,
    /// The user who would run the restore.
    pub effective_uid: u32,
}

const NAMES_TOLD: usize = 5;

/// Looks at a destination. Error: `destination-read`.
pub fn inspect(path: &Path) -> Result<DestinationFacts> {
    let existing_parent = existing(path);
    let space = rustix::fs::statvfs(&existing_parent)
        .map_err(|error| cannot_read(&existing_parent, &error.into()))?;
    let mut facts = DestinationFacts {
        path: path.to_owned(),
        state: DestinationState::Missing,
        mount_point: false,
        live_pid: None,
        marked: false,
        owner: None,
        mode: None,
        existing_parent,
        free_bytes: space.f_bavail.saturating_mul(space.f_frsize),
        effective_uid: rustix::process::geteuid().as_raw(),
    };
    let metadata = match std::fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            if std::fs::symlink_metadata(path).is_ok() {
                // A symbolic link to nothing.
                facts.state = DestinationState::NotADirectory;
            }
            return Ok(facts);
        }
        Err(error) => return Err(cannot_read(path, &error)),
    };
    facts.owner = Some((metadata.uid(), metadata.gid()));
    facts.mode = Some(metadata.mode() & 0o7777);
    if !metadata.is_dir() {
        facts.state = DestinationState::NotADirectory;
        return Ok(facts);
    }
    facts.mount_point = is_mount_point(path, metadata.dev())?;
    facts.marked = marker::is_marked(path);
    facts.live_pid = live_pid(path);
    facts.state = state(path)?;
    Ok(facts)
}

/// Looks at a tablespace's location.
pub(crate) fn location_state(path: &Path) -> Result<LocationState> {
    match std::fs::metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(LocationState::Missing),
        Err(error) => Err(cannot_read(path, &error)),
        Ok(metadata) if !metadata.is_dir() => Ok(LocationState::NotADirectory),
        Ok(_) => {
            let names = names(path)?;
            Ok(if names.is_empty() {
                LocationState::Empty
            } else {
                LocationState::Occupied(names)
            })
        }
    }
}

fn state(path: &Path) -> Result<DestinationState> {
    let mut names = names(path)?;
    // The first thing that a restore writes; it was killed before that was complete.
    let unfinished = temporary_name(marker::MARKER_NAME.as_ref());
    names.retain(|name| *name != unfinished.to_string_lossy());
    if names.is_empty() {
        return Ok(DestinationState::Empty);
    }
    if let Some(journal) = marker::read_journal(path)? {
        return Ok(DestinationState::HalfKeptAside(Box::new(journal)));
    }
    let control = path.join("global/pg_control");
    let has_control = std::fs::symlink_metadata(&control).is_ok();
    if !has_control && let Some(journal) = marker::read_delta(path)? {
        return Ok(DestinationState::HalfDelta {
            marker: Box::new(journal),
            tablespaces: tablespace_links(path)?,
        });
    }
    if !has_control && let Some(marker) = marker::read_marker(path)? {
        return Ok(DestinationState::HalfRestored(Box::new(marker)));
    }
    if !has_control && !path.join("PG_VERSION").is_file() {
        return Ok(DestinationState::Other(names));
    }
    let system_identifier = std::fs::read(&control)
        .ok()
        .and_then(|bytes| ControlFile::parse(&bytes).ok())
        .map(|control| control.system_identifier);
    Ok(DestinationState::DataDirectory {
        system_identifier,
        tablespaces: tablespace_links(path)?,
    })
}

/// The links in `pg_tblspc` that name a tablespace.
pub(crate) fn tablespace_links(data_directory: &Path) -> Result<Vec<(Oid, PathBuf)>> {
    let folder = data_directory.join("pg_tblspc");
    let entries = match std::fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(cannot_read(&folder, &error)),
    };
    let mut links = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|error| cannot_read(&folder, &error))?;
        let Some(oid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<Oid>().ok())
        else {
            continue;
        };
        if let Ok(target) = std::fs::read_link(entry.path()) {
            links.push((oid, folder.join(target)));
        }
    }
    links.sort();
    Ok(links)
}

/// Some names in a directory; `lost+found` is nobody's.
fn names(path: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(path).map_err(|error| cannot_read(path, &error))? {
        let entry = entry.map_err(|error| cannot_read(path, &error))?;
        if entry.file_name() == "lost+found" {
            continue;
        }
        names.push(entry.file_name().to_string_lossy().into_owned());
        if names.len() == NAMES_TOLD {
            break;
        }
    }
    names.sort();
    Ok(names)
}

fn is_mount_point(path: &Path, device: u64) -> Result<bool> {
    // The parent of what a symbolic link leads to, not of the link.
    let real = std::fs::canonicalize(path).map_err(|error| cannot_read(path, &error))?;
    let Some(parent) = real.parent() else {
        return Ok(true);
    };
    let above = std::fs::metadata(parent).map_err(|error| cannot_read(parent, &error))?;
    if above.dev() != device {
        return Ok(true);
    }
    // A bind mount of the same file system shows only in the list of mounts.
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    Ok(mounts
        .lines()
        .any(|line| line.split(' ').nth(4).is_some_and(|at| unescape(at) == real)))
}

/// Undoes the octal escapes of /proc/self/mountinfo.
fn unescape(text: &str) -> PathBuf {
    use std::os::unix::ffi::OsStringExt;
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        if *first == b'\\'
            && let Some(digits) = tail.get(..3)
            && let Ok(value) = u8::from_str_radix(std::str::from_utf8(digits).unwrap_or("x"), 8)
        {
            bytes.push(value);
            rest = tail.get(3..).unwrap_or_default();
        } else {
            bytes.push(*first);
            rest = tail;
        }
    }
    PathBuf::from(std::ffi::OsString::from_vec(bytes))
}

/// A process of a server on this directory.
fn live_pid(data_directory: &Path) -> Option<i32> {
    let text = std::fs::read_to_string(data_directory.join("postmaster.pid")).ok();
    text.as_deref()
        .and_then(|text| named_pid(data_directory, text))
        .or_else(|| crate::live::process_in(data_directory))
        .or_else(|| crate::live::shared_memory_user(text.as_deref()?))
}

/// The process named in `postmaster.pid`, if it is alive.
fn named_pid(data_directory: &Path, text: &str) -> Option<i32> {
    // A negative number marks a standalone backend.
    let number = text.lines().next()?.trim().parse::<i32>().ok()?.checked_abs()?;
    let pid = rustix::process::Pid::from_raw(number)?;
    match rustix::process::test_kill_process(pid) {
        // A server's working directory is its data directory: another one means that the number was used
        // again.
        Ok(()) | Err(rustix::io::Errno::PERM) => match std::fs::read_link(format!("/proc/{number}/cwd")) {
            Ok(directory) if std::fs::canonicalize(data_directory).is_ok_and(|own| own != directory) => None,
            _ => Some(number),
        },
        Err(_) => None,
    }
}

fn existing(path: &Path) -> PathBuf {
    path.ancestors()
        .find(|ancestor| ancestor.is_dir())
        .unwrap_or(Path::new("/"))
        .to_owned()
}

fn cannot_read(path: &Path, error: &std::io::Error) -> Error {
    let error = Error::io(
        "destination-read",
        format!("cannot look at \"{}\"", path.display()),
        error,
    );
    if error.io_kind() == Some(ErrorKind::PermissionDenied) {
        return error.hint("Run pgproof as the account that owns the data directory, or as root.");
    }
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_missing_and_foreign_destination_are_told_apart() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("data");
        assert_eq!(inspect(&path).unwrap().state, DestinationState::Missing);
        std::fs::create_dir(&path).unwrap();
        std::fs::create_dir(path.join("lost+found")).unwrap();
        assert_eq!(inspect(&path).unwrap().state, DestinationState::Empty);
        std::fs::write(path.join(".pgproof-pgproof.restored.new"), "{").unwrap();
        assert_eq!(inspect(&path).unwrap().state, DestinationState::Empty);
        std::fs::write(path.join("letter.txt"), "x").unwrap();
        assert_eq!(
            inspect(&path).unwrap().state,
            DestinationState::Other(vec!["letter.txt".into()])
        );
        std::fs::write(path.join("PG_VERSION"), "15\n").unwrap();
        assert!(matches!(
            inspect(&path).unwrap().state,
            DestinationState::DataDirectory { .. }
        ));
    }

    #[test]
    fn a_running_server_is_seen_by_its_pid_file() {
        let scratch = tempfile::tempdir().unwrap();
        std::fs::write(scratch.path().join("PG_VERSION"), "15\n").unwrap();
        let mut server = std::process::Command::new("sleep")
            .arg("60")
            .current_dir(scratch.path())
            .spawn()
            .unwrap();
        let pid = server.id();
        std::fs::write(scratch.path().join("postmaster.pid"), format!("{pid}\n/x\n")).unwrap();
        assert_eq!(inspect(scratch.path()).unwrap().live_pid, Some(pid as i32));
        // The number of a process that is something else.
        std::fs::write(
            scratch.path().join("postmaster.pid"),
            format!("{}\n", std::process::id()),
        )
        .unwrap();
        assert_eq!(inspect(scratch.path()).unwrap().live_pid, None);
        server.kill().unwrap();
        server.wait().unwrap();
        std::fs::write(scratch.path().join("postmaster.pid"), format!("{pid}\n")).unwrap();
        assert_eq!(inspect(scratch.path()).unwrap().live_pid, None);
    }

    #[test]
    fn mount_points_with_spaces_are_unescaped() {
        assert_eq!(unescape("/mnt/a\\040b"), PathBuf::from("/mnt/a b"));
        assert_eq!(unescape("/mnt/\\"), PathBuf::from("/mnt/\\"));
    }
}
