//! `pgproof`: gathers (arguments, configuration, clock), calls the rooms, shows. No domain logic lives here.
//!
//! Invariant: who called is decided from the raw arguments before anything can fail, so that recovery and the
//! archiver get the exit codes that are safe for them, whatever happens (see `exit`).

mod account;
mod archive;
mod backlog;
mod cli;
mod commands;
mod config;
mod context;
mod copies;
mod demo;
mod drill_environment;
mod exit;
#[cfg(test)]
mod fuzzed;
mod lease;
mod output;
mod programs;
mod progress;
mod recording;
mod rpo;
mod settings;
mod stores;
mod targets;
mod times;

use std::process::ExitCode;

use clap::Parser;

use crate::context::Context;
use crate::exit::Caller;

fn main() -> ExitCode {
    let arguments: Vec<std::ffi::OsString> = std::env::args_os().collect();
    let caller = Caller::of(&arguments);
    exit::install_panic_hook(caller);
    let json = arguments.iter().any(|word| word == "--json");
    // The hook has already printed; for a person the stack unwinds first, so that what was started is stopped.
    let code = match std::panic::catch_unwind(|| run(&arguments, caller, json)) {
        Ok(code) => code,
        Err(_) => caller.panic_exit_code(),
    };
    ExitCode::from(code)
}

fn run(arguments: &[std::ffi::OsString], caller: Caller, json: bool) -> u8 {
    let command_line = match cli::CommandLine::try_parse_from(arguments) {
        Ok(command_line) => command_line,
        Err(error) => {
            let asked_for_help = !error.use_stderr();
            let _ = error.print();
            // To the archiver 0 means "it is kept" and to recovery "it is there": help says neither.
            if asked_for_help && caller == Caller::Person {
                return exit::DONE;
            }
            if json {
                let text = error.to_string();
                let message = text
                    .lines()
                    .next()
                    .unwrap_or_default()
                    .trim_start_matches("error: ")
                    .to_owned();
                output::json(&diagnostic::Error::usage("usage", message).to_json());
            }
            return caller.usage_exit_code();
        }
    };
    let context = Context::new(&command_line);
    match commands::run(&context, command_line.command) {
        Ok(code) => code,
        Err(error) => {
            exit::print_error(&error);
            if json {
                output::json(&error.to_json());
            }
            caller.exit_code(&error)
        }
    }
}
