//! Who depends on the outside: a drawing, and a table with the reasons.

use std::fmt::Write;

use super::axis::number;
use super::escape::{Escaped, cut, listed};
use super::figure;
use super::layout::{Layout, Node, Place, is_paused};
use crate::report::record::{Process, Record};
use crate::report::{bytes, count};

const BOX: (f64, f64) = (228.0, 40.0);
const GAP: (f64, f64) = (46.0, 10.0);
const TOP: f64 = 30.0;
const MARGIN: f64 = 2.0;
/// Boxes side by side: as many as the columns at most.
const PER_ROW: usize = 4;
/// Characters that fit a box.
const TITLE_MAX: usize = 27;
const DETAIL_MAX: usize = 34;
/// Characters of a reason in the table.
const STEP_MAX: usize = 160;
/// Rows of the table that are there at once; the rest is folded.
const ROWS_MAX: usize = 60;

/// The section; nothing where no agent told anything.
pub(super) fn section(record: &Record, page: &mut String) {
    if record.processes.is_empty() {
        return;
    }
    page.push_str("<section id=\"dependencies\"><h2>Who depends on the outside, and why</h2>");
    let window = match record.window_ms {
        Some(ms) => format!(" during {}", super::axis::seconds(ms)),
        None => String::new(),
    };
    let _ = write!(
        page,
        "<p>A process that exchanges data with the world outside the VM, or with a process that does, stays live: somebody could notice if it stood. An arrow leads from each process to the one through which it is connected, as seen{window} at the migration's beginning.</p>"
    );
    let hubs: Vec<String> = record
        .processes
        .iter()
        .filter(|process| process.class == "sink")
        .map(|process| format!("<bdi>{}</bdi>", Escaped(&process.name)))
        .collect();
    let mut caption = "Processes of one name and one reason share a box, and so do the many small ones; the table has them all.".to_owned();
    if !hubs.is_empty() {
        let (shown, more) = hubs.split_at(hubs.len().min(12));
        let mut shown = shown.to_vec();
        if !more.is_empty() {
            shown.push(format!("{} more", more.len()));
        }
        let _ = write!(
            caption,
            " Live, but passing dependency on to nobody (hubs that everybody talks to): {}.",
            listed(&shown)
        );
    }
    figure(page, "graph", &drawing(&Layout::of(record)), &caption);
    tables(record, page);
    page.push_str("</section>");
}

fn drawing(layout: &Layout) -> String {
    let tallest = layout.columns.iter().map(|column| column.nodes.len()).max();
    let body = above(tallest.unwrap_or(0));
    let (width, free_top) = (across(PER_ROW), TOP + body + TOP + 8.0);
    // Arrows within the last column go around its right side.
    let within = layout.arrows.iter().any(|(from, to)| from.0 == to.0);
    let width = width + if within { GAP.0 } else { 0.0 };
    let height = match layout.free.len() {
        0 => TOP + body,
        count => free_top + above(count.div_ceil(PER_ROW)),
    };
    let mut svg = format!(
        r#"<svg class="natural" viewBox="0 0 {width:.0} {height:.0}" width="{width:.0}" role="img" aria-label="Which processes are connected with the outside, and through which others"><defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto"><path d="M0 0L8 4L0 8z"/></marker></defs>"#
    );
    let place = |(column, row): Place| {
        let nodes = layout.columns[column].nodes.len();
        let y = TOP + (body - above(nodes)) / 2.0 + above(row);
        (MARGIN + number(column as u64) * (BOX.0 + GAP.0), y)
    };
    for (from, to) in &layout.arrows {
        arrow(place(*from), place(*to), &mut svg);
    }
    for (at, column) in layout.columns.iter().enumerate() {
        heading(
            MARGIN + number(at as u64) * (BOX.0 + GAP.0),
            14.0,
            column.heading,
            &mut svg,
        );
        for (row, node) in column.nodes.iter().enumerate() {
            draw(node, column.class, place((at, row)), &mut svg);
        }
    }
    if !layout.free.is_empty() {
        let text = "may pause: no contact with the outside was seen, or a rule lets them";
        heading(MARGIN, free_top - 16.0, text, &mut svg);
    }
    for (i, node) in layout.free.iter().enumerate() {
        let (row, column) = (i / PER_ROW, number((i % PER_ROW) as u64));
        let place = (MARGIN + column * (BOX.0 + GAP.0), free_top + above(row));
        draw(node, "free", place, &mut svg);
    }
    svg.push_str("</svg>");
    svg
}

/// Height of so many boxes, with a gap below each.
fn above(rows: usize) -> f64 {
    number(rows as u64) * (BOX.1 + GAP.1)
}

fn across(columns: usize) -> f64 {
    number(columns as u64) * (BOX.0 + GAP.0) - GAP.0 + 2.0 * MARGIN
}

fn heading(x: f64, y: f64, text: &str, svg: &mut String) {
    let _ = write!(
        svg,
        r#"<text class="heading" x="{x:.1}" y="{y:.1}">{text}</text>"#
    );
}

fn arrow((x, y): (f64, f64), (end_x, end_y): (f64, f64), svg: &mut String) {
    let (y, end_y, bend) = (y + BOX.1 / 2.0, end_y + BOX.1 / 2.0, GAP.0 * 0.7);
    let end_x = end_x + BOX.0 + 2.0;
    // From the left side to the next column; within a column around the right side.
    let (x, out) = match x < end_x {
        true => (end_x - 2.0, end_x + bend),
        false => (x, x - bend),
    };
    let back = end_x + bend;
    let _ = write!(
        svg,
        r#"<path class="arrow" marker-end="url(#tip)" d="M{x:.1} {y:.1}C{out:.1} {y:.1} {back:.1} {end_y:.1} {end_x:.1} {end_y:.1}"/>"#
    );
}

fn draw(node: &Node, class: &str, (x, y): (f64, f64), svg: &mut String) {
    let (width, height) = BOX;
    let paused = if node.paused { " is-paused" } else { "" };
    let (text_x, title_y, detail_y) = (x + 14.0, y + 17.0, y + 32.0);
    let _ = write!(
        svg,
        r#"<g class="node n-{class}{paused}"><title>{}</title><rect class="box" x="{x:.1}" y="{y:.1}" width="{width}" height="{height}" rx="5"/><rect class="edge" x="{x:.1}" y="{y:.1}" width="5" height="{height}" rx="2"/><text class="what" x="{text_x:.1}" y="{title_y:.1}">{}</text><text class="detail" x="{text_x:.1}" y="{detail_y:.1}">{}</text></g>"#,
        Escaped(&node.full),
        Escaped(&cut(&node.title, TITLE_MAX)),
        Escaped(&cut(&node.detail, DETAIL_MAX))
    );
}

fn tables(record: &Record, page: &mut String) {
    let mut processes: Vec<&Process> = record.processes.iter().collect();
    processes.sort_by_key(|process| {
        let distance = process.distance.unwrap_or(u32::MAX);
        let memory = std::cmp::Reverse(process.anonymous_bytes);
        (!is_paused(record, process.pid), distance, memory)
    });
    let (first, rest) = processes.split_at(processes.len().min(ROWS_MAX));
    table(record, first, page);
    if !rest.is_empty() {
        let _ = write!(
            page,
            "<details><summary>{} more processes</summary>",
            count(rest.len() as u64)
        );
        table(record, rest, page);
        page.push_str("</details>");
    }
    if record.processes_left_out > 0 {
        let _ = write!(
            page,
            "<p class=\"muted\">{} processes more are not listed.</p>",
            count(record.processes_left_out as u64)
        );
    }
}

fn table(record: &Record, processes: &[&Process], page: &mut String) {
    page.push_str("<div class=\"scroll\"><table class=\"processes\"><thead><tr><th>Class</th><th class=\"n\">Id</th><th>Process</th><th class=\"n\">Memory</th><th>Why</th></tr></thead><tbody>");
    for process in processes {
        let paused = is_paused(record, process.pid);
        let _ = write!(
            page,
            "<tr><td><span class=\"chip k-{}\">{}</span>{}</td><td class=\"n\">{}</td><td><bdi title=\"{}\">{}</bdi></td><td class=\"n\">{}</td><td>",
            Escaped(process.class),
            Escaped(process.class),
            if paused {
                " <span class=\"chip k-paused\">paused</span>"
            } else {
                ""
            },
            process.pid,
            Escaped(&process.command),
            Escaped(&cut(&process.name, TITLE_MAX)),
            bytes(process.anonymous_bytes)
        );
        match process.why.as_slice() {
            [] if process.may_pause => {
                page.push_str("<span class=\"muted\">no exchange with the outside was seen</span>");
            }
            why => {
                for (i, step) in why.iter().enumerate() {
                    let arrow = if i > 0 {
                        " <span class=\"muted\">→</span> "
                    } else {
                        ""
                    };
                    let _ = write!(page, "{arrow}<bdi>{}</bdi>", Escaped(&cut(step, STEP_MAX)));
                }
            }
        }
        page.push_str("</td></tr>");
    }
    page.push_str("</tbody></table></div>");
}
