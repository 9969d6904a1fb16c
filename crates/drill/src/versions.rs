//! N-version comparison: the same stop, recovered from another backup, must hold the very same rows.
//!
//! A clean restore is not proof: a changed row under a right page checksum passes every check of form. Two backups share
//! no fate but the pages that the newer one took over from the older, and those were read and compared when it was made.
//! Invariants: both versions are recovered to the same target by the same planner, and digested with the same keys,
//! which are thrown away; a relation that one side could not read is COULD NOT LOOK, never equal; the second copy lies
//! in the first one's folder, under the same quarantine, and is gone when the check ends.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::time::Instant;

use diagnostic::{Error, Result};
use history::Wanted;
use repository::Backup;
use restore::Plan;

use crate::checks;
use crate::copy::{Copy, CopyFolder, SECOND};
use crate::engine::Run;
use crate::facts::{Check, CheckDetail, CheckResult, Side, VersionsDetail, VersionsOfTable};
use crate::feed::Feed;
use crate::isolation::{build_copy, owner};
use crate::options::Drill;
use crate::perform::{Place, Production, SESSIONS, archive_of, plan_for, restore_once, stop};
use crate::rows::{self, DatabaseDigest, Look, RowKey};
use crate::server_error::recordable;
use crate::verdict::code;

/// The digests of one version, by database.
pub(crate) type Version = BTreeMap<String, DatabaseDigest>;

/// Names told in the check.
const NAMED_MAX: usize = 8;

/// Digests every database of a copy that stands at its stop.
pub(crate) fn digest(drill: &Drill<'_>, copy: &Copy, key: &RowKey, first: &str) -> Result<Version> {
    let timeout = drill.profile.statement_timeout;
    let mut version = Version::new();
    let mut session = rows::connect(&copy.conninfo(first), first, timeout)?;
    let names = session.rows("SELECT datname FROM pg_database WHERE datallowconn ORDER BY datname")?;
    for name in names
        .into_iter()
        .filter_map(|row| row.into_iter().next().flatten())
    {
        let conninfo = copy.conninfo(&name);
        if !rows::has_rows_of_users(&mut rows::connect(&conninfo, &name, timeout)?)? {
            continue;
        }
        let look = Look {
            conninfo: &conninfo,
            database: &name,
            snapshot: None,
            sessions: SESSIONS,
            statement_timeout: timeout,
            abort: drill.abort,
            watcher: drill.watcher,
        };
        let digest = rows::digest(&look, key, None)?;
        version.insert(name, digest);
    }
    Ok(version)
}

/// Restores another version, and compares. An error ends nothing but the check.
pub(crate) fn compare(
    run: &mut Run<'_>,
    folder: &CopyFolder,
    plan: &Plan,
    production: Option<&Production>,
    key: &RowKey,
) -> Result<((), String)> {
    let started = Instant::now();
    let Some(this) = run.version.take() else {
        let why = "the copy was not digested at its last stop";
        return Ok(((), record(run, draft(|draft| draft.could_not_look(why)), started)));
    };
    let second = folder.path.join(SECOND);
    let result = other_version(run, &second, plan, production, key);
    if second.exists() {
        std::fs::remove_dir_all(&second).map_err(|error| {
            let message = format!("cannot remove \"{}\"", second.display());
            Error::io("copy-folder", message, &error)
        })?;
    }
    let check = match result {
        Ok(Some((backup, other))) => {
            let lsn = run.facts.target.stops.last().and_then(|stop| stop.reached_lsn);
            judge(VersionsDetail {
                backup: plan.backup.to_string(),
                other_backup: backup,
                lsn: lsn.map(|lsn| lsn.to_string()).unwrap_or_default(),
                tables: tables(&this, &other),
            })
        }
        Ok(None) => {
            draft(|draft| draft.not_run("there is one version only: no older backup reaches this point"))
        }
        // Whatever error that made.
        Err(error) if run.is_to_end() => return Err(error),
        Err(error) => draft(|draft| draft.could_not_look(recordable(&error))),
    };
    Ok(((), record(run, check, started)))
}

fn draft(make: impl FnOnce(checks::Draft) -> Check) -> Check {
    match checks::draft("n-version") {
        Some(draft) => make(draft),
        None => checks::unknown("n-version", "no such check"),
    }
}

fn record(run: &mut Run<'_>, check: Check, started: Instant) -> String {
    let actual = check.actual.clone();
    run.facts.checks.push(checks::timed(check, started.elapsed()));
    actual
}

/// The newest older backup that reaches the same stop, recovered and digested.
fn other_version(
    run: &mut Run<'_>,
    second: &Path,
    plan: &Plan,
    production: Option<&Production>,
    key: &RowKey,
) -> Result<Option<(String, Version)>> {
    let drill = run.drill;
    let backups = drill.repository.backups()?;
    let Some(last) = plan.stops.last() else {
        return Ok(None);
    };
    let archive = archive_of(drill, &backups, production)?;
    let wanted = Wanted {
        target: last.target.target.clone(),
        inclusive: Some(last.target.inclusive),
    };
    let older: Vec<&Backup> = backups
        .iter()
        .rev()
        .filter(|backup| backup.system_identifier == plan.system_identifier)
        .filter(|backup| backup.finished_at < plan.backup_finished_at)
        .collect();
    for backup in older {
        make_folders(drill, second)?;
        let feed = Feed::create(&second.join("feed"), archive.segment_size(), owner(drill))?;
        let place = Place {
            folder: second.into(),
            restore_command: feed.restore_command()?,
            backup: Some(backup.backup),
        };
        let stops = vec![stop(wanted.clone(), last.purpose.clone())];
        let planned = plan_for(drill, &backups, &archive, stops, Some(plan.timeline), &place);
        let other = match planned {
            Ok(other) => other,
            // It does not reach the point: an older one will not either, or is asked next.
            Err(error) if is_out_of_reach(&error) => continue,
            Err(error) => return Err(error),
        };
        run.note(&format!("another version: backup {}", backup.backup));
        restore_once(drill, &other)?;
        let mut copy = build_copy(drill, second, &other, backup, production)?.copy;
        copy.spawn(&other, 0)?;
        let opens_at = crate::stops::opens_at(&other, 0);
        copy.wait_for_stop(opens_at, drill.profile.replay_timeout, drill.abort)?;
        let first = crate::soundness::own_database(run);
        let version = digest(drill, &copy, key, &first)?;
        copy.stop()?;
        return Ok(Some((backup.backup.to_string(), version)));
    }
    Ok(None)
}

fn is_out_of_reach(error: &Error) -> bool {
    let (_, code_of_it) = crate::classify::classify(error);
    matches!(
        code_of_it,
        code::TARGET_UNREACHABLE | code::WAL_MISSING | code::NO_BACKUP
    )
}

fn make_folders(drill: &Drill<'_>, second: &Path) -> Result<()> {
    for part in ["", "s", "archived"] {
        let path = second.join(part);
        let made = std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&path);
        let given = made.and_then(|()| match owner(drill) {
            Some((uid, gid)) => std::os::unix::fs::chown(&path, Some(uid), Some(gid)),
            None => Ok(()),
        });
        given.map_err(|error| {
            Error::io(
                "copy-folder",
                format!("cannot make \"{}\"", path.display()),
                &error,
            )
        })?;
    }
    Ok(())
}

/// Every relation that either version has.
fn tables(this: &Version, other: &Version) -> Vec<VersionsOfTable> {
    let databases: BTreeSet<&String> = this.keys().chain(other.keys()).collect();
    let mut tables = Vec::new();
    for database in databases {
        let side = |version: &Version, table: &String| {
            let digest = version.get(database).and_then(|digest| digest.tables.get(table));
            digest.cloned().unwrap_or(Side::Absent)
        };
        let of = |version: &Version| -> Vec<String> {
            version
                .get(database)
                .map(|digest| digest.tables.keys().cloned().collect())
                .unwrap_or_default()
        };
        let names: BTreeSet<String> = of(this).into_iter().chain(of(other)).collect();
        tables.extend(names.into_iter().map(|table| VersionsOfTable {
            database: database.clone(),
            this: side(this, &table),
            other: side(other, &table),
            table,
        }));
    }
    tables
}

/// What two sides say together.
fn result(table: &VersionsOfTable) -> CheckResult {
    match (&table.this, &table.other) {
        (Side::Digest { .. }, Side::Digest { .. }) if table.this == table.other => CheckResult::Pass,
        (Side::CouldNotLook(_), _) | (_, Side::CouldNotLook(_)) => CheckResult::CouldNotLook,
        // Damage that both versions show lies further back than either.
        (Side::Unreadable(_), Side::Unreadable(_)) | (Side::Absent, Side::Absent) => {
            CheckResult::CouldNotLook
        }
        _ => CheckResult::Fail,
    }
}

/// The check, from the digests of both versions alone.
pub fn judge(detail: VersionsDetail) -> Check {
    let of = |wanted: CheckResult| -> Vec<String> {
        let found = detail.tables.iter().filter(|table| result(table) == wanted);
        let mut names: Vec<String> = found
            .map(|table| format!("{}.{}", table.database, table.table))
            .collect();
        let more = names.len().saturating_sub(NAMED_MAX);
        names.truncate(NAMED_MAX);
        if more > 0 {
            names.push(format!("and {more} more"));
        }
        names
    };
    let (bad, unseen) = (of(CheckResult::Fail), of(CheckResult::CouldNotLook));
    let versions = format!("backups {} and {}", detail.backup, detail.other_backup);
    let mut check = draft(|draft| {
        if !bad.is_empty() {
            let actual = format!("{versions} differ in {}", bad.join(", "));
            draft.is(CheckResult::Fail, Some(code::VERSIONS_DIFFER), actual)
        } else if !unseen.is_empty() {
            draft.could_not_look(format!("could not look at {}", unseen.join(", ")))
        } else if detail.tables.is_empty() {
            draft.not_run("no database holds a table of the user's")
        } else {
            let actual = format!("{versions}: {} relations are equal", detail.tables.len());
            draft.is(CheckResult::Pass, None, actual)
        }
    });
    check.detail = Some(CheckDetail::Versions(detail));
    check
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_versions_are_equal_only_where_both_were_read() {
        let digest = |text: &str| Side::Digest {
            rows: 3,
            digest: text.into(),
        };
        let of = |this: Side, other: Side| {
            let check = judge(VersionsDetail {
                backup: "b".into(),
                other_backup: "a".into(),
                lsn: "0/1".into(),
                tables: vec![VersionsOfTable {
                    database: "d".into(),
                    table: "public.t".into(),
                    this,
                    other,
                }],
            });
            (check.result, check.reason)
        };
        assert_eq!(of(digest("x"), digest("x")).0, CheckResult::Pass);
        let differ = (CheckResult::Fail, Some(code::VERSIONS_DIFFER.to_string()));
        assert_eq!(of(digest("x"), digest("y")), differ);
        assert_eq!(of(digest("x"), Side::Absent), differ);
        assert_eq!(of(digest("x"), Side::Unreadable("XX001".into())), differ);
        assert_eq!(
            of(digest("x"), Side::CouldNotLook("lock".into())).0,
            CheckResult::CouldNotLook
        );
        assert_eq!(of(Side::Absent, Side::Absent).0, CheckResult::CouldNotLook);
        let nothing = judge(VersionsDetail::default());
        assert_eq!(nothing.result, CheckResult::NotRun);
    }
}
