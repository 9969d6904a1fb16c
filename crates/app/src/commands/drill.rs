//! `pgproof drill run`.
//!
//! Invariant: the exit code is the verdict's (0 passed, 3 failed, 4 nobody can tell); Ctrl-C ends a drill in an orderly
//! way, so that the copy's server is stopped and the drill is recorded as ABORTED.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use diagnostic::{Error, Result};
use drill::{DrillTarget, Facts, Verdict};
use serde_json::{Value, json};

use super::drill_setup::{self, Parts, Purpose, Setup};
use super::{drill_sign, drill_stored as stored};
use crate::account;
use crate::cli;
use crate::config::{Cluster, Configuration};
use crate::context::Context;
use crate::progress::Progress;
use crate::{exit, lease, output};

/// Shows the steps, with the time that has passed and the time that earlier drills took.
pub(super) struct Shown {
    progress: Progress,
    began: Instant,
    step: Mutex<String>,
}

impl Shown {
    pub(super) fn new() -> Shown {
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
    drill_setup::check_confirmed(context, &arguments.of, &arguments.confirm)?;
    let signer = signer_of_run(context, arguments)?;
    let setup = Setup::new(context, &arguments.of, Purpose::Run)?;
    let copy = setup.copy()?;
    let backups = copy.cluster.backups()?;
    let beside = setup.beside(&backups, context.now())?;
    let documents = |facts: &Facts, verdict: &Verdict| report::documents(facts, verdict, &beside);
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
        next_due: setup.next_due(context.now()),
        rpo: Some(&measure),
        clock: &clock,
        documents: &documents,
        faults: arguments.plant.iter().map(|fault| planted(*fault)).collect(),
        confirmed: arguments.confirm.clone(),
        abort: &abort,
        watcher: &shown,
    })?)?;
    drop((shown, leases));
    if let Some(signer) = &signer {
        drill_sign::as_operator(
            context,
            copy,
            &outcome,
            signer,
            &setup.configuration,
            &stored::report_directory()?,
        );
    }
    Ok(show(context, &outcome))
}

/// Prints how a drill ended; the exit code.
pub(super) fn show(context: &Context, outcome: &drill::Outcome) -> u8 {
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
    outcome.verdict.status.exit_code()
}

/// The folder for reports; made here, where root can still give it to the account that will write there.
pub(super) fn report_directory(configuration: &Configuration, cluster: &Cluster) -> Result<PathBuf> {
    let folder = stored::report_directory()?;
    if let Some(owner) = account::owner(configuration, cluster) {
        account::make_folder(&folder, owner)?;
    }
    Ok(folder)
}

/// Reads the signing key as the account that started the program: only its owner may be able to.
fn signer_of_run(context: &Context, arguments: &cli::DrillRun) -> Result<Option<drill_sign::Signer>> {
    let Some(file) = &arguments.sign_key else {
        return Ok(None);
    };
    let configuration = context.configuration()?;
    let cluster = drill_setup::cluster_of(&configuration, &arguments.of)?;
    // An unknown key is told before anything is done, not after a drill that then stays unsigned.
    let key = drill_sign::read_key(file)?;
    let signer = drill_sign::signer(&key, &configuration.signers)?;
    // The folder is root's to make and to give, and this does not come back.
    report_directory(&configuration, cluster)?;
    account::become_owner_with_key(&configuration, cluster, "--sign-key", &key)?;
    Ok(Some(signer))
}

/// The first SIGINT or SIGTERM asks the drill to end; the second one ends the process.
pub(super) fn abort_on_signals() -> Result<Arc<AtomicBool>> {
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
pub fn value(facts: &Facts, verdict: &Verdict, report: Option<&Path>) -> Value {
    let mut value = drill::document(facts, verdict);
    if let Some(object) = value.as_object_mut() {
        object.insert("report".into(), json!(report));
    }
    value
}

fn print(facts: &Facts, verdict: &Verdict) {
    let status = drill::sign_off::shown_status(verdict.status, &[]);
    output::line(format!("Drill {}: {status}", facts.identity.drill_id));
    print_checks(&facts.checks);
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
    print_reasons(verdict);
}

/// One line for each check.
pub(super) fn print_checks(checks: &[drill::facts::Check]) {
    for check in checks {
        output::line(format!(
            "  {:14} {:24} {}",
            check.result.to_string(),
            check.id,
            check.actual
        ));
    }
}

/// Why a verdict is what it is.
pub(super) fn print_reasons(verdict: &Verdict) {
    for reason in &verdict.reasons {
        output::line(format!("  because[{}]: {}", reason.code, reason.text));
    }
}
