//! What is brought, read from bytes at hand: see `crate::readers`.

use std::hint::black_box;
use std::io::{Cursor, Read};

use postgres::{SegmentHeader, WalFile};

use super::facts::{Origin, WalFacts};
use super::{open, survey};

/// More of what is unpacked is not looked at: a few bytes can stand for very many, and each piece is like the next.
const PLAIN_BYTES_MAX: u64 = 16 << 20;
const NAME: &str = "base.tar";

/// An archive of a data directory, plain or packed, as the base that it may be.
pub(crate) fn archive(bytes: &[u8]) {
    let plain = open::unpacked(Cursor::new(bytes)).map(|plain| plain.take(PLAIN_BYTES_MAX));
    if let Ok(plain) = plain
        && let Ok(resolved) = survey::of_archive(plain, NAME)
    {
        black_box((
            resolved.stop,
            resolved.stop_from,
            resolved.tablespaces,
            resolved.warnings,
        ));
    }
}

/// Gzip, zstd, LZ4: what comes out, and whether it is whole.
pub(crate) fn packed(bytes: &[u8]) {
    let Ok(plain) = open::unpacked(Cursor::new(bytes)) else {
        return;
    };
    black_box(std::io::copy(
        &mut plain.take(PLAIN_BYTES_MAX),
        &mut std::io::sink(),
    ))
    .ok();
}

/// Files of a WAL archive, packed or not, under each kind of name.
pub(crate) fn wal_file(bytes: &[u8]) {
    let mut page = Vec::new();
    let opened = open::unpacked(Cursor::new(bytes)).and_then(|plain| plain.take(8192).read_to_end(&mut page));
    let segment = opened
        .ok()
        .and_then(|_| SegmentHeader::parse(&page).ok())
        .map(|header| {
            let (timeline, number) = (header.timeline, header.number());
            WalFile::Segment { timeline, number }.name(header.segment_size)
        });
    let names = [
        "000000010000000000000002.partial",
        "00000002.history",
        "000000010000000000000001.00000028.backup",
    ];
    for name in names.into_iter().chain(segment.as_deref()) {
        for origin in [Origin::Archive, Origin::Base] {
            let mut facts = WalFacts::default();
            let told = facts.file("wal", name, bytes.len() as u64, &mut Cursor::new(bytes), origin);
            black_box(told.map_err(|error| error.render())).ok();
        }
    }
}
