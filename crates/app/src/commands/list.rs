//! `pgproof list`, `show`, `pin`, `unpin`: the backups that exist, and what each is made of.

use std::collections::{BTreeMap, BTreeSet};

use diagnostic::{Error, Result};
use repository::{Backup, BackupId, EntryKind, PackKind, TreeReader};
use serde_json::{Value, json};

use crate::account;
use crate::cli;
use crate::config::{Cluster, Configuration};
use crate::context::Context;
use crate::copies::{Copies, OpenCopy};
use crate::{exit, output};

/// A backup as `backup --json` and `list --json` show it.
pub fn value(backup: &Backup) -> Value {
    json!({
        "backup": backup.backup,
        "cluster": backup.cluster,
        "started_at": backup.started_at,
        "finished_at": backup.finished_at,
        "start_lsn": backup.start_lsn,
        "stop_lsn": backup.stop_lsn,
        "bytes_read": backup.bytes_read,
        "bytes_stored": backup.bytes_stored,
        "bytes_restored": backup.bytes_restored,
        "files": backup.files,
        "timeline": backup.timeline,
        "parent": backup.parent,
        "label": backup.label,
    })
}

fn open<'a>(configuration: &'a Configuration, name: Option<&str>) -> Result<(&'a Cluster, Vec<OpenCopy>)> {
    let cluster = configuration.cluster(name)?;
    account::become_owner(configuration, cluster)?;
    let copies = Copies::open_any(configuration, cluster, None)?;
    Ok((cluster, copies))
}

pub fn list(context: &Context, arguments: &cli::OfCluster) -> Result<u8> {
    let configuration = context.configuration()?;
    let (cluster, copies) = open(&configuration, arguments.cluster.as_deref())?;
    let mut values = Vec::new();
    let mut rows = Vec::new();
    for copy in &copies {
        let pins = pins(copy, context.now())?;
        let backups = copy.cluster.backups()?;
        let ids: Vec<BackupId> = backups.iter().map(|backup| backup.backup).collect();
        let verifications = copy.cluster.last_verifications(&ids)?;
        for (backup, verification) in backups.into_iter().zip(verifications) {
            let pinned = pins.get(&backup.backup).map(|pin| &pin.reason);
            let verified = verification.as_ref().map(|verification| {
                let good = verification.findings_of(backup.backup).next().is_none();
                (good, verification.finished_at)
            });
            let mut value = value(&backup);
            if let Some(object) = value.as_object_mut() {
                object.insert("copy".into(), json!(copy.name));
                object.insert("pinned".into(), json!(pinned.is_some()));
                object.insert("pin_reason".into(), json!(pinned));
                let until = pins.get(&backup.backup).and_then(|pin| pin.until);
                object.insert("pinned_until".into(), json!(until));
                // The newest verification that looked at it: when, and what it thought.
                let good = verified.filter(|(good, _)| *good);
                object.insert("verified_at".into(), json!(good.map(|(_, at)| at)));
                object.insert("damaged".into(), json!(verified.map(|(good, _)| !good)));
            }
            values.push(value);
            rows.push(vec![
                backup.backup.to_string(),
                copy.name.clone(),
                output::moment(backup.finished_at),
                backup.stop_lsn.to_string(),
                backup.timeline.to_string(),
                output::bytes(backup.bytes_restored),
                output::bytes(backup.bytes_stored),
                match verified {
                    Some((true, at)) => output::moment(at),
                    Some((false, _)) => "DAMAGED".to_owned(),
                    None => "never".to_owned(),
                },
                pinned
                    .map(|reason| format!("yes {reason}").trim_end().to_owned())
                    .unwrap_or_default(),
            ]);
        }
    }
    if context.json {
        output::json(&json!({ "backups": values }));
    } else if rows.is_empty() {
        output::line(format!(
            "Cluster {} has no backup yet. Make one: pgproof backup {0}",
            cluster.name
        ));
    } else {
        output::table(
            &[
                "BACKUP", "COPY", "ENDED", "STOP LSN", "TIMELINE", "SIZE", "STORED", "VERIFIED", "PINNED",
            ],
            &rows,
        );
    }
    Ok(exit::DONE)
}

/// Pinned backups.
fn pins(copy: &OpenCopy, now: jiff::Timestamp) -> Result<BTreeMap<BackupId, repository::Pin>> {
    Ok(copy
        .cluster
        .pins()?
        .into_iter()
        .filter(|pin| pin.holds(now))
        .map(|pin| (pin.backup, pin))
        .collect())
}

/// The backup that was named, or the newest for `latest`, with the first copy that has it.
fn find<'a>(copies: &'a [OpenCopy], name: &str) -> Result<(&'a OpenCopy, Backup)> {
    if name == "latest" {
        let mut newest: Option<(&OpenCopy, Backup)> = None;
        for copy in copies {
            let Some(backup) = copy.cluster.backups()?.pop() else {
                continue;
            };
            if newest
                .as_ref()
                .is_none_or(|(_, other)| other.backup < backup.backup)
            {
                newest = Some((copy, backup));
            }
        }
        return newest.ok_or_else(|| {
            Error::new("backup-missing", "there is no backup yet").hint("Make one with `pgproof backup`.")
        });
    }
    let id: BackupId = name.parse()?;
    let mut missing = None;
    for copy in copies {
        match copy.cluster.backup(id) {
            Ok(backup) => return Ok((copy, backup)),
            Err(error) => missing = Some(error),
        }
    }
    Err(missing.unwrap_or_else(|| Error::new("backup-missing", format!("no copy holds the backup {id}"))))
}

pub fn show(context: &Context, arguments: &cli::Show) -> Result<u8> {
    let configuration = context.configuration()?;
    let (_, copies) = open(&configuration, arguments.cluster.as_deref())?;
    let (copy, backup) = find(&copies, &arguments.backup)?;
    let mut value = serde_json::to_value(&backup)
        .map_err(|error| Error::new("internal-error", "cannot show the record").caused_by(&error))?;
    if let Some(object) = value.as_object_mut() {
        object.remove("tree");
        object.insert("copy".into(), json!(copy.name));
    }
    if !context.json {
        print(copy, &backup);
    }
    if arguments.cost {
        let cost = cost(copy, &backup)?;
        if context.json {
            value["cost"] = cost;
        } else {
            output::line("Cost:");
            for (key, amount) in flattened(&cost) {
                let number = amount.as_u64().unwrap_or(0);
                let text = match amount {
                    Value::Null => "not known".to_owned(),
                    _ if key.contains("bytes") => output::bytes(number),
                    _ => number.to_string(),
                };
                output::line(format!("  {}: {text}", key.replace('_', " ")));
            }
        }
    }
    if arguments.files {
        show_files(context, copy, &backup, &mut value)?;
    }
    if context.json {
        output::json(&value);
    }
    Ok(exit::DONE)
}

fn print(copy: &OpenCopy, backup: &Backup) {
    let line = |name: &str, value: String| output::line(format!("{name:18} {value}"));
    line(
        "Backup",
        format!("{} of cluster {} in {}", backup.backup, backup.cluster, copy.name),
    );
    line("Label", backup.label.clone());
    line(
        "Server",
        format!(
            "PostgreSQL {}, system identifier {}",
            backup.postgresql_version, backup.system_identifier
        ),
    );
    line("Began", output::moment(backup.started_at));
    line("Ended", output::moment(backup.finished_at));
    line(
        "WAL",
        format!(
            "{} to {} on timeline {}",
            backup.start_lsn, backup.stop_lsn, backup.timeline
        ),
    );
    line(
        "Files",
        format!(
            "{}, {} when restored",
            backup.files,
            output::bytes(backup.bytes_restored)
        ),
    );
    line(
        "Read, stored",
        format!(
            "{}, {}",
            output::bytes(backup.bytes_read),
            output::bytes(backup.bytes_stored)
        ),
    );
    line(
        "Parent",
        backup
            .parent
            .map_or("none: all pages were stored".to_owned(), |parent| {
                parent.to_string()
            }),
    );
    line(
        "Data checksums",
        if backup.data_checksum_version == 0 {
            "off"
        } else {
            "on"
        }
        .to_owned(),
    );
    for space in &backup.tablespaces {
        line(
            "Tablespace",
            format!("{} {} at {}", space.oid, space.name, space.location),
        );
    }
    for file in &backup.configuration {
        let kept = if file.path.is_some() {
            ""
        } else {
            " (not captured)"
        };
        line("Configuration", format!("{} {}{kept}", file.role, file.original));
    }
    for page in &backup.excused_pages {
        line(
            "Excused page",
            format!("{} block {}: {}", page.path, page.block, page.reason),
        );
    }
}

fn show_files(context: &Context, copy: &OpenCopy, backup: &Backup, value: &mut Value) -> Result<()> {
    let tree = TreeReader::open(&copy.cluster, backup)?;
    let late = tree.late()?;
    let mut values = Vec::new();
    for entry in tree.entries().chain(late.into_iter().map(Ok)) {
        let entry = entry?;
        let (kind, target) = match &entry.kind {
            EntryKind::Directory => ("directory", None),
            EntryKind::Symlink(target) => ("symlink", Some(String::from_utf8_lossy(target).into_owned())),
            EntryKind::File { .. } => ("file", None),
        };
        if context.json {
            values.push(json!({
                "path": entry.path.to_string(), "kind": kind, "size": entry.size,
                "mode": format!("{:04o}", entry.mode), "target": target,
            }));
        } else {
            let arrow = target.map(|target| format!(" -> {target}")).unwrap_or_default();
            output::line(format!(
                "{:04o} {:>14} {}{arrow}",
                entry.mode, entry.size, entry.path
            ));
        }
    }
    if context.json {
        value["file_list"] = Value::Array(values);
    }
    Ok(())
}

/// Which packs this backup refers to, and which of them no other backup of this copy does.
fn cost(copy: &OpenCopy, backup: &Backup) -> Result<Value> {
    let own = copy.cluster.pack_table(backup)?;
    let mut others = BTreeSet::new();
    for other in copy.cluster.backups()? {
        if other.backup != backup.backup {
            others.extend(
                copy.cluster
                    .pack_table(&other)?
                    .into_iter()
                    .map(|pack| (pack.kind, pack.pack)),
            );
        }
    }
    let count = |kind: PackKind, alone: bool| {
        let packs = own.iter().filter(|pack| pack.kind == kind);
        packs
            .filter(|pack| !alone || !others.contains(&(pack.kind, pack.pack)))
            .fold((0_u64, 0_u64), |(count, bytes), pack| {
                (count + 1, bytes.saturating_add(pack.size))
            })
    };
    let (rows, rows_bytes) = count(PackKind::Rows, false);
    let (maps, maps_bytes) = count(PackKind::Map, false);
    let (rows_alone, rows_alone_bytes) = count(PackKind::Rows, true);
    let (maps_alone, maps_alone_bytes) = count(PackKind::Map, true);
    // What is in reach is fetched in ranges of neighbouring frames; how far it lies apart only a restore can tell, so
    // these are the fewest requests: each pack's header, and as many ranges as its living part fills.
    let range_bytes = copy.cluster.store().range_bytes() as u64;
    let restore: u64 = own
        .iter()
        .map(|pack| {
            let living = pack.size.saturating_mul(pack.live).div_ceil(pack.items.max(1));
            1 + living.div_ceil(range_bytes).max(1)
        })
        .sum();
    let segments = wal_segments(backup);
    Ok(json!({
        "backup_requests": backup.requests,
        "restore_requests_at_least": restore,
        "wal_segments_of_it": segments,
        "requests_for_each_wal_segment": {
            // Measured: the store's claim, what is there under this name, and the segment itself.
            "push": { "put": 1, "list": 2, "get": 1 },
            "get": { "get": 1, "list": 1 },
            "open_repository": { "get": 2, "list": 1 },
        },
        "rows_packs": rows,
        "rows_packs_bytes": rows_bytes,
        "map_packs": maps,
        "map_packs_bytes": maps_bytes,
        "rows_packs_of_it_alone": rows_alone,
        "rows_packs_of_it_alone_bytes": rows_alone_bytes,
        "map_packs_of_it_alone": maps_alone,
        "map_packs_of_it_alone_bytes": maps_alone_bytes,
    }))
}

/// How many WAL segments recovery from this backup needs at least.
fn wal_segments(backup: &Backup) -> u64 {
    let size = u64::from(backup.geometry.wal_segment_size).max(1);
    let last = backup.stop_lsn.0.saturating_sub(1).max(backup.redo_lsn.0) / size;
    last - backup.redo_lsn.0 / size + 1
}

/// Names of nested values are put together: `a b`.
fn flattened(value: &Value) -> Vec<(String, Value)> {
    let mut flat = Vec::new();
    for (key, value) in value.as_object().into_iter().flatten() {
        match value {
            Value::Object(_) => {
                let inner = flattened(value).into_iter();
                flat.extend(inner.map(|(rest, value)| (format!("{key}: {rest}"), value)));
            }
            _ => flat.push((key.clone(), value.clone())),
        }
    }
    flat
}

/// What is to be stated about a backup.
struct Statement<'a> {
    backup: &'a str,
    cluster: Option<&'a str>,
    reason: &'a str,
    /// `None`: release it.
    pin: Option<Option<jiff::Timestamp>>,
    dry_run: bool,
}

pub fn pin(context: &Context, arguments: &cli::Pin) -> Result<u8> {
    let until = arguments.until.as_deref();
    let until = until
        .map(|text| crate::times::parse(text, context.now()))
        .transpose()?;
    if let Some(until) = until.filter(|until| *until <= context.now()) {
        return Err(Error::usage(
            "pin-until",
            format!("a pin until {until} would keep nothing: that time has passed"),
        ));
    }
    state(
        context,
        &Statement {
            backup: &arguments.backup,
            cluster: arguments.cluster.as_deref(),
            reason: &arguments.reason,
            pin: Some(until),
            dry_run: arguments.dry_run,
        },
    )
}

pub fn unpin(context: &Context, arguments: &cli::Unpin) -> Result<u8> {
    state(
        context,
        &Statement {
            backup: &arguments.backup,
            cluster: arguments.cluster.as_deref(),
            reason: &arguments.reason,
            pin: None,
            dry_run: arguments.dry_run,
        },
    )
}

fn state(context: &Context, statement: &Statement<'_>) -> Result<u8> {
    let configuration = context.configuration()?;
    let (cluster, copies) = open(&configuration, statement.cluster)?;
    let (_, named) = find(&copies, statement.backup)?;
    let by = crate::recording::by();
    let mut changed = Vec::new();
    for copy in &copies {
        if !copy.cluster.backup_ids()?.contains(&named.backup) {
            continue;
        }
        let now = context.now();
        let holding = copy.cluster.pin_of(named.backup)?.filter(|pin| pin.holds(now));
        let as_wanted = match (&holding, statement.pin) {
            (Some(pin), Some(until)) => {
                pin.until == until && (statement.reason.is_empty() || pin.reason == statement.reason)
            }
            (None, None) => true,
            _ => false,
        };
        if as_wanted {
            continue;
        }
        changed.push(copy.name.clone());
        match statement.pin {
            _ if statement.dry_run => {}
            Some(until) => copy
                .cluster
                .pin(named.backup, statement.reason, until, Some(&by), now)?,
            None => copy
                .cluster
                .unpin(named.backup, statement.reason, Some(&by), now)?,
        }
    }
    let pinned = statement.pin.is_some();
    if context.json {
        output::json(&json!({
            "backup": named.backup, "cluster": cluster.name, "pinned": pinned,
            "until": statement.pin.flatten(), "copies_changed": changed, "dry_run": statement.dry_run,
        }));
    } else {
        let verb = match (statement.dry_run, pinned) {
            (true, true) => "would be pinned",
            (true, false) => "would be released",
            (false, true) => "is pinned",
            (false, false) => "is released",
        };
        let text = match changed.is_empty() {
            true => "nothing had to change".to_owned(),
            false => format!("in {}", changed.join(", ")),
        };
        output::line(format!("Backup {} {verb}: {text}", named.backup));
    }
    Ok(exit::DONE)
}
