//! Where each value of the configuration file stands: file and line, by the key's full path.
//!
//! Used for `config show` and for error messages, so that both name the line a person has to look at.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use diagnostic::{Error, Result};
use toml::de::{DeTable, DeValue};

/// One line of `config show`.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Shown {
    pub key: String,
    pub value: String,
    /// `FILE:LINE` or `default`.
    pub origin: String,
}

/// The lines of a file's keys, counted from 1.
#[derive(Debug, Clone)]
pub struct Origins {
    path: PathBuf,
    lines: BTreeMap<String, usize>,
}

impl Origins {
    /// Reads the file's shape. Error code: `config-syntax`.
    pub fn read(path: &Path, text: &str) -> Result<Origins> {
        let mut origins = Origins {
            path: path.to_path_buf(),
            lines: BTreeMap::new(),
        };
        let table = DeTable::parse(text).map_err(|error| origins.syntax_error(text, &error))?;
        origins.walk(text, "", table.get_ref());
        Ok(origins)
    }

    fn walk(&mut self, text: &str, prefix: &str, table: &DeTable<'_>) {
        for (key, value) in table {
            let path = if prefix.is_empty() {
                key.get_ref().to_string()
            } else {
                format!("{prefix}.{}", key.get_ref())
            };
            self.lines.insert(path.clone(), line_of(text, key.span().start));
            self.walk_value(text, &path, value.get_ref());
        }
    }

    fn walk_value(&mut self, text: &str, path: &str, value: &DeValue<'_>) {
        match value {
            DeValue::Table(table) => self.walk(text, path, table),
            DeValue::Array(items) => {
                for (index, item) in items.iter().enumerate() {
                    if let DeValue::Table(table) = item.get_ref() {
                        let path = format!("{path}[{index}]");
                        self.lines.insert(path.clone(), line_of(text, item.span().start));
                        self.walk(text, &path, table);
                    }
                }
            }
            _ => {}
        }
    }

    /// `FILE:LINE` for a key that the file has, else `default`.
    pub fn origin(&self, key: &str) -> String {
        match self.lines.get(key) {
            Some(line) => format!("{}:{line}", self.path.display()),
            None => "default".to_owned(),
        }
    }

    /// `FILE, line N` of the key or of the nearest section around it, for messages.
    pub fn place(&self, key: &str) -> String {
        let mut key = key;
        loop {
            if let Some(line) = self.lines.get(key) {
                return format!("{}, line {line}", self.path.display());
            }
            match key.rsplit_once('.') {
                Some((outer, _)) => key = outer,
                None => return self.path.display().to_string(),
            }
        }
    }

    /// The section whose keys include the position: the deepest `[a.b]` at or before that line.
    fn section_at(&self, line: usize) -> Option<&str> {
        self.lines
            .iter()
            .filter(|(_, at)| **at == line)
            .map(|(key, _)| key.as_str())
            .max_by_key(|key| key.len())
            .and_then(|key| key.rsplit_once('.'))
            .map(|(section, _)| section)
    }

    /// What the TOML reader found wrong, in our words: file, line, and the nearest key that exists.
    pub fn syntax_error(&self, text: &str, error: &toml::de::Error) -> Error {
        let line = error.span().map(|span| line_of(text, span.start));
        let place = match line {
            Some(line) => format!("{}, line {line}", self.path.display()),
            None => self.path.display().to_string(),
        };
        let message = error.message().trim();
        let Some((unknown, expected)) = unknown_field(message) else {
            let shown = line.and_then(|line| text.lines().nth(line.saturating_sub(1)));
            if shown.is_some_and(may_hold_a_secret) {
                // The reader's message may repeat the value.
                let message = format!("{place}: the value is not of the kind that is expected there");
                return Error::usage("config-syntax", message).hint(
                    "A secret has no place in this file, only the name of the file or command that holds it.",
                );
            }
            let error = Error::usage("config-syntax", format!("{place}: {}", first_line(message)));
            return match shown {
                Some(shown) => error.detail(format!("The line reads: {}", shown.trim())),
                _ => error,
            };
        };
        let section = line.and_then(|line| self.section_at(line));
        let inside = section
            .map(|section| format!(" in [{section}]"))
            .unwrap_or_default();
        let error = Error::usage(
            "config-syntax",
            format!("{place}: unknown key {unknown:?}{inside}"),
        );
        match super::nearest(unknown, expected.iter().copied()) {
            Some(nearest) => error.hint(format!("Did you mean {nearest:?}?")),
            None => error.hint(format!("The keys there are: {}.", expected.join(", "))),
        }
    }
}

/// Somebody may have written a secret where only its place belongs.
fn may_hold_a_secret(line: &str) -> bool {
    let line = line.to_ascii_lowercase();
    ["password", "secret", "credential", "token", "access_key"]
        .iter()
        .any(|word| line.contains(word))
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or(text)
}

/// Line number, from 1, of a byte position.
fn line_of(text: &str, position: usize) -> usize {
    text.bytes().take(position).filter(|b| *b == b'\n').count() + 1
}

/// Takes serde's words apart: unknown field `x`, expected one of `a`, `b`.
fn unknown_field(message: &str) -> Option<(&str, Vec<&str>)> {
    let rest = message.strip_prefix("unknown field `")?;
    let (unknown, rest) = rest.split_once('`')?;
    let expected = rest.split('`').skip(1).step_by(2).collect();
    Some((unknown, expected))
}
