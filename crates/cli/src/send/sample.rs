//! Where the migration stands, told often enough for a chart.

use super::session::Session;
use crate::report::{Detail, Sample};

impl Session<'_> {
    /// Tells a sample: from what is known anyway, without a question to anybody.
    pub(super) fn tell_sample(&mut self) {
        let stats = self.engine.stats();
        let page = self.engine.page_size();
        let followed = stats.pages_followed + stats.pages_asked;
        let kept = stats.pages_paused + stats.pages_cooled + stats.pages_flushed + followed;
        let asked = self.query.info.as_ref().filter(|_| self.vm_runs());
        let ram = asked.and_then(|info| info.ram.as_ref());
        self.report.detail(&Detail::Sample(Sample {
            t_ms: 0,
            pass: self.meters.passes.max(1),
            wire_bytes: self.meters.wire_bytes,
            live_bytes: stats.pages_sent.saturating_sub(kept) * page,
            paused_bytes: stats.pages_paused * page,
            cooled_bytes: stats.pages_cooled * page,
            flushed_bytes: stats.pages_flushed * page,
            followed_bytes: followed * page,
            held_bytes: self.engine.held_bytes(),
            dirty_bytes_per_s: ram.map(|ram| ram.dirty_pages_rate.saturating_mul(page)),
            link_bytes_per_s: self.output.link_rate(),
        }));
    }
}
