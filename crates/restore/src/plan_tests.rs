//! The planner over facts in memory: printed plans, and every refusal.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use history::{Archive, KnownHistory, MemorySource, Target, Wanted};
use postgres::{
    Event, EventKind, HistoryStep, Lsn, SegmentIndex, SystemIdentifier, TimelineHistory, TimelineId,
    Timestamp, TransactionEnd, TransactionEndKind, Verdict, Xid,
};
use repository::Backup;

use crate::destination::{DestinationFacts, DestinationState, LocationState};
use crate::facts::*;
use crate::marker::{Marker, Phase};
use crate::plan::{KeptAside, Plan, plan};

const SYSTEM: u64 = 7_300_000_000_000_000_001;
const MIB16: u32 = 16 << 20;

/// A backup in segment 3 of timeline 1 that ended at 02:00:10 of that day.
fn backup(day: u32, start: u64) -> Backup {
    let frame = serde_json::json!({"pack": {"run": "20260815T020003Z", "number": 1}, "frame": 0, "offset": 128, "stored_length": 100});
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
        "bytes_read": 1, "bytes_stored": 1,
        "bytes_restored": 4_170_000_000_u64,
        "files": 990,
        "system_identifier": SYSTEM.to_string(),
        "timeline": 1,
        "history": [],
        "postgresql_version": "15.18",
        "postgresql_version_num": 150018,
        "pg_control_version": 1300,
        "catalog_version": 202209061,
        "geometry": {"block_size": 8192, "relation_segment_size": 131072, "wal_block_size": 8192, "wal_segment_size": MIB16},
        "data_checksum_version": 1,
        "from_standby": false,
        "tablespaces": [{"oid": 16390, "name": "fast", "location": "/srv/fast", "in_place": false}],
        "settings": {"max_connections": 100, "max_worker_processes": 8, "max_wal_senders": 10, "max_prepared_transactions": 0, "max_locks_per_transaction": 64},
        "configuration": [
            {"role": "config_file", "original": "/etc/postgresql/15/main/postgresql.conf", "path": "@config/postgresql.conf"},
            {"role": "hba_file", "original": "/etc/postgresql/15/main/pg_hba.conf", "path": null}
        ],
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

fn segment(number: u64, commits: &[(u64, u32, &str)]) -> SegmentIndex {
    let start = number * u64::from(MIB16);
    SegmentIndex {
        timeline: TimelineId(1),
        number,
        segment_size: MIB16,
        wal_block_size: 8192,
        system_identifier: SystemIdentifier(SYSTEM),
        magic: 0xD110,
        first_page_timeline: TimelineId(1),
        first_record: Some(Lsn(start + 40)),
        first_record_previous: None,
        last_record: Some(Lsn(start + u64::from(MIB16) - 64)),
        end: Lsn(start + u64::from(MIB16)),
        switched: false,
        overwrites_tail: false,
        head: postgres::Seam::default(),
        tail: None,
        verdict: Verdict::Good,
        statistics: Vec::new(),
        transactions: commits
            .iter()
            .map(|(lsn, xid, time)| TransactionEnd {
                start: Lsn(*lsn),
                end: Lsn(*lsn + 48),
                xid: Xid(*xid),
                time: at(time),
                kind: TransactionEndKind::Commit,
                subxids: Vec::new(),
            })
            .collect(),
        events: Vec::new(),
        changed: Vec::new(),
        row_changes: Vec::new(),
    }
}

fn archive(indexes: Vec<SegmentIndex>) -> Archive {
    let mut source = MemorySource::default();
    for index in indexes {
        source.indexes.insert((index.timeline, index.number), index);
    }
    Archive::of(Arc::new(source), SystemIdentifier(SYSTEM), MIB16).unwrap()
}

fn ordinary_archive() -> Archive {
    archive(vec![
        segment(3, &[(0x300_1000, 731, "2026-08-15T10:00:00Z")]),
        segment(
            4,
            &[
                (0x400_1000, 740, "2026-08-15T14:00:00Z"),
                (0x400_2000, 741, "2026-08-15T14:30:00Z"),
            ],
        ),
    ])
}

fn request(target: Target) -> Request {
    Request {
        cluster: "main".into(),
        stops: vec![StopRequest {
            wanted: Wanted::from(target),
            action: Action::Promote,
            purpose: "the requested target".into(),
        }],
        timeline: None,
        backup: None,
        destination: "/nonexistent/pgproof/data".into(),
        tablespaces: Vec::new(),
        tablespaces_into: None,
        create_tablespaces: false,
        delta: false,
        restore_command:
            "'/usr/bin/pgproof' --config '/etc/pgproof/pgproof.toml' wal get --cluster main %f %p".into(),
        purpose: Purpose::Server,
        configuration: Configuration::Restored,
        settings: Vec::new(),
        owner: None,
    }
}

fn now() -> jiff::Timestamp {
    "2026-08-15T15:00:00Z".parse().unwrap()
}

/// Facts without the host's own influence.
fn facts(request: Request, backups: &[Backup], archive: &Archive) -> Facts {
    let mut facts = gather(request, backups, archive).unwrap();
    facts.destination = DestinationFacts {
        path: facts.request.destination.clone(),
        state: DestinationState::Missing,
        mount_point: false,
        live_pid: None,
        marked: false,
        owner: None,
        mode: None,
        existing_parent: "/".into(),
        free_bytes: 1 << 40,
        effective_uid: 999,
    };
    facts.live_clusters.clear();
    facts
}

fn planned(target: Target) -> Facts {
    facts(request(target), &[backup(15, 0x300_0028)], &ordinary_archive())
}

fn refusal(facts: &Facts) -> diagnostic::Error {
    plan(facts, now()).unwrap_err()
}

#[test]
fn a_plan_to_a_time_leaves_no_choice_open() {
    let plan = plan(&planned(Target::Time(at("2026-08-15T14:05:00Z"))), now()).unwrap();
    insta::assert_snapshot!("plan_to_a_time", plan.to_string());
    let text = serde_json::to_string(&plan).unwrap();
    assert_eq!(serde_json::from_str::<Plan>(&text).unwrap(), plan);
}

#[test]
fn an_existing_directory_and_its_tablespaces_are_kept_aside() {
    let mut facts = planned(Target::Latest);
    facts.destination.state = DestinationState::DataDirectory {
        system_identifier: Some(SystemIdentifier(SYSTEM)),
        tablespaces: vec![(16390, "/srv/fast".into())],
    };
    facts.tablespaces = vec![TablespaceFacts {
        oid: 16390,
        location: "/srv/fast".into(),
        state: LocationState::Occupied(vec!["PG_15_202209061".into()]),
    }];
    let plan = plan(&facts, now()).unwrap();
    assert_eq!(
        plan.kept_aside,
        [
            KeptAside::Rename {
                from: "/nonexistent/pgproof/data".into(),
                to: "/nonexistent/pgproof/data.pre_pitr_20260815T150000Z".into()
            },
            KeptAside::Tablespace {
                oid: 16390,
                from: "/srv/fast".into(),
                to: "/srv/fast/pre_pitr_20260815T150000Z".into()
            },
        ]
    );
    facts.destination.mount_point = true;
    let plan = crate::plan::plan(&facts, now()).unwrap();
    assert!(
        matches!(&plan.kept_aside[0], KeptAside::Contents { to, .. } if to == Path::new("/nonexistent/pgproof/data/pre_pitr_20260815T150000Z"))
    );
}

#[test]
fn the_newest_backup_that_ended_before_the_target_is_taken() {
    let backups = [backup(15, 0x300_0028), backup(14, 0x200_0028)];
    let archive = archive(vec![
        segment(2, &[(0x200_1000, 700, "2026-08-14T10:00:00Z")]),
        segment(3, &[(0x300_1000, 731, "2026-08-15T10:00:00Z")]),
        segment(4, &[(0x400_1000, 740, "2026-08-15T14:00:00Z")]),
    ]);
    let to = |time: &str| {
        let facts = facts(request(Target::Time(at(time))), &backups, &archive);
        plan(&facts, now()).map(|plan| plan.backup.to_string())
    };
    assert_eq!(to("2026-08-15T12:00:00Z").unwrap(), "20260815T020003Z");
    assert_eq!(to("2026-08-15T02:00:10Z").unwrap(), "20260814T020003Z");
    assert_eq!(to("2026-08-15T02:00:11Z").unwrap(), "20260815T020003Z");
    assert_eq!(
        to("2026-08-14T02:00:10Z").unwrap_err().code(),
        "target-before-backup-end"
    );
    let by_xid = facts(request(Target::BeforeXid(Xid(700))), &backups, &archive);
    assert_eq!(
        plan(&by_xid, now()).unwrap().backup.to_string(),
        "20260814T020003Z"
    );
}

#[test]
fn refusals_before_and_beyond_name_the_nearest_point() {
    insta::assert_snapshot!(
        "refusal_before_backup_end",
        refusal(&planned(Target::Time(at("2026-08-15T01:00:00Z")))).render()
    );
    insta::assert_snapshot!(
        "refusal_needs_later_commit",
        refusal(&planned(Target::Time(at("2026-08-16T01:00:00Z")))).render()
    );
    insta::assert_snapshot!(
        "refusal_beyond_archive",
        refusal(&planned(Target::Lsn(Lsn(0x900_0000)))).render()
    );
    insta::assert_snapshot!(
        "refusal_unknown_xid",
        refusal(&planned(Target::Xid(Xid(9)))).render()
    );
    let gap = archive(vec![
        segment(3, &[(0x300_1000, 731, "2026-08-15T10:00:00Z")]),
        segment(5, &[]),
    ]);
    let facts = facts(request(Target::Latest), &[backup(15, 0x300_0028)], &gap);
    insta::assert_snapshot!("refusal_wal_gap", refusal(&facts).render());
}

#[test]
fn a_poisoned_history_diverts_nothing_and_is_told() {
    let mut source = MemorySource::default();
    for index in [
        segment(3, &[]),
        segment(4, &[(0x400_1000, 740, "2026-08-15T14:00:00Z")]),
    ] {
        source.indexes.insert((index.timeline, index.number), index);
    }
    let step = HistoryStep {
        parent: TimelineId(1),
        switch: Lsn(0x380_0000),
        reason: String::new(),
    };
    source.histories.push(KnownHistory {
        history: TimelineHistory {
            timeline: TimelineId(2),
            steps: vec![step],
        },
        object: "00000002.history".into(),
    });
    let archive = Archive::of(Arc::new(source), SystemIdentifier(SYSTEM), MIB16).unwrap();
    let plan = plan(
        &facts(request(Target::Latest), &[backup(15, 0x300_0028)], &archive),
        now(),
    )
    .unwrap();
    assert_eq!(plan.timeline, TimelineId(1));
    assert!(
        plan.stops[0]
            .settings
            .contains(&("recovery_target_timeline".into(), "1".into()))
    );
    assert!(
        plan.notes[0].contains("timeline 2, written by nobody that is known here,"),
        "{:?}",
        plan.notes
    );
    let mut followed = request(Target::Latest);
    followed.timeline = Some(TimelineId(7));
    let error = gather(followed, &[backup(15, 0x300_0028)], &archive).unwrap_err();
    assert_eq!(error.code(), "timeline-unknown");
}

#[test]
fn backup_that_began_after_the_fork_is_refused() {
    let mut archive = ordinary_archive();
    let step = HistoryStep {
        parent: TimelineId(1),
        switch: Lsn(0x200_0000),
        reason: String::new(),
    };
    archive.add_history(
        TimelineHistory {
            timeline: TimelineId(2),
            steps: vec![step],
        },
        "00000002.history".into(),
    );
    let mut followed = request(Target::Latest);
    followed.timeline = Some(TimelineId(2));
    let error = refusal(&facts(followed, &[backup(15, 0x300_0028)], &archive));
    assert_eq!(error.code(), "backup-not-on-timeline");
    assert!(
        error
            .detail_text()
            .unwrap()
            .contains("leaves timeline 1 at 0/2000000"),
        "{error:?}"
    );
}

#[test]
fn a_backup_of_another_timeline_of_the_same_number_never_gets_the_archived_ones_wal() {
    let step = |switch: u64| HistoryStep {
        parent: TimelineId(1),
        switch: Lsn(switch),
        reason: String::new(),
    };
    let mut archive = ordinary_archive();
    archive.add_history(
        TimelineHistory {
            timeline: TimelineId(2),
            steps: vec![step(0x200_0000)],
        },
        "00000002.history".into(),
    );
    let mut twin = backup(15, 0x300_0028);
    twin.timeline = TimelineId(2);
    twin.history = vec![repository::HistoryStep {
        parent: TimelineId(1),
        switch_lsn: Lsn(0x280_0000),
    }];
    let error = refusal(&facts(request(Target::Latest), &[twin.clone()], &archive));
    assert_eq!(error.code(), "backup-not-on-timeline");
    let detail = error.detail_text().unwrap();
    assert!(
        detail.contains("00000002.history: timeline 1 up to 0/2000000"),
        "{detail}"
    );
    // From a backup on timeline 1 before both forks, the number alone does not say which.
    let mut followed = request(Target::Latest);
    followed.timeline = Some(TimelineId(2));
    let early = backup(14, 0x100_0028);
    let error = gather(followed, &[early, twin], &archive).unwrap_err();
    assert_eq!(error.code(), "timeline-ambiguous");
}

#[test]
fn a_target_on_another_timeline_is_refused_and_that_timeline_is_named() {
    let mut index = segment(4, &[(0x400_1000, 740, "2026-08-15T14:00:00Z")]);
    index.timeline = TimelineId(2);
    let mut source = MemorySource::default();
    for index in [segment(3, &[(0x300_1000, 730, "2026-08-15T13:00:00Z")]), index] {
        source.indexes.insert((index.timeline, index.number), index);
    }
    source.histories.push(KnownHistory {
        history: TimelineHistory {
            timeline: TimelineId(2),
            steps: vec![HistoryStep {
                parent: TimelineId(1),
                switch: Lsn(0x400_0000),
                reason: String::new(),
            }],
        },
        object: "00000002.history".into(),
    });
    let archive = Archive::of(Arc::new(source), SystemIdentifier(SYSTEM), MIB16).unwrap();
    let facts = facts(
        request(Target::Xid(Xid(740))),
        &[backup(15, 0x300_0028)],
        &archive,
    );
    let error = refusal(&facts);
    assert_eq!(error.code(), "unknown-xid");
    let hint = error.hint_text().unwrap();
    assert!(
        hint.contains("Timeline 2 holds it (from backup 20260815T020003Z)"),
        "{hint}"
    );
}

#[test]
fn destinations_in_use_are_refused() {
    let check = |change: &dyn Fn(&mut Facts), code: &str| {
        let mut facts = planned(Target::Latest);
        change(&mut facts);
        assert_eq!(refusal(&facts).code(), code);
    };
    check(
        &|facts| facts.destination.live_pid = Some(4711),
        "destination-live",
    );
    check(
        &|facts| facts.destination.state = DestinationState::Other(vec!["letters".into()]),
        "destination-occupied",
    );
    check(
        &|facts| facts.destination.state = DestinationState::NotADirectory,
        "destination-not-a-directory",
    );
    check(
        &|facts| facts.destination.owner = Some((0, 0)),
        "destination-permission",
    );
    check(
        &|facts| {
            let system_identifier = Some(SystemIdentifier(1));
            facts.destination.state = DestinationState::DataDirectory {
                system_identifier,
                tablespaces: Vec::new(),
            };
        },
        "destination-foreign",
    );
    check(
        &|facts| {
            facts.destination.free_bytes = 1;
            facts.tablespaces.clear();
        },
        "destination-too-small",
    );
    check(
        &|facts| facts.tablespaces[0].state = LocationState::Occupied(vec!["PG_15_202209061".into()]),
        "tablespace-location-in-use",
    );
}

#[test]
fn replay_that_would_create_a_tablespace_in_use_is_refused_but_a_copy_leaves_it_to_its_sandbox() {
    let mut index = segment(4, &[(0x400_1000, 740, "2026-08-15T14:00:00Z")]);
    index.events.push(Event {
        lsn: Lsn(0x400_0800),
        end: Lsn(0x400_0840),
        xid: Xid(739),
        kind: EventKind::TablespaceCreated {
            tablespace: 16500,
            path: "/nonexistent/slow".into(),
        },
    });
    let archive = archive(vec![segment(3, &[]), index]);
    let backups = [backup(15, 0x300_0028)];
    let mut facts = facts(request(Target::Latest), &backups, &archive);
    let made = plan(&facts, now()).unwrap();
    assert_eq!(made.directories, [PathBuf::from("/nonexistent/slow")]);
    assert!(
        made.to_string()
            .contains("creates tablespace 16500 at /nonexistent/slow (0/4000800)")
    );
    facts.live_clusters = vec![live("/nonexistent/live", &[])];
    assert_eq!(refusal(&facts).code(), "tablespace-created-live");
    facts.request.create_tablespaces = true;
    assert_eq!(
        plan(&facts, now()).unwrap().directories,
        [PathBuf::from("/nonexistent/slow")]
    );
    facts.created_tablespaces[0].state = LocationState::Occupied(vec!["PG_15_202209061".into()]);
    let error = refusal(&facts);
    assert_eq!(error.code(), "tablespace-created-in-use");
    assert!(error.hint_text().unwrap().contains("`--to 0/4000800`"));
    facts.request.purpose = Purpose::Copy;
    assert!(plan(&facts, now()).unwrap().directories.is_empty());
}

fn live(data_directory: &str, tablespaces: &[(u32, &str)]) -> crate::live::LiveCluster {
    crate::live::LiveCluster {
        pid: 4711,
        data_directory: data_directory.into(),
        tablespaces: tablespaces
            .iter()
            .map(|(oid, path)| (*oid, PathBuf::from(path)))
            .collect(),
    }
}

#[test]
fn a_tablespace_never_goes_where_a_live_server_has_one() {
    let mut facts = planned(Target::Latest);
    let location = facts.tablespaces[0].location.clone();
    facts.live_clusters = vec![live("/nonexistent/live", &[(20000, "/nonexistent/elsewhere")])];
    plan(&facts, now()).unwrap();
    facts.live_clusters[0].tablespaces[0].1 = location;
    let error = refusal(&facts);
    assert_eq!(error.code(), "tablespace-location-live");
    assert!(error.detail_text().unwrap().contains("process 4711"));
}

#[test]
fn a_delta_keeps_wal_that_no_copy_has_and_drops_tablespaces_that_the_backup_does_not_know() {
    let mut facts = planned(Target::Latest);
    facts.request.delta = true;
    assert_eq!(
        plan(&facts, now()).unwrap().delta,
        None,
        "nothing is there to overwrite"
    );
    let location = facts.tablespaces[0].location.clone();
    facts.tablespaces[0].state = LocationState::Occupied(vec!["PG_15_202209061".into()]);
    facts.destination.state = DestinationState::DataDirectory {
        system_identifier: Some(SystemIdentifier(SYSTEM)),
        tablespaces: vec![(16390, location), (16999, "/nonexistent/newer".into())],
    };
    facts.wal_at_risk = vec!["000000010000000000000009".into()];
    let made = plan(&facts, now()).unwrap();
    let delta = made.delta.clone().unwrap();
    assert_eq!(
        delta.dropped_tablespaces,
        [(16999, PathBuf::from("/nonexistent/newer"))]
    );
    assert_eq!(delta.version_folder, "PG_15_202209061");
    let to = "/nonexistent/pgproof/data.pre_pitr_20260815T150000Z/pg_wal";
    assert_eq!(
        made.kept_aside,
        [KeptAside::Wal {
            from: "/nonexistent/pgproof/data/pg_wal".into(),
            to: to.into()
        }]
    );
    assert!(made.to_string().contains("OVERWRITTEN"));
    facts.destination.state = DestinationState::DataDirectory {
        system_identifier: None,
        tablespaces: Vec::new(),
    };
    assert_eq!(refusal(&facts).code(), "destination-unidentified");
}

#[test]
fn settings_are_the_maxima_of_the_control_file_and_the_wal() {
    let mut index = segment(4, &[(0x400_1000, 740, "2026-08-15T14:00:00Z")]);
    index.events.push(Event {
        lsn: Lsn(0x400_0800),
        end: Lsn(0x400_0840),
        xid: Xid(0),
        kind: EventKind::ParameterChange {
            max_connections: 400,
            max_worker_processes: 4,
            max_wal_senders: 10,
            max_prepared_transactions: 5,
            max_locks_per_transaction: 64,
            wal_level: 1,
            wal_log_hints: false,
            track_commit_timestamp: false,
        },
    });
    let archive = archive(vec![segment(3, &[]), index]);
    let plan = plan(
        &facts(request(Target::Latest), &[backup(15, 0x300_0028)], &archive),
        now(),
    )
    .unwrap();
    assert_eq!(
        (
            plan.maxima.max_connections,
            plan.maxima.max_worker_processes,
            plan.maxima.max_prepared_transactions
        ),
        (400, 8, 5)
    );
}

#[test]
fn an_interrupted_restore_is_planned_again_and_remembers_what_was_kept_aside() {
    let kept = KeptAside::Rename {
        from: "/nonexistent/pgproof/data".into(),
        to: "/old".into(),
    };
    let mut facts = planned(Target::Latest);
    facts.destination.state = DestinationState::HalfRestored(Box::new(Marker {
        version: 1,
        phase: Phase::Writing,
        cluster: "main".into(),
        backup: "20260815T020003Z".into(),
        system_identifier: SystemIdentifier(SYSTEM),
        target: "x".into(),
        planned_at: now(),
        kept_aside: vec![kept.clone()],
        outside: vec![(16390, "/srv/fast".into())],
    }));
    // What the interrupted restore wrote there is ours.
    facts.tablespaces = vec![TablespaceFacts {
        oid: 16390,
        location: "/srv/fast".into(),
        state: LocationState::Occupied(vec!["PG_15_202209061".into()]),
    }];
    let plan = plan(&facts, now()).unwrap();
    assert!(plan.kept_aside.is_empty());
    assert_eq!(plan.kept_earlier, [kept]);
}

#[test]
fn nothing_of_productions_settings_steers_recovery() {
    let plan = plan(&planned(Target::Time(at("2026-08-15T14:05:00Z"))), now()).unwrap();
    let production =
        "# Do not edit this file manually!\narchive_command = 'cp %p /prod/%f'\nrecovery_target_xid = '5'\n";
    let text = crate::settings::auto_conf(&plan, &plan.stops[0], production);
    let live: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    insta::assert_snapshot!("auto_conf", live.join("\n"));
    assert!(text.contains("#production# archive_command = 'cp %p /prod/%f'\n"));
    assert_eq!(crate::settings::production_lines(&text), production);
}

#[test]
fn a_database_with_an_evil_name_writes_no_setting() {
    let mut request = request(Target::Time(at("2026-08-15T14:05:00Z")));
    request.stops[0].purpose = "row proof of x\narchive_command = 'true'\r\narchive_mode = on".into();
    let facts = facts(request, &[backup(15, 0x300_0028)], &ordinary_archive());
    let plan = plan(&facts, now()).unwrap();
    let text = crate::settings::auto_conf(&plan, &plan.stops[0], "");
    let live: Vec<&str> = text.lines().filter(|line| line.starts_with("archive_")).collect();
    assert_eq!(
        live,
        [
            "archive_mode = 'off'",
            "archive_command = ''",
            "archive_cleanup_command = ''"
        ]
    );
}
