//! A clone of the artifacts, and what is done to it.
//!
//! Invariant: the repository itself is never written to: what is damaged, removed and added lies in an overlay, which is
//! gone with its folder.

use std::path::Path;
use std::sync::Arc;

use diagnostic::{Error, Result};
use postgres::{Lsn, SystemIdentifier, TimelineId, WalFile, segment_name};
use repository::{
    Backup, ClusterRepository, OverlayStore, PackKind, RecipientKey, Repository, Store, WalFileKind,
    WalSegmentObject,
};

use crate::facts::Facts;

/// The timeline of files that nobody has written.
const FOREIGN_TIMELINE: u32 = 0x7FFF_FFF0;

/// One clone, for one fault.
pub(super) struct ArtifactClone {
    pub store: Arc<OverlayStore>,
    pub repository: ClusterRepository,
    pub system: SystemIdentifier,
    pub timeline: TimelineId,
    pub segment_size: u32,
    /// The backup that the untouched drill restored.
    backup: Backup,
    /// Segments that recovery asked for.
    segments: (u64, u64),
}

impl ArtifactClone {
    /// A clone over the repository, whose changes lie in a folder.
    pub fn new(of: &ClusterRepository, untouched: &Facts, folder: &Path) -> Result<ArtifactClone> {
        let store = Arc::new(OverlayStore::new(Arc::clone(of.store()), folder)?);
        let repository = of
            .repository()
            .over(Arc::clone(&store) as Arc<dyn Store>)
            .cluster(of.name())?;
        let unknown = || Error::new("selftest", "the untouched drill recorded no input");
        let input = untouched.input.as_ref().ok_or_else(unknown)?;
        let backup = repository.backup(input.backup.parse()?)?;
        let size = backup.geometry.wal_segment_size;
        let number = |name: &Option<String>| {
            let name = name.as_deref()?;
            WalFile::parse(name, size)?.number()
        };
        let last = number(&input.last_wal_segment).unwrap_or_else(|| backup.stop_lsn.segment(size));
        let first = number(&input.first_wal_segment).unwrap_or(last);
        Ok(ArtifactClone {
            system: backup.system_identifier,
            timeline: TimelineId(input.timeline),
            segment_size: size,
            segments: (first.min(last), last),
            store,
            repository,
            backup,
        })
    }

    /// The object of a segment of the drilled timeline.
    pub fn segment(&self, number: u64) -> Result<Option<WalSegmentObject>> {
        self.repository
            .get_segment(self.system, self.timeline, number, self.segment_size)
    }

    /// One that recovery needs, in the middle of all.
    fn needed_segment(&self) -> Result<(u64, WalSegmentObject)> {
        let (first, last) = self.segments;
        let number = first + (last - first).div_ceil(2);
        let object = self.segment(number)?;
        object.map(|object| (number, object)).ok_or_else(|| {
            Error::new(
                "fault-not-planted",
                "no segment of the drilled timeline was asked for by recovery",
            )
        })
    }

    fn name(&self, number: u64) -> String {
        segment_name(self.timeline, number, self.segment_size)
    }

    pub fn lose_segment(&self) -> Result<String> {
        let (number, object) = self.needed_segment()?;
        self.store.hide(&object.object)?;
        Ok(format!("segment {} is gone", self.name(number)))
    }

    pub fn damage_segment(&self) -> Result<String> {
        let (number, object) = self.needed_segment()?;
        let at = object.stored_bytes / 2;
        self.store.flip(&object.object, at)?;
        Ok(format!("segment {}, byte {at} of its object", self.name(number)))
    }

    pub fn cut_segment(&self) -> Result<String> {
        let (number, object) = self.needed_segment()?;
        let size = object.stored_bytes / 2;
        self.store.cut(&object.object, size)?;
        Ok(format!(
            "segment {}, {size} of {} bytes of its object are left",
            self.name(number),
            object.stored_bytes
        ))
    }

    /// A byte of a pack of pages.
    pub fn damage_pages(&self) -> Result<String> {
        self.damage_pack(PackKind::Rows)
    }

    /// A byte of what says where the pages are.
    pub fn damage_map(&self) -> Result<String> {
        self.damage_pack(PackKind::Map)
    }

    /// A byte of a pack all of which the backup needs.
    fn damage_pack(&self, kind: PackKind) -> Result<String> {
        let packs = self.repository.pack_table(&self.backup)?;
        let needed = packs
            .iter()
            .filter(|pack| pack.kind == kind && pack.live == pack.items && pack.items > 0)
            .max_by_key(|pack| pack.size);
        let pack = needed.ok_or_else(|| {
            Error::new(
                "fault-not-planted",
                "the backup shares every pack with others, so that any byte may be one that it does not need",
            )
            .hint("A full backup has packs of its own.")
        })?;
        let object = self.repository.pack_object(pack);
        // What was packed comes first, the table of it last.
        let at = pack.size / 3;
        self.store.flip(&object, at)?;
        Ok(format!("byte {at} of {object}"))
    }

    pub fn damage_record(&self) -> Result<String> {
        let object = self.repository.record_object(self.backup.backup);
        let size = self.store.size(&object)?.unwrap_or_default();
        self.store.flip(&object, size / 2)?;
        Ok(format!("byte {} of {object}", size / 2))
    }

    /// A history file of a timeline that leaves ours before what is archived, as a copy that was promoted leaves it.
    pub fn poison_histories(&self) -> Result<String> {
        let timeline = TimelineId(self.timeline.0 + 1);
        let fork: Lsn = self.backup.redo_lsn;
        let text = format!("{}\t{fork}\tno recovery target specified\n", self.timeline.0);
        let name = format!("{}.history", timeline.hex8());
        self.repository
            .put_file(self.system, WalFileKind::History, &name, text.as_bytes())?;
        Ok(format!(
            "{name}, which leaves timeline {} at {fork}",
            self.timeline
        ))
    }

    /// What a copy does that is allowed to archive.
    pub fn write_to_archive(&self) -> Result<String> {
        let name = format!("{}.history", TimelineId(FOREIGN_TIMELINE).hex8());
        let text = format!(
            "{}\t{}\tno recovery target specified\n",
            self.timeline.0, self.backup.stop_lsn
        );
        self.repository
            .put_file(self.system, WalFileKind::History, &name, text.as_bytes())?;
        Ok(format!("{name} was archived while the copy ran"))
    }

    /// Archiving stands still from the segment of this place on.
    pub fn lose_newest(&self, from: Lsn) -> Result<String> {
        let newest = self
            .repository
            .newest_segment(self.system, self.timeline, self.segment_size)?;
        let first = from.segment(self.segment_size);
        let newest = newest.map_or(first, |object| object.number);
        for number in first..=newest {
            if let Some(object) = self.segment(number)? {
                self.store.hide(&object.object)?;
            }
        }
        Ok(format!("nothing is archived from {} on", self.name(first)))
    }

    /// Tries to open the clone with a key that nobody has sealed it for. The error that it gives, or `None` if it opened.
    pub fn open_with_another_key(&self) -> Result<Option<Error>> {
        let store = Arc::clone(&self.store) as Arc<dyn Store>;
        Ok(Repository::open(store, &RecipientKey::generate()?).err())
    }
}
