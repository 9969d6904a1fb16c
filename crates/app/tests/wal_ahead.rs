//! Pushing and fetching ahead, against a real server: what is acknowledged is in the repository whatever is killed, and
//! recovery sees the same WAL.

mod support;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use postgres::{TimelineId, WalFile};
use repository::{ClusterRepository, RecipientKey, Repository, create_store, open_store};
use support::World;

const SEGMENT: u32 = 1 << 20;
const TIMELINE: TimelineId = TimelineId(1);

fn world(test: &str) -> Option<World> {
    let keep = [
        ("wal_keep_size", "1500MB"),
        ("autovacuum", "off"),
        ("checkpoint_timeout", "1h"),
    ];
    let mut options = World::options(testing::programs_or_skip(test)?);
    options.wal_segment_size = Some(SEGMENT);
    let keep = keep.map(|(name, value)| (name.to_owned(), value.to_owned()));
    options.settings.extend(keep);
    Some(World::protect(
        testing::TestCluster::start(&options).expect("the throw-away cluster starts"),
    ))
}

/// Processes of this world's own program whose arguments contain the word.
fn processes(world: &World, word: &str) -> Vec<rustix::process::Pid> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").expect("/proc").flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<i32>().ok())
        else {
            continue;
        };
        let Ok(line) = std::fs::read(entry.path().join("cmdline")) else {
            continue;
        };
        let mut words = line.split(|byte| *byte == 0);
        let ours = words.next() == Some(world.binary().as_os_str().as_encoded_bytes());
        if ours && words.any(|other| other == word.as_bytes()) {
            found.extend(rustix::process::Pid::from_raw(pid));
        }
    }
    found
}

fn archive_status(world: &World, ending: &str) -> BTreeSet<String> {
    let folder = world.production.data_directory().join("pg_wal/archive_status");
    std::fs::read_dir(folder)
        .expect("archive_status")
        .flatten()
        .filter_map(|entry| Some(entry.file_name().to_str()?.strip_suffix(ending)?.to_owned()))
        .collect()
}

/// Names of the segments that the repository has, by its files alone.
fn stored(world: &World) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut folders = vec![world.repository().join("clusters")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if entry.path().is_dir() {
                folders.push(entry.path());
            } else if name.len() == 57 {
                found.insert(name[..24].to_owned());
            }
        }
    }
    found
}

/// What the archiver was told to be safe is in the repository; looked at in this order, so that it must hold at any time.
fn acknowledged_is_stored(world: &World) -> usize {
    let done: BTreeSet<String> = archive_status(world, ".done")
        .into_iter()
        .filter(|name| name.len() == 24)
        .collect();
    let stored = stored(world);
    let lost: Vec<&String> = done.difference(&stored).collect();
    assert!(lost.is_empty(), "acknowledged and not stored: {lost:?}");
    done.len()
}

/// Writes about so many segments, with commits, large records and records across segments.
fn write_segments(world: &World, segments: u64) {
    let mut session = world.session();
    session
        .execute("create table if not exists public.t (id int, filler text)")
        .expect("table");
    let begin = lsn(&mut session);
    let mut round = 0;
    while lsn(&mut session) - begin < segments * u64::from(SEGMENT) {
        round += 1;
        session
            .execute(&format!(
                "insert into public.t select g, md5((g * {round})::text) || md5((g + {round})::text) \
                 from generate_series(1, 4000) g; \
                 select pg_logical_emit_message(false, 'test', repeat('y', {}))",
                (round * 7919) % 300_000
            ))
            .expect("work");
    }
}

fn lsn(session: &mut cluster::Session) -> u64 {
    let row = session.one("select pg_current_wal_lsn() - '0/0'").expect("lsn");
    row[0].as_deref().expect("a value").parse().expect("a number")
}

fn open_repository(world: &World) -> ClusterRepository {
    let key = std::fs::read_to_string(world.scratch().join("local.key")).expect("key");
    let key = RecipientKey::from_key_file_text(&key).expect("key");
    let store = open_store(&format!("file://{}", world.repository().display())).expect("store");
    let repository = Repository::open(store, &key).expect("repository");
    repository.cluster("main").expect("cluster")
}

/// Every segment that is done reads back as it lies in pg_wal, and has the index that pushing one after the other gives.
fn archive_is_as_if_pushed_one_by_one(world: &World) -> usize {
    let archived = open_repository(world);
    let data = world.production.data_directory();
    let system = cluster::read_control_file(data)
        .expect("pg_control")
        .1
        .system_identifier;
    let second = world.scratch().join("one-by-one");
    let key = RecipientKey::generate().expect("key");
    let store = create_store(&format!("file://{}", second.display())).expect("store");
    let now = jiff::Timestamp::now;
    let sequential = Repository::create(store, &key, now()).expect("repository");
    let sequential = sequential.cluster("main").expect("cluster");
    let mut compared = 0;
    for name in archive_status(world, ".done") {
        let Some(WalFile::Segment { number, .. }) = WalFile::parse(&name, SEGMENT) else {
            continue;
        };
        let path = data.join("pg_wal").join(&name);
        let options = backup::PushOptions {
            path: path.clone(),
            data_directory: data.to_path_buf(),
            host_id: "the test".into(),
            acknowledge: 1,
        };
        let copy = backup::Copy {
            name: "second",
            repository: &sequential,
        };
        backup::push(&[copy], &options, now()).expect("push");
        let of = |repository: &ClusterRepository| {
            let object = repository.get_segment(system, TIMELINE, number, SEGMENT);
            let object = object.expect("listing").expect("the segment");
            let mut bytes = Vec::new();
            repository.read_segment(&object, &mut bytes).expect("bytes");
            (bytes, repository.read_index(&object).expect("index"))
        };
        let (bytes, index) = of(&archived);
        assert!(
            bytes == std::fs::read(&path).expect("the file"),
            "{name} reads back otherwise"
        );
        assert_eq!(index, of(&sequential).1, "{name}");
        compared += 1;
    }
    compared
}

/// Random numbers that a failed run can be repeated with.
struct Random(u64);

impl Random {
    fn new() -> Random {
        let seed = std::env::var("PGPROOF_TEST_SEED")
            .ok()
            .and_then(|seed| seed.parse().ok());
        let seed = seed.unwrap_or_else(|| jiff::Timestamp::now().as_microsecond() as u64);
        println!("PGPROOF_TEST_SEED={seed}");
        Random(seed | 1)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

#[test]
fn what_is_acknowledged_is_stored_whatever_is_killed_and_indexes_are_those_of_single_pushes() {
    kill_at_random(
        "what_is_acknowledged_is_stored_whatever_is_killed_and_indexes_are_those_of_single_pushes",
        5,
        1,
    );
}

#[test]
#[ignore = "minutes: the server waits before it starts an archiver again"]
fn a_campaign_of_killing_loses_nothing_that_was_acknowledged() {
    kill_at_random("a_campaign_of_killing_loses_nothing_that_was_acknowledged", 16, 4);
}

/// Kills so many processes that run ahead, and so many that the archiver started, while WAL is written.
fn kill_at_random(test: &str, ahead: u32, asked: u32) {
    let Some(world) = world(test) else {
        return;
    };
    let mut random = Random::new();
    let enough = AtomicBool::new(false);
    let (mut killed_ahead, mut killed_asked) = (0, 0);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            write_segments(&world, 210);
            // Until the campaign is over there is something to push; pg_wal keeps all of it.
            for _ in 0..60 {
                if enough.load(Ordering::Relaxed) {
                    break;
                }
                write_segments(&world, 15);
                std::thread::sleep(Duration::from_millis(500));
            }
        });
        let end = Instant::now() + Duration::from_secs(150);
        while (killed_ahead < ahead || killed_asked < asked) && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(20 + random.below(150)));
            // After the death of the archiver's own child the server waits for seconds before it archives again.
            let archivers = killed_asked < asked && random.below(5) == 0;
            let (word, count) = match archivers {
                true => ("push", &mut killed_asked),
                false => ("push-ahead", &mut killed_ahead),
            };
            for pid in processes(&world, word) {
                *count +=
                    u32::from(rustix::process::kill_process(pid, rustix::process::Signal::KILL).is_ok());
            }
            acknowledged_is_stored(&world);
        }
        enough.store(true, Ordering::Relaxed);
        writer.join().expect("the writer");
    });
    assert!(
        killed_ahead >= ahead && killed_asked >= asked,
        "only {killed_ahead} that ran ahead and {killed_asked} that were asked were killed"
    );
    world.archive_all();
    assert!(acknowledged_is_stored(&world) >= 210);
    assert!(archive_is_as_if_pushed_one_by_one(&world) >= 210);
    assert_eq!(world.run(&["wal", "gaps"]).code, 0);
}

/// `wal push` as the archiver runs it, for the first file that waits.
fn push_first(world: &World) -> (String, support::Ended) {
    let name = archive_status(world, ".ready").pop_first().expect("a file waits");
    let mut command = world.command(&["--json", "wal", "push", &format!("pg_wal/{name}")]);
    let output = command
        .current_dir(world.production.data_directory())
        .output()
        .expect("runs");
    let ended = support::Ended::of(&output);
    (name, ended)
}

fn mark_done(world: &World, name: &str) {
    let folder = world.production.data_directory().join("pg_wal/archive_status");
    std::fs::rename(
        folder.join(format!("{name}.ready")),
        folder.join(format!("{name}.done")),
    )
    .expect("rename");
}

fn wait_for(what: &str, mut met: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !met() {
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The server no longer archives by itself: the test is the archiver.
fn archive_by_hand(world: &World) {
    let mut session = world.session();
    for statement in [
        "alter system set archive_command = 'exit 1'",
        "select pg_reload_conf()",
    ] {
        session.execute(statement).expect(statement);
    }
    wait_for("the reload", || {
        let shown = world.session().one("show archive_command").expect("setting");
        shown[0].as_deref() == Some("exit 1")
    });
    // An archive_command that was running is done.
    wait_for("the archiver rests", || processes(world, "push").is_empty());
}

fn notes(world: &World) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for folder in std::fs::read_dir(world.scratch().join("spool"))
        .into_iter()
        .flatten()
        .flatten()
    {
        for entry in std::fs::read_dir(folder.path()).expect("spool").flatten() {
            if entry.path().extension().is_some_and(|ending| ending == "note") {
                found.push(entry.path());
            }
        }
    }
    found
}

#[test]
fn a_note_answers_at_once_and_never_for_other_content_or_from_a_restored_directory() {
    let Some(world) =
        world("a_note_answers_at_once_and_never_for_other_content_or_from_a_restored_directory")
    else {
        return;
    };
    archive_by_hand(&world);
    write_segments(&world, 12);
    let (name, ended) = push_first(&world);
    assert_eq!(ended.ok().json()["pushed_ahead"], false);
    mark_done(&world, &name);
    wait_for("the process that runs ahead leaves notes", || {
        notes(&world).len() >= 9
    });
    wait_for("it ends by itself", || processes(&world, "push-ahead").is_empty());
    let stored = stored(&world);
    for note in notes(&world) {
        let name = note.file_stem().expect("name").to_string_lossy().into_owned();
        assert!(stored.contains(&name), "{name} is noted and not stored");
    }
    let (name, ended) = push_first(&world);
    assert_eq!(ended.ok().json()["pushed_ahead"], true, "{name}");
    // The archiver may have died before it noticed: it asks again.
    let (again, ended) = push_first(&world);
    assert_eq!(
        (again, ended.ok().json()["pushed_ahead"].clone()),
        (name.clone(), false.into())
    );
    mark_done(&world, &name);

    // Another content under a name that is noted: pushed, and refused, since the archive has the first one.
    let name = archive_status(&world, ".ready")
        .pop_first()
        .expect("a file waits");
    let path = world.production.data_directory().join("pg_wal").join(&name);
    let good = std::fs::read(&path).expect("segment");
    let mut other = good.clone();
    other[SEGMENT as usize - 9000] ^= 1;
    std::fs::write(&path, &other).expect("write");
    let (_, ended) = push_first(&world);
    assert_eq!(ended.code, 1, "{}", ended.stdout);
    assert!(ended.stderr.contains("error[wal-conflict]"), "{}", ended.stderr);
    std::fs::write(&path, &good).expect("write");
    let (_, ended) = push_first(&world);
    ended.ok();
    mark_done(&world, &name);

    // A marked directory may not archive, note or no note.
    let marker = world.production.data_directory().join(backup::RESTORED_MARKER);
    std::fs::write(&marker, "").expect("marker");
    let (_, ended) = push_first(&world);
    assert_eq!(ended.code, 1);
    assert!(
        ended.stderr.contains("error[wal-restored-directory]"),
        "{}",
        ended.stderr
    );
    std::fs::remove_file(&marker).expect("remove");
    let (name, ended) = push_first(&world);
    assert_eq!(ended.ok().json()["pushed_ahead"], true, "{name}");
}

/// Makes the repository refuse what is written, as its owner sees it; gives it back when dropped.
struct Closed(PathBuf);

impl Closed {
    fn new(world: &World) -> Closed {
        let folder = world.repository().join("tmp");
        set_mode(&folder, 0o500);
        Closed(folder)
    }
}

impl Drop for Closed {
    fn drop(&mut self) {
        set_mode(&self.0, 0o700);
    }
}

fn set_mode(path: &Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("mode");
}

#[test]
fn what_could_not_be_pushed_ahead_is_told_by_the_call_for_it_and_nothing_is_lost() {
    let Some(world) = world("what_could_not_be_pushed_ahead_is_told_by_the_call_for_it_and_nothing_is_lost")
    else {
        return;
    };
    archive_by_hand(&world);
    write_segments(&world, 8);
    let first = archive_status(&world, ".ready")
        .pop_first()
        .expect("a file waits");
    {
        let _closed = Closed::new(&world);
        let (_, ended) = push_first(&world);
        assert_eq!(ended.code, 1);
        assert!(ended.stderr.contains("error[store-denied]"), "{}", ended.stderr);
        assert!(
            processes(&world, "push-ahead").is_empty(),
            "nothing runs ahead of a failure"
        );
        // As if it had begun while the repository was well.
        let path = world.production.data_directory().join("pg_wal").join(&first);
        let mut ahead = world.command(&["wal", "push-ahead", &path.display().to_string()]);
        let ended = ahead.stderr(Stdio::null()).status().expect("runs");
        assert_eq!(ended.code(), Some(1));
        assert!(!notes(&world).is_empty());
        let (name, told) = push_first(&world);
        assert_eq!((name, told.code), (first.clone(), 1));
        assert!(told.stderr.contains("error[store-denied]"), "{}", told.stderr);
        assert!(told.stderr.contains("hint: "), "{}", told.stderr);
    }
    assert!(!stored(&world).contains(&first));
    // Everything still waits, and goes once it can.
    while !archive_status(&world, ".ready").is_empty() {
        let (name, ended) = push_first(&world);
        if ended.code == 0 {
            mark_done(&world, &name);
        } else {
            assert!(ended.stderr.contains("error[store-denied]"), "{}", ended.stderr);
        }
    }
    acknowledged_is_stored(&world);
    assert!(archive_is_as_if_pushed_one_by_one(&world) >= 8);
}

/// A small file system under the repository; taken away when dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    /// `None` where this account may not mount.
    fn under(repository: &Path, kilobytes: u64) -> Option<SmallDisk> {
        let aside = repository.with_extension("aside");
        std::fs::rename(repository, &aside).expect("rename");
        std::fs::create_dir(repository).expect("folder");
        let disk = SmallDisk(repository.to_owned());
        let mounted = mount(
            &["-t", "tmpfs", "-o", &format!("size={kilobytes}k"), "none"],
            repository,
        );
        let copied = std::process::Command::new("cp")
            .arg("-a")
            .arg(aside.join("."))
            .arg(repository)
            .status();
        assert!(copied.expect("cp").success());
        support::give_to_account(repository);
        mounted.then_some(disk)
    }

    fn grow(&self, kilobytes: u64) {
        assert!(mount(&["-o", &format!("remount,size={kilobytes}k")], &self.0));
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount")
            .arg("--lazy")
            .arg(&self.0)
            .stderr(Stdio::null())
            .status();
    }
}

fn mount(options: &[&str], folder: &Path) -> bool {
    let mut command = std::process::Command::new("mount");
    let command = command.args(options).arg(folder).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

#[test]
fn a_full_repository_stops_archiving_with_1_warns_and_loses_nothing() {
    let Some(world) = world("a_full_repository_stops_archiving_with_1_warns_and_loses_nothing") else {
        return;
    };
    archive_by_hand(&world);
    let Some(disk) = SmallDisk::under(&world.repository(), 3000) else {
        println!("NOT RUN: this account may not mount");
        return;
    };
    // Full of what does not compress.
    let mut session = world.session();
    session
        .execute("create table public.r as select gen_random_uuid() u from generate_series(1, 200000)")
        .expect("rows");
    write_segments(&world, 10);
    let mut failed = 0;
    let mut done = 0;
    while failed < 4 {
        assert!(done < 20, "the disk is not full");
        let (name, ended) = push_first(&world);
        match ended.code {
            0 => {
                mark_done(&world, &name);
                done += 1;
            }
            1 => {
                failed += 1;
                assert!(ended.stderr.contains("error[store-full]"), "{}", ended.stderr);
                assert!(ended.stderr.contains("hint: "), "{}", ended.stderr);
            }
            code => panic!("{code}: {}", ended.stderr),
        }
        acknowledged_is_stored(&world);
    }
    assert!(done > 0, "nothing fitted");
    // Told by status, and by wal push itself, once in a while.
    let text = std::fs::read_to_string(world.scratch().join("pgproof.toml")).expect("configuration");
    let text = text.replacen("\n[copy.", "\narchive = { warn_files = 2 }\n\n[copy.", 1);
    support::overwrite(&world.scratch().join("pgproof.toml"), text.as_bytes());
    let status = world.json(&["status"]);
    let archiving = &status["clusters"][0]["archiving"];
    assert!(
        archiving["backlog"]["files"].as_u64().expect("files") > 2,
        "{archiving:#}"
    );
    let warnings = archiving["warnings"].to_string();
    assert!(
        warnings.contains("archiving falls behind") && warnings.contains("the archiver fails"),
        "{warnings}"
    );
    let check = world.run(&["check", "--no-switch"]);
    assert!(check.stdout.contains("wal-waits"), "{}", check.stdout);
    for folder in std::fs::read_dir(world.scratch().join("spool"))
        .expect("spool")
        .flatten()
    {
        let _ = std::fs::remove_file(folder.path().join("warned"));
    }
    let (_, ended) = push_first(&world);
    assert!(
        ended.stderr.contains("warning: archiving falls behind"),
        "{}",
        ended.stderr
    );
    let (_, ended) = push_first(&world);
    assert!(
        !ended.stderr.contains("warning:"),
        "told again at once: {}",
        ended.stderr
    );

    disk.grow(500_000);
    while !archive_status(&world, ".ready").is_empty() {
        let (name, ended) = push_first(&world);
        if ended.code == 0 {
            mark_done(&world, &name);
        } else {
            assert!(ended.stderr.contains("error[store-full]"), "{}", ended.stderr);
        }
    }
    acknowledged_is_stored(&world);
    assert!(archive_is_as_if_pushed_one_by_one(&world) >= 10);
    assert_eq!(world.run(&["wal", "gaps"]).code, 0);
    wait_for("it ends by itself", || processes(&world, "push-ahead").is_empty());
}

/// A directory in which recovery could be going on: `wal get` is run in it by the test.
fn recovering(world: &World, name: &str, started: u32) -> PathBuf {
    let directory = world.scratch().join(name);
    for folder in ["global", "pg_wal"] {
        std::fs::create_dir_all(directory.join(folder)).expect("folder");
    }
    let control = "global/pg_control";
    std::fs::copy(
        world.production.data_directory().join(control),
        directory.join(control),
    )
    .expect("pg_control");
    let text = format!("{}\n{}\n{started}\n", std::process::id(), directory.display());
    std::fs::write(directory.join("postmaster.pid"), text).expect("postmaster.pid");
    support::give_to_account(&directory);
    directory
}

fn get(world: &World, directory: &Path, name: &str) -> support::Ended {
    let mut command = world.command(&["--json", "wal", "get", name, "pg_wal/RECOVERYXLOG"]);
    let output = command.current_dir(directory).output().expect("runs");
    support::Ended::of(&output)
}

fn was_prefetched(ended: &support::Ended) -> bool {
    ended.json()["result"]["Placed"]["copy"] == "prefetched"
}

fn prefetched(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for folder in std::fs::read_dir(directory.join("pg_wal/pgproof.prefetch"))
        .into_iter()
        .flatten()
        .flatten()
    {
        for entry in std::fs::read_dir(folder.path()).into_iter().flatten().flatten() {
            if entry.file_name().len() == 57 {
                found.push(entry.path());
            }
        }
    }
    found
}

#[test]
fn a_prefetched_segment_is_placed_whole_for_its_recovery_only_and_absence_is_asked_anew() {
    let Some(world) =
        world("a_prefetched_segment_is_placed_whole_for_its_recovery_only_and_absence_is_asked_anew")
    else {
        return;
    };
    write_segments(&world, 30);
    world.archive_all();
    let mut names: Vec<String> = stored(&world).into_iter().collect();
    let directory = recovering(&world, "recovering", 1);
    let placed = directory.join("pg_wal/RECOVERYXLOG");
    let original = |name: &str| world.production.data_directory().join("pg_wal").join(name);
    let mut ahead = 0;
    let rest = names.split_off(12);
    for name in &names {
        let ended = get(&world, &directory, name).ok();
        ahead += u32::from(was_prefetched(&ended));
        let bytes = std::fs::read(&placed).expect("placed");
        assert!(
            bytes == std::fs::read(original(name)).expect("original"),
            "{name}"
        );
        use std::os::unix::fs::MetadataExt;
        assert_eq!(std::fs::metadata(&placed).expect("placed").nlink(), 1);
        wait_for("the next ones are fetched", || !prefetched(&directory).is_empty());
    }
    assert!(ahead >= 10, "{ahead} of {} were fetched ahead", names.len());

    // Cut short on disk: fetched plainly.
    let next = &rest[0];
    wait_for("the next one", || {
        prefetched(&directory)
            .iter()
            .any(|path| path.to_string_lossy().contains(next.as_str()))
    });
    let waiting = prefetched(&directory);
    let waiting = waiting
        .iter()
        .find(|path| path.to_string_lossy().contains(next.as_str()))
        .expect("it waits");
    std::fs::File::options()
        .write(true)
        .open(waiting)
        .expect("open")
        .set_len(5000)
        .expect("cut");
    let ended = get(&world, &directory, next).ok();
    assert!(!was_prefetched(&ended));
    assert!(std::fs::read(&placed).expect("placed") == std::fs::read(original(next)).expect("original"));

    // What no copy has is absent, and what one does not answer for is not; whatever waits in the folder.
    std::fs::remove_file(&placed).expect("remove");
    assert_eq!(get(&world, &directory, "0000000100000FFF000000FF").code, 1);
    assert_eq!(get(&world, &directory, "00000002.history").code, 1);
    let other_timeline = format!("00000002{}", &rest[1][8..]);
    assert_eq!(
        get(&world, &directory, &other_timeline).code,
        1,
        "another timeline's name"
    );
    assert!(!placed.exists());

    // Another start of the server is another recovery: what waits for the first one is not used, and goes.
    wait_for("some wait", || !prefetched(&directory).is_empty());
    recovering(&world, "recovering", 2);
    let ended = get(&world, &directory, &rest[1]).ok();
    assert!(!was_prefetched(&ended));
    wait_for("the first recovery's folder goes", || {
        let folders = std::fs::read_dir(directory.join("pg_wal/pgproof.prefetch"));
        folders
            .expect("folder")
            .flatten()
            .filter(|entry| entry.path().is_dir())
            .count()
            <= 1
    });
    // The first one's process was there until then; now it is this one's turn.
    get(&world, &directory, &rest[1]).ok();
    wait_for("the next one", || {
        let mut waiting = prefetched(&directory).into_iter();
        waiting.any(|path| path.to_string_lossy().contains(&rest[2]))
    });
    assert!(was_prefetched(&get(&world, &directory, &rest[2]).ok()));

    // A process that is killed leaves what it had, and recovery goes on; the server's end removes everything.
    for pid in processes(&world, "fetch-ahead") {
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("kill");
    }
    for name in &rest[3..10] {
        get(&world, &directory, name).ok();
        assert!(std::fs::read(&placed).expect("placed") == std::fs::read(original(name)).expect("original"));
    }
    std::fs::remove_file(directory.join("postmaster.pid")).expect("remove");
    wait_for("nothing is left", || {
        !directory.join("pg_wal/pgproof.prefetch").exists()
    });
}

#[test]
fn what_was_fetched_ahead_makes_room_when_the_disk_of_pg_wal_is_full() {
    let Some(world) = world("what_was_fetched_ahead_makes_room_when_the_disk_of_pg_wal_is_full") else {
        return;
    };
    write_segments(&world, 20);
    world.archive_all();
    let configuration = world.scratch().join("pgproof.toml");
    let text = std::fs::read_to_string(&configuration).expect("configuration");
    let text = text.replacen("\n[copy.", "\narchive = { prefetch = \"4 MB\" }\n\n[copy.", 1);
    support::overwrite(&configuration, text.as_bytes());
    let directory = recovering(&world, "recovering", 1);
    let Some(_disk) = SmallDisk::under(&directory.join("pg_wal"), 16_000) else {
        println!("NOT RUN: this account may not mount");
        return;
    };
    let names: Vec<String> = stored(&world).into_iter().collect();
    get(&world, &directory, &names[0]).ok();
    wait_for("the next ones are fetched", || prefetched(&directory).len() == 4);
    assert!(was_prefetched(&get(&world, &directory, &names[1]).ok()));
    wait_for("another one is fetched", || prefetched(&directory).len() == 4);
    // Somebody else takes all the room; recovery is not where it was expected.
    let filler = directory.join("pg_wal/filler");
    let mut filler = std::fs::File::create(filler).expect("filler");
    while std::io::Write::write_all(&mut filler, &[1; 65536]).is_ok() {}
    for (place, name) in names[8..12].iter().enumerate() {
        let ended = get(&world, &directory, name).ok();
        // Where recovery was done with one, the helper may have found room for the next.
        assert!(place > 0 || !was_prefetched(&ended), "{}", ended.stdout);
        let placed = std::fs::read(directory.join("pg_wal/RECOVERYXLOG")).expect("placed");
        let original = world.production.data_directory().join("pg_wal").join(name);
        assert!(placed == std::fs::read(original).expect("original"), "{name}");
        // Recovery reads it and is done with it.
        std::fs::remove_file(directory.join("pg_wal/RECOVERYXLOG")).expect("remove");
    }
    std::fs::remove_file(directory.join("postmaster.pid")).expect("remove");
    wait_for("the helper ends", || processes(&world, "fetch-ahead").is_empty());
}

/// Promotes the server in its place: it goes on archiving, on the next timeline.
fn promote(world: &mut World) {
    use std::io::Write;
    let data = world.production.data_directory().to_path_buf();
    world.production.stop(cluster::StopMode::Fast).expect("stop");
    std::fs::write(data.join("recovery.signal"), "").expect("signal");
    support::give_to_account(&data.join("recovery.signal"));
    let auto = data.join("postgresql.auto.conf");
    let mut auto = std::fs::File::options()
        .append(true)
        .open(auto)
        .expect("postgresql.auto.conf");
    writeln!(auto, "restore_command = 'false'").expect("write");
    world.production.start_again().expect("start");
    wait_for("the promotion", || {
        let row = world.session().one("select pg_is_in_recovery()").expect("answer");
        row[0].as_deref() == Some("f")
    });
}

#[test]
fn recovery_through_prefetching_equals_plain_recovery_across_a_timeline_switch_with_its_helper_killed() {
    let Some(mut world) = world(
        "recovery_through_prefetching_equals_plain_recovery_across_a_timeline_switch_with_its_helper_killed",
    ) else {
        return;
    };
    let mut random = Random::new();
    world
        .session()
        .execute("create table public.t (id int, filler text)")
        .expect("table");
    world.json(&["backup"]);
    write_segments(&world, 20);
    let on_first = testing::row_digest(&world.production.conninfo()).expect("digest");
    world.archive_all();
    promote(&mut world);
    write_segments(&world, 20);
    let on_second = testing::row_digest(&world.production.conninfo()).expect("digest");
    world.archive_all();

    let configuration = world.scratch().join("pgproof.toml");
    let text = std::fs::read_to_string(&configuration).expect("configuration");
    let plain = text.replacen("\n[copy.", "\narchive = { prefetch = \"0 MB\" }\n\n[copy.", 1);
    assert_ne!(plain, text, "{text}");
    for (name, text, timeline, expected) in [
        ("plain", &plain, "2", &on_second),
        ("ahead", &text, "2", &on_second),
        ("first", &text, "1", &on_first),
    ] {
        support::overwrite(&configuration, text.as_bytes());
        let into = world.scratch().join(name);
        let target = into.display().to_string();
        world.json(&[
            "restore",
            "--to",
            "latest",
            "--timeline",
            timeline,
            "--into",
            &target,
        ]);
        let recovering = AtomicBool::new(true);
        let (seen, digest) = std::thread::scope(|scope| {
            let (world, recovering) = (&world, &recovering);
            let mut random = Random(random.below(u64::MAX) | 1);
            let helper = scope.spawn(move || {
                let mut seen = 0;
                while recovering.load(Ordering::Relaxed) {
                    std::thread::sleep(Duration::from_millis(30));
                    let found = processes(world, "fetch-ahead");
                    seen += found.len();
                    for pid in found {
                        if random.below(3) == 0 {
                            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
                        }
                    }
                }
                seen
            });
            let restored = world.start_restored(&into);
            let digest = testing::row_digest(&restored.conninfo()).expect("digest");
            recovering.store(false, Ordering::Relaxed);
            restored.stop();
            (helper.join().expect("the helper"), digest)
        });
        assert_eq!(&digest, expected, "{name}");
        assert_eq!(seen == 0, name == "plain", "{name}: {seen}");
    }
}
