//! Reading WAL: pages, records, and the exact place and reason where valid WAL ends.
//!
//! Sources: `xlog_internal.h`, `xlogrecord.h`, `xlogreader.c` of PostgreSQL 13 to 18. Nothing in a record is
//! used before its CRC-32C is right, and memory grows only with bytes that are really there.

mod end;
mod page_header;
mod reader;
mod record;

pub use end::{EndOfWal, EndReason};
pub use page_header::{PageHeaderWal, SegmentHeader};
pub use reader::{Feed, RawRecord, RecordReader};
pub use record::{BlockReference, Record};

/// `RmgrId`s of `rmgrlist.h` that are looked into; the numbers are the same in 13 to 18.
pub mod resource_manager {
    pub const XLOG: u8 = 0;
    pub const TRANSACTION: u8 = 1;
    pub const STORAGE: u8 = 2;
    pub const DATABASE: u8 = 4;
    pub const TABLESPACE: u8 = 5;
    pub const RELATION_MAP: u8 = 7;
    pub const HEAP2: u8 = 9;
    pub const HEAP: u8 = 10;
    pub const LOGICAL_MESSAGE: u8 = 21;
    /// the last one that PostgreSQL itself has
    pub const LAST_BUILT_IN: u8 = 21;
    /// from here on an extension's (15 and later)
    pub const FIRST_CUSTOM: u8 = 128;
}

/// A record is never longer than this (`XLogRecordMaxSize`), bytes.
pub const RECORD_LENGTH_MAX: u32 = 1020 << 20;

/// pg_waldump's name of a resource manager; custom ones are `custom128` and so on.
pub fn resource_manager_name(id: u8) -> String {
    const NAMES: [&str; 22] = [
        "XLOG",
        "Transaction",
        "Storage",
        "CLOG",
        "Database",
        "Tablespace",
        "MultiXact",
        "RelMap",
        "Standby",
        "Heap2",
        "Heap",
        "Btree",
        "Hash",
        "Gin",
        "Gist",
        "Sequence",
        "SPGist",
        "BRIN",
        "CommitTs",
        "ReplicationOrigin",
        "Generic",
        "LogicalMessage",
    ];
    match NAMES.get(usize::from(id)) {
        Some(name) => (*name).to_string(),
        None => format!("custom{id:03}"),
    }
}
