//! Which pages a stretch of WAL may have changed: the indexes of its segments, put together.
//!
//! A page that is not in the map is, apart from hint bits, what it was when the stretch began; so a backup need not
//! read it again. What has no map of its own is the free space map and the visibility map: they are always read.
//! The rules are those of PostgreSQL's own summaries (`walsummarizer.c`, `blkreftable.c`): every block reference counts,
//! whatever the record does; creation and the end of a relation count for all of it, truncation from its limit on, creation
//! and the end of a database for all its relations.
//!
//! Invariants: in doubt a page has changed; a stretch that cannot be looked at as a whole (a break, a damaged segment, a
//! record at a seam that nobody could read, a record that changes relations in an unknown way, `wal_level=minimal`) gives
//! no map at all; memory is bounded, whatever the size of the cluster and of the stretch.

use std::collections::{HashMap, HashSet};
use std::fmt;

use super::{EventKind, SegmentIndex, Verdict};
use crate::{Fork, Lsn, Oid, RelationFile, RelationLocator, segment_name};

/// Blocks that share one bitmap.
const GROUP_BLOCKS: u32 = 1024;
/// With more bitmaps than this (12 MB of them, half a TiB of touched relations) blocks are no longer told apart one by one,
/// but by the group.
const GROUPS_MAX: usize = 65_536;

type Bits = [u64; 16];
type Relation = (RelationLocator, Fork);

/// Why a stretch of WAL gives no map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NoMap {
    /// The segment does not go on where the one before ended.
    Break { segment: String, before: String },
    /// Valid WAL ends inside the segment.
    Ends { segment: String, at: Lsn },
    /// The record at the start of the segment was not resolved.
    Seam { segment: String },
    /// A record changes relations in a way that is not known.
    Unknown { segment: String, resource_manager: u8 },
    /// The server ran with `wal_level=minimal`.
    Minimal { segment: String },
}

impl fmt::Display for NoMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NoMap::Break { segment, before } => {
                write!(f, "WAL segment {segment} does not go on where {before} ended")
            }
            NoMap::Ends { segment, at } => write!(f, "WAL segment {segment} is valid only up to {at}"),
            NoMap::Seam { segment } => write!(
                f,
                "the record at the start of WAL segment {segment} could not be read when the segment was archived"
            ),
            NoMap::Unknown {
                segment,
                resource_manager,
            } => write!(
                f,
                "WAL segment {segment} changes relations in a way that is not known (resource manager {resource_manager})"
            ),
            NoMap::Minimal { segment } => {
                write!(
                    f,
                    "the server ran with wal_level = minimal in WAL segment {segment}"
                )
            }
        }
    }
}

/// See the module.
#[derive(Debug, Clone)]
pub struct ChangedPages {
    /// blocks, by relation and group of blocks
    blocks: HashMap<(Relation, u32), Bits>,
    /// groups, by relation and group of groups: used once `blocks` is full
    groups: HashMap<(Relation, u32), Bits>,
    groups_max: usize,
    whole: HashSet<Relation>,
    /// from this block on
    limits: HashMap<RelationLocator, u32>,
    /// tablespace and database
    databases: HashSet<(Oid, Oid)>,
    tablespaces: HashSet<Oid>,
    /// the segment before, without its lists, so that the seam can be judged
    last: Option<SegmentIndex>,
}

impl Default for ChangedPages {
    fn default() -> Self {
        ChangedPages::new()
    }
}

impl ChangedPages {
    /// The map of no WAL at all: nothing has changed.
    pub fn new() -> ChangedPages {
        ChangedPages::with_groups_max(GROUPS_MAX)
    }

    fn with_groups_max(groups_max: usize) -> ChangedPages {
        ChangedPages {
            blocks: HashMap::new(),
            groups: HashMap::new(),
            groups_max,
            whole: HashSet::new(),
            limits: HashMap::new(),
            databases: HashSet::new(),
            tablespaces: HashSet::new(),
            last: None,
        }
    }

    /// Takes the index of the next segment. Segments come in order, beginning with the one that holds the stretch's first
    /// record. `until`: for the stretch's last segment, which may be unfinished, where its WAL has to reach; `None`: to its
    /// end. After an error the map must not be used.
    pub fn add(&mut self, mut index: SegmentIndex, until: Option<Lsn>) -> Result<(), NoMap> {
        if let Some(before) = &self.last {
            if !index.follows(before) {
                return Err(NoMap::Break {
                    segment: name(&index),
                    before: name(before),
                });
            }
            // Of the record at the head of the very first segment nothing is asked: it began before the stretch.
            let head = index.head;
            if head.length > 0 && head.ends_here && !head.resolved && !index.overwrites_tail {
                return Err(NoMap::Seam {
                    segment: name(&index),
                });
            }
        }
        let reaches = match (&index.verdict, until) {
            (Verdict::Good, _) => true,
            (Verdict::Incomplete { at }, Some(until)) => *at >= until,
            _ => false,
        };
        if !reaches {
            let at = match index.verdict {
                Verdict::Incomplete { at } | Verdict::Damaged { at, .. } => at,
                Verdict::Good => index.end,
            };
            return Err(NoMap::Ends {
                segment: name(&index),
                at,
            });
        }
        for event in std::mem::take(&mut index.events) {
            self.take(&index, event.kind)?;
        }
        for changed in std::mem::take(&mut index.changed) {
            let relation = (changed.locator, changed.fork);
            for block in &changed.blocks {
                self.mark(relation, block.block);
            }
        }
        index.transactions = Vec::new();
        index.row_changes = Vec::new();
        self.last = Some(index);
        Ok(())
    }

    fn take(&mut self, index: &SegmentIndex, event: EventKind) -> Result<(), NoMap> {
        match event {
            EventKind::RelationsDropped { locators, .. } => {
                for locator in locators {
                    for fork in [Fork::Main, Fork::Init] {
                        self.whole.insert((locator, fork));
                    }
                }
            }
            EventKind::RelationCreated { locator, fork } => {
                self.whole.insert((locator, fork));
            }
            EventKind::RelationTruncated { locator, blocks, .. } => {
                let limit = self.limits.entry(locator).or_insert(blocks);
                *limit = blocks.min(*limit);
            }
            EventKind::DatabaseCreated {
                database, tablespace, ..
            } => {
                self.databases.insert((tablespace, database));
            }
            EventKind::DatabaseDropped {
                database,
                tablespaces,
            } => {
                self.databases
                    .extend(tablespaces.into_iter().map(|tablespace| (tablespace, database)));
            }
            EventKind::TablespaceCreated { tablespace, .. } | EventKind::TablespaceDropped { tablespace } => {
                self.tablespaces.insert(tablespace);
            }
            EventKind::SpecialUpdate { resource_manager, .. } => {
                return Err(NoMap::Unknown {
                    segment: name(index),
                    resource_manager,
                });
            }
            EventKind::ParameterChange { wal_level: 0, .. } => {
                return Err(NoMap::Minimal { segment: name(index) });
            }
            _ => {}
        }
        Ok(())
    }

    fn mark(&mut self, relation: Relation, block: u32) {
        let group = block / GROUP_BLOCKS;
        if self.blocks.len() >= self.groups_max && !self.blocks.contains_key(&(relation, group)) {
            set(
                self.groups
                    .entry((relation, group / GROUP_BLOCKS))
                    .or_insert([0; 16]),
                group,
            );
            return;
        }
        set(self.blocks.entry((relation, group)).or_insert([0; 16]), block);
    }

    /// Whether the map speaks of this file at all: the free space map and the visibility map are not covered.
    pub fn covers(file: &RelationFile) -> bool {
        matches!(file.fork, Fork::Main | Fork::Init) && !file.temporary
    }

    /// Whether the page may have changed. `block` counts from the start of the relation's fork, not of the file.
    pub fn may_have_changed(&self, file: &RelationFile, block: u32) -> bool {
        self.first_changed(file, block, 1).is_some()
    }

    /// The first of these blocks that may have changed. `first` counts from the start of the relation's fork.
    pub fn first_changed(&self, file: &RelationFile, first: u32, blocks: u32) -> Option<u32> {
        let end = first.checked_add(blocks)?;
        if blocks == 0 {
            return None;
        }
        let relation = (file.locator, file.fork);
        let database = (file.locator.tablespace, file.locator.database);
        if !ChangedPages::covers(file)
            || self.whole.contains(&relation)
            || self.databases.contains(&database)
            || self.tablespaces.contains(&file.locator.tablespace)
        {
            return Some(first);
        }
        let limit = (self.limits.get(&file.locator).copied()).filter(|limit| *limit < end);
        let beyond = limit.map(|limit| limit.max(first));
        let end = beyond.unwrap_or(end);
        let mut next = first;
        while next < end {
            let group = next / GROUP_BLOCKS;
            let group_end = (u64::from(group) + 1) * u64::from(GROUP_BLOCKS);
            let group_end = u32::try_from(group_end).unwrap_or(u32::MAX).min(end);
            if let Some(bits) = self.groups.get(&(relation, group / GROUP_BLOCKS))
                && is_set(bits, group)
            {
                return Some(next);
            }
            if let Some(bits) = self.blocks.get(&(relation, group)) {
                let found = (next..group_end).find(|block| is_set(bits, *block));
                if found.is_some() {
                    return found;
                }
            }
            next = group_end;
        }
        beyond
    }
}

fn name(index: &SegmentIndex) -> String {
    segment_name(index.timeline, index.number, index.segment_size)
}

fn set(bits: &mut Bits, number: u32) {
    let place = (number % GROUP_BLOCKS) as usize;
    if let Some(word) = bits.get_mut(place / 64) {
        *word |= 1 << (place % 64);
    }
}

fn is_set(bits: &Bits, number: u32) -> bool {
    let place = (number % GROUP_BLOCKS) as usize;
    bits.get(place / 64)
        .is_some_and(|word| word & (1 << (place % 64)) != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ChangedBlock, ChangedRelation, DEFAULT_TABLESPACE, Event, Seam, SystemIdentifier, TimelineId, Xid,
    };

    const SEGMENT: u32 = 1 << 20;

    fn file(relation: u32, fork: Fork) -> RelationFile {
        RelationFile {
            locator: locator(relation),
            fork,
            segment: 0,
            temporary: false,
            backend: 0,
        }
    }

    fn locator(relation: u32) -> RelationLocator {
        RelationLocator {
            tablespace: DEFAULT_TABLESPACE,
            database: 5,
            relation,
        }
    }

    fn index(number: u64) -> SegmentIndex {
        let start = number * u64::from(SEGMENT);
        SegmentIndex {
            timeline: TimelineId(1),
            number,
            segment_size: SEGMENT,
            wal_block_size: 8192,
            system_identifier: SystemIdentifier(1),
            magic: 0xD110,
            first_page_timeline: TimelineId(1),
            first_record: Some(Lsn(start + 40)),
            first_record_previous: Some(Lsn(start - 64)),
            last_record: Some(Lsn(start + u64::from(SEGMENT) - 64)),
            end: Lsn(start + u64::from(SEGMENT)),
            switched: false,
            overwrites_tail: false,
            head: Seam::default(),
            tail: None,
            verdict: Verdict::Good,
            statistics: Vec::new(),
            transactions: Vec::new(),
            events: Vec::new(),
            changed: Vec::new(),
            row_changes: Vec::new(),
        }
    }

    fn changing(number: u64, relation: u32, blocks: &[u32]) -> SegmentIndex {
        let block = |block: &u32| ChangedBlock {
            block: *block,
            image: false,
            will_init: false,
        };
        SegmentIndex {
            changed: vec![ChangedRelation {
                locator: locator(relation),
                fork: Fork::Main,
                blocks: blocks.iter().map(block).collect(),
            }],
            ..index(number)
        }
    }

    fn with(number: u64, kind: EventKind) -> SegmentIndex {
        let event = Event {
            lsn: Lsn(8),
            end: Lsn(16),
            xid: Xid(0),
            kind,
        };
        SegmentIndex {
            events: vec![event],
            ..index(number)
        }
    }

    fn map(indexes: impl IntoIterator<Item = SegmentIndex>) -> ChangedPages {
        let mut map = ChangedPages::new();
        for index in indexes {
            map.add(index, None).unwrap();
        }
        map
    }

    #[test]
    fn blocks_of_all_segments_are_in_the_map_and_no_others() {
        let map = map([changing(1, 7, &[0, 1023]), changing(2, 7, &[1024, 3000])]);
        let changed: Vec<u32> = (0..4000)
            .filter(|block| map.may_have_changed(&file(7, Fork::Main), *block))
            .collect();
        assert_eq!(changed, [0, 1023, 1024, 3000]);
        assert_eq!(map.first_changed(&file(7, Fork::Main), 1, 1022), None);
        assert_eq!(map.first_changed(&file(7, Fork::Main), 1, 1023), Some(1023));
        assert_eq!(map.first_changed(&file(7, Fork::Main), 1025, 5000), Some(3000));
        assert_eq!(map.first_changed(&file(8, Fork::Main), 0, 131_072), None);
        assert_eq!(map.first_changed(&file(7, Fork::Main), u32::MAX, 0), None);
    }

    #[test]
    fn maps_of_free_space_and_visibility_are_never_taken_for_unchanged() {
        let map = map([index(1)]);
        for fork in [Fork::Fsm, Fork::Vm] {
            assert!(map.may_have_changed(&file(7, fork), 0));
        }
        assert!(!map.may_have_changed(&file(7, Fork::Init), 0));
    }

    #[test]
    fn what_comes_into_being_or_goes_counts_as_a_whole_and_what_is_cut_from_there_on() {
        let created = EventKind::RelationCreated {
            locator: locator(7),
            fork: Fork::Main,
        };
        assert_eq!(
            map([with(1, created)]).first_changed(&file(7, Fork::Main), 9, 9),
            Some(9)
        );
        let dropped = EventKind::RelationsDropped {
            locators: vec![locator(7)],
            aborted: true,
        };
        assert!(map([with(1, dropped)]).may_have_changed(&file(7, Fork::Main), 0));
        let cut = |blocks| EventKind::RelationTruncated {
            locator: locator(7),
            blocks,
            flags: 7,
        };
        let map_of_cuts = map([with(1, cut(10)), with(2, cut(5)), changing(3, 7, &[2])]);
        assert_eq!(map_of_cuts.first_changed(&file(7, Fork::Main), 0, 100), Some(2));
        assert_eq!(map_of_cuts.first_changed(&file(7, Fork::Main), 3, 100), Some(5));
        assert_eq!(map_of_cuts.first_changed(&file(7, Fork::Main), 3, 2), None);
        assert_eq!(map_of_cuts.first_changed(&file(7, Fork::Main), 50, 2), Some(50));
        for kind in [
            EventKind::DatabaseCreated {
                database: 5,
                tablespace: DEFAULT_TABLESPACE,
                source: Some(1),
                by_copy: true,
            },
            EventKind::DatabaseDropped {
                database: 5,
                tablespaces: vec![DEFAULT_TABLESPACE],
            },
            EventKind::TablespaceCreated {
                tablespace: DEFAULT_TABLESPACE,
                path: String::new(),
            },
        ] {
            assert!(map([with(1, kind)]).may_have_changed(&file(7, Fork::Main), 3));
        }
    }

    #[test]
    fn a_stretch_that_cannot_be_looked_at_as_a_whole_gives_no_map() {
        let refused = |second: SegmentIndex| {
            let mut map = ChangedPages::new();
            map.add(index(1), None).unwrap();
            map.add(second, None).unwrap_err()
        };
        assert!(matches!(refused(index(3)), NoMap::Break { .. }));
        let damaged = SegmentIndex {
            verdict: Verdict::Incomplete { at: Lsn(0x20_0100) },
            ..index(2)
        };
        assert!(matches!(refused(damaged), NoMap::Ends { .. }));
        let special = EventKind::SpecialUpdate {
            resource_manager: 200,
            info: 1,
        };
        assert!(matches!(refused(with(2, special)), NoMap::Unknown { .. }));
        let minimal = EventKind::ParameterChange {
            max_connections: 1,
            max_worker_processes: 1,
            max_wal_senders: 0,
            max_prepared_transactions: 0,
            max_locks_per_transaction: 1,
            wal_level: 0,
            wal_log_hints: false,
            track_commit_timestamp: false,
        };
        assert!(matches!(refused(with(2, minimal)), NoMap::Minimal { .. }));
    }

    #[test]
    fn a_record_at_a_seam_that_nobody_read_gives_no_map_unless_it_began_before_the_stretch() {
        let head = Seam {
            length: 100,
            ends_here: true,
            resolved: false,
        };
        let tail = crate::TailSeam {
            start: Lsn(0x1F_FF00),
            total_length: Some(300),
            missing: 100,
        };
        let first = SegmentIndex {
            tail: Some(tail),
            ..index(1)
        };
        let second = SegmentIndex {
            head,
            first_record_previous: Some(tail.start),
            ..index(2)
        };
        let mut map = ChangedPages::new();
        map.add(first.clone(), None).unwrap();
        assert!(matches!(map.add(second.clone(), None), Err(NoMap::Seam { .. })));
        assert_eq!(ChangedPages::new().add(second.clone(), None), Ok(()));
        let resolved = SegmentIndex {
            head: Seam {
                resolved: true,
                ..head
            },
            ..second
        };
        let mut map = ChangedPages::new();
        map.add(first, None).unwrap();
        assert_eq!(map.add(resolved, None), Ok(()));
    }

    #[test]
    fn an_unfinished_segment_counts_as_far_as_it_is_needed() {
        let unfinished = |at| SegmentIndex {
            verdict: Verdict::Incomplete { at: Lsn(at) },
            ..index(1)
        };
        assert_eq!(
            ChangedPages::new().add(unfinished(0x10_0200), Some(Lsn(0x10_0200))),
            Ok(())
        );
        let short = ChangedPages::new().add(unfinished(0x10_0100), Some(Lsn(0x10_0200)));
        assert!(matches!(short, Err(NoMap::Ends { .. })));
    }

    #[test]
    fn a_full_map_forgets_which_blocks_changed_but_never_that_some_did() {
        let mut map = ChangedPages::with_groups_max(2);
        map.add(changing(1, 7, &[5, 1024 * 3, 1024 * 9 + 1, 1024 * 2000]), None)
            .unwrap();
        let table = file(7, Fork::Main);
        assert!(map.may_have_changed(&table, 5) && !map.may_have_changed(&table, 6));
        // Beyond the second group whole groups count.
        assert!(map.may_have_changed(&table, 1024 * 9 + 500));
        assert!(map.may_have_changed(&table, 1024 * 2000 + 7));
        assert!(!map.may_have_changed(&table, 1024 * 10));
        assert!(!map.may_have_changed(&table, 1024 * 976));
    }
}
