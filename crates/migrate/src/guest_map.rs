//! Where the guest's page frames are in QEMU's RAM blocks.

use std::ops::Range;

use guest_proto::Run;
use qemu_stream::{BlockId, RamBlock};

use crate::layout::Layout;

/// Page frames that lie in one piece of a RAM block, as the hypervisor tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MappedRam {
    /// Guest physical address.
    pub address: u64,
    /// Length in bytes.
    pub length: u64,
    /// Name of the RAM block.
    pub block: String,
    /// Where in the block, in bytes.
    pub offset: u64,
}

/// From page frames to slots.
#[derive(Debug, Clone, Default)]
pub(crate) struct GuestMap {
    /// First frame, frames, first slot; ascending.
    pieces: Vec<(u64, u64, usize)>,
}

impl GuestMap {
    /// For the blocks of a stream. Pieces outside of them are left out.
    pub(crate) fn new(
        ram: &[MappedRam],
        blocks: &[RamBlock],
        layout: &Layout,
        page_size: u64,
    ) -> Self {
        let mut pieces = Vec::new();
        for piece in ram {
            let block = blocks.iter().position(|block| block.name == piece.block);
            let Some(number) = block.and_then(|at| u16::try_from(at).ok()) else {
                continue;
            };
            let pages = piece.length / page_size;
            let first = layout.slot(BlockId(number), piece.offset / page_size);
            let last = piece.offset / page_size + pages.saturating_sub(1);
            if let (Ok(first), Ok(_), 1..) = (first, layout.slot(BlockId(number), last), pages) {
                pieces.push((piece.address / page_size, pages, first));
            }
        }
        pieces.sort_unstable();
        GuestMap { pieces }
    }

    /// The page frames of slots.
    pub(crate) fn frames(&self, slots: &[usize]) -> Vec<Run> {
        let mut runs: Vec<Run> = Vec::new();
        for slot in slots {
            let frame = self.pieces.iter().find_map(|(frame, count, first)| {
                let at = u64::try_from(slot.checked_sub(*first)?).ok()?;
                (at < *count).then(|| frame + at)
            });
            let Some(frame) = frame else { continue };
            match runs.last_mut() {
                Some(run) if run.first + run.count == frame => run.count += 1,
                _ => runs.push(Run {
                    first: frame,
                    count: 1,
                }),
            }
        }
        runs
    }

    /// The slots of page frames; frames that are no RAM have none.
    pub(crate) fn slots(&self, run: Run) -> impl Iterator<Item = Range<usize>> {
        let end = run.first.saturating_add(run.count);
        let from = self
            .pieces
            .partition_point(|(first, count, _)| first + count <= run.first);
        let pieces = self.pieces.get(from..).unwrap_or_default();
        pieces
            .iter()
            .take_while(move |(first, ..)| *first < end)
            .filter_map(move |(first, count, slot)| {
                let begin = run.first.max(*first) - first;
                let end = end.min(first + count) - first;
                let slot_of = |frame: u64| Some(slot + usize::try_from(frame).ok()?);
                Some(slot_of(begin)?..slot_of(end)?)
            })
    }
}

#[cfg(test)]
#[expect(
    clippy::single_range_in_vec_init,
    reason = "one piece is what is meant"
)]
mod tests {
    use qemu_stream::test_support::StreamBuilder;

    use super::*;

    const PAGE: u64 = 4096;

    fn map() -> GuestMap {
        let blocks = [
            StreamBuilder::block("pc.bios", 2 * PAGE),
            StreamBuilder::block("pc.ram", 100 * PAGE),
        ];
        let lengths = blocks.iter().map(|block| block.used_length);
        let layout = Layout::new(4096, lengths, u64::MAX).unwrap();
        let piece = |address, length, block: &str, offset| MappedRam {
            address: address * PAGE,
            length: length * PAGE,
            block: block.to_owned(),
            offset: offset * PAGE,
        };
        let ram = [
            piece(1000, 60, "pc.ram", 40),
            piece(0, 40, "pc.ram", 0),
            piece(2000, 10, "unknown", 0),
            piece(3000, 200, "pc.ram", 0),
        ];
        GuestMap::new(&ram, &blocks, &layout, PAGE)
    }

    fn slots(first: u64, count: u64) -> Vec<Range<usize>> {
        map().slots(Run { first, count }).collect()
    }

    #[test]
    fn a_run_may_fall_apart_and_leave_memory() {
        assert_eq!(slots(0, 1), [2..3]);
        assert_eq!(slots(39, 5), [41..42]);
        assert_eq!(slots(30, 2000), [32..42, 42..102]);
        assert_eq!(slots(1059, u64::MAX), [101..102]);
    }

    #[test]
    fn slots_have_their_frames() {
        let run = |first, count| Run { first, count };
        let found = map().frames(&[2, 3, 4, 41, 42, 43, 101, 0]);
        assert_eq!(found, [run(0, 3), run(39, 1), run(1000, 2), run(1059, 1)]);
    }

    #[test]
    fn frames_that_do_not_exist_have_no_slots() {
        assert!(slots(500, 100).is_empty());
        assert!(slots(2000, 5).is_empty());
        assert!(slots(3000, 5).is_empty());
        assert!(slots(u64::MAX, u64::MAX).is_empty());
    }
}
