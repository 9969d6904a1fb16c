//! `pgproof-fuzz`: runs the targets for a while, each in a process of its own, which this one watches.
//!
//!     pgproof-fuzz [--seconds N] [--seed N] [--keep] [TARGET...]
//!
//! N seconds for each target (default 60). What breaks a reader is written to `fuzz/findings/<target>/`; `--keep` adds
//! the inputs that reach new code to `fuzz/corpus`. Exit code 1 if anything was found.

use std::collections::BTreeSet;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use fuzz::engine::Engine;
use fuzz::{corpus_folder, memory, name_of, targets};

#[global_allocator]
static ALLOCATOR: memory::Counting = memory::Counting;

/// A process that runs one input for so long hangs.
const HANGS_AFTER: Duration = Duration::from_secs(60);
/// Findings of one target after which it is left alone.
const FINDINGS_MAX: usize = 10;
/// Larger inputs join the corpus only for much new code: it is to stay small.
const KEPT_BYTES_MAX: usize = 4 << 10;
const BYTES_PER_FEATURE: usize = 200;

fn main() -> ExitCode {
    let mut seconds = 60;
    let mut seed = 1;
    let mut keep = false;
    let mut child = None;
    let mut names = Vec::new();
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut number = || arguments.next().and_then(|text| text.parse::<u64>().ok());
        match argument.as_str() {
            "--seconds" => seconds = number().unwrap_or(60),
            "--seed" => seed = number().unwrap_or(1),
            "--keep" => keep = true,
            "--child" => child = arguments.next(),
            name => names.push(name.to_owned()),
        }
    }
    let all = targets::all();
    if let Some(unknown) = names
        .iter()
        .find(|name| !all.iter().any(|(known, _)| known == name))
    {
        let known: Vec<&str> = all.iter().map(|(name, _)| *name).collect();
        eprintln!(
            "error: there is no target {unknown}; there are: {}",
            known.join(", ")
        );
        return ExitCode::from(2);
    }
    let wanted = all
        .into_iter()
        .filter(|(name, _)| names.is_empty() || names.iter().any(|given| given == name));
    if let Some(current) = child {
        for target in wanted {
            if !one(target, seconds, seed, keep, Path::new(&current)) {
                return ExitCode::from(1);
            }
        }
        return ExitCode::SUCCESS;
    }
    println!(
        "{:<28} {:>9} {:>9} {:>8}  FINDINGS",
        "TARGET", "INPUTS", "FEATURES", "CORPUS"
    );
    let mut good = true;
    for (name, _) in wanted {
        good &= watch(name, seconds, seed, keep);
    }
    ExitCode::from(u8::from(!good))
}

fn findings_folder(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("findings")
        .join(target)
}

fn save(target: &str, input: &[u8], what: &str) {
    let folder = findings_folder(target);
    let place = folder.join(name_of(input));
    let _ = std::fs::create_dir_all(&folder);
    let _ = std::fs::write(&place, input);
    println!("{target}: {what}\n  {}", place.display());
}

/// Runs a target in a process of its own. Whether nothing was found.
fn watch(target: &str, seconds: u64, seed: u64, keep: bool) -> bool {
    let current = std::env::temp_dir().join(format!("pgproof-fuzz-{}-{target}", std::process::id()));
    let mut command = Command::new(std::env::current_exe().unwrap_or_default());
    command.args(["--child", &current.to_string_lossy()]);
    command.args(["--seconds", &seconds.to_string(), "--seed", &seed.to_string()]);
    if keep {
        command.arg("--keep");
    }
    let mut child = match command.arg(target).spawn() {
        Ok(child) => child,
        Err(error) => {
            println!("{target}: cannot be started: {error}");
            return false;
        }
    };
    let mut last = (Vec::new(), Instant::now());
    let good = loop {
        match child.try_wait() {
            Ok(None) => std::thread::sleep(Duration::from_millis(200)),
            Ok(Some(status)) if matches!(status.code(), Some(0 | 1)) => break status.success(),
            outcome => {
                save(
                    target,
                    &current_input(&current),
                    &format!("the process ended: {outcome:?}"),
                );
                break false;
            }
        }
        let head = std::fs::File::open(&current).and_then(|file| {
            let mut head = vec![0; 16];
            file.read_exact_at(&mut head, 0).map(|()| head)
        });
        match head {
            Ok(head) if head != last.0 => last = (head, Instant::now()),
            _ if last.1.elapsed() > HANGS_AFTER => {
                save(target, &current_input(&current), "it hangs");
                let _ = child.kill();
                let _ = child.wait();
                break false;
            }
            _ => {}
        }
    };
    let _ = std::fs::remove_file(&current);
    good
}

/// The input that a process was running: a number and a length of eight bytes each, then the bytes.
fn current_input(current: &Path) -> Vec<u8> {
    let bytes = std::fs::read(current).unwrap_or_default();
    let length = bytes
        .get(8..16)
        .and_then(<[u8]>::first_chunk)
        .map_or(0, |length| u64::from_le_bytes(*length));
    bytes.get(16..16 + length as usize).unwrap_or_default().to_vec()
}

fn one(target: fuzz::Target, seconds: u64, seed: u64, keep: bool, current: &Path) -> bool {
    let Ok(file) = std::fs::File::create(current) else {
        println!("{}: cannot write {}", target.0, current.display());
        return false;
    };
    let mut count = 0u64;
    let mut note = |input: &[u8]| {
        count += 1;
        let head = [count.to_le_bytes(), (input.len() as u64).to_le_bytes()].concat();
        let _ = file
            .write_all_at(input, 16)
            .and_then(|()| file.write_all_at(&head, 0));
        count
    };
    let mut engine = Engine::new(target, seed);
    let mut findings = BTreeSet::new();
    let mut report = |input: &[u8], finding: String| {
        // One place in the code is one finding, whatever led there.
        let place: String = finding
            .chars()
            .take_while(|character| *character != '`')
            .take(160)
            .collect();
        if findings.insert(place) {
            save(target.0, input, &finding);
        }
        findings.len() < FINDINGS_MAX
    };
    let committed = engine.corpus().to_vec();
    let mut on = true;
    for input in &committed {
        note(input);
        if let Some(finding) = engine.run(input) {
            on &= report(input, finding);
        }
    }
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut inputs = 0;
    while on && Instant::now() < end {
        let input = engine.next_input();
        inputs = note(&input);
        if let Some(finding) = engine.run(&input) {
            on &= report(&input, finding);
        }
    }
    let grown = engine.corpus().to_vec();
    println!(
        "{:<28} {inputs:>9} {:>9} {:>8}  {}",
        target.0,
        engine.features(),
        grown.len(),
        findings.len()
    );
    if keep && engine.features() > 0 {
        keep_smallest(target, grown);
    }
    findings.is_empty()
}

/// Adds to the committed corpus what reaches code that its own inputs do not, the small ones first.
fn keep_smallest(target: fuzz::Target, mut grown: Vec<Vec<u8>>) {
    let folder = corpus_folder(target.0);
    let mut engine = Engine::new(target, 0);
    for input in engine.corpus().to_vec() {
        engine.try_input(&input);
    }
    grown.sort_by_key(Vec::len);
    for input in &grown {
        let new = engine.try_input(input).1;
        if new > 3 && (input.len() <= KEPT_BYTES_MAX || new * BYTES_PER_FEATURE >= input.len()) {
            let _ = std::fs::create_dir_all(&folder);
            let _ = std::fs::write(folder.join(name_of(input)), input);
        }
    }
}
