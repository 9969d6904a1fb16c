//! Tablespaces of a restored directory: never another cluster's, always where somebody said or can see.

mod support;

use std::path::{Path, PathBuf};

use cluster::StopMode;
use support::{Ended, World};

#[test]
fn tablespaces_go_where_they_are_mapped_and_never_where_another_cluster_has_them() {
    let Some(mut world) =
        World::start("tablespaces_go_where_they_are_mapped_and_never_where_another_cluster_has_them")
    else {
        return;
    };
    let fast = folder(&world, "fast");
    let in_place = world.session().version_num() >= 150_000;
    execute(
        &world,
        &format!("create tablespace fast location '{}'", fast.display()),
    );
    execute(
        &world,
        "create table public.lines tablespace fast as select n, md5(n::text) v from generate_series(1, 9000) n",
    );
    if in_place {
        let mut session = world.session();
        session
            .execute("set allow_in_place_tablespaces = on")
            .expect("a developer's setting");
        session
            .execute("create tablespace inside location ''")
            .expect("an in-place tablespace");
        execute(
            &world,
            "create table public.kept tablespace inside as select n from generate_series(1, 3000) n",
        );
    }
    world.json(&["backup"]);
    execute(&world, "insert into public.lines values (0, 'after the backup')");
    let before = testing::row_digest(&world.production.conninfo()).expect("digest");
    let point = world
        .session()
        .one("select pg_current_wal_insert_lsn()::text")
        .expect("position")[0]
        .clone()
        .expect("LSN");
    let late = folder(&world, "late");
    execute(
        &world,
        &format!("create tablespace late location '{}'", late.display()),
    );
    execute(
        &world,
        "create table public.newest tablespace late as select n from generate_series(1, 2000) n",
    );
    let after = testing::row_digest(&world.production.conninfo()).expect("digest");
    world.archive_all();

    let into = world.scratch().join("copy");
    let restore = |arguments: &[&str]| -> Ended {
        let text = into.display().to_string();
        let all: Vec<&str> = ["restore", "--json", "--into", &text]
            .iter()
            .chain(arguments)
            .copied()
            .collect();
        world.run(&all)
    };
    // Into production's own, into a folder that holds something, and through replay.
    let own = format!("fast={}", fast.display());
    refused(
        &restore(&["--to", &point, "--tablespace-mapping", &own]),
        "tablespace-location-live",
    );
    let occupied = folder(&world, "occupied");
    std::fs::write(occupied.join("letter"), "x").expect("write");
    let occupied = format!("fast={}", occupied.display());
    refused(
        &restore(&["--to", &point, "--tablespace-mapping", &occupied]),
        "tablespace-location-in-use",
    );
    refused(&restore(&["--to", "latest"]), "tablespace-created-live");
    refused(
        &restore(&["--to", "latest", "--allow-created-tablespaces"]),
        "tablespace-created-in-use",
    );
    assert!(!into.exists(), "nothing was touched");

    // By the old path, and below a folder.
    let (mapped, below) = (world.scratch().join("mapped"), world.scratch().join("below"));
    let by_path = format!("{}={}", fast.display(), mapped.display());
    let below_text = below.display().to_string();
    for (arguments, location) in [
        (["--tablespace-mapping", by_path.as_str()], mapped),
        (["--tablespaces-into", below_text.as_str()], below.join("fast")),
    ] {
        restore(&[&["--to", point.as_str()], arguments.as_slice()].concat()).ok();
        assert!(links(&into).contains(&location), "{:?}", links(&into));
        let map = std::fs::read_to_string(into.join("tablespace_map")).expect("tablespace_map");
        assert!(
            map.contains(&location.display().to_string()) && !map.contains(&fast.display().to_string()),
            "{map}"
        );
        let restored = world.start_restored(&into);
        let found = testing::row_digest(&restored.conninfo()).expect("digest of the restored server");
        restored.stop();
        assert_eq!(found, before);
        assert!(
            std::fs::read_dir(&location)
                .expect("the location")
                .next()
                .is_some()
        );
        std::fs::remove_dir_all(&into).expect("the copy can be removed");
    }

    // Nobody uses the path any more: replay makes the tablespace there.
    world.production.stop(StopMode::Fast).expect("production stops");
    std::fs::rename(&late, world.scratch().join("late.moved")).expect("rename");
    let text = into.display().to_string();
    let elsewhere = format!("fast={}", world.scratch().join("elsewhere").display());
    let arguments = [
        "restore",
        "--to",
        "latest",
        "--into",
        &text,
        "--tablespace-mapping",
        &elsewhere,
        "--allow-created-tablespaces",
    ];
    world.json(&arguments);
    assert!(late.is_dir());
    let restored = world.start_restored(&into);
    let found = testing::row_digest(&restored.conninfo()).expect("digest of the restored server");
    restored.stop();
    assert_eq!(found, after);
}

fn refused(ended: &Ended, code: &str) {
    assert_eq!(ended.code, 1, "{}\n{}", ended.stdout, ended.stderr);
    assert!(ended.stderr.contains(code), "{code} is not in:\n{}", ended.stderr);
}

fn execute(world: &World, statement: &str) {
    world
        .session()
        .execute(statement)
        .unwrap_or_else(|error| panic!("{statement}: {error}"));
}

fn folder(world: &World, name: &str) -> PathBuf {
    world.production.scratch().subfolder(name).expect("folder")
}

/// Where the links of `pg_tblspc` lead.
fn links(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory.join("pg_tblspc")).expect("pg_tblspc");
    entries
        .flatten()
        .filter_map(|entry| std::fs::read_link(entry.path()).ok())
        .collect()
}
