//! Trying again, and what a failure means.
//!
//! Invariants: what is sent again is the same bytes; "it is not there" is said only when the store itself
//! said so of this name, never for want of an answer, of a right or of a bucket; nothing is tried for ever.

use std::error::Error as _;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use diagnostic::Error;

use super::http::{ATTEMPT, Answer, Attempt};
use super::{Inner, tls};

/// The first wait before another try; each next one is twice as long.
const WAIT_FIRST: Duration = Duration::from_millis(100);
const WAIT_FIRST_THROTTLED: Duration = Duration::from_millis(500);
const WAIT_MAX: Duration = Duration::from_secs(10);
/// The store may ask for a longer wait than ours, up to this one.
const WAIT_ASKED_MAX: Duration = Duration::from_secs(30);
/// A store that has never answered this process is tried no longer than this: its name is probably wrong.
const NEVER_ANSWERED_MAX: Duration = Duration::from_secs(10);
/// A transfer may be as slow as this before it counts as stuck.
const BYTES_PER_SECOND_MIN: u64 = 128 << 10;
/// Bytes of the store's own words that are passed on.
const WORDS_MAX: usize = 300;

/// Why an operation failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// The object is not there.
    Missing,
    /// Not found, but the answer does not say what: neither the object nor the bucket.
    NotFoundUnclear,
    BucketMissing,
    /// The multipart upload is not there (any more).
    UploadMissing,
    /// The name was taken.
    Exists,
    /// Another request for the same name was under way.
    Conflict,
    /// The object is shorter than the range.
    Range,
    Denied,
    Credentials,
    Throttled,
    Full,
    Region,
    /// The store does not know this kind of request.
    Unsupported,
    Refused,
    /// The store failed (5xx).
    Failing,
    /// The store's certificate is not accepted.
    Certificate,
    /// TLS with the store failed.
    Tls,
    /// No answer, or not all of it.
    Unreachable,
}

impl Kind {
    fn again(self) -> bool {
        matches!(
            self,
            Kind::Conflict | Kind::Throttled | Kind::Failing | Kind::Tls | Kind::Unreachable
        )
    }
}

/// A failure, when no further try was due.
#[derive(Debug, Clone)]
pub(super) struct Failed {
    pub(super) kind: Kind,
    /// An earlier try got no clear answer, and may have taken effect.
    pub(super) unclear: bool,
    status: Option<u16>,
    /// The store's own code (`SlowDown`).
    store_code: Option<String>,
    words: String,
    /// What helps, where the words alone do not say it.
    hint: Option<&'static str>,
    region: Option<String>,
    tries: u32,
    elapsed: Duration,
}

impl Inner {
    /// How long one try may take that carries so many bytes.
    pub(super) fn time_for(&self, bytes: u64) -> Duration {
        self.options.request_timeout + Duration::from_secs(bytes / BYTES_PER_SECOND_MIN)
    }

    /// Runs `make` until it succeeds, fails for good, or the time is up. `bytes` is how much is sent or
    /// expected, for the time-out.
    pub(super) async fn attempts<T, F, Made>(&self, create: bool, bytes: u64, make: F) -> Result<T, Failed>
    where
        F: Fn() -> Made,
        Made: Future<Output = object_store::Result<T>>,
    {
        let began = Instant::now();
        let limit = self.time_for(bytes);
        let mut unclear = false;
        let mut tries = 0;
        loop {
            tries += 1;
            let attempt = Arc::new(Attempt::new(create));
            let made = ATTEMPT
                .scope(attempt.clone(), tokio::time::timeout(limit, make()))
                .await;
            let answer = attempt.answer();
            if answer.is_some() {
                self.answered.store(true, Ordering::Relaxed);
            }
            let mut failed = match made {
                Ok(Ok(value)) => return Ok(value),
                Ok(Err(error)) => classify(&error, answer.as_ref()),
                Err(_) => Failed {
                    words: format!("no complete answer within {} s", limit.as_secs_f32()),
                    ..Failed::new(Kind::Unreachable)
                },
            };
            if failed.kind == Kind::Credentials
                && failed.status.is_some()
                && tries == 1
                && let Some(provider) = &self.provider
            {
                // They may have been renewed since we asked for them.
                provider.forget();
                continue;
            }
            failed.unclear = unclear;
            failed.tries = tries;
            failed.elapsed = began.elapsed();
            unclear |= match failed.kind {
                Kind::Failing | Kind::Throttled | Kind::Tls => true,
                Kind::Unreachable => !words_of_connecting(&failed.words),
                _ => false,
            };
            let patience = match self.answered.load(Ordering::Relaxed) {
                true => self.options.retry_for,
                false => self.options.retry_for.min(NEVER_ANSWERED_MAX),
            };
            let wait = wait(failed.kind, tries, answer.as_ref());
            if !failed.kind.again() || began.elapsed() + wait > patience {
                return Err(failed);
            }
            tokio::time::sleep(wait).await;
        }
    }
}

/// Exponential, with half of it at random so that many clients do not come back at once.
fn wait(kind: Kind, tries: u32, answer: Option<&Answer>) -> Duration {
    let first = match kind {
        Kind::Throttled => WAIT_FIRST_THROTTLED,
        _ => WAIT_FIRST,
    };
    let full = first
        .saturating_mul(1 << tries.saturating_sub(1).min(10))
        .min(WAIT_MAX);
    let mut random = [0; 1];
    // Without randomness the wait is just the longest one.
    let share = match getrandom::fill(&mut random) {
        Ok(()) => f64::from(random[0]) / 255.0,
        Err(_) => 1.0,
    };
    let wait = full.mul_f64(0.5 + share / 2.0);
    let asked = answer.and_then(|answer| answer.retry_after_seconds);
    wait.max(Duration::from_secs(asked.unwrap_or(0)).min(WAIT_ASKED_MAX))
}

/// Nothing was sent: the connection was never made.
fn words_of_connecting(words: &str) -> bool {
    words.contains("tcp connect error") || words.contains("dns error") || words.contains("Connection refused")
}

/// The error with all that it was caused by, each thing once.
fn words(error: &object_store::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    text
}

/// The content of an element of the store's XML.
fn element<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(&format!("<{name}>"))?;
    rest.split_once(&format!("</{name}>")).map(|(content, _)| content)
}

fn shortened(text: &str) -> String {
    let one_line: String = text
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(WORDS_MAX)
        .collect();
    one_line.trim().to_owned()
}

fn classify(error: &object_store::Error, answer: Option<&Answer>) -> Failed {
    let status = answer.map(|answer| answer.status);
    if status.is_none()
        && let Some(problem) = tls::problem(error)
    {
        return Failed {
            words: shortened(&problem.words),
            hint: Some(problem.hint),
            ..Failed::new(problem.kind)
        };
    }
    let text = words(error);
    let code = element(&text, "Code").map(shortened);
    let code_text = code.as_deref().unwrap_or_default();
    let kind = match (status, code_text) {
        (_, "SlowDown" | "TooManyRequests" | "RequestLimitExceeded" | "ServiceUnavailable")
        | (Some(429 | 503), _) => Kind::Throttled,
        (_, "NoSuchKey") => Kind::Missing,
        (_, "NoSuchBucket") => Kind::BucketMissing,
        (_, "NoSuchUpload") => Kind::UploadMissing,
        (_, "RequestTimeout" | "InternalError") | (Some(408), _) => Kind::Failing,
        (_, "NotImplemented") | (Some(501), _) => Kind::Unsupported,
        (_, "QuotaExceeded" | "XMinioStorageFull" | "InsufficientStorage") | (Some(507), _) => Kind::Full,
        (_, "ExpiredToken" | "InvalidToken") => Kind::Credentials,
        (_, "AuthorizationHeaderMalformed" | "PermanentRedirect" | "IllegalLocationConstraintException")
        | (Some(301 | 302 | 307 | 308), _) => Kind::Region,
        (Some(401 | 403), _) => Kind::Denied,
        (Some(404), _) => Kind::NotFoundUnclear,
        (Some(409), _) => Kind::Conflict,
        (Some(304 | 412), _) => Kind::Exists,
        (Some(416), _) => Kind::Range,
        (Some(400..=499), _) => Kind::Refused,
        (Some(500..), _) => Kind::Failing,
        // An answer of which the body did not arrive, or did not make sense.
        (Some(_), _) => Kind::Unreachable,
        (None, _) if text.contains(super::credentials::NO_CREDENTIALS) => Kind::Credentials,
        (None, _) if text.contains("169.254.169.254") || text.contains("InstanceMetadata") => {
            Kind::Credentials
        }
        (None, _) => Kind::Unreachable,
    };
    // The store's own words can hold parts of a signature; of XML only its message is passed on.
    let words = match (element(&text, "Message"), text.contains('<')) {
        (Some(message), _) => shortened(message),
        (None, true) => shortened(text.split('<').next().unwrap_or_default()),
        (None, false) => shortened(&text),
    };
    Failed {
        status,
        store_code: code,
        words,
        region: answer.and_then(|answer| answer.region.clone()),
        ..Failed::new(kind)
    }
}

impl Failed {
    pub(super) fn new(kind: Kind) -> Self {
        Failed {
            kind,
            unclear: false,
            status: None,
            store_code: None,
            words: String::new(),
            hint: None,
            region: None,
            tries: 1,
            elapsed: Duration::ZERO,
        }
    }

    /// The store answered, but what it said makes no sense.
    pub(super) fn answer(words: &str) -> Self {
        Failed {
            status: Some(200),
            words: words.to_owned(),
            ..Failed::new(Kind::Refused)
        }
    }

    /// In our words. `doing` completes "cannot ..." (`read object "x"`).
    pub(super) fn error(&self, inner: &Inner, doing: &str) -> Error {
        let bucket = &inner.place.bucket;
        let code = match self.kind {
            Kind::Missing | Kind::NotFoundUnclear | Kind::UploadMissing => "object-missing",
            Kind::BucketMissing => "store-bucket-missing",
            Kind::Exists | Kind::Conflict => "store-conflict",
            Kind::Range => "object-damaged",
            Kind::Denied => "store-denied",
            Kind::Credentials => "store-credentials",
            Kind::Throttled => "store-throttled",
            Kind::Full => "store-full",
            Kind::Region => "store-region",
            Kind::Unsupported => "store-unsupported",
            Kind::Refused => "store-refused",
            Kind::Failing => "store-failing",
            Kind::Certificate => "store-certificate",
            Kind::Tls => "store-tls",
            Kind::Unreachable => "store-unreachable",
        };
        let endpoint = inner.options.endpoint.as_deref().unwrap_or("Amazon S3");
        let error = Error::new(code, format!("cannot {doing} in {}", inner.place.url()));
        let mut detail = match (self.kind, self.status, &self.store_code) {
            (Kind::Certificate, ..) => format!("The certificate of {endpoint} is not accepted"),
            (Kind::Tls, ..) => format!("TLS with {endpoint} failed"),
            (_, Some(status), Some(code)) => format!("The store answered {status} {code}"),
            (_, Some(status), None) => format!("The store answered {status}"),
            (_, None, _) => "The store did not answer".to_owned(),
        };
        if !self.words.is_empty() {
            detail.push_str(": ");
            detail.push_str(&self.words);
        }
        if !detail.ends_with('.') {
            detail.push('.');
        }
        if self.tries > 1 {
            let seconds = self.elapsed.as_secs_f32();
            detail.push_str(&format!(" It was tried {} times in {seconds:.1} s.", self.tries));
        }
        let error = error.detail(detail);
        if let Some(hint) = self.hint {
            return error.hint(hint);
        }
        match (self.kind, self.store_code.as_deref()) {
            (Kind::Denied, Some("RequestTimeTooSkewed")) => {
                error.hint("This host's clock is wrong: correct it, then run the same command again.")
            }
            (Kind::Denied, Some("InvalidAccessKeyId" | "SignatureDoesNotMatch")) => {
                error.hint("The store does not know these credentials: check `credentials` of this copy.")
            }
            (Kind::Denied, _) => error.hint(
                "Give these credentials the rights that docs/operations.md lists for S3; s3:ListBucket is \
                 among them, since without it the store does not tell absent from denied.",
            ),
            (Kind::Credentials, _) => error.hint(
                "Name them in the copy's section: credentials = { file = \"/etc/pgproof/s3.credentials\" }; \
                 the archiver does not have your shell's environment.",
            ),
            (Kind::BucketMissing, _) => error.hint(format!(
                "Create the bucket \"{bucket}\" at {endpoint}, or correct the URL."
            )),
            (Kind::Region, _) => match &self.region {
                Some(region) => error.hint(format!("Write region = \"{region}\" in the copy's section.")),
                None => error.hint("Correct `region` (and `endpoint`) in the copy's section."),
            },
            (Kind::Throttled, _) => {
                error.hint("The store asks for fewer requests: run the same command again later.")
            }
            (Kind::Unreachable, _) => {
                error.hint(format!("Check that {endpoint} can be reached from this host."))
            }
            _ => error,
        }
    }
}
