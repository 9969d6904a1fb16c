//! Times as people write them, and recovery targets as they stand on the command line.
//!
//! Invariant: a time is never guessed. One without a zone is refused with the two ways to write it, because a target that
//! is an hour off is data lost or damage restored; a local time that a clock change made ambiguous is refused too.

use diagnostic::{Error, Result};
use jiff::civil::DateTime;
use jiff::tz::{Offset, TimeZone};
use jiff::{Span, Timestamp};

/// Reads `2026-01-25 14:30:00 UTC`, `2026-01-25T14:30:00Z`, `2026-01-25 14:30:00+02`,
/// `2026-01-25 14:30 Europe/Berlin`, `now`, `10 minutes ago`. Error codes: `time-syntax`, `time-without-zone`.
pub fn parse(text: &str, now: Timestamp) -> Result<Timestamp> {
    let trimmed = text.trim();
    if trimmed.eq_ignore_ascii_case("now") {
        return Ok(now);
    }
    if let Some(length) = trimmed.strip_suffix(" ago") {
        return ago(length, now).ok_or_else(|| syntax(text));
    }
    if let Ok(at) = trimmed.parse::<Timestamp>() {
        return Ok(at);
    }
    if let Ok(civil) = trimmed.parse::<DateTime>() {
        return Err(without_zone(text, civil));
    }
    let (civil, zone) = split_zone(trimmed).ok_or_else(|| syntax(text))?;
    let civil: DateTime = civil.parse().map_err(|_| syntax(text))?;
    let zone = zone_of(zone).ok_or_else(|| {
        Error::usage(
            "time-syntax",
            format!("{zone:?} in the time {text:?} is no time zone"),
        )
        .hint("Write `UTC`, an offset such as `+02`, or a name such as `Europe/Berlin`.")
    })?;
    zone.to_ambiguous_timestamp(civil).unambiguous().map_err(|_| {
        Error::usage(
            "time-syntax",
            format!("the local time {text:?} does not name one moment"),
        )
        .detail("A clock change made this local time occur twice or not at all.")
        .hint(format!("Write it with an offset: `{}+00`.", civil_text(civil)))
    })
}

/// `10 minutes`, `1 h 30 min`, `2 days` before now. A day has 24 hours, as in UTC.
fn ago(length: &str, now: Timestamp) -> Option<Timestamp> {
    let span: Span = length.trim().parse().ok()?;
    if span.is_negative() {
        return None;
    }
    now.to_zoned(TimeZone::UTC)
        .checked_sub(span)
        .ok()
        .map(|then| then.timestamp())
}

/// Cuts `2026-01-25 14:30:00 UTC` and `2026-01-25 14:30:00 +02` and `2026-01-25 14:30+02` before the zone.
fn split_zone(text: &str) -> Option<(&str, &str)> {
    if let Some((civil, zone)) = text.rsplit_once(char::is_whitespace) {
        let first = zone.chars().next()?;
        if first.is_ascii_alphabetic() || first == '+' || first == '-' {
            return Some((civil.trim_end(), zone));
        }
    }
    // An offset that stands right behind the time of day: look behind the date, which itself has hyphens.
    let behind_date = text.get(10..)?;
    let at = 10 + behind_date.find(['+', '-', 'Z', 'z'])?;
    Some((text.get(..at)?, text.get(at..)?))
}

fn zone_of(text: &str) -> Option<TimeZone> {
    if ["utc", "gmt", "z"].contains(&text.to_ascii_lowercase().as_str()) {
        return Some(TimeZone::UTC);
    }
    if let Some(rest) = text.strip_prefix(['+', '-']) {
        let digits: String = rest.chars().filter(|c| *c != ':').collect();
        if !matches!(digits.len(), 1 | 2 | 4 | 6) || !digits.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        let part = |range: std::ops::Range<usize>| -> i32 {
            digits.get(range).and_then(|part| part.parse().ok()).unwrap_or(0)
        };
        let hours = part(0..digits.len().min(2));
        let (minutes, seconds) = (part(2..4), part(4..6));
        if hours > 25 || minutes > 59 || seconds > 59 {
            return None;
        }
        let total = hours * 3600 + minutes * 60 + seconds;
        let total = if text.starts_with('-') { -total } else { total };
        return Offset::from_seconds(total).ok().map(TimeZone::fixed);
    }
    TimeZone::get(text).ok()
}

fn civil_text(civil: DateTime) -> String {
    civil.strftime("%Y-%m-%d %H:%M:%S").to_string()
}

fn without_zone(text: &str, civil: DateTime) -> Error {
    let civil = civil_text(civil);
    Error::usage("time-without-zone", format!("the time {text:?} has no time zone"))
        .detail("pgproof does not guess: a target that is an hour off loses data or restores the damage.")
        .hint(format!(
            "Write `{civil} UTC`, or with your own offset, for example `{civil}+02`."
        ))
}

fn syntax(text: &str) -> Error {
    Error::usage("time-syntax", format!("cannot read {text:?} as a time"))
        .hint("Write `2026-01-25 14:30:00 UTC`, `2026-01-25T14:30:00Z`, `2026-01-25 14:30:00+02` or `10 minutes ago`.")
}

/// Whether text has the shape of an LSN (`2A/8F000000`).
pub fn looks_like_lsn(text: &str) -> bool {
    text.split_once('/').is_some_and(|(high, low)| {
        let part = |text: &str| (1..=8).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_hexdigit());
        part(high) && part(low)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> Timestamp {
        "2026-01-25T15:00:00Z".parse().expect("a constant")
    }

    #[test]
    fn times_with_a_zone_are_read_in_every_common_spelling() {
        for text in [
            "2026-01-25 14:30:00 UTC",
            "2026-01-25 14:30 UTC",
            "2026-01-25 14:30:00 utc",
            "2026-01-25T14:30:00Z",
            "2026-01-25 14:30:00Z",
            "2026-01-25 14:30:00+00",
            "2026-01-25 16:30:00+02",
            "2026-01-25 16:30+02",
            "2026-01-25 16:30:00 +02:00",
            "2026-01-25 16:30:00+0200",
            "2026-01-25 09:30:00-05",
            "2026-01-25 15:30:00 Europe/Berlin",
            "30 minutes ago",
            "30 min ago",
            "1800 s ago",
        ] {
            let at = parse(text, now()).unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(at.to_string(), "2026-01-25T14:30:00Z", "{text}");
        }
        let exact = parse("2026-01-25 14:30:00.123456+00", now()).expect("a time");
        assert_eq!(exact.to_string(), "2026-01-25T14:30:00.123456Z");
        assert_eq!(
            parse("1 day 30 min ago", now()).expect("a time").to_string(),
            "2026-01-24T14:30:00Z"
        );
    }

    #[test]
    fn a_time_without_zone_is_refused_with_the_ways_to_write_it() {
        for text in ["2026-01-25 14:30:00", "2026-01-25T14:30", "2026-01-25"] {
            let error = parse(text, now()).expect_err(text);
            assert_eq!(error.code(), "time-without-zone", "{text}");
            assert!(
                error.hint_text().is_some_and(|hint| hint.contains("UTC")),
                "{text}"
            );
        }
    }

    #[test]
    fn a_local_time_that_a_clock_change_repeated_is_refused() {
        let error = parse("2025-10-26 02:30:00 Europe/Berlin", now()).expect_err("ambiguous");
        assert_eq!(error.code(), "time-syntax");
    }

    #[test]
    fn nonsense_is_a_usage_error_and_no_panic() {
        for text in [
            "",
            " ",
            "x",
            "2026-13-01 00:00 UTC",
            "ago",
            " ago",
            "-5 min ago",
            "2026-01-25 14:30 +9x",
            "äöüäöüäöü+ß",
        ] {
            let error = parse(text, now()).expect_err(text);
            assert_eq!(error.class(), diagnostic::Class::Usage, "{text}");
        }
    }

    #[test]
    fn the_shape_of_an_lsn_is_told_from_a_date() {
        assert!(looks_like_lsn("0/16B3740") && looks_like_lsn("2A/8F000000"));
        assert!(!looks_like_lsn("2026/01/25") && !looks_like_lsn("latest") && !looks_like_lsn("/1"));
    }
}
