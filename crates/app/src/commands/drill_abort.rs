//! `pgproof drill abort`.
//!
//! Invariant: the drill is asked, through its own folder, and not killed: it stops its server, removes its copy, compares
//! the archive, and records itself as ABORTED.

use std::path::{Path, PathBuf};
use std::time::Duration;

use diagnostic::{Error, Result};
use drill::copy;

use super::drill_setup::COPY_PARENT;
use crate::{cli, output};

/// Until the drill must have ended: its server gets some minutes to stop.
const LIMIT: Duration = Duration::from_secs(600);

pub fn run(arguments: &cli::DrillAbort) -> Result<u8> {
    let parent = arguments.directory.as_deref().unwrap_or(Path::new(COPY_PARENT));
    let (name, folder) = one_of(copy::running(parent)?, arguments.drill.as_deref(), "runs", parent)?;
    match copy::ask_to_end(&folder, LIMIT)? {
        true => {
            output::line(format!("Drill {name} has ended."));
            Ok(0)
        }
        false => Err(Error::new(
            "drill-not-ended",
            format!("drill {name} has not ended within {} s", LIMIT.as_secs()),
        )
        .hint("It ends between two of its waits; look at what it says.")),
    }
}

/// The drill that was named, or the only one. Errors: `drill-missing`, `drill-ambiguous`.
pub(super) fn one_of(
    mut found: Vec<(String, PathBuf)>,
    name: Option<&str>,
    what: &str,
    parent: &Path,
) -> Result<(String, PathBuf)> {
    if let Some(name) = name {
        let name = name.trim_start_matches("pitr_drill_");
        found.retain(|(drill, _)| drill == name);
    }
    if found.len() > 1 {
        let names: Vec<&str> = found.iter().map(|(name, _)| name.as_str()).collect();
        return Err(Error::usage(
            "drill-ambiguous",
            format!(
                "more than one drill {what} below {}, and none was named",
                parent.display()
            ),
        )
        .hint(format!("Name one of: {}.", names.join(", "))));
    }
    found.pop().ok_or_else(|| {
        Error::new(
            "drill-missing",
            format!("no such drill {what} below {}", parent.display()),
        )
        .hint("Name the folder that it was started with by `--directory`.")
    })
}
