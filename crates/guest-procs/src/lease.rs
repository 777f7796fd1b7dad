//! A lease: whoever wants processes to stay frozen has to say so again and again.

use std::time::{Duration, Instant};

/// Time until which processes may stay frozen. Knows no clock.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Lease {
    until: Option<Instant>,
}

impl Lease {
    /// Runs for `length` from `now` on, if that is later than before.
    pub fn renew(&mut self, now: Instant, length: Duration) {
        let until = now.checked_add(length).unwrap_or(now);
        self.until = Some(self.until.map_or(until, |before| before.max(until)));
    }

    /// There is none any more.
    pub fn end(&mut self) {
        self.until = None;
    }

    /// It was given and has run out: thaw.
    pub fn expired(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| now >= until)
    }

    /// How long it runs on: until when to wait at most.
    pub fn remaining(&self, now: Instant) -> Option<Duration> {
        self.until.map(|until| until.saturating_duration_since(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_runs_out_unless_renewed() {
        let second = Duration::from_secs(1);
        let begin = Instant::now();
        let mut lease = Lease::default();
        assert!(!lease.expired(begin));
        assert_eq!(lease.remaining(begin), None);
        lease.renew(begin, 2 * second);
        assert!(!lease.expired(begin + second));
        assert_eq!(lease.remaining(begin + second), Some(second));
        // An order that was on its way for long does not shorten it.
        lease.renew(begin, second);
        assert!(!lease.expired(begin + second));
        assert!(lease.expired(begin + 2 * second));
        assert_eq!(lease.remaining(begin + 3 * second), Some(Duration::ZERO));
        lease.renew(begin + 3 * second, second);
        assert!(!lease.expired(begin + 3 * second));
        lease.end();
        assert!(!lease.expired(begin + 9 * second));
    }
}
