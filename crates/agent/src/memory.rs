//! Which page frames belong to whom, for the host.

use anyhow::{Result, bail};
use depgraph::ProcessId;
use guest_procs::owners::{FreePages, Owned, Sampler, Scanner, free_pages, free_pages_safe};
use guest_proto::{Answer, PageSetBuilder};

/// Runs in one message: at their longest they fit a frame.
const RUNS_PER_MESSAGE: usize = 6_000;

/// Runs in one answer: they are few where memory is plenty.
const RUNS_MAX: usize = 1 << 20;

/// Looks at page tables.
#[derive(Default)]
pub(crate) struct Memory {
    scanner: Scanner,
    /// One for each process whose writes are watched.
    samplers: Vec<(ProcessId, Sampler)>,
}

impl Memory {
    /// The frames that these processes alone use.
    pub(crate) fn owners(&mut self, processes: &[ProcessId]) -> Result<Vec<Answer>> {
        Ok(answers(self.scanner.owned(processes)?, Vec::new()))
    }

    /// Watches writes from now on.
    pub(crate) fn watch_writes(&mut self, processes: &[ProcessId]) -> Result<Vec<Answer>> {
        self.samplers.clear();
        for process in processes {
            self.samplers.push((*process, Sampler::begin(&[*process])?));
        }
        Ok(vec![Answer::Watching])
    }

    /// The frames written since then.
    pub(crate) fn written(&mut self) -> Result<Vec<Answer>> {
        let mut pages = PageSetBuilder::new(RUNS_MAX);
        let mut gone = Vec::new();
        let mut by_process = Vec::new();
        for (process, sampler) in self.samplers.drain(..) {
            let owned = sampler.end(&mut self.scanner)?;
            let mut count = 0;
            for run in owned.pages.iter(u64::MAX) {
                let run = run?;
                count += run.count;
                pages.push_run(run);
            }
            by_process.push((process, count));
            gone.extend(owned.gone);
        }
        let dropped = pages.dropped();
        let pages = pages.build();
        let owned = Owned {
            pages,
            gone,
            dropped,
        };
        Ok(answers(owned, by_process))
    }
}

/// The frames that nobody uses, if it is safe to leave them behind.
pub(crate) fn free() -> Result<Vec<Answer>> {
    if let FreePages::Unsafe(reason) = free_pages_safe() {
        bail!("free pages must travel: {reason}");
    }
    let owned = Owned {
        pages: free_pages()?,
        gone: Vec::new(),
        dropped: 0,
    };
    Ok(answers(owned, Vec::new()))
}

fn answers(owned: Owned, by_process: Vec<(ProcessId, u64)>) -> Vec<Answer> {
    let parts = owned.pages.split(RUNS_PER_MESSAGE);
    let mut answers: Vec<Answer> = parts.map(Answer::Pages).collect();
    answers.push(Answer::PagesEnd {
        gone: owned.gone,
        dropped: owned.dropped,
        by_process,
    });
    answers
}
