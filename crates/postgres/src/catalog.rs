//! A snapshot of names: which relation had which storage at one moment, for each database.
//!
//! WAL speaks of relfilenodes only; this is what turns them into table names. Filled by whoever has an SQL
//! session, kept with each backup. Invariant of a lookup: an answer names the relation as of `taken_at`; what
//! was created or rewritten later is not found, and never guessed.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use crate::{DEFAULT_TABLESPACE, GLOBAL_TABLESPACE, Oid, RelationLocator};

/// All databases that could be asked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Catalog {
    pub taken_at: jiff::Timestamp,
    pub databases: Vec<Database>,
}

/// One database and its relations (shared ones are listed in each database).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Database {
    pub oid: Oid,
    pub name: String,
    /// the database's default tablespace
    pub tablespace: Oid,
    pub collation_version: Option<String>,
    pub relations: Vec<Relation>,
}

/// One row of `pg_class` that has storage, or a partitioned table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Relation {
    pub oid: Oid,
    pub schema: String,
    /// 0 in snapshots of versions that did not note it
    #[serde(default)]
    pub schema_oid: Oid,
    pub name: String,
    /// `relkind`: r table, i index, S sequence, t toast, m materialised view, p partitioned table, ...
    pub kind: char,
    /// `relpersistence`: p permanent, u unlogged, t temporary
    pub persistence: char,
    /// 0: the database's default
    pub tablespace: Oid,
    /// `pg_relation_filenode`; 0: no storage
    pub filenode: u32,
    /// the toast table's OID, or 0
    pub toast: Oid,
    /// `reltuples`: an estimate; -1 when never analysed
    pub rows: f32,
    /// for an index or a toast table the OID of the table it belongs to, else 0
    pub owner_table: Oid,
}

impl Relation {
    /// Where the relation's storage is; `None` when it has none.
    pub fn locator(&self, database: &Database) -> Option<RelationLocator> {
        if self.filenode == 0 {
            return None;
        }
        let tablespace = if self.tablespace == 0 {
            database.tablespace
        } else {
            self.tablespace
        };
        let tablespace = if tablespace == 0 {
            DEFAULT_TABLESPACE
        } else {
            tablespace
        };
        let database = if tablespace == GLOBAL_TABLESPACE {
            0
        } else {
            database.oid
        };
        Some(RelationLocator {
            tablespace,
            database,
            relation: self.filenode,
        })
    }

    /// Ordinary table, partitioned table or materialised view.
    pub fn is_table(&self) -> bool {
        matches!(self.kind, 'r' | 'p' | 'm')
    }
}

impl Catalog {
    /// The relation with this storage. For many questions make a [`RelationFinder`] once.
    pub fn relation_of(&self, locator: &RelationLocator) -> Option<(&Database, &Relation)> {
        self.relations()
            .find(|(database, relation)| relation.locator(database).as_ref() == Some(locator))
    }

    /// An index by storage, for many lookups.
    pub fn finder(&self) -> RelationFinder<'_> {
        let mut by_locator = HashMap::new();
        for (database, relation) in self.relations() {
            if let Some(locator) = relation.locator(database) {
                // Shared relations stand in each database; the first one answers.
                by_locator.entry(locator).or_insert((database, relation));
            }
        }
        RelationFinder { by_locator }
    }

    /// Tables with this name: `orders` (in any schema and database), `public.orders`, `shop.public.orders`.
    /// A part in double quotes is taken as it is; another one is folded to lower case, as in SQL.
    pub fn find_table(&self, name: &str) -> Vec<(&Database, &Relation)> {
        let Some(parts) = split_name(name) else {
            return Vec::new();
        };
        let (database_name, schema, table) = match parts.as_slice() {
            [table] => (None, None, table),
            [schema, table] => (None, Some(schema), table),
            [database, schema, table] => (Some(database), Some(schema), table),
            _ => return Vec::new(),
        };
        self.relations()
            .filter(|(database, relation)| {
                relation.is_table()
                    && relation.name == *table
                    && schema.is_none_or(|schema| relation.schema == *schema)
                    && database_name.is_none_or(|name| database.name == *name)
            })
            .collect()
    }

    /// The database with this OID.
    pub fn database(&self, oid: Oid) -> Option<&Database> {
        self.databases.iter().find(|database| database.oid == oid)
    }

    fn relations(&self) -> impl Iterator<Item = (&Database, &Relation)> {
        self.databases
            .iter()
            .flat_map(|database| database.relations.iter().map(move |r| (database, r)))
    }
}

/// Answers [`Catalog::relation_of`] in constant time.
#[derive(Debug, Clone)]
pub struct RelationFinder<'a> {
    by_locator: HashMap<RelationLocator, (&'a Database, &'a Relation)>,
}

impl<'a> RelationFinder<'a> {
    /// The relation with this storage.
    pub fn relation_of(&self, locator: &RelationLocator) -> Option<(&'a Database, &'a Relation)> {
        self.by_locator.get(locator).copied()
    }
}

/// The parts of a dotted name, as SQL reads them; `None` when a quote is not closed or a part is empty.
fn split_name(name: &str) -> Option<Vec<String>> {
    let mut parts = Vec::new();
    let mut rest = name;
    loop {
        let part;
        if let Some(quoted) = rest.strip_prefix('"') {
            let mut text = String::new();
            let mut tail = quoted;
            loop {
                let (before, after) = tail.split_once('"')?;
                text.push_str(before);
                match after.strip_prefix('"') {
                    Some(more) => {
                        text.push('"');
                        tail = more;
                    }
                    None => {
                        tail = after;
                        break;
                    }
                }
            }
            part = text;
            rest = tail;
        } else {
            let end = rest.find('.').unwrap_or(rest.len());
            part = rest.get(..end)?.to_lowercase();
            rest = rest.get(end..)?;
        }
        if part.is_empty() {
            return None;
        }
        parts.push(part);
        match rest.strip_prefix('.') {
            Some(more) => rest = more,
            None => return rest.is_empty().then_some(parts),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn relation(oid: Oid, schema: &str, name: &str, kind: char, tablespace: Oid, filenode: u32) -> Relation {
        Relation {
            oid,
            schema: schema.into(),
            name: name.into(),
            kind,
            persistence: 'p',
            tablespace,
            filenode,
            toast: 0,
            rows: 10.0,
            owner_table: 0,
            schema_oid: 0,
        }
    }

    fn catalog() -> Catalog {
        let shared = relation(1262, "pg_catalog", "pg_database", 'r', GLOBAL_TABLESPACE, 1262);
        let database = |oid, name: &str, relations| Database {
            oid,
            name: name.into(),
            tablespace: DEFAULT_TABLESPACE,
            collation_version: None,
            relations,
        };
        Catalog {
            taken_at: jiff::Timestamp::UNIX_EPOCH,
            databases: vec![
                database(
                    5,
                    "shop",
                    vec![
                        relation(100, "public", "orders", 'r', 0, 200),
                        relation(101, "archive", "orders", 'r', 16400, 201),
                        relation(102, "public", "orders_pkey", 'i', 0, 202),
                        relation(103, "public", "Orders", 'p', 0, 0),
                        shared.clone(),
                    ],
                ),
                database(
                    6,
                    "crm",
                    vec![relation(100, "public", "orders", 'r', 0, 200), shared],
                ),
            ],
        }
    }

    #[test]
    fn storage_is_named_by_tablespace_database_and_filenode() {
        let catalog = catalog();
        let find = |tablespace, database, relation| {
            let locator = RelationLocator {
                tablespace,
                database,
                relation,
            };
            let found = catalog
                .relation_of(&locator)
                .map(|(d, r)| (d.name.as_str(), r.name.as_str(), r.schema.as_str()));
            let indexed = catalog
                .finder()
                .relation_of(&locator)
                .map(|(d, r)| (d.name.as_str(), r.name.as_str(), r.schema.as_str()));
            assert_eq!(found, indexed);
            found
        };
        assert_eq!(find(1663, 5, 200), Some(("shop", "orders", "public")));
        assert_eq!(find(1663, 6, 200), Some(("crm", "orders", "public")));
        assert_eq!(find(16400, 5, 201), Some(("shop", "orders", "archive")));
        assert_eq!(find(1664, 0, 1262), Some(("shop", "pg_database", "pg_catalog")));
        assert_eq!(find(1663, 5, 201), None);
        assert_eq!(find(1663, 5, 0), None);
    }

    #[test]
    fn tables_are_found_by_one_two_or_three_parts() {
        let catalog = catalog();
        let count = |name: &str| catalog.find_table(name).len();
        assert_eq!(count("orders"), 3);
        assert_eq!(count("ORDERS"), 3);
        assert_eq!(count("public.orders"), 2);
        assert_eq!(count("shop.public.orders"), 1);
        assert_eq!(count("\"Orders\""), 1);
        assert_eq!(count("public.\"Orders\""), 1);
        assert_eq!(count("orders_pkey"), 0);
        for bad in ["", ".", "a..b", "\"orders", "a.b.c.d", "\"a\"b"] {
            assert_eq!(count(bad), 0, "{bad:?}");
        }
    }
}
