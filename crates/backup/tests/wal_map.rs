//! Incremental backups that read only what the WAL says has changed.

mod common;

use std::os::unix::fs::FileExt;
use std::time::Duration;

use backup::base::Reading;
use backup::{BackupResult, PlanOptions};
use cluster::{Session, StopMode};
use common::{Archived, entries, run_audited_backup};
use testing::Workload;

/// Everything that is not read is read all the same, and held against the parent.
fn audited(archived: &Archived) -> BackupResult {
    run_audited_backup(
        &archived.cluster.conninfo(),
        &archived.repository,
        &(),
        Duration::from_secs(60),
        1,
    )
    .unwrap_or_else(|error| panic!("{}", error.render()))
}

/// The content of one file of a backup.
fn content(archived: &Archived, backup: &repository::Backup, path: &str) -> Vec<u8> {
    let entries = entries(&archived.repository, backup);
    let entry = entries
        .get(path)
        .unwrap_or_else(|| panic!("{path} is not in the backup"));
    let tree = repository::TreeReader::open(&archived.repository, backup).unwrap();
    let mut reader = repository::BlockReader::new(&archived.repository).unwrap();
    let mut bytes = vec![0; entry.size as usize];
    let repository::EntryKind::File { content, .. } = &entry.kind else {
        panic!("{path} is no file")
    };
    for leaf in tree.leaves(content) {
        let mut sink = |offset: u64, piece: repository::Piece<'_>| {
            if let repository::Piece::Data(data) = piece {
                bytes[offset as usize..offset as usize + data.len()].copy_from_slice(data);
            }
            Ok(())
        };
        reader.read_leaf(&leaf.unwrap(), entry.size, &mut sink).unwrap();
    }
    bytes
}

fn relation_path(archived: &Archived, table: &str) -> String {
    let mut session = archived.cluster.session().unwrap();
    let row = session
        .one(&format!("select pg_catalog.pg_relation_filepath('{table}')"))
        .unwrap();
    row[0].clone().unwrap()
}

const LARGE: &[&str] = &[
    "create table large (id int primary key, filler text)",
    "insert into large select g, repeat(md5(g::text), 20) from generate_series(1, 60000) g",
    "vacuum (freeze) large",
    "checkpoint",
];

#[test]
fn an_incremental_backup_reads_little_more_than_what_changed_and_holds_every_page() {
    let Some(archived) = Archived::start("wal map", true, &[]) else {
        return;
    };
    archived.sql(LARGE);
    let archiver = archived.archiver();
    let first = archived.backup().unwrap();
    assert!(
        matches!(first.reading, Reading::Everything { .. }),
        "{:?}",
        first.reading
    );
    archived.sql(&[
        "update large set filler = 'changed' where id % 1000 = 7",
        "checkpoint",
    ]);
    let second = archived.backup().unwrap();
    let since = first.backup.start_lsn;
    assert_eq!(second.reading, Reading::Changed { since });
    assert_eq!(second.findings, []);
    let unread = second.backup.unread.unwrap();
    assert!(unread.pages > 4000 && unread.since == since, "{unread:?}");
    assert!(
        second.bytes_read * 3 < first.bytes_read,
        "read {} of {}",
        second.bytes_read,
        first.bytes_read
    );

    // The server is stopped, so that its files are exactly what a complete reading would have found.
    let third = archived.backup().unwrap();
    assert_eq!(third.backup.unread.unwrap().turn, unread.turn + 1);
    let path = relation_path(&archived, "large");
    let live = std::fs::read(archived.cluster.data_directory().join(&path)).unwrap();
    assert!(content(&archived, &third.backup, &path) == live, "{path} differs");

    let all = backup::base::plan(
        &archived.cluster.conninfo(),
        &archived.repository,
        &PlanOptions {
            read_all: true,
            ..PlanOptions::default()
        },
        jiff::Timestamp::now(),
    )
    .unwrap();
    assert!(
        matches!(all.reading, Reading::Everything { .. }) && all.parent.is_some(),
        "{all}"
    );
    archiver.finish();
}

#[test]
fn a_page_that_changed_behind_the_servers_back_is_found_and_everything_is_read() {
    let Some(mut archived) = Archived::start("behind its back", true, &[]) else {
        return;
    };
    archived.sql(LARGE);
    let archiver = archived.archiver();
    archived.backup().unwrap();
    assert_eq!(audited(&archived).findings, []);
    let path = relation_path(&archived, "large");
    // Without a server that writes, a page gets other content, a right checksum, and keeps its LSN.
    let archiver_stops = archived.acknowledged.join("stop");
    std::fs::write(&archiver_stops, b"").unwrap();
    archived.cluster.stop(StopMode::Fast).unwrap();
    std::fs::remove_file(&archiver_stops).unwrap();
    let file = std::fs::File::options()
        .read(true)
        .write(true)
        .open(archived.cluster.data_directory().join(&path))
        .unwrap();
    let mut page = vec![0; 8192];
    file.read_exact_at(&mut page, 700 * 8192).unwrap();
    page[8000] ^= 1;
    let sum = postgres::page_checksum(page.as_slice().try_into().unwrap(), 700);
    page[8..10].copy_from_slice(&sum.to_le_bytes());
    file.write_all_at(&page, 700 * 8192).unwrap();
    archived.cluster.start_again().unwrap();

    let result = audited(&archived);
    let codes: Vec<&str> = result.findings.iter().map(|finding| finding.code).collect();
    assert_eq!(codes, ["wal-map-missed-page"], "{:?}", result.findings);
    assert!(
        result.findings[0].message.contains("page 700") && result.findings[0].message.contains(&path),
        "{:?}",
        result.findings
    );
    assert!(
        matches!(result.reading, Reading::Everything { .. }),
        "{:?}",
        result.reading
    );
    assert_eq!(result.backup.unread, None);
    let kept = content(&archived, &result.backup, &path);
    assert!(
        kept[700 * 8192..701 * 8192] == page,
        "the backup holds another page"
    );
    // From now on that page is the parent's.
    assert_eq!(audited(&archived).findings, []);
    archiver.finish();
}

#[test]
fn without_unbroken_wal_since_the_parent_everything_is_read() {
    let settings = [
        ("min_wal_size", "2MB"),
        ("max_wal_size", "2MB"),
        ("wal_keep_size", "0"),
    ];
    let Some(archived) = Archived::start("no map", true, &settings) else {
        return;
    };
    archived.sql(LARGE);
    let archiver = archived.archiver();
    let first = archived.backup().unwrap();
    for _ in 0..3 {
        archived.sql(&[
            "update large set filler = filler || 'x' where id % 50 = 1",
            "select pg_catalog.pg_switch_wal()",
            "checkpoint",
        ]);
    }
    std::thread::sleep(Duration::from_secs(2));
    archived.sql(&["checkpoint", "checkpoint"]);
    let size = 1 << 20;
    let backup = &first.backup;
    let lost = backup.stop_lsn.segment(size) + 1;
    let segment = archived
        .repository
        .get_segment(backup.system_identifier, backup.timeline, lost, size)
        .unwrap()
        .expect("the segment is archived");
    std::fs::remove_file(archived.scratch.path().join("repository").join(&segment.object)).unwrap();
    let name = postgres::segment_name(backup.timeline, lost, size);
    assert!(
        !archived
            .cluster
            .data_directory()
            .join("pg_wal")
            .join(&name)
            .exists(),
        "the server still has {name}"
    );
    let second = archived.backup().unwrap();
    let Reading::Everything { why } = &second.reading else {
        panic!("{:?}", second.reading)
    };
    assert!(why.contains(&name), "{why}");
    assert_eq!(second.backup.parent, Some(backup.backup));
    assert!(
        second.pages_reused > 1000 && second.findings.is_empty(),
        "{second:?}"
    );
    archiver.finish();
}

/// What a round does to the cluster: all kinds of storage that come, change, move, shrink and go.
fn round(session: &mut Session, number: u32, major: u16) {
    let strategy = |name: &str| match major {
        ..15 => String::new(),
        _ => format!(" strategy {name}"),
    };
    let mut statements: Vec<String> = [
        "create table heap_N (id int, v text, p point, a int[])",
        "insert into heap_N select g, repeat(md5(g::text), 1 + g % 90), point(g, -g), array[g, g % 7]
            from generate_series(1, 3000) g",
        "create index on heap_N (id)",
        "create index on heap_N using hash (v)",
        "create index on heap_N using gin (a)",
        "create index on heap_N using gist (p)",
        "create index on heap_N using spgist (p)",
        "create index on heap_N using brin (id)",
        "update heap_N set v = 'short' where id % 3 = 0",
        "delete from heap_N where id > 2000",
        "vacuum heap_N",
        "create unlogged table light_N as select * from heap_N",
        "create sequence counter_N",
        "select nextval('counter_N') from generate_series(1, 40)",
        "create materialized view seen_N as select id, v from heap_N",
    ]
    .iter()
    .map(ToString::to_string)
    .collect();
    statements.push(format!(
        "create database copied_N template template0{}",
        strategy("file_copy")
    ));
    statements.push(format!(
        "create database logged_N template template0{}",
        strategy("wal_log")
    ));
    if number > 0 {
        for statement in [
            "truncate heap_P",
            "insert into heap_P select g, 'again', point(0, g), '{}' from generate_series(1, 500) g",
            "alter table light_P set logged",
            "vacuum full pg_class",
            "reindex table heap_P",
            "refresh materialized view seen_P",
            "begin; create table undone_N as select * from heap_P; rollback",
            "begin; insert into heap_P values (1, 'x', '(1,1)', '{}'); savepoint s; delete from heap_P; rollback to s; commit",
            "cluster large using large_pkey",
            "update large set filler = repeat(md5(id::text), 19) where id between N * 3000 and N * 3000 + 200",
            "delete from large where id > 50000 - N * 2000",
            "vacuum (truncate) large",
            "drop database copied_P",
        ] {
            statements.push(statement.into());
        }
    }
    for statement in statements {
        let statement = statement
            .replace("_N", &format!("_{number}"))
            .replace("_P", &format!("_{}", number.saturating_sub(1)))
            .replace("N *", &format!("{number} *"));
        session
            .execute(&statement)
            .unwrap_or_else(|error| panic!("{statement}: {}", error.render()));
    }
}

fn nothing_is_missed(major: u16) {
    let test = format!("nothing missed {major}");
    let Some(programs) = testing::programs_of_major_or_skip(&test, major) else {
        return;
    };
    let Some(mut archived) = Archived::start_with(&test, true, &[], Some(programs)) else {
        return;
    };
    archived.sql(LARGE);
    let archiver = archived.archiver();
    archived.backup().unwrap();
    for number in 0..3 {
        let load = Workload::start(&archived.cluster.conninfo(), 2).unwrap();
        round(&mut archived.cluster.session().unwrap(), number, major);
        if number == 1 {
            load.stop().unwrap();
            // A crash: pages go back to what was written, and come again from the WAL.
            let stop = archived.acknowledged.join("stop");
            std::fs::write(&stop, b"").unwrap();
            archived.cluster.stop(StopMode::Immediate).unwrap();
            std::fs::remove_file(&stop).unwrap();
            archived.cluster.start_again().unwrap();
            assert!(matches!(audited(&archived).reading, Reading::Changed { .. }));
            continue;
        }
        let result = audited(&archived);
        load.stop().unwrap();
        assert_eq!(result.findings, [], "round {number}");
        assert!(
            matches!(result.reading, Reading::Changed { .. }),
            "round {number}: {:?}",
            result.reading
        );
        let unread = result.backup.unread.unwrap();
        assert!(
            unread.audited > 1500 && unread.pages == 0,
            "round {number}: {unread:?}"
        );
    }
    archiver.finish();
}

#[test]
fn postgresql_13_every_page_that_the_wal_does_not_name_is_the_parents() {
    nothing_is_missed(13);
}

#[test]
fn postgresql_14_every_page_that_the_wal_does_not_name_is_the_parents() {
    nothing_is_missed(14);
}

#[test]
fn postgresql_15_every_page_that_the_wal_does_not_name_is_the_parents() {
    nothing_is_missed(15);
}

#[test]
fn postgresql_16_every_page_that_the_wal_does_not_name_is_the_parents() {
    nothing_is_missed(16);
}

#[test]
fn postgresql_17_every_page_that_the_wal_does_not_name_is_the_parents() {
    nothing_is_missed(17);
}

#[test]
fn postgresql_18_every_page_that_the_wal_does_not_name_is_the_parents() {
    nothing_is_missed(18);
}
