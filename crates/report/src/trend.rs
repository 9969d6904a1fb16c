//! How recovery changes from drill to drill: a straight line through what was measured, and when it crosses what was
//! agreed; and how often it succeeded, how long it took, and how fast the backups grow.
//!
//! Invariants: nothing is foretold from fewer than three drills, or from drills that all lie at one moment; a rate over
//! nothing is not said to be met.

use jiff::{SignedDuration, Timestamp};

use crate::circumstances::{BackupRuns, BackupSize, Earlier};
use crate::words::duration;

/// Fewer drills say nothing about the future.
pub const DRILLS_MIN: usize = 3;
/// Nobody plans for what lies further ahead.
const YEARS_MAX: f64 = 10.0;
const DAY_SECONDS: f64 = 86_400.0;

/// A straight line by least squares.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Trend {
    /// Change of the value in a day.
    pub per_day: f64,
    /// The value on the line at the last drill.
    pub last: f64,
    /// When that was.
    pub last_at: Timestamp,
    pub drills: usize,
}

/// When an objective will be missed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Forecast {
    /// The line is above it now.
    Missed,
    /// The line does not rise.
    Never,
    /// It rises so slowly that ten years are not enough.
    Beyond,
    /// On this day.
    On(Timestamp),
}

/// The line through values at moments; nothing for fewer than [`DRILLS_MIN`].
pub fn trend(values: &[(Timestamp, f64)]) -> Option<Trend> {
    let last_at = values.iter().map(|(at, _)| *at).max()?;
    if values.len() < DRILLS_MIN || values.iter().any(|(_, value)| !value.is_finite()) {
        return None;
    }
    let days = |at: &Timestamp| at.duration_since(last_at).as_secs_f64() / DAY_SECONDS;
    let count = values.len() as f64;
    let mean_day = values.iter().map(|(at, _)| days(at)).sum::<f64>() / count;
    let mean = values.iter().map(|(_, value)| value).sum::<f64>() / count;
    let spread: f64 = values.iter().map(|(at, _)| (days(at) - mean_day).powi(2)).sum();
    if spread <= f64::EPSILON {
        return None;
    }
    let common: f64 = values
        .iter()
        .map(|(at, value)| (days(at) - mean_day) * (value - mean))
        .sum();
    let per_day = common / spread;
    Some(Trend {
        per_day,
        last: mean - per_day * mean_day,
        last_at,
        drills: values.len(),
    })
}

impl Trend {
    /// When the line crosses `objective`.
    pub fn forecast(&self, objective: f64) -> Forecast {
        if self.last > objective {
            return Forecast::Missed;
        }
        if self.per_day <= 0.0 {
            return Forecast::Never;
        }
        let days = (objective - self.last) / self.per_day;
        if days > YEARS_MAX * 365.25 {
            return Forecast::Beyond;
        }
        let ahead = SignedDuration::try_from_secs_f64(days * DAY_SECONDS);
        match ahead.ok().and_then(|ahead| self.last_at.checked_add(ahead).ok()) {
            Some(at) => Forecast::On(at),
            None => Forecast::Beyond,
        }
    }
}

/// A recovery takes less than this, in the middle.
const RECOVERY_TARGET_MS: u64 = 3_600_000;
/// Backups grow by less than so many per cent in a month.
const GROWTH_TARGET_PERCENT: f64 = 10.0;
/// Two backups that lie closer together say nothing of a month.
const GROWTH_DAYS_MIN: f64 = 7.0;
const MONTH_DAYS: f64 = 30.44;

/// The days over which backups are counted.
pub const BACKUP_RUNS_DAYS: i64 = 30;

/// What the rates are silent about.
pub const NOT_COUNTED: &str = "Only what left a record is counted: a backup whose process was killed, or that could \
     not write to any copy, left none, nor did a drill whose process was killed and that nobody took up again. Drills \
     of the drill are left out.";

/// Whether a target is met.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Met {
    Met,
    NotMet,
    CannotBeSaid,
}

impl Met {
    /// For tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Met::Met => "met",
            Met::NotMet => "not met",
            Met::CannotBeSaid => "cannot be said",
        }
    }

    fn of(met: Option<bool>) -> Met {
        match met {
            Some(true) => Met::Met,
            Some(false) => Met::NotMet,
            None => Met::CannotBeSaid,
        }
    }
}

/// One figure with its target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rate {
    /// A stable word: `drills-passed`.
    pub id: &'static str,
    /// For people.
    pub title: &'static str,
    pub actual: String,
    pub target: &'static str,
    pub met: Met,
}

/// What all drills of a profile, and the backups of its cluster, add up to. Without `runs` nobody knows how these
/// ended.
pub fn rates(drills: &[Earlier], backups: &[BackupSize], runs: Option<&BackupRuns>) -> Vec<Rate> {
    let counted: Vec<&Earlier> = drills.iter().filter(|drill| !drill.planted).collect();
    let passed = counted
        .iter()
        .filter(|drill| drill.status.exit_code() == 0)
        .count();
    let restores: Vec<bool> = counted.iter().filter_map(|drill| drill.restored).collect();
    let restored = restores.iter().filter(|restored| **restored).count();
    let median = median(counted.iter().filter_map(|drill| drill.rto_ms).collect());
    let growth = growth_percent(backups);
    let made = runs.map(|runs| (runs.succeeded.len(), runs.succeeded.len() + runs.failed.len()));
    let all = |part: usize, of: usize| Met::of((of > 0).then_some(part == of));
    vec![
        Rate {
            id: "drills-passed",
            title: "Drills that passed",
            actual: share(passed, counted.len()),
            target: "100 %",
            met: all(passed, counted.len()),
        },
        Rate {
            id: "restores",
            title: "Restores that reached their target",
            actual: share(restored, restores.len()),
            target: "100 %",
            met: all(restored, restores.len()),
        },
        Rate {
            id: "recovery-time",
            title: "Recovery time, the median",
            actual: median.map_or_else(|| "nothing was measured".to_owned(), duration),
            target: "below 1 h",
            met: Met::of(median.map(|median| median < RECOVERY_TARGET_MS)),
        },
        Rate {
            id: "backup-growth",
            title: "Growth of what is backed up",
            actual: growth.map_or_else(
                || "there are no two backups a week apart".to_owned(),
                |growth| format!("{growth:+.1} % a month"),
            ),
            target: "below 10 % a month",
            met: Met::of(growth.map(|growth| growth < GROWTH_TARGET_PERCENT)),
        },
        Rate {
            id: "backups",
            title: "Backups of the last 30 days that succeeded",
            actual: made.map_or_else(|| "could not be read".to_owned(), |(part, of)| share(part, of)),
            target: "100 %",
            met: made.map_or(Met::CannotBeSaid, |(part, of)| all(part, of)),
        },
    ]
}

fn share(part: usize, of: usize) -> String {
    match of {
        0 => "there were none".to_owned(),
        // Never rounded up to all of them.
        of => format!("{part} of {of} ({} %)", part * 100 / of),
    }
}

fn median(mut values: Vec<u64>) -> Option<u64> {
    values.sort_unstable();
    let upper = *values.get(values.len() / 2)?;
    match values.len().is_multiple_of(2) {
        false => Some(upper),
        true => {
            let lower = *values.get((values.len() / 2).checked_sub(1)?)?;
            Some(lower.midpoint(upper))
        }
    }
}

/// The two backups that growth is told from: the oldest and the newest.
pub fn growth_ends(backups: &[BackupSize]) -> Option<(&BackupSize, &BackupSize)> {
    let first = backups.iter().min_by_key(|backup| backup.finished_at)?;
    let last = backups.iter().max_by_key(|backup| backup.finished_at)?;
    let days = last.finished_at.duration_since(first.finished_at).as_secs_f64() / DAY_SECONDS;
    (days >= GROWTH_DAYS_MIN && first.bytes > 0).then_some((first, last))
}

/// By how many per cent the size grows in a month, at the rate between the oldest and the newest backup.
fn growth_percent(backups: &[BackupSize]) -> Option<f64> {
    let (first, last) = growth_ends(backups)?;
    let days = last.finished_at.duration_since(first.finished_at).as_secs_f64() / DAY_SECONDS;
    let percent = ((last.bytes as f64 / first.bytes as f64).powf(MONTH_DAYS / days) - 1.0) * 100.0;
    percent.is_finite().then_some(percent)
}

#[cfg(test)]
mod tests {
    use super::*;
    use drill::Status;

    fn at(day: i64) -> Timestamp {
        let start: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        start.checked_add(SignedDuration::from_hours(24 * day)).unwrap()
    }

    #[test]
    fn a_rising_line_crosses_the_objective_on_the_day_that_it_says() {
        let trend = trend(&[(at(0), 10.0), (at(10), 20.0), (at(20), 30.0)]).unwrap();
        assert!((trend.per_day - 1.0).abs() < 1e-9 && (trend.last - 30.0).abs() < 1e-9);
        assert_eq!(trend.forecast(40.0), Forecast::On(at(30)));
        assert_eq!(trend.forecast(29.0), Forecast::Missed);
        assert_eq!(trend.forecast(1e9), Forecast::Beyond);
    }

    #[test]
    fn the_line_is_that_of_least_squares() {
        // Through (0, 1), (1, 3), (2, 2), (3, 5): slope 1.1, intercept 1.1.
        let values = [(at(0), 1.0), (at(1), 3.0), (at(2), 2.0), (at(3), 5.0)];
        let trend = trend(&values).unwrap();
        assert!((trend.per_day - 1.1).abs() < 1e-9, "{trend:?}");
        assert!((trend.last - 4.4).abs() < 1e-9, "{trend:?}");
    }

    #[test]
    fn nothing_is_foretold_from_two_drills_or_from_one_moment() {
        assert_eq!(trend(&[]), None);
        assert_eq!(trend(&[(at(0), 1.0), (at(1), 2.0)]), None);
        assert_eq!(trend(&[(at(0), 1.0), (at(0), 2.0), (at(0), 3.0)]), None);
        assert_eq!(trend(&[(at(0), 1.0), (at(1), f64::NAN), (at(2), 3.0)]), None);
        let falling = trend(&[(at(0), 3.0), (at(1), 2.0), (at(2), 1.0)]).unwrap();
        assert_eq!(falling.forecast(5.0), Forecast::Never);
    }

    fn drill(status: Status, restored: Option<bool>, rto_ms: Option<u64>) -> Earlier {
        Earlier {
            drill: "pitr_drill_20260101T000000Z".into(),
            profile: "shop".into(),
            started_at: at(0),
            status,
            rto_ms,
            rpo_seconds: None,
            restored,
            planted: false,
        }
    }

    fn size(day: i64, bytes: u64) -> BackupSize {
        BackupSize {
            backup: format!("day-{day}"),
            finished_at: at(day),
            bytes,
        }
    }

    fn of(drills: &[Earlier], backups: &[BackupSize]) -> Vec<(String, Met)> {
        let rates = rates(drills, backups, None);
        rates.into_iter().map(|rate| (rate.actual, rate.met)).collect()
    }

    #[test]
    fn rates_are_shares_of_what_was_recorded_and_met_only_where_all_of_it_is() {
        let minutes = |minutes: u64| Some(minutes * 60_000);
        let good = drill(Status::Passed, Some(true), minutes(10));
        let observed = drill(Status::PassedWithObservations, Some(true), minutes(30));
        let seen = of(&[good.clone(), observed.clone()], &[]);
        assert_eq!(seen[0], ("2 of 2 (100 %)".into(), Met::Met));
        assert_eq!(seen[1], ("2 of 2 (100 %)".into(), Met::Met));
        assert_eq!(seen[2], ("20 min".into(), Met::Met));
        // A copy that stands at its target with other rows: the restore succeeded, the drill did not.
        let differs = drill(Status::Failed, Some(true), minutes(70));
        let broken = drill(Status::Failed, Some(false), None);
        // Stopped before it could be told: no restore that failed.
        let stopped = drill(Status::Aborted, None, None);
        let seen = of(&[good, observed, differs, broken, stopped], &[]);
        assert_eq!(seen[0], ("2 of 5 (40 %)".into(), Met::NotMet));
        assert_eq!(seen[1], ("3 of 4 (75 %)".into(), Met::NotMet));
        assert_eq!(seen[2], ("30 min".into(), Met::Met));
        let slow = drill(Status::Passed, Some(true), minutes(60));
        assert_eq!(of(&[slow], &[])[2].1, Met::NotMet, "below, and not at");
    }

    #[test]
    fn a_share_of_almost_all_is_not_rounded_up_and_drills_of_the_drill_do_not_count() {
        let mut drills = vec![drill(Status::Passed, Some(true), None); 999];
        drills.push(drill(Status::Failed, Some(false), None));
        assert_eq!(of(&drills, &[])[0], ("999 of 1000 (99 %)".into(), Met::NotMet));
        let mut planted = drill(Status::Failed, Some(false), Some(1));
        planted.planted = true;
        let seen = of(&[planted], &[]);
        for (at, words) in ["there were none", "there were none", "nothing was measured"]
            .into_iter()
            .enumerate()
        {
            assert_eq!(seen[at], (words.into(), Met::CannotBeSaid));
        }
    }

    #[test]
    fn backups_that_failed_count_and_unread_records_are_no_success() {
        let of = |runs: Option<&BackupRuns>| {
            let rates = rates(&[], &[], runs);
            let rate = rates.into_iter().find(|rate| rate.id == "backups").unwrap();
            assert!(
                rate.title.contains(&BACKUP_RUNS_DAYS.to_string()),
                "{}",
                rate.title
            );
            (rate.actual, rate.met)
        };
        assert_eq!(of(None), ("could not be read".into(), Met::CannotBeSaid));
        let mut runs = BackupRuns::default();
        assert_eq!(of(Some(&runs)), ("there were none".into(), Met::CannotBeSaid));
        runs.succeeded = (1..30).map(|day| format!("day-{day}")).collect();
        assert_eq!(of(Some(&runs)), ("29 of 29 (100 %)".into(), Met::Met));
        runs.failed = vec!["action_1".into()];
        assert_eq!(of(Some(&runs)), ("29 of 30 (96 %)".into(), Met::NotMet));
        runs.succeeded.clear();
        assert_eq!(of(Some(&runs)), ("0 of 1 (0 %)".into(), Met::NotMet));
    }

    #[test]
    fn growth_is_told_from_backups_a_week_apart_and_from_nothing_less() {
        let growth = |sizes: &[BackupSize]| of(&[], sizes)[3].clone();
        let none = || {
            (
                "there are no two backups a week apart".to_owned(),
                Met::CannotBeSaid,
            )
        };
        assert_eq!(growth(&[]), none());
        assert_eq!(growth(&[size(0, 100), size(6, 200)]), none());
        assert_eq!(
            growth(&[size(0, 0), size(60, 200)]),
            none(),
            "nothing to grow from"
        );
        // Twice the size in 60.88 days is half as much again and a bit in each month.
        let (words, met) = growth(&[size(61, 200), size(30, 500), size(0, 100)]);
        assert_eq!((words.as_str(), met), ("+41.3 % a month", Met::NotMet));
        assert_eq!(growth(&[size(0, 100), size(30, 105)]).1, Met::Met);
        let (words, met) = growth(&[size(0, 100), size(7, 98)]);
        assert!(words.starts_with('-') && met == Met::Met, "{words}");
    }
}
