//! The WAL archive before and after a drill: a copy that archives is the worst thing a drill can do (field
//! guide 1.6).
//!
//! Invariants: names alone are compared, and they carry digests of content; whatever is not a segment or a
//! label of production's own timeline is somebody else's. The comparison is pure.

use std::collections::{BTreeMap, BTreeSet};

use diagnostic::Result;
use postgres::{SystemIdentifier, TimelineId, WalFile};
use repository::{ClusterRepository, ExpiredWal};

use crate::facts::ArchiveFacts;

/// Names told in the facts.
const NAMED_MAX: usize = 100;

/// The names of everything below a cluster's `wal/`.
pub type Listing = BTreeSet<String>;

/// Lists the archive as the store shows it.
pub fn list(repository: &ClusterRepository) -> Result<Listing> {
    let prefix = format!("clusters/{}/wal/", repository.name());
    let objects = repository.repository().store().list(&prefix)?;
    Ok(objects
        .into_iter()
        .map(|object| {
            object
                .name
                .strip_prefix(&prefix)
                .map(str::to_string)
                .unwrap_or(object.name)
        })
        .collect())
}

/// Compares two listings. `system` and `timeline` are production's own.
pub fn compare(
    before: &Listing,
    after: &Listing,
    system: SystemIdentifier,
    timeline: TimelineId,
) -> ArchiveFacts {
    let mut facts = ArchiveFacts {
        objects_before: before.len() as u64,
        objects_after: after.len() as u64,
        missing: before.difference(after).take(NAMED_MAX).cloned().collect(),
        ..ArchiveFacts::default()
    };
    // Two contents of one segment are never production's doing.
    let mut contents: BTreeMap<&str, u32> = BTreeMap::new();
    for name in after {
        if let Some((segment, _digest)) = name.rsplit_once('.') {
            *contents.entry(segment).or_default() += 1;
        }
    }
    for name in after.difference(before) {
        let twice = name
            .rsplit_once('.')
            .is_some_and(|(segment, _)| contents.get(segment).copied().unwrap_or(0) > 1);
        if of_production(name, system, timeline) && !twice {
            facts.added_by_production += 1;
        } else if facts.unexpected.len() < NAMED_MAX {
            facts.unexpected.push(name.clone());
        }
    }
    facts
}

/// Whether retention has let this go: a segment, or a file beside one.
pub fn was_expired(name: &str, expired: &[ExpiredWal]) -> bool {
    let mut parts = name.split('/');
    let (system, file) = (parts.next(), parts.next_back());
    let (Some(system), Some((file, _digest))) = (system, file.and_then(|file| file.rsplit_once('.'))) else {
        return false;
    };
    expired.iter().any(|range| {
        let file = WalFile::parse(file, range.segment_size);
        system == range.system.to_string()
            && file.is_some_and(|file| {
                file.timeline() == range.timeline
                    && file
                        .number()
                        .is_some_and(|number| (range.first..=range.last).contains(&number))
            })
    })
}

/// A segment, a label, a claim or a roll-up of this system's timeline.
fn of_production(name: &str, system: SystemIdentifier, timeline: TimelineId) -> bool {
    let own = timeline.hex8();
    let mut parts = name.split('/');
    if parts.next() != Some(system.to_string().as_str()) {
        return false;
    }
    let rest: Vec<&str> = parts.collect();
    match rest.as_slice() {
        ["claims" | "rollups", of, ..] => *of == own,
        ["label", file] => file.starts_with(&own),
        ["history" | "partial", ..] => false,
        [of, _log, _segment] => *of == own,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listing(names: &[&str]) -> Listing {
        names.iter().map(|name| (*name).to_string()).collect()
    }

    #[test]
    fn production_s_own_segments_are_told_from_a_copy_s() {
        let before = listing(&["7/00000001/00000000/00000001.aa"]);
        let after = listing(&[
            "7/00000001/00000000/00000001.aa",
            "7/00000001/00000000/00000002.bb",
            "7/label/000000010000000000000002.00000028.backup.cc",
            "7/claims/00000001/00000002",
            "7/00000002/00000000/00000002.dd",
            "7/history/00000002.history.ee",
            "8/00000001/00000000/00000002.ff",
        ]);
        let facts = compare(&before, &after, SystemIdentifier(7), TimelineId(1));
        assert_eq!(facts.added_by_production, 3);
        assert_eq!(facts.unexpected.len(), 3);
        assert!(facts.missing.is_empty());
    }

    #[test]
    fn what_retention_has_let_go_is_told_from_what_vanished() {
        let expired = [ExpiredWal {
            system: SystemIdentifier(7),
            timeline: TimelineId(1),
            first: 1,
            last: 2,
            segment_size: 16 << 20,
        }];
        let name = |system: u64, segment: u32| {
            format!("{system}/00000001/00000000/0000000100000000{segment:08X}.aa")
        };
        assert!(was_expired(&name(7, 2), &expired));
        assert!(was_expired(
            "7/label/000000010000000000000002.00000028.backup.cc",
            &expired
        ));
        assert!(!was_expired(&name(7, 3), &expired));
        assert!(!was_expired(&name(8, 2), &expired));
        assert!(!was_expired("7/history/00000001.history.ee", &expired));
    }

    #[test]
    fn another_content_of_a_segment_and_a_vanished_one_are_noticed() {
        let before = listing(&[
            "7/00000001/00000000/00000001.aa",
            "7/00000001/00000000/00000003.aa",
        ]);
        let after = listing(&[
            "7/00000001/00000000/00000001.aa",
            "7/00000001/00000000/00000001.bb",
        ]);
        let facts = compare(&before, &after, SystemIdentifier(7), TimelineId(1));
        assert_eq!(facts.unexpected, ["7/00000001/00000000/00000001.bb"]);
        assert_eq!(facts.missing, ["7/00000001/00000000/00000003.aa"]);
    }
}
