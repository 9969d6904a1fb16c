//! A store that fails on demand, lets others act in the middle, and dates objects by a clock of its own; and a small
//! repository with backups and WAL in it.
#![allow(dead_code)]

use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};

use diagnostic::{Error, Result};
use jiff::{SignedDuration, Timestamp};
use postgres::{Lsn, Seam, SegmentIndex, SystemIdentifier, TimelineId, Verdict, WalFile};
use repository::{
    Backup, ClusterRepository, LocalFolder, ObjectInfo, ObjectWriter, Put, RecipientKey, Repository,
    RequestCounts, Run, Store,
};

use crate::common::{Files, Random, record, store_files};

pub const SYSTEM: SystemIdentifier = SystemIdentifier(7);
pub const SEGMENT: u32 = 1 << 20;

/// What somebody else does in the middle.
pub type Hook = Box<dyn FnOnce() + Send>;

/// Counts what changes the store. Shared between those who set it up and the store.
#[derive(Default)]
pub struct Faults {
    pub now: Mutex<Option<Timestamp>>,
    dates: Mutex<HashMap<String, Timestamp>>,
    pub changes: AtomicI64,
    /// From this change on, everything that changes fails, as if the process were dead.
    pub die_at: Mutex<Option<i64>>,
    /// Before this change, somebody else acts.
    pub hook: Mutex<Option<(i64, Hook)>>,
    /// Deleting is not granted.
    pub deny_delete: std::sync::atomic::AtomicBool,
}

impl Faults {
    pub fn set_now(&self, now: Timestamp) {
        *self.now.lock().unwrap() = Some(now);
    }

    pub fn now(&self) -> Timestamp {
        self.now.lock().unwrap().unwrap()
    }

    fn change(&self) -> Result<()> {
        let number = self.changes.fetch_add(1, Ordering::SeqCst);
        let hook = {
            let mut hook = self.hook.lock().unwrap();
            match &*hook {
                Some((at, _)) if *at == number => hook.take(),
                _ => None,
            }
        };
        if let Some((_, act)) = hook {
            act();
        }
        match *self.die_at.lock().unwrap() {
            Some(at) if number >= at => Err(Error::new("store-unreachable", "the store is gone")),
            _ => Ok(()),
        }
    }

    fn date(&self, name: &str) {
        self.dates.lock().unwrap().insert(name.to_owned(), self.now());
    }
}

pub struct FaultyStore {
    inner: LocalFolder,
    faults: Arc<Faults>,
}

struct FaultyWriter {
    inner: Box<dyn ObjectWriter>,
    faults: Arc<Faults>,
    name: String,
}

impl Write for FaultyWriter {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.inner.write(bytes)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        self.inner.flush()
    }
}

impl ObjectWriter for FaultyWriter {
    fn position(&self) -> u64 {
        self.inner.position()
    }
    fn finish(self: Box<Self>) -> Result<Put> {
        self.faults.change()?;
        self.faults.date(&self.name);
        self.inner.finish()
    }
}

impl Store for FaultyStore {
    fn url(&self) -> String {
        self.inner.url()
    }
    fn put_new(&self, name: &str, content: &[u8]) -> Result<Put> {
        self.faults.change()?;
        self.faults.date(name);
        self.inner.put_new(name, content)
    }
    fn writer(&self, name: &str) -> Result<Box<dyn ObjectWriter>> {
        Ok(Box::new(FaultyWriter {
            inner: self.inner.writer(name)?,
            faults: self.faults.clone(),
            name: name.to_owned(),
        }))
    }
    fn read(&self, name: &str) -> Result<Option<Vec<u8>>> {
        self.inner.read(name)
    }
    fn read_range_into(&self, name: &str, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.inner.read_range_into(name, offset, buffer)
    }
    fn size(&self, name: &str) -> Result<Option<u64>> {
        self.inner.size(name)
    }
    fn list(&self, prefix: &str) -> Result<Vec<ObjectInfo>> {
        let mut objects = self.inner.list(prefix)?;
        let dates = self.faults.dates.lock().unwrap();
        for object in &mut objects {
            object.modified = dates.get(&object.name).copied().unwrap_or(start());
        }
        Ok(objects)
    }
    fn list_folders(&self, prefix: &str) -> Result<Vec<String>> {
        self.inner.list_folders(prefix)
    }
    fn delete(&self, name: &str) -> Result<()> {
        if self.faults.deny_delete.load(Ordering::SeqCst) {
            return Err(Error::new(
                "store-denied",
                format!("cannot delete object \"{name}\""),
            ));
        }
        self.faults.change()?;
        self.inner.delete(name)
    }
    fn requests(&self) -> RequestCounts {
        self.inner.requests()
    }
}

pub fn start() -> Timestamp {
    "2026-06-01T02:00:00Z".parse().unwrap()
}

/// The moment of a day's backup.
pub fn day(number: u64) -> Timestamp {
    start() + SignedDuration::from_hours(24 * number as i64)
}

/// A repository below a folder, with the faults of its store.
pub struct World {
    pub faults: Arc<Faults>,
    pub cluster: ClusterRepository,
}

pub fn open(folder: &Path, key: &RecipientKey, dates: &HashMap<String, Timestamp>, now: Timestamp) -> World {
    let faults = Arc::new(Faults::default());
    faults.set_now(now);
    *faults.dates.lock().unwrap() = dates.clone();
    let store: Arc<dyn Store> = Arc::new(FaultyStore {
        inner: LocalFolder::create(folder).unwrap(),
        faults: faults.clone(),
    });
    let repository = match Repository::open(store.clone(), key) {
        Ok(repository) => repository,
        Err(_) => Repository::create(store, key, now).unwrap(),
    };
    let cluster = repository.cluster("main").unwrap();
    World { faults, cluster }
}

pub fn dates(world: &World) -> HashMap<String, Timestamp> {
    world.faults.dates.lock().unwrap().clone()
}

/// What the database holds on a day: most of it the same as the day before.
pub fn files(day: u64) -> Files {
    let mut files = Files::new();
    files.insert("base/".into(), Vec::new());
    for file in 0..4_u64 {
        // Each file changes every third day. One is large enough for leaves of its own.
        let version = (day + file) / 3;
        let mut random = Random(file * 1000 + version);
        files.insert(
            format!("base/{file}"),
            random.pages(if file == 0 { 34 } else { 3 }),
        );
    }
    files.insert("global/pg_control".into(), Random(day).pages(1));
    files
}

/// Archives a segment in which nothing happens.
pub fn push(cluster: &ClusterRepository, number: u64) {
    push_on(cluster, 1, number);
}

/// The same on another timeline.
pub fn push_on(cluster: &ClusterRepository, timeline: u32, number: u64) {
    let begin = number * u64::from(SEGMENT);
    let name = WalFile::Segment {
        timeline: TimelineId(timeline),
        number,
    };
    let index = SegmentIndex {
        timeline: TimelineId(timeline),
        number,
        segment_size: SEGMENT,
        wal_block_size: 8192,
        system_identifier: SYSTEM,
        magic: 0xD110,
        first_page_timeline: TimelineId(timeline),
        first_record: Some(Lsn(begin + 40)),
        first_record_previous: None,
        last_record: Some(Lsn(begin + u64::from(SEGMENT) - 64)),
        end: Lsn(begin + u64::from(SEGMENT)),
        switched: false,
        overwrites_tail: false,
        head: Seam::default(),
        tail: None,
        verdict: Verdict::Good,
        statistics: Vec::new(),
        transactions: Vec::new(),
        events: Vec::new(),
        changed: Vec::new(),
        row_changes: Vec::new(),
    };
    let mut bytes = vec![0; SEGMENT as usize];
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    bytes[8..12].copy_from_slice(&timeline.to_le_bytes());
    cluster.put_segment(SYSTEM, &name, &bytes, &index).unwrap();
}

/// Stores a day's files with a run that has begun.
pub fn fill(cluster: &ClusterRepository, run: &Run, number: u64, parent: Option<&Backup>) -> Backup {
    store_files(run, &files(number), 1, 1, 1 << 20);
    let tree = run.tree().finish(b"a catalog").unwrap();
    let mut backup = record(run, cluster, parent, tree);
    let begin = (number * 3 + 1) * u64::from(SEGMENT);
    backup.system_identifier = SYSTEM;
    backup.geometry.wal_segment_size = SEGMENT;
    (backup.redo_lsn, backup.start_lsn, backup.stop_lsn) =
        (Lsn(begin + 40), Lsn(begin + 40), Lsn(begin + 400));
    (backup.started_at, backup.finished_at) = (day(number), day(number));
    backup
}

/// Five daily backups, three segments of WAL for each, and an interrupted run of the sixth day.
pub fn build(folder: &Path, key: &RecipientKey) -> World {
    let world = open(folder, key, &HashMap::new(), start());
    let mut parent: Option<Backup> = None;
    for number in 0..5 {
        world.faults.set_now(day(number));
        for segment in 0..3 {
            push(&world.cluster, number * 3 + segment + 1);
        }
        let run = world.cluster.start_run(parent.as_ref(), day(number)).unwrap();
        let backup = fill(&world.cluster, &run, number, parent.as_ref());
        run.publish(&backup, day(number)).unwrap();
        parent = Some(backup);
    }
    world.faults.set_now(day(5));
    let run = world.cluster.start_run(None, day(5)).unwrap();
    store_files(&run, &files(5), 1, 1, 1 << 20);
    world
}

/// Copies a folder.
pub fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// Names of what is stored, without the statements that tell what happened.
pub fn objects(world: &World) -> BTreeMap<String, u64> {
    let all = world.cluster.store().list("clusters/").unwrap();
    all.into_iter()
        .filter(|object| {
            !["/expiries/", "/condemned/", "/leases/", "/verifications/"]
                .iter()
                .any(|part| object.name.contains(part))
        })
        .map(|object| (object.name, object.size))
        .collect()
}
