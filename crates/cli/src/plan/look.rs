//! A look at a VM: memory in use, who may be paused, who writes how fast. Changes nothing.

use std::time::{Duration, Instant};

use depgraph::ProcessId;
use guest_proto::{LossEffect, ProcessRecord, ProtocolError, Tier};
use hypervisor::Vm;
use migrate::forecast::{BACKGROUND, Candidate, Dirtying, Picture, used};
use migrate::pilot::{CANDIDATE_KIB, CANDIDATES_MAX, Job, sweeps};
use rustix::event::{PollFd, PollFlags};
use thiserror::Error;

use crate::QMP_CONNECT_LIMIT;
use crate::agent::{AgentError, Client, LostProbe, Pages, printable};
use crate::args::PlanArgs;
use crate::poll::wait;
use crate::signals::Signals;

/// Bytes in a page frame.
const FRAME: u64 = 4096;
/// Less anonymous memory than this is not worth a look.
const SAMPLED_KIB: u64 = 1024;
/// Processes looked at, the largest.
const SAMPLED_MAX: usize = 500;
/// How long QEMU watches where there is no agent, in seconds.
const WATCHED: u64 = 1;
/// Time between two questions whether QEMU has seen enough, and how often it is asked.
const ASK_AGAIN: Duration = Duration::from_millis(100);
const ASKED_MAX: u32 = 50;

/// Why nothing can be said.
#[derive(Debug, Error)]
pub(super) enum LookError {
    /// QEMU.
    #[error(transparent)]
    Qemu(#[from] hypervisor::Error),
    /// The agent.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// This system.
    #[error(transparent)]
    System(#[from] std::io::Error),
    /// The user has enough.
    #[error("cancelled by a signal")]
    Cancelled,
}

/// What was seen.
#[derive(Debug)]
pub(super) struct Guest {
    /// Bytes of RAM.
    pub(super) memory: u64,
    /// Bytes that must travel.
    pub(super) used: u64,
    /// By the agent, rather than taken to be all that QEMU's process has.
    pub(super) used_is_known: bool,
    /// What nobody in particular writes.
    pub(super) background: Dirtying,
    pub(super) writers: Vec<Writer>,
    /// Whether processes could be paused, or why not.
    pub(super) pausable: Result<(), String>,
    pub(super) arming: Option<Duration>,
    pub(super) notes: Vec<String>,
}

/// A process that was looked at.
#[derive(Debug)]
pub(super) struct Writer {
    pub(super) record: ProcessRecord,
    pub(super) dirtying: Dirtying,
    /// If it may be frozen.
    pub(super) job: Option<Job>,
}

impl Guest {
    /// What the forecast looks at.
    pub(super) fn picture(&self, link: u64, downtime_limit: Duration) -> Picture {
        let jobs = self.writers.iter().filter_map(|writer| {
            Some(Candidate {
                job: writer.job?,
                dirtying: writer.dirtying,
            })
        });
        let live = self.writers.iter().filter(|writer| writer.job.is_none());
        let live = live.map(|writer| writer.dirtying).chain([self.background]);
        Picture {
            used: self.used,
            link,
            downtime_limit,
            jobs: jobs.collect(),
            live: live.collect(),
            arming: self.arming,
        }
    }
}

/// A VM that is looked at.
pub(super) struct Look<'a> {
    args: &'a PlanArgs,
    signals: &'a Signals,
    vm: Vm,
}

impl<'a> Look<'a> {
    pub(super) fn new(args: &'a PlanArgs, signals: &'a Signals) -> Result<Self, LookError> {
        let vm = Vm::connect(&args.qmp, QMP_CONNECT_LIMIT)?;
        Ok(Look { args, signals, vm })
    }

    /// Looks.
    pub(super) fn guest(mut self) -> Result<Guest, LookError> {
        let memory = self.vm.facts()?.memory_bytes;
        let resident = self.vm.resident_bytes().unwrap_or(memory);
        let mut guest = Guest {
            memory,
            used: memory.min(resident),
            used_is_known: false,
            background: BACKGROUND,
            writers: Vec::new(),
            pausable: Err("no agent was named".to_owned()),
            arming: None,
            notes: Vec::new(),
        };
        let Some(path) = &self.args.agent else {
            self.ask_qemu(&mut guest)?;
            return Ok(guest);
        };
        match Client::connect(path) {
            Ok((mut client, welcome)) => {
                guest.pausable = match &welcome.tier {
                    Tier::Probes if welcome.capabilities.owners && welcome.capabilities.freezer => {
                        Ok(())
                    }
                    Tier::Probes => Err("the agent cannot freeze".to_owned()),
                    Tier::StandingFactsOnly { reason } => Err(printable(reason)),
                };
                let lost = LostProbe::of(&client.probe_state()?);
                if lost.iter().any(|lost| lost.effect == LossEffect::Everyone)
                    && guest.pausable.is_ok()
                {
                    guest.pausable = Err("every process is taken to be dependent".to_owned());
                }
                guest.notes.extend(lost.iter().map(LostProbe::sentence));
                self.ask_agent(&mut client, &mut guest)?;
            }
            Err(error) => {
                guest.pausable = Err(error.to_string());
                self.ask_qemu(&mut guest)?;
            }
        }
        Ok(guest)
    }

    /// QEMU's own figures: the whole guest's, and rough.
    fn ask_qemu(&mut self, guest: &mut Guest) -> Result<(), LookError> {
        guest.notes.push(
            "without an agent all that QEMU's process has in memory is taken to be in use".into(),
        );
        self.vm.watch_writes(WATCHED)?;
        self.pause(Duration::from_secs(WATCHED))?;
        // QEMU has no event for it.
        for _ in 0..ASKED_MAX {
            if let Some(rate) = self.vm.written_per_s()? {
                let rate = rate.max(BACKGROUND.rate());
                guest.background = Dirtying::new(rate, guest.used);
                return Ok(());
            }
            self.pause(ASK_AGAIN)?;
        }
        guest
            .notes
            .push("QEMU does not tell how fast the guest writes memory".into());
        Ok(())
    }

    fn ask_agent(&mut self, client: &mut Client, guest: &mut Guest) -> Result<(), LookError> {
        let ends = self.vm.memory_map()?.into_iter();
        let ends = ends.map(|piece| piece.address.saturating_add(piece.length));
        let frames = ends.max().unwrap_or(0) / FRAME;
        match client.free_pages(frames) {
            Ok(free) => {
                guest.used = used(guest.memory, free.count().saturating_mul(FRAME));
                guest.used_is_known = true;
            }
            Err(AgentError::Protocol(ProtocolError::Failed(failure))) => {
                guest.notes.push(printable(&failure.message));
            }
            Err(error) => return Err(error.into()),
        }
        let armed = client.arm(self.args.policy.rules())?;
        let arming = armed.attach_us.saturating_add(armed.snapshot_us);
        guest.arming = Some(Duration::from_micros(arming));
        self.pause(self.args.window)?;
        let mut records = client.report()?.processes;
        records.sort_by_key(|record| std::cmp::Reverse(record.anonymous_kib));
        records.retain(|record| record.anonymous_kib >= SAMPLED_KIB);
        records.truncate(SAMPLED_MAX);
        let ids: Vec<ProcessId> = records.iter().map(|record| record.id).collect();
        let short = self.sample(client, &ids, frames, 1, guest)?;
        let long = self.sample(client, &ids, frames, 2, guest)?;
        client.disarm()?;
        let mut jobs = 0;
        for record in records {
            let of = |(time, pages): &(Duration, Pages)| {
                let mut all = pages.by_process.iter();
                let written = all.find(|(id, _)| *id == record.id);
                (
                    *time,
                    written.map_or(0, |(_, frames)| frames.saturating_mul(FRAME)),
                )
            };
            let memory = record.anonymous_kib.saturating_mul(1024);
            let may_pause = guest.pausable.is_ok() && !record.class.stays_live();
            let large = record.anonymous_kib >= CANDIDATE_KIB && jobs < CANDIDATES_MAX;
            let job = (may_pause && large).then(|| self.job(&record, of(&long)));
            jobs += usize::from(job.is_some());
            guest.writers.push(Writer {
                dirtying: Dirtying::from_samples(of(&short), of(&long), memory),
                job,
                record,
            });
        }
        Ok(())
    }

    /// What the engine would make of it.
    fn job(&self, record: &ProcessRecord, (time, written): (Duration, u64)) -> Job {
        let memory = record.anonymous_kib.saturating_mul(1024);
        let millis = u64::try_from(time.as_millis()).unwrap_or(u64::MAX).max(1);
        let limit = record.pause_limit.as_ref();
        Job {
            id: record.id,
            hot_bytes: match sweeps(written / FRAME, memory / FRAME) {
                true => memory.max(written),
                false => written,
            },
            rate: written.saturating_mul(1000) / millis,
            limit: limit.map_or(self.args.max_pause, |(limit, _)| limit.duration()),
        }
    }

    /// What these write within so many times the sample.
    fn sample(
        &self,
        client: &mut Client,
        ids: &[ProcessId],
        frames: u64,
        times: u32,
        guest: &mut Guest,
    ) -> Result<(Duration, Pages), LookError> {
        let begin = Instant::now();
        match client.watch_writes(ids.to_vec()) {
            Ok(()) => {}
            Err(AgentError::Protocol(ProtocolError::Failed(failure))) => {
                guest.notes.push(printable(&failure.message));
                return Ok((self.args.sample * times, Pages::default()));
            }
            Err(error) => return Err(error.into()),
        }
        self.pause(self.args.sample * times)?;
        let pages = client.written(frames)?;
        Ok((begin.elapsed(), pages))
    }

    /// A signal ends it.
    fn pause(&self, time: Duration) -> Result<(), LookError> {
        let mut fds = [PollFd::from_borrowed_fd(self.signals.fd(), PollFlags::IN)];
        match wait(&mut fds, Some(Instant::now() + time))? {
            0 => Ok(()),
            _ => Err(LookError::Cancelled),
        }
    }
}
