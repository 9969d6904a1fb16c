//! What happened to a table: dropped, truncated, emptied by DELETE, overwritten by UPDATE, rewritten; schemas
//! and databases that were dropped.
//!
//! WAL knows files, not tables. Catalog snapshots (one with each backup) give files their names, and from one
//! snapshot to the next this module follows each table's file itself: a transaction that removes a table's
//! file and makes new ones has truncated or rewritten it, one that makes none has dropped it. At `wal_level =
//! replica` a TRUNCATE and a rewrite (VACUUM FULL, CLUSTER, ALTER TABLE) look the same but for what was
//! written into the new file before the commit; the answer says how sure it is. REINDEX touches no table's
//! file and is never mistaken.
//!
//! Invariants: only committed transactions are events; the point before an event is the start of the record
//! that makes it happen, to be recovered to exclusively; for DROP DATABASE, which is not transactional, that
//! is the in-place update that marks `pg_database`.

use std::collections::{HashMap, HashSet};
use std::ops::ControlFlow;

use diagnostic::Result;
use postgres::{
    Catalog, Event, EventKind, Fork, Lsn, Oid, RelationLocator, RelationRow, TimelineId, Timestamp,
    TransactionEnd, Xid,
};
use serde::{Deserialize, Serialize};

use crate::archive::{Archive, Located};
use crate::point::committed;
use crate::timelines::WalPath;

/// The OIDs of `pg_class`, which is its file's number too until it is rewritten, and of the schema `public`.
const PG_CLASS: Oid = 1259;
const PUBLIC: Oid = 2200;

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TableEvent {
    /// DROP TABLE, or whatever took the table with it.
    Drop,
    /// TRUNCATE.
    Truncate,
    /// DELETE of much of the table.
    #[serde(alias = "emptied")]
    Delete,
    /// UPDATE of much of the table.
    #[serde(alias = "updated")]
    Update,
    /// VACUUM FULL, CLUSTER, ALTER TABLE: the rows were written anew.
    Rewrite,
    /// DROP DATABASE.
    DropDatabase,
}

/// How sure the answer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Certainty {
    /// The records say so.
    Certain,
    /// The records fit this better than anything else.
    Likely,
    /// It may as well have been something else; the note says what.
    Unclear,
}

/// From when on a DELETE has emptied, or an UPDATE overwritten, a table.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Thresholds {
    /// At least so many rows.
    pub rows_min: u64,
    /// At least this share of the table's rows, from 0 to 1.
    pub share_min: f64,
}

impl Default for Thresholds {
    fn default() -> Self {
        Thresholds {
            rows_min: 100,
            share_min: 0.5,
        }
    }
}

/// What is looked for.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct FindQuery {
    /// `orders`, `public.orders` or `db.public.orders`; `None` for every table.
    pub table: Option<String>,
    /// Empty for all but rewrites.
    pub events: Vec<TableEvent>,
    /// Committed at or after.
    pub from: Option<Timestamp>,
    /// Committed at or before.
    pub to: Option<Timestamp>,
    /// For DELETE and UPDATE.
    pub thresholds: Thresholds,
}

/// One event of one table; events of one transaction have the same xid and commit LSN.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FoundEvent {
    pub event: TableEvent,
    /// `schema.table`, or the database for DROP DATABASE, or the file if no snapshot knows it.
    pub table: String,
    pub database: String,
    pub xid: Xid,
    /// The start of the record that made it happen.
    pub commit_lsn: Lsn,
    pub committed_at: Timestamp,
    /// Rows lost or changed: of a DELETE or an UPDATE counted in the WAL, else the planner's estimate in the last catalog snapshot.
    pub rows: Option<u64>,
    /// `pgproof restore --to` this LSN recovers to just before the event.
    pub target_before: Lsn,
    pub certainty: Certainty,
    /// What else it may have been, or where the figures come from.
    pub note: Option<String>,
    /// The file that was removed, or whose rows were deleted or updated.
    pub relation: Option<RelationLocator>,
    /// Other tables to which the same happened in the same transaction, as `schema.table`.
    #[serde(default)]
    pub with: Vec<String>,
    /// The transaction dropped every table that was known of this schema: DROP SCHEMA ... CASCADE looks like this.
    #[serde(default)]
    pub schema_gone: Option<String>,
}

/// What a catalog snapshot knows of a file that holds a table's rows.
#[derive(Debug, Clone)]
struct Table {
    oid: Oid,
    database: Oid,
    /// Shared between tables of a database would save little; names are short.
    database_name: String,
    schema: String,
    name: String,
    rows: Option<u64>,
    wanted: bool,
}

impl Table {
    fn full_name(&self) -> String {
        format!("{}.{}", self.schema, self.name)
    }
}

/// A table, what happened to it, how sure that is, what else it may have been, and the file that it had.
type Happened = (Table, TableEvent, Certainty, Option<String>, RelationLocator);

/// A transaction that has not ended yet.
#[derive(Debug, Default)]
struct Open {
    created: Vec<RelationLocator>,
    truncated: Vec<Oid>,
    deleted: HashMap<RelationLocator, u64>,
    updated: HashMap<RelationLocator, u64>,
    /// Blocks written to files that it created: all, and those that are page images.
    written: HashMap<RelationLocator, (u64, u64)>,
}

struct Search<'a> {
    query: &'a FindQuery,
    archive: &'a Archive,
    /// Where files were made that no snapshot knows: the segment's file, and its number.
    made: HashMap<RelationLocator, (TimelineId, u64)>,
    /// Schemas by (database, OID), and files of `pg_class` by database, from the snapshots.
    schemas: HashMap<(Oid, Oid), String>,
    pg_class: HashMap<Oid, u32>,
    tables: HashMap<RelationLocator, Table>,
    /// Files of anything that is not a table: never reported.
    others: HashSet<RelationLocator>,
    databases: HashMap<Oid, String>,
    open: HashMap<Xid, Open>,
    created: HashMap<RelationLocator, Xid>,
    intents: Vec<(Option<Oid>, Lsn)>,
    last_time: Option<Timestamp>,
    found: Vec<FoundEvent>,
}

/// Finds events from `from` to the end of unbroken WAL on a way through timelines. `snapshots`: catalogs in
/// the order of the LSN at which their backups began; each is read when the search comes there, so that only
/// one is in memory. Events are returned in WAL order.
pub fn find(
    archive: &Archive,
    path: &WalPath,
    from: Lsn,
    snapshots: &mut dyn Iterator<Item = Result<(Lsn, Catalog)>>,
    query: &FindQuery,
) -> Result<Vec<FoundEvent>> {
    let mut search = Search {
        query,
        archive,
        made: HashMap::new(),
        schemas: HashMap::new(),
        pg_class: HashMap::new(),
        tables: HashMap::new(),
        others: HashSet::new(),
        databases: HashMap::new(),
        open: HashMap::new(),
        created: HashMap::new(),
        intents: Vec::new(),
        last_time: None,
        found: Vec::new(),
    };
    let mut next = snapshots.next().transpose()?;
    archive.scan(path, from, None, |located| {
        // A snapshot counts from the segment on in which its backup began: a file that it names is never
        // older news.
        while let Some((lsn, catalog)) = next.take_if(|(lsn, _)| *lsn < located.index.segment_end()) {
            search.learn(lsn, &catalog);
            next = snapshots.next().transpose()?;
        }
        search.segment(located)?;
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(search.found)
}

impl Search<'_> {
    fn learn(&mut self, _lsn: Lsn, catalog: &Catalog) {
        let wanted: Option<HashSet<(Oid, Oid)>> = self.query.table.as_ref().map(|name| {
            catalog
                .find_table(name)
                .into_iter()
                .map(|(database, table)| (database.oid, table.oid))
                .collect()
        });
        for database in &catalog.databases {
            self.databases.insert(database.oid, database.name.clone());
            for relation in &database.relations {
                let Some(locator) = relation.locator(database) else {
                    continue;
                };
                self.made.remove(&locator);
                if relation.oid == PG_CLASS {
                    self.pg_class.insert(database.oid, locator.relation);
                }
                if relation.schema_oid != 0 {
                    self.schemas
                        .insert((database.oid, relation.schema_oid), relation.schema.clone());
                }
                if !matches!(relation.kind, 'r' | 'm') {
                    self.others.insert(locator);
                    continue;
                }
                self.others.remove(&locator);
                // reltuples: -1 means never counted (14 and later), and so may 0 before.
                let rows = (relation.rows > 0.0).then_some(relation.rows as u64);
                self.tables.insert(
                    locator,
                    Table {
                        oid: relation.oid,
                        database: database.oid,
                        database_name: database.name.clone(),
                        schema: relation.schema.clone(),
                        name: relation.name.clone(),
                        rows,
                        wanted: wanted
                            .as_ref()
                            .is_none_or(|wanted| wanted.contains(&(database.oid, relation.oid))),
                    },
                );
            }
        }
    }

    fn segment(&mut self, located: &Located) -> Result<()> {
        let index = &located.index;
        let wanted = |lsn: Lsn| located.cut.is_none_or(|cut| lsn < cut);
        // Counts come first: they are kept for the whole segment, and a transaction that ends here takes them
        // along.
        for rows in &index.row_changes {
            if rows.deletes > 0 {
                let open = self.open.entry(rows.xid).or_default();
                *open.deleted.entry(rows.locator).or_default() += u64::from(rows.deletes);
            }
            if rows.updates > 0 {
                let open = self.open.entry(rows.xid).or_default();
                *open.updated.entry(rows.locator).or_default() += u64::from(rows.updates);
            }
        }
        let mut transactions = index
            .transactions
            .iter()
            .filter(|end| wanted(end.start))
            .peekable();
        let mut dropped: HashMap<Lsn, &[RelationLocator]> = HashMap::new();
        for event in &index.events {
            match &event.kind {
                EventKind::RelationsDropped {
                    locators,
                    aborted: false,
                } => {
                    dropped.insert(event.lsn, locators);
                }
                EventKind::RelationCreated {
                    locator,
                    fork: Fork::Main,
                } if wanted(event.lsn) => {
                    self.open.entry(event.xid).or_default().created.push(*locator);
                    self.created.insert(*locator, event.xid);
                    self.made.insert(*locator, (located.timeline, located.number));
                }
                _ => {}
            }
        }
        if !self.created.is_empty() {
            for changed in index.changed.iter().filter(|changed| changed.fork == Fork::Main) {
                let Some(xid) = self.created.get(&changed.locator) else {
                    continue;
                };
                let Some(open) = self.open.get_mut(xid) else {
                    continue;
                };
                let (blocks, images) = open.written.entry(changed.locator).or_default();
                *blocks += changed.blocks.len() as u64;
                *images += changed.blocks.iter().filter(|block| block.image).count() as u64;
            }
        }
        for event in index.events.iter().filter(|event| wanted(event.lsn)) {
            while let Some(end) = transactions.next_if(|end| end.start < event.lsn) {
                self.end(end, dropped.get(&end.start).copied().unwrap_or_default())?;
            }
            self.event(event);
        }
        for end in transactions {
            self.end(end, dropped.get(&end.start).copied().unwrap_or_default())?;
        }
        Ok(())
    }

    fn event(&mut self, event: &Event) {
        match &event.kind {
            EventKind::HeapTruncate { relations, .. } => {
                self.open
                    .entry(event.xid)
                    .or_default()
                    .truncated
                    .extend(relations);
            }
            EventKind::DatabaseDropIntent { database } => self.intents.push((*database, event.lsn)),
            EventKind::DatabaseCreated { database, .. } => {
                self.intents.retain(|(intent, _)| *intent != Some(*database));
            }
            EventKind::DatabaseDropped { database, .. } => self.database_dropped(event, *database),
            _ => {}
        }
    }

    fn database_dropped(&mut self, event: &Event, database: Oid) {
        let named = self
            .intents
            .iter()
            .rev()
            .find(|(intent, _)| *intent == Some(database));
        let unread = self.intents.iter().rev().find(|(intent, _)| intent.is_none());
        let (target_before, certainty, note) = match (named, unread) {
            (Some((_, lsn)), _) => (*lsn, Certainty::Certain, None),
            (None, Some((_, lsn))) => {
                let note =
                    "the record that marks the database was compressed; its place is taken from its kind";
                (*lsn, Certainty::Likely, Some(note.to_owned()))
            }
            (None, None) => {
                let note = "no record marks the database as being dropped (servers before 15.4, 14.9, \
                 13.12): its files \
                            are whole at this point";
                (event.lsn, Certainty::Likely, Some(note.to_owned()))
            }
        };
        let name = self
            .databases
            .get(&database)
            .cloned()
            .unwrap_or_else(|| format!("database {database}"));
        self.tables.retain(|_, table| table.database != database);
        self.push(FoundEvent {
            event: TableEvent::DropDatabase,
            table: name.clone(),
            database: name,
            xid: event.xid,
            commit_lsn: event.lsn,
            committed_at: self.last_time.unwrap_or_default(),
            rows: None,
            target_before,
            certainty,
            note,
            relation: None,
            with: Vec::new(),
            schema_gone: None,
        });
        self.intents
            .retain(|(intent, lsn)| *intent != Some(database) && (intent.is_some() || *lsn > event.lsn));
    }

    /// Looks files up in the WAL that made them, where no snapshot knows them: the row in `pg_class` stands behind the
    /// file's creation, in the same segment or the next one. Segments are read only for files that matter.
    fn name(&mut self, locators: impl Iterator<Item = RelationLocator>) -> Result<()> {
        let unknown: Vec<RelationLocator> = locators
            .filter(|locator| !self.tables.contains_key(locator) && !self.others.contains(locator))
            .collect();
        for locator in unknown {
            let Some((timeline, number)) = self.made.get(&locator).copied() else {
                continue;
            };
            for number in [number, number.saturating_add(1)] {
                let Some(bytes) = self.archive.bytes(timeline, number)? else {
                    break;
                };
                let pg_class = |database: Oid, file: u32| {
                    file == self.pg_class.get(&database).copied().unwrap_or(PG_CLASS)
                };
                for row in postgres::relation_rows(&bytes, timeline, &pg_class) {
                    self.learn_row(&row);
                }
                if self.tables.contains_key(&locator) || self.others.contains(&locator) {
                    break;
                }
            }
            // Read once, named or not.
            self.made.remove(&locator);
        }
        Ok(())
    }

    /// A relation that was made since the last snapshot.
    fn learn_row(&mut self, row: &RelationRow) {
        // Files that we wait for: one that has been replaced since, or has a name already, is older news.
        let named: Vec<RelationLocator> = self
            .made
            .keys()
            .filter(|made| made.database == row.database && made.relation == row.filenode)
            .copied()
            .collect();
        let schema = match self.schemas.get(&(row.database, row.schema)) {
            Some(schema) => schema.clone(),
            None if row.schema == PUBLIC => "public".to_owned(),
            None => format!("schema {}", row.schema),
        };
        let database_name = self
            .databases
            .get(&row.database)
            .cloned()
            .unwrap_or_else(|| format!("database {}", row.database));
        for locator in named {
            self.made.remove(&locator);
            if !matches!(row.kind, 'r' | 'm') {
                self.others.insert(locator);
                continue;
            }
            let relation = postgres::Relation {
                oid: row.oid,
                schema: schema.clone(),
                schema_oid: row.schema,
                name: row.name.clone(),
                kind: row.kind,
                persistence: row.persistence,
                tablespace: 0,
                filenode: row.filenode,
                toast: 0,
                rows: -1.0,
                owner_table: 0,
            };
            let one = Catalog {
                taken_at: jiff::Timestamp::UNIX_EPOCH,
                databases: vec![postgres::Database {
                    oid: row.database,
                    name: database_name.clone(),
                    tablespace: 0,
                    collation_version: None,
                    relations: vec![relation],
                }],
            };
            let wanted = self
                .query
                .table
                .as_ref()
                .is_none_or(|name| !one.find_table(name).is_empty());
            let table = Table {
                oid: row.oid,
                database: row.database,
                database_name: database_name.clone(),
                schema: schema.clone(),
                name: row.name.clone(),
                rows: None,
                wanted,
            };
            self.tables.insert(locator, table);
        }
    }

    fn end(&mut self, end: &TransactionEnd, dropped: &[RelationLocator]) -> Result<()> {
        self.last_time = Some(end.time);
        let mut all = self.open.remove(&end.xid).unwrap_or_default();
        for xid in &end.subxids {
            let Some(part) = self.open.remove(xid) else {
                continue;
            };
            all.created.extend(part.created);
            all.truncated.extend(part.truncated);
            for (locator, rows) in part.deleted {
                *all.deleted.entry(locator).or_default() += rows;
            }
            for (locator, rows) in part.updated {
                *all.updated.entry(locator).or_default() += rows;
            }
            all.written.extend(part.written);
        }
        for locator in &all.created {
            self.created.remove(locator);
        }
        if !committed(end) {
            for locator in &all.created {
                self.made.remove(locator);
            }
            return Ok(());
        }
        let minimum = self.query.thresholds.rows_min;
        let changed = all.deleted.iter().chain(&all.updated);
        let much = changed
            .filter(|(_, rows)| **rows >= minimum)
            .map(|(locator, _)| *locator);
        let matter = dropped
            .iter()
            .copied()
            .filter(|locator| !all.created.contains(locator));
        self.name(matter.chain(much).collect::<Vec<_>>().into_iter())?;
        for locator in dropped {
            self.made.remove(locator);
        }
        self.files_removed(end, dropped, &all);
        for (kind, rows) in [
            (TableEvent::Delete, &all.deleted),
            (TableEvent::Update, &all.updated),
        ] {
            let mut rows: Vec<_> = rows.iter().map(|(locator, rows)| (*locator, *rows)).collect();
            rows.sort_unstable();
            let first = self.found.len();
            for (locator, rows) in rows {
                if !dropped.contains(&locator) {
                    self.rows_changed(end, kind, locator, rows);
                }
            }
            self.together(first);
        }
        Ok(())
    }

    fn files_removed(&mut self, end: &TransactionEnd, dropped: &[RelationLocator], open: &Open) {
        let known: Vec<RelationLocator> = dropped
            .iter()
            .copied()
            .filter(|locator| self.tables.contains_key(locator))
            .collect();
        // A file that the transaction itself had made is nobody's loss.
        let unknown = dropped.iter().filter(|locator| {
            !self.tables.contains_key(locator)
                && !self.others.contains(locator)
                && !open.created.contains(locator)
        });
        if self.query.table.is_none() && known.is_empty() && open.created.is_empty() {
            let unknown: Vec<RelationLocator> = unknown.copied().collect();
            for locator in unknown {
                self.unknown_dropped(end, locator);
            }
        }
        // Files are made and removed in pairs, one table after the other; the list in the commit record is
        // backwards (catalog/storage.c keeps pending deletes as a stack).
        let mut made = open.created.iter().filter(|locator| !dropped.contains(locator));
        let single = known.len() == 1;
        let in_order: Vec<RelationLocator> = dropped.iter().rev().copied().collect();
        let paired = in_order.len() == open.created.len();
        let mut happened = Vec::new();
        for locator in in_order.iter().copied() {
            let new = if paired { made.next().copied() } else { None };
            if !known.contains(&locator) {
                continue;
            }
            let new = new.or_else(|| {
                // A single table was rewritten: its new file is made before those of its toast table and
                // indexes.
                let first = open
                    .created
                    .iter()
                    .find(|created| created.database == locator.database);
                first.copied().filter(|_| single)
            });
            let Some(mut table) = self.tables.remove(&locator) else {
                continue;
            };
            let made_any = open
                .created
                .iter()
                .any(|created| created.database == locator.database);
            let event = if !made_any {
                (TableEvent::Drop, Certainty::Certain, None)
            } else if open.truncated.contains(&table.oid) {
                (TableEvent::Truncate, Certainty::Certain, None)
            } else {
                self.truncated_or_rewritten(open, new)
            };
            let (kind, certainty, note) = event;
            happened.push((table.clone(), kind, certainty, note, locator));
            if let Some(new) = new.filter(|_| made_any) {
                if kind == TableEvent::Truncate {
                    table.rows = None;
                }
                self.others.remove(&new);
                self.tables.insert(new, table);
            }
        }
        self.push_together(end, &happened);
    }

    /// Reports what one transaction did to files; each event names the tables that shared its fate.
    fn push_together(&mut self, end: &TransactionEnd, happened: &[Happened]) {
        for (table, kind, certainty, note, locator) in happened {
            let with: Vec<String> = happened
                .iter()
                .filter(|(other, same, ..)| {
                    same == kind && (other.database, other.oid) != (table.database, table.oid)
                })
                .map(|(other, ..)| other.full_name())
                .collect();
            let left = |known: &Table| known.database == table.database && known.schema == table.schema;
            let schema_gone =
                (*kind == TableEvent::Drop && !self.tables.values().any(left)).then(|| table.schema.clone());
            let before = self.found.len();
            self.push_table(end, table, *kind, table.rows, *certainty, note.clone(), *locator);
            if let Some(event) = self.found.get_mut(before) {
                event.with = with;
                event.schema_gone = schema_gone;
            }
        }
    }

    /// Events from this one on are of one statement or transaction: each names the others.
    fn together(&mut self, first: usize) {
        let names: Vec<String> = self
            .found
            .iter()
            .skip(first)
            .map(|event| event.table.clone())
            .collect();
        for event in self.found.iter_mut().skip(first) {
            event.with = names
                .iter()
                .filter(|name| **name != event.table)
                .cloned()
                .collect();
        }
    }

    /// What the new file holds at the commit tells a TRUNCATE from a rewrite, as far as it can be told.
    fn truncated_or_rewritten(
        &self,
        open: &Open,
        new: Option<RelationLocator>,
    ) -> (TableEvent, Certainty, Option<String>) {
        let Some(new) = new else {
            let note = "several tables' files were replaced in this transaction: TRUNCATE, or a rewrite, \
             or a DROP beside \
                        the creation of another table";
            return (TableEvent::Truncate, Certainty::Unclear, Some(note.into()));
        };
        match open.written.get(&new) {
            None | Some((0, _)) => (TableEvent::Truncate, Certainty::Certain, None),
            Some((blocks, images)) if blocks == images => {
                let note = format!(
                    "{blocks} blocks were written as whole pages to the table's new file: VACUUM FULL, \
                     CLUSTER or ALTER TABLE"
                );
                (TableEvent::Rewrite, Certainty::Likely, Some(note))
            }
            Some((blocks, _)) => {
                let note = format!(
                    "{blocks} blocks were written to the table's new file at about the same time: \
                     TRUNCATE followed by new \
                     rows, or ALTER TABLE"
                );
                (TableEvent::Truncate, Certainty::Unclear, Some(note))
            }
        }
    }

    fn unknown_dropped(&mut self, end: &TransactionEnd, locator: RelationLocator) {
        let database = self.databases.get(&locator.database).cloned();
        self.push(FoundEvent {
            event: TableEvent::Drop,
            table: format!(
                "file {}/{}/{}",
                locator.tablespace, locator.database, locator.relation
            ),
            database: database.unwrap_or_else(|| format!("database {}", locator.database)),
            xid: end.xid,
            commit_lsn: end.start,
            committed_at: end.time,
            rows: None,
            target_before: end.start,
            certainty: Certainty::Unclear,
            note: Some(
                "no catalog snapshot knows this file: a table, an index or a sequence made since \
             the last backup"
                    .into(),
            ),
            relation: Some(locator),
            with: Vec::new(),
            schema_gone: None,
        });
    }

    fn rows_changed(&mut self, end: &TransactionEnd, kind: TableEvent, locator: RelationLocator, rows: u64) {
        let Some(table) = self.tables.get(&locator) else {
            return;
        };
        let thresholds = self.query.thresholds;
        if rows < thresholds.rows_min {
            return;
        }
        let (certainty, note) = match table.rows {
            Some(all) if (rows as f64) < thresholds.share_min * all as f64 => return,
            Some(all) => (
                Certainty::Certain,
                format!("the last catalog snapshot estimated {all} rows"),
            ),
            None => (
                Certainty::Unclear,
                "no catalog snapshot says how many rows the table had".to_owned(),
            ),
        };
        let mut table = table.clone();
        if let (Some(all), TableEvent::Delete) = (table.rows.as_mut(), kind) {
            *all = all.saturating_sub(rows);
        }
        self.push_table(end, &table, kind, Some(rows), certainty, Some(note), locator);
        self.tables.insert(locator, table);
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "the parts of one event, each told by its caller"
    )]
    fn push_table(
        &mut self,
        end: &TransactionEnd,
        table: &Table,
        event: TableEvent,
        rows: Option<u64>,
        certainty: Certainty,
        note: Option<String>,
        locator: RelationLocator,
    ) {
        if !table.wanted {
            return;
        }
        self.push(FoundEvent {
            event,
            table: table.full_name(),
            database: table.database_name.clone(),
            xid: end.xid,
            commit_lsn: end.start,
            committed_at: end.time,
            rows,
            target_before: end.start,
            certainty,
            note,
            relation: Some(locator),
            with: Vec::new(),
            schema_gone: None,
        });
    }

    fn push(&mut self, event: FoundEvent) {
        let query = self.query;
        let kind_wanted = if query.events.is_empty() {
            event.event != TableEvent::Rewrite || query.table.is_some()
        } else {
            query.events.contains(&event.event)
        };
        let table_wanted = event.event != TableEvent::DropDatabase
            || query.table.as_ref().is_none_or(|table| {
                // A database takes its tables with it: "db.schema.table" asks about it too.
                table.split('.').next() == Some(event.database.as_str()) && table.matches('.').count() == 2
            });
        let in_time = query.from.is_none_or(|from| event.committed_at >= from)
            && query.to.is_none_or(|to| event.committed_at <= to);
        if kind_wanted && table_wanted && in_time {
            self.found.push(event);
        }
    }
}
