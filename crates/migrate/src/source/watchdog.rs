//! Whether QEMU switches over when it can.
//!
//! A QEMU that finds nothing dirty when it has synchronised its bitmap stops the VM, whatever its downtime
//! limit. One that may not (its capability `switchover-ack` is on, and the word has not come) goes on
//! instead, thousands of times a second, and each time writes a section without a page. So such sections
//! tell it, over a while: a guest that writes faster than its pages travel has none of them, nor has a
//! QEMU that waits, is held up by its stream, or by its bandwidth limit.

use std::time::{Duration, Instant};

use super::{Source, SourcePhase, WalkPosition};
use crate::Fault;

/// Time is looked at in pieces of this length, so that what piles up while nothing is read counts as no
/// more than it is.
const PIECE: Duration = Duration::from_secs(1);
/// So many pieces in a row, each with a section without a page: ten seconds.
const PIECES_MAX: u32 = 10;

/// Notices a QEMU that does not switch over.
#[derive(Debug, Default)]
pub(super) struct Watchdog {
    part_from: WalkPosition,
    /// Sections without a page in this piece.
    empty: u64,
    since: Option<Instant>,
    /// Where QEMU's walk was when this piece began.
    position: WalkPosition,
    idle: u32,
}

impl Watchdog {
    /// A section begins, and so far QEMU's walk has come.
    pub(super) fn part_begins(&mut self, position: WalkPosition) {
        self.part_from = position;
    }

    /// It ends. Every page moves the walk on.
    pub(super) fn part_ends(&mut self, position: WalkPosition) {
        self.empty += u64::from(position == self.part_from);
    }

    /// Whether QEMU has been without anything to send for too long.
    fn is_over(&mut self, now: Instant, position: WalkPosition, may_complete: bool) -> bool {
        let since = *self.since.get_or_insert(now);
        if now < since + PIECE {
            return false;
        }
        let moved = std::mem::replace(&mut self.position, position) != position;
        self.since = Some(now);
        match std::mem::take(&mut self.empty) {
            _ if !may_complete => self.idle = 0,
            // Nothing came at all: it says nothing of what went before.
            0 if !moved => {}
            0 => self.idle = 0,
            _ => self.idle += 1,
        }
        self.idle >= PIECES_MAX
    }
}

impl Source {
    /// Call in every turn of the loop: yields a fault if QEMU has had nothing to send for ten seconds
    /// and goes on all the same. `may_complete` tells whether it is meant to switch over: it is not
    /// while memory is held that is to be sent before.
    pub fn watch_switchover(&mut self, now: Instant, may_complete: bool) -> Result<(), Fault> {
        let position = self.position();
        if self.phase == SourcePhase::Memory && self.watchdog.is_over(now, position, may_complete) {
            return Err(Fault::NoSwitchover {
                remedy: self.way_to_a_switchover(),
            });
        }
        Ok(())
    }
}
