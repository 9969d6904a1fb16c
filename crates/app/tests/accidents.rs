//! Each accident that destroys rows, from the statement to the rows: it happens, `find` tells it, its `target_before` is
//! pasted into `restore`, and every row is back.

mod support;

use std::collections::BTreeMap;

use cluster::Session;
use serde_json::Value;
use support::World;

const TABLES: &str = "
    create schema sales;
    create table public.orders (id int primary key, v text);
    insert into public.orders select n, md5(n::text) from generate_series(1, 20000) n;
    create table public.items (id int primary key, v text);
    insert into public.items select n, md5(n::text) from generate_series(1, 20000) n;
    create table public.notes (id int primary key, v text);
    insert into public.notes select n, md5(n::text) from generate_series(1, 20000) n;
    create table public.prices (id int primary key, v numeric);
    insert into public.prices select n, n from generate_series(1, 20000) n;
    create table public.few (id int primary key, v text);
    insert into public.few select n, 'x' from generate_series(1, 50) n;
    create table sales.north as select n id, md5(n::text) v from generate_series(1, 3000) n;
    create table sales.south as select n id, md5(n::text) v from generate_series(1, 4000) n;
    analyze;";

/// An accident: its statement, and what `find` must say of it.
struct Accident {
    statement: &'static str,
    event: &'static str,
    tables: &'static [&'static str],
    rows: Option<u64>,
}

const ACCIDENTS: [Accident; 5] = [
    Accident {
        statement: "update public.prices set v = 0",
        event: "update",
        tables: &["public.prices"],
        rows: Some(20_000),
    },
    Accident {
        statement: "delete from public.notes",
        event: "delete",
        tables: &["public.notes"],
        rows: Some(20_000),
    },
    Accident {
        statement: "truncate public.items",
        event: "truncate",
        tables: &["public.items"],
        rows: Some(20_000),
    },
    Accident {
        statement: "drop table public.orders",
        event: "drop",
        tables: &["public.orders"],
        rows: Some(20_000),
    },
    Accident {
        statement: "drop schema sales cascade",
        event: "drop",
        tables: &["sales.north", "sales.south"],
        rows: None,
    },
];

#[test]
fn every_accident_is_found_and_its_target_brings_every_row_back() {
    let Some(world) = World::start("every_accident_is_found_and_its_target_brings_every_row_back") else {
        return;
    };
    world.session().execute(TABLES).expect("tables");
    world
        .session()
        .execute("create database shop")
        .expect("a database");
    let shop = world
        .production
        .conninfo()
        .replace("dbname=postgres", "dbname=shop");
    Session::connect(&shop)
        .expect("the database answers")
        .execute("create table public.goods as select n id, md5(n::text) v from generate_series(1, 5000) n")
        .expect("a table");
    world.json(&["backup"]);
    // None of these is an accident: too few rows, too small a share, undone.
    for statement in [
        "delete from public.few",
        "update public.orders set v = v || '!' where id <= 4000",
        "begin; delete from public.orders; rollback",
    ] {
        world.session().execute(statement).expect("ordinary work");
    }
    // Each accident's own point is compared with what stood there before it.
    let mut before = Vec::new();
    for accident in &ACCIDENTS {
        before.push(testing::row_digest(&world.production.conninfo()).expect("digest"));
        world.session().execute(accident.statement).expect("the accident");
    }
    let goods = testing::row_digest(&shop).expect("digest");
    world
        .session()
        .execute("drop database shop")
        .expect("the last accident");
    world
        .session()
        .execute("create table public.later as select 1 n")
        .expect("work");
    world.archive_all();

    let found = world.json(&["find"]);
    let events = found["events"].as_array().expect("events");
    let mut told: Vec<(&str, &str)> = events
        .iter()
        .map(|event| (text(event, "event"), text(event, "table")))
        .collect();
    told.sort_unstable();
    let mut expected: Vec<(&str, &str)> = ACCIDENTS
        .iter()
        .flat_map(|accident| accident.tables.iter().map(|table| (accident.event, *table)))
        .chain([("drop-database", "shop")])
        .collect();
    expected.sort_unstable();
    assert_eq!(told, expected, "{found:#}");
    for (number, accident) in ACCIDENTS.iter().enumerate() {
        let event = events
            .iter()
            .find(|event| text(event, "table") == accident.tables[0])
            .expect("it was found");
        if accident.rows.is_some() {
            assert_eq!(event["rows"].as_u64(), accident.rows, "{event:#}");
        }
        let others: Vec<&str> = event["with"]
            .as_array()
            .expect("with")
            .iter()
            .filter_map(Value::as_str)
            .collect();
        assert_eq!(others, accident.tables[1..], "{event:#}");
        let schema = if accident.tables.len() > 1 {
            Some("sales")
        } else {
            None
        };
        assert_eq!(event["schema_gone"].as_str(), schema, "{event:#}");
        let digests = restored(
            &world,
            &format!("accident{number}"),
            text(event, "target_before"),
            "postgres",
        );
        assert_eq!(digests, before[number], "{}", accident.statement);
    }
    let event = events
        .iter()
        .find(|event| text(event, "event") == "drop-database")
        .expect("it was found");
    let digests = restored(&world, "database", text(event, "target_before"), "shop");
    assert_eq!(digests, goods, "{event:#}");

    // For people, tables that went together are one entry.
    let printed = world.run(&["find"]).ok().stdout;
    assert!(printed.contains("with it: sales."), "{printed}");
    assert_eq!(
        printed.matches("sales.north (").count() + printed.matches("sales.south (").count(),
        1,
        "{printed}"
    );
    // Thresholds are settable.
    let few = world.json(&["find", "--table", "few", "--minimum-rows", "40"]);
    assert_eq!(few["events"].as_array().map(Vec::len), Some(1), "{few:#}");
}

#[test]
fn tables_made_since_the_backup_are_told_by_the_name_that_the_wal_has() {
    let Some(world) = World::start("tables_made_since_the_backup_are_told_by_the_name_that_the_wal_has")
    else {
        return;
    };
    world
        .session()
        .execute("create schema sales; create table sales.old (n int)")
        .expect("a schema");
    world.json(&["backup"]);
    for statement in [
        "create table public.young as select n, md5(n::text) v from generate_series(1, 9000) n",
        "checkpoint",
        "create table sales.younger (n int primary key, v text)",
        "insert into sales.younger select n, md5(n::text) from generate_series(1, 8000) n",
        "create table public.emptied as select n from generate_series(1, 7000) n",
    ] {
        world.session().execute(statement).expect("new tables");
    }
    let before = testing::row_digest(&world.production.conninfo()).expect("digest");
    for statement in [
        "truncate sales.younger",
        "delete from public.emptied",
        "drop table public.young",
    ] {
        world.session().execute(statement).expect("an accident");
    }
    world.archive_all();
    let found = world.json(&["find"]);
    let events = found["events"].as_array().expect("events");
    let told: Vec<(&str, &str)> = events
        .iter()
        .map(|event| (text(event, "event"), text(event, "table")))
        .collect();
    let expected = [
        ("truncate", "sales.younger"),
        ("delete", "public.emptied"),
        ("drop", "public.young"),
    ];
    assert_eq!(told, expected, "{found:#}");
    let named = world.json(&["find", "--table", "sales.younger"]);
    assert_eq!(named["events"].as_array().map(Vec::len), Some(1), "{named:#}");
    let digests = restored(&world, "young", text(&events[0], "target_before"), "postgres");
    assert_eq!(digests, before);
}

fn text<'a>(event: &'a Value, name: &str) -> &'a str {
    event[name]
        .as_str()
        .unwrap_or_else(|| panic!("{name} in {event:#}"))
}

/// Restores to a pasted target, and digests one database of the result.
fn restored(world: &World, name: &str, target: &str, database: &str) -> BTreeMap<String, String> {
    let into = world.scratch().join(name);
    world.json(&["restore", "--to", target, "--into", &into.display().to_string()]);
    let restored = world.start_restored(&into);
    let conninfo = restored
        .conninfo()
        .replace("dbname=postgres", &format!("dbname={database}"));
    let digests = testing::row_digest(&conninfo).expect("digest of the restored server");
    restored.stop();
    std::fs::remove_dir_all(&into).expect("the copy can be removed");
    digests
}
