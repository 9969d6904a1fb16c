//! What a drill leaves behind, as auditors and reviewers use it: audited offline, signed by two people, printed, listed,
//! followed up. Few real drills serve all claims.

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
    Ended::of(&output)
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
    printing(&world, &drill, &folder, verdict);
    auditing(&world, &drill, &folder);
    listing(&world, &drill, verdict);
    following_up(&world, &drill);
}

fn text(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The documents of the evidence, and their refreshed copies beside it.
fn printing(world: &World, drill: &str, folder: &Path, verdict: &str) {
    let facts: Value = serde_json::from_str(&text(&folder.join("facts.json"))).expect("facts");
    for name in [
        "report.md",
        "report.html",
        "junit.xml",
        "intoto.json",
        "chain.json",
    ] {
        assert!(folder.join(name).is_file(), "{name}");
    }
    // As it was recorded nobody had signed; beside it stands what is true now.
    let unsigned = format!("{verdict} (unsigned)");
    let recorded = text(&folder.join("report.md"));
    assert!(
        recorded.contains(&format!("| **Status** | **{unsigned}**")),
        "{recorded}"
    );
    for ending in ["md", "html"] {
        let now = text(&folder.with_extension(ending));
        assert!(now.contains(verdict) && !now.contains(&unsigned), "{ending}");
        assert!(now.contains("Bob Reviewer"), "{ending}");
    }
    let name = folder.file_name().expect("a name").to_string_lossy();
    assert_eq!(name, drill);
    let stamp = drill.strip_prefix("pitr_drill_").expect("the prefix");
    assert!(
        stamp.len() == 16 && stamp.ends_with('Z') && stamp.as_bytes()[8] == b'T',
        "{drill}"
    );
    // Each value's pointer leads to something: a fact, or a backup that the rates were told from.
    let listed = world.json(&["list"]);
    let backups: Vec<&Value> = listed["backups"]
        .as_array()
        .expect("backups")
        .iter()
        .map(|backup| &backup["backup"])
        .collect();
    let mut pointers = 0;
    for line in recorded.lines().filter(|line| line.starts_with("[^")) {
        let (_, places) = line.split_once(": ").expect("a note");
        for pointer in places.split(", ").map(|place| place.trim_matches('`')) {
            let is_backup = backups.iter().any(|backup| **backup == pointer);
            assert!(is_backup || facts.pointer(pointer).is_some(), "{pointer}");
            pointers += 1;
        }
    }
    assert!(pointers > 300, "{pointers}");
    let html = world
        .run(&["drill", "show", drill, "--format", "html"])
        .ok()
        .stdout;
    assert_eq!(html.trim_end(), text(&folder.with_extension("html")).trim_end());
    let junit = text(&folder.join("junit.xml"));
    assert!(
        junit.contains("<testcase ") && junit.contains("name=\"row-proof\""),
        "{junit}"
    );
    let statement: Value = serde_json::from_str(&text(&folder.join("intoto.json"))).expect("JSON");
    let sum = drill::evidence::sha256_hex(&std::fs::read(folder.join("facts.json")).expect("facts"));
    let subject = statement["subject"].as_array().expect("subjects");
    assert!(
        subject.iter().any(|it| it["digest"]["sha256"] == sum.as_str()),
        "{statement:#}"
    );
    // The whole evidence for an auditor, elsewhere.
    let exported = world.json(&["drill", "show", drill, "--into", "for-the-auditor"]);
    let exported = PathBuf::from(exported["folder"].as_str().expect("a folder"));
    let exported = world.scratch().join(exported);
    assert_eq!(audit_folder(world, &exported).code, 0);
}

fn listing(world: &World, drill: &str, verdict: &str) {
    let listed = world.json(&["drill", "list"]);
    let row = &listed["drills"][0];
    assert_eq!(
        (row["drill"].as_str(), row["status"].as_str()),
        (Some(drill), Some(verdict)),
        "{listed:#}"
    );
    assert!(
        row["quarter"].as_str().is_some_and(|it| it.starts_with('Q')),
        "{row:#}"
    );
    assert!(row["rto_seconds"].as_f64().is_some_and(|it| it > 0.0), "{row:#}");
    assert!(
        row["report"]
            .as_str()
            .is_some_and(|it| it.ends_with(&format!("{drill}.md"))),
        "{row:#}"
    );
    assert_eq!(listed["scheduled"][0]["status"], "SCHEDULED", "{listed:#}");
    let shown = world.run(&["drill", "list"]).ok().stdout;
    let head = "QUARTER  DATE";
    assert!(shown.starts_with(head) && shown.contains("SCHEDULED"), "{shown}");

    let due = world.json(&[
        "drill",
        "due",
        "--ics",
        "drills.ics",
        "--time-zone",
        "UTC",
        "--check",
    ]);
    assert_eq!(due["due"][0]["overdue"], false, "{due:#}");
    let from: jiff::Timestamp = due["due"][0]["from"]
        .as_str()
        .expect("a time")
        .parse()
        .expect("a time");
    let from = from.to_zoned(jiff::tz::TimeZone::UTC);
    assert_eq!(
        (from.weekday(), from.hour()),
        (jiff::civil::Weekday::Tuesday, 9),
        "{due:#}"
    );
    assert!(
        (9..=16).contains(&from.day()) && [1, 4, 7, 10].contains(&from.month()),
        "{due:#}"
    );
    let calendar = text(&world.scratch().join("drills.ics"));
    assert_eq!(calendar.matches("BEGIN:VEVENT").count(), 4, "{calendar}");
    assert!(
        calendar.contains("TRIGGER:-P1W") && calendar.contains("TRIGGER:-PT24H"),
        "{calendar}"
    );
}

/// What must be in no output and in no evidence.
const PASSWORD: &str = "planted-password-7391";
const ROW: &str = "planted-row-value-5521";

/// A drill that fails, with secrets planted wherever they could leak; then what people do about it.
fn following_up(world: &World, passed: &str) {
    world
        .session()
        .execute(&format!(
            "create table public.secrets (id int primary key, v text);
             insert into public.secrets values (1, '{ROW}')"
        ))
        .expect("a table");
    let configuration = world.scratch().join("pgproof.toml");
    let changed = text(&configuration).replacen(
        "connection = \"",
        &format!("connection = \"password={PASSWORD} "),
        1,
    ) + "
[drill.leaks]
rto = \"90 min\"
schedule = \"yearly\"
[[drill.leaks.check]]
id = \"an-error-with-a-value\"
sql = \"select v::int from public.secrets where id = 1\"
expect = 1
[[drill.leaks.check]]
id = \"another-value\"
sql = \"select v from public.secrets where id = 1\"
expect = \"nothing\"
";
    assert!(changed.contains(PASSWORD));
    support::overwrite(&configuration, changed.as_bytes());
    let mut said = Vec::new();
    let mut run = |arguments: &[&str]| {
        let ended = world.run(arguments);
        said.push((arguments.join(" "), format!("{}{}", ended.stdout, ended.stderr)));
        ended
    };
    let ended = run(&["drill", "run", "leaks", "--json", "--sign-key", "ada.signing-key"]);
    assert_eq!(ended.code, 3, "{}\n{}", ended.stdout, ended.stderr);
    let facts = ended.json();
    let failed = facts["identity"]["drill_id"]
        .as_str()
        .expect("its name")
        .to_owned();
    assert_eq!(facts["verdict"], "FAILED");
    let folder = PathBuf::from(facts["report"].as_str().expect("its report")).with_extension("");
    let report = text(&folder.join("report.md"));
    assert!(report.contains("## 11. Production Impact Assessment"), "{report}");

    // A failed drill is due again within 14 days, whatever the calendar says.
    let due = run(&["drill", "due", "leaks", "--json"]).ok().json();
    let until: jiff::Timestamp = due["due"][0]["until"]
        .as_str()
        .expect("a time")
        .parse()
        .expect("a time");
    let days = until.duration_since(jiff::Timestamp::now()).as_hours() / 24;
    assert!((12..=14).contains(&days), "{due:#}");

    let add = [
        "drill",
        "follow-up",
        "add",
        &failed,
        "--action",
        "Repair it",
        "--owner",
        "ada",
        "--due",
        "2099-01-31",
    ];
    run(&add).ok();
    let entry = format!("{failed}/1");
    let open = run(&["drill", "follow-up", "list", "--json"]).ok().json();
    assert_eq!(open["follow_ups"][0]["id"], entry.as_str(), "{open:#}");
    assert_eq!(open["follow_ups"][0]["status"], "open");
    // Neither an older drill nor the failed one itself closes it.
    for by in [passed, &failed] {
        let refused = run(&["drill", "follow-up", "close", &entry, "--by", by]);
        assert_eq!(refused.code, 1, "{by}: {}", refused.stderr);
        assert!(
            refused.stderr.contains("error[follow-up-open]"),
            "{}",
            refused.stderr
        );
    }
    let later = run(&["drill", "run", "default", "--json"]).ok().json();
    let later = later["identity"]["drill_id"]
        .as_str()
        .expect("its name")
        .to_owned();
    run(&[
        "drill",
        "follow-up",
        "close",
        &entry,
        "--by",
        &later,
        "--note",
        "done",
    ])
    .ok();
    assert_eq!(
        run(&["drill", "follow-up", "list", "--json"]).ok().json()["follow_ups"],
        serde_json::json!([])
    );
    let report = run(&["drill", "show", &failed]).ok().stdout;
    assert!(report.contains(&format!("| closed by {later}")), "{report}");
    // All of it is under the chain, in the repository and in the folder.
    run(&["drill", "audit", &failed]).ok();
    assert_eq!(audit_folder(world, &folder).code, 0);
    run(&["verify"]).ok();

    run(&["drill", "list"]).ok();
    run(&["drill", "run", "leaks"]);
    run(&["drill", "show", "latest", "--format", "html"]).ok();
    run(&["drill", "show", "latest", "--format", "junit"]).ok();
    run(&["drill", "show", "latest", "--json"]).ok();
    run(&["config", "show"]).ok();
    run(&["drill", "show", &failed, "--into", "exported"]).ok();
    nothing_leaks(world, &said);
}

fn nothing_leaks(world: &World, said: &[(String, String)]) {
    let digits = |file: &str| {
        let key = text(&world.scratch().join(file));
        let line = key
            .lines()
            .find(|line| !line.starts_with('#'))
            .expect("the key's line")
            .to_owned();
        line.split_whitespace().nth(1).expect("the digits").to_owned()
    };
    let repository_key = std::fs::read_dir(world.scratch())
        .expect("folder")
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .find(|name| name.ends_with(".key"))
        .expect("the repository's key");
    let secrets = [
        PASSWORD.to_owned(),
        ROW.to_owned(),
        digits(&repository_key),
        digits("ada.signing-key"),
    ];
    let clean = |place: &str, bytes: &[u8]| {
        let text = String::from_utf8_lossy(bytes);
        for secret in &secrets {
            assert!(!text.contains(secret.as_str()), "{place} holds {secret}:\n{text}");
        }
    };
    for (command, text) in said {
        clean(command, text.as_bytes());
    }
    let mut looked_at = 0;
    for folder in ["ops/drill-reports", "exported", "for-the-auditor"] {
        for (name, path) in files(&world.scratch().join(folder)) {
            clean(&name, &std::fs::read(&path).expect("read"));
            looked_at += 1;
        }
    }
    assert!(looked_at > 30, "{looked_at} files");
    // What is sealed in the repository is sealed as a whole; its plain text was exported above.
    for (name, path) in files(&world.repository()) {
        clean(&name, &std::fs::read(&path).expect("read"));
    }
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

    // As root, a key that the server's account cannot read is handed on, and what is written is that account's.
    if rustix::process::geteuid().is_root() {
        let key = world.scratch().join("of-root.signing-key");
        std::fs::copy(world.scratch().join("eve.signing-key"), &key).expect("copy");
        let output = Command::new(world.binary())
            .arg("--config")
            .arg(world.scratch().join("pgproof.toml"))
            .args(["drill", "sign", drill, "--role", "reviewer", "--key"])
            .arg(&key)
            .current_dir(world.scratch())
            .output()
            .expect("the program starts");
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let seen = world.json(&["drill", "audit", drill]);
        assert_eq!(seen["signatures"].as_array().map(Vec::len), Some(3), "{seen:#}");
    }
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
