//! Where a page stands in the tables that have one entry for each guest page.

use std::ops::Range;

use qemu_stream::BlockId;
use roaring::RoaringBitmap;
use wire::{PageRun, PageRuns};

use crate::TableError;

/// Numbers the pages of all RAM blocks through, in the order in which QEMU walks over them: a
/// page's number is its *slot*.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Layout {
    blocks: Vec<BlockPages>,
    pages: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct BlockPages {
    first: usize,
    count: usize,
}

impl Layout {
    /// For blocks of the given lengths in bytes, which may describe at most `limit` bytes
    /// together.
    pub(crate) fn new(
        page_size: usize,
        block_lengths: impl IntoIterator<Item = u64>,
        limit: u64,
    ) -> Result<Self, TableError> {
        let mut blocks = Vec::new();
        let mut described = 0u64;
        let mut first = 0usize;
        for length in block_lengths {
            described = described.saturating_add(length);
            let pages = length.div_ceil(page_size as u64);
            let Some(count) = usize::try_from(pages).ok().filter(|_| described <= limit) else {
                return Err(TableError::TooMuchMemory { described, limit });
            };
            blocks.push(BlockPages { first, count });
            first += count;
        }
        Ok(Layout {
            blocks,
            pages: first,
        })
    }

    /// Slots in all.
    pub(crate) fn pages(&self) -> usize {
        self.pages
    }

    /// The slot of a block's page.
    #[inline]
    pub(crate) fn slot(&self, block: BlockId, index: u64) -> Result<usize, TableError> {
        self.blocks
            .get(usize::from(block.0))
            .and_then(|pages| {
                let index = usize::try_from(index).ok()?;
                (index < pages.count).then(|| pages.first + index)
            })
            .ok_or(TableError::NoSuchPage {
                block: block.0,
                index,
            })
    }

    /// Pages of a block; none if there is no such block.
    pub(crate) fn pages_of(&self, block: BlockId) -> u64 {
        let block = self.blocks.get(usize::from(block.0));
        block.map_or(0, |pages| pages.count as u64)
    }

    /// The slots of a run of a block's pages.
    pub(crate) fn slots(&self, block: u16, run: PageRun) -> Result<Range<u32>, TableError> {
        let (first, count) = (u64::from(run.first), u64::from(run.count));
        let start = self.slot(BlockId(block), first)?;
        if count > 1 {
            self.slot(BlockId(block), first + count - 1)?;
        }
        let end = start + usize::try_from(count).unwrap_or(usize::MAX);
        match (u32::try_from(start), u32::try_from(end)) {
            (Ok(start), Ok(end)) => Ok(start..end),
            _ => Err(TableError::NoSuchPage {
                block,
                index: first,
            }),
        }
    }

    /// These slots as runs of pages, for each block so many at once at the most.
    pub(crate) fn page_runs(&self, slots: &RoaringBitmap) -> Vec<PageRuns> {
        let mut all: Vec<PageRuns> = Vec::new();
        let mut next = None;
        for slot in slots {
            let (block, index) = self.place(slot as usize);
            // Its slot is below 2^32, and so is its number in its block.
            let first = u32::try_from(index).unwrap_or(u32::MAX);
            let follows = next == Some((block, first));
            next = Some((block, first.wrapping_add(1)));
            match all.last_mut() {
                Some(PageRuns { runs, .. }) if follows => {
                    if let Some(run) = runs.last_mut() {
                        run.count += 1;
                    }
                }
                Some(pages) if pages.block == block.0 && pages.runs.len() < PageRuns::MAX => {
                    pages.runs.push(PageRun { first, count: 1 });
                }
                _ => all.push(PageRuns {
                    block: block.0,
                    runs: vec![PageRun { first, count: 1 }],
                }),
            }
        }
        all
    }

    /// The block and page of a slot that [`slot`](Layout::slot) gave.
    pub(crate) fn place(&self, slot: usize) -> (BlockId, u64) {
        // Of blocks without pages that begin at the same slot, the last is the one that has it.
        let after = self.blocks.partition_point(|block| block.first <= slot);
        let number = after.saturating_sub(1);
        let first = self.blocks.get(number).map_or(0, |block| block.first);
        let block = BlockId(u16::try_from(number).unwrap_or(u16::MAX));
        (block, (slot - first) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_and_places_are_each_other_s_reverse() {
        let layout = Layout::new(4096, [3 * 4096, 0, 100, 2 * 4096], u64::MAX).unwrap();
        assert_eq!(layout.pages(), 6);
        for (block, pages) in [(0, 3), (2, 1), (3, 2)] {
            for index in 0..pages {
                let slot = layout.slot(BlockId(block), index).unwrap();
                assert_eq!(layout.place(slot), (BlockId(block), index));
            }
        }
        assert!(layout.slot(BlockId(1), 0).is_err());
    }

    #[test]
    fn runs_end_where_their_block_does() {
        let layout = Layout::new(4096, [3 * 4096, 2 * 4096], u64::MAX).unwrap();
        let slots: RoaringBitmap = [0, 2, 3, 4].into_iter().collect();
        let runs = layout.page_runs(&slots);
        let run = |first, count| PageRun { first, count };
        let expected = [(0, vec![run(0, 1), run(2, 1)]), (1, vec![run(0, 2)])];
        let expected = expected.map(|(block, runs)| PageRuns { block, runs });
        assert_eq!(runs, expected);
        let back = runs.iter().flat_map(|pages| {
            let slots = |run: &PageRun| layout.slots(pages.block, *run).unwrap();
            pages.runs.iter().flat_map(slots).collect::<Vec<_>>()
        });
        assert_eq!(back.collect::<RoaringBitmap>(), slots);
        assert!(layout.slots(0, run(2, 2)).is_err());
        assert!(layout.slots(1, run(1, u32::MAX)).is_err());
    }
}
