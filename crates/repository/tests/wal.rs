//! The WAL archive: what is pushed comes back, nothing is overwritten, and listings tell what is there.

mod common;

use std::sync::Arc;

use common::*;
use diagnostic::Result;
use postgres::{SegmentIndex, SegmentIndexer, SystemIdentifier, TimelineId, WalFile};
use repository::{
    LocalFolder, ObjectInfo, ObjectWriter, Put, RecipientKey, Repository, RequestCounts, Role, Store,
    VerifyOptions, WalFileKind, verify,
};

const SYSTEM: SystemIdentifier = SystemIdentifier(7_300_000_000_000_000_001);
const SIZE: u32 = 1 << 20;

/// A segment of version 15 with a right header and something behind its first page.
fn segment(timeline: u32, number: u64, size: u32, seed: u64) -> (WalFile, Vec<u8>, SegmentIndex) {
    let mut bytes = vec![0; size as usize];
    bytes[0..2].copy_from_slice(&0xD110u16.to_le_bytes());
    bytes[2..4].copy_from_slice(&2u16.to_le_bytes());
    bytes[4..8].copy_from_slice(&timeline.to_le_bytes());
    bytes[8..16].copy_from_slice(&(number * u64::from(size)).to_le_bytes());
    bytes[24..32].copy_from_slice(&SYSTEM.0.to_le_bytes());
    bytes[32..36].copy_from_slice(&size.to_le_bytes());
    bytes[36..40].copy_from_slice(&8192u32.to_le_bytes());
    let mut random = Random(seed);
    for chunk in bytes[8192..].chunks_mut(32) {
        chunk[..8].copy_from_slice(&random.next().to_le_bytes());
    }
    let name = WalFile::Segment {
        timeline: TimelineId(timeline),
        number,
    };
    let index = SegmentIndexer::index(&bytes, &name, None).unwrap();
    (name, bytes, index)
}

#[test]
fn a_segment_comes_back_with_its_index_and_is_pushed_once() {
    let fixture = fixture();
    let cluster = &fixture.cluster;
    // Both sizes: with and without a second thread's help, and more than one window.
    for size in [SIZE, 64 << 20] {
        let (name, bytes, index) = segment(1, 0x105, size, 1);
        let put = cluster.put_segment(SYSTEM, &name, &bytes, &index).unwrap();
        assert!(put.created && put.stored_bytes > 0 && put.stored_bytes < u64::from(size));
        let again = cluster.put_segment(SYSTEM, &name, &bytes, &index).unwrap();
        assert!(!again.created && again.object == put.object);
        let found = cluster
            .get_segment(SYSTEM, TimelineId(1), 0x105, size)
            .unwrap()
            .unwrap();
        assert_eq!(
            (&found.object, found.stored_bytes),
            (&put.object, put.stored_bytes)
        );
        let mut read = Vec::new();
        assert_eq!(cluster.read_segment(&found, &mut read).unwrap(), u64::from(size));
        assert!(read == bytes);
        assert_eq!(cluster.read_index(&found).unwrap(), index);
    }
    assert_eq!(
        cluster.get_segment(SYSTEM, TimelineId(1), 0x106, SIZE).unwrap(),
        None
    );
    assert_eq!(
        cluster.get_segment(SYSTEM, TimelineId(2), 0x105, SIZE).unwrap(),
        None
    );
    assert_eq!(
        cluster
            .get_segment(SystemIdentifier(8), TimelineId(1), 0x105, SIZE)
            .unwrap(),
        None
    );
    let put = cluster
        .get_segment(SYSTEM, TimelineId(1), 0x105, SIZE)
        .unwrap()
        .unwrap()
        .object;
    assert!(
        put.starts_with("clusters/main/wal/7300000000000000001/00000001/00000000/000000010000000000000105.")
    );
}

#[test]
fn the_same_segment_with_other_content_is_a_conflict_and_nothing_is_stored() {
    let fixture = fixture();
    let (name, bytes, index) = segment(1, 5, SIZE, 1);
    let (_, other, other_index) = segment(1, 5, SIZE, 2);
    fixture
        .cluster
        .put_segment(SYSTEM, &name, &bytes, &index)
        .unwrap();
    let before = fixture.cluster.store().list("").unwrap();
    let error = fixture
        .cluster
        .put_segment(SYSTEM, &name, &other, &other_index)
        .unwrap_err();
    assert_eq!(error.code(), "wal-conflict");
    assert_eq!(fixture.cluster.store().list("").unwrap(), before);
    // On another timeline it is another segment.
    let (name, bytes, index) = segment(2, 5, SIZE, 2);
    fixture
        .cluster
        .put_segment(SYSTEM, &name, &bytes, &index)
        .unwrap();
}

/// A store that creates one name twice, as its probe finds out.
struct Unconditional(LocalFolder);

impl Store for Unconditional {
    fn url(&self) -> String {
        self.0.url()
    }
    fn put_new(&self, name: &str, content: &[u8]) -> Result<Put> {
        self.0.put_new(name, content)?;
        Ok(Put::Created)
    }
    fn writer(&self, name: &str) -> Result<Box<dyn ObjectWriter>> {
        self.0.writer(name)
    }
    fn read(&self, name: &str) -> Result<Option<Vec<u8>>> {
        self.0.read(name)
    }
    fn read_range_into(&self, name: &str, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.0.read_range_into(name, offset, buffer)
    }
    fn size(&self, name: &str) -> Result<Option<u64>> {
        self.0.size(name)
    }
    fn list(&self, prefix: &str) -> Result<Vec<ObjectInfo>> {
        self.0.list(prefix)
    }
    fn list_folders(&self, prefix: &str) -> Result<Vec<String>> {
        self.0.list_folders(prefix)
    }
    fn delete(&self, name: &str) -> Result<()> {
        self.0.delete(name)
    }
    fn requests(&self) -> RequestCounts {
        self.0.requests()
    }
}

#[test]
fn without_conditional_creation_a_segment_that_came_meanwhile_is_found_behind_the_write() {
    let directory = tempfile::tempdir().unwrap();
    let store = Arc::new(Unconditional(LocalFolder::create(directory.path()).unwrap()));
    let repository = Repository::create(store, &RecipientKey::generate().unwrap(), now()).unwrap();
    assert!(!repository.conditional_creation());
    let cluster = repository.cluster("main").unwrap();
    let (name, bytes, index) = segment(1, 5, SIZE, 1);
    let (_, other, other_index) = segment(1, 5, SIZE, 2);
    // Another server's push, after we have looked and before we have written.
    let pushed = cluster.put_segment_with(SYSTEM, &name, &bytes, |_| {
        assert!(cluster.put_segment(SYSTEM, &name, &other, &other_index)?.created);
        Ok(index)
    });
    let Err(error) = pushed else {
        panic!("both were acknowledged");
    };
    assert_eq!(error.code(), "wal-conflict", "{}", error.render());
}

#[test]
fn a_segment_that_is_not_what_it_is_called_is_refused() {
    let fixture = fixture();
    let (name, bytes, index) = segment(1, 5, SIZE, 1);
    let put = |system, name: &WalFile, bytes: &[u8]| {
        fixture
            .cluster
            .put_segment(system, name, bytes, &index)
            .unwrap_err()
            .code()
    };
    assert_eq!(put(SYSTEM, &name, &bytes[1..]), "wal-segment-size");
    assert_eq!(put(SystemIdentifier(8), &name, &bytes), "wal-segment-name");
    assert_eq!(
        put(
            SYSTEM,
            &WalFile::Segment {
                timeline: TimelineId(1),
                number: 6
            },
            &bytes
        ),
        "wal-segment-name"
    );
    assert_eq!(
        put(
            SYSTEM,
            &WalFile::Partial {
                timeline: TimelineId(1),
                number: 5
            },
            &bytes
        ),
        "wal-segment-name"
    );
    assert!(fixture.cluster.list_systems().unwrap().is_empty());
}

#[test]
fn a_segment_is_indexed_while_it_is_compressed_and_not_stored_if_that_fails() {
    let fixture = fixture();
    let (name, bytes, index) = segment(1, 5, 16 << 20, 1);
    let refused = |_: &[u8]| Err(diagnostic::Error::new("wal-segment-damaged", "no index"));
    let error = fixture
        .cluster
        .put_segment_with(SYSTEM, &name, &bytes, refused)
        .unwrap_err();
    assert_eq!(error.code(), "wal-segment-damaged");
    let other = segment(1, 6, 16 << 20, 1).2;
    let error = fixture
        .cluster
        .put_segment_with(SYSTEM, &name, &bytes, |_| Ok(other))
        .unwrap_err();
    assert_eq!(error.code(), "wal-segment-name");
    assert!(fixture.cluster.list_systems().unwrap().is_empty());
    assert_eq!(
        std::fs::read_dir(fixture.directory.path().join("tmp"))
            .unwrap()
            .count(),
        0
    );
    let make = |bytes: &[u8]| SegmentIndexer::index(bytes, &name, None);
    let (put, given) = fixture
        .cluster
        .put_segment_with(SYSTEM, &name, &bytes, make)
        .unwrap();
    assert!(put.created);
    assert_eq!(given, Some(index.clone()));
    let found = fixture
        .cluster
        .get_segment(SYSTEM, TimelineId(1), 5, 16 << 20)
        .unwrap()
        .unwrap();
    assert_eq!(fixture.cluster.read_index(&found).unwrap(), index);
    let mut read = Vec::new();
    fixture.cluster.read_segment(&found, &mut read).unwrap();
    assert!(read == bytes);
}

#[test]
fn listings_are_in_order_over_logs_and_timelines() {
    let fixture = fixture();
    let cluster = &fixture.cluster;
    // 4096 segments of 1 MiB make a log.
    let numbers = [4097, 4095, 4096, 10_000, 1];
    for number in numbers {
        let (name, bytes, index) = segment(1, number, SIZE, number);
        cluster.put_segment(SYSTEM, &name, &bytes, &index).unwrap();
    }
    let (name, bytes, index) = segment(0xA, 4097, SIZE, 9);
    cluster.put_segment(SYSTEM, &name, &bytes, &index).unwrap();
    cluster
        .put_file(SYSTEM, WalFileKind::History, "0000000A.history", b"1\t0/1\tx\n")
        .unwrap();
    let numbers = |first| -> Vec<u64> {
        let segments = cluster
            .list_segments_from(SYSTEM, TimelineId(1), SIZE, first)
            .unwrap();
        segments.map(|segment| segment.unwrap().number).collect()
    };
    assert_eq!(numbers(0), [1, 4095, 4096, 4097, 10_000]);
    assert_eq!(numbers(4096), [4096, 4097, 10_000]);
    assert!(numbers(10_001).is_empty());
    assert_eq!(
        cluster.list_timelines(SYSTEM).unwrap(),
        [TimelineId(1), TimelineId(10)]
    );
    assert_eq!(cluster.list_systems().unwrap(), [SYSTEM]);
    let newest = cluster
        .newest_segment(SYSTEM, TimelineId(1), SIZE)
        .unwrap()
        .unwrap();
    let oldest = cluster
        .oldest_segment(SYSTEM, TimelineId(1), SIZE)
        .unwrap()
        .unwrap();
    assert_eq!((oldest.number, newest.number), (1, 10_000));
    assert_eq!(cluster.newest_segment(SYSTEM, TimelineId(3), SIZE).unwrap(), None);
}

#[test]
fn files_beside_the_segments_are_kept_and_only_partial_ones_may_differ() {
    let fixture = fixture();
    let cluster = &fixture.cluster;
    let history = "00000002.history";
    assert!(
        cluster
            .put_file(SYSTEM, WalFileKind::History, history, b"one")
            .unwrap()
            .created
    );
    assert!(
        !cluster
            .put_file(SYSTEM, WalFileKind::History, history, b"one")
            .unwrap()
            .created
    );
    let error = cluster
        .put_file(SYSTEM, WalFileKind::History, history, b"two")
        .unwrap_err();
    assert_eq!(error.code(), "wal-conflict");
    assert_eq!(
        cluster.get_file(SYSTEM, WalFileKind::History, history).unwrap(),
        [b"one"]
    );
    assert!(
        cluster
            .get_file(SYSTEM, WalFileKind::History, "00000003.history")
            .unwrap()
            .is_empty()
    );

    let label = "00000001000000000000000A.00000028.backup";
    cluster
        .put_file(SYSTEM, WalFileKind::Label, label, b"START WAL LOCATION")
        .unwrap();
    let partial = "00000001000000000000000A.partial";
    let (_, bytes, _) = segment(1, 10, SIZE, 1);
    cluster
        .put_file(SYSTEM, WalFileKind::Partial, partial, &bytes)
        .unwrap();
    cluster
        .put_file(SYSTEM, WalFileKind::Partial, partial, &bytes[..SIZE as usize / 2])
        .unwrap();
    let mut contents = cluster.get_file(SYSTEM, WalFileKind::Partial, partial).unwrap();
    contents.sort_by_key(Vec::len);
    assert_eq!(contents, [bytes[..SIZE as usize / 2].to_vec(), bytes.clone()]);
    let names = |kind| -> Vec<String> {
        cluster
            .list_files(SYSTEM, kind)
            .unwrap()
            .into_iter()
            .map(|file| file.name)
            .collect()
    };
    assert_eq!(names(WalFileKind::History), [history]);
    assert_eq!(names(WalFileKind::Label), [label]);
    assert_eq!(names(WalFileKind::Partial), [partial, partial]);
    for (kind, name) in [
        (WalFileKind::History, "../x.history"),
        (WalFileKind::History, "2.history"),
        (WalFileKind::Label, partial),
        (WalFileKind::Partial, "00000001000000000000000a.partial"),
    ] {
        assert_eq!(
            cluster.put_file(SYSTEM, kind, name, b"").unwrap_err().code(),
            "wal-file-name"
        );
    }
}

#[test]
fn a_writer_reads_indexes_and_histories_but_no_segment() {
    let fixture = fixture();
    let key = RecipientKey::generate().unwrap();
    fixture.repository.authorize(&key, Role::Writer).unwrap();
    let writer = Repository::open(fixture.repository.store().clone(), &key)
        .unwrap()
        .cluster("main")
        .unwrap();
    let (name, bytes, index) = segment(1, 5, SIZE, 1);
    writer.put_segment(SYSTEM, &name, &bytes, &index).unwrap();
    writer
        .put_file(SYSTEM, WalFileKind::History, "00000002.history", b"one")
        .unwrap();
    let partial = "00000001000000000000000A.partial";
    writer
        .put_file(SYSTEM, WalFileKind::Partial, partial, &bytes)
        .unwrap();
    let found = writer
        .get_segment(SYSTEM, TimelineId(1), 5, SIZE)
        .unwrap()
        .unwrap();
    assert_eq!(writer.read_index(&found).unwrap(), index);
    assert_eq!(
        writer
            .get_file(SYSTEM, WalFileKind::History, "00000002.history")
            .unwrap(),
        [b"one"]
    );
    assert_eq!(
        writer.read_segment(&found, &mut Vec::new()).unwrap_err().code(),
        "key-role"
    );
    assert_eq!(
        writer
            .get_file(SYSTEM, WalFileKind::Partial, partial)
            .unwrap_err()
            .code(),
        "key-role"
    );
    let mut read = Vec::new();
    fixture.cluster.read_segment(&found, &mut read).unwrap();
    assert!(read == bytes);
}

#[test]
fn damage_to_the_archive_is_found_and_nothing_wrong_is_read() {
    let fixture = fixture();
    let cluster = &fixture.cluster;
    let (name, bytes, index) = segment(1, 5, SIZE, 1);
    let put = cluster.put_segment(SYSTEM, &name, &bytes, &index).unwrap();
    cluster
        .put_file(SYSTEM, WalFileKind::History, "00000002.history", b"one")
        .unwrap();
    let found = cluster
        .get_segment(SYSTEM, TimelineId(1), 5, SIZE)
        .unwrap()
        .unwrap();
    let options = VerifyOptions {
        decode: true,
        threads: 2,
    };
    assert_eq!(verify(cluster, options).unwrap().findings, []);
    let whole = cluster.store().read(&put.object).unwrap().unwrap();
    for at in [0, 20, 70, 200, whole.len() / 2, whole.len() - 40, whole.len() - 1] {
        let mut damaged = whole.clone();
        damaged[at] ^= 1;
        cluster.store().delete(&put.object).unwrap();
        cluster.store().put_new(&put.object, &damaged).unwrap();
        let mut read = Vec::new();
        assert_eq!(
            cluster.read_segment(&found, &mut read).unwrap_err().code(),
            "object-damaged"
        );
        assert!(bytes.starts_with(&read), "wrong bytes were given");
        let findings = verify(
            cluster,
            VerifyOptions {
                decode: false,
                threads: 1,
            },
        )
        .unwrap()
        .findings;
        assert_eq!(findings.len(), 1, "{findings:?}");
        assert_eq!(findings[0].affects, ["WAL segment 000000010000000000000005"]);
    }
    // The right content under a name that promises another.
    cluster.store().delete(&put.object).unwrap();
    cluster
        .store()
        .put_new(&put.object.replace("00005.", "00006."), &whole)
        .unwrap();
    assert_eq!(verify(cluster, options).unwrap().findings.len(), 1);
    let moved = cluster
        .get_segment(SYSTEM, TimelineId(1), 6, SIZE)
        .unwrap()
        .unwrap();
    assert_eq!(
        cluster.read_segment(&moved, &mut Vec::new()).unwrap_err().code(),
        "object-damaged"
    );
    assert_eq!(cluster.read_index(&moved).unwrap_err().code(), "object-damaged");
}
