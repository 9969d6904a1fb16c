//! `pgproof import`: makes an ordinary backup of what other tools made, and ordinary WAL objects of other archives.
//!
//! Invariants: no server is asked; everything is read and checked once before anything is stored; `--dry-run` does that
//! first reading and stops.

use backup::base::import::{self, ImportOptions, ImportPlan, ImportResult, Survey};
use diagnostic::{Error, Result};
use serde_json::{Value, json};

use crate::account;
use crate::cli;
use crate::commands::list;
use crate::context::Context;
use crate::copies::{Copies, OpenCopy};
use crate::progress::Progress;
use crate::{exit, output};

/// Shows the room's progress.
struct Shown(Progress);

impl backup::Progress for Shown {
    fn update(&self, state: &backup::ProgressState) {
        self.0.update("storing", state.bytes_done, state.bytes_total);
    }
}

pub fn run(context: &Context, arguments: &cli::Import) -> Result<u8> {
    if arguments.base.is_none() && arguments.wal.is_empty() {
        return Err(Error::usage("import-usage", "nothing to import was named")
            .hint("Name a base backup with --base PATH, WAL with --wal PATH."));
    }
    let configuration = context.configuration()?;
    let cluster = configuration.cluster(arguments.of.cluster.as_deref())?;
    account::become_owner(&configuration, cluster)?;
    let copies = Copies::open_all(&configuration, cluster, arguments.copy.as_deref())?;
    output::notice("reading and checking what was brought");
    let survey = Survey::take(arguments.base.as_deref(), &arguments.wal)?;
    let mut values = Vec::new();
    let mut code = exit::DONE;
    for copy in &copies {
        let plan = import::plan(&survey, &copy.cluster)?;
        if !context.json {
            output::line(format!("Copy {} ({}):", copy.name, copy.url));
            output::line(plan.to_string().trim_end());
        }
        if arguments.dry_run {
            values.push(json!({ "copy": copy.name, "plan": plan, "result": null }));
            continue;
        }
        let shown = Shown(Progress::new("import"));
        let clock = || context.now();
        let options = ImportOptions {
            spill_folder: std::env::temp_dir(),
            clock: &clock,
            progress: &shown,
        };
        let result = import::run(&survey, &plan, &copy.cluster, &options)?;
        drop(shown);
        if result
            .backup
            .as_ref()
            .is_some_and(|backup| !backup.findings.is_empty())
        {
            code = exit::BAD;
        }
        if !context.json {
            print(&plan, &result);
        }
        values.push(value(copy, &plan, &result));
    }
    if context.json {
        let mut value = values.first().cloned().unwrap_or_else(|| json!({}));
        if let (Some(object), true) = (value.as_object_mut(), values.len() > 1) {
            object.insert("copies".into(), Value::Array(values));
        }
        output::json(&value);
    }
    Ok(code)
}

/// An import before a drill, into every copy; the backup that it made, or that it is already.
pub fn before_drill(
    context: &Context,
    copies: &[OpenCopy],
    base: &std::path::Path,
    wal: &[std::path::PathBuf],
) -> Result<Option<repository::BackupId>> {
    let survey = Survey::take(Some(base), wal)?;
    let mut made = None;
    for copy in copies {
        let plan = import::plan(&survey, &copy.cluster)?;
        let shown = Shown(Progress::new("import"));
        let clock = || context.now();
        let options = ImportOptions {
            spill_folder: std::env::temp_dir(),
            clock: &clock,
            progress: &shown,
        };
        let result = import::run(&survey, &plan, &copy.cluster, &options)?;
        let there = plan.base.as_ref().and_then(|base| base.already_there);
        made = made
            .or(result.backup.map(|backup| backup.backup.backup))
            .or(there);
    }
    Ok(made)
}

fn value(copy: &OpenCopy, plan: &ImportPlan, result: &ImportResult) -> Value {
    let already = plan.base.as_ref().and_then(|base| base.already_there);
    let backup = result.backup.as_ref().map(|backup| list::value(&backup.backup));
    let findings = result.backup.as_ref().map(|backup| &backup.findings);
    let excused = result.backup.as_ref().map(|backup| &backup.excused);
    json!({
        "copy": copy.name,
        "plan": plan,
        "result": {
            "backup": backup,
            "already_there": already,
            "wal_stored": result.wal_stored,
            "wal_already_there": result.wal_there,
            "wal_bytes_stored": result.wal_bytes_stored,
            "excused_pages": excused,
            "findings": findings.cloned().unwrap_or_default(),
        },
    })
}

fn print(plan: &ImportPlan, result: &ImportResult) {
    output::line(format!(
        "WAL: {} files stored, {} were there already",
        result.wal_stored, result.wal_there
    ));
    match (&result.backup, &plan.base) {
        (Some(backup), _) => {
            output::line(format!(
                "Backup {} of {}: read {}, stored {} ({} pages new, {} unchanged)",
                backup.backup.backup,
                backup.backup.cluster,
                output::bytes(backup.bytes_read),
                output::bytes(backup.bytes_stored),
                backup.pages_stored,
                backup.pages_reused
            ));
            for page in &backup.excused {
                output::line(format!(
                    "  excused: {} block {}: {}",
                    page.path, page.block, page.problem
                ));
            }
            for finding in &backup.findings {
                output::line(format!("finding[{}]: {}", finding.code, finding.message));
                output::line(format!("detail: {}", finding.detail));
                output::line(format!("hint: {}", finding.hint));
            }
        }
        (None, Some(base)) => {
            if let Some(id) = base.already_there {
                output::line(format!("The base backup is there already, as backup {id}."));
            }
        }
        (None, None) => {}
    }
}
