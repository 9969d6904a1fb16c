//! When drills are due, by rules that a team can put into a calendar, and that calendar as a file (RFC 5545).
//!
//! A drill belongs into the week of the 15th: of January, April, July and October (quarterly), of every month, or of
//! January (yearly); from Tuesday to Thursday, 09:00 to 16:00 local time, two hours of it. Invariants: only a drill
//! that passed takes a period off the list; after a failed one the next is due within 14 days; no clock and no
//! environment is asked here.

use std::fmt::Write;

use jiff::civil::{Date, Weekday, time};
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan, Zoned};

use drill::Status;

use crate::actions::REDRILL_DAYS;

/// How often.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Frequency {
    Monthly,
    Quarterly,
    Yearly,
}

impl Frequency {
    pub fn as_str(self) -> &'static str {
        match self {
            Frequency::Monthly => "monthly",
            Frequency::Quarterly => "quarterly",
            Frequency::Yearly => "yearly",
        }
    }

    pub fn parse(text: &str) -> Option<Frequency> {
        [Frequency::Monthly, Frequency::Quarterly, Frequency::Yearly]
            .into_iter()
            .find(|frequency| frequency.as_str() == text)
    }

    /// By a profile's name, where nothing else says it: `monthly-logical` is monthly.
    pub fn of_name(profile: &str) -> Frequency {
        match profile.split('-').next() {
            Some("monthly") => Frequency::Monthly,
            Some("yearly" | "annual") => Frequency::Yearly,
            _ => Frequency::Quarterly,
        }
    }

    fn months(self) -> i16 {
        match self {
            Frequency::Monthly => 1,
            Frequency::Quarterly => 3,
            Frequency::Yearly => 12,
        }
    }

    /// The first day of the period in which a day lies.
    fn period_of(self, day: Date) -> Date {
        let month = i16::from(day.month()) - 1;
        let first = month - month % self.months() + 1;
        Date::new(day.year(), i8::try_from(first).unwrap_or(1), 1).unwrap_or(day)
    }

    fn next_period(self, period: Date) -> Date {
        period
            .checked_add(i32::from(self.months()).months())
            .unwrap_or(Date::MAX)
    }
}

/// Two hours for a drill, within three days.
#[derive(Debug, Clone, PartialEq)]
pub struct Slot {
    /// Tuesday, 09:00.
    pub from: Zoned,
    /// Thursday, 16:00.
    pub until: Zoned,
}

/// The slot of a period.
fn slot(period: Date, zone: &TimeZone) -> Option<Slot> {
    let middle = period.with().day(15).build().ok()?;
    let since_monday = i32::from(middle.weekday().to_monday_zero_offset());
    let tuesday = middle
        .checked_sub(since_monday.days())
        .ok()?
        .checked_add(1.day())
        .ok()?;
    debug_assert_eq!(tuesday.weekday(), Weekday::Tuesday);
    let thursday = tuesday.checked_add(2.days()).ok()?;
    Some(Slot {
        from: tuesday
            .to_datetime(time(9, 0, 0, 0))
            .to_zoned(zone.clone())
            .ok()?,
        until: thursday
            .to_datetime(time(16, 0, 0, 0))
            .to_zoned(zone.clone())
            .ok()?,
    })
}

/// When a drill is due, and why then.
#[derive(Debug, Clone, PartialEq)]
pub struct Due {
    pub slot: Slot,
    /// The slot has passed.
    pub overdue: bool,
    /// A sentence.
    pub why: String,
}

/// A drill that was made.
#[derive(Debug, Clone, PartialEq)]
pub struct Made {
    pub drill: String,
    pub started_at: Timestamp,
    pub status: Status,
}

/// What is due next, by the drills that were made so far (in any order).
pub fn due(frequency: Frequency, made: &[Made], now: &Zoned) -> Option<Due> {
    let zone = now.time_zone();
    let passed = |it: &&Made| matches!(it.status, Status::Passed | Status::PassedWithObservations);
    let period = frequency.period_of(now.date());
    let in_period = |it: &&Made| frequency.period_of(it.started_at.to_zoned(zone.clone()).date()) == period;
    let done = made.iter().filter(passed).find(in_period);
    let (of, why) = match done {
        Some(it) => (
            frequency.next_period(period),
            format!("{}: this period's drill is {}", frequency.as_str(), it.drill),
        ),
        None => (
            period,
            format!("{}: no drill has passed in this period", frequency.as_str()),
        ),
    };
    let slot = slot(of, zone)?;
    let regular = Due {
        overdue: slot.until < *now,
        slot,
        why,
    };
    // Drills that nobody could judge, or that were stopped, decide nothing.
    let decided = made.iter().filter(|it| passed(it) || it.status == Status::Failed);
    let last = decided.max_by_key(|it| it.started_at);
    let Some(failed) = last.filter(|it| it.status == Status::Failed) else {
        return Some(regular);
    };
    let until = failed
        .started_at
        .to_zoned(zone.clone())
        .checked_add(REDRILL_DAYS.days())
        .ok()?;
    if regular.slot.until < until && regular.slot.until > *now {
        return Some(regular);
    }
    Some(Due {
        overdue: until < *now,
        slot: Slot {
            from: until.checked_sub(2.hours()).ok()?,
            until,
        },
        why: format!(
            "{} FAILED: it is to be drilled again within {REDRILL_DAYS} days",
            failed.drill
        ),
    })
}

/// The next slot if a drill that is made now passes.
pub fn after_this(frequency: Frequency, now: &Zoned) -> Option<Timestamp> {
    let next = frequency.next_period(frequency.period_of(now.date()));
    slot(next, now.time_zone()).map(|slot| slot.from.timestamp())
}

/// This slot and the regular ones after it, `count` in all.
pub fn series(frequency: Frequency, first: &Slot, count: usize) -> Vec<Slot> {
    let zone = first.from.time_zone();
    let mut slots = vec![first.clone()];
    let mut period = frequency.period_of(first.from.date());
    while slots.len() < count {
        period = frequency.next_period(period);
        match slot(period, zone) {
            Some(slot) => slots.push(slot),
            None => break,
        }
    }
    slots
}

/// A drill to be put into a calendar.
#[derive(Debug, Clone)]
pub struct Event {
    pub profile: String,
    pub cluster: String,
    pub slot: Slot,
    /// Where the procedure is described.
    pub runbook: String,
}

/// The file: for each drill two hours, with reminders a week and a day before.
pub fn icalendar(events: &[Event], now: Timestamp) -> String {
    let mut out = String::new();
    for line in [
        "BEGIN:VCALENDAR",
        "VERSION:2.0",
        "PRODID:-//pgproof//drills//EN",
        "CALSCALE:GREGORIAN",
    ] {
        fold(&mut out, line);
    }
    let utc = |at: Timestamp| at.strftime("%Y%m%dT%H%M%SZ").to_string();
    for event in events {
        let start = event.slot.from.timestamp();
        let end = start
            .checked_add(jiff::SignedDuration::from_hours(2))
            .unwrap_or(start);
        let identifier: String = format!(
            "{}-{}-{}",
            event.cluster,
            event.profile,
            event.slot.from.strftime("%Y%m%d")
        )
        .chars()
        .filter(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'))
        .collect();
        let description = format!(
            "Run: pgproof drill run {} --cluster {}\nRunbook: {}\nWindow: {} to {} ({})\nExpect 15 to 30 minutes of \
             downtime where the drill is made in place; a drill in a sandbox needs none.",
            event.profile,
            event.cluster,
            event.runbook,
            event.slot.from.strftime("%a %Y-%m-%d %H:%M"),
            event.slot.until.strftime("%a %Y-%m-%d %H:%M"),
            event.slot.from.time_zone().iana_name().unwrap_or("local time"),
        );
        fold(&mut out, "BEGIN:VEVENT");
        fold(&mut out, &format!("UID:{identifier}@pgproof"));
        fold(&mut out, &format!("DTSTAMP:{}", utc(now)));
        fold(&mut out, &format!("DTSTART:{}", utc(start)));
        fold(&mut out, &format!("DTEND:{}", utc(end)));
        let summary = format!("Recovery drill {} of cluster {}", event.profile, event.cluster);
        fold(&mut out, &format!("SUMMARY:{}", escaped(&summary)));
        fold(&mut out, &format!("DESCRIPTION:{}", escaped(&description)));
        for (trigger, words) in [
            (
                "-P1W",
                "In a week: operator checks backups, WAL and the place for the copy",
            ),
            (
                "-PT24H",
                "In a day: reviewer reads the procedure and confirms access",
            ),
        ] {
            fold(&mut out, "BEGIN:VALARM");
            fold(&mut out, "ACTION:DISPLAY");
            fold(&mut out, &format!("TRIGGER:{trigger}"));
            fold(&mut out, &format!("DESCRIPTION:{}", escaped(words)));
            fold(&mut out, "END:VALARM");
        }
        fold(&mut out, "END:VEVENT");
    }
    fold(&mut out, "END:VCALENDAR");
    out
}

/// Text as a value: RFC 5545, section 3.3.11.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\\' | ';' | ',' => out.extend(['\\', character]),
            '\n' => out.push_str("\\n"),
            c if c.is_control() => {}
            c => out.push(c),
        }
    }
    out
}

/// A line of at most 75 bytes and its continuations: section 3.1.
fn fold(out: &mut String, line: &str) {
    let mut length = 0;
    for character in line.chars() {
        let bytes = character.len_utf8();
        if length + bytes > 75 {
            out.push_str("\r\n ");
            length = 1;
        }
        out.push(character);
        length += bytes;
    }
    let _ = write!(out, "\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Zoned {
        let zone = TimeZone::fixed(jiff::tz::offset(1));
        let civil: jiff::civil::DateTime = text.parse().unwrap();
        civil.to_zoned(zone).unwrap()
    }

    fn made(day: &str, status: Status) -> Made {
        Made {
            drill: format!("drill of {day}"),
            started_at: at(&format!("{day}T10:00")).timestamp(),
            status,
        }
    }

    fn days(due: &Due) -> (String, String, bool) {
        let text = |at: &Zoned| at.strftime("%a %Y-%m-%d %H:%M").to_string();
        (text(&due.slot.from), text(&due.slot.until), due.overdue)
    }

    #[test]
    fn quarterly_drills_lie_in_the_weeks_of_the_15th_from_tuesday_to_thursday() {
        let due = |now: &str, made: &[Made]| days(&due(Frequency::Quarterly, made, &at(now)).unwrap());
        let first = due("2026-01-05T12:00", &[]);
        assert_eq!(
            first,
            (
                "Tue 2026-01-13 09:00".into(),
                "Thu 2026-01-15 16:00".into(),
                false
            )
        );
        // The 15th of November 2026 is a Sunday, and its week begins on Monday before it.
        let sunday = slot("2026-11-01".parse().unwrap(), &TimeZone::UTC).unwrap();
        assert_eq!(sunday.from.date().to_string(), "2026-11-10");
        let passed = [made("2026-01-02", Status::PassedWithObservations)];
        assert_eq!(due("2026-01-05T12:00", &passed).0, "Tue 2026-04-14 09:00");
        let late = due("2026-01-20T12:00", &[made("2026-01-14", Status::Inconclusive)]);
        assert_eq!((late.0.as_str(), late.2), ("Tue 2026-01-13 09:00", true));
        assert_eq!(
            due("2026-12-30T12:00", &[made("2026-10-14", Status::Passed)]).0,
            "Tue 2027-01-12 09:00"
        );
    }

    #[test]
    fn monthly_and_yearly_rules_hold_the_same_week() {
        let now = at("2026-02-20T12:00");
        let monthly = due(Frequency::Monthly, &[made("2026-02-03", Status::Passed)], &now).unwrap();
        assert_eq!(days(&monthly).0, "Tue 2026-03-10 09:00");
        let yearly = due(Frequency::Yearly, &[made("2026-01-13", Status::Passed)], &now).unwrap();
        assert_eq!(days(&yearly).0, "Tue 2027-01-12 09:00");
        assert_eq!(Frequency::of_name("monthly-logical"), Frequency::Monthly);
        assert_eq!(Frequency::of_name("quarterly-pitr"), Frequency::Quarterly);
        let next = after_this(Frequency::Quarterly, &now).unwrap();
        assert_eq!(next.to_string(), "2026-04-14T08:00:00Z");
    }

    #[test]
    fn a_failed_drill_is_made_again_within_14_days_until_one_passes() {
        let failed = made("2026-01-14", Status::Failed);
        let again = due(
            Frequency::Quarterly,
            std::slice::from_ref(&failed),
            &at("2026-01-20T12:00"),
        )
        .unwrap();
        assert_eq!(again.slot.until.date().to_string(), "2026-01-28");
        assert!(!again.overdue && again.why.contains("FAILED"), "{again:?}");
        let late = due(
            Frequency::Quarterly,
            std::slice::from_ref(&failed),
            &at("2026-02-01T12:00"),
        )
        .unwrap();
        assert!(late.overdue);
        let passed = [failed, made("2026-01-21", Status::Passed)];
        let next = due(Frequency::Quarterly, &passed, &at("2026-01-22T12:00")).unwrap();
        assert_eq!(days(&next).0, "Tue 2026-04-14 09:00");
    }

    #[test]
    fn the_calendar_file_has_short_lines_reminders_and_no_injected_property() {
        let first = due(Frequency::Quarterly, &[], &at("2026-01-05T12:00"))
            .unwrap()
            .slot;
        let events: Vec<Event> = series(Frequency::Quarterly, &first, 4)
            .into_iter()
            .map(|slot| Event {
                profile: "q\r\nATTENDEE:mailto:x".into(),
                cluster: "main; \u{e9}".repeat(9),
                slot,
                runbook: "https://wiki.example/drills, page 1".into(),
            })
            .collect();
        let text = icalendar(&events, "2026-01-05T12:00:00Z".parse().unwrap());
        assert!(text.ends_with("END:VCALENDAR\r\n"));
        for line in text.split_terminator("\r\n") {
            assert!(line.len() <= 75 && !line.contains(['\r', '\n']), "{line}");
            assert!(!line.starts_with("ATTENDEE"), "{line}");
        }
        assert_eq!(text.matches("BEGIN:VEVENT").count(), 4);
        assert_eq!(text.matches("TRIGGER:-P1W").count(), 4);
        assert_eq!(text.matches("TRIGGER:-PT24H").count(), 4);
        assert!(text.contains("DTSTART:20260113T080000Z") && text.contains("DTSTART:20260414T080000Z"));
        let unfolded = text.replace("\r\n ", "");
        assert!(
            unfolded.contains("Runbook: https://wiki.example/drills\\, page 1"),
            "{unfolded}"
        );
    }
}
