//! Samples as bytes in equal stretches of time.

use super::axis::{Span, number};
use crate::report::Sample;

/// Most bars in a chart.
const BARS_MAX: u64 = 90;
/// Lengths of a bar in milliseconds: never below the distance of two samples.
const LENGTHS: [u64; 12] = [
    100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 60_000, 300_000, 1_200_000, 3_600_000,
];

/// What travels, in the order in which it is stacked.
pub(super) const CLASSES: [Class; 6] = [
    Class {
        key: "live",
        word: "live",
        meaning: "memory that travels while everybody may write it",
    },
    Class {
        key: "paused",
        word: "paused",
        meaning: "memory of processes that stood",
    },
    Class {
        key: "cooled",
        word: "cooled",
        meaning: "memory that was kept back until nobody had written it for a pass",
    },
    Class {
        key: "flushed",
        word: "flushed",
        meaning: "memory that was kept back and had to go",
    },
    Class {
        key: "followed",
        word: "followed",
        meaning: "memory that followed after the switchover",
    },
    Class {
        key: "other",
        word: "other",
        meaning: "devices, pages of zeros, which cost a few bytes each, and framing",
    },
];

/// A kind of bytes on the wire.
#[derive(Debug, Clone, Copy)]
pub(super) struct Class {
    pub(super) key: &'static str,
    pub(super) word: &'static str,
    pub(super) meaning: &'static str,
}

/// Bytes of each class in one stretch of time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Bin {
    pub(super) from: u64,
    pub(super) to: u64,
    pub(super) bytes: [f64; 6],
}

impl Bin {
    /// Bytes a second of all classes together.
    pub(super) fn rate(&self) -> f64 {
        self.bytes.iter().sum::<f64>() / self.seconds()
    }

    pub(super) fn seconds(&self) -> f64 {
        number((self.to - self.from).max(1)) / 1000.0
    }
}

/// Counters of all classes at one moment, which never go back.
type Totals = (u64, [u64; 6]);

fn totals(samples: &[Sample]) -> Vec<Totals> {
    let mut before = [0; 6];
    let total = |sample: &Sample| {
        let pages = [
            sample.live_bytes,
            sample.paused_bytes,
            sample.cooled_bytes,
            sample.flushed_bytes,
            sample.followed_bytes,
        ];
        // What waits in the relay has been counted as pages, and not yet as sent.
        let other = sample.wire_bytes.saturating_sub(pages.iter().sum());
        let [live, paused, cooled, flushed, followed] = pages;
        let now = [live, paused, cooled, flushed, followed, other];
        for (before, now) in before.iter_mut().zip(now) {
            *before = now.max(*before);
        }
        (sample.t_ms, before)
    };
    samples.iter().map(total).collect()
}

/// Bytes of each class at the end.
pub(super) fn sums(samples: &[Sample]) -> [u64; 6] {
    totals(samples).last().map_or([0; 6], |(_, sums)| *sums)
}

/// The span in equal stretches; the last one takes what is left.
pub(super) fn bins(samples: &[Sample], span: Span) -> Vec<Bin> {
    let totals = totals(samples);
    let fits = |length: &&u64| span.length() / **length < BARS_MAX;
    let length = *LENGTHS.iter().find(fits).unwrap_or(&LENGTHS[11]);
    let count = ((span.length() + length / 2) / length).clamp(1, BARS_MAX);
    let edge = |i: u64| match i == count {
        true => span.from + span.length(),
        false => span.from + i * length,
    };
    let bin = |i| {
        let (from, to) = (edge(i), edge(i + 1));
        let (before, after) = (at(&totals, from), at(&totals, to));
        let mut bytes = after;
        for (bytes, before) in bytes.iter_mut().zip(before) {
            *bytes -= before;
        }
        Bin { from, to, bytes }
    };
    (0..count).map(bin).collect()
}

/// The counters at a moment between two samples.
fn at(totals: &[Totals], t_ms: u64) -> [f64; 6] {
    let next = totals.partition_point(|(t, _)| *t < t_ms);
    let as_numbers = |sums: [u64; 6]| sums.map(number);
    match (next.checked_sub(1).map(|i| totals[i]), totals.get(next)) {
        (None, None) => [0.0; 6],
        (None, Some((t, sums))) if *t == t_ms => as_numbers(*sums),
        (None, Some(_)) => [0.0; 6],
        (Some((_, sums)), None) => as_numbers(sums),
        (Some((t0, before)), Some((t1, after))) => {
            let part = number(t_ms - t0) / number((t1 - t0).max(1));
            let mut between = as_numbers(before);
            for (value, after) in between.iter_mut().zip(after) {
                *value += (number(*after) - *value) * part;
            }
            between
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(t_ms: u64, live: u64, paused: u64, wire: u64) -> Sample {
        Sample {
            t_ms,
            live_bytes: live,
            paused_bytes: paused,
            wire_bytes: wire,
            ..Sample::default()
        }
    }

    #[test]
    fn every_byte_is_in_one_bar() {
        let samples: Vec<Sample> = (0..=37)
            .map(|i| sample(1000 + 103 * i, 1_000_000 * i, 300_000 * i, 1_310_000 * i))
            .collect();
        for to in [1001, 1100, 2500, 4811, 400_000] {
            let bins = bins(&samples, Span { from: 1000, to });
            assert!(bins.len() <= 91, "{}", bins.len());
            assert_eq!(bins.first().map(|bin| bin.from), Some(1000));
            assert_eq!(bins.last().map(|bin| bin.to), Some(to));
            let sum: f64 = bins.iter().flat_map(|bin| bin.bytes).sum();
            let due = number((to - 1000).min(3811)) / 103.0 * 1_310_000.0;
            assert!((sum - due).abs() < 2.0, "{sum} {due}");
        }
    }

    #[test]
    fn what_waits_in_the_relay_never_makes_a_bar_negative() {
        let samples = [
            sample(0, 0, 0, 0),
            sample(100, 500_000, 0, 100_000),
            sample(200, 600_000, 0, 640_000),
            sample(300, 900_000, 0, 700_000),
        ];
        assert_eq!(sums(&samples), [900_000, 0, 0, 0, 0, 40_000]);
        for bin in bins(&samples, Span { from: 0, to: 300 }) {
            assert!(bin.bytes.iter().all(|bytes| *bytes >= 0.0), "{bin:?}");
        }
    }

    #[test]
    fn nothing_is_known_of_a_migration_without_samples() {
        let bins = bins(&[], Span { from: 0, to: 1000 });
        assert!(bins.iter().all(|bin| bin.bytes == [0.0; 6]));
    }
}
