//! Where the store's credentials come from: a function of the caller's, asked again before they expire.
//!
//! Invariants: a secret is in memory only, wiped when it is dropped, and in no message.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use diagnostic::Result;
use object_store::CredentialProvider;
use object_store::aws::AwsCredential;
use zeroize::Zeroizing;

/// Begins every message that means: there are no credentials to sign with.
pub(super) const NO_CREDENTIALS: &str = "no credentials for the store";
/// Credentials are asked for again this long before they expire.
const BEFORE_EXPIRY: Duration = Duration::from_secs(300);
/// Credentials that state no expiry are asked for again after this time: a file may have been changed.
const UNSTATED_LIFE: Duration = Duration::from_secs(900);

/// What requests are signed with.
#[derive(Clone)]
pub struct S3Keys {
    pub access_key_id: String,
    pub secret_access_key: Zeroizing<String>,
    pub session_token: Option<Zeroizing<String>>,
    /// How long they are good for; `None` if that is not known.
    pub good_for: Option<Duration>,
}

impl fmt::Debug for S3Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("S3Keys(...)")
    }
}

/// Where credentials come from.
#[derive(Clone)]
pub enum S3Credentials {
    /// Settings of the environment by AWS's names (`AWS_ACCESS_KEY_ID`, ...); without keys among them, the
    /// role of this machine or container.
    Ambient(Vec<(String, String)>),
    /// Asked now and then; may read a file or run a command.
    Source(Arc<dyn Fn() -> Result<S3Keys> + Send + Sync>),
}

impl fmt::Debug for S3Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            S3Credentials::Ambient(_) => "Ambient",
            S3Credentials::Source(_) => "Source",
        })
    }
}

/// Keeps what the source gave until it is due again.
pub(super) struct Provider {
    source: Arc<dyn Fn() -> Result<S3Keys> + Send + Sync>,
    kept: Mutex<Option<(Arc<AwsCredential>, Instant)>>,
}

impl fmt::Debug for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Provider")
    }
}

impl Provider {
    pub(super) fn new(source: Arc<dyn Fn() -> Result<S3Keys> + Send + Sync>) -> Self {
        Provider {
            source,
            kept: Mutex::default(),
        }
    }

    /// The store says that they have expired.
    pub(super) fn forget(&self) {
        *self.kept.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn kept(&self) -> Option<Arc<AwsCredential>> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.as_ref()
            .filter(|(_, until)| Instant::now() < *until)
            .map(|(credential, _)| credential.clone())
    }
}

#[async_trait]
impl CredentialProvider for Provider {
    type Credential = AwsCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<AwsCredential>> {
        if let Some(kept) = self.kept() {
            return Ok(kept);
        }
        let failed = |why: String| object_store::Error::Generic {
            store: "S3",
            source: format!("{NO_CREDENTIALS}: {why}").into(),
        };
        // A command may take its time: not on a thread that serves connections.
        let source = self.source.clone();
        let keys = tokio::task::spawn_blocking(move || source())
            .await
            .map_err(|error| failed(error.to_string()))?
            .map_err(|error| failed(error.render().trim_end().replace('\n', "; ")))?;
        let life = match keys.good_for {
            Some(life) => life.saturating_sub(BEFORE_EXPIRY).max(Duration::from_secs(1)),
            None => UNSTATED_LIFE,
        };
        let credential = Arc::new(AwsCredential {
            key_id: keys.access_key_id.clone(),
            secret_key: keys.secret_access_key.to_string(),
            token: keys.session_token.as_ref().map(|token| token.to_string()),
        });
        let until = Instant::now() + life;
        *self.kept.lock().unwrap_or_else(PoisonError::into_inner) = Some((credential.clone(), until));
        Ok(credential)
    }
}
