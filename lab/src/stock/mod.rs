//! QEMU's own migration over TCP: what unmoor is measured against.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use hypervisor::{Client, Incoming};
use serde::Serialize;
use serde_json::json;

use crate::{HOST_B, Lab, Vm};

/// Longest wait for a migration.
const LIMIT: Duration = Duration::from_secs(120);

/// How a stock migration went.
#[derive(Debug, Clone, Serialize)]
pub struct StockReport {
    /// From the command to the destination's RESUME event.
    pub total_ms: f64,
    /// From the source's STOP event to the destination's RESUME event.
    pub downtime_ms: f64,
    /// The downtime that QEMU tells, which leaves the destination's part out.
    pub qemu_downtime_ms: u64,
    /// Bytes from host A on the migration link, as its interface counts them.
    pub wire_bytes: u64,
    /// Passes over the dirty bitmap.
    pub passes: u64,
}

/// Migrates `source` to `destination`, from host A to host B, with QEMU's own plain TCP.
pub fn migrate(
    lab: &Lab,
    source: &mut Vm,
    destination: &mut Vm,
    downtime_limit: Duration,
) -> Result<StockReport> {
    let uri = format!("tcp:{HOST_B}:4444");
    let milliseconds = u64::try_from(downtime_limit.as_millis())?;
    source.qmp(
        "migrate-set-parameters",
        &json!({"max-bandwidth": 0, "downtime-limit": milliseconds}),
    )?;
    for vm in [&mut *source, &mut *destination] {
        vm.qmp(
            "migrate-set-capabilities",
            &json!({"capabilities": [{"capability": "events", "state": true}]}),
        )?;
        // What happened before is of no interest.
        vm.monitor()?.process()?;
    }
    destination.qmp("migrate-incoming", &json!({"uri": uri}))?;
    let before = lab.link_bytes()?;
    let begun = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    source.qmp("migrate", &json!({"uri": uri}))?;
    let deadline = Instant::now() + LIMIT;
    let stopped = await_event(source.monitor()?, "STOP", deadline)?;
    let resumed = await_event(destination.monitor()?, "RESUME", deadline)?;
    await_completion(source, deadline)?;
    let after = lab.link_bytes()?;
    let info = source.qmp("query-migrate", &json!({}))?;
    Ok(StockReport {
        total_ms: milliseconds_between(begun, resumed),
        downtime_ms: milliseconds_between(stopped, resumed),
        qemu_downtime_ms: info["downtime"].as_u64().unwrap_or(0),
        wire_bytes: after.from_a - before.from_a,
        passes: info["ram"]["dirty-sync-count"].as_u64().unwrap_or(0),
    })
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
fn await_completion(source: &mut Vm, deadline: Instant) -> Result<()> {
    loop {
        let info = source.qmp("query-migrate", &json!({}))?;
        let status = info["status"].as_str().context("no status")?;
        if status == "completed" && info["total-time"].as_u64().unwrap_or(0) > 0 {
            return Ok(());
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
