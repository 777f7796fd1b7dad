//! Which page frames belong to whom, for the host.

use anyhow::{Result, bail, ensure};
use depgraph::ProcessId;
use guest_procs::owners::{FreePages, Owned, Sampler, Scanner, free_pages, free_pages_safe};
use guest_proto::{Answer, PageSet};

/// Runs in one message: at their longest they fit a frame.
const RUNS_PER_MESSAGE: usize = 6_000;

/// Looks at page tables.
#[derive(Default)]
pub(crate) struct Memory {
    scanner: Scanner,
    sampler: Option<Sampler>,
}

impl Memory {
    /// The frames that these processes alone use.
    pub(crate) fn owners(&mut self, processes: &[ProcessId]) -> Result<Vec<Answer>> {
        Ok(answers(self.scanner.owned(processes)?))
    }

    /// Watches writes from now on.
    pub(crate) fn watch_writes(&mut self, processes: &[ProcessId]) -> Result<Vec<Answer>> {
        self.sampler = Some(Sampler::begin(processes)?);
        Ok(vec![Answer::Watching])
    }

    /// The frames written since then.
    pub(crate) fn written(&mut self) -> Result<Vec<Answer>> {
        let Some(sampler) = self.sampler.take() else {
            bail!("no writes are watched");
        };
        Ok(answers(sampler.end(&mut self.scanner)?))
    }
}

/// The frames that nobody uses, if it is safe to leave them behind.
pub(crate) fn free() -> Result<Vec<Answer>> {
    let safe = free_pages_safe();
    if let FreePages::Unsafe(reason) = safe {
        bail!("free pages must travel: {reason}");
    }
    let pages = free_pages()?;
    ensure!(pages.runs() > 0, "no page is free");
    Ok(answers(Owned {
        pages,
        gone: Vec::new(),
        dropped: 0,
    }))
}

fn answers(owned: Owned) -> Vec<Answer> {
    let parts = owned.pages.split(RUNS_PER_MESSAGE);
    let mut answers: Vec<Answer> = parts.map(|part: PageSet| Answer::Pages(part)).collect();
    answers.push(Answer::PagesEnd {
        gone: owned.gone,
        dropped: owned.dropped,
    });
    answers
}
