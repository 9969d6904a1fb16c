//! Base backup of a running server whose data directory is at hand.
//!
//! [`plan`] gathers the facts and decides everything; [`run`] does it: start the backup, learn from the WAL since the
//! parent which pages may have changed, read these and every file that is no relation, verify, digest and compare each page
//! with the parent's map, store what changed, `pg_control` last, stop the backup, wait for its WAL, publish the record.
//!
//! Invariants: a page that was read is taken from the parent (or from an interrupted run) only when its 128-bit keyed
//! digest at the same path and block is equal; one that was not read, only when unbroken WAL since the parent's start does not
//! name it, and if one of those that the audit reads gives the lie to this, everything is read; no page that was read passes
//! unnamed with a bad checksum; the record is written last.

mod dispatch;
mod excuse;
pub mod import;
mod parent;
mod plan;
mod plan_protocol;
mod read;
mod record;
mod sent;
mod stream;
mod unread;
mod wait;
mod wal_map;
mod wal_stream;
mod worker;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use cluster::{BackupSession, CapturedFile, ServerFacts, Session};
use diagnostic::{Error, Result};
use jiff::Timestamp;
use postgres::Lsn;
use repository::{
    Backup, ClusterRepository, ConfigurationFile, FileFormat, FilePart, PackStatistics, PackWriter,
    RelativePath, RequestCounts, Run, blocks_of,
};
use serde::Serialize;

use dispatch::{Dispatcher, Item, Source};
use excuse::BackupWal;
use unread::{MAP_MISSED, Unread};
use wait::Needed;
use worker::{BadPage, Shared, store_bytes};

pub use plan::{
    Connection, Method, Plan, PlanOptions, ProtocolOptions, Reading, RetiringPack, WalSource, plan,
};

pub use wal_stream::streaming_writer;

/// What the caller decides about a run. The clock is the caller's.
pub struct BaseBackupOptions<'a> {
    /// Worker threads, each with a pack of its own; 0 counts as 1.
    pub threads: usize,
    /// Label of the backup, as PostgreSQL keeps it in `backup_label`.
    pub label: String,
    /// Checkpoint at once instead of spread over `checkpoint_timeout`.
    pub fast_checkpoint: bool,
    /// How long to wait for the WAL of the backup to be archived into this copy before giving up.
    pub archive_timeout: Duration,
    /// One leaf (8 MiB of a relation) of so many is read although the WAL says that it need not be, another one each time;
    /// [`AUDIT_ONE_IN`] unless there is a reason.
    pub audit_one_in: u32,
    /// The wall clock.
    pub clock: &'a (dyn Fn() -> jiff::Timestamp + Sync),
    /// Told a few times a second.
    pub progress: &'a dyn Progress,
}

/// Every page is read again at least once in so many backups.
pub const AUDIT_ONE_IN: u32 = 32;

/// Who wants to hear how far a backup is. Called from one thread at a time, a few times a second.
pub trait Progress: Sync {
    fn update(&self, state: &ProgressState);
}

/// Silence.
impl Progress for () {
    fn update(&self, _state: &ProgressState) {}
}

/// The stages of a backup, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// The server makes its checkpoint.
    Starting,
    /// Files are read and stored.
    Reading,
    /// `pg_control`, stop, maps.
    Stopping,
    /// The archiver has not stored all WAL of the backup yet.
    WaitingForWal,
    /// The record is written.
    Publishing,
}

/// How far a backup is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct ProgressState {
    pub stage: Stage,
    pub files_done: u64,
    pub files_total: u64,
    pub bytes_done: u64,
    pub bytes_total: u64,
    /// What has been added to the repository so far.
    pub bytes_stored: u64,
}

impl ProgressState {
    fn starting(plan: &Plan) -> ProgressState {
        ProgressState {
            stage: Stage::Starting,
            files_done: 0,
            files_total: plan.files,
            bytes_done: 0,
            bytes_total: plan.bytes,
            bytes_stored: 0,
        }
    }
}

/// A page whose checksum stayed bad after it was read again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DamagedPage {
    /// Path in the data directory, escaped for reading.
    pub path: String,
    /// Block number within the file (not within the relation).
    pub block: u32,
    /// The page's LSN as it stands in its header.
    pub lsn: Lsn,
    /// What is wrong: stored and computed checksum, or a malformed header.
    pub problem: String,
}

/// What a backup met that a person has to know; with any finding the command ends with exit code 3.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Stable: `page-damaged`, `page-could-not-look`, `wal-map-missed-page`.
    pub code: &'static str,
    pub message: String,
    pub detail: String,
    pub hint: String,
}

/// A finished base backup: its record is in the repository.
#[derive(Debug, Clone)]
pub struct BackupResult {
    pub backup: Backup,
    /// What was read, and why everything if that was not planned.
    pub reading: Reading,
    /// Bytes read from the data directory.
    pub bytes_read: u64,
    /// Bytes added to the repository (packs, maps, record).
    pub bytes_stored: u64,
    /// Blocks stored by this run.
    pub pages_stored: u64,
    /// Blocks taken from the parent or from an interrupted run.
    pub pages_reused: u64,
    /// Pages with a bad checksum that the WAL of the backup brings right.
    pub excused: Vec<DamagedPage>,
    /// Pages with a bad checksum that nothing excuses.
    pub damaged: Vec<DamagedPage>,
    /// "We looked and it is bad": non-empty means exit code 3, although the backup was made.
    pub findings: Vec<Finding>,
}

/// How often the session that holds the backup is asked whether it still does.
const ALIVE_EVERY: Duration = Duration::from_secs(5);
/// How often the intent is looked after (it is renewed when it is 10 minutes old).
const RENEW_EVERY: Duration = Duration::from_secs(60);
/// How often progress is told.
const PROGRESS_EVERY: Duration = Duration::from_millis(200);
/// Advisory lock of one base backup per server and database: "pgproof", "base backup".
const LOCK: &str = "select pg_catalog.pg_try_advisory_lock(1885828975, 1650619251)";

/// Makes the backup that `plan` describes.
///
/// Errors: `backup-running`, `backup-aborted`, `backup-wal-missing`, `plan-outdated`, `run-lapsed`, and those of the
/// session, the files and the store. After an error nothing is recorded, and what was stored is used by the next run.
pub fn run(
    plan: &Plan,
    conninfo: &str,
    repository: &ClusterRepository,
    options: &BaseBackupOptions<'_>,
) -> Result<BackupResult> {
    if plan.method == Method::Protocol {
        return stream::run(plan, conninfo, repository, options);
    }
    let mut monitor = Session::connect(conninfo)?;
    refuse_second_backup(&mut monitor)?;
    match attempt(plan, conninfo, repository, options, &mut monitor, None) {
        Err(missed) if missed.code() == MAP_MISSED => {
            // What that attempt stored is an interrupted run's, and is used again.
            let why = format!("{}; so nothing is taken on the word of the WAL", missed.message());
            let mut result = attempt(plan, conninfo, repository, options, &mut monitor, Some(why))?;
            result.findings.push(Finding {
                code: MAP_MISSED,
                message: missed.message().to_owned(),
                detail: format!(
                    "{} Everything was read instead; this backup holds what is there now.",
                    missed.detail_text().unwrap_or_default()
                ),
                hint: missed.hint_text().unwrap_or_default().to_owned(),
            });
            Ok(result)
        }
        result => result,
    }
}

/// One backup from its start to its record. `read_everything_because`: no map of the WAL is used.
/// Errors: as for [`run`], and [`MAP_MISSED`].
fn attempt(
    plan: &Plan,
    conninfo: &str,
    repository: &ClusterRepository,
    options: &BaseBackupOptions<'_>,
    monitor: &mut Session,
    read_everything_because: Option<String>,
) -> Result<BackupResult> {
    let started_at = (options.clock)();
    let requests_before = repository.repository().store().requests();
    let server = cluster::gather(monitor)?;
    refuse_other_server(plan, &server)?;
    let captured = cluster::captured_configuration(&server, monitor)?;
    let parent = plan.parent.map(|id| repository.backup(id)).transpose()?;

    // The checkpoint may take as long as checkpoint_timeout; the intent begins to run when it is done.
    options.progress.update(&ProgressState::starting(plan));
    let (mut session, start_lsn) = BackupSession::start(conninfo, &options.label, options.fast_checkpoint)?;
    let run = repository.start_run(parent.as_ref(), (options.clock)())?;
    run.adopt_unfinished_runs((options.clock)())?;
    let mut teller = Teller {
        options,
        repository,
        run: &run,
        plan,
        requests_before,
        renewed: Instant::now(),
    };
    let (unread, reading) = match read_everything_because {
        Some(why) => (None, Reading::Everything { why }),
        None => unread(plan, repository, options, parent.as_ref(), start_lsn, monitor)?,
    };
    // Listed after the start: what comes into being later is in the backup's WAL.
    let (items, configuration) = items(plan, &server, captured)?;
    let dispatcher = Dispatcher::new(&items, run.tree());
    let shared = Shared {
        items: &items,
        dispatcher: &dispatcher,
        tree: run.tree(),
        checksums: server.data_checksums,
        relation_segment_size: server.relation_segment_size,
        unread,
        abort: AtomicBool::new(false),
        files_done: AtomicU64::new(0),
        bytes_done: AtomicU64::new(0),
        bytes_read: AtomicU64::new(0),
        bad_pages_count: AtomicU64::new(0),
        bad_pages: Mutex::new(Vec::new()),
    };
    let (mut writer, statistics) = read_everything(&shared, &run, options, &mut session, &mut teller)?;

    // Hard rule 1: pg_control last, then stop; label and map are what stop says.
    teller.tell(Stage::Stopping, &shared)?;
    session.check_alive()?;
    let (control_bytes, control) = cluster::read_control_file(&plan.data_directory)?;
    let control_mode =
        file_mode(&plan.data_directory.join(cluster::data_directory::CONTROL_FILE)).unwrap_or(0o600);
    let stop = session.stop()?;
    let label = record::read_label(&stop.backup_label, start_lsn, &server)?;
    if server.in_recovery && control.min_recovery_timeline.0 > label.timeline.0 {
        return Err(Error::new(
            "backup-aborted",
            "the standby moved to another timeline during the backup",
        )
        .hint("Run the backup again."));
    }
    let mut late = vec![(cluster::data_directory::CONTROL_FILE, control_mode, control_bytes)];
    late.push(("backup_label", 0o600, stop.backup_label.clone()));
    if !stop.tablespace_map.is_empty() {
        late.push(("tablespace_map", 0o600, stop.tablespace_map.clone()));
    }
    late.sort_by(|one, two| one.0.cmp(two.0));
    let mut bytes_restored = 0;
    for (path, mode, content) in &late {
        bytes_restored += content.len() as u64;
        let part = FilePart {
            sequence: None,
            path: RelativePath::new(*path)?,
            mode: *mode,
            size: content.len() as u64,
            format: FileFormat::Opaque,
            first_block: 0,
            blocks: blocks_of(content.len() as u64),
        };
        store_bytes(&mut writer, part, content)?;
    }
    let statistics = statistics.plus(writer.finish()?);
    let catalog = read_catalog(conninfo, (options.clock)())?;
    let tree = run.tree().finish(&catalog)?;

    teller.tell(Stage::WaitingForWal, &shared)?;
    let needed = Needed {
        system: server.system_identifier,
        timeline: label.timeline,
        wal_segment_size: server.wal_segment_size,
        start: start_lsn,
        stop: stop.lsn,
    };
    if server.in_recovery {
        wait::ask_primary(plan.primary.as_ref(), &needed)?;
    }
    let segments = wait::wait_for_wal(
        repository,
        &needed,
        monitor,
        server.in_recovery,
        options.archive_timeout,
        &mut |_, _| teller.tell(Stage::WaitingForWal, &shared),
    )?;

    if let Some(unread) = &shared.unread {
        unread.settle(|| wal_map::of_archived(repository, &segments, server.wal_segment_size))?;
    }
    let bad_pages = std::mem::take(&mut *shared.bad_pages.lock().unwrap_or_else(PoisonError::into_inner));
    let bad_pages_count = shared.bad_pages_count.load(Ordering::Relaxed);
    let wal = BackupWal {
        repository,
        pg_wal: Some(&plan.data_directory.join("pg_wal")),
        segments: &segments,
        wal_segment_size: server.wal_segment_size,
        timeline: label.timeline,
        start: start_lsn,
        stop: stop.lsn,
    };
    let judged = excuse::judge(&wal, bad_pages, bad_pages_count);
    let (excused_pages, damaged_pages) = judged.for_the_record();

    teller.tell(Stage::Publishing, &shared)?;
    let finished_at = (options.clock)();
    let bytes_read = shared.bytes_read.load(Ordering::Relaxed);
    let backup = record::record(record::Finished {
        plan,
        server: &server,
        control: &control,
        history: &plan.history,
        run: run.id(),
        label: &label,
        label_text: options.label.clone(),
        started_at,
        finished_at,
        start_lsn,
        stop_lsn: stop.lsn,
        bytes_read,
        bytes_stored: teller.bytes_stored(),
        bytes_restored: bytes_restored + shared.bytes_done.load(Ordering::Relaxed),
        files: shared.files_done.load(Ordering::Relaxed) + late.len() as u64,
        configuration,
        excused_pages,
        damaged_pages,
        parent: parent.as_ref().map(|backup| backup.backup),
        unread: shared.unread.as_ref().map(Unread::record),
        requests: teller.requests(),
        tree,
    });
    run.publish(&backup, finished_at)?;
    Ok(BackupResult {
        reading,
        bytes_read,
        bytes_stored: teller.bytes_stored(),
        pages_stored: statistics.blocks_stored,
        pages_reused: statistics.blocks_reused + statistics.blocks_adopted,
        excused: judged.excused.iter().map(|(page, _)| shown(page)).collect(),
        damaged: judged.damaged.iter().map(|(page, _)| shown(page)).collect(),
        findings: judged.findings,
        backup,
    })
}

/// What need not be read, by the WAL since the parent's start; nothing if that cannot be told.
fn unread(
    plan: &Plan,
    repository: &ClusterRepository,
    options: &BaseBackupOptions<'_>,
    parent: Option<&Backup>,
    start_lsn: Lsn,
    monitor: &mut Session,
) -> Result<(Option<Unread>, Reading)> {
    let (Some(parent), Reading::Changed { since }) = (parent, &plan.reading) else {
        return Ok((None, plan.reading.clone()));
    };
    let flush = wal_map::flush_lsn(monitor, plan.server.in_recovery)?;
    let map = wal_map::read(&wal_map::Stretch {
        repository,
        data_directory: &plan.data_directory,
        system: plan.server.system_identifier,
        timeline: plan.server.timeline,
        wal_segment_size: plan.server.wal_segment_size,
        from: *since,
        to: start_lsn,
        flush: flush.max(start_lsn),
    });
    match map {
        Err(why) => Ok((None, Reading::Everything { why })),
        Ok(changed) => {
            let (_, control) = cluster::read_control_file(&plan.data_directory)?;
            let hints_are_logged = control.data_checksum_version != 0 || control.wal_log_hints;
            let turn = parent.unread.map_or(0, |unread| unread.turn.wrapping_add(1));
            let one_in = options.audit_one_in;
            // The map reaches further, but up to here for certain.
            let unread = Unread::new(changed, *since, start_lsn, hints_are_logged, one_in, turn);
            Ok((Some(unread), plan.reading.clone()))
        }
    }
}

/// The plan was made for this server.
fn refuse_other_server(plan: &Plan, server: &ServerFacts) -> Result<()> {
    if server.system_identifier != plan.server.system_identifier || server.timeline != plan.server.timeline {
        return Err(Error::new(
            "plan-outdated",
            "the server is another one than when the backup was planned",
        )
        .detail(format!(
            "Planned: system identifier {}, timeline {}. Now: {}, timeline {}.",
            plan.server.system_identifier, plan.server.timeline, server.system_identifier, server.timeline
        ))
        .hint("Run the backup again."));
    }
    Ok(())
}

/// One base backup of a server at a time: two would be safe, and read everything twice.
fn refuse_second_backup(session: &mut Session) -> Result<()> {
    let answer = session.one(LOCK)?;
    if answer.first().and_then(Option::as_deref) == Some("t") {
        return Ok(());
    }
    Err(
        Error::new("backup-running", "another base backup of this server is running").hint(
            "Wait until it has ended; SELECT * FROM pg_locks WHERE locktype = 'advisory' shows its process.",
        ),
    )
}

/// Everything that is to be backed up, in path order, and the record's list of captured configuration.
fn items(
    plan: &Plan,
    server: &ServerFacts,
    captured: Vec<CapturedFile>,
) -> Result<(Vec<Item>, Vec<ConfigurationFile>)> {
    let mut items = Vec::new();
    let mut configuration = Vec::new();
    for file in captured {
        let path = RelativePath::new(format!("@config/{}", file.name))?;
        configuration.push(ConfigurationFile {
            role: role_of(server, &file),
            original: record::escaped(&file.original),
            path: Some(path.clone()),
        });
        items.push(Item {
            path,
            mode: 0o600,
            source: Source::Memory(file.content),
        });
    }
    for entry in cluster::list(&plan.data_directory, &server.tablespaces, server.major)? {
        items.push(Item::from_entry(entry)?);
    }
    items.sort_by(|one, two| one.path.cmp(&two.path));
    Ok((items, configuration))
}

/// What the server uses a captured file for.
fn role_of(server: &ServerFacts, file: &CapturedFile) -> String {
    let original = Some(&file.original);
    let role = if original == server.config_file.as_ref() {
        "config_file"
    } else if original == server.hba_file.as_ref() {
        "hba_file"
    } else if original == server.ident_file.as_ref() {
        "ident_file"
    } else {
        "include"
    };
    role.into()
}

/// Runs the worker threads. Gives one pack writer, still open, for what is written last; the others are finished.
fn read_everything(
    shared: &Shared<'_>,
    run: &Run,
    options: &BaseBackupOptions<'_>,
    session: &mut BackupSession,
    teller: &mut Teller<'_>,
) -> Result<(PackWriter, PackStatistics)> {
    let threads = options.threads.max(1);
    let mut writers = Vec::new();
    for _ in 0..threads {
        writers.push(run.pack_writer()?);
    }
    let (results, done) = channel::<Result<(Option<PackWriter>, PackStatistics)>>();
    std::thread::scope(|scope| {
        let mut failure = None;
        let mut running = 0;
        let mut handles = Vec::new();
        for (number, mut writer) in writers.into_iter().enumerate() {
            let results = results.clone();
            let thread = std::thread::Builder::new()
                .name(format!("backup-{number}"))
                .spawn_scoped(scope, move || {
                    let result = shared.work(&mut writer).and_then(|()| match number {
                        0 => Ok((Some(writer), PackStatistics::default())),
                        _ if shared.abort.load(Ordering::Relaxed) => Ok((None, PackStatistics::default())),
                        _ => writer.finish().map(|statistics| (None, statistics)),
                    });
                    let _ = results.send(result);
                });
            match thread {
                Ok(thread) => {
                    running += 1;
                    handles.push(thread);
                }
                Err(error) => failure = Some(Error::io("thread-start", "cannot start a thread", &error)),
            }
        }
        drop(results);
        let mut statistics = PackStatistics::default();
        let mut kept = None;
        let mut alive_asked = Instant::now();
        loop {
            if failure.is_some() {
                shared.abort.store(true, Ordering::Relaxed);
                shared.dispatcher.stop();
            }
            if running == 0 {
                break;
            }
            match done.recv_timeout(PROGRESS_EVERY) {
                Ok(Ok((writer, part))) => {
                    running -= 1;
                    kept = kept.or(writer);
                    statistics = statistics.plus(part);
                    continue;
                }
                Ok(Err(error)) => {
                    running -= 1;
                    failure.get_or_insert(error);
                    continue;
                }
                Err(RecvTimeoutError::Timeout) => {}
                // The threads are gone, and one of them without a word: it panicked.
                Err(RecvTimeoutError::Disconnected) => {
                    failure.get_or_insert_with(unexpected_end);
                    break;
                }
            }
            if failure.is_none() {
                let mut watch = teller.tell(Stage::Reading, shared);
                if alive_asked.elapsed() >= ALIVE_EVERY {
                    alive_asked = Instant::now();
                    watch = watch.and_then(|()| session.check_alive());
                }
                failure = watch.err();
            }
        }
        // Joined here, so that a panic is an error of this run and does not travel on.
        let panicked = handles
            .into_iter()
            .map(|handle| handle.join())
            .filter(Result::is_err)
            .count();
        match (failure, kept) {
            (Some(error), _) => Err(error),
            (None, Some(writer)) if panicked == 0 => Ok((writer, statistics)),
            _ => Err(unexpected_end()),
        }
    })
}

fn unexpected_end() -> Error {
    Error::new("backup-aborted", "a thread of the backup ended unexpectedly").hint("Run the backup again.")
}

/// The catalog as the repository keeps it: JSON.
fn read_catalog(conninfo: &str, now: Timestamp) -> Result<Vec<u8>> {
    let catalog = cluster::read_catalog(conninfo, now)?;
    serde_json::to_vec(&catalog)
        .map_err(|error| Error::new("catalog-encode", "cannot encode the catalog").caused_by(&error))
}

fn file_mode(path: &std::path::Path) -> Option<u32> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::symlink_metadata(path)
        .ok()
        .map(|metadata| metadata.permissions().mode() & 0o7777)
}

fn shown(page: &BadPage) -> DamagedPage {
    DamagedPage {
        path: page.path.to_string(),
        block: page.block,
        lsn: page.lsn,
        problem: page.problem.clone(),
    }
}

/// Tells progress and keeps the intent alive.
struct Teller<'a> {
    options: &'a BaseBackupOptions<'a>,
    repository: &'a ClusterRepository,
    run: &'a Run,
    plan: &'a Plan,
    requests_before: RequestCounts,
    renewed: Instant,
}

impl<'a> Teller<'a> {
    /// Bytes added to the repository so far.
    fn bytes_stored(&self) -> u64 {
        self.requests().bytes_written
    }

    /// What was asked of the store so far.
    fn requests(&self) -> RequestCounts {
        let store = self.repository.repository().store();
        store.requests().since(&self.requests_before)
    }

    fn tell(&mut self, stage: Stage, shared: &Shared<'_>) -> Result<()> {
        let files = shared.files_done.load(Ordering::Relaxed);
        let bytes = shared.bytes_done.load(Ordering::Relaxed);
        self.tell_numbers(stage, files, bytes)
    }

    fn tell_numbers(&mut self, stage: Stage, files_done: u64, bytes_done: u64) -> Result<()> {
        self.options.progress.update(&ProgressState {
            stage,
            files_done,
            files_total: self.plan.files.max(files_done),
            bytes_done,
            bytes_total: self.plan.bytes.max(bytes_done),
            bytes_stored: self.bytes_stored(),
        });
        if self.renewed.elapsed() >= RENEW_EVERY {
            self.renewed = Instant::now();
            self.run.renew((self.options.clock)())?;
        }
        Ok(())
    }
}
