//! A throw-away copy: its folder, its server in quarantine, and the stops of its recovery.
//!
//! Invariants: the copy lives in one folder that only its account may enter, and everything it writes stays
//! there; the server is stopped by its own process, never by name; a stop counts as reached only when the
//! server's own log says that it stopped for our target and it stands still there; a pause for another
//! reason, a promotion and an end are failures with the cause that the log gives; what an earlier, killed
//! drill left behind is removed by the next one.

use std::ffi::OsString;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::{DirBuilderExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use cluster::instance::ServerState;
use cluster::sandbox::{self, Quarantine, Spec};
use cluster::{Instance, Launcher, Programs, Session, StartOptions, StopMode};
use diagnostic::{Error, Result};
use postgres::Lsn;
use restore::Plan;

use crate::feed::Feed;
use crate::log;
use crate::manual;
use crate::resume;
use crate::rows::aborted;
use crate::verdict::code;

/// The port is only a part of the socket's name.
const PORT: u16 = 5432;
/// Between two looks at the server.
const POLL: Duration = Duration::from_millis(20);
/// The server's log is read from the start of this server, at most so much of its end.
const LOG_BYTES_MAX: u64 = 4 << 20;
/// How long the copy's server may take to stop or to be promoted.
const STOP_LIMIT: Duration = Duration::from_secs(300);
/// How long it may take to end at once.
const END_LIMIT: Duration = Duration::from_secs(20);
/// How each drill's folder begins.
const FOLDER_PREFIX: &str = "pgproof-drill-";
/// How many drills may begin within one second below one folder.
const SAME_SECOND_MAX: u32 = 1000;
const LOCK_NAME: &str = "lock";
const KEPT_NAME: &str = "kept";
/// A drill that finds this in its folder ends in an orderly way.
const ABORT_NAME: &str = "abort";
/// The folder, within a copy's, of another version of the backup.
pub(crate) const SECOND: &str = "v2";

/// The copy's folder, held by a lock as long as the drill lives.
#[derive(Debug)]
pub struct CopyFolder {
    /// Its path.
    pub path: PathBuf,
    _lock: File,
}

impl CopyFolder {
    /// Makes the folder of a drill. `owner`: whom it belongs to, when this is root. Error: `copy-folder`.
    pub fn create(parent: &Path, drill_id: &str, owner: Option<(u32, u32)>) -> Result<CopyFolder> {
        let parent = std::fs::canonicalize(parent).map_err(|error| folder_error("find", parent, &error))?;
        let path = unused_folder(&parent, drill_id.trim_start_matches("pitr_drill_"))?;
        // Locked before it has its name: another cluster's drill must not take it for a killed one's.
        let (lock_path, new_path) = (path.join(LOCK_NAME), path.join(format!("{LOCK_NAME}.new")));
        let lock = File::create(&new_path).map_err(|error| folder_error("make", &new_path, &error))?;
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive)
            .map_err(|error| folder_error("lock", &new_path, &error.into()))?;
        std::fs::rename(&new_path, &lock_path).map_err(|error| folder_error("make", &lock_path, &error))?;
        for name in ["", "s", "archived"] {
            let each = path.join(name);
            if !name.is_empty() {
                let made = std::fs::DirBuilder::new().mode(0o700).create(&each);
                made.map_err(|error| folder_error("make", &each, &error))?;
            }
            give(&each, owner)?;
        }
        Ok(CopyFolder { path, _lock: lock })
    }

    /// Removes the folder and everything in it, without following links.
    pub fn remove(&self) -> Result<()> {
        std::fs::remove_dir_all(&self.path).map_err(|error| folder_error("remove", &self.path, &error))
    }

    /// Removes the copy from its folder and leaves the folder itself, in which people still confirm what they do.
    pub fn clear(&self) -> Result<()> {
        let entries =
            std::fs::read_dir(&self.path).map_err(|error| folder_error("read", &self.path, &error))?;
        for entry in entries {
            let entry = entry.map_err(|error| folder_error("read", &self.path, &error))?;
            let (path, name) = (entry.path(), entry.file_name());
            let stays = name
                .to_str()
                .is_some_and(|name| matches!(name, LOCK_NAME | ABORT_NAME) || manual::is_file_of(name));
            if stays {
                continue;
            }
            let removed = match entry.file_type() {
                Ok(kind) if kind.is_dir() => std::fs::remove_dir_all(&path),
                _ => std::fs::remove_file(&path),
            };
            removed.map_err(|error| folder_error("remove", &path, &error))?;
        }
        Ok(())
    }

    /// The drill's name, as [`running`] gives it.
    pub fn name(&self) -> String {
        let name = self.path.file_name().unwrap_or_default().to_string_lossy();
        name.strip_prefix(FOLDER_PREFIX).unwrap_or(&name).to_owned()
    }

    /// Takes the folder of a drill over that was killed. Errors: `copy-folder`, `drill-running`.
    pub fn take_over(path: &Path) -> Result<CopyFolder> {
        let path = std::fs::canonicalize(path).map_err(|error| folder_error("find", path, &error))?;
        let lock = match lock_of(&path) {
            Lock::Free(lock) => lock,
            Lock::Held => {
                return Err(Error::new(
                    "drill-running",
                    format!("the drill in \"{}\" still runs", path.display()),
                )
                .hint("Wait for it, or end it with `pgproof drill abort`."));
            }
            Lock::None(error) => return Err(folder_error("open the lock in", &path, &error)),
        };
        stop_servers(&path, STOP_LIMIT)?;
        remove_if_there(&path.join(ABORT_NAME))?;
        Ok(CopyFolder { path, _lock: lock })
    }

    /// Whether somebody has asked this drill to end.
    pub fn is_to_end(&self) -> bool {
        self.path.join(ABORT_NAME).exists()
    }

    /// Ends the servers of this drill's copies, and with them every statement that somebody waits for. What cannot be
    /// ended now is met again when the copy is removed.
    pub(crate) fn end_servers(&self) {
        let _ = stop_servers(&self.path, END_LIMIT);
    }

    /// Tells later drills to leave the folder alone. What a drill is taken up from goes, and with it the keys of the row
    /// digests: this one has ended.
    pub fn keep(&self) -> Result<()> {
        remove_if_there(&self.path.join(resume::FILE))?;
        let path = self.path.join(KEPT_NAME);
        std::fs::write(&path, "kept on request; remove the folder by hand\n")
            .map_err(|error| folder_error("write", &path, &error))
    }
}

/// Makes a new folder. A drill's name is its own within its repository; the drill of another cluster on this host may
/// have begun in the same second.
fn unused_folder(parent: &Path, name: &str) -> Result<PathBuf> {
    let mut number = 1;
    loop {
        let path = match number {
            1 => parent.join(format!("{FOLDER_PREFIX}{name}")),
            _ => parent.join(format!("{FOLDER_PREFIX}{name}-{number}")),
        };
        match std::fs::DirBuilder::new().mode(0o700).create(&path) {
            Ok(()) => return Ok(path),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists && number < SAME_SECOND_MAX => {
                number += 1;
            }
            Err(error) => return Err(folder_error("make", &path, &error)),
        }
    }
}

/// The folders of drills that run below `parent`, by the names of the drills (`20260125T143000Z`). Error: `copy-folder`.
pub fn running(parent: &Path) -> Result<Vec<(String, PathBuf)>> {
    folders(parent, is_held)
}

/// The folders of drills below `parent` that were interrupted and can be taken up again. Error: `copy-folder`.
pub fn interrupted(parent: &Path) -> Result<Vec<(String, PathBuf)>> {
    folders(parent, |folder| {
        folder.join(resume::FILE).exists() && !folder.join(KEPT_NAME).exists() && !is_held(folder)
    })
}

fn folders(parent: &Path, wanted: impl Fn(&Path) -> bool) -> Result<Vec<(String, PathBuf)>> {
    let mut found = Vec::new();
    let entries = std::fs::read_dir(parent).map_err(|error| folder_error("read", parent, &error))?;
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some(drill) = name.to_str().and_then(|name| name.strip_prefix(FOLDER_PREFIX)) else {
            continue;
        };
        // Not what a link leads to.
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) && wanted(&entry.path()) {
            found.push((drill.to_string(), entry.path()));
        }
    }
    found.sort();
    Ok(found)
}

/// The lock of a drill's folder, as another drill finds it.
enum Lock {
    /// Nobody held it; now it is held by whoever asked.
    Free(File),
    /// A drill that lives holds it.
    Held,
    /// It is no folder of a drill, or nobody may look.
    None(std::io::Error),
}

fn lock_of(folder: &Path) -> Lock {
    match File::open(folder.join(LOCK_NAME)) {
        Err(error) => Lock::None(error),
        Ok(lock) => match rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Lock::Free(lock),
            Err(_) => Lock::Held,
        },
    }
}

fn is_held(folder: &Path) -> bool {
    matches!(lock_of(folder), Lock::Held)
}

/// Stops the servers in a drill's folder at once; `limit`: then they are killed.
fn stop_servers(folder: &Path, limit: Duration) -> Result<()> {
    for data in [folder.join("data"), folder.join(SECOND).join("data")] {
        if data.exists() {
            Instance::stop_leftover(&data, limit)?;
        }
    }
    Ok(())
}

/// Asks a drill that runs in this folder to end, and waits for it; whether it has ended in time. Error: `copy-folder`.
pub fn ask_to_end(folder: &Path, limit: Duration) -> Result<bool> {
    let path = folder.join(ABORT_NAME);
    match std::fs::write(&path, "the drill is to end\n") {
        // It has ended by itself meanwhile.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(true),
        written => written.map_err(|error| folder_error("write", &path, &error))?,
    }
    let started = Instant::now();
    while is_held(folder) {
        if started.elapsed() >= limit {
            return Ok(false);
        }
        std::thread::sleep(POLL);
    }
    Ok(true)
}

/// Stops and removes what drills that were killed left in `parent`; the names of the folders.
pub fn remove_leftovers(parent: &Path) -> Result<Vec<String>> {
    let mut removed = Vec::new();
    for (drill, path) in folders(parent, |folder| !folder.join(KEPT_NAME).exists())? {
        // Held until the folder is gone.
        let Lock::Free(_lock) = lock_of(&path) else {
            continue;
        };
        stop_servers(&path, STOP_LIMIT)?;
        std::fs::remove_dir_all(&path).map_err(|error| folder_error("remove", &path, &error))?;
        removed.push(format!("{FOLDER_PREFIX}{drill}"));
    }
    Ok(removed)
}

fn remove_if_there(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(folder_error("remove", path, &error))
        }
        _ => Ok(()),
    }
}

fn give(path: &Path, owner: Option<(u32, u32)>) -> Result<()> {
    if let Some((uid, gid)) = owner {
        chown(path, Some(uid), Some(gid)).map_err(|error| folder_error("give away", path, &error))?;
    }
    Ok(())
}

fn folder_error(what: &str, path: &Path, error: &std::io::Error) -> Error {
    Error::io(
        "copy-folder",
        format!("cannot {what} \"{}\"", path.display()),
        error,
    )
}

/// How a copy is isolated when its server starts.
#[derive(Debug, Clone)]
pub struct Isolation {
    /// The program that enters the quarantine; `None`: by configuration only.
    pub launcher: Option<Launcher>,
    /// What is hidden and what stays readable.
    pub quarantine: Quarantine,
    /// As root: the account that the server runs as.
    pub run_as: Option<(u32, u32)>,
}

/// Where the copy stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reached {
    /// `pg_last_wal_replay_lsn()`.
    pub lsn: Option<Lsn>,
    /// `pg_last_xact_replay_timestamp()`.
    pub time: Option<String>,
    /// The server's own line.
    pub line: Option<String>,
    /// Until the server accepted sessions, or reached the stop before that.
    pub start: Duration,
    /// From there to the stop.
    pub replay: Duration,
}

/// A copy with its server.
pub struct Copy {
    folder: PathBuf,
    data: PathBuf,
    log_file: PathBuf,
    feed: Feed,
    feeder: Option<JoinHandle<()>>,
    feeder_stop: Arc<AtomicBool>,
    instance: Instance,
    settings: Vec<(String, String)>,
    launcher: Option<Launcher>,
    /// For programs of checks: the launcher without arguments of the server's, and what it is told.
    quarantine: Option<(Launcher, Spec)>,
    superuser: String,
    report: PathBuf,
    /// What the quarantine said when it was last entered, read before the server could write over it at
    /// leisure.
    reported: Option<sandbox::Report>,
    log_offset: u64,
}

impl Copy {
    /// A copy over a restored data directory. `serve` runs in a thread of its own and answers the feed until
    /// it is told to stop. Errors: those of the instance, `sandbox-spec`.
    pub fn open(
        folder: &Path,
        programs: &Programs,
        feed: Feed,
        settings: Vec<(String, String)>,
        isolation: &Isolation,
        superuser: &str,
        serve: impl FnOnce(&Feed, &AtomicBool) + Send + 'static,
    ) -> Result<Copy> {
        let data = folder.join("data");
        let mut instance = Instance::open(programs, &data)?;
        instance.set_superuser(superuser);
        let report = folder.join("quarantine.json");
        let quarantine = isolation.launcher.clone().map(|launcher| {
            let mut spec = Spec::new(isolation.quarantine.clone(), isolation.run_as);
            spec.report = folder.join("command.json");
            spec.arguments_without_shared_memory = Vec::new();
            (launcher, spec)
        });
        let launcher = match &isolation.launcher {
            Some(launcher) => {
                let mut spec = Spec::new(isolation.quarantine.clone(), isolation.run_as);
                spec.report.clone_from(&report);
                let path = folder.join("quarantine-spec.json");
                spec.write(&path)?;
                let mut arguments = launcher.arguments.clone();
                arguments.extend([
                    OsString::from("--spec"),
                    path.into_os_string(),
                    OsString::from("--"),
                ]);
                Some(Launcher {
                    program: launcher.program.clone(),
                    arguments,
                })
            }
            None => None,
        };
        let feeder_stop = Arc::new(AtomicBool::new(false));
        let (thread_feed, thread_stop) = (feed.clone(), Arc::clone(&feeder_stop));
        let feeder = std::thread::Builder::new()
            .name("pgproof-feed".into())
            .spawn(move || serve(&thread_feed, &thread_stop))
            .map_err(|error| Error::io("thread-start", "cannot start a thread", &error))?;
        Ok(Copy {
            folder: folder.into(),
            log_file: folder.join("server.log"),
            data,
            feed,
            feeder: Some(feeder),
            feeder_stop,
            instance,
            settings,
            launcher,
            quarantine,
            superuser: superuser.into(),
            report,
            reported: None,
            log_offset: 0,
        })
    }

    /// Starts the server for one stop of the plan; the directory is pointed at that stop first.
    pub fn spawn(&mut self, plan: &Plan, stop: usize) -> Result<()> {
        restore::write_stop(&self.data, plan, stop)?;
        self.reported = None;
        match std::fs::remove_file(&self.report) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(folder_error("remove", &self.report, &error)),
        }
        self.log_offset = std::fs::metadata(&self.log_file)
            .map(|metadata| metadata.len())
            .unwrap_or(0);
        let mut options = StartOptions::new(&self.folder.join("s"), PORT, &self.log_file);
        options.settings = self.settings.clone();
        options.launcher = self.launcher.clone();
        self.instance.spawn(&options)
    }

    /// Waits until the server stands at its stop. With `opens_at` the plan has no target to stop at (the end
    /// of the archived WAL): then the server opens when it has replayed up to there. Errors carry a reason's
    /// code: `paused-by-parameter-change`, `recovery-stopped-early`, `target-not-reached`, `wal-missing`,
    /// `server-ended`, ...; `replay-timeout` and `drill-aborted` say nothing about the recovery.
    pub fn wait_for_stop(
        &mut self,
        opens_at: Option<Lsn>,
        timeout: Duration,
        abort: &AtomicBool,
    ) -> Result<Reached> {
        let started = Instant::now();
        let mut accepted: Option<Duration> = None;
        loop {
            if self.reported.is_none() && self.launcher.is_some() {
                self.reported = sandbox::Report::read(&self.report).ok();
            }
            let running = self.instance.is_running();
            let log = self.log();
            if log::paused_at_target(&log) {
                if let Some((lsn, time)) = self.paused_position()? {
                    let all = started.elapsed();
                    let start = accepted.unwrap_or(all);
                    let line = log::stop_line(&log);
                    return Ok(Reached {
                        lsn,
                        time,
                        line,
                        start,
                        replay: all.saturating_sub(start),
                    });
                }
            } else if log::recovery_complete(&log) {
                match opens_at {
                    None => return Err(self.opened_early(&log)),
                    Some(end) if matches!(self.instance.state(), Ok(ServerState::Ready)) => {
                        return self.opened_at_end(end, started.elapsed(), accepted);
                    }
                    Some(_) => {}
                }
            }
            if !running {
                // A drill that is ended has its server stopped.
                return Err(match abort.load(Ordering::Relaxed) {
                    true => aborted(),
                    false => self.ended(&log),
                });
            }
            if let Some(cause) =
                log::cause(&log).filter(|cause| cause.code == code::PAUSED_BY_PARAMETER_CHANGE)
            {
                return Err(Error::new(
                    cause.code,
                    "replay paused because a setting of the copy is too low",
                )
                .detail(cause.line));
            }
            if accepted.is_none()
                && matches!(
                    self.instance.state(),
                    Ok(ServerState::Standby | ServerState::Ready)
                )
            {
                accepted = Some(started.elapsed());
            }
            if abort.load(Ordering::Relaxed) {
                return Err(aborted());
            }
            if started.elapsed() >= timeout {
                let seconds = timeout.as_secs();
                return Err(Error::new(
                    "replay-timeout",
                    format!("the copy did not reach its stop in {seconds} s"),
                ));
            }
            std::thread::sleep(POLL);
        }
    }

    /// The end of the archived WAL has no pause: the server opens there.
    fn opened_at_end(&mut self, end: Lsn, all: Duration, accepted: Option<Duration>) -> Result<Reached> {
        let row = self
            .session()?
            .one("SELECT pg_last_wal_replay_lsn(), pg_last_xact_replay_timestamp()")?;
        let mut columns = row.into_iter();
        let lsn: Option<Lsn> = columns.next().flatten().and_then(|text| text.parse().ok());
        let time = columns.next().flatten();
        if lsn.is_none_or(|lsn| lsn < end) {
            let at = lsn.map_or_else(|| "an unknown place".into(), |lsn| lsn.to_string());
            return Err(Error::new(
                code::RECOVERY_STOPPED_EARLY,
                "recovery ended before the end of the archived WAL",
            )
            .detail(format!("It replayed up to {at}; the archived WAL ends at {end}.")));
        }
        let start = accepted.unwrap_or(all);
        let line = log::last_replayed_line(&self.log());
        Ok(Reached {
            lsn,
            time,
            line,
            start,
            replay: all.saturating_sub(start),
        })
    }

    /// A session in whatever database there is.
    fn session(&self) -> Result<Session> {
        match Session::connect(&self.conninfo("postgres")) {
            // The database may not exist in this cluster.
            Err(error) if cluster::session::sqlstate(&error) == Some("3D000") => {
                Session::connect(&self.conninfo("template1"))
            }
            other => other,
        }
    }

    /// Where the paused server stands; `None` while it does not say that it is paused yet.
    fn paused_position(&mut self) -> Result<Option<(Option<Lsn>, Option<String>)>> {
        let mut session = match self.session() {
            Ok(session) => session,
            Err(error) if error.code() == "server-unreachable" => return Ok(None),
            Err(error) => return Err(error),
        };
        let row = session.one(
            "SELECT pg_is_in_recovery() AND pg_is_wal_replay_paused(), pg_last_wal_replay_lsn(), \
                    pg_last_xact_replay_timestamp()",
        )?;
        let mut columns = row.into_iter();
        let paused = columns.next().flatten().as_deref() == Some("t");
        let lsn = columns.next().flatten().and_then(|text| text.parse().ok());
        let time = columns.next().flatten();
        Ok(paused.then_some((lsn, time)))
    }

    fn opened_early(&self, log: &str) -> Error {
        match log::stop_line(log) {
            // The server stopped for the target and opened at once: it could not wait there, because no
            // session could have been let in yet.
            Some(line) => Error::new(
                "standby-not-ready",
                "the copy opened at its target instead of waiting there",
            )
            .detail(line)
            .hint("Choose a later target: the first snapshot of running transactions was not complete."),
            None => {
                let error = Error::new(
                    code::RECOVERY_STOPPED_EARLY,
                    "recovery ended before the target, and the copy opened",
                );
                match log::cause(log) {
                    Some(cause) => error.detail(cause.line),
                    None => error,
                }
            }
        }
    }

    /// Why the server ended: what the feed met goes before what the server says about it.
    fn ended(&self, log: &str) -> Error {
        if let Some((name, error)) = self.feed.record().failure {
            return error.context(format!(
                "recovery ended, because WAL file {name} could not be handed to it"
            ));
        }
        match log::cause(log) {
            Some(cause) => Error::new(cause.code, "the copy's server ended before it reached its stop")
                .detail(cause.line),
            None => match self.launcher_failure(log) {
                Some(line) => Error::new("sandbox-start", "the quarantine could not be entered").detail(line),
                None => Error::new(code::SERVER_ENDED, "the copy's server ended without saying why"),
            },
        }
    }

    /// The launcher speaks on the same stream, without the server's prefix.
    fn launcher_failure(&self, log: &str) -> Option<String> {
        self.launcher.as_ref()?;
        log.lines()
            .find(|line| line.starts_with("error["))
            .map(str::to_string)
    }

    /// The log of this server since its start.
    pub fn log(&self) -> String {
        read_from(&self.log_file, self.log_offset).unwrap_or_default()
    }

    /// The log of all starts.
    pub fn whole_log(&self) -> String {
        read_from(&self.log_file, 0).unwrap_or_default()
    }

    /// How to connect to the copy: nothing of the database's or the role's own settings acts in our sessions.
    pub fn conninfo(&self, database: &str) -> String {
        let options =
            "-c session_preload_libraries= -c local_preload_libraries= -c default_transaction_read_only=on";
        format!("{} options='{options}'", self.instance.conninfo(database))
    }

    /// What was achieved when the quarantine was entered; `None` without a launcher. Error: `sandbox-report`.
    pub fn quarantine_report(&self) -> Result<Option<sandbox::Report>> {
        match (&self.launcher, &self.reported) {
            (None, _) => Ok(None),
            (Some(_), Some(report)) => Ok(Some(report.clone())),
            (Some(_), None) => sandbox::Report::read(&self.report).map(Some),
        }
    }

    /// What the feed handed over.
    pub fn feed(&self) -> &Feed {
        &self.feed
    }

    /// The data directory.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// A program that is started inside the copy's quarantine; `None` without a launcher. Error: `sandbox-spec`.
    pub fn quarantined(&self, program: &str, arguments: &[String]) -> Result<Option<Command>> {
        let Some((launcher, spec)) = &self.quarantine else {
            return Ok(None);
        };
        let path = self.folder.join("command-spec.json");
        spec.write(&path)?;
        let mut command = Command::new(&launcher.program);
        command
            .args(&launcher.arguments)
            .arg("--spec")
            .arg(&path)
            .arg("--")
            .arg(program)
            .args(arguments);
        Ok(Some(command))
    }

    /// The folder of the server's socket.
    pub fn socket_folder(&self) -> PathBuf {
        self.folder.join("s")
    }

    /// The port that is a part of the socket's name.
    pub fn port(&self) -> u16 {
        PORT
    }

    /// The copy's superuser.
    pub fn superuser(&self) -> &str {
        &self.superuser
    }

    /// Whether the server is there.
    pub fn is_running(&mut self) -> bool {
        self.instance.is_running()
    }

    /// Ends recovery, so that the copy accepts writes.
    pub fn promote(&mut self) -> Result<()> {
        self.instance.promote(STOP_LIMIT)
    }

    /// Stops the server in order, and by force where it does not obey.
    pub fn stop(&mut self) -> Result<()> {
        self.instance
            .stop(StopMode::Fast)
            .or_else(|_| self.instance.stop(StopMode::Immediate))
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        // The instance stops its server when it is dropped; the feed has nobody to serve then.
        self.feeder_stop.store(true, Ordering::Relaxed);
        if let Some(feeder) = self.feeder.take() {
            let _ = feeder.join();
        }
    }
}

/// The text of a file from an offset on, at most its last [`LOG_BYTES_MAX`] bytes.
fn read_from(path: &Path, offset: u64) -> std::io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    let from = offset.max(length.saturating_sub(LOG_BYTES_MAX));
    file.seek(SeekFrom::Start(from))?;
    let mut bytes = Vec::new();
    file.take(LOG_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drills_of_two_clusters_that_begin_in_the_same_second_have_folders_of_their_own() {
        let parent = tempfile::tempdir().expect("a folder");
        let one = CopyFolder::create(parent.path(), "pitr_drill_1", None).expect("a folder");
        let two = CopyFolder::create(parent.path(), "pitr_drill_1", None).expect("another folder");
        assert_ne!(one.path, two.path);
        assert!(one.path.exists() && two.path.exists());
    }

    #[test]
    fn only_a_drill_that_lives_is_asked_to_end() {
        let parent = tempfile::tempdir().expect("a folder");
        let living = CopyFolder::create(parent.path(), "pitr_drill_1", None).expect("a folder");
        drop(CopyFolder::create(parent.path(), "pitr_drill_2", None).expect("a folder"));
        let running = running(parent.path()).expect("looks");
        assert_eq!(running, [("1".to_string(), living.path.clone())]);
        assert!(!living.is_to_end());
        let ended = std::thread::scope(|scope| {
            let asked = scope.spawn(|| ask_to_end(&running[0].1, Duration::from_secs(20)).expect("asks"));
            while !living.is_to_end() {
                std::thread::sleep(POLL);
            }
            drop(living);
            asked.join().expect("ends")
        });
        assert!(ended);
    }

    #[test]
    fn a_copy_that_is_kept_is_no_interrupted_drill_and_holds_no_keys() {
        let parent = tempfile::tempdir().expect("a folder");
        for name in ["pitr_drill_1", "pitr_drill_2"] {
            let folder = CopyFolder::create(parent.path(), name, None).expect("a folder");
            std::fs::write(folder.path.join(resume::FILE), "{}").expect("writes");
            if name == "pitr_drill_2" {
                folder.keep().expect("is told to stay");
                assert!(!folder.path.join(resume::FILE).exists());
            } else {
                assert_eq!(interrupted(parent.path()).expect("looks"), [], "it lives");
            }
        }
        let names: Vec<String> = interrupted(parent.path())
            .expect("looks")
            .into_iter()
            .map(|(name, _)| name)
            .collect();
        assert_eq!(names, ["1"]);
    }

    #[test]
    fn what_a_killed_drill_left_is_removed_and_what_lives_or_is_kept_stays() {
        let parent = tempfile::tempdir().expect("a folder");
        let living = CopyFolder::create(parent.path(), "pitr_drill_1", None).expect("a folder");
        let killed = CopyFolder::create(parent.path(), "pitr_drill_2", None)
            .expect("a folder")
            .path
            .clone();
        let kept = {
            let kept = CopyFolder::create(parent.path(), "pitr_drill_3", None).expect("a folder");
            kept.keep().expect("is told to stay");
            kept.path.clone()
        };
        std::fs::create_dir(parent.path().join("pgproof-drill-foreign")).expect("makes a folder");
        let removed = remove_leftovers(parent.path()).expect("looks");
        assert_eq!(removed, ["pgproof-drill-2"]);
        assert!(living.path.exists() && kept.exists() && !killed.exists());
        assert!(
            parent.path().join("pgproof-drill-foreign").exists(),
            "a folder without our lock is not ours"
        );
        living.remove().expect("removes");
        assert!(!living.path.exists());
    }
}
