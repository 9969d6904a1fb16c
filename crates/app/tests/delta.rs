//! `restore --delta`: the one restore that destroys. What it refuses, that it compares digests, follows no links,
//! leaves nothing that does not belong, loses no WAL, and can be killed at any moment.

mod support;

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use cluster::StopMode;
use support::{World, give_to_account};

/// How often a restore is killed before one is left in peace.
const KILLS: u64 = 8;

#[test]
fn a_delta_that_was_killed_again_and_again_leaves_the_identical_directory() {
    let Some(mut world) =
        World::start("a_delta_that_was_killed_again_and_again_leaves_the_identical_directory")
    else {
        return;
    };
    let fast = folder(&world, "fast");
    let mut session = world.session();
    session
        .execute(
            "create table public.orders (id int primary key, v text);
             insert into public.orders select n, md5(n::text) from generate_series(1, 60000) n",
        )
        .expect("a table");
    session
        .execute(&format!("create tablespace fast location '{}'", fast.display()))
        .expect("a tablespace");
    session
        .execute("create table public.lines tablespace fast as select n, md5(n::text) v from generate_series(1, 30000) n")
        .expect("a table in it");
    world.json(&["backup"]);
    let into = world.production.data_directory().to_owned();
    let into_text = into.display().to_string();

    // What can be compared with: the same backup, restored in the ordinary way.
    let reference = world.scratch().join("reference");
    let reference_text = reference.display().to_string();
    let mapping = format!("fast={}", world.scratch().join("reference-fast").display());
    world.json(&[
        "restore",
        "--to",
        "latest",
        "--into",
        &reference_text,
        "--tablespace-mapping",
        &mapping,
    ]);

    session
        .execute(
            "update public.orders set v = 'changed' where id % 7 = 0;
             create table public.extra tablespace fast as select 1 n;
             create table public.extra2 as select n from generate_series(1, 1000) n;
             insert into public.lines values (0, 'the last row, in no archive')",
        )
        .expect("changes");
    let expected = testing::row_digest(&world.production.conninfo()).expect("digest");
    drop(session);

    let delta = [
        "restore",
        "--delta",
        "--to",
        "latest",
        "--into",
        into_text.as_str(),
    ];
    let confirmed: Vec<&str> = delta
        .iter()
        .copied()
        .chain(["--confirm", "main", "--json"])
        .collect();
    let live = world.run(&confirmed);
    assert_eq!(live.code, 1, "{}", live.stderr);
    assert!(live.stderr.contains("destination-live"), "{}", live.stderr);
    world
        .production
        .stop(StopMode::Immediate)
        .expect("production stops");

    let unconfirmed = world.run(&delta);
    assert_eq!(
        (
            unconfirmed.code,
            unconfirmed.stderr.contains("confirmation-missing")
        ),
        (2, true)
    );
    let mistyped: Vec<&str> = delta.iter().copied().chain(["--confirm", "mian"]).collect();
    let mistyped = world.run(&mistyped);
    assert_eq!(
        (mistyped.code, mistyped.stderr.contains("confirmation-wrong")),
        (2, true)
    );
    assert!(into.join("global/pg_control").is_file(), "nothing was touched");

    let precious = plant_what_does_not_belong(&world, &into, &fast);

    let planned: Vec<&str> = delta.iter().copied().chain(["--dry-run", "--json"]).collect();
    let planned = world.run(&planned).ok().json();
    assert!(
        into.join("global/pg_control").is_file(),
        "a dry run touches nothing"
    );
    let counts = &planned["delta"];
    let number = |name: &str| {
        counts[name]
            .as_u64()
            .unwrap_or_else(|| panic!("{name} in {counts:#}"))
    };
    assert!(number("bytes_compared") > 10 << 20, "{counts:#}");
    assert!(
        number("bytes_written") < number("bytes_compared") / 2,
        "{counts:#}"
    );
    assert!(number("removed") >= 7, "{counts:#}");

    let mut half = 0;
    for kill in 0..KILLS {
        let mut command = world.command(&confirmed);
        command
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null());
        let mut child = command.spawn().expect("the program starts");
        // The first as soon as pg_control is away, the others anywhere.
        while kill == 0 && into.join("global/pg_control").exists() {
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_millis(kill * 60 + u64::from(random()) % 60));
        // It may have come to its end already.
        let _ = child.kill();
        let status = child.wait().expect("it ends");
        if into.join("pgproof.delta").exists() && !into.join("global/pg_control").exists() {
            half += 1;
        } else if status.success() {
            break;
        }
    }
    println!("{half} of {KILLS} kills left a half-done directory");
    assert!(half > 1, "no kill came while the directory was half done");
    let result = world.run(&confirmed).ok().json();
    let done = &result["result"]["delta"];
    assert!(done["bytes_compared"].as_u64() > Some(10 << 20), "{done:#}");
    assert!(!into.join("pgproof.delta").exists());

    assert_eq!(
        std::fs::read(precious.join("file")).expect("precious"),
        b"precious"
    );
    assert_eq!(
        std::fs::read(precious.join("hard")).expect("precious"),
        b"precious"
    );
    assert!(
        fast.join("PG_not_ours/x").is_file(),
        "another cluster's folder in a tablespace stays"
    );
    let (one, other) = (tree(&reference), tree(&into));
    for (path, entry) in &one {
        assert_eq!(Some(entry), other.get(path), "{path}");
    }
    for path in other.keys() {
        assert!(one.contains_key(path), "{path} does not belong");
    }

    let restored = world.start_restored(&into);
    let found = testing::row_digest(&restored.conninfo()).expect("digest of the restored server");
    restored.stop();
    assert_eq!(found, expected, "the row that only pg_wal had is there too");
}

/// Changes that only digests see, and links that lead outside. Returns the folder that must stay as it is.
fn plant_what_does_not_belong(world: &World, into: &Path, fast: &Path) -> PathBuf {
    let precious = folder(world, "precious");
    std::fs::write(precious.join("file"), "precious").expect("write");
    let base = into.join("base").join(
        std::fs::read_dir(into.join("base"))
            .expect("base")
            .flatten()
            .map(|entry| entry.file_name())
            .max()
            .expect("a database"),
    );
    let mut large: Vec<PathBuf> = std::fs::read_dir(&base)
        .expect("files")
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.metadata().is_ok_and(|metadata| metadata.len() > 32768))
        .collect();
    large.sort();
    // The same size, the same time, another content.
    let victim = large.last().expect("a large file");
    let times = std::fs::metadata(victim)
        .expect("metadata")
        .modified()
        .expect("time");
    let mut bytes = std::fs::read(victim).expect("read");
    bytes[20_000] ^= 0x40;
    std::fs::write(victim, &bytes).expect("write");
    let file = std::fs::File::options().write(true).open(victim).expect("open");
    file.set_modified(times).expect("time");
    // Longer, shorter, away, and with other permissions.
    std::fs::write(&large[0], vec![7; 100_000]).expect("write");
    std::fs::File::options()
        .write(true)
        .open(&large[1])
        .expect("open")
        .set_len(8192)
        .expect("truncate");
    std::fs::remove_file(&large[2]).expect("remove");
    std::fs::set_permissions(&large[3], std::fs::Permissions::from_mode(0o644)).expect("mode");
    // A link, and a second name of a file outside, in the places of files; a link in the place of a folder.
    std::fs::remove_file(&large[4]).expect("remove");
    std::os::unix::fs::symlink(precious.join("file"), &large[4]).expect("link");
    std::fs::write(precious.join("hard"), "precious").expect("write");
    std::fs::remove_file(&large[5]).expect("remove");
    std::fs::hard_link(precious.join("hard"), &large[5]).expect("hard link");
    std::fs::remove_dir_all(into.join("pg_subtrans")).expect("remove");
    std::os::unix::fs::symlink(&precious, into.join("pg_subtrans")).expect("link");
    // What no backup has.
    std::fs::write(into.join("base/stray"), "x").expect("write");
    std::fs::create_dir_all(into.join("base/strays/deep")).expect("folder");
    std::os::unix::fs::symlink(&precious, into.join("base/strays/deep/link")).expect("link");
    std::fs::create_dir(fast.join("PG_not_ours")).expect("folder");
    std::fs::write(fast.join("PG_not_ours/x"), "another cluster's").expect("write");
    give_to_account(&precious);
    for path in [&into.join("base"), fast, &base] {
        for entry in std::fs::read_dir(path).expect("folder").flatten() {
            if !entry.file_type().expect("type").is_symlink() {
                give_to_account(&entry.path());
            }
        }
    }
    precious
}

#[test]
fn a_delta_into_another_clusters_directory_is_refused() {
    let Some(world) = World::start("a_delta_into_another_clusters_directory_is_refused") else {
        return;
    };
    world.json(&["backup"]);
    let mut other = testing::TestCluster::start(&testing::TestOptions::default()).expect("another cluster");
    let directory = other.data_directory().to_owned();
    let text = directory.display().to_string();
    let arguments = [
        "restore",
        "--delta",
        "--confirm",
        "main",
        "--to",
        "latest",
        "--into",
        &text,
    ];
    let live = world.run(&arguments);
    assert_eq!(
        (live.code, live.stderr.contains("destination-live")),
        (1, true),
        "{}",
        live.stderr
    );
    // Its processes count when somebody took postmaster.pid away.
    let pid = std::fs::read(directory.join("postmaster.pid")).expect("pid file");
    std::fs::remove_file(directory.join("postmaster.pid")).expect("remove");
    let live = world.run(&arguments);
    assert_eq!(
        (live.code, live.stderr.contains("destination-live")),
        (1, true),
        "{}",
        live.stderr
    );
    std::fs::write(directory.join("postmaster.pid"), pid).expect("pid file");
    give_to_account(&directory.join("postmaster.pid"));
    other.stop(StopMode::Fast).expect("it stops");
    let foreign = world.run(&arguments);
    assert_eq!(
        (foreign.code, foreign.stderr.contains("destination-foreign")),
        (1, true),
        "{}",
        foreign.stderr
    );
    std::fs::remove_file(directory.join("global/pg_control")).expect("remove");
    let unknown = world.run(&arguments);
    assert_eq!(
        (unknown.code, unknown.stderr.contains("destination-unidentified")),
        (1, true),
        "{}",
        unknown.stderr
    );
    assert!(directory.join("PG_VERSION").is_file());
}

fn random() -> u8 {
    let mut bytes = [0; 1];
    getrandom::fill(&mut bytes).expect("random numbers");
    bytes[0]
}

fn folder(world: &World, name: &str) -> PathBuf {
    let path = world.scratch().join(name);
    std::fs::create_dir(&path).expect("folder");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).expect("mode");
    give_to_account(&path);
    path
}

/// Every file below a data directory, its tablespaces included: permissions, owner and content; but for what says
/// when and where it was restored.
fn tree(directory: &Path) -> BTreeMap<String, (u32, u32, Vec<u8>)> {
    const APART: [&str; 4] = [
        "pgproof.restored",
        "postgresql.auto.conf",
        "tablespace_map",
        "pg_wal/0",
    ];
    let mut found = BTreeMap::new();
    let mut left = vec![(directory.to_owned(), String::new())];
    while let Some((folder, prefix)) = left.pop() {
        for entry in std::fs::read_dir(&folder).expect("folder").flatten() {
            let path = format!("{prefix}{}", entry.file_name().to_string_lossy());
            let below_tablespace = prefix.starts_with("pg_tblspc/") && prefix.matches('/').count() == 2;
            if APART.iter().any(|apart| path.starts_with(apart))
                || below_tablespace && path.contains("not_ours")
            {
                continue;
            }
            let metadata = std::fs::metadata(entry.path()).expect("metadata");
            let content = if metadata.is_dir() {
                left.push((entry.path(), format!("{path}/")));
                Vec::new()
            } else {
                std::fs::read(entry.path()).expect("content")
            };
            // A location's own permissions are its owner's affair.
            let mode = if prefix == "pg_tblspc/" {
                0
            } else {
                metadata.mode()
            };
            found.insert(path, (mode, metadata.uid(), content));
        }
    }
    found
}
