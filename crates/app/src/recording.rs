//! The record of what a person does with the backups, in the hand of the command that does it.
//!
//! Invariants: it stands in the repository before the first write of what it tells of; a repository that cannot be
//! written stops nothing, and that nothing is recorded is said once; of an error its code alone is kept.

use diagnostic::Error;
use jiff::Timestamp;
use repository::{ActionBegun, ActionBy, ActionEnded, ActionKind, ClusterRepository, OpenAction};

use crate::account::Account;
use crate::commands::host_name;
use crate::copies::OpenCopy;
use crate::output;

/// What the kernel says of a process that nobody logged in for.
const NOBODY_LOGGED_IN: u32 = u32::MAX;
/// The code of a store that does not answer: it takes no record either, and asking it again takes its time.
const AWAY: &str = "store-unreachable";

/// An action that goes on, if any copy took its record.
pub struct Recording {
    open: Option<(ClusterRepository, OpenAction)>,
    kind: ActionKind,
}

/// What is about to be done by this process, with nothing of what only some actions have.
pub fn begun(kind: ActionKind, cluster: &str, at: Timestamp) -> ActionBegun {
    ActionBegun::new(kind, at, by(), cluster, env!("CARGO_PKG_VERSION"))
}

/// Who runs this process, as far as the machine knows.
pub fn by() -> ActionBy {
    let current = Account::current();
    let login = std::fs::read_to_string("/proc/self/loginuid").ok();
    let login: Option<u32> = login.and_then(|text| text.trim().parse().ok());
    let login = login.filter(|uid| *uid != NOBODY_LOGGED_IN);
    ActionBy {
        account: current.name(),
        uid: current.uid,
        login: login.map(|uid| Account { uid, ..current }.name()),
        sudo_user: std::env::var("SUDO_USER").ok().filter(|name| !name.is_empty()),
        host: host_name(),
    }
}

/// Records the beginning in the first of these copies that takes it.
pub fn begin<'a>(copies: impl IntoIterator<Item = &'a OpenCopy>, begun: &ActionBegun) -> Recording {
    let mut why = None;
    for copy in copies {
        match copy.cluster.begin_action(begun) {
            Ok(action) => {
                return Recording {
                    open: Some((copy.cluster.clone(), action)),
                    kind: begun.action,
                };
            }
            Err(error) => why = Some(error),
        }
    }
    none(begun.action, why.as_ref())
}

/// Nothing can be recorded, which is said.
pub fn none(kind: ActionKind, why: Option<&Error>) -> Recording {
    warn(kind, why);
    Recording { open: None, kind }
}

fn warn(kind: ActionKind, why: Option<&Error>) {
    let why = why.map_or_else(String::new, |error| {
        format!(": {} ({})", error.message(), error.code())
    });
    output::notice(format!(
        "warning: no copy of the backups took the record of this {}{why}",
        kind.as_str()
    ));
}

impl Recording {
    pub fn done(self, at: Timestamp, bytes: Option<u64>, files: Option<u64>) {
        self.end(&ActionEnded::done(at, bytes, files));
    }

    pub fn failed(self, at: Timestamp, error: &Error) {
        if error.code() == AWAY && self.open.is_some() {
            warn(self.kind, Some(error));
            return;
        }
        self.end(&ActionEnded::failed(at, error.code()));
    }

    fn end(self, ended: &ActionEnded) {
        if let Some((cluster, action)) = &self.open
            && let Err(error) = cluster.end_action(action, ended)
        {
            warn(self.kind, Some(&error));
        }
    }
}

/// Records that a backup into this copy failed, which began at `began`. A copy that is away is not asked again.
pub fn failed_backup(
    copies: &[OpenCopy],
    cluster: &str,
    copy: &str,
    began: Timestamp,
    now: Timestamp,
    error: &Error,
) {
    let mut begun = begun(ActionKind::Backup, cluster, began);
    begun.copy = Some(copy.to_owned());
    let (own, others): (Vec<_>, Vec<_>) = copies.iter().partition(|other| other.name == copy);
    let own = own.into_iter().filter(|_| error.code() != AWAY);
    begin(own.chain(others), &begun).end(&ActionEnded::failed(now, error.code()));
}
