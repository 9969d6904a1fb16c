//! Planting faults into the copy of a drill: the running copy is asked where, then stopped, changed, and sent to the
//! same stop again.
//!
//! Invariant: what was planted stands in the facts, so that no verdict on such a copy is taken for one on the backup.

use std::time::Duration;

use cluster::{ConnectOptions, Session};
use diagnostic::{Error, Result};
use repository::Backup;
use restore::Plan;

use crate::copy::Copy;
use crate::engine::Run;
use crate::fault::{self, Candidate, SequenceCandidate, nothing_to_change};
use crate::options::Fault;
use crate::point::Point;
use crate::soundness::own_database;
use crate::stops::opens_at;

/// For statements that look for a place.
const LIMIT: Duration = Duration::from_secs(60);

/// Where a fault goes.
enum Place {
    Rows(Vec<Candidate>),
    LostRow(Vec<Candidate>),
    LostRelation(Vec<Candidate>),
    Page(String),
    Index(Vec<Candidate>),
    Sequence(Vec<SequenceCandidate>),
    RowAt(Candidate, (u64, usize)),
}

/// Plants what is planted into the files of a copy that has replayed everything.
pub(crate) fn at_last_stop(
    run: &mut Run<'_>,
    copy: &mut Copy,
    plan: &Plan,
    at: usize,
    backup: &Backup,
    point: Option<&Point>,
) -> Result<()> {
    for planted in run.drill.faults.clone() {
        let Some(place) = find(run, copy, backup, point, planted)? else {
            continue;
        };
        copy.stop()?;
        let (data, checksums) = (copy.data(), backup.data_checksum_version != 0);
        let what = match &place {
            Place::Rows(candidates) => fault::change_one_row(data, candidates, checksums)?,
            Place::LostRow(candidates) => fault::lose_one_row(data, candidates, checksums)?,
            Place::LostRelation(candidates) => fault::lose_a_relation(data, candidates)?,
            Place::Page(folder) => fault::damage_a_page(data, folder)?,
            Place::Index(candidates) => fault::disorder_an_index(data, candidates, checksums)?,
            Place::Sequence(candidates) => fault::rewind_a_sequence(data, candidates, checksums)?,
            Place::RowAt(relation, row) => fault::change_row_at(data, relation, *row, checksums)?,
        };
        record(run, planted, &what);
        copy.spawn(plan, at)?;
        copy.wait_for_stop(
            opens_at(plan, at),
            run.drill.profile.replay_timeout,
            run.drill.abort,
        )?;
    }
    Ok(())
}

/// Notes what was planted.
pub(crate) fn record(run: &mut Run<'_>, planted: Fault, what: &str) {
    run.facts
        .planted_faults
        .push(format!("{}: {what}", planted.as_str()));
}

/// The plan with another first stop: just behind nonce A, before the restore point that was asked for. Error:
/// `fault-not-planted` without a bracket.
pub(crate) fn with_moved_stop(run: &mut Run<'_>, plan: &Plan) -> Result<Plan> {
    let Some(bracket) = &run.facts.bracket else {
        return Err(nothing_to_change(
            "no stop of a bracket that could be moved",
            "Drill a point that the drill makes itself.",
        ));
    };
    let lsn = bracket.after_nonce_before;
    let mut moved = plan.clone();
    if let Some(stop) = moved.stops.first_mut() {
        stop.settings.retain(|(name, _)| {
            matches!(
                name.as_str(),
                "recovery_target_timeline" | "recovery_target_action"
            )
        });
        for (name, value) in [
            ("recovery_target_lsn", lsn.to_string()),
            ("recovery_target_inclusive", "off".to_string()),
        ] {
            stop.settings.push((name.to_string(), value));
        }
    }
    record(
        run,
        Fault::StopMoved,
        &format!("recovery is told to stop at {lsn}"),
    );
    Ok(moved)
}

/// Asks the copy. `None`: the fault is planted elsewhere.
fn find(
    run: &Run<'_>,
    copy: &Copy,
    backup: &Backup,
    point: Option<&Point>,
    planted: Fault,
) -> Result<Option<Place>> {
    let own = own_database(run);
    let mut names: Vec<String> = point
        .map(|point| point.databases.iter().map(|each| each.database.clone()).collect())
        .unwrap_or_default();
    if names.is_empty() {
        names.push(own.clone());
    }
    Ok(Some(match planted {
        Fault::RowChangedInCopy => Place::Rows(everywhere(copy, &names, TABLES)?),
        Fault::RowLostInCopy => Place::LostRow(everywhere(copy, &names, TABLES)?),
        Fault::RelationLostInCopy => Place::LostRelation(everywhere(copy, &names, TABLES)?),
        Fault::IndexDisorderedInCopy => Place::Index(everywhere(copy, &names, INDEXES)?),
        Fault::SequenceRewoundInCopy => Place::Sequence(sequences(copy, &names)?),
        Fault::CollationOutdatedInCopy => collation(copy, &own)?,
        Fault::PageDamagedInCopy if backup.data_checksum_version == 0 => {
            return Err(nothing_to_change(
                "no page checksums",
                "The cluster was initialised without them.",
            ));
        }
        Fault::PageDamagedInCopy => unread_page(copy, &own)?,
        Fault::ArchiveCommandInherited | Fault::StopMoved | Fault::ProductionReadable => return Ok(None),
    }))
}

fn connect(copy: &Copy, database: &str) -> Result<Session> {
    let options = ConnectOptions {
        database: Some(database.into()),
        statement_timeout: LIMIT,
        read_only: true,
        ..ConnectOptions::default()
    };
    Session::connect_with(&copy.conninfo(database), &options)
}

/// Tables in which a changed last byte gives another value, the best first.
const TABLES: &str = "SELECT pg_relation_filepath(c.oid), n.nspname || '.' || c.relname \
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
      JOIN LATERAL (SELECT t.typname FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid \
        WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum DESC LIMIT \
        1) l ON true \
    WHERE c.relkind = 'r' AND c.relpersistence = 'p' AND n.nspname NOT IN ('pg_catalog', \
    'information_schema', 'pgproof') \
      AND l.typname IN ('int8', 'int4', 'int2', 'timestamptz', 'timestamp', 'date', 'float8', \
      'bpchar', 'varchar', 'text', 'jsonb') \
    ORDER BY array_position(ARRAY['int8', 'int4', 'int2', 'timestamptz', 'timestamp', 'date', \
    'float8', 'bpchar', \
      'varchar', 'text', 'jsonb']::name[], l.typname), 2";

/// B-tree indexes of the user's, the largest first.
const INDEXES: &str = "SELECT pg_relation_filepath(i.indexrelid), n.nspname || '.' || c.relname \
    FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_namespace n ON n.oid = c.relnamespace \
      JOIN pg_am a ON a.oid = c.relam \
    WHERE a.amname = 'btree' AND i.indisvalid AND c.relkind = 'i' AND c.relpersistence = 'p' \
      AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast', 'pgproof') \
    ORDER BY c.relpages DESC, 2 LIMIT 50";

/// Sequences that have handed out more than their first value.
const SEQUENCES: &str = "SELECT pg_relation_filepath(s.seqrelid), n.nspname || '.' || c.relname, s.seqstart \
    FROM pg_sequence s JOIN pg_class c ON c.oid = s.seqrelid JOIN pg_namespace n ON n.oid = c.relnamespace \
    WHERE c.relpersistence = 'p' AND s.seqincrement > 0 AND NOT s.seqcycle \
      AND pg_sequence_last_value(s.seqrelid) > s.seqstart";

fn everywhere(copy: &Copy, databases: &[String], sql: &str) -> Result<Vec<Candidate>> {
    let mut found = Vec::new();
    for database in databases {
        for row in connect(copy, database)?.rows(sql)? {
            found.extend(candidate(database, row));
        }
    }
    Ok(found)
}

fn candidate(database: &str, row: Vec<Option<String>>) -> Option<Candidate> {
    let mut columns = row.into_iter();
    let (path, name) = (columns.next()??, columns.next()??);
    Some(Candidate {
        path,
        name: format!("{database}.{name}"),
    })
}

fn sequences(copy: &Copy, databases: &[String]) -> Result<Vec<SequenceCandidate>> {
    let mut found = Vec::new();
    for database in databases {
        for row in connect(copy, database)?.rows(SEQUENCES)? {
            let start = row.get(2).cloned().flatten().and_then(|start| start.parse().ok());
            found.extend(
                candidate(database, row)
                    .zip(start)
                    .map(|(relation, start)| SequenceCandidate { relation, start }),
            );
        }
    }
    Ok(found)
}

/// A collation whose version is recorded: the version is the last column, so that another last byte is another version.
fn collation(copy: &Copy, database: &str) -> Result<Place> {
    let rows = connect(copy, database)?.rows(
        "SELECT pg_relation_filepath('pg_catalog.pg_collation'), 'pg_catalog.pg_collation', ctid FROM pg_collation \
         WHERE collversion IS NOT NULL AND collversion <> '' ORDER BY ctid LIMIT 1",
    )?;
    let found = rows.into_iter().next().and_then(|row| {
        let ctid = row.get(2).cloned().flatten()?;
        let (block, number) = ctid.trim_matches(['(', ')']).split_once(',')?;
        Some((
            candidate(database, row)?,
            (block.parse().ok()?, number.parse().ok()?),
        ))
    });
    match found {
        Some((relation, row)) => Ok(Place::RowAt(relation, row)),
        None => Err(nothing_to_change(
            "no collation whose version is recorded",
            "The C library of this host versions none.",
        )),
    }
}

/// A database that lets nobody in: no query reads its pages.
fn unread_page(copy: &Copy, database: &str) -> Result<Place> {
    let rows = connect(copy, database)?
        .rows("SELECT oid FROM pg_database WHERE NOT datallowconn ORDER BY oid LIMIT 1")?;
    let oid = rows
        .into_iter()
        .next()
        .and_then(|row| row.into_iter().next().flatten());
    match oid {
        Some(oid) => Ok(Place::Page(format!("base/{oid}"))),
        None => Err(Error::new(
            "fault-not-planted",
            "the copy has no database that lets nobody in, as template0",
        )),
    }
}
