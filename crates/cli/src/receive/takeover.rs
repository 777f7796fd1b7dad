//! A destination half has died while memory followed: another takes over. QEMU waits for it, paused in
//! its own way, and tells what it has; the source says the commit again and sends what is missing.
//!
//! ```text
//! receive ──what it takes──► guardian ──(receive dies)──► receive --take-over
//!                                                              │ migrate-recover
//!                      QEMU ◄── RECV_BITMAP × blocks, RESUME ──┘
//! ```

use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use hypervisor::{MigrationStatus, RunState, Saved, Vm};
use migrate::{Destination, Remains};
use qemu_stream::return_path::{Message, ReturnPathParser};
use rustix::event::{PollFd, PollFlags};
use serde::{Deserialize, Serialize};

use super::Receiver;
use super::session::{Ending, LINGER, Qemu, Session};
use crate::buffer::{Filled, Input};
use crate::exit::Exit;
use crate::poll::wait;
use crate::report::{Event, bytes, session_name};
use crate::send::{Failure, failed};

/// Longest wait for QEMU to notice that its stream has broken off, and for each of its answers.
const QEMU_LIMIT: Duration = Duration::from_secs(20);
/// Between two looks, unless QEMU announces something before.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// The name under which QEMU knows its end of the new stream.
const STREAM_FD: &str = "unmoor-recovered";

/// What another half needs to go on.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Takeover {
    pub session: [u8; 16],
    remains: Remains,
    saved: Saved,
}

impl Takeover {
    /// From whoever has started this process.
    pub(super) fn read() -> Result<Self, Failure> {
        let mut text = String::new();
        std::io::stdin()
            .read_to_string(&mut text)
            .map_err(|e| failed(&e))?;
        serde_json::from_str(&text).map_err(|error| {
            Failure::Refused(format!(
                "--take-over is for the guardian of another `unmoor receive`: {error}"
            ))
        })
    }
}

impl Session<'_, '_> {
    /// What another half would need; nothing unless memory follows.
    pub(super) fn takeover(&self) -> Option<Takeover> {
        Some(Takeover {
            session: self.session?,
            remains: self.engine.remains()?,
            saved: self.saved.clone()?,
        })
    }
}

impl<'a> Receiver<'a> {
    /// Goes on where another half has died.
    pub(super) fn take_over(&mut self, from: Takeover) -> Ending {
        let prepared = self.recover(&from);
        let (engine, qemu, running) = match prepared {
            Ok(prepared) => prepared,
            Err(failure) => {
                let text = "the VM here has lost the memory that had not come, unless QEMU still waits for it (query-migrate: postcopy-paused)";
                return Ending::Over(super::fail(self.report.as_mut(), &failure, text));
            }
        };
        self.report.tell(&Event::Note {
            text: format!(
                "took over session {}: the VM here needs {} that have not come; waiting for the source",
                session_name(from.session),
                bytes(engine.awaited_bytes())
            ),
        });
        let mut session = Session::without_link(self, engine);
        session.session = Some(from.session);
        session.saved = Some(from.saved);
        session.running = running;
        match qemu {
            Some(qemu) => {
                session.qemu = Some(qemu);
                session.have_a_keeper();
                crate::hurry();
            }
            None => session.linger_until = Some(Instant::now() + LINGER),
        }
        session.run()
    }

    fn recover(&mut self, from: &Takeover) -> Result<(Destination, Option<Qemu>, bool), Failure> {
        let vm = &mut self.vm;
        let deadline = Instant::now() + QEMU_LIMIT;
        let has_all = loop {
            match vm.migration_info().map_err(|e| failed(&e))?.status {
                MigrationStatus::Completed => break true,
                MigrationStatus::UnderWay(state) if state == "postcopy-paused" => break false,
                MigrationStatus::Failed => {
                    return Err(Failure::Failed("the QEMU here has given the VM up".into()));
                }
                _ if Instant::now() >= deadline => {
                    return Err(Failure::Failed(
                        "the QEMU here does not notice that its stream has broken off".into(),
                    ));
                }
                _ => vm
                    .wait_event(Instant::now() + LOOK_EVERY)
                    .map_err(|e| failed(&e))?,
            }
        };
        let running = vm.status().map_err(|e| failed(&e))? == RunState::Running;
        let mut engine = Destination::in_place_of(from.session, &from.remains, running)
            .map_err(|e| failed(&e))?;
        if has_all {
            engine.has_all();
            return Ok((engine, None, running));
        }
        let qemu = ask_what_has_come(vm, &mut engine)?;
        Ok((engine, Some(qemu), running))
    }
}

/// Opens another stream to QEMU, and hears what it has of each block.
fn ask_what_has_come(vm: &mut Vm, engine: &mut Destination) -> Result<Qemu, Failure> {
    let (mut ours, qemus) = UnixStream::pair().map_err(|e| failed(&e))?;
    vm.send_fd(STREAM_FD, OwnedFd::from(qemus).as_fd())
        .map_err(|e| failed(&e))?;
    vm.migrate_recover(&format!("fd:{STREAM_FD}"))
        .map_err(|e| failed(&e))?;
    let mut question = Vec::new();
    engine.ask_what_has_come(&mut question);
    ours.write_all(&question).map_err(|e| failed(&e))?;
    ours.set_nonblocking(true).map_err(|e| failed(&e))?;
    let mut qemu = Qemu {
        socket: ours,
        input: Input::default(),
        parser: ReturnPathParser::new(),
        closed: false,
    };
    let deadline = Instant::now() + QEMU_LIMIT;
    loop {
        while let Some((used, message)) = qemu
            .parser
            .next(qemu.input.unread())
            .map_err(|e| failed(&e))?
        {
            match message {
                Message::ReceivedBitmap { block, bitmap } => {
                    engine.has_come(block, bitmap).map_err(|e| failed(&e))?;
                }
                Message::ResumeAck(_) => {
                    qemu.input.consume(used);
                    return Ok(qemu);
                }
                _ => {
                    return Err(Failure::Failed(
                        "QEMU answers something else than what it has".into(),
                    ));
                }
            }
            qemu.input.consume(used);
        }
        let mut fds = [PollFd::new(&qemu.socket, PollFlags::IN)];
        if wait(&mut fds, Some(deadline)).map_err(|e| failed(&e))? == 0 {
            return Err(Failure::Failed(
                "QEMU does not say what it has received".into(),
            ));
        }
        if qemu.input.fill(&mut qemu.socket).map_err(|e| failed(&e))? == Filled::Closed {
            return Err(Failure::Failed("QEMU has closed its new stream".into()));
        }
    }
}

/// Whether the process ends with success, for who has started it.
pub(super) fn exit_of(ending: Ending) -> Exit {
    match ending {
        Ending::Over(exit) => exit,
        Ending::Untouched(failure) => failure.exit(),
    }
}
