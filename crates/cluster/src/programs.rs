//! Where PostgreSQL's own programs of one major version are.
//!
//! Invariants: a folder counts only when its `postgres --version` names the wanted major; a program of
//! another major is never used (they refuse each other's data, or worse). The environment is not read:
//! whoever wants `PATH` searched passes its folders in.

use diagnostic::{Error, Result};
use postgres::Major;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How long a program may take to tell its version.
const ANSWER_LIMIT: Duration = Duration::from_secs(20);

/// The programs of one installation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Programs {
    pub directory: PathBuf,
    pub major: Major,
    /// As `postgres --version` tells it: "15.18".
    pub version: String,
}

impl Programs {
    /// Looks in `extra` first, then where Debian, Red Hat and PostgreSQL itself install, then where
    /// `pg_config` points. Error codes: `programs-missing`.
    pub fn find(major: Major, extra: &[PathBuf]) -> Result<Programs> {
        let mut folders = extra.to_vec();
        folders.push(format!("/usr/lib/postgresql/{major}/bin").into());
        folders.push(format!("/usr/pgsql-{major}/bin").into());
        folders.push(format!("/usr/local/pgsql-{major}/bin").into());
        folders.push("/usr/local/pgsql/bin".into());
        folders.push("/usr/lib/postgresql/bin".into());
        let found = folders.iter().find_map(|folder| Programs::at(folder, major));
        let found = found.or_else(|| {
            let folder = answer(Command::new("pg_config").arg("--bindir"))?;
            Programs::at(Path::new(folder.trim_end()), major)
        });
        found.ok_or_else(|| {
            let looked: Vec<String> = folders
                .iter()
                .map(|folder| folder.display().to_string())
                .collect();
            Error::new(
                "programs-missing",
                format!("cannot find the programs of PostgreSQL {major}"),
            )
            .detail(format!(
                "Looked in {}, and where pg_config points.",
                looked.join(", ")
            ))
            .hint(format!("On Debian and Ubuntu: apt install postgresql-{major}"))
        })
    }

    /// The installation in `folder`, if it is of this major.
    fn at(folder: &Path, major: Major) -> Option<Programs> {
        // Links are followed: /usr/local/bin may hold links into one installation.
        let server = std::fs::canonicalize(folder.join("postgres")).ok()?;
        let text = answer(Command::new(&server).arg("--version"))?;
        let version = version_of(&text)?;
        let number: u16 = version
            .split(|c: char| !c.is_ascii_digit())
            .next()?
            .parse()
            .ok()?;
        let directory = server.parent()?.to_path_buf();
        (number == major.0).then(|| Programs {
            directory,
            major,
            version: version.to_string(),
        })
    }

    /// The path of one program. Error codes: `programs-missing`.
    pub fn program(&self, name: &str) -> Result<PathBuf> {
        let path = self.directory.join(name);
        if path.is_file() {
            return Ok(path);
        }
        Err(
            Error::new("programs-missing", format!("cannot find the program \"{name}\""))
                .detail(format!("It is not in \"{}\".", self.directory.display()))
                .hint(format!(
                    "On Debian and Ubuntu: apt install postgresql-{0} postgresql-client-{0}",
                    self.major
                )),
        )
    }
}

/// "15.18" of "postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)".
fn version_of(text: &str) -> Option<&str> {
    let mut words = text.split_whitespace();
    words.find(|word| word.ends_with("PostgreSQL)"))?;
    words
        .next()
        .filter(|version| version.starts_with(|c: char| c.is_ascii_digit()))
}

/// What a program prints, if it ends well and in time.
fn answer(command: &mut Command) -> Option<String> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    let started = Instant::now();
    // A version fits into the pipe, so waiting first cannot block the program.
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if started.elapsed() < ANSWER_LIMIT => std::thread::sleep(Duration::from_millis(2)),
            _ => {
                let _ = child.kill();
                let _ = child.wait();
                return None;
            }
        }
    };
    let mut text = String::new();
    child.stdout.take()?.take(4096).read_to_string(&mut text).ok()?;
    status.success().then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_what_distributions_print() {
        assert_eq!(
            version_of("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n"),
            Some("15.18")
        );
        assert_eq!(version_of("postgres (PostgreSQL) 18beta1"), Some("18beta1"));
        assert_eq!(version_of("nginx 1.2"), None);
    }

    #[test]
    fn a_missing_version_says_what_to_install() {
        let error = Programs::find(Major(13), &[PathBuf::from("/nonexistent")]);
        if let Err(error) = error {
            assert_eq!(error.code(), "programs-missing");
            assert!(
                error
                    .hint_text()
                    .is_some_and(|hint| hint.contains("postgresql-13"))
            );
        }
    }
}
