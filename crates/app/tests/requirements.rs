//! The table of requirements names tests; each of them exists, so that a line of the table can be run. Every requirement
//! of drills stands in it, or among those that are said not to be met.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

/// The items of the teams' register that concern drills, by their numbers.
const OF_DRILLS: [RangeInclusive<u32>; 19] = [
    1..=10,
    18..=22,
    24..=30,
    33..=33,
    35..=36,
    46..=49,
    51..=51,
    59..=62,
    64..=74,
    82..=86,
    88..=89,
    91..=91,
    93..=94,
    96..=110,
    112..=116,
    121..=123,
    125..=128,
    131..=131,
    135..=135,
];

/// Those of them that pgproof does not meet at all; the page says what is missing.
const NOT_MET: [u32; 0] = [];

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

/// What is met, and what is not or in part.
fn tables() -> (String, String) {
    let page = std::fs::read_to_string(root().join("docs/reference/requirements.md")).expect("the page");
    let (met, missing) = page
        .split_once("\n## Not met, or in part\n")
        .expect("both tables");
    (met.to_owned(), missing.to_owned())
}

/// The lines of a table below its head.
fn rows(table: &str) -> impl Iterator<Item = &str> {
    table
        .lines()
        .filter(|line| line.starts_with("| ") && !line.starts_with("| ---") && !line.starts_with("| item |"))
}

/// The numbers in the first cell of a line; none where it begins with a word.
fn numbers(row: &str) -> Vec<u32> {
    let first = row
        .trim_start_matches("| ")
        .split(" | ")
        .next()
        .unwrap_or_default();
    first
        .split(", ")
        .filter_map(|number| number.parse().ok())
        .collect()
}

#[test]
fn every_requirement_of_drills_is_in_the_table_once_and_in_order() {
    let (met, missing) = tables();
    let groups: Vec<Vec<u32>> = rows(&met)
        .map(numbers)
        .filter(|group| !group.is_empty())
        .collect();
    let firsts: Vec<u32> = groups.iter().filter_map(|group| group.first().copied()).collect();
    assert!(firsts.is_sorted(), "{firsts:?}");
    let mut named = BTreeSet::new();
    for number in groups.into_iter().flatten() {
        assert!(named.insert(number), "{number} stands there twice");
    }
    let told: BTreeSet<u32> = rows(&missing).flat_map(numbers).collect();
    for number in OF_DRILLS.into_iter().flatten() {
        if NOT_MET.contains(&number) {
            assert!(!named.contains(&number), "{number} is said to be met");
            assert!(told.contains(&number), "nobody says what {number} lacks");
        } else {
            assert!(named.contains(&number), "{number} is in no line of the table");
        }
    }
}

#[test]
fn every_test_that_a_requirement_names_exists() {
    let root = root();
    let (table, _) = tables();
    let mut named = 0;
    for line in rows(&table) {
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
