//! Claims about what is there, where it is unbroken, and how a scan walks it.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::sync::Arc;

use postgres::{Lsn, TimelineId};

use crate::WalPath;
use crate::archive::ScanEnd;
use crate::testing::{MIB16, archive, committing, history, segment};

#[test]
fn a_missing_segment_is_a_gap_and_wal_is_unbroken_only_up_to_it() {
    let archive = archive([segment(1, 3), segment(1, 4), segment(1, 7), segment(1, 8)], []);
    let gaps = archive.gaps();
    assert_eq!(gaps.len(), 1);
    assert_eq!((gaps[0].first_missing, gaps[0].last_missing), (5, 6));
    assert_eq!((gaps[0].from, gaps[0].to), (Lsn(0x500_0000), Lsn(0x700_0000)));
    let path = WalPath::of(&history(1, &[]));
    assert_eq!(archive.unbroken_to(&path, 3), Some(4));
    assert_eq!(archive.unbroken_to(&path, 5), None);
    assert_eq!(
        archive.end_on(&path, Lsn(0x300_0028)).unwrap().unwrap().lsn,
        Lsn(0x500_0000)
    );
    let first = archive.gaps_on(&path, Lsn(0x200_0000));
    assert_eq!((first[0].first_missing, first[0].last_missing), (2, 2));
}

#[test]
fn the_newest_commit_is_searched_for_backwards_over_idle_segments() {
    let archive = archive(
        [
            committing(1, 3, 0x300_1000, 700, 50),
            segment(1, 4),
            segment(1, 5),
        ],
        [],
    );
    let end = archive.end(TimelineId(1)).unwrap().unwrap();
    assert_eq!(end.segment, 5);
    assert_eq!(end.last_commit.unwrap().xid, postgres::Xid(700));
}

#[test]
fn a_scan_takes_the_fork_from_the_new_timeline_and_nothing_behind_it_from_the_old() {
    let archive = archive(
        [
            segment(1, 3),
            segment(1, 4),
            segment(1, 5),
            segment(2, 4),
            segment(2, 5),
        ],
        [(2, 1, 0x480_0000)],
    );
    let path = archive.timelines().path_to(TimelineId(2), None).unwrap();
    let mut seen = Vec::new();
    let end = archive.scan(&path, Lsn(0x300_0000), None, |located| {
        seen.push((located.timeline.0, located.number));
        Ok(ControlFlow::Continue(()))
    });
    assert!(matches!(
        end.unwrap(),
        ScanEnd::End {
            timeline: TimelineId(2),
            number: 5,
            ..
        }
    ));
    assert_eq!(seen, [(1, 3), (2, 4), (2, 5)]);
    // The old timeline's own way goes on as if nothing had happened.
    let old = WalPath::of(&history(1, &[]));
    assert_eq!(archive.unbroken_to(&old, 3), Some(5));
}

#[test]
fn the_old_timelines_copy_of_the_fork_counts_only_up_to_the_switch() {
    let archive = archive(
        [segment(1, 3), committing(1, 4, 0x490_0000, 9, 1)],
        [(2, 1, 0x480_0000)],
    );
    let path = archive.timelines().path_to(TimelineId(2), None).unwrap();
    let end = archive.end_on(&path, Lsn(0x300_0000)).unwrap().unwrap();
    assert_eq!((end.lsn, end.last_commit), (Lsn(0x480_0000), None));
}

#[test]
fn without_the_new_timelines_file_of_the_fork_recovery_would_follow_the_old_one_so_that_is_a_gap() {
    for more in [None, Some(segment(2, 5))] {
        let archive = archive(
            [segment(1, 3), segment(1, 4), segment(1, 5)]
                .into_iter()
                .chain(more),
            [(2, 1, 0x480_0000)],
        );
        let path = archive.timelines().path_to(TimelineId(2), None).unwrap();
        assert_eq!(archive.unbroken_to(&path, 3), Some(4));
        let end = archive
            .scan(&path, Lsn(0x300_0000), None, |_| Ok(ControlFlow::Continue(())))
            .unwrap();
        let gap = ScanEnd::Gap {
            timeline: TimelineId(2),
            first_missing: 4,
            last_missing: 4,
            lsn: Lsn(0x480_0000),
        };
        assert_eq!(end, gap);
    }
}

#[test]
fn wal_that_is_not_archived_yet_goes_on_behind_the_end_but_closes_no_gap() {
    let base = archive([segment(1, 3), segment(1, 4), segment(1, 6)], []);
    let mut live = crate::MemorySource::default();
    for number in [5, 6, 7, 8] {
        live.indexes.insert(
            (TimelineId(1), number),
            committing(1, number, number << 24 | 0x1000, 700, 50),
        );
    }
    let extended = base.extended(Arc::new(live)).unwrap();
    assert!(!extended.has(TimelineId(1), 5) && extended.has(TimelineId(1), 8));
    let path = WalPath::of(&history(1, &[]));
    assert_eq!(extended.unbroken_to(&path, 3), Some(4));
    assert_eq!(extended.unbroken_to(&path, 6), Some(8));
    // What is archived is read from the archive.
    assert!(
        extended
            .read(&path, 6)
            .unwrap()
            .unwrap()
            .index
            .transactions
            .is_empty()
    );
    assert_eq!(
        extended
            .end_on(&path, Lsn(0x600_0000))
            .unwrap()
            .unwrap()
            .last_commit
            .unwrap()
            .lsn,
        Lsn(0x800_1000)
    );
}

#[test]
fn segments_that_do_not_fit_together_end_the_scan() {
    let mut wrong = segment(1, 4);
    wrong.head.length = 64;
    wrong.head.ends_here = true;
    let archive = archive([segment(1, 3), wrong, segment(1, 5)], []);
    let path = WalPath::of(&history(1, &[]));
    let end = archive
        .scan(&path, Lsn(0x300_0000), None, |_| Ok(ControlFlow::Continue(())))
        .unwrap();
    assert!(matches!(end, ScanEnd::Damaged { number: 3, .. }), "{end:?}");
}

#[test]
fn a_history_that_a_copy_left_is_told_from_one_that_was_claimed() {
    let archive = archive([segment(1, 3), segment(1, 4)], [(2, 1, 0x380_0000)]);
    let found = archive
        .unreachable_histories(&BTreeSet::from([TimelineId(1)]))
        .unwrap();
    assert_eq!(found.len(), 1);
    assert!(found[0].is_poison());
    assert_eq!(found[0].parent_end, Lsn(0x500_0000));
    assert_eq!(archive.segment_size(), MIB16);
}
