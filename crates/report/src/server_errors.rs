//! What a person does about an error that PostgreSQL gave to a check, or to the drill itself, by its SQLSTATE: the
//! same causes that teams meet when they load a dump into a recovered server (docs/operations.md has the table for
//! that).
//!
//! Invariant: pure; nothing but the recorded SQLSTATE is looked at, since the server's text stays out of the
//! evidence.

/// Advice about one SQLSTATE.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Advice {
    /// For whoever plans the week.
    pub action: &'static str,
    /// Where to look first.
    pub help: &'static str,
}

/// The advice about an error of this SQLSTATE; `None` where nothing can be said but the state itself.
pub fn advice(sqlstate: &str) -> Option<Advice> {
    let of = |action, help| Some(Advice { action, help });
    match sqlstate {
        // undefined_object
        "42704" => of(
            "Make the role, type or extension that is missing at that point, or correct the check that names it",
            "PostgreSQL knows no role, type or setting of the name that was used: compare `SELECT rolname FROM \
             pg_roles` and `SELECT extname FROM pg_extension` of production; roles come back with the cluster, so \
             that it was made after the point, or is spelt otherwise",
        ),
        // undefined_table, invalid_schema_name, undefined_column, undefined_function
        "42P01" | "3F000" | "42703" | "42883" => of(
            "Correct the check: it names what is not there at that point",
            "A table, schema, column or function that the check names is not there: it came after the point, or \
             stands in a schema that is not in the search path; write `schema.name`",
        ),
        // invalid_catalog_name
        "3D000" => of(
            "Correct `database` of the check: there is none of this name at that point",
            "There is no database of that name: `SELECT datname FROM pg_database` of production says which there \
             are; it may have been made after the point",
        ),
        // duplicate_database, duplicate_schema, duplicate_table, duplicate_object
        "42P04" | "42P06" | "42P07" | "42710" => of(
            "Load into a new database: recovery has brought the old one back already",
            "What was to be made is there already, since a recovered server has everything of its point: load \
             into a new database (`createdb`), or drop the old one by name before",
        ),
        // lock_not_available, deadlock_detected
        "55P03" | "40P01" => of(
            "Find out what holds the lock that the check waits for",
            "Somebody holds a lock that was waited for: `SELECT * FROM pg_prepared_xacts` shows transactions that \
             came back prepared, and `pg_locks` with `pg_stat_activity` the others; while recovery goes on, what \
             it replays holds its locks until it ends",
        ),
        // object_in_use
        "55006" => of(
            "End the sessions that use the object, then try again",
            "Sessions use the database or table: `SELECT pid, usename, application_name FROM pg_stat_activity`, \
             then `pg_terminate_backend(pid)`",
        ),
        // disk_full
        "53100" => of(
            "Give the copies more room, and drill again",
            "A file system is full where the server writes: `df` and `df -i` of the copies' folder; sorts and \
             temporary files of a check need room beside the data",
        ),
        // out_of_memory
        "53200" => of(
            "Give the copy more memory, or make the statement smaller",
            "The server found no memory for the statement: `free` on the host of the copy, and `work_mem` times \
             the parts of its plan (`EXPLAIN`)",
        ),
        // too_many_connections
        "53300" => of(
            "Leave a connection free for the drill",
            "All connections are taken: `SELECT count(*), usename FROM pg_stat_activity GROUP BY usename`, and \
             `max_connections`",
        ),
        // invalid_authorization_specification, invalid_password
        "28000" | "28P01" => of(
            "Correct role, password or pg_hba.conf, so that the server lets this connection in",
            "The server does not let this role in: `psql` with the same connection string says the same; a \
             recovered server has the roles and passwords of its point, not those of today",
        ),
        // insufficient_privilege
        "42501" => of(
            "Grant the right in production; it comes back with the next backup's point",
            "The role may not do that: `GRANT` it in production, since rights are those of the point",
        ),
        // query_canceled
        "57014" => of(
            "Make the statement cheaper, or ask it of less",
            "The statement took longer than a drill waits for one: try it by hand with `EXPLAIN (ANALYZE, \
             BUFFERS)`; right after a recovery nothing is cached",
        ),
        // read_only_sql_transaction
        "25006" => of(
            "Let the check only read, or make it a `command`",
            "A check's statement runs in a read-only transaction, and this one writes",
        ),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_server_error_that_teams_ask_about_has_its_own_advice_and_an_unknown_one_has_none() {
        let asked = [
            "42704", "42P04", "55P03", "53100", "28000", "57014", "42P01", "3D000", "55006", "53200",
            "53300", "42501", "25006",
        ];
        let mut all: Vec<Advice> = asked
            .into_iter()
            .map(|state| advice(state).unwrap_or_else(|| panic!("nobody says what {state} needs")))
            .collect();
        let parts: [fn(&Advice) -> &'static str; 2] = [|advice| advice.action, |advice| advice.help];
        for part in parts {
            all.sort_by_key(part);
            let before = all.len();
            all.dedup_by_key(|advice| part(advice));
            assert_eq!(all.len(), before, "two errors have the same advice");
        }
        // A wrong password needs what a role that may not come in needs.
        assert_eq!(advice("28P01"), advice("28000"));
        assert_eq!(advice("XX000"), None);
        assert_eq!(advice(""), None);
    }
}
