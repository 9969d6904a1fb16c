//! A lease in the hand of a command: renewed by a thread of its own, and released when it is let go.
//!
//! Invariant: a copy that cannot be written is no reason not to restore from it; that nothing keeps `expire` away then is
//! said. A backup that was expired meanwhile is an error.

use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use diagnostic::Result;
use jiff::{SignedDuration, Timestamp};
use repository::{Backup, ClusterRepository, HeldLease};

use crate::copies::OpenCopy;
use crate::{exit, output};

/// How often a renewal is thought of.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// Leases that are held.
#[derive(Default)]
pub struct Leases {
    held: Vec<Arc<HeldLease>>,
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
    released: Mutex<bool>,
}

/// Takes a lease on each of these backups of a copy. Error: `backup-missing`.
pub fn take<'a>(
    copy: &OpenCopy,
    backups: impl IntoIterator<Item = &'a Backup>,
    purpose: &str,
) -> Result<Leases> {
    let by = crate::commands::host_name();
    let mut held = Vec::new();
    for backup in backups {
        match take_one(&copy.cluster, backup, purpose, &by) {
            Ok(lease) => held.push(Arc::new(lease)),
            Err(error) if error.code() == "backup-missing" => return Err(error),
            Err(error) => {
                output::notice(format!(
                    "warning: no lease could be taken in copy {:?}; do not run `pgproof expire` until this is done",
                    copy.name
                ));
                exit::print_error(&error);
                break;
            }
        }
    }
    if held.is_empty() {
        return Ok(Leases::default());
    }
    let (stop, stopped) = channel::<()>();
    let renewed = held.clone();
    let thread = std::thread::spawn(move || {
        while let Err(RecvTimeoutError::Timeout) = stopped.recv_timeout(LOOK_EVERY) {
            for lease in &renewed {
                // Tried again in a minute; a lease outlives many failures.
                let _ = lease.renew(Timestamp::now());
            }
        }
    });
    Ok(Leases {
        held,
        stop: Some(stop),
        thread: Some(thread),
        released: Mutex::new(false),
    })
}

fn take_one(cluster: &ClusterRepository, backup: &Backup, purpose: &str, by: &str) -> Result<HeldLease> {
    cluster.take_lease(backup, purpose, by, Timestamp::now())
}

impl Leases {
    /// None could be taken: the copy is not ours to write, or is away.
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// Lets go, but leaves the leases standing for so long.
    pub fn leave_for(self, length: SignedDuration) {
        let now = Timestamp::now();
        self.release(now.checked_add(length).ok());
    }

    fn release(&self, until: Option<Timestamp>) {
        let Ok(mut released) = self.released.lock() else {
            return;
        };
        if std::mem::replace(&mut *released, true) {
            return;
        }
        for lease in &self.held {
            // Unreleased, it ends by itself within the hour.
            let _ = lease.release(Timestamp::now(), until);
        }
    }
}

impl Drop for Leases {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        self.release(None);
    }
}
