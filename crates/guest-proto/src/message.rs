//! The messages. Their order is their number on the wire: append only.

use depgraph::{Class, ProcessId, Source, Uncertainty, Via};
use serde::{Deserialize, Serialize};

use crate::lost::ProbeState;
use crate::pages::PageSet;
use crate::rule::{PauseLimit, Rule};

/// From the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToAgent {
    /// The host's number for this conversation.
    pub session: u64,
    /// The request's.
    pub id: u32,
    /// What is wanted.
    pub request: Request,
}

/// What a host wants.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Who is there? Begins a session.
    Hello {
        /// Highest version that the host speaks.
        version: u16,
    },
    /// Begin a window: follow who exchanges data with whom from now on.
    Arm {
        /// Rules of the host, which come before the guest's own.
        rules: Vec<Rule>,
    },
    /// What every process is, and why.
    Report,
    /// End the window, and thaw what is frozen.
    Disarm,
    /// The page frames that these processes alone use.
    Owners {
        /// Whose.
        processes: Vec<ProcessId>,
    },
    /// Watch from now on which of their page frames these processes write.
    WatchWrites {
        /// Whose.
        processes: Vec<ProcessId>,
    },
    /// The page frames written since then.
    Written,
    /// The page frames that nobody uses.
    FreePages,
    /// Freeze these processes, unless they have become dependent.
    Freeze {
        /// Which.
        processes: Vec<ProcessId>,
        /// They are thawed if the host says nothing for so long, in milliseconds.
        lease_ms: u32,
        /// Who has not come to a stand after so long runs on, in milliseconds.
        deadline_ms: u32,
    },
    /// Let what is frozen stay so.
    Renew {
        /// For so long from now on, in milliseconds.
        lease_ms: u32,
    },
    /// Thaw everything.
    Thaw,
    /// Who may be paused, as far as it can be told without a window: needs none, and opens none.
    Survey {
        /// Rules of the host, which come before the guest's own.
        rules: Vec<Rule>,
        /// Processes with less anonymous memory, in KiB, are of no interest.
        at_least_kib: u64,
    },
    /// Which of these must not be paused, as far as is known by now.
    Dependents {
        /// Of whom.
        processes: Vec<ProcessId>,
    },
    /// Which probes work, and what is uncertain without the others. From version 3 on.
    ProbeState,
}

/// From the agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToHost {
    /// The host's number for this conversation.
    pub session: u64,
    /// The request that is answered.
    pub id: u32,
    /// Nothing more follows to this request.
    pub last: bool,
    /// The answer, or a part of it.
    pub answer: Answer,
}

/// What an agent answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// To [`Request::Hello`].
    Welcome(Welcome),
    /// To [`Request::Arm`].
    Armed(Armed),
    /// To [`Request::Report`], as many as are needed.
    Processes(Vec<ProcessRecord>),
    /// To [`Request::Report`], the last.
    Summary(Summary),
    /// To [`Request::Disarm`].
    Disarmed,
    /// It cannot be done.
    Failed(Failure),
    /// Page frames, in as many parts as are needed.
    Pages(PageSet),
    /// The last part.
    PagesEnd {
        /// Processes that had gone.
        gone: Vec<ProcessId>,
        /// Page frames for which there was no room.
        dropped: u64,
        /// To [`Request::Written`]: how many of them each process wrote.
        by_process: Vec<(ProcessId, u64)>,
    },
    /// To [`Request::WatchWrites`].
    Watching,
    /// To [`Request::Freeze`].
    Frozen(FrozenReport),
    /// To [`Request::Renew`].
    Renewed,
    /// To [`Request::Thaw`].
    Thawed(Vec<ProcessId>),
    /// Unasked, with the id 0: these processes run again, and why.
    News {
        /// Which.
        thawed: Vec<ProcessId>,
        /// Why.
        reason: ThawReason,
    },
    /// To [`Request::Survey`], as many as are needed.
    Candidates(Vec<Candidate>),
    /// To [`Request::Dependents`].
    Dependents(Vec<ProcessId>),
    /// To [`Request::ProbeState`].
    ProbeState(ProbeState),
}

/// A process that may be paused unless it exchanges data with one that may not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Candidate {
    /// Which.
    pub id: ProcessId,
    /// Anonymous memory in use, in KiB.
    pub anonymous_kib: u64,
}

/// Who was frozen.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FrozenReport {
    /// They stand.
    pub frozen: Vec<ProcessId>,
    /// They run on, and why.
    pub refused: Vec<(ProcessId, String)>,
    /// How long it took, in microseconds.
    pub took_us: u64,
}

/// Why processes were thawed without being asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ThawReason {
    /// Somebody turned to one of them.
    Called,
    /// The host was silent for too long.
    LeaseExpired,
}

/// The agent introduces itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// Version that both speak.
    pub version: u16,
    /// The agent's own.
    pub software: String,
    /// The guest's kernel release.
    pub kernel: String,
    /// How processes can be followed.
    pub tier: Tier,
    /// What it can do besides.
    pub capabilities: Capabilities,
}

/// How processes are followed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Tier {
    /// By probes in the kernel.
    Probes,
    /// Not at all: only what stands, such as open connections, is known, and whoever was active
    /// is taken to be dependent.
    StandingFactsOnly {
        /// Why.
        reason: String,
    },
}

/// What an agent can do besides following processes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    /// Tell which page frames belong to whom.
    pub owners: bool,
    /// Stop and thaw processes.
    pub freezer: bool,
}

/// A window has begun.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Armed {
    /// From the request until all probes were attached, in microseconds.
    pub attach_us: u64,
    /// From then until the standing facts were taken, in microseconds.
    pub snapshot_us: u64,
    /// Probes attached.
    pub probes: u16,
    /// Probes that this kernel has no place for.
    pub missing: Vec<String>,
}

/// One process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessRecord {
    /// Which.
    pub id: ProcessId,
    /// Its parent's id.
    pub parent: u32,
    /// Its name, as the kernel has it.
    pub name: String,
    /// Its command line, shortened.
    pub command: String,
    /// Its control group.
    pub cgroup: String,
    /// What it is.
    pub class: Class,
    /// Why.
    pub reason: Reason,
    /// Anonymous memory in use, in KiB.
    pub anonymous_kib: u64,
    /// The rule about its class, if there is one.
    pub rule: Option<Decided>,
    /// Its longest pause, if a rule says, and which.
    pub pause_limit: Option<(PauseLimit, Decided)>,
}

/// A rule that decided.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decided {
    /// The rule.
    pub rule: String,
    /// Where it stands: `host`, `default`, or a file of the guest with the line's number.
    pub from: String,
}

/// Why a process is what it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reason {
    /// Nothing was found.
    None,
    /// Its own.
    Source(Source),
    /// A flow to one nearer to the outside.
    Flow {
        /// Through what.
        via: Via,
        /// The one nearer to the outside.
        toward: ProcessId,
        /// The object's name, where it has one.
        object: String,
    },
    /// A rule: which.
    Rule(String),
    /// A rule keeps its whole unit live since one process of it is in contact with the outside.
    Unit {
        /// The unit.
        unit: String,
        /// That process.
        facing: ProcessId,
    },
}

/// What there is to say about a window as a whole.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// Its length so far, in milliseconds.
    pub window_ms: u64,
    /// Events that were lost.
    pub losses: Losses,
    /// Nothing is certain, and why.
    pub doubt: Option<Uncertainty>,
    /// Processes in the graph, those that have ended included.
    pub processes: u32,
    /// Objects in it.
    pub objects: u32,
    /// Flows in it.
    pub edges: u32,
    /// Memory of the guest, in KiB.
    pub memory_kib: u64,
}

/// Events that were lost, by cause.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Losses {
    /// No room in the kernel's table of flows.
    pub table_full: u64,
    /// A probe was skipped because it was running already.
    pub probes_skipped: u64,
}

/// Why something was not done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Of which kind.
    pub refusal: Refusal,
    /// For people.
    pub message: String,
}

/// Kinds of failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refusal {
    /// The request came out of turn, such as a report without a window.
    OutOfTurn,
    /// The request makes no sense.
    Invalid,
    /// This guest cannot do it.
    Unsupported,
    /// It went wrong.
    Failed,
}

/// Cuts a text to so many bytes, at a character's boundary.
pub fn shortened(text: &str, bytes: usize) -> String {
    let mut end = text.len().min(bytes);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}
