//! Pages told by what the peer has already: the same as another, or little different from what they
//! were.
//!
//! Both sides keep slots of page contents. Only the source decides what goes into a slot, and says
//! so; the destination does as it is told. So there is nothing to agree on, and nothing depends on
//! hashes: the source compares contents itself.
//!
//! ```text
//! recalled batch  be16 block, then for each page
//!                 be32 index  u8 how  [be32 slot]  [content]
//!
//! how  0 content          the page
//!      1 content, slot    the page; put it into the slot
//!      2 slot             what is in the slot
//!      3 content, slot    the page xor what is in the slot; put the page into the slot
//! ```
//!
//! What is all but equal is all but zeros after the xor, and the compressor does the rest.

use std::collections::HashMap;

use twox_hash::XxHash3_64;
use wire::{HISTORY_MAX, MAX_PAYLOAD, PagesFrame};

use crate::PackError;

const WHOLE: u8 = 0;
const KEEP: u8 = 1;
const SAME: u8 = 2;
const DIFFERENCE: u8 = 3;

/// Bytes before a page's content, at the most.
const ENTRY: usize = 9;
/// Of the slots, those for contents that occur in several places: one in so many.
const SHARED: usize = 4;
/// Contents of which it is known that they have occurred: by a piece of their hashes, so that it can
/// be wrong, which costs a slot.
const TAGS: usize = 1 << 18;
/// A difference is worth telling if at least one in so many words is equal.
const EQUAL: usize = 2;

/// Contents, by slot.
#[derive(Debug, Default)]
struct Slots {
    page_size: usize,
    bytes: Vec<u8>,
}

impl Slots {
    fn get(&self, slot: u32) -> Option<&[u8]> {
        let from = self.at(slot)?;
        self.bytes.get(from..from + self.page_size)
    }

    fn at(&self, slot: u32) -> Option<usize> {
        usize::try_from(slot).ok()?.checked_mul(self.page_size)
    }

    /// Puts a page into a slot that there is, or into the next new one.
    fn put(&mut self, slot: u32, page: &[u8]) -> Option<()> {
        let from = self.at(slot)?;
        if from == self.bytes.len() && from + self.page_size <= HISTORY_MAX {
            self.bytes.extend_from_slice(page);
            return Some(());
        }
        let place = self.bytes.get_mut(from..from + self.page_size)?;
        place.copy_from_slice(page);
        Some(())
    }

    fn count(&self) -> usize {
        self.bytes.len() / self.page_size
    }
}

/// The source's side.
#[derive(Debug)]
pub struct History {
    slots: Slots,
    limit: usize,
    /// Of these slots, those for shared contents.
    shared: usize,
    /// Pages that have been sent: a bit each, by block.
    seen: HashMap<u16, Vec<u64>>,
    /// Slots of pages that were sent again.
    pages: HashMap<(u16, u32), u32>,
    /// Slots of contents that have occurred again, by their hashes.
    contents: HashMap<u64, u32>,
    tags: Vec<u32>,
}

/// What became of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recalled {
    /// Pages told as the same as another.
    pub same: usize,
    /// Pages told by their difference from what they were.
    pub differing: usize,
}

impl History {
    /// For pages of this size, in at most so many bytes of slots on each side.
    pub fn new(page_size: usize, limit: usize) -> Self {
        History {
            slots: Slots {
                page_size,
                bytes: Vec::new(),
            },
            limit: limit.min(HISTORY_MAX) / page_size,
            shared: 0,
            seen: HashMap::new(),
            pages: HashMap::new(),
            contents: HashMap::new(),
            tags: Vec::new(),
        }
    }

    /// Appends the recalled batch that stands for a pages frame's payload, if the slots have changed
    /// or helped: then it has to be sent, and in this order. Nothing is appended otherwise.
    pub fn recall(&mut self, payload: &[u8], out: &mut Vec<u8>) -> Option<Recalled> {
        let frame = PagesFrame::parse(payload).ok()?;
        let pages = frame.iter(self.slots.page_size).ok()?;
        let begin = out.len();
        let mut recalled = Recalled {
            same: 0,
            differing: 0,
        };
        let mut has_kept = false;
        if payload.len() + payload.len() / self.slots.page_size * ENTRY > MAX_PAYLOAD {
            return None;
        }
        out.extend_from_slice(&frame.block.to_be_bytes());
        for (index, page) in pages {
            out.extend_from_slice(&index.to_be_bytes());
            let how_at = out.len();
            self.tell(frame.block, index, page, out);
            match out[how_at] {
                SAME => recalled.same += 1,
                DIFFERENCE => recalled.differing += 1,
                KEEP => has_kept = true,
                _ => {}
            }
        }
        if recalled.same + recalled.differing == 0 && !has_kept {
            out.truncate(begin);
            return None;
        }
        Some(recalled)
    }

    fn tell(&mut self, block: u16, index: u32, page: &[u8], out: &mut Vec<u8>) {
        if let Some(&slot) = self.pages.get(&(block, index)) {
            let before = self.slots.get(slot).unwrap_or_default();
            let how = if is_alike(before, page) {
                DIFFERENCE
            } else {
                KEEP
            };
            put(how, Some(slot), out);
            match how {
                DIFFERENCE => out.extend(before.iter().zip(page).map(|(a, b)| a ^ b)),
                _ => out.extend_from_slice(page),
            }
            // There is such a slot.
            let _ = self.slots.put(slot, page);
            return;
        }
        let hash = XxHash3_64::oneshot(page);
        if let Some(&slot) = self.contents.get(&hash)
            && self.slots.get(slot) == Some(page)
        {
            return put(SAME, Some(slot), out);
        }
        let again = self.is_again(block, index);
        let twice = self.is_twice(hash);
        let room = self.slots.count() < self.limit;
        let slot = match (again, twice) {
            _ if !room => None,
            (true, _) => self.new_slot(page).inspect(|slot| {
                self.pages.insert((block, index), *slot);
            }),
            (_, true) if self.shared < self.limit / SHARED => self.new_slot(page).inspect(|slot| {
                self.shared += 1;
                self.contents.insert(hash, *slot);
            }),
            _ => None,
        };
        match slot {
            Some(slot) => put(KEEP, Some(slot), out),
            None => put(WHOLE, None, out),
        }
        out.extend_from_slice(page);
    }

    fn new_slot(&mut self, page: &[u8]) -> Option<u32> {
        let slot = u32::try_from(self.slots.count()).ok()?;
        self.slots.put(slot, page)?;
        Some(slot)
    }

    /// Whether the page has been sent before.
    fn is_again(&mut self, block: u16, index: u32) -> bool {
        let bits = self.seen.entry(block).or_default();
        let (at, bit) = (index as usize / 64, 1 << (index % 64));
        if bits.len() <= at {
            bits.resize(at + 1, 0);
        }
        let again = bits[at] & bit != 0;
        bits[at] |= bit;
        again
    }

    /// Whether the content has most probably been sent before.
    fn is_twice(&mut self, hash: u64) -> bool {
        if self.tags.is_empty() {
            self.tags = vec![0; TAGS];
        }
        #[expect(clippy::cast_possible_truncation, reason = "a piece of a hash")]
        let (at, tag) = (hash as usize % TAGS, (hash >> 32) as u32 | 1);
        std::mem::replace(&mut self.tags[at], tag) == tag
    }
}

fn put(how: u8, slot: Option<u32>, out: &mut Vec<u8>) {
    out.push(how);
    if let Some(slot) = slot {
        out.extend_from_slice(&slot.to_be_bytes());
    }
}

/// Whether enough words are equal for a difference to be small.
fn is_alike(before: &[u8], page: &[u8]) -> bool {
    let (before, page) = (before.chunks_exact(8), page.chunks_exact(8));
    let words = page.len();
    let equal = before.zip(page).filter(|(a, b)| a == b).count();
    equal * EQUAL >= words
}

/// The destination's side.
#[derive(Debug, Default)]
pub struct Recollection {
    slots: Slots,
}

impl Recollection {
    /// Appends the pages frame's payload that a recalled batch stands for.
    pub fn recall(
        &mut self,
        batch: &[u8],
        page_size: usize,
        out: &mut Vec<u8>,
    ) -> Result<(), PackError> {
        self.slots.page_size = page_size;
        self.tell(batch, out).ok_or(PackError::Damaged)
    }

    fn tell(&mut self, batch: &[u8], out: &mut Vec<u8>) -> Option<()> {
        let (block, mut rest) = batch.split_at_checked(2)?;
        out.extend_from_slice(block);
        while !rest.is_empty() {
            // A slot is told in a few bytes, and is a whole page.
            if out.len() > MAX_PAYLOAD {
                return None;
            }
            let (index, how);
            (index, rest) = rest.split_at_checked(4)?;
            (how, rest) = rest.split_first()?;
            out.extend_from_slice(index);
            let mut slot = None;
            if *how != WHOLE {
                let number;
                (number, rest) = rest.split_first_chunk::<4>()?;
                slot = Some(u32::from_be_bytes(*number));
            }
            if (*how, slot) == (SAME, slot) {
                out.extend_from_slice(self.slots.get(slot?)?);
                continue;
            }
            let content;
            (content, rest) = rest.split_at_checked(self.slots.page_size)?;
            let page_at = out.len();
            match *how {
                WHOLE | KEEP => out.extend_from_slice(content),
                DIFFERENCE => {
                    let before = self.slots.get(slot?)?;
                    out.extend(before.iter().zip(content).map(|(a, b)| a ^ b));
                }
                _ => return None,
            }
            if let Some(slot) = slot {
                self.slots.put(slot, &out[page_at..])?;
            }
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::noise;

    const PAGE: usize = 64;

    fn batch(block: u16, pages: &[(u32, Vec<u8>)]) -> Vec<u8> {
        let mut payload = block.to_be_bytes().to_vec();
        for (index, page) in pages {
            payload.extend_from_slice(&index.to_be_bytes());
            payload.extend_from_slice(page);
        }
        payload
    }

    fn back(there: &mut Recollection, batch: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        there.recall(batch, PAGE, &mut out).unwrap();
        out
    }

    #[test]
    fn a_page_that_changes_a_little_is_told_by_its_difference() {
        let mut here = History::new(PAGE, 1 << 20);
        let mut there = Recollection::default();
        let mut page = noise(PAGE);
        let mut told = Vec::new();
        for round in 0..5u8 {
            page[10] = round;
            let payload = batch(0, &[(7, page.clone())]);
            let mut out = Vec::new();
            let recalled = here.recall(&payload, &mut out);
            told.push(recalled.map(|it| it.differing));
            if recalled.is_some() {
                assert_eq!(back(&mut there, &out), payload);
            }
            if round > 1 {
                let zeros = out[2 + ENTRY..].iter().filter(|byte| **byte == 0).count();
                assert_eq!(zeros, PAGE - 1);
            }
        }
        assert_eq!(told, [None, Some(0), Some(1), Some(1), Some(1)]);
        // All of it is new: no difference is told.
        let payload = batch(0, &[(7, vec![3; PAGE])]);
        let mut out = Vec::new();
        let recalled = here.recall(&payload, &mut out);
        assert_eq!(recalled.map(|it| it.differing), Some(0));
        assert_eq!(back(&mut there, &out), payload);
    }

    #[test]
    fn a_content_that_occurs_in_many_places_is_sent_twice() {
        let mut here = History::new(PAGE, 1 << 20);
        let mut there = Recollection::default();
        let page = noise(PAGE);
        let pages: Vec<_> = (0..10).map(|index| (index, page.clone())).collect();
        let payload = batch(3, &pages);
        let mut out = Vec::new();
        let recalled = here.recall(&payload, &mut out).unwrap();
        assert_eq!((recalled.same, recalled.differing), (8, 0));
        assert!(out.len() < 3 * PAGE + 10 * ENTRY);
        assert_eq!(back(&mut there, &out), payload);
    }

    #[test]
    fn no_more_is_kept_than_may_be() {
        let mut here = History::new(PAGE, 10 * PAGE);
        for _ in 0..3 {
            for index in 0..100 {
                let mut page = noise(PAGE);
                page[0] = u8::try_from(index).unwrap();
                let payload = batch(0, &[(index, page)]);
                here.recall(&payload, &mut Vec::new());
            }
        }
        assert_eq!(here.slots.count(), 10);
        let mut there = Recollection::default();
        for slot in 0..u32::try_from(HISTORY_MAX / PAGE).unwrap() {
            let entry = [&[0; 6], &[KEEP][..], &slot.to_be_bytes(), &[1; PAGE]].concat();
            there.recall(&entry, PAGE, &mut Vec::new()).unwrap();
        }
        let beyond = u32::try_from(HISTORY_MAX / PAGE).unwrap();
        for slot in [beyond, beyond + 1, u32::MAX] {
            let entry = [&[0; 6], &[KEEP][..], &slot.to_be_bytes(), &[1; PAGE]].concat();
            let refused = there.recall(&entry, PAGE, &mut Vec::new());
            assert_eq!(refused, Err(PackError::Damaged), "{slot}");
        }
    }

    proptest! {
        /// Whatever is sent, in whatever order, comes back as it was.
        #[test]
        fn every_batch_comes_back(
            batches in prop::collection::vec(
                prop::collection::vec((0u32..30, 0u8..6, 0usize..PAGE, any::<u8>()), 1..20),
                1..60,
            ),
            limit in 0usize..40,
        ) {
            let mut here = History::new(PAGE, limit * PAGE);
            let mut there = Recollection::default();
            for (number, pages) in batches.into_iter().enumerate() {
                let page = |(index, kind, at, byte): (u32, u8, usize, u8)| {
                    let mut page = vec![kind; PAGE];
                    page[at] = byte;
                    (index, page)
                };
                let pages: Vec<_> = pages.into_iter().map(page).collect();
                let payload = batch(u16::try_from(number % 2).unwrap(), &pages);
                let mut out = vec![9];
                match here.recall(&payload, &mut out) {
                    Some(_) => prop_assert_eq!(back(&mut there, &out[1..]), payload),
                    None => prop_assert_eq!(out, [9]),
                }
            }
        }

        /// Nothing that a peer sends makes it panic.
        #[test]
        fn garbage_is_refused_or_taken(
            data in prop::collection::vec(0u8..5, 0..3000),
            at in any::<prop::sample::Index>(),
            byte in any::<u8>(),
        ) {
            crate::fuzz_entry::unpack(&data);
            let mut seed = crate::fuzz_entry::seed();
            let at = at.index(seed.len());
            seed[at] = byte;
            crate::fuzz_entry::unpack(&seed);
        }
    }
}
