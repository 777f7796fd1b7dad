//! The conversation with the host.

use std::collections::HashMap;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use depgraph::{ProcessId, Source, Uncertainty};
use guest_proto::{
    Answer, Armed, Capabilities, Decoder, Failure, Losses, ProbeState, Reason, Refusal, Request,
    Rule, ThawReason, Tier, ToAgent, ToHost, UNASKED, VERSION, VERSION_OLDEST, Welcome, encode,
};
use rustix::event::{PollFd, PollFlags, poll};

use crate::addresses;
use crate::memory::{self, Memory};
use crate::port::{Port, timespec};
use crate::processes::{self, Activity};
use crate::standing;
use crate::standstill::Standstill;
use crate::tracker::{Doubts, Edge, Snapshot, Task, Tracker};
use crate::window::Window;

/// Time between two looks at a port that nobody holds at the other end: the kernel reports its
/// end at once, and offers no event for somebody's arrival.
const NOBODY_THERE: Duration = Duration::from_millis(50);
/// Time between two looks at what the probes have seen. They wake the agent only when their ring
/// fills up.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// A window that no host has asked about for so long is closed: it costs the guest's programs.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(120);
/// Records in one message: at their longest they fit a frame.
const RECORDS_PER_MESSAGE: usize = 32;
/// Candidates in one message: at their longest they fit a frame.
const CANDIDATES_PER_MESSAGE: usize = 1000;

/// How processes are followed.
#[expect(clippy::large_enum_variant, reason = "there is one")]
pub(crate) enum Means {
    Probes(Tracker),
    /// And why there are no probes.
    StandingFactsOnly(ProbeState),
}

/// The agent.
pub(crate) struct Agent {
    port: Port,
    means: Means,
    window: Option<Open>,
    memory: Memory,
    /// From the first process on that is to be frozen.
    standstill: Option<Standstill>,
    decoder: Decoder,
    /// The conversation that news go to.
    session: u64,
    /// The version that its host speaks.
    version: u16,
}

/// An open window.
struct Open {
    window: Window,
    asked: Instant,
    /// Without probes: how much each process had run when the window opened.
    used: HashMap<ProcessId, Option<Activity>>,
}

impl Agent {
    pub(crate) fn new(port: Port, means: Means) -> Self {
        Agent {
            port,
            means,
            window: None,
            memory: Memory::default(),
            standstill: None,
            decoder: Decoder::new(),
            session: 0,
            version: VERSION,
        }
    }

    /// Serves until something breaks.
    pub(crate) fn run(&mut self) -> Result<()> {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            self.wait()?;
            match self.port.read(&mut buffer)? {
                Some(0) => sleep(NOBODY_THERE),
                Some(count) => self.decoder.push(&buffer[..count]),
                None => {}
            }
            while let Some(message) = self.decoder.take::<ToAgent>() {
                self.handle(message)?;
            }
            self.catch_up()?;
            self.thaw_if_expired()?;
            self.close_if_forgotten();
        }
    }

    /// Until the host says something, or the probes have seen something.
    fn wait(&self) -> Result<()> {
        let mut fds = vec![PollFd::from_borrowed_fd(self.port.fd(), PollFlags::IN)];
        let ring = match (&self.means, &self.window) {
            (Means::Probes(tracker), Some(_)) => Some(tracker.wakeup()),
            _ => None,
        };
        if let Some(ring) = ring {
            fds.push(PollFd::from_borrowed_fd(ring, PollFlags::IN));
        }
        let lease = self.standstill.as_ref().and_then(Standstill::remaining);
        let limit = match (&self.window, lease) {
            (None, lease) => lease,
            (Some(_), None) => Some(LOOK_EVERY),
            (Some(_), Some(lease)) => Some(lease.min(LOOK_EVERY)),
        };
        match poll(&mut fds, limit.map(timespec).as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error).context("waiting for the host"),
        }
    }

    fn handle(&mut self, message: ToAgent) -> Result<()> {
        let (session, id) = (message.session, message.id);
        self.session = session;
        let mut answers = match self.answers(message.request) {
            Ok(answers) => answers,
            Err(failure) => vec![Answer::Failed(failure)],
        };
        if self.version == VERSION_OLDEST {
            answers.iter_mut().for_each(in_old_words);
        }
        let mut bytes = Vec::new();
        let count = answers.len();
        for (at, answer) in (1..).zip(answers) {
            let message = ToHost {
                session,
                id,
                last: at == count,
                answer,
            };
            encode(&message, &mut bytes)?;
        }
        // A host that has gone asks anew.
        self.port.write(&bytes)?;
        Ok(())
    }

    fn answers(&mut self, request: Request) -> Result<Vec<Answer>, Failure> {
        if let Some(open) = &mut self.window {
            open.asked = Instant::now();
        }
        match request {
            Request::Hello { version } if version < VERSION_OLDEST => Err(Failure {
                refusal: Refusal::Unsupported,
                message: format!(
                    "it speaks versions {VERSION_OLDEST} to {VERSION}: use a newer unmoor on the host"
                ),
            }),
            Request::Hello { version } => {
                self.version = version.min(VERSION);
                Ok(vec![Answer::Welcome(self.welcome())])
            }
            Request::Arm { rules } => Ok(vec![Answer::Armed(
                self.arm(rules).map_err(|error| failed(&error))?,
            )]),
            Request::Report => self.report(),
            Request::Disarm => {
                self.disarm();
                Ok(vec![Answer::Disarmed])
            }
            Request::Owners { processes } => told(self.memory.owners(&processes)),
            Request::WatchWrites { processes } => told(self.memory.watch_writes(&processes)),
            Request::Written => told(self.memory.written()),
            Request::FreePages => told(memory::free()),
            Request::Freeze {
                processes,
                lease_ms,
                deadline_ms,
            } => {
                let lease = Duration::from_millis(lease_ms.into());
                let deadline = Duration::from_millis(deadline_ms.into());
                told(self.freeze(processes, lease, deadline))
            }
            Request::Renew { lease_ms } => {
                if let Some(standstill) = &mut self.standstill {
                    standstill.renew(Duration::from_millis(lease_ms.into()));
                }
                Ok(vec![Answer::Renewed])
            }
            Request::Thaw => told(self.thaw_all().map(|thawed| vec![Answer::Thawed(thawed)])),
            Request::Survey {
                rules,
                at_least_kib,
            } => told(self.survey(rules, at_least_kib)),
            Request::Dependents { processes } => self.dependents(processes),
            Request::ProbeState => Ok(vec![Answer::ProbeState(match &self.means {
                Means::Probes(tracker) => tracker.state(),
                Means::StandingFactsOnly(state) => state.clone(),
            })]),
        }
    }

    fn welcome(&self) -> Welcome {
        let tier = match &self.means {
            Means::Probes(_) => Tier::Probes,
            Means::StandingFactsOnly(state) => Tier::StandingFactsOnly {
                reason: state.none.as_ref().map_or_else(String::new, |(cause, _)| {
                    format!("no probe works: {}: {}", cause.words(), cause.advice())
                }),
            },
        };
        let kernel = rustix::system::uname();
        Welcome {
            version: self.version,
            software: concat!("unmoor-agent ", env!("CARGO_PKG_VERSION")).into(),
            kernel: kernel.release().to_string_lossy().into_owned(),
            tier,
            capabilities: Capabilities {
                owners: true,
                freezer: matches!(self.means, Means::Probes(_)),
            },
        }
    }

    fn arm(&mut self, rules: Vec<Rule>) -> Result<Armed> {
        let begin = Instant::now();
        self.close()?;
        let (probes, missing, doubts) = match &mut self.means {
            Means::Probes(tracker) => {
                tracker.own_addresses(&addresses::own())?;
                let probes = tracker.arm()?;
                let lost = tracker.state().lost.into_iter();
                (
                    probes,
                    lost.map(|lost| lost.name).collect(),
                    tracker.doubts(),
                )
            }
            Means::StandingFactsOnly(_) => (0, Vec::new(), Doubts::default()),
        };
        let mut open = Open {
            window: Window::new(rules, doubts),
            asked: begin,
            used: HashMap::new(),
        };
        let attached = Instant::now();
        self.snapshot(&mut open)?;
        self.window = Some(open);
        Ok(Armed {
            attach_us: micros(attached - begin),
            snapshot_us: micros(attached.elapsed()),
            probes,
            missing,
        })
    }

    /// Ends the window, if one is open; the probes stay attached.
    fn close(&mut self) -> Result<()> {
        let thawed = self.thaw_all();
        if thawed.is_err() {
            // What cannot be thawed by this process is the guardian's.
            self.standstill = None;
        }
        self.window = None;
        thawed.map(drop)
    }

    fn disarm(&mut self) {
        if let Err(error) = self.close() {
            eprintln!("unmoor-agent: thawing: {error:#}");
        }
        if let Means::Probes(tracker) = &mut self.means {
            tracker.disarm();
        }
    }

    fn report(&mut self) -> Result<Vec<Answer>, Failure> {
        let Some(mut open) = self.window.take() else {
            return Err(no_window());
        };
        let tasks = self.snapshot(&mut open);
        let losses = self.losses();
        open.window.lost(losses);
        if let (Means::Probes(tracker), true) = (&self.means, losses.probes_skipped > 0) {
            eprintln!(
                "unmoor-agent: probes that were skipped: {:?}",
                tracker.skipped_by()
            );
        }
        let answers = tasks.map(|tasks| {
            let records = open.window.records(&tasks);
            let parts = records.chunks(RECORDS_PER_MESSAGE);
            parts
                .map(|records| Answer::Processes(records.to_vec()))
                .chain([Answer::Summary(open.window.summary(losses))])
                .collect()
        });
        self.window = Some(open);
        told(answers)
    }

    /// Who may be paused, as far as what stands tells: a look at the guest before a window opens.
    fn survey(&mut self, rules: Vec<Rule>, at_least_kib: u64) -> Result<Vec<Answer>> {
        let mut candidates = Vec::new();
        // Without probes nobody is ever frozen.
        if let Means::Probes(tracker) = &mut self.means {
            tracker.own_addresses(&addresses::own())?;
            let snapshot = tracker.snapshot()?;
            let mut window = Window::new(rules, tracker.doubts());
            window.stands(&snapshot);
            candidates = window.candidates(&snapshot.tasks, at_least_kib);
        }
        let parts = candidates.chunks(CANDIDATES_PER_MESSAGE);
        let answers = parts.map(|part| Answer::Candidates(part.to_vec()));
        Ok(answers.chain([Answer::Candidates(Vec::new())]).collect())
    }

    /// Which of these have turned out to be dependent.
    fn dependents(&mut self, processes: Vec<ProcessId>) -> Result<Vec<Answer>, Failure> {
        if let Err(error) = self.catch_up() {
            return Err(failed(&error));
        }
        let losses = self.losses();
        let Some(open) = &mut self.window else {
            return Err(no_window());
        };
        open.window.lost(losses);
        let dependents = processes
            .into_iter()
            .filter(|process| !open.window.may_pause(*process))
            .collect();
        Ok(vec![Answer::Dependents(dependents)])
    }

    /// Takes what stands and what has happened since the last time.
    fn snapshot(&mut self, open: &mut Open) -> Result<Vec<Task>> {
        match &mut self.means {
            Means::Probes(tracker) => {
                let snapshot = tracker.snapshot()?;
                open.window.stands(&snapshot);
                open.window.take(&tracker.new_edges()?);
                Ok(snapshot.tasks)
            }
            Means::StandingFactsOnly(_) => {
                let tasks = without_probes(open);
                Ok(tasks)
            }
        }
    }

    /// Takes what has happened, so that a report has little left to do, and thaws to whom somebody
    /// has turned.
    fn catch_up(&mut self) -> Result<()> {
        if let Means::Probes(tracker) = &mut self.means
            && self.window.is_some()
        {
            let edges = tracker.new_edges()?;
            self.take(&edges)?;
        }
        Ok(())
    }

    fn take(&mut self, edges: &[Edge]) -> Result<()> {
        let Some(open) = &mut self.window else {
            return Ok(());
        };
        open.window.take(edges);
        let Some(standstill) = &mut self.standstill else {
            return Ok(());
        };
        let mut thawed = Vec::new();
        for process in standstill.called(edges) {
            thawed.extend(standstill.thaw(process)?);
        }
        for process in &thawed {
            let graph = open.window.graph();
            graph.uncertain(*process, Uncertainty::CalledWhileFrozen);
        }
        self.tell(thawed, ThawReason::Called)
    }

    /// Freezes processes that are independent to this moment.
    fn freeze(
        &mut self,
        processes: Vec<ProcessId>,
        lease: Duration,
        deadline: Duration,
    ) -> Result<Vec<Answer>> {
        let (Means::Probes(tracker), Some(open)) = (&mut self.means, &mut self.window) else {
            bail!("nothing is frozen without a window in which it would be seen who is turned to");
        };
        ensure!(
            !tracker.doubts().everyone,
            "nothing is frozen while a probe is lost that would see a process being addressed"
        );
        // Before anything stands, so that nothing falls between.
        open.window.take(&tracker.watch_closely(true)?);
        let (willing, dependent): (Vec<_>, Vec<_>) = processes
            .into_iter()
            .partition(|process| open.window.may_pause(*process));
        if self.standstill.is_none() {
            self.standstill = Some(Standstill::new()?);
        }
        let standstill = self.standstill.as_mut().context("no freezer")?;
        let mut report = standstill.freeze(&willing, lease, deadline)?;
        standstill.watch(&tracker.held()?);
        let edges = tracker.new_edges()?;
        let refused = dependent
            .into_iter()
            .map(|id| (id, "it is dependent".into()));
        report.refused.extend(refused);
        self.take(&edges)?;
        Ok(vec![Answer::Frozen(report)])
    }

    fn thaw_all(&mut self) -> Result<Vec<ProcessId>> {
        let Some(standstill) = &mut self.standstill else {
            return Ok(Vec::new());
        };
        let thawed = standstill.thaw_all()?;
        if let (Means::Probes(tracker), Some(open)) = (&mut self.means, &mut self.window) {
            open.window.take(&tracker.watch_closely(false)?);
        }
        Ok(thawed)
    }

    fn thaw_if_expired(&mut self) -> Result<()> {
        if self.standstill.as_ref().is_some_and(Standstill::expired) {
            let thawed = self.thaw_all()?;
            self.tell(thawed, ThawReason::LeaseExpired)?;
        }
        Ok(())
    }

    /// Tells the host that processes run again.
    fn tell(&mut self, thawed: Vec<ProcessId>, reason: ThawReason) -> Result<()> {
        if thawed.is_empty() {
            return Ok(());
        }
        let message = ToHost {
            session: self.session,
            id: UNASKED,
            last: true,
            answer: Answer::News { thawed, reason },
        };
        let mut bytes = Vec::new();
        encode(&message, &mut bytes)?;
        // A host that has gone does not want to know.
        self.port.write(&bytes)?;
        Ok(())
    }

    fn losses(&self) -> Losses {
        match &self.means {
            Means::Probes(tracker) => tracker.losses(),
            Means::StandingFactsOnly(_) => Losses::default(),
        }
    }

    fn close_if_forgotten(&mut self) {
        let forgotten = |open: &Open| open.asked.elapsed() >= FORGOTTEN_AFTER;
        if self.window.as_ref().is_some_and(forgotten) {
            self.disarm();
        }
    }
}

/// Whoever has run since the window opened may have spoken to anybody.
fn without_probes(open: &mut Open) -> Vec<Task> {
    let tasks = processes::tasks();
    let edges = standing::edges(&tasks, &addresses::own());
    let snapshot = Snapshot { tasks, edges };
    let first = open.used.is_empty();
    open.window.stands(&snapshot);
    for task in &snapshot.tasks {
        let now = processes::activity(task.id.pid);
        if first {
            open.used.insert(task.id, now);
        } else if open.used.get(&task.id) != Some(&now) {
            open.window
                .graph()
                .uncertain(task.id, Uncertainty::Untracked);
        }
    }
    snapshot.tasks
}

/// What a host of the version before does not know is told by the nearest that it knows.
fn in_old_words(answer: &mut Answer) {
    let soften = |why: &mut Uncertainty| {
        if *why == Uncertainty::LostProbe {
            *why = Uncertainty::UnknownObject;
        }
    };
    match answer {
        Answer::Processes(records) => {
            for record in records {
                if let Reason::Source(Source::Uncertain(why)) = &mut record.reason {
                    soften(why);
                }
            }
        }
        Answer::Summary(summary) => summary.doubt.iter_mut().for_each(soften),
        _ => {}
    }
}

fn told(answers: Result<Vec<Answer>>) -> Result<Vec<Answer>, Failure> {
    answers.map_err(|error| failed(&error))
}

fn no_window() -> Failure {
    Failure {
        refusal: Refusal::OutOfTurn,
        message: "no window is open: ask to arm first".into(),
    }
}

fn failed(error: &anyhow::Error) -> Failure {
    Failure {
        refusal: Refusal::Failed,
        message: format!("{error:#}"),
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
