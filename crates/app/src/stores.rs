//! The store of a copy, made from what the configuration says and from what only this program may look at: the
//! environment, credential files, commands.
//!
//! Invariants: nothing is asked of a store here; a secret goes from its source into memory and nowhere else, in
//! no message either.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use diagnostic::{Error, Result};
use jiff::Timestamp;
use repository::{S3Credentials, S3Keys, S3Options, S3Store, Store, create_store, open_store};
use serde::Deserialize;

use crate::config::{Bucket, CopyOfRepository, CredentialsSource};

/// The variables that say how Amazon's services are reached and by whom.
const AMBIENT: [&str; 13] = [
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_ROLE_ARN",
    "AWS_ROLE_SESSION_NAME",
    "AWS_ENDPOINT_URL_STS",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
    "AWS_METADATA_ENDPOINT",
];

/// Opens the store of a copy. Errors: `store-url`, `store-unreachable`, `store-denied`.
pub fn open(copy: &CopyOfRepository) -> Result<Arc<dyn Store>> {
    match &copy.bucket {
        Some(bucket) => s3(&copy.url, bucket),
        None => open_store(&copy.url),
    }
}

/// Makes the store of a copy, if it can be made: a folder can, a bucket is its owner's to make.
pub fn create(copy: &CopyOfRepository) -> Result<Arc<dyn Store>> {
    match &copy.bucket {
        Some(bucket) => s3(&copy.url, bucket),
        None => create_store(&copy.url),
    }
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// The region that the environment names.
pub fn ambient_region() -> Option<String> {
    variable("AWS_REGION").or_else(|| variable("AWS_DEFAULT_REGION"))
}

fn s3(url: &str, bucket: &Bucket) -> Result<Arc<dyn Store>> {
    let credentials = match &bucket.credentials {
        CredentialsSource::Environment => {
            let pairs = AMBIENT
                .iter()
                .filter_map(|name| Some(((*name).to_owned(), variable(name)?)));
            S3Credentials::Ambient(pairs.collect())
        }
        CredentialsSource::File { path, profile } => {
            let (path, profile) = (path.clone(), profile.clone());
            S3Credentials::Source(Arc::new(move || from_file(&path, &profile)))
        }
        CredentialsSource::Command(command) => {
            let command = command.clone();
            S3Credentials::Source(Arc::new(move || from_command(&command)))
        }
    };
    let certificates = match &bucket.ca_file {
        None => None,
        Some(file) => Some(std::fs::read(file).map_err(|error| {
            Error::io(
                "store-options",
                format!("cannot read the certificates in {:?}", file.display().to_string()),
                &error,
            )
            .hint(
                "`ca_file` must be readable for every account that runs pgproof, the archiver's among them.",
            )
        })?),
    };
    let mut options = S3Options {
        endpoint: bucket.endpoint.clone(),
        region: bucket.region.clone().or_else(ambient_region),
        path_style: bucket.path_style,
        allow_http: bucket.allow_http,
        certificates,
        credentials,
        ..S3Options::default()
    };
    if let Some(time) = bucket.retry_for() {
        options.retry_for = time;
    }
    Ok(Arc::new(S3Store::new(url, options)?))
}

/// A profile of a file in AWS's form: `[name]`, then `aws_access_key_id = ...` and the others.
fn from_file(path: &Path, profile: &str) -> Result<S3Keys> {
    let shown = path.display().to_string();
    let text = std::fs::read_to_string(path).map_err(|error| {
        Error::io(
            "store-credentials",
            format!("cannot read the credentials file {shown:?}"),
            &error,
        )
    })?;
    let text = zeroize::Zeroizing::new(text);
    keys_of_profile(&text, profile).ok_or_else(|| {
        Error::new(
            "store-credentials",
            format!("{shown:?} has no aws_access_key_id and aws_secret_access_key under [{profile}]"),
        )
    })
}

/// The keys under `[profile]`, if both are there.
pub(crate) fn keys_of_profile(text: &str, profile: &str) -> Option<S3Keys> {
    let (mut id, mut secret, mut token) = (None, None, None);
    let mut here = false;
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            let name = name.trim();
            here = name == profile || name.strip_prefix("profile ").map(str::trim) == Some(profile);
        } else if here
            && !line.starts_with(['#', ';'])
            && let Some((key, value)) = line.split_once('=')
        {
            let value = value.trim().to_owned();
            match key.trim().to_ascii_lowercase().as_str() {
                "aws_access_key_id" => id = Some(value),
                "aws_secret_access_key" => secret = Some(value.into()),
                "aws_session_token" => token = Some(value.into()),
                _ => {}
            }
        }
    }
    Some(S3Keys {
        access_key_id: id?,
        secret_access_key: secret?,
        session_token: token,
        good_for: None,
    })
}

/// What a `credential_process` prints.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Printed {
    version: u32,
    access_key_id: String,
    secret_access_key: String,
    session_token: Option<String>,
    expiration: Option<Timestamp>,
}

fn from_command(command: &str) -> Result<S3Keys> {
    let failed = |why: String| Error::new("store-credentials", format!("the credentials command {why}"));
    let output = Command::new("/bin/sh")
        .args(["-c", command])
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| {
            Error::io(
                "store-credentials",
                "cannot start the credentials command",
                &error,
            )
        })?;
    if !output.status.success() {
        return Err(failed(format!("ended with {}", output.status)));
    }
    let stdout = zeroize::Zeroizing::new(output.stdout);
    printed_keys(&stdout, Timestamp::now())
}

/// The keys that a credentials command printed.
pub(crate) fn printed_keys(stdout: &[u8], now: Timestamp) -> Result<S3Keys> {
    let failed = |why: String| Error::new("store-credentials", format!("the credentials command {why}"));
    // The parser's message could repeat what it read.
    let printed: Printed = serde_json::from_slice(stdout).map_err(|error| {
        failed(format!(
            "printed something else than AWS's JSON (line {}, column {})",
            error.line(),
            error.column()
        ))
    })?;
    if printed.version != 1 {
        return Err(failed(format!(
            "printed version {} instead of 1",
            printed.version
        )));
    }
    let good_for = printed.expiration.map(|until| {
        let left = until.duration_since(now);
        std::time::Duration::try_from(left).unwrap_or_default()
    });
    Ok(S3Keys {
        access_key_id: printed.access_key_id,
        secret_access_key: printed.secret_access_key.into(),
        session_token: printed.session_token.map(Into::into),
        good_for,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_credentials_file_is_read_by_profile_and_never_shown() {
        let folder = tempfile::tempdir().expect("folder");
        let file = folder.path().join("credentials");
        std::fs::write(
            &file,
            "# comment\n[default]\naws_access_key_id=AKID1\naws_secret_access_key = s3cr=t/1\n\n\
             [profile other]\naws_access_key_id = AKID2\naws_secret_access_key = two\naws_session_token = t\n\
             [broken]\naws_secret_access_key = leak\n",
        )
        .expect("write");
        let keys = from_file(&file, "default").expect("default");
        assert_eq!(
            (keys.access_key_id.as_str(), keys.secret_access_key.as_str()),
            ("AKID1", "s3cr=t/1")
        );
        assert!(keys.session_token.is_none());
        let keys = from_file(&file, "other").expect("other");
        assert_eq!(keys.access_key_id, "AKID2");
        assert_eq!(keys.session_token.as_deref().map(String::as_str), Some("t"));
        assert!(!format!("{keys:?}").contains("two"));
        for profile in ["broken", "absent"] {
            let error = from_file(&file, profile).expect_err("no keys");
            assert_eq!(error.code(), "store-credentials");
            assert!(!error.render().contains("leak"));
        }
    }

    #[test]
    fn a_credentials_command_prints_json_and_what_it_prints_is_never_shown() {
        let keys = from_command(
            r#"echo '{"Version":1,"AccessKeyId":"A","SecretAccessKey":"S","Expiration":"2999-01-01T00:00:00Z"}'"#,
        )
        .expect("keys");
        assert_eq!(
            (keys.access_key_id.as_str(), keys.secret_access_key.as_str()),
            ("A", "S")
        );
        assert!(
            keys.good_for
                .is_some_and(|good_for| good_for.as_secs() > 1_000_000)
        );
        for command in [
            "echo TOPSECRET",
            "echo TOPSECRET; exit 3",
            r#"echo '{"Version":2,"AccessKeyId":"A","SecretAccessKey":"TOPSECRET"}'"#,
        ] {
            let error = from_command(command).expect_err("refused");
            assert_eq!(error.code(), "store-credentials");
            assert!(!error.render().contains("TOPSECRET"), "{}", error.render());
        }
    }
}
