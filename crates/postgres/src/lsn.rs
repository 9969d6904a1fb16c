//! Places in the WAL and the small numbers PostgreSQL names things by: LSN, timeline, system identifier, xid.
//!
//! Text forms are PostgreSQL's own, so that a value can be pasted into psql or a setting and back.

use std::fmt;
use std::str::FromStr;

use diagnostic::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// An object identifier (`Oid` of `postgres_ext.h`); 0 is `InvalidOid`.
pub type Oid = u32;

/// A byte position in the WAL stream (`XLogRecPtr`). 0 is invalid. Written `2A/8F000000`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lsn(pub u64);

impl Lsn {
    /// The segment number that holds the byte at this LSN; `segment_size` in bytes.
    pub fn segment(self, segment_size: u32) -> u64 {
        self.0 / u64::from(segment_size.max(1))
    }

    /// The offset of this byte in its segment; `segment_size` in bytes.
    pub fn offset_in_segment(self, segment_size: u32) -> u32 {
        // The remainder is below a u32, so that the cast cannot lose anything.
        (self.0 % u64::from(segment_size.max(1))) as u32
    }

    /// Bytes from `earlier` to here, if `earlier` is not later.
    pub fn checked_sub(self, earlier: Lsn) -> Option<u64> {
        self.0.checked_sub(earlier.0)
    }

    /// This LSN plus `bytes`, stopping at the end of the LSN space.
    pub fn saturating_add(self, bytes: u64) -> Lsn {
        Lsn(self.0.saturating_add(bytes))
    }

    /// The next multiple of 8 (`MAXALIGN`): where a record may begin.
    pub fn align8(self) -> Lsn {
        Lsn(self.0.saturating_add(7) & !7)
    }

    /// Not `InvalidXLogRecPtr`.
    pub fn is_valid(self) -> bool {
        self.0 != 0
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF))
    }
}

impl FromStr for Lsn {
    type Err = Error;

    /// Error code `lsn-syntax`.
    fn from_str(text: &str) -> Result<Self, Error> {
        let half = |part: &str| -> Option<u64> {
            let digits = (1..=8).contains(&part.len()) && part.bytes().all(|b| b.is_ascii_hexdigit());
            digits.then(|| u64::from_str_radix(part, 16).ok()).flatten()
        };
        text.split_once('/')
            .and_then(|(high, low)| Some(Lsn(half(high)? << 32 | half(low)?)))
            .ok_or_else(|| {
                Error::usage("lsn-syntax", format!("cannot read {text:?} as an LSN"))
                    .hint("An LSN is written as PostgreSQL prints it, for example 2A/8F000000.")
            })
    }
}

/// A 64-bit number that is a string in formats for people and for JavaScript, and a `u64` in ours.
macro_rules! text_where_people_read {
    ($number:ident) => {
        impl Serialize for $number {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                if serializer.is_human_readable() {
                    serializer.collect_str(self)
                } else {
                    serializer.serialize_u64(self.0)
                }
            }
        }

        impl<'de> Deserialize<'de> for $number {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                if deserializer.is_human_readable() {
                    String::deserialize(deserializer)?
                        .parse()
                        .map_err(de::Error::custom)
                } else {
                    u64::deserialize(deserializer).map($number)
                }
            }
        }
    };
}
text_where_people_read!(Lsn);

/// The number of a timeline (`TimeLineID`), from 1. It is no identity: two promotions may both make timeline
/// 2.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TimelineId(pub u32);

impl TimelineId {
    /// Eight upper-case hexadecimal digits, as in the names of WAL files.
    pub fn hex8(self) -> String {
        format!("{:08X}", self.0)
    }
}

impl fmt::Display for TimelineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// Names one database cluster for its whole life, standbys included. A string in JSON: it exceeds 2^53.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SystemIdentifier(pub u64);

impl fmt::Display for SystemIdentifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl FromStr for SystemIdentifier {
    type Err = Error;

    /// Error code `system-identifier-syntax`.
    fn from_str(text: &str) -> Result<Self, Error> {
        text.parse().map(SystemIdentifier).map_err(|_| {
            Error::usage(
                "system-identifier-syntax",
                format!("cannot read {text:?} as a system identifier"),
            )
            .hint("It is the decimal number that `pg_controldata` prints as \"Database system identifier\".")
        })
    }
}

text_where_people_read!(SystemIdentifier);

/// A transaction's 32-bit number (`TransactionId`); it wraps around. 0 means none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Xid(pub u32);

impl Xid {
    /// Not `InvalidTransactionId`.
    pub fn is_valid(self) -> bool {
        self.0 != 0
    }
}

impl fmt::Display for Xid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lsn_is_written_and_read_as_postgresql_does() {
        assert_eq!(Lsn(0x2A_8F00_0000).to_string(), "2A/8F000000");
        assert_eq!(Lsn(0).to_string(), "0/0");
        assert_eq!("2A/8F000000".parse::<Lsn>().unwrap(), Lsn(0x2A_8F00_0000));
        assert_eq!("0/16b3740".parse::<Lsn>().unwrap(), Lsn(0x16B_3740));
        assert_eq!("FFFFFFFF/FFFFFFFF".parse::<Lsn>().unwrap(), Lsn(u64::MAX));
        for bad in [
            "",
            "/",
            "1",
            "1/",
            "/1",
            "1/2/3",
            "+1/2",
            "1/+2",
            "123456789/0",
            "g/0",
            " 1/2",
            "1/2 ",
        ] {
            assert_eq!(bad.parse::<Lsn>().unwrap_err().code(), "lsn-syntax", "{bad:?}");
        }
    }

    #[test]
    fn lsn_knows_its_segment() {
        let lsn = Lsn(0x2A_8F00_0010);
        assert_eq!(lsn.segment(16 << 20), 0x2A8F);
        assert_eq!(lsn.offset_in_segment(16 << 20), 0x10);
        assert_eq!(Lsn(9).align8(), Lsn(16));
        assert_eq!(Lsn(16).align8(), Lsn(16));
        assert_eq!(Lsn(16).checked_sub(Lsn(9)), Some(7));
        assert_eq!(Lsn(9).checked_sub(Lsn(16)), None);
        assert_eq!(lsn.segment(0), lsn.0, "a size of nothing must not divide by zero");
    }

    #[test]
    fn serialised_forms_are_text_for_people_and_numbers_for_programs() {
        let lsn = Lsn(0x1_0000_0028);
        assert_eq!(
            postcard::to_stdvec(&lsn).unwrap(),
            postcard::to_stdvec(&lsn.0).unwrap()
        );
        assert_eq!(
            postcard::from_bytes::<Lsn>(&postcard::to_stdvec(&lsn).unwrap()).unwrap(),
            lsn
        );
    }
}
