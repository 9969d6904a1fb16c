//! Servers that run on this host, as far as the system lets us see them. Hard rules 25 and 30.
//!
//! Invariant: what cannot be seen is not called free: `postmaster.pid` counts until its process, the processes
//! that work in the directory, and its shared memory are all known to be gone.

use std::path::{Path, PathBuf};

use postgres::Oid;
use serde::{Deserialize, Serialize};

/// A server that runs here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LiveCluster {
    pub pid: i32,
    pub data_directory: PathBuf,
    /// Where its tablespaces lie.
    pub tablespaces: Vec<(Oid, PathBuf)>,
}

/// PostgreSQL processes by the directory in which they work.
fn servers() -> Vec<(i32, PathBuf)> {
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for entry in entries.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let command = std::fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        if !matches!(command.trim(), "postgres" | "postmaster") {
            continue;
        }
        if let Ok(directory) = std::fs::read_link(entry.path().join("cwd")) {
            found.push((pid, directory));
        }
    }
    found.sort();
    found
}

/// The servers of this host whose directories we may look into, but for the one on `except`.
pub(crate) fn live_clusters(except: &Path) -> Vec<LiveCluster> {
    let except = std::fs::canonicalize(except).unwrap_or_else(|_| except.to_owned());
    let mut clusters: Vec<LiveCluster> = Vec::new();
    for (pid, data_directory) in servers() {
        let known = clusters
            .iter()
            .any(|known| known.data_directory == data_directory);
        if known || data_directory == except || !data_directory.join("PG_VERSION").exists() {
            continue;
        }
        let tablespaces = crate::destination::tablespace_links(&data_directory).unwrap_or_default();
        clusters.push(LiveCluster {
            pid,
            data_directory,
            tablespaces,
        });
    }
    clusters
}

/// A process that works in this directory, whatever `postmaster.pid` says: backends outlive a killed postmaster.
pub(crate) fn process_in(data_directory: &Path) -> Option<i32> {
    let own = std::fs::canonicalize(data_directory).ok()?;
    let (pid, _) = servers().into_iter().find(|(_, directory)| *directory == own)?;
    Some(pid)
}

/// The process that made the shared memory that `postmaster.pid` names, while somebody is attached to it.
pub(crate) fn shared_memory_user(postmaster_pid: &str) -> Option<i32> {
    let line = postmaster_pid.lines().nth(6)?;
    let mut numbers = line.split_whitespace();
    let (key, id) = (
        numbers.next()?.parse::<u64>().ok()?,
        numbers.next()?.parse::<i64>().ok()?,
    );
    attached(&std::fs::read_to_string("/proc/sysvipc/shm").ok()?, key, id)
}

/// Looks a segment up in /proc/sysvipc/shm: key, shmid, perms, size, cpid, lpid, nattch.
fn attached(table: &str, key: u64, id: i64) -> Option<i32> {
    table.lines().skip(1).find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        // The key is printed signed there, and unsigned in postmaster.pid.
        let same = fields.first()?.parse::<i64>().ok()? as u32 == key as u32
            && fields.get(1)?.parse::<i64>().ok()? == id;
        (same && fields.get(6)?.parse::<u64>().ok()? > 0).then(|| fields.get(4)?.parse().ok())?
    })
}

/// The live cluster that uses a location, or lies around or within it.
pub(crate) fn user_of<'a>(clusters: &'a [LiveCluster], location: &Path) -> Option<&'a LiveCluster> {
    let real = |path: &Path| -> PathBuf {
        let there = path.ancestors().find(|above| above.exists()).unwrap_or(path);
        let rest = path.strip_prefix(there).unwrap_or(Path::new(""));
        std::fs::canonicalize(there)
            .unwrap_or_else(|_| there.to_owned())
            .join(rest)
    };
    let location = real(location);
    clusters.iter().find(|cluster| {
        let tablespaces = cluster.tablespaces.iter().map(|(_, path)| real(path));
        let mut paths = std::iter::once(real(&cluster.data_directory)).chain(tablespaces);
        paths.any(|path| location.starts_with(&path) || path.starts_with(&location))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_memory_counts_while_somebody_is_attached() {
        let table = "       key      shmid perms                  size  cpid  lpid nattch   uid\n\
                     \x20 -12345          7   600                    56  4711  4712      6   104\n\
                     \x20   6789          8   600                    56  4713  4714      0   104\n";
        assert_eq!(attached(table, u64::from(-12345_i32 as u32), 7), Some(4711));
        assert_eq!(attached(table, 6789, 8), None);
        assert_eq!(attached(table, 6789, 7), None);
        assert_eq!(shared_memory_user("1\n/x\n"), None);
    }

    #[test]
    fn a_location_within_a_live_tablespace_is_in_use() {
        let clusters = [LiveCluster {
            pid: 1,
            data_directory: "/nonexistent/live".into(),
            tablespaces: vec![(16400, "/nonexistent/fast".into())],
        }];
        assert!(user_of(&clusters, Path::new("/nonexistent/fast")).is_some());
        assert!(user_of(&clusters, Path::new("/nonexistent/fast/within")).is_some());
        assert!(user_of(&clusters, Path::new("/nonexistent/live/pg_tblspc")).is_some());
        assert!(user_of(&clusters, Path::new("/nonexistent/faster")).is_none());
    }
}
