//! The graph and its distances.

use std::collections::{HashMap, HashSet, VecDeque};

use crate::chain::{Chain, Link, Via};
use crate::class::{Class, Mark, Source, Uncertainty};
use crate::ids::{Direction, External, ObjectId, ObjectKind, ProcessId, Relation};

/// Not reached from the outside.
const FAR: u32 = u32::MAX;

/// How much a graph may hold. Past that, the processes concerned are dependent.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Processes, those that have ended included.
    pub processes: usize,
    /// Objects.
    pub objects: usize,
    /// Pairs of process and object, or of two processes.
    pub edges: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            processes: 100_000,
            objects: 100_000,
            edges: 400_000,
        }
    }
}

/// Flows between processes since the start of the window.
///
/// Adding a flow never makes a dependent process independent, and the order in which flows are
/// added makes no difference, unless the limits are reached.
#[derive(Debug, Default)]
pub struct Graph {
    limits: Limits,
    edges: usize,
    /// A process could not be taken in: nothing is certain any more.
    overflowed: bool,
    /// Events were lost, and nobody knows whose.
    uncertain: Option<Uncertainty>,
    processes: Vec<Process>,
    objects: Vec<Object>,
    process_index: HashMap<ProcessId, u32>,
    object_index: HashMap<ObjectId, u32>,
    known_relations: HashSet<(u32, u32, Relation)>,
    /// Processes whose distance has become shorter.
    queue: VecDeque<u32>,
}

#[derive(Debug)]
struct Process {
    id: ProcessId,
    mark: Option<Mark>,
    /// The least of its reasons: which one is kept does not depend on the order.
    source: Option<Source>,
    waits: bool,
    distance: u32,
    /// In the order of their indices.
    objects: Vec<(u32, Direction)>,
    relations: Vec<Related>,
}

#[derive(Debug, Clone, Copy)]
struct Related {
    other: u32,
    relation: Relation,
    by_us: bool,
}

#[derive(Debug)]
struct Object {
    id: ObjectId,
    writers: Vec<u32>,
    readers: Vec<u32>,
    /// The shortest distances among those: a flow is passed on only when one becomes shorter, so
    /// a busy object does not cost readers times writers.
    nearest_writer: u32,
    nearest_reader: u32,
    /// A flow through it could not be kept.
    forgotten: bool,
}

impl Graph {
    /// A graph without flows.
    pub fn new(limits: Limits) -> Self {
        Graph {
            limits,
            ..Graph::default()
        }
    }

    /// Makes a process known.
    pub fn process(&mut self, id: ProcessId) {
        self.intern(id);
    }

    /// Settles what a process is, or leaves it to its flows again.
    pub fn mark(&mut self, id: ProcessId, mark: Option<Mark>) {
        let Some(index) = self.intern(id) else { return };
        let process = &mut self.processes[index as usize];
        if process.mark == mark {
            return;
        }
        process.mark = mark;
        if !process.objects.is_empty() || !process.relations.is_empty() {
            // Others may owe it their distance, or may now get one.
            self.recompute();
            return;
        }
        process.distance = FAR;
        if process.own_source().is_some() {
            self.offer(index, 0);
            self.queue.clear();
        }
    }

    /// A process is in contact with the outside.
    pub fn external(&mut self, id: ProcessId, external: External) {
        self.source(id, Source::Outside(external));
    }

    /// It is not known what a process does.
    pub fn uncertain(&mut self, id: ProcessId, why: Uncertainty) {
        self.source(id, Source::Uncertain(why));
    }

    /// It is not known what any process does.
    pub fn all_uncertain(&mut self, why: Uncertainty) {
        self.uncertain = Some(self.uncertain.map_or(why, |known| known.min(why)));
    }

    /// A process reads or writes an object.
    pub fn flow(&mut self, id: ProcessId, object: ObjectId, direction: Direction) {
        let Some(process) = self.intern(id) else {
            return;
        };
        let Some(object) = self.intern_object(object) else {
            self.uncertain(id, Uncertainty::GraphFull);
            return;
        };
        let known = &mut self.processes[process as usize].objects;
        let before = match known.binary_search_by_key(&object, |(other, _)| *other) {
            Ok(at) => {
                let before = known[at].1;
                let after = join(before, direction);
                if before == after {
                    return;
                }
                known[at].1 = after;
                Some(before)
            }
            Err(_) if self.edges >= self.limits.edges => {
                self.uncertain(id, Uncertainty::GraphFull);
                self.forget_flow(object);
                return;
            }
            Err(at) => {
                known.insert(at, (object, direction));
                self.edges += 1;
                None
            }
        };
        let new_reader = direction.reads() && !before.is_some_and(Direction::reads);
        let new_writer = direction.writes() && !before.is_some_and(Direction::writes);
        let node = &mut self.objects[object as usize];
        if new_reader {
            node.readers.push(process);
        }
        if new_writer {
            node.writers.push(process);
        }
        // From the others to this one, ...
        let near = match (new_reader, new_writer) {
            (true, true) => node.nearest_writer.min(node.nearest_reader),
            (true, false) => node.nearest_writer,
            _ => node.nearest_reader,
        };
        self.offer(process, near.saturating_add(1));
        // ... and from this one to the others.
        self.spread_through(process, object, new_reader, new_writer);
        self.settle();
    }

    /// One process does something to another.
    pub fn relate(&mut self, by: ProcessId, to: ProcessId, relation: Relation) {
        let (Some(by), Some(to)) = (self.intern(by), self.intern(to)) else {
            return;
        };
        if by == to || self.known_relations.contains(&(by, to, relation)) {
            return;
        }
        if self.edges >= self.limits.edges {
            for index in [by, to] {
                let id = self.processes[index as usize].id;
                self.uncertain(id, Uncertainty::GraphFull);
            }
            return;
        }
        self.edges += 1;
        self.known_relations.insert((by, to, relation));
        for (from, other, by_us) in [(by, to, true), (to, by, false)] {
            self.processes[from as usize].relations.push(Related {
                other,
                relation,
                by_us,
            });
        }
        self.connect(by, to, relation);
        self.settle();
    }

    /// A process waits, or asks, for the end of its children.
    pub fn waits(&mut self, id: ProcessId) {
        let Some(index) = self.intern(id) else { return };
        if self.processes[index as usize].waits {
            return;
        }
        self.processes[index as usize].waits = true;
        let ended: Vec<u32> = self.processes[index as usize]
            .relations
            .iter()
            .filter(|related| related.relation == Relation::Ended && !related.by_us)
            .map(|related| related.other)
            .collect();
        for child in ended {
            self.connect(child, index, Relation::Ended);
        }
        self.settle();
    }

    /// What a process is; nothing for one that is not known.
    pub fn class(&self, id: ProcessId) -> Option<Class> {
        let index = self.process_index.get(&id)?;
        Some(self.class_of(*index))
    }

    /// Every process and what it is.
    pub fn classes(&self) -> impl Iterator<Item = (ProcessId, Class)> + '_ {
        (0u32..)
            .zip(&self.processes)
            .map(|(index, process)| (process.id, self.class_of(index)))
    }

    /// Why a process is dependent: the flow to the one next to it on the shortest way to the
    /// outside, or its own reason. Nothing for one that is not dependent.
    pub fn why(&self, id: ProcessId) -> Option<Result<Link, Source>> {
        let index = *self.process_index.get(&id)?;
        let process = &self.processes[index as usize];
        let Class::Dependent { .. } = self.class_of(index) else {
            return None;
        };
        match process.distance {
            0 => Some(Err(process.own_source()?)),
            FAR => Some(Err(Source::Uncertain(self.doubt()?))),
            distance => Some(Ok(self.link(index, distance - 1)?)),
        }
    }

    /// Why a process is dependent by itself, whatever a mark says of it; nothing for one that is
    /// marked to take no part.
    pub fn own_contact(&self, id: ProcessId) -> Option<Source> {
        let index = *self.process_index.get(&id)?;
        let process = &self.processes[index as usize];
        process.source.filter(|_| !process.is_apart())
    }

    /// The whole chain of a dependent process.
    pub fn chain(&self, id: ProcessId) -> Option<Chain> {
        let mut links = Vec::new();
        let mut at = id;
        loop {
            match self.why(at)? {
                Ok(link) => {
                    at = link.toward;
                    links.push(link);
                }
                Err(source) => return Some(Chain { links, source }),
            }
        }
    }

    /// Whether nothing is certain any more, and why.
    pub fn doubt(&self) -> Option<Uncertainty> {
        let full = self.overflowed.then_some(Uncertainty::GraphFull);
        [self.uncertain, full].into_iter().flatten().min()
    }

    /// What an object is, among those that were seen: the processes that write and read it.
    pub fn parties(&self, object: ObjectId) -> (Vec<ProcessId>, Vec<ProcessId>) {
        let Some(index) = self.object_index.get(&object) else {
            return (Vec::new(), Vec::new());
        };
        let object = &self.objects[*index as usize];
        let ids = |members: &[u32]| {
            members
                .iter()
                .map(|index| self.processes[*index as usize].id)
                .collect()
        };
        (ids(&object.writers), ids(&object.readers))
    }

    /// The processes that have used an object of a kind.
    pub fn users(&self, kind: ObjectKind) -> HashSet<ProcessId> {
        let objects = self.objects.iter().filter(|object| object.id.kind == kind);
        objects
            .flat_map(|object| object.writers.iter().chain(&object.readers))
            .map(|index| self.processes[*index as usize].id)
            .collect()
    }

    /// Processes, objects and edges held.
    pub fn size(&self) -> (usize, usize, usize) {
        (self.processes.len(), self.objects.len(), self.edges)
    }

    fn class_of(&self, index: u32) -> Class {
        let process = &self.processes[index as usize];
        match (process.mark, process.distance) {
            (Some(Mark::Sink), _) => Class::Sink,
            (Some(Mark::MayPause), _) => Class::MayPause,
            (_, FAR) if self.doubt().is_some() => Class::Dependent { distance: 0 },
            (_, FAR) => Class::Independent,
            (_, distance) => Class::Dependent { distance },
        }
    }

    fn intern(&mut self, id: ProcessId) -> Option<u32> {
        if let Some(index) = self.process_index.get(&id) {
            return Some(*index);
        }
        let index = u32::try_from(self.processes.len()).ok()?;
        if self.processes.len() >= self.limits.processes {
            self.overflowed = true;
            return None;
        }
        self.processes.push(Process {
            id,
            mark: None,
            source: None,
            waits: false,
            distance: FAR,
            objects: Vec::new(),
            relations: Vec::new(),
        });
        self.process_index.insert(id, index);
        Some(index)
    }

    fn intern_object(&mut self, id: ObjectId) -> Option<u32> {
        if let Some(index) = self.object_index.get(&id) {
            return Some(*index);
        }
        let index = u32::try_from(self.objects.len()).ok()?;
        if self.objects.len() >= self.limits.objects {
            return None;
        }
        self.objects.push(Object {
            id,
            writers: Vec::new(),
            readers: Vec::new(),
            nearest_writer: FAR,
            nearest_reader: FAR,
            forgotten: false,
        });
        self.object_index.insert(id, index);
        Some(index)
    }

    fn source(&mut self, id: ProcessId, source: Source) {
        let Some(index) = self.intern(id) else { return };
        let process = &mut self.processes[index as usize];
        process.source = Some(process.source.map_or(source, |known| known.min(source)));
        self.offer(index, 0);
        self.settle();
    }

    /// A flow through this object has no room: whoever else uses it is concerned as well. (Those
    /// who will use it find no room either.)
    fn forget_flow(&mut self, object: u32) {
        let node = &mut self.objects[object as usize];
        if node.forgotten {
            return;
        }
        node.forgotten = true;
        let members: Vec<u32> = [&node.writers, &node.readers]
            .into_iter()
            .flatten()
            .copied()
            .collect();
        for member in members {
            let id = self.processes[member as usize].id;
            self.uncertain(id, Uncertainty::GraphFull);
        }
    }

    /// A way to the outside of this length has been found.
    fn offer(&mut self, index: u32, distance: u32) {
        let process = &mut self.processes[index as usize];
        if distance < process.distance && !process.is_apart() {
            process.distance = distance;
            self.queue.push_back(index);
        }
    }

    /// Both ends of a relation, if it connects.
    fn connect(&mut self, by: u32, to: u32, relation: Relation) {
        if relation == Relation::Ended && !self.processes[to as usize].waits {
            return;
        }
        for (from, other) in [(by, to), (to, by)] {
            let distance = self.processes[from as usize].distance;
            self.offer(other, distance.saturating_add(1));
        }
    }

    /// Passes distances on until nothing gets shorter.
    fn settle(&mut self) {
        while let Some(index) = self.queue.pop_front() {
            for at in 0..self.processes[index as usize].relations.len() {
                let Related {
                    other,
                    relation,
                    by_us,
                } = self.processes[index as usize].relations[at];
                match by_us {
                    true => self.connect(index, other, relation),
                    false => self.connect(other, index, relation),
                }
            }
            for at in 0..self.processes[index as usize].objects.len() {
                let (object, direction) = self.processes[index as usize].objects[at];
                self.spread_through(index, object, direction.reads(), direction.writes());
            }
        }
    }

    /// Offers a process's distance to those on the other side of an object.
    fn spread_through(&mut self, process: u32, object: u32, reads: bool, writes: bool) {
        let distance = self.processes[process as usize].distance;
        let node = &mut self.objects[object as usize];
        let to_readers = writes && distance < node.nearest_writer;
        let to_writers = reads && distance < node.nearest_reader;
        if to_readers {
            node.nearest_writer = distance;
        }
        if to_writers {
            node.nearest_reader = distance;
        }
        for (wanted, of_readers) in [(to_readers, true), (to_writers, false)] {
            let count = match (wanted, of_readers) {
                (false, _) => 0,
                (true, true) => self.objects[object as usize].readers.len(),
                (true, false) => self.objects[object as usize].writers.len(),
            };
            for at in 0..count {
                let node = &self.objects[object as usize];
                let member = match of_readers {
                    true => node.readers[at],
                    false => node.writers[at],
                };
                self.offer(member, distance + 1);
            }
        }
    }

    /// All distances anew, after a mark has changed who passes dependency on.
    fn recompute(&mut self) {
        for object in &mut self.objects {
            object.nearest_writer = FAR;
            object.nearest_reader = FAR;
        }
        for process in &mut self.processes {
            process.distance = FAR;
        }
        for index in 0..self.processes.len() {
            if self.processes[index].own_source().is_some() {
                self.offer(u32::try_from(index).unwrap_or(FAR), 0);
            }
        }
        self.settle();
    }

    /// The least of the flows that lead to somebody at this distance.
    fn link(&self, index: u32, nearer: u32) -> Option<Link> {
        let process = &self.processes[index as usize];
        let through_relations = process.relations.iter().filter_map(|related| {
            let other = &self.processes[related.other as usize];
            let waiting = match related.by_us {
                true => other.waits,
                false => process.waits,
            };
            let connects = related.relation != Relation::Ended || waiting;
            (connects && other.distance == nearer).then_some((
                Via::Relation {
                    relation: related.relation,
                    by_us: related.by_us,
                },
                other.id,
            ))
        });
        let through_objects = process.objects.iter().filter_map(|(object, ours)| {
            let object = &self.objects[*object as usize];
            self.nearest_party(object, *ours, nearer)
        });
        let (via, toward) = through_relations.chain(through_objects).min()?;
        Some(Link { via, toward })
    }

    /// The least of those at a distance with whom an object connects somebody who uses it so.
    fn nearest_party(
        &self,
        object: &Object,
        ours: Direction,
        nearer: u32,
    ) -> Option<(Via, ProcessId)> {
        let least = |members: &[u32]| {
            members
                .iter()
                .map(|index| &self.processes[*index as usize])
                .filter(|process| process.distance == nearer)
                .map(|process| process.id)
                .min()
        };
        let writer = (ours.reads() && object.nearest_writer <= nearer)
            .then(|| least(&object.writers))
            .flatten();
        let reader = (ours.writes() && object.nearest_reader <= nearer)
            .then(|| least(&object.readers))
            .flatten();
        let toward = [writer, reader].into_iter().flatten().min()?;
        let theirs = match (writer == Some(toward), reader == Some(toward)) {
            (true, true) => Direction::Both,
            (true, false) => Direction::Writes,
            _ => Direction::Reads,
        };
        let via = Via::Object {
            object: object.id,
            ours,
            theirs,
        };
        Some((via, toward))
    }
}

impl Process {
    /// Takes part in no closure.
    fn is_apart(&self) -> bool {
        matches!(self.mark, Some(Mark::Sink | Mark::MayPause))
    }

    /// Why it is dependent without anybody else.
    fn own_source(&self) -> Option<Source> {
        match self.mark {
            Some(Mark::AlwaysLive) => Some(Source::AlwaysLive),
            _ => self.source,
        }
    }
}

fn join(one: Direction, other: Direction) -> Direction {
    if one == other { one } else { Direction::Both }
}
