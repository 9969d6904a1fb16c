//! Documents made of a drill's facts and verdict. No I/O: whoever calls writes them where they belong.
//!
//! Invariants: nothing is said that the evidence does not hold, and every value names where it stands there; a cell
//! that does not apply says so and why, and is never empty; NOT RUN and COULD NOT LOOK are printed as such and never
//! as YES; no value becomes markup.

mod actions;
pub mod calendar;
mod circumstances;
mod compliance;
pub mod document;
mod html;
mod junit;
mod kinds_of_backup;
mod markdown;
mod picture;
mod proof;
mod record;
mod selftest;
mod server_errors;
pub mod severity;
mod statement;
mod template;
pub mod trend;
mod words;

use drill::{Documents, Facts, Verdict};

pub use actions::REDRILL_DAYS;
pub use circumstances::{BackupRuns, BackupSize, Circumstances, Earlier};
pub use html::forecast_words;
pub use junit::junit;
pub use selftest::{selftest, summary as selftest_summary};
pub use statement::statement;
pub use words::quarter;

/// The report as a value.
pub fn document(facts: &Facts, verdict: &Verdict, beside: &Circumstances) -> document::Document {
    let mut out = document::Document::default();
    template::write(&mut out, facts, verdict, beside);
    record::write(&mut out, facts, verdict, beside);
    proof::write(&mut out, facts, verdict, beside);
    out
}

/// `report.md`.
pub fn markdown(facts: &Facts, verdict: &Verdict, beside: &Circumstances) -> String {
    markdown::print(&document(facts, verdict, beside))
}

/// `report.html`: one file, without scripts and without anything from elsewhere.
pub fn html(facts: &Facts, verdict: &Verdict, beside: &Circumstances) -> String {
    html::print(&document(facts, verdict, beside), facts, verdict, beside)
}

/// Every document of a drill that has just ended.
pub fn documents(facts: &Facts, verdict: &Verdict, beside: &Circumstances) -> Documents {
    let mut documents = vec![
        ("junit.xml".to_owned(), junit(facts, verdict).into_bytes()),
        (
            "report.html".to_owned(),
            html(facts, verdict, beside).into_bytes(),
        ),
        (
            "report.md".to_owned(),
            markdown(facts, verdict, beside).into_bytes(),
        ),
    ];
    if let Some(statement) = statement(facts, verdict) {
        documents.push(("intoto.json".to_owned(), statement.into_bytes()));
    }
    documents
}
