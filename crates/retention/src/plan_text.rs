//! A plan as a person reads it.

use std::fmt;

use jiff::Timestamp;

use crate::plan::{ExpirePlan, Reason};
use crate::policy::Policy;
use crate::reach::Interval;

fn moment(at: Timestamp) -> String {
    postgres::Timestamp::from_jiff(at).to_string()
}

/// A number of bytes with a binary unit.
pub(crate) fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut value = bytes as f64 / 1024.0;
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut units = UNITS.iter();
    let mut unit = units.next().copied().unwrap_or_default();
    while value >= 1023.95
        && let Some(next) = units.next()
    {
        value /= 1024.0;
        unit = next;
    }
    format!("{value:.1} {unit}")
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rules = Vec::new();
        if let Some(window) = self.recovery_window {
            let seconds = window.as_secs();
            rules.push(match seconds {
                _ if seconds >= 86_400 && seconds % 3600 == 0 && seconds % 86_400 == 0 => {
                    format!("every point of the last {} days", seconds / 86_400)
                }
                _ if seconds >= 3600 && seconds % 3600 == 0 => {
                    format!("every point of the last {} hours", seconds / 3600)
                }
                _ => format!("every point of the last {} seconds", window.as_secs_f64()),
            });
        }
        if let Some(count) = self.keep_last {
            rules.push(format!("the last {count} backups"));
        }
        for (calendar, count) in self.calendars() {
            if count > 0 {
                rules.push(format!("{count} {}", calendar.word()));
            }
        }
        f.write_str(&rules.join(", "))
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::Last { number, of } => write!(f, "last {number} of {of}"),
            Reason::Window => f.write_str("in the recovery window"),
            Reason::WindowBase(timeline) => {
                write!(f, "the recovery window's beginning on timeline {timeline}")
            }
            Reason::Calendar { every, span } => write!(f, "{} {span}", every.word()),
            Reason::LastGood => f.write_str("the newest good backup"),
            Reason::LastGoodOn(timeline) => {
                write!(f, "the newest good backup that reaches timeline {timeline}")
            }
            Reason::LastVerified => f.write_str("the newest verified backup"),
            Reason::Pinned { reason, until } => {
                f.write_str("pinned")?;
                if !reason.is_empty() {
                    write!(f, " ({reason})")?;
                }
                match until {
                    Some(until) => write!(f, " until {}", moment(*until)),
                    None => Ok(()),
                }
            }
            Reason::Lease(who) => write!(f, "read by {who}"),
            Reason::Parent(run) => write!(f, "the running backup {run} builds on it"),
            Reason::NotReplaced(why) => write!(f, "does not count: {why}"),
        }
    }
}

impl fmt::Display for Interval {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "timeline {}: {} ({}) to {} ({})",
            self.timeline,
            moment(self.from),
            self.from_lsn,
            moment(self.to),
            self.to_lsn
        )
    }
}

impl fmt::Display for ExpirePlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "Copy {} of cluster {}, {}",
            self.copy,
            self.cluster,
            moment(self.at)
        )?;
        writeln!(f, "Policy: {}", self.policy)?;
        let section = |f: &mut fmt::Formatter<'_>, title: &str, lines: &[String]| -> fmt::Result {
            if lines.is_empty() {
                return Ok(());
            }
            writeln!(f, "{title}:")?;
            lines.iter().try_for_each(|line| writeln!(f, "  {line}"))
        };
        let keep: Vec<String> = self
            .keep
            .iter()
            .map(|kept| {
                let reasons: Vec<String> = kept.reasons.iter().map(ToString::to_string).collect();
                let how = if kept.continuous {
                    ""
                } else {
                    " [to its own end only]"
                };
                format!("{}  {}{how}", kept.backup, reasons.join("; "))
            })
            .collect();
        let remove: Vec<String> = self
            .remove
            .iter()
            .map(|removed| match &removed.note {
                Some(note) => format!("{}  {note}", removed.backup),
                None => format!("{}  nothing keeps it", removed.backup),
            })
            .collect();
        let wal: Vec<String> = self
            .wal
            .iter()
            .map(|range| {
                format!(
                    "{} to {}: {} segments, {}",
                    range.first_name,
                    range.last_name,
                    range.segments,
                    bytes(range.bytes)
                )
            })
            .collect();
        let intervals =
            |intervals: &[Interval]| intervals.iter().map(ToString::to_string).collect::<Vec<_>>();
        section(f, "Backups that stay", &keep)?;
        section(f, "Backups that go", &remove)?;
        section(f, "WAL that goes", &wal)?;
        section(f, "Reachable now", &intervals(&self.reachable_before))?;
        section(f, "No longer reachable afterwards", &intervals(&self.lost))?;
        section(f, "Reachable afterwards", &intervals(&self.reachable_after))?;
        if self.packs > 0 {
            writeln!(
                f,
                "Packs that only these backups use: {}, {}; deleted by an expire at least 70 minutes later",
                self.packs,
                bytes(self.packs_bytes)
            )?;
        }
        let collection = &self.collection;
        if collection.deleted > 0 {
            writeln!(
                f,
                "Packs to delete now: {}, {}",
                collection.deleted,
                bytes(collection.deleted_bytes)
            )?;
        }
        if collection.condemned + collection.waiting > 0 {
            writeln!(
                f,
                "Packs that nothing uses already, to be deleted later: {}, {}",
                collection.condemned + collection.waiting,
                bytes(collection.condemned_bytes + collection.waiting_bytes)
            )?;
        }
        if let Some(why) = &collection.blocked {
            writeln!(f, "No pack is deleted now: {why}")?;
        }
        if self.remove.is_empty() && self.wal.is_empty() {
            writeln!(f, "No backup and no WAL has to go.")?;
        }
        section(f, "Notes", &self.notes)
    }
}
