//! From the repository to a data directory: gather facts, plan, execute; serve WAL to recovery; adopt the
//! result.
//!
//! `restore` never starts a server: an operator or a drill does. Invariants of the whole room:
//!
//! - A target that cannot be reached is refused before anything is touched, with the nearest point that can.
//! - A plan leaves no choice open; [`execute`] does what it says or stops, and never destroys an existing
//!   directory: that is kept aside by renaming; but for a delta restore, which is confirmed by name.
//! - A half-restored directory cannot start: `global/pg_control` is put in place last, synced.
//! - A restored directory carries the marker `pgproof.restored` and archives nothing until it is adopted.

mod adopt;
mod anchored;
mod aside;
mod delta;
mod delta_files;
mod destination;
mod execute;
mod facts;
mod files;
mod large_file;
mod live;
mod marker;
mod plan;
#[cfg(test)]
mod plan_tests;
mod plan_text;
pub mod prefetch;
mod progress;
mod settings;
mod sync;
mod tablespaces;
mod timelines;
mod unarchived;
pub mod wal;

pub use adopt::{Adopted, adopt};
pub use delta::{DeltaCounts, DeltaPlan, survey};
pub use destination::{DestinationFacts, DestinationState};
pub use execute::{ExecuteOptions, RestoreResult, execute};
pub use facts::{
    Action, Attempt, Configuration, Facts, Purpose, Request, StopRequest, TablespaceChoice, TablespaceFacts,
    gather, system_of,
};
pub use live::LiveCluster;
pub use marker::{MARKER_NAME, Marker, Phase, read_marker};
pub use plan::{GeneratedFile, KeptAside, Plan, Stop, TablespacePlan, plan};
pub use prefetch::{FetchAhead, Prefetched, fetch_ahead};
pub use progress::{NoProgress, Progress, Step};
pub use settings::{REFERENCE_FOLDER, auto_conf, quote, write_stop};
pub use timelines::{Alternative, newest_timeline};
pub use wal::{Absent, PlaceOptions, Placed, PlacedWal, place_wal};
