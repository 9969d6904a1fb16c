//! The end of the record: what was required and what evidence there is, who signed, which controls it speaks to, what the
//! words mean.

use drill::Verdict;
use drill::facts::{Facts, Measure, Rto};
use drill::sign_off::{SignerRole, is_signed};

use crate::circumstances::{BackupRuns, Circumstances, Earlier};
use crate::document::{Document, Text, said, value};
use crate::template::{recovery_point, recovery_time};
use crate::trend;
use crate::words::{day, limit};

pub fn compliance(out: &mut Document, facts: &Facts, verdict: &Verdict, beside: &Circumstances) {
    out.heading(2, "7. Compliance & Audit");
    out.heading(3, "7.1 Drill Requirements");
    let next = match facts.identity.next_due {
        Some(due) => value(day(due), "/identity/next_due"),
        None => value("not scheduled: the profile has no schedule", "/identity/next_due"),
    };
    let elsewhere = "N/A: not part of this drill";
    out.table(
        &["Requirement", "Frequency", "Last Completed", "Next Due"],
        [
            [
                value(
                    format!("Restore drill ({})", facts.identity.profile),
                    "/identity/profile",
                ),
                said(beside.frequency.as_deref().unwrap_or("by the profile")),
                value(day(facts.started_at), "/started_at"),
                next,
            ],
            [
                said("Backup verification"),
                said("by the timer of `pgproof verify`"),
                said("`pgproof list` shows it for each backup"),
                said(elsewhere),
            ],
            [
                said("Failover drill"),
                said("by the team's own rule"),
                said(elsewhere),
                said(elsewhere),
            ],
        ],
    );
    rates(out, facts, verdict, beside);
    out.heading(3, "7.2 Audit Evidence");
    let drill = &facts.identity.drill_id;
    let location = |name: &str| value(format!("evidence/{drill}/{name}"), "/identity/drill_id").code();
    let kept = || said("permanent: never expired");
    out.table(
        &["Evidence Type", "Location", "Retention"],
        [
            [said("Facts and timing data"), location("facts.json"), kept()],
            [said("Verdict with its reasons"), location("verdict.json"), kept()],
            [said("Server log of the copy"), location("server.log"), kept()],
            [said("This report"), location("report.md"), kept()],
            [said("The same for print"), location("report.html"), kept()],
            [said("Checks as test results"), location("junit.xml"), kept()],
            [said("in-toto statement"), location("intoto.json"), kept()],
            [
                said("SHA-256 of each, under the hash chain"),
                location("manifest.sha256"),
                kept(),
            ],
        ],
    );
    out.say("`pgproof drill audit` repeats every hash, the chain, the signatures, and the verdict from the facts.");
    out.heading(3, "7.3 Sign-Off");
    let mut rows = Vec::new();
    for role in [SignerRole::Operator, SignerRole::Reviewer] {
        let title = match role {
            SignerRole::Operator => "Primary Operator",
            SignerRole::Reviewer => "Secondary Reviewer",
        };
        let before = rows.len();
        for signature in beside.signatures.iter().filter(|it| it.role == role) {
            let from = || signature.file.clone();
            let vouched = if signature.vouched {
                ""
            } else {
                " (nobody vouches for this key)"
            };
            rows.push([
                said(title),
                value(&signature.signer, from()),
                value(format!("{}{vouched}", signature.key), from()).code(),
                value(day(signature.signed_at), from()),
            ]);
        }
        if rows.len() == before {
            rows.push([said(title), said("has not signed"), said("none"), said("-")]);
        }
    }
    out.table(&["Role", "Name", "Signature", "Date"], rows);
    let words = match is_signed(&beside.signatures) {
        true => "Both required signatures are there.",
        false => "Two people with two keys have to sign, as operator and as reviewer: `pgproof drill sign`.",
    };
    out.say(words);
    for signature in &beside.signatures {
        if let Some(comment) = &signature.comment {
            let text = format!("{}: {comment}", signature.signer);
            out.paragraph(vec![value(text, signature.file.clone())]);
        }
    }
    out.heading(3, "7.4 Controls");
    let proven = format!("this drill ended {}", verdict.status);
    let shows = |what: &str| value(format!("{what}: {proven}"), "/verdict");
    out.table(
        &["Control", "What this drill shows"],
        [
            [
                said("SOC 2 A1.2, A1.3; ISO 27001 A.8.13"),
                shows("restoration was tested"),
            ],
            [
                said("ISO 27001 A.5.30; NIST SP 800-53 CP-4, CP-10"),
                shows("recovery within objectives was tested"),
            ],
            [
                said("NIST SP 800-53 CP-9(1)"),
                shows("backups were read for real and compared"),
            ],
            [
                said("DORA Art. 11(6), 12(2), 12(3)"),
                shows("recovery was tested on a segregated copy"),
            ],
            [
                said("HIPAA 164.308(a)(7)(ii)(D)"),
                shows("contingency procedures were tested"),
            ],
        ],
    );
}

/// The first and the last of the backups that were counted, and each one that failed.
fn of_backups(runs: &BackupRuns) -> Vec<String> {
    let made = runs.succeeded.first().into_iter().chain(runs.succeeded.last());
    made.chain(&runs.failed).cloned().collect()
}

/// How often drills of this profile succeed, how long they take, and how fast the backups grow.
fn rates(out: &mut Document, facts: &Facts, verdict: &Verdict, beside: &Circumstances) {
    let profile = &facts.identity.profile;
    let mut drills: Vec<Earlier> = beside
        .earlier
        .iter()
        .filter(|drill| drill.profile == *profile)
        .cloned()
        .collect();
    drills.push(Earlier::of(facts, verdict.status));
    let of_drills = |own: &[&str]| {
        let earlier = drills.iter().rev().skip(1).rev();
        let earlier = earlier.map(|drill| format!("{}/facts.json", drill.drill));
        earlier
            .chain(own.iter().map(|from| (*from).to_owned()))
            .collect::<Vec<String>>()
    };
    let runs = beside.backup_runs.as_ref();
    let rows = trend::rates(&drills, &beside.backups, runs)
        .into_iter()
        .map(|rate| {
            let places = match rate.id {
                "recovery-time" => of_drills(&["/rto"]),
                "restores" => of_drills(&["/target/stops"]),
                "backup-growth" => trend::growth_ends(&beside.backups)
                    .map(|(first, last)| vec![first.backup.clone(), last.backup.clone()])
                    .unwrap_or_default(),
                "backups" => runs.map(of_backups).unwrap_or_default(),
                _ => of_drills(&["/verdict"]),
            };
            let actual = places.into_iter().fold(said(&rate.actual), Text::and);
            [
                said(rate.title),
                actual,
                said(rate.target),
                said(rate.met.as_str()),
            ]
        });
    out.say(
        "Over this drill and the newest earlier ones of its profile, and the backups of the copy that it was restored \
         from:",
    );
    out.table(&["Rate", "Actual", "Target", "Result"], rows);
    out.say(trend::NOT_COUNTED);
}

pub fn appendix(out: &mut Document, facts: &Facts) {
    out.heading(2, "8. Appendix");
    out.heading(3, "8.1 Backup Configuration Reference");
    let mut rows = Vec::new();
    for (at, profile) in facts.profiles.iter().enumerate() {
        let from = |name: &str| format!("/profiles/{at}/{name}");
        rows.push([
            said("Profile"),
            value(format!("{} ({})", profile.name, profile.source), from("name")).and(from("source")),
        ]);
        rows.push([
            said("BLAKE3 of the profile"),
            value(&profile.digest, from("digest")).code(),
        ]);
    }
    for (at, clock) in facts.clocks.iter().enumerate() {
        let from = |name: &str| format!("/clocks/{at}/{name}");
        rows.push([
            value(format!("Objective {} of {}", clock.id, clock.profile), from("id")).and(from("profile")),
            value(
                format!(
                    "{}, as {}",
                    limit(clock.target_ms.div_ceil(1000)),
                    clock.expression
                ),
                from("target_ms"),
            )
            .and(from("expression")),
        ]);
    }
    let checks = |ids: &[String], from: &str| match ids.is_empty() {
        true => value("none", from),
        false => value(ids.join(", "), from),
    };
    rows.push([
        said("Checks without which nothing is proven"),
        checks(&facts.objectives.required_checks, "/objectives/required_checks"),
    ]);
    rows.push([
        said("Other checks of the profile"),
        checks(&facts.objectives.requested_checks, "/objectives/requested_checks"),
    ]);
    rows.push([
        said("pgproof"),
        value(&facts.identity.tool_version, "/identity/tool_version"),
    ]);
    let host = facts.identity.host.as_deref().unwrap_or("not recorded");
    rows.push([said("Host of the copy"), value(host, "/identity/host")]);
    out.table(&["What", "Value"], rows);

    out.heading(3, "8.2 RTO/RPO Definitions");
    let method = match &facts.rpo {
        Some(rpo) => value(&rpo.method, "/rpo/method"),
        None => said("the newest commit that happened, less the newest commit that the repository holds"),
    };
    let (_, rto_target) = recovery_time(facts);
    let (_, rpo_target) = recovery_point(facts);
    let definition = facts
        .clocks
        .iter()
        .position(|clock| clock.measure == Measure::RecoveryTime)
        .and_then(|at| Some((at, facts.clocks.get(at)?)));
    let clock = match definition {
        Some((at, clock)) => value(&clock.expression, format!("/clocks/{at}/expression")),
        None => said(Rto::DEFINITION),
    };
    out.table(
        &["Metric", "Definition", "Our Target"],
        [
            [said("RTO").strong(), clock, rto_target],
            [said("RPO").strong(), method, rpo_target],
        ],
    );
    out.heading(3, "8.3 Related Documents");
    out.list(vec![
        vec![said("docs/operations.md: running drills, signing, what is due")],
        vec![said("docs/format.md: every byte of the evidence")],
        vec![said(
            "docs/reference/requirements.md: which section answers which requirement",
        )],
    ]);
    out.heading(3, "Document History");
    let author = match &facts.people.operator {
        Some(operator) => value(format!("pgproof for {operator}"), "/people/operator"),
        None => value("pgproof", "/people/operator"),
    };
    out.table(
        &["Version", "Date", "Author", "Changes"],
        [[
            value(facts.version.to_string(), "/version"),
            value(day(facts.finished_at.unwrap_or(facts.started_at)), "/finished_at"),
            author,
            said("Made from the facts when the drill ended; signatures and follow-ups are added beside it"),
        ]],
    );
}
