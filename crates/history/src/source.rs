//! Where archived WAL is read from: the repository's copies, or values in memory.
//!
//! Invariant: several copies are read as recovery itself reads them, as a union. A segment is there when any
//! copy has it; it is absent only when every copy said so.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::sync::Arc;

use diagnostic::{Error, Result};
use postgres::{SegmentIndex, SystemIdentifier, TimelineHistory, TimelineId, WalFile, segment_name};
use repository::{ClusterRepository, WalFileKind, WalSegmentObject};

use crate::timelines::KnownHistory;

/// Archived WAL of one system identifier.
pub trait WalSource: Send + Sync {
    /// Timelines of which anything is archived.
    fn timelines(&self) -> Result<Vec<TimelineId>>;
    /// The numbers of a timeline's segments, ascending, each once.
    fn segments(&self, timeline: TimelineId) -> Result<Vec<u64>>;
    /// What one segment says; `None` if it is in no copy.
    fn index(&self, timeline: TimelineId, number: u64) -> Result<Option<SegmentIndex>>;
    /// Writes the segment's bytes; false if it is in no copy. After an error something may have been written.
    fn read(&self, timeline: TimelineId, number: u64, to: &mut dyn Write) -> Result<bool>;
    /// History files.
    fn histories(&self) -> Result<Vec<KnownHistory>>;
    /// Timelines that a writer has claimed.
    fn claimed(&self) -> Result<BTreeSet<TimelineId>>;
    /// WAL that retention has let go: for each timeline, inclusive ranges of segment numbers.
    fn expired(&self) -> Result<Vec<(TimelineId, u64, u64)>> {
        Ok(Vec::new())
    }
}

/// The segments of one timeline in one copy, 32 bytes for each.
struct Listed {
    copy: usize,
    /// The name of any object up to its log and segment: `clusters/main/wal/<system>/<tli>/`.
    prefix: String,
    segments: Vec<ListedSegment>,
}

#[derive(Clone, Copy)]
struct ListedSegment {
    number: u64,
    digest: [u8; 16],
    stored_bytes: u64,
}

/// The copies of a repository.
pub struct RepositorySource {
    copies: Vec<ClusterRepository>,
    system: SystemIdentifier,
    segment_size: u32,
    timelines: BTreeMap<TimelineId, Vec<Listed>>,
    histories: Vec<KnownHistory>,
    claimed: BTreeSet<TimelineId>,
    expired: Vec<(TimelineId, u64, u64)>,
    unavailable: Vec<(String, Error)>,
}

impl RepositorySource {
    /// Lists what every copy holds. A copy that cannot be read is remembered, and is an error only if no
    /// other can be.
    pub fn load(
        copies: &[ClusterRepository],
        system: SystemIdentifier,
        segment_size: u32,
    ) -> Result<RepositorySource> {
        let mut source = RepositorySource {
            copies: copies.to_vec(),
            system,
            segment_size,
            timelines: BTreeMap::new(),
            histories: Vec::new(),
            claimed: BTreeSet::new(),
            expired: Vec::new(),
            unavailable: Vec::new(),
        };
        for (at, copy) in copies.iter().enumerate() {
            if let Err(error) = source.list(at, copy) {
                source.unavailable.push((copy.repository().store().url(), error));
            }
        }
        match source.unavailable.pop() {
            Some((_, error)) if source.unavailable.len() + 1 == copies.len() => Err(error),
            Some(other) => {
                source.unavailable.push(other);
                Ok(source)
            }
            None => Ok(source),
        }
    }

    /// Copies that could not be read, by their URL.
    pub fn unavailable(&self) -> &[(String, Error)] {
        &self.unavailable
    }

    fn list(&mut self, at: usize, copy: &ClusterRepository) -> Result<()> {
        let mut found = Vec::new();
        for timeline in copy.list_timelines(self.system)? {
            let mut listed = Listed {
                copy: at,
                prefix: String::new(),
                segments: Vec::new(),
            };
            for segment in copy.list_segments(self.system, timeline, self.segment_size)? {
                let segment = segment?;
                listed.add(segment)?;
            }
            let claimed = copy.current_claim(self.system, timeline)?.is_some();
            found.push((timeline, listed, claimed));
        }
        let mut histories = Vec::new();
        for file in copy.list_files(self.system, WalFileKind::History)? {
            let Some(WalFile::History { timeline }) = WalFile::parse(&file.name, self.segment_size) else {
                continue;
            };
            let history = TimelineHistory::parse(timeline, &copy.read_file_object(&file)?)?;
            histories.push(KnownHistory {
                history,
                object: file.object,
            });
        }
        let expired = copy.expired_wal()?;
        let ours = expired.iter().filter(|range| range.system == self.system);
        let expired: Vec<_> = ours
            .map(|range| (range.timeline, range.first, range.last))
            .collect();
        // Only now: a copy counts as a whole or not at all.
        self.expired.extend(expired);
        for (timeline, listed, claimed) in found {
            self.timelines.entry(timeline).or_default().push(listed);
            if claimed {
                self.claimed.insert(timeline);
            }
        }
        self.histories.append(&mut histories);
        Ok(())
    }

    /// Every object of a segment, in the order of the copies. Different contents are never chosen between.
    fn objects(
        &self,
        timeline: TimelineId,
        number: u64,
    ) -> Result<Vec<(&ClusterRepository, WalSegmentObject)>> {
        let mut objects: Vec<(&ClusterRepository, WalSegmentObject)> = Vec::new();
        for listed in self
            .timelines
            .get(&timeline)
            .map(Vec::as_slice)
            .unwrap_or_default()
        {
            let Some(copy) = self.copies.get(listed.copy) else {
                continue;
            };
            let first = listed.segments.partition_point(|segment| segment.number < number);
            let same = listed.segments.get(first..).unwrap_or_default();
            for (at, segment) in same
                .iter()
                .take_while(|segment| segment.number == number)
                .enumerate()
            {
                // Copies have keys of their own: digests can be compared within one copy only.
                if at > 0 {
                    let name = segment_name(timeline, number, self.segment_size);
                    let what = format!("WAL segment {name} is archived with different contents");
                    return Err(Error::new("wal-conflict", what)
                        .detail("Two servers have archived under the same system identifier and timeline.")
                        .hint(
                            "Run `pgproof verify` to see the objects; recover to a point before this \
                         segment.",
                        ));
                }
                objects.push((
                    copy,
                    listed.object(self.system, timeline, segment, self.segment_size),
                ));
            }
        }
        Ok(objects)
    }
}

impl Listed {
    fn add(&mut self, segment: WalSegmentObject) -> Result<()> {
        let bad = || {
            Error::new(
                "object-name",
                format!("object \"{}\" is not named as a WAL segment", segment.object),
            )
        };
        let mut digest = [0; 16];
        if segment.digest.len() != 32 {
            return Err(bad());
        }
        for (at, byte) in digest.iter_mut().enumerate() {
            let pair = segment.digest.get(at * 2..at * 2 + 2).ok_or_else(bad)?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| bad())?;
        }
        if self.prefix.is_empty() {
            // ".../<tli>/<log>/<segment>.<digest>": keep what is the same for all.
            let mut parts = segment.object.rsplitn(3, '/');
            let (_, _, prefix) = (parts.next(), parts.next(), parts.next());
            self.prefix = prefix.ok_or_else(bad)?.to_owned();
        }
        self.segments.push(ListedSegment {
            number: segment.number,
            digest,
            stored_bytes: segment.stored_bytes,
        });
        Ok(())
    }

    fn object(
        &self,
        system: SystemIdentifier,
        timeline: TimelineId,
        segment: &ListedSegment,
        segment_size: u32,
    ) -> WalSegmentObject {
        let digest: String = segment.digest.iter().map(|byte| format!("{byte:02x}")).collect();
        let name = segment_name(timeline, segment.number, segment_size);
        let log = name.get(8..16).unwrap_or_default();
        WalSegmentObject {
            system,
            timeline,
            number: segment.number,
            object: format!("{}/{log}/{name}.{digest}", self.prefix),
            digest,
            stored_bytes: segment.stored_bytes,
        }
    }
}

impl WalSource for RepositorySource {
    fn timelines(&self) -> Result<Vec<TimelineId>> {
        Ok(self.timelines.keys().copied().collect())
    }

    fn segments(&self, timeline: TimelineId) -> Result<Vec<u64>> {
        let listed = self
            .timelines
            .get(&timeline)
            .map(Vec::as_slice)
            .unwrap_or_default();
        let mut numbers: Vec<u64> = listed
            .iter()
            .flat_map(|listed| listed.segments.iter().map(|segment| segment.number))
            .collect();
        numbers.sort_unstable();
        numbers.dedup();
        Ok(numbers)
    }

    fn index(&self, timeline: TimelineId, number: u64) -> Result<Option<SegmentIndex>> {
        // The first error is told only if no copy can answer.
        let mut failed = None;
        for (copy, object) in self.objects(timeline, number)? {
            match copy.read_index(&object) {
                Ok(index) => return Ok(Some(index)),
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        failed.map_or(Ok(None), Err)
    }

    fn read(&self, timeline: TimelineId, number: u64, to: &mut dyn Write) -> Result<bool> {
        // What a copy that fails has written cannot be taken back, so only the first one that has it is read.
        let Some((copy, object)) = self.objects(timeline, number)?.into_iter().next() else {
            return Ok(false);
        };
        copy.read_segment(&object, to).map(|_| true)
    }

    fn histories(&self) -> Result<Vec<KnownHistory>> {
        Ok(self.histories.clone())
    }

    fn claimed(&self) -> Result<BTreeSet<TimelineId>> {
        Ok(self.claimed.clone())
    }

    fn expired(&self) -> Result<Vec<(TimelineId, u64, u64)>> {
        Ok(self.expired.clone())
    }
}

/// One source, and another one for what it does not have.
pub(crate) struct Layered {
    pub(crate) first: Arc<dyn WalSource>,
    pub(crate) second: Arc<dyn WalSource>,
}

impl WalSource for Layered {
    fn timelines(&self) -> Result<Vec<TimelineId>> {
        let mut timelines: BTreeSet<TimelineId> = self.first.timelines()?.into_iter().collect();
        timelines.extend(self.second.timelines()?);
        Ok(timelines.into_iter().collect())
    }

    fn segments(&self, timeline: TimelineId) -> Result<Vec<u64>> {
        let mut segments: BTreeSet<u64> = self.first.segments(timeline)?.into_iter().collect();
        segments.extend(self.second.segments(timeline)?);
        Ok(segments.into_iter().collect())
    }

    fn index(&self, timeline: TimelineId, number: u64) -> Result<Option<SegmentIndex>> {
        match self.first.index(timeline, number)? {
            Some(index) => Ok(Some(index)),
            None => self.second.index(timeline, number),
        }
    }

    fn read(&self, timeline: TimelineId, number: u64, to: &mut dyn Write) -> Result<bool> {
        Ok(self.first.read(timeline, number, to)? || self.second.read(timeline, number, to)?)
    }

    fn histories(&self) -> Result<Vec<KnownHistory>> {
        let mut histories = self.first.histories()?;
        histories.extend(self.second.histories()?);
        Ok(histories)
    }

    fn claimed(&self) -> Result<BTreeSet<TimelineId>> {
        self.first.claimed()
    }

    fn expired(&self) -> Result<Vec<(TimelineId, u64, u64)>> {
        self.first.expired()
    }
}

/// Values in memory: for tests, and for WAL that is not archived yet.
#[derive(Debug, Default)]
pub struct MemorySource {
    /// Indexes by timeline and segment number.
    pub indexes: BTreeMap<(TimelineId, u64), SegmentIndex>,
    /// Bytes by timeline and segment number, where they are at hand.
    pub bytes: BTreeMap<(TimelineId, u64), Vec<u8>>,
    /// History files.
    pub histories: Vec<KnownHistory>,
    /// Claimed timelines.
    pub claimed: BTreeSet<TimelineId>,
    /// WAL that was let go.
    pub expired: Vec<(TimelineId, u64, u64)>,
}

impl WalSource for MemorySource {
    fn timelines(&self) -> Result<Vec<TimelineId>> {
        let timelines: BTreeSet<TimelineId> = self.indexes.keys().map(|(timeline, _)| *timeline).collect();
        Ok(timelines.into_iter().collect())
    }

    fn segments(&self, timeline: TimelineId) -> Result<Vec<u64>> {
        Ok(self
            .indexes
            .keys()
            .filter(|(found, _)| *found == timeline)
            .map(|(_, number)| *number)
            .collect())
    }

    fn index(&self, timeline: TimelineId, number: u64) -> Result<Option<SegmentIndex>> {
        Ok(self.indexes.get(&(timeline, number)).cloned())
    }

    fn read(&self, timeline: TimelineId, number: u64, to: &mut dyn Write) -> Result<bool> {
        let Some(bytes) = self.bytes.get(&(timeline, number)) else {
            return Ok(false);
        };
        to.write_all(bytes)
            .map(|()| true)
            .map_err(|error| Error::io("segment-write", "cannot pass a segment on", &error))
    }

    fn histories(&self) -> Result<Vec<KnownHistory>> {
        Ok(self.histories.clone())
    }

    fn claimed(&self) -> Result<BTreeSet<TimelineId>> {
        Ok(self.claimed.clone())
    }

    fn expired(&self) -> Result<Vec<(TimelineId, u64, u64)>> {
        Ok(self.expired.clone())
    }
}
