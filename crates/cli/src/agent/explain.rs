//! `unmoor explain`: who depends on the outside world, on what, and why.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use depgraph::{Class, ProcessId};
use guest_proto::{Armed, ProcessRecord, ProtocolError, Tier, Welcome};
use rustix::event::{PollFd, PollFlags};
use serde_json::{Value, json};

use super::client::{AgentError, Client, Report};
use super::probes::LostProbe;
use super::words::{Words, printable};
use super::{dot, table};
use crate::args::ExplainArgs;
use crate::exit::Exit;
use crate::poll::wait;
use crate::signals::Signals;

/// Less anonymous memory than this is not worth a look.
const SAMPLED_KIB: u64 = 1024;
/// Processes looked at: more would take longer than the sample.
const SAMPLED_MAX: usize = 500;
/// Bound for the page frames that a guest may name here, where they are only counted: 4 PiB.
const FRAMES_MAX: u64 = 1 << 40;

/// What a process has written during the sample.
#[derive(Debug, Clone, Copy)]
pub(super) struct HotSet {
    frames: u64,
    seconds: f64,
}

/// That of every process that was looked at.
pub(super) type HotSets = HashMap<ProcessId, HotSet>;

impl HotSet {
    /// Its size.
    pub(super) fn bytes(&self) -> u64 {
        self.frames.saturating_mul(4096)
    }

    /// How fast it was written; pages written more than once count once.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a rate, and not negative"
    )]
    pub(super) fn bytes_per_s(&self) -> u64 {
        (self.bytes() as f64 / self.seconds.max(1e-3)) as u64
    }
}

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
    let lost = LostProbe::of(&client.probe_state()?);
    for one in &lost {
        eprintln!("unmoor: {}", one.sentence());
    }
    if let (Tier::StandingFactsOnly { reason }, []) = (&welcome.tier, &lost[..]) {
        eprintln!(
            "unmoor: the guest's kernel cannot be probed ({}): whoever is active is taken to be \
             dependent",
            printable(reason)
        );
    }
    let armed = client.arm(args.policy.rules())?;
    eprintln!(
        "following {} for {}",
        printable(&welcome.kernel),
        humantime::format_duration(args.window)
    );
    // Events come to the agent meanwhile; a signal ends the window early.
    let mut fds = [PollFd::from_borrowed_fd(signals.fd(), PollFlags::IN)];
    let cancelled = wait(&mut fds, Some(Instant::now() + args.window))? > 0;
    let report = client.report()?;
    let hot = sample(&mut client, &signals, &report, args.sample)?;
    client.disarm()?;
    if args.json {
        println!("{}", as_json(&welcome, &armed, &lost, &report, &hot));
    } else if args.dot {
        print!("{}", dot::dot(&report));
    } else {
        print!("{}", table::table(&report, &hot));
    }
    Ok(if cancelled {
        Exit::Cancelled
    } else {
        Exit::Success
    })
}

/// How much memory processes write: those that have enough to matter.
fn sample(
    client: &mut Client,
    signals: &Signals,
    report: &Report,
    time: Duration,
) -> Result<HotSets, AgentError> {
    let large = report.processes.iter();
    let large: Vec<ProcessId> = large
        .filter(|record| record.anonymous_kib >= SAMPLED_KIB)
        .map(|record| record.id)
        .take(SAMPLED_MAX)
        .collect();
    if time.is_zero() || large.is_empty() {
        return Ok(HotSets::default());
    }
    let begin = Instant::now();
    match client.watch_writes(large) {
        Ok(()) => {}
        Err(AgentError::Protocol(ProtocolError::Failed(failure))) => {
            eprintln!(
                "unmoor: rates are not known: {}",
                printable(&failure.message)
            );
            return Ok(HotSets::default());
        }
        Err(error) => return Err(error),
    }
    let mut fds = [PollFd::from_borrowed_fd(signals.fd(), PollFlags::IN)];
    wait(&mut fds, Some(begin + time))?;
    let written = client.written(FRAMES_MAX)?;
    let seconds = begin.elapsed().as_secs_f64();
    Ok(written
        .by_process
        .into_iter()
        .map(|(id, frames)| (id, HotSet { frames, seconds }))
        .collect())
}

fn as_json(
    welcome: &Welcome,
    armed: &Armed,
    lost: &[LostProbe],
    report: &Report,
    hot: &HotSets,
) -> Value {
    let words = Words::new(&report.processes);
    let processes: Vec<Value> = report
        .processes
        .iter()
        .map(|record| process(record, &words, hot))
        .collect();
    let summary = &report.summary;
    json!({
        "agent": welcome.software,
        "kernel": welcome.kernel,
        "probes": armed.probes,
        "missing_probes": armed.missing,
        "lost_probes": lost,
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

fn process(record: &ProcessRecord, words: &Words<'_>, hot: &HotSets) -> Value {
    let hot = hot.get(&record.id);
    let limit = record.pause_limit.as_ref();
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
        "rule": record.rule,
        "pause_limit_ms": limit.map(|(limit, _)| limit.duration().as_millis()),
        "pause_limit_rule": limit.map(|(_, rule)| rule),
        "anonymous_kib": record.anonymous_kib,
        "hot_kib": hot.map(|hot| hot.bytes() / 1024),
        "dirty_bytes_per_s": hot.map(HotSet::bytes_per_s),
    })
}
