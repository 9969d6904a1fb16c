//! Drills that were recorded: found by name, and read from a repository or a folder as they lie there.
//!
//! Invariant: that a file is damaged or gone is something to judge, and is kept as such; that it could not be looked at
//! is an error.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use diagnostic::{Error, Result};
use drill::audit::StoredBundle;
use drill::evidence::{CHAIN, MANIFEST};
use drill::follow_up::{self, FollowUp};
use drill::sign_off::{self, Signature, Signers};
use drill::{Facts, Verdict, judge};
use jiff::{SignedDuration, Timestamp};
use report::trend::BACKUP_RUNS_DAYS;
use report::{BackupRuns, BackupSize, Circumstances, Earlier};
use repository::{ActionKind, ActionOutcome, Backup, BackupId, Chain, ClusterRepository};

use crate::account;
use crate::config::{Cluster, Configuration};
use crate::context::Context;
use crate::copies::{Copies, OpenCopy};

/// Where reports are copied to when the environment does not say.
const REPORT_DIRECTORY: &str = "ops/drill-reports";
/// Earlier drills that a report's trend is made of.
const EARLIER_MAX: usize = 40;
/// What the names of drills begin with.
const DRILL_PREFIX: &str = "pitr_drill_";
/// The largest file of a bundle that is read, in bytes.
const FILE_BYTES_MAX: u64 = 256 << 20;

/// The copies of a cluster, opened by the account that they belong to.
pub fn open(
    context: &Context,
    cluster: Option<&str>,
    copy: Option<&str>,
) -> Result<(Configuration, Vec<OpenCopy>)> {
    let configuration = context.configuration()?;
    let cluster = configuration.cluster(cluster)?.clone();
    account::become_owner(&configuration, &cluster)?;
    let copies = open_copies(&configuration, &cluster, copy)?;
    Ok((configuration, copies))
}

pub fn open_copies(
    configuration: &Configuration,
    cluster: &Cluster,
    copy: Option<&str>,
) -> Result<Vec<OpenCopy>> {
    Copies::open_any(configuration, cluster, copy)
}

/// The drills that were run, oldest first. Other things than drills leave evidence, too.
pub fn drills(cluster: &ClusterRepository) -> Result<Vec<String>> {
    let mut drills = cluster.list_drills()?;
    drills.retain(|id| id.starts_with(DRILL_PREFIX));
    Ok(drills)
}

/// The moment in a drill's name.
pub fn moment(drill: &str) -> Option<Timestamp> {
    let id: BackupId = drill.strip_prefix(DRILL_PREFIX)?.parse().ok()?;
    id.moment()
}

/// The first copy that has this drill, or the latest one of all. Error: `drill-missing`.
pub fn find<'a>(copies: &'a [OpenCopy], drill: &str) -> Result<(&'a OpenCopy, String)> {
    let mut found: Option<(&OpenCopy, String)> = None;
    for copy in copies {
        let mut drills = drills(&copy.cluster)?.into_iter();
        let id = match drill {
            "latest" => drills.max(),
            name => drills.find(|id| id == name),
        };
        if let Some(id) = id
            && found.as_ref().is_none_or(|(_, known)| *known < id)
        {
            found = Some((copy, id));
        }
    }
    found.ok_or_else(|| {
        Error::new("drill-missing", format!("no drill {drill:?} is recorded"))
            .hint("Run `pgproof drill list` to see what there is.")
    })
}

/// A drill's evidence in a repository, with the chain over all evidence.
pub fn read(cluster: &ClusterRepository, drill: &str) -> Result<StoredBundle> {
    let mut files = BTreeMap::new();
    for name in cluster.list_evidence(drill)? {
        let content = content(cluster, drill, &name)?;
        files.insert(name, content);
    }
    Ok(StoredBundle {
        files,
        chain: Ok(cluster.chain()?),
    })
}

/// One file, or why it cannot be had.
fn content(cluster: &ClusterRepository, drill: &str, name: &str) -> Result<Result<Vec<u8>, String>> {
    match cluster.get_evidence(drill, name) {
        Ok(Some(content)) => Ok(Ok(content)),
        Ok(None) => Ok(Err("It is not there.".to_owned())),
        Err(error) if matches!(error.code(), "object-damaged" | "repository-format") => {
            Ok(Err(error.detail_text().unwrap_or(error.message()).to_owned()))
        }
        Err(error) => Err(error),
    }
}

/// The same from a folder. Errors: `bundle-read`, `bundle-missing`.
pub fn read_folder(folder: &Path) -> Result<StoredBundle> {
    let mut files = BTreeMap::new();
    collect(folder, "", &mut files)?;
    if files.is_empty() {
        return Err(Error::usage(
            "bundle-missing",
            format!("the folder {:?} holds no evidence", folder.display().to_string()),
        )
        .hint("A bundle is the folder of a drill's name in DRILL_REPORT_DIR, with facts.json and manifest.sha256 in it."));
    }
    let chain = match files.remove(CHAIN) {
        Some(Ok(bytes)) => Chain::from_file(&bytes),
        Some(Err(why)) => Err(why),
        None => Err(format!("{CHAIN} is not in the folder")),
    };
    Ok(StoredBundle { files, chain })
}

fn collect(folder: &Path, prefix: &str, files: &mut BTreeMap<String, Result<Vec<u8>, String>>) -> Result<()> {
    let failed = |path: &Path, error: &std::io::Error| {
        Error::io(
            "bundle-read",
            format!("cannot read {:?}", path.display().to_string()),
            error,
        )
    };
    for entry in std::fs::read_dir(folder).map_err(|error| failed(folder, &error))? {
        let entry = entry.map_err(|error| failed(folder, &error))?;
        let path = entry.path();
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        let kind = entry.file_type().map_err(|error| failed(&path, &error))?;
        if kind.is_dir() {
            collect(&path, &format!("{name}/"), files)?;
            continue;
        }
        let length = entry.metadata().map_err(|error| failed(&path, &error))?.len();
        let content = if !kind.is_file() {
            Err("It is no ordinary file.".to_owned())
        } else if length > FILE_BYTES_MAX {
            Err(format!("It has {length} bytes, more than any evidence."))
        } else {
            Ok(std::fs::read(&path).map_err(|error| failed(&path, &error))?)
        };
        files.insert(name, content);
    }
    Ok(())
}

/// A drill as a list needs it: without its documents and logs.
pub struct Recorded {
    pub drill: String,
    pub copy: String,
    /// Nothing if they are damaged, or a newer version wrote them: `drill audit` says which.
    pub facts: Option<Facts>,
    /// Judged from the facts.
    pub verdict: Option<Verdict>,
    pub signatures: Vec<Signature>,
    pub follow_ups: Vec<FollowUp>,
}

/// All drills of these copies, oldest first.
pub fn history(copies: &[OpenCopy], signers: &Signers) -> Result<Vec<Recorded>> {
    let mut all = Vec::new();
    for copy in copies {
        for drill in drills(&copy.cluster)? {
            all.push(recorded(copy, drill, signers)?);
        }
    }
    all.sort_by(|a, b| a.drill.cmp(&b.drill));
    Ok(all)
}

fn recorded(copy: &OpenCopy, drill: String, signers: &Signers) -> Result<Recorded> {
    let mut files = BTreeMap::new();
    for name in copy.cluster.list_evidence(&drill)? {
        let wanted = matches!(name.as_str(), "facts.json" | MANIFEST)
            || name.starts_with(sign_off::FOLDER)
            || name.starts_with(follow_up::FOLDER);
        if wanted {
            files.insert(name.clone(), content(&copy.cluster, &drill, &name)?);
        }
    }
    let facts = files.get("facts.json").and_then(|content| content.as_ref().ok());
    let facts: Option<Facts> = facts.and_then(|content| serde_json::from_slice(content).ok());
    let facts = facts.filter(|facts| facts.version <= drill::facts::FACTS_VERSION);
    Ok(Recorded {
        signatures: sign_off::read(&files, &drill, signers),
        follow_ups: follow_up::read(&files).0,
        verdict: facts.as_ref().map(judge),
        facts,
        copy: copy.name.clone(),
        drill,
    })
}

/// Drills before this one, or all, for a trend: the newest, oldest first.
pub fn earlier(copies: &[OpenCopy], before: Option<&str>) -> Result<Vec<Earlier>> {
    let mut found = Vec::new();
    for copy in copies {
        let mut drills = drills(&copy.cluster)?;
        drills.retain(|drill| before.is_none_or(|before| drill.as_str() < before));
        for drill in drills.into_iter().rev().take(EARLIER_MAX) {
            let facts = content(&copy.cluster, &drill, "facts.json")?;
            let facts: Option<Facts> = facts
                .ok()
                .and_then(|content| serde_json::from_slice(&content).ok());
            if let Some(facts) = facts {
                found.push(Earlier::of(&facts, judge(&facts).status));
            }
        }
    }
    found.sort_by(|a, b| a.drill.cmp(&b.drill));
    let first = found.len().saturating_sub(EARLIER_MAX);
    Ok(found.split_off(first))
}

/// What is said beside a drill's facts, as it stands now.
pub fn circumstances(
    copy: &OpenCopy,
    facts: &Facts,
    files: &BTreeMap<String, Result<Vec<u8>, String>>,
    configuration: &Configuration,
) -> Result<Circumstances> {
    let drill = &facts.identity.drill_id;
    let frequency = configuration.frequency(&facts.identity.profile);
    Ok(Circumstances {
        signatures: sign_off::read(files, drill, &configuration.signers),
        follow_ups: follow_up::read(files).0,
        earlier: earlier(std::slice::from_ref(copy), Some(drill))?,
        // That they cannot be read is told where they are looked at: here their growth cannot be said.
        backups: sizes(&copy.cluster.backups().unwrap_or_default()),
        backup_runs: backup_runs(
            std::slice::from_ref(copy),
            facts.finished_at.unwrap_or(facts.started_at),
        ),
        frequency: Some(frequency.as_str().to_owned()),
    })
}

/// What the backups of the newest one's cluster hold.
pub fn sizes(backups: &[Backup]) -> Vec<BackupSize> {
    let newest = backups.iter().max_by_key(|backup| backup.finished_at);
    let system = newest.map(|backup| backup.system_identifier);
    backups
        .iter()
        .filter(|backup| Some(backup.system_identifier) == system)
        .map(|backup| BackupSize {
            backup: backup.backup.to_string(),
            finished_at: backup.finished_at,
            bytes: backup.bytes_restored,
        })
        .collect()
}

/// How the backups into these copies ended, over some days up to `until`; nothing where a copy does not tell.
pub fn backup_runs(copies: &[OpenCopy], until: Timestamp) -> Option<BackupRuns> {
    let since = until
        .checked_sub(SignedDuration::from_hours(24 * BACKUP_RUNS_DAYS))
        .ok()?;
    let mut runs = BackupRuns::default();
    for copy in copies {
        let (made, failed) = runs_of(copy, since, until).ok()?;
        runs.succeeded.extend(made.iter().map(BackupId::to_string));
        runs.failed.extend(failed);
    }
    runs.succeeded.sort();
    runs.failed.sort();
    Some(runs)
}

/// The backups that one copy holds or has let go, and the records of those that failed.
fn runs_of(copy: &OpenCopy, since: Timestamp, until: Timestamp) -> Result<(BTreeSet<BackupId>, Vec<String>)> {
    let mut made: BTreeSet<BackupId> = copy.cluster.backup_ids()?.into_iter().collect();
    for expiry in copy.cluster.expiries(Some(since))? {
        made.extend(expiry.removed);
    }
    made.retain(|id| id.moment().is_some_and(|at| at >= since && at <= until));
    let mut failed = Vec::new();
    for action in copy.cluster.actions(Some(since))? {
        // Whichever copy it names: where one could not be opened, nothing was backed up into the others either.
        if let (Ok(begun), Some(Ok(ended))) = (&action.begun, &action.ended)
            && begun.action == ActionKind::Backup
            && begun.at <= until
            && ended.outcome == ActionOutcome::Failed
        {
            failed.push(format!("{}/ended.json", action.name));
        }
    }
    Ok((made, failed))
}

/// `DRILL_REPORT_DIR`, or the default below the working directory.
pub fn report_directory() -> Result<PathBuf> {
    let given = std::env::var_os("DRILL_REPORT_DIR").filter(|text| !text.is_empty());
    let folder = given.map_or_else(|| PathBuf::from(REPORT_DIRECTORY), PathBuf::from);
    std::path::absolute(&folder)
        .map_err(|error| Error::io("path", "cannot make the folder for reports absolute", &error))
}

/// Brings what was added to a drill into its folder for reports, if it has one there: signatures and follow-ups beside the
/// evidence, and the reports with them. That this cannot be done is said, and changes nothing about the evidence.
pub fn refresh(reports: &Path, copy: &OpenCopy, drill: &str, configuration: &Configuration) {
    if !reports.join(drill).is_dir() {
        return;
    }
    let refreshed = read(&copy.cluster, drill).and_then(|bundle| {
        write_folder(reports, drill, &bundle)?;
        let facts = bundle
            .files
            .get("facts.json")
            .and_then(|content| content.as_ref().ok());
        let Some(facts) = facts.and_then(|content| serde_json::from_slice::<Facts>(content).ok()) else {
            return Ok(());
        };
        let beside = circumstances(copy, &facts, &bundle.files, configuration)?;
        let verdict = judge(&facts);
        for (ending, text) in [
            ("md", report::markdown(&facts, &verdict, &beside)),
            ("html", report::html(&facts, &verdict, &beside)),
        ] {
            write_file(&reports.join(format!("{drill}.{ending}")), text.as_bytes())?;
        }
        Ok(())
    });
    if let Err(error) = refreshed {
        crate::output::notice("warning: the folder for reports was not brought up to date");
        crate::exit::print_error(&error);
    }
}

/// Writes a bundle with its chain into `folder/drill`. Files that are there with this content are left alone. Error:
/// `bundle-write`, `evidence-chain`.
pub fn write_folder(folder: &Path, drill: &str, bundle: &StoredBundle) -> Result<PathBuf> {
    let own = folder.join(drill);
    for (name, content) in &bundle.files {
        match content {
            Ok(content) => write_file(&own.join(name), content)?,
            Err(why) => {
                return Err(
                    Error::new("bundle-write", format!("{name} of drill {drill} cannot be read"))
                        .detail(why.clone())
                        .hint("`pgproof drill audit` says what does not agree."),
                );
            }
        }
    }
    let chain = bundle
        .chain
        .clone()
        .map_err(|why| Error::new("evidence-chain", "the chain of evidence cannot be read").detail(why))?;
    write_file(&own.join(CHAIN), &chain.up_to(drill).to_file()?)?;
    Ok(own)
}

fn write_file(path: &Path, content: &[u8]) -> Result<()> {
    if std::fs::read(path).is_ok_and(|there| there == content) {
        return Ok(());
    }
    let parent = path.parent().unwrap_or(Path::new("/"));
    std::fs::create_dir_all(parent)
        .and_then(|()| std::fs::write(path, content))
        .map_err(|error| {
            Error::io(
                "bundle-write",
                format!("cannot write {:?}", path.display().to_string()),
                &error,
            )
        })
}
