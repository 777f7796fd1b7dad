//! When to tell the peer that this side lives, and when to give the peer up.

use std::time::{Duration, Instant};

/// Silence after which a side sends a keep-alive.
const SEND_AFTER: Duration = Duration::from_secs(1);

/// Watches one connection. Time is the caller's.
#[derive(Debug, Clone, Copy)]
pub struct KeepAlive {
    limit: Duration,
    sent: Instant,
    heard: Instant,
}

/// What [`KeepAlive::check`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Liveness {
    /// Nothing to do until the given moment.
    Fine(Instant),
    /// Send a keep-alive now.
    SendNow,
    /// The peer has been silent for longer than the limit.
    Lost,
}

impl KeepAlive {
    /// Watches from `now` on; a peer silent for `limit` is lost.
    pub fn new(limit: Duration, now: Instant) -> Self {
        KeepAlive {
            limit,
            sent: now,
            heard: now,
        }
    }

    /// Bytes were sent.
    pub fn on_sent(&mut self, now: Instant) {
        self.sent = now;
    }

    /// Bytes were received.
    pub fn on_heard(&mut self, now: Instant) {
        self.heard = now;
    }

    /// What to do at `now`.
    pub fn check(&self, now: Instant) -> Liveness {
        let lost_at = self.heard + self.limit;
        let send_at = self.sent + SEND_AFTER;
        if now >= lost_at {
            Liveness::Lost
        } else if now >= send_at {
            Liveness::SendNow
        } else {
            Liveness::Fine(lost_at.min(send_at))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_is_filled_and_then_ends() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut watch = KeepAlive::new(Duration::from_secs(3), start);
        assert_eq!(watch.check(at(10)), Liveness::Fine(at(1000)));
        assert_eq!(watch.check(at(1000)), Liveness::SendNow);
        watch.on_sent(at(1000));
        watch.on_sent(at(2500));
        assert_eq!(watch.check(at(2600)), Liveness::Fine(at(3000)));
        assert_eq!(watch.check(at(3000)), Liveness::Lost);
        watch.on_heard(at(2999));
        assert_eq!(watch.check(at(3000)), Liveness::Fine(at(3500)));
    }
}
