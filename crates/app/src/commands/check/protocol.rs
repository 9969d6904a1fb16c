//! `pgproof check` where backups come over the replication protocol: the connection that will carry them, and what
//! the server must grant.

use std::time::Duration;

use backup::base::WalSource;
use cluster::{ReplicationSession, ServerFacts, Session};
use diagnostic::Result;

use super::Lines;
use crate::config::Cluster;

const CONNECT_LIMIT: Duration = Duration::from_secs(15);

/// Lines `data-checksums`, `replication`, `replication-wal` and `settings`.
pub(super) fn check(lines: &mut Lines, session: &mut Session, cluster: &Cluster, facts: &ServerFacts) {
    match facts.data_checksums {
        true => lines.pass("data-checksums", "on"),
        false => lines.warn(
            "data-checksums",
            "off: damage of a page on the server's disk cannot be seen",
            "Stop the server, run pg_checksums --enable, start it.",
        ),
    }
    settings(lines, facts);
    let wal = cluster.wal.unwrap_or(match facts.archive_mode.as_str() {
        "off" => WalSource::Streamed,
        _ => WalSource::Archived,
    });
    let mut replication = match connect(session, cluster, facts) {
        Ok(replication) => {
            let encrypted = match replication.is_tls() {
                true => "over TLS",
                false => "without TLS",
            };
            lines.pass(
                "replication",
                format!("a replication connection reaches the same server, {encrypted}"),
            );
            replication
        }
        Err(error) => {
            lines.error("replication", &error);
            return lines.not_run("replication-wal", "there is no replication connection");
        }
    };
    match wal {
        WalSource::Archived if facts.archive_mode == "off" => match receiving(session) {
            true => lines.pass("replication-wal", "`pgproof wal receive` brings the WAL"),
            false => lines.fail(
                "replication-wal",
                "wal = \"archived\", but the server does not archive, and nobody receives its WAL",
                "Run `pgproof wal receive` as a service, or set archive_mode = on and archive_command on the server, or \
                 wal = \"streamed\" here.",
            ),
        },
        WalSource::Archived => lines.pass("replication-wal", "the server's archiver brings the WAL"),
        WalSource::Streamed => match slot(&mut replication) {
            Ok(()) => lines.pass(
                "replication-wal",
                "WAL is streamed while a backup runs: a temporary slot can be made",
            ),
            Err(error) => lines.error("replication-wal", &error),
        },
    }
}

fn connect(session: &mut Session, cluster: &Cluster, facts: &ServerFacts) -> Result<ReplicationSession> {
    let name = format!("pgproof check {}", std::process::id());
    let mut replication = ReplicationSession::connect(&cluster.connection, &name, CONNECT_LIMIT)?;
    let identity = replication.identify_system()?;
    if identity.system_identifier != facts.system_identifier {
        return Err(diagnostic::Error::new(
            "connection-other-server",
            "the replication connection reaches another cluster than the ordinary one",
        ));
    }
    cluster::control_facts::same_server(session, &name, replication.process_id())?;
    Ok(replication)
}

/// A receiver of ours is connected.
fn receiving(session: &mut Session) -> bool {
    session
        .rows("SELECT 1 FROM pg_stat_replication WHERE application_name LIKE 'pgproof receive %'")
        .is_ok_and(|rows| !rows.is_empty())
}

/// It goes with the connection.
fn slot(replication: &mut ReplicationSession) -> Result<()> {
    replication.create_temporary_slot(&format!("pgproof_check_{}", std::process::id()))
}

fn settings(lines: &mut Lines, facts: &ServerFacts) {
    if facts.wal_level == "minimal" {
        lines.fail(
            "settings",
            "wal_level is minimal",
            "ALTER SYSTEM SET wal_level = replica; Then restart the server.",
        );
    } else if !facts.full_page_writes {
        lines.fail(
            "settings",
            "full_page_writes is off: a backup of a running server would hold torn pages",
            "ALTER SYSTEM SET full_page_writes = on; SELECT pg_reload_conf();",
        );
    } else if facts.recovery_settings.max_wal_senders < 2 {
        lines.fail(
            "settings",
            format!("max_wal_senders is {}", facts.recovery_settings.max_wal_senders),
            "ALTER SYSTEM SET max_wal_senders = 10; Then restart the server.",
        );
    } else {
        lines.pass(
            "settings",
            format!(
                "wal_level {}, archive_mode {}, max_wal_senders {}",
                facts.wal_level, facts.archive_mode, facts.recovery_settings.max_wal_senders
            ),
        );
    }
}
