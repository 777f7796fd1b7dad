//! Stops processes, so that they write nothing, and lets them go on.
//!
//! A control group is frozen as a whole where all its members are to be stopped; otherwise those
//! that are move to a group below it; where that is not possible they are traced. Neither parents
//! nor peers are told of any of it. Ten of the system calls in which a process may wait return
//! EINTR afterwards, as after SIGSTOP.
//!
//! What is frozen by its group stays so when the agent dies: that is what the journal and the
//! [`guardian`](crate::guardian) are for.

pub(crate) mod cgroup;
mod outcome;
mod plan;
mod ptrace;
mod traced;
mod tracer;
mod unit;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Instant;

use depgraph::ProcessId;

use crate::journal::Journal;
use crate::process::Stat;
pub use outcome::{Frozen, Means, Outcome, Refusal};
use plan::{Group, Step, plan};
use tracer::Tracer;
use unit::Unit;

/// A process and its control group, where it has one that can be seen.
type Placed = (ProcessId, Option<PathBuf>);

/// Stops processes and keeps account of them; lets them all go when dropped.
#[derive(Debug)]
pub struct Freezer {
    journal: Journal,
    never: BTreeSet<u32>,
    units: Vec<Unit>,
    /// From the first process on that has to be traced.
    tracer: Option<Tracer>,
}

impl Freezer {
    /// Keeps its journal in `folder`. What a former agent left frozen is thawed first. Neither this
    /// process nor those in `never` will ever be stopped: name the guardian there.
    pub fn new(folder: &Path, never: &[u32]) -> io::Result<Self> {
        let journal = Journal::frozen(folder);
        journal.undo()?;
        let mut never: BTreeSet<u32> = never.iter().copied().collect();
        never.extend([0, 1, std::process::id()]);
        Ok(Freezer {
            journal,
            never,
            units: Vec::new(),
            tracer: None,
        })
    }

    /// Stops those processes. Whoever does not stand by the deadline runs on, and so do those that
    /// would have been stopped together with it. Fails only if nothing was touched.
    pub fn freeze(&mut self, processes: &[ProcessId], deadline: Instant) -> io::Result<Outcome> {
        let mut outcome = Outcome::default();
        let admitted = self.admit(processes, &mut outcome);
        let mut units: Vec<Unit> = steps(&admitted).into_iter().flat_map(prepared).collect();
        let new = units.iter().filter_map(Unit::entry).collect::<Vec<_>>();
        let before: Vec<_> = self.units.iter().filter_map(Unit::entry).collect();
        if let Err(error) = self.journal.write(before.iter().chain(&new)) {
            for unit in &mut units {
                // An empty group is left behind at worst.
                let _ = unit.release();
            }
            return Err(error);
        }
        let strays: Vec<_> = units.iter_mut().flat_map(Unit::gather).collect();
        units.extend(strays.into_iter().map(Unit::traced));
        // All at once, then one after the other: they freeze side by side.
        let begun: Vec<_> = units
            .into_iter()
            .map(|mut unit| (unit.begin(&mut self.tracer), unit))
            .collect();
        for (begun, mut unit) in begun {
            let meant = unit.members.clone();
            let finished = match begun {
                Ok(()) => unit.finish(deadline),
                Err(error) => Err(Refusal::Failed(error.to_string())),
            };
            match finished {
                Ok(()) => {
                    let missing = meant.iter().filter(|one| !unit.members.contains(one));
                    outcome
                        .refused
                        .extend(missing.map(|one| (*one, Refusal::Gone)));
                    outcome.frozen.push(Frozen {
                        means: unit.means(),
                        members: unit.members.clone(),
                    });
                    self.units.push(unit);
                }
                Err(refusal) => {
                    let refused = meant.iter().map(|one| (*one, refusal.clone()));
                    outcome.refused.extend(refused);
                    if unit.release().is_err() {
                        // It stays on the list, to be tried again.
                        unit.members.clear();
                        self.units.push(unit);
                    }
                }
            }
        }
        // Should it fail, the list names more than there is, which does no harm.
        let _ = self.keep_journal();
        Ok(outcome)
    }

    /// Lets a process go on, and those that were stopped together with it: who they are.
    pub fn thaw(&mut self, process: ProcessId) -> io::Result<Vec<ProcessId>> {
        self.thaw_where(|unit| unit.members.contains(&process))
    }

    /// Lets all go on.
    pub fn thaw_all(&mut self) -> io::Result<Vec<ProcessId>> {
        self.thaw_where(|_| true)
    }

    /// What stands.
    pub fn frozen(&self) -> impl Iterator<Item = ProcessId> + '_ {
        self.units
            .iter()
            .flat_map(|unit| unit.members.iter().copied())
    }

    fn thaw_where(&mut self, which: impl Fn(&Unit) -> bool) -> io::Result<Vec<ProcessId>> {
        let units: Vec<Unit> = self.units.extract_if(.., |unit| which(unit)).collect();
        for unit in &units {
            // All are to run before any is tidied up behind, where a failure is kept.
            let _ = unit.thaw();
        }
        let mut thawed = Vec::new();
        let mut failure = None;
        for mut unit in units {
            match unit.release() {
                Ok(()) => thawed.append(&mut unit.members),
                Err(error) => {
                    failure = Some(error);
                    self.units.push(unit);
                }
            }
        }
        self.keep_journal()?;
        failure.map_or(Ok(thawed), Err)
    }

    fn keep_journal(&self) -> io::Result<()> {
        let entries: Vec<_> = self.units.iter().filter_map(Unit::entry).collect();
        self.journal.write(&entries)
    }

    /// Those that may be stopped, and their control groups.
    fn admit(&self, processes: &[ProcessId], outcome: &mut Outcome) -> Vec<Placed> {
        let mount = cgroup::mount_point();
        let frozen: BTreeSet<ProcessId> = self.frozen().collect();
        let wanted: BTreeSet<ProcessId> = processes.iter().copied().collect();
        let here = std::process::id();
        let mut others = BTreeMap::<PathBuf, bool>::new();
        let mut admitted = Vec::new();
        for process in wanted {
            let refusal = match Stat::of(process.pid) {
                _ if self.never.contains(&process.pid) => Refusal::Never,
                _ if frozen.contains(&process) => Refusal::Already,
                Ok(stat) if stat.start != process.start || stat.has_ended() => Refusal::Gone,
                Ok(stat) if stat.is_kernel_thread() || stat.parent == here => Refusal::Never,
                Ok(_) => {
                    let mount = mount.as_ref();
                    let folder = mount.and_then(|mount| cgroup::of(mount, process.pid));
                    // What stands already is somebody else's to thaw.
                    let stands = folder.as_ref().is_some_and(|folder| {
                        let known = others.entry(folder.clone());
                        *known.or_insert_with(|| cgroup::stands(folder))
                    });
                    if !stands {
                        admitted.push((process, folder));
                        continue;
                    }
                    Refusal::Already
                }
                Err(_) => Refusal::Gone,
            };
            outcome.refused.push((process, refusal));
        }
        admitted
    }
}

impl Drop for Freezer {
    fn drop(&mut self) {
        // The guardian does what fails here.
        let _ = self.thaw_all();
    }
}

/// How they are best stopped, as things are.
fn steps(processes: &[Placed]) -> Vec<Step> {
    let mut groups = BTreeMap::<PathBuf, Group>::new();
    for folder in processes.iter().filter_map(|(_, folder)| folder.as_ref()) {
        groups.entry(folder.clone()).or_insert_with(|| Group {
            members: cgroup::members_below(folder)
                .ok()
                .map(|members| members.into_iter().collect()),
            is_root: !folder.join("cgroup.freeze").exists(),
            may_have_leaf: cgroup::may_have_leaf(folder),
        });
    }
    plan(processes, &groups)
}

/// The units of a step: where no group can be made, each process for itself.
fn prepared(step: Step) -> Vec<Unit> {
    match step {
        Step::Whole(folder, members) => vec![Unit::whole(folder, members)],
        Step::Leaf(folder, members) => match cgroup::make_leaf(&folder) {
            Ok(leaf) => vec![Unit::leaf(leaf, members)],
            Err(_) => members.into_iter().map(Unit::traced).collect(),
        },
        Step::Traced(member) => vec![Unit::traced(member)],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identify;

    #[test]
    fn some_are_never_stopped() {
        let folder = tempfile::tempdir().unwrap();
        let mut freezer = Freezer::new(folder.path(), &[u32::MAX]).unwrap();
        let here = identify(std::process::id()).unwrap();
        let first = identify(1).unwrap();
        let other = ProcessId {
            start: first.start + 1,
            pid: u32::MAX,
        };
        let gone = ProcessId {
            pid: u32::MAX - 1,
            start: 0,
        };
        let outcome = freezer
            .freeze(&[here, first, other, gone], Instant::now())
            .unwrap();
        assert_eq!(outcome.frozen, []);
        for (process, refusal) in outcome.refused {
            let expected = if process == gone {
                Refusal::Gone
            } else {
                Refusal::Never
            };
            assert_eq!(refusal, expected, "{process:?}");
        }
        assert_eq!(freezer.frozen().count(), 0);
        assert_eq!(freezer.thaw(here).unwrap(), []);
    }
}
