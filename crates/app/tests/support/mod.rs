//! A protected throw-away cluster, and the program as a user runs it, for end-to-end tests.
#![allow(dead_code)] // each test file uses its own part

pub mod application;
pub mod faults;

use cluster::sandbox::Spec;
use cluster::{Instance, LayerState, Network, Programs, Quarantine, Session, StartOptions, StopMode};
use serde_json::Value;
use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
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
    pub fn of(output: &Output) -> Ended {
        Ended {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

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
        World::start_with(test, World::in_a_folder)
    }

    fn in_a_folder(scratch: &Path) -> Vec<String> {
        let repository = format!("file://{}", scratch.join("repository").display());
        vec!["--repository".to_owned(), repository]
    }

    /// The same with a repository elsewhere: `place` gives the arguments of `init` that say where.
    pub fn start_with(test: &str, place: impl FnOnce(&Path) -> Vec<String>) -> Option<World> {
        let programs = testing::programs_or_skip(test)?;
        let production =
            TestCluster::start(&World::options(programs)).expect("the throw-away cluster starts");
        Some(World::protect_with(production, place))
    }

    /// The same with this major version.
    pub fn start_major(test: &str, major: u16) -> Option<World> {
        let programs = testing::programs_of_major_or_skip(test, major)?;
        println!("{test}: PostgreSQL {}", programs.version);
        Some(World::protect(
            TestCluster::start(&World::options(programs)).expect("the throw-away cluster starts"),
        ))
    }

    /// What a protected cluster is started with.
    pub fn options(programs: Programs) -> TestOptions {
        // The archive_command is init's to set: one on the server's command line would win over it.
        let settings = [("archive_mode", "on"), ("fsync", "off"), ("max_wal_size", "2GB")];
        TestOptions {
            checksums: true,
            settings: settings
                .iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                .collect(),
            programs: Some(programs),
            ..TestOptions::default()
        }
    }

    /// Protects a cluster that runs, by `pgproof init --apply`.
    pub fn protect(production: TestCluster) -> World {
        World::protect_with(production, World::in_a_folder)
    }

    /// The same with a repository elsewhere, as with [`World::start_with`].
    pub fn protect_in(production: TestCluster, place: impl FnOnce(&Path) -> Vec<String>) -> World {
        World::protect_with(production, place)
    }

    fn protect_with(production: TestCluster, place: impl FnOnce(&Path) -> Vec<String>) -> World {
        let programs = production.programs().clone();
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
        let place = place(world.scratch());
        let conninfo = world.production.conninfo();
        let mut arguments = vec!["init", "--connection", &conninfo, "--apply"];
        arguments.extend(place.iter().map(String::as_str));
        world.run(&arguments).ok();
        world
    }

    pub fn scratch(&self) -> &Path {
        self.production.scratch().path()
    }

    pub fn repository(&self) -> PathBuf {
        self.scratch().join("repository")
    }

    /// Of this world's own program, by which its processes are known.
    pub fn binary(&self) -> &Path {
        &self.binary
    }

    pub fn session(&self) -> Session {
        Session::connect(&self.production.conninfo()).expect("production answers")
    }

    /// Runs `pgproof --config .. ARGUMENTS` as the server's account.
    pub fn run(&self, arguments: &[&str]) -> Ended {
        let mut command = self.command(arguments);
        let output: Output = command.output().expect("the program starts");
        Ended::of(&output)
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

    /// Runs the program with another configuration file.
    pub fn run_with(&self, configuration: &Path, arguments: &[&str]) -> Ended {
        let output = self.command_with(configuration, arguments).output();
        Ended::of(&output.expect("the program starts"))
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
        self.start_restored_with(directory, &[])
    }

    /// The same with further settings.
    pub fn start_restored_with(&self, directory: &Path, further: &[(String, String)]) -> Restored {
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
                settings: [("listen_addresses", ""), ("fsync", "off")]
                    .map(|(name, value)| (name.to_owned(), value.to_owned()))
                    .into_iter()
                    .chain(further.iter().cloned())
                    .collect(),
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

impl World {
    /// Row digests of production's databases.
    pub fn digests(&self) -> BTreeMap<String, String> {
        digests(|database| self.production.conninfo_of(database))
    }

    /// Archives everything, restores to the end, and demands that all rows of all databases are there; the copy
    /// stays in the folder of this name.
    pub fn comes_back(&self, name: &str, arguments: &[&str]) -> PathBuf {
        let before = self.digests();
        self.archive_all();
        let into = self.scratch().join(name);
        let place = into.display().to_string();
        let all: Vec<&str> = ["restore", "--to", "latest", "--into", &place]
            .into_iter()
            .chain(arguments.iter().copied())
            .collect();
        self.json(&all);
        let restored = self.start_restored(&into);
        let after = restored.digests();
        restored.stop();
        assert_eq!(after, before, "restored into {name}");
        into
    }

    /// How a drill ends when nothing is wrong with the recovery, on this host: PASSED where every layer of the
    /// quarantine can be had, PASSED WITH OBSERVATIONS where not. Asked by entering the quarantine as a drill does.
    pub fn sound_verdict(&self) -> &'static str {
        let folder = self.production.scratch().subfolder("quarantine").expect("folder");
        let spec = Spec::new(
            Quarantine {
                folder: folder.clone(),
                hidden: vec![self.production.data_directory().into()],
                readable: Vec::new(),
                network: Network::None,
                addresses: Vec::new(),
            },
            None,
        );
        let file = self.scratch().join("quarantine.spec.json");
        spec.write(&file).expect("the quarantine's specification");
        give_to_account(&file);
        let file = file.display().to_string();
        self.run(&["sandbox-exec", "--spec", &file, "--", "/bin/true"])
            .ok();
        let report = cluster::sandbox::Report::read(&spec.report).expect("the quarantine's report");
        let layers = &report.layers;
        let states = [
            ("Landlock", &layers.landlock),
            ("user namespace", &layers.user_namespace),
            ("mount namespace", &layers.mount_namespace),
            ("network namespace", &layers.network_namespace),
            ("IPC namespace", &layers.ipc_namespace),
            ("no new privileges", &layers.no_new_privileges),
        ];
        let mut verdict = "PASSED";
        for (name, state) in states {
            if let LayerState::Unavailable { reason } = state {
                println!("this host allows a drill no {name}: {reason}");
                verdict = "PASSED WITH OBSERVATIONS";
            }
        }
        println!("a sound drill ends with {verdict} on this host");
        verdict
    }

    /// Runs a drill that must end as [`World::sound_verdict`] says, with the row-level proof made; gives the facts.
    /// Less isolation is the only observation that is accepted.
    pub fn sound_drill(&self) -> Value {
        self.drill(self.sound_verdict(), &["quarantine"])
    }

    /// Runs a drill that must end with this verdict, with the row-level proof made; gives the facts. Only these checks
    /// may have an observation.
    pub fn drill(&self, verdict: &str, observed: &[&str]) -> Value {
        let ended = self.run(&["drill", "run", "--json"]);
        let facts = ended.json();
        assert_eq!(
            (ended.code, facts["verdict"].as_str()),
            (0, Some(verdict)),
            "{facts:#}\n{}",
            ended.stderr
        );
        for reason in facts["reasons"].as_array().into_iter().flatten() {
            let check = reason["check"].as_str().unwrap_or_default();
            assert!(observed.contains(&check), "{reason:#}");
        }
        assert_eq!(check_of(&facts, "row-proof")["result"], "PASS", "{facts:#}");
        facts
    }
}

/// Row digests of all databases that take connections, by `database: schema.table`.
fn digests(conninfo: impl Fn(&str) -> String) -> BTreeMap<String, String> {
    let names = Session::connect(&conninfo("postgres"))
        .and_then(|mut session| session.rows("select datname from pg_database where datallowconn order by 1"))
        .expect("the databases' names");
    let mut all = BTreeMap::new();
    for row in names {
        let database = row[0].clone().expect("a name");
        let digests = testing::row_digest(&conninfo(&database)).expect("row digest");
        all.extend(
            digests
                .into_iter()
                .map(|(table, digest)| (format!("{database}: {table}"), digest)),
        );
    }
    all
}

/// One check of a drill's facts.
pub fn check_of(facts: &Value, id: &str) -> Value {
    facts["checks"]
        .as_array()
        .and_then(|all| all.iter().find(|check| check["id"] == id))
        .cloned()
        .unwrap_or_else(|| panic!("no check {id:?} among {:#}", facts["checks"]))
}

/// A server over a restored directory.
pub struct Restored {
    pub instance: Instance,
}

impl Restored {
    pub fn digests(&self) -> BTreeMap<String, String> {
        digests(|database| self.instance.conninfo(database))
    }

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

/// Appends to the configuration that `init` wrote.
pub fn configure(world: &World, text: &str) {
    let mut file = std::fs::OpenOptions::new()
        .append(true)
        .open(world.scratch().join("pgproof.toml"))
        .expect("the configuration");
    std::io::Write::write_all(&mut file, text.as_bytes()).expect("append");
}

/// Starts a drill of a profile, or of the one that is meant without a name, with its copy below a folder.
pub fn start_drill(world: &World, profile: Option<&str>, copies: &Path) -> Child {
    let copies = copies.display().to_string();
    let mut arguments = vec!["drill", "run", "--json", "--directory", &copies];
    arguments.extend(profile);
    let mut command = world.command(&arguments);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command.spawn().expect("the drill starts")
}

/// Waits until a drill's folder has what is looked for.
pub fn wait_for_copy(copies: &Path, what: impl Fn(&Path) -> bool) -> PathBuf {
    let end = Instant::now() + Duration::from_secs(120);
    loop {
        let folders = std::fs::read_dir(copies).expect("folder").flatten();
        if let Some(found) = folders.map(|entry| entry.path()).find(|path| what(path)) {
            return found;
        }
        assert!(Instant::now() < end, "the drill does not get there");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Whether the drill in this folder has restored its copy.
pub fn is_restored(folder: &Path) -> bool {
    std::fs::read_to_string(folder.join("resume.json")).is_ok_and(|text| text.contains("\"restored\":true"))
}

/// Puts a section `[retention]` into the configuration that `init` wrote, in place of the one that is there.
pub fn retain(world: &World, retention: &str) {
    let path = world.scratch().join("pgproof.toml");
    let text = std::fs::read_to_string(&path).expect("configuration");
    let mut kept = String::new();
    let mut skip = false;
    for line in text.lines() {
        if line.starts_with('[') {
            skip = line.starts_with("[retention]");
        }
        if !skip {
            kept.push_str(line);
            kept.push('\n');
        }
    }
    kept.push_str(&format!("\n[retention]\n{retention}\n"));
    overwrite(&path, kept.as_bytes());
    give_to_account(&path);
}

/// Replaces a file's bytes, whatever its mode says.
pub fn overwrite(path: &Path, content: &[u8]) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).expect("mode");
    std::fs::write(path, content).expect("write");
}

/// Runs openssl in a folder.
pub fn openssl(folder: &Path, arguments: &[&str]) {
    let output = Command::new("openssl")
        .args(arguments)
        .current_dir(folder)
        .output()
        .expect("openssl is installed with PostgreSQL");
    assert!(
        output.status.success(),
        "openssl {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
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
