//! A job that turns to somebody outside while the VM moves.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::Result;
use lab::vm::Control;
use lab::{CLIENT, Lab};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Where somebody outside waits to be called.
pub(super) const PORT: u16 = 7009;
/// Between two looks at the link's counters, which announce nothing.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// When a job turned dependent, and what became of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Turned {
    /// When somebody outside had been reached.
    #[serde(skip)]
    at: Option<Instant>,
    /// From the start of the program that migrates, or QEMU's command, until somebody outside had been reached.
    pub after_ms: f64,
    /// Bytes on the link until then.
    pub link_bytes: u64,
    /// Whether unmoor paused it after that; absent for QEMU, which pauses no process.
    pub paused_after: Option<bool>,
    /// Longest time that its new partner outside waited for an answer.
    pub longest_gap_ms: f64,
}

/// Waits until `bytes` have left host A, and has the job call outside. Nothing if the migration is
/// over first.
pub(super) fn when_half_has_moved(
    lab: &Lab,
    control: &mut Control,
    job: &str,
    bytes: u64,
    over: &AtomicBool,
) -> Result<Option<Turned>> {
    let before = lab.link_bytes()?.from_a;
    while !over.load(Ordering::Acquire) {
        let sent = lab.link_bytes()?.from_a - before;
        if sent >= bytes {
            control.run(&format!(
                "lab-guest writer-ctl {job} call-out {CLIENT}:{PORT}"
            ))?;
            return Ok(Some(Turned {
                at: Some(Instant::now()),
                after_ms: 0.0,
                link_bytes: sent,
                paused_after: None,
                longest_gap_ms: 0.0,
            }));
        }
        sleep(LOOK_EVERY);
    }
    Ok(None)
}

impl Turned {
    pub(super) fn count_from(&mut self, begun: Option<Instant>) {
        if let Some((at, begun)) = self.at.zip(begun) {
            self.after_ms = at.saturating_duration_since(begun).as_secs_f64() * 1000.0;
        }
    }

    /// Whether `unmoor send`'s events or its summary tell of a pause of the process after it turned.
    /// The clock of those events begins with that program's start.
    pub(super) fn judge(&mut self, pid: u32, events: &[Value], summary: &Value) {
        let has = |list: &Value| {
            let list = list.as_array().map_or(&[][..], Vec::as_slice);
            list.iter().any(|process| process["pid"] == pid)
        };
        let frozen_later = events.iter().any(|event| {
            event["event"] == "frozen"
                && event["t_ms"].as_f64().unwrap_or(0.0) > self.after_ms
                && has(&event["processes"])
        });
        self.paused_after = Some(frozen_later || has(&summary["frozen"]));
    }
}
