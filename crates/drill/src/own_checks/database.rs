//! Checks that ask the server.

use std::time::Duration;

use cluster::{ConnectOptions, Session};
use diagnostic::{Error, Result};

use super::{Found, Subject};
use crate::checks::listed;
use crate::facts::{
    CheckDetail, CheckResult, ForeignKeyFacts, OrphansDetail, RowCount, RowCountsDetail, RowProof, Side,
};
use crate::rows;
use crate::server_error::recordable;
use crate::soundness;
use crate::verdict::code;

/// A session as the user's own statements expect it.
fn session(subject: &Subject<'_>, database: &str) -> Result<Session> {
    let options = ConnectOptions {
        database: Some(database.into()),
        statement_timeout: subject.profile.statement_timeout,
        lock_timeout: rows::LOCK_TIMEOUT_COPY,
        keep_search_path: true,
        read_only: true,
        ..ConnectOptions::default()
    };
    Session::connect_with(&subject.server.conninfo(database), &options)
}

/// The one value of a statement.
pub(super) fn ask(subject: &Subject<'_>, database: &str, sql: &str) -> Result<Option<String>, String> {
    let answer = session(subject, database).and_then(|mut session| session.rows(sql));
    match answer {
        Ok(rows) => Ok(rows
            .into_iter()
            .next()
            .and_then(|row| row.into_iter().next())
            .flatten()),
        Err(error) => Err(recordable(&error)),
    }
}

/// Milliseconds of one statement.
pub(super) fn time(session: &mut Session, sql: &str) -> Result<f64, String> {
    let started = std::time::Instant::now();
    session.rows(sql).map_err(|error| recordable(&error))?;
    Ok(started.elapsed().as_secs_f64() * 1000.0)
}

/// A session for timing.
pub(super) fn timing_session(subject: &Subject<'_>, database: &str) -> Result<Session, String> {
    session(subject, database).map_err(|error| recordable(&error))
}

fn text(row: &[Option<String>], column: usize) -> &str {
    row.get(column).and_then(Option::as_deref).unwrap_or_default()
}

/// A session that sees what is there under its own names, whatever database or role set for theirs.
fn plain_session(subject: &Subject<'_>, database: &str) -> Result<Session> {
    let timeout = subject.profile.statement_timeout;
    rows::connect(&subject.server.conninfo(database), database, timeout)
}

fn databases(subject: &Subject<'_>) -> Result<Vec<String>> {
    soundness::databases(&mut plain_session(subject, subject.database)?)
}

/// Every foreign key with the statement that counts its orphans, as the server's own initial check of a key asks
/// (`RI_Initial_Check` in ri_triggers.c): by the key's own operators, and with the rules of its match type. Keys of
/// partitions are those of their parent.
const FOREIGN_KEYS: &str = "SELECT format('%I.%I.%I', n.nspname, t.relname, c.conname), c.convalidated, \
    bool_and(o.oprname = '='), \
    format('SELECT count(*) FROM %s %I.%I AS fk WHERE (%s) AND NOT EXISTS (SELECT FROM %s %I.%I AS pk WHERE %s)', \
      CASE t.relkind WHEN 'p' THEN '' ELSE 'ONLY' END, n.nspname, t.relname, \
      string_agg(format('fk.%I IS NOT NULL', fa.attname), CASE c.confmatchtype WHEN 'f' THEN ' OR ' ELSE ' AND ' END), \
      CASE p.relkind WHEN 'p' THEN '' ELSE 'ONLY' END, pn.nspname, p.relname, \
      string_agg(format('pk.%I OPERATOR(%I.%s) fk.%I', pa.attname, opn.nspname, o.oprname, fa.attname), ' AND ')) \
    FROM pg_constraint c \
    JOIN pg_class t ON t.oid = c.conrelid JOIN pg_namespace n ON n.oid = t.relnamespace \
    JOIN pg_class p ON p.oid = c.confrelid JOIN pg_namespace pn ON pn.oid = p.relnamespace \
    CROSS JOIN LATERAL unnest(c.conkey, c.confkey, c.conpfeqop) AS k(fk, pk, op) \
    JOIN pg_attribute fa ON fa.attrelid = c.conrelid AND fa.attnum = k.fk \
    JOIN pg_attribute pa ON pa.attrelid = c.confrelid AND pa.attnum = k.pk \
    JOIN pg_operator o ON o.oid = k.op JOIN pg_namespace opn ON opn.oid = o.oprnamespace \
    WHERE c.contype = 'f' AND c.conparentid = 0 AND t.relpersistence = 'p' AND p.relpersistence = 'p' \
    GROUP BY n.nspname, t.relname, t.relkind, c.conname, c.convalidated, c.confmatchtype, p.relkind, pn.nspname, \
      p.relname ORDER BY 1";

/// Rows that refer to nothing.
pub(super) fn orphans(subject: &Subject<'_>) -> Found {
    let mut detail = OrphansDetail::default();
    let names = match databases(subject) {
        Ok(names) => names,
        Err(error) => return Found::could_not_look(recordable(&error)),
    };
    for name in names {
        if let Err(error) = orphans_of(subject, &name, &mut detail) {
            detail.not_seen.push(format!("{name} ({})", recordable(&error)));
        }
    }
    judge_orphans(detail)
}

fn orphans_of(subject: &Subject<'_>, database: &str, detail: &mut OrphansDetail) -> Result<()> {
    let mut session = plain_session(subject, database)?;
    for row in session.rows(FOREIGN_KEYS)? {
        let name = format!("{database}.{}", text(&row, 0));
        let valid = text(&row, 1) == "t";
        if !valid {
            detail.not_valid.push(name.clone());
        }
        if text(&row, 2) != "t" {
            detail
                .not_seen
                .push(format!("{name} (it compares with more than equality)"));
            continue;
        }
        let counted = session.one(text(&row, 3)).and_then(|row| {
            text(&row, 0)
                .parse::<u64>()
                .map_err(|_| Error::new("server-answer", "count(*) gave no number"))
        });
        match counted {
            Ok(orphans) => {
                detail.foreign_keys += 1;
                if orphans > 0 {
                    detail.broken.push(ForeignKeyFacts {
                        name,
                        orphans,
                        not_valid: !valid,
                    });
                }
            }
            Err(error) if error.code() == "connection-lost" => return Err(error),
            Err(error) => detail.not_seen.push(format!("{name} ({})", recordable(&error))),
        }
    }
    Ok(())
}

fn judge_orphans(detail: OrphansDetail) -> Found {
    let told = |not_valid: bool| -> Vec<String> {
        let broken = detail.broken.iter().filter(|each| each.not_valid == not_valid);
        broken
            .map(|each| format!("{} ({} rows)", each.name, each.orphans))
            .collect()
    };
    let (valid, old) = (told(false), told(true));
    let found = if !valid.is_empty() {
        Found::bad(
            code::ORPHANS_FOUND,
            format!("rows that refer to nothing: {}", listed(valid)),
        )
    } else if !detail.not_seen.is_empty() {
        Found::could_not_look(format!("could not look at {}", listed(detail.not_seen.clone())))
    } else if !old.is_empty() {
        let actual = format!(
            "rows that refer to nothing, by keys that are NOT VALID: {}",
            listed(old)
        );
        Found::warn(code::ORPHANS_FOUND, actual)
    } else {
        let not_valid = match detail.not_valid.len() {
            0 => String::new(),
            _ => format!("; NOT VALID: {}", listed(detail.not_valid.clone())),
        };
        Found::pass(format!("{} foreign keys hold{not_valid}", detail.foreign_keys))
    };
    found.with(CheckDetail::Orphans(detail))
}

/// The quoted name of a table, or why there is none.
fn table_name(session: &mut Session, table: &str) -> Result<String, Found> {
    let sql = format!(
        "SELECT format('%I.%I', n.nspname, c.relname) FROM pg_catalog.pg_class c \
           JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = to_regclass({})",
        Session::literal(table)
    );
    match session.rows(&sql) {
        Ok(rows) => match rows
            .into_iter()
            .next()
            .and_then(|row| row.into_iter().next())
            .flatten()
        {
            Some(name) => Ok(name),
            None => Err(Found::bad(
                code::CHECK_FAILED,
                format!("there is no table {table}"),
            )),
        },
        Err(error) => Err(Found::could_not_look(recordable(&error))),
    }
}

/// How old the newest row was at the target.
pub(super) fn freshness(
    subject: &Subject<'_>,
    database: &str,
    (table, column): (&str, &str),
    within: Duration,
) -> Found {
    let Some(target) = subject.target else {
        return Found::could_not_look("no commit tells the time of the target");
    };
    let mut session = match session(subject, database) {
        Ok(session) => session,
        Err(error) => return Found::could_not_look(recordable(&error)),
    };
    let name = match table_name(&mut session, table) {
        Ok(name) => name,
        Err(found) => return found,
    };
    let sql = format!(
        "SELECT extract(epoch FROM timestamptz {} - max({})::timestamptz) FROM {name}",
        Session::literal(&target.to_string()),
        Session::identifier(column)
    );
    let asked = session
        .execute("SET TimeZone = 'UTC'")
        .and_then(|_| session.one(&sql));
    match asked {
        Err(error) => Found::could_not_look(recordable(&error)),
        Ok(row) => judge_freshness(text(&row, 0), within),
    }
}

fn judge_freshness(seconds: &str, within: Duration) -> Found {
    match seconds.parse::<f64>() {
        Err(_) => Found::bad(code::DATA_STALE, "the table holds no row with such a time"),
        Ok(age) if age > within.as_secs_f64() => {
            Found::bad(code::DATA_STALE, format!("{age:.0} s before the target"))
        }
        Ok(age) if age < -within.as_secs_f64() => Found::warn(
            code::DATA_STALE,
            format!("{:.0} s behind the target: a time of the future", -age),
        ),
        Ok(age) => Found::pass(format!("{:.0} s before the target", age.max(0.0))),
    }
}

const BAD_INDEXES: &str = "SELECT format('%I.%I', n.nspname, c.relname) FROM pg_index i \
    JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_namespace n ON n.oid = c.relnamespace \
    WHERE NOT (i.indisvalid AND i.indisready AND i.indislive) AND c.relkind IN ('i', 'I') ORDER BY 1";

/// Every index of every database, and those that are named.
pub(super) fn indexes(subject: &Subject<'_>, database: &str, names: &[String]) -> Found {
    let look = || -> Result<(u64, Vec<String>)> {
        let (mut count, mut bad) = (0, Vec::new());
        for name in databases(subject)? {
            let mut session = plain_session(subject, &name)?;
            let all = session.one("SELECT count(*) FROM pg_index")?;
            count += text(&all, 0).parse::<u64>().unwrap_or(0);
            for row in session.rows(BAD_INDEXES)? {
                bad.push(format!("{name}.{} is not valid", text(&row, 0)));
            }
        }
        let mut session = session(subject, database)?;
        for name in names {
            let sql = format!(
                "SELECT relkind IN ('i', 'I') FROM pg_catalog.pg_class WHERE oid = to_regclass({})",
                Session::literal(name)
            );
            let found = session.rows(&sql)?;
            if found.first().is_none_or(|row| text(row, 0) != "t") {
                bad.push(format!("{database}.{name} is missing"));
            }
        }
        Ok((count, bad))
    };
    match look() {
        Err(error) => Found::could_not_look(recordable(&error)),
        Ok((_, bad)) if !bad.is_empty() => Found::bad(code::INDEX_INVALID, listed(bad)),
        Ok((count, _)) => Found::pass(format!("{count} indexes are valid and ready")),
    }
}

/// Rows of both sides, at one LSN: nothing was committed in between, and so nothing may differ.
pub(super) fn row_counts(proof: Option<&RowProof>, database: &str, tables: &[String]) -> Found {
    let Some(proof) = proof else {
        return Found::not_run(
            "rows of production are counted at the LSN of the row proof, which exists only for a point that the drill \
             makes itself and a profile that asks for it",
        );
    };
    let named = |table: &str| {
        tables.is_empty()
            || tables
                .iter()
                .any(|name| *name == table || format!("public.{name}") == table)
    };
    let mut detail = RowCountsDetail {
        tables: Vec::new(),
        bound: "production and the copy are counted at the same LSN: no commit lies between them".into(),
    };
    for table in proof
        .tables
        .iter()
        .filter(|each| each.database == database && named(&each.table))
    {
        let rows = |side: &Side| match side {
            Side::Digest { rows, .. } => Some(*rows),
            _ => None,
        };
        let (before, after) = (rows(&table.production), rows(&table.copy));
        let result = match (before, after, &table.copy) {
            (Some(before), Some(after), _) if before == after => CheckResult::Pass,
            (Some(_), Some(_), _) | (_, _, Side::Absent | Side::Unreadable(_)) => CheckResult::Fail,
            _ => CheckResult::CouldNotLook,
        };
        detail.tables.push(RowCount {
            database: table.database.clone(),
            table: table.table.clone(),
            before,
            after,
            least: before,
            most: before,
            result,
        });
    }
    judge_counts(detail, tables)
}

fn judge_counts(detail: RowCountsDetail, wanted: &[String]) -> Found {
    let of = |result: CheckResult| -> Vec<String> {
        let tables = detail.tables.iter().filter(|table| table.result == result);
        tables.map(|table| table.table.clone()).collect()
    };
    let missing: Vec<String> = wanted
        .iter()
        .filter(|name| {
            let known = |table: &RowCount| table.table == **name || table.table == format!("public.{name}");
            !detail.tables.iter().any(known)
        })
        .cloned()
        .collect();
    let (bad, unseen) = (of(CheckResult::Fail), of(CheckResult::CouldNotLook));
    let rows: u64 = detail.tables.iter().filter_map(|table| table.after).sum();
    let found = if !missing.is_empty() {
        Found::bad(
            code::ROW_COUNTS_DIFFER,
            format!("neither side has {}", listed(missing)),
        )
    } else if !bad.is_empty() {
        Found::bad(
            code::ROW_COUNTS_DIFFER,
            format!("other numbers of rows in {}", listed(bad)),
        )
    } else if !unseen.is_empty() {
        Found::could_not_look(format!("could not count {}", listed(unseen)))
    } else if detail.tables.is_empty() {
        Found::not_run("there is no table to count")
    } else {
        Found::pass(format!(
            "{rows} rows in {} tables, variance 0",
            detail.tables.len()
        ))
    };
    found.with(CheckDetail::RowCounts(detail))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::TableProof;

    fn key(name: &str, orphans: u64, not_valid: bool) -> ForeignKeyFacts {
        ForeignKeyFacts {
            name: name.into(),
            orphans,
            not_valid,
        }
    }

    #[test]
    fn orphans_of_a_valid_key_fail_and_those_of_a_key_that_was_never_checked_are_named() {
        let judged = |broken: Vec<ForeignKeyFacts>, not_seen: &[&str]| {
            judge_orphans(OrphansDetail {
                foreign_keys: 3,
                not_valid: broken
                    .iter()
                    .filter(|key| key.not_valid)
                    .map(|key| key.name.clone())
                    .collect(),
                broken,
                not_seen: not_seen.iter().map(ToString::to_string).collect(),
            })
        };
        assert_eq!(judged(vec![], &[]).result, CheckResult::Pass);
        let found = judged(vec![key("d.public.a.fk", 2, false)], &["x"]);
        assert_eq!(
            (found.result, found.reason),
            (CheckResult::Fail, Some(code::ORPHANS_FOUND))
        );
        assert!(found.actual.contains("d.public.a.fk (2 rows)"));
        assert_eq!(
            judged(vec![key("d.public.a.fk", 2, true)], &[]).result,
            CheckResult::Warn
        );
        assert_eq!(judged(vec![], &["d"]).result, CheckResult::CouldNotLook);
    }

    #[test]
    fn the_newest_row_is_judged_against_the_target_and_an_empty_table_is_not_fresh() {
        let of = |seconds: &str| judge_freshness(seconds, Duration::from_secs(900)).result;
        assert_eq!(of("899.5"), CheckResult::Pass);
        assert_eq!(of("-1"), CheckResult::Pass);
        assert_eq!(of("901"), CheckResult::Fail);
        assert_eq!(of("-901"), CheckResult::Warn);
        assert_eq!(of(""), CheckResult::Fail);
    }

    #[test]
    fn counts_at_one_lsn_may_not_differ_by_one_row() {
        let side = |rows| Side::Digest {
            rows,
            digest: "x".into(),
        };
        let proof = |copy: Side| RowProof {
            definition: String::new(),
            tables: vec![TableProof {
                database: "shop".into(),
                table: "public.bookings".into(),
                production: side(7),
                copy,
            }],
            sequences: vec![],
        };
        let of = |copy: Side, tables: &[&str]| {
            let tables: Vec<String> = tables.iter().map(ToString::to_string).collect();
            row_counts(Some(&proof(copy)), "shop", &tables).result
        };
        assert_eq!(of(side(7), &["bookings"]), CheckResult::Pass);
        assert_eq!(of(side(7), &[]), CheckResult::Pass);
        assert_eq!(of(side(6), &["public.bookings"]), CheckResult::Fail);
        assert_eq!(of(Side::Absent, &[]), CheckResult::Fail);
        assert_eq!(
            of(Side::CouldNotLook("lock".into()), &[]),
            CheckResult::CouldNotLook
        );
        assert_eq!(of(side(7), &["leads"]), CheckResult::Fail);
        assert_eq!(row_counts(None, "shop", &[]).result, CheckResult::NotRun);
    }
}
