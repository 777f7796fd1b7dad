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
    pub(super) fn connections(&self) -> u8 {
        match self.engine.can_use_several() {
            true => self.args.connections,
            false => 1,
        }
    }

    /// The session has just begun over one connection: goes on over several, if there are to be.
    pub(super) fn spread(&mut self) -> Result<(), Failure> {
        if self.connections() < 2 {
            return Ok(());
        }
        let until = Instant::now() + OPEN_LIMIT;
        if self.go_on_over_several(None, until)?.is_some() {
            self.report.tell(&Event::Note {
                text: format!("goes on by {}", self.channel.describe()),
            });
            return Ok(());
        }
        // Whether the destination uses them is not known.
        self.cut_off("several connections could not be taken into use")
    }

    /// Opens all connections, of which there may be one already, and goes on over them; yields how
    /// many bytes go out again, or nothing if that came to nothing.
    pub(super) fn go_on_over_several(
        &mut self,
        mut open: Option<Link>,
        until: Instant,
    ) -> Result<Option<usize>, Failure> {
        self.attempt += 1;
        let mut others = Vec::new();
        while others.len() + 1 < usize::from(self.connections()) {
            match open.take().or_else(|| self.open(until)) {
                Some(link) => match self.join(link, until) {
                    Some(link) => others.push(link),
                    None => return Ok(None),
                },
                None => return Ok(None),
            }
        }
        // The destination hears one newcomer after the other: the one that speaks last comes last.
        match self.open(until) {
            Some(link) => self.go_on(link, others, until),
            None => Ok(None),
        }
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
