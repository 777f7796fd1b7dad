//! The ways in which a migration to here ends, and what each leaves behind.

use std::time::Duration;

use hypervisor::{RunState, discard_destination};
use wire::{AbortCode, Started};

use super::session::{Ending, Session};
use crate::LAST_WORDS_LIMIT;
use crate::exit::Exit;
use crate::report::{Event, Following, UNEQUAL, bytes, peak_memory};
use crate::send::Failure;

/// Longest wait for a QEMU that is being given up to end.
const DISCARD_LIMIT: Duration = Duration::from_secs(5);

impl Session<'_, '_> {
    /// The VM is here.
    pub(super) fn moved(mut self, trouble: Option<String>) -> Ending {
        self.has_thawed();
        if let Some(keeper) = self.keeper.take() {
            keeper.done();
        }
        if let Some(connection) = &mut self.link {
            let _ = connection
                .channel
                .send_all(&mut self.to_peer, LAST_WORDS_LIMIT);
        }
        if let Some(trouble) = trouble {
            self.receiver.report.tell(&Event::Note {
                text: format!("the VM is here, but {trouble}"),
            });
        }
        if let Some(saved) = self.saved.take()
            && let Err(error) = saved.restore(&mut self.receiver.vm)
        {
            self.receiver.report.tell(&Event::Note {
                text: format!("the settings of the QEMU here could not be restored: {error}"),
            });
        }
        if self.engine.followed_well() == Some(false) {
            self.receiver.report.tell(&Event::Note {
                text: UNEQUAL.into(),
            });
        }
        self.receiver.report.tell(&Event::Received {
            running: self.running,
            pages: self.engine.pages(),
            thawed: self.thawed,
            followed: self.engine.followed_well().map(|equal| Following {
                equal,
                ..self.faults.figures().into()
            }),
            relay_memory_bytes: peak_memory(),
        });
        self.part();
        Ending::Over(Exit::Success)
    }

    /// Something failed after the commit has come and before QEMU has said that the VM is
    /// started. The VM belongs here now: whatever state it is in, it is not thrown away.
    pub(super) fn starting_failed(mut self, failure: &Failure) -> Ending {
        if let Some(keeper) = self.keeper.take() {
            keeper.done();
        }
        let state = self.receiver.vm.status();
        if let Ok(RunState::Running) = state {
            let started = Started {
                running: true,
                resume_after_us: 0,
            };
            self.running = true;
            self.engine.started(started, self.to_peer.tail());
            return self.moved(Some(failure.to_string()));
        }
        let state = match state {
            Ok(state) => format!("its state is `{state}`"),
            Err(error) => format!("its state is not known ({error})"),
        };
        let vm = format!(
            "the commit has come, so the VM belongs here, but it does not run: {state}; the source keeps its copy paused, look at both before you resume one"
        );
        self.receiver.report.tell(&Event::Failed {
            exit: Exit::InDoubt as u8,
            error: failure.to_string(),
            vm,
        });
        Ending::Over(Exit::InDoubt)
    }

    /// The VM runs here, and part of its memory will never come.
    pub(super) fn memory_is_lost(mut self, failure: &Failure) -> Ending {
        self.has_thawed();
        if let Some(keeper) = self.keeper.take() {
            keeper.done();
        }
        let awaited = bytes(self.engine.awaited_bytes());
        self.receiver.report.tell(&Event::Failed {
            exit: Exit::NeedsHelp as u8,
            error: failure.to_string(),
            vm: format!(
                "the VM was running here, and {awaited} of its memory had not come: it is lost, unless the source has kept it; what the source has is the VM as it was when it stopped there"
            ),
        });
        Ending::Over(Exit::NeedsHelp)
    }

    /// The VM does not come: tells the source, and ends the QEMU here if it has been used.
    pub(super) fn give_up(mut self, failure: &Failure, code: AbortCode) -> Ending {
        self.engine
            .abort(code, &failure.to_string(), self.to_peer.tail());
        if let Some(connection) = &mut self.link {
            let _ = connection
                .channel
                .send_all(&mut self.to_peer, LAST_WORDS_LIMIT);
        }
        if self.qemu.take().is_none() {
            self.part();
            return Ending::Untouched(match failure {
                Failure::Refused(text) => Failure::Refused(text.clone()),
                Failure::Cancelled(text) => Failure::Cancelled(text.clone()),
                Failure::Failed(text) => Failure::Failed(text.clone()),
            });
        }
        let vm = match discard_destination(&mut self.receiver.vm, DISCARD_LIMIT) {
            Ok(()) => {
                "the VM was not started here, and the QEMU that waited for it has ended".into()
            }
            Err(error) => format!(
                "the VM was not started here, but the QEMU that waited for it could not be ended: {error}"
            ),
        };
        let exit = super::fail(self.receiver.report.as_mut(), failure, &vm);
        self.part();
        Ending::Over(exit)
    }

    /// Nothing more is said.
    fn part(&mut self) {
        if let Some(connection) = &mut self.link {
            connection.channel.part(LAST_WORDS_LIMIT);
        }
    }
}

pub(super) fn code_of(failure: &Failure) -> AbortCode {
    match failure {
        Failure::Refused(_) => AbortCode::Mismatch,
        Failure::Cancelled(_) => AbortCode::Cancelled,
        Failure::Failed(_) => AbortCode::Other,
    }
}
