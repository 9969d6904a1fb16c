//! What was decided before the drill: the profiles, the gates, who takes part, and what was registered.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::CheckResult;

/// A profile that was applied.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProfileFacts {
    /// Its name.
    pub name: String,
    /// `built-in`, `file`, or `built-in, changed by file`.
    pub source: String,
    /// The profiles that it extends, the nearest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub extends: Vec<String>,
    /// BLAKE3 of `value` as compact JSON, in hex.
    pub digest: String,
    /// The profile with everything filled in: all that judging needs. No secrets: checks are there by definition,
    /// environments by name.
    pub value: serde_json::Value,
    /// Only its objectives are judged here: the drill's checks and its point are those of the first profile.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub objectives_only: bool,
}

/// A condition that was looked at before anything was restored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GateFacts {
    /// A stable word: `backup-age`. Guards of an environment (`target-env`) are gates too.
    pub id: String,
    /// For people: `Age of the newest backup`.
    pub title: String,
    /// `less than 26 h`.
    pub limit: String,
    /// `3 h 12 min (20260125T020003Z)`, or why nothing was seen.
    pub actual: String,
    /// PASS is go; WARN, NOT RUN and COULD NOT LOOK are an observation; FAIL is no-go.
    pub result: CheckResult,
    /// Whether the profile stops the drill at this gate.
    pub blocking: bool,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl GateFacts {
    /// Whether this gate keeps the drill from starting. What could not be looked at does not open a blocking gate.
    pub fn is_no_go(&self) -> bool {
        self.result == CheckResult::Fail || (self.blocking && self.result == CheckResult::CouldNotLook)
    }
}

/// Somebody who takes part, besides operator and reviewer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Person {
    /// `escalation`, `observer`, `dba`, `platform`, `qa`, `lead`, or a word of the user's.
    pub role: String,
    /// The name.
    pub name: String,
    /// From so many seconds of an outage on this one is called; nothing: as agreed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub called_after_seconds: Option<u64>,
}

/// When a step is made that people make.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ManualWhen {
    /// Before anything is restored.
    Before,
    /// While the copy stands at its last stop.
    AtTarget,
    /// Behind the comparison of the archive.
    After,
}

/// What became of a step that people make.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ManualState {
    /// Somebody says that it was made.
    Confirmed,
    /// Somebody says that it is not made, and why.
    Skipped,
    /// Nobody said anything in time, or the drill did not come to it.
    NotConfirmed,
}

/// A step that people make, and who confirmed it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManualFacts {
    /// A stable word: `incident-declared`.
    pub id: String,
    /// For people: `An incident is declared`.
    pub title: String,
    /// When it is made.
    pub when: ManualWhen,
    /// Whether the drill proves nothing without it.
    pub required: bool,
    /// How long the drill waits for it, in milliseconds.
    pub limit_ms: u64,
    /// When the drill came to it; absent: it did not.
    pub asked_at: Option<Timestamp>,
    /// What became of it.
    pub state: ManualState,
    /// Who confirmed or skipped it.
    pub by: Option<String>,
    /// When.
    pub at: Option<Timestamp>,
    /// Why it is not confirmed.
    pub why: Option<String>,
}

impl ManualFacts {
    /// Whether somebody, at some time, says that it was made.
    pub fn is_confirmed(&self) -> bool {
        let named = self.by.as_ref().is_some_and(|by| !by.trim().is_empty());
        self.state == ManualState::Confirmed && named && self.at.is_some()
    }
}

/// The plan that was registered before the run, and whether the run kept to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registration {
    /// The evidence that holds it: `registered_<UTC>` in the repository.
    pub id: String,
    /// When it was registered.
    pub registered_at: Timestamp,
    /// BLAKE3 of the registered policy (profiles with their digests), in hex.
    pub policy_digest: String,
    /// The same of what this run applied.
    pub policy_digest_now: String,
    /// What differs, in words; empty: the run kept to what was registered.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub deviations: Vec<String>,
}

/// A try of a step that failed and was made again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetryFacts {
    /// The error's code.
    pub error_code: String,
    /// The error's message.
    pub message: String,
    /// How long the failed try took.
    pub duration_ms: u64,
}
