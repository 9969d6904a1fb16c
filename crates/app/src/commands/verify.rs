//! `pgproof verify`: reads what is kept, and proves it whole. Exit code 3 when anything was found.

use diagnostic::Result;
use repository::VerifyOptions;
use serde_json::json;

use crate::account;
use crate::cli;
use crate::context::{Context, cores};
use crate::copies::Copies;
use crate::progress::Progress;
use crate::{exit, output};

pub fn run(context: &Context, arguments: &cli::Verify) -> Result<u8> {
    let configuration = context.configuration()?;
    let cluster = configuration.cluster(arguments.of.cluster.as_deref())?;
    account::become_owner(&configuration, cluster)?;
    let copies = Copies::open_all(&configuration, cluster, arguments.copy.as_deref())?;
    let options = VerifyOptions {
        decode: !arguments.no_decode,
        threads: arguments.threads.unwrap_or_else(cores),
    };
    let (mut objects, mut bytes) = (0_u64, 0_u64);
    let mut findings = Vec::new();
    for copy in &copies {
        let (began_at, backups) = (context.now(), copy.cluster.backup_ids()?);
        let shown = Progress::new("verify");
        let stage = format!("copy {}", copy.name);
        let result = repository::verify_watched(&copy.cluster, options, &|seen| {
            shown.update(&stage, seen.bytes_done, seen.bytes_total);
        })?;
        drop(shown);
        objects += result.objects;
        bytes += result.bytes;
        let stated = copy.cluster.state_verification(repository::Verification {
            version: 1,
            began_at,
            finished_at: context.now(),
            decoded: options.decode,
            objects: result.objects,
            bytes: result.bytes,
            backups,
            findings_total: result.findings.len() as u64,
            findings: result.findings.clone(),
        });
        // What was seen stands, whether it can be recorded or not: the copy may be read-only.
        if let Err(error) = stated {
            output::notice(format!(
                "warning: that copy {:?} was verified could not be recorded in it",
                copy.name
            ));
            exit::print_error(&error);
        }
        for finding in result.findings {
            if !context.json {
                output::line(format!(
                    "finding[{}]: {} in copy {}",
                    finding.code, finding.object, copy.name
                ));
                output::line(format!("detail: {}", finding.detail));
                if !finding.affects.is_empty() {
                    output::line(format!("affects: {}", finding.affects.join(", ")));
                }
            }
            findings.push(json!({
                "code": finding.code, "object": finding.object, "detail": finding.detail,
                "affects": finding.affects, "copy": copy.name,
            }));
        }
    }
    let found = findings.len();
    if context.json {
        output::json(&json!({
            "findings": findings, "objects": objects, "bytes": bytes, "decoded": options.decode,
        }));
    } else {
        let how = if options.decode {
            "read and decoded"
        } else {
            "read and compared with their checksums"
        };
        output::line(format!(
            "{objects} objects, {} {how}: {found} findings",
            output::bytes(bytes)
        ));
    }
    Ok(if found > 0 { exit::BAD } else { exit::DONE })
}
