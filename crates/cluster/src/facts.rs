//! What a running server tells about itself: identity, geometry, settings that decide about backup and
//! recovery.
//!
//! Invariants: only looking, nothing is changed; a version that pgproof does not support is refused by name;
//! an account that may not see a fact gets an error that says which right is missing, never a made-up value.
//! Sources: `pg_settings`, `pg_control_system()`, `pg_control_checkpoint()`, `pg_control_recovery()`,
//! `pg_tablespace`, `pg_database`, `pg_collation` of PostgreSQL 13 to 18.

use crate::session::Session;
use diagnostic::{Error, Result};
use postgres::{Lsn, Major, Oid, SystemIdentifier, TimelineId};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::path::PathBuf;
use std::str::FromStr;

/// Everything at once, as of `now`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ServerFacts {
    /// Without the packager's addition: "15.18".
    pub version: String,
    /// For example 150018.
    pub version_num: u32,
    pub major: Major,
    pub system_identifier: SystemIdentifier,
    /// The timeline that WAL is written to, or replayed from.
    pub timeline: TimelineId,
    pub data_directory: PathBuf,
    pub config_file: Option<PathBuf>,
    pub hba_file: Option<PathBuf>,
    pub ident_file: Option<PathBuf>,
    pub in_recovery: bool,
    pub data_checksums: bool,
    pub wal_level: String,
    /// "off", "on" or "always".
    pub archive_mode: String,
    /// Empty when none is set.
    pub archive_command: String,
    /// From PostgreSQL 15; `None` when empty.
    pub archive_library: Option<String>,
    /// 0: no forced switch.
    pub archive_timeout_seconds: u32,
    /// Bytes.
    pub wal_segment_size: u32,
    /// Bytes.
    pub block_size: u32,
    /// Blocks in one file of a relation.
    pub relation_segment_size: u32,
    /// Bytes.
    pub wal_block_size: u32,
    pub full_page_writes: bool,
    pub wal_log_hints: bool,
    pub port: u16,
    pub socket_directories: Vec<PathBuf>,
    /// All databases that the account may measure.
    pub size_bytes: u64,
    /// Without `pg_default` and `pg_global`.
    pub tablespaces: Vec<Tablespace>,
    pub shared_preload_libraries: Vec<String>,
    pub recovery_settings: RecoverySettings,
    /// Of each database (from PostgreSQL 15), and those that the connected database uses.
    pub collations: Vec<CollationVersion>,
    pub is_superuser: bool,
    /// Names of settings whose new value waits for a restart.
    pub pending_restart: Vec<String>,
    /// Where WAL is inserted next; in recovery, how far it was replayed.
    pub insert_lsn: Lsn,
    /// The server's clock.
    pub now: jiff::Timestamp,
}

/// One tablespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tablespace {
    pub oid: Oid,
    pub name: String,
    /// Absolute, also for an in-place tablespace.
    pub location: PathBuf,
    /// A directory in `pg_tblspc` instead of a link (`allow_in_place_tablespaces`).
    pub in_place: bool,
}

/// The settings that a standby or a recovering copy must have at least as high (hard rule 28).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecoverySettings {
    pub max_connections: i32,
    pub max_worker_processes: i32,
    pub max_wal_senders: i32,
    pub max_prepared_transactions: i32,
    pub max_locks_per_transaction: i32,
}

/// The version of a collation, as recorded when it was first used, and as the host has it now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CollationVersion {
    pub database: String,
    /// The collation's qualified name, or the locale for the database's own default.
    pub name: String,
    /// "libc", "icu" or "builtin".
    pub provider: String,
    pub recorded: String,
    pub actual: Option<String>,
}

impl CollationVersion {
    /// Does the host order text as it did when the indexes were built?
    pub fn agrees(&self) -> bool {
        self.actual.as_deref() == Some(self.recorded.as_str())
    }
}

/// Asks for everything. Error codes besides those of the session: `server-version`, `server-permission`,
/// `server-answer`.
pub fn gather(session: &mut Session) -> Result<ServerFacts> {
    let version_num = session.version_num();
    let major = Major::from_version_num(version_num).ok_or_else(|| {
        Error::new(
            "server-version",
            format!("PostgreSQL {} is not supported", version_num / 10_000),
        )
        .detail(format!(
            "The server's server_version_num is {version_num}; 13 to 18 are supported."
        ))
    })?;
    let settings = Settings::read(session)?;
    let in_recovery = boolean(&single(session, "SELECT pg_is_in_recovery()")?);
    let identity = session.one(
        "SELECT s.system_identifier::text, c.timeline_id::text, r.min_recovery_end_timeline::text \
           FROM pg_control_system() s, pg_control_checkpoint() c, pg_control_recovery() r",
    )?;
    // Read as signed: pg_control_system() gives a bigint.
    let system_identifier = parsed::<i64>(column(&identity, 0), "system_identifier")? as u64;
    let checkpoint_timeline = parsed::<u32>(column(&identity, 1), "timeline_id")?;
    let recovery_timeline = parsed::<u32>(column(&identity, 2), "min_recovery_end_timeline")?;
    let (timeline, insert_lsn) = match in_recovery {
        // The last checkpoint's timeline lags behind a promotion; the current WAL file's does not.
        false => {
            let row = session.one(
                "SELECT substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8), \
                        pg_current_wal_insert_lsn()",
            )?;
            let timeline = u32::from_str_radix(&column(&row, 0).unwrap_or_default(), 16)
                .map_err(|_| unexpected("pg_walfile_name"))?;
            (
                timeline,
                parsed::<Lsn>(column(&row, 1), "pg_current_wal_insert_lsn")?,
            )
        }
        true => {
            let row = session.one(
                "SELECT (SELECT max(received_tli) FROM pg_stat_wal_receiver)::text, pg_last_wal_replay_lsn()",
            )?;
            let received = column(&row, 0)
                .and_then(|text| text.parse::<u32>().ok())
                .unwrap_or(0);
            let lsn = match column(&row, 1) {
                Some(text) => parsed(Some(text), "pg_last_wal_replay_lsn")?,
                None => Lsn(0),
            };
            (checkpoint_timeline.max(recovery_timeline).max(received), lsn)
        }
    };
    let now_microseconds: i64 = parsed(
        Some(single(
            session,
            "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint",
        )?),
        "clock_timestamp",
    )?;
    let data_directory = PathBuf::from(settings.required("data_directory")?);
    Ok(ServerFacts {
        version: settings
            .required("server_version")?
            .split_whitespace()
            .next()
            .unwrap_or_default()
            .to_string(),
        version_num,
        major,
        system_identifier: SystemIdentifier(system_identifier),
        timeline: TimelineId(timeline),
        config_file: settings.path("config_file"),
        hba_file: settings.path("hba_file"),
        ident_file: settings.path("ident_file"),
        in_recovery,
        data_checksums: boolean(&settings.required("data_checksums")?),
        wal_level: settings.required("wal_level")?,
        archive_mode: settings.required("archive_mode")?,
        archive_command: match settings.required("archive_command")?.as_str() {
            "(disabled)" => String::new(), // what the server shows while archive_mode is off
            command => command.to_string(),
        },
        archive_library: settings
            .optional("archive_library")
            .filter(|library| !library.is_empty()),
        archive_timeout_seconds: settings.number("archive_timeout")?,
        wal_segment_size: settings.number("wal_segment_size")?,
        block_size: settings.number("block_size")?,
        relation_segment_size: settings.number("segment_size")?,
        wal_block_size: settings.number("wal_block_size")?,
        full_page_writes: boolean(&settings.required("full_page_writes")?),
        wal_log_hints: boolean(&settings.required("wal_log_hints")?),
        port: settings.number("port")?,
        socket_directories: list_setting(&settings.required("unix_socket_directories")?)
            .into_iter()
            .map(PathBuf::from)
            .collect(),
        size_bytes: parsed(
            Some(single(
                session,
                "SELECT coalesce(sum(pg_database_size(oid)), 0)::bigint FROM pg_database \
                  WHERE has_database_privilege(oid, 'CONNECT') OR pg_has_role('pg_read_all_stats', 'USAGE')",
            )?),
            "pg_database_size",
        )?,
        tablespaces: tablespaces(session, &data_directory)?,
        shared_preload_libraries: list_setting(&settings.required("shared_preload_libraries")?),
        recovery_settings: RecoverySettings {
            max_connections: settings.number("max_connections")?,
            max_worker_processes: settings.number("max_worker_processes")?,
            max_wal_senders: settings.number("max_wal_senders")?,
            max_prepared_transactions: settings.number("max_prepared_transactions")?,
            max_locks_per_transaction: settings.number("max_locks_per_transaction")?,
        },
        collations: collations(session)?,
        is_superuser: boolean(&single(session, "SHOW is_superuser")?),
        pending_restart: session
            .rows("SELECT name FROM pg_settings WHERE pending_restart ORDER BY name")?
            .iter()
            .filter_map(|row| column(row, 0))
            .collect(),
        insert_lsn,
        now: jiff::Timestamp::from_microsecond(now_microseconds)
            .map_err(|_| unexpected("clock_timestamp"))?,
        data_directory,
    })
}

/// The tablespaces but `pg_default` and `pg_global`.
pub fn tablespaces(session: &mut Session, data_directory: &std::path::Path) -> Result<Vec<Tablespace>> {
    let rows = session.rows(
        "SELECT oid::text, spcname, pg_tablespace_location(oid) FROM pg_tablespace \
          WHERE spcname NOT IN ('pg_default', 'pg_global') ORDER BY oid",
    )?;
    let mut tablespaces = Vec::with_capacity(rows.len());
    for row in rows {
        let location = PathBuf::from(column(&row, 2).unwrap_or_default());
        // pg_tablespace_location() gives "pg_tblspc/<oid>" for an in-place one.
        let in_place = location.is_relative();
        tablespaces.push(Tablespace {
            oid: parsed(column(&row, 0), "pg_tablespace.oid")?,
            name: column(&row, 1).unwrap_or_default(),
            location: if in_place {
                data_directory.join(location)
            } else {
                location
            },
            in_place,
        });
    }
    Ok(tablespaces)
}

/// Recorded and actual collation versions: of each database (from 15), and of the collations that tables and
/// indexes of the connected database use.
pub fn collations(session: &mut Session) -> Result<Vec<CollationVersion>> {
    let provider = |column: &str| {
        format!(
            "CASE {column} WHEN 'c' THEN 'libc' WHEN 'i' THEN 'icu' WHEN 'b' THEN 'builtin' \
             ELSE {column}::text END"
        )
    };
    let mut query = format!(
        "SELECT current_database(), n.nspname || '.' || c.collname, {}, c.collversion, \
                pg_collation_actual_version(c.oid) \
           FROM pg_collation c JOIN pg_namespace n ON n.oid = c.collnamespace \
          WHERE c.collversion IS NOT NULL \
            AND c.oid IN (SELECT attcollation FROM pg_attribute \
                           WHERE attcollation NOT IN (0, 100, 950, 951))",
        provider("c.collprovider")
    );
    if session.version_num() >= 150_000 {
        let locale = match session.version_num() {
            170_000.. => "datlocale",
            _ => "daticulocale",
        };
        query.push_str(&format!(
            " UNION ALL SELECT datname, coalesce({locale}, datcollate), {}, datcollversion, \
                    pg_database_collation_actual_version(oid) \
               FROM pg_database WHERE datcollversion IS NOT NULL",
            provider("datlocprovider")
        ));
    }
    query.push_str(" ORDER BY 1, 2");
    let rows = session.rows(&query)?;
    Ok(rows
        .iter()
        .map(|row| CollationVersion {
            database: column(row, 0).unwrap_or_default(),
            name: column(row, 1).unwrap_or_default(),
            provider: column(row, 2).unwrap_or_default(),
            recorded: column(row, 3).unwrap_or_default(),
            actual: column(row, 4),
        })
        .collect())
}

/// The settings asked for in one query.
struct Settings(HashMap<String, String>);

impl Settings {
    fn read(session: &mut Session) -> Result<Settings> {
        let rows = session.rows(
            "SELECT name, setting FROM pg_settings WHERE name IN ('server_version', 'data_directory', \
             'config_file', 'hba_file', 'ident_file', 'data_checksums', 'wal_level', 'archive_mode', \
             'archive_command', 'archive_library', 'archive_timeout', 'wal_segment_size', 'block_size', \
             'segment_size', 'wal_block_size', 'full_page_writes', 'wal_log_hints', 'port', \
             'unix_socket_directories', 'shared_preload_libraries', 'max_connections', \
             'max_worker_processes', 'max_wal_senders', \
             'max_prepared_transactions', 'max_locks_per_transaction')",
        )?;
        let pairs = rows
            .iter()
            .filter_map(|row| Some((column(row, 0)?, column(row, 1)?)));
        Ok(Settings(pairs.collect()))
    }

    fn optional(&self, name: &str) -> Option<String> {
        self.0.get(name).cloned()
    }

    fn required(&self, name: &str) -> Result<String> {
        self.optional(name).ok_or_else(|| {
            Error::new(
                "server-permission",
                format!("the account may not see the setting \"{name}\""),
            )
            .detail("The server shows it to superusers and to members of pg_read_all_settings only.")
            .hint("As a superuser: GRANT pg_monitor TO <the account in the connection string>;")
        })
    }

    fn path(&self, name: &str) -> Option<PathBuf> {
        self.optional(name)
            .filter(|path| !path.is_empty())
            .map(PathBuf::from)
    }

    fn number<T: FromStr>(&self, name: &'static str) -> Result<T> {
        parsed(Some(self.required(name)?), name)
    }
}

/// The value of a setting that holds a list of names (`SplitDirectoriesString`, `SplitIdentifierString`).
fn list_setting(value: &str) -> Vec<String> {
    let mut items = Vec::new();
    let mut item = String::new();
    let mut quoted = false;
    for character in value.chars() {
        match character {
            '"' => quoted = !quoted,
            ',' if !quoted => items.push(std::mem::take(&mut item)),
            other => item.push(other),
        }
    }
    items.push(item);
    items
        .iter()
        .map(|item| item.trim().to_string())
        .filter(|item| !item.is_empty())
        .collect()
}

pub(crate) fn column(row: &[Option<String>], index: usize) -> Option<String> {
    row.get(index).cloned().flatten()
}

pub(crate) fn single(session: &mut Session, query: &str) -> Result<String> {
    column(&session.one(query)?, 0).ok_or_else(|| unexpected(query))
}

pub(crate) fn parsed<T: FromStr>(text: Option<String>, what: &str) -> Result<T> {
    text.as_deref()
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| unexpected(what))
}

pub(crate) fn boolean(text: &str) -> bool {
    matches!(text, "on" | "t" | "true" | "yes" | "1")
}

fn unexpected(what: &str) -> Error {
    Error::new(
        "server-answer",
        format!("cannot read the server's answer to \"{what}\""),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_in_settings_are_taken_apart() {
        assert_eq!(list_setting("/run/pg, \"/a, b\""), ["/run/pg", "/a, b"]);
        assert!(list_setting(" ").is_empty());
    }
}
