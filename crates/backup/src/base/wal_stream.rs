//! Streams a backup's WAL beside it, where no archiver brings it.
//!
//! Invariants: a temporary slot keeps the WAL from before the backup begins until it is durable here; only complete
//! segments are stored, by the same rules as `wal push` (the claim on the timeline included); what fails here fails
//! the backup.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use cluster::ReplicationSession;
use cluster::replication::WalData;
use diagnostic::{Error, Result};
use jiff::Timestamp;
use postgres::{Lsn, SystemIdentifier, TimelineId, segment_name};
use repository::{ClusterRepository, Writer};

use super::plan_protocol::CONNECT_LIMIT;
use crate::wal_push::{Received, push_received};

/// How long one look at the stream waits: the longest that an abort goes unnoticed.
const WAIT: Duration = Duration::from_millis(500);

/// A replication connection with its slot, before the backup begins.
pub(super) struct Prepared {
    session: ReplicationSession,
    slot: String,
}

/// What the stream and the backup tell each other.
pub(super) struct Control {
    /// The last segment that is needed; `u64::MAX` while it is not known.
    last: AtomicU64,
    abort: AtomicBool,
    failure: Mutex<Option<Error>>,
}

impl Control {
    pub(super) fn new() -> Control {
        Control {
            last: AtomicU64::new(u64::MAX),
            abort: AtomicBool::new(false),
            failure: Mutex::new(None),
        }
    }

    pub(super) fn until(&self, last: u64) {
        self.last.store(last, Ordering::Relaxed);
    }

    pub(super) fn abort(&self) {
        self.abort.store(true, Ordering::Relaxed);
    }

    /// The stream's error, if it failed.
    pub(super) fn check(&self) -> Result<()> {
        match self
            .failure
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
        {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }
}

/// Who writes streamed WAL, in a claim on a timeline: this host, whichever connection it comes over.
pub fn streaming_writer(host_id: &str) -> Writer {
    Writer {
        host_id: host_id.to_owned(),
        data_directory: "(streamed over the replication protocol)".into(),
    }
}

/// What is streamed, from where on.
pub(super) struct Streamed<'a> {
    pub(super) repository: &'a ClusterRepository,
    pub(super) system: SystemIdentifier,
    pub(super) timeline: TimelineId,
    pub(super) wal_segment_size: u32,
    pub(super) start: Lsn,
    pub(super) host_id: &'a str,
    pub(super) clock: &'a (dyn Fn() -> Timestamp + Sync),
}

/// Connects and makes the slot. Errors: those of a replication connection, `replication-slot`.
pub(super) fn prepare(conninfo: &str, now: Timestamp) -> Result<Prepared> {
    let slot = format!(
        "pgproof_{}_{}",
        std::process::id(),
        now.as_microsecond().unsigned_abs()
    );
    let mut session = ReplicationSession::connect(conninfo, "pgproof wal", CONNECT_LIMIT)?;
    session.create_temporary_slot(&slot).map_err(|error| {
        let hint = "A backup that streams its WAL needs a free replication slot for as long as it runs: raise \
                    max_replication_slots and restart the server.";
        match error.hint_text() {
            None => error.hint(hint),
            Some(_) => error,
        }
    })?;
    Ok(Prepared { session, slot })
}

/// Streams until the last segment is stored, or until it is told to end. What goes wrong is left in `control`.
pub(super) fn run(prepared: Prepared, streamed: &Streamed<'_>, control: &Control) {
    if let Err(error) = stream(prepared, streamed, control) {
        let error = error.context("the backup's WAL could not be streamed");
        *control.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
    }
}

fn stream(mut prepared: Prepared, streamed: &Streamed<'_>, control: &Control) -> Result<()> {
    let size = u64::from(streamed.wal_segment_size);
    let writer = streaming_writer(streamed.host_id);
    let push = |name: String, bytes: Vec<u8>| {
        let received = Received {
            system: streamed.system,
            name,
            bytes,
            wal_segment_size: streamed.wal_segment_size,
        };
        push_received(streamed.repository, received, &writer, (streamed.clock)()).map(drop)
    };
    if streamed.timeline.0 > 1 {
        let history = prepared.session.timeline_history(streamed.timeline)?;
        push(format!("{}.history", streamed.timeline.hex8()), history)?;
    }
    let mut number = streamed.start.segment(streamed.wal_segment_size);
    let begin = Lsn(number * size);
    let mut wal = prepared
        .session
        .start_wal(Some(&prepared.slot), begin, streamed.timeline)?;
    let mut segment: Vec<u8> = Vec::new();
    while number <= control.last.load(Ordering::Relaxed) {
        if control.abort.load(Ordering::Relaxed) {
            return Ok(());
        }
        let bytes = match wal.receive(WAIT)? {
            WalData::Bytes(_, bytes) => bytes,
            WalData::Nothing => continue,
            WalData::EndOfTimeline => {
                return Err(
                    Error::new("backup-aborted", "the server left its timeline during the backup")
                        .hint("Run the backup again."),
                );
            }
        };
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            let room = (size as usize).saturating_sub(segment.len());
            let (piece, after) = rest.split_at(room.min(rest.len()));
            segment.extend_from_slice(piece);
            rest = after;
            if segment.len() as u64 == size {
                let name = segment_name(streamed.timeline, number, streamed.wal_segment_size);
                push(name, std::mem::take(&mut segment))?;
                number += 1;
                wal.durable_up_to(Lsn(number * size));
            }
        }
    }
    Ok(())
}
