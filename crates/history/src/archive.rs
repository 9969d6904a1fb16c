//! The archive as a whole: which segments are there, where WAL is unbroken, and reading indexes in order.
//!
//! Invariants: only runs of segment numbers are kept, never a value for each segment; a scan follows one way
//! through the timelines, uses for each segment the file that PostgreSQL would use, and ends where unbroken
//! WAL ends, saying why; no record behind the point where a timeline is left is ever reported from that
//! timeline.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use diagnostic::{Error, Result};
use postgres::{Lsn, SegmentIndex, SystemIdentifier, TimelineId, Verdict, segment_name};
use repository::ClusterRepository;
use serde::{Deserialize, Serialize};

use crate::point::{CommitPoint, committed};
use crate::seam;
use crate::source::{Layered, RepositorySource, WalSource};
use crate::timelines::{Standing, Timelines, UnreachableHistory, WalPath};

/// Indexes read at once.
const READ_AHEAD: usize = 16;
/// Threads that read them.
const READERS: usize = 4;

/// Consecutive archived segments of one timeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentRun {
    /// The first number.
    pub first: u64,
    /// The last number.
    pub last: u64,
}

/// Segments that are missing between archived ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gap {
    /// The timeline.
    pub timeline: TimelineId,
    /// The first missing segment's number.
    pub first_missing: u64,
    /// The last missing segment's number.
    pub last_missing: u64,
    /// Where it begins.
    pub from: Lsn,
    /// Where archived WAL goes on.
    pub to: Lsn,
}

/// Where archived WAL ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArchiveEnd {
    /// The timeline of the last segment.
    pub timeline: TimelineId,
    /// Its number.
    pub segment: u64,
    /// The end of the last complete record in it.
    pub lsn: Lsn,
    /// The newest commit up to there.
    pub last_commit: Option<CommitPoint>,
}

/// A segment's index, with where it was found.
#[derive(Debug, Clone, PartialEq)]
pub struct Located {
    /// The timeline of the file.
    pub timeline: TimelineId,
    /// The segment's number.
    pub number: u64,
    /// What it says; its seam is resolved if that was possible.
    pub index: SegmentIndex,
    /// Records that begin at or behind this LSN do not belong to the way that is scanned.
    pub cut: Option<Lsn>,
}

/// Why a scan ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ScanEnd {
    /// The caller had enough.
    Stopped,
    /// The last archived segment was read; here ends its last complete record.
    End {
        lsn: Lsn,
        timeline: TimelineId,
        number: u64,
    },
    /// Nothing was there at all from where the scan was to begin.
    Nothing,
    /// Segments are missing and others follow.
    Gap {
        timeline: TimelineId,
        first_missing: u64,
        last_missing: u64,
        lsn: Lsn,
    },
    /// A segment in which valid WAL ends early, and others follow.
    Damaged {
        timeline: TimelineId,
        number: u64,
        lsn: Lsn,
        reason: String,
    },
}

/// Consecutive segments of the way, all of them files of one timeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stretch {
    timeline: TimelineId,
    first: u64,
    last: u64,
    /// The way leaves the timeline in the last segment, and the file of that segment of this newer timeline
    /// is missing.
    cut: Option<TimelineId>,
}

/// Archived WAL of one system identifier.
#[derive(Clone)]
pub struct Archive {
    source: Arc<dyn WalSource>,
    system: SystemIdentifier,
    segment_size: u32,
    runs: BTreeMap<TimelineId, Vec<SegmentRun>>,
    timelines: Timelines,
    claimed: BTreeSet<TimelineId>,
    /// What retention has let go, by timeline.
    expired: Vec<(TimelineId, u64, u64)>,
}

impl Archive {
    /// Looks at what the copies hold of one system identifier. `wal_segment_size` in bytes, from a backup or
    /// the control file. A copy that cannot be read is left out unless it is the only one; see
    /// [`RepositorySource::unavailable`].
    pub fn load(
        copies: &[ClusterRepository],
        system: SystemIdentifier,
        wal_segment_size: u32,
    ) -> Result<Archive> {
        Archive::of(
            Arc::new(RepositorySource::load(copies, system, wal_segment_size)?),
            system,
            wal_segment_size,
        )
    }

    /// From any source. Error: `wal-segment-size`.
    pub fn of(
        source: Arc<dyn WalSource>,
        system: SystemIdentifier,
        wal_segment_size: u32,
    ) -> Result<Archive> {
        if !postgres::valid_segment_size(wal_segment_size) {
            return Err(Error::new(
                "wal-segment-size",
                format!("{wal_segment_size} is not a size of WAL segments"),
            ));
        }
        let mut runs = BTreeMap::new();
        for timeline in source.timelines()? {
            runs.insert(timeline, runs_of(source.segments(timeline)?));
        }
        let timelines = Timelines::new(source.histories()?);
        let claimed = source.claimed()?;
        let expired = source.expired()?;
        Ok(Archive {
            source,
            system,
            segment_size: wal_segment_size,
            runs,
            timelines,
            claimed,
            expired,
        })
    }

    /// The same archive with further WAL behind its end: what a server has written and not archived yet. On
    /// each timeline only segments behind the last archived one count; a gap in the archive stays one, since
    /// recovery asks the archive first.
    pub fn extended(&self, further: Arc<dyn WalSource>) -> Result<Archive> {
        let mut extended = self.clone();
        for timeline in further.timelines()? {
            let last = self.runs(timeline).last().map(|run| run.last);
            let behind: Vec<u64> = further
                .segments(timeline)?
                .into_iter()
                .filter(|number| last.is_none_or(|last| *number > last))
                .collect();
            let mut numbers = extended.runs.remove(&timeline).unwrap_or_default();
            for run in runs_of(behind) {
                match numbers.last_mut() {
                    Some(before) if before.last.checked_add(1) == Some(run.first) => before.last = run.last,
                    _ => numbers.push(run),
                }
            }
            extended.runs.insert(timeline, numbers);
        }
        extended.source = Arc::new(Layered {
            first: self.source.clone(),
            second: further,
        });
        Ok(extended)
    }

    /// Whose WAL it is.
    pub fn system(&self) -> SystemIdentifier {
        self.system
    }

    /// Bytes of a segment.
    pub fn segment_size(&self) -> u32 {
        self.segment_size
    }

    /// The histories that are archived. A backup's own history may be added with [`Archive::add_history`].
    pub fn timelines(&self) -> &Timelines {
        &self.timelines
    }

    /// Makes a history known that is not archived, such as a backup's.
    pub fn add_history(&mut self, history: postgres::TimelineHistory, from: String) {
        self.timelines.add(crate::timelines::KnownHistory {
            history,
            object: from,
        });
    }

    /// Archived segments of a timeline, ascending.
    pub fn runs(&self, timeline: TimelineId) -> &[SegmentRun] {
        self.runs.get(&timeline).map(Vec::as_slice).unwrap_or_default()
    }

    /// Timelines that have segments.
    pub fn archived_timelines(&self) -> impl Iterator<Item = TimelineId> {
        self.runs
            .iter()
            .filter(|(_, runs)| !runs.is_empty())
            .map(|(timeline, _)| *timeline)
    }

    /// Whether a segment is archived.
    pub fn has(&self, timeline: TimelineId, number: u64) -> bool {
        run_at(self.runs(timeline), number).is_some()
    }

    /// Whether anything behind this segment is archived on the timeline.
    pub fn has_later(&self, timeline: TimelineId, number: u64) -> bool {
        self.runs(timeline).last().is_some_and(|run| run.last > number)
    }

    /// Every hole between archived segments, on each timeline. What retention has let go is no hole.
    pub fn gaps(&self) -> Vec<Gap> {
        let mut gaps = Vec::new();
        for (timeline, runs) in &self.runs {
            for pair in runs.windows(2) {
                let [before, after] = pair else { continue };
                gaps.extend(self.not_expired(*timeline, before.last + 1, after.first - 1));
            }
        }
        gaps
    }

    /// The parts of a hole that nobody let go.
    pub(crate) fn not_expired(&self, timeline: TimelineId, first: u64, last: u64) -> Vec<Gap> {
        let mut ranges: Vec<(u64, u64)> = (self.expired.iter())
            .filter(|(expired, _, _)| *expired == timeline)
            .map(|(_, first, last)| (*first, *last))
            .collect();
        ranges.sort_unstable();
        let mut gaps = Vec::new();
        let mut next = first;
        for (from, to) in ranges {
            if next > last || from > last {
                break;
            }
            if from > next {
                gaps.push(self.gap(timeline, next, from - 1));
            }
            next = next.max(to.saturating_add(1));
        }
        if next <= last {
            gaps.push(self.gap(timeline, next, last));
        }
        gaps
    }

    /// Holes on the way from an LSN (a backup's redo point) on, a missing beginning included, and also what
    /// retention has let go: nobody can look there.
    pub fn gaps_on(&self, path: &WalPath, from: Lsn) -> Vec<Gap> {
        let mut gaps = Vec::new();
        let mut number = from.segment(self.segment_size);
        while let Some(stretch) = self.next_stretch(path, number) {
            if stretch.first > number {
                gaps.push(self.gap(stretch.timeline, number, stretch.first - 1));
            }
            number = stretch.last + 1;
            if let Some(newer) = stretch.cut
                && let Some(next) = self.next_stretch(path, number)
            {
                gaps.push(self.gap(newer, stretch.last, next.first - 1));
                number = next.first;
            }
        }
        gaps
    }

    fn gap(&self, timeline: TimelineId, first_missing: u64, last_missing: u64) -> Gap {
        let size = u64::from(self.segment_size);
        Gap {
            timeline,
            first_missing,
            last_missing,
            from: Lsn(first_missing.saturating_mul(size)),
            to: Lsn(last_missing.saturating_add(1).saturating_mul(size)),
        }
    }

    /// The timeline whose file of this segment recovery would use.
    pub fn locate(&self, path: &WalPath, number: u64) -> Option<TimelineId> {
        path.candidates(number, self.segment_size)
            .into_iter()
            .find(|timeline| self.has(*timeline, number))
    }

    /// Where the way leaves this timeline, if that is within this file: what it holds behind that is not on
    /// the way, and recovery would not stop there by itself.
    fn cut(&self, path: &WalPath, timeline: TimelineId, number: u64) -> Option<Lsn> {
        path.switch_out_of(timeline)
            .filter(|switch| switch.segment(self.segment_size) <= number)
    }

    /// The first archived segments on the way at or behind `number` that are consecutive files of one
    /// timeline.
    fn next_stretch(&self, path: &WalPath, number: u64) -> Option<Stretch> {
        let Some(timeline) = self.locate(path, number) else {
            let mut first: Option<u64> = None;
            for leg in &path.legs {
                let begin = leg.from.segment(self.segment_size).max(number);
                let end = leg.to.map_or(u64::MAX, |to| to.segment(self.segment_size));
                let runs = self.runs(leg.timeline).iter();
                let found = runs
                    .map(|run| (run.first.max(begin), run.last.min(end)))
                    .find(|(first, last)| first <= last);
                first = [first, found.map(|(first, _)| first)].into_iter().flatten().min();
            }
            // Somebody has that segment, so this goes one level deep.
            return first
                .filter(|first| *first > number)
                .and_then(|first| self.next_stretch(path, first));
        };
        let run = run_at(self.runs(timeline), number)?;
        let leg = path.legs.iter().position(|leg| leg.timeline == timeline)?;
        let fork = path
            .legs
            .get(leg)
            .and_then(|leg| leg.to)
            .map(|to| to.segment(self.segment_size));
        let newer = path.legs.get(leg + 1).map(|leg| leg.timeline);
        let stretch = |last, cut| {
            Some(Stretch {
                timeline,
                first: number,
                last,
                cut,
            })
        };
        match fork {
            Some(fork) if run.last >= fork => match self.locate(path, fork) {
                // The segment of the fork belongs to the newer timeline, if it is there.
                Some(located) if located != timeline => stretch(fork.saturating_sub(1).max(number), None),
                _ => stretch(fork, newer),
            },
            _ => stretch(run.last, None),
        }
    }

    /// The last segment that is unbroken from `from` on, if that one is there. Where the way leaves a
    /// timeline, the newer timeline's own file of that segment is needed to go on.
    pub fn unbroken_to(&self, path: &WalPath, from: u64) -> Option<u64> {
        let mut number = from;
        self.locate(path, number)?;
        while let Some(stretch) = self
            .next_stretch(path, number)
            .filter(|stretch| stretch.first == number)
        {
            number = stretch.last + 1;
            if stretch.cut.is_some() {
                break;
            }
        }
        Some(number - 1)
    }

    /// Where the WAL that is unbroken from `from` on ends, with its newest commit (searched no further back
    /// than `from`).
    pub fn end_on(&self, path: &WalPath, from: Lsn) -> Result<Option<ArchiveEnd>> {
        let first = from.segment(self.segment_size);
        let Some(last) = self.unbroken_to(path, first) else {
            return Ok(None);
        };
        self.end_between(path, first, last)
    }

    /// Where a timeline's archived WAL ends, holes or not, with its newest commit on that timeline.
    pub fn end(&self, timeline: TimelineId) -> Result<Option<ArchiveEnd>> {
        let Some(run) = self.runs(timeline).last().copied() else {
            return Ok(None);
        };
        let leg = crate::timelines::Leg {
            timeline,
            from: Lsn(0),
            to: None,
        };
        self.end_between(&WalPath { legs: vec![leg] }, run.first, run.last)
    }

    fn end_between(&self, path: &WalPath, first: u64, last: u64) -> Result<Option<ArchiveEnd>> {
        let mut end: Option<ArchiveEnd> = None;
        for number in (first..=last).rev() {
            let Some(located) = self.read(path, number)? else {
                break;
            };
            let cut = located.cut;
            let lsn = cut.map_or(located.index.end, |cut| cut.min(located.index.end));
            let found = end.get_or_insert(ArchiveEnd {
                timeline: located.timeline,
                segment: number,
                lsn,
                last_commit: None,
            });
            let newest =
                located.index.transactions.iter().rev().find(|transaction| {
                    committed(transaction) && cut.is_none_or(|cut| transaction.start < cut)
                });
            if let Some(newest) = newest {
                found.last_commit = Some(CommitPoint::of(newest));
                break;
            }
        }
        Ok(end)
    }

    /// Histories that leave a timeline before its archived end (field guide 1.6). `backed_up`: timelines of
    /// backups.
    pub fn unreachable_histories(&self, backed_up: &BTreeSet<TimelineId>) -> Result<Vec<UnreachableHistory>> {
        let mut ends = BTreeMap::new();
        for timeline in self.archived_timelines() {
            if let Some(run) = self.runs(timeline).last() {
                let index = self.source.index(timeline, run.last)?;
                let begin = Lsn(run.last.saturating_mul(u64::from(self.segment_size)));
                ends.insert(timeline, index.map_or(begin, |index| index.end));
            }
        }
        Ok(self
            .timelines
            .unreachable(&ends, |timeline| self.standing(timeline, backed_up)))
    }

    /// What is known of who wrote a timeline. `backed_up`: timelines of backups.
    pub fn standing(&self, timeline: TimelineId, backed_up: &BTreeSet<TimelineId>) -> Standing {
        // Whoever descends from a timeline vouches for it.
        let vouched = |set: &BTreeSet<TimelineId>| {
            set.contains(&timeline)
                || self.timelines.all().any(|known| {
                    set.contains(&known.history.timeline) && known.history.switch_out_of(timeline).is_some()
                })
        };
        if vouched(backed_up) {
            Standing::BackedUp
        } else if vouched(&self.claimed) && !self.runs(timeline).is_empty() {
            Standing::Claimed
        } else {
            Standing::Unknown
        }
    }

    /// The bytes of one segment's file; `None` if no copy has it, or this recipient may not read rows.
    pub(crate) fn bytes(&self, timeline: TimelineId, number: u64) -> Result<Option<Vec<u8>>> {
        let mut bytes = Vec::new();
        match self.source.read(timeline, number, &mut bytes) {
            Ok(true) => Ok(Some(bytes)),
            Ok(false) => Ok(None),
            Err(error) if error.code() == "key-role" => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Reads one segment's index on the way, its seam resolved if that is possible.
    pub(crate) fn read(&self, path: &WalPath, number: u64) -> Result<Option<Located>> {
        let Some(timeline) = self.locate(path, number) else {
            return Ok(None);
        };
        let Some(index) = self.source.index(timeline, number)? else {
            return Ok(None);
        };
        let index = seam::resolved(self.source.as_ref(), index, &|number| self.locate(path, number));
        let cut = self.cut(path, timeline, number);
        Ok(Some(Located {
            timeline,
            number,
            index,
            cut,
        }))
    }

    /// Gives the indexes of the way to `take`, in order, from the segment that holds `from` up to the one
    /// that holds `until`, or as far as WAL is unbroken.
    pub(crate) fn scan(
        &self,
        path: &WalPath,
        from: Lsn,
        until: Option<Lsn>,
        mut take: impl FnMut(&Located) -> Result<ControlFlow<()>>,
    ) -> Result<ScanEnd> {
        let first = from.segment(self.segment_size);
        let until = until.map_or(u64::MAX, |until| until.segment(self.segment_size));
        let Some(unbroken) = self.unbroken_to(path, first) else {
            return Ok(match self.next_stretch(path, first) {
                Some(next) => ScanEnd::Gap {
                    timeline: path.timeline_at(from),
                    first_missing: first,
                    last_missing: next.first - 1,
                    lsn: from,
                },
                None => ScanEnd::Nothing,
            });
        };
        let last = unbroken.min(until);
        let mut number = first;
        let mut end = ScanEnd::Nothing;
        let mut previous: Option<Located> = None;
        while number <= last {
            let batch_last = last.min(number + READ_AHEAD as u64 - 1);
            for located in self.read_batch(path, number, batch_last)? {
                let (timeline, number) = (located.timeline, located.number);
                if let Some(before) = &previous
                    && before.cut.is_none()
                    && !located.index.follows(&before.index)
                {
                    let reason = format!(
                        "segment {} does not follow it",
                        segment_name(timeline, number, self.segment_size)
                    );
                    let lsn = before.index.end;
                    return Ok(ScanEnd::Damaged {
                        timeline,
                        number: before.number,
                        lsn,
                        reason,
                    });
                }
                let lsn = located
                    .cut
                    .map_or(located.index.end, |cut| cut.min(located.index.end));
                if take(&located)?.is_break() {
                    return Ok(ScanEnd::Stopped);
                }
                let broken = match &located.index.verdict {
                    Verdict::Good => None,
                    Verdict::Incomplete { at } => Some((*at, "nothing is written behind it".to_owned())),
                    Verdict::Damaged { at, reason } => Some((*at, reason.to_string())),
                };
                if let Some((at, reason)) = broken
                    && located.cut.is_none_or(|cut| at < cut)
                {
                    let more = number < unbroken || self.next_stretch(path, number + 1).is_some();
                    return Ok(if more {
                        ScanEnd::Damaged {
                            timeline,
                            number,
                            lsn: at,
                            reason,
                        }
                    } else {
                        ScanEnd::End {
                            lsn: at,
                            timeline,
                            number,
                        }
                    });
                }
                end = ScanEnd::End {
                    lsn,
                    timeline,
                    number,
                };
                previous = Some(located);
            }
            number = batch_last + 1;
        }
        if last == unbroken
            && let ScanEnd::End {
                lsn,
                timeline,
                number,
            } = end
        {
            let next = self.next_stretch(path, last + 1);
            if self.cut(path, timeline, number).is_some() {
                // Recovery would go on along the timeline that was left: the newer one's file is missing.
                let newer = path.timeline_at(lsn);
                let last_missing = next.map_or(number, |next| next.first - 1);
                return Ok(ScanEnd::Gap {
                    timeline: newer,
                    first_missing: number,
                    last_missing,
                    lsn,
                });
            }
            if let Some(next) = next {
                let (timeline, first_missing, last_missing) = (next.timeline, last + 1, next.first - 1);
                return Ok(ScanEnd::Gap {
                    timeline,
                    first_missing,
                    last_missing,
                    lsn,
                });
            }
        }
        Ok(end)
    }

    /// Indexes of `first..=last`, read by several threads, in order.
    fn read_batch(&self, path: &WalPath, first: u64, last: u64) -> Result<Vec<Located>> {
        let count = usize::try_from(last - first + 1).unwrap_or(READ_AHEAD);
        if count == 1 {
            return Ok(self.read(path, first)?.into_iter().collect());
        }
        let next = AtomicUsize::new(0);
        let slots: Vec<Mutex<Option<Result<Option<Located>>>>> =
            (0..count).map(|_| Mutex::new(None)).collect();
        std::thread::scope(|scope| {
            for _ in 0..READERS.min(count) {
                scope.spawn(|| {
                    loop {
                        let at = next.fetch_add(1, Ordering::Relaxed);
                        let Some(slot) = slots.get(at) else { break };
                        let read = self.read(path, first + at as u64);
                        *slot.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(read);
                    }
                });
            }
        });
        let mut batch = Vec::with_capacity(count);
        for slot in slots {
            let read = slot
                .into_inner()
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            match read {
                Some(Ok(Some(located))) => batch.push(located),
                Some(Err(error)) => return Err(error),
                // It vanished between listing and reading.
                Some(Ok(None)) | None => {
                    return Err(Error::new(
                        "archive-changed",
                        "the WAL archive changed while it was being read",
                    )
                    .hint("Run the command again."));
                }
            }
        }
        Ok(batch)
    }
}

impl std::fmt::Debug for Archive {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Archive")
            .field("system", &self.system)
            .field("runs", &self.runs)
            .finish_non_exhaustive()
    }
}

fn runs_of(numbers: Vec<u64>) -> Vec<SegmentRun> {
    let mut runs: Vec<SegmentRun> = Vec::new();
    for number in numbers {
        match runs.last_mut() {
            Some(run) if run.last == number => {}
            Some(run) if run.last.checked_add(1) == Some(number) => run.last = number,
            _ => runs.push(SegmentRun {
                first: number,
                last: number,
            }),
        }
    }
    runs
}

fn run_at(runs: &[SegmentRun], number: u64) -> Option<SegmentRun> {
    let at = runs.partition_point(|run| run.last < number);
    runs.get(at).copied().filter(|run| run.first <= number)
}
