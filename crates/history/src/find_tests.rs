//! Claims about events of tables.

use postgres::{
    Catalog, ChangedBlock, ChangedRelation, Database, EventKind, Fork, Lsn, Relation, RelationLocator,
    RowChanges, Xid,
};

use crate::testing::{archive, commit, event, history, segment};
use crate::{Certainty, FindQuery, FoundEvent, TableEvent, WalPath, find};

fn file(relation: u32) -> RelationLocator {
    RelationLocator {
        tablespace: 1663,
        database: 5,
        relation,
    }
}

fn relation(oid: u32, name: &str, kind: char, filenode: u32, rows: f32) -> Relation {
    Relation {
        oid,
        schema: "public".into(),
        name: name.into(),
        kind,
        persistence: 'p',
        tablespace: 0,
        filenode,
        toast: 0,
        rows,
        owner_table: 0,
        schema_oid: 2200,
    }
}

fn catalog() -> Catalog {
    Catalog {
        taken_at: jiff::Timestamp::UNIX_EPOCH,
        databases: vec![Database {
            oid: 5,
            name: "shop".into(),
            tablespace: 1663,
            collation_version: None,
            relations: vec![
                relation(100, "orders", 'r', 200, 50_000.0),
                relation(101, "orders_pkey", 'i', 201, 0.0),
                relation(102, "items", 'r', 202, -1.0),
            ],
        }],
    }
}

fn dropped(files: &[u32]) -> EventKind {
    EventKind::RelationsDropped {
        locators: files.iter().map(|number| file(*number)).collect(),
        aborted: false,
    }
}

fn created(number: u32) -> EventKind {
    EventKind::RelationCreated {
        locator: file(number),
        fork: Fork::Main,
    }
}

fn search(index: postgres::SegmentIndex, query: &FindQuery) -> Vec<FoundEvent> {
    let archive = archive([index], []);
    let path = WalPath::of(&history(1, &[]));
    let mut snapshots = [Ok((Lsn(0x300_0000), catalog()))].into_iter();
    find(&archive, &path, Lsn(0x300_0000), &mut snapshots, query).unwrap()
}

fn orders() -> FindQuery {
    FindQuery {
        table: Some("orders".into()),
        ..FindQuery::default()
    }
}

fn rows(relation: u32, xid: u32, updates: u32, deletes: u32) -> RowChanges {
    RowChanges {
        xid: Xid(xid),
        locator: file(relation),
        inserts: 0,
        updates,
        deletes,
    }
}

#[test]
fn an_update_of_most_rows_is_an_event_and_one_of_few_is_not() {
    let mut index = segment(1, 3);
    index.row_changes = vec![rows(200, 740, 24_999, 0), rows(200, 741, 25_000, 0)];
    index.transactions = vec![commit(0x300_1000, 740, 10), commit(0x300_2000, 741, 11)];
    let found = search(index, &orders());
    assert_eq!(found.len(), 1, "{found:#?}");
    assert_eq!(
        (found[0].event, found[0].rows),
        (TableEvent::Update, Some(25_000))
    );
    assert_eq!(found[0].target_before, Lsn(0x300_2000));
}

#[test]
fn tables_that_went_in_one_transaction_name_each_other_and_their_schema() {
    let mut index = segment(1, 3);
    index.events = vec![event(0x300_1000, 740, dropped(&[202, 201, 200]))];
    index.transactions = vec![commit(0x300_1000, 740, 10)];
    let found = search(index, &FindQuery::default());
    assert_eq!(found.len(), 2, "{found:#?}");
    assert_eq!(found[0].with, ["public.items"]);
    assert_eq!(found[1].with, ["public.orders"]);
    assert_eq!(found[0].schema_gone.as_deref(), Some("public"));
    // One of them alone leaves the schema.
    let mut index = segment(1, 3);
    index.events = vec![event(0x300_1000, 740, dropped(&[201, 200]))];
    index.transactions = vec![commit(0x300_1000, 740, 10)];
    let found = search(index, &FindQuery::default());
    assert_eq!(
        (found.len(), found[0].schema_gone.as_deref(), found[0].with.len()),
        (1, None, 0)
    );
}

#[test]
fn a_drop_makes_no_new_file_and_its_point_is_the_start_of_the_commit() {
    let mut index = segment(1, 3);
    index.transactions = vec![commit(0x300_1000, 701, 110)];
    index.events = vec![event(0x300_1000, 701, dropped(&[200, 201]))];
    let found = search(index, &orders());
    assert_eq!(found.len(), 1);
    assert_eq!(
        (found[0].event, found[0].certainty),
        (TableEvent::Drop, Certainty::Certain)
    );
    assert_eq!(
        (found[0].table.as_str(), found[0].database.as_str()),
        ("public.orders", "shop")
    );
    assert_eq!(
        (found[0].target_before, found[0].rows),
        (Lsn(0x300_1000), Some(50_000))
    );
}

#[test]
fn a_truncate_makes_a_new_file_that_is_empty_at_the_commit_and_the_table_is_followed() {
    let mut index = segment(1, 3);
    index.transactions = vec![commit(0x300_1000, 701, 110), commit(0x300_3000, 702, 120)];
    index.events = vec![
        event(0x300_0800, 701, created(300)),
        event(0x300_0900, 701, created(301)),
        event(0x300_1000, 701, dropped(&[201, 200])),
        event(0x300_3000, 702, dropped(&[301, 300])),
    ];
    let found = search(index, &orders());
    let kinds: Vec<_> = found.iter().map(|event| (event.event, event.certainty)).collect();
    assert_eq!(
        kinds,
        [
            (TableEvent::Truncate, Certainty::Certain),
            (TableEvent::Drop, Certainty::Certain)
        ]
    );
}

#[test]
fn a_rewrite_fills_the_new_file_with_whole_pages_before_the_commit() {
    let mut index = segment(1, 3);
    index.transactions = vec![commit(0x300_1000, 701, 110)];
    index.events = vec![
        event(0x300_0800, 701, created(300)),
        event(0x300_1000, 701, dropped(&[200])),
    ];
    let blocks = (0..40)
        .map(|block| ChangedBlock {
            block,
            image: true,
            will_init: false,
        })
        .collect();
    index.changed = vec![ChangedRelation {
        locator: file(300),
        fork: Fork::Main,
        blocks,
    }];
    let found = search(index.clone(), &orders());
    assert_eq!(
        (found[0].event, found[0].certainty),
        (TableEvent::Rewrite, Certainty::Likely)
    );
    // Without a table's name, rewrites are no news.
    assert!(search(index, &FindQuery::default()).is_empty());
}

#[test]
fn a_reindex_is_no_event_of_the_table() {
    let mut index = segment(1, 3);
    index.transactions = vec![commit(0x300_1000, 701, 110)];
    index.events = vec![
        event(0x300_0800, 701, created(300)),
        event(0x300_1000, 701, dropped(&[201])),
    ];
    assert!(search(index.clone(), &orders()).is_empty());
    assert!(search(index, &FindQuery::default()).is_empty());
}

#[test]
fn what_was_rolled_back_did_not_happen() {
    let mut index = segment(1, 3);
    index.transactions = vec![commit(0x300_1000, 701, 110)];
    index.transactions[0].kind = postgres::TransactionEndKind::Abort;
    index.events = vec![event(
        0x300_1000,
        701,
        EventKind::RelationsDropped {
            locators: vec![file(200)],
            aborted: true,
        },
    )];
    index.row_changes = vec![RowChanges {
        xid: Xid(701),
        locator: file(200),
        inserts: 0,
        updates: 0,
        deletes: 50_000,
    }];
    assert!(search(index, &orders()).is_empty());
}

#[test]
fn a_delete_counts_over_subtransactions_and_by_share_of_the_table() {
    let rows = |xid, deletes| RowChanges {
        xid: Xid(xid),
        locator: file(200),
        inserts: 0,
        updates: 0,
        deletes,
    };
    let mut index = segment(1, 3);
    index.transactions = vec![commit(0x300_1000, 701, 110)];
    index.transactions[0].subxids = vec![Xid(702)];
    index.row_changes = vec![rows(701, 20_000), rows(702, 5_000)];
    let found = search(index.clone(), &orders());
    assert_eq!(
        (found[0].event, found[0].rows),
        (TableEvent::Delete, Some(25_000))
    );
    index.row_changes = vec![rows(701, 20_000)];
    assert!(search(index, &orders()).is_empty(), "less than half of the table");
}

#[test]
fn dropping_a_database_is_undone_before_it_is_marked() {
    let mut index = segment(1, 3);
    index.transactions = vec![commit(0x300_0500, 700, 100), commit(0x300_3000, 701, 110)];
    index.events = vec![
        event(0x300_1000, 0, EventKind::DatabaseDropIntent { database: Some(5) }),
        event(
            0x300_2000,
            701,
            EventKind::DatabaseDropped {
                database: 5,
                tablespaces: vec![1663],
            },
        ),
    ];
    let found = search(index, &FindQuery::default());
    assert_eq!(
        (found[0].event, found[0].table.as_str()),
        (TableEvent::DropDatabase, "shop")
    );
    assert_eq!(
        (found[0].target_before, found[0].commit_lsn),
        (Lsn(0x300_1000), Lsn(0x300_2000))
    );
}
