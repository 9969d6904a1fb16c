//! Trying from inside a quarantine what must not work, and what must.
//!
//! A probe shows something only when its target is there, so targets are looked up before the quarantine is
//! entered ([`Baseline`]); a target that is missing or silent even from outside makes the probe NOT RUN,
//! never passed. Invariant: a probe changes nothing even where the quarantine fails: writing is tried with
//! files that never get a name, opening with modes that do not truncate, signalling with signal 0.

use super::{Network, Probe, ProbeExpectation, ProbeOutcome, Quarantine};
use crate::postmaster::PostmasterPid;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{SocketAddr as UnixAddress, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

const CONNECT_LIMIT: Duration = Duration::from_secs(2);
/// So many sockets are tried in each folder.
const SOCKETS_MAX: usize = 20;

/// What there is to be tried, as seen from outside.
pub struct Baseline {
    folders: Vec<PathBuf>,
    /// Hidden folders with a data directory in them.
    data_directories: Vec<PathBuf>,
    sockets: Vec<(PathBuf, Option<String>)>,
    servers: Vec<u32>,
    addresses: Vec<(SocketAddr, Option<String>)>,
    tcp: Option<TcpListener>,
    abstract_socket: Option<(UnixListener, UnixAddress)>,
}

impl Baseline {
    /// Looks, before the quarantine is entered.
    pub fn gather(quarantine: &Quarantine) -> Baseline {
        let folders: Vec<PathBuf> = quarantine
            .hidden
            .iter()
            .filter(|path| path.is_dir())
            .cloned()
            .collect();
        let data_directories: Vec<PathBuf> = folders
            .iter()
            .filter(|path| path.join("PG_VERSION").is_file())
            .cloned()
            .collect();
        let servers = data_directories
            .iter()
            .filter_map(|folder| PostmasterPid::read(folder).ok().flatten())
            .map(|server| server.pid)
            .filter(|pid| signal(*pid).is_ok())
            .collect();
        let sockets = folders
            .iter()
            .flat_map(|folder| sockets_in(folder))
            .map(|path| {
                let silent = UnixStream::connect(&path).err().map(|error| error.to_string());
                (path, silent)
            })
            .collect();
        let addresses = quarantine
            .addresses
            .iter()
            .map(|address| (*address, connect(address).err().map(|error| error.to_string())))
            .collect();
        let name = format!("pgproof-probe-{}", std::process::id());
        let abstract_socket = UnixAddress::from_abstract_name(name)
            .and_then(|address| Ok((UnixListener::bind_addr(&address)?, address)))
            .ok();
        Baseline {
            folders,
            data_directories,
            sockets,
            servers,
            addresses,
            tcp: TcpListener::bind("127.0.0.1:0").ok(),
            abstract_socket,
        }
    }
}

/// Tries everything; to be called from inside.
pub fn probe(quarantine: &Quarantine, baseline: &Baseline) -> Vec<Probe> {
    use ProbeExpectation::{Allowed, Denied};
    let mut probes = Vec::new();
    let mut add = |name: &str, target: String, expectation, outcome| {
        probes.push(Probe {
            name: name.into(),
            target,
            expectation,
            outcome,
        });
    };
    for folder in &baseline.folders {
        add("write-hidden", shown(folder), Denied, outcome(write_into(folder)));
    }
    for folder in &baseline.data_directories {
        let file = folder.join("PG_VERSION");
        add(
            "write-hidden",
            shown(&file),
            Denied,
            outcome(open_for_writing(&file)),
        );
        add(
            "read-hidden",
            shown(&file),
            Denied,
            outcome(fs::read(&file).map(drop)),
        );
    }
    for (path, silent) in &baseline.sockets {
        let result = outcome(UnixStream::connect(path).map(drop));
        add(
            "socket-connect",
            shown(path),
            Denied,
            unless_silent(silent, result),
        );
    }
    if quarantine.network == Network::None {
        match baseline.tcp.as_ref().map(TcpListener::local_addr) {
            Some(Ok(address)) => add(
                "tcp-connect",
                address.to_string(),
                Denied,
                outcome(connect(&address)),
            ),
            _ => add(
                "tcp-connect",
                "127.0.0.1".into(),
                Denied,
                not_run("no listener could be made"),
            ),
        }
    }
    for (address, silent) in &baseline.addresses {
        let result = unless_silent(silent, outcome(connect(address)));
        add("tcp-connect", address.to_string(), Denied, result);
    }
    match &baseline.abstract_socket {
        Some((_, address)) => {
            let result = outcome(UnixStream::connect_addr(address).map(drop));
            add(
                "abstract-socket-connect",
                "a listener outside".into(),
                Denied,
                result,
            );
        }
        None => {
            add(
                "abstract-socket-connect",
                "".into(),
                Denied,
                not_run("no listener could be made"),
            );
        }
    }
    for pid in &baseline.servers {
        add("signal", format!("process {pid}"), Denied, outcome(signal(*pid)));
        // Another process's root directory leads around every mount of ours.
        let root = PathBuf::from(format!("/proc/{pid}/root/."));
        add(
            "process-root",
            shown(&root),
            Denied,
            outcome(fs::metadata(&root).map(drop)),
        );
    }
    for folder in outside(&quarantine.folder) {
        add(
            "write-outside",
            shown(&folder),
            Denied,
            outcome(write_into(&folder)),
        );
    }
    add(
        "write-folder",
        shown(&quarantine.folder),
        Allowed,
        outcome(write_into(&quarantine.folder)),
    );
    for path in &quarantine.readable {
        let result = match fs::metadata(path) {
            Ok(metadata) if metadata.is_dir() => fs::read_dir(path).map(drop),
            Ok(_) => fs::File::open(path).map(drop),
            Err(error) => Err(error),
        };
        add("read-readable", shown(path), Allowed, outcome(result));
    }
    probes
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

fn outcome(result: io::Result<()>) -> ProbeOutcome {
    match result {
        Ok(()) => ProbeOutcome::Allowed,
        Err(error) => ProbeOutcome::Denied {
            reason: error.to_string(),
        },
    }
}

fn not_run(reason: &str) -> ProbeOutcome {
    ProbeOutcome::NotRun {
        reason: reason.into(),
    }
}

/// What does not answer outside either, shows nothing by not answering inside. That it does answer does.
fn unless_silent(silent: &Option<String>, outcome: ProbeOutcome) -> ProbeOutcome {
    match (silent, &outcome) {
        (Some(reason), ProbeOutcome::Denied { .. }) => {
            not_run(&format!("unreachable from outside, too: {reason}"))
        }
        _ => outcome,
    }
}

/// Makes a file without a name, which is gone when it is closed.
fn write_into(folder: &Path) -> io::Result<()> {
    let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
    match rustix::fs::open(folder, flags, Mode::RUSR | Mode::WUSR) {
        Ok(_) => Ok(()),
        // The file system knows no such files: one with a name, then, which nobody else uses.
        Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => {
            let path = folder.join(format!(".pgproof-probe-{}", std::process::id()));
            fs::OpenOptions::new().write(true).create_new(true).open(&path)?;
            fs::remove_file(&path)
        }
        Err(error) => Err(error.into()),
    }
}

fn open_for_writing(file: &Path) -> io::Result<()> {
    fs::OpenOptions::new().append(true).open(file).map(drop)
}

fn connect(address: &SocketAddr) -> io::Result<()> {
    TcpStream::connect_timeout(address, CONNECT_LIMIT).map(drop)
}

fn signal(pid: u32) -> io::Result<()> {
    let process = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw);
    let process = process.ok_or_else(|| io::Error::other("no process"))?;
    rustix::process::test_kill_process(process).map_err(Into::into)
}

fn sockets_in(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Vec::new();
    };
    let sockets = entries.flatten().filter(|entry| {
        entry.file_name().to_string_lossy().starts_with(".s.PGSQL.")
            && entry.file_type().is_ok_and(|kind| kind.is_socket())
    });
    sockets.map(|entry| entry.path()).take(SOCKETS_MAX).collect()
}

/// Folders outside that the account could otherwise write to.
fn outside(folder: &Path) -> Vec<PathBuf> {
    let mut folders: Vec<PathBuf> = folder.parent().map(Path::to_path_buf).into_iter().collect();
    folders.extend(["/tmp", "/var/tmp"].map(PathBuf::from));
    folders.retain(|outside| outside.is_dir() && !outside.starts_with(folder));
    folders.dedup();
    folders
}
