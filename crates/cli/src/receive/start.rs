//! The VM is about to run before all of its memory is here. QEMU may touch that memory itself, and
//! wait for it: so it is asked nothing that is waited for.

use std::time::{Duration, Instant};

use hypervisor::{Id, RunState};
use migrate::DestinationPhase;
use serde_json::Value;

use super::session::{Session, Stop};
use crate::report::Event;
use crate::send::{Failure, failed};

/// Between two questions. A VM that is to run says so by itself.
const ASK_EVERY: Duration = Duration::from_millis(20);

/// Whether it runs is to be found out.
#[derive(Debug, Default)]
pub(super) struct Start {
    /// A question that has not been answered.
    asked: Option<Id>,
    ask_at: Option<Instant>,
}

impl Session<'_, '_> {
    /// Asks QEMU, if it is time to; tells when to come back.
    pub(super) fn ask_whether_it_runs(&mut self, now: Instant) -> Result<Option<Instant>, Stop> {
        let Some(start) = &mut self.start else {
            return Ok(None);
        };
        let at = *start.ask_at.get_or_insert(now);
        if start.asked.is_none() && now >= at {
            let asked = self.receiver.vm.submit_status().map_err(|e| failed(&e))?;
            start.asked = Some(asked);
            start.ask_at = Some(now + ASK_EVERY);
        }
        Ok(start.asked.is_none().then_some(now + ASK_EVERY))
    }

    /// QEMU has answered something.
    pub(super) fn hear_whether_it_runs(
        &mut self,
        id: Id,
        result: Result<Value, String>,
    ) -> Result<(), Stop> {
        let Some(start) = self.start.as_mut().filter(|start| start.asked == Some(id)) else {
            return Ok(());
        };
        start.asked = None;
        match RunState::from_value(&result.map_err(|e| failed(&e))?) {
            RunState::InMigrate => Ok(()),
            state => self.is_known_to_run(state == RunState::Running),
        }
    }

    /// It runs, or was left paused.
    pub(super) fn is_known_to_run(&mut self, running: bool) -> Result<(), Stop> {
        match self.start.take() {
            Some(_) => self.has_started(running),
            None => Ok(()),
        }
    }

    /// All memory that has followed is here.
    pub(super) fn arrived(&mut self) {
        let figures = self.faults.figures();
        self.engine.arrived(figures, self.to_peer.tail());
    }

    /// The user wants an end.
    pub(super) fn on_signal(&mut self) -> Result<(), Stop> {
        if self.engine.phase() > DestinationPhase::Ready && self.engine.needs_the_source() {
            self.receiver.report.tell(&Event::Note {
                text: "the VM runs here and part of its memory is still to come: this cannot be ended now".into(),
            });
            return Ok(());
        }
        Err(Failure::Cancelled("cancelled by a signal".into()).into())
    }
}
