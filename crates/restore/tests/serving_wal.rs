//! What recovery is told about WAL that is not simply there: hard rule 20, without a server.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use postgres::{SegmentHeader, SegmentIndexer, SystemIdentifier, WalFile};
use repository::{ClusterRepository, LocalFolder, RecipientKey, Repository};
use restore::wal::{PlaceOptions, PlacedWal, place_wal};

/// A repository in a folder of its own, with nothing in it.
fn copy() -> (tempfile::TempDir, ClusterRepository) {
    let folder = tempfile::tempdir().unwrap();
    let store = Arc::new(LocalFolder::create(folder.path()).unwrap());
    let key = RecipientKey::generate().unwrap();
    let now = "2026-08-15T02:00:03Z".parse().unwrap();
    let repository = Repository::create(store, &key, now).unwrap();
    let cluster = repository.cluster("main").unwrap();
    (folder, cluster)
}

/// A segment that PostgreSQL 15 wrote, moved to another number: name and first page say so.
fn segment(number_of: impl Fn(u64) -> u64) -> (WalFile, Vec<u8>, PlaceOptions) {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../postgres/tests/fixtures/15/wal");
    let mut bytes = std::fs::read(fixture).unwrap();
    bytes.resize(1 << 20, 0);
    let header = SegmentHeader::parse(&bytes).unwrap();
    let number = number_of(header.number());
    bytes[8..16].copy_from_slice(&(number << 20).to_le_bytes());
    let name = WalFile::Segment {
        timeline: header.timeline,
        number,
    };
    let options = PlaceOptions {
        system: header.system_identifier,
        wal_segment_size: 1 << 20,
    };
    (name, bytes, options)
}

fn put(copy: &ClusterRepository, system: SystemIdentifier, name: &WalFile, bytes: &[u8]) {
    let index = SegmentIndexer::index(bytes, name, None).unwrap();
    copy.put_segment(system, name, bytes, &index).unwrap();
}

fn destination(folder: &tempfile::TempDir) -> PathBuf {
    folder.path().join("RECOVERYXLOG")
}

#[test]
fn a_segment_is_absent_only_while_no_later_one_exists() {
    let (_folder, copy) = copy();
    let scratch = tempfile::tempdir().unwrap();
    let (wanted, bytes, options) = segment(|number| number);
    let name = wanted.name(1 << 20);
    let place = || {
        place_wal(
            &name,
            &destination(&scratch),
            std::slice::from_ref(&copy),
            &options,
        )
    };
    assert!(matches!(place().unwrap(), PlacedWal::Absent(_)));

    let (later, later_bytes, _) = segment(|number| number + 3);
    put(&copy, options.system, &later, &later_bytes);
    assert_eq!(place().unwrap_err().code(), "wal-gap");
    assert!(!destination(&scratch).exists());

    put(&copy, options.system, &wanted, &bytes);
    assert!(matches!(place().unwrap(), PlacedWal::Placed(_)));
    assert_eq!(std::fs::read(destination(&scratch)).unwrap(), bytes);
}

#[test]
fn a_copy_that_could_not_be_asked_has_not_said_absent() {
    let (_one_folder, one) = copy();
    let (other_folder, other) = copy();
    let scratch = tempfile::tempdir().unwrap();
    let (wanted, bytes, options) = segment(|number| number);
    let name = wanted.name(1 << 20);
    let copies = [one.clone(), other];
    let place = || place_wal(&name, &destination(&scratch), &copies, &options);
    assert!(matches!(place().unwrap(), PlacedWal::Absent(_)));

    // As when a file system is not mounted: the folder is there, and nothing of the repository in it.
    let folder = other_folder.path().to_path_buf();
    std::fs::remove_dir_all(&folder).unwrap();
    std::fs::create_dir(&folder).unwrap();
    place().unwrap_err();
    assert!(!destination(&scratch).exists());

    // What one copy has is placed, and the other one's trouble is told.
    put(&one, options.system, &wanted, &bytes);
    let PlacedWal::Placed(placed) = place().unwrap() else {
        panic!("it is there")
    };
    assert_eq!(
        placed.failed.len(),
        0,
        "the first copy had it, the second was not asked"
    );
    assert_eq!(std::fs::read(destination(&scratch)).unwrap(), bytes);
}
