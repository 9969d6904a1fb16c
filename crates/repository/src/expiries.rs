//! What expiring has removed, and when it last ran. `docs/format.md` section 7.
//!
//! Invariants: the statement with the highest number holds; its ranges of WAL are all that was ever let go,
//! so a hole in the archive that lies within them is no gap; the statement stands before the first deletion.

use diagnostic::{Error, Result};
use jiff::Timestamp;
use postgres::{SystemIdentifier, TimelineId};
use serde::{Deserialize, Serialize};

use crate::container::Kind;
use crate::names::BackupId;
use crate::repository::ClusterRepository;
use crate::store::Put;

/// Objects below it stand for a moment.
pub(crate) const PROBE: &str = "probe/";
/// Expiries that may be faster when one is stated.
const STATEMENTS_TRIED: u32 = 100;

/// WAL segments that were let go: numbers, inclusive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ExpiredWal {
    pub system: SystemIdentifier,
    pub timeline: TimelineId,
    pub first: u64,
    pub last: u64,
    /// Bytes.
    pub segment_size: u32,
}

/// What kept a backup that was to go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProtectedBackup {
    pub backup: BackupId,
    pub by: String,
}

/// One run of `expire`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Expiry {
    pub version: u32,
    pub at: Timestamp,
    /// Which host.
    pub by: String,
    /// False: it began; what it says is what it was going to do.
    pub finished: bool,
    pub removed: Vec<BackupId>,
    pub protected: Vec<ProtectedBackup>,
    /// All WAL that this and earlier expiries have let go.
    pub wal: Vec<ExpiredWal>,
    /// Objects that this one deleted.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Ranges in order, joined where they touch or overlap.
pub fn merge_expired(ranges: impl IntoIterator<Item = ExpiredWal>) -> Vec<ExpiredWal> {
    let mut ranges: Vec<ExpiredWal> = ranges
        .into_iter()
        .filter(|range| range.first <= range.last)
        .collect();
    ranges.sort();
    let mut merged: Vec<ExpiredWal> = Vec::new();
    for range in ranges {
        match merged.last_mut() {
            Some(last)
                if (last.system, last.timeline) == (range.system, range.timeline)
                    && range.first <= last.last.saturating_add(1) =>
            {
                last.last = last.last.max(range.last);
            }
            _ => merged.push(range),
        }
    }
    merged
}

impl ClusterRepository {
    /// The newest statement.
    pub fn last_expiry(&self) -> Result<Option<Expiry>> {
        match self.newest_numbered(&self.names().expiries())? {
            Some((_, name)) => self.get_statement(Kind::Statement, &name),
            None => Ok(None),
        }
    }

    /// The statements that were made at this moment or later, or all that are kept, oldest first.
    pub fn expiries(&self, since: Option<Timestamp>) -> Result<Vec<Expiry>> {
        let mut names = self.store().list(&self.names().expiries())?;
        let mut expiries = Vec::new();
        while let Some(object) = names.pop() {
            let Some(expiry) = self.get_statement::<Expiry>(Kind::Statement, &object.name)? else {
                continue;
            };
            // What stands before it is older.
            if since.is_some_and(|since| expiry.at < since) {
                break;
            }
            expiries.push(expiry);
        }
        expiries.reverse();
        Ok(expiries)
    }

    /// The newest statement of an expiry that came to its end.
    pub fn last_finished_expiry(&self) -> Result<Option<Expiry>> {
        let mut names = self.store().list(&self.names().expiries())?;
        while let Some(object) = names.pop() {
            if let Some(expiry) = self.get_statement::<Expiry>(Kind::Statement, &object.name)?
                && expiry.finished
            {
                return Ok(Some(expiry));
            }
        }
        Ok(None)
    }

    /// WAL that was let go, if any was.
    pub fn expired_wal(&self) -> Result<Vec<ExpiredWal>> {
        Ok(self.last_expiry()?.map(|expiry| expiry.wal).unwrap_or_default())
    }

    /// What the store's clock says: the date of an object that is written for the question, and deleted again.
    pub fn store_clock(&self) -> Result<Timestamp> {
        let mut random = [0; 8];
        crate::keys::random(&mut random)?;
        let name = format!("{PROBE}{}", crate::hex::encode(&random));
        self.store().put_new(&name, b"what time is it?")?;
        let listed = self.store().list(&name)?;
        self.delete(&name)?;
        match listed.first() {
            Some(object) => Ok(object.modified),
            None => Err(Error::new(
                "store-io",
                format!("object \"{name}\" was created and is not listed"),
            )),
        }
    }

    /// States an expiry; its ranges of WAL are joined with those of all before it.
    pub fn state_expiry(&self, mut expiry: Expiry) -> Result<()> {
        let prefix = self.names().expiries();
        for _ in 0..STATEMENTS_TRIED {
            let newest = self.newest_numbered(&prefix)?;
            if let Some((_, name)) = &newest
                && let Some(before) = self.get_statement::<Expiry>(Kind::Statement, name)?
            {
                expiry.wal = merge_expired(expiry.wal.into_iter().chain(before.wal));
            }
            let number = newest.map_or(0, |(number, _)| number).saturating_add(1);
            let name = format!("{prefix}{number:08}");
            if self.put_statement(Kind::Statement, &name, &expiry)? == Put::Created {
                return Ok(());
            }
        }
        Err(Error::new(
            "expiry-conflict",
            "others expire this repository at the same time",
        )
        .hint("Run the command again."))
    }
}
