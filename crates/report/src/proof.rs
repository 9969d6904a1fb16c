//! The third part of a report: what is proven, how the copy was kept apart, what would hit production, and what this
//! drill does not prove.

use drill::facts::{CheckResult, Facts, ProbeResult, QuarantineLevel, SequenceState, StepFacts, StopOutcome};
use drill::{Status, Verdict, code};

use crate::actions;
use crate::circumstances::Circumstances;
use crate::document::{Document, Text, said, value};
use crate::severity;
use crate::template::{of_check, person, recovery_point, recovery_time, target};
use crate::words::{bytes, clock, day, duration, instant};

/// Entries of long lists.
const LISTED_MAX: usize = 100;

/// Appends the proof.
pub fn write(out: &mut Document, facts: &Facts, verdict: &Verdict, beside: &Circumstances) {
    limits(out, facts);
    out.heading(2, "10. Proof");
    stops(out, facts);
    point(out, facts);
    sequences(out, facts);
    quarantine(out, facts);
    substitutions(out, facts);
    archive(out, facts);
    server_log(out, facts);
    own_time(out, facts);
    if verdict.status == Status::Failed {
        production(out, facts, verdict);
    }
    pitr_record(out, facts, verdict, beside);
}

fn limits(out: &mut Document, facts: &Facts) {
    out.heading(2, "9. What This Does Not Prove");
    let limits = facts.limits.iter().enumerate();
    out.list(
        limits
            .map(|(at, text)| vec![value(text, format!("/limits/{at}"))])
            .collect(),
    );
    if facts.scope.excluded.is_empty() {
        return;
    }
    out.say("Left out of the row proof:");
    let excluded = facts.scope.excluded.iter().enumerate().take(LISTED_MAX);
    let rows = excluded.map(|(at, each)| {
        [
            value(&each.what, format!("/scope/excluded/{at}/what")).code(),
            value(&each.why, format!("/scope/excluded/{at}/why")),
        ]
    });
    out.table(&["What", "Why"], rows);
}

fn stops(out: &mut Document, facts: &Facts) {
    out.heading(3, "10.1 Stops");
    if facts.target.stops.is_empty() {
        out.paragraph(vec![value("No copy was started.", "/target/stops")]);
        return;
    }
    let rows = facts.target.stops.iter().enumerate().map(|(at, stop)| {
        let from = |name: &str| format!("/target/stops/{at}/{name}");
        let settings: Vec<String> = stop
            .settings
            .iter()
            .map(|(name, to)| format!("{name}={to}"))
            .collect();
        let outcome = match stop.outcome {
            StopOutcome::Paused => "paused there",
            StopOutcome::Promoted => "paused there, then promoted for a check",
            StopOutcome::Opened => "opened at the end of the archived WAL",
            StopOutcome::Failed => "not reached",
            StopOutcome::NotTried => "not tried",
        };
        let reached = stop.reached_lsn.map_or_else(|| "-".into(), |lsn| lsn.to_string());
        let line = stop.stop_line.as_deref().unwrap_or("-");
        [
            value(&stop.purpose, from("purpose")),
            value(settings.join(" "), from("settings")).code(),
            value(outcome, from("outcome")),
            value(reached, from("reached_lsn")).code(),
            match stop.planned {
                Some(planned) => value(planned.lsn.to_string(), from("planned/lsn")).code(),
                None => value("found by the server", from("planned")),
            },
            value(line, from("stop_line")).code(),
            value(duration(stop.duration_ms), from("duration_ms")),
        ]
    });
    out.table(
        &[
            "Stop",
            "Settings",
            "Outcome",
            "Replayed to",
            "Planned",
            "The server's own line",
            "Time",
        ],
        rows,
    );
}

fn own_time(out: &mut Document, facts: &Facts) {
    out.heading(3, "10.8 Time of the Engine Itself");
    let measured: Vec<(usize, &StepFacts, u64)> = facts
        .steps
        .iter()
        .enumerate()
        .filter_map(|(at, step)| Some((at, step, step.own_ms()?)))
        .collect();
    if measured.is_empty() {
        out.paragraph(vec![value("It was not measured.", "/steps")]);
        return;
    }
    out.say("Beside the restore, the copy's server and its replay, and what checks read:");
    let row = |(at, step, own): &(usize, &StepFacts, u64)| {
        let from = |name: &str| format!("/steps/{at}/{name}");
        [
            value(&step.title, from("title")),
            value(duration(step.duration_ms), from("duration_ms")),
            value(duration(*own), from("duration_ms")).and(from("work_ms")),
        ]
    };
    let whole: u64 = measured.iter().map(|(_, step, _)| step.duration_ms).sum();
    let own: u64 = measured.iter().map(|(_, _, own)| own).sum();
    let sum = [
        said("All steps"),
        value(duration(whole), "/steps"),
        value(
            format!(
                "{} ({:.1} %)",
                duration(own),
                own as f64 * 100.0 / whole.max(1) as f64
            ),
            "/steps",
        ),
    ];
    out.table(
        &["Step", "Time", "Of it the engine itself"],
        measured.iter().map(row).chain([sum]),
    );
}

fn point(out: &mut Document, facts: &Facts) {
    out.heading(3, "10.2 The Point");
    if let Some(point) = &facts.point {
        let kind = serde_json::to_value(point.kind).ok();
        let kind = kind
            .as_ref()
            .and_then(|kind| kind.as_str())
            .unwrap_or("unknown")
            .to_string();
        let text = format!("How it was chosen: {kind}; asked for as {}.", point.requested);
        out.paragraph(vec![value(text, "/point/kind").and("/point/requested")]);
        let rows: Vec<[Text; 4]> = point
            .markers
            .iter()
            .enumerate()
            .map(|(at, marker)| {
                let from = |name: &str| format!("/point/markers/{at}/{name}");
                let words = |there: bool| if there { "there" } else { "absent" };
                let found = match marker.found {
                    Some(found) => value(words(found), from("found")),
                    None => value("could not look", format!("/point/markers/{at}")),
                };
                [
                    value(&marker.id, from("id")).code(),
                    value(
                        format!("{} at {}", marker.commit_lsn, instant(marker.committed_at)),
                        from("commit_lsn"),
                    )
                    .and(from("committed_at")),
                    value(words(marker.expected), from("expected")),
                    found,
                ]
            })
            .collect();
        if !rows.is_empty() {
            out.table(&["Standing marker", "Committed", "Expected", "Found"], rows);
        }
    }
    let Some(bracket) = &facts.bracket else {
        let why = "No bracket: this drill recovered to a point of the past and made none of its own.";
        out.paragraph(vec![value(why, "/bracket")]);
        return;
    };
    let row =
        |name: &str, text: String, from: &str| [said(name), value(text, format!("/bracket/{from}")).code()];
    let mut rows = vec![
        row("Restore point", bracket.restore_point.clone(), "restore_point"),
        row(
            "Nonce A committed before",
            bracket.after_nonce_before.to_string(),
            "after_nonce_before",
        ),
        row(
            "Restore point at",
            bracket.restore_point_lsn.to_string(),
            "restore_point_lsn",
        ),
        row(
            "Marker, nonce B and sentinel after",
            bracket.before_nonce_after.to_string(),
            "before_nonce_after",
        ),
        row("Sentinel before", bracket.sentinel.to_string(), "sentinel"),
        row("Marker", bracket.marker.clone(), "marker"),
        row(
            "Segment that had to be archived",
            bracket.last_segment.clone(),
            "last_segment",
        ),
        row(
            "Archived after",
            duration(bracket.archived_after_ms),
            "archived_after_ms",
        ),
        row("Attempts", bracket.attempts.to_string(), "attempts"),
    ];
    for (at, proof) in bracket.proofs.iter().enumerate() {
        let from = |name: &str| format!("/bracket/proofs/{at}/{name}");
        let text = format!(
            "{}, exclusive: {} of {} snapshots stand for an LSN, chosen among {} commits",
            proof.lsn, proof.exact_snapshots, proof.snapshots, proof.commits_considered
        );
        rows.push([
            value(
                format!("Row proof of database {}", proof.database),
                from("database"),
            ),
            value(text, from("lsn"))
                .and(from("exact_snapshots"))
                .and(from("snapshots"))
                .and(from("commits_considered")),
        ]);
    }
    out.table(&["Part", "Value"], rows);
}

fn sequences(out: &mut Document, facts: &Facts) {
    let Some(proof) = &facts.row_proof else { return };
    out.heading(3, "10.3 Sequences");
    let good = proof
        .sequences
        .iter()
        .filter(|it| it.state == SequenceState::NotBehind)
        .count();
    let text = format!(
        "{good} of {} sequences are not behind production.",
        proof.sequences.len()
    );
    out.paragraph(vec![value(text, "/row_proof/sequences")]);
    let rest: Vec<[Text; 2]> = proof
        .sequences
        .iter()
        .enumerate()
        .filter(|(_, sequence)| sequence.state != SequenceState::NotBehind)
        .take(LISTED_MAX)
        .map(|(at, sequence)| {
            let from = |name: &str| format!("/row_proof/sequences/{at}/{name}");
            let state = match &sequence.state {
                SequenceState::NotBehind => "not behind".into(),
                SequenceState::Behind => "behind production".into(),
                SequenceState::Absent => "absent in the copy".into(),
                SequenceState::CouldNotLook(why) => format!("could not look: {why}"),
            };
            [
                value(
                    format!("{}.{}", sequence.database, sequence.sequence),
                    from("sequence"),
                )
                .and(from("database"))
                .code(),
                value(state, from("state")),
            ]
        })
        .collect();
    if !rest.is_empty() {
        out.table(&["Sequence", "State"], rest);
    }
}

fn quarantine(out: &mut Document, facts: &Facts) {
    out.heading(3, "10.4 Quarantine");
    let Some(quarantine) = &facts.quarantine else {
        out.paragraph(vec![value("Not applicable: no copy was started.", "/quarantine")]);
        return;
    };
    let level = match quarantine.level {
        QuarantineLevel::Full => "Level: full, every layer is in place.",
        QuarantineLevel::Partial => "Level: partial, some layers are in place.",
        QuarantineLevel::ConfigurationOnly => "Level: by the generated configuration only.",
    };
    out.paragraph(vec![value(level, "/quarantine/level").strong()]);
    let rows = quarantine.layers.iter().enumerate().map(|(at, layer)| {
        let from = |name: &str| format!("/quarantine/layers/{at}/{name}");
        let applied = if layer.applied { "applied" } else { "not applied" };
        [
            value(&layer.name, from("name")),
            value(applied, from("applied")),
            value(layer.reason.as_deref().unwrap_or("-"), from("reason")),
        ]
    });
    out.table(&["Layer", "State", "Reason"], rows);
    out.say("What was tried from inside the quarantine:");
    let rows = quarantine.probes.iter().enumerate().map(|(at, probe)| {
        let from = |name: &str| format!("/quarantine/probes/{at}/{name}");
        let held = match probe.result {
            ProbeResult::Held => "YES",
            ProbeResult::Breached => "NO",
            ProbeResult::NotRun => "NOT RUN",
        };
        [
            value(&probe.name, from("name")),
            value(&probe.expectation, from("expectation")),
            value(&probe.outcome, from("outcome")),
            value(held, from("result")),
        ]
    });
    out.table(&["Attempt", "Expected", "Outcome", "As expected"], rows);
    out.say("What the copy does not have:");
    let rows = quarantine
        .neutralised
        .iter()
        .enumerate()
        .take(LISTED_MAX)
        .map(|(at, each)| {
            let from = |name: &str| format!("/quarantine/neutralised/{at}/{name}");
            [
                value(&each.kind, from("kind")),
                value(&each.name, from("name")).code(),
                value(&each.how, from("how")),
            ]
        });
    out.table(&["Kind", "Name", "How"], rows);
}

fn substitutions(out: &mut Document, facts: &Facts) {
    out.heading(3, "10.5 Substitutions");
    if facts.substitutions.is_empty() {
        out.paragraph(vec![value("None recorded.", "/substitutions")]);
        return;
    }
    out.say("The plan is the one that `pgproof restore` would make; the drill differs from it in this:");
    let rows = facts.substitutions.iter().enumerate().map(|(at, each)| {
        let from = |name: &str| format!("/substitutions/{at}/{name}");
        [
            value(&each.name, from("name")).code(),
            value(&each.restore, from("restore")),
            value(&each.drill, from("drill")),
            value(&each.why, from("why")),
        ]
    });
    out.table(&["What", "In a restore", "In this drill", "Why"], rows);
}

fn archive(out: &mut Document, facts: &Facts) {
    out.heading(3, "10.6 WAL Archive");
    let Some(archive) = &facts.archive else {
        out.paragraph(vec![value("Not compared: the drill ended before.", "/archive")]);
        return;
    };
    let number = |name: &str, number: u64| value(number.to_string(), format!("/archive/{name}"));
    let names = |name: &str, names: &[String]| match names.is_empty() {
        true => value("none", format!("/archive/{name}")),
        false => value(names.join(", "), format!("/archive/{name}")),
    };
    out.table(
        &["What", "Value"],
        [
            [
                said("Objects before"),
                number("objects_before", archive.objects_before),
            ],
            [
                said("Objects after"),
                number("objects_after", archive.objects_after),
            ],
            [
                said("Added by production itself"),
                number("added_by_production", archive.added_by_production),
            ],
            [
                said("Added by anybody else"),
                names("unexpected", &archive.unexpected),
            ],
            [said("Disappeared"), names("missing", &archive.missing)],
            [
                said("Histories that lead away from production"),
                names("foreign_histories", &archive.foreign_histories),
            ],
        ],
    );
}

fn server_log(out: &mut Document, facts: &Facts) {
    out.heading(3, "10.7 Server Log");
    if facts.server_log.is_empty() {
        out.paragraph(vec![value(
            "Empty: no copy was started, or it wrote nothing.",
            "/server_log",
        )]);
        return;
    }
    out.say(
        "Lines of the copy's own processes; those of sessions are left out, since they may quote values.",
    );
    out.lines(facts.server_log.clone(), "/server_log");
}

/// The questions that a failed drill raises about production, answered from what was seen.
fn production(out: &mut Document, facts: &Facts, verdict: &Verdict) {
    out.heading(2, "11. Production Impact Assessment");
    let reached = facts.instant("target-reached").is_some();
    if let Some((severity, at)) = severity::of(verdict, reached) {
        let from = format!("/reasons/{at}/code");
        out.paragraph(vec![
            said("Severity, by rule:"),
            value(severity.as_str(), from).strong(),
        ]);
    }
    let (same, same_action) = match &facts.input {
        Some(input) => (
            value(
                format!(
                    "Yes: the drill read production's own backup {} and WAL archive",
                    input.backup
                ),
                "/input/backup",
            )
            .and("/input/repository"),
            said("Take production for as unrecoverable as this drill found it, until a drill passes"),
        ),
        None => (
            value(
                "Yes: the drill asked production's own repository, and found no backup that it could use",
                "/input",
            ),
            said("Take production for unrecoverable until a drill passes"),
        ),
    };
    let wal_codes = [
        code::WAL_MISSING,
        code::HISTORY_POISONED,
        code::NOT_ARCHIVED,
        code::ARCHIVE_CHANGED,
    ];
    let bad = verdict
        .reasons
        .iter()
        .enumerate()
        .find(|(_, reason)| wal_codes.contains(&reason.code.as_str()));
    let (healthy, healthy_action) = match (bad, &facts.rpo) {
        (Some((at, reason)), _) => (
            value(format!("No: {}", reason.text), format!("/reasons/{at}/text")),
            said("Investigate now: every commit behind the damage is at risk"),
        ),
        (None, Some(rpo)) if rpo.exact => (
            value(
                format!(
                    "As far as this drill saw: {} commits and {} of WAL were not in the archive when it began",
                    rpo.commits,
                    bytes(rpo.bytes)
                ),
                "/rpo/commits",
            )
            .and("/rpo/bytes"),
            said("Confirm with `pgproof status` and `pgproof wal gaps`"),
        ),
        (None, _) => (
            value("Unknown: nothing was measured", "/rpo"),
            said("Run `pgproof status` and `pgproof wal gaps`"),
        ),
    };
    let elsewhere = verdict.reasons.iter().enumerate().find(|(_, reason)| {
        matches!(
            reason.code.as_str(),
            code::OBJECT_DAMAGED
                | code::WAL_MISSING
                | code::KEY_WRONG
                | code::RTO_EXCEEDED
                | code::RPO_EXCEEDED
        )
    });
    let (workaround, action) = match elsewhere {
        Some((at, reason)) if matches!(reason.code.as_str(), code::RTO_EXCEEDED | code::RPO_EXCEEDED) => (
            value(
                "Yes: recovery works, and is slower or loses more than agreed",
                format!("/reasons/{at}/code"),
            ),
            said("Tell who relies on the objective; document the real figures"),
        ),
        Some((at, _)) => (
            value(
                "Perhaps: another copy of the repository, or an older backup, may not have this damage",
                format!("/reasons/{at}/code"),
            ),
            said("Drill the other copy: `pgproof drill run --copy NAME`; escalate as P1 if that fails"),
        ),
        None => (value("None is known", "/reasons"), said("Escalate as P1")),
    };
    out.table(
        &["Question", "Answer from the evidence", "Action"],
        [
            [
                said("Is production using the same backup scripts?"),
                same,
                same_action,
            ],
            [
                said("Are production WAL archives healthy?"),
                healthy,
                healthy_action,
            ],
            [
                said("Is there a workaround for the failure mode?"),
                workaround,
                action,
            ],
        ],
    );
    out.say(
        "Tell the engineering lead within 1 hour; write down the cause; give each action an owner and a date \
         (`pgproof drill follow-up add`); drill again within 2 weeks after the fix.",
    );
    called(out, facts);
}

/// Who is called when, in order of time.
fn called(out: &mut Document, facts: &Facts) {
    let mut order: Vec<(u64, usize)> = facts
        .people
        .others
        .iter()
        .enumerate()
        .filter_map(|(at, person)| Some((person.called_after_seconds?, at)))
        .collect();
    if order.is_empty() {
        return;
    }
    order.sort_unstable();
    let mut line = vec![said("Who is called while production is down, in this order:")];
    let last = order.len() - 1;
    for (number, (_, at)) in order.into_iter().enumerate() {
        let Some((person, when)) = facts
            .people
            .others
            .get(at)
            .and_then(|person| Some((person, actions::called(person)?)))
        else {
            continue;
        };
        let end = if number == last { "." } else { ";" };
        let from = |name: &str| format!("/people/others/{at}/{name}");
        line.push(
            value(
                format!("{} ({}) {when}{end}", person.name, person.role),
                from("name"),
            )
            .and(from("role"))
            .and(from("called_after_seconds")),
        );
    }
    out.paragraph(line);
}

/// The record that a runbook asks for, field by field.
fn pitr_record(out: &mut Document, facts: &Facts, verdict: &Verdict, beside: &Circumstances) {
    out.heading(2, "12. PITR Record");
    let (rto, rto_target) = recovery_time(facts);
    let (rpo, rpo_target) = recovery_point(facts);
    let check = |id: &str| match of_check(facts, id) {
        Some((at, check)) => value(
            format!("{}: {}", check.result, check.actual),
            format!("/checks/{at}/result"),
        )
        .and(format!("/checks/{at}/actual")),
        None => said(CheckResult::NotRun.as_str()),
    };
    let input = facts.input.as_ref();
    let or_none = |text: Option<String>, from: &str| match text {
        Some(text) => value(text, from).code(),
        None => value("none: the drill ended before", "/input"),
    };
    let wal = input.and_then(|input| input.last_wal_segment.clone());
    let end = match facts.finished_at {
        Some(end) => value(clock(end), "/finished_at"),
        None => value("not recorded", "/finished_at"),
    };
    let steps = format!("{} steps, listed under Drill Timeline", facts.steps.len());
    let deviations = match &facts.registration {
        Some(registration) if !registration.deviations.is_empty() => {
            value(registration.deviations.join("; "), "/registration/deviations")
        }
        _ => value(
            format!(
                "{} settings, listed under Substitutions",
                facts.substitutions.len()
            ),
            "/substitutions",
        ),
    };
    out.table(
        &["Field", "Value"],
        [
            [said("Date (UTC)"), value(day(facts.started_at), "/started_at")],
            [
                said("Primary operator"),
                person(facts.people.operator.as_deref(), "/people/operator"),
            ],
            [
                said("Secondary reviewer"),
                person(facts.people.reviewer.as_deref(), "/people/reviewer"),
            ],
            [
                said("Environment"),
                value(&facts.identity.environment, "/identity/environment"),
            ],
            [
                said("Target type"),
                value(&facts.identity.scenario, "/identity/scenario"),
            ],
            [said("Target time"), target(facts)],
            [
                said("Base backup file"),
                or_none(input.map(|input| input.backup.clone()), "/input/backup"),
            ],
            [
                said("WAL archive file (last segment)"),
                or_none(wal, "/input/last_wal_segment"),
            ],
            [
                said("Start time (UTC)"),
                value(clock(facts.started_at), "/started_at"),
            ],
            [said("End time (UTC)"), end],
            [said("RTO target"), rto_target],
            [said("RTO achieved"), rto],
            [said("RPO target"), rpo_target],
            [said("RPO achieved"), rpo],
            [said("Steps followed"), value(steps, "/steps")],
            [said("Deviations"), deviations],
            [said("Verification: recovery"), check("target")],
            [said("Verification: rows"), check("row-proof")],
            [said("Result"), crate::template::status(verdict, beside)],
        ],
    );
}
