//! Which way to compress pays: measured, not believed.
//!
//! Sending and compressing go on side by side, so a byte takes as long as the slower of the two.

use std::time::Duration;

use crate::Method;

/// The link's rate in bytes a second until it has been measured: that of 1 Gbit/s.
const RATE_AT_FIRST: u64 = 119_000_000;
/// What is saved by compressing must be more than this share, or it is not worth the processor.
const LEAST_GAIN: f64 = 0.05;
/// Weight of the newest measurement.
const NEWEST: f64 = 0.25;
/// Batches between two tries of another way, at first; doubled with every try that changes nothing.
const TRY_EVERY: u32 = 8;
const TRY_EVERY_AT_MOST: u32 = 128;
/// What is lost by tries is to be less than this share of all time.
const LOST_BY_TRIES: f64 = 0.04;
/// A way that would take so many times as long as the best even where nothing else wants the
/// processor is not tried.
const HOPELESS: f64 = 2.0;
/// A measurement that is so many batches old says nothing any more: it depends on what else wants the
/// processor.
const STALE: u64 = 64;

/// Chooses how batches are compressed.
#[derive(Debug, Clone)]
pub struct Chooser {
    ways: Vec<Way>,
    threads: f64,
    fixed: bool,
    /// Position of the best way at last; `None` is to leave it.
    best: Option<usize>,
    until_try: u32,
    try_every: u32,
    tries_slower: bool,
    batches: u64,
}

/// What is known of one way.
#[derive(Debug, Clone, Copy)]
struct Way {
    method: Method,
    /// Packed bytes for each plain one.
    ratio: f64,
    /// Seconds of one thread for each plain byte.
    seconds: f64,
    /// What is usual.
    usually: f64,
    /// Batches that there had been when it was measured last.
    measured: Option<u64>,
}

impl Way {
    /// With what is usual for memory and processors of these days, until it is measured.
    fn usual(method: Method, ratio: f64, bytes_per_second: f64) -> Self {
        Way {
            method,
            ratio,
            seconds: 1.0 / bytes_per_second,
            usually: 1.0 / bytes_per_second,
            measured: None,
        }
    }
}

impl Chooser {
    /// Chooses for `threads` threads that compress.
    pub fn new(threads: usize) -> Self {
        let ways = vec![
            Way::usual(Method::Lz4, 0.5, 500e6),
            Way::usual(Method::Zstd(1), 0.4, 300e6),
            Way::usual(Method::Zstd(3), 0.37, 170e6),
            Way::usual(Method::Zstd(6), 0.35, 70e6),
        ];
        Self::among(ways, threads, false)
    }

    /// Always chooses this.
    pub fn fixed(method: Method) -> Self {
        Self::among(vec![Way::usual(method, 0.4, 100e6)], 1, true)
    }

    fn among(ways: Vec<Way>, threads: usize, fixed: bool) -> Self {
        #[expect(clippy::cast_precision_loss, reason = "a few")]
        let threads = threads.max(1) as f64;
        Chooser {
            ways,
            threads,
            fixed,
            best: None,
            until_try: TRY_EVERY,
            try_every: TRY_EVERY,
            tries_slower: true,
            batches: 0,
        }
    }

    /// How to compress the next batch, given what the link carries in bytes a second; `None` is to
    /// leave it as it is.
    pub fn choose(&mut self, link: Option<u64>) -> Option<Method> {
        self.batches += 1;
        if self.fixed {
            return Some(self.ways[0].method);
        }
        let (best, time) = self.best_for(link);
        if best != self.best {
            self.best = best;
            self.try_every = TRY_EVERY;
            self.until_try = TRY_EVERY;
        }
        self.until_try = self.until_try.saturating_sub(1);
        if self.until_try > 0 {
            return best.map(|at| self.ways[at].method);
        }
        let other = self.another(best, time, link);
        let cost = other.map_or(0.0, |at| self.time(&self.ways[at], link) / time);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "it saturates"
        )]
        let affordable = (cost / LOST_BY_TRIES) as u32;
        self.until_try = self.try_every.max(affordable);
        self.try_every = (self.try_every * 2).min(TRY_EVERY_AT_MOST);
        other.or(best).map(|at| self.ways[at].method)
    }

    /// A batch of `plain` bytes has become `packed` bytes in this time.
    pub fn learnt(&mut self, method: Method, plain: usize, packed: usize, took: Duration) {
        let Some(way) = self.ways.iter_mut().find(|way| way.method == method) else {
            return;
        };
        #[expect(clippy::cast_precision_loss, reason = "a batch")]
        let (plain, packed) = (plain.max(1) as f64, packed as f64);
        let is_fresh = way.measured.is_some_and(|at| self.batches - at < STALE);
        let weight = if is_fresh { NEWEST } else { 1.0 };
        way.ratio += weight * (packed / plain - way.ratio);
        way.seconds += weight * (took.as_secs_f64() / plain - way.seconds);
        way.measured = Some(self.batches);
    }

    /// The best way, and the seconds that a byte takes.
    fn best_for(&self, link: Option<u64>) -> (Option<usize>, f64) {
        let plain = per_byte(link);
        let times = self.ways.iter().map(|way| self.time(way, link));
        let best = times.enumerate().min_by(|a, b| a.1.total_cmp(&b.1));
        match best {
            Some((at, time)) if time < plain * (1.0 - LEAST_GAIN) => (Some(at), time),
            _ => (None, plain),
        }
    }

    fn time(&self, way: &Way, link: Option<u64>) -> f64 {
        (way.ratio * per_byte(link)).max(way.seconds / self.threads)
    }

    /// A neighbour of the best way that is worth a try: the next slower one and the next faster one
    /// by turns.
    fn another(&mut self, best: Option<usize>, time: f64, link: Option<u64>) -> Option<usize> {
        self.tries_slower = !self.tries_slower;
        let neighbour = match (best, self.tries_slower) {
            (None, _) => 0,
            (Some(best), true) => best + 1,
            (Some(best), false) => best.checked_sub(1)?,
        };
        let way = self.ways.get(neighbour)?;
        let at_best = Way {
            seconds: way.seconds.min(way.usually),
            ..*way
        };
        (self.time(&at_best, link) < time * HOPELESS).then_some(neighbour)
    }
}

fn per_byte(link: Option<u64>) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "a rate, not a count")]
    let rate = link.unwrap_or(RATE_AT_FIRST).max(1) as f64;
    1.0 / rate
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A machine on which each way has a ratio and a speed.
    struct Machine {
        ways: [(Method, f64, f64); 4],
        threads: usize,
    }

    impl Machine {
        fn usual() -> Self {
            Machine {
                ways: [
                    (Method::Lz4, 0.6, 600e6),
                    (Method::Zstd(1), 0.45, 350e6),
                    (Method::Zstd(3), 0.40, 200e6),
                    (Method::Zstd(6), 0.38, 80e6),
                ],
                threads: 1,
            }
        }

        /// Seconds a byte takes.
        fn time(&self, method: Option<Method>, link: f64) -> f64 {
            let Some(method) = method else {
                return 1.0 / link;
            };
            let (_, ratio, speed) = self.ways.iter().find(|way| way.0 == method).unwrap();
            #[expect(clippy::cast_precision_loss, reason = "a few")]
            let threads = self.threads as f64;
            (ratio / link).max(1.0 / (speed * threads))
        }

        fn least(&self, link: f64) -> f64 {
            let ways = self.ways.iter().map(|way| self.time(Some(way.0), link));
            ways.fold(1.0 / link, f64::min)
        }

        /// Seconds that `batches` batches take, if the chooser chooses.
        fn run(&self, chooser: &mut Chooser, link: f64, batches: u32) -> f64 {
            const BATCH: usize = 256 << 10;
            let mut seconds = 0.0;
            for _ in 0..batches {
                #[expect(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "a rate"
                )]
                let method = chooser.choose(Some(link as u64));
                #[expect(clippy::cast_precision_loss, reason = "a batch")]
                let bytes = BATCH as f64;
                seconds += bytes * self.time(method, link);
                if let Some(method) = method {
                    let (_, ratio, speed) = self.ways.iter().find(|way| way.0 == method).unwrap();
                    #[expect(
                        clippy::cast_possible_truncation,
                        clippy::cast_sign_loss,
                        reason = "a size"
                    )]
                    let packed = (bytes * ratio) as usize;
                    chooser.learnt(
                        method,
                        BATCH,
                        packed,
                        Duration::from_secs_f64(bytes / speed),
                    );
                }
            }
            #[expect(clippy::cast_precision_loss, reason = "a batch")]
            let bytes = f64::from(batches) * BATCH as f64;
            seconds / bytes
        }
    }

    #[test]
    fn a_slow_link_gets_small_batches_and_a_fast_one_plain_ones() {
        let machine = Machine::usual();
        let chosen = |link| {
            let mut chooser = Chooser::new(1);
            machine.run(&mut chooser, link, 200);
            chooser.best.map(|at| chooser.ways[at].method)
        };
        assert_eq!(chosen(1e6), Some(Method::Zstd(6)));
        assert_eq!(chosen(119e6), Some(Method::Zstd(1)));
        assert_eq!(chosen(400e6), Some(Method::Lz4));
        assert_eq!(chosen(3e9), None);
    }

    #[test]
    fn a_link_that_changes_changes_the_choice() {
        let machine = Machine::usual();
        let mut chooser = Chooser::new(1);
        machine.run(&mut chooser, 3e9, 1000);
        assert_eq!(chooser.best, None);
        let slow = machine.run(&mut chooser, 30e6, 1000);
        assert!(slow < machine.least(30e6) * 1.1);
        let fast = machine.run(&mut chooser, 3e9, 1000);
        assert!(fast < machine.least(3e9) * 1.1);
    }

    /// Somebody else has wanted the processor, and does not any more.
    #[test]
    fn a_way_that_was_slow_gets_another_chance() {
        let mut machine = Machine::usual();
        for way in &mut machine.ways {
            way.2 /= 20.0;
        }
        let mut chooser = Chooser::new(1);
        machine.run(&mut chooser, 119e6, 2000);
        assert_eq!(chooser.best, None);
        let machine = Machine::usual();
        machine.run(&mut chooser, 119e6, 1000);
        assert!(chooser.best.is_some());
        let later = machine.run(&mut chooser, 119e6, 1000);
        assert!(later < machine.least(119e6) * 1.1);
    }

    #[test]
    fn a_fixed_choice_stays() {
        let mut chooser = Chooser::fixed(Method::Zstd(9));
        for _ in 0..1000 {
            assert_eq!(chooser.choose(Some(u64::MAX)), Some(Method::Zstd(9)));
            chooser.learnt(Method::Zstd(9), 100, 100, Duration::from_secs(1));
        }
    }

    proptest! {
        /// Whatever the machine and the link, what it costs to find the best way out is little: the
        /// choice ends near the best, and never loses much to sending all as it is.
        #[test]
        fn the_choice_is_near_the_best_and_never_much_worse_than_plain(
            link in 1e6f64..1e10,
            speeds in prop::collection::vec(20e6f64..2e9, 4),
            ratios in prop::collection::vec(0.05f64..1.0, 4),
            threads in 1usize..5,
        ) {
            let mut machine = Machine::usual();
            machine.threads = threads;
            let (mut speeds, mut ratios) = (speeds, ratios);
            speeds.sort_by(|a, b| b.total_cmp(a));
            ratios.sort_by(|a, b| b.total_cmp(a));
            for (at, way) in machine.ways.iter_mut().enumerate() {
                (way.1, way.2) = (ratios[at], speeds[at]);
            }
            let mut chooser = Chooser::new(threads);
            let took = machine.run(&mut chooser, link, 4000);
            prop_assert!(took < 1.12 / link, "plain {}, took {took}", 1.0 / link);
        }
    }
}
