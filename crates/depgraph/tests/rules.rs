//! The rules one by one, as cases that people would tell.

use Direction::{Both, Reads, Writes};
use depgraph::{
    Class, Direction, External, Graph, Interface, Limits, Mark, ObjectId, ObjectKind, ProcessId,
    Relation, Source, Uncertainty, Via,
};

const SERVER: ProcessId = ProcessId {
    pid: 1000,
    start: 1,
};
const WORKER: ProcessId = ProcessId {
    pid: 1001,
    start: 2,
};
const BATCH: ProcessId = ProcessId {
    pid: 1002,
    start: 3,
};
const JOURNAL: ProcessId = ProcessId { pid: 200, start: 0 };

const CONTACT: External = External {
    interface: Interface::Tcp,
    standing: true,
    peer: None,
};

fn object(kind: ObjectKind, a: u64) -> ObjectId {
    ObjectId { kind, a, b: 0 }
}

/// A server in contact with the outside.
fn graph() -> Graph {
    let mut graph = Graph::new(Limits::default());
    for id in [SERVER, WORKER, BATCH, JOURNAL] {
        graph.process(id);
    }
    graph.external(SERVER, CONTACT);
    graph
}

fn is_dependent(graph: &Graph, id: ProcessId) -> bool {
    matches!(graph.class(id), Some(Class::Dependent { .. }))
}

#[test]
fn contact_with_the_outside_is_a_direct_dependency() {
    let graph = graph();
    assert_eq!(graph.class(SERVER), Some(Class::Dependent { distance: 0 }));
    assert_eq!(
        graph.chain(SERVER).unwrap().source,
        Source::Outside(CONTACT)
    );
    assert_eq!(graph.class(BATCH), Some(Class::Independent));
    assert_eq!(graph.chain(BATCH), None);
}

#[test]
fn a_pipe_connects_its_writer_and_its_reader_both_ways() {
    for (server, worker) in [(Writes, Reads), (Reads, Writes)] {
        let mut graph = graph();
        let pipe = object(ObjectKind::Pipe, 1);
        graph.flow(WORKER, pipe, worker);
        assert!(!is_dependent(&graph, WORKER));
        graph.flow(SERVER, pipe, server);
        assert_eq!(graph.class(WORKER), Some(Class::Dependent { distance: 1 }));
        let chain = graph.chain(WORKER).unwrap();
        assert_eq!(chain.links[0].toward, SERVER);
        assert_eq!(
            chain.links[0].via,
            Via::Object {
                object: pipe,
                ours: worker,
                theirs: server
            }
        );
    }
}

#[test]
fn two_readers_are_not_connected_nor_are_two_writers() {
    for direction in [Reads, Writes] {
        let mut graph = graph();
        let file = object(ObjectKind::File, 1);
        graph.flow(SERVER, file, direction);
        graph.flow(BATCH, file, direction);
        assert!(!is_dependent(&graph, BATCH));
    }
}

#[test]
fn a_process_that_reads_what_it_wrote_is_connected_to_nobody() {
    let mut graph = graph();
    graph.flow(BATCH, object(ObjectKind::File, 1), Both);
    graph.flow(SERVER, object(ObjectKind::File, 2), Both);
    assert!(!is_dependent(&graph, BATCH));
}

#[test]
fn writers_of_what_somebody_reads_are_connected_through_the_reader() {
    let mut graph = graph();
    let file = object(ObjectKind::File, 1);
    graph.flow(SERVER, file, Writes);
    graph.flow(BATCH, file, Writes);
    graph.flow(WORKER, file, Reads);
    assert_eq!(graph.class(WORKER), Some(Class::Dependent { distance: 1 }));
    // Not directly with each other: nobody of the two reads.
    assert_eq!(graph.class(BATCH), Some(Class::Dependent { distance: 2 }));
    assert_eq!(graph.chain(BATCH).unwrap().links[0].toward, WORKER);
}

#[test]
fn a_sink_passes_nothing_on() {
    let mut graph = graph();
    let socket = object(ObjectKind::UnixSocket, 1);
    graph.flow(SERVER, socket, Writes);
    graph.flow(BATCH, socket, Writes);
    graph.flow(JOURNAL, socket, Reads);
    assert!(is_dependent(&graph, BATCH), "not yet a sink");
    graph.mark(JOURNAL, Some(Mark::Sink));
    assert_eq!(graph.class(JOURNAL), Some(Class::Sink));
    assert!(!is_dependent(&graph, BATCH));
    assert!(Class::Sink.stays_live());
}

#[test]
fn marks_of_the_administrator_hold() {
    let mut graph = graph();
    let pipe = object(ObjectKind::Pipe, 1);
    graph.flow(SERVER, pipe, Writes);
    graph.flow(WORKER, pipe, Reads);
    graph.relate(WORKER, BATCH, Relation::Forked);
    assert_eq!(graph.class(BATCH), Some(Class::Dependent { distance: 2 }));
    graph.mark(WORKER, Some(Mark::MayPause));
    assert_eq!(graph.class(WORKER), Some(Class::MayPause));
    assert_eq!(graph.class(BATCH), Some(Class::Independent));
    graph.mark(BATCH, Some(Mark::AlwaysLive));
    assert_eq!(graph.chain(BATCH).unwrap().source, Source::AlwaysLive);
    graph.mark(WORKER, None);
    graph.mark(BATCH, None);
    assert_eq!(graph.class(BATCH), Some(Class::Dependent { distance: 2 }));
}

#[test]
fn an_exit_connects_only_with_a_parent_that_cares() {
    let mut graph = graph();
    graph.relate(SERVER, BATCH, Relation::Ended);
    assert!(!is_dependent(&graph, BATCH));
    graph.waits(BATCH);
    assert!(is_dependent(&graph, BATCH));
}

#[test]
fn uncertainty_means_dependent() {
    let mut graph = graph();
    graph.uncertain(WORKER, Uncertainty::UnknownObject);
    assert!(is_dependent(&graph, WORKER));
    assert!(!is_dependent(&graph, BATCH));
    graph.all_uncertain(Uncertainty::LostEvents);
    assert!(is_dependent(&graph, BATCH));
    let source = graph.chain(BATCH).unwrap().source;
    assert_eq!(source, Source::Uncertain(Uncertainty::LostEvents));
}

#[test]
fn a_process_without_room_makes_everything_uncertain() {
    let mut graph = Graph::new(Limits {
        processes: 2,
        ..Limits::default()
    });
    graph.process(WORKER);
    graph.process(BATCH);
    assert_eq!(graph.class(BATCH), Some(Class::Independent));
    graph.flow(SERVER, object(ObjectKind::Pipe, 1), Reads);
    assert!(is_dependent(&graph, BATCH));
    assert_eq!(graph.doubt(), Some(Uncertainty::GraphFull));
}

/// A hub that everybody writes to and reads from must not cost writers times readers: with
/// 100,000 of each that would be hours.
#[test]
fn a_crowded_object_costs_no_more_than_its_edges() {
    const CROWD: u32 = 100_000;
    let mut graph = Graph::new(Limits::default());
    let hub = object(ObjectKind::File, 1);
    for pid in 0..CROWD - 1 {
        let id = ProcessId {
            pid: CROWD - pid,
            start: 0,
        };
        graph.flow(id, hub, Both);
        if pid % 1000 == 0 {
            graph.external(id, CONTACT);
        }
    }
    let (processes, objects, edges) = graph.size();
    assert_eq!((processes, objects, edges), (99_999, 1, 99_999));
    assert!(graph.classes().all(|(_, class)| class.stays_live()));
}
