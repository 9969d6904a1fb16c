//! Retention: what is kept and why, what goes, and going about it. Facts + policy + now -> plan -> execution.
//!
//! Invariants of the whole room:
//!
//! - The last good way back is never removed, nor the newest one that was verified, nor anything pinned, nor
//!   anything that a running backup, restore or drill uses.
//! - A backup that is not whole is never counted in place of one that is.
//! - Every point inside the recovery window that could be reached before can be reached afterwards.
//! - Records go first, WAL last, so that an interruption leaves nothing that refers to something missing.
//! - Each copy is judged by what it holds itself: no copy relies on another one.

mod execute;
mod facts;
mod gather;
mod plan;
#[cfg(test)]
mod plan_tests;
mod plan_text;
mod policy;
mod reach;

pub use execute::{ExecuteOptions, ExpireResult, execute};
pub use facts::{BackupFacts, Facts, Reach, Standing, SystemFacts, TimelineFacts};
pub use gather::gather;
pub use plan::{ExpirePlan, Kept, Reason, Removed, WalRange, plan};
pub use policy::Policy;
pub use reach::Interval;
