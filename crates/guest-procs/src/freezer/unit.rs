//! Processes that are stopped, and let go, together.

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::time::Instant;

use depgraph::ProcessId;

use super::cgroup::{self, Events};
use super::tracer::{Held, Tracer};
use super::{Means, Refusal};
use crate::is_same;
use crate::journal::Entry;
use crate::process::Stat;

/// A unit, on its way into the ice or in it.
#[derive(Debug)]
pub(super) struct Unit {
    /// Those that are meant.
    pub(super) members: Vec<ProcessId>,
    hold: Hold,
}

#[derive(Debug)]
enum Hold {
    /// Their group, which was there before.
    Whole(PathBuf),
    /// A group that was made for them.
    Leaf(PathBuf),
    /// The hand of the tracer, on the one there is; not from the beginning.
    Traced(Option<Held>),
}

impl Unit {
    pub(super) fn whole(folder: PathBuf, members: Vec<ProcessId>) -> Self {
        Unit {
            members,
            hold: Hold::Whole(folder),
        }
    }

    pub(super) fn leaf(folder: PathBuf, members: Vec<ProcessId>) -> Self {
        Unit {
            members,
            hold: Hold::Leaf(folder),
        }
    }

    pub(super) fn traced(member: ProcessId) -> Self {
        Unit {
            members: vec![member],
            hold: Hold::Traced(None),
        }
    }

    pub(super) fn means(&self) -> Means {
        match &self.hold {
            Hold::Whole(_) => Means::WholeGroup,
            Hold::Leaf(_) => Means::OwnGroup,
            Hold::Traced(_) => Means::Tracing,
        }
    }

    /// What a guardian would have to undo.
    pub(super) fn entry(&self) -> Option<Entry> {
        match &self.hold {
            Hold::Whole(folder) => Some(Entry::Thaw(folder.clone())),
            Hold::Leaf(folder) => Some(Entry::Leave(folder.clone())),
            Hold::Traced(_) => None,
        }
    }

    /// Moves the members of a unit that has a group of its own there; yields those that cannot be
    /// moved, who are members no more.
    pub(super) fn gather(&mut self) -> Vec<ProcessId> {
        let Hold::Leaf(folder) = &self.hold else {
            return Vec::new();
        };
        let (stay, leave) = self
            .members
            .iter()
            .partition(|member| is_same(**member) && cgroup::enter(folder, member.pid).is_ok());
        self.members = stay;
        leave
    }

    /// Begins to stop them; starts a tracer if one is needed and there is none.
    pub(super) fn begin(&mut self, tracer: &mut Option<Tracer>) -> io::Result<()> {
        match &mut self.hold {
            Hold::Whole(folder) | Hold::Leaf(folder) => cgroup::freeze(folder),
            Hold::Traced(held) => {
                let tracer = match tracer {
                    Some(tracer) => tracer,
                    none => none.insert(Tracer::start()?),
                };
                *held = self.members.first().map(|member| tracer.stop(*member));
                Ok(())
            }
        }
    }

    /// Waits until they stand, and makes sure that they are who is meant.
    pub(super) fn finish(&mut self, deadline: Instant) -> Result<(), Refusal> {
        let stands = match &mut self.hold {
            Hold::Whole(folder) | Hold::Leaf(folder) => {
                Events::of(folder).and_then(|events| events.await_frozen(deadline))
            }
            Hold::Traced(Some(held)) => held.await_stopped(deadline),
            Hold::Traced(None) => Ok(false),
        };
        match stands {
            Ok(true) => {}
            Ok(false) => return Err(Refusal::Deadline),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(Refusal::Gone),
            Err(error) => return Err(Refusal::Failed(error.to_string())),
        }
        match &self.hold {
            Hold::Whole(folder) | Hold::Leaf(folder) => {
                let pids = cgroup::members_below(folder)
                    .map_err(|error| Refusal::Failed(error.to_string()))?;
                self.members = found(&self.members, &pids)?;
            }
            Hold::Traced(_) => {}
        }
        Ok(())
    }

    /// Lets them run, without tidying up behind them.
    pub(super) fn thaw(&self) -> io::Result<()> {
        match &self.hold {
            Hold::Whole(folder) | Hold::Leaf(folder) => cgroup::thaw(folder),
            Hold::Traced(held) => {
                held.iter().for_each(Held::let_go);
                Ok(())
            }
        }
    }

    /// Lets them run and leaves everything as it was found.
    pub(super) fn release(&mut self) -> io::Result<()> {
        if let Hold::Traced(held) = &mut self.hold {
            held.take();
        }
        self.entry().map_or(Ok(()), |entry| entry.undo())
    }
}

/// Who is in a frozen group: those that are meant and are still there, and their children that were
/// born on the way. Anybody else has no business there.
fn found(meant: &[ProcessId], pids: &[u32]) -> Result<Vec<ProcessId>, Refusal> {
    let meant: BTreeSet<&ProcessId> = meant.iter().collect();
    let mut known: BTreeSet<u32> = BTreeSet::new();
    let mut members = Vec::new();
    let mut others: Vec<(ProcessId, u32)> = Vec::new();
    for pid in pids {
        // Who is frozen ends only by being killed.
        let Ok(stat) = Stat::of(*pid) else {
            continue;
        };
        let process = ProcessId {
            pid: *pid,
            start: stat.start,
        };
        if meant.contains(&process) {
            known.insert(*pid);
            members.push(process);
        } else {
            others.push((process, stat.parent));
        }
    }
    while !others.is_empty() {
        let children: Vec<_> = others
            .extract_if(.., |(_, parent)| known.contains(parent))
            .collect();
        if children.is_empty() {
            return Err(Refusal::Joined(others[0].0.pid));
        }
        for (child, _) in children {
            known.insert(child.pid);
            members.push(child);
        }
    }
    if members.is_empty() {
        return Err(Refusal::Gone);
    }
    Ok(members)
}
