//! Which point of the past is drilled when nobody names one: a random one, or the one whose recovery is predicted to
//! take longest.
//!
//! Invariants: choosing is pure; only what can be recovered is chosen (a time with a commit behind it in the archive);
//! every such moment is as likely as any other; the same seed over the same window gives the same point.

use diagnostic::{Error, Result};
use history::Window;
use jiff::Timestamp;
use repository::{Backup, ClusterRepository};

use crate::facts::{PointFacts, PointKind, PointWindow};
use crate::forecast::{self, EarlierDrill};

/// A piece of the past that can be recovered, as the planner would recover it: from this backup, which is the newest
/// that ended before any of its moments.
#[derive(Debug, Clone, PartialEq)]
pub struct Stretch {
    /// The earliest moment.
    pub from: Timestamp,
    /// Behind the latest one: a commit that proves that recovery stops before it.
    pub until: Timestamp,
    /// What a restore of the backup writes.
    pub bytes: u64,
    /// WAL that is replayed to the end of the stretch.
    pub wal_bytes: u64,
}

/// A seed, in hex. Error: `no-randomness`.
pub fn seed() -> Result<String> {
    let mut bytes = [0_u8; 16];
    getrandom::fill(&mut bytes).map_err(|error| {
        Error::new("no-randomness", "the system gives no random bytes").detail(error.to_string())
    })?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// What can be recovered of the newest backup's system, oldest first, without overlaps.
pub fn stretches(repository: &ClusterRepository) -> Result<Vec<Stretch>> {
    let backups = repository.backups()?;
    let Some((system, segment_size)) = restore::system_of(&backups) else {
        return Err(Error::new(
            "no-backup",
            format!("cluster \"{}\" has no backup to restore", repository.name()),
        ));
    };
    let archive = history::Archive::load(std::slice::from_ref(repository), system, segment_size)?;
    // The way that a drill follows is that of the newest backup.
    let newest = backups
        .iter()
        .rev()
        .find(|backup| backup.system_identifier == system);
    let timeline = newest.map(|backup| backup.timeline);
    let own: Vec<Backup> = backups
        .into_iter()
        .filter(|backup| backup.system_identifier == system && Some(backup.timeline) == timeline)
        .collect();
    let windows = archive.windows(&own)?;
    Ok(cut(&own, &windows))
}

/// Each backup's stretch ends where the next backup takes over, or where its unbroken WAL ends.
fn cut(backups: &[Backup], windows: &[Window]) -> Vec<Stretch> {
    let mut pairs: Vec<(&Backup, &Window)> = backups.iter().zip(windows).collect();
    pairs.sort_by_key(|(backup, _)| backup.finished_at);
    let mut stretches = Vec::new();
    for (index, (backup, window)) in pairs.iter().enumerate() {
        let (Some(to_lsn), Some(to)) = (window.to_lsn, window.to) else {
            continue;
        };
        let next = pairs.get(index + 1).map(|(next, _)| *next);
        let taken_over = next.filter(|next| next.finished_at < to.to_jiff());
        let (until, end) = match taken_over {
            Some(next) => (next.finished_at, next.stop_lsn.min(to_lsn)),
            None => (to.to_jiff(), to_lsn),
        };
        if until > backup.finished_at {
            stretches.push(Stretch {
                from: backup.finished_at,
                until,
                bytes: backup.bytes_restored,
                wal_bytes: end.checked_sub(backup.redo_lsn).unwrap_or(0),
            });
        }
    }
    stretches
}

fn window(stretches: &[Stretch]) -> Option<PointWindow> {
    let mut pieces = 1;
    for pair in stretches.windows(2) {
        if let [before, behind] = pair
            && before.until < behind.from
        {
            pieces += 1;
        }
    }
    Some(PointWindow {
        from: stretches.first()?.from,
        to: stretches.iter().map(|stretch| stretch.until).max()?,
        pieces,
    })
}

fn nothing_to_choose() -> Error {
    Error::new(
        "target-unreachable",
        "there is no moment of the past that could be chosen",
    )
    .detail("Recovery to a time needs a commit behind it in the archive, after the end of a backup.")
    .hint("Run `pgproof status` for what can be recovered, or drill a `bracket`.")
}

fn facts(kind: PointKind, requested: &str, at: Timestamp, stretches: &[Stretch]) -> PointFacts {
    PointFacts {
        kind,
        requested: requested.into(),
        resolved: Some(at.to_string()),
        seed: None,
        window: window(stretches),
        predicted_wal_bytes: None,
        markers: Vec::new(),
    }
}

/// A moment drawn by the seed. Error: `target-unreachable`.
pub fn random(stretches: &[Stretch], seed: &str) -> Result<(Timestamp, PointFacts)> {
    let length = |stretch: &Stretch| {
        let micros = stretch.until.as_microsecond() - stretch.from.as_microsecond();
        u128::from(micros.max(0).unsigned_abs())
    };
    let total: u128 = stretches.iter().map(length).sum();
    if total == 0 {
        return Err(nothing_to_choose());
    }
    let digest = blake3::hash(seed.as_bytes());
    let draw = digest
        .as_bytes()
        .iter()
        .take(8)
        .fold(0_u64, |sum, byte| sum << 8 | u64::from(*byte));
    let mut left = (u128::from(draw) * total) >> 64;
    for stretch in stretches {
        if left < length(stretch) {
            let at = Timestamp::from_microsecond(stretch.from.as_microsecond() + left as i64);
            let at = at.map_err(|_| nothing_to_choose())?;
            let mut facts = facts(PointKind::Random, "random", at, stretches);
            facts.seed = Some(seed.into());
            return Ok((at, facts));
        }
        left -= length(stretch);
    }
    Err(nothing_to_choose())
}

/// The last moment of the stretch whose recovery takes longest: by the rates of earlier drills, without one by the WAL
/// that is replayed. Error: `target-unreachable`.
pub fn worst(stretches: &[Stretch], earlier: &[EarlierDrill]) -> Result<(Timestamp, PointFacts)> {
    let cost = |stretch: &&Stretch| {
        let predicted = forecast::predict(earlier, stretch.bytes, stretch.wal_bytes);
        (
            predicted.map_or(0, |predicted| predicted.total_ms),
            stretch.wal_bytes,
        )
    };
    let found = stretches.iter().max_by_key(cost).ok_or_else(nothing_to_choose)?;
    let at =
        Timestamp::from_microsecond(found.until.as_microsecond() - 1).map_err(|_| nothing_to_choose())?;
    let mut facts = facts(PointKind::Worst, "worst", at, stretches);
    facts.predicted_wal_bytes = Some(found.wal_bytes);
    Ok((at, facts))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        format!("2026-01-25T{text}Z").parse().expect("a time")
    }

    fn stretches() -> Vec<Stretch> {
        let stretch = |from: &str, until: &str, wal_bytes: u64| Stretch {
            from: at(from),
            until: at(until),
            bytes: 1 << 30,
            wal_bytes,
        };
        vec![
            stretch("01:00:00", "02:00:00", 700),
            stretch("02:00:00", "03:00:00", 900),
            // WAL is missing before this one.
            stretch("10:00:00", "18:00:00", 300),
        ]
    }

    #[test]
    fn a_random_moment_can_be_recovered_and_is_drawn_again_by_its_seed() {
        let stretches = stretches();
        let mut in_the_last = 0;
        for number in 0..1000 {
            let seed = format!("seed {number}");
            let (chosen, facts) = random(&stretches, &seed).expect("a moment");
            assert!(
                stretches
                    .iter()
                    .any(|stretch| (stretch.from..stretch.until).contains(&chosen)),
                "{chosen}"
            );
            in_the_last += u32::from(chosen >= at("10:00:00"));
            assert_eq!(random(&stretches, &seed).expect("a moment").0, chosen);
            assert_eq!(facts.seed.as_deref(), Some(seed.as_str()));
            assert_eq!(facts.window.expect("a window").pieces, 2);
        }
        // Eight of ten hours: every moment is as likely as any other.
        assert!((760..840).contains(&in_the_last), "{in_the_last} of 1000");
    }

    #[test]
    fn the_worst_point_is_just_before_the_next_backup_takes_over() {
        let (chosen, facts) = worst(&stretches(), &[]).expect("a moment");
        assert_eq!(chosen.to_string(), "2026-01-25T02:59:59.999999Z");
        assert_eq!(facts.predicted_wal_bytes, Some(900));
    }

    #[test]
    fn without_a_moment_there_is_no_choice() {
        assert_eq!(
            random(&[], "x").expect_err("nothing").code(),
            "target-unreachable"
        );
        assert_eq!(worst(&[], &[]).expect_err("nothing").code(), "target-unreachable");
    }
}
