//! `START_REPLICATION`: WAL as the server writes it.
//!
//! Invariants: WAL comes without gaps, or not at all; what is reported as flushed is what the caller says is durable,
//! never what has merely arrived; WAL that the server no longer has is `wal-removed`. Source: `walsender.c`
//! (`XLogSendPhysical`, `ProcessStandbyReplyMessage`).

use std::time::{Duration, Instant};

use diagnostic::{Error, Result};
use postgres::{Lsn, TimelineId};

use super::{ReplicationSession, lost, unexpected};
use crate::wire::{Failure, ServerError};

/// How often the server hears from us unasked: well below any sensible `wal_sender_timeout`.
const STATUS_EVERY: Duration = Duration::from_secs(5);

/// A server that was asked for an answer with each status, and gave none for so long, is gone.
const SILENCE_LIMIT: Duration = Duration::from_secs(60);

/// A stream of WAL.
pub struct WalStream {
    session: ReplicationSession,
    /// Where the next byte belongs.
    position: Lsn,
    durable: Lsn,
    told: Instant,
    heard: Instant,
    /// When the caller was last answered; the time that it takes to store is not the server's silence.
    answered: Instant,
}

/// The timeline that follows, and where it begins.
pub type NextTimeline = Option<(TimelineId, Lsn)>;

/// What came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WalData {
    /// WAL that begins at this position.
    Bytes(Lsn, Vec<u8>),
    /// Nothing within the time that was given.
    Nothing,
    /// The server has no more of this timeline: it ended.
    EndOfTimeline,
}

impl ReplicationSession {
    /// Streams WAL from `start` on. Errors: `wal-removed`, `replication-refused`.
    pub fn start_wal(mut self, slot: Option<&str>, start: Lsn, timeline: TimelineId) -> Result<WalStream> {
        let slot = slot.map(|slot| format!("SLOT \"{slot}\" ")).unwrap_or_default();
        let command = format!("START_REPLICATION {slot}PHYSICAL {start} TIMELINE {}", timeline.0);
        self.wire
            .send_query(&command)
            .map_err(|failure| lost(failure, "cannot stream WAL").into_error())?;
        let frame = self.wire.expect().map_err(failed)?;
        if frame.tag != b'W' {
            return Err(unexpected("START_REPLICATION"));
        }
        Ok(WalStream {
            session: self,
            position: start,
            durable: start,
            told: Instant::now(),
            heard: Instant::now(),
            answered: Instant::now(),
        })
    }
}

fn failed(failure: Failure) -> Error {
    let removed = matches!(&failure, Failure::Server(error) if error.sqlstate == "58P01");
    let error = lost(failure, "the server cannot stream its WAL");
    match removed {
        true => error
            .with_code("wal-removed")
            .hint("The server has removed WAL that was still needed. Run the backup again."),
        false => error.into_error(),
    }
}

impl WalStream {
    /// Everything before is durable: the server may remove it.
    pub fn durable_up_to(&mut self, lsn: Lsn) {
        self.durable = self.durable.max(lsn);
    }

    /// What comes next, within about `wait`. Keeps the server informed.
    pub fn receive(&mut self, wait: Duration) -> Result<WalData> {
        self.heard += self.answered.elapsed();
        let data = self.wait_for_data(wait);
        self.answered = Instant::now();
        data
    }

    fn wait_for_data(&mut self, wait: Duration) -> Result<WalData> {
        if self.told.elapsed() >= STATUS_EVERY {
            self.report()?;
        }
        self.session.limit_reads(Some(wait))?;
        loop {
            let frame = match self.session.wire.receive() {
                Ok(frame) => frame,
                Err(failure) if failure.is_timeout() && self.heard.elapsed() < SILENCE_LIMIT => {
                    return Ok(WalData::Nothing);
                }
                Err(failure) => return Err(failed(failure)),
            };
            self.heard = Instant::now();
            match frame.tag {
                b'd' => match frame.body.split_first() {
                    Some((b'w', rest)) => {
                        let (start, bytes) = rest
                            .split_first_chunk::<8>()
                            .and_then(|(start, _)| Some((u64::from_be_bytes(*start), rest.get(24..)?)))
                            .ok_or_else(|| unexpected("START_REPLICATION"))?;
                        if Lsn(start) != self.position {
                            return Err(
                                Error::new("wal-stream-gap", "the server's stream of WAL has a gap").detail(
                                    format!("{} was to come next, and {} came.", self.position, Lsn(start)),
                                ),
                            );
                        }
                        self.position = Lsn(start.saturating_add(bytes.len() as u64));
                        return Ok(WalData::Bytes(Lsn(start), bytes.to_vec()));
                    }
                    Some((b'k', rest)) => {
                        if rest.get(16) == Some(&1) {
                            self.report()?;
                        }
                    }
                    _ => return Err(unexpected("START_REPLICATION")),
                },
                b'c' => return Ok(WalData::EndOfTimeline),
                b'E' => {
                    return Err(failed(Failure::Server(Box::new(ServerError::parse(&frame.body)))));
                }
                _ => {}
            }
        }
    }

    /// After [`WalData::EndOfTimeline`]: the connection, free again, and the timeline that comes next with where it
    /// begins; `None` when the server has none.
    pub fn next_timeline(mut self) -> Result<(ReplicationSession, NextTimeline)> {
        let gone = |failure| lost(failure, "the replication connection is lost").into_error();
        self.session.wire.send(b'c', &[]).map_err(gone)?;
        self.session.limit_reads(Some(super::COMMAND_LIMIT))?;
        let mut next = None;
        loop {
            let frame = self.session.wire.expect().map_err(failed)?;
            match frame.tag {
                b'D' => {
                    let row = crate::wire::data_row(&frame.body).map_err(failed)?;
                    let text = |index: usize| {
                        let value = row.get(index).and_then(Option::as_deref).unwrap_or_default();
                        std::str::from_utf8(value).unwrap_or_default().to_owned()
                    };
                    let timeline = text(0).parse().map_err(|_| unexpected("START_REPLICATION"))?;
                    let start = text(1).parse().map_err(|_| unexpected("START_REPLICATION"))?;
                    next = Some((TimelineId(timeline), start));
                }
                b'Z' => return Ok((self.session, next)),
                _ => {}
            }
        }
    }

    /// Tells the server at once what is durable, so that it may remove what lies before.
    pub fn report(&mut self) -> Result<()> {
        self.told = Instant::now();
        self.send_status()
    }

    /// Written, flushed, applied; the clock matters to nobody but lag displays.
    fn send_status(&mut self) -> Result<()> {
        let mut body = vec![b'r'];
        for lsn in [self.position, self.durable, Lsn(0)] {
            body.extend_from_slice(&lsn.0.to_be_bytes());
        }
        // The clock is not ours to read, and the server does no more than show it (reply_time): PostgreSQL's epoch.
        body.extend_from_slice(&0_i64.to_be_bytes());
        body.push(1); // answer, so that silence means something
        self.session
            .wire
            .send(b'd', &body)
            .map_err(|failure| lost(failure, "the replication connection is lost").into_error())
    }
}
