//! Where a copy is to stop, who plans it, and what no sandbox can carry out.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use history::{Archive, MemorySource, TablespaceCreated, Target, Wanted};
use postgres::{
    Lsn, Seam, SegmentIndex, SystemIdentifier, TimelineId, Timestamp, TransactionEnd, TransactionEndKind,
    Verdict, Xid,
};
use repository::Backup;
use restore::{Action, Configuration, Purpose, Request, Stop};

use crate::checks_tests::point as bracket;
use crate::options::DrillTarget;
use crate::perform::{Place, REQUESTED, planned, refuse_plan, request_of, stop, stops};
use crate::point::{DatabasePoint, Point};

const SYSTEM: u64 = 7_300_000_000_000_000_001;
const SEGMENT_SIZE: u32 = 16 << 20;

fn database(name: &str, lsn: u64) -> DatabasePoint {
    DatabasePoint {
        database: name.into(),
        lsn: Lsn(lsn),
        digest: Default::default(),
        sequences_before: Default::default(),
        sequences_after: Default::default(),
    }
}

fn point(databases: Vec<DatabasePoint>) -> Point {
    Point {
        facts: bracket(),
        databases,
        unreached: vec![],
        switched: Lsn(0x500_0000),
    }
}

#[test]
fn the_point_comes_first_then_each_row_proof_and_the_copy_pauses_at_all_of_them() {
    let point = point(vec![database("b", 30), database("a", 20), database("c", 30)]);
    let wanted = stops(&DrillTarget::Bracket, Some(&point));
    let places: Vec<(Target, &str)> = wanted
        .iter()
        .map(|stop| (stop.wanted.target.clone(), stop.purpose.as_str()))
        .collect();
    assert_eq!(
        places,
        [
            (Target::Name("pgproof_x".into()), REQUESTED),
            (Target::Lsn(Lsn(20)), "row proof of a"),
            (Target::Lsn(Lsn(30)), "row proof of b, c"),
        ]
    );
    // What was digested is everything before that LSN, and nothing of what begins there.
    assert!(
        wanted
            .iter()
            .skip(1)
            .all(|stop| stop.wanted.inclusive == Some(false))
    );
    assert!(wanted.iter().all(|stop| stop.action == Action::Pause));
    let past = DrillTarget::Point(Target::Latest, "latest".into());
    assert!(stops(&past, None).iter().all(|stop| stop.action == Action::Pause));
}

fn backup(day: u32, start: u64) -> Backup {
    let frame = serde_json::json!({
        "pack": {"run": "20260815T020003Z", "number": 1}, "frame": 0, "offset": 128, "stored_length": 100
    });
    serde_json::from_value(serde_json::json!({
        "version": 1,
        "backup": format!("202608{day:02}T020003Z"),
        "cluster": "main",
        "label": "pgproof",
        "started_at": format!("2026-08-{day:02}T02:00:03Z"),
        "finished_at": format!("2026-08-{day:02}T02:00:10Z"),
        "start_lsn": Lsn(start),
        "stop_lsn": Lsn(start + 0x100),
        "redo_lsn": Lsn(start),
        "bytes_read": 1, "bytes_stored": 1, "bytes_restored": 1, "files": 990,
        "system_identifier": SYSTEM.to_string(),
        "timeline": 1,
        "history": [],
        "postgresql_version": "15.18",
        "postgresql_version_num": 150018,
        "pg_control_version": 1300,
        "catalog_version": 202209061,
        "geometry": {
            "block_size": 8192, "relation_segment_size": 131072, "wal_block_size": 8192,
            "wal_segment_size": SEGMENT_SIZE
        },
        "data_checksum_version": 1,
        "from_standby": false,
        "tablespaces": [],
        "settings": {
            "max_connections": 250, "max_worker_processes": 8, "max_wal_senders": 10,
            "max_prepared_transactions": 0, "max_locks_per_transaction": 64
        },
        "configuration": [],
        "excused_pages": [],
        "collations": [],
        "parent": null,
        "tree": {"root": frame, "pack_table": [], "pack_table_size": 0, "catalog": []}
    }))
    .unwrap()
}

fn at(text: &str) -> Timestamp {
    Timestamp::from_jiff(text.parse().unwrap())
}

/// A segment with one commit.
fn segment(number: u64, xid: u32, time: &str) -> SegmentIndex {
    let start = number * u64::from(SEGMENT_SIZE);
    SegmentIndex {
        timeline: TimelineId(1),
        number,
        segment_size: SEGMENT_SIZE,
        wal_block_size: 8192,
        system_identifier: SystemIdentifier(SYSTEM),
        magic: 0xD110,
        first_page_timeline: TimelineId(1),
        first_record: Some(Lsn(start + 40)),
        first_record_previous: None,
        last_record: Some(Lsn(start + u64::from(SEGMENT_SIZE) - 64)),
        end: Lsn(start + u64::from(SEGMENT_SIZE)),
        switched: false,
        overwrites_tail: false,
        head: Seam::default(),
        tail: None,
        verdict: Verdict::Good,
        statistics: Vec::new(),
        transactions: vec![TransactionEnd {
            start: Lsn(start + 0x1000),
            end: Lsn(start + 0x1030),
            xid: Xid(xid),
            time: at(time),
            kind: TransactionEndKind::Commit,
            subxids: Vec::new(),
        }],
        events: Vec::new(),
        changed: Vec::new(),
        row_changes: Vec::new(),
    }
}

fn archive() -> Archive {
    let mut source = MemorySource::default();
    for index in [
        segment(2, 700, "2026-08-14T10:00:00Z"),
        segment(3, 731, "2026-08-15T10:00:00Z"),
        segment(4, 740, "2026-08-15T14:00:00Z"),
    ] {
        source.indexes.insert((index.timeline, index.number), index);
    }
    Archive::of(Arc::new(source), SystemIdentifier(SYSTEM), SEGMENT_SIZE).unwrap()
}

/// What `pgproof restore` asks for.
fn restore_request(target: &Target, destination: &Path) -> Request {
    Request {
        cluster: "main".into(),
        stops: vec![restore::StopRequest {
            wanted: Wanted::from(target.clone()),
            action: Action::Promote,
            purpose: REQUESTED.into(),
        }],
        timeline: None,
        backup: None,
        destination: destination.to_owned(),
        tablespaces: Vec::new(),
        tablespaces_into: None,
        create_tablespaces: false,
        delta: false,
        restore_command: "pgproof wal get %f %p".into(),
        purpose: Purpose::Server,
        configuration: Configuration::Restored,
        settings: Vec::new(),
        owner: None,
    }
}

#[test]
fn a_drill_recovers_as_a_restore_of_the_same_point_would() {
    let folder = tempfile::tempdir().unwrap();
    let place = Place {
        folder: folder.path().to_owned(),
        restore_command: "fetch %f %p".into(),
        backup: None,
    };
    let destination: PathBuf = folder.path().join("data");
    let (backups, archive) = ([backup(15, 0x300_0028), backup(14, 0x200_0028)], archive());
    let now: jiff::Timestamp = "2026-08-15T15:00:00Z".parse().unwrap();
    let mut taken = Vec::new();
    for target in [
        Target::Latest,
        Target::Time(at("2026-08-15T12:00:00Z")),
        Target::BeforeXid(Xid(731)),
        // Only the older backup ended before it.
        Target::BeforeXid(Xid(700)),
    ] {
        let facts = restore::gather(restore_request(&target, &destination), &backups, &archive).unwrap();
        let restored = restore::plan(&facts, now).unwrap();
        let wanted = vec![stop(Wanted::from(target.clone()), REQUESTED.into())];
        let request = request_of("main", &archive, wanted, None, &place, None);
        let copy = planned(request, &backups, &archive, now).unwrap();
        assert_eq!(copy.backup, restored.backup, "{target}");
        assert_eq!(copy.timeline, restored.timeline, "{target}");
        assert_eq!(copy.wal, restored.wal, "{target}");
        assert_eq!(copy.maxima, restored.maxima, "{target}");
        assert_eq!(copy.destination, restored.destination, "{target}");
        // The same stop in the same words, but for what happens there.
        let words = |stops: &[Stop]| -> Vec<_> {
            let each = stops.iter().map(|stop| {
                let mut settings = stop.settings.clone();
                settings.retain(|(name, _)| name != "recovery_target_action");
                (stop.target.clone(), settings)
            });
            each.collect()
        };
        assert_eq!(words(&copy.stops), words(&restored.stops), "{target}");
        taken.push(copy.backup.to_string());
    }
    let newest = "20260815T020003Z";
    assert_eq!(taken, [newest, newest, newest, "20260814T020003Z"]);
    // And what it refuses, a drill is refused.
    let late = Target::Lsn(Lsn(0x900_0000));
    let facts = restore::gather(restore_request(&late, &destination), &backups, &archive).unwrap();
    let wanted = vec![stop(Wanted::from(late), REQUESTED.into())];
    let request = request_of("main", &archive, wanted, None, &place, None);
    let refused = planned(request, &backups, &archive, now).unwrap_err();
    assert_eq!(refused.code(), restore::plan(&facts, now).unwrap_err().code());
}

#[test]
fn a_plan_that_needs_a_library_is_refused_unless_one_may_be_preloaded() {
    let preload = ["my_manager".to_string()];
    let error = refuse_plan(&[], &[130, 200], &[]).unwrap_err();
    assert_eq!(error.code(), "resource-manager-missing");
    assert!(error.render().contains("130, 200"), "{}", error.render());
    assert!(refuse_plan(&[], &[130, 200], &preload).is_ok());
    assert!(refuse_plan(&[], &[], &[]).is_ok());
}

#[test]
fn a_plan_whose_replay_makes_a_tablespace_outside_the_copy_is_refused() {
    let created = |location: &str| TablespaceCreated {
        oid: 16500,
        location: location.into(),
        at: Lsn(0x300_0900),
    };
    assert!(refuse_plan(&[created("")], &[], &[]).is_ok());
    let error = refuse_plan(&[created(""), created("/srv/fast")], &[], &[]).unwrap_err();
    assert_eq!(error.code(), "tablespace-created");
    assert!(error.render().contains("/srv/fast"), "{}", error.render());
}
