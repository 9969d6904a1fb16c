//! Counting while records go by: changed blocks, and rows changed by each transaction. Built for speed: it is
//! asked for each block of each record, and runs inside every push of a segment.

use std::collections::HashMap;

use super::{ChangedBlock, ChangedRelation, RowChanges, TransactionEnd};
use crate::{Fork, RelationLocator, Xid};

const IMAGE: u64 = 1;
const WILL_INIT: u64 = 2;

/// A transaction is listed when it deleted or updated at least so many rows of a relation in one segment.
const ROWS_MIN: u32 = 32;

type RelationKey = (RelationLocator, Fork);

/// Which blocks were changed.
pub(super) struct ChangedBlocks {
    relations: Vec<RelationKey>,
    places: HashMap<RelationKey, u32>,
    /// the relations seen last, by a cheap hash, before the map is asked
    recent: Box<[Option<(RelationKey, u32)>; RECENT]>,
    /// relation's place << 34 | block << 2 | flags
    entries: Vec<u64>,
    /// entries seen last, by a cheap hash: keeps repetitions out of `entries`
    seen: Box<[u64; SEEN]>,
}

const RECENT: usize = 64;
const SEEN: usize = 4096;

impl ChangedBlocks {
    pub fn new() -> Self {
        ChangedBlocks {
            relations: Vec::new(),
            places: HashMap::new(),
            recent: Box::new([None; RECENT]),
            entries: Vec::new(),
            seen: Box::new([u64::MAX; SEEN]),
        }
    }

    #[inline]
    pub fn add(&mut self, locator: RelationLocator, fork: Fork, block: u32, image: bool, will_init: bool) {
        let place = self.place((locator, fork));
        let key = u64::from(place) << 34 | u64::from(block) << 2;
        let flags = if image { IMAGE } else { 0 } | if will_init { WILL_INIT } else { 0 };
        let slot = (key >> 2).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> (64 - SEEN.trailing_zeros());
        let slot = &mut self.seen[slot as usize % SEEN];
        if *slot & !3 == key {
            if flags & !*slot == 0 {
                return;
            }
            *slot |= flags;
        } else {
            *slot = key | flags;
        }
        self.entries.push(key | flags);
    }

    #[inline]
    fn place(&mut self, key: RelationKey) -> u32 {
        let (locator, fork) = key;
        let hash =
            locator.relation ^ locator.relation >> 6 ^ locator.database.rotate_left(3) ^ (fork as u32) << 5;
        let recent = &mut self.recent[hash as usize % RECENT];
        if let Some((known, place)) = recent
            && *known == key
        {
            return *place;
        }
        let relations = &mut self.relations;
        let place = *self.places.entry(key).or_insert_with(|| {
            relations.push(key);
            // A segment of 1 GiB holds fewer than 2^30 block references.
            (relations.len() - 1) as u32
        });
        *recent = Some((key, place));
        place
    }

    /// The map, sorted by locator, fork and block.
    pub fn finish(mut self) -> Vec<ChangedRelation> {
        self.entries.sort_unstable();
        let mut changed: Vec<ChangedRelation> = self
            .relations
            .iter()
            .map(|(locator, fork)| ChangedRelation {
                locator: *locator,
                fork: *fork,
                blocks: Vec::new(),
            })
            .collect();
        for entry in self.entries {
            let Some(relation) = changed.get_mut((entry >> 34) as usize) else {
                continue;
            };
            let block = (entry >> 2) as u32;
            let (image, will_init) = (entry & IMAGE != 0, entry & WILL_INIT != 0);
            match relation.blocks.last_mut() {
                Some(last) if last.block == block => {
                    last.image |= image;
                    last.will_init |= will_init;
                }
                _ => relation.blocks.push(ChangedBlock {
                    block,
                    image,
                    will_init,
                }),
            }
        }
        changed.sort_unstable_by_key(|relation| (relation.locator, relation.fork));
        changed
    }
}

/// What a record did to rows of one relation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct RowCount {
    pub inserts: u32,
    pub updates: u32,
    pub deletes: u32,
}

impl RowCount {
    fn add(&mut self, other: RowCount) {
        self.inserts = self.inserts.saturating_add(other.inserts);
        self.updates = self.updates.saturating_add(other.updates);
        self.deletes = self.deletes.saturating_add(other.deletes);
    }

    fn matters(&self) -> bool {
        self.updates.saturating_add(self.deletes) >= ROWS_MIN
    }
}

type Counts = Vec<(RelationLocator, RowCount)>;

/// Rows changed by each transaction that has not ended yet.
///
/// Neighbouring xids are open at the same time, so a table indexed by the low bits of the xid finds nearly
/// each one at once; what does not fit there is kept in a map.
pub(super) struct ChangedRows {
    slots: Vec<(Xid, Counts)>,
    spilled: HashMap<Xid, Counts>,
    /// subtransaction -> top transaction
    tops: HashMap<Xid, Xid>,
    finished: Vec<RowChanges>,
}

const SLOTS: usize = 1024;

impl ChangedRows {
    pub fn new() -> Self {
        ChangedRows {
            slots: vec![(Xid(0), Vec::new()); SLOTS],
            spilled: HashMap::new(),
            tops: HashMap::new(),
            finished: Vec::new(),
        }
    }

    #[inline]
    pub fn add(&mut self, xid: Xid, locator: RelationLocator, count: RowCount) {
        if !xid.is_valid() {
            return;
        }
        let (owner, counts) = &mut self.slots[xid.0 as usize % SLOTS];
        if *owner != xid {
            if !counts.is_empty() {
                // The list moves to the map; its capacity is lost, but this is rare.
                merge(self.spilled.entry(*owner).or_default(), std::mem::take(counts));
            }
            *owner = xid;
        }
        // The relation changed last stands last.
        match counts.iter_mut().rev().find(|(known, _)| *known == locator) {
            Some((_, sum)) => sum.add(count),
            None => counts.push((locator, count)),
        }
    }

    /// `subxids` belong to `top`.
    pub fn assign(&mut self, top: Xid, subxids: &[Xid]) {
        for subxid in subxids {
            self.tops.insert(*subxid, top);
        }
    }

    /// A transaction has ended: what it did is listed if it is much.
    pub fn end(&mut self, end: &TransactionEnd) {
        let slot = &mut self.slots[end.xid.0 as usize % SLOTS];
        if end.subxids.is_empty() && self.spilled.is_empty() {
            // The ordinary case, without moving anything; the slot's list keeps its memory.
            if slot.0 == end.xid {
                list(&mut self.finished, end.xid, &slot.1, false);
                slot.1.clear();
            }
            return;
        }
        let mut sum = Vec::new();
        for xid in std::iter::once(&end.xid).chain(&end.subxids) {
            self.take(*xid, &mut sum);
        }
        list(&mut self.finished, end.xid, &sum, false);
    }

    fn take(&mut self, xid: Xid, sum: &mut Counts) {
        let slot = &mut self.slots[xid.0 as usize % SLOTS];
        if slot.0 == xid {
            merge(sum, slot.1.drain(..));
        }
        if let Some(counts) = self.spilled.remove(&xid) {
            merge(sum, counts);
        }
    }

    /// The list, by xid and locator; transactions that go on are listed whatever they did.
    pub fn finish(mut self) -> Vec<RowChanges> {
        let mut open: HashMap<Xid, Counts> = HashMap::new();
        for (xid, counts) in self.slots.drain(..).chain(self.spilled.drain()) {
            if !counts.is_empty() {
                let top = self.tops.get(&xid).copied().unwrap_or(xid);
                merge(open.entry(top).or_default(), counts);
            }
        }
        for (xid, counts) in &open {
            list(&mut self.finished, *xid, counts, true);
        }
        self.finished.sort_by_key(|rows| (rows.xid, rows.locator));
        self.finished
    }
}

fn merge(sum: &mut Counts, counts: impl IntoIterator<Item = (RelationLocator, RowCount)>) {
    for (locator, count) in counts {
        match sum.iter_mut().find(|(known, _)| *known == locator) {
            Some((_, known)) => known.add(count),
            None => sum.push((locator, count)),
        }
    }
}

fn list(finished: &mut Vec<RowChanges>, xid: Xid, counts: &Counts, goes_on: bool) {
    for (locator, count) in counts {
        let RowCount {
            inserts,
            updates,
            deletes,
        } = *count;
        // Inserts alone never empty a table.
        if count.matters() || (goes_on && updates.saturating_add(deletes) > 0) {
            finished.push(RowChanges {
                xid,
                locator: *locator,
                inserts,
                updates,
                deletes,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Lsn, Timestamp, TransactionEndKind};

    const TABLE: RelationLocator = RelationLocator {
        tablespace: 1663,
        database: 5,
        relation: 16384,
    };
    const DELETE: RowCount = RowCount {
        inserts: 0,
        updates: 0,
        deletes: 1,
    };

    fn end(xid: u32, subxids: impl IntoIterator<Item = u32>) -> TransactionEnd {
        TransactionEnd {
            start: Lsn(8),
            end: Lsn(16),
            xid: Xid(xid),
            time: Timestamp(0),
            kind: TransactionEndKind::Commit,
            subxids: subxids.into_iter().map(Xid).collect(),
        }
    }

    fn deletes(rows: ChangedRows) -> Vec<(u32, u32)> {
        rows.finish()
            .iter()
            .map(|rows| (rows.xid.0, rows.deletes))
            .collect()
    }

    #[test]
    fn a_transaction_that_ended_is_listed_from_32_rows_on_and_an_open_one_always() {
        let mut rows = ChangedRows::new();
        for (xid, count) in [(10, 31), (11, 32), (12, 1)] {
            (0..count).for_each(|_| rows.add(Xid(xid), TABLE, DELETE));
        }
        (0..99).for_each(|_| {
            rows.add(
                Xid(13),
                TABLE,
                RowCount {
                    inserts: 1,
                    ..RowCount::default()
                },
            )
        });
        rows.end(&end(10, []));
        rows.end(&end(11, []));
        assert_eq!(deletes(rows), vec![(11, 32), (12, 1)]);
    }

    #[test]
    fn rows_of_subtransactions_count_for_the_top_one_however_many_are_open() {
        let mut rows = ChangedRows::new();
        // Many more than there are slots, so that most are moved aside.
        for xid in 100..5100 {
            rows.add(Xid(xid), TABLE, DELETE);
        }
        rows.end(&end(100, 101..4100));
        rows.assign(Xid(5000), &(4100..5000).map(Xid).collect::<Vec<_>>());
        let rows = deletes(rows);
        assert_eq!(rows[0], (100, 4000));
        assert_eq!(rows[1], (5000, 901));
        assert_eq!(rows.len(), 2 + 99);
    }

    #[test]
    fn blocks_are_listed_once_with_all_their_flags() {
        let mut blocks = ChangedBlocks::new();
        let other = RelationLocator { relation: 1, ..TABLE };
        for round in 0..3 {
            for block in (0..20_000).rev() {
                blocks.add(
                    TABLE,
                    Fork::Main,
                    block,
                    round == 1 && block % 2 == 0,
                    round == 2 && block % 3 == 0,
                );
            }
            blocks.add(other, Fork::Vm, u32::MAX, false, false);
        }
        let changed = blocks.finish();
        assert_eq!(changed.len(), 2);
        assert_eq!((changed[0].locator, changed[0].fork), (other, Fork::Vm));
        assert_eq!(
            changed[0].blocks,
            vec![ChangedBlock {
                block: u32::MAX,
                image: false,
                will_init: false
            }]
        );
        assert_eq!(changed[1].blocks.len(), 20_000);
        for (block, expected) in changed[1].blocks.iter().zip(0u32..) {
            assert_eq!(block.block, expected);
            assert_eq!(
                (block.image, block.will_init),
                (expected % 2 == 0, expected % 3 == 0)
            );
        }
    }
}
