//! Where the base and the WAL lie, and the way through them: plain folders, archives, and what pg_basebackup makes.
//!
//! Invariants: two walks give the same members in the same order as long as nobody changes the files; no symbolic link is
//! followed but those that are named, a tablespace's in `pg_tblspc` and that of `pg_wal`; everything is streamed.

use std::fs;
use std::io::Read;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use diagnostic::{Error, Result};
use postgres::Oid;
use serde::Serialize;

use super::archive::{Archive, Kind, Member, looks_like_tar};
use super::facts::wal_name;
use super::open::{broken, fill, open, plain_name, unreadable};

/// Who is told each member of a base, with its content.
pub(super) type EachMember<'a> = &'a mut dyn FnMut(&str, Member, &mut (dyn Read + Send)) -> Result<()>;

/// Who is told each file of a WAL archive: the source, the path in it, the stated size, the content.
pub(super) type EachFile<'a> = &'a mut dyn FnMut(&str, &[u8], u64, &mut (dyn Read + Send)) -> Result<()>;

/// How a base lies on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "layout")]
pub enum Base {
    /// A data directory: `pg_basebackup -Fp`, or a copy of one.
    Directory { directory: PathBuf },
    /// One archive of a data directory, or those of `pg_basebackup -Ft`.
    Archives {
        base: PathBuf,
        tablespaces: Vec<(Oid, PathBuf)>,
        pg_wal: Option<PathBuf>,
        manifest: Option<PathBuf>,
    },
}

impl Base {
    /// Finds out how `path` is laid out. Errors: `import-read`, `import-layout`.
    pub fn find(path: &Path) -> Result<Base> {
        let metadata = fs::metadata(path).map_err(|error| unreadable(path, &error))?;
        if !metadata.is_dir() {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            return match (plain_name(&name), path.parent()) {
                // What pg_basebackup put beside it belongs to it.
                ("base.tar", Some(folder)) => archives(folder, path.to_owned()),
                _ => Ok(Base::Archives {
                    base: path.to_owned(),
                    tablespaces: Vec::new(),
                    pg_wal: None,
                    manifest: None,
                }),
            };
        }
        if path.join("global").is_dir() {
            let directory = path.to_owned();
            return Ok(Base::Directory { directory });
        }
        let mut inside = Vec::new();
        let mut base = None;
        for entry in entries(path)? {
            let name = entry
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            if entry.join("global").is_dir() {
                inside.push(entry);
            } else if plain_name(&name) == "base.tar" {
                base = Some(entry);
            }
        }
        match (base, inside.pop(), inside.is_empty()) {
            (Some(base), _, _) => archives(path, base),
            (None, Some(directory), true) => Ok(Base::Directory { directory }),
            _ => Err(Error::new(
                "import-layout",
                format!("\"{}\" holds no base backup", path.display()),
            )
            .detail("It is neither a data directory nor what `pg_basebackup -Ft` makes (base.tar), nor does it hold one data directory alone.")
            .hint("Name the data directory, or the archive of it, with --base.")),
        }
    }

    /// Goes through all members. Those of tablespaces are below `pg_tblspc/OID`.
    pub(super) fn walk(&self, each: EachMember<'_>) -> Result<()> {
        match self {
            Base::Directory { directory } => {
                let source = directory.display().to_string();
                folder(&source, directory, b"", each)
            }
            Base::Archives {
                base,
                tablespaces,
                pg_wal,
                manifest,
            } => {
                if let Some(manifest) = manifest {
                    let mut content = open(manifest)?;
                    let size = fs::metadata(manifest).map_err(|error| unreadable(manifest, &error))?;
                    let member = Member {
                        path: b"backup_manifest".to_vec(),
                        mode: 0o600,
                        kind: Kind::File { size: size.len() },
                    };
                    each(&manifest.display().to_string(), member, &mut content)?;
                }
                for (oid, path) in tablespaces {
                    archive(path, format!("pg_tblspc/{oid}/").as_bytes(), each)?;
                }
                if let Some(path) = pg_wal {
                    archive(path, b"pg_wal/", each)?;
                }
                archive(base, b"", each)
            }
        }
    }
}

/// `pg_basebackup -Ft`: what lies beside its base.tar.
fn archives(folder: &Path, base: PathBuf) -> Result<Base> {
    let (mut tablespaces, mut pg_wal, mut manifest) = (Vec::new(), None, None);
    for entry in entries(folder)? {
        let name = entry
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        match plain_name(&name).strip_suffix(".tar") {
            Some("pg_wal") => pg_wal = Some(entry),
            Some(digits) => {
                if let Some(oid) = digits.parse::<Oid>().ok().filter(|oid| *oid != 0) {
                    tablespaces.push((oid, entry));
                }
            }
            None if name == "backup_manifest" => manifest = Some(entry),
            None => {}
        }
    }
    Ok(Base::Archives {
        base,
        tablespaces,
        pg_wal,
        manifest,
    })
}

fn archive(path: &Path, prefix: &[u8], each: EachMember<'_>) -> Result<()> {
    members(open(path)?, &path.display().to_string(), prefix, each)
}

/// The members of an archive that is at hand; `prefix` is put before their names.
pub(super) fn members(
    content: impl Read + Send,
    source: &str,
    prefix: &[u8],
    each: EachMember<'_>,
) -> Result<()> {
    let mut archive = Archive::new(content, source.to_owned());
    while let Some(mut member) = archive.next_member()? {
        member.path = [prefix, &member.path].concat();
        each(source, member, &mut archive)?;
    }
    Ok(())
}

/// The entries of a folder, in the order of their names.
fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut entries = Vec::new();
    for entry in fs::read_dir(folder).map_err(|error| unreadable(folder, &error))? {
        entries.push(entry.map_err(|error| unreadable(folder, &error))?.path());
    }
    entries.sort();
    Ok(entries)
}

/// A folder of a data directory; `below` is its path there.
fn folder(source: &str, absolute: &Path, below: &[u8], each: EachMember<'_>) -> Result<()> {
    for entry in entries(absolute)? {
        let name = entry.file_name().unwrap_or_default().as_bytes();
        let path = match below {
            b"" => name.to_vec(),
            below => [below, b"/", name].concat(),
        };
        let metadata = entry
            .symlink_metadata()
            .map_err(|error| unreadable(&entry, &error))?;
        let mut member = Member {
            path: path.clone(),
            mode: metadata.mode() & 0o7777,
            kind: Kind::Directory,
        };
        if metadata.is_symlink() {
            let target = fs::read_link(&entry).map_err(|error| unreadable(&entry, &error))?;
            member.kind = Kind::Symlink {
                target: target.into_os_string().into_vec(),
            };
            each(source, member, &mut std::io::empty())?;
            // A tablespace, or `pg_basebackup --waldir`.
            if (below == b"pg_tblspc" || path == b"pg_wal") && entry.is_dir() {
                folder(source, &entry, &path, each)?;
            }
        } else if metadata.is_dir() {
            each(source, member, &mut std::io::empty())?;
            folder(source, &entry, &path, each)?;
        } else if metadata.is_file() {
            // A pipe or a socket is not opened: that could wait for ever.
            let mut file = fs::File::open(&entry).map_err(|error| unreadable(&entry, &error))?;
            let size = metadata.len();
            member.kind = Kind::File { size };
            each(source, member, &mut (&mut file).take(size))?;
        }
    }
    Ok(())
}

/// Goes through an archive of WAL: a folder (at any depth), a tar archive, or one file.
pub(super) fn walk_wal(path: &Path, each: EachFile<'_>) -> Result<()> {
    let metadata = fs::metadata(path).map_err(|error| unreadable(path, &error))?;
    match metadata.is_dir() {
        true => wal_folder(path, path, each),
        false => wal_file(path, path, each),
    }
}

fn wal_folder(root: &Path, folder: &Path, each: EachFile<'_>) -> Result<()> {
    for entry in entries(folder)? {
        let metadata = entry
            .symlink_metadata()
            .map_err(|error| unreadable(&entry, &error))?;
        if metadata.is_dir() {
            wal_folder(root, &entry, each)?;
        } else if metadata.is_file() {
            wal_file(root, &entry, each)?;
        }
    }
    Ok(())
}

fn wal_file(root: &Path, path: &Path, each: EachFile<'_>) -> Result<()> {
    let source = root.display().to_string();
    let within = path.strip_prefix(root).unwrap_or(path).as_os_str().as_bytes();
    let name = if within.is_empty() {
        path.as_os_str().as_bytes()
    } else {
        within
    };
    let size = fs::metadata(path)
        .map_err(|error| unreadable(path, &error))?
        .len();
    if wal_name(name).is_some() {
        return each(&source, name, size, &mut open(path)?);
    }
    // What is no tar archive is told all the same: somebody counts what is ignored.
    let mut first = [0; 512];
    let count = match open(path).and_then(|mut content| {
        fill(&mut content, &mut first).map_err(|error| broken(&path.display().to_string(), &error))
    }) {
        Ok(count) => count,
        Err(error) if plain_name(&path.to_string_lossy()).ends_with(".tar") => return Err(error),
        Err(_) => 0,
    };
    if !looks_like_tar(first.get(..count).unwrap_or_default()) {
        // A file that was named itself is meant.
        if root == path {
            return Err(
                Error::new("import-layout", format!("\"{}\" holds no WAL", path.display()))
                    .detail("It is neither a tar archive nor named like a WAL file."),
            );
        }
        return each(&source, name, size, &mut std::io::empty());
    }
    let source = path.display().to_string();
    let mut archive = Archive::new(open(path)?, source.clone());
    while let Some(member) = archive.next_member()? {
        if let Kind::File { size } = member.kind {
            each(&source, &member.path, size, &mut archive)?;
        }
    }
    Ok(())
}
