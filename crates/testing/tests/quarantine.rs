//! The quarantine around a real server: what it must not reach, what it must, and that without it the same
//! things work (so that the probes can fail).

use cluster::sandbox::{Report, Spec};
use cluster::{
    InitOptions, Instance, Launcher, LayerState, Network, Quarantine, Session, StartOptions, StopMode,
};
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use testing::{Scratch, TestCluster, TestOptions, account, client_program};

/// How the launcher is started.
#[derive(Clone, Copy, PartialEq, Debug)]
enum As {
    /// As we are: root, or an ordinary account.
    Ourselves,
    /// As PostgreSQL's account even when we are root.
    OrdinaryAccount,
}

struct Scene {
    production: TestCluster,
    tablespace: PathBuf,
    /// Below a hidden folder, and must stay readable.
    repository: PathBuf,
    port: u16,
    scratch: Scratch,
    launcher: PathBuf,
}

impl Scene {
    /// Production with a tablespace and a TCP address, and a repository that lies in its socket folder.
    fn new(test: &str) -> Option<Scene> {
        let port = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let options = TestOptions {
            settings: vec![
                ("listen_addresses".into(), "127.0.0.1".into()),
                ("port".into(), port.to_string()),
                ("unix_socket_permissions".into(), "0777".into()),
            ],
            ..TestOptions::default()
        };
        // The socket's name follows the port.
        let mut production = TestCluster::start_or_skip(test, &options)?;
        production.stop(StopMode::Fast).unwrap();
        production.start_options().port = port;
        production.start_again().unwrap();
        let tablespace = production.scratch().subfolder("ts").unwrap();
        let mut session = production.session().unwrap();
        session
            .execute(&format!(
                "CREATE TABLESPACE ts LOCATION '{}'",
                tablespace.display()
            ))
            .unwrap();
        session
            .execute("CREATE TABLE kept (id int) TABLESPACE ts; INSERT INTO kept VALUES (1)")
            .unwrap();
        let repository = production.socket_directory().join("repository");
        fs::create_dir(&repository).unwrap();
        fs::write(repository.join("segment"), "content").unwrap();
        give(&repository);
        let scratch = Scratch::new("q").unwrap();
        // Where the account may execute it, whatever the permissions of the build folder are.
        let launcher = scratch.path().join("launcher");
        fs::copy(env!("CARGO_BIN_EXE_testing-quarantined"), &launcher).unwrap();
        fs::set_permissions(&launcher, fs::Permissions::from_mode(0o755)).unwrap();
        Some(Scene {
            production,
            tablespace,
            repository,
            port,
            scratch,
            launcher,
        })
    }

    fn spec(&self) -> Spec {
        let folder = self.scratch.subfolder("f").unwrap();
        let quarantine = Quarantine {
            folder,
            hidden: vec![
                self.production.data_directory().into(),
                self.tablespace.clone(),
                self.production.socket_directory().into(),
            ],
            readable: vec![self.repository.clone()],
            network: Network::None,
            addresses: vec![([127, 0, 0, 1], self.port).into()],
        };
        Spec::new(quarantine, None)
    }

    /// The launcher's command line for this spec; as root the spec says whom to become.
    fn launcher(&self, mut spec: Spec, started: As) -> Launcher {
        let root = rustix::process::geteuid().is_root();
        let (uid, gid) = account().unwrap();
        spec.run_as = (root && started == As::Ourselves).then_some((uid, gid));
        let file = self.scratch.path().join("spec.json");
        spec.write(&file).unwrap();
        let mut arguments: Vec<std::ffi::OsString> = vec![];
        let program = match root && started == As::OrdinaryAccount {
            true => {
                arguments.push(format!("--reuid={uid}").into());
                arguments.push(format!("--regid={gid}").into());
                arguments.push("--clear-groups".into());
                arguments.push(self.launcher.clone().into());
                PathBuf::from("/usr/bin/setpriv")
            }
            false => self.launcher.clone(),
        };
        arguments.push(file.into());
        Launcher { program, arguments }
    }

    /// A cluster of its own in the quarantine's folder, started through the launcher or plainly.
    fn copy(&self, launcher: Option<Launcher>, settings: &[(&str, &str)]) -> Instance {
        let folder = self.scratch.path().join("f");
        let options = InitOptions {
            owner: Some(account().unwrap()),
            extra: vec!["--no-sync".into()],
            ..InitOptions::default()
        };
        let mut copy = Instance::init(self.production.programs(), &folder.join("data"), &options).unwrap();
        let mut start = StartOptions::new(&folder, 5432, &folder.join("log"));
        start.launcher = launcher;
        for (name, value) in settings {
            start.settings.push((name.to_string(), value.to_string()));
        }
        if let Err(error) = copy.start(&start) {
            panic!("{}\n{}", error.render(), copy.log_tail(10_000));
        }
        copy
    }
}

fn give(path: &Path) {
    if rustix::process::geteuid().is_root() {
        let (uid, gid) = account().unwrap();
        chown(path, Some(uid), Some(gid)).unwrap();
        for entry in fs::read_dir(path).into_iter().flatten().flatten() {
            chown(entry.path(), Some(uid), Some(gid)).unwrap();
        }
    }
}

/// Does a shell command succeed inside the server? It reads its input first: a program that does not makes
/// COPY fail now and then, whatever it did.
fn succeeds(session: &mut Session, command: &str) -> bool {
    let program = Session::literal(&format!("cat >/dev/null; {{ {command}; }} >/dev/null 2>&1"));
    session
        .execute(&format!("COPY (SELECT 1) TO PROGRAM {program}"))
        .is_ok()
}

/// What an attacker inside could try, by name; true where it worked.
fn attempts(scene: &Scene, session: &mut Session) -> Vec<(&'static str, bool)> {
    let data = scene.production.data_directory().display().to_string();
    let sockets = scene.production.socket_directory().display().to_string();
    let psql = client_program(scene.production.programs(), "psql").expect("psql is installed");
    let psql = psql.display().to_string();
    let pid = fs::read_to_string(format!("{data}/postmaster.pid"))
        .unwrap()
        .lines()
        .next()
        .unwrap()
        .to_string();
    let port = scene.port;
    let other = scene.scratch.subfolder("other").unwrap();
    let results = vec![
        (
            "write into production",
            succeeds(session, &format!("touch {data}/attacked")),
        ),
        (
            "read production",
            succeeds(session, &format!("cat {data}/PG_VERSION")),
        ),
        (
            "write into the tablespace",
            succeeds(session, &format!("touch {}/x", scene.tablespace.display())),
        ),
        (
            "superuser over the socket",
            succeeds(
                session,
                &format!("{psql} -h {sockets} -p {port} -U postgres -c 'select 1' postgres"),
            ),
        ),
        (
            "superuser over TCP",
            succeeds(
                session,
                &format!("{psql} -h 127.0.0.1 -p {port} -U postgres -c 'select 1' postgres"),
            ),
        ),
        (
            "signal the postmaster",
            succeeds(session, &format!("kill -0 {pid}")),
        ),
        (
            "around the mounts",
            succeeds(session, &format!("ls /proc/{pid}/root/tmp")),
        ),
        (
            "write elsewhere",
            succeeds(session, "touch /tmp/pgproof-attacked && rm /tmp/pgproof-attacked"),
        ),
        (
            "a tablespace elsewhere",
            session
                .execute(&format!(
                    "CREATE TABLESPACE t{} LOCATION '{}'",
                    std::process::id(),
                    other.display()
                ))
                .is_ok(),
        ),
    ];
    let _ = fs::remove_file(format!("{data}/attacked"));
    results
}

/// What a copy needs.
fn must_work(scene: &Scene, session: &mut Session) {
    let segment = scene.repository.join("segment");
    assert!(
        succeeds(session, &format!("grep -q content {}", segment.display())),
        "read the repository"
    );
    assert!(
        !succeeds(session, &format!("echo more >> {}", segment.display())),
        "write into the repository"
    );
    session
        .execute("CREATE TABLE public.big AS SELECT i, repeat('x', 100) t FROM generate_series(1, 200000) i")
        .unwrap();
    session
        .execute("ANALYZE public.big; SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0")
        .unwrap();
    session
        .execute("SET min_parallel_table_scan_size = 0; SET max_parallel_workers_per_gather = 2")
        .unwrap();
    let plan = session
        .rows("EXPLAIN (ANALYZE, COSTS OFF) SELECT count(*) FROM public.big WHERE t > 'a'")
        .unwrap();
    let plan = format!("{plan:?}");
    assert!(
        plan.contains("Workers Launched: 2"),
        "parallel workers share memory: {plan}"
    );
    session.execute("CHECKPOINT").unwrap();
}

/// Asked of another program, so that a layer which our own code fails to enter is not taken for the system's
/// refusal.
fn system_offers_namespaces() -> bool {
    let (uid, gid) = account().unwrap();
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--mount", "--net", "--ipc", "true"]);
    if rustix::process::geteuid().is_root() {
        std::os::unix::process::CommandExt::uid(&mut command, uid);
        std::os::unix::process::CommandExt::gid(&mut command, gid);
    }
    command.status().is_ok_and(|status| status.success())
}

fn in_quarantine(test: &str, started: As, namespaces: bool) {
    let Some(scene) = Scene::new(test) else { return };
    let mut spec = scene.spec();
    spec.namespaces = namespaces;
    let mut copy = scene.copy(Some(scene.launcher(spec.clone(), started)), &[]);
    // From outside, over the socket in its folder: the namespaces do not stand in the way.
    let mut session = Session::connect(&copy.conninfo("postgres")).unwrap();
    let report = Report::read(&spec.report).unwrap();
    let layers = &report.layers;
    let probe = |name: &str| -> Vec<_> { report.probes.iter().filter(|probe| probe.name == name).collect() };
    if namespaces {
        if !system_offers_namespaces() || layers.landlock_abi == 0 {
            eprintln!("SKIPPED: {test}: this system gives no {layers:?}");
            return;
        }
        assert_eq!(report.violations(), Vec::<&cluster::Probe>::new());
        for layer in [
            &layers.landlock,
            &layers.user_namespace,
            &layers.mount_namespace,
            &layers.network_namespace,
            &layers.ipc_namespace,
            &layers.no_new_privileges,
        ] {
            assert_eq!(*layer, LayerState::Applied, "{layers:?}");
        }
        assert!(layers.private_shared_memory);
        for (name, count) in [
            ("write-hidden", 4),
            ("read-hidden", 1),
            ("socket-connect", 1),
            ("tcp-connect", 2),
            ("abstract-socket-connect", 1),
            ("signal", 1),
            ("process-root", 1),
            ("write-folder", 1),
            ("read-readable", 1),
        ] {
            let probes = probe(name);
            assert_eq!(probes.len(), count, "{name}: {:#?}", report.probes);
            assert!(probes.iter().all(|probe| probe.held()), "{name}: {probes:#?}");
        }
        for (name, worked) in attempts(&scene, &mut session) {
            assert!(!worked, "{name} worked inside the quarantine");
        }
        // What was put back is read-only for modes and times as well, which Landlock does not guard.
        assert!(!succeeds(
            &mut session,
            &format!("chmod 777 {}/segment", scene.repository.display())
        ));
        let dsm = session.one("SHOW dynamic_shared_memory_type").unwrap();
        assert_eq!(dsm, [Some("posix".to_string())]);
    } else {
        if layers.landlock_abi == 0 {
            eprintln!("SKIPPED: {test}: this system gives no Landlock");
            return;
        }
        assert!(layers.landlock.is_applied() && !layers.mount_namespace.is_applied());
        // Landlock alone hides nothing, so the socket is reached, and the probes say so.
        let violations: Vec<_> = report
            .violations()
            .iter()
            .map(|probe| probe.name.clone())
            .collect();
        assert!(violations.contains(&"socket-connect".to_string()) || layers.landlock_abi >= 9);
        assert!(violations.contains(&"read-hidden".to_string()));
        assert!(probe("write-hidden").iter().all(|probe| probe.held()));
        assert!(probe("write-outside").iter().all(|probe| probe.held()));
        let dsm = session.one("SHOW dynamic_shared_memory_type").unwrap();
        assert_eq!(dsm, [Some("mmap".to_string())]);
    }
    must_work(&scene, &mut session);
    // As root we may be anybody; the server is not root.
    let uid = fs::metadata(format!("/proc/{}", copy.pid().unwrap()))
        .map(|m| std::os::unix::fs::MetadataExt::uid(&m));
    assert_eq!(uid.unwrap(), account().unwrap().0);
    drop(session);
    copy.stop(StopMode::Fast).unwrap();
    // Production noticed nothing.
    let mut production = scene.production.session().unwrap();
    assert_eq!(
        production.one("SELECT count(*) FROM kept").unwrap(),
        [Some("1".to_string())]
    );
}

#[test]
fn a_quarantined_server_reaches_nothing_and_works() {
    in_quarantine(
        "a_quarantined_server_reaches_nothing_and_works",
        As::Ourselves,
        true,
    );
}

#[test]
fn an_ordinary_account_gets_the_same_quarantine_as_root() {
    in_quarantine(
        "an_ordinary_account_gets_the_same_quarantine_as_root",
        As::OrdinaryAccount,
        true,
    );
}

#[test]
fn landlock_alone_denies_writing_and_is_reported_for_what_it_is() {
    in_quarantine("landlock_alone_denies_writing", As::Ourselves, false);
}

#[test]
fn without_quarantine_every_attempt_succeeds() {
    let Some(scene) = Scene::new("without_quarantine_every_attempt_succeeds") else {
        return;
    };
    let _ = scene.spec();
    let copy = scene.copy(None, &[]);
    let mut session = Session::connect(&copy.conninfo("postgres")).unwrap();
    for (name, worked) in attempts(&scene, &mut session) {
        assert!(
            worked,
            "{name} did not even work without quarantine: the tests above show nothing"
        );
    }
}

/// Runs a program in quarantine and gives its success and what it printed.
fn run(launcher: &Launcher, program: &str, arguments: &[&str]) -> (bool, String) {
    let output = Command::new(&launcher.program)
        .args(&launcher.arguments)
        .arg(program)
        .args(arguments)
        .output()
        .unwrap();
    let text = [output.stdout, output.stderr].concat();
    (
        output.status.success(),
        String::from_utf8_lossy(&text).into_owned(),
    )
}

#[test]
fn a_hidden_tmp_does_not_swallow_folder_program_or_repository() {
    let Some(scene) = Scene::new("a_hidden_tmp") else {
        return;
    };
    // A server built from source has its socket in /tmp, and everything in this test lies below it.
    let mut spec = scene.spec();
    spec.quarantine.hidden.push("/tmp".into());
    spec.quarantine.readable.push(scene.scratch.path().join("single"));
    fs::write(scene.scratch.path().join("single"), "a file alone").unwrap();
    for started in [As::Ourselves, As::OrdinaryAccount] {
        let launcher = scene.launcher(spec.clone(), started);
        let script = format!(
            "cat {}/segment {}; ls -A /tmp; ls -A {}; touch {}/mine && echo -n written",
            scene.repository.display(),
            scene.scratch.path().join("single").display(),
            scene.production.scratch().path().display(),
            spec.quarantine.folder.display(),
        );
        let (_, text) = run(&launcher, "/bin/sh", &["-c", &script]);
        let report = Report::read(&spec.report).unwrap();
        if !system_offers_namespaces() {
            eprintln!("SKIPPED: a_hidden_tmp: this system gives no namespaces");
            return;
        }
        assert_eq!(report.violations(), Vec::<&cluster::Probe>::new());
        let name = |path: &Path| path.file_name().unwrap().to_string_lossy().into_owned();
        let mut folders = [
            name(scene.production.scratch().path()),
            name(scene.scratch.path()),
        ];
        folders.sort();
        let expected = format!("contenta file alone{}\n{}\ns\nwritten", folders[0], folders[1]);
        assert_eq!(text, expected, "{started:?}");
    }
}

#[test]
fn root_is_never_handed_to_a_program() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let Some(scene) = Scene::new("root_is_never_handed_to_a_program") else {
        return;
    };
    let mut spec = scene.spec();
    let file = scene.scratch.path().join("spec.json");
    for run_as in [None, Some((0, 0))] {
        spec.run_as = run_as;
        spec.write(&file).unwrap();
        let launcher = Launcher {
            program: scene.launcher.clone(),
            arguments: vec![file.clone().into()],
        };
        let (success, text) = run(&launcher, "/usr/bin/id", &[]);
        assert!(!success && text.contains("error[root-not-allowed]"), "{text}");
    }
    // One group, and neither root nor any other of our groups, of which there are some.
    let mut launcher = scene.launcher(spec.clone(), As::Ourselves);
    let plain = std::mem::replace(&mut launcher.program, "/usr/bin/setpriv".into());
    launcher
        .arguments
        .splice(0..0, ["--groups=0,4,6".into(), plain.into()]);
    let (success, text) = run(&launcher, "/usr/bin/id", &["-G"]);
    assert!(success, "{text}");
    assert_eq!(text.trim(), account().unwrap().1.to_string());
    let (_, text) = run(
        &scene.launcher(spec, As::Ourselves),
        "/bin/cat",
        &["/proc/self/status"],
    );
    for line in [
        "CapEff:\t0000000000000000",
        "CapPrm:\t0000000000000000",
        "NoNewPrivs:\t1",
    ] {
        assert!(text.contains(line), "{line} in {text}");
    }
}

#[test]
fn a_server_that_cannot_be_launched_says_why_in_the_error() {
    let Some(scene) = Scene::new("a_server_that_cannot_be_launched") else {
        return;
    };
    let mut spec = scene.spec();
    spec.report = "/tmp/elsewhere.json".into();
    let launcher = scene.launcher(spec, As::Ourselves);
    let folder = scene.scratch.path().join("f");
    let options = InitOptions {
        owner: Some(account().unwrap()),
        ..InitOptions::default()
    };
    let mut copy = Instance::init(scene.production.programs(), &folder.join("data"), &options).unwrap();
    let mut start = StartOptions::new(&folder, 5432, &folder.join("log"));
    start.launcher = Some(launcher);
    let error = copy.start(&start).unwrap_err();
    assert_eq!(error.code(), "server-start-failed");
    assert!(
        error.render().contains("error[sandbox-spec]"),
        "{}",
        error.render()
    );
}
