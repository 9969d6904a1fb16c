//! The session in which a base backup runs: non-exclusive start, and the stop that gives the label.
//!
//! Invariants (hard rule 1): start and stop happen in one session, and a lost session is an aborted backup,
//! for the server as for us; `backup_label` and `tablespace_map` are what the stop call gave, byte for byte;
//! the stop does not wait for archiving, since whoever keeps the WAL sees to that. A standby that is
//! promoted meanwhile makes the backup unusable (hard rule 6); it is noticed at each
//! [`BackupSession::check_alive`]. Source: `pg_start_backup`/`pg_stop_backup` (13, 14),
//! `pg_backup_start`/`pg_backup_stop` (from 15).

use crate::facts::{boolean, column, parsed, single};
use crate::session::{ConnectOptions, Session, sqlstate};
use diagnostic::{Error, Result};
use postgres::Lsn;
use std::time::Duration;

/// The longest label that the server takes (`MAXPGPATH`).
const LABEL_LENGTH_MAX: usize = 1024;

/// A backup in progress, as the server sees it. Dropping it aborts the backup.
pub struct BackupSession {
    session: Session,
    started_in_recovery: bool,
}

/// What the server says at the end of a backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupStop {
    /// The end of the WAL that the backup needs.
    pub lsn: Lsn,
    /// The content of `backup_label`.
    pub backup_label: Vec<u8>,
    /// The content of `tablespace_map`; empty when there is no tablespace, and then the file is not written.
    pub tablespace_map: Vec<u8>,
}

impl BackupSession {
    /// Starts a backup and gives its start LSN, the redo pointer of its checkpoint. With `fast` the
    /// checkpoint happens at once, otherwise it is spread (`checkpoint_completion_target`). Error codes
    /// besides those of the session: `backup-permission`, `backup-refused`.
    pub fn start(conninfo: &str, label: &str, fast: bool) -> Result<(BackupSession, Lsn)> {
        let options = ConnectOptions {
            application_name: "pgproof backup".into(),
            ..ConnectOptions::default()
        };
        let mut session = Session::connect_with(conninfo, &options)?;
        let started_in_recovery = boolean(&single(&mut session, "SELECT pg_is_in_recovery()")?);
        // A spread checkpoint takes up to checkpoint_timeout, and may first wait for a running one. On a
        // standby a restartpoint waits for the primary's next checkpoint record.
        let seconds: u64 = parsed(
            Some(single(
                &mut session,
                "SELECT setting FROM pg_settings WHERE name = 'checkpoint_timeout'",
            )?),
            "checkpoint_timeout",
        )?;
        session.set_statement_timeout(Duration::from_secs(
            seconds.saturating_mul(3).saturating_add(3600),
        ))?;
        let label = Session::literal(&clean_label(label));
        let start = match session.version_num() {
            150_000.. => format!("SELECT pg_backup_start({label}, {fast})"),
            _ => format!("SELECT pg_start_backup({label}, {fast}, false)"),
        };
        let lsn = single(&mut session, &start).map_err(|error| refused(error, "start"))?;
        session.set_statement_timeout(options.statement_timeout)?;
        let lsn = parsed(Some(lsn), "pg_backup_start")?;
        Ok((
            BackupSession {
                session,
                started_in_recovery,
            },
            lsn,
        ))
    }

    /// Fails (`backup-aborted`) when the server no longer holds this backup.
    pub fn check_alive(&mut self) -> Result<()> {
        let in_recovery = single(&mut self.session, "SELECT pg_is_in_recovery()").map_err(|error| {
            Error::new("backup-aborted", "the backup's session with the server is lost")
                .caused_by(&error)
                .detail(
                    "The server has ended this backup by itself; what was copied cannot be made consistent.",
                )
                .hint("Run the backup again; pages that were stored are used again.")
        })?;
        if boolean(&in_recovery) != self.started_in_recovery {
            return Err(promoted());
        }
        Ok(())
    }

    /// The session, for further questions while the backup runs.
    pub fn session(&mut self) -> &mut Session {
        &mut self.session
    }

    /// Ends the backup. Does not wait until the WAL is archived.
    pub fn stop(mut self) -> Result<BackupStop> {
        self.check_alive()?;
        let stop = match self.session.version_num() {
            150_000.. => "SELECT lsn, labelfile, spcmapfile FROM pg_backup_stop(false)",
            _ => "SELECT lsn, labelfile, spcmapfile FROM pg_stop_backup(false, false)",
        };
        let row = self.session.one(stop).map_err(|error| refused(error, "stop"))?;
        let backup_label = column(&row, 1).unwrap_or_default().into_bytes();
        if backup_label.is_empty() {
            return Err(Error::new("server-answer", "the server gave no backup label"));
        }
        Ok(BackupStop {
            lsn: parsed(column(&row, 0), "pg_backup_stop")?,
            backup_label,
            tablespace_map: column(&row, 2).unwrap_or_default().into_bytes(),
        })
    }
}

fn refused(error: Error, step: &str) -> Error {
    match sqlstate(&error) {
        Some("42501") => Error::new(
            "backup-permission",
            format!("the account may not {step} a backup"),
        )
        .caused_by(&error)
        .hint(
            "As a superuser, for PostgreSQL 15 and later: GRANT EXECUTE ON FUNCTION pg_backup_start, \
                 pg_backup_stop TO <account>; for 13 and 14: GRANT EXECUTE ON FUNCTION pg_start_backup, \
                 pg_stop_backup(boolean, boolean) TO <account>.",
        ),
        Some("55000") if step == "stop" && error.message().contains("promoted") => promoted(),
        // Hard rule 6: the server has replayed WAL that was written without full pages.
        Some("55000") if error.message().contains("full_page_writes") => Error::new(
            "standby-without-full-page-writes",
            "this standby's primary runs, or ran, without full_page_writes",
        )
        .detail(error.message().to_owned())
        .hint("Set full_page_writes = on on the primary, run CHECKPOINT there, and try again."),
        Some(_) => {
            let refused = Error::new(
                "backup-refused",
                format!("the server refused to {step} the backup"),
            );
            let detail = format!("{}\n{}", error.message(), error.detail_text().unwrap_or_default());
            let hint = error.hint_text().map(str::to_string);
            let refused = refused.detail(detail);
            hint.map_or(refused.clone(), |hint| refused.hint(hint))
        }
        None => error.context(format!("cannot {step} the backup")),
    }
}

fn promoted() -> Error {
    Error::new("backup-aborted", "the standby was promoted during the backup")
        .detail("A backup that began on a standby and ends on a primary cannot be made consistent.")
        .hint("Run the backup again.")
}

/// The label goes into one line of `backup_label`.
fn clean_label(label: &str) -> String {
    let mut clean: String = label
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    while clean.len() > LABEL_LENGTH_MAX {
        clean.pop();
    }
    clean
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_stays_on_one_line_and_within_the_servers_limit() {
        assert_eq!(
            clean_label("a\nSTART WAL LOCATION: 0/0"),
            "a START WAL LOCATION: 0/0"
        );
        assert!(clean_label(&"é".repeat(2000)).len() <= LABEL_LENGTH_MAX);
    }
}
