//! `pgproof status`: what can be recovered now, and what would be lost.

use cluster::Session;
use diagnostic::Result;
use history::{Gap, Rpo, Window};
use postgres::Timestamp;
use serde_json::{Value, json};

use crate::account;
use crate::archive;
use crate::backlog::{self, Archiving};
use crate::cli;
use crate::config::{Cluster, Configuration};
use crate::context::Context;
use crate::copies::{Copies, OpenCopy};
use crate::{exit, output, rpo};

/// What was seen of one cluster.
#[derive(Default)]
struct Seen {
    windows: Vec<Window>,
    gaps: Vec<Gap>,
    rpo: Option<Rpo>,
    /// For each copy: what `expire` last did, as JSON.
    expiry: Vec<Value>,
    /// What should be done, and is not.
    warnings: Vec<String>,
    archiving: Option<Archiving>,
    /// Why something could not be looked at.
    notes: Vec<String>,
}

pub fn run(context: &Context, arguments: &cli::OfCluster) -> Result<u8> {
    let configuration = context.configuration()?;
    let clusters: Vec<&Cluster> = match (&arguments.cluster, configuration.clusters.len()) {
        (None, 2..) => configuration.clusters.values().collect(),
        (name, _) => vec![configuration.cluster(name.as_deref())?],
    };
    if let Some(first) = clusters.first() {
        account::become_owner(&configuration, first)?;
    }
    let mut values = Vec::new();
    for cluster in clusters {
        let seen = look(&configuration, cluster, context.now())?;
        if context.json {
            values.push(value(cluster, &seen));
        } else {
            print(cluster, &seen, context.now());
        }
    }
    if context.json {
        output::json(&json!({ "clusters": values }));
    }
    Ok(exit::DONE)
}

fn look(configuration: &Configuration, cluster: &Cluster, now: jiff::Timestamp) -> Result<Seen> {
    let mut seen = Seen::default();
    look_at_archiving(cluster, now, &mut seen);
    let copies = Copies::open(configuration, cluster, None)?;
    for (name, error) in &copies.failed {
        seen.notes
            .push(format!("copy {name:?} could not be opened: {error}"));
    }
    look_at_retention(configuration, &copies.open, now, &mut seen)?;
    let backups = archive::backups(&copies.open)?;
    let control = archive::control_file(cluster);
    let Some(system) = archive::system(control.as_ref(), &backups) else {
        seen.notes
            .push("there is no backup, and the data directory cannot be read from here".to_owned());
        return Ok(seen);
    };
    let others = backups
        .iter()
        .filter(|backup| backup.system_identifier != system.identifier)
        .count();
    if others > 0 {
        seen.notes.push(format!(
            "{others} backups are of another system identifier and are left out"
        ));
    }
    if copies.open.is_empty() {
        return Ok(seen);
    }
    let archive = archive::open(&copies.open, system)?;
    seen.windows = archive.windows(&backups)?;
    seen.gaps = archive.gaps();
    match rpo::measure(cluster, &archive) {
        Ok(rpo) => seen.rpo = Some(rpo),
        Err(error) => seen
            .notes
            .push(format!("what would be lost could not be measured: {error}")),
    }
    Ok(seen)
}

/// A retention that was not applied for so long is told.
const EXPIRE_EVERY: jiff::SignedDuration = jiff::SignedDuration::from_hours(7 * 24);

/// Whether what is to go does go, and whether backups are made as often as the policy assumes.
fn look_at_retention(
    configuration: &Configuration,
    copies: &[OpenCopy],
    now: jiff::Timestamp,
    seen: &mut Seen,
) -> Result<()> {
    for copy in copies {
        let policy = configuration.retention_in(&copy.name).policy();
        let last = copy.cluster.last_finished_expiry()?;
        let backups = copy.cluster.backups()?;
        let oldest = backups.first().map(|backup| backup.finished_at);
        let since = last.as_ref().map(|expiry| expiry.at).or(oldest);
        let overdue = since.is_some_and(|since| now.duration_since(since) > EXPIRE_EVERY);
        if policy.is_empty() {
            seen.notes.push(format!(
                "nothing is ever deleted from copy {:?}: there is no [retention]",
                copy.name
            ));
        } else if overdue {
            let when = match &last {
                Some(expiry) => format!("has not run since {}", output::moment(expiry.at)),
                None => "has never run".to_owned(),
            };
            seen.warnings.push(format!(
                "`pgproof expire` {when} in copy {:?}, which grows",
                copy.name
            ));
        }
        if let (Some(newest), Some(most)) = (backups.last(), backup_every(&policy)) {
            let age = now.duration_since(newest.finished_at);
            if age > most {
                seen.warnings.push(format!(
                    "the newest backup in copy {:?} is {} old, and the retention assumes one every {}",
                    copy.name,
                    output::seconds(age.as_secs_f64()),
                    output::seconds(most.as_secs_f64())
                ));
            }
        }
        seen.expiry.push(json!({
            "copy": copy.name,
            "last_run_at": last.as_ref().map(|expiry| expiry.at),
            "backups_removed": last.as_ref().map(|expiry| expiry.removed.len()),
            "bytes_freed": last.as_ref().map(|expiry| expiry.bytes),
        }));
    }
    Ok(())
}

/// How old the newest backup may become before the policy no longer describes what is done: twice its shortest span.
fn backup_every(policy: &retention::Policy) -> Option<jiff::SignedDuration> {
    let days = |days: i64| Some(jiff::SignedDuration::from_hours(24 * days));
    match policy {
        retention::Policy { daily: Some(_), .. } => days(2),
        retention::Policy { weekly: Some(_), .. } => days(14),
        retention::Policy { monthly: Some(_), .. } => days(62),
        _ => jiff::SignedDuration::try_from(policy.recovery_window?).ok(),
    }
}

/// Of the server on this host; without a connection what the data directory says.
fn look_at_archiving(cluster: &Cluster, now: jiff::Timestamp, seen: &mut Seen) {
    let (Some(data_directory), Some(control)) = (&cluster.data_directory, archive::control_file(cluster))
    else {
        return;
    };
    let mut session = Session::connect(&cluster.connection).ok();
    let size = control.wal_segment_size;
    match backlog::look(cluster, data_directory, size, session.as_mut(), now) {
        Ok(archiving) => {
            seen.warnings.extend(archiving.warnings.iter().cloned());
            seen.archiving = Some(archiving);
        }
        Err(error) => seen
            .notes
            .push(format!("what waits to be archived could not be seen: {error}")),
    }
}

/// The stretch of points without a hole that ends with the latest one that any backup reaches. What lies before a hole (a gap, or
/// WAL that retention has let go) is told by the windows.
fn recoverable(windows: &[Window]) -> Option<(Timestamp, Timestamp)> {
    let mut reaching: Vec<&Window> = windows.iter().filter(|window| window.to.is_some()).collect();
    reaching.sort_by_key(|window| (window.from_lsn, window.to_lsn));
    let latest = reaching.iter().filter_map(|window| window.to).max()?;
    let mut stretch: Vec<&Window> = Vec::new();
    let mut found = None;
    for window in reaching {
        // By LSN: on an idle server a backup ends long after the last commit that an earlier one reaches.
        let end = stretch.iter().filter_map(|window| window.to_lsn).max();
        if end.is_some_and(|end| window.from_lsn > end) {
            stretch.clear();
        }
        stretch.push(window);
        if stretch.iter().any(|window| window.to == Some(latest)) {
            found = stretch.iter().map(|window| window.from).min();
        }
    }
    found.map(|from| (from, latest))
}

fn value(cluster: &Cluster, seen: &Seen) -> Value {
    let recoverable = match recoverable(&seen.windows) {
        Some((from, to)) => json!({ "from": from, "to": to }),
        None => Value::Null,
    };
    json!({
        "name": cluster.name,
        "recoverable": recoverable,
        "rpo": seen.rpo,
        "gaps": seen.gaps,
        "archiving": seen.archiving,
        "windows": seen.windows,
        "expiry": seen.expiry,
        "warnings": seen.warnings,
        "notes": seen.notes,
    })
}

fn print(cluster: &Cluster, seen: &Seen, now: jiff::Timestamp) {
    output::line(format!("Cluster {}", cluster.name));
    match recoverable(&seen.windows) {
        Some((from, to)) => output::line(format!("  recoverable  {from} to {to}")),
        None => output::line("  recoverable  nothing"),
    }
    match &seen.rpo {
        Some(rpo) => {
            let seconds = rpo
                .seconds
                .map_or("unknown seconds".to_owned(), |seconds| format!("{seconds:.3} s"));
            let exact = if rpo.exact {
                ""
            } else {
                " at least (not all live WAL could be read)"
            };
            output::line(format!(
                "  would lose   {seconds}, {} commits, {} of WAL{exact}",
                rpo.commits,
                output::bytes(rpo.bytes)
            ));
        }
        None => output::line("  would lose   unknown"),
    }
    if let Some(archiving) = &seen.archiving {
        output::line(format!("  archiving    {}", archiving.text(now)));
    }
    for window in &seen.windows {
        let to = match (window.to, window.to_lsn) {
            (Some(to), Some(lsn)) => format!("{to} ({lsn})"),
            _ => "nothing: WAL that it needs is missing".to_owned(),
        };
        output::line(format!(
            "  backup       {}: {} to {to}",
            window.backup, window.from
        ));
    }
    for gap in &seen.gaps {
        output::line(format!(
            "  gap          timeline {}, {} to {}",
            gap.timeline, gap.from, gap.to
        ));
    }
    for expiry in &seen.expiry {
        if let (Some(copy), Some(at)) = (expiry["copy"].as_str(), expiry["last_run_at"].as_str()) {
            output::line(format!("  expired      {at} in copy {copy}"));
        }
    }
    for warning in &seen.warnings {
        output::line(format!("  warning      {warning}"));
    }
    for note in &seen.notes {
        output::line(format!("  note         {note}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use postgres::{Lsn, TimelineId};

    fn window(from_lsn: u64, from: i64, to_lsn: u64, to: i64) -> Window {
        Window {
            backup: String::new(),
            timeline: TimelineId(1),
            from_lsn: Lsn(from_lsn),
            from: Timestamp(from),
            to_lsn: Some(Lsn(to_lsn)),
            to: Some(Timestamp(to)),
            gap: None,
        }
    }

    #[test]
    fn what_lies_before_a_hole_is_not_called_recoverable_throughout() {
        let old = window(10, 1, 10, 1);
        let (first, second) = (window(100, 5, 300, 9), window(200, 8, 300, 9));
        let both = Some((Timestamp(5), Timestamp(9)));
        assert_eq!(recoverable(&[old.clone(), first.clone(), second]), both);
        // Idle since the first: the second ended behind the last commit.
        let idle = window(250, 20, 300, 20);
        assert_eq!(recoverable(&[first, idle]), Some((Timestamp(5), Timestamp(20))));
        assert_eq!(
            recoverable(std::slice::from_ref(&old)),
            Some((Timestamp(1), Timestamp(1)))
        );
        assert_eq!(recoverable(&[]), None);
    }
}
