//! An object on its way into a bucket.
//!
//! Invariants: what fits into one PUT is kept back and sent with `finish`; of what does not, whole parts are
//! sent while more is written, at most two at a time, so that memory stays below 26 MiB for an object of any
//! length; a part that is sent again is the same bytes; an upload that is not completed is aborted.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use diagnostic::{Error, Result};
use object_store::PutPayload;
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path;
use tokio::task::JoinHandle;

use super::super::{ObjectWriter, Put, Requests};
use super::attempt::{Failed, Kind};
use super::{Inner, runtime};

/// An object of up to this length is one request: a WAL segment of 16 MiB that does not compress, with its
/// index.
pub const SINGLE_PUT_BYTES_MAX: u64 = 17 << 20;
/// Bytes of a part (the last may be shorter); S3 takes no less than 5 MiB.
pub const PART_BYTES: u64 = 8 << 20;
const PARTS_IN_FLIGHT: usize = 2;
const CHUNK_BYTES: usize = 1 << 20;
/// How long an abandoned upload may hold up whoever abandons it.
const ABORT_MAX: Duration = Duration::from_secs(10);

pub(super) struct Writer {
    inner: Arc<Inner>,
    name: String,
    key: Path,
    /// Full chunks and the one that is being filled.
    chunks: VecDeque<Vec<u8>>,
    held: u64,
    written: u64,
    upload: Option<Upload>,
    failed: Option<Error>,
}

struct Upload {
    id: String,
    parts: Vec<PartId>,
    /// In the order of their numbers.
    sending: VecDeque<JoinHandle<Result<PartId, Failed>>>,
    begun: usize,
}

impl Writer {
    pub(super) fn new(inner: Arc<Inner>, name: &str, key: Path) -> Self {
        Writer {
            inner,
            name: name.to_owned(),
            key,
            chunks: VecDeque::new(),
            held: 0,
            written: 0,
            upload: None,
            failed: None,
        }
    }

    fn error(&self, failed: &Failed) -> Error {
        failed.error(&self.inner, &format!("write object \"{}\"", self.name))
    }

    fn hold(&mut self, mut bytes: &[u8]) {
        self.held += bytes.len() as u64;
        while !bytes.is_empty() {
            let room = self.chunks.back().map_or(0, |chunk| CHUNK_BYTES - chunk.len());
            if room == 0 {
                self.chunks.push_back(Vec::with_capacity(CHUNK_BYTES));
                continue;
            }
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            if let Some(chunk) = self.chunks.back_mut() {
                chunk.extend_from_slice(now);
            }
            bytes = later;
        }
    }

    /// Takes what is held, up to a part's length. Parts are whole chunks, so all but the last are equal.
    fn take(&mut self) -> PutPayload {
        let count = (PART_BYTES as usize / CHUNK_BYTES).min(self.chunks.len());
        let taken: Vec<Bytes> = self.chunks.drain(..count).map(Bytes::from).collect();
        self.held -= taken.iter().map(|chunk| chunk.len() as u64).sum::<u64>();
        taken.into_iter().collect()
    }

    /// Sends whole parts, and with `all` also the rest.
    fn send(&mut self, all: bool) -> Result<()> {
        while self.held >= PART_BYTES || (all && self.held > 0) {
            if self.upload.is_none() {
                let client = self.inner.client()?;
                let begun = runtime()?.block_on(
                    self.inner
                        .attempts(false, 0, || client.create_multipart(&self.key)),
                );
                self.upload = Some(Upload {
                    id: begun.map_err(|failed| self.error(&failed))?,
                    parts: Vec::new(),
                    sending: VecDeque::new(),
                    begun: 0,
                });
            }
            self.wait(PARTS_IN_FLIGHT - 1)?;
            let part = self.take();
            let Some(upload) = &mut self.upload else { continue };
            let (inner, key, id, number) = (
                self.inner.clone(),
                self.key.clone(),
                upload.id.clone(),
                upload.begun,
            );
            upload.begun += 1;
            upload.sending.push_back(runtime()?.spawn(async move {
                let Ok(client) = inner.client() else {
                    return Err(Failed::new(Kind::Refused));
                };
                let bytes = part.content_length() as u64;
                let sent = inner
                    .attempts(false, bytes, || client.put_part(&key, &id, number, part.clone()))
                    .await?;
                Requests::count(&inner.requests.bytes_written, bytes);
                Ok(sent)
            }));
        }
        Ok(())
    }

    /// Waits until at most so many parts are on their way.
    fn wait(&mut self, most: usize) -> Result<()> {
        loop {
            let Some(upload) = &mut self.upload else {
                return Ok(());
            };
            if upload.sending.len() <= most {
                return Ok(());
            }
            let Some(oldest) = upload.sending.pop_front() else {
                return Ok(());
            };
            let sent = runtime()?.block_on(oldest).map_err(|error| {
                Error::new(
                    "internal",
                    format!("sending object \"{}\" ended by itself", self.name),
                )
                .caused_by(&error)
            })?;
            match sent {
                Ok(part) => upload.parts.push(part),
                Err(failed) => return Err(self.error(&failed)),
            }
        }
    }

    fn complete(&mut self) -> Result<Put> {
        let Some(upload) = &self.upload else {
            let content: PutPayload = self.chunks.drain(..).map(Bytes::from).collect();
            let client = self.inner.client()?;
            let created = runtime()?.block_on(self.inner.create(client, &self.name, &self.key, content));
            return created.map_err(|failed| self.error(&failed));
        };
        let (id, parts) = (upload.id.clone(), upload.parts.clone());
        let client = self.inner.client()?;
        let (inner, key, name) = (&self.inner, &self.key, &self.name);
        let complete = |create: bool| {
            let (id, parts) = (&id, &parts);
            inner.attempts(create, 0, move || {
                client.complete_multipart(key, id, parts.clone())
            })
        };
        let size = self.written;
        let completed = runtime()?.block_on(async {
            // Many stores know the condition for PUT, and silently ignore it here.
            if inner.head(client, name, key).await?.is_some() {
                return Ok(Put::Exists);
            }
            match complete(!inner.condition_ignored()).await {
                Ok(_) => Ok(Put::Created),
                // A completion of ours whose answer was lost leaves no upload, and the object.
                Err(failed)
                    if failed.unclear
                        && matches!(
                            failed.kind,
                            Kind::UploadMissing | Kind::NotFoundUnclear | Kind::Missing | Kind::Exists
                        ) =>
                {
                    match inner.head(client, name, key).await? {
                        Some(there) if there == size => Ok(Put::Created),
                        Some(_) => Ok(Put::Exists),
                        None => Err(failed),
                    }
                }
                Err(failed) if failed.kind == Kind::Exists => Ok(Put::Exists),
                // Long objects are packs, whose names belong to one run: having looked is enough for them.
                Err(failed) if failed.kind == Kind::Unsupported => {
                    complete(false).await.map(|_| Put::Created)
                }
                Err(failed) => Err(failed),
            }
        });
        let put = completed.map_err(|failed| self.error(&failed))?;
        if put == Put::Created {
            self.upload = None;
        }
        Ok(put)
    }

    /// Best effort: what cannot be aborted now is for the bucket's life-cycle rule.
    fn abort(&mut self) {
        let Some(upload) = self.upload.take() else { return };
        let (Ok(runtime), Ok(client)) = (runtime(), self.inner.client()) else {
            return;
        };
        let (inner, key) = (&self.inner, &self.key);
        runtime.block_on(async {
            let abort = async {
                for part in upload.sending {
                    part.abort();
                    // Aborted or done: a part that still arrives after the abort would be kept.
                    let _ = part.await;
                }
                let _ = inner
                    .attempts(false, 0, || client.abort_multipart(key, &upload.id))
                    .await;
            };
            let _ = tokio::time::timeout(ABORT_MAX, abort).await;
        });
    }
}

impl io::Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Some(error) = &self.failed {
            return Err(io::Error::other(error.clone()));
        }
        self.hold(bytes);
        self.written += bytes.len() as u64;
        if (self.upload.is_some() || self.held > SINGLE_PUT_BYTES_MAX)
            && let Err(error) = self.send(false)
        {
            self.failed = Some(error.clone());
            return Err(io::Error::other(error));
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl ObjectWriter for Writer {
    fn position(&self) -> u64 {
        self.written
    }

    fn finish(mut self: Box<Self>) -> Result<Put> {
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        if self.upload.is_some() {
            self.send(true)?;
            self.wait(0)?;
        }
        self.complete()
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.abort();
    }
}
