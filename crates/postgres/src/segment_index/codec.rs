//! The index as bytes, as it is stored beside its segment.
//!
//! `PGWI`, version (1 byte: 1), then the length of the fixed part and the fixed part in postcard's form, then
//! the three long lists as variable-length integers, each number as the difference to the one before. All of
//! it is told by the bytes themselves; a decoder allocates only for what is there.

use diagnostic::{Error, Result};
use serde::{Deserialize, Serialize};

use super::{
    ChangedBlock, ChangedRelation, Event, RowChanges, Seam, SegmentIndex, Statistics, TailSeam,
    TransactionEnd, TransactionEndKind, Verdict,
};
use crate::{Fork, Lsn, RelationLocator, SystemIdentifier, TimelineId, Timestamp, Xid};

const MAGIC: &[u8; 4] = b"PGWI";
const VERSION: u8 = 1;

/// Everything but the long lists. Changing it means a new version.
#[derive(Serialize, Deserialize)]
struct Fixed {
    timeline: TimelineId,
    number: u64,
    segment_size: u32,
    wal_block_size: u32,
    system_identifier: SystemIdentifier,
    magic: u16,
    first_page_timeline: TimelineId,
    first_record: Option<Lsn>,
    first_record_previous: Option<Lsn>,
    last_record: Option<Lsn>,
    end: Lsn,
    switched: bool,
    overwrites_tail: bool,
    head: Seam,
    tail: Option<TailSeam>,
    verdict: Verdict,
    statistics: Vec<Statistics>,
    events: Vec<Event>,
}

impl SegmentIndex {
    /// The stored form.
    pub fn encode(&self) -> Vec<u8> {
        let fixed = Fixed {
            timeline: self.timeline,
            number: self.number,
            segment_size: self.segment_size,
            wal_block_size: self.wal_block_size,
            system_identifier: self.system_identifier,
            magic: self.magic,
            first_page_timeline: self.first_page_timeline,
            first_record: self.first_record,
            first_record_previous: self.first_record_previous,
            last_record: self.last_record,
            end: self.end,
            switched: self.switched,
            overwrites_tail: self.overwrites_tail,
            head: self.head,
            tail: self.tail,
            verdict: self.verdict.clone(),
            statistics: self.statistics.clone(),
            events: self.events.clone(),
        };
        // Writing plain values into memory cannot fail; if it ever did, the decoder refuses the empty part.
        let fixed = postcard::to_stdvec(&fixed).unwrap_or_default();
        let mut out = Vec::with_capacity(fixed.len() + 64 + self.transactions.len() * 12);
        out.extend_from_slice(MAGIC);
        out.push(VERSION);
        put(&mut out, fixed.len() as u64);
        out.extend_from_slice(&fixed);
        put_transactions(&mut out, &self.transactions);
        put_changed(&mut out, &self.changed);
        put_row_changes(&mut out, &self.row_changes);
        out
    }

    /// Reads the stored form; all of `bytes` must be it. Error codes: `wal-index-damaged`,
    /// `wal-index-version`.
    pub fn decode(bytes: &[u8]) -> Result<SegmentIndex> {
        let damaged = || Error::new("wal-index-damaged", "the index of a WAL segment is damaged");
        let rest = bytes.strip_prefix(MAGIC).ok_or_else(damaged)?;
        let (version, rest) = rest.split_first().ok_or_else(damaged)?;
        if *version != VERSION {
            return Err(Error::new(
                "wal-index-version",
                format!("WAL index version {version} is not known"),
            )
            .hint("It was written by a newer pgproof: upgrade this one."));
        }
        let mut input = Input { rest };
        let lists = |input: &mut Input<'_>| {
            let length = usize::try_from(input.take()?).ok()?;
            let (fixed, rest) = input.rest.split_at_checked(length)?;
            input.rest = rest;
            let (fixed, left) = postcard::take_from_bytes::<Fixed>(fixed).ok()?;
            if !left.is_empty() {
                return None;
            }
            let lists = (transactions(input)?, changed(input)?, row_changes(input)?);
            input.rest.is_empty().then_some((fixed, lists))
        };
        let (fixed, (transactions, changed, row_changes)) = lists(&mut input).ok_or_else(damaged)?;
        Ok(SegmentIndex {
            timeline: fixed.timeline,
            number: fixed.number,
            segment_size: fixed.segment_size,
            wal_block_size: fixed.wal_block_size,
            system_identifier: fixed.system_identifier,
            magic: fixed.magic,
            first_page_timeline: fixed.first_page_timeline,
            first_record: fixed.first_record,
            first_record_previous: fixed.first_record_previous,
            last_record: fixed.last_record,
            end: fixed.end,
            switched: fixed.switched,
            overwrites_tail: fixed.overwrites_tail,
            head: fixed.head,
            tail: fixed.tail,
            verdict: fixed.verdict,
            statistics: fixed.statistics,
            transactions,
            events: fixed.events,
            changed,
            row_changes,
        })
    }
}

/// LEB128.
fn put(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// The difference of two numbers, small ones short whatever their sign; wraps around.
fn put_difference(out: &mut Vec<u8>, value: u64, last: u64) {
    let difference = value.wrapping_sub(last) as i64;
    put(out, (difference << 1 ^ difference >> 63) as u64);
}

struct Input<'a> {
    rest: &'a [u8],
}

impl Input<'_> {
    fn take(&mut self) -> Option<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.rest.split_first()?;
            self.rest = rest;
            let part = u64::from(byte & 0x7F);
            // The tenth byte has room for one bit only.
            if shift == 63 && part > 1 {
                return None;
            }
            value |= part << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    fn take_u32(&mut self) -> Option<u32> {
        u32::try_from(self.take()?).ok()
    }

    fn take_difference(&mut self, last: u64) -> Option<u64> {
        let value = self.take()?;
        Some(last.wrapping_add(value >> 1 ^ (value & 1).wrapping_neg()))
    }

    /// A count of items of which each takes a byte at least: so it cannot exceed what is left.
    fn take_count(&mut self) -> Option<usize> {
        usize::try_from(self.take()?)
            .ok()
            .filter(|count| *count <= self.rest.len())
    }
}

fn put_xid(out: &mut Vec<u8>, xid: Xid, last: Xid) {
    // As 32-bit difference, so that a wrapped-around xid is near.
    let difference = xid.0.wrapping_sub(last.0) as i32;
    put(out, u64::from((difference << 1 ^ difference >> 31) as u32));
}

fn take_xid(input: &mut Input<'_>, last: Xid) -> Option<Xid> {
    let value = input.take_u32()?;
    Some(Xid(last.0.wrapping_add(value >> 1 ^ (value & 1).wrapping_neg())))
}

fn put_transactions(out: &mut Vec<u8>, transactions: &[TransactionEnd]) {
    put(out, transactions.len() as u64);
    let (mut last_end, mut last_xid, mut last_time) = (0, Xid(0), 0);
    for transaction in transactions {
        put_difference(out, transaction.start.0, last_end);
        put_difference(out, transaction.end.0, transaction.start.0);
        put_xid(out, transaction.xid, last_xid);
        put_difference(out, transaction.time.0 as u64, last_time);
        put(
            out,
            (transaction.subxids.len() as u64) << 2 | transaction.kind as u64,
        );
        let mut last = transaction.xid;
        for subxid in &transaction.subxids {
            put_xid(out, *subxid, last);
            last = *subxid;
        }
        (last_end, last_xid, last_time) = (transaction.end.0, transaction.xid, transaction.time.0 as u64);
    }
}

fn transactions(input: &mut Input<'_>) -> Option<Vec<TransactionEnd>> {
    let count = input.take_count()?;
    let mut transactions = Vec::new();
    let (mut last_end, mut last_xid, mut last_time) = (0, Xid(0), 0);
    for _ in 0..count {
        let start = input.take_difference(last_end)?;
        let end = input.take_difference(start)?;
        let xid = take_xid(input, last_xid)?;
        let time = input.take_difference(last_time)?;
        let head = input.take()?;
        let kind = match head & 3 {
            0 => TransactionEndKind::Commit,
            1 => TransactionEndKind::Abort,
            2 => TransactionEndKind::CommitPrepared,
            _ => TransactionEndKind::AbortPrepared,
        };
        let mut subxids = Vec::new();
        let mut last = xid;
        for _ in 0..head >> 2 {
            last = take_xid(input, last)?;
            subxids.push(last);
        }
        (last_end, last_xid, last_time) = (end, xid, time);
        let time = Timestamp(time as i64);
        transactions.push(TransactionEnd {
            start: Lsn(start),
            end: Lsn(end),
            xid,
            time,
            kind,
            subxids,
        });
    }
    Some(transactions)
}

fn put_locator(out: &mut Vec<u8>, locator: &RelationLocator, last: &RelationLocator) {
    put_difference(out, locator.tablespace.into(), last.tablespace.into());
    put_difference(out, locator.database.into(), last.database.into());
    put_difference(out, locator.relation.into(), last.relation.into());
}

fn take_locator(input: &mut Input<'_>, last: &RelationLocator) -> Option<RelationLocator> {
    let mut part = |last: u32| u32::try_from(input.take_difference(last.into())?).ok();
    Some(RelationLocator {
        tablespace: part(last.tablespace)?,
        database: part(last.database)?,
        relation: part(last.relation)?,
    })
}

const NOWHERE: RelationLocator = RelationLocator {
    tablespace: 0,
    database: 0,
    relation: 0,
};

fn put_changed(out: &mut Vec<u8>, changed: &[ChangedRelation]) {
    put(out, changed.len() as u64);
    let mut last = NOWHERE;
    for relation in changed {
        put_locator(out, &relation.locator, &last);
        put(out, (relation.blocks.len() as u64) << 2 | relation.fork as u64);
        let mut last_block = 0;
        for block in &relation.blocks {
            let flags = u64::from(block.image) | u64::from(block.will_init) << 1;
            put(out, u64::from(block.block.wrapping_sub(last_block)) << 2 | flags);
            last_block = block.block;
        }
        last = relation.locator;
    }
}

fn changed(input: &mut Input<'_>) -> Option<Vec<ChangedRelation>> {
    let count = input.take_count()?;
    let mut changed = Vec::new();
    let mut last = NOWHERE;
    for _ in 0..count {
        let locator = take_locator(input, &last)?;
        let head = input.take()?;
        let fork = Fork::from_number((head & 3) as u32)?;
        let mut blocks = Vec::new();
        let mut block = 0u32;
        for _ in 0..head >> 2 {
            let value = input.take()?;
            block = block.wrapping_add(u32::try_from(value >> 2).ok()?);
            blocks.push(ChangedBlock {
                block,
                image: value & 1 != 0,
                will_init: value & 2 != 0,
            });
        }
        changed.push(ChangedRelation {
            locator,
            fork,
            blocks,
        });
        last = locator;
    }
    Some(changed)
}

fn put_row_changes(out: &mut Vec<u8>, row_changes: &[RowChanges]) {
    put(out, row_changes.len() as u64);
    let (mut last_xid, mut last) = (Xid(0), NOWHERE);
    for rows in row_changes {
        put_xid(out, rows.xid, last_xid);
        put_locator(out, &rows.locator, &last);
        put(out, rows.inserts.into());
        put(out, rows.updates.into());
        put(out, rows.deletes.into());
        (last_xid, last) = (rows.xid, rows.locator);
    }
}

fn row_changes(input: &mut Input<'_>) -> Option<Vec<RowChanges>> {
    let count = input.take_count()?;
    let mut row_changes = Vec::new();
    let (mut last_xid, mut last) = (Xid(0), NOWHERE);
    for _ in 0..count {
        let xid = take_xid(input, last_xid)?;
        let locator = take_locator(input, &last)?;
        let (inserts, updates, deletes) = (input.take_u32()?, input.take_u32()?, input.take_u32()?);
        row_changes.push(RowChanges {
            xid,
            locator,
            inserts,
            updates,
            deletes,
        });
        (last_xid, last) = (xid, locator);
    }
    Some(row_changes)
}
