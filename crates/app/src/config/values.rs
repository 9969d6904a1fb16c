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
    let Some(at) = lower.find("password") else {
        return connection.to_owned();
    };
    let rest = &connection[at + "password".len()..];
    let Some(value) = rest.trim_start().strip_prefix('=') else {
        return connection.to_owned();
    };
    let value = value.trim_start();
    let mut escaped = false;
    let in_quotes = value.starts_with('\'');
    let end = value
        .char_indices()
        .skip(usize::from(in_quotes))
        .find(|(_, c)| {
            if std::mem::take(&mut escaped) {
                return false;
            }
            escaped = *c == '\\';
            if in_quotes { *c == '\'' } else { c.is_whitespace() }
        })
        .map_or(
            value.len(),
            |(index, c)| if in_quotes { index + c.len_utf8() } else { index },
        );
    let tail = without_password(&value[end..]);
    format!("{}password=***{tail}", &connection[..at])
}

/// A URL as it may be shown: the password between user and host, or in the query, is blotted out.
pub fn without_url_password(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else {
        return url.to_owned();
    };
    let (authority, tail) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    let authority = match authority.rsplit_once('@') {
        Some((user, host)) => match user.split_once(':') {
            Some((user, _)) => format!("{user}:***@{host}"),
            None => format!("{user}@{host}"),
        },
        None => authority.to_owned(),
    };
    let tail = match tail.split_once('?') {
        Some((path, query)) => {
            let pairs: Vec<String> = query
                .split('&')
                .map(|pair| match pair.split_once('=') {
                    Some((key, _)) if key.to_ascii_lowercase().contains("password") => format!("{key}=***"),
                    _ => pair.to_owned(),
                })
                .collect();
            format!("{path}?{}", pairs.join("&"))
        }
        None => tail.to_owned(),
    };
    format!("{scheme}://{authority}{tail}")
}
