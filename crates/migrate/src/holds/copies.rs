//! Copies of pages that are held, unless they are read from the guest when they go.

use std::num::NonZeroU32;

/// Pages in one allocation.
const CHUNK_PAGES: usize = 256;

/// Stands for a page that has no copy: it is read from the guest.
const IN_GUEST: NonZeroU32 = NonZeroU32::MAX;

/// Page contents by number, in allocations that are kept and used again.
#[derive(Debug)]
pub(super) struct Copies {
    page_size: usize,
    chunks: Vec<Box<[u8]>>,
    unused: Vec<NonZeroU32>,
    count: usize,
    limit: usize,
    /// No more copies are made.
    in_guest: bool,
}

impl Copies {
    /// Keeps at most `limit` pages.
    pub(super) fn new(page_size: usize, limit: usize) -> Self {
        Copies {
            page_size,
            chunks: Vec::new(),
            unused: Vec::new(),
            count: 0,
            limit: limit.min(u32::MAX as usize - CHUNK_PAGES),
            in_guest: false,
        }
    }

    /// Bytes in a page.
    pub(super) fn page_size(&self) -> usize {
        self.page_size
    }

    /// Keeps at most `limit` pages from now on.
    pub(super) fn limit(&mut self, limit: usize) {
        self.limit = limit.min(u32::MAX as usize - CHUNK_PAGES);
    }

    /// What is kept from now on is read from the guest when it goes.
    pub(super) fn leave_in_guest(&mut self) {
        self.in_guest = true;
    }

    /// Pages kept.
    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// Whether there is no room for another.
    pub(super) fn is_full(&self) -> bool {
        self.count >= self.limit
    }

    /// Keeps a page and yields its number; nothing if there is no room.
    pub(super) fn keep(&mut self, content: &[u8]) -> Option<NonZeroU32> {
        if self.is_full() {
            return None;
        }
        if self.in_guest {
            self.count += 1;
            return Some(IN_GUEST);
        }
        if self.unused.is_empty() {
            let first = self.chunks.len() * CHUNK_PAGES;
            let bytes = CHUNK_PAGES * self.page_size;
            self.chunks.push(vec![0; bytes].into_boxed_slice());
            let numbers = (first + 1..=first + CHUNK_PAGES).rev();
            self.unused
                .extend(numbers.filter_map(|number| NonZeroU32::new(u32::try_from(number).ok()?)));
        }
        let number = self.unused.pop()?;
        self.count += 1;
        self.replace(number, content);
        Some(number)
    }

    /// Keeps a page that is in the guest, whatever the limit; nothing if copies are made.
    pub(super) fn stays_in_guest(&mut self) -> Option<NonZeroU32> {
        self.in_guest.then(|| {
            self.count += 1;
            IN_GUEST
        })
    }

    /// A newer content of a page.
    pub(super) fn replace(&mut self, number: NonZeroU32, content: &[u8]) {
        let (chunk, at) = self.place(number);
        let end = at + self.page_size;
        if let Some(place) = self.chunks.get_mut(chunk).and_then(|c| c.get_mut(at..end)) {
            place.copy_from_slice(content);
        }
    }

    /// A page's content; nothing if it is in the guest.
    pub(super) fn content(&self, number: NonZeroU32) -> Option<&[u8]> {
        let (chunk, at) = self.place(number);
        let end = at + self.page_size;
        self.chunks.get(chunk).and_then(|c| c.get(at..end))
    }

    /// The page is not needed any more.
    pub(super) fn drop(&mut self, number: NonZeroU32) {
        self.count -= 1;
        if number != IN_GUEST {
            self.unused.push(number);
        }
    }

    fn place(&self, number: NonZeroU32) -> (usize, usize) {
        let index = number.get() as usize - 1;
        (index / CHUNK_PAGES, index % CHUNK_PAGES * self.page_size)
    }
}
