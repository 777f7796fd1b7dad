//! QEMU's stream: read as long as there is room for what it brings, and given to the engine.

use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use qemu_stream::{Event, Parser, RamBlock};

use super::session::Session;
use super::{Failure, WAITING_IN_A_HURRY, failed};
use crate::buffer::{Filled, Input, Output};
use crate::guest_ram::Verdict;
use crate::report;

/// Bytes waiting for the link beyond which nothing more is read from QEMU. Small: what waits
/// here when the VM stops is downtime, and back-pressure tells QEMU the link's true speed.
const WAITING_MAX: usize = 512 << 10;

/// QEMU's stream as it comes out.
pub(super) struct QemuStream {
    socket: UnixStream,
    input: Input,
    /// For its return path, if it has one.
    output: Output,
    parser: Parser,
    /// QEMU has closed it after its end.
    closed: bool,
}

impl QemuStream {
    pub(super) fn new(socket: UnixStream) -> Self {
        QemuStream {
            socket,
            input: Input::default(),
            output: Output::default(),
            parser: Parser::new(),
            closed: false,
        }
    }

    /// The RAM blocks that it has named.
    pub(super) fn blocks(&self) -> &[RamBlock] {
        self.parser.blocks()
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Writes what `put` adds, on its return path: few words, for which there is always room.
    pub(super) fn say(&mut self, put: impl FnOnce(&mut Vec<u8>)) -> std::io::Result<()> {
        put(self.output.tail());
        self.output.drain(&mut self.socket, usize::MAX)?;
        Ok(())
    }
}

impl Session<'_> {
    /// Whether QEMU's stream may be read: there is room for what it brings, and the pilot agrees.
    pub(super) fn may_read(&self) -> bool {
        let open = self.qemu.as_ref().is_some_and(|qemu| !qemu.closed);
        let pilot = &self.steering.pilot;
        let room = !self.link_is_full() || pilot.reads_ahead(&self.engine);
        let audits = self.engine.is_auditing();
        open && room && !audits && pilot.may_read(&self.engine)
    }

    /// Bytes that may wait for the link, and for what is done to them on the way.
    pub(super) fn room_in_all(&self) -> usize {
        match self.must_go_on() {
            true => WAITING_IN_A_HURRY,
            false => WAITING_MAX + self.output.appetite(),
        }
    }

    pub(super) fn link_is_full(&self) -> bool {
        self.output.len() >= self.room_in_all()
    }

    pub(super) fn read_qemu(&mut self) -> Result<(), Failure> {
        let Some(qemu) = &mut self.qemu else {
            return Ok(());
        };
        let filled = qemu.input.fill(&mut qemu.socket);
        match filled {
            Ok(Filled::Some(_)) => {}
            Ok(Filled::WouldBlock) => return Ok(()),
            Ok(Filled::Closed) => {
                qemu.closed = true;
                return self.qemu_closed();
            }
            Err(error) => {
                return Err(self.qemu_failed(&format!("reading QEMU's stream failed: {error}")));
            }
        }
        self.take_events()
    }

    /// Gives what QEMU has written to the engine.
    pub(super) fn take_events(&mut self) -> Result<(), Failure> {
        let full = self.link_is_full();
        self.engine.link_is_full(full);
        let Some(qemu) = &mut self.qemu else {
            return Ok(());
        };
        let before = self.engine.phase();
        // What must go out first is put in portions, by the pump.
        while !self.engine.must_drain() {
            let parsed = qemu.parser.next(qemu.input.unread());
            let Some((used, event)) = parsed.map_err(|e| failed(&e))? else {
                break;
            };
            self.engine
                .event(
                    &event,
                    qemu.parser.blocks(),
                    qemu.parser.page_size(),
                    self.output.tail(),
                )
                .map_err(|e| failed(&e))?;
            if let Some(ram) = self.ram.as_mut().filter(|ram| ram.is_unknown()) {
                match ram.watch(&event, qemu.parser.blocks()) {
                    Verdict::Unknown => {}
                    Verdict::Same if self.args.how.copy_held => {}
                    Verdict::Same if !ram.is_complete() => self.copies_are_made = true,
                    Verdict::Same => self.engine.leave_in_guest(),
                    Verdict::Other(why) if self.auditor.is_some() => {
                        return Err(Failure::Failed(format!("the VM cannot be audited: {why}")));
                    }
                    Verdict::Other(why) => {
                        self.ram = None;
                        self.copies_are_made = true;
                        self.report.tell(&report::Event::Note {
                            text: format!("the VM's memory is not read from QEMU's process: {why}"),
                        });
                    }
                }
            }
            qemu.input.consume(used);
        }
        if std::mem::take(&mut self.copies_are_made) {
            let half = self.facts.memory_bytes / 2;
            let limit = self.args.how.hold_limit.unwrap_or(half);
            self.engine.limit_what_is_held(limit);
        }
        if self.engine.phase() != before {
            self.tell_phase();
        }
        Ok(())
    }

    /// QEMU has closed its stream: after its end, without a description before it, or too early.
    fn qemu_closed(&mut self) -> Result<(), Failure> {
        let Some(qemu) = &mut self.qemu else {
            return Ok(());
        };
        // Device state that looked like a description is device state now.
        qemu.parser.close();
        self.take_events()?;
        let Some(qemu) = &mut self.qemu else {
            return Ok(());
        };
        let page_size = qemu.parser.page_size();
        match qemu.parser.finish(qemu.input.unread()) {
            Ok(end) => {
                if let Some(end @ Event::End { .. }) = end {
                    self.engine
                        .event(&end, &[], page_size, self.output.tail())
                        .map_err(|e| failed(&e))?;
                    self.tell_phase();
                }
                Ok(())
            }
            Err(error) => Err(self.qemu_failed(&error.to_string())),
        }
    }

    /// QEMU has given up by itself: with its own words, if it has any.
    pub(super) fn qemu_failed(&mut self, what: &str) -> Failure {
        let words = self
            .vm
            .migration_info()
            .ok()
            .and_then(|info| info.error_desc);
        Failure::Failed(match words {
            Some(words) => format!("the source QEMU ended the migration: {words}"),
            None => what.to_owned(),
        })
    }
}
