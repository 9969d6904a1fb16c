//! The drill report in Markdown: the headings and tables of the template that teams use, then what they ask
//! for beyond it.

use std::fmt::Write;

use drill::facts::{CheckResult, Facts, StopOutcome};
use drill::{Status, Verdict, Weight, code};
use jiff::Timestamp;

use crate::sections;
use crate::table::{age, bytes, cell, code as quoted, duration, heading, list, table};

/// Why the application's cells are empty in a sandbox.
const NO_APPLICATION: &str = "not applicable: a drill in a sandbox starts PostgreSQL alone, no application";
/// Checks of pgproof's own; every other id is a check of the user's.
const OWN_CHECKS: [&str; 13] = [
    "target",
    "bracket",
    "row-proof",
    "sequences",
    "page-checksums",
    "amcheck",
    "archive-settings",
    "archive-unchanged",
    "timeline-histories",
    "collation-versions",
    "quarantine",
    "rto",
    "rpo",
];

/// The report in Markdown.
pub fn markdown(facts: &Facts, verdict: &Verdict) -> String {
    let mut out = String::from("# PITR Restore Drill Report\n\n");
    summary(&mut out, facts, verdict);
    timing(&mut out, facts);
    artifacts(&mut out, facts);
    heading(&mut out, 2, "Validation Results");
    health(&mut out, facts);
    data_integrity(&mut out, facts);
    services(&mut out, facts);
    smoke_tests(&mut out, facts);
    issues(&mut out, facts, verdict);
    observations(&mut out, facts, verdict);
    follow_ups(&mut out, facts, verdict);
    sections::beyond_the_template(&mut out, facts);
    footer(&mut out, facts);
    out
}

pub(crate) fn day(time: Timestamp) -> String {
    time.strftime("%Y-%m-%d").to_string()
}

pub(crate) fn clock(time: Timestamp) -> String {
    time.strftime("%H:%M:%S").to_string()
}

pub(crate) fn instant(time: Timestamp) -> String {
    time.strftime("%Y-%m-%d %H:%M:%S+00").to_string()
}

fn person(name: Option<&str>) -> String {
    name.map_or_else(|| "not recorded: none was named for this run".into(), cell)
}

/// The word in a "Pass" column.
pub(crate) fn yes(result: CheckResult) -> String {
    match result {
        CheckResult::Pass => "YES".into(),
        CheckResult::Fail => "NO".into(),
        other => other.to_string(),
    }
}

fn minutes(seconds: u64) -> String {
    if seconds.is_multiple_of(60) {
        format!("< {} min", seconds / 60)
    } else {
        format!("< {seconds} s")
    }
}

fn summary(out: &mut String, facts: &Facts, verdict: &Verdict) {
    heading(out, 2, "Summary");
    let identity = &facts.identity;
    let signed =
        "no: the verdict can be computed again from the facts, a person's signature is not part of this file";
    table(
        out,
        ["Field", "Value"],
        [
            ["**Drill ID**".into(), quoted(&identity.drill_id)],
            ["**Date (UTC)**".into(), day(facts.started_at)],
            ["**Status**".into(), format!("**{}**", verdict.status)],
            ["**Environment**".into(), cell(&identity.environment)],
            [
                "**Primary Operator**".into(),
                person(facts.people.operator.as_deref()),
            ],
            [
                "**Secondary Reviewer**".into(),
                person(facts.people.reviewer.as_deref()),
            ],
            ["**Signed**".into(), signed.into()],
            ["**Cluster**".into(), cell(&facts.scope.cluster)],
            [
                "**System identifier**".into(),
                cell(&facts.scope.system_identifier),
            ],
            ["**Profile**".into(), cell(&identity.profile)],
            ["**Trigger**".into(), cell(&identity.trigger)],
            [
                "**Host of the copy**".into(),
                cell(identity.host.as_deref().unwrap_or("not recorded")),
            ],
            ["**pgproof**".into(), cell(&identity.tool_version)],
        ],
    );
    if !facts.planted_faults.is_empty() {
        let _ = write!(
            out,
            "> This was a drill of the drill: on purpose the copy was given the fault {}.\n\n",
            cell(&facts.planted_faults.join(", "))
        );
    }
    if let Some(first) = verdict.reasons.first()
        && verdict.status != Status::Passed
    {
        let _ = write!(
            out,
            "{}: {} ({})\n\n",
            verdict.status,
            cell(&first.text),
            quoted(&first.code)
        );
    }
}

fn timing(out: &mut String, facts: &Facts) {
    heading(out, 2, "Timing");
    let not_reached = || "not measured: the drill ended before".to_string();
    let objective = facts
        .objectives
        .rto_seconds
        .map_or_else(|| "none set".into(), minutes);
    let finished = facts.finished_at;
    let total = finished.map(|end| {
        end.duration_since(facts.started_at)
            .as_millis()
            .max(0)
            .unsigned_abs() as u64
    });
    let rto = facts.rto.as_ref();
    let part =
        |value: fn(&drill::facts::Rto) -> u64| rto.map_or_else(not_reached, |rto| duration(value(rto)));
    let mut rows = vec![
        ["Drill start (UTC)".into(), clock(facts.started_at), "-".into()],
        [
            "Drill end (UTC)".into(),
            finished.map_or_else(not_reached, clock),
            "-".into(),
        ],
        [
            "Total duration".into(),
            total.map_or_else(not_reached, duration),
            "- (making the point and checks included)".into(),
        ],
        ["Restore duration".into(), part(|rto| rto.restore_ms), "-".into()],
        [
            "Service stabilization".into(),
            part(|rto| rto.start_ms.saturating_add(rto.replay_ms)),
            "- (start and replay)".into(),
        ],
        ["**RTO achieved**".into(), part(|rto| rto.total_ms), objective],
        ["of it: planning".into(), part(|rto| rto.plan_ms), "-".into()],
        ["of it: restore".into(), part(|rto| rto.restore_ms), "-".into()],
        ["of it: server start".into(), part(|rto| rto.start_ms), "-".into()],
        [
            "of it: replay to the target".into(),
            part(|rto| rto.replay_ms),
            "-".into(),
        ],
        [
            "Replay for the row proof".into(),
            part(|rto| rto.proof_replay_ms),
            "- (not part of the RTO)".into(),
        ],
        [
            "Checks".into(),
            part(|rto| rto.checks_ms),
            "- (not part of the RTO)".into(),
        ],
    ];
    let objective = facts
        .objectives
        .rpo_seconds
        .map_or_else(|| "none set".into(), minutes);
    rows.push(match &facts.rpo {
        Some(rpo) => {
            let seconds = rpo
                .seconds
                .map_or_else(|| "seconds unknown".into(), |seconds| format!("{seconds:.3} s"));
            let bound = if rpo.exact { "" } else { " (lower bounds)" };
            let value = format!(
                "{seconds}, {} commits, {} of WAL{bound}",
                rpo.commits,
                bytes(rpo.bytes)
            );
            ["**RPO achieved**".into(), value, objective]
        }
        None => ["**RPO achieved**".into(), rpo_missing(facts), objective],
    });
    table(out, ["Metric", "Value", "Target"], rows);
    let _ = write!(out, "The RTO's clock: {}.\n\n", drill::facts::Rto::DEFINITION);
    if let Some(rpo) = &facts.rpo {
        let _ = write!(out, "The RPO: {}.\n\n", cell(&rpo.method));
    }
}

fn rpo_missing(facts: &Facts) -> String {
    facts.check("rpo").map_or_else(
        || "not measured".into(),
        |check| cell(&format!("{}: {}", check.result, check.actual)),
    )
}

fn artifacts(out: &mut String, facts: &Facts) {
    heading(out, 2, "Backup Artifacts Used");
    let mut rows = Vec::new();
    match &facts.input {
        Some(input) => {
            rows.push([
                "Base backup".into(),
                quoted(&input.backup),
                format!("{} in {} files", bytes(input.bytes), input.files),
                age(input.backup_age_seconds),
            ]);
            let range = match (&input.first_wal_segment, &input.last_wal_segment) {
                (Some(first), Some(last)) => format!("{} to {}", quoted(first), quoted(last)),
                _ => "none was asked for".into(),
            };
            let size = format!("{} in {} segments", bytes(input.wal_bytes), input.wal_segments);
            rows.push(["WAL archive".into(), range, size, "-".into()]);
            rows.push([
                "Repository".into(),
                quoted(&input.repository),
                cell(&input.encryption),
                "-".into(),
            ]);
            let lsns = format!(
                "{} to {}, timeline {}",
                input.start_lsn, input.stop_lsn, input.timeline
            );
            rows.push(["Backup's LSNs".into(), quoted(&lsns), "-".into(), "-".into()]);
        }
        None => {
            let why = "none: the drill ended before a backup was chosen";
            rows.push(["Base backup".into(), why.into(), "-".into(), "-".into()]);
            rows.push(["WAL archive".into(), why.into(), "-".into(), "-".into()]);
        }
    }
    rows.push([
        "Recovery target".into(),
        quoted(&facts.target.requested),
        "-".into(),
        "-".into(),
    ]);
    table(out, ["Artifact", "Filename", "Size", "Age"], rows);
    heading(out, 3, "Stops");
    if facts.target.stops.is_empty() {
        out.push_str("No copy was started.\n\n");
        return;
    }
    let rows = facts.target.stops.iter().map(|stop| {
        let settings: Vec<String> = stop
            .settings
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        let outcome = match stop.outcome {
            StopOutcome::Paused => "paused there",
            StopOutcome::Promoted => "paused there, then promoted for a check",
            StopOutcome::Opened => "opened at the end of the archived WAL",
            StopOutcome::Failed => "not reached",
            StopOutcome::NotTried => "not tried",
        };
        let reached = stop
            .reached_lsn
            .map_or_else(|| "-".into(), |lsn| quoted(&lsn.to_string()));
        let line = stop.stop_line.as_deref().map_or_else(|| "-".into(), quoted);
        [
            cell(&stop.purpose),
            quoted(&settings.join(" ")),
            outcome.into(),
            reached,
            line,
            duration(stop.duration_ms),
        ]
    });
    table(
        out,
        [
            "Stop",
            "Settings",
            "Outcome",
            "Replayed to",
            "The server's own line",
            "Time",
        ],
        rows,
    );
}

fn health(out: &mut String, facts: &Facts) {
    heading(out, 3, "Health Checks");
    let application = |name: &str| {
        [
            name.to_string(),
            NO_APPLICATION.into(),
            NO_APPLICATION.into(),
            "N/A".into(),
        ]
    };
    let mut rows: Vec<[String; 4]> = [
        "`/healthz` status",
        "`/healthz` db_connected",
        "`/readyz` status",
        "`/readyz` migrations_current",
    ]
    .map(application)
    .into();
    let production = facts.scope.server_version.as_deref().map_or_else(
        || "not asked: a point of the past needs no session in production".into(),
        |version| format!("yes, PostgreSQL {}", cell(version)),
    );
    let (copy, pass) = match facts.check("target") {
        Some(check) => (cell(&check.actual), yes(check.result)),
        None => (
            "not reached: the drill ended before".into(),
            CheckResult::NotRun.to_string(),
        ),
    };
    rows.push(["PostgreSQL accepts sessions".into(), production, copy, pass]);
    table(out, ["Check", "Pre-Drill", "Post-Drill", "Pass"], rows);
}

fn data_integrity(out: &mut String, facts: &Facts) {
    heading(out, 3, "Data Integrity");
    match &facts.row_proof {
        Some(proof) if !proof.tables.is_empty() => {
            out.push_str(
                "Counts are those of production under its snapshot and of the copy at the same LSN; a row \
                 passes only if \
                 count and keyed digest of all rows are equal.\n\n",
            );
            sections::row_table(out, proof);
        }
        _ => {
            let why = facts.check("row-proof").map_or_else(
                || "not recorded".into(),
                |check| format!("{}: {}", check.result, check.actual),
            );
            table(
                out,
                ["Table", "Pre-Drill Count", "Post-Drill Count", "Variance", "Pass"],
                [[
                    "all tables".into(),
                    "-".into(),
                    "-".into(),
                    cell(&why),
                    CheckResult::NotRun.to_string(),
                ]],
            );
        }
    }
}

fn services(out: &mut String, facts: &Facts) {
    heading(out, 3, "Service Status");
    let up = facts
        .check("target")
        .map_or(CheckResult::NotRun, |check| check.result);
    let db = match up {
        CheckResult::Pass => "Up (the copy's own server, private socket), torn down after the checks".into(),
        other => format!("{other}: see Issues Encountered"),
    };
    let application = |name: &str| [name.to_string(), NO_APPLICATION.into(), "N/A".into()];
    table(
        out,
        ["Service", "Status", "Pass"],
        [
            ["db".into(), db, yes(up)],
            application("api"),
            application("web"),
            application("jobs"),
        ],
    );
}

fn smoke_tests(out: &mut String, facts: &Facts) {
    heading(out, 3, "Smoke Tests");
    let mut rows = vec![
        ["API health check".into(), NO_APPLICATION.into()],
        ["Web frontend check".into(), NO_APPLICATION.into()],
    ];
    let own = facts
        .checks
        .iter()
        .filter(|check| !OWN_CHECKS.contains(&check.id.as_str()));
    let before = rows.len();
    rows.extend(
        own.clone()
            .map(|check| [quoted(&check.id), check.result.to_string()]),
    );
    let overall = if rows.len() == before {
        "N/A: the profile has no checks of its own".into()
    } else if own.clone().all(|check| check.result == CheckResult::Pass) {
        "PASS".to_string()
    } else {
        own.map(|check| check.result)
            .max()
            .map_or_else(|| "-".into(), |worst| format!("{worst} (see Checks)"))
    };
    rows.push(["Overall".into(), overall]);
    table(out, ["Test", "Result"], rows);
}

fn reasons_of(verdict: &Verdict, take: impl Fn(Weight) -> bool) -> Vec<String> {
    let reasons = verdict.reasons.iter().filter(|reason| take(reason.weight));
    reasons
        .map(|reason| format!("{}: {}", quoted(&reason.code), reason.text))
        .collect()
}

fn issues(out: &mut String, facts: &Facts, verdict: &Verdict) {
    heading(out, 2, "Issues Encountered");
    let items = reasons_of(verdict, |weight| weight != Weight::Observation);
    list(out, &items);
    if let Some(failure) = &facts.failure {
        let hint = failure.hint.as_deref().unwrap_or("none recorded");
        table(
            out,
            ["The drill ended early", ""],
            [
                ["Step".into(), quoted(&failure.step)],
                ["Message".into(), cell(&failure.message)],
                ["Detail".into(), cell(failure.detail.as_deref().unwrap_or("-"))],
                ["Code".into(), quoted(&failure.error_code)],
                ["Hint".into(), cell(hint)],
            ],
        );
    }
}

fn observations(out: &mut String, facts: &Facts, verdict: &Verdict) {
    heading(out, 2, "Observations");
    let mut items = reasons_of(verdict, |weight| weight == Weight::Observation);
    if let Some(bracket) = &facts.bracket
        && bracket.attempts > 1
    {
        items.push(format!(
            "The point in production was made {} times; see the steps.",
            bracket.attempts
        ));
    }
    list(out, &items);
}

/// What follows from each reason, for whoever plans the week.
fn action(reason: &str) -> &'static str {
    match reason {
        code::WAL_MISSING => "Find the missing WAL, or take a new base backup today",
        code::OBJECT_DAMAGED => {
            "Run `pgproof verify`, restore the object from another copy, take a new base backup"
        }
        code::HISTORY_POISONED => {
            "Find out which copy archived its own timeline, and remove that history from the archive"
        }
        code::ROWS_DIFFER | code::ROWS_UNREADABLE | code::SEQUENCE_BEHIND => {
            "Escalate to the data's owner; compare the tables named above with a restore of the backup before"
        }
        code::PAGE_CHECKSUMS_BAD | code::AMCHECK_FAILED => {
            "Check production for the same damage with amcheck and pg_checksums"
        }
        code::RTO_EXCEEDED | code::RTO_AT_RISK => {
            "Shorten the recovery (more frequent backups, faster storage) or agree another objective"
        }
        code::RPO_EXCEEDED => "Lower archive_timeout, or find out why archiving lags",
        code::NOT_ARCHIVED => "Find out why archive_command fails; until then every commit is at risk",
        code::ARCHIVE_COMMAND_WOULD_RUN | code::ARCHIVE_CHANGED | code::QUARANTINE_BREACHED => {
            "Do not run another drill on this host before the isolation is repaired"
        }
        code::QUARANTINE_PARTIAL | code::QUARANTINE_CONFIGURATION_ONLY => {
            "Run drills on a kernel and under an account that allow every layer of isolation"
        }
        code::COLLATION_MISMATCH => {
            "Reindex after recovery on hosts with this library version, and say so in the runbook"
        }
        code::TARGET_UNREACHABLE | code::TARGET_NOT_REACHED | code::RECOVERY_STOPPED_EARLY => {
            "Find out why the target could not be reached, then drill again within two weeks"
        }
        _ => "Look into it and drill again",
    }
}

fn follow_ups(out: &mut String, facts: &Facts, verdict: &Verdict) {
    heading(out, 2, "Follow-Up Actions");
    let mut actions: Vec<&str> = Vec::new();
    for reason in &verdict.reasons {
        let action = action(&reason.code);
        if !actions.contains(&action) {
            actions.push(action);
        }
    }
    let unassigned = || "not assigned".to_string();
    let mut rows: Vec<[String; 4]> = actions
        .into_iter()
        .map(|action| [cell(action), unassigned(), unassigned(), "open".into()])
        .collect();
    if verdict.status == Status::Failed {
        // The process asks for a new drill within two weeks after a failed one.
        let due = facts.finished_at.unwrap_or(facts.started_at);
        let due = due
            .checked_add(jiff::SignedDuration::from_hours(14 * 24))
            .map_or_else(|_| unassigned(), day);
        rows.push([
            "Drill again after the fix".into(),
            unassigned(),
            due,
            "open".into(),
        ]);
    }
    if rows.is_empty() {
        rows.push(["None required".into(), "-".into(), "-".into(), "-".into()]);
    }
    table(out, ["Action", "Owner", "Due Date", "Status"], rows);
}

fn footer(out: &mut String, facts: &Facts) {
    let generated = facts
        .finished_at
        .unwrap_or(facts.started_at)
        .strftime("%Y-%m-%dT%H:%M:%SZ")
        .to_string();
    let next = facts.identity.next_due.map_or_else(
        || "not scheduled: the profile has no schedule".to_string(),
        |due| {
            let zoned = due.to_zoned(jiff::tz::TimeZone::UTC);
            format!("{} (Q{} {})", day(due), (zoned.month() - 1) / 3 + 1, zoned.year())
        },
    );
    let _ = write!(
        out,
        "---\n\n*Report generated: {generated}*\n*Next scheduled drill: {next}*\n"
    );
}
