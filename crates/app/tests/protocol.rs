//! Backups over the replication protocol, as a user configures them: with TLS and SCRAM, mixed with backups that read
//! the files, from a server that does not archive, and everything that is refused, with its code.

mod support;

use cluster::StopMode;
use serde_json::Value;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use support::{Ended, World, give_to_account, openssl, overwrite};

const TABLES: &str = "
    create table public.orders (id int primary key, v text);
    insert into public.orders select n, md5(n::text) || repeat('x', 200) from generate_series(1, 60000) n;
    create unlogged table public.scratch_pad as select * from public.orders limit 100;
    create table public.notes (id int primary key, v text);
    insert into public.notes select n, md5(n::text) from generate_series(1, 5000) n;";

/// A configuration without data_directory, for the same cluster and repository.
fn configuration(world: &World, name: &str, connection: &str, more: &str) -> PathBuf {
    let path = world.scratch().join(name);
    let text = format!(
        "[cluster.main]\nconnection = \"{connection}\"\ncopies = [\"local\"]\n{more}\n\n[copy.local]\n\
         url = \"file://{}\"\nkey = {{ file = \"{}\" }}\n",
        world.repository().display(),
        world.scratch().join("local.key").display()
    );
    std::fs::write(&path, text).expect("configuration");
    give_to_account(&path);
    path
}

fn run(world: &World, configuration: &Path, arguments: &[&str]) -> Ended {
    let output = world
        .command_with(configuration, arguments)
        .output()
        .expect("the program starts");
    Ended::of(&output)
}

fn backup(world: &World, configuration: &Path) -> Value {
    run(world, configuration, &["backup", "--json"]).ok().json()
}

fn number(value: &Value, key: &str) -> u64 {
    value[key]
        .as_u64()
        .unwrap_or_else(|| panic!("{key} in {value:#}"))
}

/// A port that nobody listens on just now.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .expect("a port")
        .port()
}

/// An authority (`ca.crt`), the server's certificate for localhost, and another authority's (`other.crt`).
fn certificates(folder: &Path) {
    for (name, hash) in [("ca", "-sha256"), ("other", "-sha256")] {
        let (key, certificate) = (format!("{name}.key"), format!("{name}.crt"));
        openssl(
            folder,
            &[
                "req",
                "-x509",
                "-newkey",
                "rsa:2048",
                "-nodes",
                hash,
                "-days",
                "30",
                "-subj",
                "/CN=test authority",
                "-keyout",
                &key,
                "-out",
                &certificate,
            ],
        );
    }
    openssl(
        folder,
        &[
            "req",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-subj",
            "/CN=localhost",
            "-keyout",
            "server.key",
            "-out",
            "server.csr",
        ],
    );
    std::fs::write(
        folder.join("server.ext"),
        "subjectAltName=DNS:localhost\nbasicConstraints=CA:FALSE\n",
    )
    .expect("extensions");
    // SHA-384: channel binding has to take its hash from the certificate.
    openssl(
        folder,
        &[
            "x509",
            "-req",
            "-in",
            "server.csr",
            "-CA",
            "ca.crt",
            "-CAkey",
            "ca.key",
            "-CAcreateserial",
            "-days",
            "30",
            "-sha384",
            "-extfile",
            "server.ext",
            "-out",
            "server.crt",
        ],
    );
}

/// Production listens on a port of localhost, with TLS, and lets the role `replicator` in by SCRAM over TLS only.
fn with_tls(world: &mut World) -> (u16, PathBuf) {
    let folder = world.scratch().join("tls");
    std::fs::create_dir_all(&folder).expect("folder");
    certificates(&folder);
    give_to_account(&folder);
    let data = world.production.data_directory().to_path_buf();
    for file in ["server.key", "server.crt"] {
        std::fs::copy(folder.join(file), data.join(file)).expect("copy");
        overwrite(&data.join(file), &std::fs::read(folder.join(file)).expect("read"));
        give_to_account(&data.join(file));
    }
    overwrite(
        &data.join("pg_hba.conf"),
        b"local all all trust\nlocal replication all trust\n\
          hostssl all replicator,plain 127.0.0.1/32 scram-sha-256\n\
          hostssl replication replicator,plain 127.0.0.1/32 scram-sha-256\n",
    );
    give_to_account(&data.join("pg_hba.conf"));
    world
        .session()
        .execute(
            "set password_encryption = 'scram-sha-256'; \
             create role replicator login replication password 'a secret'; grant pg_monitor to replicator; \
             grant execute on function pg_switch_wal() to replicator; \
             create role plain login password 'a secret'; grant pg_monitor to plain; \
             grant select on all tables in schema public to replicator",
        )
        .expect("roles");
    let port = free_port();
    world.production.stop(StopMode::Fast).expect("stop");
    let options = world.production.start_options();
    options.port = port;
    for (name, value) in [("listen_addresses", "127.0.0.1"), ("ssl", "on")] {
        options.settings.push((name.into(), value.into()));
    }
    world.production.start_again().expect("start with TLS");
    (port, folder)
}

#[test]
fn backups_over_the_protocol_share_pages_with_those_that_read_files_and_restore_the_same_rows() {
    let name = "backups_over_the_protocol_share_pages_with_those_that_read_files_and_restore_the_same_rows";
    let Some(world) = World::start(name) else { return };
    world.session().execute(TABLES).expect("tables");
    let space = world.production.scratch().subfolder("space").expect("folder");
    world
        .session()
        .execute(&format!(
            "create tablespace elsewhere location '{}'",
            space.display()
        ))
        .expect("tablespace");
    world
        .session()
        .execute("create table public.far tablespace elsewhere as select n, md5(n::text) t from generate_series(1, 20000) n")
        .expect("table");
    let protocol = configuration(&world, "protocol.toml", &world.production.conninfo(), "");
    let check = run(&world, &protocol, &["check", "--json"]).ok().json();
    assert_eq!(check["failed"], 0, "{check:#}");

    let first = backup(&world, &protocol);
    assert!(number(&first, "pages_stored") > 1500, "{first:#}");
    // Nothing happened but what a checkpoint and the catalog's own housekeeping write.
    let second = backup(&world, &protocol);
    assert!(
        number(&second, "pages_stored") * 20 < number(&first, "pages_stored"),
        "{second:#}"
    );
    // The same files, read where they lie, and then sent again: pages are told by what they are.
    let direct = world.json(&["backup"]);
    assert!(
        number(&direct, "pages_stored") * 20 < number(&first, "pages_stored"),
        "{direct:#}"
    );
    world
        .session()
        .execute("update public.orders set v = v || '!' where id <= 100")
        .expect("update");
    let last = backup(&world, &protocol);
    let stored = number(&last, "pages_stored");
    assert!(stored * 10 < number(&first, "pages_stored"), "{last:#}");

    let before = testing::row_digest(&world.production.conninfo()).expect("digest");
    world.archive_all();
    for (name, configuration) in [
        ("by-files", world.scratch().join("pgproof.toml")),
        ("by-protocol", protocol),
    ] {
        let into = world.scratch().join(name);
        run(
            &world,
            &configuration,
            &[
                "restore",
                "--to",
                "latest",
                "--into",
                &into.display().to_string(),
                "--json",
            ],
        )
        .ok();
        let restored = world.start_restored(&into);
        assert_eq!(
            testing::row_digest(&restored.conninfo()).expect("digest"),
            before,
            "{name}"
        );
        restored.stop();
    }
    let verify = world.run(&["verify", "--json"]).ok().json();
    assert_eq!(verify["findings"].as_array().map(Vec::len), Some(0), "{verify:#}");
}

#[test]
fn a_server_that_does_not_archive_streams_its_wal_beside_the_backup_under_load() {
    let Some(mut world) =
        World::start("a_server_that_does_not_archive_streams_its_wal_beside_the_backup_under_load")
    else {
        return;
    };
    world.session().execute(TABLES).expect("tables");
    world.production.stop(StopMode::Fast).expect("stop");
    let options = world.production.start_options();
    options.settings.retain(|(name, _)| name != "archive_mode");
    options.settings.push(("archive_mode".into(), "off".into()));
    world.production.start_again().expect("start");
    let protocol = configuration(&world, "protocol.toml", &world.production.conninfo(), "");
    let check = run(&world, &protocol, &["check", "--json"]).ok().json();
    assert_eq!(check["failed"], 0, "{check:#}");

    // The server's own archiver has claimed the timeline: taking it over is a step of its own.
    let second = run(&world, &protocol, &["backup", "--json"]);
    assert!(second.stderr.contains("[wal-second-writer]"), "{}", second.stderr);
    run(
        &world,
        &protocol,
        &["wal", "take-over", "--reason", "the archiver is gone"],
    )
    .ok();

    let load = testing::Workload::start(&world.production.conninfo(), 2).expect("load");
    std::thread::sleep(Duration::from_millis(500));
    let made = backup(&world, &protocol);
    load.stop().expect("the load ends");
    assert!(number(&made, "pages_stored") > 1500, "{made:#}");
    let slots = world
        .session()
        .rows("select slot_name from pg_replication_slots")
        .expect("slots");
    assert!(slots.is_empty(), "{slots:?}");

    let into = world.scratch().join("restored");
    run(
        &world,
        &protocol,
        &[
            "restore",
            "--to",
            "immediate",
            "--into",
            &into.display().to_string(),
            "--json",
        ],
    )
    .ok();
    let restored = world.start_restored(&into);
    let orders = restored
        .session()
        .one("select count(*), sum(id) from public.orders")
        .expect("rows");
    assert_eq!(orders[0].as_deref(), Some("60000"));
    restored.stop();
}

#[test]
fn tls_scram_and_what_is_refused() {
    let Some(mut world) = World::start("tls_scram_and_what_is_refused") else {
        return;
    };
    if world
        .session()
        .one("select 1 from pg_settings where name = 'ssl_library' and setting <> ''")
        .is_err()
    {
        eprintln!("SKIPPED: this PostgreSQL was built without TLS");
        return;
    }
    world.session().execute(TABLES).expect("tables");
    let (port, tls) = with_tls(&mut world);
    let passwords = world.scratch().join("passwords");
    overwrite_new(&passwords, format!("*:{port}:*:*:a secret\n").as_bytes());
    let base = |host: &str, user: &str, more: &str| {
        format!(
            "host={host} hostaddr=127.0.0.1 port={port} user={user} dbname=postgres passfile={} {more}",
            passwords.display()
        )
    };
    let verify = format!("sslmode=verify-full sslrootcert={}", tls.join("ca.crt").display());

    // Bound to the channel by a SHA-384 certificate, as a role without superuser.
    let good = configuration(
        &world,
        "good.toml",
        &base(
            "localhost",
            "replicator",
            &format!("{verify} channel_binding=require"),
        ),
        "",
    );
    let check = run(&world, &good, &["check", "--json"]).ok().json();
    assert_eq!(check["failed"], 0, "{check:#}");
    assert!(check.to_string().contains("over TLS"), "{check:#}");
    let before = run(&world, &good, &["list", "--json"]).ok().json()["backups"].clone();
    let made = backup(&world, &good);
    assert!(number(&made, "pages_stored") > 1500, "{made:#}");

    let other = format!(
        "sslmode=verify-full sslrootcert={}",
        tls.join("other.crt").display()
    );
    let ca = format!("sslmode=verify-ca sslrootcert={}", tls.join("ca.crt").display());
    overwrite_new(&world.scratch().join("wrong"), b"*:*:*:*:another\n");
    let wrong = base("localhost", "replicator", &verify).replace("/passwords", "/wrong");
    for (what, connection, code) in [
        (
            "another host's certificate",
            base("db.example.org", "replicator", &verify),
            "tls-certificate",
        ),
        (
            "another authority",
            base("localhost", "replicator", &other),
            "tls-certificate",
        ),
        (
            "no root",
            base("localhost", "replicator", "sslmode=verify-full"),
            "tls-root-missing",
        ),
        ("a wrong password", wrong, "server-refused"),
        (
            "no TLS",
            base("localhost", "replicator", "sslmode=disable"),
            "server-refused",
        ),
        (
            "no REPLICATION",
            base("localhost", "plain", &verify),
            "replication-permission",
        ),
    ] {
        let configuration = configuration(&world, "refused.toml", &connection, "");
        let ended = run(&world, &configuration, &["backup", "--json"]);
        assert_ne!(ended.code, 0, "{what}");
        assert!(
            ended.stderr.contains(&format!("[{code}]")),
            "{what}: {}",
            ended.stderr
        );
        assert!(!ended.stderr.contains("a secret"), "{what}: {}", ended.stderr);
    }
    // verify-ca looks at the authority alone.
    let connection = base("db.example.org", "replicator", &ca);
    let lenient = configuration(&world, "lenient.toml", &connection, "");
    run(&world, &lenient, &["check", "--json"]).ok();
    let after = run(&world, &good, &["list", "--json"]).ok().json()["backups"].clone();
    assert_eq!(
        after.as_array().map(Vec::len),
        before.as_array().map(|backups| backups.len() + 1),
        "only the good one"
    );
}

fn overwrite_new(path: &Path, content: &[u8]) {
    std::fs::write(path, content).expect("write");
    overwrite(path, content);
    give_to_account(path);
}

/// What happens to a connection when so many bytes came from the server.
#[derive(Clone, Copy, PartialEq)]
enum Fault {
    Cut,
    /// One bit of the stream arrives wrong.
    Flip,
}

/// Passes bytes on, until it does something else on each connection that carries so much.
fn faulty_proxy(server: PathBuf, after_bytes: u64, fault: Fault) -> (u16, Arc<AtomicU64>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("port");
    let port = listener.local_addr().expect("address").port();
    let cuts = Arc::new(AtomicU64::new(0));
    let counted = cuts.clone();
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let Ok(upstream) = std::os::unix::net::UnixStream::connect(&server) else {
                continue;
            };
            let (Ok(mut from_client), Ok(mut to_server)) = (client.try_clone(), upstream.try_clone()) else {
                continue;
            };
            std::thread::spawn(move || {
                let _ = std::io::copy(&mut from_client, &mut to_server);
                let _ = to_server.shutdown(std::net::Shutdown::Write);
            });
            let counted = counted.clone();
            std::thread::spawn(move || pass_back(upstream, client, after_bytes, fault, &counted));
        }
    });
    (port, cuts)
}

fn pass_back(
    mut server: std::os::unix::net::UnixStream,
    mut client: TcpStream,
    after_bytes: u64,
    fault: Fault,
    faults: &AtomicU64,
) {
    let mut passed = 0;
    let mut buffer = vec![0; 64 << 10];
    let mut done = false;
    while let Ok(count) = server.read(&mut buffer) {
        passed += count as u64;
        let now = passed > after_bytes && !done && count > 0;
        if now && fault == Fault::Flip {
            buffer[count / 2] ^= 0x10;
        }
        if count == 0 || client.write_all(&buffer[..count]).is_err() {
            break;
        }
        if now {
            done = true;
            faults.fetch_add(1, Ordering::Relaxed);
            if fault == Fault::Cut {
                break;
            }
        }
    }
    let _ = client.shutdown(std::net::Shutdown::Both);
    let _ = server.shutdown(std::net::Shutdown::Both);
}

#[test]
fn a_connection_that_is_cut_leaves_nothing_but_packs_that_the_next_run_uses() {
    let Some(world) =
        World::start("a_connection_that_is_cut_leaves_nothing_but_packs_that_the_next_run_uses")
    else {
        return;
    };
    world.session().execute(TABLES).expect("tables");
    let socket = world
        .production
        .socket_directory()
        .join(format!(".s.PGSQL.{}", world.production.port()));
    let (port, cuts) = faulty_proxy(socket, 20 << 20, Fault::Cut);
    let user = world.session().one("select current_user").expect("user")[0]
        .clone()
        .expect("user");
    let connection = format!("host=127.0.0.1 port={port} user={user} dbname=postgres sslmode=disable");
    let cut = configuration(&world, "cut.toml", &connection, "");
    let ended = run(&world, &cut, &["backup", "--json"]);
    assert_eq!(ended.code, 1, "{}", ended.stderr);
    assert!(ended.stderr.contains("[replication-lost]"), "{}", ended.stderr);
    assert!(cuts.load(Ordering::Relaxed) >= 1);
    let list = world.json(&["list"]);
    assert_eq!(list["backups"].as_array().map(Vec::len), Some(0), "{list:#}");
    // The server has ended that backup too, and the next one goes through.
    let protocol = configuration(&world, "protocol.toml", &world.production.conninfo(), "");
    let made = backup(&world, &protocol);
    assert!(number(&made, "pages_stored") > 0);
    world.run(&["verify", "--json"]).ok();
}

#[test]
fn a_bit_that_arrives_wrong_is_found_by_the_servers_manifest() {
    let Some(world) = World::start("a_bit_that_arrives_wrong_is_found_by_the_servers_manifest") else {
        return;
    };
    world.session().execute(TABLES).expect("tables");
    let socket = world
        .production
        .socket_directory()
        .join(format!(".s.PGSQL.{}", world.production.port()));
    let (port, flips) = faulty_proxy(socket, 20 << 20, Fault::Flip);
    let user = world.session().one("select current_user").expect("user")[0]
        .clone()
        .expect("user");
    let connection = format!("host=127.0.0.1 port={port} user={user} dbname=postgres sslmode=disable");
    let flipped = configuration(&world, "flipped.toml", &connection, "");
    let ended = run(&world, &flipped, &["backup", "--json"]);
    assert_eq!(ended.code, 1, "{}", ended.stderr);
    assert!(flips.load(Ordering::Relaxed) >= 1);
    assert!(
        ended.stderr.contains("[backup-stream-mismatch]") || ended.stderr.contains("[backup-stream-damaged]"),
        "{}",
        ended.stderr
    );
    assert_eq!(world.json(&["list"])["backups"].as_array().map(Vec::len), Some(0));
}

#[test]
fn configuration_outside_the_data_directory_is_recorded_as_missing_and_generated_by_a_restore() {
    let name = "configuration_outside_the_data_directory_is_recorded_as_missing_and_generated_by_a_restore";
    let Some(mut world) = World::start(name) else {
        return;
    };
    let outside = world.production.scratch().subfolder("etc").expect("folder");
    let hba = outside.join("pg_hba.conf");
    let trust = b"local all all trust\nlocal replication all trust\n";
    overwrite_new(&hba, trust);
    world.production.stop(StopMode::Fast).expect("stop");
    let options = world.production.start_options();
    options
        .settings
        .push(("hba_file".into(), hba.display().to_string()));
    world.production.start_again().expect("start");
    // Where it would be found if it had not been moved away, as on Debian.
    std::fs::remove_file(world.production.data_directory().join("pg_hba.conf")).expect("remove");
    world.session().execute(TABLES).expect("tables");
    let protocol = configuration(&world, "protocol.toml", &world.production.conninfo(), "");
    let shown = run(&world, &protocol, &["backup", "--dry-run", "--json"])
        .ok()
        .json();
    assert!(shown.to_string().contains("etc/pg_hba.conf"), "{shown:#}");
    backup(&world, &protocol);
    let before = testing::row_digest(&world.production.conninfo()).expect("digest");
    world.archive_all();
    let into = world.scratch().join("restored");
    let plan = run(
        &world,
        &protocol,
        &[
            "restore",
            "--to",
            "latest",
            "--into",
            &into.display().to_string(),
            "--json",
        ],
    )
    .ok();
    assert!(plan.stdout.contains("was not captured"), "{}", plan.stdout);
    let generated = std::fs::read_to_string(into.join("pg_hba.conf")).expect("pg_hba.conf");
    assert!(generated.contains("Generated by pgproof"), "{generated}");
    // It lets in the account that runs the server, which this test may not be.
    overwrite_new(&into.join("pg_hba.conf"), trust);
    let restored = world.start_restored(&into);
    assert_eq!(testing::row_digest(&restored.conninfo()).expect("digest"), before);
    restored.stop();
}

#[test]
fn a_tablespace_in_place_is_sent_and_restored_or_the_backup_is_refused_by_name() {
    let Some(world) =
        World::start("a_tablespace_in_place_is_sent_and_restored_or_the_backup_is_refused_by_name")
    else {
        return;
    };
    let mut session = world.session();
    if session.version_num() < 150_000 {
        return; // there are none
    }
    for statement in [
        "set allow_in_place_tablespaces = on",
        "create tablespace inside location ''",
        "create table public.inner_table tablespace inside as select n from generate_series(1, 5000) n",
    ] {
        session.execute(statement).expect(statement);
    }
    let protocol = configuration(&world, "protocol.toml", &world.production.conninfo(), "");
    let ended = run(&world, &protocol, &["backup", "--json"]);
    if session.version_num() < 160_000 && ended.code == 1 {
        assert!(ended.stderr.contains("[tablespace-not-sent]"), "{}", ended.stderr);
        return;
    }
    ended.ok();
    let before = testing::row_digest(&world.production.conninfo()).expect("digest");
    world.archive_all();
    let into = world.scratch().join("restored");
    run(
        &world,
        &protocol,
        &[
            "restore",
            "--to",
            "latest",
            "--into",
            &into.display().to_string(),
            "--json",
        ],
    )
    .ok();
    // PostgreSQL's own rule: recovery takes directories in pg_tblspc only where they are allowed.
    let conf = into.join("postgresql.conf");
    let mut text = std::fs::read_to_string(&conf).expect("postgresql.conf");
    text.push_str("\nallow_in_place_tablespaces = on\n");
    overwrite_new(&conf, text.as_bytes());
    let restored = world.start_restored(&into);
    assert_eq!(testing::row_digest(&restored.conninfo()).expect("digest"), before);
    restored.stop();
}

#[test]
fn a_server_that_is_killed_while_it_sends_leaves_the_state_intact() {
    let Some(mut world) = World::start("a_server_that_is_killed_while_it_sends_leaves_the_state_intact")
    else {
        return;
    };
    world.session().execute(TABLES).expect("tables");
    let socket = world
        .production
        .socket_directory()
        .join(format!(".s.PGSQL.{}", world.production.port()));
    let (port, passed) = slow_proxy(socket);
    let user = world.session().one("select current_user").expect("user")[0]
        .clone()
        .expect("user");
    let connection = format!("host=127.0.0.1 port={port} user={user} dbname=postgres sslmode=disable");
    let slow = configuration(&world, "slow.toml", &connection, "");
    let child = world
        .command_with(&slow, &["backup", "--json"])
        .stderr(std::process::Stdio::piped())
        .stdout(std::process::Stdio::null())
        .spawn()
        .expect("the program starts");
    let end = std::time::Instant::now() + Duration::from_secs(60);
    while passed.load(Ordering::Relaxed) < 8 << 20 {
        assert!(std::time::Instant::now() < end, "the backup does not come so far");
        std::thread::sleep(Duration::from_millis(20));
    }
    world.production.stop(StopMode::Immediate).expect("stop");
    let output = child.wait_with_output().expect("the program ends");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(
        stderr.contains("[replication-lost]") || stderr.contains("[connection-lost]"),
        "{stderr}"
    );
    world.production.start_again().expect("start");
    assert_eq!(world.json(&["list"])["backups"].as_array().map(Vec::len), Some(0));
    let protocol = configuration(&world, "protocol.toml", &world.production.conninfo(), "");
    backup(&world, &protocol);
}

/// Runs `wal receive` until it is dropped.
struct Receiver(std::process::Child);

impl Receiver {
    fn start(world: &World, configuration: &Path) -> Receiver {
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(world.scratch().join("receive.log"))
            .expect("log");
        let child = world
            .command_with(configuration, &["wal", "receive"])
            .stdout(log.try_clone().expect("log"))
            .stderr(log)
            .spawn()
            .expect("the receiver starts");
        Receiver(child)
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_receiver_that_was_killed_goes_on_without_a_gap_and_recovery_reaches_any_moment() {
    let name = "a_receiver_that_was_killed_goes_on_without_a_gap_and_recovery_reaches_any_moment";
    let Some(mut world) = World::start(name) else {
        return;
    };
    world.session().execute(TABLES).expect("tables");
    world.production.stop(StopMode::Fast).expect("stop");
    let options = world.production.start_options();
    options.settings.retain(|(name, _)| name != "archive_mode");
    options.settings.push(("archive_mode".into(), "off".into()));
    world.production.start_again().expect("start");
    let protocol = configuration(
        &world,
        "protocol.toml",
        &world.production.conninfo(),
        "wal = \"archived\"",
    );
    run(&world, &protocol, &["wal", "take-over"]).ok();
    let receiver = Receiver::start(&world, &protocol);
    let connected = |world: &World| {
        let rows = world
            .session()
            .rows("select 1 from pg_stat_replication where application_name like 'pgproof receive%'")
            .expect("senders");
        !rows.is_empty()
    };
    let wait_for = |what: &str, holds: &dyn Fn() -> bool| {
        let end = std::time::Instant::now() + Duration::from_secs(60);
        while !holds() {
            let log = std::fs::read_to_string(world.scratch().join("receive.log")).unwrap_or_default();
            assert!(std::time::Instant::now() < end, "{what}:\n{log}");
            std::thread::sleep(Duration::from_millis(50));
        }
    };
    wait_for("the receiver connects", &|| connected(&world));
    let made = backup(&world, &protocol);
    assert!(number(&made, "pages_stored") > 0);
    let load = testing::Workload::start(&world.production.conninfo(), 2).expect("load");
    for _ in 0..3 {
        cluster::archiving::switch_wal(&mut world.session()).expect("switch");
        std::thread::sleep(Duration::from_millis(200));
    }
    drop(receiver); // SIGKILL
    for _ in 0..3 {
        cluster::archiving::switch_wal(&mut world.session()).expect("switch");
        std::thread::sleep(Duration::from_millis(200));
    }
    let _receiver = Receiver::start(&world, &protocol);
    load.stop().expect("the load ends");
    let before = testing::row_digest(&world.production.conninfo()).expect("digest");
    let end = cluster::archiving::switch_wal(&mut world.session()).expect("switch");
    wait_for("the slot is told", &|| {
        let row = world
            .session()
            .one(&format!(
                "select bool_and(restart_lsn >= '{end}') from pg_replication_slots"
            ))
            .expect("slot");
        row[0].as_deref() == Some("t")
    });
    run(&world, &protocol, &["wal", "gaps"]).ok();
    let into = world.scratch().join("restored");
    run(
        &world,
        &protocol,
        &[
            "restore",
            "--to",
            "latest",
            "--into",
            &into.display().to_string(),
            "--json",
        ],
    )
    .ok();
    let restored = world.start_restored(&into);
    assert_eq!(testing::row_digest(&restored.conninfo()).expect("digest"), before);
    restored.stop();
}

/// Passes bytes on, the server's about 4 MB in a second, and counts them.
fn slow_proxy(server: PathBuf) -> (u16, Arc<AtomicU64>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("port");
    let port = listener.local_addr().expect("address").port();
    let passed = Arc::new(AtomicU64::new(0));
    let counted = passed.clone();
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let Ok(upstream) = std::os::unix::net::UnixStream::connect(&server) else {
                continue;
            };
            let (Ok(mut from_client), Ok(mut to_server)) = (client.try_clone(), upstream.try_clone()) else {
                continue;
            };
            std::thread::spawn(move || {
                let _ = std::io::copy(&mut from_client, &mut to_server);
                let _ = to_server.shutdown(std::net::Shutdown::Write);
            });
            let counted = counted.clone();
            std::thread::spawn(move || {
                let (mut server, mut client) = (upstream, client);
                let mut buffer = vec![0; 16 << 10];
                while let Ok(count) = server.read(&mut buffer) {
                    if count == 0 || client.write_all(&buffer[..count]).is_err() {
                        break;
                    }
                    counted.fetch_add(count as u64, Ordering::Relaxed);
                    if count == buffer.len() {
                        std::thread::sleep(Duration::from_millis(4));
                    }
                }
                let _ = client.shutdown(std::net::Shutdown::Both);
            });
        }
    });
    (port, passed)
}

#[test]
fn a_page_that_is_damaged_on_the_server_fails_the_backup_over_the_protocol_by_name() {
    let name = "a_page_that_is_damaged_on_the_server_fails_the_backup_over_the_protocol_by_name";
    let Some(mut world) = World::start(name) else {
        return;
    };
    world.session().execute(TABLES).expect("tables");
    let path = world
        .session()
        .one("select pg_relation_filepath('public.notes')")
        .expect("path")[0]
        .clone()
        .expect("path");
    world.production.stop(StopMode::Fast).expect("stop");
    let file = world.production.data_directory().join(path);
    let mut content = std::fs::read(&file).expect("read");
    content[3 * 8192 + 4000] ^= 1;
    overwrite(&file, &content);
    give_to_account(&file);
    world.production.start_again().expect("start");
    let protocol = configuration(&world, "protocol.toml", &world.production.conninfo(), "");
    let ended = run(&world, &protocol, &["backup", "--json"]);
    assert_eq!(ended.code, 1, "{}", ended.stderr);
    assert!(
        ended.stderr.contains("[backup-server-checksum]"),
        "{}",
        ended.stderr
    );
}
