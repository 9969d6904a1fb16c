//! What teams have today, brought into a repository by `pgproof import`: restored with equal rows, found there the second
//! time, and refused by name where it is cut, changed, incomplete, foreign or hostile.

mod support;

use cluster::StopMode;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use support::{Ended, World, give_to_account};

/// A cluster whose archiver copies into a folder, and a repository in which it has no backup.
struct Before {
    world: World,
    archive: PathBuf,
}

impl Before {
    fn start(test: &str) -> Option<Before> {
        let world = World::start(test)?;
        let archive = world
            .production
            .scratch()
            .subfolder("wal archive")
            .expect("folder");
        let command = format!("cp %p \"{}/%f\"", archive.display());
        let mut session = world.session();
        session
            .execute(&format!("ALTER SYSTEM SET archive_command = '{command}'"))
            .expect("archive_command");
        session.execute("SELECT pg_reload_conf()").expect("reload");
        let configuration = world.scratch().join("pgproof.toml");
        let text = std::fs::read_to_string(&configuration).expect("configuration");
        std::fs::write(
            &configuration,
            text + "\n[cluster.imported]\ncopies = [\"local\"]\n",
        )
        .expect("write");
        Some(Before { world, archive })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.world.scratch().join(name)
    }

    /// `pg_basebackup` of production.
    fn base_backup(&self, into: &str, arguments: &[&str]) -> PathBuf {
        let program = testing::client_program(&self.world.programs, "pg_basebackup").expect("pg_basebackup");
        let directory = self.path(into);
        let mut command = Command::new(program);
        command
            .args(["-c", "fast", "-D"])
            .arg(&directory)
            .args(["-d", &self.world.production.conninfo()])
            .args(arguments);
        done(&mut command);
        give_to_account(&directory);
        directory
    }

    /// Everything that production wrote is in the folder.
    fn archive_all(&self) {
        let mut session = self.world.session();
        let end = Instant::now() + Duration::from_secs(60);
        let name = session
            .one("SELECT pg_walfile_name(pg_switch_wal())")
            .expect("switch");
        let last = self.archive.join(name[0].as_deref().expect("a name"));
        // Complete once the archiver says so.
        loop {
            let row = session
                .one("SELECT coalesce(last_archived_wal, '') FROM pg_stat_archiver")
                .expect("archiver");
            if last.exists() && row[0].as_deref() >= last.file_name().and_then(|name| name.to_str()) {
                return;
            }
            assert!(Instant::now() < end, "{} does not come", last.display());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn import(&self, arguments: &[&str]) -> Ended {
        let arguments: Vec<&str> = ["import", "imported"]
            .iter()
            .chain(arguments)
            .chain(&["--json"])
            .copied()
            .collect();
        self.world.run(&arguments)
    }

    /// The import must fail with this code.
    fn refused(&self, code: &str, arguments: &[&str]) {
        let ended = self.import(arguments);
        assert_ne!(ended.code, 0, "{code}: {}", ended.stdout);
        let told = format!("{}{}", ended.stdout, ended.stderr);
        assert!(told.contains(code), "{code} is not told:\n{told}");
        assert!(!told.contains("panicked"), "{told}");
        let list = self.world.json(&["list", "imported"]);
        assert_eq!(
            list["backups"].as_array().map_or(0, Vec::len),
            0,
            "{code}: {list:#}"
        );
    }

    fn rows(&self) -> BTreeMap<String, String> {
        testing::row_digest(&self.world.production.conninfo()).expect("digest")
    }

    /// Restores, starts, and gives the rows.
    fn restored(&self, target: &str) -> BTreeMap<String, String> {
        let into = self.path(&format!("restored {}", target.replace([':', '.'], "-")));
        let shown = into.display().to_string();
        self.world
            .json(&["restore", "imported", "--to", target, "--into", &shown]);
        let restored = self.world.start_restored(&into);
        let rows = testing::row_digest(&restored.conninfo()).expect("digest of the copy");
        restored.stop();
        std::fs::remove_dir_all(&into).expect("remove");
        rows
    }

    fn now(&self) -> String {
        std::thread::sleep(Duration::from_millis(20));
        let row = self
            .world
            .session()
            .one("SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US') || '+00'")
            .expect("now");
        std::thread::sleep(Duration::from_millis(20));
        row[0].clone().expect("a time")
    }

    fn more(&self, name: &str) {
        self.world
            .session()
            .execute(&format!(
                "CREATE TABLE public.{name} AS SELECT n, md5(n::text) AS v FROM generate_series(1, 2000) n"
            ))
            .expect("work");
    }
}

fn done(command: &mut Command) {
    let output = command.output().expect("the program starts");
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

fn tar(arguments: &[&str]) {
    done(Command::new("tar").args(arguments));
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

#[test]
fn a_compressed_base_backup_and_an_archive_of_wal_are_restored_to_any_moment_without_their_server() {
    let test =
        "a_compressed_base_backup_and_an_archive_of_wal_are_restored_to_any_moment_without_their_server";
    let Some(mut before) = Before::start(test) else {
        return;
    };
    let load = testing::Workload::start(&before.world.production.conninfo(), 2).expect("load");
    std::thread::sleep(Duration::from_millis(300));
    let base = before.base_backup("tars", &["-Ft", "-z", "-X", "none"]);
    std::thread::sleep(Duration::from_millis(300));
    load.stop().expect("load");
    before.more("early");
    let (moment, early) = (before.now(), before.rows());
    before.more("late");
    let late = before.rows();
    before.archive_all();
    before.world.production.stop(StopMode::Immediate).expect("stop");

    std::fs::write(before.archive.join("README.txt"), "junk").expect("junk");
    let wal = before.path("wal_archive_20260125T120000Z.tar.gz");
    tar(&[
        "czf",
        &text(&wal),
        "-C",
        &text(before.world.scratch()),
        "wal archive",
    ]);
    let alone = before.path("basebackup_20260125T120000Z.tar.gz");
    std::fs::copy(base.join("base.tar.gz"), &alone).expect("copy");
    give_to_account(&alone);
    let arguments = ["--base", &text(&alone), "--wal", &text(&wal)];
    let dry = before
        .import(&[&arguments[..], &["--dry-run"]].concat())
        .ok()
        .json();
    assert_eq!(
        dry["plan"]["base"]["stop_from"], "the backup history file",
        "{dry:#}"
    );
    assert!(
        before.world.json(&["list", "imported"])["backups"]
            .as_array()
            .expect("list")
            .is_empty()
    );
    let imported = before.import(&arguments).ok().json();
    assert_eq!(
        imported["plan"]["wal"]["ignored"][0], "wal archive/README.txt",
        "{imported:#}"
    );
    let id = imported["result"]["backup"]["backup"].clone();
    assert!(id.is_string(), "{imported:#}");

    assert_eq!(before.restored("latest"), late);
    assert_eq!(before.restored(&moment), early);
    before.world.run(&["verify", "imported"]).ok();
    // A drill of it has nothing to compare with, and says so: it is sound, no more.
    let drill = before.world.run(&[
        "drill",
        "run",
        "--cluster",
        "imported",
        "--target",
        &moment,
        "--json",
    ]);
    let told = drill.json();
    assert_eq!(told["verdict"], "PASSED WITH OBSERVATIONS", "{told:#}");
    assert_eq!(drill.code, 0);
    before.world.run(&["status", "imported"]);

    let again = before.import(&arguments).ok().json();
    assert_eq!(again["result"]["already_there"], id, "{again:#}");
    assert_eq!(again["result"]["wal_stored"], 0, "{again:#}");
    assert_eq!(again["result"]["backup"], Value::Null);
    // The manifest beside it is found when the folder is named, and says the same end.
    let with_manifest = before
        .import(&["--base", &text(&base), "--wal", &text(&wal)])
        .ok()
        .json();
    assert_eq!(with_manifest["plan"]["base"]["stop_from"], "backup_manifest");
    assert_eq!(with_manifest["result"]["already_there"], id, "{with_manifest:#}");
}

#[test]
fn a_plain_base_backup_needs_no_archive_and_an_archive_of_it_may_have_a_leading_directory() {
    let test = "a_plain_base_backup_needs_no_archive_and_an_archive_of_it_may_have_a_leading_directory";
    let Some(before) = Before::start(test) else { return };
    let spaces = before
        .world
        .production
        .scratch()
        .subfolder("space")
        .expect("folder");
    let mut session = before.world.session();
    session
        .execute(&format!("CREATE TABLESPACE fast LOCATION '{}'", spaces.display()))
        .expect("tablespace");
    session
        .execute("CREATE TABLE public.there TABLESPACE fast AS SELECT n FROM generate_series(1, 5000) n")
        .expect("table");
    let rows = before.rows();
    let mapping = format!("{}={}", spaces.display(), before.path("mapped").display());
    let plain = before.base_backup("plain", &["-Fp", "-X", "stream", "-T", &mapping]);
    give_to_account(&before.path("mapped"));
    let imported = before.import(&["--base", &text(&plain)]).ok().json();
    assert_eq!(
        imported["plan"]["base"]["stop_from"], "backup_manifest",
        "{imported:#}"
    );
    let id = imported["result"]["backup"]["backup"].clone();
    assert_eq!(before.restored("latest"), rows);
    before.world.run(&["verify", "imported"]).ok();

    // The same again, as somebody's tar made it, but its tablespace: that one is behind a link.
    let archive = before.path("basebackup_20260125T120000Z.tar.gz");
    let renamed = before.path("pgdata");
    std::fs::rename(&plain, &renamed).expect("rename");
    tar(&[
        "czf",
        &text(&archive),
        "-C",
        &text(before.world.scratch()),
        "pgdata",
    ]);
    let ended = before.import(&["--base", &text(&archive)]);
    assert!(
        ended.stderr.contains("import-tablespace-missing"),
        "{}",
        ended.stderr
    );
    // With the links followed it is whole, though not what the manifest expects of links; it is the same backup.
    tar(&[
        "chzf",
        &text(&archive),
        "-C",
        &text(before.world.scratch()),
        "pgdata",
    ]);
    let again = before.import(&["--base", &text(&archive)]).ok().json();
    assert_eq!(again["plan"]["base"]["leading_directory"], "pgdata");
    assert_eq!(again["result"]["already_there"], id, "{again:#}");
}

/// A tar header of ustar, and the archive's end.
fn member(name: &str, kind: u8) -> Vec<u8> {
    let mut header = vec![0_u8; 512];
    let mut put = |at: usize, bytes: &[u8]| {
        header.splice(at..at + bytes.len(), bytes.iter().copied());
    };
    put(0, name.as_bytes());
    put(100, b"0000600\0");
    put(124, b"00000000000\0");
    put(156, &[kind]);
    put(157, b"/etc/passwd");
    put(257, b"ustar\x0000");
    put(148, b"        ");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header.splice(148..156, format!("{sum:06o}\0 ").bytes());
    header.extend([0; 1024]);
    header
}

#[test]
fn what_is_cut_changed_incomplete_foreign_or_hostile_is_refused_by_name() {
    let test = "what_is_cut_changed_incomplete_foreign_or_hostile_is_refused_by_name";
    let Some(before) = Before::start(test) else { return };
    before.more("rows");
    let plain = before.base_backup("plain", &["-Fp", "-X", "none"]);
    before.more("behind");
    before.archive_all();
    let archive = text(&before.archive);
    let base = text(&plain);
    let file = |name: &str, bytes: &[u8]| {
        let path = before.path(name);
        std::fs::write(&path, bytes).expect("write");
        give_to_account(&path);
        text(&path)
    };

    // A cut archive, plain and packed; the plain one ends exactly between two members.
    let whole = before.path("whole.tar");
    tar(&["cf", &text(&whole), "-C", &base, "."]);
    tar(&["czf", &text(&before.path("whole.tar.gz")), "-C", &base, "."]);
    let bytes = std::fs::read(&whole).expect("read");
    let packed = std::fs::read(before.path("whole.tar.gz")).expect("read");
    let end = bytes
        .iter()
        .rposition(|byte| *byte != 0)
        .expect("content")
        .next_multiple_of(512);
    for (name, cut) in [
        ("cut.tar", &bytes[..end]),
        ("half.tar", &bytes[..end / 2]),
        ("cut.tar.gz", &packed[..packed.len() - 9]),
    ] {
        before.refused(
            "import-archive-damaged",
            &["--base", &file(name, cut), "--wal", &archive],
        );
    }

    // One byte, against the manifest; a file that is missing, and one that is too much.
    let changed = plain.join("PG_VERSION");
    let original = std::fs::read(&changed).expect("read");
    support::overwrite(&changed, b"16\n");
    before.refused("import-manifest-mismatch", &["--base", &base, "--wal", &archive]);
    std::fs::remove_file(&changed).expect("remove");
    before.refused("import-manifest-mismatch", &["--base", &base, "--wal", &archive]);
    std::fs::write(&changed, original).expect("write");
    std::fs::write(plain.join("base/1/99999"), b"").expect("write");
    give_to_account(&plain);
    before.refused("import-manifest-mismatch", &["--base", &base, "--wal", &archive]);
    std::fs::remove_file(plain.join("base/1/99999")).expect("remove");

    // Without WAL, with a hole, with another server's WAL, with a damaged segment.
    before.refused("import-wal-missing", &["--base", &base]);
    let label = std::fs::read_to_string(plain.join("backup_label")).expect("label");
    let needed = label.split("(file ").nth(1).expect("file")[..24].to_owned();
    let segment = before.archive.join(&needed);
    let aside = before.path(&needed);
    std::fs::rename(&segment, &aside).expect("aside");
    before.refused("import-wal-missing", &["--base", &base, "--wal", &archive]);
    let mut bytes = std::fs::read(&aside).expect("read");
    bytes[24] ^= 1;
    let foreign = before.path("foreign");
    std::fs::create_dir(&foreign).expect("folder");
    std::fs::write(foreign.join(&needed), &bytes).expect("write");
    give_to_account(&foreign);
    before.refused("wal-segment-system", &["--base", &base, "--wal", &text(&foreign)]);
    bytes[24] ^= 1;
    let start = usize::from_str_radix(label[20..].split(['/', ' ']).nth(1).expect("lsn"), 16).expect("hex");
    bytes[start % (16 << 20) + 20] ^= 1;
    std::fs::write(foreign.join(&needed), &bytes).expect("write");
    before.refused("import-wal-damaged", &["--base", &base, "--wal", &text(&foreign)]);
    before.refused(
        "wal-segment-size",
        &[
            "--base",
            &base,
            "--wal",
            &file("000000010000000000000099", &bytes[..1 << 20]),
        ],
    );
    std::fs::rename(&aside, &segment).expect("back");

    // A page whose content changed and that no manifest tells, is told by its checksum, and the backup says so.
    // No label; a torn control file.
    let manifest = plain.join("backup_manifest");
    let kept = std::fs::read(&manifest).expect("read");
    std::fs::remove_file(&manifest).expect("remove");
    let label_path = plain.join("backup_label");
    std::fs::remove_file(&label_path).expect("remove");
    before.refused("import-no-backup-label", &["--base", &base, "--wal", &archive]);
    std::fs::write(&label_path, &label).expect("write");
    let control = plain.join("global/pg_control");
    let good = std::fs::read(&control).expect("read");
    let mut torn = good.clone();
    torn[100] ^= 1;
    support::overwrite(&control, &torn);
    give_to_account(&plain);
    before.refused("control-file-damaged", &["--base", &base, "--wal", &archive]);
    support::overwrite(&control, &good);

    // Hostile archives.
    for (name, kind, code) in [
        ("/etc/passwd", b'0', "import-hostile-name"),
        ("data/../../etc/passwd", b'0', "import-hostile-name"),
        ("data/sda", b'4', "import-member-kind"),
        ("data/hard", b'1', "import-member-kind"),
        ("data/empty", b'0', "import-layout"),
    ] {
        before.refused(code, &["--base", &file("hostile.tar", &member(name, kind))]);
    }
    let twice = before.path("twice.tar");
    tar(&["cf", &text(&twice), "-C", &base, "PG_VERSION", "global"]);
    tar(&["rf", &text(&twice), "-C", &base, "PG_VERSION"]);
    before.refused("import-duplicate-member", &["--base", &text(&twice)]);
    // A link in a place of PostgreSQL's own.
    std::os::unix::fs::symlink("/etc", plain.join("base/77")).expect("link");
    before.refused("import-link", &["--base", &base, "--wal", &archive]);
    std::fs::remove_file(plain.join("base/77")).expect("remove");

    // And it all was the refusals' doing: the same files, put right, are imported. The end is in the WAL itself.
    std::fs::write(&manifest, kept).expect("write");
    give_to_account(&plain);
    before.import(&["--base", &base, "--wal", &archive]).ok();
    // Into a cluster whose server archives by itself, nothing is put ahead of it.
    let first = before.archive.join("000000010000000000000001");
    before
        .world
        .run(&["wal", "push", "--cluster", "main", &text(&first)])
        .ok();
    let into_main = before
        .world
        .run(&["import", "main", "--base", &base, "--wal", &archive, "--json"]);
    assert!(
        into_main.stderr.contains("import-ahead-of-archiver"),
        "{}",
        into_main.stderr
    );
}

#[test]
fn the_wal_of_later_days_follows_an_import_and_a_damaged_page_is_told() {
    let test = "the_wal_of_later_days_follows_an_import_and_a_damaged_page_is_told";
    let Some(before) = Before::start(test) else { return };
    before.more("rows");
    before.refused("import-base-missing", &["--wal", &text(&before.archive)]);
    // The WAL stands in the archive of the base itself.
    let tars = before.base_backup("tars", &["-Ft", "-X", "fetch"]);
    let first = before.import(&["--base", &text(&tars)]).ok().json();
    assert_eq!(first["plan"]["wal"]["segments"], 1, "{first:#}");
    before.more("later");
    let rows = before.rows();
    before.archive_all();
    // Each segment packed by itself, as many archive_commands do.
    done(Command::new("gzip").args(["-r", &text(&before.archive)]));
    let second = before.import(&["--wal", &text(&before.archive)]).ok().json();
    assert_eq!(second["result"]["wal_already_there"], 1, "{second:#}");
    assert_eq!(before.restored("latest"), rows);
    before.world.run(&["verify", "imported"]).ok();

    // Without a manifest nothing but its checksum tells a changed page: it is imported, and told.
    let plain = before.base_backup("plain", &["-Fp", "-X", "fetch", "--no-manifest"]);
    let file = before
        .world
        .session()
        .one("SELECT pg_relation_filepath('public.rows')")
        .expect("path");
    let path = plain.join(file[0].as_deref().expect("a path"));
    let mut bytes = std::fs::read(&path).expect("read");
    bytes[8192 + 5000] ^= 1;
    support::overwrite(&path, &bytes);
    give_to_account(&plain);
    let told = before.import(&["--base", &text(&plain)]);
    assert_eq!(told.code, 3, "{}", told.stderr);
    let told = told.json();
    assert_eq!(
        told["plan"]["base"]["stop_from"],
        "the end-of-backup record in the WAL"
    );
    assert_eq!(told["result"]["findings"][0]["code"], "page-damaged", "{told:#}");
    assert!(told["result"]["backup"]["parent"].is_string(), "{told:#}");
}
