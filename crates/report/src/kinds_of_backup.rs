//! What each kind of backup that teams keep would have lost: the base backup alone, the same with its archived WAL,
//! and a dump taken when that base backup began.
//!
//! Invariants: every length is made of recorded facts, and says which; what was not recorded is said to be unknown,
//! never guessed; that pgproof makes no dumps stands beside the line that says what one would have lost.

use drill::facts::{Facts, Input};
use jiff::Timestamp;

use crate::document::{Document, Text, said, value};
use crate::template::recovery_point;
use crate::words::{between_ms, bytes, duration, instant};

/// The newest commit that the copy held at the drill's point, with the place where that stands.
fn point(facts: &Facts) -> Option<(Timestamp, String)> {
    let mut instants = facts.instants.iter().enumerate();
    let recorded = instants
        .find(|(_, instant)| instant.id == "recovered-commit")
        .map(|(at, instant)| (instant.at, format!("/instants/{at}/at")));
    // Older drills recorded the server's own words alone.
    let told = || {
        let stop = facts
            .target
            .stops
            .first()
            .filter(|stop| stop.outcome.is_reached())?;
        let time = stop.reached_time.as_deref()?.parse().ok()?;
        Some((time, "/target/stops/0/reached_time".to_owned()))
    };
    recorded.or_else(told)
}

/// Appends the table.
pub fn write(out: &mut Document, facts: &Facts) {
    out.say(
        "What each kind of backup brings back, and what it would have lost: the first and the last up to the \
         newest commit at the drill's point, the one with WAL up to the drill's start:",
    );
    let point = point(facts);
    let point = point.as_ref();
    let input = facts.input.as_ref();
    let (rpo, _) = recovery_point(facts);
    out.table(
        &["Kind of Backup", "Brings Back", "Lost (RPO)"],
        [
            [
                said("Base backup alone"),
                its_end(input),
                input.map_or_else(unknown_backup, |input| since_its_end(facts, input, point)),
            ],
            [said("Base backup and archived WAL"), newest_kept(facts), rpo],
            [
                said(
                    "A logical dump taken when that base backup began (pgproof makes none: this is what one \
                      would bring)",
                ),
                its_begin(input),
                input.map_or_else(unknown_backup, |input| since_its_begin(input, point)),
            ],
        ],
    );
}

fn unknown_backup() -> Text {
    value("not known: the drill ended before a backup was chosen", "/input")
}

fn unknown_point() -> Text {
    value(
        "everything committed since; how long that is is not known: the copy did not get to the point",
        "/target/stops",
    )
}

fn its_end(input: Option<&Input>) -> Text {
    input.map_or_else(unknown_backup, |input| {
        let text = format!("what was committed at its end, {}", input.stop_lsn);
        value(text, "/input/stop_lsn")
    })
}

fn its_begin(input: Option<&Input>) -> Text {
    input.map_or_else(unknown_backup, |input| {
        let text = format!("what was committed at {}", instant(input.backup_started_at));
        value(text, "/input/backup_started_at")
    })
}

fn newest_kept(facts: &Facts) -> Text {
    match facts.rpo.as_ref().and_then(|rpo| rpo.newest_kept_commit_at) {
        Some(at) => value(
            format!(
                "every moment up to {}, the newest commit that is kept",
                instant(at)
            ),
            "/rpo/newest_kept_commit_at",
        ),
        None => said("every moment up to the newest commit that is kept"),
    }
}

/// The backup ended between its beginning and its record, so the loss is told between two bounds; in WAL it is exact.
fn since_its_end(facts: &Facts, input: &Input, point: Option<&(Timestamp, String)>) -> Text {
    let Some((at, from)) = point else {
        return unknown_point();
    };
    let least = duration(between_ms(input.backup_finished_at, *at));
    let most = duration(between_ms(input.backup_started_at, *at));
    let length = match least == most {
        true => format!("everything committed since: {most}"),
        false => format!("everything committed since: {least} to {most}"),
    };
    let reached = facts.target.stops.first().and_then(|stop| stop.reached_lsn);
    let wal = reached.and_then(|reached| reached.checked_sub(input.stop_lsn));
    let text = match wal {
        Some(wal) => value(format!("{length}, {} of WAL", bytes(wal)), from)
            .and("/input/stop_lsn")
            .and("/target/stops/0/reached_lsn"),
        None => value(length, from),
    };
    text.and("/input/backup_finished_at")
        .and("/input/backup_started_at")
}

fn since_its_begin(input: &Input, point: Option<&(Timestamp, String)>) -> Text {
    let Some((at, from)) = point else {
        return unknown_point();
    };
    let length = duration(between_ms(input.backup_started_at, *at));
    value(format!("everything committed since: {length}"), from).and("/input/backup_started_at")
}
