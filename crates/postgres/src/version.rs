//! Major versions of PostgreSQL that we support, and how each of its formats names its version.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A supported major version of PostgreSQL, 13 to 18.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u16", into = "u16")]
pub struct Major(pub u16);

/// major, `PG_CONTROL_VERSION`, `CATALOG_VERSION_NO`, `XLOG_PAGE_MAGIC` of each release (not of its betas).
const RELEASES: [(u16, u32, u32, u16); 6] = [
    (13, 1300, 202_007_201, 0xD106),
    (14, 1300, 202_107_181, 0xD10D),
    (15, 1300, 202_209_061, 0xD110),
    (16, 1300, 202_307_071, 0xD113),
    (17, 1700, 202_406_281, 0xD116),
    (18, 1800, 202_506_291, 0xD118),
];

impl Major {
    /// The oldest supported one.
    pub const OLDEST: Major = Major(13);
    /// The newest supported one.
    pub const NEWEST: Major = Major(18);

    /// From its number: `15`.
    pub fn new(number: u16) -> Option<Major> {
        (Major::OLDEST.0..=Major::NEWEST.0)
            .contains(&number)
            .then_some(Major(number))
    }

    /// From `pg_control_version` and `catalog_version_no` of the control file.
    pub fn from_control_version(pg_control_version: u32, catalog_version: u32) -> Option<Major> {
        RELEASES
            .iter()
            .find(|(_, control, catalog, _)| (*control, *catalog) == (pg_control_version, catalog_version))
            .map(|release| Major(release.0))
    }

    /// From `xlp_magic`, the first two bytes of each WAL page.
    pub fn from_wal_magic(magic: u16) -> Option<Major> {
        RELEASES
            .iter()
            .find(|release| release.3 == magic)
            .map(|release| Major(release.0))
    }

    /// From `server_version_num`: 150018 is 15.
    pub fn from_version_num(server_version_num: u32) -> Option<Major> {
        u16::try_from(server_version_num / 10_000)
            .ok()
            .and_then(Major::new)
    }

    /// `xlp_magic` of this version's WAL pages.
    pub fn wal_magic(self) -> u16 {
        self.release().3
    }

    /// `CATALOG_VERSION_NO` of this version.
    pub fn catalog_version(self) -> u32 {
        self.release().2
    }

    /// The directory that this version makes inside each tablespace: `PG_15_202209061`.
    pub fn version_directory(self) -> String {
        format!("PG_{}_{}", self.0, self.catalog_version())
    }

    fn release(self) -> (u16, u32, u32, u16) {
        let index = usize::from(self.0.clamp(Major::OLDEST.0, Major::NEWEST.0) - Major::OLDEST.0);
        RELEASES[index]
    }
}

impl TryFrom<u16> for Major {
    type Error = String;

    fn try_from(number: u16) -> Result<Self, String> {
        Major::new(number).ok_or_else(|| format!("PostgreSQL {number} is not supported (13 to 18 are)"))
    }
}

impl From<Major> for u16 {
    fn from(major: Major) -> u16 {
        major.0
    }
}

impl fmt::Display for Major {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_format_names_the_same_release() {
        for (number, control, catalog, magic) in RELEASES {
            let major = Major::new(number).unwrap();
            assert_eq!(Major::from_control_version(control, catalog), Some(major));
            assert_eq!(Major::from_wal_magic(magic), Some(major));
            assert_eq!(
                Major::from_version_num(u32::from(number) * 10_000 + 3),
                Some(major)
            );
            assert_eq!((major.wal_magic(), major.catalog_version()), (magic, catalog));
        }
        assert_eq!(Major(15).version_directory(), "PG_15_202209061");
        assert_eq!(Major::from_control_version(1300, 202_506_291), None);
        assert_eq!(Major::from_version_num(120_003), None);
        assert_eq!(Major::from_version_num(190_000), None);
    }
}
