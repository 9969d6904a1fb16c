//! What the tests of this room share: a repository, an archiver inside the test, and a plain restore.
#![allow(dead_code)]

use std::collections::BTreeMap;
use std::os::unix::fs::{FileExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use backup::base::AUDIT_ONE_IN;
use backup::{BackupResult, BaseBackupOptions, Copy, Plan, PlanOptions, Progress, PushOptions, PushResult};
use diagnostic::Result;
use jiff::Timestamp;
use postgres::{SystemIdentifier, TimelineId, segment_name};
use repository::{
    Backup, BlockReader, ClusterRepository, EntryKind, FileEntry, RecipientKey, Repository, TreeReader,
    create_store,
};
use testing::{Scratch, TestCluster, TestOptions};

pub fn repository(folder: &Path) -> (ClusterRepository, RecipientKey) {
    let key = RecipientKey::generate().unwrap();
    let store = create_store(&format!("file://{}", folder.display())).unwrap();
    (
        Repository::create(store, &key, Timestamp::now())
            .unwrap()
            .cluster("main")
            .unwrap(),
        key,
    )
}

/// An archive_command that waits until the test has pushed the file.
pub fn waiting_archive_command(acknowledged: &Path) -> String {
    format!(
        "i=0; while test $i -lt 2000; do test -f {0}/%f && exit 0; test -f {0}/stop && exit 1; sleep 0.02; i=$((i+1)); \
         done; exit 1",
        acknowledged.display()
    )
}

/// A cluster whose WAL is archived by an [`Archiver`], and its repository.
pub struct Archived {
    pub cluster: TestCluster,
    pub repository: ClusterRepository,
    pub key: RecipientKey,
    pub acknowledged: PathBuf,
    pub scratch: Scratch,
}

impl Archived {
    pub fn start(test: &str, checksums: bool, settings: &[(&str, &str)]) -> Option<Archived> {
        Archived::start_with(test, checksums, settings, None)
    }

    pub fn start_with(
        test: &str,
        checksums: bool,
        settings: &[(&str, &str)],
        programs: Option<cluster::Programs>,
    ) -> Option<Archived> {
        if programs.is_none() {
            testing::programs_or_skip(test)?;
        }
        let scratch = Scratch::new("backup").unwrap();
        let acknowledged = scratch.subfolder("acknowledged").unwrap();
        std::fs::set_permissions(&acknowledged, std::fs::Permissions::from_mode(0o755)).unwrap();
        let mut all: Vec<(String, String)> = settings
            .iter()
            .map(|(name, value)| (name.to_string(), value.to_string()))
            .collect();
        all.push(("autovacuum".into(), "off".into()));
        let options = TestOptions {
            checksums,
            archive_command: Some(waiting_archive_command(&acknowledged)),
            wal_segment_size: Some(1 << 20),
            settings: all,
            programs,
            ..TestOptions::default()
        };
        let cluster = TestCluster::start_or_skip(test, &options)?;
        let (repository, key) = repository(&scratch.path().join("repository"));
        Some(Archived {
            cluster,
            repository,
            key,
            acknowledged,
            scratch,
        })
    }

    pub fn archiver(&self) -> Archiver {
        Archiver::start(
            self.cluster.data_directory(),
            &self.acknowledged,
            &self.repository,
        )
    }

    pub fn sql(&self, statements: &[&str]) {
        let mut session = self.cluster.session().unwrap();
        for statement in statements {
            session
                .execute(statement)
                .unwrap_or_else(|error| panic!("{statement}: {}", error.render()));
        }
    }

    pub fn plan(&self) -> Result<Plan> {
        backup::base::plan(
            &self.cluster.conninfo(),
            &self.repository,
            &PlanOptions::default(),
            Timestamp::now(),
        )
    }

    pub fn backup(&self) -> Result<BackupResult> {
        self.backup_with(&(), Duration::from_secs(60))
    }

    pub fn backup_with(&self, progress: &dyn Progress, archive_timeout: Duration) -> Result<BackupResult> {
        run_backup(
            &self.cluster.conninfo(),
            &self.repository,
            progress,
            archive_timeout,
        )
    }
}

impl Drop for Archived {
    fn drop(&mut self) {
        // The archiver's waiting command ends, so that the server can.
        let _ = std::fs::write(self.acknowledged.join("stop"), b"");
    }
}

pub fn run_backup(
    conninfo: &str,
    repository: &ClusterRepository,
    progress: &dyn Progress,
    archive_timeout: Duration,
) -> Result<BackupResult> {
    run_audited_backup(conninfo, repository, progress, archive_timeout, AUDIT_ONE_IN)
}

/// `audit_one_in` 1: everything is read, and what the WAL calls unchanged is held against the parent.
pub fn run_audited_backup(
    conninfo: &str,
    repository: &ClusterRepository,
    progress: &dyn Progress,
    archive_timeout: Duration,
    audit_one_in: u32,
) -> Result<BackupResult> {
    // Backups are named by the second at which they began.
    std::thread::sleep(Duration::from_millis(1100));
    let plan = backup::base::plan(conninfo, repository, &PlanOptions::default(), Timestamp::now())?;
    let options = BaseBackupOptions {
        threads: 2,
        label: "a test".into(),
        fast_checkpoint: true,
        archive_timeout,
        audit_one_in,
        clock: &Timestamp::now,
        progress,
    };
    backup::base::run(&plan, conninfo, repository, &options)
}

pub fn push_file(repository: &ClusterRepository, data_directory: &Path, path: &Path) -> Result<PushResult> {
    let options = PushOptions {
        path: path.to_path_buf(),
        data_directory: data_directory.to_path_buf(),
        host_id: "the test's host".into(),
        acknowledge: 1,
    };
    backup::push(
        &[Copy {
            name: "local",
            repository,
        }],
        &options,
        Timestamp::now(),
    )
}

/// Pushes what the server wants archived, as its archive_command would.
pub struct Archiver {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    pub errors: Arc<Mutex<Vec<String>>>,
}

impl Archiver {
    fn start(data_directory: &Path, acknowledged: &Path, repository: &ClusterRepository) -> Archiver {
        let stop = Arc::new(AtomicBool::new(false));
        let errors = Arc::new(Mutex::new(Vec::new()));
        let (data_directory, acknowledged) = (data_directory.to_path_buf(), acknowledged.to_path_buf());
        let (repository, stopped, failed) = (repository.clone(), stop.clone(), errors.clone());
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                for name in ready(&data_directory) {
                    if acknowledged.join(&name).exists() {
                        continue;
                    }
                    match push_file(&repository, &data_directory, &Path::new("pg_wal").join(&name)) {
                        Ok(_) => std::fs::write(acknowledged.join(&name), b"").unwrap(),
                        Err(error) => failed.lock().unwrap().push(error.render()),
                    }
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        Archiver {
            stop,
            thread: Some(thread),
            errors,
        }
    }

    /// Stops, and fails the test if a push had failed.
    pub fn finish(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
        assert_eq!(*self.errors.lock().unwrap(), Vec::<String>::new());
    }
}

impl Drop for Archiver {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn ready(data_directory: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(data_directory.join("pg_wal/archive_status")) else {
        return Vec::new();
    };
    let mut names: Vec<String> = entries
        .flatten()
        .filter_map(|entry| {
            entry
                .file_name()
                .to_str()?
                .strip_suffix(".ready")
                .map(str::to_string)
        })
        .collect();
    names.sort();
    names
}

/// All entries of a backup by path, the late ones included.
pub fn entries(repository: &ClusterRepository, backup: &Backup) -> BTreeMap<String, FileEntry> {
    let tree = TreeReader::open(repository, backup).unwrap();
    let late = tree.late().unwrap();
    tree.entries()
        .map(|entry| entry.unwrap())
        .chain(late)
        .map(|entry| (entry.path.to_string(), entry))
        .collect()
}

/// The content of every file of a backup into a directory; nothing of `@config/`.
pub fn restore(repository: &ClusterRepository, backup: &Backup, into: &Path) {
    let tree = TreeReader::open(repository, backup).unwrap();
    let mut reader = BlockReader::new(repository).unwrap();
    std::fs::create_dir(into).unwrap();
    let late = tree.late().unwrap();
    for entry in tree.entries().map(|entry| entry.unwrap()).chain(late) {
        if entry.path.is_within(b"@config") {
            continue;
        }
        let path = entry.path.under(into);
        match &entry.kind {
            EntryKind::Directory => std::fs::create_dir_all(&path).unwrap(),
            EntryKind::Symlink(_) => std::fs::create_dir_all(&path).unwrap(),
            EntryKind::File { content, .. } => {
                let file = std::fs::File::create(&path).unwrap();
                file.set_len(entry.size).unwrap();
                for leaf in tree.leaves(content) {
                    let mut sink = |offset: u64, piece: repository::Piece<'_>| {
                        if let repository::Piece::Data(bytes) = piece {
                            file.write_all_at(bytes, offset).unwrap();
                        }
                        Ok(())
                    };
                    reader.read_leaf(&leaf.unwrap(), entry.size, &mut sink).unwrap();
                }
            }
        }
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(entry.mode)).unwrap();
    }
    std::fs::set_permissions(into, std::fs::Permissions::from_mode(0o700)).unwrap();
    give_away(into);
}

/// All archived segments of a timeline as files.
pub fn write_archive(repository: &ClusterRepository, system: SystemIdentifier, size: u32, into: &Path) {
    std::fs::create_dir_all(into).unwrap();
    for timeline in repository.list_timelines(system).unwrap() {
        for segment in repository.list_segments(system, timeline, size).unwrap() {
            let segment = segment.unwrap();
            let mut bytes = Vec::new();
            repository.read_segment(&segment, &mut bytes).unwrap();
            std::fs::write(
                into.join(segment_name(TimelineId(timeline.0), segment.number, size)),
                bytes,
            )
            .unwrap();
        }
    }
    give_away(into);
}

/// As root, to the account that PostgreSQL runs as.
pub fn give_away(path: &Path) {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let (uid, gid) = testing::account().unwrap();
    chown(path, Some(uid), Some(gid)).unwrap();
    if path.is_dir() {
        for entry in std::fs::read_dir(path).unwrap() {
            give_away(&entry.unwrap().path());
        }
    }
}
