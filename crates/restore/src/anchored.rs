//! Folders held open, so that work below them follows no link. Hard rule 25.
//!
//! Invariants: below the root, which the caller named, every component is opened with `O_NOFOLLOW` from its
//! parent's descriptor; a name is only ever looked at, made or removed in the folder that is held. What
//! changes links behind our back can thus make a step fail, and never lead it elsewhere.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use diagnostic::Result;
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Uid};

use crate::sync::write_error;

/// What stands under a name; links are not followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) kind: FileType,
    /// Permission bits.
    pub(crate) mode: u32,
    pub(crate) owner: (u32, u32),
    /// Bytes.
    pub(crate) size: u64,
    /// Hard links.
    pub(crate) links: u64,
}

/// A folder that is held open.
pub(crate) struct Folder {
    fd: OwnedFd,
    path: PathBuf,
}

impl Folder {
    /// The folder that somebody named: links on the way to it are followed, once.
    pub(crate) fn root(path: &Path) -> Result<Folder> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(path, flags, Mode::empty()).map_err(|error| failed(path, error))?;
        Ok(Folder {
            fd,
            path: path.to_owned(),
        })
    }

    /// A folder in it; `None` if there is none, or something else.
    pub(crate) fn child(&self, name: &OsStr) -> Result<Option<Folder>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match rustix::fs::openat(&self.fd, name, flags, Mode::empty()) {
            Ok(fd) => Ok(Some(Folder {
                fd,
                path: self.path.join(name),
            })),
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR | rustix::io::Errno::LOOP) => Ok(None),
            Err(error) => Err(failed(&self.path.join(name), error)),
        }
    }

    /// Its names in byte order.
    pub(crate) fn names(&self) -> Result<Vec<OsString>> {
        let mut names = Vec::new();
        let entries = rustix::fs::Dir::read_from(&self.fd).map_err(|error| failed(&self.path, error))?;
        for entry in entries {
            let entry = entry.map_err(|error| failed(&self.path, error))?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                names.push(OsString::from_vec(name.to_vec()));
            }
        }
        names.sort();
        Ok(names)
    }

    /// What stands under a name.
    #[allow(
        clippy::unnecessary_cast,
        reason = "the number of links has another width on other architectures"
    )]
    pub(crate) fn look(&self, name: &OsStr) -> Result<Option<Found>> {
        match rustix::fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(Found {
                kind: FileType::from_raw_mode(stat.st_mode),
                mode: stat.st_mode & 0o7777,
                owner: (stat.st_uid, stat.st_gid),
                size: u64::try_from(stat.st_size).unwrap_or(0),
                links: stat.st_nlink as u64,
            })),
            Err(rustix::io::Errno::NOENT) => Ok(None),
            Err(error) => Err(failed(&self.path.join(name), error)),
        }
    }

    /// Where a link leads, as it stands there.
    pub(crate) fn target(&self, name: &OsStr) -> Result<PathBuf> {
        let target = rustix::fs::readlinkat(&self.fd, name, Vec::new())
            .map_err(|error| failed(&self.path.join(name), error))?;
        Ok(PathBuf::from(OsString::from_vec(target.into_bytes())))
    }

    /// Opens a regular file; never a link, never one that would block.
    pub(crate) fn open(&self, name: &OsStr, write: bool) -> Result<File> {
        let access = if write { OFlags::RDWR } else { OFlags::RDONLY };
        let flags = access | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        rustix::fs::openat(&self.fd, name, flags, Mode::empty())
            .map(File::from)
            .map_err(|error| failed(&self.path.join(name), error))
    }

    /// Makes a file that is not there.
    pub(crate) fn create(&self, name: &OsStr, mode: u32, owner: Option<(u32, u32)>) -> Result<File> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let attempt = || -> rustix::io::Result<File> {
            let file = rustix::fs::openat(&self.fd, name, flags, Mode::from_raw_mode(mode))?;
            // The process's umask takes bits away.
            rustix::fs::fchmod(&file, Mode::from_raw_mode(mode))?;
            if let Some((user, group)) = owner {
                rustix::fs::fchown(&file, Some(Uid::from_raw(user)), Some(Gid::from_raw(group)))?;
            }
            Ok(File::from(file))
        };
        attempt().map_err(|error| failed(&self.path.join(name), error))
    }

    /// Makes a folder, or sets the permissions and the owner of the one that is there.
    pub(crate) fn make(&self, name: &OsStr, mode: u32, owner: Option<(u32, u32)>) -> Result<Folder> {
        let path = self.path.join(name);
        match rustix::fs::mkdirat(&self.fd, name, Mode::from_raw_mode(mode)) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(error) => return Err(failed(&path, error)),
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let open = || rustix::fs::openat(&self.fd, name, flags, Mode::empty());
        let fd = match open() {
            // A folder that its owner may not read; it stood there a moment ago as a folder, not as a link.
            Err(rustix::io::Errno::ACCESS) => {
                rustix::fs::chmodat(&self.fd, name, Mode::from_raw_mode(0o700), AtFlags::empty())
                    .and_then(|()| open())
            }
            other => other,
        };
        let folder = Folder {
            fd: fd.map_err(|error| failed(&path, error))?,
            path,
        };
        if let Some(found) = self.look(name)? {
            folder.settle(&found, mode, owner)?;
        }
        Ok(folder)
    }

    fn settle(&self, found: &Found, mode: u32, owner: Option<(u32, u32)>) -> Result<()> {
        settle(&self.fd, found, mode, owner).map_err(|error| failed(&self.path, error))
    }

    /// Makes a symbolic link that is not there.
    pub(crate) fn link(&self, name: &OsStr, to: &Path, owner: Option<(u32, u32)>) -> Result<()> {
        let path = self.path.join(name);
        rustix::fs::symlinkat(to, &self.fd, name).map_err(|error| failed(&path, error))?;
        crate::sync::give(&path, owner)
    }

    /// Removes what stands under a name, folders with all that is in them; links themselves, not what they lead
    /// to. Returns how many names went.
    pub(crate) fn remove(&self, name: &OsStr) -> Result<u64> {
        match rustix::fs::unlinkat(&self.fd, name, AtFlags::empty()) {
            Ok(()) => return Ok(1),
            Err(rustix::io::Errno::NOENT) => return Ok(0),
            Err(rustix::io::Errno::ISDIR | rustix::io::Errno::PERM) => {}
            Err(error) => return Err(failed(&self.path.join(name), error)),
        }
        let mut removed = 1;
        if let Some(folder) = self.child(name)? {
            for inner in folder.names()? {
                removed += folder.remove(&inner)?;
            }
        }
        match rustix::fs::unlinkat(&self.fd, name, AtFlags::REMOVEDIR) {
            // What prefetched WAL for a server that has just ended removes its folder itself.
            Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(removed),
            Err(error) => Err(failed(&self.path.join(name), error)),
        }
    }

    /// The names in it are on disk afterwards.
    pub(crate) fn sync(&self) -> Result<()> {
        match rustix::fs::fsync(&self.fd) {
            Ok(()) => Ok(()),
            Err(error) => Err(failed(&self.path, error)),
        }
    }

    /// Renames within the folder; what stood under the new name goes.
    pub(crate) fn rename(&self, from: &OsStr, to: &OsStr) -> Result<()> {
        rustix::fs::renameat(&self.fd, from, &self.fd, to)
            .map_err(|error| failed(&self.path.join(from), error))
    }
}

/// Sets permissions and owner where they differ.
pub(crate) fn settle(
    fd: impl std::os::fd::AsFd,
    found: &Found,
    mode: u32,
    owner: Option<(u32, u32)>,
) -> rustix::io::Result<()> {
    if let Some((user, group)) = owner
        && found.owner != (user, group)
    {
        rustix::fs::fchown(&fd, Some(Uid::from_raw(user)), Some(Gid::from_raw(group)))?;
    }
    // Behind the owner: changing that takes bits away.
    if found.mode != mode || owner.is_some_and(|owner| owner != found.owner) {
        rustix::fs::fchmod(&fd, Mode::from_raw_mode(mode))?;
    }
    Ok(())
}

/// The components of a relative path.
pub(crate) fn components(path: &[u8]) -> impl Iterator<Item = &OsStr> {
    path.split(|byte| *byte == b'/')
        .filter(|part| !part.is_empty())
        .map(OsStr::from_bytes)
}

fn failed(path: &Path, error: rustix::io::Errno) -> diagnostic::Error {
    let made = write_error(path, &error.into());
    match error {
        rustix::io::Errno::LOOP => made.detail("It is a symbolic link, which is never followed."),
        _ => made,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn removing_a_link_leaves_what_it_leads_to() {
        let scratch = tempfile::tempdir().unwrap();
        let outside = scratch.path().join("outside");
        std::fs::create_dir(&outside).unwrap();
        std::fs::write(outside.join("precious"), "x").unwrap();
        let inside = scratch.path().join("inside");
        std::fs::create_dir_all(inside.join("deep/er")).unwrap();
        std::os::unix::fs::symlink(&outside, inside.join("deep/link")).unwrap();
        std::os::unix::fs::symlink(outside.join("precious"), inside.join("file")).unwrap();
        let folder = Folder::root(&inside).unwrap();
        assert!(
            folder
                .child(OsStr::new("deep"))
                .unwrap()
                .unwrap()
                .child(OsStr::new("link"))
                .unwrap()
                .is_none()
        );
        assert!(folder.open(OsStr::new("file"), true).is_err());
        assert_eq!(folder.remove(OsStr::new("deep")).unwrap(), 3);
        assert_eq!(folder.remove(OsStr::new("file")).unwrap(), 1);
        assert!(outside.join("precious").is_file());
        assert!(folder.names().unwrap().is_empty());
    }

    #[test]
    fn permissions_are_set_whatever_the_umask_says() {
        let scratch = tempfile::tempdir().unwrap();
        let folder = Folder::root(scratch.path()).unwrap();
        folder.make(OsStr::new("base"), 0o750, None).unwrap();
        folder.make(OsStr::new("base"), 0o700, None).unwrap();
        folder.create(OsStr::new("1"), 0o666, None).unwrap();
        assert_eq!(folder.look(OsStr::new("base")).unwrap().unwrap().mode, 0o700);
        assert_eq!(folder.look(OsStr::new("1")).unwrap().unwrap().mode, 0o666);
    }
}
