//! The words that object names are made of: clusters, runs, packs.

use std::fmt;
use std::str::FromStr;

use diagnostic::{Error, Result};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The identifier of a run and of the backup that it makes: the moment at which it began, `YYYYMMDDTHHMMSSZ`.
///
/// Ordered by time.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RunId([u8; 16]);

/// A backup has the identifier of the run that made it.
pub type BackupId = RunId;

impl RunId {
    /// The identifier of a run that begins at this moment (its second, in UTC).
    pub fn at(moment: jiff::Timestamp) -> Self {
        let text = moment.strftime("%Y%m%dT%H%M%SZ").to_string();
        let mut bytes = *b"00000101T000000Z";
        if let Some(text) = text.as_bytes().first_chunk::<16>() {
            bytes = *text;
        }
        RunId(bytes)
    }

    /// The 16 characters.
    pub fn as_str(&self) -> &str {
        // Checked to be ASCII by every constructor.
        std::str::from_utf8(&self.0).unwrap_or("")
    }

    /// The moment that the identifier names.
    pub fn moment(&self) -> Option<jiff::Timestamp> {
        let civil = jiff::civil::DateTime::strptime("%Y%m%dT%H%M%SZ", self.as_str()).ok()?;
        civil
            .to_zoned(jiff::tz::TimeZone::UTC)
            .ok()
            .map(|zoned| zoned.timestamp())
    }
}

impl FromStr for RunId {
    type Err = Error;

    /// Error: `backup-id-syntax`.
    fn from_str(text: &str) -> Result<Self> {
        let shaped = text.bytes().enumerate().all(|(at, byte)| match at {
            8 => byte == b'T',
            15 => byte == b'Z',
            _ => byte.is_ascii_digit(),
        });
        match text.as_bytes().first_chunk::<16>() {
            Some(bytes) if shaped && text.len() == 16 => Ok(RunId(*bytes)),
            _ => Err(Error::usage(
                "backup-id-syntax",
                format!("\"{}\" does not name a backup", text.escape_default()),
            )
            .detail("A backup is named by the moment at which it began, as in 20260815T020003Z.")
            .hint("Run `pgproof list` to see the backups.")),
        }
    }
}

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl fmt::Debug for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for RunId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for RunId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl serde::de::Visitor<'_> for Text {
            type Value = RunId;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a run's identifier")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<RunId, E> {
                text.parse().map_err(|error: Error| E::custom(error.message()))
            }
        }
        deserializer.deserialize_str(Text)
    }
}

/// Names a pack of a cluster: rows or map by context.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PackRef {
    /// The run that wrote it.
    pub run: RunId,
    /// Its number within the run, from 1; rows packs and map packs count apart.
    pub number: u32,
}

/// Which of a run's two sequences of packs is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PackKind {
    Rows,
    Map,
}

impl PackKind {
    fn suffix(self) -> &'static str {
        match self {
            PackKind::Rows => "rows",
            PackKind::Map => "map",
        }
    }
}

/// Refuses a name that a cluster cannot have. Error: `cluster-name`.
pub fn check_cluster_name(name: &str) -> Result<()> {
    let first = name
        .bytes()
        .next()
        .is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    let rest = name
        .bytes()
        .all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-'));
    if first && rest && name.len() <= 63 {
        return Ok(());
    }
    Err(Error::usage(
        "cluster-name",
        format!("\"{}\" cannot be a cluster's name", name.escape_default()),
    )
    .detail(
        "A name has up to 63 lower-case letters, digits, \"_\" and \"-\"; it begins with a letter or digit.",
    ))
}

/// The number in a name such as `00000001`.
pub(crate) fn parse_counter(text: &str) -> Option<u32> {
    (text.len() == 8 && text.bytes().all(|byte| byte.is_ascii_digit())).then(|| text.parse().ok())?
}

/// Where a cluster's objects lie.
#[derive(Debug, Clone)]
pub(crate) struct ClusterNames {
    pub(crate) prefix: String,
}

impl ClusterNames {
    pub(crate) fn new(cluster: &str) -> Self {
        ClusterNames {
            prefix: format!("clusters/{cluster}"),
        }
    }

    pub(crate) fn record(&self, backup: BackupId) -> String {
        format!("{}/backups/{backup}", self.prefix)
    }

    pub(crate) fn backups(&self) -> String {
        format!("{}/backups/", self.prefix)
    }

    pub(crate) fn pack(&self, kind: PackKind, pack: &PackRef) -> String {
        format!(
            "{}/packs/{}/{:08}.{}",
            self.prefix,
            pack.run,
            pack.number,
            kind.suffix()
        )
    }

    pub(crate) fn packs(&self) -> String {
        format!("{}/packs/", self.prefix)
    }

    pub(crate) fn packs_of(&self, run: RunId) -> String {
        format!("{}/packs/{run}/", self.prefix)
    }

    /// Kind and number of a pack by the last component of its name.
    pub(crate) fn parse_pack(file: &str) -> Option<(PackKind, u32)> {
        let (number, suffix) = file.split_once('.')?;
        let kind = match suffix {
            "rows" => PackKind::Rows,
            "map" => PackKind::Map,
            _ => return None,
        };
        Some((kind, parse_counter(number)?))
    }

    pub(crate) fn intents(&self) -> String {
        format!("{}/intents/", self.prefix)
    }

    pub(crate) fn intent(&self, run: RunId, number: u32) -> String {
        format!("{}/intents/{run}/{number:08}", self.prefix)
    }

    pub(crate) fn wal(&self) -> String {
        format!("{}/wal/", self.prefix)
    }

    pub(crate) fn pins(&self) -> String {
        format!("{}/pins/", self.prefix)
    }

    pub(crate) fn leases(&self) -> String {
        format!("{}/leases/", self.prefix)
    }

    pub(crate) fn expiries(&self) -> String {
        format!("{}/expiries/", self.prefix)
    }

    pub(crate) fn verifications(&self) -> String {
        format!("{}/verifications/", self.prefix)
    }

    pub(crate) fn condemned(&self) -> String {
        format!("{}/condemned/", self.prefix)
    }

    pub(crate) fn evidence(&self) -> String {
        format!("{}/evidence/", self.prefix)
    }

    pub(crate) fn evidence_chain(&self) -> String {
        format!("{}/evidence-chain/", self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_named_by_its_second() {
        let moment: jiff::Timestamp = "2026-08-15T02:00:03.7Z".parse().unwrap();
        let run = RunId::at(moment);
        assert_eq!(run.as_str(), "20260815T020003Z");
        assert_eq!(run.moment(), Some("2026-08-15T02:00:03Z".parse().unwrap()));
        assert_eq!("20260815T020003Z".parse::<RunId>().unwrap(), run);
        for bad in [
            "",
            "20260815T020003",
            "2026-815T020003Z",
            "20260815T020003Z/",
            "20260815T0200\u{e9}Z",
        ] {
            assert_eq!(bad.parse::<RunId>().unwrap_err().code(), "backup-id-syntax");
        }
    }

    #[test]
    fn a_cluster_name_cannot_climb_out_of_its_prefix() {
        assert!(check_cluster_name("main").is_ok());
        assert!(check_cluster_name("0-a_b").is_ok());
        for bad in ["", "-a", "_a", "Main", "a/b", "..", "a.b", &"a".repeat(64)] {
            assert_eq!(check_cluster_name(bad).unwrap_err().code(), "cluster-name");
        }
    }
}
