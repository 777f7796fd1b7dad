//! Memory that follows after the switchover: the destination QEMU does post-copy, and this half is
//! its source.
//!
//! ```text
//!  MayFollow ─► ADVISE        Follows ─► RAM_DISCARD        Commit ─► PACKAGED {devices, RUN}
//!  pages ─► PART              Needs ◄─ REQ_PAGES            AllSent ─► END, EOF      SHUT ─► Arrived
//! ```
//!
//! QEMU dies of a page that comes twice, so none is passed on that is not awaited.

use std::ops::Range;

use qemu_stream::return_path::Message as Rp;
use qemu_stream::{BlockId, RamBlock};
use roaring::RoaringBitmap;
use serde::{Deserialize, Serialize};
use wire::{Digest, Followed, Message, PageRun, PageRuns, Started, put_control};

use super::{Destination, DestinationAction, DestinationPhase, Outputs, Ram};
use crate::{Fault, PageTable};

/// The value of the PING behind the devices.
const DEVICES_FENCE: u32 = 0x756e_6d73;
/// Most bytes of device state that are kept: QEMU takes it in one piece.
const DEVICES_MAX: usize = 256 << 20;

/// What is known of the memory that follows.
#[derive(Debug, Default)]
pub(super) struct Following {
    allowed: bool,
    any: bool,
    stage: Stage,
    /// By slot: what has not come.
    awaited: RoaringBitmap,
    /// Asked for by the VM, and not come.
    wanted: RoaringBitmap,
    /// Never sent, since the guest had declared it free, and asked for after all: it got zeros.
    made_up: RoaringBitmap,
    devices: Vec<u8>,
    /// The block of QEMU's last request.
    last_block: Option<BlockId>,
    before: Digest,
    equal: bool,
    news: Vec<FaultNews>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    /// The VM does not run yet.
    #[default]
    Before,
    Coming,
    /// All of it has been passed on.
    Ended,
    /// QEMU says that it has it.
    Complete,
    Told,
}

/// A page that the VM waits for, by a number of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultNews {
    /// It has been asked for.
    Asked(u32),
    /// It has been passed on.
    Came(u32),
}

impl Following {
    pub(super) fn allow(&mut self) {
        self.allowed = true;
    }

    pub(super) fn is_allowed(&self) -> bool {
        self.allowed
    }

    /// Whether any memory follows.
    pub(super) fn is_any(&self) -> bool {
        self.any
    }

    /// Whether the VM still needs the source.
    pub(super) fn is_under_way(&self) -> bool {
        self.any && self.stage != Stage::Told
    }

    pub(super) fn keep_devices(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        if self.devices.len() + bytes.len() > DEVICES_MAX {
            return Err(Fault::Unsupported {
                feature: "more than 256 MiB of device state",
                remedy: "move this VM without post-copy",
            });
        }
        self.devices.extend_from_slice(bytes);
        Ok(())
    }

    /// A page comes: if it is one that follows, only if it is awaited.
    #[inline]
    pub(super) fn comes(&mut self, slot: usize) -> Result<(), Fault> {
        match self.any {
            true => self.comes_later(slot),
            false => Ok(()),
        }
    }

    fn comes_later(&mut self, slot: usize) -> Result<(), Fault> {
        let number = u32::try_from(slot).ok();
        match (self.stage, number) {
            (Stage::Coming, Some(slot)) if self.awaited.remove(slot) => {
                if self.wanted.remove(slot) {
                    self.news.push(FaultNews::Came(slot));
                }
                Ok(())
            }
            _ => Err(Fault::OutOfOrder {
                message: "a page that is not awaited",
                phase: "memory follows",
            }),
        }
    }
}

impl Destination {
    /// Whether memory may follow: QEMU needs to be ready for post-copy before it is given anything.
    pub fn may_follow(&self) -> bool {
        self.following.is_allowed()
    }

    /// Whether the VM runs, or may, without all of its memory: it needs the source.
    pub fn needs_the_source(&self) -> bool {
        self.phase >= DestinationPhase::Ready && self.following.is_under_way()
    }

    /// Bytes that have not come.
    pub fn awaited_bytes(&self) -> u64 {
        let page_size = self.ram.as_ref().map_or(0, |ram| ram.page_size);
        self.following.awaited.len() * page_size as u64
    }

    /// What the VM has asked for, and got, since the last call.
    pub fn fault_news(&mut self) -> Vec<FaultNews> {
        std::mem::take(&mut self.following.news)
    }

    /// All memory is there: tells the source, with what is known of how it came.
    ///
    /// # Panics
    /// If it was not asked for by [`DestinationAction::Arrived`].
    pub fn arrived(&mut self, followed: Followed, peer: &mut Vec<u8>) {
        assert_eq!(self.following.stage, Stage::Complete, "arrived out of turn");
        self.following.stage = Stage::Told;
        let equal = self.following.equal;
        put_control(&Message::Arrived(Followed { equal, ..followed }), peer);
    }

    /// Whether all that has followed is what was sent; nothing before it is here.
    pub fn followed_well(&self) -> Option<bool> {
        let over = self.following.stage >= Stage::Complete;
        over.then_some(self.following.equal)
    }

    /// These pages follow: whatever QEMU has of them is discarded.
    pub(super) fn withhold(&mut self, pages: &PageRuns, qemu: &mut Vec<u8>) -> Result<(), Fault> {
        self.flush(qemu);
        let Some(ram) = &mut self.ram else {
            return Ok(());
        };
        let following = &mut self.following;
        following.any = true;
        for run in &pages.runs {
            let slots = ram.table.layout().slots(pages.block, *run)?;
            for slot in slots.clone() {
                ram.table.forget(slot as usize);
            }
            following.awaited.insert_range(slots);
        }
        let page_size = ram.page_size as u64;
        let ranges = pages.runs.iter().map(|run| bytes_of(*run, page_size));
        self.emitter
            .postcopy_discard(BlockId(pages.block), ranges, qemu);
        Ok(())
    }

    pub(super) fn run_before_all_is_here(&mut self, qemu: &mut Vec<u8>) {
        let devices = std::mem::take(&mut self.following.devices);
        self.emitter.postcopy_run(&devices, DEVICES_FENCE, qemu);
        self.following.before = self.digest();
        self.following.stage = Stage::Coming;
    }

    pub(super) fn return_path_while_memory_follows(
        &mut self,
        message: Rp<'_>,
        out: &mut Outputs<'_>,
    ) -> Result<(), Fault> {
        match message {
            Rp::Pong(DEVICES_FENCE) if self.phase == DestinationPhase::Starting => {
                self.actions.push_back(DestinationAction::Starting);
                Ok(())
            }
            Rp::RequestPages {
                block,
                start,
                length,
            } => self.requested(block, start, length.into(), out),
            Rp::Shut(0) if self.following.stage == Stage::Ended => {
                self.following.stage = Stage::Complete;
                self.say_if_all_is_here();
                Ok(())
            }
            Rp::Shut(error) if error != 0 => Err(Fault::Refused(error)),
            _ => Err(self.out_of_order("something unexpected on QEMU's return path")),
        }
    }

    /// The VM waits for memory.
    fn requested(
        &mut self,
        block: Option<&[u8]>,
        start: u64,
        length: u64,
        out: &mut Outputs<'_>,
    ) -> Result<(), Fault> {
        let named = block.map(|name| self.emitter.block(name));
        let block = named.unwrap_or(self.following.last_block);
        let (Some(block), Some(ram)) = (block, &self.ram) else {
            return Err(self.out_of_order("a request for an unknown RAM block"));
        };
        self.following.last_block = Some(block);
        let page_size = ram.page_size as u64;
        for index in start / page_size..start.saturating_add(length).div_ceil(page_size) {
            let slot = self
                .ram
                .as_ref()
                .map(|ram| ram.table.layout().slot(block, index));
            let Some(slot) = slot.transpose()? else {
                continue;
            };
            let Ok(number) = u32::try_from(slot) else {
                continue;
            };
            if self.following.awaited.contains(number) {
                if self.following.wanted.insert(number) {
                    self.following.news.push(FaultNews::Asked(number));
                    put_needs(block, index, out.peer);
                }
            } else if self.was_never_sent(slot) && self.following.made_up.insert(number) {
                let (ram, emitter, _) = self.open_part(out.qemu)?;
                emitter.zero(block, index * ram.page_size as u64, out.qemu);
            }
            // Anything else is on its way to QEMU already.
        }
        Ok(())
    }

    fn was_never_sent(&self, slot: usize) -> bool {
        let ram = self.ram.as_ref();
        ram.is_some_and(|ram| ram.table.is_absent(slot))
    }

    pub(super) fn all_is_sent(&mut self, theirs: Digest, qemu: &mut Vec<u8>) -> Result<(), Fault> {
        if self.following.stage > Stage::Coming {
            // It was told before the connection was lost.
            return Ok(());
        }
        if !self.following.awaited.is_empty() {
            return Err(self.out_of_order("the end of the memory before all of it has come"));
        }
        self.flush(qemu);
        if let Some(ram) = &self.ram {
            // The VM runs: whatever is found, it is to have an end.
            self.following.equal = ram.table.digest_since(self.following.before) == theirs;
            self.emitter.postcopy_end(ram.section_id, qemu);
        }
        self.following.stage = Stage::Ended;
        Ok(())
    }

    /// The source hears of the end after it has heard that the VM runs.
    pub(super) fn say_if_all_is_here(&mut self) {
        if self.following.stage == Stage::Complete && self.phase == DestinationPhase::Started {
            self.actions.push_back(DestinationAction::Arrived);
        }
    }

    /// Whoever comes anew with the commit may not know what has come.
    pub(super) fn tell_what_is_missing(&mut self, peer: &mut Vec<u8>) {
        let Some(ram) = &self.ram else {
            return;
        };
        if !self.following.is_any() {
            return;
        }
        let mut all = ram.table.layout().page_runs(&self.following.awaited);
        if all.is_empty() {
            let runs = Vec::new();
            all.push(PageRuns { block: 0, runs });
        }
        let count = all.len();
        for (number, pages) in (1..).zip(all) {
            let last = number == count;
            put_control(&Message::Missing { pages, last }, peer);
        }
        self.following.before = ram.table.digest();
        // What the VM waits for is asked for again.
        for slot in &self.following.wanted {
            let (block, index) = ram.table.layout().place(slot as usize);
            put_needs(block, index, peer);
        }
        if self.following.stage == Stage::Told {
            self.following.stage = Stage::Complete;
            self.say_if_all_is_here();
        }
    }
}

/// What a destination half leaves to another that takes its place while memory follows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remains {
    seed: u64,
    section_id: u32,
    page_size: usize,
    /// Names and lengths of the RAM blocks.
    blocks: Vec<(String, u64)>,
}

impl Destination {
    /// What another half would need in the place of this one; nothing unless memory follows.
    pub fn remains(&self) -> Option<Remains> {
        let ram = self.ram.as_ref().filter(|_| self.following.any)?;
        Some(Remains {
            seed: self.seed,
            section_id: ram.section_id,
            page_size: ram.page_size,
            blocks: ram.blocks.clone(),
        })
    }

    /// A half in place of one that has died after its commit. Ask QEMU [what has
    /// come](Destination::ask_what_has_come) before anything else; whoever sends the rest is told.
    pub fn in_place_of(session: [u8; 16], remains: &Remains, running: bool) -> Result<Self, Fault> {
        let mut half = Destination::new();
        half.session = Some(session);
        half.seed = remains.seed;
        half.phase = DestinationPhase::Started;
        half.started = Some(Started {
            running,
            resume_after_us: 0,
        });
        let lengths = remains.blocks.iter().map(|(_, length)| *length);
        let table = PageTable::new(remains.seed, remains.page_size, lengths, u64::MAX)?;
        let blocks: Vec<RamBlock> = remains
            .blocks
            .iter()
            .map(|(name, length)| RamBlock::plain(name, *length))
            .collect();
        half.emitter.set_blocks(&blocks);
        half.ram = Some(Ram {
            section_id: remains.section_id,
            page_size: remains.page_size,
            blocks: remains.blocks.clone(),
            table,
            part_open: false,
        });
        half.following.allowed = true;
        half.following.any = true;
        half.following.stage = Stage::Coming;
        Ok(half)
    }

    /// QEMU says that it has all memory.
    pub fn has_all(&mut self) {
        self.following.equal = true;
        // Whoever asks is told.
        self.following.stage = Stage::Told;
    }

    /// Asks QEMU on a new stream what has come, and lets it go on:
    /// [`has_come`](Destination::has_come) takes its answers.
    pub fn ask_what_has_come(&mut self, qemu: &mut Vec<u8>) {
        self.emitter.postcopy_recover(qemu);
    }

    /// QEMU has these pages of a block, one bit each, and not the others.
    pub fn has_come(&mut self, block: &[u8], bitmap: &[u8]) -> Result<(), Fault> {
        let (Some(block), Some(ram)) = (self.emitter.block(block), &self.ram) else {
            return Err(self.out_of_order("what it has of an unknown RAM block"));
        };
        let layout = ram.table.layout();
        for index in 0..layout.pages_of(block) {
            let byte = usize::try_from(index / 8).ok();
            let byte = byte.and_then(|at| bitmap.get(at)).copied().unwrap_or(0);
            if byte >> (index % 8) & 1 == 0
                && let Ok(slot) = u32::try_from(layout.slot(block, index)?)
            {
                self.following.awaited.insert(slot);
            }
        }
        Ok(())
    }

    /// Of what was never sent QEMU may have zeros that nobody has put there: it is to have nothing, so
    /// that it asks when it needs them.
    pub(super) fn discard_what_never_came(&mut self, qemu: &mut Vec<u8>) {
        let Some(ram) = &self.ram else {
            return;
        };
        let slots = (0..ram.table.capacity()).filter(|slot| ram.table.is_absent(*slot));
        let slots = slots.filter_map(|slot| u32::try_from(slot).ok());
        let never: RoaringBitmap = slots
            .filter(|slot| !self.following.awaited.contains(*slot))
            .collect();
        let page_size = ram.page_size as u64;
        for pages in ram.table.layout().page_runs(&never) {
            let ranges = pages.runs.iter().map(|run| bytes_of(*run, page_size));
            self.emitter
                .postcopy_discard(BlockId(pages.block), ranges, qemu);
        }
    }
}

/// Asks for a page, whose number is below 2^32: its slot is.
fn put_needs(block: BlockId, index: u64, peer: &mut Vec<u8>) {
    let first = u32::try_from(index).unwrap_or(u32::MAX);
    let run = PageRun { first, count: 1 };
    let block = block.0;
    put_control(&Message::Needs { block, run }, peer);
}

fn bytes_of(run: PageRun, page_size: u64) -> Range<u64> {
    let first = u64::from(run.first);
    first * page_size..(first + u64::from(run.count)) * page_size
}
