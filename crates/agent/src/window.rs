//! A window: from what the probes tell to what every process is.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::time::Instant;

use depgraph::{
    Class, External, Graph, Interface, Limits, ObjectId, ObjectKind, ProcessId, Relation,
    Uncertainty,
};
use guest_proto::{Candidate, Losses, ProcessRecord, Reason, Rule, Summary, Traits};

use crate::names;
use crate::policy::{self, FOLDER, Policy};
use crate::processes;
use crate::tracker::{Edge, Origin, Snapshot, Task, What, device};

/// Room for a large guest in some 20 MB.
const LIMITS: Limits = Limits {
    processes: 30_000,
    objects: 60_000,
    edges: 150_000,
};

/// What has been seen since the window opened.
pub(crate) struct Window {
    began: Instant,
    graph: Graph,
    policy: Policy,
    /// Where a process belongs, and the rule that decides on it.
    places: HashMap<ProcessId, (String, Option<String>)>,
}

impl Window {
    /// Opens one.
    pub(crate) fn new(rules: Vec<Rule>) -> Self {
        let (policy, complaints) = Policy::read(rules, Path::new(FOLDER));
        for complaint in complaints {
            eprintln!("unmoor-agent: {complaint}");
        }
        Window {
            began: Instant::now(),
            graph: Graph::new(LIMITS),
            policy,
            places: HashMap::new(),
        }
    }

    /// Takes edges.
    pub(crate) fn take(&mut self, edges: &[Edge]) {
        for edge in edges {
            self.edge(edge);
        }
    }

    /// Takes what stands.
    pub(crate) fn stands(&mut self, snapshot: &Snapshot) {
        for task in &snapshot.tasks {
            if task.is_kernel {
                continue;
            }
            self.judge(task);
            if let Some(tracer) = task.tracer {
                self.graph.relate(tracer, task.id, Relation::Traced);
            }
        }
        self.take(&snapshot.edges);
    }

    /// Nothing more is certain where events were lost.
    pub(crate) fn lost(&mut self, losses: Losses) {
        if losses != Losses::default() {
            self.graph.all_uncertain(Uncertainty::LostEvents);
        }
    }

    /// Every process that lives, what it is and why.
    pub(crate) fn records(&self, tasks: &[Task]) -> Vec<ProcessRecord> {
        let mut names = names::Names::default();
        let mut seen = HashSet::new();
        tasks
            .iter()
            .filter(|task| !task.is_kernel && task.id.pid != std::process::id())
            .filter(|task| seen.insert(task.id))
            .filter_map(|task| self.record(task, &mut names))
            .collect()
    }

    /// About the window as a whole.
    pub(crate) fn summary(&self, losses: Losses) -> Summary {
        let (processes, objects, edges) = self.graph.size();
        let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        Summary {
            window_ms: u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX),
            losses,
            doubt: self.graph.doubt(),
            processes: count(processes),
            objects: count(objects),
            edges: count(edges),
            memory_kib: processes::memory_kib(),
        }
    }

    /// Whether nobody outside could notice if a process paused.
    pub(crate) fn may_pause(&self, process: ProcessId) -> bool {
        let class = self.graph.class(process);
        class.is_some_and(|class| !class.stays_live())
    }

    /// Those that may be paused, as far as is known, and have so much anonymous memory.
    pub(crate) fn candidates(&self, tasks: &[Task], at_least_kib: u64) -> Vec<Candidate> {
        let mut seen = HashSet::new();
        tasks
            .iter()
            .filter(|task| !task.is_kernel && task.id.pid != std::process::id())
            .filter(|task| self.may_pause(task.id) && seen.insert(task.id))
            .filter_map(|task| {
                let anonymous_kib = processes::anonymous_kib(task.id)?;
                (anonymous_kib >= at_least_kib).then_some(Candidate {
                    id: task.id,
                    anonymous_kib,
                })
            })
            .collect()
    }

    /// The graph, for facts that come from elsewhere.
    pub(crate) fn graph(&mut self) -> &mut Graph {
        &mut self.graph
    }

    /// Nothing about one that has ended since the snapshot.
    fn record(&self, task: &Task, names: &mut names::Names) -> Option<ProcessRecord> {
        let info = processes::info(task.id)?;
        let class = self.graph.class(task.id).unwrap_or(Class::Independent);
        let (cgroup, rule) = self.places.get(&task.id).cloned().unwrap_or_default();
        let reason = match (class, rule) {
            (Class::Sink | Class::MayPause, Some(rule)) => Reason::Rule(rule),
            _ => match self.graph.why(task.id) {
                None => Reason::None,
                Some(Err(source)) => Reason::Source(source),
                Some(Ok(link)) => Reason::Flow {
                    via: link.via,
                    toward: link.toward,
                    object: names.of(link.via, [task.id, link.toward]),
                },
            },
        };
        Some(ProcessRecord {
            id: task.id,
            parent: task.parent,
            name: task.name.clone(),
            command: info.command,
            cgroup,
            class,
            reason,
            anonymous_kib: info.anonymous_kib,
        })
    }

    /// What the rules say of a process. It may have become another program since the last time.
    pub(crate) fn judge(&mut self, task: &Task) {
        let place = processes::place(task.id);
        let traits = Traits {
            pid: task.id.pid,
            name: &task.name,
            exe: &place.exe,
            cgroup: &place.cgroup,
        };
        self.graph.process(task.id);
        let rule = self.policy.of(&traits);
        let mark = rule.map(|rule| policy::mark(rule.treatment));
        let rule = rule.map(ToString::to_string);
        self.graph.mark(task.id, mark);
        self.places.insert(task.id, (place.cgroup, rule));
    }

    fn edge(&mut self, edge: &Edge) {
        let graph = &mut self.graph;
        let standing = edge.origin != Origin::Event;
        match edge.what {
            What::Flow(object, direction) if object.kind == ObjectKind::Device => {
                // A descriptor that is only held may be used at any moment from the outside; one
                // that can only be written waits for its holder.
                if leads_outside(object) && (direction.reads() || !standing) {
                    let (major, minor) = device(object.a);
                    graph.external(
                        edge.process,
                        External {
                            interface: Interface::Device { major, minor },
                            standing,
                            peer: None,
                        },
                    );
                }
            }
            What::External(..) | What::Flow(..) if edge.origin == Origin::Held => {}
            What::Flow(object, direction) => graph.flow(edge.process, object, direction),
            What::External(interface, peer) => graph.external(
                edge.process,
                External {
                    interface,
                    standing,
                    peer,
                },
            ),
            What::Relation(other, relation) => graph.relate(edge.process, other, relation),
            What::Waits => graph.waits(edge.process),
            What::Unknown => graph.uncertain(edge.process, Uncertainty::UnknownObject),
        }
    }
}

/// Whether a character device leads out of the VM. In doubt it does.
fn leads_outside(object: ObjectId) -> bool {
    const MISC: u16 = 10;
    match device(object.a) {
        // Memory: null, zero, random.
        (1, _) => false,
        // hwrng, kvm, autofs, loop-control, btrfs-control, the device mapper's control.
        (MISC, minor) => ![183, 232, 235, 237, 234, 236].contains(&minor),
        _ => true,
    }
}
