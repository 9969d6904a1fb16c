//! Keeping what exists aside, by renaming. Hard rules 11 (design) and 24.
//!
//! Invariants: nothing is copied, nothing is removed, nothing is overwritten; what was moved is a data
//! directory that starts again from its new place, links to tablespaces included; a run that was interrupted
//! here is finished by the next one.

use std::io::ErrorKind;
use std::path::Path;

use diagnostic::{Error, Result};

use crate::plan::KeptAside;
use crate::sync::sync_directory;

/// Does one move. Names in `skip` stay where they are.
pub(crate) fn keep(kept: &KeptAside, skip: &[&str]) -> Result<()> {
    match kept {
        KeptAside::Rename { from, to } => {
            if std::fs::symlink_metadata(to).is_ok() {
                return Err(exists(to));
            }
            std::fs::rename(from, to).map_err(|error| cannot(from, to, &error))?;
            sync_parent(to)
        }
        KeptAside::Contents { from, to } | KeptAside::Tablespace { from, to, .. } => contents(from, to, skip),
        // Copied where the delta restore begins, with the names that the plan has.
        KeptAside::Wal { .. } => Ok(()),
    }
}

/// Moves everything in `from` into its folder `to`; goes on where an earlier run was interrupted.
fn contents(from: &Path, to: &Path, skip: &[&str]) -> Result<()> {
    match std::fs::create_dir(to) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(cannot(from, to, &error)),
        _ => {}
    }
    let metadata = std::fs::metadata(from).map_err(|error| cannot(from, to, &error))?;
    std::fs::set_permissions(to, metadata.permissions()).map_err(|error| cannot(from, to, &error))?;
    let owner = (
        std::os::unix::fs::MetadataExt::uid(&metadata),
        std::os::unix::fs::MetadataExt::gid(&metadata),
    );
    match std::os::unix::fs::lchown(to, Some(owner.0), Some(owner.1)) {
        // An ordinary account made the folder its own; a group that it is not in does not matter.
        Err(error) if error.kind() != ErrorKind::PermissionDenied => return Err(cannot(from, to, &error)),
        _ => {}
    }
    let mut names = Vec::new();
    for entry in std::fs::read_dir(from).map_err(|error| cannot(from, to, &error))? {
        let name = entry.map_err(|error| cannot(from, to, &error))?.file_name();
        let ours = to.file_name() == Some(&name) && to.parent() == Some(from);
        // Earlier restores' folders stay where a person looks for them.
        let earlier = name.to_string_lossy().starts_with("pre_pitr_");
        if !ours && !earlier && name != "lost+found" && !skip.iter().any(|skipped| name == *skipped) {
            names.push(name);
        }
    }
    // With `global` goes pg_control: from the first move on nothing here can start.
    names.sort_by_key(|name| (name != "global", name.clone()));
    for name in names {
        let (source, target) = (from.join(&name), to.join(&name));
        if std::fs::symlink_metadata(&target).is_ok() {
            return Err(exists(&target));
        }
        std::fs::rename(&source, &target).map_err(|error| cannot(&source, &target, &error))?;
    }
    sync_directory(to)?;
    sync_directory(from)
}

/// Sets a link of the directory that was kept aside to where its tablespace was kept aside.
pub(crate) fn relink(data_directory_aside: &Path, kept: &KeptAside) -> Result<()> {
    let KeptAside::Tablespace { oid, to, .. } = kept else {
        return Ok(());
    };
    let folder = data_directory_aside.join("pg_tblspc");
    let (link, new) = (
        folder.join(oid.to_string()),
        folder.join(format!("pgproof-{oid}.new")),
    );
    let attempt = || -> std::io::Result<()> {
        match std::fs::remove_file(&new) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        std::os::unix::fs::symlink(to, &new)?;
        std::fs::rename(&new, &link)
    };
    attempt().map_err(|error| cannot(&link, to, &error))?;
    sync_directory(&folder)
}

fn sync_parent(path: &Path) -> Result<()> {
    path.parent().map_or(Ok(()), sync_directory)
}

fn exists(path: &Path) -> Error {
    Error::new("aside-exists", format!("\"{}\" exists already", path.display()))
        .detail("What is to be kept aside never replaces anything.")
        .hint("Run the restore again: it plans another name.")
}

fn cannot(from: &Path, to: &Path, error: &std::io::Error) -> Error {
    let made = Error::io(
        "aside-rename",
        format!("cannot keep \"{}\" aside as \"{}\"", from.display(), to.display()),
        error,
    )
    .detail("Nothing was removed; what was not moved is where it was.");
    match error.kind() {
        ErrorKind::PermissionDenied => made.hint(
            "The account needs the right to rename in the directory above it: run pgproof as root, or \
             restore into \
             another directory.",
        ),
        _ => made,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contents_are_moved_and_an_interrupted_move_is_finished() {
        let scratch = tempfile::tempdir().unwrap();
        let from = scratch.path().join("data");
        let to = from.join("pre_pitr_20260101T000000Z");
        std::fs::create_dir_all(from.join("global")).unwrap();
        std::fs::create_dir_all(from.join("lost+found")).unwrap();
        std::fs::write(from.join("PG_VERSION"), "15").unwrap();
        // The first run moved one and was killed.
        std::fs::create_dir(&to).unwrap();
        std::fs::rename(from.join("global"), to.join("global")).unwrap();
        let kept = KeptAside::Contents {
            from: from.clone(),
            to: to.clone(),
        };
        keep(&kept, &["pgproof.restored"]).unwrap();
        assert!(to.join("global").is_dir() && to.join("PG_VERSION").is_file());
        assert!(from.join("lost+found").is_dir());
        keep(&kept, &[]).unwrap();
    }

    #[test]
    fn nothing_is_ever_overwritten() {
        let scratch = tempfile::tempdir().unwrap();
        let (from, to) = (
            scratch.path().join("data"),
            scratch.path().join("data.pre_pitr_x"),
        );
        std::fs::create_dir(&from).unwrap();
        std::fs::create_dir(&to).unwrap();
        let kept = KeptAside::Rename {
            from: from.clone(),
            to,
        };
        assert_eq!(keep(&kept, &[]).unwrap_err().code(), "aside-exists");
        assert!(from.is_dir());
        // Nor when contents are moved one by one.
        let to = from.join("pre_pitr_x");
        std::fs::create_dir(&to).unwrap();
        std::fs::write(to.join("PG_VERSION"), "kept").unwrap();
        std::fs::write(from.join("PG_VERSION"), "new").unwrap();
        let kept = KeptAside::Contents {
            from: from.clone(),
            to: to.clone(),
        };
        assert_eq!(keep(&kept, &[]).unwrap_err().code(), "aside-exists");
        assert_eq!(std::fs::read_to_string(to.join("PG_VERSION")).unwrap(), "kept");
        assert_eq!(std::fs::read_to_string(from.join("PG_VERSION")).unwrap(), "new");
    }

    #[test]
    fn the_kept_directory_finds_its_tablespaces_where_they_were_kept() {
        let scratch = tempfile::tempdir().unwrap();
        let aside = scratch.path().join("aside");
        std::fs::create_dir_all(aside.join("pg_tblspc")).unwrap();
        std::os::unix::fs::symlink("/old", aside.join("pg_tblspc/16400")).unwrap();
        let to = scratch.path().join("ts/pre_pitr_x");
        relink(
            &aside,
            &KeptAside::Tablespace {
                oid: 16400,
                from: "/old".into(),
                to: to.clone(),
            },
        )
        .unwrap();
        assert_eq!(std::fs::read_link(aside.join("pg_tblspc/16400")).unwrap(), to);
    }
}
