//! The relay's loop around the two state machines, as the program has it, in steps of virtual time.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use depgraph::ProcessId;
use migrate::pilot::{OnStall, Pilot, PilotAction, PilotNews, PilotSettings, Protocol, View};
use migrate::{GuestMemory, KeepBack, MappedRam, Source};
use qemu_stream::{BlockId, Event, Parser};
use wire::{Accept, Capabilities, Decoder, Frame, Message};

use crate::agent::{Agent, Character, Said};
use crate::guest::{FRAMES, Guest};
use crate::hypervisor::{Hypervisor, PAGE, fill};
use crate::random::Random;

/// One turn of everything.
const STEP: Duration = Duration::from_millis(10);
/// Longest run. What has not moved by then does not converge.
const LONGEST: Duration = Duration::from_secs(120);
/// Bytes waiting for the link beyond which QEMU is not read.
const WAITING_MAX: usize = 16 * PAGE;
/// Bytes that the relay reads in a step.
const READ_MAX: usize = 40 * PAGE;
/// A worthwhile pause, in bytes of written memory.
const SMALL: u64 = 10 * PAGE as u64;

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    Moved,
    /// Processes that are moved live write more than the link carries.
    DoesNotConverge,
}

/// What a run came to.
pub(crate) struct Run {
    pub(crate) ending: Ending,
    pub(crate) character: Character,
    pub(crate) seen: BTreeSet<&'static str>,
}

/// The guest's memory, seen from outside.
struct Peek<'a>(&'a Guest);

impl GuestMemory for Peek<'_> {
    fn read(&mut self, _: BlockId, first: u64, pages: &mut [u8]) -> Result<(), String> {
        for (frame, page) in (first as usize..).zip(pages.chunks_mut(PAGE)) {
            fill(page, self.0.memory[frame]);
        }
        Ok(())
    }
}

pub(crate) struct World {
    random: Random,
    now: Duration,
    guest: Guest,
    hypervisor: Hypervisor,
    agent: Agent,
    agent_is_there: bool,
    pilot: Pilot,
    source: Source,
    parser: Parser,
    from_qemu: Vec<u8>,
    output: Vec<u8>,
    /// Bytes a second.
    link: u64,
    /// The link is down: from, to.
    cut: Option<(Duration, Duration)>,
    decoder: Decoder,
    arrived: BTreeMap<usize, u64>,
    /// Memory may follow after the switchover,
    may_follow: bool,
    /// so that nobody is frozen.
    nobody_stands: bool,
    /// What is to.
    follows: BTreeSet<usize>,
    left_behind: BTreeSet<usize>,
    hold_limit: u64,
    /// What is held is left in the guest.
    reads: bool,
    max_pause: Duration,
    /// Since when processes have stood.
    stands: BTreeMap<ProcessId, Duration>,
    ram_ended: bool,
    seen: BTreeSet<&'static str>,
}

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        let mut random = Random::new(seed ^ 0x0073_7465_6572);
        let character = Character::ALL[random.below(Character::ALL.len())];
        let mut guest = Guest::new(&mut random);
        // The one that is right is asked of a guest that can be moved.
        if character == Character::Right {
            guest.is_moderate();
        }
        let hold_limit = match random.below(4) {
            0 => 20 + random.below(60),
            _ => 2 * FRAMES,
        } * PAGE;
        let pages_a_second = match random.below(3) {
            0 => 25 + random.below(50),
            _ => 200 + random.below(600),
        };
        let link = (pages_a_second * PAGE) as u64;
        let cut = seed.is_multiple_of(4).then(|| {
            let from = random.below(9000) as u64;
            let length = 50 + random.below(25_000) as u64;
            let at = |ms| Duration::from_millis(ms);
            (at(from), at(from + length))
        });
        let max_pause = Duration::from_millis(2000 + random.below(12_000) as u64);
        let mut source = Source::new([5; 16], random.next());
        source.keep_back(KeepBack {
            limit: hold_limit as u64,
            ram: vec![MappedRam {
                address: 0,
                length: (FRAMES * PAGE) as u64,
                block: "pc.ram".to_owned(),
                offset: 0,
            }],
        });
        let (protocol, on_stall) = match seed % 5 {
            3 if cut.is_none() => (Protocol::PostCopy, OnStall::Wait),
            4 if cut.is_none() => (Protocol::StopCopy, OnStall::PostCopy),
            _ => (Protocol::StopCopy, OnStall::Wait),
        };
        let pilot = Pilot::new(PilotSettings {
            protocol,
            downtime_limit: Duration::from_millis(300 + random.below(500) as u64),
            max_pause,
            on_stall,
            rules: Vec::new(),
            small_bytes: SMALL,
            frames: FRAMES as u64,
        });
        World {
            now: Duration::ZERO,
            guest,
            hypervisor: Hypervisor::new(),
            agent: Agent::new(character, random.clone()),
            agent_is_there: true,
            pilot,
            source,
            parser: Parser::new(),
            from_qemu: Vec::new(),
            output: Vec::new(),
            link,
            cut,
            decoder: Decoder::new(),
            arrived: BTreeMap::new(),
            left_behind: BTreeSet::new(),
            may_follow: protocol == Protocol::PostCopy || on_stall == OnStall::PostCopy,
            nobody_stands: protocol == Protocol::PostCopy,
            follows: BTreeSet::new(),
            hold_limit: hold_limit as u64,
            reads: seed.is_multiple_of(3),
            max_pause,
            stands: BTreeMap::new(),
            ram_ended: false,
            seen: BTreeSet::new(),
            random,
        }
    }

    /// Runs to the end, and checks everything that must hold.
    pub(crate) fn run(mut self) -> Run {
        self.greet();
        while !self.ram_ended {
            if self.now > LONGEST {
                return self.end(Ending::DoesNotConverge);
            }
            self.now += STEP;
            if !self.hypervisor.stopped {
                self.guest.runs(&mut self.random);
                self.agent.acts(&mut self.guest, self.now);
                self.nobody_stands_too_long();
            }
            self.hypervisor.writes(&mut self.guest, self.now);
            self.relay();
            self.carry();
            assert!(self.source.held_bytes() <= self.hold_limit);
        }
        while !self.output.is_empty() {
            self.carry();
        }
        self.memory_is_equal();
        self.end(Ending::Moved)
    }

    /// Up to where QEMU is started.
    fn greet(&mut self) {
        self.source.greet("test", "{}".into(), &mut self.output);
        let accept = Message::Accept(Accept {
            software: "test".into(),
            uses: Capabilities::OURS,
            vm_facts: "{}".into(),
        });
        self.source
            .frame(Frame::Control(accept), &mut self.output)
            .unwrap();
        while self.source.next_action().is_some() {}
        if self.may_follow {
            self.source.let_memory_follow(&mut self.output);
        }
    }

    /// One turn of the relay's loop.
    fn relay(&mut self) {
        while let Some(said) = self
            .agent_is_there
            .then(|| self.agent.hear(self.now))
            .flatten()
        {
            match said {
                Said::Answer(answer, last) => self.pilot.answer(answer, last, &mut self.source),
                Said::Refused => self.pilot.refused("it does not want to", &mut self.source),
                Said::News(who, why) => self.pilot.news(&who, why, &mut self.source),
                Said::Gone => {
                    self.agent_is_there = false;
                    self.pilot.agent_lost("it has gone", &mut self.source);
                }
            }
        }
        for when in std::mem::take(&mut self.hypervisor.synchronised) {
            self.pilot.synchronised(when, &mut self.source);
        }
        let known = self.now > Duration::from_millis(400);
        let view = View {
            now: self.now,
            link: known.then_some(self.link),
            cut: self.is_cut().then(|| self.cut.unwrap_or_default().0),
            stopped: self.hypervisor.stopped,
        };
        self.pilot.turn(&mut self.source, view);
        self.does_what_it_is_asked();
        self.reads();
        self.pumps();
    }

    fn does_what_it_is_asked(&mut self) {
        while let Some(action) = self.pilot.next_action() {
            match action {
                PilotAction::Ask(request) => {
                    assert!(!self.hypervisor.stopped, "a guest that stands is asked");
                    if self.agent_is_there {
                        self.agent.asked(&request, &mut self.guest, self.now);
                    }
                }
                PilotAction::DowntimeLimit(limit, link) => {
                    self.hypervisor.downtime_limit = limit;
                    self.hypervisor.link = link;
                }
                PilotAction::Throttle(_) => panic!("nobody asked for that"),
                PilotAction::GiveUp(why) => panic!("gives up: {why}"),
                PilotAction::Tell(news) => self.news(news),
            }
        }
    }

    fn news(&mut self, news: PilotNews) {
        match news {
            PilotNews::Free(runs) => {
                let frames = runs.iter().flat_map(|run| run.first..run.first + run.count);
                self.left_behind.extend(frames.map(|frame| frame as usize));
                if !self.left_behind.is_empty() {
                    self.seen.insert("left behind as free");
                }
            }
            PilotNews::Frozen(..) if self.nobody_stands => panic!("somebody is frozen"),
            PilotNews::Live(..) => {
                self.seen.insert("moved live");
            }
            PilotNews::Frozen(..) if self.seen.contains("thawed for a cut") => {
                self.seen.insert("frozen after a cut");
            }
            PilotNews::Thawed(_, "the connection is lost") => {
                self.seen.insert("thawed for a cut");
            }
            PilotNews::Note(text) if text.contains("without the agent") => {
                self.agent_is_there = false;
                self.seen.insert("agent lost");
            }
            _ => {}
        }
    }

    fn reads(&mut self) {
        let full = self.output.len() >= WAITING_MAX;
        let room = !full || self.pilot.reads_ahead(&self.source);
        if room && self.pilot.may_read(&self.source) {
            let count = self.hypervisor.output.len().min(READ_MAX);
            self.from_qemu.extend(self.hypervisor.output.drain(..count));
            self.hypervisor.read(count);
            self.takes_events();
        }
        self.source.flush(&mut self.output);
    }

    fn takes_events(&mut self) {
        if self.reads && self.source.knows_memory() {
            self.source.leave_in_guest();
            self.seen.insert("left in the guest");
        }
        self.source.link_is_full(self.output.len() >= WAITING_MAX);
        let mut at = 0;
        while !self.source.must_drain() {
            let Some((used, event)) = self.parser.next(&self.from_qemu[at..]).unwrap() else {
                break;
            };
            // It is sent: whatever was said of it is over.
            if let Event::Page { offset, .. } | Event::Zero { offset, .. } = event {
                self.left_behind.remove(&((offset / PAGE as u64) as usize));
            }
            self.ram_ended |= matches!(event, Event::Device(_));
            let (blocks, page_size) = (self.parser.blocks(), self.parser.page_size());
            self.source
                .event(&event, blocks, page_size, &mut self.output)
                .unwrap();
            at += used;
        }
        self.from_qemu.drain(..at);
    }

    fn pumps(&mut self) {
        let waits = self.source.due_bytes() > 0 || self.source.must_drain();
        if waits && self.output.len() < WAITING_MAX {
            self.source
                .pump(WAITING_MAX, &mut Peek(&self.guest), &mut self.output)
                .unwrap();
        }
        self.source.flush(&mut self.output);
        // What had to wait for what was due.
        if !self.source.must_drain() && !self.from_qemu.is_empty() && self.hypervisor.completed {
            self.takes_events();
            self.source.flush(&mut self.output);
        }
    }

    fn is_cut(&self) -> bool {
        let within = |(from, to)| (from..to).contains(&self.now);
        self.cut.is_some_and(within)
    }

    /// The link carries what it can in a step.
    fn carry(&mut self) {
        if self.is_cut() && !self.ram_ended {
            return;
        }
        let room = (self.link * STEP.as_millis() as u64 / 1000) as usize;
        let mut at = 0;
        let mut input = std::mem::take(&mut self.output);
        // Whole frames: what is decoded is gone.
        while at < room.max(1) {
            let decoded = self.decoder_next(&input[at..]);
            let Some(used) = decoded else { break };
            at += used;
        }
        input.drain(..at);
        self.output = input;
    }

    fn decoder_next(&mut self, input: &[u8]) -> Option<usize> {
        let (used, frame) = self.decoder.next(input).unwrap()?;
        match frame {
            Frame::Pages(pages) => {
                for (index, content) in pages.iter(PAGE).unwrap() {
                    let word = u64::from_be_bytes(content[..8].try_into().unwrap());
                    assert!(content.chunks(8).all(|other| other == &content[..8]));
                    self.arrived.insert(index as usize, word);
                }
            }
            Frame::Zeros(zeros) => {
                for run in zeros.iter() {
                    for index in run.first..run.first + run.count {
                        self.arrived.insert(index as usize, 0);
                    }
                }
            }
            Frame::Control(Message::Follows(pages)) => {
                for run in pages.runs {
                    let frames = run.first..run.first + run.count;
                    self.follows.extend(frames.map(|frame| frame as usize));
                }
                self.seen.insert("follows");
            }
            _ => {}
        }
        Some(used)
    }

    /// An agent that is right and in time lets nobody stand for longer than it may.
    fn nobody_stands_too_long(&mut self) {
        for process in &self.guest.processes {
            if !process.stands {
                self.stands.remove(&process.id);
                continue;
            }
            let since = *self.stands.entry(process.id).or_insert(self.now);
            if self.agent.character == Character::Right {
                let limit = self.max_pause + Duration::from_millis(500);
                assert!(
                    self.now - since <= limit,
                    "{:?} stands for too long",
                    process.id
                );
            }
        }
    }

    fn memory_is_equal(&mut self) {
        let sent = &self.hypervisor.sent;
        for frame in &self.left_behind {
            // Declared free twice, and not sent since: it need not have travelled.
            self.arrived.insert(*frame, sent[frame]);
        }
        // What follows is held, and nothing else is.
        let held = self.source.held_bytes() / PAGE as u64;
        assert_eq!(held, self.follows.len() as u64);
        for frame in &self.follows {
            self.arrived.insert(*frame, sent[frame]);
        }
        assert_eq!(&self.arrived, sent, "what was sent last");
        let memory: Vec<u64> = sent.values().copied().collect();
        assert_eq!(memory, self.guest.memory, "the stopped VM's memory");
    }

    fn end(mut self, ending: Ending) -> Run {
        self.seen.append(&mut self.agent.seen);
        Run {
            ending,
            character: self.agent.character,
            seen: self.seen,
        }
    }
}
