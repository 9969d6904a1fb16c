//! What need not be read: pages that no WAL has touched since the parent's start, and the audit that watches over it.
//!
//! In each backup one in so many leaves is read all the same, another one in each turn, so that every page is read again, its
//! checksum verified and compared with the parent's map, at least once in so many backups. Invariants: a page is only ever
//! spared the reading, never the record of it; a page that differs although no WAL says so makes the whole map
//! worthless, unless the backup's own WAL, known at its end, explains it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use diagnostic::Error;
use postgres::{BLOCK_SIZE, ChangedPages, Lsn, RelationFile};
use repository::{BlockFacts, BlockFlags, FileWriter, LEAF_BLOCKS, RelativePath, Unread as Record};

/// The code of the error that makes a run begin again without a map.
pub(super) const MAP_MISSED: &str = "wal-map-missed-page";
/// Pages that differ are noted one by one up to here; a busy server's audited pages change while they are read.
const SUSPECTS_MAX: usize = 65_536;
/// Unchanged pages between two changed ones are read along if they are fewer.
const GAP_BLOCKS: u32 = 8;

/// A page that differs from the parent's although the map does not name it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Suspect {
    path: RelativePath,
    relation: RelationFile,
    relation_block: u32,
    lsn: Lsn,
}

/// See the module.
pub(super) struct Unread {
    changed: ChangedPages,
    /// Since here.
    since: Lsn,
    /// The map knows the WAL at least up to here.
    until: Lsn,
    /// Checksums or `wal_log_hints`: a hint bit does not change a page without WAL.
    hints_are_logged: bool,
    turn: u32,
    one_in: u32,
    kept: AtomicU64,
    audited: AtomicU64,
    suspects: Mutex<Vec<Suspect>>,
}

impl Unread {
    /// `one_in`: the audit reads one leaf of so many; 1: all of them. `turn`: which of them it is this time.
    pub(super) fn new(
        changed: ChangedPages,
        since: Lsn,
        until: Lsn,
        hints_are_logged: bool,
        one_in: u32,
        turn: u32,
    ) -> Unread {
        let one_in = one_in.max(1);
        Unread {
            changed,
            since,
            until,
            hints_are_logged,
            turn: turn % one_in,
            one_in,
            kept: AtomicU64::new(0),
            audited: AtomicU64::new(0),
            suspects: Mutex::new(Vec::new()),
        }
    }

    /// How many of these blocks, from the first on, need not be read. `first` counts from the start of the relation.
    pub(super) fn unchanged(&self, relation: &RelationFile, first: u32, blocks: u32) -> u32 {
        match self.changed.first_changed(relation, first, blocks) {
            Some(changed) => changed - first,
            None => blocks,
        }
    }

    /// How many blocks to read at once from `first` on, which must be read: up to `blocks_max`, and not far into what need
    /// not be read.
    pub(super) fn worth_reading(&self, relation: &RelationFile, first: u32, blocks_max: u32) -> u32 {
        let mut blocks = 1;
        while blocks < blocks_max {
            let ahead = GAP_BLOCKS.min(blocks_max - blocks);
            let unchanged = self.unchanged(relation, first + blocks, ahead);
            if unchanged >= ahead {
                break;
            }
            blocks += unchanged + 1;
        }
        blocks.min(blocks_max)
    }

    /// Whether the leaf that begins at this block of the file is read this time whatever the map says.
    pub(super) fn audits(&self, path: &RelativePath, block: u32) -> bool {
        // FNV-1a, for it must fall the same in every build of this program.
        let leaf = block / LEAF_BLOCKS;
        let bytes = path.as_bytes().iter().chain(&[0]).copied();
        let hash = bytes
            .chain(leaf.to_le_bytes())
            .fold(0xCBF2_9CE4_8422_2325_u64, |hash, byte| {
                (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3)
            });
        (hash >> 32) % u64::from(self.one_in) == u64::from(self.turn)
    }

    /// Blocks were taken from the parent without reading.
    pub(super) fn count_kept(&self, blocks: u32) {
        self.kept.fetch_add(u64::from(blocks), Ordering::Relaxed);
    }

    /// Compares pages that were read with the parent's, where no WAL has touched them. They are those that `output` takes
    /// next, all of one leaf; `first` counts from the start of the relation.
    pub(super) fn audit(
        &self,
        output: &FileWriter<'_>,
        path: &RelativePath,
        relation: &RelationFile,
        first: u32,
        bytes: &[u8],
        facts: &[BlockFacts],
    ) {
        let Some((leaf, index)) = output.parent_leaf() else {
            return;
        };
        for (at, (page, fact)) in bytes.chunks(BLOCK_SIZE).zip(facts).enumerate() {
            let relation_block = first.saturating_add(at as u32);
            let (Some(lsn), Some(flags), Some(digest)) = (
                leaf.lsn(index + at),
                leaf.flags(index + at),
                leaf.digest(index + at),
            ) else {
                return;
            };
            if flags != BlockFlags::default() || self.unchanged(relation, relation_block, 1) == 0 {
                continue;
            }
            self.audited.fetch_add(1, Ordering::Relaxed);
            if output.digest(page) == digest {
                continue;
            }
            // Changed since the map was made: its WAL is the backup's own. A bad checksum is noted elsewhere.
            if fact.lsn > self.until || fact.flags.contains(BlockFlags::EXCUSED) {
                continue;
            }
            if !self.hints_are_logged && fact.lsn == lsn {
                continue;
            }
            let mut suspects = self.suspects.lock().unwrap_or_else(PoisonError::into_inner);
            if suspects.len() < SUSPECTS_MAX {
                suspects.push(Suspect {
                    path: path.clone(),
                    relation: *relation,
                    relation_block,
                    lsn: fact.lsn,
                });
            }
        }
    }

    /// What the record says.
    pub(super) fn record(&self) -> Record {
        Record {
            pages: self.kept.load(Ordering::Relaxed),
            audited: self.audited.load(Ordering::Relaxed),
            turn: self.turn,
            since: self.since,
        }
    }

    /// Whether anything differs that the map should have named. `own` gives the map of the backup's own WAL, or why there
    /// is none. Error: [`MAP_MISSED`].
    pub(super) fn settle(&self, own: impl FnOnce() -> Result<ChangedPages, String>) -> Result<(), Error> {
        let suspects = std::mem::take(&mut *self.suspects.lock().unwrap_or_else(PoisonError::into_inner));
        if suspects.is_empty() {
            return Ok(());
        }
        let own = own();
        let explained = |suspect: &Suspect| {
            own.as_ref()
                .is_ok_and(|own| own.may_have_changed(&suspect.relation, suspect.relation_block))
        };
        let mut missed = suspects.iter().filter(|suspect| !explained(suspect));
        let Some(first) = missed.next() else { return Ok(()) };
        Err(Error::new(
            MAP_MISSED,
            format!(
                "page {} of the relation in file \"{}\" has changed, and no WAL says so",
                first.relation_block, first.path
            ),
        )
        .detail(format!(
            "The page's LSN is {}; the WAL since {} does not name it. {} more such pages were found.{}",
            first.lsn,
            self.since,
            missed.count(),
            own.err()
                .map_or_else(String::new, |why| format!(" (The backup's own WAL: {why}.)"))
        ))
        .hint("Something other than the server wrote to its files, or its disk lost a write: look at both."))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn unread(one_in: u32, turn: u32) -> Unread {
        Unread::new(ChangedPages::new(), Lsn(1), Lsn(2), true, one_in, turn)
    }

    #[test]
    fn every_leaf_has_its_turn_once_in_so_many_backups() {
        let leaves: Vec<(RelativePath, u32)> = (0..400)
            .map(|file| {
                let path = RelativePath::new(format!("base/5/{}", 16_384 + file)).unwrap();
                (path, file % 7 * LEAF_BLOCKS)
            })
            .collect();
        let mut seen = HashSet::new();
        for turn in 0..32 {
            let audit = unread(32, turn);
            let audited = leaves.iter().filter(|(path, block)| audit.audits(path, *block));
            let audited: Vec<_> = audited.cloned().collect();
            assert!(
                audited.len() < 40,
                "turn {turn} reads {} of 400 leaves",
                audited.len()
            );
            for leaf in audited {
                assert!(seen.insert(leaf), "a leaf has two turns");
            }
        }
        assert_eq!(seen.len(), leaves.len());
        assert!(
            leaves
                .iter()
                .all(|(path, block)| unread(1, 5).audits(path, *block))
        );
    }

    #[test]
    fn small_gaps_are_read_along_and_large_ones_are_not() {
        let relation = RelationFile::parse(b"base/5/16384").unwrap();
        assert_eq!(unread(32, 0).worth_reading(&relation, 7, 16), 1);
        assert_eq!(unread(32, 0).worth_reading(&relation, 7, 1), 1);
        // The free space map is always read.
        let space = RelationFile::parse(b"base/5/16384_fsm").unwrap();
        assert_eq!(unread(32, 0).worth_reading(&space, 7, 16), 16);
        assert_eq!(unread(32, 0).unchanged(&space, 7, 16), 0);
        assert_eq!(unread(32, 0).unchanged(&relation, 7, 16), 16);
    }
}
