//! Claims about what each check makes of what was seen.

use std::collections::BTreeMap;

use postgres::Lsn;

use crate::amcheck::AmcheckResult;
use crate::checks::*;
use crate::facts::*;
use crate::page_checks::PageCheck;
use crate::user_checks::{CheckKind, UserCheck};
use crate::verdict::code;

pub(crate) fn point() -> BracketFacts {
    BracketFacts {
        database: "postgres".into(),
        restore_point: "pgproof_x".into(),
        nonce_before: "aa".into(),
        nonce_after: "bb".into(),
        marker: "drill_1".into(),
        after_nonce_before: Lsn(1),
        restore_point_lsn: Lsn(2),
        before_nonce_after: Lsn(3),
        sentinel: Lsn(4),
        last_segment: "x".into(),
        archived_after_ms: 1,
        attempts: 1,
        proofs: vec![],
    }
}

fn markers(found: &[(&str, &str)]) -> Vec<(String, Result<Markers, String>)> {
    let markers = found
        .iter()
        .map(|(id, nonce)| ((*id).to_string(), (*nonce).to_string()))
        .collect();
    vec![("the requested target".into(), Ok(markers))]
}

fn of(check: &Check) -> (CheckResult, Option<&str>) {
    (check.result, check.reason.as_deref())
}

#[test]
fn a_stale_copy_cannot_pass_the_bracket_and_neither_can_one_that_went_too_far() {
    let point = point();
    assert_eq!(
        of(&bracket(&point, &markers(&[("drill_1_before", "aa")]))).0,
        CheckResult::Pass
    );
    assert_eq!(
        of(&bracket(&point, &markers(&[]))),
        (CheckResult::Fail, Some(code::MARKER_MISSING))
    );
    let stale = markers(&[("drill_1_before", "of another run")]);
    assert_eq!(
        of(&bracket(&point, &stale)),
        (CheckResult::Fail, Some(code::MARKER_MISSING))
    );
    for beyond in ["drill_1", "drill_1_after", "drill_1_sentinel"] {
        let seen = markers(&[("drill_1_before", "aa"), (beyond, "bb")]);
        assert_eq!(
            of(&bracket(&point, &seen)),
            (CheckResult::Fail, Some(code::MARKER_BEYOND_TARGET))
        );
    }
    let lost = vec![("x".to_string(), Err("connection lost".to_string()))];
    assert_eq!(bracket(&point, &lost).result, CheckResult::CouldNotLook);
    assert_eq!(bracket(&point, &[]).result, CheckResult::NotRun);
}

fn table(production: Side, copy: Side) -> TableProof {
    TableProof {
        database: "d".into(),
        table: "public.t".into(),
        production,
        copy,
    }
}

fn digest(text: &str) -> Side {
    Side::Digest {
        rows: 3,
        digest: text.into(),
    }
}

fn proof(tables: Vec<TableProof>) -> RowProof {
    RowProof {
        definition: String::new(),
        tables,
        sequences: vec![],
    }
}

#[test]
fn one_changed_row_fails_and_one_table_not_seen_does_not_pass() {
    let good = table(digest("a"), digest("a"));
    assert_eq!(
        row_proof(&proof(vec![good.clone()]), &[]).result,
        CheckResult::Pass
    );
    let bad = table(digest("a"), digest("b"));
    assert_eq!(
        of(&row_proof(&proof(vec![good.clone(), bad]), &[])),
        (CheckResult::Fail, Some(code::ROWS_DIFFER))
    );
    let broken = table(digest("a"), Side::Unreadable("XX001".into()));
    assert_eq!(
        of(&row_proof(&proof(vec![broken]), &[])),
        (CheckResult::Fail, Some(code::ROWS_UNREADABLE))
    );
    let locked = table(digest("a"), Side::CouldNotLook("SQLSTATE 55P03".into()));
    assert_eq!(
        row_proof(&proof(vec![good.clone(), locked]), &[]).result,
        CheckResult::CouldNotLook
    );
    let gone = table(
        Side::CouldNotLook("rewritten or truncated meanwhile".into()),
        digest("a"),
    );
    assert_eq!(
        of(&row_proof(&proof(vec![gone]), &[])),
        (CheckResult::CouldNotLook, Some(code::REWRITTEN_MEANWHILE))
    );
    assert_eq!(
        row_proof(&proof(vec![good]), &["other".into()]).result,
        CheckResult::CouldNotLook
    );
    assert_eq!(row_proof(&proof(vec![]), &[]).result, CheckResult::NotRun);
}

#[test]
fn archive_mode_on_fails_with_its_own_code() {
    let settings = |mode: &str, command: &str| {
        BTreeMap::from([
            ("archive_mode".to_string(), mode.to_string()),
            ("archive_command".into(), command.into()),
        ])
    };
    assert_eq!(
        archive_settings(&settings("off", "(disabled)")).result,
        CheckResult::Pass
    );
    assert_eq!(
        of(&archive_settings(&settings("on", "cp %p /x/%f"))),
        (CheckResult::Fail, Some(code::ARCHIVE_COMMAND_WOULD_RUN))
    );
    assert_eq!(
        archive_settings(&BTreeMap::new()).result,
        CheckResult::CouldNotLook
    );
}

#[test]
fn amcheck_on_a_host_that_sorts_differently_is_a_diagnosis_of_its_own() {
    let indexes = AmcheckResult {
        bad_indexes: 1,
        ..AmcheckResult::default()
    };
    assert_eq!(
        of(&amcheck(&indexes, false)),
        (CheckResult::Fail, Some(code::AMCHECK_FAILED))
    );
    assert_eq!(
        of(&amcheck(&indexes, true)),
        (CheckResult::Warn, Some(code::COLLATION_MISMATCH))
    );
    let tables = AmcheckResult {
        bad_tables: 1,
        bad_indexes: 1,
        ..AmcheckResult::default()
    };
    assert_eq!(amcheck(&tables, true).result, CheckResult::Fail);
    let unseen = AmcheckResult {
        not_seen: vec!["x".into()],
        ..AmcheckResult::default()
    };
    assert_eq!(amcheck(&unseen, false).result, CheckResult::CouldNotLook);
}

#[test]
fn page_checksums_without_checksums_are_not_run_and_without_pages_not_passed() {
    assert_eq!(page_checksums(None).result, CheckResult::NotRun);
    assert_eq!(
        page_checksums(Some(&PageCheck::default())).result,
        CheckResult::CouldNotLook
    );
    let bad = PageCheck {
        pages: 9,
        bad_pages: 1,
        ..PageCheck::default()
    };
    assert_eq!(
        of(&page_checksums(Some(&bad))),
        (CheckResult::Fail, Some(code::PAGE_CHECKSUMS_BAD))
    );
    let good = PageCheck {
        pages: 9,
        ..PageCheck::default()
    };
    assert_eq!(page_checksums(Some(&good)).result, CheckResult::Pass);
}

#[test]
fn a_user_s_check_tells_truth_values_and_no_others() {
    let check = |id: &str, sql: &str, expect: &str| UserCheck {
        id: id.into(),
        category: Category::Data,
        required: false,
        kind: CheckKind::Sql {
            database: None,
            sql: sql.into(),
            expect: expect.into(),
        },
    };
    let recent = check("recent", "select  1", "true");
    let asked = |answer: Option<&str>| of_user(&recent, "true", Ok(answer.map(Into::into)));
    assert_eq!(asked(None).definition, "select 1");
    assert_eq!(asked(Some("t")).result, CheckResult::Pass);
    assert_eq!(
        (asked(Some("f")).result, asked(Some("f")).actual),
        (CheckResult::Fail, "false".into())
    );
    let secret = asked(Some("alice@example.org"));
    assert!(secret.result == CheckResult::Fail && !secret.actual.contains("alice"));
    assert_eq!(asked(None).result, CheckResult::Fail);
    assert_eq!(
        of_user(&check("x", "select", "1"), "1", Err("SQLSTATE 42601".into())).result,
        CheckResult::CouldNotLook
    );
}

#[test]
fn whatever_else_appears_in_the_archive_is_a_failure() {
    let good = ArchiveFacts {
        objects_before: 3,
        objects_after: 4,
        added_by_production: 1,
        ..ArchiveFacts::default()
    };
    assert_eq!(archive_unchanged(&good).result, CheckResult::Pass);
    let poisoned = ArchiveFacts {
        unexpected: vec!["00000002.history".into()],
        ..good.clone()
    };
    assert_eq!(
        of(&archive_unchanged(&poisoned)),
        (CheckResult::Fail, Some(code::ARCHIVE_CHANGED))
    );
    let gone = ArchiveFacts {
        missing: vec!["x".into()],
        ..good
    };
    assert_eq!(archive_unchanged(&gone).result, CheckResult::Fail);
    assert_eq!(
        of(&timeline_histories(&["t2".into()], 0)),
        (CheckResult::Fail, Some(code::HISTORY_POISONED))
    );
}

#[test]
fn a_copy_that_stands_elsewhere_than_planned_has_not_reached_its_target() {
    let stand = |reached: u64, planned: Option<(u64, bool)>| {
        let stop = StopFacts {
            purpose: "the requested target".into(),
            settings: vec![],
            outcome: StopOutcome::Paused,
            reached_lsn: Some(Lsn(reached)),
            reached_time: None,
            stop_line: None,
            duration_ms: 1,
            planned: planned.map(|(lsn, is_boundary)| PlannedStop {
                lsn: Lsn(lsn),
                is_boundary,
            }),
        };
        let check = target(&[stop]);
        (check.result, check.reason)
    };
    let elsewhere = (CheckResult::Fail, Some(code::TARGET_NOT_REACHED.to_string()));
    let reached = (CheckResult::Pass, None);
    assert_eq!(stand(0x8000, Some((0x8000, true))), reached);
    // The header of a page lies between the last record and the next one.
    assert_eq!(stand(0x8000, Some((0x8028, true))), reached);
    assert_eq!(stand(0x8000, Some((0x8030, true))), elsewhere);
    assert_eq!(stand(0x8100, Some((0x8000, true))), elsewhere);
    // An LSN that somebody names may lie within a record, which is replayed to its end.
    assert_eq!(stand(0x8100, Some((0x8000, false))), reached);
    assert_eq!(stand(0x8100, None), reached);
}
