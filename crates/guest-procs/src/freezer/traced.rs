//! A process in the tracer's hands: all its threads, and those that it makes meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::mpsc::Sender;

use depgraph::ProcessId;

use super::ptrace::{is_let_go, seize, stands};
use crate::process::threads;
use crate::{about, is_same};

/// The process, and what is done with it.
#[derive(Debug)]
pub(super) struct Traced {
    process: ProcessId,
    /// Its threads, and whether they stand.
    threads: BTreeMap<u32, bool>,
    state: State,
    report: Sender<io::Result<()>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Stopping,
    Standing,
    LettingGo,
}

impl Traced {
    /// Begins to stop a process; the outcome is reported, and the other end of `report` told by
    /// its end when all is done.
    pub(super) fn begin(process: ProcessId, report: Sender<io::Result<()>>) -> Self {
        let mut one = Traced {
            process,
            threads: BTreeMap::new(),
            state: State::Stopping,
            report,
        };
        if let Err(error) = one.seize_new() {
            one.give_up(error);
        }
        one
    }

    pub(super) fn process(&self) -> ProcessId {
        self.process
    }

    /// It stands, and there is nothing to do.
    pub(super) fn stands(&self) -> bool {
        self.state == State::Standing
    }

    /// It was let go.
    pub(super) fn is_done(&self) -> bool {
        self.state == State::LettingGo && self.threads.is_empty()
    }

    /// Begins to let it go.
    pub(super) fn let_go(&mut self) {
        self.state = State::LettingGo;
    }

    /// Does what can be done without waiting.
    pub(super) fn advance(&mut self) {
        match self.state {
            State::Standing => {}
            State::Stopping => match self.look() {
                Ok(false) => {}
                Ok(true) => {
                    self.state = State::Standing;
                    // Nobody hears it if it took too long; an order to let go follows then.
                    let _ = self.report.send(Ok(()));
                }
                Err(error) => self.give_up(error),
            },
            State::LettingGo => self.threads.retain(|thread, _| !is_let_go(*thread)),
        }
    }

    /// Whether all threads stand, those included that were made meanwhile.
    fn look(&mut self) -> io::Result<bool> {
        for (thread, standing) in &mut self.threads {
            *standing = *standing || stands(*thread)?;
        }
        if self.threads.values().any(|standing| !*standing) {
            return Ok(false);
        }
        if self.seize_new()? {
            return Ok(false);
        }
        if !is_same(self.process) {
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok(true)
    }

    /// Whether there were threads that are not traced yet.
    fn seize_new(&mut self) -> io::Result<bool> {
        let pid = self.process.pid;
        let all = threads(pid).map_err(about(format!("process {pid}")))?;
        // Ids are used again, though not soon.
        let there: BTreeSet<u32> = all.iter().copied().collect();
        self.threads.retain(|thread, _| there.contains(thread));
        let mut any = false;
        for thread in all {
            if !self.threads.contains_key(&thread) && seize(thread)? {
                self.threads.insert(thread, false);
                any = true;
            }
        }
        Ok(any)
    }

    fn give_up(&mut self, error: io::Error) {
        self.state = State::LettingGo;
        // Nobody hears it if it took too long.
        let _ = self.report.send(Err(error));
    }
}
