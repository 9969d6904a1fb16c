//! Checks of the user's own, as values: what a profile asks for beside the built-in ones.
//!
//! Invariant: a check says here all that it does, so that its definition can stand in the evidence; texts that may
//! hold a secret (a command's arguments, the values of its environment) are left out there.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};

use crate::facts::{Category, HttpExpectation};

/// One check of the user's.
#[derive(Debug, Clone, PartialEq)]
pub struct UserCheck {
    /// A stable word.
    pub id: String,
    /// What kind of thing is looked at.
    pub category: Category,
    /// Without it the drill proves nothing.
    pub required: bool,
    /// What is done.
    pub kind: CheckKind,
}

/// What a check does.
#[derive(Debug, Clone, PartialEq)]
pub enum CheckKind {
    /// One statement that gives one value.
    Sql {
        /// The connection's own if absent.
        database: Option<String>,
        /// Run in a read-only transaction in the copy.
        sql: String,
        /// The value it must give, as PostgreSQL prints it (`true` and `t` mean the same).
        expect: String,
    },
    /// Rows before and after, with what the WAL between allows.
    RowCounts {
        /// The connection's own if absent.
        database: Option<String>,
        /// `table` or `schema.table`; empty: every table of the database.
        tables: Vec<String>,
    },
    /// Every foreign key of every database.
    Orphans,
    /// The newest value of a column against the target's time.
    Freshness {
        /// The connection's own if absent.
        database: Option<String>,
        /// `table` or `schema.table`.
        table: String,
        /// Of type timestamptz, timestamp or date.
        column: String,
        /// At most so old at the target.
        within: Duration,
    },
    /// Every index is valid, and those that are named exist.
    Indexes {
        /// Of the named ones; the connection's own if absent.
        database: Option<String>,
        /// `index` or `schema.index`.
        names: Vec<String>,
    },
    /// An endpoint of the application.
    Http {
        /// Below the base: `/readyz`.
        path: String,
        /// The status.
        status: u16,
        /// What the answer's JSON holds.
        values: Vec<HttpExpectation>,
        /// The application is ready only when this answers as expected.
        readiness: bool,
    },
    /// A program.
    Command(CommandCheck),
    /// Files of test results.
    Junit {
        /// Paths; `*` stands for any part of a file's name.
        files: Vec<String>,
    },
    /// How long 95 of 100 answers take.
    Latency {
        /// What is asked.
        of: Asked,
        /// At most so long.
        p95: Duration,
        /// How often.
        samples: u32,
    },
}

/// What is timed.
#[derive(Debug, Clone, PartialEq)]
pub enum Asked {
    /// An endpoint's path.
    Endpoint(String),
    /// A statement, in this database.
    Query(Option<String>, String),
}

/// A program of the user's.
#[derive(Debug, Clone, PartialEq)]
pub struct CommandCheck {
    /// Program and arguments.
    pub command: Vec<String>,
    /// Given to it besides `PATH`, the copy's `PGHOST`, `PGPORT`, `PGUSER`, `PGDATABASE`,
    /// `API_BASE_URL` and `WEB_BASE_URL`.
    pub environment: BTreeMap<String, String>,
    /// It is ended after so long.
    pub limit: Duration,
    /// What it must end with.
    pub exit_code: i32,
}

impl UserCheck {
    /// What is looked at, as a sentence; no secrets.
    pub fn definition(&self) -> String {
        let of = |database: &Option<String>| {
            database
                .as_ref()
                .map_or(String::new(), |database| format!(" of database {database}"))
        };
        match &self.kind {
            CheckKind::Sql { sql, .. } => sql.split_whitespace().collect::<Vec<_>>().join(" "),
            CheckKind::RowCounts { database, tables } if tables.is_empty() => {
                format!(
                    "rows of every table{} in production before the drill and in the copy",
                    of(database)
                )
            }
            CheckKind::RowCounts { database, tables } => format!(
                "rows of {}{} in production before the drill and in the copy",
                tables.join(", "),
                of(database)
            ),
            CheckKind::Orphans => {
                "rows that refer to nothing, by every foreign key of every database, in the copy".into()
            }
            CheckKind::Freshness { table, column, .. } => {
                format!("the newest {column} of {table} in the copy, against the time of the target")
            }
            CheckKind::Indexes { names, .. } if names.is_empty() => {
                "every index of the copy is valid and ready".into()
            }
            CheckKind::Indexes { names, .. } => {
                format!(
                    "every index of the copy is valid and ready, among them {}",
                    names.join(", ")
                )
            }
            CheckKind::Http { path, .. } => format!("GET {path}"),
            CheckKind::Command(command) => {
                format!(
                    "the exit code of {}",
                    command.command.first().map_or("", String::as_str)
                )
            }
            CheckKind::Junit { files } => format!("the tests in {}", files.join(", ")),
            CheckKind::Latency { of, samples, .. } => match of {
                Asked::Endpoint(path) => format!("GET {path}, {samples} times"),
                Asked::Query(_, sql) => {
                    format!(
                        "{}, {samples} times",
                        sql.split_whitespace().collect::<Vec<_>>().join(" ")
                    )
                }
            },
        }
    }

    /// What should be seen.
    pub fn expected(&self) -> String {
        match &self.kind {
            CheckKind::Sql { expect, .. } => expect.clone(),
            CheckKind::RowCounts { .. } => "within what the commits between allow".into(),
            CheckKind::Orphans => "no such row".into(),
            CheckKind::Freshness { within, .. } => {
                format!("at most {} before the target", crate::profile::length(*within))
            }
            CheckKind::Indexes { .. } => "valid, ready, present".into(),
            CheckKind::Http { status, values, .. } => {
                let mut expected = status.to_string();
                for value in values {
                    expected.push_str(&format!(", {} is {}", value.name, value.accepted.join(" or ")));
                }
                expected
            }
            CheckKind::Command(command) => format!(
                "{} within {}",
                command.exit_code,
                crate::profile::length(command.limit)
            ),
            CheckKind::Junit { .. } => "every test passed, at least one was run".into(),
            CheckKind::Latency { p95, .. } => format!("95 of 100 within {} ms", p95.as_millis()),
        }
    }

    /// Whether it reaches beyond the copy and its database server.
    pub fn reaches_outside(&self) -> bool {
        matches!(
            self.kind,
            CheckKind::Http { .. }
                | CheckKind::Latency {
                    of: Asked::Endpoint(_),
                    ..
                }
        )
    }
}

impl Serialize for UserCheck {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("id", &self.id)?;
        map.serialize_entry("category", &self.category)?;
        map.serialize_entry("required", &self.required)?;
        map.serialize_entry("definition", &self.definition())?;
        map.serialize_entry("expected", &self.expected())?;
        if let CheckKind::Command(command) = &self.kind {
            // Arguments may hold a password: whether they are the same is told by their digest.
            let digest = blake3::hash(command.command.join("\0").as_bytes())
                .to_hex()
                .to_string();
            map.serialize_entry("command_digest", &digest)?;
            map.serialize_entry("environment", &command.environment.keys().collect::<Vec<_>>())?;
        }
        map.end()
    }
}
