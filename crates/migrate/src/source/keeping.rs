//! What the source half is told about the guest's memory, and what it keeps back in consequence.
//!
//! Whatever is said here decides only when a page travels, pages that the guest declares free
//! twice aside: see [`Source::are_free`].

use guest_proto::Run;
use wire::{Message, put_control};

use super::audit::Audit;
use super::{GuestMemory, KeepBack, Source, SourceAction, SourcePhase, WalkPosition};
use crate::Fault;
use roaring::RoaringBitmap;

use crate::holds::{Group, GroupFigures, Holds, Left, Treatment};

impl Source {
    /// Allows pages to be kept back. Call before QEMU names its RAM blocks.
    pub fn keep_back(&mut self, what: KeepBack) {
        self.keep_back = what;
    }

    /// Whether QEMU has named its RAM blocks. What is told before is lost.
    pub fn knows_memory(&self) -> bool {
        self.memory.is_some()
    }

    /// Pages of all RAM blocks.
    pub fn slots(&self) -> usize {
        let memory = self.memory.as_ref();
        memory.map_or(0, |memory| memory.table.layout().pages())
    }

    /// Bytes in a page; 0 before QEMU has named its RAM blocks.
    pub fn page_size(&self) -> u64 {
        self.page_bytes(1)
    }

    /// How far QEMU's walk is.
    pub fn position(&self) -> WalkPosition {
        let memory = self.memory.as_ref();
        memory.map(super::Memory::position).unwrap_or_default()
    }

    /// Makes a group of these page frames, held from now on. Frames that another group has
    /// already stay with that.
    pub fn hold(&mut self, frames: &[Run]) -> Option<Group> {
        let memory = self.memory.as_mut()?;
        let group = memory.holds.group(Treatment::Held)?;
        for run in frames {
            for slots in memory.map.slots(*run) {
                memory.holds.assign(group, slots);
            }
        }
        Some(group)
    }

    /// Of the group's pages, only these are being written.
    pub fn only_hot(&mut self, group: Group, frames: &[Run]) {
        if let Some(memory) = &mut self.memory {
            let slots = frames.iter().flat_map(|run| memory.map.slots(*run));
            memory.holds.only_hot(group, &slots.collect::<Vec<_>>());
        }
    }

    /// Those of these page frames that are the group's.
    pub(crate) fn of_group(&self, group: Group, frames: &[Run]) -> RoaringBitmap {
        let Some(memory) = &self.memory else {
            return RoaringBitmap::new();
        };
        let slots = frames.iter().flat_map(|run| memory.map.slots(*run));
        memory.holds.of_group(group, slots)
    }

    /// How the group's pages are treated from now on.
    pub fn treat(&mut self, group: Group, treatment: Treatment) {
        self.with_holds(|holds| holds.treat(group, treatment));
    }

    /// Figures of a group.
    pub fn group_figures(&self, group: Group) -> GroupFigures {
        let memory = self.memory.as_ref();
        memory
            .map(|memory| memory.holds.figures(group))
            .unwrap_or_default()
    }

    /// The guest declares page frames free: they are kept back until it does so again.
    pub fn may_be_free(&mut self, frames: &[Run]) {
        if let Some(memory) = &mut self.memory {
            for run in frames {
                for slots in memory.map.slots(*run) {
                    memory.holds.may_be_free(slots);
                }
            }
        }
    }

    /// Call right before the guest is asked for the second time which frames are free.
    pub fn ask_again(&mut self) {
        self.with_holds(Holds::ask_again);
    }

    /// The guest's second answer. A page that it declared free twice, that QEMU sent before the
    /// second question and not again, need not travel: whoever used it after the answer has
    /// written it, and QEMU sends it again. Yields the frames that are left behind.
    pub fn are_free(&mut self, frames: &[Run]) -> Vec<Run> {
        let Some(memory) = &mut self.memory else {
            return Vec::new();
        };
        let slots = frames.iter().flat_map(|run| memory.map.slots(*run));
        let slots: Vec<_> = slots.collect();
        let left = memory.holds.are_free(&slots);
        self.stats.pages_free += left.len() as u64;
        let numbers = left.iter().filter_map(|slot| u32::try_from(*slot).ok());
        memory.left.extend(numbers);
        memory.map.frames(&left)
    }

    /// There will be no second answer: what was declared free travels.
    pub fn none_is_free(&mut self) {
        self.with_holds(Holds::none_is_free);
    }

    /// Whether the link is full. If events come nevertheless, what they bring waits here.
    pub fn link_is_full(&mut self, full: bool) {
        self.with_holds(|holds| holds.link_is_full(full));
    }

    /// At most so many bytes are held from now on.
    pub fn limit_what_is_held(&mut self, bytes: u64) {
        let pages = bytes / self.page_size().max(1);
        let pages = usize::try_from(pages).unwrap_or(usize::MAX);
        self.with_holds(|holds| holds.limit(pages));
    }

    /// Whether another page can be held.
    pub fn has_room(&self) -> bool {
        let memory = self.memory.as_ref();
        memory.is_some_and(|memory| memory.holds.has_room())
    }

    /// Bytes that are held, those that are due included.
    pub fn held_bytes(&self) -> u64 {
        self.page_bytes(self.memory.as_ref().map_or(0, |m| m.holds.held_pages()))
    }

    /// Bytes that are held and wait to be sent.
    pub fn due_bytes(&self) -> u64 {
        self.page_bytes(self.memory.as_ref().map_or(0, |m| m.holds.due_pages()))
    }

    /// What the first walk has still to bring, at most, in bytes.
    pub fn left_of_first_walk(&self) -> Left {
        let Some(memory) = &self.memory else {
            return Left::default();
        };
        let left = memory.holds.pages_from(memory.position().slot);
        Left {
            live: self.page_bytes(left.live),
            held: self.page_bytes(left.held),
        }
    }

    /// The RAM section is over but for what is held: nothing more may be read from QEMU before
    /// [`pump`](Source::pump) has put it all.
    pub fn must_drain(&self) -> bool {
        self.memory.as_ref().is_some_and(|memory| memory.draining)
    }

    /// From now on no copies are made of what is held: it is read from the guest when it goes. That
    /// may be newer than what QEMU sent, and then QEMU sends it again.
    pub fn leave_in_guest(&mut self) {
        self.with_holds(Holds::leave_in_guest);
    }

    /// Puts held pages that are due, until `out` is `full` bytes long; those that have no copy come
    /// from the guest.
    pub fn pump(
        &mut self,
        full: usize,
        guest: &mut dyn GuestMemory,
        out: &mut Vec<u8>,
    ) -> Result<(), Fault> {
        if let Some(memory) = &mut self.memory {
            memory.pump(full, guest, &mut self.stats, out)?;
            self.end_ram_if_drained(out);
            self.say_if_all_is_sent(out);
        }
        Ok(())
    }

    /// After the RAM section: devices follow once nothing is held any more, and what is wanted of
    /// an audit is done.
    pub(super) fn end_ram_if_drained(&mut self, out: &mut Vec<u8>) {
        if let Some(memory) = &mut self.memory
            && memory.draining
            && memory.holds.due_pages() == 0
            && self.audit != Audit::UnderWay
        {
            if self.audit == Audit::Wanted {
                // An audit reads the stopped VM, and so does who sends what follows.
                memory.holds.leave_in_guest();
                memory.holds.drop_copies();
                memory.left |= memory.holds.to_follow();
                self.audit = Audit::UnderWay;
                self.actions.push_back(SourceAction::Audit);
                return;
            }
            memory.draining = false;
            self.tell_what_follows(out);
            put_control(&Message::RamEnd, out);
            self.phase = SourcePhase::Devices;
        }
    }

    pub(super) fn with_holds(&mut self, what: impl FnOnce(&mut Holds)) {
        if let Some(memory) = &mut self.memory {
            what(&mut memory.holds);
        }
    }

    fn page_bytes(&self, pages: u64) -> u64 {
        let memory = self.memory.as_ref();
        memory.map_or(0, |memory| pages * memory.table.page_size() as u64)
    }
}
