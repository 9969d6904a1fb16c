//! A repository with one object of each kind, in which every byte is flipped once and every object is cut at
//! every length: `verify` names the object, and nothing that is read back differs.

mod common;

use common::*;
use postgres::{SegmentIndexer, SystemIdentifier, TimelineId, WalFile};
use repository::{Backup, Repository, Store, VerifyOptions, WalFileKind, verify};

const SYSTEM: SystemIdentifier = SystemIdentifier(7_300_000_000_000_000_001);
const SEGMENT_BYTES: u32 = 1 << 20;

struct Small {
    fixture: Fixture,
    files: Files,
    backups: Vec<Backup>,
    segment: Vec<u8>,
}

fn segment() -> (WalFile, Vec<u8>) {
    let mut bytes = vec![0; SEGMENT_BYTES as usize];
    bytes[0..2].copy_from_slice(&0xD110u16.to_le_bytes());
    bytes[2..4].copy_from_slice(&2u16.to_le_bytes());
    bytes[4..8].copy_from_slice(&1u32.to_le_bytes());
    bytes[8..16].copy_from_slice(&(5 * u64::from(SEGMENT_BYTES)).to_le_bytes());
    bytes[24..32].copy_from_slice(&SYSTEM.0.to_le_bytes());
    bytes[32..36].copy_from_slice(&SEGMENT_BYTES.to_le_bytes());
    bytes[36..40].copy_from_slice(&8192u32.to_le_bytes());
    let name = WalFile::Segment {
        timeline: TimelineId(1),
        number: 5,
    };
    (name, bytes)
}

/// As few bytes as possible, and something of everything.
fn small() -> Small {
    let fixture = fixture();
    let page = Random(1).page();
    let mut files = Files::new();
    files.insert("PG_VERSION".into(), b"15\n".to_vec());
    files.insert("base/5/".into(), Vec::new());
    files.insert("base/5/1".into(), page.repeat(3));
    files.insert("base/5/2".into(), page.repeat(40));
    files.insert("global/pg_control".into(), page.clone());
    let (first, _) = back_up(&fixture.cluster, &files, None);
    files.insert("base/5/3".into(), page);
    let (second, _) = back_up(&fixture.cluster, &files, Some(&first));
    let (name, bytes) = segment();
    let index = SegmentIndexer::index(&bytes, &name, None).unwrap();
    let cluster = &fixture.cluster;
    cluster.put_segment(SYSTEM, &name, &bytes, &index).unwrap();
    cluster
        .put_file(
            SYSTEM,
            WalFileKind::History,
            "00000002.history",
            b"1\t0/500000\tx\n",
        )
        .unwrap();
    cluster.pin(first.backup, "audit", None, None, now()).unwrap();
    cluster.take_lease(&first, "restore", "here", now()).unwrap();
    cluster
        .state_expiry(repository::Expiry {
            version: 1,
            at: now(),
            by: "here".into(),
            finished: true,
            removed: Vec::new(),
            protected: Vec::new(),
            wal: Vec::new(),
            objects: 0,
            bytes: 0,
        })
        .unwrap();
    cluster
        .state_verification(repository::Verification {
            version: 1,
            began_at: now(),
            finished_at: now(),
            decoded: true,
            objects: 0,
            bytes: 0,
            backups: vec![first.backup],
            findings: Vec::new(),
            findings_total: 0,
        })
        .unwrap();
    cluster.append_link("drill", [1; 32], now()).unwrap();
    let by = repository::ActionBy {
        account: "postgres".into(),
        uid: 105,
        login: None,
        sudo_user: None,
        host: "here".into(),
    };
    let begun = repository::ActionBegun::new(repository::ActionKind::Restore, now(), by, "main", "0.1.0");
    let action = cluster.begin_action(&begun).unwrap();
    cluster
        .end_action(&action, &repository::ActionEnded::done(now(), None, None))
        .unwrap();
    Small {
        backups: vec![first, second],
        files,
        segment: bytes,
        fixture,
    }
}

impl Small {
    fn store(&self) -> &dyn Store {
        &**self.fixture.cluster.store()
    }

    fn replace(&self, name: &str, content: &[u8]) {
        self.store().delete(name).unwrap();
        self.store().put_new(name, content).unwrap();
    }

    /// Everything that can be read back is right, or is refused.
    fn read_back(&self, what: &str) {
        let refused = |code: &str| matches!(code, "object-damaged" | "object-missing" | "repository-format");
        let cluster = match Repository::open(self.fixture.cluster.store().clone(), &self.fixture.key) {
            Ok(repository) => repository.cluster("main").unwrap(),
            Err(error) => return assert!(refused(error.code()), "{what}: {}", error.render()),
        };
        for (place, backup) in self.backups.iter().enumerate() {
            let restored = cluster
                .backup(backup.backup)
                .and_then(|backup| restore(&cluster, &backup));
            match restored {
                Ok(files) if place == 1 => assert!(files == self.files, "{what}: restored otherwise"),
                Ok(_) => {}
                Err(error) => assert!(refused(error.code()), "{what}: {}", error.render()),
            }
        }
        let mut bytes = Vec::new();
        let read = cluster
            .get_segment(SYSTEM, TimelineId(1), 5, SEGMENT_BYTES)
            .and_then(|found| match found {
                Some(found) => cluster.read_segment(&found, &mut bytes),
                None => Ok(0),
            });
        match read {
            Ok(_) => assert!(bytes == self.segment, "{what}: the segment reads back otherwise"),
            Err(error) => assert!(refused(error.code()), "{what}: {}", error.render()),
        }
    }

    /// `verify` names the object.
    fn is_found(&self, name: &str) -> bool {
        let options = VerifyOptions {
            decode: false,
            threads: 1,
        };
        verify(&self.fixture.cluster, options)
            .unwrap()
            .findings
            .iter()
            .any(|finding| finding.object == name && !finding.affects.is_empty())
    }
}

/// Every `step`-th byte, beginning with a different one in each object.
fn damage(step: usize) {
    let small = small();
    let mut looked = 0;
    for (place, object) in small.store().list("").unwrap().into_iter().enumerate() {
        let name = object.name;
        // A statement that a run is alive; once the backup is there it says nothing any more.
        if name.contains("/intents/") {
            continue;
        }
        let whole = small.store().read(&name).unwrap().unwrap();
        for at in (place % step..whole.len()).step_by(step) {
            let mut bytes = whole.clone();
            bytes[at] ^= 1 << (at % 8);
            small.replace(&name, &bytes);
            let what = format!("byte {at} of {name} flipped");
            assert!(
                small.is_found(&name) || same_json(&name, &whole, &bytes),
                "{what}, and nobody noticed"
            );
            small.read_back(&what);
            small.replace(&name, &whole[..at]);
            let what = format!("{name} cut to {at} bytes");
            assert!(small.is_found(&name), "{what}, and nobody noticed");
            small.read_back(&what);
            looked += 1;
        }
        small.replace(&name, &whole);
        assert!(!small.is_found(&name), "{name}");
    }
    println!("{looked} bytes flipped, and as many cuts");
}

/// White space may stand for other white space.
fn same_json(name: &str, one: &[u8], two: &[u8]) -> bool {
    let plain = name == "repository.json" || name.starts_with("keys/");
    let value = |bytes: &[u8]| serde_json::from_slice::<serde_json::Value>(bytes).ok();
    plain && value(one).is_some() && value(one) == value(two)
}

#[test]
fn damage_anywhere_is_named_and_never_read_back() {
    damage(89);
}

#[test]
#[ignore = "some minutes; ./test --long runs it"]
fn damage_everywhere_is_named_and_never_read_back() {
    damage(1);
}
