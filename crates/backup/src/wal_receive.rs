//! A resident receiver of WAL: streams it from the server over the replication protocol and stores each segment as it
//! is complete, for servers whose own archiver cannot or shall not.
//!
//! Invariants: the slot keeps what is not stored yet, and is told only what is durable in as many copies as the policy
//! says, so that a receiver that was killed goes on where it was; a lost connection and a store that does not answer
//! are waited out, a conflict, a second writer and removed WAL are not; a timeline's history is stored before
//! its first segment. WAL behind the last complete segment is not stored: on a quiet server `archive_timeout`
//! (which acts with archive_mode alone) or a regular `pg_switch_wal()` bounds it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use cluster::replication::{ReplicationSession, WalData};
use cluster::{ServerFacts, Session};
use diagnostic::{Error, Result};
use jiff::Timestamp;
use postgres::{Lsn, SystemIdentifier, TimelineHistory, TimelineId, segment_name};
use repository::Writer;

use crate::wal_push::{Copy, Received, push_received};

/// Limit for connecting.
const CONNECT_LIMIT: Duration = Duration::from_secs(15);
/// How long one look at the stream waits: the longest that the wish to end goes unnoticed.
const WAIT: Duration = Duration::from_millis(500);
/// The longest pause before another attempt.
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// What waiting does not cure.
const FATAL: [&str; 20] = [
    "channel-binding-missing",
    "connection-other-server",
    "conninfo-syntax",
    "conninfo-unsupported",
    "password-file",
    "receiver-slot",
    "replication-hba",
    "replication-permission",
    "replication-slot",
    "replication-wal-level",
    "server-permission",
    "server-version",
    "tls-certificate",
    "tls-file",
    "tls-root-missing",
    "wal-conflict",
    "wal-removed",
    "wal-second-writer",
    "wal-segment-system",
    "wal-stream-gap",
];

/// What the caller decides.
pub struct ReceiveOptions<'a> {
    /// The physical replication slot; made when it is missing. Lower-case letters, digits, underscores.
    pub slot: String,
    /// Who writes, in the claim on a timeline.
    pub writer: Writer,
    /// In how many copies a segment must be durable before the server may remove it.
    pub acknowledge: usize,
    /// Set by somebody: come to an end.
    pub stop: &'a AtomicBool,
    pub clock: &'a (dyn Fn() -> Timestamp + Sync),
    /// Told what happens.
    pub tell: &'a dyn Fn(ReceiveEvent<'_>),
}

/// What happens to a receiver.
#[derive(Debug)]
pub enum ReceiveEvent<'a> {
    /// WAL is streamed from here on.
    Streaming { timeline: TimelineId, from: Lsn },
    /// A segment is durable in `copies` copies.
    Stored { segment: &'a str, copies: usize },
    /// A copy does not hold a segment that is acknowledged.
    Missing {
        segment: &'a str,
        copy: &'a str,
        error: &'a Error,
    },
    /// Tried again after a pause.
    Lost { error: &'a Error, pause: Duration },
}

/// Streams until `stop` is set. Errors: those of `wal push`, `wal-removed`, `receiver-slot`, and those of the
/// connection that waiting does not cure.
pub fn receive(conninfo: &str, copies: &[Copy<'_>], options: &ReceiveOptions<'_>) -> Result<()> {
    let mut pause = Duration::from_secs(1);
    let mut system = None;
    while !options.stop.load(Ordering::Relaxed) {
        let error = match attempt(conninfo, copies, options, &mut system, &mut pause) {
            Ok(()) => return Ok(()),
            Err(error) if FATAL.contains(&error.code()) => return Err(error),
            Err(error) => error,
        };
        (options.tell)(ReceiveEvent::Lost { error: &error, pause });
        let mut waited = Duration::ZERO;
        while waited < pause && !options.stop.load(Ordering::Relaxed) {
            std::thread::sleep(WAIT.min(pause));
            waited += WAIT;
        }
        pause = (pause * 2).min(PAUSE_MAX);
    }
    Ok(())
}

/// Where to begin.
struct Begin {
    lsn: Lsn,
    timeline: TimelineId,
}

/// One connection: until it is lost, or until the end is wished for.
fn attempt(
    conninfo: &str,
    copies: &[Copy<'_>],
    options: &ReceiveOptions<'_>,
    system: &mut Option<SystemIdentifier>,
    pause: &mut Duration,
) -> Result<()> {
    let mut sql = Session::connect(conninfo)?;
    let facts = cluster::gather(&mut sql)?;
    let size = facts.wal_segment_size;
    if *system.get_or_insert(facts.system_identifier) != facts.system_identifier {
        return Err(Error::new(
            "wal-segment-system",
            "another cluster answers on the connection than before",
        ));
    }
    let name = format!(
        "pgproof receive {}-{}",
        std::process::id(),
        (options.clock)().as_microsecond()
    );
    let mut session = ReplicationSession::connect(conninfo, &name, CONNECT_LIMIT)?;
    cluster::control_facts::same_server(&mut sql, &name, session.process_id())?;
    let begin = begin(&mut sql, &mut session, &facts, options)?;
    drop(sql);
    let mut timeline = begin.timeline;
    let mut number = begin.lsn.segment(size);
    loop {
        if timeline.0 > 1 {
            let content = session.timeline_history(timeline)?;
            let name = format!("{}.history", timeline.hex8());
            store(copies, options, &facts, name, content)?;
        }
        let start = Lsn(number * u64::from(size));
        let mut stream = session.start_wal(Some(&options.slot), start, timeline)?;
        (options.tell)(ReceiveEvent::Streaming {
            timeline,
            from: start,
        });
        let mut segment: Vec<u8> = Vec::new();
        loop {
            if options.stop.load(Ordering::Relaxed) {
                return Ok(());
            }
            let bytes = match stream.receive(WAIT)? {
                WalData::Nothing => continue,
                WalData::EndOfTimeline => break,
                WalData::Bytes(_, bytes) => bytes,
            };
            let mut rest = bytes.as_slice();
            while !rest.is_empty() {
                let room = (size as usize).saturating_sub(segment.len());
                let (piece, after) = rest.split_at(room.min(rest.len()));
                segment.extend_from_slice(piece);
                rest = after;
                if segment.len() == size as usize {
                    let name = segment_name(timeline, number, size);
                    store(copies, options, &facts, name, std::mem::take(&mut segment))?;
                    number += 1;
                    stream.durable_up_to(Lsn(number * u64::from(size)));
                    stream.report()?;
                    *pause = Duration::from_secs(1);
                }
            }
        }
        // The timeline was left: its unfinished segment goes on, from its beginning, in the next one.
        let (after, next) = stream.next_timeline()?;
        let Some((next, switch)) = next else {
            return Err(Error::new(
                "replication-lost",
                "the server ended the stream of WAL",
            ));
        };
        session = after;
        timeline = next;
        number = switch.segment(size);
    }
}

/// The slot's own position: everything before is durable. A missing slot is made, from now on.
fn begin(
    sql: &mut Session,
    session: &mut ReplicationSession,
    facts: &ServerFacts,
    options: &ReceiveOptions<'_>,
) -> Result<Begin> {
    let look = format!(
        "SELECT slot_type, restart_lsn FROM pg_replication_slots WHERE slot_name = {}",
        Session::literal(&options.slot)
    );
    let mut rows = sql.rows(&look)?;
    if rows.is_empty() {
        session.create_slot(&options.slot)?;
        rows = sql.rows(&look)?;
    }
    let row = rows.into_iter().next().unwrap_or_default();
    let column = |index: usize| row.get(index).cloned().flatten();
    let unusable = |detail: &str| {
        Error::new(
            "receiver-slot",
            format!("replication slot \"{}\" cannot be used", options.slot),
        )
        .detail(detail.to_owned())
        .hint("Name another one with --slot, or drop it: SELECT pg_drop_replication_slot('...').")
    };
    if column(0).as_deref() != Some("physical") {
        return Err(unusable("It is not a physical slot."));
    }
    let lsn = column(1)
        .and_then(|text| text.parse::<Lsn>().ok())
        .ok_or_else(|| unusable("It keeps no WAL, or what it kept was removed (max_slot_wal_keep_size)."))?;
    let history = match facts.timeline.0 {
        0 | 1 => TimelineHistory::root(facts.timeline),
        _ => TimelineHistory::parse(facts.timeline, &session.timeline_history(facts.timeline)?)?,
    };
    Ok(Begin {
        lsn,
        timeline: history.timeline_at(lsn),
    })
}

/// Stores a file in the copies; an error unless as many hold it as the policy says.
fn store(
    copies: &[Copy<'_>],
    options: &ReceiveOptions<'_>,
    facts: &ServerFacts,
    name: String,
    bytes: Vec<u8>,
) -> Result<()> {
    let mut stored = 0;
    let mut failed = Vec::new();
    for copy in copies {
        let received = Received {
            system: facts.system_identifier,
            name: name.clone(),
            bytes: bytes.clone(),
            wal_segment_size: facts.wal_segment_size,
        };
        match push_received(copy.repository, received, &options.writer, (options.clock)()) {
            Ok(_) => stored += 1,
            Err(error) if FATAL.contains(&error.code()) => return Err(error),
            Err(error) => failed.push((copy.name, error)),
        }
    }
    if stored < options.acknowledge.max(1) {
        let error = failed.into_iter().next().map(|(_, error)| error);
        return Err(error.unwrap_or_else(|| {
            Error::usage(
                "wal-not-acknowledged",
                "there are fewer copies than must acknowledge",
            )
        }));
    }
    for (copy, error) in &failed {
        (options.tell)(ReceiveEvent::Missing {
            segment: &name,
            copy,
            error,
        });
    }
    (options.tell)(ReceiveEvent::Stored {
        segment: &name,
        copies: stored,
    });
    Ok(())
}
