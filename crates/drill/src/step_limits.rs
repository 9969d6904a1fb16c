//! How long steps may take, and how a drill is ended in the middle of one.
//!
//! Invariants: a step that is over its limit is ended as `drill abort` ends it, and what that means for the drill depends
//! on the step alone; what cleans up, what looks last and what people do is never ended here; whether a step was over
//! its limit is decided once, under one lock, so that no later step is stopped for one that was done in time; a drill
//! that somebody asked to end before is ABORTED, however long its ending takes.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use diagnostic::Error;

use crate::copy::CopyFolder;
use crate::facts::{Failure, FailureKind, ManualWhen, StepFacts};
use crate::manual;
use crate::options::Watcher;
use crate::perform::STEPS;
use crate::profile::length;
use crate::server_error::texts;
use crate::verdict::code;

/// Between two looks at whether the drill is to end.
const POLL: Duration = Duration::from_millis(100);
/// Whatever waits looks at the flag many times meanwhile; who waits for an answer of the copy's server does not.
const GRACE: Duration = Duration::from_secs(2);
/// Steps of a drill that is taken up again.
const STEPS_OF_RESUME: [&str; 2] = ["resume", "clear"];

/// What it means for the drill that this step was over its limit; nothing: that is observed, and the step goes on.
///
/// A recovery, or the proof of it, that does not come to its end in time is a finding. What comes before anything is
/// restored says nothing about the recovery: nobody can tell.
pub fn meaning(step: &str) -> Option<FailureKind> {
    match step {
        "plan" | "restore" | "quarantine" | "recover" | "amcheck" | "page-checksums" | "n-version" => {
            Some(FailureKind::Finding)
        }
        // Ending these would leave a copy behind, or hide what it did to the archive.
        "tear-down" | "archive-after" => None,
        // People have limits of their own.
        step if people().any(|id| id == step) => None,
        _ => Some(FailureKind::CouldNotLook),
    }
}

fn people() -> impl Iterator<Item = &'static str> {
    let all = [ManualWhen::Before, ManualWhen::AtTarget, ManualWhen::After];
    all.into_iter().map(|when| manual::step_of(when).0)
}

/// The steps that a limit can be set for.
pub fn steps() -> impl Iterator<Item = &'static str> {
    let drill = STEPS.iter().map(|(id, _)| *id);
    drill.chain(people()).chain(STEPS_OF_RESUME)
}

/// The time of the step that runs now, which two threads look at: the one that makes the steps, and [`Ending`]'s.
#[derive(Default)]
pub(crate) struct StepClock(Mutex<Option<Running>>);

#[derive(Clone, Copy)]
struct Running {
    began: Instant,
    limit_ms: u64,
}

impl Running {
    fn is_over(self) -> bool {
        milliseconds(self.began.elapsed()) > self.limit_ms
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl StepClock {
    fn running(&self) -> MutexGuard<'_, Option<Running>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A step begins; without a limit it is never over.
    pub fn start(&self, began: Instant, limit_ms: Option<u64>) {
        *self.running() = limit_ms.map(|limit_ms| Running { began, limit_ms });
    }

    /// The step has ended: the milliseconds that it took, and whether its limit was over.
    pub fn stop(&self, began: Instant) -> (u64, bool) {
        let mut running = self.running();
        let took_ms = milliseconds(began.elapsed());
        let is_over = running.take().is_some_and(|running| took_ms > running.limit_ms);
        (took_ms, is_over)
    }

    /// Whether the limit of the step that runs now is over.
    pub fn is_over(&self) -> bool {
        self.running().is_some_and(Running::is_over)
    }

    /// Sets the flag if the limit is over. The lock is held meanwhile: a step that was done in time is not running any
    /// more.
    fn end_if_over(&self, to_end: &AtomicBool) -> bool {
        let running = self.running();
        let is_over = running.is_some_and(Running::is_over);
        if is_over {
            to_end.store(true, Ordering::Relaxed);
        }
        is_over
    }

    /// Somebody asked the drill to end: from here on the step is late for that reason, unless it was before.
    fn forget(&self) {
        let mut running = self.running();
        *running = running.filter(|running| running.is_over());
    }
}

/// What ends a drill in the middle of a step: it lives beside the steps, in a thread of its own.
pub(crate) struct Ending<'a> {
    folder: &'a CopyFolder,
    /// Set from outside.
    asked: &'a AtomicBool,
    /// What waits and works in the steps looks at it.
    to_end: &'a AtomicBool,
    clock: &'a StepClock,
    watcher: &'a dyn Watcher,
    steps_over: AtomicBool,
    over: AtomicBool,
}

/// Sets the flag of a thread that looks on when it is dropped, whatever happened before.
pub(crate) struct Until<'a>(pub &'a AtomicBool);

impl Drop for Until<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl<'a> Ending<'a> {
    /// `asked` is set from outside, or through the folder by `drill abort`; `to_end` is what the steps look at.
    pub fn new(
        folder: &'a CopyFolder,
        asked: &'a AtomicBool,
        to_end: &'a AtomicBool,
        clock: &'a StepClock,
        watcher: &'a dyn Watcher,
    ) -> Ending<'a> {
        Ending {
            folder,
            asked,
            to_end,
            clock,
            watcher,
            steps_over: AtomicBool::new(false),
            over: AtomicBool::new(false),
        }
    }

    /// The thread ends when this is dropped.
    pub fn until(&self) -> Until<'_> {
        Until(&self.over)
    }

    /// From here on the copy's servers are stopped by whoever started them.
    pub fn steps_are_over(&self) {
        self.steps_over.store(true, Ordering::Relaxed);
    }

    /// Looks until the drill is over.
    pub fn watch(&self) {
        let mut since: Option<Instant> = None;
        while !self.over.load(Ordering::Relaxed) {
            if self.folder.is_to_end() {
                self.asked.store(true, Ordering::Relaxed);
            }
            if self.asked.load(Ordering::Relaxed) {
                self.clock.forget();
                self.to_end.store(true, Ordering::Relaxed);
            } else if self.clock.end_if_over(self.to_end) && since.is_none() {
                self.watcher
                    .note("the step is over its limit: it is ended, and with it the drill");
            }
            if self.to_end.load(Ordering::Relaxed) {
                let since = *since.get_or_insert_with(Instant::now);
                // A statement on the copy ends with its server.
                if since.elapsed() >= GRACE && !self.steps_over.load(Ordering::Relaxed) {
                    self.folder.end_servers();
                }
            }
            std::thread::sleep(POLL);
        }
    }
}

/// Why a drill ended whose step was over its limit. `said`: the error with which the step ended, if it did not just get
/// done.
pub(crate) fn failure(step: &StepFacts, kind: FailureKind, said: Option<&Error>) -> Failure {
    let mut detail = match said {
        Some(_) => format!("It was ended after {}.", words(step.duration_ms)),
        None => format!("It was done after {}.", words(step.duration_ms)),
    };
    if let Some(expected_ms) = step.expected_ms {
        detail.push_str(&format!(" Earlier drills took {} for it.", words(expected_ms)));
    }
    if let Some(error) = said.filter(|error| error.code() != "drill-aborted") {
        let message = texts(error).0;
        detail.push_str(&format!(" Its last words: {}.", message.trim_end_matches('.')));
    }
    Failure {
        step: step.id.clone(),
        kind,
        code: code::STEP_LIMIT_EXCEEDED.into(),
        error_code: code::STEP_LIMIT_EXCEEDED.into(),
        message: format!(
            "step \"{}\" was not done within its limit of {}",
            step.id,
            length(Duration::from_millis(step.limit_ms.unwrap_or(0)))
        ),
        detail: Some(detail),
        hint: Some(
            "Compare what it took with earlier drills; `step_limits` of the profile gives it more time."
                .into(),
        ),
    }
}

/// `12.3 s`, `30 min 4 s`.
pub(crate) fn words(milliseconds: u64) -> String {
    let seconds = milliseconds / 1000;
    match seconds {
        0..60 => format!("{:.1} s", milliseconds as f64 / 1000.0),
        _ => format!("{} min {} s", seconds / 60, seconds % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::StepOutcome;
    use crate::options::Silent;
    use std::sync::atomic::AtomicU32;

    /// Longer than any machine needs to look once.
    const PATIENCE: Duration = Duration::from_secs(60);

    struct World {
        _parent: tempfile::TempDir,
        folder: CopyFolder,
        asked: AtomicBool,
        to_end: AtomicBool,
        clock: StepClock,
    }

    fn world() -> World {
        let parent = tempfile::tempdir().expect("a folder");
        let folder = CopyFolder::create(parent.path(), "pitr_drill_1", None).expect("a copy's folder");
        World {
            _parent: parent,
            folder,
            asked: AtomicBool::new(false),
            to_end: AtomicBool::new(false),
            clock: StepClock::default(),
        }
    }

    impl World {
        /// Makes `body` while the thread looks.
        fn beside<T>(&self, body: impl FnOnce() -> T) -> T {
            let ending = Ending::new(&self.folder, &self.asked, &self.to_end, &self.clock, &Silent);
            std::thread::scope(|scope| {
                scope.spawn(|| ending.watch());
                let _until = ending.until();
                body()
            })
        }

        /// A step that waits until it is told to end; whether it was.
        fn wait(&self, at_most: Duration) -> bool {
            let began = Instant::now();
            while began.elapsed() < at_most {
                if self.to_end.load(Ordering::Relaxed) {
                    return true;
                }
                std::thread::sleep(Duration::from_millis(5));
            }
            false
        }
    }

    #[test]
    fn a_step_that_hangs_is_told_to_end_when_its_limit_is_over() {
        let world = world();
        let began = Instant::now();
        world.clock.start(began, Some(200));
        let told = world.beside(|| world.wait(PATIENCE));
        let (took_ms, is_over) = world.clock.stop(began);
        assert!(told && is_over && took_ms > 200, "{told} {is_over} {took_ms}");
        assert!(!world.asked.load(Ordering::Relaxed), "nobody asked for it");
    }

    #[test]
    fn a_step_within_its_limit_and_one_without_go_on() {
        let world = world();
        world.beside(|| {
            for limit_ms in [Some(3_600_000), None] {
                let began = Instant::now();
                world.clock.start(began, limit_ms);
                assert!(!world.wait(POLL * 4), "{limit_ms:?}");
                assert!(!world.clock.stop(began).1, "{limit_ms:?}");
            }
            // What comes behind a step that was done is not late for it.
            assert!(!world.clock.is_over() && !world.clock.end_if_over(&world.to_end));
        });
    }

    #[test]
    fn a_drill_that_somebody_ends_is_late_for_that_reason_and_not_for_its_limit() {
        let world = world();
        let began = Instant::now();
        world.clock.start(began, Some(3_600_000));
        std::fs::write(world.folder.path.join("abort"), "x").expect("asks");
        assert!(world.beside(|| world.wait(PATIENCE)));
        assert!(world.asked.load(Ordering::Relaxed));
        assert!(world.clock.running().is_none(), "its limit no longer counts");
        // Where the limit was over before, it stays the reason.
        let began = began.checked_sub(Duration::from_secs(1)).expect("a moment");
        world.clock.start(began, Some(1));
        world.clock.forget();
        assert!(world.clock.stop(began).1);
    }

    #[test]
    fn the_thread_ends_however_the_steps_end() {
        let world = world();
        let looked = AtomicU32::new(0);
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            world.beside(|| {
                looked.store(1, Ordering::Relaxed);
                panic!("a step that panics")
            })
        }));
        assert!(ended.is_err() && looked.load(Ordering::Relaxed) == 1);
    }

    #[test]
    fn a_recovery_that_is_late_fails_what_comes_before_tells_nothing_and_cleaning_up_is_never_ended() {
        for (step, expected) in [
            ("restore", Some(FailureKind::Finding)),
            ("recover", Some(FailureKind::Finding)),
            ("amcheck", Some(FailureKind::Finding)),
            ("gates", Some(FailureKind::CouldNotLook)),
            ("point", Some(FailureKind::CouldNotLook)),
            ("resume", Some(FailureKind::CouldNotLook)),
            ("tear-down", None),
            ("archive-after", None),
            ("manual-at-target", None),
        ] {
            assert_eq!(meaning(step), expected, "{step}");
            assert!(steps().any(|known| known == step), "{step}");
        }
    }

    #[test]
    fn the_reason_names_step_limit_and_time_and_what_the_step_said() {
        let step = StepFacts {
            id: "restore".into(),
            title: "Restore".into(),
            started_at: jiff::Timestamp::UNIX_EPOCH,
            duration_ms: 1_804_300,
            outcome: StepOutcome::Failed,
            detail: None,
            error_code: None,
            expected_ms: Some(42_000),
            limit_ms: Some(1_800_000),
            at_limit: Some(FailureKind::Finding),
            retries: Vec::new(),
            work_ms: None,
        };
        let said = Error::new("store-failing", "the store failed.");
        let made = failure(&step, FailureKind::Finding, Some(&said));
        assert_eq!(
            (made.kind, made.code.as_str(), made.step.as_str()),
            (FailureKind::Finding, code::STEP_LIMIT_EXCEEDED, "restore")
        );
        assert_eq!(
            made.message,
            "step \"restore\" was not done within its limit of 30 min"
        );
        assert_eq!(
            made.detail.as_deref(),
            Some(
                "It was ended after 30 min 4 s. Earlier drills took 42.0 s for it. Its last words: the store failed."
            )
        );
        let aborted = failure(&step, FailureKind::Finding, Some(&crate::rows::aborted()));
        assert!(aborted.detail.is_some_and(|detail| !detail.contains("stopped")));
        let done = failure(&step, FailureKind::Finding, None);
        assert!(
            done.detail
                .is_some_and(|detail| detail.starts_with("It was done after"))
        );
    }
}
