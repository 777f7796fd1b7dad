//! Figures with what each means, and what had been predicted.

use std::fmt::Write;

use super::axis::{number, seconds};
use super::bins::{CLASSES, sums};
use super::escape::{Escaped, cut, named};
use crate::report::human::{audit_in_words, faults_in_words};
use crate::report::record::{Forecast, Outcome, Record};
use crate::report::{Summary, bytes, count, duration_ms};

/// Characters of what happened; the data has all.
const TEXT_MAX: usize = 500;

/// The section with all figures.
pub(super) fn section(record: &Record, page: &mut String) {
    page.push_str("<section id=\"figures\"><h2>Figures, and what they mean</h2><div class=\"scroll\"><table class=\"figures\"><thead><tr><th>Figure</th><th class=\"n\">Value</th><th>Meaning</th></tr></thead><tbody>");
    let summary = match &record.outcome {
        Some(Outcome::Moved(summary)) => Some(summary.as_ref()),
        _ => None,
    };
    if let Some(summary) = summary {
        times(summary, page);
    }
    if let Some(last) = record.samples.last() {
        let meaning = "Bytes that the source half wrote to the connection, without TCP/IP headers.";
        row(page, "on the wire", &bytes(last.wire_bytes), meaning);
        for (class, sum) in CLASSES.iter().zip(sums(&record.samples)) {
            if sum > 0 {
                let name = format!("of it {}", class.word);
                let meaning = format!("{}.", capitalised(class.meaning));
                row(page, &name, &bytes(sum), &meaning);
            }
        }
    }
    if let Some(summary) = summary {
        memory(summary, page);
    }
    if record.migration_from_ms.is_some() {
        let held = record.samples.iter().map(|sample| sample.held_bytes).max();
        let passes = record.samples.iter().map(|sample| sample.pass).max();
        row(
            page,
            "kept back at once",
            &bytes(held.unwrap_or(0)),
            "Most bytes of guest memory that the relay held because they were likely to be written again.",
        );
        row(
            page,
            "passes",
            &count(passes.unwrap_or(0)),
            "How often QEMU went through the memory that had been written.",
        );
    }
    let wanted = &record.wanted;
    row(
        page,
        "downtime limit",
        &duration_ms(wanted.downtime_limit_ms),
        "What the user wanted the VM to be stopped for at most.",
    );
    row(
        page,
        "pause limit",
        &duration_ms(wanted.max_pause_ms),
        "What the user wanted a process to be paused for at most, where no rule says otherwise.",
    );
    row(
        page,
        "protocol",
        &wanted.protocol,
        "How memory was to travel: live, or that of processes that may be paused once (stop-copy); auto is stop-copy where an agent answers.",
    );
    page.push_str("</tbody></table></div></section>");
}

fn times(summary: &Summary, page: &mut String) {
    row(
        page,
        "total time",
        &duration_ms(summary.total_ms),
        "From the start of QEMU's migration until the source knew that the VM is at the destination.",
    );
    if let Some(ms) = summary.downtime_ms {
        row(
            page,
            "downtime",
            &duration_ms(ms),
            "From the source QEMU's STOP to the destination QEMU's RESUME: up to the commit on the source's clock, from then on the destination's, and half a round trip between. What a client sees is longer by what the network and a cold guest take.",
        );
    }
    if let Some(ms) = summary.before_commit_ms {
        row(
            page,
            "of it --before-commit",
            &duration_ms(ms),
            "What the user's own command took while the VM was stopped.",
        );
    }
    if let Some(audited) = &summary.audit {
        row(
            page,
            "of it the audit",
            &duration_ms(audited.ms),
            &format!(
                "All memory of the stopped VM was compared with what the destination has. {}.",
                capitalised(&audit_in_words(audited))
            ),
        );
    }
    if let Some(ms) = summary.source_free_ms {
        row(
            page,
            "source free",
            &duration_ms(ms),
            "From the VM's stop until all of its memory had arrived: until then the VM needed this host.",
        );
    }
    if let Some(followed) = &summary.followed {
        row(
            page,
            "pages waited for",
            &count(followed.faults),
            &format!(
                "That the VM asked for after the switchover, before they came by themselves. {}.",
                capitalised(&faults_in_words(followed))
            ),
        );
    }
    if let Some(ms) = summary.longest_pause_ms {
        row(
            page,
            "longest pause",
            &duration_ms(ms),
            "Of one process: from the moment in which it was to be frozen until the agent at the destination had thawed it.",
        );
    }
    if let Some(ms) = summary.agent_ms {
        row(
            page,
            "agent",
            &duration_ms(ms),
            "From the first question to the agent until memory was read: who may be paused, and which memory is theirs.",
        );
    }
}

fn memory(summary: &Summary, page: &mut String) {
    row(
        page,
        "guest memory",
        &bytes(summary.guest_memory_bytes),
        "RAM of the VM, firmware and video memory included.",
    );
    if let Some(nonfree) = summary.guest_nonfree_bytes {
        row(
            page,
            "memory in use",
            &bytes(nonfree),
            "RAM less what the guest declared free when the migration began.",
        );
    }
    row(
        page,
        "pages sent",
        &count(summary.counts.pages_sent),
        "With their content, 4096 bytes each.",
    );
    row(
        page,
        "pages of zeros",
        &count(summary.counts.pages_zero),
        "Sent as a few bytes.",
    );
    row(
        page,
        "pages dropped",
        &count(summary.counts.pages_dropped),
        "That QEMU sent again although the destination had that content: they did not travel.",
    );
    row(
        page,
        "pages free",
        &count(summary.counts.pages_free),
        "That the guest declared free twice: they did not travel, and differ at the destination.",
    );
    row(
        page,
        "digest",
        summary.digest,
        "Before the VM could run at the destination, both halves compared a digest over all memory that was sent.",
    );
    if let Some(memory) = summary.relay_memory_bytes {
        row(
            page,
            "relay memory",
            &bytes(memory),
            "Highest resident memory of the source half.",
        );
    }
}

fn capitalised(text: &str) -> String {
    let mut chars = text.chars();
    let first = chars.next().map(|first| first.to_ascii_uppercase());
    first.into_iter().chain(chars).collect()
}

fn row(page: &mut String, name: &str, value: &str, meaning: &str) {
    let _ = write!(
        page,
        "<tr><th scope=\"row\">{}</th><td class=\"n\">{}</td><td>{}</td></tr>",
        Escaped(name),
        Escaped(value),
        Escaped(meaning)
    );
}

/// The section with prediction and outcome; nothing where nothing was predicted.
pub(super) fn forecast(record: &Record, page: &mut String) {
    let Some(forecast) = &record.forecast else {
        return;
    };
    page.push_str("<section id=\"forecast\"><h2>What had been predicted</h2><div class=\"scroll\"><table><thead><tr><th></th><th class=\"n\">Predicted</th><th class=\"n\">Outcome</th><th class=\"n\">Difference</th></tr></thead><tbody>");
    let summary = match &record.outcome {
        Some(Outcome::Moved(summary)) => Some(summary.as_ref()),
        _ => None,
    };
    let time = |ms: f64| duration_ms(ms);
    let total = summary.map(|summary| summary.total_ms);
    compared(page, "total time", forecast.total_ms, total, time);
    let downtime = summary.and_then(|summary| summary.downtime_ms);
    compared(page, "downtime", forecast.downtime_ms, downtime, time);
    let sent = summary.map(|summary| number(summary.wire_bytes));
    let size = |size: f64| bytes(super::whole(size));
    compared(page, "on the wire", number(forecast.wire_bytes), sent, size);
    pauses(record, forecast, page);
    page.push_str("</tbody></table></div></section>");
}

fn pauses(record: &Record, forecast: &Forecast, page: &mut String) {
    for one in &forecast.pauses {
        let name = format!("pause of {}", named(&one.process));
        let pause = record
            .pauses
            .iter()
            .find(|p| p.process.pid == one.process.pid);
        let length = pause.and_then(super::Pause::length_ms);
        compared(page, &name, one.pause_ms, length.map(number), duration_ms);
    }
    let foreseen = |pid| forecast.pauses.iter().any(|one| one.process.pid == pid);
    for pause in record.pauses.iter().filter(|p| !foreseen(p.process.pid)) {
        let _ = write!(
            page,
            "<tr><th scope=\"row\">pause of <bdi>{}</bdi></th><td class=\"n\">none</td><td class=\"n\">{}</td><td></td></tr>",
            Escaped(&named(&pause.process)),
            pause.length_ms().map_or("unknown".to_owned(), seconds)
        );
    }
}

fn compared(
    page: &mut String,
    name: &str,
    predicted: f64,
    outcome: Option<f64>,
    words: impl Fn(f64) -> String,
) {
    let difference = outcome.filter(|_| predicted > 0.0).map(|outcome| {
        let percent = 100.0 * (outcome / predicted - 1.0);
        format!("{percent:+.0} %")
    });
    let _ = write!(
        page,
        "<tr><th scope=\"row\"><bdi>{}</bdi></th><td class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td></tr>",
        Escaped(name),
        words(predicted),
        outcome.map_or_else(|| "none".to_owned(), words),
        difference.unwrap_or_default()
    );
}

/// The section with everything that happened, in order.
pub(super) fn log(record: &Record, page: &mut String) {
    if record.marks.is_empty() {
        return;
    }
    page.push_str("<section id=\"log\"><h2>What happened, in order</h2><ol class=\"log\">");
    let from = super::span(record).from;
    for mark in &record.marks {
        let sign = if mark.t_ms < from { "−" } else { "" };
        let _ = write!(
            page,
            "<li><time>{sign}{}</time><span class=\"dot {}\"></span><span>{}</span></li>",
            seconds(mark.t_ms.abs_diff(from)),
            super::marks::class(mark.kind),
            Escaped(&cut(&mark.text, TEXT_MAX))
        );
    }
    page.push_str("</ol>");
    if record.marks_left_out > 0 {
        let _ = write!(
            page,
            "<p class=\"muted\">{} events more are not listed.</p>",
            count(record.marks_left_out)
        );
    }
    page.push_str("</section>");
}
