//! What comes out for a process.

use serde::{Deserialize, Serialize};

use crate::ids::External;

/// What a process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Class {
    /// Nobody outside could notice if it paused.
    Independent,
    /// Reached from the outside over so many flows; a direct contact is 0.
    Dependent {
        /// Flows between it and a process that is in contact itself.
        distance: u32,
    },
    /// Always live, and passes dependency on to nobody.
    Sink,
    /// The administrator lets it pause, whatever it is connected to.
    MayPause,
}

impl Class {
    /// Whether it must not be paused.
    pub fn stays_live(self) -> bool {
        matches!(self, Class::Dependent { .. } | Class::Sink)
    }
}

/// What is settled about a process beforehand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Mark {
    /// Always live; neither takes nor passes on dependency.
    Sink,
    /// Always live, and so is what it is connected to.
    AlwaysLive,
    /// May pause; neither takes nor passes on dependency.
    MayPause,
}

/// Why a process is dependent without anybody else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Source {
    /// It is in contact with the outside.
    Outside(External),
    /// The administrator says so.
    AlwaysLive,
    /// It is not known what it does.
    Uncertain(Uncertainty),
}

/// What is not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Uncertainty {
    /// Events of it were lost.
    LostEvents,
    /// The graph has no room for what it does.
    GraphFull,
    /// It uses something of which nobody knows where it leads.
    UnknownObject,
    /// There are no probes in this kernel, and it was active.
    Untracked,
    /// Somebody turned to it while it was frozen.
    CalledWhileFrozen,
    /// A probe that would have seen what it did does not work in this kernel.
    LostProbe,
}
