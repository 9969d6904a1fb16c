//! What people do while a drill runs: confirmed from another process, beforehand, or by nobody.

mod support;

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::Value;
use support::{Ended, World, check_of, configure, is_restored, start_drill, wait_for_copy};

/// A cluster with a backup, a drill with three steps of people, and a folder for copies.
fn world(name: &str) -> Option<(World, PathBuf)> {
    let world = World::start(name)?;
    world
        .session()
        .execute("create table public.a as select n from generate_series(1, 2000) n")
        .expect("a table");
    world.json(&["backup"]);
    let copies = world.production.scratch().subfolder("copies").expect("folder");
    configure(
        &world,
        r#"
[drill.shop]
[drill.shop.people]
escalation = { name = "Dora", after = "30 min" }
dba = "Emil"
[[drill.shop.manual]]
id = "window"
title = "A maintenance window is agreed"
when = "before"
required = true
limit = "60 s"
[[drill.shop.manual]]
id = "look"
title = "Somebody has looked at the copy"
when = "at-target"
limit = "60 s"
[[drill.shop.manual]]
id = "told"
title = "The team is told"
when = "after"
limit = "60 s"

[drill.nobody]
[[drill.nobody.manual]]
id = "window"
title = "A maintenance window is agreed"
when = "before"
required = true
limit = "300 ms"
[[drill.nobody.manual]]
id = "told"
title = "The team is told"
when = "after"
limit = "200 ms"
"#,
    );
    Some((world, copies))
}

/// Confirms, or what else these arguments say, as soon as there is a drill to be told.
fn answer(world: &World, copies: &Path, arguments: &[&str]) -> Ended {
    let directory = copies.display().to_string();
    let mut all = vec!["drill", "confirm", "--directory", &directory];
    all.extend(arguments);
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        let ended = world.run(&all);
        let early = ended.stderr.contains("error[drill-missing]")
            || ended.stderr.contains("error[manual-step-unknown]");
        if !early || Instant::now() > end {
            return ended;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn by_hand<'a>(facts: &'a Value, id: &str) -> &'a Value {
    let all = facts["manual"].as_array().expect("steps of people");
    let found = all.iter().find(|step| step["id"] == id);
    found.unwrap_or_else(|| panic!("{id}: {all:#?}"))
}

fn step<'a>(facts: &'a Value, id: &str) -> &'a Value {
    let all = facts["steps"].as_array().expect("steps");
    let found = all.iter().find(|step| step["id"] == id);
    found.unwrap_or_else(|| panic!("{id}: {all:#?}"))
}

#[test]
fn a_step_is_confirmed_from_another_process_with_name_and_time_and_the_first_answer_counts() {
    let Some((world, copies)) =
        world("a_step_is_confirmed_from_another_process_with_name_and_time_and_the_first_answer_counts")
    else {
        return;
    };
    let child = start_drill(&world, Some("shop"), &copies);
    let said = answer(&world, &copies, &["window", "--by", "Ann"]).ok();
    assert!(
        said.stdout
            .contains("\"A maintenance window is agreed\" is confirmed by Ann"),
        "{}",
        said.stdout
    );
    assert!(said.stdout.contains("still open: look"), "{}", said.stdout);
    // The first answer counts, and the second one is told so.
    let late = answer(&world, &copies, &["window", "--by", "Bob"]);
    assert_eq!(late.code, 1, "{}", late.stderr);
    assert!(
        late.stderr.contains("error[manual-step-answered]") && late.stderr.contains("Ann has confirmed it"),
        "{}",
        late.stderr
    );
    let bad = world.run(&["drill", "confirm", "look", "--by", "A\u{1b}[2Jnn"]);
    assert_eq!(bad.code, 2, "{}", bad.stderr);
    assert!(bad.stderr.contains("error[manual-step-words]"), "{}", bad.stderr);
    answer(
        &world,
        &copies,
        &["look", "--by", "Bob", "--skip", "nobody has the time"],
    )
    .ok();
    answer(&world, &copies, &["told", "--by", "Carla"]).ok();
    let ended = Ended::of(&child.wait_with_output().expect("it has ended"));
    let facts = ended.json();
    assert_eq!(ended.code, 0, "{facts:#}\n{}", ended.stderr);
    // What is to be done, and how to confirm it, was said.
    assert!(
        ended.stderr.contains("pgproof drill confirm told --by NAME")
            || ended.stderr.contains("told: confirmed by Carla"),
        "{}",
        ended.stderr
    );
    for (id, state, by) in [
        ("window", "confirmed", "Ann"),
        ("look", "skipped", "Bob"),
        ("told", "confirmed", "Carla"),
    ] {
        let step = by_hand(&facts, id);
        assert_eq!(
            (step["state"].as_str(), step["by"].as_str()),
            (Some(state), Some(by))
        );
        let time = |key: &str| {
            step[key]
                .as_str()
                .and_then(|at| at.parse::<jiff::Timestamp>().ok())
        };
        assert!(time("at").is_some() && time("asked_at").is_some(), "{step:#}");
    }
    assert_eq!(by_hand(&facts, "look")["why"], "nobody has the time");
    // The one that is not required and was skipped is an observation.
    let reasons = facts["reasons"].as_array().expect("reasons");
    let open: Vec<&Value> = reasons
        .iter()
        .filter(|reason| reason["code"] == "manual-step-open")
        .collect();
    assert_eq!(open.len(), 1, "{reasons:#?}");
    assert_eq!(open[0]["weight"], "observation");
    // Waiting is part of the steps, and not of the engine's own time.
    for id in ["manual-before", "manual-at-target", "manual-after"] {
        let step = step(&facts, id);
        assert_eq!(step["outcome"], "done");
        let own = step["duration_ms"].as_u64().zip(step["work_ms"].as_u64());
        assert!(own.is_some_and(|(all, work)| all - work < 200), "{step:#}");
    }
    let order: Vec<&str> = facts["steps"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|step| step["id"].as_str())
        .collect();
    let at = |id: &str| order.iter().position(|step| *step == id);
    assert!(at("manual-before") < at("restore") && at("recover") < at("manual-at-target"));
    assert!(at("manual-at-target") < at("tear-down") && at("archive-after") < at("manual-after"));
    assert!(
        std::fs::read_dir(&copies).expect("folder").next().is_none(),
        "nothing is left"
    );
    let report = std::fs::read_to_string(facts["report"].as_str().expect("a report")).expect("report");
    assert!(report.contains("Confirmed by Ann"), "{report}");
    // So is who is called when.
    let others = &facts["people"]["others"];
    assert_eq!(others[0]["called_after_seconds"], 1800, "{others:#}");
    assert_eq!(others[1]["called_after_seconds"], Value::Null, "{others:#}");
    assert!(report.contains("Called from 30 min on"), "{report}");
    // Anybody can judge it again.
    let id = facts["identity"]["drill_id"].as_str().expect("an id");
    world.run(&["drill", "audit", id]).ok();
}

#[test]
fn nobody_within_the_limit_makes_a_required_step_inconclusive_unless_it_was_confirmed_beforehand() {
    let Some((world, copies)) = world(
        "nobody_within_the_limit_makes_a_required_step_inconclusive_unless_it_was_confirmed_beforehand",
    ) else {
        return;
    };
    let directory = copies.display().to_string();
    let run = |further: &[&str]| {
        let mut all = vec!["drill", "run", "nobody", "--json", "--directory", &directory];
        all.extend(further);
        world.run(&all)
    };
    let ended = run(&[]);
    let facts = ended.json();
    assert_eq!(
        (ended.code, facts["verdict"].as_str()),
        (4, Some("INCONCLUSIVE")),
        "{facts:#}\n{}",
        ended.stderr
    );
    for said in [
        "A maintenance window is agreed",
        "pgproof drill confirm window --by NAME",
        "nobody confirmed it within",
    ] {
        assert!(ended.stderr.contains(said), "{said}: {}", ended.stderr);
    }
    let window = by_hand(&facts, "window");
    assert_eq!(window["state"], "not-confirmed");
    assert!(
        window["why"].as_str().is_some_and(|why| why.contains("nobody")),
        "{window:#}"
    );
    assert!(step(&facts, "manual-before")["duration_ms"].as_u64() >= Some(300));
    // What the drill itself looked at has its results all the same.
    assert_eq!(check_of(&facts, "row-proof")["result"], "PASS");

    let ended = run(&["--confirm", "window=Ann"]);
    let facts = ended.json();
    assert_eq!(ended.code, 0, "{facts:#}\n{}", ended.stderr);
    assert_eq!(by_hand(&facts, "window")["by"], "Ann");
    assert_eq!(by_hand(&facts, "told")["state"], "not-confirmed");

    // Both are counted: one did not pass, and both copies got to their target.
    let listed = world.json(&["drill", "list"]);
    assert_eq!(listed["rates"][0]["profile"], "nobody");
    let rates = listed["rates"][0]["rates"].as_array().expect("rates");
    let rate = |id: &str| {
        let rate = rates.iter().find(|rate| rate["id"] == id).expect("a rate");
        let text = |key: &str| rate[key].as_str().unwrap_or_default().to_owned();
        (text("actual"), text("target"), text("result"))
    };
    let words = |a: &str, b: &str, c: &str| (a.to_owned(), b.to_owned(), c.to_owned());
    assert_eq!(rate("drills-passed"), words("1 of 2 (50 %)", "100 %", "not met"));
    assert_eq!(rate("restores"), words("2 of 2 (100 %)", "100 %", "met"));
    assert_eq!(rate("recovery-time").2, "met");
    assert_eq!(rate("backup-growth").2, "cannot be said");
    assert_eq!(rate("backups").2, "met");
    let printed = world.run(&["drill", "list"]).ok().stdout;
    assert!(
        printed.contains("Drills that passed") && printed.contains("a backup whose process was killed"),
        "{printed}"
    );

    let ended = run(&["--confirm", "windows=Ann"]);
    assert_eq!(ended.code, 2, "{}", ended.stderr);
    assert!(
        ended.stderr.contains("error[drill-usage]") && ended.stderr.contains("window, told"),
        "{}",
        ended.stderr
    );
    assert!(
        std::fs::read_dir(&copies).expect("folder").next().is_none(),
        "nothing is left"
    );
}

#[test]
fn a_wrong_confirmation_is_refused_before_the_backup_that_a_drill_makes_first() {
    let Some((world, copies)) =
        world("a_wrong_confirmation_is_refused_before_the_backup_that_a_drill_makes_first")
    else {
        return;
    };
    configure(
        &world,
        r#"
[drill.first]
backup_first = true
checks = []
[[drill.first.manual]]
id = "window"
title = "A maintenance window is agreed"
when = "before"
required = true
limit = "60 s"
"#,
    );
    let directory = copies.display().to_string();
    let run = |confirmed: &[&str]| {
        let mut all = vec!["drill", "run", "first", "--json", "--directory", &directory];
        for confirmed in confirmed {
            all.extend(["--confirm", confirmed]);
        }
        world.run(&all)
    };
    let count = || world.json(&["list"])["backups"].as_array().map_or(0, Vec::len);
    for wrong in [
        &["windows=Ann"][..],
        &["window="],
        &["window=A\u{1b}[2Jnn"],
        &["window=Ann", "window=Bob"],
        &["window=Ann", "told=Bob"],
    ] {
        let ended = run(wrong);
        assert_eq!(ended.code, 2, "{wrong:?}: {}", ended.stderr);
        let said = format!("{}{}", ended.stdout, ended.stderr);
        assert!(said.contains("drill-usage"), "{wrong:?}: {said}");
        assert_eq!(count(), 1, "{wrong:?}: nothing was backed up for it");
        assert!(
            !world.scratch().join("ops").exists(),
            "{wrong:?}: no report was begun"
        );
    }
    let ended = run(&["window=Ann"]);
    let facts = ended.json();
    assert_eq!((ended.code, count()), (0, 2), "{facts:#}\n{}", ended.stderr);
    assert_eq!(by_hand(&facts, "window")["by"], "Ann");
}

#[test]
fn a_drill_that_waits_for_people_is_ended_by_abort() {
    let Some((world, copies)) = world("a_drill_that_waits_for_people_is_ended_by_abort") else {
        return;
    };
    let child = start_drill(&world, Some("shop"), &copies);
    let directory = copies.display().to_string();
    answer(&world, &copies, &["told", "--by", "Carla"]).ok();
    world.run(&["drill", "abort", "--directory", &directory]).ok();
    let ended = Ended::of(&child.wait_with_output().expect("it has ended"));
    let facts = ended.json();
    assert_eq!(facts["verdict"], "ABORTED", "{}", ended.stderr);
    for id in ["look", "told"] {
        let step = by_hand(&facts, id);
        assert_eq!(step["state"], "not-confirmed", "{step:#}");
        assert!(
            step["why"].as_str().is_some_and(|why| why.contains("ended")),
            "{step:#}"
        );
    }
}

#[test]
fn what_was_confirmed_before_a_drill_was_killed_still_counts_when_it_is_taken_up_again() {
    let Some((world, copies)) =
        world("what_was_confirmed_before_a_drill_was_killed_still_counts_when_it_is_taken_up_again")
    else {
        return;
    };
    let mut child = start_drill(&world, Some("shop"), &copies);
    answer(&world, &copies, &["window", "--by", "Ann"]).ok();
    // For later: the drill has not come to it when it is killed.
    answer(&world, &copies, &["told", "--by", "Carla"]).ok();
    wait_for_copy(&copies, is_restored);
    child.kill().expect("SIGKILL");
    child.wait().expect("it has ended");
    let directory = copies.display().to_string();
    let mut again = world.command(&["drill", "resume", "--json", "--directory", &directory]);
    again
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let again = again.spawn().expect("it is taken up");
    answer(&world, &copies, &["look", "--by", "Bob"]).ok();
    let ended = Ended::of(&again.wait_with_output().expect("it has ended"));
    let facts = ended.json();
    assert_eq!(ended.code, 0, "{facts:#}\n{}", ended.stderr);
    for (id, by) in [("window", "Ann"), ("look", "Bob"), ("told", "Carla")] {
        let step = by_hand(&facts, id);
        assert_eq!(
            (step["state"].as_str(), step["by"].as_str()),
            (Some("confirmed"), Some(by))
        );
    }
    assert!(
        std::fs::read_dir(&copies).expect("folder").next().is_none(),
        "nothing is left"
    );
}

#[test]
fn steps_that_cannot_be_confirmed_are_refused_when_the_file_is_read() {
    let Some((world, _)) = world("steps_that_cannot_be_confirmed_are_refused_when_the_file_is_read") else {
        return;
    };
    let file = world.scratch().join("pgproof.toml");
    let good = std::fs::read_to_string(&file).expect("the configuration");
    let step = |lines: &str| format!("[drill.x]\n[[drill.x.manual]]\n{lines}\n");
    for (section, says) in [
        (
            step("id = \"../x\"\ntitle = \"t\"\nwhen = \"before\""),
            "letters, digits and hyphens",
        ),
        (
            step("id = \"a\"\ntitle = \"t\"\nwhen = \"during\""),
            "a step is made \"before\", \"at-target\" or \"after\"",
        ),
        (
            step("id = \"a\"\ntitle = \"t\\u001b[2J\"\nwhen = \"before\""),
            "holds characters that cannot be seen",
        ),
        (
            step("id = \"a\"\ntitle = \"t\"\nwhen = \"before\"\nlimit = \"0 s\""),
            "would not wait",
        ),
        (
            step(
                "id = \"a\"\ntitle = \"t\"\nwhen = \"before\"\n[[drill.x.manual]]\nid = \"a\"\ntitle = \"t\"\nwhen = \"after\"",
            ),
            "is used twice",
        ),
        (
            "[drill.x.people]\nescalation = { after = \"30 min\" }\n".to_owned(),
            "a person is written as a name",
        ),
        (
            "[drill.x.people]\nescalation = { name = \"Carla\", after = \"soon\" }\n".to_owned(),
            "\"soon\" is not a length of time",
        ),
        (
            "[drill.x.people]\nescalation = \"Car\\nla\"\n".to_owned(),
            "holds characters that cannot be seen",
        ),
    ] {
        std::fs::write(&file, format!("{good}\n{section}")).expect("write");
        let ended = world.run(&["drill", "plan", "x"]);
        assert_eq!(ended.code, 2, "{section}: {}", ended.stderr);
        assert!(ended.stderr.contains(says), "{section}: {}", ended.stderr);
    }
}
