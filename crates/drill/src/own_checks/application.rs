//! Checks of what stands around the database: endpoints, programs, results of tests, and how fast answers come.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use diagnostic::Result;
use serde_json::Value;

use super::{Found, Subject, database, health_words, substitute};
use crate::engine::Run;
use crate::facts::{
    CheckDetail, CommandDetail, HttpDetail, HttpExpectation, HttpSeen, JunitDetail, LatencyDetail,
};
use crate::http::{Answer, Base};
use crate::junit as results;
use crate::options::{Drill, Grant, Profile};
use crate::rows::aborted;
use crate::user_checks::{Asked, CheckKind, CommandCheck, UserCheck};
use crate::verdict::code;

/// For one answer of an endpoint.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);
/// An application that starts is asked so often, with so long in between.
const READY_TRIES: u32 = 24;
const READY_PAUSE: Duration = Duration::from_secs(5);
/// Between two looks at a program.
const POLL: Duration = Duration::from_millis(20);
/// No file of test results is longer.
const RESULTS_BYTES_MAX: u64 = 64 << 20;
/// Words of health that may be told: nothing else of an answer is.
const WORDS: [&str; 17] = [
    "ok",
    "ready",
    "healthy",
    "up",
    "pass",
    "passed",
    "degraded",
    "starting",
    "warn",
    "warning",
    "not_ready",
    "unhealthy",
    "down",
    "fail",
    "failed",
    "error",
    "unavailable",
];

/// Where the application's endpoints are, and the clock by which they are asked.
pub(crate) struct Endpoints<'a> {
    base: Option<&'a str>,
    clock: &'a dyn Fn() -> jiff::Timestamp,
}

impl<'a> Endpoints<'a> {
    pub fn new(base: Option<&'a str>, clock: &'a dyn Fn() -> jiff::Timestamp) -> Endpoints<'a> {
        Endpoints { base, clock }
    }

    pub fn of(drill: &'a Drill<'_>) -> Endpoints<'a> {
        Endpoints::new(drill.api_base_url.as_deref(), drill.clock)
    }

    fn base(&self) -> Result<Base, String> {
        Base::parse(self.base.ok_or("no base of the application is given")?)
    }

    fn ask(&self, path: &str, status: u16, values: &[HttpExpectation], tries: u32) -> HttpSeen {
        let at = (self.clock)();
        let started = Instant::now();
        let answer = self.base().and_then(|base| base.get(path, ANSWER_LIMIT));
        let duration_ms = started.elapsed().as_millis() as u64;
        let mut seen = judge(answer, status, values);
        seen.at = at;
        seen.duration_ms = duration_ms;
        seen.tries = tries;
        seen
    }
}

/// Why there is no result.
const ENDED: &str = "it was told to end meanwhile";
const NO_GRANT_HTTP: &str = "the profile does not grant \"http\": nothing is asked outside of the quarantine";

/// Asks every endpoint once, before anything is restored.
pub(crate) fn ask_before(run: &mut Run<'_>) -> Result<((), String)> {
    let endpoints = Endpoints::of(run.drill);
    let mut asked = 0;
    for check in &run.drill.profile.user_checks {
        if let CheckKind::Http {
            path, status, values, ..
        } = &check.kind
        {
            let seen = endpoints.ask(path, *status, values, 1);
            run.before.insert(check.id.clone(), seen);
            asked += 1;
        }
    }
    substitute(run, Grant::Http);
    Ok(((), format!("{asked} endpoints")))
}

/// Waits until every endpoint that tells readiness answers as expected. True: they did, or there are none.
pub(crate) fn wait_until_ready(
    profile: &Profile,
    endpoints: &Endpoints<'_>,
    abort: &AtomicBool,
    note: &mut dyn FnMut(&str),
) -> Result<bool> {
    if !profile.grants(Grant::Http) {
        return Ok(true);
    }
    for check in &profile.user_checks {
        let CheckKind::Http {
            path,
            status,
            values,
            readiness: true,
        } = &check.kind
        else {
            continue;
        };
        note(&format!("waiting until {path} answers as expected"));
        let mut tries = 1;
        loop {
            let seen = endpoints.ask(path, *status, values, tries);
            if seen.as_expected {
                break;
            }
            if tries >= READY_TRIES {
                return Ok(false);
            }
            let pause = Instant::now();
            while pause.elapsed() < READY_PAUSE {
                if abort.load(Ordering::Relaxed) {
                    return Err(aborted());
                }
                std::thread::sleep(POLL);
            }
            tries += 1;
        }
    }
    Ok(true)
}

/// What an answer says, against what is expected of it.
fn judge(answer: Result<Answer, String>, status: u16, values: &[HttpExpectation]) -> HttpSeen {
    let mut seen = HttpSeen {
        at: jiff::Timestamp::UNIX_EPOCH,
        status: None,
        values: Vec::new(),
        as_expected: false,
        error: None,
        duration_ms: 0,
        tries: 1,
    };
    let answer = match answer {
        Ok(answer) => answer,
        Err(why) => {
            seen.error = Some(why);
            return seen;
        }
    };
    seen.status = Some(answer.status);
    seen.as_expected = answer.status == status;
    let body: Option<Value> = serde_json::from_slice(&answer.body).ok();
    for expected in values {
        // The first place that exists counts.
        let found = body
            .as_ref()
            .and_then(|body| expected.pointers.iter().find_map(|pointer| body.pointer(pointer)));
        let word = found.map(plain);
        seen.as_expected &= word.as_ref().is_some_and(|word| expected.accepted.contains(word));
        seen.values.push(match (&body, &word) {
            (None, _) => "the answer is no JSON".into(),
            (_, None) => "absent".into(),
            (_, Some(word)) if expected.accepted.contains(word) => word.clone(),
            (_, Some(word)) => shown(word),
        });
    }
    seen
}

/// A JSON value as it is compared.
fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn shown(word: &str) -> String {
    let known =
        matches!(word, "true" | "false" | "null") || WORDS.contains(&word.to_ascii_lowercase().as_str());
    match known {
        true => word.to_string(),
        false => format!(
            "another value ({} characters, not recorded)",
            word.chars().count()
        ),
    }
}

/// An endpoint, after the copy is ready.
pub(super) fn http(subject: &Subject<'_>, check: &UserCheck) -> Found {
    let CheckKind::Http {
        path, status, values, ..
    } = &check.kind
    else {
        return Found::not_run("it is no endpoint");
    };
    if !subject.profile.grants(Grant::Http) {
        return Found::not_run(NO_GRANT_HTTP);
    }
    let endpoints = &subject.endpoints;
    let after = endpoints.ask(path, *status, values, 1);
    let words = health_words(&after);
    let found = match (after.as_expected, &after.error) {
        (true, _) => Found::pass(words),
        // The base is named by a person: nobody there is what a dead application looks like.
        (false, _) => Found::bad(code::ENDPOINT_UNHEALTHY, words),
    };
    found.with(CheckDetail::Http(HttpDetail {
        path: path.clone(),
        base: endpoints.base().map(|base| base.shown()).unwrap_or_default(),
        expected_status: *status,
        values: values.clone(),
        before: subject.before.get(&check.id).cloned(),
        after: Some(after),
    }))
}

/// A program, inside the quarantine unless the profile lets it out.
pub(super) fn command(subject: &Subject<'_>, check: &CommandCheck) -> Found {
    let outside = subject.profile.grants(Grant::Commands);
    let Some((program, arguments)) = check.command.split_first() else {
        return Found::not_run("no program is named");
    };
    let mut command = match outside {
        true => {
            let mut command = Command::new(program);
            command.args(arguments);
            command
        }
        false => match subject.server.quarantined(program, arguments) {
            Ok(Some(command)) => command,
            Ok(None) => {
                return Found::not_run(
                    "there is no quarantine to run it in, and the profile does not grant \"commands\"",
                );
            }
            Err(error) => return Found::could_not_look(error.code()),
        },
    };
    let given = variables(subject, check);
    command
        .env_clear()
        .envs(given.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0);
    let detail = |exit_code: Option<i32>| {
        CheckDetail::Command(CommandDetail {
            program: program.clone(),
            environment: given.iter().map(|(name, _)| name.clone()).collect(),
            outside,
            exit_code,
            limit_ms: check.limit.as_millis() as u64,
        })
    };
    let child = match command.spawn() {
        Ok(child) => child,
        Err(error) => {
            return Found::could_not_look(format!("it could not be started: {error}")).with(detail(None));
        }
    };
    match wait(subject.abort, child, check.limit) {
        Err(why) => Found::bad(code::COMMAND_FAILED, why).with(detail(None)),
        Ok(code_of_it) if code_of_it == check.exit_code => {
            Found::pass(code_of_it.to_string()).with(detail(Some(code_of_it)))
        }
        Ok(code_of_it) => {
            Found::bad(code::COMMAND_FAILED, code_of_it.to_string()).with(detail(Some(code_of_it)))
        }
    }
}

fn variables(subject: &Subject<'_>, check: &CommandCheck) -> Vec<(String, String)> {
    let mut given: Vec<(String, String)> = vec![("PATH".into(), "/usr/local/bin:/usr/bin:/bin".into())];
    given.extend(subject.server.environment());
    given.push(("PGDATABASE".into(), subject.database.to_string()));
    given.push(("PGPROOF_DRILL_ID".into(), subject.id.to_string()));
    let bases = [
        ("API_BASE_URL", subject.endpoints.base),
        ("WEB_BASE_URL", subject.web_base_url),
    ];
    for (name, base) in bases {
        given.extend(base.map(|base| (name.to_string(), base.to_string())));
    }
    for (name, value) in &check.environment {
        given.retain(|(known, _)| known != name);
        given.push((name.clone(), value.clone()));
    }
    given
}

/// Waits for a program, and ends it with everything that it started when its time is over.
fn wait(abort: &AtomicBool, mut child: Child, limit: Duration) -> Result<i32, String> {
    let began = Instant::now();
    let why = loop {
        match child.try_wait() {
            Ok(Some(status)) => {
                return status
                    .code()
                    .ok_or_else(|| "it was ended by a signal".to_string());
            }
            Ok(None) if abort.load(Ordering::Relaxed) => break ENDED.to_string(),
            Ok(None) if began.elapsed() >= limit => {
                break format!("it did not end within {}", crate::profile::length(limit));
            }
            Ok(None) => std::thread::sleep(POLL),
            Err(error) => break error.to_string(),
        }
    };
    if let Some(group) = rustix::process::Pid::from_raw(child.id() as i32) {
        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
    }
    let _ = child.kill();
    let _ = child.wait();
    Err(why)
}

/// Files of test results. Those that are older than the drill say nothing about it.
pub(super) fn junit(subject: &Subject<'_>, files: &[String]) -> Found {
    let mut detail = JunitDetail::default();
    let mut wrong = Vec::new();
    for pattern in files {
        let found = matching(Path::new(pattern));
        if found.is_empty() {
            wrong.push(format!("{pattern}: no such file"));
        }
        for path in found {
            if let Err(why) = read(subject.began_at, &path, &mut detail) {
                wrong.push(format!("{}: {why}", path.display()));
            }
        }
    }
    let sum =
        |take: fn(&crate::facts::JunitCategory) -> u32| -> u32 { detail.categories.iter().map(take).sum() };
    let (ran, failed) = (sum(|each| each.run), sum(|each| each.failed));
    let found = if failed > 0 {
        let actual = format!("{failed} of {ran} tests failed: {}", detail.failed.join(", "));
        Found::bad(code::TESTS_FAILED, actual)
    } else if !wrong.is_empty() {
        Found::could_not_look(wrong.join("; "))
    } else if ran == 0 {
        Found::could_not_look("no test was run")
    } else {
        Found::pass(format!(
            "{ran} tests of {} categories passed",
            detail.categories.len()
        ))
    };
    found.with(CheckDetail::Junit(detail))
}

fn read(began_at: jiff::Timestamp, path: &Path, detail: &mut JunitDetail) -> Result<(), String> {
    let metadata = std::fs::metadata(path).map_err(|error| error.to_string())?;
    let written = metadata
        .modified()
        .ok()
        .and_then(|at| jiff::Timestamp::try_from(at).ok());
    if written.is_none_or(|written| written < began_at) {
        return Err("it was written before this began".into());
    }
    if metadata.len() > RESULTS_BYTES_MAX {
        return Err("it is too long".into());
    }
    let bytes = std::fs::read(path).map_err(|error| error.to_string())?;
    let name = path
        .file_stem()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default();
    results::add(detail, &name, &String::from_utf8_lossy(&bytes))
}

/// The files of a pattern whose last part may hold `*`, in order.
fn matching(pattern: &Path) -> Vec<PathBuf> {
    let name = pattern
        .file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default();
    if !name.contains('*') {
        return pattern
            .exists()
            .then(|| pattern.to_path_buf())
            .into_iter()
            .collect();
    }
    let folder = match pattern.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let mut found: Vec<PathBuf> = std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| fits(&entry.file_name().to_string_lossy(), &name))
        .map(|entry| entry.path())
        .collect();
    found.sort();
    found
}

fn fits(name: &str, pattern: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(rest) = parts.next().and_then(|first| name.strip_prefix(first)) else {
        return false;
    };
    let parts: Vec<&str> = parts.collect();
    let Some((last, middle)) = parts.split_last() else {
        return rest.is_empty();
    };
    let mut rest = rest;
    for part in middle {
        match rest.find(part) {
            Some(at) => rest = rest.get(at + part.len()..).unwrap_or_default(),
            None => return false,
        }
    }
    rest.ends_with(last)
}

/// How long answers take.
pub(super) fn latency(subject: &Subject<'_>, asked: &Asked, limit: Duration, samples: u32) -> Found {
    let mut times = Vec::with_capacity(samples as usize);
    let what = match asked {
        Asked::Endpoint(path) => {
            if !subject.profile.grants(Grant::Http) {
                return Found::not_run(NO_GRANT_HTTP);
            }
            for _ in 0..samples {
                if subject.abort.load(Ordering::Relaxed) {
                    return Found::could_not_look(ENDED);
                }
                let started = Instant::now();
                match subject
                    .endpoints
                    .base()
                    .and_then(|base| base.get(path, ANSWER_LIMIT))
                {
                    Ok(answer) if answer.status < 500 => times.push(started.elapsed().as_secs_f64() * 1000.0),
                    Ok(answer) => {
                        return Found::bad(code::ENDPOINT_UNHEALTHY, format!("status {}", answer.status));
                    }
                    Err(why) => return Found::bad(code::ENDPOINT_UNHEALTHY, why),
                }
            }
            path.clone()
        }
        Asked::Query(database, sql) => {
            let name = database.as_deref().unwrap_or(subject.database);
            let mut session = match database::timing_session(subject, name) {
                Ok(session) => session,
                Err(why) => return Found::could_not_look(why),
            };
            for _ in 0..samples {
                if subject.abort.load(Ordering::Relaxed) {
                    return Found::could_not_look(ENDED);
                }
                match database::time(&mut session, sql) {
                    Ok(time) => times.push(time),
                    Err(why) => return Found::could_not_look(why),
                }
            }
            sql.split_whitespace().collect::<Vec<_>>().join(" ")
        }
    };
    judge_latency(what, times, limit)
}

/// The smallest time within which so many of a hundred answers came.
fn percentile(sorted: &[f64], of_hundred: usize) -> f64 {
    let rank = (sorted.len() * of_hundred).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or(f64::INFINITY)
}

fn judge_latency(what: String, mut times: Vec<f64>, limit: Duration) -> Found {
    times.sort_by(f64::total_cmp);
    let detail = LatencyDetail {
        what,
        samples: times.len() as u32,
        p50_ms: percentile(&times, 50),
        p95_ms: percentile(&times, 95),
        max_ms: times.last().copied().unwrap_or(f64::INFINITY),
        limit_ms: limit.as_secs_f64() * 1000.0,
    };
    let actual = format!(
        "95 of 100 within {:.1} ms ({} samples)",
        detail.p95_ms, detail.samples
    );
    let found = match detail.p95_ms <= detail.limit_ms {
        true => Found::pass(actual),
        false => Found::bad(code::ANSWERS_TOO_SLOW, actual),
    };
    found.with(CheckDetail::Latency(detail))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::CheckResult;

    fn expected(name: &str, pointers: &[&str], accepted: &[&str]) -> HttpExpectation {
        let owned = |texts: &[&str]| texts.iter().map(ToString::to_string).collect();
        HttpExpectation {
            name: name.into(),
            pointers: owned(pointers),
            accepted: owned(accepted),
        }
    }

    #[test]
    fn a_value_is_found_at_the_top_or_nested_and_only_words_of_health_are_told() {
        let values = [
            expected("status", &["/status"], &["ok", "ready"]),
            expected(
                "migrations_current",
                &["/migrations_current", "/database/migrations_current"],
                &["true"],
            ),
        ];
        let of = |status: u16, body: &str| {
            let answer = Answer {
                status,
                body: body.into(),
            };
            judge(Ok(answer), 200, &values)
        };
        assert!(of(200, r#"{"status": "ready", "migrations_current": true}"#).as_expected);
        assert!(
            of(
                200,
                r#"{"status": "ok", "database": {"migrations_current": true}}"#
            )
            .as_expected
        );
        let bad = of(
            200,
            r#"{"status": "degraded", "database": {"migrations_current": false}}"#,
        );
        assert!(!bad.as_expected);
        assert_eq!(bad.values, ["degraded", "false"]);
        let secret = of(
            200,
            r#"{"status": "alice@example.org", "migrations_current": true}"#,
        );
        assert!(
            !secret.as_expected && !secret.values[0].contains("alice"),
            "{secret:?}"
        );
        assert!(!of(503, r#"{"status": "ready", "migrations_current": true}"#).as_expected);
        assert_eq!(
            of(200, "<html>").values,
            ["the answer is no JSON", "the answer is no JSON"]
        );
        assert!(!judge(Err("refused".into()), 200, &[]).as_expected);
    }

    #[test]
    fn five_slow_answers_of_a_hundred_are_within_the_ninety_fifth_and_six_are_not() {
        let times = |slow: usize| {
            let mut times = vec![10.0; 100 - slow];
            times.extend(vec![500.0; slow]);
            times
        };
        let of = |slow: usize| judge_latency("/x".into(), times(slow), Duration::from_millis(200)).result;
        assert_eq!(of(5), CheckResult::Pass);
        assert_eq!(of(6), CheckResult::Fail);
        assert_eq!(
            judge_latency("/x".into(), Vec::new(), Duration::from_secs(1)).result,
            CheckResult::Fail
        );
    }

    #[test]
    fn a_pattern_stands_for_names_of_files() {
        assert!(fits("junit-api.xml", "junit-*.xml") && fits("a.xml", "*") && fits("a.b.xml", "a*b*xml"));
        assert!(!fits("junit-api.txt", "junit-*.xml") && !fits("ab", "abc*") && !fits("aa", "a*a*a"));
    }
}
