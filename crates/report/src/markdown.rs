//! A document as Markdown. Each row, item and paragraph with recorded values carries a footnote that names where in the
//! evidence they stand, in the order of the values.

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::document::{Block, Document, Style, Text};
use crate::words::{cell, code, fenced, own_words};

/// Prints the document.
pub fn print(document: &Document) -> String {
    let mut out = String::new();
    let mut notes = Notes::default();
    for block in &document.blocks {
        match block {
            Block::Heading(level, line) => {
                let _ = write!(
                    out,
                    "{} {}\n\n",
                    "#".repeat(usize::from(*level)),
                    notes.line(line)
                );
            }
            Block::Paragraph(line) => {
                let _ = write!(out, "{}\n\n", notes.line(line));
            }
            Block::Table { columns, rows } => {
                let _ = writeln!(out, "| {} |", columns.join(" | "));
                let _ = writeln!(out, "|{}", "------|".repeat(columns.len()));
                for row in rows {
                    let _ = writeln!(out, "| {} |", notes.row(row).join(" | "));
                }
                out.push('\n');
            }
            Block::List(lines) if lines.is_empty() => out.push_str("- None\n\n"),
            Block::List(lines) => {
                for line in lines {
                    let _ = writeln!(out, "- {}", notes.line(line));
                }
                out.push('\n');
            }
            Block::Lines { lines, from } => {
                fenced(&mut out, lines);
                let note = notes.of(std::slice::from_ref(from));
                let _ = write!(out, "Source of these lines:{note}\n\n");
            }
            Block::Rule => out.push_str("---\n\n"),
            Block::Closing(lines) => {
                for line in lines {
                    let from: Vec<String> = line.iter().flat_map(|text| text.from.clone()).collect();
                    let _ = writeln!(out, "*{}*{}", words(line), notes.of(&from));
                }
                out.push('\n');
            }
            Block::NewPage => {}
        }
    }
    out.push_str(&notes.print());
    out
}

fn words(line: &[Text]) -> String {
    line.iter().map(text_of).collect::<Vec<_>>().join(" ")
}

fn text_of(text: &Text) -> String {
    match text.style {
        Style::Code => code(&text.text),
        Style::Strong => format!("**{}**", cell(&text.text)),
        Style::Plain if text.from.is_empty() => own_words(&text.text),
        Style::Plain => cell(&text.text),
    }
}

/// Footnotes, each list of places once.
#[derive(Default)]
struct Notes {
    numbers: BTreeMap<Vec<String>, usize>,
    places: Vec<Vec<String>>,
}

impl Notes {
    /// The mark for these places; nothing for none.
    fn of(&mut self, from: &[String]) -> String {
        let mut places: Vec<String> = Vec::new();
        for place in from {
            if !places.contains(place) {
                places.push(place.clone());
            }
        }
        if places.is_empty() {
            return String::new();
        }
        let number = match self.numbers.get(&places) {
            Some(number) => *number,
            None => {
                self.places.push(places.clone());
                self.numbers.insert(places, self.places.len());
                self.places.len()
            }
        };
        format!("[^{number}]")
    }

    fn line(&mut self, line: &[Text]) -> String {
        let from: Vec<String> = line.iter().flat_map(|text| text.from.clone()).collect();
        format!("{}{}", words(line), self.of(&from))
    }

    /// The cells of a row; the mark stands behind the first cell that has a source.
    fn row(&mut self, row: &[Text]) -> Vec<String> {
        let from: Vec<String> = row.iter().flat_map(|text| text.from.clone()).collect();
        let mark = self.of(&from);
        let marked = row.iter().position(|text| !text.from.is_empty());
        row.iter()
            .enumerate()
            .map(|(at, text)| match Some(at) == marked {
                true => format!("{}{mark}", text_of(text)),
                false => text_of(text),
            })
            .collect()
    }

    fn print(&self) -> String {
        let mut out = String::new();
        if !self.places.is_empty() {
            out.push_str(
                "Each mark names where its values stand: JSON pointers into `facts.json`, or other files of this \
                 drill's evidence.\n\n",
            );
        }
        for (at, places) in self.places.iter().enumerate() {
            let places: Vec<String> = places.iter().map(|place| code(place)).collect();
            let _ = writeln!(out, "[^{}]: {}", at + 1, places.join(", "));
        }
        out
    }
}
