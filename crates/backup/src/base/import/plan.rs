//! What an import will store in one copy, decided before anything is stored: a value that `--dry-run` prints.

use std::fmt;

use diagnostic::{Error, Result};
use jiff::Timestamp;
use postgres::{ControlFile, Lsn, SystemIdentifier, TimelineHistory, TimelineId, Verdict, segment_name};
use repository::{BackupId, ClusterRepository, WalFileKind};
use serde::Serialize;

use super::super::parent::{self, Choice, Current, Shape};
use super::facts::{Origin, SegmentFacts, WalFacts};
use super::survey::{Resolved, Survey};
use super::walk::Base;

/// An import that has not been made yet.
#[derive(Debug, Clone, Serialize)]
pub struct ImportPlan {
    pub cluster: String,
    /// Where it goes.
    pub repository: String,
    pub system_identifier: SystemIdentifier,
    pub base: Option<BasePlan>,
    pub wal: WalPlan,
    pub warnings: Vec<String>,
}

/// The base backup of an import.
#[derive(Debug, Clone, Serialize)]
pub struct BasePlan {
    #[serde(flatten)]
    pub layout: Base,
    /// The folder inside an archive that is the data directory; empty for its root.
    pub leading_directory: String,
    /// The major version: which minor version it was, a data directory does not say.
    pub postgresql_version: String,
    pub timeline: TimelineId,
    pub data_checksums: bool,
    pub from_standby: bool,
    pub label: String,
    pub start_lsn: Lsn,
    pub stop_lsn: Lsn,
    /// What says where it ends.
    pub stop_from: &'static str,
    pub started_at: Timestamp,
    /// The last thing in the WAL before the end that has a time, where no history file says more.
    pub finished_at: Timestamp,
    pub files: u64,
    pub bytes: u64,
    pub tablespaces: Vec<u32>,
    /// The backup that this one is already.
    pub already_there: Option<BackupId>,
    /// The backup whose unchanged pages are referenced.
    pub parent: Option<BackupId>,
    pub parent_reason: String,
    #[serde(skip)]
    pub(super) history: TimelineHistory,
}

/// The WAL of an import.
#[derive(Debug, Clone, Serialize)]
pub struct WalPlan {
    /// Segments that were found and belong to it.
    pub segments: u64,
    pub first: Option<String>,
    pub last: Option<String>,
    /// History, backup history and partial files.
    pub other_files: u64,
    /// Places behind which a segment is missing, the last segment before each.
    pub gaps_after: Vec<String>,
    pub ignored_files: u64,
    pub ignored: Vec<String>,
}

/// Decides. Touches nothing.
pub fn plan(survey: &Survey, repository: &ClusterRepository) -> Result<ImportPlan> {
    let ids = repository.backup_ids()?;
    let newest = ids.last().map(|id| repository.backup(*id)).transpose()?;
    let (system, segment_size) = match (&survey.base, &newest) {
        (Some((_, base)), _) => (base.control.system_identifier, base.control.wal_segment_size),
        (None, Some(newest)) => (newest.system_identifier, newest.geometry.wal_segment_size),
        (None, None) => {
            return Err(Error::usage(
                "import-base-missing",
                format!(
                    "cluster \"{}\" has no backup that the WAL could belong to",
                    repository.name()
                ),
            )
            .hint("Name the base backup with --base."));
        }
    };
    if let Some(newest) = &newest
        && newest.system_identifier != system
    {
        return Err(Error::new(
            "import-other-system",
            format!("cluster \"{}\" holds backups of another server", repository.name()),
        )
        .detail(format!(
            "Its newest backup has system identifier {}, what was brought has {system}.",
            newest.system_identifier
        ))
        .hint("Give it a name of its own: a section [cluster.NAME] without `connection` in the configuration file."));
    }
    for (key, segment) in &survey.wal.segments {
        belongs(system, segment_size, *key, segment)?;
    }
    never_ahead(survey, repository, system, segment_size)?;
    let base = match &survey.base {
        Some((layout, base)) => Some(base_plan(layout, base, survey, repository)?),
        None => None,
    };
    Ok(ImportPlan {
        cluster: repository.name().to_owned(),
        repository: repository.repository().store().url(),
        system_identifier: system,
        wal: wal_plan(survey, segment_size),
        warnings: warnings(survey, segment_size),
        base,
    })
}

/// A segment of this very cluster.
fn belongs(
    system: SystemIdentifier,
    segment_size: u32,
    (timeline, number): (TimelineId, u64),
    segment: &SegmentFacts,
) -> Result<()> {
    if segment.system != system {
        return Err(Error::new(
            "wal-segment-system",
            format!("WAL segment \"{}\" is of another cluster", segment.source),
        )
        .detail(format!(
            "Its first page has system identifier {}; the base's is {system}.",
            segment.system
        ))
        .hint("Bring the WAL of the server that the base was made of, and nothing else."));
    }
    if segment.segment_size != segment_size {
        let name = segment_name(timeline, number, segment.segment_size);
        return Err(Error::new(
            "wal-segment-size",
            format!("WAL segment {name} is of another segment size than the base"),
        ));
    }
    Ok(())
}

/// Whether a segment is stored: all of an archive; of the base's own `pg_wal` what the backup needs.
pub(super) fn is_wanted(
    survey: &Survey,
    (timeline, number): (TimelineId, u64),
    segment: &SegmentFacts,
) -> bool {
    match (segment.origin, &survey.base) {
        (Origin::Archive, _) => true,
        (Origin::Base, Some((_, base))) => {
            let (first, last) = window(base);
            timeline == base.label.timeline && (first..=last).contains(&number)
        }
        (Origin::Base, None) => false,
    }
}

/// First and last number of the segments that a base needs.
fn window(base: &Resolved) -> (u64, u64) {
    let size = base.control.wal_segment_size;
    let last = Lsn(base.stop.0.saturating_sub(1)).segment(size);
    (base.label.start.segment(size), last)
}

/// What a server archives here by itself is left to it: were an import ahead, or were the segment that it brings cut short,
/// the server's own segment would be refused, and its archiver would stop.
fn never_ahead(
    survey: &Survey,
    repository: &ClusterRepository,
    system: SystemIdentifier,
    segment_size: u32,
) -> Result<()> {
    let mut timelines: Vec<TimelineId> = Vec::new();
    for ((timeline, number), segment) in survey.wal.segments.iter().rev() {
        if !is_wanted(survey, (*timeline, *number), segment) || timelines.contains(timeline) {
            continue;
        }
        timelines.push(*timeline);
        if repository.current_claim(system, *timeline)?.is_none() {
            continue;
        }
        let newest = repository.newest_segment(system, *timeline, segment_size)?;
        if newest.is_some_and(|newest| newest.number >= *number) {
            continue;
        }
        return Err(Error::new(
            "import-ahead-of-archiver",
            format!("the WAL reaches further than what the server has archived of timeline {timeline}"),
        )
        .detail(format!(
            "A server archives this timeline into cluster \"{}\"; {} would be in its way.",
            repository.name(),
            segment_name(*timeline, *number, segment_size)
        ))
        .hint("Give the import a cluster of its own: a section [cluster.NAME] without `connection` in the configuration file."));
    }
    Ok(())
}

fn base_plan(
    layout: &Base,
    base: &Resolved,
    survey: &Survey,
    repository: &ClusterRepository,
) -> Result<BasePlan> {
    check_window(base, survey, repository)?;
    let history = history(base, &survey.wal, repository)?;
    let mut already_there = None;
    for id in repository.backup_ids()? {
        let backup = repository.backup(id)?;
        if backup.timeline == base.label.timeline
            && (backup.start_lsn, backup.stop_lsn) == (base.label.start, base.stop)
        {
            already_there = Some(id);
        }
    }
    let current = Current {
        shape: Shape::of(&base.control),
        history: &history,
        lsn: base.stop,
    };
    let Choice { parent, reason, .. } = parent::choose(repository, &current, false)?;
    let leading = base.prefix.strip_suffix(b"/").unwrap_or(&base.prefix);
    Ok(BasePlan {
        layout: layout.clone(),
        leading_directory: leading.escape_ascii().to_string(),
        postgresql_version: base.control.major.to_string(),
        timeline: base.label.timeline,
        data_checksums: base.control.data_checksum_version != 0,
        from_standby: base.label.from == "standby",
        label: base.label.label.clone(),
        start_lsn: base.label.start,
        stop_lsn: base.stop,
        stop_from: base.stop_from,
        started_at: base.started_at,
        finished_at: base.finished_at,
        files: base.facts.files.len() as u64,
        bytes: base.facts.bytes,
        tablespaces: base.tablespaces.iter().map(|space| space.oid).collect(),
        already_there,
        parent: parent.map(|(backup, _)| backup.backup),
        parent_reason: reason,
        history,
    })
}

/// All WAL from start to end: brought now, or there already.
fn check_window(base: &Resolved, survey: &Survey, repository: &ClusterRepository) -> Result<()> {
    let (system, timeline) = (base.control.system_identifier, base.label.timeline);
    let size = base.control.wal_segment_size;
    let (first, last) = window(base);
    for number in first..=last {
        let name = segment_name(timeline, number, size);
        let Some(segment) = survey.wal.segments.get(&(timeline, number)) else {
            if repository.get_segment(system, timeline, number, size)?.is_some() {
                continue;
            }
            return Err(Error::new(
                "import-wal-missing",
                format!("WAL segment {name} of the backup was not brought"),
            )
            .detail(format!(
                "The backup began at {} and ended at {} on timeline {timeline}; without all WAL between, it cannot be \
                 restored.",
                base.label.start, base.stop
            ))
            .hint("Bring the archive that holds it with --wal."));
        };
        let whole = match &segment.verdict {
            Verdict::Good => true,
            Verdict::Incomplete { .. } | Verdict::Damaged { .. } => {
                number == last && segment.end >= base.stop
            }
        };
        if !whole || (number == last && segment.end < base.stop) {
            return Err(Error::new(
                "import-wal-damaged",
                format!("WAL segment {name} of the backup is damaged"),
            )
            .detail(format!(
                "\"{}\": valid WAL ends at {}; the backup needs it up to {}.",
                segment.source, segment.end, base.stop
            ))
            .hint("Bring another copy of it."));
        }
    }
    Ok(())
}

fn history(base: &Resolved, wal: &WalFacts, repository: &ClusterRepository) -> Result<TimelineHistory> {
    let timeline = base.label.timeline;
    if timeline.0 <= 1 {
        return Ok(TimelineHistory::root(timeline));
    }
    let name = format!("{}.history", timeline.hex8());
    if let Some(content) = wal.others.get(&name) {
        return TimelineHistory::parse(timeline, content);
    }
    let stored = repository.get_file(base.control.system_identifier, WalFileKind::History, &name)?;
    match stored.first() {
        Some(content) => TimelineHistory::parse(timeline, content),
        None => Err(Error::new(
            "timeline-history-missing",
            format!("the history of timeline {timeline} is not known"),
        )
        .hint(format!("Bring {name} with --wal; it lies in the WAL archive."))),
    }
}

fn wal_plan(survey: &Survey, size: u32) -> WalPlan {
    let wanted: Vec<(TimelineId, u64)> = survey
        .wal
        .segments
        .iter()
        .filter(|(key, segment)| is_wanted(survey, **key, segment))
        .map(|(key, _)| *key)
        .collect();
    let name = |(timeline, number): &(TimelineId, u64)| segment_name(*timeline, *number, size);
    let gaps = wanted.iter().zip(wanted.iter().skip(1));
    WalPlan {
        segments: wanted.len() as u64,
        first: wanted.first().map(name),
        last: wanted.last().map(name),
        other_files: survey.wal.others.len() as u64,
        gaps_after: gaps
            .filter(|(one, two)| one.0 == two.0 && one.1 + 1 != two.1)
            .map(|(one, _)| name(one))
            .collect(),
        ignored_files: survey.wal.ignored,
        ignored: survey.wal.ignored_names.clone(),
    }
}

fn warnings(survey: &Survey, size: u32) -> Vec<String> {
    let mut warnings: Vec<String> = survey
        .base
        .iter()
        .flat_map(|(_, base)| base.warnings.clone())
        .collect();
    for ((timeline, number), segment) in &survey.wal.segments {
        if !is_wanted(survey, (*timeline, *number), segment) {
            continue;
        }
        let name = segment_name(*timeline, *number, size);
        match &segment.verdict {
            Verdict::Good => {}
            Verdict::Incomplete { at } => warnings.push(format!("valid WAL in {name} ends at {at}")),
            Verdict::Damaged { at, reason } => {
                warnings.push(format!("valid WAL in {name} ends at {at}: {reason}"));
            }
        }
    }
    warnings
}

/// The control file of the base, for those who make the record.
pub(super) fn control(survey: &Survey) -> Option<&ControlFile> {
    survey.base.as_ref().map(|(_, base)| &base.control)
}

impl fmt::Display for ImportPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "Import into cluster {} in {} (system identifier {})",
            self.cluster, self.repository, self.system_identifier
        )?;
        if let Some(base) = &self.base {
            let origin = if base.from_standby { " of a standby" } else { "" };
            writeln!(
                f,
                "  base backup{origin}:  PostgreSQL {}, \"{}\", begun {}",
                base.postgresql_version, base.label, base.started_at
            )?;
            writeln!(
                f,
                "  WAL it needs:     {} to {} on timeline {} (the end from {})",
                base.start_lsn, base.stop_lsn, base.timeline, base.stop_from
            )?;
            writeln!(f, "  files:            {} with {} bytes", base.files, base.bytes)?;
            match &base.already_there {
                Some(id) => writeln!(
                    f,
                    "  it is there:      as backup {id}; nothing of it is stored again"
                )?,
                None => writeln!(f, "  parent:           {}", base.parent_reason)?,
            }
        }
        match (&self.wal.first, &self.wal.last) {
            (Some(first), Some(last)) => {
                writeln!(
                    f,
                    "  WAL brought:      {} segments, {first} to {last}",
                    self.wal.segments
                )?;
            }
            _ => writeln!(f, "  WAL brought:      none")?,
        }
        for gap in &self.wal.gaps_after {
            writeln!(f, "  missing:          WAL behind {gap}")?;
        }
        if self.wal.ignored_files > 0 {
            writeln!(
                f,
                "  ignored:          {} files that are no WAL",
                self.wal.ignored_files
            )?;
        }
        for warning in &self.warnings {
            writeln!(f, "  warning: {warning}")?;
        }
        Ok(())
    }
}
