//! Deleting: records that retention gives up, packs that nothing refers to, WAL that nobody can use.
//! `docs/format.md` section 7 (order, and why each step is safe beside running backups, restores and drills).
//!
//! Invariants: a record goes only when no pin, live lease or live intent names it, seen directly before; a
//! pack is deleted only when it was unmarked twice, the second time longer after it was condemned than any
//! intent lives; while a live run or reader names a backup that is gone, nothing is condemned or deleted.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use diagnostic::{Error, Result};
use jiff::{SignedDuration, Timestamp};
use postgres::{SystemIdentifier, TimelineId, WalFile};
use serde::{Deserialize, Serialize};

use crate::backup::Backup;
use crate::container::Kind;
use crate::names::{BackupId, ClusterNames, PackKind, PackRef, RunId};
use crate::repository::ClusterRepository;
use crate::run::{INTENT_LIFE, Intent};
use crate::store::Put;
use crate::wal::split_digest;

/// How far clocks of hosts that share a repository may lie apart.
pub const CLOCK_TOLERANCE: SignedDuration = SignedDuration::from_mins(10);
/// A condemned pack is deleted after this long: the longest intent and the tolerance.
pub const CONDEMNED_WAIT: SignedDuration = SignedDuration::from_mins(70);
/// Expiries and verifications that are kept.
const STATEMENTS_KEPT: usize = 200;
/// What interrupted creations left is removed when it is this old.
const SWEEP_AFTER: SignedDuration = SignedDuration::from_hours(24);

const _: () = assert!(
    CONDEMNED_WAIT.as_secs() >= INTENT_LIFE.as_secs() + CLOCK_TOLERANCE.as_secs(),
    "packs must stay condemned for longer than any intent lives"
);

/// A pack with its stored bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct CondemnedPack {
    pub kind: PackKind,
    pub pack: PackRef,
    pub size: u64,
}

/// A statement below `condemned/`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Condemned {
    version: u32,
    at: Timestamp,
    packs: Vec<CondemnedPack>,
}

/// A run that is alive: it may still publish.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LiveRun {
    pub run: RunId,
    pub parent: Option<BackupId>,
    pub adopts: Vec<RunId>,
    pub expires_at: Timestamp,
}

/// Why a record stayed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Removal {
    Removed,
    /// Somebody came in between: who.
    Protected(String),
}

/// What collecting did, or (planned) would do now.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Collected {
    /// Packs deleted.
    pub deleted: u64,
    pub deleted_bytes: u64,
    /// Packs condemned now.
    pub condemned: u64,
    pub condemned_bytes: u64,
    /// Packs that were condemned before and wait.
    pub waiting: u64,
    pub waiting_bytes: u64,
    /// When everything condemned may be deleted.
    pub deletable_at: Option<Timestamp>,
    /// Why nothing was touched.
    pub blocked: Option<String>,
}

/// An object below `wal/` that names a segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WalObject {
    pub object: String,
    pub timeline: TimelineId,
    /// Of the segment.
    pub number: u64,
    /// A complete segment; otherwise a backup history or partial file beside it.
    pub segment: bool,
    pub bytes: u64,
    /// By the store's clock.
    pub modified: Timestamp,
}

/// What is alive.
struct Marked {
    packs: HashSet<(PackKind, PackRef)>,
    runs: HashSet<RunId>,
    blocked: Option<String>,
}

fn is_live(expires_at: Timestamp, now: Timestamp) -> bool {
    // A run whose clock is behind ours still believes in its intent.
    now < expires_at.saturating_add(CLOCK_TOLERANCE).unwrap_or(expires_at)
}

impl ClusterRepository {
    /// Runs that have no record and may still get one.
    pub fn live_runs(&self, now: Timestamp) -> Result<Vec<LiveRun>> {
        let mut live = Vec::new();
        for folder in self.store().list_folders(&self.names().intents())? {
            let Ok(run) = folder.parse::<RunId>() else {
                continue;
            };
            if let Some(intent) = self.latest_intent(run)?
                && is_live(intent.expires_at, now)
            {
                let Intent {
                    parent,
                    adopts,
                    expires_at,
                    ..
                } = intent;
                live.push(LiveRun {
                    run,
                    parent,
                    adopts,
                    expires_at,
                });
            }
        }
        // Only now: a run that has published since is no longer one.
        let records: BTreeSet<BackupId> = self.backup_ids()?.into_iter().collect();
        live.retain(|run| !records.contains(&run.run));
        Ok(live)
    }

    /// Who keeps this backup's record at this moment.
    pub fn protection(&self, backup: BackupId, now: Timestamp) -> Result<Option<String>> {
        if let Some(pin) = self.pin_of(backup)?.filter(|pin| pin.holds(now)) {
            return Ok(Some(match pin.reason.as_str() {
                "" => "a pin".to_owned(),
                reason => format!("a pin ({reason})"),
            }));
        }
        let leases = self.leases()?;
        let lease = leases
            .iter()
            .find(|lease| lease.backup == backup && is_live(lease.expires_at, now));
        if let Some(lease) = lease {
            return Ok(Some(format!(
                "a {} on {} until {}",
                lease.purpose, lease.by, lease.expires_at
            )));
        }
        let runs = self.live_runs(now)?;
        Ok(runs
            .iter()
            .find(|run| run.parent == Some(backup))
            .map(|run| format!("the running backup {}", run.run)))
    }

    /// Deletes a backup's record, so that it no longer exists, unless somebody uses it. One that is gone
    /// already is no error. Error: `store-denied` if this host may not delete.
    pub fn remove_record(&self, backup: BackupId, now: Timestamp) -> Result<Removal> {
        if let Some(by) = self.protection(backup, now)? {
            return Ok(Removal::Protected(by));
        }
        let name = self.names().record(backup);
        let Some(record) = self.store().read(&name)? else {
            return Ok(Removal::Removed);
        };
        self.delete(&name)?;
        // Somebody may have stated his use after we looked, and read the record before it went. What it refers
        // to is all there still, so it can be put back as it was.
        if let Some(by) = self.protection(backup, now)? {
            self.store().put_new(&name, &record)?;
            return Ok(Removal::Protected(by));
        }
        // The run has published, so its intents say nothing; without its record they would make it look alive.
        self.delete_all(&format!("{}{backup}/", self.names().intents()))?;
        Ok(Removal::Removed)
    }

    /// Deletes one object below this cluster, with words that say what to do when that is not allowed.
    pub(crate) fn delete(&self, name: &str) -> Result<()> {
        self.store().delete(name).map_err(|error| match error.code() {
            "store-denied" => error
                .context(format!("this host may not delete from {}", self.store().url()))
                .hint("Run `pgproof expire` where there is an account that may delete, or grant it to this one."),
            _ => error,
        })
    }

    fn condemned(&self) -> Result<Vec<(String, Condemned)>> {
        let mut all = Vec::new();
        for object in self.store().list(&self.names().condemned())? {
            // Gone since it was listed: another expiry has come to its end.
            if let Some(condemned) = self.get_statement(Kind::Statement, &object.name)? {
                all.push((object.name, condemned));
            }
        }
        Ok(all)
    }

    /// Packs that a run must not begin to refer to.
    pub(crate) fn condemned_packs(&self) -> Result<HashSet<(PackKind, PackRef)>> {
        let all = self.condemned()?;
        let packs = all.iter().flat_map(|(_, condemned)| &condemned.packs);
        Ok(packs.map(|pack| (pack.kind, pack.pack)).collect())
    }

    /// Every pack that a record, or a run that may still publish, refers to. Intents first, then leases, then
    /// records: what moves from one to the next is seen in one of them.
    fn mark(&self, now: Timestamp) -> Result<Marked> {
        let mut intents = Vec::new();
        for folder in self.store().list_folders(&self.names().intents())? {
            if let Ok(run) = folder.parse::<RunId>()
                && let Some(intent) = self.latest_intent(run)?
                && is_live(intent.expires_at, now)
            {
                intents.push(intent);
            }
        }
        let leases = self.leases()?;
        let records = self.backups()?;
        let ids: HashSet<BackupId> = records.iter().map(|record| record.backup).collect();
        let mut marked = Marked {
            packs: HashSet::new(),
            runs: HashSet::new(),
            blocked: None,
        };
        for intent in intents.iter().filter(|intent| !ids.contains(&intent.run)) {
            marked.runs.insert(intent.run);
            marked.runs.extend(&intent.adopts);
            if let Some(parent) = intent.parent.filter(|parent| !ids.contains(parent)) {
                marked.blocked = Some(format!(
                    "backup {} is running and builds on backup {parent}, whose record is gone",
                    intent.run
                ));
            }
        }
        for lease in leases.iter().filter(|lease| is_live(lease.expires_at, now)) {
            if !ids.contains(&lease.backup) {
                marked.blocked = Some(format!(
                    "a {} on {} reads backup {}, whose record is gone",
                    lease.purpose, lease.by, lease.backup
                ));
            }
        }
        for record in &records {
            match self.packs_of_backup(record) {
                Ok(packs) => marked.packs.extend(packs.into_keys()),
                // What it refers to cannot be told, so anything may be in use.
                Err(error) if matches!(error.code(), "object-damaged" | "object-missing") => {
                    marked.blocked = Some(format!(
                        "the pack table of backup {} cannot be read ({error})",
                        record.backup
                    ));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(marked)
    }

    /// Every pack that a backup refers to, its own pack table's included, with its bytes.
    pub fn packs_of_backup(&self, backup: &Backup) -> Result<HashMap<(PackKind, PackRef), u64>> {
        let table = self.pack_table(backup)?;
        let mut packs: HashMap<_, _> = table
            .into_iter()
            .map(|line| ((line.kind, line.pack), line.size))
            .collect();
        for frame in &backup.tree.pack_table {
            packs.insert((PackKind::Map, frame.pack), backup.tree.pack_table_size);
        }
        Ok(packs)
    }

    /// All packs that are stored.
    pub fn stored_packs(&self) -> Result<BTreeMap<(PackKind, PackRef), u64>> {
        let prefix = self.names().packs();
        let objects = self.store().list(&prefix)?;
        let parsed = objects.iter().filter_map(|object| {
            let (run, file) = object.name.strip_prefix(&prefix)?.split_once('/')?;
            let (kind, number) = ClusterNames::parse_pack(file)?;
            let run = run.parse().ok()?;
            Some(((kind, PackRef { run, number }), object.size))
        });
        Ok(parsed.collect())
    }

    /// What [`collect`](Self::collect) would do now.
    pub fn plan_collection(&self, now: Timestamp, wait: SignedDuration) -> Result<Collected> {
        let condemned = self.condemned()?;
        let marked = self.mark(now)?;
        Ok(self.sort_out(&marked, &condemned, now, wait)?.0)
    }

    /// What is to be deleted now, and what is to be condemned.
    #[allow(clippy::type_complexity)]
    fn sort_out(
        &self,
        marked: &Marked,
        condemned: &[(String, Condemned)],
        now: Timestamp,
        wait: SignedDuration,
    ) -> Result<(Collected, Vec<CondemnedPack>, Vec<CondemnedPack>)> {
        let mut result = Collected {
            blocked: marked.blocked.clone(),
            ..Collected::default()
        };
        let (mut delete, mut condemn) = (Vec::new(), Vec::new());
        if marked.blocked.is_some() {
            return Ok((result, delete, condemn));
        }
        let mut since: HashMap<(PackKind, PackRef), Timestamp> = HashMap::new();
        for (_, statement) in condemned {
            for pack in &statement.packs {
                let at = since.entry((pack.kind, pack.pack)).or_insert(statement.at);
                *at = statement.at.min(*at);
            }
        }
        for ((kind, pack), size) in self.stored_packs()? {
            if marked.packs.contains(&(kind, pack)) || marked.runs.contains(&pack.run) {
                continue;
            }
            let found = CondemnedPack { kind, pack, size };
            match since.get(&(kind, pack)) {
                Some(at) if now.duration_since(*at) >= wait => {
                    result.deleted += 1;
                    result.deleted_bytes += size;
                    delete.push(found);
                }
                other => {
                    let at = match other {
                        Some(at) => {
                            result.waiting += 1;
                            result.waiting_bytes += size;
                            *at
                        }
                        None => {
                            result.condemned += 1;
                            result.condemned_bytes += size;
                            condemn.push(found);
                            now
                        }
                    };
                    let ready = at.saturating_add(wait).unwrap_or(at);
                    result.deletable_at = Some(result.deletable_at.map_or(ready, |other| other.max(ready)));
                }
            }
        }
        Ok((result, delete, condemn))
    }

    /// Deletes packs that were condemned at least `wait` ago ([`CONDEMNED_WAIT`] outside tests) and that
    /// nothing refers to still, and condemns those that nothing refers to now.
    pub fn collect(&self, now: Timestamp, wait: SignedDuration) -> Result<Collected> {
        // Statements first: what they name is marked, or not, after they were made.
        let condemned = self.condemned()?;
        let marked = self.mark(now)?;
        let (result, delete, condemn) = self.sort_out(&marked, &condemned, now, wait)?;
        if result.blocked.is_some() {
            return Ok(result);
        }
        for pack in &delete {
            self.delete(&self.names().pack(pack.kind, &pack.pack))?;
        }
        for (name, statement) in &condemned {
            if now.duration_since(statement.at) >= wait {
                self.delete(name)?;
            }
        }
        if !condemn.is_empty() {
            self.condemn(condemn, now)?;
        }
        Ok(result)
    }

    fn condemn(&self, packs: Vec<CondemnedPack>, now: Timestamp) -> Result<()> {
        let statement = Condemned {
            version: 1,
            at: now,
            packs,
        };
        for seconds in 0..60 {
            let moment = now
                .saturating_add(SignedDuration::from_secs(seconds))
                .unwrap_or(now);
            let name = format!("{}{}", self.names().condemned(), RunId::at(moment));
            if self.put_statement(Kind::Statement, &name, &statement)? == Put::Created {
                return Ok(());
            }
        }
        Err(Error::new(
            "expiry-conflict",
            "many expiries condemn packs at the same moment",
        )
        .hint("Run the command again."))
    }

    /// Objects of a system that stand for a segment: segments, backup history and partial files.
    pub fn wal_objects(&self, system: SystemIdentifier, wal_segment_size: u32) -> Result<Vec<WalObject>> {
        let prefix = format!("{}{}/", self.names().wal(), system.0);
        let mut objects = Vec::new();
        for object in self.store().list(&prefix)? {
            let rest = object.name.strip_prefix(&prefix).unwrap_or_default();
            let Some((folder, _)) = rest.split_once('/') else {
                continue;
            };
            if matches!(folder, "claims" | "history" | "rollups") {
                continue;
            }
            let file = rest.rsplit('/').next().unwrap_or_default();
            let Some(name) = split_digest(file).and_then(|(name, _)| WalFile::parse(name, wal_segment_size))
            else {
                continue;
            };
            if let Some(number) = name.number() {
                objects.push(WalObject {
                    timeline: name.timeline(),
                    number,
                    segment: matches!(name, WalFile::Segment { .. }),
                    bytes: object.size,
                    modified: object.modified,
                    object: object.name,
                });
            }
        }
        objects.sort_by_key(|object| (object.number, object.segment, object.timeline));
        Ok(objects)
    }

    /// Deletes WAL, and files beside it.
    pub fn delete_wal(&self, object: &WalObject) -> Result<()> {
        self.delete(&object.object)
    }

    /// Removes statements that say nothing any more: intents that lapsed, leases that ended, pins of backups
    /// that are gone, what interrupted creations left. How many objects.
    pub fn tidy(&self, now: Timestamp) -> Result<u64> {
        let mut removed = 0;
        let over = |moment: Timestamp| {
            now.duration_since(moment)
                >= CONDEMNED_WAIT
                    .checked_add(CLOCK_TOLERANCE)
                    .unwrap_or(CONDEMNED_WAIT)
        };
        for folder in self.store().list_folders(&self.names().intents())? {
            let Ok(run) = folder.parse::<RunId>() else {
                continue;
            };
            if self
                .latest_intent(run)?
                .is_some_and(|intent| over(intent.expires_at))
            {
                removed += self.delete_all(&format!("{}{run}/", self.names().intents()))?;
            }
        }
        for lease in self.leases()? {
            if over(lease.expires_at) {
                removed += self.delete_all(&format!("{}{}/", self.names().leases(), lease.holder))?;
            }
        }
        let records: BTreeSet<BackupId> = self.backup_ids()?.into_iter().collect();
        for folder in self.store().list_folders(&self.names().pins())? {
            if folder
                .parse()
                .is_ok_and(|backup: BackupId| !records.contains(&backup))
            {
                removed += self.delete_all(&format!("{}{folder}/", self.names().pins()))?;
            }
        }
        // The newest ones say all that is asked of them.
        for prefix in [self.names().expiries(), self.names().verifications()] {
            let objects = self.store().list(&prefix)?;
            let old = objects.len().saturating_sub(STATEMENTS_KEPT);
            for object in objects.iter().take(old) {
                self.delete(&object.name)?;
                removed += 1;
            }
        }
        // Left by whoever was killed within that moment.
        for object in self.store().list(crate::expiries::PROBE)? {
            if over(object.modified) {
                self.delete(&object.name)?;
                removed += 1;
            }
        }
        removed += self
            .store()
            .sweep(now.saturating_sub(SWEEP_AFTER).unwrap_or(now))?;
        Ok(removed)
    }

    /// The newest last: should this be interrupted, what remains still ends with the word that holds.
    fn delete_all(&self, prefix: &str) -> Result<u64> {
        let objects = self.store().list(prefix)?;
        for object in &objects {
            self.delete(&object.name)?;
        }
        Ok(objects.len() as u64)
    }

    /// The newest moment that any statement, record or listing of this cluster knows, with where it stands.
    /// What announces the future (an intent's or lease's end) does not count.
    pub fn newest_moment(&self) -> Result<Option<(Timestamp, String)>> {
        let mut newest: Option<(Timestamp, String)> = None;
        let mut see = |at: Timestamp, what: String| {
            if newest.as_ref().is_none_or(|(other, _)| *other < at) {
                newest = Some((at, what));
            }
        };
        for object in self.store().list(&format!("{}/", self.names().prefix))? {
            see(object.modified, format!("object \"{}\"", object.name));
        }
        for backup in self.backups()? {
            see(
                backup.finished_at,
                format!("the record of backup {}", backup.backup),
            );
        }
        if let Some(expiry) = self.last_expiry()? {
            see(expiry.at, "the last expiry".to_owned());
        }
        for (name, condemned) in self.condemned()? {
            see(condemned.at, format!("object \"{name}\""));
        }
        for lease in self.leases()? {
            see(lease.taken_at, format!("the lease {}", lease.holder));
        }
        Ok(newest)
    }
}
