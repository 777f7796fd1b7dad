//! What goes wrong with the network and the QEMUs, and memory that follows meanwhile.

use migrate::{DestinationPhase, SourcePhase};

use super::{Fault, Peek, World};
use crate::qemu::PAGE;

impl World {
    pub(super) fn strike(&mut self) {
        match self.fault {
            Fault::None => {}
            Fault::Cut if self.connected => self.cut(),
            Fault::Cut => {}
            Fault::Cancel if self.source.phase() < SourcePhase::Committed => {
                self.seen.insert("source cancelled");
                self.source_gives_up();
            }
            Fault::Cancel => {}
            Fault::Refuse => {
                self.seen.insert("destination refused");
                self.destination_qemu.refuses = true;
            }
            Fault::QemuEnds if self.destination.phase() <= DestinationPhase::Ready => {
                self.seen.insert("destination QEMU ended");
                if !self.destination_gave_up {
                    self.destination_gives_up();
                }
            }
            Fault::QemuEnds => {}
            Fault::Truncate if !self.stream_over && !self.source_qemu.completed => {
                self.seen.insert("stream truncated");
                self.source_gives_up();
            }
            Fault::Truncate => {}
            Fault::Corrupt => self.corrupt(),
        }
    }

    /// Changes a bit of a page on its way, if one is on its way; otherwise tries again.
    pub(super) fn corrupt(&mut self) {
        let found = self.there.on_the_way().any(|bytes| {
            // A run of one number long enough to be a page's content.
            let page = (0..bytes.len().saturating_sub(3000))
                .step_by(500)
                .find(|at| {
                    let run = &bytes[*at..at + 3000];
                    run[0] != 0 && run.iter().all(|byte| *byte == run[0])
                });
            if let Some(at) = page {
                bytes[at + 100] ^= 0x80;
            }
            page.is_some()
        });
        if found {
            self.corrupted = true;
            self.seen.insert("page corrupted");
        } else {
            self.fault_at += 3;
        }
    }

    /// The connection is lost, with what was on its way.
    pub(super) fn cut(&mut self) {
        self.connected = false;
        for pipe in [&mut self.there, &mut self.back] {
            pipe.cut(&mut self.random);
        }
        self.seen.insert(match self.source.phase() {
            SourcePhase::Following => "cut while memory follows",
            SourcePhase::Committed | SourcePhase::Finished => "cut after the commit",
            _ => "cut before the commit",
        });
    }

    /// Whether the connection that was lost comes back.
    pub(super) fn comes_back(&self) -> bool {
        let both = !self.source_gave_up && !self.destination_gave_up;
        both && !self.guardian_tells && self.network.resumes > 0
    }

    /// It has: each goes on where the other has come to.
    pub(super) fn resume(&mut self) {
        self.seen.insert(match self.recorded {
            true => "resumed after the commit",
            false => "resumed before the commit",
        });
        if self.network.connections > 1 {
            self.seen.insert("resumed over several connections");
        }
        self.there.resume();
        self.back.resume();
        self.connected = true;
        self.network.resumes -= 1;
        self.fault_at = self.step + 1 + self.network.random.below(60);
    }

    /// What is to do for memory that follows.
    pub(super) fn follow(&mut self, step: usize) {
        let Some(follow) = &mut self.follow else {
            return;
        };
        let random = &mut follow.random;
        if follow.late && self.source.phase() >= SourcePhase::Committed {
            follow.late = false;
            self.fault_at = step + 1 + random.below(15);
        }
        if follow.everything && self.source.position().walk > 1 && random.one_in(40) {
            self.seen.insert("everything held");
            self.source.hold_everything();
        }
        if random.one_in(8)
            && !self.destination_gave_up
            && self.destination_qemu.guest_touches(random)
        {
            self.seen.insert("page fault");
        }
        if self.source.follows() && self.source.phase() >= SourcePhase::Committed {
            if follow.readable {
                self.source.leave_in_guest();
            }
            if random.one_in(4) {
                let mut out = Vec::new();
                let full = random.below(4 * PAGE);
                let guest = &mut Peek(&self.source_qemu.ram);
                self.source.pump(full, guest, &mut out).unwrap();
                self.source.flush(&mut out);
                self.outlet
                    .pass(&self.source, &out, &mut self.there.bytes, &mut self.seen);
            }
        }
    }
}
