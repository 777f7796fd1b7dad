//! What somebody on this host asks of `unmoor send`.

use std::time::Instant;

use super::session::Session;
use crate::bandwidth::Bandwidth;
use crate::control::{Answer, Request, Role, Status};
use crate::pace::Pace;
use crate::report::{Event, rate, session_name};

impl Session<'_> {
    /// Answers whoever asks.
    pub(super) fn hear(&mut self) {
        let mut control = std::mem::take(&mut self.control);
        control.serve(|request| match request {
            Request::Status => Answer::Status(Box::new(self.status())),
            Request::Tune { bandwidth } => match self.limit_to(bandwidth) {
                Ok(()) => Answer::Done,
                Err(why) => Answer::Refused { why },
            },
            Request::Resolve { .. } if !self.is_in_doubt() => Answer::Refused {
                why: "this migration is under way: it ends by itself, or with Ctrl-C".into(),
            },
            Request::Resolve { run } => {
                self.decided.get_or_insert(run);
                Answer::Done
            }
        });
        self.control = control;
    }

    /// Sends no more than this from now on while the VM runs.
    pub(super) fn limit_to(&mut self, bandwidth: Option<Bandwidth>) -> Result<(), String> {
        let Some(bandwidth) = bandwidth else {
            self.pace = None;
            self.bandwidth = None;
            self.tell_limit("no limit");
            return Ok(());
        };
        let from = self.channel.from().ok_or("the connection is lost")?;
        let limit = bandwidth.bytes_per_second(from)?;
        self.pace = Some(Pace::new(limit, Instant::now()));
        self.bandwidth = Some(limit);
        self.tell_limit(&rate(limit));
        Ok(())
    }

    fn tell_limit(&mut self, limit: &str) {
        self.report.tell(&Event::Note {
            text: format!("bandwidth: {limit}"),
        });
    }

    /// The VM may run at the destination, without all of its memory, and nobody answers there.
    fn is_in_doubt(&self) -> bool {
        self.cut.is_some() && self.must_go_on()
    }

    fn status(&self) -> Status {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a rate is neither negative nor near the limit"
        )]
        let now = self.meters.wire.rate() as u64;
        Status {
            role: Role::Send,
            pid: std::process::id(),
            qmp: self.args.qmp.display().to_string(),
            session: Some(session_name(self.session)),
            peer: Some(self.channel.peer().to_string()),
            path: Some(self.channel.describe()),
            phase: self.engine.phase().describe().into(),
            in_doubt: self.is_in_doubt(),
            runs: false,
            wire_bytes: Some(self.meters.wire_bytes),
            rate: Some(now),
            link_bytes_per_s: self.output.link_rate(),
            bandwidth_bytes_per_s: self.bandwidth,
            lost_probes: self.steering.lost_probes.clone(),
        }
    }
}
