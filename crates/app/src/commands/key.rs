//! `pgproof key export`, `key show`: the key itself for safe keeping elsewhere, and which key opens what.

use std::io::{IsTerminal, Write};

use diagnostic::{Error, Result};
use serde_json::json;

use crate::account;
use crate::cli;
use crate::config::{Configuration, CopyOfRepository, KeySource};
use crate::context::Context;
use crate::copies;
use crate::{exit, output};

fn copy_of<'a>(configuration: &'a Configuration, name: Option<&str>) -> Result<&'a CopyOfRepository> {
    let names = || {
        configuration
            .copies
            .keys()
            .map(String::as_str)
            .collect::<Vec<_>>()
            .join(", ")
    };
    match name {
        Some(name) => configuration.copies.get(name).ok_or_else(|| {
            Error::usage(
                "copy-unknown",
                format!("copy {name:?} is not in {}", configuration.path.display()),
            )
            .hint(format!("It has: {}.", names()))
        }),
        None => {
            let mut all = configuration.copies.values();
            match (all.next(), all.next()) {
                (Some(only), None) => Ok(only),
                (None, _) => Err(Error::usage("copy-unknown", "no copy is configured")),
                _ => Err(Error::usage(
                    "copy-ambiguous",
                    "several copies are configured, and none was named",
                )
                .hint(format!("Name one of: {}.", names()))),
            }
        }
    }
}

/// The text of the key file on standard output, and what to do with it on standard error.
pub fn export(context: &Context, arguments: &cli::KeyOf) -> Result<u8> {
    let configuration = context.configuration()?;
    let copy = copy_of(&configuration, arguments.copy.as_deref())?;
    let KeySource::File(path) = &copy.key else {
        return Err(Error::usage(
            "key-is-passphrase",
            format!("copy {:?} is opened by a passphrase", copy.name),
        )
        .hint("Keep the passphrase itself elsewhere; there is no key file to export."));
    };
    let text = copies::key(&copy.key)?.to_key_file_text()?;
    if context.json {
        output::json(&json!({ "copy": copy.name, "url": copy.url, "file": path, "key": text.as_str() }));
        return Ok(exit::DONE);
    }
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    if std::io::stdout().is_terminal() {
        output::notice(format!(
            "This is the key of {}. Keep it where neither the database host nor the repository can be lost with it.\n\
             To use it again, write it to a file of mode 0600 and name that file in [copy.{}].",
            copy.url, copy.name
        ));
    }
    Ok(exit::DONE)
}

/// Which key opens which repository; opens it for proof.
pub fn show(context: &Context, arguments: &cli::KeyOf) -> Result<u8> {
    let configuration = context.configuration()?;
    if let Some(cluster) = configuration.clusters.values().next() {
        account::become_owner(&configuration, cluster)?;
    }
    let copy = copy_of(&configuration, arguments.copy.as_deref())?;
    let repository = copies::open(copy)?;
    let source = match &copy.key {
        KeySource::File(path) => path.display().to_string(),
        KeySource::PassphraseCommand(_) => "a passphrase command".to_owned(),
    };
    if context.json {
        output::json(&json!({
            "copy": copy.name, "url": copy.url, "repository": repository.id(), "key": source,
            "role": repository.role(),
        }));
    } else {
        output::line(format!(
            "Copy {}: repository {} at {}",
            copy.name,
            repository.id(),
            copy.url
        ));
        let may = match repository.role() {
            repository::Role::Reader => "read and write",
            repository::Role::Writer => "write, and read no row",
        };
        output::line(format!("Key: {source} opens it, to {may}"));
    }
    Ok(exit::DONE)
}
