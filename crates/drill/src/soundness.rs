//! Whether the copy is sound by itself: settings in effect, collations, the user's checks, amcheck, page
//! checksums.
//!
//! Invariant: what changes the copy (promotion, an extension) comes after everything that compares it with
//! production.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use cluster::Session;
use diagnostic::Result;
use postgres::Major;
use repository::Backup;
use restore::Plan;

use crate::amcheck::{self, AmcheckResult, Extension};
use crate::checks;
use crate::copy::Copy;
use crate::engine::{Ended, Run};
use crate::facts::{Check, CheckResult};
use crate::options::Watcher;
use crate::own_checks::{self, Server};
use crate::page_checks::check_pages;
use crate::perform::{SESSIONS, threads};
use crate::rows::{self, aborted};
use crate::stops::promote;

/// The database in which the copy is asked about itself.
pub(crate) fn own_database(run: &Run<'_>) -> String {
    run.facts
        .bracket
        .as_ref()
        .map_or_else(|| "postgres".to_string(), |bracket| bracket.database.clone())
}

/// Settings, collations and the user's own checks, at the last stop.
pub(crate) fn look_at_copy(run: &mut Run<'_>, copy: &Copy) -> Result<()> {
    let database = own_database(run);
    let started = Instant::now();
    let mut session = rows::connect(&copy.conninfo(&database), &database, Duration::from_secs(60))?;
    let settings: BTreeMap<String, String> = session
        .rows("SELECT name, setting FROM pg_settings WHERE name LIKE 'archive%'")?
        .into_iter()
        .filter_map(|row| {
            let mut columns = row.into_iter();
            Some((columns.next()??, columns.next()??))
        })
        .collect();
    run.facts.checks.push(checks::timed(
        checks::archive_settings(&settings),
        started.elapsed(),
    ));
    let started = Instant::now();
    let (compared, different) = collations(copy, &mut session)?;
    run.facts.checks.push(checks::timed(
        checks::collation_versions(compared, &different),
        started.elapsed(),
    ));
    Ok(())
}

/// The user's own checks. One that was under way when the drill was told to end has no result: it was interrupted.
pub(crate) fn check_of_users(run: &mut Run<'_>, copy: &mut Copy) -> Result<()> {
    let database = own_database(run);
    let made = own_checks::make(run, copy, &database);
    if !run.is_to_end() {
        return made;
    }
    let drill = run.drill;
    let own = &drill.profile.user_checks;
    let is_interrupted =
        |last: &Check| last.result != CheckResult::Pass && own.iter().any(|check| check.id == last.id);
    if run.facts.checks.last().is_some_and(is_interrupted) {
        run.facts.checks.pop();
    }
    Err(aborted())
}

/// Every database that accepts sessions.
pub(crate) fn databases(session: &mut Session) -> Result<Vec<String>> {
    let rows = session.rows("SELECT datname FROM pg_database WHERE datallowconn ORDER BY datname")?;
    Ok(rows
        .into_iter()
        .filter_map(|row| row.into_iter().next().flatten())
        .collect())
}

/// How many versions were compared, and which differ.
pub(crate) fn collations(server: &dyn Server, session: &mut Session) -> Result<(u64, Vec<String>)> {
    let (mut compared, mut different) = (0, Vec::new());
    let mut add = |database: &str, rows: Vec<Vec<Option<String>>>| {
        for row in rows {
            let column = |index: usize| row.get(index).and_then(Option::as_deref).unwrap_or_default();
            compared += 1;
            if column(1) != column(2) {
                different.push(format!(
                    "{database} {} ({} here, {} recorded)",
                    column(0),
                    column(2),
                    column(1)
                ));
            }
        }
    };
    if session.version_num() >= 150_000 {
        let rows = session.rows(
            "SELECT datname, datcollversion, pg_database_collation_actual_version(oid) FROM pg_database \
             WHERE datcollversion IS NOT NULL AND datallowconn",
        )?;
        add("database", rows);
    }
    for database in databases(session)? {
        let mut own = rows::connect(&server.conninfo(&database), &database, Duration::from_secs(60))?;
        let rows = own.rows(
            "SELECT collname, collversion, pg_collation_actual_version(oid) FROM pg_collation WHERE \
             collversion IS NOT NULL",
        )?;
        add(&database, rows);
    }
    Ok((compared, different))
}

/// amcheck while the server runs, then page checksums when it does not.
pub(crate) fn check_sound(
    run: &mut Run<'_>,
    copy: &mut Copy,
    plan: &Plan,
    backup: &Backup,
) -> Result<(), Ended> {
    let wanted = |run: &Run<'_>, id: &str| run.drill.profile.asks_for(id);
    let title = "Check tables and indexes with amcheck";
    if wanted(run, "amcheck") {
        run.step("amcheck", title, |run| {
            let started = Instant::now();
            let check = run.working(|run| run_amcheck(run, copy))?;
            let detail = check.actual.clone();
            add_check_time(run, started.elapsed());
            run.facts.checks.push(checks::timed(check, started.elapsed()));
            Ok(((), detail))
        })?;
    } else {
        run.skip("amcheck", title, "the profile does not ask for it");
    }
    let title = "Stop the copy and verify its page checksums";
    if wanted(run, "page-checksums") {
        run.step("page-checksums", title, |run| {
            copy.stop()?;
            let started = Instant::now();
            let check = match backup.data_checksum_version {
                0 => checks::page_checksums(None),
                _ => {
                    let major = Major((backup.postgresql_version_num / 10_000) as u16);
                    let segment = backup.geometry.relation_segment_size;
                    let found = run.working(|run| {
                        check_pages(
                            &plan.destination,
                            major,
                            segment,
                            threads(run.drill),
                            run.drill.abort,
                            run.drill.watcher,
                        )
                    })?;
                    checks::page_checksums(Some(&found))
                }
            };
            let detail = check.actual.clone();
            add_check_time(run, started.elapsed());
            run.facts.checks.push(checks::timed(check, started.elapsed()));
            Ok(((), detail))
        })?;
    } else {
        run.skip("page-checksums", title, "the profile does not ask for it");
    }
    Ok(())
}

fn add_check_time(run: &mut Run<'_>, time: Duration) {
    if let Some(rto) = &mut run.facts.rto {
        rto.checks_ms += time.as_millis() as u64;
    }
}

fn run_amcheck(run: &mut Run<'_>, copy: &mut Copy) -> Result<Check> {
    let drill = run.drill;
    let timeout = drill.profile.statement_timeout;
    let collations_differ = run
        .facts
        .check("collation-versions")
        .is_some_and(|check| check.result != CheckResult::Pass);
    let first = own_database(run);
    let mut session = rows::connect(&copy.conninfo(&first), &first, timeout)?;
    let names = databases(&mut session)?;
    drop(session);
    let mut missing = Vec::new();
    for name in &names {
        match amcheck::extension(&copy.conninfo(name), name, timeout)? {
            Extension::Installed => {}
            Extension::Creatable => missing.push(name),
            Extension::Missing => {
                let why = format!(
                    "amcheck is not installed in database \"{name}\" and this host does not have its files"
                );
                return Ok(checks::known("amcheck").not_run(why));
            }
        }
    }
    if !missing.is_empty() {
        promote(run, copy)?;
        for name in missing {
            amcheck::create(&copy.conninfo(name), name, timeout)?;
        }
    }
    let look = |copy: &Copy| amcheck_all(copy, &names, timeout, drill.abort, drill.watcher);
    let mut result = look(copy)?;
    if result.locked > 0 {
        promote(run, copy)?;
        result = look(copy)?;
    }
    Ok(checks::amcheck(&result, collations_differ))
}

/// amcheck over these databases, all of which have the extension.
pub(crate) fn amcheck_all(
    server: &dyn Server,
    names: &[String],
    timeout: Duration,
    abort: &AtomicBool,
    watcher: &dyn Watcher,
) -> Result<AmcheckResult> {
    let mut result = AmcheckResult::default();
    for name in names {
        watcher.note(&format!("amcheck in database \"{name}\""));
        let conninfo = server.conninfo(name);
        amcheck::run(&conninfo, name, SESSIONS, timeout, abort, watcher, &mut result)?;
    }
    Ok(result)
}
