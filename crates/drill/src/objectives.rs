//! Objectives: expressions over the instants that a drill records, and what they say about it.
//!
//! Invariants: pure; an expression is a length of time (as many instants are added as subtracted), so that it does
//! not hang on when the drill was run; what was not recorded is COULD NOT LOOK, and a time that runs backwards is
//! never a good one; the strictest objective of each measure comes first.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::facts::{
    Category, Check, CheckResult, ClockFacts, Facts, InstantFacts, Measure, ProfileFacts, Rpo, StepOutcome,
};
use crate::verdict::code;

/// The instants that a drill records, with what each means.
pub const INSTANTS: [(&str, &str); 14] = [
    ("drill-started", "the first step began"),
    (
        "point-made",
        "the point in production was made and its WAL archived",
    ),
    ("plan-started", "choosing the backup and planning began"),
    ("plan-finished", "the plan was made"),
    ("restore-started", "writing the data directory began"),
    ("restore-finished", "the data directory was written"),
    (
        "server-started",
        "the copy's server was started for the requested target",
    ),
    (
        "sessions-accepted",
        "the server accepted sessions while it replayed",
    ),
    ("target-reached", "the copy stood at the requested target"),
    (
        "stabilised",
        "a session was answered at the target; with endpoints in the profile, all of them had answered as expected",
    ),
    (
        "drill-finished",
        "the copy was gone, the archive compared and every check made",
    ),
    (
        "newest-commit",
        "production's newest commit when the drill began, by its record",
    ),
    (
        "newest-kept-commit",
        "the newest commit that the repository held then, by its record",
    ),
    (
        "recovered-commit",
        "the newest commit that the copy held at the target, by its record",
    ),
];

/// An expression over instants, in the words in which it was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Expression {
    text: String,
    /// How often each instant is added.
    terms: BTreeMap<String, i64>,
}

impl Expression {
    /// Reads `stabilised - plan-started`, `(restore-finished - restore-started) + (stabilised - target-reached)`.
    /// The error is a sentence.
    pub fn parse(text: &str) -> Result<Expression, String> {
        let spaced = text.replace('(', " ( ").replace(')', " ) ").replace('+', " + ");
        let mut terms: BTreeMap<String, i64> = BTreeMap::new();
        // The sign in front of each open bracket, and the sign of what comes next.
        let (mut outer, mut sign, mut wants_term) = (vec![1_i64], 1_i64, true);
        for word in spaced.split_whitespace() {
            let around = outer.last().copied().unwrap_or(1);
            match (word, wants_term) {
                ("(", true) => {
                    outer.push(around * sign);
                    sign = 1;
                }
                (")", false) if outer.len() > 1 => {
                    outer.pop();
                }
                ("+" | "-", false) => {
                    sign = if word == "-" { -1 } else { 1 };
                    wants_term = true;
                }
                (name, true) if name.starts_with(|c: char| c.is_ascii_lowercase()) => {
                    if !INSTANTS.iter().any(|(known, _)| *known == name) {
                        return Err(format!("there is no instant \"{name}\""));
                    }
                    let count = terms.entry(name.to_string()).or_default();
                    *count += around * sign;
                    wants_term = false;
                }
                (word, true) => return Err(format!("an instant should stand where \"{word}\" stands")),
                (word, false) => return Err(format!("\" + \" or \" - \" should stand before \"{word}\"")),
            }
        }
        if wants_term || outer.len() != 1 {
            return Err("the expression ends too early".into());
        }
        if terms.values().sum::<i64>() != 0 {
            return Err("it is no length of time: as many instants must be added as are subtracted".into());
        }
        terms.retain(|_, count| *count != 0);
        if terms.is_empty() {
            return Err("it is always nothing".into());
        }
        Ok(Expression {
            text: text.split_whitespace().collect::<Vec<_>>().join(" "),
            terms,
        })
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Milliseconds, or which instants are missing. The monotonic clock is used where all of them have it.
    pub fn evaluate(&self, instants: &[InstantFacts]) -> Result<i64, String> {
        let mut found = Vec::new();
        let mut missing = Vec::new();
        for (name, count) in &self.terms {
            match instants.iter().find(|instant| instant.id == *name) {
                Some(instant) => found.push((*count, instant)),
                None => missing.push(name.as_str()),
            }
        }
        if !missing.is_empty() {
            return Err(format!("not recorded: {}", missing.join(", ")));
        }
        let monotonic: Option<i64> = found
            .iter()
            .map(|(count, instant)| Some(count * i64::try_from(instant.offset_ms?).ok()?))
            .sum();
        Ok(monotonic.unwrap_or_else(|| {
            let micros: i64 = found
                .iter()
                .map(|(count, instant)| count * instant.at.as_microsecond())
                .sum();
            // Rounded up: an objective is never met by rounding.
            micros.div_euclid(1000) + i64::from(micros.rem_euclid(1000) > 0)
        }))
    }
}

impl TryFrom<String> for Expression {
    type Error = String;

    fn try_from(text: String) -> Result<Expression, String> {
        Expression::parse(&text)
    }
}

impl From<Expression> for String {
    fn from(expression: Expression) -> String {
        expression.text
    }
}

/// One objective of a profile.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Objective {
    /// `rto`, `rpo`, or a word of the user's.
    pub id: String,
    /// What it measures.
    pub measure: Measure,
    /// How.
    pub expression: Expression,
    /// At most so much.
    pub target: Duration,
    /// From here on a warning.
    pub warning: Option<Duration>,
}

/// The clock of `rto` where the profile does not say another one: restore completion + stabilisation.
pub const RTO_EXPRESSION: &str = "stabilised - plan-started";
/// The clock of `rpo`: newest commit that happened, against newest commit that the repository held.
pub const RPO_EXPRESSION: &str = "newest-commit - newest-kept-commit";
/// The share of an RTO from which on a recovery time is a warning: 60 of 90 minutes.
const WARNING_SHARE: (u32, u32) = (2, 3);

/// Two thirds of a recovery time objective.
pub fn warning_of(target: Duration) -> Duration {
    target * WARNING_SHARE.0 / WARNING_SHARE.1
}

/// Puts the strictest objective of each measure first: recovery times, recovery points, the others.
pub fn strictest_first(clocks: &mut [ClockFacts]) {
    let rank = |measure: Measure| match measure {
        Measure::RecoveryTime => 0,
        Measure::RecoveryPoint => 1,
        Measure::Other => 2,
    };
    clocks.sort_by_key(|clock| (rank(clock.measure), clock.target_ms));
}

/// The result of one clock, from what was measured alone. `rpo` is what lies behind a recovery point.
pub fn judge(
    clock: &ClockFacts,
    measured: Result<i64, String>,
    rpo: Option<&Rpo>,
) -> (CheckResult, Option<&'static str>, String) {
    let could_not_look = |why: String| (CheckResult::CouldNotLook, Some(code::COULD_NOT_LOOK), why);
    let measured = match measured {
        Ok(measured) => measured,
        Err(why) => return could_not_look(why),
    };
    if measured < 0 && clock.measure != Measure::RecoveryPoint {
        return could_not_look("the expression gave a time that runs backwards".into());
    }
    let measured = measured.max(0).unsigned_abs();
    let mut actual = seconds(measured);
    if clock.measure == Measure::RecoveryPoint
        && let Some(rpo) = rpo
    {
        actual.push_str(&format!(", {} commits", rpo.commits));
    }
    let (exceeded, at_risk) = match clock.measure {
        Measure::RecoveryTime => (code::RTO_EXCEEDED, code::RTO_AT_RISK),
        Measure::RecoveryPoint => (code::RPO_EXCEEDED, code::OBJECTIVE_AT_RISK),
        Measure::Other => (code::OBJECTIVE_EXCEEDED, code::OBJECTIVE_AT_RISK),
    };
    if measured > clock.target_ms {
        return (CheckResult::Fail, Some(exceeded), actual);
    }
    if clock.measure == Measure::RecoveryPoint && !rpo.is_some_and(|rpo| rpo.exact) {
        return could_not_look(format!(
            "at least {actual}: not all of the newest WAL could be read"
        ));
    }
    if clock.warning_ms.is_some_and(|warning| measured > warning) {
        return (CheckResult::Warn, Some(at_risk), actual);
    }
    (CheckResult::Pass, None, actual)
}

fn seconds(milliseconds: u64) -> String {
    format!("{}.{:03} s", milliseconds / 1000, milliseconds % 1000)
}

/// A clock of an objective, not measured yet. `own`: it is of the drill's own profile.
pub fn clock(objective: &Objective, profile: &str, own: bool) -> ClockFacts {
    ClockFacts {
        id: objective.id.clone(),
        profile: profile.into(),
        check: if own {
            objective.id.clone()
        } else {
            format!("{profile}.{}", objective.id)
        },
        measure: objective.measure,
        expression: objective.expression.as_str().into(),
        target_ms: objective.target.as_millis() as u64,
        warning_ms: objective.warning.map(|warning| warning.as_millis() as u64),
        measured_ms: None,
        result: CheckResult::NotRun,
        reason: Some(code::CHECK_NOT_RUN.into()),
    }
}

/// What the facts say of a clock. Where no server could lose anything its recovery point is not measured at all.
fn judge_by(clock: &ClockFacts, facts: &Facts) -> (Option<u64>, (CheckResult, Option<&'static str>, String)) {
    let skipped = |id: &str| {
        let step = facts.steps.iter().find(|step| step.id == id);
        step.is_some_and(|step| step.outcome == StepOutcome::Skipped)
    };
    if clock.measure == Measure::RecoveryPoint && facts.rpo.is_none() && skipped("rpo") {
        let why = "there is no server that could lose anything".to_string();
        return (None, (CheckResult::NotRun, Some(code::CHECK_NOT_RUN), why));
    }
    let measured = Expression::parse(&clock.expression).and_then(|each| each.evaluate(&facts.instants));
    let length = measured
        .as_ref()
        .ok()
        .filter(|measured| **measured >= 0 || clock.measure == Measure::RecoveryPoint)
        .map(|measured| measured.max(&0).unsigned_abs());
    (length, judge(clock, measured, facts.rpo.as_ref()))
}

/// Measures and judges one clock; the check that says so.
pub fn measure(clock: &mut ClockFacts, facts: &Facts, why_not: Option<&str>) -> Check {
    let (measured, (result, reason, mut actual)) = judge_by(clock, facts);
    clock.measured_ms = measured;
    if clock.measured_ms.is_none()
        && let Some(why) = why_not
    {
        actual = format!("{actual}; {why}");
    }
    clock.result = result;
    clock.reason = reason.map(Into::into);
    Check {
        id: clock.check.clone(),
        definition: format!("{}: {}", clock.profile, clock.expression),
        expected: format!("at most {}", seconds(clock.target_ms)),
        actual,
        result,
        reason: clock.reason.clone(),
        duration_ms: 0,
        category: Some(Category::Objective),
        detail: None,
    }
}

/// What contradicts itself in a recorded clock, computed again from the instants and from the profile that sets it.
/// `None`: it holds.
pub fn contradiction(clock: &ClockFacts, facts: &Facts) -> Option<String> {
    let (recomputed, (result, _, _)) = judge_by(clock, facts);
    if clock.measured_ms != recomputed {
        return Some("the recorded instants give another time".into());
    }
    if clock.result != result {
        return Some(format!(
            "it is recorded as {}, and comes to {result}",
            clock.result
        ));
    }
    match facts.check(&clock.check) {
        Some(check) if check.result == result => {}
        Some(check) => return Some(format!("its check is recorded as {}", check.result)),
        None => return Some("its check is missing".into()),
    }
    let profile = facts
        .profiles
        .iter()
        .find(|profile| profile.name == clock.profile)?;
    if target_in(profile, &clock.id).is_some_and(|target| target != clock.target_ms) {
        return Some(format!("profile {} sets another target", profile.name));
    }
    None
}

fn target_in(profile: &ProfileFacts, id: &str) -> Option<u64> {
    let objectives: Vec<Objective> = serde_json::from_value(profile.value.get("objectives")?.clone()).ok()?;
    let found = objectives.iter().find(|objective| objective.id == id)?;
    Some(found.target.as_millis() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instant(id: &str, offset_ms: Option<u64>, at: &str) -> InstantFacts {
        InstantFacts {
            id: id.into(),
            at: at.parse().expect("a time"),
            offset_ms,
        }
    }

    fn instants() -> Vec<InstantFacts> {
        vec![
            instant("plan-started", Some(2_000), "2026-01-25T14:00:02Z"),
            instant("restore-started", Some(3_000), "2026-01-25T14:00:03Z"),
            instant("restore-finished", Some(63_000), "2026-01-25T14:01:03Z"),
            instant("target-reached", Some(90_000), "2026-01-25T14:01:30Z"),
            // The wall clock was set back meanwhile: the monotonic one is believed.
            instant("stabilised", Some(92_500), "2026-01-25T13:00:00Z"),
            instant("newest-commit", None, "2026-01-25T13:59:59.5Z"),
            instant("newest-kept-commit", None, "2026-01-25T13:59:57.8095Z"),
        ]
    }

    fn value(text: &str) -> Result<i64, String> {
        Expression::parse(text).expect(text).evaluate(&instants())
    }

    #[test]
    fn an_expression_is_a_sum_of_differences_of_instants() {
        assert_eq!(value("stabilised - plan-started"), Ok(90_500));
        assert_eq!(
            value("(restore-finished - restore-started)+(stabilised - target-reached)"),
            Ok(62_500)
        );
        assert_eq!(
            value("stabilised - (restore-finished - restore-started) - plan-started"),
            Ok(30_500)
        );
        // Commits have no monotonic clock; 1.6905 s is rounded up.
        assert_eq!(value(RPO_EXPRESSION), Ok(1_691));
        assert!(value("drill-finished - plan-started").is_err_and(|why| why.contains("drill-finished")));
    }

    #[test]
    fn what_is_no_length_of_time_is_refused_with_the_reason() {
        for (text, why) in [
            ("", "too early"),
            ("stabilised", "no length of time"),
            ("stabilised -", "too early"),
            ("stabilised plan-started", "should stand before"),
            ("stabilised - - plan-started", "should stand where"),
            ("stabilised - (plan-started", "too early"),
            ("stabilised) - plan-started", "should stand before"),
            ("stabilised - plan-begun", "no instant \"plan-begun\""),
            ("stabilised - stabilised", "always nothing"),
            ("stabilised - 5", "should stand where"),
        ] {
            let error = Expression::parse(text).expect_err(text);
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    fn clock_of(measure: Measure, target_ms: u64) -> ClockFacts {
        ClockFacts {
            id: "x".into(),
            profile: "p".into(),
            check: "x".into(),
            measure,
            expression: RTO_EXPRESSION.into(),
            target_ms,
            warning_ms: Some(target_ms * 2 / 3),
            measured_ms: None,
            result: CheckResult::NotRun,
            reason: None,
        }
    }

    #[test]
    fn each_objective_has_a_result_of_its_own_and_never_passes_unmeasured() {
        let time = clock_of(Measure::RecoveryTime, 90_000);
        let of = |measured| judge(&time, measured, None);
        assert_eq!(of(Ok(60_000)).0, CheckResult::Pass);
        assert_eq!(
            (of(Ok(60_001)).0, of(Ok(60_001)).1),
            (CheckResult::Warn, Some(code::RTO_AT_RISK))
        );
        assert_eq!(of(Ok(90_000)).0, CheckResult::Warn);
        assert_eq!(of(Ok(90_001)).1, Some(code::RTO_EXCEEDED));
        assert_eq!(of(Ok(-1)).0, CheckResult::CouldNotLook);
        assert_eq!(of(Err("missing".into())).0, CheckResult::CouldNotLook);
        let point = ClockFacts {
            warning_ms: None,
            ..clock_of(Measure::RecoveryPoint, 5_000)
        };
        let rpo = |exact| Rpo {
            seconds: Some(1.0),
            bytes: 1,
            commits: 1,
            exact,
            method: String::new(),
            newest_commit_at: None,
            newest_kept_commit_at: None,
        };
        assert_eq!(judge(&point, Ok(1_000), Some(&rpo(true))).0, CheckResult::Pass);
        assert_eq!(
            judge(&point, Ok(1_000), Some(&rpo(false))).0,
            CheckResult::CouldNotLook
        );
        assert_eq!(judge(&point, Ok(1_000), None).0, CheckResult::CouldNotLook);
        assert_eq!(
            judge(&point, Ok(5_001), Some(&rpo(false))).1,
            Some(code::RPO_EXCEEDED)
        );
    }

    #[test]
    fn the_strictest_of_each_measure_comes_first() {
        let mut clocks = vec![
            clock_of(Measure::Other, 1),
            clock_of(Measure::RecoveryTime, 90),
            clock_of(Measure::RecoveryPoint, 5),
            clock_of(Measure::RecoveryTime, 5),
        ];
        strictest_first(&mut clocks);
        let targets: Vec<u64> = clocks.iter().map(|clock| clock.target_ms).collect();
        assert_eq!(targets, [5, 90, 5, 1]);
    }
}
