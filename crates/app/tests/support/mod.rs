//! A protected throw-away cluster, and the program as a user runs it, for end-to-end tests.
#![allow(dead_code)] // each test file uses its own part

use cluster::{Instance, Programs, Session, StartOptions, StopMode};
use serde_json::Value;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};
use testing::{TestCluster, TestOptions};

/// A cluster that archives into a repository of its own, and everything that belongs to it.
pub struct World {
    pub production: TestCluster,
    pub programs: Programs,
    binary: PathBuf,
    account: (u32, u32),
}

/// How a command ended.
pub struct Ended {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Ended {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|e| panic!("not JSON ({e}):\n{}\n{}", self.stdout, self.stderr))
    }

    /// Exit code 0, or the test fails with what was printed.
    pub fn ok(self) -> Ended {
        assert_eq!(self.code, 0, "stdout:\n{}\nstderr:\n{}", self.stdout, self.stderr);
        self
    }
}

impl World {
    /// `None` where PostgreSQL is not installed and that is allowed. The cluster is initialised, protected by
    /// `pgproof init --apply`, and not backed up yet.
    pub fn start(test: &str) -> Option<World> {
        let programs = testing::programs_or_skip(test)?;
        // The archive_command is init's to set: one on the server's command line would win over it.
        let settings = [("archive_mode", "on"), ("fsync", "off"), ("max_wal_size", "2GB")];
        let production = TestCluster::start(&TestOptions {
            checksums: true,
            settings: settings
                .iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                .collect(),
            ..TestOptions::default()
        })
        .expect("the throw-away cluster starts");
        let account = testing::account().expect("an ordinary account");
        // The account of PostgreSQL may not be able to enter the folder that the build writes into.
        let binary = production.scratch().path().join("pgproof");
        std::fs::copy(env!("CARGO_BIN_EXE_pgproof"), &binary).expect("the program can be copied");
        std::fs::set_permissions(&binary, std::fs::Permissions::from_mode(0o755)).expect("mode");
        let world = World {
            production,
            programs,
            binary,
            account,
        };
        let repository = format!("file://{}", world.repository().display());
        let conninfo = world.production.conninfo();
        world
            .run(&[
                "init",
                "--connection",
                &conninfo,
                "--repository",
                &repository,
                "--apply",
            ])
            .ok();
        Some(world)
    }

    pub fn scratch(&self) -> &Path {
        self.production.scratch().path()
    }

    pub fn repository(&self) -> PathBuf {
        self.scratch().join("repository")
    }

    pub fn session(&self) -> Session {
        Session::connect(&self.production.conninfo()).expect("production answers")
    }

    /// Runs `pgproof --config .. ARGUMENTS` as the server's account.
    pub fn run(&self, arguments: &[&str]) -> Ended {
        let mut command = self.command(arguments);
        let output: Output = command.output().expect("the program starts");
        Ended {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// The same, not yet started.
    pub fn command(&self, arguments: &[&str]) -> Command {
        self.command_with(&self.scratch().join("pgproof.toml"), arguments)
    }

    /// The same with another configuration file.
    pub fn command_with(&self, configuration: &Path, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        command
            .arg("--config")
            .arg(configuration)
            .args(arguments)
            .current_dir(self.scratch());
        if rustix::process::geteuid().is_root() {
            command.uid(self.account.0).gid(self.account.1);
        }
        command
    }

    /// The same below another program, `strace` for one, which gets the program's path and arguments last.
    pub fn command_below(&self, other: &str, its_arguments: &[&str], arguments: &[&str]) -> Command {
        let plain = self.command(arguments);
        let mut command = Command::new(other);
        command
            .args(its_arguments)
            .arg(plain.get_program())
            .args(plain.get_args())
            .current_dir(self.scratch());
        if rustix::process::geteuid().is_root() {
            command.uid(self.account.0).gid(self.account.1);
        }
        command
    }

    pub fn json(&self, arguments: &[&str]) -> Value {
        let with_json: Vec<&str> = arguments.iter().copied().chain(["--json"]).collect();
        self.run(&with_json).ok().json()
    }

    /// Switches to a new segment and waits until everything before it is archived.
    pub fn archive_all(&self) {
        let mut session = self.session();
        cluster::archiving::switch_wal(&mut session).expect("switch");
        let end = Instant::now() + Duration::from_secs(120);
        loop {
            let status = cluster::archiving::archiver_status(&mut session).expect("archiver status");
            if status.ready_files.as_ref().is_some_and(Vec::is_empty) {
                return;
            }
            assert!(
                Instant::now() < end,
                "the archiver does not come to an end: {status:?}"
            );
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Starts a restored directory, waits until replay stands at its target, and gives the server.
    pub fn start_restored(&self, directory: &Path) -> Restored {
        let mut instance = Instance::open(&self.programs, directory).expect("the restored directory opens");
        let name = directory
            .file_name()
            .expect("a name")
            .to_string_lossy()
            .into_owned();
        let socket_directory = self.scratch().join(format!("{name}.s"));
        std::fs::create_dir_all(&socket_directory).expect("socket folder");
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(&socket_directory, Some(self.account.0), Some(self.account.1))
                .expect("chown");
        }
        instance
            .start(&StartOptions {
                socket_directory,
                port: 5432,
                settings: vec![
                    ("listen_addresses".into(), String::new()),
                    ("fsync".into(), "off".into()),
                ],
                log_file: self.scratch().join(format!("{name}.log")),
                timeout: Duration::from_secs(120),
                launcher: None,
                environment: Vec::new(),
            })
            .expect("the restored server starts");
        let restored = Restored { instance };
        let end = Instant::now() + Duration::from_secs(120);
        loop {
            let mut session = restored.session();
            // 13 has no state, only the wish; the wish at a target is already the state.
            let paused = match session.version_num() {
                140_000.. => "pg_get_wal_replay_pause_state() = 'paused'",
                _ => "pg_is_wal_replay_paused()",
            };
            let row = session
                .one(&format!("select not pg_is_in_recovery() or {paused}"))
                .expect("the restored server answers");
            if row[0].as_deref() == Some("t") {
                return restored;
            }
            assert!(
                Instant::now() < end,
                "the target was not reached:\n{}",
                restored.instance.log_tail(4000)
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// A server over a restored directory.
pub struct Restored {
    pub instance: Instance,
}

impl Restored {
    pub fn conninfo(&self) -> String {
        self.instance.conninfo("postgres")
    }

    pub fn session(&self) -> Session {
        Session::connect(&self.conninfo()).expect("the restored server answers")
    }

    pub fn stop(mut self) {
        self.instance
            .stop(StopMode::Immediate)
            .expect("the restored server stops");
    }
}

/// Replaces a file's bytes, whatever its mode says.
pub fn overwrite(path: &Path, content: &[u8]) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).expect("mode");
    std::fs::write(path, content).expect("write");
}

/// What root made in a test's place belongs to the account that PostgreSQL runs as.
pub fn give_to_account(path: &Path) {
    if rustix::process::geteuid().is_root() {
        let (uid, gid) = testing::account().expect("account");
        std::os::unix::fs::chown(path, Some(uid), Some(gid)).expect("chown");
        if path.is_dir() {
            for entry in std::fs::read_dir(path).expect("folder").flatten() {
                give_to_account(&entry.path());
            }
        }
    }
}

/// The seed of a test's random choices: `PGPROOF_TEST_SEED`, or a new one. The test prints it.
pub fn seed() -> u64 {
    let given = std::env::var("PGPROOF_TEST_SEED")
        .ok()
        .and_then(|text| text.parse().ok());
    given.unwrap_or_else(|| {
        let mut bytes = [0u8; 8];
        getrandom::fill(&mut bytes).expect("random numbers");
        u64::from_le_bytes(bytes) | 1
    })
}

/// Xorshift64: reproducible by its seed, which is all that is needed here.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}
