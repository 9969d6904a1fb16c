//! What the archived WAL says: timelines, gaps, the archive's end, where a recovery target lies, what
//! happened to a table, and how much would be lost now.
//!
//! The room reads the indexes that stand behind archived segments, never the rows in them (one exception: a
//! record that spans two segments and was not resolved when it was archived is put together from both, if the
//! key at hand may open them). Invariants that the whole room keeps:
//!
//! - A timeline's number names nothing; its history does (system identifier, then parent and switch LSN of
//!   each step).
//! - A target is resolved exactly as PostgreSQL resolves it, record by record from the redo point of a named
//!   backup; commit times are never searched as if they were sorted.
//! - What could not be looked at (a gap, a damaged index, an unresolved seam) is part of every answer it
//!   touches.
//! - Memory does not grow with the archive: indexes are streamed, and only numbers of segments are kept (as
//!   runs).

mod archive;
#[cfg(test)]
mod archive_tests;
mod find;
#[cfg(test)]
mod find_tests;
mod point;
mod rpo;
mod seam;
mod source;
mod target;
#[cfg(test)]
mod testing;
mod timelines;
mod trace;
#[cfg(test)]
mod trace_tests;
mod window;

pub use archive::{Archive, ArchiveEnd, Gap, Located, SegmentRun};
pub use find::{Certainty, FindQuery, FoundEvent, TableEvent, Thresholds, find};
pub use point::{CommitPoint, Nearest};
pub use rpo::{LiveTail, Rpo, rpo};
pub use source::{MemorySource, RepositorySource, WalSource};
pub use target::{ResolvedTarget, Target, Unreachable, Wanted};
pub use timelines::{KnownHistory, Leg, Standing, Timelines, UnreachableHistory, WalPath};
pub use trace::{Maxima, Resolution, Start, TablespaceCreated, Trace, TraceEnd, WalRange};
pub use window::{Window, history_of};
