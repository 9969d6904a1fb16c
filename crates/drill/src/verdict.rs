//! The verdict: a pure function of the facts, which anybody can repeat from the evidence.
//!
//! Invariants: only `PASS` passes; `NOT RUN` and `COULD NOT LOOK` of a required check make a drill
//! INCONCLUSIVE; a recorded result is not believed where the facts beside it allow computing it again (row
//! proof, recovery time and point): a contradiction is a failure of its own; a planted fault that was not
//! noticed is a failure; isolation that is less than full takes away the plain PASSED. No clock, no I/O.

use serde::{Deserialize, Serialize};

use crate::facts::{
    Check, CheckDetail, CheckResult, Facts, FailureKind, ManualState, Objectives, ProbeResult,
    QuarantineLevel, SequenceState, StepFacts, StepOutcome, StopOutcome,
};
use crate::objectives;
use crate::standing;
use crate::versions;

/// Stable codes of reasons. A code never changes its meaning.
pub mod code {
    /// WAL that the recovery needs is in no copy.
    pub const WAL_MISSING: &str = "wal-missing";
    /// An object of the repository is damaged or gone.
    pub const OBJECT_DAMAGED: &str = "object-damaged";
    /// The archive holds a timeline history that would lead an ordinary restore away from production.
    pub const HISTORY_POISONED: &str = "history-poisoned";
    /// Rows of the copy differ from production's at the same LSN.
    pub const ROWS_DIFFER: &str = "rows-differ";
    /// The server cannot read a relation of the copy.
    pub const ROWS_UNREADABLE: &str = "rows-unreadable";
    /// A sequence of the copy would hand out values again.
    pub const SEQUENCE_BEHIND: &str = "sequence-behind";
    /// The planner says that the target cannot be reached.
    pub const TARGET_UNREACHABLE: &str = "target-unreachable";
    /// The copy would have archived WAL.
    pub const ARCHIVE_COMMAND_WOULD_RUN: &str = "archive-command-would-run";
    /// What was committed before the point is not in the copy.
    pub const MARKER_MISSING: &str = "marker-missing";
    /// What was committed after the point is in the copy.
    pub const MARKER_BEYOND_TARGET: &str = "marker-beyond-target";
    /// Recovery did not reach the target.
    pub const TARGET_NOT_REACHED: &str = "target-not-reached";
    /// Page checksums of the copy are wrong.
    pub const PAGE_CHECKSUMS_BAD: &str = "page-checksums-bad";
    /// amcheck found damage.
    pub const AMCHECK_FAILED: &str = "amcheck-failed";
    /// Recovery took longer than its objective.
    pub const RTO_EXCEEDED: &str = "rto-exceeded";
    /// Recovery took longer than its warning threshold.
    pub const RTO_AT_RISK: &str = "rto-at-risk";
    /// More would have been lost than the objective allows.
    pub const RPO_EXCEEDED: &str = "rpo-exceeded";
    /// Another objective was missed.
    pub const OBJECTIVE_EXCEEDED: &str = "objective-exceeded";
    /// Another objective was met, beyond its warning threshold.
    pub const OBJECTIVE_AT_RISK: &str = "objective-at-risk";
    /// A gate said no-go before anything was restored.
    pub const GATE_CLOSED: &str = "gate-closed";
    /// A gate could not be looked at, or warned.
    pub const GATE_DOUBTFUL: &str = "gate-doubtful";
    /// The run did not keep to the plan that was registered.
    pub const PLAN_DEVIATES: &str = "plan-deviates";
    /// A step that people make was not confirmed.
    pub const MANUAL_STEP_OPEN: &str = "manual-step-open";
    /// A step took longer than its limit, which ends nothing.
    pub const STEP_TOO_SLOW: &str = "step-too-slow";
    /// A step was not done within its limit, and the drill ended with it.
    pub const STEP_LIMIT_EXCEEDED: &str = "step-limit-exceeded";
    /// A step succeeded only when it was made again.
    pub const STEP_RETRIED: &str = "step-retried";
    /// Replay paused because the copy's settings were too low.
    pub const PAUSED_BY_PARAMETER_CHANGE: &str = "paused-by-parameter-change";
    /// Recovery ended, and the server opened, before the target.
    pub const RECOVERY_STOPPED_EARLY: &str = "recovery-stopped-early";
    /// The copy's server ended by itself.
    pub const SERVER_ENDED: &str = "server-ended";
    /// The archive's WAL listing changed in a way that is not production's.
    pub const ARCHIVE_CHANGED: &str = "archive-changed";
    /// An attempt from inside the copy reached production although a layer should have held it.
    pub const QUARANTINE_BREACHED: &str = "quarantine-breached";
    /// Isolation is less than full.
    pub const QUARANTINE_PARTIAL: &str = "quarantine-partial";
    /// Isolation rests on configuration alone.
    pub const QUARANTINE_CONFIGURATION_ONLY: &str = "quarantine-by-configuration-only";
    /// Collation versions differ between backup and host.
    pub const COLLATION_MISMATCH: &str = "collation-mismatch";
    /// A check of the user's own gave another answer.
    pub const CHECK_FAILED: &str = "check-failed";
    /// Rows of the copy refer to nothing.
    pub const ORPHANS_FOUND: &str = "orphans-found";
    /// The newest row is older than it may be.
    pub const DATA_STALE: &str = "data-stale";
    /// An index is missing or not valid.
    pub const INDEX_INVALID: &str = "index-invalid";
    /// Production and copy count other numbers of rows at the same LSN.
    pub const ROW_COUNTS_DIFFER: &str = "row-counts-differ";
    /// An endpoint did not answer, or not as expected.
    pub const ENDPOINT_UNHEALTHY: &str = "endpoint-unhealthy";
    /// A program ended with another code, or not in time.
    pub const COMMAND_FAILED: &str = "command-failed";
    /// A test failed.
    pub const TESTS_FAILED: &str = "tests-failed";
    /// Answers came too slowly.
    pub const ANSWERS_TOO_SLOW: &str = "answers-too-slow";
    /// The same point recovered from two backups holds other rows.
    pub const VERSIONS_DIFFER: &str = "versions-differ";
    /// A check warned.
    pub const CHECK_WARNED: &str = "check-warned";
    /// A check was not made.
    pub const CHECK_NOT_RUN: &str = "check-not-run";
    /// A check could not look.
    pub const COULD_NOT_LOOK: &str = "could-not-look";
    /// The point in production could not be made.
    pub const POINT_NOT_MADE: &str = "point-not-made";
    /// A relation was rewritten or truncated while it was being read.
    pub const REWRITTEN_MEANWHILE: &str = "rewritten-meanwhile";
    /// The segment of the point was not archived in time.
    pub const NOT_ARCHIVED: &str = "not-archived";
    /// There is no backup that can be restored.
    pub const NO_BACKUP: &str = "no-backup";
    /// The keys do not open the repository.
    pub const KEY_WRONG: &str = "key-wrong";
    /// Recorded results contradict the facts beside them.
    pub const EVIDENCE_CONTRADICTS: &str = "evidence-contradicts";
    /// A planted fault was not noticed.
    pub const FAULT_NOT_NOTICED: &str = "fault-not-noticed";
    /// The copy was not cleaned up.
    pub const NOT_TORN_DOWN: &str = "not-torn-down";
    /// The drill was interrupted and taken up again.
    pub const RESUMED: &str = "drill-resumed";
    /// The server is another one than the backups are of.
    pub const IDENTITY_DIFFERS: &str = "identity-differs";
    /// The server replays WAL while it is looked at.
    pub const RECOVERY_GOES_ON: &str = "recovery-goes-on";
    /// What the server writes is not archived.
    pub const NOT_ARCHIVING: &str = "not-archiving";
    /// The operator stopped the drill.
    pub const ABORTED: &str = "aborted";
}

/// How a drill ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Status {
    /// Everything that was asked was seen, and is good.
    #[serde(rename = "PASSED")]
    Passed,
    /// It works, and something should be known.
    #[serde(rename = "PASSED WITH OBSERVATIONS")]
    PassedWithObservations,
    /// It does not work.
    #[serde(rename = "FAILED")]
    Failed,
    /// Nobody can tell.
    #[serde(rename = "INCONCLUSIVE")]
    Inconclusive,
    /// It was stopped.
    #[serde(rename = "ABORTED")]
    Aborted,
}

impl Status {
    /// The word in reports.
    pub fn as_str(self) -> &'static str {
        match self {
            Status::Passed => "PASSED",
            Status::PassedWithObservations => "PASSED WITH OBSERVATIONS",
            Status::Failed => "FAILED",
            Status::Inconclusive => "INCONCLUSIVE",
            Status::Aborted => "ABORTED",
        }
    }

    /// The exit code of `drill run`: 0 passed (with or without observations), 3 failed, 4 nobody can tell.
    pub fn exit_code(self) -> u8 {
        match self {
            Status::Passed | Status::PassedWithObservations => 0,
            Status::Failed => 3,
            Status::Inconclusive | Status::Aborted => 4,
        }
    }
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

/// What a reason does to the verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Weight {
    /// FAILED.
    Failure,
    /// ABORTED.
    Abort,
    /// INCONCLUSIVE.
    Doubt,
    /// PASSED WITH OBSERVATIONS at best.
    Observation,
}

/// Why the verdict is what it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reason {
    /// A stable code, see [`code`].
    pub code: String,
    /// One or two sentences.
    pub text: String,
    /// The check it came from.
    pub check: Option<String>,
    /// What it does.
    pub weight: Weight,
}

/// The verdict and its reasons, the heaviest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// The status.
    pub status: Status,
    /// The reasons; empty only for PASSED.
    pub reasons: Vec<Reason>,
}

/// Judges the facts. The same facts always give the same verdict.
pub fn judge(facts: &Facts) -> Verdict {
    let mut reasons = Reasons(Vec::new());
    judge_failure(facts, &mut reasons);
    judge_gates(facts, &mut reasons);
    judge_steps(facts, &mut reasons);
    judge_people(facts, &mut reasons);
    judge_stops(facts, &mut reasons);
    judge_checks(facts, &mut reasons);
    judge_rows_again(facts, &mut reasons);
    judge_markers_again(facts, &mut reasons);
    judge_versions_again(facts, &mut reasons);
    judge_objectives_again(facts, &mut reasons);
    judge_quarantine(facts, &mut reasons);
    judge_teardown(facts, &mut reasons);
    judge_planted_faults(facts, &mut reasons);
    conclude(reasons.0)
}

/// The verdict of these reasons: the heaviest decides.
pub(crate) fn conclude(mut reasons: Vec<Reason>) -> Verdict {
    reasons.sort_by_key(|reason| reason.weight);
    let status = match reasons.first().map(|reason| reason.weight) {
        None => Status::Passed,
        Some(Weight::Failure) => Status::Failed,
        Some(Weight::Abort) => Status::Aborted,
        Some(Weight::Doubt) => Status::Inconclusive,
        Some(Weight::Observation) => Status::PassedWithObservations,
    };
    Verdict { status, reasons }
}

struct Reasons(Vec<Reason>);

impl Reasons {
    fn add(&mut self, weight: Weight, code: &str, check: Option<&str>, text: impl Into<String>) {
        if check.is_some()
            && self
                .0
                .iter()
                .any(|known| known.code == code && known.check.as_deref() == check)
        {
            return;
        }
        self.0.push(Reason {
            code: code.into(),
            text: text.into(),
            check: check.map(Into::into),
            weight,
        });
    }

    fn has_failure(&self) -> bool {
        self.0.iter().any(|reason| reason.weight == Weight::Failure)
    }
}

fn judge_failure(facts: &Facts, reasons: &mut Reasons) {
    let Some(failure) = &facts.failure else { return };
    let weight = match failure.kind {
        FailureKind::Finding => Weight::Failure,
        FailureKind::CouldNotLook => Weight::Doubt,
        FailureKind::Aborted => Weight::Abort,
    };
    let mut text = failure.message.clone();
    if let Some(detail) = &failure.detail {
        text.push_str(". ");
        text.push_str(detail);
    }
    reasons.add(weight, &failure.code, None, text);
}

/// A gate that is closed is an observation where the profile does not call it blocking; where it does, nothing was
/// restored, and nobody can tell.
fn judge_gates(facts: &Facts, reasons: &mut Reasons) {
    for gate in &facts.gates {
        let text = format!(
            "Gate \"{}\": the limit is {}; {}.",
            gate.id, gate.limit, gate.actual
        );
        let weight = if gate.blocking && gate.is_no_go() {
            Weight::Doubt
        } else {
            Weight::Observation
        };
        match gate.result {
            CheckResult::Pass | CheckResult::NotRun => {}
            CheckResult::Fail => reasons.add(weight, code::GATE_CLOSED, None, text),
            // The check of the same name says it where the drill got that far.
            CheckResult::Warn if matches!(gate.id.as_str(), "isolation" | "page-checksums") => {}
            CheckResult::Warn | CheckResult::CouldNotLook => {
                reasons.add(weight, code::GATE_DOUBTFUL, None, text);
            }
        }
    }
    if let Some(registration) = facts
        .registration
        .as_ref()
        .filter(|each| !each.deviations.is_empty())
    {
        let text = format!(
            "The run did not keep to the plan that was registered as {}: {}.",
            registration.id,
            registration.deviations.join("; ")
        );
        reasons.add(Weight::Observation, code::PLAN_DEVIATES, None, text);
    }
}

/// A second try or an interruption is something to know; what it means that a step took more than its limit stands beside
/// the limit.
fn judge_steps(facts: &Facts, reasons: &mut Reasons) {
    for interruption in &facts.interruptions {
        let seconds = interruption
            .resumed_at
            .duration_since(interruption.last_seen)
            .as_secs();
        let text = format!(
            "The drill was interrupted after {} and taken up again at {}; the {seconds} s between count as time of the recovery.",
            interruption.last_seen, interruption.resumed_at
        );
        reasons.add(Weight::Observation, code::RESUMED, None, text);
    }
    for step in &facts.steps {
        if step.outcome == StepOutcome::Done && !step.retries.is_empty() {
            let first = step.retries.first().map_or("", |retry| retry.message.as_str());
            let text = format!(
                "Step \"{}\" succeeded at try {}: {first}.",
                step.id,
                step.retries.len() + 1
            );
            reasons.add(Weight::Observation, code::STEP_RETRIED, None, text);
        }
        if let Some(limit) = step.exceeded_limit_ms() {
            judge_slow_step(facts, step, limit, reasons);
        }
    }
}

fn judge_slow_step(facts: &Facts, step: &StepFacts, limit_ms: u64, reasons: &mut Reasons) {
    let failure = facts.failure.as_ref();
    let is_told = failure.is_some_and(|failure| {
        failure.code == code::STEP_LIMIT_EXCEEDED
            && failure.step == step.id
            && step.at_limit == Some(failure.kind)
    });
    if is_told {
        return;
    }
    // Who ended it did so in the middle of it, or while it was being ended.
    let aborted = failure.is_some_and(|failure| failure.kind == FailureKind::Aborted);
    let (weight, code) = match step.at_limit {
        Some(FailureKind::Finding) if !aborted => (Weight::Failure, code::STEP_LIMIT_EXCEEDED),
        Some(FailureKind::CouldNotLook) if !aborted => (Weight::Doubt, code::STEP_LIMIT_EXCEEDED),
        _ => (Weight::Observation, code::STEP_TOO_SLOW),
    };
    let text = format!(
        "Step \"{}\" took {} ms, its limit is {limit_ms} ms.",
        step.id, step.duration_ms
    );
    reasons.add(weight, code, None, text);
}

/// What people had to do and nobody confirmed: a doubt where the profile calls it required, else an observation. What a
/// drill that ended early did not come to follows from that end.
fn judge_people(facts: &Facts, reasons: &mut Reasons) {
    for step in facts.manual.iter().filter(|step| !step.is_confirmed()) {
        let follows = facts.failure.is_some() && step.asked_at.is_none();
        let weight = match step.required && !follows {
            true => Weight::Doubt,
            false => Weight::Observation,
        };
        let said = match (step.state, &step.by) {
            (ManualState::Skipped, Some(by)) => format!("skipped by {by}"),
            _ => "not confirmed".to_owned(),
        };
        let why = step.why.as_deref().unwrap_or("no name and no time are recorded");
        let text = format!("By hand, \"{}\" ({}): {said}: {why}.", step.title, step.id);
        reasons.add(weight, code::MANUAL_STEP_OPEN, None, text);
    }
    // What the profile asks for, and the facts do not mention.
    let Some(profile) = facts.profiles.first() else {
        return;
    };
    for asked in profile.value["manual"].as_array().into_iter().flatten() {
        let id = asked["id"].as_str().unwrap_or_default();
        if facts.manual.iter().any(|step| step.id == id) {
            continue;
        }
        let weight = match asked["required"].as_bool() {
            Some(false) => Weight::Observation,
            _ => Weight::Doubt,
        };
        let text = format!("By hand, \"{id}\": no result is recorded.");
        reasons.add(weight, code::MANUAL_STEP_OPEN, None, text);
    }
}

/// A stop that was not reached is never silent, whatever the checks say.
fn judge_stops(facts: &Facts, reasons: &mut Reasons) {
    if facts.failure.is_some() {
        return;
    }
    if facts.target.stops.is_empty() {
        reasons.add(
            Weight::Doubt,
            code::TARGET_NOT_REACHED,
            None,
            "No copy was started: no stop is recorded.",
        );
    }
    for stop in &facts.target.stops {
        match stop.outcome {
            StopOutcome::Paused | StopOutcome::Promoted | StopOutcome::Opened => {
                // Where the check says so, its own reason stands; where it does not, it contradicts the facts.
                let noticed = facts
                    .check("target")
                    .is_some_and(|check| check.result == CheckResult::Fail);
                if stop.stands_where_planned() == Some(false) && !noticed {
                    let text = format!(
                        "The copy did not stand where the plan says at its stop \"{}\", and the check \"target\" does not \
                         say so.",
                        stop.purpose
                    );
                    reasons.add(Weight::Failure, code::EVIDENCE_CONTRADICTS, None, text);
                }
            }
            StopOutcome::Failed => {
                let text = format!("The copy did not reach its stop \"{}\".", stop.purpose);
                reasons.add(Weight::Failure, code::TARGET_NOT_REACHED, None, text);
            }
            StopOutcome::NotTried => {
                let text = format!("The stop \"{}\" was not tried.", stop.purpose);
                reasons.add(Weight::Doubt, code::TARGET_NOT_REACHED, None, text);
            }
        }
    }
}

/// What the result of a check that was to be made does to a verdict; `None`: nothing.
pub(crate) fn of_check(check: &Check, objectives: &Objectives) -> Option<Reason> {
    let required = objectives.required_checks.contains(&check.id);
    let requested = required || objectives.requested_checks.contains(&check.id);
    let doubt_if = |serious: bool| match serious {
        true => Weight::Doubt,
        false => Weight::Observation,
    };
    let (weight, code) = match check.result {
        CheckResult::Pass => return None,
        CheckResult::Warn => (Weight::Observation, code::CHECK_WARNED),
        CheckResult::Fail => (Weight::Failure, code::CHECK_FAILED),
        // What the profile accepts is said in the report's section on what is not proved.
        CheckResult::NotRun if objectives.may_be_not_run.contains(&check.id) => return None,
        CheckResult::NotRun => (doubt_if(required), code::CHECK_NOT_RUN),
        CheckResult::CouldNotLook => (doubt_if(requested), code::COULD_NOT_LOOK),
    };
    Some(Reason {
        code: check.reason.clone().unwrap_or_else(|| code.into()),
        text: format!(
            "{}: expected {}; {}.",
            check.id,
            check.expected,
            check.actual.trim_end_matches('.')
        ),
        check: Some(check.id.clone()),
        weight,
    })
}

fn judge_checks(facts: &Facts, reasons: &mut Reasons) {
    let objectives = &facts.objectives;
    // After an early end, what was not looked at any more follows from it: one sentence says it for all of
    // them.
    let early = facts.failure.is_some();
    let unseen = |result| matches!(result, CheckResult::NotRun | CheckResult::CouldNotLook);
    let (without, made): (Vec<&Check>, Vec<&Check>) = facts
        .checks
        .iter()
        .partition(|check| early && unseen(check.result));
    if !without.is_empty() {
        let ids: Vec<String> = without.iter().map(|check| check.id.clone()).collect();
        let text = format!(
            "The drill ended early; these checks have no result: {}.",
            listed(&ids)
        );
        reasons.add(Weight::Observation, code::CHECK_NOT_RUN, None, text);
    }
    for check in made {
        if let Some(reason) = of_check(check, objectives) {
            reasons.add(reason.weight, &reason.code, Some(&check.id), reason.text);
        }
    }
    for id in objectives
        .required_checks
        .iter()
        .chain(&objectives.requested_checks)
    {
        if facts.check(id).is_none() && !early {
            let required = objectives.required_checks.contains(id);
            let weight = if required {
                Weight::Doubt
            } else {
                Weight::Observation
            };
            reasons.add(
                weight,
                code::CHECK_NOT_RUN,
                Some(id),
                format!("{id}: no result is recorded."),
            );
        }
    }
}

/// Computes the row proof's result again from the digests.
fn judge_rows_again(facts: &Facts, reasons: &mut Reasons) {
    let passed = |id: &str| {
        facts
            .check(id)
            .is_some_and(|check| check.result == CheckResult::Pass)
    };
    let proof = facts.row_proof.as_ref();
    let rows = proof.is_some_and(|proof| {
        !proof.tables.is_empty()
            && proof
                .tables
                .iter()
                .all(|table| table.result() == CheckResult::Pass)
    });
    if passed("row-proof") && !rows {
        let text = "The row proof is recorded as PASS, but the recorded digests do not show it.";
        reasons.add(
            Weight::Failure,
            code::EVIDENCE_CONTRADICTS,
            Some("row-proof"),
            text,
        );
    }
    let sequences = proof.is_some_and(|proof| {
        proof
            .sequences
            .iter()
            .all(|sequence| sequence.state == SequenceState::NotBehind)
    });
    if passed("sequences") && !sequences {
        let text = "The sequences are recorded as PASS, but not all of them are recorded as not behind.";
        reasons.add(
            Weight::Failure,
            code::EVIDENCE_CONTRADICTS,
            Some("sequences"),
            text,
        );
    }
}

/// Computes the result of the standing markers again.
fn judge_markers_again(facts: &Facts, reasons: &mut Reasons) {
    let Some(point) = facts.point.as_ref() else { return };
    let recorded = facts.check("standing-markers").map(|check| check.result);
    if recorded == Some(CheckResult::Pass) && standing::judge(&point.markers).result != CheckResult::Pass {
        let text = "The standing markers are recorded as PASS, but the recorded markers do not show it.";
        reasons.add(
            Weight::Failure,
            code::EVIDENCE_CONTRADICTS,
            Some("standing-markers"),
            text,
        );
    }
}

/// Compares the two versions again, by their recorded digests.
fn judge_versions_again(facts: &Facts, reasons: &mut Reasons) {
    let Some(check) = facts
        .check("n-version")
        .filter(|check| check.result == CheckResult::Pass)
    else {
        return;
    };
    let holds = match &check.detail {
        Some(CheckDetail::Versions(detail)) => versions::judge(detail.clone()).result == CheckResult::Pass,
        _ => false,
    };
    if !holds {
        let text = "The versions are recorded as equal, but the recorded digests do not show it.";
        reasons.add(
            Weight::Failure,
            code::EVIDENCE_CONTRADICTS,
            Some("n-version"),
            text,
        );
    }
}

/// Computes the objectives' results again from the measurements.
fn judge_objectives_again(facts: &Facts, reasons: &mut Reasons) {
    for clock in &facts.clocks {
        if let Some(why) = objectives::contradiction(clock, facts) {
            let text = format!("Objective \"{}\" of profile {}: {why}.", clock.id, clock.profile);
            reasons.add(
                Weight::Failure,
                code::EVIDENCE_CONTRADICTS,
                Some(&clock.check),
                text,
            );
        }
    }
    if !facts.clocks.is_empty() {
        return;
    }
    // Facts of older drills have no clocks.
    let passed = |id: &str| {
        facts
            .check(id)
            .is_some_and(|check| check.result == CheckResult::Pass)
    };
    if let Some(objective) = facts.objectives.rto_seconds
        && passed("rto")
        && facts
            .rto
            .as_ref()
            .is_none_or(|rto| rto.total_seconds() > objective)
    {
        let text =
            "The recovery time is recorded as PASS, but the measurement is missing or exceeds the objective.";
        reasons.add(Weight::Failure, code::EVIDENCE_CONTRADICTS, Some("rto"), text);
    }
    if let Some(objective) = facts.objectives.rpo_seconds
        && passed("rpo")
        && !facts
            .rpo
            .as_ref()
            .is_some_and(|rpo| rpo.exact && rpo.seconds.is_some_and(|it| it <= objective as f64))
    {
        let text = "The recovery point is recorded as PASS, but the measurement is missing or exceeds the \
        objective.";
        reasons.add(Weight::Failure, code::EVIDENCE_CONTRADICTS, Some("rpo"), text);
    }
}

fn judge_quarantine(facts: &Facts, reasons: &mut Reasons) {
    let Some(quarantine) = &facts.quarantine else {
        if !facts.target.stops.is_empty() && facts.failure.is_none() {
            let text = "How far the copy was isolated is not recorded.";
            reasons.add(Weight::Doubt, code::QUARANTINE_PARTIAL, Some("quarantine"), text);
        }
        return;
    };
    let missing: Vec<String> = quarantine
        .layers
        .iter()
        .filter(|layer| !layer.applied)
        .map(|layer| {
            format!(
                "{} ({})",
                layer.name,
                layer.reason.as_deref().unwrap_or("no reason recorded")
            )
        })
        .collect();
    let none = quarantine.layers.iter().all(|layer| !layer.applied);
    if quarantine.level == QuarantineLevel::ConfigurationOnly || none {
        let text = format!(
            "The copy was isolated by configuration only; not applied: {}.",
            listed(&missing)
        );
        reasons.add(
            Weight::Observation,
            code::QUARANTINE_CONFIGURATION_ONLY,
            Some("quarantine"),
            text,
        );
    } else if quarantine.level == QuarantineLevel::Partial || !missing.is_empty() {
        let text = format!(
            "The copy was not isolated by every layer; not applied: {}.",
            listed(&missing)
        );
        reasons.add(
            Weight::Observation,
            code::QUARANTINE_PARTIAL,
            Some("quarantine"),
            text,
        );
    }
    let breached: Vec<String> = quarantine
        .probes
        .iter()
        .filter(|probe| probe.result == ProbeResult::Breached)
        .map(|probe| probe.name.clone())
        .collect();
    if !breached.is_empty() {
        // With every layer in place an attempt that succeeds means that a layer does not do what it says.
        let weight = if missing.is_empty() && !none {
            Weight::Failure
        } else {
            Weight::Observation
        };
        let text = format!(
            "From inside the copy these attempts were not held off: {}.",
            listed(&breached)
        );
        reasons.add(weight, code::QUARANTINE_BREACHED, Some("quarantine"), text);
    }
}

fn judge_teardown(facts: &Facts, reasons: &mut Reasons) {
    let Some(teardown) = &facts.teardown else { return };
    if !teardown.server_stopped || (!teardown.folder_removed && !teardown.kept_on_request) {
        let text = format!("The copy was not cleaned up: {}.", listed(&teardown.left));
        reasons.add(Weight::Observation, code::NOT_TORN_DOWN, None, text);
    }
}

fn judge_planted_faults(facts: &Facts, reasons: &mut Reasons) {
    if !facts.planted_faults.is_empty() && facts.failure.is_none() && !reasons.has_failure() {
        let text = format!(
            "A planted fault was not noticed: {}.",
            listed(&facts.planted_faults)
        );
        reasons.add(Weight::Failure, code::FAULT_NOT_NOTICED, None, text);
    }
}

fn listed(items: &[String]) -> String {
    if items.is_empty() {
        "nothing recorded".into()
    } else {
        items.join(", ")
    }
}
