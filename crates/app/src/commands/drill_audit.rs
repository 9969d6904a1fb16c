//! `pgproof drill audit`: whether what was recorded about a drill is whole, and whether its verdict follows from it.
//!
//! Invariant: exit code 0 only when everything was looked at and agrees; 3 when something does not.

use diagnostic::Result;
use drill::audit::{Audit, audit};
use drill::sign_off::{SignerRole, Signers, is_signed, shown_status};
use serde_json::json;

use super::drill_stored as stored;
use crate::cli;
use crate::context::Context;
use crate::{exit, output};

pub fn run(context: &Context, arguments: &cli::DrillAudit) -> Result<u8> {
    let (bundle, signers, place) = match &arguments.bundle {
        Some(folder) => (
            stored::read_folder(folder)?,
            signers_if_any(context)?,
            folder.display().to_string(),
        ),
        None => {
            let (configuration, copies) =
                stored::open(context, arguments.cluster.as_deref(), arguments.copy.as_deref())?;
            let (copy, id) = stored::find(&copies, &arguments.drill)?;
            (
                stored::read(&copy.cluster, &id)?,
                configuration.signers,
                copy.name.clone(),
            )
        }
    };
    let seen = audit(&bundle, &signers)?;
    if context.json {
        output::json(&value(&seen, &place));
    } else {
        print(&seen, &place);
    }
    Ok(if seen.agrees() { exit::DONE } else { exit::BAD })
}

/// A bundle can be audited where there is no configuration; then nobody vouches for the keys of its signatures.
fn signers_if_any(context: &Context) -> Result<Signers> {
    match context.configuration() {
        Ok(configuration) => Ok(configuration.signers),
        Err(error) if error.code() == "config-missing" && context.config_file.is_none() => Ok(Signers::new()),
        Err(error) => Err(error),
    }
}

pub fn value(seen: &Audit, place: &str) -> serde_json::Value {
    json!({
        "drill": seen.drill,
        "place": place,
        "agrees": seen.agrees(),
        "verdict": seen.verdict.as_ref().map(|verdict| verdict.status),
        "recorded": seen.recorded,
        "signed": is_signed(&seen.signatures),
        "signatures": seen.signatures,
        "files": seen.files_whole,
        "links": seen.links,
        "link": seen.link.as_ref().map(|(link, _)| link.number),
        "findings": seen.findings,
    })
}

pub fn print(seen: &Audit, place: &str) {
    let drill = seen.drill.as_deref().unwrap_or("unknown");
    let words = if seen.agrees() {
        "the evidence agrees"
    } else {
        "the evidence DISAGREES"
    };
    output::line(format!("Drill {drill} ({place}): {words}"));
    match (&seen.verdict, seen.recorded) {
        (Some(verdict), Some(recorded)) => output::line(format!(
            "  verdict     recorded {recorded}; judged again from the facts {}",
            shown_status(verdict.status, &seen.signatures)
        )),
        _ => output::line("  verdict     could not be judged again"),
    }
    output::line(format!(
        "  files       {} are as the manifest says",
        seen.files_whole
    ));
    match &seen.link {
        Some((link, _)) => output::line(format!(
            "  chain       link {} of {} names the manifest",
            link.number, seen.links
        )),
        None => output::line(format!(
            "  chain       none of {} links names the manifest",
            seen.links
        )),
    }
    for role in [SignerRole::Operator, SignerRole::Reviewer] {
        let mut found = false;
        for signature in seen.signatures.iter().filter(|signature| signature.role == role) {
            found = true;
            let vouched = match signature.vouched {
                true => "",
                false => "; the configuration does not vouch for this key under this name",
            };
            output::line(format!(
                "  {:<11} signed by {} at {} with {}{vouched}",
                role.as_str(),
                signature.signer,
                output::moment(signature.signed_at),
                signature.key
            ));
        }
        if !found {
            output::line(format!("  {:<11} has not signed", role.as_str()));
        }
    }
    for finding in &seen.findings {
        let byte = finding.byte.map_or_else(String::new, |at| format!(", byte {at}"));
        output::line(format!(
            "  disagrees[{}]: {}{byte}: {}",
            finding.code, finding.file, finding.text
        ));
    }
}
