//! Answers that a store once gave, replayed: the store without the network.
//!
//! Everything between the bytes of an answer and what this crate makes of it is the same as with a server: headers,
//! error documents, listings, bodies. Invariants: nothing is sent and nothing is waited for; when the answers are used
//! up, the store cannot be reached.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use diagnostic::Result;
use http::{HeaderName, HeaderValue, StatusCode};
use object_store::client::{
    HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpResponseBody, HttpService,
};

use super::{S3Credentials, S3Options, S3Store, Store};

/// Answers as they came: HTTP/1.1, one behind the other.
#[derive(Debug, Clone)]
pub(super) struct Replay {
    rest: Arc<Mutex<Vec<u8>>>,
}

impl Replay {
    pub(super) fn new(answers: &[u8]) -> Self {
        Replay {
            rest: Arc::new(Mutex::new(answers.to_vec())),
        }
    }

    fn next(&self) -> Option<HttpResponse> {
        let mut rest = self.rest.lock().unwrap_or_else(PoisonError::into_inner);
        let (answer, used) = parse(&rest)?;
        rest.drain(..used);
        Some(answer)
    }
}

#[async_trait]
impl HttpService for Replay {
    async fn call(&self, _: HttpRequest) -> Result<HttpResponse, HttpError> {
        self.next().ok_or_else(|| {
            let why = io::Error::from(io::ErrorKind::UnexpectedEof);
            HttpError::new(HttpErrorKind::Interrupted, why)
        })
    }
}

/// The first answer, and how many bytes it has. What stands between the head and the next answer is its body, whatever
/// its length is said to be: so a changed length is told to whoever reads it, too.
fn parse(bytes: &[u8]) -> Option<(HttpResponse, usize)> {
    let find = |pattern: &[u8], from: usize| {
        let found = bytes
            .get(from..)?
            .windows(pattern.len())
            .position(|at| at == pattern);
        found.map(|at| from + at)
    };
    let head_end = find(b"\r\n\r\n", 0)? + 4;
    let end = find(b"HTTP/1.1 ", head_end).unwrap_or(bytes.len());
    let body = bytes.get(head_end..end)?;
    let mut response = HttpResponse::new(HttpResponseBody::from(body.to_vec()));
    let head = String::from_utf8_lossy(bytes.get(..head_end)?);
    let mut lines = head.split("\r\n");
    let status = lines.next()?.strip_prefix("HTTP/1.1 ")?.get(..3)?;
    *response.status_mut() = StatusCode::from_bytes(status.as_bytes()).ok()?;
    for line in lines {
        if let Some((name, value)) = line.split_once(':')
            && let (Ok(name), Ok(value)) = (
                HeaderName::from_bytes(name.as_bytes()),
                HeaderValue::from_bytes(value.trim().as_bytes()),
            )
        {
            response.headers_mut().append(name, value);
        }
    }
    Some((response, end))
}

/// A store that gives these answers, one after the other, whatever it is asked.
pub(super) fn store(answers: &[u8]) -> Result<S3Store> {
    let ambient = [("aws_access_key_id", "id"), ("aws_secret_access_key", "key")];
    let ambient = ambient.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let options = S3Options {
        endpoint: Some("http://127.0.0.1:1".to_owned()),
        path_style: true,
        allow_http: true,
        credentials: S3Credentials::Ambient(ambient.into()),
        // One try: the second would wait first.
        retry_for: Duration::ZERO,
        ..S3Options::default()
    };
    S3Store::over("s3://backups/some/prefix", options, Some(Replay::new(answers)))
}

/// Every operation, as if these were the answers to it.
pub(crate) fn read_answers(answers: &[u8]) {
    type Operation = fn(&S3Store) -> Result<()>;
    let operations: [Operation; 7] = [
        |store| store.list("a/").map(drop),
        |store| store.list_folders("a/").map(drop),
        |store| store.read("a/b").map(drop),
        |store| store.read_range_into("a/b", 2, &mut [0; 5]),
        |store| store.size("a/b").map(drop),
        |store| store.put_new("a/b", b"abc").map(drop),
        |store| store.delete("a/b"),
    ];
    for operation in operations {
        let outcome = store(answers).and_then(|store| operation(&store));
        std::hint::black_box(outcome.map_err(|error| error.render())).ok();
    }
}
