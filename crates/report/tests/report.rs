//! Claims about the report, made of facts that real drills recorded (`tests/facts`; only paths were shortened).

use drill::facts::{ManualFacts, ManualState, ManualWhen};
use drill::{Facts, Status, Verdict, judge};
use report::Circumstances;
use serde_json::Value;

fn facts(name: &str) -> Facts {
    let path = format!("{}/tests/facts/{name}.json", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).expect("the facts of a drill");
    serde_json::from_str(&text).expect("facts that this version reads")
}

fn judged(name: &str) -> (Facts, Verdict) {
    let facts = facts(name);
    let verdict = judge(&facts);
    (facts, verdict)
}

fn report(name: &str) -> (Status, String) {
    let (facts, verdict) = judged(name);
    (
        verdict.status,
        report::markdown(&facts, &verdict, &Circumstances::default()),
    )
}

/// Without the marks that name sources.
fn unmarked(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find("[^") {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let end = rest.find(']').map_or(rest.len(), |end| end + 1);
        rest = &rest[end..];
    }
    out.push_str(rest);
    out
}

const ALL: [&str; 4] = ["passed", "wal-missing", "past-point", "rows-differ"];

/// The drill report template that teams fill in by hand: its headings and the columns of its tables, in its order.
const TEMPLATE: [&str; 20] = [
    "# PITR Restore Drill Report",
    "## Summary",
    "| Field | Value |",
    "## Timing",
    "| Metric | Value | Target |",
    "## Backup Artifacts Used",
    "| Artifact | Filename | Size | Age |",
    "## Validation Results",
    "### Health Checks",
    "| Check | Pre-Drill | Post-Drill | Pass |",
    "### Data Integrity",
    "| Table | Pre-Drill Count | Post-Drill Count | Variance | Pass |",
    "### Service Status",
    "| Service | Status | Pass |",
    "### Smoke Tests",
    "| Test | Result |",
    "## Issues Encountered",
    "## Observations",
    "## Follow-Up Actions",
    "| Action | Owner | Due Date | Status |",
];

/// Its rows that have a fixed name, with their table's place among [`TEMPLATE`].
const TEMPLATE_ROWS: [&str; 24] = [
    "**Drill ID**",
    "**Date (UTC)**",
    "**Status**",
    "**Environment**",
    "**Primary Operator**",
    "**Secondary Reviewer**",
    "Drill start (UTC)",
    "Drill end (UTC)",
    "Total duration",
    "Restore duration",
    "Service stabilization",
    "**RTO achieved**",
    "Base backup",
    "WAL archive",
    "Recovery target",
    "`/healthz` status",
    "`/healthz` db_connected",
    "`/readyz` status",
    "`/readyz` migrations_current",
    "db",
    "api",
    "web",
    "jobs",
    "Overall",
];

/// The full report that auditors know, likewise.
const RECORD: [&str; 59] = [
    "# Disaster Recovery Restore Drill Report",
    "**Document ID:**",
    "**Version:**",
    "**Drill Date:**",
    "**Owner:**",
    "## 1. Executive Summary",
    "### 1.1 Drill Outcome:",
    "| Metric | Target | Actual | Status |",
    "| RTO (Recovery Time Objective) |",
    "| RPO (Recovery Point Objective) |",
    "| Data Integrity |",
    "| Service Restoration |",
    "## 2. Drill Scope",
    "### 2.1 Systems Tested",
    "| System | Backup Type | Backup Location | Frequency |",
    "### 2.2 Drill Type",
    "### 2.3 Participants",
    "| Role | Name | Responsibility |",
    "## 3. Drill Timeline",
    "### 3.1 Preparation Phase",
    "| Time | Action | Status |",
    "### 3.2 Execution Phase",
    "| Time | Action | Duration | Status |",
    "### 3.3 Post-Drill Phase",
    "| Time | Action | Status |",
    "## 4. Detailed Results",
    "### 4.1 Database Restoration",
    "| Metric | Value |",
    "| Total database recovery |",
    "### 4.2 Application Restoration",
    "| Component | Deploy Time | Healthy Pods |",
    "### 4.3 Data Integrity Verification",
    "| Check | Expected | Actual | Status |",
    "### 4.4 Functionality Testing",
    "| Test Category | Tests Run | Passed | Failed |",
    "| Endpoint | Target p95 | Actual p95 | Status |",
    "## 5. Issues Identified",
    "### 5.1 Minor Issues (Did Not Impact RTO)",
    "| Issue | Impact | Resolution | Action Item |",
    "### 5.2 Observations",
    "## 6. Recommendations",
    "### 6.1 Immediate Actions (Before Next Drill)",
    "| Priority | Action | Owner | Due Date |",
    "### 6.2 Long-Term Improvements",
    "| Improvement | Benefit | Effort | Priority |",
    "## 7. Compliance & Audit",
    "### 7.1 Drill Requirements",
    "| Requirement | Frequency | Last Completed | Next Due |",
    "### 7.2 Audit Evidence",
    "| Evidence Type | Location | Retention |",
    "### 7.3 Sign-Off",
    "| Role | Name | Signature | Date |",
    "## 8. Appendix",
    "### 8.1 Backup Configuration Reference",
    "### 8.2 RTO/RPO Definitions",
    "| Metric | Definition | Our Target |",
    "### 8.3 Related Documents",
    "### Document History",
    "| Version | Date | Author | Changes |",
];

#[test]
fn headings_and_columns_are_those_of_the_template_and_nothing_stands_between() {
    for name in ALL {
        let (_, text) = report(name);
        let text = unmarked(&text);
        let first = text
            .split("\n---\n")
            .next()
            .expect("the template ends with a rule");
        // Headings, and the first line of each table.
        let lines: Vec<&str> = first.lines().collect();
        let is_head = |at: usize| {
            let line = lines[at];
            line.starts_with('#')
                || (line.starts_with('|') && lines.get(at + 1).is_some_and(|it| it.starts_with("|---")))
        };
        let found: Vec<&str> = (0..lines.len())
            .filter(|at| is_head(*at))
            .map(|at| lines[at])
            .collect();
        assert_eq!(found, TEMPLATE, "{name}");
        for row in TEMPLATE_ROWS {
            assert!(first.contains(&format!("\n| {row} |")), "{name}: row {row}");
        }
        let (_, rest) = text.split_once("\n---\n\n").expect("closing lines");
        let closing: Vec<&str> = rest.lines().take(2).collect();
        assert!(
            closing[0].starts_with("*Report generated: 2026-11-20T") && closing[0].ends_with("Z*"),
            "{closing:?}"
        );
        assert!(closing[1].starts_with("*Next scheduled drill: "), "{closing:?}");
    }
}

#[test]
fn the_record_of_the_second_part_has_every_section_and_table_in_order() {
    for name in ALL {
        let (_, text) = report(name);
        let text = unmarked(&text);
        let mut from = 0;
        for part in RECORD {
            let found = text.get(from..).and_then(|rest| rest.find(part));
            let at = found.unwrap_or_else(|| panic!("{name}: \"{part}\" is missing or misplaced"));
            from += at + part.len();
        }
        for part in [
            "## 9. What This Does Not Prove",
            "## 10. Proof",
            "## 12. PITR Record",
        ] {
            assert!(text.contains(&format!("\n{part}\n")), "{name}: {part}");
        }
    }
}

#[test]
fn no_placeholder_is_left() {
    for name in ALL {
        let (_, text) = report(name);
        for placeholder in [
            "[Name]",
            "[Pending]",
            "[Date]",
            "XX",
            "YYYY",
            "HH:MM",
            "TODO",
            "TBD",
            "[Link]",
            "<!--",
        ] {
            assert!(!text.contains(placeholder), "{name}: {placeholder}");
        }
    }
}

#[test]
fn no_table_is_broken_and_no_cell_is_empty() {
    for name in ALL {
        let (_, text) = report(name);
        let mut columns = 0;
        let mut fenced = false;
        for line in text.lines() {
            if line.starts_with("```") {
                fenced = !fenced;
            }
            if fenced || !line.starts_with('|') {
                columns = 0;
                continue;
            }
            let cells: Vec<&str> = line.trim_matches('|').split(" | ").collect();
            let bars = line.replace("\\|", "").matches('|').count();
            if columns == 0 {
                columns = bars;
                continue;
            }
            assert_eq!(bars, columns, "{name}: {line}");
            assert!(cells.iter().all(|cell| !cell.trim().is_empty()), "{name}: {line}");
        }
        assert!(!fenced, "{name}: a fence is open");
    }
}

/// `facts.json` as it is kept.
fn kept(facts: &Facts, verdict: &Verdict) -> Value {
    drill::document(facts, verdict)
}

#[test]
fn every_pointer_of_markdown_and_html_resolves_into_the_facts() {
    for name in ALL {
        let (facts, verdict) = judged(name);
        let kept = kept(&facts, &verdict);
        let resolves = |pointer: &str| {
            assert!(
                kept.pointer(pointer).is_some(),
                "{name}: {pointer} is not in facts.json"
            );
        };
        let document = report::document(&facts, &verdict, &Circumstances::default());
        let mut pointers = 0;
        for text in document.texts() {
            for from in &text.from {
                resolves(from);
                pointers += 1;
            }
        }
        assert!(pointers > 100, "{name}: {pointers}");

        // The same in what is printed: each mark has a note, and each note's pointers resolve.
        let markdown = report::markdown(&facts, &verdict, &Circumstances::default());
        let mut noted = 0;
        for line in markdown.lines().filter(|line| line.starts_with("[^")) {
            let (_, places) = line.split_once(": ").expect("a note");
            for place in places.split(", ") {
                resolves(place.trim_matches('`'));
                noted += 1;
            }
        }
        assert!(noted > 100, "{name}: {noted}");
        let html = report::html(&facts, &verdict, &Circumstances::default());
        let mut titles = 0;
        for (before, after) in [(" title=\"", "\""), ("<title>/", "</title>")] {
            for part in html.split(before).skip(1) {
                let title = part.split(after).next().expect("its end");
                let title = if before.starts_with('<') {
                    format!("/{title}")
                } else {
                    title.to_owned()
                };
                for pointer in title.split(' ').filter(|it| !it.is_empty()) {
                    resolves(pointer);
                    titles += 1;
                }
            }
        }
        assert!(titles > 100, "{name}: {titles}");
    }
}

#[test]
fn a_number_without_a_source_is_said_nowhere() {
    // Words of the document's own that hold digits and no measurement.
    let allowed = |text: &str| {
        text == "T-0"
            // Targets that teams agreed on, and the days that are counted.
            || ["100 %", "below 1 h", "below 10 % a month"].contains(&text)
            || text == "Backups of the last 30 days that succeeded"
            || text.starts_with("before T-0")
            || text.starts_with(|c: char| c.is_ascii_digit())
            || [
                "SOC 2",
                "ISO ",
                "NIST",
                "DORA",
                "HIPAA",
                "SHA-256",
                "BLAKE3",
                "within 1 hour",
                "T-0)",
                "P1",
            ]
            .iter()
            .any(|word| text.contains(word))
    };
    for name in ALL {
        let (facts, verdict) = judged(name);
        let document = report::document(&facts, &verdict, &Circumstances::default());
        for text in document.texts() {
            let said = text.from.is_empty() && text.text.chars().any(|c| c.is_ascii_digit());
            assert!(!said || allowed(&text.text), "{name}: {:?}", text.text);
        }
    }
}

#[test]
fn what_was_not_looked_at_is_never_printed_as_a_yes() {
    let (status, text) = report("wal-missing");
    let text = unmarked(&text);
    assert_eq!(status, Status::Failed);
    assert!(
        text.contains("- `wal-missing` cluster \"main\" cannot be recovered"),
        "{text}"
    );
    assert!(
        text.contains("| all tables | - | - | NOT RUN: the drill ended early in step \"plan\" | NOT RUN |")
    );
    assert!(text.contains("| Drill again after the fix | not assigned | 2026-12-04 | open |"));
    assert!(text.contains("*Next scheduled drill: 2026-12-04 (Q4 2026)*"));
    for (number, line) in text.lines().enumerate() {
        assert!(
            !(line.contains("NOT RUN") && line.contains("| YES |")),
            "line {}: {line}",
            number + 1
        );
    }
}

#[test]
fn a_failed_drill_answers_what_it_means_for_production() {
    let (_, text) = report("wal-missing");
    let text = unmarked(&text);
    assert!(text.contains("## 11. Production Impact Assessment"));
    let row = |question: &str| {
        let line = text
            .lines()
            .find(|line| line.starts_with(&format!("| {question}")));
        line.unwrap_or_else(|| panic!("{question} is not answered"))
            .to_owned()
    };
    assert!(row("Is production using the same backup scripts?").contains("| Yes: "));
    assert!(
        row("Are production WAL archives healthy?").contains("| No: cluster \"main\" cannot be recovered")
    );
    assert!(row("Is there a workaround").contains("escalate as P1"));
    assert!(
        text.contains("Severity, by rule: **SEV-1: recovery is impossible, "),
        "{text}"
    );
    let (_, passed) = report("passed");
    assert!(!passed.contains("Production Impact Assessment"));
}

#[test]
fn every_step_stands_in_its_phase_of_the_timeline() {
    for name in ALL {
        let steps = facts(name).steps;
        let (_, text) = report(name);
        let text = unmarked(&text);
        let (_, rest) = text.split_once("### 3.2 Execution Phase").expect("the execution");
        let (mut execution, rest) = rest.split_once("### 3.3 Post-Drill Phase").expect("what follows");
        let (after, _) = rest.split_once("## 4. Detailed Results").expect("the results");
        for step in steps {
            let cell = format!("| {} |", step.title);
            if ["tear-down", "archive-after"].contains(&step.id.as_str()) {
                assert!(after.contains(&cell), "{name}: {cell}");
                continue;
            }
            let found = execution.split_once(&cell);
            execution = found
                .unwrap_or_else(|| panic!("{name}: {cell} is missing or misplaced"))
                .1;
        }
        assert!(
            after.contains("| Stop the copy and remove it | Completed |"),
            "{name}: {after}"
        );
    }
}

fn by_hand(id: &str, when: ManualWhen, state: ManualState) -> ManualFacts {
    let at = "2026-11-20T10:00:05Z".parse().expect("a time");
    let said = state != ManualState::NotConfirmed;
    ManualFacts {
        id: id.into(),
        title: format!("The {id} is there"),
        when,
        required: true,
        limit_ms: 900_000,
        asked_at: Some("2026-11-20T10:00:00Z".parse().expect("a time")),
        state,
        by: said.then(|| "Ann".into()),
        at: said.then_some(at),
        why: (state != ManualState::Confirmed).then(|| "nobody came".into()),
    }
}

#[test]
fn what_people_confirmed_stands_in_its_phase_with_name_and_time() {
    let mut facts = facts("passed");
    facts.manual = vec![
        by_hand("incident", ManualWhen::Before, ManualState::Confirmed),
        by_hand("look", ManualWhen::AtTarget, ManualState::Skipped),
        by_hand("clean-up", ManualWhen::After, ManualState::NotConfirmed),
    ];
    let verdict = judge(&facts);
    let text = unmarked(&report::markdown(&facts, &verdict, &Circumstances::default()));
    let part = |from: &str, to: &str| {
        let (_, rest) = text.split_once(from).expect(from);
        rest.split_once(to).expect(to).0.to_owned()
    };
    let before = part("### 3.1 Preparation Phase", "### 3.2");
    let row = "| 2026-11-20 10:00:05 UTC | The incident is there (by hand, required) | Confirmed by Ann |";
    assert!(before.contains(row), "{before}");
    let during = part("### 3.2 Execution Phase", "### 3.3");
    let row = "| The look is there (by hand, required) | 5.000 s | Skipped by Ann: nobody came |";
    assert!(during.contains(row), "{during}");
    let after = part("### 3.3 Post-Drill Phase", "## 4.");
    let row = "| 2026-11-20 10:00:00 UTC | The clean-up is there (by hand, required) | Not confirmed: nobody came |";
    assert!(after.contains(row), "{after}");
    // Each of them says where it stands in facts.json.
    let kept = kept(&facts, &verdict);
    let document = report::document(&facts, &verdict, &Circumstances::default());
    let mut pointers = 0;
    for from in document.texts().iter().flat_map(|text| &text.from) {
        assert!(kept.pointer(from).is_some(), "{from}");
        pointers += usize::from(from.starts_with("/manual/"));
    }
    assert!(pointers >= 3 * 5, "{pointers}");
    // A "Confirmed" that names nobody is printed as what it is.
    facts.manual[0].by = None;
    let text = unmarked(&report::markdown(
        &facts,
        &judge(&facts),
        &Circumstances::default(),
    ));
    assert!(!text.contains("Confirmed by"), "{text}");
}

#[test]
fn who_is_told_follows_from_what_was_found() {
    let owner = "| Escalate to the data's owner; ";
    let lead = "Tell the engineering lead within 1 hour";
    for (name, to_the_owner, to_the_lead) in [
        ("rows-differ", true, true),
        ("wal-missing", false, true),
        ("passed", false, false),
    ] {
        let (_, text) = report(name);
        let told = (text.contains(owner), text.contains(lead));
        assert_eq!(told, (to_the_owner, to_the_lead), "{name}");
    }
    let mut facts = facts("passed");
    facts.people.others = ["escalation", "dba"].map(person_as).into();
    let text = report::markdown(&facts, &judge(&facts), &Circumstances::default());
    let text = unmarked(&text);
    for role in ["escalation", "dba"] {
        let row = format!("| {role} | Carla the {role} | As agreed |");
        assert!(text.contains(&row), "{row}");
    }
}

/// Name and loss of each row.
fn lost_by_kind(facts: &Facts) -> Vec<(String, String)> {
    let verdict = judge(facts);
    let kept = kept(facts, &verdict);
    let document = report::document(facts, &verdict, &Circumstances::default());
    for from in document.texts().iter().flat_map(|text| &text.from) {
        assert!(kept.pointer(from).is_some(), "{from} is not in facts.json");
    }
    let text = unmarked(&report::markdown(facts, &verdict, &Circumstances::default()));
    let (_, table) = text
        .split_once("| Kind of Backup | Brings Back | Lost (RPO) |\n")
        .expect("the table");
    let rows = table.lines().skip(1).take_while(|line| line.starts_with("| "));
    rows.map(|row| {
        let cells: Vec<&str> = row.trim_matches('|').split(" | ").map(str::trim).collect();
        (cells[0].to_owned(), cells[2].to_owned())
    })
    .collect()
}

#[test]
fn each_kind_of_backup_says_what_it_would_have_lost_and_guesses_nothing_that_was_not_recorded() {
    let mut facts = facts("passed");
    let rows = lost_by_kind(&facts);
    let names: Vec<&str> = rows.iter().map(|(name, _)| name.as_str()).collect();
    assert!(
        matches!(names[..], ["Base backup alone", "Base backup and archived WAL", dump]
            if dump.starts_with("A logical dump taken when that base backup began (pgproof makes none")),
        "{names:?}"
    );
    let lost = |rows: &[(String, String)], at: usize| rows[at].1.clone();
    // From the backup's beginning and its end to the newest commit at the point; in WAL from its stop to the point.
    assert_eq!(
        lost(&rows, 0),
        "everything committed since: 2.327 s to 3.530 s, 24.9 MB of WAL"
    );
    assert_eq!(lost(&rows, 1), "0.500 s, 3 commits, 100 bytes of WAL");
    assert_eq!(lost(&rows, 2), "everything committed since: 3.530 s");

    // The drill's own instant goes before the server's words.
    facts.instants = vec![drill::facts::InstantFacts {
        id: "recovered-commit".into(),
        at: "2026-11-20T20:42:09.137726644Z".parse().expect("a time"),
        offset_ms: None,
    }];
    assert_eq!(lost(&lost_by_kind(&facts), 2), "everything committed since: 10 s");

    // Nobody got to the point; nothing was measured; no backup was chosen.
    facts.instants.clear();
    facts.target.stops[0].outcome = drill::facts::StopOutcome::Failed;
    facts.rpo = None;
    let rows = lost_by_kind(&facts);
    for at in [0, 2] {
        let text = lost(&rows, at);
        assert!(
            text.starts_with("everything committed since; how long that is is not known"),
            "{text}"
        );
        assert!(!text.contains(|c: char| c.is_ascii_digit()), "{text}");
    }
    // The check that was recorded is all that is left of the loss, and then nothing.
    assert_eq!(lost(&rows, 1), "PASS: 0.500 s, 3 commits");
    facts.checks.retain(|check| check.id != "rpo");
    assert_eq!(lost(&lost_by_kind(&facts), 1), "not measured");
    facts.input = None;
    let rows = lost_by_kind(&facts);
    for at in [0, 2] {
        assert_eq!(
            lost(&rows, at),
            "not known: the drill ended before a backup was chosen"
        );
    }
}

#[test]
fn rates_over_the_profile_s_drills_stand_in_the_requirements_with_their_targets() {
    let (facts, verdict) = judged("passed");
    let earlier = |profile: &str, name: &str| {
        let (facts, verdict) = judged(name);
        let mut drill = report::Earlier::of(&facts, verdict.status);
        drill.profile = profile.into();
        drill
    };
    let own = facts.identity.profile.clone();
    let size = |backup: &str, at: &str, bytes: u64| report::BackupSize {
        backup: backup.into(),
        finished_at: at.parse().expect("a time"),
        bytes,
    };
    let beside = Circumstances {
        earlier: vec![earlier(&own, "wal-missing"), earlier("another", "passed")],
        backups: vec![
            size("20261001T020003Z", "2026-10-01T02:00:03Z", 1000),
            size("20261120T020003Z", "2026-11-20T02:00:03Z", 1100),
        ],
        backup_runs: Some(report::BackupRuns {
            succeeded: vec!["20261119T020003Z".into(), "20261120T020003Z".into()],
            failed: vec!["action_20261118T020003Z-0badcafe/ended.json".into()],
        }),
        ..Circumstances::default()
    };
    let marked = report::markdown(&facts, &verdict, &beside);
    assert!(
        marked.contains("action_20261118T020003Z-0badcafe/ended.json"),
        "the failure is named"
    );
    let text = unmarked(&report::markdown(&facts, &verdict, &beside));
    let (_, section) = text.split_once("### 7.1 Drill Requirements").expect("7.1");
    let (section, _) = section.split_once("### 7.2").expect("7.2");
    for row in [
        "| Drills that passed | 1 of 2 (50 %) | 100 % | not met |",
        "| Restores that reached their target | 1 of 2 (50 %) | 100 % | not met |",
        "| Growth of what is backed up | +6.0 % a month | below 10 % a month | met |",
        "| Backups of the last 30 days that succeeded | 2 of 3 (66 %) | 100 % | not met |",
    ] {
        assert!(section.contains(row), "{row}: {section}");
    }
    assert!(section.contains("a backup whose process was killed"), "{section}");
    let text = unmarked(&report::markdown(&facts, &verdict, &Circumstances::default()));
    for row in [
        "| there are no two backups a week apart | below 10 % a month | cannot be said |",
        "| Backups of the last 30 days that succeeded | could not be read | 100 % | cannot be said |",
    ] {
        assert!(text.contains(row), "{row}: {text}");
    }
}

#[test]
fn who_is_called_when_stands_with_the_participants_and_in_order_of_time_where_recovery_failed() {
    let mut facts = facts("rows-differ");
    facts.people.others = [
        ("lead", Some(3600)),
        ("escalation", Some(1800)),
        ("dba", Some(0)),
        ("qa", None),
    ]
    .map(|(role, seconds)| drill::facts::Person {
        called_after_seconds: seconds,
        ..person_as(role)
    })
    .into();
    let verdict = judge(&facts);
    let text = unmarked(&report::markdown(&facts, &verdict, &Circumstances::default()));
    for row in [
        "| lead | Carla the lead | Called from 60 min on |",
        "| escalation | Carla the escalation | Called from 30 min on |",
        "| dba | Carla the dba | Called from the start on |",
        "| qa | Carla the qa | As agreed |",
    ] {
        assert!(text.contains(row), "{row}");
    }
    let (_, section) = text
        .split_once("## 11. Production Impact Assessment")
        .expect("section 11");
    let (section, _) = section.split_once("## 12.").expect("section 12");
    let last = section.trim_end().lines().next_back().expect("a last line");
    let places: Vec<Option<usize>> = [
        "(dba) from the start on;",
        "(escalation) from 30 min on;",
        "(lead) from 60 min on.",
    ]
    .iter()
    .map(|words| last.find(words))
    .collect();
    assert!(places.iter().all(Option::is_some) && places.is_sorted(), "{last}");
    assert!(!last.contains("(qa)"), "{last}");
    let kept = kept(&facts, &verdict);
    let document = report::document(&facts, &verdict, &Circumstances::default());
    for from in document.texts().iter().flat_map(|text| &text.from) {
        assert!(kept.pointer(from).is_some(), "{from}");
    }
}

#[test]
fn a_late_recovery_and_a_service_that_never_was_ready_name_the_escalation_contact_with_its_time() {
    let late = |code: &str, people: Vec<drill::facts::Person>| {
        let (mut facts, mut verdict) = judged("passed");
        facts.people.others = people;
        if code == drill::code::ENDPOINT_UNHEALTHY {
            facts.instants = vec![drill::facts::InstantFacts {
                id: "target-reached".into(),
                at: facts.started_at,
                offset_ms: None,
            }];
        }
        verdict.reasons.push(drill::Reason {
            code: code.into(),
            text: "too late".into(),
            check: None,
            weight: drill::Weight::Observation,
        });
        unmarked(&report::markdown(&facts, &verdict, &Circumstances::default()))
    };
    let named = |after: Option<u64>| {
        vec![drill::facts::Person {
            called_after_seconds: after,
            ..person_as("escalation")
        }]
    };
    for code in [
        drill::code::RTO_AT_RISK,
        drill::code::RTO_EXCEEDED,
        drill::code::ENDPOINT_UNHEALTHY,
    ] {
        let text = late(code, named(Some(1800)));
        let words = "; tell Carla the escalation, the escalation contact, from 30 min on | not assigned |";
        assert!(text.contains(words), "{code}: {text}");
        let text = late(code, named(None));
        assert!(
            text.contains("when services stay down for 15 min | not assigned |"),
            "{code}"
        );
        let text = late(code, Vec::new());
        assert!(
            text.contains("tell the escalation contact (none is named"),
            "{code}"
        );
    }
    // An endpoint that is wrong beside a service that was ready is no reason to call somebody.
    let (mut facts, mut verdict) = judged("passed");
    facts.instants = ["target-reached", "stabilised"]
        .map(|id| drill::facts::InstantFacts {
            id: id.into(),
            at: facts.started_at,
            offset_ms: None,
        })
        .into();
    verdict.reasons.push(drill::Reason {
        code: drill::code::ENDPOINT_UNHEALTHY.into(),
        text: "one value".into(),
        check: None,
        weight: drill::Weight::Observation,
    });
    let text = report::markdown(&facts, &verdict, &Circumstances::default());
    assert!(!text.contains("the escalation contact"), "{text}");
}

fn person_as(role: &str) -> drill::facts::Person {
    drill::facts::Person {
        role: role.into(),
        name: format!("Carla the {role}"),
        called_after_seconds: None,
    }
}

#[test]
fn a_drill_that_ended_early_says_where_to_look_first() {
    let (_, text) = report("wal-missing");
    let text = unmarked(&text);
    assert!(text.contains("| Step | `plan` |"), "{text}");
    assert!(
        text.contains("| Hint | If the segment is still in the primary's pg_wal, run "),
        "{text}"
    );
    let help = "Where to look first: `pgproof wal gaps` lists what is missing; ";
    assert!(text.contains(help), "{text}");
    let (_, passed) = report("passed");
    assert!(!passed.contains("Where to look first"));
}

#[test]
fn a_changed_row_is_shown_with_its_table_and_without_its_content() {
    let (status, text) = report("rows-differ");
    assert_eq!(status, Status::Failed);
    let text = unmarked(&text);
    assert!(text.contains("| `postgres.public.still` | 500 | 500 | 0, but other content | NO |"));
    assert!(text.contains("This was a drill of the drill"));
}

#[test]
fn a_point_of_the_past_says_why_it_has_no_row_proof() {
    let (status, text) = report("past-point");
    assert_eq!(status, Status::PassedWithObservations);
    assert!(text.contains("a row proof exists only for a point that the drill makes itself"));
    assert!(text.contains("A point of the past has no live counterpart"));
}

#[test]
fn a_status_is_unsigned_until_two_people_have_signed() {
    let (facts, verdict) = judged("passed");
    let mut beside = Circumstances::default();
    let status = |beside: &Circumstances| {
        let text = unmarked(&report::markdown(&facts, &verdict, beside));
        let line = text
            .lines()
            .find(|line| line.starts_with("| **Status** |"))
            .expect("a status");
        line.to_owned()
    };
    assert_eq!(status(&beside), "| **Status** | **PASSED (unsigned)** |");
    for (role, name) in [
        (drill::sign_off::SignerRole::Operator, "ada"),
        (drill::sign_off::SignerRole::Reviewer, "bob"),
    ] {
        beside.signatures.push(drill::sign_off::Signature {
            role,
            signer: name.into(),
            key: drill::signing::SigningKey::generate().expect("a key").public(),
            signed_at: facts.started_at,
            comment: None,
            vouched: true,
            file: format!("attestations/{name}.dsse.json"),
        });
    }
    assert_eq!(status(&beside), "| **Status** | **PASSED** |");
}

#[test]
fn the_report_is_the_same_each_time() {
    assert_eq!(report("passed"), report("passed"));
    let (facts, verdict) = judged("passed");
    let html = || report::html(&facts, &verdict, &Circumstances::default());
    assert_eq!(html(), html());
}

#[test]
fn times_that_no_drill_takes_are_printed_all_the_same() {
    let mut facts = facts("passed");
    let rto = facts.rto.as_mut().expect("the copy was started");
    (rto.start_ms, rto.replay_ms) = (u64::MAX, 1);
    let text = report::markdown(&facts, &judge(&facts), &Circumstances::default());
    assert!(text.contains("| Service stabilization |"));
}
