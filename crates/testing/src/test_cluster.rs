//! Throw-away clusters: made, started and removed by the test that wants one.

use cluster::{InitOptions, Instance, Programs, Session, StartOptions, StopMode};
use diagnostic::{Error, Result};
use postgres::Major;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

/// Majors in the order in which they are looked for; `PGPROOF_TEST_MAJOR` names one.
const MAJORS: [u16; 6] = [15, 16, 17, 18, 14, 13];

/// What kind of throw-away cluster.
#[derive(Debug, Clone, Default)]
pub struct TestOptions {
    pub checksums: bool,
    /// With `archive_mode=on` and this command; `None`: `archive_mode=off`.
    pub archive_command: Option<String>,
    /// Bytes; `None`: 16 MiB.
    pub wal_segment_size: Option<u32>,
    /// Given on the command line, after our own.
    pub settings: Vec<(String, String)>,
    /// Further arguments of `initdb`.
    pub initdb: Vec<OsString>,
    /// `None`: the version that is found first.
    pub programs: Option<Programs>,
}

/// A running cluster on a private socket, stopped and removed when dropped.
pub struct TestCluster {
    instance: Instance,
    start: StartOptions,
    data_directory: PathBuf,
    // Dropped last: the server is stopped before its folder goes away.
    scratch: Scratch,
}

impl TestCluster {
    /// Makes a cluster and starts it. `fsync` is off: nothing here has to survive the machine.
    pub fn start(options: &TestOptions) -> Result<TestCluster> {
        TestCluster::start_in(Scratch::new("cluster")?, options)
    }

    /// The same in a scratch folder that holds something already, for `initdb`'s options that name a place.
    pub fn start_in(scratch: Scratch, options: &TestOptions) -> Result<TestCluster> {
        let programs = match &options.programs {
            Some(programs) => programs.clone(),
            None => programs()?,
        };
        let data_directory = scratch.path().join("data");
        let init = InitOptions {
            checksums: options.checksums,
            wal_segment_size: options.wal_segment_size,
            owner: Some(account()?),
            extra: [OsString::from("--no-sync")]
                .into_iter()
                .chain(options.initdb.iter().cloned())
                .collect(),
            ..InitOptions::default()
        };
        let mut instance = Instance::init(&programs, &data_directory, &init)?;
        let socket_directory = scratch.subfolder("s")?;
        let mut start = StartOptions::new(&socket_directory, 5432, &scratch.path().join("log"));
        start.timeout = Duration::from_secs(120);
        let mut setting = |name: &str, value: &str| start.settings.push((name.into(), value.into()));
        setting("fsync", "off");
        setting("shared_buffers", "32MB");
        setting("max_connections", "40");
        setting("wal_level", "replica");
        setting("log_min_messages", "warning");
        match &options.archive_command {
            Some(command) => {
                setting("archive_mode", "on");
                setting("archive_command", command);
            }
            None => setting("archive_mode", "off"),
        }
        start.settings.extend(options.settings.iter().cloned());
        instance.start(&start)?;
        Ok(TestCluster {
            instance,
            start,
            data_directory,
            scratch,
        })
    }

    /// The same, or nothing where there is no PostgreSQL and that is allowed. Anything else that fails,
    /// panics.
    pub fn start_or_skip(test: &str, options: &TestOptions) -> Option<TestCluster> {
        if options.programs.is_none() {
            programs_or_skip(test)?;
        }
        match TestCluster::start(options) {
            Ok(cluster) => Some(cluster),
            Err(error) => panic!("{}", error.render()),
        }
    }

    /// As the superuser, to the database `postgres`.
    pub fn conninfo(&self) -> String {
        self.instance.conninfo("postgres")
    }

    /// The same to another database.
    pub fn conninfo_of(&self, database: &str) -> String {
        self.instance.conninfo(database)
    }

    /// A session with the server's own search path.
    pub fn session(&self) -> Result<Session> {
        let options = cluster::ConnectOptions {
            keep_search_path: true,
            ..Default::default()
        };
        Session::connect_with(&self.conninfo(), &options)
    }

    pub fn data_directory(&self) -> &Path {
        &self.data_directory
    }

    pub fn socket_directory(&self) -> &Path {
        &self.start.socket_directory
    }

    pub fn port(&self) -> u16 {
        self.start.port
    }

    /// A folder that the server's account may read and write.
    pub fn scratch(&self) -> &Scratch {
        &self.scratch
    }

    pub fn programs(&self) -> &Programs {
        self.instance.programs()
    }

    pub fn instance(&mut self) -> &mut Instance {
        &mut self.instance
    }

    /// The options of the next start; change them between [`TestCluster::stop`] and
    /// [`TestCluster::start_again`].
    pub fn start_options(&mut self) -> &mut StartOptions {
        &mut self.start
    }

    pub fn stop(&mut self, mode: StopMode) -> Result<()> {
        self.instance.stop(mode)
    }

    pub fn start_again(&mut self) -> Result<()> {
        self.instance.start(&self.start)
    }

    pub fn restart(&mut self) -> Result<()> {
        self.stop(StopMode::Fast)?;
        self.start_again()
    }
}

/// A folder under `/tmp` that belongs to the account PostgreSQL runs as, removed when dropped.
pub struct Scratch(tempfile::TempDir);

impl Scratch {
    /// The name is part of the folder's; keep it short, since sockets' paths are.
    pub fn new(name: &str) -> Result<Scratch> {
        let failed = |error: &std::io::Error| Error::io("scratch", "cannot make a scratch folder", error);
        let folder = tempfile::Builder::new()
            .prefix(&format!("pp-{name}-"))
            .tempdir_in("/tmp")
            .map_err(|error| failed(&error))?;
        // Readable for all: an ordinary account's test programs may look into it.
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755))
            .map_err(|error| failed(&error))?;
        give_away(folder.path())?;
        Ok(Scratch(folder))
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// A folder in it, made and given to the account (mode 0700).
    pub fn subfolder(&self, name: &str) -> Result<PathBuf> {
        let path = self.0.path().join(name);
        fs::create_dir_all(&path)
            .and_then(|()| fs::set_permissions(&path, fs::Permissions::from_mode(0o700)))
            .map_err(|error| Error::io("scratch", format!("cannot make \"{}\"", path.display()), &error))?;
        give_away(&path)?;
        Ok(path)
    }
}

/// As root, gives a file to the account that PostgreSQL runs as.
fn give_away(path: &Path) -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let (uid, gid) = account()?;
    chown(path, Some(uid), Some(gid)).map_err(|error| {
        Error::io(
            "scratch",
            format!("cannot give \"{}\" away", path.display()),
            &error,
        )
    })
}

/// (uid, gid) that PostgreSQL runs as in tests: ours, or, as root, that of `postgres`.
pub fn account() -> Result<(u32, u32)> {
    let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
    if !uid.is_root() {
        return Ok((uid.as_raw(), gid.as_raw()));
    }
    let accounts = fs::read_to_string("/etc/passwd")
        .map_err(|error| Error::io("scratch", "cannot read \"/etc/passwd\"", &error))?;
    let found = accounts.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        match fields.as_slice() {
            ["postgres", _, uid, gid, ..] => Some((uid.parse().ok()?, gid.parse().ok()?)),
            _ => None,
        }
    });
    found.ok_or_else(|| Error::new("scratch", "there is no account \"postgres\" to run PostgreSQL as"))
}

/// PostgreSQL's programs for tests; looked for once.
fn programs() -> Result<Programs> {
    static FOUND: OnceLock<Result<Programs>> = OnceLock::new();
    FOUND
        .get_or_init(|| {
            let wanted = std::env::var("PGPROOF_TEST_MAJOR")
                .ok()
                .and_then(|text| text.parse().ok());
            let majors = wanted.map_or(MAJORS.to_vec(), |major| vec![major]);
            let path = std::env::var_os("PATH").unwrap_or_default();
            let extra: Vec<PathBuf> = std::env::var_os("PGPROOF_TEST_PROGRAMS")
                .map(PathBuf::from)
                .into_iter()
                .chain(std::env::split_paths(&path))
                .collect();
            let mut result = Err(Error::new("programs-missing", "PostgreSQL is not installed"));
            for major in majors.into_iter().filter_map(Major::new) {
                result = Programs::find(major, &extra);
                if result.is_ok() {
                    break;
                }
            }
            result
        })
        .clone()
}

/// PostgreSQL's programs of this major, for a test that is about it: below the folder that
/// `PGPROOF_TEST_POSTGRES_VERSIONS` names (`<major>/native/bin`), or where the distribution puts them. `None`,
/// and a loud line, when there are none and that is allowed.
pub fn programs_of_major_or_skip(test: &str, major: u16) -> Option<Programs> {
    let folder = std::env::var_os("PGPROOF_TEST_POSTGRES_VERSIONS").map(PathBuf::from);
    let extra: Vec<PathBuf> = folder
        .into_iter()
        .map(|folder| folder.join(major.to_string()).join("native/bin"))
        .collect();
    let found = match Major::new(major) {
        Some(major) => Programs::find(major, &extra),
        None => Err(Error::new(
            "programs-missing",
            format!("there is no PostgreSQL {major}"),
        )),
    };
    found_or_skip(test, found)
}

/// A client program: that of the tested installation, or else the newest one there is, since installations
/// for tests often hold the server alone. `psql` speaks with older and newer servers, `pg_basebackup` with
/// older ones.
pub fn client_program(programs: &Programs, name: &str) -> Option<PathBuf> {
    let newest_first = (Major::OLDEST.0..=Major::NEWEST.0).rev();
    let installed = newest_first.map(|major| PathBuf::from(format!("/usr/lib/postgresql/{major}/bin")));
    let mut folders = std::iter::once(programs.directory.clone()).chain(installed);
    folders.find_map(|folder| Some(folder.join(name)).filter(|program| program.is_file()))
}

/// PostgreSQL's programs; `None`, and a loud line, when there are none and that is allowed.
pub fn programs_or_skip(test: &str) -> Option<Programs> {
    found_or_skip(test, programs())
}

fn found_or_skip(test: &str, found: Result<Programs>) -> Option<Programs> {
    match found {
        Ok(programs) => Some(programs),
        Err(error) if std::env::var_os("PGPROOF_REQUIRE_POSTGRES").is_some_and(|value| value == "1") => {
            panic!(
                "{test} needs PostgreSQL (PGPROOF_REQUIRE_POSTGRES=1)\n{}",
                error.render()
            )
        }
        Err(error) => {
            eprintln!("SKIPPED: {test} needs PostgreSQL: {error}");
            None
        }
    }
}
