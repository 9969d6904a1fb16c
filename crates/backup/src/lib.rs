//! From a cluster into the repository: base backups, WAL segments, and what the live WAL says that is not archived yet.
//!
//! Invariants of the room: a backup's record exists only when every block that it names and all WAL from its start to
//! its stop are durable in the same copy; a WAL file is acknowledged only when it is durable in as many copies as the
//! policy says; nothing that is already safe is read or stored again for nothing; nothing in PostgreSQL's data
//! directory is ever written, locked or evicted from the cache that production uses.
//!
//! Clock, configuration and environment are the caller's: they come in as arguments.

pub mod backlog;
pub mod base;
pub mod live_wal;
pub mod look_ahead;
pub mod readers;
pub mod spool;
pub mod wal_push;
pub mod wal_receive;

mod history_file;
mod previous_tail;
mod room;

pub use backlog::{Backlog, BacklogLimits};
pub use base::{
    BackupResult, BaseBackupOptions, DamagedPage, Finding, Plan, PlanOptions, Progress, ProgressState, Stage,
};
pub use live_wal::{LiveTail, read_live_tail};
pub use look_ahead::{AheadOptions, AheadResult, push_ahead, ready_file};
pub use spool::{Circumstances, FileIdentity, Spool};
pub use wal_push::{Copy, PushOptions, PushResult, RESTORED_MARKER, push};
