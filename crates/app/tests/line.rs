//! The line from a backup to a recovery, as a user types it, against a real server: what is found, refused, kept and
//! stored, and with which exit codes.

mod support;

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::time::Duration;
use support::World;

const TABLES: &str = "
    create table public.orders (id int primary key, v text);
    insert into public.orders select n, md5(n::text) from generate_series(1, 30000) n;
    create table public.lines (id int primary key, v text);
    insert into public.lines select n, md5(n::text) from generate_series(1, 20000) n;
    create table public.notes (id int primary key, v text);
    insert into public.notes select n, md5(n::text) from generate_series(1, 20000) n;";

#[test]
fn what_happened_to_a_table_is_found_by_its_name_and_undone_exactly() {
    let Some(world) = World::start("what_happened_to_a_table_is_found_by_its_name_and_undone_exactly") else {
        return;
    };
    world.session().execute(TABLES).expect("tables");
    world.json(&["backup"]);
    world
        .session()
        .execute("update public.orders set v = v || '!' where id % 3 = 0")
        .expect("update");
    let before = testing::row_digest(&world.production.conninfo()).expect("digest");
    for (event, table, statement) in [
        ("drop", "orders", "drop table public.orders"),
        ("truncate", "public.lines", "truncate public.lines"),
        ("delete", "notes", "delete from public.notes"),
    ] {
        world.session().execute(statement).expect("the accident");
        world
            .session()
            .execute("create table if not exists public.later (n int); insert into public.later values (1)")
            .expect("work");
        world.archive_all();
        let found = world.json(&["find", "--table", table, "--event", event]);
        let events = found["events"].as_array().expect("events");
        assert_eq!(events.len(), 1, "{event}: {found:#}");
        assert_eq!(events[0]["event"], event);
        let xid = match &events[0]["xid"] {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        let name = table.rsplit('.').next().expect("name");
        let into = world.scratch().join(event);
        world.json(&[
            "restore",
            "--before-xid",
            &xid,
            "--into",
            &into.display().to_string(),
        ]);
        let restored = world.start_restored(&into);
        let after = testing::row_digest(&restored.conninfo()).expect("digest of the copy");
        restored.stop();
        let key = |digests: &std::collections::BTreeMap<String, String>| {
            digests
                .iter()
                .find(|(table, _)| table.ends_with(name))
                .map(|(_, digest)| digest.clone())
        };
        assert!(key(&after).is_some(), "{name} is missing in {after:?}");
        assert_eq!(key(&after), key(&before), "{event} {table}");
        // The target that is printed for people is the same point.
        let target = events[0]["target_before"]
            .as_str()
            .expect("target_before")
            .to_owned();
        let again = world.scratch().join(format!("{event}-by-lsn"));
        world.json(&["restore", "--to", &target, "--into", &again.display().to_string()]);
        let restored = world.start_restored(&again);
        assert_eq!(
            testing::row_digest(&restored.conninfo()).expect("digest"),
            after,
            "{event} by {target}"
        );
        restored.stop();
    }
}

#[test]
fn wal_get_and_wal_push_tell_absent_from_could_not_look_and_refuse_what_is_wrong() {
    let Some(world) =
        World::start("wal_get_and_wal_push_tell_absent_from_could_not_look_and_refuse_what_is_wrong")
    else {
        return;
    };
    world.session().execute(TABLES).expect("tables");
    for _ in 0..4 {
        world.session().execute("insert into public.orders select (select max(id) from public.orders) + n, 'x' from generate_series(1, 100) n").expect("work");
        world.archive_all();
    }
    let mut segments = segments(&world.repository());
    segments.sort_by_key(|path| path.file_name().map(std::ffi::OsStr::to_owned));
    let name = |path: &Path| path.file_name().expect("name").to_string_lossy()[..24].to_owned();
    let (first, second) = (segments[0].clone(), segments[1].clone());
    let placed = world.scratch().join("placed");
    let get = |file: &str| world.run(&["wal", "get", file, &placed.display().to_string()]);

    assert_eq!(get(&name(&first)).code, 0);
    assert_eq!(std::fs::metadata(&placed).expect("placed").len(), 16 << 20);
    std::fs::remove_file(&placed).expect("remove");
    assert_eq!(
        get("0000000100000FFF000000FF").code,
        1,
        "behind the archive's end"
    );
    assert_eq!(get("00000002.history").code, 1);
    assert_eq!(get("no such name").code, 126);
    assert_eq!(world.run(&["wal", "get", "--no-such-option"]).code, 126);

    // A gap: absent, but later segments exist.
    let aside = world.scratch().join("aside");
    std::fs::rename(&second, &aside).expect("move away");
    assert_eq!(get(&name(&second)).code, 126);
    std::fs::rename(&aside, &second).expect("move back");

    // Damage.
    let good = std::fs::read(&second).expect("read");
    let mut bad = good.clone();
    let middle = bad.len() / 2;
    bad[middle] ^= 1;
    support::overwrite(&second, &bad);
    let ended = get(&name(&second));
    assert_eq!(ended.code, 126, "{}", ended.stderr);
    assert!(ended.stderr.contains("error[object-damaged]"), "{}", ended.stderr);
    assert!(!placed.exists(), "nothing may stand under the final name");
    let verify = world.run(&["verify", "--json"]);
    assert_eq!(verify.code, 3, "{}", verify.stderr);
    assert!(verify.stdout.contains(&name(&second)), "{}", verify.stdout);
    support::overwrite(&second, &good);
    assert_eq!(world.run(&["verify"]).code, 0);

    // Pushing the same again is fine; the same name with other content is not, and neither is a cut segment.
    assert_eq!(get(&name(&first)).code, 0);
    let copy = world
        .production
        .data_directory()
        .join("pg_wal")
        .join(name(&first));
    let existed = copy.exists();
    std::fs::copy(&placed, &copy).expect("copy");
    support::give_to_account(&copy);
    let push = |path: &Path| {
        let mut command = world.command(&["wal", "push", &path.display().to_string()]);
        command.current_dir(world.production.data_directory());
        let output = command.output().expect("runs");
        (
            output.status.code().unwrap_or(-1),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    };
    assert_eq!(push(&copy), (0, String::new()));
    let mut other = std::fs::read(&copy).expect("read");
    let length = other.len();
    other[length - 9000] ^= 0x55;
    std::fs::write(&copy, &other).expect("write");
    let (code, said) = push(&copy);
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("error["), "{said}");
    other.truncate(5 << 20);
    std::fs::write(&copy, &other).expect("write");
    let (code, said) = push(&copy);
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("error["), "{said}");
    if !existed {
        std::fs::remove_file(&copy).expect("remove");
    }
    assert_eq!(world.run(&["verify"]).code, 0);
}

#[test]
fn a_target_that_cannot_be_reached_is_refused_before_anything_is_touched() {
    let Some(world) = World::start("a_target_that_cannot_be_reached_is_refused_before_anything_is_touched")
    else {
        return;
    };
    world.session().execute(TABLES).expect("tables");
    let early = world
        .session()
        .one("select pg_current_wal_insert_lsn()::text")
        .expect("lsn")[0]
        .clone()
        .expect("lsn");
    world.json(&["backup"]);
    world
        .session()
        .execute("update public.orders set v = 'a'")
        .expect("work");
    world.archive_all();
    let into = world.scratch().join("into");
    for target in [
        early.as_str(),
        "7FFF/0",
        "2001-01-01 00:00:00 UTC",
        "2099-01-01 00:00:00 UTC",
    ] {
        let ended = world.run(&["restore", "--to", target, "--into", &into.display().to_string()]);
        assert_eq!(ended.code, 1, "{target}: {}", ended.stdout);
        assert!(ended.stderr.contains("hint:"), "{target}: {}", ended.stderr);
        assert!(!into.exists(), "{target}");
    }
    // A dry run touches nothing either.
    world
        .run(&[
            "restore",
            "--to",
            "latest",
            "--into",
            &into.display().to_string(),
            "--dry-run",
        ])
        .ok();
    assert!(!into.exists());
    // What is no data directory is not touched; a data directory that stands in the way is kept aside.
    std::fs::create_dir(&into).expect("folder");
    std::fs::write(into.join("precious"), "keep me").expect("file");
    support::give_to_account(&into);
    let target = into.display().to_string();
    let ended = world.run(&["restore", "--to", "latest", "--into", &target]);
    assert_eq!(ended.code, 1, "{}", ended.stdout);
    std::fs::remove_file(into.join("precious")).expect("remove");
    world.json(&["restore", "--to", "latest", "--into", &target]);
    std::fs::write(into.join("precious"), "keep me").expect("file");
    support::give_to_account(&into.join("precious"));
    world.json(&["restore", "--to", "latest", "--into", &target]);
    let kept = std::fs::read_dir(world.scratch())
        .expect("scratch")
        .flatten()
        .map(|entry| entry.path().join("precious"))
        .find(|path| path.exists());
    assert!(
        kept.is_some_and(|path| !path.starts_with(&into)),
        "the old directory is kept"
    );
    let restored = world.start_restored(&into);
    let archiving = restored
        .session()
        .one("select current_setting('archive_mode')")
        .expect("setting")[0]
        .clone();
    assert_eq!(archiving.as_deref(), Some("off"));
    restored.stop();
    let segment = std::fs::read_dir(into.join("pg_wal"))
        .expect("pg_wal")
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.file_name().is_some_and(|name| name.len() == 24))
        .expect("a segment");
    let mut command = world.command(&["wal", "push", &segment.display().to_string()]);
    let output = command.current_dir(&into).output().expect("runs");
    assert_eq!(
        output.status.code(),
        Some(1),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn a_second_backup_stores_only_what_changed_and_a_killed_one_is_taken_up_again() {
    let Some(world) =
        World::start("a_second_backup_stores_only_what_changed_and_a_killed_one_is_taken_up_again")
    else {
        return;
    };
    world.session().execute("create table public.bulk as select n id, md5(n::text) || md5((n * 7)::text) v from generate_series(1, 1500000) n").expect("bulk");
    // Settled first: reading unvacuumed rows sets hint bits, and that changes every page.
    world
        .session()
        .execute("vacuum (freeze) public.bulk")
        .expect("vacuum");
    world.session().execute("checkpoint").expect("checkpoint");

    // Killed on the way, again and again, a little later each time.
    for milliseconds in [250, 600, 1000] {
        let mut child = world
            .command(&["backup"])
            .stderr(std::process::Stdio::null())
            .stdout(std::process::Stdio::null())
            .spawn()
            .expect("starts");
        std::thread::sleep(Duration::from_millis(milliseconds));
        let _ = child.kill();
        let _ = child.wait();
    }
    let listed = world.json(&["list"]);
    let finished = listed["backups"].as_array().expect("backups").len();
    let first = world.json(&["backup"]);
    let stored_objects = total(&world.repository(), "/packs/", ".rows");
    let alone = first["bytes_read"].as_u64().expect("bytes_read");
    if finished == 0 {
        // md5 text compresses about two to one: were anything stored twice, the packs would not fit below the data.
        assert!(stored_objects < alone, "{stored_objects} stored for {alone} read");
    }
    assert_eq!(world.run(&["verify"]).code, 0);

    world
        .session()
        .execute("update public.bulk set v = 'changed' where id between 1000 and 3000; checkpoint")
        .expect("update");
    let second = world.json(&["backup"]);
    let (read, stored) = (
        second["bytes_read"].as_u64().expect("read"),
        second["bytes_stored"].as_u64().expect("stored"),
    );
    // The new rows go where pages have room for one each: two thousand pages change.
    let whole = second["bytes_restored"].as_u64().expect("bytes_restored");
    assert!(
        read * 4 < whole && stored * 20 < whole,
        "the second backup read {read} and stored {stored} of {whole}"
    );
    // It is whole by itself: it restores although the first one is not looked at.
    let before = testing::row_digest(&world.production.conninfo()).expect("digest");
    world.archive_all();
    let into = world.scratch().join("whole");
    let id = second["backup"].as_str().expect("id");
    world.json(&[
        "restore",
        "--to",
        "latest",
        "--backup",
        id,
        "--into",
        &into.display().to_string(),
    ]);
    let restored = world.start_restored(&into);
    assert_eq!(testing::row_digest(&restored.conninfo()).expect("digest"), before);
    restored.stop();
}

#[test]
fn status_and_check_say_what_is_true() {
    let Some(world) = World::start("status_and_check_say_what_is_true") else {
        return;
    };
    world.session().execute(TABLES).expect("tables");
    world.json(&["backup"]);
    assert_eq!(world.run(&["check"]).code, 0, "{}", world.run(&["check"]).stdout);
    let ahead = |stdout: &str| {
        let line = stdout.lines().find(|line| line.contains("push-ahead"));
        line.unwrap_or_else(|| panic!("no word of pushing ahead in {stdout}"))
            .to_owned()
    };
    let good = world.run(&["check", "--no-switch"]);
    assert!(ahead(&good.stdout).contains("at once"), "{}", good.stdout);
    // Where the notes cannot lie, segments go one by one, and check says so.
    let path = world.scratch().join("pgproof.toml");
    let text = std::fs::read_to_string(&path).expect("configuration");
    let spool = format!("\narchive = {{ spool = {:?} }}\n\n[copy.", path.join("spool"));
    support::overwrite(&path, text.replacen("\n[copy.", &spool, 1).as_bytes());
    let bad = world.run(&["check", "--no-switch"]);
    assert!(ahead(&bad.stdout).contains("one by one"), "{}", bad.stdout);
    assert_eq!(bad.code, 0, "{}", bad.stdout);
    support::overwrite(&path, text.as_bytes());
    world.archive_all();
    let at_rest = world.json(&["status"]);
    let mut session = world.session();
    for n in 0..25 {
        session
            .execute(&format!(
                "insert into public.orders values ({}, 'x')",
                100_000 + n
            ))
            .expect("insert");
    }
    let status = world.json(&["status"]);
    let cluster = &status["clusters"][0];
    assert!(
        cluster["gaps"].as_array().is_some_and(Vec::is_empty),
        "{status:#}"
    );
    let commits = cluster["rpo"]["commits"].as_u64().expect("commits");
    let resting = at_rest["clusters"][0]["rpo"]["commits"]
        .as_u64()
        .expect("commits");
    assert!(
        commits >= resting + 25 && commits <= resting + 30,
        "{resting} then {commits}: {status:#}"
    );
    assert!(cluster["rpo"]["bytes"].as_u64().expect("bytes") > 0);
    assert!(
        cluster["recoverable"]["from"].is_string() && cluster["recoverable"]["to"].is_string(),
        "{status:#}"
    );
}

#[test]
fn a_second_server_may_not_archive_until_it_takes_over() {
    let Some(world) = World::start("a_second_server_may_not_archive_until_it_takes_over") else {
        return;
    };
    world.archive_all();
    // The same server under another name: a clone looks exactly like this.
    let moved = world.scratch().join("moved");
    std::fs::create_dir_all(moved.join("pg_wal")).expect("folder");
    std::fs::create_dir_all(moved.join("global")).expect("folder");
    let origin = world.production.data_directory();
    std::fs::copy(origin.join("global/pg_control"), moved.join("global/pg_control")).expect("pg_control");
    let segment = world
        .session()
        .one("select last_archived_wal from pg_stat_archiver")
        .expect("segment")[0]
        .clone()
        .expect("name");
    std::fs::copy(
        origin.join("pg_wal").join(&segment),
        moved.join("pg_wal").join(&segment),
    )
    .expect("segment");
    support::give_to_account(&moved);
    let push = |directory: &Path| {
        let mut command = world.command(&["wal", "push", &format!("pg_wal/{segment}")]);
        let output = command.current_dir(directory).output().expect("runs");
        (
            output.status.code().unwrap_or(-1),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    };
    let refused = |directory: &Path| {
        let (code, said) = push(directory);
        assert_eq!(code, 1, "{said}");
        assert!(said.contains("error[wal-second-writer]"), "{said}");
    };
    assert_eq!(push(origin), (0, String::new()));
    refused(&moved);

    // The one that takes over archives from then on, and the other one no longer.
    let text = std::fs::read_to_string(world.scratch().join("pgproof.toml")).expect("configuration");
    let theirs = world.scratch().join("moved.toml");
    let origin_text = origin.display().to_string();
    assert!(text.contains(&origin_text), "{text}");
    std::fs::write(&theirs, text.replace(&origin_text, &moved.display().to_string())).expect("write");
    let take_over = |configuration: &Path, option: &[&str]| {
        let arguments: Vec<&str> = ["wal", "take-over"].iter().chain(option).copied().collect();
        let output = world
            .command_with(configuration, &arguments)
            .output()
            .expect("runs");
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    };
    take_over(&theirs, &["--dry-run"]);
    refused(&moved);
    take_over(&theirs, &[]);
    assert_eq!(push(&moved), (0, String::new()));
    refused(origin);
    take_over(&world.scratch().join("pgproof.toml"), &[]);
    assert_eq!(push(origin), (0, String::new()));
}

/// Every WAL segment object.
fn segments(repository: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![repository.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("folder").flatten() {
            let path = entry.path();
            let name = entry.file_name().to_string_lossy().into_owned();
            if path.is_dir() {
                folders.push(path);
            } else if name.find('.') == Some(24)
                && name[..24].bytes().all(|b| b.is_ascii_hexdigit())
                && name.len() == 57
            {
                found.push(path);
            }
        }
    }
    assert!(found.len() >= 3, "{found:?}");
    found
}

/// Bytes of all objects below `repository` whose path contains `part` and ends with `ending`.
fn total(folder: &Path, part: &str, ending: &str) -> u64 {
    let mut sum = 0;
    for entry in std::fs::read_dir(folder).expect("folder").flatten() {
        let path = entry.path();
        let text = path.to_string_lossy().into_owned();
        if path.is_dir() {
            sum += total(&path, part, ending);
        } else if text.contains(part) && text.ends_with(ending) {
            sum += entry.metadata().expect("size").len();
        }
    }
    sum
}
