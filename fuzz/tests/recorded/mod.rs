//! Seeds that real programs write: conversations with PostgreSQL 13 to 18 and answers of an S3 store through a
//! recorder, and what is in them, cut down to what is small.

mod shorten;

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use cluster::replication::{BackupPart, BaseBackupCommand, ReplicationSession, WalData, WalStream};
use cluster::{Session, StopMode};
use postgres::{Lsn, Major, TimelineId};
use repository::{S3Credentials, S3Keys, S3Options, S3Store, Store};
use testing::{MotoServer, TestCluster, TestOptions};

use crate::{add, add_transcript};

const LIMIT: Duration = Duration::from_secs(60);

/// Stands between a client and a server, and remembers what the server says.
#[derive(Clone, Default)]
struct Recorder(Arc<Mutex<Vec<u8>>>);

impl Recorder {
    /// Before a server's socket; clients find it in `folder`.
    fn before_socket(server: &Path, folder: &Path) -> Recorder {
        let recorder = Recorder::default();
        let listener = UnixListener::bind(folder.join(".s.PGSQL.5432")).unwrap();
        let (server, said) = (server.to_owned(), recorder.clone());
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let server = UnixStream::connect(&server).unwrap();
                let (to_client, to_server) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                std::thread::spawn(move || {
                    pump(client, &to_server, |_| ());
                    let _ = to_server.shutdown(Shutdown::Both);
                });
                let said = said.clone();
                std::thread::spawn(move || pump(server, &to_client, |bytes| said.note(bytes)));
            }
        });
        recorder
    }

    /// Before a server of HTTP; where clients find it.
    fn before_store(server: SocketAddr) -> (Recorder, SocketAddr) {
        let recorder = Recorder::default();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let said = recorder.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let server = TcpStream::connect(server).unwrap();
                let (to_client, to_server) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                std::thread::spawn(move || pump(client, &to_server, |_| ()));
                let said = said.clone();
                std::thread::spawn(move || pump(server, &to_client, |bytes| said.note(bytes)));
            }
        });
        (recorder, address)
    }

    fn note(&self, bytes: &[u8]) {
        self.0.lock().unwrap().extend_from_slice(bytes);
    }

    /// What was said since it was last taken.
    fn take(&self) -> Vec<u8> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

fn pump(mut from: impl Read, mut to: impl Write, note: impl Fn(&[u8])) {
    let mut buffer = [0; 64 << 10];
    while let Ok(count) = from.read(&mut buffer) {
        // Noted before it arrives: whoever has an answer finds it recorded.
        note(&buffer[..count]);
        if count == 0 || to.write_all(&buffer[..count]).is_err() {
            return;
        }
    }
}

/// What servers of one major say.
pub fn of_server(major: u16) {
    let Some(programs) = testing::programs_of_major_or_skip("make_corpus", major) else {
        return;
    };
    let options = TestOptions {
        checksums: true,
        wal_segment_size: Some(1 << 20),
        programs: Some(programs),
        settings: vec![("max_wal_senders".into(), "4".into())],
        ..TestOptions::default()
    };
    let mut server = TestCluster::start(&options).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let socket = server.socket_directory().join(".s.PGSQL.5432");
    let recorder = Recorder::before_socket(&socket, folder.path());
    let place = folder.path().display().to_string();
    let conninfo = server
        .conninfo()
        .replace(&server.socket_directory().display().to_string(), &place);

    let mut session = Session::connect(&conninfo).unwrap();
    add_transcript("server-login", &recorder.take());
    cluster::gather(&mut session).unwrap();
    cluster::archiver_status(&mut session).unwrap();
    cluster::control_facts(&mut session).unwrap();
    add_transcript("server-answers", &recorder.take());
    cluster::read_catalog(&conninfo, jiff::Timestamp::UNIX_EPOCH).unwrap();
    add_transcript("server-answers", &shorten::largest_result(&recorder.take(), 12));

    // A base that is whole, and further down one that lacks its tablespace.
    let (_, base) = base_backup(&conninfo, major, &recorder);
    add("import-archive", &gzip(&shorten::as_base_archive(&base)));
    let space = server.scratch().subfolder("space").unwrap();
    session
        .execute(&format!("CREATE TABLESPACE space LOCATION '{}'", space.display()))
        .unwrap();
    session
        .execute("CREATE TABLE public.t (id int) TABLESPACE space")
        .unwrap();
    recorder.take();
    let (start, base) = base_backup(&conninfo, major, &recorder);
    add_transcript("server-base-backup", &base.conversation);
    for (at, archive) in base.archives.iter().enumerate() {
        if at == 0 || major % 2 == 1 {
            add("backup-tar", archive);
        }
    }
    add("server-manifest", &base.manifest);
    let archive = shorten::as_base_archive(&base);
    match major {
        13 | 18 => add("import-archive", &archive),
        _ => add("import-archive", &gzip(&archive)),
    }
    wal(&conninfo, start, &recorder);
    if major == 15 {
        passwords(&server, &place, &recorder);
        end_of_timeline(&mut server, &conninfo, &recorder);
    }
}

fn base_backup(conninfo: &str, major: u16, recorder: &Recorder) -> (Lsn, shorten::BaseBackup) {
    let session = ReplicationSession::connect(conninfo, "recorded", LIMIT).unwrap();
    recorder.take();
    let command = BaseBackupCommand {
        major: Major(major),
        label: "recorded".into(),
        fast_checkpoint: true,
        start_limit: LIMIT,
        silence_limit: LIMIT,
    };
    let mut stream = session.base_backup(&command).unwrap();
    while !matches!(stream.next_part().unwrap(), BackupPart::End { .. }) {}
    (stream.start, shorten::base_backup(&recorder.take(), major >= 15))
}

fn receive(stream: &mut WalStream) -> WalData {
    let end = Instant::now() + LIMIT;
    loop {
        match stream.receive(Duration::from_millis(100)).unwrap() {
            WalData::Nothing => assert!(Instant::now() < end, "no WAL comes"),
            data => return data,
        }
    }
}

fn wal(conninfo: &str, start: Lsn, recorder: &Recorder) {
    let mut session = ReplicationSession::connect(conninfo, "recorded", LIMIT).unwrap();
    recorder.take();
    session.identify_system().unwrap();
    add_transcript("server-answers", &recorder.take());
    let mut stream = session.start_wal(None, start, TimelineId(1)).unwrap();
    receive(&mut stream);
    stream.report().unwrap();
    add_transcript("server-wal", &shorten::wal(start, &recorder.take()));
}

/// Logins by each method, and those that are refused.
fn passwords(server: &TestCluster, place: &str, recorder: &Recorder) {
    let mut session = server.session().unwrap();
    let hba = server.data_directory().join("pg_hba.conf");
    let lines = std::fs::read_to_string(&hba).unwrap();
    let mut more = String::new();
    for (role, encryption, method) in [
        ("s", "scram-sha-256", "scram-sha-256"),
        ("m", "md5", "md5"),
        ("p", "md5", "password"),
        ("r", "md5", "reject"),
    ] {
        session
            .execute(&format!(
                "SET password_encryption = '{encryption}'; CREATE ROLE {role} LOGIN PASSWORD 'secret'"
            ))
            .unwrap();
        more.push_str(&format!("local all {role} {method}\n"));
    }
    std::fs::write(&hba, more + &lines).unwrap();
    add("configuration-files", &std::fs::read(&hba).unwrap());
    session.execute("SELECT pg_reload_conf()").unwrap();
    std::thread::sleep(Duration::from_millis(500));
    for role in ["s", "m", "p", "r"] {
        recorder.take();
        let conninfo = format!("host={place} port=5432 user={role} password=secret dbname=postgres");
        assert_eq!(Session::connect(&conninfo).is_ok(), role != "r", "{role}");
        add_transcript("server-login", &recorder.take());
    }
}

/// A standby that was promoted: timeline 1 ends, and the server says which one comes next.
fn end_of_timeline(server: &mut TestCluster, conninfo: &str, recorder: &Recorder) {
    server.stop(StopMode::Fast).unwrap();
    std::fs::write(server.data_directory().join("standby.signal"), "").unwrap();
    server.start_again().unwrap();
    let mut session = server.session().unwrap();
    let row = session.one("SELECT pg_last_wal_replay_lsn()").unwrap();
    let replayed: Lsn = row[0].as_deref().unwrap().parse().unwrap();
    session.execute("SELECT pg_promote()").unwrap();
    let mut replication = ReplicationSession::connect(conninfo, "recorded", LIMIT).unwrap();
    recorder.take();
    let history = replication.timeline_history(TimelineId(2)).unwrap();
    add_transcript("server-answers", &recorder.take());
    add("timeline-history", &history);
    // From the last record on, so that little comes.
    let start = Lsn(replayed.0 & !0x1FFF);
    let mut stream = replication.start_wal(None, start, TimelineId(1)).unwrap();
    while receive(&mut stream) != WalData::EndOfTimeline {}
    let (mut replication, next) = stream.next_timeline().unwrap();
    assert_eq!(next.unwrap().0, TimelineId(2));
    replication.identify_system().unwrap();
    add_transcript("server-wal", &shorten::wal(start, &recorder.take()));
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn lz4(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = lz4_flex::frame::FrameEncoder::new(Vec::new());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Certificates as `openssl` makes them, with each kind of signature, with and without alternative names.
pub fn certificates() {
    let elliptic = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"];
    let pss = ["-newkey", "rsa:2048", "-sigopt", "rsa_padding_mode:pss"];
    let kinds: [(&[&str], &str); 5] = [
        (&["-newkey", "rsa:2048"], "-sha256"),
        (&elliptic, "-sha384"),
        (&pss, "-sha512"),
        (&["-newkey", "ed25519"], "-sha256"),
        (&["-newkey", "rsa:2048"], "-sha1"),
    ];
    for (at, (kind, hash)) in kinds.into_iter().enumerate() {
        let mut command = Command::new("openssl");
        command.args([
            "req",
            "-x509",
            "-nodes",
            "-days",
            "30",
            "-subj",
            "/O=pgproof/CN=db.example.org",
        ]);
        command
            .args(["-keyout", "/dev/null", "-outform", "DER", hash])
            .args(kind);
        if at % 2 == 1 {
            command.args(["-addext", "subjectAltName=DNS:db.example.org"]);
        }
        let output = command.output().unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        add("server-certificate", &output.stdout);
    }
}

/// Packed by the libraries that tools of today are built with.
pub fn packed(label: &[u8], segment: &[u8]) {
    let mut whole = segment.to_vec();
    whole.resize(1 << 20, 0);
    for pack in [gzip, |bytes: &[u8]| zstd::encode_all(bytes, 19).unwrap(), lz4] {
        add("import-packed", &pack(label));
        add("import-wal-file", &pack(&whole));
    }
}

/// Everything that is asked of a store, answered by a simulator of S3 as S3 does.
pub fn of_store() {
    let Some(moto) = MotoServer::start_or_skip("make_corpus", "backups") else {
        return;
    };
    let (recorder, address) = Recorder::before_store(moto.address());
    let keys = S3Keys {
        access_key_id: "id".into(),
        secret_access_key: "key".to_owned().into(),
        session_token: None,
        good_for: None,
    };
    let options = S3Options {
        endpoint: Some(format!("http://{address}")),
        path_style: true,
        allow_http: true,
        credentials: S3Credentials::Source(Arc::new(move || Ok(keys.clone()))),
        retry_for: Duration::ZERO,
        ..S3Options::default()
    };
    let store = S3Store::new("s3://backups/some/prefix", options.clone()).unwrap();
    type Operation = fn(&S3Store) -> diagnostic::Result<()>;
    let operations: [Operation; 13] = [
        |store| store.put_new("a/bc", b"abc").map(drop),
        // Not there, although something begins so: a listing tells.
        |store| store.size("a/b").map(drop),
        |store| store.put_new("a/bd", b"abc").map(drop),
        |store| store.size("a/b").map(drop),
        |store| store.read("a/b").map(drop),
        |store| store.put_new("a/b", b"0123456789").map(drop),
        |store| store.put_new("a/b", b"other").map(drop),
        |store| store.list("a/").map(drop),
        |store| store.put_new("a/x/y", b"").map(drop),
        |store| store.list_folders("a/").map(drop),
        |store| store.read("a/b").map(drop),
        |store| store.read_range_into("a/b", 2, &mut [0; 5]),
        |store| {
            store.read_range_into("a/b", 200, &mut [0; 5]).unwrap_err();
            store.delete("a/b")
        },
    ];
    for operation in operations {
        operation(&store).unwrap();
        add("s3-answers", &recorder.take());
    }
    let elsewhere = S3Store::new("s3://no-such-bucket", options).unwrap();
    elsewhere.list("a/").unwrap_err();
    add("s3-answers", &recorder.take());
}
