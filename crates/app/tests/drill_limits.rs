//! A step of a drill that is over its limit is ended, and the drill with it: FAILED where it is the recovery or its
//! proof, INCONCLUSIVE before, an observation where the copy is cleaned up; the twin without the limit passes.

mod support;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;
use support::{Ended, World, configure, is_restored, start_drill, wait_for_copy};

/// Nobody waits so long: whoever ends sooner was ended. Each number is one test's own, by which its program is known.
const SECONDS_OF_COMMAND: &str = "86391";
const SECONDS_OF_STATEMENT: &str = "86392";
/// What is left of an hour's machine when a step was ended at its limit of 10 s.
const SOON: Duration = Duration::from_secs(240);

fn world(name: &str) -> Option<(World, PathBuf)> {
    let world = World::start(name)?;
    world
        .session()
        .execute("create table public.a as select n, md5(n::text) as v from generate_series(1, 20000) n")
        .expect("a table");
    world.json(&["backup"]);
    let copies = world.production.scratch().subfolder("copies").expect("folder");
    Some((world, copies))
}

/// A drill, its facts, and how long it took. Nothing of its copy is left, and its evidence agrees.
fn drill(world: &World, copies: &Path, profile: &str) -> (Ended, Value, Duration) {
    let directory = copies.display().to_string();
    let began = Instant::now();
    let ended = world.run(&["drill", "run", profile, "--json", "--directory", &directory]);
    let took = began.elapsed();
    let facts = ended.json();
    assert!(
        std::fs::read_dir(copies).expect("folder").next().is_none(),
        "{profile}: the copy is gone"
    );
    assert_eq!(facts["teardown"]["server_stopped"], true, "{profile}");
    let id = facts["identity"]["drill_id"].as_str().expect("an id");
    world.run(&["drill", "audit", id]).ok();
    (ended, facts, took)
}

fn step<'a>(facts: &'a Value, id: &str) -> &'a Value {
    let all = facts["steps"].as_array().expect("steps");
    let found = all.iter().find(|step| step["id"] == id);
    found.unwrap_or_else(|| panic!("{id}: {all:#?}"))
}

/// The reason of this code.
fn reason<'a>(facts: &'a Value, code: &str) -> &'a Value {
    let all = facts["reasons"].as_array().expect("reasons");
    let found = all.iter().find(|reason| reason["code"] == code);
    found.unwrap_or_else(|| panic!("{code}: {all:#?}"))
}

/// Whether a program with this argument runs.
fn runs(argument: &str) -> bool {
    let processes = std::fs::read_dir("/proc").expect("processes").flatten();
    processes
        .filter_map(|process| std::fs::read(process.path().join("cmdline")).ok())
        .any(|line| {
            line.split(|byte| *byte == 0)
                .any(|word| word == argument.as_bytes())
        })
}

fn failed_at(ended: &Ended, facts: &Value, step_id: &str, limit: &str) {
    assert_eq!(
        (ended.code, facts["verdict"].as_str()),
        (3, Some("FAILED")),
        "{facts:#}\n{}",
        ended.stderr
    );
    assert_eq!(facts["failure"]["step"], step_id);
    let reason = reason(facts, "step-limit-exceeded");
    assert_eq!(reason["weight"], "failure");
    let text = reason["text"].as_str().expect("a text");
    assert!(
        text.contains(&format!("\"{step_id}\"")) && text.contains(limit) && text.contains(" after "),
        "{text}"
    );
    let step = step(facts, step_id);
    assert_eq!(
        (step["outcome"].as_str(), step["at_limit"].as_str()),
        (Some("failed"), Some("finding")),
        "{step:#}"
    );
    assert!(
        step["duration_ms"].as_u64() > step["limit_ms"].as_u64(),
        "{step:#}"
    );
}

#[test]
fn a_step_that_hangs_is_ended_at_its_limit_and_fails_the_drill_and_its_twin_passes() {
    let Some((world, copies)) =
        world("a_step_that_hangs_is_ended_at_its_limit_and_fails_the_drill_and_its_twin_passes")
    else {
        return;
    };
    configure(
        &world,
        &format!(
            r#"
[drill.command]
grants = ["commands"]
checks = []
[drill.command.step_limits]
recover = "10 s"
[[drill.command.check]]
id = "waits"
kind = "command"
command = ["sleep", "{SECONDS_OF_COMMAND}"]
limit = "12 h"

[drill.statement]
checks = []
[drill.statement.step_limits]
recover = "10 s"
[[drill.statement.check]]
id = "waits"
sql = "select pg_sleep({SECONDS_OF_STATEMENT}) is null"
expect = false

[drill.twin]
grants = ["commands"]
checks = []
[[drill.twin.check]]
id = "waits"
kind = "command"
command = ["sleep", "1"]
[[drill.twin.check]]
id = "asks"
sql = "select pg_sleep(0.1) is null"
expect = false
"#
        ),
    );
    // What will be ended, and after what time, is said beforehand.
    let plan = world.json(&["drill", "plan", "command"]);
    let recover = step(&plan, "recover");
    assert_eq!(
        (recover["limit_ms"].as_u64(), recover["at_limit"].as_str()),
        (Some(10_000), Some("finding"))
    );
    let printed = world.run(&["drill", "plan", "command"]).ok().stdout;
    assert!(printed.contains("fails after 10"), "{printed}");

    for profile in ["command", "statement"] {
        let (ended, facts, took) = drill(&world, &copies, profile);
        failed_at(&ended, &facts, "recover", "10 s");
        assert!(took < SOON, "{profile}: {took:?}");
        assert!(
            ended.stderr.contains("it is ended after 10 s"),
            "{}",
            ended.stderr
        );
        // What was interrupted is no answer.
        let checks = facts["checks"].as_array().expect("checks");
        let waits = checks.iter().find(|check| check["id"] == "waits");
        assert_eq!(waits.map(|check| &check["result"]), Some(&"NOT RUN".into()));
        assert!(!runs(SECONDS_OF_COMMAND), "the program is gone");
        let report = std::fs::read_to_string(facts["report"].as_str().expect("a report")).expect("report");
        assert!(report.contains("step-limit-exceeded"), "{report}");
    }

    let (ended, facts, _) = drill(&world, &copies, "twin");
    assert_eq!(
        (ended.code, facts["verdict"].as_str()),
        (0, Some(world.sound_verdict())),
        "{facts:#}\n{}",
        ended.stderr
    );
    assert_eq!(step(&facts, "recover")["limit_ms"], Value::Null);
}

#[test]
fn what_a_limit_means_depends_on_the_step_and_a_restore_is_not_tried_again_behind_it() {
    let Some((world, copies)) =
        world("what_a_limit_means_depends_on_the_step_and_a_restore_is_not_tried_again_behind_it")
    else {
        return;
    };
    configure(
        &world,
        r#"
[drill.restore]
checks = []
restore_tries = 3
[drill.restore.step_limits]
restore = "1 ms"

[drill.point]
checks = []
[drill.point.step_limits]
point = "1 ms"

[drill.cleaning]
checks = []
[drill.cleaning.step_limits]
tear-down = "1 ms"
"#,
    );
    let (ended, facts, took) = drill(&world, &copies, "restore");
    failed_at(&ended, &facts, "restore", "1 ms");
    assert!(took < SOON, "{took:?}");
    assert_eq!(step(&facts, "restore")["retries"], Value::Null, "{facts:#}");
    let report = std::fs::read_to_string(facts["report"].as_str().expect("a report")).expect("report");
    assert!(
        report.contains("SEV-1"),
        "nobody saw this recovery work: {report}"
    );

    // Nothing was recovered yet: nobody can tell.
    let (ended, facts, _) = drill(&world, &copies, "point");
    assert_eq!(
        (ended.code, facts["verdict"].as_str()),
        (4, Some("INCONCLUSIVE")),
        "{facts:#}\n{}",
        ended.stderr
    );
    assert_eq!(reason(&facts, "step-limit-exceeded")["weight"], "doubt");

    // What cleans up is made to its end.
    let (ended, facts, _) = drill(&world, &copies, "cleaning");
    assert_eq!(
        (ended.code, facts["verdict"].as_str()),
        (0, Some("PASSED WITH OBSERVATIONS")),
        "{facts:#}\n{}",
        ended.stderr
    );
    assert_eq!(reason(&facts, "step-too-slow")["weight"], "observation");

    configure(
        &world,
        "\n[drill.misspelt]\n[drill.misspelt.step_limits]\nrecovery = \"1 h\"\n",
    );
    let ended = world.run(&["drill", "run", "misspelt"]);
    assert_eq!(ended.code, 2, "{}", ended.stderr);
    assert!(
        ended.stderr.contains("no step \"recovery\"") && ended.stderr.contains("recover, "),
        "{}",
        ended.stderr
    );
}

#[test]
fn a_drill_that_waits_for_a_statement_is_ended_by_abort_and_is_aborted() {
    let Some((world, copies)) = world("a_drill_that_waits_for_a_statement_is_ended_by_abort_and_is_aborted")
    else {
        return;
    };
    configure(
        &world,
        &format!(
            "\n[drill.endless]\nchecks = []\n[[drill.endless.check]]\nid = \"waits\"\n\
             sql = \"select pg_sleep({SECONDS_OF_STATEMENT}) is null\"\nexpect = false\n"
        ),
    );
    let child = start_drill(&world, Some("endless"), &copies);
    wait_for_copy(&copies, is_restored);
    wait_for_copy(&copies, |folder| folder.join("s/.s.PGSQL.5432").exists());
    // It may be on its way to the statement still, and is ended there then.
    std::thread::sleep(Duration::from_secs(4));
    let directory = copies.display().to_string();
    world.run(&["drill", "abort", "--directory", &directory]).ok();
    let ended = Ended::of(&child.wait_with_output().expect("it has ended"));
    let facts = ended.json();
    assert_eq!(
        (ended.code, facts["verdict"].as_str()),
        (4, Some("ABORTED")),
        "{facts:#}\n{}",
        ended.stderr
    );
    assert!(
        std::fs::read_dir(&copies).expect("folder").next().is_none(),
        "the copy is gone"
    );
}
