//! The source QEMU, the source half, and what only the outside can do for them.

use migrate::{SourceAction, SourcePhase};
use qemu_stream::{BlockId, Event};
use wire::{Frame, Message};

use super::{Peek, World};
use crate::qemu::{PAGE, page_of};

impl World {
    pub(super) fn qemu_writes(&mut self) {
        if self.source.phase() < SourcePhase::Setup || self.source_gave_up {
            return;
        }
        if self.source_qemu.guest_runs() {
            self.source_qemu.guest_writes(&mut self.random);
        }
        self.source_qemu.advance(&mut self.random);
    }

    pub(super) fn source_reads_qemu(&mut self) {
        if self.source_gave_up {
            return;
        }
        let output = &mut self.source_qemu.output;
        let count = self.random.below(output.len().min(20_000) + 1);
        self.from_qemu.extend(output.drain(..count));
        let mut at = 0;
        let out = &mut Vec::new();
        let guest = &mut Peek(&self.source_qemu.ram);
        while !self.source.is_auditing()
            && let Some((used, event)) = self.parser.next(&self.from_qemu[at..]).unwrap()
        {
            if let Some(meddler) = &mut self.meddler {
                meddler.act(&mut self.source, guest, out, &mut self.seen);
                meddler.sees(&event, PAGE as u64);
            }
            if self.source.must_drain() {
                self.source.pump(usize::MAX, guest, out).unwrap();
                if self.source.is_auditing() {
                    break;
                }
            }
            self.source
                .event(&event, self.parser.blocks(), self.parser.page_size(), out)
                .unwrap();
            self.stream_over |= matches!(event, Event::End { .. });
            at += used;
        }
        self.from_qemu.drain(..at);
        self.source.flush(out);
        self.outlet
            .pass(&self.source, out, &mut self.there.bytes, &mut self.seen);
        if self.source.is_auditing() {
            return;
        }
        let out = &mut self.there.bytes;
        // QEMU closes its stream when it has completed.
        if self.source_qemu.completed && self.source_qemu.output.is_empty() {
            if !self.stream_over {
                let end = self.parser.finish(&self.from_qemu).unwrap().unwrap();
                self.source.event(&end, &[], 4096, out).unwrap();
                self.from_qemu.clear();
                self.stream_over = true;
            }
            self.source.qemu_completed();
        }
    }

    pub(super) fn source_reads_link(&mut self) {
        if self.source_gave_up || self.finished {
            return;
        }
        let (random, input) = (&mut self.random, &mut self.source_input);
        let alive = self.back.carry(random, input, self.connected);
        if self.guardian_tells {
            self.guardian_reads();
        }
        let mut at = 0;
        while let Ok(Some((used, frame))) = self.source_decoder.next(&self.source_input[at..]) {
            let is_abort = matches!(frame, Frame::Control(Message::Abort { .. }));
            let result = self.source.frame(frame, &mut self.there.bytes);
            at += used;
            if result.is_err() && is_abort && self.recorded && !self.reconnected {
                self.seen.insert("taken back");
                self.taken_back();
                return;
            }
            if result.is_err() {
                assert!(self.source.phase() < SourcePhase::Committed, "{result:?}");
                self.source_gives_up();
                return;
            }
        }
        self.source_input.drain(..at);
        // Whoever has the outcome needs no second connection.
        if !alive && self.source.phase() != SourcePhase::Finished {
            if self.comes_back() {
                self.resume();
            } else if self.recorded {
                self.reconnect(true);
            } else {
                self.source_gives_up();
            }
        }
    }

    pub(super) fn source_acts(&mut self) {
        if self.source_gave_up {
            return;
        }
        while let Some(action) = self.source.next_action() {
            match action {
                SourceAction::Start(_) => {
                    if self.follow.is_some() {
                        self.source.let_memory_follow(&mut self.there.bytes);
                    }
                }
                SourceAction::Runs(started) => {
                    assert!(started.running);
                    self.seen.insert("memory follows");
                }
                SourceAction::Arrived(followed) => {
                    // The VM runs: it cannot be taken back, but it is told.
                    self.told_of_corruption = !followed.equal;
                    assert!(followed.equal || self.corrupted);
                    self.finished = true;
                }
                SourceAction::Audit => self.audit(),
                SourceAction::Decide => {
                    self.recorded = true;
                    self.source.commit_recorded(&mut self.there.bytes);
                }
                SourceAction::Finish(started) => {
                    assert!(started.running);
                    self.finished = true;
                }
            }
        }
    }

    /// The stopped VM's memory beside what was sent of it.
    pub(super) fn audit(&mut self) {
        assert!(!self.source_qemu.guest_runs());
        let mut differing = Vec::new();
        for ((block, index), number) in &self.source_qemu.ram {
            let page = page_of(*number);
            let mut found = Vec::new();
            let expected = self.source.expected().unwrap();
            expected
                .compare(BlockId(*block), *index, &page, &mut found)
                .unwrap();
            differing.extend(
                found
                    .into_iter()
                    .map(|index| (BlockId(*block), index, page)),
            );
        }
        let mut out = Vec::new();
        for (block, index, page) in differing {
            self.seen.insert("forgotten by QEMU");
            self.source.repair(block, index, &page, &mut out).unwrap();
        }
        self.source.audited(&mut out);
        self.outlet
            .pass(&self.source, &out, &mut self.there.bytes, &mut self.seen);
    }
}
