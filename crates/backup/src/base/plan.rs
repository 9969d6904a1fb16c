//! What a base backup will do, decided before anything is touched: a value that `--dry-run` prints.

use std::fmt;
use std::path::{Path, PathBuf};

use cluster::{EntryKind, ServerFacts, Session, Tablespace};
use diagnostic::{Error, Result};
use postgres::{BLOCK_SIZE, ControlFile, Lsn, TimelineHistory, TimelineId};
use repository::{Backup, BackupId, ClusterRepository, PackKind, PackRef};
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
    /// Read every page, also those that no WAL has touched since the parent.
    pub read_all: bool,
    /// The server sends its files itself; `data_directory` is not looked at.
    pub protocol: Option<ProtocolOptions>,
    /// For a standby: how to reach its primary, which is asked to switch its WAL segment at the end.
    pub primary: Option<Connection>,
}

/// What a backup over the replication protocol needs besides.
#[derive(Debug, Clone)]
pub struct ProtocolOptions {
    /// `None`: streamed alongside where the server does not archive.
    pub wal: Option<WalSource>,
    /// Where a temporary file may lie.
    pub spill_folder: PathBuf,
    /// Names this host in a claim on a timeline, should WAL be streamed.
    pub host_id: String,
}

/// A connection string, which may hold a password.
#[derive(Clone)]
pub struct Connection(pub String);

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Connection(..)")
    }
}

/// How the server's files are reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// They are read where they lie.
    Files,
    /// The server sends them.
    Protocol,
}

/// How the WAL of the backup reaches the repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum WalSource {
    /// The server's archiver (a standby's primary's) brings it.
    Archived,
    /// It is streamed over a second replication connection while the backup runs.
    Streamed,
}

/// Which pages of relations are read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reading {
    /// All of them.
    Everything { why: String },
    /// Those that the WAL since the parent's start names, and a share of the others, for the audit.
    Changed { since: Lsn },
}

impl Reading {
    /// `parent` is the backup that was chosen, `timeline` the server's.
    fn of(parent: Option<&Backup>, timeline: TimelineId, read_all: bool) -> Reading {
        let why = match parent {
            _ if read_all => "it was asked for",
            None => "there is no parent",
            Some(parent) if parent.timeline != timeline => "the server has moved to another timeline since",
            Some(parent) => {
                let since = parent.start_lsn.min(parent.redo_lsn);
                return Reading::Changed { since };
            }
        };
        Reading::Everything { why: why.into() }
    }
}

impl fmt::Display for Reading {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reading::Everything { why } => write!(f, "every page: {why}"),
            Reading::Changed { since } => write!(f, "what the WAL since {since} says has changed"),
        }
    }
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
    pub method: Method,
    pub wal: WalSource,
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
    /// Should the WAL turn out not to tell, everything is read.
    pub reading: Reading,
    pub retiring_packs: Vec<RetiringPack>,
    /// Interrupted runs whose packs are used again.
    pub unfinished_runs: Vec<BackupId>,
    pub tablespaces: Vec<Tablespace>,
    /// Configuration files outside the data directory, kept under `@config/`.
    pub captured_configuration: Vec<PathBuf>,
    /// Configuration files outside the data directory that the server does not send.
    pub missing_configuration: Vec<PathBuf>,
    /// What is left out although PostgreSQL's rule does not name it.
    pub skipped: Vec<String>,
    pub warnings: Vec<String>,
    /// The steps of the server's timeline: (parent timeline, where it was left).
    #[serde(skip)]
    pub(super) history: TimelineHistory,
    #[serde(skip)]
    pub(super) protocol: Option<ProtocolOptions>,
    #[serde(skip)]
    pub(super) primary: Option<Connection>,
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
    if let Some(protocol) = &options.protocol {
        return super::plan_protocol::plan(conninfo, repository, options, protocol, now);
    }
    let mut session = Session::connect(conninfo)?;
    let server = cluster::gather(&mut session)?;
    let data_directory = options
        .data_directory
        .clone()
        .unwrap_or_else(|| server.data_directory.clone());
    let control = same_cluster(&mut session, &server, &data_directory)?;
    check_supported(control.block_size, control.relation_segment_size)?;
    check_archiving(&server)?;
    check_standby(server.in_recovery, control.full_page_writes)?;

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
        shape: parent::Shape::of(&control),
        history: &history,
        lsn: server.insert_lsn,
    };
    let choice = parent::choose(repository, &current, options.full)?;
    let captured = cluster::captured_configuration(&server, &mut session)?;
    let retiring_packs = retiring(&choice);
    Ok(Plan {
        planned_at: now,
        method: Method::Files,
        wal: WalSource::Archived,
        protocol: None,
        primary: options.primary.clone(),
        cluster: repository.name().to_owned(),
        repository: repository.repository().store().url(),
        files,
        directories,
        bytes,
        reading: Reading::of(
            choice.parent.as_ref().map(|(backup, _)| backup),
            server.timeline,
            options.read_all,
        ),
        parent: choice.parent.map(|(backup, _)| backup.backup),
        parent_reason: choice.reason,
        retiring_packs,
        unfinished_runs: unfinished(repository)?,
        tablespaces: server.tablespaces.clone(),
        captured_configuration: captured.into_iter().map(|file| file.original).collect(),
        missing_configuration: Vec::new(),
        skipped: listing
            .skipped
            .iter()
            .map(|skipped| format!("{}: {}", skipped.path.escape_ascii(), skipped.reason))
            .collect(),
        warnings: [
            choice.warnings,
            warnings(
                &server,
                control.data_checksum_version,
                WalSource::Archived,
                &options.primary,
            ),
        ]
        .concat(),
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

/// The parent's packs of which so little is used that they are stored again.
pub(super) fn retiring(choice: &parent::Choice) -> Vec<RetiringPack> {
    let packs = choice
        .parent
        .iter()
        .flat_map(|(_, table)| table)
        .filter(|pack| pack.kind == PackKind::Rows && pack.mostly_dead());
    packs
        .map(|pack| RetiringPack {
            pack: pack.pack,
            size_bytes: pack.size,
            blocks: pack.items,
            blocks_in_use: pack.live,
        })
        .collect()
}

pub(super) fn unfinished(repository: &ClusterRepository) -> Result<Vec<BackupId>> {
    Ok(repository
        .unfinished_runs()?
        .into_iter()
        .map(|run| run.run)
        .collect())
}

pub(super) fn check_supported(block_size: u32, relation_segment_size: u32) -> Result<()> {
    if block_size as usize == BLOCK_SIZE && relation_segment_size != 0 {
        return Ok(());
    }
    Err(Error::new(
        "geometry-unsupported",
        "this build of PostgreSQL is not supported",
    )
    .detail(format!(
        "Its blocks have {block_size} bytes; pgproof backs up clusters with 8192."
    )))
}

pub(super) fn check_archiving(server: &ServerFacts) -> Result<()> {
    if server.archive_mode != "off" {
        return Ok(());
    }
    Err(Error::new("archiving-off", "the server does not archive its WAL")
        .detail("archive_mode is off. Without the WAL written during the backup, the backup cannot be restored.")
        .hint("Run `pgproof init --apply`, or set archive_mode = on and archive_command = 'pgproof wal push %p', and restart the server."))
}

/// Hard rule 6.
pub(super) fn check_standby(in_recovery: bool, full_page_writes: bool) -> Result<()> {
    if !in_recovery || full_page_writes {
        return Ok(());
    }
    Err(Error::new(
        "standby-without-full-page-writes",
        "this standby's primary runs without full_page_writes",
    )
    .detail("A backup of a standby cannot mend pages that were being written while they were read.")
    .hint("Set full_page_writes = on on the primary, run CHECKPOINT there, and try again."))
}

pub(super) fn warnings(
    server: &ServerFacts,
    data_checksum_version: u32,
    wal: WalSource,
    primary: &Option<Connection>,
) -> Vec<String> {
    let mut warnings = Vec::new();
    if data_checksum_version == 0 {
        warnings.push(
            "data checksums are off: damage on the server's disk cannot be seen (pg_checksums --enable)"
                .into(),
        );
    }
    let commandless = server.archive_command.trim().is_empty() || server.archive_command == "(disabled)";
    let silent = commandless && server.archive_library.as_deref().unwrap_or_default().is_empty();
    if silent && !server.in_recovery && wal == WalSource::Archived {
        warnings.push(
            "archive_command is empty: the backup will wait for its WAL until somebody pushes it".into(),
        );
    }
    if server.in_recovery && wal == WalSource::Archived {
        warnings.push(
            "this is a standby: its primary must archive the WAL of the backup into the same repository"
                .into(),
        );
    }
    if server.in_recovery && primary.is_none() {
        warnings.push(
            "primary_connection is not set: the backup waits until its primary switches its WAL segment by itself \
             (archive_timeout)"
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
        match self.method {
            Method::Files => {
                writeln!(f, "  data directory  {}", self.data_directory.display())?;
                writeln!(
                    f,
                    "  to read         {} files in {} directories, {} bytes",
                    self.files, self.directories, self.bytes
                )?;
            }
            Method::Protocol => {
                writeln!(
                    f,
                    "  data directory  {}, sent by the server over the replication protocol",
                    self.data_directory.display()
                )?;
                writeln!(f, "  to read         about {} bytes", self.bytes)?;
            }
        }
        match self.wal {
            WalSource::Archived => writeln!(f, "  WAL             brought by the archiver")?,
            WalSource::Streamed => writeln!(f, "  WAL             streamed while the backup runs")?,
        }
        match &self.parent {
            Some(parent) => writeln!(f, "  parent          {parent}: {}", self.parent_reason)?,
            None => writeln!(
                f,
                "  parent          none, every page is stored: {}",
                self.parent_reason
            )?,
        }
        if self.parent.is_some() {
            writeln!(f, "  reading         {}", self.reading)?;
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
        for path in &self.missing_configuration {
            writeln!(
                f,
                "  not captured    {} (a restore generates its own)",
                path.display()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_blocks_of_8_kibibytes_are_backed_up() {
        assert!(check_supported(8192, 131_072).is_ok());
        // --with-segsize and --with-segsize-blocks: every number of blocks is recorded and reckoned with.
        assert!(check_supported(8192, 6).is_ok());
        for (block_size, segment_blocks) in [(4096, 262_144), (16_384, 65_536), (32_768, 32_768), (8192, 0)] {
            let error = check_supported(block_size, segment_blocks).unwrap_err();
            assert_eq!(error.code(), "geometry-unsupported", "{block_size}");
        }
    }

    #[test]
    fn a_standby_is_a_source_only_where_its_primary_writes_full_pages() {
        for (in_recovery, full_page_writes) in [(false, true), (false, false), (true, true)] {
            assert!(check_standby(in_recovery, full_page_writes).is_ok());
        }
        let error = check_standby(true, false).unwrap_err();
        assert_eq!(error.code(), "standby-without-full-page-writes");
    }
}
