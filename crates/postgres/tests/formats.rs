//! Claims about bytes that PostgreSQL 13 to 18 really wrote (`tests/fixtures`), whole and mutilated.

use std::path::Path;

use postgres::{
    BLOCK_SIZE, ClusterState, ControlFile, EndReason, EventKind, Excuse, Fork, Lsn, Major, PageVerdict,
    RecordReader, SegmentHeader, SegmentIndex, SegmentIndexer, TimelineId, TransactionEndKind, Verdict,
    WalFile, WindowOfWal, page_lsn, tail_bytes, verify_page,
};
use proptest::prelude::*;

const SEGMENT: usize = 1 << 20;

fn fixture(major: u16, name: &str) -> Vec<u8> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    std::fs::read(folder.join(major.to_string()).join(name)).expect("fixture")
}

fn control_file(major: u16) -> Vec<u8> {
    let mut content = fixture(major, "pg_control");
    content.resize(8192, 0);
    content
}

/// A whole segment, and its name.
fn segment(major: u16) -> (Vec<u8>, WalFile) {
    let mut segment = fixture(major, "wal");
    segment.resize(SEGMENT, 0);
    let header = SegmentHeader::parse(&segment).expect("header");
    (
        segment,
        WalFile::Segment {
            timeline: header.timeline,
            number: header.number(),
        },
    )
}

fn index(major: u16) -> SegmentIndex {
    let (segment, name) = segment(major);
    SegmentIndexer::index(&segment, &name, None).expect("index")
}

/// The start and end of each record.
fn records(segment: &[u8]) -> Vec<(Lsn, Lsn)> {
    let header = SegmentHeader::parse(segment).unwrap();
    let mut reader = RecordReader::new(&header, header.timeline, header.page_address);
    let mut feed = reader.feed(segment);
    let mut records = Vec::new();
    while let Ok(Some(record)) = feed.next() {
        records.push((record.start, record.end));
    }
    records
}

fn offset(lsn: Lsn, segment: &[u8]) -> usize {
    let start = SegmentHeader::parse(segment).unwrap().page_address;
    usize::try_from(lsn.checked_sub(start).unwrap()).unwrap()
}

#[test]
fn control_files_of_all_versions_are_read() {
    for major in 13..=18 {
        let control = ControlFile::parse(&control_file(major)).unwrap();
        assert_eq!(control.major, Major(major));
        assert_eq!(control.state, ClusterState::ShutDown);
        assert_eq!(
            (
                control.block_size,
                control.wal_block_size,
                control.relation_segment_size
            ),
            (8192, 8192, 131_072)
        );
        assert_eq!(
            (control.wal_segment_size, control.data_checksum_version),
            (1 << 20, 1)
        );
        assert_eq!(
            (
                control.max_connections,
                control.max_prepared_transactions,
                control.wal_level
            ),
            (100, 2, 1)
        );
        assert_eq!(control.checkpoint_timeline, TimelineId(1));
        assert_eq!(control.maximum_alignment, 8);
        assert!(control.full_page_writes && control.float8_by_val && !control.backup_end_required);
        assert_eq!(control.system_identifier, index(major).system_identifier);
        // The struct alone is enough.
        assert_eq!(
            ControlFile::parse(&fixture(major, "pg_control")).unwrap(),
            control
        );
    }
}

#[test]
fn a_control_file_with_one_wrong_bit_is_refused() {
    for major in [13, 15, 17, 18] {
        let content = control_file(major);
        let length = if major == 18 { 296 } else { 292 };
        for at in 0..length {
            for bit in 0..8 {
                let mut content = content.clone();
                content[at] ^= 1 << bit;
                let code = ControlFile::parse(&content).unwrap_err().code();
                let version = (8..12).contains(&at);
                assert!(
                    code == "control-file-damaged" || version && code == "control-file-version",
                    "{major} {at}: {code}"
                );
            }
        }
        for short in [0, 11, 15, 100, length - 1] {
            assert_eq!(
                ControlFile::parse(&content[..short]).unwrap_err().code(),
                "control-file-damaged"
            );
        }
    }
    // A right CRC over a catalog version of nobody's.
    let mut content = control_file(15);
    content[12..16].copy_from_slice(&202_299_999_u32.to_le_bytes());
    let crc = crc32c::crc32c(&content[..288]);
    content[288..292].copy_from_slice(&crc.to_le_bytes());
    assert_eq!(
        ControlFile::parse(&content).unwrap_err().code(),
        "control-file-version"
    );
}

#[test]
fn pages_of_postgresql_are_good_where_they_belong_and_nowhere_else() {
    let pages = fixture(15, "pages");
    for (page, block) in pages.chunks(BLOCK_SIZE).zip(0u32..) {
        assert_eq!(verify_page(page, block, true), PageVerdict::Good);
        assert_eq!(verify_page(page, block, false), PageVerdict::Good);
        assert!(matches!(
            verify_page(page, block + 1, true),
            PageVerdict::Bad { .. }
        ));
        assert!(page_lsn(page).is_valid());
        for at in (0..BLOCK_SIZE).step_by(97) {
            let mut page = page.to_vec();
            page[at] ^= 0x10;
            assert!(
                matches!(verify_page(&page, block, true), PageVerdict::Bad { .. }),
                "byte {at}"
            );
        }
        let mut page = page.to_vec();
        // A lower end above the upper one: without checksums the header alone must give it away.
        page[12..14].copy_from_slice(&8000u16.to_le_bytes());
        page[14..16].copy_from_slice(&7000u16.to_le_bytes());
        assert_eq!(verify_page(&page, block, false), PageVerdict::Malformed);
    }
}

#[test]
fn wal_of_all_versions_says_the_same() {
    for major in 13..=18 {
        let (segment, name) = segment(major);
        let header = SegmentHeader::parse(&segment).unwrap();
        assert_eq!(
            (header.major, header.block_size, header.segment_size),
            (Major(major), 8192, 1 << 20)
        );
        let index = SegmentIndexer::index(&segment, &name, None).unwrap();
        assert_eq!(index.verdict, Verdict::Good, "{major}");
        assert!(index.switched && index.tail.is_none() && index.head.length == 0);
        assert_eq!(index.end, index.segment_end());

        let kinds: Vec<&EventKind> = index
            .events
            .iter()
            .map(|event| &event.kind)
            .filter(|kind| **kind != EventKind::CheckpointRedo)
            .collect();
        let [prepare, point, dropped, message, writes, checkpoint, switch] = kinds.as_slice() else {
            panic!("{major}: {kinds:?}");
        };
        assert!(matches!(prepare, EventKind::Prepare { gid, .. } if gid == "a transfer"));
        assert!(matches!(point, EventKind::RestorePoint { name, .. } if name == "before the accident"));
        assert!(
            matches!(dropped, EventKind::RelationsDropped { locators, aborted: false } if locators.len() == 1)
        );
        assert!(matches!(
            message,
            EventKind::LogicalMessage { prefix, transactional: false, length: 5, .. } if prefix == "pgproof"
        ));
        assert!(matches!(writes, EventKind::FullPageWrites(true)));
        assert!(matches!(
            checkpoint,
            EventKind::Checkpoint {
                online: true,
                full_page_writes: true,
                timeline: TimelineId(1),
                ..
            }
        ));
        assert!(matches!(switch, EventKind::Switch));

        let ends = |kind| {
            index
                .transactions
                .iter()
                .filter(|end| end.kind == kind)
                .collect::<Vec<_>>()
        };
        assert_eq!(ends(TransactionEndKind::CommitPrepared).len(), 1);
        let prepared = ends(TransactionEndKind::CommitPrepared)[0];
        assert!(matches!(prepare, EventKind::Prepare { xid, .. } if *xid == prepared.xid));
        // One subtransaction, one transaction.
        assert_eq!(ends(TransactionEndKind::Abort).len(), 2);
        let with_subtransactions: Vec<_> = index
            .transactions
            .iter()
            .filter(|end| end.kind.is_commit() && !end.subxids.is_empty())
            .collect();
        assert_eq!(with_subtransactions.len(), 1);
        assert_eq!(with_subtransactions[0].subxids.len(), 1);

        // 53 rows deleted and rolled back (n > 50), 102 or so deleted for good.
        let deletes: Vec<u32> = index
            .row_changes
            .iter()
            .map(|rows| rows.deletes)
            .filter(|n| *n > 0)
            .collect();
        assert_eq!(deletes, vec![50, 103], "{major}");
        assert!(
            index
                .changed
                .iter()
                .any(|changed| changed.blocks.iter().any(|block| block.image))
        );
        assert!(
            index
                .statistics
                .iter()
                .map(|statistics| statistics.fpi_bytes)
                .sum::<u64>()
                > 0
        );
    }
}

#[test]
fn the_stored_form_comes_back() {
    for major in 13..=18 {
        let index = index(major);
        let stored = index.encode();
        assert_eq!(SegmentIndex::decode(&stored).unwrap(), index);
        for length in 0..stored.len() {
            assert_eq!(
                SegmentIndex::decode(&stored[..length]).unwrap_err().code(),
                "wal-index-damaged"
            );
        }
        let mut newer = stored.clone();
        newer[4] = 2;
        assert_eq!(
            SegmentIndex::decode(&newer).unwrap_err().code(),
            "wal-index-version"
        );
        newer.push(0);
        newer[4] = 1;
        assert_eq!(
            SegmentIndex::decode(&newer).unwrap_err().code(),
            "wal-index-damaged"
        );
    }
}

#[test]
fn a_flipped_bit_ends_valid_wal_at_the_start_of_its_record() {
    let (good, name) = segment(15);
    let records = records(&good);
    assert!(records.len() > 100);
    for (start, _) in records {
        // The transaction's number, then the last byte of the fixed header: both are under the CRC.
        for at in [4, 17] {
            let mut segment = good.clone();
            let place = offset(start, &good) + at;
            // Where a page ends inside the header the byte is in the next page's header: another claim.
            if place / 8192 != offset(start, &good) / 8192 {
                continue;
            }
            segment[place] ^= 1;
            let index = SegmentIndexer::index(&segment, &name, None).unwrap();
            let Verdict::Damaged { at, .. } = index.verdict else {
                panic!("{start}: {:?}", index.verdict)
            };
            assert_eq!(at, start);
        }
    }
}

/// Makes the CRC of the record at `at` right again.
fn seal(segment: &mut [u8], at: usize) {
    let length = u32::from_le_bytes(segment[at..at + 4].try_into().unwrap()) as usize;
    let crc = crc32c::crc32c_append(
        crc32c::crc32c(&segment[at + 24..at + length]),
        &segment[at..at + 20],
    );
    segment[at + 20..at + 24].copy_from_slice(&crc.to_le_bytes());
}

#[test]
fn a_record_that_does_not_follow_the_one_before_ends_valid_wal() {
    let (mut segment, name) = segment(15);
    let records = records(&segment);
    let (before, start) = (records[10].0, records[11].0);
    let at = offset(start, &segment);
    let wrong = Lsn(before.0 - 8);
    segment[at + 8..at + 16].copy_from_slice(&wrong.0.to_le_bytes());
    seal(&mut segment, at);
    let index = SegmentIndexer::index(&segment, &name, None).unwrap();
    let reason = EndReason::Previous {
        expected: before,
        found: wrong,
    };
    assert_eq!(index.verdict, Verdict::Damaged { at: start, reason });
    assert_eq!(index.last_record, Some(before));
}

#[test]
fn a_claimed_length_is_not_believed() {
    let (good, name) = segment(15);
    let start = records(&good)[11].0;
    let at = offset(start, &good);
    for (length, reason) in [
        (23u32, EndReason::Length { found: 23 }),
        (
            (1020 << 20) + 1,
            EndReason::TooLong {
                found: (1020 << 20) + 1,
            },
        ),
        // Allowed, but the next page knows of no such record.
        (
            1020 << 20,
            EndReason::Continuation {
                expected: (1020 << 20) - (8192 - at as u32 % 8192),
                found: 0,
            },
        ),
    ] {
        let mut segment = good.clone();
        segment[at..at + 4].copy_from_slice(&length.to_le_bytes());
        let index = SegmentIndexer::index(&segment, &name, None).unwrap();
        let Verdict::Damaged { at, reason: found } = index.verdict else {
            panic!("{:?}", index.verdict)
        };
        assert_eq!(at, start);
        match (&found, &reason) {
            // Whatever the next page continues.
            (EndReason::Continuation { expected, .. }, EndReason::Continuation { expected: wanted, .. }) => {
                assert_eq!(expected, wanted);
            }
            _ => assert_eq!(found, reason),
        }
    }
}

#[test]
fn a_segment_that_was_not_written_to_its_end_is_incomplete_and_one_with_a_hole_is_damaged() {
    let (good, name) = segment(15);
    let records = records(&good);
    // Between two records: zeros from there on.
    for (start, _) in &records[1..] {
        let mut segment = good.clone();
        segment[offset(*start, &good)..].fill(0);
        let index = SegmentIndexer::index(&segment, &name, None).unwrap();
        let in_page = offset(*start, &good) % 8192;
        if in_page > 24 {
            assert_eq!(index.verdict, Verdict::Incomplete { at: *start });
        }
    }
    // Inside a record that crosses into the third page, which is of an older use of the file, or zeros.
    let crossing = records
        .iter()
        .find(|(start, end)| offset(*start, &good) / 8192 == 1 && offset(*end, &good) > 16384);
    let (start, _) = *crossing.expect("a record that crosses a page's end");
    let mut old = good.clone();
    let old_address = 0x10_0000u64 + 16384;
    old[16384 + 8..16384 + 16].copy_from_slice(&old_address.to_le_bytes());
    let index = SegmentIndexer::index(&old, &name, None).unwrap();
    assert_eq!(index.verdict, Verdict::Incomplete { at: start });
    let mut zeros = good.clone();
    zeros[16384..].fill(0);
    assert_eq!(
        SegmentIndexer::index(&zeros, &name, None).unwrap().verdict,
        Verdict::Incomplete { at: start }
    );
    // A page of zeros with a good page behind it was lost, not left out.
    let mut hole = good.clone();
    hole[8192..16384].fill(0);
    let index = SegmentIndexer::index(&hole, &name, None).unwrap();
    assert!(
        matches!(index.verdict, Verdict::Damaged { .. }),
        "{:?}",
        index.verdict
    );
}

#[test]
fn a_segment_under_a_wrong_name_is_refused() {
    let (good, name) = segment(15);
    let WalFile::Segment { timeline, number } = name else {
        unreachable!()
    };
    let code =
        |segment: &[u8], name: WalFile| SegmentIndexer::index(segment, &name, None).unwrap_err().code();
    assert_eq!(
        code(
            &good,
            WalFile::Segment {
                timeline,
                number: number + 1
            }
        ),
        "wal-segment-name"
    );
    assert_eq!(code(&good, WalFile::History { timeline }), "wal-segment-name");
    assert_eq!(code(&good[..SEGMENT - 1], name), "wal-segment-size");
    assert_eq!(code(&good[..30], name), "wal-segment-damaged");
    assert_eq!(code(&[], name), "wal-segment-damaged");
    assert_eq!(code(&vec![0; SEGMENT], name), "wal-segment-damaged");
    let mut future = good.clone();
    future[4..8].copy_from_slice(&2u32.to_le_bytes());
    assert_eq!(code(&future, name), "wal-segment-name");
    let mut strange = good.clone();
    strange[0..2].copy_from_slice(&0xD0FFu16.to_le_bytes());
    assert_eq!(code(&strange, name), "wal-segment-version");
    // The first segment of a new timeline begins with pages of the old one.
    let promoted = WalFile::Segment {
        timeline: TimelineId(2),
        number,
    };
    assert_eq!(
        SegmentIndexer::index(&good, &promoted, None).unwrap().verdict,
        Verdict::Good
    );
}

/// The good segment cut in two neighbours at a page's end, as if segments were that short: the second part's
/// page becomes the first page of a segment of its own.
fn tail_and_rest() -> (Vec<u8>, Vec<u8>, WalFile, Lsn) {
    let (good, name) = segment(15);
    let WalFile::Segment { timeline, number } = name else {
        unreachable!()
    };
    let crossing = records(&good)
        .into_iter()
        .find(|(start, end)| offset(*start, &good) / 8192 == 0 && offset(*end, &good) > 8192)
        .expect("a record that crosses the first page's end");
    let begin = offset(crossing.0, &good);
    let next_start = Lsn((number + 1) * SEGMENT as u64);
    let tail_start = Lsn(next_start.0 - (8192 - begin as u64));
    // A long header takes 16 bytes more than the short one it replaces: the record's rest moves by as much.
    let page = &good[8192..16384];
    let missing = u32::from_le_bytes(page[16..20].try_into().unwrap());
    let mut rest = good[..40].to_vec();
    rest[2..4].copy_from_slice(&3u16.to_le_bytes());
    rest[8..16].copy_from_slice(&next_start.0.to_le_bytes());
    rest[16..20].copy_from_slice(&missing.to_le_bytes());
    rest.extend_from_slice(&page[24..24 + missing as usize]);
    rest.resize(SEGMENT, 0);
    (
        good[begin..8192].to_vec(),
        rest,
        WalFile::Segment {
            timeline,
            number: number + 1,
        },
        tail_start,
    )
}

#[test]
fn the_record_at_a_seam_counts_only_when_its_beginning_is_at_hand() {
    let (tail, rest, name, tail_start) = tail_and_rest();
    let alone = SegmentIndexer::index(&rest, &name, None).unwrap();
    assert!(alone.head.length > 0 && alone.head.ends_here && !alone.head.resolved);
    assert!(alone.statistics.is_empty());
    assert!(matches!(alone.verdict, Verdict::Incomplete { .. }));

    let joined = SegmentIndexer::index(&rest, &name, Some(&tail)).unwrap();
    assert!(joined.head.resolved && joined.head.ends_here);
    assert_eq!(
        joined
            .statistics
            .iter()
            .map(|statistics| statistics.records)
            .sum::<u32>(),
        1
    );
    assert_eq!(joined.last_record, Some(tail_start));
    assert_eq!(joined.first_record, None);

    // A tail of something else is a broken seam, and the rest is read all the same.
    let mut wrong = tail.clone();
    *wrong.last_mut().unwrap() ^= 1;
    let spoiled = SegmentIndexer::index(&rest, &name, Some(&wrong)).unwrap();
    let Verdict::Damaged { at, reason } = &spoiled.verdict else {
        panic!("{:?}", spoiled.verdict)
    };
    assert_eq!(*at, tail_start);
    assert!(matches!(reason, EndReason::Crc { .. }));
    assert!(!spoiled.head.resolved);
    let garbage = vec![7u8; 64];
    let spoiled = SegmentIndexer::index(&rest, &name, Some(&garbage)).unwrap();
    assert!(matches!(spoiled.verdict, Verdict::Damaged { .. }));
}

#[test]
fn a_page_is_excused_only_by_what_the_window_holds() {
    let (good, _) = segment(15);
    let header = SegmentHeader::parse(&good).unwrap();
    let index = index(15);
    let records = records(&good);
    let end = records.last().unwrap().1;
    let (changed, imaged) = index
        .changed
        .iter()
        .find_map(|changed| Some((changed, changed.blocks.iter().find(|block| block.image)?)))
        .unwrap();
    let all = {
        let mut window = WindowOfWal::new(header.page_address, end);
        assert!(!window.is_complete());
        assert_eq!(window.add_segment(&good, TimelineId(1)).unwrap(), Ok(()));
        assert!(window.is_complete());
        window
    };
    assert_eq!(
        all.excuse(&changed.locator, Fork::Main, imaged.block),
        Some(Excuse::Image)
    );
    assert_eq!(
        all.excuse(&changed.locator, Fork::Main, imaged.block + 1000),
        None
    );
    assert_eq!(all.excuse(&changed.locator, Fork::Vm, imaged.block), None);
    let dropped = index.events.iter().find_map(|event| match &event.kind {
        EventKind::RelationsDropped { locators, .. } => Some((event.lsn, locators[0])),
        _ => None,
    });
    let (dropped_at, dropped) = dropped.unwrap();
    assert_eq!(all.excuse(&dropped, Fork::Main, 7), Some(Excuse::RelationDropped));

    // A window that ends before the image and the drop excuses neither.
    let mut early = WindowOfWal::new(header.page_address, dropped_at);
    assert_eq!(early.add_segment(&good, TimelineId(1)).unwrap(), Ok(()));
    assert!(early.is_complete());
    assert_eq!(early.excuse(&changed.locator, Fork::Main, imaged.block), None);
    assert_eq!(early.excuse(&dropped, Fork::Main, 7), None);
    // One that begins after the drop does not, either.
    let after = records.iter().find(|(start, _)| *start > dropped_at).unwrap().0;
    let mut late = WindowOfWal::new(after, end);
    assert_eq!(late.add_segment(&good, TimelineId(1)).unwrap(), Ok(()));
    assert_eq!(late.excuse(&dropped, Fork::Main, 7), None);
    assert_eq!(
        late.excuse(&changed.locator, Fork::Main, imaged.block),
        Some(Excuse::Image)
    );
    // Damaged WAL is told, and the window stays open.
    let mut broken = good.clone();
    broken[offset(after, &good) + 4] ^= 1;
    let mut window = WindowOfWal::new(header.page_address, end);
    let told = window.add_segment(&broken, TimelineId(1)).unwrap().unwrap_err();
    assert_eq!(told.at, after);
    assert!(!window.is_complete());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn mutated_wal_is_never_good_with_another_content(
        major in 13u16..=18,
        changes in prop::collection::vec((0usize..17_300, any::<u8>()), 1..4),
    ) {
        let (good, name) = segment(major);
        let mut bad = good.clone();
        for (at, value) in changes {
            bad[at] = value;
        }
        if let Ok(index) = SegmentIndexer::index(&bad, &name, None) {
            let expected = SegmentIndexer::index(&good, &name, None).unwrap();
            if index.verdict == Verdict::Good {
                prop_assert_eq!(&index.transactions, &expected.transactions);
                prop_assert_eq!(&index.events, &expected.events);
                prop_assert_eq!(&index.changed, &expected.changed);
                prop_assert_eq!(&index.row_changes, &expected.row_changes);
            }
            prop_assert_eq!(SegmentIndex::decode(&index.encode()).unwrap(), index.clone());
            let _ = tail_bytes(&bad, &index);
        }
    }

    /// CRCs made right again over changed records: what is behind them must be total as well.
    #[test]
    fn records_with_right_crcs_and_wrong_content_do_no_harm(
        major in 13u16..=18,
        which in any::<prop::sample::Index>(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let (mut bad, name) = segment(major);
        let records = records(&bad);
        let whole: Vec<_> = records.iter().filter(|(start, end)| {
            offset(*start, &bad) / 8192 == (offset(*end, &bad).saturating_sub(1)) / 8192
        }).collect();
        let at = offset(whole[which.index(whole.len())].0, &bad);
        let length = u32::from_le_bytes(bad[at..at + 4].try_into().unwrap()) as usize;
        for (place, value) in changes {
            // Not the length nor the link to the record before: those are checked in other ways.
            let place = 16 + place.index(length - 16);
            if !(20..24).contains(&place) {
                bad[at + place] = value;
            }
        }
        seal(&mut bad, at);
        let index = SegmentIndexer::index(&bad, &name, None).unwrap();
        prop_assert_eq!(SegmentIndex::decode(&index.encode()).unwrap(), index);
        let mut window = WindowOfWal::new(Lsn(0), Lsn(u64::MAX));
        let _ = window.add_segment(&bad, TimelineId(1)).unwrap();
    }

    #[test]
    fn records_are_the_same_however_they_are_fed(major in 13u16..=18, sizes in prop::collection::vec(1usize..9000, 1..20)) {
        let (segment, _) = segment(major);
        let header = SegmentHeader::parse(&segment).unwrap();
        let mut reader = RecordReader::new(&header, header.timeline, header.page_address);
        let mut found = Vec::new();
        let mut offered = 0;
        let mut sizes = sizes.iter().cycle();
        while offered < segment.len() {
            offered = (offered + sizes.next().unwrap()).min(segment.len());
            let from = usize::try_from(reader.position().checked_sub(header.page_address).unwrap()).unwrap();
            // A switch moves on to the segment's end.
            let Some(bytes) = segment.get(from..offered) else { continue };
            let mut feed = reader.feed(bytes);
            while let Some(record) = feed.next().unwrap() {
                found.push((record.start, record.end));
            }
        }
        prop_assert_eq!(found, records(&segment));
    }

    #[test]
    fn any_bytes_are_a_segment_or_an_error(mut bytes: Vec<u8>, timeline: u32, number: u64, head: bool, tail: Vec<u8>) {
        if head {
            // Behind a right first page header anything may follow.
            let (good, _) = segment(15);
            bytes = [&good[..40], &bytes].concat();
            bytes.resize(SEGMENT, 0xA5);
        }
        let name = WalFile::Segment { timeline: TimelineId(timeline), number };
        let _ = SegmentHeader::parse(&bytes);
        let _ = SegmentIndexer::index(&bytes, &name, Some(&tail));
        let (_, good_name) = segment(15);
        let _ = SegmentIndexer::index(&bytes, &good_name, Some(&tail));
        let _ = SegmentIndex::decode(&bytes);
        let _ = ControlFile::parse(&bytes);
    }

    #[test]
    fn a_stored_form_with_wrong_bytes_is_an_index_or_an_error(
        at in any::<prop::sample::Index>(), value: u8, major in 13u16..=18,
    ) {
        let mut stored = index(major).encode();
        let at = at.index(stored.len());
        stored[at] = value;
        let _ = SegmentIndex::decode(&stored);
    }

    #[test]
    fn a_control_file_of_any_content_is_read_or_refused(major in 13u16..=18, changes in prop::collection::vec((0usize..296, any::<u8>()), 0..8)) {
        let mut content = control_file(major);
        for (at, value) in changes {
            content[at] = value;
        }
        let end = if major == 18 { 292 } else { 288 };
        let crc = crc32c::crc32c(&content[..end]);
        content[end..end + 4].copy_from_slice(&crc.to_le_bytes());
        let _ = ControlFile::parse(&content);
    }
}
