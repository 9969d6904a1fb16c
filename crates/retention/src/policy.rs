//! What is to be kept, as the configuration says it.
//!
//! Invariant: rules add up; a backup that any of them keeps is kept. Days, weeks and months are UTC's.

use std::time::Duration;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};

/// What to keep.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// Every point of the last so many seconds stays reachable.
    pub recovery_window: Option<Duration>,
    /// The newest good backups, with all WAL behind the oldest of them.
    pub keep_last: Option<u32>,
    /// The last good backup of each of so many days that have one.
    pub daily: Option<u32>,
    pub weekly: Option<u32>,
    pub monthly: Option<u32>,
}

/// Spans of the calendar of which one backup each is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Calendar {
    Day,
    Week,
    Month,
}

impl Calendar {
    /// The span that holds a moment: `2026-08-15`, `2026-W33`, `2026-08`.
    pub fn span(self, at: Timestamp) -> String {
        let date = at.to_zoned(TimeZone::UTC).date();
        match self {
            Calendar::Day => date.to_string(),
            Calendar::Week => {
                let week = date.iso_week_date();
                format!("{}-W{:02}", week.year(), week.week())
            }
            Calendar::Month => format!("{:04}-{:02}", date.year(), date.month()),
        }
    }

    pub(crate) fn word(self) -> &'static str {
        match self {
            Calendar::Day => "daily",
            Calendar::Week => "weekly",
            Calendar::Month => "monthly",
        }
    }
}

impl Policy {
    /// Nothing is configured: everything is kept.
    pub fn is_empty(&self) -> bool {
        self == &Policy::default()
    }

    /// Whether WAL is kept by a rule of its own, and not behind every backup.
    pub(crate) fn bounds_wal(&self) -> bool {
        self.recovery_window.is_some() || self.keep_last.is_some()
    }

    /// The beginning of the recovery window.
    pub fn cutoff(&self, now: Timestamp) -> Option<Timestamp> {
        let window = jiff::SignedDuration::try_from(self.recovery_window?).ok()?;
        Some(now.saturating_sub(window).unwrap_or(Timestamp::MIN))
    }

    pub(crate) fn calendars(&self) -> [(Calendar, u32); 3] {
        [
            (Calendar::Day, self.daily.unwrap_or(0)),
            (Calendar::Week, self.weekly.unwrap_or(0)),
            (Calendar::Month, self.monthly.unwrap_or(0)),
        ]
    }
}
