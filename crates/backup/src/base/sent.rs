//! What a server sent, held against what it says that it sent.
//!
//! Invariants: every file of the manifest arrived, once, with its size and its CRC-32C, and nothing else did; the
//! manifest's WAL is that of the backup. In memory: for each file its path, size and checksum.

use std::collections::HashMap;

use cluster::replication::{Manifest, ManifestFile};
use diagnostic::{Error, Result};
use postgres::{Lsn, SystemIdentifier};

/// The files that arrived.
#[derive(Debug, Default)]
pub(super) struct Sent(HashMap<Vec<u8>, (u64, u32)>);

fn differs(what: String) -> Error {
    Error::new(
        "backup-stream-mismatch",
        "what arrived is not what the server says that it sent",
    )
    .detail(what)
    .hint("Nothing was recorded. Run the backup again; should it happen again, look at the network and at this host's memory.")
}

impl Sent {
    /// A file arrived, whole.
    pub(super) fn arrived(&mut self, path: &[u8], size: u64, crc32c: u32) -> Result<()> {
        match self.0.insert(path.to_vec(), (size, crc32c)) {
            None => Ok(()),
            Some(_) => Err(differs(format!("\"{}\" came twice.", path.escape_ascii()))),
        }
    }

    /// A line of the manifest.
    pub(super) fn listed(&mut self, file: &ManifestFile) -> Result<()> {
        let shown = file.path.escape_ascii();
        let Some((size, crc32c)) = self.0.remove(&file.path) else {
            return Err(differs(format!("\"{shown}\" did not arrive.")));
        };
        if size != file.size {
            return Err(differs(format!(
                "\"{shown}\" arrived with {size} bytes instead of {}.",
                file.size
            )));
        }
        match file.crc32c {
            Some(stated) if stated == crc32c => Ok(()),
            Some(_) => Err(differs(format!("\"{shown}\" arrived with another content."))),
            None => Err(differs(format!("\"{shown}\" has no CRC-32C in the manifest."))),
        }
    }

    /// The manifest was read to its end.
    pub(super) fn finish(
        self,
        manifest: &Manifest,
        system: SystemIdentifier,
        start: Lsn,
        stop: Lsn,
    ) -> Result<()> {
        if let Some(path) = self.0.keys().next() {
            return Err(differs(format!(
                "\"{}\" is not in the manifest.",
                path.escape_ascii()
            )));
        }
        if manifest
            .system_identifier
            .is_some_and(|stated| stated != system.0)
        {
            return Err(differs("The manifest is of another cluster.".into()));
        }
        let starts = manifest.wal_ranges.iter().map(|(_, start, _)| *start).min();
        let ends = manifest.wal_ranges.iter().map(|(_, _, end)| *end).max();
        if starts != Some(start) || ends != Some(stop) {
            return Err(differs(format!(
                "The manifest names other WAL than that from {start} to {stop}."
            )));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use postgres::TimelineId;

    fn file(path: &str, size: u64, crc32c: u32) -> ManifestFile {
        ManifestFile {
            path: path.into(),
            size,
            crc32c: Some(crc32c),
        }
    }

    #[test]
    fn a_file_that_differs_is_missing_or_is_too_much_fails_the_backup() {
        let sent = || {
            let mut sent = Sent::default();
            sent.arrived(b"a", 5, 7).unwrap();
            sent
        };
        for wrong in [file("b", 5, 7), file("a", 6, 7), file("a", 5, 8)] {
            let error = sent().listed(&wrong).unwrap_err();
            assert_eq!(error.code(), "backup-stream-mismatch");
        }
        let manifest = Manifest {
            wal_ranges: vec![(TimelineId(1), Lsn(10), Lsn(20))],
            ..Manifest::default()
        };
        let end =
            |sent: Sent, start, stop| sent.finish(&manifest, SystemIdentifier(1), Lsn(start), Lsn(stop));
        assert!(end(sent(), 10, 20).is_err());
        let mut all = sent();
        all.listed(&file("a", 5, 7)).unwrap();
        assert!(all.arrived(b"c", 1, 1).is_ok() && all.arrived(b"c", 1, 1).is_err());
        assert!(end(Sent::default(), 10, 20).is_ok());
        assert!(end(Sent::default(), 11, 20).is_err());
    }
}
