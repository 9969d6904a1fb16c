//! The blocks of a delta restore: compared by their digests with the map, and written where they differ.
//!
//! One thread walks the backup in path order, makes folders and links, and hands out work; workers read what is
//! there, compare, and fetch from the packs only blocks that differ. Invariants: those of [`crate::delta`];
//! memory is that of the queue and two buffers for each worker.

use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

use diagnostic::{Error, Result};
use repository::{
    BLOCK_BYTES, BlockFlags, BlockReader, ClusterRepository, Content, EntryKind, FileEntry, Leaf, LeafRef,
    Piece, RelativePath, TreeReader, Wanted,
};
use rustix::fs::FileType;

use crate::anchored::{Folder, settle};
use crate::delta::{DeltaCounts, Ground, Pass};
use crate::files::{
    BATCH_BYTES, BATCH_FILES, LEAVES_AT_ONCE, Place, about, mode_of, next, place, stopped, tablespace_target,
};
use crate::plan::Plan;
use crate::progress::Progress;
use crate::settings::REFERENCE_FOLDER;
use crate::sync::write_error;

/// Bytes of a file that are read at once.
const READ_BYTES: usize = 1 << 20;

/// A file of the backup, and where it goes.
struct Item {
    /// `None`: the folder is not there (only while looking).
    folder: Option<Arc<Folder>>,
    name: Vec<u8>,
    path: PathBuf,
    entry: FileEntry,
}

/// A file that is compared.
struct Target {
    /// `None`: it is not there (only while looking).
    file: Option<File>,
    /// Just made: it holds nothing to compare.
    fresh: bool,
    size: u64,
    path: PathBuf,
}

enum Work {
    Batch(Vec<Item>),
    Part {
        target: Arc<Target>,
        leaves: Vec<LeafRef>,
    },
}

#[derive(Default)]
struct Counters {
    files: AtomicU64,
    bytes: AtomicU64,
    compared: AtomicU64,
    blocks: AtomicU64,
    written: AtomicU64,
    made: AtomicU64,
}

struct Shared<'a> {
    plan: &'a Plan,
    cluster: &'a ClusterRepository,
    tree: &'a TreeReader,
    progress: &'a dyn Progress,
    pass: Pass,
    ground: Ground,
    failed: AtomicBool,
    error: Mutex<Option<Error>>,
    counters: Counters,
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
        self.counters.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.counters.files.fetch_add(files, Ordering::Relaxed);
        self.progress.advance(bytes, files);
    }
}

fn add(counter: &AtomicU64, value: u64) {
    counter.fetch_add(value, Ordering::Relaxed);
}

/// Compares everything but the late files, and writes what differs if that is what the pass is for.
pub(crate) fn pass(
    plan: &Plan,
    cluster: &ClusterRepository,
    tree: &TreeReader,
    threads: usize,
    progress: &dyn Progress,
    pass: Pass,
) -> Result<DeltaCounts> {
    let shared = Shared {
        plan,
        cluster,
        tree,
        progress,
        pass,
        ground: Ground::open(plan)?,
        failed: AtomicBool::new(false),
        error: Mutex::new(None),
        counters: Counters::default(),
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
    if let Some(error) = shared.error.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(error);
    }
    let counters = shared.counters;
    Ok(DeltaCounts {
        files: counters.files.into_inner(),
        bytes: counters.bytes.into_inner(),
        bytes_compared: counters.compared.into_inner(),
        blocks_written: counters.blocks.into_inner(),
        bytes_written: counters.written.into_inner(),
        files_made: counters.made.into_inner(),
        removed: 0,
    })
}

/// Walks the backup in path order. Ends early without an error when a worker has failed.
fn walk(shared: &Shared<'_>, sender: SyncSender<Work>) -> Result<()> {
    let plan = shared.plan;
    let mut batch = Vec::new();
    let mut batch_bytes = 0;
    let send = |work: Work| sender.send(work).map_err(|_| stopped());
    for entry in shared.tree.entries() {
        if shared.failed() {
            return Ok(());
        }
        let entry = entry?;
        let path = match place(plan, &entry.path, &entry.kind)? {
            Place::At(_) => entry.path.clone(),
            Place::Reference(path) => {
                if !matches!(entry.kind, EntryKind::File { .. }) {
                    continue;
                }
                below(plan, &path)?
            }
            Place::Skip => continue,
        };
        let above = path.parent();
        let folder = folders(shared, above.as_ref(), entry.path != path)?;
        let name = path.file_name().to_vec();
        let shown = path.under(&plan.destination);
        match &entry.kind {
            EntryKind::Directory => {
                if let (Pass::Change, Some(folder)) = (shared.pass, &folder) {
                    folder.make(std::ffi::OsStr::from_bytes(&name), entry.mode, plan.owner)?;
                }
            }
            EntryKind::Symlink(target) => {
                if let (Pass::Change, Some(folder)) = (shared.pass, &folder) {
                    let name = std::ffi::OsStr::from_bytes(&name);
                    match tablespace_target(plan, &path, target)? {
                        // What stands there leads to the right place: else it was removed before.
                        Some(to) if folder.look(name)?.is_none() => folder.link(name, &to, plan.owner)?,
                        Some(_) => {}
                        None => drop(folder.make(name, 0o700, plan.owner)?),
                    }
                }
            }
            EntryKind::File {
                content: Content::Leaves(leaves),
                ..
            } => {
                let leaves = leaves.clone();
                let item = Item {
                    folder,
                    name,
                    path: shown,
                    entry,
                };
                let target = Arc::new(open(shared, &item)?);
                shared.advance(0, 1);
                for part in leaves.chunks(LEAVES_AT_ONCE) {
                    send(Work::Part {
                        target: target.clone(),
                        leaves: part.to_vec(),
                    })?;
                }
            }
            EntryKind::File { .. } => {
                batch_bytes += entry.size;
                batch.push(Item {
                    folder,
                    name,
                    path: shown,
                    entry,
                });
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

/// A path in the data directory as a relative one.
fn below(plan: &Plan, path: &std::path::Path) -> Result<RelativePath> {
    let rest = path.strip_prefix(&plan.destination).unwrap_or(path);
    RelativePath::new(rest.as_os_str().as_bytes())
}

/// The folder in which an entry stands; those of the reference folder are made on the way.
fn folders(shared: &Shared<'_>, path: Option<&RelativePath>, make: bool) -> Result<Option<Arc<Folder>>> {
    let bytes = path.map_or(&b""[..], RelativePath::as_bytes);
    if let Some(folder) = shared.ground.folder(bytes)? {
        return Ok(Some(folder));
    }
    match (shared.pass, path) {
        (Pass::Look, _) => Ok(None),
        (Pass::Change, Some(path)) if make && path.is_within(REFERENCE_FOLDER.as_bytes()) => {
            let Some(above) = folders(shared, path.parent().as_ref(), make)? else {
                return Ok(None);
            };
            let name = std::ffi::OsStr::from_bytes(path.file_name());
            Ok(Some(Arc::new(above.make(name, 0o700, shared.plan.owner)?)))
        }
        (Pass::Change, path) => Err(Error::new(
            "restore-changed",
            format!(
                "\"{}\" disappeared while it was being restored",
                path.map_or(shared.plan.destination.clone(), |path| path
                    .under(&shared.plan.destination))
                    .display()
            ),
        )
        .hint("Let nothing else write there, and run the same command again: it goes on.")),
    }
}

/// Opens what is to be compared; makes it, and sets size, permissions and owner, if the pass changes things.
fn open(shared: &Shared<'_>, item: &Item) -> Result<Target> {
    let name = std::ffi::OsStr::from_bytes(&item.name);
    let size = item.entry.size;
    let target = |file: Option<File>, fresh: bool| Target {
        file,
        fresh,
        size,
        path: item.path.clone(),
    };
    let Some(folder) = &item.folder else {
        add(&shared.counters.made, 1);
        return Ok(target(None, true));
    };
    let found = folder
        .look(name)?
        .filter(|found| found.kind == FileType::RegularFile && found.links == 1);
    if shared.pass == Pass::Look {
        add(&shared.counters.made, u64::from(found.is_none()));
        return match found {
            Some(_) => Ok(target(Some(folder.open(name, false)?), false)),
            None => Ok(target(None, true)),
        };
    }
    let mode = mode_of(shared.plan, &item.path, item.entry.mode);
    let failed = |error: std::io::Error| write_error(&item.path, &error);
    let (file, fresh) = match found {
        Some(found) => {
            let file = folder.open(name, true)?;
            settle(&file, &found, mode, shared.plan.owner).map_err(|error| failed(error.into()))?;
            if found.size != size {
                file.set_len(size).map_err(failed)?;
            }
            (file, false)
        }
        None => {
            add(&shared.counters.made, 1);
            let file = folder.create(name, mode, shared.plan.owner)?;
            file.set_len(size).map_err(failed)?;
            (file, true)
        }
    };
    Ok(target(Some(file), fresh))
}

/// A worker's buffers and its way of reading packs.
struct Worker {
    reader: Option<BlockReader>,
    read: Vec<u8>,
}

impl Worker {
    fn reader(&mut self, cluster: &ClusterRepository) -> Result<&mut BlockReader> {
        if self.reader.is_none() {
            self.reader = Some(BlockReader::new(cluster)?);
        }
        self.reader
            .as_mut()
            .ok_or_else(|| Error::new("restore-internal", "no reader"))
    }
}

fn work(shared: &Shared<'_>, receiver: &Mutex<Receiver<Work>>) -> Result<()> {
    let mut worker = Worker {
        reader: None,
        read: vec![0; READ_BYTES],
    };
    while let Some(work) = next(receiver) {
        if shared.failed() {
            continue;
        }
        match work {
            Work::Batch(items) => batch(shared, &mut worker, &items)?,
            Work::Part { target, leaves } => {
                for leaf in &leaves {
                    let leaf = shared
                        .tree
                        .leaf(leaf)
                        .map_err(|error| about(error, &target.path))?;
                    one_leaf(shared, &mut worker, &target, &leaf)?;
                }
            }
        }
    }
    Ok(())
}

fn one_leaf(shared: &Shared<'_>, worker: &mut Worker, target: &Target, leaf: &Leaf) -> Result<()> {
    let differs = compare(shared, &mut worker.read, target, leaf)?;
    if shared.pass == Pass::Look || !differs.contains(&true) {
        return Ok(());
    }
    worker
        .reader(shared.cluster)?
        .read_blocks(
            leaf,
            target.size,
            &|index| differs.get(index).copied().unwrap_or(false),
            &mut |offset, piece| put(target, offset, piece),
        )
        .map_err(|error| about(error, &target.path))
}

/// Small files: compared one by one, and what differs of all of them is fetched together.
fn batch(shared: &Shared<'_>, worker: &mut Worker, items: &[Item]) -> Result<()> {
    let mut targets = Vec::with_capacity(items.len());
    let mut differs = Vec::with_capacity(items.len());
    let mut wanted = Vec::new();
    for (at, item) in items.iter().enumerate() {
        let EntryKind::File {
            content: Content::Inline(leaf),
            ..
        } = &item.entry.kind
        else {
            let message = format!("\"{}\" is not a small file", item.path.display());
            return Err(Error::new("restore-internal", message));
        };
        let target = open(shared, item)?;
        let blocks = compare(shared, &mut worker.read, &target, leaf)?;
        if blocks.contains(&true) {
            wanted.push(Wanted {
                item: at,
                leaf,
                size: item.entry.size,
            });
        }
        targets.push(target);
        differs.push(blocks);
        shared.advance(0, 1);
    }
    if shared.pass == Pass::Look || wanted.is_empty() {
        return Ok(());
    }
    let first = wanted
        .first()
        .and_then(|first| items.get(first.item))
        .map_or(shared.plan.destination.as_path(), |item| item.path.as_path());
    let want = |item: usize, index: usize| {
        differs
            .get(item)
            .and_then(|blocks| blocks.get(index))
            .copied()
            .unwrap_or(false)
    };
    worker
        .reader(shared.cluster)?
        .read_some(
            &wanted,
            &want,
            &mut |item, offset, piece| match targets.get(item) {
                Some(target) => put(target, offset, piece),
                None => Ok(()),
            },
        )
        .map_err(|error| about(error, first))
}

/// Which blocks of a leaf are not what the map says.
fn compare(shared: &Shared<'_>, buffer: &mut [u8], target: &Target, leaf: &Leaf) -> Result<Vec<bool>> {
    let blocks = leaf.blocks() as usize;
    let begin = u64::from(leaf.first_block) * BLOCK_BYTES as u64;
    let bytes = target
        .size
        .saturating_sub(begin)
        .min((blocks * BLOCK_BYTES) as u64);
    let length =
        |index: usize| (bytes.saturating_sub((index * BLOCK_BYTES) as u64) as usize).min(BLOCK_BYTES);
    let zero = |index: usize| {
        leaf.flags(index)
            .is_some_and(|flags| flags.contains(BlockFlags::ZERO))
    };
    let mut differs = vec![true; blocks];
    match &target.file {
        Some(file) if !target.fresh => {
            let per_read = buffer.len() / BLOCK_BYTES;
            for first in (0..blocks).step_by(per_read.max(1)) {
                let last = (first + per_read).min(blocks);
                let wanted: usize = (first..last).map(length).sum();
                let room = buffer.get_mut(..wanted).unwrap_or_default();
                let read = read_at(file, room, begin + (first * BLOCK_BYTES) as u64)
                    .map_err(|error| write_error(&target.path, &error))?;
                add(&shared.counters.compared, read as u64);
                for index in first..last {
                    let from = (index - first) * BLOCK_BYTES;
                    let there = room
                        .get(from..(from + length(index)).min(read))
                        .unwrap_or_default();
                    let same = there.len() == length(index)
                        && if zero(index) {
                            there.iter().all(|byte| *byte == 0)
                        } else {
                            leaf.digest(index) == Some(shared.cluster.identity().digest(there))
                        };
                    if let Some(differs) = differs.get_mut(index) {
                        *differs = !same;
                    }
                }
            }
        }
        // A file that was just made is zero already.
        _ => differs
            .iter_mut()
            .enumerate()
            .for_each(|(index, differs)| *differs = !zero(index)),
    }
    let (mut count, mut written) = (0, 0);
    for (index, differs) in differs.iter().enumerate() {
        if *differs {
            count += 1;
            written += length(index) as u64;
        }
    }
    add(&shared.counters.blocks, count);
    add(&shared.counters.written, written);
    shared.advance(bytes, 0);
    Ok(differs)
}

/// Reads as much as there is.
fn read_at(file: &File, buffer: &mut [u8], offset: u64) -> std::io::Result<usize> {
    let mut done = 0;
    while let Some(rest) = buffer.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, offset + done as u64) {
            Ok(0) => break,
            Ok(read) => done += read,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

fn put(target: &Target, offset: u64, piece: Piece<'_>) -> Result<()> {
    const ZEROS: [u8; BLOCK_BYTES] = [0; BLOCK_BYTES];
    let Some(file) = &target.file else { return Ok(()) };
    let written = match piece {
        Piece::Data(bytes) => file.write_all_at(bytes, offset),
        Piece::Zeros(mut bytes) => {
            let mut at = offset;
            let mut outcome = Ok(());
            while bytes > 0 && outcome.is_ok() {
                let now = bytes.min(BLOCK_BYTES as u64);
                outcome = file.write_all_at(ZEROS.get(..now as usize).unwrap_or_default(), at);
                at += now;
                bytes -= now;
            }
            outcome
        }
    };
    written.map_err(|error| write_error(&target.path, &error))
}
