//! One line for each thing that was done, from the records that it left.
//!
//! Invariant: a line says what its record says, and `-` where that says nothing; a record that is damaged has its line,
//! or a finding where it cannot be told what it was.

use diagnostic::Result;
use drill::registration;
use jiff::Timestamp;
use repository::{
    ActionBegun, ActionBy, ActionEnded, ActionKind, ActionOutcome, Backup, Chain, ChainLink, Expiry, Finding,
    Pin, RecordedAction, TakeOver, Verification,
};
use serde_json::{Value, json};

use super::super::drill_stored::{self as stored, Recorded};
use crate::copies::OpenCopy;
use crate::output;

/// Names of backups in a line before "and others".
const NAMES_MAX: usize = 3;
const NOT_ENDED: &str = "NOT ENDED: it was killed, or goes on";
const NOT_LINKED: &str = "no link of the hash chain names it";

/// Something that was done.
pub struct Entry {
    /// When it began.
    pub at: Timestamp,
    /// A stable word: `restore`.
    pub what: &'static str,
    /// Nothing where no record says it.
    pub who: Option<String>,
    /// The backup, drill or timeline that it was done with.
    pub on: String,
    pub copy: String,
    pub outcome: String,
    /// By which its record is found.
    pub name: Option<String>,
    /// What an action's record says in full.
    pub record: Option<Value>,
}

impl Entry {
    pub fn row(&self) -> Vec<String> {
        vec![
            output::moment(self.at),
            self.what.to_owned(),
            self.who.clone().unwrap_or_else(|| "-".to_owned()),
            self.on.clone(),
            self.copy.clone(),
            self.outcome.clone(),
        ]
    }

    pub fn value(&self) -> Value {
        json!({
            "at": self.at, "what": self.what, "who": self.who, "on": self.on, "copy": self.copy,
            "outcome": self.outcome, "name": self.name, "record": self.record,
        })
    }
}

/// What one copy tells, but for its drills. Damage is a finding; that it could not be looked at, an error.
pub fn of_copy(copy: &OpenCopy, chain: &Chain, findings: &mut Vec<Finding>) -> Result<Vec<Entry>> {
    let cluster = &copy.cluster;
    let links: Vec<ChainLink> = chain.readable().into_iter().map(|(link, _)| link).collect();
    let name = copy.name.as_str();
    let mut entries: Vec<Entry> = cluster
        .actions(None)?
        .iter()
        .map(|action| of_action(name, action, action.is_linked(&links)))
        .collect();
    for id in cluster.list_registrations()? {
        entries.extend(of_registration(copy, &id, &links)?);
    }
    let mut each = |what: &str, listed: Result<Vec<Entry>>| match listed {
        Ok(listed) => {
            entries.extend(listed);
            Ok(())
        }
        Err(error) if is_damage(error.code()) => {
            findings.push(Finding {
                code: error.code().to_owned(),
                object: error.message().to_owned(),
                detail: error.detail_text().unwrap_or_default().to_owned(),
                affects: vec![format!("what is told of {what}")],
            });
            Ok(())
        }
        Err(error) => Err(error),
    };
    each("backups", lines(cluster.backups(), |it| of_backup(name, it)))?;
    each(
        "expiries",
        cluster.expiries(None).map(|all| of_expiries(name, &all)),
    )?;
    each(
        "verifications",
        lines(cluster.verifications(), |it| of_verification(name, it)),
    )?;
    each("pins", lines(cluster.pin_statements(), |it| of_pin(name, it)))?;
    each("claims", lines(cluster.take_overs(), |it| of_take_over(name, it)))?;
    Ok(entries)
}

fn lines<T>(listed: Result<Vec<T>>, line: impl Fn(&T) -> Entry) -> Result<Vec<Entry>> {
    listed.map(|all| all.iter().map(line).collect())
}

/// "ann (as postgres) on db1".
fn who(by: &ActionBy) -> String {
    let person = by.sudo_user.as_ref().or(by.login.as_ref());
    match person.filter(|person| **person != by.account) {
        Some(person) => format!("{person} (as {}) on {}", by.account, by.host),
        None => format!("{} on {}", by.account, by.host),
    }
}

fn of_action(copy: &str, action: &RecordedAction, linked: bool) -> Entry {
    let begun = action.begun.as_ref().ok();
    let mut outcome = match (&action.begun, &action.ended) {
        (Err(why), _) => format!("its record cannot be read: {why}"),
        (_, Some(Err(why))) => format!("the record of its end cannot be read: {why}"),
        (_, Some(Ok(ended))) => ended_words(ended),
        (_, None) => NOT_ENDED.to_owned(),
    };
    if !linked {
        outcome = format!("{outcome}; {NOT_LINKED}");
    }
    Entry {
        at: action.at().unwrap_or(Timestamp::UNIX_EPOCH),
        what: begun.map_or(ActionKind::Other, |begun| begun.action).as_str(),
        who: begun.map(|begun| who(&begun.by)),
        on: begun.map_or_else(|| "-".to_owned(), subject),
        copy: copy.to_owned(),
        outcome,
        name: Some(action.name.clone()),
        record: Some(json!({
            "begun": begun,
            "ended": action.ended.as_ref().and_then(|ended| ended.as_ref().ok()),
            "linked": linked,
        })),
    }
}

/// "20260815T020003Z from local into /srv/copy, --to latest, timeline 3".
fn subject(begun: &ActionBegun) -> String {
    let mut words = Vec::new();
    words.extend(begun.backup.map(|backup| backup.to_string()));
    if let Some(copy) = &begun.copy {
        let of = match begun.action {
            ActionKind::Backup => "into",
            _ => "from",
        };
        words.push(format!("{of} {copy}"));
    }
    if let Some(destination) = &begun.destination {
        let of = match begun.action {
            ActionKind::Adopt => "in",
            _ => "into",
        };
        words.push(format!("{of} {destination}"));
    }
    let mut parts = vec![words.join(" ")];
    parts.extend(begun.target.clone());
    parts.extend(begun.timeline.map(|timeline| format!("timeline {timeline}")));
    parts.retain(|part| !part.is_empty());
    parts.join(", ")
}

fn ended_words(ended: &ActionEnded) -> String {
    match ended.outcome {
        ActionOutcome::Failed => {
            let code = ended.error.as_deref().unwrap_or("no code");
            format!("FAILED: {code}")
        }
        ActionOutcome::Done => {
            let bytes = ended.bytes.map(output::bytes);
            let files = ended.files.map(|files| format!("{files} files"));
            match (bytes, files) {
                (Some(bytes), Some(files)) => format!("done, {bytes} in {files}"),
                (Some(some), None) | (None, Some(some)) => format!("done, {some}"),
                (None, None) => "done".to_owned(),
            }
        }
    }
}

/// It is there, and its bytes say nothing.
fn is_damage(code: &str) -> bool {
    matches!(
        code,
        "object-damaged" | "repository-format" | "key-epoch" | "evidence-decode"
    )
}

fn of_registration(copy: &OpenCopy, id: &str, links: &[ChainLink]) -> Result<Option<Entry>> {
    let linked = links.iter().find(|link| link.drill == id);
    let registered = match registration::read(&copy.cluster, id) {
        Err(error) if is_damage(error.code()) => None,
        read => read?,
    };
    let at = registered.as_ref().map(|registered| registered.registered_at);
    // One that cannot be read, and that no link names, has no time to stand at.
    let Some(at) = at.or(linked.map(|link| link.at)) else {
        return Ok(None);
    };
    let profile = registered
        .as_ref()
        .and_then(|registered| registered.profiles.first());
    let outcome = match (&registered, linked) {
        (None, _) => "its record cannot be read".to_owned(),
        (Some(_), None) => NOT_LINKED.to_owned(),
        (Some(registered), Some(_)) => match registered.due {
            Some(due) => format!("to be run at {}", output::moment(due)),
            None => "done".to_owned(),
        },
    };
    Ok(Some(Entry {
        at,
        what: "drill-registered",
        who: registered
            .as_ref()
            .and_then(|registered| registered.people.operator.clone()),
        on: profile.map_or_else(|| "-".to_owned(), |profile| profile.name.clone()),
        copy: copy.name.clone(),
        outcome,
        name: Some(id.to_owned()),
        record: None,
    }))
}

/// A drill, its signatures and what follows from it. `linked`: a link of the chain names it.
pub fn of_drill(drill: &Recorded, linked: bool) -> Vec<Entry> {
    let entry = |at, what, who, on: String, outcome| Entry {
        at,
        what,
        who,
        on,
        copy: drill.copy.clone(),
        outcome,
        name: Some(drill.drill.clone()),
        record: None,
    };
    let facts = drill.facts.as_ref();
    let at = facts
        .map(|facts| facts.started_at)
        .or_else(|| stored::moment(&drill.drill));
    let on = facts.map_or_else(
        || drill.drill.clone(),
        |facts| format!("{} with profile {}", drill.drill, facts.identity.profile),
    );
    let mut outcome = match &drill.verdict {
        Some(verdict) => verdict.status.to_string(),
        None => "its record cannot be read".to_owned(),
    };
    if !linked {
        outcome = format!("{outcome}; {NOT_LINKED}");
    }
    let operator = facts.and_then(|facts| facts.people.operator.clone());
    let at = at.unwrap_or(Timestamp::UNIX_EPOCH);
    let mut entries = vec![entry(at, "drill", operator, on, outcome)];
    for signature in &drill.signatures {
        let vouched = match signature.vouched {
            true => "",
            false => "; nobody vouches for the key",
        };
        let outcome = format!("as {}{vouched}", signature.role);
        entries.push(entry(
            signature.signed_at,
            "drill-signed",
            Some(signature.signer.clone()),
            drill.drill.clone(),
            outcome,
        ));
    }
    for follow_up in &drill.follow_ups {
        let (id, opened) = (follow_up.id(), &follow_up.opened);
        let outcome = format!("{}, for {} by {}", opened.action, opened.owner, opened.due);
        entries.push(entry(
            opened.at,
            "follow-up",
            Some(opened.by.clone()),
            id.clone(),
            outcome,
        ));
        if let Some(closed) = &follow_up.closed {
            let outcome = format!("closed by {}", closed.closed_by);
            entries.push(entry(
                closed.at,
                "follow-up-closed",
                Some(closed.by.clone()),
                id,
                outcome,
            ));
        }
    }
    entries
}

fn of_backup(copy: &str, backup: &Backup) -> Entry {
    Entry {
        at: backup.started_at,
        what: ActionKind::Backup.as_str(),
        who: None,
        on: backup.backup.to_string(),
        copy: copy.to_owned(),
        outcome: format!("done, {} stored", output::bytes(backup.bytes_stored)),
        name: Some(backup.backup.to_string()),
        record: None,
    }
}

/// Each expiry is stated when it begins, if anything is to go, and when it has ended: one line for both.
fn of_expiries(copy: &str, expiries: &[Expiry]) -> Vec<Entry> {
    let mut entries = Vec::new();
    for (place, expiry) in expiries.iter().enumerate() {
        let next = expiries.get(place + 1);
        let ended = next.is_some_and(|next| next.finished && next.by == expiry.by);
        if !expiry.finished && ended {
            continue;
        }
        let mut names: Vec<String> = expiry
            .removed
            .iter()
            .take(NAMES_MAX)
            .map(ToString::to_string)
            .collect();
        match expiry.removed.len() {
            0 => names.push("no backup".to_owned()),
            all if all > NAMES_MAX => names.push(format!("and {} others", all - NAMES_MAX)),
            _ => {}
        }
        let outcome = match expiry.finished {
            true => format!(
                "done, {} objects with {} deleted",
                expiry.objects,
                output::bytes(expiry.bytes)
            ),
            false => NOT_ENDED.to_owned(),
        };
        entries.push(Entry {
            at: expiry.at,
            what: "expire",
            who: Some(format!("on {}", expiry.by)),
            on: names.join(", "),
            copy: copy.to_owned(),
            outcome,
            name: None,
            record: None,
        });
    }
    entries
}

fn of_verification(copy: &str, seen: &Verification) -> Entry {
    let outcome = match seen.findings_total {
        0 => "done, no findings".to_owned(),
        found => format!("{found} FINDINGS"),
    };
    Entry {
        at: seen.began_at,
        what: "verify",
        who: None,
        on: format!("{} backups, {} objects", seen.backups.len(), seen.objects),
        copy: copy.to_owned(),
        outcome,
        name: None,
        record: None,
    }
}

fn of_pin(copy: &str, pin: &Pin) -> Entry {
    let until = pin
        .until
        .map(|until| format!(" until {}", output::moment(until)))
        .unwrap_or_default();
    let reason = match pin.reason.as_str() {
        "" => "no reason was given",
        reason => reason,
    };
    Entry {
        at: pin.at,
        what: if pin.pinned { "pin" } else { "unpin" },
        who: pin.by.as_ref().map(who),
        on: pin.backup.to_string(),
        copy: copy.to_owned(),
        outcome: format!("done{until}: {reason}"),
        name: None,
        record: None,
    }
}

fn of_take_over(copy: &str, taken: &TakeOver) -> Entry {
    let claim = &taken.claim;
    Entry {
        at: claim.at,
        what: "wal-take-over",
        who: claim.by.as_ref().map(who),
        on: format!("timeline {} of {}", taken.timeline, taken.system),
        copy: copy.to_owned(),
        outcome: format!(
            "done, by the server in {}: {}",
            claim.writer.data_directory,
            claim.reason.as_deref().unwrap_or_default()
        ),
        name: None,
        record: None,
    }
}
