//! What the halves say to each other, over one connection after another, or over several at once.
//!
//! A [`Link`] may be lost. A channel keeps its books ([`Ledger`]), so that others can take its place
//! without anybody above noticing more than a delay. Over several links the source's stream goes in
//! chunks, each over whichever link has room, and is put together again at the destination; the
//! destination's stream, of a few words, stays on the first. If one link is lost, all are.

mod lane;

use std::io::{self, ErrorKind, Write};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use wire::{Assembler, Ledger, WireError};

use super::Link;
use crate::buffer::{Filled, Input, Output};
use crate::poll::wait;
use lane::Lane;

/// One side of what is said.
#[derive(Debug)]
pub(crate) struct Channel {
    /// None while the connection is lost.
    lanes: Vec<Lane>,
    stripes: Stripes,
    /// The lane that is offered the next chunk.
    turn: usize,
    ledger: Option<Ledger>,
    peer: SocketAddr,
    round_trip: Option<Duration>,
    /// Somebody waits for what is said.
    hurry: Option<Hurry>,
}

/// Somebody waits for what is said: next to nothing is queued in front of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Hurry {
    /// Bytes a second that the network carries, as far as is known. If it carries more, what gets
    /// through shows it.
    pub(crate) rate: u64,
}

/// Which way the stream goes in chunks.
#[derive(Debug)]
enum Stripes {
    /// Neither: there is one link.
    None,
    /// This side sends it.
    Out,
    /// This side puts it together.
    In(Assembler),
}

/// Which half this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Source,
    /// Whose peer sends at most so many bytes ahead of what has been acknowledged.
    Destination {
        window: u64,
    },
}

impl Channel {
    pub(crate) fn new(link: Link, ledger: Ledger) -> Self {
        Channel {
            peer: link.peer(),
            round_trip: link.round_trip(),
            lanes: vec![Lane::new(link)],
            stripes: Stripes::None,
            turn: 0,
            ledger: Some(ledger),
            hurry: None,
        }
    }

    /// From here on somebody waits for what is said.
    pub(crate) fn hurry(&mut self, hurry: Hurry) {
        self.hurry = Some(hurry);
        let share = self.lanes.len().max(1) as u64;
        for lane in &self.lanes {
            lane.link.hurry(hurry.rate / share);
        }
    }

    pub(crate) fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// The address of this host that it goes out from; nothing while there is no connection.
    pub(crate) fn from(&self) -> Option<IpAddr> {
        self.lanes.first()?.link.from()
    }

    pub(crate) fn round_trip(&self) -> Option<Duration> {
        self.round_trip
    }

    /// The path in use, for people.
    pub(crate) fn describe(&self) -> String {
        let Some(lane) = self.lanes.first() else {
            return format!("nothing to {}", self.peer);
        };
        let path = lane.link.describe();
        match self.lanes.len() {
            1 => path,
            several => format!("{path}, over {several} connections"),
        }
    }

    /// What to wait for: for something to read, if wanted, and for room, if anything waits here or at
    /// the caller's. Nothing while there is no connection.
    pub(crate) fn poll(&self, reads: bool, waits: bool) -> impl Iterator<Item = PollFd<'_>> {
        let repeats = self.must_repeat();
        self.lanes.iter().map(move |lane| {
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::IN, reads);
            flags.set(PollFlags::OUT, waits || repeats || lane.wants_write());
            PollFd::from_borrowed_fd(lane.link.fd(), flags)
        })
    }

    /// Descriptor of the link on which the destination speaks.
    pub(crate) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.lanes.first().map(|lane| lane.link.fd())
    }

    /// How many there are.
    pub(crate) fn links(&self) -> usize {
        self.lanes.len()
    }

    /// Whether there is a connection.
    pub(crate) fn is_up(&self) -> bool {
        !self.lanes.is_empty()
    }

    fn must_repeat(&self) -> bool {
        self.ledger.as_ref().is_some_and(Ledger::must_repeat)
    }

    /// Whether something waits here for a socket, besides what the caller has.
    pub(crate) fn wants_write(&self) -> bool {
        self.is_up() && (self.must_repeat() || self.lanes.iter().any(Lane::wants_write))
    }

    /// The peer does not resume: no copies are kept, and a loss is for good.
    pub(crate) fn keep_no_copies(&mut self) {
        self.ledger = None;
    }

    /// Reads once from each link, without waiting.
    pub(crate) fn receive(&mut self, input: &mut Input) -> io::Result<Filled> {
        let Some((first, others)) = self.lanes.split_first_mut() else {
            return Ok(Filled::WouldBlock);
        };
        let filled = match &mut self.stripes {
            Stripes::In(assembler) => {
                let before = assembler.position();
                let mut lost = Ok(());
                for lane in &mut self.lanes {
                    lost = lost.and(lane.receive_chunks(assembler, input));
                }
                let count = usize::try_from(assembler.position() - before).unwrap_or(usize::MAX);
                if let Some(ledger) = &mut self.ledger {
                    ledger.received(count);
                }
                // Where one is lost, what the others have brought has come all the same: a source that
                // has said its last word closes all of them. The loss is found again.
                return match count {
                    0 => lost.map(|()| Filled::WouldBlock),
                    count => Ok(Filled::Some(count)),
                };
            }
            Stripes::Out | Stripes::None => {
                for lane in others {
                    lane.expect_silence()?;
                }
                first.link.receive(input)?
            }
        };
        if let (Filled::Some(count), Some(ledger)) = (filled, &mut self.ledger) {
            ledger.received(count);
        }
        Ok(filled)
    }

    /// Writes at most `limit` bytes, without waiting, and tells how many; what must be repeated
    /// goes first and does not count.
    pub(crate) fn send(&mut self, output: &mut Output, limit: usize) -> io::Result<usize> {
        let Some(lane) = self.lanes.first_mut() else {
            return Ok(0);
        };
        let Some(ledger) = &mut self.ledger else {
            return lane.link.send(output, limit);
        };
        if matches!(self.stripes, Stripes::Out) {
            return self.send_chunks(output, limit);
        }
        while ledger.must_repeat() {
            match lane.link.write(ledger.to_repeat())? {
                0 => return Ok(0),
                count => ledger.repeated(count),
            }
        }
        let limit = limit.min(ledger.room());
        let mut booked = Booked {
            link: &mut lane.link,
            ledger,
        };
        booked.flush()?;
        output.drain(&mut booked, limit)
    }

    /// Gives each lane that has room a chunk, and goes on for as long as one has.
    fn send_chunks(&mut self, output: &mut Output, limit: usize) -> io::Result<usize> {
        let Some(ledger) = &mut self.ledger else {
            return Ok(0);
        };
        let (mut sent, mut full) = (0, 0);
        while full < self.lanes.len() {
            self.turn = (self.turn + 1) % self.lanes.len();
            let lane = &mut self.lanes[self.turn];
            if !lane.flush()? {
                full += 1;
                continue;
            }
            full = 0;
            let position = ledger.next_position();
            if ledger.must_repeat() {
                let count = lane.load(position, ledger.to_repeat());
                ledger.repeated(count);
                continue;
            }
            let allowed = (limit - sent).min(ledger.room()).min(output.len());
            if allowed == 0 {
                break;
            }
            let count = lane.load(position, &output.front()[..allowed]);
            ledger.sent(&output.front()[..count]);
            output.consume(count);
            sent += count;
        }
        Ok(sent)
    }

    /// Writes everything, waiting up to `limit` for the peer to take it.
    pub(crate) fn send_all(&mut self, output: &mut Output, limit: Duration) -> io::Result<()> {
        if !matches!(self.stripes, Stripes::Out) {
            return match self.lanes.first_mut() {
                // The books are closed: nothing is resumed any more.
                Some(lane) => lane.link.send_all(output, limit),
                None => Err(ErrorKind::NotConnected.into()),
            };
        }
        let deadline = Instant::now() + limit;
        loop {
            self.send(output, usize::MAX)?;
            if !self.is_up() {
                return Err(ErrorKind::NotConnected.into());
            }
            if output.is_empty() && !self.wants_write() {
                return Ok(());
            }
            let mut fds: Vec<_> = self.poll(false, true).collect();
            if wait(&mut fds, Some(deadline))? == 0 {
                return Err(ErrorKind::TimedOut.into());
            }
        }
    }

    /// How far the peer is to be told that its bytes have come, if it is time to.
    pub(crate) fn owes(&mut self) -> Option<u64> {
        self.ledger.as_mut()?.owes()
    }

    /// The peer has everything up to there.
    pub(crate) fn acknowledged(&mut self, upto: u64) -> Result<(), WireError> {
        match &mut self.ledger {
            Some(ledger) => ledger.acknowledged(upto),
            None => Ok(()),
        }
    }

    /// Closes the connection once the peer has closed it, too, or after `limit`: what has been said is
    /// heard.
    pub(crate) fn part(&mut self, limit: Duration) {
        let deadline = Instant::now() + limit;
        // The peer may wait for the end of any of them.
        for lane in &self.lanes {
            let _ = lane.link.say_no_more();
        }
        for lane in self.lanes.drain(..) {
            // One that is lost has parted.
            let _ = lane.link.part(deadline);
        }
        self.disconnect();
    }

    /// The connection is lost.
    pub(crate) fn disconnect(&mut self) {
        self.lanes.clear();
        self.stripes = Stripes::None;
    }

    /// Where the peer is to go on; nothing if it cannot.
    pub(crate) fn position(&self) -> Option<u64> {
        self.ledger.as_ref().map(Ledger::position)
    }

    /// Goes on over other links, at the byte that the peer wants; what it has sent already on the
    /// first is `ahead`. Yields how many bytes go out again.
    pub(crate) fn resume(
        &mut self,
        side: Side,
        links: Vec<Link>,
        at: u64,
        ahead: &[u8],
        input: &mut Input,
    ) -> Result<usize, WireError> {
        let ledger = self.ledger.as_mut().ok_or(WireError::BadPosition)?;
        let again = ledger.resume(at)?;
        self.lanes = links.into_iter().map(Lane::new).collect();
        if let Some(hurry) = self.hurry {
            self.hurry(hurry);
        }
        let ledger = self.ledger.as_mut().ok_or(WireError::BadPosition)?;
        self.turn = 0;
        self.stripes = match side {
            _ if self.lanes.len() < 2 => Stripes::None,
            Side::Source => Stripes::Out,
            Side::Destination { window } => Stripes::In(Assembler::new(ledger.position(), window)),
        };
        match (&self.stripes, self.lanes.first_mut()) {
            (Stripes::In(_), Some(lane)) => lane.came_ahead(ahead),
            _ => {
                ledger.received(ahead.len());
                input.append(ahead);
            }
        }
        Ok(again)
    }
}

/// A connection whose bytes are kept until they are acknowledged.
struct Booked<'a> {
    link: &'a mut Link,
    ledger: &'a mut Ledger,
}

impl Write for Booked<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.link.write(bytes)? {
            0 => Err(ErrorKind::WouldBlock.into()),
            count => {
                self.ledger.sent(&bytes[..count]);
                Ok(count)
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.link.write(&[]).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Shutdown, TcpListener, TcpStream};

    use super::*;

    /// Links of both sides, and a grip on each.
    struct Links {
        source: Vec<Link>,
        destination: Vec<Link>,
        grips: Vec<TcpStream>,
    }

    fn links(count: usize) -> Links {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let mut links = Links {
            source: Vec::new(),
            destination: Vec::new(),
            grips: Vec::new(),
        };
        for _ in 0..count {
            let here = TcpStream::connect(address).unwrap();
            let (there, peer) = listener.accept().unwrap();
            links.grips.push(here.try_clone().unwrap());
            links
                .source
                .push(Link::new(here, address, None, None).unwrap());
            links
                .destination
                .push(Link::new(there, peer, None, None).unwrap());
        }
        links
    }

    /// Small steps of a generator: which link, how many bytes, when.
    struct Dice(u64);

    impl Dice {
        fn below(&mut self, limit: usize) -> usize {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            usize::try_from(self.0 % limit as u64).unwrap()
        }
    }

    #[test]
    fn a_stream_survives_the_loss_of_any_link() {
        for seed in 1..20 {
            let mut dice = Dice(0x9e37_79b9_7f4a_7c15u64.wrapping_mul(seed));
            let stream: Vec<u8> = (0..251).cycle().take(3 << 20).collect();
            let mut first = links(1);
            let mut grips = first.grips;
            let ledger = || Ledger::new(1 << 20, 64 << 10);
            let mut source = Channel::new(first.source.remove(0), ledger());
            let mut destination = Channel::new(first.destination.remove(0), ledger());
            let (mut output, mut input) = (Output::default(), Input::default());
            let mut words = Input::default();
            let (mut put, mut came, mut cuts) = (0, Vec::new(), 0);
            while came.len() < stream.len() {
                let count = dice.below(200_000).min(stream.len() - put);
                output.tail().extend_from_slice(&stream[put..put + count]);
                put += count;
                if cuts < 8 && dice.below(20) == 0 {
                    let which = dice.below(grips.len());
                    // It may be lost already, and nobody have noticed.
                    let _ = grips[which].shutdown(Shutdown::Both);
                    cuts += 1;
                }
                let limit = 1 + dice.below(400_000);
                let sent = source.send(&mut output, limit);
                let heard = source.receive(&mut words);
                let received = destination.receive(&mut input);
                came.extend_from_slice(input.unread());
                input.consume(input.unread().len());
                assert_eq!(came[..], stream[..came.len()], "seed {seed}");
                if let Some(upto) = destination.owes() {
                    source.acknowledged(upto).unwrap();
                }
                let is_lost = sent.is_err()
                    || matches!(heard, Err(_) | Ok(Filled::Closed))
                    || matches!(received, Err(_) | Ok(Filled::Closed));
                if is_lost {
                    source.disconnect();
                    destination.disconnect();
                    let next = links(1 + dice.below(4));
                    grips = next.grips;
                    let wants = destination.position().unwrap();
                    let side = Side::Source;
                    source
                        .resume(side, next.source, wants, &[], &mut words)
                        .unwrap();
                    let side = Side::Destination { window: 1 << 20 };
                    destination
                        .resume(side, next.destination, 0, &[], &mut input)
                        .unwrap();
                }
            }
            assert_eq!(came, stream);
        }
    }

    /// A source says its last word on one link, and closes all of them.
    #[test]
    fn the_last_word_is_heard_whichever_link_closes_first() {
        for last in 0..4 {
            let mut all = links(4);
            let ledger = || Ledger::new(1 << 20, 64 << 10);
            let mut destination = Channel::new(all.destination.remove(0), ledger());
            let mut others = links(4);
            let side = Side::Destination { window: 1 << 20 };
            let mut input = Input::default();
            destination
                .resume(side, others.destination, 0, &[], &mut input)
                .unwrap();
            let word = b"bye";
            let grip = &mut others.grips[last];
            grip.write_all(&wire::chunk_header(0, word.len())).unwrap();
            grip.write_all(word).unwrap();
            for grip in &others.grips {
                grip.shutdown(Shutdown::Write).unwrap();
            }
            let deadline = Instant::now() + Duration::from_secs(10);
            while input.unread() != word && Instant::now() < deadline {
                let mut fds: Vec<_> = destination.poll(true, false).collect();
                wait(&mut fds, Some(deadline)).unwrap();
                drop(fds);
                // What closes is not the end while something comes.
                if destination.receive(&mut input).is_err() {
                    break;
                }
            }
            assert_eq!(input.unread(), word, "on link {last}");
            assert!(destination.receive(&mut input).is_err());
        }
    }

    /// A peer that reads slowly, and has said something that nobody reads any more.
    #[test]
    fn the_last_word_is_heard_by_a_peer_that_still_speaks() {
        let mut all = links(1);
        // So that it is closed once the channel lets go.
        all.grips.clear();
        let mut source = Channel::new(all.source.remove(0), Ledger::new(1 << 20, 64 << 10));
        source.keep_no_copies();
        let mut destination = all.destination.remove(0);
        let mut output = Output::default();
        output.tail().resize(64 << 20, 7);
        let mut sent = 0;
        loop {
            match source.send(&mut output, usize::MAX).unwrap() {
                0 => break,
                count => sent += count,
            }
        }
        destination.write(b"unread").unwrap();
        let mut fds: Vec<_> = source.poll(true, false).collect();
        wait(&mut fds, None).unwrap();
        drop(fds);
        let parted = std::thread::spawn(move || source.part(Duration::from_secs(10)));
        let (mut input, mut heard) = (Input::default(), 0);
        loop {
            let mut fds = [PollFd::from_borrowed_fd(destination.fd(), PollFlags::IN)];
            wait(&mut fds, None).unwrap();
            let filled = destination.receive(&mut input).unwrap();
            heard += input.unread().len();
            input.consume(input.unread().len());
            if filled == Filled::Closed {
                break;
            }
        }
        assert_eq!(heard, sent);
        drop(destination);
        parted.join().unwrap();
    }
}
