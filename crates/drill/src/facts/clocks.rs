//! Objectives as named clocks: the instants that the drill recorded, the expression over them, and what it gave.
//!
//! Invariant: a clock's result can be computed again from the instants beside it (`crate::objectives::evaluate`).

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::CheckResult;

/// A moment that the drill recorded. Each id is recorded once at most.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InstantFacts {
    /// One of [`crate::objectives::INSTANTS`]: `restore-finished`.
    pub id: String,
    /// The wall clock; for a commit the time in its record, which is the server's clock.
    pub at: Timestamp,
    /// Milliseconds of a monotonic clock since `drill-started`; absent for moments that the drill did not witness
    /// (commits of production).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offset_ms: Option<u64>,
}

/// What a clock measures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Measure {
    /// How long the recovery takes (RTO).
    RecoveryTime,
    /// How much is lost (RPO).
    RecoveryPoint,
    /// Anything else: stabilisation, the whole drill, the age of the recovered data.
    Other,
}

/// One objective with what was measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ClockFacts {
    /// The objective's name within its profile: `rto`, `rpo`, `stabilisation`.
    pub id: String,
    /// The profile that sets it.
    pub profile: String,
    /// The id of the check that holds its result: the clock's id for the drill's own profile, else
    /// `<profile>.<id>`.
    pub check: String,
    /// What it measures.
    pub measure: Measure,
    /// Over recorded instants: `stabilised - plan-started`. Sums and differences of instants in brackets.
    pub expression: String,
    /// At most so much.
    pub target_ms: u64,
    /// From here on a warning.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warning_ms: Option<u64>,
    /// What it was; absent where an instant of the expression was not recorded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measured_ms: Option<u64>,
    /// This objective's own verdict.
    pub result: CheckResult,
    /// The reason's code, for everything but PASS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}
