//! Keys: the one a recipient holds, and the keyring that it opens. `docs/format.md` section 8.
//!
//! Invariants: a key is in memory only inside types that erase themselves, and is never shown by `Debug` or
//! put into an error; a keyring is bound to its repository, epoch and recipient, so that none can be put in
//! another's place.

use std::fmt;

use crate::checked_json;
use crate::container::damaged;
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use diagnostic::{Error, Result};
use hpke::{Deserializable, Kem as _, Serializable};
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

/// RFC 9180: DHKEM(X25519, HKDF-SHA256).
pub(crate) type Kem = hpke::kem::X25519HkdfSha256;

const KEY_FILE_TAG: &str = "pgproof-key-1";
const KEYRING_VERSION: u8 = 1;
const RECIPIENT_VERSION: u32 = 1;
/// Argon2id: 64 MiB, 3 passes, 1 lane (RFC 9106, second recommendation, with the lanes of one thread).
const ARGON2_MEMORY_KIB: u32 = 64 << 10;
const ARGON2_PASSES: u32 = 3;
/// What a stored file may make us spend.
const ARGON2_MEMORY_KIB_MAX: u32 = 1 << 20;
const ARGON2_PASSES_MAX: u32 = 64;

/// What a recipient's keyring lets it do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Everything.
    Reader,
    /// Everything but reading rows.
    Writer,
}

/// The key of one recipient: what a key file or a passphrase holds. Erased from memory when dropped.
pub struct RecipientKey(Secret);

enum Secret {
    Key(Zeroizing<[u8; 32]>),
    Passphrase(Zeroizing<String>),
}

impl fmt::Debug for RecipientKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Secret::Key(_) => "RecipientKey(key)",
            Secret::Passphrase(_) => "RecipientKey(passphrase)",
        })
    }
}

impl RecipientKey {
    /// A random key, to be kept in a key file.
    pub fn generate() -> Result<Self> {
        let mut key = Zeroizing::new([0; 32]);
        random(&mut *key)?;
        Ok(RecipientKey(Secret::Key(key)))
    }

    /// Reads a key file: one line `pgproof-key-1 <64 hexadecimal digits> <CRC-32C, 8 digits>`; lines that
    /// begin with `#` say something to people. Error: `key-file`.
    pub fn from_key_file_text(text: &str) -> Result<Self> {
        let bad = |why: &str| {
            Error::new("key-file", "the key file does not hold a key")
                .detail(format!("{why}."))
                .hint(
                    "Restore the key file from where you keep its copy; without the key nothing can be read.",
                )
        };
        let mut lines = text
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty() && !line.starts_with('#'));
        let line = lines.next().ok_or_else(|| bad("It is empty"))?;
        if lines.next().is_some() {
            return Err(bad("It has more than one line that is not a comment"));
        }
        let mut words = line.split_ascii_whitespace();
        if words.next() != Some(KEY_FILE_TAG) {
            return Err(bad("Its line does not begin with \"pgproof-key-1\""));
        }
        let key: Zeroizing<[u8; 32]> = words
            .next()
            .and_then(crate::hex::decode)
            .map(Zeroizing::new)
            .ok_or_else(|| bad("The key is not 64 hexadecimal digits"))?;
        let crc = words
            .next()
            .and_then(crate::hex::decode::<4>)
            .map(u32::from_be_bytes);
        if crc != Some(crc32c::crc32c(&*key)) || words.next().is_some() {
            return Err(bad("The key's check digits are wrong: it was mistyped or cut"));
        }
        Ok(RecipientKey(Secret::Key(key)))
    }

    /// The text of a key file. Error: `key-file` for a passphrase.
    pub fn to_key_file_text(&self) -> Result<String> {
        let Secret::Key(key) = &self.0 else {
            return Err(Error::new("key-file", "a passphrase is not kept in a key file"));
        };
        let digits = Zeroizing::new(crate::hex::encode(&**key));
        Ok(format!(
            "# The key of a pgproof repository. Keep a copy where the repository is not:\n\
             # without it nothing can be read.\n\
             {KEY_FILE_TAG} {} {:08x}\n",
            *digits,
            crc32c::crc32c(&**key)
        ))
    }

    /// A passphrase; Argon2id makes the key of it. Error: `key-passphrase` if it is empty.
    pub fn from_passphrase(passphrase: &str) -> Result<Self> {
        if passphrase.is_empty() {
            return Err(Error::new("key-passphrase", "the passphrase is empty"));
        }
        Ok(RecipientKey(Secret::Passphrase(Zeroizing::new(
            passphrase.to_string(),
        ))))
    }

    /// The name of the key's objects; `None` for a passphrase, whose key differs from object to object.
    fn recipient(&self) -> Option<String> {
        match &self.0 {
            Secret::Key(key) => Some(recipient_of(key)),
            Secret::Passphrase(_) => None,
        }
    }
}

/// Fills with random bytes. Error: `random`.
pub(crate) fn random(bytes: &mut [u8]) -> Result<()> {
    getrandom::fill(bytes)
        .map_err(|error| Error::new("random", "the operating system gave no random bytes").caused_by(&error))
}

fn recipient_of(key: &[u8; 32]) -> String {
    let digest = blake3::derive_key("pgproof recipient id v1", key);
    crate::hex::encode(digest.first_chunk::<8>().unwrap_or(&[0; 8]))
}

/// The keys of an epoch, as one recipient has them.
#[derive(Clone, Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
pub(crate) struct Keyring {
    pub(crate) repository_id: [u8; 16],
    pub(crate) epoch: u32,
    #[zeroize(skip)]
    pub(crate) role: Role,
    pub(crate) row_public: [u8; 32],
    pub(crate) row_private: Option<[u8; 32]>,
    pub(crate) map_key: [u8; 32],
    pub(crate) identity_key: [u8; 32],
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Keyring({:?}, epoch {})", self.role, self.epoch)
    }
}

/// An object below `keys/`.
#[derive(Debug, Serialize, Deserialize)]
struct SealedKeyring {
    version: u32,
    /// Hexadecimal. Here too, so that a damaged `repository.json` costs nothing.
    repository_id: String,
    epoch: u32,
    recipient: String,
    #[serde(flatten)]
    method: Method,
    nonce: String,
    sealed: String,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "method", rename_all = "snake_case")]
enum Method {
    KeyFile,
    Passphrase { argon2id: Argon2Parameters },
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Argon2Parameters {
    memory_kib: u32,
    passes: u32,
    lanes: u32,
    salt: String,
}

impl Argon2Parameters {
    fn derive(&self, passphrase: &str) -> Result<Zeroizing<[u8; 32]>> {
        let bad = || {
            Error::new(
                "repository-format",
                "a sealed keyring has impossible Argon2id parameters",
            )
        };
        let salt: [u8; 16] = crate::hex::decode(&self.salt).ok_or_else(bad)?;
        if self.memory_kib > ARGON2_MEMORY_KIB_MAX || self.passes > ARGON2_PASSES_MAX || self.lanes > 16 {
            return Err(bad());
        }
        let parameters =
            argon2::Params::new(self.memory_kib, self.passes, self.lanes, Some(32)).map_err(|_| bad())?;
        let argon2 = argon2::Argon2::new(argon2::Algorithm::Argon2id, argon2::Version::V0x13, parameters);
        let mut key = Zeroizing::new([0; 32]);
        argon2
            .hash_password_into(passphrase.as_bytes(), &salt, &mut *key)
            .map_err(|_| bad())?;
        Ok(key)
    }
}

impl Keyring {
    /// New row and map keys.
    pub(crate) fn generate(repository_id: [u8; 16], epoch: u32, identity_key: [u8; 32]) -> Result<Self> {
        let mut seed = Zeroizing::new([0; 32]);
        random(&mut *seed)?;
        let (private, public) = Kem::derive_keypair(&*seed);
        let fixed = |bytes: &[u8]| -> Result<[u8; 32]> {
            bytes
                .try_into()
                .map_err(|_| Error::new("key-internal", "an X25519 key does not have 32 bytes"))
        };
        let mut keyring = Keyring {
            repository_id,
            epoch,
            role: Role::Reader,
            row_public: fixed(&public.to_bytes())?,
            row_private: Some(fixed(&private.to_bytes())?),
            map_key: [0; 32],
            identity_key,
        };
        random(&mut keyring.map_key)?;
        Ok(keyring)
    }

    /// What a recipient of this role is given. Error: `key-role` if a writer wants to make a reader.
    pub(crate) fn restricted(&self, role: Role) -> Result<Keyring> {
        let mut keyring = self.clone();
        match role {
            Role::Writer => {
                keyring.row_private.zeroize();
                keyring.row_private = None;
            }
            Role::Reader if self.row_private.is_none() => {
                return Err(Error::new(
                    "key-role",
                    "a key that may not read rows cannot let another key read them",
                )
                .hint("Use a reader's key for this."));
            }
            Role::Reader => {}
        }
        keyring.role = role;
        Ok(keyring)
    }

    /// Seals the keyring for a recipient: the object's name and content.
    pub(crate) fn seal(&self, recipient: &RecipientKey) -> Result<(String, Vec<u8>)> {
        let (method, key) = match &recipient.0 {
            Secret::Key(key) => (Method::KeyFile, key.clone()),
            Secret::Passphrase(passphrase) => {
                let mut salt = [0; 16];
                random(&mut salt)?;
                let argon2id = Argon2Parameters {
                    memory_kib: ARGON2_MEMORY_KIB,
                    passes: ARGON2_PASSES,
                    lanes: 1,
                    salt: crate::hex::encode(&salt),
                };
                let key = argon2id.derive(passphrase)?;
                (Method::Passphrase { argon2id }, key)
            }
        };
        let recipient = recipient_of(&key);
        let mut nonce = [0; NONCE_LEN];
        random(&mut nonce)?;
        let encode = |_| Error::new("key-internal", "cannot encode a keyring");
        let mut plain = Zeroizing::new(Vec::with_capacity(512));
        plain.push(KEYRING_VERSION);
        let body = Zeroizing::new(postcard::to_stdvec(self).map_err(encode)?);
        plain.extend_from_slice(&body);
        let aad = associated_data(&self.repository_id, self.epoch, &recipient);
        aead_key(&key)?
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(aad), &mut *plain)
            .map_err(|_| Error::new("key-internal", "cannot seal a keyring"))?;
        let sealed = SealedKeyring {
            version: RECIPIENT_VERSION,
            repository_id: crate::hex::encode(&self.repository_id),
            epoch: self.epoch,
            recipient: recipient.clone(),
            method,
            nonce: crate::hex::encode(&nonce),
            sealed: STANDARD.encode(&*plain),
        };
        let object = object_name(self.epoch, &recipient);
        let content = checked_json::encode(&object, &sealed)?;
        Ok((object, content))
    }
}

/// `keys/<epoch>/<recipient>`
fn object_name(epoch: u32, recipient: &str) -> String {
    format!("keys/{epoch:08}/{recipient}")
}

/// The objects that may hold a keyring of this epoch for this recipient; `None`: any of the epoch's.
pub(crate) fn candidate(epoch: u32, key: &RecipientKey) -> Option<String> {
    key.recipient().map(|recipient| object_name(epoch, &recipient))
}

/// The repository that an object below `keys/` says it belongs to. Errors: `object-damaged`,
/// `repository-format`.
pub(crate) fn repository_of(object: &str, content: &[u8]) -> Result<[u8; 16]> {
    let sealed = sealed_keyring(object, content)?;
    crate::hex::decode(&sealed.repository_id).ok_or_else(|| damaged(object, "it names no repository"))
}

fn sealed_keyring(object: &str, content: &[u8]) -> Result<SealedKeyring> {
    let sealed: SealedKeyring = checked_json::decode(object, content)?;
    if sealed.version != RECIPIENT_VERSION {
        return Err(crate::container::newer_format(object, sealed.version));
    }
    if object_name(sealed.epoch, &sealed.recipient) != object {
        return Err(damaged(object, "it stands under another name than its own"));
    }
    Ok(sealed)
}

/// Opens an object below `keys/`; `None` if it is not meant for this recipient.
/// Errors: `repository-format`, `object-damaged`.
pub(crate) fn open_keyring(
    object: &str,
    content: &[u8],
    repository_id: &[u8; 16],
    recipient: &RecipientKey,
) -> Result<Option<Keyring>> {
    let damaged = |why: &str| damaged(object, why);
    let sealed = sealed_keyring(object, content)?;
    let key = match (&recipient.0, &sealed.method) {
        (Secret::Key(key), Method::KeyFile) => key.clone(),
        (Secret::Passphrase(passphrase), Method::Passphrase { argon2id }) => argon2id.derive(passphrase)?,
        _ => return Ok(None),
    };
    if recipient_of(&key) != sealed.recipient {
        return Ok(None);
    }
    let nonce: [u8; NONCE_LEN] =
        crate::hex::decode(&sealed.nonce).ok_or_else(|| damaged("its nonce is cut"))?;
    let bytes = STANDARD
        .decode(&sealed.sealed)
        .map_err(|error| damaged(&error.to_string()))?;
    let mut plain = Zeroizing::new(bytes);
    let aad = associated_data(repository_id, sealed.epoch, &sealed.recipient);
    let opened = aead_key(&key)?
        .open_in_place(Nonce::assume_unique_for_key(nonce), Aad::from(aad), &mut plain)
        .map_err(|_| damaged("it was changed, or belongs to another repository"))?;
    let keyring: Keyring = match opened.split_first() {
        Some((&KEYRING_VERSION, body)) => {
            postcard::from_bytes(body).map_err(|error| damaged(&error.to_string()))?
        }
        Some((version, _)) => return Err(crate::container::newer_format(object, u32::from(*version))),
        None => return Err(damaged("it is empty")),
    };
    if keyring.repository_id != *repository_id || keyring.epoch != sealed.epoch {
        return Err(damaged("it belongs to another repository or epoch"));
    }
    Ok(Some(keyring))
}

/// The keyrings of all epochs that a recipient was given.
#[derive(Debug, Clone)]
pub(crate) struct Keychain {
    /// Ascending by epoch; never empty.
    keyrings: Vec<Keyring>,
}

impl Keychain {
    /// `None` if there is no keyring.
    pub(crate) fn new(mut keyrings: Vec<Keyring>) -> Option<Self> {
        keyrings.sort_by_key(|keyring| keyring.epoch);
        (!keyrings.is_empty()).then_some(Keychain { keyrings })
    }

    /// The keyring that seals what is written now: that of the newest epoch.
    pub(crate) fn current(&self) -> &Keyring {
        &self.keyrings[self.keyrings.len() - 1]
    }

    pub(crate) fn all(&self) -> &[Keyring] {
        &self.keyrings
    }

    /// The keyring of an object's epoch. Error: `key-epoch`.
    pub(crate) fn epoch(&self, epoch: u32, object: &str) -> Result<&Keyring> {
        self.keyrings
            .iter()
            .find(|keyring| keyring.epoch == epoch)
            .ok_or_else(|| {
                Error::new(
                    "key-epoch",
                    format!("this key does not open epoch {epoch}, which sealed object \"{object}\""),
                )
                .hint("Use a key that was given that epoch: `pgproof key list` shows them.")
            })
    }
}

fn aead_key(key: &[u8; 32]) -> Result<LessSafeKey> {
    let key = UnboundKey::new(&AES_256_GCM, key)
        .map_err(|_| Error::new("key-internal", "AES-256-GCM refused a key of 32 bytes"))?;
    Ok(LessSafeKey::new(key))
}

fn associated_data(repository_id: &[u8; 16], epoch: u32, recipient: &str) -> Vec<u8> {
    let mut aad = b"pgproof keyring v1".to_vec();
    aad.extend_from_slice(repository_id);
    aad.extend_from_slice(&epoch.to_le_bytes());
    aad.extend_from_slice(recipient.as_bytes());
    aad
}

impl Keyring {
    pub(crate) fn public(&self) -> Result<<Kem as hpke::Kem>::PublicKey> {
        <Kem as hpke::Kem>::PublicKey::from_bytes(&self.row_public)
            .map_err(|_| Error::new("object-damaged", "the keyring's row key is not a key"))
    }

    /// Error: `key-role` if this recipient may not read rows.
    pub(crate) fn private(&self) -> Result<<Kem as hpke::Kem>::PrivateKey> {
        let Some(private) = &self.row_private else {
            return Err(Error::new(
                "key-role",
                "this key may write to the repository but not read rows",
            )
            .hint(
                "Use a reader's key: the one that the repository was made with, or one that it authorized.",
            ));
        };
        <Kem as hpke::Kem>::PrivateKey::from_bytes(private)
            .map_err(|_| Error::new("object-damaged", "the keyring's row key is not a key"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: [u8; 16] = [3; 16];

    fn keyring() -> Keyring {
        Keyring::generate(ID, 1, [9; 32]).unwrap()
    }

    #[test]
    fn a_key_file_survives_and_a_mistyped_one_is_refused() {
        let key = RecipientKey::generate().unwrap();
        let text = key.to_key_file_text().unwrap();
        let again = RecipientKey::from_key_file_text(&text).unwrap();
        assert_eq!(again.to_key_file_text().unwrap(), text);
        let line = text.lines().last().unwrap();
        for at in 0..line.len() {
            let mut wrong = line.as_bytes().to_vec();
            wrong[at] = if wrong[at] == b'0' { b'1' } else { b'0' };
            let wrong = String::from_utf8(wrong).unwrap();
            assert_eq!(
                RecipientKey::from_key_file_text(&wrong).unwrap_err().code(),
                "key-file",
                "{wrong}"
            );
        }
        for wrong in ["", "# only words\n", "pgproof-key-1", &format!("{line}\n{line}")] {
            assert_eq!(
                RecipientKey::from_key_file_text(wrong).unwrap_err().code(),
                "key-file"
            );
        }
        assert!(!format!("{key:?}").contains(&line[14..30]));
    }

    #[test]
    fn a_keyring_opens_for_its_recipient_only() {
        let (mine, other) = (
            RecipientKey::generate().unwrap(),
            RecipientKey::generate().unwrap(),
        );
        let (name, content) = keyring().seal(&mine).unwrap();
        assert_eq!(Some(&name), candidate(1, &mine).as_ref());
        let opened = open_keyring(&name, &content, &ID, &mine).unwrap().unwrap();
        assert_eq!(opened.identity_key, [9; 32]);
        assert!(opened.private().is_ok());
        assert!(open_keyring(&name, &content, &ID, &other).unwrap().is_none());
        assert_eq!(
            open_keyring(&name, &content, &[4; 16], &mine).unwrap_err().code(),
            "object-damaged"
        );
        assert_eq!(
            open_keyring("keys/00000002/x", &content, &ID, &mine)
                .unwrap_err()
                .code(),
            "object-damaged"
        );
    }

    #[test]
    fn a_flipped_bit_of_a_sealed_keyring_never_gives_other_keys() {
        let key = RecipientKey::generate().unwrap();
        let original = keyring();
        let (name, content) = original.seal(&key).unwrap();
        for at in 0..content.len() {
            let mut bytes = content.clone();
            bytes[at] ^= 4;
            if let Ok(Some(opened)) = open_keyring(&name, &bytes, &ID, &key) {
                // Only what carries no meaning (white space) may differ.
                assert_eq!(
                    (opened.map_key, opened.row_private),
                    (original.map_key, original.row_private)
                );
            }
        }
    }

    #[test]
    fn a_writer_has_no_private_row_key_and_cannot_make_a_reader() {
        let writer = keyring().restricted(Role::Writer).unwrap();
        assert_eq!(writer.private().err().unwrap().code(), "key-role");
        assert_eq!(writer.restricted(Role::Reader).unwrap_err().code(), "key-role");
        assert!(writer.public().is_ok());
        let recipient = RecipientKey::generate().unwrap();
        let (name, content) = writer.seal(&recipient).unwrap();
        assert_eq!(
            open_keyring(&name, &content, &ID, &recipient)
                .unwrap()
                .unwrap()
                .role,
            Role::Writer
        );
    }

    #[test]
    fn a_passphrase_opens_what_it_sealed() {
        let right = RecipientKey::from_passphrase("correct horse").unwrap();
        let wrong = RecipientKey::from_passphrase("correct house").unwrap();
        let (name, content) = keyring().seal(&right).unwrap();
        assert!(open_keyring(&name, &content, &ID, &right).unwrap().is_some());
        assert!(open_keyring(&name, &content, &ID, &wrong).unwrap().is_none());
        let mut greedy: serde_json::Value = checked_json::decode(&name, &content).unwrap();
        greedy["argon2id"]["memory_kib"] = 4_000_000_000_u32.into();
        let greedy = checked_json::encode(&name, &greedy).unwrap();
        assert_eq!(
            open_keyring(&name, &greedy, &ID, &right).unwrap_err().code(),
            "repository-format"
        );
        assert_eq!(
            RecipientKey::from_passphrase("").unwrap_err().code(),
            "key-passphrase"
        );
    }
}
