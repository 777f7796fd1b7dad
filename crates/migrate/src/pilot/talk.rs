//! One question to the agent, and its answer in parts.

use depgraph::ProcessId;
use guest_proto::{
    Answer, Candidate, FrozenReport, ProbeState, ProcessRecord, Request, Run, Summary, Welcome,
};

/// Runs of page frames in one answer: more than a guest's memory falls into.
const RUNS_MAX: usize = 4 << 20;
/// Processes in one answer: more than a guest of sensible size has.
const PROCESSES_MAX: usize = 200_000;

/// A whole answer.
#[derive(Debug)]
pub(super) enum Told {
    Welcome(Welcome),
    Probes(ProbeState),
    Armed,
    Candidates(Vec<Candidate>),
    Report(Vec<ProcessRecord>, Summary),
    Pages(Pages),
    Watching,
    Dependents(Vec<ProcessId>),
    Frozen(FrozenReport),
    Renewed,
    Thawed(Vec<ProcessId>),
}

/// Page frames.
#[derive(Debug, Default)]
pub(super) struct Pages {
    pub(super) runs: Vec<Run>,
    /// How many of them each process wrote.
    pub(super) by_process: Vec<(ProcessId, u64)>,
}

impl Pages {
    pub(super) fn count(&self) -> u64 {
        self.runs.iter().map(|run| run.count).sum()
    }
}

/// What has come so far to a question.
#[derive(Debug)]
pub(super) struct Hearing {
    asked: Request,
    candidates: Vec<Candidate>,
    processes: Vec<ProcessRecord>,
    runs: Vec<Run>,
}

impl Hearing {
    pub(super) fn new(asked: Request) -> Self {
        Hearing {
            asked,
            candidates: Vec::new(),
            processes: Vec::new(),
            runs: Vec::new(),
        }
    }

    /// Takes a part; page frames must lie below `frames`. What is wrong is told in words.
    pub(super) fn part(
        &mut self,
        answer: Answer,
        last: bool,
        frames: u64,
    ) -> Result<Option<Told>, String> {
        let told = match (&self.asked, answer) {
            (Request::Hello { .. }, Answer::Welcome(welcome)) => Told::Welcome(welcome),
            (Request::ProbeState, Answer::ProbeState(state)) => Told::Probes(state),
            (Request::Arm { .. }, Answer::Armed(_)) => Told::Armed,
            (Request::Survey { .. }, Answer::Candidates(more)) => {
                self.candidates.extend(more);
                if !last {
                    return bounded(self.candidates.len(), PROCESSES_MAX);
                }
                Told::Candidates(std::mem::take(&mut self.candidates))
            }
            (Request::Report, Answer::Processes(more)) if !last => {
                self.processes.extend(more);
                return bounded(self.processes.len(), PROCESSES_MAX);
            }
            (Request::Report, Answer::Summary(summary)) => {
                Told::Report(std::mem::take(&mut self.processes), summary)
            }
            (
                Request::Owners { .. } | Request::Written | Request::FreePages,
                Answer::Pages(more),
            ) if !last => {
                for run in more.iter(frames) {
                    let run = run.map_err(|error| format!("the agent names {error}"))?;
                    self.runs.push(run);
                }
                return bounded(self.runs.len(), RUNS_MAX);
            }
            (
                Request::Owners { .. } | Request::Written | Request::FreePages,
                Answer::PagesEnd { by_process, .. },
            ) => Told::Pages(Pages {
                runs: std::mem::take(&mut self.runs),
                by_process,
            }),
            (Request::WatchWrites { .. }, Answer::Watching) => Told::Watching,
            (Request::Dependents { .. }, Answer::Dependents(who)) => Told::Dependents(who),
            (Request::Freeze { .. }, Answer::Frozen(report)) => Told::Frozen(report),
            (Request::Renew { .. }, Answer::Renewed) => Told::Renewed,
            (Request::Thaw, Answer::Thawed(who)) => Told::Thawed(who),
            _ => return Err("the agent answers something that was not asked".to_owned()),
        };
        Ok(Some(told))
    }

    pub(super) fn asked(&self) -> &Request {
        &self.asked
    }

    /// What is to be told, in words.
    pub(super) fn what(&self) -> &'static str {
        match self.asked {
            Request::Hello { .. } => "who it is",
            Request::Survey { .. } => "which processes may be paused",
            Request::Owners { .. } => "whose the pages are",
            _ => "what it was asked",
        }
    }
}

fn bounded(count: usize, limit: usize) -> Result<Option<Told>, String> {
    if count > limit {
        return Err("the agent's answer has no end".to_owned());
    }
    Ok(None)
}
