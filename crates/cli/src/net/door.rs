//! At the destination: who knocks, and who is let in.
//!
//! Whoever connects is nobody until the handshake is over. Those that are at it are few at a time
//! and have little time; nobody waits for them.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustls::ServerConfig;
use wire::{AbortCode, Message, Preamble, put_control};

use super::connect::{ConnectError, resolve};
use super::credentials;
use super::plain::Plain;
use super::tls::Session;
use super::{Link, Protection};
use crate::buffer::Output;

/// Connections that may be at their handshake at once; the oldest goes if there is one more.
const WAITING_MAX: usize = 32;
/// Longest handshake.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);
/// Shortest time between two words about those who were not let in.
const TELL_EVERY: Duration = Duration::from_secs(1);

/// A listening socket, and who stands before it.
#[derive(Debug)]
pub(crate) struct Door {
    listener: TcpListener,
    kind: Kind,
    /// Names of those that are let in; all that have a certificate if there are none.
    allowed: Vec<String>,
    waiting: Vec<(Link, Instant)>,
    turned_away: TurnedAway,
}

#[derive(Debug)]
enum Kind {
    Plain(Plain),
    Tls(Arc<ServerConfig>),
}

/// Those who were not let in and of whom nothing has been told.
#[derive(Debug, Default)]
struct TurnedAway {
    last: Option<String>,
    count: u32,
    told: Option<Instant>,
}

impl TurnedAway {
    fn add(&mut self, why: String) {
        self.last = Some(why);
        self.count += 1;
    }

    fn news(&mut self, now: Instant) -> Option<String> {
        if self.told.is_some_and(|told| now < told + TELL_EVERY) {
            return None;
        }
        let last = self.last.take()?;
        self.told = Some(now);
        Some(match std::mem::take(&mut self.count) {
            0 | 1 => last,
            count => format!("{last}; and {} others", count - 1),
        })
    }

    /// When there will be something to tell.
    fn due(&self) -> Option<Instant> {
        self.last.as_ref()?;
        self.told.map(|told| told + TELL_EVERY)
    }
}

impl Door {
    /// Listens on HOST:PORT.
    pub(crate) fn open(
        address: &str,
        protection: &Protection,
        allowed: &[String],
    ) -> Result<Self, ConnectError> {
        let resolved = resolve(address)?;
        let kind = match protection {
            Protection::Plain(plain) => {
                resolved.iter().try_for_each(|one| plain.check(one.ip()))?;
                Kind::Plain(*plain)
            }
            Protection::Tls(folder) => Kind::Tls(credentials::server(folder.as_deref())?),
        };
        let address = resolved[0];
        let bind = || {
            let listener = TcpListener::bind(address)?;
            listener.set_nonblocking(true)?;
            Ok(listener)
        };
        let listener = bind().map_err(|error: io::Error| match error.kind() {
            io::ErrorKind::AddrInUse => ConnectError::PortInUse(address),
            _ => ConnectError::Listen { address, error },
        })?;
        Ok(Door {
            listener,
            kind,
            allowed: allowed.to_vec(),
            waiting: Vec::new(),
            turned_away: TurnedAway::default(),
        })
    }

    pub(crate) fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// What to wait for: the listener itself if `is_open`, and those at their handshake.
    pub(crate) fn fds(&self, is_open: bool) -> impl Iterator<Item = PollFd<'_>> {
        let listener = is_open.then(|| PollFd::new(&self.listener, PollFlags::IN));
        let waiting = self.waiting.iter().map(|(link, _)| {
            let flags = match link.wants_write() {
                true => PollFlags::IN | PollFlags::OUT,
                false => PollFlags::IN,
            };
            PollFd::from_borrowed_fd(link.fd(), flags)
        });
        listener.into_iter().chain(waiting)
    }

    /// When to look at the latest.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let waiting = self
            .waiting
            .iter()
            .map(|(link, until)| match link.has_shaken_hands() {
                // Nothing more will be heard of it.
                true => Instant::now(),
                false => *until,
            });
        waiting.chain(self.turned_away.due()).min()
    }

    /// Takes who knocks, if `is_open`, and goes on with the handshakes; yields one who is let in.
    /// Others wait for the next look.
    pub(crate) fn look(&mut self, is_open: bool) -> io::Result<Option<Link>> {
        let now = Instant::now();
        while is_open && let Some(link) = self.accept()? {
            if self.waiting.len() == WAITING_MAX {
                let (link, _) = self.waiting.remove(0);
                self.turn_away(&link, "too many knock at once");
            }
            self.waiting.push((link, now + HANDSHAKE_LIMIT));
        }
        let mut at = 0;
        while at < self.waiting.len() {
            let (link, until) = &mut self.waiting[at];
            match link.shake_hands() {
                Ok(false) if now < *until => at += 1,
                Ok(true) => {
                    let (link, _) = self.waiting.remove(at);
                    if let Some(link) = self.let_in(link) {
                        return Ok(Some(link));
                    }
                }
                outcome => {
                    let why = match outcome {
                        Err(error) => error.to_string(),
                        Ok(_) => "it has not finished its handshake in time".to_owned(),
                    };
                    let (link, _) = self.waiting.remove(at);
                    self.turn_away(&link, &why);
                }
            }
        }
        Ok(None)
    }

    /// What there is to tell about those who were not let in.
    pub(crate) fn news(&mut self) -> Option<String> {
        self.turned_away.news(Instant::now())
    }

    fn accept(&mut self) -> io::Result<Option<Link>> {
        loop {
            let (stream, peer) = match self.listener.accept() {
                Ok(accepted) => accepted,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                // The peer was gone before it was accepted.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
                Err(error) => return Err(error),
            };
            match self.link(stream, peer) {
                Ok(link) => return Ok(Some(link)),
                Err(error) => self
                    .turned_away
                    .add(format!("{peer} was not let in: {error}")),
            }
        }
    }

    fn link(&self, stream: TcpStream, peer: SocketAddr) -> io::Result<Link> {
        let tls = match &self.kind {
            Kind::Plain(plain) => {
                plain.check(peer.ip()).map_err(io::Error::other)?;
                None
            }
            Kind::Tls(config) => Some(Session::server(Arc::clone(config))?),
        };
        Link::new(stream, peer, tls, None)
    }

    /// Who has a certificate may still have none of the names that are let in.
    fn let_in(&mut self, mut link: Link) -> Option<Link> {
        let Some(identity) = link.identity().filter(|_| !self.allowed.is_empty()) else {
            return Some(link);
        };
        if self.allowed.iter().any(|name| identity.is(name)) {
            return Some(link);
        }
        let name = identity.name();
        refuse(
            &mut link,
            AbortCode::Mismatch,
            format!("{name} is not among those that are let in there (--tls-allow)"),
        );
        self.turn_away(&link, &format!("{name} is not named by --tls-allow"));
        None
    }

    fn turn_away(&mut self, link: &Link, why: &str) {
        let peer = link.peer();
        self.turned_away
            .add(format!("{peer} was not let in: {why}"));
    }
}

/// Tells a fresh connection why nothing comes of it. It takes so little at once, or is not worth
/// waiting for.
pub(crate) fn refuse(link: &mut Link, code: AbortCode, reason: String) {
    let mut output = Output::default();
    Preamble::OURS.put(output.tail());
    put_control(&Message::Abort { code, reason }, output.tail());
    let _ = link.send(&mut output, usize::MAX);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_turned_away_are_told_of_once_a_second() {
        let start = Instant::now();
        let mut away = TurnedAway::default();
        assert_eq!(away.news(start), None);
        away.add("one".into());
        assert_eq!(away.news(start), Some("one".into()));
        for name in ["two", "three", "four"] {
            away.add(name.into());
        }
        assert_eq!(away.news(start + TELL_EVERY / 2), None);
        assert_eq!(away.due(), Some(start + TELL_EVERY));
        let told = away.news(start + TELL_EVERY);
        assert_eq!(told, Some("four; and 2 others".into()));
        assert_eq!(away.due(), None);
    }
}
