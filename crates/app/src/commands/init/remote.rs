//! A server whose data directory is not on this host: what it needs so that it can be backed up over the replication
//! protocol, and whether it has it.

use std::time::Duration;

use cluster::conninfo::Conninfo;
use cluster::{ReplicationSession, ServerFacts};

/// Does the connection lead to a server whose data directory this host does not have? A Unix socket never does.
pub(super) fn is_elsewhere(connection: &str, facts: &ServerFacts) -> bool {
    let Ok(conninfo) = Conninfo::parse(connection) else {
        return false;
    };
    let over_network = conninfo
        .get("hostaddr")
        .is_some_and(|address| !address.is_empty())
        || conninfo
            .get("host")
            .is_some_and(|host| !host.is_empty() && !host.starts_with('/'));
    let ours = cluster::read_control_file(&facts.data_directory)
        .is_ok_and(|(_, control)| control.system_identifier == facts.system_identifier);
    over_network && !ours
}

/// What a person should know; the replication connection is tried.
pub(super) fn warnings(connection: &str, facts: &ServerFacts) -> Vec<String> {
    let mut warnings = Vec::new();
    if !facts.data_checksums {
        warnings
            .push("Data checksums are off: damage of a page on the server's disk cannot be seen.".to_owned());
    }
    if let Err(error) = ReplicationSession::connect(connection, "pgproof init", Duration::from_secs(15)) {
        let cure = error
            .hint_text()
            .map(|hint| format!(" {hint}"))
            .unwrap_or_default();
        warnings.push(format!(
            "There is no replication connection yet: {} ({}).{cure}",
            error.message(),
            error.code()
        ));
    }
    if facts.archive_mode == "off" {
        warnings.push(
            "The server does not archive: each backup will stream its own WAL and can be restored to its own end. \
             Recovery to any moment in between needs an archiver on the server's host."
                .to_owned(),
        );
    }
    warnings
}

/// What the server needs, for a person to do.
pub(super) fn needs(connection: &str, facts: &ServerFacts, cluster: &str) -> Vec<String> {
    let user = Conninfo::parse(connection)
        .ok()
        .and_then(|conninfo| conninfo.get("user").map(str::to_owned))
        .unwrap_or_else(|| "<account>".to_owned());
    let role = cluster::Session::identifier(&user);
    let wal = match facts.archive_mode.as_str() {
        "off" => "nothing: archive_mode is off, and each backup streams its own WAL while it runs (a free replication \
                  slot and a second wal sender)"
            .to_owned(),
        _ => format!(
            "the server's archive_command must run `pgproof wal push --cluster {cluster} %p` on the server's host, into \
             this same repository (set it up there with `pgproof init`); `pgproof check` proves that it arrives"
        ),
    };
    vec![
        "The server needs:".to_owned(),
        format!(
            "  a role that may replicate and look: ALTER ROLE {role} REPLICATION; GRANT pg_monitor TO {role};"
        ),
        format!("  in pg_hba.conf: hostssl replication {user} <this host's address>/32 scram-sha-256"),
        format!(
            "  max_wal_senders: two free for this host (it is {})",
            facts.recovery_settings.max_wal_senders
        ),
        format!("  for the WAL: {wal}"),
    ]
}
