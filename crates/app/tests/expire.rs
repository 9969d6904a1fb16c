//! Retention against a real server, as a user types it: what goes, what stays, and that recovery works afterwards.

mod support;

use repository::{RecipientKey, Repository, open_store};
use serde_json::Value;
use support::{World, retain};

fn segments(status: &Value) -> Vec<(String, String)> {
    let runs = status["runs"].as_array().expect("runs").iter();
    runs.map(|run| {
        let text = |key: &str| run[key].as_str().expect("a name").to_owned();
        (text("first"), text("last"))
    })
    .collect()
}

fn backups(world: &World) -> Vec<Value> {
    world.json(&["list"])["backups"]
        .as_array()
        .expect("backups")
        .clone()
}

fn names(backups: &[Value]) -> Vec<String> {
    let names = backups
        .iter()
        .map(|backup| backup["backup"].as_str().expect("a name"));
    names.map(str::to_owned).collect()
}

#[test]
fn old_backups_and_wal_go_and_what_stays_is_whole_and_recoverable() {
    let Some(world) = World::start("old_backups_and_wal_go_and_what_stays_is_whole_and_recoverable") else {
        return;
    };
    world
        .session()
        .execute("create table public.t (id int primary key, v text)")
        .expect("table");
    let mut digests = Vec::new();
    let mut points = Vec::new();
    for round in 0..5 {
        world.json(&["backup"]);
        let work = format!(
            "insert into public.t select {round} * 5000 + n, md5(n::text) from generate_series(1, 5000) n;
             update public.t set v = v || '!' where id % 3 = {round} % 3"
        );
        world.session().execute(&work).expect("work");
        let row = world
            .session()
            .one("select pg_current_wal_insert_lsn()")
            .expect("the point");
        points.push(row[0].clone().expect("an LSN"));
        digests.push(testing::row_digest(&world.production.conninfo()).expect("digest"));
        world
            .session()
            .execute("insert into public.t values (-1, 'later'); delete from public.t where id = -1")
            .expect("a commit behind the point");
        world.archive_all();
    }
    let before = backups(&world);
    let ids = names(&before);
    assert_eq!(ids.len(), 5);
    assert!(before.iter().all(|backup| backup["verified_at"].is_null()));
    world.json(&["verify"]);
    assert!(
        backups(&world)
            .iter()
            .all(|backup| backup["verified_at"].is_string())
    );

    // Without a policy nothing goes; a rule that would keep nothing is refused.
    retain(&world, "");
    let refused = world.run(&["expire"]);
    assert_eq!(
        (refused.code, refused.stderr.contains("retention-missing")),
        (2, true),
        "{}",
        refused.stderr
    );
    retain(&world, "keep_last = 0");
    assert_eq!(world.run(&["expire"]).code, 2);
    retain(&world, "keep_lost = 2");
    let refused = world.run(&["expire"]);
    assert!(refused.stderr.contains("keep_last"), "{}", refused.stderr);

    retain(&world, "keep_last = 2");
    world.json(&["pin", &ids[1], "--reason", "audit"]);
    let wal_before = segments(&world.json(&["wal", "status"]));
    let dry = world.json(&["expire", "--dry-run"]);
    let plan = &dry["copies"][0]["plan"];
    let gone: Vec<&str> = plan["remove"]
        .as_array()
        .expect("remove")
        .iter()
        .map(|removed| removed["backup"].as_str().expect("a name"))
        .collect();
    assert_eq!(gone, [&ids[0], &ids[2]]);
    assert!(!plan["lost"].as_array().expect("lost").is_empty(), "{plan:#}");
    assert_eq!(names(&backups(&world)), ids, "a dry run changes nothing");
    assert_eq!(segments(&world.json(&["wal", "status"])), wal_before);

    let result = world.json(&["expire"]);
    assert_eq!(
        result["copies"][0]["result"]["removed"].as_array().map(Vec::len),
        Some(2),
        "{result:#}"
    );
    assert_eq!(
        names(&backups(&world)),
        [ids[1].clone(), ids[3].clone(), ids[4].clone()]
    );
    let wal_after = segments(&world.json(&["wal", "status"]));
    assert_eq!(
        wal_after.len(),
        2,
        "the pinned backup's own WAL, and all since the fourth: {wal_after:?}"
    );
    assert!(wal_after[0].0 > wal_before[0].0);

    // What was let go is no gap, and all that stays is whole.
    assert_eq!(world.run(&["wal", "gaps"]).code, 0);
    let status = world.json(&["status"]);
    assert_eq!(
        status["clusters"][0]["gaps"],
        Value::Array(Vec::new()),
        "{status:#}"
    );
    assert!(
        status["clusters"][0]["expiry"][0]["last_run_at"].is_string(),
        "{status:#}"
    );
    world.json(&["verify"]);

    // Inside the window recovery is exact; before it, it is refused with the nearest point.
    let into = world.scratch().join("inside");
    world.json(&[
        "restore",
        "--to",
        &points[3],
        "--into",
        &into.display().to_string(),
    ]);
    let restored = world.start_restored(&into);
    assert_eq!(
        testing::row_digest(&restored.conninfo()).expect("digest"),
        digests[3]
    );
    restored.stop();
    let into = world.scratch().join("pinned");
    world.json(&[
        "restore",
        "--to",
        "immediate",
        "--backup",
        &ids[1],
        "--into",
        &into.display().to_string(),
    ]);
    let restored = world.start_restored(&into);
    assert_eq!(
        testing::row_digest(&restored.conninfo()).expect("digest"),
        digests[0]
    );
    restored.stop();
    let outside = world.scratch().join("outside").display().to_string();
    let refused = world.run(&["restore", "--to", &points[2], "--into", &outside]);
    assert_ne!(refused.code, 0);
    assert!(
        refused.stderr.contains("Retention has let the WAL") && refused.stderr.contains("--to immediate"),
        "{}",
        refused.stderr
    );

    // Packs go when they were condemned for long enough, and only those that nothing refers to.
    let key = std::fs::read_to_string(world.scratch().join("local.key")).expect("key");
    let key = RecipientKey::from_key_file_text(&key).expect("key");
    let store = open_store(&format!("file://{}", world.repository().display())).expect("store");
    let cluster = Repository::open(store, &key)
        .expect("repository")
        .cluster("main")
        .expect("cluster");
    let packs = cluster.stored_packs().expect("packs").len();
    let later = jiff::Timestamp::now() + jiff::SignedDuration::from_mins(71);
    let collected = cluster
        .collect(later, repository::CONDEMNED_WAIT)
        .expect("collected");
    assert!(collected.deleted > 0, "{collected:?}");
    assert_eq!(
        cluster.stored_packs().expect("packs").len() as u64,
        packs as u64 - collected.deleted
    );
    world.json(&["verify"]);
    let into = world.scratch().join("latest");
    world.json(&["restore", "--to", "latest", "--into", &into.display().to_string()]);
    let restored = world.start_restored(&into);
    assert_eq!(
        testing::row_digest(&restored.conninfo()).expect("digest"),
        digests[4]
    );
    restored.stop();

    // Every restore left a lease that keeps its backup for a day; a pin ends when it is released.
    world.json(&["unpin", &ids[1]]);
    retain(&world, "keep_last = 1");
    let result = world.json(&["expire"]);
    let removed = &result["copies"][0]["result"]["removed"];
    assert_eq!(removed.as_array().map(Vec::len), Some(0), "{result:#}");
    let again = world.json(&["backup"]);
    assert!(again["backup"].is_string());
}

#[test]
fn a_target_just_before_missing_wal_is_reached_although_recovery_reads_ahead() {
    let Some(world) =
        World::start("a_target_just_before_missing_wal_is_reached_although_recovery_reads_ahead")
    else {
        return;
    };
    world
        .session()
        .execute("create table public.t (n int)")
        .expect("table");
    world.json(&["backup"]);
    let mut commits = Vec::new();
    for n in 0..3 {
        let row = world
            .session()
            .one(&format!(
                "insert into public.t values ({n}) returning pg_current_xact_id()::text, \
                 pg_walfile_name(pg_current_wal_insert_lsn())"
            ))
            .expect("a row");
        let text = |at: usize| row[at].clone().expect("a value");
        commits.push((text(0), text(1)));
        world.archive_all();
    }
    let lost = &commits[1].1;
    let store = open_store(&format!("file://{}", world.repository().display())).expect("store");
    for object in store.list("clusters/main/wal/").expect("listing") {
        if object.name.contains(&format!("/{lost}.")) && !object.name.contains("/label/") {
            store.delete(&object.name).expect("delete");
        }
    }
    assert_eq!(world.run(&["wal", "gaps"]).code, 3);
    let into = world.scratch().join("before");
    world.json(&[
        "restore",
        "--to-xid",
        &commits[0].0,
        "--into",
        &into.display().to_string(),
    ]);
    let restored = world.start_restored(&into);
    let row = restored
        .session()
        .one("select max(n)::text from public.t")
        .expect("rows");
    assert_eq!(row[0].as_deref(), Some("0"));
    restored.stop();
}
