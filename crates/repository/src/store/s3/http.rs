//! What goes over the wire: every request to the store is counted here, and what was answered is noted for
//! the attempt that it belongs to.
//!
//! Invariants: a request is counted when it is sent, also when it is one more try; requests for credentials
//! are not the store's and are not counted; `If-None-Match` is added to the completion of a multipart upload
//! after it was signed, which the signature allows (it covers named headers only).

use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService,
    ReqwestConnector,
};

use super::super::Requests;
use super::replay::Replay;

tokio::task_local! {
    /// The attempt that the current task is in.
    pub(super) static ATTEMPT: Arc<Attempt>;
}

/// One try of one operation.
#[derive(Debug, Default)]
pub(super) struct Attempt {
    /// The name must not exist yet.
    pub(super) create: bool,
    answer: Mutex<Option<Answer>>,
}

/// The head of what the store answered.
#[derive(Debug, Clone, Default)]
pub(super) struct Answer {
    pub(super) status: u16,
    /// Where the bucket is, when it is not here.
    pub(super) region: Option<String>,
    pub(super) retry_after_seconds: Option<u64>,
}

impl Attempt {
    pub(super) fn new(create: bool) -> Self {
        Attempt {
            create,
            answer: Mutex::default(),
        }
    }

    /// The last answer, if there was one.
    pub(super) fn answer(&self) -> Option<Answer> {
        self.answer.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn note(&self, answer: Option<Answer>) {
        *self.answer.lock().unwrap_or_else(PoisonError::into_inner) = answer;
    }
}

/// Makes clients that count.
#[derive(Debug)]
pub(super) struct Connector {
    pub(super) requests: Arc<Requests>,
    /// Answers that were recorded, in place of a network.
    pub(super) replay: Option<Replay>,
}

impl HttpConnector for Connector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let client = match &self.replay {
            None => ReqwestConnector::default().connect(options)?,
            Some(replay) => HttpClient::new(replay.clone()),
        };
        Ok(HttpClient::new(Counting {
            client,
            requests: self.requests.clone(),
        }))
    }
}

#[derive(Debug)]
struct Counting {
    client: HttpClient,
    requests: Arc<Requests>,
}

impl Counting {
    fn count(&self, request: &HttpRequest) {
        let query = request.uri().query().unwrap_or_default();
        let has = |key: &str| {
            query
                .split('&')
                .any(|pair| pair.split('=').next().is_some_and(|name| name == key))
        };
        let counter = match request.method().as_str() {
            "GET" if has("list-type") || has("uploads") => &self.requests.list,
            "GET" => &self.requests.get,
            "HEAD" => &self.requests.head,
            "DELETE" => &self.requests.delete,
            _ => &self.requests.put,
        };
        Requests::count(counter, 1);
    }
}

#[async_trait]
impl HttpService for Counting {
    async fn call(&self, mut request: HttpRequest) -> Result<HttpResponse, HttpError> {
        // Everything that is asked of the store is signed, and nothing else is.
        let attempt = match request.headers().contains_key("x-amz-content-sha256") {
            true => ATTEMPT.try_with(Arc::clone).ok(),
            false => None,
        };
        let Some(attempt) = attempt else {
            return self.client.execute(request).await;
        };
        self.count(&request);
        attempt.note(None);
        let completes = request.method().as_str() == "POST"
            && request
                .uri()
                .query()
                .is_some_and(|query| query.starts_with("uploadId="));
        if attempt.create && completes {
            let value = object_store::HeaderValue::from_static("*");
            request.headers_mut().insert("if-none-match", value);
        }
        let response = self.client.execute(request).await?;
        let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok());
        attempt.note(Some(Answer {
            status: response.status().as_u16(),
            region: header("x-amz-bucket-region").map(str::to_owned),
            retry_after_seconds: header("retry-after").and_then(|value| value.trim().parse().ok()),
        }));
        match header("content-range").is_some_and(ends_beyond_any_object) {
            false => Ok(response),
            true => {
                let why = "a range of the answer ends beyond any object";
                Err(HttpError::new(HttpErrorKind::Decode, std::io::Error::other(why)))
            }
        }
    }
}

/// Whether the place of the last byte in a `Content-Range` has none behind it: the library computes that one, unchecked.
fn ends_beyond_any_object(range: &str) -> bool {
    let last = range.split('/').next().unwrap_or_default().rsplit('-').next();
    last.and_then(|last| last.trim().parse().ok()) == Some(u64::MAX)
}
