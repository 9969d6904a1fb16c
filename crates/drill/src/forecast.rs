//! What earlier drills say about the next one: how long its steps take, and how long the recovery.
//!
//! Invariants: pure but for [`load`]; only drills that reached their target count; the median is taken, so that one
//! odd drill does not move it; without an earlier drill there is no prediction, never a guess.

use diagnostic::Result;
use repository::ClusterRepository;

use crate::facts::{Facts, StepOutcome};

/// How many earlier drills are read.
pub(crate) const DRILLS_READ: usize = 5;
/// Too little was replayed to tell a rate from it.
const WAL_BYTES_MIN: u64 = 1 << 20;

/// What an earlier drill took.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct EarlierDrill {
    /// When it began.
    pub started_at: Option<jiff::Timestamp>,
    /// The registration that it was run for.
    pub registration: Option<String>,
    /// Milliseconds of each step that was done, by id.
    pub steps: Vec<(String, u64)>,
    /// Milliseconds: planning, writing, starting, replaying.
    pub phases: Option<Phases>,
}

/// The recovery's phases and what they worked on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Phases {
    /// Planning and starting the server.
    pub fixed_ms: u64,
    /// Writing `bytes`.
    pub restore_ms: u64,
    /// Of the backup.
    pub bytes: u64,
    /// Replaying `wal_bytes`.
    pub replay_ms: u64,
    /// Handed to recovery.
    pub wal_bytes: u64,
}

/// How long a recovery will take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prediction {
    /// Milliseconds.
    pub total_ms: u64,
    /// From so many drills.
    pub drills: usize,
}

impl EarlierDrill {
    /// What its facts say.
    pub fn of(facts: &Facts) -> EarlierDrill {
        let steps = facts
            .steps
            .iter()
            .filter(|step| step.outcome == StepOutcome::Done)
            .map(|step| (step.id.clone(), step.duration_ms))
            .collect();
        let phases = facts
            .rto
            .as_ref()
            .zip(facts.input.as_ref())
            .map(|(rto, input)| Phases {
                fixed_ms: rto.plan_ms + rto.start_ms,
                restore_ms: rto.restore_ms,
                bytes: input.bytes,
                replay_ms: rto.replay_ms,
                wal_bytes: input.wal_bytes,
            });
        EarlierDrill {
            started_at: Some(facts.started_at),
            registration: facts
                .registration
                .as_ref()
                .map(|registration| registration.id.clone()),
            steps,
            phases,
        }
    }
}

/// The newest drills of this cluster, the newest first. One that cannot be read is left out: it is no reason not to
/// drill.
pub fn load(repository: &ClusterRepository) -> Result<Vec<EarlierDrill>> {
    let mut names = repository.list_drills()?;
    names.sort();
    Ok(names
        .iter()
        .rev()
        .filter_map(|name| repository.get_evidence(name, "facts.json").ok().flatten())
        .filter_map(|bytes| serde_json::from_slice::<Facts>(&bytes).ok())
        .take(DRILLS_READ)
        .map(|facts| EarlierDrill::of(&facts))
        .collect())
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.retain(|value| value.is_finite());
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        odd if odd % 2 == 1 => values.get(middle).copied(),
        _ => Some((values.get(middle)? + values.get(middle.checked_sub(1)?)?) / 2.0),
    }
}

/// How long a step takes, by the median.
pub fn step_ms(earlier: &[EarlierDrill], id: &str) -> Option<u64> {
    let times = earlier
        .iter()
        .filter_map(|drill| drill.steps.iter().find(|(step, _)| step == id))
        .map(|(_, ms)| *ms as f64)
        .collect();
    median(times).map(|ms| ms as u64)
}

/// How long a recovery of so many bytes, with so much WAL, will take.
pub fn predict(earlier: &[EarlierDrill], bytes: u64, wal_bytes: u64) -> Option<Prediction> {
    let phases: Vec<Phases> = earlier.iter().filter_map(|drill| drill.phases).collect();
    let fixed = median(phases.iter().map(|each| each.fixed_ms as f64).collect())?;
    let rate = |ms: u64, bytes: u64| ms as f64 / bytes.max(1) as f64;
    let restore = median(
        phases
            .iter()
            .map(|each| rate(each.restore_ms, each.bytes))
            .collect(),
    )?;
    let replayed: Vec<f64> = phases
        .iter()
        .filter(|each| each.wal_bytes >= WAL_BYTES_MIN)
        .map(|each| rate(each.replay_ms, each.wal_bytes))
        .collect();
    let replay = median(replayed).unwrap_or(0.0);
    let total = fixed + restore * bytes as f64 + replay * wal_bytes as f64;
    Some(Prediction {
        total_ms: total.ceil() as u64,
        drills: phases.len(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drill(restore_ms: u64, replay_ms: u64) -> EarlierDrill {
        EarlierDrill {
            started_at: None,
            registration: None,
            steps: vec![("restore".into(), restore_ms)],
            phases: Some(Phases {
                fixed_ms: 100,
                restore_ms,
                bytes: 1 << 30,
                replay_ms,
                wal_bytes: 160 << 20,
            }),
        }
    }

    #[test]
    fn a_recovery_is_predicted_from_rates_and_an_odd_drill_does_not_move_it() {
        let earlier = [drill(1_000, 400), drill(1_100, 400), drill(99_000, 400)];
        let predicted = predict(&earlier, 2 << 30, 320 << 20).expect("a prediction");
        assert_eq!(predicted.total_ms, 100 + 2 * 1_100 + 2 * 400);
        assert_eq!(predicted.drills, 3);
        assert_eq!(step_ms(&earlier, "restore"), Some(1_100));
        assert_eq!(step_ms(&earlier[..2], "restore"), Some(1_050));
    }

    #[test]
    fn without_an_earlier_drill_nothing_is_guessed() {
        assert_eq!(predict(&[], 1, 1), None);
        assert_eq!(step_ms(&[], "restore"), None);
        let failed = EarlierDrill::default();
        assert_eq!(predict(&[failed], 1, 1), None);
    }
}
