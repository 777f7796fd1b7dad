//! Who was paused, when and for how long.

use std::fmt::Write;

use super::axis::{Plot, Span, number, seconds};
use super::escape::{Escaped, cut, named};
use super::timeline::stopped;
use super::{LEFT, WIDTH, figure};
use crate::report::duration_ms;
use crate::report::record::{Outcome, Pause, Record};

const ROW: f64 = 30.0;
const BAR: f64 = 16.0;
/// Processes that are drawn; the table has all of them.
const ROWS_MAX: usize = 20;

/// The section; nothing where the migration did not begin.
pub(super) fn section(record: &Record, span: Span, page: &mut String) {
    if record.migration_from_ms.is_none() {
        return;
    }
    page.push_str("<section id=\"pauses\"><h2>Who stood still, and for how long</h2>");
    let more = record.pauses.len().saturating_sub(ROWS_MAX);
    let mut caption = match record.pauses.len() {
        0 => "The VM as a whole; no process was paused.".to_owned(),
        _ => "The VM as a whole, and each process that was paused; everybody else ran whenever the VM did.".to_owned(),
    };
    if more > 0 {
        let _ = write!(caption, " {more} more are in the table.");
    }
    page.push_str("<ul class=\"legend\"><li><span class=\"swatch c-run\"></span>runs</li>");
    if !record.pauses.is_empty() {
        page.push_str("<li><span class=\"swatch c-paused\"></span>paused</li>");
    }
    if stopped(record).is_some() {
        page.push_str("<li><span class=\"swatch c-stop\"></span>the VM is stopped</li>");
    }
    page.push_str("</ul>");
    figure(page, "pauses", &chart(record, span), &caption);
    if !record.pauses.is_empty() {
        table(record, span, page);
    }
    if !record.moved_live.is_empty() {
        page.push_str("<h3>Could have been paused, and was not</h3><div class=\"scroll\"><table><thead><tr><th>Process</th><th>Why it was moved live</th></tr></thead><tbody>");
        for spared in &record.moved_live {
            let _ = write!(
                page,
                "<tr><td><bdi>{}</bdi></td><td>{}</td></tr>",
                Escaped(&named(&spared.process)),
                Escaped(&cut(&spared.why, 300))
            );
        }
        page.push_str("</tbody></table></div>");
    }
    page.push_str("</section>");
}

fn chart(record: &Record, span: Span) -> String {
    let shown = &record.pauses[..record.pauses.len().min(ROWS_MAX)];
    let rows = u16::try_from(shown.len() + 1).unwrap_or(u16::MAX);
    let plot = Plot {
        left: LEFT,
        top: 6.0,
        width: WIDTH - LEFT - 16.0,
        height: ROW * f64::from(rows),
    };
    let height = plot.bottom() + 26.0;
    let mut svg = format!(
        r#"<svg viewBox="0 0 {WIDTH} {height:.0}" role="img" aria-label="Who stood still when">"#
    );
    span.axis(&plot, &mut svg);
    let mut y = plot.top;
    label(&mut svg, y, "the VM");
    let end = span.from + span.length();
    match stopped(record) {
        Some((from, to)) => {
            segment(&mut svg, &plot, span, y, "c-run", (span.from, from));
            segment(&mut svg, &plot, span, y, "c-stop", (from, to));
            if matches!(&record.outcome, Some(Outcome::Moved(summary)) if summary.running_at_destination)
            {
                segment(&mut svg, &plot, span, y, "c-run", (to, end));
            }
            length(
                &mut svg,
                &plot,
                span,
                y,
                (from, to),
                &stopped_for(record, to - from),
            );
        }
        None => segment(&mut svg, &plot, span, y, "c-run", (span.from, end)),
    }
    for pause in shown {
        y += ROW;
        label(&mut svg, y, &named(&pause.process));
        let until = pause.until_ms.unwrap_or(end).min(end);
        segment(
            &mut svg,
            &plot,
            span,
            y,
            "c-run",
            (span.from, pause.from_ms),
        );
        segment(&mut svg, &plot, span, y, "c-paused", (pause.from_ms, until));
        segment(&mut svg, &plot, span, y, "c-run", (until, end));
        let text = pause
            .length_ms()
            .map_or("until when is not known".to_owned(), seconds);
        length(&mut svg, &plot, span, y, (pause.from_ms, until), &text);
    }
    svg.push_str("</svg>");
    svg
}

/// The downtime as it was measured, where it was.
fn stopped_for(record: &Record, seen_ms: u64) -> String {
    match &record.outcome {
        Some(Outcome::Moved(summary)) => match summary.downtime_ms {
            Some(ms) => format!("stopped for {}", duration_ms(ms)),
            None => "stopped".to_owned(),
        },
        _ => format!("stopped for {}", seconds(seen_ms)),
    }
}

fn label(svg: &mut String, y: f64, text: &str) {
    let (x, y) = (LEFT - 8.0, y + ROW / 2.0 + 4.0);
    let _ = write!(
        svg,
        r#"<text class="name" x="{x:.1}" y="{y:.1}" text-anchor="end">{}</text>"#,
        Escaped(&cut(text, 20))
    );
}

fn segment(svg: &mut String, plot: &Plot, span: Span, y: f64, class: &str, (from, to): (u64, u64)) {
    if to <= from {
        return;
    }
    let (x, end) = (span.x(plot, from), span.x(plot, to));
    let (width, y) = ((end - x).max(2.0), y + (ROW - BAR) / 2.0);
    let _ = write!(
        svg,
        r#"<rect class="{class}" x="{x:.1}" y="{y:.1}" width="{width:.1}" height="{BAR}"><title>{} to {}</title></rect>"#,
        span.clock(from),
        span.clock(to)
    );
}

/// How long: within its segment if it fits, else beside it, where there is more room.
fn length(svg: &mut String, plot: &Plot, span: Span, y: f64, (from, to): (u64, u64), text: &str) {
    let (x, end) = (span.x(plot, from), span.x(plot, to));
    let width = 8.0 * number(text.chars().count() as u64);
    let (class, at, anchor) = if width < end - x {
        ("inside", (x + end) / 2.0, "middle")
    } else if x - plot.left > plot.right() - end {
        ("note", x - 6.0, "end")
    } else {
        ("note", end + 6.0, "start")
    };
    let y = y + ROW / 2.0 + 4.0;
    let _ = write!(
        svg,
        r#"<text class="{class}" x="{at:.1}" y="{y:.1}" text-anchor="{anchor}">{}</text>"#,
        Escaped(text)
    );
}

fn table(record: &Record, span: Span, page: &mut String) {
    page.push_str("<div class=\"scroll\"><table><thead><tr><th>Process</th><th class=\"n\">From</th><th class=\"n\">To come to a stand</th><th class=\"n\">Expected</th><th class=\"n\">Paused for</th><th>What ended it</th></tr></thead><tbody>");
    for pause in &record.pauses {
        row(pause, span, page);
    }
    page.push_str("</tbody></table></div>");
}

fn row(pause: &Pause, span: Span, page: &mut String) {
    let stood = pause
        .stood_ms
        .map(|stood| stood.saturating_sub(pause.from_ms));
    let unknown = || "unknown".to_owned();
    let _ = write!(
        page,
        "<tr><td><bdi>{}</bdi></td><td class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"n\"><b>{}</b></td><td>{}</td></tr>",
        Escaped(&named(&pause.process)),
        span.clock(pause.from_ms),
        stood.map_or_else(|| "it did not".to_owned(), seconds),
        duration_ms(pause.expected_ms),
        pause.length_ms().map_or_else(unknown, seconds),
        Escaped(pause.ended.as_deref().unwrap_or("not known"))
    );
}
