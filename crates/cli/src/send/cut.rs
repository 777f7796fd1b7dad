//! The connection is lost, and comes back or not.
//!
//! Meanwhile the VM does what it did, and so does everything here but sending: QEMU has to wait
//! when there is no room for more.

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use migrate::{KeepAlive, SourcePhase, put_verdict};
use rustix::event::{PollFd, PollFlags};
use wire::{AbortCode, Frame, Message, Preamble, put_control};

use super::session::Session;
use super::{Failure, failed};
use crate::buffer::{Filled, Input, Output};
use crate::net::{ConnectError, Link, Side};
use crate::poll::wait;
use crate::report::{Event, bytes};

/// Longest try to connect, and longest wait for the answer. Nothing else is done meanwhile.
const TRY_LIMIT: Duration = Duration::from_secs(1);
/// So many refusals in a row are an answer.
const REFUSED_MAX: u32 = 8;
/// Between two tries.
const TRY_EVERY: Duration = Duration::from_millis(250);

/// A connection that was lost.
#[derive(Debug)]
pub(super) struct Cut {
    why: String,
    pub(super) since: Instant,
    /// When it is tried next.
    pub(super) next: Instant,
    /// Tries in a row of which the destination's host said that nobody listens.
    refused: u32,
    /// All is ready for the commit, which waits for a connection.
    pub(super) then_commit: bool,
}

impl Session<'_> {
    /// The connection is lost: that is the end only if it cannot be resumed.
    pub(super) fn cut_off(&mut self, why: &str) -> Result<(), Failure> {
        let resumable = self.ticket.is_some()
            && self.engine.can_resume()
            && self.engine.phase() < SourcePhase::Committed
            && !self.args.how.net.reconnect.is_zero();
        if !(resumable || self.must_go_on()) || self.cut.is_some() {
            return Err(Failure::Failed(why.to_owned()));
        }
        self.channel.disconnect();
        let now = Instant::now();
        self.cut = Some(Cut {
            why: why.to_owned(),
            since: now,
            next: now,
            refused: 0,
            then_commit: false,
        });
        let text = if self.must_go_on() {
            let left = bytes(self.engine.held_bytes());
            format!(
                "{why}; the VM there needs {left} that are still here: trying to connect again until it has them"
            )
        } else {
            let limit = humantime::format_duration(self.args.how.net.reconnect);
            format!("{why}; trying to connect again for {limit}")
        };
        self.report.tell(&Event::Note { text });
        Ok(())
    }

    /// Tries to connect again, if it is time to.
    pub(super) fn come_back(&mut self) -> Result<(), Failure> {
        let must_go_on = self.must_go_on();
        let Some(cut) = &mut self.cut else {
            return Ok(());
        };
        let now = Instant::now();
        if now < cut.next {
            return Ok(());
        }
        let limit = self.args.how.net.reconnect;
        let left = match must_go_on {
            true => TRY_LIMIT,
            false => (cut.since + limit).saturating_duration_since(now),
        };
        if left.is_zero() {
            let (why, limit) = (&cut.why, humantime::format_duration(limit));
            return Err(Failure::Failed(format!(
                "{why}, and it did not come back within {limit} (--reconnect)"
            )));
        }
        cut.next = now + TRY_EVERY.min(left);
        let peer = self.channel.peer();
        let until = TRY_LIMIT.min(left);
        match self
            .connector
            .connect_to(peer, until, Some(&mut self.signals))
        {
            Ok(link) => {
                cut.refused = 0;
                if self.ticket.is_none() {
                    self.begin_anew(link);
                    return Ok(());
                }
                self.resume(link, Instant::now() + until)
            }
            Err(ConnectError::Cancelled) => self.on_signal(),
            Err(ConnectError::Connect { error, .. })
                if error.kind() == ErrorKind::ConnectionRefused =>
            {
                self.refused()
            }
            // It is tried again.
            Err(_) => Ok(()),
        }
    }

    /// The host is there, the relay is not.
    fn refused(&mut self) -> Result<(), Failure> {
        let Some(cut) = &mut self.cut else {
            return Ok(());
        };
        cut.refused += 1;
        if cut.refused < REFUSED_MAX || self.must_go_on() {
            return Ok(());
        }
        let Some(cut) = &self.cut else {
            return Ok(());
        };
        let (why, peer) = (&cut.why, self.channel.peer());
        Err(Failure::Failed(format!(
            "{why}, and nobody listens on {peer} any more"
        )))
    }

    /// The VM stays here although the destination may wait for the source to come back: one try to
    /// tell it.
    pub(super) fn call_off(&mut self) {
        if self.cut.is_none() {
            return;
        }
        let peer = self.channel.peer();
        let mut output = Output::default();
        put_verdict(self.session, false, output.tail());
        if let Ok(mut link) = self.connector.connect_to(peer, TRY_LIMIT, None) {
            // If it does not hear of it, its own time is up soon, or it waits for a word.
            let _ = link.send_all(&mut output, TRY_LIMIT);
        }
    }

    /// Over this connection, and over others if there are to be several.
    fn resume(&mut self, link: Link, until: Instant) -> Result<(), Failure> {
        // Whatever fails is tried again.
        let Some((first, others)) = self.open_several(Some(link), until) else {
            return Ok(());
        };
        match self.go_on(first, others, until)? {
            Some(again) => self.back(again),
            None => Ok(()),
        }
    }

    /// Goes on over other connections, if the destination does; yields how many bytes go out again.
    pub(super) fn go_on(
        &mut self,
        mut link: Link,
        others: Vec<Link>,
        until: Instant,
    ) -> Result<Option<usize>, Failure> {
        let (Some(ticket), Some(received)) = (self.ticket, self.channel.position()) else {
            return Ok(None);
        };
        let session = self.session;
        let resume = match u8::try_from(others.len() + 1) {
            Ok(connections @ 2..) => Message::ResumeOver {
                session,
                ticket,
                received,
                connections,
                attempt: self.attempt,
            },
            _ => Message::Resume {
                session,
                ticket,
                received,
            },
        };
        let mut input = Input::default();
        match ask(&mut link, &mut input, &resume, until) {
            Ok(Answer::Resumed(at)) => {
                let links = std::iter::once(link).chain(others).collect();
                let ahead = input.unread();
                let again = self
                    .channel
                    .resume(Side::Source, links, at, ahead, &mut self.input);
                Ok(Some(again.map_err(|e| failed(&e))?))
            }
            // It has not noticed yet that the last connection is lost, or something has come between.
            Ok(Answer::Refused(AbortCode::Busy, _) | Answer::Joined) | Err(_) => Ok(None),
            Ok(Answer::Refused(..)) if self.must_go_on() => {
                self.ticket = None;
                Ok(None)
            }
            Ok(Answer::Refused(_, why)) => {
                Err(Failure::Failed(format!("the destination gave up: {why}")))
            }
        }
    }

    fn back(&mut self, again: usize) -> Result<(), Failure> {
        let Some(cut) = self.cut.take() else {
            return Ok(());
        };
        self.alive = KeepAlive::new(self.args.how.net.peer_timeout, Instant::now());
        self.report.tell(&Event::Resumed {
            after_ms: cut.since.elapsed().as_secs_f64() * 1000.0,
            bytes_again: again as u64,
            path: self.channel.describe(),
        });
        if cut.then_commit {
            self.commit()?;
        }
        // What came with the answer.
        self.take_frames()
    }
}

/// The destination's first word.
pub(super) enum Answer {
    Resumed(u64),
    Joined,
    Refused(AbortCode, String),
}

/// The first word on a new connection, and the answer to it; what follows that is left in the input.
pub(super) fn ask(
    link: &mut Link,
    input: &mut Input,
    message: &Message,
    until: Instant,
) -> std::io::Result<Answer> {
    let mut output = Output::default();
    Preamble::OURS.put(output.tail());
    put_control(message, output.tail());
    link.send_all(&mut output, TRY_LIMIT)?;
    let mut decoder = wire::Decoder::new();
    loop {
        while let Some((used, frame)) = decoder
            .next(input.unread())
            .map_err(std::io::Error::other)?
        {
            let answer = match frame {
                Frame::Preamble(_) => None,
                Frame::Control(Message::Resumed(at)) => Some(Answer::Resumed(at)),
                Frame::Control(Message::Joined) => Some(Answer::Joined),
                Frame::Control(Message::Abort { code, reason }) => {
                    Some(Answer::Refused(code, reason))
                }
                _ => return Err(std::io::Error::other("an answer to something else")),
            };
            input.consume(used);
            if let Some(answer) = answer {
                return Ok(answer);
            }
        }
        let mut fds = [PollFd::from_borrowed_fd(link.fd(), PollFlags::IN)];
        if wait(&mut fds, Some(until))? == 0 {
            return Err(ErrorKind::TimedOut.into());
        }
        if link.receive(input)? == Filled::Closed {
            return Err(ErrorKind::UnexpectedEof.into());
        }
    }
}
