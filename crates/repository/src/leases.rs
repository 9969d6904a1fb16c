//! Leases: somebody reads a backup, and the WAL behind it, for long. `docs/format.md` section 7.
//!
//! Invariants: leases are create-only objects, a new name for each renewal; the last statement of a holder
//! holds; the backup's record is read after the lease is durable, so a reader that holds a lease on a backup
//! that is there keeps it there.

use std::sync::Mutex;

use diagnostic::{Error, Result};
use jiff::{SignedDuration, Timestamp};
use postgres::{Lsn, SystemIdentifier};
use serde::{Deserialize, Serialize};

use crate::backup::Backup;
use crate::container::Kind;
use crate::names::{BackupId, RunId};
use crate::nodes::lock;
use crate::repository::ClusterRepository;
use crate::store::Put;

/// How long a lease lives without renewal.
pub const LEASE_LIFE: SignedDuration = SignedDuration::from_hours(1);
/// A lease is renewed when it is older than this.
const LEASE_RENEWAL: SignedDuration = SignedDuration::from_mins(10);

/// The last word of one holder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    version: u32,
    pub holder: String,
    /// `restore`, `drill`, ...
    pub purpose: String,
    /// Which host, for people.
    pub by: String,
    pub backup: BackupId,
    pub system: SystemIdentifier,
    /// WAL from here on may be read, of any timeline.
    pub from_lsn: Lsn,
    pub taken_at: Timestamp,
    pub expires_at: Timestamp,
}

impl Lease {
    /// Honoured at this moment; a clock that runs behind does not end it early.
    pub fn is_live(&self, now: Timestamp) -> bool {
        now < self.expires_at
    }
}

/// A lease in one process's hand.
#[derive(Debug)]
pub struct HeldLease {
    cluster: ClusterRepository,
    state: Mutex<(Lease, u32, Timestamp)>,
}

impl ClusterRepository {
    /// Takes a lease on a backup. Errors: `backup-missing` if it was expired meanwhile; those of the store.
    pub fn take_lease(&self, backup: &Backup, purpose: &str, by: &str, now: Timestamp) -> Result<HeldLease> {
        let mut random = [0; 4];
        crate::keys::random(&mut random)?;
        let holder = format!("{}-{}", RunId::at(now), crate::hex::encode(&random));
        let lease = Lease {
            version: 1,
            holder,
            purpose: purpose.to_string(),
            by: by.to_string(),
            backup: backup.backup,
            system: backup.system_identifier,
            from_lsn: backup.redo_lsn,
            taken_at: now,
            expires_at: now.saturating_add(LEASE_LIFE).unwrap_or(now),
        };
        let held = HeldLease {
            cluster: self.clone(),
            state: Mutex::new((lease.clone(), 0, now)),
        };
        held.state_next(&mut lock(&held.state), lease, now)?;
        // Before the lease was durable, somebody may have decided to remove it.
        if let Err(error) = self.backup(backup.backup) {
            let _ = held.release(now, None);
            return Err(error);
        }
        Ok(held)
    }

    /// The last statement of each holder, also of those whose lease has ended, oldest holder first.
    pub fn leases(&self) -> Result<Vec<Lease>> {
        let mut leases = Vec::new();
        for holder in self.store().list_folders(&self.names().leases())? {
            let prefix = format!("{}{holder}/", self.names().leases());
            if let Some((_, name)) = self.newest_numbered(&prefix)?
                && let Some(lease) = self.get_statement::<Lease>(Kind::Statement, &name)?
            {
                leases.push(lease);
            }
        }
        Ok(leases)
    }

    /// The leases that are honoured now.
    pub fn live_leases(&self, now: Timestamp) -> Result<Vec<Lease>> {
        let mut leases = self.leases()?;
        leases.retain(|lease| lease.is_live(now));
        Ok(leases)
    }
}

impl HeldLease {
    /// Extends the lease if its last statement is older than 10 minutes; cheap otherwise.
    pub fn renew(&self, now: Timestamp) -> Result<()> {
        let mut state = lock(&self.state);
        if now.duration_since(state.2) < LEASE_RENEWAL {
            return Ok(());
        }
        let lease = Lease {
            expires_at: now.saturating_add(LEASE_LIFE).unwrap_or(now),
            ..state.0.clone()
        };
        self.state_next(&mut state, lease, now)
    }

    /// Ends the lease, or leaves it until that moment.
    pub fn release(&self, now: Timestamp, until: Option<Timestamp>) -> Result<()> {
        let mut state = lock(&self.state);
        let lease = Lease {
            expires_at: until.unwrap_or(now),
            ..state.0.clone()
        };
        self.state_next(&mut state, lease, now)
    }

    /// What the last statement says.
    pub fn lease(&self) -> Lease {
        lock(&self.state).0.clone()
    }

    fn state_next(&self, state: &mut (Lease, u32, Timestamp), lease: Lease, now: Timestamp) -> Result<()> {
        let number = state.1 + 1;
        let name = format!("{}{}/{number:08}", self.cluster.names().leases(), lease.holder);
        match self.cluster.put_statement(Kind::Statement, &name, &lease)? {
            Put::Created => {
                *state = (lease, number, now);
                Ok(())
            }
            // The holder's name is ours alone.
            Put::Exists => Err(Error::new(
                "lease-conflict",
                format!("object \"{name}\" was written by somebody else"),
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repository::tests::{now, repository};

    #[test]
    fn a_lease_lives_an_hour_is_renewed_under_a_new_name_and_ends_when_released() {
        let (_directory, _key, repository) = repository();
        let cluster = repository.cluster("main").unwrap();
        let lease = Lease {
            version: 1,
            holder: "20260815T020003Z-00000000".into(),
            purpose: "restore".into(),
            by: "here".into(),
            backup: RunId::at(now()),
            system: SystemIdentifier(7),
            from_lsn: Lsn(1),
            taken_at: now(),
            expires_at: now() + LEASE_LIFE,
        };
        let held = HeldLease {
            cluster: cluster.clone(),
            state: Mutex::new((lease.clone(), 0, now())),
        };
        held.state_next(&mut lock(&held.state), lease, now()).unwrap();
        let after = |minutes| now() + SignedDuration::from_mins(minutes);
        assert_eq!(cluster.live_leases(after(59)).unwrap().len(), 1);
        assert_eq!(cluster.live_leases(after(60)).unwrap().len(), 0);
        held.renew(after(5)).unwrap();
        held.renew(after(50)).unwrap();
        assert_eq!(cluster.store().list(&cluster.names().leases()).unwrap().len(), 2);
        assert_eq!(cluster.live_leases(after(100)).unwrap().len(), 1);
        held.release(after(60), None).unwrap();
        assert_eq!(cluster.live_leases(after(60)).unwrap(), []);
        assert_eq!(cluster.leases().unwrap().len(), 1);
    }
}
