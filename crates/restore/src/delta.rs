//! Making an existing directory what the backup says, in place: the one restore that destroys. Hard rule 25.
//!
//! Invariants: before anything else is changed, WAL that no copy has is copied aside and `global/pg_control` is
//! moved away, both durably, under the journal `pgproof.delta`: a directory that is half done cannot start, and
//! the same command goes on; whether a block stays is decided by its 128-bit digest alone, never by a size, a
//! time or an LSN; no link is followed below the data directory and the planned locations of tablespaces, and
//! a file with a second name is replaced, never written through; packs are read only for blocks that differ.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::Read;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use diagnostic::{Error, Result};
use postgres::Oid;
use repository::{ClusterRepository, EntryKind, RelativePath, TreeReader};
use rustix::fs::FileType;
use serde::{Deserialize, Serialize};

use crate::anchored::{Folder, components};
use crate::files::{Place, place, tablespace_target};
use crate::marker::{DELTA_NAME, JOURNAL_NAME, MARKER_NAME};
use crate::plan::{KeptAside, Plan};
use crate::progress::Progress;
use crate::sync::{sync_directory, write_durably, write_error};

/// What a delta restore does besides writing blocks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeltaPlan {
    /// Names in `pg_wal` that no copy has: copied aside before anything is changed.
    pub wal_saved: Vec<String>,
    /// The folder that a cluster of this version and catalog has in each tablespace.
    pub version_folder: String,
    /// Tablespaces that the backup does not have: that folder goes, and the link.
    pub dropped_tablespaces: Vec<(Oid, PathBuf)>,
}

/// What was compared, and what of it differed. Of a dry run: what would be written and removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeltaCounts {
    pub files: u64,
    /// Bytes of the backup's files.
    pub bytes: u64,
    /// Bytes read from the directory and compared by their digests.
    pub bytes_compared: u64,
    pub blocks_written: u64,
    pub bytes_written: u64,
    /// Files of the backup that were not there.
    pub files_made: u64,
    /// Names that do not belong there.
    pub removed: u64,
}

/// Whether a pass only looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pass {
    Look,
    Change,
}

/// The folders below which a delta works.
pub(crate) struct Ground {
    root: Arc<Folder>,
    tablespaces: BTreeMap<Oid, Option<Arc<Folder>>>,
    /// The folder that was asked for last: work comes in path order.
    last: Mutex<Option<(Vec<u8>, Arc<Folder>)>>,
}

impl Ground {
    pub(crate) fn open(plan: &Plan) -> Result<Ground> {
        let mut tablespaces = BTreeMap::new();
        for tablespace in &plan.tablespaces {
            if let Some(location) = &tablespace.location {
                let there = location.is_dir().then(|| Folder::root(location)).transpose()?;
                tablespaces.insert(tablespace.oid, there.map(Arc::new));
            }
        }
        Ok(Ground {
            root: Arc::new(Folder::root(&plan.destination)?),
            tablespaces,
            last: Mutex::new(None),
        })
    }

    /// The folder at a path of the backup; `None` if it is not there as a folder.
    pub(crate) fn folder(&self, path: &[u8]) -> Result<Option<Arc<Folder>>> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((known, folder)) = &*last
            && known == path
        {
            return Ok(Some(folder.clone()));
        }
        let (mut folder, rest) = match self.start(path) {
            (Some(folder), rest) => (folder, rest),
            (None, _) => return Ok(None),
        };
        for name in components(rest) {
            match folder.child(name)? {
                Some(child) => folder = Arc::new(child),
                None => return Ok(None),
            }
        }
        *last = Some((path.to_vec(), folder.clone()));
        Ok(Some(folder))
    }

    /// The root below which a path is walked, and what is left of the path.
    fn start<'p>(&self, path: &'p [u8]) -> (Option<Arc<Folder>>, &'p [u8]) {
        if let Some(below) = path.strip_prefix(b"pg_tblspc/") {
            let end = below.iter().position(|byte| *byte == b'/').unwrap_or(below.len());
            let (oid, rest) = below.split_at(end);
            let oid = std::str::from_utf8(oid)
                .ok()
                .and_then(|oid| oid.parse::<Oid>().ok());
            if let Some(location) = oid.and_then(|oid| self.tablespaces.get(&oid)) {
                return (location.clone(), rest);
            }
        }
        (Some(self.root.clone()), path)
    }
}

/// What the backup has under a path.
enum Expected {
    Folder,
    File,
    Link(PathBuf),
}

fn expected(plan: &Plan, tree: &TreeReader, path: &[u8]) -> Result<Option<Expected>> {
    const LATE: [&[u8]; 3] = [b"global/pg_control", b"backup_label", b"tablespace_map"];
    // A name that no backup can hold does not belong.
    let Ok(path) = RelativePath::new(path) else {
        return Ok(None);
    };
    if LATE.contains(&path.as_bytes()) {
        return Ok(None);
    }
    let Some(entry) = tree.find(&path)? else {
        return Ok(None);
    };
    if !matches!(place(plan, &path, &entry.kind)?, Place::At(_)) {
        return Ok(None);
    }
    Ok(Some(match &entry.kind {
        EntryKind::Directory => Expected::Folder,
        EntryKind::File { .. } => Expected::File,
        EntryKind::Symlink(target) => match tablespace_target(plan, &path, target)? {
            Some(to) => Expected::Link(to),
            None => Expected::Folder,
        },
    }))
}

/// Removes, or counts, what does not belong: other files, links, files with a second name, what stands where the
/// backup has something of another kind.
pub(crate) fn prune(plan: &Plan, delta: &DeltaPlan, tree: &TreeReader, pass: Pass) -> Result<u64> {
    let mut removed = 0;
    for (_, location) in &delta.dropped_tablespaces {
        // Before the link goes, which would find it again.
        if location.is_dir() {
            let folder = Folder::root(location)?;
            removed += take(&folder, OsStr::new(&delta.version_folder), pass)?;
        }
    }
    let pruning = Pruning { plan, tree, pass };
    let root = Folder::root(&plan.destination)?;
    removed += pruning.folder(&root, &mut Vec::new())?;
    for tablespace in &plan.tablespaces {
        let Some(location) = tablespace.location.as_ref().filter(|location| location.is_dir()) else {
            continue;
        };
        // What else lies in a location is another cluster's, or a person's.
        let folder = Folder::root(location)?;
        let name = OsStr::new(&delta.version_folder);
        match folder.child(name)? {
            Some(child) => {
                let mut path = format!("pg_tblspc/{}/{}", tablespace.oid, delta.version_folder).into_bytes();
                removed += pruning.folder(&child, &mut path)?;
            }
            None => removed += take(&folder, name, pass)?,
        }
    }
    Ok(removed)
}

struct Pruning<'a> {
    plan: &'a Plan,
    tree: &'a TreeReader,
    pass: Pass,
}

impl Pruning<'_> {
    fn folder(&self, folder: &Folder, path: &mut Vec<u8>) -> Result<u64> {
        use std::os::unix::ffi::OsStrExt;
        let mut removed = 0;
        let above = path.len();
        for name in folder.names()? {
            let bytes = name.as_bytes();
            if above == 0 && stays(bytes) {
                continue;
            }
            let Some(found) = folder.look(&name)? else {
                continue;
            };
            if above > 0 {
                path.push(b'/');
            }
            path.extend_from_slice(bytes);
            let belongs = match (expected(self.plan, self.tree, path)?, found.kind) {
                (Some(Expected::Folder), FileType::Directory) => {
                    if let Some(child) = folder.child(&name)? {
                        removed += self.folder(&child, path)?;
                    }
                    true
                }
                (Some(Expected::File), FileType::RegularFile) => found.links == 1,
                (Some(Expected::Link(to)), FileType::Symlink) => folder.target(&name)? == to,
                _ => false,
            };
            if !belongs {
                removed += take(folder, &name, self.pass)?;
            }
            path.truncate(above);
        }
        Ok(removed)
    }
}

/// Names at the top of a data directory that a delta does not judge.
fn stays(name: &[u8]) -> bool {
    let ours = [MARKER_NAME, JOURNAL_NAME, DELTA_NAME, "lost+found"];
    ours.iter().any(|own| own.as_bytes() == name) || name.starts_with(b"pre_pitr_")
}

fn take(folder: &Folder, name: &OsStr, pass: Pass) -> Result<u64> {
    match pass {
        Pass::Change => folder.remove(name),
        Pass::Look => count(folder, name),
    }
}

/// How many names stand there and below.
fn count(folder: &Folder, name: &OsStr) -> Result<u64> {
    match folder.look(name)? {
        None => Ok(0),
        Some(found) if found.kind == FileType::Directory => match folder.child(name)? {
            Some(child) => child
                .names()?
                .iter()
                .try_fold(1, |sum, inner| Ok(sum + count(&child, inner)?)),
            None => Ok(1),
        },
        Some(_) => Ok(1),
    }
}

/// Copies what no copy has aside, writes the journal, and moves `pg_control` away; each durably, in this order.
pub(crate) fn begin(plan: &Plan, delta: &DeltaPlan, journal: &[u8]) -> Result<()> {
    for kept in &plan.kept_aside {
        if let KeptAside::Wal { from, to } = kept {
            save_wal(plan, delta, from, to)?;
        }
    }
    write_durably(&plan.destination.join(DELTA_NAME), journal, 0o600, plan.owner)?;
    let root = Folder::root(&plan.destination)?;
    if let Some(global) = root.child(OsStr::new("global"))? {
        let name = OsStr::new("pg_control");
        if global.look(name)?.is_some() {
            // It goes with everything that does not belong.
            global.rename(name, OsStr::new("pg_control.pgproof-old"))?;
            global.sync()?;
        }
    }
    Ok(())
}

fn save_wal(plan: &Plan, delta: &DeltaPlan, from: &std::path::Path, to: &std::path::Path) -> Result<()> {
    let outer = to.parent().unwrap_or(to);
    for folder in [outer, to] {
        crate::files::make_folder(folder, 0o700, plan.owner)?;
    }
    // `pg_wal` itself may be a link; what is in it is read only where it is a file.
    let pg_wal = Folder::root(from)?;
    for name in &delta.wal_saved {
        let path = from.join(name);
        let mut content = Vec::new();
        pg_wal
            .open(OsStr::new(name), false)?
            .read_to_end(&mut content)
            .map_err(|error| {
                Error::io("wal-save", format!("cannot read \"{}\"", path.display()), &error)
                    .detail("No copy has it, so nothing was changed.")
            })?;
        write_durably(&to.join(name), &content, 0o600, plan.owner)?;
    }
    sync_directory(outer)?;
    outer.parent().map_or(Ok(()), sync_directory)
}

/// The journal goes when `pg_control` is in place.
pub(crate) fn end(plan: &Plan) -> Result<()> {
    let path = plan.destination.join(DELTA_NAME);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(write_error(&path, &error)),
        _ => sync_directory(&plan.destination),
    }
}

/// Compares without changing anything: what a delta restore by this plan would write and remove. Error:
/// `plan-not-delta`, and those of reading.
pub fn survey(
    plan: &Plan,
    cluster: &ClusterRepository,
    threads: usize,
    progress: &dyn Progress,
) -> Result<DeltaCounts> {
    let Some(delta) = &plan.delta else {
        return Err(Error::new(
            "plan-not-delta",
            "the plan is not one of a delta restore",
        ));
    };
    let backup = cluster.backup(plan.backup)?;
    let tree = TreeReader::open(cluster, &backup)?;
    let removed = prune(plan, delta, &tree, Pass::Look)?;
    let mut counts = crate::delta_files::pass(plan, cluster, &tree, threads, progress, Pass::Look)?;
    counts.removed = removed;
    Ok(counts)
}
