//! The steps of a drill: what each does, in order.
//!
//! Invariants: production is asked and the point is made before anything is restored; the copy is started only over a plan
//! of the planner that `restore` uses; each stop is looked at while the server stands there; what changes the copy
//! (promotion, an extension for amcheck) comes after everything that compares it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use cluster::sandbox::{LayerState, Network, Probe, Quarantine, Report};
use cluster::{ConnectOptions, Programs, ServerFacts, Session};
use diagnostic::{Error, Result};
use history::{Archive, Target, Wanted};
use postgres::{Lsn, Major, SystemIdentifier, TimelineId};
use repository::Backup;
use restore::wal::{PlaceOptions, PlacedWal, place_wal};
use restore::{Action, Configuration, Plan, Purpose, Request, StopRequest};

use crate::amcheck::{self, AmcheckResult, Extension};
use crate::archive;
use crate::checks::{self, Markers};
use crate::copy::{Copy, CopyFolder, Isolation, remove_leftovers};
use crate::copy_settings::CopySettings;
use crate::engine::{Ended, Run};
use crate::facts::{
    Facts, Input, Layer, PlanFacts, ProbeFacts, ProbeResult, QuarantineFacts, QuarantineLevel, RowProof, Rto, Side, StopFacts,
    StopOutcome, TableProof,
};
use crate::fault;
use crate::feed::{Feed, Fetched};
use crate::options::{Drill, DrillTarget, Fault, Watcher};
use crate::page_checks::check_pages;
use crate::point::{self, Point, PointOptions};
use crate::rows::{self, DatabaseDigest, Look, RowKey};
use crate::sequences;
use crate::server_error::{recordable, sqlstate};

/// How many steps there are before the copy is removed.
pub const STEPS: usize = 12;
/// Sessions at once for digests and amcheck: production is not to be crowded.
const SESSIONS: usize = 2;
/// The part of the host's free memory that a copy takes when nobody says how much.
const MEMORY_SHARE: u64 = 2;
/// Free memory when the system does not tell it.
const MEMORY_UNKNOWN: u64 = 1 << 30;

/// What is known of production.
struct Production {
    facts: ServerFacts,
    superuser: String,
}

/// What the archive looked like before anything was done.
struct Before {
    listing: archive::Listing,
}

/// The copy's account: only root chooses one.
pub fn owner(drill: &Drill<'_>) -> Option<(u32, u32)> {
    drill.sandbox.owner.filter(|_| rustix::process::geteuid().is_root())
}

/// All steps up to the removal of the copy.
pub(crate) fn perform(run: &mut Run<'_>, folder: &CopyFolder, slot: &mut Option<Copy>) -> Result<(), Ended> {
    let drill = run.drill;
    let production = run.step("look", "Look at production and clean up after interrupted drills", look)?;
    measure_rpo(run)?;
    let before = run.step("archive-before", "List the WAL archive", archive_before)?;
    let key = run.step("keys", "Draw the keys of the row digests", |_| Ok((RowKey::generate()?, String::new())))?;
    let point = make_point(run, production.as_ref(), &key)?;
    let (plan, backup) = run.step("plan", "Plan with the planner of restore", |run| {
        make_plan(run, folder, point.as_ref(), production.as_ref())
    })?;
    run.step("restore", "Restore the backup into the sandbox", |run| restore_backup(run, &plan))?;
    *slot = Some(run.step("quarantine", "Prepare the quarantine", |run| {
        open_copy(run, folder, &plan, &backup, production.as_ref())
    })?);
    let Some(copy) = slot.as_mut() else { return Err(Ended) };
    run.step("recover", "Recover to each stop, and look at the copy there", |run| {
        recover(run, copy, &plan, &backup, point.as_ref(), &key)
    })?;
    check_sound(run, copy, &plan, &backup)?;
    run.step("archive-after", "Compare the WAL archive with its listing before", |run| {
        let system = plan.system_identifier;
        let timeline = production.as_ref().map_or(plan.timeline, |production| production.facts.timeline);
        archive_after(run, &before, system, timeline)
    })?;
    let rto = checks::rto(&drill_objectives(run), run.facts.rto.as_ref());
    if drill.profile.rto.is_some() {
        run.facts.checks.push(rto);
    }
    Ok(())
}

fn drill_objectives(run: &Run<'_>) -> crate::facts::Objectives {
    run.facts.objectives.clone()
}

fn look(run: &mut Run<'_>) -> Result<(Option<Production>, String)> {
    let drill = run.drill;
    let removed = remove_leftovers(&drill.sandbox.parent)?;
    let mut detail = match removed.len() {
        0 => String::new(),
        count => format!("removed what {count} interrupted drills had left; "),
    };
    let Some(conninfo) = drill.production else {
        detail.push_str("production is not asked: the target is a point of the past");
        return Ok((None, detail));
    };
    let connect = ConnectOptions { statement_timeout: Duration::from_secs(60), ..ConnectOptions::default() };
    let mut session = Session::connect_with(conninfo, &connect)?;
    let facts = cluster::gather(&mut session)?;
    let row = session.one("SELECT rolname FROM pg_roles WHERE oid = 10")?;
    let superuser = row.into_iter().next().flatten().unwrap_or_else(|| "postgres".into());
    run.facts.scope.system_identifier = facts.system_identifier.to_string();
    run.facts.scope.server_version = Some(facts.version.clone());
    detail.push_str(&format!("PostgreSQL {}, timeline {}", facts.version, facts.timeline));
    Ok((Some(Production { facts, superuser }), detail))
}

/// Before the point: making it archives everything, and nothing would be left to lose.
fn measure_rpo(run: &mut Run<'_>) -> Result<(), Ended> {
    let Some(measure) = run.drill.rpo else {
        run.skip("rpo", "Measure what would be lost now", "no way to measure it was given");
        return Ok(());
    };
    run.step("rpo", "Measure what would be lost now", |run| {
        let started = Instant::now();
        let measured = measure();
        let objectives = drill_objectives(run);
        let check = match &measured {
            Ok(rpo) => checks::rpo(&objectives, Ok(rpo)),
            Err(error) => checks::rpo(&objectives, Err(recordable(error))),
        };
        if run.drill.profile.rpo.is_some() {
            run.facts.checks.push(checks::timed(check, started.elapsed()));
        }
        // That it could not be measured is a result of the check; the drill goes on.
        let detail = match &measured {
            Ok(rpo) => format!("{} commits, {} bytes of WAL", rpo.commits, rpo.bytes),
            Err(error) => format!("could not be measured: {}", recordable(error)),
        };
        run.facts.rpo = measured.ok();
        Ok(((), detail))
    })
}

fn archive_before(run: &mut Run<'_>) -> Result<(Before, String)> {
    let listing = archive::list(run.drill.repository)?;
    let detail = format!("{} objects", listing.len());
    Ok((Before { listing }, detail))
}

fn make_point(
    run: &mut Run<'_>,
    production: Option<&Production>,
    key: &RowKey,
) -> Result<Option<Point>, Ended> {
    let title = "Make a point in production and digest its rows";
    let (DrillTarget::Bracket, Some(production), Some(conninfo)) =
        (&run.drill.profile.target, production, run.drill.production)
    else {
        run.skip("point", title, "the target is a point of the past");
        return Ok(None);
    };
    run.step("point", title, |run| {
        let drill = run.drill;
        let profile = &drill.profile;
        let drill_id = run.facts.identity.drill_id.clone();
        let options = PointOptions {
            drill_id: &drill_id,
            now: run.facts.started_at,
            conninfo,
            server: &production.facts,
            repository: drill.repository,
            snapshots: profile.snapshots,
            attempts: profile.point_attempts,
            archive_timeout: profile.archive_timeout,
            statement_timeout: profile.statement_timeout,
            row_proof: profile.checks.iter().any(|id| id == "row-proof"),
            sessions: SESSIONS,
            abort: drill.abort,
            watcher: drill.watcher,
        };
        let point = point::make(&options, key)?;
        run.facts.bracket = Some(point.facts.clone());
        run.facts.scope.databases = point.databases.iter().map(|each| each.database.clone()).collect();
        run.facts.scope.excluded =
            point.databases.iter().flat_map(|each| each.digest.excluded.iter().cloned()).collect();
        let tables: usize = point.databases.iter().map(|each| each.digest.tables.len()).sum();
        let detail = format!(
            "{tables} relations of {} databases digested, WAL archived after {} ms",
            point.databases.len(),
            point.facts.archived_after_ms
        );
        Ok((Some(point), detail))
    })
}

/// The stops, in the order in which recovery comes to them.
fn stops(drill: &Drill<'_>, point: Option<&Point>) -> Vec<StopRequest> {
    let stop = |wanted: Wanted, purpose: String| StopRequest { wanted, action: Action::Pause, purpose };
    match (&drill.profile.target, point) {
        (DrillTarget::Point(target, _), _) => {
            vec![stop(Wanted::from(target.clone()), "the requested target".into())]
        }
        (DrillTarget::Bracket, None) => Vec::new(),
        (DrillTarget::Bracket, Some(point)) => {
            let name = Target::Name(point.facts.restore_point.clone());
            let mut stops = vec![stop(Wanted::from(name), "the requested target".into())];
            let mut by_lsn: BTreeMap<Lsn, Vec<&str>> = BTreeMap::new();
            for database in &point.databases {
                by_lsn.entry(database.lsn).or_default().push(&database.database);
            }
            for (lsn, databases) in by_lsn {
                let wanted = Wanted { target: Target::Lsn(lsn), inclusive: Some(false) };
                stops.push(stop(wanted, format!("row proof of {}", databases.join(", "))));
            }
            stops
        }
    }
}

fn make_plan(
    run: &mut Run<'_>,
    folder: &CopyFolder,
    point: Option<&Point>,
    production: Option<&Production>,
) -> Result<((Plan, Backup), String)> {
    let drill = run.drill;
    let started = Instant::now();
    let backups = drill.repository.backups()?;
    let Some((system, segment_size)) = restore::system_of(&backups) else {
        return Err(Error::new("no-backup", format!("cluster \"{}\" has no backup to restore", drill.repository.name())));
    };
    run.facts.scope.system_identifier = system.to_string();
    if let Some(production) = production
        && production.facts.system_identifier != system
    {
        return Err(Error::new("no-backup", "the newest backup is of another cluster than the one that answers")
            .detail(format!("The backup's system identifier is {system}, production's {}.", production.facts.system_identifier)));
    }
    let archive = Archive::load(std::slice::from_ref(drill.repository), system, segment_size)?;
    histories(run, &archive, &backups)?;
    let feed = Feed::create(&folder.path.join("feed"), segment_size, owner(drill))?;
    let blank = CopySettings {
        major: Major(15),
        maxima: Default::default(),
        restore_command: "",
        folder: &folder.path,
        memory_bytes: 0,
        preload: &[],
        faults: &[],
    };
    let request = Request {
        cluster: drill.repository.name().to_string(),
        stops: stops(drill, point),
        timeline: production.map(|production| production.facts.timeline),
        backup: None,
        destination: folder.path.join("data"),
        tablespaces: Vec::new(),
        restore_command: feed.restore_command()?,
        purpose: Purpose::Copy,
        configuration: Configuration::Generated {
            postgresql_conf: blank.postgresql_conf(),
            pg_hba_conf: blank.pg_hba_conf(),
            pg_ident_conf: blank.pg_ident_conf(),
        },
        settings: Vec::new(),
        owner: owner(drill),
    };
    let facts = restore::gather(request, &backups, &archive)?;
    let plan = restore::plan(&facts, (drill.clock)())?;
    let backup = backups
        .into_iter()
        .find(|backup| backup.backup == plan.backup)
        .ok_or_else(|| Error::new("backup-missing", format!("backup {} is gone", plan.backup)))?;
    record_plan(run, &plan, &backup);
    run.facts.rto = Some(Rto { plan_ms: started.elapsed().as_millis() as u64, ..Rto::default() });
    refuse_plan(drill, &plan)?;
    let detail = format!("backup {}, {} WAL segments, {} stops", plan.backup, plan.wal_segments, plan.stops.len());
    Ok(((plan, backup), detail))
}

fn record_plan(run: &mut Run<'_>, plan: &Plan, backup: &Backup) {
    let value = serde_json::to_value(plan).unwrap_or_default();
    let digest = blake3::hash(value.to_string().as_bytes()).to_hex().to_string();
    run.facts.plan = Some(PlanFacts { text: plan.to_string(), digest, value });
    run.facts.scope.server_version.get_or_insert_with(|| backup.postgresql_version.clone());
    let age = run.facts.started_at.duration_since(backup.finished_at).as_secs();
    run.facts.input = Some(Input {
        repository: run.drill.repository.repository().store().url(),
        backup: backup.backup.to_string(),
        backup_started_at: backup.started_at,
        backup_finished_at: backup.finished_at,
        backup_age_seconds: age,
        start_lsn: backup.start_lsn,
        stop_lsn: backup.stop_lsn,
        timeline: plan.timeline.0,
        files: plan.files,
        bytes: plan.bytes,
        first_wal_segment: None,
        last_wal_segment: None,
        wal_segments: 0,
        wal_bytes: 0,
        encryption: "AES-256-GCM, a key for each object".into(),
    });
}

/// What a sandbox cannot carry out.
fn refuse_plan(drill: &Drill<'_>, plan: &Plan) -> Result<()> {
    if let Some(created) = plan.created_tablespaces.first() {
        return Err(Error::new("tablespace-created", "the WAL to be replayed creates a tablespace")
            .detail(format!(
                "At {} replay makes one at \"{}\"; no setting changes that path, and the quarantine lets nothing be \
                 written there.",
                created.at, created.location
            ))
            .hint("Take a new base backup, which holds the tablespace, and drill again."));
    }
    if !plan.custom_resource_managers.is_empty() && drill.sandbox.preload.is_empty() {
        let ids: Vec<String> = plan.custom_resource_managers.iter().map(ToString::to_string).collect();
        return Err(Error::new("resource-manager-missing", "replay needs a library that is not preloaded")
            .detail(format!("The WAL holds records of the resource managers {}.", ids.join(", ")))
            .hint("Name the libraries that provide them as those that a drill may preload."));
    }
    Ok(())
}

fn histories(run: &mut Run<'_>, archive: &Archive, backups: &[Backup]) -> Result<()> {
    let started = Instant::now();
    let backed_up = backups
        .iter()
        .filter(|backup| backup.system_identifier == archive.system())
        .map(|backup| backup.timeline)
        .collect();
    let found = archive.unreachable_histories(&backed_up)?;
    let poison: Vec<String> = found
        .iter()
        .filter(|each| each.is_poison())
        .map(|each| format!("timeline {} leaving {} at {}", each.timeline, each.parent, each.switch))
        .collect();
    let check = checks::timeline_histories(&poison, found.len() - poison.len());
    run.facts.checks.push(checks::timed(check, started.elapsed()));
    run.facts.archive.get_or_insert_default().foreign_histories = poison;
    Ok(())
}

/// Passes the progress of a restore on.
struct RestoreProgress<'a> {
    watcher: &'a dyn Watcher,
    bytes: std::sync::atomic::AtomicU64,
    total: u64,
}

impl restore::Progress for RestoreProgress<'_> {
    fn advance(&self, bytes: u64, _files: u64) {
        let before = self.bytes.fetch_add(bytes, std::sync::atomic::Ordering::Relaxed);
        self.watcher.advance(before + bytes, Some(self.total), "bytes");
    }
}

fn threads(drill: &Drill<'_>) -> usize {
    match drill.sandbox.threads {
        0 => std::thread::available_parallelism().map_or(2, std::num::NonZeroUsize::get),
        threads => threads,
    }
}

fn restore_backup(run: &mut Run<'_>, plan: &Plan) -> Result<((), String)> {
    let drill = run.drill;
    let started = Instant::now();
    let progress = RestoreProgress { watcher: drill.watcher, bytes: 0.into(), total: plan.bytes };
    let options = restore::ExecuteOptions { threads: threads(drill), progress: &progress };
    let result = restore::execute(plan, drill.repository, &options)?;
    if let Some(rto) = &mut run.facts.rto {
        rto.restore_ms = started.elapsed().as_millis() as u64;
    }
    Ok(((), format!("{} files, {} bytes", result.files, result.bytes)))
}

/// Half of what the kernel says is available.
fn memory(drill: &Drill<'_>) -> u64 {
    if let Some(bytes) = drill.sandbox.memory_bytes {
        return bytes;
    }
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let available = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))
        .and_then(|rest| rest.trim().trim_end_matches("kB").trim().parse::<u64>().ok());
    available.map_or(MEMORY_UNKNOWN, |kilobytes| kilobytes * 1024 / MEMORY_SHARE)
}

fn open_copy(
    run: &mut Run<'_>,
    folder: &CopyFolder,
    plan: &Plan,
    backup: &Backup,
    production: Option<&Production>,
) -> Result<(Copy, String)> {
    let drill = run.drill;
    let major = Major((backup.postgresql_version_num / 10_000) as u16);
    let programs = Programs::find(major, &drill.sandbox.programs)?;
    run.facts.scope.copy_server_version = Some(programs.version.clone());
    let settings = CopySettings {
        major,
        maxima: plan.maxima,
        restore_command: &plan.restore_command,
        folder: &folder.path,
        memory_bytes: memory(drill),
        preload: &drill.sandbox.preload,
        faults: &drill.faults,
    };
    let production_preload =
        production.map(|production| production.facts.shared_preload_libraries.clone()).unwrap_or_default();
    run.facts.substitutions = settings.substitutions();
    let neutralised = settings.neutralised(&production_preload);
    run.facts.quarantine = Some(QuarantineFacts {
        layers: Vec::new(),
        probes: Vec::new(),
        neutralised,
        level: QuarantineLevel::ConfigurationOnly,
    });
    let isolation = Isolation {
        launcher: drill.sandbox.launcher.clone(),
        quarantine: quarantine(drill, folder, backup, production),
        run_as: owner(drill),
    };
    let superuser = production
        .map(|production| production.superuser.clone())
        .or_else(|| drill.sandbox.superuser.clone())
        .unwrap_or_else(|| "postgres".into());
    // The feed exists since the plan, which holds its command.
    let feed = Feed::create(&folder.path.join("feed"), plan.wal_segment_size, owner(drill))?;
    let repository = drill.repository.clone();
    let options = PlaceOptions { system: plan.system_identifier, wal_segment_size: plan.wal_segment_size };
    let last = plan.wal.last().map(|range| (range.timeline, range.last));
    let copy = Copy::open(&folder.path, &programs, feed, settings.command_line(), &isolation, &superuser, move |feed, stop| {
        let fetch = |name: &str, to: &std::path::Path| -> Result<Fetched> {
            Ok(match place_wal(name, to, std::slice::from_ref(&repository), &options)? {
                PlacedWal::Placed(placed) => Fetched::Placed(placed.bytes),
                PlacedWal::Absent(_) => Fetched::Absent,
            })
        };
        feed.serve(&fetch, last, stop);
    })?;
    if drill.faults.contains(&Fault::ArchiveCommandInherited) {
        run.facts.planted_faults.push(Fault::ArchiveCommandInherited.as_str().into());
    }
    Ok((copy, format!("PostgreSQL {} in {}", programs.version, folder.path.display())))
}

/// What the copy must not see: everything of production's that is known.
fn quarantine(drill: &Drill<'_>, folder: &CopyFolder, backup: &Backup, production: Option<&Production>) -> Quarantine {
    let mut hidden = drill.sandbox.hidden.clone();
    hidden.extend(backup.tablespaces.iter().filter(|each| !each.in_place).map(|each| PathBuf::from(&each.location)));
    let mut addresses = Vec::new();
    if let Some(production) = production {
        let facts = &production.facts;
        hidden.push(facts.data_directory.clone());
        hidden.extend(facts.socket_directories.iter().cloned());
        hidden.extend(facts.tablespaces.iter().filter(|each| !each.in_place).map(|each| each.location.clone()));
        addresses.push(std::net::SocketAddr::from(([127, 0, 0, 1], facts.port)));
    }
    hidden.retain(|path| path.is_absolute());
    hidden.sort();
    hidden.dedup();
    Quarantine { folder: folder.path.clone(), hidden, readable: Vec::new(), network: Network::None, addresses }
}

/// Everything that is gathered while the copy stands at its stops.
#[derive(Default)]
struct Seen {
    markers: Vec<(String, Result<Markers, String>)>,
    proof: RowProof,
    unreached: Vec<String>,
    /// Tables that were locked at the last stop: looked at again after promotion.
    locked: BTreeMap<String, Vec<String>>,
    checks: Duration,
}

fn recover(
    run: &mut Run<'_>,
    copy: &mut Copy,
    plan: &Plan,
    backup: &Backup,
    point: Option<&Point>,
    key: &RowKey,
) -> Result<((), String)> {
    let drill = run.drill;
    run.facts.target.stops = plan
        .stops
        .iter()
        .map(|stop| StopFacts {
            purpose: stop.purpose.clone(),
            settings: stop.settings.clone(),
            outcome: StopOutcome::NotTried,
            reached_lsn: None,
            reached_time: None,
            stop_line: None,
            duration_ms: 0,
        })
        .collect();
    let mut seen = Seen { proof: RowProof { definition: rows::DEFINITION.into(), ..RowProof::default() }, ..Seen::default() };
    seen.unreached = point.map(|point| point.unreached.iter().map(|each| format!("{}: {}", each.what, each.why)).collect()).unwrap_or_default();
    for (at, stop) in plan.stops.iter().enumerate() {
        go_to_stop(run, copy, plan, at)?;
        let last = at + 1 == plan.stops.len();
        if last && drill.faults.contains(&Fault::RowChangedInCopy) {
            plant_row_change(run, copy, plan, at, backup, point)?;
        }
        let started = Instant::now();
        look_at_stop(run, copy, point, stop.target.stop, &stop.purpose, key, &mut seen)?;
        if last {
            look_at_copy(run, copy)?;
            promote_for_locked(run, copy, point, key, &mut seen)?;
            check_of_users(run, copy)?;
        }
        seen.checks += started.elapsed();
    }
    conclude(run, point, seen);
    Ok(((), format!("stood at {} stops", plan.stops.len())))
}

/// Starts the copy for one stop and waits until it stands there.
fn go_to_stop(run: &mut Run<'_>, copy: &mut Copy, plan: &Plan, at: usize) -> Result<()> {
    let drill = run.drill;
    let started = Instant::now();
    if let Some(stop) = plan.stops.get(at) {
        drill.watcher.note(&format!("recovering to {}: {}", stop.purpose, stop.target.target));
    }
    copy.stop()?;
    let opens_at = opens_at(plan, at);
    let timeout = drill.profile.replay_timeout;
    let reached = copy.spawn(plan, at).and_then(|()| copy.wait_for_stop(opens_at, timeout, drill.abort));
    let quarantine = record_quarantine(run, copy);
    let Some(facts) = run.facts.target.stops.get_mut(at) else { return Ok(()) };
    facts.duration_ms = started.elapsed().as_millis() as u64;
    match reached {
        Ok(reached) => {
            facts.outcome = if opens_at.is_some() { StopOutcome::Opened } else { StopOutcome::Paused };
            facts.reached_lsn = reached.lsn;
            facts.reached_time = reached.time;
            facts.stop_line = reached.line;
            if let Some(rto) = &mut run.facts.rto {
                if at == 0 {
                    rto.start_ms = reached.start.as_millis() as u64;
                    rto.replay_ms = reached.replay.as_millis() as u64;
                    rto.total_ms = rto.plan_ms + rto.restore_ms + rto.start_ms + rto.replay_ms;
                } else {
                    rto.proof_replay_ms += started.elapsed().as_millis() as u64;
                }
            }
        }
        Err(error) => {
            facts.outcome = StopOutcome::Failed;
            if at == 0 {
                // No recovery time exists for a target that was not reached.
                run.facts.rto = None;
            }
            return Err(error);
        }
    }
    quarantine
}

/// The end of the archived WAL is no recovery target: the copy opens there.
fn opens_at(plan: &Plan, at: usize) -> Option<Lsn> {
    plan.stops.get(at).filter(|stop| stop.target.target == Target::Latest).map(|stop| stop.target.stop)
}

/// Takes over what the quarantine reported about itself.
fn record_quarantine(run: &mut Run<'_>, copy: &Copy) -> Result<()> {
    let report = copy.quarantine_report()?;
    let Some(facts) = &mut run.facts.quarantine else { return Ok(()) };
    if let Some(report) = report {
        facts.layers = layers(&report);
        facts.probes = report.probes.iter().map(probe).collect();
        facts.level = match facts.layers.iter().filter(|layer| layer.applied).count() {
            all if all == facts.layers.len() => QuarantineLevel::Full,
            _ if report.layers.protects_files() => QuarantineLevel::Partial,
            _ => QuarantineLevel::ConfigurationOnly,
        };
    }
    let check = checks::quarantine(facts);
    run.facts.checks.retain(|check| check.id != "quarantine");
    run.facts.checks.push(check);
    Ok(())
}

fn layers(report: &Report) -> Vec<Layer> {
    let each = &report.layers;
    [
        ("landlock", &each.landlock),
        ("user-namespace", &each.user_namespace),
        ("mount-namespace", &each.mount_namespace),
        ("network-namespace", &each.network_namespace),
        ("ipc-namespace", &each.ipc_namespace),
        ("no-new-privileges", &each.no_new_privileges),
    ]
    .into_iter()
    .map(|(name, state)| Layer {
        name: name.into(),
        applied: state.is_applied(),
        reason: match state {
            LayerState::Applied => None,
            LayerState::Unavailable { reason } => Some(reason.clone()),
        },
    })
    .collect()
}

fn probe(probe: &Probe) -> ProbeFacts {
    use cluster::sandbox::{ProbeExpectation, ProbeOutcome};
    ProbeFacts {
        name: format!("{} {}", probe.name, probe.target),
        expectation: match probe.expectation {
            ProbeExpectation::Denied => "denied".into(),
            ProbeExpectation::Allowed => "allowed".into(),
        },
        outcome: match &probe.outcome {
            ProbeOutcome::Denied { reason } => format!("denied: {reason}"),
            ProbeOutcome::Allowed => "allowed".into(),
            ProbeOutcome::NotRun { reason } => format!("not run: {reason}"),
        },
        result: match (probe.held(), probe.failed()) {
            (true, _) => ProbeResult::Held,
            (_, true) => ProbeResult::Breached,
            _ => ProbeResult::NotRun,
        },
    }
}

fn plant_row_change(
    run: &mut Run<'_>,
    copy: &mut Copy,
    plan: &Plan,
    at: usize,
    backup: &Backup,
    point: Option<&Point>,
) -> Result<()> {
    let mut candidates = Vec::new();
    for database in point.map(|point| point.databases.as_slice()).unwrap_or_default() {
        candidates.extend(fault::candidates(&copy.conninfo(&database.database), &database.database)?);
    }
    copy.stop()?;
    let what = fault::change_one_row(copy.data(), &candidates, backup.data_checksum_version != 0)?;
    run.facts.planted_faults.push(format!("{}: {what}", Fault::RowChangedInCopy.as_str()));
    copy.spawn(plan, at)?;
    copy.wait_for_stop(opens_at(plan, at), run.drill.profile.replay_timeout, run.drill.abort)?;
    Ok(())
}

/// Markers, row digests and sequences of the databases whose LSN this stop is.
fn look_at_stop(
    run: &mut Run<'_>,
    copy: &Copy,
    point: Option<&Point>,
    stop: Lsn,
    purpose: &str,
    key: &RowKey,
    seen: &mut Seen,
) -> Result<()> {
    let Some(point) = point else { return Ok(()) };
    seen.markers.push((purpose.to_string(), read_markers(copy, point)));
    for database in point.databases.iter().filter(|database| database.lsn == stop) {
        let name = &database.database;
        if purpose == "the requested target" {
            continue;
        }
        run.drill.watcher.note(&format!("digesting database \"{name}\" of the copy at {}", database.lsn));
        let digest = digest_copy(run.drill, copy, name, key, None)?;
        let locked: Vec<String> = digest
            .tables
            .iter()
            .filter(|(_, side)| matches!(side, Side::CouldNotLook(why) if why.contains("55P03")))
            .map(|(table, _)| table.clone())
            .collect();
        if !locked.is_empty() {
            seen.locked.insert(name.clone(), locked);
        }
        seen.proof.tables.extend(compare(name, &database.digest, &digest));
        let mut session = rows::connect(&copy.conninfo(name), name, run.drill.profile.statement_timeout)?;
        let positions = sequences::read(&mut session)?;
        seen.proof.sequences.extend(sequences::compare(
            name,
            &database.sequences_before,
            &database.sequences_after,
            &positions,
        ));
    }
    Ok(())
}

fn read_markers(copy: &Copy, point: &Point) -> Result<Markers, String> {
    let database = &point.facts.database;
    let read = || -> Result<Markers> {
        let mut session = rows::connect(&copy.conninfo(database), database, Duration::from_secs(60))?;
        let id = &point.facts.marker;
        let ids: Vec<String> = ["", "_before", "_after", "_sentinel"]
            .iter()
            .map(|suffix| Session::literal(&format!("{id}{suffix}")))
            .collect();
        let sql = format!("SELECT id, nonce FROM pgproof.drill_marker WHERE id IN ({})", ids.join(", "));
        Ok(session
            .rows(&sql)?
            .into_iter()
            .filter_map(|row| {
                let mut columns = row.into_iter();
                Some((columns.next()??, columns.next()??))
            })
            .collect())
    };
    match read() {
        Ok(markers) => Ok(markers),
        // No such table or database: the copy is from before the first drill, and nonce A is missing.
        Err(error) if matches!(sqlstate(&error), Some("42P01" | "3F000" | "3D000")) => Ok(Markers::new()),
        Err(error) => Err(recordable(&error)),
    }
}

fn digest_copy(drill: &Drill<'_>, copy: &Copy, database: &str, key: &RowKey, only: Option<&[String]>) -> Result<DatabaseDigest> {
    let conninfo = copy.conninfo(database);
    let look = Look {
        conninfo: &conninfo,
        database,
        snapshot: None,
        sessions: SESSIONS,
        statement_timeout: drill.profile.statement_timeout,
        abort: drill.abort,
        watcher: drill.watcher,
    };
    rows::digest(&look, key, only)
}

/// Every relation that either side has.
fn compare(database: &str, production: &DatabaseDigest, copy: &DatabaseDigest) -> Vec<TableProof> {
    let names: std::collections::BTreeSet<&String> = production.tables.keys().chain(copy.tables.keys()).collect();
    let side = |digest: &DatabaseDigest, name: &String| digest.tables.get(name).cloned().unwrap_or(Side::Absent);
    names
        .into_iter()
        .map(|name| TableProof {
            database: database.into(),
            table: name.clone(),
            production: side(production, name),
            copy: side(copy, name),
        })
        .collect()
}

/// A lock that replay holds goes away with recovery: only the last stop can be left in that way.
fn promote_for_locked(
    run: &mut Run<'_>,
    copy: &mut Copy,
    point: Option<&Point>,
    key: &RowKey,
    seen: &mut Seen,
) -> Result<()> {
    let Some(point) = point else { return Ok(()) };
    let last = point.databases.iter().map(|database| database.lsn).max();
    let again: Vec<_> = point
        .databases
        .iter()
        .filter(|database| Some(database.lsn) == last && seen.locked.contains_key(&database.database))
        .collect();
    if again.is_empty() {
        return Ok(());
    }
    promote(run, copy)?;
    for database in again {
        let name = &database.database;
        let only = seen.locked.get(name).cloned().unwrap_or_default();
        let digest = digest_copy(run.drill, copy, name, key, Some(&only))?;
        for table in &mut seen.proof.tables {
            if table.database == *name
                && let Some(side) = digest.tables.get(&table.table)
            {
                table.copy = side.clone();
            }
        }
    }
    Ok(())
}

/// Ends the copy's recovery, once.
fn promote(run: &mut Run<'_>, copy: &mut Copy) -> Result<()> {
    if let Some(stop) = run.facts.target.stops.last_mut()
        && stop.outcome == StopOutcome::Paused
    {
        run.drill.watcher.note("promoting the copy: a check needs it");
        copy.promote()?;
        stop.outcome = StopOutcome::Promoted;
    }
    Ok(())
}

/// Settings, collations and the user's own checks, at the last stop.
fn look_at_copy(run: &mut Run<'_>, copy: &Copy) -> Result<()> {
    let database = own_database(run);
    let started = Instant::now();
    let mut session = rows::connect(&copy.conninfo(&database), &database, Duration::from_secs(60))?;
    let settings: BTreeMap<String, String> = session
        .rows("SELECT name, setting FROM pg_settings WHERE name LIKE 'archive%'")?
        .into_iter()
        .filter_map(|row| {
            let mut columns = row.into_iter();
            Some((columns.next()??, columns.next()??))
        })
        .collect();
    run.facts.checks.push(checks::timed(checks::archive_settings(&settings), started.elapsed()));
    let started = Instant::now();
    let (compared, different) = collations(copy, &mut session)?;
    run.facts.checks.push(checks::timed(checks::collation_versions(compared, &different), started.elapsed()));
    Ok(())
}

/// The database in which the copy is asked about itself.
fn own_database(run: &Run<'_>) -> String {
    run.facts.bracket.as_ref().map_or_else(|| "postgres".to_string(), |bracket| bracket.database.clone())
}

/// The user's own checks.
fn check_of_users(run: &mut Run<'_>, copy: &mut Copy) -> Result<()> {
    let database = own_database(run);
    for check in &run.drill.profile.sql_checks {
        let started = Instant::now();
        let name = check.database.as_deref().unwrap_or(&database);
        let timeout = run.drill.profile.statement_timeout;
        let mut answer = ask(copy, name, &check.sql, timeout);
        if matches!(&answer, Err(why) if why.contains("55P03")) {
            promote(run, copy)?;
            answer = ask(copy, name, &check.sql, timeout);
        }
        let check = checks::of_user(&check.id, &check.sql, &check.expect, answer);
        run.facts.checks.push(checks::timed(check, started.elapsed()));
    }
    Ok(())
}

fn ask(copy: &Copy, database: &str, sql: &str, timeout: Duration) -> Result<Option<String>, String> {
    let options = ConnectOptions {
        database: Some(database.into()),
        statement_timeout: timeout,
        lock_timeout: rows::LOCK_TIMEOUT_COPY,
        keep_search_path: true,
        read_only: true,
        ..ConnectOptions::default()
    };
    let answer = Session::connect_with(&copy.conninfo(database), &options).and_then(|mut session| session.rows(sql));
    match answer {
        Ok(rows) => Ok(rows.into_iter().next().and_then(|row| row.into_iter().next()).flatten()),
        Err(error) => Err(recordable(&error)),
    }
}

fn databases(session: &mut Session) -> Result<Vec<String>> {
    let rows = session.rows("SELECT datname FROM pg_database WHERE datallowconn ORDER BY datname")?;
    Ok(rows.into_iter().filter_map(|row| row.into_iter().next().flatten()).collect())
}

/// How many versions were compared, and which differ.
fn collations(copy: &Copy, session: &mut Session) -> Result<(u64, Vec<String>)> {
    let (mut compared, mut different) = (0, Vec::new());
    let mut add = |database: &str, rows: Vec<Vec<Option<String>>>| {
        for row in rows {
            let column = |index: usize| row.get(index).and_then(Option::as_deref).unwrap_or_default();
            compared += 1;
            if column(1) != column(2) {
                different.push(format!("{database} {} ({} here, {} recorded)", column(0), column(2), column(1)));
            }
        }
    };
    if session.version_num() >= 150_000 {
        let rows = session.rows(
            "SELECT datname, datcollversion, pg_database_collation_actual_version(oid) FROM pg_database \
             WHERE datcollversion IS NOT NULL AND datallowconn",
        )?;
        add("database", rows);
    }
    for database in databases(session)? {
        let mut own = rows::connect(&copy.conninfo(&database), &database, Duration::from_secs(60))?;
        let rows = own.rows(
            "SELECT collname, collversion, pg_collation_actual_version(oid) FROM pg_collation WHERE collversion IS NOT NULL",
        )?;
        add(&database, rows);
    }
    Ok((compared, different))
}

fn conclude(run: &mut Run<'_>, point: Option<&Point>, mut seen: Seen) {
    run.facts.checks.push(checks::target(&run.facts.target.stops));
    if let Some(point) = point {
        run.facts.checks.push(checks::bracket(&point.facts, &seen.markers));
        if run.drill.profile.checks.iter().any(|id| id == "row-proof") {
            seen.proof.tables.sort_by(|a, b| (&a.database, &a.table).cmp(&(&b.database, &b.table)));
            run.facts.checks.push(checks::timed(checks::row_proof(&seen.proof, &seen.unreached), seen.checks));
            run.facts.checks.push(checks::sequences(&seen.proof));
            run.facts.row_proof = Some(seen.proof);
        }
    } else if run.drill.profile.checks.iter().any(|id| id == "row-proof")
        && let Some(draft) = checks::draft("row-proof")
    {
        let why = "a row proof exists only for a point that the drill makes itself";
        run.facts.checks.push(draft.not_run(why));
    }
    if let Some(rto) = &mut run.facts.rto {
        rto.checks_ms += seen.checks.as_millis() as u64;
    }
}

/// amcheck while the server runs, then page checksums when it does not.
fn check_sound(run: &mut Run<'_>, copy: &mut Copy, plan: &Plan, backup: &Backup) -> Result<(), Ended> {
    let wanted = |run: &Run<'_>, id: &str| run.drill.profile.checks.iter().any(|each| each == id);
    let title = "Check tables and indexes with amcheck";
    if wanted(run, "amcheck") {
        run.step("amcheck", title, |run| {
            let started = Instant::now();
            let check = run_amcheck(run, copy)?;
            let detail = check.actual.clone();
            add_check_time(run, started.elapsed());
            run.facts.checks.push(checks::timed(check, started.elapsed()));
            Ok(((), detail))
        })?;
    } else {
        run.skip("amcheck", title, "the profile does not ask for it");
    }
    let title = "Stop the copy and verify its page checksums";
    if wanted(run, "page-checksums") {
        run.step("page-checksums", title, |run| {
            copy.stop()?;
            let started = Instant::now();
            let check = match backup.data_checksum_version {
                0 => checks::page_checksums(None),
                _ => {
                    let major = Major((backup.postgresql_version_num / 10_000) as u16);
                    let segment = backup.geometry.relation_segment_size;
                    let found = check_pages(
                        &plan.destination,
                        major,
                        segment,
                        threads(run.drill),
                        run.drill.abort,
                        run.drill.watcher,
                    )?;
                    checks::page_checksums(Some(&found))
                }
            };
            let detail = check.actual.clone();
            add_check_time(run, started.elapsed());
            run.facts.checks.push(checks::timed(check, started.elapsed()));
            Ok(((), detail))
        })?;
    } else {
        run.skip("page-checksums", title, "the profile does not ask for it");
    }
    Ok(())
}

fn add_check_time(run: &mut Run<'_>, time: Duration) {
    if let Some(rto) = &mut run.facts.rto {
        rto.checks_ms += time.as_millis() as u64;
    }
}

fn run_amcheck(run: &mut Run<'_>, copy: &mut Copy) -> Result<crate::facts::Check> {
    let drill = run.drill;
    let timeout = drill.profile.statement_timeout;
    let collations_differ =
        run.facts.check("collation-versions").is_some_and(|check| check.result != crate::facts::CheckResult::Pass);
    let first = own_database(run);
    let mut session = rows::connect(&copy.conninfo(&first), &first, timeout)?;
    let names = databases(&mut session)?;
    drop(session);
    let mut missing = Vec::new();
    for name in &names {
        match amcheck::extension(&copy.conninfo(name), name, timeout)? {
            Extension::Installed => {}
            Extension::Creatable => missing.push(name),
            Extension::Missing => {
                let draft = checks::draft("amcheck");
                let why = format!("amcheck is not installed in database \"{name}\" and this host does not have its files");
                return draft.map(|draft| draft.not_run(why)).ok_or_else(|| Error::new("drill-usage", "no such check"));
            }
        }
    }
    if !missing.is_empty() {
        promote(run, copy)?;
        for name in missing {
            amcheck::create(&copy.conninfo(name), name, timeout)?;
        }
    }
    let mut result = amcheck_all(drill, copy, &names)?;
    if result.locked > 0 {
        promote(run, copy)?;
        result = amcheck_all(drill, copy, &names)?;
    }
    Ok(checks::amcheck(&result, collations_differ))
}

fn amcheck_all(drill: &Drill<'_>, copy: &Copy, names: &[String]) -> Result<AmcheckResult> {
    let mut result = AmcheckResult::default();
    let timeout = drill.profile.statement_timeout;
    for name in names {
        drill.watcher.note(&format!("amcheck in database \"{name}\""));
        amcheck::run(&copy.conninfo(name), name, SESSIONS, timeout, drill.abort, drill.watcher, &mut result)?;
    }
    Ok(result)
}

fn archive_after(
    run: &mut Run<'_>,
    before: &Before,
    system: SystemIdentifier,
    timeline: TimelineId,
) -> Result<((), String)> {
    let started = Instant::now();
    let after = archive::list(run.drill.repository)?;
    let mut facts = archive::compare(&before.listing, &after, system, timeline);
    facts.foreign_histories = run.facts.archive.take().map(|archive| archive.foreign_histories).unwrap_or_default();
    let check = checks::archive_unchanged(&facts);
    let detail = check.actual.clone();
    run.facts.checks.push(checks::timed(check, started.elapsed()));
    run.facts.archive = Some(facts);
    Ok(((), detail))
}

/// What the feed handed over, for the evidence.
pub fn record_feed(facts: &mut Facts, copy: &Copy) {
    let record = copy.feed().record();
    if let Some(input) = &mut facts.input {
        input.first_wal_segment = record.segments.first().cloned();
        input.last_wal_segment = record.segments.last().cloned();
        input.wal_segments = record.segments.len() as u64;
        input.wal_bytes = record.bytes;
    }
}
