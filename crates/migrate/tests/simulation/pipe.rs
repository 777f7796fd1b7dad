//! One direction of the network: a stream of bytes, which may be cut and resumed, over one connection
//! or, torn into chunks, over several, each as fast as it happens to be.

use std::collections::VecDeque;

use wire::{Assembler, CHUNK_HEADER, Ledger, chunk_header};

use crate::random::Random;

/// No pipe holds more.
const LIMIT: usize = 1 << 30;

pub(crate) struct Pipe {
    /// What has been written: the network has not seen it yet.
    pub(crate) bytes: Vec<u8>,
    ledger: Ledger,
    /// Where in the stream what was sent last ends.
    sent: u64,
    lanes: Vec<VecDeque<u8>>,
    /// Behind each lane: what has come of it.
    coming: Vec<Vec<u8>>,
    assembler: Assembler,
    /// After a cut: so many bytes still arrive, and nothing that is written later.
    left: Option<usize>,
    /// Of its own, so that the rest of a run is as it is over one connection.
    random: Random,
}

impl Pipe {
    /// Over so many connections.
    pub(crate) fn new(connections: usize, seed: u64) -> Self {
        Pipe {
            random: Random::new(seed),
            bytes: Vec::new(),
            ledger: Ledger::new(LIMIT, u64::MAX),
            sent: 0,
            lanes: vec![VecDeque::new(); connections],
            coming: vec![Vec::new(); connections],
            assembler: Assembler::new(0, LIMIT as u64),
            left: None,
        }
    }

    /// Hands what has been written to the network.
    fn send(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        self.ledger.sent(&bytes);
        if self.left.is_none() {
            self.put(&bytes);
        }
    }

    fn put(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        while !rest.is_empty() {
            let most = rest.len().min(20_000);
            let (chunk, after) = rest.split_at(1 + self.random.below(most));
            let lane = self.random.below(self.lanes.len());
            if self.lanes.len() > 1 {
                self.lanes[lane].extend(chunk_header(self.sent, chunk.len()));
            }
            self.lanes[lane].extend(chunk);
            self.sent += chunk.len() as u64;
            rest = after;
        }
    }

    /// The connections are lost; part of what is on its way may still come.
    pub(crate) fn cut(&mut self, random: &mut Random) {
        self.send();
        let on_the_way: usize = self.lanes.iter().map(VecDeque::len).sum();
        self.left = Some(random.below(on_the_way + 1));
    }

    /// Moves some bytes across; false if the link is cut, and nothing comes any more.
    pub(crate) fn carry(&mut self, random: &mut Random, to: &mut Vec<u8>, connected: bool) -> bool {
        self.send();
        let lane = self.random.below(self.lanes.len());
        let most = self.lanes[lane].len().min(30_000);
        let most = most.min(self.left.unwrap_or(most));
        let count = random.below(most + 1);
        self.left = self.left.map(|left| left - count);
        let before = to.len();
        let bytes = self.lanes[lane].drain(..count);
        if self.coming.len() == 1 {
            to.extend(bytes);
        } else {
            self.coming[lane].extend(bytes);
            self.assemble(to);
        }
        self.ledger.received(to.len() - before);
        connected
            || self.left.is_some_and(|left| left > 0) && self.lanes.iter().any(|it| !it.is_empty())
    }

    /// What has come of the chunks, in order.
    fn assemble(&mut self, to: &mut Vec<u8>) {
        let mut any = true;
        while std::mem::take(&mut any) {
            for input in &mut self.coming {
                if input.len() >= CHUNK_HEADER
                    && let Some(used) = self.assembler.take(input, to).unwrap()
                {
                    any |= used > 0;
                    input.drain(..used);
                }
            }
        }
    }

    /// On new connections, what has not come is sent again, and then whatever has been written since.
    pub(crate) fn resume(&mut self) {
        self.send();
        let connections = self.lanes.len();
        let position = self.ledger.position();
        let count = self.ledger.resume(position).unwrap();
        self.lanes = vec![VecDeque::new(); connections];
        self.coming = vec![Vec::new(); connections];
        self.assembler = Assembler::new(position, LIMIT as u64);
        self.sent = position;
        self.left = None;
        let mut again = Vec::new();
        while self.ledger.must_repeat() {
            let part = self.ledger.to_repeat().to_vec();
            self.ledger.repeated(part.len());
            again.extend(part);
        }
        assert_eq!(again.len(), count);
        self.put(&again);
    }

    /// What is on its way, connection by connection.
    pub(crate) fn on_the_way(&mut self) -> impl Iterator<Item = &mut [u8]> {
        self.send();
        self.lanes.iter_mut().map(VecDeque::make_contiguous)
    }
}
