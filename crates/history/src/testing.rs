//! Indexes in memory, for tests of this room.

use std::sync::Arc;

use postgres::{
    Event, EventKind, HistoryStep, Lsn, Seam, SegmentIndex, SystemIdentifier, TimelineHistory, TimelineId,
    Timestamp, TransactionEnd, TransactionEndKind, Verdict, Xid,
};

use crate::{Archive, KnownHistory, MemorySource};

pub(crate) const MIB16: u32 = 16 << 20;
pub(crate) const SYSTEM: SystemIdentifier = SystemIdentifier(7_300_000_000_000_000_001);

/// A whole segment in which nothing happens.
pub(crate) fn segment(timeline: u32, number: u64) -> SegmentIndex {
    let start = number * u64::from(MIB16);
    SegmentIndex {
        timeline: TimelineId(timeline),
        number,
        segment_size: MIB16,
        wal_block_size: 8192,
        system_identifier: SYSTEM,
        magic: 0xD110,
        first_page_timeline: TimelineId(timeline),
        first_record: Some(Lsn(start + 40)),
        first_record_previous: None,
        last_record: Some(Lsn(start + u64::from(MIB16) - 64)),
        end: Lsn(start + u64::from(MIB16)),
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

/// A commit; times are in seconds.
pub(crate) fn commit(start: u64, xid: u32, seconds: i64) -> TransactionEnd {
    TransactionEnd {
        start: Lsn(start),
        end: Lsn(start + 48),
        xid: Xid(xid),
        time: Timestamp(seconds * 1_000_000),
        kind: TransactionEndKind::Commit,
        subxids: Vec::new(),
    }
}

pub(crate) fn committing(timeline: u32, number: u64, start: u64, xid: u32, seconds: i64) -> SegmentIndex {
    let mut index = segment(timeline, number);
    index.transactions.push(commit(start, xid, seconds));
    index
}

pub(crate) fn event(lsn: u64, xid: u32, kind: EventKind) -> Event {
    Event {
        lsn: Lsn(lsn),
        end: Lsn(lsn + 64),
        xid: Xid(xid),
        kind,
    }
}

pub(crate) fn history(timeline: u32, steps: &[(u32, u64)]) -> TimelineHistory {
    let steps = steps.iter().map(|(parent, switch)| HistoryStep {
        parent: TimelineId(*parent),
        switch: Lsn(*switch),
        reason: String::new(),
    });
    TimelineHistory {
        timeline: TimelineId(timeline),
        steps: steps.collect(),
    }
}

/// Histories: (timeline, parent, switch).
pub(crate) fn archive(
    indexes: impl IntoIterator<Item = SegmentIndex>,
    histories: impl IntoIterator<Item = (u32, u32, u64)>,
) -> Archive {
    let mut source = MemorySource::default();
    for index in indexes {
        source.indexes.insert((index.timeline, index.number), index);
    }
    for (timeline, parent, switch) in histories {
        let history = history(timeline, &[(parent, switch)]);
        source.histories.push(KnownHistory {
            history,
            object: format!("{timeline:08X}.history"),
        });
    }
    Archive::of(Arc::new(source), SYSTEM, MIB16).unwrap()
}
