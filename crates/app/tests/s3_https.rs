//! The whole line with a bucket behind HTTPS and a private authority, which the configuration names (`ca_file`) or the
//! environment (`SSL_CERT_FILE`); and what an operator is told whose certificate is not accepted.

mod support;

use std::path::Path;
use std::time::{Duration, Instant};

use support::{Ended, World, check_of};
use testing::{Authority, S3Server, TlsProxy, Validity};

const BUCKET: &str = "backups";

struct Served {
    _server: S3Server,
    proxy: TlsProxy,
    authority: Authority,
}

fn serve() -> Served {
    let server = S3Server::start(BUCKET);
    let authority = Authority::new("a private authority");
    let proxy = TlsProxy::start(server.address(), &authority.server(&["localhost"], Validity::Now));
    Served {
        _server: server,
        proxy,
        authority,
    }
}

fn into_bucket(served: &Served, scratch: &Path) -> Vec<String> {
    let write = |name: &str, text: &str| {
        let file = scratch.join(name);
        std::fs::write(&file, text).expect("write");
        support::give_to_account(&file);
        file.display().to_string()
    };
    let credentials = write("s3.credentials", &S3Server::credentials_text());
    let authority = write("ca.pem", &served.authority.pem());
    [
        "--repository",
        "s3://backups/production",
        "--endpoint",
        &served.proxy.endpoint(),
        "--ca-file",
        &authority,
        "--region",
        "us-east-1",
        "--credentials-file",
        &credentials,
    ]
    .map(str::to_owned)
    .to_vec()
}

/// Runs the program with this variable beside what it has.
fn with_variable(world: &World, configuration: &Path, variable: (&str, &Path), arguments: &[&str]) -> Ended {
    let mut command = world.command_with(configuration, arguments);
    // Named folders of certificates would count beside the file.
    command.env_remove("SSL_CERT_DIR").env(variable.0, variable.1);
    let output = command.output().expect("it starts");
    Ended::of(&output)
}

#[test]
fn a_cluster_is_backed_up_restored_and_drilled_over_https_with_a_private_authority() {
    let name = "a_cluster_is_backed_up_restored_and_drilled_over_https_with_a_private_authority";
    let served = serve();
    let Some(world) = World::start_with(name, |scratch| into_bucket(&served, scratch)) else {
        return;
    };
    let ca_file = world.scratch().join("ca.pem");
    let shown = world.run(&["config", "show"]).ok().stdout;
    let line = format!("copy.s3.ca_file = {:?}", ca_file.display().to_string());
    assert!(
        shown.contains(&line) && shown.contains("pgproof.toml:"),
        "{shown}"
    );

    let mut session = world.session();
    session
        .execute("create table public.t as select n, md5(n::text) as v from generate_series(1, 30000) n")
        .expect("rows");
    world.json(&["backup"]);
    session
        .execute("insert into public.t select n, 'late' from generate_series(30001, 31000) n")
        .expect("rows");
    world.comes_back("restored", &[]);
    let verified = world.json(&["verify"]);
    assert_eq!(
        verified["findings"].as_array().map(Vec::len),
        Some(0),
        "{verified:#}"
    );
    let drill = world.json(&["drill", "run"]);
    assert_eq!(check_of(&drill, "row-proof")["result"], "PASS", "{drill:#}");
}

#[test]
fn a_certificate_that_is_not_accepted_is_told_by_each_command_in_its_own_way_and_at_once() {
    let name = "a_certificate_that_is_not_accepted_is_told_by_each_command_in_its_own_way_and_at_once";
    let served = serve();
    let Some(world) = World::start_with(name, |scratch| into_bucket(&served, scratch)) else {
        return;
    };
    world.json(&["backup"]);
    let ca_file = world.scratch().join("ca.pem");
    let line = format!("ca_file = {:?}\n", ca_file.display().to_string());
    let told = std::fs::read_to_string(world.scratch().join("pgproof.toml")).expect("the configuration");
    assert!(told.contains(&line), "{told}");
    let configured = |name: &str, ca_file: &str| {
        let path = world.scratch().join(name);
        std::fs::write(&path, told.replace(&line, ca_file)).expect("write");
        support::give_to_account(&path);
        path
    };

    // Nobody names the authority.
    let nobody = configured("nobody.toml", "");
    // Not archived yet, so that no note of an earlier push answers for it.
    let row = world
        .session()
        .one("select pg_walfile_name(pg_current_wal_insert_lsn())")
        .expect("a segment");
    let segment = row[0].clone().expect("its name");
    let placed = world.scratch().join("placed").display().to_string();
    let pushed = world.production.data_directory().join("pg_wal").join(&segment);
    let pushed = pushed.display().to_string();
    for (arguments, code) in [
        (vec!["list"], 1),
        (vec!["backup"], 1),
        (vec!["wal", "get", &segment, &placed], 126),
        (vec!["wal", "push", &pushed], 1),
    ] {
        let began = Instant::now();
        let ended = world.run_with(&nobody, &arguments);
        assert_eq!(ended.code, code, "{arguments:?}: {}", ended.stderr);
        assert!(
            ended.stderr.contains("[store-certificate]"),
            "{arguments:?}: {}",
            ended.stderr
        );
        assert!(
            ended.stderr.contains("ca_file"),
            "{arguments:?}: {}",
            ended.stderr
        );
        assert!(
            began.elapsed() < Duration::from_secs(20),
            "{arguments:?}: {:?}",
            began.elapsed()
        );
    }

    // The environment names it: what this host trusts in all its programs.
    let trusted = with_variable(&world, &nobody, ("SSL_CERT_FILE", &ca_file), &["list", "--json"]);
    let listed = trusted.ok().json();
    assert_eq!(listed["backups"].as_array().map(Vec::len), Some(1), "{listed:#}");

    // A host without any authority says what it lacks, and needs none when the configuration names one.
    let nothing = world.scratch().join("nothing.pem");
    let lacking = with_variable(&world, &nobody, ("SSL_CERT_FILE", &nothing), &["list"]);
    assert_eq!(lacking.code, 2, "{}", lacking.stderr);
    assert!(lacking.stderr.contains("ca-certificates"), "{}", lacking.stderr);
    let good = world.scratch().join("pgproof.toml");
    with_variable(&world, &good, ("SSL_CERT_FILE", &nothing), &["list"]).ok();

    // A file that is named and not there, or holds no certificate.
    for (name, file) in [("absent.toml", "absent.pem"), ("key.toml", "s3.credentials")] {
        let configuration = configured(name, &format!("ca_file = {file:?}\n"));
        let ended = world.run_with(&configuration, &["list"]);
        assert!(
            ended.stderr.contains("[store-options]"),
            "{name}: {}",
            ended.stderr
        );
        assert!(ended.stderr.contains("ca_file"), "{name}: {}", ended.stderr);
        assert!(
            !ended.stderr.contains(S3Server::SECRET_ACCESS_KEY),
            "{name}: {}",
            ended.stderr
        );
    }
}
