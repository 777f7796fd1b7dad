//! What each side has sent and received, so that a lost connection can be resumed.
//!
//! All that a side sends, frames and all, is one stream of bytes, numbered from 0. The receiver
//! tells now and then how far it has come ([`Message::Ack`](crate::Message::Ack)); until then the
//! sender keeps a copy. On a new connection each says at which byte it wants the other to go on.

use std::collections::VecDeque;

use crate::WireError;

/// One side's books.
#[derive(Debug)]
pub struct Ledger {
    /// What was sent and not acknowledged: the bytes up to `sent`.
    kept: VecDeque<u8>,
    sent: u64,
    /// So much at the front of `kept` has gone out on the present connection. All of it, unless
    /// something must be repeated.
    repeated: usize,
    received: u64,
    told: u64,
    limit: usize,
    ack_every: u64,
}

impl Ledger {
    /// Keeps at most `limit` bytes, and owes the peer a word every `ack_every` received bytes.
    pub fn new(limit: usize, ack_every: u64) -> Self {
        Ledger {
            kept: VecDeque::new(),
            sent: 0,
            repeated: 0,
            received: 0,
            told: 0,
            limit,
            ack_every,
        }
    }

    /// How many new bytes may be sent: none while others must be repeated.
    pub fn room(&self) -> usize {
        match self.must_repeat() {
            true => 0,
            false => self.limit - self.kept.len().min(self.limit),
        }
    }

    /// New bytes went out: no more than there was [`room`](Ledger::room) for.
    pub fn sent(&mut self, bytes: &[u8]) {
        debug_assert!(bytes.len() <= self.room());
        self.kept.extend(bytes);
        self.sent += bytes.len() as u64;
        self.repeated = self.kept.len();
    }

    /// Whether something must go out again before anything new.
    pub fn must_repeat(&self) -> bool {
        self.repeated < self.kept.len()
    }

    /// The next bytes that must.
    pub fn to_repeat(&self) -> &[u8] {
        let (front, back) = self.kept.as_slices();
        match front.get(self.repeated..) {
            Some(rest) if !rest.is_empty() => rest,
            _ => &back[self.repeated - front.len()..],
        }
    }

    /// Where in the stream what goes out next belongs.
    pub fn next_position(&self) -> u64 {
        self.sent - (self.kept.len() - self.repeated) as u64
    }

    /// So many of those went out.
    pub fn repeated(&mut self, count: usize) {
        self.repeated = (self.repeated + count).min(self.kept.len());
    }

    /// So many bytes have come.
    pub fn received(&mut self, count: usize) {
        self.received += count as u64;
    }

    /// Where the peer's stream goes on.
    pub fn position(&self) -> u64 {
        self.received
    }

    /// How far the peer is to be told that we have come, if it is time to.
    pub fn owes(&mut self) -> Option<u64> {
        if self.received - self.told < self.ack_every {
            return None;
        }
        self.told = self.received;
        Some(self.told)
    }

    /// The peer has everything up to there.
    pub fn acknowledged(&mut self, upto: u64) -> Result<(), WireError> {
        let first = self.sent - self.kept.len() as u64;
        if upto > self.sent {
            return Err(WireError::BadPosition);
        }
        // What it has told before on another connection may come late.
        let count = usize::try_from(upto.saturating_sub(first)).unwrap_or(usize::MAX);
        let count = count.min(self.kept.len());
        self.kept.drain(..count);
        self.repeated -= count.min(self.repeated);
        Ok(())
    }

    /// A new connection, on which the peer wants us to go on there. Yields how many bytes go out
    /// again.
    pub fn resume(&mut self, at: u64) -> Result<usize, WireError> {
        if at < self.sent - self.kept.len() as u64 {
            return Err(WireError::BadPosition);
        }
        self.acknowledged(at)?;
        self.repeated = 0;
        Ok(self.kept.len())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_the_peer_cannot_know_is_refused() {
        let mut ledger = Ledger::new(100, 10);
        ledger.sent(b"0123456789");
        assert_eq!(ledger.acknowledged(11), Err(WireError::BadPosition));
        ledger.acknowledged(6).unwrap();
        ledger.acknowledged(4).unwrap();
        assert_eq!(ledger.resume(5), Err(WireError::BadPosition));
        assert_eq!(ledger.resume(7), Ok(3));
        assert_eq!((ledger.to_repeat(), ledger.room()), (&b"789"[..], 0));
        assert_eq!(ledger.next_position(), 7);
        ledger.repeated(2);
        ledger.acknowledged(8).unwrap();
        assert_eq!(ledger.to_repeat(), b"9");
        ledger.repeated(1);
        assert_eq!((ledger.room(), ledger.next_position()), (98, 10));
    }

    proptest! {
        /// However often the connection breaks, and whatever was under way, what comes out is what
        /// went in, and no more than the limit is kept.
        #[test]
        fn a_stream_survives_any_cuts(
            steps in prop::collection::vec((0u8..4, 1usize..40), 1..400),
            limit in 20usize..100,
        ) {
            let stream: Vec<u8> = (0..20_000u32).map(|i| (i * 7 % 251) as u8).collect();
            let mut sender = Ledger::new(limit, 1);
            let mut receiver = Ledger::new(limit, 8);
            let (mut next, mut arrived) = (0, Vec::new());
            let mut wire: VecDeque<u8> = VecDeque::new();
            for (what, count) in steps {
                match what {
                    0 if sender.must_repeat() => {
                        let bytes = sender.to_repeat();
                        let bytes = bytes[..count.min(bytes.len())].to_vec();
                        sender.repeated(bytes.len());
                        wire.extend(bytes);
                    }
                    0 => {
                        let count = count.min(sender.room());
                        let bytes = &stream[next..next + count];
                        sender.sent(bytes);
                        wire.extend(bytes);
                        next += count;
                    }
                    1 => {
                        let count = count.min(wire.len());
                        arrived.extend(wire.drain(..count));
                        receiver.received(count);
                    }
                    2 => if let Some(upto) = receiver.owes() {
                        sender.acknowledged(upto).unwrap();
                    },
                    _ => {
                        wire.clear();
                        sender.resume(receiver.position()).unwrap();
                    }
                }
                prop_assert!(sender.kept.len() <= limit);
                prop_assert_eq!(&arrived[..], &stream[..arrived.len()]);
            }
            while sender.must_repeat() {
                let bytes = sender.to_repeat().to_vec();
                sender.repeated(bytes.len());
                wire.extend(bytes);
            }
            arrived.extend(wire);
            prop_assert_eq!(&arrived[..], &stream[..next]);
        }
    }
}
