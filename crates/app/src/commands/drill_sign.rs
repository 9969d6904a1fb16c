//! `pgproof drill sign`: a person's signature under a recorded drill.
//!
//! Invariants: nothing is signed that was not judged again and found whole; nobody signs in two roles; a signature is
//! added and never replaced; a run that was killed between the signature and its link is finished by the next.

use std::io::Read;
use std::path::Path;

use diagnostic::{Error, Result};
use drill::audit::{Audit, audit};
use drill::evidence::MANIFEST;
use drill::sign_off::{self, SignOff, Signature, Signers, Subject, is_signed, shown_status};
use drill::signing::SigningKey;
use repository::ClusterRepository;
use serde_json::json;

use super::{drill_audit, drill_stored as stored};
use crate::account;
use crate::cli;
use crate::config::Configuration;
use crate::context::Context;
use crate::copies::OpenCopy;
use crate::{exit, output};

/// A key with the name that the configuration knows it by.
pub struct Signer {
    pub name: String,
    pub key: SigningKey,
}

/// The text of a key file; `-` is standard input. Error: `signing-key-missing`.
pub fn read_key(path: &Path) -> Result<zeroize::Zeroizing<String>> {
    let mut text = zeroize::Zeroizing::new(String::new());
    let read = if path == Path::new("-") {
        std::io::stdin().lock().read_to_string(&mut text).map(|_| ())
    } else {
        std::fs::read_to_string(path).map(|content| *text = content)
    };
    read.map_err(|error| {
        Error::io(
            "signing-key-missing",
            format!("cannot read the signing key {:?}", path.display().to_string()),
            &error,
        )
        .hint("`pgproof key signing-new NAME` makes one; `--key -` reads it from standard input.")
    })?;
    Ok(text)
}

/// Whose key it is. Error: `signer-unknown`.
pub fn signer(text: &str, signers: &Signers) -> Result<Signer> {
    let key = SigningKey::from_key_file_text(text)?;
    let public = key.public();
    match signers.iter().find(|(_, known)| **known == public) {
        Some((name, _)) => Ok(Signer {
            name: name.clone(),
            key,
        }),
        None => Err(Error::usage(
            "signer-unknown",
            "the configuration does not know this signing key",
        )
        .detail(format!("Its public half is {public}."))
        .hint(format!(
            "Put it under [signers], with the person's name: `NAME = \"{public}\"`."
        ))),
    }
}

pub fn run(context: &Context, arguments: &cli::DrillSign) -> Result<u8> {
    let configuration = context.configuration()?;
    let text = read_key(&arguments.key)?;
    let signer = signer(&text, &configuration.signers)?;
    let cluster = configuration.cluster(arguments.cluster.as_deref())?;
    account::become_owner_with_key(&configuration, cluster, "--key", &text)?;
    let copies = stored::open_copies(&configuration, cluster, None)?;
    let (copy, id) = stored::find(&copies, &arguments.drill)?;
    let role = match arguments.role {
        cli::SignerRole::Operator => sign_off::SignerRole::Operator,
        cli::SignerRole::Reviewer => sign_off::SignerRole::Reviewer,
    };
    let comment = arguments.comment.clone();
    let signed = sign(
        context,
        &copy.cluster,
        &id,
        &signer,
        role,
        comment,
        &configuration.signers,
    )?;
    let seen = match signed {
        Signed::Disagrees(seen) => {
            if context.json {
                output::json(&drill_audit::value(&seen, &copy.name));
            } else {
                output::line("Nothing was signed: what was recorded does not agree.");
                drill_audit::print(&seen, &copy.name);
            }
            return Ok(exit::BAD);
        }
        Signed::Added(seen) | Signed::Already(seen) => seen,
    };
    stored::refresh(&stored::report_directory()?, copy, &id, &configuration);
    let status = seen.verdict.as_ref().map(|verdict| verdict.status);
    if context.json {
        output::json(&json!({
            "drill": id, "role": role, "signer": signer.name, "key": signer.key.public(),
            "verdict": status, "signed": is_signed(&seen.signatures), "signatures": seen.signatures,
        }));
    } else {
        output::line(format!("Drill {id}: signed by {} as {role}.", signer.name));
        if let Some(status) = status {
            output::line(format!("  {}", shown_status(status, &seen.signatures)));
        }
        if let Some(missing) = missing(&seen.signatures) {
            output::line(format!("  The {missing}'s signature is still missing."));
        }
    }
    Ok(exit::DONE)
}

/// How signing ended, with the evidence as it is now.
pub enum Signed {
    Added(Box<Audit>),
    /// This key had signed in this role before.
    Already(Box<Audit>),
    /// Nothing was signed.
    Disagrees(Box<Audit>),
}

/// Signs a drill in a repository. Error: `signer-same`.
pub fn sign(
    context: &Context,
    repository: &ClusterRepository,
    drill: &str,
    signer: &Signer,
    role: sign_off::SignerRole,
    comment: Option<String>,
    signers: &Signers,
) -> Result<Signed> {
    let file = sign_off::file_name(role, &signer.key.public());
    finish_interrupted(context, repository, drill, &file)?;
    let bundle = stored::read(repository, drill)?;
    let seen = audit(&bundle, signers)?;
    if !seen.agrees() {
        return Ok(Signed::Disagrees(Box::new(seen)));
    }
    if seen.signatures.iter().any(|it| it.file == file) {
        return Ok(Signed::Already(Box::new(seen)));
    }
    let public = signer.key.public();
    let same = |it: &&Signature| it.role != role && (it.key == public || it.signer == signer.name);
    if let Some(other) = seen.signatures.iter().find(same) {
        return Err(Error::new(
            "signer-same",
            format!("{} has signed this drill as {}", other.signer, other.role),
        )
        .detail("Operator and reviewer are two people with two keys.")
        .hint(format!("Let somebody else sign as {role}.")));
    }
    // An audit that agrees has all three.
    let (Some((link, sum)), Some(verdict), Some(Ok(facts))) =
        (&seen.link, &seen.verdict, bundle.files.get("facts.json"))
    else {
        return Ok(Signed::Disagrees(Box::new(seen)));
    };
    let sign_off = SignOff {
        drill: drill.to_owned(),
        role,
        signer: signer.name.clone(),
        verdict: verdict.status,
        link: sum.clone(),
        comment,
        signed_at: context.now(),
        tool_version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    let subject = Subject {
        manifest: link.manifest.clone(),
        facts: drill::evidence::sha256_hex(facts),
    };
    let bytes = sign_off::seal(&signer.key, sign_off, &subject)?;
    repository.add_evidence(drill, &link.manifest, &file, &bytes, context.now())?;
    let seen = audit(&stored::read(repository, drill)?, signers)?;
    Ok(Signed::Added(Box::new(seen)))
}

/// Signs a drill that has just ended. That it could not be signed changes nothing about the drill, and is said.
pub fn as_operator(
    context: &Context,
    copy: &OpenCopy,
    outcome: &drill::Outcome,
    signer: &Signer,
    configuration: &Configuration,
    reports: &Path,
) {
    let drill = &outcome.facts.identity.drill_id;
    let role = sign_off::SignerRole::Operator;
    let signers = &configuration.signers;
    match sign(context, &copy.cluster, drill, signer, role, None, signers) {
        Ok(Signed::Added(_) | Signed::Already(_)) => stored::refresh(reports, copy, drill, configuration),
        Ok(Signed::Disagrees(seen)) => {
            output::notice("warning: the drill was not signed: what was recorded does not agree");
            for finding in &seen.findings {
                output::notice(format!("  {}: {}", finding.file, finding.text));
            }
        }
        Err(error) => {
            output::notice("warning: the drill was not signed");
            exit::print_error(&error);
        }
    }
}

/// A signature that was kept and not linked, because its run was killed, is linked.
fn finish_interrupted(
    context: &Context,
    repository: &ClusterRepository,
    drill: &str,
    file: &str,
) -> Result<()> {
    let there = |name: &str| match repository.get_evidence(drill, name) {
        Err(error) if error.code() == "object-damaged" => Ok(None),
        other => other,
    };
    let (Some(bytes), Some(manifest)) = (there(file)?, there(MANIFEST)?) else {
        return Ok(());
    };
    let manifest = drill::evidence::sha256_hex(&manifest);
    if sign_off::open(&bytes).is_ok_and(|opened| opened.subject.manifest == manifest) {
        repository.add_evidence(drill, &manifest, file, &bytes, context.now())?;
    }
    Ok(())
}

/// Whose signature is missing.
pub fn missing(signatures: &[Signature]) -> Option<sign_off::SignerRole> {
    let roles = [sign_off::SignerRole::Operator, sign_off::SignerRole::Reviewer];
    roles
        .into_iter()
        .find(|role| !signatures.iter().any(|it| it.vouched && it.role == *role))
}
