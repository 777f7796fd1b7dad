//! One measured migration, from the guest's start to its verification.

use std::thread::sleep;
use std::time::Duration;

use anyhow::Result;
use lab::client::{EchoReport, RedisReport, Window};
use serde::{Deserialize, Serialize};

use super::warm::Warm;
use super::{AgentUse, JobOutcome, Limits, Mode, Moved, Progress, Scene, Turned, Workload};

/// For a guest whose code has yet to be translated anew.
const SETTLE: Duration = Duration::from_secs(4);
/// How long clients are watched before the move.
const BEFORE: Duration = Duration::from_secs(8);
/// A VM that has arrived needs so long to translate its code anew.
const ARRIVAL: Duration = Duration::from_millis(500);
/// How long they are watched after it.
const AFTER: Duration = Duration::from_secs(5);

/// Everything that was seen in one run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Trial {
    /// The workload's name.
    pub workload: String,
    /// The mode's title.
    pub mode: String,
    /// How the move went.
    pub moved: Moved,
    /// The guest's memory that was not free at its start, as the guest sees it.
    pub in_use_bytes: u64,
    /// What the client of Redis saw.
    pub redis: Option<RedisReport>,
    /// What the probe saw.
    pub probe: EchoReport,
    /// What became of the batch jobs.
    pub jobs: Vec<JobOutcome>,
    /// What became of the job that turned dependent.
    pub turned: Option<Turned>,
    /// What the agent used from the start to the end of the move; its memory is the highest ever.
    pub agent: AgentUse,
}

impl Trial {
    /// What the client of Redis saw in a window.
    pub fn client(&self, window: &str) -> Option<&Window> {
        let windows = &self.redis.as_ref()?.windows;
        windows.iter().find(|one| one.name == window)
    }

    /// What the probe saw during the move.
    pub fn probe_during(&self) -> Option<&Window> {
        self.probe.windows.iter().find(|one| one.name == "during")
    }

    /// What the client of Redis waited for longest during the move; the probe's where there is none.
    pub fn longest_gap_ms(&self) -> Option<f64> {
        let window = self.client("during").or_else(|| self.probe_during())?;
        Some(window.longest_gap_ms)
    }

    /// The downtime as seen from outside: probe packets lost during the move, times their interval.
    pub fn probe_lost_ms(&self) -> Option<f64> {
        let during = self.probe_during()?;
        Some(during.lost as f64 * self.probe.interval_ms)
    }
}

/// Starts the workload from its saved state, moves it and looks at it afterwards.
pub fn run(workload: Workload, mode: Mode, limits: &Limits) -> Result<Trial> {
    run_with(workload, mode, limits, &[], |_| Ok(()))
}

/// The same with further arguments for `unmoor send`, and something to be done with the running VM
/// before it is measured.
pub fn run_with(
    workload: Workload,
    mode: Mode,
    limits: &Limits,
    more: &[&str],
    first: impl FnOnce(&mut Scene) -> Result<()>,
) -> Result<Trial> {
    let jobs = workload.jobs;
    let mut scene = Scene::new(workload)?;
    scene.await_at_b()?;
    first(&mut scene)?;
    sleep(SETTLE);
    let first = Progress::of_all(scene.vm()?, jobs)?;
    scene.mark("before")?;
    sleep(BEFORE);
    // Questions to the guest are nothing that belongs into a window.
    scene.mark("asking")?;
    let warm = Warm::up();
    let begun = Progress::of_all(scene.vm()?, jobs)?;
    let in_use_bytes = scene.in_use_bytes()?;
    let agent_before = scene.agent_use()?;

    warm.release();
    scene.mark("during")?;
    let (moved, mut turned) = scene.run(mode, limits, in_use_bytes, more)?;
    scene.mark("asking")?;
    if let Some((begins, ends)) = moved.live() {
        scene.span("live", begins, ends)?;
    }
    if let Some((begins, ends)) = moved.following() {
        scene.span("following", begins, ends)?;
        // A guest under emulation is slow at first, whoever has moved it.
        let settled = begins + ARRIVAL;
        if settled < ends {
            scene.span("settled", settled, ends)?;
        }
    }

    let ended = Progress::of_all(scene.vm()?, jobs)?;
    let agent_after = scene.agent_use()?;
    scene.mark("after")?;
    sleep(AFTER);
    scene.mark("asking")?;
    let last = Progress::of_all(scene.vm()?, jobs)?;
    let mut outcomes = Vec::new();
    for (at, job) in jobs.iter().enumerate() {
        let mut outcome = JobOutcome::new(job, [&first, &begun, &ended, &last].map(|all| &all[at]));
        outcome.verify(scene.vm()?)?;
        outcome.pause_ms = moved.pause_ms(outcome.pid);
        outcomes.push(outcome);
    }
    let (redis, probe, peer) = scene.finish()?;
    if let Some(turned) = &mut turned {
        let called = outcomes
            .iter()
            .find(|job| Some(&*job.name) == workload.turns);
        if let (Some(job), Mode::Live | Mode::StopCopy) = (called, mode) {
            turned.judge(job.pid, &moved.events, &moved.summary);
        }
        let during = |peer: EchoReport| peer.windows.into_iter().find(|one| one.name == "during");
        turned.longest_gap_ms = peer
            .and_then(during)
            .map_or(0.0, |window| window.longest_gap_ms);
    }
    Ok(Trial {
        workload: workload.name.to_owned(),
        mode: mode.title(),
        moved,
        in_use_bytes,
        redis,
        probe,
        jobs: outcomes,
        turned,
        agent: AgentUse {
            cpu_s: agent_after.cpu_s - agent_before.cpu_s,
            memory_bytes: agent_after.memory_bytes,
        },
    })
}
