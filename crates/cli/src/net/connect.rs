//! From the source's side: a connection to the destination.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use socket2::{Domain, Protocol, Socket, Type};

use super::credentials::{self, CredentialError};
use super::plain::{Plain, PlainError};
use super::tls::Session;
use super::{Link, Protection};
use crate::poll::wait;
use crate::signals::Signals;

/// Why no connection came about.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    #[error("{address} is not an address: {error}; write HOST:PORT")]
    Address { address: String, error: io::Error },
    #[error(transparent)]
    Plain(#[from] PlainError),
    #[error(transparent)]
    Credentials(#[from] CredentialError),
    #[error("{0} is neither a host name nor an address that a certificate could have")]
    Name(String),
    #[error("cannot connect to {address}: {error}; is `unmoor receive` running there?")]
    Connect {
        address: SocketAddr,
        error: io::Error,
    },
    #[error("cannot connect from {from} (--bind): {error}; is it an address of this host?")]
    From { from: IpAddr, error: io::Error },
    #[error("no encrypted connection to {address}: {error}")]
    Encrypt {
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

/// The host in HOST:PORT.
pub(crate) fn host_of(address: &str) -> &str {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    host.trim_start_matches('[').trim_end_matches(']')
}

/// The addresses that HOST:PORT stands for.
pub(super) fn resolve(address: &str) -> Result<Vec<SocketAddr>, ConnectError> {
    let not_one = |error| ConnectError::Address {
        address: address.to_owned(),
        error,
    };
    let resolved: Vec<_> = address.to_socket_addrs().map_err(not_one)?.collect();
    match resolved.is_empty() {
        true => Err(not_one(io::Error::other("it resolves to nothing"))),
        false => Ok(resolved),
    }
}

/// Makes connections of one kind.
#[derive(Debug)]
pub(crate) struct Connector {
    kind: Kind,
    /// The address of this host to connect from, if not any.
    from: Option<IpAddr>,
}

#[derive(Debug)]
enum Kind {
    Plain(Plain),
    Tls(Arc<ClientConfig>, ServerName<'static>),
}

impl Connector {
    /// For connections to a host of that name.
    pub(crate) fn new(
        protection: &Protection,
        host: &str,
        from: Option<IpAddr>,
    ) -> Result<Self, ConnectError> {
        let kind = match protection {
            Protection::Plain(plain) => Kind::Plain(*plain),
            Protection::Tls(folder) => {
                let name = ServerName::try_from(host.to_owned())
                    .map_err(|_| ConnectError::Name(host.to_owned()))?;
                Kind::Tls(credentials::client(folder.as_deref())?, name)
            }
        };
        Ok(Connector { kind, from })
    }

    /// Connects to HOST:PORT, trying all that it resolves to; a signal ends the wait.
    pub(crate) fn connect(
        &self,
        address: &str,
        limit: Duration,
        mut signals: Option<&mut Signals>,
    ) -> Result<Link, ConnectError> {
        let mut last = None;
        for one in resolve(address)? {
            match self.connect_to(one, limit, signals.as_deref_mut()) {
                Err(error @ (ConnectError::Connect { .. } | ConnectError::Encrypt { .. })) => {
                    last = Some(error);
                }
                outcome => return outcome,
            }
        }
        Err(last.unwrap_or(ConnectError::Cancelled))
    }

    /// Connects to one address.
    pub(crate) fn connect_to(
        &self,
        address: SocketAddr,
        limit: Duration,
        mut signals: Option<&mut Signals>,
    ) -> Result<Link, ConnectError> {
        if let Kind::Plain(plain) = &self.kind {
            plain.check(address.ip())?;
        }
        let begun = Instant::now();
        let until = begun + limit;
        let stream = tcp(self.from, address, until, signals.as_deref_mut());
        let stream = stream.map_err(|error| match self.from {
            Some(from) if error.kind() == io::ErrorKind::AddrNotAvailable => {
                ConnectError::From { from, error }
            }
            _ => ConnectError::Connect { address, error },
        })?;
        let stream = stream.ok_or(ConnectError::Cancelled)?;
        let round_trip = begun.elapsed();
        let encrypted = || -> io::Result<Option<Link>> {
            let tls = match &self.kind {
                Kind::Plain(_) => None,
                Kind::Tls(config, name) => Some(Session::client(Arc::clone(config), name.clone())?),
            };
            let mut link = Link::new(stream, address, tls, Some(round_trip))?;
            while !link.shake_hands()? {
                let flags = match link.wants_write() {
                    true => PollFlags::IN | PollFlags::OUT,
                    false => PollFlags::IN,
                };
                if !ready(link.fd(), flags, until, signals.as_deref_mut())? {
                    return Ok(None);
                }
            }
            Ok(Some(link))
        };
        encrypted()
            .map_err(|error| ConnectError::Encrypt { address, error })?
            .ok_or(ConnectError::Cancelled)
    }
}

/// Nothing if a signal came first.
fn tcp(
    from: Option<IpAddr>,
    address: SocketAddr,
    until: Instant,
    signals: Option<&mut Signals>,
) -> io::Result<Option<TcpStream>> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM.nonblocking().cloexec(),
        Some(Protocol::TCP),
    )?;
    if let Some(from) = from {
        socket.bind(&SocketAddr::new(from, 0).into())?;
    }
    let in_progress = rustix::io::Errno::INPROGRESS.raw_os_error();
    match socket.connect(&address.into()) {
        Ok(()) => {}
        Err(error) if error.raw_os_error() == Some(in_progress) => {
            if !ready(socket.as_fd(), PollFlags::OUT, until, signals)? {
                return Ok(None);
            }
            if let Some(error) = socket.take_error()? {
                return Err(error);
            }
        }
        Err(error) => return Err(error),
    }
    Ok(Some(socket.into()))
}

/// Waits; false if a signal came first.
fn ready(
    fd: BorrowedFd<'_>,
    flags: PollFlags,
    until: Instant,
    signals: Option<&mut Signals>,
) -> io::Result<bool> {
    let mut fds = vec![PollFd::from_borrowed_fd(fd, flags)];
    if let Some(signals) = &signals {
        fds.push(PollFd::from_borrowed_fd(signals.fd(), PollFlags::IN));
    }
    if wait(&mut fds, Some(until))? == 0 {
        return Err(io::ErrorKind::TimedOut.into());
    }
    let signalled = fds.get(1).is_some_and(|fd| !fd.revents().is_empty());
    drop(fds);
    Ok(!(signalled && signals.is_some_and(Signals::take)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_in_an_address() {
        assert_eq!(host_of("b.example:7070"), "b.example");
        assert_eq!(host_of("[fd00::1]:7070"), "fd00::1");
        assert_eq!(host_of("10.0.0.2:1"), "10.0.0.2");
    }
}
