//! Objects that hold one run of bytes, cut into frames of 128 KiB: WAL segments and the files beside them.
//!
//! Invariants: the object's name ends in the digest of the plain bytes, which is compared once all were read;
//! frames are compressed by two threads at once where there is enough to do, and stand in order all the same.

use std::io::Write;
use std::sync::Mutex;

use diagnostic::{Error, Result};

use crate::container::{Container, ContainerWriter, Finished, FrameEntry, Kind, Method, damaged};
use crate::map::FRAME_BYTES;
use crate::nodes::lock;
use crate::repository::ClusterRepository;
use crate::seal::{Coder, Decoder, ObjectKeys, stored_bytes_max};

/// Two threads work on this much at a time: it bounds the memory for large segments.
const WINDOW_BYTES: usize = 16 << 20;
/// Less than this is not worth a thread.
const PARALLEL_BYTES_MIN: usize = 1 << 20;
/// Objects up to this size are read with one request.
const WHOLE_BYTES_MAX: u64 = 20 << 20;

/// Writes the object. `body` makes the footer's body from the bytes; another thread calls it while this one
/// compresses, and helps then. Nothing is created if it fails. The bytes are let go as soon as they are compressed,
/// before the object is made durable.
pub(crate) fn put_framed<P: AsRef<[u8]>, B: Send>(
    cluster: &ClusterRepository,
    kind: Kind,
    method: Method,
    name: &str,
    plain: P,
    body: impl FnOnce(&[u8]) -> Result<(Vec<u8>, B)> + Send,
) -> Result<(Finished, B)> {
    let bytes = plain.as_ref();
    let mut coder = Coder::new()?;
    let mut writer = ContainerWriter::create(&**cluster.store(), cluster.keychain(), kind, method, name)?;
    let parallel = std::thread::available_parallelism().is_ok_and(|threads| threads.get() > 1);
    if !parallel || bytes.len() < PARALLEL_BYTES_MIN {
        let (body, more) = body(bytes)?;
        for frame in bytes.chunks(FRAME_BYTES) {
            writer.frame(&mut coder, frame)?;
        }
        drop(plain);
        return Ok((writer.finish(&mut coder, body)?, more));
    }
    let mut body = Some(body);
    let mut made = None;
    for window in bytes.chunks(WINDOW_BYTES) {
        let first = u64::from(writer.frame_count());
        let (keys, writing) = writer.split();
        let stretch = Stretch::new(window.len().div_ceil(FRAME_BYTES));
        let frame = |at: usize| {
            window
                .get(at * FRAME_BYTES..window.len().min((at + 1) * FRAME_BYTES))
                .unwrap_or_default()
        };
        let (here, there) = std::thread::scope(|scope| {
            // The other thread works from the end to the middle, so that its frames can be appended when all
            // are done.
            let other = scope.spawn(|| {
                let made = body.take().map(|body| body(bytes)).transpose();
                if made.is_err() {
                    stretch.stop();
                }
                let mut sealed = Sealed::new()?;
                while let Some(at) = stretch.last() {
                    sealed.frame(keys, first + at as u64, frame(at))?;
                }
                made.map(|made| (made, sealed))
            });
            let mut here = || -> Result<()> {
                while let Some(at) = stretch.first() {
                    writing.frame(keys, &mut coder, frame(at))?;
                }
                Ok(())
            };
            let here = here();
            if here.is_err() {
                stretch.stop();
            }
            (
                here,
                other.join().unwrap_or_else(|_| {
                    Err(Error::new(
                        "internal",
                        "a thread that compresses WAL ended by a panic",
                    ))
                }),
            )
        });
        here?;
        let (now_made, sealed) = there?;
        made = made.or(now_made);
        sealed.append_to(&mut writer)?;
    }
    drop(plain);
    match made {
        Some((body, more)) => Ok((writer.finish(&mut coder, body)?, more)),
        None => Err(Error::new(
            "internal",
            format!("the footer of object \"{name}\" was not made"),
        )),
    }
}

/// Frames that two threads take from both ends.
struct Stretch(Mutex<(usize, usize)>);

impl Stretch {
    fn new(frames: usize) -> Self {
        Stretch(Mutex::new((0, frames)))
    }

    fn first(&self) -> Option<usize> {
        let mut rest = lock(&self.0);
        (rest.0 < rest.1).then(|| {
            rest.0 += 1;
            rest.0 - 1
        })
    }

    fn last(&self) -> Option<usize> {
        let mut rest = lock(&self.0);
        (rest.0 < rest.1).then(|| {
            rest.1 -= 1;
            rest.1
        })
    }

    fn stop(&self) {
        let mut rest = lock(&self.0);
        rest.1 = rest.0;
    }
}

/// Frames that were sealed from the last one to the first.
struct Sealed {
    coder: Coder,
    /// Where a frame is sealed; a buffer for each would cost more than the compression.
    room: Vec<u8>,
    stored: Vec<u8>,
    frames: Vec<FrameEntry>,
}

impl Sealed {
    fn new() -> Result<Self> {
        Ok(Sealed {
            coder: Coder::new()?,
            room: vec![0; stored_bytes_max(FRAME_BYTES)],
            stored: Vec::new(),
            frames: Vec::new(),
        })
    }

    fn frame(&mut self, keys: &ObjectKeys, frame: u64, plain: &[u8]) -> Result<()> {
        let length = self.coder.seal(keys, frame, plain, &mut self.room)?;
        let stored = self.room.get(..length).unwrap_or_default();
        self.frames.push(FrameEntry {
            stored_length: length as u32,
            plain_length: plain.len() as u32,
            crc32c: crc32c::crc32c(stored),
        });
        self.stored.extend_from_slice(stored);
        Ok(())
    }

    /// Writes them in their order.
    fn append_to(&self, writer: &mut ContainerWriter) -> Result<()> {
        let mut rest = self.stored.as_slice();
        for entry in self.frames.iter().rev() {
            let (before, stored) = rest.split_at(rest.len().saturating_sub(entry.stored_length as usize));
            writer.sealed(stored, &[*entry])?;
            rest = before;
        }
        Ok(())
    }
}

/// Gives the object's plain bytes to `to`, piece by piece, each verified; then compares the digest of the
/// whole with the one in the object's name. Returns how many there were.
pub(crate) fn read_framed(
    cluster: &ClusterRepository,
    kind: Kind,
    name: &str,
    stored_bytes: u64,
    to: &mut dyn Write,
) -> Result<u64> {
    let store = &**cluster.store();
    let mut decoder = Decoder::new()?;
    let mut whole = None;
    let container = if stored_bytes <= WHOLE_BYTES_MAX {
        let object = store.read(name)?.ok_or_else(|| {
            Error::new(
                "object-missing",
                format!("object \"{name}\" is not in the repository"),
            )
        })?;
        let container = Container::from_bytes(cluster.keychain(), kind, name, &object, &mut decoder)?;
        whole = Some(object);
        container
    } else {
        Container::open(
            store,
            cluster.keychain(),
            kind,
            name,
            Some(stored_bytes),
            &mut decoder,
        )?
    };
    let mut hasher = cluster.identity().hasher();
    let mut plain = Vec::new();
    let mut length = 0;
    let mut fetched = Vec::new();
    let mut frame = 0;
    while frame < container.frames.len() {
        // As many frames as one range request should bring.
        let (start, mut bytes) = container
            .range(frame)
            .map(|(start, length)| (start, u64::from(length)))?;
        let mut end = frame + 1;
        while let Some(entry) = container.frames.get(end)
            && (whole.is_some() || bytes + u64::from(entry.stored_length) <= store.range_bytes() as u64)
        {
            bytes += u64::from(entry.stored_length);
            end += 1;
        }
        let mut rest: &mut [u8] = match &mut whole {
            Some(object) => object.get_mut(start as usize..).unwrap_or_default(),
            None => {
                fetched.resize(bytes as usize, 0);
                store.read_range_into(name, start, &mut fetched)?;
                &mut fetched
            }
        };
        for at in frame..end {
            let Some(entry) = container.frames.get(at).copied() else {
                break;
            };
            let (stored, after) = std::mem::take(&mut rest)
                .split_at_mut_checked(entry.stored_length as usize)
                .ok_or_else(|| damaged(name, "it is cut short"))?;
            rest = after;
            container.open_frame(&mut decoder, at as u32, entry, stored, FRAME_BYTES, &mut plain)?;
            hasher.update(&plain);
            length += plain.len() as u64;
            to.write_all(&plain).map_err(|error| {
                Error::io(
                    "file-write",
                    format!("cannot write what object \"{name}\" holds"),
                    &error,
                )
            })?;
        }
        frame = end;
    }
    if !name.ends_with(&format!(".{}", crate::hex::encode(hasher.finish().as_slice()))) {
        return Err(damaged(name, "its content has another digest than its name says"));
    }
    Ok(length)
}
