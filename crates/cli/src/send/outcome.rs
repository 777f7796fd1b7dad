//! The three ways in which a migration ends, and what each leaves behind.

use std::time::{Duration, Instant};

use hypervisor::recover_source;
use wire::{AbortCode, Started};

use super::Failure;
use super::session::Session;
use crate::LAST_WORDS_LIMIT;
use crate::control::keep_in_doubt;
use crate::exit::Exit;
use crate::report::{Compressed, Event, Following, Paused, Summary, peak_memory, session_name};

/// Longest wait for the source VM to run again.
const RECOVER_LIMIT: Duration = Duration::from_secs(30);

impl Session<'_> {
    /// The VM runs at the destination.
    pub(super) fn moved(mut self, started: Started) -> Exit {
        let finished = self.times.finished.unwrap_or_else(Instant::now);
        self.restore_settings();
        if let Some(guardian) = self.guardian.take() {
            guardian.done();
        }
        self.tell_sample();
        let stats = self.engine.stats();
        let frozen = self.paused(started);
        let pauses = frozen.iter().filter_map(|one| one.pause_ms);
        let longest_pause_ms = pauses.reduce(f64::max);
        let free = self.steering.free_at_start;
        let summary = Summary {
            session: session_name(self.session),
            total_ms: millis(finished - self.times.migrate.unwrap_or(self.times.begun)),
            downtime_ms: self.downtime(started).map(millis),
            before_commit_ms: self.hook_time.map(millis),
            wire_bytes: self.meters.wire_bytes,
            compressed: self.output.tally().map(|tally| Compressed {
                before_bytes: tally.before,
                after_bytes: tally.after,
                pages_same: tally.same,
                pages_differing: tally.differing,
                method: tally.method.map(|method| method.to_string()),
            }),
            audit: self.audited,
            followed: self.engine.followed().map(Following::from),
            source_free_ms: self.until_free().map(millis),
            guest_memory_bytes: stats.ram_bytes,
            counts: stats.into(),
            held_peak_pages: stats.held_peak_pages,
            guest_nonfree_bytes: free
                .map(|pages| self.facts.memory_bytes.saturating_sub(pages * 4096)),
            agent_ms: self.steering.agent_time.map(millis),
            frozen,
            longest_pause_ms,
            predicted: self.steering.predicted.take(),
            device_bytes: stats.device_bytes,
            passes: self.meters.passes.max(1),
            digest: "equal",
            digest_pages: self.engine.digest().pages,
            running_at_destination: started.running,
            source_qemu: self.facts.qemu_version.to_string(),
            destination_qemu: std::mem::take(&mut self.destination_qemu),
            relay_memory_bytes: peak_memory(),
        };
        self.report.tell(&Event::Summary(Box::new(summary)));
        self.channel.part(LAST_WORDS_LIMIT);
        Exit::Success
    }

    /// The settings of a VM that has gone: worth a note, not a failure.
    fn restore_settings(&mut self) {
        if let Some(saved) = self.saved.take()
            && let Err(error) = saved.restore(&mut self.vm)
        {
            self.report.tell(&Event::Note {
                text: format!("the source QEMU's settings could not be restored: {error}"),
            });
        }
    }

    /// Source STOP to commit on this host's clock, commit to RESUME on the destination's, and
    /// half a round trip between the two: no two clocks are compared.
    ///
    /// Where somebody else has started it: until it was heard here that it runs.
    fn downtime(&self, started: Started) -> Option<Duration> {
        if self.owned.is_some() {
            let stood = self.times.runs?.checked_sub(self.times.stopped?)?;
            return started.running.then_some(stood);
        }
        let before_commit = self.times.committed?.checked_sub(self.times.stopped?)?;
        let on_the_way = self.channel.round_trip().unwrap_or_default() / 2;
        started
            .running
            .then(|| before_commit + on_the_way + Duration::from_micros(started.resume_after_us))
    }

    /// Who was frozen, and for how long: up to the commit on this host's clock, from the commit on
    /// on the destination's.
    fn paused(&self, started: Started) -> Vec<Paused> {
        let mut paused = self
            .steering
            .paused(self.times.committed.unwrap_or_default());
        let on_the_way = self.channel.round_trip().unwrap_or_default() / 2;
        let thawed = self.engine.thawed();
        let after = thawed
            .filter(|thawed| thawed.processes.is_some())
            .map(|thawed| {
                on_the_way + Duration::from_micros(started.resume_after_us + thawed.after_us)
            });
        for one in &mut paused {
            one.pause_ms = one
                .pause_ms
                .zip(after)
                .map(|(ms, after)| ms + millis(after));
        }
        paused
    }

    /// The VM stays here: tells the destination, and puts everything back.
    pub(super) fn stay(mut self, failure: &Failure) -> Exit {
        self.hook = None;
        let code = match failure {
            Failure::Refused(_) => AbortCode::Mismatch,
            Failure::Cancelled(_) => AbortCode::Cancelled,
            Failure::Failed(_) => AbortCode::Other,
        };
        self.engine
            .abort(code, &failure.to_string(), self.output.tail());
        let _ = self.output.send_all(&mut self.channel, LAST_WORDS_LIMIT);
        self.call_off();
        // Closes QEMU's stream: a migration that still writes fails at once.
        self.qemu = None;
        let mut exit = failure.exit();
        let vm = match self.back_to_owner_or_us() {
            Ok(vm) => vm,
            Err((needs_help, vm)) => {
                exit = needs_help;
                vm
            }
        };
        if let (Some(guardian), true) = (self.guardian.take(), exit != Exit::NeedsHelp) {
            guardian.done();
        }
        self.tell_sample();
        self.report.tell(&Event::Failed {
            exit: exit as u8,
            error: failure.to_string(),
            vm,
        });
        self.channel.part(LAST_WORDS_LIMIT);
        exit
    }

    /// Tells how the VM is.
    fn back_to_owner_or_us(&mut self) -> Result<String, (Exit, String)> {
        if self.owned.is_some() {
            return self.leave_to_owner();
        }
        self.put_back().map_err(|error| {
            let vm = format!(
                "the VM could not be brought back: {error}; the guardian goes on trying, or resume it with `cont` on {}",
                self.args.qmp.display()
            );
            (Exit::NeedsHelp, vm)
        })
    }

    fn put_back(&mut self) -> Result<String, hypervisor::Error> {
        let Some(saved) = self.saved.take() else {
            return Ok("the VM was not touched".into());
        };
        let mut vm = String::new();
        if self.times.migrate.is_some() {
            vm = recover_source(&mut self.vm, self.was_running, RECOVER_LIMIT)?.to_string();
        }
        self.release_guest();
        saved.restore(&mut self.vm)?;
        Ok(vm)
    }

    /// An operator has looked at both hosts: nobody else tries any more.
    pub(super) fn resolved(mut self, run: bool) -> Exit {
        if let Some(guardian) = self.guardian.take() {
            guardian.done();
        }
        self.qemu = None;
        let (exit, vm) = match run {
            true => match self.put_back() {
                Ok(vm) => (Exit::Failed, format!("{vm}, as it was at the switchover")),
                Err(error) => (
                    Exit::NeedsHelp,
                    format!(
                        "the VM could not be brought back: {error}; resume it with `cont` on {}",
                        self.args.qmp.display()
                    ),
                ),
            },
            false => {
                self.restore_settings();
                (Exit::InDoubt, "the VM rests here and stays so".into())
            }
        };
        self.tell_sample();
        self.report.tell(&Event::Failed {
            exit: exit as u8,
            error: "the destination does not answer, and `unmoor resolve` has decided".into(),
            vm,
        });
        exit
    }

    pub(super) fn in_doubt(mut self, why: &str) -> Exit {
        if let Some(watch) = &self.watch
            && let Err(error) = keep_in_doubt(watch)
        {
            self.report.tell(&Event::Note {
                text: format!("what is in doubt could not be kept for `unmoor resolve`: {error}"),
            });
        }
        self.restore_settings();
        if let Some(guardian) = self.guardian.take() {
            guardian.done();
        }
        self.tell_sample();
        self.report.tell(&Event::Failed {
            exit: Exit::InDoubt as u8,
            error: why.to_owned(),
            vm: format!(
                "the VM is paused here and stays so, since it may run at {}: look there, then settle it with `unmoor resolve {}`",
                self.channel.peer(),
                session_name(self.session)
            ),
        });
        Exit::InDoubt
    }
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}
