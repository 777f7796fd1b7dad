//! The fault matrix: whatever breaks, at whatever moment, under whichever protocol, one copy of the
//! VM runs, its memory is intact, nobody stands frozen, and nothing is left on either host.
//!
//! ```text
//! Cell {fault, moment, protocol} ─► Scene (a migration brought to the moment) ─► strike ─► Outcome
//! ```

mod fault;
mod moment;
mod outcome;
mod scene;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

pub use fault::Fault;
pub use moment::Moment;
pub use outcome::{Outcome, Place};
use scene::Scene;

/// How the VM is moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    /// Everything live.
    Live,
    /// Jobs are paused.
    StopCopy,
    /// The jobs' memory follows after the switchover.
    PostCopy,
}

impl Protocol {
    /// All of them.
    pub const ALL: [Protocol; 3] = [Protocol::Live, Protocol::StopCopy, Protocol::PostCopy];

    /// As `--protocol` takes it.
    pub fn name(self) -> &'static str {
        match self {
            Protocol::Live => "live",
            Protocol::StopCopy => "stop-copy",
            Protocol::PostCopy => "post-copy",
        }
    }
}

/// One thing that breaks at one moment under one protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cell {
    /// What breaks.
    pub fault: Fault,
    /// When.
    pub moment: Moment,
    /// How the VM is being moved.
    pub protocol: Protocol,
}

impl Cell {
    /// All that there can be, protocol by protocol.
    pub fn all() -> impl Iterator<Item = Cell> {
        Protocol::ALL.into_iter().flat_map(|protocol| {
            Fault::ALL.into_iter().flat_map(move |fault| {
                Moment::ALL.into_iter().map(move |moment| Cell {
                    fault,
                    moment,
                    protocol,
                })
            })
        })
    }

    /// Whether there is such a moment under this protocol, and whatever is to break then.
    pub fn is_possible(self) -> bool {
        let following = self.protocol == Protocol::PostCopy;
        match self.moment {
            Moment::Freeze | Moment::Flush => self.protocol == Protocol::StopCopy,
            // The guest stands.
            Moment::FinalPass | Moment::Devices | Moment::Ready | Moment::Committed => {
                !self.fault.is_of_the_guest()
            }
            // The relays have ended.
            Moment::After if !following => !self.fault.is_of_a_relay(),
            Moment::Hello | Moment::FirstPass | Moment::LaterPass | Moment::After => true,
        }
    }

    /// A name for files.
    pub fn name(self) -> String {
        let (fault, moment) = (self.fault.name(), self.moment.name());
        format!("{}.{fault}.{moment}", self.protocol.name())
    }

    /// Breaks it, and sees to it that all has come to rest and that what must hold does.
    pub fn run(self) -> Result<Outcome> {
        let mut scene = Scene::reach(self).context("reaching the moment")?;
        self.fault
            .strike(&mut scene)
            .with_context(|| format!("breaking it: {}", scene.told()))?;
        let outcome = scene.settle();
        outcome.with_context(|| scene.told())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fault_and_every_moment_is_in_the_matrix() {
        for fault in Fault::ALL {
            assert!(Cell::all().any(|cell| cell.fault == fault && cell.is_possible()));
        }
        for moment in Moment::ALL {
            assert!(Cell::all().any(|cell| cell.moment == moment && cell.is_possible()));
        }
        let mut names: Vec<String> = Cell::all().map(Cell::name).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), Cell::all().count());
    }
}
