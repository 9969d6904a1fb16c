//! `pgproof drill follow-up`: what drills ask people to do. Entries are evidence: they are added and never changed, and
//! a later drill that passed closes them.

use diagnostic::{Error, Result};
use drill::Facts;
use drill::audit::{Audit, audit};
use drill::follow_up::{self, Closed, FollowUp, Opened};
use jiff::tz::TimeZone;
use serde_json::{Value, json};

use super::drill_stored as stored;
use crate::account::Account;
use crate::cli;
use crate::context::Context;
use crate::{exit, output};

/// Other entries that may be made at once.
const TRIES: u32 = 100;

/// Who enters something, as far as the machine knows: the account, or who became it.
fn by() -> String {
    let from_environment = |name: &str| std::env::var(name).ok().filter(|name| !name.is_empty());
    from_environment("SUDO_USER").unwrap_or_else(|| Account::current().name())
}

/// The manifest's SHA-256. Error: `evidence-disagrees`: nothing is added to evidence that is not whole.
fn manifest(seen: &Audit, drill: &str) -> Result<String> {
    match (&seen.link, seen.findings.first()) {
        (Some((link, _)), None) => Ok(link.manifest.clone()),
        (_, finding) => Err(Error::new(
            "evidence-disagrees",
            format!("the evidence of drill {drill} does not agree"),
        )
        .detail(finding.map_or_else(String::new, |it| format!("{}: {}", it.file, it.text)))
        .hint(format!("Run `pgproof drill audit {drill}`."))),
    }
}

pub fn add(context: &Context, arguments: &cli::FollowUpAdd) -> Result<u8> {
    for (option, text) in [("--action", &arguments.action), ("--owner", &arguments.owner)] {
        if text.trim().is_empty() || text.chars().any(char::is_control) {
            return Err(Error::usage(
                "follow-up-text",
                format!("{option} says nothing, or not on one line"),
            ));
        }
    }
    let (configuration, copies) = stored::open(context, arguments.cluster.as_deref(), None)?;
    let (copy, id) = stored::find(&copies, &arguments.drill)?;
    let bundle = stored::read(&copy.cluster, &id)?;
    let manifest = manifest(&audit(&bundle, &configuration.signers)?, &id)?;
    let mut number = follow_up::read(&bundle.files)
        .0
        .last()
        .map_or(1, |entry| entry.opened.number.saturating_add(1));
    for _ in 0..TRIES {
        let opened = Opened {
            version: 1,
            drill: id.clone(),
            number,
            action: arguments.action.trim().to_owned(),
            owner: arguments.owner.trim().to_owned(),
            due: arguments.due,
            at: context.now(),
            by: by(),
        };
        let bytes = encode(&opened)?;
        let file = follow_up::opened_file(number);
        match copy
            .cluster
            .add_evidence(&id, &manifest, &file, &bytes, context.now())
        {
            Ok(_) => {
                stored::refresh(&stored::report_directory()?, copy, &id, &configuration);
                let entry = FollowUp { opened, closed: None };
                if context.json {
                    output::json(&json!({ "follow_up": value(&entry, context) }));
                } else {
                    output::line(format!("Entered {}", entry.id()));
                }
                return Ok(exit::DONE);
            }
            // Somebody else took this number.
            Err(error) if error.code() == "evidence-exists" => number = number.saturating_add(1),
            Err(error) => return Err(error),
        }
    }
    Err(Error::new("evidence-exists", "no number is free for another entry").hint("Run the command again."))
}

fn encode(entry: &impl serde::Serialize) -> Result<Vec<u8>> {
    let mut bytes = serde_json::to_vec_pretty(entry).map_err(|error| {
        Error::new("evidence-encode", "the entry cannot be written as JSON").caused_by(&error)
    })?;
    bytes.push(b'\n');
    Ok(bytes)
}

fn value(entry: &FollowUp, context: &Context) -> Value {
    let today = context.now().to_zoned(TimeZone::system()).date();
    json!({
        "id": entry.id(),
        "status": entry.status(today),
        "opened": entry.opened,
        "closed": entry.closed,
    })
}

pub fn list(context: &Context, arguments: &cli::FollowUpList) -> Result<u8> {
    let (configuration, copies) = stored::open(context, arguments.cluster.as_deref(), None)?;
    let drills = stored::history(&copies, &configuration.signers)?;
    let entries: Vec<&FollowUp> = drills
        .iter()
        .flat_map(|drill| &drill.follow_ups)
        .filter(|entry| arguments.all || entry.closed.is_none())
        .collect();
    if context.json {
        let values: Vec<Value> = entries.iter().map(|entry| value(entry, context)).collect();
        output::json(&json!({ "follow_ups": values }));
        return Ok(exit::DONE);
    }
    if entries.is_empty() {
        output::line("Nothing is open.");
        return Ok(exit::DONE);
    }
    let today = context.now().to_zoned(TimeZone::system()).date();
    let rows: Vec<Vec<String>> = entries
        .iter()
        .map(|entry| {
            vec![
                entry.id(),
                entry.opened.action.clone(),
                entry.opened.owner.clone(),
                entry.opened.due.to_string(),
                entry.status(today),
            ]
        })
        .collect();
    output::table(&["ENTRY", "ACTION", "OWNER", "DUE", "STATUS"], &rows);
    Ok(exit::DONE)
}

pub fn close(context: &Context, arguments: &cli::FollowUpClose) -> Result<u8> {
    let unknown = || {
        Error::usage(
            "follow-up-unknown",
            format!("there is no entry {:?}", arguments.entry),
        )
        .hint("`pgproof drill follow-up list` prints them, as in pitr_drill_20260125T143000Z/1.")
    };
    let (drill, number) = arguments.entry.rsplit_once('/').ok_or_else(unknown)?;
    let number: u32 = number.parse().map_err(|_| unknown())?;
    let (configuration, copies) = stored::open(context, arguments.cluster.as_deref(), None)?;
    let (copy, id) = stored::find(&copies, drill)?;
    let bundle = stored::read(&copy.cluster, &id)?;
    let entries = follow_up::read(&bundle.files).0;
    let entry = entries
        .iter()
        .find(|entry| entry.opened.number == number)
        .ok_or_else(unknown)?;
    if let Some(closed) = &entry.closed {
        output::notice(format!(
            "{} was closed by {} already.",
            entry.id(),
            closed.closed_by
        ));
        return Ok(exit::DONE);
    }
    let opened = audit(&bundle, &configuration.signers)?;
    let own = manifest(&opened, &id)?;
    let (passing_copy, passing) = stored::find(&copies, &arguments.by)?;
    let seen = audit(
        &stored::read(&passing_copy.cluster, &passing)?,
        &configuration.signers,
    )?;
    let facts: &Facts = opened.facts.as_ref().ok_or_else(unknown)?;
    if let Err(why) = follow_up::may_close(facts, &seen) {
        return Err(Error::new(
            "follow-up-open",
            format!("drill {passing} does not close {}", entry.id()),
        )
        .detail(format!("A later drill that passed closes it; {why}."))
        .hint("Run a drill after the fix: `pgproof drill run`."));
    }
    let closed = Closed {
        version: 1,
        drill: id.clone(),
        number,
        closed_by: passing.clone(),
        manifest: manifest(&seen, &passing)?,
        note: arguments.note.clone(),
        at: context.now(),
        by: by(),
    };
    let file = follow_up::closed_file(number);
    copy.cluster
        .add_evidence(&id, &own, &file, &encode(&closed)?, context.now())?;
    stored::refresh(&stored::report_directory()?, copy, &id, &configuration);
    let entry = FollowUp {
        opened: entry.opened.clone(),
        closed: Some(closed),
    };
    if context.json {
        output::json(&json!({ "follow_up": value(&entry, context) }));
    } else {
        output::line(format!("Closed {} by {passing}", entry.id()));
    }
    Ok(exit::DONE)
}
