//! Backups as a whole: what goes in comes out, of any backup, after any changes; and little is stored twice.

mod common;

use common::*;
use repository::{BLOCK_BYTES, BlockReader, FileFormat, FilePart, Piece, RelativePath, TreeReader, Wanted};

fn small_set(random: &mut Random) -> Files {
    let mut files = Files::new();
    files.insert("base/".into(), Vec::new());
    files.insert("base/5/".into(), Vec::new());
    files.insert("PG_VERSION".into(), b"15\n".to_vec());
    files.insert("base/5/empty".into(), Vec::new());
    files.insert("base/5/zeros".into(), vec![0; 20 * BLOCK_BYTES]);
    files.insert(
        "base/5/odd".into(),
        random.pages(3)[..2 * BLOCK_BYTES + 17].to_vec(),
    );
    files.insert("base/5/inline".into(), random.pages(32));
    files.insert("base/5/large".into(), random.pages(2500));
    for at in 0..700 {
        let pages = 1 + random.below(3) as usize;
        files.insert(format!("base/5/{}", 16_384 + at), random.pages(pages));
    }
    files.insert("global/pg_control".into(), random.page());
    files
}

#[test]
fn a_backup_gives_back_what_it_was_given() {
    let fixture = fixture();
    let files = small_set(&mut Random(1));
    let (backup, statistics) = back_up(&fixture.cluster, &files, None);
    assert_eq!(restore(&fixture.cluster, &backup).unwrap(), files);
    check_pack_table(&fixture.cluster, &backup);
    let blocks: u64 = files
        .values()
        .map(|content| content.len().div_ceil(BLOCK_BYTES) as u64)
        .sum();
    assert_eq!(statistics.blocks_stored + statistics.blocks_zero, blocks);
    assert_eq!(statistics.blocks_zero, 20);
    assert_eq!(fixture.cluster.catalog(&backup).unwrap(), b"a catalog");
    assert_eq!(fixture.cluster.backups().unwrap(), [backup]);
    assert!(fixture.cluster.unfinished_runs().unwrap().is_empty());
}

#[test]
fn an_unchanged_cluster_stores_no_row_and_shares_its_map() {
    let fixture = fixture();
    let files = small_set(&mut Random(2));
    let (first, _) = back_up(&fixture.cluster, &files, None);
    let (second, statistics) = back_up(&fixture.cluster, &files, Some(&first));
    assert_eq!((statistics.blocks_stored, statistics.packs), (0, 0));
    assert_eq!(restore(&fixture.cluster, &second).unwrap(), files);
    check_pack_table(&fixture.cluster, &second);
    let run = format!("clusters/main/packs/{}/", second.backup);
    let stored: u64 = fixture
        .cluster
        .store()
        .list(&run)
        .unwrap()
        .iter()
        .map(|object| object.size)
        .sum();
    assert!(
        stored < 3000,
        "an unchanged cluster of 700 files stored {stored} bytes of map"
    );
}

#[test]
fn every_generation_of_a_changing_cluster_stays_whole() {
    let fixture = fixture();
    let mut random = Random(3);
    let mut files = small_set(&mut random);
    let mut generations = Vec::new();
    let mut parent = None;
    for generation in 0..12 {
        let (backup, _) = back_up(&fixture.cluster, &files, parent.as_ref());
        check_pack_table(&fixture.cluster, &backup);
        generations.push((backup.clone(), files.clone()));
        parent = Some(backup);
        // Scattered pages, a run of pages, a file that grows, one that shrinks, one that goes, one that
        // comes, zero pages.
        let large = files.get_mut("base/5/large").unwrap();
        for _ in 0..[3, 30, 150, 600][generation % 4] {
            let at = random.below((large.len() / BLOCK_BYTES) as u64) as usize * BLOCK_BYTES;
            large[at..at + BLOCK_BYTES].copy_from_slice(&random.page());
        }
        let at = 100 * BLOCK_BYTES;
        large[at..at + 40 * BLOCK_BYTES].copy_from_slice(&random.pages(40));
        let grown = random.pages(generation * 7);
        large.extend_from_slice(&grown);
        if generation % 5 == 4 {
            large.truncate(1800 * BLOCK_BYTES);
        }
        let hole = random.below(90) as usize * BLOCK_BYTES;
        large[hole..hole + BLOCK_BYTES].fill(0);
        files.remove(&format!("base/5/{}", 16_384 + generation * 3));
        files.insert(format!("base/5/2{generation:04}"), random.pages(generation));
        files.insert(
            "base/5/odd".into(),
            random.pages(2)[..BLOCK_BYTES + generation].to_vec(),
        );
        files.insert("global/pg_control".into(), random.page());
    }
    for (backup, files) in &generations {
        assert!(
            restore(&fixture.cluster, backup).unwrap() == *files,
            "backup {} differs",
            backup.backup
        );
    }
    // Each backup stands alone: the others may go.
    let (last, files) = generations.pop().unwrap();
    let needed: Vec<String> = fixture
        .cluster
        .pack_table(&last)
        .unwrap()
        .iter()
        .map(|line| format!("{}/{:08}", line.pack.run, line.pack.number))
        .collect();
    for object in fixture.cluster.store().list("clusters/main/").unwrap() {
        let of_another_record =
            object.name.contains("/backups/") && !object.name.ends_with(last.backup.as_str());
        let unneeded = object.name.contains("/packs/")
            && !object.name.contains(&format!("/packs/{}/", last.backup))
            && !needed.iter().any(|pack| object.name.contains(pack));
        if of_another_record || unneeded {
            fixture.cluster.store().delete(&object.name).unwrap();
        }
    }
    assert!(restore(&fixture.cluster, &last).unwrap() == files);
}

#[test]
fn few_changed_blocks_of_a_leaf_cost_an_overlay_and_many_a_leaf() {
    let fixture = fixture();
    let mut random = Random(4);
    let mut files = Files::from([("base/5/large".to_string(), random.pages(1024 * 4))]);
    let (mut parent, _) = back_up(&fixture.cluster, &files, None);
    let mut sizes = Vec::new();
    for changes in [1, 1, 200, 200] {
        let large = files.get_mut("base/5/large").unwrap();
        for at in 0..changes {
            let at = (at * 5 + 1024) * BLOCK_BYTES;
            large[at..at + BLOCK_BYTES].copy_from_slice(&random.page());
        }
        let (backup, statistics) = back_up(&fixture.cluster, &files, Some(&parent));
        assert_eq!(statistics.blocks_stored, changes as u64);
        assert!(restore(&fixture.cluster, &backup).unwrap() == files);
        check_pack_table(&fixture.cluster, &backup);
        let run = format!("clusters/main/packs/{}/", backup.backup);
        let objects = fixture.cluster.store().list(&run).unwrap();
        sizes.push(
            objects
                .iter()
                .filter(|object| object.name.ends_with(".map"))
                .map(|object| object.size)
                .sum::<u64>(),
        );
        parent = backup;
    }
    assert!(sizes[0] < 2500 && sizes[1] < 2500, "{sizes:?}");
}

#[test]
fn a_mostly_dead_pack_is_not_referred_to_again() {
    let fixture = fixture();
    let mut random = Random(5);
    let mut files = Files::from([("base/5/large".to_string(), random.pages(1000))]);
    let (first, _) = back_up(&fixture.cluster, &files, None);
    let refers = |backup: &repository::Backup| {
        let table = fixture.cluster.pack_table(backup).unwrap();
        let rows = table
            .iter()
            .filter(|line| line.kind == repository::PackKind::Rows && line.pack.run == first.backup);
        rows.map(|line| (line.items, line.live)).next()
    };
    assert_eq!(refers(&first), Some((1000, 1000)));
    let large = files.get_mut("base/5/large").unwrap();
    large[..800 * BLOCK_BYTES].copy_from_slice(&random.pages(800));
    let (second, _) = back_up(&fixture.cluster, &files, Some(&first));
    assert_eq!(refers(&second), Some((1000, 200)));
    // Less than a quarter is alive: its 200 pages are stored again, though nothing has changed.
    let (third, statistics) = back_up(&fixture.cluster, &files, Some(&second));
    assert_eq!(statistics.blocks_stored, 200);
    assert_eq!(refers(&third), None);
    assert!(restore(&fixture.cluster, &third).unwrap() == files);
    check_pack_table(&fixture.cluster, &third);
}

#[test]
fn an_interrupted_run_is_invisible_and_its_packs_are_used() {
    let fixture = fixture();
    let files = small_set(&mut Random(6));
    let interrupted = {
        let run = fixture.cluster.start_run(None, now()).unwrap();
        store_files(&run, &files, 2, 1, 1 << 20);
        run.id()
        // No tree, no record.
    };
    assert!(fixture.cluster.backups().unwrap().is_empty());
    let runs = fixture.cluster.unfinished_runs().unwrap();
    assert_eq!((runs.len(), runs[0].run), (1, interrupted));
    assert!(runs[0].packs >= 1);
    let (backup, statistics) = back_up(&fixture.cluster, &files, None);
    assert_ne!(backup.backup, interrupted);
    assert_eq!(statistics.blocks_stored, 0);
    assert!(statistics.blocks_adopted > 3000);
    assert!(restore(&fixture.cluster, &backup).unwrap() == files);
    check_pack_table(&fixture.cluster, &backup);
    // And the next one, with the first as its parent, shares all of it.
    let (next, statistics) = back_up(&fixture.cluster, &files, Some(&backup));
    assert_eq!(statistics.blocks_stored, 0);
    assert!(restore(&fixture.cluster, &next).unwrap() == files);
}

#[test]
fn a_run_whose_intent_has_lapsed_may_not_publish() {
    let fixture = fixture();
    let run = fixture.cluster.start_run(None, now()).unwrap();
    store_files(
        &run,
        &Files::from([("a".to_string(), b"x".to_vec())]),
        1,
        1,
        1 << 20,
    );
    let tree = run.tree().finish(b"").unwrap();
    let backup = record(&run, &fixture.cluster, None, tree);
    let minutes = |minutes: i64| now() + jiff::SignedDuration::from_mins(minutes);
    run.renew(minutes(5)).unwrap();
    run.renew(minutes(50)).unwrap();
    assert_eq!(
        run.publish(&backup, minutes(111)).unwrap_err().code(),
        "run-lapsed"
    );
    assert_eq!(run.renew(minutes(111)).unwrap_err().code(), "run-lapsed");
    assert!(fixture.cluster.backups().unwrap().is_empty());
    run.publish(&backup, minutes(109)).unwrap();
    assert_eq!(
        fixture
            .cluster
            .store()
            .list("clusters/main/intents/")
            .unwrap()
            .len(),
        2
    );
}

#[test]
fn runs_that_begin_in_the_same_second_are_different_runs() {
    let fixture = fixture();
    let one = fixture.cluster.start_run(None, now()).unwrap();
    let two = fixture.cluster.start_run(None, now()).unwrap();
    assert!(one.id() < two.id());
    let other = fixture
        .repository
        .cluster("other")
        .unwrap()
        .start_run(None, now())
        .unwrap();
    assert_eq!(other.id(), one.id());
}

#[test]
fn a_parent_that_is_gone_is_refused() {
    let fixture = fixture();
    let files = Files::from([("a".to_string(), b"x".to_vec())]);
    let (backup, _) = back_up(&fixture.cluster, &files, None);
    fixture
        .cluster
        .store()
        .delete(&format!("clusters/main/backups/{}", backup.backup))
        .unwrap();
    assert_eq!(
        fixture
            .cluster
            .start_run(Some(&backup), now())
            .err()
            .unwrap()
            .code(),
        "backup-missing"
    );
}

#[test]
fn a_tree_with_a_missing_or_doubled_entry_is_not_finished() {
    let fixture = fixture();
    let run = fixture.cluster.start_run(None, now()).unwrap();
    let part = |sequence, path: &str| FilePart {
        sequence: Some(sequence),
        path: RelativePath::new(path).unwrap(),
        mode: 0o600,
        size: 10,
        format: FileFormat::Opaque,
        first_block: 0,
        blocks: 1,
    };
    let mut packs = run.pack_writer().unwrap();
    let file = packs.file(part(1, "b")).unwrap();
    assert_eq!(file.finish().unwrap_err().code(), "file-part");
    assert_eq!(run.tree().finish(b"").unwrap_err().code(), "tree-incomplete");
    let mut file = packs.file(part(1, "b")).unwrap();
    assert_eq!(
        file.add(&[1; 9], &[Default::default()]).unwrap_err().code(),
        "file-part"
    );
    file.add(&[1; 10], &[Default::default()]).unwrap();
    file.finish().unwrap();
    packs.finish().unwrap();
    assert_eq!(run.tree().finish(b"").unwrap_err().code(), "tree-incomplete");
    assert_eq!(run.tree().skip(1).unwrap_err().code(), "tree-order");
}

#[test]
fn kept_blocks_are_the_parents_and_stop_where_it_has_none() {
    let fixture = fixture();
    let mut random = Random(7);
    let mut content = random.pages(1500);
    let (parent, _) = back_up(
        &fixture.cluster,
        &Files::from([("f".to_string(), content.clone())]),
        None,
    );
    content.extend_from_slice(&random.pages(10));
    let run = fixture.cluster.start_run(Some(&parent), now()).unwrap();
    let mut packs = run.pack_writer().unwrap();
    let part = FilePart {
        sequence: Some(0),
        path: RelativePath::new("f").unwrap(),
        mode: 0o600,
        size: content.len() as u64,
        format: FileFormat::Opaque,
        first_block: 0,
        blocks: 1510,
    };
    let mut file = packs.file(part).unwrap();
    assert_eq!(file.keep(1200).unwrap(), 1200);
    assert!(
        file.parent_leaf()
            .is_some_and(|(leaf, index)| leaf.first_block == 1024 && index == 176)
    );
    assert_eq!(file.keep(10_000).unwrap(), 300);
    assert_eq!(file.keep(1).unwrap(), 0);
    file.add(&content[1500 * BLOCK_BYTES..], &[Default::default(); 10])
        .unwrap();
    file.finish().unwrap();
    assert_eq!(packs.finish().unwrap().blocks_stored, 10);
    let tree = run.tree().finish(b"").unwrap();
    let backup = record(&run, &fixture.cluster, Some(&parent), tree);
    run.publish(&backup, now()).unwrap();
    assert!(restore(&fixture.cluster, &backup).unwrap()["f"] == content);
}

#[test]
fn files_that_share_frames_are_read_with_each_frame_decoded_once() {
    let fixture = fixture();
    let mut random = Random(8);
    let files: Files = (0..320)
        .map(|at| (format!("base/5/{at:05}"), random.page()))
        .collect();
    let run = fixture.cluster.start_run(None, now()).unwrap();
    store_files(&run, &files, 1, 1, 1 << 20);
    let tree = run.tree().finish(b"").unwrap();
    let backup = record(&run, &fixture.cluster, None, tree);
    run.publish(&backup, now()).unwrap();
    let tree = TreeReader::open(&fixture.cluster, &backup).unwrap();
    let entries: Vec<_> = tree.entries().map(|entry| entry.unwrap()).collect();
    assert!(entries.iter().all(is_inline));
    let leaves: Vec<_> = entries
        .iter()
        .map(|entry| {
            tree.leaf_of(TreeReader::content(entry).unwrap(), 0)
                .unwrap()
                .unwrap()
        })
        .collect();
    let wanted: Vec<_> = leaves
        .iter()
        .enumerate()
        .map(|(item, leaf)| Wanted {
            item,
            leaf,
            size: BLOCK_BYTES as u64,
        })
        .collect();
    let mut reader = BlockReader::new(&fixture.cluster).unwrap();
    let before = fixture.cluster.store().requests();
    let mut seen = 0;
    reader
        .read_leaves(&wanted, &mut |item, offset, piece| {
            assert_eq!(
                (offset, piece),
                (0, Piece::Data(&files[&format!("base/5/{item:05}")]))
            );
            seen += 1;
            Ok(())
        })
        .unwrap();
    assert_eq!((seen, reader.frames_decoded()), (320, 20));
    // One header, and ranges of many frames.
    assert!(fixture.cluster.store().requests().since(&before).get <= 4);
    // One by one they still are decoded once: what is left of a frame is kept.
    let mut reader = reader.another().unwrap();
    for leaf in &leaves {
        reader
            .read_leaf(leaf, BLOCK_BYTES as u64, &mut |_, _| Ok(()))
            .unwrap();
    }
    assert_eq!(reader.frames_decoded(), 20);
}

#[test]
fn single_blocks_are_found_in_a_leaf() {
    let fixture = fixture();
    let mut content = Random(9).pages(100);
    content[50 * BLOCK_BYTES..52 * BLOCK_BYTES].fill(0);
    let (backup, _) = back_up(
        &fixture.cluster,
        &Files::from([("f".to_string(), content.clone())]),
        None,
    );
    let tree = TreeReader::open(&fixture.cluster, &backup).unwrap();
    let entry = tree.find(&RelativePath::new("f").unwrap()).unwrap().unwrap();
    let leaf = tree
        .leaf_of(TreeReader::content(&entry).unwrap(), 0)
        .unwrap()
        .unwrap();
    let mut reader = BlockReader::new(&fixture.cluster).unwrap();
    let mut seen = Vec::new();
    let want = |index: usize| [3, 4, 17, 51, 99].contains(&index);
    reader
        .read_blocks(&leaf, entry.size, &want, &mut |offset, piece| {
            let start = offset as usize;
            match piece {
                Piece::Data(data) => {
                    assert_eq!(data, &content[start..start + data.len()]);
                    seen.push((start / BLOCK_BYTES, data.len() / BLOCK_BYTES));
                }
                Piece::Zeros(count) => seen.push((start / BLOCK_BYTES, count as usize / BLOCK_BYTES)),
            }
            Ok(())
        })
        .unwrap();
    seen.sort();
    assert_eq!(seen, [(3, 2), (17, 1), (51, 1), (99, 1)]);
    assert!(reader.frames_decoded() <= 3);
    assert_eq!(reader.read_file(&tree, &entry, entry.size).unwrap(), content);
    assert_eq!(
        reader.read_file(&tree, &entry, 10).unwrap_err().code(),
        "file-too-large"
    );
}

#[test]
fn the_last_word_about_a_pin_holds() {
    let fixture = fixture();
    let files = Files::from([("a".to_string(), b"x".to_vec())]);
    let (backup, _) = back_up(&fixture.cluster, &files, None);
    let cluster = &fixture.cluster;
    assert_eq!(cluster.pins().unwrap(), []);
    cluster.unpin(backup.backup, "never pinned", None, now()).unwrap();
    assert_eq!(cluster.pin_of(backup.backup).unwrap(), None);
    cluster.pin(backup.backup, "audit", None, None, now()).unwrap();
    assert!(
        cluster
            .pin_of(backup.backup)
            .unwrap()
            .is_some_and(|pin| pin.pinned && pin.reason == "audit")
    );
    cluster
        .unpin(backup.backup, "audit is over", None, now())
        .unwrap();
    let pins = cluster.pins().unwrap();
    assert_eq!(
        (pins.len(), pins[0].pinned, pins[0].reason.as_str()),
        (1, false, "audit is over")
    );
    let statements = cluster.pin_statements().unwrap();
    let reasons: Vec<&str> = statements.iter().map(|pin| pin.reason.as_str()).collect();
    assert_eq!(reasons, ["audit", "audit is over"], "the history stays");
    let error = cluster
        .pin("20200101T000000Z".parse().unwrap(), "x", None, None, now())
        .unwrap_err();
    assert_eq!(error.code(), "backup-missing");
}

#[test]
fn a_page_with_the_parents_lsn_but_other_content_is_stored() {
    let fixture = fixture();
    let mut random = Random(11);
    let mut files = Files::from([("base/5/1".to_string(), random.pages(50))]);
    let (parent, _) = back_up(&fixture.cluster, &files, None);
    // As after a crash, or in a database that was made again under the same number: the LSN stays.
    let content = files.get_mut("base/5/1").unwrap();
    content[7 * BLOCK_BYTES + 100] ^= 1;
    content[9 * BLOCK_BYTES..10 * BLOCK_BYTES].fill(0);
    let (backup, statistics) = back_up(&fixture.cluster, &files, Some(&parent));
    assert_eq!(
        (
            statistics.blocks_stored,
            statistics.blocks_zero,
            statistics.blocks_reused
        ),
        (1, 1, 48)
    );
    assert!(restore(&fixture.cluster, &backup).unwrap() == files);
}

#[test]
fn a_file_of_another_length_than_the_map_says_is_refused() {
    let fixture = fixture();
    let content = Random(12).pages(20)[..19 * BLOCK_BYTES + 100].to_vec();
    let (backup, _) = back_up(
        &fixture.cluster,
        &Files::from([("f".to_string(), content.clone())]),
        None,
    );
    let tree = TreeReader::open(&fixture.cluster, &backup).unwrap();
    let entry = tree.find(&RelativePath::new("f").unwrap()).unwrap().unwrap();
    let leaf = tree
        .leaf_of(TreeReader::content(&entry).unwrap(), 0)
        .unwrap()
        .unwrap();
    let mut reader = BlockReader::new(&fixture.cluster).unwrap();
    for wrong in [
        0,
        entry.size - 8192,
        entry.size - 1,
        entry.size + 1,
        entry.size + 8192,
    ] {
        let error = reader.read_leaf(&leaf, wrong, &mut |_, _| Ok(())).unwrap_err();
        assert_eq!(error.code(), "object-damaged", "{wrong}");
    }
    let mut given = 0;
    reader
        .read_leaf(&leaf, entry.size, &mut |_, piece| {
            if let Piece::Data(data) = piece {
                given += data.len();
            }
            Ok(())
        })
        .unwrap();
    assert_eq!(given, content.len());
}

#[test]
fn an_interrupted_runs_blocks_are_used_only_for_the_same_content() {
    let fixture = fixture();
    let mut random = Random(13);
    let mut files = Files::from([("base/5/1".to_string(), random.pages(200))]);
    let run = fixture.cluster.start_run(None, now()).unwrap();
    store_files(&run, &files, 1, 1, 1 << 20);
    drop(run);
    let content = files.get_mut("base/5/1").unwrap();
    content[20 * BLOCK_BYTES..30 * BLOCK_BYTES].copy_from_slice(&random.pages(10));
    let (backup, statistics) = back_up(&fixture.cluster, &files, None);
    assert_eq!((statistics.blocks_stored, statistics.blocks_adopted), (10, 190));
    assert!(restore(&fixture.cluster, &backup).unwrap() == files);
}

#[test]
fn a_kept_last_block_that_has_grown_must_be_read() {
    let fixture = fixture();
    let mut content = Random(14).pages(5)[..4 * BLOCK_BYTES + 50].to_vec();
    let (parent, _) = back_up(
        &fixture.cluster,
        &Files::from([("f".to_string(), content.clone())]),
        None,
    );
    content.extend_from_slice(b"more");
    let run = fixture.cluster.start_run(Some(&parent), now()).unwrap();
    let mut packs = run.pack_writer().unwrap();
    let part = FilePart {
        sequence: Some(0),
        path: RelativePath::new("f").unwrap(),
        mode: 0o600,
        size: content.len() as u64,
        format: FileFormat::Opaque,
        first_block: 0,
        blocks: 5,
    };
    let mut file = packs.file(part).unwrap();
    assert_eq!(file.keep(5).unwrap(), 4);
    file.add(&content[4 * BLOCK_BYTES..], &[Default::default()])
        .unwrap();
    file.finish().unwrap();
    packs.finish().unwrap();
    let tree = run.tree().finish(b"").unwrap();
    let backup = record(&run, &fixture.cluster, Some(&parent), tree);
    run.publish(&backup, now()).unwrap();
    assert!(restore(&fixture.cluster, &backup).unwrap()["f"] == content);
}

#[test]
fn a_mostly_dead_pack_of_an_interrupted_run_is_not_taken_up_again() {
    let fixture = fixture();
    let mut random = Random(15);
    let mut files = Files::from([("base/5/1".to_string(), random.pages(1000))]);
    let run = fixture.cluster.start_run(None, now()).unwrap();
    let interrupted = run.id();
    store_files(&run, &files, 1, 1, 1 << 20);
    drop(run);
    let content = files.get_mut("base/5/1").unwrap();
    content[..800 * BLOCK_BYTES].copy_from_slice(&random.pages(800));
    let (first, statistics) = back_up(&fixture.cluster, &files, None);
    assert_eq!(statistics.blocks_adopted, 200);
    let (second, statistics) = back_up(&fixture.cluster, &files, Some(&first));
    assert_eq!((statistics.blocks_adopted, statistics.blocks_stored), (0, 200));
    let table = fixture.cluster.pack_table(&second).unwrap();
    assert!(table.iter().all(|line| line.pack.run != interrupted));
    assert!(restore(&fixture.cluster, &second).unwrap() == files);
}
