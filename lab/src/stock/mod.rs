//! QEMU's own migration over TCP: what unmoor is measured against.

mod follow;
mod mode;

use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail};
use hypervisor::{Client, Incoming};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::usage::cpu;
use crate::{HOST_B, Lab, Vm};

use follow::follow;
pub use mode::Mode;

/// Longest wait for a migration that nobody has limited.
const LIMIT: Duration = Duration::from_secs(120);
/// Longest wait for QEMU to have cancelled, or tidied up.
const END_LIMIT: Duration = Duration::from_secs(20);

/// How to migrate.
#[derive(Debug, Clone)]
pub struct Plan {
    /// QEMU's way.
    pub mode: Mode,
    /// QEMU's downtime limit.
    pub downtime_limit: Duration,
    /// After this time it is cancelled: it does not converge. Post-copy always does.
    pub cap: Duration,
    /// Folders with the certificates of host A and of host B, to encrypt with.
    pub tls: Option<(String, String)>,
}

/// How a stock migration went.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StockReport {
    /// Whether the VM moved. If not, it was cancelled and runs on at the source; the other figures
    /// are those of that moment.
    pub converged: bool,
    /// From the command to the destination's RESUME event, or to the last page where those come
    /// later.
    pub total_ms: f64,
    /// From the source's STOP event to the destination's RESUME event.
    pub downtime_ms: Option<f64>,
    /// From the command to the source's STOP event.
    pub stopped_after_ms: Option<f64>,
    /// The downtime that QEMU tells, which leaves the destination's part out.
    pub qemu_downtime_ms: u64,
    /// Bytes from host A on the migration link, as its interface counts them.
    pub wire_bytes: u64,
    /// Bytes that QEMU had yet to send when it was cancelled.
    pub remaining_bytes: u64,
    /// Passes over the dirty bitmap.
    pub passes: u64,
    /// How much the guest's processors were throttled when it was cancelled, in percent.
    pub throttle_percent: u64,
    /// Processor time of the source's QEMU, which under emulation includes the guest's own.
    pub source_cpu_s: f64,
}

/// Migrates `source` to `destination`, from host A to host B, with QEMU's plain pre-copy; fails if
/// that does not converge.
pub fn migrate(
    lab: &Lab,
    source: &mut Vm,
    destination: &mut Vm,
    downtime_limit: Duration,
) -> Result<StockReport> {
    let plan = Plan {
        mode: Mode::PreCopy,
        downtime_limit,
        cap: LIMIT,
        tls: None,
    };
    let report = run(lab, source, destination, &plan)?;
    if !report.converged {
        bail!("QEMU's migration does not converge");
    }
    Ok(report)
}

/// Migrates `source` to `destination`, from host A to host B. One that does not converge is
/// cancelled: then the VM runs on at the source, and the destination's QEMU ends.
pub fn run(lab: &Lab, source: &mut Vm, destination: &mut Vm, plan: &Plan) -> Result<StockReport> {
    let uri = format!("tcp:{HOST_B}:4444");
    let milliseconds = u64::try_from(plan.downtime_limit.as_millis())?;
    for vm in [&mut *source, &mut *destination] {
        vm.qmp("migrate-set-capabilities", &plan.mode.capabilities())?;
        vm.qmp(
            "migrate-set-parameters",
            &plan.mode.parameters(milliseconds),
        )?;
        // What happened before is of no interest.
        vm.monitor()?.process()?;
    }
    if let Some((ours, theirs)) = &plan.tls {
        encrypt(source, "client", ours)?;
        encrypt(destination, "server", theirs)?;
    }
    destination.qmp("migrate-incoming", &json!({"uri": uri}))?;
    let bytes_before = lab.link_bytes()?;
    let cpu_before = cpu(source.pid())?;
    let begun = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
    source.qmp("migrate", &json!({"uri": uri}))?;
    let end = follow(source, plan)?;
    let (info, resumed) = match end.gave_up {
        Some(info) => {
            // Whoever migrates this VM next finds it as it was.
            source.qmp("migrate-set-capabilities", &Mode::PreCopy.capabilities())?;
            (info, None)
        }
        None => {
            let deadline = Instant::now() + END_LIMIT;
            let resumed = await_event(destination.monitor()?, "RESUME", deadline)?;
            (await_figures(source, deadline)?, Some(resumed))
        }
    };
    let wire_bytes = lab.link_bytes()?.from_a - bytes_before.from_a;
    let source_cpu = cpu(source.pid())?.saturating_sub(cpu_before);
    let over = match resumed {
        // The VM runs; what QEMU tidies up after that is no migration any more.
        Some(resumed) if !plan.mode.is_post_copy() => resumed,
        Some(resumed) => resumed.max(end.at),
        None => end.at,
    };
    let number = |value: &Value| value.as_u64().unwrap_or(0);
    Ok(StockReport {
        converged: resumed.is_some(),
        total_ms: milliseconds_between(begun, over),
        downtime_ms: resumed
            .zip(end.stopped)
            .map(|(resumed, stopped)| milliseconds_between(stopped, resumed)),
        stopped_after_ms: end
            .stopped
            .map(|stopped| milliseconds_between(begun, stopped)),
        qemu_downtime_ms: number(&info["downtime"]),
        wire_bytes,
        remaining_bytes: number(&info["ram"]["remaining"]),
        passes: number(&info["ram"]["dirty-sync-count"]),
        throttle_percent: number(&info["cpu-throttle-percentage"]),
        source_cpu_s: source_cpu.as_secs_f64(),
    })
}

/// QEMU encrypts with the certificates of a folder, and asks its peer for one.
fn encrypt(vm: &mut Vm, endpoint: &str, folder: &str) -> Result<()> {
    let credentials = json!({
        "qom-type": "tls-creds-x509",
        "id": "tls",
        "dir": folder,
        "endpoint": endpoint,
        "verify-peer": true,
    });
    vm.qmp("object-add", &credentials)?;
    let parameters = json!({"tls-creds": "tls", "tls-hostname": HOST_B});
    vm.qmp("migrate-set-parameters", &parameters)?;
    Ok(())
}

/// Waits for an event and yields its time on the host's clock.
pub fn await_event(monitor: &mut Client, name: &str, deadline: Instant) -> Result<Duration> {
    loop {
        for incoming in monitor.process()? {
            if let Incoming::Event(event) = incoming {
                if event.name == name {
                    return Ok(event.timestamp);
                }
                let failed = event.data["status"] == "failed";
                if event.name == "MIGRATION" && failed {
                    bail!("QEMU's migration failed");
                }
            }
        }
        if !monitor.wait_readable(deadline)? {
            bail!("no {name} event in time");
        }
    }
}

/// QEMU may say `completed` a moment before its figures are complete.
fn await_figures(source: &mut Vm, deadline: Instant) -> Result<Value> {
    loop {
        let info = source.qmp("query-migrate", &json!({}))?;
        let status = info["status"].as_str().context("no status")?;
        if status == "completed" && info["total-time"].as_u64().unwrap_or(0) > 0 {
            return Ok(info);
        }
        if Instant::now() > deadline || status == "failed" {
            bail!("QEMU's migration is `{status}`");
        }
        // An event ends the wait; the figures alone come without one.
        let look = Instant::now() + Duration::from_millis(20);
        source.monitor()?.wait_readable(look)?;
    }
}

fn milliseconds_between(from: Duration, to: Duration) -> f64 {
    to.saturating_sub(from).as_secs_f64() * 1000.0
}
