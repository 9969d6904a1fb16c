//! Base backups of a real, changing cluster.

mod common;

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use backup::{Progress, ProgressState, Stage};
use cluster::{Instance, Session, StartOptions, StopMode};
use common::{Archived, entries, restore, run_backup, write_archive};
use repository::{EntryKind, RecipientKey, Repository, open_store};
use testing::{Workload, row_digest};

const TABLES: &[&str] = &[
    "create table large (id int primary key, filler text)",
    "insert into large select g, repeat(md5(g::text), 20) from generate_series(1, 30000) g",
    "create table small (id int primary key, note text)",
    "insert into small values (1, 'one'), (2, 'two')",
    "create unlogged table unlogged (id int)",
    "insert into unlogged select generate_series(1, 1000)",
    "create table emptied (id int)",
];

/// Restores a backup, replays all archived WAL, and gives the digests of all rows.
fn rows_of_restored(
    archived: &Archived,
    backup: &repository::Backup,
    folder: &str,
) -> std::collections::BTreeMap<String, String> {
    let base = archived.scratch.path().join(folder);
    std::fs::create_dir(&base).unwrap();
    common::give_away(&base);
    let data = base.join("data");
    restore(&archived.repository, backup, &data);
    let archive = base.join("archive");
    write_archive(
        &archived.repository,
        backup.system_identifier,
        backup.geometry.wal_segment_size,
        &archive,
    );
    std::fs::write(data.join("recovery.signal"), b"").unwrap();
    common::give_away(&data);
    let socket = archived.scratch.subfolder(&format!("{folder}-s")).unwrap();
    let mut start = StartOptions::new(&socket, 5433, &base.join("log"));
    for (name, value) in [
        ("archive_mode", "off"),
        ("fsync", "off"),
        ("restore_command", &format!("cp {}/%f %p", archive.display())),
        ("recovery_target_action", "promote"),
    ] {
        start.settings.push((name.into(), value.into()));
    }
    let mut instance = Instance::open(archived.cluster.programs(), &data).unwrap();
    if let Err(error) = instance.start(&start) {
        panic!(
            "{}\n{}",
            error.render(),
            std::fs::read_to_string(base.join("log")).unwrap_or_default()
        );
    }
    let conninfo = instance.conninfo("postgres");
    let mut session = Session::connect(&conninfo).unwrap();
    for _ in 0..600 {
        if session.one("select pg_catalog.pg_is_in_recovery()").unwrap()[0].as_deref() == Some("f") {
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let rows = row_digest(&conninfo).unwrap();
    drop(session);
    instance.stop(StopMode::Fast).unwrap();
    rows
}

#[test]
fn two_backups_of_a_changing_cluster_restore_to_the_same_rows_and_share_what_did_not_change() {
    let Some(archived) = Archived::start("two backups", true, &[]) else {
        return;
    };
    archived.sql(TABLES);
    let archiver = archived.archiver();

    let plan = archived.plan().unwrap();
    assert_eq!(plan.parent, None);
    assert!(
        plan.parent_reason.contains("no earlier backup"),
        "{}",
        plan.parent_reason
    );
    assert!(plan.files > 100 && plan.bytes > 20 << 20, "{plan}");

    let workload = Workload::start(&archived.cluster.conninfo(), 2).unwrap();
    let first = archived.backup().unwrap();
    let statistics = workload.stop().unwrap();
    assert!(statistics.commits > 0);
    assert_eq!(first.findings, []);
    assert_eq!(first.backup.parent, None);
    assert!(first.pages_stored > 2500, "{}", first.pages_stored);
    assert!(first.backup.stop_lsn > first.backup.start_lsn);

    archived.sql(&[
        "update large set filler = 'changed' where id = 15000",
        "insert into small values (3, 'three')",
    ]);
    let plan = archived.plan().unwrap();
    assert_eq!(plan.parent, Some(first.backup.backup), "{plan}");
    let second = archived.backup().unwrap();
    assert_eq!(second.backup.parent, Some(first.backup.backup));
    assert!(second.pages_reused > 2500, "{second:?}");
    // What the workload wrote after it was read, two tables, catalogs, and the small files that every checkpoint writes.
    assert!(second.pages_stored < 1500, "{}", second.pages_stored);

    let third = archived.backup().unwrap();
    assert!(
        third.pages_stored < 40,
        "an idle cluster's pages were stored again: {}",
        third.pages_stored
    );
    assert!(third.bytes_stored < 200_000, "{}", third.bytes_stored);

    let expected = row_digest(&archived.cluster.conninfo()).unwrap();
    cluster::switch_wal(&mut archived.cluster.session().unwrap()).unwrap();
    wait_until_archived(&archived);
    archiver.finish();
    for (backup, folder) in [
        (&first.backup, "one"),
        (&second.backup, "two"),
        (&third.backup, "three"),
    ] {
        let mut rows = rows_of_restored(&archived, backup, folder);
        // An unlogged table is empty after recovery, as it is after a crash.
        let mut expected = expected.clone();
        let unlogged = |rows: &mut std::collections::BTreeMap<String, String>| {
            rows.retain(|name, _| !name.contains("unlogged"))
        };
        unlogged(&mut rows);
        unlogged(&mut expected);
        assert_eq!(rows, expected, "backup {folder}");
    }
}

fn wait_until_archived(archived: &Archived) {
    let status = archived.cluster.data_directory().join("pg_wal/archive_status");
    for _ in 0..500 {
        let ready = std::fs::read_dir(&status)
            .unwrap()
            .flatten()
            .any(|entry| entry.path().extension().is_some_and(|e| e == "ready"));
        if !ready {
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    panic!("the WAL was not archived");
}

#[test]
fn a_backup_leaves_out_what_postgresql_leaves_out_and_nothing_else() {
    let Some(archived) = Archived::start("left out", true, &[]) else {
        return;
    };
    archived.sql(TABLES);
    let space = archived.scratch.subfolder("space").unwrap();
    archived.sql(&[
        &format!("create tablespace elsewhere location '{}'", space.display()),
        "create table there (id int) tablespace elsewhere",
        "insert into there select generate_series(1, 100)",
        "checkpoint",
    ]);
    let mut session = archived.cluster.session().unwrap();
    let path = |session: &mut Session, relation: &str| {
        session
            .one(&format!("select pg_catalog.pg_relation_filepath('{relation}')"))
            .unwrap()[0]
            .clone()
            .unwrap()
    };
    let unlogged = path(&mut session, "unlogged");
    let there = path(&mut session, "there");
    session
        .execute("create temporary table temporary as select generate_series(1, 100) id")
        .unwrap();
    let temporary = path(&mut session, "temporary");
    let data = archived.cluster.data_directory();
    std::fs::write(data.join("base/pgsql_tmp_is_left_out"), b"x").unwrap();
    std::fs::write(data.join("a file of the administrator"), vec![1; 20_000]).unwrap();

    let archiver = archived.archiver();
    let backup = archived.backup().unwrap().backup;
    archiver.finish();
    let entries = entries(&archived.repository, &backup);
    let has = |path: &str| entries.contains_key(path);
    assert!(has(&format!("{unlogged}_init")) && !has(&unlogged), "{unlogged}");
    assert!(!has(&temporary), "{temporary}");
    assert!(there.starts_with("pg_tblspc/") && has(&there), "{there}");
    assert!(has("a file of the administrator"));
    assert!(!has("base/pgsql_tmp_is_left_out"));
    for wanted in [
        "PG_VERSION",
        "global/pg_control",
        "backup_label",
        "tablespace_map",
        "pg_wal",
        "pg_wal/archive_status",
        "pg_replslot",
        "pg_notify",
        "postgresql.conf",
        "pg_hba.conf",
        "global/pg_filenode.map",
    ] {
        assert!(has(wanted), "{wanted} is missing");
    }
    for path in entries.keys() {
        assert!(path != "postmaster.pid" && path != "postmaster.opts", "{path}");
        assert!(!path.starts_with("pg_wal/0"), "{path}");
        assert!(!path.contains("pg_internal.init"), "{path}");
    }
    assert_eq!(backup.tablespaces.len(), 1);
    assert_eq!(backup.tablespaces[0].location, space.to_str().unwrap());
    let listed = cluster::list(
        data,
        &archived.plan().unwrap().tablespaces,
        archived.plan().unwrap().server.major,
    )
    .unwrap();
    let missing: Vec<_> = listed
        .iter()
        .map(|entry| String::from_utf8_lossy(&entry.path).into_owned())
        .filter(|path| !has(path) && !path.starts_with("pg_stat") && !path.starts_with("pg_logical"))
        .collect();
    assert_eq!(missing, Vec::<String>::new());
    let files = entries
        .values()
        .filter(|entry| matches!(entry.kind, EntryKind::File { .. }))
        .count();
    assert_eq!(backup.files, files as u64);
    let catalog: postgres::Catalog =
        serde_json::from_slice(&archived.repository.catalog(&backup).unwrap()).unwrap();
    assert_eq!(catalog.find_table("public.large").len(), 1);
}

#[test]
fn without_its_wal_a_backup_is_not_recorded_and_the_next_one_stores_nothing_twice() {
    let Some(archived) = Archived::start("no WAL", true, &[]) else {
        return;
    };
    archived.sql(TABLES);
    let error = archived.backup_with(&(), Duration::from_secs(2)).unwrap_err();
    assert_eq!(error.code(), "backup-wal-missing", "{}", error.render());
    assert!(
        error.message().contains("0000000100000000000000"),
        "{}",
        error.render()
    );
    assert_eq!(archived.repository.backups().unwrap(), []);
    assert_eq!(archived.repository.unfinished_runs().unwrap().len(), 1);

    let archiver = archived.archiver();
    let plan = archived.plan().unwrap();
    assert_eq!(plan.unfinished_runs.len(), 1, "{plan}");
    let result = archived.backup().unwrap();
    archiver.finish();
    assert!(result.pages_reused > 2500, "{}", result.pages_reused);
    assert!(result.pages_stored < 60, "stored twice: {}", result.pages_stored);
}

/// Kills its own process as soon as everything is stored and nothing recorded.
struct KillBeforeRecord;

impl Progress for KillBeforeRecord {
    fn update(&self, state: &ProgressState) {
        if state.stage == Stage::WaitingForWal {
            let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        }
    }
}

/// Not a test: what the next one starts as another process.
#[test]
#[ignore = "started by another test"]
fn child_that_is_killed() {
    // The campaigns run everything that is left out else.
    let Ok(arguments) = std::env::var("PGPROOF_TEST_CHILD") else {
        return;
    };
    let [conninfo, url, key] = arguments.splitn(3, '\n').collect::<Vec<_>>().try_into().unwrap();
    let key = RecipientKey::from_key_file_text(key).unwrap();
    let repository = Repository::open(open_store(url).unwrap(), &key)
        .unwrap()
        .cluster("main")
        .unwrap();
    let _ = run_backup(conninfo, &repository, &KillBeforeRecord, Duration::from_secs(60));
    panic!("still alive");
}

#[test]
fn a_killed_backup_leaves_nothing_visible_and_the_next_one_stores_nothing_twice() {
    let Some(archived) = Archived::start("killed", true, &[]) else {
        return;
    };
    archived.sql(TABLES);
    let archiver = archived.archiver();
    let url = archived.repository.repository().store().url();
    let key = archived.key.to_key_file_text().unwrap();
    let status = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child_that_is_killed", "--ignored", "--nocapture"])
        .env(
            "PGPROOF_TEST_CHILD",
            format!("{}\n{url}\n{}", archived.cluster.conninfo(), key.trim_end()),
        )
        .stdout(std::process::Stdio::null())
        .status()
        .unwrap();
    use std::os::unix::process::ExitStatusExt;
    assert_eq!(status.signal(), Some(9));
    assert_eq!(archived.repository.backups().unwrap(), []);

    let result = archived.backup().unwrap();
    archiver.finish();
    assert!(result.pages_reused > 2500, "{}", result.pages_reused);
    assert!(result.pages_stored < 60, "stored twice: {}", result.pages_stored);
    let rows = rows_of_restored(&archived, &result.backup, "after");
    assert!(rows.keys().any(|table| table.contains("large")));
}

/// Overwrites bytes of a relation's file behind the server's back.
fn damage(archived: &mut Archived, relation: &str, block: u64) -> String {
    let mut session = archived.cluster.session().unwrap();
    session.execute("checkpoint").unwrap();
    let path = session
        .one(&format!("select pg_catalog.pg_relation_filepath('{relation}')"))
        .unwrap()[0]
        .clone()
        .unwrap();
    drop(session);
    let file = std::fs::OpenOptions::new()
        .write(true)
        .open(archived.cluster.data_directory().join(&path))
        .unwrap();
    file.write_all_at(b"damage", block * 8192 + 5000).unwrap();
    path
}

#[test]
fn a_damaged_page_is_a_finding_and_the_backup_is_made_all_the_same() {
    let Some(mut archived) = Archived::start("damaged", true, &[]) else {
        return;
    };
    archived.sql(TABLES);
    let archiver = archived.archiver();
    let path = damage(&mut archived, "large", 1500);
    let result = archived.backup().unwrap();
    archiver.finish();
    assert_eq!(result.damaged.len(), 1);
    assert_eq!(
        (result.damaged[0].path.as_str(), result.damaged[0].block),
        (path.as_str(), 1500)
    );
    assert_eq!(result.findings.len(), 1);
    assert_eq!(result.findings[0].code, "page-damaged");
    assert_eq!(result.excused, []);
    assert_eq!(result.backup.excused_pages, []);
    let recorded = archived.repository.backups().unwrap();
    assert_eq!(recorded.len(), 1);
    assert_eq!(recorded[0].damaged_pages.len(), 1);
    assert_eq!(recorded[0].damaged_pages[0].block, 1500);
}

/// Runs something once, when reading has begun.
struct During<F: Fn() + Sync>(Mutex<bool>, F);

impl<F: Fn() + Sync> Progress for During<F> {
    fn update(&self, state: &ProgressState) {
        let mut done = self.0.lock().unwrap();
        if state.stage >= Stage::Stopping && !*done {
            *done = true;
            (self.1)();
        }
    }
}

#[test]
fn a_server_that_dies_during_the_backup_leaves_no_record() {
    let Some(mut archived) = Archived::start("server dies", true, &[]) else {
        return;
    };
    archived.sql(TABLES);
    let pid = archived.cluster.instance().pid().unwrap();
    let kill = During(Mutex::new(false), || {
        let pid = rustix::process::Pid::from_raw(pid as i32).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::QUIT).unwrap();
        std::thread::sleep(Duration::from_millis(1000));
    });
    let error = archived.backup_with(&kill, Duration::from_secs(5)).unwrap_err();
    assert_eq!(error.code(), "backup-aborted", "{}", error.render());
    assert_eq!(archived.repository.backups().unwrap(), []);
}

#[test]
fn a_session_that_is_ended_during_the_backup_leaves_no_record() {
    let Some(archived) = Archived::start("session ends", true, &[]) else {
        return;
    };
    let archiver = archived.archiver();
    let end = During(Mutex::new(false), || {
        archived.sql(&[
            "select pg_catalog.pg_terminate_backend(pid) from pg_catalog.pg_stat_activity \
                        where application_name = 'pgproof backup'",
        ]);
    });
    let error = archived.backup_with(&end, Duration::from_secs(5)).unwrap_err();
    archiver.finish();
    assert_eq!(error.code(), "backup-aborted", "{}", error.render());
    assert_eq!(archived.repository.backups().unwrap(), []);
}

#[test]
fn a_second_backup_at_the_same_time_is_refused() {
    let Some(archived) = Archived::start("second", true, &[]) else {
        return;
    };
    let archiver = archived.archiver();
    let other = Mutex::new(None);
    let conninfo = archived.cluster.conninfo();
    let second = During(Mutex::new(false), || {
        *other.lock().unwrap() = Some(run_backup(
            &conninfo,
            &archived.repository,
            &(),
            Duration::from_secs(5),
        ));
    });
    archived.backup_with(&second, Duration::from_secs(60)).unwrap();
    archiver.finish();
    let error = other.lock().unwrap().take().unwrap().unwrap_err();
    assert_eq!(error.code(), "backup-running");
}

#[test]
fn a_cluster_that_was_set_back_gets_no_parent() {
    let Some(mut archived) = Archived::start("set back", true, &[]) else {
        return;
    };
    archived.sql(TABLES);
    let archiver = archived.archiver();
    // A copy of the data directory from before the backup is put back afterwards: same timeline, older LSN.
    archived.cluster.stop(StopMode::Fast).unwrap();
    let data = archived.cluster.data_directory().to_path_buf();
    let old = data.with_extension("old");
    copy_tree(&data, &old);
    archived.cluster.start_again().unwrap();
    archived.sql(&["insert into small select generate_series(10, 5000)"]);
    let first = archived.backup().unwrap();
    archiver.finish();
    std::fs::write(archived.acknowledged.join("stop"), b"").unwrap();
    archived.cluster.stop(StopMode::Fast).unwrap();
    std::fs::remove_dir_all(&data).unwrap();
    copy_tree(&old, &data);
    archived.cluster.start_again().unwrap();
    let plan = archived.plan().unwrap();
    assert_eq!(plan.parent, None);
    assert!(
        plan.parent_reason.contains(&first.backup.backup.to_string()),
        "{}",
        plan.parent_reason
    );
    assert!(
        plan.parent_reason.contains("before the backup's end"),
        "{}",
        plan.parent_reason
    );
}

fn copy_tree(from: &Path, to: &Path) {
    let status = std::process::Command::new("cp")
        .arg("-a")
        .arg(from)
        .arg(to)
        .status()
        .unwrap();
    assert!(status.success());
}

#[test]
fn without_archiving_a_backup_is_refused_before_it_begins() {
    let Some(cluster) = testing::TestCluster::start_or_skip("no archiving", &testing::TestOptions::default())
    else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let (repository, _) = common::repository(&folder.path().join("repository"));
    let error = backup::base::plan(
        &cluster.conninfo(),
        &repository,
        &Default::default(),
        jiff::Timestamp::now(),
    )
    .unwrap_err();
    assert_eq!(error.code(), "archiving-off");
}
