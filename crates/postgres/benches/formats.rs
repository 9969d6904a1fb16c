//! How fast pages are checked and segments are indexed.
//!
//! `PGPROOF_BENCH_WAL` may name a folder of real segments (`pg_wal` of a stopped cluster); without it the
//! segments are made of the real records in `tests/fixtures`, repeated.

use divan::counter::BytesCount;
use divan::{Bencher, black_box};
use postgres::{BLOCK_SIZE, SegmentHeader, SegmentIndexer, WalFile, page_checksum};

fn main() {
    divan::main();
}

#[divan::bench]
fn checksum_of_1024_pages(bencher: Bencher) {
    let mut state = 1u64;
    let pages: Vec<[u8; BLOCK_SIZE]> = (0..1024)
        .map(|_| {
            let mut page = [0u8; BLOCK_SIZE];
            for byte in &mut page {
                state = state
                    .wrapping_mul(6364136223846793005)
                    .wrapping_add(1442695040888963407);
                *byte = (state >> 56) as u8;
            }
            page
        })
        .collect();
    bencher
        .counter(BytesCount::new(pages.len() * BLOCK_SIZE))
        .bench_local(|| {
            let sums = pages
                .iter()
                .zip(0u32..)
                .map(|(page, block)| u64::from(page_checksum(page, block)));
            sums.sum::<u64>()
        });
}

/// Whole segments, as a push indexes them.
#[divan::bench]
fn index_of_segments(bencher: Bencher) {
    let segments = segments();
    let bytes: usize = segments.iter().map(|(_, segment)| segment.len()).sum();
    bencher.counter(BytesCount::new(bytes)).bench_local(|| {
        for (name, segment) in &segments {
            black_box(SegmentIndexer::index(segment, name, None).expect("a segment"));
        }
    });
}

/// Writing and reading the stored form.
#[divan::bench]
fn encode_and_decode_of_indexes(bencher: Bencher) {
    let segments = segments();
    let indexes: Vec<_> = segments
        .iter()
        .map(|(name, segment)| SegmentIndexer::index(segment, name, None).expect("a segment"))
        .collect();
    let bytes: usize = indexes.iter().map(|index| index.encode().len()).sum();
    bencher.counter(BytesCount::new(bytes)).bench_local(|| {
        for index in &indexes {
            black_box(postgres::SegmentIndex::decode(&index.encode()).expect("an index"));
        }
    });
}

/// At most 16 segments.
fn segments() -> Vec<(WalFile, Vec<u8>)> {
    let folder = match std::env::var_os("PGPROOF_BENCH_WAL") {
        Some(folder) => std::path::PathBuf::from(folder),
        None => std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/15"),
    };
    let mut paths: Vec<_> = std::fs::read_dir(folder)
        .expect("folder")
        .map(|entry| entry.expect("entry").path())
        .collect();
    paths.sort();
    let mut segments = Vec::new();
    for path in paths {
        let Ok(mut segment) = std::fs::read(&path) else {
            continue;
        };
        let Ok(header) = SegmentHeader::parse(&segment) else {
            continue;
        };
        // A fixture is the written beginning of a segment.
        segment.resize(header.segment_size as usize, 0);
        let name = WalFile::Segment {
            timeline: header.timeline,
            number: header.number(),
        };
        segments.push((name, segment));
        if segments.len() == 16 {
            break;
        }
    }
    segments
}
