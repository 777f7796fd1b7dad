//! One move, by unmoor or by QEMU itself.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use lab::relay::Unmoor;
use lab::stock::{self, StockReport};
use lab::{HOST_A, HOST_B, Host, Lab, Vm, usage};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Limits, Mode};
use crate::SHORT;
use crate::authority::Authority;

/// Exit code of `unmoor send` when `--timeout` ended it.
const CANCELLED: i32 = 4;

/// How a move went.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Moved {
    /// When it began.
    #[serde(skip)]
    pub begun: Option<Instant>,
    /// Whether the VM moved. If not, it was cancelled at the cap, runs on where it was, and the
    /// other figures are those of that moment.
    pub converged: bool,
    /// unmoor: from the start of QEMU's migration to the source's knowing that the VM runs. QEMU:
    /// from the command to the destination's RESUME event, or the last page.
    pub total_ms: f64,
    /// From the source's STOP event to the destination's RESUME event.
    pub downtime_ms: Option<f64>,
    /// From the start of the program that migrates, or QEMU's command, to the source's STOP event.
    pub stopped_after_ms: Option<f64>,
    /// And to the moment from which the VM did not need the source any more, if it ran before that.
    #[serde(default)]
    pub free_after_ms: Option<f64>,
    /// Bytes from host A on the link, as its interface counts them.
    pub link_bytes: u64,
    /// Passes over the dirty bitmap.
    pub passes: u64,
    /// Processor time of the source's QEMU, which under emulation includes the guest's own.
    pub source_qemu_cpu_s: f64,
    /// What unmoor's two halves used.
    pub relay: Option<RelayUse>,
    /// QEMU's own figures.
    pub stock: Option<StockReport>,
    /// unmoor's summary, or what it said when it gave up.
    pub summary: Value,
    /// Its events, progress left out.
    pub events: Vec<Value>,
}

/// What the two halves of the relay used.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct RelayUse {
    /// Processor time of `unmoor send`.
    pub send_cpu_s: f64,
    /// Processor time of `unmoor receive`.
    pub receive_cpu_s: f64,
    /// Highest resident memory of `unmoor send`, where it says so.
    pub send_memory_bytes: Option<u64>,
    /// Highest resident memory of `unmoor receive`, where it says so.
    pub receive_memory_bytes: Option<u64>,
}

impl Moved {
    /// Moves a VM from host A to host B, or gives up at the cap. `more` goes to `unmoor send`.
    pub fn run(
        lab: &Lab,
        source: &mut Vm,
        destination: &mut Vm,
        mode: Mode,
        limits: &Limits,
        more: &[&str],
    ) -> Result<Self> {
        let plain = ["--compress", "none"];
        match mode {
            Mode::Stock(mode) => by_qemu(lab, source, destination, mode, limits, None),
            Mode::StockTls => {
                let authority = Authority::new()?;
                let folders = (authority.issue(HOST_A)?, authority.issue(HOST_B)?);
                let mode = stock::Mode::PreCopy;
                by_qemu(lab, source, destination, mode, limits, Some(folders))
            }
            Mode::Live | Mode::LivePacked | Mode::StopCopy | Mode::PostCopy => {
                let how: &[&str] = match mode {
                    Mode::Live => &["--protocol", "live", "--compress", "none"],
                    Mode::LivePacked => &["--protocol", "live", "--history", "256MiB"],
                    Mode::PostCopy => &["--protocol", "post-copy", "--compress", "none"],
                    _ => &["--protocol", "stop-copy", "--compress", "none"],
                };
                let more = [how, more].concat();
                by_unmoor(lab, source, destination, limits, &more, &[])
            }
            Mode::LiveTls | Mode::Tls | Mode::Packed => {
                let authority = Authority::new()?;
                let folders = (authority.issue(HOST_A)?, authority.issue(HOST_B)?);
                let (protocol, plain): (_, &[&str]) = match mode {
                    Mode::LiveTls => ("live", &plain),
                    Mode::Tls => ("stop-copy", &plain),
                    _ => ("stop-copy", &[]),
                };
                let ours = ["--protocol", protocol, "--tls-dir", &folders.0];
                let more = [&ours, plain, more].concat();
                let theirs = ["--tls-dir", &folders.1];
                by_unmoor(lab, source, destination, limits, &more, &theirs)
            }
        }
    }

    /// When it began, and when the source stopped; when it was given up, if it did not move.
    pub fn live(&self) -> Option<(Instant, Instant)> {
        let millis = match self.converged {
            true => self.stopped_after_ms?,
            false => self.total_ms,
        };
        let begun = self.begun?;
        Some((begun, begun + Duration::from_secs_f64(millis / 1e3)))
    }

    /// From the VM's running at the destination until it did not need the source any more.
    pub fn following(&self) -> Option<(Instant, Instant)> {
        let begun = self.begun?;
        let after = |millis: f64| begun + Duration::from_secs_f64(millis / 1e3);
        let runs = self.stopped_after_ms? + self.downtime_ms?;
        Some((after(runs), after(self.free_after_ms?)))
    }

    /// How long a process was paused.
    pub fn pause_ms(&self, pid: u32) -> Option<f64> {
        let frozen = self.summary["frozen"].as_array()?;
        let process = frozen.iter().find(|process| process["pid"] == pid)?;
        process["pause_ms"].as_f64()
    }
}

fn by_qemu(
    lab: &Lab,
    source: &mut Vm,
    destination: &mut Vm,
    mode: stock::Mode,
    limits: &Limits,
    tls: Option<(String, String)>,
) -> Result<Moved> {
    let plan = stock::Plan {
        mode,
        downtime_limit: limits.downtime,
        cap: limits.cap,
        tls,
    };
    let begun = Instant::now();
    let report = stock::run(lab, source, destination, &plan)?;
    Ok(Moved {
        begun: Some(begun),
        converged: report.converged,
        total_ms: report.total_ms,
        downtime_ms: report.downtime_ms,
        stopped_after_ms: report.stopped_after_ms,
        free_after_ms: matches!(mode, stock::Mode::PostCopy | stock::Mode::PostCopyPreempt)
            .then_some(report.total_ms),
        link_bytes: report.wire_bytes,
        passes: report.passes,
        source_qemu_cpu_s: report.source_cpu_s,
        relay: None,
        stock: Some(report),
        summary: Value::Null,
        events: Vec::new(),
    })
}

/// `more` goes to `unmoor send`, `theirs` to `unmoor receive`.
fn by_unmoor(
    lab: &Lab,
    source: &Vm,
    destination: &Vm,
    limits: &Limits,
    more: &[&str],
    theirs: &[&str],
) -> Result<Moved> {
    let channel = |vm: &Vm| vm.agent_path().display().to_string();
    let (from, to) = (channel(source), channel(destination));
    let waits = [&["--once", "--agent", &to], theirs].concat();
    let mut receiver = Unmoor::receive(lab, Host::B, destination, &waits)?;
    let bytes_before = lab.link_bytes()?.from_a;
    let cpu_before = usage::cpu(source.pid())?;
    let downtime = format!("{}ms", limits.downtime.as_millis());
    let cap = format!("{}s", limits.cap.as_secs());
    let mut args = vec!["--agent", &from];
    args.extend(["--downtime-limit", &downtime, "--timeout", &cap]);
    args.extend(more);
    let begun = Instant::now();
    let mut sender = Unmoor::send(lab, Host::A, source, &args)?;
    let code = sender.exit(limits.cap + SHORT)?;
    // What it tells when it gives up has no figures.
    let link_bytes = lab.link_bytes()?.from_a - bytes_before;
    let source_qemu_cpu = usage::cpu(source.pid())?.saturating_sub(cpu_before);
    let end = match code {
        0 => sender.await_event("summary", Duration::ZERO)?,
        CANCELLED => sender.await_event("failed", Duration::ZERO)?,
        _ => bail!(
            "unmoor send ended with {code}: {:?} {}",
            sender.events().last(),
            sender.stderr()
        ),
    };
    let converged = code == 0;
    let received = receiver.exit(SHORT)?;
    if converged && received != 0 {
        bail!(
            "unmoor receive ended with {received}: {}",
            receiver.stderr()
        );
    }
    let events = sender.events();
    let passes = events.iter().rev().find(|event| event["event"] == "pass");
    let stopped = events
        .iter()
        .rev()
        .find(|event| event["event"] == "stopped");
    let free = events.iter().find(|event| event["event"] == "arrived");
    let total_ms = if converged {
        &end["total_ms"]
    } else {
        &end["t_ms"]
    };
    let arrived = receiver.await_event("received", Duration::ZERO).ok();
    let seconds =
        |one: &Unmoor| Ok::<_, anyhow::Error>(one.cpu().context("no CPU time")?.as_secs_f64());
    Ok(Moved {
        begun: Some(begun),
        converged,
        total_ms: total_ms.as_f64().context("no total time")?,
        downtime_ms: end["downtime_ms"].as_f64(),
        stopped_after_ms: stopped.and_then(|event| event["t_ms"].as_f64()),
        free_after_ms: free.and_then(|event| event["t_ms"].as_f64()),
        link_bytes,
        passes: passes.and_then(|event| event["pass"].as_u64()).unwrap_or(0),
        source_qemu_cpu_s: source_qemu_cpu.as_secs_f64(),
        relay: Some(RelayUse {
            send_cpu_s: seconds(&sender)?,
            receive_cpu_s: seconds(&receiver)?,
            send_memory_bytes: end["relay_memory_bytes"].as_u64(),
            receive_memory_bytes: arrived.and_then(|event| event["relay_memory_bytes"].as_u64()),
        }),
        stock: None,
        summary: end,
        events: events
            .into_iter()
            .filter(|event| event["event"] != "progress")
            .collect(),
    })
}
