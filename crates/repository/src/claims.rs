//! Who may push a timeline's WAL: one writer for each (system identifier, timeline).
//!
//! A clone of a cluster archives under the same identifier and timeline as its original; without a claim it
//! could stop the original's archiver or mix its WAL into the archive. Invariants: the statement with the
//! highest number holds; a claim is only ever replaced by an explicit take-over.

use diagnostic::{Error, Result};
use jiff::Timestamp;
use postgres::{SystemIdentifier, TimelineId};
use serde::{Deserialize, Serialize};

use crate::actions::ActionBy;
use crate::container::Kind;
use crate::repository::ClusterRepository;
use crate::store::Put;

/// Who pushes a timeline.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Writer {
    /// What stays the same when a host is restarted and differs from that of a clone, as far as that can be
    /// had.
    pub host_id: String,
    pub data_directory: String,
}

/// A claim on a timeline.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    version: u32,
    pub writer: Writer,
    pub at: Timestamp,
    /// Why it was taken over, if it was.
    pub reason: Option<String>,
    /// Who took it over; earlier versions did not ask.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<ActionBy>,
}

/// A timeline that passed to another writer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TakeOver {
    pub system: SystemIdentifier,
    pub timeline: TimelineId,
    pub claim: Claim,
}

impl ClusterRepository {
    fn claims(&self, system: SystemIdentifier, timeline: TimelineId) -> String {
        format!("{}{}/claims/{}/", self.names().wal(), system.0, timeline.hex8())
    }

    /// Makes sure that this writer may push this timeline; the first one to ask may. Error:
    /// `wal-second-writer`.
    pub fn claim(
        &self,
        system: SystemIdentifier,
        timeline: TimelineId,
        writer: &Writer,
        now: Timestamp,
    ) -> Result<()> {
        loop {
            match self.current_claim(system, timeline)? {
                Some(claim) if claim.writer == *writer => return Ok(()),
                Some(claim) => return Err(second_writer(self, timeline, &claim, writer)),
                None => {
                    let claim = Claim {
                        version: 1,
                        writer: writer.clone(),
                        at: now,
                        reason: None,
                        by: None,
                    };
                    let name = format!("{}{:08}", self.claims(system, timeline), 1);
                    // Created or not, what holds is what is read next.
                    self.put_statement(Kind::Statement, &name, &claim)?;
                }
            }
        }
    }

    /// Makes this writer the only one that may push this timeline. Error: `wal-second-writer` if somebody
    /// else was faster.
    pub fn take_over(
        &self,
        system: SystemIdentifier,
        timeline: TimelineId,
        writer: &Writer,
        reason: &str,
        by: Option<&ActionBy>,
        now: Timestamp,
    ) -> Result<()> {
        let prefix = self.claims(system, timeline);
        let number = self.newest_numbered(&prefix)?.map_or(0, |(number, _)| number);
        let claim = Claim {
            version: 1,
            writer: writer.clone(),
            at: now,
            reason: Some(reason.to_string()),
            by: by.cloned(),
        };
        let put = self.put_statement(Kind::Statement, &format!("{prefix}{:08}", number + 1), &claim)?;
        if put == Put::Created {
            return Ok(());
        }
        self.claim(system, timeline, writer, now)
    }

    /// Every claim that took a timeline over, of all systems, in order of time.
    pub fn take_overs(&self) -> Result<Vec<TakeOver>> {
        let mut take_overs = Vec::new();
        for system in self.list_systems()? {
            let prefix = format!("{}{}/claims/", self.names().wal(), system.0);
            for object in self.store().list(&prefix)? {
                let timeline = object
                    .name
                    .strip_prefix(&prefix)
                    .and_then(|rest| u32::from_str_radix(rest.split('/').next()?, 16).ok());
                let Some(timeline) = timeline.map(TimelineId) else {
                    continue;
                };
                if let Some(claim) = self.get_statement::<Claim>(Kind::Statement, &object.name)?
                    && claim.reason.is_some()
                {
                    take_overs.push(TakeOver {
                        system,
                        timeline,
                        claim,
                    });
                }
            }
        }
        take_overs.sort_by_key(|take_over| take_over.claim.at);
        Ok(take_overs)
    }

    /// The claim that holds.
    pub fn current_claim(&self, system: SystemIdentifier, timeline: TimelineId) -> Result<Option<Claim>> {
        match self.newest_numbered(&self.claims(system, timeline))? {
            Some((_, name)) => self.get_statement(Kind::Statement, &name),
            None => Ok(None),
        }
    }
}

fn second_writer(cluster: &ClusterRepository, timeline: TimelineId, claim: &Claim, writer: &Writer) -> Error {
    let name = cluster.name();
    let message = format!("another server archives timeline {timeline} of cluster \"{name}\" already");
    Error::new("wal-second-writer", message)
        .detail(format!(
            "It is the one in \"{}\" on host {}, since {}; this is the one in \"{}\" on host {}. Nothing was \
             stored.",
            claim.writer.data_directory,
            claim.writer.host_id,
            claim.at,
            writer.data_directory,
            writer.host_id
        ))
        .hint(format!(
            "If this is a copy, turn its archive_mode off. If it has replaced the other one for good, run \
             `pgproof wal take-over --cluster {name}` here."
        ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repository::tests::{now, repository};

    #[test]
    fn a_second_writer_is_refused_until_it_takes_over() {
        let (_directory, _key, repository) = repository();
        let cluster = repository.cluster("main").unwrap();
        let (system, timeline) = (SystemIdentifier(7), TimelineId(1));
        let writer = |host: &str| Writer {
            host_id: host.into(),
            data_directory: "/srv/main".into(),
        };
        assert_eq!(cluster.current_claim(system, timeline).unwrap(), None);
        cluster.claim(system, timeline, &writer("a"), now()).unwrap();
        cluster.claim(system, timeline, &writer("a"), now()).unwrap();
        assert_eq!(
            cluster
                .claim(system, timeline, &writer("b"), now())
                .unwrap_err()
                .code(),
            "wal-second-writer"
        );
        // Another timeline is another claim.
        cluster.claim(system, TimelineId(2), &writer("b"), now()).unwrap();
        cluster
            .take_over(system, timeline, &writer("b"), "failover", None, now())
            .unwrap();
        cluster.claim(system, timeline, &writer("b"), now()).unwrap();
        assert_eq!(
            cluster
                .claim(system, timeline, &writer("a"), now())
                .unwrap_err()
                .code(),
            "wal-second-writer"
        );
        let claim = cluster.current_claim(system, timeline).unwrap().unwrap();
        assert_eq!(
            (&claim.writer, claim.reason.as_deref()),
            (&writer("b"), Some("failover"))
        );
        let taken = TakeOver {
            system,
            timeline,
            claim,
        };
        assert_eq!(cluster.take_overs().unwrap(), [taken]);
    }

    #[test]
    fn of_many_writers_at_once_one_gets_the_timeline() {
        let (_directory, _key, repository) = repository();
        let cluster = repository.cluster("main").unwrap();
        let winners = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|host: u32| {
                    let cluster = cluster.clone();
                    scope.spawn(move || {
                        let writer = Writer {
                            host_id: host.to_string(),
                            data_directory: "/srv".into(),
                        };
                        cluster
                            .claim(SystemIdentifier(7), TimelineId(1), &writer, now())
                            .is_ok()
                    })
                })
                .collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap())
                .filter(|won| *won)
                .count()
        });
        assert_eq!(winners, 1);
    }
}
