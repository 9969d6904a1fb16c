//! Which code an input reached: the compiler's own counters, one for each edge (LLVM's SanitizerCoverage, which stable
//! rustc inserts with `-C passes=sancov-module`; see `fuzz/rustc-that-counts`).
//!
//! Built without it there are no counters, and every input looks like the others.

use std::sync::Mutex;

/// Start and length of the counters of each module, as they say themselves before `main`.
static REGIONS: Mutex<Vec<(usize, usize)>> = Mutex::new(Vec::new());

/// Called by code that the compiler puts into every instrumented module.
///
/// # Safety
/// `start..stop` must be memory that lives as long as the process; LLVM promises so.
// SAFETY: the name is LLVM's, and nobody else defines it in a program without libFuzzer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn __sanitizer_cov_8bit_counters_init(start: *mut u8, stop: *mut u8) {
    if let Ok(mut regions) = REGIONS.lock() {
        let length = (stop as usize).saturating_sub(start as usize);
        if length > 0 && !regions.contains(&(start as usize, length)) {
            regions.push((start as usize, length));
        }
    }
}

fn regions() -> Vec<(usize, usize)> {
    REGIONS.lock().map(|regions| regions.clone()).unwrap_or_default()
}

/// The features seen so far: an edge together with about how often it was taken.
#[derive(Default)]
pub struct Coverage {
    seen: Vec<u8>,
    /// How many.
    pub features: usize,
}

impl Coverage {
    /// Sets all counters back.
    pub fn reset() {
        for (start, length) in regions() {
            // SAFETY: the region lives as long as the process; this is the only thread that runs instrumented code.
            unsafe { std::ptr::write_bytes(start as *mut u8, 0, length) };
        }
    }

    /// Takes the features of the input that was just run into account; how many of them are new.
    pub fn take(&mut self) -> usize {
        let mut base = 0;
        let mut new = 0;
        for (start, length) in regions() {
            // SAFETY: as above.
            let counters = unsafe { std::slice::from_raw_parts(start as *const u8, length) };
            if self.seen.len() < base + length {
                self.seen.resize(base + length, 0);
            }
            for (counter, seen) in counters.iter().zip(self.seen.iter_mut().skip(base)) {
                let bucket: u8 = match counter {
                    0 => continue,
                    1 => 1,
                    2 => 2,
                    3 => 4,
                    4..=7 => 8,
                    8..=15 => 16,
                    16..=31 => 32,
                    32..=127 => 64,
                    _ => 128,
                };
                if *seen & bucket == 0 {
                    *seen |= bucket;
                    new += 1;
                }
            }
            base += length;
        }
        self.features += new;
        new
    }
}
