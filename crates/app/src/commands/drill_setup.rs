//! What `drill run`, `drill plan` and `drill preflight` have in common: the profile, the people, the copy that is
//! drilled, and everything that the drill's room is given.
//!
//! Invariant: what a drill is given is made in one place, so that a plan and a preflight speak of the drill that would
//! be run.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use diagnostic::{Error, Result};
use drill::facts::{People, PointFacts, Rpo, StepFacts};
use drill::{Drill, DrillTarget, Profile, SandboxOptions};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use report::Circumstances;
use repository::{Backup, BackupId};

use super::drill_stored as stored;
use crate::account;
use crate::archive;
use crate::cli;
use crate::config::{Cluster, Configuration, NO_SERVER};
use crate::context::{Context, cores};
use crate::copies::{Copies, OpenCopy};
use crate::drill_environment::{self, DrillEnvironment};
use crate::{output, programs, rpo, targets};

/// Where a copy lives when nobody says.
pub(super) const COPY_PARENT: &str = "/var/tmp";

/// Everything of a drill that is known before it runs.
pub struct Setup {
    pub configuration: Configuration,
    cluster: String,
    pub profile: Profile,
    also: Vec<Profile>,
    people: People,
    pub environment: DrillEnvironment,
    copies: Vec<OpenCopy>,
    /// Which of them is drilled.
    chosen: usize,
    archive: Option<history::Archive>,
    parent: PathBuf,
    pub point: Option<PointFacts>,
    /// A certain backup, by `BASE_BACKUP`.
    backup: Option<BackupId>,
    /// What was done before the drill.
    before: Vec<StepFacts>,
    /// Where the report is copied to.
    reports: Option<PathBuf>,
    program: PathBuf,
}

/// What the setup is for: only a run may make a backup or import one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    Run,
    Resume,
    Look,
}

impl Setup {
    /// Reads configuration, environment and arguments, and opens the repository. As root for a cluster of another
    /// account this starts the program again, so that nothing may be left half done before.
    pub fn new(context: &Context, arguments: &cli::DrillOf, purpose: Purpose) -> Result<Setup> {
        let environment = drill_environment::read()?;
        let configuration = context.configuration()?;
        let name = profile_name(
            &configuration,
            arguments.profile.as_deref(),
            environment.is_staging(),
        )?;
        let mut profile = configuration.profile(&name)?;
        let own = configuration.drills.get(&name);
        let cluster_name = arguments
            .cluster
            .as_deref()
            .or(own.and_then(|own| own.cluster.as_deref()));
        let cluster = configuration.cluster(cluster_name)?;
        // Root can still give the folder to the account that will write there.
        let reports = match purpose {
            Purpose::Run | Purpose::Resume => Some(super::drill::report_directory(&configuration, cluster)?),
            Purpose::Look => None,
        };
        account::become_owner(&configuration, cluster)?;
        let mut also = Vec::new();
        for name in arguments.also.iter().chain(&profile.also) {
            if *name != profile.name && also.iter().all(|known: &Profile| known.name != *name) {
                also.push(configuration.profile(name)?);
            }
        }
        let people = people(arguments, own.map(|own| own.people.clone()).unwrap_or_default());
        let copies = Copies::open_any(&configuration, cluster, arguments.copy.as_deref())?;
        let mut before = Vec::new();
        let mut imported = None;
        if purpose == Purpose::Run {
            imported = import_first(context, &environment, &copies, &mut before)?;
            if profile.backup_first && environment.skip_backup != Some(true) && imported.is_none() {
                backup_first(context, cluster, &copies, &mut before)?;
            }
        }
        let chosen = copy_to_drill(&copies)?;
        let backups = copies
            .get(chosen)
            .map(|copy| copy.cluster.backups())
            .transpose()?;
        let backups = backups.unwrap_or_default();
        let backup = match (imported, &environment.base_backup) {
            (Some(imported), _) => Some(imported),
            (None, Some(name)) => Some(named_backup(&backups, name)?),
            (None, None) => None,
        };
        let archive = archive::of_newest_backup(&backups)
            .map(|system| archive::open(&copies, system))
            .transpose()?;
        let parent = match &arguments.directory {
            Some(directory) => std::path::absolute(directory)
                .map_err(|error| Error::io("path", "cannot make the drill's directory absolute", &error))?,
            None => PathBuf::from(COPY_PARENT),
        };
        let cluster = cluster.name.clone();
        let text = arguments
            .target
            .clone()
            .or_else(|| environment.target_time.clone())
            .unwrap_or_else(|| profile.target_text.clone());
        profile.target_text.clone_from(&text);
        let mut point = None;
        match (text.as_str(), copies.get(chosen)) {
            ("bracket", _) => {}
            (how @ ("random" | "worst"), Some(copy)) => {
                let (at, facts) = choose(&copy.cluster, how, arguments.seed.as_deref())?;
                point = Some(facts);
                let target = history::Target::Time(postgres::Timestamp::from_jiff(at));
                profile.target = DrillTarget::Point(target, format!("{how}: {}", output::moment(at)));
            }
            _ => profile.target = DrillTarget::Point(targets::parse(&text, context.now())?, text),
        }
        profile.facts = drill::profile::facts_of(&profile);
        Ok(Setup {
            configuration,
            cluster,
            profile,
            also,
            people,
            environment,
            copies,
            chosen,
            archive,
            parent,
            point,
            backup,
            before,
            reports,
            program: context.program()?,
        })
    }

    /// Puts the target and the copy of an interrupted drill in the place of the profile's. Errors: `drill-profile-changed`,
    /// `no-backup`.
    pub fn as_saved(&mut self, saved: &drill::resume::Saved) -> Result<()> {
        let facts = saved.facts();
        let known = facts.profiles.first();
        let words = known.and_then(|known| known.value["target"].as_str());
        self.profile.target_text = words.unwrap_or("bracket").to_owned();
        self.profile.target = match saved.target() {
            None => DrillTarget::Bracket,
            Some(target) => DrillTarget::Point(target.clone(), facts.target.requested.clone()),
        };
        self.profile.facts = drill::profile::facts_of(&self.profile);
        if known.is_none_or(|known| known.digest != self.profile.facts.digest) {
            return Err(Error::new(
                "drill-profile-changed",
                format!(
                    "the profile {:?} has changed since the drill began",
                    self.profile.name
                ),
            )
            .hint("Run the drill again: the next one removes what is left of this one."));
        }
        let url = facts.input.as_ref().map(|input| input.repository.as_str());
        let chosen = self
            .copies
            .iter()
            .position(|copy| Some(copy.cluster.store().url().as_str()) == url);
        self.chosen = chosen.ok_or_else(|| {
            Error::new(
                "no-backup",
                "the copy of the backups that was drilled is not configured any more",
            )
        })?;
        self.point.clone_from(&facts.point);
        Ok(())
    }

    /// What stands beside the facts of a drill in its report.
    pub fn beside(&self, backups: &[Backup], now: Timestamp) -> Result<Circumstances> {
        let frequency = self.configuration.frequency(&self.profile.name);
        let copy = std::slice::from_ref(self.copy()?);
        Ok(Circumstances {
            earlier: stored::earlier(copy, None)?,
            backups: stored::sizes(backups),
            backup_runs: stored::backup_runs(copy, now),
            frequency: Some(frequency.as_str().to_owned()),
            ..Circumstances::default()
        })
    }

    /// When the next drill of the profile is due, if this one is it.
    pub fn next_due(&self, now: Timestamp) -> Option<Timestamp> {
        let frequency = self.configuration.frequency(&self.profile.name);
        report::calendar::after_this(frequency, &now.to_zoned(TimeZone::system()))
    }

    pub fn cluster(&self) -> Result<&Cluster> {
        self.configuration.cluster(Some(&self.cluster))
    }

    pub fn copy(&self) -> Result<&OpenCopy> {
        self.copies
            .get(self.chosen)
            .ok_or_else(|| Error::new("no-backup", "there is no backup that a drill could restore"))
    }

    /// Measures what would be lost now.
    pub fn measure_loss(&self) -> Result<Rpo> {
        let Some(archive) = &self.archive else {
            return Err(Error::new(
                "no-backup",
                "there is no backup, so nothing says what would be lost",
            ));
        };
        self.measure_loss_with(archive)
    }

    /// The same, if this were all that is archived.
    pub fn measure_loss_with(&self, archive: &history::Archive) -> Result<Rpo> {
        let loss = rpo::look(self.cluster()?, archive)?;
        Ok(Rpo {
            seconds: loss.rpo.seconds,
            bytes: loss.rpo.bytes,
            commits: loss.rpo.commits,
            exact: loss.rpo.exact,
            method: "commit records of the live WAL behind the archive's end".to_owned(),
            newest_commit_at: loss.newest_commit_at,
            newest_kept_commit_at: loss.newest_kept_commit_at,
        })
    }

    /// What the drill's room is given.
    pub fn drill<'a>(&'a self, parts: &Parts<'a>) -> Result<Drill<'a>> {
        let cluster = self.cluster()?;
        let served = cluster.connection != NO_SERVER;
        Ok(Drill {
            repository: &self.copy()?.cluster,
            production: served.then_some(cluster.connection.as_str()),
            profile: self.profile.clone(),
            also: self.also.clone(),
            environment: self.environment.environment.clone(),
            guards: self.environment.guards.clone(),
            point: self.point.clone(),
            made: None,
            api_base_url: Some(self.environment.application.api_base_url.clone()),
            web_base_url: self.environment.application.web_base_url.clone(),
            backup: self.backup,
            before: self.before.clone(),
            sandbox: SandboxOptions {
                parent: self.parent.clone(),
                keep: parts.keep,
                launcher: Some(cluster::Launcher {
                    program: self.program.clone(),
                    arguments: vec!["sandbox-exec".into()],
                }),
                programs: programs::folders(cluster),
                hidden: repository_folders(&self.configuration),
                owner: None,
                superuser: superuser(cluster),
                preload: Vec::new(),
                memory_bytes: None,
                threads: parts.threads.unwrap_or_else(cores),
            },
            people: self.people.clone(),
            confirmed: parts.confirmed.clone(),
            trigger: parts.trigger.clone(),
            next_due: parts.next_due,
            host: Some(super::wal::host_name()),
            tool_version: env!("CARGO_PKG_VERSION").to_owned(),
            // Nothing is lost with a server that does not exist.
            rpo: parts.rpo.filter(|_| served),
            clock: parts.clock,
            documents: parts.documents,
            report_directory: self.reports.clone(),
            faults: parts.faults.clone(),
            abort: parts.abort,
            watcher: parts.watcher,
        })
    }
}

/// What the three commands give differently.
pub struct Parts<'a> {
    pub keep: bool,
    pub threads: Option<usize>,
    pub trigger: String,
    pub next_due: Option<Timestamp>,
    pub rpo: Option<&'a dyn Fn() -> Result<Rpo>>,
    pub clock: &'a dyn Fn() -> Timestamp,
    pub documents: &'a dyn Fn(&drill::Facts, &drill::Verdict) -> drill::Documents,
    pub faults: Vec<drill::Fault>,
    /// Steps of people that were confirmed beforehand.
    pub confirmed: Vec<(String, String)>,
    pub abort: &'a AtomicBool,
    pub watcher: &'a dyn drill::Watcher,
}

/// Refuses confirmations that no step of the profile asks for, before anything is done. Error: `drill-usage`.
pub fn check_confirmed(
    context: &Context,
    arguments: &cli::DrillOf,
    confirmed: &[(String, String)],
) -> Result<()> {
    if confirmed.is_empty() {
        return Ok(());
    }
    let configuration = context.configuration()?;
    let environment = drill_environment::read()?;
    let name = profile_name(
        &configuration,
        arguments.profile.as_deref(),
        environment.is_staging(),
    )?;
    drill::manual::check_confirmed(&configuration.profile(&name)?, confirmed)
}

/// The cluster that would be drilled.
pub fn cluster_of<'a>(configuration: &'a Configuration, arguments: &cli::DrillOf) -> Result<&'a Cluster> {
    let environment = drill_environment::read()?;
    let name = profile_name(
        configuration,
        arguments.profile.as_deref(),
        environment.is_staging(),
    )?;
    let own = configuration.drills.get(&name);
    let of_profile = own.and_then(|own| own.cluster.as_deref());
    configuration.cluster(arguments.cluster.as_deref().or(of_profile))
}

/// The profile that was named; without a name the only one of the file; without any, what the environment means.
pub(super) fn profile_name(
    configuration: &Configuration,
    name: Option<&str>,
    staging: bool,
) -> Result<String> {
    let mut configured = configuration.drills.keys();
    match (name, configured.next(), configured.next()) {
        (Some(name), _, _) => Ok(name.to_owned()),
        (None, Some(only), None) => Ok(only.clone()),
        (None, None, _) if staging => Ok("quarterly-pitr".to_owned()),
        (None, None, _) => Ok("default".to_owned()),
        (None, Some(_), Some(_)) => {
            let names: Vec<&str> = configuration.drills.keys().map(String::as_str).collect();
            Err(Error::usage(
                "drill-ambiguous",
                "several drills are configured, and none was named",
            )
            .hint(format!("Name one of: {}.", names.join(", "))))
        }
    }
}

fn people(arguments: &cli::DrillOf, section: crate::config::PeopleSection) -> People {
    let from_environment = |name: &str| std::env::var(name).ok().filter(|name| !name.is_empty());
    People {
        operator: arguments
            .operator
            .clone()
            .or_else(|| section.operator.clone())
            .or_else(|| from_environment("SUDO_USER"))
            .or_else(|| from_environment("USER")),
        reviewer: arguments.reviewer.clone().or_else(|| section.reviewer.clone()),
        others: section.others(),
    }
}

/// WAL is fed to the copy by this process: what the copy itself runs needs no repository.
fn repository_folders(configuration: &Configuration) -> Vec<PathBuf> {
    configuration
        .copies
        .values()
        .filter_map(|copy| copy.url.strip_prefix("file://"))
        .map(PathBuf::from)
        .collect()
}

/// The role that the connection uses.
pub(super) fn superuser(cluster: &Cluster) -> Option<String> {
    let conninfo = cluster::conninfo::Conninfo::parse(&cluster.connection).ok()?;
    conninfo
        .get("user")
        .filter(|user| !user.is_empty())
        .map(str::to_owned)
}

/// A point of the past that nobody names.
fn choose(
    repository: &repository::ClusterRepository,
    how: &str,
    seed: Option<&str>,
) -> Result<(Timestamp, PointFacts)> {
    let stretches = drill::choice::stretches(repository)?;
    if how == "worst" {
        return drill::choice::worst(&stretches, &drill::forecast::load(repository)?);
    }
    let seed = match seed {
        Some(seed) => seed.to_owned(),
        None => drill::choice::seed()?,
    };
    drill::choice::random(&stretches, &seed)
}

/// What `BASE_BACKUP` names is a file: it is made a backup of this cluster first, as `pgproof import` does.
fn import_first(
    context: &Context,
    environment: &DrillEnvironment,
    copies: &[OpenCopy],
    before: &mut Vec<StepFacts>,
) -> Result<Option<BackupId>> {
    let Some(base) = environment.base_backup.as_deref().map(Path::new) else {
        return match &environment.wal_archive {
            Some(wal) => Err(Error::usage(
                "drill-variable",
                format!(
                    "WAL_ARCHIVE is {:?}, and BASE_BACKUP names no file",
                    wal.display().to_string()
                ),
            )
            .hint("WAL that was archived by pgproof needs no WAL_ARCHIVE.")),
            None => Ok(None),
        };
    };
    if !base.exists() {
        return Ok(None);
    }
    let wal: Vec<PathBuf> = environment.wal_archive.iter().cloned().collect();
    let (started_at, started) = (context.now(), Instant::now());
    let imported = super::import::before_drill(context, copies, base, &wal)?;
    let what = imported.map_or_else(|| "nothing".to_owned(), |id| id.to_string());
    before.push(step(
        "import",
        "Import the base backup and WAL that were named",
        started_at,
        started,
        what,
    ));
    Ok(imported)
}

fn backup_first(
    context: &Context,
    cluster: &Cluster,
    copies: &[OpenCopy],
    before: &mut Vec<StepFacts>,
) -> Result<()> {
    let (started_at, started) = (context.now(), Instant::now());
    let made = super::backup::before_drill(context, cluster, copies)?;
    before.push(step(
        "backup",
        "Make a base backup",
        started_at,
        started,
        made.join(", "),
    ));
    Ok(())
}

fn step(id: &str, title: &str, started_at: Timestamp, started: Instant, detail: String) -> StepFacts {
    StepFacts {
        id: id.into(),
        title: title.into(),
        started_at,
        duration_ms: started.elapsed().as_millis() as u64,
        outcome: drill::facts::StepOutcome::Done,
        detail: Some(detail),
        error_code: None,
        expected_ms: None,
        limit_ms: None,
        at_limit: None,
        retries: Vec::new(),
        work_ms: None,
    }
}

/// The backup that `BASE_BACKUP` names.
fn named_backup(backups: &[Backup], name: &str) -> Result<BackupId> {
    if let Some(found) = backups.iter().find(|backup| backup.backup.as_str() == name) {
        return Ok(found.backup);
    }
    let error = Error::usage(
        "backup-unknown",
        format!("BASE_BACKUP is {name:?}, and there is no such backup"),
    );
    Err(match Path::new(name).exists() {
        true => error
            .detail("It is a file: backups of other tools are imported first.")
            .hint(format!(
                "Run `pgproof import --base {name} --wal WAL_ARCHIVE`, then name the backup that it prints."
            )),
        false => error
            .hint("`pgproof list` shows what there is; `auto` is the newest that ended before the point."),
    })
}

/// The first copy that holds a backup.
fn copy_to_drill(copies: &[OpenCopy]) -> Result<usize> {
    for (number, copy) in copies.iter().enumerate() {
        if !copy.cluster.backups()?.is_empty() {
            return Ok(number);
        }
    }
    Err(
        Error::new("no-backup", "there is no backup that a drill could restore")
            .hint("Make one with `pgproof backup`."),
    )
}
