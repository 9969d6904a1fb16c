//! Which files of a running server's data directory belong to a backup: exactly those that `basebackup.c`
//! sends (hard rule 2), each with what is needed to read it.
//!
//! Source: `sendDir`, `sendTablespace`, `excludeDirContents` and `excludeFiles` of
//! `src/backend/backup/basebackup.c` (13, 14: `src/backend/replication/basebackup.c`). Exclusions go by name
//! at any depth, as there. Invariants: what vanishes while we look is simply not listed; nothing is followed
//! but the links in `pg_tblspc`; a link in a place that PostgreSQL owns is an error and not a silent gap, as
//! it is with `pg_basebackup` (which warns and leaves it out).
//!
//! `global/pg_control` is not in the list: it is read last, by [`read_control_file`] (hard rule 1). Not
//! known here: a `stats_temp_directory` (13, 14) other than `pg_stat_tmp`; its contents are listed, which is
//! harmless.

use crate::facts::Tablespace;
use diagnostic::{Error, Result};
use postgres::{ControlFile, Fork, Major, RelationFile};
use std::collections::BTreeSet;
use std::fs::{self, Metadata};
use std::io::ErrorKind;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The file that is read last.
pub const CONTROL_FILE: &str = "global/pg_control";

/// Directories that are kept while their contents are not.
const EXCLUDE_DIRECTORY_CONTENTS: [&[u8]; 7] = [
    b"pg_stat_tmp",
    b"pg_replslot",
    b"pg_dynshmem",
    b"pg_notify",
    b"pg_serial",
    b"pg_snapshots",
    b"pg_subtrans",
];

/// Names that are left out wherever they are.
const EXCLUDE_FILES: [&[u8]; 8] = [
    b"postgresql.auto.conf.tmp",
    b"current_logfiles.tmp",
    b"backup_label",
    b"tablespace_map",
    b"backup_manifest",
    b"postmaster.pid",
    b"postmaster.opts",
    b".DS_Store",
];

/// Beginnings of names that are left out: the relation cache, and temporary files.
const EXCLUDE_PREFIXES: [&[u8]; 2] = [b"pg_internal.init", b"pgsql_tmp"];

/// Top-level names in which a link would hide data from the backup.
const OWNED_BY_POSTGRES: [&[u8]; 11] = [
    b"base",
    b"global",
    b"pg_commit_ts",
    b"pg_logical",
    b"pg_multixact",
    b"pg_stat",
    b"pg_tblspc",
    b"pg_twophase",
    b"pg_xact",
    b"PG_VERSION",
    b"postgresql.auto.conf",
];

const READ_CONTROL_FILE_ATTEMPTS: u32 = 200;
const READ_CONTROL_FILE_PAUSE: Duration = Duration::from_millis(10);

/// One thing that belongs to the backup.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// Relative to the data directory; a tablespace's files are below `pg_tblspc/<oid>/`.
    pub path: Vec<u8>,
    /// Where to read it.
    pub absolute: PathBuf,
    pub kind: EntryKind,
    /// Permission bits, `st_mode & 0o7777`.
    pub mode: u32,
    /// What the name says when it is a relation's file.
    pub relation: Option<RelationFile>,
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryKind {
    /// The size is the one seen while listing; a live file grows and shrinks.
    File {
        size: u64,
    },
    Directory,
    /// A tablespace's link in `pg_tblspc`.
    Symlink {
        target: PathBuf,
    },
}

/// A listing, and what was seen but does not belong to it by PostgreSQL's rule on special files.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Listing {
    /// Sorted by the bytes of the path.
    pub entries: Vec<Entry>,
    pub skipped: Vec<Skipped>,
}

/// Something that `basebackup.c` warns about and leaves out: a link, a socket, a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skipped {
    pub path: Vec<u8>,
    pub reason: String,
}

/// What belongs to a backup, sorted by the bytes of the path. See [`list_reporting`].
pub fn list(data_directory: &Path, tablespaces: &[Tablespace], major: Major) -> Result<Vec<Entry>> {
    Ok(list_reporting(data_directory, tablespaces, major)?.entries)
}

/// What belongs to a backup, and what was left out as special. `pg_tblspc` says which tablespaces there are;
/// `tablespaces` only helps to recognise one that lies inside the data directory. Error codes:
/// `data-directory-read`, `data-directory-link`.
pub fn list_reporting(data_directory: &Path, tablespaces: &[Tablespace], major: Major) -> Result<Listing> {
    let root = fs::metadata(data_directory).map_err(|error| read_error(data_directory, &error))?;
    let mut inside: BTreeSet<PathBuf> = tablespaces
        .iter()
        .filter(|t| !t.in_place)
        .map(|t| t.location.clone())
        .collect();
    let links = tablespace_links(data_directory)?;
    inside.extend(links.iter().filter_map(|(_, place)| place.target.clone()));
    // Both sides in their real form: the data directory itself may be reached over a link.
    let inside = inside
        .iter()
        .filter_map(|path| fs::canonicalize(path).ok())
        .collect();
    let mut walk = Walk {
        major,
        data_directory: fs::canonicalize(data_directory)
            .map_err(|error| read_error(data_directory, &error))?,
        directory_mode: root.mode() & 0o7777,
        inside,
        listing: Listing::default(),
    };
    walk.directory(b"", data_directory)?;
    for (oid, place) in links {
        walk.tablespace(&oid, place)?;
    }
    walk.listing.entries.sort_unstable_by(|a, b| a.path.cmp(&b.path));
    Ok(walk.listing)
}

/// (uid, gid) of a file or directory.
pub fn owner(path: &Path) -> Result<(u32, u32)> {
    let metadata = fs::metadata(path).map_err(|error| read_error(path, &error))?;
    Ok((metadata.uid(), metadata.gid()))
}

/// The bytes of `global/pg_control` and what they say. The server writes the file in place, so it is read
/// again until its CRC is good. Error codes: `data-directory-read`, and those of [`ControlFile::parse`].
pub fn read_control_file(data_directory: &Path) -> Result<(Vec<u8>, ControlFile)> {
    let path = data_directory.join(CONTROL_FILE);
    let mut attempt = 1;
    loop {
        let content = fs::read(&path).map_err(|error| read_error(&path, &error))?;
        match ControlFile::parse(&content) {
            Ok(control) => return Ok((content, control)),
            Err(error) if error.code() == "control-file-version" => return Err(error),
            Err(error) if attempt == READ_CONTROL_FILE_ATTEMPTS => return Err(error),
            Err(_) => std::thread::sleep(READ_CONTROL_FILE_PAUSE),
        }
        attempt += 1;
    }
}

/// Whether `basebackup.c` leaves this path out by a name in it: its own, or that of a folder above whose contents are not
/// kept. For copies that were made without it.
pub fn left_out(path: &[u8]) -> bool {
    let mut parts = path.split(|byte| *byte == b'/').peekable();
    while let Some(name) = parts.next() {
        let by_name =
            EXCLUDE_FILES.contains(&name) || EXCLUDE_PREFIXES.iter().any(|prefix| name.starts_with(prefix));
        if by_name || (parts.peek().is_some() && EXCLUDE_DIRECTORY_CONTENTS.contains(&name)) {
            return true;
        }
    }
    RelationFile::parse(path).is_some_and(|relation| relation.temporary)
}

/// Whether the path's first part is a place that PostgreSQL alone fills.
pub fn belongs_to_postgres(path: &[u8]) -> bool {
    OWNED_BY_POSTGRES.contains(&path.split(|byte| *byte == b'/').next().unwrap_or_default())
}

struct Place {
    absolute: PathBuf,
    /// `None`: an in-place tablespace.
    target: Option<PathBuf>,
    mode: u32,
}

/// What is in `pg_tblspc` under a name that is an OID.
fn tablespace_links(data_directory: &Path) -> Result<Vec<(Vec<u8>, Place)>> {
    let mut links = Vec::new();
    let folder = data_directory.join("pg_tblspc");
    for (name, absolute) in names_in(&folder)? {
        let Some(metadata) = metadata_of(&absolute)? else {
            continue;
        };
        if name.is_empty() || !name.iter().all(u8::is_ascii_digit) {
            continue;
        }
        let mode = metadata.mode() & 0o7777;
        if metadata.is_dir() {
            links.push((
                name,
                Place {
                    absolute,
                    target: None,
                    mode,
                },
            ));
        } else if metadata.is_symlink() {
            match fs::read_link(&absolute) {
                Ok(target) => links.push((
                    name,
                    Place {
                        absolute,
                        target: Some(target),
                        mode,
                    },
                )),
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(read_error(&absolute, &error)),
            }
        }
    }
    Ok(links)
}

struct Walk {
    major: Major,
    data_directory: PathBuf,
    directory_mode: u32,
    /// Tablespaces' directories, to leave out those that lie inside the data directory.
    inside: BTreeSet<PathBuf>,
    listing: Listing,
}

impl Walk {
    /// Lists the contents of `absolute`, whose path in the backup is `path` (empty for the data directory).
    fn directory(&mut self, path: &[u8], absolute: &Path) -> Result<()> {
        let names = names_in(absolute)?;
        let unlogged = unlogged_relations(path, &names);
        for (name, absolute) in names {
            if EXCLUDE_FILES.contains(&name.as_slice())
                || EXCLUDE_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
            {
                continue;
            }
            let path = joined(path, &name);
            if path == CONTROL_FILE.as_bytes() {
                continue;
            }
            let relation = std::str::from_utf8(&path)
                .ok()
                .and_then(|_| RelationFile::parse(&path));
            if let Some(relation) = &relation
                && (relation.temporary
                    || (relation.fork != Fork::Init && unlogged.contains(&relation.locator.relation)))
            {
                continue;
            }
            let Some(metadata) = metadata_of(&absolute)? else {
                continue;
            };
            self.entry(name, path, absolute, relation, &metadata)?;
        }
        Ok(())
    }

    fn entry(
        &mut self,
        name: Vec<u8>,
        path: Vec<u8>,
        absolute: PathBuf,
        relation: Option<RelationFile>,
        metadata: &Metadata,
    ) -> Result<()> {
        let mode = metadata.mode() & 0o7777;
        if EXCLUDE_DIRECTORY_CONTENTS.contains(&name.as_slice()) {
            // A link becomes a directory with the cluster's mode; a plain file of that name is sent as such.
            if metadata.is_file() {
                self.push(
                    path,
                    absolute,
                    EntryKind::File { size: metadata.len() },
                    mode,
                    relation,
                );
            } else {
                let mode = if metadata.is_symlink() {
                    self.directory_mode
                } else {
                    mode
                };
                self.push(path, absolute, EntryKind::Directory, mode, None);
            }
        } else if path == b"pg_wal" {
            let mode = if metadata.is_symlink() {
                self.directory_mode
            } else {
                mode
            };
            let below: &[&str] = if self.major.0 >= 17 {
                &["archive_status", "summaries"]
            } else {
                &["archive_status"]
            };
            for folder in below {
                let path = joined(&path, folder.as_bytes());
                self.push(path, absolute.join(folder), EntryKind::Directory, mode, None);
            }
            self.push(path, absolute, EntryKind::Directory, mode, None);
        } else if metadata.is_dir() {
            self.push(path.clone(), absolute.clone(), EntryKind::Directory, mode, None);
            // pg_tblspc is listed tablespace by tablespace; so is a tablespace that lies in the data
            // directory.
            if path != b"pg_tblspc" && !self.is_tablespace(&path) {
                self.directory(&path, &absolute)?;
            }
        } else if metadata.is_file() {
            self.push(
                path,
                absolute,
                EntryKind::File { size: metadata.len() },
                mode,
                relation,
            );
        } else {
            self.special(path, &absolute, metadata)?;
        }
        Ok(())
    }

    /// The tablespace `oid`: its link or directory, and of its contents this version's directory alone.
    fn tablespace(&mut self, oid: &[u8], place: Place) -> Result<()> {
        let path = joined(b"pg_tblspc", oid);
        let kind = match &place.target {
            Some(target) => EntryKind::Symlink {
                target: target.clone(),
            },
            None => EntryKind::Directory,
        };
        self.push(path.clone(), place.absolute.clone(), kind, place.mode, None);
        let version = self.major.version_directory();
        let absolute = place.target.unwrap_or(place.absolute).join(&version);
        let path = joined(&path, version.as_bytes());
        let Some(metadata) = metadata_of(&absolute)? else {
            return Ok(());
        };
        if !metadata.is_dir() {
            return self.special(path, &absolute, &metadata);
        }
        self.push(
            path.clone(),
            absolute.clone(),
            EntryKind::Directory,
            metadata.mode() & 0o7777,
            None,
        );
        self.directory(&path, &absolute)
    }

    fn is_tablespace(&self, path: &[u8]) -> bool {
        !self.inside.is_empty()
            && self
                .inside
                .contains(&self.data_directory.join(std::ffi::OsStr::from_bytes(path)))
    }

    fn special(&mut self, path: Vec<u8>, absolute: &Path, metadata: &Metadata) -> Result<()> {
        let top = path.split(|byte| *byte == b'/').next().unwrap_or_default();
        if metadata.is_symlink() && OWNED_BY_POSTGRES.contains(&top) {
            let target = fs::read_link(absolute).unwrap_or_default();
            return Err(Error::new(
                "data-directory-link",
                format!(
                    "\"{}\" is a symbolic link in a place that PostgreSQL owns",
                    absolute.display()
                ),
            )
            .detail(format!(
                "It points to \"{}\". pg_basebackup would leave it out with a warning, and the backup would \
                 lack its data.",
                target.display()
            ))
            .hint(
                "Put such data into a tablespace (CREATE TABLESPACE), or back in place while the server is \
                 stopped.",
            ));
        }
        let reason = match metadata.is_symlink() {
            true => "a symbolic link, which is neither followed nor kept",
            false => "neither a file nor a directory",
        };
        self.listing.skipped.push(Skipped {
            path,
            reason: reason.into(),
        });
        Ok(())
    }

    fn push(
        &mut self,
        path: Vec<u8>,
        absolute: PathBuf,
        kind: EntryKind,
        mode: u32,
        relation: Option<RelationFile>,
    ) {
        self.listing.entries.push(Entry {
            path,
            absolute,
            kind,
            mode,
            relation,
        });
    }
}

/// The numbers of the relations in this directory that have an init fork: unlogged ones.
fn unlogged_relations(path: &[u8], names: &[(Vec<u8>, PathBuf)]) -> BTreeSet<u32> {
    let init_forks = names.iter().filter(|(name, _)| name.ends_with(b"_init"));
    let parsed = init_forks.filter_map(|(name, _)| RelationFile::parse(&joined(path, name)));
    parsed
        .filter(|file| file.fork == Fork::Init && file.segment == 0 && !file.temporary)
        .map(|file| file.locator.relation)
        .collect()
}

fn names_in(folder: &Path) -> Result<Vec<(Vec<u8>, PathBuf)>> {
    let mut names = Vec::new();
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(names),
        Err(error) => return Err(read_error(folder, &error)),
    };
    for entry in entries {
        let entry = entry.map_err(|error| read_error(folder, &error))?;
        names.push((entry.file_name().into_vec(), entry.path()));
    }
    Ok(names)
}

fn metadata_of(path: &Path) -> Result<Option<Metadata>> {
    match fs::symlink_metadata(path) {
        Ok(metadata) => Ok(Some(metadata)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(read_error(path, &error)),
    }
}

fn joined(path: &[u8], name: &[u8]) -> Vec<u8> {
    if path.is_empty() {
        name.to_vec()
    } else {
        [path, b"/", name].concat()
    }
}

fn read_error(path: &Path, error: &std::io::Error) -> Error {
    let result = Error::io(
        "data-directory-read",
        format!("cannot read \"{}\"", path.display()),
        error,
    );
    match error.kind() {
        ErrorKind::PermissionDenied => {
            result.hint("Run pgproof as the account that owns the data directory, or as root.")
        }
        _ => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn write(root: &Path, path: &str) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, b"x").unwrap();
    }

    fn paths(root: &Path, major: u16) -> Vec<String> {
        let entries = list(root, &[], Major(major)).unwrap();
        entries
            .iter()
            .map(|entry| String::from_utf8(entry.path.clone()).unwrap())
            .collect()
    }

    #[test]
    fn what_basebackup_leaves_out_is_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        for path in [
            "PG_VERSION",
            "global/pg_control",
            "global/1262",
            "global/pg_internal.init.77",
            "base/5/1259",
            "base/5/1259_vm.1",
            "base/5/t3_16400",
            "base/5/t3_16400_fsm",
            "base/5/16384",
            "base/5/16384.1",
            "base/5/16384_fsm",
            "base/5/16384_init",
            "base/5/16385",
            "base/5/pg_internal.init",
            "base/pgsql_tmp/pgsql_tmp1.0",
            "pg_wal/000000010000000000000001",
            "pg_wal/archive_status/x.ready",
            "pg_replslot/s/state",
            "pg_notify/0000",
            "pg_stat_tmp/x",
            "postmaster.pid",
            "postmaster.opts",
            "backup_label",
            "backup_label.old",
            "tablespace_map",
            "backup_manifest",
            "postgresql.auto.conf.tmp",
            "postgresql.auto.conf",
            "current_logfiles",
            "current_logfiles.tmp",
        ] {
            write(root, path);
        }
        fs::create_dir(root.join("pg_tblspc")).unwrap();
        let expected = [
            "PG_VERSION",
            "backup_label.old",
            "base",
            "base/5",
            "base/5/1259",
            "base/5/1259_vm.1",
            "base/5/16384_init",
            "base/5/16385",
            "current_logfiles",
            "global",
            "global/1262",
            "pg_notify",
            "pg_replslot",
            "pg_stat_tmp",
            "pg_tblspc",
            "pg_wal",
            "pg_wal/archive_status",
            "postgresql.auto.conf",
        ];
        assert_eq!(paths(root, 15), expected);
        assert!(paths(root, 17).contains(&"pg_wal/summaries".to_string()));
    }

    #[test]
    fn tablespaces_are_listed_below_pg_tblspc_and_only_once() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("data");
        let outside = folder.path().join("outside");
        write(&root, "PG_VERSION");
        write(&root, "inside/PG_15_202209061/5/16390");
        write(&root, "pg_tblspc/16400/PG_15_202209061/5/16391");
        write(&root, "pg_tblspc/junk/file");
        write(&outside, "PG_15_202209061/5/16392");
        write(&outside, "PG_15_202209061/5/t4_16393");
        write(&outside, "PG_14_202107181/5/16392");
        write(&outside, "stray");
        symlink(&outside, root.join("pg_tblspc/16401")).unwrap();
        symlink(root.join("inside"), root.join("pg_tblspc/16402")).unwrap();
        let expected = [
            "PG_VERSION",
            "inside",
            "pg_tblspc",
            "pg_tblspc/16400",
            "pg_tblspc/16400/PG_15_202209061",
            "pg_tblspc/16400/PG_15_202209061/5",
            "pg_tblspc/16400/PG_15_202209061/5/16391",
            "pg_tblspc/16401",
            "pg_tblspc/16401/PG_15_202209061",
            "pg_tblspc/16401/PG_15_202209061/5",
            "pg_tblspc/16401/PG_15_202209061/5/16392",
            "pg_tblspc/16402",
            "pg_tblspc/16402/PG_15_202209061",
            "pg_tblspc/16402/PG_15_202209061/5",
            "pg_tblspc/16402/PG_15_202209061/5/16390",
        ];
        assert_eq!(paths(&root, 15), expected);
        let entries = list(&root, &[], Major(15)).unwrap();
        let link = entries
            .iter()
            .find(|entry| entry.path == b"pg_tblspc/16401")
            .unwrap();
        assert_eq!(link.kind, EntryKind::Symlink { target: outside });
    }

    #[test]
    fn pg_wal_behind_a_link_is_kept_as_an_empty_directory() {
        let folder = tempfile::tempdir().unwrap();
        let (root, wal) = (folder.path().join("data"), folder.path().join("wal"));
        write(&root, "PG_VERSION");
        write(&wal, "000000010000000000000001");
        symlink(&wal, root.join("pg_wal")).unwrap();
        assert_eq!(
            paths(&root, 13),
            ["PG_VERSION", "pg_wal", "pg_wal/archive_status"]
        );
    }

    #[test]
    fn a_link_that_hides_data_is_an_error_and_another_is_reported() {
        let folder = tempfile::tempdir().unwrap();
        let (root, outside) = (folder.path().join("data"), folder.path().join("outside"));
        write(&root, "base/1/1259");
        write(&outside, "1259");
        symlink(&outside, root.join("log")).unwrap();
        let listing = list_reporting(&root, &[], Major(15)).unwrap();
        assert_eq!(listing.skipped.len(), 1);
        assert_eq!(listing.skipped[0].path, b"log");
        symlink(&outside, root.join("base/16384")).unwrap();
        assert_eq!(
            list(&root, &[], Major(15)).unwrap_err().code(),
            "data-directory-link"
        );
    }

    #[test]
    fn a_missing_data_directory_is_an_error() {
        let error = list(Path::new("/nonexistent/pgproof"), &[], Major(15)).unwrap_err();
        assert_eq!(error.code(), "data-directory-read");
        assert_eq!(
            read_control_file(Path::new("/nonexistent")).unwrap_err().code(),
            "data-directory-read"
        );
    }
}
