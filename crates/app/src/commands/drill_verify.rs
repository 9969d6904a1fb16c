//! `pgproof drill verify`: the checks of a profile against a server that stands already.
//!
//! Invariants: the server, the repository and the environment are only looked at, so that no consent is asked for; the
//! exit code is the verdict's, as with `drill run`.

use std::path::Path;

use cluster::conninfo::Conninfo;
use diagnostic::{Error, Result};
use drill::server_verification::{ServerToVerify, ServerVerification, verify_server};
use postgres::SystemIdentifier;
use serde_json::{Value, json};

use super::drill::{Shown, abort_on_signals, print_checks, print_reasons};
use super::drill_setup;
use crate::account;
use crate::archive;
use crate::cli;
use crate::config::{Cluster, Configuration};
use crate::context::Context;
use crate::copies::Copies;
use crate::{drill_environment, exit, output, times};

pub fn run(context: &Context, arguments: &cli::DrillVerify) -> Result<u8> {
    let configuration = context.configuration()?;
    let name = drill_setup::profile_name(&configuration, arguments.profile.as_deref(), false)?;
    let profile = configuration.profile(&name)?;
    let own = configuration
        .drills
        .get(&name)
        .and_then(|own| own.cluster.as_deref());
    let cluster = configuration.cluster(arguments.cluster.as_deref().or(own))?;
    account::become_owner(&configuration, cluster)?;
    let connection = match (&arguments.connection, &arguments.data_directory) {
        (Some(connection), _) => Conninfo::parse(connection)?,
        (None, Some(directory)) => running_in(directory, cluster)?,
        (None, None) => {
            return Err(Error::usage("server-missing", "no server was named")
                .hint("Name one with `--connection CONNINFO` or `--data-directory DIR`."));
        }
    };
    let target = arguments
        .target
        .as_deref()
        .map(|text| times::parse(text, context.now()))
        .transpose()?;
    let expected = identifier_of_backups(&configuration, cluster);
    let application = drill_environment::application();
    let abort = abort_on_signals()?;
    let shown = Shown::new();
    let clock = || context.now();
    let verification = verify_server(&ServerToVerify {
        connection: &connection,
        profile: &profile,
        expected,
        target,
        api_base_url: Some(&application.api_base_url),
        web_base_url: application.web_base_url.as_deref(),
        clock: &clock,
        abort: &abort,
        watcher: &shown,
    })?;
    drop(shown);
    if context.json {
        output::json(&value(&connection, &verification));
    } else {
        print(&connection, &verification);
    }
    Ok(verification.verdict.status.exit_code())
}

/// The server that runs in this directory, by its own `postmaster.pid`. Error: `server-not-running`.
fn running_in(directory: &Path, cluster: &Cluster) -> Result<Conninfo> {
    let not_running = || {
        Error::new(
            "server-not-running",
            format!("no server accepts sessions in \"{}\"", directory.display()),
        )
        .hint("Start it, or name the server with `--connection CONNINFO`.")
    };
    let server = cluster::postmaster::live_server(directory)?.ok_or_else(not_running)?;
    let (Some(port), Some(folder)) = (server.port, &server.socket_directory) else {
        return Err(not_running());
    };
    let user = drill_setup::superuser(cluster).unwrap_or_else(|| "postgres".to_owned());
    Ok(Conninfo::default()
        .with("host", &folder.display().to_string())
        .with("port", &port.to_string())
        .with("user", &user)
        .with("dbname", "postgres"))
}

/// Whose server it should be. A repository that is out of reach keeps nobody from looking at the server.
fn identifier_of_backups(configuration: &Configuration, cluster: &Cluster) -> Option<SystemIdentifier> {
    let looked = Copies::open_any(configuration, cluster, None).and_then(|copies| archive::backups(&copies));
    match looked {
        Ok(backups) => archive::of_newest_backup(&backups).map(|system| system.identifier),
        Err(error) => {
            output::notice("warning: the backups cannot be looked at, so nothing says whose server this is");
            exit::print_error(&error);
            None
        }
    }
}

fn value(connection: &Conninfo, verification: &ServerVerification) -> Value {
    let mut value = serde_json::to_value(verification).unwrap_or_default();
    if let Some(object) = value.as_object_mut() {
        object.insert("connection".into(), json!(connection.redacted()));
        object.insert("verdict".into(), json!(verification.verdict.status));
        object.insert("reasons".into(), json!(verification.verdict.reasons));
    }
    value
}

fn print(connection: &Conninfo, verification: &ServerVerification) {
    let server = &verification.server;
    output::line(format!(
        "Server {}: PostgreSQL {}, {}, at {} of timeline {}",
        connection.redacted(),
        server.postgresql_version,
        output::bytes(server.size_bytes),
        server.lsn,
        server.timeline
    ));
    print_checks(&verification.checks);
    for not_made in &verification.not_made {
        output::line(format!("  {:14} {:24} {}", "-", not_made.id, not_made.why));
    }
    output::line(format!("Verification: {}", verification.verdict.status));
    print_reasons(&verification.verdict);
}
