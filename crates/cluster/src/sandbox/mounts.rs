//! The file system as a copy sees it: production's directories hidden below empty ones, and what must stay
//! readable put back into them.
//!
//! The plan is made before anything is mounted, shallow paths first, so that what is put back below a hidden
//! folder can itself hide something deeper. Invariants: hidden folders are empty and read-only; a hidden
//! path that cannot be hidden makes the layer unavailable; a path that cannot be put back is an error, for
//! the copy would fail later and darker.

use super::LayerState;
use diagnostic::{Error, Result};
use rustix::fs::{CWD, StatVfsMountFlags, statvfs};
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, mount, mount_bind, mount_change,
    mount_remount, move_mount, open_tree,
};
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// What is to be done, in order.
#[derive(Debug, PartialEq)]
pub(super) struct View {
    steps: Vec<Step>,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Clone)]
enum Step {
    Hide(PathBuf),
    /// Puts the original back; read-only unless it is the copy's own folder.
    Restore {
        path: PathBuf,
        writable: bool,
    },
}

pub(super) struct Mounted {
    pub hidden: LayerState,
    pub private_shared_memory: bool,
}

impl View {
    /// Plans the view. Paths that do not exist are left out; without Landlock `/proc` is hidden as well,
    /// because `/proc/<pid>/root` of another process of the account leads around every mount.
    pub(super) fn new(
        folder: &Path,
        hidden: &[PathBuf],
        readable: &[PathBuf],
        landlock: bool,
    ) -> Result<View> {
        let real = |paths: &[PathBuf]| -> BTreeSet<PathBuf> {
            paths
                .iter()
                .filter_map(|path| fs::canonicalize(path).ok())
                .collect()
        };
        let mut hidden = real(hidden);
        if !landlock {
            hidden.insert("/proc".into());
        }
        if let Some(path) = hidden
            .iter()
            .find(|path| path.parent().is_none() || path.as_path() == folder)
        {
            return Err(Error::usage(
                "sandbox-spec",
                format!("\"{}\" cannot be hidden", path.display()),
            ));
        }
        let mut restored = real(readable);
        restored.insert(folder.to_path_buf());
        Ok(View {
            steps: plan(&hidden, &restored, folder),
        })
    }
}

fn plan(hidden: &BTreeSet<PathBuf>, restored: &BTreeSet<PathBuf>, folder: &Path) -> Vec<Step> {
    let mut steps: Vec<Step> = hidden.iter().map(|path| Step::Hide(path.clone())).collect();
    for path in restored {
        // Only what a hidden path swallows, and what is not itself the hidden thing.
        if !hidden.contains(path) && path.ancestors().skip(1).any(|above| hidden.contains(above)) {
            steps.push(Step::Restore {
                path: path.clone(),
                writable: path.starts_with(folder),
            });
        }
    }
    steps.sort_by_key(|step| match step {
        Step::Hide(path) | Step::Restore { path, .. } => path.components().count(),
    });
    let mut kept: Vec<Step> = Vec::new();
    for step in steps {
        if !is_superfluous(&step, &kept) {
            kept.push(step);
        }
    }
    kept
}

/// The nearest step above decides what is seen at a path: hiding below a hidden one, and putting back below
/// one that was put back, changes nothing.
fn is_superfluous(step: &Step, done: &[Step]) -> bool {
    let path = match step {
        Step::Hide(path) | Step::Restore { path, .. } => path,
    };
    let nearest = path.ancestors().skip(1).find_map(|above| {
        done.iter()
            .find(|step| matches!(step, Step::Hide(p) | Step::Restore { path: p, .. } if p == above))
    });
    match (step, nearest) {
        (Step::Hide(_), Some(Step::Hide(_))) => true,
        (Step::Restore { writable, .. }, Some(Step::Restore { writable: above, .. })) => writable == above,
        _ => false,
    }
}

/// Carries the plan out in a mount namespace of our own. Error codes: `sandbox-mount`.
pub(super) fn apply(view: &View) -> Result<Mounted> {
    let unavailable = |reason: String| Mounted {
        hidden: LayerState::Unavailable { reason },
        private_shared_memory: false,
    };
    // Nothing that is mounted here may show outside, nor the other way round.
    if let Err(error) = mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC) {
        return Ok(unavailable(format!(
            "cannot make mounts private: {}",
            io::Error::from(error)
        )));
    }
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    let private_shared_memory = mount(
        "tmpfs",
        "/dev/shm",
        "tmpfs",
        flags | MountFlags::NOEXEC,
        Some(c"mode=1777"),
    )
    .is_ok();
    // Handles to what is put back, taken while it can still be seen.
    let mut trees: Vec<Option<OwnedFd>> = Vec::with_capacity(view.steps.len());
    for step in &view.steps {
        trees.push(match step {
            Step::Hide(_) => None,
            Step::Restore { path, .. } => match clone_tree(path) {
                Ok(tree) => Some(tree),
                Err(error) => {
                    let reason = format!("cannot keep \"{}\" readable: {error}", path.display());
                    return Ok(Mounted {
                        private_shared_memory,
                        ..unavailable(reason)
                    });
                }
            },
        });
    }
    let mut hidden = LayerState::Applied;
    let mut folders = Vec::new();
    for (step, tree) in view.steps.iter().zip(trees) {
        match (step, tree) {
            (Step::Hide(path), _) => match hide(path) {
                Ok(true) => folders.push(path),
                Ok(false) => {}
                Err(error) => {
                    hidden = LayerState::unavailable(format!("cannot hide \"{}\": {error}", path.display()));
                }
            },
            (Step::Restore { path, writable }, Some(tree)) => {
                put_back(path, &tree, *writable).map_err(|error| {
                    let message = format!("cannot keep \"{}\" readable in the quarantine", path.display());
                    Error::io("sandbox-mount", message, &error)
                })?;
            }
            (Step::Restore { .. }, None) => {}
        }
    }
    for path in folders {
        // Last, since mount points had to be made in them.
        if let Err(error) = mount_remount(path, flags | MountFlags::RDONLY, c"") {
            let error = io::Error::from(error);
            hidden =
                LayerState::unavailable(format!("cannot make \"{}\" read-only: {error}", path.display()));
        }
    }
    Ok(Mounted {
        hidden,
        private_shared_memory,
    })
}

fn clone_tree(path: &Path) -> io::Result<OwnedFd> {
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    open_tree(CWD, path, flags).map_err(Into::into)
}

/// Puts an empty folder, or an empty device, over a path; true for a folder, false for a file or nothing.
fn hide(path: &Path) -> io::Result<bool> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => {
            let flags = MountFlags::NOSUID | MountFlags::NODEV;
            mount("tmpfs", path, "tmpfs", flags, Some(c"mode=755,size=1m"))?;
            Ok(true)
        }
        Ok(_) => {
            mount_bind("/dev/null", path)?;
            Ok(false)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

fn put_back(path: &Path, tree: &OwnedFd, writable: bool) -> io::Result<()> {
    let is_folder = rustix::fs::FileType::from_raw_mode(rustix::fs::fstat(tree)?.st_mode).is_dir();
    if is_folder {
        fs::create_dir_all(path)?;
    } else {
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)?;
    }
    move_mount(tree, "", CWD, path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    if !writable {
        // A remount must repeat what is locked. Where it fails, Landlock still forbids writing.
        let mut flags = MountFlags::BIND | MountFlags::RDONLY;
        let current = statvfs(path)?.f_flag;
        for (have, keep) in [
            (StatVfsMountFlags::NOSUID, MountFlags::NOSUID),
            (StatVfsMountFlags::NODEV, MountFlags::NODEV),
            (StatVfsMountFlags::NOEXEC, MountFlags::NOEXEC),
            (StatVfsMountFlags::NOATIME, MountFlags::NOATIME),
            (StatVfsMountFlags::NODIRATIME, MountFlags::NODIRATIME),
            (StatVfsMountFlags::RELATIME, MountFlags::RELATIME),
        ] {
            if current.contains(have) {
                flags |= keep;
            }
        }
        let _ = mount_remount(path, flags, c"");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(paths: &[&str]) -> BTreeSet<PathBuf> {
        paths.iter().map(PathBuf::from).collect()
    }

    fn hide(path: &str) -> Step {
        Step::Hide(path.into())
    }

    fn restore(path: &str) -> Step {
        Step::Restore {
            path: path.into(),
            writable: path.starts_with("/tmp/copy"),
        }
    }

    #[test]
    fn what_a_hidden_path_swallows_is_put_back_and_nothing_else() {
        let steps = plan(
            &paths(&["/srv/production", "/tmp"]),
            &paths(&["/tmp/copy", "/tmp/repository", "/usr/lib/postgresql", "/srv"]),
            Path::new("/tmp/copy"),
        );
        assert_eq!(
            steps,
            [
                hide("/tmp"),
                hide("/srv/production"),
                restore("/tmp/copy"),
                restore("/tmp/repository")
            ]
        );
    }

    #[test]
    fn a_hidden_path_below_a_readable_one_below_a_hidden_one_is_hidden() {
        let steps = plan(
            &paths(&["/tmp", "/tmp/x/data", "/tmp/y"]),
            &paths(&["/tmp/x", "/tmp/x/data/repository", "/tmp/x/tools"]),
            Path::new("/tmp/copy"),
        );
        // /tmp/y is hidden with /tmp; /tmp/x/tools is back with /tmp/x.
        assert_eq!(
            steps,
            [
                hide("/tmp"),
                restore("/tmp/x"),
                hide("/tmp/x/data"),
                restore("/tmp/x/data/repository")
            ]
        );
    }

    #[test]
    fn the_copys_own_folder_is_writable_below_a_readable_one() {
        let steps = plan(
            &paths(&["/tmp"]),
            &paths(&["/tmp/copy/a", "/tmp/copy"]),
            Path::new("/tmp/copy"),
        );
        assert_eq!(steps, [hide("/tmp"), restore("/tmp/copy")]);
    }

    #[test]
    fn the_root_and_the_folder_itself_cannot_be_hidden() {
        let folder = tempfile::tempdir().unwrap();
        let folder = fs::canonicalize(folder.path()).unwrap();
        for hidden in [PathBuf::from("/"), folder.clone()] {
            let error = View::new(&folder, &[hidden], &[], true).unwrap_err();
            assert_eq!(error.code(), "sandbox-spec");
        }
        let view = View::new(&folder, &["/nonexistent/x".into()], &[], true).unwrap();
        assert_eq!(view.steps, []);
        assert_eq!(
            View::new(&folder, &[], &[], false).unwrap().steps,
            [hide("/proc")]
        );
    }
}
