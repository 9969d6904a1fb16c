//! The drill of the drill: every fault is caught by the check that is there for it, each check is the only one that sees
//! some fault, and nothing of it touches the backups or production.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::Value;
use support::{World, check_of, configure};

const PROFILE: &str = r#"
[drill.everything]
rto = "1 h"
rpo = "1 h"
checks = ["row-proof", "page-checksums", "amcheck", "n-version"]

[drill.rows-alone]
checks = ["row-proof"]
"#;

/// A cluster with something to plant every fault into, and two backups of it.
fn world(name: &str) -> Option<World> {
    let world = World::start(name)?;
    world
        .session()
        .execute(
            "create table public.clients (id int primary key, name text not null);
             insert into public.clients select n, md5(n::text) from generate_series(1, 20000) n;
             create table public.bookings (id bigint generated always as identity primary key,
               client int references public.clients, at timestamptz default now());
             insert into public.bookings (client) select n from generate_series(1, 5000) n;",
        )
        .expect("tables");
    // Settled rows: a changed one needs a visibility that does not hang on anything else.
    for table in ["clients", "bookings"] {
        world
            .session()
            .execute(&format!("vacuum public.{table}"))
            .expect("vacuum");
    }
    world.json(&["backup"]);
    for round in 0..3 {
        world
            .session()
            .execute(&format!(
                "update public.clients set name = 'round {round}' where id % 97 = {round}"
            ))
            .expect("update");
        world.archive_all();
    }
    world.json(&["backup"]);
    configure(&world, PROFILE);
    Some(world)
}

fn rows(told: &Value) -> BTreeMap<String, Value> {
    let rows = told["selftest"]["faults"].as_array().expect("rows");
    rows.iter()
        .map(|row| (row["fault"].as_str().expect("a word").to_owned(), row.clone()))
        .collect()
}

/// Every object below the folder but evidence, with its size.
fn objects(folder: &Path, found: &mut BTreeMap<String, u64>) {
    for entry in std::fs::read_dir(folder).expect("folder").flatten() {
        let path = entry.path();
        let name = path.display().to_string();
        if path.is_dir() {
            objects(&path, found);
        } else if !["/evidence", "/leases/", "/tmp/", "/wal/"]
            .iter()
            .any(|part| name.contains(part))
        {
            found.insert(name, entry.metadata().expect("size").len());
        }
    }
}

#[test]
fn every_fault_is_caught_and_each_check_is_the_only_one_that_sees_some_fault() {
    let Some(world) = world("every_fault_is_caught_and_each_check_is_the_only_one_that_sees_some_fault")
    else {
        return;
    };
    let quarantined = world.sound_verdict() == "PASSED";
    let (mut before, mut after) = (BTreeMap::new(), BTreeMap::new());
    objects(&world.repository(), &mut before);
    let markers = "select count(*) from pgproof.drill_marker";
    let ended = world.run(&["drill", "selftest", "everything", "--json"]);
    let told = ended.json();
    let rows = rows(&told);
    let mut shown = BTreeSet::new();
    for (fault, row) in &rows {
        let host_rules_it_out = fault == "production-readable" && !quarantined;
        let fate = if host_rules_it_out {
            "not-planted"
        } else {
            "caught"
        };
        assert_eq!(row["fate"], fate, "{row:#}");
        assert_ne!(row["diagnosis"], "", "{row:#}");
        let by = row["caught_by"].as_array().expect("a list");
        if let [only] = by.as_slice() {
            shown.insert(only.as_str().expect("an id").to_owned());
        }
    }
    assert_eq!(
        (ended.code, told["status"].as_str()),
        (0, Some("PASSED")),
        "{told:#}"
    );
    assert!(rows.len() >= 12, "{}", rows.len());
    // Each check of the untouched drill is the only one that sees some fault, and so are those of other points.
    let checks = told["selftest"]["checks"].as_array().expect("checks");
    let others = ["standing-markers", "open", "plan", "restore"];
    for check in checks.iter().map(|id| id.as_str().expect("an id")).chain(others) {
        let host_rules_it_out = check == "quarantine" && !quarantined;
        assert!(
            host_rules_it_out || shown.contains(check),
            "{check} is never alone: {shown:?}"
        );
    }
    // The point was made once; nothing of the backups has changed, nor is a copy left.
    let row = world.session().one(markers).expect("markers");
    assert_eq!(row[0].as_deref(), Some("4"), "one bracket");
    objects(&world.repository(), &mut after);
    assert_eq!(before, after);
    world.run(&["verify"]).ok();
    let left: Vec<_> = std::fs::read_dir("/var/tmp")
        .expect("folder")
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().contains("drill-selftest"))
        .filter(|entry| std::fs::metadata(entry.path()).is_ok_and(|of| owner_of(&of) == world_account()))
        .collect();
    assert!(left.is_empty(), "{left:?}");
    // The untouched drill is evidence, with the matrix in it.
    let id = told["selftest"]["drill_id"].as_str().expect("an id");
    world.run(&["drill", "audit", id]).ok();
    let report = world.scratch().join("ops/drill-reports").join(id);
    let matrix = std::fs::read_to_string(report.join("selftest.md")).expect("the matrix");
    for fault in rows.keys() {
        assert_eq!(
            matrix.matches(&format!("| `{fault}` |")).count(),
            2,
            "{fault}\n{matrix}"
        );
    }
    assert_eq!(check_of(&told["untouched"], "row-proof")["result"], "PASS");
}

fn owner_of(metadata: &std::fs::Metadata) -> u32 {
    std::os::unix::fs::MetadataExt::uid(metadata)
}

fn world_account() -> u32 {
    match rustix::process::geteuid().is_root() {
        true => testing::account().expect("account").0,
        false => rustix::process::geteuid().as_raw(),
    }
}

#[test]
fn a_profile_that_does_not_look_misses_the_fault_and_the_self_test_says_so() {
    let Some(world) = world("a_profile_that_does_not_look_misses_the_fault_and_the_self_test_says_so") else {
        return;
    };
    let run = |faults: &[&str]| {
        let mut arguments = vec!["drill", "selftest", "rows-alone", "--json"];
        for fault in faults {
            arguments.extend(["--fault", fault]);
        }
        world.run(&arguments)
    };
    let ended = run(&["index-disordered", "row-changed"]);
    let told = ended.json();
    let rows = rows(&told);
    assert_eq!(
        (ended.code, told["status"].as_str()),
        (3, Some("FAILED")),
        "{told:#}"
    );
    assert_eq!(rows["index-disordered"]["fate"], "missed");
    assert_eq!(rows["row-changed"]["fate"], "caught");
    assert_eq!(rows.len(), 2);
    let ended = run(&["row-changed"]);
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    let ended = run(&["nonsense"]);
    assert_eq!(ended.code, 2, "{}", ended.stderr);
    assert!(ended.stderr.contains("error[selftest-fault]"), "{}", ended.stderr);
}
