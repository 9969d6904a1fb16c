//! What follows from a verdict for whoever plans the week: one action for each kind of reason.

use drill::facts::{Facts, Failure, Person};
use drill::{Reason, Status, Verdict, Weight, code, recorded_sqlstate};
use jiff::{SignedDuration, Timestamp};

use crate::document::{Text, value};
use crate::server_errors::{self, Advice};
use crate::words::duration;

/// Within this time after a failed drill the next one is due.
pub const REDRILL_DAYS: i64 = 14;

/// The one who is told when the recovery is late, or services stay down.
const ESCALATION: &str = "escalation";
/// Services that are down for so long are escalated, where the profile names no time.
const SERVICES_DOWN_MINUTES: u64 = 15;

/// Something to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Action {
    pub text: String,
    /// `High`, `Medium`.
    pub priority: &'static str,
    pub due: Option<Timestamp>,
    /// The reason that asks for it.
    pub from: String,
    /// Where the name in it stands.
    pub person: Option<String>,
}

impl Action {
    /// The text with the places that it was made of.
    pub fn said(&self) -> Text {
        let text = value(&self.text, &self.from);
        match &self.person {
            Some(person) => text.and(person),
            None => text,
        }
    }
}

/// From when on somebody is called: `from 30 min on`.
pub fn called(person: &Person) -> Option<String> {
    Some(match person.called_after_seconds? {
        0 => "from the start on".to_owned(),
        seconds => format!("from {} on", duration(seconds.saturating_mul(1000))),
    })
}

/// Whom to tell, in words, and where that name stands.
fn escalation(facts: &Facts) -> (String, Option<String>) {
    let mut others = facts.people.others.iter().enumerate();
    let Some((at, person)) = others.find(|(_, person)| person.role == ESCALATION) else {
        let words = "tell the escalation contact (none is named: [drill.NAME.people])";
        return (words.to_owned(), None);
    };
    let when =
        called(person).unwrap_or_else(|| format!("when services stay down for {SERVICES_DOWN_MINUTES} min"));
    let words = format!("tell {}, the escalation contact, {when}", person.name);
    (words, Some(format!("/people/others/{at}/name")))
}

/// Whether the copy stood at its target, and an endpoint that tells readiness never answered as expected.
fn is_never_ready(facts: &Facts) -> bool {
    facts.failure.is_none()
        && facts.instant("target-reached").is_some()
        && facts.instant("stabilised").is_none()
}

/// The actions, without repetition, the most urgent first.
pub fn of(facts: &Facts, verdict: &Verdict) -> Vec<Action> {
    let mut actions: Vec<Action> = Vec::new();
    for (at, reason) in verdict.reasons.iter().enumerate() {
        let mut text = match about_a_server(reason, facts) {
            Some(advice) => advice.action.to_owned(),
            None => text_of(&reason.code).to_owned(),
        };
        let mut person = None;
        let is_late = matches!(reason.code.as_str(), code::RTO_EXCEEDED | code::RTO_AT_RISK);
        if is_late || (reason.code == code::ENDPOINT_UNHEALTHY && is_never_ready(facts)) {
            let (words, from) = escalation(facts);
            text = format!("{text}; {words}");
            person = from;
        }
        if !actions.iter().any(|known| known.text == text) {
            actions.push(Action {
                text,
                priority: if reason.weight == Weight::Observation {
                    "Medium"
                } else {
                    "High"
                },
                due: None,
                from: format!("/reasons/{at}/code"),
                person,
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
            person: None,
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
        code::STEP_LIMIT_EXCEEDED => {
            "Find out what the step waited for when it was ended, or give it a limit that its work fits into"
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
        code::ENDPOINT_UNHEALTHY => "Find out why the endpoint did not answer as expected",
        code::NO_BACKUP => "Take a base backup today",
        code::KEY_WRONG => "Put back the key from where its copy is kept; without it nothing can be restored",
        code::NOT_TORN_DOWN => "Remove what the drill left behind: it holds production's rows",
        _ => "Look into it and drill again",
    }
}

/// What PostgreSQL's own error asks for, where a check could not look because of one, or the drill ended with one.
/// A reason that says what is wrong by itself goes before it.
fn about_a_server(reason: &Reason, facts: &Facts) -> Option<Advice> {
    if reason.code != code::COULD_NOT_LOOK {
        return None;
    }
    let recorded = match &reason.check {
        Some(id) => &facts.check(id)?.actual,
        None => &facts.failure.as_ref()?.message,
    };
    server_errors::advice(recorded_sqlstate(recorded)?)
}

/// What a person does about a reason that decided the verdict, or about the error that ended the drill.
pub fn troubleshooting(reason: &Reason, facts: &Facts) -> &'static str {
    if let Some(advice) = about_a_server(reason, facts) {
        return advice.help;
    }
    let failure = facts.failure.as_ref();
    match reason.code.as_str() {
        code::WAL_MISSING | code::TARGET_UNREACHABLE => {
            "`pgproof wal gaps` lists what is missing; if the segment is still in the primary's pg_wal, `pgproof wal push` it"
        }
        code::OBJECT_DAMAGED => "`pgproof verify` names every damaged object and what depends on it",
        code::KEY_WRONG => "`pgproof key show` says which key opens which repository",
        code::NO_BACKUP => "`pgproof list` shows the backups; `pgproof backup` takes one",
        code::RTO_EXCEEDED | code::RTO_AT_RISK => {
            "The phases above say where the time went; begin with the longest"
        }
        code::STEP_LIMIT_EXCEEDED => {
            "`drill.log` and the copy's own log say what the step did until it was ended; `pgproof drill plan` what it usually takes: a step that hangs waits for something, one that is only slow needs more in `step_limits`"
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
        code::ENDPOINT_UNHEALTHY => {
            "Ask the endpoint by hand (`curl -i`), and look at the service's own log: does it run, is `API_BASE_URL` right, and does it use the copy"
        }
        code::COMMAND_FAILED => {
            "Run the command by hand with the variables that `drill plan` names: its output is not kept; an exit code of 126 or 127 says that it was not found or may not run"
        }
        code::TESTS_FAILED => "The files of results name each failed test; run that one alone",
        code::MANUAL_STEP_OPEN => {
            "`pgproof drill confirm` answers while the drill waits, and `drill run --confirm` beforehand; `limit` says how long it waits"
        }
        code::SERVER_ENDED | code::PAUSED_BY_PARAMETER_CHANGE | code::RECOVERY_STOPPED_EARLY => {
            "The copy's own log below says why"
        }
        _ => failure
            .and_then(about_an_error)
            .unwrap_or("The check's line above says what was expected and what was seen"),
    }
}

/// What a person does about an error that says nothing of the recovery.
fn about_an_error(failure: &Failure) -> Option<&'static str> {
    let words = failure.detail.iter().chain([&failure.message]);
    let unresolved = |text: &String| {
        let text = text.to_lowercase();
        [
            "lookup address",
            "name resolution",
            "name or service not known",
            "dns error",
        ]
        .iter()
        .any(|sign| text.contains(sign))
    };
    if words.clone().any(unresolved) {
        return Some(
            "A name could not be resolved: `getent hosts NAME` on this host asks what pgproof asked; look at /etc/resolv.conf, or write the address instead",
        );
    }
    Some(match failure.error_code.as_str() {
        "store-unreachable" | "store-failing" | "store-throttled" => {
            "`pgproof check` asks every copy of the backups: is the file system mounted, or the address right and the way there open; another copy is drilled by `--copy NAME`"
        }
        "store-certificate" | "store-tls" => {
            "The connection to the store is not secure, so nothing is sent: the detail above says what its certificate lacks; `ca_file` in the copy's section names an authority of one's own"
        }
        "store-denied" | "store-credentials" => {
            "The store refuses this account: run as the account that owns the repository, or look at the credentials of the copy; `pgproof check` tries them"
        }
        "store-full" => {
            "`df` and `df -i` say what is full; `pgproof expire --dry-run` says what retention would free"
        }
        "server-unreachable" | "server-login" | "server-refused" => {
            "`psql` with the connection string of the configuration, from this host and account, says the same: does the server run, and may this address in (pg_hba.conf)"
        }
        "lease-conflict" | "expiry-conflict" | "store-conflict" => {
            "Another process of pgproof works on the same backups: wait until it has ended, or for an hour, after which the lease of one that was killed no longer holds"
        }
        "wal-second-writer" => {
            "Another server's claim holds this timeline of the archive: find out which of the two is production, then `pgproof wal take-over` on that one"
        }
        "drill-running" => {
            "Another drill holds this folder: wait for it, or end it with `pgproof drill abort`"
        }
        "copy-folder" => {
            "The folder of the copies must exist and belong to the account of the drill; `--directory` names another one"
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use drill::facts::FailureKind;

    fn failure(error_code: &str, message: &str) -> Failure {
        Failure {
            step: "look".into(),
            kind: FailureKind::CouldNotLook,
            code: code::COULD_NOT_LOOK.into(),
            error_code: error_code.into(),
            message: message.into(),
            detail: None,
            hint: None,
        }
    }

    /// The facts of a drill that passed, for tests that change them.
    fn facts() -> Facts {
        serde_json::from_str(include_str!("../tests/facts/passed.json")).expect("facts")
    }

    fn reason(code: &str, check: Option<&str>) -> Reason {
        Reason {
            code: code.into(),
            text: "what was seen".into(),
            check: check.map(Into::into),
            weight: Weight::Doubt,
        }
    }

    fn help(code: &str, failure: Option<Failure>) -> &'static str {
        let facts = Facts { failure, ..facts() };
        troubleshooting(&reason(code, None), &facts)
    }

    #[test]
    fn every_cause_that_teams_ask_about_has_its_own_help() {
        let default = help("no-such-reason", None);
        let of = |code: &str, message: &str| help(code::COULD_NOT_LOOK, Some(failure(code, message)));
        let mut all = vec![
            help(code::ENDPOINT_UNHEALTHY, None),
            help(code::COMMAND_FAILED, None),
            help(code::STEP_LIMIT_EXCEEDED, None),
            of("store-unreachable", "the store is away"),
            of("store-certificate", "who is that"),
            of("store-denied", "not yours"),
            of("store-full", "no room"),
            of("server-unreachable", "no answer"),
            of(
                "server-unreachable",
                "failed to lookup address information: Name or service not known",
            ),
            of("lease-conflict", "written by somebody else"),
            of("wal-second-writer", "another server"),
            of("drill-running", "it still runs"),
            of(
                "server-error",
                "the server answered with an error: server-error (SQLSTATE 53100)",
            ),
            of(
                "server-refused",
                "the server answered with an error: server-refused (SQLSTATE 28P01)",
            ),
        ];
        let (found, distinct) = (all.len(), {
            all.sort_unstable();
            all.dedup();
            all.len()
        });
        assert_eq!(found, distinct, "two causes have the same help");
        assert!(!all.contains(&default), "{all:#?}");
        assert_eq!(of("no-such-code", "something"), default);
        // A reason that says what is wrong goes before the error that told it.
        let damaged = failure("store-unreachable", "x");
        assert!(help(code::OBJECT_DAMAGED, Some(damaged)).contains("verify"));
    }

    #[test]
    fn a_check_that_postgresql_refused_is_answered_by_its_sqlstate_in_help_and_action() {
        let mut facts = facts();
        let id = facts.checks.first().expect("a check").id.clone();
        let mut told = |actual: &str, code: &str| {
            facts.checks[0].actual = actual.into();
            let reason = reason(code, Some(&id));
            let verdict = Verdict {
                status: Status::Inconclusive,
                reasons: vec![reason.clone()],
            };
            let actions = of(&facts, &verdict);
            (troubleshooting(&reason, &facts), actions[0].text.clone())
        };
        let (help, action) = told("server-error (SQLSTATE 42704)", code::COULD_NOT_LOOK);
        assert!(help.contains("pg_roles"), "{help}");
        assert!(action.contains("role"), "{action}");
        let (help, action) = told("server-error (SQLSTATE 57014)", code::COULD_NOT_LOOK);
        assert!(
            help.contains("EXPLAIN") && action.contains("cheaper"),
            "{help} {action}"
        );
        // An unknown state, a reason of its own, and a value that only looks like a state.
        let (unknown, action) = told("server-error (SQLSTATE XX000)", code::COULD_NOT_LOOK);
        assert!(unknown.contains("was expected and what was seen"), "{unknown}");
        assert_eq!(action, "Look into it and drill again");
        let (own, _) = told("server-error (SQLSTATE 42704)", code::ROWS_DIFFER);
        assert!(own.contains("Restore the same LSN"), "{own}");
    }
}
