//! The two QEMUs: one with a guest that dirties its memory, one that loads what it is given.

use std::collections::{BTreeMap, BTreeSet};

use qemu_stream::return_path::Message;
use qemu_stream::test_support::StreamBuilder;
use qemu_stream::{Emitter, Event, Parser, RamBlock, command};

use crate::random::Random;

pub(crate) const PAGE: usize = 4096;
/// Pages of each block.
const BLOCKS: [(&str, u64); 3] = [("pc.ram", 24), ("pc.bios", 3), ("vga.vram", 5)];

/// Guest memory: the number that fills each page. One byte stands for a page's content.
pub(crate) type Ram = BTreeMap<(u16, u64), u8>;

pub(crate) fn blocks() -> Vec<RamBlock> {
    BLOCKS
        .iter()
        .map(|(name, pages)| StreamBuilder::block(name, pages * PAGE as u64))
        .collect()
}

/// A source QEMU: writes its stream step by step while its guest runs.
pub(crate) struct SourceQemu {
    pub(crate) ram: Ram,
    dirty: BTreeMap<(u16, u64), ()>,
    /// What it has sent last of each page.
    pub(crate) sent: Ram,
    builder: StreamBuilder,
    cursor: (u16, u64),
    step: Step,
    passes_left: usize,
    /// Now and then it does not notice that a page is written.
    pub(crate) forgets: bool,
    /// Bytes that wait to be read.
    pub(crate) output: Vec<u8>,
    pub(crate) completed: bool,
    pub(crate) early_section: bool,
    pub(crate) switchover_command: bool,
    pub(crate) description: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    Head,
    Pages,
    End,
    Devices,
    Done,
}

impl SourceQemu {
    pub(crate) fn new(random: &mut Random) -> Self {
        let mut ram = Ram::new();
        for (block, (_, pages)) in BLOCKS.iter().enumerate() {
            for page in 0..*pages {
                // Half of it zero, as in a young guest.
                let fill = if random.one_in(2) {
                    0
                } else {
                    random.below(5) as u8
                };
                ram.insert((block as u16, page), fill);
            }
        }
        SourceQemu {
            dirty: ram.keys().map(|key| (*key, ())).collect(),
            ram,
            sent: Ram::new(),
            builder: StreamBuilder::new("pc-q35-10.0"),
            cursor: (0, 0),
            step: Step::Head,
            forgets: false,
            passes_left: 1 + random.below(4),
            output: Vec::new(),
            completed: false,
            early_section: random.one_in(3),
            switchover_command: random.one_in(2),
            description: !random.one_in(4),
        }
    }

    /// Whether the guest still runs.
    pub(crate) fn guest_runs(&self) -> bool {
        matches!(self.step, Step::Head | Step::Pages)
    }

    /// The guest writes: few contents, so that pages often come back to an earlier one.
    pub(crate) fn guest_writes(&mut self, random: &mut Random) {
        for _ in 0..random.below(4) {
            let at = random.below(self.ram.len());
            let key = *self.ram.keys().nth(at).unwrap();
            self.ram.insert(key, random.below(4) as u8);
            if !(self.forgets && random.one_in(4)) {
                self.dirty.insert(key, ());
            }
        }
    }

    /// Writes a little more of the stream.
    pub(crate) fn advance(&mut self, random: &mut Random) {
        match self.step {
            Step::Head => {
                self.builder.ram_start(&blocks());
                if self.early_section {
                    self.builder
                        .device(9, "virtio-mem-device-early", &[0x7e, 0, 0, 0, 9, 9]);
                }
                self.step = Step::Pages;
            }
            Step::Pages => self.part(random),
            Step::End => self.end(),
            Step::Devices => {
                let body: Vec<u8> = (0..random.below(200)).map(|i| (i % 7) as u8).collect();
                self.builder.device(7, "timer", &body);
                if self.description {
                    self.output =
                        [std::mem::take(&mut self.output), self.builder.finish()].concat();
                } else {
                    self.builder.event(&Event::End { vmdesc: None });
                }
                self.step = Step::Done;
                self.completed = true;
            }
            Step::Done => {}
        }
        self.output.extend(self.builder.take());
    }

    /// The next dirty page at or after the cursor, wrapping.
    fn next_dirty(&self) -> Option<(u16, u64)> {
        let after = self.dirty.range(self.cursor..).next();
        after
            .or_else(|| self.dirty.iter().next())
            .map(|(key, ())| *key)
    }

    fn part(&mut self, random: &mut Random) {
        let section_id = 2;
        self.builder.event(&Event::RamPart { section_id });
        for _ in 0..random.below(12) {
            let Some(key) = self.next_dirty() else { break };
            self.send(key, random.one_in(10));
        }
        self.builder.event(&Event::RamEos { section_id });
        if self.dirty.is_empty() || random.one_in(12) {
            self.passes_left = self.passes_left.saturating_sub(1);
            if self.passes_left == 0 {
                if self.switchover_command {
                    self.builder.event(&Event::Command {
                        id: 11,
                        payload: &[],
                    });
                }
                self.step = Step::End;
            }
        }
    }

    fn end(&mut self) {
        let section_id = 2;
        self.builder.event(&Event::RamEnd { section_id });
        while let Some(key) = self.next_dirty() {
            self.send(key, false);
        }
        self.builder.event(&Event::RamEos { section_id });
        self.step = Step::Devices;
    }

    /// Sends a page; a torn one stays dirty, since the guest was just writing it.
    fn send(&mut self, key: (u16, u64), torn: bool) {
        let fill = if torn { 200 } else { self.ram[&key] };
        if !torn {
            self.dirty.remove(&key);
        }
        let (block, offset) = (key.0, key.1 * PAGE as u64);
        if fill == 0 {
            self.builder.zero(block, offset);
        } else {
            self.builder.page(block, offset, &content(fill));
        }
        self.sent.insert(key, fill);
        self.cursor = (key.0, key.1 + 1);
    }
}

/// A destination QEMU: loads memory as it comes, answers the fence, and starts at the end mark.
pub(crate) struct DestinationQemu {
    parser: Parser,
    pending: Vec<u8>,
    pub(crate) ram: Ram,
    device: Vec<u8>,
    /// Bytes for the return path.
    pub(crate) answers: Vec<u8>,
    pub(crate) runs: bool,
    /// The fence has been answered.
    answered: bool,
    /// Says that it cannot load this.
    pub(crate) refuses: bool,
    /// Pages of zeros that came into being beside one that was placed, as huge pages have it: QEMU
    /// does not count them as received, and cannot place anything there.
    populated: BTreeSet<(u16, u64)>,
    /// What the guest waits for.
    waits: BTreeSet<(u16, u64)>,
    /// It was told of post-copy.
    advised: bool,
    /// It runs, and memory may be missing.
    post_copy: bool,
    /// Bytes of a package that is still to come.
    package: Option<usize>,
    /// Where commands may stand.
    between_sections: bool,
    ram_has_ended: bool,
    over: bool,
}

impl DestinationQemu {
    pub(crate) fn new() -> Self {
        DestinationQemu {
            parser: Parser::new(),
            pending: Vec::new(),
            ram: Ram::new(),
            device: Vec::new(),
            answers: Vec::new(),
            runs: false,
            answered: false,
            refuses: false,
            populated: BTreeSet::new(),
            waits: BTreeSet::new(),
            advised: false,
            post_copy: false,
            package: None,
            between_sections: true,
            ram_has_ended: false,
            over: false,
        }
    }

    pub(crate) fn load(&mut self, bytes: &[u8]) {
        self.pending.extend_from_slice(bytes);
        let mut at = 0;
        loop {
            if let Some(length) = self.package {
                let Some(package) = self.pending.get(at..at + length) else {
                    break;
                };
                let package = package.to_vec();
                at += length;
                self.package = None;
                self.run_package(&package);
            }
            if self.between_sections
                && let Some((id, payload)) = post_copy_command(&self.pending[at..])
            {
                at += 5 + payload.len();
                self.command(id, &payload);
                continue;
            }
            let parsed = self.parser.next(&self.pending[at..]);
            let Some((used, event)) = parsed.expect("a stream that QEMU accepts") else {
                break;
            };
            match event {
                Event::Page {
                    block,
                    offset,
                    data,
                    ..
                } => {
                    self.comes((block.0, offset / PAGE as u64), page_number(data));
                }
                Event::Zero {
                    block,
                    offset,
                    fill,
                    ..
                } => {
                    self.comes((block.0, offset / PAGE as u64), fill);
                }
                Event::Device(raw) => self.device.extend_from_slice(raw),
                Event::Command { id, payload } => {
                    let payload = payload.to_vec();
                    self.command(id, &payload);
                }
                Event::RamStart { .. } | Event::RamPart { .. } => self.between_sections = false,
                Event::RamEnd { .. } => {
                    self.between_sections = false;
                    self.ram_has_ended = true;
                }
                Event::RamEos { .. } => self.between_sections = !self.ram_has_ended,
                Event::End { .. } => panic!("no description is ever written"),
                _ => {}
            }
            at += used;
        }
        self.pending.drain(..at);
        match self.post_copy {
            true => self.look_for_the_end(),
            false => self.look_at_devices(),
        }
    }

    /// QEMU places a page once when its guest runs.
    fn comes(&mut self, key: (u16, u64), number: u8) {
        let before = self.ram.insert(key, number);
        let was_there = self.populated.remove(&key);
        self.waits.remove(&key);
        if self.post_copy {
            assert!(before.is_none() && !was_there, "{key:?} comes twice");
        }
        let neighbour = (key.0, key.1 ^ 1);
        let exists = neighbour.1 < BLOCKS[usize::from(key.0)].1;
        if self.advised && !self.post_copy && exists && !self.ram.contains_key(&neighbour) {
            self.populated.insert(neighbour);
        }
    }

    fn command(&mut self, id: u16, payload: &[u8]) {
        match id {
            command::PING if self.refuses => {
                Message::Shut(1).put(&mut self.answers);
                self.refuses = false;
            }
            command::PING => {
                let value = u32::from_be_bytes(payload.try_into().unwrap());
                Message::Pong(value).put(&mut self.answers);
            }
            command::POSTCOPY_ADVISE => {
                assert!(self.ram.is_empty());
                self.advised = true;
            }
            command::POSTCOPY_RAM_DISCARD => {
                assert!(self.advised && !self.post_copy);
                let name = usize::from(payload[1]);
                let (head, ranges) = payload.split_at(3 + name);
                let block = BLOCKS
                    .iter()
                    .position(|(one, _)| one.as_bytes() == &head[2..2 + name]);
                let block = block.expect("a block") as u16;
                for range in ranges.chunks(16) {
                    let number = |at: usize| {
                        u64::from_be_bytes(range[at..at + 8].try_into().unwrap()) / PAGE as u64
                    };
                    for page in number(0)..number(0) + number(8) {
                        self.ram.remove(&(block, page));
                        self.populated.remove(&(block, page));
                    }
                }
            }
            command::RECV_BITMAP => {
                let name = &payload[1..];
                let block = BLOCKS.iter().position(|(one, _)| one.as_bytes() == name);
                let block = block.expect("a block") as u16;
                let mut bitmap = [0; 8];
                for (_, page) in self.ram.keys().filter(|key| key.0 == block) {
                    bitmap[*page as usize / 8] |= 1 << (page % 8);
                }
                let bitmap = &bitmap;
                Message::ReceivedBitmap {
                    block: name,
                    bitmap,
                }
                .put(&mut self.answers);
            }
            command::POSTCOPY_RESUME => {
                Message::ResumeAck(1).put(&mut self.answers);
                for key in self.waits.clone() {
                    self.asks_for(key);
                }
            }
            command::PACKAGED => {
                let length = u32::from_be_bytes(payload.try_into().unwrap());
                self.package = Some(length as usize);
            }
            _ => {}
        }
    }

    /// LISTEN, the devices, PING, RUN.
    fn run_package(&mut self, package: &[u8]) {
        assert!(self.advised);
        assert_eq!(package[..5], [8, 0, 4, 0, 0]);
        let (rest, run) = package.split_at(package.len() - 5);
        assert_eq!(run, [8, 0, 5, 0, 0]);
        let (_, ping) = rest.split_at(rest.len() - 9);
        assert_eq!(ping[..5], [8, 0, 2, 0, 4]);
        self.post_copy = true;
        Message::Pong(u32::from_be_bytes(ping[5..].try_into().unwrap())).put(&mut self.answers);
        self.runs = true;
    }

    fn look_for_the_end(&mut self) {
        if self.ram_has_ended && self.pending == [0] && !self.over {
            self.over = true;
            Message::Shut(0).put(&mut self.answers);
        }
    }

    /// The guest touches memory: what is missing is asked for, now and then more than once.
    pub(crate) fn guest_touches(&mut self, random: &mut Random) -> bool {
        let block = random.below(BLOCKS.len());
        let (_, pages) = BLOCKS[block];
        let page = random.below(pages as usize) as u64;
        let key = (block as u16, page);
        let is_there = self.ram.contains_key(&key) || self.populated.contains(&key);
        if !self.post_copy || self.over || is_there {
            return false;
        }
        self.waits.insert(key);
        self.asks_for(key);
        true
    }

    fn asks_for(&mut self, (block, page): (u16, u64)) {
        Message::RequestPages {
            block: Some(BLOCKS[usize::from(block)].0.as_bytes()),
            start: page * PAGE as u64,
            length: PAGE as u32,
        }
        .put(&mut self.answers);
    }

    /// Its stream has broken off, and another is opened, if it still needs one.
    pub(crate) fn recovers(&mut self) -> bool {
        self.pending.clear();
        self.answers.clear();
        self.between_sections = true;
        !self.over
    }

    /// The fence stands behind the device state, where QEMU waits for the next section; so does
    /// the end mark, of which the parser holds the beginning back.
    fn look_at_devices(&mut self) {
        let whole = [&self.device[..], &self.pending].concat();
        let fence_at = whole.windows(5).rposition(|five| five == [8, 0, 2, 0, 4]);
        let Some(fence) = fence_at.and_then(|at| whole.get(at + 5..)) else {
            return;
        };
        let Some((value, rest)) = fence.split_first_chunk::<4>() else {
            return;
        };
        if self.refuses && !self.answered {
            Message::Shut(1).put(&mut self.answers);
            self.refuses = false;
            return;
        }
        if rest.is_empty() && !self.answered {
            self.answered = true;
            Message::Pong(u32::from_be_bytes(*value)).put(&mut self.answers);
        } else if rest == Emitter::END_WITHOUT_DESCRIPTION && !self.runs {
            self.runs = true;
            Message::Shut(0).put(&mut self.answers);
        }
    }
}

/// A command of post-copy, which no source QEMU sends here and the parser refuses.
fn post_copy_command(bytes: &[u8]) -> Option<(u16, Vec<u8>)> {
    let &[kind, a, b, c, d] = bytes.first_chunk::<5>()?;
    let [id, length] = [[a, b], [c, d]].map(u16::from_be_bytes);
    let known = (command::POSTCOPY_ADVISE..=command::RECV_BITMAP).contains(&id);
    let payload = bytes.get(5..5 + usize::from(length))?;
    (kind == 8 && known).then(|| (id, payload.to_vec()))
}

/// The page of a number: the odd ones differ in their first bytes only, and so do the even ones.
fn content(number: u8) -> [u8; PAGE] {
    let mut page = [1 + number % 2; PAGE];
    page[..8].fill(number);
    page
}

/// The page of a number, zeros included.
pub(crate) fn page_of(number: u8) -> [u8; PAGE] {
    match number {
        0 => [0; PAGE],
        number => content(number),
    }
}

/// The number whose page this is, or 255.
fn page_number(data: &[u8]) -> u8 {
    if data == content(data[0]) {
        data[0]
    } else {
        255
    }
}
