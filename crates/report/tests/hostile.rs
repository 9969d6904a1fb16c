//! Names of databases, tables and checks may hold anything: in no document do they become markup.

use drill::facts::{CheckResult, Facts, ManualFacts, ManualState, ManualWhen, Person, Side, TableProof};
use drill::{Reason, Verdict, Weight, judge};
use report::Circumstances;

const HOSTILE: &str = "x</title></td></svg>]]><script src=//evil>alert(1)</script><img src=x onerror=y>\" onload='z' | ` & \u{1b}[2J";

/// Facts in which every text that a person or a server can choose is hostile.
fn hostile() -> (Facts, Verdict) {
    let path = format!("{}/tests/facts/passed.json", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(path).expect("facts");
    let mut facts: Facts = serde_json::from_str(&text).expect("facts");
    let bad = || HOSTILE.to_string();
    facts.identity.profile = bad();
    facts.identity.trigger = bad();
    facts.identity.host = Some(bad());
    facts.scope.cluster = bad();
    facts.people.operator = Some(bad());
    facts.people.reviewer = Some(bad());
    facts.limits.push(bad());
    facts.server_log.push(bad());
    facts.target.requested = bad();
    for step in &mut facts.steps {
        step.title = bad();
        step.detail = Some(bad());
    }
    for check in &mut facts.checks {
        check.id = bad();
        check.expected = bad();
        check.actual = bad();
        check.definition = bad();
        check.result = CheckResult::Fail;
        check.reason = Some(bad());
    }
    if let Some(proof) = &mut facts.row_proof {
        proof.tables.insert(
            0,
            TableProof {
                database: bad(),
                table: bad(),
                production: Side::CouldNotLook(bad()),
                copy: Side::Unreadable(bad()),
            },
        );
    }
    for when in [ManualWhen::Before, ManualWhen::AtTarget, ManualWhen::After] {
        for state in [
            ManualState::Confirmed,
            ManualState::Skipped,
            ManualState::NotConfirmed,
        ] {
            facts.manual.push(ManualFacts {
                id: bad(),
                title: bad(),
                when,
                required: true,
                limit_ms: 1,
                asked_at: Some(facts.started_at),
                state,
                by: Some(bad()),
                at: Some(facts.started_at),
                why: Some(bad()),
            });
        }
    }
    facts.people.others.push(Person {
        role: bad(),
        name: bad(),
        called_after_seconds: Some(1800),
    });
    let mut verdict = judge(&facts);
    verdict.reasons.push(Reason {
        code: bad(),
        text: bad(),
        check: None,
        weight: Weight::Failure,
    });
    (facts, verdict)
}

#[test]
fn html_has_no_script_no_foreign_resource_and_whole_markup() {
    let (facts, verdict) = hostile();
    let html = report::html(&facts, &verdict, &Circumstances::default());
    assert!(html.contains("&lt;script src=//evil&gt;"), "the name is shown");
    for forbidden in ["<script", "<img", "<iframe", "<link", "@import", "url(", "\u{1b}"] {
        assert!(!html.contains(forbidden), "{forbidden}");
    }
    assert_eq!(elements(&html), Vec::<String>::new());
}

#[test]
fn junit_is_whole_xml() {
    let (facts, verdict) = hostile();
    let xml = report::junit(&facts, &verdict);
    assert_eq!(elements(&xml), Vec::<String>::new());
    // One for each check, and one at least for what no check stands for.
    let cases = xml.matches("<testcase ").count();
    assert!(cases > facts.checks.len(), "{cases}");
    assert!(xml.contains(&format!("tests=\"{cases}\"")), "{xml}");
}

#[test]
fn markdown_has_no_raw_html_and_no_picture() {
    let (facts, verdict) = hostile();
    let text = report::markdown(&facts, &verdict, &Circumstances::default());
    let mut fenced = false;
    for line in text.lines() {
        if line.starts_with("```") {
            fenced = !fenced;
        }
        // What stands between backticks or in a fence is code.
        let outside: String = line.split('`').step_by(2).collect();
        let raw = outside
            .match_indices('<')
            .any(|(at, _)| !outside[..at].ends_with('\\'));
        assert!(fenced || !raw, "{line}");
    }
}

#[test]
fn the_statement_is_json_with_the_framework_s_words() {
    let (facts, verdict) = hostile();
    let text = report::statement(&facts, &verdict).expect("a statement");
    let value: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(value["_type"], "https://in-toto.io/Statement/v1");
    assert_eq!(value["predicate"]["result"], "FAILED");
    let subject = value["subject"].as_array().expect("subjects");
    let named = subject
        .iter()
        .find(|it| it["name"] == "facts.json")
        .expect("facts.json");
    let bytes = drill::evidence::derived(&facts, &verdict).expect("files");
    let sum = drill::evidence::sha256_hex(&bytes[0].1);
    assert_eq!(named["digest"]["sha256"], sum);
}

/// Elements that do not nest, in a text where every `<` begins a tag: what an XML reader would refuse. The void elements
/// of HTML, comments and the document type are left out.
fn elements(text: &str) -> Vec<String> {
    let mut open: Vec<String> = Vec::new();
    let mut wrong = Vec::new();
    let style = text.find("<style>").zip(text.find("</style>"));
    let text = match style {
        Some((from, to)) => format!("{}{}", &text[..from], &text[to + 8..]),
        None => text.to_owned(),
    };
    for part in text.split('<').skip(1) {
        let Some((tag, _)) = part.split_once('>') else {
            wrong.push(part.chars().take(40).collect());
            continue;
        };
        if tag.starts_with(['!', '?']) || tag.ends_with('/') {
            continue;
        }
        let name: String = tag.chars().take_while(|c| !c.is_whitespace()).collect();
        if ["meta", "br", "hr"].contains(&name.as_str()) {
            continue;
        }
        match name.strip_prefix('/') {
            Some(name) if open.last().is_some_and(|last| last == name) => {
                open.pop();
            }
            Some(name) => wrong.push(format!("</{name}> after {:?}", open.last())),
            None => open.push(name),
        }
    }
    wrong.extend(open);
    wrong
}
