//! What the source has frozen is thawed here.

use std::time::Duration;

use wire::Thawed;

use super::session::{Session, micros, wall_clock};
use crate::agent::{Thawing, could_not_thaw};
use crate::report::Event;

impl Session<'_, '_> {
    /// Thaws what the source has frozen, and ends the window.
    pub(super) fn thaw(&mut self) {
        let Some(path) = self.receiver.args.agent.clone() else {
            return;
        };
        match Thawing::begin(path, self.receiver.args.net.peer_timeout) {
            Ok(thawing) => self.thawing = Some(thawing),
            Err(error) => self.tell_thawed(Err(error.to_string()), Duration::ZERO),
        }
    }

    /// Takes the agent's answer, waiting for it if need be.
    pub(super) fn has_thawed(&mut self) {
        if let Some(thawing) = self.thawing.take() {
            let (thawed, took) = thawing.outcome();
            self.tell_thawed(thawed, took);
        }
    }

    fn tell_thawed(&mut self, thawed: Result<usize, String>, took: Duration) {
        let processes = match thawed {
            Ok(count) => u32::try_from(count).ok(),
            Err(error) => {
                self.receiver.report.tell(&Event::Note {
                    text: could_not_thaw(&error),
                });
                None
            }
        };
        self.thawed = processes;
        let after = self
            .resumed
            .zip(wall_clock())
            .map(|(resumed, now)| now.saturating_sub(resumed));
        let thawed = Thawed {
            processes,
            after_us: micros(after.unwrap_or(took)),
        };
        self.engine.thawed(thawed, self.to_peer.tail());
    }
}
