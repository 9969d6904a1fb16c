//! Containers: header, frames, footer, trailer. `docs/format.md` section 2.
//!
//! Invariants: frames follow one another without gaps from byte 128 to the footer, which the footer's own
//! list must confirm; every byte of an object is covered by a CRC and by a tag; lengths that an object states
//! are bounded before anything is allocated for them.

use std::io::Write;

use diagnostic::{Error, Result};
use serde::{Deserialize, Serialize};

use crate::keys::Keychain;
use crate::seal::{Coder, Decoder, FRAME_OVERHEAD, ObjectKeys, stored_bytes_max};
use crate::store::{ObjectWriter, Put, Store};

/// Bytes of the header.
pub(crate) const HEADER_BYTES: usize = 128;
/// Bytes of the trailer.
pub(crate) const TRAILER_BYTES: usize = 32;
const MAGIC: &[u8; 8] = b"PGPRFOBJ";
const END_MAGIC: &[u8; 8] = b"PGPRFEND";
const FORMAT_VERSION: u16 = 1;
const FOOTER_VERSION: u8 = 1;
/// Plain bytes of a footer, at most.
const FOOTER_BYTES_MAX: u32 = 64 << 20;
/// Footers are mostly short: this much of an object's end is read at once.
const TAIL_BYTES: u64 = 64 << 10;

/// An object of a later version.
pub(crate) fn newer_format(object: &str, version: u32) -> Error {
    Error::new(
        "repository-format",
        format!("object \"{object}\" has format version {version}"),
    )
    .detail("This program reads version 1.")
    .hint("Use the pgproof that wrote it, or a newer one.")
}

/// What an object is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    RowsPack = 1,
    MapPack = 2,
    WalSegment = 3,
    WalFile = 4,
    Record = 5,
    Statement = 6,
    Evidence = 7,
}

/// Where an object's frame key comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Method {
    /// A data key of its own, sealed to the epoch's row key.
    RowKey = 1,
    /// Derived from the epoch's map key.
    MapKey = 2,
}

/// The first 128 bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) kind: Kind,
    pub(crate) method: Method,
    pub(crate) epoch: u32,
    pub(crate) salt: [u8; 16],
    pub(crate) encapsulated: [u8; 32],
    pub(crate) sealed_key: [u8; 48],
}

impl Header {
    pub(crate) fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..32].copy_from_slice(&self.start());
        bytes[32..64].copy_from_slice(&self.encapsulated);
        bytes[64..112].copy_from_slice(&self.sealed_key);
        let crc = crc32c::crc32c(&bytes[..124]);
        bytes[124..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    fn start(&self) -> [u8; 32] {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..10].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        bytes[10] = self.kind as u8;
        bytes[11] = self.method as u8;
        bytes[12..16].copy_from_slice(&self.epoch.to_le_bytes());
        bytes[16..].copy_from_slice(&self.salt);
        bytes
    }

    /// What the sealed data key is bound to.
    pub(crate) fn data_key_associated(&self, repository_id: &[u8; 16]) -> Vec<u8> {
        let mut bytes = self.start().to_vec();
        bytes.extend_from_slice(repository_id);
        bytes
    }

    /// Reads a header of an object that is expected to be of this kind.
    pub(crate) fn decode(bytes: &[u8; HEADER_BYTES], kind: Kind, name: &str) -> Result<Self> {
        if !bytes.starts_with(MAGIC) {
            return Err(damaged(name, "it does not begin as an object of pgproof"));
        }
        if crc32c::crc32c(&bytes[..124]).to_le_bytes() != bytes[124..] {
            return Err(damaged(name, "its header was changed"));
        }
        let version = u16::from_le_bytes([bytes[8], bytes[9]]);
        if version != FORMAT_VERSION {
            return Err(newer_format(name, u32::from(version)));
        }
        if bytes[10] != kind as u8 {
            return Err(damaged(name, "it is an object of another kind"));
        }
        let method = match bytes[11] {
            1 => Method::RowKey,
            2 => Method::MapKey,
            other => return Err(newer_format(name, u32::from(other)).detail("Its key method is unknown.")),
        };
        let mut header = Header {
            kind,
            method,
            epoch: u32::from_le_bytes([bytes[12], bytes[13], bytes[14], bytes[15]]),
            salt: [0; 16],
            encapsulated: [0; 32],
            sealed_key: [0; 48],
        };
        header.salt.copy_from_slice(&bytes[16..32]);
        header.encapsulated.copy_from_slice(&bytes[32..64]);
        header.sealed_key.copy_from_slice(&bytes[64..112]);
        let unused = if method == Method::MapKey {
            &bytes[32..124]
        } else {
            &bytes[112..124]
        };
        if unused.iter().any(|byte| *byte != 0) {
            return Err(damaged(name, "its header has bytes where none belong"));
        }
        Ok(header)
    }
}

pub(crate) fn damaged(name: &str, why: &str) -> Error {
    Error::new("object-damaged", format!("object \"{name}\" is damaged"))
        .detail(format!("As it stands, {why}."))
        .hint("Run `pgproof verify` to see what depends on it; another copy may have it whole.")
}

/// A frame in a footer's list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FrameEntry {
    pub(crate) stored_length: u32,
    pub(crate) plain_length: u32,
    /// CRC-32C of the stored bytes.
    pub(crate) crc32c: u32,
}

#[derive(Serialize, Deserialize)]
pub(crate) struct Footer {
    frames: Vec<FrameEntry>,
    #[serde(with = "crate::bytes")]
    body: Vec<u8>,
}

/// Where a frame was put.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Placed {
    pub(crate) frame: u32,
    pub(crate) offset: u64,
    pub(crate) stored_length: u32,
}

/// What a finished object is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Finished {
    pub(crate) put: Put,
    /// Bytes.
    pub(crate) size: u64,
}

/// Sealed pieces are gathered up to this size before they are written.
const GATHER_BYTES: usize = 256 << 10;

/// Writes an object frame by frame.
pub(crate) struct ContainerWriter {
    keys: ObjectKeys,
    output: Output,
}

/// What was sealed so far.
pub(crate) struct Output {
    object: Box<dyn ObjectWriter>,
    name: String,
    /// Sealed bytes that are not written yet; `filled` of them.
    gathered: Vec<u8>,
    filled: usize,
    offset: u64,
    frames: Vec<FrameEntry>,
}

impl ContainerWriter {
    pub(crate) fn create(
        store: &dyn Store,
        keychain: &Keychain,
        kind: Kind,
        method: Method,
        name: &str,
    ) -> Result<Self> {
        let (keys, header) = ObjectKeys::create(keychain.current(), kind, method, name)?;
        let mut output = Output {
            object: store.writer(name)?,
            name: name.to_string(),
            gathered: vec![0; GATHER_BYTES],
            filled: 0,
            offset: 0,
            frames: Vec::new(),
        };
        output.append(&header)?;
        Ok(ContainerWriter { keys, output })
    }

    /// Where the next frame will begin: the stored length so far.
    pub(crate) fn position(&self) -> u64 {
        self.output.offset
    }

    pub(crate) fn frame_count(&self) -> u32 {
        self.output.frames.len() as u32
    }

    /// The keys, which other threads may seal with, apart from where the frames go.
    pub(crate) fn split(&mut self) -> (&ObjectKeys, &mut Output) {
        (&self.keys, &mut self.output)
    }

    /// Compresses, seals and appends a frame.
    pub(crate) fn frame(&mut self, coder: &mut Coder, plain: &[u8]) -> Result<Placed> {
        self.output.frame(&self.keys, coder, plain)
    }

    /// Appends frames that were sealed elsewhere, for exactly this place, with this writer's keys.
    pub(crate) fn sealed(&mut self, stored: &[u8], entries: &[FrameEntry]) -> Result<()> {
        self.output.append(stored)?;
        self.output.frames.extend_from_slice(entries);
        Ok(())
    }

    /// Writes footer and trailer; the object exists and is durable afterwards.
    pub(crate) fn finish(mut self, coder: &mut Coder, body: Vec<u8>) -> Result<Finished> {
        let footer = Footer {
            frames: std::mem::take(&mut self.output.frames),
            body,
        };
        let (footer, trailer) = seal_footer(coder, &self.keys, self.output.offset, footer)?;
        self.output.append(&footer)?;
        self.output.append(&trailer)?;
        self.output.write_out(None)?;
        let put = self.output.object.finish()?;
        Ok(Finished {
            put,
            size: self.output.offset,
        })
    }
}

impl Output {
    fn write_out(&mut self, bytes: Option<&[u8]>) -> Result<()> {
        let gathered = self.gathered.get(..self.filled).unwrap_or_default();
        let failed = |error: std::io::Error| {
            // A store that has words of its own keeps them.
            if let Some(error) = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
                return error.clone();
            }
            let full = matches!(
                error.kind(),
                std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded
            );
            Error::io(
                if full { "store-full" } else { "store-write" },
                format!("cannot write object \"{}\"", self.name),
                &error,
            )
        };
        self.object.write_all(gathered).map_err(failed)?;
        if let Some(bytes) = bytes {
            self.object.write_all(bytes).map_err(failed)?;
        }
        self.filled = 0;
        Ok(())
    }

    fn append(&mut self, bytes: &[u8]) -> Result<()> {
        self.offset += bytes.len() as u64;
        match self.gathered.get_mut(self.filled..self.filled + bytes.len()) {
            Some(room) => {
                room.copy_from_slice(bytes);
                self.filled += bytes.len();
                Ok(())
            }
            None => self.write_out(Some(bytes)),
        }
    }

    pub(crate) fn frame(&mut self, keys: &ObjectKeys, coder: &mut Coder, plain: &[u8]) -> Result<Placed> {
        let most = stored_bytes_max(plain.len());
        if self.gathered.len() - self.filled < most {
            self.write_out(None)?;
            if self.gathered.len() < most {
                self.gathered.resize(most, 0);
            }
        }
        let frame = self.frames.len() as u32;
        let room = self.gathered.get_mut(self.filled..).unwrap_or_default();
        let stored = coder.seal(keys, u64::from(frame), plain, room)?;
        let crc32c = crc32c::crc32c(room.get(..stored).unwrap_or_default());
        self.filled += stored;
        let placed = Placed {
            frame,
            offset: self.offset,
            stored_length: stored as u32,
        };
        self.frames.push(FrameEntry {
            stored_length: stored as u32,
            plain_length: plain.len() as u32,
            crc32c,
        });
        self.offset += stored as u64;
        Ok(placed)
    }
}

fn seal_footer(
    coder: &mut Coder,
    keys: &ObjectKeys,
    offset: u64,
    footer: Footer,
) -> Result<(Vec<u8>, [u8; TRAILER_BYTES])> {
    let encoded = postcard::to_extend(&footer, vec![FOOTER_VERSION])
        .map_err(|error| Error::new("footer-encode", "cannot encode an object's footer").caused_by(&error))?;
    drop(footer);
    let plain_length = encoded.len() as u32;
    let footer = coder.seal_footer(keys, &encoded)?;
    let mut trailer = [0; TRAILER_BYTES];
    trailer[..8].copy_from_slice(&offset.to_le_bytes());
    trailer[8..12].copy_from_slice(&(footer.len() as u32).to_le_bytes());
    trailer[12..16].copy_from_slice(&plain_length.to_le_bytes());
    trailer[16..20].copy_from_slice(&crc32c::crc32c(&footer).to_le_bytes());
    trailer[24..].copy_from_slice(END_MAGIC);
    Ok((footer, trailer))
}

/// A whole object of one frame, for small things: written with one request.
pub(crate) fn seal_small(
    keychain: &Keychain,
    kind: Kind,
    method: Method,
    name: &str,
    plain: &[u8],
) -> Result<Vec<u8>> {
    let (keys, header) = ObjectKeys::create(keychain.current(), kind, method, name)?;
    let mut coder = Coder::new()?;
    let mut object = header.to_vec();
    object.resize(HEADER_BYTES + stored_bytes_max(plain.len()), 0);
    let room = object.get_mut(HEADER_BYTES..).unwrap_or_default();
    let stored = coder.seal(&keys, 0, plain, room)?;
    let crc32c = crc32c::crc32c(room.get(..stored).unwrap_or_default());
    object.truncate(HEADER_BYTES + stored);
    let frames = vec![FrameEntry {
        stored_length: stored as u32,
        plain_length: plain.len() as u32,
        crc32c,
    }];
    let (footer, trailer) = seal_footer(
        &mut coder,
        &keys,
        object.len() as u64,
        Footer {
            frames,
            body: Vec::new(),
        },
    )?;
    object.extend_from_slice(&footer);
    object.extend_from_slice(&trailer);
    Ok(object)
}

/// Opens what [`seal_small`] made. `plain_max`: the most that such an object can hold.
pub(crate) fn open_small(
    keychain: &Keychain,
    kind: Kind,
    name: &str,
    mut object: Vec<u8>,
    plain_max: usize,
) -> Result<Vec<u8>> {
    let mut decoder = Decoder::new()?;
    let container = Container::from_bytes(keychain, kind, name, &object, &mut decoder)?;
    let [entry] = container.frames.as_slice() else {
        return Err(damaged(name, "it does not have exactly one frame"));
    };
    let (entry, stored) = (*entry, container.range(0)?);
    let stored = object
        .get_mut(stored.0 as usize..(stored.0 + u64::from(stored.1)) as usize)
        .ok_or_else(|| damaged(name, "it is cut short"))?;
    let mut plain = Vec::new();
    container.open_frame(&mut decoder, 0, entry, stored, plain_max, &mut plain)?;
    Ok(plain)
}

/// An object's header, opened.
pub(crate) fn open_header(keychain: &Keychain, kind: Kind, name: &str, header: &[u8]) -> Result<ObjectKeys> {
    let header = header
        .first_chunk()
        .ok_or_else(|| damaged(name, "it is cut short"))?;
    let header = Header::decode(header, kind, name)?;
    ObjectKeys::of(keychain.epoch(header.epoch, name)?, &header, name)
}

/// An object that is there: its keys and its footer.
pub(crate) struct Container {
    pub(crate) name: String,
    pub(crate) keys: ObjectKeys,
    pub(crate) frames: Vec<FrameEntry>,
    offsets: Vec<u64>,
    pub(crate) body: Vec<u8>,
}

impl Container {
    /// Reads header, trailer and footer of an object. Errors: `object-missing`, `object-damaged`,
    /// `key-epoch`, ...
    pub(crate) fn open(
        store: &dyn Store,
        keychain: &Keychain,
        kind: Kind,
        name: &str,
        size: Option<u64>,
        decoder: &mut Decoder,
    ) -> Result<Self> {
        let size = match size {
            Some(size) => size,
            None => store.size(name)?.ok_or_else(|| {
                Error::new(
                    "object-missing",
                    format!("object \"{name}\" is not in the repository"),
                )
            })?,
        };
        let header = store.read_range(name, 0, HEADER_BYTES)?;
        let tail_length = size.saturating_sub(HEADER_BYTES as u64).min(TAIL_BYTES);
        let mut tail = store.read_range(name, size - tail_length, tail_length as usize)?;
        let trailer = Trailer::decode(&tail, size, name)?;
        let from_footer = size - trailer.footer_offset;
        if from_footer > tail_length {
            tail = store.read_range(name, trailer.footer_offset, from_footer as usize)?;
        }
        let skip = tail.len() as u64 - from_footer.min(tail.len() as u64);
        let footer = tail
            .get_mut(skip as usize..)
            .and_then(|tail| tail.get_mut(..trailer.footer_length as usize))
            .ok_or_else(|| damaged(name, "it is cut short"))?;
        Self::assemble(keychain, kind, name, &header, &trailer, footer, decoder)
    }

    /// The same from all bytes of an object.
    pub(crate) fn from_bytes(
        keychain: &Keychain,
        kind: Kind,
        name: &str,
        object: &[u8],
        decoder: &mut Decoder,
    ) -> Result<Self> {
        let size = object.len() as u64;
        let trailer = Trailer::decode(object, size, name)?;
        let mut footer = object
            .get(trailer.footer_offset as usize..)
            .and_then(|tail| tail.get(..trailer.footer_length as usize))
            .ok_or_else(|| damaged(name, "it is cut short"))?
            .to_vec();
        Self::assemble(keychain, kind, name, object, &trailer, &mut footer, decoder)
    }

    fn assemble(
        keychain: &Keychain,
        kind: Kind,
        name: &str,
        header: &[u8],
        trailer: &Trailer,
        footer: &mut [u8],
        decoder: &mut Decoder,
    ) -> Result<Self> {
        let keys = open_header(keychain, kind, name, header)?;
        if crc32c::crc32c(footer) != trailer.footer_crc32c {
            return Err(damaged(name, "its footer was changed"));
        }
        let mut plain = Vec::new();
        decoder.open_footer(
            &keys,
            name,
            footer,
            trailer.footer_plain_length as usize,
            &mut plain,
        )?;
        if plain.len() != trailer.footer_plain_length as usize {
            return Err(damaged(name, "its trailer was changed"));
        }
        let footer = decode_footer(&plain, name)?;
        drop(plain);
        let mut offset = HEADER_BYTES as u64;
        let mut offsets = Vec::with_capacity(footer.frames.len());
        for frame in &footer.frames {
            offsets.push(offset);
            offset += u64::from(frame.stored_length);
        }
        if offset != trailer.footer_offset {
            return Err(damaged(name, "its frames do not fill it"));
        }
        Ok(Container {
            name: name.to_string(),
            keys,
            frames: footer.frames,
            offsets,
            body: footer.body,
        })
    }

    /// The footer's plain bytes, as they were written.
    pub(crate) fn encode_footer(&self) -> Result<Vec<u8>> {
        let footer = Footer {
            frames: self.frames.clone(),
            body: self.body.clone(),
        };
        postcard::to_extend(&footer, vec![FOOTER_VERSION]).map_err(|error| {
            Error::new("footer-encode", "cannot encode an object's footer").caused_by(&error)
        })
    }

    /// Offset and stored length of a frame.
    pub(crate) fn range(&self, frame: usize) -> Result<(u64, u32)> {
        match (self.offsets.get(frame), self.frames.get(frame)) {
            (Some(offset), Some(entry)) => Ok((*offset, entry.stored_length)),
            _ => Err(damaged(&self.name, "it has fewer frames than were referred to")),
        }
    }

    /// Opens a stored frame in place; checks the CRC and the length that the footer states.
    pub(crate) fn open_frame(
        &self,
        decoder: &mut Decoder,
        frame: u32,
        entry: FrameEntry,
        stored: &mut [u8],
        plain_max: usize,
        out: &mut Vec<u8>,
    ) -> Result<()> {
        self.check_stored(frame, entry, stored)?;
        let most = plain_max.min(entry.plain_length as usize);
        decoder.open(&self.keys, &self.name, u64::from(frame), stored, most, out)?;
        if out.len() != entry.plain_length as usize {
            return Err(damaged(
                &self.name,
                &format!("frame {frame} has another length than its footer says"),
            ));
        }
        Ok(())
    }

    /// Checks a stored frame without a key.
    pub(crate) fn check_stored(&self, frame: u32, entry: FrameEntry, stored: &[u8]) -> Result<()> {
        if stored.len() != entry.stored_length as usize || stored.len() < FRAME_OVERHEAD {
            return Err(damaged(&self.name, &format!("frame {frame} is cut short")));
        }
        if crc32c::crc32c(stored) != entry.crc32c {
            return Err(damaged(
                &self.name,
                &format!("frame {frame} was changed: its CRC is wrong"),
            ));
        }
        Ok(())
    }
}

/// A footer's plain bytes.
pub(crate) fn decode_footer(plain: &[u8], name: &str) -> Result<Footer> {
    match plain.split_first() {
        Some((&FOOTER_VERSION, body)) => postcard::from_bytes(body)
            .map_err(|error| damaged(name, &format!("its footer says nothing: {error}"))),
        Some((version, _)) => Err(newer_format(name, u32::from(*version))),
        None => Err(damaged(name, "its footer is empty")),
    }
}

/// What an object says of itself outside of what is sealed.
pub(crate) fn decode_outside(object: &[u8], name: &str) -> Result<()> {
    let header = object
        .first_chunk()
        .ok_or_else(|| damaged(name, "it is cut short"))?;
    let kind = match object.get(10) {
        Some(1) => Kind::RowsPack,
        Some(2) => Kind::MapPack,
        _ => Kind::Statement,
    };
    let header = Header::decode(header, kind, name)?;
    let trailer = Trailer::decode(object, object.len() as u64, name)?;
    let footer = usize::try_from(trailer.footer_offset)
        .ok()
        .and_then(|offset| object.get(offset..));
    match footer.and_then(|tail| tail.get(..trailer.footer_length as usize)) {
        Some(footer) if crc32c::crc32c(footer) == trailer.footer_crc32c => {
            std::hint::black_box(header.encode());
            Ok(())
        }
        _ => Err(damaged(name, "its footer was changed")),
    }
}

/// The last 32 bytes.
struct Trailer {
    footer_offset: u64,
    footer_length: u32,
    footer_plain_length: u32,
    footer_crc32c: u32,
}

impl Trailer {
    /// `tail` ends where the object ends.
    fn decode(tail: &[u8], size: u64, name: &str) -> Result<Self> {
        let trailer: &[u8; TRAILER_BYTES] = tail
            .last_chunk()
            .ok_or_else(|| damaged(name, "it is cut short"))?;
        let u32_at = |at: usize| {
            trailer
                .get(at..at + 4)
                .and_then(|bytes| bytes.try_into().ok())
                .map_or(0, u32::from_le_bytes)
        };
        if !trailer.ends_with(END_MAGIC) || u32_at(20) != 0 {
            return Err(damaged(
                name,
                "it does not end as an object of pgproof: it was cut or changed",
            ));
        }
        let decoded = Trailer {
            footer_offset: u64::from(u32_at(0)) | u64::from(u32_at(4)) << 32,
            footer_length: u32_at(8),
            footer_plain_length: u32_at(12),
            footer_crc32c: u32_at(16),
        };
        let end = decoded
            .footer_offset
            .checked_add(u64::from(decoded.footer_length) + TRAILER_BYTES as u64);
        if end != Some(size)
            || decoded.footer_offset < HEADER_BYTES as u64
            || decoded.footer_plain_length > FOOTER_BYTES_MAX
        {
            return Err(damaged(name, "its trailer does not fit its size"));
        }
        Ok(decoded)
    }
}
