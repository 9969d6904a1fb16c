//! How recovery changes from drill to drill: a straight line through what was measured, and when it crosses what was
//! agreed.
//!
//! Invariant: nothing is foretold from fewer than three drills, or from drills that all lie at one moment.

use jiff::{SignedDuration, Timestamp};

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

#[cfg(test)]
mod tests {
    use super::*;

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
}
