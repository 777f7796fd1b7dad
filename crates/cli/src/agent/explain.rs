//! `unmoor explain`: who depends on the outside world, on what, and why.

use std::time::Instant;

use depgraph::Class;
use guest_proto::{Armed, ProcessRecord, Tier, Welcome};
use rustix::event::{PollFd, PollFlags};
use serde_json::{Value, json};

use super::client::{AgentError, Client, Report};
use super::words::{Words, printable};
use super::{dot, table};
use crate::args::ExplainArgs;
use crate::exit::Exit;
use crate::poll::wait;
use crate::signals::Signals;

/// Runs the command.
pub(crate) fn run(args: &ExplainArgs) -> Exit {
    match explain(args) {
        Ok(exit) => exit,
        Err(error) => {
            eprintln!("unmoor: {error}");
            Exit::Failed
        }
    }
}

fn explain(args: &ExplainArgs) -> Result<Exit, AgentError> {
    let signals = Signals::install()?;
    let (mut client, welcome) = Client::connect(&args.agent)?;
    if let Tier::StandingFactsOnly { reason } = &welcome.tier {
        eprintln!(
            "unmoor: the guest's kernel cannot be probed ({}): whoever is active is taken to be \
             dependent",
            printable(reason)
        );
    }
    let armed = client.arm(args.rule.clone())?;
    eprintln!(
        "following {} for {}",
        printable(&welcome.kernel),
        humantime::format_duration(args.window)
    );
    // Events come to the agent meanwhile; a signal ends the window early.
    let mut fds = [PollFd::from_borrowed_fd(signals.fd(), PollFlags::IN)];
    let cancelled = wait(&mut fds, Some(Instant::now() + args.window))? > 0;
    let report = client.report()?;
    client.disarm()?;
    if args.json {
        println!("{}", as_json(&welcome, &armed, &report));
    } else if args.dot {
        print!("{}", dot::dot(&report));
    } else {
        print!("{}", table::table(&report));
    }
    Ok(if cancelled {
        Exit::Cancelled
    } else {
        Exit::Success
    })
}

fn as_json(welcome: &Welcome, armed: &Armed, report: &Report) -> Value {
    let words = Words::new(&report.processes);
    let processes: Vec<Value> = report
        .processes
        .iter()
        .map(|record| process(record, &words))
        .collect();
    let summary = &report.summary;
    json!({
        "agent": welcome.software,
        "kernel": welcome.kernel,
        "probes": armed.probes,
        "missing_probes": armed.missing,
        "attach_us": armed.attach_us,
        "snapshot_us": armed.snapshot_us,
        "window_ms": summary.window_ms,
        "lost_events": summary.losses.table_full + summary.losses.probes_skipped,
        "doubt": summary.doubt,
        "graph": {
            "processes": summary.processes,
            "objects": summary.objects,
            "edges": summary.edges,
        },
        "memory_kib": summary.memory_kib,
        "processes": processes,
    })
}

fn process(record: &ProcessRecord, words: &Words<'_>) -> Value {
    let distance = match record.class {
        Class::Dependent { distance } => Some(distance),
        _ => None,
    };
    json!({
        "pid": record.id.pid,
        "start": record.id.start,
        "parent": record.parent,
        "name": record.name,
        "command": record.command,
        "cgroup": record.cgroup,
        "class": Words::class(record.class),
        "may_pause": !record.class.stays_live(),
        "distance": distance,
        "why": words.chain(record),
        "reason": record.reason,
        "anonymous_kib": record.anonymous_kib,
    })
}
