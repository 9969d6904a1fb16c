//! A load like pgbench's, over ordinary sessions: transfers between accounts, a ledger that grows and is
//! trimmed, and now and then a transaction that is rolled back.
//!
//! Invariant that checks may rely on: within each committed state, the sum over `workload.account.balance`
//! equals the sum over `workload.ledger.amount` plus `workload.trimmed.amount`.

use cluster::session::sqlstate;
use cluster::{ConnectOptions, Session};
use diagnostic::{Error, Result};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const ACCOUNTS: u64 = 200;
const ERRORS_KEPT: usize = 5;

const SCHEMA: &str = "\
CREATE SCHEMA IF NOT EXISTS workload;
CREATE TABLE IF NOT EXISTS workload.account (id int PRIMARY KEY, balance bigint NOT NULL, note text);
CREATE TABLE IF NOT EXISTS workload.ledger (id bigserial PRIMARY KEY, account int NOT NULL,
    amount bigint NOT NULL, at timestamptz NOT NULL DEFAULT clock_timestamp(), filler text);
CREATE INDEX IF NOT EXISTS ledger_account ON workload.ledger (account);
CREATE TABLE IF NOT EXISTS workload.trimmed (client int PRIMARY KEY, amount bigint NOT NULL);";

/// A running load.
pub struct Workload {
    stop: Arc<AtomicBool>,
    clients: Vec<JoinHandle<WorkloadStatistics>>,
    started: Instant,
}

/// What the load did. Rows of transactions that were rolled back are not counted.
#[derive(Debug, Clone, Default)]
pub struct WorkloadStatistics {
    pub inserts: u64,
    pub updates: u64,
    pub deletes: u64,
    pub commits: u64,
    pub aborts: u64,
    /// The first few, as text.
    pub errors: Vec<String>,
    pub elapsed: Duration,
}

impl Workload {
    /// Makes the tables where they are missing, and starts `clients` threads.
    pub fn start(conninfo: &str, clients: usize) -> Result<Workload> {
        let mut session = Session::connect(conninfo)?;
        session.execute(SCHEMA)?;
        session.execute(&format!(
            "INSERT INTO workload.account SELECT i, 0, repeat('x', 60) FROM generate_series(1, {ACCOUNTS}) i \
             ON CONFLICT DO NOTHING; \
             INSERT INTO workload.trimmed SELECT i, 0 FROM generate_series(0, {clients}) i \
             ON CONFLICT DO NOTHING"
        ))?;
        let stop = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::with_capacity(clients);
        for client in 0..clients {
            let options = ConnectOptions {
                application_name: "workload".into(),
                ..ConnectOptions::default()
            };
            let session = Session::connect_with(conninfo, &options)?;
            let stop = Arc::clone(&stop);
            threads.push(std::thread::spawn(move || run(session, client, &stop)));
        }
        Ok(Workload {
            stop,
            clients: threads,
            started: Instant::now(),
        })
    }

    /// Ends the load and tells what it did.
    pub fn stop(mut self) -> Result<WorkloadStatistics> {
        self.stop.store(true, Ordering::Relaxed);
        let mut total = WorkloadStatistics::default();
        for client in self.clients.drain(..) {
            let part = client
                .join()
                .map_err(|_| Error::new("workload", "a client of the load panicked"))?;
            total.inserts += part.inserts;
            total.updates += part.updates;
            total.deletes += part.deletes;
            total.commits += part.commits;
            total.aborts += part.aborts;
            total.errors.extend(part.errors);
        }
        total.elapsed = self.started.elapsed();
        Ok(total)
    }
}

impl Drop for Workload {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for client in self.clients.drain(..) {
            let _ = client.join();
        }
    }
}

fn run(mut session: Session, client: usize, stop: &AtomicBool) -> WorkloadStatistics {
    let mut statistics = WorkloadStatistics::default();
    // Any sequence will do; each client has its own (xorshift).
    let mut state = 0x9E37_79B9_7F4A_7C15_u64 ^ ((client as u64 + 1) << 32);
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    while !stop.load(Ordering::Relaxed) {
        let (account, amount, dice) = (random() % ACCOUNTS + 1, random() % 1000, random() % 20);
        let rolled_back = dice == 0;
        let trims = dice == 1;
        let transfer = format!(
            "UPDATE workload.account SET balance = balance + {amount} WHERE id = {account}; \
             INSERT INTO workload.ledger (account, amount, filler) \
             VALUES ({account}, {amount}, md5(random()::text))"
        );
        // Oldest first and skipping what another client trims, so that clients neither collide nor wait.
        let trim = format!(
            "WITH gone AS (DELETE FROM workload.ledger WHERE id IN \
               (SELECT id FROM workload.ledger ORDER BY id LIMIT 10 FOR UPDATE SKIP LOCKED) \
               RETURNING amount) \
             UPDATE workload.trimmed SET amount = amount + coalesce((SELECT sum(amount) FROM gone), 0) \
              WHERE client = {client}"
        );
        let end = if rolled_back { "ROLLBACK" } else { "COMMIT" };
        let body = if trims { &trim } else { &transfer };
        match session.execute(&format!("BEGIN; {body}; {end}")) {
            Ok(_) if rolled_back => statistics.aborts += 1,
            Ok(_) if trims => {
                statistics.deletes += 10;
                statistics.updates += 1;
                statistics.commits += 1;
            }
            Ok(_) => {
                statistics.inserts += 1;
                statistics.updates += 1;
                statistics.commits += 1;
            }
            Err(error) => {
                if statistics.errors.len() < ERRORS_KEPT {
                    statistics.errors.push(error.render());
                }
                // Without an SQLSTATE the connection is gone: the server was stopped.
                if sqlstate(&error).is_none() || session.execute("ROLLBACK").is_err() {
                    break;
                }
            }
        }
    }
    statistics
}
