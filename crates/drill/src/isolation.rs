//! The copy of a drill and its isolation: what it is started with, what it must not see, and what the kernel
//! granted.
//!
//! Invariants: everything of production's that is known is hidden; what the quarantine says of itself is
//! taken over as it is, and a layer that was not applied is never counted as one.

use std::path::{Path, PathBuf};

use cluster::Programs;
use cluster::sandbox::{LayerState, Network, Probe, ProbeExpectation, ProbeOutcome, Quarantine, Report};
use diagnostic::{Error, Result};
use postgres::Major;
use repository::Backup;
use restore::Plan;
use restore::wal::{PlaceOptions, PlacedWal, place_wal};

use crate::checks;
use crate::copy::{Copy, CopyFolder, Isolation};
use crate::copy_settings::CopySettings;
use crate::engine::Run;
use crate::facts::{Layer, ProbeFacts, ProbeResult, QuarantineFacts, QuarantineLevel};
use crate::feed::{Feed, Fetched};
use crate::options::{Drill, Fault};
use crate::perform::Production;
use crate::planting;

/// The part of the host's free memory that a copy takes when nobody says how much.
const MEMORY_SHARE: u64 = 2;

/// Free memory when the system does not tell it.
const MEMORY_UNKNOWN: u64 = 1 << 30;

/// The copy's account: only root chooses one.
pub(crate) fn owner(drill: &Drill<'_>) -> Option<(u32, u32)> {
    drill
        .sandbox
        .owner
        .filter(|_| rustix::process::geteuid().is_root())
}

/// Half of what the kernel says is available.
pub(crate) fn memory(drill: &Drill<'_>) -> u64 {
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

/// A copy that is ready to be started, and what it will be started with.
pub(crate) struct Built {
    pub copy: Copy,
    pub version: String,
    pub neutralised: Vec<crate::facts::Neutralised>,
    pub substitutions: Vec<crate::facts::Substitution>,
}

/// Puts a copy over a restored directory, in quarantine. Nothing is started.
pub(crate) fn build_copy(
    drill: &Drill<'_>,
    folder: &Path,
    plan: &Plan,
    backup: &Backup,
    production: Option<&Production>,
) -> Result<Built> {
    let major = Major((backup.postgresql_version_num / 10_000) as u16);
    let programs = Programs::find(major, &drill.sandbox.programs)?;
    let settings = CopySettings {
        major,
        wal_segment_size: plan.wal_segment_size,
        maxima: plan.maxima,
        restore_command: &plan.restore_command,
        folder,
        memory_bytes: memory(drill),
        preload: &drill.sandbox.preload,
        faults: &drill.faults,
    };
    let production_preload = production
        .map(|production| production.facts.shared_preload_libraries.clone())
        .unwrap_or_default();
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
    let feed = Feed::create(&folder.join("feed"), plan.wal_segment_size, owner(drill))?;
    let repository = drill.repository.clone();
    let options = PlaceOptions {
        system: plan.system_identifier,
        wal_segment_size: plan.wal_segment_size,
    };
    let last = plan.wal.last().map(|range| (range.timeline, range.last));
    let copy = Copy::open(
        folder,
        &programs,
        feed,
        settings.command_line(),
        &isolation,
        &superuser,
        move |feed, stop| {
            let fetch = |name: &str, to: &Path| -> Result<Fetched> {
                Ok(
                    match place_wal(name, to, std::slice::from_ref(&repository), &options)? {
                        PlacedWal::Placed(placed) => Fetched::Placed(placed.bytes),
                        PlacedWal::Absent(_) => Fetched::Absent,
                    },
                )
            };
            feed.serve(&fetch, last, stop);
        },
    )?;
    Ok(Built {
        copy,
        version: programs.version.clone(),
        neutralised: settings.neutralised(&production_preload),
        substitutions: settings.substitutions(),
    })
}

/// The drill's own copy, with what it is started with recorded.
pub(crate) fn open_copy(
    run: &mut Run<'_>,
    folder: &CopyFolder,
    plan: &Plan,
    backup: &Backup,
    production: Option<&Production>,
) -> Result<(Copy, String)> {
    let drill = run.drill;
    let built = build_copy(drill, &folder.path, plan, backup, production)?;
    run.facts.scope.copy_server_version = Some(built.version.clone());
    run.facts.substitutions.extend(built.substitutions);
    run.facts.quarantine = Some(QuarantineFacts {
        layers: Vec::new(),
        probes: Vec::new(),
        neutralised: built.neutralised,
        level: QuarantineLevel::ConfigurationOnly,
    });
    if drill.faults.contains(&Fault::ArchiveCommandInherited) {
        planting::record(run, Fault::ArchiveCommandInherited, "into the copy's own folder");
    }
    if drill.faults.contains(&Fault::ProductionReadable) {
        let file = production.and_then(readable_of_production).ok_or_else(|| {
            Error::new(
                "fault-not-planted",
                "production's data directory is not on this host",
            )
        })?;
        planting::record(run, Fault::ProductionReadable, &file.display().to_string());
    }
    Ok((
        built.copy,
        format!("PostgreSQL {} in {}", built.version, folder.path.display()),
    ))
}

/// What the copy must not see: everything of production's that is known.
fn quarantine(
    drill: &Drill<'_>,
    folder: &Path,
    backup: &Backup,
    production: Option<&Production>,
) -> Quarantine {
    let mut hidden = drill.sandbox.hidden.clone();
    hidden.extend(
        backup
            .tablespaces
            .iter()
            .filter(|each| !each.in_place)
            .map(|each| PathBuf::from(&each.location)),
    );
    let mut addresses = Vec::new();
    if let Some(production) = production {
        let facts = &production.facts;
        hidden.push(facts.data_directory.clone());
        hidden.extend(facts.socket_directories.iter().cloned());
        hidden.extend(
            facts
                .tablespaces
                .iter()
                .filter(|each| !each.in_place)
                .map(|each| each.location.clone()),
        );
        addresses.push(std::net::SocketAddr::from(([127, 0, 0, 1], facts.port)));
    }
    let readable = production
        .filter(|_| drill.faults.contains(&Fault::ProductionReadable))
        .and_then(readable_of_production);
    hidden.retain(|path| path.is_absolute());
    hidden.sort();
    hidden.dedup();
    Quarantine {
        folder: folder.into(),
        hidden,
        readable: readable.into_iter().collect(),
        network: Network::None,
        addresses,
    }
}

/// A file of production's that a probe tries to read.
fn readable_of_production(production: &Production) -> Option<PathBuf> {
    Some(production.facts.data_directory.join("PG_VERSION")).filter(|file| file.is_file())
}

/// Takes over what the quarantine reported about itself.
pub(crate) fn record_quarantine(run: &mut Run<'_>, copy: &Copy) -> Result<()> {
    let report = copy.quarantine_report()?;
    let Some(facts) = &mut run.facts.quarantine else {
        return Ok(());
    };
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
