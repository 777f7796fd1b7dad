//! The two QEMUs: one with a guest that dirties its memory, one that loads what it is given.

use std::collections::BTreeMap;

use qemu_stream::return_path::Message;
use qemu_stream::test_support::StreamBuilder;
use qemu_stream::{Emitter, Event, Parser, RamBlock};

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
        }
    }

    pub(crate) fn load(&mut self, bytes: &[u8]) {
        self.pending.extend_from_slice(bytes);
        let mut at = 0;
        loop {
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
                    self.ram
                        .insert((block.0, offset / PAGE as u64), page_number(data));
                }
                Event::Zero {
                    block,
                    offset,
                    fill,
                    ..
                } => {
                    self.ram.insert((block.0, offset / PAGE as u64), fill);
                }
                Event::Device(raw) => self.device.extend_from_slice(raw),
                Event::End { .. } => panic!("no description is ever written"),
                _ => {}
            }
            at += used;
        }
        self.pending.drain(..at);
        self.look_at_devices();
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
