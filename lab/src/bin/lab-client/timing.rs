//! Latencies and gaps.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// How long answers may still come in when no more requests are sent.
pub(crate) const TAIL: Duration = Duration::from_secs(5);

/// Collects when answers came.
pub(crate) struct Answers {
    latencies: Vec<Duration>,
    last: Instant,
    longest_gap: Duration,
}

impl Answers {
    pub(crate) fn new(now: Instant) -> Self {
        Answers {
            latencies: Vec::new(),
            last: now,
            longest_gap: Duration::ZERO,
        }
    }

    pub(crate) fn add(&mut self, due: Instant, now: Instant) {
        self.latencies.push(now.saturating_duration_since(due));
        self.longest_gap = self.longest_gap.max(now - self.last);
        self.last = now;
    }

    pub(crate) fn count(&self) -> u64 {
        self.latencies.len() as u64
    }

    pub(crate) fn longest_gap_ms(&self) -> f64 {
        millis(self.longest_gap)
    }

    /// The latency that `share` of a thousand answers do not exceed, in milliseconds.
    pub(crate) fn permille_ms(&mut self, share: usize) -> f64 {
        self.latencies.sort_unstable();
        let at = (self.latencies.len() * share / 1000).min(self.latencies.len().saturating_sub(1));
        self.latencies
            .get(at)
            .map_or(0.0, |latency| millis(*latency))
    }
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

/// Waits for one of `fds` or for `until`; tells whether standard input has closed.
pub(crate) fn wait(
    fds: &[(BorrowedFd<'_>, PollFlags)],
    watch_input: bool,
    until: Instant,
) -> io::Result<bool> {
    let stdin = io::stdin();
    let mut polled: Vec<_> = fds
        .iter()
        .map(|(fd, flags)| PollFd::from_borrowed_fd(*fd, *flags))
        .collect();
    if watch_input {
        polled.push(PollFd::from_borrowed_fd(stdin.as_fd(), PollFlags::IN));
    }
    let left = until.saturating_duration_since(Instant::now());
    let left = Timespec {
        tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: left.subsec_nanos().into(),
    };
    poll(&mut polled, Some(&left))?;
    Ok(watch_input
        && polled
            .last()
            .is_some_and(|input| !input.revents().is_empty()))
}
