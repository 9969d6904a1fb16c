//! What a drill leaves behind, as auditors and reviewers use it: audited offline, signed by two people, printed, listed,
//! followed up. One real drill serves all claims.

mod support;

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;
use support::{Ended, World};

/// Files of a folder, with their names below it.
fn files(folder: &Path) -> Vec<(String, PathBuf)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).expect("folder").flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.path().is_dir() {
            let below = files(&entry.path());
            found.extend(
                below
                    .into_iter()
                    .map(|(below, path)| (format!("{name}/{below}"), path)),
            );
        } else {
            found.push((name, entry.path()));
        }
    }
    found.sort();
    found
}

/// Audits a folder where there is no configuration, no key and no server.
fn audit_folder(world: &World, folder: &Path) -> Ended {
    let output = Command::new(world.binary())
        .args(["drill", "audit", "--json", "--bundle"])
        .arg(folder)
        .current_dir("/")
        .output()
        .expect("the program starts");
    Ended {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

#[test]
fn a_recorded_drill_is_audited_and_signed_and_any_change_is_noticed() {
    let Some(world) = World::start("a_recorded_drill_is_audited_and_signed_and_any_change_is_noticed") else {
        return;
    };
    world
        .session()
        .execute(
            "create table public.orders (id int primary key, v text);
                  insert into public.orders select n, md5(n::text) from generate_series(1, 1000) n",
        )
        .expect("tables");
    world.json(&["backup"]);
    for name in ["ada", "Bob Reviewer", "eve"] {
        let made = world.json(&["key", "signing-new", name]);
        assert_eq!(made["added"], true, "{made:#}");
    }
    let verdict = world.sound_verdict();
    let ended = world.run(&[
        "drill",
        "run",
        "--json",
        "--operator",
        "ada",
        "--sign-key",
        "ada.signing-key",
    ]);
    let facts = ended.json();
    assert_eq!(
        (ended.code, facts["verdict"].as_str()),
        (0, Some(verdict)),
        "{}",
        ended.stderr
    );
    let drill = facts["identity"]["drill_id"]
        .as_str()
        .expect("its name")
        .to_owned();
    let folder = PathBuf::from(facts["report"].as_str().expect("its report")).with_extension("");

    signing(&world, &drill, verdict);
    auditing(&world, &drill, &folder);
}

fn signing(world: &World, drill: &str, verdict: &str) {
    let seen = world.json(&["drill", "audit"]);
    assert_eq!(
        (&seen["agrees"], &seen["signed"]),
        (&true.into(), &false.into()),
        "{seen:#}"
    );
    assert_eq!(seen["signatures"][0]["role"], "operator");

    let sign = |role: &str, key: &str| world.run(&["drill", "sign", drill, "--role", role, "--key", key]);
    // The operator cannot review, and a key that nobody vouches for cannot sign.
    let same = sign("reviewer", "ada.signing-key");
    assert_eq!(same.code, 1, "{}", same.stderr);
    assert!(same.stderr.contains("error[signer-same]"), "{}", same.stderr);
    let strange = world.scratch().join("strange.signing-key");
    let key = drill::signing::SigningKey::generate().expect("a key");
    std::fs::write(&strange, key.to_key_file_text("mallory").as_bytes()).expect("write");
    support::give_to_account(&strange);
    let unknown = sign("reviewer", "strange.signing-key");
    assert_eq!(unknown.code, 2, "{}", unknown.stderr);
    assert!(
        unknown.stderr.contains("error[signer-unknown]"),
        "{}",
        unknown.stderr
    );

    let text = world.run(&["drill", "audit", drill]).ok().stdout;
    assert!(text.contains(&format!("{verdict} (unsigned)")), "{text}");
    let signed = sign("reviewer", "bob-reviewer.signing-key").ok();
    assert!(
        signed.stdout.contains(verdict) && !signed.stdout.contains("unsigned"),
        "{}",
        signed.stdout
    );
    // Signing twice changes nothing.
    let before = world.json(&["drill", "audit", drill]);
    sign("reviewer", "bob-reviewer.signing-key").ok();
    assert_eq!(world.json(&["drill", "audit", drill]), before);
    assert_eq!(before["signed"], true, "{before:#}");
    assert_eq!(before["signatures"][1]["signer"], "Bob Reviewer");
}

fn auditing(world: &World, drill: &str, folder: &Path) {
    let whole = audit_folder(world, folder);
    assert_eq!(whole.code, 0, "{}\n{}", whole.stdout, whole.stderr);
    let whole: Value = whole.json();
    assert_eq!(whole["drill"], drill);
    // Nobody vouches for a key where there is no configuration.
    assert_eq!(whole["signed"], false);

    for (name, path) in files(folder) {
        let good = std::fs::read(&path).expect("read");
        for part in 0..5 {
            let at = (good.len() - 1) * part / 4;
            let mut bad = good.clone();
            bad[at] ^= 1;
            std::fs::write(&path, &bad).expect("write");
            let ended = audit_folder(world, folder);
            assert_eq!(
                ended.code, 3,
                "byte {at} of {name}: {}\n{}",
                ended.stdout, ended.stderr
            );
        }
        std::fs::remove_file(&path).expect("remove");
        assert_eq!(audit_folder(world, folder).code, 3, "without {name}");
        std::fs::write(&path, &good).expect("write");
    }
    assert_eq!(audit_folder(world, folder).code, 0);

    // In the repository, where everything is sealed, too.
    let evidence = world.repository().join("clusters/main/evidence").join(drill);
    for (name, path) in files(&evidence) {
        let good = std::fs::read(&path).expect("read");
        let mut bad = good.clone();
        let middle = bad.len() / 2;
        bad[middle] ^= 1;
        support::overwrite(&path, &bad);
        let ended = world.run(&["drill", "audit", "--json", drill]);
        assert_eq!(ended.code, 3, "{name}: {}", ended.stderr);
        let findings = ended.json()["findings"].to_string();
        assert!(findings.contains(&name), "{name}: {findings}");
        support::overwrite(&path, &good);
    }
    world.run(&["drill", "audit", drill]).ok();
}
