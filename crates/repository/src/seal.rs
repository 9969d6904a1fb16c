//! Frames: how a piece of an object is compressed and sealed, and how it is opened again. `docs/format.md`
//! section 2.
//!
//! Invariants: a data key seals one object; a frame's number is its nonce and is used once; object name,
//! kind, salt and frame number are associated data, so that no frame passes in another's place; what is
//! opened has the length that was bounded beforehand, whatever its bytes say.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::hkdf;
use diagnostic::{Error, Result};
use hpke::{Deserializable, OpModeR, OpModeS, Serializable};
use zeroize::Zeroizing;
use zstd::bulk::{Compressor, Decompressor};
use zstd::zstd_safe;

use crate::container::{HEADER_BYTES, Header, Kind, Method};
use crate::keys::{Kem, Keyring, random};

/// Bytes of the tag behind each sealed frame.
pub(crate) const TAG_BYTES: usize = 16;
/// What a stored frame has beyond its coded body: the codec byte and the tag.
pub(crate) const FRAME_OVERHEAD: usize = 1 + TAG_BYTES;
/// The frame number of the footer.
const FOOTER_FRAME: u64 = u64::MAX;

const CODEC_STORED: u8 = 0;
const CODEC_ZSTD: u8 = 1;
const ZSTD_LEVEL: i32 = 1;

type Aead = hpke::aead::AesGcm256;
type Kdf = hpke::kdf::HkdfSha256;

/// The keys of one object and what its frames are bound to. Usable from several threads.
pub(crate) struct ObjectKeys {
    /// `None`: this recipient may not read rows.
    frames: Option<LessSafeKey>,
    footer: LessSafeKey,
    /// Associated data up to the frame number.
    bound_to: Vec<u8>,
}

fn internal(what: &'static str) -> Error {
    Error::new("key-internal", what)
}

fn aead_key(key: &[u8; 32]) -> Result<LessSafeKey> {
    let key =
        UnboundKey::new(&AES_256_GCM, key).map_err(|_| internal("AES-256-GCM refused a key of 32 bytes"))?;
    Ok(LessSafeKey::new(key))
}

/// HKDF-SHA256 of the map key.
fn derive(map_key: &[u8; 32], salt: &[u8; 16], info: &[u8]) -> Result<LessSafeKey> {
    let mut key = Zeroizing::new([0; 32]);
    hkdf::Salt::new(hkdf::HKDF_SHA256, salt)
        .extract(map_key)
        .expand(&[info], hkdf::HKDF_SHA256)
        .and_then(|okm| okm.fill(&mut *key))
        .map_err(|_| internal("HKDF-SHA256 failed"))?;
    aead_key(&key)
}

fn nonce(frame: u64) -> Nonce {
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&frame.to_le_bytes());
    Nonce::assume_unique_for_key(nonce)
}

impl ObjectKeys {
    /// The keys of a new object, and its header.
    pub(crate) fn create(
        keyring: &Keyring,
        kind: Kind,
        method: Method,
        name: &str,
    ) -> Result<(Self, [u8; HEADER_BYTES])> {
        let mut header = Header {
            kind,
            method,
            epoch: keyring.epoch,
            salt: [0; 16],
            encapsulated: [0; 32],
            sealed_key: [0; 48],
        };
        random(&mut header.salt)?;
        let frames = match method {
            Method::MapKey => derive(&keyring.map_key, &header.salt, b"pgproof map frames v1")?,
            Method::RowKey => {
                let mut key = Zeroizing::new([0; 32]);
                random(&mut *key)?;
                let aad = header.data_key_associated(&keyring.repository_id);
                let (encapsulated, sealed) = hpke::single_shot_seal::<Aead, Kdf, Kem>(
                    &OpModeS::Base,
                    &keyring.public()?,
                    DATA_KEY_INFO,
                    &*key,
                    &aad,
                )
                .map_err(|_| internal("HPKE could not seal a data key"))?;
                let wrong = |_| internal("HPKE gave a key of another length");
                header.encapsulated = encapsulated.to_bytes().as_slice().try_into().map_err(wrong)?;
                header.sealed_key = sealed.as_slice().try_into().map_err(wrong)?;
                aead_key(&key)?
            }
        };
        let keys = ObjectKeys {
            frames: Some(frames),
            footer: derive(&keyring.map_key, &header.salt, b"pgproof footer v1")?,
            bound_to: bound_to(&keyring.repository_id, kind, name, &header.salt),
        };
        Ok((keys, header.encode()))
    }

    /// The keys of an object that is there. A recipient that may not read rows gets the footer's only.
    pub(crate) fn of(keyring: &Keyring, header: &Header, name: &str) -> Result<Self> {
        let frames = match header.method {
            Method::MapKey => Some(derive(&keyring.map_key, &header.salt, b"pgproof map frames v1")?),
            Method::RowKey if keyring.row_private.is_none() => None,
            Method::RowKey => {
                let damaged = || {
                    Error::new(
                        "object-damaged",
                        format!("the data key of object \"{name}\" does not open"),
                    )
                    .detail("The object's header was changed, or the object belongs to another repository.")
                };
                let encapsulated = <Kem as hpke::Kem>::EncappedKey::from_bytes(&header.encapsulated)
                    .map_err(|_| damaged())?;
                let opened = hpke::single_shot_open::<Aead, Kdf, Kem>(
                    &OpModeR::Base,
                    &keyring.private()?,
                    &encapsulated,
                    DATA_KEY_INFO,
                    &header.sealed_key,
                    &header.data_key_associated(&keyring.repository_id),
                )
                .map(Zeroizing::new)
                .map_err(|_| damaged())?;
                let key: &[u8; 32] = opened.as_slice().try_into().map_err(|_| damaged())?;
                Some(aead_key(key)?)
            }
        };
        Ok(ObjectKeys {
            frames,
            footer: derive(&keyring.map_key, &header.salt, b"pgproof footer v1")?,
            bound_to: bound_to(&keyring.repository_id, header.kind, name, &header.salt),
        })
    }

    fn key(&self, frame: u64) -> Result<&LessSafeKey> {
        if frame == FOOTER_FRAME {
            return Ok(&self.footer);
        }
        self.frames.as_ref().ok_or_else(|| {
            Error::new(
                "key-role",
                "this key may write to the repository but not read rows",
            )
            .hint("Use a reader's key: the one that the repository was made with, or one that it authorized.")
        })
    }

    fn associated(&self, frame: u64) -> Aad<Vec<u8>> {
        let mut associated = Vec::with_capacity(self.bound_to.len() + 8);
        associated.extend_from_slice(&self.bound_to);
        associated.extend_from_slice(&frame.to_le_bytes());
        Aad::from(associated)
    }
}

const DATA_KEY_INFO: &[u8] = b"pgproof data key v1";

fn bound_to(repository_id: &[u8; 16], kind: Kind, name: &str, salt: &[u8; 16]) -> Vec<u8> {
    let mut bytes = b"pgproof frame v1".to_vec();
    bytes.extend_from_slice(repository_id);
    bytes.push(kind as u8);
    // Names are at most 400 bytes.
    bytes.extend_from_slice(&(name.len() as u16).to_le_bytes());
    bytes.extend_from_slice(name.as_bytes());
    bytes.extend_from_slice(salt);
    bytes
}

/// The most bytes that a frame of this plain length is stored in.
pub(crate) fn stored_bytes_max(plain: usize) -> usize {
    // `Coder::seal` falls back to storing, but lets zstd try first.
    zstd_safe::compress_bound(plain) + FRAME_OVERHEAD
}

/// Compresses and seals; one for each thread, its context reused.
pub(crate) struct Coder {
    zstd: Compressor<'static>,
}

impl Coder {
    pub(crate) fn new() -> Result<Self> {
        let zstd = Compressor::new(ZSTD_LEVEL)
            .map_err(|error| Error::new("compression", "zstd could not be set up").caused_by(&error))?;
        Ok(Coder { zstd })
    }

    /// Seals a frame into the beginning of `out`, which has room for [`stored_bytes_max`]; the stored bytes.
    pub(crate) fn seal(
        &mut self,
        keys: &ObjectKeys,
        frame: u64,
        plain: &[u8],
        out: &mut [u8],
    ) -> Result<usize> {
        let room = || internal("a frame's buffer is too small");
        let (codec, body) = out.split_first_mut().ok_or_else(room)?;
        let mut length = self.zstd.compress_to_buffer(plain, body).map_err(|error| {
            Error::new("compression", "zstd could not compress a frame").caused_by(&error)
        })?;
        *codec = CODEC_ZSTD;
        if length >= plain.len() {
            *codec = CODEC_STORED;
            length = plain.len();
            body.get_mut(..length).ok_or_else(room)?.copy_from_slice(plain);
        }
        let (text, rest) = out.split_at_mut_checked(1 + length).ok_or_else(room)?;
        let tag = keys
            .key(frame)?
            .seal_in_place_separate_tag(nonce(frame), keys.associated(frame), text)
            .map_err(|_| internal("AES-256-GCM could not seal a frame"))?;
        rest.get_mut(..TAG_BYTES)
            .ok_or_else(room)?
            .copy_from_slice(tag.as_ref());
        Ok(1 + length + TAG_BYTES)
    }

    pub(crate) fn seal_footer(&mut self, keys: &ObjectKeys, plain: &[u8]) -> Result<Vec<u8>> {
        let mut out = vec![0; stored_bytes_max(plain.len())];
        let length = self.seal(keys, FOOTER_FRAME, plain, &mut out)?;
        out.truncate(length);
        Ok(out)
    }
}

/// Opens and decodes; one for each thread, its context reused.
pub(crate) struct Decoder {
    zstd: Decompressor<'static>,
}

impl Decoder {
    pub(crate) fn new() -> Result<Self> {
        let zstd = Decompressor::new()
            .map_err(|error| Error::new("compression", "zstd could not be set up").caused_by(&error))?;
        Ok(Decoder { zstd })
    }

    /// Opens a stored frame in place and puts its body, of at most `plain_max` bytes, into `out`.
    /// Errors: `object-damaged`, `key-role`, `repository-format`.
    pub(crate) fn open(
        &mut self,
        keys: &ObjectKeys,
        name: &str,
        frame: u64,
        stored: &mut [u8],
        plain_max: usize,
        out: &mut Vec<u8>,
    ) -> Result<()> {
        let damaged = |why: &str| {
            let what = if frame == FOOTER_FRAME {
                "its footer".to_string()
            } else {
                format!("frame {frame}")
            };
            Error::new("object-damaged", format!("object \"{name}\" is damaged"))
                .detail(format!("In {what}: {why}."))
                .hint("Run `pgproof verify` to see what depends on it; another copy may have it whole.")
        };
        out.clear();
        let plain = keys
            .key(frame)?
            .open_in_place(nonce(frame), keys.associated(frame), stored)
            .map_err(|_| damaged("it was changed, or was made for another place, name or repository"))?;
        match plain.split_first() {
            Some((&CODEC_STORED, body)) if body.len() <= plain_max => out.extend_from_slice(body),
            Some((&CODEC_ZSTD, body)) => {
                let length = zstd_safe::get_frame_content_size(body)
                    .ok()
                    .flatten()
                    .and_then(|length| usize::try_from(length).ok())
                    .filter(|length| *length <= plain_max)
                    .ok_or_else(|| damaged("it would be longer than anything that is written"))?;
                out.reserve(length);
                let done = self
                    .zstd
                    .decompress_to_buffer(body, out)
                    .map_err(|error| damaged(&error.to_string()))?;
                if done != length {
                    return Err(damaged("it has another length than it says"));
                }
            }
            Some((&CODEC_STORED, _)) => return Err(damaged("it is longer than anything that is written")),
            Some((codec, _)) => {
                return Err(
                    crate::container::newer_format(name, u32::from(*codec)).detail("Its codec is unknown.")
                );
            }
            None => return Err(damaged("it is empty")),
        }
        Ok(())
    }

    pub(crate) fn open_footer(
        &mut self,
        keys: &ObjectKeys,
        name: &str,
        stored: &mut [u8],
        plain_max: usize,
        out: &mut Vec<u8>,
    ) -> Result<()> {
        self.open(keys, name, FOOTER_FRAME, stored, plain_max, out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: &str = "clusters/main/packs/20260815T020003Z/00000001.rows";
    const PLAIN: &[u8] = b"the rows of a page, or of two";

    fn keyring() -> Keyring {
        Keyring::generate([7; 16], 1, [9; 32]).unwrap()
    }

    fn sealed(coder: &mut Coder, keys: &ObjectKeys, frame: u64, plain: &[u8]) -> Vec<u8> {
        let mut out = vec![0; stored_bytes_max(plain.len())];
        let length = coder.seal(keys, frame, plain, &mut out).unwrap();
        out.truncate(length);
        out
    }

    fn opens(keys: &ObjectKeys, frame: u64, stored: &[u8]) -> bool {
        let mut out = Vec::new();
        let opened = Decoder::new()
            .unwrap()
            .open(keys, NAME, frame, &mut stored.to_vec(), 1 << 20, &mut out);
        match opened {
            Ok(()) => {
                assert_eq!(out, PLAIN);
                true
            }
            Err(error) => {
                assert_eq!(error.code(), "object-damaged");
                false
            }
        }
    }

    /// Two frames of one object under the same key and nonce would tell their difference to anybody.
    #[test]
    fn no_two_frames_are_sealed_under_one_key_and_nonce() {
        let keyring = keyring();
        let mut coder = Coder::new().unwrap();
        let mut seen = std::collections::HashSet::new();
        for kind in [Kind::RowsPack, Kind::MapPack] {
            for method in [Method::RowKey, Method::MapKey] {
                let (keys, _) = ObjectKeys::create(&keyring, kind, method, NAME).unwrap();
                let (again, _) = ObjectKeys::create(&keyring, kind, method, NAME).unwrap();
                for frame in [0, 1, 2, 255, 256, u64::from(u32::MAX) + 1, FOOTER_FRAME] {
                    for keys in [&keys, &again] {
                        let mut stored = sealed(&mut coder, keys, frame, PLAIN);
                        stored.truncate(stored.len() - TAG_BYTES);
                        assert!(seen.insert(stored), "{method:?} {frame}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_frame_opens_at_its_own_place_only() {
        let keyring = keyring();
        let mut other_repository = keyring.clone();
        other_repository.repository_id = [8; 16];
        let (keys, header) = ObjectKeys::create(&keyring, Kind::RowsPack, Method::MapKey, NAME).unwrap();
        let stored = sealed(&mut Coder::new().unwrap(), &keys, 3, PLAIN);
        let header = Header::decode(&header, Kind::RowsPack, NAME).unwrap();
        let of =
            |keyring: &Keyring, header: &Header, name: &str| ObjectKeys::of(keyring, header, name).unwrap();
        assert!(opens(&of(&keyring, &header, NAME), 3, &stored));
        assert!(!opens(&of(&keyring, &header, NAME), 2, &stored));
        assert!(!opens(
            &of(
                &keyring,
                &header,
                "clusters/main/packs/20260815T020003Z/00000002.rows"
            ),
            3,
            &stored
        ));
        assert!(!opens(&of(&other_repository, &header, NAME), 3, &stored));
        let mut changed = header.clone();
        changed.kind = Kind::MapPack;
        assert!(!opens(&of(&keyring, &changed, NAME), 3, &stored));
        changed = header;
        changed.salt[0] ^= 1;
        assert!(!opens(&of(&keyring, &changed, NAME), 3, &stored));
    }
}
