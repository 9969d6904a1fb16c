//! A repository in a temporary folder, and backups of file sets that live in memory.
#![allow(dead_code)]

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use postgres::{Lsn, SystemIdentifier, TimelineId};
use repository::{
    BLOCK_BYTES, Backup, BlockFacts, BlockReader, ClusterRepository, Content, EntryKind, FileEntry,
    FileFormat, FilePart, Geometry, LocalFolder, PackStatistics, Piece, RecipientKey, RecoverySettings,
    RelativePath, Repository, Run, TreeReader, blocks_of,
};

pub fn now() -> Timestamp {
    "2026-08-15T02:00:03Z".parse().unwrap()
}

pub struct Fixture {
    pub directory: tempfile::TempDir,
    pub key: RecipientKey,
    pub repository: Repository,
    pub cluster: ClusterRepository,
}

pub fn fixture() -> Fixture {
    let directory = tempfile::tempdir().unwrap();
    let store = Arc::new(LocalFolder::create(directory.path()).unwrap());
    let key = RecipientKey::generate().unwrap();
    let repository = Repository::create(store, &key, now()).unwrap();
    let cluster = repository.cluster("main").unwrap();
    Fixture {
        directory,
        key,
        repository,
        cluster,
    }
}

/// Path -> content; a path that ends in "/" is a directory.
pub type Files = BTreeMap<String, Vec<u8>>;

/// Numbers that look random and are the same each time.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    /// A page: an LSN, and rows that compress about as real ones do.
    pub fn page(&mut self) -> Vec<u8> {
        let mut page = vec![0; BLOCK_BYTES];
        for chunk in page.chunks_mut(64) {
            let value = self.next();
            chunk[..8].copy_from_slice(&value.to_le_bytes());
            chunk[8..40].copy_from_slice(format!("{:032}", value % 1_000_000).as_bytes());
        }
        page
    }

    pub fn pages(&mut self, count: usize) -> Vec<u8> {
        (0..count).flat_map(|_| self.page()).collect()
    }
}

fn facts(bytes: &[u8]) -> Vec<BlockFacts> {
    let lsn = |block: &[u8]| block.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
    bytes
        .chunks(BLOCK_BYTES)
        .map(|block| BlockFacts {
            lsn: Lsn(lsn(block)),
            ..BlockFacts::default()
        })
        .collect()
}

/// Stores the files with several threads, large ones in parts; nothing is published.
pub fn store_files(
    run: &Run,
    files: &Files,
    threads: usize,
    part_leaves: u32,
    chunk: usize,
) -> PackStatistics {
    let mut work = Vec::new();
    for (sequence, (path, content)) in files.iter().enumerate() {
        let sequence = sequence as u64;
        if let Some(path) = path.strip_suffix('/') {
            let path = RelativePath::new(path).unwrap();
            run.tree()
                .add(
                    sequence,
                    FileEntry {
                        path,
                        mode: 0o700,
                        size: 0,
                        kind: EntryKind::Directory,
                    },
                )
                .unwrap();
            continue;
        }
        let blocks = blocks_of(content.len() as u64);
        let mut first = 0;
        loop {
            let count = (part_leaves * 1024).min(blocks - first);
            work.push((sequence, path, content, first, count));
            first += count;
            if first >= blocks {
                break;
            }
        }
    }
    let next = std::sync::atomic::AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|_| {
                scope.spawn(|| {
                    let mut packs = run.pack_writer().unwrap();
                    while let Some((sequence, path, content, first, count)) =
                        work.get(next.fetch_add(1, std::sync::atomic::Ordering::Relaxed))
                    {
                        let part = FilePart {
                            sequence: (!path.starts_with("global/pg_control")).then_some(*sequence),
                            path: RelativePath::new(path.as_str()).unwrap(),
                            mode: 0o600,
                            size: content.len() as u64,
                            format: FileFormat::Pages,
                            first_block: *first,
                            blocks: *count,
                        };
                        if part.sequence.is_none() {
                            run.tree().skip(*sequence).unwrap();
                        }
                        let mut file = packs.file(part).unwrap();
                        let start = *first as usize * BLOCK_BYTES;
                        let end = (start + *count as usize * BLOCK_BYTES).min(content.len());
                        for bytes in content[start..end].chunks(chunk) {
                            file.add(bytes, &facts(bytes)).unwrap();
                        }
                        file.finish().unwrap();
                    }
                    packs.finish().unwrap()
                })
            })
            .collect();
        workers
            .into_iter()
            .map(|worker| worker.join().unwrap())
            .fold(PackStatistics::default(), PackStatistics::plus)
    })
}

pub fn record(
    run: &Run,
    cluster: &ClusterRepository,
    parent: Option<&Backup>,
    tree: repository::Tree,
) -> Backup {
    let statistics = run.tree().statistics();
    Backup {
        version: repository::RECORD_VERSION,
        backup: run.id(),
        cluster: cluster.name().to_string(),
        label: "test".into(),
        started_at: now(),
        finished_at: now(),
        start_lsn: Lsn(1),
        stop_lsn: Lsn(2),
        redo_lsn: Lsn(1),
        bytes_read: statistics.bytes,
        bytes_stored: 0,
        bytes_restored: statistics.bytes,
        files: statistics.files,
        system_identifier: SystemIdentifier(7),
        timeline: TimelineId(1),
        history: Vec::new(),
        postgresql_version: "15.8".into(),
        postgresql_version_num: 150_008,
        pg_control_version: 1300,
        catalog_version: 202_209_061,
        geometry: Geometry {
            block_size: 8192,
            relation_segment_size: 131_072,
            wal_block_size: 8192,
            wal_segment_size: 16 << 20,
        },
        data_checksum_version: 1,
        from_standby: false,
        tablespaces: Vec::new(),
        settings: RecoverySettings::default(),
        configuration: Vec::new(),
        excused_pages: Vec::new(),
        damaged_pages: Vec::new(),
        unread: None,
        requests: None,
        collations: Vec::new(),
        parent: parent.map(|parent| parent.backup),
        tree,
    }
}

/// A whole backup.
pub fn back_up(
    cluster: &ClusterRepository,
    files: &Files,
    parent: Option<&Backup>,
) -> (Backup, PackStatistics) {
    let run = cluster.start_run(parent, now()).unwrap();
    run.adopt_unfinished_runs(now()).unwrap();
    let statistics = store_files(&run, files, 2, 1, 1 << 20);
    let tree = run.tree().finish(b"a catalog").unwrap();
    let backup = record(&run, cluster, parent, tree);
    run.publish(&backup, now()).unwrap();
    (cluster.backup(backup.backup).unwrap(), statistics)
}

/// Reads a whole backup.
pub fn restore(cluster: &ClusterRepository, backup: &Backup) -> repository_result::Result<Files> {
    let tree = TreeReader::open(cluster, backup)?;
    let mut reader = BlockReader::new(cluster)?;
    let mut files = Files::new();
    let late = tree.late()?.into_iter().map(Ok);
    for entry in tree.entries().chain(late) {
        let entry = entry?;
        let path = String::from_utf8(entry.path.as_bytes().to_vec()).unwrap();
        match &entry.kind {
            EntryKind::Directory => {
                files.insert(path + "/", Vec::new());
            }
            EntryKind::Symlink(target) => {
                files.insert(path + " ->", target.clone());
            }
            EntryKind::File { content, .. } => {
                let mut bytes = vec![0xAA; entry.size as usize];
                let mut written = 0;
                for leaf in tree.leaves(content) {
                    reader.read_leaf(&leaf?, entry.size, &mut |offset, piece| {
                        let offset = offset as usize;
                        match piece {
                            Piece::Data(data) => {
                                bytes[offset..offset + data.len()].copy_from_slice(data);
                                written += data.len();
                            }
                            Piece::Zeros(count) => {
                                bytes[offset..offset + count as usize].fill(0);
                                written += count as usize;
                            }
                        }
                        Ok(())
                    })?;
                }
                assert_eq!(written, bytes.len(), "{path} was not given completely");
                files.insert(path, bytes);
            }
        }
    }
    Ok(files)
}

/// The result type without naming the diagnostic crate twice.
pub mod repository_result {
    pub type Result<T> = diagnostic::Result<T>;
}

/// Blocks and nodes that a backup refers to, counted by walking it; must equal its pack table.
pub fn check_pack_table(cluster: &ClusterRepository, backup: &Backup) {
    let tree = TreeReader::open(cluster, backup).unwrap();
    let mut live: BTreeMap<repository::PackRef, u64> = BTreeMap::new();
    for entry in tree.entries().chain(tree.late().unwrap().into_iter().map(Ok)) {
        let entry = entry.unwrap();
        let Some(content) = TreeReader::content(&entry) else {
            continue;
        };
        for leaf in tree.leaves(content) {
            for location in leaf.unwrap().locations().flatten() {
                *live.entry(location.frame.pack).or_default() += 1;
            }
        }
    }
    let table = cluster.pack_table(backup).unwrap();
    let listed: BTreeMap<_, _> = table
        .iter()
        .filter(|line| line.kind == repository::PackKind::Rows)
        .map(|line| (line.pack, line.live))
        .collect();
    assert_eq!(listed, live);
    assert!(
        table.iter().all(|line| line.live <= line.items && line.live > 0),
        "{table:?}"
    );
    for line in &table {
        let suffix = if line.kind == repository::PackKind::Rows {
            "rows"
        } else {
            "map"
        };
        let name = format!(
            "clusters/main/packs/{}/{:08}.{suffix}",
            line.pack.run, line.pack.number
        );
        assert_eq!(cluster.store().size(&name).unwrap(), Some(line.size));
    }
}

pub fn is_inline(entry: &FileEntry) -> bool {
    matches!(
        &entry.kind,
        EntryKind::File {
            content: Content::Inline(_),
            ..
        }
    )
}
