//! A bandwidth limit: how much may be sent now, and when to ask again.

use std::time::{Duration, Instant};

/// The most that may be caught up on, in seconds of the rate. Where the processors are busy with the
/// VM, a thread is often woken ten or twenty milliseconds late, and what it could not send meanwhile is not
/// to be lost to the limit; short enough to be even over any second.
const BURST: f64 = 0.03;

/// What is worth a wake-up, in seconds of the rate.
const PORTION: f64 = 0.005;

/// Bytes on an Ethernet for each one of a connection: TCP, IP and Ethernet have headers.
const ON_THE_LINK: f64 = 1514.0 / 1448.0;

/// A token bucket. Time is the caller's.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pace {
    bytes_per_second: f64,
    tokens: f64,
    at: Instant,
}

impl Pace {
    pub(crate) fn new(bytes_per_second: u64, now: Instant) -> Self {
        #[expect(clippy::cast_precision_loss, reason = "a rate, not a count")]
        let rate = bytes_per_second.max(1) as f64 / ON_THE_LINK;
        Pace {
            bytes_per_second: rate,
            tokens: 0.0,
            at: now,
        }
    }

    /// Bytes that may be sent at `now`.
    pub(crate) fn allowance(&mut self, now: Instant) -> usize {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.at = now;
        let burst = self.bytes_per_second * BURST;
        self.tokens = (self.tokens + passed * self.bytes_per_second).min(burst);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "bounded by the burst, and clamped at zero"
        )]
        let whole = self.tokens.max(0.0) as usize;
        whole
    }

    /// Bytes were sent.
    pub(crate) fn spend(&mut self, bytes: usize) {
        #[expect(clippy::cast_precision_loss, reason = "at most a burst")]
        let bytes = bytes as f64;
        self.tokens -= bytes;
    }

    /// How long to wait before a useful amount may be sent.
    pub(crate) fn wait(&self) -> Duration {
        let missing = (self.bytes_per_second * PORTION - self.tokens).max(0.0);
        Duration::from_secs_f64(missing / self.bytes_per_second)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes sent in the first second by somebody who has always something to send, and comes back so
    /// long after it could.
    fn sent_in_a_second(late: Duration) -> usize {
        let start = Instant::now();
        let mut pace = Pace::new(1_000_000, start);
        let (mut now, mut sent) = (start, 0);
        while now < start + Duration::from_secs(1) {
            let allowed = pace.allowance(now);
            pace.spend(allowed);
            sent += allowed;
            now += pace.wait() + late;
        }
        sent
    }

    #[test]
    fn any_second_carries_the_rate_and_no_more() {
        let sent = sent_in_a_second(Duration::from_micros(100));
        assert!((930_000..=960_000).contains(&sent), "{sent}");
    }

    #[test]
    fn a_wake_up_that_comes_late_costs_nothing() {
        let sent = sent_in_a_second(Duration::from_millis(20));
        assert!((930_000..=960_000).contains(&sent), "{sent}");
    }

    #[test]
    fn an_idle_hour_does_not_add_up() {
        let start = Instant::now();
        let mut pace = Pace::new(1_000_000, start);
        assert_eq!(pace.allowance(start + Duration::from_secs(3600)), 28_692);
    }
}
