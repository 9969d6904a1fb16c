//! A snapshot of each database's `pg_class`, so that later what the WAL calls by number can be called by
//! name.
//!
//! Invariants: read-only; a database that does not allow connections, or goes away meanwhile, is listed or
//! left out but never fails the snapshot; `filenode` is what is on disk, for mapped relations too
//! (`pg_relation_filenode()`). Temporary relations are left out: no backup holds them.

use crate::facts::{boolean, column, parsed};
use crate::session::{ConnectOptions, Session, sqlstate};
use diagnostic::Result;
use postgres::{Catalog, Database, Relation};

/// One row for each relation with storage, and for partitioned tables and indexes.
///
/// Only a mapped relation's file number has to be asked for: the function looks each relation up again, which takes as long
/// as all the rest where there are many. The owner is the table itself for its indexes, its toast table and the toast
/// table's index, and for sequences that a column owns.
const RELATIONS: &str = "\
SELECT c.oid::text, n.nspname, c.relname, c.relkind::text, c.relpersistence::text, c.reltablespace::text, \
       CASE WHEN c.relfilenode <> 0 THEN c.relfilenode ELSE coalesce(pg_relation_filenode(c.oid), 0) END::text, \
       c.reltoastrelid::text, c.reltuples::text, \
       coalesce(t.oid, it.oid, i.indrelid, s.refobjid, 0)::text, c.relnamespace::text \
  FROM pg_class c \
  JOIN pg_namespace n ON n.oid = c.relnamespace \
  LEFT JOIN pg_class t ON c.relkind = 't' AND t.reltoastrelid = c.oid \
  LEFT JOIN pg_index i ON c.relkind IN ('i', 'I') AND i.indexrelid = c.oid \
  LEFT JOIN pg_class it ON it.reltoastrelid <> 0 AND it.reltoastrelid = i.indrelid \
  LEFT JOIN (SELECT objid, min(refobjid) AS refobjid FROM pg_depend \
              WHERE classid = 'pg_class'::regclass AND refclassid = 'pg_class'::regclass AND objsubid = 0 \
                AND refobjsubid > 0 AND deptype IN ('a', 'i') GROUP BY objid) s \
         ON c.relkind = 'S' AND s.objid = c.oid \
 WHERE c.relkind IN ('r', 'i', 't', 'm', 'S', 'p', 'I') AND c.relpersistence <> 't' \
 ORDER BY c.oid";

/// Connects to each database that allows it, and reads its relations.
pub fn read_catalog(conninfo: &str, now: jiff::Timestamp) -> Result<Catalog> {
    let mut session = Session::connect_with(conninfo, &options(None))?;
    let version = match session.version_num() {
        150_000.. => "datcollversion",
        _ => "NULL",
    };
    // datconnlimit = -2 marks the remains of an interrupted DROP DATABASE.
    let rows = session.rows(&format!(
        "SELECT oid::text, datname, dattablespace::text, {version}, datallowconn AND datconnlimit <> -2 \
           FROM pg_database ORDER BY oid"
    ))?;
    let mut databases = Vec::with_capacity(rows.len());
    for row in rows {
        let mut database = Database {
            oid: parsed(column(&row, 0), "pg_database.oid")?,
            name: column(&row, 1).unwrap_or_default(),
            tablespace: parsed(column(&row, 2), "pg_database.dattablespace")?,
            collation_version: column(&row, 3),
            relations: Vec::new(),
        };
        if column(&row, 4).is_some_and(|allowed| boolean(&allowed)) {
            match read_relations(conninfo, &database.name) {
                Ok(relations) => database.relations = relations,
                // 3D000: dropped since it was listed; 55000: it no longer accepts connections.
                Err(error) if matches!(sqlstate(&error), Some("3D000" | "55000")) => continue,
                Err(error) => return Err(error),
            }
        }
        databases.push(database);
    }
    Ok(Catalog {
        taken_at: now,
        databases,
    })
}

fn read_relations(conninfo: &str, database: &str) -> Result<Vec<Relation>> {
    relations(&mut Session::connect_with(conninfo, &options(Some(database)))?)
}

/// Those of the database that the session is connected to.
pub(crate) fn relations(session: &mut Session) -> Result<Vec<Relation>> {
    let rows = session.rows(RELATIONS)?;
    let letter = |row: &[Option<String>], index| column(row, index).and_then(|text| text.chars().next());
    rows.iter()
        .map(|row| {
            Ok(Relation {
                oid: parsed(column(row, 0), "pg_class.oid")?,
                schema: column(row, 1).unwrap_or_default(),
                name: column(row, 2).unwrap_or_default(),
                kind: letter(row, 3).unwrap_or('?'),
                persistence: letter(row, 4).unwrap_or('?'),
                tablespace: parsed(column(row, 5), "pg_class.reltablespace")?,
                filenode: parsed(column(row, 6), "pg_relation_filenode")?,
                toast: parsed(column(row, 7), "pg_class.reltoastrelid")?,
                rows: parsed(column(row, 8), "pg_class.reltuples")?,
                owner_table: parsed(column(row, 9), "pg_index.indrelid")?,
                schema_oid: parsed(column(row, 10), "pg_class.relnamespace")?,
            })
        })
        .collect()
}

fn options(database: Option<&str>) -> ConnectOptions {
    ConnectOptions {
        database: database.map(str::to_string),
        read_only: true,
        ..ConnectOptions::default()
    }
}
