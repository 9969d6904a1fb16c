//! What people do while a drill runs, and confirm: the profile's list, the waiting, and the answers.
//!
//! The drill and whoever confirms are two processes that share the folder of the copy. Invariants: each step has one
//! answer, the first that is written whole, and "too late" is an answer of the drill's own, so that nobody is told
//! "confirmed" whom the drill did not wait for; names and reasons are one line of bounded length; an answer that cannot
//! be read is none; waiting ends with the drill.

use std::io::{Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use diagnostic::{Error, Result};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::copy::CopyFolder;
use crate::engine::{Ended, Run};
use crate::facts::{ManualFacts, ManualState, ManualWhen};
use crate::options::{Drill, Profile};
use crate::profile::length;
use crate::rows::aborted;

/// How long a drill waits where the profile does not say.
pub const DEFAULT_LIMIT: Duration = Duration::from_secs(15 * 60);
/// A name has at most so many characters.
pub const NAME_CHARACTERS_MAX: usize = 100;
/// A title, or a reason for skipping a step, has at most so many.
pub const TEXT_CHARACTERS_MAX: usize = 300;
/// An id has at most so many.
const ID_CHARACTERS_MAX: usize = 60;
/// Between two looks for an answer.
const POLL: Duration = Duration::from_millis(100);
/// How the files begin, in the folder of the copy.
const PREFIX: &str = "manual";
/// The list of steps.
const LIST: &str = "manual.json";
/// A file is at most so long.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// A step that people make.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ManualStep {
    /// A stable word: letters, digits and hyphens.
    pub id: String,
    /// What is to be done, in one line.
    pub title: String,
    /// When.
    pub when: ManualWhen,
    /// Whether the drill proves nothing without it.
    pub required: bool,
    /// How long the drill waits for it.
    pub limit: Duration,
}

/// What was said about a step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "kebab-case")]
pub enum Answer {
    /// It was made.
    Confirmed {
        /// By whom.
        by: String,
        /// When that was said.
        at: Timestamp,
    },
    /// It is not made.
    Skipped {
        /// Who says so.
        by: String,
        /// When.
        at: Timestamp,
        /// Why.
        reason: String,
    },
    /// The drill waits no longer.
    TooLate,
}

/// A step as it stands in the folder of a drill that runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    /// Its id.
    pub id: String,
    /// What is to be done.
    pub title: String,
}

/// Where people are waited for: the step's id, and its title.
pub fn step_of(when: ManualWhen) -> (&'static str, &'static str) {
    match when {
        ManualWhen::Before => ("manual-before", "Wait for people, before anything is restored"),
        ManualWhen::AtTarget => (
            "manual-at-target",
            "Wait for people, while the copy stands at its last stop",
        ),
        ManualWhen::After => ("manual-after", "Wait for people, when the copy is gone"),
    }
}

/// Whether a file of the copy's folder belongs to these steps.
pub(crate) fn is_file_of(name: &str) -> bool {
    name.starts_with(PREFIX)
}

/// One line without control characters, of at most `most` characters; or what is wrong with it.
pub fn one_line(text: &str, most: usize) -> Result<String, String> {
    let text = text.trim();
    // Besides control characters, those that turn the direction of what stands around them.
    let hidden = |c: char| {
        c.is_control()
            || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{200e}' | '\u{200f}')
    };
    if text.is_empty() {
        return Err("is empty".into());
    }
    if text.chars().any(hidden) {
        return Err("holds characters that cannot be seen".into());
    }
    if text.chars().count() > most {
        return Err(format!("has more than {most} characters"));
    }
    Ok(text.to_owned())
}

/// Whether this can be the id of a step: it is a part of a file's name.
pub fn is_id(id: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-';
    !id.is_empty() && id.len() <= ID_CHARACTERS_MAX && id.chars().all(plain) && !id.starts_with('-')
}

/// Steps of this profile that are made then.
fn of(profile: &Profile, when: ManualWhen) -> impl Iterator<Item = &ManualStep> {
    profile.manual.iter().filter(move |step| step.when == when)
}

/// Whether anybody is waited for then.
pub fn is_asked(profile: &Profile, when: ManualWhen) -> bool {
    of(profile, when).next().is_some()
}

/// What was recorded before a drill comes to it.
pub(crate) fn blank(profile: &Profile) -> Vec<ManualFacts> {
    let facts = |step: &ManualStep| ManualFacts {
        id: step.id.clone(),
        title: step.title.clone(),
        when: step.when,
        required: step.required,
        limit_ms: u64::try_from(step.limit.as_millis()).unwrap_or(u64::MAX),
        asked_at: None,
        state: ManualState::NotConfirmed,
        by: None,
        at: None,
        why: Some("the drill ended before it came to it".into()),
    };
    profile.manual.iter().map(facts).collect()
}

/// Refuses confirmations beforehand, ids and names, that no step of the profile asks for. Error: `drill-usage`.
pub fn check_confirmed(profile: &Profile, confirmed: &[(String, String)]) -> Result<()> {
    for (at, (id, name)) in confirmed.iter().enumerate() {
        let twice = confirmed[..at].iter().any(|(other, _)| other == id);
        let wrong = match profile.manual.iter().any(|step| step.id == *id) {
            _ if twice => Some("it is confirmed twice".to_owned()),
            true => one_line(name, NAME_CHARACTERS_MAX)
                .err()
                .map(|why| format!("the name {why}")),
            false => Some(format!("the profile \"{}\" has no such step", profile.name)),
        };
        if let Some(why) = wrong {
            let ids: Vec<&str> = profile.manual.iter().map(|step| step.id.as_str()).collect();
            let error = Error::usage("drill-usage", format!("step {id:?} cannot be confirmed: {why}"));
            return Err(match ids.as_slice() {
                [] => error,
                ids => error.hint(format!("There are: {}.", ids.join(", "))),
            });
        }
    }
    Ok(())
}

/// Lays the list of steps into the copy's folder, with what was confirmed beforehand. Error: `copy-folder`.
pub(crate) fn prepare(drill: &Drill<'_>, folder: &CopyFolder) -> Result<()> {
    if drill.profile.manual.is_empty() {
        return Ok(());
    }
    let listed = |step: &ManualStep| Listed {
        id: step.id.clone(),
        title: step.title.clone(),
    };
    let listed: Vec<Listed> = drill.profile.manual.iter().map(listed).collect();
    create(&folder.path, LIST, &listed)?;
    for (id, name) in &drill.confirmed {
        let by = one_line(name, NAME_CHARACTERS_MAX).map_err(|why| Error::usage("drill-usage", why))?;
        let at = (drill.clock)();
        create(&folder.path, &file_of(id), &Answer::Confirmed { by, at })?;
    }
    Ok(())
}

fn file_of(id: &str) -> String {
    format!("{PREFIX}-{id}.json")
}

fn failed(what: &str, path: &Path, error: &std::io::Error) -> Error {
    Error::io(
        "copy-folder",
        format!("cannot {what} \"{}\"", path.display()),
        error,
    )
}

/// Makes a file that is not there yet, whole or not at all; false: it is there.
fn create(folder: &Path, name: &str, value: &impl Serialize) -> Result<bool> {
    let path = folder.join(name);
    let own = folder.join(format!("{name}.{}", std::process::id()));
    let text = serde_json::to_vec(value)
        .map_err(|error| Error::new("copy-folder", "cannot write JSON").caused_by(&error))?;
    // A name that is there already, a link to elsewhere too, is never written through.
    let opened = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o644)
        .open(&own);
    let mut file = opened.map_err(|error| failed("make", &own, &error))?;
    // Whatever the umask of whoever confirms: the drill's own account reads it, in a folder that only it may enter.
    let written = file
        .set_permissions(std::fs::Permissions::from_mode(0o644))
        .and_then(|()| file.write_all(&text))
        .and_then(|()| file.sync_all());
    let linked = written.and_then(|()| std::fs::hard_link(&own, &path));
    let removed = std::fs::remove_file(&own);
    match linked {
        Ok(()) => removed
            .map(|()| true)
            .map_err(|error| failed("remove", &own, &error)),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(failed("make", &path, &error)),
    }
}

/// A file of bounded length; nothing if it is not there.
fn read<T: serde::de::DeserializeOwned>(folder: &Path, name: &str) -> Result<Option<T>> {
    let path = folder.join(name);
    let file = match std::fs::File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed("read", &path, &error)),
    };
    let mut text = Vec::new();
    file.take(FILE_BYTES_MAX)
        .read_to_end(&mut text)
        .map_err(|error| failed("read", &path, &error))?;
    serde_json::from_slice(&text).map(Some).map_err(|error| {
        Error::new(
            "copy-folder",
            format!("\"{}\" cannot be understood", path.display()),
        )
        .caused_by(&error)
    })
}

/// The steps of the drill that runs in this folder, without those that have an answer. Error: `copy-folder`.
pub fn open(folder: &Path) -> Result<Vec<Listed>> {
    let mut listed: Vec<Listed> = read(folder, LIST)?.unwrap_or_default();
    listed.retain(|step| is_id(&step.id) && !folder.join(file_of(&step.id)).exists());
    Ok(listed)
}

/// Answers for a step of the drill that runs in this folder; its title. Errors: `manual-step-unknown`,
/// `manual-step-answered` (somebody has, or the drill waits no longer), `copy-folder`.
pub fn answer(folder: &Path, id: &str, answer: &Answer) -> Result<String> {
    let listed: Vec<Listed> = read(folder, LIST)?.unwrap_or_default();
    let Some(step) = listed.iter().find(|step| step.id == id && is_id(id)) else {
        let ids: Vec<&str> = listed.iter().map(|step| step.id.as_str()).collect();
        let error = Error::usage(
            "manual-step-unknown",
            format!("the drill has no step {id:?} that people confirm"),
        );
        return Err(match ids.as_slice() {
            [] => error,
            ids => error.hint(format!("There are: {}.", ids.join(", "))),
        });
    };
    if create(folder, &file_of(id), answer)? {
        return Ok(step.title.clone());
    }
    let said = match read(folder, &file_of(id))? {
        Some(Answer::Confirmed { by, at }) => format!("{by} has confirmed it at {at}"),
        Some(Answer::Skipped { by, at, .. }) => format!("{by} has skipped it at {at}"),
        _ => "the drill waits for it no longer".to_owned(),
    };
    Err(Error::new(
        "manual-step-answered",
        format!("step {id:?} cannot be answered any more: {said}"),
    ))
}

/// Waits for everything that people do now; `place` says where the copy answers them. That nobody confirms it is a
/// result, and not the drill's end.
pub(crate) fn wait(
    run: &mut Run<'_>,
    folder: &CopyFolder,
    when: ManualWhen,
    place: Option<&str>,
) -> Result<(), Ended> {
    if !is_asked(&run.drill.profile, when) {
        return Ok(());
    }
    let (id, title) = step_of(when);
    run.step(id, title, |run| {
        // Time of people is not the engine's own.
        run.working(|run| {
            if let Some(place) = place {
                run.note(&format!("the copy answers at \"{place}\""));
            }
            let mut confirmed = 0;
            let all: Vec<usize> = (0..run.facts.manual.len())
                .filter(|at| run.facts.manual.get(*at).is_some_and(|step| step.when == when))
                .collect();
            for at in &all {
                confirmed += usize::from(wait_for_one(run, folder, *at)?);
            }
            Ok(((), format!("{confirmed} of {} confirmed", all.len())))
        })
    })
}

/// Waits for one; whether it is confirmed.
fn wait_for_one(run: &mut Run<'_>, folder: &CopyFolder, at: usize) -> Result<bool> {
    let Some(step) = run.facts.manual.get(at).cloned() else {
        return Ok(false);
    };
    let limit = Duration::from_millis(step.limit_ms);
    let (asked_at, started) = ((run.drill.clock)(), Instant::now());
    record(run, at, |facts| {
        facts.asked_at = Some(asked_at);
        facts.why = Some("the drill was ended while it waited".into());
    });
    let file = file_of(&step.id);
    if !folder.path.join(&file).exists() {
        let need = if step.required { ", required" } else { "" };
        run.note(&format!(
            "to do by hand, within {}{need}: {}",
            length(limit),
            step.title
        ));
        let parent = folder.path.parent().unwrap_or(Path::new("/"));
        run.note(&format!(
            "confirm it by: pgproof drill confirm {} --by NAME --drill {} --directory {}",
            step.id,
            folder.name(),
            parent.display()
        ));
    }
    loop {
        match read::<Answer>(&folder.path, &file).map(|answer| answer.map(clean)) {
            Ok(Some(Some(answer))) => return Ok(conclude(run, at, &step, answer)),
            Ok(None) => {}
            Ok(Some(None)) | Err(_) => {
                run.note(&format!(
                    "an answer to {} cannot be read, and is left out",
                    step.id
                ));
                let path = folder.path.join(&file);
                std::fs::remove_file(&path).map_err(|error| failed("remove", &path, &error))?;
            }
        }
        if run.drill.abort.load(std::sync::atomic::Ordering::Relaxed) || folder.is_to_end() {
            return Err(aborted());
        }
        if started.elapsed() >= limit {
            // An answer that came in between counts.
            let came = match create(&folder.path, &file, &Answer::TooLate)? {
                true => None,
                false => read::<Answer>(&folder.path, &file).ok().flatten().and_then(clean),
            };
            return Ok(conclude(run, at, &step, came.unwrap_or(Answer::TooLate)));
        }
        std::thread::sleep(POLL.min(limit));
    }
}

/// The answer, if what somebody wrote may stand in the evidence.
fn clean(answer: Answer) -> Option<Answer> {
    let name = |by: &str| one_line(by, NAME_CHARACTERS_MAX).ok();
    Some(match answer {
        Answer::Confirmed { by, at } => Answer::Confirmed { by: name(&by)?, at },
        Answer::Skipped { by, at, reason } => Answer::Skipped {
            by: name(&by)?,
            at,
            reason: one_line(&reason, TEXT_CHARACTERS_MAX).ok()?,
        },
        Answer::TooLate => Answer::TooLate,
    })
}

fn record(run: &mut Run<'_>, at: usize, change: impl FnOnce(&mut ManualFacts)) {
    if let Some(facts) = run.facts.manual.get_mut(at) {
        change(facts);
    }
}

/// Records what was said; whether it is confirmed.
fn conclude(run: &mut Run<'_>, at: usize, step: &ManualFacts, answer: Answer) -> bool {
    let (state, by, said_at, why) = match answer {
        Answer::Confirmed { by, at } => (ManualState::Confirmed, Some(by), Some(at), None),
        Answer::Skipped { by, at, reason } => (ManualState::Skipped, Some(by), Some(at), Some(reason)),
        Answer::TooLate => {
            let limit = length(Duration::from_millis(step.limit_ms));
            let why = format!("nobody confirmed it within {limit}");
            (ManualState::NotConfirmed, None, None, Some(why))
        }
    };
    let who = by.as_deref().unwrap_or("nobody");
    let said = match (state, &why) {
        (ManualState::Confirmed, _) => format!("{}: confirmed by {who}", step.id),
        (ManualState::Skipped, why) => {
            format!("{}: skipped by {who}: {}", step.id, why.as_deref().unwrap_or("-"))
        }
        (ManualState::NotConfirmed, why) => format!("{}: {}", step.id, why.as_deref().unwrap_or("-")),
    };
    run.note(&said);
    record(run, at, |facts| {
        facts.state = state;
        facts.by = by;
        facts.at = said_at;
        facts.why = why;
    });
    state == ManualState::Confirmed
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a folder");
        let listed = [Listed {
            id: "window".into(),
            title: "A window is agreed".into(),
        }];
        assert!(create(folder.path(), LIST, &listed.to_vec()).expect("the list"));
        folder
    }

    fn confirmed(by: &str) -> Answer {
        Answer::Confirmed {
            by: by.into(),
            at: "2026-01-25T14:30:00Z".parse().expect("a time"),
        }
    }

    #[test]
    fn the_first_answer_counts_and_later_ones_are_told_whose_it_is() {
        let folder = folder();
        let title = answer(folder.path(), "window", &confirmed("Ann")).expect("the first");
        assert_eq!(title, "A window is agreed");
        let late = answer(folder.path(), "window", &confirmed("Bob")).expect_err("the second");
        assert_eq!(late.code(), "manual-step-answered");
        assert!(
            late.message().contains("Ann has confirmed it"),
            "{}",
            late.message()
        );
        let kept = read::<Answer>(folder.path(), &file_of("window")).expect("readable");
        assert_eq!(kept, Some(confirmed("Ann")));
        assert_eq!(open(folder.path()).expect("what is open"), []);
    }

    #[test]
    fn nobody_is_told_confirmed_when_the_drill_waits_no_longer() {
        let folder = folder();
        assert!(create(folder.path(), &file_of("window"), &Answer::TooLate).expect("closed"));
        let late = answer(folder.path(), "window", &confirmed("Ann")).expect_err("too late");
        assert_eq!(late.code(), "manual-step-answered");
        assert!(
            late.message().contains("waits for it no longer"),
            "{}",
            late.message()
        );
    }

    #[test]
    fn a_step_that_does_not_exist_or_leads_elsewhere_is_refused() {
        let folder = folder();
        for id in ["windows", "../window", "", "window/../../x"] {
            let error = answer(folder.path(), id, &confirmed("Ann")).expect_err(id);
            assert_eq!(error.code(), "manual-step-unknown", "{id}");
        }
        // A link that lies in the way is never written through.
        let outside = tempfile::tempdir().expect("a folder");
        let victim = outside.path().join("victim");
        std::os::unix::fs::symlink(&victim, folder.path().join(file_of("window"))).expect("a link");
        assert!(answer(folder.path(), "window", &confirmed("Ann")).is_err());
        assert!(!victim.exists());
    }

    #[test]
    fn names_are_one_line_of_bounded_length_without_what_cannot_be_seen() {
        assert_eq!(one_line(" Ann Müller ", 100), Ok("Ann Müller".into()));
        for bad in [
            "",
            "  ",
            "a\nb",
            "a\u{1b}[2Jb",
            "a\u{202e}b",
            "a\u{2028}b",
            "a\0b",
        ] {
            assert!(one_line(bad, 100).is_err(), "{bad:?}");
        }
        assert!(one_line(&"x".repeat(101), 100).is_err());
        assert!(one_line(&"ü".repeat(100), 100).is_ok());
        assert_eq!(clean(confirmed("a\nb")), None);
        let skipped = Answer::Skipped {
            by: "Ann".into(),
            at: Timestamp::UNIX_EPOCH,
            reason: "x".repeat(TEXT_CHARACTERS_MAX + 1),
        };
        assert_eq!(clean(skipped), None);
        assert!(is_id("incident-declared") && !is_id("a.b") && !is_id("-a") && !is_id(&"x".repeat(61)));
    }
}
