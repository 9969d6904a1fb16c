//! The hash chain over all evidence, as a value: whoever holds its links can repeat every hash, without a
//! repository and without a key.
//!
//! Invariants: nothing is believed that was not hashed again; a link that cannot be read breaks the chain
//! there and is never skipped silently. `docs/format.md` section 10.

use aws_lc_rs::digest::{SHA256, digest};
use diagnostic::{Error, Result};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::verify::Finding;

/// The version of the file that [`Chain::to_file`] writes.
const FILE_VERSION: u32 = 1;

/// One link of the chain over all evidence.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChainLink {
    /// 1, or 2 with an addition.
    pub version: u32,
    /// From 1, without gaps.
    pub number: u32,
    /// SHA-256 of the bytes of the link before, hexadecimal; for the first one of the chain's beginning.
    pub previous: String,
    pub drill: String,
    /// SHA-256 of the drill's manifest, hexadecimal.
    pub manifest: String,
    /// What was put beside the drill's evidence later: a signature, a follow-up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub addition: Option<Addition>,
    pub at: Timestamp,
}

/// A file of evidence that is younger than the drill's manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Addition {
    /// Its name below the drill's.
    pub file: String,
    /// SHA-256 of its bytes, hexadecimal.
    pub sha256: String,
}

/// What looking at the chain found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ChainResult {
    pub links: u32,
    /// What is wrong, nothing if the chain is whole.
    pub findings: Vec<Finding>,
}

/// A link as it was found: its bytes, or why they cannot be had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredLink {
    /// By its object's name.
    pub number: u32,
    /// The object, or the place in a file.
    pub object: String,
    pub plain: Result<Vec<u8>, String>,
}

/// A chain, or its beginning up to some link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// The repository's identifier, hexadecimal.
    pub repository: String,
    pub cluster: String,
    /// Oldest first.
    pub links: Vec<StoredLink>,
}

/// What is kept beside a bundle outside of the repository.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ChainFile {
    version: u32,
    repository: String,
    cluster: String,
    /// Each link's JSON as it was sealed.
    links: Vec<String>,
    /// SHA-256 of the last link.
    head: String,
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    crate::hex::encode(digest(&SHA256, bytes).as_ref())
}

/// What the first link names as its predecessor: SHA-256 of `pgproof evidence chain v1`, the repository's
/// identifier and the cluster's name.
pub(crate) fn beginning(repository: &[u8; 16], cluster: &str) -> String {
    let mut bytes = b"pgproof evidence chain v1".to_vec();
    bytes.extend_from_slice(repository);
    bytes.extend_from_slice(cluster.as_bytes());
    sha256(&bytes)
}

impl Chain {
    /// Repeats every hash. That a drill's evidence still has the manifest that its link names is for the
    /// caller to compare, who has the files.
    pub fn check(&self) -> ChainResult {
        let mut findings = Vec::new();
        let mut expected = crate::hex::decode::<16>(&self.repository).map(|id| beginning(&id, &self.cluster));
        if expected.is_none() {
            findings.push(finding(
                "repository",
                1,
                "The repository's identifier is none.".into(),
            ));
        }
        let mut next = 1;
        for stored in &self.links {
            let number = stored.number;
            let mut bad = |detail: String| findings.push(finding(&stored.object, number, detail));
            if number != next {
                bad(format!("Link {next} is missing."));
                expected = None;
            }
            next = number.saturating_add(1);
            let plain = match &stored.plain {
                Ok(plain) => plain,
                Err(why) => {
                    bad(why.clone());
                    expected = None;
                    continue;
                }
            };
            match serde_json::from_slice::<ChainLink>(plain) {
                Ok(link) => {
                    if link.number != number {
                        bad(format!("It says that it is link {}.", link.number));
                    }
                    if expected
                        .as_ref()
                        .is_some_and(|expected| *expected != link.previous)
                    {
                        bad("It does not follow from the link before it.".into());
                    }
                }
                Err(error) => bad(format!("It cannot be understood: {error}.")),
            }
            expected = Some(sha256(plain));
        }
        ChainResult {
            links: next - 1,
            findings,
        }
    }

    /// The links that can be read, oldest first, each with the SHA-256 of its bytes.
    pub fn readable(&self) -> Vec<(ChainLink, String)> {
        let plain = self.links.iter().filter_map(|stored| stored.plain.as_ref().ok());
        plain
            .filter_map(|plain| Some((serde_json::from_slice(plain).ok()?, sha256(plain))))
            .collect()
    }

    /// The same chain, cut behind the last link that names this drill.
    pub fn up_to(mut self, drill: &str) -> Chain {
        let names_it = |stored: &StoredLink| {
            let plain = stored.plain.as_ref().ok();
            plain
                .and_then(|plain| serde_json::from_slice::<ChainLink>(plain).ok())
                .is_some_and(|link| link.drill == drill)
        };
        let keep = self
            .links
            .iter()
            .rposition(names_it)
            .map_or(self.links.len(), |at| at + 1);
        self.links.truncate(keep);
        self
    }

    /// The chain as one file, for whoever has no key. Error: `evidence-chain` when a link cannot be read.
    pub fn to_file(&self) -> Result<Vec<u8>> {
        let mut links = Vec::new();
        for stored in &self.links {
            let text = stored
                .plain
                .as_ref()
                .ok()
                .and_then(|plain| String::from_utf8(plain.clone()).ok());
            links.push(text.ok_or_else(|| {
                Error::new("evidence-chain", "the chain of evidence is broken")
                    .detail(format!("Link {} cannot be read.", stored.number))
                    .hint("`pgproof verify` says what is wrong.")
            })?);
        }
        let head = links
            .last()
            .map(|link| sha256(link.as_bytes()))
            .unwrap_or_default();
        encode(&ChainFile {
            version: FILE_VERSION,
            repository: self.repository.clone(),
            cluster: self.cluster.clone(),
            links,
            head,
        })
    }

    /// Reads such a file. The text says what is wrong with it: it must be, byte for byte, what
    /// [`to_file`](Self::to_file) writes, so that no byte of it can differ unnoticed.
    pub fn from_file(bytes: &[u8]) -> Result<Chain, String> {
        let file: ChainFile =
            serde_json::from_slice(bytes).map_err(|error| format!("it cannot be understood: {error}"))?;
        if file.version != FILE_VERSION {
            return Err(format!("it has version {}, and not {FILE_VERSION}", file.version));
        }
        let written = encode(&file).map_err(|error| error.message().to_string())?;
        if let Some(at) = first_difference(&written, bytes) {
            return Err(format!("byte {at} is not what was written"));
        }
        let id = crate::hex::decode::<16>(&file.repository).map(|id| crate::hex::encode(&id));
        if id.as_ref() != Some(&file.repository) {
            return Err("its repository's identifier is none".into());
        }
        let head = file
            .links
            .last()
            .map(|link| sha256(link.as_bytes()))
            .unwrap_or_default();
        if head != file.head {
            return Err("its last link is not the one that `head` names".into());
        }
        let links = file
            .links
            .into_iter()
            .zip(1u32..)
            .map(|(text, number)| StoredLink {
                number,
                object: format!("link {number}"),
                plain: Ok(text.into_bytes()),
            });
        Ok(Chain {
            repository: file.repository,
            cluster: file.cluster,
            links: links.collect(),
        })
    }
}

/// Where two byte strings differ first (the end of the shorter one counts), or `None` if they are equal.
pub fn first_difference(a: &[u8], b: &[u8]) -> Option<usize> {
    let common = a.iter().zip(b).position(|(a, b)| a != b);
    common.or_else(|| (a.len() != b.len()).then(|| a.len().min(b.len())))
}

fn encode(file: &ChainFile) -> Result<Vec<u8>> {
    let mut text = serde_json::to_vec_pretty(file).map_err(|error| {
        Error::new("evidence-encode", "the chain cannot be written as JSON").caused_by(&error)
    })?;
    text.push(b'\n');
    Ok(text)
}

fn finding(object: &str, number: u32, detail: String) -> Finding {
    Finding {
        code: "evidence-chain".into(),
        object: object.into(),
        detail,
        affects: vec![format!("evidence from link {number} on")],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain() -> Chain {
        let mut previous = beginning(&[0xab; 16], "main");
        let mut links = Vec::new();
        for number in 1..=3 {
            let link = ChainLink {
                version: if number == 3 { 2 } else { 1 },
                number,
                previous,
                drill: format!("drill-{}", number.min(2)),
                manifest: "ab".repeat(32),
                addition: (number == 3).then(|| Addition {
                    file: "attestations/operator.dsse.json".into(),
                    sha256: "cd".repeat(32),
                }),
                at: "2026-08-15T02:00:03Z".parse().unwrap(),
            };
            let plain = serde_json::to_vec(&link).unwrap();
            previous = sha256(&plain);
            links.push(StoredLink {
                number,
                object: format!("link {number}"),
                plain: Ok(plain),
            });
        }
        Chain {
            repository: "ab".repeat(16),
            cluster: "main".into(),
            links,
        }
    }

    #[test]
    fn a_chain_survives_its_file_and_any_changed_byte_is_noticed() {
        let chain = chain();
        assert!(chain.check().findings.is_empty(), "{:?}", chain.check());
        let file = chain.to_file().unwrap();
        assert_eq!(Chain::from_file(&file).unwrap(), chain);
        for at in 0..file.len() {
            for flip in [1, 0x20] {
                let mut changed = file.clone();
                changed[at] ^= flip;
                let noticed = match Chain::from_file(&changed) {
                    Ok(chain) => !chain.check().findings.is_empty(),
                    Err(_) => true,
                };
                assert!(noticed, "byte {at}: {:?}", char::from(file[at]));
            }
            assert!(Chain::from_file(&file[..at]).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn a_chain_is_cut_behind_what_belongs_to_a_drill() {
        assert_eq!(chain().up_to("drill-1").links.len(), 1);
        assert_eq!(chain().up_to("drill-2").links.len(), 3);
        let readable = chain().readable();
        assert_eq!(readable[1].0.previous, readable[0].1);
        assert_eq!(
            readable[2].0.addition.as_ref().unwrap().file,
            "attestations/operator.dsse.json"
        );
    }

    #[test]
    fn the_first_difference_is_where_one_of_two_ends_too() {
        assert_eq!(first_difference(b"abc", b"abc"), None);
        assert_eq!(first_difference(b"abc", b"axc"), Some(1));
        assert_eq!(first_difference(b"abc", b"ab"), Some(2));
    }
}
