//! `pgproof key signing-new`: a key with which a person signs drills.
//!
//! Invariants: the private key is written once, to a file that only its owner can read, and is never printed; the
//! configuration is replaced in one step by a text that was read back first, or not at all.

use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use diagnostic::{Error, Result};
use drill::signing::{PublicKey, SigningKey};
use serde_json::json;

use crate::cli;
use crate::config::Configuration;
use crate::context::Context;
use crate::{exit, output};

pub fn new(context: &Context, arguments: &cli::SigningNew) -> Result<u8> {
    let name = arguments.name.trim();
    check_name(name)?;
    let configuration = context.configuration()?;
    if configuration.signers.contains_key(name) {
        return Err(Error::usage(
            "signer-exists",
            format!("{name:?} has a key in {} already", configuration.path.display()),
        )
        .hint(
            "A new key gets a new name (\"ada 2027\"): signatures made with the old one keep their meaning.",
        ));
    }
    let file = arguments.file.clone().unwrap_or_else(|| default_file(name));
    let file = std::path::absolute(&file)
        .map_err(|error| Error::io("path", "cannot make the key's path absolute", &error))?;
    let key = SigningKey::generate()?;
    write_private(&file, key.to_key_file_text(name).as_bytes())?;
    let public = key.public();
    let line = format!("{} = \"{public}\"", toml_key(name));
    let added = add_signer(&configuration, name, &line, public);
    if context.json {
        output::json(&json!({
            "name": name, "file": file, "public_key": public, "configuration": configuration.path,
            "added": added.is_ok(),
        }));
    } else {
        output::line(format!("Signing key of {name}: {}", file.display()));
        output::line(format!("Public key: {public}"));
        if added.is_ok() {
            output::line(format!("Added to [signers] in {}", configuration.path.display()));
        }
    }
    if let Err(error) = added {
        output::notice("warning: the configuration was not changed");
        exit::print_error(&error);
        output::notice(format!(
            "Let somebody who may write {} add this line below [signers]:\n{line}",
            configuration.path.display()
        ));
    }
    output::notice("Keep the key where only this person reads it: whoever has it signs in that name.");
    Ok(exit::DONE)
}

/// Error: `signer-name`.
fn check_name(name: &str) -> Result<()> {
    if !name.is_empty() && name.chars().count() <= 100 && !name.chars().any(char::is_control) {
        return Ok(());
    }
    Err(Error::usage("signer-name", "this cannot be a signer's name")
        .detail("A name is 1 to 100 characters on one line."))
}

/// `ada-lovelace.signing-key`.
fn default_file(name: &str) -> PathBuf {
    let words: Vec<String> = name
        .split(|c: char| !c.is_ascii_alphanumeric())
        .filter(|word| !word.is_empty())
        .map(str::to_ascii_lowercase)
        .collect();
    let stem = if words.is_empty() {
        "signer".to_owned()
    } else {
        words.join("-")
    };
    PathBuf::from(format!("{stem}.signing-key"))
}

/// A new file of mode 0600, durable. Errors: `signing-key-exists`, `signing-key-write`.
fn write_private(path: &Path, content: &[u8]) -> Result<()> {
    let message = format!("cannot write the signing key {:?}", path.display().to_string());
    let mut options = std::fs::OpenOptions::new();
    let written = options
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut file| {
            file.set_permissions(std::fs::Permissions::from_mode(0o600))?;
            file.write_all(content)?;
            file.sync_all()
        });
    written.map_err(|error| match error.kind() {
        std::io::ErrorKind::AlreadyExists => Error::io("signing-key-exists", message, &error)
            .hint("Nothing was overwritten. Choose another place with --file."),
        _ => Error::io("signing-key-write", message, &error),
    })
}

fn toml_key(name: &str) -> String {
    let bare = name
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'));
    if bare {
        name.to_owned()
    } else {
        toml::Value::String(name.to_owned()).to_string()
    }
}

/// The text with the line below `[signers]`, which is made if it is not there.
fn with_signer(text: &str, line: &str) -> String {
    let mut out = String::with_capacity(text.len() + line.len() + 16);
    let mut added = false;
    for existing in text.split_inclusive('\n') {
        out.push_str(existing);
        let header = existing.trim();
        let header = header.split('#').next().unwrap_or(header).trim();
        if !added && header == "[signers]" {
            if !existing.ends_with('\n') {
                out.push('\n');
            }
            out.push_str(line);
            out.push('\n');
            added = true;
        }
    }
    if !added {
        if !out.is_empty() && !out.ends_with('\n') {
            out.push('\n');
        }
        out.push_str(&format!("\n[signers]\n{line}\n"));
    }
    out
}

/// Puts the signer into the file, keeping its owner and mode. Errors: `config-write`, and those of reading it.
fn add_signer(configuration: &Configuration, name: &str, line: &str, public: PublicKey) -> Result<()> {
    let path = &configuration.path;
    let failed = |error: &std::io::Error| {
        Error::io(
            "config-write",
            format!("cannot change {:?}", path.display().to_string()),
            error,
        )
    };
    // A file behind a link is changed where it lies.
    let path = &std::fs::canonicalize(path).map_err(|error| failed(&error))?;
    let text = std::fs::read_to_string(path).map_err(|error| failed(&error))?;
    let changed = with_signer(&text, line);
    let read = Configuration::parse(&configuration.path, &changed)?;
    if read.signers.get(name) != Some(&public) {
        return Err(Error::new(
            "config-write",
            format!("cannot add a signer to {:?}", path.display().to_string()),
        )
        .detail("Its [signers] section is not written as a section of its own."));
    }
    let before = std::fs::metadata(path).map_err(|error| failed(&error))?;
    let aside = path.with_extension("toml.new");
    let write = || {
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(before.mode() & 0o777)
            .open(&aside)?;
        file.set_permissions(std::fs::Permissions::from_mode(before.mode() & 0o777))?;
        let now = file.metadata()?;
        if (now.uid(), now.gid()) != (before.uid(), before.gid()) {
            std::os::unix::fs::fchown(&file, Some(before.uid()), Some(before.gid()))?;
        }
        file.write_all(changed.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&aside, path)
    };
    write().map_err(|error| {
        if error.kind() != std::io::ErrorKind::AlreadyExists {
            let _ = std::fs::remove_file(&aside);
        }
        failed(&error)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signer_is_added_below_the_section_or_with_it() {
        let line = "ada = \"x\"";
        assert_eq!(with_signer("", line), "\n[signers]\nada = \"x\"\n");
        assert_eq!(with_signer("a = 1", line), "a = 1\n\n[signers]\nada = \"x\"\n");
        assert_eq!(
            with_signer("[signers] # people\nbob = \"y\"\n[drill.q]\n", line),
            "[signers] # people\nada = \"x\"\nbob = \"y\"\n[drill.q]\n"
        );
    }

    #[test]
    fn names_of_people_become_keys_and_files() {
        assert_eq!(toml_key("ada-1"), "ada-1");
        assert_eq!(toml_key("Ada \"L\""), "'Ada \"L\"'");
        assert_eq!(
            default_file("Ada Lovelace"),
            Path::new("ada-lovelace.signing-key")
        );
        assert_eq!(default_file("\u{416}"), Path::new("signer.signing-key"));
        for bad in ["", "a\nb", &"x".repeat(101)] {
            assert_eq!(check_name(bad).unwrap_err().code(), "signer-name");
        }
    }
}
