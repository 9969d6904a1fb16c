//! A live PostgreSQL cluster as pgproof meets it: the SQL session, the facts it tells, its files, and the
//! local servers that pgproof starts itself (and shuts off from everything else).
//!
//! Invariants of the room: PostgreSQL 13 to 18 are spoken to in their own words; nothing waits for ever
//! (each statement, start and stop has a limit); no program of PostgreSQL runs as root; what is listed as
//! belonging to a backup is what PostgreSQL's own `basebackup.c` would send. The room knows no repository,
//! reads no environment and no configuration file of pgproof.

pub mod archiving;
pub mod backup_session;
pub mod catalog;
pub mod configuration;
pub mod conninfo;
pub mod control_facts;
pub mod data_directory;
pub mod facts;
pub mod instance;
pub mod postmaster;
pub mod programs;
pub mod readers;
pub mod replication;
pub mod sandbox;
pub mod session;

mod wire;

pub use archiving::{ArchiverStatus, archiver_status, switch_wal};
pub use backup_session::{BackupSession, BackupStop};
pub use catalog::read_catalog;
pub use configuration::{CapturedFile, captured_configuration};
pub use control_facts::{ControlFacts, control_facts};
pub use data_directory::{
    Entry, EntryKind, Listing, Skipped, list, list_reporting, owner, read_control_file,
};
pub use facts::{CollationVersion, RecoverySettings, ServerFacts, Tablespace, gather};
pub use instance::{InitOptions, Instance, Launcher, StartOptions, StopMode};
pub use programs::Programs;
pub use replication::ReplicationSession;
pub use sandbox::{LayerState, Layers, Network, Probe, ProbeExpectation, ProbeOutcome, Quarantine};
pub use session::{CancelHandle, ConnectOptions, Session};
