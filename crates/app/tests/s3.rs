//! The whole line with a bucket: what a user does with a folder works with `s3://`, alone and beside a folder.

mod support;

use serde_json::Value;
use std::path::Path;
use support::World;
use testing::{Asked, Fault, FaultyProxy, S3Server};

const BUCKET: &str = "backups";

struct Served {
    server: S3Server,
    proxy: FaultyProxy,
}

fn serve() -> Served {
    let server = S3Server::start(BUCKET);
    let proxy = FaultyProxy::start(server.address(), |_: &Asked| Fault::Pass);
    Served { server, proxy }
}

fn credentials(scratch: &Path) -> String {
    let file = scratch.join("s3.credentials");
    std::fs::write(&file, S3Server::credentials_text()).expect("credentials");
    support::give_to_account(&file);
    file.display().to_string()
}

/// What `init` is given for a repository there.
fn into_bucket(served: &Served, scratch: &Path, url: &str) -> Vec<String> {
    [
        "--repository",
        url,
        "--endpoint",
        &served.server.endpoint(),
        "--allow-http",
        "--region",
        "us-east-1",
        "--credentials-file",
        &credentials(scratch),
    ]
    .map(str::to_owned)
    .to_vec()
}

fn text(value: &Value) -> String {
    value.as_str().expect("text").to_owned()
}

#[test]
fn a_cluster_is_backed_up_restored_and_drilled_in_a_bucket() {
    let served = serve();
    let Some(world) = World::start_with(
        "a_cluster_is_backed_up_restored_and_drilled_in_a_bucket",
        |scratch| into_bucket(&served, scratch, "s3://backups/production"),
    ) else {
        return;
    };
    let shown = world.run(&["config", "show"]).ok().stdout;
    assert!(
        shown.contains("copy.s3.credentials.file") && !shown.contains(S3Server::SECRET_ACCESS_KEY),
        "{shown}"
    );

    world
        .session()
        .execute("create table public.t (id int primary key, v text); insert into public.t select n, md5(n::text) from generate_series(1, 30000) n")
        .expect("rows");
    let first = world.json(&["backup"]);
    assert!(
        first["requests"]["put"].as_u64().is_some_and(|put| put > 0),
        "{first:#}"
    );
    world
        .session()
        .execute("update public.t set v = v || '!' where id % 7 = 0")
        .expect("update");
    world.archive_all();
    let second = world.json(&["backup"]);
    assert!(second["pages_reused"].as_u64() > Some(0), "{second:#}");
    world
        .session()
        .execute("insert into public.t select n, 'late' from generate_series(30001, 31000) n")
        .expect("insert");
    let digest = testing::row_digest(&world.production.conninfo()).expect("digest");
    world.archive_all();

    let listed = world.json(&["list"]);
    assert_eq!(listed["backups"].as_array().map(Vec::len), Some(2), "{listed:#}");
    assert_eq!(listed["backups"][0]["copy"], "s3");
    let cost = world.json(&["show", &text(&second["backup"]), "--cost"]);
    assert_eq!(
        cost["cost"]["backup_requests"]["put"],
        second["requests"]["put"].as_u64().map(|put| put - 1).unwrap_or(0)
    );
    let verified = world.json(&["verify"]);
    assert_eq!(
        verified["findings"].as_array().map(Vec::len),
        Some(0),
        "{verified:#}"
    );
    world.json(&["pin", &text(&first["backup"]), "--reason", "audit"]);
    assert_eq!(
        world.json(&["wal", "gaps"])["gaps"].as_array().map(Vec::len),
        Some(0)
    );
    world.json(&["wal", "status"]);
    world.json(&["status"]);
    world.run(&["key", "show"]).ok();

    let into = world.scratch().join("restored");
    world.json(&["restore", "--to", "latest", "--into", &into.display().to_string()]);
    let restored = world.start_restored(&into);
    assert_eq!(testing::row_digest(&restored.conninfo()).expect("digest"), digest);
    restored.stop();

    let drill = world.json(&["drill", "run"]);
    assert!(text(&drill["verdict"]).starts_with("PASSED"), "{drill:#}");
}

#[test]
fn a_folder_and_a_bucket_are_two_copies_and_one_of_them_may_fail() {
    let served = serve();
    let Some(world) = World::start("a_folder_and_a_bucket_are_two_copies_and_one_of_them_may_fail") else {
        return;
    };
    let file = world.scratch().join("pgproof.toml");
    let old = std::fs::read_to_string(&file).expect("configuration");
    let new = old.replace("copies = [\"local\"]", "copies = [\"local\", \"offsite\"]")
        + &format!(
            "\n[copy.offsite]\nurl = \"s3://{BUCKET}/offsite\"\nkey = {{ file = \"offsite.key\" }}\nendpoint = \"{}\"\n\
             allow_http = true\nretry_for = \"1 s\"\ncredentials = {{ file = \"{}\" }}\n",
            served.proxy.endpoint(),
            credentials(world.scratch())
        );
    assert_ne!(old, new);
    support::overwrite(&file, new.as_bytes());
    let conninfo = world.production.conninfo();
    let made = world
        .run(&[
            "init",
            "--connection",
            &conninfo,
            "--repository",
            &format!("s3://{BUCKET}/offsite"),
            "--copy",
            "offsite",
        ])
        .ok();
    assert!(
        made.stdout.contains("s3://backups/offsite (written)"),
        "{}",
        made.stdout
    );

    world
        .session()
        .execute("create table public.t as select n from generate_series(1, 20000) n")
        .expect("rows");
    world.archive_all();
    let before = served.proxy.asked().len();
    world.archive_all();
    let asked = served.proxy.asked().split_off(before);
    let puts = asked.iter().filter(|asked| asked.method == "PUT").count();
    assert_eq!(puts, 1, "one PUT for a segment: {asked:#?}");
    // docs/operations.md, "Requests"; the server's conditional creation is not atomic, so the probe says either.
    assert!([7, 10].contains(&asked.len()), "{asked:#?}");

    let made = world.json(&["backup"]);
    assert_eq!(made["copies"].as_array().map(Vec::len), Some(2), "{made:#}");
    world.archive_all();
    let digest = testing::row_digest(&world.production.conninfo()).expect("digest");
    let placed = world.scratch().join("placed").display().to_string();
    let get = |file: &str| world.run(&["wal", "get", file, &placed]);
    assert_eq!(get("0000000100000FFF000000FF").code, 1, "absent in both");

    // The bucket cannot be reached: WAL is still acknowledged by the folder, absent is no longer said.
    served.proxy.set(|_: &Asked| Fault::Drop);
    world
        .session()
        .execute("insert into public.t values (0)")
        .expect("row");
    world.archive_all();
    let ended = get("0000000100000FFF000000FF");
    assert_eq!(ended.code, 126, "{}", ended.stderr);
    assert!(ended.stderr.contains("store-unreachable"), "{}", ended.stderr);
    served.proxy.set(|_: &Asked| Fault::Answer(403, "AccessDenied"));
    let ended = get("0000000100000FFF000000FF");
    assert_eq!(ended.code, 126, "{}", ended.stderr);
    assert!(ended.stderr.contains("store-denied"), "{}", ended.stderr);

    // The folder is lost: the bucket alone brings everything back that it holds.
    served.proxy.set(|_: &Asked| Fault::Pass);
    std::fs::rename(world.repository(), world.scratch().join("lost")).expect("lost");
    let config = std::fs::read_to_string(&file).expect("configuration");
    let config = config.replace("copies = [\"local\", \"offsite\"]", "copies = [\"offsite\"]");
    support::overwrite(&file, config.as_bytes());
    let into = world.scratch().join("restored");
    let ended = world.run(&[
        "restore",
        "--copy",
        "offsite",
        "--to",
        "immediate",
        "--into",
        &into.display().to_string(),
    ]);
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    let restored = world.start_restored(&into);
    let after = testing::row_digest(&restored.conninfo()).expect("digest");
    assert_eq!(after, digest);
    restored.stop();
}

#[test]
fn a_backup_into_a_bucket_lets_go_what_retention_does_not_keep() {
    let served = serve();
    let Some(world) = World::start_with(
        "a_backup_into_a_bucket_lets_go_what_retention_does_not_keep",
        |scratch| into_bucket(&served, scratch, "s3://backups/kept"),
    ) else {
        return;
    };
    support::retain(&world, "keep_last = 2\nafter_backup = true");
    world
        .session()
        .execute("create table public.t (n int)")
        .expect("table");
    let names = |world: &World| -> Vec<String> {
        let listed = world.json(&["list"]);
        let backups = listed["backups"].as_array().expect("backups").iter();
        backups.map(|backup| text(&backup["backup"])).collect()
    };
    let mut made = Vec::new();
    for round in 0..4 {
        let insert = format!("insert into public.t select {round} from generate_series(1, 2000)");
        world.session().execute(&insert).expect("rows");
        made.push(text(&world.json(&["backup"])["backup"]));
        world.archive_all();
        assert_eq!(names(&world), made[made.len().saturating_sub(2)..]);
    }
    assert_eq!(world.run(&["wal", "gaps"]).code, 0);
    let verified = world.json(&["verify"]);
    assert_eq!(
        verified["findings"].as_array().map(Vec::len),
        Some(0),
        "{verified:#}"
    );
    let digest = testing::row_digest(&world.production.conninfo()).expect("digest");
    let into = world.scratch().join("restored");
    world.json(&["restore", "--to", "latest", "--into", &into.display().to_string()]);
    let restored = world.start_restored(&into);
    assert_eq!(testing::row_digest(&restored.conninfo()).expect("digest"), digest);
    restored.stop();
}
