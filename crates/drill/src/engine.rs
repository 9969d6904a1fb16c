//! A drill as a list of steps, from the first look at production to the evidence.
//!
//! Invariants: each step is recorded with its times, however it ends; a step that fails ends the drill, and
//! what it says becomes a finding or a doubt, never a silent gap; the copy is stopped and removed in every
//! case; the evidence is written in every case, and the verdict in it is the one that [`judge`] gives for the
//! facts in it.

use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::Instant;

use diagnostic::{Error, Result};
use postgres::{SystemIdentifier, TimelineId};

use crate::checks;
use crate::classify;
use crate::copy::{Copy, CopyFolder};
use crate::evidence;
use crate::facts::{
    CheckResult, FACTS_VERSION, Facts, FailureKind, Identity, Objectives, Scope, StepFacts, StepOutcome,
    TargetFacts, Teardown,
};
use crate::log;
use crate::options::{Drill, DrillTarget};
use crate::perform;
use crate::rows::aborted;
use crate::server_error::texts;
use crate::verdict::{Verdict, code, judge};

/// A drill that has ended, however it ended.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// What was seen.
    pub facts: Facts,
    /// What follows.
    pub verdict: Verdict,
    /// Evidence files that the repository now holds.
    pub evidence: Vec<String>,
    /// The local folder with the same files, if one was asked for.
    pub folder: Option<PathBuf>,
    /// The report's path, if a report directory was given.
    pub report: Option<PathBuf>,
    /// Why the evidence could not be kept everywhere.
    pub evidence_errors: Vec<Error>,
}

/// The drill has ended early; the facts say why.
pub(crate) struct Ended;

/// A drill on its way.
pub(crate) struct Run<'a> {
    pub drill: &'a Drill<'a>,
    pub facts: Facts,
    /// The archive's listing before anything was done.
    pub archive_before: Option<crate::archive::Listing>,
    /// Whose additions to the archive are production's own.
    pub archive_of: Option<(SystemIdentifier, TimelineId)>,
    steps_total: usize,
}

/// Runs a drill from its first to its last step. An error means that not even facts could be gathered (wrong
/// usage, no place for the copy); everything else is an [`Outcome`]. Error codes: `drill-usage`,
/// `copy-folder`.
pub fn run(drill: &Drill<'_>) -> Result<Outcome> {
    check_request(drill)?;
    let started_at = unused_moment(drill)?;
    let mut run = Run {
        drill,
        facts: blank(drill, started_at),
        archive_before: None,
        archive_of: None,
        steps_total: perform::STEPS + 2,
    };
    let drill_id = run.facts.identity.drill_id.clone();
    let folder = CopyFolder::create(&drill.sandbox.parent, &drill_id, crate::isolation::owner(drill))?;
    let mut copy = None;
    // Whatever ended it stands in the facts.
    let _ = perform::perform(&mut run, &folder, &mut copy);
    run.tear_down(&folder, copy);
    run.compare_archive();
    run.complete_checks();
    run.facts.limits = limits(&run.facts);
    run.facts.finished_at = Some((drill.clock)());
    finish(drill, run.facts)
}

/// A drill is named by the second at which it began: the first one that no drill has taken yet.
fn unused_moment(drill: &Drill<'_>) -> Result<jiff::Timestamp> {
    loop {
        let now = (drill.clock)();
        if drill.repository.list_evidence(&drill_id(now))?.is_empty() {
            return Ok(now);
        }
        std::thread::sleep(std::time::Duration::from_millis(200));
    }
}

fn drill_id(started_at: jiff::Timestamp) -> String {
    format!("pitr_drill_{}", started_at.strftime("%Y%m%dT%H%M%SZ"))
}

/// Judges, and keeps the evidence wherever it is to be kept.
fn finish(drill: &Drill<'_>, facts: Facts) -> Result<Outcome> {
    let verdict = judge(&facts);
    let bundle = evidence::bundle(&facts, &verdict, (drill.documents)(&facts, &verdict))?;
    let drill_id = facts.identity.drill_id.clone();
    let mut outcome = Outcome {
        facts,
        verdict,
        evidence: Vec::new(),
        folder: None,
        report: None,
        evidence_errors: Vec::new(),
    };
    match evidence::keep(drill.repository, &drill_id, &bundle, (drill.clock)()) {
        Ok(names) => outcome.evidence = names,
        Err(error) => outcome.evidence_errors.push(error),
    }
    if let Some(folder) = &drill.report_directory {
        match evidence::write(folder, &drill_id, &bundle) {
            Ok((own, report)) => {
                outcome.folder = Some(own);
                outcome.report = report;
                // Without its chain a bundle can be read, and not be audited.
                if !outcome.evidence.is_empty()
                    && let Err(error) = evidence::write_chain(folder, &drill_id, drill.repository)
                {
                    outcome.evidence_errors.push(error);
                }
            }
            Err(error) => outcome.evidence_errors.push(error),
        }
    }
    Ok(outcome)
}

fn check_request(drill: &Drill<'_>) -> Result<()> {
    let usage = |message: String| Err(Error::usage("drill-usage", message));
    if drill.profile.target == DrillTarget::Bracket && drill.production.is_none() {
        return usage("a drill that makes its own point needs a connection to production".into());
    }
    for id in &drill.profile.checks {
        if !crate::options::BUILT_IN_CHECKS.contains(&id.as_str()) {
            let known = crate::options::BUILT_IN_CHECKS.join(", ");
            return Err(
                Error::usage("drill-usage", format!("there is no built-in check \"{id}\"")).hint(format!(
                    "Built-in checks are: {known}. Others need `sql` and `expect`."
                )),
            );
        }
    }
    for check in &drill.profile.sql_checks {
        if checks::draft(&check.id).is_some() {
            return usage(format!(
                "the check's id \"{}\" is taken by a built-in check",
                check.id
            ));
        }
    }
    Ok(())
}

fn blank(drill: &Drill<'_>, started_at: jiff::Timestamp) -> Facts {
    let profile = &drill.profile;
    let requested = match &profile.target {
        DrillTarget::Bracket => "bracket".to_string(),
        DrillTarget::Point(_, words) => words.clone(),
    };
    let bracket = profile.target == DrillTarget::Bracket;
    let mut objectives = Objectives {
        rto_seconds: profile.rto.map(|rto| rto.as_secs()),
        rto_warning_seconds: profile
            .rto
            .map(|rto| rto.mul_f64(profile.rto_warning_share.clamp(0.0, 1.0)).as_secs()),
        rpo_seconds: profile.rpo.map(|rpo| rpo.as_secs()),
        required_checks: vec!["target".into()],
        requested_checks: vec![
            "archive-settings".into(),
            "archive-unchanged".into(),
            "timeline-histories".into(),
        ],
    };
    if bracket {
        objectives.required_checks.push("bracket".into());
    }
    for id in &profile.checks {
        if id == "row-proof" && bracket {
            objectives.required_checks.push(id.clone());
            objectives.requested_checks.push("sequences".into());
        } else {
            objectives.requested_checks.push(id.clone());
        }
    }
    objectives
        .requested_checks
        .extend(profile.sql_checks.iter().map(|check| check.id.clone()));
    if profile.rto.is_some() {
        objectives.requested_checks.push("rto".into());
    }
    if profile.rpo.is_some() {
        objectives.requested_checks.push("rpo".into());
    }
    Facts {
        version: FACTS_VERSION,
        identity: Identity {
            drill_id: drill_id(started_at),
            profile: profile.name.clone(),
            scenario: requested.clone(),
            trigger: drill.trigger.clone(),
            environment: "sandbox".into(),
            tool_version: drill.tool_version.clone(),
            host: drill.host.clone(),
            next_due: drill.next_due,
        },
        scope: Scope {
            cluster: drill.repository.name().to_string(),
            ..Scope::default()
        },
        objectives,
        people: drill.people.clone(),
        started_at,
        finished_at: None,
        input: None,
        plan: None,
        target: TargetFacts {
            requested,
            stops: Vec::new(),
        },
        steps: Vec::new(),
        rto: None,
        rpo: None,
        bracket: None,
        row_proof: None,
        checks: Vec::new(),
        quarantine: None,
        substitutions: Vec::new(),
        archive: None,
        server_log: Vec::new(),
        teardown: None,
        failure: None,
        planted_faults: Vec::new(),
        limits: Vec::new(),
    }
}

impl Run<'_> {
    /// Makes one step: `body` gives its result and a sentence about it.
    pub fn step<T>(
        &mut self,
        id: &str,
        title: &str,
        body: impl FnOnce(&mut Self) -> Result<(T, String)>,
    ) -> Result<T, Ended> {
        self.step_always(id, title, |run| match run.drill.abort.load(Ordering::Relaxed) {
            true => Err(aborted()),
            false => body(run),
        })
    }

    /// The same, whether or not the drill was told to stop.
    fn step_always<T>(
        &mut self,
        id: &str,
        title: &str,
        body: impl FnOnce(&mut Self) -> Result<(T, String)>,
    ) -> Result<T, Ended> {
        let number = self.facts.steps.len() + 1;
        self.drill.watcher.step(number, self.steps_total, title);
        let started_at = (self.drill.clock)();
        let started = Instant::now();
        let at = self.facts.steps.len();
        self.facts.steps.push(StepFacts {
            id: id.into(),
            title: title.into(),
            started_at,
            duration_ms: 0,
            outcome: StepOutcome::Failed,
            detail: None,
            error_code: None,
        });
        let result = body(self);
        let duration_ms = started.elapsed().as_millis() as u64;
        let mut entry = self.facts.steps.get_mut(at);
        if let Some(entry) = &mut entry {
            entry.duration_ms = duration_ms;
        }
        match result {
            Ok((value, detail)) => {
                if let Some(entry) = entry {
                    entry.outcome = StepOutcome::Done;
                    entry.detail = Some(detail).filter(|detail| !detail.is_empty());
                }
                Ok(value)
            }
            Err(error) => {
                if let Some(entry) = entry {
                    entry.detail = Some(texts(&error).0);
                    entry.error_code = Some(error.code().into());
                }
                self.facts
                    .failure
                    .get_or_insert_with(|| classify::failure(id, &error));
                Err(Ended)
            }
        }
    }

    /// Records a step that this drill has no use for.
    pub fn skip(&mut self, id: &str, title: &str, why: &str) {
        self.facts.steps.push(StepFacts {
            id: id.into(),
            title: title.into(),
            started_at: (self.drill.clock)(),
            duration_ms: 0,
            outcome: StepOutcome::Skipped,
            detail: Some(why.into()),
            error_code: None,
        });
    }

    /// Stops and removes the copy, and says what is left.
    fn tear_down(&mut self, folder: &CopyFolder, copy: Option<Copy>) {
        let keep = self.drill.sandbox.keep;
        let mut teardown = Teardown {
            server_stopped: true,
            folder_removed: false,
            kept_on_request: keep,
            left: Vec::new(),
        };
        // This step is made even when the drill was told to stop.
        let failure = self.facts.failure.take();
        self.drill.watcher.step(
            self.facts.steps.len() + 1,
            self.steps_total,
            "Stop the copy and remove it",
        );
        let (started_at, started) = ((self.drill.clock)(), Instant::now());
        if let Some(mut copy) = copy {
            if let Err(error) = copy.stop() {
                teardown
                    .left
                    .push(format!("the copy's server: {}", error.message()));
            }
            teardown.server_stopped = !copy.is_running();
            self.facts.server_log = log::excerpt(&copy.whole_log());
            perform::record_feed(&mut self.facts, &copy);
        }
        let removed = if keep { folder.keep() } else { folder.remove() };
        match removed {
            Ok(()) => teardown.folder_removed = !keep,
            Err(error) => teardown
                .left
                .push(format!("{}: {}", folder.path.display(), error.message())),
        }
        if keep {
            teardown.left.push(folder.path.display().to_string());
        }
        let outcome = if teardown.server_stopped && (teardown.folder_removed || keep) {
            StepOutcome::Done
        } else {
            StepOutcome::Failed
        };
        self.facts.steps.push(StepFacts {
            id: "tear-down".into(),
            title: "Stop the copy and remove it".into(),
            started_at,
            duration_ms: started.elapsed().as_millis() as u64,
            outcome,
            detail: (!teardown.left.is_empty()).then(|| teardown.left.join("; ")),
            error_code: None,
        });
        self.facts.teardown = Some(teardown);
        self.facts.failure = failure;
    }

    /// The last look, made even when the drill was told to stop: nothing that a copy did to the archive stays
    /// unseen.
    fn compare_archive(&mut self) {
        if self.archive_before.is_none() {
            return;
        }
        let title = "Compare the WAL archive with its listing before";
        let _ = self.step_always("archive-after", title, perform::archive_after);
    }

    /// Every check that was asked for has a result, even if it is that nobody looked.
    fn complete_checks(&mut self) {
        let reached = self
            .facts
            .target
            .stops
            .first()
            .is_some_and(|stop| stop.outcome.is_reached());
        if !reached {
            // Phases of a recovery that did not get there add up to nothing.
            self.facts.rto = None;
        }
        if self.drill.profile.rto.is_some() && reached {
            let check = checks::rto(&self.facts.objectives, self.facts.rto.as_ref());
            self.facts.checks.push(check);
        }
        let why = match &self.facts.failure {
            Some(failure) => format!("the drill ended early in step \"{}\"", failure.step),
            None => "no result was recorded".to_string(),
        };
        let looked = self
            .facts
            .failure
            .as_ref()
            .is_some_and(|failure| failure.kind == FailureKind::CouldNotLook);
        let wanted: Vec<String> = self
            .facts
            .objectives
            .required_checks
            .iter()
            .chain(&self.facts.objectives.requested_checks)
            .cloned()
            .collect();
        for id in wanted {
            if self.facts.check(&id).is_some() {
                continue;
            }
            let check = match checks::draft(&id) {
                Some(draft) if looked => draft.could_not_look(why.clone()),
                Some(draft) => draft.not_run(why.clone()),
                None => self.user_check_not_run(&id, &why),
            };
            self.facts.checks.push(check);
        }
    }

    fn user_check_not_run(&self, id: &str, why: &str) -> crate::facts::Check {
        let given = self.drill.profile.sql_checks.iter().find(|check| check.id == id);
        let (sql, expect) = given.map_or(("", ""), |check| (check.sql.as_str(), check.expect.as_str()));
        let mut check = checks::of_user(id, sql, expect, Err(why.into()));
        check.result = CheckResult::NotRun;
        check.reason = Some(code::CHECK_NOT_RUN.into());
        check
    }
}

/// What this drill does not prove, in sentences.
fn limits(facts: &Facts) -> Vec<String> {
    let mut limits =
        vec![
        "No application was started on the copy: health endpoints, logins, jobs and integrations were not \
         tried.".to_string(),
        "The recovery time is that of this host, with fsync off, reading from one copy of the repository; \
         other storage, \
         another network and people's time to decide are not in it."
            .to_string(),
        "Only the copy of the repository named under artifacts was read; other copies and their keys were \
         not."
            .to_string(),
        "Production's configuration files were replaced by generated ones, so nothing is said about \
         them.".to_string(),
    ];
    if facts.bracket.is_some() {
        limits.push(
            "The row proof holds at the LSNs named here, for the relations listed; it says nothing about \
             rows that were \
             wrong in production already."
                .to_string(),
        );
        limits.push(
            "Sequences log ahead: it is shown that none is behind, not that each stands where production \
             stood."
                .to_string(),
        );
        limits.push(
            "Definitions (functions, constraints, rights, settings of roles and databases) were not \
             compared row by row."
                .to_string(),
        );
    } else {
        limits.push(
            "A point of the past has no live counterpart: no bracket and no row proof exist for it; what \
             was seen is that \
             recovery reaches it and that the copy is sound."
                .to_string(),
        );
    }
    limits
}
