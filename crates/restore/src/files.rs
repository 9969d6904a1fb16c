//! Writing a backup's files, by several threads with bounded memory.
//!
//! One thread walks the directory of the backup in path order, makes directories and links, and hands out
//! work; workers read blocks and write files. Invariants: every file is new (`O_EXCL`), so nothing that
//! exists is written through; blocks that are all zero are left out, which the file system gives back as
//! zeros; memory is that of the queue and one buffer for each worker, whatever the size of the database.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

use diagnostic::{Error, Result};
use repository::{
    BlockReader, ClusterRepository, Content, EntryKind, FileEntry, Leaf, LeafRef, Piece, RelativePath,
    TreeReader, Wanted,
};

use crate::large_file::{Gatherer, LargeFile};
use crate::marker::{DELTA_NAME, JOURNAL_NAME, MARKER_NAME};
use crate::plan::Plan;
use crate::progress::Progress;
use crate::settings::REFERENCE_FOLDER;
use crate::sync::{give, write_error};

/// A batch of small files ends when it has so many bytes or files.
pub(crate) const BATCH_BYTES: u64 = 2 << 20;
pub(crate) const BATCH_FILES: usize = 128;
/// Leaves (8 MiB of a file each) handed out at once.
pub(crate) const LEAVES_AT_ONCE: usize = 2;

/// What was written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Written {
    pub(crate) files: u64,
    pub(crate) bytes: u64,
}

/// Where an entry of the backup goes.
pub(crate) enum Place {
    /// Here.
    At(PathBuf),
    /// Into the reference folder, readable by its owner alone.
    Reference(PathBuf),
    /// Nowhere: it must not come back.
    Skip,
}

enum Work {
    /// Small files, their leaves at hand.
    Batch(Vec<(PathBuf, FileEntry)>),
    /// A part of a large file, which is made already.
    Part {
        file: Arc<LargeFile>,
        leaves: Vec<LeafRef>,
    },
}

struct Shared<'a> {
    plan: &'a Plan,
    cluster: &'a ClusterRepository,
    tree: &'a TreeReader,
    progress: &'a dyn Progress,
    failed: AtomicBool,
    error: Mutex<Option<Error>>,
    files: AtomicU64,
    bytes: AtomicU64,
}

impl Shared<'_> {
    fn fail(&self, error: Error) {
        self.error
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get_or_insert(error);
        self.failed.store(true, Ordering::Relaxed);
    }

    /// Whether to go no further: something failed, or whoever watches says so.
    fn failed(&self) -> bool {
        if self.progress.is_to_stop() {
            self.fail(stopped());
        }
        self.failed.load(Ordering::Relaxed)
    }

    fn advance(&self, bytes: u64, files: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.files.fetch_add(files, Ordering::Relaxed);
        self.progress.advance(bytes, files);
    }
}

/// Writes everything but the late files.
pub(crate) fn write_files(
    plan: &Plan,
    cluster: &ClusterRepository,
    tree: &TreeReader,
    threads: usize,
    progress: &dyn Progress,
) -> Result<Written> {
    let shared = Shared {
        plan,
        cluster,
        tree,
        progress,
        failed: AtomicBool::new(false),
        error: Mutex::new(None),
        files: AtomicU64::new(0),
        bytes: AtomicU64::new(0),
    };
    let threads = threads.max(1);
    let (sender, receiver) = sync_channel::<Work>(threads * 2);
    let receiver = Mutex::new(receiver);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                if let Err(error) = work(&shared, &receiver) {
                    shared.fail(error);
                    // Drain, so that the walk does not wait for ever on a full queue.
                    while next(&receiver).is_some() {}
                }
            });
        }
        if let Err(error) = walk(&shared, sender) {
            shared.fail(error);
        }
    });
    match shared.error.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(error) => Err(error),
        None => Ok(Written {
            files: shared.files.into_inner(),
            bytes: shared.bytes.into_inner(),
        }),
    }
}

pub(crate) fn next<W>(receiver: &Mutex<Receiver<W>>) -> Option<W> {
    receiver
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .recv()
        .ok()
}

/// Walks the backup in path order. Ends early without an error when a worker has failed.
fn walk(shared: &Shared<'_>, sender: SyncSender<Work>) -> Result<()> {
    let mut batch = Vec::new();
    let mut batch_bytes = 0;
    let send = |work: Work| sender.send(work).map_err(|_| stopped());
    for entry in shared.tree.entries() {
        if shared.failed() {
            return Ok(());
        }
        let entry = entry?;
        let path = match place(shared.plan, &entry.path, &entry.kind)? {
            Place::At(path) => path,
            Place::Reference(path) => {
                if !matches!(entry.kind, EntryKind::File { .. }) {
                    continue;
                }
                make_folders(shared.plan, path.parent())?;
                path
            }
            Place::Skip => continue,
        };
        match &entry.kind {
            EntryKind::Directory => make_folder(&path, entry.mode, shared.plan.owner)?,
            EntryKind::Symlink(target) => link(shared.plan, &entry.path, target, &path)?,
            EntryKind::File {
                content: Content::Leaves(leaves),
                ..
            } => {
                let file = create(&path, entry.mode, shared.plan.owner)?;
                shared.advance(0, 1);
                let file = Arc::new(LargeFile::new(file, path, entry.size)?);
                for part in leaves.chunks(LEAVES_AT_ONCE) {
                    send(Work::Part {
                        file: file.clone(),
                        leaves: part.to_vec(),
                    })?;
                }
            }
            EntryKind::File { .. } => {
                batch_bytes += entry.size;
                batch.push((path, entry));
                if batch.len() >= BATCH_FILES || batch_bytes >= BATCH_BYTES {
                    send(Work::Batch(std::mem::take(&mut batch)))?;
                    batch_bytes = 0;
                }
            }
        }
    }
    if !batch.is_empty() {
        send(Work::Batch(batch))?;
    }
    Ok(())
}

fn work(shared: &Shared<'_>, receiver: &Mutex<Receiver<Work>>) -> Result<()> {
    let mut reader = BlockReader::new(shared.cluster)?;
    let mut buffer = Vec::new();
    let mut gatherer = Gatherer::new();
    while let Some(work) = next(receiver) {
        if shared.failed() {
            continue;
        }
        match work {
            Work::Batch(files) => write_batch(shared, &mut reader, &mut buffer, &files)?,
            Work::Part { file, leaves } => {
                for leaf in &leaves {
                    let leaf = shared.tree.leaf(leaf).map_err(|error| about(error, &file.path))?;
                    write_leaf(shared, &mut reader, &mut gatherer, &file, &leaf)?;
                }
            }
        }
    }
    Ok(())
}

fn write_leaf(
    shared: &Shared<'_>,
    reader: &mut BlockReader,
    gatherer: &mut Gatherer,
    file: &LargeFile,
    leaf: &Leaf,
) -> Result<()> {
    let mut write = |offset: u64, piece: Piece<'_>| match piece {
        Piece::Data(bytes) => {
            gatherer.write(file, bytes, offset)?;
            shared.advance(bytes.len() as u64, 0);
            Ok(())
        }
        Piece::Zeros(bytes) => {
            shared.advance(bytes, 0);
            Ok(())
        }
    };
    reader
        .read_leaf(leaf, file.size, &mut write)
        .map_err(|error| about(error, &file.path))?;
    gatherer.flush(file)
}

/// Small files are put together in memory and written with one call each.
fn write_batch(
    shared: &Shared<'_>,
    reader: &mut BlockReader,
    buffer: &mut Vec<u8>,
    files: &[(PathBuf, FileEntry)],
) -> Result<()> {
    let mut starts = Vec::with_capacity(files.len());
    let mut wanted = Vec::with_capacity(files.len());
    let mut total = 0_usize;
    for (item, (path, entry)) in files.iter().enumerate() {
        let EntryKind::File {
            content: Content::Inline(leaf),
            ..
        } = &entry.kind
        else {
            return Err(Error::new(
                "restore-internal",
                format!("\"{}\" is not a small file", path.display()),
            ));
        };
        starts.push(total);
        // An inline leaf has at most 32 blocks, checked when it was decoded.
        total += entry.size as usize;
        wanted.push(Wanted {
            item,
            leaf,
            size: entry.size,
        });
    }
    buffer.clear();
    buffer.resize(total, 0);
    let mut copy = |item: usize, offset: u64, piece: Piece<'_>| {
        let Piece::Data(bytes) = piece else { return Ok(()) };
        let start = starts
            .get(item)
            .and_then(|start| start.checked_add(usize::try_from(offset).ok()?));
        let place = start.and_then(|start| buffer.get_mut(start..start.checked_add(bytes.len())?));
        match place {
            Some(place) => {
                place.copy_from_slice(bytes);
                Ok(())
            }
            None => Err(Error::new("object-damaged", "a block lies outside of its file")),
        }
    };
    let first = files
        .first()
        .map(|(path, _)| path.as_path())
        .unwrap_or(Path::new(""));
    reader
        .read_leaves(&wanted, &mut copy)
        .map_err(|error| about(error, first))?;
    for ((path, entry), start) in files.iter().zip(&starts) {
        let content = buffer
            .get(*start..*start + entry.size as usize)
            .unwrap_or_default();
        let mut file = create(path, mode_of(shared.plan, path, entry.mode), shared.plan.owner)?;
        // Whole zero files stay sparse; others are written in one piece.
        let written = if content.iter().all(|byte| *byte == 0) {
            file.set_len(entry.size)
        } else {
            file.write_all(content)
        };
        written.map_err(|error| write_error(path, &error))?;
        shared.advance(entry.size, 1);
    }
    Ok(())
}

/// The error of a restore that was told to go no further.
pub(crate) fn stopped() -> Error {
    Error::new("restore-stopped", "the restore was stopped")
}

/// Tells for which file a block could not be read.
pub(crate) fn about(error: Error, path: &Path) -> Error {
    error.context(format!("cannot restore \"{}\"", path.display()))
}

pub(crate) fn mode_of(plan: &Plan, path: &Path, mode: u32) -> u32 {
    // Captured configuration may hold passwords.
    if path.starts_with(plan.destination.join(REFERENCE_FOLDER)) {
        0o600
    } else {
        mode
    }
}

/// Where an entry goes.
pub(crate) fn place(plan: &Plan, path: &RelativePath, kind: &EntryKind) -> Result<Place> {
    let bytes = path.as_bytes();
    let reference = |name: &[u8]| {
        RelativePath::new(name)
            .map(|name| Place::Reference(name.under(&plan.destination.join(REFERENCE_FOLDER))))
    };
    if let Some(name) = bytes.strip_prefix(b"@config/") {
        return reference(name);
    }
    let ours = [MARKER_NAME, JOURNAL_NAME, DELTA_NAME, REFERENCE_FOLDER];
    let never = [
        "recovery.signal",
        "standby.signal",
        "postmaster.pid",
        "postmaster.opts",
        "@config",
    ];
    let top = |name: &&str| path.is_within(name.as_bytes());
    if ours.iter().any(top) || never.iter().any(|name| name.as_bytes() == bytes) {
        return Ok(Place::Skip);
    }
    let generated = plan.generated.iter().any(|file| file.name.as_bytes() == bytes);
    if generated || bytes == b"postgresql.auto.conf" {
        return if matches!(kind, EntryKind::File { .. }) {
            reference(bytes)
        } else {
            Ok(Place::Skip)
        };
    }
    Ok(Place::At(path.under(&plan.destination)))
}

/// Where a link of the backup leads here; `None` for `pg_wal`, which becomes a folder: its old place may be in use.
pub(crate) fn tablespace_target(plan: &Plan, path: &RelativePath, target: &[u8]) -> Result<Option<PathBuf>> {
    let tablespace = path
        .as_bytes()
        .strip_prefix(b"pg_tblspc/")
        .and_then(|oid| std::str::from_utf8(oid).ok()?.parse::<u32>().ok());
    match tablespace {
        Some(oid) => {
            let location = plan
                .tablespaces
                .iter()
                .find(|known| known.oid == oid)
                .and_then(|known| known.location.clone());
            location.map(Some).ok_or_else(|| {
                Error::new(
                    "tablespace-unplanned",
                    format!("the backup holds tablespace {oid}, which its record does not name"),
                )
            })
        }
        None if path.as_bytes() == b"pg_wal" => Ok(None),
        None => Ok(Some(PathBuf::from(std::ffi::OsStr::from_bytes(target)))),
    }
}

fn link(plan: &Plan, path: &RelativePath, target: &[u8], at: &Path) -> Result<()> {
    let Some(to) = tablespace_target(plan, path, target)? else {
        return make_folder(at, 0o700, plan.owner);
    };
    match std::os::unix::fs::symlink(&to, at) {
        Ok(()) => give(at, plan.owner),
        Err(error) => Err(write_error(at, &error)),
    }
}

fn create(path: &Path, mode: u32, owner: Option<(u32, u32)>) -> Result<File> {
    let attempt = || -> std::io::Result<File> {
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(path)?;
        if mode & 0o077 != 0 {
            // The process's umask takes these away.
            file.set_permissions(std::fs::Permissions::from_mode(mode))?;
        }
        if let Some((user, group)) = owner {
            std::os::unix::fs::fchown(&file, Some(user), Some(group))?;
        }
        Ok(file)
    };
    attempt().map_err(|error| write_error(path, &error))
}

/// Makes a directory that may be there already.
pub(crate) fn make_folder(path: &Path, mode: u32, owner: Option<(u32, u32)>) -> Result<()> {
    match std::fs::DirBuilder::new().mode(mode).create(path) {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::AlreadyExists && is_folder(path) => return Ok(()),
        Err(error) => return Err(write_error(path, &error)),
    }
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
        .map_err(|error| write_error(path, &error))?;
    give(path, owner)
}

fn is_folder(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_dir())
}

/// Makes a directory below the destination with those above it.
fn make_folders(plan: &Plan, path: Option<&Path>) -> Result<()> {
    let Some(path) = path else { return Ok(()) };
    if path.is_dir() {
        return Ok(());
    }
    if path != plan.destination {
        make_folders(plan, path.parent())?;
    }
    make_folder(path, 0o700, plan.owner)
}
