//! amcheck in a copy: every permanent table by `verify_heapam`, every valid B-tree by `bt_index_check`.
//!
//! Invariants: where the extension is missing and cannot be made, the answer is NOT RUN; a statement that ran
//! out of time or was locked out is "could not look"; only the message that amcheck itself gives is recorded
//! (it names relations and positions, never values).

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use cluster::{ConnectOptions, Session};
use diagnostic::{Error, Result};

use crate::options::Watcher;
use crate::rows::aborted;
use crate::server_error::{recordable, sqlstate};

/// Findings that are named; all are counted.
const NAMED_MAX: usize = 20;

/// What amcheck said of one copy.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AmcheckResult {
    /// Tables looked at.
    pub tables: u64,
    /// B-tree indexes looked at.
    pub indexes: u64,
    /// Damage in tables.
    pub bad_tables: u64,
    /// Damage in indexes, or between an index and its table.
    pub bad_indexes: u64,
    /// The first findings.
    pub named: Vec<String>,
    /// What could not be looked at.
    pub not_seen: Vec<String>,
    /// How much of it because replay holds a lock: promotion helps.
    pub locked: u64,
}

/// Whether amcheck can be used in a database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extension {
    /// It is installed.
    Installed,
    /// Its files are there: `CREATE EXTENSION` would work in a server that accepts writes.
    Creatable,
    /// The host does not have it.
    Missing,
}

fn connect(conninfo: &str, database: &str, timeout: Duration, read_only: bool) -> Result<Session> {
    let options = ConnectOptions {
        database: Some(database.into()),
        statement_timeout: timeout,
        lock_timeout: crate::rows::LOCK_TIMEOUT_COPY,
        read_only,
        ..ConnectOptions::default()
    };
    Session::connect_with(conninfo, &options)
}

fn text(row: &[Option<String>], column: usize) -> &str {
    row.get(column).and_then(Option::as_deref).unwrap_or_default()
}

/// Whether amcheck is there.
pub fn extension(conninfo: &str, database: &str, timeout: Duration) -> Result<Extension> {
    let mut session = connect(conninfo, database, timeout, true)?;
    let row = session.one(
        "SELECT EXISTS (SELECT FROM pg_extension WHERE extname = 'amcheck'), \
                EXISTS (SELECT FROM pg_available_extensions WHERE name = 'amcheck')",
    )?;
    Ok(match (text(&row, 0), text(&row, 1)) {
        ("t", _) => Extension::Installed,
        (_, "t") => Extension::Creatable,
        _ => Extension::Missing,
    })
}

/// Makes the extension in a copy that accepts writes.
pub fn create(conninfo: &str, database: &str, timeout: Duration) -> Result<()> {
    let mut session = connect(conninfo, database, timeout, false)?;
    // A setting of the database or the role may make transactions read-only.
    session.execute("SET default_transaction_read_only = off")?;
    session.execute("CREATE EXTENSION IF NOT EXISTS amcheck")?;
    Ok(())
}

enum Item {
    Table { name: String, statement: String },
    Index { name: String, statement: String },
}

/// Runs amcheck over one database of the copy and adds to `result`.
pub fn run(
    conninfo: &str,
    database: &str,
    sessions: usize,
    timeout: Duration,
    abort: &AtomicBool,
    watcher: &dyn Watcher,
    result: &mut AmcheckResult,
) -> Result<()> {
    let mut first = connect(conninfo, database, timeout, true)?;
    let items = items(&mut first, database)?;
    let total = items.len() as u64;
    let queue = Mutex::new(VecDeque::from(items));
    let found = Mutex::new((std::mem::take(result), 0_u64));
    let work = |session: &mut Session| -> Result<()> {
        loop {
            if abort.load(Ordering::Relaxed) {
                return Err(aborted());
            }
            let next = queue.lock().ok().and_then(|mut queue| queue.pop_front());
            let Some(item) = next else { return Ok(()) };
            let one = check(session, &item)?;
            if let Ok(mut found) = found.lock() {
                found.1 += 1;
                watcher.advance(found.1, Some(total), "relations");
                add(&mut found.0, one);
            }
        }
    };
    let mut others = Vec::new();
    for _ in 1..sessions.clamp(1, 16) {
        others.push(connect(conninfo, database, timeout, true)?);
    }
    let outcome = std::thread::scope(|scope| {
        let handles: Vec<_> = others
            .iter_mut()
            .map(|session| scope.spawn(|| work(session)))
            .collect();
        let mut outcome = work(&mut first);
        for handle in handles {
            let other = handle
                .join()
                .unwrap_or_else(|_| Err(Error::new("thread-ended", "a thread ended badly")));
            outcome = outcome.and(other);
        }
        outcome
    });
    *result = found.into_inner().map(|(found, _)| found).unwrap_or_default();
    outcome
}

fn add(sum: &mut AmcheckResult, one: AmcheckResult) {
    sum.tables += one.tables;
    sum.indexes += one.indexes;
    sum.bad_tables += one.bad_tables;
    sum.bad_indexes += one.bad_indexes;
    sum.locked += one.locked;
    let room = |list: &Vec<String>| NAMED_MAX.saturating_sub(list.len());
    let (named, not_seen) = (room(&sum.named), room(&sum.not_seen));
    sum.named.extend(one.named.into_iter().take(named));
    sum.not_seen.extend(one.not_seen.into_iter().take(not_seen));
}

/// Everything to look at, the largest first. The extension may live in any schema.
fn items(session: &mut Session, database: &str) -> Result<Vec<Item>> {
    let row = session.one(
        "SELECT quote_ident(n.nspname), EXISTS (SELECT FROM pg_proc p WHERE p.pronamespace = n.oid AND \
         proname = 'verify_heapam') \
         FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace WHERE e.extname = 'amcheck'",
    )?;
    let (schema, heap) = (text(&row, 0).to_string(), text(&row, 1) == "t");
    let rows = session.rows(
        "SELECT c.oid, c.relkind, n.nspname || '.' || c.relname \
         FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
           LEFT JOIN pg_am a ON a.oid = c.relam LEFT JOIN pg_index i ON i.indexrelid = c.oid \
         WHERE c.relpersistence = 'p' AND (c.relkind IN ('r', 'm') AND a.amname = 'heap' \
            OR c.relkind = 'i' AND a.amname = 'btree' AND i.indisvalid AND i.indisready AND i.indislive) \
         ORDER BY c.relpages DESC",
    )?;
    Ok(rows
        .iter()
        .filter_map(|row| {
            let (oid, name) = (text(row, 0), format!("{database}.{}", text(row, 2)));
            match text(row, 1) {
                "i" => Some(Item::Index {
                    name,
                    statement: format!("SELECT {schema}.bt_index_check({oid}::oid::regclass, true)"),
                }),
                _ if heap => Some(Item::Table {
                    name,
                    statement: format!(
                        "SELECT blkno, coalesce(offnum::text, '-'), msg FROM \
                         {schema}.verify_heapam({oid}::oid::regclass) \
                         LIMIT {NAMED_MAX}"
                    ),
                }),
                _ => None,
            }
        })
        .collect())
}

fn check(session: &mut Session, item: &Item) -> Result<AmcheckResult> {
    let mut result = AmcheckResult::default();
    let (name, statement) = match item {
        Item::Table { name, statement } => {
            result.tables = 1;
            (name, statement)
        }
        Item::Index { name, statement } => {
            result.indexes = 1;
            (name, statement)
        }
    };
    match (session.rows(statement), item) {
        (Ok(rows), Item::Table { .. }) if !rows.is_empty() => {
            result.bad_tables = 1;
            result.named = rows
                .iter()
                .map(|row| {
                    format!(
                        "{name} block {} item {}: {}",
                        text(row, 0),
                        text(row, 1),
                        text(row, 2)
                    )
                })
                .collect();
        }
        (Ok(_), _) => {}
        (Err(error), _) if error.code() != "server-error" => return Err(error),
        (Err(error), item) => match sqlstate(&error) {
            Some(state) if state.starts_with("XX") || state.starts_with("58") => {
                if matches!(item, Item::Table { .. }) {
                    result.bad_tables = 1;
                } else {
                    result.bad_indexes = 1;
                }
                result
                    .named
                    .push(format!("{name}: {} ({state})", error.message()));
            }
            state => {
                result.locked += u64::from(state == Some("55P03"));
                result.not_seen.push(format!("{name}: {}", recordable(&error)));
            }
        },
    }
    Ok(result)
}
