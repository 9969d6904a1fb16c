//! Verification of a server that stands: after a restore, after a failover, before it is handed over.
//!
//! Invariants: nothing is changed (every session is read-only, and what is missing is not installed); what only a
//! drill can see is named as not made, and never passes; the verdict is a pure function of the checks.

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use cluster::archiving::{ArchiverStatus, archiver_status};
use cluster::conninfo::Conninfo;
use cluster::{ServerFacts, Session};
use diagnostic::Result;
use jiff::Timestamp;
use postgres::{Lsn, SystemIdentifier, TimelineId};
use serde::Serialize;

use crate::amcheck::{self, Extension};
use crate::checks::{self, Draft};
use crate::facts::{Category, Check, CheckResult, Objectives};
use crate::options::{BUILT_IN_CHECKS, Profile, Watcher};
use crate::own_checks::{self, Endpoints, Server, Subject};
use crate::rows;
use crate::server_error::recordable;
use crate::soundness::{amcheck_all, collations, databases};
use crate::user_checks::{CheckKind, UserCheck};
use crate::verdict::{Verdict, code, conclude, of_check};

/// For the questions about the server itself.
const TIMEOUT: Duration = Duration::from_secs(60);
/// The id of the check that looks at every index where the profile has none of its kind.
const INDEXES: &str = "indexes";

/// What a verification is given.
pub struct ServerToVerify<'a> {
    /// How to reach the server.
    pub connection: &'a Conninfo,
    /// Whose checks are made.
    pub profile: &'a Profile,
    /// Of the cluster's backups; `None`: there are none to compare with.
    pub expected: Option<SystemIdentifier>,
    /// The time that the age of data is told against; `None`: the newest commit that was replayed, else the server's clock.
    pub target: Option<Timestamp>,
    /// The base of the application's endpoints.
    pub api_base_url: Option<&'a str>,
    /// The base of the application's pages, for programs.
    pub web_base_url: Option<&'a str>,
    /// The wall clock.
    pub clock: &'a dyn Fn() -> Timestamp,
    /// Set from outside to end it.
    pub abort: &'a AtomicBool,
    /// Who watches.
    pub watcher: &'a dyn Watcher,
}

/// What was seen of a server.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ServerVerification {
    pub began_at: Timestamp,
    pub finished_at: Timestamp,
    /// The profile whose checks were made.
    pub profile: String,
    pub server: SeenServer,
    /// Against what the age of data was told.
    pub target: Timestamp,
    pub checks: Vec<Check>,
    /// Checks of the profile that only a drill can make, and why.
    pub not_made: Vec<NotMade>,
    /// What follows.
    pub verdict: Verdict,
}

/// The server, as it said itself.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SeenServer {
    pub postgresql_version: String,
    pub system_identifier: SystemIdentifier,
    pub timeline: TimelineId,
    pub in_recovery: bool,
    /// Where it stood when the verification began.
    pub lsn: Lsn,
    /// Bytes.
    pub size_bytes: u64,
}

/// A check that was not made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NotMade {
    pub id: String,
    pub why: String,
}

/// A server that somebody else started.
struct Standing<'a>(&'a Conninfo);

impl Server for Standing<'_> {
    fn conninfo(&self, database: &str) -> String {
        self.0.clone().with("dbname", database).to_string()
    }

    fn environment(&self) -> Vec<(String, String)> {
        const VARIABLES: [(&str, &str); 10] = [
            ("host", "PGHOST"),
            ("hostaddr", "PGHOSTADDR"),
            ("port", "PGPORT"),
            ("user", "PGUSER"),
            ("password", "PGPASSWORD"),
            ("passfile", "PGPASSFILE"),
            ("sslmode", "PGSSLMODE"),
            ("sslrootcert", "PGSSLROOTCERT"),
            ("sslcert", "PGSSLCERT"),
            ("sslkey", "PGSSLKEY"),
        ];
        let given = VARIABLES.iter().filter_map(|(setting, variable)| {
            let value = self.0.get(setting).filter(|value| !value.is_empty())?;
            Some(((*variable).to_string(), value.to_string()))
        });
        given.collect()
    }

    fn quarantined(&self, _program: &str, _arguments: &[String]) -> Result<Option<Command>> {
        Ok(None)
    }
}

/// How a server's recovery stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Recovery {
    /// It accepts writes.
    Ended,
    /// It stands still.
    Paused,
    GoesOn,
}

/// Looks at the server, and judges. Errors: those of the session, when the server cannot be asked at all; `drill-aborted`.
pub fn verify_server(given: &ServerToVerify<'_>) -> Result<ServerVerification> {
    let began_at = (given.clock)();
    let server = Standing(given.connection);
    let database = given.connection.get("dbname").filter(|name| !name.is_empty());
    let database = database.unwrap_or("postgres");
    let mut session = rows::connect(&server.conninfo(database), database, TIMEOUT)?;
    let facts = cluster::facts::gather(&mut session)?;
    let (recovery, replayed) = recovery(&mut session, &facts)?;
    let target = given.target.or(replayed).unwrap_or(facts.now);
    let nothing = BTreeMap::new();
    let subject = Subject {
        server: &server,
        profile: given.profile,
        database,
        target: Some(target),
        began_at,
        id: "",
        endpoints: Endpoints::new(given.api_base_url, given.clock),
        web_base_url: given.web_base_url,
        before: &nothing,
        abort: given.abort,
    };
    let mut looking = Looking {
        given,
        checks: Vec::new(),
    };
    looking.add(|| Ok(identity(&facts, given.expected)))?;
    looking.add(|| Ok(recovery_state(&facts, recovery)))?;
    looking.add(|| Ok(archiver(&facts, archiver_status(&mut session))))?;
    looking.add(|| {
        let seen = collations(&server, &mut session);
        Ok(match seen {
            Ok((compared, different)) => checks::collation_versions(compared, &different),
            Err(error) => checks::known("collation-versions").could_not_look(recordable(&error)),
        })
    })?;
    let is_indexes = |check: &UserCheck| matches!(check.kind, CheckKind::Indexes { .. });
    if !given.profile.user_checks.iter().any(is_indexes) {
        looking.add(|| Ok(own_checks::one(&subject, &every_index())))?;
    }
    if given.profile.asks_for("amcheck") {
        let differ = looking
            .checks
            .iter()
            .any(|check| check.id == "collation-versions" && check.result != CheckResult::Pass);
        looking.add(|| amcheck_of(&server, &mut session, given, differ))?;
    }
    drop(session);
    let note = &mut |text: &str| given.watcher.note(text);
    // What never becomes ready fails as the check that it is.
    own_checks::wait_until_ready(given.profile, &subject.endpoints, given.abort, note)?;
    for check in &given.profile.user_checks {
        if !matches!(check.kind, CheckKind::RowCounts { .. }) {
            given.watcher.note(&format!("check {}", check.id));
            looking.add(|| Ok(own_checks::one(&subject, check)))?;
        }
    }
    let checks = looking.checks;
    let verdict = judge_server(&checks, given.profile);
    Ok(ServerVerification {
        began_at,
        finished_at: (given.clock)(),
        profile: given.profile.name.clone(),
        server: SeenServer {
            postgresql_version: facts.version.clone(),
            system_identifier: facts.system_identifier,
            timeline: facts.timeline,
            in_recovery: facts.in_recovery,
            lsn: facts.insert_lsn,
            size_bytes: facts.size_bytes,
        },
        target,
        checks,
        not_made: not_made(given.profile),
        verdict,
    })
}

/// The checks so far.
struct Looking<'a> {
    given: &'a ServerToVerify<'a>,
    checks: Vec<Check>,
}

impl Looking<'_> {
    fn add(&mut self, look: impl FnOnce() -> Result<Check>) -> Result<()> {
        if self.given.abort.load(Ordering::Relaxed) {
            return Err(rows::aborted());
        }
        let started = Instant::now();
        let check = look()?;
        self.checks.push(checks::timed(check, started.elapsed()));
        Ok(())
    }
}

/// What follows from the checks. The same checks always give the same verdict.
pub fn judge_server(checks: &[Check], profile: &Profile) -> Verdict {
    let required = |check: &&Check| {
        let own = profile.user_checks.iter().find(|own| own.id == check.id);
        own.is_some_and(|own| own.required)
    };
    let ids = |of: &dyn Fn(&&Check) -> bool| checks.iter().filter(of).map(|check| check.id.clone()).collect();
    let objectives = Objectives {
        rto_seconds: None,
        rto_warning_seconds: None,
        rpo_seconds: None,
        required_checks: ids(&required),
        requested_checks: ids(&|_| true),
        may_be_not_run: profile.may_be_not_run.clone(),
    };
    conclude(
        checks
            .iter()
            .filter_map(|check| of_check(check, &objectives))
            .collect(),
    )
}

/// What needs production beside the server, or the server's files while it is down.
fn not_made(profile: &Profile) -> Vec<NotMade> {
    let built_in = BUILT_IN_CHECKS.iter().filter_map(|id| {
        let why = match *id {
            "row-proof" => "production's rows at the same place in the WAL are known to a drill alone",
            "n-version" => "a second copy of the same point is recovered by a drill alone",
            "page-checksums" => {
                "every page is read from the files while the server is down; amcheck reads the tables through it"
            }
            _ => return None,
        };
        profile.asks_for(id).then(|| NotMade {
            id: (*id).to_string(),
            why: why.to_string(),
        })
    });
    let is_counts = |check: &&UserCheck| matches!(check.kind, CheckKind::RowCounts { .. });
    let counts = profile.user_checks.iter().filter(is_counts).map(|check| NotMade {
        id: check.id.clone(),
        why: "rows are counted on both sides, at one place in the WAL, by a drill alone".to_string(),
    });
    built_in.chain(counts).collect()
}

fn identity(facts: &ServerFacts, expected: Option<SystemIdentifier>) -> Check {
    let own = facts.system_identifier;
    let told = expected.map_or_else(
        || "that of the backups".to_string(),
        |expected| expected.to_string(),
    );
    let draft = Draft::new(
        "identity",
        "the server's system identifier against that of the cluster's backups",
        told,
    );
    let Some(expected) = expected else {
        return draft.not_run("there is no backup to compare with");
    };
    match own == expected {
        true => draft.is(CheckResult::Pass, None, own.to_string()),
        false => draft.is(
            CheckResult::Fail,
            Some(code::IDENTITY_DIFFERS),
            format!("{own}: this is another cluster's server"),
        ),
    }
}

fn recovery(session: &mut Session, facts: &ServerFacts) -> Result<(Recovery, Option<Timestamp>)> {
    let row =
        session.one("SELECT (extract(epoch FROM pg_last_xact_replay_timestamp()) * 1000000)::bigint")?;
    let replayed = row
        .first()
        .and_then(Option::as_deref)
        .and_then(|microseconds| Timestamp::from_microsecond(microseconds.parse().ok()?).ok());
    if !facts.in_recovery {
        return Ok((Recovery::Ended, replayed));
    }
    // 13 has no state, only the wish; the wish at a target is already the state.
    let paused = match facts.version_num {
        140_000.. => "SELECT pg_get_wal_replay_pause_state() = 'paused'",
        _ => "SELECT pg_is_wal_replay_paused()",
    };
    let row = session.one(paused)?;
    let recovery = match row.first().and_then(Option::as_deref) {
        Some("t") => Recovery::Paused,
        _ => Recovery::GoesOn,
    };
    Ok((recovery, replayed))
}

fn recovery_state(facts: &ServerFacts, recovery: Recovery) -> Check {
    let draft = Draft::new(
        "recovery-state",
        "whether the server is in recovery, and whether its replay stands still",
        "recovery has ended, or stands at its target",
    );
    let (timeline, lsn) = (facts.timeline, facts.insert_lsn);
    match recovery {
        Recovery::Ended => draft.is(
            CheckResult::Pass,
            None,
            format!("accepts writes on timeline {timeline}"),
        ),
        Recovery::Paused => draft.is(
            CheckResult::Pass,
            None,
            format!("paused at {lsn} of timeline {timeline}"),
        ),
        Recovery::GoesOn => draft.is(
            CheckResult::Warn,
            Some(code::RECOVERY_GOES_ON),
            format!("replays beyond {lsn} of timeline {timeline}: what is looked at changes meanwhile"),
        ),
    }
}

fn archiver(facts: &ServerFacts, status: Result<ArchiverStatus>) -> Check {
    let draft = Draft::new(
        "archiver",
        "archive_mode, and what pg_stat_archiver says of the last WAL file",
        "what the server writes is archived",
    );
    let bad = |actual: String| (CheckResult::Warn, Some(code::NOT_ARCHIVING), actual);
    let (result, reason, actual) = match (facts.archive_mode.as_str(), facts.in_recovery, status) {
        (mode, true, _) if mode != "always" => (
            CheckResult::Pass,
            None,
            "in recovery: it writes no WAL of its own".into(),
        ),
        ("off", ..) => bad(
            "archive_mode is off: what is committed here cannot be recovered; `pgproof restore --adopt` \
                            lets a restored server archive again"
                .into(),
        ),
        (_, _, Err(error)) => return draft.could_not_look(recordable(&error)),
        (_, _, Ok(status)) if status.is_failing() => bad(format!(
            "the last attempt failed, {} in all; waiting: {}",
            status.failed_count,
            status
                .ready_files
                .map_or_else(|| "unknown".to_string(), |files| files.len().to_string())
        )),
        (_, _, Ok(status)) => match status.last_archived {
            Some(file) => (CheckResult::Pass, None, format!("{file} is archived")),
            None => bad("archive_mode is on, and nothing was archived yet".into()),
        },
    };
    draft.is(result, reason, actual)
}

fn every_index() -> UserCheck {
    UserCheck {
        id: INDEXES.to_string(),
        category: Category::Integrity,
        required: false,
        kind: CheckKind::Indexes {
            database: None,
            names: Vec::new(),
        },
    }
}

/// amcheck wherever it is installed: nothing is installed here.
fn amcheck_of(
    server: &Standing<'_>,
    session: &mut Session,
    given: &ServerToVerify<'_>,
    collations_differ: bool,
) -> Result<Check> {
    let timeout = given.profile.statement_timeout;
    let look = |session: &mut Session| -> Result<Result<Check, String>> {
        let names = databases(session)?;
        for name in &names {
            if amcheck::extension(&server.conninfo(name), name, timeout)? != Extension::Installed {
                return Ok(Err(format!(
                    "amcheck is not installed in database \"{name}\": run CREATE EXTENSION amcheck there"
                )));
            }
        }
        let result = amcheck_all(server, &names, timeout, given.abort, given.watcher)?;
        Ok(Ok(checks::amcheck(&result, collations_differ)))
    };
    Ok(match look(session) {
        Ok(Ok(check)) => check,
        Ok(Err(why)) => checks::known("amcheck").not_run(why),
        Err(error) if error.code() == "drill-aborted" => return Err(error),
        Err(error) => checks::known("amcheck").could_not_look(recordable(&error)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(id: &str, result: CheckResult) -> Check {
        Check {
            result,
            reason: None,
            ..checks::unknown(id, "seen")
        }
    }

    #[test]
    fn a_check_that_could_not_look_is_never_a_pass_and_a_failure_goes_before_it() {
        let profile = Profile::bracket("p");
        let of = |results: &[CheckResult]| {
            let checks: Vec<Check> = results.iter().map(|result| check("x", *result)).collect();
            judge_server(&checks, &profile).status.as_str()
        };
        assert_eq!(of(&[CheckResult::Pass]), "PASSED");
        assert_eq!(
            of(&[CheckResult::Pass, CheckResult::Warn]),
            "PASSED WITH OBSERVATIONS"
        );
        assert_eq!(of(&[CheckResult::NotRun]), "PASSED WITH OBSERVATIONS");
        assert_eq!(
            of(&[CheckResult::Warn, CheckResult::CouldNotLook]),
            "INCONCLUSIVE"
        );
        assert_eq!(of(&[CheckResult::CouldNotLook, CheckResult::Fail]), "FAILED");
    }

    #[test]
    fn what_only_a_drill_can_see_is_named() {
        let named: Vec<String> = not_made(&Profile::bracket("p"))
            .into_iter()
            .map(|each| each.id)
            .collect();
        assert_eq!(named, ["row-proof", "page-checksums"]);
    }
}
