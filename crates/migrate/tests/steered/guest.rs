//! A guest: page frames, and processes that write them.

use std::collections::BTreeSet;

use depgraph::ProcessId;

use crate::random::Random;

/// Page frames of the guest.
pub(crate) const FRAMES: usize = 512;
/// What a process does with its memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Habit {
    /// Goes through all of it, so many pages a step.
    Sweeps(usize),
    /// Writes the first pages again and again.
    Hot(usize),
    /// Writes one page now and then.
    Rests,
}

/// A process.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) id: ProcessId,
    /// Its frames.
    pub(crate) frames: Vec<usize>,
    habit: Habit,
    next: usize,
    pub(crate) stands: bool,
    /// Someone outside depends on it.
    pub(crate) dependent: bool,
}

/// The guest.
#[derive(Debug)]
pub(crate) struct Guest {
    /// What each frame holds; 0 is a page of zeros.
    pub(crate) memory: Vec<u64>,
    /// Written since QEMU has looked.
    pub(crate) log: BTreeSet<usize>,
    /// Written since each process has been watched.
    pub(crate) written: Vec<BTreeSet<usize>>,
    pub(crate) processes: Vec<Process>,
    /// Frames that nobody uses. What they hold does not matter.
    pub(crate) free: BTreeSet<usize>,
    /// Frames of the kernel.
    kernel: Vec<usize>,
    version: u64,
}

impl Guest {
    pub(crate) fn new(random: &mut Random) -> Self {
        let mut frames: Vec<usize> = (0..FRAMES).collect();
        for at in 0..FRAMES {
            let other = at + random.below(FRAMES - at);
            frames.swap(at, other);
        }
        let mut take = |count: usize| frames.split_off(frames.len() - count.min(frames.len()));
        let mut processes = Vec::new();
        for pid in 0..1 + random.below(4) {
            let frames = take(30 + random.below(90));
            let habit = match random.below(4) {
                0 => Habit::Rests,
                1 => Habit::Hot(2 + random.below(frames.len() / 2)),
                _ => Habit::Sweeps(1 + random.below(12)),
            };
            processes.push(Process {
                id: ProcessId {
                    pid: 100 + pid as u32,
                    start: 7,
                },
                frames,
                habit,
                next: 0,
                stands: false,
                dependent: false,
            });
        }
        let kernel = take(20);
        let free: BTreeSet<usize> = take(30).into_iter().collect();
        let memory = (0..FRAMES)
            .map(|frame| match random.one_in(4) {
                true => 0,
                false => 1 + frame as u64,
            })
            .collect();
        Guest {
            memory,
            log: BTreeSet::new(),
            written: vec![BTreeSet::new(); processes.len()],
            processes,
            free,
            kernel,
            version: 1_000_000,
        }
    }

    /// Whoever may have to be moved live writes little: such a guest converges.
    pub(crate) fn is_moderate(&mut self) {
        for process in &mut self.processes {
            process.habit = match process.habit {
                Habit::Sweeps(pages) => Habit::Sweeps(pages.min(2)),
                Habit::Hot(pages) => Habit::Hot(pages.min(6)),
                Habit::Rests => Habit::Rests,
            };
        }
    }

    pub(crate) fn process(&mut self, id: ProcessId) -> Option<&mut Process> {
        self.processes.iter_mut().find(|process| process.id == id)
    }

    /// A step of its life: what does not stand writes.
    pub(crate) fn runs(&mut self, random: &mut Random) {
        let mut writes = Vec::new();
        for (at, process) in self.processes.iter_mut().enumerate() {
            if process.stands {
                continue;
            }
            let count = process.frames.len();
            let pages: Vec<usize> = match process.habit {
                Habit::Sweeps(pages) => (0..pages).map(|i| (process.next + i) % count).collect(),
                Habit::Hot(pages) => (0..pages / 3 + 1).map(|_| random.below(pages)).collect(),
                Habit::Rests => (0..usize::from(random.one_in(20)))
                    .map(|_| random.below(count))
                    .collect(),
            };
            process.next += pages.len();
            writes.extend(
                pages
                    .into_iter()
                    .map(|page| (Some(at), process.frames[page])),
            );
        }
        if random.one_in(8) {
            writes.push((None, self.kernel[random.below(3)]));
        }
        // A free frame comes into use: it is the kernel's from now on.
        if random.one_in(400)
            && let Some(frame) = self.free.pop_last()
        {
            writes.push((None, frame));
        }
        for (writer, frame) in writes {
            self.version += 1;
            self.memory[frame] = self.version;
            self.log.insert(frame);
            if let Some(at) = writer {
                self.written[at].insert(frame);
            }
        }
    }
}
