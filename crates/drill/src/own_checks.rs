//! The user's own checks: made in the copy at its last stop, in the order in which the profile names them.
//!
//! Invariants: nothing reaches beyond the copy and its quarantine unless the profile grants it, and then a substitution
//! says so; what a check says names tables, keys and numbers, never a value of a row; a check that could not look is
//! that, and ends nothing.

mod application;
mod database;

use std::time::{Duration, Instant};

use diagnostic::Result;

use crate::checks;
use crate::copy::Copy;
use crate::engine::Run;
use crate::facts::{Check, CheckDetail, CheckResult, HttpSeen, Substitution};
use crate::options::Grant;
use crate::stops::promote;
use crate::user_checks::{CheckKind, UserCheck};
use crate::verdict::code;

pub(crate) use application::{ask_before, wait_until_ready};

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
        let started = Instant::now();
        let mut made = one(run, copy, database, check);
        // A lock that replay holds goes away with recovery.
        if made.result == CheckResult::CouldNotLook && made.actual.contains("55P03") {
            promote(run, copy)?;
            made = one(run, copy, database, check);
        }
        record(run, made, started.elapsed());
    }
    Ok(())
}

fn record(run: &mut Run<'_>, check: Check, duration: Duration) {
    let check = checks::timed(check, duration);
    run.note(&format!("check {}: {}", check.id, check.result));
    run.facts.checks.retain(|known| known.id != check.id);
    run.facts.checks.push(check);
}

fn one(run: &mut Run<'_>, copy: &Copy, database: &str, check: &UserCheck) -> Check {
    let of = |named: &Option<String>| named.clone().unwrap_or_else(|| database.to_string());
    let timeout = run.drill.profile.statement_timeout;
    let found = match &check.kind {
        CheckKind::Sql {
            database: named,
            sql,
            expect,
        } => return checks::of_user(check, expect, database::ask(copy, &of(named), sql, timeout)),
        CheckKind::RowCounts { .. } => Found::not_run("rows are counted where the rows are proved"),
        CheckKind::Orphans => database::orphans(run, copy, database),
        CheckKind::Freshness {
            database: named,
            table,
            column,
            within,
        } => database::freshness(run, copy, &of(named), (table, column), *within),
        CheckKind::Indexes {
            database: named,
            names,
        } => database::indexes(run, copy, database, &of(named), names),
        CheckKind::Http { .. } => application::http(run, check),
        CheckKind::Command(command) => application::command(run, copy, database, command),
        CheckKind::Junit { files } => application::junit(run, files),
        CheckKind::Latency {
            of: asked,
            p95,
            samples,
        } => application::latency(run, copy, database, asked, *p95, *samples),
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
