//! The faults of a self-test, and how each is planted.
//!
//! Invariant: each has the step or check that is there for it and the reasons that this must give; the drill around it is
//! the untouched one's but for what stands here.

use std::sync::atomic::Ordering;
use std::time::Duration;

use diagnostic::{Error, Result};
use history::{Archive, Target};
use postgres::Xid;

use super::artifacts::ArtifactClone;
use super::{Drilled, Ground, drill_for, lost_commit};
use crate::engine;
use crate::facts::{CheckResult, Measure, Rpo};
use crate::objectives::{Expression, Objective, RPO_EXPRESSION, RTO_EXPRESSION};
use crate::options::{Drill, DrillTarget, Fault, Watcher};
use crate::standing;
use crate::verdict::code;

/// One fault.
pub struct Case {
    /// A stable word.
    pub fault: &'static str,
    /// What it is.
    pub what: &'static str,
    /// Steps and checks, any of which must catch it.
    pub meant_for: &'static [&'static str],
    /// Reasons, any of which must be given.
    pub reasons: &'static [&'static str],
    plant: Plant,
}

/// Where a fault goes.
enum Plant {
    /// Into the artifacts, before the drill.
    Artifacts(fn(&ArtifactClone) -> Result<String>),
    /// Into the artifacts, while the copy runs.
    Meanwhile(fn(&ArtifactClone) -> Result<String>),
    /// Into the copy.
    Copy(Fault),
    /// Into the copy, where another version of the backup is the only other witness.
    OtherVersion(Fault),
    /// The artifacts are opened with another key.
    Key,
    /// The commit of the drill's first nonce never happened, for the drill's own point, or for a point of the past.
    LostCommit { past: bool },
    /// Less time than any recovery takes.
    NoTime,
    /// Archiving stands still.
    Behind,
}

const fn case(
    fault: &'static str,
    what: &'static str,
    meant_for: &'static [&'static str],
    reasons: &'static [&'static str],
    plant: Plant,
) -> Case {
    Case {
        fault,
        what,
        meant_for,
        reasons,
        plant,
    }
}

/// Every fault.
pub const CASES: [Case; 25] = [
    case(
        "wrong-key",
        "the artifacts are opened with a key that is not theirs",
        &["open"],
        &[code::KEY_WRONG],
        Plant::Key,
    ),
    case(
        "backup-record-damaged",
        "a byte of the record that makes the backup exist is another one",
        &["plan"],
        &[code::OBJECT_DAMAGED],
        Plant::Artifacts(ArtifactClone::damage_record),
    ),
    case(
        "backup-map-damaged",
        "a byte of the map that says where the pages are is another one",
        &["plan", "restore"],
        &[code::OBJECT_DAMAGED],
        Plant::Artifacts(ArtifactClone::damage_map),
    ),
    case(
        "backup-pages-damaged",
        "a byte of the stored pages is another one",
        &["restore"],
        &[code::OBJECT_DAMAGED],
        Plant::Artifacts(ArtifactClone::damage_pages),
    ),
    case(
        "wal-segment-lost",
        "a segment of WAL that recovery needs is gone",
        &["plan"],
        &[code::WAL_MISSING, code::TARGET_UNREACHABLE],
        Plant::Artifacts(ArtifactClone::lose_segment),
    ),
    case(
        "wal-segment-damaged",
        "a byte of a segment of WAL is another one",
        &["plan", "recover"],
        &[code::OBJECT_DAMAGED],
        Plant::Artifacts(ArtifactClone::damage_segment),
    ),
    case(
        "wal-segment-cut",
        "half of a segment of WAL is left",
        &["plan", "recover"],
        &[code::OBJECT_DAMAGED],
        Plant::Artifacts(ArtifactClone::cut_segment),
    ),
    case(
        "history-poisoned",
        "a copy that was promoted has left its timeline's history in the archive",
        &["timeline-histories"],
        &[code::HISTORY_POISONED],
        Plant::Artifacts(ArtifactClone::poison_histories),
    ),
    case(
        "archive-written-to",
        "something archives into production's archive while the copy runs",
        &["archive-unchanged"],
        &[code::ARCHIVE_CHANGED],
        Plant::Meanwhile(ArtifactClone::write_to_archive),
    ),
    case(
        "archiving-behind",
        "archiving stands still, and commits of production are in no archive",
        &["rpo"],
        &[code::RPO_EXCEEDED],
        Plant::Behind,
    ),
    case(
        "commit-lost",
        "a commit's record in the WAL says that it aborted, under a right CRC",
        &["bracket"],
        &[code::MARKER_MISSING],
        Plant::LostCommit { past: false },
    ),
    case(
        "commit-lost-before-past-point",
        "the same, before a point of the past that nobody digested",
        &["standing-markers"],
        &[code::MARKER_MISSING],
        Plant::LostCommit { past: true },
    ),
    case(
        "stop-moved",
        "recovery stops before the place that the plan has found",
        &["target"],
        &[code::TARGET_NOT_REACHED],
        Plant::Copy(Fault::StopMoved),
    ),
    case(
        "row-changed",
        "a bit of one row is another one, under a right page checksum",
        &["row-proof"],
        &[code::ROWS_DIFFER],
        Plant::Copy(Fault::RowChangedInCopy),
    ),
    case(
        "row-lost",
        "one row is gone from its page, under a right page checksum",
        &["row-proof"],
        &[code::ROWS_DIFFER],
        Plant::Copy(Fault::RowLostInCopy),
    ),
    case(
        "relation-lost",
        "the file of a table is gone",
        &["row-proof", "recover"],
        &[code::ROWS_UNREADABLE, code::ROWS_DIFFER, code::SERVER_ENDED],
        Plant::Copy(Fault::RelationLostInCopy),
    ),
    case(
        "row-changed-in-one-version",
        "a bit of one row is another one, and no row proof is made",
        &["n-version"],
        &[code::VERSIONS_DIFFER],
        Plant::OtherVersion(Fault::RowChangedInCopy),
    ),
    case(
        "page-damaged",
        "a bit of a page that no query reads is another one",
        &["page-checksums"],
        &[code::PAGE_CHECKSUMS_BAD],
        Plant::Copy(Fault::PageDamagedInCopy),
    ),
    case(
        "index-disordered",
        "two entries of an index have changed places, under a right page checksum",
        &["amcheck"],
        &[code::AMCHECK_FAILED, code::COLLATION_MISMATCH],
        Plant::Copy(Fault::IndexDisorderedInCopy),
    ),
    case(
        "sequence-rewound",
        "a sequence would hand out its values again",
        &["sequences"],
        &[code::SEQUENCE_BEHIND],
        Plant::Copy(Fault::SequenceRewoundInCopy),
    ),
    case(
        "collation-outdated",
        "a collation was recorded with another version than this host's",
        &["collation-versions"],
        &[code::COLLATION_MISMATCH],
        Plant::Copy(Fault::CollationOutdatedInCopy),
    ),
    case(
        "archive-command",
        "the copy has inherited a command that archives",
        &["archive-settings"],
        &[code::ARCHIVE_COMMAND_WOULD_RUN],
        Plant::Copy(Fault::ArchiveCommandInherited),
    ),
    case(
        "production-readable",
        "a file of production's can be read from inside the quarantine",
        &["quarantine"],
        &[code::QUARANTINE_BREACHED],
        Plant::Copy(Fault::ProductionReadable),
    ),
    case(
        "no-time",
        "the recovery takes longer than its objective",
        &["rto"],
        &[code::RTO_EXCEEDED],
        Plant::NoTime,
    ),
    case(
        "row-lost-in-one-version",
        "one row is gone, and no row proof is made",
        &["n-version"],
        &[code::VERSIONS_DIFFER],
        Plant::OtherVersion(Fault::RowLostInCopy),
    ),
];

/// Plants a fault, and drills. Error: `fault-not-planted`.
pub(super) fn drill(ground: &Ground<'_, '_>, case: &Case) -> Result<Drilled> {
    let folder = ground.folder.join(case.fault);
    let clone = ArtifactClone::new(ground.drill.repository, ground.untouched, &folder)?;
    let mut drill = drill_for(ground, case);
    drill.repository = &clone.repository;
    let known = ground.untouched.rpo.clone();
    let same_loss = || {
        known
            .clone()
            .ok_or_else(|| Error::new("could-not-look", "the untouched drill measured no loss"))
    };
    drill.rpo = drill
        .rpo
        .is_some()
        .then_some(&same_loss as &dyn Fn() -> Result<Rpo>);
    match &case.plant {
        Plant::Key => {
            let planted = "a key of 32 random bytes".to_string();
            Ok(match clone.open_with_another_key()? {
                Some(error) => Drilled::NotOpened { planted, error },
                None => Drilled::Opened { planted },
            })
        }
        Plant::Artifacts(plant) => {
            let planted = plant(&clone)?;
            conduct(&drill, vec![planted])
        }
        Plant::Meanwhile(plant) => meanwhile(&clone, drill, *plant),
        Plant::Copy(fault) => {
            possible(ground, *fault)?;
            drill.faults = vec![*fault];
            conduct(&drill, Vec::new())
        }
        Plant::OtherVersion(fault) => {
            if clone.repository.backup_ids()?.len() < 2 {
                return Err(Error::new(
                    "fault-not-planted",
                    "there is one backup, and so no other version to compare with",
                ));
            }
            drill.faults = vec![*fault];
            drill.profile.checks = vec!["n-version".into()];
            conduct(&drill, Vec::new())
        }
        Plant::LostCommit { past } => {
            let bracket = &ground.made.point.facts;
            let xid = xid_of(&drill, &format!("{}_before", bracket.marker))?;
            let planted = lost_commit::lose(&clone, xid, bracket.after_nonce_before)?;
            drill.profile.checks.clear();
            if *past {
                let target = Target::Name(bracket.restore_point.clone());
                drill.profile.target = DrillTarget::Point(target, bracket.restore_point.clone());
            }
            conduct(&drill, vec![planted])
        }
        Plant::NoTime => {
            set_objective(&mut drill, "rto", Measure::RecoveryTime, RTO_EXPRESSION)?;
            drill.profile.checks.clear();
            conduct(&drill, vec!["an objective of 1 ms".into()])
        }
        Plant::Behind => behind(ground, &clone, drill),
    }
}

fn conduct(drill: &Drill<'_>, planted: Vec<String>) -> Result<Drilled> {
    let conducted = engine::conduct(drill)?;
    if drill.abort.load(Ordering::Relaxed) {
        return Err(crate::rows::aborted());
    }
    Ok(Drilled::Facts {
        planted,
        facts: Box::new(conducted.facts),
    })
}

/// What this host or this cluster rules out.
fn possible(ground: &Ground<'_, '_>, fault: Fault) -> Result<()> {
    let quarantined = ground
        .untouched
        .check("quarantine")
        .is_some_and(|check| check.result == CheckResult::Pass);
    if fault == Fault::ProductionReadable && !quarantined {
        return Err(Error::new(
            "fault-not-planted",
            "this host does not allow every layer of the quarantine, and the check says so without a fault",
        ));
    }
    Ok(())
}

fn xid_of(drill: &Drill<'_>, marker: &str) -> Result<Xid> {
    let gone = || {
        Error::new(
            "fault-not-planted",
            "production has no marker of the drill any more",
        )
    };
    let conninfo = drill.production.ok_or_else(gone)?;
    let (_, rows) = standing::read(conninfo)?;
    let row = rows.into_iter().find(|row| row.id == marker).ok_or_else(gone)?;
    Ok(Xid(row.xid))
}

/// An objective that nothing meets.
fn set_objective(drill: &mut Drill<'_>, id: &str, measure: Measure, expression: &str) -> Result<()> {
    let expression = Expression::parse(expression).map_err(|why| Error::new("drill-usage", why))?;
    drill.also.clear();
    drill.profile.objectives.retain(|known| known.id != id);
    drill.profile.objectives.push(Objective {
        id: id.into(),
        measure,
        expression,
        target: Duration::from_millis(1),
        warning: None,
    });
    Ok(())
}

/// What would be lost is measured against the clone; the point lies before what is gone.
fn behind(ground: &Ground<'_, '_>, clone: &ArtifactClone, mut drill: Drill<'_>) -> Result<Drilled> {
    let Some(loss) = ground.loss else {
        return Err(Error::new(
            "fault-not-planted",
            "there is no way to measure what would be lost",
        ));
    };
    let planted = clone.lose_newest(ground.made.point.facts.after_nonce_before)?;
    let measure = || -> Result<Rpo> {
        let archive = Archive::load(
            std::slice::from_ref(&clone.repository),
            clone.system,
            clone.segment_size,
        )?;
        loss(&archive)
    };
    set_objective(&mut drill, "rpo", Measure::RecoveryPoint, RPO_EXPRESSION)?;
    drill.profile.checks.clear();
    drill.profile.target = DrillTarget::Point(Target::Immediate, "immediate".into());
    let drill = Drill {
        rpo: Some(&measure),
        ..drill
    };
    conduct(&drill, vec![planted])
}

/// Plants into the archive when the copy recovers.
fn meanwhile(
    clone: &ArtifactClone,
    drill: Drill<'_>,
    plant: fn(&ArtifactClone) -> Result<String>,
) -> Result<Drilled> {
    let watcher = AtRecovery {
        title: crate::perform::STEPS
            .iter()
            .find(|(id, _)| *id == "recover")
            .map_or("", |(_, title)| *title),
        plant: std::sync::Mutex::new(None),
        clone,
        how: plant,
    };
    let drill = Drill {
        watcher: &watcher,
        ..drill
    };
    let drilled = conduct(&drill, Vec::new())?;
    let planted = watcher.plant.lock().ok().and_then(|mut planted| planted.take());
    match (drilled, planted) {
        (Drilled::Facts { mut planted, facts }, Some(result)) => {
            planted.push(result?);
            Ok(Drilled::Facts { planted, facts })
        }
        _ => Err(Error::new(
            "fault-not-planted",
            "the copy did not come to its recovery",
        )),
    }
}

/// A watcher that does something when the copy recovers.
struct AtRecovery<'a> {
    title: &'static str,
    plant: std::sync::Mutex<Option<Result<String>>>,
    clone: &'a ArtifactClone,
    how: fn(&ArtifactClone) -> Result<String>,
}

impl Watcher for AtRecovery<'_> {
    fn step(&self, _number: usize, _of: usize, title: &str, _expected: Option<Duration>) {
        if title == self.title
            && let Ok(mut planted) = self.plant.lock()
        {
            *planted = Some((self.how)(self.clone));
        }
    }
    fn note(&self, _text: &str) {}
    fn advance(&self, _done: u64, _total: Option<u64>, _unit: &str) {}
}
