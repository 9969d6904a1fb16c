//! Looking through the gates: what a preflight, a plan and the first act of a drill have in common.
//!
//! Invariants: nothing of production's is changed, and nothing stays in the repository (a probe for the store's clock
//! is taken away again); the planner is the one that the drill itself uses; what could not be looked at is kept as the
//! reason why, and judged by `crate::gates`.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use cluster::sandbox::{self, LayerState, Network, Quarantine, Spec};
use cluster::{ConnectOptions, Programs, ServerFacts, Session};
use diagnostic::{Error, Result};
use history::{Archive, Target};
use jiff::Timestamp;
use postgres::Major;
use repository::{Backup, ClusterRepository};
use restore::Plan;

use crate::copy_settings::CopySettings;
use crate::facts::{GateFacts, Rpo, Substitution};
use crate::forecast::{self, EarlierDrill, Prediction};
use crate::gates::{self, BackupSeen, ClockSeen, Seen};
use crate::options::{Drill, DrillTarget};
use crate::perform;
use crate::server_error::texts;

/// A probe of the quarantine answers at once, or something is wrong with it.
const PROBE_LIMIT: Duration = Duration::from_secs(30);
/// Between two looks at it.
const POLL: Duration = Duration::from_millis(20);

/// What production says of itself, and its clock.
#[derive(Debug, Clone)]
pub struct ServerSeen {
    /// Everything at once.
    pub facts: ServerFacts,
    /// The role with OID 10.
    pub superuser: String,
    /// How far its clock is ahead of this host's, in seconds.
    pub clock_ahead: f64,
}

/// Everything that was looked at before a drill.
pub struct Preflight {
    /// Each gate with its result.
    pub gates: Vec<GateFacts>,
    /// The plan, or why there is none. For a point that the drill makes itself: to the end of what is archived now.
    pub plan: Result<Plan>,
    /// How long the recovery will take.
    pub predicted: Option<Prediction>,
    /// What earlier drills took.
    pub earlier: Vec<EarlierDrill>,
}

impl Preflight {
    /// Whether a drill may start.
    pub fn is_go(&self) -> bool {
        !self.gates.iter().any(GateFacts::is_no_go)
    }
}

/// Asks production about itself.
pub fn ask(conninfo: &str, clock: &dyn Fn() -> Timestamp) -> Result<ServerSeen> {
    let connect = ConnectOptions {
        statement_timeout: Duration::from_secs(60),
        ..ConnectOptions::default()
    };
    let mut session = Session::connect_with(conninfo, &connect)?;
    let facts = cluster::gather(&mut session)?;
    let before = clock();
    let row =
        session.one("SELECT rolname, extract(epoch FROM clock_timestamp()) FROM pg_roles WHERE oid = 10")?;
    let after = clock();
    let mut columns = row.into_iter();
    let superuser = columns.next().flatten().unwrap_or_else(|| "postgres".into());
    let theirs = columns.next().flatten().and_then(|text| text.parse::<f64>().ok());
    // The answer was made somewhere between question and arrival.
    let ours = (before.as_microsecond() as f64 + after.as_microsecond() as f64) / 2e6;
    Ok(ServerSeen {
        facts,
        superuser,
        clock_ahead: theirs.map_or(0.0, |theirs| theirs - ours),
    })
}

/// Looks through all gates without a drill.
pub fn look(drill: &Drill<'_>) -> Result<Preflight> {
    let server = drill.production.map(|conninfo| ask(conninfo, drill.clock));
    let loss = drill.rpo.map(|measure| measure());
    let earlier = forecast::load(drill.repository)?;
    let loss = loss.as_ref().map(|loss| loss.as_ref().map_err(said));
    Ok(through(drill, server.as_ref().map(Result::as_ref), loss, earlier))
}

/// An error as it may stand in the evidence, in one line.
fn said(error: &Error) -> String {
    format!("{}: {}", error.code(), texts(error).0)
}

/// The same with what the drill already knows of its server.
pub(crate) fn through(
    drill: &Drill<'_>,
    server: Option<Result<&ServerSeen, &Error>>,
    loss: Option<Result<&Rpo, String>>,
    earlier: Vec<EarlierDrill>,
) -> Preflight {
    let backups = drill.repository.backups();
    let newest = backups.as_ref().ok().and_then(|backups| backups.last());
    let plan = plan(
        drill,
        server.as_ref().and_then(|server| server.as_ref().ok().copied()),
    );
    let predicted = plan.as_ref().ok().and_then(|plan| {
        let wal = plan.wal_segments * u64::from(plan.wal_segment_size);
        forecast::predict(&earlier, plan.bytes, wal)
    });
    let mut clocks = Vec::new();
    if let Some(server) = &server {
        clocks.push(ClockSeen {
            whose: "the server".into(),
            difference: server
                .as_ref()
                .map(|server| server.clock_ahead)
                .map_err(|error| said(error)),
        });
    }
    clocks.push(ClockSeen {
        whose: "the store".into(),
        difference: store_clock(drill.repository, drill.clock).map_err(|error| said(&error)),
    });
    let seen = Seen {
        now: (drill.clock)(),
        backup: match &backups {
            Ok(_) => Ok(newest.map(seen_of)),
            Err(error) => Err(said(error)),
        },
        newest_kept_commit: match &loss {
            Some(Err(_)) => newest_commit(drill.repository, newest),
            _ => None,
        },
        loss: loss.map(|loss| loss.cloned()),
        free: free(&drill.sandbox.parent),
        clocks,
        program: program(drill, newest),
        target: match &plan {
            Ok(plan) => Ok(format!(
                "backup {}, {} WAL segments{}",
                plan.backup,
                plan.wal_segments,
                match drill.profile.target {
                    DrillTarget::Bracket => " to the end of what is archived",
                    DrillTarget::Point(..) => "",
                }
            )),
            Err(error) => Err(said(error)),
        },
        predicted,
        isolation: isolation(drill),
    };
    Preflight {
        gates: gates::judge(&drill.profile, &drill.people, &seen),
        plan,
        predicted,
        earlier,
    }
}

/// Where a drill's copy would differ from what `restore` makes of the same plan.
pub fn substitutions(drill: &Drill<'_>, plan: &Plan) -> Vec<Substitution> {
    let major = plan
        .postgresql_version
        .split('.')
        .next()
        .and_then(|text| text.parse().ok());
    let settings = CopySettings {
        major: Major(major.unwrap_or(Major::NEWEST.0)),
        wal_segment_size: plan.wal_segment_size,
        maxima: plan.maxima,
        restore_command: &plan.restore_command,
        folder: &plan.destination,
        memory_bytes: crate::isolation::memory(drill),
        preload: &drill.sandbox.preload,
        faults: &drill.faults,
    };
    settings.substitutions()
}

fn seen_of(backup: &Backup) -> BackupSeen {
    BackupSeen {
        id: backup.backup.to_string(),
        finished_at: backup.finished_at,
        bytes: backup.bytes_restored,
        checksums: backup.data_checksum_version != 0,
    }
}

/// What would be planned now, without a folder: nothing is made.
fn plan(drill: &Drill<'_>, server: Option<&ServerSeen>) -> Result<Plan> {
    let backups = drill.repository.backups()?;
    let archive = perform::archive_of(drill, &backups, server)?;
    let stops = match &drill.profile.target {
        target @ DrillTarget::Point(..) => perform::stops(target, None),
        DrillTarget::Bracket => vec![perform::stop(Target::Latest.into(), perform::REQUESTED.into())],
    };
    let parent =
        std::fs::canonicalize(&drill.sandbox.parent).unwrap_or_else(|_| drill.sandbox.parent.clone());
    let place = perform::Place {
        folder: parent.join("pgproof-drill"),
        restore_command: "/bin/sh '<the copy>/feed/fetch.sh' '<the copy>/feed' '%f' '%p'".into(),
        backup: drill.backup,
    };
    let timeline = server.map(|server| server.facts.timeline);
    perform::plan_for(drill, &backups, &archive, stops, timeline, &place)
}

/// The newest commit that is archived on the newest backup's way.
fn newest_commit(repository: &ClusterRepository, newest: Option<&Backup>) -> Option<Timestamp> {
    let backup = newest?;
    let size = backup.geometry.wal_segment_size;
    let archive = Archive::load(std::slice::from_ref(repository), backup.system_identifier, size).ok()?;
    let end = archive.end(backup.timeline).ok()??;
    Some(end.last_commit?.time.to_jiff())
}

/// How far the store's clock is ahead: it dates an object that is written for the purpose.
fn store_clock(repository: &ClusterRepository, clock: &dyn Fn() -> Timestamp) -> Result<f64> {
    let store = repository.repository().store();
    let before = clock();
    // Under a name that the format keeps for nothing.
    let name = format!("probe/clock-{}-{}", std::process::id(), before.as_microsecond());
    store.put_new(&name, b"pgproof asks for the time\n")?;
    let after = clock();
    let dated = store.list(&name).map(|objects| {
        objects
            .into_iter()
            .find(|object| object.name == name)
            .map(|object| object.modified)
    });
    // An account that may not delete leaves a few bytes that nobody reads.
    let _ = store.delete(&name);
    let dated = dated?
        .ok_or_else(|| Error::new("object-missing", "the store does not list what was just written"))?;
    let (dated, before, after) = (
        dated.as_microsecond() as f64 / 1e6,
        before.as_microsecond() as f64 / 1e6,
        after.as_microsecond() as f64 / 1e6,
    );
    // Stores date by the second or finer: what lies in between agrees.
    Ok(match dated {
        dated if dated > after => dated - after,
        dated if dated + 1.0 < before => dated + 1.0 - before,
        _ => 0.0,
    })
}

fn free(parent: &Path) -> Result<(PathBuf, u64), String> {
    match rustix::fs::statvfs(parent) {
        Ok(found) => Ok((parent.into(), found.f_bavail.saturating_mul(found.f_frsize))),
        Err(error) => Err(format!("{}: {error}", parent.display())),
    }
}

fn program(drill: &Drill<'_>, newest: Option<&Backup>) -> Result<String, String> {
    let Some(backup) = newest else {
        return Err("there is no backup that says which version".into());
    };
    let major = Major((backup.postgresql_version_num / 10_000) as u16);
    match Programs::find(major, &drill.sandbox.programs) {
        Ok(programs) => Ok(programs.version),
        Err(error) => Err(said(&error)),
    }
}

/// Enters the quarantine as a drill does, with a program that does nothing.
fn isolation(drill: &Drill<'_>) -> Result<Vec<String>, String> {
    let Some(launcher) = &drill.sandbox.launcher else {
        return Ok(vec!["every layer (there is no launcher)".into()]);
    };
    let parent = std::fs::canonicalize(&drill.sandbox.parent).map_err(|error| error.to_string())?;
    let folder = parent.join(format!("pgproof-preflight-{}", std::process::id()));
    let made = std::fs::create_dir(&folder).map_err(|error| format!("{}: {error}", folder.display()));
    made?;
    let result = enter(drill, launcher, &folder);
    let removed = std::fs::remove_dir_all(&folder);
    removed.map_err(|error| format!("{}: {error}", folder.display()))?;
    result
}

fn enter(drill: &Drill<'_>, launcher: &cluster::Launcher, folder: &Path) -> Result<Vec<String>, String> {
    let owner = crate::isolation::owner(drill);
    if let Some((uid, gid)) = owner {
        std::os::unix::fs::chown(folder, Some(uid), Some(gid)).map_err(|error| error.to_string())?;
    }
    let quarantine = Quarantine {
        folder: folder.into(),
        hidden: Vec::new(),
        readable: Vec::new(),
        network: Network::None,
        addresses: Vec::new(),
    };
    let spec = Spec::new(quarantine, owner);
    let path = folder.join("spec.json");
    spec.write(&path).map_err(|error| said(&error))?;
    let mut child = Command::new(&launcher.program)
        .args(&launcher.arguments)
        .arg("--spec")
        .arg(&path)
        .args(["--", "/bin/true"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| error.to_string())?;
    let began = Instant::now();
    loop {
        match child.try_wait() {
            Ok(Some(_)) => break,
            Ok(None) if began.elapsed() < PROBE_LIMIT => std::thread::sleep(POLL),
            other => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(match other {
                    Err(error) => error.to_string(),
                    _ => format!("the quarantine did not answer within {} s", PROBE_LIMIT.as_secs()),
                });
            }
        }
    }
    let report = sandbox::Report::read(&spec.report).map_err(|error| said(&error))?;
    let layers = &report.layers;
    Ok([
        ("landlock", &layers.landlock),
        ("user-namespace", &layers.user_namespace),
        ("mount-namespace", &layers.mount_namespace),
        ("network-namespace", &layers.network_namespace),
        ("ipc-namespace", &layers.ipc_namespace),
        ("no-new-privileges", &layers.no_new_privileges),
    ]
    .into_iter()
    .filter_map(|(name, state)| match state {
        LayerState::Applied => None,
        LayerState::Unavailable { reason } => Some(format!("{name} ({reason})")),
    })
    .collect())
}
