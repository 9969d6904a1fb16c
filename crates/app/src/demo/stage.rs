//! The demo's stage: a throw-away server under load, and the real commands run against it.
//!
//! Everything lies below one folder and belongs to one ordinary account; the server listens on a socket in that folder
//! and on no network; whatever was started is stopped when the stage goes, also on Ctrl-C.

use cluster::{InitOptions, Instance, Programs, Session, StartOptions, StopMode};
use diagnostic::{Error, Result};
use postgres::Major;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// The port is only a part of the socket's name.
const PORT: u16 = 5432;

/// The tables of the demo's shop.
const SCHEMA: &str = "
create table public.customers (
    id bigint generated always as identity primary key,
    name text not null, email text not null, joined timestamptz not null default now());
create table public.orders (
    id bigint generated always as identity primary key,
    customer bigint not null, placed timestamptz not null default now(),
    total numeric(10,2) not null, note jsonb not null);
create index on public.orders (customer);
create table public.payments (
    id bigint generated always as identity primary key,
    order_id bigint not null, amount numeric(10,2) not null, paid_at timestamptz not null default now());
insert into public.customers (name, email)
    select 'Customer ' || n, md5(n::text) || '@example.org' from generate_series(1, 40000) n;
insert into public.orders (customer, total, note)
    select 1 + n % 40000, (n * 37 % 100000) / 100.0, jsonb_build_object('token', md5(n::text), 'items', n % 7)
    from generate_series(1, 60000) n;
insert into public.payments (order_id, amount)
    select n, (n * 37 % 100000) / 100.0 from generate_series(1, 50000) n;
";

/// One server of the demo.
pub struct Server {
    pub instance: Instance,
}

/// Where the demo happens.
pub struct Stage {
    pub folder: PathBuf,
    pub programs: Programs,
    program: PathBuf,
    configuration: PathBuf,
    reports: PathBuf,
}

impl Stage {
    /// Prepares an empty folder for the demo. Both paths are absolute.
    pub fn new(folder: PathBuf, reports: PathBuf) -> Result<Stage> {
        let programs = find_programs()?;
        let program = std::env::current_exe()
            .map_err(|e| Error::io("demo", "cannot find the path of this program", &e))?;
        stop_servers_on_signal(&folder);
        Ok(Stage {
            configuration: folder.join("pgproof.toml"),
            folder,
            programs,
            program,
            reports,
        })
    }

    /// A new cluster in `name`, started with archiving switched on but nobody to archive yet.
    pub fn new_server(&self, name: &str) -> Result<Server> {
        let options = InitOptions {
            checksums: true,
            ..InitOptions::default()
        };
        let instance = Instance::init(&self.programs, &self.folder.join(name), &options)?;
        self.start(
            instance,
            name,
            &[("archive_mode", "on"), ("wal_level", "replica")],
        )
    }

    /// A server over a directory that `pgproof restore` made.
    pub fn restored_server(&self, name: &str) -> Result<Server> {
        let instance = Instance::open(&self.programs, &self.folder.join(name))?;
        self.start(instance, name, &[])
    }

    fn start(&self, mut instance: Instance, name: &str, settings: &[(&str, &str)]) -> Result<Server> {
        let socket_directory = self.folder.join(format!("{name}.socket"));
        std::fs::create_dir_all(&socket_directory).map_err(|e| {
            Error::io(
                "demo",
                format!("cannot create folder \"{}\"", socket_directory.display()),
                &e,
            )
        })?;
        let own = [
            ("listen_addresses", ""),
            ("shared_buffers", "64MB"),
            ("max_wal_size", "1GB"),
        ];
        let settings = own
            .iter()
            .chain(settings)
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect();
        instance.start(&StartOptions {
            socket_directory,
            port: PORT,
            settings,
            log_file: self.folder.join(format!("{name}.log")),
            timeout: Duration::from_secs(180),
            launcher: None,
            environment: Vec::new(),
        })?;
        Ok(Server { instance })
    }

    /// Runs `pgproof ARGUMENTS --json` and gives what it printed; its exit code must be 0.
    pub fn pgproof(&self, arguments: &[&str]) -> Result<serde_json::Value> {
        let shown = arguments.join(" ");
        println!("    $ pgproof {shown}");
        let output = Command::new(&self.program)
            .arg("--config")
            .arg(&self.configuration)
            .args(arguments)
            .arg("--json")
            .current_dir(&self.folder)
            .env("DRILL_REPORT_DIR", &self.reports)
            .stdin(Stdio::null())
            .output()
            .map_err(|e| Error::io("demo", format!("cannot run `pgproof {shown}`"), &e))?;
        if !output.status.success() {
            return Err(
                Error::new("demo", format!("`pgproof {shown}` ended with {}", output.status)).detail(
                    format!(
                        "{}\n{}",
                        String::from_utf8_lossy(&output.stderr).trim_end(),
                        String::from_utf8_lossy(&output.stdout).trim_end()
                    ),
                ),
            );
        }
        serde_json::from_slice(&output.stdout)
            .map_err(|e| Error::new("demo", format!("`pgproof {shown}` did not print JSON")).caused_by(&e))
    }

    /// Copies one table from one server into another with PostgreSQL's own programs.
    pub fn carry_table_over(&self, table: &str, from: &Server, to: &Server) -> Result<()> {
        let failed = |e: &std::io::Error| Error::io("demo", "cannot run pg_dump and psql", e);
        let mut dump = Command::new(self.programs.program("pg_dump")?)
            .args(["--table", table, "--dbname", &from.instance.conninfo("postgres")])
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|e| failed(&e))?;
        let input = dump.stdout.take().map_or_else(Stdio::null, Stdio::from);
        let load = Command::new(self.programs.program("psql")?)
            .args([
                "--no-psqlrc",
                "--quiet",
                "--set",
                "ON_ERROR_STOP=1",
                "--single-transaction",
                "--dbname",
            ])
            .arg(to.instance.conninfo("postgres"))
            .stdin(input)
            .stdout(Stdio::null())
            .status()
            .map_err(|e| failed(&e))?;
        let dumped = dump.wait().map_err(|e| failed(&e))?;
        if dumped.success() && load.success() {
            Ok(())
        } else {
            Err(Error::new(
                "demo",
                format!("cannot carry table {table} over: pg_dump {dumped}, psql {load}"),
            ))
        }
    }
}

impl Server {
    pub fn session(&self) -> Result<Session> {
        Session::connect(&self.instance.conninfo("postgres"))
    }

    pub fn create_shop(&self) -> Result<()> {
        self.session()?.execute(SCHEMA).map(drop)
    }

    /// How many rows a table has, and a digest of them all that does not depend on their order.
    pub fn rows(&self, table: &str) -> Result<(u64, String)> {
        let row = self.session()?.one(&format!(
            "select count(*), coalesce(sum(hashtextextended(t::text, 0)::numeric), 0) from public.{} t",
            Session::identifier(table)
        ))?;
        let text = |i: usize| row.get(i).cloned().flatten().unwrap_or_default();
        let count = text(0)
            .parse()
            .map_err(|_| Error::new("demo", format!("cannot count the rows of table {table}")))?;
        Ok((count, text(1)))
    }

    pub fn stop(&mut self) -> Result<()> {
        self.instance.stop(StopMode::Fast)
    }
}

/// Customers at work: one thread, short transactions, until it is stopped.
pub struct Load {
    stop: Arc<AtomicBool>,
    commits: Arc<AtomicU64>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Load {
    /// `with_orders`: new orders too, not only payments.
    pub fn start(server: &Server, with_orders: bool) -> Result<Load> {
        let stop = Arc::new(AtomicBool::new(false));
        let commits = Arc::new(AtomicU64::new(0));
        let mut session = server.session()?;
        let thread = std::thread::spawn({
            let (stop, commits) = (stop.clone(), commits.clone());
            move || {
                let mut turn = 0u64;
                while !stop.load(Ordering::Relaxed) {
                    turn += 1;
                    let sql = match (turn % 4, with_orders) {
                        (0, _) => format!(
                            "update public.customers set joined = now() where id = {}",
                            1 + turn % 40_000
                        ),
                        (1, true) => format!(
                            "insert into public.orders (customer, total, note) values ({}, {}.5, '{{\"live\": true}}')",
                            1 + turn % 40_000,
                            turn % 900
                        ),
                        _ => format!(
                            "insert into public.payments (order_id, amount) values ({turn}, {}.25)",
                            turn % 900
                        ),
                    };
                    session.execute(&sql)?;
                    commits.fetch_add(1, Ordering::Relaxed);
                    std::thread::sleep(Duration::from_millis(2));
                }
                Ok(())
            }
        });
        Ok(Load {
            stop,
            commits,
            thread: Some(thread),
        })
    }

    /// Waits until so many transactions were committed.
    pub fn wait_for_commits(&self, at_least: u64) {
        while self.commits.load(Ordering::Relaxed) < at_least
            && self.thread.as_ref().is_some_and(|t| !t.is_finished())
        {
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Stops it, and says how many transactions it had committed.
    pub fn stop(mut self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread
                .join()
                .map_err(|_| Error::new("demo", "the load ended unexpectedly"))??;
        }
        Ok(self.commits.load(Ordering::Relaxed))
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// PostgreSQL 15 where it is installed, else the newest.
fn find_programs() -> Result<Programs> {
    let mut first = None;
    for major in [15, 18, 17, 16, 14, 13] {
        match Programs::find(Major(major), &[]) {
            Ok(programs) => return Ok(programs),
            Err(error) => first = first.or(Some(error)),
        }
    }
    Err(first
        .unwrap_or_else(|| Error::new("programs-missing", "PostgreSQL is not installed"))
        .hint("Install PostgreSQL, for example with `apt-get install postgresql`, or run ./quickstart."))
}

/// On Ctrl-C or SIGTERM the servers below `folder` are stopped before the program ends.
fn stop_servers_on_signal(folder: &Path) {
    let Ok(mut signals) =
        signal_hook::iterator::Signals::new([signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM])
    else {
        return;
    };
    let folder = folder.to_owned();
    std::thread::spawn(move || {
        if let Some(signal) = signals.forever().next() {
            for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
                let _ = Instance::stop_leftover(&entry.path(), Duration::from_secs(20));
            }
            eprintln!(
                "interrupted; what was started is stopped, and everything lies in {}",
                folder.display()
            );
            std::process::exit(128 + signal);
        }
    });
}
