//! `pgproof drill selftest`.
//!
//! Invariant: the exit code is the matrix's (0 every planted fault was caught, 3 one was missed or the untouched drill
//! failed, 4 nobody can tell); the backups are only read.

use ::drill::selftest::{self, Fate, Options, Selftest};
use ::drill::{Facts, Verdict};
use diagnostic::Result;

use super::drill as drill_run;
use super::drill_setup::{Parts, Purpose, Setup};
use crate::context::Context;
use crate::{cli, exit, lease, output};

pub fn run(context: &Context, arguments: &cli::DrillSelftest) -> Result<u8> {
    let setup = Setup::new(context, &arguments.of, Purpose::Run)?;
    let copy = setup.copy()?;
    // Faults fall into whatever the drills read, older versions included.
    let backups = copy.cluster.backups()?;
    let leases = lease::take(copy, &backups, "drill selftest")?;
    let beside = setup.beside(&backups, context.now())?;
    let documents = |facts: &Facts, verdict: &Verdict| report::documents(facts, verdict, &beside);
    let abort = drill_run::abort_on_signals()?;
    let shown = drill_run::Shown::new();
    let clock = || context.now();
    let measure = || setup.measure_loss();
    let mut untouched = setup.drill(&Parts {
        keep: false,
        threads: arguments.threads,
        trigger: "self-test".to_owned(),
        next_due: setup.next_due(context.now()),
        rpo: Some(&measure),
        clock: &clock,
        documents: &documents,
        faults: Vec::new(),
        confirmed: Vec::new(),
        abort: &abort,
        watcher: &shown,
    })?;
    // Nobody is waited for in a drill of the drill: dozens of copies would ask the same.
    untouched.profile.manual.clear();
    untouched.profile.facts = ::drill::profile::facts_of(&untouched.profile);
    let loss = |archive: &history::Archive| setup.measure_loss_with(archive);
    let (tested, outcome) = selftest::run(
        &untouched,
        &Options {
            only: arguments.fault.clone(),
            loss: untouched.rpo.is_some().then_some(&loss),
            document: &report::selftest,
        },
    )?;
    drop(untouched);
    drop((shown, leases));
    for error in &outcome.evidence_errors {
        output::notice("warning: the evidence could not be kept everywhere");
        exit::print_error(error);
    }
    if context.json {
        output::json(&selftest::value(&tested, &outcome));
    } else {
        print(&tested);
        for reason in &outcome.verdict.reasons {
            output::line(format!("  untouched, because[{}]: {}", reason.code, reason.text));
        }
        if let Some(folder) = &outcome.folder {
            output::line(format!("Matrix: {}", folder.join("selftest.md").display()));
        }
    }
    Ok(tested.status().exit_code())
}

fn print(tested: &Selftest) {
    output::line(format!("Self-test of drill {}", tested.drill_id));
    for row in &tested.faults {
        let fate = match row.fate {
            Fate::Caught => "caught",
            Fate::Missed => "MISSED",
            Fate::NotPlanted => "not planted",
        };
        let what = match row.fate {
            Fate::NotPlanted => row.planted.clone(),
            _ => format!("by {}", row.caught_by.join(", ")),
        };
        output::line(format!("  {fate:12} {:32} {what}", row.fault));
    }
    for line in report::selftest_summary(tested) {
        output::line(line);
    }
}
