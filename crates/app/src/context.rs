//! What a command is given: the resolved common options, the clock, this program's path, and doors to the rooms.
//!
//! Invariants: nothing is opened or read before a command asks for it (`wal push` runs once for each segment); the
//! environment, the clock and the configuration are read here and passed on as values.

use std::path::PathBuf;

use diagnostic::{Error, Result};
use jiff::Timestamp;

use crate::cli::CommandLine;
use crate::config::Configuration;

const COMPARING_MIN: usize = 4;

/// The common part of every command.
#[derive(Debug, Clone)]
pub struct Context {
    /// `--config`.
    pub config_file: Option<PathBuf>,
    /// `--json`.
    pub json: bool,
}

impl Context {
    pub fn new(arguments: &CommandLine) -> Context {
        Context {
            config_file: arguments.config.clone(),
            json: arguments.json,
        }
    }

    /// The clock.
    pub fn now(&self) -> Timestamp {
        Timestamp::now()
    }

    /// The configuration file, read anew.
    pub fn configuration(&self) -> Result<Configuration> {
        Configuration::load(self.config_file.as_deref())
    }

    /// Absolute path of this program, for archive_command and restore_command.
    pub fn program(&self) -> Result<PathBuf> {
        std::env::current_exe().map_err(|error| {
            Error::io(
                "program-path",
                "cannot tell where this program is installed",
                &error,
            )
        })
    }
}

/// Processors that this process may use.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// Threads of `restore --delta` when nobody says how many: each waits for the device about half of its time, and fewer leave
/// it idle while they fetch a frame (`bench/bounds.md`).
pub fn comparing() -> usize {
    cores().max(COMPARING_MIN)
}
