//! `backup_label` and `tablespace_map`, the two files that end a base backup (`xlogbackup.c`, `xlog.c`).

use diagnostic::{Error, Result};
use serde::{Deserialize, Serialize};

use crate::{Lsn, TimelineId};

/// What `backup_label` says; recovery begins at `start` with the checkpoint record at `checkpoint`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct BackupLabel {
    pub start: Lsn,
    /// the name of the segment that holds `start`
    pub start_segment: String,
    pub checkpoint: Lsn,
    /// `streamed` for every backup that PostgreSQL 13 and later make without exclusive mode
    pub method: String,
    /// `primary` or `standby`
    pub from: String,
    /// as PostgreSQL printed it, in the server's log_timezone
    pub start_time: String,
    pub label: String,
    pub timeline: TimelineId,
}

impl BackupLabel {
    /// Reads the file. Unknown lines are left alone. Error code `backup-label-damaged`.
    pub fn parse(content: impl AsRef<[u8]>) -> Result<BackupLabel> {
        let text = String::from_utf8_lossy(content.as_ref());
        let damaged = |what: &str| {
            Error::new("backup-label-damaged", "the file \"backup_label\" is damaged").detail(what)
        };
        let field = |name: &str| -> Option<&str> {
            text.lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
        };
        let needed = |name: &str| field(name).ok_or_else(|| damaged(&format!("It has no line \"{name}\".")));

        let start = needed("START WAL LOCATION")?;
        let (start, segment) = start
            .strip_suffix(')')
            .and_then(|rest| rest.split_once(" (file "))
            .ok_or_else(|| damaged("Its line \"START WAL LOCATION\" names no file."))?;
        let lsn = |text: &str| {
            text.trim()
                .parse::<Lsn>()
                .map_err(|e| damaged(&format!("{}.", e.message())))
        };
        let timeline = needed("START TIMELINE")?;
        let timeline = timeline.trim().parse().ok().filter(|number| *number != 0);
        Ok(BackupLabel {
            start: lsn(start)?,
            start_segment: segment.to_string(),
            checkpoint: lsn(needed("CHECKPOINT LOCATION")?)?,
            method: needed("BACKUP METHOD")?.to_string(),
            from: needed("BACKUP FROM")?.to_string(),
            start_time: needed("START TIME")?.to_string(),
            label: needed("LABEL")?.to_string(),
            timeline: TimelineId(
                timeline.ok_or_else(|| damaged("Its line \"START TIMELINE\" has no number."))?,
            ),
        })
    }
}

/// The file `tablespace_map`: where each tablespace's symbolic link in `pg_tblspc` points to.
///
/// One line for each: OID, a space, the path, a newline; newline, carriage return and backslash inside a path
/// have a backslash before them.
pub mod tablespace_map {
    use super::*;
    use crate::Oid;

    /// Reads the file; paths are bytes. Error code `tablespace-map-damaged`.
    pub fn parse(content: impl AsRef<[u8]>) -> Result<Vec<(Oid, Vec<u8>)>> {
        let damaged = |number: usize, what: &str| {
            Error::new("tablespace-map-damaged", "the file \"tablespace_map\" is damaged")
                .detail(format!("Entry {number}: {what}."))
        };
        let mut entries = Vec::new();
        for (index, line) in unescaped_lines(content.as_ref()).into_iter().enumerate() {
            let number = index + 1;
            let Some(space) = line.iter().position(|b| *b == b' ') else {
                return Err(damaged(number, "expected an OID, a space and a path"));
            };
            let (oid, path) = line.split_at(space);
            let path = path.get(1..).unwrap_or_default();
            let oid = std::str::from_utf8(oid)
                .ok()
                .and_then(|text| text.parse::<Oid>().ok());
            let Some(oid) = oid.filter(|oid| *oid != 0) else {
                return Err(damaged(number, "expected the OID of a tablespace"));
            };
            if path.is_empty() || path.contains(&0) {
                return Err(damaged(number, "expected a path after the OID"));
            }
            entries.push((oid, path.to_vec()));
        }
        Ok(entries)
    }

    /// Writes the file.
    pub fn format(entries: &[(Oid, &[u8])]) -> Vec<u8> {
        let mut content = Vec::new();
        for (oid, path) in entries {
            content.extend_from_slice(oid.to_string().as_bytes());
            content.push(b' ');
            for byte in *path {
                if matches!(byte, b'\n' | b'\r' | b'\\') {
                    content.push(b'\\');
                }
                content.push(*byte);
            }
            content.push(b'\n');
        }
        content
    }

    /// Lines without their escapes; empty lines are left out, as PostgreSQL does (CR ends a line, too).
    fn unescaped_lines(content: &[u8]) -> Vec<Vec<u8>> {
        let mut lines = Vec::new();
        let mut line = Vec::new();
        let mut escaped = false;
        for byte in content {
            match byte {
                b'\n' | b'\r' if !escaped => {
                    if !line.is_empty() {
                        lines.push(std::mem::take(&mut line));
                    }
                }
                b'\\' if !escaped => {
                    escaped = true;
                    continue;
                }
                other => line.push(*other),
            }
            escaped = false;
        }
        if !line.is_empty() {
            lines.push(line);
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    // pg_backup_stop of 15.
    const LABEL: &str = "START WAL LOCATION: 2A/8F000028 (file 000000050000002A0000008F)\n\
        CHECKPOINT LOCATION: 2A/8F000060\n\
        BACKUP METHOD: streamed\n\
        BACKUP FROM: primary\n\
        START TIME: 2026-01-25 14:30:00 UTC\n\
        LABEL: pgproof: nightly\n\
        START TIMELINE: 5\n";

    #[test]
    fn a_label_of_postgresql_is_read() {
        let label = BackupLabel::parse(LABEL).unwrap();
        assert_eq!(label.start, Lsn(0x2A_8F00_0028));
        assert_eq!(label.start_segment, "000000050000002A0000008F");
        assert_eq!(label.checkpoint, Lsn(0x2A_8F00_0060));
        assert_eq!(
            (label.method.as_str(), label.from.as_str()),
            ("streamed", "primary")
        );
        assert_eq!(label.start_time, "2026-01-25 14:30:00 UTC");
        assert_eq!(label.label, "pgproof: nightly");
        assert_eq!(label.timeline, TimelineId(5));
    }

    #[test]
    fn a_label_that_lacks_a_line_is_refused() {
        for skipped in 0..LABEL.lines().count() {
            let text: String = LABEL
                .lines()
                .enumerate()
                .filter(|(n, _)| *n != skipped)
                .map(|(_, l)| format!("{l}\n"))
                .collect();
            assert_eq!(
                BackupLabel::parse(&text).unwrap_err().code(),
                "backup-label-damaged",
                "{text}"
            );
        }
    }

    #[test]
    fn paths_with_newlines_and_backslashes_come_back() {
        let odd: &[u8] = b"/srv/a\nb\\c\rd \xFF";
        let entries: Vec<(u32, &[u8])> = vec![(16400, b"/srv/fast"), (16401, odd)];
        let content = tablespace_map::format(&entries);
        assert!(content.starts_with(b"16400 /srv/fast\n16401 /srv/a\\\nb\\\\c\\\rd "));
        let read = tablespace_map::parse(&content).unwrap();
        assert_eq!(read, vec![(16400, b"/srv/fast".to_vec()), (16401, odd.to_vec())]);
        assert!(tablespace_map::parse(b"").unwrap().is_empty());
        for bad in ["x /srv\n", "16400\n", "16400 \n", "0 /srv\n", "-1 /srv\n"] {
            assert_eq!(
                tablespace_map::parse(bad).unwrap_err().code(),
                "tablespace-map-damaged",
                "{bad:?}"
            );
        }
    }

    proptest! {
        #[test]
        fn any_path_survives(oid in 1u32.., path in proptest::collection::vec(1u8.., 1..40)) {
            let content = tablespace_map::format(&[(oid, &path)]);
            prop_assert_eq!(tablespace_map::parse(content).unwrap(), vec![(oid, path)]);
        }

        #[test]
        fn any_bytes_are_read_or_refused(content: Vec<u8>) {
            let _ = tablespace_map::parse(&content);
            let _ = BackupLabel::parse(&content);
        }
    }
}
