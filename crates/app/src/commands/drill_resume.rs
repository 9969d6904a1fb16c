//! `pgproof drill resume`.
//!
//! Invariant: what goes on is the drill that was interrupted, with its profile, its point and its plan, and the evidence
//! says that it was interrupted.

use std::path::Path;

use diagnostic::Result;
use drill::facts::Facts;
use drill::{Verdict, copy};

use super::drill as drill_run;
use super::drill_abort::one_of;
use super::drill_setup::{COPY_PARENT, Parts, Purpose, Setup};
use crate::context::Context;
use crate::{cli, lease};

pub fn run(context: &Context, arguments: &cli::DrillResume) -> Result<u8> {
    let parent = arguments.directory.as_deref().unwrap_or(Path::new(COPY_PARENT));
    let interrupted = copy::interrupted(parent)?;
    let (_, folder) = one_of(interrupted, arguments.drill.as_deref(), "was interrupted", parent)?;
    let saved = drill::resume::read(&folder)?;
    let mut setup = Setup::new(context, &of(saved.facts(), parent), Purpose::Resume)?;
    setup.as_saved(&saved)?;
    let copy = setup.copy()?;
    let backups = copy.cluster.backups()?;
    let used = saved.facts().input.as_ref().map(|input| input.backup.as_str());
    let used = backups
        .iter()
        .filter(|backup| Some(backup.backup.as_str()) == used);
    let leases = lease::take(copy, used, "drill")?;
    let beside = setup.beside(&backups, context.now())?;
    let documents = |facts: &Facts, verdict: &Verdict| report::documents(facts, verdict, &beside);
    let abort = drill_run::abort_on_signals()?;
    let shown = drill_run::Shown::new();
    let clock = || context.now();
    let going_on = setup.drill(&Parts {
        keep: false,
        threads: arguments.threads,
        trigger: saved.facts().identity.trigger.clone(),
        next_due: setup.next_due(context.now()),
        rpo: None,
        clock: &clock,
        documents: &documents,
        faults: Vec::new(),
        confirmed: Vec::new(),
        abort: &abort,
        watcher: &shown,
    })?;
    let outcome = drill::take_up(&going_on, &folder)?;
    drop(going_on);
    drop((shown, leases));
    Ok(drill_run::show(context, &outcome))
}

/// The drill that was interrupted, as it would be asked for.
fn of(facts: &Facts, parent: &Path) -> cli::DrillOf {
    let also = facts.profiles.iter().filter(|profile| profile.objectives_only);
    cli::DrillOf {
        profile: Some(facts.identity.profile.clone()),
        cluster: Some(facts.scope.cluster.clone()),
        also: also.map(|profile| profile.name.clone()).collect(),
        // Its own point is taken over; none is drawn again.
        target: Some("latest".to_owned()),
        seed: None,
        directory: Some(parent.to_path_buf()),
        copy: None,
        operator: facts.people.operator.clone(),
        reviewer: facts.people.reviewer.clone(),
    }
}
