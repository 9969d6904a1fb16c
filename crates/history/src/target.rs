//! Recovery targets: what is asked for, where PostgreSQL stops for it, and why it cannot be reached.
//!
//! The rules are those of PostgreSQL's xlogrecovery.c, `recoveryStopsBefore` and `recoveryStopsAfter`: a time
//! target stops at the first commit or abort record, in WAL order, whose time is beyond the target
//! (inclusive: later than; exclusive: not earlier than); an xid target stops behind (inclusive) or before
//! (exclusive) the record that ends that transaction; an LSN target stops behind (inclusive) or before
//! (exclusive) the first record that begins at or behind it; a name stops behind the first restore point of
//! that name. Only records behind the backup's redo point count, and a stop before the backup's end is an
//! error.
//!
//! Invariant: a [`ResolvedTarget`] exists only for a record that is in the archive, on an unbroken way from
//! the backup.

use diagnostic::Error;
use postgres::{Lsn, TimelineId, Timestamp, Xid, segment_name};
use serde::{Deserialize, Serialize};

use crate::point::{CommitPoint, Nearest};

/// A recovery target as a person names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Target {
    /// Everything that was committed up to this time.
    Time(Timestamp),
    /// Every record that begins before this LSN.
    Lsn(Lsn),
    /// Up to and with this transaction.
    Xid(Xid),
    /// Up to just before this transaction's commit record.
    BeforeXid(Xid),
    /// A restore point (`pg_create_restore_point`).
    Name(String),
    /// The end of the archived WAL.
    Latest,
    /// The end of the backup.
    Immediate,
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Target::Time(time) => write!(f, "{time}"),
            Target::Lsn(lsn) => write!(f, "{lsn}"),
            Target::Xid(xid) => write!(f, "transaction {xid}"),
            Target::BeforeXid(xid) => write!(f, "just before transaction {xid}"),
            Target::Name(name) => write!(f, "restore point \"{name}\""),
            Target::Latest => f.write_str("the end of the archived WAL"),
            Target::Immediate => f.write_str("the end of the backup"),
        }
    }
}

impl Target {
    /// The options of `pgproof restore` that name it.
    pub fn options(&self) -> String {
        match self {
            Target::Time(time) => format!("--to '{time}'"),
            Target::Lsn(lsn) => format!("--to {lsn}"),
            Target::Xid(xid) => format!("--to-xid {xid}"),
            Target::BeforeXid(xid) => format!("--before-xid {xid}"),
            Target::Name(name) => format!("--to-name '{}'", name.replace('\'', "'\\''")),
            Target::Latest => "--to latest".into(),
            Target::Immediate => "--to immediate".into(),
        }
    }
}

/// A target and whether the record it names is still replayed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted {
    /// What is asked for.
    pub target: Target,
    /// `recovery_target_inclusive`; `None` is the default of the kind of target: a time and an xid include
    /// what they name (as PostgreSQL's default does), an LSN excludes the record that begins there (so that
    /// an LSN that was read with `pg_current_wal_lsn()`, or the start of an unwanted commit, means the state
    /// before it).
    pub inclusive: Option<bool>,
}

impl From<Target> for Wanted {
    fn from(target: Target) -> Wanted {
        Wanted {
            target,
            inclusive: None,
        }
    }
}

impl Wanted {
    /// See the field.
    pub fn inclusive(&self) -> bool {
        match self.target {
            Target::Time(_) | Target::Xid(_) => self.inclusive.unwrap_or(true),
            Target::Lsn(_) => self.inclusive.unwrap_or(false),
            Target::BeforeXid(_) => false,
            Target::Name(_) | Target::Latest | Target::Immediate => true,
        }
    }
}

/// Where recovery stops for a target, and in which words it is told so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResolvedTarget {
    /// What was asked for.
    pub target: Target,
    /// Whether the record at the stop is still replayed.
    pub inclusive: bool,
    /// `recovery_target_...` settings, without timeline and action; empty for the end of the archived WAL.
    pub settings: Vec<(String, String)>,
    /// All records that begin before this LSN are replayed, and none that begins at or behind it. For an
    /// inclusive LSN target it is that LSN, and one more record follows.
    pub stop: Lsn,
    /// The timeline of the stop.
    pub timeline: TimelineId,
    /// The record at which recovery stops, if it ends a transaction.
    pub stops_at: Option<CommitPoint>,
    /// The newest commit that is replayed; `None` if none lies between the backup's redo point and the stop.
    pub last_commit: Option<CommitPoint>,
    /// Commits behind the backup's end that are replayed: what the backup alone would have lost.
    pub commits_after_backup: u64,
}

/// Why a target cannot be reached from a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Unreachable {
    /// The target lies before the backup's end; an older backup is needed.
    BeforeBackupEnd {
        /// The backup's stop.
        backup_end: Lsn,
        /// When it ended.
        ended_at: Timestamp,
        /// Where recovery would have to stop, if that is known.
        at: Option<Lsn>,
    },
    /// The archive ends before the target.
    BeyondArchive {
        /// Where it ends.
        end: Lsn,
        /// The newest commit in it.
        last_commit: Option<CommitPoint>,
        /// Timelines that go on from there, with the LSN at which they leave.
        continued_by: Vec<(TimelineId, Lsn)>,
    },
    /// A time target needs a later commit or abort in the archive, and there is none.
    NeedsLaterCommit {
        /// Where the archive ends.
        end: Lsn,
        /// The newest commit in it.
        last_commit: Option<CommitPoint>,
        /// The latest time in any record behind the backup.
        latest_time: Option<Timestamp>,
        /// Timelines that go on from there, with the LSN at which they leave.
        continued_by: Vec<(TimelineId, Lsn)>,
    },
    /// Segments are missing before the target.
    Gap {
        /// The timeline of the first missing segment.
        timeline: TimelineId,
        /// The first missing segment.
        first_missing: u64,
        /// The last one before archived WAL goes on.
        last_missing: u64,
        /// The bytes of a segment.
        segment_size: u32,
        /// Where unbroken WAL ends.
        end: Lsn,
        /// The newest commit before the gap.
        last_commit: Option<CommitPoint>,
        /// Nothing went wrong: retention has let these segments go.
        #[serde(default)]
        expired: bool,
    },
    /// A segment is archived, and valid WAL ends within it although more follows.
    Damaged {
        /// The timeline of the segment.
        timeline: TimelineId,
        /// The segment.
        segment: u64,
        /// The bytes of a segment.
        segment_size: u32,
        /// Where valid WAL ends.
        end: Lsn,
        /// What was wrong there.
        reason: String,
        /// The newest commit before it.
        last_commit: Option<CommitPoint>,
    },
    /// No commit or abort record of that transaction.
    UnknownXid {
        /// The transaction.
        xid: Xid,
        /// Where the search ended.
        end: Lsn,
        /// The newest commit there.
        last_commit: Option<CommitPoint>,
        /// Places that could not be read and may hold it.
        unread: Vec<Lsn>,
    },
    /// No restore point of that name.
    UnknownRestorePoint {
        /// The name.
        name: String,
        /// Restore points that are there, at most the newest ten.
        known: Vec<(String, Lsn)>,
        /// Where the search ended.
        end: Lsn,
    },
}

impl Unreachable {
    /// Whether an older backup may reach it.
    pub fn older_may_reach(&self) -> bool {
        matches!(
            self,
            Unreachable::BeforeBackupEnd { .. }
                | Unreachable::UnknownXid { .. }
                | Unreachable::UnknownRestorePoint { .. }
        )
    }

    /// The stable code of the refusal.
    pub fn code(&self) -> &'static str {
        match self {
            Unreachable::BeforeBackupEnd { .. } => "target-before-backup-end",
            Unreachable::BeyondArchive { .. } => "target-beyond-archive",
            Unreachable::NeedsLaterCommit { .. } => "time-target-needs-later-commit",
            Unreachable::Gap { .. } => "wal-gap",
            Unreachable::Damaged { .. } => "wal-damaged",
            Unreachable::UnknownXid { .. } => "unknown-xid",
            Unreachable::UnknownRestorePoint { .. } => "unknown-restore-point",
        }
    }

    /// The nearest point that can be reached from the same backup.
    pub fn nearest(&self) -> Option<Nearest> {
        match self {
            Unreachable::BeforeBackupEnd { backup_end, .. } => Some(Nearest {
                lsn: *backup_end,
                last_commit: None,
                options: "--to immediate".into(),
            }),
            Unreachable::BeyondArchive { end, last_commit, .. }
            | Unreachable::NeedsLaterCommit { end, last_commit, .. } => Some(Nearest {
                lsn: *end,
                last_commit: last_commit.clone(),
                options: "--to latest".into(),
            }),
            Unreachable::Gap { end, last_commit, .. } | Unreachable::Damaged { end, last_commit, .. } => {
                // The record at the very end of unbroken WAL is incomplete: stop at the last transaction's
                // record.
                let lsn = last_commit.as_ref().map_or(*end, |commit| commit.lsn);
                let options = match last_commit {
                    Some(commit) => format!("--to-xid {}", commit.xid),
                    None => "--to immediate".into(),
                };
                Some(Nearest {
                    lsn: lsn.max(Lsn(0)),
                    last_commit: last_commit.clone(),
                    options,
                })
            }
            Unreachable::UnknownXid { .. } | Unreachable::UnknownRestorePoint { .. } => None,
        }
    }

    /// As an error for a person. `backup` names the backup from which it was tried.
    pub fn into_error(self, cluster: &str, target: &Target, backup: &str) -> Error {
        let message = match target {
            Target::Latest => {
                format!("cluster \"{cluster}\" cannot be recovered to the end of the archived WAL")
            }
            other => format!("cluster \"{cluster}\" cannot be recovered to {other}"),
        };
        let error = Error::new(self.code(), message);
        let command = |options: &str| format!("`pgproof restore {cluster} {options} --into DIR`");
        let nearest = self.nearest();
        match self {
            Unreachable::BeforeBackupEnd {
                backup_end,
                ended_at,
                at,
            } => {
                let at = at
                    .map(|at| format!(" Recovery would have to stop at {at}."))
                    .unwrap_or_default();
                error
                    .detail(format!(
                        "Backup {backup} ended at {backup_end} ({ended_at}), not before the \
                     target.{at}"
                    ))
                    .hint(format!(
                        "The earliest point from this backup is its end: {}. An earlier point needs a \
                         backup that \
                         ended before it; `pgproof list` shows what there is.",
                        command("--to immediate")
                    ))
            }
            Unreachable::BeyondArchive {
                end,
                last_commit,
                continued_by,
            } => error
                .detail(format!(
                    "The WAL that follows backup {backup} is archived up to {end}{}.",
                    told(&last_commit)
                ))
                .hint(beyond_hint(&command("--to latest"), &continued_by)),
            Unreachable::NeedsLaterCommit {
                end,
                last_commit,
                latest_time,
                continued_by,
            } => {
                let before = latest_time.map_or(String::new(), |time| {
                    format!(" Times before {time}, the latest in the archive, can be reached.")
                });
                error
                    .detail(format!(
                        "PostgreSQL stops at the first transaction that ended later than the target, and \
                         the archive \
                         holds none: it ends at {end}{}.{before}",
                        told(&last_commit)
                    ))
                    .hint(beyond_hint(&command("--to latest"), &continued_by))
            }
            Unreachable::Gap {
                timeline,
                first_missing,
                last_missing,
                segment_size,
                end,
                last_commit,
                expired,
            } => {
                let first = segment_name(timeline, first_missing, segment_size);
                let range = if last_missing > first_missing {
                    let last = segment_name(timeline, last_missing, segment_size);
                    format!("WAL segments {first} to {last} are in no copy")
                } else {
                    format!("WAL segment {first} is in no copy")
                };
                let options = nearest.map(|nearest| nearest.options).unwrap_or_default();
                if expired {
                    return error
                        .detail(format!(
                            "Retention has let the WAL behind backup {backup} go: it is there up to {end}{}.",
                            told(&last_commit)
                        ))
                        .hint(format!(
                            "The nearest point before is {}; `pgproof status` shows from where on every point \
                             can be reached.",
                            command(&options)
                        ));
                }
                error
                    .detail(format!(
                        "{range}; after backup {backup} the WAL is unbroken only up to {end}{}.",
                        told(&last_commit)
                    ))
                    .hint(format!(
                        "If the segment is still in the primary's pg_wal, run `pgproof wal push {first}` \
                         there; \
                         otherwise choose a target before the gap: {}.",
                        command(&options)
                    ))
            }
            Unreachable::Damaged {
                timeline,
                segment,
                segment_size,
                end,
                reason,
                last_commit,
            } => {
                let options = nearest.map(|nearest| nearest.options).unwrap_or_default();
                error
                    .detail(format!(
                        "WAL segment {} is archived, but what it holds ends at {end} ({reason}){}.",
                        segment_name(timeline, segment, segment_size),
                        told(&last_commit)
                    ))
                    .hint(format!("Choose a target before it: {}.", command(&options)))
            }
            Unreachable::UnknownXid {
                xid,
                end,
                last_commit,
                unread,
            } => {
                let unread = if unread.is_empty() {
                    String::new()
                } else {
                    let places: Vec<String> = unread.iter().take(5).map(ToString::to_string).collect();
                    format!(
                        " {} records could not be read and may be it: at {}.",
                        unread.len(),
                        places.join(", ")
                    )
                };
                error
                    .detail(format!(
                        "No record between the oldest usable backup and the archive's end ({end}{}) \
                         commits or aborts \
                         transaction {xid}.{unread}",
                        told(&last_commit)
                    ))
                    .hint(
                        "Run `pgproof find` to see the transactions that changed tables, with their \
                     numbers.",
                    )
            }
            Unreachable::UnknownRestorePoint { name, known, end } => {
                let known: Vec<String> = known
                    .iter()
                    .map(|(name, lsn)| format!("\"{name}\" at {lsn}"))
                    .collect();
                error
                    .detail(if known.is_empty() {
                        format!("The archive holds no restore point at all between the backups and {end}.")
                    } else {
                        format!(
                            "No restore point is named \"{name}\"; there are: {}.",
                            known.join(", ")
                        )
                    })
                    .hint("Choose one of these with --to-name, or a time with --to.")
            }
        }
    }
}

fn told(last_commit: &Option<CommitPoint>) -> String {
    last_commit
        .as_ref()
        .map_or(String::new(), |commit| format!(", last commit {}", commit.time))
}

fn beyond_hint(latest: &str, continued_by: &[(TimelineId, Lsn)]) -> String {
    let mut hint = format!("Everything that is archived is recovered with {latest}.");
    for (timeline, switch) in continued_by.iter().take(3) {
        hint.push_str(&format!(
            " Timeline {timeline} goes on from {switch}: if it is the one to follow, add --timeline \
             {timeline}."
        ));
    }
    hint
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_lsn_means_everything_before_it_and_a_time_everything_up_to_it() {
        assert!(!Wanted::from(Target::Lsn(Lsn(8))).inclusive());
        assert!(Wanted::from(Target::Time(Timestamp(0))).inclusive());
        assert!(Wanted::from(Target::Xid(Xid(7))).inclusive());
        assert!(
            !Wanted {
                target: Target::BeforeXid(Xid(7)),
                inclusive: Some(true)
            }
            .inclusive()
        );
    }

    #[test]
    fn a_gap_names_the_segment_and_the_nearest_point() {
        let commit = CommitPoint {
            lsn: Lsn(0x2A_8EFF_0000),
            end: Lsn(0x2A_8EFF_0030),
            xid: Xid(731),
            time: Timestamp(0),
            committed: true,
        };
        let gap = Unreachable::Gap {
            timeline: TimelineId(5),
            first_missing: 0x2A8F,
            last_missing: 0x2A8F,
            segment_size: 16 << 20,
            end: Lsn(0x2A_8F00_0000),
            last_commit: Some(commit),
            expired: false,
        };
        let text = gap
            .into_error("main", &Target::Time(Timestamp(60_000_000)), "20260815T020003Z")
            .render();
        assert_eq!(
            text,
            "error[wal-gap]: cluster \"main\" cannot be recovered to 2000-01-01 00:01:00+00\n\
             detail: WAL segment 000000050000002A0000008F is in no copy; after backup 20260815T020003Z \
             the WAL is \
             unbroken only up to 2A/8F000000, last commit 2000-01-01 00:00:00+00.\n\
             hint: If the segment is still in the primary's pg_wal, run `pgproof wal push \
             000000050000002A0000008F` \
             there; otherwise choose a target before the gap: `pgproof restore main --to-xid 731 --into \
             DIR`.\n"
        );
    }
}
