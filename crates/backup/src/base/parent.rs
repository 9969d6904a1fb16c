//! Which backup's unchanged pages a new backup may refer to.
//!
//! Invariants: a parent shares system identifier, geometry and checksum state with the cluster as it is now, lies on its
//! history (the steps, not only the timeline's number), not after it, and all its packs are there with their sizes. In
//! doubt there is no parent, which costs space and never data.

use std::collections::HashMap;

use diagnostic::Result;
use postgres::{ControlFile, Lsn, SystemIdentifier, TimelineHistory};
use repository::{Backup, ClusterRepository, Geometry, PackKind, PackUse};

/// What two backups must have in common to share pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shape {
    pub(super) system_identifier: SystemIdentifier,
    pub(super) geometry: Geometry,
    pub(super) catalog_version: u32,
    pub(super) data_checksum_version: u32,
}

impl Shape {
    pub(super) fn of(control: &ControlFile) -> Shape {
        Shape {
            system_identifier: control.system_identifier,
            geometry: geometry(control),
            catalog_version: control.catalog_version,
            data_checksum_version: control.data_checksum_version,
        }
    }
}

/// The cluster as it is now.
pub(super) struct Current<'a> {
    pub(super) shape: Shape,
    pub(super) history: &'a TimelineHistory,
    /// Where WAL is written or replayed now.
    pub(super) lsn: Lsn,
}

/// Why `backup` cannot be the parent; `None` when nothing in its record speaks against it.
pub(super) fn objection(backup: &Backup, current: &Current<'_>) -> Option<String> {
    let control = &current.shape;
    if backup.system_identifier != control.system_identifier {
        return Some(format!(
            "it is of another cluster (system identifier {})",
            backup.system_identifier
        ));
    }
    if backup.geometry != control.geometry {
        return Some("its block or segment sizes are different".into());
    }
    if backup.catalog_version != control.catalog_version {
        return Some("it is of another major version".into());
    }
    if backup.data_checksum_version != control.data_checksum_version {
        return Some("data checksums were switched since".into());
    }
    if backup.stop_lsn > current.lsn {
        return Some(format!(
            "the cluster is at {}, before the backup's end at {}",
            current.lsn, backup.stop_lsn
        ));
    }
    if !current.history.contains(backup.timeline, backup.stop_lsn) {
        return Some(format!(
            "it ended at {} on timeline {}, which is not on the cluster's history",
            backup.stop_lsn, backup.timeline
        ));
    }
    // Equal numbers are not equal histories: each step before the backup's own timeline must be the same.
    let steps = current
        .history
        .steps
        .iter()
        .take_while(|step| step.parent < backup.timeline);
    let same = steps
        .map(|step| (step.parent, step.switch))
        .eq(backup.history.iter().map(|s| (s.parent, s.switch_lsn)));
    if !same {
        return Some(format!(
            "its timeline {} has another history than the cluster's",
            backup.timeline
        ));
    }
    None
}

/// Sizes as the record keeps them.
pub(super) fn geometry(control: &ControlFile) -> Geometry {
    Geometry {
        block_size: control.block_size,
        relation_segment_size: control.relation_segment_size,
        wal_block_size: control.wal_block_size,
        wal_segment_size: control.wal_segment_size,
    }
}

/// A parent and its packs, or why there is none.
pub(super) struct Choice {
    pub(super) parent: Option<(Backup, Vec<PackUse>)>,
    pub(super) reason: String,
    pub(super) warnings: Vec<String>,
}

/// The newest backup that may be the parent. A damaged one is passed over with a warning: it must not keep a new backup
/// from being made.
pub(super) fn choose(repository: &ClusterRepository, current: &Current<'_>, full: bool) -> Result<Choice> {
    let none = |reason: String, warnings| Choice {
        parent: None,
        reason,
        warnings,
    };
    if full {
        return Ok(none("a full backup was asked for".into(), Vec::new()));
    }
    let mut warnings = Vec::new();
    let mut first_objection = None;
    let mut sizes = None;
    for id in repository.backup_ids()?.into_iter().rev() {
        let backup = match repository.backup(id) {
            Ok(backup) => backup,
            Err(error) => {
                warnings.push(format!(
                    "backup {id} cannot be read: {}; run `pgproof verify`",
                    error.message()
                ));
                first_objection.get_or_insert(format!("not {id}: {}", error.message()));
                continue;
            }
        };
        let mut problem = objection(&backup, current);
        if problem.is_none() {
            let sizes = match &sizes {
                Some(sizes) => sizes,
                None => sizes.insert(pack_sizes(repository)?),
            };
            match repository
                .pack_table(&backup)
                .map(|table| (missing_pack(repository, sizes, &table), table))
            {
                Ok((None, table)) => {
                    let reason = match &first_objection {
                        None => "the newest backup".into(),
                        Some(other) => format!("the newest backup that can be used ({other})"),
                    };
                    return Ok(Choice {
                        parent: Some((backup, table)),
                        reason,
                        warnings,
                    });
                }
                Ok((Some(missing), _)) => problem = Some(missing),
                Err(error) => problem = Some(format!("its pack table cannot be read: {}", error.message())),
            }
            if let Some(problem) = &problem {
                warnings.push(format!(
                    "backup {} is damaged: {problem}; run `pgproof verify`",
                    backup.backup
                ));
            }
        }
        if let Some(problem) = problem {
            first_objection.get_or_insert(format!("not {}: {problem}", backup.backup));
        }
    }
    Ok(none(
        first_objection.map_or_else(
            || "there is no earlier backup".into(),
            |why| format!("no earlier backup can be used ({why})"),
        ),
        warnings,
    ))
}

/// The sizes of all packs of the cluster, by object name: one listing.
fn pack_sizes(repository: &ClusterRepository) -> Result<HashMap<String, u64>> {
    let objects = repository.repository().store().list(&packs_prefix(repository))?;
    Ok(objects
        .into_iter()
        .map(|object| (object.name, object.size))
        .collect())
}

fn packs_prefix(repository: &ClusterRepository) -> String {
    format!("clusters/{}/packs/", repository.name())
}

/// The first pack of the table that is not there as the record says.
fn missing_pack(
    repository: &ClusterRepository,
    sizes: &HashMap<String, u64>,
    table: &[PackUse],
) -> Option<String> {
    let prefix = packs_prefix(repository);
    table.iter().find_map(|pack| {
        let suffix = match pack.kind {
            PackKind::Rows => "rows",
            PackKind::Map => "map",
        };
        // docs/format.md, section 1.
        let name = format!("{prefix}{}/{:08}.{suffix}", pack.pack.run, pack.pack.number);
        match sizes.get(&name) {
            Some(size) if *size == pack.size => None,
            Some(size) => Some(format!(
                "object \"{name}\" has {size} bytes instead of {}",
                pack.size
            )),
            None => Some(format!("object \"{name}\" is missing")),
        }
    })
}
