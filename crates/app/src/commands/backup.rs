//! `pgproof backup`: a base backup into every copy of a cluster.
//!
//! Invariant: one that fails leaves a record of its failure in a copy that takes it; one that succeeds is its own
//! record, and costs no request more.

use std::time::Duration;

use backup::base::{
    self, BackupResult, BaseBackupOptions, Connection, PlanOptions, ProtocolOptions, Reading,
};
use diagnostic::Result;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::account;
use crate::cli;
use crate::commands::list;
use crate::config::{Cluster, Configuration};
use crate::context::Context;
use crate::copies::{Copies, OpenCopy};
use crate::progress::Progress;
use crate::{exit, output, recording};

/// Shows the room's progress.
struct Shown(Progress);

impl backup::Progress for Shown {
    fn update(&self, state: &backup::ProgressState) {
        let stage = match state.stage {
            backup::Stage::Starting => "waiting for the server's checkpoint",
            backup::Stage::Reading => "reading",
            backup::Stage::Stopping => "writing maps",
            backup::Stage::WaitingForWal => "waiting for the WAL",
            backup::Stage::Publishing => "publishing",
        };
        self.0.update(stage, state.bytes_done, state.bytes_total);
    }
}

pub fn run(context: &Context, arguments: &cli::Backup) -> Result<u8> {
    let configuration = context.configuration()?;
    let cluster = configuration.cluster(arguments.of.cluster.as_deref())?;
    account::become_owner(&configuration, cluster)?;
    let copies = open(context, &configuration, cluster, arguments)?;
    let plan_options = PlanOptions {
        full: arguments.full,
        read_all: arguments.read_all,
        ..plan_options(cluster)
    };
    let mut values = Vec::new();
    let mut code = exit::DONE;
    for copy in &copies {
        let began = context.now();
        let plan = base::plan(&cluster.connection, &copy.cluster, &plan_options, began);
        if arguments.dry_run {
            let plan = plan?;
            if !context.json {
                output::line(format!("Copy {} ({}):", copy.name, copy.url));
                output::line(plan.to_string().trim_end());
            }
            values.push(json!({ "copy": copy.name, "plan": plan }));
            continue;
        }
        let plan = recorded(context, &copies, cluster, copy, began, plan)?;
        for warning in &plan.warnings {
            output::notice(format!("warning: {warning}"));
        }
        let before = copy.cluster.repository().store().requests();
        let shown = Shown(Progress::new("backup"));
        let clock = || context.now();
        let options = BaseBackupOptions {
            threads: arguments.threads.unwrap_or_else(crate::context::cores),
            label: arguments
                .label
                .clone()
                .unwrap_or_else(|| format!("pgproof {}", cluster.name)),
            fast_checkpoint: !arguments.spread_checkpoint,
            archive_timeout: Duration::from_secs(arguments.archive_timeout),
            audit_one_in: base::AUDIT_ONE_IN,
            clock: &clock,
            progress: &shown,
        };
        let result = base::run(&plan, &cluster.connection, &copy.cluster, &options);
        drop(shown);
        let result = recorded(context, &copies, cluster, copy, began, result)?;
        let requests = copy.cluster.repository().store().requests().since(&before);
        if !result.findings.is_empty() {
            code = exit::BAD;
        }
        if !context.json {
            print(copy, &result, &requests);
        }
        values.push(value(copy, &result, &requests));
    }
    // Only after good work: a host that cannot back up should not delete either.
    if configuration.retention.after_backup && !arguments.dry_run && code == exit::DONE {
        let expired = super::expire::after_backup(context, &configuration, cluster, &copies);
        if let Err(error) = expired {
            // The backup is done, and is told.
            exit::print_error(&error);
            code = exit::COULD_NOT;
        }
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

/// Opens all copies. Where one cannot be opened, nothing is backed up, which is recorded in another.
fn open(
    context: &Context,
    configuration: &Configuration,
    cluster: &Cluster,
    arguments: &cli::Backup,
) -> Result<Vec<OpenCopy>> {
    let copies = Copies::open(configuration, cluster, arguments.copy.as_deref())?;
    if let (Some((name, error)), false) = (copies.failed.first(), arguments.dry_run) {
        let now = context.now();
        recording::failed_backup(&copies.open, &cluster.name, name, now, now, error);
    }
    copies.all(cluster)
}

/// The same result; a failure is recorded.
fn recorded<T>(
    context: &Context,
    copies: &[OpenCopy],
    cluster: &Cluster,
    copy: &OpenCopy,
    began: Timestamp,
    result: Result<T>,
) -> Result<T> {
    if let Err(error) = &result {
        let now = context.now();
        recording::failed_backup(copies, &cluster.name, &copy.name, began, now, error);
    }
    result
}

/// What the configuration says of a backup; the parent is chosen, and read from, as usual.
fn plan_options(cluster: &Cluster) -> PlanOptions {
    PlanOptions {
        data_directory: cluster.data_directory.clone(),
        full: false,
        read_all: false,
        protocol: cluster.data_directory.is_none().then(|| ProtocolOptions {
            wal: cluster.wal,
            spill_folder: std::env::temp_dir(),
            host_id: crate::commands::wal::host_id(),
        }),
        primary: cluster.primary_connection.clone().map(Connection),
    }
}

/// A backup into every copy before a drill, with the defaults; what it says, goes to standard error alone.
pub fn before_drill(context: &Context, cluster: &Cluster, copies: &[OpenCopy]) -> Result<Vec<String>> {
    let plan_options = plan_options(cluster);
    let mut made = Vec::new();
    for copy in copies {
        let began = context.now();
        let plan = base::plan(&cluster.connection, &copy.cluster, &plan_options, began);
        let plan = recorded(context, copies, cluster, copy, began, plan)?;
        for warning in &plan.warnings {
            output::notice(format!("warning: {warning}"));
        }
        let shown = Shown(Progress::new("backup"));
        let clock = || context.now();
        let options = BaseBackupOptions {
            threads: crate::context::cores(),
            label: format!("pgproof {}", cluster.name),
            fast_checkpoint: true,
            archive_timeout: ARCHIVE_TIMEOUT_BEFORE_DRILL,
            audit_one_in: base::AUDIT_ONE_IN,
            clock: &clock,
            progress: &shown,
        };
        let result = base::run(&plan, &cluster.connection, &copy.cluster, &options);
        drop(shown);
        let result = recorded(context, copies, cluster, copy, began, result)?;
        made.push(format!("{} into {}", result.backup.backup, copy.name));
    }
    Ok(made)
}

/// Until the WAL of a backup that is made before a drill must be archived.
const ARCHIVE_TIMEOUT_BEFORE_DRILL: Duration = Duration::from_secs(300);

fn value(copy: &OpenCopy, result: &BackupResult, requests: &repository::RequestCounts) -> Value {
    let mut value = list::value(&result.backup);
    if let Some(object) = value.as_object_mut() {
        object.insert("bytes_read".into(), json!(result.bytes_read));
        object.insert("bytes_stored".into(), json!(result.bytes_stored));
        object.insert("copy".into(), json!(copy.name));
        object.insert("pages_stored".into(), json!(result.pages_stored));
        object.insert("pages_reused".into(), json!(result.pages_reused));
        object.insert("reading".into(), json!(result.reading));
        object.insert("excused_pages".into(), json!(result.excused));
        object.insert("findings".into(), json!(result.findings));
        object.insert("requests".into(), json!(requests));
    }
    value
}

fn print(copy: &OpenCopy, result: &BackupResult, requests: &repository::RequestCounts) {
    let backup = &result.backup;
    let seconds = backup.finished_at.duration_since(backup.started_at).as_secs_f64();
    output::line(format!(
        "Backup {} of {} into {}: read {}, stored {} ({} pages new, {} unchanged) in {}",
        backup.backup,
        backup.cluster,
        copy.name,
        output::bytes(result.bytes_read),
        output::bytes(result.bytes_stored),
        result.pages_stored,
        result.pages_reused,
        output::seconds(seconds)
    ));
    output::line(format!(
        "  from {} to {} on timeline {}; {} requests to the store",
        backup.start_lsn,
        backup.stop_lsn,
        backup.timeline,
        requests.total()
    ));
    match (&result.reading, &backup.unread) {
        (Reading::Changed { since }, Some(unread)) => output::line(format!(
            "  {} pages were not read, because the WAL since {since} does not name them; {} others were read to see that \
             this is true",
            unread.pages, unread.audited
        )),
        (Reading::Everything { why }, _) if backup.parent.is_some() => {
            output::line(format!("  every page was read: {why}"))
        }
        _ => {}
    }
    for page in &result.excused {
        output::line(format!(
            "  excused: {} block {}: {}",
            page.path, page.block, page.problem
        ));
    }
    for finding in &result.findings {
        output::line(format!("finding[{}]: {}", finding.code, finding.message));
        output::line(format!("detail: {}", finding.detail));
        output::line(format!("hint: {}", finding.hint));
    }
}
