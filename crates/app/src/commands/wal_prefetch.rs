//! Fetching ahead of recovery: which recovery it is, and the process that fetches.
//!
//! Invariants: that fetching ahead is not possible never makes a `wal get` fail; an answer that there is no such segment
//! never comes from here; only the account that the data directory belongs to writes into it.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use diagnostic::Result;
use postgres::{ClusterState, WalFile};
use restore::{FetchAhead, PlaceOptions, Placed, Prefetched};

use super::wal_ahead::{boot, leave_behind, policy};
use crate::cli;
use crate::config::{Cluster, Configuration};
use crate::context::Context;
use crate::copies::Copies;
use crate::{exit, output};

/// How long the process stays when recovery asks for nothing.
const IDLE: Duration = Duration::from_secs(30);

/// What was fetched for the recovery that is going on.
pub struct Prefetch {
    place: Prefetched,
    options: PlaceOptions,
    bytes: u64,
    data_directory: PathBuf,
}

impl Prefetch {
    /// Nothing where fetching ahead is switched off, or the file is not wanted by a server in recovery.
    pub fn of(
        configuration: &Configuration,
        cluster: &Cluster,
        data_directory: &Path,
        destination: &Path,
        options: PlaceOptions,
    ) -> Option<Prefetch> {
        let pg_wal = data_directory.join("pg_wal");
        if cluster.archive.prefetch_bytes == 0 || destination.parent() != Some(&pg_wal) {
            return None;
        }
        let directory = std::fs::metadata(data_directory).ok()?;
        if directory.uid() != rustix::process::geteuid().as_raw() {
            return None;
        }
        let recovery = recovery(configuration, cluster, data_directory)?;
        Some(Prefetch {
            place: Prefetched::of(&pg_wal, &recovery),
            options,
            bytes: cluster
                .archive
                .prefetch_bytes
                .max(u64::from(options.wal_segment_size)),
            data_directory: data_directory.to_path_buf(),
        })
    }

    pub fn place(&self, file: &str, destination: &Path) -> Option<Placed> {
        self.place.place(file, destination, &self.options)
    }

    pub fn clear(&self) {
        self.place.clear();
    }

    /// The file is placed: those behind it are fetched next.
    pub fn start(&self, context: &Context, cluster: &Cluster, file: &str) -> Result<()> {
        let size = self.options.wal_segment_size;
        if !matches!(WalFile::parse(file, size), Some(WalFile::Segment { .. })) {
            return Ok(());
        }
        let wanted = self.place.wants_fetcher(self.bytes);
        self.place.told(file);
        if !wanted {
            return Ok(());
        }
        let log = self.place.worker_log();
        leave_behind(
            context,
            &cluster.name,
            "fetch-ahead",
            &[self.data_directory.as_os_str()],
            &log,
        )
    }
}

/// `wal fetch-ahead DATA_DIRECTORY`
pub fn fetch_ahead(context: &Context, arguments: &cli::WalFetchAhead) -> Result<u8> {
    let configuration = context.configuration()?;
    let cluster = configuration.cluster(arguments.cluster.as_deref())?;
    let data_directory = &arguments.data_directory;
    let options = restore::wal::identify(data_directory)?;
    let destination = data_directory.join("pg_wal/RECOVERYXLOG");
    let Some(prefetch) = Prefetch::of(&configuration, cluster, data_directory, &destination, options) else {
        return Ok(exit::DONE);
    };
    let Some(fetcher) = prefetch.place.try_fetcher() else {
        return Ok(exit::DONE);
    };
    let this = recovery(&configuration, cluster, data_directory);
    // A backup's control file says "in production" until recovery has got its first segments.
    let recovers = AtomicBool::new(false);
    let alive = || {
        if let Ok((_, control)) = cluster::read_control_file(data_directory) {
            match control.state {
                ClusterState::InProduction | ClusterState::ShutDown if recovers.load(Ordering::Relaxed) => {
                    return false;
                }
                ClusterState::InProduction | ClusterState::ShutDown => {}
                _ => recovers.store(true, Ordering::Relaxed),
            }
        }
        recovery(&configuration, cluster, data_directory) == this
    };
    let copies = Copies::open(&configuration, cluster, None)?;
    let clusters: Vec<_> = copies.open.iter().map(|copy| copy.cluster.clone()).collect();
    let why = restore::fetch_ahead(
        &FetchAhead {
            place: prefetch.place.clone(),
            copies: &clusters,
            options,
            bytes: prefetch.bytes,
            idle: IDLE,
            alive: &alive,
        },
        &fetcher,
    );
    output::notice(why);
    Ok(exit::DONE)
}

/// Names one start of one server in one boot of the machine, and where its WAL comes from. Nothing when no server runs
/// there: then nobody recovers.
fn recovery(configuration: &Configuration, cluster: &Cluster, data_directory: &Path) -> Option<String> {
    // Process, directory and start; what stands behind them changes while the server starts.
    let postmaster = std::fs::read_to_string(data_directory.join("postmaster.pid")).ok()?;
    let postmaster: Vec<&str> = postmaster.lines().take(3).collect();
    if postmaster.len() < 3 {
        return None;
    }
    let directory = std::fs::metadata(data_directory).ok()?;
    let mut hasher = DefaultHasher::new();
    (
        boot()?,
        format!("{postmaster:?}"),
        directory.dev(),
        directory.ino(),
    )
        .hash(&mut hasher);
    (env!("CARGO_PKG_VERSION"), policy(configuration, cluster)).hash(&mut hasher);
    Some(format!("{:016x}", hasher.finish()))
}
