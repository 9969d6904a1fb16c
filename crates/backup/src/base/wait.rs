//! Waits until all WAL of a backup is durable in the copy that the backup goes to.
//!
//! Invariants: a segment counts as there only when the repository has its object, durably; the wait has a limit, and
//! its error names the missing segment and what the archiver last said.

use std::time::{Duration, Instant};

use cluster::{ArchiverStatus, Session, archiver_status};
use diagnostic::{Error, Result};
use postgres::{Lsn, SystemIdentifier, TimelineId, segment_name};
use repository::{ClusterRepository, WalSegmentObject};

use super::plan::Connection;

/// The longest pause between two looks.
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// How often the archiver is asked how it fares.
const ARCHIVER_EVERY: Duration = Duration::from_secs(5);

/// The segments that a backup needs.
#[derive(Debug, Clone, Copy)]
pub(super) struct Needed {
    pub(super) system: SystemIdentifier,
    pub(super) timeline: TimelineId,
    pub(super) wal_segment_size: u32,
    pub(super) start: Lsn,
    pub(super) stop: Lsn,
}

impl Needed {
    /// First and last number. The byte at the stop LSN itself is not needed (`XLByteToPrevSeg`).
    pub(super) fn numbers(&self) -> (u64, u64) {
        let last = Lsn(self.stop.0.saturating_sub(1)).segment(self.wal_segment_size);
        (self.start.segment(self.wal_segment_size), last)
    }
}

/// Returns the segments' objects in order. `tick` is called at every look, with the segments found and wanted.
pub(super) fn wait_for_wal(
    repository: &ClusterRepository,
    needed: &Needed,
    session: &mut Session,
    standby: bool,
    timeout: Duration,
    tick: &mut dyn FnMut(u64, u64) -> Result<()>,
) -> Result<Vec<WalSegmentObject>> {
    let began = Instant::now();
    let (first, last) = needed.numbers();
    let total = last.saturating_sub(first) + 1;
    let mut found = Vec::new();
    let mut pause = Duration::from_millis(20);
    let mut archiver: Option<Result<ArchiverStatus>> = None;
    let mut archiver_asked = Instant::now();
    let mut number = first;
    while number <= last {
        match repository.get_segment(needed.system, needed.timeline, number, needed.wal_segment_size)? {
            Some(segment) => {
                found.push(segment);
                number += 1;
                pause = Duration::from_millis(20);
                continue;
            }
            None => tick(found.len() as u64, total)?,
        }
        if began.elapsed() >= timeout {
            let missing = segment_name(needed.timeline, number, needed.wal_segment_size);
            // What it said last counts, also when the server is gone by now.
            let status = archiver_status(session).or_else(|error| archiver.unwrap_or(Err(error)));
            return Err(missing_segment(
                &missing,
                repository.name(),
                standby,
                timeout,
                status,
            ));
        }
        if archiver_asked.elapsed() >= ARCHIVER_EVERY {
            archiver_asked = Instant::now();
            archiver = Some(archiver_status(session));
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(PAUSE_MAX);
    }
    make_durable(repository, &found)?;
    Ok(found)
}

/// An object that is seen may not be durable yet: the archiver hears so a moment later.
fn make_durable(repository: &ClusterRepository, segments: &[WalSegmentObject]) -> Result<()> {
    let mut before = None;
    for segment in segments {
        let folder = segment.object.rsplit_once('/').map(|(folder, _)| folder);
        if before != folder {
            repository.repository().store().make_durable(&segment.object)?;
            before = folder;
        }
    }
    Ok(())
}

/// Has a standby's primary end the segment of the backup's stop, if somebody said how to reach it. Hard rule 6.
/// Errors: `primary-connection`, and those of the session.
pub(super) fn ask_primary(primary: Option<&Connection>, needed: &Needed) -> Result<()> {
    let Some(Connection(conninfo)) = primary else {
        return Ok(());
    };
    let mut session =
        Session::connect(conninfo).map_err(|error| error.context("cannot reach the standby's primary"))?;
    let identity = session
        .one("SELECT pg_is_in_recovery(), (SELECT system_identifier::text FROM pg_control_system())")?;
    let system = identity
        .get(1)
        .and_then(Option::as_deref)
        .and_then(|text| text.parse::<i64>().ok());
    let wrong = if identity.first().and_then(Option::as_deref) == Some("t") {
        Some("it is a standby itself".to_owned())
    } else if system.map(|system| system as u64) != Some(needed.system.0) {
        Some("it has another system identifier".to_owned())
    } else {
        None
    };
    if let Some(why) = wrong {
        return Err(Error::new(
            "primary-connection",
            "primary_connection does not lead to the standby's primary",
        )
        .detail(format!("The server there cannot be it: {why}."))
        .hint("Correct primary_connection of the cluster in the configuration file."));
    }
    cluster::switch_wal(&mut session).map(drop)
}

fn missing_segment(
    missing: &str,
    cluster: &str,
    standby: bool,
    timeout: Duration,
    status: Result<ArchiverStatus>,
) -> Error {
    let archiver = match status {
        Err(error) => format!("The archiver could not be asked: {}.", error.message()),
        Ok(status) => {
            let waiting = match &status.ready_files {
                Some(files) if !files.is_empty() => format!(" {} files wait to be archived.", files.len()),
                _ => String::new(),
            };
            match (&status.last_failed, &status.last_failed_at, &status.last_archived) {
                (Some(file), Some(at), _) if status.is_failing() => format!(
                    "The archiver failed last on {file} at {at} ({} failures so far); the server's log says why.{waiting}",
                    status.failed_count
                ),
                (_, _, Some(file)) => {
                    format!(
                        "The archiver has not failed; it last archived {file}, perhaps elsewhere.{waiting}"
                    )
                }
                _ => format!("The archiver has archived nothing yet.{waiting}"),
            }
        }
    };
    let hint = if standby {
        format!(
            "On the primary, run SELECT pg_switch_wal() and see that its archive_command runs `pgproof wal push` for \
             cluster {cluster}; then run the backup again."
        )
    } else {
        format!(
            "See that archive_command is `pgproof wal push --cluster {cluster} %p` and works; then run the backup \
             again: nothing that it stored is stored twice."
        )
    };
    Error::new(
        "backup-wal-missing",
        format!("WAL segment {missing} of the backup has not been archived"),
    )
    .detail(format!(
        "It was not in this copy within {} seconds. The backup has not been recorded. {archiver}",
        timeout.as_secs()
    ))
    .hint(hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn needed(start: u64, stop: u64) -> Needed {
        Needed {
            system: SystemIdentifier(1),
            timeline: TimelineId(1),
            wal_segment_size: 16 << 20,
            start: Lsn(start),
            stop: Lsn(stop),
        }
    }

    #[test]
    fn a_stop_at_a_boundary_does_not_need_the_segment_behind_it() {
        assert_eq!(needed(0x0200_0028, 0x0300_0000).numbers(), (2, 2));
        assert_eq!(needed(0x0200_0028, 0x0300_0001).numbers(), (2, 3));
        assert_eq!(needed(0x0200_0000, 0x0200_0100).numbers(), (2, 2));
    }

    #[test]
    fn the_error_names_the_segment_and_the_archivers_last_failure() {
        let at: jiff::Timestamp = "2026-01-25T14:30:00Z".parse().unwrap();
        let status = ArchiverStatus {
            archived_count: 3,
            last_archived: Some("000000010000000000000004".into()),
            last_archived_at: at.checked_sub(jiff::SignedDuration::from_secs(60)).ok(),
            failed_count: 7,
            last_failed: Some("000000010000000000000005".into()),
            last_failed_at: Some(at),
            ready_files: Some(vec!["000000010000000000000005".into()]),
        };
        let error = missing_segment(
            "000000010000000000000005",
            "main",
            false,
            Duration::from_secs(60),
            Ok(status),
        );
        assert_eq!(error.code(), "backup-wal-missing");
        assert!(error.message().contains("000000010000000000000005"));
        let detail = error.detail_text().unwrap();
        assert!(
            detail.contains("7 failures") && detail.contains("has not been recorded"),
            "{detail}"
        );
    }
}
