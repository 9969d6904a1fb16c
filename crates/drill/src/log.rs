//! The copy's server log: where recovery stopped, why it did not, and what of it may stand in the evidence.
//!
//! The copy logs with `log_line_prefix = '%m [%p] %b '` and `lc_messages = C`, so the messages below are
//! those of PostgreSQL 13 to 18 (`xlogrecovery.c`, `xlogarchive.c`, `xlog.c`). Invariant: lines of sessions
//! and workers that execute statements never reach the evidence, since they may quote values. Pure.

use crate::verdict::code;

/// The prefix of each line.
pub const LINE_PREFIX: &str = "%m [%p] %b ";

/// Processes whose lines are about the server itself.
const OWN_PROCESSES: [&str; 7] = [
    "startup",
    "postmaster",
    "checkpointer",
    "background writer",
    "walwriter",
    "archiver",
    "not initialized",
];

/// Lines kept from the beginning and from the end.
const LINES_FIRST: usize = 60;
const LINES_LAST: usize = 140;
/// Longer lines are cut.
const LINE_BYTES_MAX: usize = 400;

/// Why recovery did not reach its target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cause {
    /// A reason's code.
    pub code: &'static str,
    /// The server's own words.
    pub line: String,
}

/// The server's line about where it stopped, of the newest start in this log.
pub fn stop_line(log: &str) -> Option<String> {
    message_lines(log)
        .filter(|message| {
            message.starts_with("recovery stopping ")
                || message.starts_with("recovery has reached the configured target")
        })
        .last()
        .map(str::to_string)
}

/// Whether the server paused because it reached its target (and not for another reason).
pub fn paused_at_target(log: &str) -> bool {
    stop_line(log).is_some()
        && message_lines(log).any(|message| message.starts_with("pausing at the end of recovery"))
}

/// Whether recovery has ended and the server opens for writing.
pub fn recovery_complete(log: &str) -> bool {
    message_lines(log).any(|message| message.starts_with("archive recovery complete"))
}

/// The server's line about the last record that it replayed (`redo done at ...`).
pub fn last_replayed_line(log: &str) -> Option<String> {
    message_lines(log)
        .filter(|message| message.starts_with("redo done at "))
        .last()
        .map(str::to_string)
}

/// What each message means, the first match in this order.
const CAUSES: [(&str, &str); 19] = [
    (
        "hot standby is not possible because of insufficient parameter settings",
        code::PAUSED_BY_PARAMETER_CHANGE,
    ),
    (
        "recovery aborted because of insufficient parameter settings",
        code::PAUSED_BY_PARAMETER_CHANGE,
    ),
    (
        "recovery has paused because of insufficient parameter settings",
        code::PAUSED_BY_PARAMETER_CHANGE,
    ),
    (
        "hot standby is not possible because max_",
        code::PAUSED_BY_PARAMETER_CHANGE,
    ),
    (
        "hot standby is not possible because wal_level",
        code::PAUSED_BY_PARAMETER_CHANGE,
    ),
    ("No space left on device", code::COULD_NOT_LOOK),
    ("out of memory", code::COULD_NOT_LOOK),
    // The kernel's doing, when memory ran out, or somebody's.
    ("was terminated by signal 9", code::COULD_NOT_LOOK),
    ("was terminated by signal", code::SERVER_ENDED),
    ("could not access file", code::SERVER_ENDED),
    ("could not load library", code::SERVER_ENDED),
    (
        "requested recovery stop point is before consistent recovery point",
        code::TARGET_UNREACHABLE,
    ),
    ("WAL ends before end of online backup", code::WAL_MISSING),
    ("WAL ends before consistent recovery point", code::WAL_MISSING),
    ("could not locate required checkpoint record", code::WAL_MISSING),
    ("could not locate a valid checkpoint record", code::WAL_MISSING),
    ("requested timeline", code::TARGET_UNREACHABLE),
    (
        "recovery ended before configured recovery target was reached",
        code::TARGET_NOT_REACHED,
    ),
    ("could not restore file", code::WAL_MISSING),
];

/// The cause of a recovery that did not get to its target, as far as the log tells.
pub fn cause(log: &str) -> Option<Cause> {
    for (pattern, code) in CAUSES {
        // The newest line of the kind: an older start in the same log is not the one that failed.
        if let Some(line) = message_lines(log)
            .filter(|message| message.contains(pattern))
            .last()
        {
            return Some(Cause {
                code,
                line: cut(line),
            });
        }
    }
    own_lines(log)
        .filter(|line| line.contains(" FATAL:  ") || line.contains(" PANIC:  "))
        .last()
        .map(|line| Cause {
            code: code::SERVER_ENDED,
            line: cut(message_of(line)),
        })
}

/// What may stand in the evidence: lines of the server's own processes, the first and the last of them.
pub fn excerpt(log: &str) -> Vec<String> {
    let lines: Vec<&str> = own_lines(log).collect();
    if lines.len() <= LINES_FIRST + LINES_LAST {
        return lines.into_iter().map(cut).collect();
    }
    let left_out = lines.len() - LINES_FIRST - LINES_LAST;
    let mut kept: Vec<String> = lines.iter().take(LINES_FIRST).map(|line| cut(line)).collect();
    kept.push(format!("... {left_out} lines left out ..."));
    kept.extend(lines.iter().skip(lines.len() - LINES_LAST).map(|line| cut(line)));
    kept
}

/// Lines of the server's own processes; continuation lines (they begin with a tab) are left out.
fn own_lines(log: &str) -> impl Iterator<Item = &str> {
    log.lines()
        .filter(|line| process(line).is_some_and(|process| OWN_PROCESSES.contains(&process)))
}

/// The backend type of a line that begins with [`LINE_PREFIX`].
fn process(line: &str) -> Option<&str> {
    let (_, rest) = line.split_once("] ")?;
    let (before, _) = rest.split_once(":  ")?;
    let (process, _severity) = before.rsplit_once(' ')?;
    Some(process)
}

/// The messages of the server's own processes, without prefix and severity.
fn message_lines(log: &str) -> impl Iterator<Item = &str> {
    own_lines(log).map(message_of)
}

fn message_of(line: &str) -> &str {
    line.split_once(":  ").map_or(line, |(_, message)| message)
}

fn cut(line: &str) -> String {
    let mut end = line.len().min(LINE_BYTES_MAX);
    while !line.is_char_boundary(end) {
        end -= 1;
    }
    line[..end].to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "\
2026-11-20 19:30:00.100 UTC [10] postmaster LOG:  starting PostgreSQL 15.18 on x86_64-pc-linux-gnu
2026-11-20 19:30:00.120 UTC [12] startup LOG:  starting point-in-time recovery to \"pgproof_x\"
2026-11-20 19:30:00.900 UTC [12] startup LOG:  recovery stopping at restore point \"pgproof_x\", time \
2026-11-20
2026-11-20 19:30:00.900 UTC [12] startup LOG:  pausing at the end of recovery
2026-11-20 19:30:00.900 UTC [12] startup HINT:  Execute pg_wal_replay_resume() to promote.
2026-11-20 19:30:01.000 UTC [40] client backend ERROR:  invalid input syntax for type integer: \"secret\"
2026-11-20 19:30:01.000 UTC [40] client backend STATEMENT:  select 'secret'::int
\tand a line that goes on
";

    #[test]
    fn the_stop_is_found_and_sessions_stay_out_of_the_evidence() {
        assert!(stop_line(LOG).is_some_and(|line| line.starts_with("recovery stopping at restore point")));
        assert!(paused_at_target(LOG));
        let excerpt = excerpt(LOG);
        assert_eq!(excerpt.len(), 5);
        assert!(!excerpt.join("\n").contains("secret"));
    }

    #[test]
    fn a_pause_for_a_parameter_is_not_the_target() {
        let log = "2026-11-20 19:30:00 UTC [12] startup WARNING:  hot standby is not possible because of \
        insufficient \
            parameter settings\n2026-11-20 19:30:00 UTC [12] startup LOG:  recovery has paused\n";
        assert!(!paused_at_target(log));
        assert_eq!(
            cause(log).map(|cause| cause.code),
            Some(code::PAUSED_BY_PARAMETER_CHANGE)
        );
    }

    #[test]
    fn an_end_before_the_target_is_named() {
        let log = "2026-11-20 19:30:00 UTC [12] startup FATAL:  recovery ended before configured recovery \
        target was \
            reached\n2026-11-20 19:30:00 UTC [10] postmaster LOG:  startup process (PID 12) exited with exit \
            code 1\n";
        assert_eq!(cause(log).map(|cause| cause.code), Some(code::TARGET_NOT_REACHED));
        assert_eq!(cause("nothing of ours\n"), None);
        let fatal = "2026-11-20 19:30:00 UTC [10] postmaster FATAL:  something else\n";
        assert_eq!(cause(fatal).map(|cause| cause.code), Some(code::SERVER_ENDED));
    }

    #[test]
    fn a_long_log_is_cut_in_the_middle() {
        let line = "2026-11-20 19:30:00 UTC [12] startup LOG:  restored log file \"x\" from archive\n";
        let excerpt = excerpt(&line.repeat(1000));
        assert_eq!(excerpt.len(), LINES_FIRST + LINES_LAST + 1);
        assert_eq!(
            excerpt.get(LINES_FIRST).map(String::as_str),
            Some("... 800 lines left out ...")
        );
    }
}
