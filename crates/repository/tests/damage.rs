//! Damage of any kind, anywhere, is told, and never gives a wrong byte.

mod common;

use common::*;
use repository::{
    BLOCK_BYTES, BlockReader, PackKind, PackRef, RecipientKey, Repository, Role, Store, TreeReader,
    VerifyOptions, verify,
};

fn files(random: &mut Random) -> Files {
    let mut files = Files::new();
    files.insert("PG_VERSION".into(), b"15\n".to_vec());
    files.insert("base/5/1".into(), random.pages(3));
    files.insert("base/5/2".into(), random.pages(40));
    files.insert("global/pg_control".into(), random.page());
    files
}

fn replace(store: &dyn Store, name: &str, content: &[u8]) {
    store.delete(name).unwrap();
    store.put_new(name, content).unwrap();
}

fn looked(fixture: &Fixture, decode: bool) -> Vec<repository::Finding> {
    verify(&fixture.cluster, VerifyOptions { decode, threads: 2 })
        .unwrap()
        .findings
}

/// Every object that a backup needs.
fn objects(fixture: &Fixture) -> Vec<String> {
    let objects = fixture.cluster.store().list("clusters/main/").unwrap();
    objects
        .into_iter()
        .map(|object| object.name)
        .filter(|name| !name.contains("/intents/"))
        .collect()
}

#[test]
fn a_whole_repository_has_no_findings() {
    let fixture = fixture();
    let mut random = Random(1);
    let mut set = files(&mut random);
    let (first, _) = back_up(&fixture.cluster, &set, None);
    set.insert("base/5/3".into(), random.pages(2000));
    let (second, _) = back_up(&fixture.cluster, &set, Some(&first));
    for page in [5, 600, 1500] {
        let content = set.get_mut("base/5/3").unwrap();
        content[page * BLOCK_BYTES..(page + 1) * BLOCK_BYTES].copy_from_slice(&random.page());
    }
    back_up(&fixture.cluster, &set, Some(&second));
    fixture
        .cluster
        .pin(first.backup, "audit", None, None, now())
        .unwrap();
    fixture.cluster.append_link("drill", [1; 32], now()).unwrap();
    for decode in [false, true] {
        let result = verify(&fixture.cluster, VerifyOptions { decode, threads: 2 }).unwrap();
        assert_eq!(result.findings, []);
        assert!(result.objects >= 10 && result.bytes > 1_000_000, "{result:?}");
    }
}

#[test]
fn a_flipped_byte_anywhere_is_found_and_never_restored() {
    let fixture = fixture();
    let set = files(&mut Random(2));
    let (backup, _) = back_up(&fixture.cluster, &set, None);
    let store = fixture.cluster.store().clone();
    for name in objects(&fixture) {
        let whole = store.read(&name).unwrap().unwrap();
        // Every byte of what is small; of the rest its beginning, its end and some in between.
        let interesting =
            |at: usize| whole.len() < 400 || at < 140 || at + 40 > whole.len() || at.is_multiple_of(19_997);
        for at in (0..whole.len()).filter(|at| interesting(*at)) {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x10;
            replace(&*store, &name, &bytes);
            let findings = looked(&fixture, false);
            assert!(
                !findings.is_empty(),
                "byte {at} of {name} was flipped, and nobody noticed"
            );
            assert!(
                findings
                    .iter()
                    .all(|finding| finding.affects[0].starts_with("backup ")),
                "{findings:?}"
            );
            match fixture
                .cluster
                .backup(backup.backup)
                .and_then(|backup| restore(&fixture.cluster, &backup))
            {
                Ok(restored) => assert!(restored == set, "byte {at} of {name} was flipped and restored"),
                Err(error) => {
                    assert!(
                        matches!(error.code(), "object-damaged" | "repository-format"),
                        "{}",
                        error.render()
                    );
                }
            }
        }
        replace(&*store, &name, &whole);
    }
    assert_eq!(looked(&fixture, true), []);
}

#[test]
fn a_cut_or_a_missing_object_is_found_and_never_restored() {
    let fixture = fixture();
    let set = files(&mut Random(3));
    let (backup, _) = back_up(&fixture.cluster, &set, None);
    let store = fixture.cluster.store().clone();
    for name in objects(&fixture) {
        let whole = store.read(&name).unwrap().unwrap();
        for length in [
            0,
            1,
            127,
            128,
            160,
            whole.len() / 2,
            whole.len() - 33,
            whole.len() - 1,
        ] {
            replace(&*store, &name, &whole[..length]);
            assert!(!looked(&fixture, false).is_empty(), "{name} was cut to {length}");
            let restored = fixture
                .cluster
                .backup(backup.backup)
                .and_then(|backup| restore(&fixture.cluster, &backup));
            // What a restore does not need to read (the end of a pack) may be gone.
            assert!(restored.map_or_else(
                |error| error.code() == "object-damaged",
                |restored| restored == set
            ));
        }
        store.delete(&name).unwrap();
        if !name.contains("/backups/") {
            assert_eq!(looked(&fixture, false)[0].code, "object-missing", "{name}");
            let tree = fixture.cluster.backup(backup.backup).unwrap();
            if let Err(error) = restore(&fixture.cluster, &tree) {
                assert_eq!(error.code(), "object-missing");
            }
        } else {
            assert_eq!(
                fixture.cluster.backup(backup.backup).unwrap_err().code(),
                "backup-missing"
            );
        }
        store.put_new(&name, &whole).unwrap();
    }
    assert_eq!(looked(&fixture, true), []);
}

#[test]
fn an_object_in_another_ones_place_is_found_and_never_restored() {
    let fixture = fixture();
    let mut random = Random(4);
    let set = files(&mut random);
    let (backup, _) = back_up(&fixture.cluster, &set, None);
    let (other, _) = back_up(&fixture.cluster, &files(&mut random), None);
    let store = fixture.cluster.store().clone();
    for name in objects(&fixture) {
        let twin = match name.contains(backup.backup.as_str()) {
            true => name.replace(backup.backup.as_str(), other.backup.as_str()),
            false => continue,
        };
        let (whole, foreign) = (store.read(&name).unwrap().unwrap(), store.read(&twin).unwrap());
        let Some(foreign) = foreign else { continue };
        replace(&*store, &name, &foreign);
        assert!(!looked(&fixture, false).is_empty(), "{name}");
        let restored = fixture
            .cluster
            .backup(backup.backup)
            .and_then(|backup| restore(&fixture.cluster, &backup));
        assert!(
            restored.map_or_else(
                |error| error.code() == "object-damaged",
                |restored| restored == set
            ),
            "{name}"
        );
        replace(&*store, &name, &whole);
    }
}

#[test]
fn a_pack_in_anothers_backups_place_names_all_backups_that_it_affects() {
    let fixture = fixture();
    let mut set = files(&mut Random(5));
    let (first, _) = back_up(&fixture.cluster, &set, None);
    set.insert("base/5/9".into(), Random(6).pages(1));
    let (second, _) = back_up(&fixture.cluster, &set, Some(&first));
    let pack = format!("clusters/main/packs/{}/00000001.rows", first.backup);
    fixture.cluster.store().delete(&pack).unwrap();
    let findings = looked(&fixture, true);
    let ours: Vec<_> = findings.iter().filter(|finding| finding.object == pack).collect();
    assert_eq!(ours.len(), 1, "{findings:?}");
    assert_eq!(ours[0].code, "object-missing");
    assert_eq!(
        ours[0].affects,
        [
            format!("backup {}", first.backup),
            format!("backup {}", second.backup)
        ]
    );
}

#[test]
fn a_writer_can_do_everything_but_read_rows() {
    let fixture = fixture();
    let mut random = Random(7);
    let mut set = files(&mut random);
    let (first, _) = back_up(&fixture.cluster, &set, None);
    let key = RecipientKey::generate().unwrap();
    fixture.repository.authorize(&key, Role::Writer).unwrap();
    let writer = Repository::open(fixture.repository.store().clone(), &key)
        .unwrap()
        .cluster("main")
        .unwrap();
    // An incremental of the writer's, on a parent that it could not read.
    set.insert("base/5/1".into(), random.pages(4));
    let (second, statistics) = back_up(&writer, &set, Some(&first));
    assert_eq!(statistics.blocks_stored, 4);
    assert!(statistics.blocks_reused >= 40);
    assert!(restore(&fixture.cluster, &second).unwrap() == set);
    assert_eq!(
        verify(
            &writer,
            VerifyOptions {
                decode: false,
                threads: 1
            }
        )
        .unwrap()
        .findings,
        []
    );
    assert_eq!(
        verify(
            &writer,
            VerifyOptions {
                decode: true,
                threads: 1
            }
        )
        .unwrap_err()
        .code(),
        "key-role"
    );
    assert_eq!(BlockReader::new(&writer).err().unwrap().code(), "key-role");
    assert_eq!(restore(&writer, &second).unwrap_err().code(), "key-role");
    let tree = TreeReader::open(&writer, &second).unwrap();
    assert_eq!(tree.entries().count(), 3);
}

#[test]
fn states_that_a_crash_leaves_are_no_findings() {
    let fixture = fixture();
    let set = files(&mut Random(8));
    // Killed after each step of a run: with an intent alone, with packs, with maps.
    drop(fixture.cluster.start_run(None, now()).unwrap());
    let run = fixture.cluster.start_run(None, now()).unwrap();
    store_files(&run, &set, 2, 1, 1 << 20);
    drop(run);
    let run = fixture.cluster.start_run(None, now()).unwrap();
    store_files(&run, &set, 2, 1, 1 << 20);
    run.tree().finish(b"").unwrap();
    drop(run);
    let mut torn = fixture
        .cluster
        .store()
        .writer("clusters/main/packs/20260815T020003Z/00000009.rows")
        .unwrap();
    std::io::Write::write_all(&mut torn, b"PGPRFOBJ").unwrap();
    std::mem::forget(torn);
    assert!(fixture.cluster.backups().unwrap().is_empty());
    assert_eq!(looked(&fixture, true), []);
    let (backup, statistics) = back_up(&fixture.cluster, &set, None);
    assert_eq!(statistics.blocks_stored, 0);
    assert!(restore(&fixture.cluster, &backup).unwrap() == set);
    assert_eq!(looked(&fixture, true), []);
    assert_eq!(fixture.cluster.unfinished_runs().unwrap().len(), 3);
}

#[test]
fn a_damaged_pack_of_an_interrupted_run_is_left_alone() {
    let fixture = fixture();
    let set = files(&mut Random(9));
    let run = fixture.cluster.start_run(None, now()).unwrap();
    let id = run.id();
    store_files(&run, &set, 1, 1, 1 << 20);
    drop(run);
    let name = format!("clusters/main/packs/{id}/00000001.rows");
    let whole = fixture.cluster.store().read(&name).unwrap().unwrap();
    replace(&**fixture.cluster.store(), &name, &whole[..whole.len() - 10]);
    let (backup, statistics) = back_up(&fixture.cluster, &set, None);
    assert_eq!(statistics.blocks_adopted, 0);
    assert!(restore(&fixture.cluster, &backup).unwrap() == set);
}

#[test]
fn a_reference_to_a_pack_that_is_not_in_the_table_keeps_no_pack_alive() {
    let fixture = fixture();
    let (backup, _) = back_up(&fixture.cluster, &files(&mut Random(10)), None);
    let table = fixture.cluster.pack_table(&backup).unwrap();
    let run = fixture.cluster.start_run(Some(&backup), now()).unwrap();
    for line in table.iter().filter(|line| line.kind == PackKind::Rows) {
        assert!(!run.retiring(&line.pack));
    }
    assert!(run.retiring(&PackRef {
        run: backup.backup,
        number: 77
    }));
}
