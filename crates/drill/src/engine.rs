//! A drill as a list of steps, from the first look at production to the evidence.
//!
//! Invariants: each step is recorded with its times, however it ends; a step that fails ends the drill, and
//! what it says becomes a finding or a doubt, never a silent gap; so does a step that is over its limit, whatever it
//! was just doing; the copy is stopped and removed in every case; the evidence is written in every case, and the
//! verdict in it is the one that [`judge`] gives for the facts in it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use diagnostic::{Error, Result};
use postgres::{SystemIdentifier, TimelineId};

use crate::checks;
use crate::classify;
use crate::copy::{Copy, CopyFolder};
use crate::evidence;
use crate::facts::{
    CheckDetail, CheckResult, FACTS_VERSION, Facts, FailureKind, HttpSeen, Identity, InstantFacts,
    Interruption, ManualWhen, Measure, Objectives, PointFacts, PointKind, RetryFacts, Scope, StepFacts,
    StepOutcome, TargetFacts, Teardown,
};
use crate::forecast::{self, EarlierDrill};
use crate::log;
use crate::manual;
use crate::objectives;
use crate::options::{Documents, Drill, DrillTarget, Profile};
use crate::perform;
use crate::point::MadePoint;
use crate::profile::length;
use crate::resume;
use crate::rows::aborted;
use crate::server_error::texts;
use crate::step_limits::{self, Ending, StepClock};
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
    /// The point that was made, with its key.
    pub made: Option<MadePoint>,
    /// Digests of the copy at its last stop, for the comparison with another version.
    pub version: Option<crate::versions::Version>,
    /// The database in which production keeps standing markers.
    pub markers_in: Option<String>,
    /// What endpoints answered before anything was restored, by check.
    pub before: BTreeMap<String, HttpSeen>,
    /// Why nobody knows what would have been lost.
    pub loss_unknown: Option<String>,
    /// What earlier drills took.
    pub earlier: Vec<EarlierDrill>,
    /// What of the step that runs now went to the recovery and to the checks' reading.
    work: Duration,
    /// The limit of the step that runs now.
    clock: Arc<StepClock>,
    /// When `drill-started` was, by the monotonic clock.
    started: Instant,
    /// Everything that was told while it ran, with times.
    log: Vec<String>,
    steps_total: usize,
}

/// What a drill gives before it is judged.
pub(crate) struct Conducted {
    pub facts: Facts,
    /// What was told while it ran.
    pub log: String,
    /// The point that was made, for further copies.
    pub made: Option<MadePoint>,
}

/// Runs a drill from its first to its last step. An error means that not even facts could be gathered (wrong
/// usage, no place for the copy); everything else is an [`Outcome`]. Error codes: `drill-usage`,
/// `copy-folder`.
pub fn run(drill: &Drill<'_>) -> Result<Outcome> {
    let conducted = conduct(drill)?;
    finish(drill, conducted, Vec::new())
}

/// The same without a verdict, and without evidence.
pub(crate) fn conduct(drill: &Drill<'_>) -> Result<Conducted> {
    check_request(drill)?;
    let (asked, to_end) = (drill.abort, own_flag(drill));
    let drill = &with_flag(drill, &to_end);
    let started_at = unused_moment(drill)?;
    let mut run = Run::new(drill, blank(drill, started_at));
    run.mark_at("drill-started", started_at);
    let drill_id = run.facts.identity.drill_id.clone();
    let folder = CopyFolder::create(&drill.sandbox.parent, &drill_id, crate::isolation::owner(drill))?;
    if let Err(error) = manual::prepare(drill, &folder) {
        // Nothing was done yet, and nothing is left.
        folder.remove()?;
        return Err(error);
    }
    Ok(carry_out(run, &folder, asked, perform::perform))
}

/// What the steps of one run look at to know whether they are to end. Another run of the same process goes on when one
/// ends at a limit.
fn own_flag(drill: &Drill<'_>) -> AtomicBool {
    AtomicBool::new(drill.abort.load(Ordering::Relaxed))
}

fn with_flag<'a>(drill: &Drill<'a>, to_end: &'a AtomicBool) -> Drill<'a> {
    Drill {
        abort: to_end,
        ..drill.clone()
    }
}

/// Takes up a drill again that was interrupted, in the folder of its copy. Its evidence is that of one drill, and names the
/// interruption. Errors: `resume-read`, `drill-running`, `copy-folder`.
pub fn take_up(drill: &Drill<'_>, folder: &Path) -> Result<Outcome> {
    let folder = CopyFolder::take_over(folder)?;
    let saved = resume::read(&folder.path)?;
    let to_end = own_flag(drill);
    let own = with_flag(drill, &to_end);
    let mut run = Run {
        archive_before: saved.archive_before,
        archive_of: saved.archive_of,
        markers_in: saved.markers_in,
        before: saved.before,
        loss_unknown: saved.loss_unknown,
        log: saved.log,
        ..Run::new(&own, saved.facts)
    };
    run.steps_total += 1;
    // Another process's monotonic clock says nothing here: from now on the wall clock counts.
    for instant in &mut run.facts.instants {
        instant.offset_ms = None;
    }
    run.facts.interruptions.push(Interruption {
        last_seen: saved.saved_at,
        resumed_at: (drill.clock)(),
    });
    let (plan, restored) = (saved.plan, saved.restored);
    let (point, key) = (saved.point, Arc::new(saved.key));
    let conducted = carry_out(run, &folder, drill.abort, |run, folder, slot| {
        perform::go_on(run, folder, slot, plan, point, key, restored)
    });
    finish(drill, conducted, Vec::new())
}

/// Makes the steps, cleans up after them, and completes the facts. `asked`: set by whoever stops the drill from outside.
fn carry_out<'a>(
    mut run: Run<'a>,
    folder: &CopyFolder,
    asked: &AtomicBool,
    steps: impl FnOnce(&mut Run<'a>, &CopyFolder, &mut Option<Copy>) -> Result<(), Ended>,
) -> Conducted {
    let drill = run.drill;
    let clock = Arc::clone(&run.clock);
    let ending = Ending::new(folder, asked, drill.abort, &clock, drill.watcher);
    let finished_at = std::thread::scope(|scope| {
        scope.spawn(|| ending.watch());
        let _until = ending.until();
        let mut copy = None;
        // Whatever ended it stands in the facts.
        let _ = steps(&mut run, folder, &mut copy);
        ending.steps_are_over();
        let waits = run.waits_afterwards();
        run.tear_down(folder, copy);
        run.compare_archive();
        let finished_at = (drill.clock)();
        run.mark_at("drill-finished", finished_at);
        if !waits {
            return finished_at;
        }
        if run.waits_afterwards() {
            // That it was ended meanwhile stands in the facts.
            let _ = manual::wait(&mut run, folder, ManualWhen::After, None);
        }
        run.remove_folder(folder);
        (drill.clock)()
    });
    run.complete_checks();
    run.facts.limits = limits(&run.facts);
    run.facts.finished_at = Some(finished_at);
    Conducted {
        facts: run.facts,
        log: run.log.join("\n") + "\n",
        made: run.made,
    }
}

/// A drill is named by the second at which it began: the first one that no drill has taken yet.
fn unused_moment(drill: &Drill<'_>) -> Result<jiff::Timestamp> {
    loop {
        let now = (drill.clock)();
        if drill.repository.list_evidence(&drill_id(now))?.is_empty() {
            return Ok(now);
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

fn drill_id(started_at: jiff::Timestamp) -> String {
    format!("pitr_drill_{}", started_at.strftime("%Y%m%dT%H%M%SZ"))
}

/// Judges, and keeps the evidence wherever it is to be kept, with further documents.
pub(crate) fn finish(drill: &Drill<'_>, conducted: Conducted, further: Documents) -> Result<Outcome> {
    let Conducted { facts, log, .. } = conducted;
    let verdict = judge(&facts);
    let mut documents = (drill.documents)(&facts, &verdict);
    documents.push(("drill.log".into(), log.into_bytes()));
    documents.extend(further);
    let bundle = evidence::bundle(&facts, &verdict, documents)?;
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
    manual::check_confirmed(&drill.profile, &drill.confirmed)
}

fn blank(drill: &Drill<'_>, started_at: jiff::Timestamp) -> Facts {
    let profile = &drill.profile;
    let requested = match &profile.target {
        DrillTarget::Bracket => "bracket".to_string(),
        DrillTarget::Point(_, words) => words.clone(),
    };
    let bracket = profile.target == DrillTarget::Bracket;
    let objectives = objectives_of(drill, bracket);
    let mut clocks: Vec<_> = std::iter::once(profile)
        .chain(&drill.also)
        .flat_map(|each| {
            let own = each.name == profile.name;
            each.objectives
                .iter()
                .map(move |objective| objectives::clock(objective, &each.name, own))
        })
        .collect();
    objectives::strictest_first(&mut clocks);
    let mut profiles = vec![profile.facts.clone()];
    profiles.extend(drill.also.iter().map(|also| {
        let mut facts = also.facts.clone();
        facts.objectives_only = true;
        facts
    }));
    let point = drill.point.clone().unwrap_or_else(|| PointFacts {
        kind: if bracket {
            PointKind::Bracket
        } else {
            PointKind::Chosen
        },
        requested: requested.clone(),
        resolved: match &profile.target {
            DrillTarget::Bracket => None,
            DrillTarget::Point(target, _) => Some(target.options()),
        },
        seed: None,
        window: None,
        predicted_wal_bytes: None,
        markers: Vec::new(),
    });
    Facts {
        version: FACTS_VERSION,
        identity: Identity {
            drill_id: drill_id(started_at),
            profile: profile.name.clone(),
            scenario: requested.clone(),
            trigger: drill.trigger.clone(),
            environment: drill.environment.clone(),
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
        steps: drill.before.clone(),
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
        profiles,
        registration: None,
        gates: drill.guards.clone(),
        instants: Vec::new(),
        clocks,
        point: Some(point),
        interruptions: Vec::new(),
        manual: manual::blank(profile),
    }
}

/// Which checks are asked for, and without which the drill proves nothing.
fn objectives_of(drill: &Drill<'_>, bracket: bool) -> Objectives {
    let profile = &drill.profile;
    let seconds = |id: &str| profile.objective(id).map(|target| target.as_secs());
    let warning = |profile: &Profile| {
        let rto = profile
            .objectives
            .iter()
            .find(|objective| objective.id == "rto")?;
        rto.warning.map(|warning| warning.as_secs())
    };
    let mut objectives = Objectives {
        rto_seconds: seconds("rto"),
        rto_warning_seconds: warning(profile),
        rpo_seconds: seconds("rpo"),
        required_checks: vec!["target".into()],
        requested_checks: vec![
            "archive-settings".into(),
            "archive-unchanged".into(),
            "timeline-histories".into(),
        ],
        may_be_not_run: profile.may_be_not_run.clone(),
    };
    if bracket {
        objectives.required_checks.push("bracket".into());
    } else if drill.production.is_some() {
        objectives.requested_checks.push("standing-markers".into());
    }
    for id in &profile.checks {
        if id == "row-proof" && bracket {
            objectives.required_checks.push(id.clone());
            objectives.requested_checks.push("sequences".into());
        } else {
            objectives.requested_checks.push(id.clone());
        }
    }
    for check in &profile.user_checks {
        match check.required {
            true => objectives.required_checks.push(check.id.clone()),
            false => objectives.requested_checks.push(check.id.clone()),
        }
    }
    let own = profile.objectives.iter().map(|objective| objective.id.clone());
    let others = drill.also.iter().flat_map(|also| {
        let ids = also.objectives.iter();
        ids.map(move |objective| format!("{}.{}", also.name, objective.id))
    });
    objectives.requested_checks.extend(own.chain(others));
    objectives
}

impl<'a> Run<'a> {
    /// A drill of which nothing was done yet but what the facts say.
    fn new(drill: &'a Drill<'a>, facts: Facts) -> Run<'a> {
        Run {
            drill,
            facts,
            archive_before: None,
            archive_of: None,
            made: None,
            version: None,
            markers_in: None,
            before: BTreeMap::new(),
            loss_unknown: None,
            // That nothing can be learnt from them is no reason not to drill.
            earlier: forecast::load(drill.repository).unwrap_or_default(),
            work: Duration::ZERO,
            clock: Arc::default(),
            started: Instant::now(),
            log: Vec::new(),
            steps_total: drill.before.len() + perform::steps_of(&drill.profile).len(),
        }
    }
}

impl Run<'_> {
    /// Records a moment that objectives may be made of; the first time counts.
    pub fn mark(&mut self, id: &str) {
        self.mark_at(id, (self.drill.clock)());
    }

    fn mark_at(&mut self, id: &str, at: jiff::Timestamp) {
        let offset_ms = self.offset(Duration::ZERO);
        self.record_instant(InstantFacts {
            id: id.into(),
            at,
            offset_ms,
        });
    }

    /// Milliseconds from `drill-started` to so long ago, by a clock that nobody sets; `None` after an interruption.
    fn offset(&self, back: Duration) -> Option<u64> {
        let offset = self.started.elapsed().saturating_sub(back);
        self.facts
            .interruptions
            .is_empty()
            .then_some(offset.as_millis() as u64)
    }

    /// Records a moment that lies this long back.
    pub fn mark_before(&mut self, id: &str, back: Duration) {
        let now = (self.drill.clock)();
        self.record_instant(InstantFacts {
            id: id.into(),
            at: now.checked_sub(back).unwrap_or(now),
            offset_ms: self.offset(back),
        });
    }

    /// Records a moment that the drill did not witness: a commit of production.
    pub fn mark_commit(&mut self, id: &str, at: jiff::Timestamp) {
        self.record_instant(InstantFacts {
            id: id.into(),
            at,
            offset_ms: None,
        });
    }

    fn record_instant(&mut self, instant: InstantFacts) {
        if self.facts.instant(&instant.id).is_none() {
            self.facts.instants.push(instant);
        }
    }

    /// What was told so far.
    pub fn lines(&self) -> &[String] {
        &self.log
    }

    /// Tells whoever watches, and keeps it for the log.
    pub fn note(&mut self, text: &str) {
        self.drill.watcher.note(text);
        self.keep_line(text);
    }

    fn keep_line(&mut self, text: &str) {
        let at = (self.drill.clock)().strftime("%Y-%m-%dT%H:%M:%S%.3fZ");
        let line: String = text
            .chars()
            .map(|c| if c.is_control() { ' ' } else { c })
            .collect();
        self.log.push(format!("{at} {line}"));
    }

    /// A failed try of the step that runs now, which is made again.
    pub fn retried(&mut self, error: &Error, duration: Duration) {
        let message = texts(error).0;
        self.note(&format!("error[{}]: {message}; once more", error.code()));
        if let Some(step) = self.facts.steps.last_mut() {
            step.retries.push(RetryFacts {
                error_code: error.code().into(),
                message,
                duration_ms: duration.as_millis() as u64,
            });
        }
    }

    /// Tells that a step begins; what it is expected to take, and its limit.
    fn announce(&mut self, id: &str, title: &str) -> (Option<u64>, Option<u64>) {
        let number = self.facts.steps.len() + 1;
        let expected = forecast::step_ms(&self.earlier, id);
        let limit = self
            .drill
            .profile
            .step_limits
            .get(id)
            .map(|limit| limit.as_millis() as u64);
        self.drill.watcher.step(
            number,
            self.steps_total.max(number),
            title,
            expected.map(Duration::from_millis),
        );
        self.keep_line(&format!("step {number} {id}: {title}"));
        if let Some(limit) = limit {
            let words = match step_limits::meaning(id) {
                Some(_) => "it is ended after",
                None => "its limit is",
            };
            self.note(&format!("{words} {}", length(Duration::from_millis(limit))));
        }
        (expected, limit)
    }

    /// Whether there is no time left: somebody asked the drill to end, or the step is over its limit.
    pub fn is_to_end(&self) -> bool {
        self.drill.abort.load(Ordering::Relaxed) || self.clock.is_over()
    }

    /// Does what the step is for: the recovery itself, or what a check reads. What else a step takes is the engine's own.
    pub fn working<T>(&mut self, body: impl FnOnce(&mut Self) -> T) -> T {
        let (before, started) = (self.work, Instant::now());
        let result = body(self);
        // Work within work counts once.
        self.work = before + started.elapsed();
        result
    }

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
        let (expected_ms, limit_ms) = self.announce(id, title);
        let at_limit = limit_ms.and_then(|_| step_limits::meaning(id));
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
            expected_ms,
            limit_ms,
            at_limit,
            retries: Vec::new(),
            work_ms: None,
        });
        self.work = Duration::ZERO;
        self.clock.start(started, limit_ms.filter(|_| at_limit.is_some()));
        let result = body(self);
        let (duration_ms, is_over) = self.clock.stop(started);
        let work_ms = Some(self.work.as_millis() as u64);
        let mut entry = self.facts.steps.get_mut(at);
        if let Some(entry) = &mut entry {
            entry.duration_ms = duration_ms;
            entry.work_ms = work_ms;
        }
        let error = match result {
            Ok((value, detail)) if !is_over => {
                let line = format!("{id} done in {duration_ms} ms: {detail}");
                if let Some(entry) = entry {
                    entry.outcome = StepOutcome::Done;
                    entry.detail = Some(detail).filter(|detail| !detail.is_empty());
                }
                self.keep_line(&line);
                return Ok(value);
            }
            result => result.err(),
        };
        let to_end = self.drill.abort.load(Ordering::Relaxed);
        let failure = match (&error, &entry, at_limit) {
            (error, Some(entry), Some(kind)) if is_over => step_limits::failure(entry, kind, error.as_ref()),
            (Some(error), _, _) if to_end => classify::of_ended(classify::failure(id, error)),
            (Some(error), _, _) => classify::failure(id, error),
            // Done, and in time: that was above.
            (None, _, _) => return Err(Ended),
        };
        if let Some(entry) = entry {
            entry.detail = Some(failure.message.clone());
            entry.error_code = Some(failure.error_code.clone());
        }
        self.keep_line(&format!(
            "{id} failed after {duration_ms} ms: error[{}]: {}",
            failure.error_code, failure.message
        ));
        self.facts.failure.get_or_insert(failure);
        Err(Ended)
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
            expected_ms: None,
            limit_ms: None,
            at_limit: None,
            retries: Vec::new(),
            work_ms: None,
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
        let waits = self.waits_afterwards();
        // This step is made even when the drill was told to stop.
        let failure = self.facts.failure.take();
        let (expected_ms, limit_ms) = self.announce("tear-down", "Stop the copy and remove it");
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
        let removed = match (keep, waits) {
            (true, _) => folder.keep(),
            // People still confirm in the folder; the copy is gone from it.
            (false, true) => folder.clear(),
            (false, false) => folder.remove(),
        };
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
            expected_ms,
            limit_ms,
            at_limit: None,
            retries: Vec::new(),
            work_ms: Some(0),
        });
        self.facts.teardown = Some(teardown);
        self.facts.failure = failure;
    }

    /// Whether people are waited for when the copy is gone: a drill that ended early asks nobody any more.
    fn waits_afterwards(&self) -> bool {
        self.facts.failure.is_none() && manual::is_asked(&self.drill.profile, ManualWhen::After)
    }

    /// Removes the copy's folder, in which people were waited for.
    fn remove_folder(&mut self, folder: &CopyFolder) {
        if self.drill.sandbox.keep {
            return;
        }
        if let Err(error) = folder.remove()
            && let Some(teardown) = &mut self.facts.teardown
        {
            teardown.folder_removed = false;
            teardown
                .left
                .push(format!("{}: {}", folder.path.display(), error.message()));
        }
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
        let why = match &self.facts.failure {
            Some(failure) => format!("the drill ended early in step \"{}\"", failure.step),
            None => "no result was recorded".to_string(),
        };
        self.judge_clocks(&why);
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

    /// Every objective gets what was measured, and a check that says so.
    fn judge_clocks(&mut self, why: &str) {
        let mut clocks = std::mem::take(&mut self.facts.clocks);
        for clock in &mut clocks {
            let unknown = match clock.measure {
                Measure::RecoveryPoint => self.loss_unknown.as_deref(),
                _ => None,
            };
            let why_not = unknown.or(self.facts.failure.is_some().then_some(why));
            let check = objectives::measure(clock, &self.facts, why_not);
            self.facts.checks.push(check);
        }
        if let (Some(rto), Some(measured)) = (
            &mut self.facts.rto,
            clocks
                .iter()
                .find(|clock| clock.check == "rto")
                .and_then(|clock| clock.measured_ms),
        ) {
            // The engine's own time between the phases is part of the clock.
            rto.total_ms = measured;
        }
        self.facts.clocks = clocks;
    }

    fn user_check_not_run(&self, id: &str, why: &str) -> crate::facts::Check {
        match self.drill.profile.user_checks.iter().find(|check| check.id == id) {
            Some(check) => checks::unmade(check, CheckResult::NotRun, code::CHECK_NOT_RUN, why),
            None => checks::unknown(id, why),
        }
    }
}

/// What was not run, and what the profile accepts for this kind of point.
fn accepted(facts: &Facts) -> Option<String> {
    let accepted = &facts.objectives.may_be_not_run;
    let not_run: Vec<&str> = facts
        .checks
        .iter()
        .filter(|check| check.result == CheckResult::NotRun && accepted.contains(&check.id))
        .map(|check| check.id.as_str())
        .collect();
    (!not_run.is_empty()).then(|| {
        format!(
            "Not run, which the profile accepts for this kind of point: {}.",
            not_run.join(", ")
        )
    })
}

/// What this drill does not prove, in sentences.
fn limits(facts: &Facts) -> Vec<String> {
    let tried = facts
        .checks
        .iter()
        .any(|check| matches!(check.detail, Some(CheckDetail::Http(_) | CheckDetail::Command(_))));
    let application = match tried {
        true => {
            "Of the application only what the checks name was tried; whether it used this copy is for whoever started it \
             to say."
        }
        false => {
            "No application was started on the copy: health endpoints, logins, jobs and integrations were not \
             tried."
        }
    };
    let mut limits = vec![
        application.to_string(),
        "The recovery time is that of this host, with fsync off, reading from one copy of the repository; \
         other storage, \
         another network and people's time to decide are not in it."
            .to_string(),
        "Only the copy of the repository named under artifacts was read; other copies and their keys were \
         not."
            .to_string(),
        "Production's configuration files were replaced by generated ones, so nothing is said about \
         them."
            .to_string(),
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
            "A point of the past has no live counterpart: no bracket and no row proof exist for it; what was seen is \
             that recovery reaches it, which standing markers lie before and behind it, and that the copy is sound."
                .to_string(),
        );
    }
    if let Some(kinds) = accepted(facts) {
        limits.push(kinds);
    }
    limits
}
