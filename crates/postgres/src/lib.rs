//! What PostgreSQL writes, as values: the formats of PostgreSQL 13 to 18, and what one segment of its WAL
//! says.
//!
//! Pure: bytes and text in, values out; no file, network, clock or environment is touched. Every parser is
//! total: any bytes give a value or an error, never a panic, and nothing is allocated by a length that was
//! not checked first. Names are PostgreSQL's own. Little-endian, 64-bit builds only, with 8 KiB blocks where
//! pages are looked at; other geometry is reported by the control file and the WAL, never assumed.

mod backup_label;
mod bytes;
mod catalog;
mod catalog_rows;
mod control_file;
mod lsn;
mod page;
mod relation_file;
mod segment_index;
mod timeline;
mod timestamp;
mod version;
pub mod wal;
mod wal_file;

pub use backup_label::{BackupLabel, tablespace_map};
pub use catalog::{Catalog, Database, Relation, RelationFinder};
pub use catalog_rows::{RelationRow, relation_rows};
pub use control_file::{ClusterState, ControlFile};
pub use lsn::{Lsn, Oid, SystemIdentifier, TimelineId, Xid};
pub use page::{BLOCK_SIZE, PageHeader, PageVerdict, page_checksum, page_lsn, verify_page};
pub use relation_file::{DEFAULT_TABLESPACE, Fork, GLOBAL_TABLESPACE, RelationFile, RelationLocator};
pub use segment_index::{
    ChangedBlock, ChangedPages, ChangedRelation, Event, EventKind, Excuse, NoMap, RowChanges, Seam,
    SegmentIndex, SegmentIndexer, Statistics, TailSeam, TransactionEnd, TransactionEndKind, Verdict,
    WindowOfWal, tail_bytes,
};
pub use timeline::{HistoryStep, TimelineHistory};
pub use timestamp::Timestamp;
pub use version::Major;
pub use wal::{
    BlockReference, EndOfWal, EndReason, Record, RecordReader, SegmentHeader, resource_manager_name,
};
pub use wal_file::{WalFile, segment_name, valid_segment_size};
