//! What the WAL between two places restores: is a torn page that a backup has read made whole again by
//! replay?
//!
//! A page that was read while it was being written is excused only if the WAL that the restore will replay
//! carries an image of it, makes it anew, or removes it. Images that replay does not apply do not count.

use std::collections::{BTreeMap, HashMap, HashSet};

use diagnostic::Result;
use serde::{Deserialize, Serialize};

use super::EventKind;
use super::event::{self, Decoded};
use crate::wal::{EndOfWal, RawRecord, Record, RecordReader, SegmentHeader};
use crate::{Fork, Lsn, Major, Oid, RelationLocator, TimelineId};

/// Why replay makes a page good whatever it holds now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Excuse {
    Image,
    WillInit,
    RelationDropped,
    RelationTruncated,
    DatabaseDropped,
}

/// The WAL from one LSN to another, fed segment by segment.
#[derive(Debug, Clone)]
pub struct WindowOfWal {
    from: Lsn,
    to: Lsn,
    reader: Option<RecordReader>,
    pages: HashMap<(RelationLocator, Fork), BTreeMap<u32, Excuse>>,
    dropped: HashSet<RelationLocator>,
    /// a fork was cut to so many blocks
    truncated: HashMap<(RelationLocator, Fork), u32>,
    databases: HashSet<(Oid, Oid)>,
    reached: Lsn,
}

impl WindowOfWal {
    /// The records that begin at or after `from` and end at or before `to`. `from` is the start of a record
    /// or of a segment (the redo LSN of a backup is the former).
    pub fn new(from: Lsn, to: Lsn) -> Self {
        WindowOfWal {
            from,
            to,
            reader: None,
            pages: HashMap::new(),
            dropped: HashSet::new(),
            truncated: HashMap::new(),
            databases: HashSet::new(),
            reached: from,
        }
    }

    /// Takes the next segment, in order, beginning with the one that holds `from`. `timeline` is that of its
    /// name. `Ok(Err(..))` when valid WAL ends inside it before the window does. Error codes as for
    /// [`SegmentHeader::parse`].
    pub fn add_segment(&mut self, segment: &[u8], timeline: TimelineId) -> Result<Result<(), EndOfWal>> {
        let header = SegmentHeader::parse(segment)?;
        let mut reader = match self.reader.take() {
            Some(reader) => reader,
            None => RecordReader::new(&header, timeline, self.from.max(header.page_address)),
        };
        reader.allow_timeline(timeline);
        let skipped = reader
            .position()
            .checked_sub(header.page_address)
            .unwrap_or(u64::MAX);
        let bytes = usize::try_from(skipped)
            .ok()
            .and_then(|skipped| segment.get(skipped..))
            .unwrap_or_default();
        let mut record = Record::empty();
        let mut decoded = Decoded::default();
        let mut feed = reader.feed(bytes);
        let outcome = loop {
            match feed.next() {
                Ok(Some(raw)) => {
                    if raw.start >= self.from && raw.end <= self.to {
                        self.take(&raw, header.major, &mut record, &mut decoded);
                    }
                    self.reached = self.reached.max(raw.end);
                    if self.reached >= self.to {
                        break Ok(());
                    }
                }
                Ok(None) => break Ok(()),
                Err(end) => break Err(end),
            }
        };
        self.reader = Some(reader);
        Ok(outcome)
    }

    /// The whole window was seen; before that an absent excuse means nothing.
    pub fn is_complete(&self) -> bool {
        self.reached >= self.to
    }

    /// Why this page will be good after replay, if it will. `block` counts from the relation's first segment.
    pub fn excuse(&self, locator: &RelationLocator, fork: Fork, block: u32) -> Option<Excuse> {
        if let Some(excuse) = self
            .pages
            .get(&(*locator, fork))
            .and_then(|pages| pages.get(&block))
        {
            return Some(*excuse);
        }
        if self.dropped.contains(locator) {
            return Some(Excuse::RelationDropped);
        }
        if self
            .truncated
            .get(&(*locator, fork))
            .is_some_and(|blocks| block >= *blocks)
        {
            return Some(Excuse::RelationTruncated);
        }
        let database = (locator.database, locator.tablespace);
        self.databases
            .contains(&database)
            .then_some(Excuse::DatabaseDropped)
    }

    fn take(&mut self, raw: &RawRecord<'_>, major: Major, record: &mut Record, decoded: &mut Decoded) {
        if record.decode_from(raw, major).is_err() {
            return;
        }
        for block in &record.blocks {
            let excuse = match (block.has_image && block.apply_image, block.will_init) {
                (true, _) => Excuse::Image,
                (false, true) => Excuse::WillInit,
                (false, false) => continue,
            };
            self.pages
                .entry((block.locator, block.fork))
                .or_default()
                .entry(block.block)
                .or_insert(excuse);
        }
        // A record that cannot be understood excuses nothing.
        if !event::matters(record.resource_manager, record.info)
            || event::decode(record, raw, major, decoded).is_err()
        {
            *decoded = Decoded::default();
            return;
        }
        for kind in decoded.events.drain(..) {
            match kind {
                EventKind::RelationsDropped { locators, .. } => self.dropped.extend(locators),
                EventKind::RelationTruncated {
                    locator,
                    blocks,
                    flags,
                } if flags & 1 != 0 => {
                    // Only the main fork's limit is known: those of the maps follow from it in their own
                    // ways.
                    let limit = self.truncated.entry((locator, Fork::Main)).or_insert(blocks);
                    *limit = blocks.min(*limit);
                }
                EventKind::DatabaseDropped {
                    database,
                    tablespaces,
                } => {
                    self.databases
                        .extend(tablespaces.into_iter().map(|tablespace| (database, tablespace)));
                }
                _ => {}
            }
        }
        *decoded = Decoded::default();
    }
}
