//! Which account does the work. Repository, key and WAL belong to the account that runs PostgreSQL; what root would write
//! there, the archiver and recovery could not read.
//!
//! Invariant: started as root for a server of another account, a command that reads or writes the repository becomes
//! that account before it opens anything, by starting this program again under it. `init` is the exception: it makes
//! folders as root, and asks the server through a child that runs as the server's owner.

use std::ffi::OsString;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use cluster::{ServerFacts, Session};
use diagnostic::{Error, Result};
use serde::{Deserialize, Serialize};

use crate::config::{Cluster, Configuration};
use crate::context::Context;

/// An operating system account.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Account {
    pub uid: u32,
    pub gid: u32,
}

impl Account {
    /// The account this process runs as.
    pub fn current() -> Account {
        Account {
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
        }
    }

    /// Who owns a file or directory, if it can be told.
    pub fn of(path: &Path) -> Option<Account> {
        let metadata = std::fs::metadata(path).ok()?;
        Some(Account {
            uid: metadata.uid(),
            gid: metadata.gid(),
        })
    }

    /// The account's name, or its number.
    pub fn name(self) -> String {
        let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
        passwd
            .lines()
            .find_map(|line| {
                let mut fields = line.split(':');
                let name = fields.next()?;
                (fields.nth(1)?.parse() == Ok(self.uid)).then(|| name.to_owned())
            })
            .unwrap_or_else(|| self.uid.to_string())
    }

    pub fn is_root(self) -> bool {
        self.uid == 0
    }
}

/// The owner of the server that a connection string leads to: of its data directory, else of its socket.
pub fn owner_of_server(connection: &str, data_directory: Option<&Path>) -> Option<Account> {
    if let Some(account) = data_directory.and_then(Account::of) {
        return Some(account);
    }
    let conninfo = cluster::conninfo::Conninfo::parse(connection).ok()?;
    let host = conninfo.get("host").unwrap_or("/var/run/postgresql");
    let port = conninfo.get("port").unwrap_or("5432");
    host.starts_with('/')
        .then(|| Path::new(host).join(format!(".s.PGSQL.{port}")))
        .as_deref()
        .and_then(Account::of)
}

/// The account that a cluster's server, and so its repository, belongs to.
pub fn owner(configuration: &Configuration, cluster: &Cluster) -> Option<Account> {
    let repository = || {
        let folder = configuration
            .copies
            .get(cluster.copies.first()?)?
            .url
            .strip_prefix("file://")?;
        Account::of(Path::new(folder))
    };
    owner_of_server(&cluster.connection, cluster.data_directory.as_deref()).or_else(repository)
}

/// As root for a cluster of another account: starts this program again as that account and never returns.
pub fn become_owner(configuration: &Configuration, cluster: &Cluster) -> Result<()> {
    if !Account::current().is_root() {
        return Ok(());
    }
    let Some(owner) = owner(configuration, cluster).filter(|owner| !owner.is_root()) else {
        return Ok(());
    };
    let program = std::env::current_exe().map_err(|error| {
        Error::io(
            "program-path",
            "cannot tell where this program is installed",
            &error,
        )
    })?;
    let error = Command::new(program)
        .args(std::env::args_os().skip(1))
        .uid(owner.uid)
        .gid(owner.gid)
        .exec();
    Err(Error::io(
        "account-change",
        format!("cannot go on as {:?}, the server's account", owner.name()),
        &error,
    )
    .hint(format!(
        "The program and its directories must be accessible for {:?}; or run it as that account.",
        owner.name()
    )))
}

/// The same for a command that was given a private key of a person's: the owner of the server may not be able to
/// read its file, so it gets the text on its standard input, and `-` for the value of `option`.
pub fn become_owner_with_key(
    configuration: &Configuration,
    cluster: &Cluster,
    option: &str,
    key: &str,
) -> Result<()> {
    let Some(owner) =
        owner(configuration, cluster).filter(|owner| Account::current().is_root() && !owner.is_root())
    else {
        return Ok(());
    };
    let failed = |error: &std::io::Error| {
        Error::io(
            "account-change",
            format!("cannot go on as {:?}, the server's account", owner.name()),
            error,
        )
    };
    let (reader, mut writer) = std::io::pipe().map_err(|error| failed(&error))?;
    // A key is much shorter than what a pipe holds.
    writer.write_all(key.as_bytes()).map_err(|error| failed(&error))?;
    drop(writer);
    let program = std::env::current_exe().map_err(|error| failed(&error))?;
    let error = Command::new(program)
        .args(with_value(std::env::args_os().skip(1), option, "-"))
        .uid(owner.uid)
        .gid(owner.gid)
        .stdin(reader)
        .exec();
    Err(failed(&error))
}

/// The same words with another value of an option.
fn with_value(words: impl Iterator<Item = OsString>, option: &str, value: &str) -> Vec<OsString> {
    let mut given = Vec::new();
    let mut is_value = false;
    for word in words {
        let joined = word
            .to_str()
            .and_then(|word| word.strip_prefix(option))
            .is_some_and(|rest| rest.starts_with('='));
        given.push(match (is_value, joined) {
            (true, _) => value.into(),
            (_, true) => format!("{option}={value}").into(),
            _ => word.clone(),
        });
        is_value = word == option;
    }
    given
}

/// Creates a folder with its parents; as root, what was made is given to `owner`.
pub fn make_folder(folder: &Path, owner: Account) -> Result<()> {
    let missing: Vec<&Path> = folder
        .ancestors()
        .take_while(|path| !path.as_os_str().is_empty() && !path.try_exists().unwrap_or(true))
        .collect();
    for path in missing.iter().rev() {
        match std::fs::create_dir(path) {
            Ok(()) => give(path, owner)?,
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => {
                let message = format!("cannot create the folder {:?}", path.display().to_string());
                return Err(Error::io("folder-create", message, &error));
            }
        }
    }
    Ok(())
}

/// Gives a file or folder that we made to its owner; only root can and needs to.
pub fn give(path: &Path, owner: Account) -> Result<()> {
    if !Account::current().is_root() || owner.is_root() {
        return Ok(());
    }
    std::os::unix::fs::lchown(path, Some(owner.uid), Some(owner.gid)).map_err(|error| {
        Error::io(
            "owner",
            format!(
                "cannot give {:?} to {:?}",
                path.display().to_string(),
                owner.name()
            ),
            &error,
        )
    })
}

/// What a child that runs as the server's owner is asked to do.
#[derive(Debug, Serialize, Deserialize)]
pub struct Errand {
    pub connection: String,
    /// Statements to run before looking.
    pub statements: Vec<String>,
}

/// Connects, runs the statements one by one, and looks at the server; as `owner` when this process is root.
pub fn ask_server(context: &Context, errand: &Errand, owner: Option<Account>) -> Result<ServerFacts> {
    let current = Account::current();
    match owner {
        Some(owner) if current.is_root() && !owner.is_root() => ask_through_child(context, errand, owner),
        _ => ask_directly(errand),
    }
}

/// The same, in this process.
pub fn ask_directly(errand: &Errand) -> Result<ServerFacts> {
    let mut session = Session::connect(&errand.connection)?;
    for statement in &errand.statements {
        session.execute(statement)?;
    }
    cluster::gather(&mut session)
}

fn ask_through_child(context: &Context, errand: &Errand, owner: Account) -> Result<ServerFacts> {
    let failed = |error: &std::io::Error| {
        Error::io(
            "account-change",
            format!("cannot run pgproof as {:?}, the server's account", owner.name()),
            error,
        )
        .hint(format!(
            "Install the program where {:?} can execute it, for example /usr/local/bin.",
            owner.name()
        ))
    };
    let mut child = Command::new(context.program()?)
        .arg("ask-server")
        .uid(owner.uid)
        .gid(owner.gid)
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| failed(&error))?;
    if let Some(stdin) = child.stdin.take() {
        // A child that ended early is told by its exit code below.
        let _ = serde_json::to_writer(stdin, errand);
    }
    let output = child.wait_with_output().map_err(|error| failed(&error))?;
    let unclear = || {
        Error::new(
            "account-change",
            format!("pgproof, run as {:?}, gave no answer", owner.name()),
        )
        .detail(format!(
            "It ended with {}. {}",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        ))
    };
    let answer: Answer = serde_json::from_slice(&output.stdout).map_err(|_| unclear())?;
    answer.into_result()
}

/// What the child prints.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Answer {
    Facts(Box<ServerFacts>),
    Failure {
        message: String,
        text: String,
        hint: Option<String>,
    },
}

impl Answer {
    fn into_result(self) -> Result<ServerFacts> {
        match self {
            Answer::Facts(facts) => Ok(*facts),
            Answer::Failure { message, text, hint } => {
                let error = Error::new("server-look", message).detail(text.trim_end().to_owned());
                Err(match hint {
                    Some(hint) => error.hint(hint),
                    None => error,
                })
            }
        }
    }
}

/// The child's side (`pgproof ask-server`, hidden): the errand on standard input, the answer on standard output.
pub fn serve_errand() -> Result<u8> {
    let errand: Errand = serde_json::from_reader(std::io::stdin().lock())
        .map_err(|error| Error::usage("errand", "standard input holds no errand").caused_by(&error))?;
    let answer = match ask_directly(&errand) {
        Ok(facts) => Answer::Facts(Box::new(facts)),
        Err(error) => Answer::Failure {
            message: error.message().to_owned(),
            text: error.render(),
            hint: error.hint_text().map(str::to_owned),
        },
    };
    let value = serde_json::to_value(&answer)
        .map_err(|error| Error::new("internal-error", "cannot write the answer").caused_by(&error))?;
    crate::output::json(&value);
    Ok(crate::exit::DONE)
}

/// Runs this program as `owner` (or as ourselves) with the given arguments, quietly; whether it ended with 0, and
/// what it wrote to standard error.
pub fn run_as(
    context: &Context,
    owner: Option<Account>,
    arguments: &[&std::ffi::OsStr],
) -> Result<(bool, String)> {
    let mut command = Command::new(context.program()?);
    command.args(arguments).current_dir("/").stdin(Stdio::null());
    if let Some(owner) = owner.filter(|owner| Account::current().is_root() && !owner.is_root()) {
        command.uid(owner.uid).gid(owner.gid);
    }
    match command.output() {
        Ok(output) => Ok((
            output.status.success(),
            String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        )),
        Err(error) => Ok((false, error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_keys_file_becomes_standard_input_however_it_was_written() {
        let words = |text: &str| text.split(' ').map(OsString::from).collect::<Vec<_>>();
        for (typed, given) in [
            (
                "drill sign x --key /k --role operator",
                "drill sign x --key - --role operator",
            ),
            ("drill sign x --key=/k", "drill sign x --key=-"),
            ("drill sign --keyring /k", "drill sign --keyring /k"),
        ] {
            assert_eq!(with_value(words(typed).into_iter(), "--key", "-"), words(given));
        }
    }
}
