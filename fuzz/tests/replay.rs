//! Every input of the corpus, and some thousand changed ones, do no harm to any reader. (`fuzz/run` goes on for longer.)

use fuzz::memory;

#[global_allocator]
static ALLOCATOR: memory::Counting = memory::Counting;

/// For each target; the seed is fixed, so that a test that passes passes again.
const ITERATIONS: u64 = 300;
const ITERATIONS_LONG: u64 = 20_000;

#[test]
fn no_input_of_the_corpus_harms_a_reader() {
    for target in fuzz::targets::all() {
        fuzz::check(target, ITERATIONS);
    }
}

#[test]
#[ignore = "minutes; ./test --long runs it"]
fn no_changed_input_harms_a_reader() {
    for target in fuzz::targets::all() {
        fuzz::check(target, ITERATIONS_LONG);
    }
}

#[test]
fn every_folder_of_the_corpus_has_a_target() {
    let known: Vec<&str> = fuzz::targets::all()
        .iter()
        .map(|(name, _)| *name)
        .chain(["configuration", "time", "store-credentials"])
        .collect();
    for entry in std::fs::read_dir(fuzz::corpus_folder("")).expect("a corpus") {
        let name = entry
            .expect("a folder")
            .file_name()
            .to_string_lossy()
            .into_owned();
        assert!(
            known.contains(&name.as_str()),
            "fuzz/corpus/{name} belongs to no target"
        );
    }
}
