//! A store in a bucket of Amazon S3, or of what speaks its protocol.
//!
//! Invariants: an object of up to [`SINGLE_PUT_BYTES_MAX`] is one PUT, a larger one a multipart upload that
//! is completed or aborted, and is invisible until it is complete; a creation is conditional
//! (`If-None-Match: *`) unless the repository says that this store ignores the condition; absence is
//! believed only when the store named it (`NoSuchKey`) or a listing shows it; the runtime, the connections
//! and the certificates are made with the first request, so who has no S3 copy pays nothing.

use std::collections::HashSet;
use std::fmt;
use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use diagnostic::{Error, Result};
use futures_util::StreamExt;
use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey};
use object_store::list::{PaginatedListOptions, PaginatedListResult, PaginatedListStore};
use object_store::path::Path;
use object_store::{
    Certificate, ClientOptions, GetOptions, GetRange, GetResult, ObjectStore, PutMode, PutPayload,
    RetryConfig,
};
use tokio::runtime::Runtime;

use super::{ObjectInfo, ObjectWriter, Put, RequestCounts, Requests, Store, check_name, check_prefix};

mod attempt;
mod credentials;
mod http;
mod replay;
mod tls;
mod writer;

use attempt::{Failed, Kind};
use credentials::Provider;
pub use credentials::{S3Credentials, S3Keys};
use replay::Replay;
pub(crate) use replay::read_answers;
pub use writer::{PART_BYTES, SINGLE_PUT_BYTES_MAX};

/// A whole object that is read at once is at most this long.
const READ_BYTES_MAX: u64 = 1 << 30;
/// Room that is made for a body before it comes.
const RESERVED_BYTES_MAX: usize = 32 << 20;
/// Two threads serve all connections; sealing and compressing happen on the callers' own.
const RUNTIME_THREADS: usize = 2;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How a bucket is reached.
#[derive(Debug, Clone)]
pub struct S3Options {
    /// `https://minio.example:9000`; `None` for Amazon's own.
    pub endpoint: Option<String>,
    /// `None`: us-east-1, which most stores that are not Amazon's take.
    pub region: Option<String>,
    /// The bucket stands in the path of a URL instead of its host name.
    pub path_style: bool,
    /// Requests may go unencrypted.
    pub allow_http: bool,
    /// Certificates (PEM) that are trusted beside the system's.
    pub certificates: Option<Vec<u8>>,
    pub credentials: S3Credentials,
    /// How long one request may go without a complete answer, beside a second for each 128 KiB.
    pub request_timeout: Duration,
    /// How long an operation is tried again while the store cannot be reached, fails or throttles.
    pub retry_for: Duration,
}

impl Default for S3Options {
    fn default() -> Self {
        S3Options {
            endpoint: None,
            region: None,
            path_style: false,
            allow_http: false,
            certificates: None,
            credentials: S3Credentials::Ambient(Vec::new()),
            request_timeout: Duration::from_secs(30),
            retry_for: Duration::from_secs(120),
        }
    }
}

/// A bucket, and where in it the objects' names begin.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Place {
    bucket: String,
    /// Empty, or ends in `/`.
    prefix: String,
}

impl Place {
    /// Error: `store-url`.
    fn parse(url: &str) -> Result<Self> {
        let wrong = |why: &str| {
            Error::usage(
                "store-url",
                format!("\"{}\" is not a bucket's URL", url.escape_debug()),
            )
            .detail(why.to_owned())
            .hint("Write it as s3://BUCKET/PREFIX.")
        };
        let rest = url
            .strip_prefix("s3://")
            .ok_or_else(|| wrong("It does not begin with s3://."))?;
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
        if !(3..=255).contains(&bucket.len()) || !bucket.bytes().all(good) {
            return Err(wrong("A bucket's name has at least 3 of a-z, 0-9, '.' and '-'."));
        }
        let prefix = prefix.trim_end_matches('/');
        if !prefix.is_empty() && check_name(prefix).is_err() {
            return Err(wrong(
                "A prefix is made of letters, digits, '.', '_' and '-', with single slashes between.",
            ));
        }
        Ok(Place {
            bucket: bucket.to_owned(),
            prefix: match prefix {
                "" => String::new(),
                prefix => format!("{prefix}/"),
            },
        })
    }

    fn url(&self) -> String {
        format!("s3://{}/{}", self.bucket, self.prefix)
            .trim_end_matches('/')
            .to_owned()
    }
}

/// What is known of conditional creation.
const CONDITION_UNKNOWN: u8 = 0;
const CONDITION_WORKS: u8 = 1;
const CONDITION_IGNORED: u8 = 2;

/// A store in a bucket.
pub struct S3Store {
    inner: Arc<Inner>,
}

struct Inner {
    place: Place,
    options: S3Options,
    provider: Option<Arc<Provider>>,
    client: OnceLock<AmazonS3>,
    requests: Arc<Requests>,
    /// Any answer has come back to this process.
    answered: AtomicBool,
    condition: AtomicU8,
    replay: Option<Replay>,
}

impl fmt::Debug for S3Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "S3Store({})", self.inner.place.url())
    }
}

/// The runtime that all S3 stores of this process share.
fn runtime() -> Result<&'static Runtime> {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    if let Some(runtime) = RUNTIME.get() {
        return Ok(runtime);
    }
    let made = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(RUNTIME_THREADS)
        .thread_name("store")
        .enable_all()
        .build()
        .map_err(|error| {
            Error::io(
                "store-io",
                "cannot start the threads that talk to the store",
                &error,
            )
        })?;
    Ok(RUNTIME.get_or_init(|| made))
}

impl S3Store {
    /// Describes the store; nothing is asked of it yet. Error: `store-url`.
    pub fn new(url: &str, options: S3Options) -> Result<Self> {
        S3Store::over(url, options, None)
    }

    fn over(url: &str, options: S3Options, replay: Option<Replay>) -> Result<Self> {
        let provider = match &options.credentials {
            S3Credentials::Source(source) => Some(Arc::new(Provider::new(source.clone()))),
            S3Credentials::Ambient(_) => None,
        };
        Ok(S3Store {
            inner: Arc::new(Inner {
                place: Place::parse(url)?,
                options,
                provider,
                client: OnceLock::new(),
                requests: Arc::new(Requests::default()),
                answered: AtomicBool::new(false),
                condition: AtomicU8::new(CONDITION_UNKNOWN),
                replay,
            }),
        })
    }
}

impl Inner {
    fn client(&self) -> Result<&AmazonS3> {
        if let Some(client) = self.client.get() {
            return Ok(client);
        }
        let made = self.build()?;
        Ok(self.client.get_or_init(|| made))
    }

    fn build(&self) -> Result<AmazonS3> {
        let options = &self.options;
        let unusable = || {
            Error::usage(
                "store-options",
                format!("cannot use {} as it is described", self.place.url()),
            )
        };
        let wrong = |error: object_store::Error| {
            let refused = unusable().caused_by(&error);
            // The library's only word for a host without a store of certificates.
            match refused.render().contains("No CA certificates were loaded") {
                true => refused.hint(
                    "This host has no certificates of authorities: install the package ca-certificates, or name the \
                     store's own authority with ca_file.",
                ),
                false => refused,
            }
        };
        // Time-outs and further tries are ours: they depend on what is sent, and each try is counted.
        let mut client = ClientOptions::new()
            .with_timeout_disabled()
            .with_connect_timeout(CONNECT_TIMEOUT)
            .with_allow_http(options.allow_http);
        if let Some(pem) = &options.certificates {
            let no_certificates = |why: &str| {
                unusable().detail(format!("ca_file: {why}.")).hint(
                    "It must hold the authority's certificate in PEM, from -----BEGIN CERTIFICATE----- on.",
                )
            };
            let trusted = Certificate::from_pem_bundle(pem)
                .map_err(|error| no_certificates("what it holds is no PEM").caused_by(&error))?;
            if trusted.is_empty() {
                return Err(no_certificates("it holds no certificate"));
            }
            client = trusted
                .into_iter()
                .fold(client, ClientOptions::with_root_certificate);
        }
        let no_retries = RetryConfig {
            max_retries: 0,
            ..RetryConfig::default()
        };
        let mut builder = AmazonS3Builder::new();
        if let S3Credentials::Ambient(settings) = &options.credentials {
            for (name, value) in settings {
                // What the client does not know has no meaning for it.
                if let Ok(key) = name.to_ascii_lowercase().parse::<AmazonS3ConfigKey>() {
                    builder = builder.with_config(key, value);
                }
            }
        }
        if let Some(provider) = &self.provider {
            builder = builder.with_credentials(provider.clone());
        }
        if let Some(region) = &options.region {
            builder = builder.with_region(region);
        }
        if let Some(endpoint) = &options.endpoint {
            let mut endpoint = endpoint.trim_end_matches('/').to_owned();
            if !options.path_style
                && let Some((scheme, host)) = endpoint.split_once("://")
            {
                endpoint = format!("{scheme}://{}.{host}", self.place.bucket);
            }
            builder = builder.with_endpoint(endpoint);
        }
        builder
            .with_bucket_name(&self.place.bucket)
            .with_virtual_hosted_style_request(!options.path_style)
            .with_client_options(client)
            .with_retry(no_retries)
            .with_disable_bulk_delete(true)
            .with_http_connector(http::Connector {
                requests: self.requests.clone(),
                replay: self.replay.clone(),
            })
            .build()
            .map_err(wrong)
    }

    /// The key of an object.
    fn key(&self, name: &str) -> Result<Path> {
        check_name(name)?;
        let key = format!("{}{name}", self.place.prefix);
        Path::parse(&key).map_err(|error| {
            Error::new("object-name", format!("\"{name}\" cannot be an object's name")).caused_by(&error)
        })
    }

    fn condition_ignored(&self) -> bool {
        self.condition.load(Ordering::Relaxed) == CONDITION_IGNORED
    }

    /// One page of a listing below a prefix of names.
    async fn page(
        &self,
        client: &AmazonS3,
        prefix: &str,
        folders: bool,
        most: Option<usize>,
        token: Option<String>,
    ) -> Result<PaginatedListResult, Failed> {
        let prefix = format!("{}{prefix}", self.place.prefix);
        let options = PaginatedListOptions {
            delimiter: folders.then_some("/".into()),
            max_keys: most,
            page_token: token,
            ..PaginatedListOptions::default()
        };
        let prefix = (!prefix.is_empty()).then_some(prefix.as_str());
        self.attempts(false, 0, || client.list_paginated(prefix, options.clone()))
            .await
    }

    /// The size of an object, from a listing: the only answer that tells a missing object from a missing
    /// bucket, and from something that is no store at all.
    async fn listed_size(&self, client: &AmazonS3, name: &str) -> Result<Option<u64>, Failed> {
        let page = self.page(client, name, false, Some(1), None).await?;
        let key = format!("{}{name}", self.place.prefix);
        let found = page
            .result
            .objects
            .iter()
            .find(|object| object.location.as_ref() == key);
        Ok(found.map(|object| object.size))
    }

    async fn head(&self, client: &AmazonS3, name: &str, key: &Path) -> Result<Option<u64>, Failed> {
        let options = GetOptions {
            head: true,
            ..GetOptions::default()
        };
        match self
            .attempts(false, 0, || client.get_opts(key, options.clone()))
            .await
        {
            Ok(result) => Ok(Some(result.meta.size)),
            Err(failed) if matches!(failed.kind, Kind::Missing | Kind::NotFoundUnclear) => {
                self.listed_size(client, name).await
            }
            Err(failed) => Err(failed),
        }
    }

    /// A whole object or a range of it; `None` if there is no such object.
    async fn get(
        &self,
        client: &AmazonS3,
        name: &str,
        key: &Path,
        range: Option<std::ops::Range<u64>>,
    ) -> Result<Option<Got>, Failed> {
        let options = GetOptions {
            range: range.clone().map(GetRange::Bounded),
            ..GetOptions::default()
        };
        let expected = range.map_or(READ_BYTES_MAX, |range| range.end - range.start);
        let fetch = async || -> object_store::Result<Got> {
            // How long the body may take is known when the head is here.
            let head = client.get_opts(key, options.clone());
            let result = within(self.options.request_timeout, head).await?;
            let size = result.meta.size;
            let length = result.range.end - result.range.start;
            if length > READ_BYTES_MAX {
                return Ok(Got {
                    size,
                    bytes: Bytes::new(),
                });
            }
            let bytes = within(self.time_for(length), collected(result, length)).await?;
            Ok(Got { size, bytes })
        };
        let got = self.attempts(false, expected, fetch).await;
        match got {
            Ok(got) => {
                Requests::count(&self.requests.bytes_read, got.bytes.len() as u64);
                Ok(Some(got))
            }
            Err(failed) if failed.kind == Kind::Missing => Ok(None),
            Err(failed) if failed.kind == Kind::NotFoundUnclear => {
                match self.listed_size(client, name).await? {
                    None => Ok(None),
                    Some(_) => Err(failed),
                }
            }
            Err(failed) => Err(failed),
        }
    }

    /// Creates an object in one request.
    async fn create(
        &self,
        client: &AmazonS3,
        name: &str,
        key: &Path,
        content: PutPayload,
    ) -> Result<Put, Failed> {
        let bytes = content.content_length() as u64;
        if self.condition_ignored() && self.head(client, name, key).await?.is_some() {
            return Ok(Put::Exists);
        }
        let put = |mode: PutMode| {
            let content = &content;
            self.attempts(false, bytes, move || {
                client.put_opts(key, content.clone(), mode.clone().into())
            })
        };
        let result = match self.condition_ignored() {
            true => put(PutMode::Overwrite).await,
            false => put(PutMode::Create).await,
        };
        match result {
            Ok(_) => {
                Requests::count(&self.requests.bytes_written, bytes);
                Ok(Put::Created)
            }
            // An earlier try of ours may have created it, and its answer was lost.
            Err(failed) if failed.kind == Kind::Exists && failed.unclear => {
                Ok(match self.holds(client, name, key, &content).await {
                    true => Put::Created,
                    false => Put::Exists,
                })
            }
            Err(failed) if failed.kind == Kind::Exists => Ok(Put::Exists),
            Err(failed) if failed.kind == Kind::Unsupported && !self.condition_ignored() => {
                self.condition.store(CONDITION_IGNORED, Ordering::Relaxed);
                if self.head(client, name, key).await?.is_some() {
                    return Ok(Put::Exists);
                }
                put(PutMode::Overwrite).await?;
                Requests::count(&self.requests.bytes_written, bytes);
                Ok(Put::Created)
            }
            Err(failed) => Err(failed),
        }
    }

    /// Does the object hold exactly this? "No" also when that cannot be told: what is sealed is never the
    /// same twice, so only our own request can have made the same bytes.
    async fn holds(&self, client: &AmazonS3, name: &str, key: &Path, content: &PutPayload) -> bool {
        match self.get(client, name, key, None).await {
            Ok(Some(got)) => got.bytes.iter().eq(content.iter().flatten()),
            _ => false,
        }
    }
}

/// A future that fails when it takes longer.
async fn within<T>(
    time: Duration,
    future: impl Future<Output = object_store::Result<T>>,
) -> object_store::Result<T> {
    tokio::time::timeout(time, future).await.unwrap_or_else(|_| {
        Err(object_store::Error::Generic {
            store: "S3",
            source: format!("no complete answer within {} s", time.as_secs_f32()).into(),
        })
    })
}

/// The token of the page that follows. One that was `used` before would lead in a circle, for ever.
fn following(used: &mut HashSet<String>, next: Option<String>) -> Result<Option<String>, Failed> {
    match next {
        Some(token) if !used.insert(token.clone()) => Err(Failed::answer(
            "the listing goes in a circle: a page says that the next one is one that was read before",
        )),
        next => Ok(next),
    }
}

/// The body, which has so many bytes; memory grows as they come, not as they are announced.
async fn collected(result: GetResult, length: u64) -> object_store::Result<Bytes> {
    let mut stream = result.into_stream();
    let mut collected = Vec::new();
    while let Some(piece) = stream.next().await {
        let piece = piece?;
        if piece.len() as u64 > length - collected.len() as u64 {
            return Err(object_store::Error::Generic {
                store: "S3",
                source: format!("more came than the {length} bytes that were announced").into(),
            });
        }
        if piece.len() as u64 == length {
            return Ok(piece);
        }
        if collected.is_empty() {
            collected.reserve((length as usize).min(RESERVED_BYTES_MAX));
        }
        collected.extend_from_slice(&piece);
    }
    match collected.len() as u64 == length {
        true => Ok(collected.into()),
        false => Err(object_store::Error::Generic {
            store: "S3",
            source: format!("{} of {length} bytes came", collected.len()).into(),
        }),
    }
}

/// What a GET brought.
struct Got {
    /// Of the whole object.
    size: u64,
    bytes: Bytes,
}

impl S3Store {
    /// Runs an operation to its end on this thread.
    fn run<T>(
        &self,
        doing: impl FnOnce() -> String,
        operation: impl Future<Output = Result<T, Failed>>,
    ) -> Result<T> {
        runtime()?
            .block_on(operation)
            .map_err(|failed| failed.error(&self.inner, &doing()))
    }
}

impl Store for S3Store {
    fn url(&self) -> String {
        self.inner.place.url()
    }

    fn put_new(&self, name: &str, content: &[u8]) -> Result<Put> {
        let key = self.inner.key(name)?;
        let client = self.inner.client()?;
        let content = PutPayload::from(content.to_vec());
        self.run(
            || format!("write object \"{name}\""),
            self.inner.create(client, name, &key, content),
        )
    }

    fn writer(&self, name: &str) -> Result<Box<dyn ObjectWriter>> {
        let key = self.inner.key(name)?;
        self.inner.client()?;
        Ok(Box::new(writer::Writer::new(self.inner.clone(), name, key)))
    }

    fn read(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let key = self.inner.key(name)?;
        let client = self.inner.client()?;
        let got = self.run(
            || format!("read object \"{name}\""),
            self.inner.get(client, name, &key, None),
        )?;
        let Some(got) = got else { return Ok(None) };
        if got.size > READ_BYTES_MAX {
            return Err(Error::new(
                "object-damaged",
                format!("object \"{name}\" is too large to be what it is called"),
            )
            .detail(format!("It has {} bytes.", got.size)));
        }
        Ok(Some(got.bytes.into()))
    }

    fn read_range_into(&self, name: &str, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let key = self.inner.key(name)?;
        if buffer.is_empty() {
            return Ok(());
        }
        let client = self.inner.client()?;
        let end = offset.saturating_add(buffer.len() as u64);
        let short = || {
            Error::new("object-damaged", format!("object \"{name}\" is cut short"))
                .detail(format!("Bytes {offset} to {end} were asked for."))
        };
        let got = runtime()?.block_on(self.inner.get(client, name, &key, Some(offset..end)));
        let got = match got {
            Ok(got) => got.ok_or_else(|| super::missing(name))?,
            Err(failed) if failed.kind == Kind::Range => return Err(short()),
            Err(failed) => return Err(failed.error(&self.inner, &format!("read object \"{name}\""))),
        };
        if got.bytes.len() != buffer.len() {
            return Err(short());
        }
        buffer.copy_from_slice(&got.bytes);
        Ok(())
    }

    fn size(&self, name: &str) -> Result<Option<u64>> {
        let key = self.inner.key(name)?;
        let client = self.inner.client()?;
        self.run(
            || format!("look at object \"{name}\""),
            self.inner.head(client, name, &key),
        )
    }

    fn list(&self, prefix: &str) -> Result<Vec<ObjectInfo>> {
        check_prefix(prefix)?;
        let client = self.inner.client()?;
        let pages = async {
            let (mut objects, mut used, mut token) = (Vec::new(), HashSet::new(), None);
            loop {
                let page = self.inner.page(client, prefix, false, None, token).await?;
                for object in page.result.objects {
                    let Some(name) = object.location.as_ref().strip_prefix(&self.inner.place.prefix) else {
                        continue;
                    };
                    // Something else may have left its objects here.
                    if check_name(name).is_ok() && name.starts_with(prefix) {
                        let seconds = object.last_modified.timestamp();
                        objects.push(ObjectInfo {
                            name: name.to_owned(),
                            size: object.size,
                            modified: jiff::Timestamp::from_second(seconds)
                                .unwrap_or(jiff::Timestamp::UNIX_EPOCH),
                        });
                    }
                }
                match following(&mut used, page.page_token)? {
                    Some(next) => token = Some(next),
                    None => return Ok(objects),
                }
            }
        };
        let mut objects = self.run(|| format!("list objects below \"{prefix}\""), pages)?;
        objects.sort_by(|one, two| one.name.cmp(&two.name));
        objects.dedup_by(|one, two| one.name == two.name);
        Ok(objects)
    }

    fn list_folders(&self, prefix: &str) -> Result<Vec<String>> {
        check_prefix(prefix)?;
        let client = self.inner.client()?;
        let pages = async {
            let (mut folders, mut used, mut token) = (Vec::new(), HashSet::new(), None);
            loop {
                let page = self.inner.page(client, prefix, true, None, token).await?;
                for folder in page.result.common_prefixes {
                    let name = folder.as_ref().strip_prefix(&self.inner.place.prefix);
                    let name = name.and_then(|name| name.strip_prefix(prefix));
                    if let Some(name) = name.filter(|name| !name.contains('/') && check_name(name).is_ok()) {
                        folders.push(name.to_owned());
                    }
                }
                match following(&mut used, page.page_token)? {
                    Some(next) => token = Some(next),
                    None => return Ok(folders),
                }
            }
        };
        let mut folders = self.run(|| format!("list objects below \"{prefix}\""), pages)?;
        folders.sort();
        folders.dedup();
        Ok(folders)
    }

    fn delete(&self, name: &str) -> Result<()> {
        use object_store::ObjectStoreExt;
        let key = self.inner.key(name)?;
        let client = self.inner.client()?;
        let operation = async {
            match self.inner.attempts(false, 0, || client.delete(&key)).await {
                Err(failed) if failed.kind == Kind::Missing => Ok(()),
                other => other,
            }
        };
        self.run(|| format!("delete object \"{name}\""), operation)
    }

    fn requests(&self) -> RequestCounts {
        self.inner.requests.counts()
    }

    fn set_conditional_creation(&self, works: bool) {
        let condition = match works {
            true => CONDITION_WORKS,
            false => CONDITION_IGNORED,
        };
        self.inner.condition.store(condition, Ordering::Relaxed);
    }

    fn is_remote(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buckets_url_has_a_bucket_and_perhaps_a_prefix() {
        let place = |url: &str| {
            Place::parse(url).map(|place| (place.bucket.clone(), place.prefix.clone(), place.url()))
        };
        let parts =
            |bucket: &str, prefix: &str, url: &str| (bucket.to_owned(), prefix.to_owned(), url.to_owned());
        assert_eq!(
            place("s3://backups").unwrap(),
            parts("backups", "", "s3://backups")
        );
        assert_eq!(
            place("s3://backups/").unwrap(),
            parts("backups", "", "s3://backups")
        );
        assert_eq!(
            place("s3://b.x-1/a/b/").unwrap(),
            parts("b.x-1", "a/b/", "s3://b.x-1/a/b")
        );
        for wrong in [
            "s3://",
            "s3://ab",
            "s3:/x",
            "file:///x",
            "s3://a b",
            "s3://bucket//a",
            "s3://bucket/../a",
            "s3://key:secret@bucket/a",
        ] {
            assert_eq!(place(wrong).unwrap_err().code(), "store-url", "{wrong}");
        }
    }

    fn answer(head: &str, body: &str) -> String {
        format!("HTTP/1.1 {head}\r\n\r\n{body}")
    }

    fn page(key: &str, token: &str) -> String {
        let content = format!(
            "<Contents><Key>some/prefix/{key}</Key><Size>3</Size>\
             <LastModified>2026-08-15T02:00:03Z</LastModified></Contents>"
        );
        let token = format!("<NextContinuationToken>{token}</NextContinuationToken>");
        answer(
            "200 OK",
            &format!("<ListBucketResult>{content}{token}</ListBucketResult>"),
        )
    }

    #[test]
    fn a_listing_that_goes_in_a_circle_is_an_error() {
        let last = "<ListBucketResult></ListBucketResult>";
        let straight = [page("a/1", "x"), page("a/2", "y"), answer("200 OK", last)].concat();
        let store = replay::store(straight.as_bytes()).unwrap();
        let names: Vec<String> = store
            .list("a/")
            .unwrap()
            .into_iter()
            .map(|object| object.name)
            .collect();
        assert_eq!(names, ["a/1", "a/2"]);
        let circle = [page("a/1", "x"), page("a/2", "y"), page("a/3", "x")]
            .concat()
            .repeat(100);
        let list = |store: &S3Store| store.list("a/").map(drop);
        let folders = |store: &S3Store| store.list_folders("a/").map(drop);
        for list in [list, folders] {
            let error = list(&replay::store(circle.as_bytes()).unwrap()).unwrap_err();
            assert_eq!(error.code(), "store-refused");
            assert!(error.render().contains("circle"), "{}", error.render());
        }
    }

    #[test]
    fn a_body_is_as_long_as_it_was_announced_or_it_is_an_error() {
        let object = |length: u64, body: &str| {
            let head = format!(
                "200 OK\r\nContent-Length: {length}\r\nETag: \"e\"\r\nLast-Modified: Sat, 15 Aug 2026 02:00:03 GMT"
            );
            replay::store(answer(&head, body).as_bytes()).unwrap().read("a/b")
        };
        assert_eq!(object(3, "abc").unwrap().unwrap(), b"abc");
        assert_eq!(object(2, "abc").unwrap_err().code(), "store-unreachable");
        assert_eq!(object(4, "abc").unwrap_err().code(), "store-unreachable");
        assert_eq!(object(1 << 40, "abc").unwrap_err().code(), "object-damaged");
    }

    #[test]
    fn a_range_is_the_one_that_was_asked_for_or_it_is_an_error() {
        let range = |told: &str| {
            let head = format!(
                "206 Partial Content\r\nContent-Length: 3\r\nContent-Range: bytes {told}\r\nETag: \"e\"\r\n\
                 Last-Modified: Sat, 15 Aug 2026 02:00:03 GMT"
            );
            let store = replay::store(answer(&head, "abc").as_bytes()).unwrap();
            let mut buffer = [0; 3];
            store.read_range_into("a/b", 2, &mut buffer).map(|()| buffer)
        };
        assert_eq!(range("2-4/10").unwrap(), *b"abc");
        for told in [
            "1-3/10",
            "2-3/10",
            "4-2/10",
            "2-18446744073709551615/10",
            "2-4/4",
            "x",
        ] {
            let error = range(told).unwrap_err();
            assert!(
                matches!(error.code(), "store-unreachable" | "object-damaged"),
                "{told}"
            );
        }
    }
}
