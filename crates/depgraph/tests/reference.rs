//! The graph against a naive reading of its rules, on random histories.
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::collections::{BTreeMap, BTreeSet};

use depgraph::{
    Class, Direction, External, Graph, Interface, Limits, Mark, ObjectId, ObjectKind, ProcessId,
    Relation, Source, Uncertainty, Via,
};
use proptest::collection::vec;
use proptest::prelude::*;

#[derive(Debug, Clone, Copy, PartialEq)]
enum Event {
    Flow(u8, u8, Direction),
    Relate(u8, u8, Relation),
    Waits(u8),
    External(u8, u8),
    Uncertain(u8),
    Mark(u8, Mark),
}

fn process(number: u8) -> ProcessId {
    ProcessId {
        pid: 100 + u32::from(number),
        start: 7,
    }
}

fn object(number: u8) -> ObjectId {
    ObjectId {
        kind: ObjectKind::Pipe,
        a: u64::from(number),
        b: 0,
    }
}

fn contact(port: u8) -> External {
    External {
        interface: Interface::OtherIp { protocol: port },
        standing: false,
        peer: None,
    }
}

fn apply(graph: &mut Graph, event: Event) {
    match event {
        Event::Flow(who, what, direction) => graph.flow(process(who), object(what), direction),
        Event::Relate(by, to, relation) => graph.relate(process(by), process(to), relation),
        Event::Waits(who) => graph.waits(process(who)),
        Event::External(who, port) => graph.external(process(who), contact(port)),
        Event::Uncertain(who) => graph.uncertain(process(who), Uncertainty::LostEvents),
        Event::Mark(who, mark) => graph.mark(process(who), Some(mark)),
    }
}

fn graph_of(events: &[Event]) -> Graph {
    let mut graph = Graph::new(Limits::default());
    for event in events {
        apply(&mut graph, *event);
    }
    graph
}

/// The rules as they are written: who is connected with whom, then a walk from the outside.
#[derive(Default)]
struct Naive {
    marks: BTreeMap<ProcessId, Mark>,
    sources: BTreeMap<ProcessId, BTreeSet<Source>>,
    writes: BTreeSet<(ProcessId, ObjectId)>,
    reads: BTreeSet<(ProcessId, ObjectId)>,
    relations: BTreeSet<(ProcessId, ProcessId, Relation)>,
    waits: BTreeSet<ProcessId>,
    processes: BTreeSet<ProcessId>,
}

impl Naive {
    fn of(events: &[Event]) -> Self {
        let mut naive = Naive::default();
        for event in events {
            let mut see = |who: u8| {
                naive.processes.insert(process(who));
                process(who)
            };
            match *event {
                Event::Flow(who, what, direction) => {
                    let edge = (see(who), object(what));
                    if direction.reads() {
                        naive.reads.insert(edge);
                    }
                    if direction.writes() {
                        naive.writes.insert(edge);
                    }
                }
                Event::Relate(by, to, relation) => {
                    let edge = (see(by), see(to), relation);
                    naive.relations.insert(edge);
                }
                Event::Waits(who) => {
                    let id = see(who);
                    naive.waits.insert(id);
                }
                Event::External(who, port) => {
                    let id = see(who);
                    let source = Source::Outside(contact(port));
                    naive.sources.entry(id).or_default().insert(source);
                }
                Event::Uncertain(who) => {
                    let id = see(who);
                    let source = Source::Uncertain(Uncertainty::LostEvents);
                    naive.sources.entry(id).or_default().insert(source);
                }
                Event::Mark(who, mark) => {
                    let id = see(who);
                    naive.marks.insert(id, mark);
                }
            }
        }
        naive
    }

    fn apart(&self, id: ProcessId) -> bool {
        matches!(self.marks.get(&id), Some(Mark::Sink | Mark::MayPause))
    }

    fn connected(&self, one: ProcessId, other: ProcessId) -> bool {
        let by_object = |writer: ProcessId, reader: ProcessId| {
            self.writes
                .iter()
                .any(|(who, what)| *who == writer && self.reads.contains(&(reader, *what)))
        };
        let by_relation = |by: ProcessId, to: ProcessId| {
            self.relations.iter().any(|(from, target, relation)| {
                (*from, *target) == (by, to)
                    && (*relation != Relation::Ended || self.waits.contains(&to))
            })
        };
        one != other
            && !self.apart(one)
            && !self.apart(other)
            && (by_object(one, other)
                || by_object(other, one)
                || by_relation(one, other)
                || by_relation(other, one))
    }

    fn is_source(&self, id: ProcessId) -> bool {
        let marked = self.marks.get(&id) == Some(&Mark::AlwaysLive);
        !self.apart(id) && (marked || self.sources.contains_key(&id))
    }

    fn distances(&self) -> BTreeMap<ProcessId, u32> {
        let mut found: BTreeMap<ProcessId, u32> = BTreeMap::new();
        let mut edge: Vec<ProcessId> = self
            .processes
            .iter()
            .copied()
            .filter(|id| self.is_source(*id))
            .collect();
        for distance in 0.. {
            if edge.is_empty() {
                break;
            }
            found.extend(edge.iter().map(|id| (*id, distance)));
            edge = self
                .processes
                .iter()
                .copied()
                .filter(|id| !found.contains_key(id))
                .filter(|id| edge.iter().any(|near| self.connected(*id, *near)))
                .collect();
        }
        found
    }

    fn class(&self, id: ProcessId, distances: &BTreeMap<ProcessId, u32>) -> Class {
        match (self.marks.get(&id), distances.get(&id)) {
            (Some(Mark::Sink), _) => Class::Sink,
            (Some(Mark::MayPause), _) => Class::MayPause,
            (_, Some(distance)) => Class::Dependent {
                distance: *distance,
            },
            (_, None) => Class::Independent,
        }
    }
}

fn direction() -> impl Strategy<Value = Direction> {
    prop_oneof![
        Just(Direction::Reads),
        Just(Direction::Writes),
        Just(Direction::Both)
    ]
}

fn relation() -> impl Strategy<Value = Relation> {
    prop_oneof![
        Just(Relation::Forked),
        Just(Relation::Signalled),
        Just(Relation::Traced),
        Just(Relation::Woke),
        Just(Relation::Exited),
        Just(Relation::Ended),
    ]
}

fn event() -> impl Strategy<Value = Event> {
    let who = 0..14u8;
    let what = 0..10u8;
    prop_oneof![
        12 => (who.clone(), what, direction()).prop_map(|(w, o, d)| Event::Flow(w, o, d)),
        5 => (who.clone(), who.clone(), relation())
            .prop_filter("with another", |(by, to, _)| by != to)
            .prop_map(|(by, to, r)| Event::Relate(by, to, r)),
        1 => who.clone().prop_map(Event::Waits),
        2 => (who.clone(), 0..3u8).prop_map(|(w, p)| Event::External(w, p)),
        1 => who.prop_map(Event::Uncertain),
    ]
}

/// At most one mark a process, at any place in the history.
fn history() -> impl Strategy<Value = Vec<Event>> {
    let mark = prop_oneof![
        Just(Mark::Sink),
        Just(Mark::AlwaysLive),
        Just(Mark::MayPause)
    ];
    (
        vec(event(), 0..60),
        proptest::collection::btree_map(0..14u8, mark, 0..4),
        any::<u64>(),
    )
        .prop_map(|(mut events, marks, place)| {
            for (who, mark) in marks {
                let len = u64::try_from(events.len()).unwrap() + 1;
                let at = (place ^ u64::from(who).wrapping_mul(0x9e37_79b9)) % len;
                events.insert(usize::try_from(at).unwrap(), Event::Mark(who, mark));
            }
            events
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn classes_are_those_of_the_rules(events in history()) {
        let graph = graph_of(&events);
        let naive = Naive::of(&events);
        let distances = naive.distances();
        for id in &naive.processes {
            prop_assert_eq!(graph.class(*id), Some(naive.class(*id, &distances)), "{:?}", id);
        }
        prop_assert_eq!(graph.classes().count(), naive.processes.len());
    }

    #[test]
    fn reasons_are_flows_that_lead_outside(events in history()) {
        let graph = graph_of(&events);
        let naive = Naive::of(&events);
        for id in &naive.processes {
            let chain = graph.chain(*id);
            let Some(Class::Dependent { distance }) = graph.class(*id) else {
                prop_assert_eq!(chain, None);
                continue;
            };
            let chain = chain.unwrap();
            prop_assert_eq!(u32::try_from(chain.links.len()).unwrap(), distance);
            let mut at = *id;
            for link in &chain.links {
                prop_assert!(naive.connected(at, link.toward));
                if let Via::Object { object, ours, theirs } = link.via {
                    let ours_reads = naive.reads.contains(&(at, object));
                    let ours_writes = naive.writes.contains(&(at, object));
                    prop_assert_eq!((ours.reads(), ours.writes()), (ours_reads, ours_writes));
                    let flows = ours.reads() && theirs.writes() || ours.writes() && theirs.reads();
                    prop_assert!(flows);
                }
                at = link.toward;
            }
            prop_assert!(naive.is_source(at));
            if chain.source != Source::AlwaysLive {
                prop_assert_eq!(naive.sources[&at].first(), Some(&chain.source));
            }
        }
    }

    #[test]
    fn a_further_event_makes_nobody_independent(events in history(), more in event()) {
        let before = graph_of(&events);
        let mut after = graph_of(&events);
        apply(&mut after, more);
        for (id, class) in before.classes() {
            let now = after.class(id).unwrap();
            if class.stays_live() {
                prop_assert!(now.stays_live());
            }
        }
    }

    #[test]
    fn the_order_makes_no_difference(events in history(), order in any::<u64>()) {
        let mut shuffled: Vec<(u64, Event)> = (0u64..)
            .zip(&events)
            .map(|(at, event)| ((at + 1).wrapping_mul(order | 1).rotate_left(23), *event))
            .collect();
        shuffled.sort_by_key(|(key, _)| *key);
        let shuffled: Vec<Event> = shuffled.into_iter().map(|(_, event)| event).collect();
        let (one, other) = (graph_of(&events), graph_of(&shuffled));
        for (id, class) in one.classes() {
            prop_assert_eq!(other.class(id), Some(class));
            prop_assert_eq!(other.chain(id), one.chain(id));
        }
    }

    #[test]
    fn within_tight_limits_what_is_dependent_stays_so(events in history(), room in 1..12usize) {
        let limits = Limits { processes: room + 3, objects: room, edges: room * 2 };
        let mut tight = Graph::new(limits);
        for event in &events {
            apply(&mut tight, *event);
        }
        let (processes, objects, edges) = tight.size();
        prop_assert!(processes <= room + 3 && objects <= room && edges <= room * 2);
        let roomy = graph_of(&events);
        for (id, class) in roomy.classes() {
            // Marks may be lost with their process; without one, uncertainty means live.
            if let (Class::Dependent { .. }, Some(now)) = (class, tight.class(id)) {
                prop_assert!(now.stays_live() || now == Class::MayPause, "{:?} {:?}", class, now);
            } else if let Class::Dependent { .. } = class {
                prop_assert_eq!(tight.doubt(), Some(Uncertainty::GraphFull));
            }
        }
    }
}
