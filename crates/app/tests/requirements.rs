//! The table of requirements names tests; each of them exists, so that a line of the table can be run.

use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .nth(2)
        .expect("the checkout")
        .to_path_buf()
}

/// Every `.rs` file below a folder.
fn sources(folder: &Path, found: &mut Vec<String>) {
    for entry in std::fs::read_dir(folder).expect("folder").flatten() {
        let path = entry.path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            found.push(std::fs::read_to_string(&path).expect("source"));
        }
    }
}

#[test]
fn every_test_that_a_requirement_names_exists() {
    let root = root();
    let table = std::fs::read_to_string(root.join("docs/reference/requirements.md")).expect("the table");
    let mut named = 0;
    for line in table
        .lines()
        .filter(|line| line.starts_with("| ") && !line.starts_with("| ---"))
    {
        let last = line
            .trim_end_matches('|')
            .rsplit(" | ")
            .next()
            .unwrap_or_default();
        for id in last.split('`').skip(1).step_by(2) {
            let mut parts = id.split("::");
            let package = parts.next().expect("a package");
            let test = id.rsplit("::").next().expect("a test");
            let folder = match package {
                "pgproof" => "app",
                other => other.strip_prefix("pgproof-").expect("a package of ours"),
            };
            let mut found = Vec::new();
            sources(&root.join("crates").join(folder), &mut found);
            let function = format!("fn {test}(");
            let defined = found.iter().any(|source| {
                source
                    .match_indices(&function)
                    .any(|(at, _)| source[..at].trim_end().ends_with("#[test]"))
            });
            assert!(defined, "{id} is no test: {line}");
            named += 1;
        }
    }
    assert!(named >= 40, "{named} tests are named");
}
