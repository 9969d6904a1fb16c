//! A store in a local folder: an object is a file under its own name.
//!
//! Invariants: an object is written under `tmp/`, synced, and only then given its name by a rename that fails
//! when the name exists (by a hard link where the file system has no such rename); the directory is synced
//! before creation is reported, and so is the parent of each directory that had to be made. Files and
//! directories belong to their owner alone.

use std::ffi::OsStr;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::num::NonZeroU64;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use diagnostic::{Error, Result};
use rustix::fs::{CWD, FallocateFlags, RenameFlags};
use rustix::io::Errno;

use super::{ObjectInfo, ObjectWriter, Put, RequestCounts, Requests, Store, check_name, check_prefix};

/// The folder, inside the store's, of objects that do not exist yet.
const TMP: &str = "tmp";
/// The file there that keeps room for what must be written before anything can be deleted.
const RESERVE: &str = "reserve";
/// Enough to state an expiry of a hundred thousand packs.
const RESERVE_BYTES: u64 = 4 << 20;
/// A whole object that is read at once is at most this long.
const READ_BYTES_MAX: u64 = 1 << 30;
/// The kernel is asked to begin writing after so many bytes, so that the sync at the end has little left to
/// do.
const WRITE_BACK_BYTES: u64 = 8 << 20;
/// Small writes are gathered into pieces of this size.
const BUFFER_BYTES: usize = 1 << 18;

/// A store in a local folder.
#[derive(Debug)]
pub struct LocalFolder {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    root: PathBuf,
    requests: Requests,
}

impl LocalFolder {
    /// Opens a folder that is there. Errors: `store-unreachable`, `store-denied`.
    pub fn open(root: &Path) -> Result<Self> {
        let metadata = std::fs::metadata(root).map_err(|error| {
            failed(
                &error,
                format!("cannot open the repository's folder \"{}\"", root.display()),
            )
        })?;
        if !metadata.is_dir() {
            return Err(Error::new(
                "store-unreachable",
                format!("\"{}\" is not a folder", root.display()),
            ));
        }
        Ok(LocalFolder {
            inner: Arc::new(Inner {
                root: root.to_path_buf(),
                requests: Requests::default(),
            }),
        })
    }

    /// Opens a folder, and makes it first if it is not there.
    pub fn create(root: &Path) -> Result<Self> {
        make_directories(root).map_err(|error| {
            failed(
                &error,
                format!("cannot make the repository's folder \"{}\"", root.display()),
            )
        })?;
        LocalFolder::open(root)
    }

    /// The folder.
    pub fn root(&self) -> &Path {
        &self.inner.root
    }
}

impl Inner {
    fn path(&self, name: &str) -> Result<PathBuf> {
        check_name(name)?;
        if name == TMP || name.starts_with("tmp/") {
            return Err(
                Error::new("object-name", format!("\"{name}\" cannot be an object's name"))
                    .detail("A local folder keeps unfinished objects there."),
            );
        }
        Ok(self.root.join(name))
    }

    /// A new file under `tmp/`.
    fn temporary(&self) -> io::Result<(PathBuf, File)> {
        let mut random = [0; 12];
        getrandom::fill(&mut random).map_err(io::Error::other)?;
        let directory = self.root.join(TMP);
        let path = directory.join(crate::hex::encode(&random));
        let create = || {
            OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&path)
        };
        let file = match create() {
            // Never make the root itself: a repository that is not mounted must not be replaced by an empty
            // one.
            Err(error) if error.kind() == ErrorKind::NotFound => {
                match DirBuilder::new().mode(0o700).create(&directory) {
                    Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
                    _ => create()?,
                }
            }
            other => other?,
        };
        self.give(&path)?;
        Ok((path, file))
    }

    /// As root, what is made belongs to the owner of the folder: its own account must be able to read, and to
    /// expire, what root has put there.
    fn give(&self, path: &Path) -> io::Result<()> {
        if !rustix::process::geteuid().is_root() {
            return Ok(());
        }
        let root = std::fs::metadata(&self.root)?;
        for made in path.ancestors().take_while(|made| *made != self.root) {
            let metadata = std::fs::metadata(made)?;
            if (metadata.uid(), metadata.gid()) != (root.uid(), root.gid()) {
                std::os::unix::fs::chown(made, Some(root.uid()), Some(root.gid()))?;
            }
        }
        Ok(())
    }

    /// Gives a synced temporary file its name.
    fn publish(&self, temporary: &Path, path: &Path) -> io::Result<Put> {
        let put = match rename_new(temporary, path) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                if let Some(directory) = path.parent() {
                    make_directories(directory)?;
                    self.give(directory)?;
                }
                rename_new(temporary, path)?
            }
            other => other?,
        };
        if put == Put::Exists {
            std::fs::remove_file(temporary)?;
        }
        // Also when it existed: whoever created it may have been killed before this point.
        if let Some(directory) = path.parent() {
            File::open(directory)?.sync_all()?;
        }
        Ok(put)
    }
}

/// Renames without replacing.
fn rename_new(from: &Path, to: &Path) -> io::Result<Put> {
    match rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Ok(()) => Ok(Put::Created),
        Err(Errno::EXIST) => Ok(Put::Exists),
        Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => match std::fs::hard_link(from, to) {
            Ok(()) => std::fs::remove_file(from).map(|()| Put::Created),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(Put::Exists),
            Err(error) => Err(error),
        },
        Err(error) => Err(error.into()),
    }
}

/// Makes a directory and those above it, each durable.
fn make_directories(directory: &Path) -> io::Result<()> {
    let mut made = false;
    match DirBuilder::new().mode(0o700).create(directory) {
        Ok(()) => made = true,
        // It may have been made a moment ago by another process that has not synced its parent yet: sync it
        // too.
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            if !directory.is_dir() {
                return Err(error);
            }
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let parent = directory.parent().ok_or(error)?;
            make_directories(parent)?;
            return make_directories(directory);
        }
        Err(error) => return Err(error),
    }
    let synced = match directory.parent() {
        // A folder above the repository may be closed to us; it was not us who had to make anything in it
        // then.
        Some(parent) => match File::open(parent) {
            Ok(parent) => parent.sync_all(),
            Err(error) if error.kind() == ErrorKind::PermissionDenied => Ok(()),
            Err(error) => Err(error),
        },
        None => Ok(()),
    };
    if synced.is_err() && made {
        // Were it left, the next creation would find it and ask for no sync.
        let _ = std::fs::remove_dir(directory);
    }
    synced
}

/// An error of the operating system, with the code that says what to do about it.
fn failed(error: &io::Error, message: String) -> Error {
    let code = match error.kind() {
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => "store-denied",
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => "store-full",
        ErrorKind::NotFound | ErrorKind::NotADirectory => "store-unreachable",
        _ => "store-io",
    };
    let built = Error::io(code, message, error);
    match code {
        "store-denied" => built.hint("Run pgproof as the account that owns the repository."),
        "store-unreachable" => {
            built.hint("Check that the repository's file system is mounted and its URL is right.")
        }
        "store-full" => built.hint(
            "Make room on the repository's file system: `pgproof expire` deletes what [retention] no longer keeps.",
        ),
        _ => built,
    }
}

impl Store for LocalFolder {
    fn url(&self) -> String {
        format!("file://{}", self.inner.root.display())
    }

    fn put_new(&self, name: &str, content: &[u8]) -> Result<Put> {
        let mut writer = self.writer(name)?;
        writer
            .write_all(content)
            .map_err(|error| failed(&error, format!("cannot write object \"{name}\"")))?;
        writer.finish()
    }

    fn writer(&self, name: &str) -> Result<Box<dyn ObjectWriter>> {
        let path = self.inner.path(name)?;
        let (temporary, file) = self
            .inner
            .temporary()
            .map_err(|error| failed(&error, format!("cannot create object \"{name}\"")))?;
        Requests::count(&self.inner.requests.put, 1);
        Ok(Box::new(LocalWriter {
            inner: self.inner.clone(),
            name: name.to_string(),
            path,
            temporary: Some(temporary),
            file,
            buffer: Vec::new(),
            written: 0,
            handed_on: 0,
        }))
    }

    fn read(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let path = self.inner.path(name)?;
        Requests::count(&self.inner.requests.get, 1);
        let error = |error: io::Error| failed(&error, format!("cannot read object \"{name}\""));
        let mut file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                self.check_there()?;
                return Ok(None);
            }
            Err(other) => return Err(error(other)),
        };
        let size = file.metadata().map_err(error)?.len();
        if size > READ_BYTES_MAX {
            return Err(Error::new(
                "object-damaged",
                format!("object \"{name}\" is too large to be what it is called"),
            )
            .detail(format!("It has {size} bytes.")));
        }
        let mut bytes = Vec::with_capacity(size as usize);
        file.read_to_end(&mut bytes).map_err(error)?;
        Requests::count(&self.inner.requests.bytes_read, bytes.len() as u64);
        Ok(Some(bytes))
    }

    fn read_range_into(&self, name: &str, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let path = self.inner.path(name)?;
        Requests::count(&self.inner.requests.get, 1);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                self.check_there()?;
                return Err(super::missing(name));
            }
            Err(error) => return Err(failed(&error, format!("cannot read object \"{name}\""))),
        };
        file.read_exact_at(buffer, offset).map_err(|error| {
            if error.kind() == ErrorKind::UnexpectedEof {
                let end = offset.saturating_add(buffer.len() as u64);
                Error::new("object-damaged", format!("object \"{name}\" is cut short"))
                    .detail(format!("Bytes {offset} to {end} were asked for."))
            } else {
                failed(&error, format!("cannot read object \"{name}\""))
            }
        })?;
        Requests::count(&self.inner.requests.bytes_read, buffer.len() as u64);
        Ok(())
    }

    /// An object's content is synced before it gets its name; what may be missing is the name, and those above it.
    fn make_durable(&self, name: &str) -> Result<()> {
        let path = self.inner.path(name)?;
        let folders = path.ancestors().skip(1);
        for folder in folders.take_while(|folder| folder.starts_with(&self.inner.root)) {
            File::open(folder)
                .and_then(|folder| folder.sync_all())
                .map_err(|error| failed(&error, format!("cannot make object \"{name}\" durable")))?;
        }
        Ok(())
    }

    fn size(&self, name: &str) -> Result<Option<u64>> {
        let path = self.inner.path(name)?;
        Requests::count(&self.inner.requests.head, 1);
        match std::fs::metadata(&path) {
            Ok(metadata) if metadata.is_file() => Ok(Some(metadata.len())),
            Ok(_) => Ok(None),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                self.check_there()?;
                Ok(None)
            }
            Err(error) => Err(failed(&error, format!("cannot look at object \"{name}\""))),
        }
    }

    fn list(&self, prefix: &str) -> Result<Vec<ObjectInfo>> {
        check_prefix(prefix)?;
        Requests::count(&self.inner.requests.list, 1);
        let (folder, start) = prefix.rsplit_once('/').unwrap_or(("", prefix));
        let mut objects = Vec::new();
        self.walk(folder, start, &mut objects)?;
        objects.sort_by(|one, two| one.name.cmp(&two.name));
        Ok(objects)
    }

    fn list_folders(&self, prefix: &str) -> Result<Vec<String>> {
        check_prefix(prefix)?;
        Requests::count(&self.inner.requests.list, 1);
        let mut folders = Vec::new();
        self.each_entry(prefix.trim_end_matches('/'), |name, entry| {
            let path = self.inner.root.join(prefix).join(name);
            // Follows symbolic links, as for objects. What cannot be looked at may be there.
            let directory = match entry.file_type() {
                Ok(kind) if !kind.is_symlink() => kind.is_dir(),
                _ => match std::fs::metadata(&path) {
                    Ok(metadata) => metadata.is_dir(),
                    Err(error) if error.kind() == ErrorKind::NotFound => false,
                    Err(error) => {
                        return Err(failed(&error, format!("cannot look at \"{}\"", path.display())));
                    }
                },
            };
            // An empty folder is what an interrupted creation leaves; it holds no object, so it is not there.
            if directory && !(prefix.is_empty() && name == TMP) && !is_empty(&path) {
                folders.push(name.to_string());
            }
            Ok(())
        })?;
        folders.sort();
        Ok(folders)
    }

    fn delete(&self, name: &str) -> Result<()> {
        let path = self.inner.path(name)?;
        Requests::count(&self.inner.requests.delete, 1);
        match std::fs::remove_file(&path) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == ErrorKind::NotFound => self.check_there(),
            Err(error) => Err(failed(&error, format!("cannot delete object \"{name}\""))),
        }
    }

    fn requests(&self) -> RequestCounts {
        self.inner.requests.counts()
    }

    fn sweep(&self, before: jiff::Timestamp) -> Result<u64> {
        let mut removed = 0;
        self.each_entry(TMP, |name, entry| {
            let Ok(modified) = entry.metadata().and_then(|metadata| metadata.modified()) else {
                return Ok(());
            };
            if name != RESERVE
                && jiff::Timestamp::try_from(modified).is_ok_and(|modified| modified < before)
                && std::fs::remove_file(self.inner.root.join(TMP).join(name)).is_ok()
            {
                removed += 1;
            }
            Ok(())
        })?;
        Ok(removed)
    }

    fn keep_reserve(&self) -> Result<()> {
        let path = self.inner.root.join(TMP).join(RESERVE);
        let reserve = || -> io::Result<()> {
            if std::fs::metadata(&path).is_ok_and(|metadata| metadata.len() >= RESERVE_BYTES) {
                return Ok(());
            }
            let (temporary, file) = self.inner.temporary()?;
            let kept = match rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, RESERVE_BYTES) {
                Ok(()) => std::fs::rename(&temporary, &path),
                // A file system that gives no room beforehand has none to put by either.
                Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => std::fs::remove_file(&temporary),
                Err(error) => Err(error.into()),
            };
            if kept.is_err() {
                let _ = std::fs::remove_file(&temporary);
            }
            kept
        };
        reserve().map_err(|error| failed(&error, "cannot put room by for expiring".to_string()))
    }

    fn release_reserve(&self) -> Result<bool> {
        match std::fs::remove_file(self.inner.root.join(TMP).join(RESERVE)) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(failed(
                &error,
                "cannot give up the room put by for expiring".to_string(),
            )),
        }
    }

    fn range_bytes(&self) -> usize {
        1 << 20
    }
}

impl LocalFolder {
    /// "Not there" is only said of an object if the folder itself is: a file system that is not mounted is an
    /// error.
    fn check_there(&self) -> Result<()> {
        match std::fs::metadata(&self.inner.root) {
            Ok(_) => Ok(()),
            Err(error) => {
                let root = self.inner.root.display();
                Err(failed(
                    &error,
                    format!("cannot open the repository's folder \"{root}\""),
                ))
            }
        }
    }

    /// Calls `each` for what stands in a folder of the store and can be part of a name; a folder that is not
    /// there is empty.
    fn each_entry(
        &self,
        folder: &str,
        mut each: impl FnMut(&str, &std::fs::DirEntry) -> Result<()>,
    ) -> Result<()> {
        let path = self.inner.root.join(folder);
        let error = |error: io::Error| failed(&error, format!("cannot list \"{}\"", path.display()));
        let entries = match std::fs::read_dir(&path) {
            Ok(entries) => entries,
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                return self.check_there();
            }
            Err(other) => return Err(error(other)),
        };
        for entry in entries {
            let entry = entry.map_err(error)?;
            let name: &OsStr = &entry.file_name();
            if let Ok(name) = std::str::from_utf8(name.as_bytes())
                && check_name(name).is_ok()
            {
                each(name, &entry)?;
            }
        }
        Ok(())
    }

    /// Objects below `folder` whose next component begins with `start`.
    fn walk(&self, folder: &str, start: &str, objects: &mut Vec<ObjectInfo>) -> Result<()> {
        let mut folders = Vec::new();
        self.each_entry(folder, |name, entry| {
            if !name.starts_with(start) || (folder.is_empty() && name == TMP) {
                return Ok(());
            }
            let full = if folder.is_empty() {
                name.to_string()
            } else {
                format!("{folder}/{name}")
            };
            // Follows symbolic links: somebody may have moved a part of the repository to another disk.
            let metadata = match std::fs::metadata(entry.path()) {
                Ok(metadata) => metadata,
                // Deleted since it was listed.
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
                Err(error) => return Err(failed(&error, format!("cannot look at object \"{full}\""))),
            };
            if metadata.is_dir() {
                if check_name(&full).is_ok() {
                    folders.push(full);
                }
            } else if metadata.is_file() && check_name(&full).is_ok() {
                let modified = metadata
                    .modified()
                    .ok()
                    .and_then(|time| jiff::Timestamp::try_from(time).ok());
                let modified = modified.unwrap_or(jiff::Timestamp::UNIX_EPOCH);
                objects.push(ObjectInfo {
                    name: full,
                    size: metadata.len(),
                    modified,
                });
            }
            Ok(())
        })?;
        folders
            .iter()
            .try_for_each(|folder| self.walk(folder, "", objects))
    }
}

fn is_empty(directory: &Path) -> bool {
    std::fs::read_dir(directory).is_ok_and(|mut entries| entries.next().is_none())
}

/// An object on its way from `tmp/` to its name.
struct LocalWriter {
    inner: Arc<Inner>,
    name: String,
    path: PathBuf,
    /// `None` once it has its name.
    temporary: Option<PathBuf>,
    file: File,
    buffer: Vec<u8>,
    written: u64,
    /// Bytes that the kernel was asked to begin writing.
    handed_on: u64,
}

impl LocalWriter {
    fn flush_buffer(&mut self) -> io::Result<()> {
        self.file.write_all(&self.buffer)?;
        self.buffer.clear();
        self.begin_write_back();
        Ok(())
    }

    /// `POSIX_FADV_DONTNEED` starts the writing of dirty pages and does not wait for it. It is a hint;
    /// failing is fine.
    fn begin_write_back(&mut self) {
        let fresh = self.written - self.handed_on;
        if fresh >= WRITE_BACK_BYTES {
            let _ = rustix::fs::fadvise(
                &self.file,
                self.handed_on,
                NonZeroU64::new(fresh),
                rustix::fs::Advice::DontNeed,
            );
            self.handed_on = self.written;
        }
    }
}

impl Write for LocalWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.buffer.len() + bytes.len() > BUFFER_BYTES {
            self.flush_buffer()?;
        }
        if bytes.len() >= BUFFER_BYTES {
            self.file.write_all(bytes)?;
        } else {
            self.buffer.extend_from_slice(bytes);
        }
        self.written += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.flush_buffer()
    }
}

impl ObjectWriter for LocalWriter {
    fn position(&self) -> u64 {
        self.written
    }

    fn finish(mut self: Box<Self>) -> Result<Put> {
        let mut finish = || -> io::Result<Put> {
            self.flush_buffer()?;
            self.file.sync_data()?;
            let Some(temporary) = self.temporary.take() else {
                return Err(io::Error::other("an object was finished twice"));
            };
            let put = self.inner.publish(&temporary, &self.path);
            if put.is_err() {
                self.temporary = Some(temporary);
            }
            put
        };
        let put =
            finish().map_err(|error| failed(&error, format!("cannot create object \"{}\"", self.name)))?;
        Requests::count(&self.inner.requests.bytes_written, self.written);
        Ok(put)
    }
}

impl Drop for LocalWriter {
    fn drop(&mut self) {
        if let Some(temporary) = &self.temporary {
            // Nothing refers to it; what cannot be removed now is swept later.
            let _ = std::fs::remove_file(temporary);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> (tempfile::TempDir, LocalFolder) {
        let directory = tempfile::tempdir().unwrap();
        let store = LocalFolder::create(&directory.path().join("a/repository")).unwrap();
        (directory, store)
    }

    #[test]
    fn a_local_folder_conforms() {
        let (_directory, store) = folder();
        super::super::conformance(&store);
    }

    #[test]
    fn a_file_system_that_is_not_mounted_is_not_an_empty_repository() {
        let (directory, store) = folder();
        std::fs::rename(directory.path().join("a"), directory.path().join("b")).unwrap();
        assert_eq!(store.read("x").unwrap_err().code(), "store-unreachable");
        assert_eq!(store.size("x").unwrap_err().code(), "store-unreachable");
        assert_eq!(store.list("").unwrap_err().code(), "store-unreachable");
        assert_eq!(store.put_new("x", b"1").unwrap_err().code(), "store-unreachable");
        assert_eq!(
            LocalFolder::open(store.root()).unwrap_err().code(),
            "store-unreachable"
        );
    }

    #[test]
    fn what_a_crash_leaves_in_tmp_is_invisible_and_is_swept() {
        let (_directory, store) = folder();
        let mut writer = store.writer("a/b").unwrap();
        writer.write_all(&[7; 300_000]).unwrap();
        // As after SIGKILL: the temporary file stays.
        std::mem::forget(writer);
        assert_eq!(store.list("").unwrap(), []);
        assert_eq!(store.list_folders("").unwrap(), Vec::<String>::new());
        assert_eq!(store.put_new("a/b", b"whole").unwrap(), Put::Created);
        let future = jiff::Timestamp::now() + jiff::Span::new().hours(1);
        assert_eq!(store.sweep("2020-01-01T00:00:00Z".parse().unwrap()).unwrap(), 0);
        assert_eq!(store.sweep(future).unwrap(), 1);
        assert_eq!(store.read("a/b").unwrap().unwrap(), b"whole");
    }

    #[test]
    fn the_room_that_is_put_by_is_no_object_is_not_swept_and_is_given_up_once() {
        let (_directory, store) = folder();
        assert!(!store.release_reserve().unwrap());
        store.keep_reserve().unwrap();
        store.keep_reserve().unwrap();
        let room = std::fs::metadata(store.root().join("tmp/reserve")).unwrap();
        assert!(room.blocks() * 512 >= RESERVE_BYTES);
        let future = jiff::Timestamp::now() + jiff::Span::new().hours(1);
        assert_eq!(store.sweep(future).unwrap(), 0);
        assert_eq!(store.list("").unwrap(), []);
        assert!(store.release_reserve().unwrap());
        assert!(!store.release_reserve().unwrap());
    }

    #[test]
    fn objects_belong_to_their_owner_alone() {
        use std::os::unix::fs::PermissionsExt;
        let (_directory, store) = folder();
        store.put_new("a/b", b"1").unwrap();
        let mode = |path: &str| {
            std::fs::metadata(store.root().join(path))
                .unwrap()
                .permissions()
                .mode()
                & 0o7777
        };
        assert_eq!((mode("a"), mode("a/b"), mode("tmp")), (0o700, 0o600, 0o700));
        assert_eq!(store.put_new("tmp/x", b"1").unwrap_err().code(), "object-name");
    }
}
