//! `drill verify`: a server that stands already is looked through, in its recovery and after it, and nothing in it is
//! changed; each broken twin fails with a code of its own.

mod support;

use serde_json::Value;
use support::application::{Application, script};
use support::{Ended, World, check_of, configure};
use testing::TestCluster;

const TABLES: &str = "
    create table public.clients (id int primary key, name text);
    create table public.bookings (id int primary key, client int references public.clients, created_at timestamptz);
    create index bookings_client on public.bookings (client);
    insert into public.clients select n, 'client-secret-' || n from generate_series(1, 50) n;
    insert into public.bookings select n, 1 + n % 50, now() from generate_series(1, 500) n";

fn verify(world: &World, profile: &str, server: &[&str], base: &str) -> (i32, Value) {
    let mut command = world.command(&["drill", "verify", profile, "--json"]);
    command
        .args(server)
        .env("API_BASE_URL", base)
        .env("WEB_BASE_URL", "http://web.invalid:3000");
    let ended = Ended::of(&command.output().expect("the program starts"));
    assert!(!ended.stdout.contains("secret"), "{}", ended.stdout);
    (ended.code, ended.json())
}

fn result(seen: &Value, id: &str) -> (String, Option<String>) {
    let check = check_of(seen, id);
    let word = |name: &str| check[name].as_str().map(str::to_owned);
    (word("result").expect("a result"), word("reason"))
}

#[test]
fn a_restored_server_is_verified_where_it_stands_and_its_broken_twins_fail() {
    let Some(world) = World::start("a_restored_server_is_verified_where_it_stands_and_its_broken_twins_fail")
    else {
        return;
    };
    let application = Application::start();
    world.session().execute(TABLES).expect("tables");
    world.json(&["backup"]);
    world.archive_all();
    let restored_rows = world.digests();
    let psql = testing::client_program(&world.programs, "psql").expect("psql");
    let smoke = script(
        &world,
        "smoke.sh",
        &format!(
            "test \"$API_BASE_URL\" = {} || exit 9\n\
             test \"$WEB_BASE_URL\" = http://web.invalid:3000 || exit 6\n\
             n=$({} -XAtc 'select count(*) from bookings') || exit 8\n\
             test \"$n\" = 500 || exit 7",
            application.address,
            psql.display()
        ),
    );
    configure(
        &world,
        &format!(
            r#"
[drill.handover]
grants = ["http", "commands"]
[[drill.handover.check]]
id = "counts"
kind = "row-counts"
[[drill.handover.check]]
id = "bookings"
sql = "select count(*) from bookings"
expect = "500"
[[drill.handover.check]]
id = "orphans"
kind = "orphans"
[[drill.handover.check]]
id = "fresh"
kind = "freshness"
table = "bookings"
column = "created_at"
within = "1 h"
[[drill.handover.check]]
id = "readyz"
kind = "http"
path = "/readyz"
values = [ {{ name = "status", is = "ready" }} ]
[[drill.handover.check]]
id = "smoke"
kind = "command"
command = ["{smoke}"]
limit = "30 s"
[drill.named-index]
checks = []
[[drill.named-index.check]]
id = "own-indexes"
kind = "indexes"
indexes = ["bookings_client"]
"#
        ),
    );
    let into = world.scratch().join("restored");
    let place = into.display().to_string();
    world.json(&[
        "restore",
        "--to",
        "immediate",
        "--action",
        "pause",
        "--into",
        &place,
    ]);
    // Not started yet: nobody is there to be asked.
    let ended = world.run(&["drill", "verify", "handover", "--data-directory", &place]);
    assert_eq!(ended.code, 1, "{}", ended.stderr);
    assert!(ended.stderr.contains("server-not-running"), "{}", ended.stderr);

    let restored = world.start_restored(&into);
    let (code, seen) = verify(
        &world,
        "handover",
        &["--data-directory", &place],
        &application.address,
    );
    for id in [
        "identity",
        "recovery-state",
        "archiver",
        "collation-versions",
        "indexes",
        "bookings",
        "orphans",
        "fresh",
        "readyz",
        "smoke",
    ] {
        assert_eq!(result(&seen, id).0, "PASS", "{seen:#}");
    }
    // It is not installed, and a verification installs nothing: named, with the command, and no failure.
    assert_eq!(result(&seen, "amcheck").0, "NOT RUN", "{seen:#}");
    assert!(
        check_of(&seen, "amcheck")["actual"]
            .as_str()
            .is_some_and(|text| text.contains("CREATE EXTENSION amcheck"))
    );
    assert_eq!(
        (code, seen["verdict"].as_str()),
        (0, Some("PASSED WITH OBSERVATIONS")),
        "{seen:#}"
    );
    let named: Vec<&str> = seen["not_made"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|each| each["id"].as_str())
        .collect();
    assert_eq!(named, ["row-proof", "page-checksums", "counts"]);
    assert_eq!(restored.digests(), restored_rows, "nothing was changed");

    // Handed over: it accepts writes, and archives nothing yet. With the extension everything can be looked at.
    let mut session = restored.session();
    session.execute("select pg_wal_replay_resume()").expect("resumes");
    let end = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while session.one("select pg_is_in_recovery()").expect("answers")[0].as_deref() == Some("t") {
        assert!(std::time::Instant::now() < end, "recovery does not end");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    session.execute("create extension amcheck").expect("amcheck");
    let others = session
        .rows("select datname from pg_database where datallowconn and datname <> 'postgres'")
        .expect("names");
    for name in others.iter().filter_map(|row| row[0].as_deref()) {
        cluster::Session::connect(&restored.instance.conninfo(name))
            .and_then(|mut own| own.execute("create extension amcheck").map(drop))
            .expect("amcheck");
    }
    let connection = restored.conninfo();
    let server = ["--connection", connection.as_str()];
    let (code, seen) = verify(&world, "handover", &server, &application.address);
    assert_eq!(result(&seen, "amcheck").0, "PASS", "{seen:#}");
    assert_eq!(
        result(&seen, "archiver"),
        ("WARN".to_owned(), Some("not-archiving".to_owned())),
        "{seen:#}"
    );
    assert_eq!((code, seen["server"]["in_recovery"].as_bool()), (0, Some(false)));

    // The broken twins.
    session
        .execute(
            "set session_replication_role = replica;
             insert into public.bookings values (501, 4242, now());
             update pg_index set indisvalid = false where indexrelid = 'public.bookings_client'::regclass",
        )
        .expect("damage that every constraint lets pass");
    application
        .healthy
        .store(false, std::sync::atomic::Ordering::Relaxed);
    let (code, seen) = verify(&world, "handover", &server, &application.address);
    for (id, reason) in [
        ("indexes", "index-invalid"),
        ("orphans", "orphans-found"),
        ("bookings", "check-failed"),
        ("readyz", "endpoint-unhealthy"),
        ("smoke", "command-failed"),
    ] {
        assert_eq!(
            result(&seen, id),
            ("FAIL".to_owned(), Some(reason.to_owned())),
            "{seen:#}"
        );
    }
    assert_eq!((code, seen["verdict"].as_str()), (3, Some("FAILED")));
    session
        .execute("drop index public.bookings_client")
        .expect("dropped");
    let (code, seen) = verify(&world, "named-index", &server, &application.address);
    assert_eq!(
        result(&seen, "own-indexes").1.as_deref(),
        Some("index-invalid"),
        "{seen:#}"
    );
    assert_eq!(code, 3);
    // As told: the data is as old as the moment says that is named.
    let later = "2099-01-01 00:00:00 UTC";
    let (_, seen) = verify(
        &world,
        "handover",
        &["--connection", &connection, "--target", later],
        &application.address,
    );
    assert_eq!(
        result(&seen, "fresh").1.as_deref(),
        Some("data-stale"),
        "{seen:#}"
    );
    restored.stop();

    // Production itself archives; another cluster's server is not the one that the backups are of.
    let production = world.production.conninfo();
    let (_, seen) = verify(
        &world,
        "default",
        &["--connection", &production],
        "http://127.0.0.1:9",
    );
    for id in ["identity", "recovery-state", "archiver", "indexes"] {
        assert_eq!(result(&seen, id).0, "PASS", "{seen:#}");
    }
    let other = TestCluster::start(&World::options(world.programs.clone())).expect("another cluster");
    let conninfo = other.conninfo();
    let (code, seen) = verify(
        &world,
        "default",
        &["--connection", &conninfo],
        "http://127.0.0.1:9",
    );
    assert_eq!(
        result(&seen, "identity"),
        ("FAIL".to_owned(), Some("identity-differs".to_owned())),
        "{seen:#}"
    );
    assert_eq!(code, 3);
}
