//! How fast memory was written: by the VM over time, and by each process.

use std::fmt::Write;

use super::axis::{Plot, Rates, Span, number, ratio};
use super::escape::{Escaped, cut, named};
use super::{LEFT, WIDTH, figure, link_legend, link_line, link_rate};
use crate::report::record::Record;
use crate::report::{Writer, bytes};

const HEIGHT: f64 = 130.0;
const ROW: f64 = 28.0;
const BAR: f64 = 14.0;
/// Processes that are drawn: the fastest.
const ROWS_MAX: usize = 16;

/// The section; nothing where nothing is known.
pub(super) fn section(record: &Record, span: Span, page: &mut String) {
    let points = points(record);
    if points.is_empty() && record.writers.is_empty() {
        return;
    }
    page.push_str("<section id=\"writing\"><h2>How fast memory was written</h2>");
    page.push_str("<p>Memory that is written while it travels must travel again. What is written faster than the link carries never gets there, as long as its writer runs.</p>");
    if !points.is_empty() {
        page.push_str(
            "<ul class=\"legend\"><li><span class=\"swatch c-dirty\"></span>written by the VM</li>",
        );
        link_legend(record, page);
        page.push_str("</ul>");
        figure(
            page,
            "dirty-rate",
            &over_time(record, &points, span),
            "The whole VM, as QEMU counts about once a second, each count over the time since the one before; a page that was written again and again between two of QEMU's looks counts once.",
        );
    }
    if !record.writers.is_empty() {
        let mut writers: Vec<&Writer> = record.writers.iter().collect();
        writers.sort_by_key(|writer| std::cmp::Reverse(writer.bytes_per_s));
        let (shown, rest) = writers.split_at(writers.len().min(ROWS_MAX));
        let mut caption = "By process: those that may be paused and have memory enough to matter, watched when the migration began. Behind each, how much memory it keeps writing, and what was done.".to_owned();
        if !rest.is_empty() {
            let sum = rest.iter().map(|writer| writer.bytes_per_s).sum();
            let _ = write!(
                caption,
                " {} more write {}/s together.",
                rest.len(),
                bytes(sum)
            );
        }
        figure(page, "writers", &by_process(record, shown), &caption);
    }
    page.push_str("</section>");
}

/// What QEMU has counted, and when it had: each count is of the time since the one before.
fn points(record: &Record) -> Vec<(u64, u64)> {
    let mut points: Vec<(u64, u64)> = Vec::new();
    for sample in &record.samples {
        let Some(rate) = sample.dirty_bytes_per_s else {
            continue;
        };
        let last = points.last().map(|(_, rate)| *rate);
        // It has counted nothing before the first pass was over.
        if last != Some(rate) && (rate > 0 || last.is_some()) {
            points.push((sample.t_ms, rate));
        }
    }
    points
}

fn over_time(record: &Record, points: &[(u64, u64)], span: Span) -> String {
    let plot = Plot {
        left: LEFT,
        top: 18.0,
        width: WIDTH - LEFT - 16.0,
        height: HEIGHT,
    };
    let link = link_rate(record);
    let most = points.iter().map(|(_, rate)| *rate).max().unwrap_or(0);
    let rates = Rates::up_to(number(most.max(link.unwrap_or(0))) * 1.05);
    let height = plot.bottom() + 26.0;
    let mut svg = format!(
        r#"<svg viewBox="0 0 {WIDTH} {height:.0}" role="img" aria-label="How fast the VM wrote memory over time">"#
    );
    rates.axis(&plot, &mut svg);
    span.axis(&plot, &mut svg);
    let y_of = |rate: u64| plot.bottom() - rates.height(&plot, number(rate));
    let mut path = format!("M{:.1} {:.1}", plot.left, plot.bottom());
    for (t_ms, rate) in points {
        let _ = write!(path, "V{:.1}H{:.1}", y_of(*rate), span.x(&plot, *t_ms));
    }
    let _ = write!(path, "V{:.1}Z", plot.bottom());
    let _ = write!(svg, r#"<path class="dirty" d="{path}"/>"#);
    link_line(&plot, rates, record, &mut svg);
    svg.push_str("</svg>");
    svg
}

fn by_process(record: &Record, writers: &[&Writer]) -> String {
    let rows = u16::try_from(writers.len()).unwrap_or(u16::MAX);
    let plot = Plot {
        left: LEFT,
        top: 22.0,
        // Room for words behind the longest bar.
        width: WIDTH - LEFT - 360.0,
        height: ROW * f64::from(rows),
    };
    let link = link_rate(record);
    let fastest = writers.iter().map(|writer| writer.bytes_per_s).max();
    let most = fastest.unwrap_or(0).max(link.unwrap_or(0)).max(1);
    let height = plot.bottom() + 8.0;
    let mut svg = format!(
        r#"<svg viewBox="0 0 {WIDTH} {height:.0}" role="img" aria-label="How fast processes wrote memory">"#
    );
    for (i, writer) in (0u16..).zip(writers) {
        let y = plot.top + ROW * f64::from(i);
        let text_y = y + ROW / 2.0 + 4.0;
        let (x, bar_y) = (plot.left, y + (ROW - BAR) / 2.0);
        let width = (plot.width * ratio(writer.bytes_per_s, most)).max(1.0);
        let name_x = x - 8.0;
        let words_x = x + plot.width + 12.0;
        let (class, verdict) = verdict(record, writer);
        let _ = write!(
            svg,
            r#"<text class="name" x="{name_x:.1}" y="{text_y:.1}" text-anchor="end">{}</text><rect class="{class}" x="{x:.1}" y="{bar_y:.1}" width="{width:.1}" height="{BAR}"/><text class="note" x="{words_x:.1}" y="{text_y:.1}">{}/s, {}; {verdict}</text>"#,
            Escaped(&cut(&named(&writer.process), 20)),
            bytes(writer.bytes_per_s),
            bytes(writer.hot_bytes)
        );
    }
    if let Some(link) = link {
        let x = plot.left + plot.width * ratio(link, most);
        let (top, bottom) = (plot.top - 4.0, plot.bottom());
        let text_y = top - 5.0;
        let _ = write!(
            svg,
            r#"<line class="limit" x1="{x:.1}" y1="{top:.1}" x2="{x:.1}" y2="{bottom:.1}"/><text class="note" x="{x:.1}" y="{text_y:.1}" text-anchor="middle">the link carries {}/s</text>"#,
            bytes(link)
        );
    }
    svg.push_str("</svg>");
    svg
}

fn verdict(record: &Record, writer: &Writer) -> (&'static str, &'static str) {
    let pid = writer.process.pid;
    if record.pauses.iter().any(|pause| pause.process.pid == pid) {
        ("c-paused", "paused")
    } else {
        ("c-live", "moved live")
    }
}
