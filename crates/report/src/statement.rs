//! The drill's result as an in-toto statement (Statement v1) with the framework's own predicate for test results
//! (`test-result/v0.1`). It is not signed by itself: signatures stand over the manifest, which names it.

use drill::facts::{CheckResult, Facts};
use drill::{Status, Verdict};
use serde_json::json;

/// `intoto.json`. Nothing if the facts cannot be written.
pub fn statement(facts: &Facts, verdict: &Verdict) -> Option<String> {
    let files = drill::evidence::derived(facts, verdict).ok()?;
    let subject: Vec<_> = files
        .iter()
        .map(|(name, content)| {
            json!({ "name": name, "digest": { "sha256": drill::evidence::sha256_hex(content) } })
        })
        .collect();
    let of = |results: &[CheckResult]| -> Vec<&str> {
        let checks = facts
            .checks
            .iter()
            .filter(|check| results.contains(&check.result));
        checks.map(|check| check.id.as_str()).collect()
    };
    // Whatever did not pass has failed, for whoever knows these three words only.
    let result = match verdict.status {
        Status::Passed => "PASSED",
        Status::PassedWithObservations => "WARNED",
        Status::Failed | Status::Inconclusive | Status::Aborted => "FAILED",
    };
    let plan = facts
        .plan
        .as_ref()
        .map(|plan| json!({ "name": "plan", "digest": { "blake3": plan.digest } }));
    let statement = json!({
        "_type": "https://in-toto.io/Statement/v1",
        "subject": subject,
        "predicateType": "https://in-toto.io/attestation/test-result/v0.1",
        "predicate": {
            "result": result,
            "configuration": plan.into_iter().collect::<Vec<_>>(),
            "passedTests": of(&[CheckResult::Pass]),
            "warnedTests": of(&[CheckResult::Warn, CheckResult::NotRun]),
            "failedTests": of(&[CheckResult::Fail, CheckResult::CouldNotLook]),
        },
    });
    let mut text = serde_json::to_string_pretty(&statement).ok()?;
    text.push('\n');
    Some(text)
}
