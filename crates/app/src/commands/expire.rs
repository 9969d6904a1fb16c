//! `pgproof expire`: deletes what `[retention]` no longer keeps, and what nothing refers to.
//!
//! Invariant: each copy is planned and expired by itself, from what it holds itself; a plan is printed before anything of
//! it is done.

use std::time::Duration;

use diagnostic::Result;
use jiff::Timestamp;
use retention::{ExecuteOptions, ExpirePlan, ExpireResult};
use serde_json::{Value, json};

use crate::account;
use crate::cli;
use crate::config::{Cluster, Configuration};
use crate::context::Context;
use crate::copies::{Copies, OpenCopy};
use crate::{exit, output};

pub fn run(context: &Context, arguments: &cli::Expire) -> Result<u8> {
    let configuration = context.configuration()?;
    let cluster = configuration.cluster(arguments.of.cluster.as_deref())?;
    account::become_owner(&configuration, cluster)?;
    let mut copies = Copies::open(&configuration, cluster, arguments.copy.as_deref())?;
    let mut values = Vec::new();
    let mut failed = std::mem::take(&mut copies.failed);
    let mut deletable_at: Option<Timestamp> = None;
    // A copy in trouble is no reason for the others to grow.
    for copy in &copies.open {
        match one(context, &configuration, copy, arguments.dry_run) {
            Ok((plan, result)) => {
                deletable_at = deletable_at.max(result.as_ref().and_then(|result| result.packs.deletable_at));
                values.push(json!({ "copy": copy.name, "plan": plan, "result": result }));
            }
            Err(error) => failed.push((copy.name.clone(), error)),
        }
    }
    if failed.len() == 1 && values.is_empty() {
        let (name, error) = failed.remove(0);
        return Err(match error.class() {
            diagnostic::Class::Usage => error,
            diagnostic::Class::CouldNot => error.context(format!(
                "copy {name:?} of cluster {:?} could not be expired",
                cluster.name
            )),
        });
    }
    if arguments.wait && !arguments.dry_run {
        copies
            .open
            .retain(|copy| failed.iter().all(|(name, _)| *name != copy.name));
        let later = wait(context, &configuration, &copies.open, deletable_at)?;
        for (value, result) in values.iter_mut().zip(later) {
            if let Some(object) = value.as_object_mut() {
                object.insert("after_waiting".into(), result);
            }
        }
    }
    for (name, error) in &failed {
        output::notice(format!("copy {name:?} could not be expired"));
        exit::print_error(error);
    }
    if context.json {
        output::json(&json!({
            "cluster": cluster.name, "dry_run": arguments.dry_run, "copies": values,
        }));
    }
    Ok(if failed.is_empty() {
        exit::DONE
    } else {
        exit::COULD_NOT
    })
}

fn one(
    context: &Context,
    configuration: &Configuration,
    copy: &OpenCopy,
    dry_run: bool,
) -> Result<(ExpirePlan, Option<ExpireResult>)> {
    let plan = plan(context, configuration, copy)?;
    if !context.json {
        output::line(plan.to_string().trim_end());
    }
    if dry_run {
        return Ok((plan, None));
    }
    let result = execute(context, copy, &plan)?;
    if !context.json {
        print(&result);
    }
    Ok((plan, Some(result)))
}

fn plan(context: &Context, configuration: &Configuration, copy: &OpenCopy) -> Result<ExpirePlan> {
    let now = context.now();
    let facts = retention::gather(&copy.name, &copy.cluster, now)?;
    retention::plan(&facts, &configuration.retention_in(&copy.name).policy(), now)
}

fn execute(context: &Context, copy: &OpenCopy, plan: &ExpirePlan) -> Result<ExpireResult> {
    let clock = || context.now();
    let by = super::host_name();
    retention::execute(plan, &copy.cluster, &ExecuteOptions::new(&by, &clock))
}

/// Sleeps until everything condemned may go, and expires once more.
fn wait(
    context: &Context,
    configuration: &Configuration,
    copies: &[OpenCopy],
    deletable_at: Option<Timestamp>,
) -> Result<Vec<Value>> {
    let Some(until) = deletable_at else {
        return Ok(Vec::new());
    };
    output::notice(format!(
        "waiting until {} to delete what nothing refers to",
        output::moment(until)
    ));
    while context.now() <= until {
        std::thread::sleep(Duration::from_secs(5));
    }
    let mut values = Vec::new();
    for copy in copies {
        let result = execute(context, copy, &plan(context, configuration, copy)?)?;
        if !context.json {
            print(&result);
        }
        values.push(json!(result));
    }
    Ok(values)
}

/// What `backup` does last, where `[retention]` says so. The notices go to standard error: the backup's own result is
/// what the command prints.
pub fn after_backup(
    context: &Context,
    configuration: &Configuration,
    cluster: &Cluster,
    copies: &[OpenCopy],
) -> Result<()> {
    for copy in copies {
        if configuration.retention_in(&copy.name).policy().is_empty() {
            continue;
        }
        let expired = plan(context, configuration, copy).and_then(|plan| execute(context, copy, &plan));
        let result = expired.map_err(|error| {
            error.context(format!(
                "the backup of cluster {:?} is done, but copy {:?} could not be expired",
                cluster.name, copy.name
            ))
        })?;
        output::notice(format!(
            "expired in copy {}: {} backups, {} WAL objects ({})",
            copy.name,
            result.removed.len(),
            result.wal_objects,
            output::bytes(result.wal_bytes)
        ));
    }
    Ok(())
}

fn print(result: &ExpireResult) {
    let packs = &result.packs;
    output::line(format!(
        "Deleted: {} backups, {} WAL objects ({}), {} packs ({})",
        result.removed.len(),
        result.wal_objects,
        output::bytes(result.wal_bytes),
        packs.deleted,
        output::bytes(packs.deleted_bytes)
    ));
    for protected in &result.protected {
        output::line(format!(
            "Backup {} stays for now: {}",
            protected.backup, protected.by
        ));
    }
    if let Some(why) = &packs.blocked {
        output::line(format!("No pack was deleted: {why}"));
    }
    if let Some(at) = packs.deletable_at {
        output::line(format!(
            "{} packs ({}) wait until {}: run `pgproof expire` again then.",
            packs.condemned + packs.waiting,
            output::bytes(packs.condemned_bytes + packs.waiting_bytes),
            output::moment(at)
        ));
    }
}
