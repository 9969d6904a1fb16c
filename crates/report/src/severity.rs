//! How severe it is for production what a drill found, by rule.
//!
//! Invariant: pure; a drill that failed is never below SEV-2, whatever its reasons are called.

use drill::{Verdict, Weight, code};

/// The lower the number, the worse.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Production cannot be recovered, or not as it was: recovery, rows, archive or key.
    Sev1,
    /// It can be recovered, and an objective or a check of the application was missed.
    Sev2,
    /// It can be recovered, and something should be known.
    Sev3,
}

impl Severity {
    /// The word and what it stands for.
    pub fn as_str(self) -> &'static str {
        match self {
            Severity::Sev1 => "SEV-1: recovery is impossible, or rows, the archive or a key are lost",
            Severity::Sev2 => "SEV-2: recovery works, and an objective or a check was missed",
            Severity::Sev3 => "SEV-3: recovery works, with observations",
        }
    }
}

/// What fails a drill because recovery does not work, or does not bring back what there was.
const RECOVERY: [&str; 22] = [
    code::WAL_MISSING,
    code::OBJECT_DAMAGED,
    code::HISTORY_POISONED,
    code::ROWS_DIFFER,
    code::ROWS_UNREADABLE,
    code::ROW_COUNTS_DIFFER,
    code::VERSIONS_DIFFER,
    code::SEQUENCE_BEHIND,
    code::TARGET_UNREACHABLE,
    code::TARGET_NOT_REACHED,
    code::MARKER_MISSING,
    code::MARKER_BEYOND_TARGET,
    code::PAGE_CHECKSUMS_BAD,
    code::AMCHECK_FAILED,
    code::PAUSED_BY_PARAMETER_CHANGE,
    code::RECOVERY_STOPPED_EARLY,
    code::SERVER_ENDED,
    code::ARCHIVE_CHANGED,
    code::ARCHIVE_COMMAND_WOULD_RUN,
    code::NO_BACKUP,
    code::NOT_ARCHIVED,
    code::KEY_WRONG,
];

/// The severity, and the place of the reason that decides it; nothing where there is nothing to say, or where nobody can
/// tell. `reached`: the copy stood at its target.
pub fn of(verdict: &Verdict, reached: bool) -> Option<(Severity, usize)> {
    let of_reason = |weight: Weight, code: &str| match weight {
        Weight::Failure if RECOVERY.contains(&code) => Some(Severity::Sev1),
        // A recovery that was ended on its way was not seen to work.
        Weight::Failure if code == code::STEP_LIMIT_EXCEEDED && !reached => Some(Severity::Sev1),
        Weight::Failure => Some(Severity::Sev2),
        Weight::Observation => Some(Severity::Sev3),
        // Nothing was seen of the recovery.
        Weight::Doubt | Weight::Abort => None,
    };
    let all = verdict.reasons.iter().enumerate();
    all.filter_map(|(at, reason)| Some((of_reason(reason.weight, &reason.code)?, at)))
        .min()
}

#[cfg(test)]
mod tests {
    use super::*;
    use drill::{Reason, Status};

    fn of_reasons(reasons: &[(Weight, &str)]) -> Option<Severity> {
        of_drill(reasons, true)
    }

    fn of_drill(reasons: &[(Weight, &str)], reached: bool) -> Option<Severity> {
        let reasons = reasons.iter().map(|(weight, code)| Reason {
            code: (*code).into(),
            text: String::new(),
            check: None,
            weight: *weight,
        });
        let verdict = Verdict {
            status: Status::Failed,
            reasons: reasons.collect(),
        };
        of(&verdict, reached).map(|(severity, _)| severity)
    }

    #[test]
    fn what_cannot_be_recovered_is_the_worst_and_a_missed_objective_is_not() {
        let failed = |code| of_reasons(&[(Weight::Failure, code)]);
        for code in [
            code::WAL_MISSING,
            code::ROWS_DIFFER,
            code::KEY_WRONG,
            code::ARCHIVE_CHANGED,
            code::NO_BACKUP,
        ] {
            assert_eq!(failed(code), Some(Severity::Sev1), "{code}");
        }
        for code in [
            code::RTO_EXCEEDED,
            code::RPO_EXCEEDED,
            code::OBJECTIVE_EXCEEDED,
            code::ENDPOINT_UNHEALTHY,
            code::COMMAND_FAILED,
            code::TESTS_FAILED,
            "a-reason-of-a-newer-program",
        ] {
            assert_eq!(failed(code), Some(Severity::Sev2), "{code}");
        }
        // A step that was ended at its limit: before the target nobody saw a recovery.
        let limit = [(Weight::Failure, code::STEP_LIMIT_EXCEEDED)];
        assert_eq!(of_drill(&limit, false), Some(Severity::Sev1));
        assert_eq!(of_drill(&limit, true), Some(Severity::Sev2));
    }

    #[test]
    fn the_worst_reason_decides_and_an_observation_is_never_more_than_that() {
        let observed = (Weight::Observation, code::WAL_MISSING);
        assert_eq!(of_reasons(&[observed]), Some(Severity::Sev3));
        let late = (Weight::Failure, code::RTO_EXCEEDED);
        assert_eq!(of_reasons(&[observed, late]), Some(Severity::Sev2));
        let lost = (Weight::Failure, code::ROWS_DIFFER);
        assert_eq!(of_reasons(&[observed, late, lost]), Some(Severity::Sev1));
        assert_eq!(of_reasons(&[(Weight::Doubt, code::COULD_NOT_LOOK)]), None);
        assert_eq!(of_reasons(&[]), None);
    }
}
