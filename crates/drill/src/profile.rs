//! Profiles: what is to be proved and how well, from built-in ones and one's own, with what each extends filled in.
//!
//! Invariants: pure; a profile that contradicts itself is refused with the reason, because a drill that it governs
//! could only be lucky; what an own profile says goes before what it extends; a list that is given replaces the
//! inherited one, and tables (checks, objectives, gates) are added to.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::facts::{Measure, ProfileFacts};
use crate::gates::{DEFAULT_BACKUP_AGE, GATES, GateLimits};
use crate::manual::ManualStep;
use crate::objectives::{Expression, INSTANTS, Objective, RPO_EXPRESSION, RTO_EXPRESSION, warning_of};
use crate::options::{BUILT_IN_CHECKS, DEFAULT_CHECKS, DrillTarget, Grant, Profile};
use crate::step_limits;
use crate::user_checks::UserCheck;

/// A profile as it is written: what is absent is inherited.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ProfileDefinition {
    /// Another profile that this one begins with.
    pub extends: Option<String>,
    /// Recovery time objective.
    pub rto: Option<Duration>,
    /// From here on the recovery time is a warning [default: two thirds of the objective].
    pub rto_warning: Option<Duration>,
    /// The clock of the recovery time objective.
    pub rto_clock: Option<String>,
    /// Recovery point objective.
    pub rpo: Option<Duration>,
    /// `bracket`, or what `restore --to` takes, or `random`, `worst`.
    pub target: Option<String>,
    /// Names of built-in checks.
    pub checks: Option<Vec<String>>,
    /// Checks whose NOT RUN is acceptable.
    pub may_be_not_run: Option<Vec<String>>,
    /// What may be done outside of the quarantine.
    pub grants: Option<Vec<Grant>>,
    /// Profiles whose objectives are judged as well.
    pub also: Option<Vec<String>>,
    /// A backup is made before the drill, unless `SKIP_BACKUP` says otherwise.
    pub backup_first: Option<bool>,
    /// Tries of the restore.
    pub restore_tries: Option<u32>,
    /// Time limits of steps, by id.
    pub step_limits: BTreeMap<String, Duration>,
    /// Further objectives.
    pub objectives: Vec<ObjectiveDefinition>,
    /// What is looked at before anything is restored.
    pub gates: GateDefinition,
    /// Checks of the user's.
    pub user_checks: Vec<UserCheck>,
    /// What people do, and confirm.
    pub manual: Vec<ManualStep>,
}

/// An objective as it is written.
#[derive(Debug, Clone, PartialEq)]
pub struct ObjectiveDefinition {
    /// A stable word.
    pub id: String,
    /// Over instants.
    pub clock: String,
    /// What it measures.
    pub measure: Measure,
    /// At most so much.
    pub target: Duration,
    /// From here on a warning.
    pub warning: Option<Duration>,
}

/// Gates as they are written.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GateDefinition {
    /// The newest backup is younger.
    pub backup_age: Option<Duration>,
    /// The archived WAL is younger, by its own commits.
    pub wal_age: Option<Duration>,
    /// Free room, in sizes of the backup.
    pub free_space: Option<f64>,
    /// The clocks differ by less.
    pub clock: Option<Duration>,
    /// Operator and reviewer are named, and differ.
    pub roles: Option<bool>,
    /// Gates that stop the drill.
    pub blocking: Option<Vec<String>>,
}

/// Why a profile is refused: the key that says it, and a sentence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// Within the profile: `rto_warning`, `checks`.
    pub key: &'static str,
    /// One sentence, the reason in it.
    pub why: String,
}

fn refused<T>(key: &'static str, why: impl Into<String>) -> Result<T, Refused> {
    Err(Refused { key, why: why.into() })
}

const fn minutes(minutes: u64) -> Duration {
    Duration::from_secs(minutes * 60)
}

/// The names of the built-in profiles.
pub const BUILT_IN_PROFILES: [&str; 8] = [
    "default",
    "quarterly-pitr",
    "prod-pitr",
    "critical",
    "high",
    "standard",
    "archive",
    "full-dc",
];

/// A built-in profile: `default` sets no objective, the others those that teams agree on.
pub fn built_in(name: &str) -> Option<ProfileDefinition> {
    let with = |rto: u64, rpo: u64| ProfileDefinition {
        extends: Some("default".into()),
        rto: Some(minutes(rto)),
        rpo: Some(minutes(rpo)),
        gates: GateDefinition {
            backup_age: Some(DEFAULT_BACKUP_AGE),
            roles: Some(true),
            ..GateDefinition::default()
        },
        ..ProfileDefinition::default()
    };
    let objective = |id: &str, measure: Measure, clock: &str, target: Duration| ObjectiveDefinition {
        id: id.into(),
        clock: clock.into(),
        measure,
        target,
        warning: None,
    };
    Some(match name {
        "default" => ProfileDefinition {
            target: Some("bracket".into()),
            checks: Some(DEFAULT_CHECKS.iter().map(ToString::to_string).collect()),
            gates: GateDefinition {
                free_space: Some(2.0),
                clock: Some(Duration::from_secs(10)),
                ..GateDefinition::default()
            },
            ..ProfileDefinition::default()
        },
        "quarterly-pitr" => ProfileDefinition {
            // Teams mean either clock by "RTO": both are kept.
            objectives: vec![
                objective(
                    "rto-from-start",
                    Measure::RecoveryTime,
                    "stabilised - drill-started",
                    minutes(90),
                ),
                objective(
                    "stabilisation",
                    Measure::Other,
                    "stabilised - target-reached",
                    Duration::from_secs(120),
                ),
            ],
            restore_tries: Some(2),
            ..with(90, 5)
        },
        "prod-pitr" => with(120, 5),
        "critical" => with(5, 1),
        "high" => with(15, 5),
        "standard" => with(30, 15),
        "archive" => with(120, 60),
        "full-dc" => with(60, 15),
        _ => return None,
    })
}

/// A chain of definitions, the most general first.
struct Chain {
    definitions: Vec<ProfileDefinition>,
    names: Vec<String>,
    source: String,
}

fn chain(name: &str, own: &BTreeMap<String, ProfileDefinition>) -> Result<Chain, Refused> {
    let mut chain = Chain {
        definitions: Vec::new(),
        names: Vec::new(),
        source: "built-in".into(),
    };
    let mut next = Some((name.to_string(), false));
    while let Some((name, own_is_done)) = next {
        let of_file = own.get(&name).filter(|_| !own_is_done);
        let Some(definition) = of_file.cloned().or_else(|| built_in(&name)) else {
            let known: Vec<&str> = own.keys().map(String::as_str).chain(BUILT_IN_PROFILES).collect();
            return refused(
                "extends",
                format!("there is no profile \"{name}\"; there are {}", known.join(", ")),
            );
        };
        if chain.names.contains(&name) && !own_is_done {
            return refused(
                "extends",
                format!("the profile extends itself through \"{name}\""),
            );
        }
        if chain.names.is_empty() && of_file.is_some() {
            chain.source = match built_in(&name) {
                Some(_) => "built-in, changed by file".into(),
                None => "file".into(),
            };
        }
        next = match &definition.extends {
            Some(extended) if *extended == name && of_file.is_some() => Some((name.clone(), true)),
            Some(extended) => Some((extended.clone(), false)),
            // One's own section of a built-in's name changes that one.
            None if of_file.is_some() && built_in(&name).is_some() => Some((name.clone(), true)),
            None if name != "default" => Some(("default".into(), false)),
            None => None,
        };
        if !chain.names.contains(&name) {
            chain.names.push(name);
        }
        chain.definitions.insert(0, definition);
    }
    Ok(chain)
}

/// Lays `over` over `under`.
fn merge(under: ProfileDefinition, over: ProfileDefinition) -> ProfileDefinition {
    let mut objectives = under.objectives;
    // Another RTO changes the warning and the clock that belonged to the old one only if it says so itself.
    for objective in over.objectives {
        objectives.retain(|known| known.id != objective.id);
        objectives.push(objective);
    }
    let mut user_checks = under.user_checks;
    for check in over.user_checks {
        user_checks.retain(|known| known.id != check.id);
        user_checks.push(check);
    }
    let mut manual = under.manual;
    for step in over.manual {
        manual.retain(|known| known.id != step.id);
        manual.push(step);
    }
    let mut step_limits = under.step_limits;
    step_limits.extend(over.step_limits);
    let rto_warning = match (over.rto, over.rto_warning) {
        (Some(_), warning) => warning,
        (None, warning) => warning.or(under.rto_warning),
    };
    ProfileDefinition {
        extends: None,
        rto: over.rto.or(under.rto),
        rto_warning,
        rto_clock: over.rto_clock.or(under.rto_clock),
        rpo: over.rpo.or(under.rpo),
        target: over.target.or(under.target),
        checks: over.checks.or(under.checks),
        may_be_not_run: over.may_be_not_run.or(under.may_be_not_run),
        grants: over.grants.or(under.grants),
        also: over.also.or(under.also),
        backup_first: over.backup_first.or(under.backup_first),
        restore_tries: over.restore_tries.or(under.restore_tries),
        step_limits,
        objectives,
        gates: GateDefinition {
            backup_age: over.gates.backup_age.or(under.gates.backup_age),
            wal_age: over.gates.wal_age.or(under.gates.wal_age),
            free_space: over.gates.free_space.or(under.gates.free_space),
            clock: over.gates.clock.or(under.gates.clock),
            roles: over.gates.roles.or(under.gates.roles),
            blocking: over.gates.blocking.or(under.gates.blocking),
        },
        user_checks,
        manual,
    }
}

/// The profile of that name, with everything filled in. `own` are the definitions of the configuration file. The
/// target is left as it is written: whoever has a clock resolves it.
pub fn resolve(name: &str, own: &BTreeMap<String, ProfileDefinition>) -> Result<Profile, Refused> {
    let chain = chain(name, own)?;
    let definition = chain
        .definitions
        .into_iter()
        .fold(ProfileDefinition::default(), merge);
    let rto = definition.rto;
    let mut objectives = Vec::new();
    if let Some(target) = rto {
        let warning = definition.rto_warning.unwrap_or_else(|| warning_of(target));
        objectives.push(Objective {
            id: "rto".into(),
            measure: Measure::RecoveryTime,
            expression: expression(
                "rto_clock",
                definition.rto_clock.as_deref().unwrap_or(RTO_EXPRESSION),
            )?,
            target,
            warning: Some(warning),
        });
        if warning >= target {
            return refused(
                "rto_warning",
                format!(
                    "the warning at {} comes no sooner than the objective of {}: nobody would be warned in time",
                    length(warning),
                    length(target)
                ),
            );
        }
    } else if definition.rto_warning.is_some() || definition.rto_clock.is_some() {
        return refused("rto_warning", "there is no `rto` to warn of or to measure");
    }
    if let Some(target) = definition.rpo {
        objectives.push(Objective {
            id: "rpo".into(),
            measure: Measure::RecoveryPoint,
            expression: expression("rpo", RPO_EXPRESSION)?,
            target,
            warning: None,
        });
    }
    for objective in definition.objectives {
        let key = "objective";
        if objectives.iter().any(|known| known.id == objective.id) {
            return refused(key, format!("the objective \"{}\" is set twice", objective.id));
        }
        let warning = match (objective.warning, objective.measure) {
            (None, Measure::RecoveryTime) => Some(warning_of(objective.target)),
            (warning, _) => warning,
        };
        if warning.is_some_and(|warning| warning >= objective.target) {
            return refused(
                key,
                format!(
                    "objective \"{}\": its warning comes no sooner than the objective itself",
                    objective.id
                ),
            );
        }
        objectives.push(Objective {
            id: objective.id,
            measure: objective.measure,
            expression: expression(key, &objective.clock)?,
            target: objective.target,
            warning,
        });
    }
    if let Some(nothing) = objectives.iter().find(|objective| objective.target.is_zero()) {
        return refused(
            "objective",
            format!("objective \"{}\" allows no time at all", nothing.id),
        );
    }
    let checks = definition.checks.unwrap_or_default();
    check_names(&checks, &definition.user_checks, &objectives)?;
    check_limits(&definition.step_limits)?;
    let limits = gate_limits(&definition.gates, definition.rpo)?;
    let grants = definition.grants.unwrap_or_default();
    let mut profile = Profile {
        name: name.into(),
        source: chain.source,
        extends: chain.names.into_iter().skip(1).collect(),
        target: DrillTarget::Bracket,
        target_text: definition.target.unwrap_or_else(|| "bracket".into()),
        objectives,
        gates: limits,
        checks,
        user_checks: definition.user_checks,
        manual: definition.manual,
        may_be_not_run: definition.may_be_not_run.unwrap_or_default(),
        grants,
        also: definition.also.unwrap_or_default(),
        backup_first: definition.backup_first.unwrap_or(false),
        restore_tries: definition.restore_tries.unwrap_or(1).clamp(1, RESTORE_TRIES_MAX),
        step_limits: definition.step_limits,
        ..Profile::bracket(name)
    };
    profile.facts = facts_of(&profile);
    Ok(profile)
}

/// A restore that failed so often does not get better.
const RESTORE_TRIES_MAX: u32 = 5;

fn expression(key: &'static str, text: &str) -> Result<Expression, Refused> {
    Expression::parse(text).or_else(|why| {
        let known: Vec<&str> = INSTANTS.iter().map(|(name, _)| *name).collect();
        refused(
            key,
            format!("the clock \"{text}\": {why}; instants are {}", known.join(", ")),
        )
    })
}

fn check_names(checks: &[String], own: &[UserCheck], objectives: &[Objective]) -> Result<(), Refused> {
    for (index, id) in checks.iter().enumerate() {
        if !BUILT_IN_CHECKS.contains(&id.as_str()) {
            let known = BUILT_IN_CHECKS.join(", ");
            return refused(
                "checks",
                format!("there is no check named \"{id}\"; there are {known}"),
            );
        }
        if checks[..index].contains(id) {
            return refused("checks", format!("the check \"{id}\" is asked for twice"));
        }
    }
    let mut ids: Vec<&str> = objectives.iter().map(|objective| objective.id.as_str()).collect();
    for check in own {
        let id = check.id.as_str();
        if ids.contains(&id) || crate::checks::draft(id).is_some() {
            return refused("check", format!("the check's id \"{id}\" is taken"));
        }
        ids.push(id);
    }
    Ok(())
}

/// A limit of a step that does not exist would be kept by nobody.
fn check_limits(limits: &BTreeMap<String, Duration>) -> Result<(), Refused> {
    for (id, limit) in limits {
        if !step_limits::steps().any(|known| known == id) {
            let known: Vec<&str> = step_limits::steps().collect();
            return refused(
                "step_limits",
                format!("there is no step \"{id}\"; there are {}", known.join(", ")),
            );
        }
        if limit.is_zero() {
            return refused("step_limits", format!("step \"{id}\" is given no time at all"));
        }
    }
    Ok(())
}

fn gate_limits(gates: &GateDefinition, rpo: Option<Duration>) -> Result<GateLimits, Refused> {
    if let (Some(limit), Some(rpo)) = (gates.wal_age, rpo)
        && limit >= rpo
    {
        return refused(
            "gates.wal_age",
            format!(
                "a limit of {} on the age of WAL cannot show an RPO of {}: WAL that is just young enough for the \
                 limit would already have lost more",
                length(limit),
                length(rpo)
            ),
        );
    }
    let blocking = gates.blocking.clone().unwrap_or_default();
    if let Some(unknown) = blocking
        .iter()
        .find(|id| !GATES.iter().any(|(known, _)| known == id))
    {
        let known: Vec<&str> = GATES.iter().map(|(id, _)| *id).collect();
        return refused(
            "gates.blocking",
            format!("there is no gate \"{unknown}\"; there are {}", known.join(", ")),
        );
    }
    Ok(GateLimits {
        backup_age: gates.backup_age,
        wal_age: match (gates.wal_age, rpo) {
            (Some(limit), Some(rpo)) => Some(limit.min(rpo)),
            (limit, rpo) => limit.or(rpo),
        },
        free_space: gates.free_space,
        clock: gates.clock,
        roles: gates.roles.unwrap_or(false),
        blocking,
    })
}

/// `5 min`, `90 s`, `300 ms`: an exact length in one unit.
pub(crate) fn length(duration: Duration) -> String {
    match duration.as_secs() {
        _ if duration.subsec_millis() > 0 => format!("{} ms", duration.as_millis()),
        seconds if seconds > 0 && seconds.is_multiple_of(3600) => format!("{} h", seconds / 3600),
        seconds if seconds > 0 && seconds.is_multiple_of(60) => format!("{} min", seconds / 60),
        seconds => format!("{seconds} s"),
    }
}

/// What of a profile stands in the evidence, with its digest.
pub fn facts_of(profile: &Profile) -> ProfileFacts {
    let limits: BTreeMap<&String, String> = profile
        .step_limits
        .iter()
        .map(|(id, limit)| (id, length(*limit)))
        .collect();
    let mut value = serde_json::json!({
        "name": profile.name,
        "target": profile.target_text,
        "objectives": profile.objectives,
        "gates": profile.gates,
        "checks": profile.checks,
        "own_checks": profile.user_checks,
        "may_be_not_run": profile.may_be_not_run,
        "grants": profile.grants,
        "also": profile.also,
        "backup_first": profile.backup_first,
        "restore_tries": profile.restore_tries,
        "step_limits": limits,
    });
    // Only where there are some: a profile without them keeps the digest under which it was registered.
    if !profile.manual.is_empty() {
        value["manual"] = serde_json::json!(profile.manual);
    }
    ProfileFacts {
        name: profile.name.clone(),
        source: profile.source.clone(),
        extends: profile.extends.clone(),
        digest: blake3::hash(value.to_string().as_bytes()).to_hex().to_string(),
        value,
        objectives_only: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own(definitions: &[(&str, ProfileDefinition)]) -> BTreeMap<String, ProfileDefinition> {
        definitions
            .iter()
            .map(|(name, definition)| ((*name).to_string(), definition.clone()))
            .collect()
    }

    fn times(profile: &Profile) -> (Option<u64>, Option<u64>) {
        let target = |id: &str| {
            let found = profile.objectives.iter().find(|objective| objective.id == id);
            found.map(|objective| objective.target.as_secs() / 60)
        };
        (target("rto"), target("rpo"))
    }

    #[test]
    fn the_built_in_profiles_are_those_that_teams_agreed_on() {
        for (name, rto, rpo) in [
            ("quarterly-pitr", 90, 5),
            ("prod-pitr", 120, 5),
            ("critical", 5, 1),
            ("high", 15, 5),
            ("standard", 30, 15),
            ("archive", 120, 60),
            ("full-dc", 60, 15),
        ] {
            let profile = resolve(name, &BTreeMap::new()).expect(name);
            assert_eq!(times(&profile), (Some(rto), Some(rpo)), "{name}");
            let of_rto = profile
                .objectives
                .iter()
                .find(|objective| objective.id == "rto")
                .expect("rto");
            assert_eq!(of_rto.warning, Some(of_rto.target * 2 / 3), "{name}");
            assert_eq!(profile.checks.len(), 3, "{name}");
            assert_eq!(profile.source, "built-in");
        }
        let default = resolve("default", &BTreeMap::new()).expect("the default");
        assert_eq!(times(&default), (None, None));
        assert!(BUILT_IN_PROFILES.iter().all(|name| built_in(name).is_some()));
    }

    #[test]
    fn one_s_own_profile_changes_what_it_says_and_keeps_the_rest() {
        let shop = ProfileDefinition {
            extends: Some("quarterly-pitr".into()),
            rto: Some(minutes(30)),
            ..ProfileDefinition::default()
        };
        let profile = resolve("shop", &own(&[("shop", shop)])).expect("resolves");
        assert_eq!(times(&profile), (Some(30), Some(5)));
        assert_eq!(profile.objectives[0].warning, Some(minutes(20)));
        assert!(
            profile
                .objectives
                .iter()
                .any(|objective| objective.id == "stabilisation")
        );
        assert_eq!(profile.extends, ["quarterly-pitr", "default"]);
        assert_eq!(profile.source, "file");
        // A section of a built-in's name changes that one.
        let changed = ProfileDefinition {
            rpo: Some(minutes(1)),
            ..ProfileDefinition::default()
        };
        let profile = resolve("prod-pitr", &own(&[("prod-pitr", changed)])).expect("resolves");
        assert_eq!(times(&profile), (Some(120), Some(1)));
        assert_eq!(profile.source, "built-in, changed by file");
        assert_ne!(
            profile.facts.digest,
            resolve("prod-pitr", &BTreeMap::new())
                .expect("resolves")
                .facts
                .digest
        );
    }

    #[test]
    fn contradictions_are_refused_with_the_reason() {
        let with = |definition: ProfileDefinition| {
            resolve(
                "x",
                &own(&[("x", definition), ("a", extends("b")), ("b", extends("a"))]),
            )
            .expect_err("a contradiction")
        };
        fn extends(name: &str) -> ProfileDefinition {
            ProfileDefinition {
                extends: Some(name.into()),
                ..ProfileDefinition::default()
            }
        }
        // The heartbeat of ten minutes that is to show five.
        let stale = with(ProfileDefinition {
            gates: GateDefinition {
                wal_age: Some(minutes(10)),
                ..GateDefinition::default()
            },
            ..extends("quarterly-pitr")
        });
        assert_eq!(stale.key, "gates.wal_age");
        assert!(
            stale.why.contains("10 min") && stale.why.contains("5 min"),
            "{}",
            stale.why
        );
        let late = with(ProfileDefinition {
            rto_warning: Some(minutes(91)),
            ..extends("quarterly-pitr")
        });
        assert_eq!(late.key, "rto_warning");
        let twice = with(ProfileDefinition {
            checks: Some(vec!["amcheck".into(), "amcheck".into()]),
            ..ProfileDefinition::default()
        });
        assert!(twice.why.contains("twice"), "{}", twice.why);
        assert!(with(extends("quartely-pitr")).why.contains("no profile"));
        assert!(with(extends("a")).why.contains("extends itself"));
        let clock = with(ProfileDefinition {
            rto_clock: Some("stabilised - begin".into()),
            ..extends("quarterly-pitr")
        });
        assert!(clock.why.contains("no instant \"begin\""), "{}", clock.why);
        let gate = with(ProfileDefinition {
            gates: GateDefinition {
                blocking: Some(vec!["backup".into()]),
                ..GateDefinition::default()
            },
            ..ProfileDefinition::default()
        });
        assert!(gate.why.contains("no gate \"backup\""), "{}", gate.why);
        let limited = |step: &str, limit: Duration| {
            with(ProfileDefinition {
                step_limits: [(step.to_string(), limit)].into(),
                ..ProfileDefinition::default()
            })
        };
        let step = limited("recovery", minutes(30));
        assert_eq!(step.key, "step_limits");
        assert!(
            step.why.contains("no step \"recovery\"") && step.why.contains("recover, "),
            "{}",
            step.why
        );
        assert!(limited("restore", Duration::ZERO).why.contains("no time at all"));
    }

    #[test]
    fn the_age_of_wal_is_judged_by_the_smaller_of_limit_and_objective() {
        let profile = |wal_age: Option<Duration>| {
            let definition = ProfileDefinition {
                extends: Some("prod-pitr".into()),
                gates: GateDefinition {
                    wal_age,
                    ..GateDefinition::default()
                },
                ..ProfileDefinition::default()
            };
            resolve("x", &own(&[("x", definition)])).expect("resolves")
        };
        assert_eq!(profile(None).gates.wal_age, Some(minutes(5)));
        assert_eq!(profile(Some(minutes(2))).gates.wal_age, Some(minutes(2)));
    }
}
