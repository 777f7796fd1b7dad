//! One connection to the peer, non-blocking, encrypted or not.
//!
//! Everything above it knows only [`Link::receive`], [`Link::send`] and what to wait for.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};

use super::Identity;
use super::tls::Session;
use crate::buffer::{Filled, Input, Output};
use crate::poll::wait;

/// Unsent bytes that the kernel may queue. What lies in that queue when the VM stops is downtime,
/// and what QEMU believes to be sent makes it overestimate the link; the amount in flight, which
/// a fast or long link needs, is not limited by this.
const UNSENT_MAX: u32 = 256 << 10;

/// The same while somebody waits for what is sent: a tenth of a millisecond at 1 Gbit/s.
const UNSENT_IN_A_HURRY: u32 = 16 << 10;

/// What may wait on the way then, beyond what a round trip takes.
const QUEUE_IN_A_HURRY: Duration = Duration::from_micros(500);
/// So much may be on its way in any case.
const WINDOW_MIN: usize = 32 << 10;

/// A connection to the peer.
#[derive(Debug)]
pub(crate) struct Link {
    stream: TcpStream,
    tls: Option<Box<Session>>,
    peer: SocketAddr,
    /// Time that the connection took to establish: one round trip.
    round_trip: Option<Duration>,
}

impl Link {
    /// With `tls`, the handshake is still to be made: [`shake_hands`](Link::shake_hands).
    pub(super) fn new(
        stream: TcpStream,
        peer: SocketAddr,
        tls: Option<Session>,
        round_trip: Option<Duration>,
    ) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        socket2::SockRef::from(&stream).set_tcp_notsent_lowat(UNSENT_MAX)?;
        Ok(Link {
            stream,
            tls: tls.map(Box::new),
            peer,
            round_trip,
        })
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    /// From here on somebody waits for what is sent, which goes at so many bytes a second. TCP would fill whatever queue it finds on the way: it is kept from having more on its
    /// way than it takes to go on without a gap, and a quarter more: so that, where the rate is higher
    /// than it seemed, it is found out.
    pub(crate) fn hurry(&self, rate: u64) {
        let socket = socket2::SockRef::from(&self.stream);
        // If the kernel will not, they wait a little longer.
        let _ = socket.set_tcp_notsent_lowat(UNSENT_IN_A_HURRY);
        let time = self.round_trip.unwrap_or_default() + QUEUE_IN_A_HURRY;
        let window = u128::from(rate) * time.as_micros() / 1_000_000 * 5 / 4;
        let window = usize::try_from(window).unwrap_or(usize::MAX);
        // The kernel doubles it, for what it needs besides.
        let _ = socket.set_send_buffer_size(window.max(WINDOW_MIN));
    }

    pub(crate) fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// The address of this host that it goes out from.
    pub(crate) fn from(&self) -> Option<IpAddr> {
        Some(self.stream.local_addr().ok()?.ip())
    }

    pub(crate) fn round_trip(&self) -> Option<Duration> {
        self.round_trip
    }

    /// The path in use and how it is protected, for people.
    pub(crate) fn describe(&self) -> String {
        let from = self.stream.local_addr();
        let from = from.map_or_else(|_| "?".to_owned(), |from| from.to_string());
        let how = match &self.tls {
            Some(session) => format!("{}, with {}", session.describe(), session.peer().name()),
            None => "plain text".to_owned(),
        };
        format!("{from} to {}: {how}", self.peer)
    }

    /// Whose certificate the peer has shown; nobody's in plain text.
    pub(crate) fn identity(&self) -> Option<Identity> {
        self.tls.as_ref().map(|session| session.peer())
    }

    /// Goes on with what must be done before anything can be sent; tells whether it is.
    pub(super) fn shake_hands(&mut self) -> io::Result<bool> {
        match &mut self.tls {
            Some(session) => session.shake_hands(&mut self.stream),
            None => Ok(true),
        }
    }

    /// Whether that is done.
    pub(super) fn has_shaken_hands(&self) -> bool {
        let tls = self.tls.as_ref();
        tls.is_none_or(|session| session.has_shaken_hands())
    }

    /// Whether something waits here for the socket, besides what the caller has.
    pub(crate) fn wants_write(&self) -> bool {
        self.tls
            .as_ref()
            .is_some_and(|session| session.wants_write())
    }

    /// Reads once, without waiting.
    pub(crate) fn receive(&mut self, input: &mut Input) -> io::Result<Filled> {
        match &mut self.tls {
            Some(session) => input.fill(&mut session.over(&mut self.stream)),
            None => input.fill(&mut self.stream),
        }
    }

    /// Writes without waiting what was given before, and then some of this; 0 if the socket is full.
    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let result = match &mut self.tls {
            Some(session) => {
                session.flush(&mut self.stream)?;
                if bytes.is_empty() {
                    return Ok(0);
                }
                session.over(&mut self.stream).write(bytes)
            }
            None if bytes.is_empty() => return Ok(0),
            None => self.stream.write(bytes),
        };
        match result {
            Ok(0) => Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => Ok(count),
            Err(error) if is_transient(&error) => Ok(0),
            Err(error) => Err(error),
        }
    }

    /// Writes at most `limit` bytes, without waiting, and tells how many.
    pub(crate) fn send(&mut self, output: &mut Output, limit: usize) -> io::Result<usize> {
        match &mut self.tls {
            Some(session) => {
                session.flush(&mut self.stream)?;
                output.drain(&mut session.over(&mut self.stream), limit)
            }
            None => output.drain(&mut self.stream, limit),
        }
    }

    /// Writes everything, waiting up to `limit` for the peer to take it.
    pub(crate) fn send_all(&mut self, output: &mut Output, limit: Duration) -> io::Result<()> {
        let deadline = Instant::now() + limit;
        loop {
            self.send(output, usize::MAX)?;
            if output.is_empty() && !self.wants_write() {
                return Ok(());
            }
            let mut fds = [PollFd::new(&self.stream, PollFlags::OUT)];
            if wait(&mut fds, Some(deadline))? == 0 {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
    }

    /// Says nothing more: the peer hears the end.
    pub(super) fn say_no_more(&self) -> io::Result<()> {
        self.stream.shutdown(Shutdown::Write)
    }

    /// Waits up to `deadline` for the peer to close the connection, too, and throws away what still
    /// comes. Were it closed with something unread, the kernel would throw away what it has not sent
    /// yet: our last words.
    pub(crate) fn part(mut self, deadline: Instant) -> io::Result<()> {
        self.say_no_more()?;
        let mut waste = [0; 16 << 10];
        while Instant::now() < deadline {
            match self.stream.read(&mut waste) {
                Ok(0) => return Ok(()),
                Ok(_) => {}
                Err(error) if is_transient(&error) => {
                    let mut fds = [PollFd::new(&self.stream, PollFlags::IN)];
                    wait(&mut fds, Some(deadline))?;
                }
                Err(error) => return Err(error),
            }
        }
        Err(io::ErrorKind::TimedOut.into())
    }
}

fn is_transient(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    )
}
