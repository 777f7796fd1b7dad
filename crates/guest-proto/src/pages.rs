//! Sets of guest page frames.

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Page frames in a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// Number of the first.
    pub first: u64,
    /// How many.
    pub count: u64,
}

/// A set of page frame numbers, as runs: the gap since the end of the last run, and a length.
/// Both are short numbers on the wire.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageSet {
    runs: Vec<(u64, u64)>,
}

/// A set that is none.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum PageSetError {
    /// An empty run, or one that the previous should have held.
    #[error("a run of page frames that is empty, or adjoins the one before it")]
    Degenerate,
    /// Beyond the guest's memory.
    #[error("page frames beyond number {limit:#x}, the end of the guest's memory")]
    OutOfRange {
        /// The end.
        limit: u64,
    },
}

/// Collects page frames into a set, in bounded memory: frames in rows, as a kernel hands them
/// out, cost next to nothing, whichever way the rows go.
#[derive(Debug)]
pub struct PageSetBuilder {
    runs: Vec<Run>,
    limit: usize,
    dropped: u64,
}

impl PageSetBuilder {
    /// Keeps at most `limit` runs, of 16 bytes each.
    pub fn new(limit: usize) -> Self {
        PageSetBuilder {
            runs: Vec::new(),
            limit: limit.max(4),
            dropped: 0,
        }
    }

    /// Adds a frame.
    pub fn push(&mut self, frame: u64) {
        self.push_run(Run {
            first: frame,
            count: 1,
        });
    }

    /// Adds frames in a row. A run beyond the last number there is, is dropped.
    pub fn push_run(&mut self, run: Run) {
        let Some(end) = run.first.checked_add(run.count) else {
            self.dropped = self.dropped.saturating_add(run.count);
            return;
        };
        if run.count == 0 {
            return;
        }
        if let Some(last) = self.runs.last_mut() {
            if run.first == last.first + last.count {
                last.count += run.count;
                return;
            }
            if end == last.first {
                last.first = run.first;
                last.count += run.count;
                return;
            }
        }
        if self.runs.len() >= self.limit && !self.make_room() {
            self.dropped = self.dropped.saturating_add(run.count);
            return;
        }
        self.runs.push(run);
    }

    /// Adds all that another has.
    pub fn absorb(&mut self, other: PageSetBuilder) {
        self.dropped = self.dropped.saturating_add(other.dropped);
        for run in other.runs {
            self.push_run(run);
        }
    }

    /// Frames that found no room; the set is without them.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// The set.
    pub fn build(mut self) -> PageSet {
        self.merge();
        let mut end = 0;
        let runs = self.runs.iter().map(|run| {
            let gap = run.first - end;
            end = run.first + run.count;
            (gap, run.count)
        });
        PageSet {
            runs: runs.collect(),
        }
    }

    /// Merges what adjoins. Nothing is taken any more when that does not make much room: it would
    /// be done again for every run.
    fn make_room(&mut self) -> bool {
        if self.dropped > 0 {
            return false;
        }
        self.merge();
        self.runs.len() <= self.limit - self.limit / 4
    }

    fn merge(&mut self) {
        self.runs.sort_unstable_by_key(|run| run.first);
        self.runs.dedup_by(|next, kept| {
            let end = kept.first + kept.count;
            let joins = next.first <= end;
            if joins {
                kept.count = end.max(next.first + next.count) - kept.first;
            }
            joins
        });
    }
}

impl PageSet {
    /// A set of numbers in any order; sorts them.
    pub fn of(mut frames: Vec<u64>) -> Self {
        frames.sort_unstable();
        let mut set = PageSet::default();
        let mut end = 0;
        for frame in frames {
            match set.runs.last_mut() {
                Some(_) if frame < end => continue,
                Some((_, count)) if frame == end => *count += 1,
                _ => set.runs.push((frame - end, 1)),
            }
            end = frame + 1;
        }
        set
    }

    /// How many runs.
    pub fn runs(&self) -> usize {
        self.runs.len()
    }

    /// The runs in ascending order, checked: all below `limit`.
    pub fn iter(&self, limit: u64) -> impl Iterator<Item = Result<Run, PageSetError>> + '_ {
        let mut end = 0u64;
        let mut first_run = true;
        self.runs.iter().map(move |(gap, count)| {
            if *count == 0 || (*gap == 0 && !first_run) {
                return Err(PageSetError::Degenerate);
            }
            first_run = false;
            let first = end.saturating_add(*gap);
            end = first.saturating_add(*count);
            if end > limit {
                return Err(PageSetError::OutOfRange { limit });
            }
            Ok(Run {
                first,
                count: *count,
            })
        })
    }

    /// How many frames there are below `limit`, if all are.
    pub fn frames(&self, limit: u64) -> Result<u64, PageSetError> {
        self.iter(limit)
            .try_fold(0, |sum, run| Ok(sum + run?.count))
    }

    /// The same frames in sets of at most so many runs, so that each fits a message.
    pub fn split(&self, runs: usize) -> impl Iterator<Item = PageSet> + '_ {
        let mut start = 0u64;
        self.runs.chunks(runs.max(1)).map(move |chunk| {
            let mut chunk = chunk.to_vec();
            let offset = start;
            start += chunk.iter().map(|(gap, count)| gap + count).sum::<u64>();
            if let Some((gap, _)) = chunk.first_mut() {
                *gap += offset;
            }
            PageSet { runs: chunk }
        })
    }
}
