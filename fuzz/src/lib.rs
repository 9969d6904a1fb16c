//! Every reader of bytes from outside, fed with what nobody wrote: a fuzzer of our own that needs no nightly compiler.
//!
//! `targets` names the readers; `mutate` makes new inputs out of known ones; `coverage` says whether an input reached
//! code that none before it did (when built by `fuzz/run`, which has the compiler count edges); `engine` puts them
//! together. `fuzz/corpus/<target>/` holds real bytes, minimised, and every input that once broke something; the tests
//! replay all of it. Invariants: no input makes a reader panic, abort, run for long, or need memory out of proportion.

pub mod coverage;
pub mod engine;
pub mod memory;
pub mod mutate;
pub mod seal;
pub mod targets;

use std::path::{Path, PathBuf};

/// A name, also that of its corpus folder, and what is done with the bytes.
pub type Target = (&'static str, fn(&[u8]));

/// Where a target's inputs lie.
pub fn corpus_folder(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target)
}

/// All inputs of a target, by name, smallest first.
pub fn corpus(target: &str) -> Vec<(String, Vec<u8>)> {
    let mut inputs: Vec<_> = std::fs::read_dir(corpus_folder(target))
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            Some((name, std::fs::read(entry.path()).ok()?))
        })
        .collect();
    inputs.sort_by(|one, two| (one.1.len(), &one.0).cmp(&(two.1.len(), &two.0)));
    inputs
}

/// What a name in the corpus is made of: 64 bits of FNV-1a, enough for telling files apart.
pub fn name_of(input: &[u8]) -> String {
    let hash = input.iter().fold(0xCBF2_9CE4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01B3)
    });
    format!("{hash:016x}")
}

/// Replays the corpus of a target, then mutates it for `iterations` inputs from a fixed seed. Panics with what was found:
/// for tests.
pub fn check(target: Target, iterations: u64) {
    let corpus = corpus(target.0);
    assert!(!corpus.is_empty(), "the corpus of {} is empty", target.0);
    let mut engine = engine::Engine::new(target, 1);
    for (name, input) in &corpus {
        if let Some(finding) = engine.run(input) {
            panic!("{}/{name}: {finding}", target.0);
        }
    }
    for _ in 0..iterations {
        let input = engine.next_input();
        if let Some(finding) = engine.run(&input) {
            let place = std::env::temp_dir().join(format!("{}-{}", target.0, name_of(&input)));
            let _ = std::fs::write(&place, &input);
            panic!("{}: {finding}; the input is in {}", target.0, place.display());
        }
    }
}
