//! How the process ends: exit codes, the panic hook, and the text of an error.
//!
//! Invariants (hard rules 19 and 20): a program that recovery runs to fetch WAL ends with 0 (placed), 1 (absent
//! everywhere, and nothing later exists) or 126, whatever happens to it: recovery takes any code of 1 to 125 for "the
//! archive ends here" and opens the server. A program that the archiver runs ends with 0 or 1: above 125 the
//! archiver itself is ended. Which of the two we are is decided from the raw arguments, before anything can fail.

use std::ffi::OsString;
use std::io::Write;

use diagnostic::Error;

/// Done; a drill: passed.
pub const DONE: u8 = 0;
/// It could not be done.
pub const COULD_NOT: u8 = 1;
/// The command line or the configuration is wrong.
pub const USAGE: u8 = 2;
/// Looked, and it is bad: a failed drill, a failed verify, a check that fails.
pub const BAD: u8 = 3;
/// A drill that ended inconclusive or aborted.
pub const INCONCLUSIVE: u8 = 4;
/// `wal get`: no copy has it, and no later segment of that timeline exists.
pub const WAL_ABSENT: u8 = 1;
/// `wal get`: anything else. PostgreSQL stops recovery instead of ending it.
pub const WAL_STOP_RECOVERY: u8 = 126;

/// Who started us, as far as exit codes are concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Caller {
    /// A person or a script.
    Person,
    /// PostgreSQL's recovery, through `restore_command`.
    Recovery,
    /// PostgreSQL's archiver, through `archive_command`.
    Archiver,
}

impl Caller {
    /// Reads the raw arguments, misspelt ones too: when in doubt whether recovery called, recovery called.
    /// A wrong guess costs a person an unusual exit code; the other way round it costs rows.
    pub fn of(arguments: &[OsString]) -> Caller {
        let words: Vec<&str> = arguments
            .iter()
            .skip(1)
            .filter_map(|word| word.to_str())
            .collect();
        let says = |word: &str| words.contains(&word);
        if says("wal") && says("get") {
            return Caller::Recovery;
        }
        // A process that runs ahead outlives its parent. Where PostgreSQL is the process that inherits it (number 1 in a
        // container), a code above 1 counts as the crash of a server process.
        if says("push") || says("push-ahead") || says("fetch-ahead") {
            return Caller::Archiver;
        }
        if says("get") || words.iter().any(|word| is_wal_file_name(word)) {
            return Caller::Recovery;
        }
        Caller::Person
    }

    /// The exit code for a command that ends with `error`.
    pub fn exit_code(self, error: &Error) -> u8 {
        match self {
            Caller::Person => error.class().exit_code(),
            Caller::Recovery => WAL_STOP_RECOVERY,
            Caller::Archiver => COULD_NOT,
        }
    }

    /// The exit code for a command line that cannot be understood.
    pub fn usage_exit_code(self) -> u8 {
        match self {
            Caller::Person => USAGE,
            Caller::Recovery => WAL_STOP_RECOVERY,
            Caller::Archiver => COULD_NOT,
        }
    }

    /// The exit code after a panic.
    pub fn panic_exit_code(self) -> u8 {
        match self {
            Caller::Person | Caller::Archiver => COULD_NOT,
            Caller::Recovery => WAL_STOP_RECOVERY,
        }
    }
}

/// What `%f` can be: a segment, a history file, a backup history file, a partial segment.
fn is_wal_file_name(word: &str) -> bool {
    let hexadecimal = |text: &str| {
        text.bytes()
            .all(|b| b.is_ascii_hexdigit() && !b.is_ascii_lowercase())
    };
    match word.split_once('.') {
        None => word.len() == 24 && hexadecimal(word),
        Some((stem, "history")) => stem.len() == 8 && hexadecimal(stem),
        Some((stem, _)) => stem.len() == 24 && hexadecimal(stem),
    }
}

/// Makes a panic speak as our errors do. Called by the archiver or by recovery, the process ends at once with
/// the code that is safe there; for a person it unwinds, so that what was started is stopped.
pub fn install_panic_hook(caller: Caller) {
    std::panic::set_hook(Box::new(move |information| {
        let what = if let Some(text) = information.payload().downcast_ref::<&str>() {
            (*text).to_owned()
        } else if let Some(text) = information.payload().downcast_ref::<String>() {
            text.clone()
        } else {
            "no message".to_owned()
        };
        let place = information
            .location()
            .map(|place| format!("{}:{}", place.file(), place.line()));
        let error = Error::new("internal-error", "pgproof met a condition that its authors thought impossible")
            .detail(format!("{what} (at {})", place.as_deref().unwrap_or("an unknown place")))
            .hint("Nothing that was acknowledged is lost. Please report this text; the same command can be run again.");
        print_error(&error);
        if caller != Caller::Person {
            std::process::exit(i32::from(caller.panic_exit_code()));
        }
    }));
}

/// Writes the error to standard error. A closed standard error is no reason for another failure.
pub fn print_error(error: &Error) {
    let _ = std::io::stderr().lock().write_all(error.render().as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(line: &str) -> Caller {
        Caller::of(&line.split_whitespace().map(OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn every_way_to_write_wal_get_is_taken_for_recovery_even_when_misspelt() {
        for line in [
            "pgproof wal get 000000010000000000000001 pg_wal/RECOVERYXLOG",
            "pgproof --config /etc/x.toml wal get --cluster main 00000002.history pg_wal/RECOVERYHISTORY",
            "pgproof --config wal get 000000010000000000000001 p",
            "pgproof --confg /x wal get 000000010000000000000001 p",
            "pgproof wla get 000000010000000000000001 p",
            "pgproof wal gte 000000010000000000000001 p",
            "pgproof wal 00000002.history p",
            "pgproof 000000010000000000000001.00000028.backup p",
            "pgproof wal get",
        ] {
            assert_eq!(caller(line), Caller::Recovery, "{line}");
        }
    }

    #[test]
    fn pushing_is_the_archivers_and_other_commands_are_a_persons() {
        assert_eq!(
            caller("pgproof wal push pg_wal/000000010000000000000001"),
            Caller::Archiver
        );
        assert_eq!(
            caller("pgproof wal push 000000010000000000000001"),
            Caller::Archiver
        );
        assert_eq!(caller("pgproof status --json"), Caller::Person);
        assert_eq!(caller("pgproof restore --to latest --into /x"), Caller::Person);
    }

    /// Not a test by itself: what `a_panic_ends_...` starts, in a process of its own.
    #[test]
    #[ignore = "started by another test"]
    fn panics_on_behalf_of_the_caller_that_the_environment_names() {
        let caller = match std::env::var("PANIC_ON_BEHALF_OF").as_deref() {
            Ok("recovery") => Caller::Recovery,
            Ok("archiver") => Caller::Archiver,
            _ => return,
        };
        install_panic_hook(caller);
        // In another thread, as a worker would: the hook ends the whole process all the same.
        let _ = std::thread::spawn(|| panic!("on purpose")).join();
        std::process::exit(0);
    }

    #[test]
    fn a_panic_ends_wal_get_with_126_and_wal_push_with_1() {
        for (caller, code) in [("recovery", 126), ("archiver", 1)] {
            let name = "exit::tests::panics_on_behalf_of_the_caller_that_the_environment_names";
            let output = std::process::Command::new(std::env::current_exe().expect("a path"))
                .args(["--exact", name, "--ignored", "--nocapture"])
                .env("PANIC_ON_BEHALF_OF", caller)
                .output()
                .expect("the test binary runs");
            let text = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(code), "{caller}: {text}");
            assert!(
                text.contains("error[internal-error]") && text.contains("on purpose"),
                "{text}"
            );
        }
    }
}
