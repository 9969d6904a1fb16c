//! The evidence of a drill: which files it is made of, and where they are kept.
//!
//! Invariants: the manifest names every other file with its SHA-256, and the link in the repository's chain
//! names the manifest; nothing is overwritten; a place that cannot be written is reported and does not keep
//! the others from being written. The files hold what the facts hold: no row data, keys or passwords.

use std::path::{Path, PathBuf};

use aws_lc_rs::digest::{SHA256, digest};
use diagnostic::{Error, Result};
use jiff::Timestamp;
use repository::ClusterRepository;
/// The manifest's name.
pub use repository::MANIFEST;

use crate::facts::Facts;
use crate::options::Documents;
use crate::verdict::Verdict;

/// The chain's name, beside a bundle outside of the repository.
pub const CHAIN: &str = "chain.json";

/// A drill's files, and the manifest over them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bundle {
    /// Name and content, in order of name; the manifest last.
    pub files: Documents,
    /// SHA-256 of the manifest.
    pub manifest: [u8; 32],
}

/// The facts with the verdict's words among them: `facts.json`, and what `drill run --json` prints. The verdict stands there
/// for readers; it is judged from the rest.
pub fn document(facts: &Facts, verdict: &Verdict) -> serde_json::Value {
    let mut value = serde_json::to_value(facts).unwrap_or_default();
    if let Some(object) = value.as_object_mut() {
        let rto = facts.rto.as_ref().map(|rto| rto.total_ms as f64 / 1000.0);
        object.insert("verdict".into(), serde_json::json!(verdict.status));
        object.insert("reasons".into(), serde_json::json!(verdict.reasons));
        object.insert("rto_seconds".into(), serde_json::json!(rto));
    }
    value
}

/// The files that facts and verdict are, byte for byte.
pub fn derived(facts: &Facts, verdict: &Verdict) -> Result<Documents> {
    let mut log = facts.server_log.join("\n");
    log.push('\n');
    Ok(vec![
        ("facts.json".to_string(), json(&document(facts, verdict))?),
        ("server.log".to_string(), log.into_bytes()),
        ("verdict.json".to_string(), json(verdict)?),
    ])
}

/// Puts the evidence together. `documents` are made from the same facts and verdict.
pub fn bundle(facts: &Facts, verdict: &Verdict, documents: Documents) -> Result<Bundle> {
    let mut files = derived(facts, verdict)?;
    for (name, content) in documents {
        if !files.iter().any(|(known, _)| *known == name) && name != MANIFEST {
            files.push((name, content));
        }
    }
    files.sort();
    let mut manifest = String::new();
    for (name, content) in &files {
        manifest.push_str(&format!("{}  {name}\n", sha256_hex(content)));
    }
    let sum = sha256(manifest.as_bytes());
    files.push((MANIFEST.to_string(), manifest.into_bytes()));
    Ok(Bundle { files, manifest: sum })
}

/// Keeps the evidence in the repository and appends to its chain; the names of the files.
pub fn keep(
    repository: &ClusterRepository,
    drill_id: &str,
    bundle: &Bundle,
    now: Timestamp,
) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for (name, content) in &bundle.files {
        repository.put_evidence(drill_id, name, content)?;
        names.push(name.clone());
    }
    repository.append_link(drill_id, bundle.manifest, now)?;
    Ok(names)
}

/// Writes the evidence to `<folder>/<drill id>/`, and the reports as `<folder>/<drill id>.md` and `.html`; the
/// folder, and the former's path.
pub fn write(folder: &Path, drill_id: &str, bundle: &Bundle) -> Result<(PathBuf, Option<PathBuf>)> {
    let own = folder.join(drill_id);
    let failed = |path: &Path, error: &std::io::Error| {
        Error::io(
            "evidence-write",
            format!("cannot write \"{}\"", path.display()),
            error,
        )
    };
    std::fs::create_dir_all(&own).map_err(|error| failed(&own, &error))?;
    let mut report = None;
    for (name, content) in &bundle.files {
        let path = own.join(name);
        std::fs::write(&path, content).map_err(|error| failed(&path, &error))?;
        if let Some(ending) = name.strip_prefix("report.") {
            let path = folder.join(format!("{drill_id}.{ending}"));
            std::fs::write(&path, content).map_err(|error| failed(&path, &error))?;
            if ending == "md" {
                report = Some(path);
            }
        }
    }
    Ok((own, report))
}

/// Writes the chain up to this drill beside the bundle, for whoever has no key.
pub fn write_chain(folder: &Path, drill_id: &str, repository: &ClusterRepository) -> Result<()> {
    let path = folder.join(drill_id).join(CHAIN);
    let chain = repository.chain()?.up_to(drill_id).to_file()?;
    std::fs::write(&path, chain).map_err(|error| {
        Error::io(
            "evidence-write",
            format!("cannot write \"{}\"", path.display()),
            &error,
        )
    })
}

fn json(value: &impl serde::Serialize) -> Result<Vec<u8>> {
    let mut text = serde_json::to_vec_pretty(value).map_err(|error| {
        Error::new("evidence-encode", "the evidence cannot be written as JSON").caused_by(&error)
    })?;
    text.push(b'\n');
    Ok(text)
}

pub(crate) fn sha256(bytes: &[u8]) -> [u8; 32] {
    digest(&SHA256, bytes).as_ref().try_into().unwrap_or_default()
}

/// SHA-256, hexadecimal.
pub fn sha256_hex(bytes: &[u8]) -> String {
    repository::hex::encode(&sha256(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sha_256_is_the_one_that_everybody_computes() {
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(sha256_hex(b""), empty);
    }
}
