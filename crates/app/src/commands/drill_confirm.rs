//! `pgproof drill confirm`.
//!
//! Invariant: what is told as confirmed is what the drill will read; a step that has its answer, or that the drill waits
//! for no longer, is an error.

use std::path::Path;

use diagnostic::{Error, Result};
use drill::copy;
use drill::manual::{self, Answer};
use serde_json::json;

use super::drill_abort::one_of;
use super::drill_setup::COPY_PARENT;
use crate::context::Context;
use crate::{cli, exit, output};

pub fn run(context: &Context, arguments: &cli::DrillConfirm) -> Result<u8> {
    let wrong = |what: &str, why: String| Error::usage("manual-step-words", format!("the {what} {why}"));
    let by = manual::one_line(&arguments.by, manual::NAME_CHARACTERS_MAX)
        .map_err(|why| wrong("name of who confirms it", why))?;
    let reason = arguments
        .skip
        .as_deref()
        .map(|text| manual::one_line(text, manual::TEXT_CHARACTERS_MAX))
        .transpose()
        .map_err(|why| wrong("reason for skipping it", why))?;
    let parent = arguments.directory.as_deref().unwrap_or(Path::new(COPY_PARENT));
    let (name, folder) = one_of(copy::running(parent)?, arguments.drill.as_deref(), "runs", parent)?;
    let at = context.now();
    let (done, answer) = match reason {
        None => ("confirmed", Answer::Confirmed { by: by.clone(), at }),
        Some(reason) => {
            let by = by.clone();
            ("skipped", Answer::Skipped { by, at, reason })
        }
    };
    let title = manual::answer(&folder, &arguments.id, &answer)?;
    let open = manual::open(&folder)?;
    if context.json {
        output::json(&json!({ "drill": name, "step": arguments.id, "answer": answer, "open": open }));
        return Ok(exit::DONE);
    }
    output::line(format!("Drill {name}: \"{title}\" is {done} by {by}."));
    for step in open {
        output::line(format!("  still open: {}: {}", step.id, step.title));
    }
    Ok(exit::DONE)
}
