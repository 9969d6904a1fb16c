//! Paths of relation files inside a data directory (`relpath.c`), read and written exactly.
//!
//! `base/5/16384_fsm.1`, `global/1262`, `pg_tblspc/16400/PG_15_202209061/5/16401`, and temporary
//! `base/5/t3_16384`. Invariant: a path that parses is written back byte for byte (with its own version
//! directory); numbers with leading zeros or signs are not relation files.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::Oid;

/// `pg_default`, whose files are under `base/`.
pub const DEFAULT_TABLESPACE: Oid = 1663;
/// `pg_global`, whose files are under `global/`.
pub const GLOBAL_TABLESPACE: Oid = 1664;

/// A relation's forks (`ForkNumber`), in PostgreSQL's order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Fork {
    Main = 0,
    /// free space map
    Fsm = 1,
    /// visibility map
    Vm = 2,
    /// the empty form of an unlogged relation
    Init = 3,
}

impl Fork {
    /// From PostgreSQL's number.
    pub fn from_number(number: u32) -> Option<Fork> {
        match number {
            0 => Some(Fork::Main),
            1 => Some(Fork::Fsm),
            2 => Some(Fork::Vm),
            3 => Some(Fork::Init),
            _ => None,
        }
    }

    /// What follows the relation's number in the file name: `""`, `"_fsm"`, `"_vm"`, `"_init"`.
    pub fn suffix(self) -> &'static str {
        match self {
            Fork::Main => "",
            Fork::Fsm => "_fsm",
            Fork::Vm => "_vm",
            Fork::Init => "_init",
        }
    }
}

/// Where a relation's storage is (`RelFileLocator`, `RelFileNode` before 16). `database` is 0 for shared
/// ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RelationLocator {
    pub tablespace: Oid,
    pub database: Oid,
    /// relfilenode: not the relation's OID once it has been rewritten
    pub relation: u32,
}

impl fmt::Display for RelationLocator {
    /// `1663/5/16384`, as pg_waldump prints it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.tablespace, self.database, self.relation)
    }
}

/// One file of a relation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RelationFile {
    pub locator: RelationLocator,
    pub fork: Fork,
    /// 0 for the first file, then 1 for `.1` and so on
    pub segment: u32,
    /// belongs to one session, `backend`; never part of a backup
    pub temporary: bool,
    /// the session's number where `temporary`, else 0
    pub backend: u32,
}

impl RelationFile {
    /// Reads a path relative to the data directory, with `/` between its parts.
    pub fn parse(path: &[u8]) -> Option<RelationFile> {
        let path = std::str::from_utf8(path).ok()?;
        let mut parts = path.split('/');
        let (tablespace, database) = match parts.next()? {
            "global" => (GLOBAL_TABLESPACE, 0),
            "base" => (DEFAULT_TABLESPACE, positive(parts.next()?)?),
            "pg_tblspc" => {
                let tablespace = positive(parts.next()?)?;
                let (major, catalog) = parts.next()?.strip_prefix("PG_")?.split_once('_')?;
                positive(major)?;
                positive(catalog)?;
                (tablespace, positive(parts.next()?)?)
            }
            _ => return None,
        };
        let name = parts.next()?;
        if parts.next().is_some() {
            return None;
        }
        let (backend, name) = match name.strip_prefix('t') {
            // No session makes temporary files in global/.
            Some(rest) if database != 0 => {
                let (backend, rest) = rest.split_once('_')?;
                (Some(number(backend)?), rest)
            }
            Some(_) => return None,
            None => (None, name),
        };
        let (name, segment) = match name.split_once('.') {
            Some((name, segment)) => (name, positive(segment)?),
            None => (name, 0),
        };
        let (relation, fork) = match name.split_once('_') {
            None => (name, Fork::Main),
            Some((relation, "fsm")) => (relation, Fork::Fsm),
            Some((relation, "vm")) => (relation, Fork::Vm),
            Some((relation, "init")) => (relation, Fork::Init),
            Some(_) => return None,
        };
        let locator = RelationLocator {
            tablespace,
            database,
            relation: positive(relation)?,
        };
        let temporary = backend.is_some();
        Some(RelationFile {
            locator,
            fork,
            segment,
            temporary,
            backend: backend.unwrap_or(0),
        })
    }

    /// The path relative to the data directory; `version_directory` (`PG_15_202209061`) is used in
    /// tablespaces.
    pub fn path(&self, version_directory: &str) -> String {
        let RelationLocator {
            tablespace,
            database,
            relation,
        } = self.locator;
        let mut path = match tablespace {
            GLOBAL_TABLESPACE => "global/".to_string(),
            DEFAULT_TABLESPACE => format!("base/{database}/"),
            other => format!("pg_tblspc/{other}/{version_directory}/{database}/"),
        };
        if self.temporary {
            path.push_str(&format!("t{}_", self.backend));
        }
        path.push_str(&relation.to_string());
        path.push_str(self.fork.suffix());
        if self.segment != 0 {
            path.push_str(&format!(".{}", self.segment));
        }
        path
    }
}

/// A decimal number as PostgreSQL prints it: no sign, no leading zeros.
fn number(text: &str) -> Option<u32> {
    let plain = text.bytes().all(|b| b.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    plain.then(|| text.parse().ok()).flatten()
}

fn positive(text: &str) -> Option<u32> {
    number(text).filter(|value| *value != 0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn paths_of_each_kind_are_read_and_written() {
        let version = "PG_15_202209061";
        for (path, tablespace, database, relation, fork, segment, backend) in [
            ("base/5/16384", 1663, 5, 16384, Fork::Main, 0, None),
            ("base/5/16384_fsm.1", 1663, 5, 16384, Fork::Fsm, 1, None),
            ("base/5/16384_vm", 1663, 5, 16384, Fork::Vm, 0, None),
            ("base/5/16384_init", 1663, 5, 16384, Fork::Init, 0, None),
            ("base/5/16384.17", 1663, 5, 16384, Fork::Main, 17, None),
            ("global/1262", 1664, 0, 1262, Fork::Main, 0, None),
            ("global/1262_fsm", 1664, 0, 1262, Fork::Fsm, 0, None),
            (
                "pg_tblspc/16400/PG_15_202209061/5/16401_vm.2",
                16400,
                5,
                16401,
                Fork::Vm,
                2,
                None,
            ),
            ("base/5/t3_16384", 1663, 5, 16384, Fork::Main, 0, Some(3)),
            ("base/5/t0_16384_fsm", 1663, 5, 16384, Fork::Fsm, 0, Some(0)),
        ] {
            let file = RelationFile::parse(path.as_bytes()).unwrap_or_else(|| panic!("{path}"));
            assert_eq!(
                file.locator,
                RelationLocator {
                    tablespace,
                    database,
                    relation
                },
                "{path}"
            );
            assert_eq!((file.fork, file.segment), (fork, segment), "{path}");
            assert_eq!(file.temporary.then_some(file.backend), backend, "{path}");
            assert_eq!(file.path(version), path);
        }
    }

    #[test]
    fn other_files_are_not_relation_files() {
        for path in [
            "",
            "base",
            "base/5",
            "base/5/",
            "base/5/PG_VERSION",
            "base/5/pg_filenode.map",
            "global/pg_control",
            "global/pg_internal.init",
            "base/5/pg_internal.init",
            "base/5/016384",
            "base/0/1",
            "base/5/0",
            "base/5/16384.0",
            "base/5/16384.01",
            "base/5/16384_",
            "base/5/16384_fsm_vm",
            "base/5/16384_fsm.",
            "base/5/99999999999",
            "base/5/16384/1",
            "/base/5/1",
            "base//1",
            "./base/5/1",
            "global/t3_1262",
            "base/5/t_1",
            "base/5/t-1_1",
            "base/+5/1",
            "pg_tblspc/16400/5/1",
            "pg_tblspc/16400/PG_15/5/1",
            "pg_wal/000000010000000000000001",
            "base/pgsql_tmp/1",
        ] {
            assert_eq!(RelationFile::parse(path.as_bytes()), None, "{path:?}");
        }
        assert_eq!(RelationFile::parse(b"base/5/\xFF"), None);
    }

    proptest! {
        #[test]
        fn what_is_read_is_written_back(path in "(base/[0-9]{1,3}|global|pg_tblspc/[0-9]{1,3}/PG_15_2)/(t[0-9]{1,2}_)?[0-9]{1,3}(_fsm|_vm|_init|_x)?(\\.[0-9]{1,2})?") {
            if let Some(file) = RelationFile::parse(path.as_bytes()) {
                prop_assert_eq!(file.path("PG_15_2"), path);
            }
        }

        #[test]
        fn no_bytes_panic(path: Vec<u8>) {
            let _ = RelationFile::parse(&path);
        }
    }
}
