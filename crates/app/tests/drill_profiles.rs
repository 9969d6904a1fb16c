//! Profiles as a user meets them: built-in ones, one's own, several at once, objectives that are missed, consent by the
//! environment, and what is refused before anything is touched.

mod support;

use serde_json::Value;
use support::{Ended, World, check_of, configure};

/// Appends to the configuration that `init` wrote.
fn run_with(world: &World, variables: &[(&str, &str)], arguments: &[&str]) -> Ended {
    let mut command = world.command(arguments);
    command.env_remove("TARGET_ENV").envs(variables.iter().copied());
    let output = command.output().expect("the program starts");
    Ended::of(&output)
}

fn clock(facts: &Value, check: &str) -> Value {
    facts["clocks"]
        .as_array()
        .and_then(|all| all.iter().find(|clock| clock["check"] == check))
        .cloned()
        .unwrap_or_else(|| panic!("no clock {check:?} among {:#}", facts["clocks"]))
}

fn reasons(facts: &Value) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    facts["reasons"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|reason| (text(&reason["code"]), text(&reason["check"])))
        .collect()
}

#[test]
fn objectives_of_several_profiles_are_judged_each_by_itself_and_the_strictest_first() {
    let Some(world) =
        World::start("objectives_of_several_profiles_are_judged_each_by_itself_and_the_strictest_first")
    else {
        return;
    };
    world
        .session()
        .execute("create table public.a as select n from generate_series(1, 5000) n")
        .expect("a table");
    world.json(&["backup"]);
    configure(
        &world,
        r#"
[drill.shop]
extends = "quarterly-pitr"
also = ["critical", "hopeless"]
[drill.shop.people]
operator = "Ann"
reviewer = "Bob"
escalation = "Carla"
[[drill.shop.objective]]
id = "writing"
clock = "restore-finished - restore-started"
at_most = "10 min"

[drill.hopeless]
rto = "1 ms"
rto_warning = "0.5 ms"
"#,
    );
    let ended = world.run(&["drill", "run", "shop", "--json"]);
    let facts = ended.json();
    // One objective that nobody can meet fails the drill, and says which profile sets it.
    assert_eq!(
        (ended.code, facts["verdict"].as_str()),
        (3, Some("FAILED")),
        "{facts:#}\n{}",
        ended.stderr
    );
    assert!(
        reasons(&facts).contains(&("rto-exceeded".into(), "hopeless.rto".into())),
        "{:#}",
        facts["reasons"]
    );
    for (check, result) in [
        ("rto", "PASS"),
        ("rpo", "PASS"),
        ("rto-from-start", "PASS"),
        ("stabilisation", "PASS"),
        ("writing", "PASS"),
        ("critical.rto", "PASS"),
        ("critical.rpo", "PASS"),
        ("hopeless.rto", "FAIL"),
    ] {
        let clock = clock(&facts, check);
        assert_eq!(clock["result"], result, "{clock:#}");
        assert_eq!(check_of(&facts, check)["result"], result);
    }
    let order: Vec<&str> = facts["clocks"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|clock| clock["measure"] == "recovery-time")
        .filter_map(|clock| clock["check"].as_str())
        .collect();
    assert_eq!(order[..2], ["hopeless.rto", "critical.rto"], "{order:?}");
    // Restore completion and stabilisation are both recorded, and the clocks are made of them.
    let at = |id: &str| {
        let instants = facts["instants"].as_array().expect("instants");
        let found = instants.iter().find(|instant| instant["id"] == id);
        found.unwrap_or_else(|| panic!("{id}: {instants:#?}"))["offset_ms"].as_u64()
    };
    let measured = at("stabilised")
        .zip(at("plan-started"))
        .map(|(to, from)| to - from);
    assert_eq!(clock(&facts, "rto")["measured_ms"].as_u64(), measured);
    assert!(at("target-reached") <= at("stabilised") && at("restore-finished") <= at("target-reached"));
    assert!(at("drill-finished").is_some() && at("point-made").is_some());
    // What was applied stands in the evidence, with digests.
    let profiles = facts["profiles"].as_array().expect("profiles");
    let names: Vec<&str> = profiles.iter().filter_map(|each| each["name"].as_str()).collect();
    assert_eq!(names, ["shop", "critical", "hopeless"]);
    assert_eq!(profiles[0]["source"], "file");
    assert!(
        profiles
            .iter()
            .all(|each| each["digest"].as_str().is_some_and(|digest| digest.len() == 64))
    );
    assert_eq!(facts["people"]["operator"], "Ann");
    assert_eq!(facts["people"]["reviewer"], "Bob");
    assert_eq!(facts["people"]["others"][0]["role"], "escalation");
    // The log of the run is part of the evidence.
    let report = std::path::PathBuf::from(facts["report"].as_str().expect("the report's path"));
    let log = std::fs::read_to_string(report.with_extension("").join("drill.log")).expect("drill.log");
    assert!(
        log.contains("step 1 look") && log.contains("restore done in"),
        "{log}"
    );
}

#[test]
fn a_contradiction_is_refused_with_file_line_and_reason_before_anything_runs() {
    let Some(world) =
        World::start("a_contradiction_is_refused_with_file_line_and_reason_before_anything_runs")
    else {
        return;
    };
    let file = world.scratch().join("pgproof.toml");
    let good = std::fs::read_to_string(&file).expect("the configuration");
    for (section, says) in [
        (
            "[drill.x]\nextends = \"quarterly-pitr\"\n[drill.x.gates]\nwal_age = \"10 min\"\n",
            "cannot show an RPO of 5 min",
        ),
        (
            "[drill.x]\nextends = \"quarterly-pitr\"\nrto_warning = \"2 h\"\n",
            "comes no sooner than the objective of 90 min",
        ),
        (
            "[drill.x]\nchecks = [\"amcheck\", \"amcheck\"]\n",
            "asked for twice",
        ),
        (
            "[drill.x]\nextends = \"quaterly-pitr\"\n",
            "no profile \"quaterly-pitr\"",
        ),
        (
            "[drill.x]\n[[drill.x.objective]]\nid = \"o\"\nclock = \"stabilised - begun\"\nat_most = \"1 min\"\n",
            "no instant \"begun\"",
        ),
        (
            "[drill.x]\n[[drill.x.check]]\nid = \"c\"\nkind = \"orphans\"\nsql = \"select 1\"\n",
            "`sql` has no meaning for a check of kind \"orphans\"",
        ),
    ] {
        std::fs::write(&file, format!("{good}\n{section}")).expect("write");
        let ended = world.run(&["drill", "run", "x"]);
        assert_eq!(ended.code, 2, "{section}: {}", ended.stderr);
        assert!(
            ended.stderr.contains("error[config-value]") && ended.stderr.contains("line "),
            "{}",
            ended.stderr
        );
        assert!(ended.stderr.contains(says), "{section}: {}", ended.stderr);
    }
}

#[test]
fn staging_needs_its_name_and_consent_and_a_file_of_production_is_refused() {
    let Some(world) = World::start("staging_needs_its_name_and_consent_and_a_file_of_production_is_refused")
    else {
        return;
    };
    world
        .session()
        .execute("create table public.a as select n from generate_series(1, 2000) n")
        .expect("a table");
    world.json(&["backup"]);
    let drill = ["drill", "run", "--json", "--operator", "Ann", "--reviewer", "Bob"];
    for (variables, code) in [
        (
            vec![("TARGET_ENV", "prod"), ("CONFIRM_DRILL", "YES")],
            "target-env",
        ),
        (vec![("TARGET_ENV", "staging")], "confirm-drill"),
        (vec![("ENV_FILE", "production.env")], "env-file-production"),
        (vec![("ENV_FILE", "missing.env")], "env-file"),
        (vec![("SKIP_BACKUP", "maybe")], "drill-variable"),
    ] {
        std::fs::write(world.scratch().join("production.env"), "APP_ENV=prod\n").expect("write");
        let ended = run_with(&world, &variables, &drill);
        assert_eq!(ended.code, 2, "{variables:?}: {}", ended.stderr);
        assert!(
            ended.stderr.contains(&format!("error[{code}]")),
            "{}",
            ended.stderr
        );
    }
    assert_eq!(
        world.json(&["drill", "list"])["drills"],
        Value::Array(Vec::new()),
        "nothing was drilled"
    );

    let reports = world.scratch().join("reports");
    let reports = reports.display().to_string();
    let ended = run_with(
        &world,
        &[
            ("TARGET_ENV", "staging"),
            ("CONFIRM_DRILL", "YES"),
            ("DRILL_REPORT_DIR", &reports),
        ],
        &drill,
    );
    let facts = ended.json();
    assert_eq!(ended.code, 0, "{facts:#}\n{}", ended.stderr);
    assert_eq!(facts["identity"]["environment"], "staging");
    assert_eq!(
        facts["identity"]["profile"], "quarterly",
        "the only one of the file that init wrote"
    );
    let guards: Vec<&str> = facts["gates"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|gate| gate["id"].as_str())
        .collect();
    assert!(
        guards.contains(&"target-env") && guards.contains(&"confirm-drill"),
        "{guards:?}"
    );
    let report = facts["report"].as_str().expect("the report's path");
    assert!(
        report.starts_with(&reports) && report.contains("pitr_drill_"),
        "{report}"
    );
}

#[test]
fn gates_say_go_or_no_go_and_a_closed_one_is_an_observation_unless_it_blocks() {
    let Some(world) =
        World::start("gates_say_go_or_no_go_and_a_closed_one_is_an_observation_unless_it_blocks")
    else {
        return;
    };
    world
        .session()
        .execute("create table public.a as select n from generate_series(1, 2000) n")
        .expect("a table");
    world.json(&["backup"]);
    configure(
        &world,
        r#"
[drill.shop]
extends = "quarterly-pitr"
[drill.strict]
extends = "quarterly-pitr"
[drill.strict.gates]
blocking = ["roles", "backup-age"]
[drill.old]
extends = "quarterly-pitr"
[drill.old.gates]
backup_age = "1 ms"
"#,
    );
    let before = tree(&world.repository());
    let preflight = |arguments: &[&str]| {
        let all: Vec<&str> = ["drill", "preflight", "--json"]
            .iter()
            .chain(arguments)
            .copied()
            .collect();
        let ended = world.run(&all);
        (ended.code, ended.json())
    };
    let result = |seen: &Value, id: &str| {
        let gates = seen["gates"].as_array().expect("gates");
        let gate = gates.iter().find(|gate| gate["id"] == id);
        gate.unwrap_or_else(|| panic!("{id}: {gates:#?}"))["result"]
            .as_str()
            .map(str::to_owned)
    };
    let (code, seen) = preflight(&["shop", "--operator", "Ann", "--reviewer", "Bob"]);
    assert_eq!((code, seen["go"].as_bool()), (0, Some(true)), "{seen:#}");
    for id in [
        "backup-age",
        "wal-age",
        "free-space",
        "page-checksums",
        "roles",
        "clock",
        "program",
    ] {
        assert_eq!(result(&seen, id).as_deref(), Some("PASS"), "{id}: {seen:#}");
    }
    assert_eq!(result(&seen, "target-reachable").as_deref(), Some("PASS"));
    assert_eq!(
        result(&seen, "predicted-time").as_deref(),
        Some("NOT RUN"),
        "there is no earlier drill"
    );
    // Each broken twin closes its own gate.
    let (code, seen) = preflight(&["shop", "--operator", "Ann", "--reviewer", "ann"]);
    assert_eq!((code, result(&seen, "roles").as_deref()), (3, Some("FAIL")));
    let (code, seen) = preflight(&["old", "--operator", "Ann", "--reviewer", "Bob"]);
    assert_eq!((code, result(&seen, "backup-age").as_deref()), (3, Some("FAIL")));
    let (code, seen) = preflight(&[
        "shop",
        "--operator",
        "Ann",
        "--reviewer",
        "Bob",
        "--target",
        "7FFF/0",
    ]);
    assert_eq!(
        (code, result(&seen, "target-reachable").as_deref()),
        (3, Some("FAIL"))
    );
    assert_eq!(
        tree(&world.repository()),
        before,
        "a preflight leaves nothing in the repository"
    );

    // Where the profile does not call it blocking, the drill goes on and says it.
    let facts = world.run(&["drill", "run", "shop", "--json", "--operator", "Ann"]);
    let (code, facts) = (facts.code, facts.json());
    assert_eq!(
        (code, facts["verdict"].as_str()),
        (0, Some("PASSED WITH OBSERVATIONS")),
        "{facts:#}"
    );
    assert!(
        reasons(&facts).iter().any(|(code, _)| code == "gate-closed"),
        "{:#}",
        facts["reasons"]
    );
    // Where it does, nothing is restored, and nobody can tell.
    let ended = world.run(&["drill", "run", "strict", "--json", "--operator", "Ann"]);
    let facts = ended.json();
    assert_eq!(
        (ended.code, facts["verdict"].as_str()),
        (4, Some("INCONCLUSIVE")),
        "{facts:#}"
    );
    assert_eq!(facts["failure"]["code"], "gate-closed");
    assert!(
        facts["steps"]
            .as_array()
            .into_iter()
            .flatten()
            .all(|step| step["id"] != "restore"),
        "{facts:#}"
    );

    // A drill says how long the next one will take.
    let (_, seen) = preflight(&["shop", "--operator", "Ann", "--reviewer", "Bob"]);
    assert_eq!(
        result(&seen, "predicted-time").as_deref(),
        Some("PASS"),
        "{seen:#}"
    );
    assert!(
        seen["predicted_seconds"]
            .as_f64()
            .is_some_and(|seconds| seconds > 0.0)
    );
}

#[test]
fn a_registered_plan_is_evidence_and_a_run_that_differs_from_it_says_so() {
    let Some(world) = World::start("a_registered_plan_is_evidence_and_a_run_that_differs_from_it_says_so")
    else {
        return;
    };
    world
        .session()
        .execute("create table public.a as select n from generate_series(1, 2000) n")
        .expect("a table");
    world.json(&["backup"]);
    let before = tree(&world.repository());
    let people = ["--operator", "Ann", "--reviewer", "Bob"];
    let with = |arguments: &[&'static str]| -> Vec<&'static str> {
        arguments.iter().copied().chain(people).collect()
    };
    let plan = world.json(&with(&["drill", "plan", "quarterly-pitr"]));
    assert_eq!(tree(&world.repository()), before, "a plan touches nothing");
    assert_eq!(plan["plan_error"], Value::Null, "{plan:#}");
    assert!(
        plan["substitutions"]
            .as_array()
            .is_some_and(|all| !all.is_empty()),
        "{plan:#}"
    );
    let text = world.run(&with(&["drill", "plan", "quarterly-pitr"])).ok().stdout;
    for line in [
        "Profile quarterly-pitr (built-in",
        "stabilised - plan-started at most",
        "Restore plan",
        "Gates: GO",
    ] {
        assert!(text.contains(line), "{line}:\n{text}");
    }

    let registered = world.json(&with(&[
        "drill",
        "plan",
        "quarterly-pitr",
        "--register",
        "--due",
        "now",
    ]));
    let id = registered["registered"].as_str().expect("a name").to_owned();
    assert_eq!(
        world.json(&["drill", "list"])["drills"],
        Value::Array(Vec::new()),
        "a plan is no drill"
    );
    let facts = world.json(&with(&["drill", "run", "quarterly-pitr"]));
    assert_eq!(
        facts["registration"]["id"].as_str(),
        Some(id.as_str()),
        "{facts:#}"
    );
    assert_eq!(facts["registration"].get("deviations"), None, "{facts:#}");
    // Every step of the plan is one of the run, in its order.
    let ids = |value: &Value| -> Vec<String> {
        let steps = value["steps"].as_array().into_iter().flatten();
        steps
            .filter_map(|step| step["id"].as_str().map(str::to_owned))
            .collect()
    };
    assert_eq!(ids(&facts), ids(&plan));
    // It is used once.
    let facts = world.json(&with(&["drill", "run", "quarterly-pitr"]));
    assert_eq!(facts.get("registration"), None, "{facts:#}");
    assert!(facts["steps"][0]["expected_ms"].is_u64(), "{facts:#}");

    // Criteria that are changed afterwards show.
    world.json(&with(&["drill", "plan", "quarterly-pitr", "--register"]));
    configure(&world, "[drill.quarterly-pitr]\nrto = \"80 min\"\n");
    let facts = world.json(&[
        "drill",
        "run",
        "quarterly-pitr",
        "--operator",
        "Carla",
        "--reviewer",
        "Bob",
    ]);
    let deviations = facts["registration"]["deviations"].to_string();
    assert!(
        deviations.contains("was changed since") && deviations.contains("Carla"),
        "{facts:#}"
    );
    assert!(
        reasons(&facts).iter().any(|(code, _)| code == "plan-deviates"),
        "{:#}",
        facts["reasons"]
    );
}

/// Every file below a folder, with its size; WAL is left out, which production may archive at any time.
fn tree(folder: &std::path::Path) -> Vec<(std::path::PathBuf, u64)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).expect("folder").flatten() {
        let path = entry.path();
        match path.is_dir() {
            true if path.ends_with("wal") || path.ends_with("tmp") => {}
            // The probe's folder may stay, empty.
            true => found.extend(tree(&path)),
            false => found.push((path.clone(), entry.metadata().expect("size").len())),
        }
    }
    found.sort();
    found
}

#[test]
fn a_point_of_the_past_is_proved_by_standing_markers_and_a_random_one_is_drawn_again_by_its_seed() {
    let Some(world) = World::start(
        "a_point_of_the_past_is_proved_by_standing_markers_and_a_random_one_is_drawn_again_by_its_seed",
    ) else {
        return;
    };
    world
        .session()
        .execute("create table public.a as select n from generate_series(1, 2000) n")
        .expect("a table");
    world.json(&["backup"]);
    let before = world.json(&["drill", "mark"])["marker"]
        .as_str()
        .expect("a marker")
        .to_owned();
    let lsn = world
        .session()
        .one("select pg_current_wal_insert_lsn()")
        .expect("an LSN")[0]
        .clone()
        .expect("an LSN");
    std::thread::sleep(std::time::Duration::from_millis(50));
    let behind = world.json(&["drill", "mark"])["marker"]
        .as_str()
        .expect("a marker")
        .to_owned();
    // Something behind it all, so that every moment up to here can be a target.
    world
        .session()
        .execute("insert into public.a values (0)")
        .expect("work");
    world.archive_all();
    configure(
        &world,
        "\n[drill.past]\nmay_be_not_run = [\"row-proof\"]\n[drill.past.gates]\nroles = false\n",
    );
    let facts = world.json(&["drill", "run", "past", "--target", &lsn]);
    let check = check_of(&facts, "standing-markers");
    assert_eq!(check["result"], "PASS", "{check:#}\n{:#}", facts["point"]);
    let marker = |id: &str| {
        let markers = facts["point"]["markers"].as_array().expect("markers");
        markers
            .iter()
            .find(|marker| marker["id"] == id)
            .cloned()
            .unwrap_or_else(|| panic!("{id}: {markers:#?}"))
    };
    assert_eq!(
        (&marker(&before)["expected"], &marker(&before)["found"]),
        (&Value::Bool(true), &Value::Bool(true))
    );
    assert_eq!(
        (&marker(&behind)["expected"], &marker(&behind)["found"]),
        (&Value::Bool(false), &Value::Bool(false))
    );
    // What nothing can prove for such a point is NOT RUN; the profile accepts it, and the report says so.
    assert_eq!(check_of(&facts, "row-proof")["result"], "NOT RUN");
    assert!(
        reasons(&facts).iter().all(|(_, check)| check != "row-proof"),
        "{:#}",
        facts["reasons"]
    );
    assert!(
        facts["limits"].to_string().contains("which the profile accepts"),
        "{:#}",
        facts["limits"]
    );

    let random = world.json(&["drill", "run", "past", "--target", "random"]);
    let point = &random["point"];
    assert_eq!(point["kind"], "random", "{point:#}");
    let seed = point["seed"].as_str().expect("a seed");
    assert_eq!(check_of(&random, "target")["result"], "PASS", "{random:#}");
    let within = |at: &Value| {
        at.as_str()
            .expect("a time")
            .parse::<jiff::Timestamp>()
            .expect("a time")
    };
    let at = within(&point["resolved"]);
    assert!(
        at >= within(&point["window"]["from"]) && at < within(&point["window"]["to"]),
        "{point:#}"
    );
    // The archive has grown by nothing since, so the seed gives the same point.
    let plan = world
        .run(&["drill", "plan", "past", "--target", "random", "--seed", seed])
        .ok()
        .stdout;
    let printed = postgres::Timestamp::from_jiff(at).to_string();
    assert!(plan.contains(&printed), "{printed}:\n{plan}");

    let worst = world.json(&["drill", "run", "past", "--target", "worst"]);
    assert_eq!(worst["point"]["kind"], "worst");
    assert!(
        worst["point"]["predicted_wal_bytes"]
            .as_u64()
            .is_some_and(|bytes| bytes > 0),
        "{:#}",
        worst["point"]
    );
    assert_eq!(check_of(&worst, "target")["result"], "PASS", "{worst:#}");
}

#[test]
fn a_backup_is_made_first_where_the_profile_says_so_and_one_that_is_named_is_taken() {
    let Some(world) =
        World::start("a_backup_is_made_first_where_the_profile_says_so_and_one_that_is_named_is_taken")
    else {
        return;
    };
    world
        .session()
        .execute("create table public.a as select n from generate_series(1, 2000) n")
        .expect("a table");
    configure(&world, "\n[drill.first]\nbackup_first = true\n");
    let count = || world.json(&["list"])["backups"].as_array().map_or(0, Vec::len);
    let drill =
        |variables: &[(&str, &str)]| run_with(&world, variables, &["drill", "run", "first", "--json"]);
    // There is none yet: the drill makes it, and says so.
    let ended = drill(&[]);
    let facts = ended.json();
    assert_eq!((ended.code, count()), (0, 1), "{facts:#}\n{}", ended.stderr);
    assert_eq!(facts["steps"][0]["id"], "backup");
    let oldest = facts["input"]["backup"].as_str().expect("a backup").to_owned();
    let facts = drill(&[("SKIP_BACKUP", "false")]).json();
    assert_eq!(count(), 2);
    assert_ne!(facts["input"]["backup"].as_str(), Some(oldest.as_str()));
    let facts = drill(&[("SKIP_BACKUP", "true")]).json();
    assert_eq!(
        (facts["steps"][0]["id"].as_str(), count()),
        (Some("look"), 2),
        "{facts:#}"
    );
    // A certain one.
    let facts = drill(&[("SKIP_BACKUP", "true"), ("BASE_BACKUP", &oldest)]).json();
    assert_eq!(
        facts["input"]["backup"].as_str(),
        Some(oldest.as_str()),
        "{facts:#}"
    );
    let ended = drill(&[("SKIP_BACKUP", "true"), ("BASE_BACKUP", "20200101T000000Z")]);
    assert_eq!(ended.code, 2, "{}", ended.stderr);
    assert!(ended.stderr.contains("error[backup-unknown]"), "{}", ended.stderr);
    // The file of another tool is imported first.
    let program = testing::client_program(&world.programs, "pg_basebackup").expect("pg_basebackup");
    let files = world.production.scratch().subfolder("files").expect("a folder");
    let conninfo = world.production.conninfo();
    let mut command = std::process::Command::new(program);
    command
        .args(["-d", &conninfo, "-Ft", "-z", "-X", "none", "-c", "fast", "-D"])
        .arg(&files);
    let output = command.output().expect("pg_basebackup runs");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    support::give_to_account(&files);
    world.archive_all();
    let base = files.join("base.tar.gz").display().to_string();
    let ended = drill(&[("BASE_BACKUP", &base)]);
    let facts = ended.json();
    assert_eq!((ended.code, count()), (0, 3), "{facts:#}\n{}", ended.stderr);
    assert_eq!(facts["steps"][0]["id"], "import", "{facts:#}");
    assert!(
        facts["steps"][0]["detail"].as_str() == facts["input"]["backup"].as_str(),
        "{facts:#}"
    );
}

#[test]
fn a_restore_that_fails_is_tried_again_and_the_report_says_so() {
    use std::io::{BufRead, BufReader};
    let Some(world) = World::start("a_restore_that_fails_is_tried_again_and_the_report_says_so") else {
        return;
    };
    world
        .session()
        .execute("create table public.a as select n from generate_series(1, 2000) n")
        .expect("a table");
    world.json(&["backup"]);
    configure(
        &world,
        "\n[drill.stubborn]\nrestore_tries = 3\n[drill.once]\nrestore_tries = 1\n",
    );
    let pack = tree(&world.repository())
        .into_iter()
        .map(|(path, _)| path)
        .find(|path| path.extension().is_some_and(|extension| extension == "rows"))
        .expect("a pack of rows");
    let aside = world.scratch().join("aside");
    std::fs::rename(&pack, &aside).expect("move the pack away");
    let ended = world.run(&["drill", "run", "once", "--json"]);
    let facts = ended.json();
    assert_eq!(
        (ended.code, facts["verdict"].as_str()),
        (3, Some("FAILED")),
        "{facts:#}"
    );

    let mut command = world.command(&["drill", "run", "stubborn", "--json"]);
    command
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped());
    let mut child = command.spawn().expect("the program starts");
    let told = BufReader::new(child.stderr.take().expect("its standard error"));
    let mut output = child.stdout.take().expect("its standard output");
    let reader = std::thread::spawn(move || {
        let mut text = String::new();
        std::io::Read::read_to_string(&mut output, &mut text).expect("its output");
        text
    });
    let mut away = true;
    for line in told.lines() {
        // It is put back as soon as the first try has failed.
        if line.expect("a line").contains("once more") && std::mem::take(&mut away) {
            std::fs::rename(&aside, &pack).expect("put the pack back");
        }
    }
    let code = child.wait().expect("it ends").code();
    let facts: Value = serde_json::from_str(&reader.join().expect("its output")).expect("JSON");
    assert_eq!(code, Some(0), "{facts:#}");
    let steps = facts["steps"].as_array().expect("steps");
    let restore = steps
        .iter()
        .find(|step| step["id"] == "restore")
        .expect("the step");
    assert!(
        restore["retries"]
            .as_array()
            .is_some_and(|retries| !retries.is_empty()),
        "{restore:#}"
    );
    assert!(
        reasons(&facts).iter().any(|(code, _)| code == "step-retried"),
        "{:#}",
        facts["reasons"]
    );
    assert_eq!(check_of(&facts, "row-proof")["result"], "PASS");
}
