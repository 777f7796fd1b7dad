//! How fast somebody makes memory dirty.

use std::time::Duration;

/// A longer sample that brings at least this part of what a steady rate would says nothing of how
/// much is written in the end: rates vary by themselves.
const STEADY: f64 = 0.6;

/// Distinct bytes written over time: at first as fast as it writes, in the end no more than what
/// it writes again and again.
///
/// The two are joined by a corner, which no real writer exceeds: one that goes through its memory
/// in order follows it exactly, others repeat themselves before.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Dirtying {
    /// Bytes a second.
    rate: f64,
    /// Bytes.
    most: f64,
}

impl Dirtying {
    /// At `rate` bytes a second, of `most` bytes in all.
    pub const fn new(rate: u64, most: u64) -> Self {
        Dirtying {
            rate: real(rate),
            most: real(most),
        }
    }

    /// From two samples, the distinct bytes written within a time each, the second the longer; of
    /// somebody who has so much memory. How much of it is written in the end shows in how many
    /// pages were written twice in the longer sample.
    pub fn from_samples(short: (Duration, u64), long: (Duration, u64), memory: u64) -> Self {
        let (short_time, long_time) = (seconds(short.0), seconds(long.0));
        let (short_bytes, long_bytes) = (real(short.1), real(long.1));
        let rate = (short_bytes / short_time).max(long_bytes / long_time);
        let memory = real(memory).max(long_bytes).max(short_bytes);
        let growth = long_bytes / short_bytes.max(1.0);
        let most = if growth >= STEADY * long_time / short_time {
            memory
        } else if growth <= 1.0 {
            short_bytes.max(long_bytes)
        } else {
            saturation(short_time, long_time, growth, long_bytes)
        };
        Dirtying {
            rate,
            most: most.min(memory),
        }
    }

    /// Distinct bytes written within so many seconds.
    pub(super) fn within(&self, seconds: f64) -> f64 {
        (self.rate * seconds).min(self.most)
    }

    /// If it wrote `factor` times as fast.
    pub(super) fn times(&self, factor: f64) -> Self {
        Dirtying {
            rate: self.rate * factor,
            most: self.most,
        }
    }

    /// Bytes a second at first.
    pub fn rate(&self) -> u64 {
        whole(self.rate)
    }

    /// Bytes in the end.
    pub fn most(&self) -> u64 {
        whole(self.most)
    }
}

/// Of somebody who writes pages at random: what `most` is in `most * (1 - exp(-time / t))`, if
/// that grows so much from the shorter time to the longer.
fn saturation(short: f64, long: f64, growth: f64, long_bytes: f64) -> f64 {
    const STEPS: u32 = 60;
    let part = |time: f64, constant: f64| -(-time / constant).exp_m1();
    // The growth increases with the constant: halve the bracket.
    let (mut low, mut high) = (long * 1e-3, long * 1e3);
    for _ in 0..STEPS {
        let middle = (low * high).sqrt();
        if part(long, middle) / part(short, middle) < growth {
            low = middle;
        } else {
            high = middle;
        }
    }
    long_bytes / part(long, low)
}

/// A time of a sample, which is never nothing.
fn seconds(time: Duration) -> f64 {
    time.as_secs_f64().max(1e-3)
}

#[expect(clippy::cast_precision_loss, reason = "an estimate")]
pub(super) const fn real(bytes: u64) -> f64 {
    bytes as f64
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "an estimate; negative and endless numbers become the bounds"
)]
pub(super) fn whole(bytes: f64) -> u64 {
    bytes.round() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    const HALF: Duration = Duration::from_millis(500);
    const WHOLE: Duration = Duration::from_secs(1);

    #[test]
    fn who_does_not_repeat_itself_may_write_all_its_memory() {
        let found = Dirtying::from_samples((HALF, 50 << 20), (WHOLE, 100 << 20), 600 << 20);
        assert_eq!((found.rate(), found.most()), (100 << 20, 600 << 20));
        assert_eq!(whole(found.within(3.0)), 300 << 20);
        assert_eq!(whole(found.within(60.0)), 600 << 20);
    }

    #[test]
    fn who_writes_the_same_again_writes_no_more() {
        let found = Dirtying::from_samples((HALF, 40 << 20), (WHOLE, 40 << 20), 600 << 20);
        assert_eq!(found.most(), 40 << 20);
    }

    #[test]
    fn a_random_writer_is_recognised() {
        // 200 MB written at random, most of them within a quarter of a second.
        let at = |time: f64| whole(200e6 * (1.0 - (-time / 0.25).exp()));
        let found = Dirtying::from_samples((HALF, at(0.5)), (WHOLE, at(1.0)), 10 << 30);
        assert!(found.most().abs_diff(200_000_000) < 1_000_000, "{found:?}");
    }

    #[test]
    fn an_idle_process_writes_nothing() {
        let found = Dirtying::from_samples((HALF, 0), (WHOLE, 0), 600 << 20);
        assert_eq!(whole(found.within(1e9)), 0);
    }
}
