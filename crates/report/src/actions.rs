//! What follows from a verdict for whoever plans the week: one action for each kind of reason.

use drill::facts::Facts;
use drill::{Status, Verdict, Weight, code};
use jiff::{SignedDuration, Timestamp};

/// Within this time after a failed drill the next one is due.
pub const REDRILL_DAYS: i64 = 14;

/// Something to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Action {
    pub text: String,
    /// `High`, `Medium`.
    pub priority: &'static str,
    pub due: Option<Timestamp>,
    /// The reason that asks for it.
    pub from: String,
}

/// The actions, without repetition, the most urgent first.
pub fn of(facts: &Facts, verdict: &Verdict) -> Vec<Action> {
    let mut actions: Vec<Action> = Vec::new();
    for (at, reason) in verdict.reasons.iter().enumerate() {
        let text = text_of(&reason.code);
        if !actions.iter().any(|known| known.text == text) {
            actions.push(Action {
                text: text.into(),
                priority: if reason.weight == Weight::Observation {
                    "Medium"
                } else {
                    "High"
                },
                due: None,
                from: format!("/reasons/{at}/code"),
            });
        }
    }
    if verdict.status == Status::Failed {
        let ended = facts.finished_at.unwrap_or(facts.started_at);
        actions.push(Action {
            text: "Drill again after the fix".into(),
            priority: "High",
            due: ended
                .checked_add(SignedDuration::from_hours(REDRILL_DAYS * 24))
                .ok(),
            from: "/verdict".into(),
        });
    }
    actions
}

fn text_of(reason: &str) -> &'static str {
    match reason {
        code::WAL_MISSING => "Find the missing WAL, or take a new base backup today",
        code::OBJECT_DAMAGED => {
            "Run pgproof verify, restore the object from another copy, take a new base backup"
        }
        code::HISTORY_POISONED => {
            "Find out which copy archived its own timeline, and remove that history from the archive"
        }
        code::ROWS_DIFFER | code::ROWS_UNREADABLE | code::SEQUENCE_BEHIND => {
            "Escalate to the data's owner; compare the tables named above with a restore of the backup before"
        }
        code::PAGE_CHECKSUMS_BAD | code::AMCHECK_FAILED => {
            "Check production for the same damage with amcheck and pg_checksums"
        }
        code::RTO_EXCEEDED | code::RTO_AT_RISK => {
            "Shorten the recovery (more frequent backups, faster storage) or agree another objective"
        }
        code::RPO_EXCEEDED => "Lower archive_timeout, or find out why archiving lags",
        code::NOT_ARCHIVED => "Find out why archive_command fails; until then every commit is at risk",
        code::ARCHIVE_COMMAND_WOULD_RUN | code::ARCHIVE_CHANGED | code::QUARANTINE_BREACHED => {
            "Do not run another drill on this host before the isolation is repaired"
        }
        code::QUARANTINE_PARTIAL | code::QUARANTINE_CONFIGURATION_ONLY => {
            "Run drills on a kernel and under an account that allow every layer of isolation"
        }
        code::COLLATION_MISMATCH => {
            "Reindex after recovery on hosts with this library version, and say so in the runbook"
        }
        code::TARGET_UNREACHABLE | code::TARGET_NOT_REACHED | code::RECOVERY_STOPPED_EARLY => {
            "Find out why the target could not be reached, then drill again"
        }
        code::CHECK_FAILED => {
            "Compare the failed check with production; decide whether the check or the data is wrong"
        }
        code::MANUAL_STEP_OPEN => "Do by hand what was left open, and say beforehand who confirms it",
        code::NO_BACKUP => "Take a base backup today",
        code::KEY_WRONG => "Put back the key from where its copy is kept; without it nothing can be restored",
        code::NOT_TORN_DOWN => "Remove what the drill left behind: it holds production's rows",
        _ => "Look into it and drill again",
    }
}

/// What a person does about a reason that decided the verdict.
pub fn troubleshooting(reason: &str) -> &'static str {
    match reason {
        code::WAL_MISSING | code::TARGET_UNREACHABLE => {
            "`pgproof wal gaps` lists what is missing; if the segment is still in the primary's pg_wal, `pgproof wal push` it"
        }
        code::OBJECT_DAMAGED => "`pgproof verify` names every damaged object and what depends on it",
        code::KEY_WRONG => "`pgproof key show` says which key opens which repository",
        code::NO_BACKUP => "`pgproof list` shows the backups; `pgproof backup` takes one",
        code::RTO_EXCEEDED | code::RTO_AT_RISK => {
            "The phases above say where the time went; begin with the longest"
        }
        code::RPO_EXCEEDED | code::NOT_ARCHIVED => {
            "`pgproof status` shows what waits to be archived, and pg_stat_archiver why"
        }
        code::HISTORY_POISONED => {
            "The history named above is the archive's; no server of yours wrote that timeline"
        }
        code::ROWS_DIFFER => {
            "Restore the same LSN from the backup before, and compare: the version that differs alone is the damaged one"
        }
        code::MANUAL_STEP_OPEN => {
            "`pgproof drill confirm` answers while the drill waits, and `drill run --confirm` beforehand; `limit` says how long it waits"
        }
        code::SERVER_ENDED | code::PAUSED_BY_PARAMETER_CHANGE | code::RECOVERY_STOPPED_EARLY => {
            "The copy's own log below says why"
        }
        _ => "The check's line above says what was expected and what was seen",
    }
}
