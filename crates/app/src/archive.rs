//! The archive of a cluster, opened for looking: which system it is, and what all copies hold of its WAL.

use diagnostic::{Error, Result};
use history::Archive;
use postgres::{ControlFile, SystemIdentifier};
use repository::{Backup, BackupId, ClusterRepository};

use crate::config::Cluster;
use crate::copies::OpenCopy;

/// Which cluster's WAL is meant.
#[derive(Debug, Clone, Copy)]
pub struct System {
    pub identifier: SystemIdentifier,
    pub wal_segment_size: u32,
}

/// The control file of the configured data directory, if it can be read.
pub fn control_file(cluster: &Cluster) -> Option<ControlFile> {
    cluster::read_control_file(cluster.data_directory.as_deref()?)
        .ok()
        .map(|(_, control)| control)
}

/// All backups of all copies, oldest first; the same identifier in two copies is two backups.
pub fn backups(copies: &[OpenCopy]) -> Result<Vec<Backup>> {
    let mut backups = Vec::new();
    for copy in copies {
        backups.extend(copy.cluster.backups()?);
    }
    backups.sort_by_key(|backup| backup.backup);
    Ok(backups)
}

/// The live server's system where it can be told, else that of the newest backup.
pub fn system(control: Option<&ControlFile>, backups: &[Backup]) -> Option<System> {
    let live = control.map(|control| System {
        identifier: control.system_identifier,
        wal_segment_size: control.wal_segment_size,
    });
    live.or_else(|| of_newest_backup(backups))
}

/// The system of the newest backup.
pub fn of_newest_backup(backups: &[Backup]) -> Option<System> {
    backups.last().map(|backup| System {
        identifier: backup.system_identifier,
        wal_segment_size: backup.geometry.wal_segment_size,
    })
}

/// The system of the backup that was named, else of the newest one: after an upgrade a cluster's name has had several.
/// Nothing where there is no backup.
pub fn of_backup(backups: &[Backup], named: Option<BackupId>) -> Option<System> {
    let named = backups.iter().rfind(|backup| Some(backup.backup) == named);
    of_newest_backup(named.map_or(backups, std::slice::from_ref))
}

/// What the copies hold of that system's WAL.
pub fn open(copies: &[OpenCopy], system: System) -> Result<Archive> {
    let clusters: Vec<ClusterRepository> = copies.iter().map(|copy| copy.cluster.clone()).collect();
    Archive::load(&clusters, system.identifier, system.wal_segment_size)
}

/// There is neither a backup nor a readable data directory: nobody can say whose WAL is meant.
pub fn unknown_system(cluster: &Cluster) -> Error {
    Error::new(
        "cluster-empty",
        format!("nothing is known of cluster {:?} yet", cluster.name),
    )
    .detail("It has no backup, and its data directory cannot be read from here.")
    .hint(format!("Make a backup with `pgproof backup {}`.", cluster.name))
}
