//! What was brought, understood: whose it is, from where to where it reaches, and whether it is whole.
//!
//! Invariants: identity, geometry and timeline come from `pg_control` and `backup_label` alone, never from a file's name;
//! a base whose end cannot be known, or that its own manifest contradicts, is refused before anything is stored.

use std::path::PathBuf;

use cluster::data_directory::{CONTROL_FILE, belongs_to_postgres, left_out};
use diagnostic::{Error, Result};
use postgres::{BackupLabel, ControlFile, Lsn, Oid, Timestamp, tablespace_map};

use super::facts::{BaseFacts, ManifestFacts, Origin, WalFacts, checked_segment_size, ends_with_path};
use super::walk::{Base, members, walk_wal};

/// What is there: where it lies, and what was found in it.
pub struct Survey {
    pub(super) base: Option<(Base, Resolved)>,
    pub(super) wal_paths: Vec<PathBuf>,
    pub(super) wal: WalFacts,
}

/// A base that is understood.
pub(super) struct Resolved {
    pub(super) facts: BaseFacts,
    /// With a slash at its end, or empty.
    pub(super) prefix: Vec<u8>,
    pub(super) control: ControlFile,
    pub(super) label: BackupLabel,
    pub(super) tablespaces: Vec<Space>,
    pub(super) stop: Lsn,
    /// What says so.
    pub(super) stop_from: &'static str,
    pub(super) started_at: jiff::Timestamp,
    pub(super) finished_at: jiff::Timestamp,
    pub(super) warnings: Vec<String>,
}

/// A tablespace of the base.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Space {
    pub(super) oid: Oid,
    /// `None`: in place.
    pub(super) location: Option<Vec<u8>>,
}

impl Survey {
    /// Reads everything, from beginning to end. Errors: see [`super`].
    pub fn take(base: Option<&std::path::Path>, wal_paths: &[PathBuf]) -> Result<Survey> {
        let mut wal = WalFacts::default();
        let mut found = None;
        if let Some(path) = base {
            let base = Base::find(path)?;
            let mut facts = BaseFacts::default();
            base.walk(&mut |source, member, content| facts.member(source, &member, content, &mut wal))?;
            found = Some((base, facts));
        }
        // Wrong bases are told before a long archive is read.
        let opened = found
            .map(|(base, facts)| Opened::new(facts).map(|opened| (base, opened)))
            .transpose()?;
        for path in wal_paths {
            walk_wal(
                path,
                &mut |source, name, size, content| match super::facts::wal_name(name) {
                    Some(name) => wal.file(source, &name, size, content, Origin::Archive),
                    None => {
                        wal.ignore(&String::from_utf8_lossy(name));
                        Ok(())
                    }
                },
            )?;
        }
        let base = opened
            .map(|(base, opened)| opened.resolve(&wal).map(|resolved| (base, resolved)))
            .transpose()?;
        Ok(Survey {
            base,
            wal_paths: wal_paths.to_vec(),
            wal,
        })
    }
}

/// What one archive of a base is, with the WAL in it: bytes in, a value out.
pub(super) fn of_archive(content: impl std::io::Read + Send, name: &str) -> Result<Resolved> {
    let (mut facts, mut wal) = (BaseFacts::default(), WalFacts::default());
    members(content, name, b"", &mut |source, member, content| {
        facts.member(source, &member, content, &mut wal)
    })?;
    Opened::new(facts)?.resolve(&wal)
}

/// A base whose small files are read, and that its manifest does not contradict.
struct Opened {
    facts: BaseFacts,
    prefix: Vec<u8>,
    control: ControlFile,
    label: BackupLabel,
    manifest: Option<ManifestFacts>,
    tablespaces: Vec<Space>,
    warnings: Vec<String>,
}

impl Opened {
    fn new(mut facts: BaseFacts) -> Result<Opened> {
        let prefix = prefix(&facts)?;
        let content = |name: &str| facts.telling.get(&[&prefix, name.as_bytes()].concat());
        let control = ControlFile::parse(content(CONTROL_FILE).ok_or_else(no_control)?)
            .map_err(|error| error.context("the base is not a usable copy of a data directory"))?;
        super::super::plan::check_supported(control.block_size, control.relation_segment_size)?;
        checked_segment_size(control.wal_segment_size)?;
        let Some(label) = content("backup_label") else {
            return Err(Error::new(
                "import-no-backup-label",
                "the base has no backup_label: it is not a base backup",
            )
            .detail(format!(
                "pg_control says that the cluster was {}. A copy of a running data directory that was not made between \
                 pg_backup_start and pg_backup_stop cannot be brought into a consistent state.",
                control.state
            ))
            .hint("Use what pg_basebackup made. For a server that still exists, run `pgproof backup`."));
        };
        let label = BackupLabel::parse(label)?;
        let links = tablespaces(&facts, &prefix, content("tablespace_map"))?;
        let mut warnings = Vec::new();
        let manifest = facts
            .manifests
            .remove(&[&prefix[..], b"backup_manifest"].concat())
            .or_else(|| facts.manifests.remove(&b"backup_manifest"[..]));
        match &manifest {
            Some(manifest) => check_manifest(&facts, &prefix, manifest, &control, &label, &mut warnings)?,
            None => warnings.push(
                "there is no backup_manifest: that no file is missing or changed since cannot be shown"
                    .into(),
            ),
        }
        for (path, target) in &facts.links {
            let Some(within) = path.strip_prefix(&prefix[..]) else {
                continue;
            };
            if within == b"pg_wal" || is_tablespace(within) {
                continue;
            }
            let shown = format!("\"{}\" -> \"{}\"", within.escape_ascii(), target.escape_ascii());
            if belongs_to_postgres(within) {
                return Err(Error::new(
                    "import-link",
                    "the base has a symbolic link in a place that PostgreSQL owns",
                )
                .detail(format!("{shown}. What it leads to is not in the base.")));
            }
            warnings.push(format!("the symbolic link {shown} is left out"));
        }
        Ok(Opened {
            prefix,
            control,
            label,
            manifest,
            tablespaces: links,
            warnings,
            facts,
        })
    }

    /// Finds the end and the times.
    fn resolve(mut self, wal: &WalFacts) -> Result<Resolved> {
        let (label, control) = (&self.label, &self.control);
        let history = history_file(wal, label)?;
        let record = wal
            .segments
            .values()
            .flat_map(|segment| &segment.backup_ends)
            .find(|(start, _)| *start == label.start)
            .map(|(_, end)| *end);
        let manifest = self
            .manifest
            .as_ref()
            .and_then(|manifest| manifest.manifest.wal_ranges.iter().map(|(_, _, end)| *end).max());
        let standby = (label.from == "standby").then_some(control.min_recovery_point);
        let known = [
            (manifest, "backup_manifest"),
            (history.as_ref().map(|(stop, _)| *stop), "the backup history file"),
            (standby, "pg_control of the standby"),
            (record, "the end-of-backup record in the WAL"),
        ];
        let Some((stop, stop_from)) = known.iter().find_map(|(stop, from)| Some(((*stop)?, *from))) else {
            return Err(Error::new(
                "import-end-unknown",
                "where the base backup ended cannot be told",
            )
            .detail(format!(
                "It began at {}. Neither a backup_manifest, nor {}.*.backup, nor the WAL that was brought says its end.",
                label.start, label.start_segment
            ))
            .hint("Bring the WAL archive with --wal: it holds the end-of-backup record."));
        };
        // The manifest's end and the history file's are the same number; the record ends there.
        if let (Some(manifest), Some((history, _))) = (manifest, &history)
            && manifest != *history
        {
            return Err(Error::new(
                "import-manifest-mismatch",
                "the manifest and the backup history file disagree",
            )
            .detail(format!(
                "The manifest ends at {manifest}, the history file at {history}."
            )));
        }
        if stop < label.start {
            return Err(
                Error::new("import-end-unknown", "the base backup ends before it begins")
                    .detail(format!("It began at {}; {stop_from} says {stop}.", label.start)),
            );
        }
        let checkpoint = wal
            .segments
            .values()
            .flat_map(|segment| &segment.checkpoints)
            .find(|(lsn, _)| *lsn == label.checkpoint)
            .map(|(_, time)| time.to_jiff());
        let started_at = utc_time(&label.start_time)
            .or(checkpoint)
            .unwrap_or(control.checkpoint_time);
        let commit = wal
            .segments
            .iter()
            .filter(|((timeline, _), _)| *timeline == label.timeline)
            .flat_map(|(_, segment)| &segment.commits)
            .filter(|(end, _)| *end <= stop)
            .map(|(_, time)| *time)
            .max()
            .map(Timestamp::to_jiff);
        let finished_at = [commit, history.and_then(|(_, time)| time)]
            .into_iter()
            .flatten()
            .fold(started_at, jiff::Timestamp::max);
        if wal.segments.is_empty() {
            self.warnings.push("no WAL was brought".into());
        }
        Ok(Resolved {
            stop,
            stop_from,
            started_at,
            finished_at,
            facts: self.facts,
            prefix: self.prefix,
            control: self.control,
            label: self.label,
            tablespaces: self.tablespaces,
            warnings: self.warnings,
        })
    }
}

fn no_control() -> Error {
    Error::new("import-layout", "the base holds no global/pg_control")
        .detail("It is not a copy of a data directory, or only a part of one.")
        .hint("Name the archive or the folder of the data directory with --base, WAL with --wal.")
}

/// What stands before the data directory's own names: the one folder that holds `global/pg_control`.
fn prefix(facts: &BaseFacts) -> Result<Vec<u8>> {
    let mut found = facts
        .files
        .keys()
        .filter(|path| ends_with_path(path, CONTROL_FILE.as_bytes()))
        .filter_map(|path| path.strip_suffix(CONTROL_FILE.as_bytes()));
    let prefix = found.next().ok_or_else(no_control)?;
    match found.next() {
        None => Ok(prefix.to_vec()),
        Some(other) => Err(
            Error::new("import-layout", "the base holds two data directories").detail(format!(
                "\"{}\" and \"{}\".",
                prefix.escape_ascii(),
                other.escape_ascii()
            )),
        ),
    }
}

/// `pg_tblspc/OID`.
pub(super) fn is_tablespace(path: &[u8]) -> bool {
    path.strip_prefix(b"pg_tblspc/")
        .is_some_and(|oid| !oid.is_empty() && oid.iter().all(u8::is_ascii_digit))
}

/// From the map, and from links and folders in `pg_tblspc`. Each must have brought its content.
fn tablespaces(facts: &BaseFacts, prefix: &[u8], map: Option<&Vec<u8>>) -> Result<Vec<Space>> {
    let mut spaces: Vec<Space> = match map {
        Some(map) => tablespace_map::parse(map)?
            .into_iter()
            .map(|(oid, location)| Space {
                oid,
                location: Some(location),
            })
            .collect(),
        None => Vec::new(),
    };
    let mut add = |path: &[u8], location: Option<&Vec<u8>>| {
        let within = path.strip_prefix(prefix).filter(|within| is_tablespace(within));
        let oid = within
            .and_then(|within| std::str::from_utf8(within.strip_prefix(b"pg_tblspc/")?).ok())
            .and_then(|digits| digits.parse::<Oid>().ok());
        if let Some(oid) = oid.filter(|oid| spaces.iter().all(|space| space.oid != *oid)) {
            let location = location.cloned();
            spaces.push(Space { oid, location });
        }
    };
    facts
        .links
        .iter()
        .for_each(|(path, target)| add(path, Some(target)));
    facts.directories.iter().for_each(|path| add(path, None));
    for space in &spaces {
        // Those of `pg_basebackup -Ft` come in archives of their own, beside a base.tar without a leading directory.
        let below = [prefix, format!("pg_tblspc/{}/", space.oid).as_bytes()].concat();
        let brought = facts.directories.range(below.clone()..).next();
        let brought = brought.is_some_and(|path| path.starts_with(&below))
            || facts.files.keys().any(|path| path.starts_with(&below));
        if !brought {
            return Err(Error::new(
                "import-tablespace-missing",
                format!("the base lacks the content of tablespace {}", space.oid),
            )
            .detail(match &space.location {
                Some(location) => format!("It lay in \"{}\".", location.escape_ascii()),
                None => "Its folder is empty.".to_owned(),
            })
            .hint(
                "Bring the archive of the tablespace, too: pg_basebackup calls it OID.tar beside base.tar.",
            ));
        }
    }
    spaces.sort_by_key(|space| space.oid);
    Ok(spaces)
}

/// What may differ from the manifest: `pg_verifybackup` leaves out the same.
fn outside_manifest(path: &[u8]) -> bool {
    path.starts_with(b"pg_wal/")
        || matches!(
            path,
            b"backup_manifest" | b"postgresql.auto.conf" | b"standby.signal" | b"recovery.signal"
        )
}

fn check_manifest(
    facts: &BaseFacts,
    prefix: &[u8],
    manifest: &ManifestFacts,
    control: &ControlFile,
    label: &BackupLabel,
    warnings: &mut Vec<String>,
) -> Result<()> {
    let differs = |detail: String| {
        Err(Error::new(
            "import-manifest-mismatch",
            "the base is not what its backup_manifest says",
        )
        .detail(detail)
        .hint(
            "Copy the backup again from where it was made; `pg_verifybackup` tells the same of a plain one.",
        ))
    };
    let stated = &manifest.manifest;
    if stated
        .system_identifier
        .is_some_and(|system| system != control.system_identifier.0)
    {
        return differs("The manifest is of another cluster.".into());
    }
    let start = stated.wal_ranges.iter().map(|(_, start, _)| *start).min();
    if start != Some(label.start) {
        return differs(format!(
            "The manifest's WAL does not begin at {}, as the label does.",
            label.start
        ));
    }
    let mut unchecked = 0;
    let mut listed = std::collections::HashSet::new();
    for file in &manifest.files {
        let shown = file.path.escape_ascii();
        listed.insert(file.path.as_slice());
        if outside_manifest(&file.path) {
            continue;
        }
        let Some(found) = facts.files.get(&[prefix, &file.path].concat()) else {
            return differs(format!("\"{shown}\" is missing."));
        };
        if found.size != file.size {
            return differs(format!(
                "\"{shown}\" has {} bytes instead of {}.",
                found.size, file.size
            ));
        }
        match file.crc32c {
            Some(crc) if crc != found.crc32c => return differs(format!("\"{shown}\" has another content.")),
            Some(_) => {}
            None => unchecked += 1,
        }
    }
    for path in facts.files.keys() {
        if let Some(within) = path.strip_prefix(prefix)
            && !listed.contains(within)
            && !outside_manifest(within)
        {
            return differs(format!("\"{}\" is not in the manifest.", within.escape_ascii()));
        }
    }
    if unchecked > 0 {
        warnings.push(format!(
            "{unchecked} files have no CRC-32C in the manifest; only their sizes were compared"
        ));
    }
    Ok(())
}

/// The history file of this very backup: its end, and the time if that can be told.
fn history_file(wal: &WalFacts, label: &BackupLabel) -> Result<Option<(Lsn, Option<jiff::Timestamp>)>> {
    for (name, content) in &wal.others {
        if !name.ends_with(".backup") {
            continue;
        }
        let text = String::from_utf8_lossy(content);
        let field = |name: &str| {
            text.lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
        };
        let lsn = |name: &str| field(name)?.split(' ').next()?.parse::<Lsn>().ok();
        if lsn("START WAL LOCATION") != Some(label.start)
            || lsn("CHECKPOINT LOCATION") != Some(label.checkpoint)
            || field("START TIME") != Some(label.start_time.as_str())
        {
            continue;
        }
        let Some(stop) = lsn("STOP WAL LOCATION") else {
            return Err(Error::new(
                "import-history-damaged",
                format!("the backup history file {name} is damaged"),
            ));
        };
        return Ok(Some((stop, field("STOP TIME").and_then(utc_time))));
    }
    Ok(None)
}

/// A time as the server's log_timezone shows it, where that is unambiguous.
fn utc_time(text: &str) -> Option<jiff::Timestamp> {
    let (time, zone) = text.trim().rsplit_once(' ')?;
    let time: jiff::civil::DateTime = time.parse().ok()?;
    matches!(zone, "UTC" | "GMT")
        .then(|| time.to_zoned(jiff::tz::TimeZone::UTC).ok())
        .flatten()
        .map(|zoned| zoned.timestamp())
}

/// Whether a file of the base goes into the backup's tree as it is.
pub(super) fn stored_as_is(within: &[u8]) -> bool {
    !(within.starts_with(b"pg_wal/")
        || left_out(within)
        || within == CONTROL_FILE.as_bytes()
        || within == crate::RESTORED_MARKER.as_bytes()
        || matches!(within, b"standby.signal" | b"recovery.signal"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_time_whose_zone_is_certain_is_believed() {
        let time = utc_time("2026-01-25 14:30:00 UTC").unwrap();
        assert_eq!(time.to_string(), "2026-01-25T14:30:00Z");
        assert!(utc_time("2026-01-25 14:30:00 IST").is_none());
        assert!(utc_time("yesterday").is_none());
    }
}
