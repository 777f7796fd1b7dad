//! Everything between the two guests, and what goes wrong with it.

mod destination;
mod faults;
mod settling;
mod source;

use std::collections::BTreeSet;

use migrate::{Destination, GuestMemory, Source};
use qemu_stream::{BlockId, Parser};
use wire::Decoder;

use crate::meddler::Meddler;
use crate::outlet::Outlet;
use crate::pipe::Pipe;
use crate::qemu::{DestinationQemu, PAGE, Ram, SourceQemu, page_of};
use crate::random::Random;

const SESSION: [u8; 16] = [5; 16];
/// Steps after which a run that has not ended is stuck.
const STEPS_MAX: usize = 200_000;

/// Where the VM is in the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    Moved,
    Stayed,
}

impl Ending {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Ending::Moved => "moved",
            Ending::Stayed => "stayed",
        }
    }
}

/// What a run came to.
pub(crate) struct Run {
    pub(crate) ending: Ending,
    pub(crate) seen: BTreeSet<&'static str>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    Cut,
    Cancel,
    Refuse,
    /// The QEMU that waits ends.
    QemuEnds,
    Truncate,
    Corrupt,
}

/// What becomes of a cut.
struct Network {
    /// Of its own, so that the rest of a run stays as it was.
    random: Random,
    /// Between the halves.
    connections: usize,
    /// The connection comes back, so often.
    resumes: usize,
}

impl Network {
    fn of_seed(seed: u64) -> Self {
        let mut random = Random::new(seed ^ 0x6e65_7477_6f72);
        let connections = match random.below(3) {
            0 => 2 + random.below(3),
            _ => 1,
        };
        Network {
            connections,
            resumes: random.below(4),
            random,
        }
    }

    fn pipe(&mut self) -> Pipe {
        Pipe::new(self.connections, self.random.next())
    }
}

/// The source VM's memory, seen from outside.
struct Peek<'a>(&'a Ram);

impl GuestMemory for Peek<'_> {
    fn read(&mut self, block: BlockId, first: u64, pages: &mut [u8]) -> Result<(), String> {
        for (index, page) in (first..).zip(pages.chunks_mut(PAGE)) {
            page.copy_from_slice(&page_of(self.0[&(block.0, index)]));
        }
        Ok(())
    }
}

pub(crate) struct World {
    random: Random,
    seen: BTreeSet<&'static str>,
    fault: Fault,
    /// The step at which it strikes.
    fault_at: usize,
    step: usize,
    source_qemu: SourceQemu,
    parser: Parser,
    from_qemu: Vec<u8>,
    stream_over: bool,
    source: Source,
    /// Says what is to be held, frozen or free, whatever it is.
    meddler: Option<Meddler>,
    source_decoder: Decoder,
    source_input: Vec<u8>,
    /// The source half has given up; its VM runs.
    source_gave_up: bool,
    /// The commit was recorded: the guardian's journal.
    recorded: bool,
    finished: bool,
    /// What the source half says on its way to the link.
    outlet: Outlet,
    network: Network,
    there: Pipe,
    back: Pipe,
    connected: bool,
    /// Another may be spoken with than the one that the VM was sent to.
    reconnected: bool,
    /// The source half has died after its commit: its guardian tells the destination, and waits.
    guardian_tells: bool,
    destination: Destination,
    destination_decoder: Decoder,
    destination_input: Vec<u8>,
    destination_gave_up: bool,
    destination_qemu: DestinationQemu,
    return_path: Vec<u8>,
    corrupted: bool,
    told_of_corruption: bool,
    /// Memory may follow after the switchover.
    follow: Option<Follow>,
}

/// How memory follows.
struct Follow {
    /// Of its own, so that the rest of a run stays as it was.
    random: Random,
    seed: u64,
    /// The guest's memory can be read when the source half has died.
    readable: bool,
    /// At some moment all that comes is held.
    everything: bool,
    /// The fault waits for the commit.
    late: bool,
}

impl Follow {
    fn of_seed(seed: u64, source_seed: u64) -> Option<Self> {
        let mut random = Random::new(seed ^ 0x666f_6c6c_6f77);
        random.one_in(3).then(|| Follow {
            seed: source_seed,
            readable: random.one_in(2),
            everything: random.one_in(2),
            late: random.one_in(2),
            random,
        })
    }
}

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let mut source_qemu = SourceQemu::new(&mut random);
        let fault = match random.below(12) {
            0..=3 => Fault::Cut,
            4 => Fault::Cancel,
            5 if seed.is_multiple_of(2) => Fault::QemuEnds,
            5 => Fault::Refuse,
            6 => Fault::Truncate,
            7 => Fault::Corrupt,
            _ => Fault::None,
        };
        let fault_at = random.below(250);
        let source_seed = random.next();
        let mut source = Source::new(SESSION, source_seed);
        let follow = Follow::of_seed(seed, source_seed);
        // Without its memory a VM whose source half has died is lost: there is nothing to check.
        let mut network = Network::of_seed(seed);
        if follow.as_ref().is_some_and(|follow| !follow.readable) {
            network.resumes = usize::MAX;
        }
        if seed % 4 == 1 {
            source_qemu.forgets = true;
            source.want_audit();
        }
        let meddler = Meddler::of_seed(seed);
        if let Some(meddler) = &meddler {
            source.keep_back(meddler.keep_back());
        }
        World {
            meddler,
            fault,
            fault_at,
            step: 0,
            seen: BTreeSet::new(),
            source_qemu,
            parser: Parser::new(),
            from_qemu: Vec::new(),
            stream_over: false,
            source,
            source_decoder: Decoder::new(),
            source_input: Vec::new(),
            source_gave_up: false,
            recorded: false,
            finished: false,
            outlet: Outlet::of_seed(seed),
            there: network.pipe(),
            back: network.pipe(),
            network,
            connected: true,
            reconnected: false,
            guardian_tells: false,
            destination: Destination::new(),
            destination_decoder: Decoder::new(),
            destination_input: Vec::new(),
            destination_gave_up: false,
            destination_qemu: DestinationQemu::new(),
            return_path: Vec::new(),
            corrupted: false,
            told_of_corruption: false,
            follow,
            random,
        }
    }

    pub(crate) fn only_fault_is_corruption(&mut self) {
        self.fault = Fault::Corrupt;
        self.outlet = Outlet::plain();
        self.fault_at %= 60;
    }

    /// Runs to the end and checks everything that must hold.
    pub(crate) fn run(mut self) -> Run {
        self.note_what_kind();
        self.source
            .greet("test", "{}".into(), &mut self.there.bytes);
        self.destination.connected(&mut self.back.bytes);
        for step in 0..STEPS_MAX {
            self.step = step;
            let waits = self.follow.as_ref().is_some_and(|follow| follow.late);
            if step == self.fault_at && !waits {
                self.strike();
            }
            self.follow(step);
            match self.random.below(6) {
                0 => self.qemu_writes(),
                1 => self.source_reads_qemu(),
                2 => self.source_reads_link(),
                3 => self.destination_reads_link(),
                4 => self.destination_reads_qemu(),
                _ => self.source_acts(),
            }
            self.destination_acts();
            self.only_one_runs();
            if self.is_over() {
                return self.end();
            }
        }
        panic!(
            "stuck: source {:?}, destination {:?}",
            self.source.phase(),
            self.destination.phase()
        );
    }

    fn note_what_kind(&mut self) {
        let kinds = [
            (self.source_qemu.early_section, "early section"),
            (!self.source_qemu.description, "no description"),
            (self.source_qemu.switchover_command, "switchover command"),
        ];
        self.seen
            .extend(kinds.iter().filter(|(is, _)| *is).map(|(_, name)| *name));
    }

    /// At no moment do both run, and the destination's only after the decision.
    fn only_one_runs(&self) {
        if self.destination_qemu.runs {
            assert!(self.recorded, "the destination runs without a commit");
            assert!(!self.source_gave_up, "both run");
        }
    }

    fn is_over(&self) -> bool {
        let stayed = self.source_gave_up
            && (self.destination_gave_up || !self.destination.phase().may_be_committed());
        self.finished || stayed
    }

    fn end(mut self) -> Run {
        let stats = self.source.stats();
        for (happened, name) in [
            (stats.pages_dropped > 0, "duplicate dropped"),
            (stats.pages_zero > 0, "zero page"),
            (stats.walks > 1, "several walks"),
        ] {
            if happened {
                self.seen.insert(name);
            }
        }
        let ending = if self.finished {
            assert!(self.destination_qemu.runs);
            let mut arrived = self.destination_qemu.ram.clone();
            let ram = &self.source_qemu.ram;
            // Only what was declared free twice, and not sent since, may differ.
            for key in self.meddler.iter().flat_map(Meddler::left_behind) {
                self.seen.insert("left behind as free");
                arrived.insert(*key, ram[key]);
            }
            if self.told_of_corruption {
                self.seen.insert("corruption told");
                assert_ne!(&arrived, ram);
                return Run {
                    ending: Ending::Moved,
                    seen: self.seen,
                };
            }
            assert_eq!(&arrived, ram, "the stopped VM's memory");
            if !self.source_qemu.forgets {
                assert_eq!(&self.source_qemu.sent, ram, "what was sent last");
            }
            if self.corrupted {
                self.seen.insert("corruption overwritten");
            }
            Ending::Moved
        } else {
            assert!(!self.destination_qemu.runs && !self.recorded);
            Ending::Stayed
        };
        Run {
            ending,
            seen: self.seen,
        }
    }
}
