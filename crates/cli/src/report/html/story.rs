//! The headline, and what happened in a few sentences.

use std::fmt::Write;

use super::axis::seconds;
use super::escape::{Escaped, cut, listed, named};
use crate::exit::Exit;
use crate::report::record::{Outcome, Pause, Record};
use crate::report::{Summary, Writer, bytes, duration_ms};

/// Processes that sentences name.
const NAMED_MAX: usize = 4;
/// Characters of an error, which may be the other side's words; the data has all.
const TEXT_MAX: usize = 1000;

/// The headline, not escaped.
pub(super) fn headline(record: &Record) -> String {
    match &record.outcome {
        Some(Outcome::Moved(summary)) => {
            let to = host(record.peer.as_deref().unwrap_or(&record.wanted.to));
            let total = duration_ms(summary.total_ms);
            match (summary.downtime_ms, summary.running_at_destination) {
                (Some(ms), _) => format!(
                    "The VM moved to {to} in {total} and was stopped for {}",
                    duration_ms(ms)
                ),
                (None, true) => format!("The VM moved to {to} in {total}"),
                (None, false) => format!("The VM moved to {to} in {total} and is paused there"),
            }
        }
        Some(Outcome::NotMoved { exit, .. }) => {
            let after = duration_ms(super::axis::number(record.ended_at_ms));
            let is = |code: Exit| *exit == code as u8;
            if is(Exit::Refused) {
                "The VM did not move: the migration was refused".to_owned()
            } else if is(Exit::Cancelled) {
                format!("The VM did not move: the migration was cancelled after {after}")
            } else if is(Exit::InDoubt) {
                "It is not known whether the VM moved".to_owned()
            } else if is(Exit::NeedsHelp) {
                "The migration failed, and the VM needs help".to_owned()
            } else {
                format!("The VM did not move: the migration failed after {after}")
            }
        }
        None => "The migration has not ended".to_owned(),
    }
}

/// The address without the port.
fn host(peer: &str) -> &str {
    peer.rsplit_once(':').map_or(peer, |(host, _)| host)
}

/// The sentences, each paragraph in tags of its own.
pub(super) fn paragraphs(record: &Record, page: &mut String) {
    if let Some(Outcome::NotMoved { error, vm, .. }) = &record.outcome {
        let _ = write!(
            page,
            "<dl class=\"verdict\"><dt>Why</dt><dd>{}</dd>",
            Escaped(&cut(error, TEXT_MAX))
        );
        if !vm.is_empty() {
            let _ = write!(
                page,
                "<dt>The VM</dt><dd>{}</dd>",
                Escaped(&cut(vm, TEXT_MAX))
            );
        }
        page.push_str("</dl>");
    }
    let _ = write!(page, "<p class=\"lead\">{}</p>", Escaped(&what(record)));
    if record.migration_from_ms.is_some() {
        let _ = write!(page, "<p class=\"lead\">{}</p>", Escaped(&who(record)));
    }
}

/// What was moved, from where to where.
fn what(record: &Record) -> String {
    let mut text = String::new();
    if let Some(vm) = &record.vm {
        let cpus = if vm.vcpus == 1 { "vCPU" } else { "vCPUs" };
        let _ = write!(
            text,
            "A VM with {} of memory and {} {cpus} ({})",
            bytes(vm.memory_bytes),
            vm.vcpus,
            vm.machine_type
        );
        let to = record.peer.as_deref().unwrap_or(&record.wanted.to);
        let verb = match &record.outcome {
            Some(Outcome::Moved(_)) => "went",
            _ => "was to go",
        };
        let _ = write!(text, " {verb} from QEMU {}", vm.qemu_version);
        match &record.destination {
            Some(theirs) => {
                let _ = write!(text, " here to QEMU {} at {to}", theirs.qemu_version);
            }
            None => {
                let _ = write!(text, " here to {to}");
            }
        }
    } else {
        let _ = write!(text, "A VM was to go to {}", record.wanted.to);
    }
    let _ = write!(text, ", on {}.", day(&record.began));
    if let Some(Outcome::Moved(summary)) = &record.outcome {
        text += &traffic(summary);
    }
    text
}

fn traffic(summary: &Summary) -> String {
    let mut text = format!(" {} went over the network", bytes(summary.wire_bytes));
    if let Some(nonfree) = summary.guest_nonfree_bytes {
        let _ = write!(text, ", for {} of memory in use", bytes(nonfree));
    }
    text + ", and before it ran there, both sides proved that all that was sent had arrived."
}

/// `2026-11-25 at 02:52:27 UTC` from RFC 3339.
fn day(began: &str) -> String {
    match began.trim_end_matches('Z').split_once('T') {
        Some((day, time)) => format!("{day} at {time} UTC"),
        None => began.to_owned(),
    }
}

/// Who was paused and why.
fn who(record: &Record) -> String {
    if record.pauses.is_empty() {
        return nobody(record);
    }
    let shown = &record.pauses[..record.pauses.len().min(NAMED_MAX)];
    let mut each: Vec<String> = shown.iter().map(paused_for).collect();
    if record.pauses.len() > shown.len() {
        each.push(format!("{} more", record.pauses.len() - shown.len()));
    }
    let mut text = match record.pauses.len() {
        1 => format!("One process was paused meanwhile: {}.", listed(&each)),
        many => format!(
            "{} processes were paused meanwhile: {}.",
            in_words(many),
            listed(&each)
        ),
    };
    text += match record.pauses.len() {
        1 => " As far as was seen, nobody outside depended on it",
        _ => " As far as was seen, nobody outside depended on them",
    };
    let paused = |writer: &&Writer| {
        let pid = writer.process.pid;
        record.pauses.iter().any(|pause| pause.process.pid == pid)
    };
    let writing = record.writers.iter().filter(paused);
    let (speed, hot) = writing.fold((0u64, 0u64), |(speed, hot), writer| {
        (speed + writer.bytes_per_s, hot + writer.hot_bytes)
    });
    let it = if record.pauses.len() == 1 {
        "it"
    } else {
        "they"
    };
    if speed > 0 {
        let _ = write!(
            text,
            ", and {it} kept writing {} of memory, at {}/s or more",
            bytes(hot),
            bytes(speed)
        );
        if let Some(link) = super::link_rate(record) {
            let _ = write!(
                text,
                ", where the link carries {}/s for everything",
                bytes(link)
            );
        }
    }
    let its = if record.pauses.len() == 1 {
        "Its"
    } else {
        "Their"
    };
    text += &match &record.outcome {
        Some(Outcome::Moved(_)) => format!(
            ". {its} memory travelled while {it} stood, instead of again and again while {it} ran. All other processes ran on."
        ),
        _ => format!(
            ". {its} memory was to travel while {it} stood, instead of again and again while {it} ran."
        ),
    };
    text
}

fn nobody(record: &Record) -> String {
    let why = if !record.wanted.agent {
        "no agent took part, so all memory was moved live"
    } else if record.wanted.protocol == "live" {
        "--protocol live moves all memory live"
    } else if record.processes.is_empty() {
        "the agent did not say who may be"
    } else if record.writers.is_empty() {
        "none of those that may be has memory enough to matter"
    } else {
        "none of those that may be wrote so much that it mattered, or their pause would have been too long"
    };
    format!("No process was paused: {why}.")
}

/// A number that begins a sentence.
fn in_words(number: usize) -> String {
    const WORDS: [&str; 8] = [
        "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine",
    ];
    let word = number.checked_sub(2).and_then(|at| WORDS.get(at));
    word.map_or_else(|| number.to_string(), ToString::to_string)
}

fn paused_for(pause: &Pause) -> String {
    match pause.length_ms() {
        Some(ms) => format!("{} for {}", named(&pause.process), seconds(ms)),
        None => format!("{}, for how long is not known", named(&pause.process)),
    }
}

/// Figures worth a tile: the word, the figure and what stands below.
pub(super) fn tiles(record: &Record) -> Vec<(&'static str, String, String)> {
    let mut tiles = Vec::new();
    let longest = record.pauses.iter().filter_map(Pause::length_ms).max();
    match &record.outcome {
        Some(Outcome::Moved(summary)) => {
            tiles.push(("total time", duration_ms(summary.total_ms), String::new()));
            if let Some(ms) = summary.downtime_ms {
                let limit = duration_ms(record.wanted.downtime_limit_ms);
                tiles.push(("downtime", duration_ms(ms), format!("limit {limit}")));
            }
            let part = match summary.guest_nonfree_bytes {
                Some(nonfree) if nonfree > 0 => format!(
                    "{:.0} % of memory in use",
                    100.0 * super::axis::ratio(summary.wire_bytes, nonfree)
                ),
                _ => format!("of {} of memory", bytes(summary.guest_memory_bytes)),
            };
            tiles.push(("on the wire", bytes(summary.wire_bytes), part));
        }
        _ => {
            let span = super::span(record);
            if record.migration_from_ms.is_some() {
                tiles.push(("ended after", seconds(span.length()), String::new()));
            }
            if let Some(last) = record.samples.last() {
                let sent = bytes(last.wire_bytes);
                tiles.push(("on the wire", sent, "sent in vain".to_owned()));
            }
        }
    }
    if let Some(ms) = longest {
        let limit = duration_ms(record.wanted.max_pause_ms);
        tiles.push(("longest pause", seconds(ms), format!("limit {limit}")));
    }
    tiles
}
