//! What a drill is given: the profile (what is to be proved, and how well), the places, and the callbacks.
//!
//! Invariant: the room reads no environment, no configuration file and no wall clock; all of that stands
//! here.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use diagnostic::Result;
use jiff::Timestamp;
use repository::ClusterRepository;
use serde::{Deserialize, Serialize};

use crate::facts::{Facts, GateFacts, People, PointFacts, ProfileFacts, Rpo, StepFacts};
use crate::gates::GateLimits;
use crate::manual::ManualStep;
use crate::objectives::Objective;
use crate::point::MadePoint;
use crate::user_checks::UserCheck;
use crate::verdict::Verdict;

/// Which point the drill recovers to.
#[derive(Debug, Clone, PartialEq)]
pub enum DrillTarget {
    /// A point that the drill makes in production itself: nonces around it, and the row proof.
    Bracket,
    /// A point of the past, with the words in which it was asked for.
    Point(history::Target, String),
}

/// The built-in checks that can be asked for by name.
pub const BUILT_IN_CHECKS: [&str; 4] = ["row-proof", "page-checksums", "amcheck", "n-version"];

/// Those that a profile asks for where it does not say: a second restore is asked for by name.
pub const DEFAULT_CHECKS: [&str; 3] = ["row-proof", "page-checksums", "amcheck"];

/// What a profile lets checks do outside of the quarantine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Grant {
    /// Endpoints below `API_BASE_URL` are asked.
    Http,
    /// Programs run as the drill's own account, with everything that it may do.
    Commands,
}

impl Grant {
    /// The stable word.
    pub fn as_str(self) -> &'static str {
        match self {
            Grant::Http => "http",
            Grant::Commands => "commands",
        }
    }
}

/// What is to be proved. Made by [`crate::profile::resolve`].
#[derive(Debug, Clone, PartialEq)]
pub struct Profile {
    /// Its name: in the configuration, or of a built-in one.
    pub name: String,
    /// `built-in`, `file`, or `built-in, changed by file`.
    pub source: String,
    /// The profiles that it extends, the nearest first.
    pub extends: Vec<String>,
    /// The point.
    pub target: DrillTarget,
    /// The point in the profile's own words; whoever has a clock makes a target of it.
    pub target_text: String,
    /// What is to be met, by name.
    pub objectives: Vec<Objective>,
    /// What is looked at before anything is restored.
    pub gates: GateLimits,
    /// Built-in checks, by name: `row-proof`, `page-checksums`, `amcheck`.
    pub checks: Vec<String>,
    /// The user's own checks.
    pub user_checks: Vec<UserCheck>,
    /// What people do, and confirm.
    pub manual: Vec<ManualStep>,
    /// Checks whose NOT RUN is acceptable, because nothing can prove them for this kind of point.
    pub may_be_not_run: Vec<String>,
    /// What may be done outside of the quarantine.
    pub grants: Vec<Grant>,
    /// Profiles whose objectives are judged as well.
    pub also: Vec<String>,
    /// A backup is made before the drill.
    pub backup_first: bool,
    /// How often the restore is tried.
    pub restore_tries: u32,
    /// Time limits of steps, by id; see [`crate::step_limits::meaning`].
    pub step_limits: BTreeMap<String, Duration>,
    /// How long a segment may take until it is in the repository.
    pub archive_timeout: Duration,
    /// How long one server start with its replay may take.
    pub replay_timeout: Duration,
    /// How long one statement of a check may take, in production and in the copy.
    pub statement_timeout: Duration,
    /// How often the point is made anew when a table was rewritten while it was read.
    pub point_attempts: u32,
    /// Snapshots taken for each database and attempt (5 to 8 are enough under load).
    pub snapshots: u32,
    /// What stands in the evidence of it.
    pub facts: ProfileFacts,
}

impl Profile {
    /// A bracket with row proof, page checksums and amcheck, generous limits, and no objective.
    pub fn bracket(name: &str) -> Profile {
        let mut profile = Profile {
            name: name.into(),
            source: "built-in".into(),
            extends: Vec::new(),
            target: DrillTarget::Bracket,
            target_text: "bracket".into(),
            objectives: Vec::new(),
            gates: GateLimits::default(),
            checks: DEFAULT_CHECKS.iter().map(ToString::to_string).collect(),
            user_checks: Vec::new(),
            manual: Vec::new(),
            may_be_not_run: Vec::new(),
            grants: Vec::new(),
            also: Vec::new(),
            backup_first: false,
            restore_tries: 1,
            step_limits: BTreeMap::new(),
            archive_timeout: Duration::from_secs(300),
            replay_timeout: Duration::from_secs(4 * 3600),
            statement_timeout: Duration::from_secs(3600),
            point_attempts: 3,
            snapshots: 6,
            facts: ProfileFacts {
                name: String::new(),
                source: String::new(),
                extends: Vec::new(),
                digest: String::new(),
                value: serde_json::Value::Null,
                objectives_only: false,
            },
        };
        profile.facts = crate::profile::facts_of(&profile);
        profile
    }

    /// The target of this objective.
    pub fn objective(&self, id: &str) -> Option<Duration> {
        let found = self.objectives.iter().find(|objective| objective.id == id);
        found.map(|objective| objective.target)
    }

    /// Whether this built-in check is asked for.
    pub fn asks_for(&self, check: &str) -> bool {
        self.checks.iter().any(|id| id == check)
    }

    /// Whether this may be done outside of the quarantine.
    pub fn grants(&self, grant: Grant) -> bool {
        self.grants.contains(&grant)
    }
}

/// A fault that is planted into the copy, so that the drill must fail: the drill of the drill.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// One row is changed on disk, under a valid page checksum.
    RowChangedInCopy,
    /// One row is gone from its page, under a valid page checksum.
    RowLostInCopy,
    /// The file of a table is gone.
    RelationLostInCopy,
    /// A byte of a page that no query reads is another one.
    PageDamagedInCopy,
    /// Two entries of a B-tree index have changed places, under a valid page checksum.
    IndexDisorderedInCopy,
    /// A sequence stands where it began, under a valid page checksum.
    SequenceRewoundInCopy,
    /// The recorded version of a collation is another one.
    CollationOutdatedInCopy,
    /// The copy starts with `archive_mode=on` and an `archive_command` (that writes into the copy's own
    /// folder).
    ArchiveCommandInherited,
    /// The copy is told to stop before the place that the plan says.
    StopMoved,
    /// A file of production's can be read from inside the quarantine.
    ProductionReadable,
}

impl Fault {
    /// The stable word: `row-changed-in-copy`.
    pub fn as_str(self) -> &'static str {
        match self {
            Fault::RowChangedInCopy => "row-changed-in-copy",
            Fault::RowLostInCopy => "row-lost-in-copy",
            Fault::RelationLostInCopy => "relation-lost-in-copy",
            Fault::PageDamagedInCopy => "page-damaged-in-copy",
            Fault::IndexDisorderedInCopy => "index-disordered-in-copy",
            Fault::SequenceRewoundInCopy => "sequence-rewound-in-copy",
            Fault::CollationOutdatedInCopy => "collation-outdated-in-copy",
            Fault::ArchiveCommandInherited => "archive-command-inherited",
            Fault::StopMoved => "stop-moved",
            Fault::ProductionReadable => "production-readable",
        }
    }
}

/// Where the copy lives.
#[derive(Debug, Clone)]
pub struct SandboxOptions {
    /// A folder that exists; each drill makes its own in it. As root it must be passable by the server's
    /// account.
    pub parent: PathBuf,
    /// Leave the copy's folder in place (the server is stopped anyway).
    pub keep: bool,
    /// A program that enters the quarantine and becomes the server; `--spec FILE --` and the server's command
    /// line are appended to its arguments. Without it the quarantine is by configuration only.
    pub launcher: Option<cluster::Launcher>,
    /// Further places where PostgreSQL's programs may be.
    pub programs: Vec<PathBuf>,
    /// Paths that the copy must not see, besides production's own.
    pub hidden: Vec<PathBuf>,
    /// As root: whom the copy belongs to (uid, gid). Otherwise ignored.
    pub owner: Option<(u32, u32)>,
    /// A superuser of the copy, when production is not asked for one; `None`: `postgres`.
    pub superuser: Option<String>,
    /// Libraries that replay needs (they provide a custom resource manager) and that may be loaded in the
    /// copy.
    pub preload: Vec<String>,
    /// Memory that the copy may use; `None`: half of what is available.
    pub memory_bytes: Option<u64>,
    /// Threads for restoring and checking; 0: as many as there are processors.
    pub threads: usize,
}

/// What a drill tells while it runs.
pub trait Watcher: Sync {
    /// A step begins. Numbers begin with 1. `expected`: what earlier drills took for it.
    fn step(&self, number: usize, of: usize, title: &str, expected: Option<Duration>);
    /// Something to know within a step.
    fn note(&self, text: &str);
    /// Work done in a step, with the unit (`bytes`, `tables`, `segments`).
    fn advance(&self, done: u64, total: Option<u64>, unit: &str);
}

/// A watcher that says nothing.
pub struct Silent;

impl Watcher for Silent {
    fn step(&self, _number: usize, _of: usize, _title: &str, _expected: Option<Duration>) {}
    fn note(&self, _text: &str) {}
    fn advance(&self, _done: u64, _total: Option<u64>, _unit: &str) {}
}

/// Files of the evidence that are made from facts and verdict (`report.md`): name and content.
pub type Documents = Vec<(String, Vec<u8>)>;

/// Everything that a drill is given.
#[derive(Clone)]
pub struct Drill<'a> {
    /// The cluster in the copy of the repository that is drilled.
    pub repository: &'a ClusterRepository,
    /// How to reach production; needed for a bracket.
    pub production: Option<&'a str>,
    /// The profile.
    pub profile: Profile,
    /// Profiles whose objectives are judged as well.
    pub also: Vec<Profile>,
    /// `sandbox`, or the environment that was named (`staging`).
    pub environment: String,
    /// Guards that the caller evaluated and that hold, for the evidence.
    pub guards: Vec<GateFacts>,
    /// How the point was chosen, when the caller chose it.
    pub point: Option<PointFacts>,
    /// A point that an earlier drill of this process has made in production, instead of another one.
    pub made: Option<MadePoint>,
    /// A certain backup, instead of the newest one that ended before the point.
    pub backup: Option<repository::BackupId>,
    /// Steps that the caller made before the drill (a backup), for the evidence.
    pub before: Vec<StepFacts>,
    /// The base of the application's endpoints.
    pub api_base_url: Option<String>,
    /// The base of the application's pages, for programs of checks.
    pub web_base_url: Option<String>,
    /// Where the copy lives.
    pub sandbox: SandboxOptions,
    /// Who takes part.
    pub people: People,
    /// Steps of people that were confirmed beforehand: their ids, and by whom.
    pub confirmed: Vec<(String, String)>,
    /// Why it is run.
    pub trigger: String,
    /// When the next one is due.
    pub next_due: Option<Timestamp>,
    /// The host's name.
    pub host: Option<String>,
    /// pgproof's version.
    pub tool_version: String,
    /// Measures what would be lost now; called once, before the drill touches production.
    pub rpo: Option<&'a dyn Fn() -> Result<Rpo>>,
    /// The wall clock.
    pub clock: &'a dyn Fn() -> Timestamp,
    /// Makes documents of facts and verdict.
    pub documents: &'a dyn Fn(&Facts, &Verdict) -> Documents,
    /// A folder that gets a copy of the report (`<drill id>.md`) and of the evidence (`<drill id>/`).
    pub report_directory: Option<PathBuf>,
    /// Faults to plant.
    pub faults: Vec<Fault>,
    /// Set from outside to stop the drill. Its steps get a flag of their own in this place, which is set too when a step
    /// is over its limit.
    pub abort: &'a AtomicBool,
    /// Who watches.
    pub watcher: &'a dyn Watcher,
}
