//! How far it is, for people and programs.

use std::time::Instant;

use super::meter::seconds_to_switchover;
use super::session::Session;
use super::{Failure, failed};
use crate::report::{Event, Progress};

impl Session<'_> {
    pub(super) fn progress(&mut self, now: Instant) -> Result<(), Failure> {
        let stats = self.engine.stats();
        let page_size = 4096.0;
        let pages = stats.pages_sent + stats.pages_zero + stats.pages_dropped;
        self.meters.wire.sample(now, self.meters.wire_bytes);
        self.meters.memory.sample(now, pages);
        if self.query.pending.is_none() && self.vm_runs() {
            let asked = self.vm.submit_migration_query().map_err(|e| failed(&e))?;
            self.query.pending = Some(asked);
        }
        let ram = self.query.info.as_ref().and_then(|info| info.ram.as_ref());
        #[expect(clippy::cast_precision_loss, reason = "an estimate")]
        let left = ram.and_then(|ram| {
            seconds_to_switchover(
                ram.remaining as f64,
                self.meters.memory.rate() * page_size,
                ram.dirty_pages_rate as f64 * page_size,
                self.args.how.downtime_limit,
            )
        });
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a rate is neither negative nor near the limit"
        )]
        let rate = self.meters.wire.rate() as u64;
        self.report.tell(&Event::Progress(Progress {
            phase: self.engine.phase().describe(),
            pass: self.meters.passes.max(1),
            wire_bytes: self.meters.wire_bytes,
            counts: stats.into(),
            held_bytes: self.engine.held_bytes(),
            rate,
            remaining_bytes: ram.map(|ram| ram.remaining),
            seconds_to_switchover: left,
        }));
        Ok(())
    }

    pub(super) fn tell_phase(&mut self) {
        let phase = self.engine.phase().describe();
        self.report.tell(&Event::Phase { phase });
    }
}
