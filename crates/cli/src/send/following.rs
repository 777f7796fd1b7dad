//! Memory that follows after the switchover. The VM needs this process until all of it has arrived:
//! nothing that happens to the connection is an end, and if this process ends, its guardian goes on.

use std::time::{Duration, Instant};

use hypervisor::VmFacts;
use migrate::pilot::ASSUMED_LINK;
use migrate::{KeepAlive, SourcePhase};
use wire::{Followed, Started};

use super::session::{Session, wall_clock};
use super::{Failure, ledger};
use crate::args::{ProtocolArg, SendArgs, StallArg};
use crate::buffer::Input;
use crate::exit::Exit;
use crate::guardian::Follow;
use crate::net::{Channel, Hurry, Link};
use crate::report::{Event, Following, UNEQUAL, bytes};

/// Whether memory may follow, by what the user wants.
pub(super) fn is_wanted(args: &SendArgs) -> bool {
    args.how.protocol == ProtocolArg::PostCopy || args.how.on_stall == StallArg::PostCopy
}

impl Session<'_> {
    /// Memory may follow, if that is wanted and the destination can take it: found out before
    /// anything is touched.
    pub(super) fn allow_following(&mut self, theirs: &VmFacts) -> Result<(), Failure> {
        if !is_wanted(self.args) {
            return Ok(());
        }
        if !self.engine.can_follow() {
            return Err(Failure::Refused(
                "the destination's unmoor knows nothing of post-copy: install this release there, or move the VM another way (--protocol, --on-stall)".into(),
            ));
        }
        if let Some(why) = &theirs.no_post_copy {
            return Err(Failure::Refused(format!(
                "post-copy: the destination cannot take memory after the switchover: {why}; or move the VM another way (--protocol, --on-stall)"
            )));
        }
        if let Some(why) = self.why_copies_are_all() {
            self.report.tell(&Event::Note {
                text: format!(
                    "post-copy: {why}; if this process dies while memory follows, that memory is lost, and with it the VM"
                ),
            });
        }
        self.engine.let_memory_follow(self.output.tail());
        Ok(())
    }

    fn why_copies_are_all(&self) -> Option<&'static str> {
        match &self.ram {
            _ if self.args.how.copy_held => {
                Some("what follows is kept in this process (--copy-held)")
            }
            None => Some("what follows is kept in this process, for QEMU's memory cannot be read"),
            Some(_) => None,
        }
    }

    /// What the guardian needs to go on in place of this process; nothing if no memory follows.
    pub(super) fn to_go_on(&self) -> Option<Follow> {
        let qemu = self.qemu.as_ref().filter(|_| self.engine.follows())?;
        let readable = self
            .ram
            .as_ref()
            .is_some_and(|ram| ram.is_proven() && ram.is_complete());
        Some(Follow {
            seed: self.engine.seed(),
            page_size: self.engine.page_size(),
            blocks: qemu
                .blocks()
                .iter()
                .map(|block| (block.name.clone(), block.used_length))
                .collect(),
            qemu_pid: self.args.qemu_pid,
            readable,
        })
    }

    /// The VM may run at the destination, and needs what is still here.
    pub(super) fn must_go_on(&self) -> bool {
        let phase = self.engine.phase();
        let owes = matches!(phase, SourcePhase::Committed | SourcePhase::Following);
        owes && self.engine.follows()
    }

    /// The VM runs.
    pub(super) fn runs(&mut self, started: Started) {
        self.times.finished = Some(Instant::now());
        self.started = Some(started);
        self.report.tell(&Event::Runs {
            follows_bytes: self.engine.stats().pages_following * self.engine.page_size(),
        });
        self.tell_phase();
    }

    /// All that followed has arrived.
    pub(super) fn arrived(&mut self, followed: Followed) {
        self.times.free = wall_clock();
        self.report.tell(&Event::Arrived(Following::from(followed)));
        if !followed.equal {
            self.report.tell(&Event::Note {
                text: UNEQUAL.into(),
            });
        }
    }

    /// What was said on the last connection is lost: says the commit again on another, and hears what
    /// has not come.
    pub(super) fn begin_anew(&mut self, link: Link) {
        self.cut = None;
        self.ticket = None;
        self.is_same_peer = false;
        self.channel = Channel::new(link, ledger());
        self.hurry();
        self.input = Input::default();
        self.decoder = wire::Decoder::new();
        self.output.begin_anew();
        self.alive = KeepAlive::new(self.args.how.net.peer_timeout, Instant::now());
        self.engine.ask_outcome(self.output.tail());
        self.report.tell(&Event::Note {
            text: format!("connected anew: {}", self.channel.describe()),
        });
    }

    /// The VM waits for what is sent: call again and again, for what the link carries may not be
    /// known, or change.
    pub(super) fn hurry(&mut self) {
        let rate = self.output.link_rate().unwrap_or(ASSUMED_LINK);
        self.channel.hurry(Hurry { rate });
    }

    /// This process cannot go on: the guardian does.
    pub(super) fn leave_it_to_the_guardian(mut self, failure: &Failure) -> Exit {
        // It goes on when the pipe to it closes.
        self.guardian = None;
        self.tell_sample();
        let left = bytes(self.engine.held_bytes());
        self.report.tell(&Event::Failed {
            exit: Exit::NeedsHelp as u8,
            error: failure.to_string(),
            vm: format!(
                "the VM runs at {} and needs up to {left} that are still here: leave the QEMU here as it is; the guardian goes on sending, if QEMU's memory can be read, and says how that ends",
                self.channel.peer()
            ),
        });
        Exit::NeedsHelp
    }

    /// From the VM's stop until nothing is needed of this host any more.
    pub(super) fn until_free(&self) -> Option<Duration> {
        self.times.free?.checked_sub(self.times.stopped?)
    }
}
