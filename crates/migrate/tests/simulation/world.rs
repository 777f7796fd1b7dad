//! Everything between the two guests, and what goes wrong with it.

use std::collections::BTreeSet;

use migrate::{
    Destination, DestinationAction, DestinationPhase, GuestMemory, Outputs, Source, SourceAction,
    SourcePhase, put_verdict,
};
use qemu_stream::return_path::{self, ReturnPathParser};
use qemu_stream::{BlockId, Event, Parser};
use wire::{AbortCode, Decoder, Followed, Frame, Message, Started};

use crate::meddler::Meddler;
use crate::outlet::Outlet;
use crate::pipe::Pipe;
use crate::qemu::{DestinationQemu, PAGE, Ram, SourceQemu, blocks, page_of};
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

    fn strike(&mut self) {
        match self.fault {
            Fault::None => {}
            Fault::Cut if self.connected => self.cut(),
            Fault::Cut => {}
            Fault::Cancel if self.source.phase() < SourcePhase::Committed => {
                self.seen.insert("source cancelled");
                self.source_gives_up();
            }
            Fault::Cancel => {}
            Fault::Refuse => {
                self.seen.insert("destination refused");
                self.destination_qemu.refuses = true;
            }
            Fault::QemuEnds if self.destination.phase() <= DestinationPhase::Ready => {
                self.seen.insert("destination QEMU ended");
                if !self.destination_gave_up {
                    self.destination_gives_up();
                }
            }
            Fault::QemuEnds => {}
            Fault::Truncate if !self.stream_over && !self.source_qemu.completed => {
                self.seen.insert("stream truncated");
                self.source_gives_up();
            }
            Fault::Truncate => {}
            Fault::Corrupt => self.corrupt(),
        }
    }

    /// Changes a bit of a page on its way, if one is on its way; otherwise tries again.
    fn corrupt(&mut self) {
        let found = self.there.on_the_way().any(|bytes| {
            // A run of one number long enough to be a page's content.
            let page = (0..bytes.len().saturating_sub(3000))
                .step_by(500)
                .find(|at| {
                    let run = &bytes[*at..at + 3000];
                    run[0] != 0 && run.iter().all(|byte| *byte == run[0])
                });
            if let Some(at) = page {
                bytes[at + 100] ^= 0x80;
            }
            page.is_some()
        });
        if found {
            self.corrupted = true;
            self.seen.insert("page corrupted");
        } else {
            self.fault_at += 3;
        }
    }

    /// The connection is lost, with what was on its way.
    fn cut(&mut self) {
        self.connected = false;
        for pipe in [&mut self.there, &mut self.back] {
            pipe.cut(&mut self.random);
        }
        self.seen.insert(match self.source.phase() {
            SourcePhase::Following => "cut while memory follows",
            SourcePhase::Committed | SourcePhase::Finished => "cut after the commit",
            _ => "cut before the commit",
        });
    }

    /// What is to do for memory that follows.
    fn follow(&mut self, step: usize) {
        let Some(follow) = &mut self.follow else {
            return;
        };
        let random = &mut follow.random;
        if follow.late && self.source.phase() >= SourcePhase::Committed {
            follow.late = false;
            self.fault_at = step + 1 + random.below(15);
        }
        if follow.everything && self.source.position().walk > 1 && random.one_in(40) {
            self.seen.insert("everything held");
            self.source.hold_everything();
        }
        if random.one_in(8)
            && !self.destination_gave_up
            && self.destination_qemu.guest_touches(random)
        {
            self.seen.insert("page fault");
        }
        if self.source.follows() && self.source.phase() >= SourcePhase::Committed {
            if follow.readable {
                self.source.leave_in_guest();
            }
            if random.one_in(4) {
                let mut out = Vec::new();
                let full = random.below(4 * PAGE);
                let guest = &mut Peek(&self.source_qemu.ram);
                self.source.pump(full, guest, &mut out).unwrap();
                self.source.flush(&mut out);
                self.outlet
                    .pass(&self.source, &out, &mut self.there.bytes, &mut self.seen);
            }
        }
    }

    fn qemu_writes(&mut self) {
        if self.source.phase() < SourcePhase::Setup || self.source_gave_up {
            return;
        }
        if self.source_qemu.guest_runs() {
            self.source_qemu.guest_writes(&mut self.random);
        }
        self.source_qemu.advance(&mut self.random);
    }

    fn source_reads_qemu(&mut self) {
        if self.source_gave_up {
            return;
        }
        let output = &mut self.source_qemu.output;
        let count = self.random.below(output.len().min(20_000) + 1);
        self.from_qemu.extend(output.drain(..count));
        let mut at = 0;
        let out = &mut Vec::new();
        let guest = &mut Peek(&self.source_qemu.ram);
        while !self.source.is_auditing()
            && let Some((used, event)) = self.parser.next(&self.from_qemu[at..]).unwrap()
        {
            if let Some(meddler) = &mut self.meddler {
                meddler.act(&mut self.source, guest, out, &mut self.seen);
                meddler.sees(&event, PAGE as u64);
            }
            if self.source.must_drain() {
                self.source.pump(usize::MAX, guest, out).unwrap();
                if self.source.is_auditing() {
                    break;
                }
            }
            self.source
                .event(&event, self.parser.blocks(), self.parser.page_size(), out)
                .unwrap();
            self.stream_over |= matches!(event, Event::End { .. });
            at += used;
        }
        self.from_qemu.drain(..at);
        self.source.flush(out);
        self.outlet
            .pass(&self.source, out, &mut self.there.bytes, &mut self.seen);
        if self.source.is_auditing() {
            return;
        }
        let out = &mut self.there.bytes;
        // QEMU closes its stream when it has completed.
        if self.source_qemu.completed && self.source_qemu.output.is_empty() {
            if !self.stream_over {
                let end = self.parser.finish(&self.from_qemu).unwrap().unwrap();
                self.source.event(&end, &[], 4096, out).unwrap();
                self.from_qemu.clear();
                self.stream_over = true;
            }
            self.source.qemu_completed();
        }
    }

    fn source_reads_link(&mut self) {
        if self.source_gave_up || self.finished {
            return;
        }
        let (random, input) = (&mut self.random, &mut self.source_input);
        let alive = self.back.carry(random, input, self.connected);
        if self.guardian_tells {
            self.guardian_reads();
        }
        let mut at = 0;
        while let Ok(Some((used, frame))) = self.source_decoder.next(&self.source_input[at..]) {
            let is_abort = matches!(frame, Frame::Control(Message::Abort { .. }));
            let result = self.source.frame(frame, &mut self.there.bytes);
            at += used;
            if result.is_err() && is_abort && self.recorded && !self.reconnected {
                self.seen.insert("taken back");
                self.taken_back();
                return;
            }
            if result.is_err() {
                assert!(self.source.phase() < SourcePhase::Committed, "{result:?}");
                self.source_gives_up();
                return;
            }
        }
        self.source_input.drain(..at);
        // Whoever has the outcome needs no second connection.
        if !alive && self.source.phase() != SourcePhase::Finished {
            if self.comes_back() {
                self.resume();
            } else if self.recorded {
                self.reconnect(true);
            } else {
                self.source_gives_up();
            }
        }
    }

    fn source_acts(&mut self) {
        if self.source_gave_up {
            return;
        }
        while let Some(action) = self.source.next_action() {
            match action {
                SourceAction::Start(_) => {
                    if self.follow.is_some() {
                        self.source.let_memory_follow(&mut self.there.bytes);
                    }
                }
                SourceAction::Runs(started) => {
                    assert!(started.running);
                    self.seen.insert("memory follows");
                }
                SourceAction::Arrived(followed) => {
                    // The VM runs: it cannot be taken back, but it is told.
                    self.told_of_corruption = !followed.equal;
                    assert!(followed.equal || self.corrupted);
                    self.finished = true;
                }
                SourceAction::Audit => self.audit(),
                SourceAction::Decide => {
                    self.recorded = true;
                    self.source.commit_recorded(&mut self.there.bytes);
                }
                SourceAction::Finish(started) => {
                    assert!(started.running);
                    self.finished = true;
                }
            }
        }
    }

    /// The stopped VM's memory beside what was sent of it.
    fn audit(&mut self) {
        assert!(!self.source_qemu.guest_runs());
        let mut differing = Vec::new();
        for ((block, index), number) in &self.source_qemu.ram {
            let page = page_of(*number);
            let mut found = Vec::new();
            let expected = self.source.expected().unwrap();
            expected
                .compare(BlockId(*block), *index, &page, &mut found)
                .unwrap();
            differing.extend(
                found
                    .into_iter()
                    .map(|index| (BlockId(*block), index, page)),
            );
        }
        let mut out = Vec::new();
        for (block, index, page) in differing {
            self.seen.insert("forgotten by QEMU");
            self.source.repair(block, index, &page, &mut out).unwrap();
        }
        self.source.audited(&mut out);
        self.outlet
            .pass(&self.source, &out, &mut self.there.bytes, &mut self.seen);
    }

    /// The destination has given up before it heard of the commit: the source VM runs on.
    fn taken_back(&mut self) {
        assert!(self.destination_gave_up && !self.destination_qemu.runs);
        self.recorded = false;
        self.source_gave_up = true;
        self.connected = false;
    }

    /// Before the commit is recorded: the source VM runs on.
    fn source_gives_up(&mut self) {
        assert!(!self.recorded, "a recorded commit cannot be taken back");
        self.source
            .abort(AbortCode::Other, "test", &mut self.there.bytes);
        self.source_gave_up = true;
        if !self.connected && self.destination.phase().may_be_committed() {
            self.reconnect(false);
        }
        self.connected = false;
    }

    /// Whether the connection that was lost comes back.
    fn comes_back(&self) -> bool {
        let both = !self.source_gave_up && !self.destination_gave_up;
        both && !self.guardian_tells && self.network.resumes > 0
    }

    /// It has: each goes on where the other has come to.
    fn resume(&mut self) {
        self.seen.insert(match self.recorded {
            true => "resumed after the commit",
            false => "resumed before the commit",
        });
        if self.network.connections > 1 {
            self.seen.insert("resumed over several connections");
        }
        self.there.resume();
        self.back.resume();
        self.connected = true;
        self.network.resumes -= 1;
        self.fault_at = self.step + 1 + self.network.random.below(60);
    }

    /// What the destination says to the dead source half's guardian.
    fn guardian_reads(&mut self) {
        let mut at = 0;
        while let Some((used, frame)) = self.source_decoder.next(&self.source_input[at..]).unwrap()
        {
            at += used;
            self.finished |= matches!(frame, Frame::Control(Message::Committed(_)));
        }
        self.source_input.drain(..at);
    }

    /// The source, or its guardian, tells the decision on a new connection.
    fn reconnect(&mut self, commit: bool) {
        if self.destination_gave_up {
            return;
        }
        self.seen.insert(if commit {
            "settled by verdict"
        } else {
            "revoked by verdict"
        });
        self.reconnected = true;
        self.there = self.network.pipe();
        self.back = self.network.pipe();
        self.source_input.clear();
        self.destination_input.clear();
        self.source_decoder = Decoder::new();
        self.destination_decoder = Decoder::new();
        let follows = commit && self.source.follows();
        if let Some(follow) = self.follow.as_mut().filter(|_| follows) {
            // What the peer keeps of earlier pages is not known any more.
            self.outlet = Outlet::plain();
            if follow.random.one_in(2) {
                self.seen.insert("source half replaced");
                let replaced = Source::in_place_of(SESSION, follow.seed, PAGE, &blocks());
                self.source = replaced.unwrap();
            }
            if follow.random.one_in(2) {
                self.replace_destination();
            }
        }
        self.destination.connected(&mut self.back.bytes);
        match commit {
            true if !follows && self.network.random.one_in(3) => {
                self.seen.insert("settled by the guardian");
                self.guardian_tells = true;
                put_verdict(SESSION, true, &mut self.there.bytes);
            }
            true => self.source.ask_outcome(&mut self.there.bytes),
            false => put_verdict(SESSION, false, &mut self.there.bytes),
        }
        self.connected = true;
    }

    /// The destination half has died: another asks QEMU what it has.
    fn replace_destination(&mut self) {
        let Some(remains) = self.destination.remains() else {
            return;
        };
        if self.destination.phase() != DestinationPhase::Started {
            return;
        }
        self.seen.insert("destination half replaced");
        self.destination = Destination::in_place_of(SESSION, &remains, true).unwrap();
        self.return_path.clear();
        if !self.destination_qemu.recovers() {
            self.destination.has_all();
            return;
        }
        let mut question = Vec::new();
        self.destination.ask_what_has_come(&mut question);
        self.destination_qemu.load(&question);
        let answers = std::mem::take(&mut self.destination_qemu.answers);
        let (mut parser, mut at) = (ReturnPathParser::new(), 0);
        while let Some((used, message)) = parser.next(&answers[at..]).unwrap() {
            at += used;
            match message {
                return_path::Message::ReceivedBitmap { block, bitmap } => {
                    self.destination.has_come(block, bitmap).unwrap();
                }
                return_path::Message::ResumeAck(_) => break,
                other => panic!("{other:?}"),
            }
        }
        self.destination_qemu.answers = answers[at..].to_vec();
    }

    fn destination_reads_link(&mut self) {
        if self.destination_gave_up {
            return;
        }
        let (random, input) = (&mut self.random, &mut self.destination_input);
        let alive = self.there.carry(random, input, self.connected);
        let mut at = 0;
        let mut to_qemu = Vec::new();
        loop {
            let decoded = self.destination_decoder.next(&self.destination_input[at..]);
            let Some((used, frame)) = decoded.unwrap() else {
                break;
            };
            let mut outputs = Outputs {
                peer: &mut self.back.bytes,
                qemu: &mut to_qemu,
            };
            let result = self.destination.frame(&frame, &mut outputs);
            at += used;
            if result.is_err() {
                self.destination_gives_up();
                return;
            }
            self.destination_acts();
        }
        self.destination_input.drain(..at);
        self.destination.flush(&mut to_qemu);
        self.destination_qemu.load(&to_qemu);
        let phase = self.destination.phase();
        if !alive && self.comes_back() {
            // It waits.
        } else if !alive && !phase.may_be_committed() {
            self.destination_gives_up();
        } else if !alive && phase == DestinationPhase::Ready {
            self.seen.insert("cut while ready");
            if self.source_gave_up {
                // The guardian's word.
                self.reconnect(false);
            }
        }
    }

    fn destination_acts(&mut self) {
        while let Some(action) = self.destination.next_action() {
            match action {
                DestinationAction::Admit(hello) => {
                    assert_eq!(hello.session, SESSION);
                    self.destination
                        .accept("test", "{}".into(), 1 << 30, &mut self.back.bytes);
                }
                DestinationAction::Started => {
                    assert!(self.destination_qemu.runs);
                    let started = Started {
                        running: true,
                        resume_after_us: 1,
                    };
                    self.destination.started(started, &mut self.back.bytes);
                }
                DestinationAction::Starting => {
                    assert!(self.destination_qemu.runs);
                    let started = Started {
                        running: true,
                        resume_after_us: 1,
                    };
                    self.destination.started(started, &mut self.back.bytes);
                }
                DestinationAction::Arrived => {
                    let followed = Followed::default();
                    self.destination.arrived(followed, &mut self.back.bytes);
                }
                DestinationAction::OpenQemu
                | DestinationAction::Committed
                | DestinationAction::Finish => {}
            }
        }
    }

    fn destination_reads_qemu(&mut self) {
        if self.destination_gave_up {
            return;
        }
        self.return_path.append(&mut self.destination_qemu.answers);
        let mut parser = ReturnPathParser::new();
        let mut at = 0;
        let mut to_qemu = Vec::new();
        while let Some((used, message)) = parser.next(&self.return_path[at..]).unwrap() {
            at += used;
            let mut outputs = Outputs {
                peer: &mut self.back.bytes,
                qemu: &mut to_qemu,
            };
            let result = self.destination.return_path(&message, &mut outputs);
            if result.is_err() {
                self.destination_gives_up();
                return;
            }
        }
        self.return_path.drain(..at);
        self.destination.flush(&mut to_qemu);
        self.destination_qemu.load(&to_qemu);
    }

    fn destination_gives_up(&mut self) {
        assert!(!self.destination_qemu.runs, "a running VM is not given up");
        self.destination
            .abort(AbortCode::Other, "test", &mut self.back.bytes);
        self.destination_gave_up = true;
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
