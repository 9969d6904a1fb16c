//! The planner that `restore` and `drill` share: facts in, a plan out, or a refusal with the nearest
//! reachable point.
//!
//! Pure. A [`Plan`] is a value without choices left: serialisable, printable, comparable. Invariants: every
//! target is resolved in the archive; the timeline is a number; an existing directory is kept aside, never
//! removed; nothing is planned over a live server, a foreign directory, or a tablespace that may be in use.

use std::path::{Path, PathBuf};

use diagnostic::{Error, Result};
use history::{Maxima, ResolvedTarget, TablespaceCreated, Target, Unreachable, WalRange};
use jiff::Timestamp;
use postgres::{Lsn, Oid, SystemIdentifier, TimelineId, segment_name};
use repository::{Backup, BackupId};
use serde::{Deserialize, Serialize};

use crate::delta::DeltaPlan;
use crate::destination::{DestinationFacts, DestinationState, LocationState};
use crate::facts::{Action, Attempt, Configuration, Facts, Purpose};
use crate::settings;

/// One place where recovery stops.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stop {
    pub target: ResolvedTarget,
    pub action: Action,
    pub purpose: String,
    /// Every `recovery_target...` setting of this stop.
    pub settings: Vec<(String, String)>,
}

/// Something that exists and is moved out of the way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KeptAside {
    /// A directory, by one rename.
    Rename { from: PathBuf, to: PathBuf },
    /// The contents of a mount point, into a folder within it.
    Contents { from: PathBuf, to: PathBuf },
    /// A tablespace's contents, into a folder within its location; the link of the directory kept aside is
    /// set anew.
    Tablespace { oid: Oid, from: PathBuf, to: PathBuf },
    /// WAL that no copy has, copied out of a directory that a delta restore overwrites.
    Wal { from: PathBuf, to: PathBuf },
}

impl KeptAside {
    /// From where and to where.
    pub fn paths(&self) -> (&Path, &Path) {
        match self {
            KeptAside::Rename { from, to }
            | KeptAside::Contents { from, to }
            | KeptAside::Wal { from, to }
            | KeptAside::Tablespace { from, to, .. } => (from, to),
        }
    }
}

/// A tablespace of the backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TablespacePlan {
    pub oid: Oid,
    pub name: String,
    /// Where it was.
    pub original: String,
    /// Where it goes; `None` for one that lies in `pg_tblspc` itself.
    pub location: Option<PathBuf>,
}

/// A file that is generated.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GeneratedFile {
    /// In the data directory.
    pub name: String,
    pub content: String,
    pub reason: String,
}

/// What will be done, exactly.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    pub cluster: String,
    pub backup: BackupId,
    pub system_identifier: SystemIdentifier,
    pub postgresql_version: String,
    /// When the backup ended, and where.
    pub backup_finished_at: Timestamp,
    pub backup_stop_lsn: Lsn,
    /// In the order in which recovery comes to them; the first one is written into the directory.
    pub stops: Vec<Stop>,
    /// `recovery_target_timeline`.
    pub timeline: TimelineId,
    /// Segments that recovery reads, and their size in bytes.
    pub wal: Vec<WalRange>,
    pub wal_segments: u64,
    pub wal_segment_size: u32,
    /// Segments that no copy has: copied from the directory that is replaced, where it is kept aside.
    pub wal_carried: Vec<PathBuf>,
    /// Records between segments that could not be put together: commits in them are not counted above.
    pub wal_unread: Vec<Lsn>,
    pub destination: PathBuf,
    /// The destination as the plan found it.
    pub found: DestinationState,
    pub mount_point: bool,
    pub purpose: Purpose,
    pub owner: Option<(u32, u32)>,
    pub files: u64,
    pub bytes: u64,
    pub tablespaces: Vec<TablespacePlan>,
    /// Tablespaces that replay will create, at absolute paths.
    pub created_tablespaces: Vec<TablespaceCreated>,
    /// Directories that must exist for that and are made.
    pub directories: Vec<PathBuf>,
    pub kept_aside: Vec<KeptAside>,
    /// The destination is overwritten where it differs.
    pub delta: Option<DeltaPlan>,
    /// What an interrupted restore kept aside before: still there, and named again in the marker.
    pub kept_earlier: Vec<KeptAside>,
    pub restore_command: String,
    /// The least that recovery demands of these settings (hard rule 28).
    pub maxima: Maxima,
    pub extra_settings: Vec<(String, String)>,
    /// Resource managers of extensions whose records are replayed: their libraries must be preloaded.
    pub custom_resource_managers: Vec<u8>,
    pub generated: Vec<GeneratedFile>,
    /// Where configuration files of the backup lay that are put into the reference folder.
    pub reference: Vec<String>,
    /// What a person should know.
    pub notes: Vec<String>,
    pub planned_at: Timestamp,
}

/// Makes the plan. `now`: the wall clock, for the name of what is kept aside.
///
/// Refusals: `target-before-backup-end`, `target-beyond-archive`, `time-target-needs-later-commit`,
/// `wal-gap`, `wal-damaged`, `unknown-xid`, `unknown-restore-point`, `backup-not-on-timeline`,
/// `destination-live`, `destination-foreign`, `destination-occupied`, `destination-not-a-directory`,
/// `destination-too-small`, `destination-permission`, `tablespace-location-in-use`,
/// `tablespace-created-in-use`.
pub fn plan(facts: &Facts, now: Timestamp) -> Result<Plan> {
    let attempt = choose(facts)?;
    let backup = &attempt.backup;
    let Some(trace) = &attempt.trace else {
        return Err(Error::new(
            "plan-facts",
            "the facts do not say what recovery meets",
        ));
    };
    let path = attempt
        .path
        .as_ref()
        .map_err(|why| Error::new("plan-facts", why.clone()))?;
    let request = &facts.request;
    let destination = &facts.destination;
    refuse_destination(facts, backup)?;

    let timeline = path.timeline();
    let stops: Vec<Stop> = trace
        .targets
        .iter()
        .zip(&request.stops)
        .filter_map(|(target, stop)| {
            let target = target.as_ref().ok()?.clone();
            let mut settings = target.settings.clone();
            // From 15 on recovery reads ahead of its target, and what it asks for there must exist, or be absent for
            // certain: behind a gap, or behind a backup that retention keeps for its own moment, neither is so.
            if trace.hole_behind && backup.postgresql_version_num >= 150_000 {
                settings.push(("recovery_prefetch".into(), "off".into()));
            }
            settings.push(("recovery_target_timeline".into(), timeline.to_string()));
            settings.push(("recovery_target_action".into(), stop.action.as_str().into()));
            Some(Stop {
                target,
                action: stop.action,
                purpose: stop.purpose.clone(),
                settings,
            })
        })
        .collect();

    let stamp = now.strftime("%Y%m%dT%H%M%SZ").to_string();
    let delta = delta_plan(facts, backup);
    let kept_aside = match &delta {
        Some(delta) => save_wal(destination, delta, &stamp),
        None => keep_aside(destination, &stamp),
    };
    refuse_live_tablespaces(facts, delta.as_ref())?;
    refuse_tablespaces(facts, &kept_aside)?;
    let tablespaces = tablespace_plans(facts, backup);
    let (created, directories) = created_tablespaces(facts, trace.tablespaces.clone(), &kept_aside)?;
    let (generated, reference) = configuration(&request.configuration, backup);
    let notes = notes(facts, attempt, &stops, &generated);
    Ok(Plan {
        cluster: request.cluster.clone(),
        backup: backup.backup,
        system_identifier: backup.system_identifier,
        postgresql_version: backup.postgresql_version.clone(),
        backup_finished_at: backup.finished_at,
        backup_stop_lsn: backup.stop_lsn,
        stops,
        timeline,
        wal_segments: trace.segments(),
        wal: trace.wal.clone(),
        wal_segment_size: backup.geometry.wal_segment_size,
        wal_carried: carried(facts, &kept_aside, backup.geometry.wal_segment_size),
        wal_unread: trace.unread.clone(),
        destination: request.destination.clone(),
        found: destination.state.clone(),
        mount_point: destination.mount_point,
        purpose: request.purpose,
        owner: request
            .owner
            .or(destination.owner)
            .filter(|_| destination.effective_uid == 0),
        files: backup.files,
        bytes: backup.bytes_restored,
        tablespaces,
        created_tablespaces: created,
        directories,
        kept_aside,
        delta,
        kept_earlier: match &destination.state {
            DestinationState::HalfRestored(marker) => marker.kept_aside.clone(),
            DestinationState::HalfDelta { marker, .. } if request.delta => marker.kept_aside.clone(),
            _ => Vec::new(),
        },
        restore_command: request.restore_command.clone(),
        maxima: trace.maxima.max(maxima_of(backup)),
        extra_settings: request.settings.clone(),
        custom_resource_managers: trace.custom_resource_managers.clone(),
        generated,
        reference,
        notes,
        planned_at: now,
    })
}

/// The attempt that reaches everything, or the best refusal.
fn choose(facts: &Facts) -> Result<&Attempt> {
    if let Some(attempt) = facts.attempts.last().filter(|attempt| attempt.reaches_all()) {
        return Ok(attempt);
    }
    // The newest backup that lies on the way speaks for what the archive has; the oldest for what lies
    // before.
    let on_the_way: Vec<&Attempt> = facts
        .attempts
        .iter()
        .filter(|attempt| attempt.trace.is_some())
        .collect();
    let before =
        |attempt: &&&Attempt| matches!(attempt.obstacle(), Some((_, Unreachable::BeforeBackupEnd { .. })));
    let telling = match (
        on_the_way.last(),
        on_the_way.iter().find(|attempt| !before(attempt)),
    ) {
        // Every backup ended too late: the oldest one's end is the nearest point.
        (Some(oldest), None) => Some(*oldest),
        (_, Some(other)) => Some(*other),
        (None, None) => None,
    };
    let Some(attempt) = telling else {
        let reasons: Vec<String> = facts
            .attempts
            .iter()
            .filter_map(|attempt| {
                attempt
                    .path
                    .as_ref()
                    .err()
                    .map(|why| format!("Backup {}: {why}.", attempt.backup.backup))
            })
            .take(3)
            .collect();
        let timeline = facts
            .timeline
            .map_or(String::new(), |timeline| format!(" {timeline}"));
        return Err(Error::new(
            "backup-not-on-timeline",
            format!(
                "no backup lies on the history of \
         timeline{timeline}"
            ),
        )
        .detail(reasons.join("\n"))
        .hint(with_alternatives(
            facts,
            "Choose the timeline of a backup with --timeline, or leave --timeline out; `pgproof \
             list` shows them.",
        )));
    };
    match attempt.obstacle() {
        Some((at, why)) => {
            let target = facts
                .request
                .stops
                .get(at)
                .map_or(Target::Latest, |stop| stop.wanted.target.clone());
            let backup = attempt.backup.backup.to_string();
            let error = why.clone().into_error(&facts.request.cluster, &target, &backup);
            let hint = with_alternatives(facts, error.hint_text().unwrap_or_default());
            let error = error.hint(hint);
            Err(match (why, facts.backups) {
                (Unreachable::BeforeBackupEnd { .. }, count)
                    if count > 1 && facts.request.backup.is_none() =>
                {
                    let detail = error.detail_text().unwrap_or_default().to_owned();
                    error.detail(format!(
                        "{detail} It is the oldest of {count} backups that could be used."
                    ))
                }
                _ => error,
            })
        }
        None => Err(Error::new(
            "plan-facts",
            "the facts do not say why the target cannot be reached",
        )),
    }
}

/// A refusal's hint, with the timelines and backups that hold the target.
fn with_alternatives(facts: &Facts, hint: &str) -> String {
    let mut text = hint.to_owned();
    for found in &facts.alternatives {
        let on = if Some(found.timeline) == facts.timeline {
            format!(
                "Backup {} reaches it: leave --backup out, or name that one.",
                found.backup
            )
        } else {
            format!(
                "Timeline {} holds it (from backup {}): if that is what is meant, add --timeline {}.",
                found.timeline, found.backup, found.timeline
            )
        };
        if !text.is_empty() {
            text.push('\n');
        }
        text.push_str(&on);
    }
    text
}

fn refuse_destination(facts: &Facts, backup: &Backup) -> Result<()> {
    let destination = &facts.destination;
    let path = destination.path.display();
    if let Some(pid) = destination.live_pid {
        return Err(
            Error::new("destination-live", format!("a server is running on \"{path}\""))
                .detail(format!("Its postmaster is process {pid}."))
                .hint(format!(
                    "Stop it first: `pg_ctl -D {path} stop`; or restore into another directory."
                )),
        );
    }
    match &destination.state {
        DestinationState::NotADirectory => {
            return Err(Error::new(
                "destination-not-a-directory",
                format!("\"{path}\" is not a directory"),
            )
            .hint("Choose another directory with --into."));
        }
        DestinationState::Other(names) => {
            return Err(Error::new(
                "destination-occupied",
                format!("\"{path}\" holds files that are not a data directory"),
            )
            .detail(format!("Among them: {}.", names.join(", ")))
            .hint("Choose an empty or missing directory with --into, or move these files away."));
        }
        DestinationState::DataDirectory {
            system_identifier: Some(found),
            ..
        } if *found != backup.system_identifier => {
            return Err(Error::new(
                "destination-foreign",
                format!("\"{path}\" is another cluster's data directory"),
            )
            .detail(format!(
                "Its system identifier is {found}; the backup's is {}.",
                backup.system_identifier
            ))
            .hint("Choose another directory with --into, or move this one away yourself."));
        }
        DestinationState::DataDirectory {
            system_identifier: None,
            ..
        } if facts.request.delta => {
            return Err(Error::new(
                "destination-unidentified",
                format!("nothing says whose data directory \"{path}\" is"),
            )
            .detail("Its global/pg_control is missing or cannot be read, so it may be another cluster's.")
            .hint("Restore without --delta: then what is there is kept aside."));
        }
        DestinationState::HalfDelta { marker, .. } | DestinationState::HalfRestored(marker)
            if facts.request.delta && marker.system_identifier != backup.system_identifier =>
        {
            return Err(Error::new(
                "destination-foreign",
                format!("\"{path}\" holds an interrupted restore of another cluster"),
            )
            .detail(format!(
                "It is of cluster \"{}\", system identifier {}; the backup's is {}.",
                marker.cluster, marker.system_identifier, backup.system_identifier
            ))
            .hint("Choose another directory with --into, or finish that restore first."));
        }
        DestinationState::HalfKeptAside(_) if facts.request.delta => {
            return Err(Error::new(
                "destination-half-kept-aside",
                format!("\"{path}\" was being kept aside by a restore that was interrupted"),
            )
            .hint("Run that restore again, without --delta: it finishes what it began."));
        }
        _ => {}
    }
    let uid = destination.effective_uid;
    if let Some((owner, _)) = destination.owner
        && uid != 0
        && uid != owner
    {
        return Err(Error::new(
            "destination-permission",
            format!("\"{path}\" belongs to another account"),
        )
        .detail(format!("It belongs to user id {owner}; pgproof runs as {uid}."))
        .hint("Run pgproof as the account that owns the data directory, or as root."));
    }
    let needed = backup.bytes_restored;
    // What a delta overwrites takes no more room than it has.
    let in_place = facts.request.delta
        && !matches!(
            destination.state,
            DestinationState::Missing | DestinationState::Empty
        );
    if destination.free_bytes < needed && facts.tablespaces.is_empty() && !in_place {
        return Err(Error::new(
            "destination-too-small",
            format!("there is not enough room for \"{path}\""),
        )
        .detail(format!(
            "The backup's files have {needed} bytes; {} are free on the file system of \"{}\". What \
                 is there is \
                 kept aside, so its room is not given free.",
            destination.free_bytes,
            destination.existing_parent.display()
        ))
        .hint("Make room, or choose a directory on another file system with --into."));
    }
    Ok(())
}

/// What is moved out of the way, and where to.
fn keep_aside(destination: &DestinationFacts, stamp: &str) -> Vec<KeptAside> {
    let from = destination.path.clone();
    match &destination.state {
        DestinationState::DataDirectory { tablespaces, .. }
        | DestinationState::HalfDelta { tablespaces, .. } => {
            // The data directory first: from then on the old one cannot be started by its old path.
            let mut kept = vec![if destination.mount_point {
                let to = from.join(format!("pre_pitr_{stamp}"));
                KeptAside::Contents { from, to }
            } else {
                KeptAside::Rename {
                    to: with_suffix(&from, &format!(".pre_pitr_{stamp}")),
                    from,
                }
            }];
            for (oid, location) in tablespaces {
                let to = location.join(format!("pre_pitr_{stamp}"));
                kept.push(KeptAside::Tablespace {
                    oid: *oid,
                    from: location.clone(),
                    to,
                });
            }
            kept
        }
        // Goes on with the same folders, so that the old directory stays in one place.
        DestinationState::HalfKeptAside(marker) => marker.kept_aside.clone(),
        _ => Vec::new(),
    }
}

/// What a delta does besides writing blocks; `None` where there is nothing to overwrite.
fn delta_plan(facts: &Facts, backup: &Backup) -> Option<DeltaPlan> {
    if !facts.request.delta {
        return None;
    }
    let links = match &facts.destination.state {
        DestinationState::DataDirectory { tablespaces, .. }
        | DestinationState::HalfDelta { tablespaces, .. } => tablespaces.as_slice(),
        DestinationState::HalfRestored(_) => &[],
        _ => return None,
    };
    let stays = |oid: Oid| {
        backup
            .tablespaces
            .iter()
            .any(|known| known.oid == oid && !known.in_place)
    };
    Some(DeltaPlan {
        wal_saved: facts.wal_at_risk.clone(),
        version_folder: format!(
            "PG_{}_{}",
            backup.postgresql_version_num / 10_000,
            backup.catalog_version
        ),
        dropped_tablespaces: links.iter().filter(|(oid, _)| !stays(*oid)).cloned().collect(),
    })
}

/// Where WAL goes that no copy has: beside the directory, or into it where it is a mount point.
fn save_wal(destination: &DestinationFacts, delta: &DeltaPlan, stamp: &str) -> Vec<KeptAside> {
    if delta.wal_saved.is_empty() {
        return Vec::new();
    }
    let folder = if destination.mount_point {
        destination.path.join(format!("pre_pitr_{stamp}"))
    } else {
        with_suffix(&destination.path, &format!(".pre_pitr_{stamp}"))
    };
    vec![KeptAside::Wal {
        from: destination.path.join("pg_wal"),
        to: folder.join("pg_wal"),
    }]
}

/// Where the segments that no copy has are found once the old directory is kept aside.
fn carried(facts: &Facts, kept_aside: &[KeptAside], segment_size: u32) -> Vec<PathBuf> {
    let aside = kept_aside.iter().find_map(crate::unarchived::kept_at);
    let Some(old) = aside.or_else(|| facts.old_directory.clone()) else {
        return Vec::new();
    };
    let name = |(timeline, number): &(TimelineId, u64)| segment_name(*timeline, *number, segment_size);
    facts
        .unarchived
        .iter()
        .map(|segment| old.join("pg_wal").join(name(segment)))
        .collect()
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// No location is a live server's, whatever else speaks for it.
fn refuse_live_tablespaces(facts: &Facts, delta: Option<&DeltaPlan>) -> Result<()> {
    let planned = facts.tablespaces.iter().map(|known| (known.oid, &known.location));
    let dropped = delta.into_iter().flat_map(|delta| {
        delta
            .dropped_tablespaces
            .iter()
            .map(|(oid, location)| (*oid, location))
    });
    for (oid, location) in planned.chain(dropped) {
        if let Some(live) = crate::live::user_of(&facts.live_clusters, location) {
            return Err(Error::new(
                "tablespace-location-live",
                format!("tablespace {oid} cannot go to \"{}\"", location.display()),
            )
            .detail(format!(
                "The server on \"{}\" (process {}) uses it.",
                live.data_directory.display(),
                live.pid
            ))
            .hint(format!(
                "Choose an empty directory: --tablespace-mapping {oid}=/path/to/an/empty/directory"
            )));
        }
    }
    Ok(())
}

fn refuse_tablespaces(facts: &Facts, kept_aside: &[KeptAside]) -> Result<()> {
    let moved = |location: &Path| {
        kept_aside
            .iter()
            .any(|kept| matches!(kept, KeptAside::Tablespace { from, .. } if from == location))
            || half_restored(facts, location)
            || overwritten(facts, location)
    };
    for tablespace in &facts.tablespaces {
        let location = &tablespace.location;
        let why = match &tablespace.state {
            LocationState::Occupied(names) if !moved(location) => format!("It holds: {}.", names.join(", ")),
            LocationState::NotADirectory => "It is not a directory.".to_owned(),
            _ => continue,
        };
        let name = facts.attempts.last().and_then(|attempt| {
            let named = attempt
                .backup
                .tablespaces
                .iter()
                .find(|known| known.oid == tablespace.oid)?;
            Some(named.name.clone())
        });
        let name = name.unwrap_or_else(|| tablespace.oid.to_string());
        return Err(Error::new(
            "tablespace-location-in-use",
            format!("tablespace \"{name}\" cannot go to \"{}\"", location.display()),
        )
        .detail(format!("{why} Another cluster may be using it."))
        .hint(format!(
            "Choose an empty directory: --tablespace-mapping {name}=/path/to/an/empty/directory"
        )));
    }
    Ok(())
}

/// Whether a delta restore finds this cluster's own tablespace there.
fn overwritten(facts: &Facts, location: &Path) -> bool {
    match &facts.destination.state {
        DestinationState::DataDirectory { tablespaces, .. } if facts.request.delta => {
            tablespaces.iter().any(|(_, known)| known == location)
        }
        DestinationState::HalfDelta { marker, tablespaces } if facts.request.delta => marker
            .outside
            .iter()
            .chain(tablespaces)
            .any(|(_, known)| known == location),
        _ => false,
    }
}

/// Whether an interrupted restore into this destination was filling that location.
fn half_restored(facts: &Facts, location: &Path) -> bool {
    match &facts.destination.state {
        DestinationState::HalfRestored(marker) | DestinationState::HalfKeptAside(marker) => {
            marker.outside.iter().any(|(_, outside)| outside == location)
        }
        _ => false,
    }
}

fn tablespace_plans(facts: &Facts, backup: &Backup) -> Vec<TablespacePlan> {
    backup
        .tablespaces
        .iter()
        .map(|tablespace| TablespacePlan {
            oid: tablespace.oid,
            name: tablespace.name.clone(),
            original: tablespace.location.clone(),
            location: facts
                .tablespaces
                .iter()
                .find(|known| known.oid == tablespace.oid)
                .map(|known| known.location.clone()),
        })
        .collect()
}

/// Replay makes these at the path in the record, whatever any mapping says (hard rule 30).
fn created_tablespaces(
    facts: &Facts,
    created: Vec<TablespaceCreated>,
    kept_aside: &[KeptAside],
) -> Result<(Vec<TablespaceCreated>, Vec<PathBuf>)> {
    // A copy's sandbox deals with them: it hides these paths, or refuses.
    if facts.request.purpose == Purpose::Copy {
        return Ok((created, Vec::new()));
    }
    if let (Some(first), Some(live)) = (facts.created_tablespaces.first(), facts.live_clusters.first())
        && !facts.request.create_tablespaces
    {
        let paths: Vec<String> = facts
            .created_tablespaces
            .iter()
            .map(|known| format!("\"{}\"", known.location.display()))
            .collect();
        let at = created
            .iter()
            .find(|known| known.oid == first.oid)
            .map_or(Lsn(0), |known| known.at);
        return Err(Error::new(
            "tablespace-created-live",
            format!("the WAL to be replayed creates tablespaces at {}", paths.join(", ")),
        )
        .detail(format!(
            "No setting changes these paths, and a server runs on this host (\"{}\", process {}), which may use \
             them.",
            live.data_directory.display(),
            live.pid
        ))
        .hint(format!(
            "Restore on another host, or to a point before {at} (`--to {at}`); or, if nobody else uses these \
             paths, add --allow-created-tablespaces."
        )));
    }
    let mut directories = Vec::new();
    for tablespace in &facts.created_tablespaces {
        let location = &tablespace.location;
        let moved = kept_aside
            .iter()
            .any(|kept| matches!(kept, KeptAside::Tablespace { from, .. } if from == location));
        let why = match &tablespace.state {
            LocationState::Missing => {
                directories.push(location.clone());
                continue;
            }
            LocationState::Empty => continue,
            LocationState::Occupied(_) if moved || overwritten(facts, location) => continue,
            LocationState::Occupied(names) => format!("That directory holds: {}.", names.join(", ")),
            LocationState::NotADirectory => "That is not a directory.".to_owned(),
        };
        let at = created
            .iter()
            .find(|known| known.oid == tablespace.oid)
            .map_or(Lsn(0), |known| known.at);
        return Err(Error::new(
            "tablespace-created-in-use",
            format!(
                "the WAL to be replayed creates a tablespace at \"{}\"",
                location.display()
            ),
        )
        .detail(format!(
            "{why} Replay would write into it, and no setting changes that path."
        ))
        .hint(format!(
            "Restore on another host, or to a point before {at} (`--to {at}`), or move that directory away."
        )));
    }
    Ok((created, directories))
}

fn configuration(configuration: &Configuration, backup: &Backup) -> (Vec<GeneratedFile>, Vec<String>) {
    let reference: Vec<String> = backup
        .configuration
        .iter()
        .filter(|file| file.path.is_some())
        .map(|file| file.original.clone())
        .collect();
    let file = |name: &str, content: String, reason: &str| GeneratedFile {
        name: name.to_owned(),
        content,
        reason: reason.to_owned(),
    };
    let generated = match configuration {
        Configuration::Generated {
            postgresql_conf,
            pg_hba_conf,
            pg_ident_conf,
        } => {
            let reason = "asked for";
            vec![
                file("pg_hba.conf", pg_hba_conf.clone(), reason),
                file("pg_ident.conf", pg_ident_conf.clone(), reason),
                file("postgresql.conf", postgresql_conf.clone(), reason),
            ]
        }
        Configuration::Restored => {
            let outside = |role: &str| backup.configuration.iter().any(|file| file.role == role);
            let reason = "the original lay outside of the data directory";
            let mut files = Vec::new();
            if outside("hba_file") {
                files.push(file("pg_hba.conf", settings::generated_pg_hba_conf(), reason));
            }
            if outside("ident_file") {
                files.push(file("pg_ident.conf", settings::generated_pg_ident_conf(), reason));
            }
            if outside("config_file") {
                let originals: Vec<String> = backup
                    .configuration
                    .iter()
                    .filter(|file| matches!(file.role.as_str(), "config_file" | "include"))
                    .map(|file| file.original.clone())
                    .collect();
                let content = settings::generated_postgresql_conf(
                    &backup.backup.to_string(),
                    &originals,
                    backup.geometry.wal_segment_size,
                );
                files.push(file("postgresql.conf", content, reason));
            }
            files
        }
    };
    (generated, reference)
}

fn maxima_of(backup: &Backup) -> Maxima {
    Maxima {
        max_connections: backup.settings.max_connections,
        max_worker_processes: backup.settings.max_worker_processes,
        max_wal_senders: backup.settings.max_wal_senders,
        max_prepared_transactions: backup.settings.max_prepared_transactions,
        max_locks_per_transaction: backup.settings.max_locks_per_transaction,
    }
}

fn notes(facts: &Facts, attempt: &Attempt, stops: &[Stop], generated: &[GeneratedFile]) -> Vec<String> {
    let mut notes = Vec::new();
    for history in &facts.unreachable_histories {
        let who = if history.is_poison() {
            ", written by nobody that is known here,"
        } else {
            ""
        };
        notes.push(format!(
            "The history of timeline {}{who} leaves timeline {} at {}, before its archived end at {}; \
             this plan follows \
             timeline {} by its number.",
            history.timeline,
            history.parent,
            history.switch,
            history.parent_end,
            attempt
                .path
                .as_ref()
                .map_or(TimelineId(0), |path| path.timeline())
        ));
    }
    let ends = stops.iter().any(|stop| stop.target.target == Target::Latest);
    if let (true, Some(timeline)) = (ends, facts.timeline) {
        for (number, switch) in &facts.continued_by {
            notes.push(format!(
                "Timeline {number} goes on from timeline {timeline} at {switch}: what was committed there is NOT \
                 recovered by this plan. If it is the cluster as it lives now, add --timeline latest."
            ));
        }
    }
    let unread = attempt.trace.as_ref().map_or(0, |trace| trace.unread.len());
    if unread > 0 {
        notes.push(format!(
            "{unread} records that span two WAL segments could not be read here; commits among them are \
             not counted, and \
             recovery may stop at one of them."
        ));
    }
    if let Some(missing) = attempt
        .backup
        .configuration
        .iter()
        .find(|file| file.path.is_none())
    {
        notes.push(format!(
            "The configuration file {} was not captured.",
            missing.original
        ));
    }
    if facts.request.purpose == Purpose::Server
        && generated.iter().any(|file| file.name == "postgresql.conf")
        && facts.request.configuration == Configuration::Restored
    {
        notes.push(
            "The configuration lay outside of the data directory. Started with its own configuration \
             files, the server \
             still takes recovery's settings from postgresql.auto.conf."
                .into(),
        );
    }
    let dropped = stops.iter().any(|stop| {
        stop.action == Action::Pause && matches!(stop.target.target, Target::BeforeXid(_) | Target::Lsn(_))
    });
    if dropped {
        notes.push(
            "Paused before a transaction ends, its locks are held: a table that it drops cannot be read \
             before promotion."
                .into(),
        );
    }
    if attempt
        .trace
        .as_ref()
        .is_some_and(|trace| !trace.custom_resource_managers.is_empty())
    {
        notes.push(
            "The WAL holds records of extensions' resource managers: shared_preload_libraries must load \
             these extensions."
                .into(),
        );
    }
    notes
}
