//! The configuration's value types: lengths of time as people write them, and strings without their passwords.

use std::time::Duration;

use serde::de::{Deserialize, Deserializer, Error as _};

/// `"30 days"`, `"90 min"`, `"1 h 30 min"`: a length of time, with the text that said so. A day has 24 hours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Length {
    pub text: String,
    pub duration: Duration,
}

impl Length {
    /// Nothing for text that is not a positive length of time (months and years have no fixed length).
    pub fn parse(text: &str) -> Option<Length> {
        let span: jiff::Span = text.trim().parse().ok()?;
        if span.is_negative() || span.get_months() != 0 || span.get_years() != 0 {
            return None;
        }
        let duration = span.to_duration(jiff::SpanRelativeTo::days_are_24_hours()).ok()?;
        Some(Length {
            text: text.to_owned(),
            duration: duration.try_into().ok()?,
        })
    }
}

impl<'de> Deserialize<'de> for Length {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Length::parse(&text).ok_or_else(|| {
            D::Error::custom(format!(
                "{text:?} is not a length of time such as \"30 days\" or \"90 min\""
            ))
        })
    }
}

/// `"128 MB"`: bytes in PostgreSQL's units, of which each is 1024 of the one before. Nothing for other text.
pub fn parse_bytes(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at_checked(digits)?;
    let shift = match unit.trim() {
        "" | "B" => 0,
        "kB" => 10,
        "MB" => 20,
        "GB" => 30,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(1 << shift)
}

/// A connection string as it may be shown: the password of `key=value` and of URI form is blotted out.
pub fn without_password(connection: &str) -> String {
    if connection.starts_with("postgres://") || connection.starts_with("postgresql://") {
        return without_url_password(connection);
    }
    let lower = connection.to_ascii_lowercase();
    let mut shown = String::new();
    let mut from = 0;
    // A setting's name, or a word in the value of another: a user may be called so.
    while let Some(found) = lower[from..].find("password") {
        let begin = from + found;
        let end = begin + "password".len();
        shown.push_str(&connection[from..begin]);
        from = match connection[end..].trim_start().strip_prefix('=') {
            Some(value) => {
                shown.push_str("password=***");
                connection.len() - after_value(value.trim_start()).len()
            }
            None => {
                shown.push_str(&connection[begin..end]);
                end
            }
        };
    }
    shown + &connection[from..]
}

/// What stands behind the value that a text begins with.
fn after_value(text: &str) -> &str {
    let mut escaped = false;
    let mut in_quotes = false;
    for (index, c) in text.char_indices() {
        if std::mem::take(&mut escaped) {
            continue;
        }
        match c {
            '\\' => escaped = true,
            '\'' if index == 0 => in_quotes = true,
            '\'' if in_quotes => return &text[index + 1..],
            c if !in_quotes && c.is_whitespace() => return &text[index..],
            _ => {}
        }
    }
    ""
}

/// A URL as it may be shown: the password between user and host, or in the query, is blotted out.
pub fn without_url_password(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else {
        return url.to_owned();
    };
    // As libpq: user and password reach to an @ before the first slash, whatever else stands there.
    let (authority, _) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let (user, rest) = match authority.rfind('@') {
        Some(at) => (&rest[..at], &rest[at..]),
        None => ("", rest),
    };
    let user = match user.split_once(':') {
        Some((user, _)) => format!("{user}:***"),
        None => user.to_owned(),
    };
    let (host, tail) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    let authority = format!("{user}{host}");
    let tail = match tail.split_once('?') {
        Some((path, query)) => {
            let pairs: Vec<String> = query
                .split('&')
                .map(|pair| match pair.split_once('=') {
                    // A name may be percent-encoded.
                    Some((key, _)) if key.contains('%') || key.to_ascii_lowercase().contains("password") => {
                        format!("{key}=***")
                    }
                    _ => pair.to_owned(),
                })
                .collect();
            format!("{path}?{}", pairs.join("&"))
        }
        None => tail.to_owned(),
    };
    format!("{scheme}://{authority}{tail}")
}
