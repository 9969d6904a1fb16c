//! Runs: a backup from its first intent to its record. `docs/format.md` section 7.
//!
//! Invariants: the intent that names the parent is durable before anything of the parent is referred to, and
//! the parent is there after it; a run whose intent has lapsed does not publish, for collection may have
//! begun to remove what it refers to; the record is the last object that a run writes.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use diagnostic::{Error, Result};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::backup::{Backup, PackUse, RECORD_VERSION};
use crate::blocks::{FilePart, PackWriter};
use crate::container::{Kind, damaged, newer_format};
use crate::map::NODE_VERSION;
use crate::names::{BackupId, PackKind, PackRef, RunId};
use crate::nodes::{NodeReader, lock};
use crate::orphans::{OrphanBlocks, OrphanIndex};
use crate::repository::ClusterRepository;
use crate::store::Put;
use crate::tree_reader::TreeReader;
use crate::tree_writer::{Parent, TreeWriter};

/// How long an intent lives.
pub(crate) const INTENT_LIFE: SignedDuration = SignedDuration::from_hours(1);
/// An intent is renewed when it is older than this.
const INTENT_RENEWAL: SignedDuration = SignedDuration::from_mins(10);
/// Runs that begin in the same second take the next ones.
const SECONDS_TRIED: i64 = 60;

/// A statement below `intents/`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Intent {
    version: u32,
    pub(crate) run: RunId,
    pub(crate) parent: Option<BackupId>,
    /// Interrupted runs whose packs this one uses.
    pub(crate) adopts: Vec<RunId>,
    pub(crate) expires_at: Timestamp,
}

/// A run that has no record: it is going on, or was interrupted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunInfo {
    pub run: RunId,
    pub parent: Option<BackupId>,
    /// The run may publish until then; `None` if its intents are gone.
    pub expires_at: Option<Timestamp>,
    /// Complete packs that it has left so far.
    pub packs: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl ClusterRepository {
    /// Begins a backup: creates its intent, which names the parent, before anything refers to the parent.
    /// Errors: `backup-missing` if the parent is gone, and what reading its map may give.
    pub fn start_run(&self, parent: Option<&Backup>, now: Timestamp) -> Result<Run> {
        // Best done while there is room; that there is none is told by what is stored next.
        let _ = self.store().keep_reserve();
        let parent_id = parent.map(|parent| parent.backup);
        let mut chosen = None;
        for seconds in 0..SECONDS_TRIED {
            let id = RunId::at(
                now.saturating_add(SignedDuration::from_secs(seconds))
                    .unwrap_or(now),
            );
            let expires_at = now.saturating_add(INTENT_LIFE).unwrap_or(now);
            let intent = Intent {
                version: 1,
                run: id,
                parent: parent_id,
                adopts: Vec::new(),
                expires_at,
            };
            // A record whose intents were collected keeps its identifier.
            if self.store().size(&self.names().record(id))?.is_none()
                && self.store().list(&self.names().packs_of(id))?.is_empty()
                && self.put_statement(Kind::Statement, &self.names().intent(id, 1), &intent)? == Put::Created
            {
                chosen = Some((id, intent));
                break;
            }
        }
        let Some((id, intent)) = chosen else {
            return Err(
                Error::new("run-conflict", "too many backups begin at the same moment")
                    .hint("Check the host's clock, then run the command again."),
            );
        };
        let parent = match parent {
            None => None,
            Some(parent) => {
                // Before the intent was durable, somebody may have decided to remove it.
                let parent = self.backup(parent.backup)?;
                let packs = self.pack_table(&parent)?;
                let packs = packs
                    .into_iter()
                    .map(|pack| ((pack.kind, pack.pack), pack))
                    .collect();
                Some(Arc::new(Parent {
                    tree: TreeReader::open(self, &parent)?,
                    packs,
                }))
            }
        };
        let tree = Arc::new(TreeWriter::new(self, id, parent.clone())?);
        let inner = RunInner {
            cluster: self.clone(),
            id,
            parent,
            tree,
            rows_packs: AtomicU32::new(0),
            intent: Mutex::new(IntentState {
                latest: intent,
                number: 1,
                began: now,
            }),
            orphans: OnceLock::new(),
        };
        Ok(Run {
            inner: Arc::new(inner),
        })
    }

    /// All backups, oldest first. Damage to any record is an error; [`backup_ids`](Self::backup_ids) tells
    /// the others.
    pub fn backups(&self) -> Result<Vec<Backup>> {
        self.backup_ids()?.into_iter().map(|id| self.backup(id)).collect()
    }

    /// The identifiers of all backups, oldest first.
    pub fn backup_ids(&self) -> Result<Vec<BackupId>> {
        let prefix = self.names().backups();
        let objects = self.store().list(&prefix)?;
        Ok(objects
            .iter()
            .filter_map(|object| object.name.strip_prefix(&prefix)?.parse().ok())
            .collect())
    }

    /// Errors: `backup-missing`, `object-damaged`, `repository-format`, `key-epoch`.
    pub fn backup(&self, id: BackupId) -> Result<Backup> {
        let name = self.names().record(id);
        let backup: Backup = self.get_statement(Kind::Record, &name)?.ok_or_else(|| {
            Error::new(
                "backup-missing",
                format!("there is no backup {id} of cluster \"{}\"", self.name()),
            )
            .hint("Run `pgproof list` to see the backups.")
        })?;
        if backup.version != RECORD_VERSION {
            return Err(newer_format(&name, backup.version));
        }
        if backup.backup != id || backup.cluster != self.name() {
            return Err(damaged(&name, "it is the record of another backup"));
        }
        Ok(backup)
    }

    /// The object that makes a backup exist.
    pub fn record_object(&self, id: BackupId) -> String {
        self.names().record(id)
    }

    /// The object of a pack that a backup refers to.
    pub fn pack_object(&self, pack: &PackUse) -> String {
        self.names().pack(pack.kind, &pack.pack)
    }

    /// Runs without a record, oldest first.
    pub fn unfinished_runs(&self) -> Result<Vec<RunInfo>> {
        let mut runs = self.store().list_folders(&self.names().intents())?;
        runs.extend(self.store().list_folders(&self.names().packs())?);
        runs.sort();
        runs.dedup();
        let done = self.backup_ids()?;
        let mut infos = Vec::new();
        for run in runs {
            let Ok(run) = run.parse::<RunId>() else { continue };
            if done.binary_search(&run).is_ok() {
                continue;
            }
            let intent = self.latest_intent(run)?;
            let packs = self.store().list(&self.names().packs_of(run))?;
            infos.push(RunInfo {
                run,
                parent: intent.as_ref().and_then(|intent| intent.parent),
                expires_at: intent.map(|intent| intent.expires_at),
                packs: packs.len() as u64,
                bytes: packs.iter().map(|pack| pack.size).sum(),
            });
        }
        Ok(infos)
    }

    pub(crate) fn latest_intent(&self, run: RunId) -> Result<Option<Intent>> {
        let prefix = format!("{}{run}/", self.names().intents());
        let Some((_, name)) = self.newest_numbered(&prefix)? else {
            return Ok(None);
        };
        self.get_statement(Kind::Statement, &name)
    }

    /// The pack table of a backup: every pack that it refers to.
    pub fn pack_table(&self, backup: &Backup) -> Result<Vec<PackUse>> {
        let nodes = NodeReader::new(self);
        let plain = nodes.joined(&backup.tree.pack_table)?;
        let name = match backup.tree.pack_table.first() {
            Some(frame) => nodes.name(frame),
            None => self.names().record(backup.backup),
        };
        match plain.split_first() {
            Some((&NODE_VERSION, body)) => postcard::from_bytes(body)
                .map_err(|error| damaged(&name, &format!("its pack table says nothing: {error}"))),
            Some((version, _)) => Err(newer_format(&name, u32::from(*version))),
            None => Err(damaged(&name, "its pack table is empty")),
        }
    }

    /// The catalog that the backup was given, as it was encoded.
    pub fn catalog(&self, backup: &Backup) -> Result<Vec<u8>> {
        NodeReader::new(self).joined(&backup.tree.catalog)
    }
}

struct IntentState {
    latest: Intent,
    number: u32,
    /// When the latest was written.
    began: Timestamp,
}

/// What a run's threads share.
pub(crate) struct RunInner {
    pub(crate) cluster: ClusterRepository,
    pub(crate) id: RunId,
    pub(crate) parent: Option<Arc<Parent>>,
    pub(crate) tree: Arc<TreeWriter>,
    rows_packs: AtomicU32,
    intent: Mutex<IntentState>,
    orphans: OnceLock<OrphanIndex>,
}

impl RunInner {
    pub(crate) fn next_rows_pack(&self) -> PackRef {
        PackRef {
            run: self.id,
            number: self.rows_packs.fetch_add(1, Ordering::Relaxed) + 1,
        }
    }

    pub(crate) fn retiring(&self, kind: PackKind, pack: &PackRef) -> bool {
        self.parent
            .as_ref()
            .is_none_or(|parent| parent.retiring(kind, pack))
    }

    pub(crate) fn orphan_blocks(&self, part: &FilePart) -> Result<OrphanBlocks> {
        match self.orphans.get() {
            Some(orphans) => orphans.blocks(part),
            None => Ok(OrphanBlocks::default()),
        }
    }
}

/// A backup in the making. Shared by reference between its threads.
pub struct Run {
    inner: Arc<RunInner>,
}

impl Run {
    pub fn id(&self) -> RunId {
        self.inner.id
    }

    /// Extends the intent if the last one is older than 10 minutes; cheap otherwise, so call it every minute
    /// or so. Error: `run-lapsed`.
    pub fn renew(&self, now: Timestamp) -> Result<()> {
        let mut state = lock(&self.inner.intent);
        self.check_alive(&state, now)?;
        if now.duration_since(state.began) < INTENT_RENEWAL {
            return Ok(());
        }
        let adopts = state.latest.adopts.clone();
        self.state_intent(&mut state, adopts, now)
    }

    fn check_alive(&self, state: &IntentState, now: Timestamp) -> Result<()> {
        if now < state.latest.expires_at {
            return Ok(());
        }
        Err(Error::new(
            "run-lapsed",
            format!("the intent of backup {} has lapsed", self.inner.id),
        )
        .detail(format!(
            "It was valid until {}; what the backup refers to may have been removed since.",
            state.latest.expires_at
        ))
        .hint("Run `pgproof backup` again; what this one stored is used."))
    }

    fn state_intent(&self, state: &mut IntentState, adopts: Vec<RunId>, now: Timestamp) -> Result<()> {
        let expires_at = now.saturating_add(INTENT_LIFE).unwrap_or(now);
        let intent = Intent {
            adopts,
            expires_at,
            ..state.latest.clone()
        };
        let number = state.number + 1;
        let name = self.inner.cluster.names().intent(self.inner.id, number);
        let put = self
            .inner
            .cluster
            .put_statement(Kind::Statement, &name, &intent)?;
        crate::blocks::must_be_ours(put, &name)?;
        *state = IntentState {
            latest: intent,
            number,
            began: now,
        };
        Ok(())
    }

    /// Makes the packs of interrupted runs usable: their blocks are then not stored again. Returns the bytes
    /// at hand. To be called once, before the first file.
    pub fn adopt_unfinished_runs(&self, now: Timestamp) -> Result<u64> {
        let infos = self.inner.cluster.unfinished_runs()?;
        let runs: Vec<RunId> = infos
            .iter()
            .filter(|info| info.run != self.inner.id && info.packs > 0)
            .map(|info| info.run)
            .collect();
        if runs.is_empty() || self.inner.orphans.get().is_some() {
            return Ok(0);
        }
        {
            let mut state = lock(&self.inner.intent);
            self.check_alive(&state, now)?;
            self.state_intent(&mut state, runs.clone(), now)?;
        }
        // Read after the intent is durable, and before packs are listed: what is found now and is not condemned
        // stays; a condemned pack that is still listed may go at any moment.
        let condemned = self.inner.cluster.condemned_packs()?;
        // A pack that the parent uses already is the parent's business, not least when it is retiring.
        let left_alone = |pack: &PackRef| {
            let key = (PackKind::Rows, *pack);
            let parent = self.inner.parent.as_ref();
            condemned.contains(&key) || parent.is_some_and(|parent| parent.packs.contains_key(&key))
        };
        let index = OrphanIndex::load(&self.inner.cluster, &runs, &left_alone)?;
        let mut durable = None;
        for pack in &index.packs {
            // The run may have been killed before the name of its last pack was durable. Run by run, as listed.
            if durable.replace(pack.pack.run) != Some(pack.pack.run) {
                let name = self.inner.cluster.names().pack(PackKind::Rows, &pack.pack);
                self.inner.cluster.store().make_durable(&name)?;
            }
            self.inner.tree.rows_pack(pack.pack, pack.size, pack.blocks);
        }
        let bytes = index.packs.iter().map(|pack| pack.size).sum();
        // A second call at the same time has found the same.
        let _ = self.inner.orphans.set(index);
        Ok(bytes)
    }

    /// The parent's map.
    pub fn parent(&self) -> Option<&TreeReader> {
        self.inner.parent.as_ref().map(|parent| &parent.tree)
    }

    /// The rows pack is mostly dead in the parent: pages in it are stored again. (A `FileWriter` does so by
    /// itself.)
    pub fn retiring(&self, pack: &PackRef) -> bool {
        self.inner.retiring(PackKind::Rows, pack)
    }

    /// One for each thread.
    pub fn pack_writer(&self) -> Result<PackWriter> {
        PackWriter::new(self.inner.clone())
    }

    /// Takes the entries of the directory.
    pub fn tree(&self) -> &Arc<TreeWriter> {
        &self.inner.tree
    }

    /// Writes the record: from then on the backup exists. Call it when the WAL from start to stop is durable
    /// here. Errors: `run-lapsed`, `run-conflict`, `backup-record` if the record is not this run's.
    pub fn publish(&self, backup: &Backup, now: Timestamp) -> Result<()> {
        let inner = &self.inner;
        if backup.backup != inner.id
            || backup.cluster != inner.cluster.name()
            || backup.version != RECORD_VERSION
        {
            return Err(Error::new(
                "backup-record",
                "the record to be written belongs to another backup",
            ));
        }
        self.check_alive(&lock(&inner.intent), now)?;
        let name = inner.cluster.names().record(inner.id);
        let put = inner.cluster.put_statement(Kind::Record, &name, backup)?;
        crate::blocks::must_be_ours(put, &name)
    }
}
