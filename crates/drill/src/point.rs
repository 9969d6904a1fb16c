//! The point that a drill makes in production: a random nonce, a named restore point, snapshots, a marker, a
//! second nonce and a sentinel; then the WAL is switched, archived, and asked which LSN a snapshot stands
//! for.
//!
//! Invariants: production keeps nothing but pgproof's own table, which is bounded; every transaction that is
//! held open has an end (each statement is limited, and the sessions close with the values here); the LSN
//! comes from the WAL that the repository holds, not from the server's memory; what was rewritten while it
//! was read leads to a new attempt.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use cluster::{ConnectOptions, ServerFacts, Session};
use diagnostic::{Error, Result};
use jiff::Timestamp;
use postgres::{Lsn, SegmentIndex, SegmentIndexer, TransactionEndKind, WalFile, segment_name, tail_bytes};
use repository::ClusterRepository;
use serde::{Deserialize, Serialize};

use crate::facts::{BracketFacts, Excluded, ProofPoint, Side};
use crate::options::Watcher;
use crate::rows::{self, DatabaseDigest, Look, RowKey, aborted};
use crate::sequences::{self, Positions};
use crate::snapshot::{Ended, SnapshotView, exact_lsn, unresolved};

/// How many rows pgproof's own table keeps.
const ROWS_KEPT: u32 = 100;
/// Snapshots for all databases together, so that production's connections last.
const SNAPSHOTS_MAX: usize = 24;
/// Between two snapshots of one database.
const BETWEEN_SNAPSHOTS: Duration = Duration::from_millis(15);
/// Between two looks into the repository.
const POLL: Duration = Duration::from_millis(200);

/// What making a point needs.
pub struct PointOptions<'a> {
    /// `pitr_drill_YYYYMMDDTHHMMSSZ`.
    pub drill_id: &'a str,
    /// The drill's start, for the marker's name.
    pub now: Timestamp,
    /// How to reach production.
    pub conninfo: &'a str,
    /// What production says of itself.
    pub server: &'a ServerFacts,
    /// Where its WAL is archived.
    pub repository: &'a ClusterRepository,
    /// Snapshots for each database.
    pub snapshots: u32,
    /// Attempts at a point.
    pub attempts: u32,
    /// Until the WAL must be in the repository.
    pub archive_timeout: Duration,
    /// For each statement.
    pub statement_timeout: Duration,
    /// Digest the rows as well.
    pub row_proof: bool,
    /// Sessions at once for the digests.
    pub sessions: usize,
    /// Stops the waits.
    pub abort: &'a AtomicBool,
    /// Is told what happens.
    pub watcher: &'a dyn Watcher,
}

/// A point and what production looked like there.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Point {
    /// For the evidence.
    pub facts: BracketFacts,
    /// One for each database with rows of the user's, in the order of their LSNs.
    pub databases: Vec<DatabasePoint>,
    /// Databases that could not be looked at.
    pub unreached: Vec<Excluded>,
    /// The end of the WAL that was switched to the archive.
    pub switched: Lsn,
}

/// One database at its LSN.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DatabasePoint {
    /// Its name.
    pub database: String,
    /// Recovery to this LSN, exclusive, shows exactly what was digested.
    pub lsn: Lsn,
    /// Production's digests.
    pub digest: DatabaseDigest,
    /// Sequences before the point.
    pub sequences_before: Positions,
    /// Sequences after it.
    pub sequences_after: Positions,
}

/// A point with the key that its rows were digested with, for further copies of the same process.
#[derive(Clone)]
pub struct MadePoint {
    /// The point.
    pub point: Point,
    /// The key.
    pub key: Arc<RowKey>,
}

/// A snapshot and the session that keeps it alive.
struct Held {
    _session: Session,
    id: String,
    view: SnapshotView,
}

/// Makes a point, and looks at production as it was there. Errors: `point-not-made`, `not-archived`,
/// `drill-aborted`, and those of the session and the repository.
pub fn make(options: &PointOptions<'_>, key: &RowKey) -> Result<Point> {
    let attempts = options.attempts.max(1);
    let mut attempt = 1;
    loop {
        let (point, again) = attempt_point(options, key, attempt)?;
        match again {
            None => return Ok(point),
            Some(_) if attempt >= attempts && !point.databases.is_empty() => return Ok(point),
            Some(why) if attempt >= attempts => {
                return Err(
                    Error::new("point-not-made", "no snapshot of production stands for one LSN")
                        .detail(why)
                        .hint("Run the drill again at a quieter time, or with more snapshots."),
                );
            }
            Some(why) => options.watcher.note(&format!("the point is made anew: {why}")),
        }
        attempt += 1;
    }
}

/// One attempt; with a reason if another one is worth while.
fn attempt_point(options: &PointOptions<'_>, key: &RowKey, attempt: u32) -> Result<(Point, Option<String>)> {
    let mut control = connect_writing(options)?;
    let database = single(&mut control, "SELECT current_database()")?;
    prepare(&mut control)?;
    let (databases, unreached) = databases(options, &mut control)?;
    let mut before = BTreeMap::new();
    if options.row_proof {
        for name in &databases {
            let mut session = rows::connect(options.conninfo, name, options.statement_timeout)?;
            before.insert(name.clone(), sequences::read(&mut session)?);
        }
    }

    // The bracket itself.
    let id = marker_id(options.now, attempt);
    let (nonce_before, nonce_after) = (nonce()?, nonce()?);
    let restore_point = format!("pgproof_{}_{attempt}", options.drill_id);
    let first_lsn = insert_lsn(&mut control)?;
    insert(&mut control, &format!("{id}_before"), &nonce_before)?;
    let after_nonce_before = insert_lsn(&mut control)?;
    let sql = format!(
        "SELECT pg_create_restore_point({})",
        Session::literal(&restore_point)
    );
    let restore_point_lsn = lsn(&single(&mut control, &sql)?)?;
    let held = if options.row_proof {
        take_snapshots(options, &databases)?
    } else {
        BTreeMap::new()
    };
    let before_nonce_after = insert_lsn(&mut control)?;
    insert(&mut control, &id, "")?;
    insert(&mut control, &format!("{id}_after"), &nonce_after)?;
    insert(&mut control, &format!("{id}_sentinel"), &nonce()?)?;
    let sentinel = insert_lsn(&mut control)?;
    let switched = cluster::switch_wal(&mut control)?;

    let (first, last) = segments(options, first_lsn, sentinel.max(switched));
    let archived_after_ms = wait_archived(options, &mut control, first, last)?;
    let ended = ended_transactions(options, first, last)?;
    let mut facts = BracketFacts {
        database,
        restore_point,
        nonce_before,
        nonce_after,
        marker: id,
        after_nonce_before,
        restore_point_lsn,
        before_nonce_after,
        sentinel,
        last_segment: segment_name(options.server.timeline, last, options.server.wal_segment_size),
        archived_after_ms,
        attempts: attempt,
        proofs: Vec::new(),
    };
    if !options.row_proof {
        return Ok((
            Point {
                facts,
                databases: Vec::new(),
                unreached,
                switched,
            },
            None,
        ));
    }

    let mut again = None;
    let exact = exact_snapshots(&mut control, held, &ended, &mut facts)?;
    for name in &databases {
        if !exact.contains_key(name) {
            again = Some(format!(
                "no snapshot of database \"{name}\" is a prefix of the commit order"
            ));
            let points = Point {
                facts,
                databases: Vec::new(),
                unreached,
                switched,
            };
            return Ok((points, again));
        }
    }
    let mut points = Vec::new();
    for (name, (at, held)) in exact {
        options
            .watcher
            .note(&format!("digesting database \"{name}\" of production as of {at}"));
        let look = Look {
            conninfo: options.conninfo,
            database: &name,
            snapshot: Some(&held.id),
            sessions: options.sessions,
            statement_timeout: options.statement_timeout,
            abort: options.abort,
            watcher: options.watcher,
        };
        let digest = rows::digest(&look, key, None)?;
        if let Some((table, why)) = changed_meanwhile(&digest) {
            again = Some(format!("{name}.{table} was {why}"));
        }
        let mut session = rows::connect(options.conninfo, &name, options.statement_timeout)?;
        let sequences_after = sequences::read(&mut session)?;
        drop(held);
        let sequences_before = before.remove(&name).unwrap_or_default();
        points.push(DatabasePoint {
            database: name,
            lsn: at,
            digest,
            sequences_before,
            sequences_after,
        });
    }
    points.sort_by(|a, b| (a.lsn, &a.database).cmp(&(b.lsn, &b.database)));
    Ok((
        Point {
            facts,
            databases: points,
            unreached,
            switched,
        },
        again,
    ))
}

/// A session that writes pgproof's own rows, durably whatever the role's settings are.
fn connect_writing(options: &PointOptions<'_>) -> Result<Session> {
    if options.server.in_recovery {
        return Err(
            Error::new("point-not-made", "a point cannot be made on a standby")
                .hint("Give the primary's connection, or drill a point of the past with `--to`."),
        );
    }
    let connect = ConnectOptions {
        statement_timeout: options.statement_timeout,
        ..ConnectOptions::default()
    };
    let mut session = Session::connect_with(options.conninfo, &connect)?;
    session.execute("SET search_path = pg_catalog; SET default_transaction_read_only = off")?;
    // "local" would answer before the WAL is flushed only if it were "off"; a synchronous standby is not
    // waited for.
    session.execute("SET synchronous_commit = local")?;
    Ok(session)
}

/// Makes pgproof's schema and table where they are missing, and keeps the table small.
pub(crate) fn prepare(session: &mut Session) -> Result<()> {
    let there = single(session, "SELECT to_regclass('pgproof.drill_marker') IS NOT NULL")?;
    if there != "t" {
        session.execute("CREATE SCHEMA IF NOT EXISTS pgproof")?;
        session.execute(
            "CREATE TABLE IF NOT EXISTS pgproof.drill_marker \
               (id text PRIMARY KEY, nonce text NOT NULL, created_at timestamptz NOT NULL DEFAULT \
               clock_timestamp()); \
             COMMENT ON TABLE pgproof.drill_marker IS 'nonces and markers of drills; pgproof keeps it small'",
        )?;
    }
    session.execute(&format!(
        "DELETE FROM pgproof.drill_marker WHERE id IN \
           (SELECT id FROM pgproof.drill_marker ORDER BY created_at DESC, id OFFSET {ROWS_KEPT})"
    ))?;
    Ok(())
}

pub(crate) fn insert(session: &mut Session, id: &str, nonce: &str) -> Result<()> {
    let (id, nonce) = (Session::literal(id), Session::literal(nonce));
    session.execute(&format!(
        "INSERT INTO pgproof.drill_marker (id, nonce) VALUES ({id}, {nonce})"
    ))?;
    Ok(())
}

/// `drill_YYYYMMDDHHMMSS`, with the attempt behind it when it is not the first.
fn marker_id(now: Timestamp, attempt: u32) -> String {
    let stamp = now.strftime("%Y%m%d%H%M%S");
    if attempt == 1 {
        format!("drill_{stamp}")
    } else {
        format!("drill_{stamp}_{attempt}")
    }
}

pub(crate) fn nonce() -> Result<String> {
    let mut bytes = [0_u8; 16];
    getrandom::fill(&mut bytes).map_err(|error| {
        Error::new("no-randomness", "the system gives no random bytes").detail(error.to_string())
    })?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn single(session: &mut Session, sql: &str) -> Result<String> {
    session.one(sql)?.into_iter().next().flatten().ok_or_else(|| {
        Error::new("server-answer", "the server gave no value where one was expected").detail(sql.to_string())
    })
}

fn lsn(text: &str) -> Result<Lsn> {
    text.parse()
}

fn insert_lsn(session: &mut Session) -> Result<Lsn> {
    lsn(&single(session, "SELECT pg_current_wal_insert_lsn()")?)
}

/// The databases with rows of the user's, and those that could not be looked at.
fn databases(options: &PointOptions<'_>, control: &mut Session) -> Result<(Vec<String>, Vec<Excluded>)> {
    let (mut found, mut unreached) = (Vec::new(), Vec::new());
    for row in control.rows("SELECT datname FROM pg_database WHERE datallowconn ORDER BY datname")? {
        let Some(name) = row.into_iter().next().flatten() else {
            continue;
        };
        let looked = rows::connect(options.conninfo, &name, options.statement_timeout)
            .and_then(|mut session| rows::has_rows_of_users(&mut session));
        match looked {
            Ok(true) => found.push(name),
            Ok(false) => {}
            Err(error) if error.code() == "server-unreachable" => return Err(error),
            Err(error) => {
                let why = format!("could not look: {}", crate::server_error::recordable(&error));
                unreached.push(Excluded { what: name, why });
            }
        }
    }
    Ok((found, unreached))
}

/// Exports snapshots in each database, in rounds, while production goes on.
fn take_snapshots(options: &PointOptions<'_>, databases: &[String]) -> Result<BTreeMap<String, Vec<Held>>> {
    let each = (options.snapshots.max(1) as usize).min((SNAPSHOTS_MAX / databases.len().max(1)).max(1));
    // Connecting is slow and snapshots must lie close together: all sessions first.
    let mut sessions = Vec::new();
    for _ in 0..each {
        for name in databases {
            sessions.push((
                name,
                rows::connect(options.conninfo, name, options.statement_timeout)?,
            ));
        }
    }
    let mut held: BTreeMap<String, Vec<Held>> = BTreeMap::new();
    for (number, (name, mut session)) in sessions.into_iter().enumerate() {
        if number > 0 && number % databases.len().max(1) == 0 {
            std::thread::sleep(BETWEEN_SNAPSHOTS);
        }
        session.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")?;
        let row = session.one("SELECT pg_export_snapshot(), pg_current_snapshot()")?;
        let mut columns = row.into_iter();
        let (id, view) = (columns.next().flatten(), columns.next().flatten());
        let (Some(id), Some(view)) = (id, view.as_deref().and_then(SnapshotView::parse)) else {
            return Err(Error::new(
                "server-answer",
                "the server's answer to pg_export_snapshot() is not a snapshot",
            ));
        };
        held.entry(name.clone()).or_default().push(Held {
            _session: session,
            id,
            view,
        });
    }
    Ok(held)
}

/// First and last segment that hold WAL from `from` to before `end`.
fn segments(options: &PointOptions<'_>, from: Lsn, end: Lsn) -> (u64, u64) {
    let size = options.server.wal_segment_size;
    let first = from.segment(size);
    (first, Lsn(end.0.saturating_sub(1)).segment(size).max(first))
}

/// Waits until the repository holds every segment; the milliseconds it took.
fn wait_archived(options: &PointOptions<'_>, control: &mut Session, first: u64, last: u64) -> Result<u64> {
    let server = options.server;
    let start = Instant::now();
    let mut next = first;
    loop {
        while next <= last {
            let size = server.wal_segment_size;
            let found =
                options
                    .repository
                    .get_segment(server.system_identifier, server.timeline, next, size)?;
            if found.is_none() {
                break;
            }
            next += 1;
        }
        if next > last {
            return Ok(start.elapsed().as_millis() as u64);
        }
        if options.abort.load(Ordering::Relaxed) {
            return Err(aborted());
        }
        options
            .watcher
            .advance(next - first, Some(last - first + 1), "segments");
        if start.elapsed() >= options.archive_timeout {
            return Err(not_archived(options, control, next));
        }
        std::thread::sleep(POLL);
    }
}

fn not_archived(options: &PointOptions<'_>, control: &mut Session, number: u64) -> Error {
    let server = options.server;
    let name = segment_name(server.timeline, number, server.wal_segment_size);
    let seconds = options.archive_timeout.as_secs();
    let why = match cluster::archiver_status(control) {
        _ if server.archive_mode == "off" => "archive_mode is off.".to_string(),
        Ok(status) => match (status.last_failed, status.last_archived) {
            (Some(failed), _) if failed.as_str() >= name.as_str() => {
                format!(
                    "The server's archiver fails at {failed} ({} failures).",
                    status.failed_count
                )
            }
            (_, Some(archived)) => format!("The server's archiver last archived {archived}."),
            _ => "The server's archiver has not archived anything yet.".to_string(),
        },
        Err(error) => format!("The server's archiver could not be asked ({}).", error.code()),
    };
    Error::new(
        "not-archived",
        format!("WAL segment {name} was not archived within {seconds} s"),
    )
    .detail(why)
    .hint("Run `pgproof wal status`, and look at the server's log for what archive_command says.")
}

/// The ends of all transactions in these segments, read from the archived bytes themselves, seams included.
fn ended_transactions(options: &PointOptions<'_>, first: u64, last: u64) -> Result<Vec<Ended>> {
    let server = options.server;
    let mut ended = Vec::new();
    let mut tail: Option<Vec<u8>> = None;
    for number in first..=last {
        let name = WalFile::Segment {
            timeline: server.timeline,
            number,
        };
        let gone = || {
            let name = segment_name(server.timeline, number, server.wal_segment_size);
            Error::new("object-missing", format!("archived WAL segment {name} is gone"))
        };
        let size = server.wal_segment_size;
        let object = options
            .repository
            .get_segment(server.system_identifier, server.timeline, number, size)?
            .ok_or_else(gone)?;
        let mut bytes = Vec::with_capacity(size as usize);
        options.repository.read_segment(&object, &mut bytes)?;
        let index: SegmentIndex = SegmentIndexer::index(&bytes, &name, tail.as_deref())?;
        tail = tail_bytes(&bytes, &index).map(<[u8]>::to_vec);
        ended.extend(index.transactions.iter().map(|end| Ended {
            lsn: end.start,
            xid: end.xid,
            committed: matches!(
                end.kind,
                TransactionEndKind::Commit | TransactionEndKind::CommitPrepared
            ),
        }));
    }
    ended.sort_by_key(|end| end.lsn);
    Ok(ended)
}

/// Chooses for each database a snapshot that stands for an LSN, with as few different LSNs as possible.
fn exact_snapshots(
    control: &mut Session,
    held: BTreeMap<String, Vec<Held>>,
    ended: &[Ended],
    facts: &mut BracketFacts,
) -> Result<BTreeMap<String, (Lsn, Held)>> {
    let mut exact: BTreeMap<String, Vec<(Lsn, Held)>> = BTreeMap::new();
    let mut taken: BTreeMap<String, u32> = BTreeMap::new();
    for (name, snapshots) in held {
        taken.insert(name.clone(), snapshots.len() as u32);
        for snapshot in snapshots {
            // A stop before the named restore point would come before the requested target.
            if let Some(at) = exact_lsn(&snapshot.view, ended)
                && at > facts.restore_point_lsn
                && all_resolved(control, &snapshot.view, ended)?
            {
                exact.entry(name.clone()).or_default().push((at, snapshot));
            }
        }
    }
    let mut shared: BTreeMap<Lsn, usize> = BTreeMap::new();
    for snapshots in exact.values() {
        let distinct: std::collections::BTreeSet<Lsn> = snapshots.iter().map(|(at, _)| *at).collect();
        for at in distinct {
            *shared.entry(at).or_default() += 1;
        }
    }
    let mut chosen = BTreeMap::new();
    for (name, snapshots) in exact {
        let count = snapshots.len() as u32;
        let best = snapshots
            .into_iter()
            .max_by_key(|(at, _)| (shared.get(at).copied().unwrap_or(0), *at));
        if let Some((at, snapshot)) = best {
            facts.proofs.push(ProofPoint {
                database: name.clone(),
                lsn: at,
                snapshots: taken.get(&name).copied().unwrap_or(0),
                exact_snapshots: count,
                commits_considered: ended.iter().filter(|end| end.committed).count() as u64,
            });
            chosen.insert(name, (at, snapshot));
        }
    }
    Ok(chosen)
}

/// A transaction that ran in the snapshot and has no end in the WAL at hand must not have committed: its
/// commit record might lie before that WAL, and recovery would show what the snapshot does not see.
fn all_resolved(control: &mut Session, view: &SnapshotView, ended: &[Ended]) -> Result<bool> {
    for xid in unresolved(view, ended) {
        let row = control.one(&format!("SELECT pg_xact_status('{xid}'::xid8)"))?;
        match row.first().and_then(Option::as_deref) {
            Some("in progress" | "aborted") => {}
            _ => return Ok(false),
        }
    }
    Ok(true)
}

fn changed_meanwhile(digest: &DatabaseDigest) -> Option<(&String, &String)> {
    digest.tables.iter().find_map(|(name, side)| match side {
        Side::CouldNotLook(why) if why.ends_with("meanwhile") => Some((name, why)),
        _ => None,
    })
}

impl std::fmt::Debug for Held {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Held")
            .field("id", &self.id)
            .field("view", &self.view)
            .finish_non_exhaustive()
    }
}
