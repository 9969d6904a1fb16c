//! What an error that ends a drill means: the recovery does not work, or nothing could be seen.
//!
//! Invariant: an unknown error is never a finding and never a pass: it is "could not look".

use diagnostic::Error;

use crate::facts::{Failure, FailureKind};
use crate::rows::aborted;
use crate::server_error::texts;
use crate::verdict::code;

/// Reason codes that errors of this room carry themselves; each is a finding.
const FINDINGS: [&str; 10] = [
    code::WAL_MISSING,
    code::OBJECT_DAMAGED,
    code::TARGET_UNREACHABLE,
    code::TARGET_NOT_REACHED,
    code::PAUSED_BY_PARAMETER_CHANGE,
    code::RECOVERY_STOPPED_EARLY,
    code::SERVER_ENDED,
    code::NO_BACKUP,
    code::NOT_ARCHIVED,
    code::KEY_WRONG,
];

/// Kind and reason code of an error.
pub fn classify(error: &Error) -> (FailureKind, &'static str) {
    let found = |code: &'static str| (FailureKind::Finding, code);
    let given = error.code();
    if let Some(code) = FINDINGS.into_iter().find(|code| *code == given) {
        return found(code);
    }
    match given {
        "drill-aborted" => (FailureKind::Aborted, code::ABORTED),
        "wal-gap" => found(code::WAL_MISSING),
        "wal-damaged" | "wal-conflict" | "wal-segment-name" | "object-missing" | "repository-format"
        | "backup-record" => found(code::OBJECT_DAMAGED),
        damaged if damaged.ends_with("-damaged") => found(code::OBJECT_DAMAGED),
        "target-before-backup-end"
        | "target-beyond-archive"
        | "time-target-needs-later-commit"
        | "unknown-xid"
        | "unknown-restore-point"
        | "backup-not-on-timeline"
        | "timeline-unknown"
        | "timeline-ambiguous"
        | "history-ambiguous" => found(code::TARGET_UNREACHABLE),
        "backup-unknown" | "backup-missing" => found(code::NO_BACKUP),
        "key-role" | "key-epoch" => found(code::KEY_WRONG),
        // Nothing was tried, so nothing is known of the recovery.
        code::GATE_CLOSED => (FailureKind::CouldNotLook, code::GATE_CLOSED),
        "point-not-made" => (FailureKind::CouldNotLook, code::POINT_NOT_MADE),
        _ => (FailureKind::CouldNotLook, code::COULD_NOT_LOOK),
    }
}

/// The failure of a step, fit for the evidence.
pub fn failure(step: &str, error: &Error) -> Failure {
    let (kind, code) = classify(error);
    let (message, detail) = texts(error);
    Failure {
        step: step.into(),
        kind,
        code: code.into(),
        error_code: error.code().into(),
        message,
        detail,
        hint: error.hint_text().map(Into::into),
    }
}

/// The failure of a step that was told to end: whatever error that made, somebody ended it. What is wrong with the
/// recovery stays what it is; that its server is gone is our own doing.
pub fn of_ended(failure: Failure) -> Failure {
    let own_doing = failure.code == code::SERVER_ENDED;
    if failure.kind != FailureKind::CouldNotLook && !own_doing {
        return failure;
    }
    Failure {
        kind: FailureKind::Aborted,
        code: code::ABORTED.into(),
        detail: Some(format!(
            "Its last words: {}.",
            failure.message.trim_end_matches('.')
        )),
        message: aborted().message().into(),
        hint: None,
        ..failure
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_segment_fails_and_an_unreachable_server_does_not() {
        for (given, expected) in [
            ("wal-gap", (FailureKind::Finding, code::WAL_MISSING)),
            ("object-damaged", (FailureKind::Finding, code::OBJECT_DAMAGED)),
            ("tree-damaged", (FailureKind::Finding, code::OBJECT_DAMAGED)),
            (
                "target-beyond-archive",
                (FailureKind::Finding, code::TARGET_UNREACHABLE),
            ),
            ("no-backup", (FailureKind::Finding, code::NO_BACKUP)),
            (
                "recovery-stopped-early",
                (FailureKind::Finding, code::RECOVERY_STOPPED_EARLY),
            ),
            (
                "server-unreachable",
                (FailureKind::CouldNotLook, code::COULD_NOT_LOOK),
            ),
            (
                "destination-too-small",
                (FailureKind::CouldNotLook, code::COULD_NOT_LOOK),
            ),
            (
                "replay-timeout",
                (FailureKind::CouldNotLook, code::COULD_NOT_LOOK),
            ),
            ("drill-aborted", (FailureKind::Aborted, code::ABORTED)),
        ] {
            assert_eq!(classify(&Error::new(given, "x")), expected, "{given}");
        }
    }

    #[test]
    fn a_drill_that_was_ended_is_aborted_whatever_error_that_made_and_a_finding_stays_one() {
        let of = |code: &'static str| of_ended(failure("recover", &Error::new(code, "it is gone.")));
        for consequence in [
            "connection-lost",
            "restore-stopped",
            "server-unreachable",
            "server-ended",
        ] {
            let ended = of(consequence);
            assert_eq!(
                (ended.kind, ended.code.as_str(), ended.error_code.as_str()),
                (FailureKind::Aborted, code::ABORTED, consequence)
            );
            assert_eq!(ended.detail.as_deref(), Some("Its last words: it is gone."));
        }
        assert_eq!(of("drill-aborted").detail, None, "there is nothing to add");
        assert_eq!(of("object-damaged").kind, FailureKind::Finding);
    }
}
