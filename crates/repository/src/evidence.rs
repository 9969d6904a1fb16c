//! Evidence of drills, and the hash chain over all of it.
//!
//! Invariants: a file of evidence is written once; a link names the SHA-256 of the link before it, and of the
//! manifest of the drill it stands for, so that evidence that was changed, removed or put in later shows.
//! Links are plain JSON, sealed: whoever can open them can repeat the hashes with common tools.

use diagnostic::{Error, Result};
use jiff::Timestamp;

use crate::actions::{ACTION, BEGUN};
use crate::container::Kind;
use crate::evidence_chain::{Addition, Chain, ChainLink, ChainResult, StoredLink, beginning, sha256};
use crate::names::parse_counter;
use crate::repository::ClusterRepository;
use crate::store::{Put, check_name};
use crate::verify::Finding;

/// The longest name of a drill, in bytes.
const DRILL_BYTES_MAX: usize = 100;
/// Other drills that may be faster when a link is appended.
const APPENDS_TRIED: u32 = 1000;

/// How the names of registrations begin; no drill's does.
const REGISTRATION: &str = "registered_";
/// The file of a drill, or of a registration, that its first link stands for.
pub const MANIFEST: &str = "manifest.sha256";

/// The name of a registration that is made now: `registered_YYYYMMDDTHHMMSS.ffffffZ`.
pub fn registration_id(now: Timestamp) -> String {
    format!("{REGISTRATION}{}", now.strftime("%Y%m%dT%H%M%S.%6fZ"))
}

impl ClusterRepository {
    fn evidence_name(&self, drill: &str, file: &str) -> Result<String> {
        let name = format!("{}{drill}/{file}", self.names().evidence());
        let plain = !drill.contains('/') && !drill.is_empty() && drill.len() <= DRILL_BYTES_MAX;
        if plain && check_name(&name).is_ok() {
            return Ok(name);
        }
        Err(Error::new(
            "evidence-name",
            format!(
                "\"{}/{}\" cannot name evidence",
                drill.escape_default(),
                file.escape_default()
            ),
        ))
    }

    /// Keeps a file of a drill's evidence; writing it again with the same content is fine. Errors:
    /// `evidence-exists`, `evidence-name`.
    pub fn put_evidence(&self, drill: &str, file: &str, bytes: &[u8]) -> Result<()> {
        let name = self.evidence_name(drill, file)?;
        if self.put_small(Kind::Evidence, &name, bytes)? == Put::Created
            || self.get_small(Kind::Evidence, &name)?.as_deref() == Some(bytes)
        {
            return Ok(());
        }
        Err(Error::new(
            "evidence-exists",
            format!("drill {drill} has a file \"{file}\" already, with other content"),
        )
        .detail("Evidence is never changed."))
    }

    pub fn get_evidence(&self, drill: &str, file: &str) -> Result<Option<Vec<u8>>> {
        self.get_small(Kind::Evidence, &self.evidence_name(drill, file)?)
    }

    /// The drills that have evidence, sorted.
    pub fn list_drills(&self) -> Result<Vec<String>> {
        let mut names = self.store().list_folders(&self.names().evidence())?;
        names.retain(|name| !name.starts_with(REGISTRATION) && !name.starts_with(ACTION));
        Ok(names)
    }

    /// The drills that were registered before they were run, sorted.
    pub fn list_registrations(&self) -> Result<Vec<String>> {
        let mut names = self.store().list_folders(&self.names().evidence())?;
        names.retain(|name| name.starts_with(REGISTRATION));
        Ok(names)
    }

    /// The files of a drill's evidence, sorted.
    pub fn list_evidence(&self, drill: &str) -> Result<Vec<String>> {
        let prefix = self.evidence_name(drill, "x")?;
        let prefix = prefix.strip_suffix('x').unwrap_or(&prefix);
        let objects = self.store().list(prefix)?;
        Ok(objects
            .iter()
            .filter_map(|object| Some(object.name.strip_prefix(prefix)?.to_string()))
            .collect())
    }

    fn link_name(&self, number: u32) -> String {
        format!("{}{number:08}", self.names().evidence_chain())
    }

    /// Appends to the hash chain. `manifest` is the SHA-256 of the drill's manifest.
    pub fn append_link(&self, drill: &str, manifest: [u8; 32], now: Timestamp) -> Result<ChainLink> {
        self.append(drill, crate::hex::encode(&manifest), None, now)
    }

    /// Keeps a file that was made after the drill's manifest (a signature, a follow-up), then appends a link that
    /// names it. `manifest` is the hexadecimal SHA-256 of the drill's manifest. A file that is kept already with
    /// this content gets its link if a crash has kept it from having one. Errors as
    /// [`put_evidence`](Self::put_evidence).
    pub fn add_evidence(
        &self,
        drill: &str,
        manifest: &str,
        file: &str,
        bytes: &[u8],
        now: Timestamp,
    ) -> Result<ChainLink> {
        self.put_evidence(drill, file, bytes)?;
        let addition = Addition {
            file: file.to_string(),
            sha256: sha256(bytes),
        };
        let linked = self.links()?.into_iter().find(|link| {
            link.drill == drill && link.manifest == manifest && link.addition.as_ref() == Some(&addition)
        });
        match linked {
            Some(link) => Ok(link),
            None => self.append(drill, manifest.to_string(), Some(addition), now),
        }
    }

    pub(crate) fn append(
        &self,
        drill: &str,
        manifest: String,
        addition: Option<Addition>,
        now: Timestamp,
    ) -> Result<ChainLink> {
        self.evidence_name(drill, "x")?;
        for _ in 0..APPENDS_TRIED {
            let newest = self.newest_numbered(&self.names().evidence_chain())?;
            let (number, previous) = match newest {
                None => (1, beginning(self.repository().id_bytes(), self.name())),
                Some((number, name)) => {
                    let link = self
                        .get_small(Kind::Statement, &name)?
                        .ok_or_else(|| missing_link(&name))?;
                    (number.saturating_add(1), sha256(&link))
                }
            };
            let link = ChainLink {
                version: if addition.is_some() { 2 } else { 1 },
                number,
                previous,
                drill: drill.to_string(),
                manifest: manifest.clone(),
                addition: addition.clone(),
                at: now,
            };
            // Two drills may end at once; the one that comes second appends to the first.
            if self.put_statement(Kind::Statement, &self.link_name(number), &link)? == Put::Created {
                return Ok(link);
            }
        }
        Err(
            Error::new("evidence-chain", "the chain of evidence could not be appended to")
                .detail("Other drills were faster each time.")
                .hint("Run the command again."),
        )
    }

    /// All links, oldest first. Errors as for any object; [`verify_chain`](Self::verify_chain) tells what is
    /// wrong.
    pub fn links(&self) -> Result<Vec<ChainLink>> {
        let mut links = Vec::new();
        for (_, name) in self.link_objects()? {
            links.push(
                self.get_statement(Kind::Statement, &name)?
                    .ok_or_else(|| missing_link(&name))?,
            );
        }
        Ok(links)
    }

    fn link_objects(&self) -> Result<Vec<(u32, String)>> {
        let prefix = self.names().evidence_chain();
        let objects = self.store().list(&prefix)?;
        Ok(objects
            .into_iter()
            .filter_map(|object| Some((parse_counter(object.name.strip_prefix(&prefix)?)?, object.name)))
            .collect())
    }

    /// The chain with the bytes of every link. What is damaged or gone is kept as such; an error means that
    /// the store could not be asked.
    pub fn chain(&self) -> Result<Chain> {
        let mut links = Vec::new();
        for (number, object) in self.link_objects()? {
            let plain = match self.get_small(Kind::Statement, &object) {
                Ok(Some(plain)) => Ok(plain),
                Ok(None) => Err("It was removed while it was looked at.".to_string()),
                Err(error) if matches!(error.code(), "object-damaged" | "repository-format") => {
                    Err(error.detail_text().unwrap_or(error.message()).to_string())
                }
                Err(error) => return Err(error),
            };
            links.push(StoredLink {
                number,
                object,
                plain,
            });
        }
        Ok(Chain {
            repository: self.repository().id(),
            cluster: self.name().to_string(),
            links,
        })
    }

    /// Repeats every hash of the chain. That what its links name is there still, [`check_linked`](Self::check_linked)
    /// tells.
    pub fn verify_chain(&self) -> Result<ChainResult> {
        Ok(self.chain()?.check())
    }

    /// Looks at every file that a readable link of the chain names: whether it is there, with the SHA-256 that the link
    /// has. An error means that the store could not be asked.
    pub fn check_linked(&self, chain: &Chain) -> Result<Vec<Finding>> {
        let mut findings = Vec::new();
        for (link, _) in chain.readable() {
            let (file, expected) = match &link.addition {
                Some(addition) => (addition.file.as_str(), &addition.sha256),
                None if link.drill.starts_with(ACTION) => (BEGUN, &link.manifest),
                None => (MANIFEST, &link.manifest),
            };
            let number = link.number;
            let (code, detail) = match self.get_evidence(&link.drill, file) {
                Ok(Some(bytes)) if sha256(&bytes) == *expected => continue,
                Ok(Some(_)) => (
                    "evidence-differs",
                    format!("It has not the SHA-256 that link {number} says."),
                ),
                Ok(None) => (
                    "evidence-missing",
                    format!("Link {number} names it, and it is not there."),
                ),
                Err(error) => match error.code() {
                    "object-damaged" | "repository-format" | "evidence-name" => (
                        "evidence-damaged",
                        error.detail_text().unwrap_or(error.message()).to_string(),
                    ),
                    _ => return Err(error),
                },
            };
            findings.push(Finding {
                code: code.into(),
                object: format!("{}{}/{file}", self.names().evidence(), link.drill),
                detail,
                affects: vec![format!("the evidence of {}", link.drill)],
            });
        }
        Ok(findings)
    }
}

fn missing_link(name: &str) -> Error {
    Error::new(
        "object-missing",
        format!("object \"{name}\" is not in the repository"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repository::tests::{now, repository};

    #[test]
    fn evidence_is_written_once() {
        let (_directory, _key, repository) = repository();
        let cluster = repository.cluster("main").unwrap();
        cluster
            .put_evidence("20260815T020003Z-quarterly", "facts.json", b"{}")
            .unwrap();
        cluster
            .put_evidence("20260815T020003Z-quarterly", "facts.json", b"{}")
            .unwrap();
        cluster
            .put_evidence("20260815T020003Z-quarterly", "logs/server.log", b"")
            .unwrap();
        let error = cluster
            .put_evidence("20260815T020003Z-quarterly", "facts.json", b"{ }")
            .unwrap_err();
        assert_eq!(error.code(), "evidence-exists");
        let registered = registration_id(now());
        cluster
            .put_evidence(&registered, "registration.json", b"{}")
            .unwrap();
        assert_eq!(cluster.list_drills().unwrap(), ["20260815T020003Z-quarterly"]);
        assert_eq!(cluster.list_registrations().unwrap(), [registered]);
        assert_eq!(
            cluster.list_evidence("20260815T020003Z-quarterly").unwrap(),
            ["facts.json", "logs/server.log"]
        );
        assert_eq!(
            cluster
                .get_evidence("20260815T020003Z-quarterly", "facts.json")
                .unwrap()
                .unwrap(),
            b"{}"
        );
        assert_eq!(cluster.get_evidence("none", "facts.json").unwrap(), None);
        for (drill, file) in [("", "x"), ("a/b", "x"), ("..", "x"), ("a", "../x"), ("a", "")] {
            assert_eq!(
                cluster.put_evidence(drill, file, b"").unwrap_err().code(),
                "evidence-name"
            );
        }
    }

    #[test]
    fn a_chain_shows_what_was_removed_changed_or_put_in() {
        let (_directory, _key, repository) = repository();
        let cluster = repository.cluster("main").unwrap();
        assert_eq!(cluster.verify_chain().unwrap().links, 0);
        for drill in 1..=5u8 {
            let link = cluster
                .append_link(&format!("drill-{drill}"), [drill; 32], now())
                .unwrap();
            assert_eq!(link.number, u32::from(drill));
        }
        let whole = cluster.verify_chain().unwrap();
        assert_eq!((whole.links, whole.findings), (5, vec![]));
        assert_eq!(cluster.links().unwrap()[4].drill, "drill-5");

        let name = cluster.link_name(3);
        let third = cluster.store().read(&name).unwrap().unwrap();
        cluster.store().delete(&name).unwrap();
        assert!(
            cluster.verify_chain().unwrap().findings[0]
                .detail
                .contains("Link 3 is missing")
        );

        // Somebody with the keys writes another third link.
        let forged = ChainLink {
            drill: "other".into(),
            ..cluster.links().unwrap()[1].clone()
        };
        cluster
            .put_statement(Kind::Statement, &name, &ChainLink { number: 3, ..forged })
            .unwrap();
        assert_eq!(cluster.verify_chain().unwrap().findings.len(), 2);

        cluster.store().delete(&name).unwrap();
        let mut damaged = third.clone();
        damaged[140] ^= 1;
        cluster.store().put_new(&name, &damaged).unwrap();
        assert_eq!(cluster.verify_chain().unwrap().findings.len(), 1);

        cluster.store().delete(&name).unwrap();
        cluster.store().put_new(&name, &third).unwrap();
        assert!(cluster.verify_chain().unwrap().findings.is_empty());
    }

    #[test]
    fn what_is_added_later_is_linked_once_and_read_back_from_the_chain() {
        let (_directory, _key, repository) = repository();
        let cluster = repository.cluster("main").unwrap();
        let link = cluster.append_link("drill-1", [1; 32], now()).unwrap();
        let add = |bytes: &[u8]| {
            cluster.add_evidence("drill-1", &link.manifest, "attestations/x.json", bytes, now())
        };
        // Killed between the file and its link, the same command goes on.
        cluster
            .put_evidence("drill-1", "attestations/x.json", b"{}")
            .unwrap();
        let added = add(b"{}").unwrap();
        assert_eq!((added.number, added.version), (2, 2));
        assert_eq!(add(b"{}").unwrap(), added);
        assert_eq!(add(b"{ }").unwrap_err().code(), "evidence-exists");
        let chain = cluster.chain().unwrap();
        assert_eq!(chain.check().findings, []);
        assert_eq!(chain.readable()[1].0, added);
        assert_eq!(chain.repository, repository.id());
    }

    #[test]
    fn drills_that_end_at_once_all_get_a_link() {
        let (_directory, _key, repository) = repository();
        let cluster = repository.cluster("main").unwrap();
        std::thread::scope(|scope| {
            for drill in 0..6u8 {
                let cluster = cluster.clone();
                scope.spawn(move || {
                    cluster
                        .append_link(&format!("drill-{drill}"), [drill; 32], now())
                        .unwrap()
                });
            }
        });
        let result = cluster.verify_chain().unwrap();
        assert_eq!((result.links, result.findings), (6, vec![]));
    }
}
