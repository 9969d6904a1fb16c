//! Results of tests in JUnit's XML, as test runners of every language write it.
//!
//! Invariants: total on any input; test cases are counted, never a total that a file claims for itself; what is no
//! XML of test results, or not all of it, is an error, not an empty and therefore good result; no entity that a file
//! declares is expanded.

use std::borrow::Cow;
use std::collections::BTreeMap;

use quick_xml::XmlVersion;
use quick_xml::events::{BytesStart, Event};
use quick_xml::reader::Reader;

use crate::facts::{JunitCategory, JunitDetail};

/// Names of failed tests that are kept.
const NAMED_MAX: usize = 8;

/// Adds the test cases of one file. The error is a sentence.
pub fn add(detail: &mut JunitDetail, file: &str, text: &str) -> Result<(), String> {
    let mut categories: BTreeMap<String, JunitCategory> = detail
        .categories
        .drain(..)
        .map(|category| (category.name.clone(), category))
        .collect();
    let mut failed = std::mem::take(&mut detail.failed);
    let result = read(file, text, &mut categories, &mut failed);
    failed.truncate(NAMED_MAX);
    detail.failed = failed;
    detail.categories = categories.into_values().collect();
    detail.files += 1;
    result
}

/// A test case that is being read.
struct Case {
    name: String,
    category: String,
    bad: bool,
    skipped: bool,
}

fn read(
    file: &str,
    text: &str,
    categories: &mut BTreeMap<String, JunitCategory>,
    failed: &mut Vec<String>,
) -> Result<(), String> {
    let mut reader = Reader::from_str(text);
    reader.config_mut().expand_empty_elements = true;
    let mut suites: Vec<String> = Vec::new();
    let mut cases: Vec<Case> = Vec::new();
    // The reader refuses an end that fits no start, but not a start without its end.
    let mut open = 0_usize;
    let mut seen = false;
    loop {
        match reader.read_event().map_err(|error| error.to_string())? {
            Event::Start(tag) => {
                open += 1;
                match tag.local_name().as_ref() {
                    b"testsuites" => seen = true,
                    b"testsuite" => {
                        seen = true;
                        suites.push(name_of(&tag)?);
                    }
                    b"testcase" => {
                        let suite = suites.iter().rev().find(|suite| !suite.is_empty()).cloned();
                        cases.push(Case {
                            name: name_of(&tag)?,
                            category: suite.unwrap_or_else(|| file.to_string()),
                            bad: false,
                            skipped: false,
                        });
                    }
                    kind => {
                        if let Some(case) = cases.last_mut() {
                            case.bad |= matches!(kind, b"failure" | b"error");
                            case.skipped |= kind == b"skipped";
                        }
                    }
                }
            }
            Event::End(tag) => {
                open = open.saturating_sub(1);
                match tag.local_name().as_ref() {
                    b"testsuite" => drop(suites.pop()),
                    b"testcase" => {
                        if let Some(case) = cases.pop() {
                            count(case, categories, failed);
                        }
                    }
                    _ => {}
                }
            }
            Event::Eof if seen && open == 0 => return Ok(()),
            Event::Eof => return Err("it holds no whole <testsuite>".into()),
            _ => {}
        }
    }
}

/// The attribute `name`. Only XML's own entities and numbered characters are resolved: a document's are not.
fn name_of(tag: &BytesStart<'_>) -> Result<String, String> {
    let name = tag.try_get_attribute("name").map_err(|error| error.to_string())?;
    name.map_or(Ok(String::new()), |name| {
        let value = name.normalized_value(XmlVersion::Implicit1_0);
        value.map(Cow::into_owned).map_err(|error| error.to_string())
    })
}

fn count(case: Case, categories: &mut BTreeMap<String, JunitCategory>, failed: &mut Vec<String>) {
    let category = categories
        .entry(case.category.clone())
        .or_insert_with(|| JunitCategory {
            name: case.category.clone(),
            ..JunitCategory::default()
        });
    match (case.bad, case.skipped) {
        (true, _) => {
            category.run += 1;
            category.failed += 1;
            failed.push(format!("{}: {}", case.category, case.name));
        }
        (false, true) => category.skipped += 1,
        (false, false) => {
            category.run += 1;
            category.passed += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PYTEST: &str = r#"<?xml version="1.0" encoding="utf-8"?>
<testsuites><testsuite name="API" errors="0" failures="0" skipped="0" tests="99">
<!-- <testcase name="not one"/> -->
<testcase classname="tests.api" name="test_a &lt;b&gt;" time="0.1" />
<testcase classname="tests.api" name="test_c"><failure message="a > b">trace <![CDATA[<testcase/>]]></failure></testcase>
<testcase classname="tests.api" name="test_d"><skipped/></testcase>
</testsuite><testsuite name="auth"><testcase name="x"></testcase><testcase name="y"><error/></testcase></testsuite>
</testsuites>"#;

    #[test]
    fn test_cases_are_counted_by_category_whatever_the_file_says_of_itself() {
        let mut detail = JunitDetail::default();
        add(&mut detail, "results", PYTEST).expect("results");
        let counts: Vec<_> = detail
            .categories
            .iter()
            .map(|each| {
                (
                    each.name.as_str(),
                    each.run,
                    each.passed,
                    each.failed,
                    each.skipped,
                )
            })
            .collect();
        assert_eq!(counts, [("API", 2, 1, 1, 1), ("auth", 2, 1, 1, 0)]);
        assert_eq!(detail.failed, ["API: test_c", "auth: y"]);
        add(
            &mut detail,
            "more",
            "<testsuite name='auth'><testcase name='z'/></testsuite>",
        )
        .expect("results");
        assert_eq!((detail.files, detail.categories[1].run), (2, 3));
    }

    #[test]
    fn what_is_no_whole_result_is_an_error_and_never_a_panic() {
        for text in [
            "",
            "<html></html>",
            "not xml",
            "<testsuite name='a'><testcase name='x'>",
            "<testsuite name='a'><testcase name='x'/>",
            "<!-- <testsuite/>",
            "<testsuite name=\"a",
            "<",
            "<testsuite \u{fc}=",
        ] {
            assert!(add(&mut JunitDetail::default(), "f", text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_file_that_was_cut_anywhere_is_an_error() {
        for (at, _) in PYTEST.char_indices() {
            let cut = &PYTEST[..at];
            assert!(add(&mut JunitDetail::default(), "f", cut).is_err(), "{cut}");
        }
        let crossed = "<testsuite><testcase></testsuite></testcase>";
        assert!(add(&mut JunitDetail::default(), "f", crossed).is_err());
    }

    #[test]
    fn entities_of_xml_are_resolved_wherever_a_name_stands() {
        let text = r#"<t:testsuite xmlns:t="urn:t" hostname="a>b" name='&quot;R&amp;D&quot; &#233;&#x4E2D;'>
            <t:testcase name="a&lt;b&apos;&gt;"><t:failure>1 &lt; 2 &amp;&amp; &#0033;</t:failure></t:testcase>
            </t:testsuite>"#;
        let mut detail = JunitDetail::default();
        add(&mut detail, "f", text).expect("results");
        assert_eq!(detail.failed, ["\"R&D\" \u{e9}\u{4e2d}: a<b'>"]);
    }

    #[test]
    fn a_billion_laughs_are_not_laughed() {
        let mut declared = String::from("<!ENTITY l0 \"ha\">");
        for level in 1..10 {
            let ten = format!("&l{};", level - 1).repeat(10);
            declared.push_str(&format!("<!ENTITY l{level} \"{ten}\">"));
        }
        let with = |inner: &str| format!("<?xml version=\"1.0\"?><!DOCTYPE x [{declared}]>{inner}");
        let in_name = with("<testsuite name=\"&l9;\"><testcase name=\"x\"/></testsuite>");
        let mut detail = JunitDetail::default();
        assert!(add(&mut detail, "f", &in_name).is_err());
        assert!(detail.categories.is_empty());
        let in_text =
            with("<testsuite name=\"a\"><testcase name=\"x\"><failure>&l9;</failure></testcase></testsuite>");
        add(&mut detail, "f", &in_text).expect("results");
        assert_eq!(detail.failed, ["a: x"]);
    }
}
