//! Recovery from one backup, followed through the archive without doing it: where each target lies, and what
//! recovery meets on the way.
//!
//! Invariants: records are looked at in WAL order from the redo point on, as recovery does, and no target is
//! resolved by anything but a record; what is reported of the way (settings, tablespaces, resource managers)
//! covers every record up to the last stop; a target is refused rather than guessed when a part of the way
//! could not be read.

use std::ops::ControlFlow;

use diagnostic::Result;
use postgres::{EventKind, Lsn, Oid, TimelineId, Timestamp, TransactionEnd, Xid};
use serde::{Deserialize, Serialize};

use crate::archive::{Archive, Located, ScanEnd};
use crate::point::{CommitPoint, committed};
use crate::target::{ResolvedTarget, Target, Unreachable, Wanted};
use crate::timelines::WalPath;

/// Where recovery starts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Start {
    /// The backup's redo point.
    pub redo: Lsn,
    /// The backup's stop: before it no recovery may end.
    pub stop: Lsn,
    /// When the backup ended.
    pub ended_at: Timestamp,
    /// The way through timelines.
    pub path: WalPath,
}

/// The settings that recovery compares with the primary's: the largest value of each that the WAL announces.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Maxima {
    pub max_connections: u32,
    pub max_worker_processes: u32,
    pub max_wal_senders: u32,
    pub max_prepared_transactions: u32,
    pub max_locks_per_transaction: u32,
}

impl Maxima {
    /// The larger one of each.
    pub fn max(self, other: Maxima) -> Maxima {
        Maxima {
            max_connections: self.max_connections.max(other.max_connections),
            max_worker_processes: self.max_worker_processes.max(other.max_worker_processes),
            max_wal_senders: self.max_wal_senders.max(other.max_wal_senders),
            max_prepared_transactions: self
                .max_prepared_transactions
                .max(other.max_prepared_transactions),
            max_locks_per_transaction: self
                .max_locks_per_transaction
                .max(other.max_locks_per_transaction),
        }
    }

    /// As settings.
    pub fn settings(&self) -> Vec<(String, String)> {
        [
            ("max_connections", self.max_connections),
            ("max_worker_processes", self.max_worker_processes),
            ("max_wal_senders", self.max_wal_senders),
            ("max_prepared_transactions", self.max_prepared_transactions),
            ("max_locks_per_transaction", self.max_locks_per_transaction),
        ]
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value.to_string()))
        .collect()
    }
}

/// A tablespace that replay creates, at an absolute path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TablespaceCreated {
    pub oid: Oid,
    /// As bytes that may not be UTF-8, shown as well as they can be.
    pub location: String,
    pub at: Lsn,
}

/// Segments that recovery reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WalRange {
    pub timeline: TimelineId,
    pub first: u64,
    pub last: u64,
}

/// How far the way was followed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceEnd {
    /// Up to here.
    pub lsn: Lsn,
    /// The newest commit seen.
    pub last_commit: Option<CommitPoint>,
    /// The latest time of any commit or abort seen.
    pub latest_time: Option<Timestamp>,
}

/// What recovery from one backup meets.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Trace {
    /// For each target that was asked for, in the same order.
    pub targets: Vec<Resolution>,
    /// What PARAMETER_CHANGE records announce.
    pub maxima: Maxima,
    /// Tablespaces that replay creates.
    pub tablespaces: Vec<TablespaceCreated>,
    /// Custom resource managers (128 and above) whose records are replayed.
    pub custom_resource_managers: Vec<u8>,
    /// Segments that recovery reads.
    pub wal: Vec<WalRange>,
    /// Records that span two segments and could not be put together: each may be a commit that is not
    /// counted.
    pub unread: Vec<Lsn>,
    /// How far the way was followed.
    pub end: TraceEnd,
    /// Somewhere behind the backup's redo point segments are missing and others follow: recovery must not read
    /// ahead of its target, for it would ask for them.
    #[serde(default)]
    pub hole_behind: bool,
}

/// A target's place, or why it has none.
pub type Resolution = Result<ResolvedTarget, Unreachable>;

impl Trace {
    /// How many segments.
    pub fn segments(&self) -> u64 {
        self.wal.iter().map(|range| range.last - range.first + 1).sum()
    }
}

/// One target's search.
struct Search<'a> {
    wanted: &'a Wanted,
    found: Option<Resolution>,
    /// Newest commit before an LSN target, until a record behind it proves that recovery stops there.
    before: Option<CommitPoint>,
    /// Commits behind the backup's end that are replayed before the search's stop.
    commits: u64,
}

/// Everything the search carries from record to record.
struct Walk<'a> {
    start: &'a Start,
    searches: Vec<Search<'a>>,
    maxima: Maxima,
    tablespaces: Vec<TablespaceCreated>,
    custom: Vec<u8>,
    wal: Vec<WalRange>,
    unread: Vec<Lsn>,
    restore_points: Vec<(String, Lsn)>,
    last_commit: Option<CommitPoint>,
    latest_time: Option<Timestamp>,
}

/// Restore points told in a refusal, at most.
const RESTORE_POINTS_TOLD: usize = 10;

impl Archive {
    /// Follows recovery from a backup to several targets at once. `limit`: do not look behind this LSN (it
    /// was searched before). Errors are those of reading; what cannot be reached is part of the answer.
    pub fn trace(&self, start: &Start, wanted: &[Wanted], limit: Option<Lsn>) -> Result<Trace> {
        let mut walk = Walk {
            start,
            searches: wanted
                .iter()
                .map(|wanted| Search {
                    wanted,
                    found: None,
                    before: None,
                    commits: 0,
                })
                .collect(),
            maxima: Maxima::default(),
            tablespaces: Vec::new(),
            custom: Vec::new(),
            wal: Vec::new(),
            unread: Vec::new(),
            restore_points: Vec::new(),
            last_commit: None,
            latest_time: None,
        };
        for search in &mut walk.searches {
            search.refuse_early(start);
        }
        let mut end = ScanEnd::Nothing;
        if !walk.done() {
            end = self.scan(
                &start.path,
                start.redo,
                limit,
                |located| Ok(walk.segment(located)),
            )?;
        }
        let reached = match &end {
            ScanEnd::End { lsn, .. } | ScanEnd::Gap { lsn, .. } | ScanEnd::Damaged { lsn, .. } => *lsn,
            ScanEnd::Nothing | ScanEnd::Stopped => walk
                .wal
                .last()
                .map_or(start.redo, |range| self.segment_end(range.last)),
        };
        let trace_end = TraceEnd {
            lsn: reached,
            last_commit: walk.last_commit.clone(),
            latest_time: walk.latest_time,
        };
        let counts: Vec<u64> = walk.searches.iter().map(|search| search.commits).collect();
        let mut targets = walk.conclude(self, &end, reached);
        for (target, commits) in targets.iter_mut().zip(counts) {
            if let Ok(found) = target {
                found.commits_after_backup = commits;
            }
        }
        Ok(Trace {
            targets,
            maxima: walk.maxima,
            tablespaces: walk.tablespaces,
            custom_resource_managers: walk.custom,
            wal: walk.wal,
            unread: walk.unread,
            end: trace_end,
            hole_behind: !self.gaps_on(&start.path, start.redo).is_empty(),
        })
    }

    fn segment_end(&self, number: u64) -> Lsn {
        Lsn(number
            .saturating_add(1)
            .saturating_mul(u64::from(self.segment_size())))
    }
}

impl Search<'_> {
    /// What needs no look at the WAL.
    fn refuse_early(&mut self, start: &Start) {
        let before = |at: Option<Lsn>| {
            Some(Err(Unreachable::BeforeBackupEnd {
                backup_end: start.stop,
                ended_at: start.ended_at,
                at,
            }))
        };
        match self.wanted.target {
            Target::Time(time) if time <= start.ended_at => self.found = before(None),
            Target::Lsn(lsn) if lsn < start.stop => self.found = before(Some(lsn)),
            _ => {}
        }
    }

    fn resolve(
        &mut self,
        start: &Start,
        settings: Vec<(String, String)>,
        stop: Lsn,
        stops_at: Option<CommitPoint>,
        last_commit: Option<CommitPoint>,
    ) {
        let inclusive = self.wanted.inclusive();
        self.found = Some(if stop < start.stop {
            Err(Unreachable::BeforeBackupEnd {
                backup_end: start.stop,
                ended_at: start.ended_at,
                at: Some(stop),
            })
        } else {
            Ok(ResolvedTarget {
                target: self.wanted.target.clone(),
                inclusive,
                settings,
                stop,
                timeline: start.path.timeline_at(stop),
                stops_at,
                last_commit,
                commits_after_backup: 0,
            })
        });
    }

    /// A record begins here, and whatever came before it has been seen.
    fn record_at(&mut self, start: &Start, lsn: Lsn, last_commit: &Option<CommitPoint>) {
        let Target::Lsn(target) = self.wanted.target else {
            return;
        };
        if self.found.is_some() || lsn < target {
            return;
        }
        let newest = self.before.take().or_else(|| last_commit.clone());
        self.resolve(
            start,
            lsn_settings(target, self.wanted.inclusive()),
            target,
            None,
            newest,
        );
    }
}

fn lsn_settings(lsn: Lsn, inclusive: bool) -> Vec<(String, String)> {
    vec![setting("recovery_target_lsn", lsn), inclusive_setting(inclusive)]
}

fn setting(name: &str, value: impl ToString) -> (String, String) {
    (name.to_owned(), value.to_string())
}

fn inclusive_setting(inclusive: bool) -> (String, String) {
    setting("recovery_target_inclusive", if inclusive { "on" } else { "off" })
}

impl Walk<'_> {
    fn done(&self) -> bool {
        // "latest" is never found before the end.
        !self.searches.is_empty() && self.searches.iter().all(|search| search.found.is_some())
    }

    fn segment(&mut self, located: &Located) -> ControlFlow<()> {
        let start = self.start;
        match self.wal.last_mut() {
            Some(range) if range.timeline == located.timeline && range.last + 1 == located.number => {
                range.last = located.number;
            }
            _ => self.wal.push(WalRange {
                timeline: located.timeline,
                first: located.number,
                last: located.number,
            }),
        }
        let index = &located.index;
        let wanted = |lsn: Lsn| lsn >= start.redo && located.cut.is_none_or(|cut| lsn < cut);
        if let Some(lsn) = crate::seam::unresolved(index).filter(|lsn| wanted(*lsn)) {
            self.unread.push(lsn);
        }
        if let Some(first) = index.first_record.filter(|lsn| wanted(*lsn)) {
            for search in &mut self.searches {
                search.record_at(start, first, &self.last_commit);
            }
        }
        let mut events = index.events.iter().filter(|event| wanted(event.lsn)).peekable();
        for transaction in index
            .transactions
            .iter()
            .filter(|transaction| wanted(transaction.start))
        {
            while let Some(event) = events.next_if(|event| event.lsn < transaction.start) {
                self.replayed(event)?;
            }
            self.transaction(transaction);
            if self.done() {
                return ControlFlow::Break(());
            }
        }
        for event in events {
            self.replayed(event)?;
        }
        if let Some(last) = index.last_record.filter(|lsn| wanted(*lsn)) {
            for search in &mut self.searches {
                search.record_at(start, last, &self.last_commit);
            }
        }
        self.consistency(index.end);
        if self.done() {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    }

    /// An event counts unless recovery stops before its record.
    fn replayed(&mut self, event: &postgres::Event) -> ControlFlow<()> {
        if self.done() {
            return ControlFlow::Break(());
        }
        for search in &mut self.searches {
            search.record_at(self.start, event.lsn, &self.last_commit);
        }
        let one_more =
            |search: &Search<'_>| matches!(search.wanted.target, Target::Lsn(_)) && search.wanted.inclusive();
        if self.done() && !self.searches.iter().any(one_more) {
            return ControlFlow::Break(());
        }
        self.event(event);
        ControlFlow::Continue(())
    }

    /// The backup's end is reached somewhere before `end`.
    fn consistency(&mut self, end: Lsn) {
        if end < self.start.stop {
            return;
        }
        for search in &mut self.searches {
            if search.found.is_none() && search.wanted.target == Target::Immediate {
                let newest = self
                    .last_commit
                    .clone()
                    .filter(|commit| commit.lsn < self.start.stop);
                let settings = vec![setting("recovery_target", "immediate")];
                search.resolve(self.start, settings, self.start.stop, None, newest);
            }
        }
    }

    fn transaction(&mut self, transaction: &TransactionEnd) {
        let start = self.start;
        let point = CommitPoint::of(transaction);
        self.latest_time = self.latest_time.max(Some(transaction.time));
        for search in &mut self.searches {
            if search.found.is_some() {
                continue;
            }
            let inclusive = search.wanted.inclusive();
            match &search.wanted.target {
                Target::Time(time) => {
                    let beyond = if inclusive {
                        transaction.time > *time
                    } else {
                        transaction.time >= *time
                    };
                    if beyond {
                        let settings = vec![
                            setting("recovery_target_time", time),
                            inclusive_setting(inclusive),
                        ];
                        let newest = self.last_commit.clone();
                        search.resolve(start, settings, point.lsn, Some(point.clone()), newest);
                    }
                }
                Target::Xid(xid) if ends(transaction, *xid) => {
                    // A subtransaction has no end of its own: its top transaction's is meant.
                    let settings = vec![
                        setting("recovery_target_xid", transaction.xid),
                        inclusive_setting(inclusive),
                    ];
                    let newest = if inclusive && point.committed {
                        Some(point.clone())
                    } else {
                        self.last_commit.clone()
                    };
                    let stop = if inclusive { point.end } else { point.lsn };
                    search.resolve(start, settings, stop, Some(point.clone()), newest);
                    if point.lsn < start.stop {
                        // The record is replayed, or refused, before the backup's end.
                        search.found = Some(Err(Unreachable::BeforeBackupEnd {
                            backup_end: start.stop,
                            ended_at: start.ended_at,
                            at: Some(point.lsn),
                        }));
                    }
                }
                Target::BeforeXid(xid) if ends(transaction, *xid) => {
                    let newest = self.last_commit.clone();
                    search.resolve(
                        start,
                        lsn_settings(point.lsn, false),
                        point.lsn,
                        Some(point.clone()),
                        newest,
                    );
                }
                // Not there yet; an abort changes nothing that is told.
                Target::Lsn(target) if point.lsn < *target && !point.committed => {}
                Target::Lsn(target) if point.lsn < *target => search.before = Some(point.clone()),
                Target::Lsn(target) if inclusive && point.lsn == *target && point.committed => {
                    search.before = Some(point.clone());
                    search.record_at(start, point.lsn, &None);
                }
                Target::Lsn(_) => search.record_at(start, point.lsn, &self.last_commit),
                _ => {}
            }
        }
        if committed(transaction) {
            for search in self.searches.iter_mut().filter(|_| point.lsn >= start.stop) {
                let replayed = match &search.found {
                    None => true,
                    // This very commit was the stop, and is still replayed.
                    Some(Ok(found)) => found
                        .last_commit
                        .as_ref()
                        .is_some_and(|last| last.lsn == point.lsn),
                    Some(Err(_)) => false,
                };
                search.commits += u64::from(replayed);
            }
            self.last_commit = Some(point);
        }
    }

    fn event(&mut self, event: &postgres::Event) {
        let start = self.start;
        for search in &mut self.searches {
            search.record_at(start, event.lsn, &self.last_commit);
        }
        match &event.kind {
            EventKind::RestorePoint { name, .. } => {
                for search in &mut self.searches {
                    if search.found.is_none() && search.wanted.target == Target::Name(name.clone()) {
                        let settings = vec![setting("recovery_target_name", name)];
                        let newest = self.last_commit.clone();
                        search.resolve(start, settings, event.end, None, newest);
                    }
                }
                if self.restore_points.len() == RESTORE_POINTS_TOLD {
                    self.restore_points.remove(0);
                }
                self.restore_points.push((name.clone(), event.lsn));
            }
            EventKind::ParameterChange {
                max_connections,
                max_worker_processes,
                max_wal_senders,
                max_prepared_transactions,
                max_locks_per_transaction,
                ..
            } => {
                let value = |value: &i32| u32::try_from(*value).unwrap_or(0);
                self.maxima = self.maxima.max(Maxima {
                    max_connections: value(max_connections),
                    max_worker_processes: value(max_worker_processes),
                    max_wal_senders: value(max_wal_senders),
                    max_prepared_transactions: value(max_prepared_transactions),
                    max_locks_per_transaction: value(max_locks_per_transaction),
                });
            }
            EventKind::TablespaceCreated { tablespace, path } => {
                self.tablespaces.push(TablespaceCreated {
                    oid: *tablespace,
                    location: path.clone(),
                    at: event.lsn,
                });
            }
            EventKind::CustomResourceManager(id) if !self.custom.contains(id) => self.custom.push(*id),
            _ => {}
        }
    }

    /// What the end of the way means for targets that were not met.
    fn conclude(&mut self, archive: &Archive, end: &ScanEnd, reached: Lsn) -> Vec<Resolution> {
        let start = self.start;
        let newest = self.last_commit.clone().filter(|commit| commit.lsn >= start.stop);
        let (latest_time, unread) = (self.latest_time, self.unread.clone());
        let known = std::mem::take(&mut self.restore_points);
        let timeline = start.path.timeline();
        let continued_by = archive.timelines().descendants(timeline, start.stop);
        let segment_size = archive.segment_size();
        self.searches
            .iter_mut()
            .map(|search| {
                if let Some(found) = search.found.take() {
                    return found;
                }
                let last_commit = newest.clone();
                match end {
                    ScanEnd::Gap {
                        timeline,
                        first_missing,
                        last_missing,
                        ..
                    } => {
                        return Err(Unreachable::Gap {
                            timeline: *timeline,
                            first_missing: *first_missing,
                            last_missing: *last_missing,
                            segment_size,
                            end: reached,
                            last_commit,
                            expired: archive
                                .not_expired(*timeline, *first_missing, *last_missing)
                                .is_empty(),
                        });
                    }
                    ScanEnd::Damaged {
                        timeline,
                        number,
                        reason,
                        ..
                    } => {
                        return Err(Unreachable::Damaged {
                            timeline: *timeline,
                            segment: *number,
                            segment_size,
                            end: reached,
                            reason: reason.clone(),
                            last_commit,
                        });
                    }
                    _ if reached < start.stop || *end == ScanEnd::Nothing => {
                        // The backup itself is not whole without this WAL.
                        let first = reached
                            .segment(segment_size)
                            .max(start.redo.segment(segment_size));
                        return Err(Unreachable::Gap {
                            timeline: start.path.timeline_at(start.redo),
                            first_missing: if *end == ScanEnd::Nothing {
                                first
                            } else {
                                first + 1
                            },
                            last_missing: start.stop.segment(segment_size).max(first),
                            segment_size,
                            end: reached,
                            last_commit,
                            expired: false,
                        });
                    }
                    _ => {}
                }
                match &search.wanted.target {
                    Target::Latest => Ok(ResolvedTarget {
                        target: Target::Latest,
                        inclusive: true,
                        settings: Vec::new(),
                        stop: reached,
                        timeline,
                        stops_at: None,
                        last_commit,
                        commits_after_backup: 0,
                    }),
                    Target::Time(_) => Err(Unreachable::NeedsLaterCommit {
                        end: reached,
                        last_commit,
                        latest_time,
                        continued_by: continued_by.clone(),
                    }),
                    Target::Lsn(_) | Target::Immediate => Err(Unreachable::BeyondArchive {
                        end: reached,
                        last_commit,
                        continued_by: continued_by.clone(),
                    }),
                    Target::Xid(xid) | Target::BeforeXid(xid) => Err(Unreachable::UnknownXid {
                        xid: *xid,
                        end: reached,
                        last_commit,
                        unread: unread.clone(),
                    }),
                    Target::Name(name) => Err(Unreachable::UnknownRestorePoint {
                        name: name.clone(),
                        known: known.clone(),
                        end: reached,
                    }),
                }
            })
            .collect()
    }
}

/// Whether the record ends this transaction, or one of whose subtransactions it is.
fn ends(transaction: &TransactionEnd, xid: Xid) -> bool {
    transaction.xid == xid || transaction.subxids.contains(&xid)
}
