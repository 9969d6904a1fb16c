//! `pgproof wal`: what the archiver and recovery run, and what the archive holds.
//!
//! Invariants: `push` fails with 1 and never above; `get` ends with 0, 1 or 126 and says 1 only when every configured copy
//! answered that it has neither the file nor a later segment (hard rules 19 and 20).

use std::path::{Path, PathBuf};

use backup::{Copy, PushOptions};
use diagnostic::{Error, Result};
use restore::wal::{self, PlacedWal};
use serde_json::json;

use crate::account;
use crate::archive;
use crate::cli;
use crate::commands::wal_ahead::{Ahead, Answer};
use crate::commands::wal_prefetch::Prefetch;
use crate::config::Cluster;
use crate::context::Context;
use crate::copies::Copies;
use crate::{exit, output};

/// 4 GiB of WAL, where segments have 16 MiB.
const RENEWED_EVERY_SEGMENTS: u64 = 256;

pub fn push(context: &Context, arguments: &cli::WalPush) -> Result<u8> {
    let configuration = context.configuration()?;
    let cluster = configuration.cluster(arguments.cluster.as_deref())?;
    account::become_owner(&configuration, cluster)?;
    let (path, data_directory) = locate(cluster, &arguments.path)?;
    let ahead = Ahead::of(&configuration, cluster, &path, &data_directory);
    let pushed = push_file(
        context,
        &configuration,
        cluster,
        arguments,
        ahead.as_ref(),
        path,
        &data_directory,
    );
    // Also when it failed: just then WAL piles up.
    for warning in ahead
        .iter()
        .flat_map(|ahead| ahead.backlog_warnings(cluster, context.now()))
    {
        output::notice(format!("warning: {warning}"));
    }
    pushed
}

fn push_file(
    context: &Context,
    configuration: &crate::config::Configuration,
    cluster: &Cluster,
    arguments: &cli::WalPush,
    ahead: Option<&Ahead>,
    path: PathBuf,
    data_directory: &Path,
) -> Result<u8> {
    // Held until the end: nobody else pushes this file meanwhile.
    let _busy = match ahead
        .as_ref()
        .map(|ahead| ahead.answer(context.now()))
        .transpose()?
    {
        Some(Answer::Durable(acknowledged)) => {
            for warning in &acknowledged.warnings {
                output::notice(format!("warning: {warning}"));
            }
            if context.json {
                output::json(&json!({
                    "file": arguments.path.file_name().map(|name| name.to_string_lossy()),
                    "pushed_ahead": true, "copies": acknowledged.copies,
                }));
            }
            start_ahead(context, cluster, ahead);
            return Ok(exit::DONE);
        }
        Some(Answer::Push(busy)) => busy,
        None => None,
    };
    let copies = open_enough(configuration, cluster)?;
    let given: Vec<Copy<'_>> = copies
        .open
        .iter()
        .map(|copy| Copy {
            name: &copy.name,
            repository: &copy.cluster,
        })
        .collect();
    let options = PushOptions {
        path,
        data_directory: resolved(data_directory),
        host_id: host_id(),
        acknowledge: cluster.acknowledge,
    };
    let result = backup::push(&given, &options, context.now())?;
    // Acknowledged, but not everywhere: the server's log is where this is read.
    for (name, error) in &copies.failed {
        output::notice(format!("warning: {} is not in copy {name:?}", result.file));
        exit::print_error(error);
    }
    for copy in &result.copies {
        if let Err(error) = &copy.stored {
            output::notice(format!("warning: {} is not in copy {:?}", result.file, copy.copy));
            exit::print_error(error);
        }
    }
    for warning in &result.warnings {
        output::notice(format!("warning: {warning}"));
    }
    if context.json {
        let milliseconds = |length: std::time::Duration| length.as_secs_f64() * 1000.0;
        let phases = json!({
            "read": milliseconds(result.phases.read), "index": milliseconds(result.phases.index),
            "store": milliseconds(result.phases.store), "total": milliseconds(result.phases.total),
        });
        let each: Vec<_> = result
            .copies
            .iter()
            .map(|copy| {
                let stored = copy.stored.as_ref().ok();
                json!({
                    "copy": copy.copy, "stored": stored.is_some(),
                    "created": stored.is_some_and(|stored| stored.created),
                    "bytes_stored": stored.map(|stored| stored.stored_bytes),
                })
            })
            .collect();
        output::json(&json!({
            "file": result.file, "pushed_ahead": false, "copies": each, "milliseconds": phases,
        }));
    }
    start_ahead(context, cluster, ahead);
    Ok(exit::DONE)
}

/// The file is safe: whatever goes wrong from here on is no reason to say otherwise.
fn start_ahead(context: &Context, cluster: &Cluster, ahead: Option<&Ahead>) {
    if let Some(Err(error)) = ahead.map(|ahead| ahead.start(context, cluster)) {
        output::notice("warning: what waits behind it cannot be pushed ahead");
        exit::print_error(&error);
    }
}

/// `wal take-over`: from now on it is this server that archives its timeline.
pub fn take_over(context: &Context, arguments: &cli::WalTakeOver) -> Result<u8> {
    let configuration = context.configuration()?;
    let cluster = configuration.cluster(arguments.cluster.as_deref())?;
    account::become_owner(&configuration, cluster)?;
    let (system, timeline, writer) = match cluster.data_directory.as_deref() {
        Some(data_directory) => {
            let (_, control) = cluster::read_control_file(data_directory)?;
            let writer = repository::Writer {
                host_id: host_id(),
                data_directory: resolved(data_directory).to_string_lossy().into_owned(),
            };
            (control.system_identifier, control.checkpoint_timeline, writer)
        }
        // This host streams the WAL beside its backups.
        None => {
            let facts = cluster::gather(&mut cluster::Session::connect(&cluster.connection)?)?;
            let writer = backup::base::streaming_writer(&host_id());
            (facts.system_identifier, facts.timeline, writer)
        }
    };
    let copies = Copies::open_all(&configuration, cluster, None)?;
    let by = crate::recording::by();
    for copy in &copies {
        let before = copy.cluster.current_claim(system, timeline)?;
        let words = match &before {
            Some(claim) if claim.writer == writer => "is this server's already".to_owned(),
            Some(claim) => format!(
                "passes from the server in \"{}\" on host {} to this one",
                claim.writer.data_directory, claim.writer.host_id
            ),
            None => "was nobody's and becomes this server's".to_owned(),
        };
        if !arguments.dry_run && before.is_none_or(|claim| claim.writer != writer) {
            copy.cluster.take_over(
                system,
                timeline,
                &writer,
                &arguments.reason,
                Some(&by),
                context.now(),
            )?;
        }
        output::line(format!(
            "copy {}: archiving timeline {timeline} {words}",
            copy.name
        ));
    }
    Ok(exit::DONE)
}

/// One spelling for a directory, however it was reached: claims compare it.
pub(super) fn resolved(directory: &Path) -> PathBuf {
    std::fs::canonicalize(directory).unwrap_or_else(|_| directory.to_owned())
}

/// As many copies as the policy demands must open.
pub(super) fn open_enough(configuration: &crate::config::Configuration, cluster: &Cluster) -> Result<Copies> {
    let mut copies = Copies::open(configuration, cluster, None)?;
    if copies.open.len() < cluster.acknowledge && !copies.failed.is_empty() {
        let (name, error) = copies.failed.remove(0);
        return Err(error.context(format!(
            "cannot open copy {name:?}, and {} must acknowledge WAL of cluster {:?}",
            cluster.acknowledge, cluster.name
        )));
    }
    Ok(copies)
}

/// The file and the data directory it belongs to. The archiver's `%p` is relative to its working directory, which is
/// the data directory; a person may also give the bare name of a file in the configured cluster's `pg_wal`.
pub(super) fn locate(cluster: &Cluster, given: &Path) -> Result<(PathBuf, PathBuf)> {
    let here = std::env::current_dir()
        .map_err(|error| Error::io("path", "cannot tell the working directory", &error))?;
    let is_data_directory = |folder: &Path| folder.join("global/pg_control").exists();
    let file = here.join(given);
    if let Some(folder) = file
        .parent()
        .and_then(Path::parent)
        .filter(|folder| is_data_directory(folder))
    {
        return Ok((file.clone(), folder.to_path_buf()));
    }
    if is_data_directory(&here) {
        return Ok((file, here));
    }
    let configured = cluster
        .data_directory
        .as_deref()
        .filter(|folder| is_data_directory(folder))
        .ok_or_else(|| {
            Error::new(
                "data-directory-unknown",
                format!(
                    "cannot tell which data directory {:?} belongs to",
                    given.display()
                ),
            )
            .detail("The working directory is no data directory, and none is configured that can be read.")
            .hint(
                "Run it in the data directory, as the archiver does, or give the absolute path below pg_wal.",
            )
        })?;
    let bare = given.components().count() == 1 && !file.exists();
    let file = if bare {
        configured.join("pg_wal").join(given)
    } else {
        file
    };
    Ok((file, configured.to_path_buf()))
}

/// Names this host in a claim: the machine id, else the host's name.
pub fn host_id() -> String {
    let id = std::fs::read_to_string("/etc/machine-id").unwrap_or_default();
    match id.trim() {
        "" => host_name(),
        id => id.to_owned(),
    }
}

/// The host's name.
pub fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// Recovery's working directory is the data directory; a person may call from elsewhere.
pub fn get(context: &Context, arguments: &cli::WalGet) -> Result<u8> {
    let configuration = context.configuration()?;
    let cluster = configuration.cluster(arguments.cluster.as_deref())?;
    let here = std::env::current_dir()
        .map_err(|error| Error::io("path", "cannot tell the working directory", &error))?;
    let recovering = match (&cluster.data_directory, here.join("global/pg_control").exists()) {
        (Some(configured), false) => configured.clone(),
        _ => here.clone(),
    };
    let options = wal::identify(&recovering)?;
    let destination = here.join(&arguments.path);
    let ahead = Prefetch::of(&configuration, cluster, &recovering, &destination, options);
    if let Some(placed) = ahead
        .as_ref()
        .and_then(|ahead| ahead.place(&arguments.file, &destination))
    {
        if renewal_is_due(&arguments.file, &options)
            && let Ok(copies) = Copies::open(&configuration, cluster, None)
        {
            let clusters: Vec<_> = copies.open.iter().map(|copy| copy.cluster.clone()).collect();
            keep_for_recovery(&recovering, &arguments.file, &options, &clusters, context.now());
        }
        if context.json {
            output::json(&json!({ "file": arguments.file, "result": PlacedWal::Placed(placed) }));
        }
        start_fetching(context, cluster, ahead.as_ref(), &arguments.file);
        return Ok(exit::DONE);
    }
    let copies = Copies::open(&configuration, cluster, None)?;
    let clusters: Vec<_> = copies.open.iter().map(|copy| copy.cluster.clone()).collect();
    let placed = match copies.failed.first() {
        Some((name, error)) if clusters.is_empty() => {
            return Err(error
                .clone()
                .context(format!("cannot open copy {name:?} of cluster {:?}", cluster.name)));
        }
        _ => {
            let place = || wal::place_wal(&arguments.file, &destination, &clusters, &options);
            match (place(), &ahead) {
                // What was fetched ahead stands in the way of what is wanted now.
                (Err(error), Some(ahead)) if error.io_kind() == Some(std::io::ErrorKind::StorageFull) => {
                    ahead.clear();
                    place()?
                }
                (placed, _) => placed?,
            }
        }
    };
    if let PlacedWal::Placed(placed) = &placed {
        for failed in &placed.failed {
            output::notice(format!(
                "warning: {} came from another copy: {failed}",
                arguments.file
            ));
        }
    }
    if let PlacedWal::Placed(_) = &placed {
        keep_for_recovery(&recovering, &arguments.file, &options, &clusters, context.now());
    }
    // A copy that could not be opened has not answered, so nothing is absent.
    if let (PlacedWal::Absent(_), Some((name, error))) = (&placed, copies.failed.first()) {
        return Err(error.clone().context(format!(
            "{:?} is in no copy that could be opened, and copy {name:?} could not be asked",
            arguments.file
        )));
    }
    if context.json {
        output::json(&json!({ "file": arguments.file, "result": placed }));
    }
    if let PlacedWal::Placed(_) = &placed {
        start_fetching(context, cluster, ahead.as_ref(), &arguments.file);
    }
    Ok(match placed {
        PlacedWal::Placed(_) => exit::DONE,
        PlacedWal::Absent(_) => exit::WAL_ABSENT,
    })
}

fn renewal_is_due(file: &str, options: &wal::PlaceOptions) -> bool {
    let number = postgres::WalFile::parse(file, options.wal_segment_size).and_then(|file| file.number());
    number.is_some_and(|number| number % RENEWED_EVERY_SEGMENTS == 0)
}

/// Now and then a recovery that goes on for long renews what its restore left: for another day `expire` keeps its backup and
/// the WAL behind it. That it cannot (a copy that is only read) is no reason to stop recovery.
fn keep_for_recovery(
    data_directory: &Path,
    file: &str,
    options: &wal::PlaceOptions,
    clusters: &[repository::ClusterRepository],
    now: jiff::Timestamp,
) {
    if !renewal_is_due(file, options) {
        return;
    }
    let Ok(Some(marker)) = restore::read_marker(data_directory) else {
        return;
    };
    let Ok(id) = marker.backup.parse() else { return };
    for cluster in clusters {
        let lease = cluster
            .backup(id)
            .and_then(|backup| cluster.take_lease(&backup, "recovery", &host_name(), now));
        if let Ok(lease) = lease {
            let _ = lease.release(now, now.checked_add(super::restore::RECOVERY_LEASE).ok());
        }
    }
}

/// The file is placed: whatever goes wrong from here on is no reason to say otherwise.
fn start_fetching(context: &Context, cluster: &Cluster, ahead: Option<&Prefetch>, file: &str) {
    if let Some(Err(error)) = ahead.map(|ahead| ahead.start(context, cluster, file)) {
        output::notice("warning: what recovery will ask for cannot be fetched ahead");
        exit::print_error(&error);
    }
}

/// What the archive of the cluster's own system says.
fn open_archive(
    configuration: &crate::config::Configuration,
    cluster: &Cluster,
) -> Result<(archive::System, history::Archive)> {
    account::become_owner(configuration, cluster)?;
    let copies = Copies::open_any(configuration, cluster, None)?;
    let backups = archive::backups(&copies)?;
    let control = archive::control_file(cluster);
    let system =
        archive::system(control.as_ref(), &backups).ok_or_else(|| archive::unknown_system(cluster))?;
    let archive = archive::open(&copies, system)?;
    Ok((system, archive))
}

pub fn status(context: &Context, arguments: &cli::OfCluster) -> Result<u8> {
    let configuration = context.configuration()?;
    let cluster = configuration.cluster(arguments.cluster.as_deref())?;
    let (system, archive) = open_archive(&configuration, cluster)?;
    let size = system.wal_segment_size;
    let mut values = Vec::new();
    let mut rows = Vec::new();
    for timeline in archive.archived_timelines() {
        let end = archive.end(timeline)?;
        for run in archive.runs(timeline) {
            let name = |number| postgres::segment_name(timeline, number, size);
            values.push(json!({
                "timeline": timeline, "first": name(run.first), "last": name(run.last),
                "segments": run.last - run.first + 1,
            }));
            rows.push(vec![
                timeline.to_string(),
                name(run.first),
                name(run.last),
                (run.last - run.first + 1).to_string(),
                end.as_ref()
                    .filter(|end| end.segment == run.last)
                    .map_or(String::new(), |end| {
                        let commit = end
                            .last_commit
                            .as_ref()
                            .map(|commit| format!(", last commit {}", commit.time));
                        format!("{}{}", end.lsn, commit.unwrap_or_default())
                    }),
            ]);
        }
    }
    if context.json {
        output::json(&json!({
            "cluster": cluster.name, "system_identifier": system.identifier, "wal_segment_size": size,
            "runs": values, "gaps": archive.gaps(),
        }));
    } else if rows.is_empty() {
        output::line(format!("No WAL of cluster {} is archived yet.", cluster.name));
    } else {
        output::table(&["TIMELINE", "FIRST", "LAST", "SEGMENTS", "ENDS AT"], &rows);
    }
    Ok(exit::DONE)
}

pub fn gaps(context: &Context, arguments: &cli::OfCluster) -> Result<u8> {
    let configuration = context.configuration()?;
    let cluster = configuration.cluster(arguments.cluster.as_deref())?;
    let (system, archive) = open_archive(&configuration, cluster)?;
    let gaps = archive.gaps();
    let name = |timeline, number| postgres::segment_name(timeline, number, system.wal_segment_size);
    if context.json {
        let values: Vec<_> = gaps
            .iter()
            .map(|gap| {
                json!({
                    "timeline": gap.timeline, "from": gap.from, "to": gap.to,
                    "first_missing": name(gap.timeline, gap.first_missing),
                    "last_missing": name(gap.timeline, gap.last_missing),
                    "segments": gap.last_missing - gap.first_missing + 1,
                })
            })
            .collect();
        output::json(&json!({ "cluster": cluster.name, "gaps": values }));
    } else if gaps.is_empty() {
        output::line(format!(
            "No WAL of cluster {} is missing between archived segments.",
            cluster.name
        ));
    } else {
        let rows: Vec<Vec<String>> = gaps
            .iter()
            .map(|gap| {
                vec![
                    gap.timeline.to_string(),
                    name(gap.timeline, gap.first_missing),
                    name(gap.timeline, gap.last_missing),
                    gap.from.to_string(),
                    gap.to.to_string(),
                ]
            })
            .collect();
        output::table(
            &["TIMELINE", "FIRST MISSING", "LAST MISSING", "FROM", "TO"],
            &rows,
        );
    }
    Ok(if gaps.is_empty() { exit::DONE } else { exit::BAD })
}
