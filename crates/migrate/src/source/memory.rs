//! The pages of the source half: what is sent, what is kept back, what need not travel.

use std::ops::Range;

use qemu_stream::{BlockId, RamBlock};
use roaring::RoaringBitmap;
use wire::{BatchWriter, Message, put_control};

use super::SourceStats;
use crate::guest_map::{GuestMap, MappedRam};
use crate::holds::{Fate, Holds, Origin};
use crate::layout::Layout;
use crate::{Change, Fault, PageTable, TableError};

/// Pages that are read from the guest at once.
const READ_AHEAD: usize = 64;

/// The memory of the VM, as it is now. While it runs, a page may be torn: then QEMU sends it again.
pub trait GuestMemory {
    /// Fills `pages` with pages of a block, of which the first has this index; says why it cannot.
    fn read(&mut self, block: BlockId, first: u64, pages: &mut [u8]) -> Result<(), String>;
}

/// Of which nothing can be read: what is held has been copied.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoGuestMemory;

impl GuestMemory for NoGuestMemory {
    fn read(&mut self, _: BlockId, _: u64, _: &mut [u8]) -> Result<(), String> {
        Err("nobody knows where it is".into())
    }
}

/// What the source half may keep back.
#[derive(Debug, Clone, Default)]
pub struct KeepBack {
    /// Most bytes of pages that are held at once.
    pub limit: u64,
    /// Where the guest's page frames are.
    pub ram: Vec<MappedRam>,
}

/// How far QEMU's walk over its dirty pages is. The pages of all blocks are numbered through in
/// the order of the walk; these numbers are slots.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct WalkPosition {
    /// Number of the walk, from 1 on.
    pub walk: u32,
    /// The next slot.
    pub slot: usize,
}

/// Present from the block list on.
#[derive(Debug)]
pub(super) struct Memory {
    pub(super) table: PageTable,
    pub(super) batch: BatchWriter,
    pub(super) holds: Holds,
    pub(super) map: GuestMap,
    page_size: u64,
    position: WalkPosition,
    /// Pages that need not travel, by their slots.
    pub(super) left: RoaringBitmap,
    /// Within SECTION_END.
    pub(super) ending: bool,
    /// The RAM section is over but for what is held.
    pub(super) draining: bool,
}

impl Memory {
    pub(super) fn new(table: PageTable, keep_back: &KeepBack, blocks: &[RamBlock]) -> Self {
        let page_size = table.page_size();
        let slots = table.layout().pages();
        let limit = usize::try_from(keep_back.limit).unwrap_or(usize::MAX) / page_size;
        Memory {
            batch: BatchWriter::new(page_size),
            holds: Holds::new(slots, page_size, limit),
            map: GuestMap::new(&keep_back.ram, blocks, table.layout(), page_size as u64),
            page_size: page_size as u64,
            position: WalkPosition { walk: 1, slot: 0 },
            left: RoaringBitmap::new(),
            ending: false,
            draining: false,
            table,
        }
    }

    pub(super) fn position(&self) -> WalkPosition {
        self.position
    }

    /// A page from QEMU; no content means zeros.
    #[inline]
    pub(super) fn arrive(
        &mut self,
        block: BlockId,
        offset: u64,
        content: Option<&[u8]>,
        stats: &mut SourceStats,
        out: &mut Vec<u8>,
    ) -> Result<(), Fault> {
        let index = offset / self.page_size;
        let slot = self.table.layout().slot(block, index)?;
        let index = u32::try_from(index).map_err(|_| TableError::NoSuchPage {
            block: block.0,
            index,
        })?;
        if slot != self.position.slot {
            self.step(slot, stats, out);
        }
        self.position.slot = slot + 1;
        if !self.left.is_empty()
            && let Ok(slot) = u32::try_from(slot)
        {
            // It is used after all.
            self.left.remove(slot);
        }
        let paused = match self.holds.arrive(slot, content, self.position.walk == 1) {
            Fate::Held => {
                stats.held_arrivals += 1;
                return Ok(());
            }
            Fate::Waits => {
                stats.live_pages += 1;
                return Ok(());
            }
            Fate::Forward(origin) => origin == Origin::Paused,
        };
        stats.live_pages += u64::from(content.is_some() && !paused);
        let place = (block, index);
        let sent = forward(
            &mut self.table,
            &mut self.batch,
            slot,
            place,
            content,
            stats,
            out,
        );
        stats.pages_paused += u64::from(sent && paused);
        Ok(())
    }

    /// The destination gets what a page holds.
    pub(super) fn repair(
        &mut self,
        block: BlockId,
        index: u64,
        content: &[u8],
        stats: &mut SourceStats,
        out: &mut Vec<u8>,
    ) -> Result<(), TableError> {
        let slot = self.table.layout().slot(block, index)?;
        let no_such_page = |_| TableError::NoSuchPage {
            block: block.0,
            index,
        };
        let place = (block, u32::try_from(index).map_err(no_such_page)?);
        let content = unless_zeros(content);
        forward(
            &mut self.table,
            &mut self.batch,
            slot,
            place,
            content,
            stats,
            out,
        );
        Ok(())
    }

    /// QEMU has left pages out, or begun another walk.
    fn step(&mut self, slot: usize, stats: &mut SourceStats, out: &mut Vec<u8>) {
        let from = self.position.slot;
        if slot < from {
            self.batch.flush(out);
            put_control(&Message::PassEnd(self.position.walk), out);
            self.position.walk += 1;
            stats.walks = self.position.walk;
            self.holds.passed(from..self.table.layout().pages());
            self.holds.passed(0..slot);
        } else {
            self.holds.passed(from..slot);
        }
    }

    /// Puts held pages that are due, until `out` is `full` bytes long.
    pub(super) fn pump(
        &mut self,
        full: usize,
        guest: &mut dyn GuestMemory,
        stats: &mut SourceStats,
        out: &mut Vec<u8>,
    ) -> Result<(), Fault> {
        // What is read ahead is as good as new, for nothing arrives meanwhile.
        let mut ahead = Ahead::default();
        while out.len() < full
            && let Some((slot, origin)) = self.holds.next_due()
        {
            let content = match self.holds.content(slot) {
                Some(copy) => copy,
                None => {
                    if !ahead.slots.contains(&slot) {
                        let room = (full - out.len()) / self.table.page_size() + 1;
                        ahead.read(slot, room, &self.holds, self.table.layout(), guest)?;
                    }
                    ahead.page(slot, self.table.page_size())
                }
            };
            let (block, index) = self.table.layout().place(slot);
            // Held pages have slots below 2^32.
            let index = u32::try_from(index).unwrap_or(u32::MAX);
            // It was not zeros when it came, but may be now.
            let content = unless_zeros(content);
            let place = (block, index);
            if forward(
                &mut self.table,
                &mut self.batch,
                slot,
                place,
                content,
                stats,
                out,
            ) {
                match origin {
                    Origin::Live => {}
                    Origin::Paused => stats.pages_paused += 1,
                    Origin::Cooled => stats.pages_cooled += 1,
                    Origin::Flushed => stats.pages_flushed += 1,
                    Origin::Followed => stats.pages_followed += 1,
                    Origin::Asked => stats.pages_asked += 1,
                }
            }
            self.holds.release(u32::try_from(slot).unwrap_or(u32::MAX));
        }
        stats.held_peak_pages = self.holds.peak_pages();
        Ok(())
    }
}

/// Sends a page, unless the destination has it; no content means zeros. Tells whether its content
/// was sent.
#[inline]
fn forward(
    table: &mut PageTable,
    batch: &mut BatchWriter,
    slot: usize,
    (block, index): (BlockId, u32),
    content: Option<&[u8]>,
    stats: &mut SourceStats,
    out: &mut Vec<u8>,
) -> bool {
    let change = match content {
        Some(content) => table.put_at(slot, content),
        None => table.put_zero_at(slot),
    };
    match (change, content) {
        (Change::Same, _) => stats.pages_dropped += 1,
        (Change::Changed, Some(content)) => {
            batch.page(block.0, index, content, out);
            stats.pages_sent += 1;
            return true;
        }
        (Change::Changed, None) => {
            batch.zero(block.0, index, out);
            stats.pages_zero += 1;
        }
    }
    false
}

/// Nothing if it is all zeros.
fn unless_zeros(content: &[u8]) -> Option<&[u8]> {
    content.iter().any(|byte| *byte != 0).then_some(content)
}

/// Held pages that have been read from the guest.
#[derive(Default)]
struct Ahead {
    slots: Range<usize>,
    bytes: Vec<u8>,
}

impl Ahead {
    /// Reads the page of this slot, and those after it that are due as well.
    fn read(
        &mut self,
        slot: usize,
        room: usize,
        holds: &Holds,
        layout: &Layout,
        guest: &mut dyn GuestMemory,
    ) -> Result<(), Fault> {
        let (block, index) = layout.place(slot);
        let in_block = usize::try_from(layout.pages_of(block) - index).unwrap_or(usize::MAX);
        let most = room.min(READ_AHEAD).min(in_block);
        let count = holds.due_in_a_row(slot, most).max(1);
        self.bytes.resize(count * holds.page_size(), 0);
        guest
            .read(block, index, &mut self.bytes)
            .map_err(Fault::GuestMemory)?;
        self.slots = slot..slot + count;
        Ok(())
    }

    fn page(&self, slot: usize, size: usize) -> &[u8] {
        let at = (slot - self.slots.start) * size;
        &self.bytes[at..at + size]
    }
}
