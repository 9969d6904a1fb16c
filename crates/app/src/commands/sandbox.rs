//! `pgproof sandbox-exec` (hidden): enters the quarantine of a throw-away copy, then becomes the program given.

use std::path::Path;

use cluster::sandbox::{Spec, exec};
use diagnostic::{Error, Result};

use crate::cli;

/// Returns only when it failed: on success this process is the program.
pub fn run(arguments: &cli::SandboxExec) -> Result<u8> {
    let spec = Spec::read(&arguments.spec)?;
    let Some((program, rest)) = arguments.program.split_first() else {
        return Err(Error::usage("program-missing", "no program was given"));
    };
    Err(exec(&spec, Path::new(program), rest))
}
