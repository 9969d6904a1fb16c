//! Tables and texts in Markdown. Invariant: no value can break a table or become markup of another kind.

use std::fmt::Write;

/// A value as the content of a cell: one line, without bars.
pub fn cell(text: &str) -> String {
    let one_line: Vec<&str> = text.split_whitespace().collect();
    let text = one_line.join(" ");
    if text.is_empty() {
        "-".into()
    } else {
        text.replace('\\', "\\\\").replace('|', "\\|")
    }
}

/// A value in code style.
pub fn code(text: &str) -> String {
    if text.is_empty() {
        return "-".into();
    }
    format!("`{}`", cell(text).replace('`', "'"))
}

/// A table. Cells are put in as they are: use [`cell`] or [`code`] for values.
pub fn table<const N: usize>(out: &mut String, head: [&str; N], rows: impl IntoIterator<Item = [String; N]>) {
    let _ = writeln!(out, "| {} |", head.join(" | "));
    let _ = writeln!(out, "|{}", "------|".repeat(N));
    for row in rows {
        let _ = writeln!(out, "| {} |", row.join(" | "));
    }
    out.push('\n');
}

/// A heading with its blank lines.
pub fn heading(out: &mut String, level: usize, text: &str) {
    let _ = write!(out, "{} {text}\n\n", "#".repeat(level));
}

/// Items of a list, or `- None`.
pub fn list(out: &mut String, items: &[String]) {
    if items.is_empty() {
        out.push_str("- None\n\n");
        return;
    }
    for item in items {
        let _ = writeln!(out, "- {}", cell(item));
    }
    out.push('\n');
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
        120..=7199 => format!("{} min {} s", seconds / 60, seconds % 60),
        _ => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
    }
}

/// An age in seconds for people.
pub fn age(seconds: i64) -> String {
    duration(seconds.max(0).unsigned_abs().saturating_mul(1000))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_value_breaks_a_table() {
        assert_eq!(cell("a|b\nc"), "a\\|b c");
        assert_eq!(cell(" \n"), "-");
        assert_eq!(code("a`b|"), "`a'b\\|`");
        let mut out = String::new();
        table(&mut out, ["A", "B"], [[cell("x"), cell("")]]);
        assert_eq!(out, "| A | B |\n|------|------|\n| x | - |\n\n");
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
    }
}
