//! Lines for people: one that is rewritten on a terminal, a few plain ones elsewhere.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use super::{
    Audited, Event, Following, Forecast, Named, Progress, Report, Summary, bytes, count,
    duration_ms, rate,
};

/// Time between progress lines where there is no terminal to rewrite one on.
const PLAIN_EVERY: Duration = Duration::from_secs(5);

/// Writes progress to standard error and the summary to standard output.
#[derive(Debug)]
pub(crate) struct Human {
    quiet: bool,
    line: Option<ProgressBar>,
    last_plain: Option<Instant>,
    pass: u64,
}

impl Human {
    pub(crate) fn new(quiet: bool) -> Self {
        let line = (!quiet && std::io::stderr().is_terminal()).then(|| {
            let bar = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("{spinner} {wide_msg}") {
                bar.set_style(style);
            }
            bar
        });
        Human {
            quiet,
            line,
            last_plain: None,
            pass: 0,
        }
    }

    fn say(&self, text: &str) {
        if self.quiet {
            return;
        }
        match &self.line {
            Some(line) => line.suspend(|| eprintln!("{text}")),
            None => eprintln!("{text}"),
        }
    }

    fn progress(&mut self, progress: &Progress) {
        if let Some(line) = &self.line {
            line.set_message(describe(progress));
            line.tick();
            return;
        }
        let due = self
            .last_plain
            .is_none_or(|last| last.elapsed() >= PLAIN_EVERY);
        if due || progress.pass != self.pass {
            self.last_plain = Some(Instant::now());
            self.pass = progress.pass;
            self.say(&describe(progress));
        }
    }
}

impl Report for Human {
    fn tell(&mut self, event: &Event) {
        match event {
            Event::Listening { address } => self.say(&format!("listening on {address}")),
            Event::Connected { path, .. } => self.say(&format!("connected: {path}")),
            Event::Resumed {
                after_ms,
                bytes_again,
                path,
            } => self.say(&format!(
                "connected again after {}, {} go out again: {path}",
                duration_ms(*after_ms),
                bytes(*bytes_again)
            )),
            Event::Note { text } => self.say(&format!("note: {text}")),
            Event::LostProbes { probes } => {
                for lost in probes {
                    self.say(&format!("note: {}", lost.sentence()));
                }
            }
            Event::Phase { .. } | Event::Pass { .. } | Event::Writing { .. } => {}
            Event::Progress(progress) => self.progress(progress),
            Event::Classified {
                processes,
                independent,
                ..
            } => self.say(&format!(
                "{independent} of the guest's {processes} processes may be paused"
            )),
            Event::Freezing {
                processes,
                expected_pause_ms,
            } => self.say(&format!(
                "pausing {} for about {}",
                names(processes),
                duration_ms(*expected_pause_ms)
            )),
            Event::Frozen { .. } => {}
            Event::Thawed { processes, why } => {
                self.say(&format!("{} runs again: {why}", names(processes)));
            }
            Event::Live { processes, why } => {
                self.say(&format!("moved live: {}: {why}", names(processes)));
            }
            Event::FreePages { pages } => self.say(&format!(
                "{} of free memory need not travel",
                bytes(pages * 4096)
            )),
            Event::Stalled => {
                self.say("what is moved live does not shrink: the VM writes as fast as it travels");
            }
            Event::Stopped => self.say("the VM has stopped for the switchover"),
            Event::Audited(audited) => self.say(&audit_in_words(audited)),
            Event::Ready => self.say("the destination has loaded everything; memory proven equal"),
            Event::Committed => self.say("committed"),
            Event::Runs { follows_bytes } => self.say(&format!(
                "the VM runs at the destination; {} of its memory follow",
                bytes(*follows_bytes)
            )),
            Event::Arrived(following) => {
                self.say(&format!(
                    "all memory has arrived: {}",
                    faults_in_words(following)
                ));
            }
            Event::Received { running, pages, .. } => {
                self.finish();
                let state = if *running {
                    "the VM runs here"
                } else {
                    "the VM is here, paused: resume it with `cont` when you are ready"
                };
                println!("{state} ({} pages, digest equal)", count(*pages));
            }
            Event::Summary(summary) => {
                self.finish();
                print!("{}", summarise(summary));
            }
            Event::Failed { error, vm, .. } => {
                self.finish();
                eprintln!("unmoor: {error}");
                if !vm.is_empty() {
                    eprintln!("unmoor: {vm}");
                }
            }
            Event::ReportWritten { html, json } => {
                println!("report          {html} (as data: {json})");
            }
        }
    }
}

impl Human {
    fn finish(&self) {
        if let Some(line) = &self.line {
            line.finish_and_clear();
        }
    }
}

/// Processes in a few words.
pub(super) fn names(processes: &[Named]) -> String {
    const NAMED: usize = 4;
    let first = processes.iter().take(NAMED).map(|one| {
        let name: String = one.name.chars().filter(|c| !c.is_control()).collect();
        format!("{name} ({})", one.pid)
    });
    let mut text = first.collect::<Vec<_>>().join(", ");
    if processes.len() > NAMED {
        text += &format!(" and {} more", processes.len() - NAMED);
    }
    text
}

fn describe(progress: &Progress) -> String {
    let mut text = format!(
        "{}, pass {}: sent {}",
        progress.phase,
        progress.pass,
        bytes(progress.wire_bytes)
    );
    if progress.counts.pages_dropped > 0 {
        text += &format!(
            ", dropped {} duplicate pages",
            count(progress.counts.pages_dropped)
        );
    }
    if progress.held_bytes > 0 {
        text += &format!(", holds {}", bytes(progress.held_bytes));
    }
    text += &format!(", {}", rate(progress.rate));
    if let Some(remaining) = progress.remaining_bytes {
        text += &format!(", {} left in this pass", bytes(remaining));
        text += &match progress.seconds_to_switchover {
            Some(seconds) => format!(", switchover in about {seconds:.0} s"),
            None => ", the VM dirties memory as fast as it travels".to_owned(),
        };
    }
    text
}

/// What an audit has found, in a line.
pub(super) fn audit_in_words(audited: &Audited) -> String {
    let found = match (audited.differing, audited.repaired) {
        (0, _) => "none differs".to_owned(),
        (differing, 0) => format!(
            "QEMU has lost track of {}, which the destination has as they were",
            count(differing)
        ),
        (differing, _) => format!("QEMU had lost track of {}, sent now", count(differing)),
    };
    format!(
        "{} pages compared in {}: {found}",
        count(audited.pages),
        duration_ms(audited.ms)
    )
}

/// What the VM had to wait for, in a few words.
pub(super) fn faults_in_words(following: &Following) -> String {
    match following.faults {
        0 => "the VM waited for none of it".to_owned(),
        faults => format!(
            "the VM waited for {} pages, half of them {} or less, 99 of a hundred {} or less",
            count(faults),
            duration_ms(following.fault_p50_ms),
            duration_ms(following.fault_p99_ms),
        ),
    }
}

fn summarise(summary: &Summary) -> String {
    let downtime = match (summary.downtime_ms, summary.running_at_destination) {
        (Some(ms), _) => duration_ms(ms),
        (None, true) => "unknown".to_owned(),
        (None, false) => "the VM is paused at the destination".to_owned(),
    };
    let hook = match summary.before_commit_ms {
        Some(ms) => format!(", {} of it in --before-commit", duration_ms(ms)),
        None => String::new(),
    };
    let mut paused = String::new();
    for one in &summary.frozen {
        let pause = one
            .pause_ms
            .map_or_else(|| "unknown".to_owned(), duration_ms);
        let who = names(std::slice::from_ref(&one.process));
        paused += &format!("paused          {who} for {pause}\n");
    }
    let predicted = match &summary.predicted {
        Some(forecast) => foreseen(forecast),
        None => String::new(),
    };
    let compressed = match &summary.compressed {
        Some(it) if it.after_bytes < it.before_bytes => format!(
            "compressed      {} to {}{}, {} pages by their difference, {} by others\n",
            bytes(it.before_bytes),
            bytes(it.after_bytes),
            it.method
                .as_ref()
                .map(|method| format!(" ({method})"))
                .unwrap_or_default(),
            count(it.pages_differing),
            count(it.pages_same),
        ),
        _ => String::new(),
    };
    let audit = match &summary.audit {
        Some(audited) => format!("audit           {}\n", audit_in_words(audited)),
        None => String::new(),
    };
    let followed = match (&summary.followed, summary.source_free_ms) {
        (Some(following), free) => {
            let pages = summary.counts.pages_followed + summary.counts.pages_asked;
            let after = free.map_or_else(String::new, |ms| {
                format!(" within {} of the stop", duration_ms(ms))
            });
            let waits = faults_in_words(following);
            format!("followed        {} pages{after}; {waits}\n", count(pages))
        }
        (None, _) => String::new(),
    };
    let free = match summary.counts.pages_free {
        0 => String::new(),
        pages => format!(", {} free", count(pages)),
    };
    format!(
        "\
moved in        {}
downtime        {downtime}{hook}
{paused}{followed}on the wire     {} for {} of guest memory
{compressed}\
{audit}\
{predicted}\
pages           {} sent, {} zero, {} dropped as duplicates{free}
passes          {}
digest          {} ({} pages)
QEMU            {} to {}
relay memory    {}
",
        duration_ms(summary.total_ms),
        bytes(summary.wire_bytes),
        bytes(summary.guest_memory_bytes),
        count(summary.counts.pages_sent),
        count(summary.counts.pages_zero),
        count(summary.counts.pages_dropped),
        summary.passes,
        summary.digest,
        count(summary.digest_pages),
        summary.source_qemu,
        summary.destination_qemu,
        summary
            .relay_memory_bytes
            .map_or_else(|| "unknown".to_owned(), bytes),
    )
}

/// What had been predicted, on a line of its own.
fn foreseen(forecast: &Forecast) -> String {
    let pauses = forecast.pauses.iter().map(|one| one.pause_ms);
    let pause = match pauses.reduce(f64::max) {
        Some(ms) => format!(", a pause of {}", duration_ms(ms)),
        None => String::new(),
    };
    format!(
        "predicted       {}, downtime {}, {}{pause}\n",
        duration_ms(forecast.total_ms),
        duration_ms(forecast.downtime_ms),
        bytes(forecast.wire_bytes),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::PageCounts;

    #[test]
    fn a_vm_that_outruns_the_link_is_told_plainly() {
        let mut progress = Progress {
            phase: "sending memory",
            pass: 3,
            wire_bytes: 1_500_000_000,
            counts: PageCounts {
                pages_sent: 1,
                pages_zero: 2,
                pages_dropped: 1234,
                ..PageCounts::default()
            },
            held_bytes: 0,
            rate: 117_000_000,
            remaining_bytes: Some(600_000_000),
            seconds_to_switchover: None,
        };
        assert_eq!(
            describe(&progress),
            "sending memory, pass 3: sent 1.5 GB, dropped 1,234 duplicate pages, 936 Mbit/s, \
             600 MB left in this pass, the VM dirties memory as fast as it travels"
        );
        progress.seconds_to_switchover = Some(5.2);
        assert!(describe(&progress).ends_with("switchover in about 5 s"));
    }
}
