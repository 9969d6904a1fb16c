//! What `pg_control` says, asked of the server: for whoever has no data directory at hand.
//!
//! Source: `pg_control_system()`, `pg_control_init()`, `pg_control_checkpoint()` of PostgreSQL 13 to 18.

use crate::facts::{boolean, column, parsed};
use crate::session::{Session, sqlstate};
use diagnostic::{Error, Result};

/// The part of the control file that decides whether two backups can share pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ControlFacts {
    pub pg_control_version: u32,
    pub catalog_version: u32,
    /// 0: off.
    pub data_checksum_version: u32,
    /// Of the last checkpoint; on a standby, of the last one replayed.
    pub full_page_writes: bool,
}

/// Asks for them.
pub fn control_facts(session: &mut Session) -> Result<ControlFacts> {
    let row = session.one(
        "SELECT s.pg_control_version::text, s.catalog_version_no::text, i.data_page_checksum_version::text, \
                c.full_page_writes \
           FROM pg_control_system() s, pg_control_init() i, pg_control_checkpoint() c",
    )?;
    Ok(ControlFacts {
        pg_control_version: parsed(column(&row, 0), "pg_control_version")?,
        catalog_version: parsed(column(&row, 1), "catalog_version_no")?,
        data_checksum_version: parsed(column(&row, 2), "data_page_checksum_version")?,
        full_page_writes: boolean(&column(&row, 3).unwrap_or_default()),
    })
}

/// Whether a file stands in the data directory; `None` when the account may not look (`pg_read_server_files`).
pub fn file_in_data_directory(session: &mut Session, name: &str) -> Result<Option<bool>> {
    let name = Session::literal(name);
    match session.one(&format!("SELECT (pg_stat_file({name}, true)).size IS NOT NULL")) {
        Ok(row) => Ok(Some(boolean(&column(&row, 0).unwrap_or_default()))),
        Err(error) if sqlstate(&error) == Some("42501") => Ok(None),
        Err(error) => Err(error),
    }
}

/// The replication connection of that name and process reaches the very server that this session speaks to. Error:
/// `connection-other-server`.
pub fn same_server(session: &mut Session, application_name: &str, process: u32) -> Result<()> {
    let name = Session::literal(application_name);
    let rows = session.rows(&format!(
        "SELECT 1 FROM pg_stat_activity WHERE pid = {process} AND application_name = {name}"
    ))?;
    match rows.is_empty() {
        false => Ok(()),
        true => Err(Error::new(
            "connection-other-server",
            "the replication connection reaches another server than the ordinary one",
        )
        .detail("The connection string names several servers, or something between them that distributes connections.")
        .hint("Name one server in the cluster's connection, past poolers and load balancers.")),
    }
}
