//! The drill of the drill: faults are planted, each into a clone of the artifacts or into its own copy, and each must be
//! caught by the check that is there for it, with its own reason.
//!
//! Invariants: an untouched drill passes first, with the same profile, and its point serves all others, so that
//! production is asked once; the repository is only read, but for the evidence of the untouched drill; a fault counts as
//! caught only by the result, step or check, that it is meant for, and only if that was better without it; what could
//! not be planted is never counted as caught. The matrix is a pure function of the facts of each drill.

mod artifacts;
mod cases;
mod lost_commit;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::Instant;

use diagnostic::{Error, Result};
use history::Archive;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::copy::CopyFolder;
use crate::engine::{self, Conducted, Outcome};
use crate::evidence::document;
use crate::facts::{CheckResult, Facts, FailureKind, Rpo};
use crate::isolation::owner;
use crate::options::{Documents, Drill, DrillTarget, Silent};
use crate::point::MadePoint;
use crate::rows::aborted;
use crate::server_error::texts;
use crate::user_checks::CheckKind;
use crate::verdict::{Status, Verdict, judge};

pub use cases::CASES;
use cases::Case;

/// The version of [`Selftest`] as it is kept.
pub const SELFTEST_VERSION: u32 = 1;
/// So many faults at least must be planted and caught.
pub const CAUGHT_MIN: usize = 12;
/// Steps of a drill that can catch a fault, before any check looks.
pub const STEPS: [&str; 4] = ["open", "plan", "restore", "recover"];
/// The evidence file.
pub const SELFTEST_FILE: &str = "selftest.json";

/// What became of one fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fate {
    /// The result that is there for it saw it, and gave its reason.
    Caught,
    /// It was planted, and the result that is there for it did not see it.
    Missed,
    /// There was nothing in this cluster to plant it into, or on this host no way to.
    NotPlanted,
}

/// One row of the matrix.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FaultRow {
    /// A stable word.
    pub fault: String,
    /// What it is, as a sentence.
    pub what: String,
    /// Steps and checks, any of which must catch it.
    pub meant_for: Vec<String>,
    /// Reasons, any of which must be given.
    pub reasons: Vec<String>,
    /// What was planted, or why nothing was.
    pub planted: String,
    /// What became of it.
    pub fate: Fate,
    /// The verdict of the drill with it.
    pub verdict: Option<Status>,
    /// What the drill said: the diagnosis.
    pub diagnosis: Option<String>,
    /// The result of each step and check that had one.
    pub cells: BTreeMap<String, CheckResult>,
    /// Those that were worse than in the untouched drill.
    pub caught_by: Vec<String>,
    /// Milliseconds.
    pub duration_ms: u64,
}

impl FaultRow {
    /// The only step or check that saw it.
    pub fn sole_catcher(&self) -> Option<&str> {
        match (self.fate, self.caught_by.as_slice()) {
            (Fate::Caught, [only]) => Some(only),
            _ => None,
        }
    }
}

/// The whole matrix.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Selftest {
    /// [`SELFTEST_VERSION`].
    pub version: u32,
    /// The untouched drill, whose evidence holds this.
    pub drill_id: String,
    /// The drilled cluster.
    pub cluster: String,
    /// Before the first fault.
    pub started_at: Timestamp,
    /// After the last one.
    pub finished_at: Timestamp,
    /// How the untouched drill ended.
    pub untouched: Status,
    /// The checks that the untouched drill made.
    pub checks: Vec<String>,
    /// Somebody ended it before every fault was planted.
    pub aborted: bool,
    /// No fault was left out on request.
    pub complete: bool,
    /// One row for each fault.
    pub faults: Vec<FaultRow>,
}

impl Selftest {
    fn with(&self, fate: Fate) -> impl Iterator<Item = &FaultRow> {
        self.faults.iter().filter(move |row| row.fate == fate)
    }

    /// How many faults had this fate.
    pub fn count(&self, fate: Fate) -> usize {
        self.with(fate).count()
    }

    /// The checks and steps that alone saw a fault.
    pub fn sole_catchers(&self) -> BTreeSet<&str> {
        self.faults.iter().filter_map(FaultRow::sole_catcher).collect()
    }

    /// Checks of the untouched drill that no fault shows to be necessary: nothing says that they can fail.
    pub fn unproven(&self) -> Vec<&str> {
        let shown = self.sole_catchers();
        let checks = self.checks.iter().map(String::as_str);
        checks.filter(|check| !shown.contains(check)).collect()
    }

    /// PASSED: every fault that was planted was caught, and they were enough. FAILED: one was missed, or the untouched
    /// drill failed. ABORTED: somebody ended it. INCONCLUSIVE: too few could be planted.
    pub fn status(&self) -> Status {
        if self.count(Fate::Missed) > 0 || self.untouched == Status::Failed {
            return Status::Failed;
        }
        if self.aborted {
            return Status::Aborted;
        }
        let enough = if self.complete { CAUGHT_MIN } else { 1 };
        match self.untouched {
            Status::Passed | Status::PassedWithObservations if self.count(Fate::Caught) >= enough => {
                Status::Passed
            }
            _ => Status::Inconclusive,
        }
    }
}

/// Measures what would be lost now with this archive.
pub type LossOf<'a> = &'a dyn Fn(&Archive) -> Result<Rpo>;

/// What a self-test is given beside the drill.
pub struct Options<'a> {
    /// Only these faults, by their words; empty: all of them.
    pub only: Vec<String>,
    /// Measures what would be lost now with this archive.
    pub loss: Option<LossOf<'a>>,
    /// Makes a document for people.
    pub document: &'a dyn Fn(&Selftest) -> String,
}

/// What a fault is planted into.
struct Ground<'a, 'd> {
    drill: &'a Drill<'d>,
    untouched: &'a Facts,
    made: &'a MadePoint,
    loss: Option<LossOf<'a>>,
    /// The folder of all clones.
    folder: PathBuf,
}

/// Runs the untouched drill, then one drill for each fault. The evidence of the untouched drill is kept, with the
/// matrix in it. Error codes: those of [`crate::run`], `selftest-fault` (no such fault), `drill-aborted`.
pub fn run(drill: &Drill<'_>, options: &Options<'_>) -> Result<(Selftest, Outcome)> {
    let cases = chosen(&options.only)?;
    if drill.profile.target != DrillTarget::Bracket {
        return Err(Error::usage(
            "drill-usage",
            "a self-test needs a point that the drill makes itself",
        )
        .hint("Leave `--target` out, or name a profile whose target is \"bracket\"."));
    }
    drill.watcher.note("the untouched drill");
    let Conducted { facts, log, made } = engine::conduct(drill)?;
    let verdict = judge(&facts);
    let mut selftest = Selftest {
        version: SELFTEST_VERSION,
        drill_id: facts.identity.drill_id.clone(),
        cluster: facts.scope.cluster.clone(),
        started_at: (drill.clock)(),
        finished_at: (drill.clock)(),
        untouched: verdict.status,
        checks: facts.checks.iter().map(|check| check.id.clone()).collect(),
        aborted: false,
        complete: options.only.is_empty(),
        faults: Vec::new(),
    };
    let mut ended = Ok(());
    let sound = matches!(verdict.status, Status::Passed | Status::PassedWithObservations);
    if let Some(made) = made.as_ref().filter(|_| sound) {
        let folder = CopyFolder::create(&drill.sandbox.parent, "selftest", owner(drill))?;
        let ground = Ground {
            drill,
            untouched: &facts,
            made,
            loss: options.loss,
            folder: folder.path.join("clones"),
        };
        ended = plant_all(&ground, &cases, &folder, &mut selftest.faults);
        folder.remove()?;
    }
    selftest.aborted = ended.as_ref().is_err_and(|error| error.code() == "drill-aborted");
    selftest.finished_at = (drill.clock)();
    // Whatever became of the faults, the untouched drill is evidence.
    let further = documents(&selftest, options)?;
    let outcome = engine::finish(
        drill,
        Conducted {
            facts,
            log,
            made: None,
        },
        further,
    )?;
    match ended {
        Err(error) if !selftest.aborted => Err(error),
        _ => Ok((selftest, outcome)),
    }
}

fn plant_all(
    ground: &Ground<'_, '_>,
    cases: &[&Case],
    folder: &CopyFolder,
    rows: &mut Vec<FaultRow>,
) -> Result<()> {
    let drill = ground.drill;
    for (at, case) in cases.iter().enumerate() {
        if drill.abort.load(Ordering::Relaxed) || folder.is_to_end() {
            return Err(aborted());
        }
        drill.watcher.step(
            at + 1,
            cases.len(),
            &format!("{}: {}", case.fault, case.what),
            None,
        );
        let row = plant(ground, case)?;
        let told = match (row.fate, row.sole_catcher()) {
            (Fate::NotPlanted, _) => format!("NOT PLANTED: {}", row.planted),
            (Fate::Caught, Some(only)) => format!("caught by {only} alone"),
            (Fate::Caught, None) => format!("caught by {}", row.caught_by.join(", ")),
            (Fate::Missed, _) => format!("MISSED by {}", case.meant_for.join(", ")),
        };
        drill.watcher.note(&told);
        rows.push(row);
    }
    Ok(())
}

fn chosen(only: &[String]) -> Result<Vec<&'static Case>> {
    if let Some(unknown) = only
        .iter()
        .find(|word| !CASES.iter().any(|case| case.fault == **word))
    {
        let known: Vec<&str> = CASES.iter().map(|case| case.fault).collect();
        return Err(
            Error::usage("selftest-fault", format!("there is no fault \"{unknown}\""))
                .hint(format!("Name one of: {}.", known.join(", "))),
        );
    }
    Ok(CASES
        .iter()
        .filter(|case| only.is_empty() || only.iter().any(|word| word == case.fault))
        .collect())
}

fn documents(selftest: &Selftest, options: &Options<'_>) -> Result<Documents> {
    let mut json = serde_json::to_vec_pretty(selftest).map_err(|error| {
        Error::new("evidence-encode", "the self-test cannot be written as JSON").caused_by(&error)
    })?;
    json.push(b'\n');
    Ok(vec![
        (SELFTEST_FILE.to_string(), json),
        (
            "selftest.md".to_string(),
            (options.document)(selftest).into_bytes(),
        ),
    ])
}

/// Plants one fault, and drills.
fn plant(ground: &Ground<'_, '_>, case: &Case) -> Result<FaultRow> {
    let started = Instant::now();
    let mut row = FaultRow {
        fault: case.fault.into(),
        what: case.what.into(),
        meant_for: case.meant_for.iter().map(ToString::to_string).collect(),
        reasons: case.reasons.iter().map(ToString::to_string).collect(),
        planted: String::new(),
        fate: Fate::NotPlanted,
        verdict: None,
        diagnosis: None,
        cells: BTreeMap::new(),
        caught_by: Vec::new(),
        duration_ms: 0,
    };
    match cases::drill(ground, case) {
        Ok(drilled) => judge_row(&mut row, ground.untouched, case, drilled),
        Err(error) if error.code() == "fault-not-planted" => row.planted = told(&error),
        Err(error) => return Err(error),
    }
    row.duration_ms = started.elapsed().as_millis() as u64;
    Ok(row)
}

fn told(error: &Error) -> String {
    let (message, detail) = texts(error);
    match detail {
        Some(detail) => format!("{message}. {detail}"),
        None => message,
    }
}

/// What a drill with a fault gave.
enum Drilled {
    /// The artifacts did not open.
    NotOpened { planted: String, error: Error },
    /// They did, although they must not.
    Opened { planted: String },
    /// Facts, and what was planted into the artifacts.
    Facts { planted: Vec<String>, facts: Box<Facts> },
}

/// The row of a fault, from what was recorded with it and without it.
fn judge_row(row: &mut FaultRow, untouched: &Facts, case: &Case, drilled: Drilled) {
    let (mut planted, facts) = match drilled {
        Drilled::NotOpened { planted, error } => {
            row.planted = planted;
            row.cells.insert("open".into(), CheckResult::Fail);
            row.caught_by.push("open".into());
            row.diagnosis = Some(format!("{}: {}", error.code(), told(&error)));
            let known = case.reasons.contains(&error.code());
            row.fate = if known { Fate::Caught } else { Fate::Missed };
            return;
        }
        Drilled::Opened { planted } => {
            row.planted = planted;
            row.cells.insert("open".into(), CheckResult::Pass);
            row.fate = Fate::Missed;
            return;
        }
        Drilled::Facts { planted, facts } => (planted, facts),
    };
    let not_planted = facts
        .failure
        .as_ref()
        .filter(|failure| failure.error_code == "fault-not-planted");
    if let Some(failure) = not_planted {
        row.planted = match &failure.detail {
            Some(detail) => format!("{}. {detail}", failure.message),
            None => failure.message.clone(),
        };
        return;
    }
    planted.extend(facts.planted_faults.iter().cloned());
    row.planted = planted.join("; ");
    let verdict = judge(&facts);
    row.verdict = Some(verdict.status);
    row.cells = cells(&facts);
    let before = cells(untouched);
    // Lower is better: a result that nobody had is none.
    let worse = |result: CheckResult| match result {
        CheckResult::Fail => 2,
        CheckResult::Warn => 1,
        CheckResult::Pass | CheckResult::NotRun | CheckResult::CouldNotLook => 0,
    };
    row.caught_by = row
        .cells
        .iter()
        .filter(|(id, result)| worse(**result) > before.get(*id).map_or(0, |known| worse(*known)))
        .map(|(id, _)| id.clone())
        .collect();
    row.diagnosis = diagnosis(&facts, &verdict);
    let meant = row
        .caught_by
        .iter()
        .any(|id| case.meant_for.contains(&id.as_str()));
    row.fate = if meant && gives_a_reason(&facts, case) {
        Fate::Caught
    } else {
        Fate::Missed
    };
}

/// Whether the step or check that the fault is meant for gives one of its reasons.
fn gives_a_reason(facts: &Facts, case: &Case) -> bool {
    let failure = facts.failure.as_ref().is_some_and(|failure| {
        case.meant_for.contains(&failure.step.as_str()) && case.reasons.contains(&failure.code.as_str())
    });
    failure
        || facts.checks.iter().any(|check| {
            case.meant_for.contains(&check.id.as_str())
                && check
                    .reason
                    .as_deref()
                    .is_some_and(|reason| case.reasons.contains(&reason))
        })
}

/// The result of each step that can catch a fault, and of each check.
fn cells(facts: &Facts) -> BTreeMap<String, CheckResult> {
    let mut cells = BTreeMap::new();
    let found = facts
        .failure
        .as_ref()
        .filter(|failure| failure.kind == FailureKind::Finding);
    for step in STEPS {
        let result = match (found, facts.steps.iter().any(|made| made.id == step)) {
            (Some(failure), _) if failure.step == step => CheckResult::Fail,
            (_, true) => CheckResult::Pass,
            (_, false) if step == "open" => CheckResult::Pass,
            (_, false) => CheckResult::NotRun,
        };
        cells.insert(step.to_string(), result);
    }
    for check in &facts.checks {
        cells.insert(check.id.clone(), check.result);
    }
    cells
}

/// The heaviest reason.
fn diagnosis(facts: &Facts, verdict: &Verdict) -> Option<String> {
    let first = verdict.reasons.first()?;
    let text = format!("{}: {}", first.code, first.text);
    // Where a check only warns, its own words say more than that nothing failed.
    let warned = (first.code == crate::verdict::code::FAULT_NOT_NOTICED).then(|| {
        facts
            .checks
            .iter()
            .find(|check| check.result == CheckResult::Warn)
            .map(|check| {
                format!(
                    "{}: {}",
                    check.reason.as_deref().unwrap_or("warned"),
                    check.actual
                )
            })
    });
    Some(warned.flatten().unwrap_or(text))
}

/// A drill of the same profile, for a fault: what leaves the quarantine, and what would end it before it begins, is left
/// out.
fn drill_for<'a>(ground: &Ground<'a, '_>, case: &Case) -> Drill<'a> {
    let mut drill: Drill<'a> = ground.drill.clone();
    drill.made = Some(ground.made.clone());
    drill.before = Vec::new();
    drill.report_directory = None;
    drill.sandbox.keep = false;
    // The steps that are shown are those of the self-test.
    drill.watcher = &Silent;
    drill.trigger = format!("self-test: {}", case.fault);
    let profile = &mut drill.profile;
    profile.gates.blocking.clear();
    profile.restore_tries = 1;
    profile.user_checks.retain(|check| {
        matches!(
            check.kind,
            CheckKind::Sql { .. }
                | CheckKind::RowCounts { .. }
                | CheckKind::Orphans
                | CheckKind::Freshness { .. }
                | CheckKind::Indexes { .. }
        )
    });
    // A second restore for each fault would show nothing more; one fault is for it alone.
    profile.checks.retain(|check| check != "n-version");
    drill
}

/// What `--json` prints: the matrix, and the untouched drill.
pub fn value(selftest: &Selftest, outcome: &Outcome) -> serde_json::Value {
    serde_json::json!({
        "selftest": selftest,
        "status": selftest.status(),
        "caught": selftest.count(Fate::Caught),
        "missed": selftest.count(Fate::Missed),
        "not_planted": selftest.count(Fate::NotPlanted),
        "unproven": selftest.unproven(),
        "untouched": document(&outcome.facts, &outcome.verdict),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::{Failure, FailureKind};
    use crate::verdict::code;
    use crate::verdict_tests::{good, set};

    fn case(fault: &str) -> &'static Case {
        CASES.iter().find(|case| case.fault == fault).expect("a fault")
    }

    /// The row of a fault that is there for amcheck.
    fn row(untouched: &Facts, facts: Facts) -> FaultRow {
        let case = case("index-disordered");
        let mut row = FaultRow {
            fault: case.fault.into(),
            what: case.what.into(),
            meant_for: vec![],
            reasons: vec![],
            planted: String::new(),
            fate: Fate::NotPlanted,
            verdict: None,
            diagnosis: None,
            cells: BTreeMap::new(),
            caught_by: vec![],
            duration_ms: 0,
        };
        let drilled = Drilled::Facts {
            planted: vec![],
            facts: Box::new(facts),
        };
        judge_row(&mut row, untouched, case, drilled);
        row
    }

    #[test]
    fn a_fault_is_caught_by_what_is_there_for_it_and_by_nothing_else() {
        let with = |id: &str, reason: &str| {
            let mut facts = good();
            facts.planted_faults.push("planted".into());
            set(&mut facts, id, CheckResult::Fail, Some(reason));
            facts
        };
        let caught = row(&good(), with("amcheck", code::AMCHECK_FAILED));
        assert_eq!(
            (caught.fate, caught.sole_catcher()),
            (Fate::Caught, Some("amcheck"))
        );
        // The right check for a wrong reason, another check, nothing, and what was as bad without the fault.
        assert_eq!(
            row(&good(), with("amcheck", code::CHECK_FAILED)).fate,
            Fate::Missed
        );
        let other = row(&good(), with("row-proof", code::AMCHECK_FAILED));
        assert_eq!((other.fate, other.sole_catcher()), (Fate::Missed, None));
        assert_eq!(row(&good(), good()).fate, Fate::Missed);
        let damaged = with("amcheck", code::AMCHECK_FAILED);
        assert_eq!(row(&damaged, damaged.clone()).fate, Fate::Missed);
    }

    #[test]
    fn what_could_not_be_planted_counts_as_nothing() {
        let mut facts = good();
        facts.failure = Some(Failure {
            step: "recover".into(),
            kind: FailureKind::CouldNotLook,
            code: code::COULD_NOT_LOOK.into(),
            error_code: "fault-not-planted".into(),
            message: "the copy has no index".into(),
            detail: None,
            hint: None,
        });
        let row = row(&good(), facts);
        assert_eq!(row.fate, Fate::NotPlanted);
        let mut selftest = Selftest {
            version: SELFTEST_VERSION,
            drill_id: "pitr_drill_1".into(),
            cluster: "main".into(),
            started_at: Timestamp::UNIX_EPOCH,
            finished_at: Timestamp::UNIX_EPOCH,
            untouched: Status::Passed,
            checks: vec!["amcheck".into()],
            aborted: false,
            complete: true,
            faults: vec![row.clone(); 40],
        };
        assert_eq!(selftest.status(), Status::Inconclusive);
        assert_eq!(selftest.unproven(), ["amcheck"]);
        let caught = FaultRow {
            fate: Fate::Caught,
            caught_by: vec!["amcheck".into()],
            ..row.clone()
        };
        selftest.faults = vec![caught; CAUGHT_MIN];
        assert_eq!(
            (selftest.status(), selftest.unproven().len()),
            (Status::Passed, 0)
        );
        selftest.faults.push(FaultRow {
            fate: Fate::Missed,
            ..row
        });
        assert_eq!(selftest.status(), Status::Failed);
    }
}
