//! Brings what teams have today into a repository: base backups of `pg_basebackup` or of a copied data directory, and
//! folders or archives of WAL. What comes out is an ordinary backup and ordinary WAL objects.
//!
//! [`Survey::take`] reads all of it and stores nothing; [`plan`] decides for one copy; [`run`] reads it a second time and
//! stores it, WAL first, the record last. Nothing is ever extracted to disk.
//!
//! Invariants: a backup is recorded only when all WAL from its start to its end is there, valid, and of the same cluster;
//! what changed between the two readings fails the import; a timeline that a server archives into this repository is never
//! written ahead of that server; nothing is claimed, so that no archiver is ever locked out by an import. Error codes:
//! `import-*`, `wal-segment-*`, `wal-conflict`, `control-file-damaged`, `backup-label-damaged`,
//! `backup-manifest-damaged`, `geometry-unsupported`, `timeline-history-missing`.

mod archive;
mod facts;
mod open;
mod plan;
pub(crate) mod readers;
mod store;
mod survey;
mod walk;

pub use plan::{ImportPlan, plan};
pub use store::{ImportOptions, ImportResult, run};
pub use survey::Survey;
pub use walk::Base;
