//! `postmaster.pid`: what a running server says of itself in its data directory.
//!
//! Invariants: reading is total; a file that a killed server left behind is not taken for a running server
//! (the process must exist, and be a server of that very directory as far as the system lets us see).
//! Source: `LOCK_FILE_LINE_*` of `src/include/utils/pidfile.h`, unchanged from 10 to 18.

use diagnostic::{Error, Result};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// What the file says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PostmasterPid {
    pub pid: u32,
    pub data_directory: PathBuf,
    pub port: Option<u16>,
    /// `None` when the server listens on no socket.
    pub socket_directory: Option<PathBuf>,
    pub status: ServerState,
}

/// In which state a server is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServerState {
    Stopped,
    Starting,
    /// In recovery, and accepts no connections (`hot_standby=off`).
    Standby,
    /// Accepts connections.
    Ready,
    Stopping,
}

impl PostmasterPid {
    /// Reads the text of the file; `None` when it is not (yet) complete enough to name a process.
    pub fn parse(text: &str) -> Option<PostmasterPid> {
        let lines: Vec<&str> = text.lines().collect();
        let line = |index: usize| {
            lines
                .get(index)
                .map(|line| line.trim())
                .filter(|line| !line.is_empty())
        };
        // A standalone backend writes its pid with a minus.
        let pid = line(0)?.trim_start_matches('-').parse().ok()?;
        Some(PostmasterPid {
            pid,
            data_directory: PathBuf::from(line(1)?),
            port: line(3).and_then(|port| port.parse().ok()),
            socket_directory: line(4).map(PathBuf::from),
            status: match line(7) {
                Some("ready") => ServerState::Ready,
                Some("standby") => ServerState::Standby,
                Some("stopping") => ServerState::Stopping,
                _ => ServerState::Starting,
            },
        })
    }

    /// Reads `postmaster.pid` of a data directory; `None` when there is none.
    pub fn read(data_directory: &Path) -> Result<Option<PostmasterPid>> {
        let path = data_directory.join("postmaster.pid");
        match std::fs::read(&path) {
            Ok(content) => Ok(PostmasterPid::parse(&String::from_utf8_lossy(&content))),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io(
                "data-directory-read",
                format!("cannot read \"{}\"", path.display()),
                &error,
            )),
        }
    }
}

/// The server that runs in this data directory, if one does.
pub fn live_server(data_directory: &Path) -> Result<Option<PostmasterPid>> {
    let server = PostmasterPid::read(data_directory)?;
    Ok(server.filter(|server| is_server_of(server.pid, data_directory)))
}

/// Does the process exist, and does nothing say that it is another program or another directory's server?
fn is_server_of(pid: u32, data_directory: &Path) -> bool {
    let Some(process) = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw) else {
        return false;
    };
    match rustix::process::test_kill_process(process) {
        Ok(()) | Err(rustix::io::Errno::PERM) => {}
        Err(_) => return false,
    }
    let about = PathBuf::from(format!("/proc/{pid}"));
    if let Ok(name) = std::fs::read_to_string(about.join("comm"))
        && !matches!(name.trim(), "postgres" | "postmaster")
    {
        return false;
    }
    // The server changes into its data directory. Another account's process does not let us look: then it
    // counts.
    match (
        std::fs::canonicalize(about.join("cwd")),
        std::fs::canonicalize(data_directory),
    ) {
        (Ok(working_directory), Ok(data_directory)) => working_directory == data_directory,
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_of_a_running_server_is_read() {
        let text = "4711\n/srv/data\n1700000000\n5433\n/run/pg\n\n  123456     7\nready   \n";
        let server = PostmasterPid::parse(text).unwrap();
        assert_eq!(
            (server.pid, server.port, server.status),
            (4711, Some(5433), ServerState::Ready)
        );
        assert_eq!(server.socket_directory, Some(PathBuf::from("/run/pg")));
        assert_eq!(
            PostmasterPid::parse("4711\n/srv\n").unwrap().status,
            ServerState::Starting
        );
        for text in ["", "x\n/srv\n", "12", "99999999999999\n/srv\n"] {
            assert_eq!(PostmasterPid::parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_file_left_behind_is_not_a_running_server() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(live_server(folder.path()).unwrap(), None);
        // Our own process exists and is no server.
        let text = format!("{}\n{}\n0\n5432\n", std::process::id(), folder.path().display());
        std::fs::write(folder.path().join("postmaster.pid"), text).unwrap();
        assert_eq!(live_server(folder.path()).unwrap(), None);
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "(?s).*") {
            let _ = PostmasterPid::parse(&text);
        }
    }
}
