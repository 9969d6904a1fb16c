//! The plan of a backup that the server sends over the replication protocol.
//!
//! The same facts as beside the data directory, asked of the server, and the proof that it will send: a replication
//! connection that reaches the same server.

use std::time::Duration;

use cluster::{ReplicationSession, Session};
use diagnostic::{Error, Result};
use postgres::{SystemIdentifier, TimelineHistory, TimelineId};
use repository::{ClusterRepository, Geometry};

use super::parent;
use super::plan::{
    Method, Plan, PlanOptions, ProtocolOptions, Reading, WalSource, check_standby, check_supported, retiring,
    unfinished, warnings,
};

/// Limit for connecting.
pub(super) const CONNECT_LIMIT: Duration = Duration::from_secs(15);

/// See [`super::plan()`]. Errors besides its own: those of a replication connection, `connection-other-server`.
pub(super) fn plan(
    conninfo: &str,
    repository: &ClusterRepository,
    options: &PlanOptions,
    protocol: &ProtocolOptions,
    now: jiff::Timestamp,
) -> Result<Plan> {
    let mut session = Session::connect(conninfo)?;
    let server = cluster::gather(&mut session)?;
    let control = cluster::control_facts(&mut session)?;
    check_supported(server.block_size, server.relation_segment_size)?;
    check_standby(server.in_recovery, control.full_page_writes)?;
    refuse_restored(&mut session)?;

    let name = format!("pgproof plan {}-{}", std::process::id(), now.as_microsecond());
    let mut replication = ReplicationSession::connect(conninfo, &name, CONNECT_LIMIT)?;
    cluster::control_facts::same_server(&mut session, &name, replication.process_id())?;
    let history = history(&mut replication, server.system_identifier, server.timeline)?;

    let current = parent::Current {
        shape: parent::Shape {
            system_identifier: server.system_identifier,
            geometry: Geometry {
                block_size: server.block_size,
                relation_segment_size: server.relation_segment_size,
                wal_block_size: server.wal_block_size,
                wal_segment_size: server.wal_segment_size,
            },
            catalog_version: control.catalog_version,
            data_checksum_version: control.data_checksum_version,
        },
        history: &history,
        lsn: server.insert_lsn,
    };
    let choice = parent::choose(repository, &current, options.full)?;
    let wal = protocol.wal.unwrap_or(match server.archive_mode.as_str() {
        "off" => WalSource::Streamed,
        _ => WalSource::Archived,
    });
    let configuration = [&server.config_file, &server.hba_file, &server.ident_file];
    let missing_configuration = configuration
        .into_iter()
        .flatten()
        .filter(|path| !path.starts_with(&server.data_directory))
        .cloned()
        .collect();
    let retiring_packs = retiring(&choice);
    Ok(Plan {
        planned_at: now,
        method: Method::Protocol,
        wal,
        protocol: Some(protocol.clone()),
        primary: options.primary.clone(),
        cluster: repository.name().to_owned(),
        repository: repository.repository().store().url(),
        files: 0,
        directories: 0,
        bytes: server.size_bytes,
        parent: choice.parent.map(|(backup, _)| backup.backup),
        parent_reason: choice.reason,
        reading: Reading::Everything {
            why: "the server sends it".into(),
        },
        retiring_packs,
        unfinished_runs: unfinished(repository)?,
        tablespaces: server.tablespaces.clone(),
        captured_configuration: Vec::new(),
        missing_configuration,
        skipped: Vec::new(),
        warnings: [
            choice.warnings,
            warnings(&server, control.data_checksum_version, wal, &options.primary),
        ]
        .concat(),
        history,
        data_directory: server.data_directory.clone(),
        server,
    })
}

/// Hard rule 23, as far as the account may look.
fn refuse_restored(session: &mut Session) -> Result<()> {
    let marker = cluster::control_facts::file_in_data_directory(session, crate::RESTORED_MARKER)?;
    if marker != Some(true) {
        return Ok(());
    }
    Err(Error::new(
        "backup-of-restored-directory",
        "the server's data directory was restored and is not adopted",
    )
    .detail("A backup of it would stand among those of the cluster that it is a copy of.")
    .hint("To make it production, run `pgproof restore --adopt` on its host."))
}

/// The history of the server's timeline, as the server has it.
fn history(
    replication: &mut ReplicationSession,
    system: SystemIdentifier,
    timeline: TimelineId,
) -> Result<TimelineHistory> {
    let identity = replication.identify_system()?;
    if identity.system_identifier != system {
        return Err(Error::new(
            "connection-other-server",
            "the replication connection reaches another cluster than the ordinary one",
        ));
    }
    match timeline.0 {
        0 | 1 => Ok(TimelineHistory::root(timeline)),
        _ => TimelineHistory::parse(timeline, &replication.timeline_history(timeline)?),
    }
}
