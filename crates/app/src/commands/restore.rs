//! `pgproof restore`: prints the plan, executes it, and says what to do next; `--adopt` makes the result production.
//!
//! Invariant: a restore or an adoption that changes anything is recorded in the repository before its first write; a
//! repository that takes no record stands in the way of neither.

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use diagnostic::{Error, Result};
use history::Target;
use repository::{ActionBegun, ActionKind, Backup, BackupId};
use restore::{
    Action, Configuration, ExecuteOptions, Plan, Purpose, Request, Step, StopRequest, TablespaceChoice,
};
use serde_json::json;

use crate::account::{self, Account};
use crate::archive;
use crate::cli;
use crate::config::Cluster;
use crate::context::{Context, comparing, cores};
use crate::copies::{Copies, OpenCopy};
use crate::progress::Progress;
use crate::recording::{self, Recording};
use crate::targets::Timeline;
use crate::{exit, lease, output, programs, settings, targets};

/// How long WAL is kept for a server that was restored, from the last sign of it on.
pub const RECOVERY_LEASE: jiff::SignedDuration = jiff::SignedDuration::from_hours(24);

/// Shows the room's progress.
struct Shown {
    progress: Progress,
    stage: Mutex<&'static str>,
    done: AtomicU64,
    total: AtomicU64,
}

impl restore::Progress for Shown {
    fn step(&self, step: Step, bytes_total: u64, _files_total: u64) {
        let stage = match step {
            Step::KeepAside => "keeping the old directory aside",
            Step::Compare => "comparing with the backup",
            Step::Write => "writing files",
            Step::Sync => "bringing everything to disk",
            Step::Finish => "putting pg_control in place",
        };
        if let Ok(mut current) = self.stage.lock() {
            *current = stage;
        }
        self.total.store(bytes_total, Ordering::Relaxed);
        self.progress
            .update(stage, self.done.load(Ordering::Relaxed), bytes_total);
    }

    fn advance(&self, bytes: u64, _files: u64) {
        let done = self.done.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let stage = self.stage.lock().map_or("writing files", |stage| *stage);
        self.progress
            .update(stage, done, self.total.load(Ordering::Relaxed));
    }
}

pub fn run(context: &Context, arguments: &cli::Restore) -> Result<u8> {
    if let Some(directory) = &arguments.adopt {
        return adopt(context, directory, arguments.dry_run);
    }
    let target = targets::chosen(&arguments.target, context.now())?;
    let action = action(arguments.action.as_deref(), &target)?;
    let destination = arguments.into.as_deref().ok_or_else(|| {
        Error::usage("destination-missing", "no directory was given").hint("Name one with `--into DIR`.")
    })?;
    let destination = absolute(destination)?;
    let tablespaces = arguments
        .tablespace
        .iter()
        .map(|text| tablespace(text))
        .collect::<Result<_>>()?;
    let timeline = arguments.timeline.as_deref().map(targets::timeline).transpose()?;
    let named: Option<BackupId> = arguments.backup.as_deref().map(str::parse).transpose()?;

    let configuration = context.configuration()?;
    let cluster = configuration.cluster(arguments.of.cluster.as_deref())?;
    // Root stays root: it may have to make folders and give files away. Into the repository go a lease and the record
    // of what is done; a folder's objects belong to the folder's owner, whoever makes them.
    let owner = account::owner(&configuration, cluster).filter(|_| Account::current().is_root());
    let copies = Copies::open_any(&configuration, cluster, arguments.copy.as_deref())?;
    let backups = archive::backups(&copies)?;
    let system = archive::of_backup(&backups, named).ok_or_else(|| {
        Error::new(
            "no-backup",
            format!("cluster {:?} has no backup to restore", cluster.name),
        )
        .hint(format!(
            "Run `pgproof backup {}` on a running server first.",
            cluster.name
        ))
    })?;
    let archive = archive::open(&copies, system)?;
    let asked = target.options();
    let timeline = match timeline {
        Some(Timeline::Number(number)) => Some(number),
        Some(Timeline::Latest) => restore::newest_timeline(&backups, &archive)?,
        // That of the system's newest backup.
        Some(Timeline::Current) | None => None,
    };
    let request = Request {
        cluster: cluster.name.clone(),
        stops: vec![StopRequest {
            wanted: target.into(),
            action,
            purpose: "the requested target".to_owned(),
        }],
        timeline,
        backup: named,
        destination,
        tablespaces,
        tablespaces_into: arguments.tablespaces_into.as_deref().map(absolute).transpose()?,
        create_tablespaces: arguments.allow_created_tablespaces,
        delta: arguments.delta,
        restore_command: settings::restore_command(&context.program()?, &configuration.path, &cluster.name)?,
        purpose: Purpose::Server,
        configuration: Configuration::Restored,
        settings: Vec::new(),
        owner: owner.map(|owner| (owner.uid, owner.gid)),
    };
    let facts = restore::gather(request, &backups, &archive)?;
    let plan = restore::plan(&facts, context.now())?;
    if !context.json {
        output::line(plan.to_string().trim_end());
    }
    let copy = copy_with(&copies, &backups, plan.backup)?;
    let usual = if plan.delta.is_some() {
        comparing()
    } else {
        cores()
    };
    let threads = arguments.threads.unwrap_or(usual);
    if arguments.dry_run {
        let counts = plan
            .delta
            .is_some()
            .then(|| restore::survey(&plan, &copy.cluster, threads, &restore::NoProgress))
            .transpose()?;
        if context.json {
            output::json(&json!({ "plan": plan, "result": null, "delta": counts }));
        } else if let Some(counts) = &counts {
            output::line(counted(counts, "would be"));
        }
        return Ok(exit::DONE);
    }
    if plan.delta.is_some() {
        confirm(arguments.confirm.as_deref(), &plan)?;
    }
    // From here on `expire` keeps the backup, and the WAL behind it.
    let planned = backups.iter().find(|backup| backup.backup == plan.backup);
    let leases = lease::take(copy, planned, "restore")?;
    // What takes no lease takes no record either.
    let others = copies.iter().filter(|other| other.name != copy.name);
    let takers = std::iter::once(copy).filter(|_| !leases.is_empty()).chain(others);
    let recording = recording::begin(takers, &begun(&plan, copy, asked, context.now()));
    let shown = Shown {
        progress: Progress::new("restore"),
        stage: Mutex::new("writing files"),
        done: AtomicU64::new(0),
        total: AtomicU64::new(0),
    };
    let options = ExecuteOptions {
        threads,
        progress: &shown,
    };
    let executed = restore::execute(&plan, &copy.cluster, &options);
    drop(shown);
    let result = match executed {
        Ok(result) => result,
        Err(error) => {
            recording.failed(context.now(), &error);
            return Err(error);
        }
    };
    let (bytes, files) = match &result.delta {
        Some(counts) => (counts.bytes_written, None),
        None => (result.bytes, Some(result.files)),
    };
    recording.done(context.now(), Some(bytes), files);
    // The server that is started now fetches its WAL.
    leases.leave_for(RECOVERY_LEASE);
    if context.json {
        output::json(&json!({ "plan": plan, "result": result }));
    } else {
        if let Some(counts) = &result.delta {
            output::line(counted(counts, "were"));
        }
        next(context, cluster, &plan, owner);
    }
    Ok(exit::DONE)
}

/// What is recorded of a restore before it begins.
fn begun(plan: &Plan, copy: &OpenCopy, target: String, now: jiff::Timestamp) -> ActionBegun {
    let kind = match plan.delta {
        Some(_) => ActionKind::RestoreDelta,
        None => ActionKind::Restore,
    };
    ActionBegun {
        copy: Some(copy.name.clone()),
        backup: Some(plan.backup),
        target: Some(target),
        timeline: Some(plan.timeline),
        destination: Some(plan.destination.display().to_string()),
        ..recording::begun(kind, &plan.cluster, now)
    }
}

/// What a delta compared, wrote and removed, in words.
fn counted(counts: &restore::DeltaCounts, were: &str) -> String {
    format!(
        "Of {} files with {} bytes, {} bytes were compared; {} bytes in {} blocks {were} written ({} files made), \
         {} names {were} removed.",
        counts.files,
        counts.bytes,
        counts.bytes_compared,
        counts.bytes_written,
        counts.blocks_written,
        counts.files_made,
        counts.removed
    )
}

/// A delta destroys what is there: somebody types the cluster's name, on the command line or on a terminal.
fn confirm(given: Option<&str>, plan: &Plan) -> Result<()> {
    use std::io::{BufRead, IsTerminal};
    let name = &plan.cluster;
    let directory = plan.destination.display();
    let typed = match given {
        Some(typed) => typed.to_owned(),
        None if std::io::stdin().is_terminal() && std::io::stderr().is_terminal() => {
            output::question(format!(
                "What {directory} holds is overwritten and cannot be brought back. Type the cluster's name to go on: "
            ));
            let mut line = String::new();
            std::io::stdin()
                .lock()
                .read_line(&mut line)
                .map_err(|error| Error::io("confirmation-read", "cannot read the answer", &error))?;
            line.trim().to_owned()
        }
        None => {
            return Err(Error::usage(
                "confirmation-missing",
                format!("--delta overwrites \"{directory}\" and was not confirmed"),
            )
            .hint(format!(
                "Add `--confirm {name}`; or leave --delta out: then what is there is kept aside."
            )));
        }
    };
    if typed == *name {
        return Ok(());
    }
    Err(Error::usage(
        "confirmation-wrong",
        format!("{typed:?} is not the name of the cluster; nothing was touched"),
    )
    .hint(format!("Confirm with `--confirm {name}`.")))
}

fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).map_err(|error| {
        Error::io(
            "path",
            format!("cannot make {:?} absolute", path.display().to_string()),
            &error,
        )
    })
}

/// Pausing shows the state before anything is final; behind the end of the WAL there is nothing to wait for. Just before a
/// transaction, or at an LSN as `find` prints it, a paused server would still hold that transaction's locks, so that nobody
/// could read the table that it drops.
fn action(given: Option<&str>, target: &Target) -> Result<Action> {
    match given {
        Some("pause") => Ok(Action::Pause),
        Some("promote") => Ok(Action::Promote),
        Some("shutdown") => Ok(Action::Shutdown),
        Some(other) => Err(
            Error::usage("action-unknown", format!("there is no action {other:?}"))
                .hint("There are: pause, promote, shutdown."),
        ),
        None if matches!(target, Target::Latest | Target::BeforeXid(_) | Target::Lsn(_)) => {
            Ok(Action::Promote)
        }
        None => Ok(Action::Pause),
    }
}

fn tablespace(text: &str) -> Result<TablespaceChoice> {
    match text.rsplit_once('=') {
        Some((name, location)) if !name.is_empty() && Path::new(location).is_absolute() => {
            Ok(TablespaceChoice {
                tablespace: name.to_owned(),
                location: PathBuf::from(location),
            })
        }
        _ => Err(Error::usage(
            "tablespace-syntax",
            format!("cannot read {text:?} as a tablespace's new place"),
        )
        .hint("Write `--tablespace NAME=/absolute/directory`, with its name, OID or old location.")),
    }
}

/// The first copy that holds this very backup.
fn copy_with<'a>(copies: &'a [OpenCopy], backups: &[Backup], id: BackupId) -> Result<&'a OpenCopy> {
    let planned = backups.iter().find(|backup| backup.backup == id);
    for copy in copies {
        if copy
            .cluster
            .backups()?
            .iter()
            .any(|backup| Some(backup) == planned)
        {
            return Ok(copy);
        }
    }
    Err(Error::new(
        "backup-missing",
        format!("no copy holds the backup {id} any more"),
    ))
}

/// What a person does now.
fn next(context: &Context, cluster: &Cluster, plan: &Plan, owner: Option<Account>) {
    let directory = output::shell_quoted(&plan.destination.display().to_string());
    let account = owner
        .map(|owner| format!("runuser -u {} -- ", owner.name()))
        .unwrap_or_default();
    let version: u16 = plan
        .postgresql_version
        .split('.')
        .next()
        .and_then(|major| major.parse().ok())
        .unwrap_or(0);
    let pg_ctl = cluster::Programs::find(postgres::Major(version), &programs::folders(cluster))
        .and_then(|programs| programs.program("pg_ctl"))
        .map_or("pg_ctl".to_owned(), |path| path.display().to_string());
    output::line("");
    output::line(format!(
        "Restored backup {} into {}.",
        plan.backup,
        plan.destination.display()
    ));
    for kept in &plan.kept_aside {
        let (from, to) = kept.paths();
        output::line(format!(
            "What was in {} is kept in {}.",
            from.display(),
            to.display()
        ));
    }
    output::line("Next:");
    output::line(format!(
        "  start it:                  {account}{pg_ctl} -D {directory} -l logfile start"
    ));
    match plan.stops.first().map(|stop| stop.action) {
        Some(Action::Pause) => {
            output::line("  it pauses at the target:   look whether it holds what you want, then");
            output::line("  end recovery:              psql -c 'SELECT pg_wal_replay_resume()'");
        }
        Some(Action::Shutdown) => {
            output::line("  it stops at the target:    start it again after choosing another target")
        }
        Some(Action::Promote) | None => {}
    }
    let config = match &context.config_file {
        Some(path) => format!(" --config {}", output::shell_quoted(&path.display().to_string())),
        None => String::new(),
    };
    output::line(format!(
        "  let it archive again:      pgproof{config} restore --adopt {directory}"
    ));
}

/// Lets a restored server archive again.
fn adopt(context: &Context, directory: &Path, dry_run: bool) -> Result<u8> {
    let directory = absolute(directory)?;
    let marker = restore::read_marker(&directory)?;
    if dry_run {
        let text = match &marker {
            Some(marker) => format!(
                "restored from backup {} of cluster {}",
                marker.backup, marker.cluster
            ),
            None => "not a restored directory".to_owned(),
        };
        if context.json {
            output::json(&json!({ "data_directory": directory, "marker": marker, "adopted": false }));
        } else {
            output::line(format!("{} is {text}; nothing was changed.", directory.display()));
        }
        return Ok(exit::DONE);
    }
    let recording = marker
        .as_ref()
        .map(|marker| record_adoption(context, marker, &directory));
    let adopted = match restore::adopt(&directory) {
        Ok(adopted) => adopted,
        Err(error) => {
            if let Some(recording) = recording {
                recording.failed(context.now(), &error);
            }
            return Err(error);
        }
    };
    if let Some(recording) = recording {
        recording.done(context.now(), None, None);
    }
    if context.json {
        output::json(&json!({ "data_directory": directory, "marker": marker, "adopted": adopted }));
        return Ok(exit::DONE);
    }
    output::line(format!(
        "{} is adopted (restored from backup {}).",
        directory.display(),
        adopted.backup
    ));
    if !adopted.settings.is_empty() {
        output::line("In effect again from the next start:");
        for setting in &adopted.settings {
            output::line(format!("  {setting}"));
        }
    }
    for next in &adopted.next {
        output::line(format!("Next: {next}"));
    }
    Ok(exit::DONE)
}

/// Records an adoption where the configuration says which repository the directory came from. It needs neither.
fn record_adoption(context: &Context, marker: &restore::Marker, directory: &Path) -> Recording {
    let kind = ActionKind::Adopt;
    let opened = context.configuration().and_then(|configuration| {
        let cluster = configuration.cluster(Some(&marker.cluster))?;
        Copies::open(&configuration, cluster, None)
    });
    let copies = match opened {
        Ok(copies) => copies,
        Err(error) => return recording::none(kind, Some(&error)),
    };
    if let (true, Some((_, error))) = (copies.open.is_empty(), copies.failed.first()) {
        return recording::none(kind, Some(error));
    }
    let begun = ActionBegun {
        backup: marker.backup.parse().ok(),
        target: Some(marker.target.clone()),
        destination: Some(directory.display().to_string()),
        ..recording::begun(kind, &marker.cluster, context.now())
    };
    recording::begin(&copies.open, &begun)
}
