//! `pgproof check`: proves the set-up end to end, one line for each check with its cure.
//!
//! Invariant: what could not be looked at is never PASS. A check that depends on a failed one is NOT RUN.

mod protocol;

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use cluster::{ServerFacts, Session};
use diagnostic::{Error, Result};
use jiff::Timestamp;
use postgres::Lsn;
use serde::Serialize;
use serde_json::json;

use crate::account;
use crate::backlog;
use crate::cli;
use crate::config::{Cluster, Configuration, KeySource};
use crate::context::Context;
use crate::copies::{Copies, OpenCopy};
use crate::settings::{self, Archiving};
use crate::{exit, output};

/// Hours after which the newest backup is called old.
const BACKUP_AGE_HOURS_WARN: i64 = 26;
/// Seconds that this host's clock and the server's may differ.
const CLOCK_SECONDS_WARN: i64 = 5;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
enum State {
    #[serde(rename = "PASS")]
    Pass,
    #[serde(rename = "WARN")]
    Warn,
    #[serde(rename = "FAIL")]
    Fail,
    #[serde(rename = "NOT RUN")]
    NotRun,
}

impl State {
    fn text(self) -> &'static str {
        match self {
            State::Pass => "PASS",
            State::Warn => "WARN",
            State::Fail => "FAIL",
            State::NotRun => "NOT RUN",
        }
    }
}

#[derive(Debug, Clone, Serialize)]
struct Line {
    check: String,
    result: State,
    text: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    cure: Option<String>,
}

/// The lines so far, printed as they come.
struct Lines {
    lines: Vec<Line>,
    json: bool,
}

impl Lines {
    fn add(&mut self, check: &str, result: State, text: impl Into<String>, cure: Option<String>) {
        let line = Line {
            check: check.to_owned(),
            result,
            text: text.into(),
            cure,
        };
        if !self.json {
            output::line(format!(
                "{:7}  {:20} {}",
                line.result.text(),
                line.check,
                line.text
            ));
            if let Some(cure) = &line.cure {
                output::line(format!("{:30} cure: {cure}", ""));
            }
        }
        self.lines.push(line);
    }

    fn pass(&mut self, check: &str, text: impl Into<String>) {
        self.add(check, State::Pass, text, None);
    }

    fn warn(&mut self, check: &str, text: impl Into<String>, cure: impl Into<String>) {
        self.add(check, State::Warn, text, Some(cure.into()));
    }

    fn fail(&mut self, check: &str, text: impl Into<String>, cure: impl Into<String>) {
        self.add(check, State::Fail, text, Some(cure.into()));
    }

    fn not_run(&mut self, check: &str, why: impl Into<String>) {
        self.add(check, State::NotRun, why, None);
    }

    fn error(&mut self, check: &str, error: &Error) {
        let text = match error.render().split_once(": ") {
            Some((_, rest)) => rest
                .lines()
                .take_while(|line| !line.starts_with("hint: "))
                .collect::<Vec<_>>()
                .join(" "),
            None => error.message().to_owned(),
        };
        self.add(check, State::Fail, text, error.hint_text().map(str::to_owned));
    }
}

pub fn run(context: &Context, arguments: &cli::Check) -> Result<u8> {
    let configuration = context.configuration()?;
    let cluster = configuration.cluster(arguments.of.cluster.as_deref())?;
    account::become_owner(&configuration, cluster)?;
    let mut lines = Lines {
        lines: Vec::new(),
        json: context.json,
    };
    lines.pass("configuration", configuration.path.display().to_string());

    let mut session = match Session::connect(&cluster.connection) {
        Ok(session) => Some(session),
        Err(error) => {
            lines.error("connection", &error);
            None
        }
    };
    let facts = match session.as_mut().map(cluster::gather) {
        Some(Ok(facts)) => {
            lines.pass(
                "connection",
                format!("PostgreSQL {} at {}", facts.version, facts.insert_lsn),
            );
            Some(facts)
        }
        Some(Err(error)) => {
            lines.error("connection", &error);
            None
        }
        None => None,
    };
    match &facts {
        Some(facts) => {
            if cluster.data_directory.is_some() {
                check_server(&mut lines, cluster, facts);
                check_settings(&mut lines, context, &configuration, cluster, facts)?;
            } else if let Some(session) = session.as_mut() {
                protocol::check(&mut lines, session, cluster, facts);
            }
            check_clock(&mut lines, context.now(), facts.now);
        }
        None => {
            for check in ["data-directory", "settings", "archive-command", "clock"] {
                lines.not_run(check, "there is no connection");
            }
        }
    }
    check_keys(&mut lines, &configuration, cluster);
    let copies = Copies::open(&configuration, cluster, None)?;
    for (name, error) in &copies.failed {
        lines.error(&format!("repository {name}"), error);
    }
    for copy in &copies.open {
        check_repository(&mut lines, copy);
    }
    match (session.as_mut(), &facts) {
        (Some(session), Some(facts)) if !arguments.no_switch => {
            let bound = Duration::from_secs(arguments.wait);
            check_arrival(&mut lines, session, facts, cluster, &copies.open, bound);
        }
        (_, None) => lines.not_run("wal-arrives", "there is no connection"),
        _ => lines.not_run("wal-arrives", "--no-switch was given"),
    }
    match &facts {
        Some(facts) => {
            check_backlog(&mut lines, session.as_mut(), facts, cluster, context.now());
            if cluster.data_directory.is_some() {
                check_spool(&mut lines, cluster);
            }
        }
        None => lines.not_run("wal-waits", "there is no connection"),
    }
    for copy in &copies.open {
        check_backups(&mut lines, context.now(), copy);
    }
    finish(context, cluster, lines)
}

fn finish(context: &Context, cluster: &Cluster, lines: Lines) -> Result<u8> {
    let count = |state: State| lines.lines.iter().filter(|line| line.result == state).count();
    let failed = count(State::Fail);
    if context.json {
        output::json(&json!({
            "cluster": cluster.name,
            "checks": lines.lines,
            "failed": failed,
            "warned": count(State::Warn),
        }));
    } else {
        output::line(format!(
            "{} passed, {} warned, {failed} failed, {} not run",
            count(State::Pass),
            count(State::Warn),
            count(State::NotRun)
        ));
    }
    Ok(if failed > 0 { exit::BAD } else { exit::DONE })
}

fn check_server(lines: &mut Lines, cluster: &Cluster, facts: &ServerFacts) {
    let data_directory = cluster.data_directory.as_deref().unwrap_or(&facts.data_directory);
    let text = data_directory.display();
    match cluster::read_control_file(data_directory) {
        Ok((_, control)) if control.system_identifier == facts.system_identifier => {
            lines.pass(
                "data-directory",
                format!("{text} belongs to this server ({})", facts.system_identifier),
            );
        }
        Ok((_, control)) => lines.fail(
            "data-directory",
            format!(
                "{text} belongs to another server: its system identifier is {}, the server's is {}",
                control.system_identifier, facts.system_identifier
            ),
            format!(
                "Set data_directory = \"{}\" in [cluster.{}].",
                facts.data_directory.display(),
                cluster.name
            ),
        ),
        Err(error) => lines.error("data-directory", &error),
    }
    if facts.data_checksums {
        lines.pass("data-checksums", "on");
    } else {
        lines.warn(
            "data-checksums",
            "off: damage of a page on the server's disk cannot be seen",
            "Stop the server, run pg_checksums --enable, start it.",
        );
    }
}

fn check_settings(
    lines: &mut Lines,
    context: &Context,
    configuration: &Configuration,
    cluster: &Cluster,
    facts: &ServerFacts,
) -> Result<()> {
    let alter = |setting: &str, value: &str| format!("ALTER SYSTEM SET {setting} = {value};");
    let pending = |setting: &str| facts.pending_restart.iter().any(|name| name == setting);
    let mut good = true;
    for (setting, bad, value) in [
        ("wal_level", facts.wal_level == "minimal", "replica"),
        ("archive_mode", facts.archive_mode == "off", "on"),
    ] {
        if !bad {
            continue;
        }
        good = false;
        let current = if setting == "wal_level" {
            &facts.wal_level
        } else {
            &facts.archive_mode
        };
        if pending(setting) {
            lines.fail(
                "settings",
                format!("{setting} is {current} until the server is restarted"),
                "Restart the server.",
            );
        } else {
            let cure = format!("{} Then restart the server.", alter(setting, value));
            lines.fail("settings", format!("{setting} is {current}"), cure);
        }
    }
    if facts.in_recovery && facts.archive_mode != "always" {
        good = false;
        lines.warn(
            "settings",
            "the server is a standby and archives nothing",
            "Let its primary archive.",
        );
    }
    if !facts.full_page_writes {
        good = false;
        let cure = format!("{} SELECT pg_reload_conf();", alter("full_page_writes", "on"));
        lines.fail(
            "settings",
            "full_page_writes is off: a backup of a running server would hold torn pages",
            cure,
        );
    }
    if facts.archive_timeout_seconds == 0 {
        good = false;
        let cure = format!("{} SELECT pg_reload_conf();", alter("archive_timeout", "60"));
        lines.warn(
            "settings",
            "archive_timeout is 0: a quiet server's last changes stay unarchived for ever",
            cure,
        );
    }
    if good {
        let text = format!(
            "wal_level {}, archive_mode {}, archive_timeout {} s",
            facts.wal_level, facts.archive_mode, facts.archive_timeout_seconds
        );
        lines.pass("settings", text);
    }

    let wanted = settings::archive_command(&context.program()?, &configuration.path, &cluster.name)?;
    let set = format!(
        "{} SELECT pg_reload_conf();",
        alter("archive_command", &Session::literal(&wanted))
    );
    match settings::archiving(facts, &wanted) {
        Archiving::Ours => lines.pass("archive-command", "is this program with this configuration"),
        // The server hides the command while archive_mode is off, which is a FAIL of its own above.
        Archiving::Unset if facts.archive_mode == "off" => {
            lines.not_run(
                "archive-command",
                "the server does not show it while archive_mode is off",
            );
        }
        Archiving::Unset => lines.fail("archive-command", "archive_command is empty", set),
        Archiving::Foreign(what) => {
            lines.fail(
                "archive-command",
                format!("the server archives elsewhere: {what}"),
                set,
            );
        }
        Archiving::OursElsewhere => check_other_command(lines, &facts.archive_command, &set),
    }
    Ok(())
}

/// Another pgproof, or another configuration file, archives: it may be right, and it must at least exist.
fn check_other_command(lines: &mut Lines, command: &str, set: &str) {
    let mut words = shell_words(command).into_iter();
    let program = words.next().unwrap_or_default();
    let config = words.skip_while(|word| word != "--config").nth(1);
    let executable = std::fs::metadata(&program)
        .is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0);
    if !Path::new(&program).is_absolute() || !executable {
        lines.fail(
            "archive-command",
            format!("the program {program:?} in archive_command cannot be executed"),
            set,
        );
        return;
    }
    match config {
        Some(config) if !Path::new(&config).is_absolute() || std::fs::File::open(&config).is_err() => {
            lines.fail(
                "archive-command",
                format!("the file {config:?} in archive_command cannot be read"),
                set,
            );
        }
        _ => lines.warn(
            "archive-command",
            format!("the server archives with another program or configuration than this: {command}"),
            set,
        ),
    }
}

/// The words of a command as `shell_quoted` writes them.
fn shell_words(command: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let (mut quoted, mut escaped, mut any) = (false, false, false);
    for c in command.replace("%%", "%").chars() {
        if std::mem::take(&mut escaped) {
            word.push(c);
        } else if c == '\'' {
            quoted = !quoted;
            any = true;
        } else if c == '\\' && !quoted {
            escaped = true;
            any = true;
        } else if c.is_whitespace() && !quoted {
            if std::mem::take(&mut any) {
                words.push(std::mem::take(&mut word));
            }
        } else {
            word.push(c);
            any = true;
        }
    }
    if any {
        words.push(word);
    }
    words
}

fn check_clock(lines: &mut Lines, here: Timestamp, there: Timestamp) {
    let seconds = here.duration_since(there).as_secs().abs();
    if seconds <= CLOCK_SECONDS_WARN {
        lines.pass(
            "clock",
            format!("this host and the server agree within {CLOCK_SECONDS_WARN} s"),
        );
    } else {
        let text = format!("this host's clock and the server's differ by {seconds} s");
        lines.warn(
            "clock",
            text,
            "Synchronise both with NTP; recovery targets are times of the server's clock.",
        );
    }
}

fn check_keys(lines: &mut Lines, configuration: &Configuration, cluster: &Cluster) {
    for copy in cluster
        .copies
        .iter()
        .filter_map(|name| configuration.copies.get(name))
    {
        let KeySource::File(path) = &copy.key else {
            continue;
        };
        let Ok(metadata) = std::fs::metadata(path) else {
            continue;
        };
        let mode = metadata.permissions().mode() & 0o777;
        if mode & 0o077 == 0 {
            continue;
        }
        lines.warn(
            &format!("key {}", copy.name),
            format!("{} may be read by others (mode {mode:04o})", path.display()),
            format!("chmod 0600 {}", output::shell_quoted(&path.display().to_string())),
        );
    }
}

/// The key opens it, and it can be written: the probe is an object that is deleted again.
fn check_repository(lines: &mut Lines, copy: &OpenCopy) {
    let check = format!("repository {}", copy.name);
    let store = copy.cluster.repository().store();
    // Under a name that the format keeps for nothing, so that no reader sees it.
    let name = format!(
        "probe/check-{}-{}",
        std::process::id(),
        Timestamp::now().as_microsecond()
    );
    let content = Timestamp::now().to_string().into_bytes();
    let probe = (|| {
        store.put_new(&name, &content)?;
        let read = store.read(&name)?;
        store.delete(&name)?;
        if read.as_deref() == Some(content.as_slice()) {
            Ok(())
        } else {
            Err(Error::new(
                "repository-probe",
                "what was written did not come back the same",
            ))
        }
    })();
    match probe {
        Ok(()) => lines.pass(
            &check,
            format!("{} opens with its key and can be written", copy.url),
        ),
        Err(error) => lines.error(&check, &error.context(format!("cannot write to {}", copy.url))),
    }
    let check = format!("creation {}", copy.name);
    if copy.cluster.repository().conditional_creation() {
        lines.pass(&check, "conditional: an object cannot be overwritten");
    } else {
        let cure = "Let one host only write there, or use a store with conditional creation.";
        lines.warn(
            &check,
            "not conditional: conflicts are detected, not prevented",
            cure,
        );
    }
}

/// A forced switch, then the segment in every copy, byte for byte as it lies in `pg_wal`.
fn check_arrival(
    lines: &mut Lines,
    session: &mut Session,
    facts: &ServerFacts,
    cluster: &Cluster,
    copies: &[OpenCopy],
    bound: Duration,
) {
    const CHECK: &str = "wal-arrives";
    if facts.archive_mode == "off" && cluster.data_directory.is_none() {
        lines.not_run(
            CHECK,
            "the server does not archive: each backup streams its own WAL",
        );
        return;
    }
    if facts.in_recovery || facts.archive_mode == "off" {
        lines.not_run(CHECK, "the server does not archive");
        return;
    }
    let end = match cluster::switch_wal(session) {
        Ok(end) => end,
        Err(error) if cluster::session::sqlstate(&error) == Some("42501") => {
            let cure = "As a superuser: GRANT EXECUTE ON FUNCTION pg_switch_wal() TO the account in the connection \
                        string; or run `pgproof check --no-switch`.";
            return lines.warn(
                CHECK,
                "the account may not switch WAL, so that nothing was tried",
                cure,
            );
        }
        Err(error) => return lines.error(CHECK, &error.context("cannot force a WAL switch")),
    };
    let number = Lsn(end.0.saturating_sub(1)).segment(facts.wal_segment_size);
    let file = postgres::segment_name(facts.timeline, number, facts.wal_segment_size);
    let began = Instant::now();
    for copy in copies {
        let check = format!("{CHECK} {}", copy.name);
        let found = loop {
            match copy.cluster.get_segment(
                facts.system_identifier,
                facts.timeline,
                number,
                facts.wal_segment_size,
            ) {
                Ok(None) if began.elapsed() < bound => std::thread::sleep(Duration::from_millis(100)),
                other => break other,
            }
        };
        let object = match found {
            Ok(Some(object)) => object,
            Ok(None) => {
                let cure = arrival_cure(session);
                lines.fail(
                    &check,
                    format!("{file} did not arrive within {} s", bound.as_secs()),
                    cure,
                );
                continue;
            }
            Err(error) => {
                lines.error(&check, &error);
                continue;
            }
        };
        let seconds = began.elapsed().as_secs_f64();
        let mut bytes = Vec::new();
        if let Err(error) = copy
            .cluster
            .read_segment(&object, &mut bytes)
            .map(|_| bytes.flush())
        {
            lines.error(&check, &error);
            continue;
        }
        let data_directory = cluster.data_directory.as_deref().unwrap_or(&facts.data_directory);
        match std::fs::read(data_directory.join("pg_wal").join(&file)) {
            Ok(original) if original == bytes => {
                lines.pass(
                    &check,
                    format!("{file} arrived after {seconds:.1} s and reads back byte for byte"),
                );
            }
            Ok(_) => lines.fail(
                &check,
                format!("{file} reads back with other bytes than the server's"),
                "Do not trust this copy: `pgproof verify`, then take a new backup into a new repository.",
            ),
            // Once archived the server may recycle it at any moment.
            Err(_) => lines.pass(
                &check,
                format!("{file} arrived after {seconds:.1} s and reads back whole"),
            ),
        }
    }
}

/// Whether archiving keeps up.
fn check_backlog(
    lines: &mut Lines,
    session: Option<&mut Session>,
    facts: &ServerFacts,
    cluster: &Cluster,
    now: Timestamp,
) {
    const CHECK: &str = "wal-waits";
    let data_directory = cluster.data_directory.as_deref().unwrap_or(&facts.data_directory);
    let seen = match backlog::look(cluster, data_directory, facts.wal_segment_size, session, now) {
        Ok(seen) => seen,
        Err(error) => return lines.not_run(CHECK, error.to_string()),
    };
    if seen.warnings.is_empty() {
        return lines.pass(CHECK, seen.text(now));
    }
    let cure = "Look for pgproof's error in the server's log, and see \"When the archive does not move\" and \"WAL under \
                load\" in docs/operations.md. Do not remove files from pg_wal.";
    for warning in seen.warnings {
        lines.warn(CHECK, warning, cure);
    }
}

/// Whether what waits can be pushed ahead: without a place for its notes every segment waits for its own round trip.
fn check_spool(lines: &mut Lines, cluster: &Cluster) {
    const CHECK: &str = "push-ahead";
    let archive = &cluster.archive;
    if archive.push_ahead == 0 {
        return lines.pass(CHECK, "switched off (push_ahead = 0)");
    }
    match backup::Spool::open(&archive.spool) {
        Ok(_) => lines.pass(
            CHECK,
            format!("{} at once, notes in {}", archive.push_ahead, archive.spool.display()),
        ),
        Err(error) => lines.warn(
            CHECK,
            format!(
                "segments are pushed one by one: {}",
                error.detail_text().unwrap_or(error.message())
            ),
            format!(
                "Give {} to the server's account, or set spool in [cluster.{}.archive] to a folder of its own.",
                archive.spool.display(),
                cluster.name
            ),
        ),
    }
}

/// What the server itself says about its archiver.
fn arrival_cure(session: &mut Session) -> String {
    match cluster::archiver_status(session) {
        Ok(status) => match (&status.last_failed, &status.last_failed_at) {
            (Some(file), Some(at)) => format!(
                "The archiver last failed with {file} at {}; the server's log holds what pgproof said. Failed attempts: {}.",
                output::moment(*at),
                status.failed_count
            ),
            _ => "The archiver has not tried yet: is archive_command the one that `pgproof init` wrote?"
                .to_owned(),
        },
        Err(error) => format!("The archiver's state cannot be read either: {error}."),
    }
}

fn check_backups(lines: &mut Lines, now: Timestamp, copy: &OpenCopy) {
    let check = format!("backup {}", copy.name);
    match copy.cluster.backups() {
        Ok(backups) => match backups.last() {
            Some(newest) => {
                let hours = now.duration_since(newest.finished_at).as_secs() / 3600;
                let text = format!(
                    "the newest, {}, is {hours} h old; there are {}",
                    newest.backup,
                    backups.len()
                );
                if hours <= BACKUP_AGE_HOURS_WARN {
                    lines.pass(&check, text);
                } else {
                    lines.warn(&check, text, format!("pgproof backup {}", newest.cluster));
                }
            }
            None => lines.warn(
                &check,
                "there is none yet: nothing can be recovered",
                "Run `pgproof backup`.",
            ),
        },
        Err(error) => lines.error(&check, &error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_of_our_own_command_are_read_back() {
        let command =
            settings::archive_command(Path::new("/opt/it's 5%/pgproof"), Path::new("/e/p.toml"), "main");
        assert_eq!(
            shell_words(&command.expect("text")),
            [
                "/opt/it's 5%/pgproof",
                "--config",
                "/e/p.toml",
                "wal",
                "push",
                "--cluster",
                "main",
                "%p"
            ]
        );
    }
}
