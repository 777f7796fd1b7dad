//! Which pages are kept back, and until when.
//!
//! Guest pages belong to *groups*: sets of pages that are treated alike, in practice the memory of
//! one process. What is kept back is decided by the group's [`Treatment`]; when it goes, by QEMU's
//! own walk over its dirty pages: a held page that the walk passes without bringing it again has
//! not been written since it came, for between two visits lies a synchronisation of the bitmap.
//!
//! ```text
//!            arrives                     walk passes it by
//!  Held    ──────────► held (newest) ──────────────────────► due ──► sent (it has cooled)
//!  Stopping ─────────► forwarded
//!  Standing ─────────► forwarded          the same ─────────► due ──► sent (it is final)
//!  Following ────────► held (newest), until the VM runs at the destination
//!  Live     ─────────► forwarded, or kept and due at once if the link is full
//!  free     ──────────► held until a later report ──► still free: dropped, else due
//! ```
//!
//! None of this can lose a page: whatever is held when the RAM section ends is due then.

mod copies;
mod following;

use std::num::NonZeroU32;
use std::ops::Range;

use roaring::RoaringBitmap;

use copies::Copies;
use following::Following;

/// Number of a set of pages that is treated alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Group(u16);

/// Pages that belong to nobody in particular.
const NOBODY: u16 = 0;
/// Pages that the guest has declared free.
const FREE: u16 = GROUP_MASK;
/// The part of a page's class that names its group.
const GROUP_MASK: u16 = 0x0fff;
/// The page is of a group that writes elsewhere: not worth holding on its first arrival.
const COLD: u16 = 0x8000;

/// What happens to the pages of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Treatment {
    /// They are forwarded as they come.
    Live,
    /// They are kept back while they keep changing.
    Held,
    /// They are kept back until the VM runs at the destination, if memory may follow then.
    Following,
    /// Its process has been frozen: what arrives is final. What is held may not be: QEMU has not
    /// synchronised its bitmap since.
    Stopping,
    /// QEMU has: what its walk passes by is final, too.
    Standing,
}

/// Why a page travels: what its bytes are counted under.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    /// Memory that is moved live.
    Live,
    /// Memory of a frozen process.
    Paused,
    /// It was held and has not changed for a whole walk.
    Cooled,
    /// It was held and must go: its group turned live, or the end has come.
    Flushed,
    /// It follows after the switchover.
    Followed,
    /// The VM asks for it there.
    Asked,
}

/// What becomes of a page that arrives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    Forward(Origin),
    /// It is kept back.
    Held,
    /// It goes as soon as the link has room.
    Waits,
}

/// What the first walk has still to bring, at most.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Left {
    /// To be moved live.
    pub live: u64,
    /// To be held.
    pub held: u64,
}

/// Figures of a group.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GroupFigures {
    /// Pages that belong to it.
    pub pages: u64,
    /// Of those, pages that are held now.
    pub held: u64,
}

/// The pages that are held.
#[derive(Debug)]
pub(crate) struct Holds {
    /// For each slot, the group's number and flags. Zeroed lazily, as the page table.
    classes: Vec<u16>,
    copy_of: Vec<Option<NonZeroU32>>,
    groups: Vec<(Treatment, GroupFigures)>,
    copies: Copies,
    held: RoaringBitmap,
    /// Held pages that are to be sent as soon as there is room.
    due: RoaringBitmap,
    /// Where among the due ones sending goes on.
    due_from: u32,
    /// The guest is being asked again what is free: what comes from now on was not looked at.
    asked_again: bool,
    link_is_full: bool,
    /// QEMU has sent its last page.
    over: bool,
    /// Whatever comes is held, whosever it is, but for what stands.
    everything: bool,
    following: Following,
    peak: usize,
}

impl Holds {
    /// For memory of so many slots; at most `limit` pages are held.
    pub(crate) fn new(slots: usize, page_size: usize, limit: usize) -> Self {
        Holds {
            classes: vec![NOBODY; slots],
            copy_of: vec![None; slots],
            groups: Vec::new(),
            copies: Copies::new(page_size, limit),
            held: RoaringBitmap::new(),
            due: RoaringBitmap::new(),
            due_from: 0,
            asked_again: false,
            link_is_full: false,
            over: false,
            everything: false,
            following: Following::default(),
            peak: 0,
        }
    }

    /// Bytes in a page.
    pub(crate) fn page_size(&self) -> usize {
        self.copies.page_size()
    }

    /// At most so many pages are held from now on.
    pub(crate) fn limit(&mut self, pages: usize) {
        self.copies.limit(pages);
    }

    /// No more copies are made: what is held is read from the guest when it goes.
    pub(crate) fn leave_in_guest(&mut self) {
        self.copies.leave_in_guest();
    }

    /// A new group, without pages; nothing if there are too many.
    pub(crate) fn group(&mut self, treatment: Treatment) -> Option<Group> {
        let number = u16::try_from(self.groups.len() + 1).ok();
        let number = number.filter(|number| *number < FREE)?;
        self.groups.push((treatment, GroupFigures::default()));
        Some(Group(number))
    }

    /// These pages are the group's, unless they have been given to another already.
    pub(crate) fn assign(&mut self, group: Group, slots: Range<usize>) {
        let mut taken = 0;
        for class in self.classes.get_mut(slots).unwrap_or_default() {
            if *class == NOBODY {
                *class = group.0;
                taken += 1;
            }
        }
        if let Some((_, figures)) = self.groups.get_mut(usize::from(group.0) - 1) {
            figures.pages += taken;
        }
    }

    /// Of the group's pages only these are being written: the others are not held when they come
    /// for the first time, and go if they are held.
    pub(crate) fn only_hot(&mut self, group: Group, hot: &[Range<usize>]) {
        let mut warm = RoaringBitmap::new();
        for range in hot {
            if let (Some(first), Some(end)) = (number(range.start), number(range.end)) {
                warm.insert_range(first..end);
            }
        }
        for (slot, class) in (0u32..).zip(&mut self.classes) {
            if *class == group.0 && !warm.contains(slot) {
                *class |= COLD;
                if self.held.contains(slot) && !self.over {
                    self.due.insert(slot);
                }
            }
        }
    }

    /// Those of these slots that are the group's.
    pub(crate) fn of_group(
        &self,
        group: Group,
        slots: impl Iterator<Item = Range<usize>>,
    ) -> RoaringBitmap {
        let is_its = |slot: &usize| {
            let class = self.classes.get(*slot);
            class.is_some_and(|class| class & !COLD == group.0)
        };
        let its = slots.flatten().filter(is_its);
        its.filter_map(number).collect()
    }

    /// How the group's pages are treated from now on.
    pub(crate) fn treat(&mut self, group: Group, treatment: Treatment) {
        if let Some((now, _)) = self.groups.get_mut(usize::from(group.0) - 1) {
            *now = treatment;
        }
        if treatment == Treatment::Live && !self.over {
            let classes = &self.classes;
            let of_group = |slot: &u32| group_of(classes, *slot) == group.0;
            self.due.extend(self.held.iter().filter(of_group));
        }
        if treatment == Treatment::Following && !self.over {
            self.follow_from_now_on(group);
        }
    }

    /// Figures of a group.
    pub(crate) fn figures(&self, group: Group) -> GroupFigures {
        let found = self.groups.get(usize::from(group.0) - 1);
        found.map(|(_, figures)| *figures).unwrap_or_default()
    }

    /// The guest says that nobody uses these pages: they are kept back until it says so again,
    /// those included that wait for the link already.
    pub(crate) fn may_be_free(&mut self, slots: Range<usize>) {
        if self.over {
            return;
        }
        if let (Some(first), Some(end)) = (number(slots.start), number(slots.end)) {
            let classes = &self.classes;
            let nobodys = |slot: &u32| group_of(classes, *slot) == NOBODY;
            let waiting: Vec<u32> = self.due.range(first..end).filter(nobodys).collect();
            self.due -= RoaringBitmap::from_iter(waiting);
        }
        for class in self.classes.get_mut(slots).unwrap_or_default() {
            if *class == NOBODY {
                *class = FREE;
            }
        }
    }

    /// The guest is asked again what is free. Its answer says nothing of a page that comes from
    /// now on: it may have been used, and read by QEMU, after the guest looked.
    pub(crate) fn ask_again(&mut self) {
        self.asked_again = true;
    }

    /// The answer: of the pages that came before the question and had been declared free, these
    /// still are. They need not travel: yields them. The others go, and no page is kept back as
    /// free any more.
    pub(crate) fn are_free(&mut self, slots: &[Range<usize>]) -> Vec<usize> {
        let mut dropped = Vec::new();
        if self.over {
            // It is settled what becomes of each page.
            return dropped;
        }
        for range in slots {
            let (Some(first), Some(end)) = (number(range.start), number(range.end)) else {
                continue;
            };
            let held: Vec<u32> = self.held.range(first..end).collect();
            for slot in held {
                if group_of(&self.classes, slot) == FREE {
                    self.release(slot);
                    dropped.push(slot as usize);
                }
            }
        }
        self.none_is_free();
        dropped
    }

    /// Nothing is known of free pages any more: what is kept back as free goes.
    pub(crate) fn none_is_free(&mut self) {
        if self.over {
            return;
        }
        let classes = &self.classes;
        let free = |slot: &u32| group_of(classes, *slot) == FREE;
        self.due.extend(self.held.iter().filter(free));
        for class in &mut self.classes {
            if *class == FREE {
                *class = NOBODY;
            }
        }
    }

    /// Whether the link is full: then a page that would be forwarded waits here, where a newer
    /// content can still replace it.
    pub(crate) fn link_is_full(&mut self, full: bool) {
        self.link_is_full = full;
    }

    /// A page comes from QEMU. If it is held or waits, `content` has been copied; if it is
    /// forwarded, no older copy is left. A page of zeros (no content) is never worth holding.
    #[inline]
    pub(crate) fn arrive(&mut self, slot: usize, content: Option<&[u8]>, first_walk: bool) -> Fate {
        let class = self.classes[slot];
        let is_live = class == NOBODY && !self.everything;
        if is_live && self.copy_of[slot].is_none() && !self.link_is_full {
            return Fate::Forward(Origin::Live);
        }
        self.arrive_in_group(slot, class, content, first_walk)
    }

    fn arrive_in_group(
        &mut self,
        slot: usize,
        class: u16,
        content: Option<&[u8]>,
        first_walk: bool,
    ) -> Fate {
        let Some(number) = number(slot) else {
            return Fate::Forward(Origin::Live);
        };
        let treatment = self.treatment(class);
        let cold = class & COLD != 0;
        if cold {
            // Once is what it gets: if it comes again, it is written after all.
            self.classes[slot] &= !COLD;
        }
        let hold = match treatment {
            Some(Treatment::Held | Treatment::Following) => !(cold && first_walk),
            Some(Treatment::Stopping | Treatment::Standing) => false,
            Some(Treatment::Live) => self.everything,
            None => self.everything || (class == FREE && !self.asked_again),
        };
        if class == FREE && self.asked_again {
            self.classes[slot] = NOBODY;
        }
        if let Some(content) = content
            && (hold || self.link_is_full)
            && self.keep(number, class, content)
        {
            if hold {
                self.due.remove(number);
                self.following.comes_again(number);
                return Fate::Held;
            }
            self.due.insert(number);
            return Fate::Waits;
        }
        self.release(number);
        Fate::Forward(match treatment {
            Some(Treatment::Stopping | Treatment::Standing) => Origin::Paused,
            _ => Origin::Live,
        })
    }

    /// Copies a page, instead of an older copy if there is one. There may be no room: then it is
    /// forwarded. (All that is held came in the present walk or the one before: nothing is known
    /// to be colder than this.)
    fn keep(&mut self, slot: u32, class: u16, content: &[u8]) -> bool {
        let Some(place) = self.copy_of.get_mut(slot as usize) else {
            return false;
        };
        if let Some(copy) = *place {
            self.copies.replace(copy, content);
            return true;
        }
        *place = self.copies.keep(content);
        if place.is_none() {
            return false;
        }
        self.held.insert(slot);
        self.count(class, 1);
        self.peak = self.peak.max(self.copies.count());
        true
    }

    /// QEMU's walk has passed these slots without bringing a page: what is held of them has not
    /// changed since it came.
    pub(crate) fn passed(&mut self, slots: Range<usize>) {
        let (Some(first), Some(end)) = (number(slots.start), number(slots.end)) else {
            return;
        };
        if first >= end || self.held.is_empty() {
            return;
        }
        // A free page waits for the guest's word instead.
        let cooled = |slot: &u32| {
            let class = self.classes.get(*slot as usize).copied().unwrap_or(NOBODY);
            class & GROUP_MASK != FREE && self.treatment(class) != Some(Treatment::Stopping)
        };
        let passed: Vec<u32> = self.held.range(first..end).filter(cooled).collect();
        for slot in passed {
            match self.follows_anyway(slot) {
                true => self.following.cools(slot),
                false => {
                    self.due.insert(slot);
                }
            }
        }
    }

    /// QEMU has sent its last page: everything must go.
    pub(crate) fn all_due(&mut self) {
        self.over = true;
        self.due = self.held.clone();
    }

    /// Held pages that wait to be sent.
    pub(crate) fn due_pages(&self) -> u64 {
        match self.following.has_begun() {
            true => self.may_go(),
            false => self.due.len(),
        }
    }

    /// Pages held, those that are due included.
    pub(crate) fn held_pages(&self) -> u64 {
        self.copies.count() as u64
    }

    /// Whether another page can be held.
    pub(crate) fn has_room(&self) -> bool {
        !self.copies.is_full()
    }

    /// Most pages held at once so far.
    pub(crate) fn peak_pages(&self) -> u64 {
        self.peak as u64
    }

    /// The next page that is due, in ascending order from the last one on, and why it travels.
    /// Send [`content`](Holds::content), then [`release`](Holds::release) it.
    pub(crate) fn next_due(&mut self) -> Option<(usize, Origin)> {
        if self.following.has_begun() {
            return self.next_to_follow();
        }
        let slot = self
            .due
            .range(self.due_from..)
            .next()
            .or_else(|| self.due.min())?;
        self.due_from = slot.saturating_add(1);
        let class = self.classes.get(slot as usize).copied().unwrap_or(NOBODY);
        let origin = match self.treatment(class) {
            Some(Treatment::Stopping | Treatment::Standing) => Origin::Paused,
            Some(Treatment::Held | Treatment::Following) => Origin::Cooled,
            Some(Treatment::Live) => Origin::Flushed,
            None => Origin::Live,
        };
        Some((slot as usize, origin))
    }

    /// The copy of a held page; nothing if it is to be read from the guest.
    pub(crate) fn content(&self, slot: usize) -> Option<&[u8]> {
        let copy = self.copy_of.get(slot).copied().flatten()?;
        self.copies.content(copy)
    }

    /// From this slot on, so many pages are due one after the other, at most `limit`.
    pub(crate) fn due_in_a_row(&self, slot: usize, limit: usize) -> usize {
        let due = |slot: usize| number(slot).is_some_and(|slot| self.due.contains(slot));
        (slot..slot + limit).take_while(|slot| due(*slot)).count()
    }

    /// A held page is not held any more.
    pub(crate) fn release(&mut self, slot: u32) {
        let place = self.copy_of.get_mut(slot as usize);
        if let Some(copy) = place.and_then(Option::take) {
            self.copies.drop(copy);
            self.held.remove(slot);
            self.due.remove(slot);
            self.following.release(slot);
            let class = self.classes.get(slot as usize).copied();
            self.count(class.unwrap_or(NOBODY), -1);
        }
    }

    /// Pages from this slot on that will be moved live, and those that will be held, if the walk
    /// is the first: at most.
    pub(crate) fn pages_from(&self, slot: usize) -> Left {
        let mut left = Left::default();
        for class in self.classes.get(slot..).unwrap_or_default() {
            match self.treatment(*class) {
                _ if *class == FREE => {}
                Some(Treatment::Held | Treatment::Following) if class & COLD == 0 => {
                    left.held += 1;
                }
                _ => left.live += 1,
            }
        }
        left
    }

    fn treatment(&self, class: u16) -> Option<Treatment> {
        let number = usize::from(class & GROUP_MASK).checked_sub(1)?;
        self.groups.get(number).map(|(treatment, _)| *treatment)
    }

    fn count(&mut self, class: u16, change: i64) {
        let number = usize::from(class & GROUP_MASK).checked_sub(1);
        if let Some((_, figures)) = number.and_then(|number| self.groups.get_mut(number)) {
            figures.held = figures.held.saturating_add_signed(change);
        }
    }
}

fn group_of(classes: &[u16], slot: u32) -> u16 {
    classes.get(slot as usize).copied().unwrap_or(NOBODY) & GROUP_MASK
}

/// Slots beyond 16 TiB of memory are never held.
fn number(slot: usize) -> Option<u32> {
    u32::try_from(slot).ok()
}

#[cfg(test)]
#[expect(
    clippy::single_range_in_vec_init,
    reason = "one piece is what is meant"
)]
mod tests {
    use super::*;

    const PAGE: usize = 8;

    fn holds() -> Holds {
        Holds::new(100, PAGE, 1000)
    }

    fn arrive(holds: &mut Holds, slot: usize, fill: u8) -> Fate {
        holds.arrive(slot, Some(&[fill; PAGE]), true)
    }

    /// Sends all that is due.
    fn sent(holds: &mut Holds) -> Vec<(usize, u8, Origin)> {
        let mut sent = Vec::new();
        while let Some((slot, origin)) = holds.next_due() {
            sent.push((slot, holds.content(slot).unwrap()[0], origin));
            holds.release(number(slot).unwrap());
        }
        sent
    }

    #[test]
    fn the_newest_copy_is_kept_and_goes_when_the_walk_passes_it_by() {
        let mut holds = holds();
        let group = holds.group(Treatment::Held).unwrap();
        holds.assign(group, 10..20);
        assert_eq!(arrive(&mut holds, 9, 1), Fate::Forward(Origin::Live));
        for fill in [1, 2] {
            assert_eq!(arrive(&mut holds, 10, fill), Fate::Held);
            assert_eq!(arrive(&mut holds, 11, fill), Fate::Held);
        }
        assert_eq!(holds.figures(group), GroupFigures { pages: 10, held: 2 });
        holds.passed(0..11);
        assert_eq!(sent(&mut holds), [(10, 2, Origin::Cooled)]);
        assert_eq!(holds.held_pages(), 1);
        holds.all_due();
        assert_eq!(sent(&mut holds), [(11, 2, Origin::Cooled)]);
        assert_eq!((holds.held_pages(), holds.peak_pages()), (0, 2));
    }

    #[test]
    fn what_comes_again_is_not_due_any_more() {
        let mut holds = holds();
        let group = holds.group(Treatment::Held).unwrap();
        holds.assign(group, 0..5);
        arrive(&mut holds, 3, 1);
        holds.passed(0..5);
        arrive(&mut holds, 3, 2);
        assert_eq!(holds.due_pages(), 0);
        assert_eq!(holds.content(3), Some(&[2; PAGE][..]));
    }

    #[test]
    fn a_group_that_stands_or_turns_live_is_forwarded() {
        let mut holds = holds();
        let [one, other] = [(); 2].map(|()| holds.group(Treatment::Held).unwrap());
        holds.assign(one, 0..5);
        holds.assign(other, 3..8);
        for slot in 0..8 {
            arrive(&mut holds, slot, 1);
        }
        holds.treat(one, Treatment::Stopping);
        assert_eq!(arrive(&mut holds, 0, 2), Fate::Forward(Origin::Paused));
        // It may have been written after QEMU's last look.
        holds.passed(0..2);
        assert_eq!(holds.due_pages(), 0);
        holds.treat(one, Treatment::Standing);
        holds.passed(0..2);
        assert_eq!(sent(&mut holds), [(1, 1, Origin::Paused)]);
        holds.treat(other, Treatment::Live);
        // Page 3 and 4 were the first group's already.
        let flushed = [5, 6, 7].map(|slot| (slot, 1, Origin::Flushed));
        assert_eq!(sent(&mut holds), flushed);
        assert_eq!(arrive(&mut holds, 6, 3), Fate::Forward(Origin::Live));
        assert_eq!(holds.figures(one).held, 3);
    }

    #[test]
    fn cold_pages_are_held_from_their_second_arrival_on() {
        let mut holds = holds();
        let group = holds.group(Treatment::Held).unwrap();
        holds.assign(group, 0..4);
        arrive(&mut holds, 0, 1);
        holds.only_hot(group, &[2..3]);
        assert_eq!(sent(&mut holds), [(0, 1, Origin::Cooled)]);
        assert_eq!(arrive(&mut holds, 1, 1), Fate::Forward(Origin::Live));
        assert_eq!(arrive(&mut holds, 2, 1), Fate::Held);
        assert_eq!(holds.arrive(1, Some(&[2; PAGE]), false), Fate::Held);
    }

    #[test]
    fn free_pages_wait_for_the_second_word() {
        let mut holds = holds();
        holds.may_be_free(0..10);
        for slot in 0..4 {
            assert_eq!(arrive(&mut holds, slot, 1), Fate::Held);
        }
        holds.passed(0..10);
        assert_eq!(holds.due_pages(), 0);
        holds.ask_again();
        // These come too late to be covered by the answer.
        assert_eq!(arrive(&mut holds, 3, 2), Fate::Forward(Origin::Live));
        assert_eq!(arrive(&mut holds, 4, 2), Fate::Forward(Origin::Live));
        assert_eq!(holds.are_free(&[2..3, 3..50]).len(), 1);
        let flushed = [0, 1].map(|slot| (slot, 1, Origin::Live));
        assert_eq!(sent(&mut holds), flushed);
        assert_eq!(arrive(&mut holds, 5, 1), Fate::Forward(Origin::Live));
    }

    #[test]
    fn a_live_page_waits_for_a_full_link_and_goes_in_its_newest_content() {
        let mut holds = holds();
        holds.link_is_full(true);
        assert_eq!(arrive(&mut holds, 7, 1), Fate::Waits);
        assert_eq!(arrive(&mut holds, 7, 2), Fate::Waits);
        assert_eq!(arrive(&mut holds, 8, 1), Fate::Waits);
        holds.link_is_full(false);
        // What comes now overtakes what waits.
        assert_eq!(arrive(&mut holds, 8, 2), Fate::Forward(Origin::Live));
        assert_eq!(sent(&mut holds), [(7, 2, Origin::Live)]);
        assert_eq!(holds.held_pages(), 0);
    }

    #[test]
    fn a_free_page_that_waits_already_is_kept_back() {
        let mut holds = holds();
        holds.link_is_full(true);
        for slot in 0..3 {
            assert_eq!(arrive(&mut holds, slot, 1), Fate::Waits);
        }
        holds.may_be_free(1..3);
        assert_eq!(sent(&mut holds), [(0, 1, Origin::Live)]);
        holds.link_is_full(false);
        holds.ask_again();
        assert_eq!(holds.are_free(&[2..3]), [2]);
        assert_eq!(sent(&mut holds), [(1, 1, Origin::Live)]);
    }

    #[test]
    fn in_the_end_nothing_is_kept_back_any_more() {
        let mut holds = holds();
        holds.link_is_full(true);
        arrive(&mut holds, 1, 1);
        holds.all_due();
        holds.may_be_free(0..5);
        assert_eq!(sent(&mut holds), [(1, 1, Origin::Live)]);
    }

    #[test]
    fn a_page_of_zeros_is_forwarded_and_replaces_what_is_held() {
        let mut holds = holds();
        let group = holds.group(Treatment::Held).unwrap();
        holds.assign(group, 0..5);
        arrive(&mut holds, 1, 7);
        assert_eq!(holds.arrive(1, None, false), Fate::Forward(Origin::Live));
        assert_eq!(holds.held_pages(), 0);
    }

    #[test]
    fn beyond_the_limit_pages_are_forwarded() {
        let mut holds = Holds::new(100, PAGE, 2);
        let group = holds.group(Treatment::Held).unwrap();
        holds.assign(group, 0..100);
        for slot in 0..5 {
            let fate = arrive(&mut holds, slot, 1);
            assert_eq!(fate == Fate::Held, slot < 2, "{slot}");
        }
        assert_eq!(arrive(&mut holds, 1, 2), Fate::Held);
        holds.limit(3);
        assert_eq!(arrive(&mut holds, 7, 1), Fate::Held);
        assert_eq!(arrive(&mut holds, 8, 1), Fate::Forward(Origin::Live));
    }
}
