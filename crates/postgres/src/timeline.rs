//! Timeline history files: from which timelines a timeline descends, and where each was left.
//!
//! Format: `timeline.c` of PostgreSQL; one line for each ancestor, oldest first: parent timeline, the LSN at
//! which it was left, and the reason, separated by tabs. Invariant: timelines rise strictly and stay below
//! the file's own; switch points never fall.

use diagnostic::{Error, Result};
use serde::{Deserialize, Serialize};

use crate::{Lsn, TimelineId};

/// One ancestor: `parent` was left at `switch` (the first byte that is not on it).
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct HistoryStep {
    pub parent: TimelineId,
    pub switch: Lsn,
    pub reason: String,
}

/// The history of one timeline; timeline 1 has no steps and no file.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct TimelineHistory {
    pub timeline: TimelineId,
    pub steps: Vec<HistoryStep>,
}

impl TimelineHistory {
    /// The history of a timeline without ancestors.
    pub fn root(timeline: TimelineId) -> Self {
        TimelineHistory {
            timeline,
            steps: Vec::new(),
        }
    }

    /// Reads the content of `XXXXXXXX.history`, where X is `timeline`. Error code `timeline-history-damaged`.
    pub fn parse(timeline: TimelineId, content: &[u8]) -> Result<Self> {
        let damaged = |number: usize, what: &str| {
            Error::new(
                "timeline-history-damaged",
                format!("timeline history file \"{}.history\" is damaged", timeline.hex8()),
            )
            .detail(format!("Line {number}: {what}."))
        };
        let mut steps: Vec<HistoryStep> = Vec::new();
        let mut last_number = 0;
        for (index, line) in content.split(|b| *b == b'\n').enumerate() {
            let number = index + 1;
            let line = String::from_utf8_lossy(line);
            let line = line.trim_matches(|c: char| c.is_ascii_whitespace());
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            last_number = number;
            let mut fields = line.splitn(3, |c: char| c.is_ascii_whitespace());
            let parent = fields.next().and_then(|text| text.parse().ok()).map(TimelineId);
            let Some(parent) = parent.filter(|parent| parent.0 != 0) else {
                return Err(damaged(number, "expected the number of a timeline"));
            };
            let Some(switch) = fields.next().and_then(|text| text.parse::<Lsn>().ok()) else {
                return Err(damaged(number, "expected a WAL location after the timeline"));
            };
            if let Some(last) = steps.last() {
                if parent <= last.parent {
                    return Err(damaged(number, "timelines must be in increasing order"));
                }
                if switch < last.switch {
                    return Err(damaged(number, "WAL locations must not go backwards"));
                }
            }
            let reason = fields.next().unwrap_or_default().trim().to_string();
            steps.push(HistoryStep {
                parent,
                switch,
                reason,
            });
        }
        if steps.last().is_some_and(|last| last.parent >= timeline) {
            return Err(damaged(
                last_number,
                "an ancestor must have a lower number than the timeline itself",
            ));
        }
        Ok(TimelineHistory { timeline, steps })
    }

    /// The file's content as PostgreSQL reads it, one line for each step.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        for step in &self.steps {
            let reason: String = step
                .reason
                .chars()
                .map(|c| if c == '\n' || c == '\r' { ' ' } else { c })
                .collect();
            text.push_str(&format!("{}\t{}\t{}\n", step.parent, step.switch, reason));
        }
        text
    }

    /// Whether the place `lsn` of `timeline` lies on this history. A switch point belongs to both timelines:
    /// a record may end there on the old one, and begin there on the new.
    pub fn contains(&self, timeline: TimelineId, lsn: Lsn) -> bool {
        let mut begin = Lsn(0);
        for step in &self.steps {
            if step.parent == timeline {
                return begin <= lsn && lsn <= step.switch;
            }
            begin = step.switch;
        }
        self.timeline == timeline && begin <= lsn
    }

    /// Where this history leaves `timeline`; `None` for its own timeline and for strangers.
    pub fn switch_out_of(&self, timeline: TimelineId) -> Option<Lsn> {
        self.steps
            .iter()
            .find(|step| step.parent == timeline)
            .map(|step| step.switch)
    }

    /// Where this history enters `timeline`: 0 for the first one; `None` for strangers.
    pub fn begin_of(&self, timeline: TimelineId) -> Option<Lsn> {
        let mut begin = Lsn(0);
        for step in &self.steps {
            if step.parent == timeline {
                return Some(begin);
            }
            begin = step.switch;
        }
        (self.timeline == timeline).then_some(begin)
    }

    /// The timeline on which the byte at `lsn` was written.
    pub fn timeline_at(&self, lsn: Lsn) -> TimelineId {
        self.steps
            .iter()
            .find(|step| lsn < step.switch)
            .map_or(self.timeline, |step| step.parent)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    // As pg_ctl promote of 15 writes it: the file of the parent is copied, then an empty line and the new
    // step.
    const TEXT: &str = "1\t0/3000110\tno recovery target specified\n\n\
                        2\t0/5000A28\tbefore 2026-01-25 14:30:00.123456+00\n";

    fn history() -> TimelineHistory {
        TimelineHistory::parse(TimelineId(3), TEXT.as_bytes()).unwrap()
    }

    #[test]
    fn a_history_of_two_promotions_is_read() {
        let history = history();
        assert_eq!(history.steps.len(), 2);
        assert_eq!(history.steps[0].parent, TimelineId(1));
        assert_eq!(history.steps[1].switch, Lsn(0x500_0A28));
        assert_eq!(history.steps[1].reason, "before 2026-01-25 14:30:00.123456+00");
        assert_eq!(
            TimelineHistory::parse(TimelineId(3), history.to_text().as_bytes()).unwrap(),
            history
        );
    }

    #[test]
    fn places_belong_to_the_timeline_that_was_current_there() {
        let history = history();
        assert_eq!(history.timeline_at(Lsn(0x300_010F)), TimelineId(1));
        assert_eq!(history.timeline_at(Lsn(0x300_0110)), TimelineId(2));
        assert_eq!(history.timeline_at(Lsn(0x500_0A28)), TimelineId(3));
        assert!(history.contains(TimelineId(1), Lsn(0x300_0110)));
        assert!(!history.contains(TimelineId(1), Lsn(0x300_0111)));
        assert!(!history.contains(TimelineId(2), Lsn(0x300_0100)));
        assert!(history.contains(TimelineId(2), Lsn(0x400_0000)));
        assert!(!history.contains(TimelineId(3), Lsn(0x400_0000)));
        assert!(history.contains(TimelineId(3), Lsn(0x600_0000)));
        assert!(!history.contains(TimelineId(4), Lsn(0x600_0000)));
        assert_eq!(history.switch_out_of(TimelineId(2)), Some(Lsn(0x500_0A28)));
        assert_eq!(history.switch_out_of(TimelineId(3)), None);
        assert_eq!(history.begin_of(TimelineId(3)), Some(Lsn(0x500_0A28)));
        assert_eq!(history.begin_of(TimelineId(9)), None);
    }

    #[test]
    fn a_history_out_of_order_is_refused() {
        for bad in [
            "x\n",
            "1\n",
            "1\tnowhere\n",
            "2\t0/1\tx\n1\t0/2\tx\n",
            "1\t0/9\tx\n2\t0/2\tx\n",
            "3\t0/1\tx\n",
            "0\t0/1",
        ] {
            let error = TimelineHistory::parse(TimelineId(3), bad.as_bytes()).unwrap_err();
            assert_eq!(error.code(), "timeline-history-damaged", "{bad:?}");
        }
        assert!(
            TimelineHistory::parse(TimelineId(3), b"# a comment\n\n")
                .unwrap()
                .steps
                .is_empty()
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_history_or_an_error(timeline: u32, content: Vec<u8>) {
            let _ = TimelineHistory::parse(TimelineId(timeline), &content);
        }
    }
}
