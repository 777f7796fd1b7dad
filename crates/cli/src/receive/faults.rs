//! How long the VM waits for memory that follows.

use std::collections::HashMap;
use std::time::Instant;

use migrate::FaultNews;
use wire::Followed;

/// Waits that are kept for the figures; beyond that the first ones stand for all.
const KEPT_MAX: usize = 1 << 20;

/// What the VM has asked for, and how long it took to come.
#[derive(Debug, Default)]
pub(super) struct Faults {
    asked: HashMap<u32, Instant>,
    /// In microseconds.
    waits: Vec<u32>,
    count: u64,
}

impl Faults {
    /// Takes what the engine has to tell.
    pub(super) fn note(&mut self, news: &[FaultNews]) {
        if news.is_empty() {
            return;
        }
        let now = Instant::now();
        for one in news {
            match one {
                FaultNews::Asked(page) => {
                    self.count += 1;
                    self.asked.insert(*page, now);
                }
                FaultNews::Came(page) => {
                    let asked = self.asked.remove(page);
                    if let Some(asked) = asked.filter(|_| self.waits.len() < KEPT_MAX) {
                        let wait = now.saturating_duration_since(asked).as_micros();
                        self.waits.push(u32::try_from(wait).unwrap_or(u32::MAX));
                    }
                }
            }
        }
    }

    /// The figures so far.
    pub(super) fn figures(&self) -> Followed {
        let mut waits = self.waits.clone();
        waits.sort_unstable();
        let at = |percent: usize| {
            let last = waits.len().saturating_sub(1);
            let wait = waits.get((waits.len() * percent / 100).min(last));
            wait.copied().unwrap_or(0).into()
        };
        Followed {
            equal: true,
            faults: self.count,
            latency_p50_us: at(50),
            latency_p99_us: at(99),
            latency_max_us: at(100),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_of_a_hundred_waits() {
        let faults = Faults {
            waits: (1..=100).rev().collect(),
            count: 100,
            ..Faults::default()
        };
        let figures = faults.figures();
        assert_eq!(figures.faults, 100);
        assert_eq!(figures.latency_p50_us, 51);
        assert_eq!((figures.latency_p99_us, figures.latency_max_us), (100, 100));
        assert_eq!(Faults::default().figures().latency_max_us, 0);
    }

    #[test]
    fn a_page_that_was_not_asked_for_is_not_counted() {
        let mut faults = Faults::default();
        faults.note(&[FaultNews::Asked(1), FaultNews::Came(1), FaultNews::Came(2)]);
        assert_eq!((faults.figures().faults, faults.waits.len()), (1, 1));
    }
}
