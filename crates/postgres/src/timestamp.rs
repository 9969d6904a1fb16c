//! PostgreSQL's `timestamptz` as it stands in WAL records: microseconds since 2000-01-01 00:00:00 UTC.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Microseconds from 1970-01-01 to 2000-01-01, both UTC.
const POSTGRES_EPOCH_UNIX_MICROSECONDS: i64 = 946_684_800_000_000;

/// A point in time (`TimestampTz`): microseconds since 2000-01-01 00:00:00 UTC.
///
/// Text: `2026-01-25 14:30:00.123456+00`, which PostgreSQL accepts as `recovery_target_time`. JSON: RFC 3339.
/// A value outside the years -9999 to 9999 is shown as the nearest of them; the number itself is kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// The microsecond that holds `time` (rounded down).
    pub fn from_jiff(time: jiff::Timestamp) -> Self {
        // A jiff timestamp lies within the years -9999 to 9999, far inside an i64 of microseconds.
        let nanoseconds = time.as_nanosecond().div_euclid(1000);
        let unix = i64::try_from(nanoseconds).unwrap_or(i64::MAX);
        Timestamp(unix.saturating_sub(POSTGRES_EPOCH_UNIX_MICROSECONDS))
    }

    /// The same point in time; saturates at the ends of what jiff can hold.
    pub fn to_jiff(self) -> jiff::Timestamp {
        let unix = self.0.saturating_add(POSTGRES_EPOCH_UNIX_MICROSECONDS);
        let end = if unix < 0 {
            jiff::Timestamp::MIN
        } else {
            jiff::Timestamp::MAX
        };
        jiff::Timestamp::from_microsecond(unix).unwrap_or(end)
    }
}

impl From<jiff::Timestamp> for Timestamp {
    fn from(time: jiff::Timestamp) -> Self {
        Timestamp::from_jiff(time)
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = self.to_jiff().to_zoned(jiff::tz::TimeZone::UTC);
        let mut text = time.strftime("%Y-%m-%d %H:%M:%S").to_string();
        let microseconds = time.subsec_nanosecond() / 1000;
        if microseconds != 0 {
            let fraction = format!(".{microseconds:06}");
            text.push_str(fraction.trim_end_matches('0'));
        }
        text.push_str("+00");
        f.pad(&text)
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.collect_str(&self.to_jiff())
        } else {
            serializer.serialize_i64(self.0)
        }
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            let text = String::deserialize(deserializer)?;
            text.parse::<jiff::Timestamp>()
                .map(Timestamp::from_jiff)
                .map_err(de::Error::custom)
        } else {
            i64::deserialize(deserializer).map(Timestamp)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shown_as_postgresql_shows_it_in_utc() {
        assert_eq!(Timestamp(0).to_string(), "2000-01-01 00:00:00+00");
        let time: jiff::Timestamp = "2026-01-25T14:30:00.123456789Z".parse().unwrap();
        assert_eq!(
            Timestamp::from_jiff(time).to_string(),
            "2026-01-25 14:30:00.123456+00"
        );
        assert_eq!(Timestamp(500_000).to_string(), "2000-01-01 00:00:00.5+00");
        assert_eq!(Timestamp(-1).to_string(), "1999-12-31 23:59:59.999999+00");
    }

    #[test]
    fn the_ends_saturate_and_do_not_panic() {
        assert_eq!(Timestamp(i64::MAX).to_jiff(), jiff::Timestamp::MAX);
        assert_eq!(Timestamp(i64::MIN).to_jiff(), jiff::Timestamp::MIN);
        let _ = Timestamp(i64::MAX).to_string();
        let _ = Timestamp(i64::MIN).to_string();
        let _ = Timestamp::from_jiff(jiff::Timestamp::MIN);
        let _ = Timestamp::from_jiff(jiff::Timestamp::MAX);
    }

    #[test]
    fn every_microsecond_survives_the_way_there_and_back() {
        for microseconds in [-1, 0, 1, 822_580_200_123_456, -999_999_999] {
            assert_eq!(
                Timestamp::from_jiff(Timestamp(microseconds).to_jiff()),
                Timestamp(microseconds)
            );
        }
    }
}
