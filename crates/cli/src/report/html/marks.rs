//! What happened when, as lines through a chart with labels above it that touch neither each
//! other nor the line of another.

use std::fmt::Write;

use super::axis::{Plot, Span};
use super::escape::{Escaped, cut};
use crate::report::record::{Mark, MarkKind, Record};

/// Height of a row of labels.
const ROW: f64 = 18.0;
/// Most rows; what finds no place has a line and no label.
const ROWS_MAX: usize = 7;
/// Width of a character of a label, about.
const CHARACTER: f64 = 7.3;
/// Two of a kind that are nearer than this are told as one, in pixels.
const NEAR: f64 = 14.0;

/// A mark and its label.
#[derive(Debug)]
struct Label {
    kind: MarkKind,
    x: f64,
    text: String,
    title: String,
    /// The label is at the left of its line.
    before: bool,
    row: Option<usize>,
}

impl Label {
    fn extent(&self) -> (f64, f64) {
        let width = CHARACTER
            * f64::from(u16::try_from(self.text.chars().count()).unwrap_or(u16::MAX))
            + 12.0;
        match self.before {
            true => (self.x - width, self.x),
            false => (self.x, self.x + width),
        }
    }
}

/// The labels of a chart, laid out for a plot of this width and left edge.
#[derive(Debug)]
pub(super) struct Labels(Vec<Label>);

impl Labels {
    /// Lays out what is worth a line.
    pub(super) fn of(record: &Record, span: Span, plot: &Plot) -> Self {
        let mut labels: Vec<Label> = Vec::new();
        let mut counts: Vec<usize> = Vec::new();
        for mark in &record.marks {
            let Some(word) = word(mark.kind) else {
                continue;
            };
            let x = span.x(plot, mark.t_ms);
            let same = labels.iter().rposition(|label| label.kind == mark.kind);
            if let Some(at) = same
                && (x - labels[at].x < NEAR || mark.kind == MarkKind::Stalled)
            {
                counts[at] += 1;
                labels[at].text = format!("{} × {word}", counts[at]);
                labels[at].title += "; ";
                labels[at].title += &mark.text;
                continue;
            }
            counts.push(1);
            labels.push(Label {
                kind: mark.kind,
                x,
                text: format!("{} {}", word, span.clock(mark.t_ms)),
                title: title(mark, span),
                before: x > plot.left + plot.width * 0.55,
                row: None,
            });
        }
        place(&mut labels);
        Labels(labels)
    }

    /// The height that the labels take above the plot.
    pub(super) fn height(&self) -> f64 {
        let rows = self.0.iter().filter_map(|label| label.row).max();
        rows.map_or(0.0, |row| {
            ROW * f64::from(u8::try_from(row + 1).unwrap_or(u8::MAX)) + 4.0
        })
    }

    /// Draws lines and labels.
    pub(super) fn draw(&self, plot: &Plot, svg: &mut String) {
        for label in &self.0 {
            let class = class(label.kind);
            let row = label
                .row
                .map(|row| ROW * f64::from(u8::try_from(row).unwrap_or(u8::MAX)));
            let text_y = plot.top - 8.0 - row.unwrap_or(0.0);
            let top = if row.is_some() {
                text_y - 9.0
            } else {
                plot.top
            };
            let (x, bottom) = (label.x, plot.bottom());
            let _ = write!(
                svg,
                r#"<g class="mark {class}"><title>{}</title><line x1="{x:.1}" y1="{top:.1}" x2="{x:.1}" y2="{bottom:.1}"/>"#,
                Escaped(&cut(&label.title, 400))
            );
            if row.is_some() {
                let (text_x, anchor) = match label.before {
                    true => (x - 5.0, "end"),
                    false => (x + 5.0, "start"),
                };
                let _ = write!(
                    svg,
                    r#"<text x="{text_x:.1}" y="{text_y:.1}" text-anchor="{anchor}">{}</text>"#,
                    Escaped(&label.text)
                );
            }
            svg.push_str("</g>");
        }
    }
}

/// Gives each label the lowest row in which it is in nobody's way.
fn place(labels: &mut [Label]) {
    let mut order: Vec<usize> = (0..labels.len()).collect();
    // Labels before their lines rise to the right, those behind them to the left.
    order.sort_by(|a, b| {
        let key = |i: &usize| {
            let label = &labels[*i];
            (!label.before, if label.before { label.x } else { -label.x })
        };
        let (a, b) = (key(a), key(b));
        a.0.cmp(&b.0).then(a.1.total_cmp(&b.1))
    });
    for at in order {
        let (from, to) = labels[at].extent();
        let x = labels[at].x;
        let free = |row: usize| {
            labels.iter().all(|other| {
                let Some(theirs) = other.row else {
                    return true;
                };
                let (other_from, other_to) = other.extent();
                let covers = other_from - 1.0 < x && x < other_to + 1.0;
                let crossed = from - 1.0 < other.x && other.x < to + 1.0;
                match theirs.cmp(&row) {
                    std::cmp::Ordering::Equal => other_to < from || to < other_from,
                    std::cmp::Ordering::Less => !covers || (other.x - x).abs() < 0.5,
                    std::cmp::Ordering::Greater => !crossed || (other.x - x).abs() < 0.5,
                }
            })
        };
        labels[at].row = (0..ROWS_MAX).find(|row| free(*row));
    }
}

fn word(kind: MarkKind) -> Option<&'static str> {
    match kind {
        MarkKind::Freeze => Some("freeze"),
        MarkKind::Thaw => Some("thaw"),
        MarkKind::Stalled => Some("does not shrink"),
        MarkKind::Stopped => Some("VM stops"),
        MarkKind::Committed => Some("commit"),
        MarkKind::Running => Some("runs at the destination"),
        MarkKind::Arrived => Some("source free"),
        MarkKind::Failed => Some("given up"),
        MarkKind::Note
        | MarkKind::Classified
        | MarkKind::FreePages
        | MarkKind::Live
        | MarkKind::Audited
        | MarkKind::Ready => None,
    }
}

/// Its colour.
pub(super) fn class(kind: MarkKind) -> &'static str {
    match kind {
        MarkKind::Freeze => "m-freeze",
        MarkKind::Thaw | MarkKind::Running | MarkKind::Arrived => "m-run",
        MarkKind::Stopped | MarkKind::Failed => "m-stop",
        _ => "m-other",
    }
}

fn title(mark: &Mark, span: Span) -> String {
    format!("{}: {}", span.clock(mark.t_ms), mark.text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_touch_neither_each_other_nor_a_line() {
        let kinds = [
            MarkKind::Freeze,
            MarkKind::Thaw,
            MarkKind::Stopped,
            MarkKind::Committed,
        ];
        let marks = (0..40u64).map(|i| Mark {
            t_ms: (i * 7919) % 1000,
            kind: kinds[usize::try_from(i % 4).unwrap()],
            text: String::new(),
        });
        let record = Record {
            marks: marks.collect(),
            ..Record::default()
        };
        let plot = Plot {
            left: 100.0,
            top: 100.0,
            width: 800.0,
            height: 100.0,
        };
        let labels = Labels::of(&record, Span { from: 0, to: 1000 }, &plot).0;
        assert!(labels.iter().filter(|label| label.row.is_some()).count() > 5);
        for (i, a) in labels.iter().enumerate() {
            for b in &labels[i + 1..] {
                let (Some(row), Some(theirs)) = (a.row, b.row) else {
                    continue;
                };
                let ((from, to), (other_from, other_to)) = (a.extent(), b.extent());
                assert!(
                    row != theirs || to < other_from || other_to < from,
                    "{a:?} {b:?}"
                );
                let (high, low) = if row > theirs { (a, b) } else { (b, a) };
                let (from, to) = low.extent();
                let crosses = row != theirs && from < high.x && high.x < to;
                assert!(!crosses || (high.x - low.x).abs() < 0.5, "{high:?} {low:?}");
            }
        }
    }
}
