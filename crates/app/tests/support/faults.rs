//! What campaigns of faults share: commands below `strace`, which kills them or fails their system calls at a chosen
//! moment; small disks that can be filled; and what must hold whatever happened.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use repository::{CONDEMNED_WAIT, RecipientKey, Repository, open_store};

use testing::{TestCluster, TestOptions};

use super::{Ended, Random, World, seed};

/// System calls that change something; unknown ones of another architecture are left out.
pub const WRITES: &str = "?write,?pwrite64,?writev,?pwritev,?rename,?renameat,?renameat2,?link,?linkat,?unlink,\
                          ?unlinkat,?mkdir,?mkdirat,?symlink,?symlinkat,?ftruncate,?fallocate,?fsync,?fdatasync,\
                          ?syncfs,?fchmod,?copy_file_range,?sendfile";
/// System calls that read a file or a folder.
pub const READS: &str = "?read,?pread64,?readv,?preadv,?preadv2,?getdents64";

/// A system call that a thread made: its name, and how many of that name the thread had made with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    pub name: String,
    pub nth: usize,
    /// As `strace` shows it.
    pub shown: String,
    /// It names something below the folder that is watched.
    pub ours: bool,
    /// It was made to fail.
    pub injected: bool,
}

impl Call {
    /// It names this file or folder, by itself or by a descriptor.
    pub fn names(&self, path: &Path) -> bool {
        let path = path.display();
        let ends = [format!("<{path}>"), format!("\"{path}\"")];
        ends.iter().any(|end| self.shown.contains(end))
    }

    /// It names something below this folder.
    pub fn names_below(&self, folder: &Path) -> bool {
        self.shown.contains(&format!("{}/", folder.display()))
    }
}

/// A command that can be watched, killed, and made to meet errors.
pub struct Traced<'a> {
    pub world: &'a World,
    /// What is watched.
    pub folder: PathBuf,
    /// The system calls that are looked at: [`WRITES`], [`READS`].
    pub calls: &'static str,
}

impl Traced<'_> {
    /// Runs the command to its end; `inject` is a call and what becomes of it: `signal=SIGKILL`, `error=EIO`.
    /// Counted for each thread, so that several may meet it.
    pub fn run(&self, inject: Option<(&Call, &str)>, arguments: &[&str]) -> (Output, Vec<Call>) {
        let injected = inject.map(|(call, what)| format!("{}:{what}:when={}", call.name, call.nth));
        self.run_with(injected.as_deref(), arguments)
    }

    /// The same with `strace`'s own words: `preadv2:delay_enter=20000`.
    pub fn run_with(&self, inject: Option<&str>, arguments: &[&str]) -> (Output, Vec<Call>) {
        let log = self.log();
        let output = self.command(inject, arguments).output().expect("strace runs");
        let trace = std::fs::read(&log).expect("the trace can be read");
        (output, self.parse(&String::from_utf8_lossy(&trace)))
    }

    fn log(&self) -> PathBuf {
        self.world.scratch().join("trace")
    }

    /// The same, not yet started.
    pub fn command(&self, inject: Option<&str>, arguments: &[&str]) -> Command {
        let log = self.log();
        // The log of the run before belongs to the same account.
        let _ = std::fs::remove_file(&log);
        let log_name = log.display().to_string();
        let traced = format!("trace={}", self.calls);
        let mut options = vec!["-f", "-qq", "-y", "-s", "256", "-o", &log_name, "-e", &traced];
        let injected;
        if let Some(inject) = inject {
            injected = format!("inject={inject}");
            options.extend(["-e", &injected]);
        }
        let mut command = self.world.command_below("strace", &options, arguments);
        command.stdin(Stdio::null());
        command
    }

    /// The calls of a trace, in order. A line that resumes a call that another thread has interrupted tells its end.
    fn parse(&self, trace: &str) -> Vec<Call> {
        let folder = self.folder.display().to_string();
        let mut made: HashMap<(String, String), usize> = HashMap::new();
        let mut open: HashMap<String, usize> = HashMap::new();
        let mut calls: Vec<Call> = Vec::new();
        for line in trace.lines() {
            let Some((process, rest)) = line.split_once(' ') else {
                continue;
            };
            let rest = rest.trim_start();
            let injected = line.contains("(INJECTED)");
            if rest.starts_with("<... ") {
                if let Some(index) = open.remove(process)
                    && let Some(call) = calls.get_mut(index)
                {
                    call.injected |= injected;
                    call.shown.push_str(rest);
                }
                continue;
            }
            let Some((name, arguments)) = rest.split_once('(') else {
                continue;
            };
            let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
            if !name.bytes().all(plain) {
                continue;
            }
            let nth = made.entry((process.to_owned(), name.to_owned())).or_default();
            *nth += 1;
            if line.ends_with("<unfinished ...>") {
                open.insert(process.to_owned(), calls.len());
            }
            calls.push(Call {
                name: name.to_owned(),
                nth: *nth,
                shown: rest.to_owned(),
                ours: arguments.contains(&folder),
                injected,
            });
        }
        calls
    }

    /// Runs the command, which must succeed; all calls that it made.
    pub fn all_calls(&self, arguments: &[&str]) -> Vec<Call> {
        let (output, calls) = self.run(None, arguments);
        assert!(
            output.status.success(),
            "{arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        calls
    }

    /// The same: those that concern the folder.
    pub fn watched(&self, arguments: &[&str]) -> Vec<Call> {
        let calls = self.all_calls(arguments);
        let ours: Vec<Call> = calls.into_iter().filter(|call| call.ours).collect();
        assert!(ours.len() > 3, "{arguments:?} made too few calls: {ours:?}");
        ours
    }
}

impl Ended {
    /// The stable codes of the errors that were told, in their order.
    pub fn codes(&self) -> Vec<&str> {
        let lines = self.stderr.lines();
        lines
            .filter_map(|line| line.strip_prefix("error[")?.split_once(']'))
            .map(|(code, _)| code)
            .collect()
    }

    /// It ended with this exit code, and the first error that it told has this code.
    #[track_caller]
    pub fn failed(self, exit: i32, code: &str) -> Ended {
        assert_eq!(
            (self.code, self.codes().first().copied()),
            (exit, Some(code)),
            "stdout:\n{}\nstderr:\n{}",
            self.stdout,
            self.stderr
        );
        self
    }
}

/// Some of many, in their order: the first, the last, and so many others.
pub fn some_of<'c>(calls: &'c [Call], count: usize, random: &mut Random) -> Vec<&'c Call> {
    let mut chosen: Vec<usize> = vec![0, calls.len().saturating_sub(1)];
    for _ in 0..count {
        chosen.push(random.below(calls.len() as u64) as usize);
    }
    chosen.sort_unstable();
    chosen.dedup();
    chosen.into_iter().filter_map(|index| calls.get(index)).collect()
}

#[track_caller]
pub fn verify_is_clean(world: &World) {
    let verified = world.json(&["verify"]);
    assert_eq!(verified["findings"], serde_json::json!([]), "{verified}");
}

/// Nothing is pushed or fetched ahead: each command does its own work.
pub fn nothing_ahead(world: &World) {
    let path = world.scratch().join("pgproof.toml");
    let mut text = std::fs::read_to_string(&path).expect("the configuration");
    if !text.contains("push_ahead") {
        text.push_str("\n[cluster.main.archive]\npush_ahead = 0\nprefetch = \"0 MB\"\n");
        std::fs::write(&path, text).expect("the configuration");
    }
    // Those who began before end by themselves, seconds after there was nothing more to do.
    wait_until("the end of those that run ahead", || !runs_ahead(world));
}

/// Whether a process of this world's own program pushes or fetches ahead.
fn runs_ahead(world: &World) -> bool {
    let processes = std::fs::read_dir("/proc").expect("/proc").flatten();
    let mut lines = processes.filter_map(|process| std::fs::read(process.path().join("cmdline")).ok());
    lines.any(|line| {
        let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
        words.first() == Some(&world.binary().as_os_str().as_encoded_bytes())
            && words
                .iter()
                .any(|word| matches!(*word, b"push-ahead" | b"fetch-ahead"))
    })
}

/// The same, without decoding: is everything there that anything refers to, and whole by its checksums? Quicker.
#[track_caller]
pub fn nothing_is_missing(world: &World) {
    let verified = world.json(&["verify", "--no-decode"]);
    assert_eq!(verified["findings"], serde_json::json!([]), "{verified}");
}

/// PostgreSQL's own archiving stands still, so that the test alone pushes, and nothing is pushed or fetched ahead.
pub fn hold_archiving(world: &World) {
    nothing_ahead(world);
    // Not in the middle of it.
    world.archive_all();
    let mut session = world.session();
    session
        .execute("alter system set archive_command = ''")
        .expect("archiving is held");
    session.execute("select pg_reload_conf()").expect("reload");
    wait_until("the new archive_command", || {
        let row = session.one("show archive_command").expect("a setting");
        row[0].as_deref().is_none_or(str::is_empty)
    });
    // The archiver has heard of it in the same moment.
    std::thread::sleep(Duration::from_millis(200));
}

/// Makes complete segments that nobody has archived; their paths.
pub fn segments(world: &World, count: usize, random: &mut Random) -> Vec<PathBuf> {
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

/// A table that [`segments`] changes; and nothing runs ahead of what is asked for.
pub fn accounts(world: &World) {
    nothing_ahead(world);
    world
        .session()
        .execute(
            "create table public.accounts (id int primary key, balance bigint not null, filler text);
             insert into public.accounts select n, 0, md5(n::text) from generate_series(1, 20000) n;",
        )
        .expect("tables");
}

/// Every file below a folder and what it holds; `keep` says of a path below the folder whether it counts.
pub fn contents(folder: &Path, keep: impl Fn(&str) -> bool) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(&next).expect("folder").flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let relative = path.strip_prefix(folder).expect("below").to_owned();
                if keep(&relative.to_string_lossy()) {
                    found.insert(relative, std::fs::read(&path).expect("file"));
                }
            }
        }
    }
    found
}

/// Five backups with their WAL, of which two are to stay, and packs that nothing has referred to for longer than a
/// run can live: everything that an expiry deletes.
pub fn expirable(world: &World) {
    for round in 0..5 {
        world
            .session()
            .execute(&format!(
                "update public.accounts set balance = balance + 1, filler = md5(filler) where id % 5 = {round}"
            ))
            .expect("load");
        // Full ones: their packs are their own.
        world.json(&["backup", "--full"]);
        world.archive_all();
    }
    let all = world.json(&["list"]);
    let oldest = all["backups"][0]["backup"].as_str().expect("a name").to_owned();
    let key = std::fs::read_to_string(world.scratch().join("local.key")).expect("the key");
    let key = RecipientKey::from_key_file_text(&key).expect("the key");
    let store = open_store(&format!("file://{}", world.repository().display())).expect("the store");
    let cluster = Repository::open(store, &key)
        .expect("the repository")
        .cluster("main")
        .expect("the cluster");
    let now = Timestamp::now();
    cluster
        .remove_record(oldest.parse().expect("a name"), now)
        .expect("removed");
    let long_ago = now - CONDEMNED_WAIT - SignedDuration::from_mins(1);
    let collected = cluster.collect(long_ago, CONDEMNED_WAIT).expect("condemned");
    assert!(collected.condemned > 0, "{collected:?}");
    super::give_to_account(&world.repository());
    super::retain(world, "keep_last = 2");
}

/// What is kept of the cluster: everything but statements of who did what.
pub fn kept_objects(world: &World) -> BTreeMap<PathBuf, Vec<u8>> {
    let kept = ["backups", "packs", "wal"].map(|part| format!("clusters/main/{part}/"));
    contents(&world.repository(), |path| {
        kept.iter().any(|part| path.starts_with(part.as_str()))
    })
}

/// A copy of a folder with everything that belongs to its files, in place of what is there.
pub fn copy_folder(from: &Path, to: &Path) {
    if to.exists() {
        std::fs::remove_dir_all(to).expect("removed");
    }
    let copied = Command::new("cp").arg("-a").arg(from).arg(to).status();
    assert!(copied.expect("cp runs").success());
}

/// How many files an interrupted creation has left in the repository.
pub fn left_in_tmp(world: &World) -> usize {
    let entries = std::fs::read_dir(world.repository().join("tmp"))
        .into_iter()
        .flatten();
    let others = entries.flatten().filter(|entry| entry.file_name() != "reserve");
    others.count()
}

/// Reproducible by the seed, which is printed.
pub fn random() -> Random {
    let seed = seed();
    println!("seed {seed}");
    Random(seed)
}

/// A protected cluster with small segments, which keeps its WAL.
pub fn small_segments(test: &str) -> Option<TestOptions> {
    let mut options = World::options(testing::programs_or_skip(test)?);
    options.wal_segment_size = Some(1 << 20);
    options.settings.push(("wal_keep_size".into(), "500MB".into()));
    options.settings.push(("autovacuum".into(), "off".into()));
    Some(options)
}

/// The same, running, with a table that [`segments`] changes.
pub fn small_world(test: &str) -> Option<World> {
    let world =
        World::protect(TestCluster::start(&small_segments(test)?).expect("the throw-away cluster starts"));
    accounts(&world);
    Some(world)
}

/// A command that is watched at what it does with a folder.
pub fn traced<'a>(world: &'a World, folder: &Path, calls: &'static str) -> Traced<'a> {
    Traced {
        world,
        folder: folder.to_owned(),
        calls,
    }
}

/// A path's last part.
pub fn file_name(path: &Path) -> String {
    path.file_name().expect("a name").to_string_lossy().into_owned()
}

/// The backups' names, in the order of `list`.
pub fn backups(world: &World) -> Vec<String> {
    let listed = world.json(&["list"]);
    let all = listed["backups"].as_array().expect("backups").iter();
    all.map(|backup| backup["backup"].as_str().expect("a name").to_owned())
        .collect()
}

/// Segments in the repository, by the names of its files alone.
pub fn stored_segments(world: &World) -> BTreeSet<String> {
    let all = contents(&world.repository(), |path| path.contains("/wal/"));
    let names = all.keys().map(|path| file_name(path));
    names
        .filter(|name| name.len() == 57)
        .map(|name| name[..24].to_owned())
        .collect()
}

/// A file system of its own, small enough to be filled. Taken away when dropped, whatever uses it.
pub struct SmallDisk {
    path: PathBuf,
}

impl SmallDisk {
    /// Makes the folder, which then belongs to the account that PostgreSQL runs as, and mounts a file system of so many
    /// megabytes there. `None`, and a loud line, where that is not allowed: then `strace` alone shows what a full disk
    /// does, in the tests that fail single calls.
    pub fn mount(test: &str, path: &Path, megabytes: u64) -> Option<SmallDisk> {
        let (uid, gid) = testing::account().expect("an account");
        std::fs::create_dir(path).expect("a folder");
        let options = format!("size={megabytes}m,mode=0700,uid={uid},gid={gid}");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &options, "pgproof-test"])
            .arg(path)
            .output();
        match mounted {
            Ok(output) if output.status.success() => Some(SmallDisk {
                path: path.to_owned(),
            }),
            Ok(output) => {
                let why = String::from_utf8_lossy(&output.stderr);
                eprintln!("SKIPPED: {test} needs to mount a tmpfs: {}", why.trim());
                None
            }
            Err(error) => {
                eprintln!("SKIPPED: {test} needs to mount a tmpfs: {error}");
                None
            }
        }
    }

    pub fn resize(&self, megabytes: u64) {
        let options = format!("remount,size={megabytes}m");
        let resized = Command::new("mount")
            .args(["-o", &options])
            .arg(&self.path)
            .status();
        assert!(resized.expect("mount runs").success());
    }

    pub fn free_bytes(&self) -> u64 {
        let status = rustix::fs::statvfs(&self.path).expect("statvfs");
        status.f_bavail * status.f_frsize
    }

    /// Takes all but so many bytes; the file that does.
    pub fn fill(&self, leave_bytes: u64) -> PathBuf {
        self.fill_with("ballast", leave_bytes)
    }

    /// The same by a file of this name.
    pub fn fill_with(&self, name: &str, leave_bytes: u64) -> PathBuf {
        let path = self.path.join(name);
        let file = std::fs::File::create(&path).expect("ballast");
        let mut offset = 0;
        // Somebody may be taking room at the same time.
        while let length @ 1.. = self.free_bytes().saturating_sub(leave_bytes) {
            match rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), offset, length) {
                Ok(()) => offset += length,
                Err(rustix::io::Errno::NOSPC) => {}
                Err(error) => panic!("ballast: {error}"),
            }
        }
        path
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.path).status();
    }
}

/// Asks until the answer is yes.
#[track_caller]
pub fn wait_until(what: &str, mut answer: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !answer() {
        assert!(Instant::now() < end, "{what} did not come to pass");
        std::thread::sleep(Duration::from_millis(50));
    }
}
