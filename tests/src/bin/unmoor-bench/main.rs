//! The benchmark: how fast the relay's core works, and whole migrations of several workloads by
//! unmoor and by QEMU itself over the same link. It writes every run to `target/results/bench.json`
//! and, when all was run, the tables to `docs/benchmarks.md`.
//!
//! ```text
//! unmoor-bench [--runs N] [--only W1,W2] [--modes precopy,stop-copy] [--repeat-capped] [--resume]
//! unmoor-bench --core     only the relay's core
//! unmoor-bench --render   only the tables, from the figures of the last run
//! ```

mod args;
mod bounds;
mod core;
mod medians;
mod table;

use std::fs;

use anyhow::{Context, Result, bail};
use lab::{results, root};
use serde::{Deserialize, Serialize};
use unmoor_tests::bench::{Limits, Mode, Trial, Workload, run};

use args::{Args, Task};
use medians::Group;

/// After so many seconds a move does not converge.
const CAP_SECONDS: u64 = 60;
/// Where the tables go.
const DOCUMENT: &str = "docs/benchmarks.md";

/// What a run of the benchmark found.
#[derive(Debug, Serialize, Deserialize)]
struct Figures {
    /// Where it was run.
    machine: String,
    /// Its command line.
    command: String,
    core: core::Core,
    /// In the order in which they were run.
    trials: Vec<Trial>,
    /// Runs that came to nothing.
    failures: Vec<String>,
}

fn main() -> Result<()> {
    let args = Args::parse(std::env::args().skip(1))?;
    match args.task {
        Task::Core => {
            println!("{}", table::core(&core::measure()?));
            Ok(())
        }
        Task::Render => publish(&last("bench")?),
        Task::Measure => measure(&args),
    }
}

fn measure(args: &Args) -> Result<()> {
    // Part of the matrix must not pass for all of it.
    let target = if args.is_whole() {
        "bench"
    } else {
        "bench-part"
    };
    let mut figures = if args.resume {
        last(target)?
    } else {
        Figures {
            machine: table::machine(),
            command: args.command.clone(),
            core: core::measure()?,
            trials: Vec::new(),
            failures: Vec::new(),
        }
    };
    // In turn, so that a machine that becomes slower makes all slower.
    for round in 1..=args.runs {
        for workload in &args.workloads {
            for (_, mode) in &args.modes {
                if done(&figures.trials, workload, *mode) >= round {
                    continue;
                }
                if round > 1 && !args.repeat_capped && is_capped(&figures.trials, workload, *mode) {
                    continue;
                }
                eprint!("{round} {:<4} {:<20} ", workload.name, mode.title());
                match run(*workload, *mode, &Limits::capped(CAP_SECONDS)) {
                    Ok(trial) => {
                        eprintln!("{}", table::line(&trial));
                        figures.trials.push(trial);
                    }
                    Err(error) => {
                        eprintln!("failed: {error:#}");
                        let what = format!("{} {}: {error:#}", workload.name, mode.title());
                        figures.failures.push(what);
                    }
                }
                // An hour of figures must not be lost with the last of them.
                results::write(target, &figures)?;
            }
        }
    }
    if args.is_whole() {
        publish(&figures)?;
    } else {
        println!("{}", tables(&figures));
    }
    println!("Figures in target/results/{target}.json");
    if !figures.failures.is_empty() {
        bail!(
            "{} runs failed: {:#?}",
            figures.failures.len(),
            figures.failures
        );
    }
    Ok(())
}

/// How often a mode has been run.
fn done(trials: &[Trial], workload: &Workload, mode: Mode) -> u32 {
    let same = |trial: &&Trial| trial.workload == workload.name && trial.mode == mode.title();
    u32::try_from(trials.iter().filter(same).count()).unwrap_or(u32::MAX)
}

/// The figures of the last run.
fn last(target: &str) -> Result<Figures> {
    let path = results::folder().join(format!("{target}.json"));
    let text = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
    let mut whole: serde_json::Value = serde_json::from_slice(&text)?;
    Ok(serde_json::from_value(whole["results"].take())?)
}

/// Whether the mode did not converge the last time: it is not given another minute.
fn is_capped(trials: &[Trial], workload: &Workload, mode: Mode) -> bool {
    trials
        .iter()
        .rev()
        .find(|trial| trial.workload == workload.name && trial.mode == mode.title())
        .is_some_and(|trial| !trial.moved.converged)
}

fn tables(figures: &Figures) -> String {
    let groups = Group::all(&figures.trials);
    let mut text = format!(
        "Made by `{}` on {}; {} runs.\n\n",
        figures.command,
        figures.machine,
        figures.trials.len()
    );
    text += &bounds::table(&groups);
    for workload in unmoor_tests::bench::ALL {
        text += &table::workload(&workload, &groups);
    }
    text += table::core(&figures.core).trim_end();
    text
}

/// Puts the tables into the document, between their marks.
fn publish(figures: &Figures) -> Result<()> {
    let text = tables(figures);
    println!("{text}");
    let path = root().join(DOCUMENT);
    let document = fs::read_to_string(&path)?;
    let mark = |name: &str| format!("<!-- table:{name} -->\n");
    let (begin, end) = (mark("begin"), mark("end"));
    let parts = document.split_once(&begin).and_then(|(before, rest)| {
        let (_, after) = rest.split_once(&end)?;
        Some((before, after))
    });
    let (before, after) =
        parts.with_context(|| format!("{DOCUMENT} has no marks for the table"))?;
    fs::write(&path, format!("{before}{begin}\n{text}\n\n{end}{after}"))?;
    println!("Tables in {DOCUMENT}");
    Ok(())
}
