//! What the migration will be like, as soon as enough is known: to be compared with the outcome.

use std::time::Duration;

use migrate::forecast::{ARMING, BACKGROUND, Candidate, Dirtying, Picture, Way, forecast, used};
use migrate::pilot::{ASSUMED_LINK, Job, SAMPLE};

use super::FRAME;
use super::session::Session;
use crate::args::ProtocolArg;
use crate::report::{Detail, Event, Forecast, ForecastPause};

/// A link that carries what there is without a wait is measured by then, or never.
const MEASURED_BY: Duration = Duration::from_millis(600);

impl Session<'_> {
    /// Makes the forecast once: when it is known who writes how much, or that there is nobody to
    /// pause, and what the link carries.
    pub(super) fn foresee(&mut self) {
        let steering = &self.steering;
        let pilot = &steering.pilot;
        let nobody = pilot.reads_memory() && !pilot.has_members();
        let known = pilot.has_agent() && (steering.writers_known || nobody);
        if steering.foreseen || !known || !self.vm_runs() {
            return;
        }
        let (Some(link), Some(free)) = (self.link_rate(), steering.free_at_start) else {
            return;
        };
        let way = match self.args.how.protocol {
            ProtocolArg::Live => Way::Live,
            ProtocolArg::Auto | ProtocolArg::StopCopy => Way::StopCopy,
            ProtocolArg::PostCopy => Way::PostCopy,
        };
        let picture = Picture {
            used: used(self.facts.memory_bytes, free.saturating_mul(FRAME)),
            link,
            downtime_limit: self.args.how.downtime_limit,
            jobs: steering
                .jobs
                .iter()
                .map(|job| self.candidate(*job))
                .collect(),
            live: vec![BACKGROUND],
            arming: Some(self.arming()),
        };
        self.steering.foreseen = true;
        match forecast(&picture, way).outcome {
            Some(outcome) => {
                let pause = |(id, long): &(_, Duration)| ForecastPause {
                    process: self.steering.named(*id),
                    pause_ms: millis(*long),
                };
                let predicted = Forecast {
                    total_ms: millis(outcome.total),
                    wire_bytes: self.output.on_the_wire(outcome.bytes),
                    downtime_ms: millis(outcome.downtime),
                    pauses: outcome.pauses.iter().map(pause).collect(),
                };
                self.report.detail(&Detail::Forecast(predicted.clone()));
                self.steering.predicted = Some(predicted);
            }
            None => self.report.tell(&Event::Note {
                text: "by forecast, the memory that is moved live will not converge".into(),
            }),
        }
    }

    /// What the link carries. Where it never has anything to wait for, that cannot be measured.
    fn link_rate(&self) -> Option<u64> {
        let measured = self.steering.link_rate.rate();
        let late = self.times.migrate?.elapsed() >= MEASURED_BY;
        let given = late.then(|| self.bandwidth.unwrap_or(ASSUMED_LINK));
        measured.or(given)
    }

    /// The window is open by now, if there is one, and flows have been followed for about as long
    /// as writes have.
    fn arming(&self) -> Duration {
        let begun = self.times.migrate.map(|begun| begun.elapsed());
        begun.map_or(ARMING, |passed| passed.saturating_sub(SAMPLE))
    }

    fn candidate(&self, job: Job) -> Candidate {
        let mut records = self.steering.processes.iter();
        let record = records.find(|record| record.id == job.id);
        let memory = record.map_or(0, |record| record.anonymous_kib.saturating_mul(1024));
        Candidate {
            job,
            dirtying: Dirtying::new(job.rate, memory.max(job.hot_bytes)),
        }
    }
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}
