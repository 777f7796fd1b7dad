//! What was asked when, and when the answers came: over the whole run and between marks.

use std::time::{Duration, Instant};

use lab::client::Window;

/// Collects requests and answers.
pub(crate) struct Record {
    begun: Instant,
    /// When each request was due, and when its answer came.
    requests: Vec<(Instant, Option<Instant>)>,
    /// When answers came, in their order.
    arrivals: Vec<Instant>,
    /// When connections broke.
    breaks: Vec<Instant>,
    /// Where windows begin.
    marks: Vec<(Instant, String)>,
    /// Further windows, which may overlap those.
    spans: Vec<(String, Instant, Instant)>,
}

impl Record {
    pub(crate) fn new(now: Instant) -> Self {
        Record {
            begun: now,
            requests: Vec::new(),
            arrivals: Vec::new(),
            breaks: Vec::new(),
            marks: Vec::new(),
            spans: Vec::new(),
        }
    }

    /// Begins now and not when it was made: nobody was there to be asked.
    pub(crate) fn begin(&mut self, now: Instant) {
        self.begun = now;
    }

    /// A request that is due at a moment; yields its number.
    pub(crate) fn ask(&mut self, due: Instant) -> usize {
        self.requests.push((due, None));
        self.requests.len() - 1
    }

    /// The answer to a request. What is answered twice, or was never asked, does not count.
    pub(crate) fn answer(&mut self, number: usize, now: Instant) {
        if let Some((_, answered @ None)) = self.requests.get_mut(number) {
            *answered = Some(now);
            self.arrivals.push(now);
        }
    }

    pub(crate) fn broke(&mut self, now: Instant) {
        self.breaks.push(now);
    }

    pub(crate) fn mark(&mut self, name: &str, now: Instant) {
        self.marks.push((now, name.to_owned()));
    }

    /// A window that is told afterwards.
    pub(crate) fn span(&mut self, name: &str, begins: Instant, ends: Instant) {
        self.spans.push((name.to_owned(), begins, ends));
    }

    pub(crate) fn sent(&self) -> u64 {
        self.requests.len() as u64
    }

    pub(crate) fn answered(&self) -> u64 {
        self.arrivals.len() as u64
    }

    /// The whole run as one window.
    pub(crate) fn whole(&self) -> Window {
        // Silence before the first answer is a gap, too.
        let mut whole = self.window("whole", self.begun, None);
        if let Some(first) = self.arrivals.first() {
            whole.longest_gap_ms = whole.longest_gap_ms.max(millis(*first - self.begun));
        }
        whole
    }

    /// A window for each mark, up to the next one or the end, and those that were told afterwards.
    pub(crate) fn windows(&self) -> Vec<Window> {
        let ends = self.marks.iter().skip(1).map(|(at, _)| Some(*at));
        self.marks
            .iter()
            .zip(ends.chain([None]))
            .map(|((begins, name), ends)| self.window(name, *begins, ends))
            .chain(
                self.spans
                    .iter()
                    .map(|(name, begins, ends)| self.window(name, *begins, Some(*ends))),
            )
            .collect()
    }

    /// Requests count where they were due, answers and what breaks where they happened, a gap where
    /// it began.
    fn window(&self, name: &str, begins: Instant, ends: Option<Instant>) -> Window {
        let within = |at: Instant| at >= begins && ends.is_none_or(|ends| at < ends);
        let due = || self.requests.iter().filter(|(due, _)| within(*due));
        let mut latencies: Vec<Duration> = due()
            .filter_map(|(due, answered)| Some(answered.as_ref()?.saturating_duration_since(*due)))
            .collect();
        latencies.sort_unstable();
        let sent = due().count() as u64;
        let answered = self.arrivals.iter().filter(|at| within(**at)).count() as u64;
        // The last window ends with the last request: after that nothing is asked any more.
        let last = self.requests.last().map_or(begins, |(due, _)| *due);
        let seconds = ends
            .unwrap_or(last)
            .saturating_duration_since(begins)
            .as_secs_f64();
        let gaps = self.arrivals.windows(2).filter(|two| within(two[0]));
        Window {
            name: name.to_owned(),
            seconds,
            sent,
            answered,
            lost: sent - latencies.len() as u64,
            broken_connections: self.breaks.iter().filter(|at| within(**at)).count() as u64,
            per_second: rate(answered, seconds),
            p50_ms: permille_ms(&latencies, 500),
            p99_ms: permille_ms(&latencies, 990),
            max_ms: permille_ms(&latencies, 1000),
            longest_gap_ms: gaps.map(|two| millis(two[1] - two[0])).fold(0.0, f64::max),
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "a million requests at most")]
fn rate(count: u64, seconds: f64) -> f64 {
    if seconds > 0.0 {
        count as f64 / seconds
    } else {
        0.0
    }
}

/// What `share` of a thousand do not exceed, in milliseconds.
fn permille_ms(sorted: &[Duration], share: usize) -> f64 {
    let at = (sorted.len() * share / 1000).min(sorted.len().saturating_sub(1));
    sorted.get(at).map_or(0.0, |latency| millis(*latency))
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_count_where_they_were_due_and_gaps_where_they_began() {
        let begun = Instant::now();
        let at = |ms| begun + Duration::from_millis(ms);
        let mut record = Record::new(begun);
        record.mark("before", at(0));
        for due in (0..300).step_by(10) {
            let number = record.ask(at(due));
            match due {
                // Lost.
                110 => {}
                // Everything waits for the one at 200.
                120..200 => record.answer(number, at(201)),
                _ => record.answer(number, at(due + 1)),
            }
        }
        record.mark("during", at(100));
        record.mark("after", at(200));
        record.broke(at(150));
        let [before, during, after] = &record.windows()[..] else {
            panic!("not three windows");
        };
        assert_eq!((before.sent, before.lost, before.answered), (10, 0, 10));
        assert_eq!((during.sent, during.lost, during.answered), (10, 1, 1));
        assert_eq!((after.sent, after.lost), (10, 0));
        assert_eq!(after.answered, 18);
        assert!((during.longest_gap_ms - 100.0).abs() < 0.01, "{during:?}");
        assert!((during.max_ms - 81.0).abs() < 0.01, "{during:?}");
        assert!((before.p50_ms - 1.0).abs() < 0.01, "{before:?}");
        assert_eq!(
            (before.broken_connections, during.broken_connections),
            (0, 1)
        );
        assert!((before.per_second - 100.0).abs() < 0.01, "{before:?}");
        let whole = record.whole();
        assert_eq!((whole.sent, whole.lost, whole.answered), (30, 1, 29));
        // An answer that comes twice counts once.
        record.answer(0, at(400));
        assert_eq!(record.answered(), 29);
    }
}
