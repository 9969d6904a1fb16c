//! Root restores a server of another account, whose configuration lies outside of the data directory (as Debian has it):
//! every file is that account's, and the server starts with what was put there.

mod support;

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

use cluster::StopMode;
use serde_json::Value;
use support::World;

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
