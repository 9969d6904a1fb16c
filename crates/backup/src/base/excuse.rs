//! Which pages with a bad checksum are excused: hard rule 4.
//!
//! A page that was being written while it was read is brought right by recovery, if the WAL of the backup carries an
//! image of it or makes it anew, or drops or cuts its relation. Everything else is damage on the server's disk.
//! Invariants: the page's LSN must lie between the backup's start and its stop; where the WAL cannot be looked at,
//! nothing is excused, and the finding says that it could not be looked at.

use std::path::Path;

use diagnostic::{Error, Result};
use postgres::{Excuse, Lsn, SegmentHeader, TimelineId, WindowOfWal, segment_name};
use repository::{ClusterRepository, ExcusedPage, WalSegmentObject};

use super::Finding;
use super::worker::BadPage;

/// Findings that name pages stop here; the last one says how many more there are.
const FINDINGS_MAX: usize = 100;

/// The pages that stayed bad, told apart. Each with its reason.
#[derive(Debug, Default)]
pub(super) struct Judged {
    pub(super) excused: Vec<(BadPage, String)>,
    pub(super) damaged: Vec<(BadPage, String)>,
    pub(super) findings: Vec<Finding>,
}

impl Judged {
    /// As the record keeps them: excused pages, and damaged ones.
    pub(super) fn for_the_record(&self) -> (Vec<ExcusedPage>, Vec<ExcusedPage>) {
        let page = |(page, reason): &(BadPage, String)| ExcusedPage {
            path: page.path.clone(),
            block: page.block,
            page_lsn: page.lsn,
            reason: reason.clone(),
        };
        (
            self.excused.iter().map(page).collect(),
            self.damaged.iter().map(page).collect(),
        )
    }
}

/// The WAL of a backup.
pub(super) struct BackupWal<'a> {
    pub(super) repository: &'a ClusterRepository,
    /// The server's `pg_wal`: what is still there need not be fetched, nor decrypted.
    /// `None`: it is not at hand.
    pub(super) pg_wal: Option<&'a Path>,
    pub(super) segments: &'a [WalSegmentObject],
    pub(super) wal_segment_size: u32,
    pub(super) timeline: TimelineId,
    pub(super) start: Lsn,
    pub(super) stop: Lsn,
}

/// Judges the pages that stayed bad. `count` is how many there were; `pages` may hold fewer of them.
pub(super) fn judge(wal: &BackupWal<'_>, pages: Vec<BadPage>, count: u64) -> Judged {
    let mut judged = Judged::default();
    if pages.is_empty() {
        return judged;
    }
    let unnamed = count.saturating_sub(pages.len() as u64);
    let inside = |page: &BadPage| wal.start <= page.lsn && page.lsn <= wal.stop;
    let window = if pages.iter().any(inside) {
        read_window(wal)
    } else {
        Ok(WindowOfWal::new(wal.start, wal.stop))
    };
    for page in pages {
        if !inside(&page) {
            let reason = format!(
                "its LSN {} is not in the backup's WAL, {} to {}",
                page.lsn, wal.start, wal.stop
            );
            judged.damaged(page, reason);
            continue;
        }
        match &window {
            Err(error) => judged.could_not_look(page, error),
            Ok(window) => {
                match window.excuse(&page.relation.locator, page.relation.fork, page.relation_block) {
                    Some(excuse) => judged.excused.push((page, reason(excuse).into())),
                    None => {
                        judged.damaged(page, "the backup's WAL carries no image of it".into());
                    }
                }
            }
        }
    }
    let untold = unnamed + (judged.damaged.len().saturating_sub(FINDINGS_MAX)) as u64;
    if untold > 0 {
        judged.findings.push(Finding {
            code: "page-damaged",
            message: format!("{untold} more pages have a bad checksum"),
            detail: "They are in the backup as they were read.".into(),
            hint: "Look at the server's disk and its kernel log first.".into(),
        });
    }
    judged
}

impl Judged {
    fn damaged(&mut self, page: BadPage, reason: String) {
        let finding = Finding {
            code: "page-damaged",
            message: format!("page {} of file \"{}\" is damaged", page.block, page.path),
            detail: format!(
                "{}; {reason}. The backup holds the page as it was read, and is recorded.",
                capitalised(&page.problem)
            ),
            hint:
                "Look at the server's disk and its kernel log. An earlier backup may hold the page intact: \
                   pin it before it expires (`pgproof pin`)."
                    .into(),
        };
        self.push(page, reason, finding);
    }

    fn could_not_look(&mut self, page: BadPage, error: &Error) {
        let reason = format!("the backup's WAL could not be looked at: {}", error.message());
        let finding = Finding {
            code: "page-could-not-look",
            message: format!("page {} of file \"{}\" may be damaged", page.block, page.path),
            detail: format!(
                "{}; whether the backup's WAL brings it right could not be looked at: {}.",
                capitalised(&page.problem),
                error.message()
            ),
            hint: "Run the backup again.".into(),
        };
        self.push(page, reason, finding);
    }

    fn push(&mut self, page: BadPage, reason: String, finding: Finding) {
        self.damaged.push((page, reason));
        if self.findings.len() < FINDINGS_MAX {
            self.findings.push(finding);
        }
    }
}

fn capitalised(text: &str) -> String {
    let mut characters = text.chars();
    characters
        .next()
        .map(|first| first.to_uppercase().chain(characters).collect())
        .unwrap_or_default()
}

fn reason(excuse: Excuse) -> &'static str {
    match excuse {
        Excuse::Image => "the backup's WAL carries an image of the page",
        Excuse::WillInit => "the backup's WAL makes the page anew",
        Excuse::RelationDropped => "the relation was dropped during the backup",
        Excuse::RelationTruncated => "the relation was truncated during the backup",
        Excuse::DatabaseDropped => "the database was dropped during the backup",
    }
}

/// Reads all WAL of the backup. An error when any of it cannot be read or is not valid.
fn read_window(wal: &BackupWal<'_>) -> Result<WindowOfWal> {
    let mut window = WindowOfWal::new(wal.start, wal.stop);
    for segment in wal.segments {
        let name = segment_name(segment.timeline, segment.number, wal.wal_segment_size);
        let bytes = match still_there(wal, segment, &name) {
            Some(bytes) => bytes,
            None => {
                let mut bytes = Vec::with_capacity(wal.wal_segment_size as usize);
                wal.repository.read_segment(segment, &mut bytes)?;
                bytes
            }
        };
        if let Err(end) = window.add_segment(&bytes, wal.timeline)? {
            return Err(Error::new(
                "wal-segment-damaged",
                format!("WAL segment {name} is damaged: {end}"),
            ));
        }
    }
    if window.is_complete() {
        return Ok(window);
    }
    Err(Error::new(
        "wal-segment-damaged",
        format!("the backup's WAL ends before {}", wal.stop),
    ))
}

/// The segment from `pg_wal`, if it has not been removed or used again. Its digest must be the archived one's.
fn still_there(wal: &BackupWal<'_>, segment: &WalSegmentObject, name: &str) -> Option<Vec<u8>> {
    let bytes = std::fs::read(wal.pg_wal?.join(name)).ok()?;
    let header = SegmentHeader::parse(&bytes).ok()?;
    (header.number() == segment.number && wal.repository.identity().object_digest(&bytes) == segment.digest)
        .then_some(bytes)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use cluster::Session;
    use postgres::RelationFile;
    use repository::{RecipientKey, RelativePath, Repository, create_store};
    use testing::{Scratch, TestCluster, TestOptions};

    use super::*;
    use crate::{Copy, PushOptions};

    const SEGMENT: u32 = 1 << 20;

    fn lsn(session: &mut Session, expression: &str) -> Lsn {
        let row = session.one(&format!("select {expression}")).unwrap();
        row[0].as_deref().unwrap().parse().unwrap()
    }

    fn relation(session: &mut Session, name: &str) -> (RelativePath, RelationFile) {
        let row = session
            .one(&format!("select pg_catalog.pg_relation_filepath('{name}')"))
            .unwrap();
        let path = row[0].clone().unwrap();
        (
            RelativePath::new(path.clone()).unwrap(),
            RelationFile::parse(path.as_bytes()).unwrap(),
        )
    }

    fn page((path, relation): &(RelativePath, RelationFile), block: u32, lsn: Lsn) -> BadPage {
        BadPage {
            path: path.clone(),
            relation: *relation,
            block,
            relation_block: block,
            lsn,
            problem: "checksum 0x0001 is stored, 0x0002 would be right".into(),
        }
    }

    #[test]
    fn only_a_page_that_the_backups_wal_brings_right_is_excused() {
        let options = TestOptions {
            checksums: true,
            wal_segment_size: Some(SEGMENT),
            settings: vec![
                ("autovacuum".into(), "off".into()),
                ("wal_keep_size".into(), "64MB".into()),
            ],
            ..TestOptions::default()
        };
        let Some(cluster) = TestCluster::start_or_skip("excuse", &options) else {
            return;
        };
        let mut session = cluster.session().unwrap();
        for statement in [
            "create table t (id int, filler text)",
            "insert into t select g, repeat('x', 1000) from generate_series(1, 70) g",
            "create table dropped as select * from t",
            // Before the backup: an image that it does not replay excuses nothing.
            "checkpoint",
            "update t set id = -id where ctid = '(3,1)'",
            "checkpoint",
        ] {
            session.execute(statement).unwrap();
        }
        let table = relation(&mut session, "t");
        let dropped = relation(&mut session, "dropped");
        let start = lsn(&mut session, "redo_lsn from pg_catalog.pg_control_checkpoint()");
        let touched = session
            .one("update t set id = -id where ctid = '(1,1)' returning ctid")
            .unwrap();
        let touched: u32 = touched[0].as_deref().unwrap()[1..]
            .split(',')
            .next()
            .unwrap()
            .parse()
            .unwrap();
        session.execute("drop table dropped").unwrap();
        let stop = lsn(&mut session, "pg_catalog.pg_current_wal_flush_lsn()");
        session.execute("select pg_catalog.pg_switch_wal()").unwrap();

        let scratch = Scratch::new("excuse").unwrap();
        let store = create_store(&format!("file://{}", scratch.path().join("r").display())).unwrap();
        let key = RecipientKey::generate().unwrap();
        let repository = Repository::create(store, &key, jiff::Timestamp::now())
            .unwrap()
            .cluster("main")
            .unwrap();
        let system = cluster::read_control_file(cluster.data_directory())
            .unwrap()
            .1
            .system_identifier;
        let mut segments = Vec::new();
        for number in start.segment(SEGMENT)..=stop.segment(SEGMENT) {
            let push = PushOptions {
                path: PathBuf::from("pg_wal").join(segment_name(TimelineId(1), number, SEGMENT)),
                data_directory: cluster.data_directory().to_path_buf(),
                host_id: "test".into(),
                acknowledge: 1,
            };
            crate::push(
                &[Copy {
                    name: "local",
                    repository: &repository,
                }],
                &push,
                jiff::Timestamp::now(),
            )
            .unwrap();
            segments.extend(
                repository
                    .get_segment(system, TimelineId(1), number, SEGMENT)
                    .unwrap(),
            );
        }
        let inside = start.saturating_add(8);
        let pages = || {
            vec![
                page(&table, 1, inside),
                page(&table, touched, inside),
                page(&dropped, 2, inside),
                page(&table, 3, inside),
                page(&table, 1, Lsn(start.0 - 1)),
                page(&table, 1, stop.saturating_add(1)),
            ]
        };
        let in_place = cluster.data_directory().join("pg_wal");
        for pg_wal in [Some(in_place.as_path()), Some(Path::new("/nowhere")), None] {
            let wal = BackupWal {
                repository: &repository,
                pg_wal,
                segments: &segments,
                wal_segment_size: SEGMENT,
                timeline: TimelineId(1),
                start,
                stop,
            };
            let judged = judge(&wal, pages(), 6);
            let excused: Vec<_> = judged
                .excused
                .iter()
                .map(|(page, _)| (page.path.clone(), page.block))
                .collect();
            assert_eq!(
                excused,
                [
                    (table.0.clone(), 1),
                    (table.0.clone(), touched),
                    (dropped.0.clone(), 2)
                ]
            );
            let damaged: Vec<_> = judged.damaged.iter().map(|(page, _)| page.block).collect();
            assert_eq!(damaged, [3, 1, 1]);
            assert!(
                judged
                    .findings
                    .iter()
                    .all(|finding| finding.code == "page-damaged"),
                "{:?}",
                judged.findings
            );
            assert_eq!(judged.for_the_record().0.len(), 3);
        }
        // WAL that is not there excuses nothing, and is not called damage either.
        let wal = BackupWal {
            repository: &repository,
            pg_wal: None,
            segments: segments.get(..segments.len() - 1).unwrap(),
            wal_segment_size: SEGMENT,
            timeline: TimelineId(1),
            start,
            stop,
        };
        let judged = judge(&wal, pages(), 6);
        assert!(judged.excused.is_empty());
        assert_eq!(
            judged
                .findings
                .iter()
                .filter(|finding| finding.code == "page-could-not-look")
                .count(),
            4
        );
    }
}
