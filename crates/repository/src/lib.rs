//! What pgproof keeps: stores, keys, containers, packs and maps of backups, WAL, evidence. `docs/format.md`
//! is normative.
//!
//! Invariants: an object under its name is complete and never changes; a record is written last and makes a
//! backup exist; everything is verified when it is read, and damage is an error with a stable code, never a
//! panic, never a wrong byte.

mod actions;
mod arrivals;
mod backup;
mod blocks;
mod bytes;
mod checked_json;
mod claims;
mod collection;
mod container;
mod evidence;
mod evidence_chain;
mod expiries;
mod extents;
mod file_writer;
mod framed;
pub mod hex;
mod identity;
mod keys;
mod leaf_builder;
mod leases;
mod map;
mod names;
mod nodes;
mod orphans;
mod path;
mod pins;
mod read;
#[doc(hidden)]
pub mod readers;
mod repository;
mod run;
mod seal;
pub mod store;
mod tree_reader;
mod tree_writer;
mod verifications;
mod verify;
mod wal;

pub use actions::{
    ActionBegun, ActionBy, ActionEnded, ActionKind, ActionOutcome, OpenAction, RecordedAction,
};
pub use backup::{
    Backup, BackupTablespace, Collation, ConfigurationFile, ExcusedPage, Geometry, HistoryStep, PackUse,
    RECORD_VERSION, RecoverySettings, Tree, Unread,
};
pub use blocks::{BlockFacts, FilePart, FileWriter, PackStatistics, PackWriter};
pub use claims::{Claim, TakeOver, Writer};
pub use collection::{
    CLOCK_TOLERANCE, CONDEMNED_WAIT, Collected, CondemnedPack, LiveRun, Removal, WalObject,
};
pub use evidence::{MANIFEST, registration_id};
pub use evidence_chain::{Addition, Chain, ChainLink, ChainResult, StoredLink, first_difference};
pub use expiries::{ExpiredWal, Expiry, ProtectedBackup, merge_expired};
pub use identity::{BlockDigest, Identity};
pub use keys::{RecipientKey, Role};
pub use leases::{HeldLease, LEASE_LIFE, Lease};
pub use map::{
    BLOCK_BYTES, BlockFlags, BlockRun, Content, EntryKind, FRAME_BLOCKS, FRAME_BYTES, FileEntry, FileFormat,
    FrameRef, INLINE_BLOCKS, LEAF_BLOCKS, Leaf, LeafRef, Location, Overlay, Page, PageRef, Root, blocks_of,
};
pub use names::{BackupId, PackKind, PackRef, RunId, check_cluster_name};
pub use path::{PATH_BYTES_MAX, RelativePath};
pub use pins::Pin;
pub use read::{BlockReader, Piece, Wanted};
pub use repository::{ClusterRepository, Repository};
pub use run::{Run, RunInfo};
pub use store::{LocalFolder, ObjectInfo, ObjectWriter, Put, RequestCounts, Store, create_store, open_store};
pub use store::{OverlayStore, S3Credentials, S3Keys, S3Options, S3Store};
pub use tree_reader::{Entries, Leaves, TreeReader};
pub use tree_writer::{TreeStatistics, TreeWriter};
pub use verifications::Verification;
pub use verify::{Finding, VerifyOptions, VerifyProgress, VerifyResult, verify, verify_watched};
pub use wal::{PutWal, Segments, WalFileKind, WalFileObject, WalSegmentObject};
