//! Unmoor's agent in the guest.
//!
//! ```text
//! probes (bpf/) ──edges──► tracker ──► window ──► depgraph ──► records ──► serve ──► the host
//! /proc, rules  ───────────────────────┘
//! the host ──who is to stand──► standstill ──► guest-procs (freezer, guardian)
//! ```
//!
//! It waits on the virtio-serial port until a host asks; between two windows what is attached
//! does nothing.

mod addresses;
mod command;
mod memory;
mod names;
mod policy;
mod port;
mod processes;
mod serve;
mod standing;
mod standstill;
mod tracker;
mod window;

use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use guest_procs::{FOLDER, guardian};
use guest_proto::ProbeState;
use port::Port;
use rustix::process::nice;
use serve::{Agent, Means};
use tracker::Tracker;

/// Three times the share of an ordinary process.
const NICENESS: i32 = -5;

const USAGE: &str = "\
Follows who exchanges data with whom, for unmoor on the host.

Usage: unmoor-agent [--port DEVICE]
       unmoor-agent thaw     Thaws what an agent that has ended left frozen

Options:
      --port DEVICE  Use this device instead of the virtio-serial port org.unmoor.0
  -V, --version      Print the version
  -h, --help         Print this
";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let port = match args[..] {
        [] => Port::named(guest_proto::PORT),
        ["--port", device] => Port::open(Path::new(device)),
        // The second process, which outlives this one just long enough.
        ["guardian"] => return outcome(guardian::run(std::io::stdin(), FOLDER.as_ref())),
        ["thaw"] => return outcome(guardian::undo(FOLDER.as_ref())),
        ["-V" | "--version"] => {
            println!("unmoor-agent {}", env!("CARGO_PKG_VERSION"));
            return ExitCode::SUCCESS;
        }
        ["-h" | "--help"] => {
            print!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        _ => {
            eprint!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match port.and_then(serve) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("unmoor-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn outcome(undone: std::io::Result<usize>) -> ExitCode {
    match undone {
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("unmoor-agent: thawing: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve(port: Port) -> Result<()> {
    // On a guest that is busy the host would wait for long; but services wait for what this process
    // takes. Without the privilege it takes longer.
    let _ = nice(NICENESS);
    let means = match Tracker::load() {
        Ok(tracker) => {
            tell_of(&tracker.state());
            Means::Probes(tracker)
        }
        Err(state) => {
            if let Some((cause, detail)) = &state.none {
                eprintln!(
                    "unmoor-agent: no probe works: {} ({detail}): {}; only standing facts are known",
                    cause.words(),
                    cause.advice()
                );
            }
            Means::StandingFactsOnly(state)
        }
    };
    Agent::new(port, means).run()
}

/// What the system's log is told of the probes.
fn tell_of(state: &ProbeState) {
    eprintln!(
        "unmoor-agent: probes loaded in {} ms, attempts: {}",
        state.took_ms, state.tries
    );
    for lost in &state.lost {
        eprintln!(
            "unmoor-agent: the probe {} ({}) does not work: {} ({}); {}",
            lost.name,
            lost.sees,
            lost.cause.words(),
            lost.detail,
            lost.effect.words(),
        );
    }
}
