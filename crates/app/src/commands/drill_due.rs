//! `pgproof drill due`: when the next drills are due, by the calendar and by what was drilled, and the same as a file for
//! a calendar.

use diagnostic::{Error, Result};
use jiff::Zoned;
use jiff::tz::TimeZone;
use report::calendar::{self, Due, Event, Made};
use serde_json::{Value, json};

use super::drill_stored::{self as stored, Recorded};
use crate::cli;
use crate::config::Configuration;
use crate::context::Context;
use crate::{exit, output};

/// Dates of each profile in a calendar.
const EVENTS: usize = 4;

/// A profile with what is due.
pub struct DueDrill {
    pub profile: String,
    pub frequency: calendar::Frequency,
    pub due: Due,
}

impl DueDrill {
    pub fn value(&self) -> Value {
        json!({
            "profile": self.profile,
            "frequency": self.frequency.as_str(),
            "from": self.due.slot.from.timestamp(),
            "until": self.due.slot.until.timestamp(),
            "time_zone": self.due.slot.from.time_zone().iana_name(),
            "quarter": report::quarter(self.due.slot.from.timestamp()),
            "status": if self.due.overdue { "OVERDUE" } else { "SCHEDULED" },
            "overdue": self.due.overdue,
            "why": self.due.why,
        })
    }
}

/// What is due of a cluster: for each profile of the configuration, else for those that were drilled.
pub fn due_of(
    configuration: &Configuration,
    cluster: &str,
    drills: &[Recorded],
    only: Option<&str>,
    now: &Zoned,
) -> Vec<DueDrill> {
    let of_cluster = |name: &Option<String>| name.as_deref().is_none_or(|name| name == cluster);
    let mut profiles: Vec<String> = configuration
        .drills
        .iter()
        .filter(|(_, drill)| of_cluster(&drill.cluster))
        .map(|(name, _)| name.clone())
        .collect();
    if profiles.is_empty() {
        let drilled = drills.iter().filter_map(|drill| drill.facts.as_ref());
        profiles = drilled.map(|facts| facts.identity.profile.clone()).collect();
        profiles.sort();
        profiles.dedup();
    }
    if profiles.is_empty() {
        profiles.push("default".to_owned());
    }
    if let Some(only) = only {
        profiles = vec![only.to_owned()];
    }
    let due = profiles.into_iter().filter_map(|profile| {
        let made: Vec<Made> = drills
            .iter()
            .filter_map(|drill| {
                let facts = drill.facts.as_ref()?;
                // A planted fault says nothing about production.
                (facts.identity.profile == profile && facts.planted_faults.is_empty()).then(|| {
                    Some(Made {
                        drill: drill.drill.clone(),
                        started_at: facts.started_at,
                        status: drill.verdict.as_ref()?.status,
                    })
                })?
            })
            .collect();
        let frequency = configuration.frequency(&profile);
        let due = calendar::due(frequency, &made, now)?;
        Some(DueDrill {
            profile,
            frequency,
            due,
        })
    });
    due.collect()
}

pub fn run(context: &Context, arguments: &cli::DrillDue) -> Result<u8> {
    let (configuration, copies) = stored::open(context, arguments.cluster.as_deref(), None)?;
    let cluster = configuration.cluster(arguments.cluster.as_deref())?;
    if let Some(profile) = &arguments.profile {
        // Says what there is when there is no such profile.
        configuration.profile(profile)?;
    }
    let zone = match &arguments.time_zone {
        Some(name) => TimeZone::get(name).map_err(|error| {
            Error::usage("time-zone", format!("there is no time zone {name:?}"))
                .caused_by(&error)
                .hint("Name one as in Europe/Berlin.")
        })?,
        None => TimeZone::system(),
    };
    let now = context.now().to_zoned(zone);
    let drills = stored::history(&copies, &configuration.signers)?;
    let due = due_of(
        &configuration,
        &cluster.name,
        &drills,
        arguments.profile.as_deref(),
        &now,
    );
    if let Some(file) = &arguments.ics {
        let events: Vec<Event> = due
            .iter()
            .flat_map(|it| {
                calendar::series(it.frequency, &it.due.slot, EVENTS)
                    .into_iter()
                    .map(|slot| Event {
                        profile: it.profile.clone(),
                        cluster: cluster.name.clone(),
                        slot,
                        runbook: arguments.runbook.clone(),
                    })
            })
            .collect();
        std::fs::write(file, calendar::icalendar(&events, context.now())).map_err(|error| {
            Error::io(
                "calendar-write",
                format!("cannot write {:?}", file.display().to_string()),
                &error,
            )
        })?;
    }
    if context.json {
        let values: Vec<Value> = due.iter().map(DueDrill::value).collect();
        output::json(&json!({ "due": values, "ics": arguments.ics }));
    } else {
        let rows: Vec<Vec<String>> = due
            .iter()
            .map(|it| {
                vec![
                    it.profile.clone(),
                    it.due.slot.from.strftime("%a %Y-%m-%d %H:%M").to_string(),
                    it.due.slot.until.strftime("%a %Y-%m-%d %H:%M %Z").to_string(),
                    if it.due.overdue { "OVERDUE" } else { "SCHEDULED" }.to_owned(),
                    it.due.why.clone(),
                ]
            })
            .collect();
        output::table(&["PROFILE", "FROM", "UNTIL", "STATUS", "WHY"], &rows);
        if let Some(file) = &arguments.ics {
            output::line(format!("Calendar: {}", file.display()));
        }
    }
    let bad = arguments.check && due.iter().any(|it| it.due.overdue);
    Ok(if bad { exit::BAD } else { exit::DONE })
}
