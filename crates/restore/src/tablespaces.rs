//! Where tablespaces go. Hard rules 24 and 30; field guide 1.7.
//!
//! Invariants: a restored tablespace never lies where another cluster's may be in use: it goes where somebody
//! said, or where the very directory that is being replaced had it, or beside the new data directory.

use std::path::{Path, PathBuf};

use diagnostic::{Error, Result};
use postgres::Oid;
use repository::{Backup, BackupTablespace};

use crate::destination::{DestinationFacts, DestinationState};
use crate::facts::Request;

/// The location of each tablespace that is not in place, in the order of the record.
pub(crate) fn locations(
    request: &Request,
    backup: &Backup,
    destination: &DestinationFacts,
) -> Result<Vec<(Oid, PathBuf)>> {
    let mut unused: Vec<&str> = request
        .tablespaces
        .iter()
        .map(|choice| choice.tablespace.as_str())
        .collect();
    let mut locations = Vec::new();
    for tablespace in backup
        .tablespaces
        .iter()
        .filter(|tablespace| !tablespace.in_place)
    {
        let choice = request
            .tablespaces
            .iter()
            .find(|choice| names(&choice.tablespace, tablespace));
        let location = match choice {
            Some(choice) => {
                unused.retain(|name| *name != choice.tablespace);
                choice.location.clone()
            }
            None => match &request.tablespaces_into {
                Some(folder) => folder.join(folder_name(tablespace)),
                None => replaced(destination, tablespace.oid)
                    .unwrap_or_else(|| beside(&request.destination, tablespace.oid)),
            },
        };
        locations.push((tablespace.oid, location));
    }
    if let Some(name) = unused.first() {
        let known: Vec<&str> = backup
            .tablespaces
            .iter()
            .map(|tablespace| tablespace.name.as_str())
            .collect();
        return Err(Error::usage(
            "tablespace-unknown",
            format!("backup {} has no tablespace \"{name}\"", backup.backup),
        )
        .detail(if known.is_empty() {
            "It has no tablespaces of its own.".to_owned()
        } else {
            format!("It has: {}.", known.join(", "))
        }));
    }
    for (at, (_, location)) in locations.iter().enumerate() {
        let others = locations.iter().skip(at + 1).map(|(_, other)| other.as_path());
        for other in others.chain([request.destination.as_path()]) {
            if location.starts_with(other) || other.starts_with(location) {
                return Err(Error::usage(
                    "tablespace-location",
                    "tablespaces and data directory must lie apart",
                )
                .detail(format!(
                    "\"{}\" and \"{}\" lie within each other.",
                    location.display(),
                    other.display()
                )));
            }
        }
    }
    Ok(locations)
}

fn names(choice: &str, tablespace: &BackupTablespace) -> bool {
    choice == tablespace.name || choice == tablespace.location || choice == tablespace.oid.to_string()
}

/// A tablespace's folder below `tablespaces_into`: its name where that is a file's, else its OID.
fn folder_name(tablespace: &BackupTablespace) -> String {
    let plain = |character: char| character.is_alphanumeric() || matches!(character, '_' | '-');
    if !tablespace.name.is_empty() && tablespace.name.chars().all(plain) && tablespace.name.len() <= 63 {
        tablespace.name.clone()
    } else {
        tablespace.oid.to_string()
    }
}

/// Where the directory that is being replaced has it.
fn replaced(destination: &DestinationFacts, oid: Oid) -> Option<PathBuf> {
    match &destination.state {
        DestinationState::DataDirectory { tablespaces, .. } => tablespaces
            .iter()
            .find(|(known, _)| *known == oid)
            .map(|(_, location)| location.clone()),
        DestinationState::HalfDelta { marker, tablespaces } => marker
            .outside
            .iter()
            .chain(tablespaces)
            .find(|(known, _)| *known == oid)
            .map(|(_, location)| location.clone()),
        // The directory that was kept aside by the interrupted restore had it there.
        DestinationState::HalfRestored(marker) | DestinationState::HalfKeptAside(marker) => marker
            .outside
            .iter()
            .find(|(known, _)| *known == oid)
            .map(|(_, location)| location.clone()),
        _ => None,
    }
}

/// Beside the data directory: `<destination>.tablespaces/<oid>`.
fn beside(destination: &Path, oid: Oid) -> PathBuf {
    let mut folder = destination.as_os_str().to_owned();
    folder.push(".tablespaces");
    PathBuf::from(folder).join(oid.to_string())
}
