//! Where valid WAL ends, and why: as a value, because the end of WAL is ordinary, not an error.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{Lsn, TimelineId};

/// Valid WAL ends at `at`: the start of the record, or of the page, that cannot be believed.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct EndOfWal {
    pub at: Lsn,
    pub reason: EndReason,
}

/// Why the bytes at a place are not WAL that goes on.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum EndReason {
    /// Zeros where a record should begin: nothing was written yet.
    Zeros,
    /// A length below a record's header.
    Length {
        found: u32,
    },
    /// A length above `RECORD_LENGTH_MAX`.
    TooLong {
        found: u32,
    },
    /// No resource manager has this number.
    ResourceManager {
        found: u8,
    },
    /// `xl_prev` does not name the record before.
    Previous {
        expected: Lsn,
        found: Lsn,
    },
    Crc {
        stored: u32,
        computed: u32,
    },
    PageMagic {
        expected: u16,
        found: u16,
    },
    PageFlags {
        found: u16,
    },
    /// Not this page's address: content of an older, recycled segment, or a page in a wrong place.
    PageAddress {
        expected: Lsn,
        found: Lsn,
    },
    /// A timeline above the segment's own, or below that of the page before.
    PageTimeline {
        found: TimelineId,
    },
    /// A page of another cluster (system identifier) or of another geometry.
    Foreign,
    /// A record should go on here with `expected` bytes to come; the page says `found` (0: none).
    Continuation {
        expected: u32,
        found: u32,
    },
    /// The CRC is right, but the content is not what PostgreSQL of this version writes.
    Malformed {
        what: String,
    },
}

impl EndReason {
    pub(crate) fn malformed(what: &str) -> Self {
        EndReason::Malformed {
            what: what.to_string(),
        }
    }
}

impl fmt::Display for EndReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            EndReason::Zeros => write!(f, "zeros where a record should begin"),
            EndReason::Length { found } => write!(f, "record length {found} is below 24"),
            EndReason::TooLong { found } => write!(f, "record length {found} is above 1020 MiB"),
            EndReason::ResourceManager { found } => write!(f, "invalid resource manager {found}"),
            EndReason::Previous { expected, found } => {
                write!(f, "the record says that {found} is before it, but {expected} is")
            }
            EndReason::Crc { stored, computed } => {
                write!(f, "record CRC is {computed:08X}, the record says {stored:08X}")
            }
            EndReason::PageMagic { expected, found } => {
                write!(f, "page magic {found:04X} instead of {expected:04X}")
            }
            EndReason::PageFlags { found } => write!(f, "invalid page flags {found:04X}"),
            EndReason::PageAddress { expected, found } => {
                write!(f, "page address {found} instead of {expected}")
            }
            EndReason::PageTimeline { found } => write!(f, "unexpected timeline {found} in a page"),
            EndReason::Foreign => write!(f, "page of another cluster or with another geometry"),
            EndReason::Continuation { expected, found } => {
                write!(
                    f,
                    "a record goes on with {expected} bytes, but the page continues one of {found}"
                )
            }
            EndReason::Malformed { what } => write!(f, "malformed record: {what}"),
        }
    }
}

impl fmt::Display for EndOfWal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}", self.reason, self.at)
    }
}
