//! The user's own checks: made in the copy at its last stop, or against a server that stands, in the order in which the
//! profile names them.
//!
//! Invariants: nothing reaches beyond the server that is asked (a copy: and its quarantine) unless the profile grants it,
//! and then a drill's substitution says so; what a check says names tables, keys and numbers, never a value of a row; a
//! check that could not look is that, and ends nothing.

mod application;
mod database;

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use diagnostic::Result;
use jiff::Timestamp;

use crate::checks;
use crate::copy::Copy;
use crate::engine::Run;
use crate::facts::{Check, CheckDetail, CheckResult, HttpSeen, Substitution};
use crate::options::{Grant, Profile};
use crate::stops::promote;
use crate::user_checks::{CheckKind, UserCheck};
use crate::verdict::code;

pub(crate) use application::{Endpoints, ask_before, wait_until_ready};

/// The server that checks ask.
pub(crate) trait Server {
    /// How to connect to one of its databases.
    fn conninfo(&self, database: &str) -> String;
    /// How programs find it: `PGHOST` and the like.
    fn environment(&self) -> Vec<(String, String)>;
    /// A program inside the server's quarantine; `None`: there is none. Error: `sandbox-spec`.
    fn quarantined(&self, program: &str, arguments: &[String]) -> Result<Option<Command>>;
}

impl Server for Copy {
    fn conninfo(&self, database: &str) -> String {
        Copy::conninfo(self, database)
    }

    fn environment(&self) -> Vec<(String, String)> {
        vec![
            ("PGHOST".into(), self.socket_folder().display().to_string()),
            ("PGPORT".into(), self.port().to_string()),
            ("PGUSER".into(), self.superuser().to_string()),
        ]
    }

    fn quarantined(&self, program: &str, arguments: &[String]) -> Result<Option<Command>> {
        Copy::quarantined(self, program, arguments)
    }
}

/// What checks are made with: the server, and what is known and allowed beside it.
pub(crate) struct Subject<'a> {
    pub server: &'a dyn Server,
    pub profile: &'a Profile,
    /// In which the server is asked about itself, and a check that names none looks.
    pub database: &'a str,
    /// Against which the age of data is told.
    pub target: Option<Timestamp>,
    /// Results of tests that are older say nothing.
    pub began_at: Timestamp,
    /// The drill's, for programs.
    pub id: &'a str,
    pub endpoints: Endpoints<'a>,
    /// The base of the application's pages, for programs.
    pub web_base_url: Option<&'a str>,
    /// What endpoints answered before anything was restored, by check.
    pub before: &'a BTreeMap<String, HttpSeen>,
    /// Set from outside to end it.
    pub abort: &'a AtomicBool,
}

impl<'a> Subject<'a> {
    /// That of a drill, in the copy.
    fn of(run: &'a Run<'_>, copy: &'a Copy, database: &'a str) -> Subject<'a> {
        Subject {
            server: copy,
            profile: &run.drill.profile,
            database,
            target: run.facts.instant("recovered-commit").map(|instant| instant.at),
            began_at: run.facts.started_at,
            id: &run.facts.identity.drill_id,
            endpoints: Endpoints::of(run.drill),
            web_base_url: run.drill.web_base_url.as_deref(),
            before: &run.before,
            abort: run.drill.abort,
        }
    }
}

/// What a check came to, before it is a [`Check`].
pub(crate) struct Found {
    result: CheckResult,
    reason: Option<&'static str>,
    actual: String,
    detail: Option<Box<CheckDetail>>,
}

impl Found {
    fn pass(actual: impl Into<String>) -> Found {
        Found {
            result: CheckResult::Pass,
            reason: None,
            actual: actual.into(),
            detail: None,
        }
    }

    fn bad(reason: &'static str, actual: impl Into<String>) -> Found {
        Found {
            result: CheckResult::Fail,
            reason: Some(reason),
            actual: actual.into(),
            detail: None,
        }
    }

    fn warn(reason: &'static str, actual: impl Into<String>) -> Found {
        Found {
            result: CheckResult::Warn,
            ..Found::bad(reason, actual)
        }
    }

    fn not_run(why: impl Into<String>) -> Found {
        Found {
            result: CheckResult::NotRun,
            ..Found::bad(code::CHECK_NOT_RUN, why)
        }
    }

    fn could_not_look(why: impl Into<String>) -> Found {
        Found {
            result: CheckResult::CouldNotLook,
            ..Found::bad(code::COULD_NOT_LOOK, why)
        }
    }

    fn with(mut self, detail: CheckDetail) -> Found {
        self.detail = Some(Box::new(detail));
        self
    }
}

/// Waits until the application answers as expected, where the profile says how. False: it never did.
pub(crate) fn is_ready(run: &mut Run<'_>) -> Result<bool> {
    let drill = run.drill;
    wait_until_ready(&drill.profile, &Endpoints::of(drill), drill.abort, &mut |text| {
        run.note(text);
    })
}

/// All checks of the profile but the counts of rows, which belong to the proof. Ends only with the drill.
pub(crate) fn make(run: &mut Run<'_>, copy: &mut Copy, database: &str) -> Result<()> {
    let drill = run.drill;
    for check in &drill.profile.user_checks {
        if matches!(check.kind, CheckKind::RowCounts { .. }) {
            continue;
        }
        if drill.abort.load(std::sync::atomic::Ordering::Relaxed) {
            return Err(crate::rows::aborted());
        }
        run.note(&format!("check {}", check.id));
        if let Some(grant) = leaves_by(check, &drill.profile) {
            substitute(run, grant);
        }
        let started = Instant::now();
        let mut made = one(&Subject::of(run, copy, database), check);
        // A lock that replay holds goes away with recovery.
        if made.result == CheckResult::CouldNotLook && made.actual.contains("55P03") {
            promote(run, copy)?;
            made = one(&Subject::of(run, copy, database), check);
        }
        record(run, made, started.elapsed());
    }
    Ok(())
}

/// The grant by which this check leaves the quarantine, where it is given.
fn leaves_by(check: &UserCheck, profile: &Profile) -> Option<Grant> {
    let grant = match &check.kind {
        CheckKind::Command(_) => Grant::Commands,
        _ if check.reaches_outside() => Grant::Http,
        _ => return None,
    };
    profile.grants(grant).then_some(grant)
}

fn record(run: &mut Run<'_>, check: Check, duration: Duration) {
    let check = checks::timed(check, duration);
    run.note(&format!("check {}: {}", check.id, check.result));
    run.facts.checks.retain(|known| known.id != check.id);
    run.facts.checks.push(check);
}

/// One check. Counts of rows need production beside the copy, and are made where the rows are proved.
pub(crate) fn one(subject: &Subject<'_>, check: &UserCheck) -> Check {
    let of = |named: &Option<String>| named.clone().unwrap_or_else(|| subject.database.to_string());
    let found = match &check.kind {
        CheckKind::Sql {
            database: named,
            sql,
            expect,
        } => return checks::of_user(check, expect, database::ask(subject, &of(named), sql)),
        CheckKind::RowCounts { .. } => Found::not_run("rows are counted where the rows are proved"),
        CheckKind::Orphans => database::orphans(subject),
        CheckKind::Freshness {
            database: named,
            table,
            column,
            within,
        } => database::freshness(subject, &of(named), (table, column), *within),
        CheckKind::Indexes {
            database: named,
            names,
        } => database::indexes(subject, &of(named), names),
        CheckKind::Http { .. } => application::http(subject, check),
        CheckKind::Command(command) => application::command(subject, command),
        CheckKind::Junit { files } => application::junit(subject, files),
        CheckKind::Latency {
            of: asked,
            p95,
            samples,
        } => application::latency(subject, asked, *p95, *samples),
    };
    checks::found(
        check,
        found.result,
        found.reason,
        found.actual,
        found.detail.map(|detail| *detail),
    )
}

/// Records, once, that something was done outside of the quarantine.
fn substitute(run: &mut Run<'_>, grant: Grant) {
    let (name, what) = match grant {
        Grant::Http => ("endpoints", "asked over the network by the drill itself"),
        Grant::Commands => (
            "commands",
            "run as the drill's own account, outside of the quarantine",
        ),
    };
    if run.facts.substitutions.iter().any(|known| known.name == name) {
        return;
    }
    run.facts.substitutions.push(Substitution {
        name: name.into(),
        restore: "starts no application and runs no program".into(),
        drill: what.into(),
        why: format!("the profile grants \"{}\"", grant.as_str()),
    });
}

/// Counts of rows, from the digests of both sides at the same LSN.
pub(crate) fn count_rows(run: &mut Run<'_>, own_database: &str) {
    let drill = run.drill;
    for check in &drill.profile.user_checks {
        let CheckKind::RowCounts { database, tables } = &check.kind else {
            continue;
        };
        let database = database.as_deref().unwrap_or(own_database);
        let found = database::row_counts(run.facts.row_proof.as_ref(), database, tables);
        let made = checks::found(
            check,
            found.result,
            found.reason,
            found.actual,
            found.detail.map(|detail| *detail),
        );
        record(run, made, Duration::ZERO);
    }
}

/// What an endpoint said, in the words of the expectations.
pub(crate) fn health_words(seen: &HttpSeen) -> String {
    match (&seen.error, seen.status) {
        (Some(error), _) => error.clone(),
        (None, Some(status)) if seen.values.is_empty() => status.to_string(),
        (None, Some(status)) => format!("{status}, {}", seen.values.join(", ")),
        (None, None) => "no answer".into(),
    }
}
