//! Recovery targets as they stand on the command line and in a drill's profile.

use diagnostic::{Error, Result};
use history::Target;
use jiff::Timestamp;
use postgres::{TimelineId, Xid};

use crate::cli::RestoreTarget;
use crate::times;

/// `latest`, `immediate`, an LSN, or a time.
pub fn parse(text: &str, now: Timestamp) -> Result<Target> {
    let text = text.trim();
    if text.eq_ignore_ascii_case("latest") {
        return Ok(Target::Latest);
    }
    if text.eq_ignore_ascii_case("immediate") {
        return Ok(Target::Immediate);
    }
    if times::looks_like_lsn(text) {
        return Ok(Target::Lsn(text.parse()?));
    }
    times::parse(text, now)
        .map(|at| Target::Time(postgres::Timestamp::from_jiff(at)))
        .map_err(|error| match error.code() {
            "time-syntax" if text.bytes().all(|b| b.is_ascii_digit()) => {
                Error::usage("target-syntax", format!("{text:?} names no recovery target")).hint(format!(
                    "A transaction is named with `--to-xid {text}` or `--before-xid {text}`."
                ))
            }
            _ => error,
        })
}

/// The one target that was given; none is an error.
pub fn chosen(arguments: &RestoreTarget, now: Timestamp) -> Result<Target> {
    match arguments {
        RestoreTarget { to: Some(text), .. } => parse(text, now),
        RestoreTarget {
            to_xid: Some(xid), ..
        } => Ok(Target::Xid(Xid(*xid))),
        RestoreTarget {
            before_xid: Some(xid),
            ..
        } => Ok(Target::BeforeXid(Xid(*xid))),
        RestoreTarget {
            to_name: Some(name), ..
        } => Ok(Target::Name(name.clone())),
        _ => Err(Error::usage("target-missing", "no recovery target was given")
            .hint("Say how far with `--to TIME`, `--to LSN`, `--to latest` or `--to immediate`.")),
    }
}

/// Which timeline a recovery follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Timeline {
    Number(TimelineId),
    /// The newest one that a known server wrote.
    Latest,
    /// That of the newest backup.
    Current,
}

/// `latest`, `current`, or a number in decimal as `pgproof list` prints it.
pub fn timeline(text: &str) -> Result<Timeline> {
    match text {
        "latest" => return Ok(Timeline::Latest),
        "current" => return Ok(Timeline::Current),
        _ => {}
    }
    match text.parse::<u32>() {
        Ok(number) if number > 0 => Ok(Timeline::Number(TimelineId(number))),
        _ => Err(
            Error::usage("timeline-syntax", format!("{text:?} is no timeline")).hint(
                "A timeline is a number from 1, `latest`, or `current`; leave it out for the one that the newest \
                 backup is on.",
            ),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use postgres::Lsn;

    #[test]
    fn each_kind_of_target_is_recognised_by_its_shape() {
        let now = "2026-01-25T15:00:00Z".parse().expect("a constant");
        assert_eq!(parse("latest", now).expect("a target"), Target::Latest);
        assert_eq!(
            parse("2A/8F000000", now).expect("a target"),
            Target::Lsn(Lsn(0x2A_8F00_0000))
        );
        assert!(matches!(parse("10 minutes ago", now), Ok(Target::Time(_))));
        assert_eq!(
            parse("2026-01-25 14:30", now).expect_err("no zone").code(),
            "time-without-zone"
        );
        assert!(
            parse("742", now)
                .expect_err("an xid")
                .hint_text()
                .is_some_and(|hint| hint.contains("--to-xid 742"))
        );
        assert_eq!(timeline("0").expect_err("zero").code(), "timeline-syntax");
    }
}
