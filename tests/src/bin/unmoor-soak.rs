//! One VM under load moves back and forth, and everything that could grow is looked at on the way.
//!
//! ```text
//! unmoor-soak [SECONDS]      an hour, unless told otherwise; figures in target/results/soak.json
//! ```
//!
//! Each relay lives for one hop. What lives for all of them is the guest, with its agent, and the client
//! outside, which must not lose a request.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use lab::client::{RedisReport, Running};
use lab::relay::Unmoor;
use lab::saved::Recipe;
use lab::{Host, Lab, LabOptions, Vm, VmOptions, results};
use serde::Serialize;
use serde_json::{Value, json};
use unmoor_tests::{
    MIGRATION_LIMIT, SHORT, await_writing, connect_agent, nothing_is_lost, verify_writer,
};

/// How each hop goes, in turn.
const PROTOCOLS: [&str; 3] = ["stop-copy", "post-copy", "live"];
/// So much may a figure of the last quarter be above one of the first: allocators have a mind of their
/// own.
const GROWTH_MAX: f64 = 1.15;
/// Requests a second to Redis.
const REQUESTS: u32 = 100;

/// One hop.
#[derive(Debug, Clone, Copy, Serialize)]
struct Hop {
    protocol: &'static str,
    total_ms: f64,
    downtime_ms: f64,
    wire_bytes: u64,
    /// Highest resident memory of either relay.
    send_bytes: u64,
    receive_bytes: u64,
    /// Most files that either has open, seen while memory was sent.
    send_files: usize,
    receive_files: usize,
    /// Of the agent and its guardian, after the hop.
    agent_bytes: u64,
    agent_files: u64,
}

type Figure = fn(&Hop) -> f64;

fn main() -> Result<()> {
    let seconds = std::env::args()
        .nth(1)
        .map_or(Ok(3600), |word| word.parse())?;
    let lab = Lab::new(&LabOptions::with_rate("1gbit"))?;
    let recipe = recipe();
    let mut vm = recipe.start(&lab, Host::A, |vm| connect_agent(vm).map(drop))?;
    let client = Running::redis(&lab, REQUESTS)?;
    let begun = Instant::now();
    let mut hops = Vec::new();
    let mut from = Host::A;
    while begun.elapsed() < Duration::from_secs(seconds) {
        let protocol = PROTOCOLS[hops.len() % PROTOCOLS.len()];
        let to = match from {
            Host::A => Host::B,
            _ => Host::A,
        };
        let number = hops.len() + 1;
        let options = recipe.options.as_destination();
        let mut there = Vm::start(&lab, to, &options)?;
        let hop = hop(&lab, [from, to], &vm, &mut there, protocol)
            .with_context(|| format!("hop {number}, {protocol}"))?;
        println!(
            "{number}: {protocol}, {:.1} s, downtime {:.0} ms, relays {} and {} MB, agent {} MB",
            hop.total_ms / 1000.0,
            hop.downtime_ms,
            hop.send_bytes >> 20,
            hop.receive_bytes >> 20,
            hop.agent_bytes >> 20
        );
        hops.push(hop);
        nobody_else(&lab, [(from, vm.pid()), (to, there.pid())])?;
        // What rests is ended by its owner.
        vm = there;
        from = to;
    }
    let redis: RedisReport = client.finish()?;
    nothing_is_lost(&redis)?;
    let growth = growth(&hops);
    let record = json!({
        "seconds": begun.elapsed().as_secs(),
        "hops": hops,
        "growth": growth,
        "redis": redis,
    });
    results::write("soak", &record)?;
    println!("{} hops, {} requests, none lost", hops.len(), redis.sent);
    for (name, ratio) in growth {
        println!("{name}: last quarter / first {ratio:.2}");
        ensure!(ratio <= GROWTH_MAX, "{name} grows");
    }
    Ok(())
}

fn recipe() -> Recipe {
    Recipe {
        name: "soak".to_owned(),
        options: VmOptions {
            agent: true,
            ..VmOptions::default()
        },
        commands: vec![
            // What the live protocol can follow, and pauses are worth.
            "lab-guest writer 96 20 full >/run/writer.log 2>&1 & \
             until grep -q ready /run/writer.log; do usleep 20000; done"
                .to_owned(),
        ],
    }
}

/// Moves the VM once, and looks at everything.
fn hop(
    lab: &Lab,
    [from, to]: [Host; 2],
    here: &Vm,
    there: &mut Vm,
    protocol: &'static str,
) -> Result<Hop> {
    let agents = [here, &*there].map(|vm| vm.agent_path().display().to_string());
    let mut receiver = Unmoor::receive(lab, to, there, &["--once", "--agent", &agents[1]])?;
    let words = ["--agent", &agents[0], "--protocol", protocol];
    let mut sender = Unmoor::send(lab, from, here, &words)?;
    let begun = |event: &Value| event["wire_bytes"].as_u64() > Some(10_000_000);
    sender.await_matching("progress", begun, SHORT)?;
    let files = [&sender, &receiver].map(|relay| files_of(relay.pid()));
    let summary = sender.summary(MIGRATION_LIMIT)?;
    ensure!(receiver.exit(SHORT)? == 0, "{:?}", receiver.events());
    let received = receiver.await_event("received", SHORT)?;
    await_writing(there)?;
    verify_writer(there)?;
    let number = |value: &Value| value.as_u64().context("a figure is missing");
    // The guardian of what was frozen may be ending.
    let agent = there.guest(
        "for p in $(pidof unmoor-agent); do \
         { grep VmRSS /proc/$p/status && ls /proc/$p/fd | wc -l; } 2>/dev/null; done; true",
    )?;
    let (mut agent_bytes, mut agent_files) = (0, 0);
    for line in agent.lines() {
        match line.strip_prefix("VmRSS:") {
            Some(rest) => {
                let kib = rest.split_ascii_whitespace().next().context("no memory")?;
                agent_bytes += kib.parse::<u64>()? * 1024;
            }
            None => {
                let files = line.trim().parse::<u64>();
                agent_files += files.with_context(|| format!("the guest said: {agent}"))?;
            }
        }
    }
    ensure!(agent_bytes > 0, "the agent is gone");
    Ok(Hop {
        protocol,
        total_ms: summary["total_ms"].as_f64().context("no time")?,
        downtime_ms: summary["downtime_ms"].as_f64().context("no downtime")?,
        wire_bytes: number(&summary["wire_bytes"])?,
        send_bytes: number(&summary["relay_memory_bytes"])?,
        receive_bytes: number(&received["relay_memory_bytes"])?,
        send_files: files[0],
        receive_files: files[1],
        agent_bytes,
        agent_files,
    })
}

/// Files that a process has open; none if it has just ended.
fn files_of(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}

/// Nothing but the two QEMUs runs.
fn nobody_else(lab: &Lab, expected: [(Host, u32); 2]) -> Result<()> {
    let deadline = Instant::now() + SHORT;
    for (host, pid) in expected {
        loop {
            let pids = lab.pids(host)?;
            if pids == [pid] {
                break;
            }
            if Instant::now() > deadline {
                bail!("at host {host} run {pids:?}, not {pid} alone");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    Ok(())
}

/// By figure: the median of the last quarter of the hops over that of the first.
fn growth(hops: &[Hop]) -> Vec<(&'static str, f64)> {
    let quarter = hops.len().div_ceil(4);
    let median = |hops: &[Hop], figure: Figure| {
        let mut all: Vec<f64> = hops.iter().map(figure).collect();
        all.sort_by(f64::total_cmp);
        all.get(all.len() / 2).copied().unwrap_or(0.0)
    };
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    let figures: [(&str, Figure); 6] = [
        ("memory of send", |hop| hop.send_bytes as f64),
        ("memory of receive", |hop| hop.receive_bytes as f64),
        ("files of send", |hop| hop.send_files as f64),
        ("files of receive", |hop| hop.receive_files as f64),
        ("memory of the agent", |hop| hop.agent_bytes as f64),
        ("files of the agent", |hop| hop.agent_files as f64),
    ];
    let last = &hops[hops.len() - quarter..];
    let ratio = |figure| median(last, figure) / median(&hops[..quarter], figure).max(1.0);
    figures.map(|(name, figure)| (name, ratio(figure))).to_vec()
}
