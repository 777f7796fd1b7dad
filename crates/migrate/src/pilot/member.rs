//! A process whose memory is kept back.

use std::time::Duration;

use depgraph::ProcessId;
use guest_proto::ProcessRecord;

use crate::Group;

/// How a process stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// It runs; its pages are held.
    Held,
    /// It stands.
    Frozen { since: Duration },
    /// It runs, and is moved live.
    Live,
}

/// A process and its pages.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) id: ProcessId,
    pub(super) group: Group,
    /// Pages that it alone uses.
    pub(super) pages: u64,
    /// Longest pause, where a rule says.
    pub(super) pause_limit: Option<Duration>,
    pub(super) state: State,
}

impl Member {
    pub(super) fn new(id: ProcessId, group: Group, pages: u64) -> Self {
        Member {
            id,
            group,
            pages,
            pause_limit: None,
            state: State::Held,
        }
    }

    /// Longest pause: what a rule says of it comes before what is said of all.
    pub(super) fn limit(&self, of_all: Duration) -> Duration {
        self.pause_limit.unwrap_or(of_all)
    }
}

/// What the rules say of a process: within bounds, whatever the guest sends.
pub(super) fn pause_limit(record: &ProcessRecord) -> Option<Duration> {
    let (limit, _) = record.pause_limit.as_ref()?;
    Some(limit.duration())
}
