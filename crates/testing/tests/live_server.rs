//! The room `cluster` against a running PostgreSQL: facts, catalog, the file list, the backup session.

use cluster::data_directory::EntryKind;
use cluster::session::sqlstate;
use cluster::{BackupSession, Session, StopMode};
use postgres::{BackupLabel, Lsn};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;
use testing::{TestCluster, TestOptions, Workload, client_program, row_digest};

fn facts(cluster: &TestCluster) -> cluster::ServerFacts {
    cluster::gather(&mut cluster.session().unwrap()).unwrap()
}

#[test]
fn facts_agree_with_the_control_file() {
    let options = TestOptions {
        checksums: true,
        wal_segment_size: Some(4 << 20),
        ..TestOptions::default()
    };
    let Some(cluster) = TestCluster::start_or_skip("facts_agree_with_the_control_file", &options) else {
        return;
    };
    let facts = facts(&cluster);
    let (bytes, control) = cluster::read_control_file(cluster.data_directory()).unwrap();
    assert_eq!(bytes.len(), 8192);
    assert_eq!(facts.system_identifier, control.system_identifier);
    assert_eq!(facts.major, control.major);
    assert_eq!(facts.wal_segment_size, 4 << 20);
    assert_eq!(facts.wal_segment_size, control.wal_segment_size);
    assert_eq!(facts.block_size, control.block_size);
    assert_eq!(facts.relation_segment_size, control.relation_segment_size);
    assert_eq!(facts.wal_block_size, control.wal_block_size);
    assert_eq!(facts.recovery_settings.max_connections, control.max_connections);
    assert!(facts.data_checksums && facts.is_superuser && !facts.in_recovery);
    assert_eq!(facts.timeline.0, 1);
    assert_eq!(facts.data_directory, cluster.data_directory());
    assert_eq!(facts.socket_directories, [cluster.socket_directory()]);
    assert_eq!(facts.archive_mode, "off");
    assert_eq!(facts.archive_command, "");
    assert!(facts.insert_lsn >= control.checkpoint_redo);
    assert!(facts.size_bytes > 1_000_000);
    assert!(facts.now.duration_since(jiff_now()).abs().as_secs() < 60);
}

fn jiff_now() -> jiff::Timestamp {
    jiff::Timestamp::now()
}

#[test]
fn errors_of_the_server_say_what_they_are() {
    let Some(mut cluster) = TestCluster::start_or_skip("errors_of_the_server", &TestOptions::default())
    else {
        return;
    };
    let mut session = cluster.session().unwrap();
    let error = session.rows("SELECT * FROM missing").unwrap_err();
    assert_eq!((error.code(), sqlstate(&error)), ("server-error", Some("42P01")));
    assert_eq!(
        session.one("SELECT 1 UNION SELECT 2").unwrap_err().code(),
        "server-error"
    );
    assert_eq!(
        session.one("SELECT NULL, 'x'").unwrap(),
        [None, Some("x".to_string())]
    );
    for text in ["it's", r"back\slash", "é\n\t\"", "'; DROP TABLE x; --", "E'\\'"] {
        let row = session
            .one(&format!("SELECT {}", Session::literal(text)))
            .unwrap();
        assert_eq!(row, [Some(text.to_string())]);
        let row = session
            .one(&format!("SELECT 1 AS {}", Session::identifier(text)))
            .unwrap();
        assert_eq!(row.len(), 1);
    }
    let options = cluster::ConnectOptions {
        statement_timeout: Duration::from_millis(200),
        database: Some("template1".into()),
        ..Default::default()
    };
    let mut limited = Session::connect_with(&cluster.conninfo(), &options).unwrap();
    assert_eq!(
        limited.one("SELECT current_database()").unwrap(),
        [Some("template1".to_string())]
    );
    assert_eq!(
        sqlstate(&limited.execute("SELECT pg_sleep(30)").unwrap_err()),
        Some("57014")
    );
    let handle = session.cancel_handle();
    let canceller = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(300));
        handle.cancel().unwrap();
    });
    assert_eq!(
        sqlstate(&session.execute("SELECT pg_sleep(30)").unwrap_err()),
        Some("57014")
    );
    canceller.join().unwrap();

    let missing = Session::connect(&cluster.instance().conninfo("missing"))
        .err()
        .unwrap();
    assert_eq!(
        (missing.code(), sqlstate(&missing)),
        ("server-refused", Some("3D000"))
    );
    cluster.stop(StopMode::Immediate).unwrap();
    assert_eq!(session.execute("SELECT 1").unwrap_err().code(), "connection-lost");
    assert_eq!(session.execute("SELECT 1").unwrap_err().code(), "connection-lost");
    let gone = Session::connect(&cluster.conninfo()).err().unwrap();
    assert_eq!(gone.code(), "server-unreachable");
}

#[test]
fn a_catalog_names_what_is_on_disk() {
    let Some(cluster) =
        TestCluster::start_or_skip("a_catalog_names_what_is_on_disk", &TestOptions::default())
    else {
        return;
    };
    let mut session = cluster.session().unwrap();
    session
        .execute("CREATE TABLE orders (id serial PRIMARY KEY, note text)")
        .unwrap();
    session.execute("CREATE DATABASE \"we\"\"ird\"").unwrap();
    session
        .execute("CREATE TABLE parts (id int) PARTITION BY RANGE (id)")
        .unwrap();
    session.execute("VACUUM FULL pg_class").unwrap();
    let catalog = cluster::read_catalog(&cluster.conninfo(), jiff_now()).unwrap();
    let names: Vec<_> = catalog
        .databases
        .iter()
        .map(|database| database.name.as_str())
        .collect();
    for name in ["postgres", "template0", "template1", "we\"ird"] {
        assert!(names.contains(&name), "{name} in {names:?}");
    }
    let database = catalog
        .databases
        .iter()
        .find(|database| database.name == "postgres")
        .unwrap();
    let relation = |name: &str| database.relations.iter().find(|r| r.name == name).unwrap();
    let orders = relation("orders");
    assert_eq!(
        (orders.kind, orders.persistence, orders.owner_table),
        ('r', 'p', 0)
    );
    assert_eq!(relation("orders_pkey").owner_table, orders.oid);
    assert_eq!(relation("orders_id_seq").owner_table, orders.oid);
    assert_eq!(relation("parts").filenode, 0);
    let toast = database.relations.iter().find(|r| r.oid == orders.toast).unwrap();
    assert_eq!((toast.kind, toast.owner_table), ('t', orders.oid));
    let toast_index = database
        .relations
        .iter()
        .find(|r| r.name == format!("{}_index", toast.name))
        .unwrap();
    assert_eq!(toast_index.owner_table, orders.oid);
    // A mapped relation, moved by VACUUM FULL: its filenode is the one on disk.
    assert_ne!(relation("pg_class").filenode, relation("pg_class").oid);
    for relation in database.relations.iter().filter(|r| r.filenode != 0) {
        let folder = if relation.tablespace == 1664 {
            "global".into()
        } else {
            format!("base/{}", database.oid)
        };
        let path = cluster
            .data_directory()
            .join(folder)
            .join(relation.filenode.to_string());
        assert!(path.exists(), "{} {}", relation.name, path.display());
    }
}

/// Relative paths of everything below a folder; directories end with a slash.
fn tree(folder: &Path) -> BTreeSet<String> {
    fn walk(root: &Path, folder: &Path, found: &mut BTreeSet<String>) {
        for entry in fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            let path = entry.path();
            let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_string();
            // Tablespaces are entered through their links, as in our list.
            if fs::metadata(&path).unwrap().is_dir() {
                walk(root, &path, found);
                found.insert(format!("{name}/"));
            } else {
                found.insert(name);
            }
        }
    }
    let mut found = BTreeSet::new();
    walk(folder, folder, &mut found);
    found
}

#[test]
fn the_list_is_what_pg_basebackup_copies() {
    let Some(cluster) =
        TestCluster::start_or_skip("the_list_is_what_pg_basebackup_copies", &TestOptions::default())
    else {
        return;
    };
    let outside = cluster.scratch().subfolder("outside").unwrap();
    let mut session = cluster.session().unwrap();
    session
        .execute(&format!(
            "CREATE TABLESPACE outside LOCATION '{}'",
            outside.display()
        ))
        .unwrap();
    session
        .execute("CREATE TABLE moved (id int PRIMARY KEY) TABLESPACE outside")
        .unwrap();
    session
        .execute("CREATE UNLOGGED TABLE fleeting (id int PRIMARY KEY, t text)")
        .unwrap();
    session
        .execute("INSERT INTO fleeting SELECT i, i FROM generate_series(1, 10000) i")
        .unwrap();
    session.execute("VACUUM fleeting").unwrap();
    session
        .execute("CREATE UNLOGGED TABLE fleeting_outside (id int) TABLESPACE outside")
        .unwrap();
    session
        .execute("INSERT INTO fleeting_outside SELECT generate_series(1, 10000)")
        .unwrap();
    session
        .execute("CREATE TEMP TABLE mine (id int); INSERT INTO mine SELECT generate_series(1, 1000)")
        .unwrap();
    session
        .execute("SELECT pg_create_physical_replication_slot('s', true)")
        .unwrap();
    if session.version_num() >= 150_000 {
        session
            .execute("SET allow_in_place_tablespaces = on")
            .and_then(|_| session.execute("CREATE TABLESPACE in_place LOCATION ''"))
            .and_then(|_| session.execute("CREATE TABLE placed (id int) TABLESPACE in_place"))
            .unwrap();
    }
    session.execute("CHECKPOINT").unwrap();
    let data = cluster.data_directory();
    for junk in [
        "pg_stat_tmp/junk",
        "backup_manifest",
        "kept.txt",
        "postgresql.auto.conf.tmp",
    ] {
        fs::write(data.join(junk), "junk").unwrap();
    }

    let copy = cluster.scratch().path().join("copy");
    let program = client_program(cluster.programs(), "pg_basebackup").expect("pg_basebackup is installed");
    let output = std::process::Command::new(program)
        .args([
            "-h",
            cluster.socket_directory().to_str().unwrap(),
            "-U",
            "postgres",
            "-X",
            "none",
            "-c",
            "fast",
        ])
        .args(["--no-sync", "--no-manifest", "-D"])
        .arg(&copy)
        .arg(format!(
            "--tablespace-mapping={}={}",
            outside.display(),
            copy.with_extension("ts").display()
        ))
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    if text.contains("incompatible server version") {
        eprintln!("SKIPPED: the_list_is_what_pg_basebackup_copies: {text}");
        return;
    }
    assert!(output.status.success(), "{text}");

    let facts = facts(&cluster);
    assert_eq!(facts.tablespaces.iter().filter(|t| !t.in_place).count(), 1);
    let entries = cluster::list(data, &facts.tablespaces, facts.major).unwrap();
    assert!(entries.windows(2).all(|pair| pair[0].path < pair[1].path));
    let listed: BTreeSet<String> = entries
        .iter()
        .map(|entry| {
            let name = String::from_utf8(entry.path.clone()).unwrap();
            match entry.kind {
                EntryKind::File { .. } => name,
                EntryKind::Directory | EntryKind::Symlink { .. } => format!("{name}/"),
            }
        })
        .collect();
    let mut copied = tree(&copy);
    // What the protocol adds: the label, and the control file that we read last.
    for added in ["backup_label", "tablespace_map", "global/pg_control"] {
        copied.remove(added);
    }
    let difference: Vec<_> = listed.symmetric_difference(&copied).collect();
    assert!(difference.is_empty(), "{difference:?}");
    assert!(listed.contains("kept.txt") && !listed.contains("pg_stat_tmp/junk"));
    let unlogged = entries.iter().filter(|e| e.path.ends_with(b"_init")).count();
    assert!(
        unlogged >= 3,
        "the init forks of a table, its index and its toast: {unlogged}"
    );
    // Permissions are those of the files.
    let files = entries
        .iter()
        .filter(|e| matches!(e.kind, EntryKind::File { .. }) && e.path != b"kept.txt");
    for entry in files {
        assert_eq!(entry.mode, 0o600, "{}", entry.absolute.display());
        assert!(entry.absolute.is_file());
    }
}

#[test]
fn a_backup_session_gives_a_label_and_a_tablespace_map_that_parse() {
    let name = "a_backup_session_gives_a_label_and_a_tablespace_map_that_parse";
    let Some(cluster) = TestCluster::start_or_skip(name, &TestOptions::default()) else {
        return;
    };
    let outside = cluster.scratch().subfolder("t").unwrap();
    let mut other = cluster.session().unwrap();
    other
        .execute(&format!("CREATE TABLESPACE t LOCATION '{}'", outside.display()))
        .unwrap();
    let (mut backup, start) = BackupSession::start(&cluster.conninfo(), "nightly\nSTART", true).unwrap();
    backup.check_alive().unwrap();
    other.execute("CREATE TABLE during (id int)").unwrap();
    let stop = backup.stop().unwrap();
    let label = BackupLabel::parse(std::str::from_utf8(&stop.backup_label).unwrap()).unwrap();
    assert_eq!((label.start, label.timeline.0), (start, 1));
    assert_eq!(label.label, "nightly START");
    assert!(start < stop.lsn && stop.lsn < Lsn(u64::MAX));
    let map = postgres::tablespace_map::parse(&stop.tablespace_map).unwrap();
    assert_eq!(map.len(), 1);
    assert_eq!(map[0].1, outside.to_str().unwrap().as_bytes());

    // A lost session is an aborted backup.
    let (mut backup, _) = BackupSession::start(&cluster.conninfo(), "x", true).unwrap();
    other
        .execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
              WHERE application_name = 'pgproof backup'",
        )
        .unwrap();
    assert_eq!(backup.check_alive().unwrap_err().code(), "backup-aborted");
    assert_eq!(backup.stop().unwrap_err().code(), "backup-aborted");

    // Rights are told as rights.
    other.execute("CREATE ROLE plain LOGIN").unwrap();
    let conninfo = cluster.conninfo().replace("user='postgres'", "user='plain'");
    assert_eq!(
        BackupSession::start(&conninfo, "x", true).err().unwrap().code(),
        "backup-permission"
    );
    let mut plain = Session::connect(&conninfo).unwrap();
    assert_eq!(
        cluster::gather(&mut plain).unwrap_err().code(),
        "server-permission"
    );
    other.execute("GRANT pg_monitor TO plain").unwrap();
    assert!(!cluster::gather(&mut plain).unwrap().is_superuser);
}

#[test]
fn a_switch_happens_even_on_an_idle_server_and_the_archiver_is_watched() {
    let options = TestOptions {
        archive_command: Some("false".into()),
        ..TestOptions::default()
    };
    let Some(cluster) = TestCluster::start_or_skip("a_switch_happens_even_on_an_idle_server", &options)
    else {
        return;
    };
    let mut session = cluster.session().unwrap();
    let facts = facts(&cluster);
    assert_eq!(
        (facts.archive_mode.as_str(), facts.archive_command.as_str()),
        ("on", "false")
    );
    let segment = |lsn: Lsn| lsn.segment(facts.wal_segment_size);
    let mut last = cluster::switch_wal(&mut session).unwrap();
    for _ in 0..3 {
        let end = cluster::switch_wal(&mut session).unwrap();
        assert!(
            segment(end) > segment(last),
            "{end} is in another segment than {last}"
        );
        last = end;
    }
    let mut status = cluster::archiver_status(&mut session).unwrap();
    for _ in 0..100 {
        if status.failed_count > 0 {
            break;
        }
        std::thread::sleep(Duration::from_millis(100));
        status = cluster::archiver_status(&mut session).unwrap();
    }
    assert!(status.is_failing() && status.last_failed.is_some() && status.archived_count == 0);
    assert!(status.ready_files.unwrap().len() >= 4);
}

#[test]
fn configuration_outside_the_data_directory_is_captured_with_its_includes() {
    let Some(mut cluster) = TestCluster::start_or_skip("configuration_outside", &TestOptions::default())
    else {
        return;
    };
    let inside = cluster::captured_configuration(&facts(&cluster), &mut cluster.session().unwrap()).unwrap();
    assert_eq!(inside, []);
    cluster.stop(StopMode::Fast).unwrap();
    let etc = cluster.scratch().path().join("etc");
    fs::create_dir_all(etc.join("conf.d")).unwrap();
    let data = cluster.data_directory().to_path_buf();
    fs::write(
        etc.join("postgresql.conf"),
        "include_dir 'conf.d'\ninclude 'empty.conf'\nhba_file = '../hba/pg_hba.conf'\n"
            .replace("../hba", etc.with_file_name("hba").to_str().unwrap()),
    )
    .unwrap();
    fs::write(etc.join("conf.d/a.conf"), "work_mem = '5MB'\n").unwrap();
    fs::write(etc.join("empty.conf"), "# nothing\n").unwrap();
    fs::create_dir(etc.with_file_name("hba")).unwrap();
    fs::copy(
        data.join("pg_hba.conf"),
        etc.with_file_name("hba").join("pg_hba.conf"),
    )
    .unwrap();
    fs::set_permissions(
        etc.with_file_name("hba").join("pg_hba.conf"),
        std::os::unix::fs::PermissionsExt::from_mode(0o644),
    )
    .unwrap();
    let config_file = etc.join("postgresql.conf").to_str().unwrap().to_string();
    cluster
        .start_options()
        .settings
        .push(("config_file".into(), config_file));
    cluster.start_again().unwrap();
    let captured =
        cluster::captured_configuration(&facts(&cluster), &mut cluster.session().unwrap()).unwrap();
    let names: Vec<_> = captured.iter().map(|file| file.name.as_str()).collect();
    let hba = etc.with_file_name("hba").join("pg_hba.conf");
    let hba = hba.to_str().unwrap().trim_start_matches('/');
    assert_eq!(names, ["conf.d/a.conf", "empty.conf", "postgresql.conf", hba]);
    assert_eq!(captured[0].content, b"work_mem = '5MB'\n");
}

#[test]
fn the_load_keeps_its_own_books_and_digests_see_every_change() {
    let Some(cluster) = TestCluster::start_or_skip("the_load_keeps_its_own_books", &TestOptions::default())
    else {
        return;
    };
    let load = Workload::start(&cluster.conninfo(), 3).unwrap();
    std::thread::sleep(Duration::from_millis(700));
    let statistics = load.stop().unwrap();
    assert!(
        statistics.commits > 20 && statistics.errors.is_empty(),
        "{statistics:?}"
    );
    let mut session = cluster.session().unwrap();
    let books = session
        .one(
            "SELECT (SELECT sum(balance) FROM workload.account) = (SELECT sum(amount) FROM workload.ledger) \
                  + (SELECT sum(amount) FROM workload.trimmed)",
        )
        .unwrap();
    assert_eq!(books, [Some("t".to_string())]);
    let before = row_digest(&cluster.conninfo()).unwrap();
    assert_eq!(before.len(), 3);
    session
        .execute("CLUSTER workload.ledger USING ledger_account")
        .unwrap();
    assert_eq!(row_digest(&cluster.conninfo()).unwrap(), before);
    session
        .execute("UPDATE workload.account SET note = note || 'x' WHERE id = 1")
        .unwrap();
    let after = row_digest(&cluster.conninfo()).unwrap();
    assert_ne!(after["workload.account"], before["workload.account"]);
    assert_eq!(after["workload.ledger"], before["workload.ledger"]);
}
