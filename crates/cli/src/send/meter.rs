//! Rates, smoothed, and what they promise.

use std::time::{Duration, Instant};

/// Time constant of the smoothing: long enough to ride out one pass's bursts, short enough to
/// follow a link that changes.
const SMOOTHING: f64 = 3.0;
/// Shortest time between two samples.
const SAMPLE_EVERY: Duration = Duration::from_millis(200);
/// Weight of the newest sample of what a link carries, where it is less than before.
const LINK_NEWEST: f64 = 0.1;
/// And where what it carries changes with what is sent.
const LINK_NEWEST_OF_MANY: f64 = 0.4;

/// A counter's smoothed rate. Time is the caller's.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Meter {
    per_second: Option<f64>,
    last: (Instant, u64),
}

impl Meter {
    pub(crate) fn new(now: Instant) -> Self {
        Meter {
            per_second: None,
            last: (now, 0),
        }
    }

    /// The counter stands at `total`.
    pub(crate) fn sample(&mut self, now: Instant, total: u64) {
        let (at, before) = self.last;
        let passed = now.saturating_duration_since(at);
        if passed < SAMPLE_EVERY {
            return;
        }
        let seconds = passed.as_secs_f64();
        #[expect(clippy::cast_precision_loss, reason = "a rate, not a count")]
        let rate = total.saturating_sub(before) as f64 / seconds;
        let weight = 1.0 - (-seconds / SMOOTHING).exp();
        self.per_second = Some(match self.per_second {
            Some(smoothed) => smoothed + weight * (rate - smoothed),
            None => rate,
        });
        self.last = (now, total);
    }

    /// Units per second.
    pub(crate) fn rate(&self) -> f64 {
        self.per_second.unwrap_or(0.0)
    }
}

/// Samples of a full link after which its rate is known. Fewer samples may all fall into a moment in which
/// the receiver was busy; a job whose pause is estimated from those is moved live for good.
const LINK_KNOWN_AFTER: u32 = 3;

/// What the link carries, measured while it is full: while something waits for it all the time.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LinkRate {
    full_since: Option<Instant>,
    bytes: u64,
    per_second: Option<f64>,
    samples: u32,
    newest: f64,
}

impl Default for LinkRate {
    fn default() -> Self {
        LinkRate {
            full_since: None,
            bytes: 0,
            per_second: None,
            samples: 0,
            newest: LINK_NEWEST,
        }
    }
}

impl LinkRate {
    /// What is counted is not what the link carries but what that stands for, some of which is
    /// compressed better than the rest.
    pub(crate) fn follow_closely(&mut self) {
        self.newest = LINK_NEWEST_OF_MANY;
    }

    /// So many bytes went out, and something waits, or not.
    pub(crate) fn sent(&mut self, now: Instant, bytes: u64, waits: bool) {
        let Some(since) = self.full_since.filter(|_| waits) else {
            // What the socket took until it was full says nothing.
            self.full_since = waits.then_some(now);
            self.bytes = 0;
            return;
        };
        self.bytes += bytes;
        let passed = now.saturating_duration_since(since);
        // A slow link takes bytes now and then. If it takes none, it is not known yet whether it is
        // slow or away: what was away is forgotten when the connection is lost.
        if passed < SAMPLE_EVERY || self.bytes == 0 {
            return;
        }
        #[expect(clippy::cast_precision_loss, reason = "a rate, not a count")]
        let rate = self.bytes as f64 / passed.as_secs_f64();
        // A receiver that is busy for a moment looks like a slow link, and nothing makes a link look
        // fast: it is believed to be faster at once, and slower by and by.
        self.per_second = Some(match self.per_second {
            Some(before) if rate < before => before + self.newest * (rate - before),
            _ => rate,
        });
        self.samples = self.samples.saturating_add(1);
        self.full_since = Some(now);
        self.bytes = 0;
    }

    /// Bytes per second, once something has waited for long enough.
    pub(crate) fn rate(&self) -> Option<u64> {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a rate is neither negative nor near the limit"
        )]
        self.per_second
            .filter(|_| self.samples >= LINK_KNOWN_AFTER)
            .map(|rate| rate as u64)
    }
}

/// Seconds until `remaining` bytes have shrunk to what fits `downtime`, if they are sent at
/// `drained` and come anew at `dirtied` bytes a second; `None` if that is never.
pub(crate) fn seconds_to_switchover(
    remaining: f64,
    drained: f64,
    dirtied: f64,
    downtime: Duration,
) -> Option<f64> {
    let threshold = drained * downtime.as_secs_f64();
    if remaining <= threshold {
        return Some(0.0);
    }
    let shrinks = drained - dirtied;
    (shrinks > 0.0).then(|| (remaining - threshold) / shrinks)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_steady_counter_has_its_rate() {
        let start = Instant::now();
        let mut meter = Meter::new(start);
        for i in 1..=50 {
            meter.sample(start + Duration::from_millis(200 * i), 20_000 * i);
        }
        assert!((meter.rate() - 100_000.0).abs() < 1.0, "{}", meter.rate());
    }

    #[test]
    fn a_link_is_measured_only_while_it_is_full() {
        let start = Instant::now();
        let mut rate = LinkRate::default();
        let at = |ms| start + Duration::from_millis(ms);
        rate.sent(at(0), 1_000_000, false);
        // The socket fills.
        rate.sent(at(5000), 1_000_000, true);
        assert_eq!(rate.rate(), None);
        for tick in 1..=10 {
            rate.sent(at(5000 + 100 * tick), 10_000, true);
        }
        assert_eq!(rate.rate(), Some(100_000));
        // It was not full all the time.
        rate.sent(at(6100), 10_000, false);
        rate.sent(at(6200), 500_000, true);
        rate.sent(at(6300), 0, false);
        rate.sent(at(60_000), 0, false);
        assert_eq!(rate.rate(), Some(100_000));
    }

    #[test]
    fn a_receiver_that_is_busy_at_first_is_no_slow_link() {
        let start = Instant::now();
        let mut rate = LinkRate::default();
        let at = |ms| start + Duration::from_millis(ms);
        rate.sent(at(0), 0, true);
        for (ms, bytes) in [(200, 1_000), (400, 2_000)] {
            rate.sent(at(ms), bytes, true);
            assert_eq!(rate.rate(), None);
        }
        rate.sent(at(600), 20_000, true);
        assert_eq!(rate.rate(), Some(100_000));
    }

    #[test]
    fn a_link_that_was_away_was_not_slow() {
        let start = Instant::now();
        let mut rate = LinkRate::default();
        let at = |ms| start + Duration::from_millis(ms);
        for tick in 0..=10 {
            rate.sent(at(100 * tick), 10_000, true);
        }
        assert_eq!(rate.rate(), Some(100_000));
        // Away, and then known to be.
        for tick in 11..=40 {
            rate.sent(at(100 * tick), 0, true);
        }
        rate.sent(at(4100), 0, false);
        assert_eq!(rate.rate(), Some(100_000));
        // In large pieces, far between: slow.
        for tick in 0..=60 {
            let bytes = if tick % 10 == 0 { 10_000 } else { 0 };
            rate.sent(at(5000 + 100 * tick), bytes, true);
        }
        assert!(rate.rate().is_some_and(|rate| rate < 70_000), "{rate:?}");
    }

    #[test]
    fn a_vm_that_outruns_the_link_never_gets_there() {
        let downtime = Duration::from_millis(300);
        let at = |dirtied| seconds_to_switchover(600e6, 100e6, dirtied, downtime);
        assert_eq!(at(100e6), None);
        assert_eq!(at(1e9), None);
        assert!(at(43e6).is_some_and(|seconds| (seconds - 10.0).abs() < 0.01));
        assert_eq!(seconds_to_switchover(1e6, 100e6, 1e9, downtime), Some(0.0));
    }
}
