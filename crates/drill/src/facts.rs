//! What a drill saw: everything that its verdict and its report are made of.
//!
//! Invariants: the facts hold no row of the user's data, no key and no password (digests of rows are keyed,
//! and the key is never kept; texts from the server are its messages, never a statement or its parameters);
//! they are complete even when the drill ends early (a step that failed is recorded as such, a check that was
//! not made is `NOT RUN` or `COULD NOT LOOK`); whatever judges or prints them needs nothing else. The version
//! changes when a reader of an older version would misread them.

mod clocks;
mod details;
mod past;
mod procedure;

use jiff::Timestamp;
use postgres::Lsn;
use serde::{Deserialize, Serialize};

pub use clocks::{ClockFacts, InstantFacts, Measure};
pub use details::{
    Category, CheckDetail, CommandDetail, ForeignKeyFacts, HttpDetail, HttpExpectation, HttpSeen,
    JunitCategory, JunitDetail, LatencyDetail, OrphansDetail, RowCount, RowCountsDetail, VersionsDetail,
    VersionsOfTable,
};
pub use past::{PointFacts, PointKind, PointWindow, StandingMarker};
pub use procedure::{
    GateFacts, ManualFacts, ManualState, ManualWhen, Person, ProfileFacts, Registration, RetryFacts,
};

/// The version of the facts that this program writes.
pub const FACTS_VERSION: u32 = 1;

/// Everything recorded about one drill.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Facts {
    /// [`FACTS_VERSION`] of the program that wrote them.
    pub version: u32,
    /// Which drill this was.
    pub identity: Identity,
    /// What was drilled, and what was left out.
    pub scope: Scope,
    /// What was to be reached.
    pub objectives: Objectives,
    /// Who took part.
    pub people: People,
    /// When the first step began.
    pub started_at: Timestamp,
    /// When the last step ended; absent while the drill runs.
    pub finished_at: Option<Timestamp>,
    /// The backup and the WAL that were restored.
    pub input: Option<Input>,
    /// What was planned, by the planner that `restore` uses.
    pub plan: Option<PlanFacts>,
    /// The point asked for, and where the copy stopped.
    pub target: TargetFacts,
    /// The steps, in the order in which they were made.
    pub steps: Vec<StepFacts>,
    /// How long the recovery took.
    pub rto: Option<Rto>,
    /// What would have been lost at the start of the drill.
    pub rpo: Option<Rpo>,
    /// The point that the drill made in production, if it made one.
    pub bracket: Option<BracketFacts>,
    /// Row digests of production and of the copy.
    pub row_proof: Option<RowProof>,
    /// The checks, with their results.
    pub checks: Vec<Check>,
    /// How the copy was kept away from production.
    pub quarantine: Option<QuarantineFacts>,
    /// Where the copy's settings differ from what `restore` would have written, and why.
    pub substitutions: Vec<Substitution>,
    /// The WAL archive before and after.
    pub archive: Option<ArchiveFacts>,
    /// Lines of the copy's server log by PostgreSQL's own processes (never by a client's session).
    pub server_log: Vec<String>,
    /// What was left behind.
    pub teardown: Option<Teardown>,
    /// What ended the drill early.
    pub failure: Option<Failure>,
    /// Faults that were planted on purpose, to see whether the drill notices.
    pub planted_faults: Vec<String>,
    /// What this drill does not prove.
    pub limits: Vec<String>,
    /// The profiles that were applied: the drill's own first.
    #[serde(default)]
    pub profiles: Vec<ProfileFacts>,
    /// The plan that was registered before the run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub registration: Option<Registration>,
    /// What was looked at before anything was restored, guards of the environment included.
    #[serde(default)]
    pub gates: Vec<GateFacts>,
    /// The moments that objectives are made of, in the order in which they were recorded.
    #[serde(default)]
    pub instants: Vec<InstantFacts>,
    /// Every objective of every profile with what was measured, the strictest first for each measure. Facts of
    /// older drills have none: there `objectives`, `rto` and `rpo` say it.
    #[serde(default)]
    pub clocks: Vec<ClockFacts>,
    /// The kind of point, and what proves it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub point: Option<PointFacts>,
    /// When the drill was interrupted and taken up again: its last step before, and the first one behind.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub interruptions: Vec<Interruption>,
    /// What people were asked to do, in the order of the profile.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub manual: Vec<ManualFacts>,
}

/// A drill whose process was gone for a while.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Interruption {
    /// When its last step before had ended.
    pub last_seen: Timestamp,
    /// When it was taken up again.
    pub resumed_at: Timestamp,
}

/// Which drill this was.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Identity {
    /// `pitr_drill_YYYYMMDDTHHMMSSZ`.
    pub drill_id: String,
    /// The profile of the configuration (`quarterly-pitr`).
    pub profile: String,
    /// `bracket` or the target as it was asked for.
    pub scenario: String,
    /// Why it was run (`schedule`, `by hand`).
    pub trigger: String,
    /// `sandbox` or `staging`.
    pub environment: String,
    /// pgproof's version.
    pub tool_version: String,
    /// The host on which the copy ran.
    pub host: Option<String>,
    /// When the next drill is due, as the caller computed it.
    pub next_due: Option<Timestamp>,
}

/// What was drilled.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Scope {
    /// The cluster's name in the configuration.
    pub cluster: String,
    /// The system identifier, in decimal.
    pub system_identifier: String,
    /// Production's `server_version`.
    pub server_version: Option<String>,
    /// The version of the program that ran the copy.
    pub copy_server_version: Option<String>,
    /// Databases whose rows were proved, in order of name.
    pub databases: Vec<String>,
    /// What was left out of the row proof, with the reason.
    pub excluded: Vec<Excluded>,
}

/// Something that a check did not look at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Excluded {
    /// A name: `shop.public.sessions`.
    pub what: String,
    /// The reason: `unlogged table: recovery empties it`.
    pub why: String,
}

/// What was to be reached.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Objectives {
    /// Recovery time objective.
    pub rto_seconds: Option<u64>,
    /// From here on the recovery time is a warning.
    pub rto_warning_seconds: Option<u64>,
    /// Recovery point objective.
    pub rpo_seconds: Option<u64>,
    /// Ids of the checks without which the drill proves nothing.
    pub required_checks: Vec<String>,
    /// Ids of the other checks that the profile asks for.
    pub requested_checks: Vec<String>,
    /// Ids of checks whose NOT RUN the profile accepts, because nothing can prove them for this kind of point.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub may_be_not_run: Vec<String>,
}

/// Who took part.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct People {
    /// Primary operator.
    pub operator: Option<String>,
    /// Secondary reviewer.
    pub reviewer: Option<String>,
    /// Everybody else, with their roles.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub others: Vec<Person>,
}

/// The backup and the WAL that were restored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Input {
    /// Where they came from.
    pub repository: String,
    /// The backup's id.
    pub backup: String,
    /// When the backup began.
    pub backup_started_at: Timestamp,
    /// When it ended.
    pub backup_finished_at: Timestamp,
    /// Seconds from its end to the start of the drill.
    pub backup_age_seconds: i64,
    /// Its start LSN.
    pub start_lsn: Lsn,
    /// Its stop LSN.
    pub stop_lsn: Lsn,
    /// The timeline that was followed.
    pub timeline: u32,
    /// Files that were restored.
    pub files: u64,
    /// Bytes that were restored (plain).
    pub bytes: u64,
    /// First WAL segment that recovery asked for.
    pub first_wal_segment: Option<String>,
    /// Last WAL segment that recovery asked for.
    pub last_wal_segment: Option<String>,
    /// WAL segments handed to recovery.
    pub wal_segments: u64,
    /// Bytes of WAL handed to recovery.
    pub wal_bytes: u64,
    /// How the objects are sealed.
    pub encryption: String,
}

/// What was planned.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PlanFacts {
    /// The plan as `--dry-run` prints it.
    pub text: String,
    /// BLAKE3 of the plan's JSON, in hex.
    pub digest: String,
    /// The plan as a value.
    pub value: serde_json::Value,
}

/// The point asked for, and where the copy stopped.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct TargetFacts {
    /// As it was asked for (`bracket`, `2026-01-25 14:30:00+00`).
    pub requested: String,
    /// One entry for each stop of the plan, in order.
    pub stops: Vec<StopFacts>,
}

/// One stop of the copy.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StopFacts {
    /// What it is for: `requested target`, `row proof of database "shop"`.
    pub purpose: String,
    /// The recovery settings that ask for it.
    pub settings: Vec<(String, String)>,
    /// How the server stopped.
    pub outcome: StopOutcome,
    /// `pg_last_wal_replay_lsn()` while it stood there.
    pub reached_lsn: Option<Lsn>,
    /// `pg_last_xact_replay_timestamp()` while it stood there, as the server printed it.
    pub reached_time: Option<String>,
    /// The server's own line about why it stopped.
    pub stop_line: Option<String>,
    /// Milliseconds from the start of the server to this stop.
    pub duration_ms: u64,
    /// Where the plan, which has read the WAL's records, says that the copy will stand. `None` for the end of the
    /// backup and the end of the archived WAL, which the server finds by itself.
    #[serde(default)]
    pub planned: Option<PlannedStop>,
}

impl StopFacts {
    /// Whether the copy stands where the plan says; `None` where either place is not known.
    pub fn stands_where_planned(&self) -> Option<bool> {
        // The server names the end of the last record that it replayed; a page's header may lie between that
        // and the next one.
        const PAGE_HEADER_BYTES_MAX: u64 = 40;
        let (planned, reached) = (self.planned?, self.reached_lsn?);
        let too_early = reached.0.saturating_add(PAGE_HEADER_BYTES_MAX) < planned.lsn.0;
        let too_late = planned.is_boundary && reached.0 > planned.lsn.0.saturating_add(PAGE_HEADER_BYTES_MAX);
        Some(!too_early && !too_late)
    }
}

/// A place in the WAL at which recovery stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedStop {
    /// Every record that begins before it is replayed.
    pub lsn: Lsn,
    /// A record begins or ends there, and none behind it is replayed. An LSN that somebody names may lie within one.
    pub is_boundary: bool,
}

/// How the server stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StopOutcome {
    /// Paused at our target.
    Paused,
    /// Paused at our target, then promoted because a check needs it.
    Promoted,
    /// Opened at the end of the archived WAL, where there is no pause.
    Opened,
    /// It did not get there.
    Failed,
    /// It was not tried.
    NotTried,
}

impl StopOutcome {
    /// Whether the copy got there.
    pub fn is_reached(self) -> bool {
        matches!(
            self,
            StopOutcome::Paused | StopOutcome::Promoted | StopOutcome::Opened
        )
    }
}

/// One step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepFacts {
    /// A stable word: `restore`.
    pub id: String,
    /// For people: `Restore the backup into the sandbox`.
    pub title: String,
    /// Wall clock at its start.
    pub started_at: Timestamp,
    /// Monotonic length.
    pub duration_ms: u64,
    /// How it ended.
    pub outcome: StepOutcome,
    /// What it did, or the error's message.
    pub detail: Option<String>,
    /// The error's code.
    pub error_code: Option<String>,
    /// How long it took in earlier drills (the median of those that are kept).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected_ms: Option<u64>,
    /// The time that it is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit_ms: Option<u64>,
    /// What it means for the drill that more was taken. Absent: an observation, and so it was in older programs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at_limit: Option<FailureKind>,
    /// Tries that failed before the last one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub retries: Vec<RetryFacts>,
    /// Milliseconds of it that went to restoring, to the copy's server and its replay, and to the checks' own reading;
    /// the rest is the engine's own. `None`: not tried, or an older program's.
    #[serde(default)]
    pub work_ms: Option<u64>,
}

impl StepFacts {
    /// Milliseconds that it is given, if it took more.
    pub fn exceeded_limit_ms(&self) -> Option<u64> {
        self.limit_ms.filter(|limit| self.duration_ms > *limit)
    }

    /// Milliseconds that the engine took for itself.
    pub fn own_ms(&self) -> Option<u64> {
        Some(self.duration_ms.saturating_sub(self.work_ms?))
    }
}

/// How a step ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StepOutcome {
    /// It was done.
    Done,
    /// It was tried, and could not be done or found something bad.
    Failed,
    /// It was not tried.
    Skipped,
}

/// How long the recovery took, in milliseconds, by phase.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rto {
    /// Choosing the backup and planning.
    pub plan_ms: u64,
    /// Writing the data directory.
    pub restore_ms: u64,
    /// From starting the server until replay begins.
    pub start_ms: u64,
    /// Replay up to the requested target, until a session is accepted there.
    pub replay_ms: u64,
    /// Sum of the above: the recovery time.
    pub total_ms: u64,
    /// Replay beyond the requested target, for the row proof only; not part of the total.
    pub proof_replay_ms: u64,
    /// The checks; not part of the total.
    pub checks_ms: u64,
}

impl Rto {
    /// The clock, as a sentence.
    pub const DEFINITION: &'static str = "plan + restore + start + replay until the copy stands at the \
    requested \
        target and accepts a session; making the point in production, the replay for the row proof and the \
        checks \
        are measured apart";

    /// Seconds, rounded up: an objective is never met by rounding.
    pub fn total_seconds(&self) -> u64 {
        self.total_ms.div_ceil(1000)
    }
}

/// What would have been lost, had production vanished at the start of the drill.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Rpo {
    /// From the newest commit that the copy holds to the newest commit that happened; `None` if it holds no
    /// commit to count from.
    pub seconds: Option<f64>,
    /// Bytes of WAL that the copy does not hold.
    pub bytes: u64,
    /// Commits that the copy does not hold.
    pub commits: u64,
    /// False if not all of that WAL could be read: then the figures are lower bounds.
    pub exact: bool,
    /// How it was measured.
    pub method: String,
    /// The newest commit that happened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub newest_commit_at: Option<Timestamp>,
    /// The newest commit that the repository holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub newest_kept_commit_at: Option<Timestamp>,
}

/// The point that the drill made in production.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BracketFacts {
    /// The database that holds pgproof's own schema.
    pub database: String,
    /// The named restore point.
    pub restore_point: String,
    /// Random nonce committed before the point (our own row, meaningless after the drill).
    pub nonce_before: String,
    /// Random nonce committed after the point.
    pub nonce_after: String,
    /// Id of the marker that must be absent at the point.
    pub marker: String,
    /// `pg_current_wal_insert_lsn()` behind nonce A's commit.
    pub after_nonce_before: Lsn,
    /// LSN of the named restore point.
    pub restore_point_lsn: Lsn,
    /// LSN read before nonce B was committed.
    pub before_nonce_after: Lsn,
    /// LSN behind the sentinel.
    pub sentinel: Lsn,
    /// Segment that had to be archived.
    pub last_segment: String,
    /// Milliseconds until it was in the repository.
    pub archived_after_ms: u64,
    /// How often the point was made (more than once when tables were rewritten meanwhile).
    pub attempts: u32,
    /// The proof's LSNs.
    pub proofs: Vec<ProofPoint>,
}

/// The exact LSN of one snapshot of one database.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProofPoint {
    /// Database.
    pub database: String,
    /// Start of the first commit record that the snapshot does not see: the copy stops before it.
    pub lsn: Lsn,
    /// Snapshots taken.
    pub snapshots: u32,
    /// Snapshots whose visible set is a prefix of the commit order.
    pub exact_snapshots: u32,
    /// Commits between nonce A and the sentinel that the choice was made from.
    pub commits_considered: u64,
}

/// Row digests of production and of the copy, at the same LSN.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct RowProof {
    /// What the digest is over, as a sentence.
    pub definition: String,
    /// One entry for each relation, in order of database and name.
    pub tables: Vec<TableProof>,
    /// Sequences, likewise.
    pub sequences: Vec<SequenceProof>,
}

/// One relation on both sides.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableProof {
    /// Database.
    pub database: String,
    /// `schema.table`.
    pub table: String,
    /// What production said under the snapshot.
    pub production: Side,
    /// What the copy says at the LSN.
    pub copy: Side,
}

/// One side of a comparison.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Side {
    /// Rows and keyed digest (32 hexadecimal digits).
    Digest {
        /// `count(*)`.
        rows: u64,
        /// Keyed digest of all rows, independent of their order.
        digest: String,
    },
    /// The relation is not there.
    Absent,
    /// The server says that the relation's data is damaged; the text is the server's SQLSTATE.
    Unreadable(String),
    /// Could not look, with the reason.
    CouldNotLook(String),
}

impl TableProof {
    /// What the two sides say together. Two absences or a failed look are never equal.
    pub fn result(&self) -> CheckResult {
        match (&self.production, &self.copy) {
            (Side::Digest { .. }, Side::Digest { .. }) if self.production == self.copy => CheckResult::Pass,
            (Side::CouldNotLook(_), _) | (_, Side::CouldNotLook(_)) => CheckResult::CouldNotLook,
            // Production's own damage is not the copy's fault, and nothing can be compared with it.
            (Side::Unreadable(_), _) | (Side::Absent, Side::Absent) => CheckResult::CouldNotLook,
            _ => CheckResult::Fail,
        }
    }
}

/// One sequence: the copy must not be behind where production stood before the point.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SequenceProof {
    /// Database.
    pub database: String,
    /// `schema.sequence`.
    pub sequence: String,
    /// What the comparison gave; the values themselves are not recorded.
    pub state: SequenceState,
}

/// What the comparison of a sequence gave.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SequenceState {
    /// The copy would hand out no value that production had handed out before the point.
    NotBehind,
    /// The copy would hand out values again.
    Behind,
    /// The copy has no such sequence.
    Absent,
    /// Set back, cycled or restarted meanwhile, or no right to look.
    CouldNotLook(String),
}

/// The result of a check. Only [`CheckResult::Pass`] is a pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum CheckResult {
    /// Looked, and it is as expected.
    #[serde(rename = "PASS")]
    Pass,
    /// Looked, and somebody should know.
    #[serde(rename = "WARN")]
    Warn,
    /// Looked, and it is bad.
    #[serde(rename = "FAIL")]
    Fail,
    /// Not made, for a reason that was known beforehand.
    #[serde(rename = "NOT RUN")]
    NotRun,
    /// Tried, and nothing could be seen.
    #[serde(rename = "COULD NOT LOOK")]
    CouldNotLook,
}

impl CheckResult {
    /// The word in reports.
    pub fn as_str(self) -> &'static str {
        match self {
            CheckResult::Pass => "PASS",
            CheckResult::Warn => "WARN",
            CheckResult::Fail => "FAIL",
            CheckResult::NotRun => "NOT RUN",
            CheckResult::CouldNotLook => "COULD NOT LOOK",
        }
    }
}

impl std::fmt::Display for CheckResult {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

/// One check.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Check {
    /// A stable word: `row-proof`.
    pub id: String,
    /// What is looked at, as a sentence.
    pub definition: String,
    /// What should be seen.
    pub expected: String,
    /// What was seen, or why nothing was.
    pub actual: String,
    /// The result.
    pub result: CheckResult,
    /// The reason's code, for everything but PASS.
    pub reason: Option<String>,
    /// How long it took.
    pub duration_ms: u64,
    /// What kind of thing is looked at; facts of older drills do not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub category: Option<Category>,
    /// What was seen, beyond a sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<CheckDetail>,
}

/// How the copy was kept away from production.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct QuarantineFacts {
    /// The layers, with what was achieved.
    pub layers: Vec<Layer>,
    /// What was tried from inside, and must not work.
    pub probes: Vec<ProbeFacts>,
    /// What the generated configuration took away.
    pub neutralised: Vec<Neutralised>,
    /// What follows from the layers.
    pub level: QuarantineLevel,
}

/// One layer of isolation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    /// `landlock`, `user-namespace`, `mount-namespace`, `network-namespace`.
    pub name: String,
    /// Whether the kernel applied it.
    pub applied: bool,
    /// Why not.
    pub reason: Option<String>,
}

/// One negative probe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeFacts {
    /// What was tried, and on what: `write-hidden /var/lib/postgresql/15/main`.
    pub name: String,
    /// What should happen.
    pub expectation: String,
    /// What happened.
    pub outcome: String,
    /// What follows.
    pub result: ProbeResult,
}

/// What an attempt from inside the quarantine showed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProbeResult {
    /// It came out as it must.
    Held,
    /// It came out as it must not.
    Breached,
    /// There was nothing to try it on: it shows nothing.
    NotRun,
}

/// Something dangerous that the copy does not have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Neutralised {
    /// `setting`, `file`, `library`, `database setting`.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// What was done about it. Never the value itself, which may hold a password.
    pub how: String,
}

/// How far the copy was isolated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum QuarantineLevel {
    /// Every layer is in place.
    Full,
    /// Some layers are in place.
    Partial,
    /// The generated configuration alone.
    ConfigurationOnly,
}

/// Where a drill's copy differs from what `restore` would have made of the same plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Substitution {
    /// The setting or the action.
    pub name: String,
    /// What `restore` does.
    pub restore: String,
    /// What the drill did.
    pub drill: String,
    /// Why.
    pub why: String,
}

/// The WAL archive before and after.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArchiveFacts {
    /// WAL objects before the drill.
    pub objects_before: u64,
    /// WAL objects after it.
    pub objects_after: u64,
    /// Segments that production itself added meanwhile, on its own timeline.
    pub added_by_production: u64,
    /// What else appeared (names of objects).
    pub unexpected: Vec<String>,
    /// What disappeared (names of objects).
    pub missing: Vec<String>,
    /// Histories in the archive that production's own timeline does not descend from.
    pub foreign_histories: Vec<String>,
}

/// What was left behind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Teardown {
    /// The copy's server has ended.
    pub server_stopped: bool,
    /// The copy's folder is gone.
    pub folder_removed: bool,
    /// The caller asked to keep the folder.
    pub kept_on_request: bool,
    /// Names of what could not be cleaned up.
    pub left: Vec<String>,
}

/// What ended the drill early.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The step that ended it.
    pub step: String,
    /// Whether it says something about the recovery, or only about the attempt.
    pub kind: FailureKind,
    /// The reason's code.
    pub code: String,
    /// The error's code, which may be finer.
    pub error_code: String,
    /// One line.
    pub message: String,
    /// Circumstances.
    pub detail: Option<String>,
    /// What to do now.
    pub hint: Option<String>,
}

/// What an early end means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FailureKind {
    /// The recovery does not work: FAILED.
    Finding,
    /// Nothing could be seen: INCONCLUSIVE.
    CouldNotLook,
    /// Somebody stopped it: ABORTED.
    Aborted,
}

impl Facts {
    /// The check of this id, if it was recorded.
    pub fn check(&self, id: &str) -> Option<&Check> {
        self.checks.iter().find(|check| check.id == id)
    }

    /// The moment of this id, if it was recorded.
    pub fn instant(&self, id: &str) -> Option<&InstantFacts> {
        self.instants.iter().find(|instant| instant.id == id)
    }
}
