//! Pictures as inline SVG: the phases of a recovery, the steps on a line of time, the trend from drill to drill. Every
//! bar and dot has a `title` that names where its value stands.

use std::fmt::Write;

use drill::facts::{Facts, StepOutcome};
use jiff::Timestamp;

use crate::circumstances::Earlier;
use crate::html::escaped;
use crate::words::{between_ms, day, duration};

const WIDTH: f64 = 680.0;
const COLOURS: [&str; 4] = ["#7a8ca5", "#2f6db5", "#8a6fb0", "#3a9188"];

fn open(out: &mut String, height: f64, what: &str) {
    let _ = write!(
        out,
        "<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"{}\">",
        escaped(what)
    );
}

fn text(out: &mut String, x: f64, y: f64, anchor: &str, class: &str, words: &str) {
    let _ = write!(
        out,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" class=\"{class}\">{}</text>",
        escaped(words)
    );
}

fn bar(out: &mut String, x: f64, y: f64, width: f64, height: f64, fill: &str, from: &str) {
    let _ = write!(
        out,
        "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{height:.1}\" fill=\"{fill}\"><title>{}</title></rect>",
        width.max(1.5),
        escaped(from)
    );
}

/// The phases of the recovery as one bar, with the objective as a share below.
pub fn phases(facts: &Facts, objective_ms: Option<u64>) -> String {
    let mut out = String::new();
    let Some(rto) = facts.rto.as_ref().filter(|rto| rto.total_ms > 0) else {
        return "<p>The copy did not get to its target: there are no phases to show.</p>".into();
    };
    let phases = [
        ("Planning", rto.plan_ms, "/rto/plan_ms"),
        ("Writing the data directory", rto.restore_ms, "/rto/restore_ms"),
        ("Server start", rto.start_ms, "/rto/start_ms"),
        ("Replay to the target", rto.replay_ms, "/rto/replay_ms"),
    ];
    let sum: u64 = phases.iter().map(|(_, ms, _)| ms).sum();
    let scale = WIDTH / sum.max(1) as f64;
    open(&mut out, 104.0, "Phases of the recovery");
    let mut x = 0.0;
    for ((_, ms, from), colour) in phases.iter().zip(COLOURS) {
        let width = *ms as f64 * scale;
        bar(&mut out, x, 0.0, width, 30.0, colour, from);
        let share = *ms as f64 * 100.0 / sum.max(1) as f64;
        if width > 64.0 {
            text(
                &mut out,
                x + width / 2.0,
                20.0,
                "middle",
                "on",
                &format!("{share:.0} %"),
            );
        }
        x += width;
    }
    for (at, ((name, ms, _), colour)) in phases.iter().zip(COLOURS).enumerate() {
        let (x, y) = ((at % 2) as f64 * WIDTH / 2.0, 46.0 + (at / 2) as f64 * 17.0);
        let _ = write!(
            out,
            "<rect x=\"{x:.1}\" y=\"{:.1}\" width=\"10\" height=\"10\" fill=\"{colour}\"/>",
            y - 8.5
        );
        text(
            &mut out,
            x + 16.0,
            y,
            "start",
            "key",
            &format!("{name}: {}", duration(*ms)),
        );
    }
    if let Some(objective) = objective_ms.filter(|ms| *ms > 0) {
        let share = rto.total_ms as f64 / objective as f64;
        let fill = if share > 1.0 { "#b3261e" } else { "#2e7d46" };
        let _ = write!(
            out,
            "<rect x=\"0\" y=\"78\" width=\"{WIDTH}\" height=\"7\" fill=\"#e3e7ec\"/>"
        );
        bar(
            &mut out,
            0.0,
            78.0,
            WIDTH * share.min(1.0),
            7.0,
            fill,
            "/rto/total_ms",
        );
        let words = format!(
            "{} of {} used ({:.1} %)",
            duration(rto.total_ms),
            duration(objective),
            share * 100.0
        );
        text(&mut out, 0.0, 100.0, "start", "key", &words);
    }
    out.push_str("</svg>");
    out
}

/// The steps on a line of time.
pub fn steps(facts: &Facts) -> String {
    let mut out = String::new();
    if facts.steps.is_empty() {
        return out;
    }
    let end = facts
        .steps
        .iter()
        .map(|step| between_ms(facts.started_at, step.started_at) + step.duration_ms)
        .max()
        .unwrap_or(1)
        .max(1);
    let (left, right, row, line) = (300.0, 84.0, 17.0, 12.0);
    let scale = (WIDTH - left - right) / end as f64;
    let titles: Vec<Vec<String>> = facts.steps.iter().map(|step| wrapped(&step.title)).collect();
    let further: usize = titles.iter().map(|lines| lines.len() - 1).sum();
    open(
        &mut out,
        titles.len() as f64 * row + further as f64 * line + 4.0,
        "Steps of the drill",
    );
    let mut y = 0.0;
    for (at, (step, title)) in facts.steps.iter().zip(&titles).enumerate() {
        for (number, words) in title.iter().enumerate() {
            text(
                &mut out,
                0.0,
                y + 12.0 + number as f64 * line,
                "start",
                "key",
                words,
            );
        }
        let x = left + between_ms(facts.started_at, step.started_at) as f64 * scale;
        let width = step.duration_ms as f64 * scale;
        let (fill, words) = match step.outcome {
            StepOutcome::Done => ("#2f6db5", duration(step.duration_ms)),
            StepOutcome::Failed => ("#b3261e", format!("failed, {}", duration(step.duration_ms))),
            StepOutcome::Skipped => ("#c5ccd6", "not tried".into()),
        };
        bar(
            &mut out,
            x,
            y + 3.0,
            width,
            10.0,
            fill,
            &format!("/steps/{at}/duration_ms"),
        );
        text(
            &mut out,
            x + width.max(1.5) + 5.0,
            y + 12.0,
            "start",
            "key",
            &words,
        );
        y += row + (title.len() - 1) as f64 * line;
    }
    out.push_str("</svg>");
    out
}

/// A title in lines that fit beside the bars; at least one.
fn wrapped(title: &str) -> Vec<String> {
    const CHARACTERS_MAX: usize = 52;
    let mut lines = vec![String::new()];
    for word in title.split_whitespace() {
        let letters: Vec<char> = word.chars().collect();
        for (number, piece) in letters.chunks(CHARACTERS_MAX).enumerate() {
            let Some(line) = lines.last_mut() else { break };
            let taken = line.chars().count();
            let space = usize::from(taken > 0 && number == 0);
            if taken > 0 && taken + space + piece.len() > CHARACTERS_MAX {
                lines.push(piece.iter().collect());
            } else {
                line.extend(std::iter::repeat_n(' ', space).chain(piece.iter().copied()));
            }
        }
    }
    lines
}

/// One value from drill to drill.
pub struct Series<'a> {
    pub title: &'a str,
    pub values: Values,
    pub objective: Option<f64>,
    /// A value for people.
    pub words: fn(f64) -> String,
}

/// Moments with a value, and where it stands.
pub type Values = Vec<(Timestamp, f64, String)>;

/// Recovery times and losses of earlier drills and of this one.
pub fn series_of(facts: &Facts, earlier: &[Earlier]) -> (Values, Values) {
    let mut rto = Vec::new();
    let mut rpo = Vec::new();
    for drill in earlier.iter().filter(|it| it.profile == facts.identity.profile) {
        if let Some(ms) = drill.rto_ms {
            rto.push((
                drill.started_at,
                ms as f64,
                format!("{}/facts.json#/rto/total_ms", drill.drill),
            ));
        }
        if let Some(seconds) = drill.rpo_seconds {
            rpo.push((
                drill.started_at,
                seconds,
                format!("{}/facts.json#/rpo/seconds", drill.drill),
            ));
        }
    }
    if let Some(it) = &facts.rto {
        rto.push((facts.started_at, it.total_ms as f64, "/rto/total_ms".into()));
    }
    if let Some(seconds) = facts.rpo.as_ref().and_then(|rpo| rpo.seconds) {
        rpo.push((facts.started_at, seconds, "/rpo/seconds".into()));
    }
    (rto, rpo)
}

/// A chart of each series, side by side.
pub fn trends(series: &[Series<'_>]) -> String {
    let mut out = String::new();
    let (height, gap) = (118.0, 28.0);
    let width = (WIDTH - gap) / 2.0;
    open(&mut out, height, "Trend from drill to drill");
    for (number, series) in series.iter().enumerate() {
        let left = number as f64 * (width + gap);
        text(&mut out, left, 11.0, "start", "head", series.title);
        let highest = series
            .values
            .iter()
            .map(|(_, value, _)| *value)
            .fold(0.0, f64::max);
        // An objective far above everything would flatten the line to nothing: it is said in words.
        let drawn = series
            .objective
            .filter(|objective| *objective <= highest * 3.0 && *objective > 0.0);
        let top = highest.max(drawn.unwrap_or(0.0)).max(f64::MIN_POSITIVE) * 1.15;
        let (floor, room) = (96.0, 74.0);
        let first = series
            .values
            .first()
            .map_or(Timestamp::UNIX_EPOCH, |(at, _, _)| *at);
        let last = series.values.last().map_or(first, |(at, _, _)| *at);
        let span = between_ms(first, last).max(1) as f64;
        let place = |at: Timestamp, value: f64| {
            let share = match series.values.len() {
                1 => 0.5,
                _ => between_ms(first, at) as f64 / span,
            };
            (left + 6.0 + share * (width - 12.0), floor - value / top * room)
        };
        let _ = write!(
            out,
            "<line x1=\"{left:.1}\" y1=\"{floor}\" x2=\"{:.1}\" y2=\"{floor}\" stroke=\"#9aa6b5\"/>",
            left + width
        );
        if let Some(objective) = drawn {
            let (_, y) = place(first, objective);
            let _ = write!(
                out,
                "<line x1=\"{left:.1}\" y1=\"{y:.1}\" x2=\"{:.1}\" y2=\"{y:.1}\" stroke=\"#b3261e\" stroke-dasharray=\"5 4\"/>",
                left + width
            );
        }
        let points: Vec<String> = series
            .values
            .iter()
            .map(|(at, value, _)| {
                let (x, y) = place(*at, *value);
                format!("{x:.1},{y:.1}")
            })
            .collect();
        let _ = write!(
            out,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"#2f6db5\" stroke-width=\"2\"/>",
            points.join(" ")
        );
        for (at, value, from) in &series.values {
            let (x, y) = place(*at, *value);
            let _ = write!(
                out,
                "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.2\" fill=\"#2f6db5\"><title>{}</title></circle>",
                escaped(from)
            );
        }
        if let Some((_, value, _)) = series.values.last() {
            let objective = series.objective.map_or_else(String::new, |objective| {
                format!(" (objective {})", (series.words)(objective))
            });
            let words = format!("{}{objective}", (series.words)(*value));
            text(&mut out, left + width, 11.0, "end", "key", &words);
        }
        text(&mut out, left, 111.0, "start", "key", &day(first));
        if series.values.len() > 1 {
            text(&mut out, left + width, 111.0, "end", "key", &day(last));
        }
    }
    out.push_str("</svg>");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_title_is_wrapped_and_nothing_of_it_is_lost() {
        let title = "Recover the same point from another backup, and compare every relation of both versions";
        let lines = wrapped(title);
        assert!(
            lines.len() == 2 && lines.iter().all(|line| line.chars().count() <= 52),
            "{lines:?}"
        );
        assert_eq!(lines.join(" "), title);
        let word = "x".repeat(120);
        let lines = wrapped(&word);
        assert_eq!((lines.len(), lines.concat()), (3, word));
        assert_eq!(wrapped(""), [""]);
    }
}
