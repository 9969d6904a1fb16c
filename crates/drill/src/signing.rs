//! Keys with which people sign what a drill recorded: Ed25519 (RFC 8032).
//!
//! Invariants: a private key is in memory only inside a type that erases itself, and is never shown by `Debug`
//! or put into an error; a public key has one text, so that equal keys are equal texts.

use std::fmt;
use std::str::FromStr;

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use diagnostic::{Error, Result};
use repository::hex::{decode, encode};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::Zeroizing;

const KEY_FILE_TAG: &str = "pgproof-signing-1";
const PREFIX: &str = "ed25519:";

/// A public key: `ed25519:` and base64 of its 32 bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey([u8; 32]);

impl PublicKey {
    /// Whether `signature` is this key's over `message`.
    pub fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&ED25519, &self.0)
            .verify(message, signature)
            .is_ok()
    }

    /// Sixteen hexadecimal digits that stand for the key in the name of a file.
    pub fn short(&self) -> String {
        let mut digits = crate::evidence::sha256_hex(&self.0);
        digits.truncate(16);
        digits
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}", STANDARD.encode(self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for PublicKey {
    type Err = Error;

    /// Error: `public-key-syntax`.
    fn from_str(text: &str) -> Result<Self> {
        let bytes = text
            .strip_prefix(PREFIX)
            .and_then(|digits| STANDARD.decode(digits).ok())
            .and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
        bytes.map(PublicKey).ok_or_else(|| {
            Error::usage("public-key-syntax", "this is not a public key of pgproof")
                .detail("A public key is `ed25519:` and 44 characters of base64.")
                .hint("`pgproof key signing-new NAME` prints it when it makes the key.")
        })
    }
}

impl Serialize for PublicKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PublicKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse()
            .map_err(|error: Error| serde::de::Error::custom(error.message()))
    }
}

/// A private key with its public half.
pub struct SigningKey {
    seed: Zeroizing<[u8; 32]>,
    pair: Ed25519KeyPair,
    public: PublicKey,
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey({})", self.public)
    }
}

impl SigningKey {
    /// A new random key. Error: `random`.
    pub fn generate() -> Result<Self> {
        let mut seed = Zeroizing::new([0; 32]);
        getrandom::fill(&mut *seed).map_err(|error| {
            Error::new("random", "the operating system gave no random bytes").caused_by(&error)
        })?;
        Self::from_seed(seed)
    }

    fn from_seed(seed: Zeroizing<[u8; 32]>) -> Result<Self> {
        let internal = || Error::new("signing-key", "no key pair can be made of this key");
        let pair = Ed25519KeyPair::from_seed_unchecked(&*seed).map_err(|_| internal())?;
        let public = pair.public_key().as_ref().try_into().map_err(|_| internal())?;
        Ok(SigningKey {
            seed,
            pair,
            public: PublicKey(public),
        })
    }

    /// Reads a key file: one line `pgproof-signing-1 <64 hexadecimal digits> <CRC-32C, 8 digits>`; lines that
    /// begin with `#` say something to people. Error: `signing-key`.
    pub fn from_key_file_text(text: &str) -> Result<Self> {
        let bad = |why: &str| {
            Error::new("signing-key", "the file does not hold a signing key")
                .detail(format!("{why}."))
                .hint("`pgproof key signing-new NAME` makes one.")
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
            return Err(bad("Its line does not begin with \"pgproof-signing-1\""));
        }
        let seed = words.next().and_then(decode).map(Zeroizing::new);
        let seed = seed.ok_or_else(|| bad("The key is not 64 hexadecimal digits"))?;
        let crc = format!("{:08x}", crc32c::crc32c(&*seed));
        if words.next() != Some(crc.as_str()) || words.next().is_some() {
            return Err(bad("The key's check digits are wrong: it was mistyped or cut"));
        }
        Self::from_seed(seed)
    }

    /// The text of the key file of a person.
    pub fn to_key_file_text(&self, name: &str) -> Zeroizing<String> {
        let digits = Zeroizing::new(encode(&*self.seed));
        Zeroizing::new(format!(
            "# The signing key of {name}. Whoever has it signs in that name.\n\
             # public: {}\n\
             {KEY_FILE_TAG} {} {:08x}\n",
            self.public,
            *digits,
            crc32c::crc32c(&*self.seed)
        ))
    }

    pub fn public(&self) -> PublicKey {
        self.public
    }

    pub fn sign(&self, message: &[u8]) -> Vec<u8> {
        self.pair.sign(message).as_ref().to_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_signature_is_the_one_of_rfc_8032() {
        // Section 7.1, test 2.
        let seed = decode("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb").unwrap();
        let key = SigningKey::from_seed(Zeroizing::new(seed)).unwrap();
        assert_eq!(
            encode(&key.public.0),
            "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c"
        );
        let expected = "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da\
                        085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00";
        assert_eq!(encode(&key.sign(&[0x72])), expected);
        assert!(key.public.verifies(&[0x72], &key.sign(&[0x72])));
        assert!(!key.public.verifies(&[0x73], &key.sign(&[0x72])));
    }

    #[test]
    fn keys_survive_their_texts_and_a_mistyped_one_is_refused() {
        let key = SigningKey::generate().unwrap();
        let text = key.to_key_file_text("ada");
        let again = SigningKey::from_key_file_text(&text).unwrap();
        assert_eq!(again.public(), key.public());
        assert_eq!(
            key.public().to_string().parse::<PublicKey>().unwrap(),
            key.public()
        );
        let seed = encode(&*key.seed);
        assert!(text.contains(&seed) && !format!("{key:?}").contains(&seed));
        let digit = if text.contains("-1 0") { "-1 1" } else { "-1 0" };
        let at = text.find("-1 ").unwrap();
        let mut mistyped = text.to_string();
        mistyped.replace_range(at..at + 4, digit);
        for bad in [
            mistyped.as_str(),
            "",
            "pgproof-key-1 00 00",
            "pgproof-signing-1 00 00",
        ] {
            let error = SigningKey::from_key_file_text(bad).unwrap_err();
            assert_eq!(error.code(), "signing-key");
            assert!(!error.render().contains(&seed[4..]));
        }
        for bad in ["", "ed25519:", "ed25519:AAAA", "rsa:AAAA"] {
            assert_eq!(bad.parse::<PublicKey>().unwrap_err().code(), "public-key-syntax");
        }
    }
}
