//! Everything here that reads bytes from outside, by name: what the fuzzer feeds with arbitrary ones.
//!
//! Invariant: a reader gives a value or an error, whatever it is given, and needs memory in proportion to its input.

use crate::base::import::readers;

/// A name, and the reader.
pub type Reader = (&'static str, fn(&[u8]));

/// All of them.
pub const READERS: [Reader; 4] = [
    ("import-archive", import_archive),
    ("import-packed", readers::packed),
    ("import-wal-file", import_wal_file),
    ("spool-note", crate::spool::read_note),
];

/// An archive of a data directory, plain or packed, as the base that it may be.
pub fn import_archive(bytes: &[u8]) {
    readers::archive(bytes);
}

/// A file of a WAL archive, plain or packed, under each kind of name.
pub fn import_wal_file(bytes: &[u8]) {
    readers::wal_file(bytes);
}
