//! Running ahead of the archiver: the note that answers `wal push` at once, and the process that leaves such notes.
//!
//! Invariants: that running ahead is not possible never makes a push fail; the process that is left behind holds nothing
//! of the server's (no standard streams, no working directory, a process group of its own) and ends with 0 or 1, by
//! itself, seconds after there was nothing more to do.

use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use backup::spool::{Acknowledged, Busy};
use backup::{AheadOptions, Circumstances, Copy, FileIdentity, PushOptions, Spool};
use diagnostic::{Error, Result};
use jiff::Timestamp;
use postgres::{TimelineId, WalFile};

use super::wal::{host_id, locate, open_enough, resolved};
use crate::backlog::limits;
use crate::cli;
use crate::config::{Cluster, Configuration};
use crate::context::Context;
use crate::{exit, output};

/// How long the process stays when nothing waits.
const IDLE: Duration = Duration::from_secs(5);
/// How often `wal push` looks whether archiving falls behind.
const WARN_EVERY: Duration = Duration::from_secs(60);

/// Where one segment stands in what is pushed ahead.
pub struct Ahead {
    spool: Spool,
    about: Circumstances,
    /// Absolute.
    path: PathBuf,
    name: String,
    timeline: TimelineId,
    number: u64,
    wal_segment_size: u32,
}

/// What is known of the file that the archiver asks for.
pub enum Answer {
    Durable(Acknowledged),
    /// It is to be pushed; as long as the value is held, nobody else does.
    Push(Option<Busy>),
}

impl Ahead {
    /// Nothing where there can be no spool; also for other files than whole segments.
    pub fn of(
        configuration: &Configuration,
        cluster: &Cluster,
        path: &Path,
        data_directory: &Path,
    ) -> Option<Ahead> {
        // Only where the archiver's own signs of what waits are.
        if path.parent() != Some(&data_directory.join("pg_wal")) {
            return None;
        }
        let (_, control) = cluster::read_control_file(data_directory).ok()?;
        let name = path.file_name()?.to_str()?.to_owned();
        let WalFile::Segment { timeline, number } = WalFile::parse(&name, control.wal_segment_size)? else {
            return None;
        };
        let directory = std::fs::metadata(data_directory).ok()?;
        // A data directory is one spool, whatever its cluster is called and wherever it is reached.
        let folder = format!("{}-{:x}-{:x}", cluster.name, directory.dev(), directory.ino());
        let spool = Spool::open(&cluster.archive.spool.join(folder)).ok()?;
        Some(Ahead {
            spool,
            about: Circumstances {
                version: env!("CARGO_PKG_VERSION").to_owned(),
                boot: boot()?,
                system: control.system_identifier,
                data_directory: (directory.dev(), directory.ino()),
                policy: policy(configuration, cluster),
            },
            path: path.to_path_buf(),
            name,
            timeline,
            number,
            wal_segment_size: control.wal_segment_size,
        })
    }

    /// Looks for a note; if somebody is pushing the file at this moment, waits for them.
    ///
    /// Errors: that of the push that ran ahead, once; `wal-restored-directory`.
    pub fn answer(&self, now: Timestamp) -> Result<Answer> {
        if let Some(data_directory) = self.path.parent().and_then(Path::parent) {
            // A note may be older than the marker.
            backup::wal_push::refuse_restored(data_directory)?;
        }
        if let Some(noted) = self.note(now) {
            return noted.map(Answer::Durable);
        }
        let busy = self.spool.wait_busy(&self.name);
        // By the clock as it is after the waiting.
        match self.note(Timestamp::now()) {
            Some(noted) => noted.map(Answer::Durable),
            None => Ok(Answer::Push(busy)),
        }
    }

    /// What a person should know of the files that wait; once in a while only, since the archiver calls often.
    pub fn backlog_warnings(&self, cluster: &Cluster, now: Timestamp) -> Vec<String> {
        let Some(data_directory) = self.path.parent().and_then(Path::parent) else {
            return Vec::new();
        };
        if !self.spool.warning_due(WARN_EVERY, now) {
            return Vec::new();
        }
        backup::Backlog::look(data_directory, self.wal_segment_size, now)
            .map(|backlog| backlog.warnings(&limits(cluster), now))
            .unwrap_or_default()
    }

    fn note(&self, now: Timestamp) -> Option<Result<Acknowledged>> {
        let file = FileIdentity::at(&self.path).ok()?;
        self.spool.take(&self.name, &file, &self.about, now)
    }

    /// Leaves a process behind that pushes what waits, if something does and none is there.
    pub fn start(&self, context: &Context, cluster: &Cluster) -> Result<()> {
        let Some(pg_wal) = self.path.parent().filter(|_| cluster.archive.push_ahead > 0) else {
            return Ok(());
        };
        let next = postgres::segment_name(
            self.timeline,
            self.number.saturating_add(1),
            self.wal_segment_size,
        );
        if !backup::ready_file(pg_wal, &next).exists() || self.spool.try_worker().is_none() {
            return Ok(());
        }
        let log = self.spool.worker_log();
        leave_behind(
            context,
            &cluster.name,
            "push-ahead",
            &[pg_wal.join(next).as_os_str()],
            &log,
        )
    }
}

/// Starts this program again, detached from whoever started us.
pub fn leave_behind(
    context: &Context,
    cluster: &str,
    verb: &str,
    arguments: &[&std::ffi::OsStr],
    log: &Path,
) -> Result<()> {
    let failed = |error: &std::io::Error| {
        let message = format!("cannot start `pgproof wal {verb}`");
        Error::io("process-start", message, error)
    };
    let configuration = context.configuration()?.path;
    let log = File::create(log).map_err(|error| failed(&error))?;
    Command::new(context.program()?)
        .arg("--config")
        .arg(configuration)
        .args(["wal", verb, "--cluster", cluster])
        .args(arguments)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .process_group(0)
        .spawn()
        .map(drop)
        .map_err(|error| failed(&error))
}

/// `wal push-ahead PATH`, PATH being the first segment that may be waiting.
pub fn push_ahead(context: &Context, arguments: &cli::WalPush) -> Result<u8> {
    let configuration = context.configuration()?;
    let cluster = configuration.cluster(arguments.cluster.as_deref())?;
    let (path, data_directory) = locate(cluster, &arguments.path)?;
    let Some(ahead) = Ahead::of(&configuration, cluster, &path, &data_directory) else {
        return Ok(exit::DONE);
    };
    let (Some(worker), Some(pg_wal)) = (ahead.spool.try_worker(), path.parent()) else {
        return Ok(exit::DONE);
    };
    let copies = open_enough(&configuration, cluster)?;
    let given: Vec<Copy<'_>> = copies
        .open
        .iter()
        .map(|copy| Copy {
            name: &copy.name,
            repository: &copy.cluster,
        })
        .collect();
    let push = PushOptions {
        path: PathBuf::new(),
        data_directory: resolved(&data_directory),
        host_id: host_id(),
        acknowledge: cluster.acknowledge,
    };
    let warnings: Vec<String> = copies
        .failed
        .iter()
        .map(|(name, error)| format!("copy {name:?} could not be opened: {error}"))
        .collect();
    let result = backup::push_ahead(
        &given,
        &AheadOptions {
            spool: &ahead.spool,
            about: &ahead.about,
            push: &push,
            pg_wal,
            first: (ahead.timeline, ahead.number),
            wal_segment_size: ahead.wal_segment_size,
            at_once: usize::try_from(cluster.archive.push_ahead).unwrap_or(1),
            warnings: &warnings,
            idle: IDLE,
            clock: &Timestamp::now,
        },
        &worker,
    );
    match result.failure {
        Some(error) => Err(error),
        None => {
            output::notice(format!("{} segments were pushed ahead", result.pushed));
            Ok(exit::DONE)
        }
    }
}

/// This run of the operating system: proc(5), `/proc/sys/kernel/random/boot_id`.
pub fn boot() -> Option<String> {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let id = id.trim();
    (!id.is_empty()).then(|| id.to_owned())
}

/// Stands for what decides that a file is durable. Another configuration gives another number, as far as 64 bits go; it
/// guards against mistakes, not against malice.
pub fn policy(configuration: &Configuration, cluster: &Cluster) -> u64 {
    let mut hasher = DefaultHasher::new();
    (&cluster.name, cluster.acknowledge).hash(&mut hasher);
    for name in &cluster.copies {
        let copy = configuration.copies.get(name);
        (name, copy.map(|copy| (&copy.url, format!("{:?}", copy.key)))).hash(&mut hasher);
    }
    hasher.finish()
}
