//! The steps of a drill: what each does, in order.
//!
//! Invariants: production is asked and the point is made before anything is restored; the copy is started
//! only over a plan of the planner that `restore` uses; each stop is looked at while the server stands there;
//! what changes the copy (promotion, an extension for amcheck) comes after everything that compares it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use diagnostic::{Error, Result};
use history::{Archive, TablespaceCreated, Target, Wanted};
use postgres::{Lsn, Major, TimelineId};
use repository::Backup;
use restore::{Action, Configuration, Plan, Purpose, Request, StopRequest};

use crate::archive;
use crate::checks;
use crate::copy::{Copy, CopyFolder, remove_leftovers};
use crate::copy_settings::CopySettings;
use crate::engine::{Ended, Run};
use crate::facts::{Facts, Input, ManualWhen, PlanFacts, Rpo, Rto};
use crate::feed::Feed;
use crate::isolation::{open_copy, owner};
use crate::manual;
use crate::options::{Drill, DrillTarget, Grant, Profile, Watcher};
use crate::own_checks;
use crate::point::{self, MadePoint, Point, PointOptions};
use crate::preflight;
use crate::registration;
use crate::resume;
use crate::rows::RowKey;
use crate::server_error::recordable;
use crate::soundness::{check_sound, own_database};
use crate::standing;
use crate::stops::recover;
use crate::user_checks::CheckKind;
use crate::verdict::code;
use crate::versions;

/// Every step of a drill, in order, with its title; people's are added by [`steps_of`].
pub const STEPS: [(&str, &str); 16] = [
    ("look", "Look at production and clean up after interrupted drills"),
    ("rpo", "Measure what would be lost now"),
    ("gates", "Look through the gates"),
    ("health-before", "Ask the application's endpoints"),
    ("archive-before", "List the WAL archive"),
    ("keys", "Draw the keys of the row digests"),
    ("point", "Make a point in production and digest its rows"),
    ("plan", "Plan with the planner of restore"),
    ("restore", "Restore the backup into the sandbox"),
    ("quarantine", "Prepare the quarantine"),
    ("recover", "Recover to each stop, and look at the copy there"),
    ("amcheck", "Check tables and indexes with amcheck"),
    ("page-checksums", "Stop the copy and verify its page checksums"),
    (
        "n-version",
        "Recover the same point from another backup, and compare",
    ),
    ("tear-down", "Stop the copy and remove it"),
    ("archive-after", "Compare the WAL archive with its listing before"),
];

/// The steps of a drill of this profile, in order: those in which people are waited for are there where the profile has
/// some.
pub fn steps_of(profile: &Profile) -> Vec<(&'static str, &'static str)> {
    let mut steps = Vec::with_capacity(STEPS.len());
    for step in STEPS {
        steps.push(step);
        let when = match step.0 {
            "gates" => ManualWhen::Before,
            "recover" => ManualWhen::AtTarget,
            "archive-after" => ManualWhen::After,
            _ => continue,
        };
        if manual::is_asked(profile, when) {
            steps.push(manual::step_of(when));
        }
    }
    steps
}

/// Sessions at once for digests and amcheck: production is not to be crowded.
pub(crate) const SESSIONS: usize = 2;
/// Between two tries of a restore.
const RETRY_PAUSE: Duration = Duration::from_secs(5);
/// Between two looks at whether the drill is to end.
const POLL: Duration = Duration::from_millis(50);
/// What the first stop is for.
pub(crate) const REQUESTED: &str = "the requested target";
/// What is known of production.
pub(crate) use crate::preflight::ServerSeen as Production;

/// All steps up to the removal of the copy.
pub(crate) fn perform(run: &mut Run<'_>, folder: &CopyFolder, slot: &mut Option<Copy>) -> Result<(), Ended> {
    let production = run.step(
        "look",
        "Look at production and clean up after interrupted drills",
        look,
    )?;
    measure_rpo(run)?;
    run.step("gates", "Look through the gates", |run| {
        look_through_gates(run, production.as_ref())
    })?;
    manual::wait(run, folder, ManualWhen::Before, None)?;
    ask_application(run)?;
    run.archive_of = production
        .as_ref()
        .map(|production| (production.facts.system_identifier, production.facts.timeline));
    run.step("archive-before", "List the WAL archive", archive_before)?;
    let key = run.step("keys", "Draw the keys of the row digests", |run| {
        Ok(match &run.drill.made {
            Some(made) => (
                Arc::clone(&made.key),
                "those of the point that is taken over".into(),
            ),
            None => (Arc::new(RowKey::generate()?), String::new()),
        })
    })?;
    let point = make_point(run, production.as_ref(), &key)?;
    run.made = point.clone().map(|point| MadePoint {
        point,
        key: Arc::clone(&key),
    });
    let (plan, backup) = run.step("plan", "Plan with the planner of restore", |run| {
        run.working(|run| make_plan(run, folder, point.as_ref(), production.as_ref()))
    })?;
    let ground = Ground {
        production,
        point,
        key,
        plan,
        backup,
    };
    resume::save(run, &folder.path, &ground.plan, &ground.key, false);
    restore_step(run, &ground.plan)?;
    resume::save(run, &folder.path, &ground.plan, &ground.key, true);
    look_at_restored(run, folder, slot, &ground)
}

fn restore_step(run: &mut Run<'_>, plan: &Plan) -> Result<(), Ended> {
    run.step("restore", "Restore the backup into the sandbox", |run| {
        restore_backup(run, plan)
    })
}

/// What a restored copy is looked at with.
struct Ground {
    production: Option<Production>,
    point: Option<Point>,
    key: Arc<RowKey>,
    plan: Plan,
    backup: Backup,
}

/// The steps behind the restore.
fn look_at_restored(
    run: &mut Run<'_>,
    folder: &CopyFolder,
    slot: &mut Option<Copy>,
    ground: &Ground,
) -> Result<(), Ended> {
    let Ground {
        production,
        point,
        key,
        plan,
        backup,
    } = ground;
    *slot = Some(run.step("quarantine", "Prepare the quarantine", |run| {
        open_copy(run, folder, plan, backup, production.as_ref())
    })?);
    let Some(copy) = slot.as_mut() else {
        return Err(Ended);
    };
    run.step(
        "recover",
        "Recover to each stop, and look at the copy there",
        |run| recover(run, copy, plan, backup, point.as_ref(), key),
    )?;
    let place = copy.conninfo(&own_database(run));
    manual::wait(run, folder, ManualWhen::AtTarget, Some(&place))?;
    check_sound(run, copy, plan, backup)?;
    compare_versions(run, folder, copy, plan, production.as_ref(), key)
}

/// The steps that an interrupted drill had not done.
pub(crate) fn go_on(
    run: &mut Run<'_>,
    folder: &CopyFolder,
    slot: &mut Option<Copy>,
    plan: Plan,
    point: Option<Point>,
    key: Arc<RowKey>,
    restored: bool,
) -> Result<(), Ended> {
    let (production, backup) = run.step("resume", "Take up what was interrupted", |run| {
        let drill = run.drill;
        let production = drill
            .production
            .map(|conninfo| preflight::ask(conninfo, drill.clock))
            .transpose()?;
        let backup = drill.repository.backup(plan.backup)?;
        let again = if restored { "" } else { ", and is restored again" };
        Ok(((production, backup), format!("backup {}{again}", plan.backup)))
    })?;
    if !restored {
        run.step("clear", "Remove what the interrupted restore left", |_| {
            clear_for_retry(&plan).map(|()| ((), String::new()))
        })?;
        restore_step(run, &plan)?;
    }
    let ground = Ground {
        production,
        point,
        key,
        plan,
        backup,
    };
    look_at_restored(run, folder, slot, &ground)
}

/// The same point from another backup, where the profile asks for it.
fn compare_versions(
    run: &mut Run<'_>,
    folder: &CopyFolder,
    copy: &mut Copy,
    plan: &Plan,
    production: Option<&Production>,
    key: &RowKey,
) -> Result<(), Ended> {
    let title = "Recover the same point from another backup, and compare";
    if !run.drill.profile.asks_for("n-version") {
        run.skip("n-version", title, "the profile does not ask for it");
        return Ok(());
    }
    run.step("n-version", title, |run| {
        // One server at a time: both take half of the host's free memory.
        copy.stop()?;
        run.working(|run| versions::compare(run, folder, plan, production, key))
    })
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
    let seen = run.working(|_| preflight::ask(conninfo, drill.clock))?;
    run.facts.scope.system_identifier = seen.facts.system_identifier.to_string();
    run.facts.scope.server_version = Some(seen.facts.version.clone());
    detail.push_str(&format!(
        "PostgreSQL {}, timeline {}",
        seen.facts.version, seen.facts.timeline
    ));
    Ok((Some(seen), detail))
}

/// What the application's endpoints say before anything is restored.
fn ask_application(run: &mut Run<'_>) -> Result<(), Ended> {
    let title = "Ask the application's endpoints";
    let profile = &run.drill.profile;
    let endpoints = profile
        .user_checks
        .iter()
        .any(|check| matches!(check.kind, CheckKind::Http { .. }));
    if !endpoints {
        run.skip("health-before", title, "the profile names no endpoint");
        return Ok(());
    }
    if !profile.grants(Grant::Http) {
        run.skip("health-before", title, "the profile does not grant \"http\"");
        return Ok(());
    }
    run.step("health-before", title, |run| run.working(own_checks::ask_before))
}

/// Records every gate. One that is closed ends the drill where the profile says so; else it is an observation.
fn look_through_gates(run: &mut Run<'_>, production: Option<&Production>) -> Result<((), String)> {
    let unknown = run.loss_unknown.clone().unwrap_or_default();
    let loss = run.drill.rpo.map(|_| run.facts.rpo.as_ref().ok_or(unknown));
    let seen = preflight::through(run.drill, production.map(Ok), loss, run.earlier.clone());
    run.facts.registration = registration::of_run(run.drill, &run.earlier, &run.facts);
    let closed: Vec<String> = seen
        .gates
        .iter()
        .filter(|gate| gate.is_no_go())
        .map(|gate| gate.id.clone())
        .collect();
    let stops = seen
        .gates
        .iter()
        .find(|gate| gate.blocking && gate.is_no_go())
        .cloned();
    run.facts.gates.extend(seen.gates);
    if let Some(gate) = stops {
        let error = Error::new(code::GATE_CLOSED, format!("the gate \"{}\" is closed", gate.id)).detail(
            format!("{}: the limit is {}; {}.", gate.title, gate.limit, gate.actual),
        );
        return Err(match gate.hint {
            Some(hint) => error.hint(hint),
            None => error,
        });
    }
    Ok((
        (),
        if closed.is_empty() {
            "go".into()
        } else {
            format!("no-go at {}, which the profile lets pass", closed.join(", "))
        },
    ))
}

/// Before the point: making it archives everything, and nothing would be left to lose.
fn measure_rpo(run: &mut Run<'_>) -> Result<(), Ended> {
    let Some(measure) = run.drill.rpo else {
        run.skip(
            "rpo",
            "Measure what would be lost now",
            "no way to measure it was given",
        );
        return Ok(());
    };
    run.step("rpo", "Measure what would be lost now", |run| {
        let measured = run.working(|_| measure());
        // That it could not be measured is a result of the objective; the drill goes on.
        let detail = match &measured {
            Ok(rpo) => {
                mark_commits(run, rpo);
                format!("{} commits, {} bytes of WAL", rpo.commits, rpo.bytes)
            }
            Err(error) => {
                run.loss_unknown = Some(recordable(error));
                format!("could not be measured: {}", recordable(error))
            }
        };
        run.facts.rpo = measured.ok();
        Ok(((), detail))
    })
}

/// The two commits that a recovery point objective is measured between.
fn mark_commits(run: &mut Run<'_>, rpo: &Rpo) {
    let Some(seconds) = rpo.seconds else { return };
    let newest = rpo.newest_commit_at.unwrap_or(run.facts.started_at);
    let lost = jiff::SignedDuration::try_from_secs_f64(seconds).unwrap_or_default();
    let kept = rpo
        .newest_kept_commit_at
        .or_else(|| newest.checked_sub(lost).ok());
    if let Some(kept) = kept {
        run.mark_commit("newest-commit", newest.max(kept));
        run.mark_commit("newest-kept-commit", kept);
    }
}

fn archive_before(run: &mut Run<'_>) -> Result<((), String)> {
    let listing = run.working(|run| archive::list(run.drill.repository))?;
    let detail = format!("{} objects", listing.len());
    run.archive_before = Some(listing);
    Ok(((), detail))
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
            row_proof: profile.asks_for("row-proof"),
            sessions: SESSIONS,
            abort: drill.abort,
            watcher: drill.watcher,
        };
        let point = match &drill.made {
            Some(made) => made.point.clone(),
            None => run.working(|_| point::make(&options, key))?,
        };
        run.mark("point-made");
        run.facts.bracket = Some(point.facts.clone());
        run.facts.scope.databases = point.databases.iter().map(|each| each.database.clone()).collect();
        run.facts.scope.excluded = point
            .databases
            .iter()
            .flat_map(|each| each.digest.excluded.iter().cloned())
            .collect();
        let tables: usize = point.databases.iter().map(|each| each.digest.tables.len()).sum();
        let detail = format!(
            "{tables} relations of {} databases digested, WAL archived after {} ms",
            point.databases.len(),
            point.facts.archived_after_ms
        );
        Ok((Some(point), detail))
    })
}

/// Names of databases in one line, whatever they hold.
fn names(databases: &[&str]) -> String {
    let shown = |name: &&str| -> String {
        let mut text = String::with_capacity(name.len());
        for character in name.chars() {
            match character {
                c if c.is_control() => text.extend(c.escape_default()),
                c => text.push(c),
            }
        }
        text
    };
    databases.iter().map(shown).collect::<Vec<_>>().join(", ")
}

/// A place where the copy pauses.
pub(crate) fn stop(wanted: Wanted, purpose: String) -> StopRequest {
    StopRequest {
        wanted,
        action: Action::Pause,
        purpose,
    }
}

/// The stops, in the order in which recovery comes to them.
pub(crate) fn stops(target: &DrillTarget, point: Option<&Point>) -> Vec<StopRequest> {
    match (target, point) {
        (DrillTarget::Point(target, _), _) => {
            vec![stop(Wanted::from(target.clone()), REQUESTED.into())]
        }
        (DrillTarget::Bracket, None) => Vec::new(),
        (DrillTarget::Bracket, Some(point)) => {
            let name = Target::Name(point.facts.restore_point.clone());
            let mut stops = vec![stop(Wanted::from(name), REQUESTED.into())];
            let mut by_lsn: BTreeMap<Lsn, Vec<&str>> = BTreeMap::new();
            for database in &point.databases {
                by_lsn.entry(database.lsn).or_default().push(&database.database);
            }
            for (lsn, databases) in by_lsn {
                let wanted = Wanted {
                    target: Target::Lsn(lsn),
                    inclusive: Some(false),
                };
                stops.push(stop(wanted, format!("row proof of {}", names(&databases))));
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
    run.mark("plan-started");
    let backups = drill.repository.backups()?;
    let archive = archive_of(drill, &backups, production)?;
    run.facts.scope.system_identifier = archive.system().to_string();
    histories(run, &archive, &backups)?;
    let feed = Feed::create(&folder.path.join("feed"), archive.segment_size(), owner(drill))?;
    let place = Place {
        folder: folder.path.clone(),
        restore_command: feed.restore_command()?,
        backup: drill.backup,
    };
    let timeline = production.map(|production| production.facts.timeline);
    let stops = stops(&drill.profile.target, point);
    let plan = plan_for(drill, &backups, &archive, stops, timeline, &place)?;
    let backup = backups
        .into_iter()
        .find(|backup| backup.backup == plan.backup)
        .ok_or_else(|| Error::new("backup-missing", format!("backup {} is gone", plan.backup)))?;
    record_plan(run, &plan, &backup);
    expect_markers(run, &archive, &backup, &plan);
    run.archive_of
        .get_or_insert((plan.system_identifier, plan.timeline));
    run.facts.rto = Some(Rto {
        plan_ms: started.elapsed().as_millis() as u64,
        ..Rto::default()
    });
    refuse_plan(
        &plan.created_tablespaces,
        &plan.custom_resource_managers,
        &drill.sandbox.preload,
    )?;
    run.mark("plan-finished");
    let detail = format!(
        "backup {}, {} WAL segments, {} stops",
        plan.backup,
        plan.wal_segments,
        plan.stops.len()
    );
    Ok(((plan, backup), detail))
}

/// Standing markers around a point of the past. That they cannot be read is a result of their check.
fn expect_markers(run: &mut Run<'_>, archive: &Archive, backup: &Backup, plan: &Plan) {
    let (DrillTarget::Point(..), Some(conninfo)) = (&run.drill.profile.target, run.drill.production) else {
        return;
    };
    let expected = standing::read(conninfo)
        .and_then(|(database, rows)| Ok((database, standing::expect(archive, backup, plan, &rows)?)));
    match expected {
        Ok((database, markers)) => {
            run.markers_in = Some(database);
            if let Some(point) = &mut run.facts.point {
                point.markers = markers;
            }
        }
        Err(error) => {
            if let Some(draft) = checks::draft("standing-markers") {
                run.facts.checks.push(draft.could_not_look(recordable(&error)));
            }
        }
    }
}

/// The archive of the newest backup's system, which must be the one that answers.
pub(crate) fn archive_of(
    drill: &Drill<'_>,
    backups: &[Backup],
    production: Option<&Production>,
) -> Result<Archive> {
    let Some((system, segment_size)) = restore::system_of(backups) else {
        return Err(Error::new(
            "no-backup",
            format!("cluster \"{}\" has no backup to restore", drill.repository.name()),
        ));
    };
    if let Some(production) = production
        && production.facts.system_identifier != system
    {
        return Err(Error::new(
            "no-backup",
            "the newest backup is of another cluster than the one that answers",
        )
        .detail(format!(
            "The backup's system identifier is {system}, production's {}.",
            production.facts.system_identifier
        )));
    }
    Archive::load(std::slice::from_ref(drill.repository), system, segment_size)
}

/// Where a copy goes, and how it asks for WAL.
pub(crate) struct Place {
    pub folder: PathBuf,
    pub restore_command: String,
    /// A certain backup.
    pub backup: Option<repository::BackupId>,
}

/// The plan of a copy, by the planner of `restore`. Nothing is touched.
pub(crate) fn plan_for(
    drill: &Drill<'_>,
    backups: &[Backup],
    archive: &Archive,
    stops: Vec<StopRequest>,
    timeline: Option<TimelineId>,
    place: &Place,
) -> Result<Plan> {
    let cluster = drill.repository.name();
    let request = request_of(cluster, archive, stops, timeline, place, owner(drill));
    planned(request, backups, archive, (drill.clock)())
}

/// What a copy asks of the planner.
pub(crate) fn request_of(
    cluster: &str,
    archive: &Archive,
    stops: Vec<StopRequest>,
    timeline: Option<TimelineId>,
    place: &Place,
    owner: Option<(u32, u32)>,
) -> Request {
    let blank = CopySettings {
        major: Major(15),
        wal_segment_size: archive.segment_size(),
        maxima: Default::default(),
        restore_command: "",
        folder: &place.folder,
        memory_bytes: 0,
        preload: &[],
        faults: &[],
    };
    Request {
        cluster: cluster.to_string(),
        stops,
        timeline,
        backup: place.backup,
        destination: place.folder.join("data"),
        tablespaces: Vec::new(),
        tablespaces_into: None,
        create_tablespaces: false,
        delta: false,
        restore_command: place.restore_command.clone(),
        purpose: Purpose::Copy,
        configuration: Configuration::Generated {
            postgresql_conf: blank.postgresql_conf(),
            pg_hba_conf: blank.pg_hba_conf(),
            pg_ident_conf: blank.pg_ident_conf(),
        },
        settings: Vec::new(),
        owner,
    }
}

/// What `restore` would plan, and nothing of our own.
pub(crate) fn planned(
    request: Request,
    backups: &[Backup],
    archive: &Archive,
    now: jiff::Timestamp,
) -> Result<Plan> {
    let facts = restore::gather(request, backups, archive)?;
    restore::plan(&facts, now)
}

fn record_plan(run: &mut Run<'_>, plan: &Plan, backup: &Backup) {
    let value = serde_json::to_value(plan).unwrap_or_default();
    let digest = blake3::hash(value.to_string().as_bytes()).to_hex().to_string();
    run.facts.plan = Some(PlanFacts {
        text: plan.to_string(),
        digest,
        value,
    });
    run.facts
        .scope
        .server_version
        .get_or_insert_with(|| backup.postgresql_version.clone());
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

/// What a sandbox cannot carry out: tablespaces that replay creates, and resource managers of libraries when none is
/// to be preloaded.
pub(crate) fn refuse_plan(
    created_tablespaces: &[TablespaceCreated],
    custom_resource_managers: &[u8],
    preload: &[String],
) -> Result<()> {
    // One without a location lies in the copy itself.
    let elsewhere = |created: &&TablespaceCreated| !created.location.is_empty();
    if let Some(created) = created_tablespaces.iter().find(elsewhere) {
        return Err(Error::new(
            "tablespace-created",
            "the WAL to be replayed creates a tablespace",
        )
        .detail(format!(
            "At {} replay makes one at \"{}\"; no setting changes that path, and the quarantine lets \
                 nothing be \
                 written there.",
            created.at, created.location
        ))
        .hint("Take a new base backup, which holds the tablespace, and drill again."));
    }
    if !custom_resource_managers.is_empty() && preload.is_empty() {
        let ids: Vec<String> = custom_resource_managers.iter().map(ToString::to_string).collect();
        return Err(Error::new(
            "resource-manager-missing",
            "replay needs a library that is not preloaded",
        )
        .detail(format!(
            "The WAL holds records of the resource managers {}.",
            ids.join(", ")
        ))
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
        .map(|each| {
            format!(
                "timeline {} leaving {} at {}",
                each.timeline, each.parent, each.switch
            )
        })
        .collect();
    let check = checks::timeline_histories(&poison, found.len() - poison.len());
    run.facts.checks.push(checks::timed(check, started.elapsed()));
    run.facts.archive.get_or_insert_default().foreign_histories = poison;
    Ok(())
}

/// Passes the progress of a restore on.
struct RestoreProgress<'a> {
    watcher: &'a dyn Watcher,
    abort: &'a AtomicBool,
    bytes: std::sync::atomic::AtomicU64,
    total: u64,
}

impl restore::Progress for RestoreProgress<'_> {
    fn advance(&self, bytes: u64, _files: u64) {
        let before = self.bytes.fetch_add(bytes, std::sync::atomic::Ordering::Relaxed);
        self.watcher.advance(before + bytes, Some(self.total), "bytes");
    }

    fn is_to_stop(&self) -> bool {
        self.abort.load(Ordering::Relaxed)
    }
}

pub(crate) fn threads(drill: &Drill<'_>) -> usize {
    match drill.sandbox.threads {
        0 => std::thread::available_parallelism().map_or(2, std::num::NonZeroUsize::get),
        threads => threads,
    }
}

fn restore_backup(run: &mut Run<'_>, plan: &Plan) -> Result<((), String)> {
    let drill = run.drill;
    let tries = drill.profile.restore_tries.max(1);
    run.mark("restore-started");
    let begun = Instant::now();
    let mut done = 1;
    let result = loop {
        let started = Instant::now();
        let error = match run.working(|_| restore_once(drill, plan)) {
            Ok(result) => break result,
            Err(error) => error,
        };
        // The limit of the step is that of all tries together.
        if done >= tries || run.is_to_end() {
            return Err(error);
        }
        run.retried(&error, started.elapsed());
        clear_for_retry(plan)?;
        // What failed for a moment needs that moment.
        let pause = Instant::now();
        while pause.elapsed() < RETRY_PAUSE {
            if run.is_to_end() {
                return Err(error);
            }
            std::thread::sleep(POLL);
        }
        done += 1;
    };
    run.mark("restore-finished");
    if let Some(rto) = &mut run.facts.rto {
        // A try that failed is time that the recovery took.
        rto.restore_ms = begun.elapsed().as_millis() as u64;
    }
    Ok(((), format!("{} files, {} bytes", result.files, result.bytes)))
}

pub(crate) fn restore_once(drill: &Drill<'_>, plan: &Plan) -> Result<restore::RestoreResult> {
    let progress = RestoreProgress {
        watcher: drill.watcher,
        abort: drill.abort,
        bytes: 0.into(),
        total: plan.bytes,
    };
    let options = restore::ExecuteOptions {
        threads: threads(drill),
        progress: &progress,
    };
    restore::execute(plan, drill.repository, &options)
}

/// What a failed try left lies in the copy's own folder, and nowhere else.
fn clear_for_retry(plan: &Plan) -> Result<()> {
    let unable = |error: &std::io::Error| {
        Error::io(
            "copy-folder",
            format!("cannot remove \"{}\" for another try", plan.destination.display()),
            error,
        )
    };
    match std::fs::remove_dir_all(&plan.destination) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(unable(&error)),
        _ => Ok(()),
    }
}

/// Compares the archive with what it was, however the drill went: after the copy is gone, it cannot change
/// any more.
pub(crate) fn archive_after(run: &mut Run<'_>) -> Result<((), String)> {
    let (Some(mut before), Some((system, timeline))) = (run.archive_before.take(), run.archive_of) else {
        return Ok(((), "nothing to compare with".into()));
    };
    let started = Instant::now();
    let after = run.working(|run| archive::list(run.drill.repository))?;
    // Retention may have let go of older WAL meanwhile, and has said so before.
    let expired = run.drill.repository.expired_wal()?;
    before.retain(|name| after.contains(name) || !archive::was_expired(name, &expired));
    let mut facts = archive::compare(&before, &after, system, timeline);
    facts.foreign_histories = run
        .facts
        .archive
        .take()
        .map(|archive| archive.foreign_histories)
        .unwrap_or_default();
    let check = checks::archive_unchanged(&facts);
    let detail = check.actual.clone();
    run.facts.checks.push(checks::timed(check, started.elapsed()));
    run.facts.archive = Some(facts);
    Ok(((), detail))
}

/// What the feed handed over, for the evidence.
pub fn record_feed(facts: &mut Facts, copy: &Copy) {
    let record = copy.feed().record();
    let segment_size = u64::from(copy.feed().segment_size());
    if let Some(input) = &mut facts.input {
        input.first_wal_segment = record.segments.first().cloned();
        input.last_wal_segment = record.segments.last().cloned();
        input.wal_segments = record.segments.len() as u64;
        // A later start asks for some of them again; each counts once.
        input.wal_bytes = input.wal_segments * segment_size;
    }
}
