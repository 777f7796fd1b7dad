//! What the agent costs its guest, in guest instructions: with `-icount shift=0` an instruction is
//! a nanosecond of guest time, so the figures do not depend on this machine.

use anyhow::{Context, Result, ensure};
use lab::{Host, Lab, LabOptions, Vm, VmOptions, results};
use serde_json::{Map, Value, json};
use unmoor_tests::connect_agent;

/// Loads, and how many operations make a figure.
const LOADS: [(&str, u32); 9] = [
    ("compute", 2_000),
    ("syscall", 20_000),
    ("zero", 20_000),
    ("file", 20_000),
    ("pipe", 3_000),
    ("unix", 3_000),
    ("pipes", 2_000),
    ("spawn", 40),
    ("redis", 10_000),
];

fn main() -> Result<()> {
    let lab = Lab::new(&LabOptions::default())?;
    let options = VmOptions {
        memory: "1G".into(),
        vcpus: 2,
        counts_instructions: true,
        ..VmOptions::default()
    };
    let mut vm = Vm::start(&lab, Host::A, &options)?;
    vm.wait_booted()?;
    let without = loads(&mut vm)?;

    vm.guest("setsid unmoor-agent >/run/agent.log 2>&1 </dev/null &")?;
    let (mut client, _) = connect_agent(&vm)?;
    let idle = loads(&mut vm)?;
    let armed = client.arm(Vec::new())?;
    let following = loads(&mut vm)?;
    let report = client.report()?;
    ensure!(report.summary.doubt.is_none(), "{:?}", report.summary);
    client.disarm()?;
    let memory_kib = vm.guest("grep VmRSS /proc/$(pidof unmoor-agent)/status")?;
    let memory_kib: u64 = memory_kib
        .split_ascii_whitespace()
        .nth(1)
        .context("no VmRSS")?
        .parse()?;

    println!("Guest instructions an operation, and the ratio to a guest without agent");
    println!(
        "{:<9} {:>12} {:>20} {:>20}",
        "load", "no agent", "agent, no window", "window open"
    );
    let mut figures = Map::new();
    for (at, (name, _)) in LOADS.iter().enumerate() {
        let (none, idle, open) = (without[at], idle[at], following[at]);
        println!(
            "{name:<9} {none:>12.0} {idle:>12.0} ({:.3}) {open:>12.0} ({:.3})",
            idle / none,
            open / none
        );
        figures.insert(
            (*name).to_owned(),
            json!({
                "none": none,
                "idle": idle,
                "open": open,
                "idle_ratio": idle / none,
                "open_ratio": open / none,
            }),
        );
    }
    println!(
        "armed with {} probes in {:.0} + {:.0} Mio instructions; agent {:.1} MiB",
        armed.probes,
        f64::from(u32::try_from(armed.attach_us)?) / 1e3,
        f64::from(u32::try_from(armed.snapshot_us)?) / 1e3,
        memory_kib as f64 / 1024.0
    );
    let all: Value = json!({
        "loads": figures,
        "attach_minstr": armed.attach_us as f64 / 1e3,
        "snapshot_minstr": armed.snapshot_us as f64 / 1e3,
        "probes": armed.probes,
        "agent_memory_kib": memory_kib,
    });
    let path = results::write("bench-agent", &all)?;
    println!("Figures in {}", path.display());
    Ok(())
}

fn loads(vm: &mut Vm) -> Result<Vec<f64>> {
    LOADS
        .iter()
        .map(|(name, count)| {
            let figure = vm.guest(&format!("lab-guest load {name} {count}"))?;
            Ok(figure.trim().parse()?)
        })
        .collect()
}
