//! Running PostgreSQL's programs: as the right account, with nothing of our environment, and with a limit.

use diagnostic::{Error, Result};
use rustix::process::Pid;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

const SEARCH_PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// What a program printed.
#[derive(Debug, Clone)]
pub struct ProgramOutput {
    pub status: ExitStatus,
    pub stdout: Vec<u8>,
    pub stderr: String,
}

pub(super) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Nothing of our environment or working directory, and a process group of its own, so that a Ctrl-C meant
/// for us does not stop a server behind our back.
pub(super) fn base(command: &mut Command) -> &mut Command {
    command
        .env_clear()
        .env("PATH", SEARCH_PATH)
        .env("LC_ALL", "C")
        .current_dir("/")
        .process_group(0)
}

pub(super) fn as_owner(command: &mut Command, (uid, gid): (u32, u32)) -> &mut Command {
    base(command);
    if is_root() {
        // The standard library clears the supplementary groups when it changes the uid as root.
        command.uid(uid).gid(gid);
    }
    command
}

/// Runs a program to its end, with a limit.
pub(super) fn run(command: &mut Command, timeout: Duration) -> Result<ProgramOutput> {
    let name = Path::new(command.get_program()).display().to_string();
    let failed =
        |error: &std::io::Error| Error::io("program-failed", format!("cannot run \"{name}\""), error);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| failed(&error))?;
    let drain = |stream: Option<Box<dyn Read + Send>>| {
        thread::spawn(move || {
            let mut content = Vec::new();
            if let Some(mut stream) = stream {
                let _ = stream.read_to_end(&mut content);
            }
            content
        })
    };
    let stdout = drain(child.stdout.take().map(|stream| Box::new(stream) as _));
    let stderr = drain(child.stderr.take().map(|stream| Box::new(stream) as _));
    let started = Instant::now();
    let status = loop {
        match child.try_wait().map_err(|error| failed(&error))? {
            Some(status) => break status,
            None if started.elapsed() >= timeout => {
                // The reading threads end when the last of its children closes the pipe; they are not waited
                // for.
                let _ = child.kill();
                let _ = child.wait();
                let seconds = timeout.as_secs();
                return Err(Error::new(
                    "program-failed",
                    format!("\"{name}\" took longer than {seconds} seconds"),
                ));
            }
            None => thread::sleep(pause(started)),
        }
    };
    Ok(ProgramOutput {
        status,
        stdout: stdout.join().unwrap_or_default(),
        stderr: String::from_utf8_lossy(&stderr.join().unwrap_or_default()).into_owned(),
    })
}

pub(super) fn process(pid: u32) -> Result<Pid> {
    i32::try_from(pid)
        .ok()
        .and_then(Pid::from_raw)
        .ok_or_else(|| Error::new("server-not-running", format!("{pid} is no process")))
}

/// Short at first, for what is done at once, and never longer than a fifth of a second.
pub(super) fn pause(started: Instant) -> Duration {
    (started.elapsed() / 10).clamp(Duration::from_millis(5), Duration::from_millis(200))
}

pub(super) fn tail(path: &Path, bytes: u64) -> std::io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(bytes)))?;
    let mut content = Vec::new();
    file.take(bytes).read_to_end(&mut content)?;
    let text = String::from_utf8_lossy(&content).into_owned();
    match length > bytes {
        true => Ok(text
            .split_once('\n')
            .map_or(text.clone(), |(_, rest)| rest.to_string())),
        false => Ok(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_log_is_cut_at_the_beginning_of_a_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        std::fs::write(&path, "first line\nsecond line\nthird\n").unwrap();
        assert_eq!(tail(&path, 1000).unwrap(), "first line\nsecond line\nthird\n");
        assert_eq!(tail(&path, 15).unwrap(), "third\n");
    }

    #[test]
    fn a_program_that_hangs_is_ended() {
        let error = run(Command::new("sleep").arg("60"), Duration::from_millis(100)).unwrap_err();
        assert_eq!(error.code(), "program-failed");
        let output = run(
            Command::new("sh").args(["-c", "echo out; echo err >&2; exit 3"]),
            Duration::from_secs(60),
        )
        .unwrap();
        assert_eq!(
            (
                output.status.code(),
                output.stdout.as_slice(),
                output.stderr.as_str()
            ),
            (Some(3), &b"out\n"[..], "err\n")
        );
    }
}
