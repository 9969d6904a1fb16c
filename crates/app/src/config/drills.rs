//! `[drill.NAME]`: profiles of one's own, checks, objectives, gates and people.
//!
//! Invariants: a profile that contradicts itself is refused when the file is read, with the reason; what a check may
//! say is what its kind knows, and anything else is an error; values that a check gets from the environment are named
//! here, and read only when it runs.

use std::collections::BTreeMap;
use std::time::Duration;

use drill::facts::{Category, HttpExpectation, ManualWhen, Measure};
use drill::manual::{self, ManualStep};
use drill::profile::{GateDefinition, ObjectiveDefinition, ProfileDefinition};
use drill::user_checks::{Asked, CheckKind, CommandCheck, UserCheck};
use drill::{Grant, Profile};
use serde::Deserialize;

use super::values::Length;

/// One drill of the file.
#[derive(Debug, Clone)]
pub struct DrillProfile {
    pub cluster: Option<String>,
    /// How often, if the file says it.
    pub schedule: Option<report::calendar::Frequency>,
    pub people: PeopleSection,
    pub definition: ProfileDefinition,
    /// With everything that it extends filled in.
    pub profile: Profile,
}

/// `[drill.NAME.people]`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeopleSection {
    pub operator: Option<String>,
    pub reviewer: Option<String>,
    pub escalation: Option<PersonSection>,
    pub observer: Option<PersonSection>,
    pub lead: Option<PersonSection>,
    pub dba: Option<PersonSection>,
    pub platform: Option<PersonSection>,
    pub qa: Option<PersonSection>,
}

/// Somebody: a name, or a name with the time of an outage from which on this one is called.
#[derive(Debug, Clone, Deserialize)]
#[serde(try_from = "toml::Value")]
pub struct PersonSection {
    pub name: String,
    pub after: Option<Length>,
}

impl TryFrom<toml::Value> for PersonSection {
    type Error = String;

    fn try_from(value: toml::Value) -> Result<PersonSection, String> {
        let mut table = match value {
            toml::Value::String(name) => return Ok(PersonSection { name, after: None }),
            toml::Value::Table(table) => table,
            _ => return Err(PERSON.to_owned()),
        };
        let Some(toml::Value::String(name)) = table.remove("name") else {
            return Err(PERSON.to_owned());
        };
        let after =
            match table.remove("after") {
                None => None,
                Some(toml::Value::String(text)) => Some(Length::parse(&text).ok_or_else(|| {
                    format!("{text:?} is not a length of time such as \"30 min\" or \"2 h\"")
                })?),
                Some(_) => return Err(PERSON.to_owned()),
            };
        match table.keys().next() {
            Some(other) => Err(format!("a person has no `{other}`; {PERSON}")),
            None => Ok(PersonSection { name, after }),
        }
    }
}

impl PeopleSection {
    /// Everybody but operator and reviewer, with their roles.
    pub fn others(&self) -> Vec<drill::facts::Person> {
        [
            ("escalation", &self.escalation),
            ("observer", &self.observer),
            ("lead", &self.lead),
            ("dba", &self.dba),
            ("platform", &self.platform),
            ("qa", &self.qa),
        ]
        .into_iter()
        .filter_map(|(role, person)| {
            let person = person.as_ref()?;
            Some(drill::facts::Person {
                role: role.into(),
                name: person.name.clone(),
                called_after_seconds: person.after.as_ref().map(|after| after.duration.as_secs()),
            })
        })
        .collect()
    }

    /// Names are printed on terminals and in reports.
    fn check(&self) -> Result<(), Wrong> {
        let two = [("operator", &self.operator), ("reviewer", &self.reviewer)];
        let two = two
            .into_iter()
            .filter_map(|(role, name)| Some((role.to_owned(), name.clone()?)));
        let others = self.others().into_iter().map(|other| (other.role, other.name));
        for (role, name) in two.chain(others) {
            manual::one_line(&name, manual::NAME_CHARACTERS_MAX)
                .map_err(|why| (format!("people.{role}"), format!("the name {name:?} {why}")))?;
        }
        Ok(())
    }
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DrillSection {
    pub cluster: Option<String>,
    pub schedule: Option<String>,
    extends: Option<String>,
    also: Option<Vec<String>>,
    rto: Option<Length>,
    rto_warning: Option<Length>,
    rto_clock: Option<String>,
    rpo: Option<Length>,
    target: Option<String>,
    checks: Option<Vec<String>>,
    may_be_not_run: Option<Vec<String>>,
    grants: Option<Vec<Grant>>,
    backup_first: Option<bool>,
    restore_tries: Option<u32>,
    #[serde(default)]
    step_limits: BTreeMap<String, Length>,
    #[serde(default)]
    gates: GatesSection,
    #[serde(default)]
    people: PeopleSection,
    #[serde(default)]
    objective: Vec<ObjectiveSection>,
    #[serde(default)]
    check: Vec<CheckSection>,
    #[serde(default)]
    manual: Vec<ManualSection>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct GatesSection {
    backup_age: Option<Length>,
    wal_age: Option<Length>,
    free_space: Option<f64>,
    clock: Option<Length>,
    roles: Option<bool>,
    blocking: Option<Vec<String>>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct ObjectiveSection {
    id: String,
    clock: String,
    at_most: Length,
    warning: Option<Length>,
    measure: Option<Measure>,
}

/// What people do, and confirm.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct ManualSection {
    id: String,
    title: String,
    when: String,
    #[serde(default)]
    required: bool,
    limit: Option<Length>,
}

/// What a check may say; which of it belongs to a kind is decided in [`CheckSection::resolve`].
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct CheckSection {
    id: String,
    kind: Option<String>,
    category: Option<Category>,
    required: Option<bool>,
    database: Option<String>,
    sql: Option<String>,
    expect: Option<toml::Value>,
    tables: Option<Vec<String>>,
    table: Option<String>,
    column: Option<String>,
    within: Option<Length>,
    indexes: Option<Vec<String>>,
    path: Option<String>,
    status: Option<u16>,
    values: Option<Vec<ValueSection>>,
    readiness: Option<bool>,
    command: Option<Vec<String>>,
    environment: Option<BTreeMap<String, String>>,
    limit: Option<Length>,
    exit_code: Option<i32>,
    files: Option<Vec<String>>,
    p95: Option<Length>,
    samples: Option<u32>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct ValueSection {
    name: String,
    pointers: Option<Vec<String>>,
    is: toml::Value,
}

/// How a person is written, for messages.
const PERSON: &str = "a person is written as a name, or as { name = \"...\", after = \"30 min\" }";
/// The kinds of checks, for messages.
const KINDS: &str = "sql, row-counts, orphans, freshness, indexes, http, command, junit, p95";
/// How often an answer is timed where the profile does not say.
const SAMPLES: u32 = 20;
/// How long a command may take where the profile does not say.
const COMMAND_LIMIT: Duration = Duration::from_secs(300);

/// What is wrong, and where below the drill's section.
pub(super) type Wrong = (String, String);

impl DrillSection {
    /// The profile as it is written.
    pub fn definition(&self) -> Result<ProfileDefinition, Wrong> {
        let length = |length: &Option<Length>| length.as_ref().map(|length| length.duration);
        let mut user_checks: Vec<UserCheck> = Vec::new();
        for (index, check) in self.check.iter().enumerate() {
            let at = format!("check[{index}]");
            if check.id.is_empty() || user_checks.iter().any(|other| other.id == check.id) {
                return Err((
                    at,
                    format!("the check's id {:?} is empty or used twice", check.id),
                ));
            }
            user_checks.push(check.resolve().map_err(|why| (at, why))?);
        }
        self.people.check()?;
        let mut by_hand: Vec<ManualStep> = Vec::new();
        for (index, step) in self.manual.iter().enumerate() {
            let at = format!("manual[{index}]");
            if by_hand.iter().any(|other| other.id == step.id) {
                return Err((at, format!("the step's id {:?} is used twice", step.id)));
            }
            by_hand.push(step.resolve().map_err(|why| (at, why))?);
        }
        let objectives = self.objective.iter().map(|objective| ObjectiveDefinition {
            id: objective.id.clone(),
            clock: objective.clock.clone(),
            measure: objective.measure.unwrap_or(Measure::Other),
            target: objective.at_most.duration,
            warning: length(&objective.warning),
        });
        Ok(ProfileDefinition {
            extends: self.extends.clone(),
            rto: length(&self.rto),
            rto_warning: length(&self.rto_warning),
            rto_clock: self.rto_clock.clone(),
            rpo: length(&self.rpo),
            target: self.target.clone(),
            checks: self.checks.clone(),
            may_be_not_run: self.may_be_not_run.clone(),
            grants: self.grants.clone(),
            also: self.also.clone(),
            backup_first: self.backup_first,
            restore_tries: self.restore_tries,
            step_limits: self
                .step_limits
                .iter()
                .map(|(id, limit)| (id.clone(), limit.duration))
                .collect(),
            objectives: objectives.collect(),
            gates: GateDefinition {
                backup_age: length(&self.gates.backup_age),
                wal_age: length(&self.gates.wal_age),
                free_space: self.gates.free_space,
                clock: length(&self.gates.clock),
                roles: self.gates.roles,
                blocking: self.gates.blocking.clone(),
            },
            user_checks,
            manual: by_hand,
        })
    }

    pub fn people(&self) -> PeopleSection {
        self.people.clone()
    }
}

impl ManualSection {
    fn resolve(&self) -> Result<ManualStep, String> {
        if !manual::is_id(&self.id) {
            return Err(format!(
                "the step's id {:?} must be made of letters, digits and hyphens, at most 60 of them",
                self.id
            ));
        }
        let title = manual::one_line(&self.title, manual::TEXT_CHARACTERS_MAX)
            .map_err(|why| format!("the title of step {:?} {why}", self.id))?;
        let when = match self.when.as_str() {
            "before" => ManualWhen::Before,
            "at-target" => ManualWhen::AtTarget,
            "after" => ManualWhen::After,
            other => {
                return Err(format!(
                    "`when` is {other:?}; a step is made \"before\", \"at-target\" or \"after\""
                ));
            }
        };
        let limit = self
            .limit
            .as_ref()
            .map_or(manual::DEFAULT_LIMIT, |limit| limit.duration);
        if limit.is_zero() {
            return Err(format!("the drill would not wait for step {:?} at all", self.id));
        }
        Ok(ManualStep {
            id: self.id.clone(),
            title,
            when,
            required: self.required,
            limit,
        })
    }
}

/// A scalar as PostgreSQL prints it.
fn scalar(value: &toml::Value, key: &str) -> Result<String, String> {
    Ok(match value {
        toml::Value::Boolean(true) => "t".to_owned(),
        toml::Value::Boolean(false) => "f".to_owned(),
        toml::Value::Integer(number) => number.to_string(),
        toml::Value::Float(number) => number.to_string(),
        toml::Value::String(text) => text.clone(),
        _ => return Err(format!("`{key}` must be true, false, a number or a text")),
    })
}

impl CheckSection {
    fn kind(&self) -> &str {
        match (&self.kind, &self.sql) {
            (Some(kind), _) => kind,
            (None, Some(_)) => "sql",
            (None, None) => "",
        }
    }

    fn resolve(&self) -> Result<UserCheck, String> {
        let (kind, category, mine): (CheckKind, Category, &[&str]) = match self.kind() {
            "sql" => (self.sql()?, Category::Data, &["database", "sql", "expect"]),
            "row-counts" => {
                let kind = CheckKind::RowCounts {
                    database: self.database.clone(),
                    tables: self.tables.clone().unwrap_or_default(),
                };
                (kind, Category::Data, &["database", "tables"])
            }
            "orphans" => (CheckKind::Orphans, Category::Integrity, &[]),
            "freshness" => {
                let kind = CheckKind::Freshness {
                    database: self.database.clone(),
                    table: needed(&self.table, "table")?,
                    column: needed(&self.column, "column")?,
                    within: needed(&self.within, "within")?.duration,
                };
                (kind, Category::Data, &["database", "table", "column", "within"])
            }
            "indexes" => {
                let kind = CheckKind::Indexes {
                    database: self.database.clone(),
                    names: self.indexes.clone().unwrap_or_default(),
                };
                (kind, Category::Integrity, &["database", "indexes"])
            }
            "http" => (
                self.http()?,
                Category::Application,
                &["path", "status", "values", "readiness"],
            ),
            "command" => {
                let kind = CheckKind::Command(CommandCheck {
                    command: Some(needed(&self.command, "command")?)
                        .filter(|words| words.first().is_some_and(|word| !word.is_empty()))
                        .ok_or("`command` names no program")?,
                    environment: self.environment.clone().unwrap_or_default(),
                    limit: self.limit.as_ref().map_or(COMMAND_LIMIT, |limit| limit.duration),
                    exit_code: self.exit_code.unwrap_or(0),
                });
                (
                    kind,
                    Category::Application,
                    &["command", "environment", "limit", "exit_code"],
                )
            }
            "junit" => {
                let kind = CheckKind::Junit {
                    files: needed(&self.files, "files")?,
                };
                (kind, Category::Application, &["files"])
            }
            "p95" => (
                self.latency()?,
                Category::Performance,
                &["database", "sql", "path", "p95", "samples"],
            ),
            "" => return Err(format!("`kind` is missing; there are {KINDS}")),
            other => return Err(format!("there is no kind of check {other:?}; there are {KINDS}")),
        };
        for given in self.given() {
            if !mine.contains(&given) {
                return Err(format!(
                    "`{given}` has no meaning for a check of kind {:?}",
                    self.kind()
                ));
            }
        }
        Ok(UserCheck {
            id: self.id.clone(),
            category: self.category.unwrap_or(category),
            required: self.required.unwrap_or(false),
            kind,
        })
    }

    /// Keys that belong to some kinds only, and stand here.
    fn given(&self) -> Vec<&'static str> {
        let said = [
            ("database", self.database.is_some()),
            ("sql", self.sql.is_some()),
            ("expect", self.expect.is_some()),
            ("tables", self.tables.is_some()),
            ("table", self.table.is_some()),
            ("column", self.column.is_some()),
            ("within", self.within.is_some()),
            ("indexes", self.indexes.is_some()),
            ("path", self.path.is_some()),
            ("status", self.status.is_some()),
            ("values", self.values.is_some()),
            ("readiness", self.readiness.is_some()),
            ("command", self.command.is_some()),
            ("environment", self.environment.is_some()),
            ("limit", self.limit.is_some()),
            ("exit_code", self.exit_code.is_some()),
            ("files", self.files.is_some()),
            ("p95", self.p95.is_some()),
            ("samples", self.samples.is_some()),
        ];
        said.iter()
            .filter(|(_, said)| *said)
            .map(|(key, _)| *key)
            .collect()
    }

    fn sql(&self) -> Result<CheckKind, String> {
        Ok(CheckKind::Sql {
            database: self.database.clone(),
            sql: needed(&self.sql, "sql")?,
            expect: scalar(&needed(&self.expect, "expect")?, "expect")?,
        })
    }

    fn http(&self) -> Result<CheckKind, String> {
        let mut values = Vec::new();
        for value in self.values.iter().flatten() {
            let accepted = match &value.is {
                toml::Value::Array(any) => any.iter().map(json_scalar).collect::<Result<Vec<_>, _>>()?,
                one => vec![json_scalar(one)?],
            };
            let pointers = value
                .pointers
                .clone()
                .unwrap_or_else(|| vec![format!("/{}", value.name)]);
            if let Some(bad) = pointers.iter().find(|pointer| !pointer.starts_with('/')) {
                return Err(format!("the JSON pointer {bad:?} must begin with a slash"));
            }
            values.push(HttpExpectation {
                name: value.name.clone(),
                pointers,
                accepted,
            });
        }
        Ok(CheckKind::Http {
            path: path_below(&needed(&self.path, "path")?)?,
            status: self.status.unwrap_or(200),
            values,
            readiness: self.readiness.unwrap_or(false),
        })
    }

    fn latency(&self) -> Result<CheckKind, String> {
        let of = match (&self.path, &self.sql) {
            (Some(path), None) => Asked::Endpoint(path_below(path)?),
            (None, Some(sql)) => Asked::Query(self.database.clone(), sql.clone()),
            _ => return Err("a check of kind \"p95\" says either `path` or `sql`".into()),
        };
        Ok(CheckKind::Latency {
            of,
            p95: needed(&self.p95, "p95")?.duration,
            samples: self.samples.unwrap_or(SAMPLES).clamp(1, 10_000),
        })
    }
}

/// A JSON value as it is compared: `true`, `ok`, `42`.
fn json_scalar(value: &toml::Value) -> Result<String, String> {
    match value {
        toml::Value::Boolean(value) => Ok(value.to_string()),
        other => scalar(other, "is"),
    }
}

/// The base is the application's; a check adds a path to it and nothing else.
fn path_below(path: &str) -> Result<String, String> {
    let plain =
        path.starts_with('/') && !path.starts_with("//") && path.bytes().all(|byte| byte.is_ascii_graphic());
    match plain {
        true => Ok(path.to_owned()),
        false => Err(format!(
            "the path {path:?} must begin with one slash, without spaces"
        )),
    }
}

fn needed<T: Clone>(value: &Option<T>, key: &str) -> Result<T, String> {
    value.clone().ok_or_else(|| format!("`{key}` is missing"))
}
