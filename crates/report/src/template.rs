//! The first part of a report: the template that teams fill in by hand, heading by heading and column by column. What
//! a cell of the template asks for and this drill does not have, the cell says, and why.

use drill::facts::{Category, CheckDetail, CheckResult, Facts, HttpDetail, Measure, RowProof, Side};
use drill::sign_off::shown_status;
use drill::{Status, Verdict, Weight};

use crate::actions;
use crate::circumstances::Circumstances;
use crate::document::{Block, Document, Line, Text, said, value};
use crate::words::{age, between_ms, bytes, clock, day, duration, limit, quarter, yes};

/// Why the application's cells are empty.
const NO_APPLICATION: &str =
    "not applicable: the profile names no endpoint, and a copy in a sandbox is PostgreSQL alone";
/// Tables printed at most; those that do not pass come first.
const TABLES_MAX: usize = 500;

/// Appends the template.
pub fn write(out: &mut Document, facts: &Facts, verdict: &Verdict, beside: &Circumstances) {
    out.heading(1, "PITR Restore Drill Report");
    summary(out, facts, verdict, beside);
    timing(out, facts);
    artifacts(out, facts);
    out.heading(2, "Validation Results");
    health(out, facts);
    data_integrity(out, facts);
    services(out, facts);
    smoke_tests(out, facts);
    out.heading(2, "Issues Encountered");
    let weighty = |weight| weight != Weight::Observation;
    let mut issues = reasons(verdict, weighty);
    issues.extend(retries(facts));
    out.list(issues);
    out.heading(2, "Observations");
    out.list(reasons(verdict, |weight| weight == Weight::Observation));
    follow_ups(out, facts, verdict, beside);
    closing(out, facts, verdict);
}

fn bold(text: &str) -> Text {
    said(text).strong()
}

/// The status with its pointers: two people's signatures make it plain.
pub fn status(verdict: &Verdict, beside: &Circumstances) -> Text {
    let mut text = value(shown_status(verdict.status, &beside.signatures), "/verdict").strong();
    for signature in &beside.signatures {
        text = text.and(signature.file.clone());
    }
    text
}

pub fn person(name: Option<&str>, from: &str) -> Text {
    match name {
        Some(name) => value(name, from),
        None => value("not recorded: none was named for this run", from),
    }
}

fn summary(out: &mut Document, facts: &Facts, verdict: &Verdict, beside: &Circumstances) {
    out.heading(2, "Summary");
    let identity = &facts.identity;
    let people = &facts.people;
    out.table(
        &["Field", "Value"],
        [
            [
                bold("Drill ID"),
                value(&identity.drill_id, "/identity/drill_id").code(),
            ],
            [bold("Date (UTC)"), value(day(facts.started_at), "/started_at")],
            [bold("Status"), status(verdict, beside)],
            [
                bold("Environment"),
                value(&identity.environment, "/identity/environment"),
            ],
            [
                bold("Primary Operator"),
                person(people.operator.as_deref(), "/people/operator"),
            ],
            [
                bold("Secondary Reviewer"),
                person(people.reviewer.as_deref(), "/people/reviewer"),
            ],
        ],
    );
    if !facts.planted_faults.is_empty() {
        out.paragraph(vec![value(
            format!(
                "This was a drill of the drill: on purpose the copy was given the fault {}.",
                facts.planted_faults.join(", ")
            ),
            "/planted_faults",
        )]);
    }
    if verdict.status != Status::Passed
        && let Some(first) = reasons(verdict, |_| true).into_iter().next()
    {
        out.paragraph(first);
    }
}

/// A length of the recovery that was measured, or that it was not.
pub fn phase(facts: &Facts, name: &str, of: impl Fn(&drill::facts::Rto) -> u64) -> Text {
    match &facts.rto {
        Some(rto) => value(duration(of(rto)), format!("/rto/{name}")),
        None => value("not measured: the copy did not get there", "/rto"),
    }
}

/// The recovery time and its objective: by the strictest clock, or as older drills recorded it.
pub fn recovery_time(facts: &Facts) -> (Text, Text) {
    let clocks = || facts.clocks.iter().enumerate();
    let strictest = clocks().find(|(_, clock)| clock.measure == Measure::RecoveryTime);
    match strictest {
        Some((at, clock)) => {
            let measured = match clock.measured_ms {
                Some(ms) => value(duration(ms), format!("/clocks/{at}/measured_ms")),
                None => value(
                    "not measured: the copy did not get there",
                    format!("/clocks/{at}"),
                ),
            };
            let target = value(
                limit(clock.target_ms.div_ceil(1000)),
                format!("/clocks/{at}/target_ms"),
            );
            (measured, target)
        }
        None => {
            let from = "/objectives/rto_seconds";
            let target = match facts.objectives.rto_seconds {
                Some(seconds) => value(limit(seconds), from),
                None => value("none set", from),
            };
            (phase(facts, "total_ms", |rto| rto.total_ms), target)
        }
    }
}

/// The loss and its objective.
pub fn recovery_point(facts: &Facts) -> (Text, Text) {
    let from = "/objectives/rpo_seconds";
    let target = match facts.objectives.rpo_seconds {
        Some(seconds) => value(limit(seconds), from),
        None => value("none set", from),
    };
    let Some(rpo) = &facts.rpo else {
        let at = facts.checks.iter().position(|check| check.id == "rpo");
        let why = at.and_then(|at| Some((at, facts.checks.get(at)?)));
        let measured = match why {
            Some((at, check)) => value(
                format!("{}: {}", check.result, check.actual),
                format!("/checks/{at}/actual"),
            ),
            None => value("not measured", "/rpo"),
        };
        return (measured, target);
    };
    let seconds = rpo
        .seconds
        .map_or_else(|| "seconds unknown".into(), |seconds| format!("{seconds:.3} s"));
    let bound = if rpo.exact { "" } else { " (lower bounds)" };
    let text = format!(
        "{seconds}, {} commits, {} of WAL{bound}",
        rpo.commits,
        bytes(rpo.bytes)
    );
    let measured = value(text, "/rpo/seconds")
        .and("/rpo/commits")
        .and("/rpo/bytes")
        .and("/rpo/exact");
    (measured, target)
}

fn timing(out: &mut Document, facts: &Facts) {
    out.heading(2, "Timing");
    let ended = match facts.finished_at {
        Some(end) => value(clock(end), "/finished_at"),
        None => value("not recorded: the drill did not come to its end", "/finished_at"),
    };
    let total = match facts.finished_at {
        Some(end) => value(duration(between_ms(facts.started_at, end)), "/started_at").and("/finished_at"),
        None => value("not measured: the drill did not come to its end", "/finished_at"),
    };
    let (rto, rto_target) = recovery_time(facts);
    let (stabilised, stabilised_target) = stabilisation(facts);
    let whole = facts
        .clocks
        .iter()
        .position(|clock| clock.expression.ends_with("- drill-started"));
    let whole_target = match whole.and_then(|at| Some((at, facts.clocks.get(at)?))) {
        Some((at, clock)) => value(
            limit(clock.target_ms.div_ceil(1000)),
            format!("/clocks/{at}/target_ms"),
        ),
        None => said("- (the profile limits the recovery, not the drill with its checks)"),
    };
    let dash = || said("-");
    out.table(
        &["Metric", "Value", "Target"],
        [
            [
                said("Drill start (UTC)"),
                value(clock(facts.started_at), "/started_at"),
                dash(),
            ],
            [said("Drill end (UTC)"), ended, dash()],
            [said("Total duration"), total, whole_target],
            [
                said("Restore duration"),
                phase(facts, "restore_ms", |rto| rto.restore_ms),
                dash(),
            ],
            [said("Service stabilization"), stabilised, stabilised_target],
            [bold("RTO achieved"), rto.strong(), rto_target],
        ],
    );
}

/// From the restored directory to a server that answers at the target.
fn stabilisation(facts: &Facts) -> (Text, Text) {
    let at = facts.clocks.iter().position(|clock| clock.id == "stabilisation");
    if let Some((at, clock)) = at.and_then(|at| Some((at, facts.clocks.get(at)?))) {
        let measured = match clock.measured_ms {
            Some(ms) => value(duration(ms), format!("/clocks/{at}/measured_ms")),
            None => value(
                "not measured: the copy did not get there",
                format!("/clocks/{at}"),
            ),
        };
        let target = value(
            limit(clock.target_ms.div_ceil(1000)),
            format!("/clocks/{at}/target_ms"),
        );
        return (measured, target);
    }
    let measured = match &facts.rto {
        Some(rto) => value(
            format!(
                "{} (start and replay)",
                duration(rto.start_ms.saturating_add(rto.replay_ms))
            ),
            "/rto/start_ms",
        )
        .and("/rto/replay_ms"),
        None => value("not measured: the copy did not get there", "/rto"),
    };
    (measured, said("- (the profile sets no limit of its own for it)"))
}

fn artifacts(out: &mut Document, facts: &Facts) {
    out.heading(2, "Backup Artifacts Used");
    let dash = || said("-");
    let mut rows = Vec::new();
    match &facts.input {
        Some(input) => {
            rows.push([
                said("Base backup"),
                value(&input.backup, "/input/backup").code(),
                value(bytes(input.bytes), "/input/bytes"),
                value(age(input.backup_age_seconds), "/input/backup_age_seconds"),
            ]);
            let range = match (&input.first_wal_segment, &input.last_wal_segment) {
                (Some(first), Some(last)) => value(format!("{first} to {last}"), "/input/first_wal_segment")
                    .and("/input/last_wal_segment")
                    .code(),
                _ => value("none was asked for", "/input/wal_segments"),
            };
            let kept = facts.rpo.as_ref().and_then(|rpo| rpo.newest_kept_commit_at);
            let wal_age = match kept {
                Some(at) => value(
                    duration(between_ms(at, facts.started_at)),
                    "/rpo/newest_kept_commit_at",
                )
                .and("/started_at"),
                None => said("- (the time of its newest commit was not recorded)"),
            };
            let size = value(bytes(input.wal_bytes), "/input/wal_bytes");
            rows.push([said("WAL archive"), range, size, wal_age]);
        }
        None => {
            let why = || value("none: the drill ended before a backup was chosen", "/input");
            rows.push([said("Base backup"), why(), dash(), dash()]);
            rows.push([said("WAL archive"), why(), dash(), dash()]);
        }
    }
    rows.push([said("Recovery target"), target(facts).code(), dash(), dash()]);
    out.table(&["Artifact", "Filename", "Size", "Age"], rows);
}

/// The point as it was resolved, or as it was asked for.
pub fn target(facts: &Facts) -> Text {
    match facts.point.as_ref().and_then(|point| point.resolved.as_ref()) {
        Some(resolved) => value(resolved, "/point/resolved"),
        None => value(&facts.target.requested, "/target/requested"),
    }
}

/// Endpoints with the place of their check.
pub fn endpoints(facts: &Facts) -> impl Iterator<Item = (usize, CheckResult, &HttpDetail)> {
    facts
        .checks
        .iter()
        .enumerate()
        .filter_map(|(at, check)| match &check.detail {
            Some(CheckDetail::Http(http)) => Some((at, check.result, http)),
            _ => None,
        })
}

fn health(out: &mut Document, facts: &Facts) {
    out.heading(3, "Health Checks");
    let mut rows = Vec::new();
    let mut covered = Vec::new();
    for (at, result, http) in endpoints(facts) {
        let seen = |side: &Option<drill::facts::HttpSeen>, name: &str, what: Option<usize>| {
            let from = format!("/checks/{at}/detail");
            let Some(seen) = side else {
                return value("not asked", from);
            };
            let answer = match what {
                Some(index) => seen
                    .values
                    .get(index)
                    .map(|it| (it.clone(), format!("{from}/{name}/values/{index}"))),
                None => seen
                    .status
                    .map(|status| (status.to_string(), format!("{from}/{name}/status"))),
            };
            match answer {
                Some((text, from)) => value(text, from),
                None => value(
                    format!("no answer: {}", seen.error.as_deref().unwrap_or("none recorded")),
                    format!("{from}/{name}"),
                ),
            }
        };
        let mut row = |label: String, what: Option<usize>| {
            rows.push([
                value(label.clone(), format!("/checks/{at}/detail/path")),
                seen(&http.before, "before", what),
                seen(&http.after, "after", what),
                value(yes(result), format!("/checks/{at}/result")),
            ]);
            covered.push(label);
        };
        for (index, expectation) in http.values.iter().enumerate() {
            row(format!("{} {}", http.path, expectation.name), Some(index));
        }
        row(format!("{} HTTP status", http.path), None);
    }
    let template = [
        ("/healthz", "status"),
        ("/healthz", "db_connected"),
        ("/readyz", "status"),
        ("/readyz", "migrations_current"),
    ];
    for (path, name) in template {
        if !covered.contains(&format!("{path} {name}")) {
            let label = said(format!("`{path}` {name}"));
            rows.push([label, said(NO_APPLICATION), said(NO_APPLICATION), said("N/A")]);
        }
    }
    let from = "/scope/server_version";
    let production = match &facts.scope.server_version {
        Some(version) => value(format!("yes, PostgreSQL {version}"), from),
        None => value(
            "not asked: a point of the past needs no session in production",
            from,
        ),
    };
    let (copy, pass) = match of_check(facts, "target") {
        Some((at, check)) => (
            value(&check.actual, format!("/checks/{at}/actual")),
            value(yes(check.result), format!("/checks/{at}/result")),
        ),
        None => (
            value("not reached: the drill ended before", "/checks"),
            said(CheckResult::NotRun.as_str()),
        ),
    };
    rows.push([said("PostgreSQL accepts sessions"), production, copy, pass]);
    out.table(&["Check", "Pre-Drill", "Post-Drill", "Pass"], rows);
}

/// A check with its place.
pub fn of_check<'a>(facts: &'a Facts, id: &str) -> Option<(usize, &'a drill::facts::Check)> {
    facts.checks.iter().enumerate().find(|(_, check)| check.id == id)
}

const COUNT_COLUMNS: [&str; 5] = ["Table", "Pre-Drill Count", "Post-Drill Count", "Variance", "Pass"];

fn data_integrity(out: &mut Document, facts: &Facts) {
    out.heading(3, "Data Integrity");
    if let Some(proof) = facts.row_proof.as_ref().filter(|proof| !proof.tables.is_empty()) {
        out.say(
            "Counts are those of production under its snapshot and of the copy at the same LSN; a row passes only \
             if count and keyed digest of all rows are equal.",
        );
        row_table(out, proof);
        return;
    }
    let counts = facts
        .checks
        .iter()
        .enumerate()
        .find_map(|(at, check)| match &check.detail {
            Some(CheckDetail::RowCounts(counts)) => Some((at, counts)),
            _ => None,
        });
    if let Some((at, counts)) = counts {
        out.paragraph(vec![value(&counts.bound, format!("/checks/{at}/detail/bound"))]);
        let from = |index: usize, name: &str| format!("/checks/{at}/detail/tables/{index}/{name}");
        let count = |rows: Option<u64>, index: usize, name: &str| match rows {
            Some(rows) => value(rows.to_string(), from(index, name)),
            None => value("not counted", format!("/checks/{at}/detail/tables/{index}")),
        };
        let mut order: Vec<usize> = (0..counts.tables.len()).collect();
        order.sort_by_key(|index| {
            counts
                .tables
                .get(*index)
                .is_some_and(|it| it.result == CheckResult::Pass)
        });
        let rows = order.iter().take(TABLES_MAX).filter_map(|index| {
            let table = counts.tables.get(*index)?;
            let variance = match (table.before, table.after) {
                (Some(before), Some(after)) => value(
                    (i128::from(after) - i128::from(before)).to_string(),
                    from(*index, "before"),
                )
                .and(from(*index, "after")),
                _ => said("unknown"),
            };
            Some([
                value(
                    format!("{}.{}", table.database, table.table),
                    from(*index, "table"),
                )
                .code(),
                count(table.before, *index, "before"),
                count(table.after, *index, "after"),
                variance,
                value(yes(table.result), from(*index, "result")),
            ])
        });
        out.table(&COUNT_COLUMNS, rows);
        return;
    }
    let why = match of_check(facts, "row-proof") {
        Some((at, check)) => value(
            format!("{}: {}", check.result, check.actual),
            format!("/checks/{at}/actual"),
        ),
        None => value("not recorded", "/row_proof"),
    };
    let dash = || said("-");
    out.table(
        &COUNT_COLUMNS,
        [[
            said("all tables"),
            dash(),
            dash(),
            why,
            said(CheckResult::NotRun.as_str()),
        ]],
    );
}

fn row_table(out: &mut Document, proof: &RowProof) {
    let mut order: Vec<usize> = (0..proof.tables.len()).collect();
    order.sort_by_key(|at| {
        proof
            .tables
            .get(*at)
            .is_some_and(|it| it.result() == CheckResult::Pass)
    });
    let count = |side: &Side, at: usize, name: &str| {
        let from = format!("/row_proof/tables/{at}/{name}");
        match side {
            Side::Digest { rows, .. } => value(rows.to_string(), format!("{from}/digest/rows")),
            Side::Absent => value("absent", from),
            Side::Unreadable(state) => value(format!("unreadable (SQLSTATE {state})"), from),
            Side::CouldNotLook(why) => value(format!("could not look: {why}"), from),
        }
    };
    let rows = order.iter().take(TABLES_MAX).filter_map(|at| {
        let table = proof.tables.get(*at)?;
        let from = |name: &str| format!("/row_proof/tables/{at}/{name}");
        let variance = match (&table.production, &table.copy) {
            (Side::Digest { rows: a, digest: x }, Side::Digest { rows: b, digest: y }) => {
                let difference = i128::from(*b) - i128::from(*a);
                let text = if difference == 0 && x != y {
                    "0, but other content".into()
                } else {
                    difference.to_string()
                };
                value(text, from("production/digest")).and(from("copy/digest"))
            }
            _ => said("unknown"),
        };
        Some([
            value(format!("{}.{}", table.database, table.table), from("database"))
                .and(from("table"))
                .code(),
            count(&table.production, *at, "production"),
            count(&table.copy, *at, "copy"),
            variance,
            value(yes(table.result()), from("production")).and(from("copy")),
        ])
    });
    out.table(&COUNT_COLUMNS, rows);
    if proof.tables.len() > TABLES_MAX {
        let more = proof.tables.len() - TABLES_MAX;
        out.paragraph(vec![value(
            format!("{more} more tables, all equal, are listed in facts.json."),
            "/row_proof/tables",
        )]);
    }
}

fn services(out: &mut Document, facts: &Facts) {
    out.heading(3, "Service Status");
    let (db, pass) = match of_check(facts, "target") {
        Some((at, check)) => {
            let text = match check.result {
                CheckResult::Pass => {
                    "Up (the copy's own server, on a private socket), stopped after the checks".into()
                }
                other => format!("{other}: see Issues Encountered"),
            };
            let from = format!("/checks/{at}/result");
            (value(text, from.clone()), value(yes(check.result), from))
        }
        None => (
            value("NOT RUN: the drill ended before", "/checks"),
            said(CheckResult::NotRun.as_str()),
        ),
    };
    let mut rows = vec![[said("db"), db, pass]];
    for name in ["api", "web", "jobs"] {
        rows.push(service(facts, name));
    }
    out.table(&["Service", "Status", "Pass"], rows);
}

/// A part of the application: by a check of its name, or (`api`) by the endpoints that answered.
fn service(facts: &Facts, name: &str) -> [Text; 3] {
    let by_name = facts.checks.iter().enumerate().find(|(_, check)| {
        check.id == name
            || check
                .id
                .strip_prefix(name)
                .is_some_and(|rest| rest.starts_with('-') || rest.starts_with('_'))
    });
    let by_answer = || {
        let (at, _, _) = endpoints(facts).next().filter(|_| name == "api")?;
        Some((at, facts.checks.get(at)?))
    };
    let Some((at, check)) = by_name.or_else(by_answer) else {
        return [said(name), said(NO_APPLICATION), said("N/A")];
    };
    let text = match check.result {
        CheckResult::Pass => format!("Up ({}: {})", check.id, check.actual),
        result => format!("{result} ({}: {})", check.id, check.actual),
    };
    [
        said(name),
        value(text, format!("/checks/{at}/id")).and(format!("/checks/{at}/actual")),
        value(yes(check.result), format!("/checks/{at}/result")),
    ]
}

fn smoke_tests(out: &mut Document, facts: &Facts) {
    out.heading(3, "Smoke Tests");
    let result = |at: usize, result: CheckResult| value(result.as_str(), format!("/checks/{at}/result"));
    let worst = endpoints(facts).map(|(at, result, _)| (result, at)).max();
    let api = match worst {
        Some((it, at)) => result(at, it),
        None => said(NO_APPLICATION),
    };
    let web = match facts
        .checks
        .iter()
        .enumerate()
        .find(|(_, it)| it.id.starts_with("web"))
    {
        Some((at, check)) => result(at, check.result),
        None => said(NO_APPLICATION),
    };
    let mut rows = vec![[said("API health check"), api], [said("Web frontend check"), web]];
    let own: Vec<_> = facts
        .checks
        .iter()
        .enumerate()
        .filter(|(_, check)| is_own(check))
        .collect();
    rows.extend(own.iter().map(|(at, check)| {
        [
            value(&check.id, format!("/checks/{at}/id")).code(),
            result(*at, check.result),
        ]
    }));
    let overall = match own.iter().map(|(at, check)| (check.result, *at)).max() {
        None => said("N/A: the profile has no checks of its own"),
        Some((CheckResult::Pass, _)) => value("PASS", "/checks"),
        Some((worst, at)) => value(
            format!("{worst} (see Detailed Results)"),
            format!("/checks/{at}/result"),
        ),
    };
    rows.push([said("Overall"), overall]);
    out.table(&["Test", "Result"], rows);
}

/// Whether a check is the user's. Facts of older drills say no category.
fn is_own(check: &drill::facts::Check) -> bool {
    match check.category {
        Some(category) => matches!(category, Category::Application | Category::Performance),
        None => drill::checks::draft(&check.id).is_none() && !matches!(check.id.as_str(), "rto" | "rpo"),
    }
}

/// Reasons of the verdict as lines, with their places.
pub fn reasons(verdict: &Verdict, take: impl Fn(Weight) -> bool) -> Vec<Line> {
    let reasons = verdict
        .reasons
        .iter()
        .enumerate()
        .filter(|(_, reason)| take(reason.weight));
    reasons
        .map(|(at, reason)| {
            vec![
                value(&reason.code, format!("/reasons/{at}/code")).code(),
                value(&reason.text, format!("/reasons/{at}/text")),
            ]
        })
        .collect()
}

/// Tries that failed and were made again: issues, even if they are resolved.
fn retries(facts: &Facts) -> Vec<Line> {
    let mut lines = Vec::new();
    for (at, step) in facts.steps.iter().enumerate() {
        for (number, retry) in step.retries.iter().enumerate() {
            let from = format!("/steps/{at}/retries/{number}");
            lines.push(vec![
                value(&retry.error_code, format!("{from}/error_code")).code(),
                value(
                    format!("Step \"{}\" was tried again after: {}", step.title, retry.message),
                    format!("{from}/message"),
                )
                .and(format!("/steps/{at}/title")),
            ]);
        }
    }
    lines
}

/// What people entered, then what the verdict asks for and nobody has taken yet.
pub fn follow_ups(out: &mut Document, facts: &Facts, verdict: &Verdict, beside: &Circumstances) {
    out.heading(2, "Follow-Up Actions");
    let mut rows = Vec::new();
    for entry in &beside.follow_ups {
        let from = || entry.file();
        let state = match &entry.closed {
            Some(closed) => value(format!("closed by {}", closed.closed_by), from())
                .and(drill::follow_up::closed_file(entry.opened.number)),
            None => value("open", from()),
        };
        rows.push([
            value(&entry.opened.action, from()),
            value(&entry.opened.owner, from()),
            value(entry.opened.due.to_string(), from()),
            state,
        ]);
    }
    for action in actions::of(facts, verdict) {
        if beside
            .follow_ups
            .iter()
            .any(|entry| entry.opened.action == action.text)
        {
            continue;
        }
        let due = match action.due {
            Some(due) => value(day(due), "/finished_at"),
            None => said("not set"),
        };
        rows.push([
            action.said(),
            said("not assigned"),
            due,
            value("open", action.from),
        ]);
    }
    if rows.is_empty() {
        let dash = || said("-");
        rows.push([said("None required"), dash(), dash(), dash()]);
    }
    out.table(&["Action", "Owner", "Due Date", "Status"], rows);
}

fn closing(out: &mut Document, facts: &Facts, verdict: &Verdict) {
    let generated = facts.finished_at.unwrap_or(facts.started_at);
    let from = "/identity/next_due";
    let again = generated
        .checked_add(jiff::SignedDuration::from_hours(actions::REDRILL_DAYS * 24))
        .ok();
    let again = again.filter(|_| verdict.status == Status::Failed);
    let next = match facts.identity.next_due {
        due if again.is_some_and(|again| due.is_none_or(|due| again < due)) => {
            let again = again.unwrap_or(generated);
            let text = format!("Next scheduled drill: {} ({})", day(again), quarter(again));
            value(text, "/finished_at").and("/verdict")
        }
        Some(due) => value(
            format!("Next scheduled drill: {} ({})", day(due), quarter(due)),
            from,
        ),
        None => value(
            "Next scheduled drill: not scheduled: the profile has no schedule",
            from,
        ),
    };
    let generated = generated.strftime("%Y-%m-%dT%H:%M:%SZ");
    out.blocks.push(Block::Rule);
    out.blocks.push(Block::Closing(vec![
        vec![value(format!("Report generated: {generated}"), "/finished_at")],
        vec![next],
    ]));
}
