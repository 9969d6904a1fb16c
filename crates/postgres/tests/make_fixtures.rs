//! Makes `tests/fixtures` again: short pieces of what each major version really writes.
//!
//! `PGPROOF_FIXTURES=crates/postgres/tests/fixtures PGPROOF_TEST_POSTGRES_VERSIONS=folder cargo test -p pgproof-postgres
//! --test make_fixtures -- --ignored` writes them there; without the former they are made somewhere else, and thrown
//! away when they have been read. For each version: `pg_control` (its first 512 bytes; the rest is zeros),
//! `wal` (the written beginning of a segment of 1 MiB that ends in a switch), for 15 also `pages` (the first
//! pages of pg_attribute).

mod server;

use std::path::PathBuf;

use postgres::{SegmentIndexer, WalFile};
use server::Server;

const BEFORE: &str = "
CREATE TABLE orders (n int, t text);
CREATE TABLE doomed (n int);
INSERT INTO orders SELECT i, 'order ' || i FROM generate_series(1, 100) i;
VACUUM;
ALTER SYSTEM SET full_page_writes = off;
SELECT pg_reload_conf();
SELECT pg_sleep(0.5);
CHECKPOINT;
SELECT pg_switch_wal();
";

const WORK: &str = "
INSERT INTO orders VALUES (-1, 'one');
UPDATE orders SET t = 'changed' WHERE n <= 10;
BEGIN;
SAVEPOINT a;
INSERT INTO orders VALUES (-2, 'sub');
SAVEPOINT b;
INSERT INTO orders VALUES (-3, 'sub');
ROLLBACK TO b;
COMMIT;
BEGIN;
DELETE FROM orders WHERE n > 50;
ROLLBACK;
BEGIN;
INSERT INTO orders VALUES (-4, 'two-phase');
PREPARE TRANSACTION 'a transfer';
COMMIT PREPARED 'a transfer';
SELECT pg_create_restore_point('before the accident');
DROP TABLE doomed;
DELETE FROM orders;
SELECT pg_logical_emit_message(false, 'pgproof', 'hello');
ALTER SYSTEM SET full_page_writes = on;
SELECT pg_reload_conf();
SELECT pg_sleep(0.5);
CHECKPOINT;
INSERT INTO orders VALUES (-5, 'with an image');
SELECT pg_switch_wal();
";

#[test]
#[ignore = "starts every major version to make test data"]
fn fixtures_are_made_again() {
    let folder =
        PathBuf::from(std::env::var_os("PGPROOF_TEST_POSTGRES_VERSIONS").expect("the other versions"));
    let clients = server::programs().expect("PostgreSQL 15");
    let scratch = tempfile::tempdir().unwrap();
    let fixtures = match std::env::var_os("PGPROOF_FIXTURES") {
        Some(folder) => PathBuf::from(folder),
        None => scratch.path().to_path_buf(),
    };
    for major in 13..=18 {
        let programs = if major == 15 {
            clients.clone()
        } else {
            folder.join(major.to_string()).join("native/bin")
        };
        let settings = "autovacuum = off\nfsync = off\nmax_prepared_transactions = 2\nwal_keep_size = '1GB'\n\
                        bgwriter_lru_maxpages = 0\nwal_level = replica\n";
        let server = Server::init_with(programs, clients.clone(), &["-k", "--wal-segsize=1"], settings);
        server.start();
        server.sql("postgres", BEFORE);
        let before = server.sql("postgres", "SELECT pg_walfile_name(pg_current_wal_insert_lsn())");
        server.sql("postgres", WORK);
        server.stop("fast");

        let target = fixtures.join(major.to_string());
        std::fs::create_dir_all(&target).unwrap();
        let control = std::fs::read(server.data().join("global/pg_control")).unwrap();
        assert!(control[512..].iter().all(|b| *b == 0));
        std::fs::write(target.join("pg_control"), &control[..512]).unwrap();

        // The segment after the switch.
        let WalFile::Segment { timeline, number } = WalFile::parse(&before, 1 << 20).unwrap() else {
            unreachable!()
        };
        let file = WalFile::Segment { timeline, number };
        let segment = std::fs::read(server.wal().join(file.name(1 << 20))).unwrap();
        let index = SegmentIndexer::index(&segment, &file, None).unwrap();
        assert!(index.switched);
        let written = segment.len() - segment.iter().rev().take_while(|b| **b == 0).count();
        eprintln!("{major}: {written} bytes, {} events", index.events.len());
        std::fs::write(target.join("wal"), &segment[..written]).unwrap();
        if major == 15 {
            let mut pages = std::fs::read(server.data().join("base/1/1249")).unwrap();
            pages.truncate(2 * 8192);
            std::fs::write(target.join("pages"), pages).unwrap();
        }
    }
}
