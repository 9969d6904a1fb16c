//! The server's configuration files that no base backup holds, because they lie outside the data directory
//! (Debian: `/etc/postgresql/...`): `config_file`, `hba_file`, `ident_file` and what they include (hard rule
//! 3).
//!
//! Invariants: a file is captured when its real place is not inside the data directory, also when a link
//! inside points to it; names are relative paths without `..`, unique within the capture. Includes are found
//! both by asking the server (`pg_file_settings`) and by reading the directives, since a file without
//! settings is in no view and yet the server does not start without it.

use crate::facts::{ServerFacts, column};
use crate::session::{Session, sqlstate};
use diagnostic::{Error, Result};
use std::collections::BTreeMap;
use std::fs;
use std::io::{ErrorKind, Read};
use std::path::{Component, Path, PathBuf};

/// `CONF_FILE_MAX_DEPTH` of PostgreSQL.
const INCLUDE_DEPTH_MAX: usize = 10;
/// No configuration file is longer; a directive that names a device must not fill the memory.
const FILE_BYTES_MAX: u64 = 16 << 20;

/// One file, as it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CapturedFile {
    /// Where it was.
    pub original: PathBuf,
    /// Its name within the capture: relative to the folder of `config_file` where it lies below that
    /// ("conf.d/a.conf"), otherwise its whole path without the first slash.
    pub name: String,
    pub content: Vec<u8>,
}

/// Which directives a file may hold.
#[derive(Clone, Copy, PartialEq)]
enum Syntax {
    /// `include`, `include_if_exists`, `include_dir` with a quoted value.
    Settings,
    /// The same words (from PostgreSQL 16), and `@file` in place of names.
    Authentication,
}

/// Reads all files that a restore would miss. Error codes: `server-permission`, `configuration-read`.
pub fn captured_configuration(facts: &ServerFacts, session: &mut Session) -> Result<Vec<CapturedFile>> {
    let Some(config_file) = &facts.config_file else {
        return Err(Error::new(
            "server-permission",
            "the account may not see where the configuration lies",
        )
        .hint("As a superuser: GRANT pg_monitor TO <the account in the connection string>;"));
    };
    let mut capture = Capture {
        files: BTreeMap::new(),
    };
    capture.add(config_file, Syntax::Settings, 0)?;
    for file in [&facts.hba_file, &facts.ident_file].into_iter().flatten() {
        capture.add(file, Syntax::Authentication, 0)?;
    }
    match session.rows("SELECT DISTINCT sourcefile FROM pg_file_settings WHERE sourcefile IS NOT NULL") {
        Ok(rows) => {
            for file in rows.iter().filter_map(|row| column(row, 0)) {
                capture.add(Path::new(&file), Syntax::Settings, 0)?;
            }
        }
        Err(error) if sqlstate(&error) == Some("42501") => {}
        Err(error) => return Err(error),
    }
    let data_directory =
        fs::canonicalize(&facts.data_directory).unwrap_or_else(|_| facts.data_directory.clone());
    let folder = config_file.parent().unwrap_or(Path::new("/"));
    let mut captured = Vec::new();
    for (original, content) in capture.files {
        let real = fs::canonicalize(&original).unwrap_or_else(|_| original.clone());
        if !real.starts_with(&data_directory) {
            captured.push(CapturedFile {
                name: name_of(&original, folder),
                original,
                content,
            });
        }
    }
    captured.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(captured)
}

struct Capture {
    files: BTreeMap<PathBuf, Vec<u8>>,
}

impl Capture {
    fn add(&mut self, path: &Path, syntax: Syntax, depth: usize) -> Result<()> {
        let path = normalised(path);
        if depth > INCLUDE_DEPTH_MAX || self.files.contains_key(&path) {
            return Ok(());
        }
        let content = match read_limited(&path) {
            Ok(content) => content,
            // `include_if_exists`, a missing pg_ident.conf, or a file that was removed since the server read
            // it.
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(error) => {
                let message = format!("cannot read configuration file \"{}\"", path.display());
                let denied = error.kind() == ErrorKind::PermissionDenied;
                let error = Error::io("configuration-read", message, &error);
                return Err(match denied {
                    true => error.hint("Run pgproof as the account that PostgreSQL runs as, or as root."),
                    false => error,
                });
            }
        };
        let text = String::from_utf8_lossy(&content).into_owned();
        self.files.insert(path.clone(), content);
        let folder = path.parent().unwrap_or(Path::new("/")).to_path_buf();
        for directive in text.lines().flat_map(|line| directives(line, syntax)) {
            match directive {
                Directive::File(name) => self.add(&folder.join(name), syntax, depth + 1)?,
                // Lists of names have no directives of their own but further "@" files.
                Directive::Names(name) => self.add(&folder.join(name), Syntax::Authentication, depth + 1)?,
                Directive::Folder(name) => {
                    for file in configuration_files_in(&folder.join(name)) {
                        self.add(&file, syntax, depth + 1)?;
                    }
                }
            }
        }
        Ok(())
    }
}

#[derive(Debug, PartialEq)]
enum Directive {
    File(String),
    Folder(String),
    Names(String),
}

/// The files, folders and lists of names that a text includes, read both as settings and as a file of authentication.
pub(crate) fn included(text: &str) -> Vec<PathBuf> {
    let lines = text.lines();
    lines
        .flat_map(|line| {
            let mut found = directives(line, Syntax::Settings);
            found.extend(directives(line, Syntax::Authentication));
            found
        })
        .map(|directive| match directive {
            Directive::File(name) | Directive::Folder(name) | Directive::Names(name) => {
                let path = normalised(&Path::new("/etc/postgresql").join(name));
                PathBuf::from(name_of(&path, Path::new("/etc/postgresql")))
            }
        })
        .collect()
}

fn directives(line: &str, syntax: Syntax) -> Vec<Directive> {
    let words = words(line);
    let mut found = Vec::new();
    let value = words.iter().skip(1).find(|word| word.as_str() != "=");
    match (
        words.first().map(|word| word.to_ascii_lowercase()).as_deref(),
        value,
    ) {
        (Some("include" | "include_if_exists"), Some(name)) => found.push(Directive::File(name.clone())),
        (Some("include_dir"), Some(name)) => found.push(Directive::Folder(name.clone())),
        _ if syntax == Syntax::Authentication => {
            for name in words.iter().flat_map(|word| word.split(',')) {
                if let Some(name) = name.strip_prefix('@').filter(|name| !name.is_empty()) {
                    found.push(Directive::Names(name.to_string()));
                }
            }
        }
        _ => {}
    }
    found
}

/// The words of a line up to a comment; quotes are taken off, and '=' stands alone.
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut quote = None;
    for character in line.chars() {
        match (quote, character) {
            (Some(mark), c) if c == mark => quote = None,
            (Some(_), c) => word.push(c),
            (None, '#') => break,
            (None, '\'' | '"') => quote = Some(character),
            (None, c) if c.is_whitespace() || c == '=' => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
                if c == '=' {
                    words.push("=".into());
                }
            }
            (None, c) => word.push(c),
        }
    }
    if !word.is_empty() {
        words.push(word);
    }
    words
}

/// The files that `include_dir` takes: `*.conf` without a leading dot, in the order of their names.
fn configuration_files_in(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Vec::new();
    };
    let mut files: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            let name = path
                .file_name()
                .map(|name| name.to_string_lossy().into_owned())
                .unwrap_or_default();
            name.ends_with(".conf") && !name.starts_with('.') && path.is_file()
        })
        .collect();
    files.sort();
    files
}

fn read_limited(path: &Path) -> std::io::Result<Vec<u8>> {
    let file = fs::File::open(path)?;
    if !file.metadata()?.is_file() {
        return Err(std::io::Error::other("not an ordinary file"));
    }
    let mut content = Vec::new();
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut content)?;
    match content.len() as u64 > FILE_BYTES_MAX {
        true => Err(std::io::Error::other("longer than any configuration file")),
        false => Ok(content),
    }
}

/// Without `.` and `..`, so that one file has one name.
fn normalised(path: &Path) -> PathBuf {
    let mut result = PathBuf::from("/");
    for component in path.components() {
        match component {
            Component::ParentDir => {
                result.pop();
            }
            Component::Normal(name) => result.push(name),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    result
}

fn name_of(original: &Path, folder: &Path) -> String {
    let shortened = original
        .strip_prefix(folder)
        .or_else(|_| original.strip_prefix("/"));
    shortened.unwrap_or(original).to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn include_directives_are_found_in_all_their_spellings() {
        let found = |line| directives(line, Syntax::Settings);
        assert_eq!(
            found("include 'a b.conf' # x"),
            [Directive::File("a b.conf".into())]
        );
        assert_eq!(found(" INCLUDE_IF_EXISTS='x'"), [Directive::File("x".into())]);
        assert_eq!(
            found("include_dir = 'conf.d'"),
            [Directive::Folder("conf.d".into())]
        );
        assert_eq!(found("#include 'x'"), []);
        assert_eq!(found("port = 5432"), []);
        assert_eq!(found("work_mem = '@x'"), []);
        let hba = directives("local @admins,\"@more\" +group trust", Syntax::Authentication);
        assert_eq!(
            hba,
            [Directive::Names("admins".into()), Directive::Names("more".into())]
        );
    }

    #[test]
    fn included_files_are_followed_and_a_circle_ends() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::create_dir(path("conf.d")).unwrap();
        fs::write(
            path("main.conf"),
            "include_dir 'conf.d'\ninclude 'other'\ninclude 'missing'\n",
        )
        .unwrap();
        fs::write(
            path("other"),
            "include '../x/../main.conf'\ninclude 'main.conf'\n",
        )
        .unwrap();
        fs::write(path("conf.d/a.conf"), "").unwrap();
        fs::write(path("conf.d/.hidden.conf"), "").unwrap();
        fs::write(path("conf.d/a.conf.bak"), "").unwrap();
        let mut capture = Capture {
            files: BTreeMap::new(),
        };
        capture.add(&path("main.conf"), Syntax::Settings, 0).unwrap();
        let names: Vec<_> = capture
            .files
            .keys()
            .map(|file| name_of(file, folder.path()))
            .collect();
        assert_eq!(names, ["conf.d/a.conf", "main.conf", "other"]);
        assert_eq!(
            name_of(Path::new("/etc/x/pg_hba.conf"), Path::new("/srv")),
            "etc/x/pg_hba.conf"
        );
    }

    proptest::proptest! {
        #[test]
        fn any_line_is_read(line in ".*") {
            directives(&line, Syntax::Settings);
            directives(&line, Syntax::Authentication);
        }
    }
}
