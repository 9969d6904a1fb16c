//! Servers that pgproof starts itself: start, stop, promotion, failures; as root and as an ordinary account.

use cluster::{InitOptions, Instance, StartOptions, StopMode};
use postgres::ClusterState;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;
use testing::{Scratch, TestCluster, TestOptions, account, programs_or_skip};

fn state(cluster: &TestCluster) -> ClusterState {
    cluster::read_control_file(cluster.data_directory())
        .unwrap()
        .1
        .state
}

fn process_exists(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

#[test]
fn a_server_is_started_stopped_in_every_way_and_started_again() {
    let Some(mut cluster) = TestCluster::start_or_skip("a_server_is_started", &TestOptions::default()) else {
        return;
    };
    for (mode, after) in [
        (StopMode::Fast, ClusterState::ShutDown),
        (StopMode::Smart, ClusterState::ShutDown),
        (StopMode::Immediate, ClusterState::InProduction),
    ] {
        assert_eq!(state(&cluster), ClusterState::InProduction);
        let pid = cluster.instance().pid().unwrap();
        // Never as root, and with nothing of our environment.
        assert_eq!(
            fs::metadata(format!("/proc/{pid}")).unwrap().uid(),
            account().unwrap().0
        );
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap();
        assert!(!String::from_utf8_lossy(&environment).contains("CARGO"));
        let groups = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let groups = groups
            .lines()
            .find(|line| line.starts_with("Groups:"))
            .unwrap()
            .to_string();
        assert!(
            groups.split_whitespace().skip(1).all(|group| group != "0"),
            "{groups}"
        );
        cluster.stop(mode).unwrap();
        assert!(!cluster.instance().is_running() && !process_exists(pid));
        assert_eq!(state(&cluster), after, "{mode:?}");
        cluster.stop(mode).unwrap();
        cluster.start_again().unwrap();
        cluster.session().unwrap();
    }
}

#[test]
fn a_server_that_ends_while_starting_is_an_error_with_the_end_of_its_log() {
    let Some(mut cluster) = TestCluster::start_or_skip("a_server_that_ends", &TestOptions::default()) else {
        return;
    };
    cluster.stop(StopMode::Fast).unwrap();
    cluster
        .start_options()
        .settings
        .push(("shared_preload_libraries".into(), "no_such_library".into()));
    let error = cluster.start_again().unwrap_err();
    assert_eq!(error.code(), "server-start-failed");
    assert!(
        error.detail_text().unwrap().contains("no_such_library"),
        "{}",
        error.render()
    );
    assert!(!cluster.instance().is_running());
    cluster.start_options().settings.pop();
    cluster.start_again().unwrap();
}

#[test]
fn a_live_directory_is_refused_and_a_leftover_server_is_stopped() {
    let Some(cluster) = TestCluster::start_or_skip("a_live_directory_is_refused", &TestOptions::default())
    else {
        return;
    };
    let directory = cluster.data_directory().to_path_buf();
    let error = Instance::open(cluster.programs(), &directory).err().unwrap();
    assert_eq!(error.code(), "data-directory-live");
    let error = Instance::init(cluster.programs(), &directory, &InitOptions::default())
        .err()
        .unwrap();
    assert_eq!(error.code(), "data-directory-exists");
    assert!(Instance::stop_leftover(&directory, Duration::from_secs(20)).unwrap());
    assert!(!Instance::stop_leftover(&directory, Duration::from_secs(20)).unwrap());
    assert!(Instance::open(cluster.programs(), &directory).is_ok());
}

#[test]
fn dropping_a_running_instance_stops_it() {
    let Some(programs) = programs_or_skip("dropping_a_running_instance_stops_it") else {
        return;
    };
    let scratch = Scratch::new("drop").unwrap();
    let options = InitOptions {
        owner: Some(account().unwrap()),
        ..InitOptions::default()
    };
    let mut instance = Instance::init(&programs, &scratch.path().join("data"), &options).unwrap();
    let folder = scratch.subfolder("s").unwrap();
    instance
        .start(&StartOptions::new(&folder, 5432, &scratch.path().join("log")))
        .unwrap();
    let pid = instance.pid().unwrap();
    assert!(process_exists(pid));
    drop(instance);
    assert!(!process_exists(pid));
}

/// Stops the cluster and makes it recover from its own archive up to a named point.
fn recover(cluster: &mut TestCluster, action: &str) {
    let archive = cluster.scratch().path().join("archive");
    let mut session = cluster.session().unwrap();
    session
        .execute("CREATE TABLE t (id int); INSERT INTO t VALUES (1)")
        .unwrap();
    drop(session);
    let (backup, _) = cluster::BackupSession::start(&cluster.conninfo(), "b", true).unwrap();
    let copy = cluster.scratch().path().join("copy");
    let status = Command::new("cp")
        .arg("-a")
        .args([cluster.data_directory(), &copy])
        .status()
        .unwrap();
    assert!(status.success());
    let stop = backup.stop().unwrap();
    let mut session = cluster.session().unwrap();
    session.execute("SELECT pg_create_restore_point('here')").unwrap();
    session.execute("INSERT INTO t VALUES (2)").unwrap();
    cluster::switch_wal(&mut session).unwrap();
    drop(session);
    cluster.stop(StopMode::Fast).unwrap();
    // The copy takes the place of the original.
    fs::remove_dir_all(cluster.data_directory()).unwrap();
    fs::rename(&copy, cluster.data_directory()).unwrap();
    let data = cluster.data_directory();
    fs::remove_file(data.join("postmaster.pid")).unwrap();
    fs::write(data.join("backup_label"), &stop.backup_label).unwrap();
    fs::write(data.join("recovery.signal"), "").unwrap();
    for file in ["backup_label", "recovery.signal"] {
        let (uid, gid) = account().unwrap();
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(data.join(file), Some(uid), Some(gid)).unwrap();
        }
    }
    for (name, value) in [
        ("restore_command", format!("cp {}/%f %p", archive.display())),
        ("recovery_target_name", "here".to_string()),
        ("recovery_target_action", action.to_string()),
        ("archive_mode", "off".to_string()),
    ] {
        cluster.start_options().settings.push((name.into(), value));
    }
}

fn archiving() -> (Scratch, TestOptions) {
    // The archive is named before the cluster is made, so it has a folder of its own.
    let scratch = Scratch::new("a").unwrap();
    let command = format!("cp %p {}/%f", scratch.path().display());
    (
        scratch,
        TestOptions {
            archive_command: Some(command),
            ..TestOptions::default()
        },
    )
}

#[test]
fn a_recovered_copy_pauses_and_is_promoted() {
    let (archive, options) = archiving();
    let Some(mut cluster) = TestCluster::start_or_skip("a_recovered_copy_pauses", &options) else {
        return;
    };
    std::os::unix::fs::symlink(archive.path(), cluster.scratch().path().join("archive")).unwrap();
    assert_eq!(
        cluster
            .instance()
            .promote(Duration::from_secs(1))
            .unwrap_err()
            .code(),
        "not-in-recovery"
    );
    recover(&mut cluster, "pause");
    cluster.start_again().unwrap();
    let mut session = cluster.session().unwrap();
    let facts = cluster::gather(&mut session).unwrap();
    assert!(facts.in_recovery && facts.timeline.0 == 1 && facts.insert_lsn.0 > 0);
    assert_eq!(
        cluster::switch_wal(&mut session).unwrap_err().code(),
        "server-in-recovery"
    );
    cluster.instance().promote(Duration::from_secs(60)).unwrap();
    let facts = cluster::gather(&mut session).unwrap();
    assert!(!facts.in_recovery);
    assert_eq!(facts.timeline.0, 2);
    assert_eq!(
        session.one("SELECT count(*) FROM t").unwrap(),
        [Some("1".to_string())]
    );
}

#[test]
fn a_recovery_that_shuts_down_at_its_target_is_waited_for() {
    let (archive, options) = archiving();
    let Some(mut cluster) = TestCluster::start_or_skip("a_recovery_that_shuts_down", &options) else {
        return;
    };
    std::os::unix::fs::symlink(archive.path(), cluster.scratch().path().join("archive")).unwrap();
    recover(&mut cluster, "shutdown");
    let start = cluster.start_options().clone();
    let instance = cluster.instance();
    instance.spawn(&start).unwrap();
    let status = instance.wait_ended(Duration::from_secs(60)).unwrap();
    assert!(
        instance
            .log_tail(20_000)
            .contains("recovery stopping at restore point \"here\""),
        "{status}"
    );
    assert_eq!(state(&cluster), ClusterState::ShutDownInRecovery);
}

#[test]
fn an_ordinary_account_runs_these_tests_too() {
    if !rustix::process::geteuid().is_root() || programs_or_skip("an_ordinary_account").is_none() {
        return;
    }
    let scratch = Scratch::new("o").unwrap();
    let program = scratch.path().join("tests");
    fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    let (uid, gid) = account().unwrap();
    let mut command = Command::new("/usr/bin/setpriv");
    command.args([
        format!("--reuid={uid}"),
        format!("--regid={gid}"),
        "--clear-groups".into(),
    ]);
    let output = command
        .arg(&program)
        .args(["--test-threads=2", "--skip", "an_ordinary_account"])
        .current_dir("/")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{text}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
