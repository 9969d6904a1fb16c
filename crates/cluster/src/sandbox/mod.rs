//! The quarantine of a copy: a server that was restored from production must neither reach nor harm it,
//! whatever its configuration, its extensions or the WAL that it replays may ask for (hard rule 30).
//!
//! The parent writes a [`Spec`] to a file and starts
//! `<program> sandbox-exec --spec FILE -- postgres -D ...`; that process, of one thread, calls [`exec`],
//! which gives up root, enters the layers, tries from inside what must not work, reports, and becomes the
//! server. Everything is inherited by all processes of the server, the `restore_command` included.
//!
//! Layers, each as far as the system allows it, each reported:
//! - Landlock: writes only below [`Quarantine::folder`] (and to harmless devices); no TCP; no signals,
//!   tracing or abstract sockets to processes outside. It does not guard permissions and times of files
//!   (`chmod`, `touch` of what exists), nor, before ABI 9, connecting to sockets: those are the mount
//!   namespace's part.
//! - A mount namespace: empty read-only file systems hide production's directories and socket folders; what
//!   must stay readable below them is put back. A private `/dev/shm`.
//! - A network namespace with nothing but a loopback of its own, and an IPC namespace.
//! - A user namespace in which the account is mapped to itself and nothing else exists.
//! - `no_new_privs`, no capabilities.
//!
//! Unix sockets below `folder` stay reachable from outside: names of sockets in the file system cross
//! network namespaces. Invariant: a program is never started as root, nor when what must stay readable was
//! lost.

mod layers;
mod mounts;
mod probes;

use diagnostic::{Error, Result};
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};

pub use layers::enter;
pub use probes::{Baseline, probe};

/// What a copy may touch, and what it must not see.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quarantine {
    /// The only writable place.
    pub folder: PathBuf,
    /// Production's data directory, tablespaces and socket folders. What does not exist is left out.
    pub hidden: Vec<PathBuf>,
    /// What must stay readable even when it lies below a hidden path: repository folders, configuration and
    /// key files, our own program, PostgreSQL's programs. Real paths: a link in a hidden folder is not put
    /// back.
    pub readable: Vec<PathBuf>,
    pub network: Network,
    /// Addresses that must not be reachable (production's own); tried besides a listener made for the
    /// purpose.
    pub addresses: Vec<SocketAddr>,
}

/// Whether the copy may use the network, for example because its `restore_command` reads from S3.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Network {
    None,
    Granted,
}

/// What became of one layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LayerState {
    Applied,
    Unavailable { reason: String },
}

impl LayerState {
    pub fn is_applied(&self) -> bool {
        matches!(self, LayerState::Applied)
    }

    fn unavailable(reason: impl std::fmt::Display) -> LayerState {
        LayerState::Unavailable {
            reason: reason.to_string(),
        }
    }
}

/// What became of all layers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layers {
    pub landlock: LayerState,
    /// What the kernel offers; signals are held back from 6, TCP from 4. 0: no Landlock.
    pub landlock_abi: u32,
    pub user_namespace: LayerState,
    pub mount_namespace: LayerState,
    pub network_namespace: LayerState,
    pub ipc_namespace: LayerState,
    pub no_new_privileges: LayerState,
    /// Has the copy a `/dev/shm` of its own?
    pub private_shared_memory: bool,
}

impl Layers {
    /// Is there a layer that keeps the copy from writing into production's directories and tablespaces?
    /// Without one, quarantine is by configuration only.
    pub fn protects_files(&self) -> bool {
        self.landlock.is_applied() || self.mount_namespace.is_applied()
    }
}

/// How a probe should come out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProbeExpectation {
    Denied,
    Allowed,
}

/// How it came out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProbeOutcome {
    Denied {
        reason: String,
    },
    Allowed,
    /// There was nothing to try it on.
    NotRun {
        reason: String,
    },
}

/// Something that was tried from inside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    /// Stable: "write-hidden", "read-hidden", "socket-connect", "tcp-connect", "abstract-socket-connect",
    /// "signal", "process-root", "write-outside", "write-folder", "read-readable".
    pub name: String,
    /// The path, address or process.
    pub target: String,
    pub expectation: ProbeExpectation,
    pub outcome: ProbeOutcome,
}

impl Probe {
    /// Did it come out as it must? What was not run has shown nothing.
    pub fn held(&self) -> bool {
        matches!(
            (&self.expectation, &self.outcome),
            (ProbeExpectation::Denied, ProbeOutcome::Denied { .. })
                | (ProbeExpectation::Allowed, ProbeOutcome::Allowed)
        )
    }

    /// Did it come out as it must not?
    pub fn failed(&self) -> bool {
        !self.held() && !matches!(self.outcome, ProbeOutcome::NotRun { .. })
    }
}

/// What the launched process is told, as JSON in a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spec {
    pub quarantine: Quarantine,
    /// As root: become this account (uid, gid) without further groups. Required when started as root.
    pub run_as: Option<(u32, u32)>,
    /// Where the [`Report`] is written, below `folder`. Read it right after the start: the copy may write
    /// there.
    pub report: PathBuf,
    /// Appended to the program's arguments when there is no private `/dev/shm`:
    /// `-c dynamic_shared_memory_type=mmap`.
    pub arguments_without_shared_memory: Vec<String>,
    /// `false`: Landlock alone, for a host on which namespaces are unwanted.
    pub namespaces: bool,
}

/// What was achieved, and what trying it showed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    pub layers: Layers,
    pub probes: Vec<Probe>,
}

impl Spec {
    /// A server in `folder`, reporting to `quarantine.json` there.
    pub fn new(quarantine: Quarantine, run_as: Option<(u32, u32)>) -> Spec {
        Spec {
            report: quarantine.folder.join("quarantine.json"),
            quarantine,
            run_as,
            arguments_without_shared_memory: vec!["-c".into(), "dynamic_shared_memory_type=mmap".into()],
            namespaces: true,
        }
    }

    /// Writes the file for the launched process. Error codes: `sandbox-spec`.
    pub fn write(&self, path: &Path) -> Result<()> {
        write_json(path, self)
    }

    /// Reads it back. Error codes: `sandbox-spec`.
    pub fn read(path: &Path) -> Result<Spec> {
        read_json(path)
    }
}

impl Report {
    /// Reads what the launched process reported. Error codes: `sandbox-spec`.
    pub fn read(path: &Path) -> Result<Report> {
        read_json(path)
    }

    /// The probes that came out as they must not.
    pub fn violations(&self) -> Vec<&Probe> {
        self.probes.iter().filter(|probe| probe.failed()).collect()
    }
}

/// Enters the quarantine, probes, reports, and becomes `program`; returns only on failure. The process must
/// have one thread. Error codes: `sandbox-spec`, `sandbox-threads`, `root-not-allowed`,
/// `sandbox-privileges`, `sandbox-mount`, `sandbox-exec`.
pub fn exec(spec: &Spec, program: &Path, arguments: &[OsString]) -> Error {
    match prepare(spec, program) {
        Ok(layers) => {
            let mut command = std::process::Command::new(program);
            command.args(arguments).current_dir(&spec.quarantine.folder);
            if !layers.private_shared_memory {
                command.args(&spec.arguments_without_shared_memory);
            }
            let error = command.exec();
            Error::io(
                "sandbox-exec",
                format!("cannot execute \"{}\"", program.display()),
                &error,
            )
        }
        Err(error) => error,
    }
}

fn prepare(spec: &Spec, program: &Path) -> Result<Layers> {
    if !spec.report.starts_with(&spec.quarantine.folder) {
        return Err(Error::usage(
            "sandbox-spec",
            "the report must lie in the quarantine's folder",
        ));
    }
    let mut quarantine = spec.quarantine.clone();
    // Both must be found again once the paths above them are hidden.
    quarantine.readable.extend(
        program
            .canonicalize()
            .ok()
            .and_then(|path| Some(path.parent()?.to_path_buf())),
    );
    quarantine.readable.extend(std::env::current_exe());
    let baseline = Baseline::gather(&quarantine);
    let layers = layers::enter_as(&quarantine, spec.run_as, spec.namespaces)?;
    let report = Report {
        probes: probe(&spec.quarantine, &baseline),
        layers,
    };
    write_json(&spec.report, &report)?;
    Ok(report.layers)
}

fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<()> {
    let mut text = serde_json::to_vec_pretty(value)
        .map_err(|error| Error::new("sandbox-spec", "cannot write JSON").caused_by(&error))?;
    text.push(b'\n');
    std::fs::write(path, text).map_err(|error| {
        Error::io(
            "sandbox-spec",
            format!("cannot write \"{}\"", path.display()),
            &error,
        )
    })
}

fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T> {
    let text = std::fs::read(path).map_err(|error| {
        Error::io(
            "sandbox-spec",
            format!("cannot read \"{}\"", path.display()),
            &error,
        )
    })?;
    serde_json::from_slice(&text).map_err(|error| {
        Error::new("sandbox-spec", format!("cannot read \"{}\"", path.display())).caused_by(&error)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_run_neither_holds_nor_fails() {
        let probe = |expectation, outcome| Probe {
            name: "x".into(),
            target: "y".into(),
            expectation,
            outcome,
        };
        let denied = || ProbeOutcome::Denied { reason: "r".into() };
        let not_run = || ProbeOutcome::NotRun { reason: "r".into() };
        assert!(probe(ProbeExpectation::Denied, denied()).held());
        assert!(probe(ProbeExpectation::Denied, ProbeOutcome::Allowed).failed());
        assert!(probe(ProbeExpectation::Allowed, denied()).failed());
        for expectation in [ProbeExpectation::Denied, ProbeExpectation::Allowed] {
            assert!(!probe(expectation, not_run()).held() && !probe(expectation, not_run()).failed());
        }
    }

    #[test]
    fn a_spec_survives_its_file_and_an_unknown_word_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("spec");
        let quarantine = Quarantine {
            folder: "/srv/copy".into(),
            hidden: vec!["/srv/production".into()],
            readable: vec![],
            network: Network::None,
            addresses: vec!["127.0.0.1:5432".parse().unwrap()],
        };
        let spec = Spec::new(quarantine, Some((101, 104)));
        spec.write(&path).unwrap();
        assert_eq!(Spec::read(&path).unwrap(), spec);
        let text = std::fs::read_to_string(&path)
            .unwrap()
            .replace("\"run_as\"", "\"run_es\"");
        std::fs::write(&path, text).unwrap();
        assert_eq!(Spec::read(&path).unwrap_err().code(), "sandbox-spec");
    }

    #[test]
    fn a_process_of_several_threads_is_not_put_into_quarantine() {
        // Test programs run tests in threads; were it otherwise, this one would lock itself in.
        let folder = std::fs::canonicalize(std::env::temp_dir()).unwrap();
        let quarantine = Quarantine {
            folder,
            hidden: vec![],
            readable: vec![],
            network: Network::None,
            addresses: vec![],
        };
        assert_eq!(enter(&quarantine).unwrap_err().code(), "sandbox-threads");
    }
}
