//! Where the programs of a cluster's PostgreSQL are looked for: what the configuration names, then `PATH`, then (in
//! `cluster::Programs`) the usual places.
//!
//! Invariant: a folder is only a place to look; `cluster::Programs` takes no program of another major version.

use std::path::{Path, PathBuf};

use cluster::Programs;
use cluster::postmaster::PostmasterPid;
use postgres::Major;

use crate::config::Cluster;

/// The folders besides the usual ones, in the order in which they are asked.
pub fn folders(cluster: &Cluster) -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let searched = std::env::split_paths(&path).filter(|folder| folder.is_absolute());
    cluster.programs.iter().cloned().chain(searched).collect()
}

/// The folder that a running server's program is in, when nobody would look there by himself. `None` also where this
/// account may not see it.
pub fn unusual_folder(data_directory: &Path, major: Major) -> Option<PathBuf> {
    let server = PostmasterPid::read(data_directory).ok()??;
    let program = std::fs::read_link(format!("/proc/{}/exe", server.pid)).ok()?;
    let folder = program.parent()?.to_path_buf();
    if Programs::find(major, &[]).is_ok_and(|usual| usual.directory == folder) {
        return None;
    }
    let found = Programs::find(major, std::slice::from_ref(&folder)).ok()?;
    (found.directory == folder).then_some(folder)
}
