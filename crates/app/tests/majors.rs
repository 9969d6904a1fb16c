//! The whole way, from `init` to a drill, with each major version of PostgreSQL that pgproof supports.
//!
//! Where `./test` could not get the servers of a major, it leaves its tests out by their names, and says so.

mod support;

use serde_json::Value;
use std::time::Duration;
use support::World;
use testing::Workload;

/// `bulk` does not change after it was made; `orders` gets lost.
const TABLES: &str = "
    create extension amcheck;
    create table public.bulk as select n id, md5(n::text) v from generate_series(1, 150000) n;
    create table public.orders (id int primary key, v text, at timestamptz default now(), doc jsonb);
    insert into public.orders select n, md5(n::text), now(), jsonb_build_object('n', n) from generate_series(1, 20000) n;
    create table public.wide (id bigint generated always as identity primary key, v text);
    insert into public.wide (v) select string_agg(md5((n * m)::text), '') from generate_series(1, 40) n,
        generate_series(1, 300) m group by n;
    create materialized view public.summary as select count(*), sum(id) from public.orders;";

fn round_trip(test: &str, major: u16) {
    let Some(world) = World::start_major(test, major) else {
        return;
    };
    let checked = world.run(&["check"]);
    assert_eq!(checked.code, 0, "{}\n{}", checked.stdout, checked.stderr);
    let mut session = world.session();
    session.execute(TABLES).expect("tables");
    // Frozen first, so that reading it later sets no hint bits.
    session.execute("vacuum (freeze) public.bulk").expect("vacuum");
    session.execute("checkpoint").expect("checkpoint");

    // A backup under load, and one that stores only what changed.
    let load = Workload::start(&world.production.conninfo(), 2).expect("load");
    std::thread::sleep(Duration::from_millis(300));
    let first = world.json(&["backup"]);
    std::thread::sleep(Duration::from_millis(300));
    let done = load.stop().expect("the load stops");
    assert!(done.commits > 20 && done.errors.is_empty(), "{done:?}");
    session
        .execute("update public.orders set v = 'changed' where id between 500 and 900")
        .expect("update");
    let second = world.json(&["backup"]);
    let number = |value: &Value, key: &str| {
        value[key]
            .as_u64()
            .unwrap_or_else(|| panic!("{key} in {value:#}"))
    };
    assert!(
        number(&second, "bytes_stored") * 4 < number(&first, "bytes_read")
            && number(&second, "bytes_read") < number(&first, "bytes_read"),
        "{second:#}"
    );
    assert!(
        number(&second, "pages_reused") > 1000 && number(&second, "pages_stored") > 0,
        "{second:#}"
    );

    // The accident, found by the table's name, and undone.
    session
        .execute("update public.orders set v = 'last' where id = 7; refresh materialized view public.summary")
        .expect("update");
    let before = testing::row_digest(&world.production.conninfo()).expect("digest");
    assert!(
        before.len() >= 7 && before.contains_key("public.orders"),
        "{before:?}"
    );
    session
        .execute("drop table public.orders cascade")
        .expect("the accident");
    session
        .execute("create table public.later (n int)")
        .expect("work");
    world.archive_all();
    let found = world.json(&["find", "--table", "orders", "--event", "drop"]);
    let events = found["events"].as_array().expect("events");
    assert_eq!(events.len(), 1, "{found:#}");
    let target = events[0]["target_before"].as_str().expect("target_before");
    for (name, backup) in [("best", None), ("first", first["backup"].as_str())] {
        let into = world.scratch().join(name);
        let place = into.display().to_string();
        let mut arguments = vec!["restore", "--to", target, "--into", &place];
        arguments.extend(backup.into_iter().flat_map(|backup| ["--backup", backup]));
        let restored = world.json(&arguments);
        if name == "best" {
            assert!(
                restored
                    .to_string()
                    .contains(second["backup"].as_str().expect("id")),
                "{restored:#}"
            );
        }
        let restored = world.start_restored(&into);
        let after = testing::row_digest(&restored.conninfo()).expect("digest of the copy");
        restored.stop();
        assert_eq!(after, before, "from the {name} backup");
        std::fs::remove_dir_all(&into).expect("the copy can be removed");
    }

    // The proof, and everything that is kept.
    let facts = world.sound_drill();
    for check in ["amcheck", "page-checksums"] {
        assert_eq!(support::check_of(&facts, check)["result"], "PASS", "{facts:#}");
    }
    let verified = world.json(&["verify"]);
    assert_eq!(
        verified["findings"].as_array().map(Vec::len),
        Some(0),
        "{verified:#}"
    );
    let status = world.json(&["wal", "status"]);
    assert_eq!(status["gaps"].as_array().map(Vec::len), Some(0), "{status:#}");
}

#[test]
fn postgresql_13_comes_back_row_by_row() {
    round_trip("postgresql_13_comes_back_row_by_row", 13);
}

#[test]
fn postgresql_14_comes_back_row_by_row() {
    round_trip("postgresql_14_comes_back_row_by_row", 14);
}

#[test]
fn postgresql_15_comes_back_row_by_row() {
    round_trip("postgresql_15_comes_back_row_by_row", 15);
}

#[test]
fn postgresql_16_comes_back_row_by_row() {
    round_trip("postgresql_16_comes_back_row_by_row", 16);
}

#[test]
fn postgresql_17_comes_back_row_by_row() {
    round_trip("postgresql_17_comes_back_row_by_row", 17);
}

#[test]
fn postgresql_18_comes_back_row_by_row() {
    round_trip("postgresql_18_comes_back_row_by_row", 18);
}
