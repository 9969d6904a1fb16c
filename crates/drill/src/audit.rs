//! Repeats, from a stored bundle alone, everything that was concluded when the drill was recorded: each hash, the
//! chain, the signatures, and the verdict itself.
//!
//! Invariants: no key, no server, no clock, no I/O; what is missing or cannot be read is a finding and never
//! agreement; every byte is under a hash, and what can be made again from the facts is made again, so that a
//! finding can say which byte differs. A bundle that an older version recorded is read as it was written.

use std::collections::{BTreeMap, BTreeSet};

use diagnostic::{Error, Result};
use repository::{Chain, ChainLink, first_difference};
use serde::Serialize;

use crate::evidence::{CHAIN, MANIFEST, derived, sha256_hex};
use crate::facts::{FACTS_VERSION, Facts};
use crate::sign_off::{self, Signature, Signers};
use crate::verdict::{Reason, Status, Verdict, judge};

/// A drill's evidence as it lies somewhere.
#[derive(Debug, Clone)]
pub struct StoredBundle {
    /// Content by name, or why a file cannot be had.
    pub files: BTreeMap<String, Result<Vec<u8>, String>>,
    /// The chain, or why there is none.
    pub chain: Result<Chain, String>,
}

/// What does not agree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AuditFinding {
    /// A stable word: `file-differs`.
    pub code: &'static str,
    /// The file, or the object of a link.
    pub file: String,
    /// The first byte that differs, where that can be told.
    pub byte: Option<u64>,
    /// Sentences.
    pub text: String,
}

/// What repeating everything gave.
#[derive(Debug, Clone)]
pub struct Audit {
    /// By the facts.
    pub drill: Option<String>,
    /// As it was read; `None` if it could not be.
    pub facts: Option<Facts>,
    /// Judged again from the facts.
    pub verdict: Option<Verdict>,
    /// As it was recorded.
    pub recorded: Option<Status>,
    /// Files that are as the manifest says.
    pub files_whole: usize,
    /// Links of the chain that were looked at.
    pub links: u32,
    /// The link that names the manifest, with the SHA-256 of its bytes.
    pub link: Option<(ChainLink, String)>,
    /// Good signatures.
    pub signatures: Vec<Signature>,
    /// Nothing if everything agrees.
    pub findings: Vec<AuditFinding>,
}

impl Audit {
    /// Whether everything is as it was recorded, and the recorded verdict is the one that the facts give.
    pub fn agrees(&self) -> bool {
        self.findings.is_empty()
    }
}

/// Looks at everything. `signers` are the keys that somebody vouches for. Error: `evidence-newer` if a newer
/// version wrote the facts: it is no finding that we cannot read them.
pub fn audit(bundle: &StoredBundle, signers: &Signers) -> Result<Audit> {
    let mut looking = Looking {
        bundle,
        audit: Audit {
            drill: None,
            facts: None,
            verdict: None,
            recorded: None,
            files_whole: 0,
            links: 0,
            link: None,
            signatures: Vec::new(),
            findings: Vec::new(),
        },
    };
    let expected = looking.judge_again()?;
    let manifest = looking.manifest(&expected);
    let added = looking.chain();
    looking.signatures(signers);
    for name in bundle.files.keys() {
        let known = name == MANIFEST || name == CHAIN || manifest.contains(name) || added.contains(name);
        if !known {
            looking.find(
                "file-unknown",
                name,
                None,
                "Neither the manifest nor the chain names it.".into(),
            );
        }
    }
    Ok(looking.audit)
}

struct Looking<'a> {
    bundle: &'a StoredBundle,
    audit: Audit,
}

impl<'a> Looking<'a> {
    fn find(&mut self, code: &'static str, file: &str, byte: Option<usize>, text: String) {
        self.audit.findings.push(AuditFinding {
            code,
            file: file.into(),
            byte: byte.map(|at| at as u64),
            text,
        });
    }

    /// A file's content; a finding if it cannot be had.
    fn file(&mut self, name: &str) -> Option<&'a [u8]> {
        match self.bundle.files.get(name) {
            Some(Ok(content)) => Some(content),
            Some(Err(why)) => {
                self.find("file-damaged", name, None, why.clone());
                None
            }
            None => {
                self.find("file-missing", name, None, "It is not there.".into());
                None
            }
        }
    }

    /// The verdict from the facts, and what follows from both, byte for byte.
    fn judge_again(&mut self) -> Result<BTreeMap<String, Vec<u8>>> {
        let Some(bytes) = self.file("facts.json") else {
            return Ok(BTreeMap::new());
        };
        let facts: Facts = match serde_json::from_slice(bytes) {
            Ok(facts) => facts,
            Err(error) => {
                newer(bytes)?;
                let text = format!("The facts cannot be read: {error}.");
                self.find("facts-unreadable", "facts.json", None, text);
                return Ok(BTreeMap::new());
            }
        };
        newer(bytes)?;
        let verdict = judge(&facts);
        let expected: BTreeMap<String, Vec<u8>> = derived(&facts, &verdict)?.into_iter().collect();
        self.compare_words(bytes, &facts, &verdict, &expected);
        self.compare_verdict(&facts, &verdict, &expected);
        self.audit.drill = Some(facts.identity.drill_id.clone());
        self.audit.verdict = Some(verdict);
        self.audit.facts = Some(facts);
        Ok(expected)
    }

    /// The verdict's words among the facts.
    fn compare_words(
        &mut self,
        bytes: &[u8],
        facts: &Facts,
        verdict: &Verdict,
        expected: &BTreeMap<String, Vec<u8>>,
    ) {
        let stored: serde_json::Value = serde_json::from_slice(bytes).unwrap_or_default();
        let status = stored.get("verdict").and_then(|word| word.as_str());
        let rto = facts.rto.as_ref().map(|rto| rto.total_ms as f64 / 1000.0);
        let same_rto = stored.get("rto_seconds").and_then(serde_json::Value::as_f64) == rto;
        if status == Some(verdict.status.as_str()) && same_rto {
            return;
        }
        let byte = expected
            .get("facts.json")
            .and_then(|again| first_difference(again, bytes));
        let text = format!(
            "It gives its verdict as {} and its recovery time as {:?} s; the facts in it give {} and {rto:?} s.",
            status.unwrap_or("none"),
            stored.get("rto_seconds").and_then(serde_json::Value::as_f64),
            verdict.status,
        );
        self.find("facts-differ", "facts.json", byte, text);
    }

    /// The recorded verdict. Another version of pgproof may word a reason differently, but not give other reasons.
    fn compare_verdict(&mut self, facts: &Facts, verdict: &Verdict, expected: &BTreeMap<String, Vec<u8>>) {
        let Some(bytes) = self.file("verdict.json") else {
            return;
        };
        let recorded: Verdict = match serde_json::from_slice(bytes) {
            Ok(recorded) => recorded,
            Err(error) => {
                let text = format!("The verdict cannot be read: {error}.");
                self.find("verdict-unreadable", "verdict.json", None, text);
                return;
            }
        };
        self.audit.recorded = Some(recorded.status);
        let same_version = facts.identity.tool_version == env!("CARGO_PKG_VERSION");
        let said = |verdict: &Verdict| -> Vec<_> {
            let words = |reason: &Reason| {
                let text = same_version.then(|| reason.text.clone());
                (reason.code.clone(), reason.check.clone(), reason.weight, text)
            };
            verdict.reasons.iter().map(words).collect()
        };
        if recorded.status == verdict.status && said(&recorded) == said(verdict) {
            return;
        }
        let byte = expected
            .get("verdict.json")
            .and_then(|again| first_difference(again, bytes));
        let codes = |verdict: &Verdict| {
            let codes: Vec<&str> = verdict
                .reasons
                .iter()
                .map(|reason| reason.code.as_str())
                .collect();
            match codes.is_empty() {
                true => "no reason".to_string(),
                false => codes.join(", "),
            }
        };
        let text = format!(
            "It says {} ({}); judged again, the facts give {} ({}).",
            recorded.status,
            codes(&recorded),
            verdict.status,
            codes(verdict)
        );
        self.find("verdict-differs", "verdict.json", byte, text);
    }

    /// Each file against the manifest; the names that it has.
    fn manifest(&mut self, expected: &BTreeMap<String, Vec<u8>>) -> BTreeSet<String> {
        let mut names = BTreeSet::new();
        let Some(bytes) = self.file(MANIFEST) else {
            return names;
        };
        let mut at = 0;
        for line in bytes.split_inclusive(|byte| *byte == b'\n') {
            let parsed = std::str::from_utf8(line)
                .ok()
                .and_then(|line| line.strip_suffix('\n'))
                .and_then(|line| line.split_once("  "))
                .filter(|(sum, name)| sum.len() == 64 && !name.is_empty());
            match parsed {
                Some((sum, name)) => {
                    names.insert(name.to_string());
                    self.against_manifest(name, sum, expected);
                }
                None => {
                    let text = "A line is not a SHA-256, two blanks and a name.".to_string();
                    self.find("manifest-syntax", MANIFEST, Some(at), text);
                }
            }
            at += line.len();
        }
        for name in ["facts.json", "verdict.json"] {
            if !names.contains(name) {
                let text = format!("It does not name {name}.");
                self.find("manifest-incomplete", MANIFEST, None, text);
            }
        }
        names
    }

    fn against_manifest(&mut self, name: &str, sum: &str, expected: &BTreeMap<String, Vec<u8>>) {
        let content = match self.bundle.files.get(name) {
            // Told when they were read.
            None | Some(Err(_)) if matches!(name, "facts.json" | "verdict.json") => return,
            _ => self.file(name),
        };
        let Some(content) = content else { return };
        let found = sha256_hex(content);
        if found == sum {
            self.audit.files_whole += 1;
            return;
        }
        // What was recorded can be made again from the facts: then the byte can be named.
        let recorded = expected.get(name).filter(|again| sha256_hex(again) == sum);
        let byte = recorded.and_then(|again| first_difference(again, content));
        let text = format!("Its SHA-256 is {found}; the manifest says {sum}.");
        self.find("file-differs", name, byte, text);
    }

    /// The chain, and this drill's links in it; the names of files that were added.
    fn chain(&mut self) -> BTreeSet<String> {
        let mut added = BTreeSet::new();
        let bundle = self.bundle;
        let chain = match &bundle.chain {
            Ok(chain) => chain,
            Err(why) => {
                let text = format!("There is no chain to compare with: {why}.");
                self.find("chain-missing", CHAIN, None, text);
                return added;
            }
        };
        let result = chain.check();
        self.audit.links = result.links;
        for finding in result.findings {
            self.find("chain-broken", &finding.object, None, finding.detail);
        }
        let Some(drill) = self.audit.drill.clone() else {
            return added;
        };
        let manifest = match bundle.files.get(MANIFEST) {
            Some(Ok(bytes)) => sha256_hex(bytes),
            _ => return added,
        };
        let mut named = false;
        for (link, sum) in chain.readable() {
            if link.drill != drill {
                continue;
            }
            if link.manifest != manifest {
                let text = format!(
                    "Link {} names a manifest with the SHA-256 {}; this one has {manifest}.",
                    link.number, link.manifest
                );
                self.find("manifest-differs", MANIFEST, None, text);
                named = true;
                continue;
            }
            match &link.addition {
                None => {
                    named = true;
                    self.audit.link.get_or_insert((link, sum));
                }
                Some(addition) => {
                    added.insert(addition.file.clone());
                    if let Some(content) = self.file(&addition.file) {
                        let found = sha256_hex(content);
                        if found != addition.sha256 {
                            let text = format!(
                                "Its SHA-256 is {found}; link {} says {}.",
                                link.number, addition.sha256
                            );
                            self.find("file-differs", &addition.file, None, text);
                        }
                    }
                }
            }
        }
        if !named {
            let text = format!("No link of the chain names drill {drill}.");
            self.find("chain-without-drill", CHAIN, None, text);
        }
        added
    }

    fn signatures(&mut self, signers: &Signers) {
        let bundle = self.bundle;
        let sum = |name: &str| match bundle.files.get(name) {
            Some(Ok(content)) => Some(sha256_hex(content)),
            _ => None,
        };
        for (name, content) in &bundle.files {
            let Ok(content) = content else { continue };
            if !name.starts_with(sign_off::FOLDER) {
                continue;
            }
            let opened = match sign_off::open(content) {
                Ok(opened) => opened,
                Err(why) => {
                    self.find(
                        "signature-bad",
                        name,
                        None,
                        format!("The envelope does not hold: {why}."),
                    );
                    continue;
                }
            };
            let said = &opened.sign_off;
            let about = [
                (Some(&said.drill) == self.audit.drill.as_ref(), "another drill"),
                (
                    sum(MANIFEST).as_ref() == Some(&opened.subject.manifest),
                    "another manifest",
                ),
                (
                    sum("facts.json").as_ref() == Some(&opened.subject.facts),
                    "other facts",
                ),
                (
                    self.audit.link.as_ref().is_none_or(|(_, sum)| *sum == said.link),
                    "another link of the chain",
                ),
                (
                    self.audit
                        .verdict
                        .as_ref()
                        .is_none_or(|it| it.status == said.verdict),
                    "another verdict",
                ),
            ];
            if let Some((_, what)) = about.iter().find(|(same, _)| !same) {
                let text = format!("The signature of {} is about {what}.", said.signer);
                self.find("signature-elsewhere", name, None, text);
                continue;
            }
            self.audit.signatures.push(opened.signature(name, signers));
        }
    }
}

fn newer(facts: &[u8]) -> Result<()> {
    #[derive(serde::Deserialize)]
    struct Versioned {
        version: u32,
    }
    match serde_json::from_slice::<Versioned>(facts) {
        Ok(Versioned { version }) if version > FACTS_VERSION => Err(Error::new(
            "evidence-newer",
            "a newer pgproof recorded this drill",
        )
        .detail(format!(
            "Its facts have version {version}; this program knows versions up to {FACTS_VERSION}."
        ))
        .hint("Audit it with the version that recorded it, or a newer one.")),
        _ => Ok(()),
    }
}
