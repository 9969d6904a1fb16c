//! Makes the beginnings of the corpus anew: real bytes, from the fixtures that PostgreSQL 13 to 18 wrote, from a
//! repository that is made here, and from servers that are started here and listened to.
//!
//!     MAKE_CORPUS=yes cargo test -p pgproof-fuzz --test make_corpus -- --ignored
//!
//! It adds; what is there stays. `fuzz/run --keep` then adds what reaches more code.

#[path = "../../crates/repository/tests/common/mod.rs"]
mod common;
mod recorded;

use std::collections::HashMap;
use std::path::Path;

use common::{Files, Random, back_up, fixture};
use postgres::{SegmentHeader, SegmentIndexer, WalFile};
use repository::{BLOCK_BYTES, Writer, readers};

fn add(target: &str, content: &[u8]) {
    let end = content
        .iter()
        .rposition(|byte| *byte != 0)
        .map_or(0, |last| last + 1);
    // Targets fill segments up with zeros themselves.
    let content = if target.starts_with("wal-") {
        &content[..end]
    } else {
        content
    };
    let folder = fuzz::corpus_folder(target);
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join(fuzz::name_of(content)), content).unwrap();
}

/// What a real server said: a test of the room that reads it follows each of these to its end.
fn add_transcript(target: &str, content: &[u8]) {
    let folder = fuzz::corpus_folder(target);
    std::fs::create_dir_all(&folder).unwrap();
    let name = format!("real-{}", fuzz::name_of(content));
    std::fs::write(folder.join(name), content).unwrap();
}

fn postgresql() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/postgres/tests/fixtures");
    for major in 13..=18 {
        let read = |name: &str| std::fs::read(fixtures.join(format!("{major}/{name}"))).unwrap();
        let mut segment = read("wal");
        add("wal-records", &segment);
        if major == 15 || major == 18 {
            add("wal-segment", &segment);
            recorded::packed(TEXTS[0].1.as_bytes(), &segment);
            // The tail of another segment in front of it.
            let tail = &segment[100..300];
            add(
                "wal-seam",
                &[&(tail.len() as u16).to_le_bytes()[..], tail, &segment].concat(),
            );
        }
        segment.resize(1 << 20, 0);
        let header = SegmentHeader::parse(&segment).unwrap();
        let name = WalFile::Segment {
            timeline: header.timeline,
            number: header.number(),
        };
        add(
            "segment-index",
            &SegmentIndexer::index(&segment, &name, None).unwrap().encode(),
        );
        add("control-file", &read("pg_control"));
        if let Ok(pages) = std::fs::read(fixtures.join(format!("{major}/pages"))) {
            add("page", &pages[..pages.len().min(8192)]);
        }
    }
}

fn repository() {
    let fixture = fixture();
    let mut random = Random(4);
    let mut files = Files::from([
        ("PG_VERSION".to_string(), b"15\n".to_vec()),
        ("base/5/1259".to_string(), random.pages(300)),
        ("base/5/2619".to_string(), random.pages(3)),
        ("base/5/empty".to_string(), Vec::new()),
        ("base/5/zeros".to_string(), vec![0; 5 * BLOCK_BYTES]),
        ("global/pg_control".to_string(), vec![7; 8192]),
        ("pg_wal/".to_string(), Vec::new()),
    ]);
    let (first, _) = back_up(&fixture.cluster, &files, None);
    let changed = random.page();
    files.get_mut("base/5/1259").unwrap()[BLOCK_BYTES..2 * BLOCK_BYTES].copy_from_slice(&changed);
    back_up(&fixture.cluster, &files, Some(&first));
    let writer = Writer {
        host_id: "0f1e2d".into(),
        data_directory: "/var/lib/postgresql/15/main".into(),
    };
    let system = postgres::SystemIdentifier(7_300_000_000_000_000_001);
    fixture
        .cluster
        .claim(system, postgres::TimelineId(1), &writer, common::now())
        .unwrap();
    // A few of each kind are enough: the fuzzer finds the rest.
    let mut count: HashMap<&str, usize> = HashMap::new();
    for (target, content) in readers::plain_parts(&fixture.cluster).unwrap() {
        let count = count.entry(target).or_default();
        *count += 1;
        if *count <= 8 && content.len() < 30_000 {
            add(target, &content);
        }
    }
    for (target, _) in readers::READERS {
        println!("{target}: {}", fuzz::corpus(target).len());
    }
}

/// The facts of real drills.
fn facts() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/report/tests/facts");
    for entry in std::fs::read_dir(folder).unwrap() {
        let text = std::fs::read(entry.unwrap().path()).unwrap();
        let facts: serde_json::Value = serde_json::from_slice(&text).unwrap();
        add("drill-facts", &serde_json::to_vec(&facts).unwrap());
    }
}

/// Texts as PostgreSQL and people write them.
const TEXTS: [(&str, &str); 42] = [
    (
        "backup-label",
        "START WAL LOCATION: 2A/8F000028 (file 000000050000002A0000008F)\nCHECKPOINT LOCATION: 2A/8F000060\n\
         BACKUP METHOD: streamed\nBACKUP FROM: primary\nSTART TIME: 2026-01-25 14:30:00 UTC\nLABEL: pgproof: nightly\n\
         START TIMELINE: 5\n",
    ),
    (
        "tablespace-map",
        "16390 /srv/ts1\n16391 /srv/a\\\nnew line\\\\and more\n",
    ),
    (
        "timeline-history",
        "1\t0/3000148\tno recovery target specified\n\n2\t0/5000000\tbefore 2026-01-25 14:30:00.123+00\n",
    ),
    ("file-names", "000000010000000000000001"),
    ("file-names", "00000002.history"),
    ("file-names", "000000010000000A000000FF.partial"),
    ("file-names", "00000001000000000000000A.00000028.backup"),
    ("file-names", "base/5/16384_fsm.1"),
    ("file-names", "pg_tblspc/16390/PG_15_202209061/5/t3_16391"),
    ("lsn", "2A/8F000060"),
    ("lsn", "7300000000000000001"),
    (
        "catalog",
        r#"{"taken_at":"2026-01-25T14:30:00Z","databases":[{"oid":5,"name":"shop","default_tablespace":1663,"relations":[]}]}"#,
    ),
    (
        "conninfo",
        "host=/var/run/postgresql user=postgres dbname=postgres",
    ),
    (
        "conninfo",
        "host='a b' password='it\\'s \\\\' port=5432 sslmode=disable",
    ),
    (
        "conninfo",
        "postgresql://user:pass%20word@[::1]:5433,other:5434/db?connect_timeout=3&host=/tmp",
    ),
    (
        "conninfo",
        "host=a,/run hostaddr=10.0.0.1, port=1,2 user=u dbname=d connect_timeout=10 keepalives_idle=9 sslmode=require \
         sslcert=/c sslkey=/k ssl_min_protocol_version=TLSv1.3 channel_binding=require target_session_attrs=any",
    ),
    (
        "postmaster-pid",
        "12345\n/var/lib/postgresql/15/main\n1769351400\n5432\n/var/run/postgresql\nlocalhost\n   131072         5\nready   \n",
    ),
    ("time", "2026-01-25 14:30:00 UTC"),
    ("time", "2026-01-25T14:30:00.123456Z"),
    ("time", "2026-03-29 02:30 Europe/Berlin"),
    ("time", "2026-01-25 14:30:00+02"),
    ("time", "1 h 30 min ago"),
    ("time", "10 minutes ago"),
    ("time", "now"),
    ("time", "0/3000060"),
    ("time", "latest"),
    (
        "configuration",
        "[cluster.main]\nconnection = \"host=/tmp user=postgres\"\ncopies = [\"local\"]\nacknowledge = 1\n",
    ),
    (
        "configuration",
        "[copy.local]\nurl = \"file:///var/lib/pgproof\"\nkey = { file = \"/etc/pgproof/local.key\" }\n",
    ),
    (
        "configuration",
        "[copy.x]\nurl = \"file:///r\"\nkey = { passphrase_command = \"cat /x\" }\n[copy.x.retention]\nkeep_last = 3\n",
    ),
    (
        "configuration",
        "[retention]\nrecovery_window = \"30 days\"\ndaily = 7\nweekly = 4\nmonthly = 12\n",
    ),
    (
        "configuration",
        "[drill.q]\nrto = \"90 min\"\nrpo = \"5 min\"\ntarget = \"bracket\"\nchecks = [\"row-proof\", \"amcheck\"]\n",
    ),
    (
        "configuration",
        "[cluster.a]\nconnection = \"postgresql:///x\"\ncopies = [\"l\"]\n[copy.l]\nurl = \"file:///r\"\nkey = { file = \"k\" }\n\
         [drill.q]\n[[drill.q.check]]\nid = \"recent\"\nsql = \"select true\"\nexpect = true\n",
    ),
    ("object-names", "20260815T020003Z"),
    (
        "object-names",
        "clusters/main/wal/7300000000000000001/00000001/00000000/000000010000000000000105.0123456789abcdef0123456789abcdef",
    ),
    (
        "key-file",
        "# The key\npgproof-key-1 0101010101010101010101010101010101010101010101010101010101010101 00000000\n",
    ),
    (
        "store-credentials",
        "[default]\naws_access_key_id = AKIA\naws_secret_access_key = abc=\n\n[profile other]\naws_session_token = t\n",
    ),
    (
        "store-credentials",
        r#"{"Version":1,"AccessKeyId":"AKIA","SecretAccessKey":"s","SessionToken":"t","Expiration":"2026-08-15T02:00:03Z"}"#,
    ),
    (
        "password-file",
        "# a comment\nlocalhost:5432:postgres:postgres:pass\\:word\\\\\n*:*:replication:*:secret\n",
    ),
    (
        "configuration-files",
        "port = 5432\ninclude_dir 'conf.d'\ninclude_if_exists = 'a b.conf' # x\ninclude '../c/./d.conf'\n",
    ),
    (
        "server-log",
        "2026-01-25 14:30:00.123 UTC [77] startup LOG:  recovery stopping before commit of transaction 741, time 2026-01-25\n\
         2026-01-25 14:30:00.123 UTC [77] startup LOG:  pausing at the end of recovery\n\
         2026-01-25 14:30:00.123 UTC [77] startup HINT:  Execute pg_wal_replay_resume() to promote.\n\
         2026-01-25 14:30:01.000 UTC [78] client backend ERROR:  syntax error\n\
         2026-01-25 14:30:02.000 UTC [77] startup LOG:  redo done at 0/3000060 system usage: CPU\n\
         2026-01-25 14:30:02.000 UTC [77] startup FATAL:  recovery ended before configured recovery target was reached\n",
    ),
    (
        "restored-marker",
        r#"{"version":1,"phase":"complete","cluster":"main","backup":"20260815T020003Z",
            "system_identifier":7300000000000000001,"target":"latest","planned_at":"2026-08-15T02:00:03Z",
            "kept_aside":[],"outside":[[16390,"/srv/space"]]}"#,
    ),
    (
        "spool-note",
        r#"{"about":{"version":"0.1.0","boot":"b","system":7300000000000000001,"data_directory":[1,2],"policy":3},
            "file":{"device":1,"inode":2,"size":16777216,"modified":[1786759203,5],"changed":[1786759203,6]},
            "at":"2026-08-15T02:00:03Z","outcome":{"failed":{"code":"store-full","message":"m","causes":["c"],
            "detail":"d","hint":"h"}}}"#,
    ),
];

#[test]
#[ignore = "makes files of the checkout"]
fn the_corpus_begins() {
    // `./test --long` runs what is ignored; it changes no checkout.
    if std::env::var_os("MAKE_CORPUS").is_none() {
        return;
    }
    postgresql();
    repository();
    facts();
    for major in 13..=18 {
        recorded::of_server(major);
    }
    recorded::of_store();
    recorded::certificates();
    for (target, text) in TEXTS {
        add(target, text.as_bytes());
    }
}
