//! `pgproof demo`: the whole story on a throw-away cluster, told in plain sentences.
//!
//! It uses nothing but the commands that a user has: each is run as a program of its own, against a real server. The
//! last line of standard output is the absolute path of the drill's report.

mod stage;

use crate::cli;
use crate::context::Context;
use diagnostic::{Error, Result};
use serde_json::Value;
use stage::{Load, Stage};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The account that PostgreSQL runs as when root asks for the demo and the folder does not say it.
const ACCOUNT: &str = "postgres";

/// Tells the story. Gives the exit code.
pub fn run(_context: &Context, arguments: &cli::Demo) -> Result<u8> {
    let folder = make_folder(arguments.directory.as_deref())?;
    if rustix::process::geteuid().is_root() {
        return run_as_ordinary_account(&folder, arguments.keep);
    }
    let reports = match std::env::var_os("DRILL_REPORT_DIR") {
        Some(reports) => std::path::absolute(&reports)
            .map_err(|e| Error::io("demo", "cannot use the folder that DRILL_REPORT_DIR names", &e))?,
        None => folder.join("drill-reports"),
    };
    let report = tell(&folder, &reports);
    if report.is_ok() && !arguments.keep {
        clear(&folder, &reports)?;
    }
    let report = report.map_err(|e| {
        let told = e.hint_text().map(|h| format!("{h}\n")).unwrap_or_default();
        e.hint(format!(
            "{told}Everything is still there to look at: {}",
            folder.display()
        ))
    })?;
    println!("{}", report.display());
    Ok(0)
}

/// The story itself; gives the path of the report.
fn tell(folder: &Path, reports: &Path) -> Result<PathBuf> {
    let stage = Stage::new(folder.to_owned(), reports.to_owned())?;
    println!(
        "pgproof demo: PostgreSQL {} in {}",
        stage.programs.version,
        folder.display()
    );

    chapter("A server is at work.");
    let mut production = stage.new_server("production")?;
    production.create_shop()?;
    let load = Load::start(&production, true)?;
    say("A shop with customers, orders and payments: 150,000 rows, and customers who keep buying.");

    chapter("It gets protected.");
    let repository = format!("file://{}", folder.join("repository").display());
    let connection = production.instance.conninfo("postgres");
    stage.pgproof(&[
        "init",
        "--connection",
        &connection,
        "--repository",
        &repository,
        "--cluster",
        "shop",
        "--apply",
    ])?;
    say(
        "pgproof looked at the server, wrote pgproof.toml, made a repository and its key, and set archive_command.",
    );
    stage.pgproof(&["check"])?;
    say("A check sent a WAL segment all the way and read it back.");
    let first = stage.pgproof(&["backup"])?;
    say(&format!(
        "First backup {}: read {}, stored {}, encrypted; every page checksum was verified.",
        text(&first, "backup"),
        size(&first, "bytes_read"),
        size(&first, "bytes_stored")
    ));

    chapter("Work goes on; then somebody drops a table.");
    load.wait_for_commits(900);
    load.stop()?;
    let before = production.rows("orders")?;
    production.session()?.execute("drop table public.orders")?;
    let load = Load::start(&production, false)?;
    say(&format!(
        "DROP TABLE orders: {} rows are gone. Payments keep coming in; nobody has noticed yet.",
        before.0
    ));
    load.wait_for_commits(200);
    // The evidence has to be in the archive before anybody can look for it there.
    cluster::archiving::switch_wal(&mut production.session()?)?;
    let target = find_drop(&stage)?;
    say(&format!(
        "Found in the archived WAL by the table's name: transaction {} at {}. The point just before it is {}.",
        target.xid, target.committed_at, target.before
    ));

    chapter("The table comes back.");
    let into = folder.join("recovered");
    let into_text = into.display().to_string();
    let restored = stage.pgproof(&["restore", "--before-xid", &target.xid, "--into", &into_text])?;
    let mut copy = stage.restored_server("recovered")?;
    wait_for_target(&copy)?;
    let after = copy.rows("orders")?;
    if after != before {
        return Err(Error::new(
            "demo",
            "the recovered table differs from the one that was dropped",
        )
        .detail(format!(
            "dropped with {} rows, recovered with {} rows",
            before.0, after.0
        )));
    }
    stage.carry_table_over("public.orders", &copy, &production)?;
    copy.stop()?;
    if production.rows("orders")? != before {
        return Err(Error::new(
            "demo",
            "the table that was carried back differs from the one that was dropped",
        ));
    }
    let saved = restored
        .pointer("/plan/stops/0/target/commits_after_backup")
        .and_then(Value::as_u64)
        .ok_or_else(|| {
            Error::new(
                "demo",
                "the restore's plan does not say how many commits it replays",
            )
        })?;
    say(&format!(
        "All {} rows of orders are back in production, digest for digest. A backup alone would have lost {saved} commits \
         that were made after it; replaying the WAL saved them.",
        before.0
    ));

    chapter("And it is proven, not hoped for.");
    let second = stage.pgproof(&["backup"])?;
    say(&format!(
        "Second backup {}: stored {} of {} read, only what changed; it is whole by itself.",
        text(&second, "backup"),
        size(&second, "bytes_stored"),
        size(&second, "bytes_read")
    ));
    let drill = stage.pgproof(&["drill", "run"])?;
    load.stop()?;
    production.stop()?;
    let verdict = text(&drill, "verdict");
    // `drill run` ends with 0 for a passed drill alone, with or without observations.
    let id = drill
        .pointer("/identity/drill_id")
        .and_then(Value::as_str)
        .unwrap_or_default();
    let report = reports.join(id).join("report.md");
    if !report.is_file() {
        return Err(Error::new(
            "demo",
            format!("the drill left no report at \"{}\"", report.display()),
        ));
    }
    say(&format!(
        "A drill restored into a quarantined copy while customers kept buying, and compared every row with production at one \
         exact LSN. Verdict: {verdict}. RTO {} s. At that moment a lost server would have cost {} s, {} bytes, {} commits.",
        number(&drill, "/rto_seconds"),
        number(&drill, "/rpo/seconds"),
        number(&drill, "/rpo/bytes"),
        number(&drill, "/rpo/commits"),
    ));
    for reason in drill
        .pointer("/reasons")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
    {
        say(&format!(
            "Observation ({}): {}",
            text(reason, "code"),
            text(reason, "text")
        ));
    }
    println!("\nThe report, with facts.json beside it:");
    Ok(report)
}

/// What `find` said of the drop.
struct Dropped {
    xid: String,
    committed_at: String,
    before: String,
}

/// Looks for the drop until its segment is archived.
fn find_drop(stage: &Stage) -> Result<Dropped> {
    for attempt in 1..=30 {
        let found = stage.pgproof(&["find", "--table", "orders", "--event", "drop"])?;
        if let Some(event) = found.pointer("/events/0") {
            return Ok(Dropped {
                xid: text(event, "xid"),
                committed_at: text(event, "committed_at"),
                before: text(event, "target_before"),
            });
        }
        if attempt < 30 {
            std::thread::sleep(std::time::Duration::from_secs(1));
        }
    }
    Err(Error::new(
        "demo",
        "the drop of table orders was not found in the archived WAL",
    ))
}

/// Waits until replay has come to its target, where it promotes.
fn wait_for_target(server: &stage::Server) -> Result<()> {
    for _ in 0..600 {
        let row = server.session()?.one("select not pg_is_in_recovery()")?;
        if row.first().cloned().flatten().as_deref() == Some("t") {
            return Ok(());
        }
        std::thread::sleep(std::time::Duration::from_millis(200));
    }
    Err(Error::new(
        "demo",
        "the restored server did not reach its target within two minutes",
    ))
}

/// The folder of the demo, made absolute, empty and readable by the account that will use it.
fn make_folder(asked: Option<&Path>) -> Result<PathBuf> {
    let folder = match asked {
        Some(folder) => std::path::absolute(folder)
            .map_err(|e| Error::io("demo", format!("cannot use folder \"{}\"", folder.display()), &e))?,
        None => {
            let mut random = [0u8; 6];
            getrandom::fill(&mut random)
                .map_err(|_| Error::new("demo", "the system gives no random numbers"))?;
            let name: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
            std::env::temp_dir().join(format!("pgproof-demo-{name}"))
        }
    };
    let io = |e: &std::io::Error| {
        Error::io(
            "demo",
            format!("cannot create folder \"{}\"", folder.display()),
            e,
        )
    };
    std::fs::create_dir_all(&folder).map_err(|e| io(&e))?;
    if std::fs::read_dir(&folder).map_err(|e| io(&e))?.next().is_some() {
        return Err(Error::usage(
            "demo",
            format!("folder \"{}\" is not empty", folder.display()),
        ));
    }
    std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o755)).map_err(|e| io(&e))?;
    Ok(folder)
}

/// PostgreSQL refuses root: hands the folder to an ordinary account and runs the demo again as that account.
fn run_as_ordinary_account(folder: &Path, keep: bool) -> Result<u8> {
    let io = |e: &std::io::Error| Error::io("demo", "cannot start the demo as an ordinary account", e);
    let owner = std::fs::metadata(folder).map_err(|e| io(&e))?;
    let (uid, gid) = if owner.uid() == 0 {
        account_ids(ACCOUNT)?
    } else {
        (owner.uid(), owner.gid())
    };
    // Root's own folders are closed to that account, so it gets a copy of the program.
    let program = folder.join("bin").join("pgproof");
    let own = std::env::current_exe().map_err(|e| io(&e))?;
    std::fs::create_dir(folder.join("bin")).map_err(|e| io(&e))?;
    std::fs::copy(own, &program).map_err(|e| io(&e))?;
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).map_err(|e| io(&e))?;
    let stage = folder.join("stage");
    std::fs::create_dir(&stage).map_err(|e| io(&e))?;
    std::os::unix::fs::chown(&stage, Some(uid), Some(gid)).map_err(|e| io(&e))?;
    let mut command = Command::new(&program);
    command.arg("demo").arg("--directory").arg(&stage);
    if keep {
        command.arg("--keep");
    }
    let status = command
        .current_dir(&stage)
        .env("HOME", &stage)
        .uid(uid)
        .gid(gid)
        .status()
        .map_err(|e| io(&e))?;
    if !keep {
        std::fs::remove_dir_all(folder.join("bin")).map_err(|e| io(&e))?;
    }
    Ok(status
        .code()
        .and_then(|code| u8::try_from(code).ok())
        .unwrap_or(1))
}

/// User and group number of an account, from the system's list of accounts.
fn account_ids(account: &str) -> Result<(u32, u32)> {
    let output = Command::new("getent").args(["passwd", account]).output();
    let line = output
        .map(|o| String::from_utf8_lossy(&o.stdout).into_owned())
        .unwrap_or_default();
    let mut fields = line.trim_end().split(':').skip(2).map(str::parse);
    match (fields.next(), fields.next()) {
        (Some(Ok(uid)), Some(Ok(gid))) if uid != 0 => Ok((uid, gid)),
        _ => Err(Error::usage("demo", format!("there is no ordinary account \"{account}\""))
            .hint(
                "PostgreSQL refuses to run as root. Give --directory a folder that belongs to an ordinary account, or run ./quickstart.",
            )),
    }
}

/// Removes everything but the reports.
fn clear(folder: &Path, reports: &Path) -> Result<()> {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if reports.starts_with(&path) {
            continue;
        }
        let removed = if path.is_dir() {
            std::fs::remove_dir_all(&path)
        } else {
            std::fs::remove_file(&path)
        };
        removed.map_err(|e| Error::io("demo", format!("cannot remove \"{}\"", path.display()), &e))?;
    }
    if !reports.starts_with(folder) {
        let _ = std::fs::remove_dir(folder);
    }
    Ok(())
}

fn chapter(title: &str) {
    println!("\n== {title}");
}

fn say(sentence: &str) {
    println!("    {sentence}");
}

fn text(value: &Value, key: &str) -> String {
    match value.get(key) {
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
        None => String::new(),
    }
}

fn number(value: &Value, pointer: &str) -> String {
    match value.pointer(pointer) {
        Some(Value::Number(n)) => match n.as_f64() {
            Some(f) if n.is_f64() => format!("{f:.1}"),
            _ => n.to_string(),
        },
        _ => "?".into(),
    }
}

fn size(value: &Value, key: &str) -> String {
    let bytes = value.get(key).and_then(Value::as_u64).unwrap_or(0);
    format!("{:.1} MB", bytes as f64 / 1e6)
}
