//! Standing markers: rows that pgproof has committed in production earlier, by which a point of the past is proved.
//!
//! Invariants: a marker's place is that of its commit record in the archived WAL, found by the transaction that wrote
//! the row, never by the row's own time; the table is pgproof's own and bounded; a point between two markers is proved
//! when the one before is there and the one behind is not, and nothing less is called proof.

use std::collections::BTreeSet;
use std::time::Duration;

use cluster::{ConnectOptions, Session};
use diagnostic::{Error, Result};
use history::{Archive, Start, Target, Wanted, history_of};
use jiff::Timestamp;
use postgres::{Lsn, Xid};
use repository::Backup;
use restore::Plan;

use crate::checks::{self, Markers};
use crate::facts::{Check, CheckResult, StandingMarker};
use crate::point;
use crate::verdict::code;

/// For statements about pgproof's own small table.
const LIMIT: Duration = Duration::from_secs(60);
/// So many markers on each side are looked up.
const MARKERS_EACH_SIDE: usize = 10;

/// A marker in production.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MarkerRow {
    /// Its id.
    pub id: String,
    /// The transaction that wrote it.
    pub xid: u32,
    /// What its row says; only a hint of where to look.
    pub created_at: Timestamp,
}

/// Commits one standing marker; its id. Errors: `point-not-made` on a standby, those of the session.
pub fn mark(conninfo: &str, now: Timestamp) -> Result<String> {
    let mut session = Session::connect_with(
        conninfo,
        &ConnectOptions {
            statement_timeout: LIMIT,
            ..ConnectOptions::default()
        },
    )?;
    let recovery = session.one("SELECT pg_is_in_recovery()")?;
    if recovery.first().and_then(Option::as_deref) == Some("t") {
        return Err(
            Error::new("point-not-made", "a marker cannot be made on a standby")
                .hint("Give the primary's connection."),
        );
    }
    session.execute("SET search_path = pg_catalog; SET default_transaction_read_only = off")?;
    session.execute("SET synchronous_commit = local")?;
    point::prepare(&mut session)?;
    let nonce = point::nonce()?;
    let id = format!(
        "mark_{}_{}",
        now.strftime("%Y%m%d%H%M%S"),
        nonce.get(..8).unwrap_or_default()
    );
    point::insert(&mut session, &id, &nonce)?;
    Ok(id)
}

/// The markers that production holds; without pgproof's table there are none.
pub fn read(conninfo: &str) -> Result<(String, Vec<MarkerRow>)> {
    let options = ConnectOptions {
        statement_timeout: LIMIT,
        read_only: true,
        ..ConnectOptions::default()
    };
    let mut session = Session::connect_with(conninfo, &options)?;
    let database = session.one("SELECT current_database()")?;
    let database = database.into_iter().next().flatten().unwrap_or_default();
    let there = session.one("SELECT to_regclass('pgproof.drill_marker') IS NOT NULL")?;
    if there.first().and_then(Option::as_deref) != Some("t") {
        return Ok((database, Vec::new()));
    }
    let rows = session.rows(
        "SELECT id, xmin, extract(epoch FROM created_at)::numeric(20, 6) * 1000000 FROM pgproof.drill_marker \
         ORDER BY created_at, id",
    )?;
    let markers = rows.into_iter().filter_map(|row| {
        let mut columns = row.into_iter();
        let (id, xid, at) = (columns.next()??, columns.next()??, columns.next()??);
        Some(MarkerRow {
            id,
            xid: xid.parse().ok()?,
            created_at: Timestamp::from_microsecond(at.split('.').next()?.parse().ok()?).ok()?,
        })
    });
    Ok((database, markers.collect()))
}

/// Which markers the copy must hold, by the WAL between the backup and the point. Those nearest to the point are looked
/// up; one whose transaction's end the archive does not show is left out.
pub fn expect(
    archive: &Archive,
    backup: &Backup,
    plan: &Plan,
    rows: &[MarkerRow],
) -> Result<Vec<StandingMarker>> {
    let Some(stop) = plan.stops.first() else {
        return Ok(Vec::new());
    };
    let around = stop
        .target
        .stops_at
        .as_ref()
        .or(stop.target.last_commit.as_ref())
        .map_or(backup.finished_at, |commit| commit.time.to_jiff());
    let behind_backup: Vec<&MarkerRow> = rows
        .iter()
        .filter(|row| row.created_at > backup.started_at)
        .collect();
    let split = behind_backup.partition_point(|row| row.created_at <= around);
    let near = split.saturating_sub(MARKERS_EACH_SIDE)..(split + MARKERS_EACH_SIDE).min(behind_backup.len());
    let near = behind_backup.get(near).unwrap_or_default();
    let path = archive
        .timelines()
        .path_to(plan.timeline, Some((&history_of(backup), backup.stop_lsn)))?;
    let start = Start {
        redo: backup.redo_lsn,
        stop: backup.stop_lsn,
        ended_at: postgres::Timestamp::from_jiff(backup.finished_at),
        path,
    };
    let wanted: Vec<Wanted> = near.iter().map(|row| Target::Xid(Xid(row.xid)).into()).collect();
    if wanted.is_empty() {
        return Ok(Vec::new());
    }
    let trace = archive.trace(&start, &wanted, None)?;
    let found = near.iter().zip(trace.targets).filter_map(|(row, resolution)| {
        // Production shows the row, so that its transaction has committed, whatever the archive says of it.
        let end = resolution.ok()?.stops_at?;
        Some(StandingMarker {
            id: row.id.clone(),
            commit_lsn: end.lsn,
            committed_at: end.time.to_jiff(),
            expected: is_replayed(
                end.lsn,
                stop.target.stop,
                stop.target.inclusive,
                &stop.target.target,
            ),
            found: None,
        })
    });
    Ok(found.collect())
}

/// Whether recovery to this stop replays a record that begins here.
fn is_replayed(record: Lsn, stop: Lsn, inclusive: bool, target: &Target) -> bool {
    record < stop || (record == stop && inclusive && matches!(target, Target::Lsn(_)))
}

/// What the copy says about them.
pub fn look(markers: &mut [StandingMarker], seen: &Markers) {
    let ids: BTreeSet<&String> = seen.keys().collect();
    for marker in markers {
        marker.found = Some(ids.contains(&marker.id));
    }
}

/// The check of the markers.
pub fn judge(markers: &[StandingMarker]) -> Check {
    let Some(draft) = checks::draft("standing-markers") else {
        return checks::unknown("standing-markers", "no such check");
    };
    if let Some(wrong) = markers
        .iter()
        .find(|marker| marker.found.is_some_and(|found| found != marker.expected))
    {
        let (reason, actual) = match wrong.expected {
            true => (
                code::MARKER_MISSING,
                format!(
                    "marker {}, committed at {}, is missing",
                    wrong.id, wrong.commit_lsn
                ),
            ),
            false => (
                code::MARKER_BEYOND_TARGET,
                format!(
                    "the copy holds marker {}, which was committed at {}",
                    wrong.id, wrong.commit_lsn
                ),
            ),
        };
        return draft.is(CheckResult::Fail, Some(reason), actual);
    }
    if markers.iter().any(|marker| marker.found.is_none()) {
        return draft.could_not_look("the copy's markers could not be read");
    }
    let before = markers
        .iter()
        .filter(|marker| marker.expected)
        .max_by_key(|marker| marker.commit_lsn);
    let behind = markers
        .iter()
        .filter(|marker| !marker.expected)
        .min_by_key(|marker| marker.commit_lsn);
    match (before, behind) {
        (Some(before), Some(behind)) => draft.is(
            CheckResult::Pass,
            None,
            format!(
                "the point lies between {} ({}) and {} ({})",
                before.commit_lsn, before.id, behind.commit_lsn, behind.id
            ),
        ),
        (Some(before), None) => {
            let actual = format!(
                "no marker stands behind the point; the last one before it, {}, is there",
                before.id
            );
            draft.is(CheckResult::Warn, Some(code::CHECK_WARNED), actual)
        }
        (None, Some(behind)) => {
            let actual = format!(
                "no marker stands before the point; the first one behind it, {}, is not there",
                behind.id
            );
            draft.is(CheckResult::Warn, Some(code::CHECK_WARNED), actual)
        }
        (None, None) => draft.not_run("no marker stands between the backup and the end of the archive"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marker(lsn: u64, expected: bool, found: Option<bool>) -> StandingMarker {
        StandingMarker {
            id: format!("mark_{lsn}"),
            commit_lsn: Lsn(lsn),
            committed_at: Timestamp::UNIX_EPOCH,
            expected,
            found,
        }
    }

    #[test]
    fn a_point_is_proved_by_a_marker_on_either_side_and_by_nothing_less() {
        let of = |markers: &[StandingMarker]| {
            let check = judge(markers);
            (check.result, check.reason)
        };
        let before = marker(10, true, Some(true));
        let behind = marker(30, false, Some(false));
        assert_eq!(of(&[before.clone(), behind.clone()]).0, CheckResult::Pass);
        assert_eq!(of(std::slice::from_ref(&before)).0, CheckResult::Warn);
        assert_eq!(of(std::slice::from_ref(&behind)).0, CheckResult::Warn);
        assert_eq!(of(&[]).0, CheckResult::NotRun);
        assert_eq!(
            of(&[before.clone(), marker(30, false, None)]).0,
            CheckResult::CouldNotLook
        );
        let missing = of(&[marker(10, true, Some(false)), behind]);
        assert_eq!(missing, (CheckResult::Fail, Some(code::MARKER_MISSING.into())));
        let beyond = of(&[before, marker(30, false, Some(true))]);
        assert_eq!(
            beyond,
            (CheckResult::Fail, Some(code::MARKER_BEYOND_TARGET.into()))
        );
    }

    #[test]
    fn a_record_at_the_stop_is_replayed_only_by_an_inclusive_lsn() {
        let lsn = Target::Lsn(Lsn(20));
        assert!(is_replayed(Lsn(19), Lsn(20), false, &lsn));
        assert!(!is_replayed(Lsn(20), Lsn(20), false, &lsn));
        assert!(is_replayed(Lsn(20), Lsn(20), true, &lsn));
        assert!(!is_replayed(Lsn(20), Lsn(20), true, &Target::Latest));
    }
}
