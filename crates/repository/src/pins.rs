//! Pins: backups that retention must not remove, and why.
//!
//! Invariant: pinning and releasing are statements of their own, numbered for each backup; the last one
//! holds, the others stay as its history.

use diagnostic::{Error, Result};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::actions::ActionBy;
use crate::container::Kind;
use crate::names::BackupId;
use crate::repository::ClusterRepository;
use crate::store::Put;

/// Others that may be faster when a statement is made.
const STATEMENTS_TRIED: u32 = 100;

/// The last word about keeping a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pin {
    version: u32,
    pub backup: BackupId,
    pub pinned: bool,
    pub reason: String,
    pub at: Timestamp,
    /// The pin ends by itself then.
    #[serde(default)]
    pub until: Option<Timestamp>,
    /// Who said so; earlier versions did not ask.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<ActionBy>,
}

impl Pin {
    /// Keeps the backup at this moment.
    pub fn holds(&self, now: Timestamp) -> bool {
        self.pinned && self.until.is_none_or(|until| now < until)
    }
}

impl ClusterRepository {
    /// Keeps a backup until it is released, or until that moment. Error: `backup-missing`, also if it was
    /// expired in this very moment.
    pub fn pin(
        &self,
        backup: BackupId,
        reason: &str,
        until: Option<Timestamp>,
        by: Option<&ActionBy>,
        now: Timestamp,
    ) -> Result<()> {
        self.backup(backup)?;
        self.state_pin(Pin {
            version: 1,
            backup,
            pinned: true,
            reason: reason.to_string(),
            at: now,
            until,
            by: by.cloned(),
        })?;
        // Whoever expires looks at pins directly before the record goes: now it is kept, or gone.
        self.backup(backup).map(drop)
    }

    /// Releases a backup; one that was never pinned is no error.
    pub fn unpin(&self, backup: BackupId, reason: &str, by: Option<&ActionBy>, now: Timestamp) -> Result<()> {
        match self.pin_of(backup)? {
            Some(pin) if pin.pinned => self.state_pin(Pin {
                version: 1,
                backup,
                pinned: false,
                reason: reason.to_string(),
                at: now,
                until: None,
                by: by.cloned(),
            }),
            _ => Ok(()),
        }
    }

    fn pin_prefix(&self, backup: BackupId) -> String {
        format!("{}{backup}/", self.names().pins())
    }

    fn state_pin(&self, pin: Pin) -> Result<()> {
        let prefix = self.pin_prefix(pin.backup);
        for _ in 0..STATEMENTS_TRIED {
            let number = self
                .newest_numbered(&prefix)?
                .map_or(0, |(number, _)| number)
                .saturating_add(1);
            if self.put_statement(Kind::Statement, &format!("{prefix}{number:08}"), &pin)? == Put::Created {
                return Ok(());
            }
        }
        Err(Error::new(
            "pin-conflict",
            format!("backup {} could not be pinned or released", pin.backup),
        )
        .hint("Run the command again."))
    }

    /// The last statement about a backup.
    pub fn pin_of(&self, backup: BackupId) -> Result<Option<Pin>> {
        match self.newest_numbered(&self.pin_prefix(backup))? {
            Some((_, name)) => self.get_statement(Kind::Statement, &name),
            None => Ok(None),
        }
    }

    /// All statements about all backups, in order of time.
    pub fn pin_statements(&self) -> Result<Vec<Pin>> {
        let mut pins: Vec<Pin> = Vec::new();
        for object in self.store().list(&self.names().pins())? {
            pins.extend(self.get_statement(Kind::Statement, &object.name)?);
        }
        pins.sort_by_key(|pin| pin.at);
        Ok(pins)
    }

    /// The last statement about each backup that ever had one, oldest backup first.
    pub fn pins(&self) -> Result<Vec<Pin>> {
        let mut pins = Vec::new();
        for folder in self.store().list_folders(&self.names().pins())? {
            if let Ok(backup) = folder.parse()
                && let Some(pin) = self.pin_of(backup)?
            {
                pins.push(pin);
            }
        }
        Ok(pins)
    }
}
