//! Names of the files in `pg_wal` that an archive keeps: segments, partial segments, timeline histories and
//! backup histories (`xlog_internal.h`). Only exact names are recognised: upper-case digits, nothing before
//! or after, and a segment number that the segment size can produce.

use std::fmt::Write;

use serde::{Deserialize, Serialize};

use crate::{Lsn, TimelineId};

/// What the name of a WAL file says. `number` is the segment's number: LSN / segment size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum WalFile {
    /// `00000001000000000000000A`
    Segment { timeline: TimelineId, number: u64 },
    /// `00000001000000000000000A.partial`: the end of a timeline that another one replaced
    Partial { timeline: TimelineId, number: u64 },
    /// `00000002.history`
    History { timeline: TimelineId },
    /// `00000001000000000000000A.00000028.backup`; `offset`: of the backup's start in the segment, bytes
    BackupHistory {
        timeline: TimelineId,
        number: u64,
        offset: u32,
    },
}

impl WalFile {
    /// Reads a file name (no folder); `segment_size` in bytes is needed to number the segments.
    /// `None`: not the name of a WAL file, or not of this segment size.
    pub fn parse(name: &str, segment_size: u32) -> Option<WalFile> {
        if !valid_segment_size(segment_size) || !name.is_ascii() {
            return None;
        }
        let timeline = TimelineId(hex8(name.get(..8)?)?);
        if timeline.0 == 0 {
            return None;
        }
        if name.get(8..)? == ".history" {
            return Some(WalFile::History { timeline });
        }
        let per_log = segments_per_log(segment_size);
        let log = u64::from(hex8(name.get(8..16)?)?);
        let segment = u64::from(hex8(name.get(16..24)?)?);
        if segment >= per_log {
            return None;
        }
        let number = log * per_log + segment;
        match name.get(24..)? {
            "" => Some(WalFile::Segment { timeline, number }),
            ".partial" => Some(WalFile::Partial { timeline, number }),
            rest => {
                let offset = hex8(rest.strip_prefix('.')?.strip_suffix(".backup")?)?;
                (offset < segment_size).then_some(WalFile::BackupHistory {
                    timeline,
                    number,
                    offset,
                })
            }
        }
    }

    /// The file's name; `segment_size` in bytes.
    pub fn name(&self, segment_size: u32) -> String {
        match *self {
            WalFile::Segment { timeline, number } => segment_name(timeline, number, segment_size),
            WalFile::Partial { timeline, number } => {
                segment_name(timeline, number, segment_size) + ".partial"
            }
            WalFile::History { timeline } => timeline.hex8() + ".history",
            WalFile::BackupHistory {
                timeline,
                number,
                offset,
            } => {
                let mut name = segment_name(timeline, number, segment_size);
                let _ = write!(name, ".{offset:08X}.backup");
                name
            }
        }
    }

    /// The timeline in the name.
    pub fn timeline(&self) -> TimelineId {
        match *self {
            WalFile::Segment { timeline, .. }
            | WalFile::Partial { timeline, .. }
            | WalFile::History { timeline }
            | WalFile::BackupHistory { timeline, .. } => timeline,
        }
    }

    /// The segment's number, where the file is or names a segment.
    pub fn number(&self) -> Option<u64> {
        match *self {
            WalFile::Segment { number, .. }
            | WalFile::Partial { number, .. }
            | WalFile::BackupHistory { number, .. } => Some(number),
            WalFile::History { .. } => None,
        }
    }

    /// The LSN of the first byte of that segment.
    pub fn start(&self, segment_size: u32) -> Option<Lsn> {
        self.number()
            .map(|number| Lsn(number.saturating_mul(u64::from(segment_size))))
    }
}

/// The name of a segment; `segment_size` in bytes.
pub fn segment_name(timeline: TimelineId, number: u64, segment_size: u32) -> String {
    let per_log = segments_per_log(segment_size);
    format!(
        "{:08X}{:08X}{:08X}",
        timeline.0,
        number / per_log,
        number % per_log
    )
}

/// A power of two from 1 MiB to 1 GiB (`IsValidWalSegSize`).
pub fn valid_segment_size(bytes: u32) -> bool {
    bytes.is_power_of_two() && ((1 << 20)..=(1 << 30)).contains(&bytes)
}

/// Segments in the 4 GiB that the middle eight digits of a name count.
fn segments_per_log(segment_size: u32) -> u64 {
    (1 << 32) / u64::from(segment_size.max(1))
}

/// Exactly eight upper-case hexadecimal digits.
fn hex8(text: &str) -> Option<u32> {
    let upper = |b: u8| b.is_ascii_digit() || (b'A'..=b'F').contains(&b);
    (text.len() == 8 && text.bytes().all(upper))
        .then(|| u32::from_str_radix(text, 16).ok())
        .flatten()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SIZE: u32 = 16 << 20;

    #[test]
    fn names_of_postgresql_are_read_and_written() {
        let timeline = TimelineId(5);
        let cases = [
            (
                "000000050000002A0000008F",
                WalFile::Segment {
                    timeline,
                    number: 0x2A8F,
                },
            ),
            (
                "000000050000002A0000008F.partial",
                WalFile::Partial {
                    timeline,
                    number: 0x2A8F,
                },
            ),
            ("00000005.history", WalFile::History { timeline }),
            (
                "000000050000002A0000008F.00000028.backup",
                WalFile::BackupHistory {
                    timeline,
                    number: 0x2A8F,
                    offset: 0x28,
                },
            ),
        ];
        for (name, file) in cases {
            assert_eq!(WalFile::parse(name, SIZE), Some(file));
            assert_eq!(file.name(SIZE), name);
        }
        let big = WalFile::parse("000000010000000100000003", 1 << 30);
        assert_eq!(
            big,
            Some(WalFile::Segment {
                timeline: TimelineId(1),
                number: 7
            })
        );
    }

    #[test]
    fn anything_else_is_not_a_wal_file() {
        for name in [
            "",
            "000000050000002A0000008",
            "000000050000002A0000008f",
            "000000050000002A00000100",
            "000000050000002A0000008F.",
            "000000050000002A0000008F.done",
            "000000050000002A0000008F.partial.1",
            "000000050000002A0000008F.00000028.backup.1",
            "000000050000002A0000008F.01000000.backup",
            "000000000000002A0000008F",
            "00000005.history.tmp",
            "0000000ä.history",
            "archive_status",
        ] {
            assert_eq!(WalFile::parse(name, SIZE), None, "{name:?}");
        }
        assert_eq!(WalFile::parse("000000010000000100000004", 1 << 30), None);
        assert_eq!(WalFile::parse("000000010000000100000001", 12345), None);
    }

    proptest! {
        #[test]
        fn any_text_is_refused_or_written_back_exactly(name in "[0-9A-F]{8}([0-9A-F]{16})?(\\.[a-z0-9A-F.]{0,16})?", power in 20u32..31) {
            if let Some(file) = WalFile::parse(&name, 1 << power) {
                prop_assert_eq!(file.name(1 << power), name);
            }
        }

        #[test]
        fn no_text_panics(name in ".{0,60}", size: u32) {
            let _ = WalFile::parse(&name, size);
        }
    }
}
