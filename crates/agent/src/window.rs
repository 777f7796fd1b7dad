//! A window: from what the probes tell to what every process is.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::Path;
use std::time::Instant;

use depgraph::{
    Class, External, Graph, Interface, Limits, ObjectId, ObjectKind, ProcessId, Relation, Source,
    Uncertainty,
};
use guest_proto::{Candidate, Losses, ProcessRecord, Reason, Rule, Summary, Traits};

use crate::names;
use crate::policy::{self, FOLDER, Policy, Verdict};
use crate::processes::{self, Place};
use crate::tracker::{Doubts, Edge, Origin, Snapshot, Task, What, device, kinds};

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
    judged: HashMap<ProcessId, Judged>,
    /// Units of which a process is in contact with the outside, where a rule asks for them: by
    /// their control group, and through which process.
    facing: HashMap<String, ProcessId>,
    doubts: Doubts,
    /// Processes that hold an object of a kind, without having been seen to use it.
    held: BTreeMap<ObjectKind, BTreeSet<ProcessId>>,
    /// Kinds of objects through which something has gone that could not be looked at.
    unseen: BTreeSet<ObjectKind>,
}

/// What the rules say of a process.
#[derive(Debug, Default)]
struct Judged {
    name: String,
    place: Place,
    verdict: Verdict,
}

impl Judged {
    fn traits(&self, id: ProcessId, facing: bool) -> Traits<'_> {
        Traits {
            pid: id.pid,
            name: &self.name,
            exe: &self.place.exe,
            cgroup: &self.place.cgroup,
            facing,
        }
    }
}

impl Window {
    /// Opens one, in which some things are uncertain from the beginning.
    pub(crate) fn new(rules: Vec<Rule>, doubts: Doubts) -> Self {
        let (policy, complaints) = Policy::read(rules, Path::new(FOLDER));
        for complaint in complaints {
            eprintln!("unmoor-agent: {complaint}");
        }
        let mut graph = Graph::new(LIMITS);
        if doubts.everyone {
            graph.all_uncertain(Uncertainty::LostProbe);
        }
        Window {
            began: Instant::now(),
            graph,
            policy,
            judged: HashMap::new(),
            facing: HashMap::new(),
            doubts,
            held: BTreeMap::new(),
            unseen: BTreeSet::new(),
        }
    }

    /// Takes edges.
    pub(crate) fn take(&mut self, edges: &[Edge]) {
        for edge in edges {
            self.edge(edge);
        }
        self.look_who_faces_clients();
    }

    /// Takes what stands.
    pub(crate) fn stands(&mut self, snapshot: &Snapshot) {
        for task in &snapshot.tasks {
            if task.is_kernel {
                continue;
            }
            self.judge(task);
            if self.doubts.everybody_waits {
                self.graph.waits(task.id);
            }
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
        let unknown = Judged::default();
        let judged = self.judged.get(&task.id).unwrap_or(&unknown);
        let verdict = judged.verdict.clone();
        let rule = verdict.treatment.map(|(_, rule)| rule);
        let reason = match (class, &rule) {
            (Class::Sink | Class::MayPause, Some(rule)) => Reason::Rule(rule.rule.clone()),
            _ if verdict.by_facing => self.faces(task.id, &judged.place.cgroup),
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
            cgroup: judged.place.cgroup.clone(),
            class,
            reason,
            anonymous_kib: info.anonymous_kib,
            rule,
            pause_limit: verdict.limit,
        })
    }

    /// Its own contact, or that of another process of its unit.
    fn faces(&self, process: ProcessId, cgroup: &str) -> Reason {
        let unit = policy::unit(cgroup).unwrap_or("");
        match (self.graph.own_contact(process), self.facing.get(unit)) {
            (None, Some(facing)) => Reason::Unit {
                unit: unit.rsplit('/').next().unwrap_or(unit).to_owned(),
                facing: *facing,
            },
            (contact, _) => Reason::Source(contact.unwrap_or(Source::AlwaysLive)),
        }
    }

    /// What the rules say of a process. It may have become another program since the last time.
    pub(crate) fn judge(&mut self, task: &Task) {
        self.graph.process(task.id);
        let judged = Judged {
            name: task.name.clone(),
            place: processes::place(task.id),
            verdict: Verdict::default(),
        };
        self.judged.insert(task.id, judged);
        self.apply_rules(task.id);
    }

    fn apply_rules(&mut self, process: ProcessId) {
        let Some(judged) = self.judged.get_mut(&process) else {
            return;
        };
        let unit = policy::unit(&judged.place.cgroup);
        let facing = unit.is_some_and(|unit| self.facing.contains_key(unit));
        let verdict = self.policy.of(&judged.traits(process, facing));
        let mark = verdict.treatment.as_ref();
        let mark = mark.map(|(treatment, _)| policy::mark(*treatment));
        judged.verdict = verdict;
        self.graph.mark(process, mark);
    }

    /// Where a rule asks for it: units of which a process has turned out to be in contact with the
    /// outside. They are so to the end of the window.
    fn look_who_faces_clients(&mut self) {
        if !self.policy.asks_who_faces_clients() {
            return;
        }
        let mut found = HashSet::new();
        for (process, judged) in &self.judged {
            if let Some(unit) = policy::unit(&judged.place.cgroup)
                && !self.facing.contains_key(unit)
                && self.graph.own_contact(*process).is_some()
            {
                self.facing.insert(unit.to_owned(), *process);
                found.insert(unit.to_owned());
            }
        }
        let of_found = self.judged.iter().filter(|(_, judged)| {
            policy::unit(&judged.place.cgroup).is_some_and(|unit| found.contains(unit))
        });
        let concerned: Vec<_> = of_found.map(|(process, _)| *process).collect();
        for process in concerned {
            self.apply_rules(process);
        }
    }

    fn edge(&mut self, edge: &Edge) {
        if let What::Flow(object, _) = edge.what {
            if self.unseen.contains(&object.kind) {
                self.graph.uncertain(edge.process, Uncertainty::LostProbe);
            } else if edge.origin == Origin::Held {
                self.held
                    .entry(object.kind)
                    .or_default()
                    .insert(edge.process);
            }
        }
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
            What::Unseen(bits) => {
                graph.uncertain(edge.process, Uncertainty::LostProbe);
                for kind in kinds(bits) {
                    self.doubt(kind);
                }
            }
            What::Unknown => graph.uncertain(edge.process, Uncertainty::UnknownObject),
        }
    }

    /// Data has gone through an object of this kind, and it is not known through which. Every process that
    /// uses such an object, or can be reached through one, may have received it.
    fn doubt(&mut self, kind: ObjectKind) {
        if !self.unseen.insert(kind) {
            return;
        }
        let mut concerned = self.held.remove(&kind).unwrap_or_default();
        concerned.extend(self.graph.users(kind));
        for process in concerned {
            self.graph.uncertain(process, Uncertainty::LostProbe);
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

#[cfg(test)]
mod tests {
    use depgraph::Direction;

    use super::*;

    const WRITER: ProcessId = ProcessId { pid: 1, start: 1 };
    const READER: ProcessId = ProcessId { pid: 2, start: 1 };
    const HOLDER: ProcessId = ProcessId { pid: 3, start: 1 };
    const OTHER: ProcessId = ProcessId { pid: 4, start: 1 };
    const PIPE: u64 = 1 << 1;

    fn pipe(b: u64) -> ObjectId {
        ObjectId {
            kind: ObjectKind::Pipe,
            a: 0,
            b,
        }
    }

    fn edge(process: ProcessId, what: What, origin: Origin) -> Edge {
        Edge {
            process,
            what,
            origin,
        }
    }

    fn reads(process: ProcessId, b: u64) -> Edge {
        let what = What::Flow(pipe(b), Direction::Reads);
        edge(process, what, Origin::Event)
    }

    fn window(doubts: Doubts) -> Window {
        let mut window = Window::new(Vec::new(), doubts);
        for process in [WRITER, READER, HOLDER, OTHER] {
            window.graph().process(process);
        }
        window
    }

    #[test]
    fn what_could_not_be_looked_at_concerns_all_who_may_have_got_it() {
        let unseen = edge(WRITER, What::Unseen(PIPE), Origin::Event);
        let holds = edge(HOLDER, What::Flow(pipe(2), Direction::Both), Origin::Held);
        let socket = ObjectId {
            kind: ObjectKind::UnixSocket,
            ..pipe(1)
        };
        let elsewhere = edge(OTHER, What::Flow(socket, Direction::Both), Origin::Event);
        let edges = [unseen, reads(READER, 1), holds, elsewhere];
        // In whatever order they come.
        for first in 0..edges.len() {
            let mut window = window(Doubts::default());
            let mut edges = edges;
            edges.rotate_left(first);
            window.take(&edges);
            for process in [WRITER, READER, HOLDER] {
                assert!(!window.may_pause(process), "{process:?} after {first}");
            }
            assert!(window.may_pause(OTHER));
        }
    }

    #[test]
    fn without_the_list_of_kinds_only_the_one_who_did_it_is_concerned() {
        let mut window = window(Doubts::default());
        window.take(&[
            reads(READER, 1),
            edge(WRITER, What::Unseen(0), Origin::Event),
        ]);
        assert!(!window.may_pause(WRITER));
        assert!(window.may_pause(READER));
    }

    #[test]
    fn without_what_nothing_replaces_everybody_is_uncertain() {
        let everyone = Doubts {
            everyone: true,
            ..Doubts::default()
        };
        let window = window(everyone);
        assert!(!window.may_pause(OTHER));
        let doubt = window.summary(Losses::default()).doubt;
        assert_eq!(doubt, Some(Uncertainty::LostProbe));
    }
}
