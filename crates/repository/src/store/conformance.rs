//! What every store must do, as a test that any store can be put through.

use std::io::Write;

use super::{Put, Store};

const FOLDER: &str = "conformance";

/// Panics, as a test does, if the store breaks a promise of [`Store`]. It works below `conformance/` and
/// empties it.
pub fn conformance(store: &dyn Store) {
    conformance_but_races(store);
    only_one_of_many_creators_wins(store);
    empty(store);
}

/// The same for a store whose conditional creation is known not to be atomic: everything but the race of many
/// creators. Such a store is for [`Store::set_conditional_creation`] to be told of.
pub fn conformance_but_races(store: &dyn Store) {
    empty(store);
    creation_happens_once(store);
    writers_are_all_or_nothing(store);
    ranges_are_exact(store);
    listings_are_complete_and_sorted(store);
    names_are_checked(store);
    what_is_deleted_is_gone_from_listings(store);
    long_objects_are_streamed(store);
    empty(store);
}

fn name(rest: &str) -> String {
    format!("{FOLDER}/{rest}")
}

fn empty(store: &dyn Store) {
    for object in store.list("conformance/").unwrap() {
        store.delete(&object.name).unwrap();
    }
    assert_eq!(store.list("conformance/").unwrap(), []);
}

fn creation_happens_once(store: &dyn Store) {
    let object = name("once/a");
    assert_eq!(store.read(&object).unwrap(), None);
    assert_eq!(store.size(&object).unwrap(), None);
    assert_eq!(store.put_new(&object, b"first").unwrap(), Put::Created);
    assert_eq!(store.put_new(&object, b"second").unwrap(), Put::Exists);
    assert_eq!(store.read(&object).unwrap().unwrap(), b"first");
    assert_eq!(store.size(&object).unwrap(), Some(5));
    assert_eq!(store.put_new(&name("once/empty"), b"").unwrap(), Put::Created);
    assert_eq!(store.read(&name("once/empty")).unwrap().unwrap(), b"");
    store.delete(&object).unwrap();
    store.delete(&object).unwrap();
    assert_eq!(store.read(&object).unwrap(), None);
    assert_eq!(store.put_new(&object, b"third").unwrap(), Put::Created);
}

fn writers_are_all_or_nothing(store: &dyn Store) {
    let object = name("writer/a");
    let pieces: Vec<Vec<u8>> = (0u8..40)
        .map(|at| vec![at; 1 + usize::from(at) * 20_000])
        .collect();
    let mut writer = store.writer(&object).unwrap();
    let mut length = 0;
    for piece in &pieces {
        writer.write_all(piece).unwrap();
        length += piece.len() as u64;
        assert_eq!(writer.position(), length);
    }
    assert_eq!(store.read(&object).unwrap(), None);
    assert_eq!(store.list(&name("writer/")).unwrap(), []);
    assert_eq!(writer.finish().unwrap(), Put::Created);
    assert_eq!(store.read(&object).unwrap().unwrap(), pieces.concat());

    let mut late = store.writer(&object).unwrap();
    late.write_all(b"other").unwrap();
    assert_eq!(late.finish().unwrap(), Put::Exists);
    assert_eq!(store.size(&object).unwrap(), Some(length));

    let mut abandoned = store.writer(&name("writer/b")).unwrap();
    abandoned.write_all(&[1; 100_000]).unwrap();
    drop(abandoned);
    assert_eq!(store.read(&name("writer/b")).unwrap(), None);
    assert_eq!(store.list(&name("writer/")).unwrap().len(), 1);
}

fn ranges_are_exact(store: &dyn Store) {
    let object = name("range");
    let content: Vec<u8> = (0..100_000u32).map(|at| (at % 251) as u8).collect();
    store.put_new(&object, &content).unwrap();
    assert_eq!(store.read_range(&object, 0, 10).unwrap(), content[..10]);
    assert_eq!(store.read_range(&object, 99_990, 10).unwrap(), content[99_990..]);
    assert_eq!(store.read_range(&object, 70_001, 0).unwrap(), b"");
    assert_eq!(
        store.read_range(&object, 99_991, 10).unwrap_err().code(),
        "object-damaged"
    );
    assert_eq!(
        store.read_range(&object, u64::MAX / 4, 10).unwrap_err().code(),
        "object-damaged"
    );
    assert_eq!(
        store.read_range(&name("none"), 0, 1).unwrap_err().code(),
        "object-missing"
    );
}

fn listings_are_complete_and_sorted(store: &dyn Store) {
    let names = ["l/a.1", "l/a.2", "l/a/x", "l/a/y/z", "l/b", "l2/c"].map(name);
    for object in names.iter().rev() {
        store.put_new(object, object.as_bytes()).unwrap();
    }
    let listed = |prefix: &str| -> Vec<String> {
        store
            .list(&name(prefix))
            .unwrap()
            .into_iter()
            .map(|object| object.name)
            .collect()
    };
    assert_eq!(listed("l/"), names[..5]);
    assert_eq!(listed("l"), names);
    assert_eq!(listed("l/a."), names[..2]);
    assert_eq!(listed("l/a/"), names[2..4]);
    assert_eq!(listed("l/none"), Vec::<String>::new());
    assert_eq!(listed("none/none/"), Vec::<String>::new());
    assert!(
        store
            .list(&name("l/"))
            .unwrap()
            .iter()
            .all(|object| object.size == object.name.len() as u64)
    );
    assert_eq!(store.list_folders(&name("l/")).unwrap(), ["a"]);
    assert_eq!(store.list_folders(&name("none/")).unwrap(), Vec::<String>::new());
    assert!(
        store
            .list_folders(&name(""))
            .unwrap()
            .starts_with(&["l".to_string(), "l2".to_string()])
    );
    assert!(store.list_folders("").unwrap().contains(&FOLDER.to_string()));
}

fn what_is_deleted_is_gone_from_listings(store: &dyn Store) {
    for object in ["d/a/1", "d/a/2", "d/b/1"].map(name) {
        store.put_new(&object, b"x").unwrap();
    }
    store.delete(&name("d/a/1")).unwrap();
    store.delete(&name("d/b/1")).unwrap();
    store.delete(&name("d/never")).unwrap();
    let listed: Vec<String> = store
        .list(&name("d/"))
        .unwrap()
        .into_iter()
        .map(|object| object.name)
        .collect();
    assert_eq!(listed, [name("d/a/2")]);
    // A folder is nothing of its own: an emptied one may be listed still, but holds nothing.
    assert_eq!(store.list(&name("d/b/")).unwrap(), []);
    assert!(
        store
            .list_folders(&name("d/"))
            .unwrap()
            .contains(&"a".to_string())
    );
    assert_eq!(
        store.read_range(&name("d/a/1"), 0, 1).unwrap_err().code(),
        "object-missing"
    );
    assert_eq!(store.put_new(&name("d/a/1"), b"again").unwrap(), Put::Created);
    assert_eq!(store.read(&name("d/a/1")).unwrap().unwrap(), b"again");
}

fn names_are_checked(store: &dyn Store) {
    let long = "x".repeat(401);
    for bad in [
        "", "/a", "a/", "a//b", "../a", "a/../b", "a/./b", "a b", "a\0b", "\u{e9}", &long,
    ] {
        assert_eq!(
            store.put_new(bad, b"1").unwrap_err().code(),
            "object-name",
            "{bad:?}"
        );
        assert_eq!(store.read(bad).unwrap_err().code(), "object-name", "{bad:?}");
        assert!(
            store
                .writer(bad)
                .is_err_and(|error| error.code() == "object-name"),
            "{bad:?}"
        );
        assert_eq!(store.delete(bad).unwrap_err().code(), "object-name", "{bad:?}");
    }
    assert_eq!(store.list("../").unwrap_err().code(), "object-name");
}

/// Longer than any store sends in one request: what is written in odd pieces comes back from odd places.
fn long_objects_are_streamed(store: &dyn Store) {
    const LENGTH: u64 = 37_000_003;
    let at = |offset: u64| (offset % 241) as u8 ^ (offset >> 17) as u8;
    let object = name("long");
    let mut writer = store.writer(&object).unwrap();
    let mut offset = 0;
    while offset < LENGTH {
        let piece: Vec<u8> = (offset..LENGTH.min(offset + 777_777)).map(at).collect();
        writer.write_all(&piece).unwrap();
        offset += piece.len() as u64;
    }
    assert_eq!(
        store.size(&object).unwrap(),
        None,
        "a part of an object was visible"
    );
    assert_eq!(writer.finish().unwrap(), Put::Created);
    assert_eq!(store.size(&object).unwrap(), Some(LENGTH));
    for offset in [0, 8_388_600, 16_777_210, 17_825_790, LENGTH - 20] {
        let expected: Vec<u8> = (offset..offset + 20).map(at).collect();
        assert_eq!(store.read_range(&object, offset, 20).unwrap(), expected);
    }
    let mut late = store.writer(&object).unwrap();
    for _ in 0..19 {
        late.write_all(&[0; 1 << 20]).unwrap();
    }
    assert_eq!(late.finish().unwrap(), Put::Exists);
    assert_eq!(store.size(&object).unwrap(), Some(LENGTH));
    let mut abandoned = store.writer(&name("abandoned")).unwrap();
    for _ in 0..19 {
        abandoned.write_all(&[0; 1 << 20]).unwrap();
    }
    drop(abandoned);
    assert_eq!(store.size(&name("abandoned")).unwrap(), None);
}

fn only_one_of_many_creators_wins(store: &dyn Store) {
    for round in 0..10 {
        let object = name(&format!("race/{round}"));
        let created: Vec<u8> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0u8..8)
                .map(|thread| {
                    let object = &object;
                    scope.spawn(move || (thread, store.put_new(object, &[thread; 1000]).unwrap()))
                })
                .collect();
            let results = threads.into_iter().map(|thread| thread.join().unwrap());
            results
                .filter(|(_, put)| *put == Put::Created)
                .map(|(thread, _)| thread)
                .collect()
        });
        assert_eq!(
            created.len(),
            1,
            "several creators of one name were told that they had created it"
        );
        assert_eq!(store.read(&object).unwrap().unwrap(), vec![created[0]; 1000]);
    }
}
