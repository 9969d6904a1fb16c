//! `testing-quarantined SPEC PROGRAM ARGUMENTS...`: enters a quarantine and becomes the program, as the binary
//! `pgproof` does. Tests start servers through it.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

fn main() {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let [spec, program, rest @ ..] = arguments.as_slice() else {
        eprintln!("usage: testing-quarantined SPEC PROGRAM ARGUMENTS...");
        std::process::exit(2);
    };
    let error = match cluster::sandbox::Spec::read(Path::new(spec)) {
        Ok(spec) => cluster::sandbox::exec(&spec, &PathBuf::from(program), rest),
        Err(error) => error,
    };
    eprint!("{}", error.render());
    std::process::exit(1);
}
