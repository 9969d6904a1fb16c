//! Sequences of production and of the copy. They are not transactional and log ahead, so equality cannot be
//! asked for: the copy must only not be behind where production stood *before* the point, by the sign of the
//! increment.
//!
//! Invariant: a sequence that went backwards in production meanwhile (set back, restarted, cycled) is not
//! judged.

use std::collections::BTreeMap;

use cluster::Session;
use diagnostic::Result;
use serde::{Deserialize, Serialize};

use crate::facts::{SequenceProof, SequenceState};
use crate::server_error::recordable;

/// Where a sequence stands. Values stay in memory: they are the user's data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    filenode: String,
    increment: i64,
    cycles: bool,
    /// The last value handed out; `None` before the first.
    last: Option<i64>,
}

/// All permanent sequences of a database, by `schema.name`; an error stands for "no right to look".
pub type Positions = BTreeMap<String, Result<Position, String>>;

/// Reads the sequences of the session's database.
pub fn read(session: &mut Session) -> Result<Positions> {
    let list = "SELECT n.nspname || '.' || c.relname, c.oid, c.relfilenode, s.seqincrement, s.seqcycle \
        FROM pg_sequence s JOIN pg_class c ON c.oid = s.seqrelid JOIN pg_namespace n ON n.oid = \
        c.relnamespace \
        WHERE c.relpersistence = 'p' ORDER BY 1";
    let rows = session.rows(list)?;
    // All at once where we may look at all; one by one otherwise.
    let all = session.rows(
        "SELECT seqrelid, pg_sequence_last_value(seqrelid) FROM pg_sequence s JOIN pg_class c ON c.oid = \
         s.seqrelid \
         WHERE c.relpersistence = 'p'",
    );
    let values: Option<BTreeMap<String, Option<i64>>> = match all {
        Ok(rows) => Some(
            rows.into_iter()
                .filter_map(|row| {
                    let oid = row.first().cloned().flatten()?;
                    Some((
                        oid,
                        row.get(1).cloned().flatten().and_then(|value| value.parse().ok()),
                    ))
                })
                .collect(),
        ),
        Err(error) if error.code() == "server-error" => None,
        Err(error) => return Err(error),
    };
    let mut positions = Positions::new();
    for row in rows {
        let column = |index: usize| row.get(index).and_then(Option::as_deref).unwrap_or_default();
        let last = match &values {
            Some(values) => values
                .get(column(1))
                .copied()
                .ok_or_else(|| "dropped meanwhile".to_string()),
            None => match session.one(&format!("SELECT pg_sequence_last_value({}::oid)", column(1))) {
                Ok(row) => Ok(row
                    .first()
                    .cloned()
                    .flatten()
                    .and_then(|value| value.parse().ok())),
                Err(error) if error.code() == "server-error" => Err(recordable(&error)),
                Err(error) => return Err(error),
            },
        };
        let position = last.map(|last| Position {
            filenode: column(2).into(),
            increment: column(3).parse().unwrap_or(1),
            cycles: column(4) == "t",
            last,
        });
        positions.insert(column(0).into(), position);
    }
    Ok(positions)
}

/// Compares one database's sequences: production before the point, production after it, and the copy.
pub fn compare(
    database: &str,
    before: &Positions,
    after: &Positions,
    copy: &Positions,
) -> Vec<SequenceProof> {
    before
        .iter()
        .map(|(name, before)| SequenceProof {
            database: database.into(),
            sequence: name.clone(),
            state: state(before, after.get(name), copy.get(name)),
        })
        .collect()
}

fn state(
    before: &Result<Position, String>,
    after: Option<&Result<Position, String>>,
    copy: Option<&Result<Position, String>>,
) -> SequenceState {
    let before = match before {
        Ok(before) => before,
        Err(why) => return SequenceState::CouldNotLook(why.clone()),
    };
    let bad = match copy {
        Some(Ok(copy)) if !behind(copy.last, before.last, before.increment) => {
            return SequenceState::NotBehind;
        }
        Some(Ok(_)) => SequenceState::Behind,
        Some(Err(why)) => return SequenceState::CouldNotLook(why.clone()),
        None => SequenceState::Absent,
    };
    // Behind or absent: that is the copy's fault only if production itself did not go back or drop it
    // meanwhile.
    match after {
        Some(Ok(after)) if after.filenode != before.filenode => {
            SequenceState::CouldNotLook("restarted".into())
        }
        Some(Ok(after)) if after.cycles => SequenceState::CouldNotLook("may have cycled".into()),
        Some(Ok(after)) if behind(after.last, before.last, before.increment) => {
            SequenceState::CouldNotLook("set back in production meanwhile".into())
        }
        Some(Ok(_)) => bad,
        Some(Err(why)) => SequenceState::CouldNotLook(why.clone()),
        None => SequenceState::CouldNotLook("dropped in production meanwhile".into()),
    }
}

/// Whether `this` would hand out a value that `that` has handed out already.
fn behind(this: Option<i64>, that: Option<i64>, increment: i64) -> bool {
    match (this, that) {
        (_, None) => false,
        (None, Some(_)) => true,
        (Some(this), Some(that)) if increment < 0 => this > that,
        (Some(this), Some(that)) => this < that,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(last: i64, increment: i64) -> Result<Position, String> {
        Ok(Position {
            filenode: "1".into(),
            increment,
            cycles: false,
            last: Some(last),
        })
    }

    #[test]
    fn a_copy_that_logged_ahead_is_not_behind_and_one_that_lost_values_is() {
        assert_eq!(
            state(&at(1, 1), Some(&at(2, 1)), Some(&at(33, 1))),
            SequenceState::NotBehind
        );
        assert_eq!(
            state(&at(40, 1), Some(&at(41, 1)), Some(&at(33, 1))),
            SequenceState::Behind
        );
        assert_eq!(
            state(&at(-5, -1), Some(&at(-6, -1)), Some(&at(-33, -1))),
            SequenceState::NotBehind
        );
        assert_eq!(
            state(&at(-5, -1), Some(&at(-6, -1)), Some(&at(-4, -1))),
            SequenceState::Behind
        );
        assert_eq!(state(&at(1, 1), Some(&at(1, 1)), None), SequenceState::Absent);
    }

    #[test]
    fn a_sequence_that_production_set_back_is_not_judged() {
        assert!(matches!(
            state(&at(40, 1), Some(&at(3, 1)), Some(&at(33, 1))),
            SequenceState::CouldNotLook(_)
        ));
        assert!(matches!(
            state(&at(40, 1), None, None),
            SequenceState::CouldNotLook(_)
        ));
    }
}
