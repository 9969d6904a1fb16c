//! Our reading of WAL against PostgreSQL's own: pg_waldump and pg_controldata are the oracle.
//!
//! Real WAL of PostgreSQL 15 with something of everything in it; each segment is indexed as a push does it,
//! and counts, bytes, commits, blocks and storage events must equal what pg_waldump says.

mod server;

use std::collections::{BTreeMap, BTreeSet};

use postgres::{
    ControlFile, EventKind, Fork, Lsn, RelationLocator, SegmentIndex, SegmentIndexer, TimelineHistory,
    TimelineId, TransactionEndKind, Verdict, WalFile, resource_manager_name, tail_bytes,
};
use server::Server;

const WORKLOAD: &str = include_str!("workload.sql");

/// Indexes these segments in order, handing each one's tail on to the next.
fn index_all(server: &Server, names: &[String], segment_size: u32) -> Vec<SegmentIndex> {
    let mut indexes: Vec<SegmentIndex> = Vec::new();
    let mut tail: Option<Vec<u8>> = None;
    for name in names {
        let segment = std::fs::read(server.wal().join(name)).unwrap();
        let file = WalFile::parse(name, segment_size).unwrap();
        let index = SegmentIndexer::index(&segment, &file, tail.as_deref()).unwrap();
        let alone = SegmentIndexer::index(&segment, &file, None).unwrap();
        assert_eq!(alone.end, index.end, "{name}");
        assert_eq!(SegmentIndex::decode(&index.encode()).unwrap(), index, "{name}");
        let bytes = tail_bytes(&segment, &index);
        tail = match index.tail {
            Some(seam) if seam.total_length.is_none() => {
                Some([tail.as_deref().unwrap(), bytes.unwrap()].concat())
            }
            _ => bytes.map(<[u8]>::to_vec),
        };
        indexes.push(index);
    }
    indexes
}

/// Our counts: name of the resource manager -> records, record bytes, image bytes.
fn our_statistics(indexes: &[SegmentIndex]) -> BTreeMap<String, (u64, u64, u64)> {
    let mut sums: BTreeMap<String, (u64, u64, u64)> = BTreeMap::new();
    for statistics in indexes.iter().flat_map(|index| &index.statistics) {
        let sum = sums
            .entry(resource_manager_name(statistics.resource_manager))
            .or_default();
        sum.0 += u64::from(statistics.records);
        sum.1 += statistics.record_bytes;
        sum.2 += statistics.fpi_bytes;
    }
    sums
}

/// The same from `pg_waldump --stats`.
fn their_statistics(server: &Server, first: &str, last: &str) -> BTreeMap<String, (u64, u64, u64)> {
    let wal = server.wal();
    // It ends with an error where the last segment was not written any further; the table comes before.
    let output = server.try_run(
        "pg_waldump",
        &["--stats", "-p", wal.to_str().unwrap(), first, last],
    );
    let text = String::from_utf8(output.stdout).unwrap();
    let mut sums = BTreeMap::new();
    for line in text.lines() {
        let plain = line.replace(['(', ')'], " ");
        let fields: Vec<&str> = plain.split_whitespace().collect();
        let [name, records, _, bytes, _, images, ..] = fields.as_slice() else {
            continue;
        };
        if let (Ok(records), Ok(bytes), Ok(images)) = (
            records.parse::<u64>(),
            bytes.parse::<u64>(),
            images.parse::<u64>(),
        ) && *name != "Total"
            && records > 0
        {
            sums.insert(name.to_string(), (records, bytes, images));
        }
    }
    assert!(!sums.is_empty(), "{text}");
    sums
}

/// What pg_waldump prints of each record.
#[derive(Default)]
struct Dump {
    /// LSN, xid, kind, time
    ends: Vec<(Lsn, u32, TransactionEndKind, String)>,
    /// whether an image that is applied was among them
    blocks: BTreeMap<(RelationLocator, Fork, u32), bool>,
    created: Vec<(Lsn, String)>,
    /// LSN of each record
    records: BTreeSet<Lsn>,
}

fn dump(server: &Server, first: &str, last: &str) -> Dump {
    let wal = server.wal();
    let output = server.try_run("pg_waldump", &["-p", wal.to_str().unwrap(), first, last]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut dump = Dump::default();
    for line in text.lines().filter(|line| line.starts_with("rmgr: ")) {
        let after = |key: &str| line.split_once(key).map(|(_, rest)| rest);
        let word = |key: &str| after(key).and_then(|rest| rest.split([',', ' ']).next());
        let lsn: Lsn = word("lsn: ").unwrap().parse().unwrap();
        let description = after("desc: ").unwrap_or_default();
        dump.records.insert(lsn);
        let manager = line["rmgr: ".len()..].split_whitespace().next().unwrap();
        if manager == "Transaction" {
            // COMMIT_PREPARED 745: 2026-01-25 14:30:00.123456 UTC; ...
            let (operation, rest) = description.split_once(' ').unwrap_or((description, ""));
            let kind = match operation {
                "COMMIT" => Some(TransactionEndKind::Commit),
                "ABORT" => Some(TransactionEndKind::Abort),
                "COMMIT_PREPARED" => Some(TransactionEndKind::CommitPrepared),
                "ABORT_PREPARED" => Some(TransactionEndKind::AbortPrepared),
                _ => None,
            };
            if let Some(kind) = kind {
                let prepared = matches!(
                    kind,
                    TransactionEndKind::CommitPrepared | TransactionEndKind::AbortPrepared
                );
                let (xid, rest) = if prepared {
                    let (xid, rest) = rest.split_once(": ").unwrap();
                    (xid.parse().unwrap(), rest)
                } else {
                    (
                        word("tx:")
                            .map(|_| after("tx:").unwrap().trim_start())
                            .unwrap()
                            .split(',')
                            .next()
                            .unwrap()
                            .parse()
                            .unwrap(),
                        rest,
                    )
                };
                let time = rest.split(" UTC").next().unwrap().to_string();
                dump.ends.push((lsn, xid, kind, time));
            }
        }
        if manager == "Storage" && description.starts_with("CREATE ") {
            dump.created
                .push((lsn, description["CREATE ".len()..].trim().to_string()));
        }
        for reference in line.split("blkref #").skip(1) {
            let words: Vec<&str> = reference
                .split([' ', ','])
                .filter(|word| !word.is_empty())
                .collect();
            let numbers: Vec<u32> = words[2].split('/').map(|n| n.parse().unwrap()).collect();
            let locator = RelationLocator {
                tablespace: numbers[0],
                database: numbers[1],
                relation: numbers[2],
            };
            let (fork, at) = match (words[3], words[4]) {
                ("fork", "fsm") => (Fork::Fsm, 5),
                ("fork", "vm") => (Fork::Vm, 5),
                ("fork", "init") => (Fork::Init, 5),
                _ => (Fork::Main, 3),
            };
            assert_eq!(words[at], "blk", "{line}");
            if fork == Fork::Fsm {
                continue;
            }
            let block = words[at + 1].parse().unwrap();
            let image = words.get(at + 2) == Some(&"FPW") && words.get(at + 3) != Some(&"for");
            *dump.blocks.entry((locator, fork, block)).or_default() |= image;
        }
    }
    dump
}

fn compare_with_pg_waldump(server: &Server, names: &[String], indexes: &[SegmentIndex]) {
    let (first, last) = (names.first().unwrap(), names.last().unwrap());
    assert_eq!(our_statistics(indexes), their_statistics(server, first, last));

    let dump = dump(server, first, last);
    let ours: Vec<_> = indexes
        .iter()
        .flat_map(|index| &index.transactions)
        .map(|end| {
            let time = end.time.to_jiff().strftime("%Y-%m-%d %H:%M:%S.%6f").to_string();
            (end.start, end.xid.0, end.kind, time)
        })
        .collect();
    assert!(
        ours == dump.ends,
        "{} and {} ends of transactions differ",
        ours.len(),
        dump.ends.len()
    );

    let mut blocks: BTreeMap<(RelationLocator, Fork, u32), bool> = BTreeMap::new();
    for changed in indexes.iter().flat_map(|index| &index.changed) {
        for block in &changed.blocks {
            *blocks
                .entry((changed.locator, changed.fork, block.block))
                .or_default() |= block.image;
        }
    }
    assert_eq!(blocks.len(), dump.blocks.len());
    assert!(blocks == dump.blocks, "maps of changed blocks differ");

    let created: Vec<_> = indexes
        .iter()
        .flat_map(|index| &index.events)
        .filter_map(|event| match &event.kind {
            EventKind::RelationCreated { locator, fork } => {
                let file = postgres::RelationFile {
                    locator: *locator,
                    fork: *fork,
                    segment: 0,
                    temporary: false,
                    backend: 0,
                };
                Some((event.lsn, file.path("PG_15_202209061")))
            }
            _ => None,
        })
        .collect();
    assert_eq!(created, dump.created);

    for index in indexes {
        for event in &index.events {
            assert!(dump.records.contains(&event.lsn), "{event:?}");
        }
        if let Some(first) = index.first_record {
            // The tail of the last segment may not be complete.
            assert!(dump.records.contains(&first) || index.tail.is_some(), "{first}");
        }
    }
}

fn compare_control_file(server: &Server) -> ControlFile {
    let control =
        ControlFile::parse(&std::fs::read(server.data().join("global/pg_control")).unwrap()).unwrap();
    let data = server.data();
    let text = server.run("pg_controldata", &["-D", data.to_str().unwrap()]);
    let field = |name: &str| {
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.unwrap_or_else(|| panic!("{name}: {text}"))
            .trim()
            .to_string()
    };
    let yes = |flag: bool| if flag { "yes" } else { "no" }.to_string();
    let on = |flag: bool| if flag { "on" } else { "off" }.to_string();
    let next_xid = format!("{}:{}", control.next_xid >> 32, control.next_xid & 0xFFFF_FFFF);
    let level = ["minimal", "replica", "logical"][control.wal_level as usize].to_string();
    for (name, value) in [
        (
            "pg_control version number",
            control.pg_control_version.to_string(),
        ),
        ("Catalog version number", control.catalog_version.to_string()),
        (
            "Database system identifier",
            control.system_identifier.to_string(),
        ),
        ("Database cluster state", control.state.to_string()),
        (
            "pg_control last modified",
            control.time.strftime("%a %b %e %H:%M:%S %Y").to_string(),
        ),
        ("Latest checkpoint location", control.checkpoint.to_string()),
        (
            "Latest checkpoint's REDO location",
            control.checkpoint_redo.to_string(),
        ),
        (
            "Latest checkpoint's TimeLineID",
            control.checkpoint_timeline.to_string(),
        ),
        (
            "Latest checkpoint's PrevTimeLineID",
            control.prev_timeline.to_string(),
        ),
        (
            "Latest checkpoint's full_page_writes",
            on(control.full_page_writes),
        ),
        ("Latest checkpoint's NextXID", next_xid),
        ("Latest checkpoint's NextOID", control.next_oid.to_string()),
        (
            "Latest checkpoint's NextMultiXactId",
            control.next_multi.to_string(),
        ),
        (
            "Time of latest checkpoint",
            control
                .checkpoint_time
                .strftime("%a %b %e %H:%M:%S %Y")
                .to_string(),
        ),
        (
            "Fake LSN counter for unlogged rels",
            control.unlogged_lsn.to_string(),
        ),
        (
            "Minimum recovery ending location",
            control.min_recovery_point.to_string(),
        ),
        (
            "Min recovery ending loc's timeline",
            control.min_recovery_timeline.to_string(),
        ),
        ("Backup start location", control.backup_start.to_string()),
        ("Backup end location", control.backup_end.to_string()),
        ("End-of-backup record required", yes(control.backup_end_required)),
        ("wal_level setting", level),
        ("wal_log_hints setting", on(control.wal_log_hints)),
        ("max_connections setting", control.max_connections.to_string()),
        (
            "max_worker_processes setting",
            control.max_worker_processes.to_string(),
        ),
        ("max_wal_senders setting", control.max_wal_senders.to_string()),
        (
            "max_prepared_xacts setting",
            control.max_prepared_transactions.to_string(),
        ),
        (
            "max_locks_per_xact setting",
            control.max_locks_per_transaction.to_string(),
        ),
        (
            "track_commit_timestamp setting",
            on(control.track_commit_timestamp),
        ),
        ("Maximum data alignment", control.maximum_alignment.to_string()),
        ("Database block size", control.block_size.to_string()),
        (
            "Blocks per segment of large relation",
            control.relation_segment_size.to_string(),
        ),
        ("WAL block size", control.wal_block_size.to_string()),
        ("Bytes per WAL segment", control.wal_segment_size.to_string()),
        (
            "Maximum length of identifiers",
            control.name_data_length.to_string(),
        ),
        ("Maximum columns in an index", control.index_max_keys.to_string()),
        (
            "Maximum size of a TOAST chunk",
            control.toast_max_chunk_size.to_string(),
        ),
        (
            "Size of a large-object chunk",
            control.large_object_block_size.to_string(),
        ),
        (
            "Data page checksum version",
            control.data_checksum_version.to_string(),
        ),
    ] {
        assert_eq!(field(name), value, "{name}");
    }
    control
}

fn everything(server: &Server) {
    server.start();
    server.sql("postgres", "CREATE DATABASE shop");
    server.sql("shop", WORKLOAD);
    let space = server.make_folder("space");
    server.sql(
        "postgres",
        &format!("CREATE TABLESPACE fast LOCATION '{}'", space.display()),
    );
    server.sql(
        "postgres",
        "CREATE DATABASE copied_files STRATEGY file_copy TABLESPACE fast",
    );
    server.sql(
        "copied_files",
        "CREATE TABLE t AS SELECT generate_series(1, 1000) n; DROP TABLE t",
    );
    server.sql("postgres", "DROP DATABASE copied_files; DROP TABLESPACE fast");
    server.run("pgbench", &["-i", "-q", "-s", "2"]);
    server.run("pgbench", &["-n", "-c", "4", "-j", "2", "-t", "500"]);
    // Locks held by several transactions at once make multixacts.
    server.pgbench(
        "\\set a random(1, 5)\nBEGIN;\nSELECT abalance FROM pgbench_accounts WHERE aid = :a FOR KEY SHARE;\n\
         UPDATE pgbench_accounts SET abalance = abalance + 1 WHERE aid = :a;\nEND;\n",
        4,
        200,
    );
    server.sql(
        "postgres",
        "VACUUM pgbench_accounts; CREATE TABLE after_all (n int); SELECT pg_switch_wal()",
    );
    server.sql("postgres", "INSERT INTO after_all VALUES (1)");
    server.stop("fast");
}

fn has(indexes: &[SegmentIndex], wanted: impl Fn(&EventKind) -> bool) -> bool {
    indexes
        .iter()
        .flat_map(|index| &index.events)
        .any(|event| wanted(&event.kind))
}

const KEEP_WAL: &str = "max_wal_size = '8GB'\nwal_keep_size = '8GB'\nwal_recycle = off\ncheckpoint_timeout = '1h'\n\
                        max_prepared_transactions = 10\nautovacuum = off\nfsync = off\n";

#[test]
fn everything_equals_pg_waldump_with_small_segments_and_wal_level_logical() {
    let settings =
        format!("{KEEP_WAL}wal_level = logical\ntrack_commit_timestamp = on\nwal_compression = pglz\n");
    let Some(server) = Server::init(&["-k", "--wal-segsize=1"], &settings) else {
        return;
    };
    everything(&server);
    let control = compare_control_file(&server);
    assert_eq!(
        (control.wal_segment_size, control.data_checksum_version),
        (1 << 20, 1)
    );

    let names = server.segments();
    let indexes = index_all(&server, &names, 1 << 20);
    assert!(indexes.len() > 20);
    compare_with_pg_waldump(&server, &names, &indexes);

    for pair in indexes.windows(2) {
        assert!(
            pair[1].follows(&pair[0]),
            "{:?}\n{:?}",
            pair[0].tail,
            pair[1].head
        );
        assert!(pair[1].head.resolved || !pair[1].head.ends_here);
        assert_eq!(pair[0].verdict, Verdict::Good);
    }
    // A seam with another segment's neighbour does not fit.
    assert!(!indexes[2].follows(&indexes[0]));
    let inside = indexes
        .iter()
        .filter(|index| index.first_record.is_none())
        .count();
    assert!(inside >= 1, "no segment lies wholly inside a record");
    let spanning = indexes.iter().filter(|index| index.head.length > 0).count();
    assert!(spanning > 10, "only {spanning} records span segments");

    assert!(has(
        &indexes,
        |kind| matches!(kind, EventKind::RestorePoint { name, .. } if name == "before the accident")
    ));
    assert!(has(
        &indexes,
        |kind| matches!(kind, EventKind::Prepare { gid, .. } if gid == "two-phase commit")
    ));
    assert!(has(
        &indexes,
        |kind| matches!(kind, EventKind::HeapTruncate { relations, .. } if relations.len() == 1)
    ));
    assert!(has(&indexes, |kind| matches!(
        kind,
        EventKind::DatabaseCreated {
            by_copy: true,
            source: Some(_),
            ..
        }
    )));
    assert!(has(&indexes, |kind| matches!(
        kind,
        EventKind::DatabaseCreated { by_copy: false, .. }
    )));
    assert!(has(&indexes, |kind| matches!(
        kind,
        EventKind::TablespaceDropped { .. }
    )));
    assert!(has(
        &indexes,
        |kind| matches!(kind, EventKind::TablespaceCreated { path, .. } if path.ends_with("/space"))
    ));
    assert!(has(&indexes, |kind| matches!(
        kind,
        EventKind::ParameterChange {
            wal_level: 2,
            max_prepared_transactions: 10,
            ..
        }
    )));
    assert!(has(&indexes, |kind| matches!(
        kind,
        EventKind::RelationTruncated { blocks: 0, .. }
    )));
    assert!(has(&indexes, |kind| matches!(
        kind,
        EventKind::RelationMapUpdate { .. }
    )));
    assert!(has(&indexes, |kind| matches!(kind, EventKind::Switch)));
    assert!(has(&indexes, |kind| matches!(
        kind,
        EventKind::RelationsDropped { aborted: true, .. }
    )));
    assert!(has(&indexes, |kind| matches!(
        kind,
        EventKind::LogicalMessage { prefix, transactional: true, length: 2_600_000, .. } if prefix == "pgproof-transactional"
    )));
    assert!(!has(&indexes, |kind| matches!(
        kind,
        EventKind::SpecialUpdate { .. }
    )));
}

#[test]
fn everything_equals_pg_waldump_with_ordinary_segments_and_wal_level_replica() {
    let Some(server) = Server::init(&[], &format!("{KEEP_WAL}wal_log_hints = on\n")) else {
        return;
    };
    everything(&server);
    let control = compare_control_file(&server);
    let names = server.segments();
    let indexes = index_all(&server, &names, control.wal_segment_size);
    compare_with_pg_waldump(&server, &names, &indexes);
    for pair in indexes.windows(2) {
        assert!(pair[1].follows(&pair[0]));
    }

    // DROP DATABASE: the mark in pg_database comes before the end of the database, without a transaction.
    let events: Vec<_> = indexes.iter().flat_map(|index| &index.events).collect();
    let dropped = events
        .iter()
        .find(|event| matches!(event.kind, EventKind::DatabaseDropped { .. }))
        .unwrap();
    let EventKind::DatabaseDropped {
        database,
        tablespaces,
    } = &dropped.kind
    else {
        unreachable!()
    };
    assert_eq!(tablespaces.len(), 1);
    let intent = events
        .iter()
        .find(|event| {
            event.kind
                == EventKind::DatabaseDropIntent {
                    database: Some(*database),
                }
        })
        .expect("the mark of the dropped database");
    assert!(intent.lsn < dropped.lsn && intent.xid.0 == 0);

    // `DELETE FROM emptied` of 3000 rows is listed with its transaction, which committed.
    let deleted = indexes
        .iter()
        .flat_map(|index| &index.row_changes)
        .filter(|rows| rows.deletes >= 500);
    let xids: BTreeSet<u32> = deleted.map(|rows| rows.xid.0).collect();
    assert!(xids.len() >= 3, "{xids:?}");
    let committed: BTreeSet<u32> = indexes
        .iter()
        .flat_map(|index| &index.transactions)
        .filter(|end| end.kind.is_commit())
        .map(|end| end.xid.0)
        .collect();
    assert!(xids.iter().any(|xid| committed.contains(xid)));
    assert!(
        xids.iter().any(|xid| !committed.contains(xid)),
        "one deletion was rolled back"
    );

    // 300 updates, each in a subtransaction of its own, 30 of which were undone; a third of the rows had
    // been deleted before.
    let subtransactions = indexes
        .iter()
        .flat_map(|index| &index.transactions)
        .find(|end| end.subxids.len() == 270);
    let top = subtransactions
        .expect("the transaction with 270 committed subtransactions")
        .xid;
    let rows: Vec<_> = indexes
        .iter()
        .flat_map(|index| &index.row_changes)
        .filter(|rows| rows.xid == top && rows.updates > 0)
        .collect();
    assert_eq!(rows.iter().map(|rows| rows.updates).sum::<u32>(), 180, "{rows:?}");
}

#[test]
fn a_record_that_a_crash_left_unfinished_is_dropped() {
    let settings =
        format!("{KEEP_WAL}bgwriter_lru_maxpages = 0\nshared_buffers = '64MB'\nwal_writer_delay = '10s'\n");
    let Some(server) = Server::init(&["--wal-segsize=1"], &settings) else {
        return;
    };
    server.start();
    server.sql(
        "postgres",
        "CREATE TABLE t (n int); CHECKPOINT; SELECT pg_switch_wal()",
    );
    server.sql(
        "postgres",
        "SELECT pg_logical_emit_message(true, 'x', repeat('m', 30000)) FROM generate_series(1, 100)",
    );
    server.stop("immediate");

    // The crash loses everything after a segment that ends inside a record.
    let names = server.segments();
    let indexes = index_all(&server, &names, 1 << 20);
    let last_cut = indexes.iter().rposition(|index| index.tail.is_some()).unwrap();
    for name in &names[last_cut + 1..] {
        std::fs::remove_file(server.wal().join(name)).unwrap();
    }
    let cut = indexes[last_cut].tail.unwrap();
    server.start();
    server.sql(
        "postgres",
        "INSERT INTO t VALUES (1); SELECT pg_switch_wal(); INSERT INTO t VALUES (2)",
    );
    server.stop("fast");

    let names = server.segments();
    let indexes = index_all(&server, &names, 1 << 20);
    compare_with_pg_waldump(&server, &names, &indexes);
    let next = &indexes[last_cut + 1];
    assert!(next.overwrites_tail && next.head.length == 0);
    assert!(next.follows(&indexes[last_cut]));
    let found = next.events.iter().find_map(|event| match event.kind {
        EventKind::OverwriteContrecord { overwritten, .. } => Some(overwritten),
        _ => None,
    });
    assert_eq!(found, Some(cut.start));
}

#[test]
fn a_promoted_timeline_is_read_and_its_history_names_the_switch() {
    let Some(server) = Server::init(&["--wal-segsize=1"], KEEP_WAL) else {
        return;
    };
    server.start();
    server.sql("postgres", "CREATE TABLE t AS SELECT generate_series(1, 1000) n");
    server.stop("fast");
    std::fs::write(server.data().join("standby.signal"), "").unwrap();
    server.start();
    let data = server.data();
    server.run("pg_ctl", &["-D", data.to_str().unwrap(), "-w", "-s", "promote"]);
    server.sql(
        "postgres",
        "INSERT INTO t VALUES (-1); SELECT pg_switch_wal(); INSERT INTO t VALUES (-2)",
    );
    server.stop("fast");

    let timeline = TimelineId(2);
    let content = std::fs::read(server.wal().join("00000002.history")).unwrap();
    let history = TimelineHistory::parse(timeline, &content).unwrap();
    let switch = history.switch_out_of(TimelineId(1)).unwrap();
    let names: Vec<String> = server
        .segments()
        .into_iter()
        .filter(|name| name.starts_with("00000002"))
        .collect();
    let indexes = index_all(&server, &names, 1 << 20);
    assert_eq!(indexes[0].first_page_timeline, TimelineId(1));
    assert_eq!(indexes[0].number, switch.segment(1 << 20));
    assert_eq!(indexes[0].verdict, Verdict::Good);
    assert!(indexes[1].follows(&indexes[0]));
    let ended = indexes[0].events.iter().find_map(|event| match event.kind {
        EventKind::EndOfRecovery {
            timeline, previous, ..
        } => Some((event.lsn, timeline, previous)),
        EventKind::Checkpoint {
            timeline,
            previous_timeline,
            ..
        } if timeline != previous_timeline => Some((event.lsn, timeline, previous_timeline)),
        _ => None,
    });
    assert_eq!(ended, Some((switch, timeline, TimelineId(1))));
    compare_control_file(&server);
}
