//! Values as words: amounts and times for people, and texts in which nothing is markup.
//! Invariant: no value can break a table or become markup of another kind.

use std::fmt::Write;

use drill::facts::CheckResult;
use jiff::Timestamp;

/// A value as the content of a cell: one line, without bars.
pub fn cell(text: &str) -> String {
    let one_line: Vec<&str> = text.split_whitespace().collect();
    let text = one_line.join(" ");
    if text.is_empty() {
        "-".into()
    } else {
        let mut escaped = String::with_capacity(text.len());
        for character in text.chars() {
            if matches!(character, '\\' | '|' | '<' | '[' | '`') {
                escaped.push('\\');
            }
            escaped.push(character);
        }
        escaped
    }
}

/// The document's own words: what stands between backticks is code there.
pub fn own_words(text: &str) -> String {
    text.replace('|', "\\|").replace('<', "\\<")
}

/// A value in code style.
pub fn code(text: &str) -> String {
    if text.is_empty() {
        return "-".into();
    }
    let one_line: Vec<&str> = text.split_whitespace().collect();
    format!("`{}`", one_line.join(" ").replace('`', "'").replace('|', "\\|"))
}

/// Lines as they are, in a fence that none of them can close.
pub fn fenced(out: &mut String, lines: &[String]) {
    let longest = lines
        .iter()
        .flat_map(|line| line.split(|c| c != '`'))
        .map(str::len)
        .max()
        .unwrap_or(0);
    let fence = "`".repeat(longest.max(2) + 1);
    let _ = writeln!(out, "{fence}text");
    for line in lines {
        let _ = writeln!(out, "{line}");
    }
    let _ = write!(out, "{fence}\n\n");
}

/// Bytes for people, in powers of 1024.
pub fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["KB", "MB", "GB", "TB"];
    let mut value = bytes as f64;
    let mut unit = "bytes";
    for next in UNITS {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    if unit == "bytes" {
        format!("{bytes} bytes")
    } else {
        format!("{value:.1} {unit}")
    }
}

/// Milliseconds for people.
pub fn duration(ms: u64) -> String {
    let seconds = ms / 1000;
    match seconds {
        0..=9 => format!("{}.{:03} s", seconds, ms % 1000),
        10..=119 => format!("{seconds} s"),
        120..=7199 if seconds.is_multiple_of(60) => format!("{} min", seconds / 60),
        120..=7199 => format!("{} min {} s", seconds / 60, seconds % 60),
        _ => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
    }
}

/// `2026-01-25`.
pub fn day(time: Timestamp) -> String {
    time.strftime("%Y-%m-%d").to_string()
}

/// `14:30:00`, in UTC.
pub fn clock(time: Timestamp) -> String {
    time.strftime("%H:%M:%S").to_string()
}

/// `2026-01-25 14:30:00 UTC`.
pub fn instant(time: Timestamp) -> String {
    time.strftime("%Y-%m-%d %H:%M:%S UTC").to_string()
}

/// `Q1 2026`.
pub fn quarter(time: Timestamp) -> String {
    let zoned = time.to_zoned(jiff::tz::TimeZone::UTC);
    format!("Q{} {}", (zoned.month() - 1) / 3 + 1, zoned.year())
}

/// `< 90 min`: a limit, in whole minutes where it is some.
pub fn limit(seconds: u64) -> String {
    if seconds > 0 && seconds.is_multiple_of(60) {
        format!("< {} min", seconds / 60)
    } else {
        format!("< {seconds} sec")
    }
}

/// Milliseconds between two moments.
pub fn between_ms(from: Timestamp, to: Timestamp) -> u64 {
    u64::try_from(to.duration_since(from).as_millis()).unwrap_or(0)
}

/// `T+2:05`: minutes and seconds since the start.
pub fn since(from: Timestamp, to: Timestamp) -> String {
    let seconds = between_ms(from, to) / 1000;
    format!("T+{}:{:02}", seconds / 60, seconds % 60)
}

/// The word in a "Pass" column.
pub fn yes(result: CheckResult) -> String {
    match result {
        CheckResult::Pass => "YES".into(),
        CheckResult::Fail => "NO".into(),
        other => other.to_string(),
    }
}

/// An age in seconds for people.
pub fn age(seconds: i64) -> String {
    match seconds.max(0) {
        seconds @ 0..=9 => format!("{seconds} s"),
        seconds => duration(seconds.unsigned_abs().saturating_mul(1000)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_value_breaks_a_table_or_becomes_markup() {
        assert_eq!(cell("a|b\nc"), "a\\|b c");
        assert_eq!(cell(" \n"), "-");
        assert_eq!(cell("<b>![x](y)`"), "\\<b>!\\[x](y)\\`");
        assert_eq!(code("a`b|"), "`a'b\\|`");
    }

    #[test]
    fn a_fence_is_longer_than_what_it_holds() {
        let mut out = String::new();
        fenced(&mut out, &["````".into()]);
        assert_eq!(out, "`````text\n````\n`````\n\n");
    }

    #[test]
    fn amounts_are_readable() {
        assert_eq!(bytes(512), "512 bytes");
        assert_eq!(bytes(16 << 20), "16.0 MB");
        assert_eq!(duration(1_234), "1.234 s");
        assert_eq!(duration(125_000), "2 min 5 s");
        assert_eq!(age(93_600), "26 h 0 min");
        assert_eq!((limit(5400), limit(90)), ("< 90 min".into(), "< 90 sec".into()));
        let (start, end) = ("2026-01-25T14:30:00Z", "2026-01-25T14:32:05.9Z");
        let (start, end): (Timestamp, Timestamp) = (start.parse().unwrap(), end.parse().unwrap());
        assert_eq!(
            (since(start, end), quarter(start)),
            ("T+2:05".into(), "Q1 2026".into())
        );
    }
}
