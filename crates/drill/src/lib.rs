//! A throw-away copy and what is done with it: drills, from the point made in production to the evidence.
//!
//! Looking (everything with an effect) is apart from judging ([`judge`], pure): a drill gathers [`Facts`],
//! and the verdict can be computed from them again by anybody. Invariants of the room: a copy cannot reach or
//! harm production, and the evidence says how far that was made sure; a plan for a drill comes from the
//! planner that `restore` uses; what could not be looked at never passes; a drill leaves production as it was
//! but for pgproof's own, bounded table.

pub mod amcheck;
pub mod archive;
pub mod audit;
#[cfg(test)]
mod audit_tests;
pub mod checks;
#[cfg(test)]
mod checks_tests;
pub mod choice;
pub mod classify;
pub mod copy;
pub mod copy_settings;
pub mod engine;
pub mod evidence;
pub mod facts;
pub mod fault;
pub mod feed;
pub mod follow_up;
pub mod forecast;
pub mod gates;
pub mod http;
mod isolation;
pub mod junit;
pub mod log;
pub mod manual;
pub mod objectives;
pub mod options;
mod own_checks;
pub mod page_checks;
pub mod perform;
#[cfg(test)]
mod perform_tests;
mod planting;
pub mod point;
pub mod preflight;
pub mod profile;
pub mod registration;
pub mod resume;
pub mod rows;
pub mod selftest;
pub mod sequences;
mod server_error;
pub mod server_verification;
pub mod sign_off;
pub mod signing;
pub mod snapshot;
mod soundness;
pub mod standing;
pub mod step_limits;
mod stops;
pub mod user_checks;
pub mod verdict;
#[cfg(test)]
mod verdict_tests;
pub mod versions;

pub use engine::{Outcome, run, take_up};
pub use evidence::document;
pub use facts::Facts;
pub use options::{
    BUILT_IN_CHECKS, DEFAULT_CHECKS, Documents, Drill, DrillTarget, Fault, Grant, Profile, SandboxOptions,
    Silent, Watcher,
};
pub use server_error::recorded_sqlstate;
pub use verdict::{Reason, Status, Verdict, Weight, code, judge};
