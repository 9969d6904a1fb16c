//! How far long work is: a bar with rate and time left on a terminal, a line every ten seconds elsewhere; on standard
//! error, so that results can be piped.

use std::io::IsTerminal;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::output;

/// Seconds between two lines where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// One long piece of work. Shared by reference between threads.
pub struct Progress {
    what: &'static str,
    bar: Option<ProgressBar>,
    lines: Mutex<Lines>,
    began: Instant,
}

struct Lines {
    last: Instant,
    stage: String,
}

impl Progress {
    /// `what` is a verb in progress: `backup`, `restore`.
    pub fn new(what: &'static str) -> Progress {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new_spinner();
            bar.set_prefix(what);
            style(&bar, false);
            // Moves even where the work has nothing to say, so that it is seen to live.
            bar.enable_steady_tick(Duration::from_millis(200));
            bar
        });
        let began = Instant::now();
        Progress {
            what,
            bar,
            lines: Mutex::new(Lines {
                last: began,
                stage: String::new(),
            }),
            began,
        }
    }

    /// So many bytes of so many, at this stage of the work.
    pub fn update(&self, stage: &str, bytes_done: u64, bytes_total: u64) {
        if let Some(bar) = &self.bar {
            let total_known = bytes_total > 0;
            if total_known != bar.length().is_some_and(|length| length > 0) {
                style(bar, total_known);
            }
            bar.set_length(bytes_total);
            bar.set_position(bytes_done);
            bar.set_message(stage.to_owned());
            return;
        }
        let Ok(mut lines) = self.lines.lock() else { return };
        if lines.stage == stage && lines.last.elapsed() < LINE_EVERY {
            return;
        }
        lines.last = Instant::now();
        lines.stage.clear();
        lines.stage.push_str(stage);
        let elapsed = self.began.elapsed().as_secs_f64();
        let mut line = format!("{}: {stage}", self.what);
        if bytes_total > 0 {
            line.push_str(&format!(
                ", {} of {}",
                output::bytes(bytes_done),
                output::bytes(bytes_total)
            ));
            if bytes_done > 0 && bytes_done < bytes_total && elapsed > 1.0 {
                let rate = bytes_done as f64 / elapsed;
                let left = (bytes_total - bytes_done) as f64 / rate;
                line.push_str(&format!(
                    ", {}/s, {} left",
                    output::bytes(rate as u64),
                    output::seconds(left)
                ));
            }
        }
        output::notice(line);
    }

    /// Another stage of the work, of which nobody knows how much it is.
    pub fn stage(&self, stage: &str) {
        if let Some(bar) = &self.bar {
            style(bar, false);
            bar.set_length(0);
            bar.set_message(stage.to_owned());
        }
    }

    /// A line that stays.
    pub fn say(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| output::notice(text)),
            None => output::notice(text),
        }
    }
}

/// With a known total a bar with rate and time left, else a sign of life and the time that has passed.
fn style(bar: &ProgressBar, total_known: bool) {
    let template = if total_known {
        "{prefix}: {msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec}, {eta} left"
    } else {
        "{prefix}: {msg} {spinner} {elapsed}"
    };
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
