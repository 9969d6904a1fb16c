//! The record of a finished backup, put together from what the run learnt.

use cluster::ServerFacts;
use diagnostic::{Error, Result};
use jiff::Timestamp;
use postgres::{BackupLabel, ControlFile, Lsn, TimelineHistory};
use repository::{
    Backup, BackupTablespace, Collation, ConfigurationFile, ExcusedPage, HistoryStep, RECORD_VERSION,
    RecoverySettings, RequestCounts, RunId, Tree, Unread,
};

use super::Plan;
use super::parent::geometry;

/// What a run knows at its end.
pub(super) struct Finished<'a> {
    pub(super) plan: &'a Plan,
    pub(super) server: &'a ServerFacts,
    pub(super) control: &'a ControlFile,
    pub(super) history: &'a TimelineHistory,
    pub(super) run: RunId,
    pub(super) label: &'a BackupLabel,
    pub(super) label_text: String,
    pub(super) started_at: Timestamp,
    pub(super) finished_at: Timestamp,
    pub(super) start_lsn: Lsn,
    pub(super) stop_lsn: Lsn,
    pub(super) bytes_read: u64,
    pub(super) bytes_stored: u64,
    pub(super) bytes_restored: u64,
    pub(super) files: u64,
    pub(super) configuration: Vec<ConfigurationFile>,
    pub(super) excused_pages: Vec<ExcusedPage>,
    pub(super) damaged_pages: Vec<ExcusedPage>,
    pub(super) parent: Option<RunId>,
    pub(super) unread: Option<Unread>,
    pub(super) requests: RequestCounts,
    pub(super) tree: Tree,
}

/// The record.
pub(super) fn record(finished: Finished<'_>) -> Backup {
    let (server, control) = (finished.server, finished.control);
    let settings = server.recovery_settings;
    let unsigned = |value: i32| u32::try_from(value).unwrap_or(0);
    Backup {
        version: RECORD_VERSION,
        backup: finished.run,
        cluster: finished.plan.cluster.clone(),
        label: finished.label_text.clone(),
        started_at: finished.started_at,
        finished_at: finished.finished_at,
        start_lsn: finished.start_lsn,
        stop_lsn: finished.stop_lsn,
        redo_lsn: finished.label.start,
        bytes_read: finished.bytes_read,
        bytes_stored: finished.bytes_stored,
        bytes_restored: finished.bytes_restored,
        files: finished.files,
        system_identifier: control.system_identifier,
        timeline: finished.label.timeline,
        history: finished
            .history
            .steps
            .iter()
            .map(|step| HistoryStep {
                parent: step.parent,
                switch_lsn: step.switch,
            })
            .collect(),
        postgresql_version: server.version.clone(),
        postgresql_version_num: server.version_num,
        pg_control_version: control.pg_control_version,
        catalog_version: control.catalog_version,
        geometry: geometry(control),
        data_checksum_version: control.data_checksum_version,
        from_standby: server.in_recovery,
        tablespaces: server
            .tablespaces
            .iter()
            .map(|tablespace| BackupTablespace {
                oid: tablespace.oid,
                name: tablespace.name.clone(),
                location: escaped(&tablespace.location),
                in_place: tablespace.in_place,
            })
            .collect(),
        settings: RecoverySettings {
            max_connections: unsigned(settings.max_connections),
            max_worker_processes: unsigned(settings.max_worker_processes),
            max_wal_senders: unsigned(settings.max_wal_senders),
            max_prepared_transactions: unsigned(settings.max_prepared_transactions),
            max_locks_per_transaction: unsigned(settings.max_locks_per_transaction),
        },
        configuration: finished.configuration,
        excused_pages: finished.excused_pages,
        damaged_pages: finished.damaged_pages,
        collations: server
            .collations
            .iter()
            .map(|collation| Collation {
                database: collation.database.clone(),
                name: collation.name.clone(),
                provider: collation.provider.clone(),
                recorded: Some(collation.recorded.clone()),
                actual: collation.actual.clone(),
            })
            .collect(),
        parent: finished.parent,
        unread: finished.unread,
        requests: Some(finished.requests),
        tree: finished.tree,
    }
}

/// A path as the record keeps it: as it is if it is UTF-8, else escaped.
pub(super) fn escaped(path: &std::path::Path) -> String {
    use std::os::unix::ffi::OsStrExt;
    match path.to_str() {
        Some(text) => text.to_owned(),
        None => path.as_os_str().as_bytes().escape_ascii().to_string(),
    }
}

/// What the server's label says, held against what we know. Error: `backup-label-unexpected`.
pub(super) fn read_label(content: &[u8], start: Lsn, server: &ServerFacts) -> Result<BackupLabel> {
    let unexpected = |detail: String| {
        Error::new(
            "backup-label-unexpected",
            "the server's backup label does not belong to this backup",
        )
        .detail(detail)
    };
    let label = BackupLabel::parse(content)?;
    if label.start != start {
        return Err(unexpected(format!(
            "The backup began at {start}, the label says {}.",
            label.start
        )));
    }
    if label.timeline != server.timeline {
        return Err(unexpected(format!(
            "The server was on timeline {}, the label says {}.",
            server.timeline, label.timeline
        )));
    }
    Ok(label)
}
