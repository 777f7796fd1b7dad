//! The report as a page: one file, no script, nothing fetched, light and dark, on screen and on
//! paper. Pure: what was recorded goes in, a text comes out; whatever comes from the guest or the
//! destination goes through [`escape`].

mod axis;
mod bins;
mod escape;
mod figures;
mod graph;
mod layout;
mod marks;
mod pauses;
mod story;
mod timeline;
mod writing;

use std::fmt::Write;

use super::record::{Outcome, Pause, Record};
use super::{bytes, rate};
use axis::{Plot, Rates, Span};
use escape::Escaped;

/// Width of a chart in pixels of its own.
const WIDTH: f64 = 1000.0;
/// Of these, for names and units at the left: the same in all charts, so that moments are below
/// each other.
const LEFT: f64 = 158.0;

const STYLE: &str = include_str!("style.css");

/// The page.
pub(crate) fn page(record: &Record) -> String {
    let headline = story::headline(record);
    let mut page = format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"><meta name=\"color-scheme\" content=\"light dark\"><meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\"><link rel=\"icon\" href=\"data:,\"><title>{0}</title><style>{STYLE}</style></head><body><main><header class=\"{1}\"><p class=\"kicker\">Migration report</p><h1>{0}</h1>",
        Escaped(&headline),
        match &record.outcome {
            Some(Outcome::Moved(_)) => "moved",
            _ => "not-moved",
        }
    );
    story::paragraphs(record, &mut page);
    page.push_str("<div class=\"tiles\">");
    for (word, figure, below) in story::tiles(record) {
        let _ = write!(
            page,
            "<div class=\"tile\"><span class=\"word\">{word}</span><span class=\"figure\">{}</span><span class=\"below\">{}</span></div>",
            Escaped(&figure),
            Escaped(&below)
        );
    }
    page.push_str("</div></header>");
    let span = span(record);
    timeline::section(record, span, &mut page);
    pauses::section(record, span, &mut page);
    writing::section(record, span, &mut page);
    graph::section(record, &mut page);
    figures::forecast(record, &mut page);
    figures::section(record, &mut page);
    figures::log(record, &mut page);
    let _ = writeln!(
        page,
        "<footer>Written by {} at the source{}. The file of the same name with the ending .json has the same as data.</footer></main></body></html>",
        Escaped(&record.software),
        match &record.session {
            Some(session) => format!("; both halves know this migration as {}", Escaped(session)),
            None => String::new(),
        }
    );
    page
}

/// From the start of QEMU's migration to the end of all that charts show.
fn span(record: &Record) -> Span {
    let from = record.migration_from_ms.unwrap_or(0);
    let to = match &record.outcome {
        Some(Outcome::Moved(summary)) => {
            let pauses = record.pauses.iter().filter_map(|pause| pause.until_ms);
            let last = pauses.max().unwrap_or(0);
            last.max(from + whole(summary.total_ms))
        }
        _ => record.ended_at_ms,
    };
    Span { from, to }
}

/// What the link carries, as far as that was seen, in bytes a second.
fn link_rate(record: &Record) -> Option<u64> {
    let rates = record.samples.iter();
    rates.filter_map(|sample| sample.link_bytes_per_s).max()
}

/// What the dashed line in a chart is, for its legend.
fn link_legend(record: &Record, page: &mut String) {
    if let Some(link) = link_rate(record) {
        let _ = write!(
            page,
            "<li><span class=\"dash\"></span>what the link carries <b>{}/s</b> ({})</li>",
            bytes(link),
            rate(link)
        );
    }
}

/// The dashed line of what the link carries.
fn link_line(plot: &Plot, rates: Rates, record: &Record, svg: &mut String) {
    if let Some(link) = link_rate(record) {
        let y = plot.bottom() - rates.height(plot, axis::number(link));
        let (left, right) = (plot.left, plot.right());
        let _ = write!(
            svg,
            r#"<line class="limit" x1="{left:.1}" y1="{y:.1}" x2="{right:.1}" y2="{y:.1}"/>"#
        );
    }
}

/// A drawing with its caption, which may hold tags.
fn figure(page: &mut String, id: &str, svg: &str, caption: &str) {
    let _ = write!(
        page,
        "<figure id=\"chart-{id}\"><div class=\"scroll\">{svg}</div><figcaption>{caption}</figcaption></figure>"
    );
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "bytes or milliseconds, which are not negative"
)]
fn whole(number: f64) -> u64 {
    number.round() as u64
}

#[cfg(test)]
mod tests;
