//! What a base backup will do, decided before anything is touched: a value that `--dry-run` prints.

use std::fmt;
use std::path::{Path, PathBuf};

use cluster::{EntryKind, ServerFacts, Session, Tablespace};
use diagnostic::{Error, Result};
use postgres::{BLOCK_SIZE, ControlFile, TimelineHistory};
use repository::{BackupId, ClusterRepository, PackKind, PackRef};
use serde::Serialize;

use super::parent;
use crate::history_file::read_history;

/// What the caller wants of a plan.
#[derive(Debug, Clone, Default)]
pub struct PlanOptions {
    /// The data directory as this host sees it; `None`: where the server says it is.
    pub data_directory: Option<PathBuf>,
    /// Take no parent: every page is stored again.
    pub full: bool,
}

/// An old pack of which so little is still used that its live pages are stored again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RetiringPack {
    pub pack: PackRef,
    pub size_bytes: u64,
    pub blocks: u64,
    pub blocks_in_use: u64,
}

/// A base backup that has not been made yet.
#[derive(Debug, Clone, Serialize)]
pub struct Plan {
    pub planned_at: jiff::Timestamp,
    pub cluster: String,
    /// Where it goes.
    pub repository: String,
    pub data_directory: PathBuf,
    pub server: ServerFacts,
    /// Files to read, without `pg_control` and what the stop call gives.
    pub files: u64,
    pub directories: u64,
    pub bytes: u64,
    /// The backup whose unchanged pages are referenced.
    pub parent: Option<BackupId>,
    /// Why this parent, or why none.
    pub parent_reason: String,
    pub retiring_packs: Vec<RetiringPack>,
    /// Interrupted runs whose packs are used again.
    pub unfinished_runs: Vec<BackupId>,
    pub tablespaces: Vec<Tablespace>,
    /// Configuration files outside the data directory, kept under `@config/`.
    pub captured_configuration: Vec<PathBuf>,
    /// What is left out although PostgreSQL's rule does not name it.
    pub skipped: Vec<String>,
    pub warnings: Vec<String>,
    /// The steps of the server's timeline: (parent timeline, where it was left).
    #[serde(skip)]
    pub(super) history: TimelineHistory,
}

/// Gathers the facts and decides. Touches nothing.
///
/// Errors: `archiving-off`, `data-directory-mismatch`, `geometry-unsupported`, `backup-of-restored-directory`,
/// `standby-without-full-page-writes`, and those of the session, the files and the store.
pub fn plan(
    conninfo: &str,
    repository: &ClusterRepository,
    options: &PlanOptions,
    now: jiff::Timestamp,
) -> Result<Plan> {
    let mut session = Session::connect(conninfo)?;
    let server = cluster::gather(&mut session)?;
    let data_directory = options
        .data_directory
        .clone()
        .unwrap_or_else(|| server.data_directory.clone());
    let control = same_cluster(&mut session, &server, &data_directory)?;
    check_supported(&server, &control)?;

    let listing = cluster::list_reporting(&data_directory, &server.tablespaces, server.major)?;
    let mut files = 0;
    let mut directories = 0;
    let mut bytes = 0;
    for entry in &listing.entries {
        match entry.kind {
            EntryKind::File { size } => {
                files += 1;
                bytes += size;
            }
            EntryKind::Directory => directories += 1,
            EntryKind::Symlink { .. } => {}
        }
    }

    let history = read_history(
        &data_directory,
        repository,
        server.system_identifier,
        server.timeline,
    )?;
    let current = parent::Current {
        control: &control,
        history: &history,
        lsn: server.insert_lsn,
    };
    let choice = parent::choose(repository, &current, options.full)?;
    let retiring_packs = choice
        .parent
        .iter()
        .flat_map(|(_, table)| table)
        .filter(|pack| pack.kind == PackKind::Rows && pack.mostly_dead());
    let retiring_packs = retiring_packs
        .map(|pack| RetiringPack {
            pack: pack.pack,
            size_bytes: pack.size,
            blocks: pack.items,
            blocks_in_use: pack.live,
        })
        .collect();
    let captured = cluster::captured_configuration(&server, &mut session)?;
    Ok(Plan {
        planned_at: now,
        cluster: repository.name().to_owned(),
        repository: repository.repository().store().url(),
        files,
        directories,
        bytes,
        parent: choice.parent.map(|(backup, _)| backup.backup),
        parent_reason: choice.reason,
        retiring_packs,
        unfinished_runs: repository
            .unfinished_runs()?
            .into_iter()
            .map(|run| run.run)
            .collect(),
        tablespaces: server.tablespaces.clone(),
        captured_configuration: captured.into_iter().map(|file| file.original).collect(),
        skipped: listing
            .skipped
            .iter()
            .map(|skipped| format!("{}: {}", skipped.path.escape_ascii(), skipped.reason))
            .collect(),
        warnings: [choice.warnings, warnings(&server, &control)].concat(),
        history,
        data_directory,
        server,
    })
}

/// The directory at hand is the one that the server at the other end of the session runs in.
///
/// The system identifier alone does not tell a server from its standby on the same host, so the start of the
/// postmaster is compared too (`postmaster.pid`, third line; `miscinit.c`).
fn same_cluster(session: &mut Session, server: &ServerFacts, data_directory: &Path) -> Result<ControlFile> {
    let mismatch = |detail: String| {
        Error::new(
            "data-directory-mismatch",
            format!(
                "\"{}\" is not this server's data directory",
                data_directory.display()
            ),
        )
        .detail(detail)
        .hint("Set data_directory and connection of the cluster so that both name the same server.")
    };
    let (_, control) = cluster::read_control_file(data_directory)?;
    if control.system_identifier != server.system_identifier {
        return Err(mismatch(format!(
            "The directory's system identifier is {}, the server's is {}.",
            control.system_identifier, server.system_identifier
        )));
    }
    if data_directory.join(crate::RESTORED_MARKER).exists() {
        return Err(Error::new(
            "backup-of-restored-directory",
            format!("\"{}\" was restored and is not adopted", data_directory.display()),
        )
        .detail("A backup of it would stand among those of the cluster that it is a copy of.")
        .hint("To make it production, run `pgproof restore --adopt`."));
    }
    let path = data_directory.join("postmaster.pid");
    let content = std::fs::read_to_string(&path).map_err(|error| {
        Error::io(
            "file-read",
            format!("cannot read file \"{}\"", path.display()),
            &error,
        )
    })?;
    let started: Option<i64> = content.lines().nth(2).and_then(|line| line.trim().parse().ok());
    let answer = session.one("select extract(epoch from pg_catalog.pg_postmaster_start_time())::bigint")?;
    let told: Option<i64> = answer
        .into_iter()
        .next()
        .flatten()
        .and_then(|text| text.parse().ok());
    match (started, told) {
        (Some(started), Some(told)) if started.abs_diff(told) <= 10 => Ok(control),
        (Some(started), Some(told)) => Err(mismatch(format!(
            "The server in the directory was started at {}, the one that the connection reaches at {}.",
            unix_time(started),
            unix_time(told)
        ))),
        _ => Err(mismatch(format!(
            "\"{}\" does not say when the server was started.",
            path.display()
        ))),
    }
}

fn unix_time(seconds: i64) -> String {
    jiff::Timestamp::from_second(seconds).map_or_else(|_| seconds.to_string(), |time| time.to_string())
}

fn check_supported(server: &ServerFacts, control: &ControlFile) -> Result<()> {
    if control.block_size as usize != BLOCK_SIZE || control.relation_segment_size == 0 {
        return Err(Error::new(
            "geometry-unsupported",
            "this build of PostgreSQL is not supported",
        )
        .detail(format!(
            "Its blocks have {} bytes; pgproof backs up clusters with 8192.",
            control.block_size
        )));
    }
    if server.archive_mode == "off" {
        return Err(Error::new("archiving-off", "the server does not archive its WAL")
            .detail("archive_mode is off. Without the WAL written during the backup, the backup cannot be restored.")
            .hint("Run `pgproof init --apply`, or set archive_mode = on and archive_command = 'pgproof wal push %p', and restart the server."));
    }
    if server.in_recovery && !control.full_page_writes {
        return Err(Error::new(
            "standby-without-full-page-writes",
            "this standby's primary runs without full_page_writes",
        )
        .detail("A backup of a standby cannot mend pages that were being written while they were read.")
        .hint("Set full_page_writes = on on the primary, run CHECKPOINT there, and try again."));
    }
    Ok(())
}

fn warnings(server: &ServerFacts, control: &ControlFile) -> Vec<String> {
    let mut warnings = Vec::new();
    if control.data_checksum_version == 0 {
        warnings.push(
            "data checksums are off: damage on the server's disk cannot be seen (pg_checksums --enable)"
                .into(),
        );
    }
    let commandless = server.archive_command.trim().is_empty() || server.archive_command == "(disabled)";
    if commandless && server.archive_library.as_deref().unwrap_or_default().is_empty() {
        warnings.push(
            "archive_command is empty: the backup will wait for its WAL until somebody pushes it".into(),
        );
    }
    if server.in_recovery {
        warnings.push(
            "this is a standby: its primary must archive the WAL of the backup into the same repository"
                .into(),
        );
    }
    warnings
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "Base backup of cluster \"{}\" into {}",
            self.cluster, self.repository
        )?;
        writeln!(
            f,
            "  server          PostgreSQL {}, system identifier {}, timeline {}{}",
            self.server.version,
            self.server.system_identifier,
            self.server.timeline,
            if self.server.in_recovery {
                ", a standby"
            } else {
                ""
            }
        )?;
        writeln!(f, "  data directory  {}", self.data_directory.display())?;
        writeln!(
            f,
            "  to read         {} files in {} directories, {} bytes",
            self.files, self.directories, self.bytes
        )?;
        match &self.parent {
            Some(parent) => writeln!(f, "  parent          {parent}: {}", self.parent_reason)?,
            None => writeln!(
                f,
                "  parent          none, every page is stored: {}",
                self.parent_reason
            )?,
        }
        for run in &self.unfinished_runs {
            writeln!(f, "  interrupted     {run}: what it stored is used again")?;
        }
        for pack in &self.retiring_packs {
            writeln!(
                f,
                "  retiring        pack {}/{:08}: {} of {} blocks are in use and are stored again",
                pack.pack.run, pack.pack.number, pack.blocks_in_use, pack.blocks
            )?;
        }
        for tablespace in &self.tablespaces {
            writeln!(
                f,
                "  tablespace      {} ({}): {}",
                tablespace.name,
                tablespace.oid,
                if tablespace.in_place {
                    "in place".into()
                } else {
                    tablespace.location.display().to_string()
                }
            )?;
        }
        for path in &self.captured_configuration {
            writeln!(f, "  configuration   {}", path.display())?;
        }
        for skipped in &self.skipped {
            writeln!(f, "  left out        {skipped}")?;
        }
        for warning in &self.warnings {
            writeln!(f, "  warning         {warning}")?;
        }
        Ok(())
    }
}
