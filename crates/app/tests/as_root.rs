//! What root does for a server of another account: it restores one whose configuration lies outside of the data directory
//! (as Debian has it), where every file is that account's and the server starts with what was put there; and it signs a
//! drill with a key that it alone can read.

mod support;

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

use cluster::StopMode;
use serde_json::Value;
use support::{Ended, World};

#[test]
fn root_restores_for_the_servers_account_with_configuration_from_outside() {
    if !rustix::process::geteuid().is_root() {
        eprintln!(
            "SKIPPED: root_restores_for_the_servers_account_with_configuration_from_outside needs root"
        );
        return;
    }
    let Some(mut world) =
        World::start("root_restores_for_the_servers_account_with_configuration_from_outside")
    else {
        return;
    };
    let (uid, gid) = testing::account().expect("account");
    // As Debian has it.
    let etc = world.production.scratch().subfolder("etc").expect("folder");
    world.production.stop(StopMode::Fast).expect("production stops");
    for (setting, name) in [
        ("config_file", "postgresql.conf"),
        ("hba_file", "pg_hba.conf"),
        ("ident_file", "pg_ident.conf"),
    ] {
        std::fs::rename(world.production.data_directory().join(name), etc.join(name)).expect("rename");
        let value = etc.join(name).display().to_string();
        world
            .production
            .start_options()
            .settings
            .push((setting.to_owned(), value));
    }
    let conf = etc.join("postgresql.conf");
    let mut text = std::fs::read_to_string(&conf).expect("configuration");
    text.push_str("\nwork_mem = '7MB'\n");
    support::overwrite(&conf, text.as_bytes());
    world.production.start_again().expect("production starts");
    world
        .session()
        .execute("create table public.orders as select n, md5(n::text) v from generate_series(1, 9000) n")
        .expect("a table");
    world.json(&["backup"]);
    let expected = testing::row_digest(&world.production.conninfo()).expect("digest");
    world.archive_all();

    let into = world.scratch().join("rooted");
    let into_text = into.display().to_string();
    let restored = as_root(&world, &["restore", "--to", "latest", "--into", &into_text]);
    let generated: Vec<&str> = restored["plan"]["generated"]
        .as_array()
        .expect("generated")
        .iter()
        .filter_map(|file| file["name"].as_str())
        .collect();
    assert_eq!(
        generated,
        ["pg_hba.conf", "pg_ident.conf", "postgresql.conf"],
        "{restored:#}"
    );
    everything_belongs_to(&into, uid, gid);
    let kept = std::fs::read_to_string(into.join("pgproof.reference/postgresql.conf"))
        .expect("the original is kept");
    assert!(kept.contains("work_mem = '7MB'"));
    take_over_pg_hba(&into);
    let server = world.start_restored(&into);
    assert_eq!(testing::row_digest(&server.conninfo()).expect("digest"), expected);
    server.stop();

    // In place, over files that root made and modes that somebody changed.
    std::fs::write(into.join("global/stray"), "root's").expect("write");
    std::fs::set_permissions(into.join("PG_VERSION"), std::fs::Permissions::from_mode(0o666)).expect("mode");
    std::os::unix::fs::chown(into.join("PG_VERSION"), Some(0), Some(0)).expect("chown");
    let arguments = [
        "restore",
        "--delta",
        "--confirm",
        "main",
        "--to",
        "latest",
        "--into",
        &into_text,
    ];
    as_root(&world, &arguments);
    everything_belongs_to(&into, uid, gid);
    what_root_recorded_belongs_to_the_account(&world, uid, gid);
    let version = std::fs::metadata(into.join("PG_VERSION")).expect("metadata");
    assert_eq!(version.mode() & 0o777, 0o600);
    assert!(!into.join("global/stray").exists());
    take_over_pg_hba(&into);
    let server = world.start_restored(&into);
    assert_eq!(testing::row_digest(&server.conninfo()).expect("digest"), expected);
    server.stop();
}

#[test]
fn root_signs_the_drill_of_a_servers_account_with_a_key_that_root_alone_can_read() {
    if !rustix::process::geteuid().is_root() {
        eprintln!(
            "SKIPPED: root_signs_the_drill_of_a_servers_account_with_a_key_that_root_alone_can_read needs root"
        );
        return;
    }
    let Some(world) =
        World::start("root_signs_the_drill_of_a_servers_account_with_a_key_that_root_alone_can_read")
    else {
        return;
    };
    let (uid, gid) = testing::account().expect("account");
    world
        .session()
        .execute("create table public.orders as select n from generate_series(1, 1000) n")
        .expect("a table");
    world.json(&["backup"]);
    let keys = world.scratch().join("keys-of-root");
    std::fs::create_dir(&keys).expect("folder");
    std::fs::set_permissions(&keys, std::fs::Permissions::from_mode(0o700)).expect("mode");
    let reports = world.scratch().join("reports");
    let copies = world.production.scratch().subfolder("copies").expect("folder");
    let root = |arguments: &[&str]| {
        let output = Command::new(world.binary())
            .arg("--config")
            .arg(world.scratch().join("pgproof.toml"))
            .args(arguments)
            .arg("--json")
            .env("DRILL_REPORT_DIR", &reports)
            .current_dir(&keys)
            .output()
            .expect("the program starts");
        Ended::of(&output)
    };
    let made = root(&["key", "signing-new", "ada"]).ok().json();
    assert_eq!(made["added"], true, "{made:#}");
    let key = keys.join("ada.signing-key");
    let metadata = std::fs::metadata(&key).expect("the key");
    assert_eq!((metadata.uid(), metadata.mode() & 0o777), (0, 0o600));

    // A key that nobody vouches for is refused before anything is done.
    let strange = keys.join("strange.signing-key");
    root(&["key", "signing-new", "eve"]).ok();
    std::fs::rename(keys.join("eve.signing-key"), &strange).expect("rename");
    let configuration = world.scratch().join("pgproof.toml");
    let text = std::fs::read_to_string(&configuration).expect("configuration");
    let without: Vec<&str> = text.lines().filter(|line| !line.starts_with("eve = ")).collect();
    assert_eq!(without.len() + 1, text.lines().count(), "{text}");
    support::overwrite(&configuration, (without.join("\n") + "\n").as_bytes());
    support::give_to_account(&configuration);
    let directory = copies.display().to_string();
    let run = |key: &Path| {
        let key = key.display().to_string();
        let arguments = ["drill", "run", "--sign-key", &key, "--directory", &directory];
        root(&arguments)
    };
    let refused = run(&strange);
    assert_eq!(refused.code, 2, "{}", refused.stderr);
    assert!(!reports.exists(), "nothing was done: {}", refused.stderr);

    let ended = run(&key);
    let facts = ended.json();
    assert_eq!(
        (ended.code, facts["verdict"].as_str()),
        (0, Some(world.sound_verdict())),
        "{facts:#}\n{}",
        ended.stderr
    );
    assert!(!ended.stderr.contains("not signed"), "{}", ended.stderr);
    let drill = facts["identity"]["drill_id"].as_str().expect("an id");
    let seen = world.json(&["drill", "audit", drill]);
    let signature = &seen["signatures"][0];
    assert_eq!(
        (signature["signer"].as_str(), signature["role"].as_str()),
        (Some("ada"), Some("operator")),
        "{seen:#}"
    );
    assert_eq!(signature["vouched"], true, "{seen:#}");
    // What was written is the account's; the key went nowhere.
    everything_belongs_to(&reports, uid, gid);
    everything_belongs_to(&world.repository(), uid, gid);
    let text = std::fs::read_to_string(&key).expect("the key");
    // Tag, digits, checksum.
    let secret = text.split_whitespace().rev().nth(1).expect("its digits");
    assert!(secret.len() > 30, "{} characters", secret.len());
    holds_nowhere(&reports, secret);
    holds_nowhere(&world.repository(), secret);
    assert!(!ended.stdout.contains(secret) && !ended.stderr.contains(secret));
}

fn holds_nowhere(folder: &Path, secret: &str) {
    for entry in std::fs::read_dir(folder).expect("folder").flatten() {
        let path = entry.path();
        if path.is_dir() {
            holds_nowhere(&path, secret);
        } else {
            let bytes = std::fs::read(&path).expect("a file");
            let found = bytes
                .windows(secret.len())
                .any(|window| window == secret.as_bytes());
            assert!(!found, "{} holds the key", path.display());
        }
    }
}

/// Root's restores are recorded as root's, and the account goes on from there.
fn what_root_recorded_belongs_to_the_account(world: &World, uid: u32, gid: u32) {
    everything_belongs_to(&world.repository(), uid, gid);
    let again = world.scratch().join("again").display().to_string();
    world.json(&["restore", "--to", "immediate", "--into", &again]);
    let seen = world.json(&["audit-log"]);
    let entries = seen["entries"].as_array().expect("entries");
    let actions: Vec<(&str, Option<u64>)> = entries
        .iter()
        .filter_map(|entry| {
            let uid = entry.pointer("/record/begun/by/uid")?.as_u64();
            Some((entry["what"].as_str()?, uid))
        })
        .collect();
    let own = Some(u64::from(uid));
    let root = Some(0);
    assert_eq!(
        actions,
        [("restore", root), ("restore-delta", root), ("restore", own)],
        "{seen:#}"
    );
    everything_belongs_to(&world.repository(), uid, gid);
}

/// What an operator does with the captured file: the generated one lets in the server's own account alone.
fn take_over_pg_hba(directory: &Path) {
    let original =
        std::fs::read(directory.join("pgproof.reference/pg_hba.conf")).expect("the original is kept");
    support::overwrite(&directory.join("pg_hba.conf"), &original);
}

fn as_root(world: &World, arguments: &[&str]) -> Value {
    let output = Command::new(env!("CARGO_BIN_EXE_pgproof"))
        .arg("--config")
        .arg(world.scratch().join("pgproof.toml"))
        .args(arguments)
        .arg("--json")
        .current_dir("/")
        .output()
        .expect("the program starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{said}");
    serde_json::from_slice(&output.stdout).expect("JSON")
}

fn everything_belongs_to(path: &Path, uid: u32, gid: u32) {
    let metadata = std::fs::symlink_metadata(path).expect("metadata");
    assert_eq!((metadata.uid(), metadata.gid()), (uid, gid), "{}", path.display());
    if metadata.is_dir() {
        for entry in std::fs::read_dir(path).expect("folder").flatten() {
            everything_belongs_to(&entry.path(), uid, gid);
        }
    }
}
