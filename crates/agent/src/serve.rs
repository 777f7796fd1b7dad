//! The conversation with the host.

use std::collections::HashMap;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use depgraph::{ProcessId, Uncertainty};
use guest_proto::{
    Answer, Armed, Capabilities, Decoder, Failure, Losses, Refusal, Request, Rule, Tier, ToAgent,
    ToHost, VERSION, Welcome, encode,
};
use rustix::event::{PollFd, PollFlags, poll};

use crate::addresses;
use crate::port::{Port, timespec};
use crate::processes;
use crate::tracker::{Snapshot, Task, Tracker};
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
const RECORDS_PER_MESSAGE: usize = 64;

/// How processes are followed.
#[expect(clippy::large_enum_variant, reason = "there is one")]
pub(crate) enum Means {
    Probes(Tracker),
    /// And why there are no probes.
    StandingFactsOnly(String),
}

/// The agent.
pub(crate) struct Agent {
    port: Port,
    means: Means,
    window: Option<Open>,
    decoder: Decoder,
}

/// An open window.
struct Open {
    window: Window,
    asked: Instant,
    /// Without probes: the time that each process had used when the window opened.
    used: HashMap<ProcessId, Option<u64>>,
}

impl Agent {
    pub(crate) fn new(port: Port, means: Means) -> Self {
        Agent {
            port,
            means,
            window: None,
            decoder: Decoder::new(),
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
        let limit = timespec(LOOK_EVERY);
        match poll(&mut fds, self.window.as_ref().map(|_| &limit)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error).context("waiting for the host"),
        }
    }

    fn handle(&mut self, message: ToAgent) -> Result<()> {
        let (session, id) = (message.session, message.id);
        let answers = match self.answers(message.request) {
            Ok(answers) => answers,
            Err(failure) => vec![Answer::Failed(failure)],
        };
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
            Request::Hello { version } => Ok(vec![Answer::Welcome(self.welcome(version))]),
            Request::Arm { rules } => Ok(vec![Answer::Armed(
                self.arm(rules).map_err(|error| failed(&error))?,
            )]),
            Request::Report => self.report(),
            Request::Disarm => {
                self.disarm();
                Ok(vec![Answer::Disarmed])
            }
        }
    }

    fn welcome(&self, version: u16) -> Welcome {
        let tier = match &self.means {
            Means::Probes(_) => Tier::Probes,
            Means::StandingFactsOnly(reason) => Tier::StandingFactsOnly {
                reason: reason.clone(),
            },
        };
        let kernel = rustix::system::uname();
        Welcome {
            version: version.min(VERSION),
            software: concat!("unmoor-agent ", env!("CARGO_PKG_VERSION")).into(),
            kernel: kernel.release().to_string_lossy().into_owned(),
            tier,
            capabilities: Capabilities::default(),
        }
    }

    fn arm(&mut self, rules: Vec<Rule>) -> Result<Armed> {
        let begin = Instant::now();
        self.disarm();
        let mut open = Open {
            window: Window::new(rules),
            asked: begin,
            used: HashMap::new(),
        };
        let (probes, missing) = match &mut self.means {
            Means::Probes(tracker) => {
                tracker.own_addresses(&addresses::own())?;
                (tracker.arm()?, tracker.missing().to_vec())
            }
            Means::StandingFactsOnly(_) => (0, Vec::new()),
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

    fn disarm(&mut self) {
        self.window = None;
        if let Means::Probes(tracker) = &mut self.means {
            tracker.disarm();
        }
    }

    fn report(&mut self) -> Result<Vec<Answer>, Failure> {
        let Some(mut open) = self.window.take() else {
            return Err(Failure {
                refusal: Refusal::OutOfTurn,
                message: "no window is open: ask to arm first".into(),
            });
        };
        let tasks = self.snapshot(&mut open).map_err(|error| failed(&error))?;
        let losses = self.losses();
        open.window.lost(losses);
        let mut answers: Vec<Answer> = open
            .window
            .records(&tasks)
            .chunks(RECORDS_PER_MESSAGE)
            .map(|records| Answer::Processes(records.to_vec()))
            .collect();
        answers.push(Answer::Summary(open.window.summary(losses)));
        self.window = Some(open);
        Ok(answers)
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

    /// Takes what has happened, so that a report has little left to do.
    fn catch_up(&mut self) -> Result<()> {
        if let (Means::Probes(tracker), Some(open)) = (&mut self.means, &mut self.window) {
            open.window.take(&tracker.new_edges()?);
        }
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

/// Whoever has used the processor since the window opened may have spoken to anybody.
fn without_probes(open: &mut Open) -> Vec<Task> {
    let tasks: Vec<Task> = processes::list()
        .into_iter()
        .map(|(id, parent, name)| Task {
            id,
            parent,
            tracer: None,
            is_kernel: false,
            name,
        })
        .collect();
    let snapshot = Snapshot {
        tasks,
        edges: Vec::new(),
    };
    let first = open.used.is_empty();
    open.window.stands(&snapshot);
    for task in &snapshot.tasks {
        let now = processes::cpu_ticks(task.id.pid);
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

fn failed(error: &anyhow::Error) -> Failure {
    Failure {
        refusal: Refusal::Failed,
        message: format!("{error:#}"),
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
