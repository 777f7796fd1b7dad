//! One connection to the peer, non-blocking.
//!
//! Everything above it knows only [`Link::receive`], [`Link::send`] and the two events to wait
//! for: this is where an encrypted transport will go.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use socket2::{Domain, Protocol, Socket, Type};

use super::Trust;
use crate::buffer::{Filled, Input, Output};
use crate::poll::wait;
use crate::signals::Signals;

/// Unsent bytes that the kernel may queue. What lies in that queue when the VM stops is downtime,
/// and what QEMU believes to be sent makes it overestimate the link; the amount in flight, which
/// a fast or long link needs, is not limited by this.
const UNSENT_MAX: u32 = 256 << 10;

/// A connection to the peer.
#[derive(Debug)]
pub(crate) struct Link {
    stream: TcpStream,
    peer: SocketAddr,
    /// Time that the connection took to establish: one round trip.
    round_trip: Option<Duration>,
}

impl Link {
    fn new(stream: TcpStream, peer: SocketAddr, round_trip: Option<Duration>) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        socket2::SockRef::from(&stream).set_tcp_notsent_lowat(UNSENT_MAX)?;
        Ok(Link {
            stream,
            peer,
            round_trip,
        })
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    pub(crate) fn peer(&self) -> SocketAddr {
        self.peer
    }

    pub(crate) fn round_trip(&self) -> Option<Duration> {
        self.round_trip
    }

    /// Reads once, without waiting.
    pub(crate) fn receive(&mut self, input: &mut Input) -> io::Result<Filled> {
        input.fill(&mut self.stream)
    }

    /// Writes at most `limit` bytes, without waiting, and tells how many.
    pub(crate) fn send(&mut self, output: &mut Output, limit: usize) -> io::Result<usize> {
        output.drain(&mut self.stream, limit)
    }

    /// Writes everything, waiting up to `limit` for the peer to take it.
    pub(crate) fn send_all(&mut self, output: &mut Output, limit: Duration) -> io::Result<()> {
        let deadline = Instant::now() + limit;
        while !output.is_empty() {
            self.send(output, usize::MAX)?;
            if output.is_empty() {
                break;
            }
            let mut fds = [PollFd::new(&self.stream, PollFlags::OUT)];
            if wait(&mut fds, Some(deadline))? == 0 {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
        Ok(())
    }
}

/// Why no connection came about.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    #[error("{address} is not an address: {error}; write HOST:PORT")]
    Address { address: String, error: io::Error },
    #[error(transparent)]
    Trust(#[from] super::TrustError),
    #[error("cannot connect to {address}: {error}; is `unmoor receive` running there?")]
    Connect {
        address: SocketAddr,
        error: io::Error,
    },
    #[error("cannot listen on {address}: {error}")]
    Listen {
        address: SocketAddr,
        error: io::Error,
    },
    #[error(
        "cannot listen on {0}: the port is in use; stop what uses it or choose another with --listen"
    )]
    PortInUse(SocketAddr),
    #[error("cancelled")]
    Cancelled,
}

fn resolve(address: &str, trust: Trust) -> Result<Vec<SocketAddr>, ConnectError> {
    let resolved: Vec<_> = address
        .to_socket_addrs()
        .map_err(|error| ConnectError::Address {
            address: address.to_owned(),
            error,
        })?
        .collect();
    for one in &resolved {
        trust.check(one.ip())?;
    }
    if resolved.is_empty() {
        return Err(ConnectError::Address {
            address: address.to_owned(),
            error: io::Error::other("it resolves to nothing"),
        });
    }
    Ok(resolved)
}

/// Connects to `address`, trying all that it resolves to; a signal ends the wait.
pub(crate) fn connect(
    address: &str,
    trust: Trust,
    limit: Duration,
    signals: &mut Signals,
) -> Result<Link, ConnectError> {
    let mut last = None;
    for one in resolve(address, trust)? {
        match connect_one(one, limit, signals) {
            Ok(Some(link)) => return Ok(link),
            Ok(None) => return Err(ConnectError::Cancelled),
            Err(error) => {
                last = Some(ConnectError::Connect {
                    address: one,
                    error,
                });
            }
        }
    }
    Err(last.unwrap_or(ConnectError::Cancelled))
}

fn connect_one(
    address: SocketAddr,
    limit: Duration,
    signals: &mut Signals,
) -> io::Result<Option<Link>> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM.nonblocking().cloexec(),
        Some(Protocol::TCP),
    )?;
    let begun = Instant::now();
    match socket.connect(&address.into()) {
        Ok(()) => {}
        Err(error)
            if error.raw_os_error() == Some(rustix::io::Errno::INPROGRESS.raw_os_error()) =>
        {
            let mut fds = [
                PollFd::new(&socket, PollFlags::OUT),
                PollFd::from_borrowed_fd(signals.fd(), PollFlags::IN),
            ];
            if wait(&mut fds, Some(begun + limit))? == 0 {
                return Err(io::ErrorKind::TimedOut.into());
            }
            let signalled = !fds[1].revents().is_empty();
            if signalled && signals.take() {
                return Ok(None);
            }
            if let Some(error) = socket.take_error()? {
                return Err(error);
            }
        }
        Err(error) => return Err(error),
    }
    Link::new(socket.into(), address, Some(begun.elapsed())).map(Some)
}

/// Listens on `address`.
pub(crate) fn listen(address: &str, trust: Trust) -> Result<TcpListener, ConnectError> {
    let address = resolve(address, trust)?[0];
    let bind = || {
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    };
    bind().map_err(|error: io::Error| match error.kind() {
        io::ErrorKind::AddrInUse => ConnectError::PortInUse(address),
        _ => ConnectError::Listen { address, error },
    })
}

/// Accepts a connection, if one is waiting and its address may be trusted.
pub(crate) fn accept(listener: &TcpListener, trust: Trust) -> io::Result<Option<Link>> {
    let (stream, peer) = match listener.accept() {
        Ok(accepted) => accepted,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
        // The peer was gone before it was accepted.
        Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => return Ok(None),
        Err(error) => return Err(error),
    };
    if trust.check(peer.ip()).is_err() {
        return Ok(None);
    }
    Link::new(stream, peer, None).map(Some)
}
