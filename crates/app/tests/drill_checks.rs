//! Checks of a user's own, end to end against a real server and a real endpoint: each sees what it is for, and its
//! broken twin fails with a code of its own; none of them tells a value of a row.

mod support;

use serde_json::Value;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use support::application::{Application, script};
use support::{Ended, World, check_of, configure};

const TABLES: &str = "
    create table public.clients (id int primary key, name text);
    create table public.bookings (id int primary key, client int references public.clients, created_at timestamptz,
        note text);
    create index bookings_client on public.bookings (client);
    insert into public.clients select n, 'client-secret-' || n from generate_series(1, 50) n;
    insert into public.bookings select n, 1 + n % 50, now(), 'note-secret-' || n from generate_series(1, 500) n;
    create table public.old (id int primary key, client int);
    insert into public.old values (1, 7777);
    alter table public.old add constraint old_client foreign key (client) references public.clients not valid;";

fn drill(world: &World, profile: &str, base: &str) -> (Ended, Value) {
    let mut command = world.command(&["drill", "run", profile, "--json"]);
    command
        .env("API_BASE_URL", base)
        .env("WEB_BASE_URL", WEB_BASE_URL);
    let output = command.output().expect("the program starts");
    let ended = Ended::of(&output);
    let facts = ended.json();
    (ended, facts)
}

/// Nobody answers there: programs are told of it, and pgproof itself does not ask.
const WEB_BASE_URL: &str = "http://web.invalid:3000";

const SECRETS: [&str; 4] = ["client-secret", "note-secret", "mail-secret", "pass-secret"];

fn holds_no_secret(facts: &Value) {
    let folder =
        std::path::PathBuf::from(facts["report"].as_str().expect("the report's path")).with_extension("");
    for entry in std::fs::read_dir(&folder).expect("the evidence").flatten() {
        let text = String::from_utf8_lossy(&std::fs::read(entry.path()).expect("a file")).into_owned();
        for secret in SECRETS {
            assert!(
                !text.contains(secret),
                "{} tells {secret}",
                entry.path().display()
            );
        }
    }
}

#[test]
fn each_check_sees_what_it_is_for_and_its_broken_twin_fails_with_its_own_code() {
    let Some(world) =
        World::start("each_check_sees_what_it_is_for_and_its_broken_twin_fails_with_its_own_code")
    else {
        return;
    };
    let application = Application::start();
    world.session().execute(TABLES).expect("tables");
    world.json(&["backup"]);
    let psql = testing::client_program(&world.programs, "psql").expect("psql");
    let smoke = script(
        &world,
        "smoke.sh",
        &format!(
            "test \"$TOKEN\" = pass-secret || exit 9\n\
             n=$({} -XAtc 'select count(*) from bookings') || exit 8\n\
             test \"$n\" = 500 || exit 7\n\
             cat > {}/results-api.xml <<END\n\
             <testsuite name='API'><testcase name='a'/><testcase name='b'/></testsuite>\nEND",
            psql.display(),
            world.scratch().display()
        ),
    );
    let bases = script(
        &world,
        "bases.sh",
        &format!(
            "test \"$API_BASE_URL\" = '{}' || exit 5\ntest \"$WEB_BASE_URL\" = '{WEB_BASE_URL}' || exit 6",
            application.address
        ),
    );
    let other_base = script(
        &world,
        "other_base.sh",
        "test \"$WEB_BASE_URL\" = http://other.invalid || exit 6",
    );
    let inside = script(
        &world,
        "inside.sh",
        &format!(
            "! test -e {}/PG_VERSION",
            world.production.data_directory().display()
        ),
    );
    let checks = |profile: &str| {
        format!(
            r#"
[[drill.{profile}.check]]
id = "counts"
kind = "row-counts"
tables = ["bookings", "clients"]
[[drill.{profile}.check]]
id = "orphans"
kind = "orphans"
[[drill.{profile}.check]]
id = "fresh"
kind = "freshness"
table = "bookings"
column = "created_at"
within = "1 h"
[[drill.{profile}.check]]
id = "indexes"
kind = "indexes"
indexes = ["bookings_client"]
[[drill.{profile}.check]]
id = "healthz"
kind = "http"
path = "/healthz"
values = [ {{ name = "status", is = ["ok", "ready"] }}, {{ name = "db_connected", is = true }} ]
[[drill.{profile}.check]]
id = "readyz"
kind = "http"
path = "/readyz"
readiness = true
values = [
  {{ name = "status", is = ["ok", "ready"] }},
  {{ name = "migrations_current", pointers = ["/migrations_current", "/database/migrations_current"], is = true }},
]
[[drill.{profile}.check]]
id = "smoke"
kind = "command"
command = ["{smoke}"]
environment = {{ TOKEN = "pass-secret" }}
limit = "30 s"
[[drill.{profile}.check]]
id = "bases"
kind = "command"
command = ["{bases}"]
[[drill.{profile}.check]]
id = "other-base"
kind = "command"
command = ["{other_base}"]
environment = {{ WEB_BASE_URL = "http://other.invalid" }}
[[drill.{profile}.check]]
id = "tests"
kind = "junit"
files = ["{scratch}/results-*.xml"]
[[drill.{profile}.check]]
id = "p95-healthz"
kind = "p95"
path = "/healthz"
p95 = "5 s"
samples = 5
[[drill.{profile}.check]]
id = "p95-bookings"
kind = "p95"
sql = "select count(*) from bookings where client = 7"
p95 = "5 s"
samples = 5
"#,
            scratch = world.scratch().display()
        )
    };
    configure(
        &world,
        &format!(
            "\n[drill.good]\ngrants = [\"http\", \"commands\"]\n{}\n[drill.closed]\n{}\n\
             [[drill.closed.check]]\nid = \"inside\"\nkind = \"command\"\ncommand = [\"{inside}\"]\n",
            checks("good"),
            checks("closed")
        ),
    );

    let (ended, facts) = drill(&world, "good", &application.address);
    for id in [
        "counts",
        "orphans",
        "fresh",
        "indexes",
        "healthz",
        "readyz",
        "smoke",
        "bases",
        "other-base",
        "tests",
        "p95-healthz",
        "p95-bookings",
    ] {
        let check = check_of(&facts, id);
        // The orphan of a key that was never checked is named, and is no failure.
        let expected = if id == "orphans" { "WARN" } else { "PASS" };
        assert_eq!(check["result"], expected, "{check:#}\n{}", ended.stderr);
        assert!(
            check["category"].is_string() && check["detail"].is_object() || id == "fresh" || id == "indexes"
        );
    }
    assert_eq!(
        (ended.code, facts["verdict"].as_str()),
        (0, Some("PASSED WITH OBSERVATIONS")),
        "{facts:#}"
    );
    let orphans = check_of(&facts, "orphans");
    assert_eq!(
        orphans["detail"]["not_valid"][0], "postgres.public.old.old_client",
        "{orphans:#}"
    );
    assert_eq!(orphans["detail"]["foreign_keys"], 2);
    let counts = check_of(&facts, "counts");
    assert_eq!(counts["detail"]["tables"][0]["before"], 500, "{counts:#}");
    let readyz = check_of(&facts, "readyz");
    assert_eq!(
        readyz["detail"]["before"]["values"], readyz["detail"]["after"]["values"],
        "{readyz:#}"
    );
    assert_eq!(
        check_of(&facts, "tests")["detail"]["categories"][0]["name"],
        "API"
    );
    let names: Vec<&str> = facts["substitutions"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|each| each["name"].as_str())
        .collect();
    assert!(
        names.contains(&"endpoints") && names.contains(&"commands"),
        "{names:?}"
    );
    holds_no_secret(&facts);

    // Without a grant nothing leaves the quarantine: endpoints are not asked, and a program does not see production.
    let (ended, facts) = drill(&world, "closed", &application.address);
    for id in ["healthz", "readyz", "p95-healthz"] {
        assert_eq!(
            check_of(&facts, id)["result"],
            "NOT RUN",
            "{:#}",
            check_of(&facts, id)
        );
    }
    assert_eq!(check_of(&facts, "inside")["detail"]["outside"], false);
    let hidden = facts["quarantine"]["layers"]
        .as_array()
        .into_iter()
        .flatten()
        .any(|layer| layer["name"] == "mount-namespace" && layer["applied"] == true);
    if hidden {
        for id in ["inside", "bases", "other-base"] {
            assert_eq!(
                check_of(&facts, id)["result"],
                "PASS",
                "{id}: {facts:#}\n{}",
                ended.stderr
            );
        }
    }
    // The results are those of the drill before: they say nothing about this one.
    assert_eq!(check_of(&facts, "tests")["result"], "COULD NOT LOOK", "{facts:#}");
    assert!(!names_of_substitutions(&facts).contains(&"endpoints".to_owned()));

    // The broken twins.
    application.healthy.store(false, Ordering::Relaxed);
    let late = script(&world, "late.sh", "sleep 60 & sleep 60");
    configure(
        &world,
        &format!(
            r#"
[drill.bad]
grants = ["http", "commands"]
checks = []
[[drill.bad.check]]
id = "orphans"
kind = "orphans"
[[drill.bad.check]]
id = "fresh"
kind = "freshness"
table = "bookings"
column = "created_at"
within = "1 h"
[[drill.bad.check]]
id = "indexes"
kind = "indexes"
indexes = ["bookings_client", "no_such_index"]
[[drill.bad.check]]
id = "readyz"
kind = "http"
path = "/readyz"
values = [ {{ name = "status", is = ["ok", "ready"] }}, {{ name = "user", pointers = ["/database/user"], is = "x" }} ]
[[drill.bad.check]]
id = "gone"
kind = "http"
path = "/gone"
[[drill.bad.check]]
id = "smoke"
kind = "command"
command = ["{smoke}"]
[[drill.bad.check]]
id = "late"
kind = "command"
command = ["{late}"]
limit = "1 s"
[[drill.bad.check]]
id = "tests"
kind = "junit"
files = ["{scratch}/bad.xml"]
[[drill.bad.check]]
id = "p95-query"
kind = "p95"
sql = "select pg_sleep(0.02)"
p95 = "1 ms"
samples = 3
"#,
            scratch = world.scratch().display()
        ),
    );
    world
        .session()
        .execute(
            "update public.bookings set created_at = now() - interval '2 days';
             set session_replication_role = replica;
             insert into public.bookings values (501, 4242, now() - interval '2 days', 'note-secret-x')",
        )
        .expect("damage that every constraint lets pass");
    let results = world.scratch().join("bad.xml");
    let text = "<testsuite name='auth'><testcase name='login'><failure/></testcase></testsuite>";
    let over = Arc::new(AtomicBool::new(false));
    let is_over = Arc::clone(&over);
    let writer = std::thread::spawn(move || {
        // Written while the drill runs, by one rename, so that it is never seen half.
        let part = results.with_extension("part");
        while !is_over.load(Ordering::Relaxed) {
            std::fs::write(&part, text).expect("results");
            std::fs::rename(&part, &results).expect("in place");
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
    });
    let (ended, facts) = drill(&world, "bad", &application.address);
    over.store(true, Ordering::Relaxed);
    writer.join().expect("the results are written");
    assert_eq!(
        (ended.code, facts["verdict"].as_str()),
        (3, Some("FAILED")),
        "{facts:#}"
    );
    for (id, code) in [
        ("orphans", "orphans-found"),
        ("fresh", "data-stale"),
        ("indexes", "index-invalid"),
        ("readyz", "endpoint-unhealthy"),
        ("gone", "endpoint-unhealthy"),
        ("smoke", "command-failed"),
        ("late", "command-failed"),
        ("tests", "tests-failed"),
        ("p95-query", "answers-too-slow"),
    ] {
        let check = check_of(&facts, id);
        assert_eq!(
            (check["result"].as_str(), check["reason"].as_str()),
            (Some("FAIL"), Some(code)),
            "{check:#}"
        );
    }
    assert_eq!(check_of(&facts, "smoke")["detail"]["exit_code"], 9);
    assert_eq!(
        check_of(&facts, "readyz")["detail"]["after"]["values"][0],
        "degraded"
    );
    assert_eq!(check_of(&facts, "tests")["detail"]["failed"][0], "auth: login");
    holds_no_secret(&facts);
}

fn names_of_substitutions(facts: &Value) -> Vec<String> {
    let all = facts["substitutions"].as_array().into_iter().flatten();
    all.filter_map(|each| each["name"].as_str().map(str::to_owned))
        .collect()
}

#[test]
fn a_changed_row_under_a_right_checksum_is_caught_by_another_version_of_the_backup_alone() {
    let Some(world) =
        World::start("a_changed_row_under_a_right_checksum_is_caught_by_another_version_of_the_backup_alone")
    else {
        return;
    };
    world
        .session()
        .execute(
            "create table public.still (id int primary key, v text);
             insert into public.still select n, md5(n::text) from generate_series(1, 500) n",
        )
        .expect("a table");
    world
        .session()
        .execute("vacuum public.still")
        .expect("settled rows");
    configure(
        &world,
        "\n[drill.versions]\nchecks = [\"page-checksums\", \"amcheck\", \"n-version\"]\n",
    );
    let drill = |options: &[&str]| {
        let all: Vec<&str> = ["drill", "run", "versions", "--json"]
            .iter()
            .chain(options)
            .copied()
            .collect();
        let ended = world.run(&all);
        let facts = ended.json();
        (ended.code, facts, ended.stderr)
    };
    world.json(&["backup"]);
    // One version is no comparison.
    let (_, facts, _) = drill(&[]);
    assert_eq!(check_of(&facts, "n-version")["result"], "NOT RUN", "{facts:#}");
    world
        .session()
        .execute("create table public.more as select * from public.still")
        .expect("work");
    world.archive_all();
    world.json(&["backup"]);
    let (code, facts, stderr) = drill(&[]);
    let check = check_of(&facts, "n-version");
    assert_eq!(
        (code, check["result"].as_str()),
        (0, Some("PASS")),
        "{facts:#}\n{stderr}"
    );
    let detail = &check["detail"];
    assert_ne!(detail["backup"], detail["other_backup"], "{detail:#}");
    assert!(
        detail["tables"]
            .as_array()
            .is_some_and(|tables| tables.len() >= 2),
        "{detail:#}"
    );
    assert_eq!(facts["teardown"]["folder_removed"], true);

    let (code, facts, stderr) = drill(&["--plant", "row-changed"]);
    assert_eq!(
        (code, facts["verdict"].as_str()),
        (3, Some("FAILED")),
        "{facts:#}\n{stderr}"
    );
    let check = check_of(&facts, "n-version");
    assert_eq!(
        (check["result"].as_str(), check["reason"].as_str()),
        (Some("FAIL"), Some("versions-differ"))
    );
    for blind in ["page-checksums", "amcheck"] {
        assert_eq!(check_of(&facts, blind)["result"], "PASS", "{blind} cannot see it");
    }
}
