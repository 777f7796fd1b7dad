//! What the halves say to each other, over one connection after another.
//!
//! A [`Link`] may be lost. A channel keeps its books ([`Ledger`]), so that another one can take its
//! place without anybody above noticing more than a delay.

use std::io::{self, ErrorKind, Write};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::BorrowedFd;
use std::time::Duration;

use wire::{Ledger, WireError};

use super::Link;
use crate::buffer::{Filled, Input, Output};

/// One side of what is said.
#[derive(Debug)]
pub(crate) struct Channel {
    link: Option<Link>,
    ledger: Option<Ledger>,
    peer: SocketAddr,
    round_trip: Option<Duration>,
}

impl Channel {
    pub(crate) fn new(link: Link, ledger: Ledger) -> Self {
        Channel {
            peer: link.peer(),
            round_trip: link.round_trip(),
            link: Some(link),
            ledger: Some(ledger),
        }
    }

    pub(crate) fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// The address of this host that it goes out from; nothing while there is no connection.
    pub(crate) fn from(&self) -> Option<IpAddr> {
        self.link.as_ref()?.from()
    }

    pub(crate) fn round_trip(&self) -> Option<Duration> {
        self.round_trip
    }

    /// The path in use, for people.
    pub(crate) fn describe(&self) -> String {
        let link = self.link.as_ref();
        link.map_or_else(|| format!("nothing to {}", self.peer), Link::describe)
    }

    /// What to wait for; nothing while there is no connection.
    pub(crate) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.link.as_ref().map(Link::fd)
    }

    /// Whether there is a connection.
    pub(crate) fn is_up(&self) -> bool {
        self.link.is_some()
    }

    /// Whether something waits here for the socket, besides what the caller has.
    pub(crate) fn wants_write(&self) -> bool {
        let repeats = self.ledger.as_ref().is_some_and(Ledger::must_repeat);
        let link = self.link.as_ref();
        link.is_some_and(|link| repeats || link.wants_write())
    }

    /// The peer does not resume: no copies are kept, and a loss is for good.
    pub(crate) fn keep_no_copies(&mut self) {
        self.ledger = None;
    }

    /// Reads once, without waiting.
    pub(crate) fn receive(&mut self, input: &mut Input) -> io::Result<Filled> {
        let Some(link) = &mut self.link else {
            return Ok(Filled::WouldBlock);
        };
        let filled = link.receive(input)?;
        if let (Filled::Some(count), Some(ledger)) = (filled, &mut self.ledger) {
            ledger.received(count);
        }
        Ok(filled)
    }

    /// Writes at most `limit` bytes, without waiting, and tells how many; what must be repeated
    /// goes first and does not count.
    pub(crate) fn send(&mut self, output: &mut Output, limit: usize) -> io::Result<usize> {
        let Some(link) = &mut self.link else {
            return Ok(0);
        };
        let Some(ledger) = &mut self.ledger else {
            return link.send(output, limit);
        };
        while ledger.must_repeat() {
            match link.write(ledger.to_repeat())? {
                0 => return Ok(0),
                count => ledger.repeated(count),
            }
        }
        let limit = limit.min(ledger.room());
        let mut booked = Booked { link, ledger };
        booked.flush()?;
        output.drain(&mut booked, limit)
    }

    /// Writes everything, waiting up to `limit` for the peer to take it.
    pub(crate) fn send_all(&mut self, output: &mut Output, limit: Duration) -> io::Result<()> {
        match &mut self.link {
            // The books are closed: nothing is resumed any more.
            Some(link) => link.send_all(output, limit),
            None => Err(ErrorKind::NotConnected.into()),
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

    /// The connection is lost.
    pub(crate) fn disconnect(&mut self) {
        self.link = None;
    }

    /// Where the peer is to go on; nothing if it cannot.
    pub(crate) fn position(&self) -> Option<u64> {
        self.ledger.as_ref().map(Ledger::position)
    }

    /// Goes on over another connection, at the byte that the peer wants; what it has sent already
    /// is `ahead`. Yields how many bytes go out again.
    pub(crate) fn resume(
        &mut self,
        link: Link,
        at: u64,
        ahead: &[u8],
        input: &mut Input,
    ) -> Result<usize, WireError> {
        let ledger = self.ledger.as_mut().ok_or(WireError::BadPosition)?;
        let again = ledger.resume(at)?;
        ledger.received(ahead.len());
        input.append(ahead);
        self.link = Some(link);
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
