//! Pushing WAL that a real server wrote, and reading what it has not archived yet.

mod common;

use std::path::{Path, PathBuf};

use backup::{Copy, PushOptions, RESTORED_MARKER, read_live_tail};
use cluster::{Session, StopMode};
use common::{Archived, push_file, repository};
use diagnostic::Result;
use jiff::Timestamp;
use postgres::{Lsn, TimelineId, Verdict, WalFile, segment_name};
use repository::ClusterRepository;
use testing::{Scratch, TestCluster, TestOptions};

const SEGMENT: u32 = 1 << 20;

/// A cluster without an archiver, with segments of 1 MiB.
fn plain(test: &str) -> Option<(TestCluster, ClusterRepository, Scratch)> {
    let options = TestOptions {
        wal_segment_size: Some(SEGMENT),
        settings: [
            ("autovacuum", "off"),
            ("wal_keep_size", "512MB"),
            ("max_wal_size", "512MB"),
        ]
        .map(|(name, value)| (name.into(), value.into()))
        .to_vec(),
        ..TestOptions::default()
    };
    let cluster = TestCluster::start_or_skip(test, &options)?;
    let scratch = Scratch::new("wal").unwrap();
    let (repository, _) = repository(&scratch.path().join("repository"));
    Some((cluster, repository, scratch))
}

fn lsn(session: &mut Session, function: &str) -> Lsn {
    session.one(&format!("select pg_catalog.{function}()")).unwrap()[0]
        .as_deref()
        .unwrap()
        .parse()
        .unwrap()
}

/// The segments in `pg_wal`, oldest first; the last ones may be left-overs under names of the future.
fn numbers(cluster: &TestCluster) -> Vec<u64> {
    let entries = std::fs::read_dir(cluster.data_directory().join("pg_wal")).unwrap();
    let mut numbers: Vec<u64> = entries
        .filter_map(
            |entry| match WalFile::parse(entry.unwrap().file_name().to_str().unwrap(), SEGMENT) {
                Some(WalFile::Segment { number, .. }) => Some(number),
                _ => None,
            },
        )
        .collect();
    numbers.sort();
    numbers
}

/// The path of the `place`-th segment.
fn segment(cluster: &TestCluster, place: usize) -> PathBuf {
    Path::new("pg_wal").join(segment_name(TimelineId(1), numbers(cluster)[place], SEGMENT))
}

fn write_wal(session: &mut Session) {
    session.execute("create table t (id int, filler text)").unwrap();
    for id in 0..200 {
        session
            .execute(&format!("insert into t values ({id}, 'x')"))
            .unwrap();
    }
    session
        .execute("insert into t select g, repeat(md5(g::text), 30) from generate_series(1, 6000) g")
        .unwrap();
    // Records that span pages, and one that spans whole segments.
    for length in [300_000; 8].into_iter().chain([3_000_000]) {
        session
            .execute(&format!(
                "select pg_catalog.pg_logical_emit_message(false, 'test', repeat('y', {length}))"
            ))
            .unwrap();
    }
    session
        .execute("insert into t select g, 'z' from generate_series(1, 30000) g")
        .unwrap();
}

#[test]
fn a_segment_is_pushed_once_and_comes_back_byte_for_byte() {
    let Some((cluster, repository, _scratch)) = plain("push") else {
        return;
    };
    let mut session = cluster.session().unwrap();
    write_wal(&mut session);
    let data = cluster.data_directory();
    let last = lsn(&mut session, "pg_current_wal_flush_lsn").segment(SEGMENT);
    let system = cluster::read_control_file(data).unwrap().1.system_identifier;
    let mut unresolved = 0;
    let mut commits = 0;
    let complete: Vec<u64> = numbers(&cluster)
        .into_iter()
        .filter(|number| *number < last)
        .collect();
    for (place, number) in complete.iter().copied().enumerate() {
        let path = segment(&cluster, place);
        let first = push_file(&repository, data, &path).unwrap();
        assert_eq!(first.warnings, Vec::<String>::new());
        let put = first.copies[0].stored.as_ref().unwrap();
        assert!(put.created && put.stored_bytes > 0);
        let again = push_file(&repository, data, &path).unwrap();
        assert!(!again.copies[0].stored.as_ref().unwrap().created);

        let object = repository
            .get_segment(system, TimelineId(1), number, SEGMENT)
            .unwrap()
            .unwrap();
        let mut bytes = Vec::new();
        repository.read_segment(&object, &mut bytes).unwrap();
        assert!(
            bytes == std::fs::read(data.join(&path)).unwrap(),
            "segment {number}"
        );
        let index = repository.read_index(&object).unwrap();
        assert_eq!(index.verdict, Verdict::Good);
        // Of the very first one the segment before is gone.
        unresolved +=
            usize::from(place > 0 && index.head.length > 0 && index.head.ends_here && !index.head.resolved);
        commits += index.transactions.len();
    }
    assert_eq!(
        unresolved, 0,
        "seams were not resolved although the segment before was there"
    );
    assert!(
        complete.len() > 5 && commits >= 200,
        "{complete:?}, {commits} commits"
    );
}

#[test]
fn a_restored_directory_may_not_archive() {
    let Some((cluster, repository, _scratch)) = plain("restored") else {
        return;
    };
    write_wal(&mut cluster.session().unwrap());
    std::fs::write(cluster.data_directory().join(RESTORED_MARKER), b"").unwrap();
    let error = push_file(&repository, cluster.data_directory(), &segment(&cluster, 1)).unwrap_err();
    assert_eq!(error.code(), "wal-restored-directory");
    assert_eq!(repository.list_systems().unwrap(), []);
}

#[test]
fn a_segment_under_a_wrong_name_or_of_another_cluster_is_refused() {
    let Some((cluster, repository, scratch)) = plain("wrong name") else {
        return;
    };
    write_wal(&mut cluster.session().unwrap());
    let data = cluster.data_directory();
    let copy = scratch
        .subfolder("pg_wal")
        .unwrap()
        .join(segment_name(TimelineId(1), 4001, SEGMENT));
    std::fs::copy(data.join(segment(&cluster, 1)), &copy).unwrap();
    assert_eq!(
        push_file(&repository, data, &copy).unwrap_err().code(),
        "wal-segment-name"
    );

    let Some((other, _, _other_scratch)) = plain("other") else {
        return;
    };
    write_wal(&mut other.session().unwrap());
    let foreign = other.data_directory().join(segment(&other, 1));
    assert_eq!(
        push_file(&repository, data, &foreign).unwrap_err().code(),
        "wal-segment-system"
    );

    let short = scratch.path().join(segment_name(TimelineId(1), 1, SEGMENT));
    std::fs::write(
        &short,
        &std::fs::read(data.join(segment(&cluster, 1))).unwrap()[..SEGMENT as usize / 2],
    )
    .unwrap();
    assert_eq!(
        push_file(&repository, data, &short).unwrap_err().code(),
        "wal-segment-size"
    );
    assert_eq!(
        push_file(&repository, data, Path::new("pg_wal/xlogtemp.1"))
            .unwrap_err()
            .code(),
        "wal-file-name"
    );
    let gone = Path::new("pg_wal").join(segment_name(TimelineId(1), 4000, SEGMENT));
    assert_eq!(
        push_file(&repository, data, &gone).unwrap_err().code(),
        "wal-file-missing"
    );
    assert_eq!(repository.list_systems().unwrap(), []);
}

#[test]
fn the_same_name_with_other_content_is_a_conflict_and_nothing_is_overwritten() {
    let Some((cluster, repository, scratch)) = plain("conflict") else {
        return;
    };
    write_wal(&mut cluster.session().unwrap());
    let data = cluster.data_directory();
    let path = segment(&cluster, 2);
    push_file(&repository, data, &path).unwrap();
    let mut bytes = std::fs::read(data.join(&path)).unwrap();
    bytes[SEGMENT as usize - 100] ^= 1;
    let changed = scratch.path().join(path.file_name().unwrap());
    std::fs::write(&changed, bytes).unwrap();
    assert_eq!(
        push_file(&repository, data, &changed).unwrap_err().code(),
        "wal-conflict"
    );
    push_file(&repository, data, &path).unwrap();
}

fn push_as(
    host: &str,
    copies: &[Copy<'_>],
    acknowledge: usize,
    data: &Path,
    path: &Path,
) -> Result<backup::PushResult> {
    let options = PushOptions {
        path: path.to_path_buf(),
        data_directory: data.to_path_buf(),
        host_id: host.into(),
        acknowledge,
    };
    backup::push(copies, &options, Timestamp::now())
}

#[test]
fn a_second_writer_is_refused_before_anything_is_stored_in_any_copy() {
    let Some((cluster, near, scratch)) = plain("second writer") else {
        return;
    };
    write_wal(&mut cluster.session().unwrap());
    let (far, _) = repository(&scratch.path().join("far"));
    let data = cluster.data_directory();
    let near_alone = [Copy {
        name: "near",
        repository: &near,
    }];
    push_as("production", &near_alone, 1, data, &segment(&cluster, 1)).unwrap();

    let both = [
        Copy {
            name: "far",
            repository: &far,
        },
        Copy {
            name: "near",
            repository: &near,
        },
    ];
    let error = push_as("a clone", &both, 1, data, &segment(&cluster, 2)).unwrap_err();
    assert_eq!(error.code(), "wal-second-writer", "{}", error.render());
    let system = cluster::read_control_file(data).unwrap().1.system_identifier;
    for (copy, expected) in [(&near, 1), (&far, 0)] {
        assert_eq!(
            copy.list_segments(system, TimelineId(1), SEGMENT)
                .unwrap()
                .count(),
            expected
        );
    }
}

#[test]
fn a_file_is_acknowledged_when_enough_copies_hold_it() {
    let Some((cluster, near, scratch)) = plain("acknowledge") else {
        return;
    };
    write_wal(&mut cluster.session().unwrap());
    let far_folder = scratch.path().join("far");
    let (far, _) = repository(&far_folder);
    let data = cluster.data_directory();
    let copies = [
        Copy {
            name: "near",
            repository: &near,
        },
        Copy {
            name: "far",
            repository: &far,
        },
    ];
    let result = push_as("host", &copies, 2, data, &segment(&cluster, 1)).unwrap();
    assert_eq!(result.copies.iter().filter(|copy| copy.stored.is_ok()).count(), 2);

    // A plain file where the far copy's folder was: it can be neither read nor written, even by root.
    std::fs::rename(&far_folder, scratch.path().join("away")).unwrap();
    std::fs::write(&far_folder, b"").unwrap();
    let error = push_as("host", &copies, 2, data, &segment(&cluster, 2)).unwrap_err();
    assert_eq!(error.code(), "wal-not-acknowledged", "{}", error.render());
    let result = push_as("host", &copies, 1, data, &segment(&cluster, 2)).unwrap();
    assert_eq!(result.warnings.len(), 1, "{:?}", result.warnings);
    assert_eq!(
        push_as("host", &copies, 3, data, &segment(&cluster, 2))
            .unwrap_err()
            .class()
            .exit_code(),
        2
    );
}

#[test]
fn histories_labels_and_partial_segments_are_kept_beside_the_segments() {
    let Some(mut archived) = Archived::start("promoted", false, &[]) else {
        return;
    };
    let archiver = archived.archiver();
    archived.sql(&["create table t (id int)", "insert into t values (1)"]);
    let backup = archived.backup().unwrap().backup;
    let system = backup.system_identifier;
    archived.sql(&["insert into t values (2)"]);
    // Recovery to a point and promotion leave a history and a partial segment.
    archived.cluster.stop(StopMode::Fast).unwrap();
    std::fs::write(archived.cluster.data_directory().join("standby.signal"), b"").unwrap();
    common::give_away(&archived.cluster.data_directory().join("standby.signal"));
    archived.cluster.start_again().unwrap();
    archived
        .cluster
        .instance()
        .promote(std::time::Duration::from_secs(60))
        .unwrap();
    archived.sql(&["insert into t values (3)"]);
    cluster::switch_wal(&mut archived.cluster.session().unwrap()).unwrap();
    for _ in 0..250 {
        if !repository_has(&archived.repository, system, TimelineId(2)) {
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }
    archiver.finish();
    let files = |kind| archived.repository.list_files(system, kind).unwrap();
    assert_eq!(files(repository::WalFileKind::History).len(), 1);
    assert_eq!(files(repository::WalFileKind::Label).len(), 1);
    assert_eq!(files(repository::WalFileKind::Partial).len(), 1);
    assert!(repository_has(&archived.repository, system, TimelineId(2)));

    // The next backup knows where its timeline comes from, and still uses the first one.
    let archiver = archived.archiver();
    let second = archived.backup().unwrap();
    archiver.finish();
    assert_eq!(second.backup.timeline, TimelineId(2));
    assert_eq!(second.backup.history.len(), 1);
    assert_eq!(second.backup.parent, Some(backup.backup));
}

fn repository_has(
    repository: &ClusterRepository,
    system: postgres::SystemIdentifier,
    timeline: TimelineId,
) -> bool {
    repository.list_timelines(system).unwrap().contains(&timeline)
}

#[test]
fn the_live_tail_has_exactly_the_transactions_after_an_lsn() {
    let Some((cluster, _repository, _scratch)) = plain("live tail") else {
        return;
    };
    let mut session = cluster.session().unwrap();
    write_wal(&mut session);
    // The background writer's records do not matter; commits do.
    let before = lsn(&mut session, "pg_current_wal_insert_lsn");
    for id in 0..57 {
        session
            .execute(&format!("insert into t values ({id}, repeat('y', 100))"))
            .unwrap();
    }
    session
        .execute("insert into t select g, repeat(md5(g::text), 30) from generate_series(1, 4000) g")
        .unwrap();
    session
        .execute("begin; insert into t values (1); rollback")
        .unwrap();
    for id in 0..10 {
        session
            .execute(&format!("insert into t values ({id}, repeat('z', 100))"))
            .unwrap();
    }
    let flush = lsn(&mut session, "pg_current_wal_flush_lsn");
    let data = cluster.data_directory();
    let tail = read_live_tail(data, TimelineId(1), before, flush).unwrap();
    assert!(!tail.seam_unresolved);
    assert!(tail.segments.len() > 2);
    assert_eq!(tail.bytes, flush.0 - before.0);
    let commits = tail
        .transactions
        .iter()
        .filter(|end| end.kind.is_commit())
        .count();
    assert_eq!(commits, 57 + 1 + 10);
    assert!(
        tail.transactions
            .iter()
            .all(|end| end.end > before && end.end <= flush)
    );

    // A transaction counts when its record ends after the LSN, wherever it begins.
    let some = &tail.transactions[20];
    let within = read_live_tail(data, TimelineId(1), Lsn(some.start.0 + 8), flush).unwrap();
    assert_eq!(within.transactions.first(), Some(some));
    let behind = read_live_tail(data, TimelineId(1), some.end, flush).unwrap();
    assert_eq!(behind.transactions.first(), tail.transactions.get(21));

    let nothing = read_live_tail(data, TimelineId(1), flush, flush).unwrap();
    assert_eq!((nothing.bytes, nothing.transactions.len()), (0, 0));

    // From the start of each segment: the tail alone, whatever spans the seam.
    for number in before.segment(SEGMENT) + 1..=flush.segment(SEGMENT) {
        let start = Lsn(number * u64::from(SEGMENT));
        let part = read_live_tail(data, TimelineId(1), start, flush).unwrap();
        assert!(!part.seam_unresolved);
        let expected: Vec<_> = tail
            .transactions
            .iter()
            .filter(|end| end.end > start)
            .cloned()
            .collect();
        assert_eq!(part.transactions, expected, "after {start}");
    }
    let gone = read_live_tail(data, TimelineId(9), before, flush).unwrap_err();
    assert_eq!(gone.code(), "live-wal-missing");
}
