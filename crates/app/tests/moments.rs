//! Twenty random moments of a loaded run are restored, by time, LSN and transaction, and hold exactly the rows that stood
//! there at that moment.

mod support;

use cluster::Session;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;
use support::{Random, World, seed};

/// How many moments are restored.
const MOMENTS: usize = 20;
/// The load holds it shared in each transaction; a moment holds it alone, so that nothing is half done there.
const LOCK: u64 = 4711;

/// One moment: how to ask for it, and what stood there.
#[derive(Debug)]
struct Moment {
    arguments: [String; 2],
    digests: BTreeMap<String, String>,
}

#[test]
fn a_restore_to_any_moment_holds_exactly_its_rows() {
    let Some(world) = World::start("a_restore_to_any_moment_holds_exactly_its_rows") else {
        return;
    };
    create_tables(&world);
    world.json(&["backup"]);
    let load = Load::start(&world, 3);
    let seed = seed();
    println!("seed {seed}");
    let mut random = Random(seed);
    let mut moments = Vec::new();
    for number in 0..MOMENTS {
        std::thread::sleep(Duration::from_millis(50 + random.below(400)));
        moments.push(take_moment(&world, number));
        if number == MOMENTS / 2 {
            // A second, incremental backup in the middle: half of the moments start from it.
            world.json(&["backup"]);
        }
    }
    std::thread::sleep(Duration::from_millis(300));
    load.stop();
    world.archive_all();

    for (number, moment) in moments.iter().enumerate() {
        let into = world.scratch().join(format!("moment{number}"));
        let [option, value] = &moment.arguments;
        world.json(&["restore", option, value, "--into", &into.display().to_string()]);
        let restored = world.start_restored(&into);
        let found = testing::row_digest(&restored.conninfo()).expect("row digest of the restored server");
        restored.stop();
        assert_eq!(
            found, moment.digests,
            "moment {number}, {option} {value} (seed {seed})"
        );
        std::fs::remove_dir_all(&into).expect("the copy can be removed");
    }
}

fn create_tables(world: &World) {
    world
        .session()
        .execute(
            "create table public.accounts (id int primary key, balance bigint not null, filler text);
             insert into public.accounts select n, 0, md5(n::text) from generate_series(1, 20000) n;
             create table public.journal (id bigint generated always as identity primary key, what text, at timestamptz);
             create table public.moments (number int primary key, at timestamptz default clock_timestamp());",
        )
        .expect("tables");
}

/// Stands still for a moment: by time, LSN or transaction in turn.
fn take_moment(world: &World, number: usize) -> Moment {
    let mut session = world.session();
    session
        .execute(&format!("select pg_advisory_lock({LOCK})"))
        .expect("lock");
    let marker = format!("insert into public.moments (number) values ({number}) returning xmin::text");
    let xid = session.one(&marker).expect("marker")[0].clone().expect("xid");
    let digests = testing::row_digest(&world.production.conninfo()).expect("row digest of production");
    std::thread::sleep(Duration::from_millis(5));
    let column = match number % 3 {
        0 => "to_char(clock_timestamp() at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS.US') || ' UTC'",
        1 => "pg_current_wal_insert_lsn()::text",
        _ => "null::text",
    };
    let value = session.one(&format!("select {column}")).expect("position")[0].clone();
    std::thread::sleep(Duration::from_millis(5));
    session
        .execute(&format!("select pg_advisory_unlock({LOCK})"))
        .expect("unlock");
    let arguments = match value {
        Some(value) => ["--to".to_owned(), value],
        None => ["--to-xid".to_owned(), xid],
    };
    Moment { arguments, digests }
}

/// Concurrent writers.
struct Load {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    fn start(world: &World, clients: u64) -> Load {
        let stop = Arc::new(AtomicBool::new(false));
        let threads = (0..clients)
            .map(|client| {
                let (stop, conninfo) = (stop.clone(), world.production.conninfo());
                std::thread::spawn(move || {
                    let mut session = Session::connect(&conninfo).expect("the load connects");
                    let mut random = Random(client + 1);
                    while !stop.load(Ordering::Relaxed) {
                        let (one, amount) = (1 + random.below(20_000), random.below(1000));
                        let change = match random.below(10) {
                            0 => format!("delete from public.journal where id in (select min(id) from public.journal where id % {clients} = {client})"),
                            1 => "savepoint a; insert into public.journal (what) values ('undone'); rollback to a; insert into public.journal (what) values ('kept'); release a".to_owned(),
                            _ => format!("update public.accounts set balance = balance + {amount} where id = {one}; insert into public.journal (what, at) values ('add {amount}', now())"),
                        };
                        let end = if random.below(12) == 0 { "rollback" } else { "commit" };
                        session
                            .execute(&format!("begin; select pg_advisory_xact_lock_shared({LOCK}); {change}; {end}"))
                            .expect("the load works");
                        std::thread::sleep(Duration::from_millis(random.below(4)));
                    }
                })
            })
            .collect();
        Load { stop, threads }
    }

    fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().expect("the load did not fail");
        }
    }
}
