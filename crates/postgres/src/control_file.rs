//! `global/pg_control` of PostgreSQL 13 to 18: the state of a cluster, its geometry and its last checkpoint.
//!
//! Layout: `pg_control.h` of each version, as a 64-bit little-endian build lays it out. The file is one
//! struct with a CRC-32C behind it, padded with zeros to 8192 bytes. Nothing is believed before the CRC is
//! right: a running server rewrites the file in place, so that a reader may see a torn one and must read
//! again.

use std::fmt;

use diagnostic::{Error, Result};
use serde::{Deserialize, Serialize};

use crate::{Lsn, Major, Oid, SystemIdentifier, TimelineId, bytes};

/// `DBState`: what the cluster was doing when the file was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ClusterState {
    Startup,
    ShutDown,
    ShutDownInRecovery,
    ShuttingDown,
    InCrashRecovery,
    InArchiveRecovery,
    InProduction,
}

impl ClusterState {
    fn from_number(number: u32) -> Option<Self> {
        Some(match number {
            0 => ClusterState::Startup,
            1 => ClusterState::ShutDown,
            2 => ClusterState::ShutDownInRecovery,
            3 => ClusterState::ShuttingDown,
            4 => ClusterState::InCrashRecovery,
            5 => ClusterState::InArchiveRecovery,
            6 => ClusterState::InProduction,
            _ => return None,
        })
    }
}

impl fmt::Display for ClusterState {
    /// pg_controldata's words.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            ClusterState::Startup => "starting up",
            ClusterState::ShutDown => "shut down",
            ClusterState::ShutDownInRecovery => "shut down in recovery",
            ClusterState::ShuttingDown => "shutting down",
            ClusterState::InCrashRecovery => "in crash recovery",
            ClusterState::InArchiveRecovery => "in archive recovery",
            ClusterState::InProduction => "in production",
        })
    }
}

/// The control file. Sizes are bytes unless they say blocks. The authentication nonce is never taken out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ControlFile {
    pub system_identifier: SystemIdentifier,
    pub pg_control_version: u32,
    pub catalog_version: u32,
    pub major: Major,
    pub state: ClusterState,
    /// when the file was last written
    pub time: jiff::Timestamp,
    /// where the last checkpoint record begins
    pub checkpoint: Lsn,
    pub checkpoint_redo: Lsn,
    pub checkpoint_timeline: TimelineId,
    pub prev_timeline: TimelineId,
    /// of the last checkpoint
    pub full_page_writes: bool,
    /// epoch in the upper half
    pub next_xid: u64,
    pub next_oid: Oid,
    pub next_multi: u32,
    pub checkpoint_time: jiff::Timestamp,
    pub unlogged_lsn: Lsn,
    pub min_recovery_point: Lsn,
    pub min_recovery_timeline: TimelineId,
    pub backup_start: Lsn,
    pub backup_end: Lsn,
    pub backup_end_required: bool,
    /// 0 minimal, 1 replica, 2 logical
    pub wal_level: i32,
    pub wal_log_hints: bool,
    pub max_connections: i32,
    pub max_worker_processes: i32,
    pub max_wal_senders: i32,
    pub max_prepared_transactions: i32,
    pub max_locks_per_transaction: i32,
    pub track_commit_timestamp: bool,
    pub maximum_alignment: u32,
    pub block_size: u32,
    /// blocks in each file of a large relation
    pub relation_segment_size: u32,
    pub wal_block_size: u32,
    pub wal_segment_size: u32,
    pub name_data_length: u32,
    pub index_max_keys: u32,
    pub toast_max_chunk_size: u32,
    pub large_object_block_size: u32,
    pub float8_by_val: bool,
    /// 0: off
    pub data_checksum_version: u32,
    /// 18 and later: char is signed (always so on x86-64; earlier versions do not record it)
    pub default_char_signedness: Option<bool>,
}

impl ControlFile {
    /// Reads the file's bytes (8192; at least the struct itself). Error codes: `control-file-version` when it
    /// is of a version we do not know, `control-file-damaged` when the CRC or a value is wrong.
    pub fn parse(content: &[u8]) -> Result<ControlFile> {
        let damaged = |what: String| {
            Error::new(
                "control-file-damaged",
                "the control file \"global/pg_control\" is damaged",
            )
            .detail(what)
        };
        let short = || damaged(format!("It has {} bytes only.", content.len()));
        let pg_control_version = bytes::u32_at(content, 8).ok_or_else(short)?;
        let catalog_version = bytes::u32_at(content, 12).ok_or_else(short)?;
        let known = matches!(pg_control_version, 1300 | 1700 | 1800);
        let unknown = || {
            let text =
                format!("control file version {pg_control_version}, catalog version {catalog_version}");
            Error::new(
                "control-file-version",
                format!("the cluster's format is not supported: {text}"),
            )
            .hint("pgproof supports released versions of PostgreSQL 13 to 18 on little-endian machines.")
        };
        if !known {
            return Err(unknown());
        }
        // 18 put default_char_signedness before the nonce.
        let crc_offset = if pg_control_version >= 1800 { 292 } else { 288 };
        let stored = bytes::u32_at(content, crc_offset).ok_or_else(short)?;
        let computed = crc32c::crc32c(content.get(..crc_offset).ok_or_else(short)?);
        if stored != computed {
            return Err(damaged(format!(
                "Its CRC is {computed:08X}; it says {stored:08X}."
            )));
        }
        let major = Major::from_control_version(pg_control_version, catalog_version).ok_or_else(unknown)?;

        // The struct is complete and its CRC is right: every offset below is inside it.
        let u32_at = |offset| bytes::u32_at(content, offset).unwrap_or_default();
        let i32_at = |offset| bytes::i32_at(content, offset).unwrap_or_default();
        let u64_at = |offset| bytes::u64_at(content, offset).unwrap_or_default();
        let flag_at = |offset| bytes::u8_at(content, offset).unwrap_or_default() != 0;
        let seconds_at = |offset| from_unix_seconds(bytes::i64_at(content, offset).unwrap_or_default());

        let state = u32_at(16);
        let state =
            ClusterState::from_number(state).ok_or_else(|| damaged(format!("Its state is {state}.")))?;
        let float_format = f64::from_bits(u64_at(208));
        if float_format != 1_234_567.0 {
            return Err(damaged(format!(
                "Its floating-point format constant is {float_format}."
            )));
        }
        Ok(ControlFile {
            system_identifier: SystemIdentifier(u64_at(0)),
            pg_control_version,
            catalog_version,
            major,
            state,
            time: seconds_at(24),
            checkpoint: Lsn(u64_at(32)),
            checkpoint_redo: Lsn(u64_at(40)),
            checkpoint_timeline: TimelineId(u32_at(48)),
            prev_timeline: TimelineId(u32_at(52)),
            full_page_writes: flag_at(56),
            next_xid: u64_at(64),
            next_oid: u32_at(72),
            next_multi: u32_at(76),
            checkpoint_time: seconds_at(104),
            unlogged_lsn: Lsn(u64_at(128)),
            min_recovery_point: Lsn(u64_at(136)),
            min_recovery_timeline: TimelineId(u32_at(144)),
            backup_start: Lsn(u64_at(152)),
            backup_end: Lsn(u64_at(160)),
            backup_end_required: flag_at(168),
            wal_level: i32_at(172),
            wal_log_hints: flag_at(176),
            max_connections: i32_at(180),
            max_worker_processes: i32_at(184),
            max_wal_senders: i32_at(188),
            max_prepared_transactions: i32_at(192),
            max_locks_per_transaction: i32_at(196),
            track_commit_timestamp: flag_at(200),
            maximum_alignment: u32_at(204),
            block_size: u32_at(216),
            relation_segment_size: u32_at(220),
            wal_block_size: u32_at(224),
            wal_segment_size: u32_at(228),
            name_data_length: u32_at(232),
            index_max_keys: u32_at(236),
            toast_max_chunk_size: u32_at(240),
            large_object_block_size: u32_at(244),
            float8_by_val: flag_at(248),
            data_checksum_version: u32_at(252),
            default_char_signedness: (pg_control_version >= 1800).then(|| flag_at(256)),
        })
    }
}

/// Saturates at the ends of what jiff can hold.
fn from_unix_seconds(seconds: i64) -> jiff::Timestamp {
    let end = if seconds < 0 {
        jiff::Timestamp::MIN
    } else {
        jiff::Timestamp::MAX
    };
    jiff::Timestamp::from_second(seconds).unwrap_or(end)
}
