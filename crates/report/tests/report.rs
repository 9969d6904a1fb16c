//! Claims about the report, made of facts that real drills recorded (`tests/facts`; only paths were
//! shortened).

use drill::{Facts, Status, judge};

fn facts(name: &str) -> Facts {
    let path = format!("{}/tests/facts/{name}.json", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).expect("the facts of a drill");
    serde_json::from_str(&text).expect("facts that this version reads")
}

fn report(name: &str) -> (Status, String) {
    let facts = facts(name);
    let verdict = judge(&facts);
    (verdict.status, report::markdown(&facts, &verdict))
}

const ALL: [&str; 4] = ["passed", "wal-missing", "past-point", "rows-differ"];

/// The headings of the drill report template, in its order.
const TEMPLATE: [&str; 12] = [
    "# PITR Restore Drill Report",
    "## Summary",
    "## Timing",
    "## Backup Artifacts Used",
    "## Validation Results",
    "### Health Checks",
    "### Data Integrity",
    "### Service Status",
    "### Smoke Tests",
    "## Issues Encountered",
    "## Observations",
    "## Follow-Up Actions",
];

#[test]
fn every_heading_of_the_template_is_there_in_its_order() {
    for name in ALL {
        let (_, text) = report(name);
        let mut from = 0;
        for heading in TEMPLATE {
            let line = format!("{heading}\n");
            let found = text.get(from..).and_then(|rest| rest.find(&line));
            let at = found.unwrap_or_else(|| panic!("{name}: \"{heading}\" is missing or misplaced"));
            from += at + line.len();
        }
        assert!(text.contains("*Report generated: 2026-11-20T"), "{name}");
        assert!(text.contains("*Next scheduled drill: "), "{name}");
    }
}

#[test]
fn the_template_s_rows_and_columns_are_there() {
    let (_, text) = report("passed");
    for line in [
        "| Field | Value |",
        "| Metric | Value | Target |",
        "| Artifact | Filename | Size | Age |",
        "| Check | Pre-Drill | Post-Drill | Pass |",
        "| Table | Pre-Drill Count | Post-Drill Count | Variance | Pass |",
        "| Service | Status | Pass |",
        "| Test | Result |",
        "| Action | Owner | Due Date | Status |",
    ] {
        assert!(text.contains(&format!("\n{line}\n")), "{line}");
    }
    for row in [
        "**Drill ID**",
        "**Date (UTC)**",
        "**Status**",
        "**Environment**",
        "**Primary Operator**",
        "**RTO achieved**",
    ] {
        assert!(text.contains(&format!("| {row} |")), "{row}");
    }
    assert!(text.contains("| `shop.workload.account` | 200 | 200 | 0 | YES |"));
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

#[test]
fn what_was_not_looked_at_is_never_printed_as_a_yes() {
    let (status, text) = report("wal-missing");
    assert_eq!(status, Status::Failed);
    assert!(text.contains("`wal-missing`: cluster \"main\" cannot be recovered"));
    assert!(text.contains("| `row-proof` |") && text.contains("**NOT RUN**"));
    assert!(
        text.contains("| all tables | - | - | NOT RUN: the drill ended early in step \"plan\" | NOT RUN |")
    );
    assert!(text.contains("| Drill again after the fix | not assigned | 2026-12-04 | open |"));
    for (number, line) in text.lines().enumerate() {
        assert!(
            !(line.contains("NOT RUN") && line.contains("| YES |")),
            "line {}: {line}",
            number + 1
        );
    }
}

#[test]
fn a_changed_row_is_shown_with_its_table_and_without_its_content() {
    let (status, text) = report("rows-differ");
    assert_eq!(status, Status::Failed);
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
fn the_report_is_the_same_each_time() {
    assert_eq!(report("passed"), report("passed"));
}

#[test]
fn times_that_no_drill_takes_are_printed_all_the_same() {
    let mut facts = facts("passed");
    let rto = facts.rto.as_mut().expect("the copy was started");
    (rto.start_ms, rto.replay_ms) = (u64::MAX, 1);
    let text = report::markdown(&facts, &judge(&facts));
    assert!(text.contains("| Service stabilization |"));
}
