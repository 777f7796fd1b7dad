//! Held pages that follow after the switchover.
//!
//! ```text
//!                       QEMU's last page          commit
//!  held, written lately ───────► follows first ───────► sent ◄── at once, if the VM asks for it
//!  held, passed by      ───────► follows then  ───────► sent
//!  waits for the link   ───────► goes before
//! ```

use std::collections::VecDeque;
use std::ops::Range;

use roaring::RoaringBitmap;

use super::{Group, Holds, NOBODY, Origin, Treatment, group_of};

/// What follows.
#[derive(Debug, Default)]
pub(super) struct Following {
    /// What will be, once the VM runs at the destination.
    hot: RoaringBitmap,
    /// What QEMU's walk has passed by: the last to go.
    cool: RoaringBitmap,
    stage: Stage,
    asked: VecDeque<u32>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Stage {
    #[default]
    Before,
    UnderWay,
    /// The destination is to say first what it has not got.
    Interrupted,
}

impl Following {
    /// QEMU's walk has passed it by.
    pub(super) fn cools(&mut self, slot: u32) {
        self.cool.insert(slot);
    }

    /// QEMU has brought it again.
    pub(super) fn comes_again(&mut self, slot: u32) {
        self.cool.remove(slot);
    }

    /// The page is not held any more.
    pub(super) fn release(&mut self, slot: u32) {
        self.cool.remove(slot);
    }

    pub(super) fn has_begun(&self) -> bool {
        self.stage != Stage::Before
    }
}

impl Holds {
    /// From now on everything that comes is held, whosever it is, but for what stands.
    pub(crate) fn hold_everything(&mut self) {
        self.everything = true;
    }

    /// QEMU has sent its last page. What was to be moved live, or stands, must go; the rest can
    /// follow.
    pub(crate) fn rest_follows(&mut self) {
        self.over = true;
        let must_go: RoaringBitmap = self
            .held
            .iter()
            .filter(|slot| self.must_go(*slot))
            .collect();
        let rest = &self.held - &must_go;
        self.following.cool |= &self.due;
        self.following.cool &= &rest;
        self.following.hot = rest - &self.following.cool;
        self.due = must_go;
    }

    /// Whether the page is not worth sending before: it follows, or goes when it must.
    pub(super) fn follows_anyway(&self, slot: u32) -> bool {
        let class = group_of(&self.classes, slot);
        match self.treatment(class) {
            Some(Treatment::Following) => true,
            Some(Treatment::Stopping | Treatment::Standing) => false,
            _ => self.everything,
        }
    }

    /// What has cooled of the group follows, too.
    pub(super) fn follow_from_now_on(&mut self, group: Group) {
        let of_group = |slot: &u32| group_of(&self.classes, *slot) == group.0;
        let cooled: RoaringBitmap = self.due.iter().filter(of_group).collect();
        self.due -= &cooled;
        self.following.cool |= cooled;
    }

    fn must_go(&self, slot: u32) -> bool {
        let class = group_of(&self.classes, slot);
        match self.treatment(class) {
            Some(Treatment::Stopping | Treatment::Standing) => true,
            _ if self.everything => false,
            Some(Treatment::Held | Treatment::Following) => false,
            Some(Treatment::Live) => true,
            // What was declared free waits for nothing but the guest's word.
            None => class == NOBODY,
        }
    }

    /// What follows is read from the guest, which has stopped, even if there are copies.
    pub(crate) fn drop_copies(&mut self) {
        for slot in self.to_follow() {
            if let Some(place) = self.copy_of.get_mut(slot as usize)
                && let Some(copy) = place.take()
            {
                self.copies.drop(copy);
                *place = self.copies.stays_in_guest();
            }
        }
    }

    /// What follows.
    pub(crate) fn to_follow(&self) -> RoaringBitmap {
        &self.following.hot | &self.following.cool
    }

    /// The VM runs at the destination, or will: what is to follow is due.
    pub(crate) fn let_follow(&mut self) {
        self.following.stage = Stage::UnderWay;
        self.due = std::mem::take(&mut self.following.hot);
        self.due_from = 0;
    }

    /// Nothing goes until it is known what the destination has.
    pub(crate) fn interrupt(&mut self) {
        self.following.stage = Stage::Interrupted;
    }

    /// Pages that follow and may go.
    pub(super) fn may_go(&self) -> u64 {
        match self.following.stage {
            Stage::UnderWay => self.due.len() + self.following.cool.len(),
            Stage::Before | Stage::Interrupted => 0,
        }
    }

    /// The VM waits for these pages.
    pub(crate) fn ask_for(&mut self, slots: Range<u32>) {
        let held = slots.filter(|slot| self.held.contains(*slot));
        // Who asks for all of it again and again gets all of it, once.
        let room = self
            .held
            .len()
            .saturating_sub(self.following.asked.len() as u64);
        let room = usize::try_from(room).unwrap_or(usize::MAX);
        self.following.asked.extend(held.take(room));
    }

    /// Exactly these pages are to follow: what of them is not held is read from the guest. Tells
    /// whether that is possible.
    pub(crate) fn follow_with(&mut self, slots: &RoaringBitmap) -> bool {
        let arrived = &self.held - slots;
        for slot in arrived {
            self.release(slot);
        }
        let lost = slots - &self.held;
        for slot in &lost {
            let Some(place) = self.copy_of.get_mut(slot as usize) else {
                return false;
            };
            *place = self.copies.stays_in_guest();
            if place.is_none() {
                return false;
            }
            self.held.insert(slot);
        }
        self.following = Following {
            stage: Stage::UnderWay,
            ..Following::default()
        };
        self.due = slots.clone();
        self.due_from = 0;
        true
    }

    /// First what the VM asks for; from there on in ascending order, which is what it is likely to
    /// ask for next; what has long not been written last.
    pub(super) fn next_to_follow(&mut self) -> Option<(usize, Origin)> {
        if self.following.stage == Stage::Interrupted {
            return None;
        }
        while let Some(slot) = self.following.asked.pop_front() {
            if self.held.contains(slot) {
                self.due_from = slot.saturating_add(1);
                return Some((slot as usize, Origin::Asked));
            }
        }
        if self.due.is_empty() {
            self.due = std::mem::take(&mut self.following.cool);
        }
        let after = self.due.range(self.due_from..).next();
        let slot = after.or_else(|| self.due.min())?;
        self.due_from = slot.saturating_add(1);
        Some((slot as usize, Origin::Followed))
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Fate, number};
    use super::*;

    const PAGE: usize = 8;

    fn holds() -> Holds {
        Holds::new(100, PAGE, 1000)
    }

    fn sent(holds: &mut Holds) -> Vec<(usize, Origin)> {
        std::iter::from_fn(|| {
            let next = holds.next_due();
            if let Some((slot, _)) = next {
                holds.release(u32::try_from(slot).unwrap());
            }
            next
        })
        .collect()
    }

    fn arrive(holds: &mut Holds, slot: usize) -> Fate {
        holds.arrive(slot, Some(&[1; PAGE]), false)
    }

    #[test]
    fn what_is_moved_live_goes_before_and_the_hot_pages_follow_first() {
        let mut holds = holds();
        let group = holds.group(Treatment::Held).unwrap();
        holds.assign(group, 10..20);
        for slot in [12, 13, 11, 10] {
            arrive(&mut holds, slot);
        }
        // They have cooled: page 10 before it was known that they follow.
        holds.passed(10..11);
        holds.treat(group, Treatment::Following);
        holds.passed(11..13);
        assert_eq!(holds.due_pages(), 0);
        // But for this one.
        arrive(&mut holds, 12);
        holds.link_is_full(true);
        assert_eq!(arrive(&mut holds, 5), Fate::Waits);
        holds.rest_follows();
        assert_eq!(sent(&mut holds), [(5, Origin::Live)]);
        assert_eq!(holds.to_follow(), (10..14).collect());
        assert_eq!((holds.due_pages(), holds.held_pages()), (0, 4));
        holds.let_follow();
        assert_eq!(holds.due_pages(), 4);
        let expected = [12, 13, 10, 11].map(|slot| (slot, Origin::Followed));
        assert_eq!(sent(&mut holds), expected);
        assert_eq!((holds.due_pages(), holds.held_pages()), (0, 0));
    }

    #[test]
    fn who_asks_is_served_first_and_its_neighbours_next() {
        let mut holds = holds();
        let group = holds.group(Treatment::Held).unwrap();
        holds.assign(group, 0..50);
        for slot in [1, 2, 30, 31] {
            arrive(&mut holds, slot);
        }
        holds.rest_follows();
        // Page 31 has cooled, and is asked for all the same.
        holds.following.hot.remove(31);
        holds.following.cool.insert(31);
        holds.let_follow();
        // Pages that are not held have gone already.
        holds.ask_for(29..32);
        holds.ask_for(2..3);
        for slot in [30, 31, 2] {
            assert_eq!(holds.next_due(), Some((slot, Origin::Asked)));
            holds.release(number(slot).unwrap());
        }
        // Asked for twice: sent once.
        holds.ask_for(2..3);
        for _ in 0..5 {
            holds.ask_for(0..50);
        }
        assert_eq!(holds.following.asked.len(), 1);
        assert_eq!(holds.next_due(), Some((1, Origin::Asked)));
        holds.release(1);
        assert_eq!(sent(&mut holds), []);
        assert_eq!(holds.due_pages(), 0);
    }

    #[test]
    fn everything_can_be_held_but_what_stands() {
        let mut holds = holds();
        let [frozen, live] = [(); 2].map(|()| holds.group(Treatment::Held).unwrap());
        holds.assign(frozen, 0..5);
        holds.assign(live, 5..10);
        holds.treat(frozen, Treatment::Standing);
        holds.treat(live, Treatment::Live);
        holds.hold_everything();
        assert_eq!(arrive(&mut holds, 1), Fate::Forward(Origin::Paused));
        for slot in [6, 20] {
            assert_eq!(arrive(&mut holds, slot), Fate::Held);
        }
        holds.rest_follows();
        assert_eq!(holds.to_follow(), [6, 20].into_iter().collect());
    }

    #[test]
    fn what_is_missing_is_read_from_the_guest_if_it_can_be() {
        let mut holds = holds();
        let group = holds.group(Treatment::Held).unwrap();
        holds.assign(group, 0..50);
        arrive(&mut holds, 1);
        arrive(&mut holds, 2);
        holds.rest_follows();
        holds.let_follow();
        let missing: RoaringBitmap = [2, 7].into_iter().collect();
        assert!(!holds.follow_with(&missing));
        holds.leave_in_guest();
        assert!(holds.follow_with(&missing));
        assert_eq!(holds.content(7), None);
        let both = [(2, Origin::Followed), (7, Origin::Followed)];
        assert_eq!(sent(&mut holds), both);
    }
}
