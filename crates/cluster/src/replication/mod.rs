//! The streaming replication protocol: a physical replication connection, a base backup over it, WAL over it.
//!
//! Invariants: a replication connection speaks to one server, which it can name (`IDENTIFY_SYSTEM`); nothing that
//! the server sends is believed in its length or order; each refusal that an operator can cure has a code of its
//! own (`replication-permission`, `replication-hba`, `replication-senders`, `replication-wal-level`). Source:
//! "Streaming Replication Protocol" of the manual, `walsender.c`, `repl_gram.y` of PostgreSQL 13 to 18.

mod base_backup;
mod manifest;
mod tar;
mod wal;

use std::time::Duration;

use diagnostic::{Error, Result};
use postgres::{Lsn, SystemIdentifier, TimelineId};

use crate::conninfo::Conninfo;
use crate::session::connect_error;
use crate::wire::{self, Failure, Wire};

pub use base_backup::{BackupPart, BackupTablespace, BaseBackupCommand, BaseBackupStream};
pub use manifest::{Manifest, ManifestFile, ManifestReader};
pub use tar::{StreamFailure, TarEntry, TarKind, TarReader};
pub use wal::{NextTimeline, WalData, WalStream};

/// How long a command of the replication protocol that streams nothing may take.
const COMMAND_LIMIT: Duration = Duration::from_secs(60);

/// A physical replication connection. Dropping it closes it; the server ends what ran on it.
pub struct ReplicationSession {
    wire: Wire,
}

/// The answer to `IDENTIFY_SYSTEM`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SystemIdentity {
    pub system_identifier: SystemIdentifier,
    /// Of a standby: the one that it replays.
    pub timeline: TimelineId,
    /// How far WAL is flushed; on a standby, replayed.
    pub lsn: Lsn,
}

impl ReplicationSession {
    /// Connects. `application_name` is what `pg_stat_replication` shows. Errors besides those of an ordinary
    /// session: `replication-permission`, `replication-hba`, `replication-senders`, `replication-wal-level`.
    pub fn connect(
        conninfo: &str,
        application_name: &str,
        connect_timeout: Duration,
    ) -> Result<ReplicationSession> {
        let conninfo = Conninfo::parse(conninfo)?;
        let shown = conninfo.redacted();
        // A walsender of physical replication belongs to no database; a line of a password file may say so.
        let user = conninfo.parameters()?.user;
        let mut parameters = conninfo.with("dbname", "replication").parameters()?;
        parameters.database = String::new();
        let limit = parameters.connect_timeout.unwrap_or(connect_timeout);
        let startup = [("replication", "true"), ("application_name", application_name)];
        let wire =
            wire::connect(&parameters, &startup, limit).map_err(|failure| refused(&shown, &user, failure))?;
        let session = ReplicationSession { wire };
        session.limit_reads(Some(COMMAND_LIMIT))?;
        Ok(session)
    }

    /// Over a connection that is there.
    pub(crate) fn over(wire: Wire) -> ReplicationSession {
        ReplicationSession { wire }
    }

    /// The process of the server's that serves this connection (`pg_stat_activity.pid`).
    pub fn process_id(&self) -> u32 {
        self.wire.cancel.process()
    }

    /// Whether the connection is encrypted.
    pub fn is_tls(&self) -> bool {
        self.wire.stream().is_tls()
    }

    fn limit_reads(&self, limit: Option<Duration>) -> Result<()> {
        self.wire
            .stream()
            .set_read_timeout(limit)
            .map_err(|error| Error::io("replication-lost", "cannot limit the time of a read", &error))
    }

    pub fn identify_system(&mut self) -> Result<SystemIdentity> {
        let row = self.row("IDENTIFY_SYSTEM")?;
        let text = |index: usize| -> &str {
            row.get(index)
                .and_then(Option::as_deref)
                .and_then(|value| std::str::from_utf8(value).ok())
                .unwrap_or_default()
        };
        match (text(0).parse(), text(1).parse(), text(2).parse()) {
            (Ok(system), Ok(timeline), Ok(lsn)) => Ok(SystemIdentity {
                system_identifier: SystemIdentifier(system),
                timeline: TimelineId(timeline),
                lsn,
            }),
            _ => Err(unexpected("IDENTIFY_SYSTEM")),
        }
    }

    /// The content of a timeline's history file. Timeline 1 has none.
    pub fn timeline_history(&mut self, timeline: TimelineId) -> Result<Vec<u8>> {
        let row = self.row(&format!("TIMELINE_HISTORY {}", timeline.0))?;
        row.into_iter()
            .nth(1)
            .flatten()
            .ok_or_else(|| unexpected("TIMELINE_HISTORY"))
    }

    /// A physical slot that lives as long as this connection and keeps WAL from now on. `name` is of lower-case
    /// letters, digits and underscores. Error: `replication-slot`.
    pub fn create_temporary_slot(&mut self, name: &str) -> Result<()> {
        let command = format!("CREATE_REPLICATION_SLOT \"{name}\" TEMPORARY PHYSICAL RESERVE_WAL");
        match self.wire.query(&command) {
            Ok(_) => Ok(()),
            Err(failure) => {
                Err(lost(failure, "cannot create a replication slot").with_code("replication-slot"))
            }
        }
    }

    /// A lasting physical slot that keeps WAL from now on. Error: `replication-slot`.
    pub fn create_slot(&mut self, name: &str) -> Result<()> {
        let name = name.replace('"', "");
        let command = format!("CREATE_REPLICATION_SLOT \"{name}\" PHYSICAL RESERVE_WAL");
        match self.wire.query(&command) {
            Ok(_) => Ok(()),
            Err(failure) => {
                Err(lost(failure, "cannot create a replication slot").with_code("replication-slot"))
            }
        }
    }

    fn row(&mut self, command: &str) -> Result<Vec<Option<Vec<u8>>>> {
        let answer = self
            .wire
            .query(command)
            .map_err(|failure| lost(failure, &format!("the server did not answer {command}")).into_error())?;
        answer.rows.into_iter().next().ok_or_else(|| unexpected(command))
    }
}

/// A failure in words, before somebody says which code it has.
pub(crate) struct Lost {
    error: Error,
    by_server: bool,
}

impl Lost {
    /// What the server refused gets this code; a lost connection stays one.
    pub(crate) fn with_code(self, code: &'static str) -> Error {
        match self.by_server {
            true => self.error.code_of(code),
            false => self.error,
        }
    }

    pub(crate) fn into_error(self) -> Error {
        self.with_code("replication-refused")
    }
}

trait CodeOf {
    fn code_of(self, code: &'static str) -> Error;
}

impl CodeOf for Error {
    /// The same words under another code.
    fn code_of(self, code: &'static str) -> Error {
        let error = Error::new(code, self.message().to_owned());
        let error = match self.detail_text() {
            Some(detail) => error.detail(detail.to_owned()),
            None => error,
        };
        match self.hint_text() {
            Some(hint) => error.hint(hint.to_owned()),
            None => error,
        }
    }
}

/// A failure on an established replication connection. Code of a lost one: `replication-lost`.
pub(crate) fn lost(failure: Failure, message: &str) -> Lost {
    let by_server = matches!(&failure, Failure::Server(error) if !error.is_fatal());
    let error = match failure {
        Failure::Server(error) if by_server => {
            let told = error.message.clone();
            let error = error.into_error("replication-refused");
            let detail = format!("{told}\n{}", error.detail_text().unwrap_or_default());
            let hint = error.hint_text().map(str::to_owned);
            let wider = Error::new("replication-refused", message.to_owned()).detail(detail);
            match hint {
                Some(hint) => wider.hint(hint),
                None => wider,
            }
        }
        Failure::Server(error) => error
            .into_error("replication-lost")
            .context("the server ended the replication connection"),
        other if other.is_timeout() => Error::new("replication-lost", message.to_owned())
            .detail("The server no longer answers on the replication connection."),
        other => other.into_error("replication-lost", "the replication connection is lost"),
    };
    Lost { error, by_server }
}

pub(crate) fn unexpected(command: &str) -> Error {
    Error::new(
        "replication-answer",
        format!("cannot read the server's answer to {command}"),
    )
}

/// Why there is no replication connection, each with its cure.
fn refused(shown: &str, user: &str, failure: Failure) -> Error {
    let (sqlstate, told) = match &failure {
        Failure::Server(error) => (error.sqlstate.clone(), error.message.clone()),
        _ => return connect_error(shown, failure),
    };
    let error = connect_error(shown, failure);
    let role = user.replace('"', "\"\"");
    let (code, hint) = match sqlstate.as_str() {
        "42501" => (
            "replication-permission",
            format!("As a superuser: ALTER ROLE \"{role}\" REPLICATION;"),
        ),
        "28000" if told.contains("pg_hba.conf") => (
            "replication-hba",
            format!(
                "Add a line to pg_hba.conf for the database \"replication\" (\"all\" does not match it), for example \
                 `hostssl replication {user} <this host's address>/32 scram-sha-256`, then SELECT pg_reload_conf();"
            ),
        ),
        "53300" => (
            "replication-senders",
            "Raise max_wal_senders (two are needed for a backup that streams its WAL) and restart the server, or end \
             one of the connections in pg_stat_replication."
                .to_owned(),
        ),
        "55000" => (
            "replication-wal-level",
            "Set wal_level = replica and max_wal_senders above 0, and restart the server.".to_owned(),
        ),
        _ => return error,
    };
    let causes = format!("{told} (SQLSTATE {sqlstate})");
    Error::new(code, error.message().to_owned())
        .detail(causes)
        .hint(hint)
}
