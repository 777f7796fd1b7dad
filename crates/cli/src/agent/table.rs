//! The report as a table for people.

use std::collections::BTreeMap;
use std::fmt::Write;

use depgraph::Class;
use guest_proto::ProcessRecord;

use super::client::Report;
use super::explain::HotSets;
use super::words::{Words, printable, uncertain};
use crate::report::bytes;

/// Everything, by control group.
pub(super) fn table(report: &Report, hot: &HotSets) -> String {
    let words = Words::new(&report.processes);
    let mut groups: BTreeMap<&str, Vec<&ProcessRecord>> = BTreeMap::new();
    for record in &report.processes {
        groups.entry(&record.cgroup).or_default().push(record);
    }
    let mut text = format!(
        "  {:<11} {:>7} {:<15} {:>10} {:>9} {:>12}  why\n",
        "class", "pid", "process", "memory", "hot", "dirtied"
    );
    for (group, mut records) in groups {
        records.sort_by_key(|record| (record.class, record.id));
        if !group.is_empty() {
            let _ = writeln!(text, "{}", printable(group));
        }
        for record in records {
            let (rate, hot) = match hot.get(&record.id) {
                Some(hot) => (
                    format!("{}/s", bytes(hot.bytes_per_s())),
                    bytes(hot.bytes()),
                ),
                None => (String::new(), String::new()),
            };
            let mut reason = words.chain(record);
            reason.extend(words.limit(record));
            let reason = reason.join("; ");
            let _ = writeln!(
                text,
                "  {:<11} {:>7} {:<15} {:>10} {hot:>9} {rate:>12}  {reason}",
                Words::class(record.class),
                record.id.pid,
                printable(&record.name),
                bytes(record.anonymous_kib.saturating_mul(1024)),
            );
        }
    }
    text.push_str(&summary(report));
    text
}

/// What there is to say at the end.
pub(super) fn summary(report: &Report) -> String {
    let may_pause = report
        .processes
        .iter()
        .filter(|record| !record.class.stays_live());
    let (count, kib) = may_pause.fold((0, 0u64), |(count, kib), record| {
        (count + 1, kib.saturating_add(record.anonymous_kib))
    });
    let total = report.processes.len();
    let summary = &report.summary;
    let memory = summary.memory_kib.max(1);
    let mut text = format!(
        "{count} of {total} processes may pause, with {} ({} % of the VM's memory)\n",
        bytes(kib.saturating_mul(1024)),
        kib.saturating_mul(100) / memory,
    );
    let sinks = report
        .processes
        .iter()
        .filter(|record| record.class == Class::Sink);
    let mut names: Vec<String> = sinks.map(|record| printable(&record.name)).collect();
    names.sort();
    names.dedup();
    if !names.is_empty() {
        let _ = writeln!(text, "hubs that pass nothing on: {}", names.join(", "));
    }
    let losses = summary.losses;
    if losses != guest_proto::Losses::default() {
        let _ = writeln!(
            text,
            "events were lost ({} for lack of room, {} in the probes): everything is taken to be dependent",
            losses.table_full, losses.probes_skipped
        );
    } else if let Some(doubt) = summary.doubt {
        let _ = writeln!(text, "{}", uncertain(doubt));
    }
    text
}
