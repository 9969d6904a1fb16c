//! The matrix of a self-test, fault by check, as Markdown and for a terminal.

use std::collections::BTreeSet;
use std::fmt::Write;

use drill::facts::CheckResult;
use drill::selftest::{Fate, FaultRow, STEPS, Selftest};

use crate::words::{cell, code};

/// `selftest.md`.
pub fn selftest(selftest: &Selftest) -> String {
    let mut out = format!("# Self-test of drill {}\n\n", code(&selftest.drill_id));
    for line in summary(selftest) {
        let _ = write!(out, "{line}\n\n");
    }
    out.push_str("## Faults\n\n| Fault | What it is | What was planted | Result | Caught by | Diagnosis |\n");
    out.push_str("|------|------|------|------|------|------|\n");
    for row in &selftest.faults {
        let _ = writeln!(
            out,
            "| {} | {} | {} | {} | {} | {} |",
            code(&row.fault),
            cell(&row.what),
            cell(&row.planted),
            fate(row),
            caught_by(row),
            row.diagnosis.as_deref().map_or_else(|| "none".to_owned(), cell)
        );
    }
    let columns = columns(selftest);
    out.push_str("\n## Fault by check\n\n");
    out.push_str(
        "`X`: saw it. `.`: looked, and saw nothing. `-`: not run, because the drill ended before, or this drill was made without it. `?`: \
         could not look. Bold: it is there for this fault.\n\n",
    );
    let heads: Vec<String> = columns.iter().map(|column| code(column)).collect();
    let _ = writeln!(out, "| Fault | {} |", heads.join(" | "));
    let _ = writeln!(out, "|{}", "------|".repeat(columns.len() + 1));
    for row in &selftest.faults {
        let marks: Vec<String> = columns
            .iter()
            .map(|column| {
                let mark = mark(row, column);
                let meant = row.meant_for.iter().any(|id| id == column);
                if meant {
                    format!("**{mark}**")
                } else {
                    mark.to_owned()
                }
            })
            .collect();
        let _ = writeln!(out, "| {} | {} |", code(&row.fault), marks.join(" | "));
    }
    out
}

/// What follows, in sentences.
pub fn summary(selftest: &Selftest) -> Vec<String> {
    let count = |fate| selftest.count(fate);
    let mut lines = vec![format!(
        "{}: {} of {} planted faults were caught, {} were missed; {} could not be planted here. The untouched drill ended {}.",
        selftest.status(),
        count(Fate::Caught),
        count(Fate::Caught) + count(Fate::Missed),
        count(Fate::Missed),
        count(Fate::NotPlanted),
        selftest.untouched
    )];
    if selftest.complete && count(Fate::Caught) < drill::selftest::CAUGHT_MIN {
        lines.push(format!(
            "At least {} have to be planted and caught.",
            drill::selftest::CAUGHT_MIN
        ));
    }
    let shown: Vec<String> = selftest
        .sole_catchers()
        .into_iter()
        .filter(|id| !STEPS.contains(id))
        .map(code)
        .collect();
    if !shown.is_empty() {
        lines.push(format!(
            "Each of these checks was the only one that saw a fault: {}.",
            shown.join(", ")
        ));
    }
    let unproven: Vec<String> = selftest.unproven().into_iter().map(code).collect();
    if !unproven.is_empty() {
        lines.push(format!(
            "No fault of this self-test shows that these can fail: {}.",
            unproven.join(", ")
        ));
    }
    lines
}

fn fate(row: &FaultRow) -> &'static str {
    match row.fate {
        Fate::Caught => "caught",
        Fate::Missed => "**MISSED**",
        Fate::NotPlanted => "not planted",
    }
}

fn caught_by(row: &FaultRow) -> String {
    match (row.fate, row.caught_by.as_slice()) {
        (Fate::NotPlanted, _) => "nothing to catch".to_owned(),
        (_, []) => "nothing".to_owned(),
        (_, ids) => ids.iter().map(|id| code(id)).collect::<Vec<_>>().join(", "),
    }
}

/// Steps first, then checks in the order of the untouched drill, then whatever else saw something.
fn columns(selftest: &Selftest) -> Vec<String> {
    let mut columns: Vec<String> = STEPS.iter().map(ToString::to_string).collect();
    columns.extend(selftest.checks.iter().cloned());
    let further: BTreeSet<&String> = selftest
        .faults
        .iter()
        .flat_map(|row| row.caught_by.iter().chain(&row.meant_for))
        .collect();
    for id in further {
        if !columns.contains(id) {
            columns.push(id.clone());
        }
    }
    columns
}

fn mark(row: &FaultRow, column: &str) -> &'static str {
    if row.caught_by.iter().any(|id| id == column) {
        return "X";
    }
    match row.cells.get(column) {
        // What was as bad without the fault has seen nothing of it.
        Some(CheckResult::Pass | CheckResult::Warn | CheckResult::Fail) => ".",
        Some(CheckResult::CouldNotLook) => "?",
        Some(CheckResult::NotRun) | None => "-",
    }
}
