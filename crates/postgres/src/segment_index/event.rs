//! Events: the records that matter to somebody who recovers a cluster, decoded for PostgreSQL 13 to 18.
//!
//! Sources: `xact.h` and `xactdesc.c`, `pg_control.h`, `xlog_internal.h`, `storage_xlog.h`,
//! `dbcommands_xlog.h`, `tablespace.h`, `relmapper.h`, `heapam_xlog.h`, `message.h`, `twophase.c`. A record
//! whose CRC is right but whose content cannot be understood is an error of that record, never silently
//! nothing.

use serde::{Deserialize, Serialize};

use crate::wal::{RawRecord, Record, resource_manager};
use crate::{
    Fork, GLOBAL_TABLESPACE, Lsn, Major, Oid, RelationLocator, TimelineId, Timestamp, TransactionEnd,
    TransactionEndKind, Xid, bytes,
};

/// Something that happened in the WAL, at the record that begins at `lsn`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Event {
    /// the start of the record: recovering to just before it, exclusive, undoes it
    pub lsn: Lsn,
    pub end: Lsn,
    /// the transaction; 0 for none
    pub xid: Xid,
    pub kind: EventKind,
}

/// What happened. The order of the variants is part of the encoded form: new ones go to the end.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum EventKind {
    /// Storage that the end of a transaction removes: DROP, TRUNCATE, a rewrite, or an undone creation.
    RelationsDropped {
        locators: Vec<RelationLocator>,
        aborted: bool,
    },
    RelationCreated {
        locator: RelationLocator,
        fork: Fork,
    },
    /// Cut to `blocks` blocks; `flags`: 1 main, 2 visibility map, 4 free space map.
    RelationTruncated {
        locator: RelationLocator,
        blocks: u32,
        flags: u32,
    },
    /// TRUNCATE of these tables and sequences by OID; only with `wal_level=logical`.
    HeapTruncate {
        database: Oid,
        relations: Vec<Oid>,
        cascade: bool,
        restart_sequences: bool,
    },
    /// By copying files (`source` known), or block by block through the WAL.
    DatabaseCreated {
        database: Oid,
        tablespace: Oid,
        source: Option<Oid>,
        by_copy: bool,
    },
    DatabaseDropped {
        database: Oid,
        tablespaces: Vec<Oid>,
    },
    /// `pg_database` was marked for a DROP DATABASE; recover to before this record to keep the database.
    /// `None`: an in-place change of `pg_database` that cannot be read (a compressed page image).
    DatabaseDropIntent {
        database: Option<Oid>,
    },
    TablespaceCreated {
        tablespace: Oid,
        path: String,
    },
    TablespaceDropped {
        tablespace: Oid,
    },
    ParameterChange {
        max_connections: i32,
        max_worker_processes: i32,
        max_wal_senders: i32,
        max_prepared_transactions: i32,
        max_locks_per_transaction: i32,
        /// 0 minimal, 1 replica, 2 logical
        wal_level: i32,
        wal_log_hints: bool,
        track_commit_timestamp: bool,
    },
    Checkpoint {
        redo: Lsn,
        timeline: TimelineId,
        previous_timeline: TimelineId,
        full_page_writes: bool,
        /// false: at a shutdown
        online: bool,
        /// whole seconds
        time: Timestamp,
    },
    FullPageWrites(bool),
    RestorePoint {
        name: String,
        time: Timestamp,
    },
    EndOfRecovery {
        timeline: TimelineId,
        previous: TimelineId,
        time: Timestamp,
    },
    /// The record begun at `overwritten` was given up after a crash.
    OverwriteContrecord {
        overwritten: Lsn,
        time: Timestamp,
    },
    Prepare {
        xid: Xid,
        gid: String,
    },
    Switch,
    CheckpointRedo,
    /// An extension's resource manager; once in a segment.
    CustomResourceManager(u8),
    /// A base backup that began at `start` has ended.
    BackupEnd {
        start: Lsn,
    },
    /// `database` 0: the shared map.
    RelationMapUpdate {
        database: Oid,
        tablespace: Oid,
    },
    /// Only the prefix, never the content; `length` in bytes.
    LogicalMessage {
        database: Oid,
        transactional: bool,
        prefix: String,
        length: u64,
    },
    NextOid(Oid),
    /// A record that changes relations in a way we do not know (`XLR_SPECIAL_REL_UPDATE`): a map of changed
    /// blocks is not to be trusted across it.
    SpecialUpdate {
        resource_manager: u8,
        info: u8,
    },
}

/// What one record yields.
#[derive(Debug, Default)]
pub(super) struct Decoded {
    pub events: Vec<EventKind>,
    pub transaction: Option<TransactionEnd>,
    /// the top transaction and its subtransactions (`XLOG_XACT_ASSIGNMENT`)
    pub assignment: Option<(Xid, Vec<Xid>)>,
}

type Outcome = Result<(), &'static str>;

const SHORT: &str = "its content is too short";
const SPECIAL_UPDATE: u8 = 0x01;

/// Whether the record may yield anything: cheap, for it is asked of each record.
#[inline(always)]
pub(super) fn matters(manager: u8, info: u8) -> bool {
    match manager {
        resource_manager::XLOG => !matches!(info & 0xF0, 0x20 | 0xA0 | 0xB0),
        resource_manager::TRANSACTION
        | resource_manager::STORAGE
        | resource_manager::DATABASE
        | resource_manager::TABLESPACE
        | resource_manager::RELATION_MAP
        | resource_manager::LOGICAL_MESSAGE => true,
        resource_manager::HEAP => matches!(info & 0x70, 0x30 | 0x70),
        _ => info & SPECIAL_UPDATE != 0,
    }
}

/// Decodes one record; an error says what is wrong with it.
pub(super) fn decode(record: &Record, raw: &RawRecord<'_>, major: Major, out: &mut Decoded) -> Outcome {
    let data = record.main_data(raw);
    let operation = record.info & 0xF0;
    match record.resource_manager {
        resource_manager::XLOG => xlog(operation, data, out),
        resource_manager::TRANSACTION => transaction(record, data, major, out),
        resource_manager::STORAGE => storage(operation, data, out),
        resource_manager::DATABASE => database(operation, data, major, out),
        resource_manager::TABLESPACE => tablespace(operation, data, out),
        resource_manager::RELATION_MAP => {
            let (database, tablespace) = (oid(data, 0)?, oid(data, 4)?);
            out.events
                .push(EventKind::RelationMapUpdate { database, tablespace });
            Ok(())
        }
        resource_manager::HEAP => heap(record, raw, data, major, out),
        resource_manager::LOGICAL_MESSAGE => logical_message(data, out),
        other => {
            if record.info & SPECIAL_UPDATE != 0 {
                out.events.push(EventKind::SpecialUpdate {
                    resource_manager: other,
                    info: record.info,
                });
            }
            Ok(())
        }
    }
}

fn oid(data: &[u8], offset: usize) -> Result<Oid, &'static str> {
    bytes::u32_at(data, offset).ok_or(SHORT)
}

fn time(data: &[u8], offset: usize) -> Result<Timestamp, &'static str> {
    bytes::i64_at(data, offset).map(Timestamp).ok_or(SHORT)
}

fn lsn(data: &[u8], offset: usize) -> Result<Lsn, &'static str> {
    bytes::u64_at(data, offset).map(Lsn).ok_or(SHORT)
}

fn timeline(data: &[u8], offset: usize) -> Result<TimelineId, &'static str> {
    bytes::u32_at(data, offset).map(TimelineId).ok_or(SHORT)
}

fn flag(data: &[u8], offset: usize) -> Result<bool, &'static str> {
    bytes::u8_at(data, offset).map(|byte| byte != 0).ok_or(SHORT)
}

fn locator(data: &[u8], offset: usize) -> Result<RelationLocator, &'static str> {
    Ok(RelationLocator {
        tablespace: oid(data, offset)?,
        database: oid(data, offset + 4)?,
        relation: oid(data, offset + 8)?,
    })
}

/// Text up to the first NUL or the end; bytes that are not UTF-8 are replaced.
fn text(data: &[u8]) -> String {
    let end = data.iter().position(|b| *b == 0).unwrap_or(data.len());
    String::from_utf8_lossy(data.get(..end).unwrap_or_default()).into_owned()
}

/// The items of a counted array: count (int32) at `offset`, then items of `size` bytes; and where it ends.
fn array(data: &[u8], offset: usize, size: usize) -> Result<(&[u8], usize), &'static str> {
    let count = usize::try_from(bytes::i32_at(data, offset).ok_or(SHORT)?).map_err(|_| "a negative count")?;
    let start = offset + 4;
    let length = count.checked_mul(size).ok_or(SHORT)?;
    let end = start.checked_add(length).ok_or(SHORT)?;
    Ok((data.get(start..end).ok_or(SHORT)?, end))
}

fn xids(items: &[u8]) -> Vec<Xid> {
    items
        .as_chunks::<4>()
        .0
        .iter()
        .map(|item| Xid(u32::from_le_bytes(*item)))
        .collect()
}

fn locators(items: &[u8]) -> Result<Vec<RelationLocator>, &'static str> {
    items.chunks_exact(12).map(|item| locator(item, 0)).collect()
}

fn xlog(operation: u8, data: &[u8], out: &mut Decoded) -> Outcome {
    // Microseconds from 1970 to 2000, for checkpoints keep Unix seconds.
    let unix_seconds = |offset| -> Result<Timestamp, &'static str> {
        let seconds = bytes::i64_at(data, offset).ok_or(SHORT)?;
        Ok(Timestamp(
            seconds.saturating_sub(946_684_800).saturating_mul(1_000_000),
        ))
    };
    out.events.push(match operation {
        0x00 | 0x10 => EventKind::Checkpoint {
            redo: lsn(data, 0)?,
            timeline: timeline(data, 8)?,
            previous_timeline: timeline(data, 12)?,
            full_page_writes: flag(data, 16)?,
            online: operation == 0x10,
            time: unix_seconds(64)?,
        },
        0x30 => EventKind::NextOid(oid(data, 0)?),
        0x40 => EventKind::Switch,
        0x50 => EventKind::BackupEnd { start: lsn(data, 0)? },
        0x60 => {
            let number = |index: usize| bytes::i32_at(data, index * 4).ok_or(SHORT);
            EventKind::ParameterChange {
                max_connections: number(0)?,
                max_worker_processes: number(1)?,
                max_wal_senders: number(2)?,
                max_prepared_transactions: number(3)?,
                max_locks_per_transaction: number(4)?,
                wal_level: number(5)?,
                wal_log_hints: flag(data, 24)?,
                track_commit_timestamp: flag(data, 25)?,
            }
        }
        0x70 => EventKind::RestorePoint {
            time: time(data, 0)?,
            name: text(data.get(8..).ok_or(SHORT)?),
        },
        0x80 => EventKind::FullPageWrites(flag(data, 0)?),
        0x90 => EventKind::EndOfRecovery {
            time: time(data, 0)?,
            timeline: timeline(data, 8)?,
            previous: timeline(data, 12)?,
        },
        0xD0 => EventKind::OverwriteContrecord {
            overwritten: lsn(data, 0)?,
            time: time(data, 8)?,
        },
        0xE0 => EventKind::CheckpointRedo,
        _ => return Err("an operation of resource manager XLOG that is not known"),
    });
    Ok(())
}

/// What `xinfo` of a commit or abort record announces.
mod xinfo {
    pub const DATABASE: u32 = 1 << 0;
    pub const SUBTRANSACTIONS: u32 = 1 << 1;
    pub const RELATIONS: u32 = 1 << 2;
    pub const INVALIDATIONS: u32 = 1 << 3;
    pub const TWO_PHASE: u32 = 1 << 4;
    /// 15 and later
    pub const DROPPED_STATISTICS: u32 = 1 << 8;
}

fn transaction(record: &Record, data: &[u8], major: Major, out: &mut Decoded) -> Outcome {
    let kind = match record.info & 0x70 {
        0x00 => TransactionEndKind::Commit,
        0x20 => TransactionEndKind::Abort,
        0x30 => TransactionEndKind::CommitPrepared,
        0x40 => TransactionEndKind::AbortPrepared,
        0x10 => return prepare(data, major, out),
        0x50 => {
            let (subxids, _) = array(data, 4, 4)?;
            out.assignment = Some((Xid(oid(data, 0)?), xids(subxids)));
            return Ok(());
        }
        // Invalidation messages for logical decoding (14+).
        0x60 => return Ok(()),
        _ => return Err("an operation of resource manager Transaction that is not known"),
    };
    let mut end = TransactionEnd {
        start: record.start,
        end: record.end,
        xid: record.xid,
        time: time(data, 0)?,
        kind,
        subxids: Vec::new(),
    };
    let mut cursor = 8;
    if record.info & 0x80 != 0 {
        let flags = oid(data, cursor)?;
        cursor += 4;
        if flags & xinfo::DATABASE != 0 {
            cursor += 8;
        }
        if flags & xinfo::SUBTRANSACTIONS != 0 {
            let (items, next) = array(data, cursor, 4)?;
            end.subxids = xids(items);
            cursor = next;
        }
        if flags & xinfo::RELATIONS != 0 {
            let (items, next) = array(data, cursor, 12)?;
            let locators = locators(items)?;
            if !locators.is_empty() {
                out.events.push(EventKind::RelationsDropped {
                    locators,
                    aborted: !kind.is_commit(),
                });
            }
            cursor = next;
        }
        if flags & xinfo::DROPPED_STATISTICS != 0 && major >= Major(15) {
            (_, cursor) = array(data, cursor, if major >= Major(18) { 16 } else { 12 })?;
        }
        if flags & xinfo::INVALIDATIONS != 0 && kind.is_commit() {
            (_, cursor) = array(data, cursor, 16)?;
        }
        if flags & xinfo::TWO_PHASE != 0 {
            end.xid = Xid(oid(data, cursor)?);
        }
    }
    out.transaction = Some(end);
    Ok(())
}

/// `xl_xact_prepare`: the state file of a prepared transaction. 15 put two counts into its header.
fn prepare(data: &[u8], major: Major, out: &mut Decoded) -> Outcome {
    let (gid_length_at, gid_at) = if major >= Major(15) { (54, 72) } else { (46, 64) };
    let length = usize::from(bytes::u16_at(data, gid_length_at).ok_or(SHORT)?);
    let gid = data
        .get(gid_at..)
        .and_then(|rest| rest.get(..length))
        .ok_or(SHORT)?;
    out.events.push(EventKind::Prepare {
        xid: Xid(oid(data, 8)?),
        gid: text(gid),
    });
    Ok(())
}

fn storage(operation: u8, data: &[u8], out: &mut Decoded) -> Outcome {
    out.events.push(match operation {
        0x10 => EventKind::RelationCreated {
            locator: locator(data, 0)?,
            fork: Fork::from_number(oid(data, 12)?).ok_or("a fork that is not known")?,
        },
        0x20 => EventKind::RelationTruncated {
            blocks: oid(data, 0)?,
            locator: locator(data, 4)?,
            flags: oid(data, 16)?,
        },
        _ => return Err("an operation of resource manager Storage that is not known"),
    });
    Ok(())
}

fn database(operation: u8, data: &[u8], major: Major, out: &mut Decoded) -> Outcome {
    // 15 put CREATE DATABASE ... STRATEGY wal_log between the two operations there had been.
    let operation = if major < Major(15) && operation == 0x10 {
        0x20
    } else {
        operation
    };
    let database = oid(data, 0)?;
    out.events.push(match operation {
        0x00 => EventKind::DatabaseCreated {
            database,
            tablespace: oid(data, 4)?,
            source: Some(oid(data, 8)?),
            by_copy: true,
        },
        0x10 => EventKind::DatabaseCreated {
            database,
            tablespace: oid(data, 4)?,
            source: None,
            by_copy: false,
        },
        0x20 => {
            let (items, _) = array(data, 4, 4)?;
            EventKind::DatabaseDropped {
                database,
                tablespaces: xids(items).iter().map(|item| item.0).collect(),
            }
        }
        _ => return Err("an operation of resource manager Database that is not known"),
    });
    Ok(())
}

fn tablespace(operation: u8, data: &[u8], out: &mut Decoded) -> Outcome {
    let tablespace = oid(data, 0)?;
    out.events.push(match operation {
        0x00 => EventKind::TablespaceCreated {
            tablespace,
            path: text(data.get(4..).ok_or(SHORT)?),
        },
        0x10 => EventKind::TablespaceDropped { tablespace },
        _ => return Err("an operation of resource manager Tablespace that is not known"),
    });
    Ok(())
}

fn logical_message(data: &[u8], out: &mut Decoded) -> Outcome {
    let prefix_length = usize::try_from(bytes::u64_at(data, 8).ok_or(SHORT)?).map_err(|_| SHORT)?;
    let rest = data.get(24..).ok_or(SHORT)?;
    out.events.push(EventKind::LogicalMessage {
        database: oid(data, 0)?,
        transactional: flag(data, 4)?,
        prefix: text(rest.get(..prefix_length).ok_or(SHORT)?),
        length: bytes::u64_at(data, 16).ok_or(SHORT)?,
    });
    Ok(())
}

fn heap(record: &Record, raw: &RawRecord<'_>, data: &[u8], major: Major, out: &mut Decoded) -> Outcome {
    match record.info & 0x70 {
        // XLOG_HEAP_TRUNCATE
        0x30 => {
            let count = oid(data, 4)? as usize;
            let flags = bytes::u8_at(data, 8).ok_or(SHORT)?;
            let end = count
                .checked_mul(4)
                .and_then(|length| length.checked_add(12))
                .ok_or(SHORT)?;
            let items = data.get(12..end).ok_or(SHORT)?;
            out.events.push(EventKind::HeapTruncate {
                database: oid(data, 0)?,
                relations: xids(items).iter().map(|item| item.0).collect(),
                cascade: flags & 1 != 0,
                restart_sequences: flags & 2 != 0,
            });
        }
        // XLOG_HEAP_INPLACE. PostgreSQL changes one shared catalog in place, pg_database, whose relfilenode
        // need not be 1262: it may have been rewritten.
        0x70 => {
            let on_shared = |block: &&crate::BlockReference| block.locator.tablespace == GLOBAL_TABLESPACE;
            if let Some(block) = record.blocks.first().filter(on_shared) {
                let offset = bytes::u16_at(data, 0).ok_or(SHORT)?;
                let page;
                let row = if block.has_data {
                    Some(block.data(raw))
                } else {
                    page = block.page(raw);
                    page.as_ref()
                        .and_then(|page| row_of_page(page.as_slice(), offset))
                };
                match row.and_then(|row| database_and_connection_limit(row, major)) {
                    // DATCONNLIMIT_INVALID_DB
                    Some((database, -2)) => {
                        out.events.push(EventKind::DatabaseDropIntent {
                            database: Some(database),
                        });
                    }
                    Some(_) => {}
                    None => out.events.push(EventKind::DatabaseDropIntent { database: None }),
                }
            }
        }
        _ => {}
    }
    Ok(())
}

/// The columns of a heap tuple, without its header; `offset` is its line pointer, from 1.
fn row_of_page(page: &[u8], offset: u16) -> Option<&[u8]> {
    let pointer = bytes::u32_at(page, 24 + 4 * usize::from(offset.checked_sub(1)?))?;
    let (tuple_at, length) = ((pointer & 0x7FFF) as usize, (pointer >> 17) as usize);
    let tuple = page.get(tuple_at..)?.get(..length)?;
    let header_length = usize::from(bytes::u8_at(tuple, 22)?);
    tuple.get(header_length..)
}

/// `oid` and `datconnlimit` of a row of `pg_database`; their places have been fixed within each version.
fn database_and_connection_limit(row: &[u8], major: Major) -> Option<(Oid, i32)> {
    let limit_at = if major >= Major(15) { 80 } else { 208 };
    Some((bytes::u32_at(row, 0)?, bytes::i32_at(row, limit_at)?))
}
