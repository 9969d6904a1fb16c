//! A server that lets its backups be taken only by who shows a certificate (`hostssl ... cert`): with it they are
//! made and restored; whatever is wrong with certificate or key is told by its own code, and nothing is recorded.

mod support;

use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cluster::StopMode;
use support::{World, give_to_account, openssl, overwrite};
use testing::{Authority, Issued, Validity};

/// Production with TLS, that lets the role `certified` in by its certificate only.
struct Guarded {
    world: World,
    port: u16,
    folder: PathBuf,
    authority: Authority,
    good: Issued,
}

fn guarded(test: &str) -> Option<Guarded> {
    let mut world = World::start(test)?;
    let built = "select 1 from pg_settings where name = 'ssl_library' and setting <> ''";
    if world.session().one(built).is_err() {
        eprintln!("SKIPPED: this PostgreSQL was built without TLS");
        return None;
    }
    let folder = world.scratch().join("tls");
    std::fs::create_dir_all(&folder).expect("folder");
    let authority = Authority::new("the authority of this server");
    std::fs::write(folder.join("ca.crt"), authority.pem()).expect("write");
    authority
        .server(&["localhost"], Validity::Now)
        .write(&folder, "server");
    let good = authority.client("certified", Validity::Now);
    good.write(&folder, "good");
    let revoked = authority.client("certified", Validity::Now);
    revoked.write(&folder, "revoked");
    std::fs::write(folder.join("ca.crl"), authority.revoke(&[&revoked])).expect("write");
    give_to_account(&folder);
    let hba = world.production.data_directory().join("pg_hba.conf");
    overwrite(
        &hba,
        b"local all all trust\nlocal replication all trust\n\
          hostssl all certified 127.0.0.1/32 cert\nhostssl replication certified 127.0.0.1/32 cert\n",
    );
    give_to_account(&hba);
    world
        .session()
        .execute(
            "create role certified login replication; grant pg_monitor to certified; \
             grant execute on function pg_switch_wal() to certified; \
             create table public.orders as select n, md5(n::text) || repeat('x', 200) as v \
               from generate_series(1, 30000) n",
        )
        .expect("a role and rows");
    let port = TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .expect("a port")
        .port();
    world.production.stop(StopMode::Fast).expect("stop");
    let options = world.production.start_options();
    options.port = port;
    let file = |name: &str| folder.join(name).display().to_string();
    for (name, value) in [
        ("listen_addresses", "127.0.0.1".to_owned()),
        ("ssl", "on".to_owned()),
        ("ssl_cert_file", file("server.crt")),
        ("ssl_key_file", file("server.key")),
        ("ssl_ca_file", file("ca.crt")),
        ("ssl_crl_file", file("ca.crl")),
    ] {
        options.settings.push((name.to_owned(), value));
    }
    world.production.start_again().expect("start with TLS");
    Some(Guarded {
        world,
        port,
        folder,
        authority,
        good,
    })
}

impl Guarded {
    fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// The connection string of a backup from elsewhere, that verifies the server, with this behind it.
    fn connection(&self, more: &str) -> String {
        format!(
            "host=localhost hostaddr=127.0.0.1 port={} user=certified dbname=postgres sslmode=verify-full \
             sslrootcert={} {more}",
            self.port,
            self.file("ca.crt").display()
        )
    }

    /// The part of it that names certificate and key.
    fn shown(&self, certificate: &str, key: &str) -> String {
        format!(
            "sslcert={} sslkey={}",
            self.file(certificate).display(),
            self.file(key).display()
        )
    }

    fn configuration(&self, name: &str, connection: &str) -> PathBuf {
        let path = self.world.scratch().join(name);
        let text = format!(
            "[cluster.main]\nconnection = \"{connection}\"\ncopies = [\"local\"]\n\n[copy.local]\n\
             url = \"file://{}\"\nkey = {{ file = \"local.key\" }}\n",
            self.world.repository().display(),
        );
        std::fs::write(&path, text).expect("configuration");
        give_to_account(&path);
        path
    }

    /// Writes a certificate and its key for the account's eyes only.
    fn write(&self, issued: &Issued, name: &str) {
        let (certificate, key) = issued.write(&self.folder, name);
        give_to_account(&certificate);
        give_to_account(&key);
    }

    /// Runs openssl in the folder, and gives what it made to the account.
    fn openssl(&self, arguments: &[&str], made: &str) {
        openssl(&self.folder, arguments);
        set_mode(&self.file(made), 0o600);
        give_to_account(&self.file(made));
    }

    fn backups(&self) -> usize {
        let listed = self.world.json(&["list"]);
        listed["backups"].as_array().map_or(0, Vec::len)
    }
}

fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("mode");
}

#[test]
fn a_backup_over_the_protocol_is_made_with_a_client_certificate_and_restores_the_same_rows() {
    let name = "a_backup_over_the_protocol_is_made_with_a_client_certificate_and_restores_the_same_rows";
    let Some(guarded) = guarded(name) else { return };
    let world = &guarded.world;
    let good = guarded.configuration(
        "good.toml",
        &guarded.connection(&guarded.shown("good.crt", "good.key")),
    );
    let check = world.run_with(&good, &["check", "--json"]).ok().json();
    assert_eq!(check["failed"], 0, "{check:#}");
    assert!(check.to_string().contains("over TLS"), "{check:#}");
    let made = world.run_with(&good, &["backup", "--json"]).ok().json();
    assert!(made["pages_stored"].as_u64() > Some(500), "{made:#}");
    world
        .session()
        .execute("insert into public.orders select n, 'late' from generate_series(30001, 31000) n")
        .expect("rows");
    world.comes_back("restored", &[]);

    // TLS 1.2 shows the certificate at another moment.
    let older = format!(
        "{} ssl_max_protocol_version=TLSv1.2",
        guarded.shown("good.crt", "good.key")
    );
    let older = guarded.configuration("older.toml", &guarded.connection(&older));
    let check = world.run_with(&older, &["check", "--json"]).ok().json();
    assert_eq!(check["failed"], 0, "{check:#}");

    // A service's account gets at a key of root's by its group, as with libpq.
    if rustix::process::geteuid().is_root() {
        let (_, group) = testing::account().expect("account");
        guarded.write(&guarded.good, "shared");
        let key = guarded.file("shared.key");
        set_mode(&key, 0o640);
        chown(&key, Some(0), Some(group)).expect("chown");
        let shared = guarded.configuration(
            "shared.toml",
            &guarded.connection(&guarded.shown("shared.crt", "shared.key")),
        );
        world.run_with(&shared, &["check", "--json"]).ok();
    }
}

#[test]
fn a_certificate_or_key_that_does_not_do_is_told_by_its_own_code_and_nothing_is_recorded() {
    let name = "a_certificate_or_key_that_does_not_do_is_told_by_its_own_code_and_nothing_is_recorded";
    let Some(guarded) = guarded(name) else { return };
    let elsewhere = Authority::new("another authority");
    guarded.write(&elsewhere.client("certified", Validity::Now), "foreign");
    guarded.write(
        &guarded.authority.client("certified", Validity::Expired),
        "expired",
    );
    guarded.write(&guarded.authority.client("somebody", Validity::Now), "somebody");
    guarded.write(&guarded.good, "open");
    set_mode(&guarded.file("open.key"), 0o644);
    guarded.openssl(
        &[
            "pkcs8",
            "-topk8",
            "-v2",
            "aes-256-cbc",
            "-passout",
            "pass:word",
            "-in",
            "good.key",
            "-out",
            "sealed.key",
        ],
        "sealed.key",
    );
    guarded.openssl(
        &[
            "ec",
            "-aes256",
            "-passout",
            "pass:word",
            "-in",
            "good.key",
            "-out",
            "sealed-as-before.key",
        ],
        "sealed-as-before.key",
    );
    std::fs::write(guarded.file("other-ca.crt"), elsewhere.pem()).expect("write");
    std::fs::write(guarded.file("no.key"), &guarded.good.certificate).expect("write");
    set_mode(&guarded.file("no.key"), 0o600);
    give_to_account(&guarded.file("no.key"));
    let shown = |certificate: &str, key: &str| guarded.connection(&guarded.shown(certificate, key));
    let with =
        |name: &str, more: &str| format!("{} {more}", shown(&format!("{name}.crt"), &format!("{name}.key")));
    let good = shown("good.crt", "good.key");
    let cases = [
        (
            "none",
            guarded.connection(""),
            "server-refused",
            "sslcert=FILE sslkey=FILE",
        ),
        (
            "another authority's",
            with("foreign", ""),
            "tls-client-certificate",
            "ssl_ca_file",
        ),
        (
            "another authority's, with TLS 1.2",
            with("foreign", "ssl_max_protocol_version=TLSv1.2"),
            "tls-client-certificate",
            "ssl_ca_file",
        ),
        (
            "an expired one",
            with("expired", ""),
            "tls-client-certificate",
            "expired",
        ),
        (
            "a revoked one",
            with("revoked", ""),
            "tls-client-certificate",
            "ssl_crl_file",
        ),
        (
            "another role's",
            with("somebody", ""),
            "server-refused",
            "common name",
        ),
        (
            "another's key",
            shown("good.crt", "somebody.key"),
            "tls-file",
            "do not fit together",
        ),
        ("a key for everybody", with("open", ""), "tls-file", "chmod 0600"),
        (
            "a key under a passphrase",
            shown("good.crt", "sealed.key"),
            "tls-file",
            "passphrase",
        ),
        (
            "a key under a passphrase in the older form",
            shown("good.crt", "sealed-as-before.key"),
            "tls-file",
            "passphrase",
        ),
        (
            "a key that is not there",
            shown("good.crt", "absent.key"),
            "tls-file",
            "absent.key",
        ),
        (
            "no key",
            shown("good.crt", "no.key"),
            "tls-file",
            "There is no private key",
        ),
        ("a folder", shown("good.crt", ""), "tls-file", "no regular file"),
        (
            "a certificate without its key",
            guarded.connection(&format!("sslcert={}", guarded.file("good.crt").display())),
            "conninfo-syntax",
            "sslkey",
        ),
        (
            "a server that another authority vouches for",
            good.replace("/ca.crt", "/other-ca.crt"),
            "tls-certificate",
            "sslrootcert",
        ),
        (
            "a server of another name",
            good.replace("host=localhost", "host=db.example.org"),
            "tls-certificate",
            "localhost",
        ),
    ];
    for (what, connection, code, words) in cases {
        let configuration = guarded.configuration("refused.toml", &connection);
        let began = Instant::now();
        let ended = guarded.world.run_with(&configuration, &["backup", "--json"]);
        assert_ne!(ended.code, 0, "{what}: {}", ended.stdout);
        let told = &ended.stderr;
        assert!(
            told.contains(&format!("[{code}]")) && told.contains(words),
            "{what}: {told}"
        );
        assert!(!told.contains("PRIVATE KEY"), "{what}: {told}");
        assert!(
            began.elapsed() < Duration::from_secs(30),
            "{what}: {:?}",
            began.elapsed()
        );
    }
    assert_eq!(guarded.backups(), 0);
}
