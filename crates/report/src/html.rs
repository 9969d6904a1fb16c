//! A document as one HTML file for a board: the verdict, the figures and the pictures on page one, then the whole record.
//! It prints on A4, runs no script and fetches nothing.
//!
//! Invariant: whatever comes from the facts is escaped, in text and in attributes; the file's own policy forbids
//! everything but its own style.

use std::fmt::Write;

use drill::facts::{CheckResult, Facts, Measure};
use drill::sign_off::is_signed;
use drill::{Status, Verdict};

use crate::circumstances::Circumstances;
use crate::document::{Block, Document, Style, Text};
use crate::picture::{self, Series};
use crate::template::{of_check, recovery_point, recovery_time, status};
use crate::trend::{Forecast, trend};
use crate::words::{day, duration, instant};

/// Reasons on page one.
const REASONS_MAX: usize = 4;
/// The longest cell that stays on one line.
const NO_BREAK_MAX: usize = 12;
/// Earlier drills in the trend.
const EARLIER_MAX: usize = 40;

const STYLE: &str = "
@page { size: A4; margin: 15mm 14mm 16mm; @bottom-right { content: counter(page) ' / ' counter(pages); font: 8pt sans-serif; color: #5b6675; } }
* { box-sizing: border-box; }
body { font: 9.5pt/1.4 'Liberation Sans', 'DejaVu Sans', Arial, sans-serif; color: #1d2530; margin: 0 auto; max-width: 184mm; padding: 4mm 2mm; }
@media print { body { padding: 0; max-width: none; } a { color: inherit; } }
header { display: flex; justify-content: space-between; align-items: baseline; border-bottom: 2px solid #1d2530; padding-bottom: 2mm; }
header b { font-size: 11pt; letter-spacing: .04em; }
header span { color: #5b6675; }
.verdict { margin: 6mm 0 4mm; padding: 5mm 6mm; border-radius: 2mm; color: #fff; -webkit-print-color-adjust: exact; print-color-adjust: exact; }
.verdict h1 { margin: 0; font-size: 21pt; line-height: 1.15; }
.verdict p { margin: 1.5mm 0 0; font-size: 10.5pt; }
.good { background: #22663a; } .bad { background: #9c1c16; } .doubt { background: #8a5a00; }
.tiles { display: grid; grid-template-columns: repeat(4, 1fr); gap: 3mm; margin-bottom: 4mm; }
.tile { border: 1px solid #c5ccd6; border-radius: 1.5mm; padding: 3mm; overflow-wrap: anywhere; }
.tile small { display: block; color: #5b6675; font-size: 8pt; text-transform: uppercase; letter-spacing: .05em; }
.tile b { display: block; font-size: 13pt; line-height: 1.25; margin: 1mm 0; }
.tile span { font-size: 8.5pt; color: #3b4655; }
section.first { break-after: page; }
h2 { font-size: 13pt; margin: 6mm 0 2mm; border-bottom: 1px solid #c5ccd6; padding-bottom: 1mm; break-after: avoid; }
h3 { font-size: 10.5pt; margin: 4mm 0 1.5mm; break-after: avoid; }
h1.part { font-size: 17pt; margin: 0 0 3mm; break-after: avoid; }
.page { break-before: page; }
p { margin: 0 0 2mm; overflow-wrap: anywhere; }
ul { margin: 0 0 3mm; padding-left: 5mm; } li { margin-bottom: .8mm; overflow-wrap: anywhere; }
table { width: 100%; border-collapse: collapse; margin: 0 0 4mm; font-size: 8.5pt; }
th { text-align: left; background: #eef1f5; border-bottom: 1.5px solid #9aa6b5; padding: 1.2mm 1.8mm; -webkit-print-color-adjust: exact; print-color-adjust: exact; }
td { border-bottom: 1px solid #dfe4ea; padding: 1.1mm 1.8mm; vertical-align: top; overflow-wrap: anywhere; }
thead { display: table-header-group; } tr { break-inside: avoid; }
td.nb { white-space: nowrap; }
td.yes { color: #22663a; font-weight: bold; } td.no { color: #9c1c16; font-weight: bold; } td.unsure { color: #8a5a00; font-weight: bold; } td.na { color: #6b7686; }
code { font: 8pt 'Liberation Mono', 'DejaVu Sans Mono', monospace; overflow-wrap: anywhere; }
pre { font: 7.5pt/1.35 'Liberation Mono', 'DejaVu Sans Mono', monospace; white-space: pre-wrap; overflow-wrap: anywhere; background: #f5f7f9; border: 1px solid #dfe4ea; padding: 2mm; margin: 0 0 4mm; -webkit-print-color-adjust: exact; print-color-adjust: exact; }
svg { display: block; width: 100%; height: auto; margin: 1mm 0 3mm; break-inside: avoid; }
svg text { font-family: 'Liberation Sans', 'DejaVu Sans', Arial, sans-serif; fill: #1d2530; }
text.key { font-size: 11px; } text.head { font-size: 12px; font-weight: bold; } svg text.on { font-size: 12px; fill: #fff; font-weight: bold; }
.quiet { color: #5b6675; font-size: 8.5pt; }
hr { border: 0; border-top: 1px solid #9aa6b5; margin: 4mm 0 2mm; }
";

/// Text in which no character is markup, for content and for attributes.
pub fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c if c.is_control() && c != '\n' && c != '\t' => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

/// Prints the document, behind a first page of its own.
pub fn print(document: &Document, facts: &Facts, verdict: &Verdict, beside: &Circumstances) -> String {
    let mut out = String::from("<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n");
    out.push_str("<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n");
    out.push_str("<meta name=\"viewport\" content=\"width=device-width\">\n");
    let title = format!("{}: {}", facts.identity.drill_id, verdict.status);
    let _ = write!(
        out,
        "<title>{}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n",
        escaped(&title)
    );
    first_page(&mut out, facts, verdict, beside);
    let mut page = false;
    for block in &document.blocks {
        match block {
            Block::NewPage => page = true,
            other => {
                write_block(&mut out, other, std::mem::take(&mut page));
            }
        }
    }
    out.push_str(
        "<p class=\"quiet\">Point at a value to see where it stands in facts.json, as a JSON pointer.</p>\n",
    );
    out.push_str("</body>\n</html>\n");
    out
}

fn inline(text: &Text) -> String {
    let words = escaped(&text.text);
    let words = match text.style {
        Style::Plain if text.from.is_empty() => own_code(&words),
        Style::Plain => words,
        Style::Code => format!("<code>{words}</code>"),
        Style::Strong => format!("<b>{words}</b>"),
    };
    match text.from.is_empty() {
        true => words,
        false => format!("<span title=\"{}\">{words}</span>", escaped(&text.from.join(" "))),
    }
}

/// Backticks of the document's own words.
fn own_code(escaped: &str) -> String {
    let parts: Vec<&str> = escaped.split('`').collect();
    if parts.len().is_multiple_of(2) {
        return escaped.to_string();
    }
    let mut out = String::new();
    for (at, part) in parts.iter().enumerate() {
        match at % 2 {
            0 => out.push_str(part),
            _ => {
                let _ = write!(out, "<code>{part}</code>");
            }
        }
    }
    out
}

fn line(pieces: &[Text]) -> String {
    pieces.iter().map(inline).collect::<Vec<_>>().join(" ")
}

/// How a cell stands out, by its words.
fn class(text: &str) -> &'static str {
    let word = text.split(" (").next().unwrap_or(text);
    let word = word.split(": ").next().unwrap_or(word);
    match word {
        "YES" | "PASS" | "PASSED" => " class=\"yes\"",
        "NO" | "FAIL" | "FAILED" => " class=\"no\"",
        "WARN" | "NOT RUN" | "COULD NOT LOOK" | "INCONCLUSIVE" | "ABORTED" | "PASSED WITH OBSERVATIONS" => {
            " class=\"unsure\""
        }
        "N/A" | "-" => " class=\"na\"",
        other if other.starts_with("not applicable") => " class=\"na\"",
        // A time or an amount is not broken, so that its column is as wide as it.
        _ if text.chars().count() <= NO_BREAK_MAX => " class=\"nb\"",
        _ => "",
    }
}

fn write_block(out: &mut String, block: &Block, page: bool) {
    match block {
        Block::Heading(1, words) => {
            let class = if page { "part page" } else { "part" };
            let _ = writeln!(out, "<h1 class=\"{class}\">{}</h1>", line(words));
        }
        Block::Heading(level, words) => {
            let _ = writeln!(out, "<h{level}>{}</h{level}>", line(words));
        }
        Block::Paragraph(words) => {
            let _ = writeln!(out, "<p>{}</p>", line(words));
        }
        Block::Table { columns, rows } => {
            out.push_str("<table><thead><tr>");
            for column in *columns {
                let _ = write!(out, "<th>{}</th>", escaped(column));
            }
            out.push_str("</tr></thead><tbody>\n");
            for row in rows {
                out.push_str("<tr>");
                for cell in row {
                    let _ = write!(out, "<td{}>{}</td>", class(&cell.text), inline(cell));
                }
                out.push_str("</tr>\n");
            }
            out.push_str("</tbody></table>\n");
        }
        Block::List(lines) if lines.is_empty() => out.push_str("<ul><li>None</li></ul>\n"),
        Block::List(lines) => {
            out.push_str("<ul>\n");
            for words in lines {
                let _ = writeln!(out, "<li>{}</li>", line(words));
            }
            out.push_str("</ul>\n");
        }
        Block::Lines { lines, from } => {
            let _ = writeln!(
                out,
                "<pre title=\"{}\">{}</pre>",
                escaped(from),
                escaped(&lines.join("\n"))
            );
        }
        Block::Rule => out.push_str("<hr>\n"),
        Block::Closing(lines) => {
            for words in lines {
                let _ = writeln!(out, "<p class=\"quiet\"><i>{}</i></p>", line(words));
            }
        }
        Block::NewPage => {}
    }
}

fn tile(out: &mut String, name: &str, text: &Text, below: &str) {
    let _ = writeln!(
        out,
        "<div class=\"tile\"><small>{}</small><b title=\"{}\">{}</b><span>{below}</span></div>",
        escaped(name),
        escaped(&text.from.join(" ")),
        escaped(&text.text)
    );
}

fn first_page(out: &mut String, facts: &Facts, verdict: &Verdict, beside: &Circumstances) {
    let colour = match verdict.status {
        Status::Passed => "good",
        Status::Failed => "bad",
        // It works, and something should be known.
        Status::PassedWithObservations => "good",
        Status::Inconclusive | Status::Aborted => "doubt",
    };
    out.push_str("<section class=\"first\">\n");
    let _ = writeln!(
        out,
        "<header><b>Recovery drill</b><span title=\"/identity/drill_id\">{}</span></header>",
        escaped(&facts.identity.drill_id)
    );
    let shown = status(verdict, beside);
    let meaning = match verdict.status {
        Status::Passed => "The database was recovered for real, and the copy is what production was.",
        Status::PassedWithObservations => {
            "The database was recovered for real; what should be known stands below."
        }
        Status::Failed => "The recovery does not do what it must. What stands below decides why.",
        Status::Inconclusive => "Nobody can tell from this drill whether the recovery works.",
        Status::Aborted => "The drill was stopped before it could tell.",
    };
    let _ = writeln!(
        out,
        "<div class=\"verdict {colour}\"><h1 title=\"{}\">{}</h1><p>{meaning}</p></div>",
        escaped(&shown.from.join(" ")),
        escaped(&shown.text)
    );
    let version = facts
        .scope
        .server_version
        .as_ref()
        .or(facts.scope.copy_server_version.as_ref());
    let _ = writeln!(
        out,
        "<p><span title=\"/scope/cluster\">Cluster <b>{}</b></span> \u{b7} <span title=\"/scope/server_version\">PostgreSQL \
         {}</span> \u{b7} <span title=\"/started_at\">{}</span> \u{b7} <span title=\"/identity/profile\">profile {}</span> \
         \u{b7} <span title=\"/identity/environment\">{}</span></p>",
        escaped(&facts.scope.cluster),
        escaped(version.map_or("of unknown version", String::as_str)),
        instant(facts.started_at),
        escaped(&facts.identity.profile),
        escaped(&facts.identity.environment)
    );
    tiles(out, facts, beside);
    reasons(out, verdict);
    let objective = objective_ms(facts);
    let _ = writeln!(
        out,
        "<h3>Where the recovery time went</h3>\n{}",
        picture::phases(facts, objective)
    );
    trends(out, facts, beside, objective);
    let _ = writeln!(out, "<h3>The drill, step by step</h3>\n{}", picture::steps(facts));
    out.push_str("</section>\n");
}

/// The strictest objective of the recovery time.
fn objective_ms(facts: &Facts) -> Option<u64> {
    let clock = facts
        .clocks
        .iter()
        .find(|clock| clock.measure == Measure::RecoveryTime);
    clock.map(|clock| clock.target_ms).or(facts
        .objectives
        .rto_seconds
        .map(|seconds| seconds.saturating_mul(1000)))
}

fn tiles(out: &mut String, facts: &Facts, beside: &Circumstances) {
    out.push_str("<div class=\"tiles\">\n");
    let (mut rto, target) = recovery_time(facts);
    if let Some((short, _)) = rto.text.split_once(": ") {
        rto.text = short.into();
    }
    tile(
        out,
        "Recovery time",
        &rto,
        &format!("objective {}", escaped(&target.text)),
    );
    let (rpo, target) = recovery_point(facts);
    let mut short = rpo.clone();
    let mut below = format!("objective {}", escaped(&target.text));
    if let Some((seconds, rest)) = rpo.text.split_once(", ") {
        short.text = seconds.into();
        below = format!("{}; {below}", escaped(rest));
    } else if facts.rpo.is_none() {
        short.text = "not measured".into();
    }
    tile(out, "Data at risk", &short, &below);
    let mut rows = Text {
        text: "not compared".into(),
        style: Style::Plain,
        from: vec!["/row_proof".into()],
    };
    let mut below = "see Data Integrity".to_string();
    if let Some(proof) = facts.row_proof.as_ref().filter(|proof| !proof.tables.is_empty()) {
        let equal = proof
            .tables
            .iter()
            .filter(|it| it.result() == CheckResult::Pass)
            .count();
        rows.text = format!("{equal} of {} tables", proof.tables.len());
        rows.from = vec!["/row_proof/tables".into()];
        below = "equal to production, row by row, at one LSN".into();
    } else if let Some((at, check)) = of_check(facts, "row-proof") {
        rows.text = check.result.to_string();
        rows.from = vec![format!("/checks/{at}/result")];
    }
    tile(out, "Rows", &rows, &below);
    let signed = is_signed(&beside.signatures);
    let names: Vec<String> = beside
        .signatures
        .iter()
        .map(|it| format!("{} ({})", escaped(&it.signer), it.role))
        .collect();
    let text = Text {
        text: if signed {
            "signed".into()
        } else {
            "not signed".into()
        },
        style: Style::Plain,
        from: beside.signatures.iter().map(|it| it.file.clone()).collect(),
    };
    let below = match (signed, names.is_empty()) {
        (_, true) => "operator and reviewer have to sign".into(),
        (true, false) => names.join(", "),
        (false, false) => format!("by {} alone", names.join(", ")),
    };
    tile(out, "Signatures", &text, &below);
    out.push_str("</div>\n");
}

fn reasons(out: &mut String, verdict: &Verdict) {
    if verdict.reasons.is_empty() {
        return;
    }
    let title = match verdict.status {
        Status::PassedWithObservations => "What should be known",
        _ => "Why",
    };
    let _ = writeln!(out, "<h3>{title}</h3>\n<ul>");
    for (at, reason) in verdict.reasons.iter().enumerate().take(REASONS_MAX) {
        let mut text: String = reason.text.chars().take(420).collect();
        if text.len() < reason.text.len() {
            text.push('\u{2026}');
        }
        let _ = writeln!(
            out,
            "<li><code title=\"/reasons/{at}/code\">{}</code> <span title=\"/reasons/{at}/text\">{}</span></li>",
            escaped(&reason.code),
            escaped(&text)
        );
    }
    out.push_str("</ul>\n");
    if verdict.reasons.len() > REASONS_MAX {
        let _ = writeln!(
            out,
            "<p class=\"quiet\">All {} are listed under Issues.</p>",
            verdict.reasons.len()
        );
    }
}

fn trends(out: &mut String, facts: &Facts, beside: &Circumstances, objective_ms: Option<u64>) {
    out.push_str("<h3>From drill to drill</h3>\n");
    let newest = beside.earlier.len().saturating_sub(EARLIER_MAX);
    let (rto, rpo) = picture::series_of(facts, beside.earlier.get(newest..).unwrap_or_default());
    if rto.len() < 2 && rpo.len() < 2 {
        out.push_str("<p class=\"quiet\">There is no earlier drill of this profile to compare with.</p>\n");
        return;
    }
    let words = forecast_words(&rto, objective_ms);
    let series = [
        Series {
            title: "Recovery time",
            values: rto,
            objective: objective_ms.map(|ms| ms as f64),
            words: |ms| duration(ms.max(0.0) as u64),
        },
        Series {
            title: "Data at risk",
            values: rpo,
            objective: facts.objectives.rpo_seconds.map(|seconds| seconds as f64),
            words: |seconds| format!("{seconds:.1} s"),
        },
    ];
    out.push_str(&picture::trends(&series));
    if let Some(words) = words {
        let _ = writeln!(out, "<p class=\"quiet\">{}</p>", escaped(&words));
    }
}

/// What the line through the drills says about the objective; nothing for fewer than three.
pub fn forecast_words(
    rto_ms: &[(jiff::Timestamp, f64, String)],
    objective_ms: Option<u64>,
) -> Option<String> {
    let values: Vec<_> = rto_ms.iter().map(|(at, value, _)| (*at, *value)).collect();
    let trend = trend(&values)?;
    let month = trend.per_day * 30.44 / 1000.0;
    let mut words = format!(
        "By least squares over {} drills the recovery time changes by {month:+.1} s a month",
        trend.drills
    );
    let objective = objective_ms? as f64;
    words.push_str(&match trend.forecast(objective) {
        Forecast::Missed => "; that line is above the objective now.".to_string(),
        Forecast::Never => "; the objective is not in danger from it.".to_string(),
        Forecast::Beyond => "; the objective is not reached within ten years.".to_string(),
        Forecast::On(at) => format!("; at that rate the objective is missed from {} on.", day(at)),
    });
    Some(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_markup_after_escaping() {
        let hostile = "<script>alert('x')</script>\" onload=\"y\" & \u{1b}[2J";
        let safe = escaped(hostile);
        assert!(!safe.contains(['<', '>', '"', '\'', '\u{1b}']), "{safe}");
        assert_eq!(own_code("run `a` now"), "run <code>a</code> now");
        assert_eq!(own_code("one ` alone"), "one ` alone");
    }
}
