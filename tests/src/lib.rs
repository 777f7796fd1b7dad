//! What the end-to-end tests, the demo and the benchmark share: a pair of VMs and a workload.

pub mod authority;
pub mod backend;
pub mod bench;
pub mod browser;
pub mod hosts;
pub mod matrix;
pub mod mechanisms;
pub mod on_the_way;
pub mod pretender;
pub mod sockets;

use std::ops::Range;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use guest_proto::Welcome;
use lab::client::{RedisReport, Running};
use lab::ram::RamDiff;
use lab::relay::Unmoor;
use lab::{HOST_A, Host, Lab, LabOptions, Vm, VmOptions, ram};
use serde_json::Value;
use unmoor::agent::Client;

/// Longest wait for a whole migration in the lab.
pub const MIGRATION_LIMIT: Duration = Duration::from_secs(120);
/// Bytes of pages that each half keeps at the most, unless told otherwise.
const HISTORY: u64 = 64 << 20;
/// Longest wait for anything else.
pub const SHORT: Duration = Duration::from_secs(30);

/// A VM on host A and a QEMU on host B that waits for it.
#[derive(Debug)]
pub struct Pair {
    /// The VM.
    pub source: Vm,
    /// The QEMU that waits.
    pub destination: Vm,
    /// The two hosts. Last, so that the VMs end before their namespaces go.
    pub lab: Lab,
}

impl Pair {
    /// A booted VM on host A, with a 1 Gbit/s link to a host B where a QEMU waits.
    pub fn new(options: &VmOptions) -> Result<Self> {
        Self::with(options, &options.as_destination(), Some("1gbit"))
    }

    /// As [`new`](Pair::new), with the destination's options and the link's rate.
    pub fn with(
        source: &VmOptions,
        destination: &VmOptions,
        link_rate: Option<&str>,
    ) -> Result<Self> {
        let lab = Lab::new(&LabOptions {
            link_rate: link_rate.map(str::to_owned),
            ..LabOptions::default()
        })?;
        let mut source = Vm::start(&lab, Host::A, source)?;
        source.wait_booted()?;
        let destination = Vm::start(&lab, Host::B, destination)?;
        Ok(Pair {
            source,
            destination,
            lab,
        })
    }

    /// Starts `unmoor receive` at host B.
    pub fn receive(&self, more: &[&str]) -> Result<Unmoor> {
        Unmoor::receive(&self.lab, Host::B, &self.destination, more)
    }

    /// Starts `unmoor send` at host A.
    pub fn send(&self, more: &[&str]) -> Result<Unmoor> {
        Unmoor::send(&self.lab, Host::A, &self.source, more)
    }

    /// Moves the VM from A to B and yields the summary.
    pub fn migrate(&self, more: &[&str]) -> Result<Value> {
        let mut receiver = self.receive(&["--once"])?;
        let mut sender = self.send(more)?;
        let summary = sender.summary(MIGRATION_LIMIT)?;
        let code = receiver.exit(SHORT)?;
        if code != 0 {
            bail!("unmoor receive ended with {code}: {:?}", receiver.events());
        }
        Ok(summary)
    }
}

/// Starts a memory writer in the guest and waits until its memory is filled.
pub fn start_writer(vm: &mut Vm, mib: u32, mb_per_s: u32, mode: &str) -> Result<()> {
    vm.guest(&format!(
        "lab-guest writer {mib} {mb_per_s} {mode} >/run/writer.log 2>&1 & \
         until grep -q ready /run/writer.log; do usleep 20000; done"
    ))?;
    Ok(())
}

/// Has the writer check all of its memory; fails if a byte is not what it should be.
pub fn verify_writer(vm: &mut Vm) -> Result<String> {
    let answer = vm.guest("lab-guest writer-ctl verify")?;
    if !answer.starts_with("VERIFIED") {
        bail!("the writer says {answer}");
    }
    Ok(answer)
}

/// Waits until the writer has written more than it had at the call: proof that it runs.
pub fn await_writing(vm: &mut Vm) -> Result<()> {
    let written = |vm: &mut Vm| -> Result<u64> {
        let answer = vm.guest("lab-guest writer-ctl stat")?;
        let pages = answer
            .split(' ')
            .find_map(|word| word.strip_prefix("pages="))
            .context("no count")?;
        Ok(pages.parse()?)
    };
    let before = written(vm)?;
    let deadline = Instant::now() + SHORT;
    while written(vm)? <= before {
        if Instant::now() > deadline {
            bail!("the writer stands still");
        }
    }
    Ok(())
}

/// Compares the memory of two VMs that stand: equal to the byte, but for page frames that were left
/// behind.
pub fn memory_is_equal(one: &mut Vm, other: &mut Vm, left: &[Range<u64>]) -> Result<RamDiff> {
    let diff = ram::compare(one, other)?;
    let frames = diff.differing.iter().map(|address| address / 4096);
    let wrong: Vec<u64> = frames
        .filter(|frame| !left.iter().any(|run| run.contains(frame)))
        .collect();
    ensure!(wrong.is_empty(), "frames differ: {wrong:x?}");
    Ok(diff)
}

/// The client has had an answer to all that it has sent, and the right one.
pub fn nothing_is_lost(redis: &RedisReport) -> Result<()> {
    let bad = (redis.lost, redis.wrong, redis.broken_connections);
    ensure!(bad == (0, 0, 0), "{redis:?}");
    Ok(())
}

/// What is served at port 9090 of host A under /metrics, as host B sees it.
pub fn metrics_of_a(lab: &Lab) -> Result<String> {
    let fetch = "exec 3<>/dev/tcp/$0/9090; printf 'GET /metrics HTTP/1.1\\r\\n\\r\\n' >&3; cat <&3";
    let mut command = lab.command(Host::B, "bash");
    let output = command.args(["-c", fetch, HOST_A]).output()?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Connects to the agent in the guest once it has loaded its probes.
pub fn connect_agent(vm: &Vm) -> Result<(Client, Welcome)> {
    let deadline = Instant::now() + SHORT;
    loop {
        match Client::connect(&vm.agent_path()) {
            Ok(connected) => return Ok(connected),
            Err(error) if Instant::now() > deadline => return Err(error.into()),
            Err(_) => {}
        }
    }
}

/// A VM that was moved with an agent, while a client outside used its Redis.
#[derive(Debug)]
pub struct Moved {
    /// The VMs and their lab.
    pub pair: Pair,
    /// The sender's words.
    pub sender: Unmoor,
    /// Its summary.
    pub summary: Value,
    /// The receiver's last words.
    pub received: Value,
    /// What the client saw.
    pub redis: RedisReport,
}

/// Moves a guest whose writer has so many MiB and writes so many MB/s (0: as fast as it can) as `unmoor`
/// decides with its agent. The writer's memory is right afterwards, and no request is lost.
pub fn move_with_agent(guest: &VmOptions, writer: (u32, u32)) -> Result<Moved> {
    let mut pair = Pair::new(guest)?;
    let (mib, mb_per_s) = writer;
    start_writer(&mut pair.source, mib, mb_per_s, "full")?;
    let client = Running::redis(&pair.lab, 100)?;
    drop(connect_agent(&pair.source)?);
    let channel = |vm: &Vm| vm.agent_path().display().to_string();
    let mut receiver = pair.receive(&["--once", "--agent", &channel(&pair.destination)])?;
    let mut sender = pair.send(&["--agent", &channel(&pair.source)])?;
    let summary = sender.summary(MIGRATION_LIMIT)?;
    ensure!(receiver.exit(SHORT)? == 0, "{:?}", receiver.events());
    let received = receiver.await_event("received", SHORT)?;
    verify_writer(&mut pair.destination)?;
    await_writing(&mut pair.destination)?;
    let redis = client.finish()?;
    nothing_is_lost(&redis)?;
    Ok(Moved {
        pair,
        sender,
        summary,
        received,
        redis,
    })
}

/// What either half of the relay may use: 64 MiB and 48 bytes for each guest page.
pub fn relay_memory_limit(summary: &Value) -> u64 {
    let pages = summary["guest_memory_bytes"].as_u64().unwrap_or(0) / 4096;
    (64 << 20) + HISTORY + 48 * pages
}
