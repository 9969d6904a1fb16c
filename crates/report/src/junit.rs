//! The checks as JUnit's XML, for whatever shows test results. Each check is a test case; only PASS passes.

use std::fmt::Write;

use drill::facts::{CheckResult, Facts};
use drill::{Verdict, Weight};

use crate::html::escaped;

/// `junit.xml`.
pub fn junit(facts: &Facts, verdict: &Verdict) -> String {
    let count = |result: CheckResult| facts.checks.iter().filter(|check| check.result == result).count();
    // What no check stands for (a step that failed, a stop that was not reached) is a case of its own.
    let others: Vec<_> = verdict
        .reasons
        .iter()
        .filter(|reason| reason.weight != Weight::Observation)
        .filter(|reason| reason.check.as_deref().is_none_or(|id| facts.check(id).is_none()))
        .collect();
    let failures = count(CheckResult::Fail) + others.iter().filter(|it| it.weight == Weight::Failure).count();
    let errors =
        count(CheckResult::CouldNotLook) + others.iter().filter(|it| it.weight != Weight::Failure).count();
    let total_ms: u64 = facts.checks.iter().map(|check| check.duration_ms).sum();
    let mut out = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
    let _ = writeln!(
        out,
        "<testsuites>\n<testsuite name=\"{}\" tests=\"{}\" failures=\"{failures}\" errors=\"{errors}\" skipped=\"{}\" \
         time=\"{:.3}\" timestamp=\"{}\" hostname=\"{}\">",
        escaped(&facts.identity.drill_id),
        facts.checks.len() + others.len(),
        count(CheckResult::NotRun),
        total_ms as f64 / 1000.0,
        facts.started_at.strftime("%Y-%m-%dT%H:%M:%S"),
        escaped(facts.identity.host.as_deref().unwrap_or("unknown"))
    );
    out.push_str("<properties>\n");
    for (name, value) in [
        ("cluster", facts.scope.cluster.as_str()),
        ("profile", facts.identity.profile.as_str()),
        ("verdict", verdict.status.as_str()),
        ("pgproof", facts.identity.tool_version.as_str()),
    ] {
        let _ = writeln!(out, "<property name=\"{name}\" value=\"{}\"/>", escaped(value));
    }
    out.push_str("</properties>\n");
    for check in &facts.checks {
        let _ = write!(
            out,
            "<testcase classname=\"{}\" name=\"{}\" time=\"{:.3}\"",
            escaped(&facts.identity.profile),
            escaped(&check.id),
            check.duration_ms as f64 / 1000.0
        );
        let reason = escaped(check.reason.as_deref().unwrap_or("check"));
        let words = escaped(&format!("expected {}; {}", check.expected, check.actual));
        let _ = match check.result {
            CheckResult::Pass => writeln!(out, "/>"),
            CheckResult::Warn => writeln!(out, "><system-out>WARN {reason}: {words}</system-out></testcase>"),
            CheckResult::Fail => {
                writeln!(
                    out,
                    "><failure type=\"{reason}\" message=\"{words}\"/></testcase>"
                )
            }
            CheckResult::CouldNotLook => {
                writeln!(out, "><error type=\"{reason}\" message=\"{words}\"/></testcase>")
            }
            CheckResult::NotRun => writeln!(out, "><skipped message=\"{words}\"/></testcase>"),
        };
    }
    for reason in others {
        let tag = if reason.weight == Weight::Failure {
            "failure"
        } else {
            "error"
        };
        let _ = writeln!(
            out,
            "<testcase classname=\"drill\" name=\"{0}\" time=\"0.000\"><{tag} type=\"{0}\" message=\"{1}\"/></testcase>",
            escaped(&reason.code),
            escaped(&reason.text)
        );
    }
    out.push_str("</testsuite>\n</testsuites>\n");
    out
}
