//! Timelines and their history files: which one a recovery follows, and which ones would divert it.
//!
//! Invariants: a timeline's identity is the system identifier and its steps (parent, switch LSN), never its
//! number alone; a path through timelines is always made from one history that was chosen by number here,
//! never from "the newest that can be found".

use std::collections::BTreeMap;

use diagnostic::{Error, Result};
use postgres::{Lsn, TimelineHistory, TimelineId};
use serde::{Deserialize, Serialize};

/// A history file that the archive holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KnownHistory {
    /// What it says.
    pub history: TimelineHistory,
    /// The object or objects that hold it, for messages.
    pub object: String,
}

/// Whether a timeline is one that we have reason to follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Standing {
    /// A backup was taken on it, or on a timeline that descends from it.
    BackedUp,
    /// A writer claimed it before it archived, and its WAL is here.
    Claimed,
    /// A history file and nothing that says who wrote it: what a restored copy leaves behind.
    Unknown,
}

/// A history that leaves a timeline before its archived end: following it loses what came after the fork.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct UnreachableHistory {
    /// The timeline that the history file is of.
    pub timeline: TimelineId,
    /// The timeline that it leaves.
    pub parent: TimelineId,
    /// Where it leaves it.
    pub switch: Lsn,
    /// How far the parent's WAL is archived.
    pub parent_end: Lsn,
    /// Whether anybody that we know wrote it.
    pub standing: Standing,
    /// The object that holds it.
    pub object: String,
}

impl UnreachableHistory {
    /// Nobody that we know wrote it: with `recovery_target_timeline = 'latest'` it would divert every
    /// restore.
    pub fn is_poison(&self) -> bool {
        self.standing == Standing::Unknown
    }
}

/// One timeline's part of the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leg {
    /// The timeline.
    pub timeline: TimelineId,
    /// Where it begins; 0 for the first.
    pub from: Lsn,
    /// Where it is left; none for the last.
    pub to: Option<Lsn>,
}

/// The way through timelines to one of them, as recovery with that `recovery_target_timeline` walks it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WalPath {
    /// Oldest first, without holes; never empty.
    pub legs: Vec<Leg>,
}

impl WalPath {
    /// The way that a history describes.
    pub fn of(history: &TimelineHistory) -> WalPath {
        let mut legs = Vec::with_capacity(history.steps.len() + 1);
        let mut from = Lsn(0);
        for step in &history.steps {
            legs.push(Leg {
                timeline: step.parent,
                from,
                to: Some(step.switch),
            });
            from = step.switch;
        }
        legs.push(Leg {
            timeline: history.timeline,
            from,
            to: None,
        });
        WalPath { legs }
    }

    /// The last timeline: the number for `recovery_target_timeline`.
    pub fn timeline(&self) -> TimelineId {
        self.legs.last().map_or(TimelineId(1), |leg| leg.timeline)
    }

    /// The timeline of the record that begins at this LSN.
    pub fn timeline_at(&self, lsn: Lsn) -> TimelineId {
        let leg = self
            .legs
            .iter()
            .rev()
            .find(|leg| leg.from <= lsn && leg.to.is_none_or(|to| lsn < to));
        leg.map_or(self.timeline(), |leg| leg.timeline)
    }

    /// Timelines whose file of this segment may hold what is wanted, in the order in which PostgreSQL looks
    /// for them (xlogrecovery.c, `XLogFileReadAnyTLI`: newest first, none that begins behind the segment).
    pub fn candidates(&self, segment: u64, segment_size: u32) -> Vec<TimelineId> {
        let mut timelines = Vec::with_capacity(2);
        for leg in self.legs.iter().rev() {
            if leg.from.segment(segment_size) > segment {
                continue;
            }
            // A leg that ended before this segment has nothing of ours in it.
            if leg.to.is_some_and(|to| to.segment(segment_size) < segment) {
                break;
            }
            timelines.push(leg.timeline);
        }
        timelines
    }

    /// Where `timeline` is left, if it lies on the way and is not its end.
    pub fn switch_out_of(&self, timeline: TimelineId) -> Option<Lsn> {
        self.legs
            .iter()
            .find(|leg| leg.timeline == timeline)
            .and_then(|leg| leg.to)
    }

    /// Whether the timeline lies on the way.
    pub fn contains(&self, timeline: TimelineId) -> bool {
        self.legs.iter().any(|leg| leg.timeline == timeline)
    }

    /// Whether WAL of a cluster with this own history, up to `end`, lies on the way: then its backups can be
    /// recovered along it. The error says why not.
    pub fn carries(&self, own: &TimelineHistory, end: Lsn) -> Result<(), String> {
        for (leg, step) in self.legs.iter().zip(&own.steps) {
            if leg.timeline != step.parent || leg.to != Some(step.switch) {
                return Err(format!(
                    "its history leaves timeline {} at {}, and the history of timeline {} does not",
                    step.parent,
                    step.switch,
                    self.timeline()
                ));
            }
        }
        match self.legs.get(own.steps.len()) {
            Some(leg) if leg.timeline == own.timeline => match leg.to {
                Some(to) if to < end => Err(format!(
                    "timeline {} leaves timeline {} at {to}, before {end}",
                    self.timeline(),
                    own.timeline
                )),
                _ => Ok(()),
            },
            _ => Err(format!(
                "timeline {} does not descend from timeline {}",
                self.timeline(),
                own.timeline
            )),
        }
    }
}

/// Every history that the archive, or a backup, knows.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Timelines {
    histories: BTreeMap<TimelineId, Vec<KnownHistory>>,
}

impl Timelines {
    /// From what was found; equal histories (steps, whatever their comments) are kept once.
    pub fn new(found: impl IntoIterator<Item = KnownHistory>) -> Timelines {
        let mut timelines = Timelines::default();
        for known in found {
            timelines.add(known);
        }
        timelines
    }

    /// Adds one more.
    pub fn add(&mut self, known: KnownHistory) {
        let same = self.histories.entry(known.history.timeline).or_default();
        if !same
            .iter()
            .any(|other| same_steps(&other.history, &known.history))
        {
            same.push(known);
        }
    }

    /// All of them, by number.
    pub fn all(&self) -> impl Iterator<Item = &KnownHistory> {
        self.histories.values().flatten()
    }

    /// Numbers that stand for more than one history: two promotions that did not know of each other.
    pub fn ambiguous(&self) -> Vec<TimelineId> {
        self.histories
            .iter()
            .filter(|(_, same)| same.len() > 1)
            .map(|(timeline, _)| *timeline)
            .collect()
    }

    /// The way to a timeline. Timeline 1 needs no history file. Where two histories have the same number, the
    /// one that carries `own` (the backup's history) up to `end` is taken if it is the only one.
    ///
    /// Errors: `timeline-unknown`, `timeline-ambiguous`.
    pub fn path_to(&self, timeline: TimelineId, own: Option<(&TimelineHistory, Lsn)>) -> Result<WalPath> {
        if let Some((own, _)) = own
            && own.timeline == timeline
        {
            return Ok(WalPath::of(own));
        }
        let known = self
            .histories
            .get(&timeline)
            .map(Vec::as_slice)
            .unwrap_or_default();
        match known {
            [] if timeline == TimelineId(1) => Ok(WalPath::of(&TimelineHistory {
                timeline,
                steps: Vec::new(),
            })),
            [] => {
                let numbers: Vec<String> = self.histories.keys().map(ToString::to_string).collect();
                Err(Error::new(
                    "timeline-unknown",
                    format!("the archive holds no history of timeline {timeline}"),
                )
                .detail(if numbers.is_empty() {
                    "It holds no history file at all: only timeline 1 is known.".to_owned()
                } else {
                    format!(
                        "It knows timeline 1 and the histories of: {}.",
                        numbers.join(", ")
                    )
                })
                .hint("Choose one of these with --timeline, or leave --timeline out."))
            }
            [only] => Ok(WalPath::of(&only.history)),
            several => {
                let mut fitting = several
                    .iter()
                    .map(|known| WalPath::of(&known.history))
                    .filter(|path| own.is_some_and(|(own, end)| path.carries(own, end).is_ok()));
                match (fitting.next(), fitting.next()) {
                    (Some(path), None) => Ok(path),
                    _ => Err(Error::new(
                        "timeline-ambiguous",
                        format!(
                            "{} different histories are archived as timeline {timeline}",
                            several.len()
                        ),
                    )
                    .detail(several.iter().map(describe).collect::<Vec<_>>().join("\n"))
                    .hint(
                        "Choose another timeline, or take a new backup of the cluster that is to be kept.",
                    )),
                }
            }
        }
    }

    /// Why WAL that is archived under the number of this history's timeline is another timeline's: the archive knows
    /// that number, and by other steps only.
    pub fn contradiction(&self, own: &TimelineHistory) -> Option<String> {
        let known = self.histories.get(&own.timeline)?;
        if known.is_empty() || known.iter().any(|known| same_steps(&known.history, own)) {
            return None;
        }
        let described: Vec<String> = known.iter().map(describe).collect();
        Some(format!(
            "its timeline {} is not the one that is archived under this number ({})",
            own.timeline,
            described.join("; ")
        ))
    }

    /// Timelines that descend from `timeline` and leave it at or behind `lsn`, nearest first.
    pub fn descendants(&self, timeline: TimelineId, lsn: Lsn) -> Vec<(TimelineId, Lsn)> {
        let mut found: Vec<(TimelineId, Lsn)> = self
            .all()
            .filter_map(|known| {
                let switch = known.history.switch_out_of(timeline)?;
                (switch >= lsn).then_some((known.history.timeline, switch))
            })
            .collect();
        found.sort_by_key(|(number, switch)| (*switch, *number));
        found
    }

    /// Histories that leave a timeline before its archived end. `ends`: each timeline's archived end.
    /// `standing`: what is known of who wrote a timeline.
    pub fn unreachable(
        &self,
        ends: &BTreeMap<TimelineId, Lsn>,
        standing: impl Fn(TimelineId) -> Standing,
    ) -> Vec<UnreachableHistory> {
        let mut found = Vec::new();
        for known in self.all() {
            // Only the last step is this timeline's own; earlier ones are told by the timelines they made.
            let Some(step) = known.history.steps.last() else {
                continue;
            };
            let Some(parent_end) = ends.get(&step.parent) else {
                continue;
            };
            if step.switch < *parent_end {
                found.push(UnreachableHistory {
                    timeline: known.history.timeline,
                    parent: step.parent,
                    switch: step.switch,
                    parent_end: *parent_end,
                    standing: standing(known.history.timeline),
                    object: known.object.clone(),
                });
            }
        }
        found
    }
}

fn describe(known: &KnownHistory) -> String {
    let steps: Vec<String> = known
        .history
        .steps
        .iter()
        .map(|step| format!("timeline {} up to {}", step.parent, step.switch))
        .collect();
    format!("{}: {}", known.object, steps.join(", then "))
}

/// The same way, whatever the comments say.
fn same_steps(one: &TimelineHistory, two: &TimelineHistory) -> bool {
    one.timeline == two.timeline
        && one.steps.len() == two.steps.len()
        && one
            .steps
            .iter()
            .zip(&two.steps)
            .all(|(a, b)| a.parent == b.parent && a.switch == b.switch)
}

#[cfg(test)]
mod tests {
    use super::*;
    use postgres::HistoryStep;

    const MIB16: u32 = 16 << 20;

    fn history(timeline: u32, steps: &[(u32, u64)]) -> TimelineHistory {
        let steps = steps
            .iter()
            .map(|(parent, switch)| HistoryStep {
                parent: TimelineId(*parent),
                switch: Lsn(*switch),
                reason: "no recovery target specified".into(),
            })
            .collect();
        TimelineHistory {
            timeline: TimelineId(timeline),
            steps,
        }
    }

    fn known(timeline: u32, steps: &[(u32, u64)]) -> KnownHistory {
        KnownHistory {
            history: history(timeline, steps),
            object: format!("{timeline:08X}.history"),
        }
    }

    #[test]
    fn segments_of_the_fork_are_looked_for_on_the_newer_timeline_first() {
        let path = WalPath::of(&history(3, &[(1, 0x0350_0000), (2, 0x0780_0000)]));
        assert_eq!(path.candidates(2, MIB16), [TimelineId(1)]);
        assert_eq!(path.candidates(3, MIB16), [TimelineId(2), TimelineId(1)]);
        assert_eq!(path.candidates(4, MIB16), [TimelineId(2)]);
        assert_eq!(path.candidates(7, MIB16), [TimelineId(3), TimelineId(2)]);
        assert_eq!(path.candidates(9, MIB16), [TimelineId(3)]);
        assert_eq!(path.timeline_at(Lsn(0x034F_FFFF)), TimelineId(1));
        assert_eq!(path.timeline_at(Lsn(0x0350_0000)), TimelineId(2));
    }

    #[test]
    fn backup_that_ended_after_the_fork_is_refused() {
        let path = WalPath::of(&history(2, &[(1, 0x0350_0000)]));
        let own = history(1, &[]);
        assert!(path.carries(&own, Lsn(0x0350_0000)).is_ok());
        assert!(path.carries(&own, Lsn(0x0350_0001)).is_err());
    }

    #[test]
    fn the_same_number_with_another_switch_is_another_timeline() {
        let path = WalPath::of(&history(3, &[(1, 0x0350_0000), (2, 0x0780_0000)]));
        assert!(
            path.carries(&history(2, &[(1, 0x0350_0000)]), Lsn(0x0400_0000))
                .is_ok()
        );
        assert!(
            path.carries(&history(2, &[(1, 0x0360_0000)]), Lsn(0x0400_0000))
                .is_err()
        );
        assert!(
            path.carries(&history(4, &[(1, 0x0350_0000)]), Lsn(0x0400_0000))
                .is_err()
        );
        assert!(
            path.carries(
                &history(3, &[(1, 0x0350_0000), (2, 0x0780_0000)]),
                Lsn(0x0900_0000)
            )
            .is_ok()
        );
    }

    #[test]
    fn two_histories_of_one_number_are_refused_unless_one_alone_carries_the_backup() {
        let timelines = Timelines::new([known(2, &[(1, 0x0350_0000)]), known(2, &[(1, 0x0900_0000)])]);
        assert_eq!(timelines.ambiguous(), [TimelineId(2)]);
        let own = history(1, &[]);
        let error = timelines
            .path_to(TimelineId(2), Some((&own, Lsn(0x0300_0000))))
            .unwrap_err();
        assert_eq!(error.code(), "timeline-ambiguous");
        let path = timelines
            .path_to(TimelineId(2), Some((&own, Lsn(0x0400_0000))))
            .unwrap();
        assert_eq!(path.switch_out_of(TimelineId(1)), Some(Lsn(0x0900_0000)));
    }

    #[test]
    fn a_timeline_without_history_is_unknown_but_the_first_needs_none() {
        let timelines = Timelines::default();
        assert_eq!(
            timelines.path_to(TimelineId(5), None).unwrap_err().code(),
            "timeline-unknown"
        );
        assert_eq!(
            timelines.path_to(TimelineId(1), None).unwrap().timeline(),
            TimelineId(1)
        );
    }

    #[test]
    fn a_history_that_leaves_our_timeline_before_its_archived_end_is_poison_if_nobody_known_wrote_it() {
        let timelines = Timelines::new([known(2, &[(1, 0x0350_0000)]), known(3, &[(1, 0x0900_0000)])]);
        let ends = BTreeMap::from([(TimelineId(1), Lsn(0x0800_0000))]);
        let found = timelines.unreachable(&ends, |_| Standing::Unknown);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].timeline, TimelineId(2));
        assert!(found[0].is_poison());
        assert!(!timelines.unreachable(&ends, |_| Standing::Claimed)[0].is_poison());
    }
}
