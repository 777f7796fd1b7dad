//! The report as a graph for Graphviz.

use std::fmt::Write;

use depgraph::Class;
use guest_proto::Reason;

use super::client::Report;
use super::words::{Words, printable};

/// A node for each process that is not alone, an edge for each reason.
pub(super) fn dot(report: &Report) -> String {
    let words = Words::new(&report.processes);
    let mut text = String::from("digraph dependencies {\n  rankdir=RL;\n  outside [shape=box];\n");
    for record in &report.processes {
        let colour = match record.class {
            Class::Dependent { distance: 0 } => "tomato",
            Class::Dependent { .. } => "orange",
            Class::Sink => "grey",
            Class::Independent | Class::MayPause => "palegreen",
        };
        let _ = writeln!(
            text,
            "  p{} [label=\"{}\\n{}\", style=filled, fillcolor={colour}];",
            record.id.pid,
            quoted(&record.name),
            record.id.pid
        );
        let step = words.step(record).unwrap_or_default();
        let target = match &record.reason {
            Reason::Flow { toward, .. } => format!("p{}", toward.pid),
            Reason::Unit { facing, .. } => format!("p{}", facing.pid),
            Reason::Source(_) => "outside".into(),
            Reason::None | Reason::Rule(_) => continue,
        };
        let _ = writeln!(
            text,
            "  p{} -> {target} [label=\"{}\"];",
            record.id.pid,
            quoted(&step)
        );
    }
    text.push_str("}\n");
    text
}

fn quoted(text: &str) -> String {
    printable(text).replace('\\', "\\\\").replace('"', "\\\"")
}
