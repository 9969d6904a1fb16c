//! Carrying a plan out: a flat list of steps. Nothing is decided here.
//!
//! Order, and what an interruption leaves: (1) everything that can fail without touching anything is tried;
//! (2) what exists is kept aside, under a journal; (3) the marker is written, then files, settings, signal;
//! (4) one sync; (5) the marker says complete, and `pg_control` is put in place by renaming. Until (5) the
//! directory cannot start, and the same restore can be run again; what was kept aside stays where it is in
//! every case.

use std::path::{Path, PathBuf};

use diagnostic::{Error, Result};
use postgres::{ControlFile, Lsn, TimelineId, tablespace_map};
use repository::{BlockReader, ClusterRepository, FileEntry, TreeReader};
use serde::{Deserialize, Serialize};

use crate::aside;
use crate::delta::{self, DeltaCounts, Pass};
use crate::destination::{DestinationState, inspect};
use crate::files::{make_folder, write_files};
use crate::marker::{JOURNAL_NAME, Marker, Phase};
use crate::plan::{KeptAside, Plan};
use crate::progress::{Progress, Step};
use crate::settings::{REFERENCE_FOLDER, auto_conf};
use crate::sync::{SyncPoint, sync_directory, write_durably, write_error};

/// How to go about it.
pub struct ExecuteOptions<'a> {
    /// Threads that read and write; 0 counts as 1.
    pub threads: usize,
    pub progress: &'a dyn Progress,
}

/// What was done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoreResult {
    pub data_directory: PathBuf,
    pub backup: String,
    /// The first stop's target, in words.
    pub target: String,
    /// Where recovery will stop, and on which timeline.
    pub stop_lsn: Lsn,
    pub timeline: TimelineId,
    pub files: u64,
    pub bytes: u64,
    pub kept_aside: Vec<KeptAside>,
    /// What a delta restore compared, wrote and removed.
    pub delta: Option<DeltaCounts>,
    /// Commands that put everything back as it was before.
    pub undo: Vec<String>,
}

/// A file of no more bytes may be read into memory as a whole.
const LATE_BYTES_MAX: u64 = 1 << 20;
const CONTROL: &str = "global/pg_control";
/// Directories without which a server does not start; the backup has them, empty.
const FOLDERS: [&str; 5] = [
    "global",
    "pg_wal",
    "pg_wal/archive_status",
    "pg_tblspc",
    "pg_replslot",
];

/// Restores. Errors: `destination-changed`, `restore-write`, `restore-stopped`, `aside-rename`, `object-damaged`
/// and those of the store; each says how to go on and how to go back.
pub fn execute(
    plan: &Plan,
    cluster: &ClusterRepository,
    options: &ExecuteOptions<'_>,
) -> Result<RestoreResult> {
    let stop = plan
        .stops
        .first()
        .ok_or_else(|| Error::new("plan-empty", "the plan has no stop"))?;
    let lock = plan
        .destination
        .is_dir()
        .then(|| lock(&plan.destination))
        .transpose()?;
    unchanged(plan)?;
    let backup = cluster.backup(plan.backup)?;
    let tree = TreeReader::open(cluster, &backup)?;
    let late = Late::read(plan, cluster, &tree)?;

    options.progress.step(Step::KeepAside, plan.bytes, plan.files);
    match &plan.delta {
        Some(wanted) => {
            let journal = marker(plan, Phase::Delta).text()?;
            delta::begin(plan, wanted, &journal).map_err(|error| with_way_on(error, plan))?;
        }
        None => keep_aside(plan).map_err(|error| with_way_on(error, plan))?,
    }
    // Of the directory that was renamed, perhaps; the new one is locked before anything is written.
    drop(lock);
    let outcome = fill(plan, cluster, &tree, late, options);
    let (written, delta) = outcome.map_err(|error| with_way_back(error, plan))?;
    Ok(RestoreResult {
        data_directory: plan.destination.clone(),
        backup: plan.backup.to_string(),
        target: stop.target.target.to_string(),
        stop_lsn: stop.target.stop,
        timeline: plan.timeline,
        files: written.files,
        bytes: written.bytes,
        kept_aside: plan
            .kept_aside
            .iter()
            .chain(&plan.kept_earlier)
            .cloned()
            .collect(),
        delta,
        undo: undo(plan),
    })
}

/// Two restores never write into one directory.
fn lock(directory: &Path) -> Result<std::fs::File> {
    let folder = std::fs::File::open(directory).map_err(|error| write_error(directory, &error))?;
    match rustix::fs::flock(&folder, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(folder),
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let message = format!("another restore into \"{}\" is running", directory.display());
            Err(Error::new("destination-busy", message)
                .hint("Wait for it, or stop it, then run the same command again."))
        }
        // A file system without locks: do without.
        Err(_) => Ok(folder),
    }
}

/// The destination is as the plan found it.
fn unchanged(plan: &Plan) -> Result<()> {
    let now = inspect(&plan.destination)?;
    if let Some(pid) = now.live_pid {
        return Err(Error::new(
            "destination-live",
            format!("a server is running on \"{}\"", plan.destination.display()),
        )
        .detail(format!("Its postmaster is process {pid}."))
        .hint("Stop it, then run the same command again."));
    }
    if now.state == plan.found && now.mount_point == plan.mount_point {
        return Ok(());
    }
    Err(Error::new(
        "destination-changed",
        format!(
            "\"{}\" changed since the plan was made",
            plan.destination.display()
        ),
    )
    .detail("Nothing was touched.")
    .hint("Run the same command again: it plans anew."))
}

/// The files that are written last.
struct Late {
    control: Vec<u8>,
    control_mode: u32,
    /// Name, mode, content.
    others: Vec<(String, u32, Vec<u8>)>,
}

impl Late {
    fn read(plan: &Plan, cluster: &ClusterRepository, tree: &TreeReader) -> Result<Late> {
        let mut reader = BlockReader::new(cluster)?;
        let mut read = |entry: &FileEntry| reader.read_file(tree, entry, LATE_BYTES_MAX);
        let mut control = None;
        let mut others = Vec::new();
        for entry in tree.late()? {
            let content = read(&entry)?;
            match entry.path.as_bytes() {
                b"global/pg_control" => control = Some((content, entry.mode)),
                b"tablespace_map" => {
                    others.push(("tablespace_map".to_owned(), entry.mode, remap(plan, &content)?))
                }
                b"backup_label" => others.push(("backup_label".to_owned(), entry.mode, content)),
                _ => {}
            }
        }
        let damaged = |what: &str| Error::new("object-damaged", format!("backup {} {what}", plan.backup));
        let (control, control_mode) = control.ok_or_else(|| damaged("holds no global/pg_control"))?;
        let parsed = ControlFile::parse(&control)?;
        if parsed.system_identifier != plan.system_identifier {
            return Err(damaged("holds the pg_control of another cluster"));
        }
        if !others.iter().any(|(name, ..)| name == "backup_label") {
            return Err(damaged("holds no backup_label"));
        }
        Ok(Late {
            control,
            control_mode,
            others,
        })
    }
}

/// `tablespace_map` with the new locations. It must name every tablespace that the plan knows.
fn remap(plan: &Plan, content: &[u8]) -> Result<Vec<u8>> {
    use std::os::unix::ffi::OsStrExt;
    let mut entries = Vec::new();
    for (oid, _) in tablespace_map::parse(content)? {
        let tablespace = plan.tablespaces.iter().find(|tablespace| tablespace.oid == oid);
        match tablespace.and_then(|tablespace| tablespace.location.as_ref()) {
            Some(location) => entries.push((oid, location.as_os_str().as_bytes())),
            None => {
                return Err(Error::new(
                    "tablespace-unplanned",
                    format!(
                        "the backup's tablespace_map names tablespace {oid}, which its record does not name"
                    ),
                ));
            }
        }
    }
    Ok(tablespace_map::format(&entries))
}

fn keep_aside(plan: &Plan) -> Result<()> {
    let destination = &plan.destination;
    let journal = marker(plan, Phase::KeepingAside);
    let going_on = matches!(plan.found, DestinationState::HalfKeptAside(_));
    let has_contents = plan
        .kept_aside
        .iter()
        .any(|kept| !matches!(kept, KeptAside::Rename { .. }));
    if has_contents && !going_on && destination.is_dir() && plan.mount_point {
        journal.write(destination, plan.owner)?;
    }
    let mut aside = destination.clone();
    for kept in &plan.kept_aside {
        match kept {
            KeptAside::Rename { to, .. } => {
                aside.clone_from(to);
                if !going_on {
                    aside::keep(kept, &[])?;
                    make_destination(plan)?;
                    if has_contents {
                        journal.write(destination, plan.owner)?;
                    }
                }
            }
            KeptAside::Contents { to, .. } => {
                aside.clone_from(to);
                aside::keep(kept, &[JOURNAL_NAME])?;
            }
            KeptAside::Wal { .. } => {}
            KeptAside::Tablespace { .. } => {
                aside::keep(kept, &[])?;
                aside::relink(&aside, kept)?;
            }
        }
    }
    Ok(())
}

/// Everything from the marker to `pg_control`.
fn fill(
    plan: &Plan,
    cluster: &ClusterRepository,
    tree: &TreeReader,
    late: Late,
    options: &ExecuteOptions<'_>,
) -> Result<(crate::files::Written, Option<DeltaCounts>)> {
    let destination = &plan.destination;
    make_destination(plan)?;
    let _lock = lock(destination)?;
    if let (DestinationState::HalfRestored(earlier), None) = (&plan.found, &plan.delta) {
        clear(plan, earlier)?;
    }
    marker(plan, Phase::Writing).write(destination, plan.owner)?;
    remove_journal(destination)?;
    let mut roots = vec![destination.clone()];
    for tablespace in plan
        .tablespaces
        .iter()
        .filter_map(|tablespace| tablespace.location.as_ref())
    {
        make_with_parents(tablespace, plan.owner)?;
        roots.push(tablespace.clone());
    }
    for directory in &plan.directories {
        make_with_parents(directory, plan.owner)?;
        roots.push(directory.clone());
    }
    let sync = SyncPoint::open(roots)?;

    let (written, counts) = match &plan.delta {
        Some(wanted) => {
            options.progress.step(Step::Compare, plan.bytes, plan.files);
            let removed = delta::prune(plan, wanted, tree, Pass::Change)?;
            let threads = options.threads;
            let mut counts =
                crate::delta_files::pass(plan, cluster, tree, threads, options.progress, Pass::Change)?;
            counts.removed = removed;
            let (files, bytes) = (counts.files, counts.bytes);
            (crate::files::Written { files, bytes }, Some(counts))
        }
        None => {
            options.progress.step(Step::Write, plan.bytes, plan.files);
            let threads = options.threads;
            (write_files(plan, cluster, tree, threads, options.progress)?, None)
        }
    };
    write_settings(plan)?;
    for segment in &plan.wal_carried {
        carry(plan, segment)?;
    }
    for (name, mode, content) in &late.others {
        write_durably(&destination.join(name), content, *mode, plan.owner)?;
    }

    options.progress.step(Step::Sync, plan.bytes, plan.files);
    sync.finish()?;
    options.progress.step(Step::Finish, plan.bytes, plan.files);
    marker(plan, Phase::Complete).write(destination, plan.owner)?;
    write_durably(
        &destination.join(CONTROL),
        &late.control,
        late.control_mode,
        plan.owner,
    )?;
    if plan.delta.is_some() {
        delta::end(plan)?;
    }
    // The names of the data directory and of what was kept aside.
    destination.parent().map_or(Ok(()), sync_directory)?;
    let late_bytes = late
        .others
        .iter()
        .map(|(_, _, content)| content.len())
        .sum::<usize>()
        + late.control.len();
    let written = crate::files::Written {
        files: written.files + late.others.len() as u64 + 1,
        bytes: written.bytes + late_bytes as u64,
    };
    Ok((written, counts))
}

/// Copies a segment into `pg_wal`. Not a link: the server recycles its segments by writing over them.
fn carry(plan: &Plan, from: &Path) -> Result<()> {
    let to = plan
        .destination
        .join("pg_wal")
        .join(from.file_name().unwrap_or_default());
    std::fs::copy(from, &to).map_err(|error| {
        write_error(&to, &error).detail(format!("It was to be a copy of \"{}\".", from.display()))
    })?;
    let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(&to, private).map_err(|error| write_error(&to, &error))?;
    crate::sync::give(&to, plan.owner)
}

fn write_settings(plan: &Plan) -> Result<()> {
    let destination = &plan.destination;
    for folder in FOLDERS {
        make_folder(&destination.join(folder), 0o700, plan.owner)?;
    }
    if major(&plan.postgresql_version) >= 17 {
        make_folder(&destination.join("pg_wal/summaries"), 0o700, plan.owner)?;
    }
    let reference = destination.join(REFERENCE_FOLDER).join("postgresql.auto.conf");
    let production = match std::fs::read(&reference) {
        Ok(text) => String::from_utf8_lossy(&text).into_owned(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(write_error(&reference, &error)),
    };
    if let Some(stop) = plan.stops.first() {
        let text = auto_conf(plan, stop, &production);
        write_durably(
            &destination.join("postgresql.auto.conf"),
            text.as_bytes(),
            0o600,
            plan.owner,
        )?;
    }
    for file in &plan.generated {
        write_durably(
            &destination.join(&file.name),
            file.content.as_bytes(),
            0o600,
            plan.owner,
        )?;
    }
    write_durably(&destination.join("recovery.signal"), b"", 0o600, plan.owner)
}

/// The major version in "15.18 (Debian ...)".
fn major(version: &str) -> u32 {
    let digits: String = version.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().unwrap_or(0)
}

fn marker(plan: &Plan, phase: Phase) -> Marker {
    Marker {
        version: 1,
        phase,
        cluster: plan.cluster.clone(),
        backup: plan.backup.to_string(),
        system_identifier: plan.system_identifier,
        target: plan
            .stops
            .first()
            .map(|stop| stop.target.target.to_string())
            .unwrap_or_default(),
        planned_at: plan.planned_at,
        kept_aside: plan
            .kept_aside
            .iter()
            .chain(&plan.kept_earlier)
            .cloned()
            .collect(),
        outside: plan
            .tablespaces
            .iter()
            .filter_map(|tablespace| Some((tablespace.oid, tablespace.location.clone()?)))
            .collect(),
    }
}

fn make_destination(plan: &Plan) -> Result<()> {
    make_with_parents(&plan.destination, plan.owner)
}

/// Makes a directory for the server alone; those above it that are missing, for everybody to pass.
fn make_with_parents(path: &Path, owner: Option<(u32, u32)>) -> Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    if let Some(parent) = path.parent()
        && !parent.is_dir()
    {
        make_parents(parent)?;
    }
    make_folder(path, 0o700, owner)
}

fn make_parents(path: &Path) -> Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        make_parents(parent)?;
    }
    make_folder(path, 0o755, None)
}

fn remove_journal(destination: &Path) -> Result<()> {
    let path = destination.join(JOURNAL_NAME);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(write_error(&path, &error)),
        _ => Ok(()),
    }
}

/// Removes what an interrupted restore wrote: the marker said that all of it was ours, and there is no
/// `pg_control`.
fn clear(plan: &Plan, earlier: &Marker) -> Result<()> {
    let remove = |path: &Path| -> Result<()> {
        let removed = match std::fs::symlink_metadata(path) {
            Ok(metadata) if metadata.is_dir() => std::fs::remove_dir_all(path),
            Ok(_) => std::fs::remove_file(path),
            Err(error) => Err(error),
        };
        removed.map_err(|error| write_error(path, &error))
    };
    let names = |folder: &Path| -> Result<Vec<PathBuf>> {
        match std::fs::read_dir(folder) {
            Ok(entries) => entries
                .map(|entry| {
                    entry
                        .map(|entry| entry.path())
                        .map_err(|error| write_error(folder, &error))
                })
                .collect(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(write_error(folder, &error)),
        }
    };
    for path in names(&plan.destination)? {
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        // The marker goes last of all: it is replaced by the new one.
        if name != crate::marker::MARKER_NAME && name != "lost+found" && !name.starts_with("pre_pitr_") {
            remove(&path)?;
        }
    }
    for (_, location) in &earlier.outside {
        for path in names(location)? {
            // Only what PostgreSQL keeps in a tablespace, and only where the new restore writes again.
            let ours = path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .starts_with("PG_");
            if ours
                && plan
                    .tablespaces
                    .iter()
                    .any(|tablespace| tablespace.location.as_ref() == Some(location))
            {
                remove(&path)?;
            }
        }
    }
    Ok(())
}

/// Commands that put everything back.
fn undo(plan: &Plan) -> Vec<String> {
    let kept: Vec<&KeptAside> = plan.kept_aside.iter().chain(&plan.kept_earlier).collect();
    let mut commands = Vec::new();
    if plan.delta.is_some() {
        // What was there is overwritten.
        return commands;
    }
    for kept in &kept {
        let (from, to) = kept.paths();
        let (from, to) = (shell(from), shell(to));
        match kept {
            KeptAside::Wal { .. } => {}
            KeptAside::Rename { .. } => {
                commands.push(format!("mv {from} {from}.abandoned && mv {to} {from}"));
            }
            KeptAside::Contents { .. } | KeptAside::Tablespace { .. } => {
                let abandoned = format!("{from}/abandoned");
                commands.push(format!(
                    "mkdir {abandoned} && find {from} -mindepth 1 -maxdepth 1 ! -name abandoned ! -name \
                     'pre_pitr_*' \
                     ! -name lost+found -exec mv -t {abandoned} {{}} + && find {to} -mindepth 1 -maxdepth \
                     1 -exec mv -t \
                     {from} {{}} +"
                ));
            }
        }
        if let KeptAside::Tablespace { oid, .. } = kept {
            let link = shell(&plan.destination.join("pg_tblspc").join(oid.to_string()));
            commands.push(format!("ln -sfn {from} {link}"));
        }
    }
    commands
}

fn shell(path: &Path) -> String {
    format!("'{}'", path.display().to_string().replace('\'', "'\\''"))
}

/// Adds to an error of keeping aside what is where now.
fn with_way_on(error: Error, plan: &Plan) -> Error {
    let mut detail = error
        .detail_text()
        .map(|text| format!("{text}\n"))
        .unwrap_or_default();
    for kept in &plan.kept_aside {
        let (from, to) = kept.paths();
        if std::fs::symlink_metadata(to).is_ok() {
            let (from, to) = (from.display(), to.display());
            detail.push_str(&format!(
                "What was in \"{from}\" is still there, or in \"{to}\".\n"
            ));
        }
    }
    let mut hint = error
        .hint_text()
        .map(|text| format!("{text}\n"))
        .unwrap_or_default();
    hint.push_str(
        "The same command can be run again when the cause is gone: it goes on with the same folders.",
    );
    error.detail(detail.trim_end()).hint(hint)
}

/// Adds to an error what is where now, and the way back.
fn with_way_back(error: Error, plan: &Plan) -> Error {
    let mut detail = error
        .detail_text()
        .map(|text| format!("{text}\n"))
        .unwrap_or_default();
    let state = if plan.destination.join(CONTROL).exists() {
        "is complete, but its last files may not outlive a crash of the machine"
    } else {
        "is half restored and cannot start (it has no pg_control)"
    };
    detail.push_str(&format!("\"{}\" {state}.", plan.destination.display()));
    for kept in plan.kept_aside.iter().chain(&plan.kept_earlier) {
        let (from, to) = kept.paths();
        detail.push_str(&format!(
            "\nWhat was in \"{}\" is whole in \"{}\".",
            from.display(),
            to.display()
        ));
    }
    let mut hint = error
        .hint_text()
        .map(|text| format!("{text}\n"))
        .unwrap_or_default();
    hint.push_str(if plan.delta.is_some() {
        "The same command can be run again when the cause is gone: what is right already is not written again."
    } else {
        "The same command can be run again when the cause is gone: it begins anew."
    });
    let undo = undo(plan);
    if !undo.is_empty() {
        hint.push_str(&format!(
            "\nTo go back to what was there before: `{}`",
            undo.join(" && ")
        ));
    }
    error.detail(detail).hint(hint)
}
