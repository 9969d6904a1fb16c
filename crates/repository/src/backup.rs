//! The record of a backup: the one object that makes it exist. `docs/format.md` section 5.
//!
//! Names are those of `pgproof backup --json`. A record is never changed; what may change about a backup
//! (pins) is apart.

use jiff::Timestamp;
use postgres::{Lsn, Oid, SystemIdentifier, TimelineId};
use serde::{Deserialize, Serialize};

use crate::map::FrameRef;
use crate::names::{BackupId, PackKind, PackRef};
use crate::path::RelativePath;
use crate::store::RequestCounts;

/// The version of the record that this program writes.
pub const RECORD_VERSION: u32 = 1;

/// Everything that is known of a backup without its maps.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Backup {
    pub version: u32,
    pub backup: BackupId,
    pub cluster: String,
    pub label: String,
    pub started_at: Timestamp,
    pub finished_at: Timestamp,
    pub start_lsn: Lsn,
    pub stop_lsn: Lsn,
    pub redo_lsn: Lsn,
    /// Bytes read from the cluster's files.
    pub bytes_read: u64,
    /// Bytes of the objects that this run wrote.
    pub bytes_stored: u64,
    /// Bytes of all files: what a restore writes.
    pub bytes_restored: u64,
    pub files: u64,
    pub system_identifier: SystemIdentifier,
    pub timeline: TimelineId,
    /// Where this timeline comes from, oldest first.
    pub history: Vec<HistoryStep>,
    pub postgresql_version: String,
    /// `server_version_num`.
    pub postgresql_version_num: u32,
    pub pg_control_version: u32,
    pub catalog_version: u32,
    pub geometry: Geometry,
    pub data_checksum_version: u32,
    /// Taken from a standby.
    pub from_standby: bool,
    pub tablespaces: Vec<BackupTablespace>,
    pub settings: RecoverySettings,
    pub configuration: Vec<ConfigurationFile>,
    pub excused_pages: Vec<ExcusedPage>,
    /// Pages whose checksum is bad and that nothing excuses: they were bad in the cluster, and are so in the
    /// backup.
    #[serde(default)]
    pub damaged_pages: Vec<ExcusedPage>,
    pub collations: Vec<Collation>,
    /// The backup whose unchanged pages this one refers to.
    pub parent: Option<BackupId>,
    /// What was taken from the parent without reading it; absent where everything was read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unread: Option<Unread>,
    /// What the run asked of the store, from its first request to the writing of this record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests: Option<RequestCounts>,
    pub tree: Tree,
}

/// Pages that were not read, because the WAL since the parent's start does not name them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unread {
    pub pages: u64,
    /// Pages that were read all the same, and compared with the parent's.
    pub audited: u64,
    /// Which leaves these were: the next backup takes the next turn.
    pub turn: u32,
    /// The parent's start.
    pub since: Lsn,
}

/// The roots of a backup's maps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tree {
    pub root: FrameRef,
    /// Pieces of the pack table, to be put together in this order. They have a map pack of their own, the
    /// run's last.
    pub pack_table: Vec<FrameRef>,
    /// Bytes of that pack.
    pub pack_table_size: u64,
    /// Pieces of the catalog (encoded as the caller wishes), to be put together in this order.
    pub catalog: Vec<FrameRef>,
}

/// A step of a timeline's history: timeline `parent` was left at `switch_lsn`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryStep {
    pub parent: TimelineId,
    pub switch_lsn: Lsn,
}

/// Sizes that are compiled into, or chosen for, a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Geometry {
    pub block_size: u32,
    /// In blocks.
    pub relation_segment_size: u32,
    pub wal_block_size: u32,
    /// In bytes.
    pub wal_segment_size: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupTablespace {
    pub oid: Oid,
    pub name: String,
    /// The absolute location at the time of the backup; escaped if it is not UTF-8.
    pub location: String,
    /// A directory in `pg_tblspc` instead of a symbolic link.
    pub in_place: bool,
}

/// Settings that recovery compares with those of the primary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RecoverySettings {
    pub max_connections: u32,
    pub max_worker_processes: u32,
    pub max_wal_senders: u32,
    pub max_prepared_transactions: u32,
    pub max_locks_per_transaction: u32,
}

/// A configuration file, wherever it lay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigurationFile {
    /// `config_file`, `hba_file`, `ident_file` or `include`.
    pub role: String,
    /// The absolute path at the time of the backup; escaped if it is not UTF-8.
    pub original: String,
    /// Where its content stands in the backup; `None` if it could not be captured.
    pub path: Option<RelativePath>,
}

/// A page whose checksum was bad. An excused one may be: recovery replaces it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExcusedPage {
    pub path: RelativePath,
    /// Within the file.
    pub block: u32,
    pub page_lsn: Lsn,
    pub reason: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Collation {
    pub database: String,
    /// Empty for the database's own default.
    pub name: String,
    pub provider: String,
    pub recorded: Option<String>,
    pub actual: Option<String>,
}

/// A line of the pack table: a pack that a backup refers to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PackUse {
    pub kind: PackKind,
    pub pack: PackRef,
    /// Stored bytes of the object.
    pub size: u64,
    /// Blocks (rows) or nodes (map) in the pack.
    pub items: u64,
    /// How many of them this backup refers to.
    pub live: u64,
}

impl PackUse {
    /// The pack's pages are to be stored again by the next backup: less than a quarter of it is alive.
    pub fn mostly_dead(&self) -> bool {
        self.live.saturating_mul(4) < self.items
    }
}
