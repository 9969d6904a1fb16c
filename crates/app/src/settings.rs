//! What PostgreSQL must be told so that its WAL reaches the repository, as a plan: which setting, from what, to what.
//!
//! Invariants: an `archive_command` or `archive_library` that is not ours is never replaced unasked; the command that we
//! write holds absolute paths only, because the archiver's working directory is the data directory.

use std::path::Path;

use cluster::{ServerFacts, Session};
use diagnostic::{Error, Result};
use serde::Serialize;

use crate::output::shell_quoted;

/// Seconds after which an idle server closes a segment when nobody said otherwise: bounds what can be lost.
pub const ARCHIVE_TIMEOUT_SECONDS: u32 = 60;

/// One setting to change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Change {
    pub setting: &'static str,
    pub from: String,
    pub to: String,
    /// It takes effect at the next start of the server only.
    pub restart: bool,
}

impl Change {
    pub fn sql(&self) -> String {
        format!(
            "ALTER SYSTEM SET {} = {}",
            self.setting,
            Session::literal(&self.to)
        )
    }
}

/// The `archive_command` for a cluster.
pub fn archive_command(program: &Path, configuration: &Path, cluster: &str) -> Result<String> {
    // PostgreSQL expands %p, %f and %% in the command: a literal per cent sign is doubled.
    Ok(format!(
        "{} %p",
        our_command(program, configuration, "push", cluster)?.replace('%', "%%")
    ))
}

/// The `restore_command` that fetches WAL for a cluster.
pub fn restore_command(program: &Path, configuration: &Path, cluster: &str) -> Result<String> {
    Ok(format!(
        "{} %f %p",
        our_command(program, configuration, "get", cluster)?.replace('%', "%%")
    ))
}

fn our_command(program: &Path, configuration: &Path, verb: &str, cluster: &str) -> Result<String> {
    let text = |path: &Path| {
        path.to_str()
            .filter(|path| !path.contains(['\n', '\0']))
            .map(shell_quoted)
            .ok_or_else(|| {
                Error::usage(
                    "path-not-text",
                    format!("the path {:?} cannot be written into a command", path.display()),
                )
                .hint("Use a path of printable UTF-8 characters.")
            })
    };
    Ok(format!(
        "{} --config {} wal {verb} --cluster {cluster}",
        text(program)?,
        text(configuration)?
    ))
}

/// Whose the server's archiving is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Archiving {
    /// Nobody's.
    Unset,
    /// Exactly the command that we would write.
    Ours,
    /// Some `pgproof wal push`, but with another program, configuration file or cluster.
    OursElsewhere,
    /// Another tool's.
    Foreign(String),
}

/// Judges `archive_command` and `archive_library`.
pub fn archiving(facts: &ServerFacts, wanted: &str) -> Archiving {
    if let Some(library) = facts
        .archive_library
        .as_deref()
        .filter(|library| !library.is_empty())
    {
        return Archiving::Foreign(format!("archive_library = {library:?}"));
    }
    // With archive_mode=off the server may show this text instead of the value.
    let command = match facts.archive_command.trim() {
        "(disabled)" => "",
        command => command,
    };
    if command.is_empty() {
        Archiving::Unset
    } else if command == wanted {
        Archiving::Ours
    } else if is_pgproof_push(command) {
        Archiving::OursElsewhere
    } else {
        Archiving::Foreign(format!("archive_command = {command:?}"))
    }
}

fn is_pgproof_push(command: &str) -> bool {
    let program = command
        .split_whitespace()
        .next()
        .unwrap_or_default()
        .trim_matches('\'');
    let named = Path::new(program)
        .file_name()
        .is_some_and(|name| name == "pgproof");
    named && command.contains(" wal push ")
}

/// The changes that lead from the server's settings to ours. Error code: `archive-command-foreign`.
pub fn changes(facts: &ServerFacts, wanted: &str, replace: bool) -> Result<Vec<Change>> {
    let mut changes = Vec::new();
    let mut change = |setting: &'static str, from: &str, to: &str, restart: bool| {
        changes.push(Change {
            setting,
            from: from.to_owned(),
            to: to.to_owned(),
            restart,
        });
    };
    if facts.wal_level == "minimal" {
        change("wal_level", &facts.wal_level, "replica", true);
    }
    if facts.archive_mode == "off" {
        change("archive_mode", &facts.archive_mode, "on", true);
    }
    match archiving(facts, wanted) {
        Archiving::Ours => {}
        Archiving::Unset | Archiving::OursElsewhere => {
            change("archive_command", &facts.archive_command, wanted, false);
        }
        Archiving::Foreign(what) if !replace => {
            return Err(Error::new(
                "archive-command-foreign",
                "the server's WAL is archived by something else",
            )
            .detail(format!(
                "It has {what}. A server archives to one place; replacing this ends the other tool's archive."
            ))
            .hint(
                "If that archive is no longer wanted, run the same command with --replace-archive-command.",
            ));
        }
        Archiving::Foreign(_) => {
            if let Some(library) = facts
                .archive_library
                .as_deref()
                .filter(|library| !library.is_empty())
            {
                change("archive_library", library, "", false);
            }
            if facts.archive_command != wanted {
                change("archive_command", &facts.archive_command, wanted, false);
            }
        }
    }
    if facts.archive_timeout_seconds == 0 {
        change(
            "archive_timeout",
            "0",
            &ARCHIVE_TIMEOUT_SECONDS.to_string(),
            false,
        );
    }
    if !facts.full_page_writes {
        change("full_page_writes", "off", "on", false);
    }
    Ok(changes)
}

/// The changes that a backup over the replication protocol needs: archiving is not set up from here.
pub fn changes_elsewhere(facts: &ServerFacts) -> Vec<Change> {
    let mut changes = Vec::new();
    if facts.wal_level == "minimal" {
        changes.push(Change {
            setting: "wal_level",
            from: facts.wal_level.clone(),
            to: "replica".to_owned(),
            restart: true,
        });
    }
    if !facts.full_page_writes {
        changes.push(Change {
            setting: "full_page_writes",
            from: "off".to_owned(),
            to: "on".to_owned(),
            restart: false,
        });
    }
    changes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_survive_the_shell_and_the_expansion_of_per_cent_signs() {
        let command = archive_command(
            Path::new("/opt/it's 100%/pgproof"),
            Path::new("/etc/pgproof/pgproof.toml"),
            "main",
        );
        assert_eq!(
            command.expect("text"),
            r"'/opt/it'\''s 100%%/pgproof' --config '/etc/pgproof/pgproof.toml' wal push --cluster main %p"
        );
        let command = restore_command(Path::new("/b/pgproof"), Path::new("/c.toml"), "main").expect("text");
        assert_eq!(
            command,
            "'/b/pgproof' --config '/c.toml' wal get --cluster main %f %p"
        );
    }

    #[test]
    fn only_pgproofs_own_push_is_taken_for_ours() {
        assert!(is_pgproof_push(
            "'/usr/bin/pgproof' --config '/x' wal push --cluster main %p"
        ));
        assert!(is_pgproof_push("pgproof wal push %p"));
        assert!(!is_pgproof_push("pgbackrest archive-push %p"));
        assert!(!is_pgproof_push("/usr/bin/wal-g wal-push %p"));
        assert!(!is_pgproof_push("cp %p /archive/pgproof wal push "));
    }
}
