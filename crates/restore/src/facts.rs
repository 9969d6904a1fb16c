//! What a plan is made from: the request, the backups with what the archive says of each, and the host.
//!
//! [`gather`] looks (it reads the archive's indexes and the destination); [`crate::plan`] decides. Invariant:
//! nothing is changed here.

use std::path::PathBuf;
use std::sync::Arc;

use diagnostic::{Error, Result};
use history::{
    Archive, KnownHistory, Standing, Start, Target, Timelines, Trace, Unreachable, UnreachableHistory,
    WalPath, Wanted, history_of,
};
use postgres::{Lsn, Oid, SystemIdentifier, TimelineId, Timestamp};
use repository::{Backup, BackupId};
use serde::{Deserialize, Serialize};

use crate::destination::{DestinationFacts, DestinationState, LocationState, inspect, location_state};
use crate::live::{LiveCluster, live_clusters};
use crate::timelines::{Alternative, alternatives};
use crate::unarchived::{PgWal, at_risk, old_directory};

/// What recovery does at a stop: `recovery_target_action`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    Pause,
    Promote,
    Shutdown,
}

impl Action {
    /// PostgreSQL's word.
    pub fn as_str(self) -> &'static str {
        match self {
            Action::Pause => "pause",
            Action::Promote => "promote",
            Action::Shutdown => "shutdown",
        }
    }
}

/// One place where recovery is to stop.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StopRequest {
    pub wanted: Wanted,
    pub action: Action,
    /// What for, for people: "the requested target", "row-level proof".
    pub purpose: String,
}

/// What the restored directory is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Purpose {
    /// To run as a server of its own, perhaps in the old one's place.
    Server,
    /// A throw-away copy in a sandbox, which takes care of tablespaces that replay creates.
    Copy,
}

/// Configuration files of the restored directory.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Configuration {
    /// Those of the backup; working ones where they lay outside of the data directory.
    #[default]
    Restored,
    /// These, whatever the backup holds.
    Generated {
        postgresql_conf: String,
        pg_hba_conf: String,
        pg_ident_conf: String,
    },
}

/// Where a tablespace is to go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TablespaceChoice {
    /// Its name, OID, or original location.
    pub tablespace: String,
    /// An absolute path.
    pub location: PathBuf,
}

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Request {
    /// The cluster's name in the repository.
    pub cluster: String,
    /// In the order in which recovery comes to them; at least one.
    pub stops: Vec<StopRequest>,
    /// `--timeline`.
    pub timeline: Option<TimelineId>,
    /// A certain backup instead of the newest one that ended before the target.
    pub backup: Option<BackupId>,
    /// The new data directory: an absolute path.
    pub destination: PathBuf,
    pub tablespaces: Vec<TablespaceChoice>,
    /// Every tablespace that is not named above goes below this folder, by its name.
    pub tablespaces_into: Option<PathBuf>,
    /// Replay may create tablespaces at their own paths although servers run on this host.
    pub create_tablespaces: bool,
    /// Overwrite an existing data directory where it differs, instead of keeping it aside.
    pub delta: bool,
    /// The text of `restore_command`, with `%f` and `%p`.
    pub restore_command: String,
    pub purpose: Purpose,
    pub configuration: Configuration,
    /// Further settings for `postgresql.auto.conf`, taking precedence over ours except those that steer
    /// recovery.
    pub settings: Vec<(String, String)>,
    /// User and group of the files; `None`: those of an existing destination, else of the one who runs this.
    pub owner: Option<(u32, u32)>,
}

/// One backup, tried.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Attempt {
    pub backup: Backup,
    /// The way through timelines, or why there is none from this backup.
    pub path: Result<WalPath, String>,
    /// What recovery from it meets; `None` without a way.
    pub trace: Option<Trace>,
}

impl Attempt {
    /// Whether every target is reached.
    pub fn reaches_all(&self) -> bool {
        self.trace
            .as_ref()
            .is_some_and(|trace| trace.targets.iter().all(Result::is_ok))
    }

    /// The first target that is not reached.
    pub fn obstacle(&self) -> Option<(usize, &Unreachable)> {
        let targets = &self.trace.as_ref()?.targets;
        targets
            .iter()
            .enumerate()
            .find_map(|(at, target)| target.as_ref().err().map(|why| (at, why)))
    }
}

/// A tablespace of a backup, and where it would go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TablespaceFacts {
    pub oid: Oid,
    pub location: PathBuf,
    pub state: LocationState,
}

/// Everything that a plan is made from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Facts {
    pub request: Request,
    /// Tried backups, newest first; the last one is the one to take if it reaches all.
    pub attempts: Vec<Attempt>,
    /// How many backups of this system there are.
    pub backups: usize,
    /// The timeline that was asked for, or the newest backup's.
    pub timeline: Option<TimelineId>,
    pub destination: DestinationFacts,
    /// Where the tablespaces of the chosen backup would go.
    pub tablespaces: Vec<TablespaceFacts>,
    /// Paths of tablespaces that replay creates.
    pub created_tablespaces: Vec<TablespaceFacts>,
    /// Segments that the chosen way needs, that no copy has, and that the directory to be replaced holds.
    pub unarchived: Vec<(TimelineId, u64)>,
    /// Where that directory is: the destination, or where an interrupted restore kept it aside.
    pub old_directory: Option<PathBuf>,
    /// Names in the old `pg_wal` that would be lost with it; looked for only for a delta restore.
    pub wal_at_risk: Vec<String>,
    /// Servers that run on this host, but for one on the destination.
    pub live_clusters: Vec<LiveCluster>,
    /// Where a target that is not reached can be reached.
    pub alternatives: Vec<Alternative>,
    /// Timelines that go on where the followed one ends, written by servers that are known, with the LSN.
    pub continued_by: Vec<(TimelineId, Lsn)>,
    /// Histories that would divert a recovery that follows `latest`.
    pub unreachable_histories: Vec<UnreachableHistory>,
}

/// Looks at backups, archive and host. `backups`: all of the cluster, in any order; `archive`: of the system
/// identifier of the newest of them (see [`system_of`]).
///
/// Errors: `no-backup`, `backup-unknown`, `timeline-unknown`, `timeline-ambiguous`, those of reading.
pub fn gather(request: Request, backups: &[Backup], archive: &Archive) -> Result<Facts> {
    check(&request)?;
    let mut candidates: Vec<&Backup> = backups
        .iter()
        .filter(|backup| backup.system_identifier == archive.system())
        .collect();
    candidates.sort_by_key(|backup| std::cmp::Reverse((backup.finished_at, backup.stop_lsn)));
    let newest = candidates.first().copied().ok_or_else(|| no_backup(&request))?;
    let count = candidates.len();
    if let Some(id) = request.backup {
        candidates.retain(|backup| backup.backup == id);
        if candidates.is_empty() {
            return Err(Error::new(
                "backup-unknown",
                format!("cluster \"{}\" has no backup {id}", request.cluster),
            )
            .hint(format!(
                "Run `pgproof list {}` to see what there is.",
                request.cluster
            )));
        }
    }
    let timelines = known_timelines(archive, backups);
    let destination = inspect(&request.destination)?;
    let old_directory = old_directory(&request.destination, &destination.state);
    let archived = archive;
    let extended = match &old_directory {
        // A live server goes on writing: the plan will refuse it anyway.
        Some(old) if destination.live_pid.is_none() => {
            PgWal::open(old, archive.system(), archive.segment_size())?
                .map(|pg_wal| archive.extended(Arc::new(pg_wal)))
                .transpose()?
        }
        _ => None,
    };
    let archive = extended.as_ref().unwrap_or(archive);
    let wanted: Vec<Wanted> = request.stops.iter().map(|stop| stop.wanted.clone()).collect();
    // The newest backup's timeline is the one that the cluster lives on, unless somebody says otherwise.
    let timeline = request.timeline.unwrap_or(newest.timeline);
    let mut attempts: Vec<Attempt> = Vec::new();
    let mut limit = None;
    for backup in candidates {
        let own = history_of(backup);
        let path = match timelines.path_to(timeline, Some((&own, backup.stop_lsn))) {
            Ok(path) => match archive.timelines().contradiction(&own) {
                Some(why) => Err(why),
                None => path.carries(&own, backup.stop_lsn).map(|()| path),
            },
            // An unknown timeline is the request's fault, not this backup's.
            Err(error) => return Err(error),
        };
        let Ok(way) = &path else {
            attempts.push(Attempt {
                backup: backup.clone(),
                path,
                trace: None,
            });
            continue;
        };
        let start = Start {
            redo: backup.redo_lsn,
            stop: backup.stop_lsn,
            ended_at: Timestamp::from_jiff(backup.finished_at),
            path: way.clone(),
        };
        let trace = archive.trace(&start, &wanted, limit)?;
        let attempt = Attempt {
            backup: backup.clone(),
            path,
            trace: Some(trace),
        };
        let older_may_reach = attempt.obstacle().is_some_and(|(_, why)| why.older_may_reach());
        // What was searched for in vain behind this backup need not be searched for there again.
        let in_vain = attempt.trace.as_ref().is_some_and(|trace| {
            trace.targets.iter().all(|target| {
                matches!(
                    target,
                    Err(Unreachable::UnknownXid { .. } | Unreachable::UnknownRestorePoint { .. })
                )
            })
        });
        if in_vain {
            limit = Some(backup.redo_lsn);
        }
        let done = attempt.reaches_all() || !older_may_reach;
        attempts.push(attempt);
        if done {
            break;
        }
    }
    let chosen = attempts.last().filter(|attempt| attempt.reaches_all());
    let tablespaces = match chosen {
        Some(attempt) => crate::tablespaces::locations(&request, &attempt.backup, &destination)?
            .into_iter()
            .map(|(oid, location)| {
                Ok(TablespaceFacts {
                    oid,
                    state: location_state(&location)?,
                    location,
                })
            })
            .collect::<Result<_>>()?,
        None => Vec::new(),
    };
    let created = chosen
        .and_then(|attempt| attempt.trace.as_ref())
        .map(|trace| trace.tablespaces.as_slice());
    let created_tablespaces = created
        .unwrap_or_default()
        .iter()
        .filter(|created| !created.location.is_empty())
        .map(|created| {
            let location = PathBuf::from(&created.location);
            Ok(TablespaceFacts {
                oid: created.oid,
                state: location_state(&location)?,
                location,
            })
        })
        .collect::<Result<_>>()?;
    let wal = chosen
        .and_then(|attempt| attempt.trace.as_ref())
        .map(|trace| trace.wal.as_slice());
    let unarchived = wal
        .unwrap_or_default()
        .iter()
        .flat_map(|range| (range.first..=range.last).map(|number| (range.timeline, number)))
        .filter(|(timeline, number)| !archived.has(*timeline, *number))
        .collect();
    let wal_at_risk = match &destination.state {
        DestinationState::DataDirectory { .. } if request.delta && destination.live_pid.is_none() => at_risk(
            &request.destination,
            archived.system(),
            archived.segment_size(),
            &|timeline, number| archived.has(timeline, number),
        )?,
        _ => Vec::new(),
    };
    let backed_up = backups
        .iter()
        .filter(|backup| backup.system_identifier == archive.system())
        .map(|backup| backup.timeline)
        .collect();
    let named = wanted
        .iter()
        .any(|wanted| matches!(wanted.target, Target::Latest | Target::Immediate));
    let alternatives = if chosen.is_none() && !named {
        let tried = |along: TimelineId, backup: BackupId| {
            along == timeline && attempts.iter().any(|attempt| attempt.backup.backup == backup)
        };
        alternatives(archive, backups, &wanted, &tried)?
    } else {
        Vec::new()
    };
    let followed_to = chosen
        .and_then(|attempt| attempt.trace.as_ref())
        .map(|trace| trace.end.lsn);
    let continued_by = match followed_to {
        Some(end) => timelines
            .descendants(timeline, end)
            .into_iter()
            .filter(|(number, _)| archived.standing(*number, &backed_up) != Standing::Unknown)
            .collect(),
        None => Vec::new(),
    };
    Ok(Facts {
        timeline: Some(timeline),
        backups: count,
        attempts,
        destination,
        tablespaces,
        created_tablespaces,
        unarchived,
        alternatives,
        continued_by,
        old_directory,
        wal_at_risk,
        live_clusters: match request.purpose {
            Purpose::Server => live_clusters(&request.destination),
            // Its sandbox hides what is production's.
            Purpose::Copy => Vec::new(),
        },
        unreachable_histories: archived.unreachable_histories(&backed_up)?,
        request,
    })
}

/// The system identifier of the newest backup: the cluster as it lives now.
pub fn system_of(backups: &[Backup]) -> Option<(SystemIdentifier, u32)> {
    backups
        .iter()
        .max_by_key(|backup| backup.finished_at)
        .map(|backup| (backup.system_identifier, backup.geometry.wal_segment_size))
}

/// Histories from the archive and from the backups' records.
pub(crate) fn known_timelines(archive: &Archive, backups: &[Backup]) -> Timelines {
    let mut timelines = archive.timelines().clone();
    for backup in backups
        .iter()
        .filter(|backup| backup.system_identifier == archive.system())
    {
        if backup.history.is_empty() {
            continue;
        }
        timelines.add(KnownHistory {
            history: history_of(backup),
            object: format!("backup {}", backup.backup),
        });
    }
    timelines
}

fn no_backup(request: &Request) -> Error {
    Error::new(
        "no-backup",
        format!("cluster \"{}\" has no backup to restore", request.cluster),
    )
    .hint(format!(
        "Run `pgproof backup {}` on a running server first.",
        request.cluster
    ))
}

fn check(request: &Request) -> Result<()> {
    if request.stops.is_empty() {
        return Err(Error::usage("target-missing", "no recovery target was given")
            .hint("Say how far with --to TIME, --to LSN, --to latest or --to immediate."));
    }
    let absolute = |path: &std::path::Path| path.is_absolute() && path.parent().is_some();
    let paths = std::iter::once(&request.destination)
        .chain(request.tablespaces.iter().map(|choice| &choice.location))
        .chain(&request.tablespaces_into);
    for path in paths {
        let dotted = path
            .components()
            .any(|part| part == std::path::Component::ParentDir);
        if !absolute(path) || dotted || path.to_str().is_none_or(|text| text.contains(['\n', '\r', '\0'])) {
            return Err(Error::usage(
                "destination-path",
                format!("\"{}\" is not an absolute path", path.display()),
            )
            .hint("Give a whole path, without \"..\", outside of the root directory."));
        }
    }
    Ok(())
}
