//! From what was seen to a check's result: one pure function for each check.
//!
//! Invariants: what was not seen is NOT RUN or COULD NOT LOOK; a FAIL always carries a code of its own;
//! expected and actual say numbers and names, never values of rows.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::amcheck::AmcheckResult;
use crate::facts::{
    ArchiveFacts, BracketFacts, Category, Check, CheckDetail, CheckResult, ProbeResult, QuarantineFacts,
    QuarantineLevel, RowProof, SequenceState, Side, StopFacts,
};
use crate::page_checks::PageCheck;
use crate::user_checks::UserCheck;
use crate::verdict::code;

/// Names told in one check.
const NAMED_MAX: usize = 8;

/// A check under construction.
pub struct Draft {
    id: &'static str,
    definition: &'static str,
    expected: String,
}

impl Draft {
    pub(crate) fn new(id: &'static str, definition: &'static str, expected: impl Into<String>) -> Draft {
        Draft {
            id,
            definition,
            expected: expected.into(),
        }
    }

    pub(crate) fn is(self, result: CheckResult, reason: Option<&str>, actual: impl Into<String>) -> Check {
        Check {
            id: self.id.into(),
            definition: self.definition.into(),
            expected: self.expected,
            actual: actual.into(),
            result,
            reason: reason.map(Into::into),
            duration_ms: 0,
            category: Some(category(self.id)),
            detail: None,
        }
    }

    /// It was not made, for a reason known beforehand.
    pub fn not_run(self, why: impl Into<String>) -> Check {
        self.is(CheckResult::NotRun, Some(code::CHECK_NOT_RUN), why)
    }

    /// It was tried and nothing was seen.
    pub fn could_not_look(self, why: impl Into<String>) -> Check {
        self.is(CheckResult::CouldNotLook, Some(code::COULD_NOT_LOOK), why)
    }
}

/// What kind of thing a built-in check looks at.
fn category(id: &str) -> Category {
    match id {
        "target" | "bracket" | "standing-markers" | "identity" | "recovery-state" => Category::Recovery,
        "row-proof" | "sequences" | "n-version" => Category::Data,
        "page-checksums" | "amcheck" | "collation-versions" => Category::Integrity,
        _ => Category::Safety,
    }
}

/// A check with the time it took.
pub fn timed(mut check: Check, duration: Duration) -> Check {
    check.duration_ms = duration.as_millis() as u64;
    check
}

/// The draft of a built-in check, for when nothing was seen. Unknown ids give `None`.
pub fn draft(id: &str) -> Option<Draft> {
    Some(match id {
        "target" => Draft::new(
            "target",
            "the server's own log says that recovery stopped for each of the plan's targets, and the server \
             stands still there, at the place in the WAL that the plan had found",
            "the copy stands at every stop of the plan",
        ),
        "bracket" => Draft::new(
            "bracket",
            "random nonces committed in production around a named restore point, looked up in the copy at \
             every stop",
            "nonce A is there; marker, nonce B and sentinel are not",
        ),
        "standing-markers" => Draft::new(
            "standing-markers",
            "rows that pgproof had committed in production before this drill, by the LSN of their commits in the \
             archived WAL",
            "those committed before the point are in the copy, those behind it are not",
        ),
        "n-version" => Draft::new(
            "n-version",
            "keyed digests of every relation at the last stop, against those of the same stop recovered from another \
             backup",
            "every digest is equal",
        ),
        "row-proof" => Draft::new(
            "row-proof",
            crate::rows::DEFINITION,
            "every digest equals production's at the same LSN",
        ),
        "sequences" => Draft::new(
            "sequences",
            "each sequence of the copy against production's position before the point, by the sign of its \
             increment",
            "no sequence would hand out a value again",
        ),
        "page-checksums" => Draft::new(
            "page-checksums",
            "the checksum and header of every page of every relation's file, read after the copy was shut \
             down",
            "no bad page",
        ),
        "amcheck" => Draft::new(
            "amcheck",
            "verify_heapam for every permanent table, bt_index_check with heapallindexed for every valid \
             B-tree index",
            "no damage",
        ),
        "archive-settings" => Draft::new(
            "archive-settings",
            "archive_mode, archive_command and archive_library as the copy's server has them in effect",
            "archive_mode is off",
        ),
        "archive-unchanged" => Draft::new(
            "archive-unchanged",
            "the listing of the WAL archive before the drill against the one after it",
            "only production's own additions",
        ),
        "timeline-histories" => Draft::new(
            "timeline-histories",
            "timeline histories in the archive that leave a timeline before its archived end",
            "none that nobody we know has written",
        ),
        "collation-versions" => Draft::new(
            "collation-versions",
            "collation versions recorded in the copy against those of this host's libraries",
            "all equal",
        ),
        "quarantine" => Draft::new(
            "quarantine",
            "the layers of isolation that the kernel applied, and attempts to get out made from inside",
            "every layer applied, every attempt held off",
        ),
        _ => return None,
    })
}

/// A draft that always exists: unknown ids are programming errors and would be visible as such.
pub(crate) fn known(id: &'static str) -> Draft {
    draft(id).unwrap_or_else(|| Draft::new(id, "unknown check", "-"))
}

/// The first names of a list, and how many there are more.
pub(crate) fn listed(mut names: Vec<String>) -> String {
    let more = names.len().saturating_sub(NAMED_MAX);
    names.truncate(NAMED_MAX);
    let mut text = names.join(", ");
    if more > 0 {
        text.push_str(&format!(", and {more} more"));
    }
    text
}

/// Whether every stop was reached.
pub fn target(stops: &[StopFacts]) -> Check {
    let draft = known("target");
    if stops.is_empty() {
        return draft.not_run("no copy was started");
    }
    let bad: Vec<String> = stops
        .iter()
        .filter(|stop| !stop.outcome.is_reached())
        .map(|stop| stop.purpose.clone())
        .collect();
    let elsewhere: Vec<String> = stops
        .iter()
        .filter(|stop| stop.outcome.is_reached() && stop.stands_where_planned() == Some(false))
        .map(|stop| {
            let lsn = |lsn: Option<postgres::Lsn>| lsn.unwrap_or_default();
            let (reached, planned) = (
                lsn(stop.reached_lsn),
                lsn(stop.planned.map(|planned| planned.lsn)),
            );
            format!("{} (at {reached} instead of {planned})", stop.purpose)
        })
        .collect();
    if bad.is_empty() && !elsewhere.is_empty() {
        return draft.is(
            CheckResult::Fail,
            Some(code::TARGET_NOT_REACHED),
            format!("stands elsewhere: {}", listed(elsewhere)),
        );
    }
    if bad.is_empty() {
        let lsn = stops.iter().rev().find_map(|stop| stop.reached_lsn);
        let at = lsn.map_or_else(String::new, |lsn| format!(", the last one at {lsn}"));
        return draft.is(
            CheckResult::Pass,
            None,
            format!(
                "stood at {} of {} stops and accepted sessions{at}",
                stops.len(),
                stops.len()
            ),
        );
    }
    draft.is(
        CheckResult::Fail,
        Some(code::TARGET_NOT_REACHED),
        format!("not reached: {}", listed(bad)),
    )
}

/// What the copy's own marker table held at each stop: (id, nonce).
pub type Markers = BTreeMap<String, String>;

/// The bracket at one or more stops.
pub fn bracket(bracket: &BracketFacts, seen: &[(String, Result<Markers, String>)]) -> Check {
    let draft = known("bracket");
    if seen.is_empty() {
        return draft.not_run("the copy was not looked at");
    }
    for (stop, markers) in seen {
        let markers = match markers {
            Ok(markers) => markers,
            Err(why) => return draft.could_not_look(format!("at {stop}: {why}")),
        };
        let id = &bracket.marker;
        if markers.get(&format!("{id}_before")) != Some(&bracket.nonce_before) {
            return draft.is(
                CheckResult::Fail,
                Some(code::MARKER_MISSING),
                format!(
                    "at {stop} nonce A, committed before {}, is missing",
                    bracket.restore_point
                ),
            );
        }
        let beyond: Vec<String> = [id.clone(), format!("{id}_after"), format!("{id}_sentinel")]
            .into_iter()
            .filter(|id| markers.contains_key(id))
            .collect();
        if !beyond.is_empty() {
            return draft.is(
                CheckResult::Fail,
                Some(code::MARKER_BEYOND_TARGET),
                format!(
                    "at {stop} the copy holds what was committed after the point: {}",
                    listed(beyond)
                ),
            );
        }
    }
    let actual = format!("so at {} of {} stops", seen.len(), seen.len());
    draft.is(CheckResult::Pass, None, actual)
}

/// Rows of production and of the copy.
pub fn row_proof(proof: &RowProof, unreached: &[String]) -> Check {
    let draft = known("row-proof");
    let name = |table: &crate::facts::TableProof| format!("{}.{}", table.database, table.table);
    let of = |result: CheckResult| -> Vec<&crate::facts::TableProof> {
        proof
            .tables
            .iter()
            .filter(|table| table.result() == result)
            .collect()
    };
    let bad = of(CheckResult::Fail);
    if !bad.is_empty() {
        let differ = bad.iter().any(|table| !matches!(table.copy, Side::Unreadable(_)));
        let reason = if differ {
            code::ROWS_DIFFER
        } else {
            code::ROWS_UNREADABLE
        };
        let names = bad
            .iter()
            .map(|table| format!("{} ({})", name(table), difference(table)))
            .collect();
        let actual = format!(
            "{} of {} relations differ: {}",
            bad.len(),
            proof.tables.len(),
            listed(names)
        );
        return draft.is(CheckResult::Fail, Some(reason), actual);
    }
    let mut unseen: Vec<String> = of(CheckResult::CouldNotLook)
        .iter()
        .map(|table| why_unseen(&name(table), table))
        .collect();
    let rewritten = unseen.iter().any(|text| text.contains("meanwhile"));
    unseen.extend(unreached.iter().cloned());
    if !unseen.is_empty() {
        let reason = if rewritten {
            code::REWRITTEN_MEANWHILE
        } else {
            code::COULD_NOT_LOOK
        };
        let actual = format!("could not look at {}", listed(unseen));
        return draft.is(CheckResult::CouldNotLook, Some(reason), actual);
    }
    if proof.tables.is_empty() {
        return draft.not_run("no database holds a table of the user's");
    }
    let rows: u64 = proof.tables.iter().map(|table| rows_of(&table.production)).sum();
    let actual = format!("{} relations with {rows} rows are equal", proof.tables.len());
    draft.is(CheckResult::Pass, None, actual)
}

fn rows_of(side: &Side) -> u64 {
    match side {
        Side::Digest { rows, .. } => *rows,
        _ => 0,
    }
}

fn difference(table: &crate::facts::TableProof) -> String {
    match (&table.production, &table.copy) {
        (Side::Digest { rows: a, .. }, Side::Digest { rows: b, .. }) if a == b => {
            format!("{a} rows, other content")
        }
        (Side::Digest { rows: a, .. }, Side::Digest { rows: b, .. }) => {
            format!("{a} rows in production, {b} in the copy")
        }
        (_, Side::Absent) => "absent in the copy".into(),
        (Side::Absent, _) => "only in the copy".into(),
        (_, Side::Unreadable(state)) => format!("unreadable in the copy, SQLSTATE {state}"),
        _ => "unknown".into(),
    }
}

fn why_unseen(name: &str, table: &crate::facts::TableProof) -> String {
    let side = |where_: &str, side: &Side| match side {
        Side::CouldNotLook(why) => Some(format!("{name} ({where_}: {why})")),
        Side::Unreadable(state) => Some(format!("{name} ({where_}: unreadable, SQLSTATE {state})")),
        _ => None,
    };
    side("production", &table.production)
        .or_else(|| side("copy", &table.copy))
        .unwrap_or_else(|| name.to_string())
}

/// Sequences.
pub fn sequences(proof: &RowProof) -> Check {
    let draft = known("sequences");
    let pick = |take: fn(&SequenceState) -> bool| -> Vec<String> {
        let taken = proof.sequences.iter().filter(|sequence| take(&sequence.state));
        taken
            .map(|sequence| format!("{}.{}", sequence.database, sequence.sequence))
            .collect()
    };
    let bad = pick(|state| matches!(state, SequenceState::Behind | SequenceState::Absent));
    if !bad.is_empty() {
        let actual = format!("behind production: {}", listed(bad));
        return draft.is(CheckResult::Fail, Some(code::SEQUENCE_BEHIND), actual);
    }
    let unseen = pick(|state| matches!(state, SequenceState::CouldNotLook(_)));
    if !unseen.is_empty() {
        return draft.could_not_look(format!("could not judge {}", listed(unseen)));
    }
    let actual = format!("{} sequences are not behind", proof.sequences.len());
    draft.is(CheckResult::Pass, None, actual)
}

/// The archive settings that are in effect in the copy.
pub fn archive_settings(settings: &BTreeMap<String, String>) -> Check {
    let draft = known("archive-settings");
    let value = |name: &str| settings.get(name).map(String::as_str);
    let Some(mode) = value("archive_mode") else {
        return draft.could_not_look("the server does not tell archive_mode");
    };
    if mode != "off" {
        let command =
            value("archive_command").is_some_and(|command| !command.is_empty() && command != "(disabled)");
        let library = value("archive_library").is_some_and(|library| !library.is_empty());
        let what = match (command, library) {
            (true, _) => "with an archive_command",
            (_, true) => "with an archive_library",
            _ => "without a command yet",
        };
        let actual = format!("archive_mode is {mode}, {what}: the copy would archive when it is promoted");
        return draft.is(CheckResult::Fail, Some(code::ARCHIVE_COMMAND_WOULD_RUN), actual);
    }
    draft.is(CheckResult::Pass, None, "archive_mode is off")
}

/// The archive before and after.
pub fn archive_unchanged(archive: &ArchiveFacts) -> Check {
    let draft = known("archive-unchanged");
    if !archive.unexpected.is_empty() || !archive.missing.is_empty() {
        let mut parts = Vec::new();
        if !archive.unexpected.is_empty() {
            parts.push(format!("appeared: {}", listed(archive.unexpected.clone())));
        }
        if !archive.missing.is_empty() {
            parts.push(format!("disappeared: {}", listed(archive.missing.clone())));
        }
        return draft.is(CheckResult::Fail, Some(code::ARCHIVE_CHANGED), parts.join("; "));
    }
    let actual = format!(
        "{} objects before, {} after, {} of them added by production",
        archive.objects_before, archive.objects_after, archive.added_by_production
    );
    draft.is(CheckResult::Pass, None, actual)
}

/// Timeline histories: `poison` are those that nobody we know wrote, `others` those of known writers.
pub fn timeline_histories(poison: &[String], others: usize) -> Check {
    let draft = known("timeline-histories");
    if !poison.is_empty() {
        let actual = format!(
            "an ordinary restore would be led away from production by {}",
            listed(poison.to_vec())
        );
        return draft.is(CheckResult::Fail, Some(code::HISTORY_POISONED), actual);
    }
    draft.is(
        CheckResult::Pass,
        None,
        format!("none; {others} forks of known writers"),
    )
}

/// Collations whose recorded version is not this host's.
pub fn collation_versions(compared: u64, different: &[String]) -> Check {
    let draft = known("collation-versions");
    if different.is_empty() {
        return draft.is(CheckResult::Pass, None, format!("{compared} versions are equal"));
    }
    draft.is(
        CheckResult::Warn,
        Some(code::COLLATION_MISMATCH),
        format!(
            "other versions on this host, where indexes on text may be out of order: {}",
            listed(different.to_vec())
        ),
    )
}

/// Page checksums; `None`: the cluster has none.
pub fn page_checksums(check: Option<&PageCheck>) -> Check {
    let draft = known("page-checksums");
    let Some(check) = check else {
        return draft.not_run("the cluster was initialised without data checksums");
    };
    if check.bad_pages > 0 {
        let actual = format!(
            "{} of {} pages are bad: {}",
            check.bad_pages,
            check.pages,
            listed(check.named.clone())
        );
        return draft.is(CheckResult::Fail, Some(code::PAGE_CHECKSUMS_BAD), actual);
    }
    if check.pages == 0 {
        return draft.could_not_look("no page was found below the copy's data directory");
    }
    let actual = format!(
        "{} pages in {} files, {} of them new",
        check.pages, check.files, check.new_pages
    );
    draft.is(CheckResult::Pass, None, actual)
}

/// amcheck. With other collation versions an index out of order is the host's doing, not the backup's.
pub fn amcheck(result: &AmcheckResult, collations_differ: bool) -> Check {
    let draft = known("amcheck");
    let found = |what: &str| format!("{what}: {}", listed(result.named.clone()));
    if result.bad_tables > 0 || (result.bad_indexes > 0 && !collations_differ) {
        let what = format!(
            "{} tables and {} indexes are damaged",
            result.bad_tables, result.bad_indexes
        );
        return draft.is(CheckResult::Fail, Some(code::AMCHECK_FAILED), found(&what));
    }
    if result.bad_indexes > 0 {
        let what = format!(
            "{} indexes, where this host sorts text differently",
            result.bad_indexes
        );
        return draft.is(CheckResult::Warn, Some(code::COLLATION_MISMATCH), found(&what));
    }
    if !result.not_seen.is_empty() {
        return draft.could_not_look(format!("could not look at {}", listed(result.not_seen.clone())));
    }
    let actual = format!(
        "{} tables and {} indexes are sound",
        result.tables, result.indexes
    );
    draft.is(CheckResult::Pass, None, actual)
}

/// The quarantine.
pub fn quarantine(facts: &QuarantineFacts) -> Check {
    let draft = known("quarantine");
    let missing: Vec<String> = facts
        .layers
        .iter()
        .filter(|layer| !layer.applied)
        .map(|layer| layer.name.clone())
        .collect();
    let count = |result: ProbeResult| facts.probes.iter().filter(|probe| probe.result == result).count();
    let breached: Vec<String> = facts
        .probes
        .iter()
        .filter(|probe| probe.result == ProbeResult::Breached)
        .map(|probe| probe.name.clone())
        .collect();
    let held = count(ProbeResult::Held);
    match facts.level {
        QuarantineLevel::Full if breached.is_empty() => draft.is(
            CheckResult::Pass,
            None,
            format!(
                "{} layers applied, {held} attempts held off, {} had nothing to try",
                facts.layers.len(),
                count(ProbeResult::NotRun)
            ),
        ),
        QuarantineLevel::Full => {
            let actual = format!("not held off: {}", listed(breached));
            draft.is(CheckResult::Fail, Some(code::QUARANTINE_BREACHED), actual)
        }
        QuarantineLevel::Partial => {
            let actual = format!(
                "not applied: {}; {held} attempts held off, {} not",
                listed(missing),
                breached.len()
            );
            draft.is(CheckResult::Warn, Some(code::QUARANTINE_PARTIAL), actual)
        }
        QuarantineLevel::ConfigurationOnly => draft.is(
            CheckResult::Warn,
            Some(code::QUARANTINE_CONFIGURATION_ONLY),
            "the generated configuration is the only isolation",
        ),
    }
}

/// A check of the user's that was not made, or could not look.
pub fn unmade(check: &UserCheck, result: CheckResult, code: &str, why: impl Into<String>) -> Check {
    Check {
        id: check.id.clone(),
        definition: check.definition(),
        expected: check.expected(),
        actual: why.into(),
        result,
        reason: Some(code.into()),
        duration_ms: 0,
        category: Some(check.category),
        detail: None,
    }
}

/// A check of the user's that looked.
pub fn made(
    check: &UserCheck,
    result: CheckResult,
    reason: Option<&str>,
    actual: impl Into<String>,
) -> Check {
    let mut made = unmade(check, result, "", actual);
    made.reason = reason.map(Into::into);
    made
}

/// The same with what it saw.
pub fn found(
    check: &UserCheck,
    result: CheckResult,
    reason: Option<&str>,
    actual: impl Into<String>,
    detail: Option<CheckDetail>,
) -> Check {
    let mut found = made(check, result, reason, actual);
    found.detail = detail;
    found
}

/// A check that is asked for by a name that nothing stands behind.
pub fn unknown(id: &str, why: &str) -> Check {
    Check {
        id: id.into(),
        definition: "unknown check".into(),
        expected: "-".into(),
        actual: why.into(),
        result: CheckResult::NotRun,
        reason: Some(code::CHECK_NOT_RUN.into()),
        duration_ms: 0,
        category: None,
        detail: None,
    }
}

/// A statement of the user's: `answer` is the one value that it gave.
pub fn of_user(check: &UserCheck, expect: &str, answer: Result<Option<String>, String>) -> Check {
    match answer {
        Err(why) => unmade(check, CheckResult::CouldNotLook, code::COULD_NOT_LOOK, why),
        Ok(value) if value.as_deref().is_some_and(|value| same(value, expect)) => {
            made(check, CheckResult::Pass, None, "as expected")
        }
        Ok(value) => made(
            check,
            CheckResult::Fail,
            Some(code::CHECK_FAILED),
            shown(value.as_deref()),
        ),
    }
}

fn same(value: &str, expect: &str) -> bool {
    let truth = |text: &str| match text {
        "t" | "true" => Some(true),
        "f" | "false" => Some(false),
        _ => None,
    };
    value == expect || truth(value).is_some() && truth(value) == truth(expect)
}

/// A truth value and NULL may be told; anything else may be a value of a row.
fn shown(value: Option<&str>) -> String {
    match value {
        None => "NULL, or no row".into(),
        Some("t") => "true".into(),
        Some("f") => "false".into(),
        Some(other) => format!(
            "another value ({} characters, not recorded)",
            other.chars().count()
        ),
    }
}
