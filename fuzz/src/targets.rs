//! What is fuzzed: the name of the corpus, and what is done with the bytes.
//!
//! A target makes of its bytes what the reader expects around them (a whole segment, a right CRC), so that the fuzzer's
//! changes get past the first check; and it asserts what must hold for whatever was read.

use std::hint::black_box;

use cluster::replication::{ManifestReader, TarKind, TarReader};
use postgres::{
    BackupLabel, Catalog, ControlFile, Lsn, PageHeader, RelationFile, SegmentHeader, SegmentIndex,
    SegmentIndexer, SystemIdentifier, TimelineHistory, TimelineId, WalFile, WindowOfWal, relation_rows,
    tablespace_map, tail_bytes, verify_page,
};

use crate::{Target, seal};

/// Those that are called from here; the others stand in the rooms that read (`readers::READERS`).
const OWN: [Target; 20] = [
    ("wal-segment", wal_segment),
    ("wal-records", wal_records),
    ("wal-seam", wal_seam),
    ("segment-index", segment_index),
    ("control-file", control_file),
    ("timeline-history", timeline_history),
    ("backup-label", backup_label),
    ("tablespace-map", map_of_tablespaces),
    ("page", page),
    ("file-names", file_names),
    ("catalog", catalog),
    ("postmaster-pid", postmaster_pid),
    ("lsn", lsn),
    ("backup-tar", backup_tar),
    ("server-manifest", server_manifest),
    ("import-archive", import_archive),
    ("import-wal-file", import_wal_file),
    ("drill-facts", drill_facts),
    ("server-log", server_log),
    ("restored-marker", restored_marker),
];

/// All targets of this crate. The binary's own (configuration, times) are in its tests, which use the same corpus.
pub fn all() -> Vec<Target> {
    let mut all = OWN.to_vec();
    let rooms = repository::readers::READERS
        .into_iter()
        .chain(cluster::readers::READERS)
        .chain(backup::readers::READERS);
    for reader in rooms {
        // Where this crate makes the bytes right first, its own target stands for it.
        if !all.iter().any(|(name, _)| *name == reader.0) {
            all.push(reader);
        }
    }
    all
}

const SEGMENT: usize = 1 << 20;

/// As many bytes as its header says, if that is not too many.
fn whole(bytes: &[u8]) -> Vec<u8> {
    let mut segment = bytes.to_vec();
    segment.resize(SEGMENT, 0);
    segment
}

fn index(segment: &[u8], tail: Option<&[u8]>) {
    let Ok(header) = SegmentHeader::parse(segment) else {
        return;
    };
    let name = WalFile::Segment {
        timeline: header.timeline,
        number: header.number(),
    };
    let Ok(index) = SegmentIndexer::index(segment, &name, tail) else {
        return;
    };
    let stored = index.encode();
    assert_eq!(
        SegmentIndex::decode(&stored).ok().as_ref(),
        Some(&index),
        "the stored form is the index"
    );
    if let Some(tail) = tail_bytes(segment, &index) {
        let next = WalFile::Segment {
            timeline: header.timeline,
            number: header.number().wrapping_add(1),
        };
        black_box(SegmentIndexer::index(segment, &next, Some(tail))).ok();
    }
    let mut window = WindowOfWal::new(header.page_address, Lsn(u64::MAX));
    black_box(window.add_segment(segment, header.timeline)).ok();
    black_box(relation_rows(segment, header.timeline, &|_, _| true));
}

fn wal_segment(bytes: &[u8]) {
    index(&whole(bytes), None);
}

/// With every record's CRC and link made right, so that what they say is read.
fn wal_records(bytes: &[u8]) {
    let mut segment = whole(bytes);
    seal(&mut segment);
    index(&segment, None);
}

/// The first two bytes say how much of the rest is the tail of the segment before.
fn wal_seam(bytes: &[u8]) {
    let Some((length, rest)) = bytes.split_first_chunk() else {
        return;
    };
    let (tail, segment) = rest.split_at(usize::from(u16::from_le_bytes(*length)).min(rest.len()));
    index(&whole(segment), Some(tail));
}

/// The offset `by` bytes of WAL behind `at`, page headers left out.
fn advance(at: usize, by: usize) -> usize {
    let (mut at, mut left) = (at, by);
    loop {
        let room = 8192 - at % 8192;
        if left < room {
            return at + left;
        }
        left -= room;
        at += room + 24;
    }
}

fn copy(segment: &[u8], at: usize, length: usize) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(length);
    let mut at = at;
    while bytes.len() < length {
        let room = (8192 - at % 8192).min(length - bytes.len());
        bytes.extend_from_slice(segment.get(at..at + room)?);
        at = advance(at, room);
    }
    Some(bytes)
}

fn write(segment: &mut [u8], at: usize, bytes: &[u8]) -> Option<()> {
    let mut at = at;
    for byte in bytes {
        *segment.get_mut(at)? = *byte;
        at = advance(at, 1);
    }
    Some(())
}

/// Walks the records by their lengths, as far as these make sense, and makes links and CRCs right.
fn seal(segment: &mut [u8]) -> Option<()> {
    let start = SegmentHeader::parse(segment).ok()?.page_address.0;
    let remaining = u32::from_le_bytes(*segment.get(16..20)?.first_chunk()?);
    let mut at = advance(40, usize::try_from(remaining).ok()?.min(SEGMENT));
    let mut previous: Option<u64> = None;
    loop {
        at = at.next_multiple_of(8);
        if at.is_multiple_of(8192) {
            at += 24;
        }
        let length = u32::from_le_bytes(*segment.get(at..at + 4)?.first_chunk()?) as usize;
        if !(24..=SEGMENT).contains(&length) {
            return None;
        }
        if let Some(previous) = previous {
            write(segment, advance(at, 8), &previous.to_le_bytes())?;
        }
        previous = Some(start.wrapping_add(at as u64));
        let record = copy(segment, at, length)?;
        let crc = crc32c::crc32c_append(crc32c::crc32c(record.get(24..)?), record.get(..20)?);
        write(segment, advance(at, 20), &crc.to_le_bytes())?;
        let end = advance(at, length - 1) + 1;
        // What continues on a page says how much of it is left.
        let mut page = (at / 8192 + 1) * 8192;
        let mut left = length.checked_sub(8192 - at % 8192);
        while let Some(rest) = left.filter(|rest| *rest > 0 && page < end) {
            segment
                .get_mut(page + 16..page + 20)?
                .copy_from_slice(&(rest as u32).to_le_bytes());
            left = rest.checked_sub(8192 - 24);
            page += 8192;
        }
        at = end;
    }
}

fn segment_index(bytes: &[u8]) {
    let Ok(index) = SegmentIndex::decode(bytes) else {
        return;
    };
    black_box((index.start(), index.segment_end(), index.follows(&index)));
    for relation in &index.changed {
        black_box(index.changes_of(&relation.locator, relation.fork));
        black_box(relation.block(1));
    }
    let again = index.encode();
    assert_eq!(
        SegmentIndex::decode(&again).ok().as_ref(),
        Some(&index),
        "what was read is written in the same way"
    );
}

fn control_file(bytes: &[u8]) {
    black_box(ControlFile::parse(bytes)).ok();
    // Where the CRC stands in 13 to 17, and in 18.
    for end in seal::CONTROL_FILE_ENDS {
        let mut content = bytes.to_vec();
        content.resize(8192, 0);
        seal::control_file(&mut content, end);
        black_box(ControlFile::parse(&content)).ok();
    }
}

fn timeline_history(bytes: &[u8]) {
    for timeline in [1, 2, 3, u32::MAX] {
        if let Ok(history) = TimelineHistory::parse(TimelineId(timeline), bytes) {
            black_box(history.contains(TimelineId(1), Lsn(1)));
        }
    }
}

fn backup_label(bytes: &[u8]) {
    black_box(BackupLabel::parse(bytes)).ok();
}

fn map_of_tablespaces(bytes: &[u8]) {
    let Ok(entries) = tablespace_map::parse(bytes) else {
        return;
    };
    let entries: Vec<_> = entries
        .iter()
        .map(|(oid, path)| (*oid, path.as_slice()))
        .collect();
    let again = tablespace_map::parse(tablespace_map::format(&entries)).unwrap_or_default();
    let again: Vec<_> = again.iter().map(|(oid, path)| (*oid, path.as_slice())).collect();
    assert_eq!(again, entries);
}

fn page(bytes: &[u8]) {
    let mut page = bytes.to_vec();
    page.resize(8192, 0);
    black_box((PageHeader::parse(&page), PageHeader::parse(bytes)));
    black_box((verify_page(&page, 7, true), verify_page(&page, u32::MAX, false)));
}

fn file_names(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    for size in [1 << 20, 16 << 20, 1 << 30, 0, u32::MAX] {
        if let Some(file) = WalFile::parse(&text, size) {
            assert_eq!(file.name(size), text);
            black_box((file.timeline(), file.number(), file.start(size)));
        }
    }
    black_box(RelationFile::parse(bytes));
}

fn catalog(bytes: &[u8]) {
    let Ok(catalog) = serde_json::from_slice::<Catalog>(bytes) else {
        return;
    };
    for name in ["orders", "public.orders", "db.public.orders", "a.b.c.d", ""] {
        black_box(catalog.find_table(name));
    }
    let finder = catalog.finder();
    for database in &catalog.databases {
        for relation in &database.relations {
            if let Some(locator) = relation.locator(database) {
                black_box((finder.relation_of(&locator), relation.is_table()));
            }
        }
    }
}

fn postmaster_pid(bytes: &[u8]) {
    black_box(cluster::postmaster::PostmasterPid::parse(
        &String::from_utf8_lossy(bytes),
    ));
}

fn lsn(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Ok(lsn) = text.parse::<Lsn>() {
        assert_eq!(lsn.to_string().parse::<Lsn>().ok(), Some(lsn));
    }
    black_box(text.parse::<SystemIdentifier>()).ok();
}

fn backup_tar(bytes: &[u8]) {
    for bytes in [bytes, &seal::tar(bytes)] {
        let mut tar = TarReader::new(bytes);
        let mut buffer = [0; 700];
        while let Ok(Some(entry)) = tar.next_entry() {
            if let TarKind::File { size } = entry.kind {
                let read = match entry.mode % 2 {
                    0 => tar.read_content(&mut buffer),
                    _ => tar.read_whole(1 << 20).map(|content| content.len()),
                };
                assert!(read.is_err() || read.is_ok_and(|read| read as u64 <= size));
            }
            black_box(entry.path);
        }
    }
}

fn server_manifest(bytes: &[u8]) {
    let mut sealed = bytes.to_vec();
    seal::manifest(&mut sealed);
    for bytes in [bytes, &sealed] {
        let read = |piece: usize| {
            let mut reader = ManifestReader::default();
            let mut files = Vec::new();
            for piece in bytes.chunks(piece) {
                reader.add(piece, &mut |file| {
                    files.push(file);
                    Ok(())
                })?;
            }
            Ok::<_, diagnostic::Error>((reader.finish()?, files))
        };
        let (whole, pieces) = (read(usize::MAX), read(61));
        assert_eq!(
            whole.ok(),
            pieces.ok(),
            "it does not matter in which pieces a manifest comes"
        );
    }
}

fn import_archive(bytes: &[u8]) {
    backup::readers::import_archive(bytes);
    backup::readers::import_archive(&seal::tar(bytes));
}

fn import_wal_file(bytes: &[u8]) {
    backup::readers::import_wal_file(bytes);
    if SegmentHeader::parse(bytes).is_ok() {
        backup::readers::import_wal_file(&whole(bytes));
    }
}

/// Evidence as it is read back: judged anew, and made into documents.
fn drill_facts(bytes: &[u8]) {
    black_box(serde_json::from_slice::<drill::Verdict>(bytes)).ok();
    let Ok(facts) = serde_json::from_slice::<drill::Facts>(bytes) else {
        return;
    };
    let verdict = drill::judge(&facts);
    black_box(drill::document(&facts, &verdict));
    black_box(report::documents(
        &facts,
        &verdict,
        &report::Circumstances::default(),
    ));
}

/// What a copy's server wrote into its log.
fn server_log(bytes: &[u8]) {
    let log = String::from_utf8_lossy(bytes);
    black_box((drill::log::stop_line(&log), drill::log::last_replayed_line(&log)));
    black_box((
        drill::log::paused_at_target(&log),
        drill::log::recovery_complete(&log),
    ));
    black_box((drill::log::cause(&log), drill::log::excerpt(&log)));
}

fn restored_marker(bytes: &[u8]) {
    if let Ok(marker) = serde_json::from_slice::<restore::Marker>(bytes) {
        black_box((marker.kept_aside, marker.outside));
    }
}
