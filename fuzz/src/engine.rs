//! One target, its growing corpus, and what an input must not do.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, Once};

use crate::coverage::Coverage;
use crate::mutate::{Random, mutate};
use crate::{Target, memory};

/// A reader may need this much whatever it reads (tables of a fixed size, and a segment of WAL that the target fills up).
const MEMORY_BASE: usize = 24 << 20;
/// And so much for each byte of input.
const MEMORY_PER_BYTE: usize = 256;
/// CPU time for one input, in milliseconds: unoptimised code on a slow machine, twenty times over.
const MILLISECONDS_MAX: u64 = 2000;
/// Longer inputs are not made.
const INPUT_BYTES_MAX: usize = 256 << 10;

/// Where the last panic was, as the hook saw it.
static PANIC: Mutex<String> = Mutex::new(String::new());

thread_local! {
    /// This thread runs an input: a panic is a finding, and says nothing by itself.
    static RUNNING: Cell<bool> = const { Cell::new(false) };
}

fn install_panic_hook() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |information| {
            if !RUNNING.get() {
                return before(information);
            }
            if let Ok(mut panic) = PANIC.lock() {
                *panic = information.to_string();
            }
        }));
    });
}

/// Fuzzes one target.
pub struct Engine {
    target: Target,
    random: Random,
    corpus: Vec<Vec<u8>>,
    coverage: Coverage,
}

impl Engine {
    /// With the committed corpus, not run yet.
    pub fn new(target: Target, seed: u64) -> Engine {
        install_panic_hook();
        Engine {
            target,
            random: Random(seed),
            corpus: crate::corpus(target.0)
                .into_iter()
                .map(|(_, input)| input)
                .collect(),
            coverage: Coverage::default(),
        }
    }

    /// Runs one input, and keeps it if it reached something new. What it did wrong, if it did.
    pub fn run(&mut self, input: &[u8]) -> Option<String> {
        let (finding, new) = self.try_input(input);
        if new > 0 && finding.is_none() && !self.corpus.iter().any(|known| known == input) {
            self.corpus.push(input.to_vec());
        }
        finding
    }

    /// Runs one input; how many features are new.
    pub fn try_input(&mut self, input: &[u8]) -> (Option<String>, usize) {
        Coverage::reset();
        let began = cpu_milliseconds();
        let mark = memory::mark();
        RUNNING.set(true);
        let outcome = catch_unwind(AssertUnwindSafe(|| (self.target.1)(input)));
        RUNNING.set(false);
        let bytes = memory::peak_since(mark);
        let milliseconds = cpu_milliseconds() - began;
        let new = self.coverage.take();
        let finding = if outcome.is_err() {
            Some(
                PANIC
                    .lock()
                    .map(|panic| panic.replace('\n', " "))
                    .unwrap_or_default(),
            )
        } else if bytes > MEMORY_BASE + input.len() * MEMORY_PER_BYTE {
            Some(format!("{bytes} bytes of memory for an input of {}", input.len()))
        } else if milliseconds > MILLISECONDS_MAX {
            Some(format!("{milliseconds} ms for an input of {} bytes", input.len()))
        } else {
            None
        };
        (finding, new)
    }

    /// A new input.
    pub fn next_input(&mut self) -> Vec<u8> {
        let count = self.corpus.len();
        let mut input = self
            .corpus
            .get(self.random.below(count))
            .cloned()
            .unwrap_or_default();
        let other = self
            .corpus
            .get(self.random.below(count))
            .map_or(&[][..], Vec::as_slice);
        mutate(&mut input, other, &mut self.random, INPUT_BYTES_MAX);
        input
    }

    pub fn corpus(&self) -> &[Vec<u8>] {
        &self.corpus
    }

    pub fn features(&self) -> usize {
        self.coverage.features
    }
}

/// Of this thread.
fn cpu_milliseconds() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    time.tv_sec as u64 * 1000 + time.tv_nsec as u64 / 1_000_000
}
