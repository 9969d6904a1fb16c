//! A server that pgproof itself initialises, starts and stops: a throw-away copy, a test cluster.
//!
//! Invariants: nothing of PostgreSQL ever runs as root: as root, programs run as the account that owns the
//! data directory, with no further groups. The server is a child of this process and is watched directly (no
//! `pg_ctl`, whose success says little during recovery): it is ready when `postmaster.pid` says so, and its
//! end is noticed at once, with the end of its log in the error. It inherits no environment: no credential
//! of ours reaches it. It listens on no TCP address unless told to. Dropping a running instance stops it
//! immediately.

mod process;

use crate::data_directory::{owner, read_control_file};
use crate::postmaster::{PostmasterPid, live_server};
use crate::programs::Programs;
use diagnostic::{Error, Result};
use postgres::ClusterState;
use process::{as_owner, base, is_root, pause, process, run, tail};
use rustix::process::{Signal, kill_process};
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, chown, fchown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

pub use crate::postmaster::ServerState;
pub use process::ProgramOutput;

/// `sun_path` holds 108 bytes, with the final NUL.
const SOCKET_PATH_LENGTH_MAX: usize = 107;
const LOG_IN_ERROR_BYTES: u64 = 4096;
const INIT_LIMIT: Duration = Duration::from_secs(600);
const STOP_LIMIT: Duration = Duration::from_secs(300);
const STOP_IMMEDIATE_LIMIT: Duration = Duration::from_secs(20);

/// How a new cluster is made.
#[derive(Debug, Clone, Default)]
pub struct InitOptions {
    pub checksums: bool,
    /// Bytes; `None` is PostgreSQL's default (16 MiB).
    pub wal_segment_size: Option<u32>,
    /// `None`: "postgres".
    pub superuser: Option<String>,
    /// `None`: "C.UTF-8". The encoding is UTF8.
    pub locale: Option<String>,
    /// As root: whom a new directory shall belong to (uid, gid).
    pub owner: Option<(u32, u32)>,
    /// Further arguments of `initdb`.
    pub extra: Vec<OsString>,
}

/// How a server is started.
#[derive(Debug, Clone)]
pub struct StartOptions {
    pub socket_directory: PathBuf,
    pub port: u16,
    /// Given on the command line with `-c name=value`, after those that the instance sets itself, so they
    /// win.
    pub settings: Vec<(String, String)>,
    /// Appended to.
    pub log_file: PathBuf,
    /// How long [`Instance::start`] waits for the server to accept connections.
    pub timeout: Duration,
    pub launcher: Option<Launcher>,
    /// The server's whole environment besides `PATH` and `LC_ALL=C`.
    pub environment: Vec<(String, String)>,
}

impl StartOptions {
    /// No settings of one's own, one minute.
    pub fn new(socket_directory: &Path, port: u16, log_file: &Path) -> StartOptions {
        StartOptions {
            socket_directory: socket_directory.to_path_buf(),
            port,
            settings: Vec::new(),
            log_file: log_file.to_path_buf(),
            timeout: Duration::from_secs(60),
            launcher: None,
            environment: Vec::new(),
        }
    }
}

/// A program that ends by executing the server: `program arguments... /path/to/postgres -D ...`. As root it
/// is started as root, and must itself become the directory's owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Launcher {
    pub program: PathBuf,
    pub arguments: Vec<OsString>,
}

/// How a server is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopMode {
    /// Waits for the clients.
    Smart,
    /// Ends the clients, writes a checkpoint.
    Fast,
    /// As a crash.
    Immediate,
}

/// A data directory and, while it runs, its server.
pub struct Instance {
    programs: Programs,
    directory: PathBuf,
    superuser: String,
    owner: (u32, u32),
    running: Option<Running>,
    /// Of the last start.
    log_file: Option<PathBuf>,
    address: Option<(PathBuf, u16)>,
}

struct Running {
    child: Child,
}

impl Instance {
    /// Makes a new cluster with `initdb`. Error codes: `data-directory-exists`, `root-not-allowed`,
    /// `initdb-failed`, `programs-missing`.
    pub fn init(programs: &Programs, directory: &Path, options: &InitOptions) -> Result<Instance> {
        if fs::read_dir(directory).is_ok_and(|mut entries| entries.next().is_some()) {
            return Err(Error::new(
                "data-directory-exists",
                format!("directory \"{}\" is not empty", directory.display()),
            ));
        }
        let initdb = programs.program("initdb")?;
        if !directory.exists() {
            fs::DirBuilder::new()
                .mode(0o700)
                .create(directory)
                .map_err(|error| {
                    Error::io(
                        "initdb-failed",
                        format!("cannot create \"{}\"", directory.display()),
                        &error,
                    )
                })?;
            if let Some((uid, gid)) = options.owner.filter(|_| is_root()) {
                chown(directory, Some(uid), Some(gid)).map_err(|error| {
                    Error::io(
                        "initdb-failed",
                        format!("cannot give \"{}\" away", directory.display()),
                        &error,
                    )
                })?;
            }
        }
        let superuser = options.superuser.clone().unwrap_or_else(|| "postgres".into());
        let mut arguments: Vec<OsString> = vec!["-D".into(), directory.into()];
        arguments.extend(["-U".into(), OsString::from(&superuser), "--auth=trust".into()]);
        arguments.push("--encoding=UTF8".into());
        arguments.push(format!("--locale={}", options.locale.as_deref().unwrap_or("C.UTF-8")).into());
        match options.checksums {
            true => arguments.push("--data-checksums".into()),
            // The default changed with 18.
            false if programs.major.0 >= 18 => arguments.push("--no-data-checksums".into()),
            false => {}
        }
        if let Some(size) = options.wal_segment_size {
            arguments.push(format!("--wal-segsize={}", size >> 20).into());
        }
        arguments.extend(options.extra.iter().cloned());
        let owner = checked_owner(directory)?;
        let mut command = Command::new(&initdb);
        command.args(&arguments);
        let output = run(as_owner(&mut command, owner), INIT_LIMIT)?;
        if !output.status.success() {
            return Err(Error::new(
                "initdb-failed",
                format!("cannot initialise \"{}\"", directory.display()),
            )
            .detail(format!("initdb: {}\n{}", output.status, output.stderr.trim_end())));
        }
        let mut instance = Instance::open(programs, directory)?;
        instance.superuser = superuser;
        Ok(instance)
    }

    /// An existing data directory with no server running in it. Error codes: `data-directory-live`,
    /// `data-directory-read`, `data-directory-owner`, `root-not-allowed`.
    pub fn open(programs: &Programs, directory: &Path) -> Result<Instance> {
        let owner = checked_owner(directory)?;
        refuse_live(directory)?;
        Ok(Instance {
            programs: programs.clone(),
            directory: directory.to_path_buf(),
            superuser: "postgres".into(),
            owner,
            running: None,
            log_file: None,
            address: None,
        })
    }

    /// Another superuser's name for [`Instance::conninfo`] than "postgres".
    pub fn set_superuser(&mut self, name: &str) {
        self.superuser = name.to_string();
    }

    /// Starts the server and waits until it accepts connections (or, with `hot_standby=off`, recovers).
    /// After an error the server does not run any more. Error codes: those of [`Instance::spawn`] and
    /// [`Instance::wait_ready`].
    pub fn start(&mut self, options: &StartOptions) -> Result<()> {
        self.spawn(options)?;
        self.wait_ready(options.timeout).inspect_err(|_| self.kill())
    }

    /// Starts the server and does not wait for it. Error codes: `data-directory-live`,
    /// `socket-path-too-long`, `server-start-failed`, `setting-name`.
    pub fn spawn(&mut self, options: &StartOptions) -> Result<()> {
        if self.is_running() {
            return Err(live_error(&self.directory));
        }
        refuse_live(&self.directory)?;
        // A leftover status of an earlier life must not be taken for this one's.
        let socket = options
            .socket_directory
            .join(format!(".s.PGSQL.{}", options.port));
        if socket.as_os_str().len() > SOCKET_PATH_LENGTH_MAX {
            return Err(
                Error::new("socket-path-too-long", "the socket folder's path is too long")
                    .detail(format!(
                        "\"{}\" has {} bytes; a Unix socket's path may have {SOCKET_PATH_LENGTH_MAX}.",
                        socket.display(),
                        socket.as_os_str().len()
                    ))
                    .hint("Choose a shorter folder."),
            );
        }
        let server = self.programs.program("postgres")?;
        let mut command = match &options.launcher {
            Some(launcher) => {
                let mut command = Command::new(&launcher.program);
                command.args(&launcher.arguments).arg(&server);
                command
            }
            None => Command::new(&server),
        };
        command.arg("-D").arg(&self.directory);
        for (name, value) in self.settings(options)? {
            command.arg("-c").arg(format!("{name}={value}"));
        }
        match options.launcher {
            // The launcher needs root's rights, and gives them up itself.
            Some(_) if is_root() => base(&mut command),
            _ => as_owner(&mut command, self.owner),
        };
        command.envs(options.environment.iter().map(|(name, value)| (name, value)));
        let log = self.open_log(&options.log_file)?;
        let start_error =
            |error: &std::io::Error| Error::io("server-start-failed", "cannot start the server", error);
        let errors = log.try_clone().map_err(|error| start_error(&error))?;
        command.stdin(Stdio::null()).stdout(log).stderr(errors);
        self.log_file = Some(options.log_file.clone());
        self.address = Some((options.socket_directory.clone(), options.port));
        let child = command.spawn().map_err(|error| start_error(&error))?;
        self.running = Some(Running { child });
        Ok(())
    }

    /// Waits until the server accepts connections. Error codes: `server-start-failed` as soon as the server
    /// has ended, `server-start-timeout` (then it is still running), `server-not-running`.
    pub fn wait_ready(&mut self, timeout: Duration) -> Result<()> {
        let started = Instant::now();
        loop {
            if let Some(status) = self.ended()? {
                return Err(
                    Error::new("server-start-failed", format!("the server ended: {status}"))
                        .detail(self.log_detail()),
                );
            }
            match self.state()? {
                ServerState::Ready | ServerState::Standby => return Ok(()),
                _ if started.elapsed() >= timeout => {
                    let message = format!("the server is not ready after {} seconds", timeout.as_secs());
                    return Err(Error::new("server-start-timeout", message).detail(self.log_detail()));
                }
                _ => thread::sleep(pause(started)),
            }
        }
    }

    /// Waits until the server ends by itself (`recovery_target_action=shutdown`). Error codes:
    /// `server-stop-timeout`, `server-not-running`.
    pub fn wait_ended(&mut self, timeout: Duration) -> Result<ExitStatus> {
        let started = Instant::now();
        loop {
            if let Some(status) = self.ended()? {
                return Ok(status);
            }
            if started.elapsed() >= timeout {
                let message = format!("the server still runs after {} seconds", timeout.as_secs());
                return Err(Error::new("server-stop-timeout", message).detail(self.log_detail()));
            }
            thread::sleep(pause(started));
        }
    }

    /// What the server says of itself.
    pub fn state(&mut self) -> Result<ServerState> {
        let Some(pid) = self.pid().filter(|_| self.is_running()) else {
            return Ok(ServerState::Stopped);
        };
        let server = PostmasterPid::read(&self.directory)?.filter(|server| server.pid == pid);
        Ok(server.map_or(ServerState::Starting, |server| server.status))
    }

    /// Stops the server and waits for its end. Nothing happens when it does not run. Error codes:
    /// `server-stop-timeout`.
    pub fn stop(&mut self, mode: StopMode) -> Result<()> {
        if !self.is_running() {
            self.running = None;
            return Ok(());
        }
        self.signal(match mode {
            StopMode::Smart => Signal::TERM,
            StopMode::Fast => Signal::INT,
            StopMode::Immediate => Signal::QUIT,
        })?;
        match mode {
            StopMode::Immediate => {
                if self.wait_ended(STOP_IMMEDIATE_LIMIT).is_err() {
                    self.signal(Signal::KILL)?;
                    self.wait_ended(STOP_IMMEDIATE_LIMIT)?;
                }
            }
            _ => {
                self.wait_ended(STOP_LIMIT)?;
            }
        }
        self.running = None;
        Ok(())
    }

    /// Ends recovery and waits until the server is in production, by its control file. Error codes:
    /// `not-in-recovery`, `promote-failed`, `server-start-failed`.
    pub fn promote(&mut self, timeout: Duration) -> Result<()> {
        let in_recovery = |state| matches!(state, ClusterState::InArchiveRecovery);
        if !self.is_running() || !in_recovery(read_control_file(&self.directory)?.1.state) {
            return Err(Error::new(
                "not-in-recovery",
                "the server is not in archive recovery",
            ));
        }
        // As pg_ctl does it: the file says what the signal means.
        let file = self.directory.join("promote");
        let failed = |error: &std::io::Error| Error::io("promote-failed", "cannot promote the server", error);
        let request = File::create(&file).map_err(|error| failed(&error))?;
        fchown(&request, Some(self.owner.0), Some(self.owner.1)).map_err(|error| failed(&error))?;
        self.signal(Signal::USR1)?;
        let started = Instant::now();
        while read_control_file(&self.directory)?.1.state != ClusterState::InProduction {
            if let Some(status) = self.ended()? {
                return Err(
                    Error::new("promote-failed", format!("the server ended: {status}"))
                        .detail(self.log_detail()),
                );
            }
            if started.elapsed() >= timeout {
                let message = format!("the server is not promoted after {} seconds", timeout.as_secs());
                return Err(Error::new("promote-failed", message).detail(self.log_detail()));
            }
            thread::sleep(pause(started));
        }
        Ok(())
    }

    /// Is the process there?
    pub fn is_running(&mut self) -> bool {
        self.running
            .as_mut()
            .is_some_and(|running| matches!(running.child.try_wait(), Ok(None)))
    }

    /// How to connect as the superuser, over the socket.
    pub fn conninfo(&self, database: &str) -> String {
        let conninfo = crate::conninfo::Conninfo::default()
            .with("dbname", database)
            .with("user", &self.superuser);
        match &self.address {
            Some((folder, port)) => conninfo
                .with("host", &folder.to_string_lossy())
                .with("port", &port.to_string())
                .to_string(),
            None => conninfo.to_string(),
        }
    }

    /// The postmaster's process, also after its end.
    pub fn pid(&self) -> Option<u32> {
        self.running.as_ref().map(|running| running.child.id())
    }

    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// (uid, gid) that the server runs as.
    pub fn owner(&self) -> (u32, u32) {
        self.owner
    }

    pub fn programs(&self) -> &Programs {
        &self.programs
    }

    /// The end of the log, at most `bytes` of it, from the beginning of a line.
    pub fn log_tail(&self, bytes: u64) -> String {
        let Some(path) = &self.log_file else {
            return String::new();
        };
        tail(path, bytes).unwrap_or_default()
    }

    /// Runs one of PostgreSQL's programs as the directory's owner. Error codes: `programs-missing`,
    /// `program-failed` (it could not be run or took too long; a bad exit status is the caller's to judge).
    pub fn run(&self, name: &str, arguments: &[OsString], timeout: Duration) -> Result<ProgramOutput> {
        let mut command = Command::new(self.programs.program(name)?);
        command.args(arguments);
        run(as_owner(&mut command, self.owner), timeout)
    }

    /// Stops (immediately) a server that an earlier, killed process left running in `directory`; true when
    /// there was one. Error codes: `server-stop-timeout`.
    pub fn stop_leftover(directory: &Path, timeout: Duration) -> Result<bool> {
        let Some(server) = live_server(directory)? else {
            return Ok(false);
        };
        let pid = process(server.pid)?;
        let started = Instant::now();
        let _ = kill_process(pid, Signal::QUIT);
        while live_server(directory)?.is_some_and(|now| now.pid == server.pid) {
            if started.elapsed() >= timeout {
                let _ = kill_process(pid, Signal::KILL);
            }
            if started.elapsed() >= timeout + STOP_IMMEDIATE_LIMIT {
                return Err(Error::new(
                    "server-stop-timeout",
                    format!("process {} does not end", server.pid),
                ));
            }
            thread::sleep(pause(started));
        }
        Ok(true)
    }

    fn settings(&self, options: &StartOptions) -> Result<Vec<(String, String)>> {
        let folder = options.socket_directory.to_string_lossy().into_owned();
        let mut settings = vec![
            ("listen_addresses".to_string(), String::new()),
            ("port".to_string(), options.port.to_string()),
            // The list's elements may be quoted; a quote inside cannot be written.
            ("unix_socket_directories".to_string(), format!("\"{folder}\"")),
            // Everything the server says goes to our log file.
            ("logging_collector".to_string(), "off".to_string()),
            ("log_destination".to_string(), "stderr".to_string()),
        ];
        for (name, value) in &options.settings {
            if !name
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '.')
                || name.is_empty()
            {
                return Err(Error::new(
                    "setting-name",
                    format!("\"{name}\" is no name of a setting"),
                ));
            }
            settings.push((name.clone(), value.clone()));
        }
        Ok(settings)
    }

    fn open_log(&self, path: &Path) -> Result<File> {
        let result = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(path)
            .and_then(|log| {
                if is_root() {
                    fchown(&log, Some(self.owner.0), Some(self.owner.1))?;
                }
                Ok(log)
            });
        result.map_err(|error| {
            Error::io(
                "server-start-failed",
                format!("cannot open log file \"{}\"", path.display()),
                &error,
            )
        })
    }

    fn ended(&mut self) -> Result<Option<ExitStatus>> {
        match &mut self.running {
            Some(running) => running
                .child
                .try_wait()
                .map_err(|error| Error::io("server-not-running", "cannot watch the server", &error)),
            None => Err(Error::new("server-not-running", "the server was not started")),
        }
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let Some(running) = &self.running else {
            return Ok(());
        };
        // The child is not waited for yet, so its number cannot have gone to another process.
        match kill_process(process(running.child.id())?, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(Error::io(
                "server-stop-timeout",
                "cannot signal the server",
                &std::io::Error::from(error),
            )),
        }
    }

    fn kill(&mut self) {
        if self.stop(StopMode::Immediate).is_err()
            && let Some(mut running) = self.running.take()
        {
            let _ = running.child.kill();
            let _ = running.child.wait();
        }
    }

    fn log_detail(&self) -> String {
        match self.log_tail(LOG_IN_ERROR_BYTES) {
            log if log.trim().is_empty() => "The server's log is empty.".into(),
            log => format!("The end of its log:\n{}", log.trim_end()),
        }
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        if self.is_running() {
            self.kill();
        }
    }
}

/// The account that the directory's programs run as.
fn checked_owner(directory: &Path) -> Result<(u32, u32)> {
    let owner = owner(directory)?;
    if owner.0 == 0 {
        return Err(Error::new("root-not-allowed", "PostgreSQL does not run as root")
            .detail(format!("\"{}\" belongs to root.", directory.display()))
            .hint(format!(
                "Give it to PostgreSQL's account: chown postgres: '{}'",
                directory.display()
            )));
    }
    let own = rustix::process::geteuid().as_raw();
    if own != 0 && own != owner.0 {
        return Err(Error::new(
            "data-directory-owner",
            "the data directory belongs to another account",
        )
        .detail(format!(
            "\"{}\" belongs to uid {}; we are uid {own}.",
            directory.display(),
            owner.0
        ))
        .hint("Run pgproof as that account, or as root."));
    }
    Ok(owner)
}

fn refuse_live(directory: &Path) -> Result<()> {
    match live_server(directory)? {
        Some(_) => Err(live_error(directory)),
        None => Ok(()),
    }
}

fn live_error(directory: &Path) -> Error {
    Error::new(
        "data-directory-live",
        format!("a server runs in \"{}\"", directory.display()),
    )
    .hint(format!("Stop it first: pg_ctl -D '{}' stop", directory.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn programs() -> Programs {
        Programs {
            directory: "/nonexistent".into(),
            major: postgres::Major(15),
            version: "15.0".into(),
        }
    }

    #[test]
    fn a_directory_with_something_in_it_is_never_initialised() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("x"), "").unwrap();
        let error = Instance::init(&programs(), folder.path(), &InitOptions::default())
            .err()
            .unwrap();
        assert_eq!(error.code(), "data-directory-exists");
    }

    #[test]
    fn a_socket_path_that_the_kernel_would_cut_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        if is_root() {
            chown(folder.path(), Some(12345), Some(12345)).unwrap();
        }
        let mut instance = Instance::open(&programs(), folder.path()).unwrap();
        let long = folder.path().join("x".repeat(100));
        let options = StartOptions::new(&long, 5432, &folder.path().join("log"));
        assert_eq!(
            instance.spawn(&options).unwrap_err().code(),
            "socket-path-too-long"
        );
    }
}
