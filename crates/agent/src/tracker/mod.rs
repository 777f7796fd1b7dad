//! The probes: loaded when the agent starts, at work while a window is open.
//!
//! Loading takes seconds under emulation, and attaching one probe some 30 ms of a processor: that is
//! done beforehand. Only the few probes in the way of what programs do all the time cost something
//! even when they record nothing: those are attached when a window opens.

mod diagnosis;
#[cfg(feature = "faults")]
mod faults;
mod load;
mod loss;
mod lsm;
mod plan;
mod records;

use std::cell::RefCell;
use std::collections::{BTreeMap, HashSet};
use std::ffi::OsString;
use std::io::Read;
use std::net::{IpAddr, Ipv6Addr};
use std::os::fd::{AsFd, BorrowedFd};
use std::rc::Rc;
use std::sync::atomic::{Ordering, fence};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use anyhow::{Context, Result};
use depgraph::{Direction, ObjectKind};
use guest_proto::{LossCause, LossEffect, Losses, LostProbe, ProbeState};
use libbpf_rs::query::ProgInfoIter;
use libbpf_rs::skel::Skel;
use libbpf_rs::{
    Iter, Link, MapCore, MapFlags, Program, ProgramMut, RingBuffer, RingBufferBuilder,
};

use crate::processes;
pub(crate) use loss::Doubts;
use plan::Plan;
use records::{EDGE, KEY, TASK};
pub(crate) use records::{Edge, Origin, Task, What, device, kinds};

#[expect(
    clippy::undocumented_unsafe_blocks,
    clippy::unwrap_used,
    clippy::needless_pass_by_value,
    unsafe_code,
    unreachable_pub,
    unused_qualifications,
    reason = "generated"
)]
mod skeleton {
    include!(concat!(env!("OUT_DIR"), "/tracker.skel.rs"));
}

/// Entries read from a map at a time.
const BATCH: u32 = 1024;
/// Walks over a map, each of which takes some hundreds of entries out.
const DRAIN_MAX: usize = 512;
/// Edges in the kernel's table at which it is emptied: it holds twice as many.
const EMPTY_AT: u64 = 32 * 1024;

/// The probes.
pub(crate) struct Tracker {
    skeleton: skeleton::TrackerSkel<'static>,
    ring: RingBuffer<'static>,
    arrived: Rc<RefCell<Vec<Edge>>>,
    /// What is attached as long as the agent lives.
    resident: Links,
    /// What is attached while a window is open.
    links: Links,
    /// Of the last window.
    detaching: Option<Detaching>,
    plan: Plan,
    tries: u16,
    took_ms: u32,
    /// Probes that could not be attached when the window opened, and why.
    unattached: Vec<(String, String)>,
    /// How often each probe was skipped before the window.
    skipped_before: Vec<Skipped>,
    ring_full_before: u64,
}

/// What holds the probes attached, by their names.
type Links = BTreeMap<OsString, Link>;

/// A thread that detaches probes, one after another.
struct Detaching {
    left: Arc<Mutex<Links>>,
    thread: JoinHandle<()>,
}

impl Detaching {
    fn begin(links: Links) -> Self {
        let left = Arc::new(Mutex::new(links));
        let rest = Arc::clone(&left);
        let next = move || rest.lock().ok()?.pop_first();
        let thread = std::thread::spawn(move || {
            while let Some(link) = next() {
                drop(link);
            }
        });
        Detaching { left, thread }
    }

    /// Ends it; yields those that are attached still.
    fn stop(self) -> Links {
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        let links = std::mem::take(&mut *left);
        drop(left);
        let _ = self.thread.join();
        links
    }
}

/// How often a probe was skipped because it was running already.
#[derive(Debug)]
struct Skipped {
    id: u32,
    name: String,
    count: u64,
}

/// What the probes count.
#[derive(Debug, Default, Clone, Copy)]
struct Counters {
    /// Edges put into the table since it was emptied.
    recorded: u64,
    /// Edges that found no room in it.
    table_full: u64,
    /// Edges that found no room in the ring.
    ring_full: u64,
}

/// What stands.
#[derive(Debug, Default)]
pub(crate) struct Snapshot {
    pub(crate) tasks: Vec<Task>,
    pub(crate) edges: Vec<Edge>,
}

impl Tracker {
    /// Loads the probes that this kernel takes. Without any, tells why.
    pub(crate) fn load() -> Result<Self, ProbeState> {
        let loaded = load::load().map_err(|(cause, detail)| ProbeState::none(cause, &detail))?;
        let arrived = Rc::new(RefCell::new(Vec::new()));
        let ring = ring(&loaded.skeleton, Rc::clone(&arrived)).map_err(|error| {
            ProbeState::none(LossCause::Other, &format!("the ring of events: {error:#}"))
        })?;
        Ok(Tracker {
            skeleton: loaded.skeleton,
            ring,
            arrived,
            resident: loaded.resident,
            links: Links::new(),
            // They have shown that they can be attached.
            detaching: Some(Detaching::begin(loaded.hot)),
            plan: loaded.plan,
            tries: loaded.tries,
            took_ms: loaded.took_ms,
            unattached: Vec::new(),
            skipped_before: Vec::new(),
            ring_full_before: 0,
        })
    }

    /// What works and what does not.
    pub(crate) fn state(&self) -> ProbeState {
        let lost = self.plan.lost().iter().map(loss::Lost::told);
        let unattached = self.unattached.iter().filter_map(|(name, error)| {
            let row = loss::row_of(name.trim_start_matches("unseen_"))?;
            let (cause, effect) = (LossCause::Attach, LossEffect::Everyone);
            Some(LostProbe::new(name, row.sees, cause, error, effect))
        });
        ProbeState {
            none: None,
            lost: lost.chain(unattached).collect(),
            tries: self.tries,
            took_ms: self.took_ms,
        }
    }

    /// What a window takes for uncertain from its beginning.
    pub(crate) fn doubts(&self) -> Doubts {
        let mut doubts = loss::doubts(self.plan.lost());
        doubts.everyone |= !self.unattached.is_empty();
        doubts
    }

    /// Becomes readable when edges have arrived.
    #[expect(unsafe_code, reason = "the ring lends its descriptor as a number only")]
    pub(crate) fn wakeup(&self) -> BorrowedFd<'_> {
        // SAFETY: the ring keeps it open, and lives as long as the loan.
        unsafe { BorrowedFd::borrow_raw(self.ring.epoll_fd()) }
    }

    /// Makes this machine's addresses known.
    pub(crate) fn own_addresses(&mut self, addresses: &HashSet<IpAddr>) -> Result<()> {
        for address in addresses {
            let key = match address {
                IpAddr::V4(v4) => v4.to_ipv6_mapped(),
                IpAddr::V6(v6) => *v6,
            };
            let key: [u8; 16] = Ipv6Addr::octets(&key);
            self.skeleton
                .maps
                .own_addresses
                .update(&key, &[1], MapFlags::ANY)?;
        }
        Ok(())
    }

    /// Begins a window: forgets what was seen before, and attaches what is not.
    pub(crate) fn arm(&mut self) -> Result<u16> {
        let mut links = match self.detaching.take() {
            Some(detaching) => detaching.stop(),
            None => std::mem::take(&mut self.links),
        };
        self.set_armed(false);
        self.forget();
        // What processes have mapped to write is being written.
        for edge in self.mappings()? {
            self.note_written(&edge)?;
        }
        let failures = load::attach(&mut self.skeleton, &mut links, load::is_hot);
        let name = |name: OsString| name.to_string_lossy().into_owned();
        self.unattached = failures
            .into_iter()
            .map(|(program, error)| (name(program), error))
            .collect();
        self.links = links;
        self.skipped_before = self.skipped();
        self.ring_full_before = self.counters().ring_full;
        // A probe that is not armed takes note of what it sees as seen, with the epoch that it
        // read before: so the epoch comes last.
        self.set_armed(true);
        self.next_epoch();
        let count = self.resident.len() + self.links.len();
        Ok(u16::try_from(count).unwrap_or(u16::MAX))
    }

    fn set_armed(&mut self, armed: bool) {
        if let Some(variables) = self.skeleton.maps.bss_data.as_deref_mut() {
            variables.armed = u32::from(armed);
        }
        // Whatever is written next, the probes see after this.
        fence(Ordering::SeqCst);
    }

    /// Every flow counts as new again.
    fn next_epoch(&mut self) {
        if let Some(variables) = self.skeleton.maps.data_data.as_deref_mut() {
            variables.epoch += 1;
        }
    }

    /// From now on every flow counts as new, and is told at once: something is about to be frozen
    /// at which it may be aimed. Yields what was new before.
    pub(crate) fn watch_closely(&mut self, closely: bool) -> Result<Vec<Edge>> {
        let mut edges = self.new_edges()?;
        if let Some(variables) = self.skeleton.maps.bss_data.as_deref_mut() {
            variables.urgent = u32::from(closely);
        }
        if closely {
            self.next_epoch();
            self.drain_table(&mut edges)?;
        }
        Ok(edges)
    }

    /// What processes could be spoken to through.
    pub(crate) fn held(&self) -> Result<Vec<Edge>> {
        // Without it all processes are uncertain.
        if !self.plan.is_on("held_files") {
            return Ok(Vec::new());
        }
        iterate(&self.skeleton.progs.held_files, EDGE, Edge::read)
    }

    fn tasks(&self) -> Result<Vec<Task>> {
        if !self.plan.is_on("tasks") {
            return Ok(processes::tasks());
        }
        iterate(&self.skeleton.progs.tasks, TASK, Task::read)
    }

    /// Ends a window. When a probe is detached the kernel waits until every task that wants to run
    /// has run (`synchronize_rcu_tasks`), which takes a busy guest seconds: nobody waits for that; a window that opens meanwhile takes what is attached still.
    pub(crate) fn disarm(&mut self) {
        self.set_armed(false);
        let links = std::mem::take(&mut self.links);
        if !links.is_empty() {
            self.detaching = Some(Detaching::begin(links));
        }
        self.forget();
    }

    fn forget(&mut self) {
        // What has arrived belongs to the window that ends.
        let _ = self.ring.consume();
        self.arrived.borrow_mut().clear();
        for map in [&self.skeleton.maps.edges, &self.skeleton.maps.written] {
            // A map that cannot be emptied costs room.
            let _ = drain(map, |_, _| {});
        }
        if let Some(variables) = self.skeleton.maps.bss_data.as_deref_mut() {
            variables.table_full = 0;
            variables.recorded = 0;
            variables.urgent = 0;
            variables.all_written = 0;
        }
    }

    /// Edges that are new: from the ring, and from the table itself if some did not fit the ring
    /// or if it must be emptied.
    pub(crate) fn new_edges(&mut self) -> Result<Vec<Edge>> {
        // Not poll(): most records wake nobody.
        self.ring.consume()?;
        let mut edges = self.arrived.take();
        let counters = self.counters();
        if counters.recorded >= EMPTY_AT || counters.ring_full != self.ring_full_before {
            self.ring_full_before = counters.ring_full;
            self.drain_table(&mut edges)?;
        }
        Ok(edges)
    }

    /// What stands: processes, open connections, shared mappings. With the window's probes
    /// attached, nothing falls between the two.
    pub(crate) fn snapshot(&mut self) -> Result<Snapshot> {
        let tasks = self.tasks()?;
        let mut edges = self.held()?;
        let mappings = self.mappings()?;
        for edge in &mappings {
            self.note_written(edge)?;
        }
        edges.extend(mappings);
        Ok(Snapshot { tasks, edges })
    }

    /// What was lost in this window.
    pub(crate) fn losses(&self) -> Losses {
        Losses {
            table_full: self.counters().table_full,
            probes_skipped: self.skipped_by().iter().map(|(_, count)| count).sum(),
        }
    }

    /// How often each probe was skipped in this window.
    pub(crate) fn skipped_by(&self) -> Vec<(String, u64)> {
        let since = |skipped: &Skipped| {
            let mut before = self.skipped_before.iter();
            let before = before.find(|other| other.id == skipped.id);
            skipped.count - before.map_or(0, |before| before.count).min(skipped.count)
        };
        self.skipped()
            .into_iter()
            .map(|skipped| (since(&skipped), skipped.name))
            .filter(|(count, _)| *count > 0)
            .map(|(count, name)| (name, count))
            .collect()
    }

    fn mappings(&self) -> Result<Vec<Edge>> {
        if !self.plan.is_on("mappings") {
            return Ok(Vec::new());
        }
        iterate(&self.skeleton.progs.mappings, EDGE, Edge::read)
    }

    /// Reads of a file count from when somebody writes it; a mapping writes without a word.
    fn note_written(&mut self, edge: &Edge) -> Result<()> {
        let What::Flow(object, Direction::Writes | Direction::Both) = edge.what else {
            return Ok(());
        };
        if object.kind != ObjectKind::File {
            return Ok(());
        }
        let mut key = object.a.to_ne_bytes().to_vec();
        key.extend_from_slice(&object.b.to_ne_bytes());
        let map = &self.skeleton.maps.written;
        if map.lookup(&key, MapFlags::ANY)?.is_some() {
            return Ok(());
        }
        map.update(&key, &[1], MapFlags::ANY)?;
        if let Some(variables) = self.skeleton.maps.bss_data.as_deref_mut() {
            let buckets = variables.writes.len();
            let bucket = usize::try_from(object.b).unwrap_or(0) % buckets;
            variables.writes[bucket] = variables.writes[bucket].wrapping_add(1);
        }
        Ok(())
    }

    fn drain_table(&mut self, edges: &mut Vec<Edge>) -> Result<()> {
        if let Some(variables) = self.skeleton.maps.bss_data.as_deref_mut() {
            // What is recorded meanwhile is counted, whether it is taken now or not.
            variables.recorded = 0;
        }
        drain(&self.skeleton.maps.edges, |key, value| {
            debug_assert_eq!((key.len(), key.len() + value.len()), (KEY, EDGE));
            edges.push(Edge::read(&[key, value].concat()));
        })
    }

    fn counters(&self) -> Counters {
        let variables = self.skeleton.maps.bss_data.as_deref();
        variables.map_or(Counters::default(), |bss| Counters {
            recorded: bss.recorded,
            table_full: bss.table_full,
            ring_full: bss.ring_full,
        })
    }

    /// How often each probe was skipped because it was running already.
    fn skipped(&self) -> Vec<Skipped> {
        let own: BTreeMap<u32, String> = self
            .skeleton
            .object()
            .progs()
            .filter(libbpf_rs::ProgramImpl::autoload)
            .filter_map(|program| {
                let name = program.name().to_string_lossy().into_owned();
                Some((id_of(program.as_fd())?, name))
            })
            .collect();
        ProgInfoIter::default()
            .filter_map(|info| {
                Some(Skipped {
                    id: info.id,
                    name: own.get(&info.id)?.clone(),
                    count: info.recursion_misses,
                })
            })
            .collect()
    }
}

/// The ring through which edges arrive.
fn ring(
    skeleton: &skeleton::TrackerSkel<'static>,
    sink: Rc<RefCell<Vec<Edge>>>,
) -> libbpf_rs::Result<RingBuffer<'static>> {
    let mut ring = RingBufferBuilder::new();
    ring.add(&skeleton.maps.wakeups, move |record| {
        sink.borrow_mut().push(Edge::read(record));
        0
    })?;
    ring.build()
}

/// Takes everything out of a map. The library ends a walk at the first batch that is not full, as
/// batches in the middle may be: so it is walked until there is nothing left.
fn drain(map: &dyn MapCore, mut take: impl FnMut(Vec<u8>, Vec<u8>)) -> Result<()> {
    // Bounded, should others fill it as fast as this takes out: the rest is for the next time.
    for _ in 0..DRAIN_MAX {
        let mut count = 0;
        for (key, value) in map.lookup_and_delete_batch(BATCH, MapFlags::ANY, MapFlags::ANY)? {
            count += 1;
            take(key, value);
        }
        if count == 0 {
            break;
        }
    }
    Ok(())
}

fn id_of(program: BorrowedFd<'_>) -> Option<u32> {
    Program::id_from_fd(program).ok()
}

/// Runs a program over everything of its kind, and takes its records.
fn iterate<T>(program: &ProgramMut<'_>, size: usize, read: fn(&[u8]) -> T) -> Result<Vec<T>> {
    let link = program.attach().context("attaching an iterator")?;
    let mut bytes = Vec::new();
    Iter::new(&link)?.read_to_end(&mut bytes)?;
    Ok(bytes.chunks_exact(size).map(read).collect())
}
