//! The configuration file: one short TOML file, and where each of its values came from.
//!
//! Invariants: an unknown key is an error that names file, line and the nearest key that exists; relative paths are
//! relative to the file, never to the working directory (the archiver's working directory is the data directory);
//! a secret is never in it, only where to find one. Nothing but this room reads it; the rooms get values.

mod drills;
mod origin;
mod s3;
mod values;
mod wal;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use diagnostic::{Error, Result};
use drill::sign_off::Signers;
use serde::Deserialize;

pub use drills::{DrillProfile, PeopleSection};
pub use origin::{Origins, Shown};
pub use s3::{Bucket, CredentialsSource};
pub use values::{Length, without_password};
pub use wal::WalSettings;

/// Where the file is looked for when `--config` does not say: the first that exists.
pub const DEFAULT_FILES: [&str; 2] = ["pgproof.toml", "/etc/pgproof/pgproof.toml"];

/// The whole file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    cluster: BTreeMap<String, ClusterSection>,
    #[serde(default)]
    copy: BTreeMap<String, CopySection>,
    #[serde(default)]
    retention: RetentionSection,
    #[serde(default)]
    drill: BTreeMap<String, drills::DrillSection>,
    #[serde(default)]
    signers: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct ClusterSection {
    #[serde(default = "no_server")]
    connection: String,
    data_directory: Option<PathBuf>,
    programs: Option<PathBuf>,
    primary_connection: Option<String>,
    wal: Option<String>,
    copies: Option<Vec<String>>,
    acknowledge: Option<usize>,
    #[serde(default)]
    archive: wal::WalSection,
}

/// The connection of a cluster that has no server, for backups that were imported: nobody answers there.
pub const NO_SERVER: &str = "host=/nonexistent/no-connection-is-configured";

fn no_server() -> String {
    NO_SERVER.to_owned()
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct CopySection {
    url: String,
    key: KeySection,
    retention: Option<RetentionSection>,
    // Of buckets only: `config/s3.rs`.
    endpoint: Option<String>,
    region: Option<String>,
    path_style: Option<bool>,
    allow_http: Option<bool>,
    ca_file: Option<PathBuf>,
    credentials: Option<s3::CredentialsSection>,
    retry_for: Option<Length>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeySection {
    file: Option<PathBuf>,
    passphrase_command: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RetentionSection {
    recovery_window: Option<Length>,
    keep_last: Option<u32>,
    daily: Option<u32>,
    weekly: Option<u32>,
    monthly: Option<u32>,
    after_backup: Option<bool>,
}

/// What the file says, with defaults filled in and paths made absolute.
#[derive(Debug, Clone)]
pub struct Configuration {
    /// Absolute path of the file.
    pub path: PathBuf,
    pub clusters: BTreeMap<String, Cluster>,
    pub copies: BTreeMap<String, CopyOfRepository>,
    pub retention: Retention,
    pub drills: BTreeMap<String, DrillProfile>,
    /// Whose signatures count: public keys by name.
    pub signers: Signers,
    /// Where each key stands in the file.
    pub origins: Origins,
}

/// One PostgreSQL cluster.
#[derive(Debug, Clone)]
pub struct Cluster {
    pub name: String,
    /// libpq's connection string.
    pub connection: String,
    /// `None`: backups come over the replication protocol.
    pub data_directory: Option<PathBuf>,
    /// The folder of PostgreSQL's programs, where it is none of the usual ones.
    pub programs: Option<PathBuf>,
    /// Where the server is a standby: its primary, which switches its WAL segment at a backup's end.
    pub primary_connection: Option<String>,
    /// How a backup's WAL comes; `None`: as the server archives or not.
    pub wal: Option<backup::base::WalSource>,
    /// Names of the copies that hold its backups and WAL, in the order in which they are asked.
    pub copies: Vec<String>,
    /// In how many copies a segment must be durable before PostgreSQL may remove it.
    pub acknowledge: usize,
    pub archive: WalSettings,
}

/// One repository and the key that opens it.
#[derive(Debug, Clone)]
pub struct CopyOfRepository {
    pub name: String,
    pub url: String,
    pub key: KeySource,
    /// What to keep in this copy, instead of what is said for all.
    pub retention: Option<Retention>,
    /// How it is reached, if it is a bucket.
    pub bucket: Option<Bucket>,
}

/// Where the key of a copy comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeySource {
    File(PathBuf),
    /// A shell command that prints the passphrase.
    PassphraseCommand(String),
}

/// What to keep. Rules add up; without any, nothing is ever deleted.
#[derive(Debug, Clone, Default)]
pub struct Retention {
    pub recovery_window: Option<Length>,
    pub keep_last: Option<u32>,
    pub daily: Option<u32>,
    pub weekly: Option<u32>,
    pub monthly: Option<u32>,
    /// `backup` runs `expire` when it is done.
    pub after_backup: bool,
}

impl Retention {
    pub fn policy(&self) -> retention::Policy {
        retention::Policy {
            recovery_window: self.recovery_window.as_ref().map(|length| length.duration),
            keep_last: self.keep_last,
            daily: self.daily,
            weekly: self.weekly,
            monthly: self.monthly,
        }
    }
}

impl Configuration {
    /// Reads the file given, or the first default one that exists. Error codes: `config-missing`,
    /// `config-unreadable`, `config-syntax`, `config-value`.
    pub fn load(given: Option<&Path>) -> Result<Configuration> {
        let path = find(given)?;
        let text = std::fs::read_to_string(&path).map_err(|error| {
            let message = format!("cannot read the configuration file {:?}", path.display().to_string());
            let failure = Error::usage("config-unreadable", message).caused_by(&error);
            match error.kind() {
                std::io::ErrorKind::PermissionDenied => {
                    failure.hint("It must be readable for the account that runs pgproof (the server's own account for WAL).")
                }
                _ => failure,
            }
        })?;
        Self::parse(&path, &text)
    }

    /// The same, from text; `path` is for messages and for relative paths.
    pub fn parse(path: &Path, text: &str) -> Result<Configuration> {
        let origins = Origins::read(path, text)?;
        let file: File = toml::from_str(text).map_err(|error| origins.syntax_error(text, &error))?;
        let base = path.parent().unwrap_or(Path::new("/"));
        let mut configuration = Configuration {
            path: path.to_path_buf(),
            clusters: BTreeMap::new(),
            copies: BTreeMap::new(),
            retention: Retention::default(),
            drills: BTreeMap::new(),
            signers: Signers::new(),
            origins,
        };
        configuration.signers = configuration.signers_of(file.signers)?;
        configuration.retention = configuration.retention_of("retention", file.retention)?;
        for (name, section) in file.copy {
            let copy = configuration.copy_of(base, &name, section)?;
            configuration.copies.insert(name, copy);
        }
        for (name, section) in file.cluster {
            let cluster = configuration.cluster_of(base, &name, section)?;
            configuration.clusters.insert(name, cluster);
        }
        configuration.drills = configuration.drills_of(file.drill)?;
        Ok(configuration)
    }

    fn wrong(&self, key: &str, message: impl std::fmt::Display) -> Error {
        Error::usage("config-value", format!("{}: {message}", self.origins.place(key)))
    }

    fn copy_of(&self, base: &Path, name: &str, section: CopySection) -> Result<CopyOfRepository> {
        let at = format!("copy.{name}");
        check_name(name).map_err(|why| self.wrong(&at, format!("the copy's name {name:?} {why}")))?;
        if !section.url.contains("://") {
            return Err(self
                .wrong(&format!("{at}.url"), format!("{:?} is not a URL", section.url))
                .hint(format!(
                    "A local folder is written `url = \"file://{}\"`.",
                    base.join(&section.url).display()
                )));
        }
        let key = match (section.key.file, section.key.passphrase_command) {
            (Some(file), None) => KeySource::File(base.join(file)),
            (None, Some(command)) => KeySource::PassphraseCommand(command),
            _ => {
                let message =
                    format!("the key of copy {name:?} must say either `file` or `passphrase_command`");
                return Err(self.wrong(&format!("{at}.key"), message).hint(format!(
                    "For example `key = {{ file = \"/etc/pgproof/{name}.key\" }}`."
                )));
            }
        };
        let retention = section
            .retention
            .map(|section| self.retention_of(&format!("{at}.retention"), section))
            .transpose()?;
        let written = s3::Written {
            endpoint: section.endpoint,
            region: section.region,
            path_style: section.path_style,
            allow_http: section.allow_http,
            ca_file: section.ca_file,
            credentials: section.credentials,
            retry_for: section.retry_for,
        };
        let bucket = match (section.url.starts_with("s3://"), written.first()) {
            (false, None) => None,
            (false, Some(option)) => {
                let message = format!("`{option}` has no meaning for a copy that is not a bucket");
                return Err(self
                    .wrong(&format!("{at}.{option}"), message)
                    .hint("A bucket is written `url = \"s3://BUCKET/PREFIX\"`."));
            }
            (true, _) => Some(
                written
                    .resolve(base)
                    .map_err(|(option, why)| self.wrong(&format!("{at}.{option}"), why))?,
            ),
        };
        Ok(CopyOfRepository {
            name: name.to_owned(),
            url: section.url,
            key,
            retention,
            bucket,
        })
    }

    fn retention_of(&self, at: &str, section: RetentionSection) -> Result<Retention> {
        for (key, value) in [
            ("keep_last", section.keep_last),
            ("daily", section.daily),
            ("weekly", section.weekly),
            ("monthly", section.monthly),
        ] {
            if value == Some(0) {
                return Err(self
                    .wrong(&format!("{at}.{key}"), format!("`{key}` must be at least 1"))
                    .hint(format!("Leave {key} out to keep nothing by that rule.")));
            }
        }
        let retention = Retention {
            recovery_window: section.recovery_window,
            keep_last: section.keep_last,
            daily: section.daily,
            weekly: section.weekly,
            monthly: section.monthly,
            after_backup: section.after_backup.unwrap_or(false),
        };
        if retention.after_backup && retention.policy().is_empty() {
            return Err(self
                .wrong(
                    &format!("{at}.after_backup"),
                    "there is nothing to expire by after a backup",
                )
                .hint("Say what to keep, for example `recovery_window = \"30 days\"`."));
        }
        Ok(retention)
    }

    /// What is to be kept in a copy.
    pub fn retention_in(&self, copy: &str) -> &Retention {
        let own = self.copies.get(copy).and_then(|copy| copy.retention.as_ref());
        own.unwrap_or(&self.retention)
    }

    fn cluster_of(&self, base: &Path, name: &str, section: ClusterSection) -> Result<Cluster> {
        let at = format!("cluster.{name}");
        check_name(name).map_err(|why| self.wrong(&at, format!("the cluster's name {name:?} {why}")))?;
        let known = || self.copies.keys().cloned().collect::<Vec<_>>();
        let copies = section.copies.unwrap_or_else(known);
        let key = format!("{at}.copies");
        if copies.is_empty() {
            return Err(self
                .wrong(&key, format!("cluster {name:?} has no copy to write to"))
                .hint("Add a section `[copy.local]` with `url` and `key`."));
        }
        for (index, copy) in copies.iter().enumerate() {
            if !self.copies.contains_key(copy) {
                let nearest = nearest(copy, self.copies.keys().map(String::as_str));
                let error = self.wrong(
                    &key,
                    format!("cluster {name:?} names the copy {copy:?}, which is not configured"),
                );
                return Err(match nearest {
                    Some(nearest) => error.hint(format!("Did you mean {nearest:?}?")),
                    None => error.hint(format!("Add a section `[copy.{copy}]` with `url` and `key`.")),
                });
            }
            if copies[..index].contains(copy) {
                return Err(self.wrong(&key, format!("cluster {name:?} names the copy {copy:?} twice")));
            }
        }
        let key = format!("{at}.wal");
        let wal = match section.wal.as_deref() {
            None => None,
            Some("archived") => Some(backup::base::WalSource::Archived),
            Some("streamed") if section.data_directory.is_none() => Some(backup::base::WalSource::Streamed),
            Some("streamed") => {
                let message =
                    format!("cluster {name:?} has a data_directory: its WAL comes from the archiver");
                return Err(self.wrong(&key, message));
            }
            Some(other) => {
                let message = format!("`wal` is \"archived\" or \"streamed\", not {other:?}");
                return Err(self.wrong(&key, message));
            }
        };
        let acknowledge = section.acknowledge.unwrap_or(copies.len());
        if acknowledge == 0 || acknowledge > copies.len() {
            let message = format!(
                "`acknowledge` must be between 1 and {} for cluster {name:?}",
                copies.len()
            );
            return Err(self.wrong(&format!("{at}.acknowledge"), message));
        }
        Ok(Cluster {
            name: name.to_owned(),
            connection: section.connection,
            data_directory: section.data_directory.map(|directory| base.join(directory)),
            programs: section.programs.map(|folder| base.join(folder)),
            primary_connection: section.primary_connection,
            wal,
            copies,
            acknowledge,
            archive: section
                .archive
                .resolve(base)
                .map_err(|(key, why)| self.wrong(&format!("{at}.archive.{key}"), why))?,
        })
    }

    /// All drills: each may extend another.
    fn drills_of(
        &self,
        sections: BTreeMap<String, drills::DrillSection>,
    ) -> Result<BTreeMap<String, DrillProfile>> {
        let mut definitions = BTreeMap::new();
        for (name, section) in &sections {
            let at = format!("drill.{name}");
            check_name(name).map_err(|why| self.wrong(&at, format!("the drill's name {name:?} {why}")))?;
            if let Some(cluster) = &section.cluster
                && !self.clusters.contains_key(cluster)
            {
                let message = format!("no cluster {cluster:?} is configured");
                return Err(self.wrong(&format!("{at}.cluster"), message));
            }
            let definition = section
                .definition()
                .map_err(|(key, why)| self.wrong(&format!("{at}.{key}"), why))?;
            definitions.insert(name.clone(), definition);
        }
        let mut profiles = BTreeMap::new();
        for (name, section) in sections {
            let profile = drill::profile::resolve(&name, &definitions).map_err(|refused| {
                let error = self.wrong(&format!("drill.{name}.{}", refused.key), &refused.why);
                match (refused.key, section_nearest(&definitions, &name)) {
                    ("checks" | "extends", Some(nearest)) => error.hint(format!("Did you mean {nearest:?}?")),
                    _ => error,
                }
            })?;
            if let Some(unknown) = profile
                .also
                .iter()
                .find(|also| **also == name || drill::profile::resolve(also, &definitions).is_err())
            {
                let message = format!("{unknown:?} is no other profile");
                return Err(self.wrong(&format!("drill.{name}.also"), message));
            }
            let Some(definition) = definitions.get(&name).cloned() else {
                continue;
            };
            let schedule = match &section.schedule {
                None => None,
                Some(text) => Some(report::calendar::Frequency::parse(text).ok_or_else(|| {
                    self.wrong(
                        &format!("drill.{name}.schedule"),
                        format!("`schedule` is \"monthly\", \"quarterly\" or \"yearly\", not {text:?}"),
                    )
                })?),
            };
            let profile = DrillProfile {
                schedule,
                cluster: section.cluster.clone(),
                people: section.people(),
                definition,
                profile,
            };
            profiles.insert(name, profile);
        }
        Ok(profiles)
    }

    /// The profile of that name, from the file or built in. Error codes: `drill-unknown`, `config-value`.
    pub fn profile(&self, name: &str) -> Result<drill::Profile> {
        if !self.drills.contains_key(name) && drill::profile::built_in(name).is_none() {
            let message = format!(
                "no drill {name:?} is in {}, and none is built in",
                self.path.display()
            );
            let own = self.drills.keys().map(String::as_str);
            let known: Vec<&str> = own.chain(drill::profile::BUILT_IN_PROFILES).collect();
            let error = Error::usage("drill-unknown", message);
            return Err(match nearest(name, known.iter().copied()) {
                Some(nearest) => error.hint(format!("Did you mean {nearest:?}?")),
                None => error.hint(format!("There are: {}.", known.join(", "))),
            });
        }
        let definitions = self
            .drills
            .iter()
            .map(|(name, drill)| (name.clone(), drill.definition.clone()))
            .collect();
        drill::profile::resolve(name, &definitions)
            .map_err(|refused| self.wrong(&format!("drill.{name}.{}", refused.key), &refused.why))
    }

    /// How often a profile is drilled: as the file says, else by its name.
    pub fn frequency(&self, profile: &str) -> report::calendar::Frequency {
        let said = self.drills.get(profile).and_then(|drill| drill.schedule);
        said.unwrap_or_else(|| report::calendar::Frequency::of_name(profile))
    }

    fn signers_of(&self, section: BTreeMap<String, String>) -> Result<Signers> {
        let mut signers = Signers::new();
        for (name, key) in section {
            let at = format!("signers.{name}");
            let key: drill::signing::PublicKey = key.parse().map_err(|error: Error| {
                self.wrong(&at, format!("the key of {name:?}: {}", error.message()))
            })?;
            if let Some((other, _)) = signers.iter().find(|(_, known)| **known == key) {
                return Err(self
                    .wrong(&at, format!("{name:?} has the key of {other:?}"))
                    .hint("Each person signs with a key of their own: `pgproof key signing-new NAME`."));
            }
            signers.insert(name, key);
        }
        Ok(signers)
    }

    /// The cluster of that name; without a name, the only one. Error codes: `cluster-unknown`, `cluster-ambiguous`.
    pub fn cluster(&self, name: Option<&str>) -> Result<&Cluster> {
        match name {
            Some(name) => self.clusters.get(name).ok_or_else(|| {
                let error = Error::usage(
                    "cluster-unknown",
                    format!("cluster {name:?} is not in {}", self.path.display()),
                );
                match nearest(name, self.clusters.keys().map(String::as_str)) {
                    Some(nearest) => error.hint(format!("Did you mean {nearest:?}?")),
                    None => error.hint(format!("It has: {}.", self.names())),
                }
            }),
            None => {
                let mut all = self.clusters.values();
                match (all.next(), all.next()) {
                    (Some(only), None) => Ok(only),
                    (None, _) => Err(Error::usage(
                        "cluster-unknown",
                        format!("{} configures no cluster", self.path.display()),
                    )
                    .hint("Run `pgproof init --connection \"host=/var/run/postgresql user=postgres dbname=postgres\" --repository file:///var/lib/pgproof`.")),
                    _ => Err(Error::usage(
                        "cluster-ambiguous",
                        format!("{} configures several clusters, and none was named", self.path.display()),
                    )
                    .hint(format!("Name one of: {}.", self.names()))),
                }
            }
        }
    }

    fn names(&self) -> String {
        self.clusters
            .keys()
            .map(String::as_str)
            .collect::<Vec<_>>()
            .join(", ")
    }

    /// Every effective value with where it came from, for `config show`.
    pub fn show(&self) -> Vec<Shown> {
        let mut shown = Vec::new();
        let mut add = |key: String, value: String| {
            let origin = self.origins.origin(&key);
            shown.push(Shown { key, value, origin });
        };
        let optional = |value: Option<String>| value.unwrap_or_else(|| "(none)".to_owned());
        for (name, cluster) in &self.clusters {
            let at = format!("cluster.{name}");
            add(
                format!("{at}.connection"),
                quoted(&values::without_password(&cluster.connection)),
            );
            let directory = cluster
                .data_directory
                .as_ref()
                .map(|path| quoted(&path.display().to_string()));
            add(format!("{at}.data_directory"), optional(directory));
            let programs = cluster
                .programs
                .as_ref()
                .map(|path| quoted(&path.display().to_string()));
            add(format!("{at}.programs"), optional(programs));
            if let Some(primary) = &cluster.primary_connection {
                add(
                    format!("{at}.primary_connection"),
                    quoted(&values::without_password(primary)),
                );
            }
            if let Some(wal) = cluster.wal {
                add(
                    format!("{at}.wal"),
                    quoted(match wal {
                        backup::base::WalSource::Archived => "archived",
                        backup::base::WalSource::Streamed => "streamed",
                    }),
                );
            }
            add(format!("{at}.copies"), list(&cluster.copies));
            add(format!("{at}.acknowledge"), cluster.acknowledge.to_string());
            for (key, value) in cluster.archive.shown() {
                add(format!("{at}.archive.{key}"), value);
            }
        }
        for (name, copy) in &self.copies {
            add(
                format!("copy.{name}.url"),
                quoted(&values::without_url_password(&copy.url)),
            );
            match &copy.key {
                KeySource::File(path) => add(
                    format!("copy.{name}.key.file"),
                    quoted(&path.display().to_string()),
                ),
                KeySource::PassphraseCommand(command) => {
                    add(format!("copy.{name}.key.passphrase_command"), quoted(command));
                }
            }
            for (key, value) in copy.bucket.iter().flat_map(Bucket::show) {
                add(format!("copy.{name}.{key}"), value);
            }
        }
        let number = |value: Option<u32>| value.map(|value| value.to_string());
        let mut show_retention = |at: &str, retention: &Retention| {
            let window = retention.recovery_window.as_ref();
            let window = window.map(|length| quoted(&length.text));
            add(format!("{at}.recovery_window"), optional(window));
            add(format!("{at}.keep_last"), optional(number(retention.keep_last)));
            add(format!("{at}.daily"), optional(number(retention.daily)));
            add(format!("{at}.weekly"), optional(number(retention.weekly)));
            add(format!("{at}.monthly"), optional(number(retention.monthly)));
            add(format!("{at}.after_backup"), retention.after_backup.to_string());
        };
        show_retention("retention", &self.retention);
        for (name, copy) in &self.copies {
            if let Some(retention) = &copy.retention {
                show_retention(&format!("copy.{name}.retention"), retention);
            }
        }
        for (name, drill) in &self.drills {
            let at = format!("drill.{name}");
            let profile = &drill.profile;
            let length = |id: &str| {
                profile
                    .objective(id)
                    .map(|value| format!("\"{} s\"", value.as_secs()))
            };
            add(
                format!("{at}.cluster"),
                optional(drill.cluster.as_deref().map(quoted)),
            );
            if let Some(schedule) = drill.schedule {
                add(format!("{at}.schedule"), quoted(schedule.as_str()));
            }
            add(format!("{at}.extends"), list(&profile.extends));
            add(format!("{at}.rto"), optional(length("rto")));
            add(format!("{at}.rpo"), optional(length("rpo")));
            add(format!("{at}.target"), quoted(&profile.target_text));
            add(format!("{at}.checks"), list(&profile.checks));
            let grants: Vec<String> = profile
                .grants
                .iter()
                .map(|grant| grant.as_str().to_owned())
                .collect();
            add(format!("{at}.grants"), list(&grants));
            for objective in &profile.objectives {
                add(
                    format!("{at}.objective {}", objective.id),
                    format!(
                        "\"{}\" at most {} s",
                        objective.expression.as_str(),
                        objective.target.as_secs()
                    ),
                );
            }
            for (index, check) in drill.definition.user_checks.iter().enumerate() {
                let at = format!("{at}.check[{index}]");
                add(format!("{at}.id"), quoted(&check.id));
                if let drill::user_checks::CheckKind::Sql { sql, expect, .. } = &check.kind {
                    add(format!("{at}.sql"), quoted(sql));
                    add(format!("{at}.expect"), quoted(expect));
                } else {
                    add(format!("{at}.definition"), quoted(&check.definition()));
                }
            }
            for (index, step) in drill.definition.manual.iter().enumerate() {
                let at = format!("{at}.manual[{index}]");
                add(format!("{at}.id"), quoted(&step.id));
                add(format!("{at}.title"), quoted(&step.title));
                add(format!("{at}.required"), step.required.to_string());
                add(
                    format!("{at}.limit"),
                    format!("\"{} s\"", step.limit.as_secs_f64()),
                );
            }
        }
        for (name, key) in &self.signers {
            add(format!("signers.{name}"), quoted(&key.to_string()));
        }
        shown
    }
}

fn quoted(text: &str) -> String {
    format!("{text:?}")
}

/// A name that was probably meant, where a drill names a check or another profile that does not exist.
fn section_nearest(
    definitions: &BTreeMap<String, drill::profile::ProfileDefinition>,
    name: &str,
) -> Option<String> {
    let definition = definitions.get(name)?;
    let unknown_check = definition
        .checks
        .iter()
        .flatten()
        .find(|check| !drill::BUILT_IN_CHECKS.contains(&check.as_str()));
    if let Some(check) = unknown_check {
        return nearest(check, drill::BUILT_IN_CHECKS.into_iter()).map(str::to_owned);
    }
    let known = definitions
        .keys()
        .map(String::as_str)
        .chain(drill::profile::BUILT_IN_PROFILES);
    nearest(
        definition.extends.as_deref()?,
        known.filter(|known| *known != name),
    )
    .map(str::to_owned)
}

fn list(items: &[String]) -> String {
    format!(
        "[{}]",
        items
            .iter()
            .map(|item| quoted(item))
            .collect::<Vec<_>>()
            .join(", ")
    )
}

/// Which file is meant, as an absolute path.
fn find(given: Option<&Path>) -> Result<PathBuf> {
    let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
    if let Some(path) = given {
        return match path.try_exists() {
            Ok(false) => Err(Error::usage(
                "config-missing",
                format!(
                    "the configuration file {:?} does not exist",
                    path.display().to_string()
                ),
            )
            .hint("`pgproof init` writes one by looking at the server.")),
            _ => Ok(absolute(path)),
        };
    }
    for candidate in DEFAULT_FILES {
        let path = Path::new(candidate);
        if path.try_exists().unwrap_or(true) {
            return Ok(absolute(path));
        }
    }
    Err(Error::usage("config-missing", "there is no configuration file")
        .detail(format!("Neither ./{} nor {} exists.", DEFAULT_FILES[0], DEFAULT_FILES[1]))
        .hint("Name one with `--config FILE`, or let `pgproof init --connection CONNINFO --repository URL` write one."))
}

/// The names of clusters, copies and drills: they stand in object names and on command lines.
pub fn check_name(name: &str) -> Result<(), &'static str> {
    let mut bytes = name.bytes();
    let good_first = bytes
        .next()
        .is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let good_rest = bytes.all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'-');
    if good_first && good_rest && name.len() <= 63 {
        Ok(())
    } else {
        Err("must be 1 to 63 of a-z, 0-9, '_' and '-', and begin with a letter or a digit")
    }
}

/// The candidate that was probably meant: at most a third of its letters differ.
pub fn nearest<'a>(word: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    candidates
        .map(|candidate| (distance(word, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= 1 + candidate.chars().count() / 3)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Levenshtein's distance.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        for (cell, y) in row.iter_mut().skip(1).zip(&b) {
            let substituted = diagonal + usize::from(x != *y);
            diagonal = *cell;
            left = substituted.min(*cell + 1).min(left + 1);
            *cell = left;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests;
