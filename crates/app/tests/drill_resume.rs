//! A drill whose process was killed is taken up again from its last whole step; one that runs is ended in an orderly way.

mod support;

use std::path::{Path, PathBuf};

use serde_json::Value;
use support::{Ended, World, check_of, is_restored, start_drill, wait_for_copy};

/// A cluster with a backup and some WAL behind it, and a folder for copies.
fn world(name: &str) -> Option<(World, PathBuf)> {
    let world = World::start(name)?;
    world
        .session()
        .execute("create table public.a as select n, md5(n::text) as v from generate_series(1, 50000) n")
        .expect("a table");
    world.json(&["backup"]);
    for round in 0..2 {
        world
            .session()
            .execute(&format!(
                "update public.a set v = 'round {round}' where n % 5 = {round}"
            ))
            .expect("update");
        world.archive_all();
    }
    let copies = world.production.scratch().subfolder("copies").expect("folder");
    Some((world, copies))
}

fn is_empty(folder: &Path) -> bool {
    std::fs::read_dir(folder).expect("folder").next().is_none()
}

#[test]
fn a_drill_that_was_killed_is_taken_up_again_behind_its_restore_or_with_it() {
    let Some((world, copies)) =
        world("a_drill_that_was_killed_is_taken_up_again_behind_its_restore_or_with_it")
    else {
        return;
    };
    let directory = copies.display().to_string();
    for restored in [true, false] {
        let mut child = start_drill(&world, None, &copies);
        let folder = wait_for_copy(&copies, is_restored);
        child.kill().expect("SIGKILL");
        child.wait().expect("it has ended");
        if !restored {
            let path = folder.join("resume.json");
            let text = std::fs::read_to_string(&path).expect("where it stands");
            std::fs::write(&path, text.replace("\"restored\":true", "\"restored\":false")).expect("write");
            std::fs::write(folder.join("data/half-written"), "x").expect("write");
        }
        let ended = world.run(&["drill", "resume", "--json", "--directory", &directory]);
        let facts = ended.json();
        assert_eq!(
            (ended.code, facts["verdict"].as_str()),
            (0, Some("PASSED WITH OBSERVATIONS")),
            "{facts:#}\n{}",
            ended.stderr
        );
        for check in [
            "target",
            "bracket",
            "row-proof",
            "page-checksums",
            "archive-unchanged",
        ] {
            assert_eq!(check_of(&facts, check)["result"], "PASS", "{check}");
        }
        let reasons = facts["reasons"].as_array().expect("reasons");
        assert!(
            reasons.iter().any(|reason| reason["code"] == "drill-resumed"),
            "{reasons:#?}"
        );
        let step = |id: &str| steps(&facts).iter().filter(|step| *step == id).count();
        let expected = if restored { (1, 1, 0) } else { (2, 1, 1) };
        assert_eq!((step("restore"), step("resume"), step("clear")), expected);
        assert!(is_empty(&copies), "the copy is gone");
        world
            .run(&[
                "drill",
                "audit",
                facts["identity"]["drill_id"].as_str().expect("an id"),
            ])
            .ok();
    }
    let ended = world.run(&["drill", "resume", "--directory", &directory]);
    assert_eq!(ended.code, 1);
    assert!(ended.stderr.contains("error[drill-missing]"), "{}", ended.stderr);
}

fn steps(facts: &Value) -> Vec<String> {
    let steps = facts["steps"].as_array().expect("steps");
    steps
        .iter()
        .map(|step| step["id"].as_str().expect("an id").to_owned())
        .collect()
}

#[test]
fn a_drill_that_runs_is_ended_in_an_orderly_way_and_recorded_as_aborted() {
    let Some((world, copies)) = world("a_drill_that_runs_is_ended_in_an_orderly_way_and_recorded_as_aborted")
    else {
        return;
    };
    let directory = copies.display().to_string();
    let child = start_drill(&world, None, &copies);
    wait_for_copy(&copies, |folder| folder.join("lock").exists());
    world.run(&["drill", "abort", "--directory", &directory]).ok();
    let ended = Ended::of(&child.wait_with_output().expect("it has ended"));
    let facts = ended.json();
    assert_eq!(
        (ended.code, facts["verdict"].as_str()),
        (4, Some("ABORTED")),
        "{}",
        ended.stderr
    );
    assert!(is_empty(&copies), "the copy is gone");
    let listed = world.json(&["drill", "list"]);
    assert!(listed.to_string().contains("ABORTED"), "{listed:#}");
    let ended = world.run(&["drill", "abort", "--directory", &directory]);
    assert_eq!(ended.code, 1);
    assert!(ended.stderr.contains("error[drill-missing]"), "{}", ended.stderr);
}
