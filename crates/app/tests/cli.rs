//! The binary as a whole, without a server: usage, exit codes, configuration errors, times.

use std::path::Path;
use std::process::{Command, Output};

fn pgproof(directory: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_pgproof"))
        .args(arguments)
        .current_dir(directory)
        .output()
        .expect("the binary runs")
}

fn code(output: &Output) -> i32 {
    output.status.code().expect("not ended by a signal")
}

fn error_text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A configuration whose repository is a folder that does not exist.
fn configured() -> tempfile::TempDir {
    let directory = tempfile::tempdir().expect("a folder");
    let text = format!(
        "[cluster.main]\nconnection = \"host=/nowhere/at/all user=x dbname=x\"\ndata_directory = \"/nowhere/at/all\"\n\n\
         [copy.local]\nurl = \"file://{0}/missing\"\nkey = {{ file = \"missing.key\" }}\n",
        directory.path().display()
    );
    std::fs::write(directory.path().join("pgproof.toml"), text).expect("written");
    directory
}

const SEGMENT: &str = "000000010000000000000001";

#[test]
fn wrong_usage_ends_with_2_and_help_with_0() {
    let directory = tempfile::tempdir().expect("a folder");
    assert_eq!(code(&pgproof(directory.path(), &["no-such-command"])), 2);
    assert_eq!(
        code(&pgproof(directory.path(), &["backup", "--no-such-option"])),
        2
    );
    assert_eq!(code(&pgproof(directory.path(), &[])), 2);
    assert_eq!(code(&pgproof(directory.path(), &["--help"])), 0);
    assert_eq!(code(&pgproof(directory.path(), &["--version"])), 0);
}

#[test]
fn only_built_commands_are_in_the_help() {
    let directory = tempfile::tempdir().expect("a folder");
    let help = String::from_utf8(pgproof(directory.path(), &["--help"]).stdout).expect("text");
    let commands: Vec<&str> = help
        .lines()
        .skip_while(|line| *line != "Commands:")
        .skip(1)
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    assert!(
        commands.contains(&"backup") && commands.contains(&"drill"),
        "{help}"
    );
    for absent in [
        "recover",
        "serve",
        "dump",
        "capture",
        "sandbox-exec",
        "copy",
        "help",
    ] {
        assert!(!commands.contains(&absent), "{absent}: {help}");
    }
}

#[test]
fn wal_get_ends_with_126_whatever_is_wrong_before_a_copy_answered() {
    let directory = configured();
    let empty = tempfile::tempdir().expect("a folder");
    let broken = tempfile::tempdir().expect("a folder");
    std::fs::write(broken.path().join("pgproof.toml"), "[cluster.main\n").expect("written");
    let cases: [(&Path, Vec<&str>); 12] = [
        (empty.path(), vec!["wal", "get", SEGMENT, "x"]),
        (broken.path(), vec!["wal", "get", SEGMENT, "x"]),
        (directory.path(), vec!["wal", "get", SEGMENT, "x"]),
        (directory.path(), vec!["wal", "get", "00000002.history", "x"]),
        (directory.path(), vec!["wal", "get"]),
        (directory.path(), vec!["wal", "get", SEGMENT]),
        (directory.path(), vec!["wal", "get", "--help"]),
        (
            directory.path(),
            vec!["wal", "get", "--no-such-option", SEGMENT, "x"],
        ),
        (
            directory.path(),
            vec!["wal", "get", "--cluster", "other", SEGMENT, "x"],
        ),
        (directory.path(), vec!["wal", "get", "not-a-wal-file", "x"]),
        (directory.path(), vec!["wal", "gte", SEGMENT, "x"]),
        (
            directory.path(),
            vec!["--config", "/nowhere.toml", "wal", "get", SEGMENT, "x"],
        ),
    ];
    for (where_, arguments) in cases {
        let output = pgproof(where_, &arguments);
        assert_eq!(code(&output), 126, "{arguments:?}: {}", error_text(&output));
        assert!(!where_.join("x").exists());
    }
}

#[test]
fn wal_push_ends_with_1_whatever_is_wrong_so_that_the_archiver_lives_on() {
    let directory = configured();
    let empty = tempfile::tempdir().expect("a folder");
    let path = format!("pg_wal/{SEGMENT}");
    let cases: [(&Path, Vec<&str>); 5] = [
        (empty.path(), vec!["wal", "push", &path]),
        (directory.path(), vec!["wal", "push", &path]),
        (directory.path(), vec!["wal", "push"]),
        (directory.path(), vec!["wal", "push", "--no-such-option", &path]),
        (directory.path(), vec!["wal", "push", "--cluster", "other", &path]),
    ];
    for (where_, arguments) in cases {
        let output = pgproof(where_, &arguments);
        assert_eq!(code(&output), 1, "{arguments:?}: {}", error_text(&output));
    }
}

#[test]
fn configuration_errors_end_with_2_and_name_file_line_and_nearest_key() {
    let directory = tempfile::tempdir().expect("a folder");
    let output = pgproof(directory.path(), &["--config", "missing.toml", "status"]);
    assert_eq!(code(&output), 2);
    assert!(
        error_text(&output).starts_with("error[config-missing]"),
        "{}",
        error_text(&output)
    );

    let file = directory.path().join("typo.toml");
    std::fs::write(&file, "[cluster.main]\nconection = \"host=x\"\n").expect("written");
    let output = pgproof(directory.path(), &["--config", "typo.toml", "status", "--json"]);
    assert_eq!(code(&output), 2);
    let text = error_text(&output);
    assert!(
        text.contains("typo.toml, line 2: unknown key \"conection\" in [cluster.main]"),
        "{text}"
    );
    assert!(text.contains("hint: Did you mean \"connection\"?"), "{text}");
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).expect("one JSON value");
    assert_eq!(json["error"]["code"], "config-syntax");
}

#[test]
fn config_show_says_where_each_value_came_from() {
    let directory = configured();
    let output = pgproof(directory.path(), &["config", "show", "--json"]);
    assert_eq!(code(&output), 0, "{}", error_text(&output));
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).expect("one JSON value");
    let values = json["values"].as_array().expect("values");
    let origin = |key: &str| {
        values
            .iter()
            .find(|value| value["key"] == key)
            .map(|value| value["origin"].to_string())
            .expect("the key")
    };
    assert!(
        origin("cluster.main.connection").ends_with("pgproof.toml:2\""),
        "{json}"
    );
    assert_eq!(origin("cluster.main.acknowledge"), "\"default\"");
}

#[test]
fn a_restore_target_without_zone_is_refused_before_anything_is_looked_at() {
    let directory = configured();
    let output = pgproof(
        directory.path(),
        &["restore", "--to", "2026-01-25 14:30:00", "--into", "x"],
    );
    assert_eq!(code(&output), 2);
    let text = error_text(&output);
    assert!(text.starts_with("error[time-without-zone]"), "{text}");
    assert!(text.contains("2026-01-25 14:30:00 UTC"), "{text}");
    assert!(!directory.path().join("x").exists());
    let output = pgproof(
        directory.path(),
        &["restore", "--to", "latest", "--to-xid", "7", "--into", "x"],
    );
    assert_eq!(code(&output), 2, "two targets");
    let output = pgproof(directory.path(), &["restore", "--to", "latest"]);
    assert_eq!(code(&output), 2, "no --into");
}

#[test]
fn a_reader_that_goes_away_is_no_panic() {
    let directory = configured();
    let program = env!("CARGO_BIN_EXE_pgproof");
    let output = Command::new("sh")
        .arg("-c")
        .arg(format!("{{ '{program}' config show; echo code $? >&2; }} | true"))
        .current_dir(directory.path())
        .output()
        .expect("a shell");
    let text = error_text(&output);
    assert!(text.contains("code 0"), "{text}");
    assert!(!text.contains("error["), "{text}");
}

#[test]
fn help_is_no_success_for_the_archiver_or_for_recovery() {
    let directory = tempfile::tempdir().expect("a folder");
    assert_eq!(code(&pgproof(directory.path(), &["wal", "push", "--help"])), 1);
    assert_eq!(
        code(&pgproof(directory.path(), &["--version", "wal", "push", "x"])),
        1
    );
    assert_eq!(
        code(&pgproof(directory.path(), &["--version", "wal", "get", "x", "y"])),
        126
    );
}

#[test]
fn a_wrong_command_line_is_told_in_json_too() {
    let directory = tempfile::tempdir().expect("a folder");
    let output = pgproof(directory.path(), &["backup", "--json", "--no-such-option"]);
    assert_eq!(code(&output), 2);
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).expect("one JSON value");
    assert_eq!(json["error"]["code"], "usage");
}
