//! `pgproof drill preflight`, `plan` and `mark`: what a drill would meet, what it would do, and markers for later ones.
//!
//! Invariants: `mark` alone changes production (one row of pgproof's own table), and nothing is restored; a preflight's exit code says go (0) or no-go (3);
//! only `--register` keeps something, as evidence that is created once.

use std::sync::atomic::AtomicBool;

use diagnostic::Result;
use drill::facts::{CheckResult, FailureKind, GateFacts};
use drill::preflight::{self, Preflight};
use drill::{Drill, forecast, perform, step_limits};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::account;
use crate::cli;
use crate::commands::drill_setup::{Parts, Purpose, Setup};
use crate::context::Context;
use crate::{exit, output, times};

/// Calls `body` with the drill that would be run now.
fn with_drill<T>(
    context: &Context,
    of: &cli::DrillOf,
    body: impl FnOnce(&Drill<'_>, &Preflight) -> Result<T>,
) -> Result<T> {
    let setup = Setup::new(context, of, Purpose::Look)?;
    let measure = || setup.measure_loss();
    let clock = || context.now();
    let abort = AtomicBool::new(false);
    let drill = setup.drill(&Parts {
        keep: false,
        threads: None,
        trigger: String::new(),
        next_due: None,
        rpo: Some(&measure),
        clock: &clock,
        documents: &|_, _| Vec::new(),
        faults: Vec::new(),
        confirmed: Vec::new(),
        abort: &abort,
        watcher: &drill::Silent,
    })?;
    let seen = preflight::look(&drill)?;
    body(&drill, &seen)
}

/// Guards of the environment are gates too.
fn gates(drill: &Drill<'_>, seen: &Preflight) -> Vec<GateFacts> {
    drill.guards.iter().chain(&seen.gates).cloned().collect()
}

pub fn preflight(context: &Context, arguments: &cli::DrillOf) -> Result<u8> {
    with_drill(context, arguments, |drill, seen| {
        let gates = gates(drill, seen);
        if context.json {
            output::json(&json!({
                "profile": drill.profile.name,
                "go": seen.is_go(),
                "gates": gates,
                "predicted_seconds": seen.predicted.map(|predicted| predicted.total_ms as f64 / 1000.0),
            }));
        } else {
            output::line(format!(
                "{}: {}",
                drill.profile.name,
                if seen.is_go() { "GO" } else { "NO-GO" }
            ));
            print_gates(&gates);
        }
        Ok(if seen.is_go() { exit::DONE } else { exit::BAD })
    })
}

fn print_gates(gates: &[GateFacts]) {
    let rows: Vec<Vec<String>> = gates
        .iter()
        .map(|gate| {
            let blocking = if gate.blocking { "blocking" } else { "" };
            vec![
                gate.result.to_string(),
                gate.id.clone(),
                gate.limit.clone(),
                gate.actual.clone(),
                blocking.to_owned(),
            ]
        })
        .collect();
    output::table(&["RESULT", "GATE", "LIMIT", "ACTUAL", ""], &rows);
    for gate in gates.iter().filter(|gate| gate.result != CheckResult::Pass) {
        if let Some(hint) = &gate.hint {
            output::line(format!("hint[{}]: {hint}", gate.id));
        }
    }
}

pub fn plan(context: &Context, arguments: &cli::DrillPlan) -> Result<u8> {
    let due = arguments
        .due
        .as_deref()
        .map(|text| times::parse(text, context.now()))
        .transpose()?;
    with_drill(context, &arguments.of, |drill, seen| {
        let registered = match arguments.register {
            true => Some(drill::registration::register(drill, seen, due)?),
            false => None,
        };
        if context.json {
            output::json(&value(drill, seen, registered.as_deref()));
        } else {
            print(drill, seen, registered.as_deref(), due);
        }
        Ok(exit::DONE)
    })
}

pub fn mark(context: &Context, arguments: &cli::OfCluster) -> Result<u8> {
    let configuration = context.configuration()?;
    let cluster = configuration.cluster(arguments.cluster.as_deref())?;
    account::become_owner(&configuration, cluster)?;
    let id = drill::standing::mark(&cluster.connection, context.now())?;
    if context.json {
        output::json(&json!({ "marker": id }));
    } else {
        output::line(format!("Marker {id}"));
    }
    Ok(exit::DONE)
}

fn value(drill: &Drill<'_>, seen: &Preflight, registered: Option<&str>) -> Value {
    let steps: Vec<Value> = perform::steps_of(&drill.profile)
        .into_iter()
        .map(|(id, title)| {
            let limit = drill.profile.step_limits.get(id);
            json!({
                "id": id,
                "title": title,
                "expected_ms": forecast::step_ms(&seen.earlier, id),
                "limit_ms": limit.map(|limit| limit.as_millis() as u64),
                "at_limit": limit.and_then(|_| step_limits::meaning(id)),
            })
        })
        .collect();
    let profiles = drill::registration::profiles_of(drill);
    let error = seen.plan.as_ref().err().map(diagnostic::Error::to_json);
    json!({
        "profile": drill.profile.name,
        "profiles": profiles,
        "policy_digest": drill::registration::policy_digest(&profiles),
        "point": drill.profile.target_text,
        "people": drill.people,
        "plan": seen.plan.as_ref().ok(),
        "plan_error": error,
        "steps": steps,
        "manual": drill.profile.manual,
        "predicted_seconds": seen.predicted.map(|predicted| predicted.total_ms as f64 / 1000.0),
        "substitutions": seen.plan.as_ref().ok().map(|plan| preflight::substitutions(drill, plan)),
        "gates": gates(drill, seen),
        "registered": registered,
    })
}

fn print(drill: &Drill<'_>, seen: &Preflight, registered: Option<&str>, due: Option<Timestamp>) {
    let profile = &drill.profile;
    let from = match profile.extends.as_slice() {
        [] => String::new(),
        extends => format!(", extends {}", extends.join(", ")),
    };
    output::line(format!("Profile {} ({}{from})", profile.name, profile.source));
    output::line(format!("  digest {}", profile.facts.digest));
    output::line(format!("Point: {}", profile.target_text));
    output::line("Objectives:");
    for each in std::iter::once(profile).chain(&drill.also) {
        for objective in &each.objectives {
            let warning = objective.warning.map_or_else(String::new, |warning| {
                format!(", warning from {}", output::seconds(warning.as_secs_f64()))
            });
            output::line(format!(
                "  {} {}: {} at most {}{warning}",
                each.name,
                objective.id,
                objective.expression.as_str(),
                output::seconds(objective.target.as_secs_f64())
            ));
        }
    }
    output::line("Steps:");
    for (id, title) in perform::steps_of(profile) {
        let expected = forecast::step_ms(&seen.earlier, id).map_or("no earlier drill".to_owned(), |ms| {
            output::seconds(ms as f64 / 1000.0)
        });
        let limit = profile.step_limits.get(id).map_or_else(String::new, |limit| {
            let words = match step_limits::meaning(id) {
                Some(FailureKind::Finding) => "fails after",
                Some(_) => "ends the drill after",
                None => "observed after",
            };
            format!(", {words} {}", output::seconds(limit.as_secs_f64()))
        });
        output::line(format!("  {title:58} {expected}{limit}"));
    }
    if !profile.manual.is_empty() {
        output::line("By hand:");
    }
    for step in &profile.manual {
        let need = if step.required { "required" } else { "not required" };
        output::line(format!(
            "  {}: {} ({need}; the drill waits {}, in step {})",
            step.id,
            step.title,
            output::seconds(step.limit.as_secs_f64()),
            drill::manual::step_of(step.when).0
        ));
    }
    output::line("Checks:");
    for id in &profile.checks {
        output::line(format!("  {id}"));
    }
    for check in &profile.user_checks {
        output::line(format!(
            "  {}: {}; {}",
            check.id,
            check.definition(),
            check.expected()
        ));
    }
    match &seen.plan {
        Ok(plan) => {
            if drill.profile.target == drill::DrillTarget::Bracket {
                output::line(
                    "Restore plan, to the end of what is archived now (the drill's own point lies behind it):",
                );
            } else {
                output::line("Restore plan:");
            }
            for line in plan.to_string().trim_end().lines() {
                output::line(format!("  {line}"));
            }
            output::line("Instead of what `restore` does:");
            for substitution in preflight::substitutions(drill, plan) {
                output::line(format!(
                    "  {}: {} instead of {} ({})",
                    substitution.name, substitution.drill, substitution.restore, substitution.why
                ));
            }
        }
        Err(error) => {
            output::line("There is no restore plan:");
            output::line(error.render().trim_end());
        }
    }
    output::line(if seen.is_go() { "Gates: GO" } else { "Gates: NO-GO" });
    print_gates(&gates(drill, seen));
    if let Some(id) = registered {
        let due = due.map_or_else(String::new, |due| format!(", due {}", output::moment(due)));
        output::line(format!("Registered as {id}{due}"));
    }
}
