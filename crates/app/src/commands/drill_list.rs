//! `pgproof drill list`: the table that teams keep by hand (quarter, date, recovery time, status, link, notes), with what
//! is scheduled, and where the recovery time is heading.

use std::collections::BTreeMap;

use diagnostic::Result;
use drill::sign_off::shown_status;
use jiff::tz::TimeZone;
use report::trend::Rate;
use report::{BackupRuns, BackupSize, Earlier, forecast_words};
use serde_json::{Value, json};

use super::drill_due::{self, DueDrill};
use super::drill_stored::{self as stored, Recorded};
use crate::cli;
use crate::context::Context;
use crate::copies::OpenCopy;
use crate::{exit, output};

pub fn run(context: &Context, arguments: &cli::OfCluster) -> Result<u8> {
    let (configuration, copies) = stored::open(context, arguments.cluster.as_deref(), None)?;
    let cluster = configuration.cluster(arguments.cluster.as_deref())?;
    let drills = stored::history(&copies, &configuration.signers)?;
    let reports = stored::report_directory()?;
    let now = context.now().to_zoned(TimeZone::system());
    let due = drill_due::due_of(&configuration, &cluster.name, &drills, None, &now);
    let mut values = Vec::new();
    let mut rows = Vec::new();
    for drill in &drills {
        let link = link(drill, &reports);
        let started = drill.facts.as_ref().map(|facts| facts.started_at);
        let rto_ms = drill
            .facts
            .as_ref()
            .and_then(|facts| Some(facts.rto.as_ref()?.total_ms));
        let status = match &drill.verdict {
            Some(verdict) => shown_status(verdict.status, &drill.signatures),
            None => "cannot be read".to_owned(),
        };
        let notes = notes(drill);
        values.push(json!({
            "drill": drill.drill,
            "copy": drill.copy,
            "profile": drill.facts.as_ref().map(|facts| &facts.identity.profile),
            "started_at": started,
            "quarter": started.map(quarter),
            "verdict": drill.verdict.as_ref().map(|verdict| verdict.status),
            "status": status,
            "signed": drill::sign_off::is_signed(&drill.signatures),
            "rto_seconds": rto_ms.map(|ms| ms as f64 / 1000.0),
            "report": link,
            "notes": notes,
            "follow_ups_open": open(drill),
        }));
        rows.push(vec![
            started.map(quarter).unwrap_or_default(),
            started.map(day).unwrap_or_default(),
            rto_ms.map_or_else(|| "-".to_owned(), |ms| output::seconds(ms as f64 / 1000.0)),
            status,
            link,
            notes,
        ]);
    }
    for it in &due {
        let at = it.due.slot.from.timestamp();
        rows.push(vec![
            quarter(at),
            day(at),
            "-".to_owned(),
            scheduled(it).to_owned(),
            "-".to_owned(),
            format!("{}; {}", it.profile, it.due.why),
        ]);
    }
    let trends = trends(&drills);
    let runs = stored::backup_runs(&copies, context.now());
    let rates = rates(&drills, &sizes(&copies), runs.as_ref());
    if context.json {
        let scheduled: Vec<Value> = due.iter().map(DueDrill::value).collect();
        let trends: Vec<Value> = trends
            .iter()
            .map(|(profile, words)| json!({ "profile": profile, "forecast": words }))
            .collect();
        let rates: Vec<Value> = rates
            .iter()
            .map(|(profile, rates)| {
                let rates: Vec<Value> = rates.iter().map(rate_value).collect();
                json!({ "profile": profile, "rates": rates })
            })
            .collect();
        output::json(&json!({
            "drills": values,
            "scheduled": scheduled,
            "trends": trends,
            "rates": rates,
            "rates_leave_out": report::trend::NOT_COUNTED,
        }));
        return Ok(exit::DONE);
    }
    if drills.is_empty() {
        output::line(format!(
            "Cluster {} was never drilled. Run one: pgproof drill run",
            cluster.name
        ));
    }
    output::table(
        &[
            "QUARTER",
            "DATE",
            "RTO ACHIEVED",
            "STATUS",
            "REPORT LINK",
            "NOTES",
        ],
        &rows,
    );
    for (profile, words) in trends {
        output::line(format!("{profile}: {words}"));
    }
    print_rates(&rates);
    Ok(exit::DONE)
}

fn quarter(at: jiff::Timestamp) -> String {
    report::quarter(at)
}

fn day(at: jiff::Timestamp) -> String {
    at.to_zoned(TimeZone::system()).date().to_string()
}

fn scheduled(due: &DueDrill) -> &'static str {
    if due.due.overdue { "OVERDUE" } else { "SCHEDULED" }
}

/// The report's file where it lies, else the evidence's name.
fn link(drill: &Recorded, reports: &std::path::Path) -> String {
    let file = reports.join(format!("{}.md", drill.drill));
    if file.is_file() {
        file.display().to_string()
    } else {
        format!("evidence/{}/report.md", drill.drill)
    }
}

fn open(drill: &Recorded) -> usize {
    drill
        .follow_ups
        .iter()
        .filter(|entry| entry.closed.is_none())
        .count()
}

fn notes(drill: &Recorded) -> String {
    let mut notes = Vec::new();
    if let Some(facts) = &drill.facts {
        notes.push(facts.identity.profile.clone());
        if !facts.planted_faults.is_empty() {
            notes.push("a drill of the drill".to_owned());
        }
    }
    let reasons = drill.verdict.iter().flat_map(|verdict| &verdict.reasons);
    notes.extend(reasons.take(1).map(|reason| reason.code.clone()));
    match open(drill) {
        0 => {}
        open => notes.push(format!("{open} follow-ups open")),
    }
    notes.join("; ")
}

fn rate_value(rate: &Rate) -> Value {
    json!({
        "id": rate.id,
        "title": rate.title,
        "actual": rate.actual,
        "target": rate.target,
        "result": rate.met.as_str(),
    })
}

fn print_rates(rates: &[(String, Vec<Rate>)]) {
    if rates.is_empty() {
        return;
    }
    let rows: Vec<Vec<String>> = rates
        .iter()
        .flat_map(|(profile, rates)| rates.iter().map(move |rate| (profile, rate)))
        .map(|(profile, rate)| {
            vec![
                profile.clone(),
                rate.title.to_owned(),
                rate.actual.clone(),
                rate.target.to_owned(),
                rate.met.as_str().to_owned(),
            ]
        })
        .collect();
    output::table(&["PROFILE", "RATE", "ACTUAL", "TARGET", "RESULT"], &rows);
    output::line(report::trend::NOT_COUNTED);
}

/// The sizes of all backups; one that lies in two copies counts once.
fn sizes(copies: &[OpenCopy]) -> Vec<BackupSize> {
    let mut all = Vec::new();
    for copy in copies {
        // That they cannot be read is told where they are looked at: here their growth cannot be said.
        all.extend(copy.cluster.backups().unwrap_or_default());
    }
    let mut sizes = stored::sizes(&all);
    sizes.sort_by(|a, b| a.backup.cmp(&b.backup));
    sizes.dedup_by(|a, b| a.backup == b.backup);
    sizes
}

/// For each profile, what its drills and the backups add up to.
fn rates(drills: &[Recorded], backups: &[BackupSize], runs: Option<&BackupRuns>) -> Vec<(String, Vec<Rate>)> {
    let readable = drills
        .iter()
        .filter_map(|drill| drill.facts.as_ref().zip(drill.verdict.as_ref()));
    let mut profiles: BTreeMap<&str, Vec<Earlier>> = BTreeMap::new();
    for (facts, verdict) in readable {
        profiles
            .entry(&facts.identity.profile)
            .or_default()
            .push(Earlier::of(facts, verdict.status));
    }
    profiles
        .into_iter()
        .map(|(profile, drills)| (profile.to_owned(), report::trend::rates(&drills, backups, runs)))
        .collect()
}

/// For each profile with enough drills, what the line through them says.
fn trends(drills: &[Recorded]) -> Vec<(String, String)> {
    let mut profiles: Vec<String> = Vec::new();
    for facts in drills.iter().filter_map(|drill| drill.facts.as_ref()) {
        if !profiles.contains(&facts.identity.profile) {
            profiles.push(facts.identity.profile.clone());
        }
    }
    let words = profiles.into_iter().filter_map(|profile| {
        let of = || {
            let facts = drills.iter().filter_map(|drill| drill.facts.as_ref());
            facts.filter(|facts| facts.identity.profile == profile && facts.planted_faults.is_empty())
        };
        let values: Vec<_> = of()
            .filter_map(|facts| {
                let ms = facts.rto.as_ref()?.total_ms as f64;
                Some((facts.started_at, ms, String::new()))
            })
            .collect();
        let objective = of().next_back().and_then(|facts| facts.objectives.rto_seconds);
        let words = forecast_words(&values, objective.map(|seconds| seconds.saturating_mul(1000)))?;
        Some((profile.clone(), words))
    });
    words.collect()
}
