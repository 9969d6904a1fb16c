//! Drills that were recorded: found by name, and read from a repository or a folder as they lie there.
//!
//! Invariant: that a file is damaged or gone is something to judge, and is kept as such; that it could not be looked at
//! is an error.

use std::collections::BTreeMap;
use std::path::Path;

use diagnostic::{Error, Result};
use drill::audit::StoredBundle;
use drill::evidence::CHAIN;
use repository::{Chain, ClusterRepository};

use crate::account;
use crate::config::{Cluster, Configuration};
use crate::context::Context;
use crate::copies::{Copies, OpenCopy};

/// What the names of drills begin with.
const DRILL_PREFIX: &str = "pitr_drill_";
/// The largest file of a bundle that is read, in bytes.
const FILE_BYTES_MAX: u64 = 256 << 20;

/// The copies of a cluster, opened by the account that they belong to.
pub fn open(
    context: &Context,
    cluster: Option<&str>,
    copy: Option<&str>,
) -> Result<(Configuration, Vec<OpenCopy>)> {
    let configuration = context.configuration()?;
    let cluster = configuration.cluster(cluster)?.clone();
    account::become_owner(&configuration, &cluster)?;
    let copies = open_copies(&configuration, &cluster, copy)?;
    Ok((configuration, copies))
}

pub fn open_copies(
    configuration: &Configuration,
    cluster: &Cluster,
    copy: Option<&str>,
) -> Result<Vec<OpenCopy>> {
    Copies::open_any(configuration, cluster, copy)
}

/// The drills that were run, oldest first. Other things than drills leave evidence, too.
pub fn drills(cluster: &ClusterRepository) -> Result<Vec<String>> {
    let mut drills = cluster.list_drills()?;
    drills.retain(|id| id.starts_with(DRILL_PREFIX));
    Ok(drills)
}

/// The first copy that has this drill, or the latest one of all. Error: `drill-missing`.
pub fn find<'a>(copies: &'a [OpenCopy], drill: &str) -> Result<(&'a OpenCopy, String)> {
    let mut found: Option<(&OpenCopy, String)> = None;
    for copy in copies {
        let mut drills = drills(&copy.cluster)?.into_iter();
        let id = match drill {
            "latest" => drills.max(),
            name => drills.find(|id| id == name),
        };
        if let Some(id) = id
            && found.as_ref().is_none_or(|(_, known)| *known < id)
        {
            found = Some((copy, id));
        }
    }
    found.ok_or_else(|| {
        Error::new("drill-missing", format!("no drill {drill:?} is recorded"))
            .hint("Run `pgproof drill list` to see what there is.")
    })
}

/// A drill's evidence in a repository, with the chain over all evidence.
pub fn read(cluster: &ClusterRepository, drill: &str) -> Result<StoredBundle> {
    let mut files = BTreeMap::new();
    for name in cluster.list_evidence(drill)? {
        let content = match cluster.get_evidence(drill, &name) {
            Ok(Some(content)) => Ok(content),
            Ok(None) => Err("It was removed while it was looked at.".to_owned()),
            Err(error) if matches!(error.code(), "object-damaged" | "repository-format") => {
                Err(error.detail_text().unwrap_or(error.message()).to_owned())
            }
            Err(error) => return Err(error),
        };
        files.insert(name, content);
    }
    Ok(StoredBundle {
        files,
        chain: Ok(cluster.chain()?),
    })
}

/// The same from a folder. Errors: `bundle-read`, `bundle-missing`.
pub fn read_folder(folder: &Path) -> Result<StoredBundle> {
    let mut files = BTreeMap::new();
    collect(folder, "", &mut files)?;
    if files.is_empty() {
        return Err(Error::usage(
            "bundle-missing",
            format!("the folder {:?} holds no evidence", folder.display().to_string()),
        )
        .hint("A bundle is the folder of a drill's name in DRILL_REPORT_DIR, with facts.json and manifest.sha256 in it."));
    }
    let chain = match files.remove(CHAIN) {
        Some(Ok(bytes)) => Chain::from_file(&bytes),
        Some(Err(why)) => Err(why),
        None => Err(format!("{CHAIN} is not in the folder")),
    };
    Ok(StoredBundle { files, chain })
}

fn collect(folder: &Path, prefix: &str, files: &mut BTreeMap<String, Result<Vec<u8>, String>>) -> Result<()> {
    let failed = |path: &Path, error: &std::io::Error| {
        Error::io(
            "bundle-read",
            format!("cannot read {:?}", path.display().to_string()),
            error,
        )
    };
    for entry in std::fs::read_dir(folder).map_err(|error| failed(folder, &error))? {
        let entry = entry.map_err(|error| failed(folder, &error))?;
        let path = entry.path();
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        let kind = entry.file_type().map_err(|error| failed(&path, &error))?;
        if kind.is_dir() {
            collect(&path, &format!("{name}/"), files)?;
            continue;
        }
        let length = entry.metadata().map_err(|error| failed(&path, &error))?.len();
        let content = if !kind.is_file() {
            Err("It is no ordinary file.".to_owned())
        } else if length > FILE_BYTES_MAX {
            Err(format!("It has {length} bytes, more than any evidence."))
        } else {
            Ok(std::fs::read(&path).map_err(|error| failed(&path, &error))?)
        };
        files.insert(name, content);
    }
    Ok(())
}
