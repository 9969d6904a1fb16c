//! Claims about targets, each from PostgreSQL's recoveryStopsBefore and recoveryStopsAfter.

use postgres::{EventKind, Lsn, TimelineId, Timestamp, TransactionEndKind, Xid};

use crate::testing::{MIB16, SYSTEM, archive, commit, committing, event, history, segment};
use crate::{Archive, Start, Target, Trace, Unreachable, WalPath, Wanted};

/// A backup from 3/28 to 3/100 that ended at second 100.
fn start() -> Start {
    Start {
        redo: Lsn(0x300_0028),
        stop: Lsn(0x300_0100),
        ended_at: Timestamp(100_000_000),
        path: WalPath::of(&history(1, &[])),
    }
}

fn time(seconds: i64) -> Target {
    Target::Time(Timestamp(seconds * 1_000_000))
}

fn trace(archive: &Archive, target: Target) -> Trace {
    archive.trace(&start(), &[target.into()], None).unwrap()
}

fn resolve(archive: &Archive, target: Target) -> crate::Resolution {
    trace(archive, target).targets.remove(0)
}

/// Commits whose times go back and forth: 110, 130, 120, 140.
fn jumping() -> Archive {
    let mut first = segment(1, 3);
    first.transactions = vec![commit(0x300_1000, 701, 110), commit(0x300_2000, 702, 130)];
    let mut second = segment(1, 4);
    second.transactions = vec![commit(0x400_1000, 703, 120), commit(0x400_2000, 704, 140)];
    archive([first, second], [])
}

#[test]
fn a_time_stops_at_the_first_record_beyond_it_however_the_clock_jumps() {
    let found = resolve(&jumping(), time(125)).unwrap();
    // Transaction 703 committed at 120, before the target, and is lost all the same: 702 comes first.
    assert_eq!(found.stop, Lsn(0x300_2000));
    assert_eq!(found.stops_at.unwrap().xid, Xid(702));
    assert_eq!(found.last_commit.unwrap().xid, Xid(701));
    assert_eq!(
        found.settings[0],
        ("recovery_target_time".into(), "2000-01-01 00:02:05+00".into())
    );
    assert_eq!(
        found.settings[1],
        ("recovery_target_inclusive".into(), "on".into())
    );
}

#[test]
fn an_inclusive_time_keeps_a_commit_of_that_very_time_and_an_exclusive_one_does_not() {
    let archive = jumping();
    assert_eq!(resolve(&archive, time(130)).unwrap().stop, Lsn(0x400_2000));
    let wanted = Wanted {
        target: time(130),
        inclusive: Some(false),
    };
    let found = archive
        .trace(&start(), &[wanted], None)
        .unwrap()
        .targets
        .remove(0)
        .unwrap();
    assert_eq!(found.stop, Lsn(0x300_2000));
}

#[test]
fn an_abort_record_stops_recovery_too() {
    let mut index = segment(1, 3);
    index.transactions = vec![commit(0x300_1000, 701, 110), commit(0x300_2000, 702, 130)];
    index.transactions[1].kind = TransactionEndKind::Abort;
    let found = resolve(&archive([index], []), time(120)).unwrap();
    assert_eq!(found.stop, Lsn(0x300_2000));
    assert!(!found.stops_at.unwrap().committed);
}

#[test]
fn a_time_without_a_later_commit_is_refused_with_the_latest_time_that_can_be_reached() {
    let why = resolve(&jumping(), time(140)).unwrap_err();
    let Unreachable::NeedsLaterCommit {
        latest_time,
        last_commit,
        end,
        ..
    } = &why
    else {
        panic!("{why:?}")
    };
    assert_eq!(*latest_time, Some(Timestamp(140_000_000)));
    assert_eq!(last_commit.as_ref().unwrap().xid, Xid(704));
    assert_eq!(*end, Lsn(0x500_0000));
    let text = why.into_error("main", &time(140), "20260815T020003Z").render();
    assert!(
        text.starts_with("error[time-target-needs-later-commit]: "),
        "{text}"
    );
    assert!(text.contains("Times before 2000-01-01 00:02:20+00"), "{text}");
    assert!(
        text.contains("`pgproof restore main --to latest --into DIR`"),
        "{text}"
    );
}

#[test]
fn a_time_before_the_backups_end_needs_an_older_backup_although_postgresql_would_recover() {
    let why = resolve(&jumping(), time(100)).unwrap_err();
    assert!(matches!(why, Unreachable::BeforeBackupEnd { .. }));
    assert!(why.older_may_reach());
}

#[test]
fn a_record_beyond_the_time_within_the_backup_would_stop_recovery_before_it_is_consistent() {
    // A clock that was ahead while the backup was taken.
    let archive = archive(
        [
            committing(1, 3, 0x300_0050, 700, 500),
            committing(1, 4, 0x400_1000, 701, 600),
        ],
        [],
    );
    let why = resolve(&archive, time(200)).unwrap_err();
    assert!(
        matches!(
            why,
            Unreachable::BeforeBackupEnd {
                at: Some(Lsn(0x300_0050)),
                ..
            }
        ),
        "{why:?}"
    );
}

#[test]
fn just_before_a_transaction_is_the_start_of_its_commit_record_exclusive() {
    let found = resolve(&jumping(), Target::BeforeXid(Xid(703))).unwrap();
    assert_eq!(
        found.settings[0],
        ("recovery_target_lsn".into(), "0/4001000".into())
    );
    assert_eq!(
        found.settings[1],
        ("recovery_target_inclusive".into(), "off".into())
    );
    assert_eq!(found.last_commit.unwrap().xid, Xid(702));
    assert_eq!(found.stop, Lsn(0x400_1000));
}

#[test]
fn a_subtransaction_stands_for_its_top_transaction() {
    let mut index = segment(1, 3);
    index.transactions = vec![commit(0x300_1000, 701, 110)];
    index.transactions[0].subxids = vec![Xid(705)];
    let archive = archive([index, committing(1, 4, 0x400_1000, 710, 120)], []);
    let found = resolve(&archive, Target::Xid(Xid(705))).unwrap();
    assert_eq!(found.settings[0], ("recovery_target_xid".into(), "701".into()));
    assert_eq!(found.last_commit.unwrap().xid, Xid(701));
    assert_eq!(found.stop, Lsn(0x300_1030));
}

#[test]
fn an_unknown_transaction_is_refused_and_unread_seams_are_told() {
    let mut seam = segment(1, 4);
    seam.head = postgres::Seam {
        length: 24,
        ends_here: true,
        resolved: false,
    };
    let mut before = committing(1, 3, 0x300_1000, 701, 110);
    before.tail = Some(postgres::TailSeam {
        start: Lsn(0x3FF_FFF0),
        total_length: Some(40),
        missing: 24,
    });
    let why = resolve(&archive([before, seam], []), Target::Xid(Xid(999))).unwrap_err();
    let Unreachable::UnknownXid { unread, .. } = why else {
        panic!("{why:?}")
    };
    assert_eq!(unread, [Lsn(0x400_0000)]);
}

#[test]
fn a_restore_point_stops_behind_its_record_and_an_unknown_one_is_told_those_that_exist() {
    let mut index = committing(1, 3, 0x300_1000, 701, 110);
    let point = EventKind::RestorePoint {
        name: "before migration".into(),
        time: Timestamp(0),
    };
    index.events.push(event(0x300_2000, 0, point));
    let archive = archive([index], []);
    let found = resolve(&archive, Target::Name("before migration".into())).unwrap();
    assert_eq!(
        (found.stop, found.last_commit.unwrap().xid),
        (Lsn(0x300_2040), Xid(701))
    );
    let why = resolve(&archive, Target::Name("after".into())).unwrap_err();
    let text = why
        .into_error("main", &Target::Name("after".into()), "b")
        .render();
    assert!(text.contains("\"before migration\" at 0/3002000"), "{text}");
}

#[test]
fn an_lsn_needs_a_record_that_begins_at_or_behind_it() {
    let archive = jumping();
    let found = resolve(&archive, Target::Lsn(Lsn(0x400_1000))).unwrap();
    assert_eq!(found.last_commit.unwrap().xid, Xid(702));
    assert_eq!(found.settings[1].1, "off");
    // The last record begins at 4/FFFFC0; behind it there is none.
    assert!(resolve(&archive, Target::Lsn(Lsn(0x4FF_FFC0))).is_ok());
    let why = resolve(&archive, Target::Lsn(Lsn(0x4FF_FFC8))).unwrap_err();
    assert!(
        matches!(
            why,
            Unreachable::BeyondArchive {
                end: Lsn(0x500_0000),
                ..
            }
        ),
        "{why:?}"
    );
    assert!(matches!(
        resolve(&archive, Target::Lsn(Lsn(0x300_0080))).unwrap_err(),
        Unreachable::BeforeBackupEnd { .. }
    ));
    let inclusive = Wanted {
        target: Target::Lsn(Lsn(0x400_1000)),
        inclusive: Some(true),
    };
    let found = archive
        .trace(&start(), &[inclusive], None)
        .unwrap()
        .targets
        .remove(0)
        .unwrap();
    assert_eq!(found.last_commit.unwrap().xid, Xid(703));
}

#[test]
fn latest_is_the_end_of_the_archive_unless_wal_goes_on_behind_a_gap() {
    let found = resolve(&jumping(), Target::Latest).unwrap();
    assert_eq!(
        (found.stop, found.last_commit.unwrap().xid),
        (Lsn(0x500_0000), Xid(704))
    );
    assert!(found.settings.is_empty());
    let gap = archive([committing(1, 3, 0x300_1000, 701, 110), segment(1, 6)], []);
    for target in [Target::Latest, time(500), Target::Lsn(Lsn(0x600_1000))] {
        let why = resolve(&gap, target).unwrap_err();
        let Unreachable::Gap {
            first_missing,
            last_missing,
            ..
        } = &why
        else {
            panic!("{why:?}")
        };
        assert_eq!((*first_missing, *last_missing), (4, 5));
        assert_eq!(why.nearest().unwrap().options, "--to-xid 701");
    }
    // What lies before the gap can be reached.
    assert!(resolve(&gap, Target::Xid(Xid(701))).is_ok());
    assert!(resolve(&gap, Target::Immediate).is_ok());
}

#[test]
fn a_backup_whose_own_wal_is_missing_reaches_nothing() {
    for target in [Target::Immediate, Target::Latest, time(500)] {
        let why = resolve(&archive([segment(1, 9)], []), target).unwrap_err();
        assert!(
            matches!(
                why,
                Unreachable::Gap {
                    first_missing: 3,
                    last_missing: 8,
                    ..
                }
            ),
            "{why:?}"
        );
    }
    let why = resolve(&archive([], []), Target::Immediate).unwrap_err();
    assert!(
        matches!(
            why,
            Unreachable::Gap {
                first_missing: 3,
                last_missing: 3,
                ..
            }
        ),
        "{why:?}"
    );
}

#[test]
fn a_later_timeline_is_named_when_ours_ends() {
    let archive = archive([committing(1, 3, 0x300_1000, 701, 110)], [(2, 1, 0x400_0000)]);
    let why = resolve(&archive, time(500)).unwrap_err();
    let text = why.into_error("main", &time(500), "b").render();
    assert!(text.contains("add --timeline 2"), "{text}");
}

#[test]
fn several_stops_are_found_in_one_pass_and_the_way_is_described_up_to_the_last() {
    let change = |connections| EventKind::ParameterChange {
        max_connections: connections,
        max_worker_processes: 8,
        max_wal_senders: 10,
        max_prepared_transactions: 0,
        max_locks_per_transaction: 64,
        wal_level: 1,
        wal_log_hints: false,
        track_commit_timestamp: false,
    };
    let mut second = committing(1, 4, 0x400_1000, 702, 130);
    second.events = vec![
        event(0x400_0800, 0, change(300)),
        event(
            0x400_0900,
            650,
            EventKind::TablespaceCreated {
                tablespace: 16500,
                path: "/ts".into(),
            },
        ),
        event(0x400_3000, 0, change(900)),
    ];
    second.transactions.push(commit(0x400_2000, 703, 140));
    let archive = archive([committing(1, 3, 0x300_1000, 701, 110), second], []);
    let wanted = [time(120).into(), Target::Lsn(Lsn(0x400_2000)).into()];
    let trace = archive.trace(&start(), &wanted, None).unwrap();
    assert_eq!(trace.targets[0].as_ref().unwrap().stop, Lsn(0x400_1000));
    assert_eq!(trace.targets[1].as_ref().unwrap().stop, Lsn(0x400_2000));
    // The change to 900 comes behind the last stop.
    assert_eq!(trace.maxima.max_connections, 300);
    assert_eq!(trace.tablespaces[0].location, "/ts");
    assert_eq!(trace.segments(), 2);
    // A stop at the very record that makes the tablespace leaves it out, and what comes behind it.
    let wanted = [Target::Lsn(Lsn(0x400_0900)).into()];
    let trace = archive.trace(&start(), &wanted, None).unwrap();
    assert_eq!(trace.targets[0].as_ref().unwrap().stop, Lsn(0x400_0900));
    assert!(trace.tablespaces.is_empty(), "{:?}", trace.tablespaces);
    let inclusive = crate::Wanted {
        target: Target::Lsn(Lsn(0x400_0900)),
        inclusive: Some(true),
    };
    let trace = archive.trace(&start(), &[inclusive], None).unwrap();
    assert_eq!(trace.tablespaces.len(), 1);
}

#[test]
fn resource_managers_of_libraries_are_named_once_up_to_the_last_stop() {
    let mut second = committing(1, 4, 0x400_1000, 702, 130);
    second.events = vec![
        event(0x400_0800, 0, EventKind::CustomResourceManager(130)),
        event(0x400_0900, 0, EventKind::CustomResourceManager(130)),
        event(0x400_3000, 0, EventKind::CustomResourceManager(200)),
    ];
    let archive = archive([committing(1, 3, 0x300_1000, 701, 110), second], []);
    assert_eq!(trace(&archive, time(120)).custom_resource_managers, [130]);
    assert_eq!(
        trace(&archive, Target::Latest).custom_resource_managers,
        [130, 200]
    );
}

#[test]
fn a_backup_of_the_old_timeline_is_followed_over_the_promotion() {
    let archive = archive(
        [
            segment(1, 3),
            committing(2, 4, 0x490_0000, 801, 300),
            committing(2, 5, 0x500_1000, 802, 400),
        ],
        [(2, 1, 0x480_0000)],
    );
    let mut start = start();
    start.path = archive.timelines().path_to(TimelineId(2), None).unwrap();
    let trace = archive.trace(&start, &[time(350).into()], None).unwrap();
    let found = trace.targets[0].as_ref().unwrap();
    assert_eq!((found.stop, found.timeline), (Lsn(0x500_1000), TimelineId(2)));
    assert_eq!(trace.wal.len(), 2);
}

#[test]
fn what_retention_has_let_go_is_told_from_a_gap_and_holes_behind_the_target_are_known() {
    let whole = archive([committing(1, 3, 0x300_1000, 701, 110), segment(1, 4)], []);
    assert!(!trace(&whole, Target::Xid(Xid(701))).hole_behind);
    for (expired, told) in [
        (vec![], false),
        (vec![(TimelineId(1), 4, 5)], true),
        (vec![(TimelineId(1), 4, 4)], false),
    ] {
        let mut source = crate::MemorySource {
            expired,
            ..crate::MemorySource::default()
        };
        for index in [committing(1, 3, 0x300_1000, 701, 110), segment(1, 6)] {
            source.indexes.insert((index.timeline, index.number), index);
        }
        let gap = Archive::of(std::sync::Arc::new(source), SYSTEM, MIB16).unwrap();
        assert!(trace(&gap, Target::Xid(Xid(701))).hole_behind);
        let why = resolve(&gap, Target::Latest).unwrap_err();
        assert!(
            matches!(why, Unreachable::Gap { expired, .. } if expired == told),
            "{why:?}"
        );
        let missing: Vec<_> = gap
            .gaps()
            .iter()
            .map(|gap| (gap.first_missing, gap.last_missing))
            .collect();
        assert_eq!(missing.is_empty(), told, "{missing:?}");
    }
}
