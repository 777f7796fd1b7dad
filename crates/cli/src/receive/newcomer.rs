//! A connection of which it is not known yet what it is for.

use std::io;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use wire::{Frame, Message};

use crate::buffer::{Filled, Input};
use crate::net::Link;

/// Longest wait for its first word.
const FIRST_WORD_LIMIT: Duration = Duration::from_secs(5);

/// Somebody who was let in while a session is under way.
#[derive(Debug)]
pub(super) struct Newcomer {
    pub(super) link: Link,
    pub(super) input: Input,
    until: Instant,
}

/// What a newcomer wants.
#[derive(Debug)]
pub(super) enum Wish {
    /// To go on with a session whose connection was lost. Its stream goes on after so many bytes of
    /// the input.
    Resume {
        session: [u8; 16],
        ticket: [u8; 32],
        received: u64,
        /// With so many others that have joined in this attempt.
        others: usize,
        attempt: u32,
        ends: usize,
    },
    /// To be one more connection of a session.
    Join {
        session: [u8; 16],
        ticket: [u8; 32],
        attempt: u32,
    },
    /// To tell the outcome of a session.
    Verdict { session: [u8; 16] },
    /// Something else.
    Other,
}

impl Newcomer {
    pub(super) fn new(link: Link) -> Self {
        Newcomer {
            link,
            input: Input::default(),
            until: Instant::now() + FIRST_WORD_LIMIT,
        }
    }

    /// What to wait for.
    pub(super) fn fd(&self) -> PollFd<'_> {
        PollFd::from_borrowed_fd(self.link.fd(), PollFlags::IN)
    }

    pub(super) fn deadline(&self) -> Instant {
        self.until
    }

    /// What it wants, once it has said so. What it has sent stays in the input.
    pub(super) fn wish(&mut self) -> io::Result<Option<Wish>> {
        let filled = self.link.receive(&mut self.input)?;
        // A fresh decoder each time: whoever takes this connection on begins at its first byte.
        let mut decoder = wire::Decoder::new();
        let mut at = 0;
        while let Some((used, frame)) = decoder
            .next(&self.input.unread()[at..])
            .map_err(io::Error::other)?
        {
            at += used;
            return Ok(Some(match frame {
                Frame::Preamble(_) => continue,
                Frame::Control(Message::Resume {
                    session,
                    ticket,
                    received,
                }) => Wish::Resume {
                    session,
                    ticket,
                    received,
                    others: 0,
                    attempt: 0,
                    ends: at,
                },
                Frame::Control(Message::ResumeOver {
                    session,
                    ticket,
                    received,
                    connections,
                    attempt,
                }) => Wish::Resume {
                    session,
                    ticket,
                    received,
                    others: usize::from(connections.saturating_sub(1)),
                    attempt,
                    ends: at,
                },
                Frame::Control(Message::Join {
                    session,
                    ticket,
                    attempt,
                }) => Wish::Join {
                    session,
                    ticket,
                    attempt,
                },
                Frame::Control(Message::Verdict { session, .. }) => Wish::Verdict { session },
                _ => Wish::Other,
            }));
        }
        if filled == Filled::Closed || Instant::now() >= self.until {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(None)
    }
}
