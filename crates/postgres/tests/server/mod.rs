//! A throw-away PostgreSQL server for the tests that compare us with PostgreSQL's own programs.
//!
//! Runs as an ordinary user; as root it runs PostgreSQL as the account `postgres`. Listens on a socket in its
//! own folder only, and is stopped and removed when dropped. Where PostgreSQL's programs are not found the
//! caller skips; with PGPROOF_REQUIRE_POSTGRES=1 that is a failure.

// Each test program uses a part of it.
#![allow(dead_code)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

pub struct Server {
    folder: tempfile::TempDir,
    /// of the server: initdb, pg_ctl, postgres
    programs: PathBuf,
    /// of the clients
    clients: PathBuf,
    as_root: bool,
}

/// The folder of PostgreSQL's programs, from PGPROOF_TEST_POSTGRES_BIN or where Debian puts version 15.
pub fn programs() -> Option<PathBuf> {
    let named = std::env::var_os("PGPROOF_TEST_POSTGRES_BIN").map(PathBuf::from);
    let folder = named.unwrap_or_else(|| PathBuf::from("/usr/lib/postgresql/15/bin"));
    [
        "initdb",
        "pg_ctl",
        "psql",
        "pgbench",
        "pg_waldump",
        "pg_controldata",
    ]
    .iter()
    .all(|name| folder.join(name).exists())
    .then_some(folder)
}

fn is_root() -> bool {
    let output = Command::new("id").arg("-u").output().expect("id -u");
    output.stdout.trim_ascii() == b"0"
}

impl Server {
    /// A new cluster, not yet started; `None` when there is no PostgreSQL to do it with.
    pub fn init(initdb_options: &[&str], settings: &str) -> Option<Server> {
        let Some(programs) = programs() else {
            let required = std::env::var_os("PGPROOF_REQUIRE_POSTGRES").is_some_and(|value| value == "1");
            assert!(
                !required,
                "PGPROOF_REQUIRE_POSTGRES=1, but PostgreSQL 15's programs are not there"
            );
            eprintln!("SKIPPED: PostgreSQL 15's programs are not in /usr/lib/postgresql/15/bin");
            return None;
        };
        Some(Server::init_with(
            programs.clone(),
            programs,
            initdb_options,
            settings,
        ))
    }

    /// A new cluster of the version whose programs are in `programs`, with clients of another version.
    pub fn init_with(programs: PathBuf, clients: PathBuf, initdb_options: &[&str], settings: &str) -> Server {
        let folder = tempfile::Builder::new()
            .prefix("pp-postgres-")
            .tempdir_in("/tmp")
            .expect("folder");
        let server = Server {
            folder,
            programs,
            clients,
            as_root: is_root(),
        };
        server.give_away(server.folder.path());
        let data = server.data();
        let mut arguments = vec![
            "-D",
            data.to_str().unwrap(),
            "-U",
            "postgres",
            "-A",
            "trust",
            "-N",
        ];
        arguments.extend_from_slice(initdb_options);
        server.run("initdb", &arguments);
        let mut configuration =
            std::fs::read_to_string(data.join("postgresql.conf")).expect("postgresql.conf");
        configuration.push_str(&format!(
            "\nlisten_addresses = ''\nunix_socket_directories = '{}'\nlog_timezone = 'UTC'\ntimezone = 'UTC'\n{settings}\n",
            server.folder.path().display()
        ));
        std::fs::write(data.join("postgresql.conf"), configuration).expect("postgresql.conf");
        server
    }

    /// A new folder beside the data directory that belongs to the server's account.
    pub fn make_folder(&self, name: &str) -> PathBuf {
        let folder = self.folder.path().join(name);
        std::fs::create_dir(&folder).expect("folder");
        self.give_away(&folder);
        folder
    }

    fn give_away(&self, folder: &Path) {
        if self.as_root {
            let changed = Command::new("chown")
                .arg("postgres")
                .arg(folder)
                .status()
                .expect("chown");
            assert!(changed.success());
        }
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    pub fn wal(&self) -> PathBuf {
        self.data().join("pg_wal")
    }

    fn command(&self, name: &str) -> Command {
        let of_server = matches!(name, "initdb" | "pg_ctl");
        let program = if of_server { &self.programs } else { &self.clients }.join(name);
        let mut command = if self.as_root {
            let mut command = Command::new("runuser");
            command.args(["-u", "postgres", "--"]).arg(program);
            command
        } else {
            Command::new(program)
        };
        command.current_dir(self.folder.path());
        command
            .env("TZ", "UTC")
            .env("LC_ALL", "C")
            .env("PGUSER", "postgres")
            .env("PGHOST", self.folder.path());
        command.env("PGDATABASE", "postgres").env_remove("PGPORT");
        command
    }

    /// Runs a program that may fail.
    pub fn try_run(&self, name: &str, arguments: &[&str]) -> Output {
        self.command(name)
            .args(arguments)
            .output()
            .unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    /// Runs a program; returns what it printed.
    pub fn run(&self, name: &str, arguments: &[&str]) -> String {
        let output = self.try_run(name, arguments);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            output.status.success(),
            "{name} {arguments:?}: {}\n{text}\n{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        text
    }

    pub fn start(&self) {
        let log = self.folder.path().join("log");
        let data = self.data();
        let arguments = [
            "-D",
            data.to_str().unwrap(),
            "-l",
            log.to_str().unwrap(),
            "-w",
            "-s",
            "start",
        ];
        // pg_ctl's child must not inherit our pipes, or waiting for their end never ends.
        let status = self
            .command("pg_ctl")
            .args(arguments)
            .stdout(std::process::Stdio::null())
            .status()
            .expect("pg_ctl");
        assert!(
            status.success(),
            "{}",
            std::fs::read_to_string(log).unwrap_or_default()
        );
    }

    pub fn stop(&self, mode: &str) {
        self.run(
            "pg_ctl",
            &[
                "-D",
                self.data().to_str().unwrap(),
                "-m",
                mode,
                "-w",
                "-s",
                "stop",
            ],
        );
    }

    /// Runs SQL in one session, statement by statement; returns unaligned rows.
    pub fn sql(&self, database: &str, sql: &str) -> String {
        let script = self.folder.path().join("script.sql");
        std::fs::write(&script, sql).expect("script");
        let arguments = [
            "-X",
            "-q",
            "-A",
            "-t",
            "-v",
            "ON_ERROR_STOP=1",
            "-d",
            database,
            "-f",
            script.to_str().unwrap(),
        ];
        self.run("psql", &arguments).trim_end().to_string()
    }

    /// Runs pgbench with a script of ours.
    pub fn pgbench(&self, script: &str, clients: u32, transactions: u32) {
        let file = self.folder.path().join("bench.sql");
        std::fs::write(&file, script).expect("script");
        let (clients, transactions) = (clients.to_string(), transactions.to_string());
        self.run(
            "pgbench",
            &[
                "-n",
                "-c",
                &clients,
                "-j",
                "2",
                "-t",
                &transactions,
                "-f",
                file.to_str().unwrap(),
            ],
        );
    }

    /// Names of the WAL segments that were written, in order (not of those that wait to be used again).
    pub fn segments(&self) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(self.wal())
            .expect("pg_wal")
            .map(|entry| entry.expect("entry").file_name().to_string_lossy().into_owned())
            .filter(|name| name.len() == 24)
            .filter(|name| {
                let segment = std::fs::read(self.wal().join(name)).expect("segment");
                let header = postgres::SegmentHeader::parse(&segment).ok();
                header.is_some_and(|header| {
                    let file = postgres::WalFile::parse(name, header.segment_size);
                    file.and_then(|file| file.number()) == Some(header.number())
                })
            })
            .collect();
        names.sort();
        names
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.data().join("postmaster.pid").exists() {
            let data = self.data();
            let _ = self.try_run(
                "pg_ctl",
                &[
                    "-D",
                    data.to_str().unwrap_or_default(),
                    "-m",
                    "immediate",
                    "-w",
                    "stop",
                ],
            );
        }
    }
}
