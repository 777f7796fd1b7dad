//! Several connections for one session.
//!
//! They are opened one after the other, and taken into use together, at once: just as a connection
//! that was lost is resumed, but that nothing was lost.

use std::time::{Duration, Instant};

use wire::Message;

use super::Failure;
use super::cut::{Answer, ask};
use super::session::Session;
use crate::buffer::Input;
use crate::net::Link;
use crate::report::Event;

/// Longest time to open all of them. Nothing else is done meanwhile.
const OPEN_LIMIT: Duration = Duration::from_secs(2);

impl Session<'_> {
    /// How many there are to be.
    pub(super) fn connections(&self) -> usize {
        match self.engine.can_use_several() {
            true => self.connections.into(),
            false => 1,
        }
    }

    /// The session has just begun over one connection: goes on over several, if there are to be, and
    /// they can be opened.
    pub(super) fn spread(&mut self) -> Result<(), Failure> {
        if self.connections() < 2 {
            return Ok(());
        }
        let until = Instant::now() + OPEN_LIMIT;
        let Some((first, others)) = self.open_several(None, until) else {
            // Nor would they later: the first one goes on alone.
            self.connections = 1;
            self.report.tell(&Event::Note {
                text: "several connections could not be opened: it goes on over one".into(),
            });
            return Ok(());
        };
        match self.go_on(first, others, until)? {
            Some(_) => {
                self.report.tell(&Event::Note {
                    text: format!("goes on by {}", self.channel.describe()),
                });
                Ok(())
            }
            // Whether the destination uses them is not known.
            None => self.cut_off("several connections could not be taken into use"),
        }
    }

    /// Opens all connections, of which there may be one already: the one that is to speak, and those
    /// that have joined.
    pub(super) fn open_several(
        &mut self,
        mut open: Option<Link>,
        until: Instant,
    ) -> Option<(Link, Vec<Link>)> {
        self.attempt += 1;
        let mut others = Vec::new();
        while others.len() + 1 < self.connections() {
            let link = open.take().or_else(|| self.open(until))?;
            others.push(self.join(link, until)?);
        }
        // The destination hears one newcomer after the other: the one that speaks last comes last.
        let first = open.or_else(|| self.open(until))?;
        Some((first, others))
    }

    fn open(&self, until: Instant) -> Option<Link> {
        let left = until.saturating_duration_since(Instant::now());
        let link = self.connector.connect_to(self.channel.peer(), left, None);
        link.ok()
    }

    /// Makes a connection one of the session's.
    fn join(&self, mut link: Link, until: Instant) -> Option<Link> {
        let join = Message::Join {
            session: self.session,
            ticket: self.ticket?,
            attempt: self.attempt,
        };
        match ask(&mut link, &mut Input::default(), &join, until) {
            Ok(Answer::Joined) => Some(link),
            _ => None,
        }
    }
}
