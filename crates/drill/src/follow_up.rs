//! What a drill asks people to do: entered with an owner and a date, and closed only by a later drill that passed.
//!
//! Invariants: an entry is a file of evidence that never changes; a closing is a second file beside it, which names
//! the passing drill and its manifest; whether a drill may close an entry is a function of both drills' evidence.

use std::collections::BTreeMap;

use jiff::Timestamp;
use jiff::civil::Date;
use serde::{Deserialize, Serialize};

use crate::audit::Audit;
use crate::facts::Facts;
use crate::verdict::Status;

/// The folder of follow-ups below a drill's evidence.
pub const FOLDER: &str = "follow-ups/";

/// An entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opened {
    pub version: u32,
    /// The drill that it follows from.
    pub drill: String,
    /// From 1, by drill.
    pub number: u32,
    pub action: String,
    pub owner: String,
    pub due: Date,
    pub at: Timestamp,
    /// The account that entered it.
    pub by: String,
}

/// The end of one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Closed {
    pub version: u32,
    pub drill: String,
    pub number: u32,
    /// The later drill that passed.
    pub closed_by: String,
    /// SHA-256 of that drill's manifest, hexadecimal.
    pub manifest: String,
    pub note: Option<String>,
    pub at: Timestamp,
    pub by: String,
}

/// An entry as it stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FollowUp {
    pub opened: Opened,
    pub closed: Option<Closed>,
}

impl FollowUp {
    /// The name of the entry's file.
    pub fn file(&self) -> String {
        opened_file(self.opened.number)
    }

    /// `DRILL/2`, by which a person names it.
    pub fn id(&self) -> String {
        format!("{}/{}", self.opened.drill, self.opened.number)
    }

    /// `open`, `overdue` or `closed by ...`.
    pub fn status(&self, today: Date) -> String {
        match &self.closed {
            Some(closed) => format!("closed by {}", closed.closed_by),
            None if self.opened.due < today => "overdue".into(),
            None => "open".into(),
        }
    }
}

pub fn opened_file(number: u32) -> String {
    format!("{FOLDER}{number:04}.json")
}

pub fn closed_file(number: u32) -> String {
    format!("{FOLDER}{number:04}.closed.json")
}

/// The follow-ups among a drill's files, in order of number; and what could not be read, by name.
pub fn read(files: &BTreeMap<String, Result<Vec<u8>, String>>) -> (Vec<FollowUp>, Vec<String>) {
    let mut entries: BTreeMap<u32, FollowUp> = BTreeMap::new();
    let mut ends = Vec::new();
    let mut unreadable = Vec::new();
    for (name, content) in files.iter().filter(|(name, _)| name.starts_with(FOLDER)) {
        let Ok(content) = content else {
            unreadable.push(name.clone());
            continue;
        };
        if name.ends_with(".closed.json") {
            match serde_json::from_slice::<Closed>(content) {
                Ok(closed) => ends.push(closed),
                Err(_) => unreadable.push(name.clone()),
            }
            continue;
        }
        match serde_json::from_slice::<Opened>(content) {
            Ok(opened) => {
                entries.insert(opened.number, FollowUp { opened, closed: None });
            }
            Err(_) => unreadable.push(name.clone()),
        }
    }
    for closed in ends {
        if let Some(entry) = entries.get_mut(&closed.number) {
            entry.closed = Some(closed);
        }
    }
    (entries.into_values().collect(), unreadable)
}

/// Whether the drill behind `closing` closes what follows from `opened`; the text says why not.
pub fn may_close(opened: &Facts, closing: &Audit) -> Result<(), String> {
    let (Some(facts), Some(verdict)) = (&closing.facts, &closing.verdict) else {
        return Err("its evidence cannot be read".into());
    };
    if !closing.agrees() {
        return Err("its evidence does not agree: `pgproof drill audit` says where".into());
    }
    if facts.started_at <= opened.finished_at.unwrap_or(opened.started_at) {
        return Err("it is not later than the drill that it should close".into());
    }
    if facts.scope.system_identifier != opened.scope.system_identifier
        && !opened.scope.system_identifier.is_empty()
    {
        return Err("it drilled another cluster".into());
    }
    if !facts.planted_faults.is_empty() {
        return Err("it was a drill of the drill, with a planted fault".into());
    }
    match verdict.status {
        Status::Passed | Status::PassedWithObservations => Ok(()),
        status => Err(format!("it ended {status}")),
    }
}
