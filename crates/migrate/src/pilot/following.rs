//! When QEMU may complete although memory is held: it follows.
//!
//! QEMU's last pass brings what was written since the one before, and the VM stands meanwhile. Held
//! pages are not sent in it, only read, which goes much faster than any link: so passes become
//! shorter even while they are written at full speed, and the shortest is the one to stop in.

use depgraph::ProcessId;

use super::{AT_ONCE, Pilot, Protocol, State, is_quiet};
use crate::{Source, Treatment};

/// So much held memory is read in no time.
const IN_NO_TIME: u64 = 32 << 20;
/// A pass that brings more than this part of what the last one did does not become shorter.
const SHORTER: f64 = 0.7;

/// What the last pass has brought.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Following {
    passes: u32,
    arrivals: u64,
    held: Option<u64>,
    /// QEMU may complete whatever is left.
    at_once: bool,
    /// Whom the agent thaws next have stood for long enough, and their memory follows.
    pub(super) thawed_to_follow: bool,
}

impl Pilot {
    /// Of the jobs, those that write much: their memory stays held. The others are moved live.
    pub(super) fn plan_what_follows(&mut self, source: &mut Source) {
        let link = self.link();
        for job in std::mem::take(&mut self.jobs) {
            if is_quiet(&job, link, self.settings.small_bytes) {
                self.release(&[job.id], "it writes little", source);
            }
        }
        self.let_them_follow(source);
    }

    /// The process runs on, and its memory follows.
    pub(super) fn let_follow(&mut self, id: ProcessId, source: &mut Source) {
        for member in self.members.iter().filter(|member| member.id == id) {
            if member.state != State::Live {
                source.treat(member.group, Treatment::Following);
            }
        }
    }

    /// Nobody is to stand, and the memory of all who might follows.
    pub(super) fn let_them_follow(&mut self, source: &mut Source) {
        for member in &mut self.members {
            if member.state != State::Live {
                member.state = State::Held;
                source.treat(member.group, Treatment::Following);
            }
        }
        self.jobs.clear();
        self.stages.clear();
    }

    /// Whatever has not been sent by now follows.
    pub(super) fn let_everything_follow(&mut self, source: &mut Source) {
        source.hold_everything();
        self.following.at_once = true;
        self.limit_downtime(AT_ONCE);
    }

    /// A pass has ended. Once what goes live fits the downtime limit, QEMU may complete, at the best
    /// moment.
    pub(super) fn complete_before_all_is_sent(&mut self, live_fits: bool, source: &mut Source) {
        let arrivals = source.stats().held_arrivals;
        let held = (arrivals - self.following.arrivals) * source.page_size();
        let before = self.following.held;
        self.following.arrivals = arrivals;
        self.following.passes += 1;
        if !source.may_follow() || self.following.at_once {
            return;
        }
        let alone = !self.has_agent() && !self.has_members();
        if self.settings.protocol == Protocol::PostCopy && alone {
            // Nobody says whose memory it is: after the first walk, which lies between the first
            // two synchronisations, nothing is sent twice.
            if self.following.passes >= 2 {
                self.let_everything_follow(source);
            }
            return;
        }
        let any = self.members.iter().any(|one| one.state == State::Held);
        self.following.held = Some(held);
        #[expect(clippy::cast_precision_loss, reason = "an estimate")]
        let shortest = before.is_some_and(|before| held as f64 > SHORTER * before as f64);
        if any && live_fits && (held <= IN_NO_TIME || shortest) {
            self.following.at_once = true;
            self.limit_downtime(AT_ONCE);
        }
    }
}
