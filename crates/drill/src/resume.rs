//! What an interrupted drill had got to, so that it can be taken up again from its last whole step.
//!
//! It lies in the folder of the copy, which belongs to the drill's account alone and holds the restored rows themselves;
//! it is gone with the folder. Invariants: it is written whole or not at all, and only when a step is done; what it says
//! was seen before the interruption, and the facts name the interruption.

use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use diagnostic::{Error, Result};
use jiff::Timestamp;
use postgres::{SystemIdentifier, TimelineId};
use restore::Plan;
use serde::{Deserialize, Serialize};

use crate::archive::Listing;
use crate::engine::Run;
use crate::facts::{Facts, HttpSeen};
use crate::point::Point;
use crate::rows::RowKey;

/// The file, in the folder of the copy.
pub const FILE: &str = "resume.json";
/// The version of [`Saved`].
const VERSION: u32 = 1;
/// A file is at most so long.
const FILE_BYTES_MAX: u64 = 1 << 30;

/// Where a drill stands.
#[derive(Serialize, Deserialize)]
pub struct Saved {
    version: u32,
    pub(crate) facts: Facts,
    pub(crate) log: Vec<String>,
    pub(crate) plan: Plan,
    /// The restore was done, too.
    pub(crate) restored: bool,
    pub(crate) point: Option<Point>,
    pub(crate) key: RowKey,
    pub(crate) archive_before: Option<Listing>,
    pub(crate) archive_of: Option<(SystemIdentifier, TimelineId)>,
    pub(crate) markers_in: Option<String>,
    pub(crate) before: BTreeMap<String, HttpSeen>,
    pub(crate) loss_unknown: Option<String>,
    pub(crate) saved_at: Timestamp,
}

/// The same, borrowed for writing.
#[derive(Serialize)]
struct Saving<'a> {
    version: u32,
    facts: &'a Facts,
    log: &'a [String],
    plan: &'a Plan,
    restored: bool,
    point: Option<&'a Point>,
    key: &'a RowKey,
    archive_before: &'a Option<Listing>,
    archive_of: Option<(SystemIdentifier, TimelineId)>,
    markers_in: &'a Option<String>,
    before: &'a BTreeMap<String, HttpSeen>,
    loss_unknown: &'a Option<String>,
    saved_at: Timestamp,
}

impl Saved {
    /// What was recorded until then.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// The first stop, when the drill did not make its point itself.
    pub fn target(&self) -> Option<&history::Target> {
        match self.point {
            Some(_) => None,
            None => self.plan.stops.first().map(|stop| &stop.target.target),
        }
    }
}

/// Writes where the drill stands. That it cannot be written is no reason to end the drill: it is told.
pub(crate) fn save(run: &mut Run<'_>, folder: &Path, plan: &Plan, key: &RowKey, restored: bool) {
    let saving = Saving {
        version: VERSION,
        facts: &run.facts,
        log: run.lines(),
        plan,
        restored,
        point: run.made.as_ref().map(|made| &made.point),
        key,
        archive_before: &run.archive_before,
        archive_of: run.archive_of,
        markers_in: &run.markers_in,
        before: &run.before,
        loss_unknown: &run.loss_unknown,
        saved_at: (run.drill.clock)(),
    };
    if let Err(error) = write(folder, &saving) {
        run.note(&format!(
            "the drill could not be taken up again from here: {}",
            error.message()
        ));
    }
}

fn write(folder: &Path, saving: &Saving<'_>) -> Result<()> {
    let path = folder.join(format!("{FILE}.new"));
    let failed = |error: &std::io::Error| {
        Error::io(
            "resume-write",
            format!("cannot write \"{}\"", path.display()),
            error,
        )
    };
    let text = serde_json::to_vec(saving)
        .map_err(|error| Error::new("resume-write", "cannot write JSON").caused_by(&error))?;
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&path)
        .map_err(|error| failed(&error))?;
    file.write_all(&text)
        .and_then(|()| file.sync_all())
        .and_then(|()| std::fs::rename(&path, folder.join(FILE)))
        .map_err(|error| failed(&error))
}

/// Reads where a drill stood. Errors: `resume-read` (it is not there, damaged, or another version's).
pub fn read(folder: &Path) -> Result<Saved> {
    let path = folder.join(FILE);
    let failed = |what: &str| Error::new("resume-read", format!("\"{}\" {what}", path.display()));
    let length = std::fs::metadata(&path).map_or(0, |metadata| metadata.len());
    if length > FILE_BYTES_MAX {
        return Err(failed("is too long"));
    }
    let text = std::fs::read(&path).map_err(|error| {
        Error::io(
            "resume-read",
            format!("cannot read \"{}\"", path.display()),
            &error,
        )
    })?;
    let saved: Saved =
        serde_json::from_slice(&text).map_err(|error| failed("cannot be understood").caused_by(&error))?;
    if saved.version != VERSION {
        return Err(failed("was written by another version")
            .hint("Run the drill again: the next one removes what is left."));
    }
    Ok(saved)
}
