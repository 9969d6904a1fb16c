//! `pgproof status`: what can be recovered now, and what would be lost.

use diagnostic::Result;
use history::{Gap, Rpo, Window};
use postgres::Timestamp;
use serde_json::{Value, json};

use crate::account;
use crate::archive;
use crate::cli;
use crate::config::{Cluster, Configuration};
use crate::context::Context;
use crate::copies::Copies;
use crate::{exit, output, rpo};

/// What was seen of one cluster.
#[derive(Default)]
struct Seen {
    windows: Vec<Window>,
    gaps: Vec<Gap>,
    rpo: Option<Rpo>,
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
        let seen = look(&configuration, cluster)?;
        if context.json {
            values.push(value(cluster, &seen));
        } else {
            print(cluster, &seen);
        }
    }
    if context.json {
        output::json(&json!({ "clusters": values }));
    }
    Ok(exit::DONE)
}

fn look(configuration: &Configuration, cluster: &Cluster) -> Result<Seen> {
    let mut seen = Seen::default();
    let copies = Copies::open(configuration, cluster, None)?;
    for (name, error) in &copies.failed {
        seen.notes
            .push(format!("copy {name:?} could not be opened: {error}"));
    }
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

/// From the earliest to the latest point that any backup reaches.
fn recoverable(windows: &[Window]) -> Option<(Timestamp, Timestamp)> {
    let from = windows
        .iter()
        .filter(|window| window.to.is_some())
        .map(|window| window.from)
        .min()?;
    let to = windows.iter().filter_map(|window| window.to).max()?;
    Some((from, to))
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
        "windows": seen.windows,
        "notes": seen.notes,
    })
}

fn print(cluster: &Cluster, seen: &Seen) {
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
    for note in &seen.notes {
        output::line(format!("  note         {note}"));
    }
}
