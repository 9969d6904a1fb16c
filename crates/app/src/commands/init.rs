//! `pgproof init`: looks at a server, then writes the configuration, the key and the repository, and says (or does) what
//! PostgreSQL must be told.
//!
//! Invariants: nothing that exists is overwritten, so it can be run again after any interruption; the order is key,
//! repository, configuration, settings, so that each step finds what it needs; as root for another account's server
//! everything that is made belongs to that account.

mod remote;

use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use cluster::ServerFacts;
use diagnostic::{Error, Result};
use repository::{RecipientKey, Repository};
use serde_json::json;

use crate::account::{self, Account, Errand};
use crate::cli;
use crate::config::{self, Configuration, CopyOfRepository, KeySource};
use crate::context::Context;
use crate::settings::{self, Change};
use crate::{exit, output, programs};

/// Everything that will be made, decided before anything is touched.
struct Plan {
    facts: ServerFacts,
    owner: Account,
    config_file: PathBuf,
    config_text: String,
    config_exists: bool,
    key: KeySource,
    /// A passphrase is not made by us, so it always exists.
    key_exists: bool,
    repository_url: String,
    /// As the configuration has it, or will have it.
    copy: CopyOfRepository,
    repository_exists: bool,
    changes: Vec<Change>,
    warnings: Vec<String>,
    /// The data directory is not at hand: backups come over the replication protocol.
    protocol: bool,
}

pub fn run(context: &Context, arguments: &cli::Init) -> Result<u8> {
    let plan = plan(context, arguments)?;
    if arguments.dry_run {
        return show(context, arguments, &plan, None, true);
    }
    if !plan.key_exists {
        write_key(&plan)?;
    }
    let repository = make_repository(context, &plan)?;
    if !plan.config_exists {
        write_config(&plan)?;
    }
    let after = if arguments.apply {
        Some(apply(context, arguments, &plan)?)
    } else {
        None
    };
    show(context, arguments, &plan, after.as_ref(), repository)
}

fn plan(context: &Context, arguments: &cli::Init) -> Result<Plan> {
    let copy_name = arguments.copy_name();
    for (name, option) in [(arguments.cluster.as_str(), "--cluster"), (copy_name, "--copy")] {
        config::check_name(name).map_err(|why| {
            Error::usage(
                "name-syntax",
                format!("the name {name:?} given with {option} {why}"),
            )
        })?;
    }
    let absolute = |path: &Path| {
        std::path::absolute(path).map_err(|error| {
            Error::io(
                "path",
                format!("cannot make {:?} absolute", path.display().to_string()),
                &error,
            )
        })
    };
    let url = repository_url(&arguments.repository)?;
    let asked_directory = arguments.data_directory.as_deref().map(absolute).transpose()?;
    let guess = account::owner_of_server(&arguments.connection, asked_directory.as_deref());
    let errand = Errand {
        connection: arguments.connection.clone(),
        statements: Vec::new(),
    };
    let facts = account::ask_server(context, &errand, guess)?;
    let at_hand = match asked_directory {
        Some(directory) => Some(directory),
        None if arguments.protocol || remote::is_elsewhere(&arguments.connection, &facts) => None,
        None => Some(facts.data_directory.clone()),
    };
    if let Some(directory) = &at_hand {
        check_directory(directory, &facts)?;
    }
    let protocol = at_hand.is_none();
    let data_directory = at_hand.unwrap_or_else(|| facts.data_directory.clone());
    let owner = match protocol {
        true => guess.unwrap_or_else(Account::current),
        false => Account::of(&data_directory)
            .or(guess)
            .unwrap_or_else(Account::current),
    };

    let config_file = absolute(
        context
            .config_file
            .as_deref()
            .unwrap_or(Path::new(config::DEFAULT_FILES[0])),
    )?;
    let folder = config_file.parent().unwrap_or(Path::new("/"));
    let mut key = match (&arguments.passphrase_command, &arguments.key_file) {
        (Some(command), _) => KeySource::PassphraseCommand(command.clone()),
        (None, Some(path)) => KeySource::File(absolute(path)?),
        (None, None) => KeySource::File(folder.join(format!("{copy_name}.key"))),
    };
    let config_exists = exists(&config_file)?;
    let programs = programs::unusual_folder(&data_directory, facts.major);
    let of_data_directory = (!protocol).then_some(&*data_directory);
    let mut config_text = config_text(arguments, &url, of_data_directory, programs.as_deref(), &key)?;
    let copy = if config_exists {
        let copy = existing_copy(&config_file, arguments, &url)?;
        key = copy.key.clone();
        copy
    } else {
        let parsed = Configuration::parse(&config_file, &config_text)?;
        let copy = parsed.copies.get(copy_name).cloned();
        copy.ok_or_else(|| Error::new("internal-error", "the configuration lost its copy"))?
    };
    let key_exists = match &key {
        KeySource::File(path) => exists(path)?,
        KeySource::PassphraseCommand(_) => true,
    };
    let repository_exists = repository_is_there(&copy)?;
    if repository_exists && !key_exists {
        return Err(
            Error::new("repository-exists", format!("{url} already holds a repository"))
                .detail(format!(
                    "Its key is not in {}; a new key could not open it.",
                    shown_key(&key)
                ))
                .hint("Name its key with `--key-file FILE`, or choose another folder with `--repository`."),
        );
    }
    let program = context.program()?;
    let wanted = settings::archive_command(&program, &config_file, &arguments.cluster)?;
    let (changes, warnings) = match protocol {
        // archive_command runs on the server's host, where this configuration is not.
        true => (
            settings::changes_elsewhere(&facts),
            remote::warnings(&arguments.connection, &facts),
        ),
        false => (
            settings::changes(&facts, &wanted, arguments.replace_archive_command)?,
            warnings(&facts, &data_directory, owner),
        ),
    };
    if config_exists {
        config_text.clear();
    }
    Ok(Plan {
        facts,
        owner,
        config_file,
        config_text,
        config_exists,
        key,
        key_exists,
        repository_url: url,
        copy,
        repository_exists,
        changes,
        warnings,
        protocol,
    })
}

/// A folder may be written as a path; it becomes an absolute URL.
fn repository_url(given: &str) -> Result<String> {
    let path = match given.split_once("://") {
        None => Path::new(given),
        Some(("file", path)) => Path::new(path),
        Some(_) => return Ok(given.trim_end_matches('/').to_owned()),
    };
    let absolute = std::path::absolute(path)
        .map_err(|error| Error::io("path", format!("cannot make {given:?} absolute"), &error))?;
    match absolute.to_str() {
        Some(text) => Ok(format!("file://{text}")),
        None => Err(Error::usage(
            "path-not-text",
            format!("the path {given:?} is not UTF-8"),
        )),
    }
}

fn exists(path: &Path) -> Result<bool> {
    path.try_exists().map_err(|error| {
        Error::io(
            "path",
            format!("cannot look at {:?}", path.display().to_string()),
            &error,
        )
    })
}

/// Before anything is made: a bucket that cannot be used is told of here.
fn repository_is_there(copy: &CopyOfRepository) -> Result<bool> {
    match copy.url.strip_prefix("file://") {
        Some(folder) => exists(&Path::new(folder).join("repository.json")),
        None => Repository::exists(&*crate::stores::open(copy)?),
    }
}

/// The data directory must be this server's, if it can be seen at all.
fn check_directory(directory: &Path, facts: &ServerFacts) -> Result<()> {
    let control = match cluster::read_control_file(directory) {
        Ok((_, control)) => control,
        Err(error) => {
            return Err(error
                .context(format!("cannot read the data directory {:?}", directory.display().to_string()))
                .hint("Run pgproof on the server's own host, as the account that owns the data directory or as root; \
                       another place is named with `--data-directory DIR`."));
        }
    };
    if control.system_identifier != facts.system_identifier {
        return Err(Error::usage(
            "data-directory-foreign",
            "the data directory belongs to another server",
        )
        .detail(format!(
            "{} has the system identifier {}, the server at the connection has {}.",
            directory.display(),
            control.system_identifier,
            facts.system_identifier
        ))
        .hint(format!(
            "The server says that its directory is {}.",
            facts.data_directory.display()
        )));
    }
    Ok(())
}

/// The key's place, as it may be shown.
fn shown_key(key: &KeySource) -> String {
    match key {
        KeySource::File(path) => path.display().to_string(),
        KeySource::PassphraseCommand(command) => format!("the output of {command:?}"),
    }
}

/// A configuration that exists must say the same as this command; then its copy is the one.
fn existing_copy(config_file: &Path, arguments: &cli::Init, url: &str) -> Result<CopyOfRepository> {
    let refused = |what: String| {
        Error::new(
            "config-exists",
            format!("{} exists and is not overwritten", config_file.display()),
        )
        .detail(what)
        .hint("Edit it by hand, or name another file with `--config FILE`.")
    };
    let configuration = Configuration::load(Some(config_file))?;
    let Some(cluster) = configuration.clusters.get(&arguments.cluster) else {
        return Err(refused(format!(
            "It does not configure a cluster named {:?}.",
            arguments.cluster
        )));
    };
    if cluster.connection != arguments.connection {
        return Err(refused(format!(
            "Its cluster {:?} has another connection.",
            arguments.cluster
        )));
    }
    let copy = cluster
        .copies
        .iter()
        .filter_map(|name| configuration.copies.get(name))
        .find(|copy| copy.url.trim_end_matches('/') == url);
    match copy {
        Some(copy) => Ok(copy.clone()),
        None => Err(refused(format!(
            "Its cluster {:?} has no copy at {url}.",
            arguments.cluster
        ))),
    }
}

fn warnings(facts: &ServerFacts, data_directory: &Path, owner: Account) -> Vec<String> {
    let mut warnings = Vec::new();
    if !facts.data_checksums {
        warnings.push(
            "Data checksums are off: damage of a page on the server's disk cannot be seen. They can be switched on while \
             the server is stopped: pg_checksums --enable."
                .to_owned(),
        );
    }
    if facts.in_recovery {
        warnings.push(
            "This server is a standby: it archives only with archive_mode = always; its primary should archive.".to_owned(),
        );
    }
    let current = Account::current();
    if !current.is_root() && current.uid != owner.uid {
        warnings.push(format!(
            "The data directory {} belongs to {:?}, and this is {:?}: the archiver must be able to read the \
             configuration and the key and to write the repository.",
            data_directory.display(),
            owner.name(),
            current.name()
        ));
    }
    warnings
}

fn config_text(
    arguments: &cli::Init,
    url: &str,
    data_directory: Option<&Path>,
    programs: Option<&Path>,
    key: &KeySource,
) -> Result<String> {
    let quoted = |text: &str| toml::Value::String(text.to_owned()).to_string();
    let path = |path: &Path| quoted(&path.display().to_string());
    let bucket = bucket_text(arguments, url)?;
    Ok(format!(
        "# pgproof: what is backed up, and where to. `pgproof config show` prints every value with where it came from.\n\
         \n\
         [cluster.{cluster}]\n\
         connection = {connection}\n\
         {data_directory}\
         {programs}\
         copies = [{copy}]\n\
         acknowledge = 1                  # in how many copies a WAL segment must be safe before PostgreSQL may drop it\n\
         \n\
         [copy.{copy_name}]\n\
         url = {url}\n\
         key = {{ {key} }}   # keep a copy of it elsewhere (`pgproof key export`)\n\
         {bucket}\
         \n\
         [retention]                      # what `pgproof expire` keeps; rules add up\n\
         recovery_window = \"30 days\"\n\
         daily = 7\n\
         weekly = 4\n\
         monthly = 12\n\
         \n\
         [drill.quarterly]                # pgproof drill run quarterly\n\
         rto = \"90 min\"\n\
         rpo = \"5 min\"\n\
         target = \"bracket\"\n",
        cluster = arguments.cluster,
        connection = quoted(&arguments.connection),
        data_directory = match data_directory {
            Some(directory) => format!("data_directory = {}\n", path(directory)),
            None => "# no data_directory: backups come over the replication protocol\n".to_owned(),
        },
        // For drills, which start a server of their own.
        programs = programs.map_or(String::new(), |folder| format!("programs = {}\n", path(folder))),
        copy = quoted(arguments.copy_name()),
        copy_name = arguments.copy_name(),
        url = quoted(url),
        key = match key {
            KeySource::File(file) => format!("file = {}", path(file)),
            KeySource::PassphraseCommand(command) => format!("passphrase_command = {}", quoted(command)),
        },
    ))
}

/// The lines of a copy that is a bucket. The archiver does not have this shell's environment, so what is there now is
/// written down, but for secrets.
fn bucket_text(arguments: &cli::Init, url: &str) -> Result<String> {
    let given = &arguments.bucket;
    if !url.starts_with("s3://") {
        if given.is_empty() {
            return Ok(String::new());
        }
        return Err(Error::usage(
            "option-conflict",
            "--endpoint, --region, --path-style, --allow-http, --ca-file and --credentials-... are for buckets only",
        )
        .hint("A bucket is written --repository s3://BUCKET/PREFIX."));
    }
    let quoted = |text: &str| toml::Value::String(text.to_owned()).to_string();
    let mut text = String::new();
    let mut line = |key: &str, value: String| text.push_str(&format!("{key} = {value}\n"));
    if let Some(endpoint) = &given.endpoint {
        line("endpoint", quoted(endpoint));
    }
    if let Some(region) = given.region.clone().or_else(crate::stores::ambient_region) {
        line("region", quoted(&region));
    }
    if let Some(path_style) = given.path_style {
        line("path_style", path_style.to_string());
    }
    if given.allow_http {
        line("allow_http", "true".to_owned());
    }
    let absolute = |file: &Path| {
        let absolute = std::path::absolute(file).map_err(|error| {
            let message = format!("cannot make {:?} absolute", file.display().to_string());
            Error::io("path", message, &error)
        })?;
        Ok::<_, Error>(quoted(&absolute.display().to_string()))
    };
    if let Some(file) = &given.ca_file {
        line("ca_file", absolute(file)?);
    }
    if let Some(file) = &given.credentials_file {
        let mut value = format!("file = {}", absolute(file)?);
        if let Some(profile) = &given.credentials_profile {
            value.push_str(&format!(", profile = {}", quoted(profile)));
        }
        line("credentials", format!("{{ {value} }}"));
    }
    if let Some(command) = &given.credentials_command {
        line("credentials", format!("{{ command = {} }}", quoted(command)));
    }
    Ok(text)
}

/// Creates the folders that `file` needs.
fn make_parents(file: &Path, owner: Account) -> Result<()> {
    file.parent()
        .map_or(Ok(()), |folder| account::make_folder(folder, owner))
}

fn write_new(path: &Path, content: &[u8], mode: u32, owner: Account) -> Result<()> {
    make_parents(path, owner)?;
    let failed = |error: std::io::Error| {
        Error::io(
            "file-write",
            format!("cannot write {:?}", path.display().to_string()),
            &error,
        )
    };
    // Written aside and linked, so that a crash leaves no half of it under its name.
    let mut aside = path.as_os_str().to_owned();
    aside.push(format!(".new-{}", std::process::id()));
    let aside = PathBuf::from(aside);
    let written = (|| {
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&aside)?;
        file.write_all(content)?;
        file.set_permissions(std::fs::Permissions::from_mode(mode))?;
        file.sync_all()?;
        std::fs::hard_link(&aside, path)?;
        match path.parent() {
            Some(folder) => std::fs::File::open(folder)?.sync_all(),
            None => Ok(()),
        }
    })();
    let _ = std::fs::remove_file(&aside);
    written.map_err(failed)?;
    account::give(path, owner)
}

fn write_key(plan: &Plan) -> Result<()> {
    let KeySource::File(path) = &plan.key else {
        return Ok(());
    };
    let text = RecipientKey::generate()?.to_key_file_text()?;
    write_new(path, text.as_bytes(), 0o600, plan.owner)
}

fn write_config(plan: &Plan) -> Result<()> {
    // Readable for all: it holds no secret (a connection string with a password makes it private).
    let private = config::without_password(&plan.config_text) != plan.config_text;
    write_new(
        &plan.config_file,
        plan.config_text.as_bytes(),
        if private { 0o600 } else { 0o644 },
        plan.owner,
    )
}

/// Creates the repository, or opens the one that is there; says whether creation is conditional in this store.
fn make_repository(context: &Context, plan: &Plan) -> Result<bool> {
    let key = crate::copies::key(&plan.key)?;
    let folder = plan.repository_url.strip_prefix("file://").map(Path::new);
    if plan.repository_exists {
        let repository = Repository::open(crate::stores::open(&plan.copy)?, &key)?;
        // The folder itself is given last: while it is root's, an earlier run was interrupted.
        if let Some(folder) = folder.filter(|folder| Account::of(folder).is_some_and(Account::is_root)) {
            give_tree(folder, plan.owner)?;
        }
        return Ok(repository.conditional_creation());
    }
    if let Some(folder) = folder {
        make_parents(folder, plan.owner)?;
    }
    let repository = Repository::create(crate::stores::create(&plan.copy)?, &key, context.now())?;
    if let Some(folder) = folder {
        give_tree(folder, plan.owner)?;
    }
    Ok(repository.conditional_creation())
}

/// Gives the new repository to its owner, without following links.
fn give_tree(folder: &Path, owner: Account) -> Result<()> {
    if !Account::current().is_root() || owner.is_root() {
        return Ok(());
    }
    let failed = |error: std::io::Error| {
        Error::io(
            "owner",
            format!("cannot read {:?}", folder.display().to_string()),
            &error,
        )
    };
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if entry.file_type().map_err(failed)?.is_dir() {
            give_tree(&entry.path(), owner)?;
        } else {
            account::give(&entry.path(), owner)?;
        }
    }
    account::give(folder, owner)
}

/// Changes the settings, and looks again. Nothing is changed that the server's account could not run.
fn apply(context: &Context, arguments: &cli::Init, plan: &Plan) -> Result<ServerFacts> {
    let config_file = plan.config_file.as_os_str();
    let words = ["--config".as_ref(), config_file, "key".as_ref(), "show".as_ref()];
    let (works, said) = match plan.protocol {
        true => (true, String::new()),
        false => account::run_as(context, Some(plan.owner), &words)?,
    };
    if !works {
        return Err(Error::new(
            "archive-command-unusable",
            format!("{:?}, the server's account, cannot run pgproof with this configuration", plan.owner.name()),
        )
        .detail(said)
        .hint(format!(
            "Nothing was changed on the server. Make {}, {} and {} accessible for that account, then run the same \
             command again.",
            context.program()?.display(),
            plan.config_file.display(),
            shown_key(&plan.key)
        )));
    }
    let mut statements: Vec<String> = plan.changes.iter().map(Change::sql).collect();
    if !statements.is_empty() {
        statements.push("SELECT pg_reload_conf()".to_owned());
        // The postmaster reads its files when it gets the signal, not when the function returns.
        statements.push("SELECT pg_sleep(0.5)".to_owned());
    }
    let errand = Errand {
        connection: arguments.connection.clone(),
        statements,
    };
    account::ask_server(context, &errand, Some(plan.owner))
        .map_err(|error| error.context("cannot change the server's settings"))
}

fn show(
    context: &Context,
    arguments: &cli::Init,
    plan: &Plan,
    after: Option<&ServerFacts>,
    conditional_creation: bool,
) -> Result<u8> {
    let restart = after.is_some_and(|facts| !facts.pending_restart.is_empty())
        || (after.is_none() && plan.changes.iter().any(|change| change.restart));
    let wanted = settings::archive_command(&context.program()?, &plan.config_file, &arguments.cluster)?;
    // archive_command is only shown by the server while archive_mode is on.
    let overridden = !plan.protocol
        && after.is_some_and(|facts| {
            facts.archive_mode != "off" && settings::archiving(facts, &wanted) != settings::Archiving::Ours
        });
    if context.json {
        output::json(&json!({
            "dry_run": arguments.dry_run,
            "cluster": arguments.cluster,
            "server": plan.facts,
            "configuration": { "file": plan.config_file, "existed": plan.config_exists },
            "key": { "source": shown_key(&plan.key), "existed": plan.key_exists },
            "repository": {
                "url": plan.repository_url,
                "existed": plan.repository_exists,
                "conditional_creation": conditional_creation,
            },
            "owner": plan.owner.name(),
            "method": if plan.protocol { "protocol" } else { "files" },
            "changes": plan.changes,
            "applied": after.is_some() && !overridden,
            "restart_due": restart,
            "warnings": plan.warnings,
        }));
        return Ok(exit::DONE);
    }
    let facts = &plan.facts;
    let line = |text: String| output::line(text);
    line(format!(
        "Server: PostgreSQL {}, system identifier {}, {}, data checksums {}, wal_level {}, archive_mode {}",
        facts.version,
        facts.system_identifier,
        output::bytes(facts.size_bytes),
        if facts.data_checksums { "on" } else { "off" },
        facts.wal_level,
        facts.archive_mode,
    ));
    if plan.protocol {
        line("Data directory: not on this host; backups come over the replication protocol".to_owned());
    } else {
        line(format!(
            "Data directory: {} (owner {})",
            facts.data_directory.display(),
            plan.owner.name()
        ));
    }
    let state = |existed: bool| match (existed, arguments.dry_run) {
        (true, _) => "exists, left as it is",
        (false, true) => "would be written",
        (false, false) => "written",
    };
    line(format!(
        "Configuration: {} ({})",
        plan.config_file.display(),
        state(plan.config_exists)
    ));
    line(format!(
        "Key: {} ({})",
        shown_key(&plan.key),
        state(plan.key_exists)
    ));
    line(format!(
        "Repository: {} ({})",
        plan.repository_url,
        state(plan.repository_exists)
    ));
    if !arguments.dry_run && !conditional_creation {
        line(
            "Warning: this store does not create conditionally: when two hosts write one name at once, that is \
             detected afterwards, not prevented."
                .to_owned(),
        );
    }
    for warning in &plan.warnings {
        line(format!("Warning: {warning}"));
    }
    line(String::new());
    if plan.protocol {
        for text in remote::needs(&arguments.connection, facts, &arguments.cluster) {
            line(text);
        }
        line(String::new());
    }
    if plan.changes.is_empty() {
        line("PostgreSQL's settings are already right.".to_owned());
    } else {
        let heading = match (arguments.dry_run, after.is_some()) {
            (true, _) => "Would change in PostgreSQL (with --apply):",
            (false, true) => "Changed in PostgreSQL:",
            (false, false) => "Change in PostgreSQL (or run this command again with --apply):",
        };
        line(heading.to_owned());
        for change in &plan.changes {
            line(format!("  {};", change.sql()));
        }
        line("  SELECT pg_reload_conf();".to_owned());
    }
    if overridden {
        line(
            "Warning: the server still has another archive_command: its command line or a file sets it too."
                .to_owned(),
        );
    }
    if restart {
        line("A restart of the server is due: until then nothing is archived.".to_owned());
    }
    if arguments.dry_run {
        return Ok(exit::DONE);
    }
    line(String::new());
    let config = output::shell_quoted(&plan.config_file.display().to_string());
    if let KeySource::PassphraseCommand(_) = plan.key {
        line("Without the passphrase nothing can be restored. Keep it elsewhere too.".to_owned());
    } else {
        line(
            "Without the key nothing can be restored. Keep a copy of it elsewhere; this prints it:"
                .to_owned(),
        );
        line(format!(
            "  pgproof --config {config} key export {}",
            arguments.copy_name()
        ));
    }
    line("Next:".to_owned());
    line(format!("  pgproof --config {config} check"));
    line(format!("  pgproof --config {config} backup"));
    Ok(exit::DONE)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[test]
    fn it_writes_one_short_file_that_says_all_that_has_to_be_said() {
        let words = "pgproof init --connection host=/run/postgresql --repository file:///var/lib/pgproof";
        let line = cli::CommandLine::try_parse_from(words.split(' ')).expect("a command line");
        let cli::Command::Init(arguments) = line.command else {
            panic!("not init");
        };
        let key = KeySource::File("/etc/pgproof/local.key".into());
        let directory = Path::new("/var/lib/postgresql/15/main");
        let text = config_text(&arguments, &arguments.repository, Some(directory), None, &key).expect("text");
        assert!(text.lines().count() <= 25, "{text}");

        let configuration = Configuration::parse(Path::new("/etc/pgproof/pgproof.toml"), &text)
            .unwrap_or_else(|error| panic!("{}\n{text}", error.render()));
        let cluster = configuration.cluster(None).expect("the only cluster");
        assert_eq!(cluster.name, "main");
        assert_eq!(cluster.acknowledge, 1);
        assert_eq!(configuration.copies["local"].key, key);
        assert!(configuration.retention.recovery_window.is_some(), "{text}");
        let drill = &configuration.drills["quarterly"];
        assert_eq!(drill.profile.target_text, "bracket");
        assert!(
            drill.profile.objective("rto").is_some() && drill.profile.objective("rpo").is_some(),
            "{text}"
        );
        // What is left out has a default: without the lines of retention and drills it is a configuration, too.
        let (shorter, _) = text.split_once("[retention]").expect("a section");
        let shorter = shorter.replace("acknowledge = 1 ", "# ");
        assert!(
            Configuration::parse(Path::new("/etc/pgproof/pgproof.toml"), &shorter).is_ok(),
            "{shorter}"
        );
    }
}
