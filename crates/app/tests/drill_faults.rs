//! A drill that cannot fail proves nothing: each fault makes it end with FAILED, exit code 3 and a reason of its own, and
//! the untouched twin passes before and after.

mod support;

use postgres::SystemIdentifier;
use repository::WalFileKind;
use serde_json::Value;
use std::path::{Path, PathBuf};
use support::World;

#[test]
fn each_fault_fails_the_drill_with_its_own_reason_and_the_twin_passes() {
    let Some(world) = World::start("each_fault_fails_the_drill_with_its_own_reason_and_the_twin_passes")
    else {
        return;
    };
    world
        .session()
        .execute(
            "create table public.a (id int primary key, v text);
             insert into public.a select n, md5(n::text) from generate_series(1, 20000) n;
             create table public.b as select * from public.a;
             create table public.c (id bigint generated always as identity primary key, at timestamptz default now());
             insert into public.c (at) select now() from generate_series(1, 5000);",
        )
        .expect("tables");
    // Settled rows: the fault of a changed row needs one whose visibility does not hang on anything else.
    world.session().execute("vacuum public.b").expect("vacuum");
    world.json(&["backup"]);
    for round in 0..3 {
        world
            .session()
            .execute(&format!(
                "update public.a set v = 'round {round}' where id % 7 = {round}"
            ))
            .expect("update");
        world.archive_all();
    }

    let verdict = world.sound_verdict();
    passes(&world, verdict);

    // A segment between the backup and the point is gone.
    let segment = middle_segment(&world.repository());
    let aside = world.scratch().join("aside");
    std::fs::rename(&segment, &aside).expect("move the segment away");
    fails(&world, "wal-missing", &[]);
    std::fs::rename(&aside, &segment).expect("move the segment back");

    // One byte of a frame is damaged.
    let pack = largest(&world.repository(), ".rows");
    let good = std::fs::read(&pack).expect("read the pack");
    let mut bad = good.clone();
    let middle = bad.len() / 2;
    bad[middle] ^= 0x10;
    support::overwrite(&pack, &bad);
    fails(&world, "object-damaged", &[]);
    support::overwrite(&pack, &good);

    // A copy that was allowed to archive left a history file that forks off before the archive's end.
    let history = poison_history(&world);
    fails(&world, "history-poisoned", &[]);
    std::fs::remove_file(&history).expect("remove the poisoned history file");

    // The target lies beyond what is archived.
    fails(&world, "target-unreachable", &["--target", "7FFF/0"]);

    // One row of the copy is another one, under a valid page checksum.
    fails(&world, "rows-differ", &["--plant", "row-changed"]);

    // The copy inherited a command that would archive.
    fails(
        &world,
        "archive-command-would-run",
        &["--plant", "archive-command"],
    );

    passes(&world, verdict);
}

fn passes(world: &World, verdict: &str) {
    let facts = world.drill(verdict, &["quarantine"]);
    // The evidence in the local folder says the same.
    let report = PathBuf::from(facts["report"].as_str().expect("the report's path"));
    let kept = std::fs::read(report.with_extension("").join("facts.json")).expect("facts.json");
    let kept: Value = serde_json::from_slice(&kept).expect("facts.json is JSON");
    assert_eq!(kept["verdict"], verdict);
}

fn fails(world: &World, reason: &str, options: &[&str]) {
    let arguments: Vec<&str> = ["drill", "run", "--json"]
        .iter()
        .chain(options)
        .copied()
        .collect();
    let ended = world.run(&arguments);
    let facts = ended.json();
    let codes: Vec<&str> = facts["reasons"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|r| r["code"].as_str())
        .collect();
    assert_eq!(
        (ended.code, facts["verdict"].as_str()),
        (3, Some("FAILED")),
        "{reason}: {facts:#}\n{}",
        ended.stderr
    );
    assert!(
        codes.contains(&reason),
        "expected reason {reason}, got {codes:?}\n{:#}",
        facts["checks"]
    );
}

/// All objects below a folder whose name ends so, with their sizes.
fn objects(folder: &Path, ending: &str) -> Vec<(u64, PathBuf)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).expect("folder").flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(objects(&path, ending));
        } else if path.to_string_lossy().ends_with(ending) {
            found.push((entry.metadata().expect("size").len(), path));
        }
    }
    found.sort();
    found
}

fn largest(repository: &Path, ending: &str) -> PathBuf {
    objects(repository, ending).pop().expect("an object").1
}

/// A segment that lies behind the backup and before the newest one.
fn middle_segment(repository: &Path) -> PathBuf {
    let mut segments: Vec<PathBuf> = objects(repository, "")
        .into_iter()
        .map(|(_, path)| path)
        .filter(|path| path.to_string_lossy().contains("/wal/"))
        .filter(|path| {
            path.file_name()
                .is_some_and(|n| n.to_string_lossy().find('.') == Some(24))
        })
        .filter(|path| {
            !path.to_string_lossy().contains("/label/") && !path.to_string_lossy().contains("/partial/")
        })
        .collect();
    segments.sort();
    assert!(segments.len() >= 4, "{segments:?}");
    segments.remove(segments.len() - 2)
}

/// Puts the history file of a timeline that production never was on into the archive; gives the object's file.
fn poison_history(world: &World) -> PathBuf {
    let control = cluster::data_directory::read_control_file(world.production.data_directory())
        .expect("pg_control")
        .1;
    let fork = postgres::Lsn(control.checkpoint_redo.0);
    let text = format!("1\t{fork}\tno recovery target specified\n");
    let key = std::fs::read_to_string(largest(world.scratch(), ".key")).expect("the key");
    let key = repository::RecipientKey::from_key_file_text(&key).expect("the key reads");
    let store = repository::open_store(&format!("file://{}", world.repository().display())).expect("store");
    let opened = repository::Repository::open(store, &key).expect("the repository opens");
    let system: SystemIdentifier = control.system_identifier;
    opened
        .cluster("main")
        .expect("cluster")
        .put_file(system, WalFileKind::History, "00000002.history", text.as_bytes())
        .expect("put");
    let (_, path) = objects(&world.repository(), "")
        .into_iter()
        .find(|(_, path)| path.to_string_lossy().contains("/history/00000002.history"))
        .expect("the poisoned history file is in the repository");
    if rustix::process::geteuid().is_root() {
        let (uid, gid) = testing::account().expect("account");
        let mut folder = path.as_path();
        while folder != world.repository() {
            std::os::unix::fs::chown(folder, Some(uid), Some(gid)).expect("chown");
            folder = folder.parent().expect("a parent");
        }
    }
    path
}
