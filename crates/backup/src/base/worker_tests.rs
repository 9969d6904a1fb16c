//! Files that change while they are read, without a server: the listing is made by hand.

use std::path::{Path, PathBuf};

use cluster::{Entry, EntryKind};
use postgres::RelationFile;
use repository::{BlockReader, ClusterRepository, Piece, RecipientKey, Repository, TreeReader, create_store};

use super::*;

/// An entry as the listing would have it, whatever the file is by now.
fn item(folder: &Path, path: &str, listed_size: u64) -> Item {
    Item::from_entry(Entry {
        path: path.as_bytes().to_vec(),
        absolute: folder.join(path.replace('/', "_")),
        kind: EntryKind::File { size: listed_size },
        mode: 0o600,
        relation: RelationFile::parse(path.as_bytes()),
    })
    .unwrap()
}

fn repository(folder: &Path) -> ClusterRepository {
    let store = create_store(&format!("file://{}", folder.join("repository").display())).unwrap();
    let key = RecipientKey::generate().unwrap();
    Repository::create(store, &key, jiff::Timestamp::now())
        .unwrap()
        .cluster("main")
        .unwrap()
}

fn shared<'a>(items: &'a [Item], dispatcher: &'a Dispatcher<'a>, tree: &'a TreeWriter) -> Shared<'a> {
    Shared {
        items,
        dispatcher,
        tree,
        checksums: true,
        relation_segment_size: 131_072,
        unread: None,
        abort: AtomicBool::new(false),
        files_done: AtomicU64::new(0),
        bytes_done: AtomicU64::new(0),
        bytes_read: AtomicU64::new(0),
        bad_pages_count: AtomicU64::new(0),
        bad_pages: Mutex::new(Vec::new()),
    }
}

/// Backs the items up and reads them again: content by path, and the pages that stayed bad.
fn round_trip(folder: &Path, items: Vec<Item>) -> (Vec<(String, Vec<u8>)>, Vec<BadPage>) {
    round_trip_with(folder, items, None)
}

/// The same, with something that happens when the first part of the first file, a large one, has gone out.
fn round_trip_with(
    folder: &Path,
    items: Vec<Item>,
    after_first: Option<&dyn Fn()>,
) -> (Vec<(String, Vec<u8>)>, Vec<BadPage>) {
    let repository = repository(folder);
    let run = repository.start_run(None, jiff::Timestamp::now()).unwrap();
    let dispatcher = Dispatcher::new(&items, run.tree());
    let shared = shared(&items, &dispatcher, run.tree());
    if let Some(after_first) = after_first {
        let Some(Work::Part {
            item: 0,
            size,
            first_block: 0,
            blocks,
            file,
        }) = dispatcher.next().unwrap()
        else {
            panic!("the first item is no large file");
        };
        after_first();
        let Source::File { entry, .. } = &items[0].source else {
            panic!("the first item is no file")
        };
        let mut writer = run.pack_writer().unwrap();
        let part = shared.part(0, &items[0], FileFormat::Pages, size, 0, blocks);
        shared
            .file(part, entry, &file, &mut writer, &mut vec![0; FRAME_BYTES])
            .unwrap();
        writer.finish().unwrap();
    }
    std::thread::scope(|scope| {
        for _ in 0..2 {
            let mut writer = run.pack_writer().unwrap();
            let shared = &shared;
            scope.spawn(move || {
                shared.work(&mut writer).unwrap();
                writer.finish().unwrap();
            });
        }
    });
    let tree = run.tree().finish(b"").unwrap();
    let backup = example_record(&repository, run.id(), tree);
    run.publish(&backup, jiff::Timestamp::now()).unwrap();
    let reader = TreeReader::open(&repository, &backup).unwrap();
    let mut blocks = BlockReader::new(&repository).unwrap();
    let mut files = Vec::new();
    for entry in reader.entries() {
        let entry = entry.unwrap();
        let repository::EntryKind::File { content, .. } = &entry.kind else {
            continue;
        };
        let mut bytes = vec![0xEE; entry.size as usize];
        for leaf in reader.leaves(content) {
            let mut sink = |offset: u64, piece: Piece<'_>| {
                let offset = offset as usize;
                match piece {
                    Piece::Data(data) => bytes[offset..offset + data.len()].copy_from_slice(data),
                    Piece::Zeros(count) => bytes[offset..offset + count as usize].fill(0),
                }
                Ok(())
            };
            blocks.read_leaf(&leaf.unwrap(), entry.size, &mut sink).unwrap();
        }
        files.push((entry.path.to_string(), bytes));
    }
    let bad = shared.bad_pages.into_inner().unwrap();
    (files, bad)
}

fn example_record(
    repository: &ClusterRepository,
    run: repository::RunId,
    tree: repository::Tree,
) -> repository::Backup {
    let now = jiff::Timestamp::now();
    repository::Backup {
        version: repository::RECORD_VERSION,
        backup: run,
        cluster: repository.name().into(),
        label: String::new(),
        started_at: now,
        finished_at: now,
        start_lsn: Lsn(0),
        stop_lsn: Lsn(0),
        redo_lsn: Lsn(0),
        bytes_read: 0,
        bytes_stored: 0,
        bytes_restored: 0,
        files: 0,
        system_identifier: postgres::SystemIdentifier(1),
        timeline: postgres::TimelineId(1),
        history: Vec::new(),
        postgresql_version: String::new(),
        postgresql_version_num: 0,
        pg_control_version: 0,
        catalog_version: 0,
        geometry: repository::Geometry {
            block_size: 8192,
            relation_segment_size: 131_072,
            wal_block_size: 8192,
            wal_segment_size: 16 << 20,
        },
        data_checksum_version: 1,
        from_standby: false,
        tablespaces: Vec::new(),
        settings: repository::RecoverySettings::default(),
        configuration: Vec::new(),
        excused_pages: Vec::new(),
        damaged_pages: Vec::new(),
        unread: None,
        requests: None,
        collations: Vec::new(),
        parent: None,
        tree,
    }
}

/// A page with a valid header and checksum.
fn good_page(block: u32, fill: u8) -> Vec<u8> {
    let mut page = vec![fill; BLOCK_SIZE];
    page[..24].fill(0);
    page[12..14].copy_from_slice(&24u16.to_le_bytes());
    page[14..16].copy_from_slice(&8192u16.to_le_bytes());
    page[16..18].copy_from_slice(&8192u16.to_le_bytes());
    page[18..20].copy_from_slice(&0x2004u16.to_le_bytes());
    let checksum = postgres::page_checksum(page.as_slice().try_into().unwrap(), block);
    page[8..10].copy_from_slice(&checksum.to_le_bytes());
    page
}

fn pages(blocks: std::ops::Range<u32>) -> Vec<u8> {
    blocks.flat_map(|block| good_page(block, block as u8)).collect()
}

fn write(folder: &Path, path: &str, content: &[u8]) -> PathBuf {
    let file = folder.join(path.replace('/', "_"));
    std::fs::write(&file, content).unwrap();
    file
}

#[test]
fn a_file_that_vanished_is_skipped_and_one_that_shrank_ends_in_zeros() {
    let folder = tempfile::tempdir().unwrap();
    let large = 2500 * BLOCK_SIZE as u64;
    write(folder.path(), "base/5/1", &pages(0..3));
    write(folder.path(), "base/5/4", &pages(0..2));
    write(folder.path(), "base/5/6", &pages(0..2500));
    write(folder.path(), "notes", b"eleven byte");
    let items = vec![
        item(folder.path(), "base/5/1", 3 * 8192),
        item(folder.path(), "base/5/2", 3 * 8192),
        item(folder.path(), "base/5/3", large),
        // Was smaller when it was listed; and larger.
        item(folder.path(), "base/5/4", 8192),
        item(folder.path(), "base/5/6", large + 8192),
        item(folder.path(), "notes", 20_000),
    ];
    let (files, bad) = round_trip(folder.path(), items);
    let names: Vec<&str> = files.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["base/5/1", "base/5/4", "base/5/6", "notes"]);
    assert!(files[0].1 == pages(0..3));
    assert!(files[1].1 == pages(0..2));
    assert!(files[2].1 == pages(0..2500));
    assert_eq!(files[3].1, b"eleven byte");
    assert_eq!(bad, []);
}

#[test]
fn a_file_that_shrinks_while_its_parts_are_read_is_filled_up_with_zeros() {
    let folder = tempfile::tempdir().unwrap();
    let path = write(folder.path(), "base/5/6", &pages(0..2500));
    // The first part to go out fixes the size; then the server truncates the file.
    let truncate = || {
        std::fs::File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_len(8192 * 10 + 100)
            .unwrap()
    };
    let (files, bad) = round_trip_with(
        folder.path(),
        vec![item(folder.path(), "base/5/6", 2500 * 8192)],
        Some(&truncate),
    );
    let mut expected = pages(0..10);
    expected.resize(2500 * BLOCK_SIZE, 0);
    assert!(files[0].1 == expected);
    assert_eq!(bad, []);
}

#[test]
fn every_page_is_judged_at_its_place_in_the_relation() {
    let folder = tempfile::tempdir().unwrap();
    let mut content = pages(0..40);
    content[17 * BLOCK_SIZE + 4000] ^= 1;
    // A page of zeros is new; one that calls itself new and is not all zeros is not.
    content[20 * BLOCK_SIZE..21 * BLOCK_SIZE].fill(0);
    content[30 * BLOCK_SIZE..31 * BLOCK_SIZE].fill(0);
    content[30 * BLOCK_SIZE + 100] = 1;
    write(folder.path(), "base/5/7", &content);
    // The second segment of a relation: its blocks go on counting.
    write(folder.path(), "base/5/7.1", &pages(131_072..131_075));
    write(folder.path(), "base/5/8.1", &pages(0..1));
    // No relation: nothing to verify.
    write(folder.path(), "base/5/pg_filenode.map", &[1; 512]);
    let items = vec![
        item(folder.path(), "base/5/7", 40 * 8192),
        item(folder.path(), "base/5/7.1", 3 * 8192),
        item(folder.path(), "base/5/8.1", 8192),
        item(folder.path(), "base/5/pg_filenode.map", 512),
    ];
    let (files, mut bad) = round_trip(folder.path(), items);
    assert!(files[0].1 == content, "pages are stored as they are");
    bad.sort_by_key(|page| (page.path.clone(), page.block));
    let found: Vec<_> = bad
        .iter()
        .map(|page| (page.path.to_string(), page.block, page.relation_block))
        .collect();
    assert_eq!(
        found,
        [
            ("base/5/7".into(), 17, 17),
            ("base/5/7".into(), 30, 30),
            ("base/5/8.1".to_string(), 0, 131_072)
        ]
    );
    assert!(bad[0].problem.contains("is stored"), "{}", bad[0].problem);
}

#[test]
fn a_page_that_was_torn_is_read_again_until_the_server_has_written_it() {
    let folder = tempfile::tempdir().unwrap();
    let mut torn = good_page(0, 1);
    torn[5000] ^= 1;
    let path = write(folder.path(), "base/5/9", &torn);
    let run = repository(folder.path())
        .start_run(None, jiff::Timestamp::now())
        .unwrap();
    let dispatcher = Dispatcher::new(&[], run.tree());
    let shared = shared(&[], &dispatcher, run.tree());
    let file = SourceFile::open(&path).unwrap().unwrap();
    let verdict = |page: &mut [u8]| {
        shared
            .read_again(
                &path,
                &file,
                0,
                0,
                page,
                PageVerdict::Bad {
                    stored: 1,
                    computed: 2,
                },
            )
            .unwrap()
    };
    let mut page = torn.clone();
    assert!(matches!(verdict(&mut page), PageVerdict::Bad { .. }));

    let mended = path.clone();
    let mend = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(30));
        use std::os::unix::fs::FileExt;
        std::fs::File::options()
            .write(true)
            .open(mended)
            .unwrap()
            .write_all_at(&good_page(0, 1), 0)
            .unwrap();
    });
    assert_eq!(verdict(&mut page), PageVerdict::Good);
    assert!(page == good_page(0, 1));
    mend.join().unwrap();
}
