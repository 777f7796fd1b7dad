//! A connection is lost, or somebody new has been let in.

use std::time::Instant;

use migrate::{DestinationPhase, Fault, KeepAlive};
use wire::{AbortCode, Message, Preamble, put_control};

use super::newcomer::{Newcomer, Wish};
use super::session::{Connection, Session, Stop};
use crate::buffer::Output;
use crate::net::{self, Link, Side};
use crate::report::{Event, bytes};
use crate::send::failed;

/// Bytes that a source sends at most without a word that they have come, and then some.
const SOURCES_WINDOW: u64 = 64 << 20;

/// A connection that was lost.
pub(super) struct Cut {
    pub(super) connection: Connection,
    pub(super) since: Instant,
    pub(super) why: String,
}

impl Session<'_, '_> {
    /// Whether a loss is not the end.
    pub(super) fn can_be_resumed(&self) -> bool {
        self.link.is_some()
            && self.ticket.is_some()
            && (self.engine.phase() <= DestinationPhase::Ready || self.engine.needs_the_source())
            && !self.receiver.args.net.reconnect.is_zero()
    }

    /// The connection is lost, and may come back.
    pub(super) fn cut_off(&mut self, why: String) {
        let Some(mut connection) = self.link.take() else {
            return;
        };
        connection.channel.disconnect();
        if self.hear_the_verdict() {
            return;
        }
        let text = if self.must_wait_for_the_source() {
            let awaited = bytes(self.engine.awaited_bytes());
            format!(
                "{why}; the VM here needs {awaited} that have not come: waiting for it to come back"
            )
        } else {
            let limit = humantime::format_duration(self.receiver.args.net.reconnect);
            format!("{why}; waiting for it to come back for {limit}")
        };
        self.receiver.report.tell(&Event::Note { text });
        self.cut = Some(Cut {
            connection,
            since: Instant::now(),
            why,
        });
    }

    /// The VM runs here and cannot do without the source: there is no limit to waiting for it.
    pub(super) fn must_wait_for_the_source(&self) -> bool {
        self.engine.phase() > DestinationPhase::Ready && self.engine.needs_the_source()
    }

    /// Somebody else is let in: what for is asked first.
    pub(super) fn another_connection(&mut self, is_open: bool) -> Result<(), Stop> {
        if self.newcomer.is_some() {
            return Ok(());
        }
        let link = self.receiver.door.look(is_open).map_err(|e| failed(&e))?;
        self.receiver.tell_of_the_door();
        if let Some(link) = link {
            self.newcomer = Some(Newcomer::new(link));
            // What it has said may have come with the last of its handshake.
            self.hear_the_newcomer()?;
        }
        Ok(())
    }

    /// The source comes back; or it, or its guardian, has a verdict, when the connection was lost;
    /// otherwise it is one source too many.
    pub(super) fn hear_the_newcomer(&mut self) -> Result<(), Stop> {
        let Some(mut newcomer) = self.newcomer.take() else {
            return Ok(());
        };
        let wish = match newcomer.wish() {
            Ok(Some(wish)) => wish,
            Ok(None) => {
                self.newcomer = Some(newcomer);
                return Ok(());
            }
            // It has gone, or speaks of something else.
            Err(_) => return Ok(()),
        };
        match wish {
            Wish::Resume {
                session,
                ticket,
                received,
                others,
                attempt,
                ends,
            } if self.engine.is_session(session) && self.is_ticket(&ticket) => {
                if let Some(others) = self.joined.take(attempt, others) {
                    return self.resume(newcomer, others, received, ends);
                }
                net::refuse(
                    &mut newcomer.link,
                    AbortCode::Busy,
                    "other connections than those have joined".into(),
                );
            }
            Wish::Join {
                session,
                ticket,
                attempt,
            } if self.engine.is_session(session) && self.is_ticket(&ticket) => {
                self.joined.add(attempt, newcomer.link);
            }
            Wish::Verdict { session } if self.engine.is_session(session) => {
                self.verdict = Some(newcomer);
                if self.link.is_none() {
                    self.hear_the_verdict();
                } else {
                    self.receiver.report.tell(&Event::Note {
                        text: "told that the source is gone: it counts once all that it had sent is read".into(),
                    });
                }
            }
            Wish::Resume { session, .. } | Wish::Join { session, .. }
                if self.engine.is_session(session) && self.ticket.is_none() =>
            {
                net::refuse(
                    &mut newcomer.link,
                    AbortCode::Forgotten,
                    "what was said on the last connection is not known any more".into(),
                );
            }
            // The engine says what is wrong with it.
            _ if self.link.is_none() && self.cut.is_none() => {
                self.connect(newcomer.link, newcomer.input);
            }
            _ => net::refuse(
                &mut newcomer.link,
                AbortCode::Busy,
                "another migration to this QEMU is under way".into(),
            ),
        }
        Ok(())
    }

    /// Somebody has come with a verdict, which counts now that the source is gone: it may have come
    /// before the last of what the source had sent was read. Tells whether there is one.
    pub(super) fn hear_the_verdict(&mut self) -> bool {
        let Some(bearer) = self.verdict.take() else {
            return false;
        };
        self.cut = None;
        self.connect(bearer.link, bearer.input);
        true
    }

    /// Compared in constant time: nobody finds it out byte by byte.
    fn is_ticket(&self, shown: &[u8; 32]) -> bool {
        let Some(ticket) = &self.ticket else {
            return false;
        };
        let pairs = ticket.iter().zip(shown);
        pairs.fold(0, |differ, (a, b)| differ | (a ^ b)) == 0
    }

    /// Goes on where the two have come to.
    fn resume(
        &mut self,
        newcomer: Newcomer,
        others: Vec<Link>,
        received: u64,
        ends: usize,
    ) -> Result<(), Stop> {
        let Newcomer {
            mut link, input, ..
        } = newcomer;
        let cut = self.cut.take();
        let since = cut.as_ref().map_or_else(Instant::now, |cut| cut.since);
        let connection = cut.map(|cut| cut.connection).or(self.link.take());
        let Some((mut connection, position)) =
            connection.and_then(|c| c.channel.position().map(|position| (c, position)))
        else {
            return Ok(());
        };
        let mut answer = Output::default();
        Preamble::OURS.put(answer.tail());
        put_control(&Message::Resumed(position), answer.tail());
        // So little goes at once, or this connection is lost like the last one.
        let _ = link.send(&mut answer, usize::MAX);
        let ahead = &input.unread()[ends..];
        // Nothing was lost: the source goes on over several.
        let spreads = connection.channel.links() == 1 && !others.is_empty();
        let links = std::iter::once(link).chain(others).collect();
        let side = Side::Destination {
            window: SOURCES_WINDOW,
        };
        let again = connection
            .channel
            .resume(side, links, received, ahead, &mut connection.input)
            .map_err(|e| failed(&Fault::from(e)))?;
        connection.alive = KeepAlive::new(self.receiver.args.net.peer_timeout, Instant::now());
        let path = connection.channel.describe();
        let event = match spreads {
            true => Event::Note {
                text: format!("goes on by {path}"),
            },
            false => Event::Resumed {
                after_ms: since.elapsed().as_secs_f64() * 1000.0,
                bytes_again: again as u64,
                path,
            },
        };
        self.receiver.report.tell(&event);
        self.link = Some(connection);
        Ok(())
    }

    /// While the source may have committed, whoever connects has a verdict to deliver: it waits
    /// until the first connection is known to be lost.
    pub(super) fn lets_in(&self) -> bool {
        self.link.is_none() || !self.engine.phase().may_be_committed()
    }
}
