//! Standard output: lines for a person, one JSON value for a program.
//!
//! Invariant: a reader that goes away (`pgproof list | head -1`) ends the printing, never the work: writes to a closed
//! pipe are dropped. Nothing but results is written here; progress and errors go to standard error.

use std::io::Write;

use jiff::Timestamp;

/// One line for a person.
pub fn line(text: impl AsRef<str>) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{}", printable(text.as_ref(), true));
}

/// Text in which nothing speaks to the terminal: names of databases and tables may hold any character. Lines stay
/// lines only where `lines` says so.
pub fn printable(text: &str, lines: bool) -> String {
    let harmless = |c: char| !c.is_control() || (lines && matches!(c, '\n' | '\t'));
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            c if harmless(c) => shown.push(c),
            c => shown.extend(c.escape_default()),
        }
    }
    shown
}

/// The one JSON value of a command that was asked for `--json`.
pub fn json(value: &serde_json::Value) {
    let text = serde_json::to_string_pretty(value).unwrap_or_else(|_| "null".into());
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{text}");
    let _ = out.flush();
}

/// A notice for a person on standard error.
pub fn notice(text: impl AsRef<str>) {
    let _ = writeln!(std::io::stderr().lock(), "{}", printable(text.as_ref(), true));
}

/// A question to a person on standard error, without an end of line.
pub fn question(text: impl AsRef<str>) {
    let mut out = std::io::stderr().lock();
    let _ = write!(out, "{}", text.as_ref());
    let _ = out.flush();
}

/// A moment as PostgreSQL prints it in UTC: `2026-01-25 14:30:00.5+00`.
pub fn moment(at: Timestamp) -> String {
    postgres::Timestamp::from_jiff(at).to_string()
}

/// A length of time in the two largest units that say something: `3 d 4 h`, `2 min 5 s`, `0.8 s`.
pub fn seconds(seconds: f64) -> String {
    if !seconds.is_finite() || seconds < 0.0 {
        return format!("{seconds:.1} s");
    }
    if seconds < 10.0 {
        return format!("{seconds:.1} s");
    }
    let whole = seconds.round() as u64;
    let (days, hours, minutes, rest) = (whole / 86_400, whole / 3600 % 24, whole / 60 % 60, whole % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{rest} s"),
        (0, 0, _) => format!("{minutes} min {rest} s"),
        (0, _, _) => format!("{hours} h {minutes} min"),
        _ => format!("{days} d {hours} h"),
    }
}

/// A number of bytes with a binary unit: `512 B`, `1.5 GiB`.
pub fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// Columns for a person: each as wide as its widest cell, two blanks between, no trailing blanks.
pub fn table(header: &[&str], rows: &[Vec<String>]) {
    let rows: Vec<Vec<String>> = rows
        .iter()
        .map(|row| row.iter().map(|cell| printable(cell, false)).collect())
        .collect();
    let mut widths: Vec<usize> = header.iter().map(|cell| cell.chars().count()).collect();
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let render = |cells: Vec<&str>| {
        let mut text = String::new();
        for (cell, width) in cells.iter().zip(&widths) {
            text.push_str(cell);
            text.extend(std::iter::repeat_n(
                ' ',
                width.saturating_sub(cell.chars().count()) + 2,
            ));
        }
        text.trim_end().to_owned()
    };
    line(render(header.to_vec()));
    for row in rows {
        line(render(row.iter().map(String::as_str).collect()));
    }
}

/// `word` quoted for a POSIX shell.
pub fn shell_quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_lengths_of_time_are_rounded_for_a_person() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(1024 * 1024 - 1), "1.0 MiB");
        assert_eq!(bytes(u64::MAX), "16384.0 PiB");
        assert_eq!(seconds(0.84), "0.8 s");
        assert_eq!(seconds(59.4), "59 s");
        assert_eq!(seconds(125.0), "2 min 5 s");
        assert_eq!(seconds(100_000.0), "1 d 3 h");
    }

    #[test]
    fn a_name_cannot_speak_to_the_terminal() {
        assert_eq!(
            printable("a\x1b[2J\nb\u{9b}31m é", true),
            "a\\u{1b}[2J\nb\\u{9b}31m é"
        );
        assert_eq!(printable("two\nlines", false), "two\\nlines");
    }

    #[test]
    fn quoting_survives_a_shell() {
        assert_eq!(shell_quoted("/it's here/x"), r"'/it'\''s here/x'");
    }
}
