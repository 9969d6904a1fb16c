//! The part of a `[copy.NAME]` that says how a bucket of S3 is reached.
//!
//! Invariants: no secret stands in it, only where to find one; what has no meaning for a copy's URL is refused.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use super::Length;

/// `credentials = { ... }`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CredentialsSection {
    file: Option<PathBuf>,
    profile: Option<String>,
    command: Option<String>,
}

/// The keys of a copy that are for buckets only, as they are written.
#[derive(Debug, Clone, Default)]
pub(super) struct Written {
    pub(super) endpoint: Option<String>,
    pub(super) region: Option<String>,
    pub(super) path_style: Option<bool>,
    pub(super) allow_http: Option<bool>,
    pub(super) ca_file: Option<PathBuf>,
    pub(super) credentials: Option<CredentialsSection>,
    pub(super) retry_for: Option<Length>,
}

/// How a bucket is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bucket {
    /// `None` for Amazon's own.
    pub endpoint: Option<String>,
    pub region: Option<String>,
    pub path_style: bool,
    pub allow_http: bool,
    /// More certificates to trust, PEM.
    pub ca_file: Option<PathBuf>,
    pub credentials: CredentialsSource,
    pub retry_for: Option<Length>,
}

/// Where the store's credentials come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CredentialsSource {
    /// The variables `AWS_...`, else the role of this machine.
    Environment,
    /// A file in the form of AWS's `~/.aws/credentials`.
    File { path: PathBuf, profile: String },
    /// A shell command that prints JSON in the form of AWS's `credential_process`.
    Command(String),
}

/// The profile that is read when none is named.
pub const DEFAULT_PROFILE: &str = "default";

/// A key that is wrong, and why.
pub(super) type Wrong = (&'static str, String);

impl Written {
    /// The first key that is there: of a copy that is not a bucket none may be.
    pub(super) fn first(&self) -> Option<&'static str> {
        let there = [
            ("endpoint", self.endpoint.is_some()),
            ("region", self.region.is_some()),
            ("path_style", self.path_style.is_some()),
            ("allow_http", self.allow_http.is_some()),
            ("ca_file", self.ca_file.is_some()),
            ("credentials", self.credentials.is_some()),
            ("retry_for", self.retry_for.is_some()),
        ];
        there.into_iter().find(|(_, there)| *there).map(|(key, _)| key)
    }

    /// With defaults filled in; paths are relative to `base`.
    pub(super) fn resolve(self, base: &Path) -> Result<Bucket, Wrong> {
        let allow_http = self.allow_http.unwrap_or(false);
        if let Some(endpoint) = &self.endpoint {
            let host = match endpoint.split_once("://") {
                Some(("https", host)) => host,
                Some(("http", _)) if !allow_http => {
                    let why = "sends requests unencrypted; write https://, or allow_http = true in a network you trust";
                    return Err(("endpoint", format!("{endpoint:?} {why}")));
                }
                Some(("http", host)) => host,
                _ => {
                    let why = "is no endpoint; it begins with https:// (or http://)";
                    return Err(("endpoint", format!("{endpoint:?} {why}")));
                }
            };
            let host = host.trim_end_matches('/');
            if host.is_empty() || host.contains(['/', '?', '#']) {
                return Err((
                    "endpoint",
                    format!(
                        "{endpoint:?} must be a host, perhaps with a port; the bucket belongs into `url`"
                    ),
                ));
            }
            if host.contains('@') {
                // Not shown: what stands before the @ may be a secret.
                return Err((
                    "endpoint",
                    "credentials do not belong into the endpoint".to_owned(),
                ));
            }
        }
        let credentials = match self.credentials {
            None => CredentialsSource::Environment,
            Some(section) => match (section.file, section.command, section.profile) {
                (Some(path), None, profile) => CredentialsSource::File {
                    path: base.join(path),
                    profile: profile.unwrap_or_else(|| DEFAULT_PROFILE.to_owned()),
                },
                (None, Some(command), None) => CredentialsSource::Command(command),
                _ => {
                    let why = "must say either `file` (with or without `profile`) or `command`";
                    return Err(("credentials", format!("the credentials {why}")));
                }
            },
        };
        Ok(Bucket {
            path_style: self.path_style.unwrap_or(self.endpoint.is_some()),
            endpoint: self.endpoint,
            region: self.region,
            allow_http,
            ca_file: self.ca_file.map(|file| base.join(file)),
            credentials,
            retry_for: self.retry_for,
        })
    }
}

impl Bucket {
    /// Key and value of each setting, for `config show`.
    pub(super) fn show(&self) -> Vec<(&'static str, String)> {
        let quoted = |text: &str| format!("{text:?}");
        let path = |path: &Path| quoted(&path.display().to_string());
        let mut shown = vec![
            (
                "endpoint",
                self.endpoint.as_deref().map_or("(Amazon S3)".to_owned(), quoted),
            ),
            (
                "region",
                self.region
                    .as_deref()
                    .map_or("(from the environment)".to_owned(), quoted),
            ),
            ("path_style", self.path_style.to_string()),
            ("allow_http", self.allow_http.to_string()),
        ];
        if let Some(file) = &self.ca_file {
            shown.push(("ca_file", path(file)));
        }
        match &self.credentials {
            CredentialsSource::Environment => {
                shown.push((
                    "credentials",
                    "(the environment, else this machine's role)".to_owned(),
                ));
            }
            CredentialsSource::File { path: file, profile } => {
                shown.push(("credentials.file", path(file)));
                shown.push(("credentials.profile", quoted(profile)));
            }
            // A command line may hold a secret.
            CredentialsSource::Command(_) => shown.push(("credentials.command", "\"***\"".to_owned())),
        }
        if let Some(length) = &self.retry_for {
            shown.push(("retry_for", quoted(&length.text)));
        }
        shown
    }

    /// How long a failing operation is tried again, if the configuration says.
    pub fn retry_for(&self) -> Option<Duration> {
        self.retry_for.as_ref().map(|length| length.duration)
    }
}
