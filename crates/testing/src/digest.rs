//! A digest of each table's rows that does not depend on the order they lie in.

use cluster::{ConnectOptions, Session};
use diagnostic::Result;
use std::collections::BTreeMap;

/// For each ordinary table, partitioned table and materialised view of the connected database that is not
/// PostgreSQL's own: its qualified name, and `count:sum` of a 64-bit hash of each row's text. Duplicates
/// count.
pub fn row_digest(conninfo: &str) -> Result<BTreeMap<String, String>> {
    let options = ConnectOptions {
        read_only: true,
        ..ConnectOptions::default()
    };
    let mut session = Session::connect_with(conninfo, &options)?;
    session.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")?;
    let tables = session.rows(
        "SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
          WHERE c.relkind IN ('r', 'p', 'm') AND c.relpersistence = 'p' \
            AND n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname NOT LIKE 'pg\\_%' \
          ORDER BY 1, 2",
    )?;
    let mut digests = BTreeMap::new();
    for table in tables {
        let [Some(schema), Some(name)] = table.as_slice() else {
            continue;
        };
        // Each table's lock goes with its subtransaction: there may be more tables than room for locks.
        session.execute("SAVEPOINT digest")?;
        let digest = session.one(&format!(
            "SELECT count(*) || ':' || \
                    coalesce(sum(('x' || left(md5(t::text), 16))::bit(64)::bigint::numeric), 0) \
               FROM {}.{} t",
            Session::identifier(schema),
            Session::identifier(name)
        ))?;
        session.execute("ROLLBACK TO SAVEPOINT digest; RELEASE SAVEPOINT digest")?;
        digests.insert(
            format!("{schema}.{name}"),
            digest.into_iter().flatten().next().unwrap_or_default(),
        );
    }
    session.execute("ROLLBACK")?;
    Ok(digests)
}
