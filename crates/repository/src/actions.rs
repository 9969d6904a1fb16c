//! Records of what people did with a cluster's backups: a restore, an adoption, a backup that failed.
//! `docs/format.md` section 10.
//!
//! Invariants: what was begun is recorded, under the chain over all evidence, by whoever is about to do it; a
//! record is written once; it says who, what and where, and of an error its code alone: no message, no key, no
//! password and no row gets in. A record without an end is of something that was killed, or is under way.

use diagnostic::{Error, Result};
use jiff::Timestamp;
use postgres::TimelineId;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::container::Kind;
use crate::evidence_chain::{Addition, ChainLink, sha256};
use crate::names::{BackupId, RunId};
use crate::repository::ClusterRepository;

/// How the names of actions begin; no drill's does.
pub(crate) const ACTION: &str = "action_";
/// What an action's first link stands for, as a drill's does for its manifest.
pub(crate) const BEGUN: &str = "begun.json";
const ENDED: &str = "ended.json";
const VERSION: u32 = 1;
/// Whatever the environment, a command line or a marker says, a record stays small.
const TEXT_CHARACTERS_MAX: usize = 1000;

/// What was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ActionKind {
    /// Into a directory of its own, or one whose content is kept aside.
    Restore,
    /// Over a directory that is there.
    RestoreDelta,
    /// A restored directory became production.
    Adopt,
    /// A base backup; only one that failed is an action, the others are records.
    Backup,
    /// What a later version of this program knows.
    #[serde(other)]
    Other,
}

impl ActionKind {
    /// A stable word: `restore-delta`.
    pub fn as_str(self) -> &'static str {
        match self {
            ActionKind::Restore => "restore",
            ActionKind::RestoreDelta => "restore-delta",
            ActionKind::Adopt => "adopt",
            ActionKind::Backup => "backup",
            ActionKind::Other => "other",
        }
    }
}

/// Who did it, as far as the machine knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActionBy {
    /// The account that the process ran as.
    pub account: String,
    pub uid: u32,
    /// The account that logged in, whatever it became since: the kernel's word, where it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub login: Option<String>,
    /// Whom sudo names: the environment's word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sudo_user: Option<String>,
    pub host: String,
}

/// What is about to be done. What does not concern the action is absent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActionBegun {
    pub version: u32,
    pub action: ActionKind,
    pub at: Timestamp,
    pub by: ActionBy,
    /// The version of the program.
    pub tool_version: String,
    pub cluster: String,
    /// The copy of the backups that was read, or that was to be written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copy: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup: Option<BackupId>,
    /// As it was asked for: `--to latest`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeline: Option<TimelineId>,
    /// The directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination: Option<String>,
}

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ActionOutcome {
    Done,
    Failed,
}

/// The end of an action.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActionEnded {
    pub version: u32,
    pub at: Timestamp,
    pub outcome: ActionOutcome,
    /// The error's code; never its text, which may hold data.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// What a restore wrote.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub files: Option<u64>,
}

impl ActionBegun {
    /// With nothing of what only some actions have.
    pub fn new(action: ActionKind, at: Timestamp, by: ActionBy, cluster: &str, tool_version: &str) -> Self {
        ActionBegun {
            version: VERSION,
            action,
            at,
            by,
            tool_version: tool_version.to_string(),
            cluster: cluster.to_string(),
            copy: None,
            backup: None,
            target: None,
            timeline: None,
            destination: None,
        }
    }

    /// No text longer than a record holds.
    fn short(&self) -> Self {
        let optional = |text: &Option<String>| text.as_deref().map(short);
        ActionBegun {
            by: ActionBy {
                account: short(&self.by.account),
                login: optional(&self.by.login),
                sudo_user: optional(&self.by.sudo_user),
                host: short(&self.by.host),
                uid: self.by.uid,
            },
            copy: optional(&self.copy),
            target: optional(&self.target),
            destination: optional(&self.destination),
            ..self.clone()
        }
    }
}

fn short(text: &str) -> String {
    text.chars().take(TEXT_CHARACTERS_MAX).collect()
}

impl ActionEnded {
    pub fn done(at: Timestamp, bytes: Option<u64>, files: Option<u64>) -> Self {
        ActionEnded {
            version: VERSION,
            at,
            outcome: ActionOutcome::Done,
            error: None,
            bytes,
            files,
        }
    }

    /// By the code of an error.
    pub fn failed(at: Timestamp, code: &str) -> Self {
        ActionEnded {
            version: VERSION,
            at,
            outcome: ActionOutcome::Failed,
            error: Some(code.to_string()),
            bytes: None,
            files: None,
        }
    }
}

/// An action that was begun, in the hand of whoever does it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenAction {
    /// Its folder among the evidence.
    pub name: String,
    /// SHA-256 of what was recorded when it began, hexadecimal.
    begun: String,
}

/// An action as it lies in the repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordedAction {
    pub name: String,
    /// Or why it cannot be read, in a sentence.
    pub begun: Result<ActionBegun, String>,
    /// Nothing where no end was recorded.
    pub ended: Option<Result<ActionEnded, String>>,
}

impl RecordedAction {
    /// Whether links of the chain name all of it. A process that dies between a file and its link leaves it so.
    pub fn is_linked(&self, links: &[ChainLink]) -> bool {
        let named = |file: Option<&str>| {
            links.iter().any(|link| {
                link.drill == self.name
                    && link.addition.as_ref().map(|addition| addition.file.as_str()) == file
            })
        };
        named(None) && (self.ended.is_none() || named(Some(ENDED)))
    }

    /// When it began: as it says, else by its name.
    pub fn at(&self) -> Option<Timestamp> {
        match &self.begun {
            Ok(begun) => Some(begun.at),
            Err(_) => moment(&self.name),
        }
    }
}

/// The moment in an action's name, to the second.
fn moment(name: &str) -> Option<Timestamp> {
    let run: RunId = name.strip_prefix(ACTION)?.get(..16)?.parse().ok()?;
    run.moment()
}

impl ClusterRepository {
    /// Records that something is about to be done: two small objects, and a look at the chain.
    pub fn begin_action(&self, begun: &ActionBegun) -> Result<OpenAction> {
        let mut random = [0; 4];
        crate::keys::random(&mut random)?;
        let name = format!("{ACTION}{}-{}", RunId::at(begun.at), crate::hex::encode(&random));
        let bytes = encode(&begun.short())?;
        self.put_evidence(&name, BEGUN, &bytes)?;
        let begun_sha256 = sha256(&bytes);
        self.append(&name, begun_sha256.clone(), None, begun.at)?;
        Ok(OpenAction {
            name,
            begun: begun_sha256,
        })
    }

    /// Records how it ended.
    pub fn end_action(&self, action: &OpenAction, ended: &ActionEnded) -> Result<()> {
        let bytes = encode(ended)?;
        self.put_evidence(&action.name, ENDED, &bytes)?;
        let addition = Addition {
            file: ENDED.to_string(),
            sha256: sha256(&bytes),
        };
        self.append(&action.name, action.begun.clone(), Some(addition), ended.at)
            .map(drop)
    }

    /// The actions that began at this moment or later, or all, in order of time. What is damaged is kept as such; an
    /// error means that the store could not be asked.
    pub fn actions(&self, since: Option<Timestamp>) -> Result<Vec<RecordedAction>> {
        let mut actions = Vec::new();
        for name in self.store().list_folders(&self.names().evidence())? {
            // A name has no part of a second.
            let early = |at: Timestamp| since.is_some_and(|since| at.as_second() < since.as_second());
            if !name.starts_with(ACTION) || moment(&name).is_some_and(early) {
                continue;
            }
            let begun = self.action_file(&name, BEGUN)?;
            actions.push(RecordedAction {
                begun: begun.unwrap_or_else(|| Err("What was begun is not there.".into())),
                ended: self.action_file(&name, ENDED)?,
                name,
            });
        }
        let early = |action: &RecordedAction| action.at().zip(since).is_some_and(|(at, since)| at < since);
        actions.retain(|action| !early(action));
        actions.sort_by_key(|action| (action.at(), action.name.clone()));
        Ok(actions)
    }

    fn action_file<T: DeserializeOwned>(&self, name: &str, file: &str) -> Result<Option<Result<T, String>>> {
        let object = format!("{}{name}/{file}", self.names().evidence());
        match self.get_small(Kind::Evidence, &object) {
            Ok(bytes) => Ok(bytes.map(|bytes| decode(&bytes))),
            Err(error) if matches!(error.code(), "object-damaged" | "repository-format") => {
                Ok(Some(Err(error.detail_text().unwrap_or(error.message()).into())))
            }
            Err(error) => Err(error),
        }
    }
}

fn encode(record: &impl Serialize) -> Result<Vec<u8>> {
    let mut text = serde_json::to_vec_pretty(record).map_err(|error| {
        Error::new("evidence-encode", "the record cannot be written as JSON").caused_by(&error)
    })?;
    text.push(b'\n');
    Ok(text)
}

/// A record, or a sentence that says why it is none.
pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    #[derive(Deserialize)]
    struct Versioned {
        version: u32,
    }
    match serde_json::from_slice::<Versioned>(bytes) {
        Ok(Versioned { version }) if version > VERSION => {
            Err("A newer version of pgproof wrote it.".to_string())
        }
        _ => serde_json::from_slice(bytes).map_err(|error| format!("It cannot be understood: {error}.")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repository::tests::{now, repository};

    fn begun(action: ActionKind) -> ActionBegun {
        let by = ActionBy {
            account: "postgres".into(),
            uid: 105,
            login: Some("ann".into()),
            sudo_user: None,
            host: "db1".into(),
        };
        ActionBegun {
            backup: Some(RunId::at(now())),
            copy: Some("local".into()),
            target: Some("--to latest".into()),
            timeline: Some(TimelineId(3)),
            destination: Some("/srv/copy".into()),
            ..ActionBegun::new(action, now(), by, "main", "0.1.0")
        }
    }

    fn links(cluster: &ClusterRepository) -> Vec<ChainLink> {
        cluster.links().unwrap()
    }

    #[test]
    fn an_action_is_recorded_once_and_linked_when_it_begins_and_when_it_ends() {
        let (_directory, _key, repository) = repository();
        let cluster = repository.cluster("main").unwrap();
        let first = begun(ActionKind::Restore);
        let open = cluster.begin_action(&first).unwrap();
        assert!(open.name.starts_with("action_20260815T020003Z-"), "{}", open.name);
        let seen = cluster.actions(None).unwrap().remove(0);
        assert_eq!(
            (seen.begun.as_ref(), seen.ended.as_ref()),
            (Ok(&first), None),
            "killed now, it is seen"
        );
        assert!(seen.is_linked(&links(&cluster)));

        let later = now() + jiff::SignedDuration::from_secs(90);
        let ended = ActionEnded::done(later, Some(7), Some(2));
        cluster.end_action(&open, &ended).unwrap();
        let seen = cluster.actions(None).unwrap().remove(0);
        assert_eq!(seen.ended, Some(Ok(ended)));
        assert!(seen.is_linked(&links(&cluster)));
        let failed = ActionEnded::failed(later, "restore-write");
        assert_eq!(
            cluster.end_action(&open, &failed).unwrap_err().code(),
            "evidence-exists"
        );

        let chain = cluster.chain().unwrap();
        assert_eq!((chain.check().links, chain.check().findings), (2, vec![]));
        assert_eq!(cluster.check_linked(&chain).unwrap(), []);
        // Nobody takes it for a drill.
        assert!(cluster.list_drills().unwrap().is_empty());
        assert!(cluster.list_registrations().unwrap().is_empty());
    }

    #[test]
    fn actions_are_listed_by_time_and_from_a_moment_on() {
        let (_directory, _key, repository) = repository();
        let cluster = repository.cluster("main").unwrap();
        let at = |seconds: i64| now() + jiff::SignedDuration::from_millis(1000 * seconds + 250);
        for seconds in [20, 0, 10] {
            let begun = ActionBegun {
                at: at(seconds),
                ..begun(ActionKind::Backup)
            };
            let open = cluster.begin_action(&begun).unwrap();
            let ended = ActionEnded::failed(at(seconds), "server-connect");
            cluster.end_action(&open, &ended).unwrap();
        }
        let seen = |since| -> Vec<Timestamp> {
            let actions = cluster.actions(since).unwrap();
            actions.iter().filter_map(RecordedAction::at).collect()
        };
        assert_eq!(seen(None), [at(0), at(10), at(20)]);
        assert_eq!(seen(Some(at(10))), [at(10), at(20)]);
        let behind = at(10) + jiff::SignedDuration::from_millis(1);
        assert_eq!(seen(Some(behind)), [at(20)]);
    }

    #[test]
    fn what_was_removed_changed_or_left_without_its_link_shows() {
        let (_directory, _key, repository) = repository();
        let cluster = repository.cluster("main").unwrap();
        let open = cluster.begin_action(&begun(ActionKind::RestoreDelta)).unwrap();
        let object = |file: &str| format!("{}{}/{file}", cluster.names().evidence(), open.name);
        let linked = |cluster: &ClusterRepository| {
            let action = cluster.actions(None).unwrap().remove(0);
            action.is_linked(&links(cluster))
        };
        let codes = |cluster: &ClusterRepository| -> Vec<String> {
            let found = cluster.check_linked(&cluster.chain().unwrap()).unwrap();
            found.into_iter().map(|finding| finding.code).collect()
        };
        // Killed between the end and its link.
        let ended = encode(&ActionEnded::done(now(), None, None)).unwrap();
        cluster.put_evidence(&open.name, ENDED, &ended).unwrap();
        assert!(!linked(&cluster));
        assert!(codes(&cluster).is_empty(), "what no link names is no link's loss");
        cluster.store().delete(&object(ENDED)).unwrap();
        cluster
            .end_action(&open, &ActionEnded::failed(now(), "restore-write"))
            .unwrap();
        assert!(linked(&cluster) && codes(&cluster).is_empty());

        // With the keys, somebody makes a failure a success.
        let whole = cluster.store().read(&object(ENDED)).unwrap().unwrap();
        cluster.store().delete(&object(ENDED)).unwrap();
        cluster.put_evidence(&open.name, ENDED, &ended).unwrap();
        assert_eq!(codes(&cluster), ["evidence-differs"]);
        let mut damaged = whole;
        damaged[140] ^= 1;
        cluster.store().delete(&object(ENDED)).unwrap();
        cluster.store().put_new(&object(ENDED), &damaged).unwrap();
        assert_eq!(codes(&cluster), ["evidence-damaged"]);
        let action = cluster.actions(None).unwrap().remove(0);
        assert!(action.ended.unwrap().is_err() && action.begun.is_ok());
        cluster.store().delete(&object(ENDED)).unwrap();
        assert_eq!(codes(&cluster), ["evidence-missing"]);
        cluster.store().delete(&object(BEGUN)).unwrap();
        assert_eq!(codes(&cluster), ["evidence-missing", "evidence-missing"]);
        assert_eq!(cluster.chain().unwrap().check().findings, []);
        assert!(cluster.actions(None).unwrap().is_empty());
    }

    #[test]
    fn a_record_stays_small_and_a_later_version_s_is_not_misread() {
        let (_directory, _key, repository) = repository();
        let cluster = repository.cluster("main").unwrap();
        let mut long = begun(ActionKind::Adopt);
        long.by.sudo_user = Some("é".repeat(100_000));
        long.destination = Some("/x".repeat(100_000));
        cluster.begin_action(&long).unwrap();
        let action = cluster.actions(None).unwrap().remove(0);
        let begun = action.begun.unwrap();
        assert_eq!(begun.by.sudo_user.unwrap().chars().count(), TEXT_CHARACTERS_MAX);
        assert_eq!(begun.destination.unwrap().len(), TEXT_CHARACTERS_MAX);

        let newer = decode::<ActionEnded>(br#"{"version": 2, "at": "soon"}"#).unwrap_err();
        assert!(newer.contains("newer version"), "{newer}");
        assert!(decode::<ActionEnded>(b"{}").is_err());
        let unknown = encode(&long).unwrap();
        let unknown = String::from_utf8(unknown)
            .unwrap()
            .replace("\"adopt\"", "\"moved\"");
        let unknown: ActionBegun = decode(unknown.as_bytes()).unwrap();
        assert_eq!(unknown.action, ActionKind::Other);
    }
}
