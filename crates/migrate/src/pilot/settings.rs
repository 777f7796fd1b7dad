//! What goes into the pilot and what comes out.

use std::time::Duration;

use depgraph::ProcessId;
use guest_proto::{ProbeState, ProcessRecord, Request, Rule, Run, Summary};

use super::Job;

/// How memory travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// All of it live, as QEMU would.
    Live,
    /// That of processes on which nobody outside depends once, while they stand.
    StopCopy,
    /// That of processes on which nobody outside depends once, after the switchover, and nobody
    /// stands. Without an agent, whatever has not been sent once by then.
    PostCopy,
}

/// What happens when the live part does not converge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnStall {
    /// It goes on.
    Wait,
    /// QEMU throttles the guest's processors.
    AutoConverge,
    /// The VM is stopped and moved, whatever the downtime.
    Switchover,
    /// What has not been sent by then follows after the switchover, and so does the memory of who
    /// would stand for too long.
    PostCopy,
    /// The migration is given up.
    Abort,
}

/// What the user wants.
#[derive(Debug, Clone)]
pub struct PilotSettings {
    /// How memory travels.
    pub protocol: Protocol,
    /// Longest acceptable stop of the VM.
    pub downtime_limit: Duration,
    /// Longest acceptable pause of a process.
    pub max_pause: Duration,
    /// What happens when the live part does not converge.
    pub on_stall: OnStall,
    /// Rules of the host about processes.
    pub rules: Vec<Rule>,
    /// Less written memory than this is not worth a pause ([`SMALL_BYTES`](super::SMALL_BYTES)).
    pub small_bytes: u64,
    /// Page frames that the guest can have.
    pub frames: u64,
}

/// What only the outside can do.
#[derive(Debug)]
pub enum PilotAction {
    /// Ask the agent.
    Ask(Request),
    /// Set QEMU's downtime limit. What the link carries, in bytes a second, where QEMU's own
    /// measurement says nothing of it: it has seen how fast pages are read that are held.
    DowntimeLimit(Duration, Option<u64>),
    /// Let QEMU throttle the guest's processors so far, in percent.
    Throttle(u8),
    /// Tell the user.
    Tell(PilotNews),
    /// End the migration: the user wants it so.
    GiveUp(String),
}

/// What is worth telling.
#[derive(Debug)]
pub enum PilotNews {
    /// What every process is.
    Classified(Vec<ProcessRecord>, Summary),
    /// How fast processes write, in bytes a second, and how much memory that is.
    Writing(Vec<Job>),
    /// Which of the guest's probes work.
    Probes(ProbeState),
    /// Processes are about to be frozen, for so long by estimate.
    Freezing(Vec<ProcessId>, Duration),
    /// They stand.
    Frozen(Vec<ProcessId>),
    /// They run again, and why.
    Thawed(Vec<ProcessId>, &'static str),
    /// They are moved live, and why.
    Live(Vec<ProcessId>, String),
    /// The guest declares so many pages free, for the first time.
    DeclaredFree(u64),
    /// These page frames are free still and do not travel.
    Free(Vec<Run>),
    /// What is moved live does not shrink.
    Stalled,
    /// Anything else.
    Note(String),
}

/// What the outside knows.
#[derive(Debug, Clone, Copy)]
pub struct View {
    /// Time since any moment before.
    pub now: Duration,
    /// Bytes a second that the link carries, once that is known.
    pub link: Option<u64>,
    /// Since when there has been no connection; nothing while there is one.
    pub cut: Option<Duration>,
    /// The VM has stopped for the switchover.
    pub stopped: bool,
}
