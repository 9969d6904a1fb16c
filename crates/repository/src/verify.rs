//! Looking at everything that is kept of a cluster: is it there, is it whole, does it fit together?
//!
//! Invariants: what is bad is a finding and does not stop the looking; what could not be looked at (the store
//! does not answer, a key is missing) is an error, and never passes for good. Nothing is changed. Stored
//! bytes are checked by their CRC, which needs no row key; with `decode`, every block that any backup refers
//! to is opened and its digest compared.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use diagnostic::{Error, Result};
use serde::{Deserialize, Serialize};

use crate::backup::Backup;
use crate::container::{Container, Kind};
use crate::framed::read_framed;
use crate::map::{Content, FrameRef, Leaf, LeafRef};
use crate::names::{BackupId, PackKind, PackRef};
use crate::nodes::lock;
use crate::path::RelativePath;
use crate::read::BlockReader;
use crate::repository::ClusterRepository;
use crate::seal::Decoder;
use crate::tree_reader::TreeReader;
use crate::wal::{split_digest, wal_object_kind};

/// Something that was looked at and is bad.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Finding {
    /// Stable, like an error's.
    pub code: String,
    /// The object it was found in.
    pub object: String,
    pub detail: String,
    /// What can no longer be relied on: backups, WAL, evidence.
    pub affects: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VerifyOptions {
    /// Also opens and decodes every frame and compares every block's digest (needs the row key).
    pub decode: bool,
    pub threads: usize,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct VerifyResult {
    pub findings: Vec<Finding>,
    /// Objects looked at.
    pub objects: u64,
    /// Their stored bytes.
    pub bytes: u64,
}

/// How far the looking is: stored bytes of packs and WAL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct VerifyProgress {
    pub bytes_done: u64,
    pub bytes_total: u64,
}

/// Looks at everything that is kept of a cluster. An error means that it could not look.
pub fn verify(cluster: &ClusterRepository, options: VerifyOptions) -> Result<VerifyResult> {
    verify_watched(cluster, options, &|_| {})
}

/// The same; `watch` is called now and then, from several threads.
pub fn verify_watched(
    cluster: &ClusterRepository,
    options: VerifyOptions,
    watch: &(dyn Fn(VerifyProgress) + Sync),
) -> Result<VerifyResult> {
    if options.decode {
        cluster.keychain().current().private()?;
    }
    let looking = Looking {
        cluster,
        options,
        watch,
        findings: Mutex::new(Vec::new()),
        objects: AtomicU64::new(0),
        bytes: AtomicU64::new(0),
        bytes_total: AtomicU64::new(0),
    };
    looking.plain_objects()?;
    let backups = looking.records()?;
    let (packs, tables) = looking.pack_tables(&backups)?;
    let wal = cluster.store().list(&cluster.names().wal())?;
    let total =
        packs.values().map(|pack| pack.size).sum::<u64>() + wal.iter().map(|object| object.size).sum::<u64>();
    looking.bytes_total.store(total, Ordering::Relaxed);
    let frames = looking.packs(&packs)?;
    looking.maps(&backups, &tables, &frames)?;
    looking.wal(wal)?;
    looking.statements()?;
    let Looking {
        findings,
        objects,
        bytes,
        ..
    } = looking;
    let mut findings = findings
        .into_inner()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    without_expired(cluster, &mut findings)?;
    findings.sort();
    findings.dedup();
    Ok(VerifyResult {
        findings,
        objects: objects.into_inner(),
        bytes: bytes.into_inner(),
    })
}

/// Takes out what was let go while we looked: it is missing because nobody needs it any more.
fn without_expired(cluster: &ClusterRepository, findings: &mut Vec<Finding>) -> Result<()> {
    if !findings.iter().any(|finding| finding.code == "object-missing") {
        return Ok(());
    }
    let there: HashSet<String> = (cluster.backup_ids()?.iter())
        .map(|id| format!("backup {id}"))
        .collect();
    let expired = cluster.expired_wal()?;
    let gone = |affected: &String| {
        let backup = affected
            .split_once(',')
            .map_or(affected.as_str(), |(backup, _)| backup);
        match affected.strip_prefix("WAL segment ") {
            Some(name) => expired.iter().any(|range| {
                let file = postgres::WalFile::parse(name, range.segment_size);
                file.is_some_and(|file| {
                    file.timeline() == range.timeline
                        && file
                            .number()
                            .is_some_and(|number| (range.first..=range.last).contains(&number))
                })
            }),
            None => backup.starts_with("backup ") && !there.contains(backup),
        }
    };
    findings.retain(|finding| finding.code != "object-missing" || !finding.affects.iter().all(gone));
    Ok(())
}

/// A pack that backups refer to.
struct ReferredPack {
    size: u64,
    backups: BTreeSet<BackupId>,
}

type Packs = BTreeMap<(PackKind, PackRef), ReferredPack>;
/// The rows packs in the pack table of each backup whose table could be read.
type Tables = HashMap<BackupId, HashSet<PackRef>>;
/// Where the frames of each rows pack begin, and where the last one ends; only of packs that were whole.
type FrameOffsets = HashMap<PackRef, Vec<u64>>;

struct Looking<'a> {
    cluster: &'a ClusterRepository,
    options: VerifyOptions,
    watch: &'a (dyn Fn(VerifyProgress) + Sync),
    findings: Mutex<Vec<Finding>>,
    objects: AtomicU64,
    bytes: AtomicU64,
    bytes_total: AtomicU64,
}

/// Errors that say that something is bad, not that it could not be looked at.
fn is_bad(error: &Error) -> bool {
    matches!(
        error.code(),
        "object-damaged" | "object-missing" | "repository-format"
    )
}

impl Looking<'_> {
    fn find(&self, code: &str, object: &str, detail: String, affects: Vec<String>) {
        let (code, object) = (code.to_string(), object.to_string());
        lock(&self.findings).push(Finding {
            code,
            object,
            detail,
            affects,
        });
    }

    /// Turns damage into a finding; hands on what kept us from looking.
    fn note<T>(
        &self,
        result: Result<T>,
        object: &str,
        affects: &dyn Fn() -> Vec<String>,
    ) -> Result<Option<T>> {
        match result {
            Ok(value) => Ok(Some(value)),
            Err(error) if is_bad(&error) => {
                let detail = error.detail_text().unwrap_or(error.message()).to_string();
                self.find(error.code(), object, detail, affects());
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn looked_at(&self, bytes: u64) {
        self.objects.fetch_add(1, Ordering::Relaxed);
        self.read(bytes);
    }

    fn read(&self, bytes: u64) {
        let bytes_done = self.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        (self.watch)(VerifyProgress {
            bytes_done,
            bytes_total: self.bytes_total.load(Ordering::Relaxed),
        });
    }

    /// Does `work` for each item on several threads; the first error ends all.
    fn each<T: Sync>(&self, items: &[T], work: &(dyn Fn(&T) -> Result<()> + Sync)) -> Result<()> {
        let next = AtomicUsize::new(0);
        let failed = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..self.options.threads.clamp(1, 64).min(items.len().max(1)))
                .map(|_| {
                    scope.spawn(|| {
                        while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed))
                            && !failed.load(Ordering::Relaxed)
                        {
                            if let Err(error) = work(item) {
                                failed.store(true, Ordering::Relaxed);
                                return Err(error);
                            }
                        }
                        Ok(())
                    })
                })
                .collect();
            let join = |thread: std::thread::ScopedJoinHandle<'_, Result<()>>| {
                thread.join().unwrap_or_else(|_| {
                    Err(Error::new("internal", "a thread that verifies ended by a panic"))
                })
            };
            let results: Vec<Result<()>> = threads.into_iter().map(join).collect();
            results.into_iter().collect()
        })
    }

    fn plain_objects(&self) -> Result<()> {
        for (name, size, found) in self.cluster.repository().look_at_plain_objects()? {
            let affects = || {
                vec![match name.strip_prefix("keys/") {
                    Some(_) => "whoever opens the repository with that key".to_string(),
                    None => "nothing yet: the keyrings say the same".to_string(),
                }]
            };
            self.note(found, &name, &affects)?;
            self.looked_at(size);
        }
        Ok(())
    }

    fn records(&self) -> Result<Vec<Backup>> {
        let mut backups = Vec::new();
        for id in self.cluster.backup_ids()? {
            let name = self.cluster.names().record(id);
            let size = self.cluster.store().size(&name)?.unwrap_or(0);
            let record = self.cluster.backup(id).map_err(|error| match error.code() {
                // Removed by retention since it was listed, or gone: either way it is not there.
                "backup-missing" => Error::new("object-missing", error.message()),
                _ => error,
            });
            let affects = || vec![format!("backup {id}")];
            backups.extend(self.note(record, &name, &affects)?);
            self.looked_at(size);
        }
        Ok(backups)
    }

    /// All packs that backups refer to.
    fn pack_tables(&self, backups: &[Backup]) -> Result<(Packs, Tables)> {
        let mut packs = Packs::new();
        let mut tables = Tables::new();
        for backup in backups {
            let affects = || vec![format!("backup {}", backup.backup)];
            let name = match backup.tree.pack_table.first() {
                Some(frame) => self.cluster.names().pack(PackKind::Map, &frame.pack),
                None => self.cluster.names().record(backup.backup),
            };
            let Some(table) = self.note(self.cluster.pack_table(backup), &name, &affects)? else {
                continue;
            };
            let own = backup
                .tree
                .pack_table
                .first()
                .map(|frame| ((PackKind::Map, frame.pack), backup.tree.pack_table_size));
            let rows = table
                .iter()
                .filter(|line| line.kind == PackKind::Rows)
                .map(|line| line.pack);
            tables.insert(backup.backup, rows.collect());
            for (key, size) in table
                .iter()
                .map(|line| ((line.kind, line.pack), line.size))
                .chain(own)
            {
                let pack = packs.entry(key).or_insert_with(|| ReferredPack {
                    size,
                    backups: BTreeSet::new(),
                });
                pack.backups.insert(backup.backup);
                if pack.size != size {
                    let detail = format!("Backups say that it has {} bytes, and {size} bytes.", pack.size);
                    self.find(
                        "object-damaged",
                        &self.cluster.names().pack(key.0, &key.1),
                        detail,
                        affects(),
                    );
                }
            }
        }
        Ok((packs, tables))
    }

    fn packs(&self, packs: &Packs) -> Result<FrameOffsets> {
        let list: Vec<_> = packs.iter().collect();
        let offsets = Mutex::new(FrameOffsets::new());
        self.each(&list, &|((kind, pack), referred)| {
            let name = self.cluster.names().pack(*kind, pack);
            let affects = || referred.backups.iter().map(|id| format!("backup {id}")).collect();
            let object_kind = match kind {
                PackKind::Rows => Kind::RowsPack,
                PackKind::Map => Kind::MapPack,
            };
            let container = self.check_object(object_kind, &name, Some(referred.size));
            if let Some(container) = self.note(container, &name, &affects)?
                && *kind == PackKind::Rows
            {
                let mut starts = (0..container.frames.len())
                    .map(|frame| container.range(frame).map(|(offset, _)| offset))
                    .collect::<Result<Vec<_>>>()?;
                let last = container
                    .frames
                    .last()
                    .map_or(0, |frame| u64::from(frame.stored_length));
                starts.push(starts.last().map_or(0, |start| start + last));
                lock(&offsets).insert(*pack, starts);
            }
            Ok(())
        })?;
        Ok(offsets
            .into_inner()
            .unwrap_or_else(std::sync::PoisonError::into_inner))
    }

    /// Reads an object from its first byte to its last; every CRC is compared.
    fn check_object(&self, kind: Kind, name: &str, expected: Option<u64>) -> Result<Container> {
        let store = self.cluster.store();
        let size = store.size(name)?.ok_or_else(|| {
            Error::new(
                "object-missing",
                format!("object \"{name}\" is not in the repository"),
            )
        })?;
        self.objects.fetch_add(1, Ordering::Relaxed);
        if let Some(expected) = expected
            && size != expected
        {
            return Err(crate::container::damaged(
                name,
                &format!("it has {size} bytes instead of {expected}"),
            ));
        }
        let mut decoder = Decoder::new()?;
        let container = Container::open(
            &**store,
            self.cluster.keychain(),
            kind,
            name,
            Some(size),
            &mut decoder,
        )?;
        let mut buffer = Vec::new();
        let mut frame = 0;
        let mut read = 0;
        while frame < container.frames.len() {
            let (start, mut bytes) = container
                .range(frame)
                .map(|(start, length)| (start, u64::from(length)))?;
            let mut end = frame + 1;
            while let Some(entry) = container.frames.get(end)
                && bytes + u64::from(entry.stored_length) <= store.range_bytes() as u64
            {
                bytes += u64::from(entry.stored_length);
                end += 1;
            }
            buffer.resize(bytes as usize, 0);
            store.read_range_into(name, start, &mut buffer)?;
            let mut rest = buffer.as_slice();
            for at in frame..end {
                let Some(entry) = container.frames.get(at).copied() else {
                    break;
                };
                let (stored, after) = rest.split_at(rest.len().min(entry.stored_length as usize));
                container.check_stored(at as u32, entry, stored)?;
                rest = after;
            }
            self.read(bytes);
            read += bytes;
            frame = end;
        }
        self.read(size.saturating_sub(read));
        Ok(container)
    }

    /// Every node that any backup reaches; every reference to a rows pack; with `decode`, every block.
    fn maps(&self, backups: &[Backup], tables: &Tables, frames: &FrameOffsets) -> Result<()> {
        let seen = Mutex::new(HashSet::new());
        // Backups share most of their nodes: one after the other, each on all threads.
        for backup in backups {
            // That its table cannot be read was found already.
            let Some(table) = tables.get(&backup.backup) else {
                continue;
            };
            let affects = || vec![format!("backup {}", backup.backup)];
            let name = self.cluster.names().record(backup.backup);
            let Some(tree) = self.note(TreeReader::open(self.cluster, backup), &name, &affects)? else {
                continue;
            };
            self.note(self.cluster.catalog(backup), &name, &affects)?;
            let walk = MapWalk {
                looking: self,
                backup,
                tree: &tree,
                table,
                frames,
                seen: &seen,
                readers: Mutex::new(Vec::new()),
                leaves: Mutex::new(Vec::new()),
            };
            let pages: Vec<usize> = (0..=tree.root().pages.len()).collect();
            self.each(&pages, &|page| walk.page(*page))?;
            let leaves = std::mem::take(&mut *lock(&walk.leaves));
            let groups: Vec<&[LeafTask]> = leaves.chunks(LEAVES_TOGETHER).collect();
            self.each(&groups, &|group| {
                group.iter().try_for_each(|task| walk.leaf_node(task))
            })?;
        }
        Ok(())
    }

    fn wal(&self, objects: Vec<crate::store::ObjectInfo>) -> Result<()> {
        let prefix = self.cluster.names().wal();
        let mut names: HashMap<&str, u32> = HashMap::new();
        for object in &objects {
            if let Some((name, _)) = split_digest(&object.name)
                && !name.contains("/partial/")
            {
                *names.entry(name).or_default() += 1;
            }
        }
        for (name, count) in names.into_iter().filter(|(_, count)| *count > 1) {
            let detail = format!("{count} objects of different content have this name.");
            self.find("wal-conflict", name, detail, vec![wal_words(name)]);
        }
        self.each(&objects, &|object| {
            let rest = object.name.strip_prefix(&prefix).unwrap_or_default();
            let Some(kind) = wal_object_kind(rest) else {
                return Ok(());
            };
            let affects = || {
                vec![wal_words(
                    split_digest(&object.name).map_or(&*object.name, |(name, _)| name),
                )]
            };
            let looked = (|| {
                if kind == Kind::Statement {
                    self.looked_at(object.size);
                    return self.cluster.get_small(kind, &object.name).map(drop);
                }
                let container = self.check_object(kind, &object.name, None)?;
                if kind == Kind::WalSegment {
                    postgres::SegmentIndex::decode(&container.body).map_err(|error| {
                        crate::container::damaged(
                            &object.name,
                            &format!("its index says nothing: {}", error.message()),
                        )
                    })?;
                }
                if self.options.decode {
                    read_framed(
                        self.cluster,
                        kind,
                        &object.name,
                        object.size,
                        &mut std::io::sink(),
                    )?;
                }
                Ok(())
            })();
            self.note(looked, &object.name, &affects).map(drop)
        })
    }

    /// Pins and evidence.
    fn statements(&self) -> Result<()> {
        let names = self.cluster.names();
        for (prefix, kind, what) in [
            (names.pins(), Kind::Statement, "the pin of backup"),
            (
                names.verifications(),
                Kind::Statement,
                "the record of verification",
            ),
            (names.expiries(), Kind::Statement, "the record of expiry"),
            (
                names.condemned(),
                Kind::Statement,
                "expiring, by the packs condemned at",
            ),
            (names.leases(), Kind::Statement, "expiring, by the lease"),
            (names.evidence(), Kind::Evidence, "the evidence of"),
        ] {
            self.each(&self.cluster.store().list(&prefix)?, &|object| {
                let of = object
                    .name
                    .strip_prefix(&prefix)
                    .and_then(|rest| rest.split('/').next())
                    .unwrap_or_default();
                self.looked_at(object.size);
                let read = self.cluster.get_small(kind, &object.name);
                self.note(read, &object.name, &|| vec![format!("{what} {of}")])
                    .map(drop)
            })?;
        }
        let chain = self.cluster.verify_chain()?;
        self.objects.fetch_add(u64::from(chain.links), Ordering::Relaxed);
        lock(&self.findings).extend(chain.findings);
        Ok(())
    }
}

/// "WAL segment 00000001000000000000000A" of an object's name.
fn wal_words(name: &str) -> String {
    let file = name.rsplit('/').next().unwrap_or(name);
    match name.contains("/claims/") {
        true => "the claim on a timeline".to_string(),
        false if file.len() == 24 => format!("WAL segment {file}"),
        false => format!("WAL file {file}"),
    }
}

/// What was walked already for another backup.
#[derive(PartialEq, Eq, Hash)]
enum Seen {
    Page(FrameRef),
    Leaf(FrameRef, Option<FrameRef>),
}

/// Neighbouring leaves are looked at by one thread.
const LEAVES_TOGETHER: usize = 8;

/// A leaf that stands apart from its entry.
struct LeafTask {
    path: Arc<RelativePath>,
    reference: LeafRef,
    index: usize,
    last: bool,
    /// Bytes of the file.
    size: u64,
}

/// The map of one backup.
struct MapWalk<'a> {
    looking: &'a Looking<'a>,
    backup: &'a Backup,
    tree: &'a TreeReader,
    table: &'a HashSet<PackRef>,
    frames: &'a FrameOffsets,
    seen: &'a Mutex<HashSet<Seen>>,
    readers: Mutex<Vec<BlockReader>>,
    leaves: Mutex<Vec<LeafTask>>,
}

impl MapWalk<'_> {
    fn affects(&self, path: &RelativePath) -> Vec<String> {
        vec![format!("backup {}, file \"{path}\"", self.backup.backup)]
    }

    fn first_time(&self, seen: Seen) -> bool {
        lock(self.seen).insert(seen)
    }

    /// One page of the directory; the one behind the last is the page of late files.
    fn page(&self, number: usize) -> Result<()> {
        let looking = self.looking;
        let frame = self
            .tree
            .root()
            .pages
            .get(number)
            .map_or(self.tree.root().late, |page| page.frame);
        if !self.first_time(Seen::Page(frame)) {
            return Ok(());
        }
        let name = self.tree.nodes().name(&frame);
        let entries = match number < self.tree.root().pages.len() {
            true => self.tree.page_entries(number),
            false => self.tree.late(),
        };
        let affects = || vec![format!("backup {}", self.backup.backup)];
        let Some(entries) = looking.note(entries, &name, &affects)? else {
            return Ok(());
        };
        for entry in entries {
            let Some(content) = TreeReader::content(&entry) else {
                continue;
            };
            match content {
                Content::Inline(leaf) => {
                    self.leaf(leaf, entry.size, &name, &|_| true, &|| self.affects(&entry.path))?;
                }
                Content::Leaves(references) => {
                    let path = Arc::new(entry.path.clone());
                    for (index, reference) in references.iter().enumerate() {
                        if self.first_time(Seen::Leaf(reference.base, reference.overlay)) {
                            lock(&self.leaves).push(LeafTask {
                                path: path.clone(),
                                reference: reference.clone(),
                                index,
                                last: index + 1 == references.len(),
                                size: entry.size,
                            });
                        }
                    }
                }
            }
        }
        Ok(())
    }

    fn leaf_node(&self, task: &LeafTask) -> Result<()> {
        let reference = &task.reference;
        let name = self.tree.nodes().name(&reference.base);
        let affects = || self.affects(&task.path);
        let shared = self.tree.shared_leaf_at(reference, task.index, task.last);
        let Some(shared) = self.looking.note(shared, &name, &affects)? else {
            return Ok(());
        };
        // Of a base that was looked at bare, only what the overlay replaces is new.
        let base_seen =
            reference.overlay.is_some() && lock(self.seen).contains(&Seen::Leaf(reference.base, None));
        let want = |block: usize| !base_seen || shared.replaced.binary_search(&(block as u16)).is_ok();
        self.leaf(&shared.leaf, task.size, &name, &want, &affects)
    }

    fn leaf(
        &self,
        leaf: &Leaf,
        size: u64,
        name: &str,
        want: &dyn Fn(usize) -> bool,
        affects: &dyn Fn() -> Vec<String>,
    ) -> Result<()> {
        let looking = self.looking;
        let mut whole = true;
        for (_, pack, run) in leaf.runs() {
            let Some(pack) = pack else { continue };
            let object = || looking.cluster.names().pack(PackKind::Rows, &pack);
            if !self.table.contains(&pack) {
                whole = false;
                let detail =
                    "A leaf refers to this pack, which is not in the backup's pack table.".to_string();
                looking.find("object-damaged", &object(), detail, affects());
            }
            let Some(starts) = self.frames.get(&pack) else {
                // Missing or damaged: that was found already, with all backups that it affects.
                whole = false;
                continue;
            };
            let frame = run.frame as usize;
            let range = starts.get(frame).zip(starts.get(frame + 1));
            if range != Some((&run.offset, &(run.offset + u64::from(run.stored_length)))) {
                whole = false;
                let detail =
                    format!("A leaf in \"{name}\" refers to frame {frame}, which does not lie there.");
                looking.find("object-damaged", &object(), detail, affects());
            }
        }
        if !looking.options.decode || !whole {
            return Ok(());
        }
        let pooled = lock(&self.readers).pop();
        let mut reader = match pooled {
            Some(reader) => reader,
            None => BlockReader::new(looking.cluster)?,
        };
        let read = reader.read_blocks(leaf, size, want, &mut |_, _| Ok(()));
        lock(&self.readers).push(reader);
        looking.note(read, name, affects).map(drop)
    }
}
