//! Commands that are killed while they write: a rerun puts everything right, and nothing that was acknowledged is lost.
//!
//! `strace` sends SIGKILL as a chosen system call begins, so that each kill falls where it was meant to fall:
//! after the first call that writes to the repository or the restored directory, and before the last. The
//! calls to choose from are taken from one run that is left alone. `PGPROOF_TEST_SEED` repeats a campaign.

mod support;

use std::collections::{BTreeMap, HashMap};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use support::{Random, World, seed};

/// Kills in each campaign, and in the long ones.
const KILLS: usize = 20;
const KILLS_LONG: usize = 250;
/// System calls that change something; unknown ones of another architecture are left out.
const WRITES: &str = "?write,?pwrite64,?writev,?pwritev,?rename,?renameat,?renameat2,?link,?linkat,?unlink,\
                      ?unlinkat,?mkdir,?mkdirat,?symlink,?symlinkat,?ftruncate,?fallocate,?fsync,?fdatasync,\
                      ?syncfs,?fchmod,?copy_file_range,?sendfile";

/// A system call that a thread made: its name, and how many of that name the thread had made with it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Call {
    name: String,
    nth: usize,
    /// It names something below the folder that is watched.
    ours: bool,
}

/// When a command was killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kill {
    /// Not at all.
    Missed,
    /// Before it had written anything.
    Before,
    /// After its first write and before its last.
    Between,
}

/// How many kills of a campaign there were, and where.
#[derive(Debug, Default)]
struct Tally {
    kills: usize,
    between: usize,
    missed: usize,
}

impl Tally {
    fn count(&mut self, kill: Kill) {
        match kill {
            Kill::Missed => self.missed += 1,
            Kill::Before => self.kills += 1,
            Kill::Between => {
                self.kills += 1;
                self.between += 1;
            }
        }
        let (kills, missed) = (self.kills, self.missed);
        assert!(
            missed < 20 + 2 * kills,
            "{missed} attempts to kill were missed, {kills} hit"
        );
    }

    /// Says how it went, and that enough of the kills fell between the first and the last write.
    fn judge(&self, seed: u64) {
        println!("{self:?} (seed {seed})");
        assert!(self.between * 5 >= self.kills * 4, "{self:?} (seed {seed})");
    }
}

/// A command that can be killed while it writes below a folder.
struct Victim<'a> {
    world: &'a World,
    folder: PathBuf,
}

impl Victim<'_> {
    fn traced(&self, inject: Option<&Call>, arguments: &[&str]) -> (Output, Vec<Call>) {
        let log = self.world.scratch().join("trace");
        // The log of the run before belongs to the same account.
        let _ = std::fs::remove_file(&log);
        let log_name = log.display().to_string();
        let traced = format!("trace={WRITES}");
        let mut options = vec!["-f", "-qq", "-y", "-o", &log_name, "-e", &traced];
        let injected;
        if let Some(call) = inject {
            injected = format!("inject={}:signal=SIGKILL:when={}", call.name, call.nth);
            options.extend(["-e", &injected]);
        }
        let output = self
            .world
            .command_below("strace", &options, arguments)
            .stdin(Stdio::null())
            .output()
            .expect("strace runs");
        let calls = self.calls(&std::fs::read_to_string(&log).expect("the trace can be read"));
        (output, calls)
    }

    /// The calls of a trace, in order.
    fn calls(&self, trace: &str) -> Vec<Call> {
        let folder = self.folder.display().to_string();
        let mut made: HashMap<(String, String), usize> = HashMap::new();
        let mut calls = Vec::new();
        for line in trace.lines() {
            let Some((process, rest)) = line.split_once(' ') else {
                continue;
            };
            let Some((name, arguments)) = rest.trim_start().split_once('(') else {
                continue;
            };
            if !name
                .bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
            {
                continue;
            }
            let nth = made.entry((process.to_owned(), name.to_owned())).or_default();
            *nth += 1;
            calls.push(Call {
                name: name.to_owned(),
                nth: *nth,
                ours: arguments.contains(&folder),
            });
        }
        calls
    }

    /// Runs the command to its end; its calls that write below the folder. They are what can be killed at.
    fn watched(&self, arguments: &[&str]) -> Vec<Call> {
        let (output, calls) = self.traced(None, arguments);
        assert!(
            output.status.success(),
            "{arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        let ours: Vec<Call> = calls.into_iter().filter(|call| call.ours).collect();
        assert!(ours.len() > 3, "{arguments:?} made too few calls: {ours:?}");
        ours
    }

    /// Kills the command at one of these calls, the first one left out. Where the call is not made again
    /// (threads share their work otherwise), the command ends well, and the kill was [`Kill::Missed`].
    fn kill(&self, calls: &[Call], random: &mut Random, arguments: &[&str]) -> Kill {
        let call = &calls[1 + random.below(calls.len() as u64 - 1) as usize];
        let (output, made) = self.traced(Some(call), arguments);
        let kill = match output.status.signal() {
            Some(9) if made.iter().filter(|call| call.ours).count() > 1 => Kill::Between,
            Some(9) => Kill::Before,
            _ => Kill::Missed,
        };
        println!("{} {}: {kill:?}", call.name, call.nth);
        assert!(
            kill != Kill::Missed || output.status.success(),
            "{arguments:?} neither was killed nor succeeded: {:?}\n{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        kill
    }
}

fn world(test: &str) -> Option<World> {
    let world = World::start(test)?;
    world
        .session()
        .execute(
            "create table public.accounts (id int primary key, balance bigint not null, filler text);
             insert into public.accounts select n, 0, md5(n::text) from generate_series(1, 20000) n;",
        )
        .expect("tables");
    Some(world)
}

fn verify_is_clean(world: &World) {
    let verified = world.json(&["verify"]);
    assert_eq!(verified["findings"], serde_json::json!([]), "{verified}");
}

/// PostgreSQL's own archiving stands still, so that the test alone pushes, and nothing is pushed or fetched ahead: each
/// command does its own work.
fn hold_archiving(world: &World) {
    let path = world.scratch().join("pgproof.toml");
    let mut text = std::fs::read_to_string(&path).expect("the configuration");
    text.push_str("\n[cluster.main.archive]\npush_ahead = 0\nprefetch = \"0 MB\"\n");
    std::fs::write(&path, text).expect("the configuration");
    let mut session = world.session();
    session
        .execute("alter system set archive_command = ''")
        .expect("archiving is held");
    session.execute("select pg_reload_conf()").expect("reload");
}

/// Makes complete segments that nobody has archived; their paths.
fn segments(world: &World, count: usize, random: &mut Random) -> Vec<PathBuf> {
    let mut session = world.session();
    let mut paths = Vec::new();
    for _ in 0..count {
        let from = 1 + random.below(19_000);
        session
            .execute(&format!(
                "update public.accounts set balance = balance + 1 where id between {from} and {}",
                from + 200
            ))
            .expect("load");
        let name = session
            .one("select pg_walfile_name(pg_current_wal_lsn())")
            .expect("the segment's name")[0]
            .clone()
            .expect("a name");
        session.one("select pg_switch_wal()").expect("switch");
        paths.push(world.production.data_directory().join("pg_wal").join(name));
    }
    paths
}

fn killed_backups(test: &str, kills: usize) {
    let Some(world) = world(test) else { return };
    let seed = seed();
    let mut random = Random(seed);
    println!("seed {seed}");
    let victim = Victim {
        world: &world,
        folder: world.repository(),
    };
    let change = || {
        world
            .session()
            .execute("update public.accounts set balance = balance + 1 where id % 7 = 0")
            .expect("load");
    };
    world.json(&["backup"]);
    change();
    let calls = victim.watched(&["backup"]);
    let mut tally = Tally::default();
    while tally.kills < kills {
        change();
        tally.count(victim.kill(&calls, &mut random, &["backup"]));
        if tally.kills % 5 == 4 {
            // Several interrupted runs lie there by now.
            world.json(&["backup"]);
            verify_is_clean(&world);
        }
    }
    world.json(&["backup"]);
    verify_is_clean(&world);
    let expected = testing::row_digest(&world.production.conninfo()).expect("digest");
    world.archive_all();
    let into = world.scratch().join("restored");
    world.json(&["restore", "--to", "latest", "--into", &into.display().to_string()]);
    let restored = world.start_restored(&into);
    let found = testing::row_digest(&restored.conninfo()).expect("digest of the restored server");
    restored.stop();
    assert_eq!(found, expected, "seed {seed}");
    tally.judge(seed);
}

fn killed_pushes(test: &str, kills: usize) {
    let Some(world) = world(test) else { return };
    let seed = seed();
    let mut random = Random(seed);
    println!("seed {seed}");
    world.json(&["backup"]);
    world.archive_all();
    hold_archiving(&world);
    let victim = Victim {
        world: &world,
        folder: world.repository(),
    };
    let mut tally = Tally::default();
    let mut acknowledged: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    let mut calls = None;
    while tally.kills < kills {
        for path in segments(&world, 10, &mut random) {
            let shown = path.display().to_string();
            let name = path.file_name().expect("a name").to_string_lossy().into_owned();
            let arguments = ["wal", "push", &shown];
            match &calls {
                None => calls = Some(victim.watched(&arguments)),
                Some(calls) => {
                    tally.count(victim.kill(calls, &mut random, &arguments));
                    world.run(&arguments).ok();
                }
            }
            acknowledged.insert(name, std::fs::read(&path).expect("the segment"));
        }
        // Here the server may recycle what it sees archived; all of it was pushed.
        for (name, bytes) in &acknowledged {
            let into = world.scratch().join("read-back");
            let _ = std::fs::remove_file(&into);
            world.run(&["wal", "get", name, &into.display().to_string()]).ok();
            assert!(
                std::fs::read(&into).expect("the segment") == *bytes,
                "{name} reads back otherwise (seed {seed})"
            );
        }
    }
    verify_is_clean(&world);
    tally.judge(seed);
}

fn killed_gets(test: &str, kills: usize) {
    let Some(world) = world(test) else { return };
    let seed = seed();
    let mut random = Random(seed);
    println!("seed {seed}");
    hold_archiving(&world);
    let path = segments(&world, 1, &mut random).remove(0);
    let bytes = std::fs::read(&path).expect("the segment");
    world.run(&["wal", "push", &path.display().to_string()]).ok();
    let name = path.file_name().expect("a name").to_string_lossy().into_owned();
    let folder = world.scratch().join("pg_wal");
    std::fs::create_dir(&folder).expect("a folder");
    support::give_to_account(&folder);
    let victim = Victim {
        world: &world,
        folder: folder.clone(),
    };
    let into = folder.join("RECOVERYXLOG");
    let shown = into.display().to_string();
    let arguments = ["wal", "get", &name, &shown];
    let calls = victim.watched(&arguments);
    let mut tally = Tally::default();
    while tally.kills < kills {
        std::fs::remove_file(&into).expect("it was placed");
        tally.count(victim.kill(&calls, &mut random, &arguments));
        if let Ok(placed) = std::fs::read(&into) {
            assert!(
                placed == bytes,
                "a partial segment under its final name (seed {seed})"
            );
        }
        world.run(&arguments).ok();
        assert!(std::fs::read(&into).expect("placed") == bytes, "seed {seed}");
    }
    let left = std::fs::read_dir(&folder).expect("folder").count();
    assert_eq!(
        left, 1,
        "killed runs leave something behind for ever (seed {seed})"
    );
    tally.judge(seed);
}

/// Every file below a folder and what it holds, but for what says when the restore was done.
fn contents(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(&next).expect("folder").flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let relative = path.strip_prefix(folder).expect("below").to_owned();
                if !relative.to_string_lossy().contains("pgproof") {
                    found.insert(relative, std::fs::read(&path).expect("file"));
                }
            }
        }
    }
    found
}

fn killed_restores(test: &str, kills: usize) {
    let Some(world) = world(test) else { return };
    let seed = seed();
    let mut random = Random(seed);
    println!("seed {seed}");
    world.json(&["backup"]);
    let expected = testing::row_digest(&world.production.conninfo()).expect("digest");
    world.archive_all();
    let into = world.scratch().join("restored");
    let shown = into.display().to_string();
    let arguments = ["restore", "--to", "immediate", "--into", &shown];
    let victim = Victim {
        world: &world,
        folder: into.clone(),
    };
    let calls = victim.watched(&arguments);
    let whole = contents(&into);
    let mut tally = Tally::default();
    while tally.kills < kills {
        std::fs::remove_dir_all(&into).expect("removed");
        let kill = victim.kill(&calls, &mut random, &arguments);
        tally.count(kill);
        if kill == Kill::Missed || into.join("global/pg_control").exists() {
            // `pg_control` is last: with it in place everything else is.
            assert!(
                contents(&into) == whole,
                "a half restored directory can start (seed {seed})"
            );
            continue;
        }
        world.run(&arguments).ok();
        assert!(
            contents(&into) == whole,
            "the rerun restored something else (seed {seed})"
        );
    }
    let restored = world.start_restored(&into);
    let found = testing::row_digest(&restored.conninfo()).expect("digest of the restored server");
    restored.stop();
    assert_eq!(found, expected);
    tally.judge(seed);
}

#[test]
fn backups_that_were_killed_are_put_right_by_the_next() {
    killed_backups("backups_that_were_killed_are_put_right_by_the_next", KILLS);
}

#[test]
fn pushes_that_were_killed_lose_nothing_that_was_acknowledged() {
    killed_pushes(
        "pushes_that_were_killed_lose_nothing_that_was_acknowledged",
        KILLS,
    );
}

#[test]
fn gets_that_were_killed_never_leave_a_partial_segment() {
    killed_gets("gets_that_were_killed_never_leave_a_partial_segment", KILLS);
}

#[test]
fn restores_that_were_killed_cannot_start_until_a_rerun_is_through() {
    killed_restores(
        "restores_that_were_killed_cannot_start_until_a_rerun_is_through",
        KILLS,
    );
}

#[test]
#[ignore = "a campaign of some minutes; ./test --long runs it"]
fn a_thousand_kills_lose_nothing() {
    killed_backups("a_thousand_kills_lose_nothing", KILLS_LONG);
    killed_pushes("a_thousand_kills_lose_nothing", KILLS_LONG);
    killed_gets("a_thousand_kills_lose_nothing", KILLS_LONG);
    killed_restores("a_thousand_kills_lose_nothing", KILLS_LONG);
}
