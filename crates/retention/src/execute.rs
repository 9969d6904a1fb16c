//! Carrying a plan out: a flat list of steps, in the order that `docs/format.md` section 7 demands.
//!
//! Invariants: nothing is deleted, or said to be let go, before the store's clock agrees with ours; nothing is deleted
//! before the statement that says so is durable; a record goes only after a last look at who uses it; what a record
//! that stayed needs, or a reader, is taken out of the WAL that goes.

use diagnostic::{Error, Result};
use jiff::{SignedDuration, Timestamp};
use repository::{
    BackupId, CONDEMNED_WAIT, ClusterRepository, Collected, ExpiredWal, Expiry, ProtectedBackup, Removal,
};
use serde::Serialize;

use crate::plan::ExpirePlan;

/// How to go about it.
pub struct ExecuteOptions<'a> {
    /// Which host, for people.
    pub by: &'a str,
    pub clock: &'a dyn Fn() -> Timestamp,
    /// How long packs stay condemned: [`CONDEMNED_WAIT`] outside tests.
    pub condemned_wait: SignedDuration,
    /// How far the store's clock may lie from ours; `None` where a test has a clock of its own.
    pub store_clock_difference_max: Option<SignedDuration>,
}

impl<'a> ExecuteOptions<'a> {
    pub fn new(by: &'a str, clock: &'a dyn Fn() -> Timestamp) -> ExecuteOptions<'a> {
        ExecuteOptions {
            by,
            clock,
            condemned_wait: CONDEMNED_WAIT,
            store_clock_difference_max: Some(SignedDuration::from_mins(5)),
        }
    }
}

/// What was done.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ExpireResult {
    pub removed: Vec<BackupId>,
    /// Backups that somebody began to use after the plan was made.
    pub protected: Vec<ProtectedBackup>,
    pub wal_objects: u64,
    pub wal_bytes: u64,
    pub packs: Collected,
    /// Statements that say nothing any more, and what interrupted runs left.
    pub tidied: u64,
}

/// Executes. Errors: `clock-differs` (nothing was deleted), `store-denied`, those of the store. After any of
/// them the same command can be run again.
pub fn execute(
    plan: &ExpirePlan,
    cluster: &ClusterRepository,
    options: &ExecuteOptions<'_>,
) -> Result<ExpireResult> {
    let result = carry_out(plan, cluster, options);
    // Whether it was needed or not; a store without room for it tells so when something is to be kept.
    let _ = cluster.store().keep_reserve();
    result
}

fn carry_out(
    plan: &ExpirePlan,
    cluster: &ClusterRepository,
    options: &ExecuteOptions<'_>,
) -> Result<ExpireResult> {
    let mut result = ExpireResult {
        removed: Vec::new(),
        protected: Vec::new(),
        wal_objects: 0,
        wal_bytes: 0,
        packs: Collected::default(),
        tidied: 0,
    };
    // Also when nothing is to go: which intents and leases have lapsed is a question to the clock, too. And
    // before anything is stated: what a wrong clock lets go would count as let go for ever.
    let dated = with_reserve(cluster, || cluster.store_clock())?;
    check_clock(dated, options, plan)?;
    if !plan.remove.is_empty() || !plan.wal.is_empty() || plan.collection.deleted > 0 {
        let begun = Expiry {
            version: 1,
            at: (options.clock)(),
            by: options.by.to_owned(),
            finished: false,
            removed: plan.remove.iter().map(|removed| removed.backup).collect(),
            protected: Vec::new(),
            wal: plan.wal.iter().map(|wal| wal.range).collect(),
            objects: 0,
            bytes: 0,
        };
        with_reserve(cluster, || cluster.state_expiry(begun.clone()))?;
    }
    for removed in &plan.remove {
        match cluster.remove_record(removed.backup, (options.clock)())? {
            Removal::Removed => result.removed.push(removed.backup),
            Removal::Protected(by) => result.protected.push(ProtectedBackup {
                backup: removed.backup,
                by,
            }),
        }
    }
    result.packs = cluster.collect((options.clock)(), options.condemned_wait)?;
    delete_wal(plan, cluster, options, &mut result)?;
    result.tidied = cluster.tidy((options.clock)())?;
    let finished = Expiry {
        version: 1,
        at: (options.clock)(),
        by: options.by.to_owned(),
        finished: true,
        removed: result.removed.clone(),
        protected: result.protected.clone(),
        wal: Vec::new(),
        objects: result.removed.len() as u64 + result.wal_objects + result.packs.deleted,
        bytes: result.wal_bytes + result.packs.deleted_bytes,
    };
    with_reserve(cluster, || cluster.state_expiry(finished.clone()))?;
    Ok(result)
}

/// A full store must not keep us from making room in it.
fn with_reserve<T>(cluster: &ClusterRepository, write: impl Fn() -> Result<T>) -> Result<T> {
    match write() {
        Err(error) if error.code() == "store-full" && cluster.store().release_reserve()? => write(),
        written => written,
    }
}

fn check_clock(dated: Timestamp, options: &ExecuteOptions<'_>, plan: &ExpirePlan) -> Result<()> {
    let now = (options.clock)();
    match options.store_clock_difference_max {
        Some(most) if dated.duration_since(now).abs() > most => Err(Error::new(
            "clock-differs",
            format!(
                "the clocks of this host and of copy \"{}\" do not agree",
                plan.copy
            ),
        )
        .detail(format!(
            "This host says {now}; the store dated an object that was written just now {dated}. Nothing was \
             deleted."
        ))
        .hint("Set the clock (`timedatectl status`), then run the command again.")),
        _ => Ok(()),
    }
}

/// The lowest segment of a system that somebody needs whom the plan did not count: a record that is not in it, or
/// a reader whose backup is gone.
fn needed_since(plan: &ExpirePlan, cluster: &ClusterRepository, now: Timestamp) -> Result<Vec<ExpiredWal>> {
    let mut needed = Vec::new();
    let open_ended = |system, segment_size: u32, from: postgres::Lsn| ExpiredWal {
        system,
        timeline: postgres::TimelineId(0),
        first: from.segment(segment_size),
        last: u64::MAX,
        segment_size,
    };
    for lease in cluster.live_leases(now)? {
        let sizes = plan.wal.iter().filter(|wal| wal.range.system == lease.system);
        needed.extend(sizes.map(|wal| open_ended(lease.system, wal.range.segment_size, lease.from_lsn)));
    }
    for record in cluster.backups()? {
        if !plan.keep.iter().any(|kept| kept.backup == record.backup) {
            needed.push(open_ended(
                record.system_identifier,
                record.geometry.wal_segment_size,
                record.redo_lsn,
            ));
        }
    }
    Ok(needed)
}

fn delete_wal(
    plan: &ExpirePlan,
    cluster: &ClusterRepository,
    options: &ExecuteOptions<'_>,
    result: &mut ExpireResult,
) -> Result<()> {
    if plan.wal.is_empty() {
        return Ok(());
    }
    let needed = needed_since(plan, cluster, (options.clock)())?;
    let mut systems: Vec<_> = plan
        .wal
        .iter()
        .map(|wal| (wal.range.system, wal.range.segment_size))
        .collect();
    systems.sort_unstable();
    systems.dedup();
    for (system, segment_size) in systems {
        // In the order of their numbers: what an interruption leaves is the newer part.
        for object in cluster.wal_objects(system, segment_size)? {
            let goes = plan.wal.iter().any(|wal| {
                wal.range.system == system
                    && wal.range.timeline == object.timeline
                    && (wal.range.first..=wal.range.last).contains(&object.number)
            });
            let stays = needed
                .iter()
                .any(|needed| needed.system == system && object.number >= needed.first);
            if goes && !stays {
                cluster.delete_wal(&object)?;
                result.wal_objects += 1;
                result.wal_bytes += object.bytes;
            }
        }
    }
    Ok(())
}
