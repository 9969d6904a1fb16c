//! `pgproof drill`: run one, list them, show one.
//!
//! Invariant: the exit code is the verdict's (0 passed, 3 failed, 4 nobody can tell); Ctrl-C ends a drill in an orderly
//! way, so that the copy's server is stopped and the drill is recorded as ABORTED.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use diagnostic::{Error, Result};
use drill::{DrillTarget, Facts, Verdict};
use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use serde_json::{Value, json};

use crate::account;
use crate::cli;
use crate::commands::drill_setup::{Parts, Purpose, Setup};
use crate::config::{Cluster, Configuration};
use crate::context::Context;
use crate::copies::{Copies, OpenCopy};
use crate::progress::Progress;
use crate::{exit, lease, output};

/// Where reports are copied to when the environment does not say.
const REPORT_DIRECTORY: &str = "ops/drill-reports";

/// Shows the steps, with the time that has passed and the time that earlier drills took.
struct Shown {
    progress: Progress,
    began: Instant,
    step: Mutex<String>,
}

impl Shown {
    fn new() -> Shown {
        Shown {
            progress: Progress::new("drill"),
            began: Instant::now(),
            step: Mutex::new(String::new()),
        }
    }
}

impl drill::Watcher for Shown {
    fn step(&self, number: usize, of: usize, title: &str, expected: Option<Duration>) {
        let passed = output::seconds(self.began.elapsed().as_secs_f64());
        let expected = expected.map_or_else(String::new, |expected| {
            format!(", usually {}", output::seconds(expected.as_secs_f64()))
        });
        self.progress
            .say(&format!("[{number}/{of}] T+{passed}  {title}{expected}"));
        let stage = format!("[{number}/{of}] {title}{expected}");
        if let Ok(mut step) = self.step.lock() {
            stage.clone_into(&mut step);
        }
        self.progress.stage(&stage);
    }

    fn note(&self, text: &str) {
        self.progress.say(&format!("        {text}"));
    }

    fn advance(&self, done: u64, total: Option<u64>, unit: &str) {
        if unit == "bytes" {
            let step = self.step.lock().map(|step| step.clone()).unwrap_or_default();
            self.progress.update(&step, done, total.unwrap_or(0));
        }
    }
}

fn planted(fault: cli::PlantedFault) -> drill::Fault {
    match fault {
        cli::PlantedFault::RowChanged => drill::Fault::RowChangedInCopy,
        cli::PlantedFault::ArchiveCommand => drill::Fault::ArchiveCommandInherited,
    }
}

pub fn run(context: &Context, arguments: &cli::DrillRun) -> Result<u8> {
    let setup = Setup::new(context, &arguments.of, Purpose::Run)?;
    let copy = setup.copy()?;
    let backups = copy.cluster.backups()?;
    let documents = |facts: &Facts, verdict: &Verdict| {
        vec![(
            "report.md".to_owned(),
            report::markdown(facts, verdict).into_bytes(),
        )]
    };
    // The room chooses the backup: the newest one for a point that it makes itself.
    let possible = match &setup.profile.target {
        DrillTarget::Bracket => backups.get(backups.len().saturating_sub(1)..).unwrap_or_default(),
        DrillTarget::Point(..) => &backups,
    };
    let leases = lease::take(copy, possible, "drill")?;
    let abort = abort_on_signals()?;
    let shown = Shown::new();
    let clock = || context.now();
    let measure = || setup.measure_loss();
    let outcome = drill::run(&setup.drill(&Parts {
        keep: arguments.keep,
        threads: arguments.threads,
        trigger: arguments.trigger.clone(),
        next_due: next_due(context.now()),
        rpo: Some(&measure),
        clock: &clock,
        documents: &documents,
        faults: arguments.plant.iter().map(|fault| planted(*fault)).collect(),
        abort: &abort,
        watcher: &shown,
    })?)?;
    drop((shown, leases));
    for error in &outcome.evidence_errors {
        output::notice("warning: the evidence could not be kept everywhere");
        exit::print_error(error);
    }
    if context.json {
        output::json(&value(
            &outcome.facts,
            &outcome.verdict,
            outcome.report.as_deref(),
        ));
    } else {
        print(&outcome.facts, &outcome.verdict);
        if let Some(report) = &outcome.report {
            output::line(format!("Report: {}", report.display()));
        }
    }
    Ok(outcome.verdict.status.exit_code())
}

/// The folder for reports; made here, where root can still give it to the account that will write there.
pub(super) fn report_directory(configuration: &Configuration, cluster: &Cluster) -> Result<PathBuf> {
    let given = std::env::var_os("DRILL_REPORT_DIR").filter(|text| !text.is_empty());
    let folder = given.map_or_else(|| PathBuf::from(REPORT_DIRECTORY), PathBuf::from);
    let folder = std::path::absolute(&folder)
        .map_err(|error| Error::io("path", "cannot make the folder for reports absolute", &error))?;
    if let Some(owner) = account::owner(configuration, cluster) {
        account::make_folder(&folder, owner)?;
    }
    Ok(folder)
}

/// The next of the quarter's weeks: 15 January, April, July, October.
fn next_due(now: Timestamp) -> Option<Timestamp> {
    let today = now.to_zoned(TimeZone::UTC).date();
    let due = (today.year()..=today.year() + 1)
        .flat_map(|year| [1, 4, 7, 10].map(|month| Date::new(year, month, 15)))
        .filter_map(Result::ok)
        .find(|date| *date > today)?;
    due.to_zoned(TimeZone::UTC).ok().map(|due| due.timestamp())
}

/// The first SIGINT or SIGTERM asks the drill to end; the second one ends the process.
fn abort_on_signals() -> Result<Arc<AtomicBool>> {
    let abort = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register_conditional_shutdown(
            signal,
            i32::from(exit::INCONCLUSIVE),
            Arc::clone(&abort),
        )
        .and_then(|_| signal_hook::flag::register(signal, Arc::clone(&abort)))
        .map_err(|error| Error::io("signals", "cannot handle signals", &error))?;
    }
    Ok(abort)
}

/// What `--json` prints: the document that is kept as evidence, and where its report lies.
fn value(facts: &Facts, verdict: &Verdict, report: Option<&Path>) -> Value {
    let mut value = drill::document(facts, verdict);
    if let Some(object) = value.as_object_mut() {
        object.insert("report".into(), json!(report));
    }
    value
}

fn print(facts: &Facts, verdict: &Verdict) {
    output::line(format!("Drill {}: {}", facts.identity.drill_id, verdict.status));
    for check in &facts.checks {
        output::line(format!(
            "  {:14} {:24} {}",
            check.result.to_string(),
            check.id,
            check.actual
        ));
    }
    if let Some(rto) = &facts.rto {
        output::line(format!(
            "  recovery took {}",
            output::seconds(rto.total_ms as f64 / 1000.0)
        ));
    }
    if let Some(rpo) = &facts.rpo {
        let seconds = rpo
            .seconds
            .map_or("unknown seconds".to_owned(), |seconds| format!("{seconds:.3} s"));
        let bytes = output::bytes(rpo.bytes);
        output::line(format!(
            "  would have lost {seconds}, {} commits, {bytes} of WAL",
            rpo.commits
        ));
    }
    for reason in &verdict.reasons {
        output::line(format!("  because[{}]: {}", reason.code, reason.text));
    }
}

pub fn list(context: &Context, arguments: &cli::OfCluster) -> Result<u8> {
    let configuration = context.configuration()?;
    let cluster = configuration.cluster(arguments.cluster.as_deref())?;
    account::become_owner(&configuration, cluster)?;
    let copies = Copies::open_any(&configuration, cluster, None)?;
    let mut values = Vec::new();
    let mut rows = Vec::new();
    for copy in &copies {
        for id in copy.cluster.list_drills()? {
            let facts = evidence::<Facts>(copy, &id, "facts.json")?;
            let verdict = evidence::<Verdict>(copy, &id, "verdict.json")?;
            let started = facts.as_ref().map(|facts| facts.started_at);
            let status = verdict.as_ref().map(|verdict| verdict.status.to_string());
            let profile = facts.map(|facts| facts.identity.profile).unwrap_or_default();
            values.push(json!({
                "drill": id, "copy": copy.name, "profile": profile, "started_at": started, "verdict": status,
            }));
            rows.push(vec![
                id,
                copy.name.clone(),
                started.map(output::moment).unwrap_or_default(),
                profile,
                status.unwrap_or_else(|| "no verdict".to_owned()),
            ]);
        }
    }
    if context.json {
        output::json(&json!({ "drills": values }));
    } else if rows.is_empty() {
        output::line(format!(
            "Cluster {} was never drilled. Run one: pgproof drill run",
            cluster.name
        ));
    } else {
        output::table(&["DRILL", "COPY", "BEGAN", "PROFILE", "VERDICT"], &rows);
    }
    Ok(exit::DONE)
}

fn evidence<T: serde::de::DeserializeOwned>(copy: &OpenCopy, drill: &str, file: &str) -> Result<Option<T>> {
    let Some(bytes) = copy.cluster.get_evidence(drill, file)? else {
        return Ok(None);
    };
    serde_json::from_slice(&bytes).map(Some).map_err(|error| {
        Error::new(
            "evidence-decode",
            format!("{file} of drill {drill} cannot be read"),
        )
        .caused_by(&error)
    })
}

pub fn show(context: &Context, arguments: &cli::DrillShow) -> Result<u8> {
    let configuration = context.configuration()?;
    let cluster = configuration.cluster(arguments.cluster.as_deref())?;
    account::become_owner(&configuration, cluster)?;
    let copies = Copies::open_any(&configuration, cluster, None)?;
    let mut found = None;
    for copy in &copies {
        let drills = copy.cluster.list_drills()?;
        let id = match arguments.drill.as_str() {
            "latest" => drills.into_iter().max(),
            name => drills.into_iter().find(|id| id == name),
        };
        if let Some(id) = id {
            found = Some((copy, id));
            break;
        }
    }
    let (copy, id) = found.ok_or_else(|| {
        Error::new(
            "drill-missing",
            format!("no drill {:?} is recorded", arguments.drill),
        )
        .hint("Run `pgproof drill list` to see what there is.")
    })?;
    if context.json {
        let facts = evidence::<Facts>(copy, &id, "facts.json")?;
        let verdict = evidence::<Verdict>(copy, &id, "verdict.json")?;
        let value = match (facts, verdict) {
            (Some(facts), Some(verdict)) => value(&facts, &verdict, None),
            (facts, _) => json!({ "facts": facts, "verdict": null }),
        };
        output::json(&value);
        return Ok(exit::DONE);
    }
    match copy.cluster.get_evidence(&id, "report.md")? {
        Some(report) => output::line(String::from_utf8_lossy(&report).trim_end()),
        None => {
            output::line(format!("Drill {id} has no report. Its evidence:"));
            for file in copy.cluster.list_evidence(&id)? {
                output::line(format!("  {file}"));
            }
        }
    }
    Ok(exit::DONE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_drill_is_due_in_the_middle_of_the_next_quarters_first_month() {
        let due = |text: &str| {
            next_due(text.parse().expect("a time"))
                .expect("a date")
                .to_string()
        };
        assert_eq!(due("2026-01-14T10:00:00Z"), "2026-01-15T00:00:00Z");
        assert_eq!(due("2026-01-15T10:00:00Z"), "2026-04-15T00:00:00Z");
        assert_eq!(due("2026-11-20T10:00:00Z"), "2027-01-15T00:00:00Z");
    }
}
