//! Claims about the verdict, against facts made by hand.

use jiff::Timestamp;
use postgres::Lsn;

use crate::facts::*;
use crate::verdict::{Status, Verdict, Weight, code, judge};

fn check(id: &str, result: CheckResult, reason: Option<&str>) -> Check {
    Check {
        id: id.into(),
        definition: "what is looked at".into(),
        expected: "this".into(),
        actual: "that".into(),
        result,
        reason: reason.map(Into::into),
        duration_ms: 1,
        category: None,
        detail: None,
    }
}

fn layer(name: &str) -> Layer {
    Layer {
        name: name.into(),
        applied: true,
        reason: None,
    }
}

fn digest(rows: u64, digest: &str) -> Side {
    Side::Digest {
        rows,
        digest: digest.into(),
    }
}

/// Facts of a drill in which everything is as it should be.
pub(crate) fn good() -> Facts {
    let now: Timestamp = "2026-01-25T14:30:00Z".parse().expect("a time");
    Facts {
        version: FACTS_VERSION,
        identity: Identity {
            drill_id: "pitr_drill_20260125T143000Z".into(),
            profile: "quarterly-pitr".into(),
            scenario: "bracket".into(),
            trigger: "by hand".into(),
            environment: "sandbox".into(),
            tool_version: "0.1.0".into(),
            host: None,
            next_due: None,
        },
        scope: Scope {
            cluster: "main".into(),
            ..Scope::default()
        },
        objectives: Objectives {
            rto_seconds: Some(90 * 60),
            rto_warning_seconds: Some(60 * 60),
            rpo_seconds: Some(300),
            required_checks: vec!["target".into(), "bracket".into(), "row-proof".into()],
            requested_checks: vec!["page-checksums".into(), "amcheck".into()],
            ..Objectives::default()
        },
        people: People::default(),
        started_at: now,
        finished_at: Some(now),
        input: None,
        plan: None,
        target: TargetFacts {
            requested: "bracket".into(),
            stops: vec![StopFacts {
                purpose: "requested target".into(),
                settings: vec![("recovery_target_name".into(), "x".into())],
                outcome: StopOutcome::Paused,
                reached_lsn: Some(Lsn(1)),
                reached_time: None,
                stop_line: None,
                duration_ms: 5,
                planned: None,
            }],
        },
        steps: vec![],
        rto: Some(Rto {
            total_ms: 20_000,
            ..Rto::default()
        }),
        rpo: Some(Rpo {
            seconds: Some(1.5),
            bytes: 10,
            commits: 3,
            exact: true,
            method: "WAL".into(),
            newest_commit_at: None,
            newest_kept_commit_at: None,
        }),
        bracket: None,
        row_proof: Some(RowProof {
            definition: "sum".into(),
            tables: vec![TableProof {
                database: "shop".into(),
                table: "public.orders".into(),
                production: digest(7, "aa"),
                copy: digest(7, "aa"),
            }],
            sequences: vec![],
        }),
        checks: [
            "target",
            "bracket",
            "row-proof",
            "page-checksums",
            "amcheck",
            "rto",
            "rpo",
        ]
        .map(|id| check(id, CheckResult::Pass, None))
        .into(),
        quarantine: Some(QuarantineFacts {
            layers: vec![
                layer("landlock"),
                layer("mount-namespace"),
                layer("network-namespace"),
            ],
            probes: vec![],
            neutralised: vec![],
            level: QuarantineLevel::Full,
        }),
        substitutions: vec![],
        archive: None,
        server_log: vec![],
        teardown: Some(Teardown {
            server_stopped: true,
            folder_removed: true,
            kept_on_request: false,
            left: vec![],
        }),
        failure: None,
        planted_faults: vec![],
        limits: vec![],
        profiles: vec![],
        registration: None,
        gates: vec![],
        instants: vec![],
        clocks: vec![],
        point: None,
        interruptions: vec![],
        manual: vec![],
    }
}

pub(crate) fn set(facts: &mut Facts, id: &str, result: CheckResult, reason: Option<&str>) {
    for each in &mut facts.checks {
        if each.id == id {
            each.result = result;
            each.reason = reason.map(Into::into);
        }
    }
}

fn codes(verdict: &Verdict) -> Vec<&str> {
    verdict
        .reasons
        .iter()
        .map(|reason| reason.code.as_str())
        .collect()
}

#[test]
fn everything_seen_and_good_is_passed_without_reasons() {
    let verdict = judge(&good());
    assert_eq!(
        verdict,
        Verdict {
            status: Status::Passed,
            reasons: vec![]
        }
    );
}

#[test]
fn not_run_and_could_not_look_of_a_required_check_never_pass() {
    for result in [CheckResult::NotRun, CheckResult::CouldNotLook] {
        for id in ["target", "bracket", "row-proof"] {
            let mut facts = good();
            set(&mut facts, id, result, None);
            assert_eq!(judge(&facts).status, Status::Inconclusive, "{id} {result}");
        }
    }
    let mut facts = good();
    facts.checks.retain(|check| check.id != "row-proof");
    assert_eq!(
        judge(&facts).status,
        Status::Inconclusive,
        "a required check that is not even recorded"
    );
}

#[test]
fn a_requested_check_that_could_not_look_is_inconclusive_and_one_not_run_is_an_observation() {
    let mut facts = good();
    set(&mut facts, "amcheck", CheckResult::CouldNotLook, None);
    assert_eq!(judge(&facts).status, Status::Inconclusive);
    set(&mut facts, "amcheck", CheckResult::NotRun, None);
    assert_eq!(judge(&facts).status, Status::PassedWithObservations);
}

#[test]
fn each_failed_check_fails_the_drill_with_its_own_code() {
    for (id, reason) in [
        ("row-proof", code::ROWS_DIFFER),
        ("page-checksums", code::PAGE_CHECKSUMS_BAD),
        ("amcheck", code::AMCHECK_FAILED),
        ("rto", code::RTO_EXCEEDED),
        ("rpo", code::RPO_EXCEEDED),
        ("bracket", code::MARKER_MISSING),
        ("target", code::TARGET_NOT_REACHED),
    ] {
        let mut facts = good();
        set(&mut facts, id, CheckResult::Fail, Some(reason));
        let verdict = judge(&facts);
        assert_eq!((verdict.status, codes(&verdict)), (Status::Failed, vec![reason]));
    }
}

#[test]
fn a_warning_is_an_observation() {
    let mut facts = good();
    set(&mut facts, "rto", CheckResult::Warn, Some(code::RTO_AT_RISK));
    let verdict = judge(&facts);
    assert_eq!(
        (verdict.status, codes(&verdict)),
        (Status::PassedWithObservations, vec![code::RTO_AT_RISK])
    );
}

#[test]
fn an_early_end_is_judged_by_what_it_says() {
    for (kind, status) in [
        (FailureKind::Finding, Status::Failed),
        (FailureKind::CouldNotLook, Status::Inconclusive),
        (FailureKind::Aborted, Status::Aborted),
    ] {
        let mut facts = good();
        facts.failure = Some(Failure {
            step: "restore".into(),
            kind,
            code: code::WAL_MISSING.into(),
            error_code: "wal-gap".into(),
            message: "WAL segment 000000010000000000000003 is in no copy".into(),
            detail: None,
            hint: None,
        });
        assert_eq!(judge(&facts).status, status);
    }
}

#[test]
fn a_failure_outweighs_a_doubt_and_leads_the_reasons() {
    let mut facts = good();
    set(&mut facts, "row-proof", CheckResult::CouldNotLook, None);
    set(
        &mut facts,
        "page-checksums",
        CheckResult::Fail,
        Some(code::PAGE_CHECKSUMS_BAD),
    );
    let verdict = judge(&facts);
    assert_eq!(verdict.status, Status::Failed);
    assert_eq!(
        verdict.reasons.first().map(|reason| reason.weight),
        Some(Weight::Failure)
    );
}

#[test]
fn a_recorded_pass_is_computed_again_from_the_digests() {
    let mut facts = good();
    if let Some(proof) = &mut facts.row_proof {
        proof.tables[0].copy = digest(7, "bb");
    }
    let verdict = judge(&facts);
    assert_eq!(
        (verdict.status, codes(&verdict)),
        (Status::Failed, vec![code::EVIDENCE_CONTRADICTS])
    );
    facts.row_proof = None;
    assert_eq!(judge(&facts).status, Status::Failed, "a PASS without any digest");
    let mut facts = good();
    facts.rto = Some(Rto {
        total_ms: 90 * 60 * 1000 + 1,
        ..Rto::default()
    });
    assert_eq!(judge(&facts).status, Status::Failed);
    let mut facts = good();
    facts.rpo = None;
    assert_eq!(judge(&facts).status, Status::Failed);
}

#[test]
fn isolation_that_is_less_than_full_takes_away_the_plain_pass() {
    let mut facts = good();
    if let Some(quarantine) = &mut facts.quarantine {
        quarantine.level = QuarantineLevel::Partial;
        quarantine.layers[0].applied = false;
    }
    let verdict = judge(&facts);
    assert_eq!(
        (verdict.status, codes(&verdict)),
        (Status::PassedWithObservations, vec![code::QUARANTINE_PARTIAL])
    );
    if let Some(quarantine) = &mut facts.quarantine {
        quarantine.layers.clear();
        quarantine.level = QuarantineLevel::ConfigurationOnly;
    }
    assert_eq!(codes(&judge(&facts)), [code::QUARANTINE_CONFIGURATION_ONLY]);
    facts.quarantine = None;
    assert_eq!(judge(&facts).status, Status::Inconclusive);
}

#[test]
fn a_probe_that_gets_through_full_isolation_fails_the_drill() {
    let mut facts = good();
    if let Some(quarantine) = &mut facts.quarantine {
        quarantine.probes.push(ProbeFacts {
            name: "connect-production-socket".into(),
            expectation: "denied".into(),
            outcome: "allowed".into(),
            result: ProbeResult::Breached,
        });
    }
    let verdict = judge(&facts);
    assert_eq!(
        (verdict.status, codes(&verdict)),
        (Status::Failed, vec![code::QUARANTINE_BREACHED])
    );
}

#[test]
fn a_planted_fault_that_nobody_noticed_fails_the_drill() {
    let mut facts = good();
    facts.planted_faults.push("row-changed-in-copy".into());
    assert_eq!(codes(&judge(&facts)), [code::FAULT_NOT_NOTICED]);
    set(
        &mut facts,
        "row-proof",
        CheckResult::Fail,
        Some(code::ROWS_DIFFER),
    );
    assert_eq!(codes(&judge(&facts)), [code::ROWS_DIFFER]);
}

#[test]
fn without_a_stop_there_is_no_pass() {
    let mut facts = good();
    facts.target.stops.clear();
    assert_eq!(judge(&facts).status, Status::Inconclusive);
    let mut facts = good();
    facts.target.stops[0].outcome = StopOutcome::Failed;
    assert_eq!(judge(&facts).status, Status::Failed);
}

#[test]
fn two_absences_and_failed_looks_are_never_equal() {
    let proof = |production: Side, copy: Side| {
        TableProof {
            database: "d".into(),
            table: "t".into(),
            production,
            copy,
        }
        .result()
    };
    let lost = || Side::CouldNotLook("lock".into());
    assert_eq!(proof(lost(), lost()), CheckResult::CouldNotLook);
    assert_eq!(proof(Side::Absent, Side::Absent), CheckResult::CouldNotLook);
    assert_eq!(
        proof(Side::Unreadable("XX001".into()), Side::Unreadable("XX001".into())),
        CheckResult::CouldNotLook
    );
    assert_eq!(proof(digest(1, "a"), Side::Absent), CheckResult::Fail);
    assert_eq!(proof(Side::Absent, digest(1, "a")), CheckResult::Fail);
    assert_eq!(
        proof(digest(1, "a"), Side::Unreadable("XX001".into())),
        CheckResult::Fail
    );
    assert_eq!(
        proof(digest(1, "a"), digest(2, "a")),
        CheckResult::Fail,
        "equal sums of another number of rows"
    );
    assert_eq!(proof(digest(1, "a"), digest(1, "a")), CheckResult::Pass);
}

#[test]
fn the_same_facts_read_back_from_json_give_the_same_verdict() {
    let mut facts = good();
    set(&mut facts, "row-proof", CheckResult::NotRun, None);
    let text = serde_json::to_string(&facts).expect("facts are JSON");
    assert!(text.contains("\"NOT RUN\""));
    let again: Facts = serde_json::from_str(&text).expect("and read back");
    assert_eq!(again, facts);
    assert_eq!(judge(&again), judge(&facts));
    let verdict = serde_json::to_string(&judge(&facts)).expect("JSON");
    assert!(verdict.contains("INCONCLUSIVE"));
}

#[test]
fn exit_codes_are_those_of_the_design() {
    let codes: Vec<u8> = [
        Status::Passed,
        Status::PassedWithObservations,
        Status::Failed,
        Status::Inconclusive,
        Status::Aborted,
    ]
    .map(Status::exit_code)
    .into();
    assert_eq!(codes, [0, 0, 3, 4, 4]);
}

fn instant(id: &str, offset_ms: u64) -> InstantFacts {
    InstantFacts {
        id: id.into(),
        at: Timestamp::UNIX_EPOCH,
        offset_ms: Some(offset_ms),
    }
}

/// A drill with a clock of 90 s that took 40 s.
fn clocked() -> Facts {
    let mut facts = good();
    facts.instants = vec![instant("plan-started", 1_000), instant("stabilised", 41_000)];
    facts.clocks = vec![ClockFacts {
        id: "rto".into(),
        profile: "quarterly-pitr".into(),
        check: "rto".into(),
        measure: Measure::RecoveryTime,
        expression: "stabilised - plan-started".into(),
        target_ms: 90_000,
        warning_ms: Some(60_000),
        measured_ms: Some(40_000),
        result: CheckResult::Pass,
        reason: None,
    }];
    facts
}

#[test]
fn a_clock_is_computed_again_from_the_instants() {
    assert_eq!(judge(&clocked()).status, Status::Passed);
    let contradicts = |change: fn(&mut Facts)| {
        let mut facts = clocked();
        change(&mut facts);
        let verdict = judge(&facts);
        assert_eq!(verdict.status, Status::Failed, "{:?}", verdict.reasons);
        assert_eq!(verdict.reasons[0].code, code::EVIDENCE_CONTRADICTS);
    };
    contradicts(|facts| facts.instants[1].offset_ms = Some(141_000));
    contradicts(|facts| facts.instants.truncate(1));
    contradicts(|facts| facts.clocks[0].measured_ms = Some(1));
    contradicts(|facts| facts.clocks[0].target_ms = 30_000);
    contradicts(|facts| facts.checks.retain(|check| check.id != "rto"));
    contradicts(|facts| {
        let value = serde_json::json!({ "objectives": [{
            "id": "rto", "measure": "recovery-time", "expression": "stabilised - plan-started",
            "target": { "secs": 60, "nanos": 0 }, "warning": null,
        }] });
        facts.profiles = vec![ProfileFacts {
            name: "quarterly-pitr".into(),
            source: "built-in".into(),
            extends: vec![],
            digest: String::new(),
            value,
            objectives_only: false,
        }];
    });
}

fn gate(result: CheckResult, blocking: bool) -> GateFacts {
    GateFacts {
        id: "backup-age".into(),
        title: "Age of the newest backup".into(),
        limit: "less than 26 h".into(),
        actual: "27 h".into(),
        result,
        blocking,
        hint: None,
    }
}

#[test]
fn a_closed_gate_is_an_observation_and_a_blocking_one_leaves_everything_open() {
    let of = |result: CheckResult, blocking: bool| {
        let mut facts = good();
        facts.gates = vec![gate(result, blocking)];
        judge(&facts).status
    };
    assert_eq!(of(CheckResult::Pass, true), Status::Passed);
    assert_eq!(of(CheckResult::NotRun, true), Status::Passed);
    assert_eq!(of(CheckResult::Fail, false), Status::PassedWithObservations);
    assert_eq!(
        of(CheckResult::CouldNotLook, false),
        Status::PassedWithObservations
    );
    assert_eq!(of(CheckResult::Fail, true), Status::Inconclusive);
    assert_eq!(of(CheckResult::CouldNotLook, true), Status::Inconclusive);
}

#[test]
fn a_second_try_and_a_slow_step_are_observations() {
    let step = |limit_ms: Option<u64>, retries: Vec<RetryFacts>| {
        let mut facts = good();
        facts.steps.push(StepFacts {
            id: "restore".into(),
            title: "Restore".into(),
            started_at: Timestamp::UNIX_EPOCH,
            duration_ms: 5_000,
            outcome: StepOutcome::Done,
            detail: None,
            error_code: None,
            expected_ms: None,
            limit_ms,
            at_limit: None,
            retries,
            work_ms: Some(4_000),
        });
        let verdict = judge(&facts);
        (
            verdict.status,
            verdict.reasons.first().map(|reason| reason.code.clone()),
        )
    };
    assert_eq!(step(Some(5_000), vec![]).0, Status::Passed);
    let observed = |code: &str| (Status::PassedWithObservations, Some(code.to_string()));
    assert_eq!(step(Some(4_999), vec![]), observed(code::STEP_TOO_SLOW));
    let retry = RetryFacts {
        error_code: "store-failing".into(),
        message: "the store failed".into(),
        duration_ms: 10,
    };
    assert_eq!(step(None, vec![retry]), observed(code::STEP_RETRIED));
}

/// A drill whose step took 5 s.
fn with_step(limit_ms: u64, at_limit: Option<FailureKind>) -> Facts {
    let mut facts = good();
    facts.steps.push(StepFacts {
        id: "restore".into(),
        title: "Restore".into(),
        started_at: Timestamp::UNIX_EPOCH,
        duration_ms: 5_000,
        outcome: StepOutcome::Done,
        detail: None,
        error_code: None,
        expected_ms: None,
        limit_ms: Some(limit_ms),
        at_limit,
        retries: Vec::new(),
        work_ms: None,
    });
    facts
}

#[test]
fn a_step_over_its_limit_fails_the_drill_or_leaves_it_open_as_its_facts_say() {
    for (at_limit, status, code) in [
        (
            Some(FailureKind::Finding),
            Status::Failed,
            code::STEP_LIMIT_EXCEEDED,
        ),
        (
            Some(FailureKind::CouldNotLook),
            Status::Inconclusive,
            code::STEP_LIMIT_EXCEEDED,
        ),
        (None, Status::PassedWithObservations, code::STEP_TOO_SLOW),
    ] {
        assert_eq!(judge(&with_step(5_000, at_limit)).status, Status::Passed);
        // Judged from the times: also where nobody recorded that the drill failed.
        let mut facts = with_step(4_999, at_limit);
        let verdict = judge(&facts);
        assert_eq!(
            (verdict.status, verdict.reasons[0].code.as_str()),
            (status, code),
            "{at_limit:?}"
        );
        // Where it is recorded, it is said once.
        let Some(kind) = at_limit else { continue };
        facts.failure = Some(crate::step_limits::failure(&facts.steps[0], kind, None));
        let verdict = judge(&facts);
        let said = verdict
            .reasons
            .iter()
            .filter(|reason| reason.code == code::STEP_LIMIT_EXCEEDED);
        assert_eq!(said.count(), 1, "{verdict:?}");
        assert_eq!(verdict.status, status);
        let text = &verdict.reasons[0].text;
        assert!(
            text.contains("\"restore\"") && text.contains("4999 ms") && text.contains("5.0 s"),
            "{text}"
        );
        // A reason that was made milder does not hide what the step says.
        facts.failure = Some(Failure {
            kind: FailureKind::CouldNotLook,
            ..facts.failure.expect("it is there")
        });
        assert_eq!(judge(&facts).status, status);
    }
}

#[test]
fn a_drill_that_somebody_ended_is_aborted_however_long_its_step_took_to_end() {
    let mut facts = with_step(4_999, Some(FailureKind::Finding));
    facts.failure = Some(Failure {
        step: "restore".into(),
        kind: FailureKind::Aborted,
        code: code::ABORTED.into(),
        error_code: "drill-aborted".into(),
        message: "the drill was stopped".into(),
        detail: None,
        hint: None,
    });
    let verdict = judge(&facts);
    assert_eq!(verdict.status, Status::Aborted);
    assert!(
        verdict
            .reasons
            .iter()
            .any(|reason| reason.code == code::STEP_TOO_SLOW)
    );
}

#[test]
fn a_limit_in_facts_of_an_older_program_is_what_it_was_an_observation() {
    let mut old = serde_json::to_value(with_step(4_999, Some(FailureKind::Finding))).expect("JSON");
    let step = old["steps"][0].as_object_mut().expect("a step");
    assert_eq!(step.remove("at_limit"), Some("finding".into()));
    let facts: Facts = serde_json::from_value(old).expect("it reads");
    assert_eq!(facts.version, 1);
    let verdict = judge(&facts);
    assert_eq!(verdict.status, Status::PassedWithObservations);
    assert_eq!(verdict.reasons[0].code, code::STEP_TOO_SLOW);
}

#[test]
fn what_the_profile_accepts_as_not_run_is_no_observation_and_nothing_else_is_accepted() {
    let of = |result: CheckResult, accepted: bool| {
        let mut facts = good();
        set(&mut facts, "amcheck", result, None);
        if accepted {
            facts.objectives.may_be_not_run = vec!["amcheck".into()];
        }
        judge(&facts).status
    };
    assert_eq!(of(CheckResult::NotRun, true), Status::Passed);
    assert_eq!(of(CheckResult::NotRun, false), Status::PassedWithObservations);
    assert_eq!(of(CheckResult::CouldNotLook, true), Status::Inconclusive);
    assert_eq!(of(CheckResult::Fail, true), Status::Failed);
}

fn by_hand(required: bool, state: ManualState) -> ManualFacts {
    let now: Timestamp = "2026-01-25T14:30:00Z".parse().expect("a time");
    let said = state != ManualState::NotConfirmed;
    ManualFacts {
        id: "window".into(),
        title: "A window is agreed".into(),
        when: ManualWhen::Before,
        required,
        limit_ms: 900_000,
        asked_at: Some(now),
        state,
        by: said.then(|| "Ann".into()),
        at: said.then_some(now),
        why: (state != ManualState::Confirmed).then(|| "nobody confirmed it within 15 min".into()),
    }
}

#[test]
fn a_required_step_of_people_that_nobody_confirmed_is_a_doubt_and_another_one_an_observation() {
    let judged = |steps: Vec<ManualFacts>| {
        let mut facts = good();
        facts.manual = steps;
        judge(&facts)
    };
    let confirmed = by_hand(true, ManualState::Confirmed);
    assert_eq!(judged(vec![confirmed.clone()]).status, Status::Passed);
    for state in [ManualState::NotConfirmed, ManualState::Skipped] {
        let verdict = judged(vec![by_hand(true, state)]);
        assert_eq!(verdict.status, Status::Inconclusive, "{state:?}");
        assert_eq!(verdict.reasons[0].code, code::MANUAL_STEP_OPEN);
        let verdict = judged(vec![by_hand(false, state)]);
        assert_eq!(verdict.status, Status::PassedWithObservations, "{state:?}");
        assert!(verdict.reasons[0].text.contains("within 15 min"), "{verdict:?}");
    }
    let skipped = judged(vec![by_hand(true, ManualState::Skipped)]);
    assert!(skipped.reasons[0].text.contains("skipped by Ann"), "{skipped:?}");
    // "Confirmed" without a name or a time confirms nothing.
    let changes: [fn(&mut ManualFacts); 3] = [
        |step| step.by = None,
        |step| step.by = Some(" ".into()),
        |step| step.at = None,
    ];
    for change in changes {
        let mut step = confirmed.clone();
        change(&mut step);
        assert_eq!(judged(vec![step]).status, Status::Inconclusive);
    }
}

#[test]
fn a_step_of_people_that_the_profile_asks_for_and_nothing_was_recorded_of_is_open() {
    let mut facts = good();
    facts.profiles.push(ProfileFacts {
        name: "shop".into(),
        source: "file".into(),
        extends: Vec::new(),
        digest: String::new(),
        value: serde_json::json!({ "manual": [{ "id": "window", "required": true }] }),
        objectives_only: false,
    });
    assert_eq!(judge(&facts).status, Status::Inconclusive);
    facts.manual = vec![by_hand(true, ManualState::Confirmed)];
    assert_eq!(judge(&facts).status, Status::Passed);
}

#[test]
fn a_step_of_people_that_an_ended_drill_did_not_come_to_follows_from_that_end() {
    let mut facts = good();
    facts.failure = Some(Failure {
        step: "restore".into(),
        kind: FailureKind::Finding,
        code: code::OBJECT_DAMAGED.into(),
        error_code: code::OBJECT_DAMAGED.into(),
        message: "a pack is damaged".into(),
        detail: None,
        hint: None,
    });
    let mut step = by_hand(true, ManualState::NotConfirmed);
    step.asked_at = None;
    facts.manual = vec![step];
    let verdict = judge(&facts);
    assert_eq!(verdict.status, Status::Failed);
    let open = verdict
        .reasons
        .iter()
        .find(|reason| reason.code == code::MANUAL_STEP_OPEN);
    assert_eq!(open.expect("it is said").weight, Weight::Observation);
}

#[test]
fn facts_of_an_older_program_have_no_steps_of_people_and_read() {
    let mut old = serde_json::to_value(good()).expect("JSON");
    let removed = old.as_object_mut().expect("an object").remove("manual");
    assert_eq!(removed, None, "an empty list is not written");
    let facts: Facts = serde_json::from_value(old).expect("it reads");
    assert_eq!(facts.manual, []);
    let mut with = good();
    with.manual = vec![by_hand(true, ManualState::Confirmed)];
    let text = serde_json::to_string(&with).expect("JSON");
    assert_eq!(
        serde_json::from_str::<Facts>(&text).expect("it reads").manual,
        with.manual
    );
}
