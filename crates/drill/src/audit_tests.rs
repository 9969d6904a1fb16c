//! Claims about audits: a whole bundle agrees, and nothing in it can be changed unnoticed.

use std::collections::BTreeMap;

use repository::{Chain, ClusterRepository, RecipientKey, Repository};

use crate::audit::{Audit, StoredBundle, audit};
use crate::evidence::{self, CHAIN, MANIFEST};
use crate::facts::{CheckResult, Facts};
use crate::sign_off::{self, SignOff, SignerRole, Signers, Subject, is_signed};
use crate::signing::SigningKey;
use crate::verdict::{Status, Verdict, judge};
use crate::verdict_tests::good;

struct World {
    _folder: tempfile::TempDir,
    cluster: ClusterRepository,
}

fn world() -> World {
    let folder = tempfile::tempdir().expect("a folder");
    let store = repository::create_store(&format!("file://{}/r", folder.path().display())).expect("a store");
    let key = RecipientKey::generate().expect("a key");
    let repository = Repository::create(store, &key, good().started_at).expect("a repository");
    let cluster = repository.cluster("main").expect("a cluster");
    World {
        _folder: folder,
        cluster,
    }
}

/// Keeps what a drill with these facts and this verdict leaves, and signs it; the keys that are vouched for.
fn record(world: &World, facts: &Facts, verdict: &Verdict) -> Signers {
    let documents = vec![("report.md".to_string(), b"# Report\n".to_vec())];
    let bundle = evidence::bundle(facts, verdict, documents).expect("a bundle");
    let drill = &facts.identity.drill_id;
    evidence::keep(&world.cluster, drill, &bundle, facts.started_at).expect("kept");
    let stored = read(world, drill);
    let seen = audit(&stored, &Signers::new()).expect("an audit");
    let Some((link, sum)) = seen.link.clone() else {
        return Signers::new();
    };
    let mut signers = Signers::new();
    for (role, name) in [(SignerRole::Operator, "ada"), (SignerRole::Reviewer, "bob")] {
        let key = SigningKey::generate().expect("a key");
        let sign_off = SignOff {
            drill: drill.clone(),
            role,
            signer: name.into(),
            verdict: verdict.status,
            link: sum.clone(),
            comment: None,
            signed_at: facts.started_at,
            tool_version: "0.1.0".into(),
        };
        let subject = Subject {
            manifest: link.manifest.clone(),
            facts: evidence::sha256_hex(stored.files["facts.json"].as_ref().expect("facts")),
        };
        let bytes = sign_off::seal(&key, sign_off, &subject).expect("a signature");
        let file = sign_off::file_name(role, &key.public());
        world
            .cluster
            .add_evidence(drill, &link.manifest, &file, &bytes, facts.started_at)
            .expect("added");
        signers.insert(name.into(), key.public());
    }
    signers
}

fn read(world: &World, drill: &str) -> StoredBundle {
    let names = world.cluster.list_evidence(drill).expect("a list");
    let files = names.into_iter().map(|name| {
        let content = world
            .cluster
            .get_evidence(drill, &name)
            .expect("read")
            .expect("there");
        (name, Ok(content))
    });
    StoredBundle {
        files: files.collect(),
        chain: Ok(world.cluster.chain().expect("a chain")),
    }
}

fn whole() -> (World, StoredBundle, Signers) {
    let world = world();
    let facts = good();
    let signers = record(&world, &facts, &judge(&facts));
    let bundle = read(&world, &facts.identity.drill_id);
    (world, bundle, signers)
}

fn codes(audit: &Audit) -> Vec<(&'static str, &str)> {
    audit
        .findings
        .iter()
        .map(|it| (it.code, it.file.as_str()))
        .collect()
}

#[test]
fn a_whole_bundle_agrees_and_is_signed() {
    let (_world, bundle, signers) = whole();
    let seen = audit(&bundle, &signers).expect("an audit");
    assert_eq!(codes(&seen), []);
    assert!(seen.agrees() && is_signed(&seen.signatures));
    assert_eq!(seen.recorded, seen.verdict.as_ref().map(|verdict| verdict.status));
    assert_eq!((seen.files_whole, seen.links), (4, 3));
    // The same signatures say nothing where nobody vouches for their keys.
    let strange = audit(&bundle, &Signers::new()).expect("an audit");
    assert!(strange.agrees() && !is_signed(&strange.signatures));
    assert_eq!(strange.signatures.len(), 2);
}

#[test]
fn any_changed_byte_of_any_file_or_of_the_chain_is_noticed() {
    let (_world, bundle, signers) = whole();
    let chain = bundle
        .chain
        .as_ref()
        .expect("a chain")
        .to_file()
        .expect("its file");
    let mut contents: BTreeMap<String, Vec<u8>> = bundle
        .files
        .iter()
        .map(|(name, content)| (name.clone(), content.clone().expect("whole")))
        .collect();
    contents.insert(CHAIN.into(), chain);
    let assemble = |contents: &BTreeMap<String, Vec<u8>>| StoredBundle {
        files: contents
            .iter()
            .filter(|(name, _)| *name != CHAIN)
            .map(|(name, content)| (name.clone(), Ok(content.clone())))
            .collect(),
        chain: Chain::from_file(&contents[CHAIN]),
    };
    assert!(audit(&assemble(&contents), &signers).expect("an audit").agrees());
    let mut tried = 0;
    for name in contents.keys().cloned().collect::<Vec<_>>() {
        for at in 0..contents[&name].len() {
            let mut changed = contents.clone();
            changed.get_mut(&name).expect("there")[at] ^= 1;
            // A version of the facts that is too new is refused, which is no agreement either.
            if let Ok(seen) = audit(&assemble(&changed), &signers) {
                assert!(!seen.agrees(), "byte {at} of {name}");
                let named = seen.findings.iter().any(|it| it.file == name);
                assert!(
                    named || name == CHAIN || name == "facts.json",
                    "{name}: {:?}",
                    codes(&seen)
                );
            }
            tried += 1;
        }
        let mut without = contents.clone();
        if name != CHAIN {
            without.remove(&name);
            assert!(
                !audit(&assemble(&without), &signers).expect("an audit").agrees(),
                "without {name}"
            );
        }
    }
    assert!(tried > 5_000, "{tried}");
    contents.insert("report.html".into(), b"<p>".to_vec());
    let seen = audit(&assemble(&contents), &signers).expect("an audit");
    assert_eq!(codes(&seen), [("file-unknown", "report.html")]);
}

#[test]
fn the_byte_that_differs_is_named_where_the_facts_tell_what_it_was() {
    let (_world, mut bundle, signers) = whole();
    let Some(Ok(verdict)) = bundle.files.get_mut("verdict.json") else {
        panic!("no verdict");
    };
    let at = verdict
        .windows(6)
        .position(|word| word == b"PASSED")
        .expect("the word");
    verdict[at] = b'p';
    let seen = audit(&bundle, &signers).expect("an audit");
    let named: Vec<_> = seen.findings.iter().filter_map(|it| it.byte).collect();
    assert_eq!(named, [at as u64], "{:?}", seen.findings);
}

#[test]
fn a_verdict_that_the_facts_do_not_give_is_found_however_well_it_is_hashed_and_chained() {
    let world = world();
    let mut facts = good();
    for check in &mut facts.checks {
        if check.id == "amcheck" {
            check.result = CheckResult::Fail;
        }
    }
    let forged = Verdict {
        status: Status::Passed,
        reasons: Vec::new(),
    };
    let signers = record(&world, &facts, &forged);
    let bundle = read(&world, &facts.identity.drill_id);
    let seen = audit(&bundle, &signers).expect("an audit");
    let found = codes(&seen);
    assert!(found.contains(&("verdict-differs", "verdict.json")), "{found:?}");
    assert!(found.contains(&("facts-differ", "facts.json")), "{found:?}");
    // Signatures under a verdict that does not follow do not count.
    assert!(seen.signatures.is_empty() && !is_signed(&seen.signatures));
    assert_eq!(seen.recorded, Some(Status::Passed));
    assert_eq!(seen.verdict.expect("judged").status, Status::Failed);
}

#[test]
fn another_version_s_wording_agrees_and_its_other_reasons_do_not() {
    let world = world();
    let mut facts = good();
    facts.identity.tool_version = "0.0.9".into();
    facts.teardown = Some(crate::facts::Teardown {
        server_stopped: false,
        folder_removed: false,
        kept_on_request: false,
        left: vec!["the copy's folder".into()],
    });
    let mut verdict = judge(&facts);
    verdict.reasons[0].text = "Something was left behind.".into();
    let signers = record(&world, &facts, &verdict);
    let seen = audit(&read(&world, &facts.identity.drill_id), &signers).expect("an audit");
    assert_eq!(codes(&seen), []);

    let world = self::world();
    verdict.reasons[0].code = "something-else".into();
    let signers = record(&world, &facts, &verdict);
    let seen = audit(&read(&world, &facts.identity.drill_id), &signers).expect("an audit");
    assert_eq!(codes(&seen), [("verdict-differs", "verdict.json")]);
}

#[test]
fn facts_of_a_newer_version_are_refused_and_not_judged() {
    let world = world();
    let mut facts = good();
    facts.version += 1;
    let bundle = evidence::bundle(&facts, &judge(&facts), Vec::new()).expect("a bundle");
    let stored = StoredBundle {
        files: bundle
            .files
            .into_iter()
            .map(|(name, content)| (name, Ok(content)))
            .collect(),
        chain: Ok(world.cluster.chain().expect("a chain")),
    };
    assert!(stored.files.contains_key(MANIFEST));
    let error = audit(&stored, &Signers::new()).expect_err("it cannot be read");
    assert_eq!(error.code(), "evidence-newer");
}
