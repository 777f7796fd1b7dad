//! The tables, as Markdown.

use std::fmt::Write;
use std::process::Command;

use lab::QemuVersion;
use lab::machine::{Machine, version_of};
use unmoor_tests::bench::{JobOutcome, Mode, Trial, Workload};

use crate::CAP_SECONDS;
use crate::core::Core;
use crate::medians::Group;

/// The machine, as readers want to know it.
pub(crate) fn machine() -> String {
    let machine = Machine::here();
    let qemu = version_of(&mut Command::new(QemuVersion::V10_0.program()));
    let qemu = qemu.split(" (").next().unwrap_or("QEMU");
    format!(
        "{}, {} cores, {} GiB, {}, {qemu} on both hosts",
        machine.cpu,
        machine.cores,
        (machine.memory_bytes + (1 << 29)) >> 30,
        match machine.accelerator {
            "kvm" => "KVM",
            _ => "no KVM (the guest runs under emulation)",
        },
    )
}

/// The relay's core.
pub(crate) fn core(core: &Core) -> String {
    let mut text = String::from(
        "### The relay's core\n\n\
         What each half does to every byte, on one core, without sockets; medians of 5, 256 MiB of \
         distinct pages.\n\n| | GB/s | of memcpy |\n|---|---|---|\n",
    );
    for (name, speed, ratio) in [
        (
            "source half: parse, hash, frames",
            core.source_half_gb_per_s,
            core.source_half_to_memcpy,
        ),
        (
            "destination half: frames, hash, re-emit",
            core.destination_half_gb_per_s,
            core.destination_half_to_memcpy,
        ),
        ("memcpy", core.memcpy_gb_per_s, 1.0),
    ] {
        line_to(&mut text, &[name.into(), some(speed, 1), some(ratio, 2)]);
    }
    text + "\n"
}

/// One run, for who watches.
pub(crate) fn line(trial: &Trial) -> String {
    let moved = &trial.moved;
    format!(
        "{} {:>5.1} s, {:>6.0} MB, downtime {:>4} ms, client p99 {} -> {} ms",
        if moved.converged {
            "moved in"
        } else {
            "gave up"
        },
        moved.total_ms / 1e3,
        moved.link_bytes as f64 / 1e6,
        cell(moved.downtime_ms, 0),
        cell(trial.client("before").map(|seen| seen.p99_ms), 0),
        cell(trial.client("during").map(|seen| seen.p99_ms), 0),
    )
}

/// All modes on one workload.
pub(crate) fn workload(workload: &Workload, groups: &[Group<'_>]) -> String {
    let rows: Vec<&Group<'_>> = Mode::ALL
        .iter()
        .filter_map(|(_, mode)| Group::find(groups, workload.name, *mode))
        .collect();
    if rows.is_empty() {
        return String::new();
    }
    let mut text = format!("### {}: {}\n\n", workload.name, workload.title);
    moves(&mut text, &rows);
    text.push('\n');
    costs(&mut text, workload, &rows);
    text.push('\n');
    text
}

/// What it took.
fn moves(text: &mut String, rows: &[&Group<'_>]) {
    text.push_str(
        "| mode | moved | total s | downtime ms | probe lost ms | client's longest gap ms | MB on \
         the link | of memory in use | batch progress lost s | longest pause s |\n\
         |---|---|---|---|---|---|---|---|---|---|\n",
    );
    for group in rows {
        let median = |figure: &dyn Fn(&Trial) -> Option<f64>| group.median(figure);
        let total = median(&|trial| Some(trial.moved.total_ms / 1e3));
        let total = if group.converged() == 0 {
            format!("> {CAP_SECONDS}")
        } else {
            cell(total, 2)
        };
        let cells = [
            group.mode.to_owned(),
            format!("{} of {}", group.converged(), group.trials.len()),
            total,
            cell(median(&|trial| trial.moved.downtime_ms), 0),
            cell(median(&Trial::probe_lost_ms), 0),
            cell(median(&Trial::longest_gap_ms), 0),
            cell(
                median(&|trial| Some(trial.moved.link_bytes as f64 / 1e6)),
                0,
            ),
            cell(
                median(&|trial| Some(trial.moved.link_bytes as f64 / trial.in_use_bytes as f64)),
                2,
            ),
            cell(median(&most(|job| Some(job.lost_s))), 1),
            cell(median(&most(|job| Some(job.pause_ms? / 1e3))), 1),
        ];
        line_to(text, &cells);
    }
}

/// What clients saw, and what it cost.
fn costs(text: &mut String, workload: &Workload, rows: &[&Group<'_>]) {
    let is_served = workload.requests.is_some();
    text.push_str(if is_served {
        "| mode | p50 / p99 ms before | up to STOP | whole move | after | answers/s before | during | after "
    } else {
        "| mode "
    });
    text.push_str(
        "| source QEMU CPU s | relay CPU s: send + receive | relay memory MB | agent CPU s | agent \
         memory MB |\n",
    );
    text.push_str(if is_served {
        "|---|---|---|---|---|---|---|---"
    } else {
        "|---"
    });
    text.push_str("|---|---|---|---|---|\n");
    for group in rows {
        let median = |figure: &dyn Fn(&Trial) -> Option<f64>| group.median(figure);
        let mut cells = vec![group.mode.to_owned()];
        if is_served {
            for window in ["before", "live", "during", "after"] {
                cells.push(format!(
                    "{} / {}",
                    cell(median(&|trial| Some(trial.client(window)?.p50_ms)), 1),
                    cell(median(&|trial| Some(trial.client(window)?.p99_ms)), 0),
                ));
            }
            for window in ["before", "during", "after"] {
                cells.push(cell(
                    median(&|trial| Some(trial.client(window)?.per_second)),
                    0,
                ));
            }
        }
        cells.push(cell(
            median(&|trial| Some(trial.moved.source_qemu_cpu_s)),
            1,
        ));
        let relay = |figure: fn(&unmoor_tests::bench::RelayUse) -> Option<f64>| {
            group.median(|trial| figure(trial.moved.relay.as_ref()?))
        };
        let send = relay(|used| Some(used.send_cpu_s));
        cells.push(match send {
            Some(_) => format!(
                "{} + {}",
                cell(send, 1),
                cell(relay(|used| Some(used.receive_cpu_s)), 1)
            ),
            None => cell(None, 0),
        });
        let send = relay(|used| Some(used.send_memory_bytes? as f64 / 1e6));
        cells.push(match send {
            Some(_) => format!(
                "{} + {}",
                cell(send, 0),
                cell(
                    relay(|used| Some(used.receive_memory_bytes? as f64 / 1e6)),
                    0
                )
            ),
            None => cell(None, 0),
        });
        cells.push(cell(median(&|trial| Some(trial.agent.cpu_s)), 2));
        cells.push(cell(
            median(&|trial| Some(trial.agent.memory_bytes as f64 / 1e6)),
            1,
        ));
        line_to(text, &cells);
    }
}

/// The figure of the job of which it is highest.
fn most(figure: impl Fn(&JobOutcome) -> Option<f64>) -> impl Fn(&Trial) -> Option<f64> {
    move |trial| trial.jobs.iter().filter_map(&figure).max_by(f64::total_cmp)
}

pub(crate) fn cell(value: Option<f64>, decimals: usize) -> String {
    value.map_or_else(|| "–".to_owned(), |value| some(value, decimals))
}

fn some(value: f64, decimals: usize) -> String {
    format!("{value:.decimals$}")
}

pub(crate) fn line_to(text: &mut String, cells: &[String]) {
    // Writing to a String cannot fail.
    let _ = writeln!(text, "| {} |", cells.join(" | "));
}
