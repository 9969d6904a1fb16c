//! What some checks saw, beyond a sentence. Names, numbers and digests; never a value of a row.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{CheckResult, Side};

/// What kind of thing a check looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Category {
    /// The recovery itself: targets, brackets, markers.
    Recovery,
    /// Whether the copy is whole: page checksums, amcheck, indexes, foreign keys.
    Integrity,
    /// Whether the rows are those that should be there.
    Data,
    /// The application: endpoints, smoke tests.
    Application,
    /// How fast something answers.
    Performance,
    /// Times and losses against what was agreed.
    Objective,
    /// That production was neither reached nor harmed.
    Safety,
}

/// Details of a check.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum CheckDetail {
    /// An endpoint, asked before and after.
    Http(HttpDetail),
    /// Results of tests.
    Junit(JunitDetail),
    /// How long answers took.
    Latency(LatencyDetail),
    /// Rows before and after.
    RowCounts(RowCountsDetail),
    /// Rows that refer to nothing.
    Orphans(OrphansDetail),
    /// A program that was run.
    Command(CommandDetail),
    /// The same point from two versions of the backup.
    Versions(VersionsDetail),
}

/// An endpoint of the application.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HttpDetail {
    /// The path below the base: `/healthz`.
    pub path: String,
    /// The base without a password and without a query.
    pub base: String,
    /// The status that is expected.
    pub expected_status: u16,
    /// What is expected of the answer's JSON.
    #[serde(default)]
    pub values: Vec<HttpExpectation>,
    /// Before the copy was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<HttpSeen>,
    /// After it was ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<HttpSeen>,
}

/// One value in the answer's JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HttpExpectation {
    /// For people and for the report's row: `migrations_current`.
    pub name: String,
    /// JSON pointers (RFC 6901), the first that exists is taken: `/migrations_current`,
    /// `/database/migrations_current`.
    pub pointers: Vec<String>,
    /// Any of these will do: `ok`, `ready`, `true`.
    pub accepted: Vec<String>,
}

/// What an endpoint answered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HttpSeen {
    /// When.
    pub at: Timestamp,
    /// The status; absent without an answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// One for each expectation, in their order: the value when it is a truth value, `null`, or a word of health
    /// (`ok`, `ready`, `degraded`); else how long it is.
    #[serde(default)]
    pub values: Vec<String>,
    /// Whether everything was as expected.
    pub as_expected: bool,
    /// Why there was no answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Milliseconds to the whole answer.
    pub duration_ms: u64,
    /// Tries until this answer.
    #[serde(default)]
    pub tries: u32,
}

/// Results of tests by category.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct JunitDetail {
    /// Files that were read.
    pub files: u32,
    /// In order of name.
    pub categories: Vec<JunitCategory>,
    /// Names of tests that failed, at most eight.
    #[serde(default)]
    pub failed: Vec<String>,
}

/// One category of tests.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct JunitCategory {
    /// `API`, `auth`, as the profile or the file names it.
    pub name: String,
    /// Tests that were run.
    pub run: u32,
    /// Of these, so many passed.
    pub passed: u32,
    /// So many failed or ended with an error.
    pub failed: u32,
    /// Tests that were skipped (not counted as run).
    pub skipped: u32,
}

/// How long answers took.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LatencyDetail {
    /// The endpoint's path, or the query's name.
    pub what: String,
    /// How often it was asked.
    pub samples: u32,
    /// Half of the answers came within this.
    pub p50_ms: f64,
    /// 95 of 100 answers came within this.
    pub p95_ms: f64,
    /// The slowest.
    pub max_ms: f64,
    /// What is allowed for 95 of 100.
    pub limit_ms: f64,
}

/// Rows before and after.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct RowCountsDetail {
    /// In order of database and name.
    pub tables: Vec<RowCount>,
    /// How the variance is bounded, as a sentence.
    pub bound: String,
}

/// One table's rows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RowCount {
    /// Database.
    pub database: String,
    /// `schema.table`.
    pub table: String,
    /// In production before the drill.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<u64>,
    /// In the copy at the target.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<u64>,
    /// The least that the copy may hold, from the WAL between the two.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub least: Option<u64>,
    /// The most that it may hold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub most: Option<u64>,
    /// What follows.
    pub result: CheckResult,
}

/// Foreign keys and the rows that break them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OrphansDetail {
    /// Foreign keys that were looked at.
    pub foreign_keys: u64,
    /// Those with rows that refer to nothing.
    #[serde(default)]
    pub broken: Vec<ForeignKeyFacts>,
    /// `database.schema.table.name` of foreign keys that are NOT VALID: PostgreSQL never checked their old rows.
    #[serde(default)]
    pub not_valid: Vec<String>,
    /// Those that could not be looked at, with the reason.
    #[serde(default)]
    pub not_seen: Vec<String>,
}

/// One foreign key that does not hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForeignKeyFacts {
    /// `database.schema.table.name`.
    pub name: String,
    /// Rows that refer to nothing.
    pub orphans: u64,
    /// Whether it is NOT VALID: then orphans may be as old as the key.
    pub not_valid: bool,
}

/// A program that was run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommandDetail {
    /// Its first word; arguments are not recorded, they may hold a password.
    pub program: String,
    /// Names of the variables that it was given.
    pub environment: Vec<String>,
    /// Whether it ran outside of the quarantine.
    pub outside: bool,
    /// Its exit code; absent when it was ended, by the limit or by a signal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// Its time limit.
    pub limit_ms: u64,
}

/// The same LSN, restored from two versions of the backup.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionsDetail {
    /// The drill's backup.
    pub backup: String,
    /// The other one.
    pub other_backup: String,
    /// Where both stood.
    pub lsn: String,
    /// Keyed digests of every relation.
    pub tables: Vec<VersionsOfTable>,
}

/// One relation in both.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionsOfTable {
    /// Database.
    pub database: String,
    /// `schema.table`.
    pub table: String,
    /// From the drill's backup.
    pub this: Side,
    /// From the other one.
    pub other: Side,
}
