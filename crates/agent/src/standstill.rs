//! Processes that stand, and everything that lets them go on.
//!
//! They are thawed when the host says so, when it has been silent for the length of its lease, when
//! somebody turns to one of them, when the window ends and when this process does (the guardian).

use std::collections::{HashMap, HashSet};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use depgraph::{ObjectId, ProcessId, Relation};
use guest_procs::guardian::Guardian;
use guest_procs::{FOLDER, Freezer, Lease, Quiet, ordinary, realtime};
use guest_proto::FrozenReport;

use crate::tracker::{Edge, What, kinds};

/// Longest lease: whatever the host says, nothing stands for longer without a word of it.
const LEASE_MAX: Duration = Duration::from_secs(60);
/// Longest time that processes get to come to a stand.
const DEADLINE_MAX: Duration = Duration::from_secs(10);

/// What stands.
pub(crate) struct Standstill {
    guardian: Guardian,
    freezer: Freezer,
    lease: Lease,
    /// Keeps the kernel from moving the pages of what stands.
    quiet: Option<Quiet>,
    /// Through what somebody may turn to whom.
    reached_by: HashMap<ObjectId, HashSet<ProcessId>>,
    frozen: HashSet<ProcessId>,
}

impl Standstill {
    /// Starts the guardian; nothing stands yet.
    pub(crate) fn new() -> Result<Self> {
        let mut command = Command::new("/proc/self/exe");
        command.arg("guardian");
        let guardian = Guardian::spawn(command).context("starting the guardian")?;
        let freezer = Freezer::new(FOLDER.as_ref(), &[guardian.pid()])?;
        Ok(Standstill {
            guardian,
            freezer,
            lease: Lease::default(),
            quiet: None,
            reached_by: HashMap::new(),
            frozen: HashSet::new(),
        })
    }

    /// Freezes processes.
    pub(crate) fn freeze(
        &mut self,
        processes: &[ProcessId],
        lease: Duration,
        deadline: Duration,
    ) -> Result<FrozenReport> {
        ensure!(
            self.guardian.is_there(),
            "the guardian has gone: nothing is frozen without one"
        );
        if self.quiet.is_none() {
            self.quiet = Some(Quiet::begin(FOLDER.as_ref())?);
        }
        let begin = Instant::now();
        let urgent = Urgent::begin();
        let outcome = self
            .freezer
            .freeze(processes, begin + deadline.min(DEADLINE_MAX))?;
        drop(urgent);
        self.lease.renew(Instant::now(), lease.min(LEASE_MAX));
        self.note_frozen();
        Ok(FrozenReport {
            frozen: outcome
                .frozen
                .iter()
                .flat_map(|unit| unit.members.iter().copied())
                .collect(),
            refused: outcome
                .refused
                .into_iter()
                .map(|(id, refusal)| (id, refusal.to_string()))
                .collect(),
            took_us: u64::try_from(begin.elapsed().as_micros()).unwrap_or(u64::MAX),
        })
    }

    /// Takes note of through what those that stand can be spoken to.
    pub(crate) fn watch(&mut self, held: &[Edge]) {
        self.reached_by.clear();
        for edge in held {
            if let (true, What::Flow(object, _)) = (self.frozen.contains(&edge.process), edge.what)
            {
                let reached = self.reached_by.entry(object).or_default();
                reached.insert(edge.process);
            }
        }
    }

    /// Those that stand and to whom somebody has turned.
    pub(crate) fn called(&self, edges: &[Edge]) -> Vec<ProcessId> {
        // It could not be looked at to whom: to any of those that can be reached so.
        let unseen: Vec<_> = edges
            .iter()
            .filter_map(|edge| match edge.what {
                What::Unseen(bits) => Some(kinds(bits)),
                _ => None,
            })
            .flatten()
            .collect();
        let reached = self.reached_by.iter();
        let reached = reached
            .filter(|(object, _)| unseen.contains(&object.kind))
            .flat_map(|(_, processes)| processes.iter().copied());
        let mut called: Vec<ProcessId> = edges
            .iter()
            .filter(|edge| !self.frozen.contains(&edge.process))
            .flat_map(|edge| -> Vec<ProcessId> {
                match edge.what {
                    What::Flow(object, direction) if direction.writes() => {
                        let reached = self.reached_by.get(&object).into_iter().flatten();
                        reached.copied().collect()
                    }
                    What::Relation(
                        other,
                        Relation::Signalled | Relation::Traced | Relation::Woke | Relation::Exited,
                    ) => self.frozen.get(&other).copied().into_iter().collect(),
                    _ => Vec::new(),
                }
            })
            .chain(reached)
            .collect();
        called.sort_unstable();
        called.dedup();
        called
    }

    /// Thaws a process and those that were frozen together with it.
    pub(crate) fn thaw(&mut self, process: ProcessId) -> Result<Vec<ProcessId>> {
        let urgent = Urgent::begin();
        let thawed = self.freezer.thaw(process);
        drop(urgent);
        self.note_frozen();
        Ok(thawed?)
    }

    /// Thaws all.
    pub(crate) fn thaw_all(&mut self) -> Result<Vec<ProcessId>> {
        let urgent = Urgent::begin();
        let thawed = self.freezer.thaw_all();
        drop(urgent);
        self.lease.end();
        self.quiet = None;
        self.note_frozen();
        Ok(thawed?)
    }

    /// The host wants it to last.
    pub(crate) fn renew(&mut self, lease: Duration) {
        self.lease.renew(Instant::now(), lease.min(LEASE_MAX));
    }

    /// The host has been silent for too long.
    pub(crate) fn expired(&self) -> bool {
        self.lease.expired(Instant::now())
    }

    /// How long to wait at most.
    pub(crate) fn remaining(&self) -> Option<Duration> {
        self.lease.remaining(Instant::now())
    }

    fn note_frozen(&mut self) {
        self.frozen = self.freezer.frozen().collect();
        let frozen = &self.frozen;
        self.reached_by.retain(|_, processes| {
            processes.retain(|process| frozen.contains(process));
            !processes.is_empty()
        });
    }
}

/// While it lasts, this process runs before all others: it has to get through where those that are
/// to stand keep every processor busy. No longer than that, since services wait meanwhile.
struct Urgent;

impl Urgent {
    fn begin() -> Self {
        realtime();
        Urgent
    }
}

impl Drop for Urgent {
    fn drop(&mut self) {
        ordinary();
    }
}
