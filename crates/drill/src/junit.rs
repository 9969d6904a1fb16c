//! Results of tests in JUnit's XML, as test runners of every language write it.
//!
//! Invariants: total on any input; test cases are counted, never a total that a file claims for itself; what is no
//! XML of test results is an error, not an empty and therefore good result.

use std::collections::BTreeMap;

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
    let mut suites: Vec<String> = Vec::new();
    let mut case: Option<Case> = None;
    let mut seen = false;
    let mut rest = text;
    while let Some(start) = rest.find('<') {
        rest = rest.get(start..).unwrap_or_default();
        if let Some(behind) = skipped(rest) {
            rest = behind.ok_or("the XML ends within a comment")?;
            continue;
        }
        let (tag, behind) = tag(rest).ok_or("the XML ends within a tag")?;
        rest = behind;
        let name = tag.name.rsplit(':').next().unwrap_or_default();
        match (name, tag.closing) {
            ("testsuites", false) => seen = true,
            ("testsuite", false) => {
                seen = true;
                if !tag.empty {
                    suites.push(tag.attribute("name").unwrap_or_default());
                }
            }
            ("testsuite", true) => {
                suites.pop();
            }
            ("testcase", false) => {
                let suite = suites.iter().rev().find(|suite| !suite.is_empty()).cloned();
                let begun = Case {
                    name: tag.attribute("name").unwrap_or_default(),
                    category: suite.unwrap_or_else(|| file.to_string()),
                    bad: false,
                    skipped: false,
                };
                if tag.empty {
                    count(begun, categories, failed);
                } else {
                    case = Some(begun);
                }
            }
            ("testcase", true) => {
                if let Some(ended) = case.take() {
                    count(ended, categories, failed);
                }
            }
            ("failure" | "error", false) => {
                if let Some(case) = &mut case {
                    case.bad = true;
                }
            }
            ("skipped", false) => {
                if let Some(case) = &mut case {
                    case.skipped = true;
                }
            }
            _ => {}
        }
    }
    if !seen || case.is_some() || !suites.is_empty() {
        return Err("it holds no whole <testsuite>".into());
    }
    Ok(())
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

/// Behind a comment, a CDATA section, a declaration or a processing instruction; `Some(None)`: it does not end.
fn skipped(rest: &str) -> Option<Option<&str>> {
    let end = [("<!--", "-->"), ("<![CDATA[", "]]>"), ("<?", "?>"), ("<!", ">")]
        .into_iter()
        .find(|(start, _)| rest.starts_with(start))
        .map(|(_, end)| end)?;
    Some(rest.find(end).and_then(|at| rest.get(at + end.len()..)))
}

struct Tag<'a> {
    name: &'a str,
    attributes: &'a str,
    closing: bool,
    empty: bool,
}

/// The tag at the beginning, and what stands behind it.
fn tag(rest: &str) -> Option<(Tag<'_>, &str)> {
    let mut quote = None;
    let end = rest.char_indices().find_map(|(at, c)| match (quote, c) {
        (None, '>') => Some(at),
        (None, '"' | '\'') => {
            quote = Some(c);
            None
        }
        (Some(open), c) if c == open => {
            quote = None;
            None
        }
        _ => None,
    })?;
    let inner = rest.get(1..end)?;
    let (inner, closing) = match inner.strip_prefix('/') {
        Some(inner) => (inner, true),
        None => (inner, false),
    };
    let (inner, empty) = match inner.strip_suffix('/') {
        Some(inner) => (inner, true),
        None => (inner, false),
    };
    let (name, attributes) = inner.split_at(inner.find(char::is_whitespace).unwrap_or(inner.len()));
    let tag = Tag {
        name,
        attributes,
        closing,
        empty,
    };
    Some((tag, rest.get(end + 1..)?))
}

impl Tag<'_> {
    fn attribute(&self, wanted: &str) -> Option<String> {
        let mut rest = self.attributes;
        loop {
            let (name, behind) = rest.split_once('=')?;
            let behind = behind.trim_start();
            let quote = behind.chars().next().filter(|c| matches!(c, '"' | '\''))?;
            let behind = behind.get(1..)?;
            let end = behind.find(quote)?;
            if name.trim() == wanted {
                return Some(unescaped(behind.get(..end)?));
            }
            rest = behind.get(end + 1..)?;
        }
    }
}

fn unescaped(text: &str) -> String {
    text.replace("&lt;", "<")
        .replace("&gt;", ">")
        .replace("&quot;", "\"")
        .replace("&apos;", "'")
        .replace("&amp;", "&")
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
}
