//! The copies of a cluster's backups and WAL, opened with their keys.
//!
//! Invariant: that a copy could not be opened is kept beside those that could, and never taken for "it holds nothing".

use std::path::Path;
use std::process::{Command, Stdio};

use diagnostic::{Error, Result};
use repository::{ClusterRepository, RecipientKey, Repository};

use crate::config::{Cluster, Configuration, CopyOfRepository, KeySource};

/// An open copy.
pub struct OpenCopy {
    pub name: String,
    pub url: String,
    pub cluster: ClusterRepository,
}

/// All copies of a cluster, in the configured order: those that opened, and why the others did not.
pub struct Copies {
    pub open: Vec<OpenCopy>,
    pub failed: Vec<(String, Error)>,
}

impl Copies {
    /// Opens all copies of the cluster; with `only`, that one.
    pub fn open(configuration: &Configuration, cluster: &Cluster, only: Option<&str>) -> Result<Copies> {
        if let Some(only) = only
            && !cluster.copies.iter().any(|copy| copy == only)
        {
            let message = format!("cluster {:?} has no copy {only:?}", cluster.name);
            let hint = format!("It has: {}.", cluster.copies.join(", "));
            return Err(Error::usage("copy-unknown", message).hint(hint));
        }
        let mut copies = Copies {
            open: Vec::new(),
            failed: Vec::new(),
        };
        for name in cluster
            .copies
            .iter()
            .filter(|name| only.is_none_or(|only| *name == only))
        {
            let Some(copy) = configuration.copies.get(name) else {
                continue;
            };
            match open(copy).and_then(|repository| repository.cluster(&cluster.name)) {
                Ok(cluster) => {
                    copies.open.push(OpenCopy {
                        name: name.clone(),
                        url: copy.url.clone(),
                        cluster,
                    });
                }
                Err(error) => copies.failed.push((name.clone(), error)),
            }
        }
        Ok(copies)
    }

    /// The same, but every copy must open.
    pub fn open_all(
        configuration: &Configuration,
        cluster: &Cluster,
        only: Option<&str>,
    ) -> Result<Vec<OpenCopy>> {
        Copies::open(configuration, cluster, only)?.all(cluster)
    }

    /// All of them, or why the first one that did not open did not.
    pub fn all(mut self, cluster: &Cluster) -> Result<Vec<OpenCopy>> {
        if self.failed.is_empty() {
            return Ok(self.open);
        }
        let (name, error) = self.failed.remove(0);
        Err(error.context(format!("cannot open copy {name:?} of cluster {:?}", cluster.name)))
    }

    /// Those that opened, with a notice for each that did not; an error when none did.
    pub fn open_any(
        configuration: &Configuration,
        cluster: &Cluster,
        only: Option<&str>,
    ) -> Result<Vec<OpenCopy>> {
        let mut copies = Copies::open(configuration, cluster, only)?;
        if copies.open.is_empty() && !copies.failed.is_empty() {
            let (name, error) = copies.failed.remove(0);
            return Err(error.context(format!("cannot open copy {name:?} of cluster {:?}", cluster.name)));
        }
        for (name, error) in &copies.failed {
            crate::output::notice(format!(
                "warning: copy {name:?} could not be opened and is left out"
            ));
            crate::exit::print_error(error);
        }
        Ok(copies.open)
    }
}

/// Opens one copy.
pub fn open(copy: &CopyOfRepository) -> Result<Repository> {
    Repository::open(crate::stores::open(copy)?, &key(&copy.key)?)
}

/// Fetches the key. Error codes: `key-missing`, `key-unreadable`, `passphrase-command`.
pub fn key(source: &KeySource) -> Result<RecipientKey> {
    match source {
        KeySource::File(path) => key_file(path),
        KeySource::PassphraseCommand(command) => RecipientKey::from_passphrase(&passphrase(command)?),
    }
}

fn key_file(path: &Path) -> Result<RecipientKey> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        let message = format!("cannot read the key file {:?}", path.display().to_string());
        if error.kind() == std::io::ErrorKind::NotFound {
            Error::io("key-missing", message, &error)
                .hint("Without this key the repository cannot be read. Put back the copy that `pgproof key export` printed.")
        } else {
            Error::io("key-unreadable", message, &error)
                .hint(format!("It must be readable for the account that runs pgproof: `ls -l {}`.", path.display()))
        }
    })?;
    RecipientKey::from_key_file_text(&text).map_err(|error| {
        error.context(format!(
            "the key file {:?} holds no key",
            path.display().to_string()
        ))
    })
}

/// What the command prints, without its last line end.
fn passphrase(command: &str) -> Result<String> {
    let output = Command::new("/bin/sh")
        .args(["-c", command])
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| {
            Error::io(
                "passphrase-command",
                "cannot start the passphrase command",
                &error,
            )
        })?;
    if !output.status.success() {
        return Err(Error::new("passphrase-command", "the passphrase command failed")
            .detail(format!("It ended with {}: {command}", output.status)));
    }
    let text = String::from_utf8(output.stdout).map_err(|_| {
        Error::new(
            "passphrase-command",
            "the passphrase command printed something that is not UTF-8",
        )
    })?;
    let text = text.strip_suffix('\n').unwrap_or(&text);
    if text.is_empty() {
        return Err(
            Error::new("passphrase-command", "the passphrase command printed nothing")
                .detail(format!("The command: {command}")),
        );
    }
    Ok(text.to_owned())
}
