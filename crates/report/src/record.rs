//! The second part of a report: the full record that auditors know, heading by heading: scope, timeline, results, issues,
//! recommendations, compliance, sign-off.

use drill::facts::{
    CheckDetail, CheckResult, Facts, ManualFacts, ManualState, ManualWhen, StepFacts, StepOutcome,
};
use drill::{Verdict, Weight};

use crate::actions;
use crate::circumstances::Circumstances;
use crate::compliance;
use crate::document::{Document, Line, Text, said, value};
use crate::kinds_of_backup;
use crate::template::{endpoints, of_check, person, phase, recovery_point, recovery_time, status, target};
use crate::words::{age, between_ms, bytes, day, duration, instant, since};

/// Steps that come when the copy has served its purpose.
const AFTERWARDS: [&str; 3] = ["tear-down", "archive-after", "manual-after"];

/// Appends the record.
pub fn write(out: &mut Document, facts: &Facts, verdict: &Verdict, beside: &Circumstances) {
    out.blocks.push(crate::document::Block::NewPage);
    out.heading(1, "Disaster Recovery Restore Drill Report");
    out.list(vec![
        field(
            "Document ID",
            value(&facts.identity.drill_id, "/identity/drill_id").code(),
        ),
        field("Version", value(facts.version.to_string(), "/version")),
        field("Drill Date", value(day(facts.started_at), "/started_at")),
        field(
            "Owner",
            person(facts.people.operator.as_deref(), "/people/operator"),
        ),
        field(
            "Classification",
            said("internal: names of databases and tables, no rows, keys or passwords"),
        ),
    ]);
    summary(out, facts, verdict, beside);
    scope(out, facts, beside);
    timeline(out, facts, beside);
    results(out, facts);
    issues(out, facts, verdict);
    recommendations(out, facts, verdict, beside);
    compliance::compliance(out, facts, verdict, beside);
    compliance::appendix(out, facts);
}

fn field(name: &str, text: Text) -> Line {
    vec![said(format!("{name}:")).strong(), text]
}

/// The result of a check, or what follows from its absence.
fn result_of(facts: &Facts, id: &str) -> Text {
    match of_check(facts, id) {
        Some((at, check)) => value(check.result.as_str(), format!("/checks/{at}/result")),
        None => said(CheckResult::NotRun.as_str()),
    }
}

fn summary(out: &mut Document, facts: &Facts, verdict: &Verdict, beside: &Circumstances) {
    out.heading(2, "1. Executive Summary");
    let what = format!(
        "Cluster {} was recovered from backup {} into a quarantined copy, to {}, and looked at by {} checks.",
        facts.scope.cluster,
        facts
            .input
            .as_ref()
            .map_or("(none was chosen)", |input| input.backup.as_str()),
        target(facts).text,
        facts.checks.len()
    );
    out.paragraph(vec![
        value(what, "/scope/cluster")
            .and("/input")
            .and("/target/requested")
            .and("/checks"),
    ]);
    out.heading_of(3, vec![said("1.1 Drill Outcome:"), status(verdict, beside)]);
    let (rto, rto_target) = recovery_time(facts);
    let (rpo, rpo_target) = recovery_point(facts);
    out.table(
        &["Metric", "Target", "Actual", "Status"],
        [
            [
                said("RTO (Recovery Time Objective)"),
                rto_target,
                rto,
                result_of(facts, "rto"),
            ],
            [
                said("RPO (Recovery Point Objective)"),
                rpo_target,
                rpo,
                result_of(facts, "rpo"),
            ],
            integrity(facts),
            restoration(facts),
        ],
    );
}

fn integrity(facts: &Facts) -> [Text; 4] {
    let name = said("Data Integrity");
    let target = said("every table equal at one LSN");
    match &facts.row_proof {
        Some(proof) if !proof.tables.is_empty() => {
            let equal = proof
                .tables
                .iter()
                .filter(|it| it.result() == CheckResult::Pass)
                .count();
            let text = format!("{equal} of {} tables equal", proof.tables.len());
            [
                name,
                target,
                value(text, "/row_proof/tables"),
                result_of(facts, "row-proof"),
            ]
        }
        _ => match of_check(facts, "row-proof") {
            Some((at, check)) => {
                let text = value(&check.actual, format!("/checks/{at}/actual"));
                [name, target, text, result_of(facts, "row-proof")]
            }
            None => [
                name,
                target,
                said("not asked for by the profile"),
                said(CheckResult::NotRun.as_str()),
            ],
        },
    }
}

fn restoration(facts: &Facts) -> [Text; 4] {
    let actual = match of_check(facts, "target") {
        Some((at, check)) => value(&check.actual, format!("/checks/{at}/actual")),
        None => value("the copy did not get there", "/checks"),
    };
    [
        said("Service Restoration"),
        said("PostgreSQL answers at the target"),
        actual,
        result_of(facts, "target"),
    ]
}

fn scope(out: &mut Document, facts: &Facts, beside: &Circumstances) {
    out.heading(2, "2. Drill Scope");
    out.heading(3, "2.1 Systems Tested");
    let version = facts
        .scope
        .server_version
        .as_deref()
        .or(facts.scope.copy_server_version.as_deref());
    let from = match facts.scope.server_version {
        Some(_) => "/scope/server_version",
        None => "/scope/copy_server_version",
    };
    let system = format!(
        "PostgreSQL {} ({}, system {})",
        version.unwrap_or("of unknown version"),
        facts.scope.cluster,
        facts.scope.system_identifier
    );
    let place = match &facts.input {
        Some(input) => value(&input.repository, "/input/repository").code(),
        None => value("none: the drill ended before a backup was chosen", "/input"),
    };
    let outside = |name: &str| {
        [
            said(name),
            said("not pgproof's to back up"),
            said("N/A: a drill in a sandbox is PostgreSQL alone"),
            said("N/A"),
        ]
    };
    out.table(
        &["System", "Backup Type", "Backup Location", "Frequency"],
        [
            [
                value(system, from)
                    .and("/scope/cluster")
                    .and("/scope/system_identifier"),
                said("Point-in-time (base backup and WAL)"),
                place,
                said("WAL continuously; base backups by the timer of the installation"),
            ],
            outside("File storage, cache, configuration, secrets"),
        ],
    );
    if !facts.scope.databases.is_empty() {
        let names = format!(
            "Databases whose rows were proved: {}.",
            facts.scope.databases.join(", ")
        );
        out.paragraph(vec![value(names, "/scope/databases")]);
    }
    out.heading(3, "2.2 Drill Type");
    out.list(vec![
        field("Profile", value(&facts.identity.profile, "/identity/profile")),
        field("Scenario", value(&facts.identity.scenario, "/identity/scenario")),
        field("Trigger", value(&facts.identity.trigger, "/identity/trigger")),
        field(
            "Environment",
            value(&facts.identity.environment, "/identity/environment"),
        ),
        field(
            "Kind",
            said("component: one PostgreSQL cluster, restored for real beside production"),
        ),
    ]);
    out.heading(3, "2.3 Participants");
    let people = &facts.people;
    let mut rows = vec![
        [
            said("Primary Operator (drill lead)"),
            person(people.operator.as_deref(), "/people/operator"),
            said("Runs the drill, documents results"),
        ],
        [
            said("Secondary Reviewer"),
            person(people.reviewer.as_deref(), "/people/reviewer"),
            said("Observes, validates, signs"),
        ],
    ];
    for (at, other) in people.others.iter().enumerate() {
        rows.push([
            value(&other.role, format!("/people/others/{at}/role")),
            value(&other.name, format!("/people/others/{at}/name")),
            match actions::called(other) {
                Some(when) => value(
                    format!("Called {when}"),
                    format!("/people/others/{at}/called_after_seconds"),
                ),
                None => said("As agreed"),
            },
        ]);
    }
    if people.others.is_empty() {
        rows.push([
            said("Escalation, DBA, Platform, QA, Observer"),
            value("not recorded: none was named for this run", "/people"),
            said("On call"),
        ]);
    }
    out.table(&["Role", "Name", "Responsibility"], rows);
    let _ = beside;
}

fn step_row(facts: &Facts, at: usize, step: &StepFacts) -> [Text; 4] {
    let words = match step.outcome {
        StepOutcome::Done => "Completed",
        StepOutcome::Failed => "Failed",
        StepOutcome::Skipped => "Not tried",
    };
    let mut state = value(words, format!("/steps/{at}/outcome"));
    if let Some(detail) = &step.detail {
        state = value(format!("{words}: {detail}"), format!("/steps/{at}/outcome"))
            .and(format!("/steps/{at}/detail"));
    }
    [
        value(
            since(facts.started_at, step.started_at),
            format!("/steps/{at}/started_at"),
        )
        .and("/started_at"),
        value(&step.title, format!("/steps/{at}/title")),
        value(duration(step.duration_ms), format!("/steps/{at}/duration_ms")),
        state,
    ]
}

/// What people did at this time of the drill: when, what, how long it took from the asking, and who said so.
fn by_hand(facts: &Facts, when: ManualWhen) -> Vec<[Text; 4]> {
    let steps = facts.manual.iter().enumerate();
    steps
        .filter(|(_, step)| step.when == when)
        .map(|(at, step)| {
            let from = |name: &str| format!("/manual/{at}/{name}");
            let time = match (step.at, step.asked_at) {
                (Some(said), _) => value(instant(said), from("at")),
                (None, Some(asked)) => value(instant(asked), from("asked_at")),
                (None, None) => value("not asked", from("asked_at")),
            };
            let need = if step.required { "required" } else { "not required" };
            let what =
                value(format!("{} (by hand, {need})", step.title), from("title")).and(from("required"));
            [time, what, waited(step, at), said_by(step, at)]
        })
        .collect()
}

/// How long the drill waited for people.
fn waited(step: &ManualFacts, at: usize) -> Text {
    let from = |name: &str| format!("/manual/{at}/{name}");
    match (step.asked_at, step.at) {
        // Confirmed beforehand: nobody waited.
        (Some(asked), Some(said)) => {
            value(duration(between_ms(asked, said)), from("asked_at")).and(from("at"))
        }
        (Some(_), None) => value(format!("at most {}", duration(step.limit_ms)), from("limit_ms")),
        (None, _) => value("-", from("asked_at")),
    }
}

fn said_by(step: &ManualFacts, at: usize) -> Text {
    let from = |name: &str| format!("/manual/{at}/{name}");
    let by = step.by.as_deref().unwrap_or("nobody");
    let why = step.why.as_deref().unwrap_or("no reason is recorded");
    match step.state {
        ManualState::Confirmed if step.is_confirmed() => {
            value(format!("Confirmed by {by}"), from("state")).and(from("by"))
        }
        ManualState::Confirmed => {
            value("Not confirmed: no name or no time is recorded", from("state")).and(from("by"))
        }
        ManualState::Skipped => value(format!("Skipped by {by}: {why}"), from("state"))
            .and(from("by"))
            .and(from("why")),
        ManualState::NotConfirmed => value(format!("Not confirmed: {why}"), from("state")).and(from("why")),
    }
}

/// Without the column for the length.
fn narrow(row: [Text; 4]) -> [Text; 3] {
    let [time, what, _, state] = row;
    [time, what, state]
}

fn timeline(out: &mut Document, facts: &Facts, beside: &Circumstances) {
    out.heading(2, "3. Drill Timeline");
    out.heading(3, "3.1 Preparation Phase (before T-0)");
    let mut rows = Vec::new();
    if let Some(registration) = &facts.registration {
        rows.push([
            value(instant(registration.registered_at), "/registration/registered_at"),
            value(format!("Registered as {}", registration.id), "/registration/id"),
            match registration.deviations.is_empty() {
                true => value("Completed: the run kept to it", "/registration"),
                false => value(
                    format!("Deviations: {}", registration.deviations.join("; ")),
                    "/registration/deviations",
                ),
            },
        ]);
    }
    for (at, gate) in facts.gates.iter().enumerate() {
        rows.push([
            said("before T-0"),
            value(
                format!("{} ({})", gate.title, gate.limit),
                format!("/gates/{at}/title"),
            )
            .and(format!("/gates/{at}/limit")),
            value(
                format!("{}: {}", gate.result, gate.actual),
                format!("/gates/{at}/result"),
            )
            .and(format!("/gates/{at}/actual")),
        ]);
    }
    if rows.is_empty() {
        rows.push([
            said("before T-0"),
            said("Gates"),
            said("none are recorded for this drill"),
        ]);
    }
    rows.extend(by_hand(facts, ManualWhen::Before).into_iter().map(narrow));
    rows.push([
        said("T-0"),
        said("Drill begins"),
        value(format!("Started at {}", instant(facts.started_at)), "/started_at"),
    ]);
    out.table(&["Time", "Action", "Status"], rows);

    out.heading(3, "3.2 Execution Phase (from T-0)");
    let steps = || facts.steps.iter().enumerate();
    let rows = steps()
        .filter(|(_, step)| !AFTERWARDS.contains(&step.id.as_str()))
        .map(|(at, step)| step_row(facts, at, step));
    let rows = rows.chain(by_hand(facts, ManualWhen::AtTarget));
    out.table(&["Time", "Action", "Duration", "Status"], rows);

    out.heading(3, "3.3 Post-Drill Phase");
    let mut rows: Vec<[Text; 3]> = steps()
        .filter(|(_, step)| AFTERWARDS.contains(&step.id.as_str()))
        .map(|(at, step)| narrow(step_row(facts, at, step)))
        .collect();
    rows.extend(by_hand(facts, ManualWhen::After).into_iter().map(narrow));
    for signature in &beside.signatures {
        rows.push([
            value(instant(signature.signed_at), signature.file.clone()),
            value(
                format!("Signed by {} as {}", signature.signer, signature.role),
                signature.file.clone(),
            ),
            said("Completed"),
        ]);
    }
    if rows.is_empty() {
        rows.push([
            said("-"),
            said("None"),
            said("the drill ended before a copy was made"),
        ]);
    }
    out.table(&["Time", "Action", "Status"], rows);
}

fn results(out: &mut Document, facts: &Facts) {
    out.heading(2, "4. Detailed Results");
    out.heading(3, "4.1 Database Restoration");
    match &facts.input {
        Some(input) => out.list(vec![
            field(
                "Backup Type",
                said("point-in-time recovery: a base backup and the WAL behind it"),
            ),
            field(
                "Backup Source",
                value(&input.repository, "/input/repository").code(),
            ),
            field(
                "Backup Size",
                value(
                    format!("{} in {} files", bytes(input.bytes), input.files),
                    "/input/bytes",
                )
                .and("/input/files"),
            ),
            field(
                "Backup Age",
                value(
                    format!(
                        "{} ({} to {})",
                        age(input.backup_age_seconds),
                        instant(input.backup_started_at),
                        instant(input.backup_finished_at)
                    ),
                    "/input/backup_age_seconds",
                )
                .and("/input/backup_started_at")
                .and("/input/backup_finished_at"),
            ),
            field(
                "Backup LSNs",
                value(
                    format!(
                        "{} to {}, timeline {}",
                        input.start_lsn, input.stop_lsn, input.timeline
                    ),
                    "/input/start_lsn",
                )
                .and("/input/stop_lsn")
                .and("/input/timeline")
                .code(),
            ),
            field(
                "WAL",
                value(
                    format!("{} in {} segments", bytes(input.wal_bytes), input.wal_segments),
                    "/input/wal_bytes",
                )
                .and("/input/wal_segments"),
            ),
            field("Encryption", value(&input.encryption, "/input/encryption")),
        ]),
        None => out.paragraph(vec![value(
            "None: the drill ended before a backup was chosen.",
            "/input",
        )]),
    }
    match &facts.plan {
        Some(plan) => {
            out.paragraph(vec![
                said("The plan, as `pgproof restore --dry-run` prints it; its BLAKE3:"),
                value(&plan.digest, "/plan/digest").code(),
            ]);
            out.lines(plan.text.lines().map(str::to_string).collect(), "/plan/text");
        }
        None => out.paragraph(vec![value("No plan was made: the drill ended before.", "/plan")]),
    }
    let metrics = [
        ("Planning", phase(facts, "plan_ms", |rto| rto.plan_ms)),
        (
            "Download, verification and writing of the data directory",
            phase(facts, "restore_ms", |rto| rto.restore_ms),
        ),
        ("Server start", phase(facts, "start_ms", |rto| rto.start_ms)),
        (
            "Replay to the target",
            phase(facts, "replay_ms", |rto| rto.replay_ms),
        ),
        (
            "Total database recovery",
            phase(facts, "total_ms", |rto| rto.total_ms),
        ),
        (
            "Replay for the row proof (not part of the recovery)",
            phase(facts, "proof_replay_ms", |rto| rto.proof_replay_ms),
        ),
        (
            "Checks (not part of the recovery)",
            phase(facts, "checks_ms", |rto| rto.checks_ms),
        ),
    ];
    out.table(
        &["Metric", "Value"],
        metrics.map(|(name, text)| [said(name), text]),
    );
    kinds_of_backup::write(out, facts);

    out.heading(3, "4.2 Application Restoration");
    let mut rows: Vec<[Text; 3]> = endpoints(facts)
        .map(|(at, result, http)| {
            let ready = match &http.after {
                Some(seen) => value(
                    format!("{} tries", seen.tries),
                    format!("/checks/{at}/detail/after/tries"),
                ),
                None => said("-"),
            };
            [
                value(&http.path, format!("/checks/{at}/detail/path")).code(),
                ready,
                value(result.as_str(), format!("/checks/{at}/result")),
            ]
        })
        .collect();
    if rows.is_empty() {
        let why = "N/A: the profile names no endpoint, and a copy in a sandbox is PostgreSQL alone";
        rows.push([said("Application"), said(why), said("N/A")]);
    }
    out.table(&["Component", "Deploy Time", "Healthy Pods"], rows);

    out.heading(3, "4.3 Data Integrity Verification");
    let rows = facts.checks.iter().enumerate().map(|(at, check)| {
        let state = match &check.reason {
            Some(reason) => value(
                format!("{} ({reason})", check.result),
                format!("/checks/{at}/result"),
            )
            .and(format!("/checks/{at}/reason")),
            None => value(check.result.as_str(), format!("/checks/{at}/result")),
        };
        [
            value(&check.id, format!("/checks/{at}/id")).code(),
            value(&check.expected, format!("/checks/{at}/expected")),
            value(&check.actual, format!("/checks/{at}/actual")),
            state,
        ]
    });
    let rows: Vec<_> = rows.collect();
    if rows.is_empty() {
        out.paragraph(vec![value(
            "No check was made: the drill ended before.",
            "/checks",
        )]);
    }
    out.table(&["Check", "Expected", "Actual", "Status"], rows);
    let definitions = facts.checks.iter().enumerate().map(|(at, check)| {
        vec![
            value(&check.id, format!("/checks/{at}/id")).code(),
            value(
                format!("{} ({})", check.definition, duration(check.duration_ms)),
                format!("/checks/{at}/definition"),
            )
            .and(format!("/checks/{at}/duration_ms")),
        ]
    });
    out.say("What each check looks at, and how long it took:");
    out.list(definitions.collect());
    tests(out, facts);
}

fn tests(out: &mut Document, facts: &Facts) {
    out.heading(3, "4.4 Functionality Testing");
    let mut rows = Vec::new();
    let (mut run, mut passed, mut failed) = (0u64, 0u64, 0u64);
    for (at, check) in facts.checks.iter().enumerate() {
        let Some(CheckDetail::Junit(junit)) = &check.detail else {
            continue;
        };
        for (index, category) in junit.categories.iter().enumerate() {
            let from = |name: &str| format!("/checks/{at}/detail/categories/{index}/{name}");
            run += u64::from(category.run);
            passed += u64::from(category.passed);
            failed += u64::from(category.failed);
            rows.push([
                value(&category.name, from("name")),
                value(category.run.to_string(), from("run")),
                value(category.passed.to_string(), from("passed")),
                value(category.failed.to_string(), from("failed")),
            ]);
        }
    }
    if rows.is_empty() {
        let why = "N/A: the profile brings no results of an application's tests";
        rows.push([said(why), said("-"), said("-"), said("-")]);
    } else {
        let total = |number: u64| value(number.to_string(), "/checks").strong();
        rows.push([said("Total").strong(), total(run), total(passed), total(failed)]);
    }
    out.table(&["Test Category", "Tests Run", "Passed", "Failed"], rows);
    let mut rows = Vec::new();
    for (at, check) in facts.checks.iter().enumerate() {
        let Some(CheckDetail::Latency(latency)) = &check.detail else {
            continue;
        };
        let from = |name: &str| format!("/checks/{at}/detail/{name}");
        rows.push([
            value(&latency.what, from("what")).code(),
            value(format!("< {:.0}ms", latency.limit_ms), from("limit_ms")),
            value(format!("{:.1}ms", latency.p95_ms), from("p95_ms")),
            value(check.result.as_str(), format!("/checks/{at}/result")),
        ]);
    }
    if rows.is_empty() {
        let why = "N/A: the profile names no endpoint or query to be measured";
        rows.push([said(why), said("-"), said("-"), said("N/A")]);
    }
    out.table(&["Endpoint", "Target p95", "Actual p95", "Status"], rows);
}

fn issues(out: &mut Document, facts: &Facts, verdict: &Verdict) {
    out.heading(2, "5. Issues Identified");
    out.heading(3, "5.1 Minor Issues (Did Not Impact RTO)");
    let mut rows = Vec::new();
    for (at, step) in facts.steps.iter().enumerate() {
        for (number, retry) in step.retries.iter().enumerate() {
            let from = |name: &str| format!("/steps/{at}/retries/{number}/{name}");
            rows.push([
                value(&retry.message, from("message")),
                value(
                    format!("{} were lost", duration(retry.duration_ms)),
                    from("duration_ms"),
                ),
                match step.outcome {
                    StepOutcome::Done => value("The next try succeeded", format!("/steps/{at}/outcome")),
                    _ => value("None: the step failed in the end", format!("/steps/{at}/outcome")),
                },
                said("Find the cause"),
            ]);
        }
    }
    let issue = |at: usize| {
        let reason = verdict.reasons.get(at)?;
        let weight = match reason.weight {
            Weight::Failure => "FAILED: recovery is not proven",
            Weight::Abort => "ABORTED: somebody stopped the drill",
            Weight::Doubt => "INCONCLUSIVE: nobody can tell",
            Weight::Observation => "None on the verdict but an observation",
        };
        let action = actions::of(
            facts,
            &Verdict {
                status: verdict.status,
                reasons: vec![reason.clone()],
            },
        );
        Some([
            value(&reason.text, format!("/reasons/{at}/text")),
            value(weight, format!("/reasons/{at}/weight")),
            said("Open"),
            value(
                action.first().map_or("-", |action| action.text.as_str()),
                format!("/reasons/{at}/code"),
            ),
        ])
    };
    let of = |take: fn(Weight) -> bool| {
        let all = verdict.reasons.iter().enumerate();
        all.filter(move |(_, reason)| take(reason.weight))
            .filter_map(|(at, _)| issue(at))
    };
    rows.extend(of(|weight| weight == Weight::Observation));
    if rows.is_empty() {
        rows.push([said("None"), said("-"), said("-"), said("-")]);
    }
    const COLUMNS: [&str; 4] = ["Issue", "Impact", "Resolution", "Action Item"];
    out.table(&COLUMNS, rows);
    out.heading(3, "5.2 Observations");
    out.list(crate::template::reasons(verdict, |weight| {
        weight == Weight::Observation
    }));
    out.heading(3, "5.3 Issues That Decided the Verdict");
    let mut rows: Vec<_> = of(|weight| weight != Weight::Observation).collect();
    if rows.is_empty() {
        rows.push([said("None"), said("-"), said("-"), said("-")]);
    }
    out.table(&COLUMNS, rows);
    if let Some(failure) = &facts.failure {
        let from = |name: &str| format!("/failure/{name}");
        let or_dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "none recorded".into());
        out.say("The drill ended early:");
        out.table(
            &["Part", "Value"],
            [
                [said("Step"), value(&failure.step, from("step")).code()],
                [said("Message"), value(&failure.message, from("message"))],
                [said("Detail"), value(or_dash(&failure.detail), from("detail"))],
                [
                    said("Code"),
                    value(&failure.error_code, from("error_code")).code(),
                ],
                [said("Hint"), value(or_dash(&failure.hint), from("hint"))],
            ],
        );
    }
    // After an early end the heaviest reason alone: the others follow from it.
    let most = if facts.failure.is_some() { 1 } else { usize::MAX };
    let mut told = Vec::new();
    let decided = verdict
        .reasons
        .iter()
        .filter(|reason| reason.weight != Weight::Observation);
    for reason in decided.take(most) {
        let help = actions::troubleshooting(reason, facts);
        if !told.contains(&help) {
            told.push(help);
            out.paragraph(vec![said(format!("Where to look first: {help}."))]);
        }
    }
}

fn recommendations(out: &mut Document, facts: &Facts, verdict: &Verdict, beside: &Circumstances) {
    out.heading(2, "6. Recommendations");
    out.heading(3, "6.1 Immediate Actions (Before Next Drill)");
    let mut rows = Vec::new();
    for action in actions::of(facts, verdict) {
        let entry = beside
            .follow_ups
            .iter()
            .find(|entry| entry.opened.action == action.text);
        let (owner, due) = match (entry, action.due) {
            (Some(entry), _) => (
                value(&entry.opened.owner, entry.file()),
                value(entry.opened.due.to_string(), entry.file()),
            ),
            (None, Some(due)) => (said("not assigned"), value(day(due), "/finished_at")),
            (None, None) => (said("not assigned"), said("not set")),
        };
        rows.push([said(action.priority), action.said(), owner, due]);
    }
    if rows.is_empty() {
        rows.push([said("-"), said("None"), said("-"), said("-")]);
    }
    out.table(&["Priority", "Action", "Owner", "Due Date"], rows);
    out.heading(3, "6.2 Long-Term Improvements");
    let mut rows = Vec::new();
    if let Some(rto) = facts.rto.as_ref().filter(|rto| rto.total_ms > 0) {
        let phases = [
            ("plan_ms", "planning", rto.plan_ms),
            (
                "restore_ms",
                "writing the data directory (storage, threads, a nearer copy)",
                rto.restore_ms,
            ),
            ("start_ms", "starting the server", rto.start_ms),
            (
                "replay_ms",
                "replay (more frequent base backups leave less WAL)",
                rto.replay_ms,
            ),
        ];
        if let Some((name, what, ms)) = phases.into_iter().max_by_key(|(_, _, ms)| *ms) {
            let share = ms.saturating_mul(100) / rto.total_ms;
            rows.push([
                said(format!("Shorten the longest phase: {what}")),
                value(
                    format!("It takes {share} % of the recovery"),
                    format!("/rto/{name}"),
                )
                .and("/rto/total_ms"),
                said("a person's to estimate"),
                said("Medium"),
            ]);
        }
    }
    if facts.people.reviewer.is_none() {
        rows.push([
            value("Name a reviewer for each run", "/people/reviewer"),
            said("A second pair of eyes, and a signed result"),
            said("Low"),
            said("High"),
        ]);
    }
    if rows.is_empty() {
        rows.push([said("None"), said("-"), said("-"), said("-")]);
    }
    out.table(&["Improvement", "Benefit", "Effort", "Priority"], rows);
}
