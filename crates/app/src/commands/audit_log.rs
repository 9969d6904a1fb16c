//! `pgproof audit-log`: everything that was done to a cluster's backups and with them, in order of time, from the
//! records that each left.
//!
//! Invariants: what cannot be read is told and never left out silently; exit code 0 only when the hash chain of every
//! copy that was looked at holds and each record that it names is there as it was linked; 3 when not.

mod entries;

use std::collections::BTreeSet;

use diagnostic::Result;
use repository::Finding;
use serde_json::json;

use self::entries::Entry;
use super::drill_stored as stored;
use crate::account;
use crate::cli;
use crate::context::Context;
use crate::copies::{Copies, OpenCopy};
use crate::{exit, output, times};

/// A copy's chain over what it holds as evidence.
struct ChainOfCopy<'a> {
    copy: &'a OpenCopy,
    links: u32,
    /// SHA-256 of the newest link: who keeps it elsewhere notices a chain that was cut.
    head: Option<String>,
    findings: Vec<Finding>,
}

pub fn run(context: &Context, arguments: &cli::AuditLog) -> Result<u8> {
    let since = arguments.since.as_deref();
    let since = since.map(|text| times::parse(text, context.now())).transpose()?;
    let configuration = context.configuration()?;
    let cluster = configuration.cluster(arguments.of.cluster.as_deref())?;
    account::become_owner(&configuration, cluster)?;
    let copies = Copies::open_any(&configuration, cluster, arguments.copy.as_deref())?;
    let mut entries = Vec::new();
    let mut chains = Vec::new();
    let mut drills_linked = BTreeSet::new();
    for copy in &copies {
        let chain = copy.cluster.chain()?;
        let checked = chain.check();
        let mut findings = checked.findings;
        findings.extend(copy.cluster.check_linked(&chain)?);
        entries.extend(entries::of_copy(copy, &chain, &mut findings)?);
        let mut head = None;
        for (link, sha256) in chain.readable() {
            drills_linked.insert((copy.name.clone(), link.drill));
            head = Some(sha256);
        }
        chains.push(ChainOfCopy {
            copy,
            links: checked.links,
            head,
            findings,
        });
    }
    for drill in stored::history(&copies, &configuration.signers)? {
        let linked = drills_linked.contains(&(drill.copy.clone(), drill.drill.clone()));
        entries.extend(entries::of_drill(&drill, linked));
    }
    entries.retain(|entry| since.is_none_or(|since| entry.at >= since));
    entries.sort_by(|a, b| (a.at, &a.copy, a.what).cmp(&(b.at, &b.copy, b.what)));
    if context.json {
        show_json(&cluster.name, &entries, &chains);
    } else {
        print(&cluster.name, &entries, &chains);
    }
    let holds = chains.iter().all(|chain| chain.findings.is_empty());
    Ok(if holds { exit::DONE } else { exit::BAD })
}

fn show_json(cluster: &str, entries: &[Entry], chains: &[ChainOfCopy<'_>]) {
    let entries: Vec<_> = entries.iter().map(Entry::value).collect();
    let chains: Vec<_> = chains
        .iter()
        .map(|chain| {
            json!({
                "copy": chain.copy.name, "links": chain.links, "head": chain.head,
                "holds": chain.findings.is_empty(), "findings": chain.findings,
            })
        })
        .collect();
    output::json(&json!({ "cluster": cluster, "entries": entries, "chains": chains }));
}

fn print(cluster: &str, entries: &[Entry], chains: &[ChainOfCopy<'_>]) {
    if entries.is_empty() {
        output::line(format!("Nothing is recorded of cluster {cluster} in that time."));
    } else {
        let rows: Vec<Vec<String>> = entries.iter().map(Entry::row).collect();
        output::table(&["WHEN", "WHAT", "WHO", "ON", "COPY", "OUTCOME"], &rows);
    }
    for chain in chains {
        let words = match chain.findings.is_empty() {
            true => "holds",
            false => "DOES NOT HOLD",
        };
        let head = chain.head.as_deref().unwrap_or("none");
        output::line(format!(
            "Copy {}: the hash chain over the evidence {words}; {} links, the newest is {head}",
            chain.copy.name, chain.links
        ));
        for finding in &chain.findings {
            output::line(format!("finding[{}]: {}", finding.code, finding.object));
            output::line(format!("detail: {}", finding.detail));
        }
    }
}
