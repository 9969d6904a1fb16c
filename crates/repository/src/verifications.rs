//! What verifications saw: the record that `list` and `expire` rely on. `docs/format.md` section 7.
//!
//! Invariant: a statement is about the backups that it names and nothing else; a backup that is not named was
//! not looked at.

use diagnostic::{Error, Result};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::container::Kind;
use crate::names::BackupId;
use crate::repository::ClusterRepository;
use crate::store::Put;
use crate::verify::Finding;

/// Verifications that may be faster when one is stated.
const STATEMENTS_TRIED: u32 = 100;
/// Findings that a statement keeps.
const FINDINGS_MAX: usize = 1000;

/// One run of `verify`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verification {
    pub version: u32,
    pub began_at: Timestamp,
    pub finished_at: Timestamp,
    /// Every frame was opened and every block's digest compared.
    pub decoded: bool,
    pub objects: u64,
    pub bytes: u64,
    /// The backups that were there when it began.
    pub backups: Vec<BackupId>,
    /// The first 1000.
    pub findings: Vec<Finding>,
    pub findings_total: u64,
}

impl Verification {
    /// The findings that affect a backup itself.
    pub fn findings_of(&self, backup: BackupId) -> impl Iterator<Item = &Finding> {
        let word = format!("backup {backup}");
        let file = format!("backup {backup},");
        self.findings.iter().filter(move |finding| {
            let affects = &finding.affects;
            affects
                .iter()
                .any(|affected| *affected == word || affected.starts_with(&file))
        })
    }
}

impl ClusterRepository {
    /// Keeps what a verification saw.
    pub fn state_verification(&self, mut verification: Verification) -> Result<()> {
        verification.findings.truncate(FINDINGS_MAX);
        let prefix = self.names().verifications();
        for _ in 0..STATEMENTS_TRIED {
            let newest = self.newest_numbered(&prefix)?;
            let number = newest.map_or(0, |(number, _)| number).saturating_add(1);
            let name = format!("{prefix}{number:08}");
            if self.put_statement(Kind::Statement, &name, &verification)? == Put::Created {
                return Ok(());
            }
        }
        Err(Error::new(
            "verification-conflict",
            "others verify this repository at the same time",
        )
        .hint("Run the command again."))
    }

    /// All that are kept, oldest first.
    pub fn verifications(&self) -> Result<Vec<Verification>> {
        let mut verifications = Vec::new();
        for object in self.store().list(&self.names().verifications())? {
            verifications.extend(self.get_statement(Kind::Statement, &object.name)?);
        }
        Ok(verifications)
    }

    /// For each of these backups the newest verification that looked at it.
    pub fn last_verifications(&self, backups: &[BackupId]) -> Result<Vec<Option<Verification>>> {
        let mut found: Vec<Option<Verification>> = vec![None; backups.len()];
        let mut objects = self.store().list(&self.names().verifications())?;
        while let Some(object) = objects.pop() {
            if found.iter().all(Option::is_some) {
                break;
            }
            let Some(verification) = self.get_statement::<Verification>(Kind::Statement, &object.name)?
            else {
                continue;
            };
            for (backup, slot) in backups.iter().zip(&mut found) {
                if slot.is_none() && verification.backups.contains(backup) {
                    *slot = Some(verification.clone());
                }
            }
        }
        Ok(found)
    }
}
