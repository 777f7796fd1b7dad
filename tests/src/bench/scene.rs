//! A VM with its workload on host A, its clients outside, and a QEMU that waits on host B.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use lab::client::{EchoReport, RedisReport, Running};
use lab::{Host, Lab, LabOptions, Vm, usage};
use serde::{Deserialize, Serialize};

use super::turn::{self, Turned};
use super::{Limits, Mode, Moved, Workload};
use crate::connect_agent;

/// Time between two probe packets: the resolution of the downtime that is seen from outside.
const PROBE_US: u32 = 5000;

/// A VM with its workload and its clients.
#[derive(Debug)]
pub struct Scene {
    /// What runs in it.
    pub workload: Workload,
    /// The VM on host A.
    pub source: Vm,
    /// The QEMU on host B.
    pub destination: Option<Vm>,
    /// Whether the VM has moved.
    pub has_moved: bool,
    redis: Option<Running>,
    probe: Running,
    /// Whom a job calls.
    peer: Option<Running>,
    /// Last, so that everything else ends before its namespaces go.
    pub lab: Lab,
}

/// What the agent used in its guest.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct AgentUse {
    /// Processor time since it started.
    pub cpu_s: f64,
    /// Highest resident memory of its processes.
    pub memory_bytes: u64,
}

impl Scene {
    /// Starts the VM from its saved state (made first, if need be) and its clients, which have had
    /// their first answers when this returns.
    pub fn new(workload: Workload) -> Result<Self> {
        let lab = Lab::new(&LabOptions {
            link_rate: workload.link.map(str::to_owned),
            ..LabOptions::default()
        })?;
        let source = workload.recipe().start(&lab, Host::A, |vm| {
            // It answers when its probes are loaded.
            connect_agent(vm).map(drop)
        })?;
        let redis = workload
            .requests
            .map(|rate| Running::redis(&lab, rate))
            .transpose()?;
        let probe = Running::echo(&lab, PROBE_US)?;
        let peer = workload
            .turns
            .map(|_| Running::peer(&lab, turn::PORT, PROBE_US))
            .transpose()?;
        Ok(Scene {
            workload,
            source,
            destination: None,
            has_moved: false,
            redis,
            probe,
            peer,
            lab,
        })
    }

    /// Begins a window in all reports.
    pub fn mark(&mut self, name: &str) -> Result<()> {
        let clients = [
            self.redis.as_mut(),
            Some(&mut self.probe),
            self.peer.as_mut(),
        ];
        clients
            .into_iter()
            .flatten()
            .try_for_each(|one| one.mark(name))
    }

    /// Has a window in the reports of clients that lies behind.
    pub fn span(&mut self, name: &str, begins: Instant, ends: Instant) -> Result<()> {
        let clients = [self.redis.as_mut(), Some(&mut self.probe)];
        clients
            .into_iter()
            .flatten()
            .try_for_each(|one| one.span(name, begins, ends))
    }

    /// Starts a QEMU on host B that waits for the VM.
    pub fn await_at_b(&mut self) -> Result<()> {
        // What waited there before has ended by itself, and leaves its network card now.
        self.destination = None;
        let options = self.source.options().as_destination();
        self.destination = Some(Vm::start(&self.lab, Host::B, &options)?);
        Ok(())
    }

    /// Moves the VM to the QEMU that waits, and has the job turn that does. `in_use` is the guest's
    /// memory in use. `more` goes to `unmoor send`.
    pub fn run(
        &mut self,
        mode: Mode,
        limits: &Limits,
        in_use: u64,
        more: &[&str],
    ) -> Result<(Moved, Option<Turned>)> {
        let (lab, source) = (&self.lab, &mut self.source);
        let destination = self
            .destination
            .as_mut()
            .context("nobody waits on host B")?;
        let turning = self.workload.turns;
        let mut control = turning.map(|_| source.take_control()).transpose()?;
        let over = AtomicBool::new(false);
        let (moved, turned) = std::thread::scope(|scope| {
            let turning = turning.zip(control.as_mut()).map(|(job, control)| {
                let over = &over;
                scope.spawn(move || turn::when_half_has_moved(lab, control, job, in_use / 2, over))
            });
            let moved = Moved::run(lab, source, destination, mode, limits, more);
            over.store(true, Ordering::Release);
            let turned = turning.map(std::thread::ScopedJoinHandle::join);
            (moved, turned)
        });
        let moved = moved?;
        let mut turned = turned
            .map(|joined| joined.ok().context("the thread that turns a job failed")?)
            .transpose()?
            .flatten();
        if let Some(turned) = &mut turned {
            turned.count_from(moved.begun);
        }
        self.has_moved = moved.converged;
        Ok((moved, turned))
    }

    /// The VM, wherever it runs.
    pub fn vm(&mut self) -> Result<&mut Vm> {
        if self.has_moved {
            self.destination.as_mut().context("no destination")
        } else {
            Ok(&mut self.source)
        }
    }

    /// Bytes of the guest's memory that its kernel does not call free, its own included.
    pub fn in_use_bytes(&mut self) -> Result<u64> {
        let vm = self.vm()?;
        let text = vm.guest("cat /proc/meminfo")?;
        let line = text.lines().find_map(|line| line.strip_prefix("MemFree:"));
        let kib = line.and_then(|rest| rest.split_ascii_whitespace().next());
        let free: u64 = kib.context("no MemFree")?.parse()?;
        Ok(vm.memory_bytes()?.saturating_sub(free * 1024))
    }

    /// What the agent has used so far.
    pub fn agent_use(&mut self) -> Result<AgentUse> {
        let text = self.vm()?.guest(
            "for p in $(pidof unmoor-agent); do cat /proc/$p/stat; grep VmHWM /proc/$p/status; done",
        )?;
        let (mut cpu, mut memory_kib) = (Duration::ZERO, 0);
        for line in text.lines() {
            match line.strip_prefix("VmHWM:") {
                Some(rest) => {
                    let value = rest.split_ascii_whitespace().next().context("no memory")?;
                    memory_kib += value.parse::<u64>()?;
                }
                None => cpu += usage::cpu_in(line)?,
            }
        }
        Ok(AgentUse {
            cpu_s: cpu.as_secs_f64(),
            memory_bytes: memory_kib * 1024,
        })
    }

    /// Ends the clients and reads what they saw: Redis, the probe, and whom the job called.
    pub fn finish(self) -> Result<(Option<RedisReport>, EchoReport, Option<EchoReport>)> {
        let redis = self.redis.map(Running::finish).transpose()?;
        let probe = self.probe.finish()?;
        let peer = self.peer.map(Running::finish).transpose()?;
        Ok((redis, probe, peer))
    }
}
