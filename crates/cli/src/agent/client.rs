//! A connection to the agent through QEMU's end of the virtio-serial port.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use depgraph::ProcessId;
use guest_proto::{
    Answer, Armed, FrozenReport, Host, PageSetError, ProbeState, ProcessRecord, ProtocolError,
    Request, Rule, Run, Summary, ThawReason, VERSION, VERSION_OLDEST, Welcome,
};
use thiserror::Error;

/// Longest wait for an answer: probes are attached meanwhile, under emulation too.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);
/// Longest wait for the agent to greet. (It loads its probes when it starts, before it answers.)
const GREETING_LIMIT: Duration = Duration::from_secs(5);
/// Runs of page frames that a host takes in: more than a guest's memory falls into.
const RUNS_MAX: usize = 4 << 20;
/// Processes that a host takes in: more than a guest of sensible size has.
const PROCESSES_MAX: usize = 200_000;

/// Why the agent cannot be asked.
#[derive(Debug, Error)]
pub enum AgentError {
    /// The socket.
    #[error("connecting to the agent channel {path}: {source}")]
    Connect {
        /// Where.
        path: String,
        /// Why not.
        source: std::io::Error,
    },
    /// The connection broke.
    #[error("talking to the agent: {0}")]
    Broken(#[from] std::io::Error),
    /// Nobody answers.
    #[error(
        "no agent answers: see that unmoor-agent runs in the guest, and that nothing else is \
         connected to this channel"
    )]
    Silent,
    /// It speaks another version of the protocol.
    #[error(
        "the agent is of a release that this unmoor does not understand (protocol {0}): run the same \
         unmoor in the guest as here"
    )]
    Release(u16),
    /// QEMU has ended.
    #[error("QEMU has closed the agent channel")]
    Closed,
    /// It breaks the rules.
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
    /// Page frames that the guest does not have.
    #[error("the agent names {0}")]
    Pages(#[from] PageSetError),
    /// It answers something else.
    #[error("the agent answers something that was not asked")]
    Unexpected,
    /// No random numbers.
    #[error("no random numbers: {0}")]
    Random(#[from] getrandom::Error),
}

/// A conversation.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    host: Host,
    /// Version of the protocol that both speak.
    version: u16,
    /// No answer is waited for beyond this.
    until: Option<Instant>,
}

/// What every process is.
#[derive(Debug, Clone)]
pub struct Report {
    /// The processes.
    pub processes: Vec<ProcessRecord>,
    /// The window as a whole.
    pub summary: Summary,
}

/// Page frames of the guest.
#[derive(Debug, Clone, Default)]
pub struct Pages {
    /// Runs of them.
    pub runs: Vec<Run>,
    /// Processes that had gone.
    pub gone: Vec<ProcessId>,
    /// Frames for which there was no room.
    pub dropped: u64,
    /// How many of them each process wrote, where that was asked.
    pub by_process: Vec<(ProcessId, u64)>,
}

impl Pages {
    /// How many.
    pub fn count(&self) -> u64 {
        self.runs.iter().map(|run| run.count).sum()
    }
}

impl Client {
    /// Connects and greets.
    pub fn connect(path: &Path) -> Result<(Self, Welcome), AgentError> {
        Self::greet(path, None)
    }

    /// Thaws what is frozen and ends the window, within `limit`; tells who was thawed.
    pub fn release(path: &Path, limit: Duration) -> Result<Vec<ProcessId>, AgentError> {
        let (mut client, _) = Self::greet(path, Some(Instant::now() + limit))?;
        let thawed = client.thaw();
        // Ending the window thaws, too.
        client.disarm()?;
        thawed
    }

    fn greet(path: &Path, until: Option<Instant>) -> Result<(Self, Welcome), AgentError> {
        let stream = UnixStream::connect(path).map_err(|source| AgentError::Connect {
            path: path.display().to_string(),
            source,
        })?;
        let session = u64::from_ne_bytes(crate::random()?);
        let mut client = Client {
            stream,
            host: Host::new(session),
            version: VERSION,
            until,
        };
        match client.ask(Request::Hello { version: VERSION })? {
            Answer::Welcome(welcome) if (VERSION_OLDEST..=VERSION).contains(&welcome.version) => {
                client.version = welcome.version;
                Ok((client, welcome))
            }
            Answer::Welcome(welcome) => Err(AgentError::Release(welcome.version)),
            _ => Err(AgentError::Unexpected),
        }
    }

    /// Which probes work; nothing is known of that from an agent of the version before.
    pub fn probe_state(&mut self) -> Result<ProbeState, AgentError> {
        if self.version == VERSION_OLDEST {
            return Ok(ProbeState::default());
        }
        match self.ask(Request::ProbeState)? {
            Answer::ProbeState(state) => Ok(state),
            _ => Err(AgentError::Unexpected),
        }
    }

    /// Begins a window.
    pub fn arm(&mut self, rules: Vec<Rule>) -> Result<Armed, AgentError> {
        match self.ask(Request::Arm { rules })? {
            Answer::Armed(armed) => Ok(armed),
            _ => Err(AgentError::Unexpected),
        }
    }

    /// What every process is.
    pub fn report(&mut self) -> Result<Report, AgentError> {
        let mut processes = Vec::new();
        let mut answer = self.ask(Request::Report)?;
        loop {
            match answer {
                Answer::Processes(records) if processes.len() < PROCESSES_MAX => {
                    processes.extend(records);
                }
                Answer::Summary(summary) => return Ok(Report { processes, summary }),
                _ => return Err(AgentError::Unexpected),
            }
            answer = self.more(Instant::now() + ANSWER_LIMIT)?;
        }
    }

    /// Ends the window.
    pub fn disarm(&mut self) -> Result<(), AgentError> {
        match self.ask(Request::Disarm)? {
            Answer::Disarmed => Ok(()),
            _ => Err(AgentError::Unexpected),
        }
    }

    /// The page frames that these processes alone use, all below `limit`.
    pub fn owners(&mut self, processes: Vec<ProcessId>, limit: u64) -> Result<Pages, AgentError> {
        let answer = self.ask(Request::Owners { processes })?;
        self.pages(answer, limit)
    }

    /// Watches from now on which of their page frames these processes write.
    pub fn watch_writes(&mut self, processes: Vec<ProcessId>) -> Result<(), AgentError> {
        match self.ask(Request::WatchWrites { processes })? {
            Answer::Watching => Ok(()),
            _ => Err(AgentError::Unexpected),
        }
    }

    /// The page frames written since then.
    pub fn written(&mut self, limit: u64) -> Result<Pages, AgentError> {
        let answer = self.ask(Request::Written)?;
        self.pages(answer, limit)
    }

    /// The page frames that nobody uses.
    pub fn free_pages(&mut self, limit: u64) -> Result<Pages, AgentError> {
        let answer = self.ask(Request::FreePages)?;
        self.pages(answer, limit)
    }

    /// Freezes processes for as long as this is renewed.
    pub fn freeze(
        &mut self,
        processes: Vec<ProcessId>,
        lease: Duration,
        deadline: Duration,
    ) -> Result<FrozenReport, AgentError> {
        let request = Request::Freeze {
            processes,
            lease_ms: millis(lease),
            deadline_ms: millis(deadline),
        };
        match self.ask(request)? {
            Answer::Frozen(report) => Ok(report),
            _ => Err(AgentError::Unexpected),
        }
    }

    /// Lets what is frozen stay so.
    pub fn renew(&mut self, lease: Duration) -> Result<(), AgentError> {
        let lease_ms = millis(lease);
        match self.ask(Request::Renew { lease_ms })? {
            Answer::Renewed => Ok(()),
            _ => Err(AgentError::Unexpected),
        }
    }

    /// Thaws everything.
    pub fn thaw(&mut self) -> Result<Vec<ProcessId>, AgentError> {
        match self.ask(Request::Thaw)? {
            Answer::Thawed(thawed) => Ok(thawed),
            _ => Err(AgentError::Unexpected),
        }
    }

    /// What the agent told without being asked.
    pub fn news(&mut self) -> Option<(Vec<ProcessId>, ThawReason)> {
        match self.host.news()? {
            Answer::News { thawed, reason } => Some((thawed, reason)),
            _ => None,
        }
    }

    fn pages(&mut self, mut answer: Answer, limit: u64) -> Result<Pages, AgentError> {
        let mut pages = Pages::default();
        loop {
            match answer {
                Answer::Pages(set) => {
                    for run in set.iter(limit) {
                        pages.runs.push(run?);
                    }
                    if pages.runs.len() > RUNS_MAX {
                        return Err(AgentError::Protocol(ProtocolError::Endless));
                    }
                }
                Answer::PagesEnd {
                    gone,
                    dropped,
                    by_process,
                } => {
                    pages.by_process = by_process;
                    pages.gone = gone;
                    pages.dropped = dropped;
                    return Ok(pages);
                }
                _ => return Err(AgentError::Unexpected),
            }
            answer = self.more(Instant::now() + ANSWER_LIMIT)?;
        }
    }

    fn ask(&mut self, request: Request) -> Result<Answer, AgentError> {
        let limit = match request {
            Request::Hello { .. } => GREETING_LIMIT,
            _ => ANSWER_LIMIT,
        };
        let deadline = Instant::now() + limit;
        let mut bytes = Vec::new();
        self.host
            .ask(request, &mut bytes)
            .map_err(|error| std::io::Error::new(ErrorKind::InvalidInput, error))?;
        self.stream.set_write_timeout(Some(ANSWER_LIMIT))?;
        self.stream.write_all(&bytes).map_err(silence)?;
        self.more(deadline)
    }

    fn more(&mut self, deadline: Instant) -> Result<Answer, AgentError> {
        let mut buffer = [0; 16 * 1024];
        loop {
            if let Some((answer, _)) = self.host.answer()? {
                return Ok(answer);
            }
            let deadline = self.until.map_or(deadline, |until| until.min(deadline));
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(AgentError::Silent);
            }
            self.stream.set_read_timeout(Some(left))?;
            match self.stream.read(&mut buffer).map_err(silence)? {
                0 => return Err(AgentError::Closed),
                count => self.host.push(&buffer[..count]),
            }
        }
    }
}

fn millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}

fn silence(error: std::io::Error) -> AgentError {
    match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => AgentError::Silent,
        _ => AgentError::Broken(error),
    }
}
