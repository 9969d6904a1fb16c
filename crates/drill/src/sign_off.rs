//! A person's signature under a drill: a DSSE envelope (github.com/secure-systems-lab/dsse, protocol 1.0.2) around an
//! in-toto statement (in-toto Attestation Framework, Statement v1) about the drill's manifest and facts.
//!
//! Invariants: what is signed names the bytes of the manifest and of the facts, and the link of the chain that
//! names them; an envelope is read only if it is, byte for byte, what this room writes; a signature counts for
//! a person only if the configuration vouches for the key under that person's name; nobody signs in two roles.

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use diagnostic::{Error, Result};
use jiff::Timestamp;
use repository::first_difference;
use serde::{Deserialize, Serialize};

use crate::evidence::MANIFEST;
use crate::signing::{PublicKey, SigningKey};
use crate::verdict::Status;

/// DSSE's type of an in-toto statement.
const PAYLOAD_TYPE: &str = "application/vnd.in-toto+json";
const STATEMENT_TYPE: &str = "https://in-toto.io/Statement/v1";
/// Our own predicate.
const PREDICATE_TYPE: &str = "pgproof:drill-sign-off/v1";
/// The folder of signatures below a drill's evidence.
pub const FOLDER: &str = "attestations/";

/// Whose keys are vouched for: public keys by name.
pub type Signers = BTreeMap<String, PublicKey>;

/// As what a person signs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SignerRole {
    /// Ran the drill.
    Operator,
    /// Looked at it, and is another person.
    Reviewer,
}

impl SignerRole {
    pub fn as_str(self) -> &'static str {
        match self {
            SignerRole::Operator => "operator",
            SignerRole::Reviewer => "reviewer",
        }
    }
}

impl fmt::Display for SignerRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// What a person says by signing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignOff {
    pub drill: String,
    pub role: SignerRole,
    /// The person's name in the configuration.
    pub signer: String,
    /// The verdict as it was judged again from the facts when this was signed.
    pub verdict: Status,
    /// SHA-256 of the link that names the drill's manifest.
    pub link: String,
    pub comment: Option<String>,
    pub signed_at: Timestamp,
    /// pgproof's version.
    pub tool_version: String,
}

/// The bytes that a signature is about, as hexadecimal SHA-256.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    pub manifest: String,
    pub facts: String,
}

/// An envelope that was opened: its signature is that of `key`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opened {
    pub sign_off: SignOff,
    pub subject: Subject,
    pub key: PublicKey,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Envelope {
    payload: String,
    #[serde(rename = "payloadType")]
    payload_type: String,
    signatures: Vec<EnvelopeSignature>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct EnvelopeSignature {
    keyid: String,
    sig: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Statement {
    #[serde(rename = "_type")]
    kind: String,
    subject: Vec<StatementSubject>,
    #[serde(rename = "predicateType")]
    predicate_type: String,
    predicate: SignOff,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StatementSubject {
    name: String,
    digest: Digest,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Digest {
    sha256: String,
}

/// DSSE's pre-authentication encoding.
fn pre_authentication(payload: &[u8]) -> Vec<u8> {
    let mut bytes = format!("DSSEv1 {} {PAYLOAD_TYPE} {} ", PAYLOAD_TYPE.len(), payload.len()).into_bytes();
    bytes.extend_from_slice(payload);
    bytes
}

/// The name of the file that holds the signature of this key in this role.
pub fn file_name(role: SignerRole, key: &PublicKey) -> String {
    format!("{FOLDER}{role}-{}.dsse.json", key.short())
}

/// Signs. The same arguments give the same bytes.
pub fn seal(key: &SigningKey, sign_off: SignOff, subject: &Subject) -> Result<Vec<u8>> {
    let named = |name: &str, sha256: &str| StatementSubject {
        name: name.into(),
        digest: Digest {
            sha256: sha256.into(),
        },
    };
    let statement = Statement {
        kind: STATEMENT_TYPE.into(),
        subject: vec![
            named(MANIFEST, &subject.manifest),
            named("facts.json", &subject.facts),
        ],
        predicate_type: PREDICATE_TYPE.into(),
        predicate: sign_off,
    };
    let payload = serde_json::to_vec(&statement).map_err(|error| unwritable(&error))?;
    let signature = key.sign(&pre_authentication(&payload));
    encode(&Envelope {
        payload: STANDARD.encode(&payload),
        payload_type: PAYLOAD_TYPE.into(),
        signatures: vec![EnvelopeSignature {
            keyid: key.public().to_string(),
            sig: STANDARD.encode(signature),
        }],
    })
}

fn encode(envelope: &Envelope) -> Result<Vec<u8>> {
    let mut text = serde_json::to_vec_pretty(envelope).map_err(|error| unwritable(&error))?;
    text.push(b'\n');
    Ok(text)
}

fn unwritable(error: &serde_json::Error) -> Error {
    Error::new("evidence-encode", "the signature cannot be written as JSON").caused_by(error)
}

/// Reads an envelope and checks its signature; the text says what is wrong with it.
pub fn open(bytes: &[u8]) -> Result<Opened, String> {
    let envelope: Envelope =
        serde_json::from_slice(bytes).map_err(|error| format!("it is no envelope: {error}"))?;
    let written = encode(&envelope).map_err(|error| error.message().to_string())?;
    if let Some(at) = first_difference(&written, bytes) {
        return Err(format!("byte {at} is not what was written"));
    }
    if envelope.payload_type != PAYLOAD_TYPE {
        return Err("it does not hold an in-toto statement".into());
    }
    let [signature] = envelope.signatures.as_slice() else {
        return Err(format!(
            "it has {} signatures, and not one",
            envelope.signatures.len()
        ));
    };
    let key: PublicKey = signature
        .keyid
        .parse()
        .map_err(|error: Error| format!("its key cannot be read: {}", error.message()))?;
    let decode = |text: &str, what: &str| {
        STANDARD
            .decode(text)
            .map_err(|error| format!("its {what} is no base64: {error}"))
    };
    let payload = decode(&envelope.payload, "payload")?;
    if !key.verifies(
        &pre_authentication(&payload),
        &decode(&signature.sig, "signature")?,
    ) {
        return Err("its signature is not that of its key over its payload".into());
    }
    let statement: Statement =
        serde_json::from_slice(&payload).map_err(|error| format!("its statement cannot be read: {error}"))?;
    if statement.kind != STATEMENT_TYPE || statement.predicate_type != PREDICATE_TYPE {
        return Err("its statement is of another kind".into());
    }
    let digest = |name: &str| {
        let subject = statement.subject.iter().find(|subject| subject.name == name);
        subject
            .map(|subject| subject.digest.sha256.clone())
            .ok_or_else(|| format!("its statement does not name {name}"))
    };
    Ok(Opened {
        subject: Subject {
            manifest: digest(MANIFEST)?,
            facts: digest("facts.json")?,
        },
        sign_off: statement.predicate,
        key,
    })
}

/// A good signature under a drill, and whether anybody vouches for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Signature {
    pub role: SignerRole,
    /// The name that it claims.
    pub signer: String,
    pub key: PublicKey,
    pub signed_at: Timestamp,
    pub comment: Option<String>,
    /// The configuration names this key under this name.
    pub vouched: bool,
    pub file: String,
}

/// The good signatures among a drill's files, without looking at the chain: `drill audit` does.
pub fn read(
    files: &BTreeMap<String, Result<Vec<u8>, String>>,
    drill: &str,
    signers: &Signers,
) -> Vec<Signature> {
    let sum = |name: &str| match files.get(name) {
        Some(Ok(content)) => Some(crate::evidence::sha256_hex(content)),
        _ => None,
    };
    let (Some(manifest), Some(facts)) = (sum(MANIFEST), sum("facts.json")) else {
        return Vec::new();
    };
    let subject = Subject { manifest, facts };
    let opened = files
        .iter()
        .filter(|(name, _)| name.starts_with(FOLDER))
        .filter_map(|(name, content)| {
            let opened = open(content.as_ref().ok()?).ok()?;
            (opened.subject == subject && opened.sign_off.drill == drill)
                .then(|| opened.signature(name, signers))
        });
    opened.collect()
}

impl Opened {
    /// The signature, and whether `signers` vouch for it.
    pub fn signature(self, file: &str, signers: &Signers) -> Signature {
        let said = self.sign_off;
        Signature {
            role: said.role,
            vouched: signers.get(&said.signer) == Some(&self.key),
            signer: said.signer,
            key: self.key,
            signed_at: said.signed_at,
            comment: said.comment,
            file: file.into(),
        }
    }
}

/// Whether both required signatures are there: an operator's and a reviewer's, by different people with
/// different keys, both vouched for.
pub fn is_signed(signatures: &[Signature]) -> bool {
    let of = |role: SignerRole| signatures.iter().filter(move |it| it.vouched && it.role == role);
    of(SignerRole::Operator)
        .any(|one| of(SignerRole::Reviewer).any(|other| one.key != other.key && one.signer != other.signer))
}

/// The status as it is shown: nothing is plainly PASSED before two people have signed.
pub fn shown_status(status: Status, signatures: &[Signature]) -> String {
    if is_signed(signatures) {
        status.to_string()
    } else {
        format!("{status} (unsigned)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sign_off(role: SignerRole, signer: &str) -> SignOff {
        SignOff {
            drill: "pitr_drill_20261120T204202Z".into(),
            role,
            signer: signer.into(),
            verdict: Status::Passed,
            link: "ef".repeat(32),
            comment: Some("seen".into()),
            signed_at: "2026-11-20T21:00:00Z".parse().unwrap(),
            tool_version: "0.1.0".into(),
        }
    }

    fn subject() -> Subject {
        Subject {
            manifest: "ab".repeat(32),
            facts: "cd".repeat(32),
        }
    }

    #[test]
    fn an_envelope_opens_and_any_changed_byte_closes_it() {
        let key = SigningKey::generate().unwrap();
        let said = sign_off(SignerRole::Operator, "ada");
        let bytes = seal(&key, said.clone(), &subject()).unwrap();
        let opened = open(&bytes).unwrap();
        assert_eq!(
            (opened.sign_off, opened.subject, opened.key),
            (said, subject(), key.public())
        );
        for at in 0..bytes.len() {
            for flip in [1, 0x20] {
                let mut changed = bytes.clone();
                changed[at] ^= flip;
                assert!(open(&changed).is_err(), "byte {at} ({:?})", char::from(bytes[at]));
            }
            assert!(open(&bytes[..at]).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn the_encoding_before_signing_is_that_of_dsse() {
        // The specification's own example has this shape: type and body, each behind its length.
        assert_eq!(
            pre_authentication(b"hello world"),
            b"DSSEv1 28 application/vnd.in-toto+json 11 hello world"
        );
    }

    #[test]
    fn a_drill_is_signed_by_two_people_with_two_keys_that_are_vouched_for() {
        let keys = [SigningKey::generate().unwrap(), SigningKey::generate().unwrap()];
        let signature = |role, signer: &str, key: usize, vouched| Signature {
            role,
            signer: signer.into(),
            key: keys[key].public(),
            signed_at: "2026-11-20T21:00:00Z".parse().unwrap(),
            comment: None,
            vouched,
            file: String::new(),
        };
        let operator = signature(SignerRole::Operator, "ada", 0, true);
        let signed = |other: Signature| is_signed(&[operator.clone(), other]);
        assert!(signed(signature(SignerRole::Reviewer, "bob", 1, true)));
        assert!(
            !signed(signature(SignerRole::Reviewer, "bob", 0, true)),
            "one key"
        );
        assert!(
            !signed(signature(SignerRole::Reviewer, "ada", 1, true)),
            "one name"
        );
        assert!(
            !signed(signature(SignerRole::Reviewer, "bob", 1, false)),
            "nobody vouches"
        );
        assert!(
            !signed(signature(SignerRole::Operator, "bob", 1, true)),
            "one role"
        );
        assert_eq!(shown_status(Status::Passed, &[operator]), "PASSED (unsigned)");
    }
}
