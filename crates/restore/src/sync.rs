//! Bringing files to disk.
//!
//! Invariants: a file written by [`write_durably`] is whole under its name or not there; [`SyncPoint`]
//! reports write errors that happened since it was opened, by `syncfs` where the kernel does so (Linux 5.8
//! and later), else by fsync of every file and directory.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use diagnostic::{Error, Result};

pub(crate) fn write_error(path: &Path, error: &std::io::Error) -> Error {
    let shown = path.display();
    let made = Error::io("restore-write", format!("cannot write \"{shown}\""), error);
    match error.kind() {
        std::io::ErrorKind::PermissionDenied => {
            made.hint("Run pgproof as the account that owns the data directory, or as root.")
        }
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
            made.hint("Make room on that file system, or restore to another one.")
        }
        _ => made,
    }
}

/// Gives a file or directory to its owner, if another one was planned.
pub(crate) fn give(path: &Path, owner: Option<(u32, u32)>) -> Result<()> {
    match owner {
        Some((user, group)) => std::os::unix::fs::lchown(path, Some(user), Some(group)).map_err(|error| {
            Error::io(
                "restore-owner",
                format!("cannot give \"{}\" to its owner", path.display()),
                &error,
            )
        }),
        None => Ok(()),
    }
}

/// What a file is called until it is complete.
pub(crate) fn temporary_name(name: &std::ffi::OsStr) -> std::ffi::OsString {
    let mut temporary = std::ffi::OsString::from(".pgproof-");
    temporary.push(name);
    temporary.push(".new");
    temporary
}

/// Writes a small file: beside its place, synced, renamed over what was there, the directory synced.
pub(crate) fn write_durably(path: &Path, content: &[u8], mode: u32, owner: Option<(u32, u32)>) -> Result<()> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    let temporary = folder.join(temporary_name(path.file_name().unwrap_or_default()));
    let attempt = || -> std::io::Result<()> {
        // Left behind by a run that was killed.
        match std::fs::remove_file(&temporary) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&temporary)?;
        file.set_permissions(std::fs::Permissions::from_mode(mode))?;
        if let Some((user, group)) = owner {
            std::os::unix::fs::fchown(&file, Some(user), Some(group))?;
        }
        file.write_all(content)?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)?;
        File::open(folder)?.sync_all()
    };
    attempt().map_err(|error| {
        let _ = std::fs::remove_file(&temporary);
        write_error(path, &error)
    })
}

/// Syncs a directory itself: the names in it.
pub(crate) fn sync_directory(path: &Path) -> Result<()> {
    File::open(path)
        .and_then(|folder| folder.sync_all())
        .map_err(|error| write_error(path, &error))
}

/// Directories below which everything is to be durable.
pub(crate) struct SyncPoint {
    roots: Vec<(PathBuf, File, u64)>,
}

impl SyncPoint {
    /// Opened before the first write.
    pub(crate) fn open(roots: impl IntoIterator<Item = PathBuf>) -> Result<SyncPoint> {
        let mut opened = Vec::new();
        for root in roots {
            let file = File::open(&root).map_err(|error| write_error(&root, &error))?;
            let device = file.metadata().map_err(|error| write_error(&root, &error))?.dev();
            opened.push((root, file, device));
        }
        Ok(SyncPoint { roots: opened })
    }

    /// Everything written below the roots is on disk afterwards, or an error tells what is not.
    pub(crate) fn finish(self) -> Result<()> {
        let mut synced: Vec<u64> = Vec::new();
        for (root, file, device) in &self.roots {
            if reports_errors() && !synced.contains(device) {
                match rustix::fs::syncfs(file.as_fd()) {
                    Ok(()) => {
                        synced.push(*device);
                        continue;
                    }
                    Err(
                        rustix::io::Errno::NOSYS | rustix::io::Errno::INVAL | rustix::io::Errno::OPNOTSUPP,
                    ) => {}
                    Err(error) => return Err(write_error(root, &error.into())),
                }
            }
            if !synced.contains(device) {
                sync_tree(root)?;
            }
        }
        Ok(())
    }
}

/// Whether `syncfs` reports write errors: Linux 5.8 and later.
fn reports_errors() -> bool {
    let name = rustix::system::uname();
    let release = name.release().to_string_lossy();
    let mut numbers = release
        .split(|character: char| !character.is_ascii_digit())
        .map(|part| part.parse::<u32>().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (5, 8)
}

/// Fsync of each file and directory; follows no links.
fn sync_tree(root: &Path) -> Result<()> {
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).map_err(|error| write_error(&folder, &error))? {
            let entry = entry.map_err(|error| write_error(&folder, &error))?;
            let kind = entry
                .file_type()
                .map_err(|error| write_error(&entry.path(), &error))?;
            if kind.is_dir() {
                folders.push(entry.path());
            } else if kind.is_file() {
                sync_directory(&entry.path())?;
            }
        }
        sync_directory(&folder)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_durable_write_replaces_the_file_and_leaves_nothing_else() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("marker");
        write_durably(&path, b"one", 0o600, None).unwrap();
        write_durably(&path, b"two", 0o640, None).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o640);
        assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 1);
    }

    #[test]
    fn everything_below_the_roots_is_synced_without_following_links() {
        let scratch = tempfile::tempdir().unwrap();
        let point = SyncPoint::open([scratch.path().to_owned()]).unwrap();
        std::fs::create_dir(scratch.path().join("base")).unwrap();
        std::fs::write(scratch.path().join("base/1"), "x").unwrap();
        std::os::unix::fs::symlink("/nowhere", scratch.path().join("base/link")).unwrap();
        point.finish().unwrap();
        sync_tree(scratch.path()).unwrap();
    }
}
