//! The destination half, its QEMU, and what only the outside can do for them.

use migrate::{DestinationAction, DestinationPhase, Outputs};
use qemu_stream::return_path::ReturnPathParser;
use wire::{Followed, Started};

use super::{SESSION, World};

impl World {
    pub(super) fn destination_reads_link(&mut self) {
        if self.destination_gave_up {
            return;
        }
        let (random, input) = (&mut self.random, &mut self.destination_input);
        let alive = self.there.carry(random, input, self.connected);
        let mut at = 0;
        let mut to_qemu = Vec::new();
        loop {
            let decoded = self.destination_decoder.next(&self.destination_input[at..]);
            let Some((used, frame)) = decoded.unwrap() else {
                break;
            };
            let mut outputs = Outputs {
                peer: &mut self.back.bytes,
                qemu: &mut to_qemu,
            };
            let result = self.destination.frame(&frame, &mut outputs);
            at += used;
            if result.is_err() {
                self.destination_gives_up();
                return;
            }
            self.destination_acts();
        }
        self.destination_input.drain(..at);
        self.destination.flush(&mut to_qemu);
        self.destination_qemu.load(&to_qemu);
        let phase = self.destination.phase();
        if !alive && self.comes_back() {
            // It waits.
        } else if !alive && !phase.may_be_committed() {
            self.destination_gives_up();
        } else if !alive && phase == DestinationPhase::Ready {
            self.seen.insert("cut while ready");
            if self.source_gave_up {
                // The guardian's word.
                self.reconnect(false);
            }
        }
    }

    pub(super) fn destination_acts(&mut self) {
        while let Some(action) = self.destination.next_action() {
            match action {
                DestinationAction::Admit(hello) => {
                    assert_eq!(hello.session, SESSION);
                    self.destination
                        .accept("test", "{}".into(), 1 << 30, &mut self.back.bytes);
                }
                DestinationAction::Started => {
                    assert!(self.destination_qemu.runs);
                    let started = Started {
                        running: true,
                        resume_after_us: 1,
                    };
                    self.destination.started(started, &mut self.back.bytes);
                }
                DestinationAction::Starting => {
                    assert!(self.destination_qemu.runs);
                    let started = Started {
                        running: true,
                        resume_after_us: 1,
                    };
                    self.destination.started(started, &mut self.back.bytes);
                }
                DestinationAction::Arrived => {
                    let followed = Followed::default();
                    self.destination.arrived(followed, &mut self.back.bytes);
                }
                DestinationAction::OpenQemu
                | DestinationAction::Committed
                | DestinationAction::Finish => {}
            }
        }
    }

    pub(super) fn destination_reads_qemu(&mut self) {
        if self.destination_gave_up {
            return;
        }
        self.return_path.append(&mut self.destination_qemu.answers);
        let mut parser = ReturnPathParser::new();
        let mut at = 0;
        let mut to_qemu = Vec::new();
        while let Some((used, message)) = parser.next(&self.return_path[at..]).unwrap() {
            at += used;
            let mut outputs = Outputs {
                peer: &mut self.back.bytes,
                qemu: &mut to_qemu,
            };
            let result = self.destination.return_path(&message, &mut outputs);
            if result.is_err() {
                self.destination_gives_up();
                return;
            }
        }
        self.return_path.drain(..at);
        self.destination.flush(&mut to_qemu);
        self.destination_qemu.load(&to_qemu);
    }
}
