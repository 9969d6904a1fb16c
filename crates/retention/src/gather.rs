//! Looking at one copy: what is there, what is whole, what is in use.
//!
//! Invariant: a record that cannot be read ends the looking with an error, for nobody can say what it needs;
//! everything else that is wrong with a backup makes it one that does not count.

use std::collections::BTreeMap;

use diagnostic::Result;
use history::{Archive, ArchiveEnd, WalPath, history_of};
use jiff::Timestamp;
use postgres::{Lsn, SystemIdentifier, TimelineId};
use repository::{Backup, BackupId, CONDEMNED_WAIT, ClusterRepository, Verification};

use crate::facts::{BackupFacts, Facts, Reach, Standing, SystemFacts, TimelineFacts};

/// Errors: those of the store, and of a record that cannot be read.
pub fn gather(copy: &str, cluster: &ClusterRepository, now: Timestamp) -> Result<Facts> {
    let records = cluster.backups().map_err(|error| {
        error
            .context(format!(
                "a backup's record in copy \"{copy}\" cannot be read, so nothing of the copy is expired"
            ))
            .hint("Run `pgproof verify` to see what is damaged.")
    })?;
    let stored = cluster.stored_packs()?;
    let pins = cluster.pins()?;
    let leases = cluster.live_leases(now)?;
    let ids: Vec<BackupId> = records.iter().map(|record| record.backup).collect();
    let verifications = cluster.last_verifications(&ids)?;
    let mut notes = Vec::new();
    let mut archives = Archives::open(cluster, &records, &mut notes)?;
    let mut backups = Vec::new();
    for (record, verification) in records.iter().zip(&verifications) {
        let mut facts = BackupFacts {
            backup: record.backup,
            system: record.system_identifier,
            wal_segment_size: record.geometry.wal_segment_size,
            timeline: record.timeline,
            lineage: (record.history.iter().map(|step| step.parent))
                .chain([record.timeline])
                .collect(),
            started_at: record.started_at,
            finished_at: record.finished_at,
            redo_lsn: record.redo_lsn,
            stop_lsn: record.stop_lsn,
            standing: Standing::Good,
            verified_at: None,
            pin: pins
                .iter()
                .find(|pin| pin.backup == record.backup && pin.holds(now))
                .map(|pin| (pin.reason.clone(), pin.until)),
            leases: leases
                .iter()
                .filter(|lease| lease.backup == record.backup)
                .map(|lease| format!("a {} on {} until {}", lease.purpose, lease.by, lease.expires_at))
                .collect(),
            packs: BTreeMap::new(),
            reaches: Vec::new(),
        };
        if let Some(why) = missing_pack(cluster, record, &stored, &mut facts)? {
            facts.standing = Standing::Bad(why);
        }
        archives.reaches(record, &mut facts)?;
        if let Some(verification) = verification {
            judge(verification, record, &mut facts);
        }
        backups.push(facts);
    }
    Ok(Facts {
        cluster: cluster.name().to_owned(),
        copy: copy.to_owned(),
        systems: archives.systems,
        runs: cluster.live_runs(now)?,
        newest_moment: cluster.newest_moment()?,
        collection: cluster.plan_collection(now, CONDEMNED_WAIT)?,
        backups,
        notes,
    })
}

/// Fills in the packs; says why the backup cannot be whole.
fn missing_pack(
    cluster: &ClusterRepository,
    record: &Backup,
    stored: &BTreeMap<(repository::PackKind, repository::PackRef), u64>,
    facts: &mut BackupFacts,
) -> Result<Option<String>> {
    let packs = match cluster.packs_of_backup(record) {
        Ok(packs) => packs,
        Err(error) if matches!(error.code(), "object-damaged" | "object-missing") => {
            return Ok(Some(format!("its pack table cannot be read ({error})")));
        }
        Err(error) => return Err(error),
    };
    facts.packs = packs.into_iter().collect();
    let bad = facts
        .packs
        .iter()
        .find(|(pack, size)| stored.get(pack) != Some(size));
    Ok(bad.map(|((_, pack), _)| format!("pack {} of run {} is missing or cut", pack.number, pack.run)))
}

/// What the newest verification says.
fn judge(verification: &Verification, record: &Backup, facts: &mut BackupFacts) {
    if let Some(finding) = verification.findings_of(record.backup).next() {
        facts.standing = Standing::Bad(format!(
            "the verification of {} found {} in {}",
            verification.finished_at, finding.code, finding.object
        ));
        return;
    }
    let (first, last) = facts.own_segments();
    let own_wal = verification.findings.iter().find(|finding| {
        finding.affects.iter().any(|affected| {
            let name = affected.strip_prefix("WAL segment ").unwrap_or_default();
            let file = postgres::WalFile::parse(name, record.geometry.wal_segment_size);
            file.is_some_and(|file| {
                facts.lineage.contains(&file.timeline())
                    && file
                        .number()
                        .is_some_and(|number| (first..=last).contains(&number))
            })
        })
    });
    if let Some(finding) = own_wal {
        facts.standing = Standing::Bad(format!(
            "the verification of {} found {} in {}, WAL that the backup needs",
            verification.finished_at, finding.code, finding.object
        ));
    } else if verification.findings_total == verification.findings.len() as u64
        && facts.standing == Standing::Good
    {
        facts.verified_at = Some(verification.finished_at);
    }
}

/// The WAL of each system, and where it ends on each timeline.
struct Archives {
    systems: Vec<SystemFacts>,
    archives: BTreeMap<SystemIdentifier, Archive>,
    ends: BTreeMap<(SystemIdentifier, TimelineId, u64), Option<ArchiveEnd>>,
}

impl Archives {
    fn open(cluster: &ClusterRepository, records: &[Backup], notes: &mut Vec<String>) -> Result<Archives> {
        // A system whose last backup has gone is known by the statement that let its WAL go.
        let mut sizes: BTreeMap<SystemIdentifier, u32> = BTreeMap::new();
        for range in cluster.expired_wal()? {
            sizes.insert(range.system, range.segment_size);
        }
        for record in records {
            sizes.insert(record.system_identifier, record.geometry.wal_segment_size);
        }
        let mut found = Archives {
            systems: Vec::new(),
            archives: BTreeMap::new(),
            ends: BTreeMap::new(),
        };
        for system in cluster.list_systems()? {
            let Some(size) = sizes.get(&system).copied() else {
                notes.push(format!(
                    "WAL of system identifier {system} is left alone: there is no backup of it"
                ));
                continue;
            };
            let mut timelines: BTreeMap<TimelineId, TimelineFacts> = BTreeMap::new();
            for object in cluster.wal_objects(system, size)? {
                let facts = timelines.entry(object.timeline).or_insert_with(|| TimelineFacts {
                    timeline: object.timeline,
                    segments: Vec::new(),
                    beside: Vec::new(),
                    last_activity: object.modified,
                });
                facts.last_activity = facts.last_activity.max(object.modified);
                match object.segment {
                    true => facts.segments.push((object.number, object.bytes)),
                    false => facts.beside.push((object.number, object.bytes)),
                }
            }
            found.systems.push(SystemFacts {
                system,
                wal_segment_size: size,
                timelines: timelines.into_values().collect(),
            });
            if records.iter().any(|record| record.system_identifier == system) {
                let mut archive = Archive::load(std::slice::from_ref(cluster), system, size)?;
                for record in records.iter().filter(|record| record.system_identifier == system) {
                    archive.add_history(history_of(record), format!("backup {}", record.backup));
                }
                found.archives.insert(system, archive);
            }
        }
        Ok(found)
    }

    /// Where a backup can be recovered to, on each timeline that carries it. Without its own WAL it is bad.
    fn reaches(&mut self, record: &Backup, facts: &mut BackupFacts) -> Result<()> {
        let own = history_of(record);
        let from = record.finished_at;
        let Some(archive) = self.archives.get(&record.system_identifier) else {
            facts.standing = Standing::Bad("none of its WAL is there".to_owned());
            return Ok(());
        };
        let mut timelines: Vec<TimelineId> = archive.archived_timelines().collect();
        if !timelines.contains(&record.timeline) {
            timelines.push(record.timeline);
        }
        for timeline in timelines {
            let path = match archive
                .timelines()
                .path_to(timeline, Some((&own, record.stop_lsn)))
            {
                Ok(path) if path.carries(&own, record.stop_lsn).is_ok() => path,
                // Unknown, ambiguous, or of another branch: no way leads there from this backup.
                _ => continue,
            };
            let end = end_on(archive, &mut self.ends, &path, record)?;
            let Some(end) = end.filter(|end| end.lsn >= record.stop_lsn) else {
                continue;
            };
            let begin = path.legs.last().map_or(Lsn(0), |leg| leg.from);
            if timeline != record.timeline && (end.timeline != timeline || end.lsn <= begin) {
                continue;
            }
            let commit = end.last_commit.as_ref().map(|commit| commit.time.to_jiff());
            facts.reaches.push(Reach {
                timeline,
                from_lsn: record.stop_lsn.max(begin),
                from,
                to_lsn: end.lsn,
                to: commit.map_or(from, |commit| commit.max(from)),
            });
        }
        let whole = facts
            .reaches
            .iter()
            .any(|reach| reach.timeline == record.timeline);
        if !whole && facts.standing == Standing::Good {
            facts.standing = Standing::Bad(format!(
                "WAL from {} to {} is not all there",
                record.redo_lsn, record.stop_lsn
            ));
        }
        Ok(())
    }
}

/// Backups of one way mostly end in the same place: look there once.
fn end_on(
    archive: &Archive,
    ends: &mut BTreeMap<(SystemIdentifier, TimelineId, u64), Option<ArchiveEnd>>,
    path: &WalPath,
    record: &Backup,
) -> Result<Option<ArchiveEnd>> {
    let first = record.redo_lsn.segment(archive.segment_size());
    let Some(last) = archive.unbroken_to(path, first) else {
        return Ok(None);
    };
    let key = (archive.system(), path.timeline(), last);
    if let Some(known) = ends.get(&key) {
        return Ok(known.clone());
    }
    match archive.end_on(path, record.redo_lsn) {
        Ok(end) => {
            ends.insert(key, end.clone());
            Ok(end)
        }
        // The segment at the end is damaged: what lies before it cannot be dated, and counts as not reached.
        Err(error) if matches!(error.code(), "object-damaged" | "object-missing" | "wal-conflict") => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}
