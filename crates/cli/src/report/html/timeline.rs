//! What went over the network when, and why then.

use std::fmt::Write;

use super::axis::{Plot, Rates, Span, number, seconds};
use super::bins::{Bin, CLASSES, bins, sums};
use super::marks::Labels;
use super::{LEFT, WIDTH, figure, link_legend, link_line, link_rate, whole};
use crate::report::bytes;
use crate::report::record::{MarkKind, Record};

const HEIGHT: f64 = 230.0;

/// The section; nothing where nothing was sent.
pub(super) fn section(record: &Record, span: Span, page: &mut String) {
    if record.migration_from_ms.is_none() || record.samples.is_empty() {
        return;
    }
    page.push_str("<section id=\"timeline\"><h2>What went over the network</h2>");
    let sums = sums(&record.samples);
    page.push_str("<ul class=\"legend\">");
    for (class, sum) in CLASSES.iter().zip(sums).filter(|(_, sum)| *sum > 0) {
        let _ = write!(
            page,
            "<li title=\"{}\"><span class=\"swatch c-{}\"></span>{} <b>{}</b></li>",
            class.meaning,
            class.key,
            class.word,
            bytes(sum)
        );
    }
    if stopped(record).is_some() {
        page.push_str("<li><span class=\"swatch c-stop\"></span>the VM is stopped</li>");
    }
    link_legend(record, page);
    page.push_str("</ul>");
    let bins = bins(&record.samples, span);
    let length = bins.first().map_or(0.0, Bin::seconds);
    let caption = format!(
        "Bytes a second on the connection, in steps of {length} s. {} Times count from the start of QEMU's migration.",
        meanings(&sums)
    );
    figure(page, "timeline", &chart(record, &bins, span), &caption);
    page.push_str("</section>");
}

fn meanings(sums: &[u64; 6]) -> String {
    let mut text = String::new();
    for (class, _) in CLASSES.iter().zip(sums).filter(|(_, sum)| **sum > 0) {
        let _ = write!(text, "<b>{}</b>: {}. ", class.word, class.meaning);
    }
    text
}

/// When the VM stood, source and destination together; up to the end where it is not known to
/// have run again.
pub(super) fn stopped(record: &Record) -> Option<(u64, u64)> {
    let from = record.stopped_at_ms?;
    let runs = record
        .marks
        .iter()
        .rfind(|mark| mark.kind == MarkKind::Running);
    Some((from, runs.map_or(record.ended_at_ms, |mark| mark.t_ms)))
}

fn chart(record: &Record, bins: &[Bin], span: Span) -> String {
    let mut plot = Plot {
        left: LEFT,
        top: 0.0,
        width: WIDTH - LEFT - 16.0,
        height: HEIGHT,
    };
    let labels = Labels::of(record, span, &plot);
    plot.top = labels.height() + 12.0;
    let fastest = bins.iter().map(Bin::rate).fold(0.0, f64::max);
    let rates = Rates::up_to(fastest.max(link_rate(record).map_or(0.0, number)) * 1.05);
    let height = plot.bottom() + 26.0;
    let mut svg = format!(
        r#"<svg viewBox="0 0 {WIDTH} {height:.0}" role="img" aria-label="Bytes a second on the connection over time, by class">"#
    );
    rates.axis(&plot, &mut svg);
    span.axis(&plot, &mut svg);
    if let Some((from, to)) = stopped(record) {
        let (x, end) = (span.x(&plot, from), span.x(&plot, to));
        let (width, top, height) = ((end - x).max(1.5), plot.top, plot.height);
        let _ = write!(
            svg,
            r#"<rect class="band" x="{x:.1}" y="{top:.1}" width="{width:.1}" height="{height:.1}"><title>the VM is stopped for {}</title></rect>"#,
            seconds(to.saturating_sub(from))
        );
    }
    for bin in bins {
        bar(bin, &plot, span, rates, &mut svg);
    }
    link_line(&plot, rates, record, &mut svg);
    labels.draw(&plot, &mut svg);
    svg.push_str("</svg>");
    svg
}

fn bar(bin: &Bin, plot: &Plot, span: Span, rates: Rates, svg: &mut String) {
    let (x, end) = (span.x(plot, bin.from), span.x(plot, bin.to));
    let width = (end - x - 1.0).max(0.5);
    let mut title = format!("{} to {}:", span.clock(bin.from), span.clock(bin.to));
    let mut parts = String::new();
    let mut y = plot.bottom();
    for (class, sum) in CLASSES.iter().zip(bin.bytes) {
        let height = rates.height(plot, sum / bin.seconds());
        if sum < 1.0 {
            continue;
        }
        let _ = write!(title, " {} {},", class.word, bytes(whole(sum)));
        y -= height;
        if height >= 0.05 {
            let _ = write!(
                parts,
                r#"<rect class="c-{}" x="{x:.1}" y="{y:.2}" width="{width:.1}" height="{height:.2}"/>"#,
                class.key
            );
        }
    }
    if !parts.is_empty() {
        let title = title.trim_end_matches(',');
        let _ = write!(svg, "<g><title>{title}</title>{parts}</g>");
    }
}
