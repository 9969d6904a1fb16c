//! `pgproof find`: what happened to tables, told from the archived WAL, and the recovery target just before it.
//!
//! Invariant: WAL that is missing is said to be missing; "nothing was found" is only said of what was read.

use diagnostic::{Error, Result};
use history::{FindQuery, FoundEvent, TableEvent, Thresholds, WalPath};
use jiff::{SignedDuration, Timestamp};
use postgres::{Catalog, Lsn, TimelineId};
use repository::Backup;
use serde_json::{Value, json};

use crate::account;
use crate::archive;
use crate::cli;
use crate::config::nearest;
use crate::context::Context;
use crate::copies::{Copies, OpenCopy};
use crate::{exit, output, times};

/// How far `--at` looks to both sides.
const AROUND: SignedDuration = SignedDuration::from_mins(5);
const EVENTS: [&str; 6] = ["drop", "truncate", "delete", "update", "rewrite", "drop-database"];
/// Tables of one transaction that are named in one line.
const NAMES_TOLD: usize = 20;

pub fn run(context: &Context, arguments: &cli::Find) -> Result<u8> {
    let query = query(arguments, context.now())?;
    let configuration = context.configuration()?;
    let cluster = configuration.cluster(arguments.cluster.as_deref())?;
    account::become_owner(&configuration, cluster)?;
    let copies = Copies::open_any(&configuration, cluster, None)?;
    let mut backups = archive::backups(&copies)?;
    let control = archive::control_file(cluster);
    let system =
        archive::system(control.as_ref(), &backups).ok_or_else(|| archive::unknown_system(cluster))?;
    backups.retain(|backup| backup.system_identifier == system.identifier);
    let archive = archive::open(&copies, system)?;
    // The newest backup's timeline is the one that the cluster lives on; a higher number in the archive may be a copy's.
    let timeline = match backups.last() {
        Some(newest) => newest.timeline,
        None => archive.archived_timelines().max().unwrap_or(TimelineId(1)),
    };
    let own = backups
        .last()
        .map(|backup| (history::history_of(backup), backup.stop_lsn));
    let path = archive
        .timelines()
        .path_to(timeline, own.as_ref().map(|(history, end)| (history, *end)))?;
    backups.retain(|backup| {
        path.carries(&history::history_of(backup), backup.stop_lsn)
            .is_ok()
    });

    // Names come from the catalogs that stand with the backups: begin at the last one before the time asked about.
    let first = query
        .from
        .and_then(|from| {
            backups
                .iter()
                .rposition(|backup| backup.finished_at <= from.to_jiff())
        })
        .unwrap_or(0);
    let mut notes = Vec::new();
    if backups.is_empty() {
        notes.push("there is no backup, so no table's name is known".to_owned());
    }
    let used = backups.get(first..).unwrap_or_default();
    let start = match used.first() {
        Some(backup) => Some(backup.redo_lsn),
        None => oldest(&archive, &path),
    };
    let events = match start {
        Some(start) => search(&copies, &archive, &path, start, used, &query, &mut notes)?,
        None => Vec::new(),
    };
    show(context, &cluster.name, &events, &notes);
    Ok(exit::DONE)
}

fn query(arguments: &cli::Find, now: Timestamp) -> Result<FindQuery> {
    let time = |text: &Option<String>| -> Result<Option<Timestamp>> {
        text.as_deref().map(|text| times::parse(text, now)).transpose()
    };
    let (mut from, mut to) = (time(&arguments.from)?, time(&arguments.until)?);
    if let Some(at) = time(&arguments.at)? {
        from = Some(at.checked_sub(AROUND).unwrap_or(Timestamp::MIN));
        to = Some(at.checked_add(AROUND).unwrap_or(Timestamp::MAX));
    }
    let mut events = Vec::new();
    for word in &arguments.event {
        let event: TableEvent = serde_json::from_value(Value::String(word.clone())).map_err(|_| {
            let error = Error::usage("event-unknown", format!("there is no event {word:?}"));
            match nearest(word, EVENTS.into_iter()) {
                Some(nearest) => error.hint(format!("Did you mean {nearest:?}?")),
                None => error.hint(format!("There are: {}.", EVENTS.join(", "))),
            }
        })?;
        events.push(event);
    }
    if !(0.0..=1.0).contains(&arguments.minimum_share) {
        return Err(Error::usage(
            "share-range",
            "--minimum-share must be between 0 and 1",
        ));
    }
    Ok(FindQuery {
        table: arguments.table.clone(),
        events,
        from: from.map(postgres::Timestamp::from_jiff),
        to: to.map(postgres::Timestamp::from_jiff),
        thresholds: Thresholds {
            rows_min: arguments.minimum_rows,
            share_min: arguments.minimum_share,
        },
    })
}

/// Where the archived WAL of the way begins.
fn oldest(archive: &history::Archive, path: &WalPath) -> Option<Lsn> {
    let firsts = path
        .legs
        .iter()
        .filter_map(|leg| archive.runs(leg.timeline).first());
    firsts
        .map(|run| Lsn(run.first.saturating_mul(u64::from(archive.segment_size()))))
        .min()
}

/// Searches from `start` to the end, and on behind each gap.
fn search(
    copies: &[OpenCopy],
    archive: &history::Archive,
    path: &WalPath,
    start: Lsn,
    backups: &[Backup],
    query: &FindQuery,
    notes: &mut Vec<String>,
) -> Result<Vec<FoundEvent>> {
    let mut starts = vec![start];
    for gap in archive.gaps_on(path, start) {
        notes.push(format!(
            "WAL from {} to {} on timeline {} is in no copy: what happened there is not known",
            gap.from, gap.to, gap.timeline
        ));
        starts.push(gap.to);
    }
    let mut events = Vec::new();
    for start in starts {
        let mut snapshots = backups
            .iter()
            .map(|backup| catalog(copies, backup).map(|it| (backup.start_lsn, it)));
        events.extend(history::find(archive, path, start, &mut snapshots, query)?);
    }
    if let (Some(table), true) = (&query.table, events.is_empty()) {
        let mut known = false;
        for backup in backups {
            known |= !catalog(copies, backup)?.find_table(table).is_empty();
        }
        if !known {
            notes.push(format!(
                "no backup in that time knows a table {table:?}; write NAME, SCHEMA.NAME or DATABASE.SCHEMA.NAME"
            ));
        }
    }
    Ok(events)
}

/// The catalog that was kept with a backup.
pub fn catalog(copies: &[OpenCopy], backup: &Backup) -> Result<Catalog> {
    let mut failure = None;
    for copy in copies {
        match copy.cluster.catalog(backup) {
            Ok(bytes) => {
                return serde_json::from_slice(&bytes).map_err(|error| {
                    let message = format!("the catalog of backup {} cannot be read", backup.backup);
                    Error::new("catalog-decode", message).caused_by(&error)
                });
            }
            Err(error) => failure = Some(error),
        }
    }
    Err(failure.unwrap_or_else(|| Error::new("backup-missing", "no copy is open")))
}

fn show(context: &Context, cluster: &str, events: &[FoundEvent], notes: &[String]) {
    if context.json {
        output::json(&json!({ "events": events, "notes": notes }));
        return;
    }
    let mut told: Option<(postgres::Xid, Lsn, history::TableEvent)> = None;
    for event in events {
        // Tables that went together are told together, by the first of them.
        let key = (event.xid, event.commit_lsn, event.event);
        if told.replace(key) == Some(key) && !event.with.is_empty() {
            continue;
        }
        let kind = serde_json::to_value(event.event).unwrap_or_default();
        let rows = event.rows.map_or("an unknown number of rows".to_owned(), |rows| {
            format!("{rows} rows")
        });
        output::line(format!(
            "{}  {} {}.{} ({rows}), transaction {}",
            event.committed_at,
            kind.as_str().unwrap_or("event"),
            event.database,
            event.table,
            event.xid
        ));
        if !event.with.is_empty() {
            let named = event.with.iter().take(NAMES_TOLD).cloned().collect::<Vec<_>>();
            let more = event.with.len().saturating_sub(named.len());
            let more = if more > 0 {
                format!(", and {more} more")
            } else {
                String::new()
            };
            output::line(format!("    with it: {}{more}", named.join(", ")));
        }
        if let Some(schema) = &event.schema_gone {
            output::line(format!(
                "    no table of schema {schema} is left: DROP SCHEMA {schema} CASCADE looks like this"
            ));
        }
        if let Some(note) = &event.note {
            output::line(format!("    note: {note}"));
        }
        output::line(format!(
            "    just before it: pgproof restore {cluster} --to {} --into DIR",
            event.target_before
        ));
    }
    if events.is_empty() {
        output::line("Nothing of the kind was found in the archived WAL.");
    }
    for note in notes {
        output::line(format!("note: {note}"));
    }
}
