//! What the report says beyond the template: each check, the row proof, the quarantine, the steps, the limits
//! of the proof.

use std::fmt::Write;

use drill::facts::{
    CheckResult, Facts, ProbeResult, QuarantineLevel, RowProof, SequenceState, Side, StepOutcome,
};

use crate::markdown::{clock, instant, yes};
use crate::table::{cell, code, duration, fenced, heading, list, table};

/// Tables printed at most; those that do not pass come first.
const TABLES_MAX: usize = 500;
/// Entries of other long lists.
const LISTED_MAX: usize = 100;

pub fn beyond_the_template(out: &mut String, facts: &Facts) {
    checks(out, facts);
    bracket(out, facts);
    sequences(out, facts);
    quarantine(out, facts);
    substitutions(out, facts);
    archive(out, facts);
    steps(out, facts);
    plan(out, facts);
    server_log(out, facts);
    limits(out, facts);
}

fn checks(out: &mut String, facts: &Facts) {
    heading(out, 2, "Checks");
    if facts.checks.is_empty() {
        out.push_str("No check was made: the drill ended before.\n\n");
        return;
    }
    let rows = facts.checks.iter().map(|check| {
        let reason = check.reason.as_deref().map_or_else(|| "-".into(), code);
        let result = format!("**{}**", check.result);
        [
            code(&check.id),
            cell(&check.expected),
            cell(&check.actual),
            result,
            reason,
            duration(check.duration_ms),
        ]
    });
    table(
        out,
        ["Check", "Expected", "Actual", "Result", "Reason", "Time"],
        rows,
    );
    let definitions: Vec<String> = facts
        .checks
        .iter()
        .map(|check| format!("{}: {}", code(&check.id), check.definition))
        .collect();
    out.push_str("What each check looks at:\n\n");
    list(out, &definitions);
}

pub fn row_table(out: &mut String, proof: &RowProof) {
    let mut tables: Vec<_> = proof.tables.iter().collect();
    tables.sort_by_key(|table| table.result() == CheckResult::Pass);
    let count = |side: &Side| match side {
        Side::Digest { rows, .. } => rows.to_string(),
        Side::Absent => "absent".into(),
        Side::Unreadable(state) => format!("unreadable (SQLSTATE {})", cell(state)),
        Side::CouldNotLook(why) => format!("could not look: {}", cell(why)),
    };
    let rows = tables.iter().take(TABLES_MAX).map(|table| {
        let variance = match (&table.production, &table.copy) {
            (Side::Digest { rows: a, digest: x }, Side::Digest { rows: b, digest: y }) => {
                let difference = i128::from(*b) - i128::from(*a);
                if difference == 0 && x != y {
                    "0, but other content".into()
                } else {
                    difference.to_string()
                }
            }
            _ => "unknown".into(),
        };
        let name = code(&format!("{}.{}", table.database, table.table));
        [
            name,
            count(&table.production),
            count(&table.copy),
            variance,
            yes(table.result()),
        ]
    });
    table(
        out,
        ["Table", "Pre-Drill Count", "Post-Drill Count", "Variance", "Pass"],
        rows,
    );
    if tables.len() > TABLES_MAX {
        let _ = write!(
            out,
            "{} more tables, all equal, are listed in facts.json.\n\n",
            tables.len() - TABLES_MAX
        );
    }
}

fn bracket(out: &mut String, facts: &Facts) {
    heading(out, 2, "The Point");
    let Some(bracket) = &facts.bracket else {
        out.push_str(
            "Not applicable: this drill recovered to a point of the past and made none of its own.\n\n",
        );
        return;
    };
    let mut rows = vec![
        ["Restore point".into(), code(&bracket.restore_point)],
        [
            "Nonce A committed before".into(),
            code(&bracket.after_nonce_before.to_string()),
        ],
        [
            "Restore point at".into(),
            code(&bracket.restore_point_lsn.to_string()),
        ],
        [
            "Marker, nonce B and sentinel after".into(),
            code(&bracket.before_nonce_after.to_string()),
        ],
        ["Sentinel before".into(), code(&bracket.sentinel.to_string())],
        ["Marker".into(), code(&bracket.marker)],
        [
            "Archived".into(),
            format!(
                "{} after {}",
                code(&bracket.last_segment),
                duration(bracket.archived_after_ms)
            ),
        ],
        ["Attempts".into(), bracket.attempts.to_string()],
    ];
    rows.extend(bracket.proofs.iter().map(|proof| {
        let text = format!(
            "{}, exclusive: {} of {} snapshots stand for an LSN, chosen among {} commits",
            proof.lsn, proof.exact_snapshots, proof.snapshots, proof.commits_considered
        );
        [
            format!("Row proof of database {}", code(&proof.database)),
            cell(&text),
        ]
    }));
    table(out, ["Part", "Value"], rows);
}

fn sequences(out: &mut String, facts: &Facts) {
    let Some(proof) = &facts.row_proof else { return };
    heading(out, 2, "Sequences");
    let good = proof
        .sequences
        .iter()
        .filter(|sequence| sequence.state == SequenceState::NotBehind)
        .count();
    let _ = write!(
        out,
        "{good} of {} sequences are not behind production.\n\n",
        proof.sequences.len()
    );
    let rest: Vec<[String; 2]> = proof
        .sequences
        .iter()
        .filter(|sequence| sequence.state != SequenceState::NotBehind)
        .take(LISTED_MAX)
        .map(|sequence| {
            let state = match &sequence.state {
                SequenceState::NotBehind => "not behind".into(),
                SequenceState::Behind => "behind production".into(),
                SequenceState::Absent => "absent in the copy".into(),
                SequenceState::CouldNotLook(why) => format!("could not look: {why}"),
            };
            [
                code(&format!("{}.{}", sequence.database, sequence.sequence)),
                cell(&state),
            ]
        })
        .collect();
    if !rest.is_empty() {
        table(out, ["Sequence", "State"], rest);
    }
}

fn quarantine(out: &mut String, facts: &Facts) {
    heading(out, 2, "Quarantine");
    let Some(quarantine) = &facts.quarantine else {
        out.push_str("Not applicable: no copy was started.\n\n");
        return;
    };
    let level = match quarantine.level {
        QuarantineLevel::Full => "full: every layer is in place",
        QuarantineLevel::Partial => "partial: some layers are in place",
        QuarantineLevel::ConfigurationOnly => "by the generated configuration only",
    };
    let _ = write!(out, "Level: **{level}**.\n\n");
    let rows = quarantine.layers.iter().map(|layer| {
        let applied = if layer.applied { "applied" } else { "not applied" };
        [
            cell(&layer.name),
            applied.into(),
            cell(layer.reason.as_deref().unwrap_or("-")),
        ]
    });
    table(out, ["Layer", "State", "Reason"], rows);
    let rows = quarantine.probes.iter().map(|probe| {
        let held = match probe.result {
            ProbeResult::Held => "YES",
            ProbeResult::Breached => "NO",
            ProbeResult::NotRun => "NOT RUN",
        };
        [
            cell(&probe.name),
            cell(&probe.expectation),
            cell(&probe.outcome),
            held.into(),
        ]
    });
    out.push_str("What was tried from inside the quarantine:\n\n");
    table(out, ["Attempt", "Expected", "Outcome", "As expected"], rows);
    let rows = quarantine
        .neutralised
        .iter()
        .take(LISTED_MAX)
        .map(|each| [cell(&each.kind), code(&each.name), cell(&each.how)]);
    out.push_str("What the copy does not have:\n\n");
    table(out, ["Kind", "Name", "How"], rows);
}

fn substitutions(out: &mut String, facts: &Facts) {
    heading(out, 2, "Substitutions");
    if facts.substitutions.is_empty() {
        out.push_str("None recorded.\n\n");
        return;
    }
    out.push_str(
        "The plan is the one that `pgproof restore` would make; the drill differs from it in this:\n\n",
    );
    let rows = facts.substitutions.iter().map(|each| {
        [
            code(&each.name),
            cell(&each.restore),
            cell(&each.drill),
            cell(&each.why),
        ]
    });
    table(out, ["What", "In a restore", "In this drill", "Why"], rows);
}

fn archive(out: &mut String, facts: &Facts) {
    heading(out, 2, "WAL Archive");
    let Some(archive) = &facts.archive else {
        out.push_str("Not compared: the drill ended before.\n\n");
        return;
    };
    table(
        out,
        ["What", "Value"],
        [
            ["Objects before".into(), archive.objects_before.to_string()],
            ["Objects after".into(), archive.objects_after.to_string()],
            [
                "Added by production itself".into(),
                archive.added_by_production.to_string(),
            ],
            [
                "Added by anybody else".into(),
                cell(&archive.unexpected.join(", ")),
            ],
            ["Disappeared".into(), cell(&archive.missing.join(", "))],
            [
                "Histories that lead away from production".into(),
                cell(&archive.foreign_histories.join(", ")),
            ],
        ],
    );
}

fn steps(out: &mut String, facts: &Facts) {
    heading(out, 2, "Steps");
    let rows = facts.steps.iter().enumerate().map(|(number, step)| {
        let outcome = match step.outcome {
            StepOutcome::Done => "done",
            StepOutcome::Failed => "**failed**",
            StepOutcome::Skipped => "not tried",
        };
        let detail = cell(step.detail.as_deref().unwrap_or("-"));
        let number = (number + 1).to_string();
        [
            number,
            cell(&step.title),
            clock(step.started_at),
            duration(step.duration_ms),
            outcome.into(),
            detail,
        ]
    });
    table(
        out,
        ["#", "Step", "Start (UTC)", "Time", "Outcome", "Detail"],
        rows,
    );
}

fn plan(out: &mut String, facts: &Facts) {
    heading(out, 2, "Plan");
    let Some(plan) = &facts.plan else {
        out.push_str("None: the drill ended before a plan was made.\n\n");
        return;
    };
    let _ = write!(out, "BLAKE3 of the plan: {}\n\n", code(&plan.digest));
    fenced(out, &plan.text.lines().map(str::to_string).collect::<Vec<_>>());
}

fn server_log(out: &mut String, facts: &Facts) {
    heading(out, 2, "Server Log");
    if facts.server_log.is_empty() {
        out.push_str("Empty: no copy was started, or it wrote nothing.\n\n");
        return;
    }
    out.push_str(
        "Lines of the copy's own processes; those of sessions are left out, since they may quote values.\n\n",
    );
    fenced(out, &facts.server_log);
}

fn limits(out: &mut String, facts: &Facts) {
    heading(out, 2, "What This Does Not Prove");
    list(out, &facts.limits);
    if !facts.scope.excluded.is_empty() {
        out.push_str("Left out of the row proof:\n\n");
        let rows = facts
            .scope
            .excluded
            .iter()
            .take(LISTED_MAX)
            .map(|each| [code(&each.what), cell(&each.why)]);
        table(out, ["What", "Why"], rows);
    }
    let _ = write!(
        out,
        "Facts of {} ({}), version {}.\n\n",
        facts.identity.drill_id,
        instant(facts.started_at),
        facts.version
    );
}
