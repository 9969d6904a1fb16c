//! The stops of a recovery: going to each, and looking at the copy while it stands there.
//!
//! Invariants: nothing is compared anywhere but at the stop whose LSN it belongs to; a copy is promoted at
//! the last stop alone, and only because a check needs it; a table that replay has locked is looked at after
//! that, or not at all.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use cluster::Session;
use diagnostic::{Error, Result};
use history::Target;
use postgres::Lsn;
use repository::Backup;
use restore::Plan;

use crate::checks::{self, Markers};
use crate::copy::Copy;
use crate::engine::Run;
use crate::facts::{PlannedStop, RowProof, Side, StopFacts, StopOutcome, TableProof};
use crate::isolation::record_quarantine;
use crate::log;
use crate::options::{Drill, Fault};
use crate::own_checks;
use crate::perform::{REQUESTED, SESSIONS};
use crate::planting;
use crate::point::Point;
use crate::rows::{self, DatabaseDigest, Look, RowKey};
use crate::sequences;
use crate::server_error::{recordable, sqlstate};
use crate::soundness::{check_of_users, look_at_copy, own_database};
use crate::standing;
use crate::verdict::code;
use crate::versions;

/// Everything that is gathered while the copy stands at its stops.
#[derive(Default)]
struct Seen {
    markers: Vec<(String, Result<Markers, String>)>,
    proof: RowProof,
    unreached: Vec<String>,
    /// Tables that were locked at the last stop: looked at again after promotion.
    locked: BTreeMap<String, Vec<String>>,
    checks: Duration,
}

pub(crate) fn recover(
    run: &mut Run<'_>,
    copy: &mut Copy,
    plan: &Plan,
    backup: &Backup,
    point: Option<&Point>,
    key: &RowKey,
) -> Result<((), String)> {
    run.facts.target.stops = plan
        .stops
        .iter()
        .map(|stop| StopFacts {
            purpose: stop.purpose.clone(),
            settings: stop.settings.clone(),
            outcome: StopOutcome::NotTried,
            reached_lsn: None,
            reached_time: None,
            stop_line: None,
            duration_ms: 0,
            planned: planned(stop),
        })
        .collect();
    let mut seen = Seen {
        proof: RowProof {
            definition: rows::DEFINITION.into(),
            ..RowProof::default()
        },
        ..Seen::default()
    };
    seen.unreached = point
        .map(|point| {
            point
                .unreached
                .iter()
                .map(|each| format!("{}: {}", each.what, each.why))
                .collect()
        })
        .unwrap_or_default();
    for at in 0..plan.stops.len() {
        run.working(|run| go_to_stop(run, copy, plan, at))?;
        let last = at + 1 == plan.stops.len();
        if last {
            planting::at_last_stop(run, copy, plan, at, backup, point)?;
        }
        if at == 0 && own_checks::is_ready(run)? {
            run.mark("stabilised");
        }
        let started = Instant::now();
        run.working(|run| look(run, copy, plan, at, point, key, &mut seen))?;
        seen.checks += started.elapsed();
    }
    conclude(run, point, seen);
    Ok(((), format!("stood at {} stops", plan.stops.len())))
}

/// Everything that is looked at while the copy stands at one stop.
fn look(
    run: &mut Run<'_>,
    copy: &mut Copy,
    plan: &Plan,
    at: usize,
    point: Option<&Point>,
    key: &RowKey,
    seen: &mut Seen,
) -> Result<()> {
    let Some(stop) = plan.stops.get(at) else {
        return Ok(());
    };
    if at == 0 {
        look_at_markers(run, copy);
    }
    let looked = look_at_stop(run, copy, point, stop.target.stop, &stop.purpose, key, seen);
    looked.map_err(|error| crashed(copy, error))?;
    if at + 1 < plan.stops.len() {
        return Ok(());
    }
    look_at_copy(run, copy)?;
    if run.drill.profile.asks_for("n-version") {
        let own = own_database(run);
        let version = versions::digest(run.drill, copy, key, &own).map_err(|error| crashed(copy, error))?;
        run.version = Some(version);
    }
    promote_for_locked(run, copy, point, key, seen)?;
    check_of_users(run, copy)
}

/// Where the plan says that the copy will stand.
fn planned(stop: &restore::Stop) -> Option<PlannedStop> {
    let target = &stop.target;
    let is_boundary = match target.target {
        Target::Latest | Target::Immediate => return None,
        Target::Lsn(_) => false,
        Target::Time(_) | Target::Xid(_) | Target::BeforeXid(_) | Target::Name(_) => true,
    };
    Some(PlannedStop {
        lsn: target.stop,
        is_boundary,
    })
}

/// A session of the copy that is lost because a process of its server crashed is a finding, not a bad line.
fn crashed(copy: &Copy, error: Error) -> Error {
    if !matches!(error.code(), "connection-lost" | "server-unreachable") {
        return error;
    }
    match log::cause(&copy.log()).filter(|cause| cause.code == code::SERVER_ENDED) {
        Some(cause) => Error::new(
            code::SERVER_ENDED,
            "the copy's server crashed while its rows were read",
        )
        .detail(cause.line),
        None => error,
    }
}

/// Starts the copy for one stop and waits until it stands there.
fn go_to_stop(run: &mut Run<'_>, copy: &mut Copy, plan: &Plan, at: usize) -> Result<()> {
    let drill = run.drill;
    let started = Instant::now();
    if let Some(stop) = plan.stops.get(at) {
        drill
            .watcher
            .note(&format!("recovering to {}: {}", stop.purpose, stop.target.target));
    }
    copy.stop()?;
    let opens_at = opens_at(plan, at);
    let timeout = drill.profile.replay_timeout;
    if at == 0 {
        run.mark("server-started");
    }
    let moved = (at == 0 && drill.faults.contains(&Fault::StopMoved))
        .then(|| planting::with_moved_stop(run, plan))
        .transpose()?;
    let reached = copy
        .spawn(moved.as_ref().unwrap_or(plan), at)
        .and_then(|()| copy.wait_for_stop(opens_at, timeout, drill.abort));
    if at == 0
        && let Ok(reached) = &reached
    {
        run.mark_before("sessions-accepted", reached.replay);
        run.mark("target-reached");
        // The copy has answered a session there; what else has to be ready is waited for below.
        let time = reached.time.as_deref().and_then(|time| time.parse().ok());
        if let Some(time) = time {
            run.mark_commit("recovered-commit", time);
        }
    }
    let quarantine = record_quarantine(run, copy);
    let Some(facts) = run.facts.target.stops.get_mut(at) else {
        return Ok(());
    };
    facts.duration_ms = started.elapsed().as_millis() as u64;
    match reached {
        Ok(reached) => {
            facts.outcome = if opens_at.is_some() {
                StopOutcome::Opened
            } else {
                StopOutcome::Paused
            };
            facts.reached_lsn = reached.lsn;
            facts.reached_time = reached.time;
            facts.stop_line = reached.line;
            if let Some(rto) = &mut run.facts.rto {
                if at == 0 {
                    rto.start_ms = reached.start.as_millis() as u64;
                    rto.replay_ms = reached.replay.as_millis() as u64;
                    rto.total_ms = rto.plan_ms + rto.restore_ms + rto.start_ms + rto.replay_ms;
                } else {
                    rto.proof_replay_ms += started.elapsed().as_millis() as u64;
                }
            }
        }
        Err(error) => {
            facts.outcome = StopOutcome::Failed;
            if at == 0 {
                // No recovery time exists for a target that was not reached.
                run.facts.rto = None;
            }
            return Err(error);
        }
    }
    quarantine
}

/// The end of the archived WAL is no recovery target: the copy opens there.
pub(crate) fn opens_at(plan: &Plan, at: usize) -> Option<Lsn> {
    plan.stops
        .get(at)
        .filter(|stop| stop.target.target == Target::Latest)
        .map(|stop| stop.target.stop)
}

/// Markers, row digests and sequences of the databases whose LSN this stop is.
fn look_at_stop(
    run: &mut Run<'_>,
    copy: &Copy,
    point: Option<&Point>,
    stop: Lsn,
    purpose: &str,
    key: &RowKey,
    seen: &mut Seen,
) -> Result<()> {
    let Some(point) = point else { return Ok(()) };
    seen.markers
        .push((purpose.to_string(), read_markers(copy, point)));
    for database in point.databases.iter().filter(|database| database.lsn == stop) {
        let name = &database.database;
        if purpose == REQUESTED {
            continue;
        }
        run.drill.watcher.note(&format!(
            "digesting database \"{name}\" of the copy at {}",
            database.lsn
        ));
        let digest = digest_copy(run.drill, copy, name, key, None)?;
        let locked: Vec<String> = digest
            .tables
            .iter()
            .filter(|(_, side)| matches!(side, Side::CouldNotLook(why) if why.contains("55P03")))
            .map(|(table, _)| table.clone())
            .collect();
        if !locked.is_empty() {
            seen.locked.insert(name.clone(), locked);
        }
        seen.proof.tables.extend(compare(name, &database.digest, &digest));
        let mut session = rows::connect(&copy.conninfo(name), name, run.drill.profile.statement_timeout)?;
        let positions = sequences::read(&mut session)?;
        seen.proof.sequences.extend(sequences::compare(
            name,
            &database.sequences_before,
            &database.sequences_after,
            &positions,
        ));
    }
    Ok(())
}

/// What the copy holds of the standing markers around a point of the past.
fn look_at_markers(run: &mut Run<'_>, copy: &Copy) {
    let (Some(database), Some(point)) = (run.markers_in.clone(), run.facts.point.as_mut()) else {
        return;
    };
    let ids: Vec<String> = point.markers.iter().map(|marker| marker.id.clone()).collect();
    if !ids.is_empty()
        && let Ok(seen) = markers_of(copy, &database, &ids)
    {
        standing::look(&mut point.markers, &seen);
    }
    let check = standing::judge(&point.markers);
    run.facts.checks.push(check);
}

fn read_markers(copy: &Copy, point: &Point) -> Result<Markers, String> {
    let id = &point.facts.marker;
    let ids = ["", "_before", "_after", "_sentinel"].map(|suffix| format!("{id}{suffix}"));
    markers_of(copy, &point.facts.database, &ids)
}

fn markers_of(copy: &Copy, database: &str, ids: &[String]) -> Result<Markers, String> {
    let read = || -> Result<Markers> {
        let mut session = rows::connect(&copy.conninfo(database), database, Duration::from_secs(60))?;
        let ids: Vec<String> = ids.iter().map(|id| Session::literal(id)).collect();
        let sql = format!(
            "SELECT id, nonce FROM pgproof.drill_marker WHERE id IN ({})",
            ids.join(", ")
        );
        Ok(session
            .rows(&sql)?
            .into_iter()
            .filter_map(|row| {
                let mut columns = row.into_iter();
                Some((columns.next()??, columns.next()??))
            })
            .collect())
    };
    match read() {
        Ok(markers) => Ok(markers),
        // No such table or database: the copy is from before the first drill, and nonce A is missing.
        Err(error) if matches!(sqlstate(&error), Some("42P01" | "3F000" | "3D000")) => Ok(Markers::new()),
        Err(error) => Err(recordable(&error)),
    }
}

fn digest_copy(
    drill: &Drill<'_>,
    copy: &Copy,
    database: &str,
    key: &RowKey,
    only: Option<&[String]>,
) -> Result<DatabaseDigest> {
    let conninfo = copy.conninfo(database);
    let look = Look {
        conninfo: &conninfo,
        database,
        snapshot: None,
        sessions: SESSIONS,
        statement_timeout: drill.profile.statement_timeout,
        abort: drill.abort,
        watcher: drill.watcher,
    };
    rows::digest(&look, key, only)
}

/// Every relation that either side has.
fn compare(database: &str, production: &DatabaseDigest, copy: &DatabaseDigest) -> Vec<TableProof> {
    let names: std::collections::BTreeSet<&String> =
        production.tables.keys().chain(copy.tables.keys()).collect();
    let side =
        |digest: &DatabaseDigest, name: &String| digest.tables.get(name).cloned().unwrap_or(Side::Absent);
    names
        .into_iter()
        .map(|name| TableProof {
            database: database.into(),
            table: name.clone(),
            production: side(production, name),
            copy: side(copy, name),
        })
        .collect()
}

/// A lock that replay holds goes away with recovery: only the last stop can be left in that way.
fn promote_for_locked(
    run: &mut Run<'_>,
    copy: &mut Copy,
    point: Option<&Point>,
    key: &RowKey,
    seen: &mut Seen,
) -> Result<()> {
    let Some(point) = point else { return Ok(()) };
    let last = point.databases.iter().map(|database| database.lsn).max();
    let again: Vec<_> = point
        .databases
        .iter()
        .filter(|database| Some(database.lsn) == last && seen.locked.contains_key(&database.database))
        .collect();
    if again.is_empty() {
        return Ok(());
    }
    promote(run, copy)?;
    for database in again {
        let name = &database.database;
        let only = seen.locked.get(name).cloned().unwrap_or_default();
        let digest = digest_copy(run.drill, copy, name, key, Some(&only))?;
        for table in &mut seen.proof.tables {
            if table.database == *name
                && let Some(side) = digest.tables.get(&table.table)
            {
                table.copy = side.clone();
            }
        }
    }
    Ok(())
}

/// Ends the copy's recovery, once.
pub(crate) fn promote(run: &mut Run<'_>, copy: &mut Copy) -> Result<()> {
    if let Some(stop) = run.facts.target.stops.last_mut()
        && stop.outcome == StopOutcome::Paused
    {
        run.drill.watcher.note("promoting the copy: a check needs it");
        copy.promote()?;
        stop.outcome = StopOutcome::Promoted;
    }
    Ok(())
}

fn conclude(run: &mut Run<'_>, point: Option<&Point>, mut seen: Seen) {
    run.facts.checks.push(checks::target(&run.facts.target.stops));
    if let Some(point) = point {
        run.facts
            .checks
            .push(checks::bracket(&point.facts, &seen.markers));
        if run.drill.profile.asks_for("row-proof") {
            seen.proof
                .tables
                .sort_by(|a, b| (&a.database, &a.table).cmp(&(&b.database, &b.table)));
            run.facts.checks.push(checks::timed(
                checks::row_proof(&seen.proof, &seen.unreached),
                seen.checks,
            ));
            run.facts.checks.push(checks::sequences(&seen.proof));
            run.facts.row_proof = Some(seen.proof);
        }
        let own = own_database(run);
        own_checks::count_rows(run, &own);
    } else if run.drill.profile.asks_for("row-proof")
        && let Some(draft) = checks::draft("row-proof")
    {
        let why = "a row proof exists only for a point that the drill makes itself";
        run.facts.checks.push(draft.not_run(why));
    }
    if point.is_none() {
        let own = own_database(run);
        own_checks::count_rows(run, &own);
    }
    if let Some(rto) = &mut run.facts.rto {
        rto.checks_ms += seen.checks.as_millis() as u64;
    }
}
