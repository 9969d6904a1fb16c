//! Gates: what is looked at before anything is restored, days before a drill and as its first act.
//!
//! Invariants: judging is a pure function of what was seen and of the profile's limits; what nobody could look at is
//! never go; a gate for which the profile sets no limit, or for which there is nothing to look at, is NOT RUN and
//! says why. Looking is in `crate::preflight`.

use std::path::PathBuf;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::facts::{CheckResult, GateFacts, Measure, People, Rpo};
use crate::forecast::Prediction;
use crate::options::Profile;
use crate::profile::length;

/// Base backups are daily; two hours are for the backup itself.
pub const DEFAULT_BACKUP_AGE: Duration = Duration::from_secs(26 * 3600);

/// Every gate with its title.
pub const GATES: [(&str, &str); 10] = [
    ("backup-age", "Age of the newest backup"),
    ("wal-age", "Age of the archived WAL, by its own commits"),
    ("free-space", "Free room where the copy goes"),
    ("page-checksums", "Page checksums of the cluster"),
    ("roles", "Operator and reviewer"),
    ("clock", "Clocks of this host, the server and the store"),
    ("program", "PostgreSQL's programs of the backup's version"),
    ("target-reachable", "The planner reaches the target"),
    ("predicted-time", "Predicted recovery time"),
    ("isolation", "Isolation that this host allows"),
];

/// What a profile asks of the gates.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct GateLimits {
    /// The newest backup is younger.
    pub backup_age: Option<Duration>,
    /// The archived WAL is younger: the smaller of the profile's limit and its RPO.
    pub wal_age: Option<Duration>,
    /// Free room, in sizes of the backup.
    pub free_space: Option<f64>,
    /// The clocks differ by less.
    pub clock: Option<Duration>,
    /// Operator and reviewer must be named, and differ.
    pub roles: bool,
    /// Gates that stop the drill when they are closed.
    pub blocking: Vec<String>,
}

/// The newest backup.
#[derive(Debug, Clone, PartialEq)]
pub struct BackupSeen {
    /// Its id.
    pub id: String,
    /// When it ended.
    pub finished_at: Timestamp,
    /// What a restore of it writes.
    pub bytes: u64,
    /// Whether its cluster has page checksums.
    pub checksums: bool,
}

/// How far another clock is ahead of this host's, in seconds.
#[derive(Debug, Clone, PartialEq)]
pub struct ClockSeen {
    /// `the server`, `the store`.
    pub whose: String,
    /// Seconds, or why nothing was seen.
    pub difference: Result<f64, String>,
}

/// Everything that the gates are judged by. A text is the reason why nothing was seen.
#[derive(Debug, Clone, PartialEq)]
pub struct Seen {
    /// This host's clock.
    pub now: Timestamp,
    /// The newest backup, if there is one.
    pub backup: Result<Option<BackupSeen>, String>,
    /// What would be lost now. `None`: there is no server that could lose anything.
    pub loss: Option<Result<Rpo, String>>,
    /// The newest commit that is archived: what is left to go by when the server does not answer.
    pub newest_kept_commit: Option<Timestamp>,
    /// Where the copy goes, and the room there in bytes.
    pub free: Result<(PathBuf, u64), String>,
    /// Clocks besides this host's.
    pub clocks: Vec<ClockSeen>,
    /// The version of the programs.
    pub program: Result<String, String>,
    /// What the planner says: a sentence, or the reason of its refusal.
    pub target: Result<String, String>,
    /// From earlier drills.
    pub predicted: Option<Prediction>,
    /// The layers that cannot be had, with reasons; or why nobody knows.
    pub isolation: Result<Vec<String>, String>,
}

fn title(id: &str) -> &'static str {
    GATES
        .iter()
        .find(|(known, _)| *known == id)
        .map_or("", |(_, title)| title)
}

/// A length of time for people, exact enough to compare with a limit.
fn age(seconds: f64) -> String {
    let whole = seconds.max(0.0) as u64;
    match whole {
        0..60 => format!("{seconds:.3} s"),
        60..3600 => format!("{} min {} s", whole / 60, whole % 60),
        _ => format!("{} h {} min", whole / 3600, whole % 3600 / 60),
    }
}

fn gigabytes(bytes: u64) -> String {
    match bytes {
        0..1_048_576 => format!("{} KiB", bytes / 1024),
        1_048_576..1_073_741_824 => format!("{:.1} MiB", bytes as f64 / 1_048_576.0),
        _ => format!("{:.1} GiB", bytes as f64 / 1_073_741_824.0),
    }
}

/// A gate under judgement: limit, then what was seen.
struct Verdict(String, CheckResult, String, Option<String>);

fn go(limit: impl Into<String>, good: bool, actual: impl Into<String>, hint: &str) -> Verdict {
    let result = if good {
        CheckResult::Pass
    } else {
        CheckResult::Fail
    };
    Verdict(
        limit.into(),
        result,
        actual.into(),
        (!good).then(|| hint.to_string()),
    )
}

fn unseen(limit: impl Into<String>, why: impl Into<String>) -> Verdict {
    Verdict(limit.into(), CheckResult::CouldNotLook, why.into(), None)
}

fn not_run(limit: impl Into<String>, why: impl Into<String>) -> Verdict {
    Verdict(limit.into(), CheckResult::NotRun, why.into(), None)
}

/// Judges every gate, in the order of [`GATES`].
pub fn judge(profile: &Profile, people: &People, seen: &Seen) -> Vec<GateFacts> {
    GATES
        .iter()
        .map(|(id, _)| {
            let Verdict(limit, result, actual, hint) = match *id {
                "backup-age" => backup_age(&profile.gates, seen),
                "wal-age" => wal_age(&profile.gates, seen),
                "free-space" => free_space(&profile.gates, seen),
                "page-checksums" => page_checksums(profile, seen),
                "roles" => roles(&profile.gates, people),
                "clock" => clock(&profile.gates, seen),
                "program" => program(seen),
                "target-reachable" => target(seen),
                "predicted-time" => predicted(profile, seen),
                _ => isolation(seen),
            };
            GateFacts {
                id: (*id).into(),
                title: title(id).into(),
                limit,
                actual,
                result,
                blocking: profile.gates.blocking.iter().any(|blocking| blocking == id),
                hint,
            }
        })
        .collect()
}

fn backup_age(limits: &GateLimits, seen: &Seen) -> Verdict {
    let limit = limits.backup_age.map_or_else(
        || "there is one".to_string(),
        |limit| format!("less than {}", length(limit)),
    );
    let hint = "Run `pgproof backup`, and look at the timer that should have.";
    match &seen.backup {
        Err(why) => unseen(limit, why.clone()),
        Ok(None) => go(limit, false, "there is no backup", hint),
        Ok(Some(backup)) => {
            let seconds = seen.now.duration_since(backup.finished_at).as_secs_f64();
            let actual = format!("{} ({})", age(seconds), backup.id);
            let young = limits
                .backup_age
                .is_none_or(|limit| seconds < limit.as_secs_f64());
            go(limit, young, actual, hint)
        }
    }
}

fn wal_age(limits: &GateLimits, seen: &Seen) -> Verdict {
    let Some(limit) = limits.wal_age else {
        return not_run("none", "the profile sets neither an RPO nor a limit");
    };
    let words = format!("less than {}", length(limit));
    let hint = "Run `pgproof wal status`, and look at the server's log for what archive_command says.";
    let enough = |seconds: f64| seconds < limit.as_secs_f64();
    match &seen.loss {
        None => not_run(words, "there is no server whose WAL could be late"),
        Some(Ok(rpo)) => match rpo.seconds {
            None => unseen(words, "the archive holds no commit to count from"),
            Some(seconds) if enough(seconds) && !rpo.exact => {
                let actual = format!(
                    "at least {}: not all of the newest WAL could be read",
                    age(seconds)
                );
                unseen(words, actual)
            }
            Some(seconds) => {
                let actual = format!("{} behind, {} commits", age(seconds), rpo.commits);
                go(words, enough(seconds), actual, hint)
            }
        },
        // Without the server the archive alone can still show that it is young enough.
        Some(Err(why)) => match seen.newest_kept_commit {
            Some(at) if enough(seen.now.duration_since(at).as_secs_f64()) => {
                let seconds = seen.now.duration_since(at).as_secs_f64();
                go(
                    words,
                    true,
                    format!("at most {} (the server was not asked: {why})", age(seconds)),
                    hint,
                )
            }
            _ => unseen(words, why.clone()),
        },
    }
}

fn free_space(limits: &GateLimits, seen: &Seen) -> Verdict {
    let Some(times) = limits.free_space else {
        return not_run("none", "the profile sets no limit");
    };
    let limit = format!("at least {times} times the backup");
    let (folder, free) = match &seen.free {
        Ok(free) => free,
        Err(why) => return unseen(limit, why.clone()),
    };
    let Ok(Some(backup)) = &seen.backup else {
        return unseen(limit, "there is no backup whose size could be compared");
    };
    let needed = backup.bytes as f64 * times;
    let actual = format!(
        "{} in {}, the backup needs {}",
        gigabytes(*free),
        folder.display(),
        gigabytes(backup.bytes)
    );
    go(
        limit,
        *free as f64 >= needed,
        actual,
        "Make room, or name another folder with `--directory`.",
    )
}

fn page_checksums(profile: &Profile, seen: &Seen) -> Verdict {
    let limit = "on";
    if !profile.checks.iter().any(|id| id == "page-checksums") {
        return not_run(limit, "the profile does not verify page checksums");
    }
    match &seen.backup {
        Ok(Some(backup)) if backup.checksums => go(limit, true, "on", ""),
        // The check itself will be NOT RUN, which is said there.
        Ok(Some(_)) => Verdict(
            limit.into(),
            CheckResult::Warn,
            "off: a damaged page is found only where its content makes no sense".into(),
            Some("Stop the server and run `pg_checksums --enable`, then take a backup.".into()),
        ),
        Ok(None) => unseen(limit, "there is no backup"),
        Err(why) => unseen(limit, why.clone()),
    }
}

fn roles(limits: &GateLimits, people: &People) -> Verdict {
    let limit = "operator and reviewer are named, and differ";
    let name = |name: &Option<String>| {
        name.as_deref()
            .map(str::trim)
            .filter(|name| !name.is_empty())
            .map(str::to_string)
    };
    let (operator, reviewer) = (name(&people.operator), name(&people.reviewer));
    if !limits.roles {
        return not_run(limit, "the profile does not ask for it");
    }
    let hint = "Name them with `--operator NAME --reviewer NAME`, or in `[drill.NAME.people]`.";
    match (operator, reviewer) {
        (Some(a), Some(b)) if a.eq_ignore_ascii_case(&b) => {
            go(limit, false, format!("{a} would review what {a} did"), hint)
        }
        (Some(a), Some(b)) => go(limit, true, format!("{a}, {b}"), hint),
        (None, Some(_)) => go(limit, false, "no operator is named", hint),
        (Some(_), None) => go(limit, false, "no reviewer is named", hint),
        (None, None) => go(limit, false, "neither is named", hint),
    }
}

fn clock(limits: &GateLimits, seen: &Seen) -> Verdict {
    let Some(limit) = limits.clock else {
        return not_run("none", "the profile sets no limit");
    };
    let words = format!("differ by less than {}", length(limit));
    let mut told = Vec::new();
    let mut blind = None;
    let mut good = true;
    for clock in &seen.clocks {
        match &clock.difference {
            Ok(seconds) => {
                good &= seconds.abs() < limit.as_secs_f64();
                told.push(format!("{} {seconds:+.3} s", clock.whose));
            }
            Err(why) => blind = Some(format!("{}: {why}", clock.whose)),
        }
    }
    match blind {
        Some(why) if good => unseen(words, why),
        _ if told.is_empty() => not_run(words, "there is no other clock to compare with"),
        _ => go(
            words,
            good,
            told.join(", "),
            "Synchronise the clocks (`timedatectl status`); recovery targets are times of the server's clock.",
        ),
    }
}

fn program(seen: &Seen) -> Verdict {
    let limit = "the same major version";
    match &seen.program {
        Ok(version) => go(limit, true, format!("PostgreSQL {version}"), ""),
        Err(why) => go(
            limit,
            false,
            why.clone(),
            "Install the server's package of that version here, or name its folder as `programs` of the cluster.",
        ),
    }
}

fn target(seen: &Seen) -> Verdict {
    let limit = "a plan exists";
    match &seen.target {
        Ok(what) => go(limit, true, what.clone(), ""),
        Err(why) => go(
            limit,
            false,
            why.clone(),
            "Run `pgproof status` for what can be recovered.",
        ),
    }
}

fn predicted(profile: &Profile, seen: &Seen) -> Verdict {
    let strictest = profile
        .objectives
        .iter()
        .filter(|objective| objective.measure == Measure::RecoveryTime)
        .map(|objective| objective.target)
        .min();
    let Some(target) = strictest else {
        return not_run("none", "the profile sets no recovery time objective");
    };
    let limit = format!("less than {}", length(target));
    match &seen.predicted {
        None => not_run(limit, "there is no earlier drill to predict from"),
        Some(prediction) => {
            let seconds = prediction.total_ms as f64 / 1000.0;
            let actual = format!("{} from {} earlier drills", age(seconds), prediction.drills);
            go(
                limit,
                seconds < target.as_secs_f64(),
                actual,
                "Take backups more often, so that less WAL is replayed, or restore on faster storage.",
            )
        }
    }
}

fn isolation(seen: &Seen) -> Verdict {
    let limit = "every layer";
    match &seen.isolation {
        Ok(missing) if missing.is_empty() => go(limit, true, "every layer can be had", ""),
        // Less isolation weakens the verdict; it does not keep a drill from being worth while.
        Ok(missing) => Verdict(
            limit.into(),
            CheckResult::Warn,
            format!("cannot be had: {}", missing.join(", ")),
            Some("PASSED WITH OBSERVATIONS is the best that a drill on this host can give.".into()),
        ),
        Err(why) => unseen(limit, why.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::resolve;

    fn people(operator: &str, reviewer: &str) -> People {
        let some = |name: &str| Some(name.to_string()).filter(|name| !name.is_empty());
        People {
            operator: some(operator),
            reviewer: some(reviewer),
            others: Vec::new(),
        }
    }

    fn seen() -> Seen {
        Seen {
            now: "2026-01-25T14:00:00Z".parse().expect("a time"),
            backup: Ok(Some(BackupSeen {
                id: "20260125T020003Z".into(),
                finished_at: "2026-01-25T02:10:00Z".parse().expect("a time"),
                bytes: 10 << 30,
                checksums: true,
            })),
            loss: Some(Ok(rpo(12.0, true))),
            newest_kept_commit: None,
            free: Ok(("/var/tmp".into(), 20 << 30)),
            clocks: vec![ClockSeen {
                whose: "the server".into(),
                difference: Ok(0.2),
            }],
            program: Ok("15.18".into()),
            target: Ok("backup 20260125T020003Z".into()),
            predicted: None,
            isolation: Ok(Vec::new()),
        }
    }

    fn rpo(seconds: f64, exact: bool) -> Rpo {
        Rpo {
            seconds: Some(seconds),
            bytes: 1,
            commits: 3,
            exact,
            method: String::new(),
            newest_commit_at: None,
            newest_kept_commit_at: None,
        }
    }

    fn result(seen: &Seen, people: &People, id: &str) -> CheckResult {
        let profile = resolve("quarterly-pitr", &Default::default()).expect("built in");
        let gates = judge(&profile, people, seen);
        assert_eq!(gates.len(), GATES.len());
        gates
            .into_iter()
            .find(|gate| gate.id == id)
            .expect("a gate")
            .result
    }

    fn of(change: impl Fn(&mut Seen), id: &str) -> CheckResult {
        let mut seen = seen();
        change(&mut seen);
        result(&seen, &people("ann", "bob"), id)
    }

    #[test]
    fn everything_in_order_is_go_and_each_limit_is_a_limit() {
        let profile = resolve("quarterly-pitr", &Default::default()).expect("built in");
        for gate in judge(&profile, &people("ann", "bob"), &seen()) {
            let expected = match gate.id.as_str() {
                "predicted-time" => CheckResult::NotRun,
                _ => CheckResult::Pass,
            };
            assert_eq!(gate.result, expected, "{gate:?}");
            assert!(!gate.is_no_go());
        }
        let old = "2026-01-24T12:00:00Z".parse().expect("a time");
        let backup = |change: fn(&mut BackupSeen)| {
            move |seen: &mut Seen| {
                if let Ok(Some(backup)) = &mut seen.backup {
                    change(backup);
                }
            }
        };
        assert_eq!(
            of(
                |seen| {
                    if let Ok(Some(backup)) = &mut seen.backup {
                        backup.finished_at = old;
                    }
                },
                "backup-age"
            ),
            CheckResult::Fail
        );
        assert_eq!(of(|seen| seen.backup = Ok(None), "backup-age"), CheckResult::Fail);
        assert_eq!(
            of(backup(|backup| backup.bytes += 1), "free-space"),
            CheckResult::Fail
        );
        assert_eq!(
            of(backup(|backup| backup.checksums = false), "page-checksums"),
            CheckResult::Warn
        );
        assert_eq!(
            of(|seen| seen.target = Err("wal-gap".into()), "target-reachable"),
            CheckResult::Fail
        );
        assert_eq!(
            of(|seen| seen.program = Err("none".into()), "program"),
            CheckResult::Fail
        );
        assert_eq!(
            of(|seen| seen.isolation = Ok(vec!["landlock".into()]), "isolation"),
            CheckResult::Warn
        );
        assert_eq!(
            of(|seen| seen.clocks[0].difference = Ok(-11.0), "clock"),
            CheckResult::Fail
        );
        assert_eq!(
            of(|seen| seen.clocks[0].difference = Err("no".into()), "clock"),
            CheckResult::CouldNotLook
        );
    }

    #[test]
    fn the_age_of_wal_is_judged_by_its_commits_and_never_guessed() {
        assert_eq!(
            of(|seen| seen.loss = Some(Ok(rpo(299.9, true))), "wal-age"),
            CheckResult::Pass
        );
        assert_eq!(
            of(|seen| seen.loss = Some(Ok(rpo(300.0, true))), "wal-age"),
            CheckResult::Fail
        );
        assert_eq!(
            of(|seen| seen.loss = Some(Ok(rpo(1.0, false))), "wal-age"),
            CheckResult::CouldNotLook
        );
        assert_eq!(
            of(|seen| seen.loss = Some(Err("gone".into())), "wal-age"),
            CheckResult::CouldNotLook
        );
        let kept = "2026-01-25T13:59:00Z".parse().expect("a time");
        let young = |seen: &mut Seen| {
            seen.loss = Some(Err("gone".into()));
            seen.newest_kept_commit = Some(kept);
        };
        assert_eq!(of(young, "wal-age"), CheckResult::Pass);
        assert_eq!(of(|seen| seen.loss = None, "wal-age"), CheckResult::NotRun);
    }

    #[test]
    fn nobody_reviews_himself() {
        for (operator, reviewer, expected) in [
            ("ann", "bob", CheckResult::Pass),
            ("ann", "Ann", CheckResult::Fail),
            ("ann", "", CheckResult::Fail),
            ("", "bob", CheckResult::Fail),
        ] {
            assert_eq!(
                result(&seen(), &people(operator, reviewer), "roles"),
                expected,
                "{operator} {reviewer}"
            );
        }
    }

    #[test]
    fn a_blocking_gate_does_not_open_because_nobody_could_look() {
        let mut profile = resolve("quarterly-pitr", &Default::default()).expect("built in");
        profile.gates.blocking = vec!["wal-age".into()];
        let mut seen = seen();
        seen.loss = Some(Err("gone".into()));
        let gates = judge(&profile, &people("ann", "bob"), &seen);
        let gate = gates.iter().find(|gate| gate.id == "wal-age").expect("the gate");
        assert!(gate.blocking && gate.is_no_go());
    }

    #[test]
    fn a_prediction_beyond_the_objective_is_no_go() {
        let slow = |seen: &mut Seen| {
            seen.predicted = Some(Prediction {
                total_ms: 91 * 60_000,
                drills: 3,
            });
        };
        assert_eq!(of(slow, "predicted-time"), CheckResult::Fail);
    }
}
