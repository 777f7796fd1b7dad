//! The pilot's shell: the agent's channel, QEMU's settings and news for people.

use std::collections::HashMap;
use std::fmt::Write;
use std::time::{Duration, Instant};

use depgraph::{Class, ProcessId};
use guest_proto::{ProcessRecord, Run};
use hypervisor::Saved;
use migrate::NoGuestMemory;
use migrate::pilot::{
    Job, OnStall, Pilot, PilotAction, PilotNews, PilotSettings, Protocol, SMALL_BYTES, View,
};
use rustix::event::PollFlags;

use super::meter::LinkRate;
use super::session::{Session, wall_clock};
use super::{Failure, failed};
use crate::agent::{AgentError, Client, Heard, Line, LostProbe};
use crate::args::{ProtocolArg, SendArgs, StallArg};
use crate::report::{Detail, Event, Forecast, Named, Paused, Report, Writer};

/// Longest wait for an agent to thaw what is frozen after a migration that failed.
const THAW_LIMIT: Duration = Duration::from_secs(5);

/// What steers the migration, and what it has told.
pub(super) struct Steering {
    pub(super) pilot: Pilot,
    line: Option<Line>,
    epoch: Instant,
    pub(super) link_rate: LinkRate,
    pub(super) processes: Vec<ProcessRecord>,
    pub(super) jobs: Vec<Job>,
    /// Everything is known that can be before the migration is under way.
    pub(super) writers_known: bool,
    pub(super) foreseen: bool,
    pub(super) predicted: Option<Forecast>,
    /// When the freezing of a process was asked for, on the wall clock.
    asked_to_freeze: HashMap<ProcessId, Duration>,
    /// Pages that the guest declared free when the migration began.
    pub(super) free_at_start: Option<u64>,
    /// From the first question to the agent until memory could be read.
    pub(super) agent_time: Option<Duration>,
    /// Of each of the guest's probes that does not work, in words.
    pub(super) lost_probes: Vec<String>,
}

impl Steering {
    /// Connects to the agent, if there is one.
    pub(super) fn new(
        args: &SendArgs,
        frames: u64,
        report: &mut dyn Report,
    ) -> Result<Self, Failure> {
        let settings = PilotSettings {
            protocol: match args.how.protocol {
                ProtocolArg::Live => Protocol::Live,
                ProtocolArg::Auto | ProtocolArg::StopCopy => Protocol::StopCopy,
                ProtocolArg::PostCopy => Protocol::PostCopy,
            },
            downtime_limit: args.how.downtime_limit,
            max_pause: args.how.max_pause,
            on_stall: match args.how.on_stall {
                StallArg::Wait => OnStall::Wait,
                StallArg::AutoConverge => OnStall::AutoConverge,
                StallArg::Switchover => OnStall::Switchover,
                StallArg::PostCopy => OnStall::PostCopy,
                StallArg::Abort => OnStall::Abort,
            },
            rules: args.how.policy.rules(),
            small_bytes: SMALL_BYTES,
            frames,
        };
        let line = match &args.agent {
            Some(path) => connect(path, args.how.protocol, report)?,
            None if args.how.protocol == ProtocolArg::StopCopy => {
                return Err(Failure::Refused(
                    "--protocol stop-copy needs the agent in the guest: name its channel with --agent, or leave it to --protocol auto".into(),
                ));
            }
            None => None,
        };
        let pilot = match line {
            Some(_) => Pilot::new(settings),
            None => Pilot::without_agent(settings),
        };
        Ok(Steering {
            pilot,
            line,
            epoch: Instant::now(),
            link_rate: LinkRate::default(),
            processes: Vec::new(),
            jobs: Vec::new(),
            writers_known: false,
            foreseen: false,
            predicted: None,
            asked_to_freeze: HashMap::new(),
            free_at_start: None,
            agent_time: None,
            lost_probes: Vec::new(),
        })
    }

    /// The descriptor to wait for, and for what.
    pub(super) fn poll(&self) -> Option<(&Line, PollFlags)> {
        let line = self.line.as_ref()?;
        let flags = match line.waits() {
            true => PollFlags::IN | PollFlags::OUT,
            false => PollFlags::IN,
        };
        Some((line, flags))
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.pilot.deadline().map(|at| self.epoch + at)
    }

    /// How long each process has stood that stands now, up to `end` on the wall clock.
    pub(super) fn paused(&self, end: Duration) -> Vec<Paused> {
        let frozen = self.pilot.frozen();
        frozen
            .map(|(id, _)| {
                let asked = self.asked_to_freeze.get(&id).copied();
                let pause = asked.map(|asked| end.saturating_sub(asked));
                Paused {
                    process: self.named(id),
                    pause_ms: pause.map(|pause| pause.as_secs_f64() * 1000.0),
                }
            })
            .collect()
    }

    pub(super) fn named(&self, id: ProcessId) -> Named {
        let record = self.processes.iter().find(|record| record.id == id);
        Named {
            pid: id.pid,
            name: record.map(|record| record.name.clone()).unwrap_or_default(),
        }
    }

    fn names(&self, ids: &[ProcessId]) -> Vec<Named> {
        ids.iter().map(|id| self.named(*id)).collect()
    }
}

fn connect(
    path: &std::path::Path,
    protocol: ProtocolArg,
    report: &mut dyn Report,
) -> Result<Option<Line>, Failure> {
    match Line::connect(path) {
        Ok(line) => Ok(Some(line)),
        Err(error) if protocol == ProtocolArg::StopCopy => Err(Failure::Refused(error.to_string())),
        Err(error) => {
            let text = match protocol {
                ProtocolArg::PostCopy => {
                    format!("whatever has not been sent once by the switchover follows: {error}")
                }
                _ => format!("all memory is moved live: {error}"),
            };
            report.tell(&Event::Note { text });
            Ok(None)
        }
    }
}

impl Session<'_> {
    /// Lets the pilot look at where things stand, and does what it asks for.
    pub(super) fn steer(&mut self) -> Result<(), Failure> {
        let view = View {
            now: self.steering.epoch.elapsed(),
            link: self.steering.link_rate.rate(),
            cut: self
                .cut
                .as_ref()
                .map(|cut| cut.since.saturating_duration_since(self.steering.epoch)),
            stopped: !self.vm_runs(),
        };
        self.steering.pilot.turn(&mut self.engine, view);
        while let Some(action) = self.steering.pilot.next_action() {
            match action {
                PilotAction::Ask(request) => {
                    if let Some(line) = &mut self.steering.line
                        && let Err(error) = line.ask(request)
                    {
                        self.agent_lost(&error);
                    }
                }
                PilotAction::DowntimeLimit(limit, link) => {
                    let takes_link_rate = self.saved.as_ref().is_some_and(Saved::takes_link_rate);
                    if self.times.migrate.is_some() {
                        self.vm
                            .submit_downtime_limit(limit, link.filter(|_| takes_link_rate))
                            .map_err(|e| failed(&e))?;
                    }
                }
                PilotAction::Throttle(percent) => {
                    self.vm.submit_throttle(percent).map_err(|e| failed(&e))?;
                }
                PilotAction::Tell(news) => self.tell_news(news),
                PilotAction::GiveUp(why) => return Err(Failure::Cancelled(why)),
            }
        }
        if self.steering.agent_time.is_none() && self.steering.pilot.reads_memory() {
            self.steering.agent_time = Some(self.steering.epoch.elapsed());
        }
        self.foresee();
        Ok(())
    }

    /// Takes what the agent has said.
    pub(super) fn read_agent(&mut self) {
        let Some(line) = &mut self.steering.line else {
            return;
        };
        let heard = line.send().and_then(|()| line.receive());
        let heard = match heard {
            Ok(heard) => heard,
            Err(error) => return self.agent_lost(&error),
        };
        let pilot = &mut self.steering.pilot;
        for one in heard {
            match one {
                Heard::Answer(answer, last) => pilot.answer(answer, last, &mut self.engine),
                Heard::Refused(why) => pilot.refused(&why, &mut self.engine),
                Heard::Thawed(who, reason) => pilot.news(&who, reason, &mut self.engine),
            }
        }
    }

    fn agent_lost(&mut self, error: &AgentError) {
        self.steering.line = None;
        self.steering
            .pilot
            .agent_lost(&error.to_string(), &mut self.engine);
    }

    /// QEMU has synchronised its dirty bitmap, at a time on the wall clock.
    pub(super) fn synchronised(&mut self, when: Duration) {
        let age = wall_clock().map_or(Duration::ZERO, |now| now.saturating_sub(when));
        let when = self.steering.epoch.elapsed().saturating_sub(age);
        self.steering.pilot.synchronised(when, &mut self.engine);
    }

    /// Whether held pages wait to be sent.
    pub(super) fn has_due(&self) -> bool {
        self.engine.due_bytes() > 0 || (self.engine.must_drain() && !self.engine.is_auditing())
    }

    /// Sends held pages while the link has room for them.
    pub(super) fn pump(&mut self) -> Result<(), Failure> {
        let room = self.room_in_all().saturating_sub(self.output.len());
        if room > 0 && self.has_due() {
            let tail = self.output.tail();
            let full = tail.len() + room;
            let pumped = match &mut self.ram {
                Some(ram) => self.engine.pump(full, ram, tail),
                None => self.engine.pump(full, &mut NoGuestMemory, tail),
            };
            pumped.map_err(|fault| failed(&fault))?;
        }
        Ok(())
    }

    /// After a failure, once the VM runs again: nothing is left frozen, and nothing is watched any
    /// more. If the agent cannot be asked, it thaws by itself when it has not heard from here.
    pub(super) fn release_guest(&mut self) {
        if self.steering.line.take().is_none() {
            return;
        }
        let Some(path) = &self.args.agent else {
            return;
        };
        if let Err(error) = Client::release(path, THAW_LIMIT) {
            self.report.tell(&Event::Note {
                text: format!(
                    "the agent could not be told that the migration is over ({error}); it thaws what is frozen by itself, within seconds"
                ),
            });
        }
    }

    fn tell_news(&mut self, news: PilotNews) {
        let event = match news {
            PilotNews::Classified(processes, summary) => {
                self.steering.processes = processes;
                let processes = &self.steering.processes;
                self.report.detail(&Detail::Processes(processes));
                let independent = processes.iter().filter(|one| may_pause(one.class)).count();
                Event::Classified {
                    processes: processes.len(),
                    independent,
                    window_ms: summary.window_ms,
                }
            }
            PilotNews::Writing(jobs) => {
                let writer = |job: &Job| Writer {
                    process: self.steering.named(job.id),
                    hot_bytes: job.hot_bytes,
                    bytes_per_s: job.rate,
                };
                let processes = jobs.iter().map(writer).collect();
                self.steering.jobs = jobs;
                self.steering.writers_known = true;
                Event::Writing { processes }
            }
            PilotNews::Freezing(who, expected) => {
                let now = wall_clock().unwrap_or_default();
                for id in &who {
                    self.steering.asked_to_freeze.insert(*id, now);
                }
                Event::Freezing {
                    processes: self.steering.names(&who),
                    expected_pause_ms: expected.as_secs_f64() * 1000.0,
                }
            }
            PilotNews::Frozen(who) => Event::Frozen {
                processes: self.steering.names(&who),
            },
            PilotNews::Thawed(who, why) => Event::Thawed {
                processes: self.steering.names(&who),
                why: why.to_owned(),
            },
            PilotNews::Live(who, why) => Event::Live {
                processes: self.steering.names(&who),
                why,
            },
            PilotNews::DeclaredFree(pages) => {
                self.steering.free_at_start = Some(pages);
                return;
            }
            PilotNews::Free(frames) => {
                if let Some(path) = &self.args.how.left_behind
                    && let Err(error) = write_frames(path, &frames)
                {
                    let path = path.display();
                    let text = format!("--left-behind {path} could not be written: {error}");
                    self.report.tell(&Event::Note { text });
                }
                Event::FreePages {
                    pages: frames.iter().map(|run| run.count).sum(),
                }
            }
            PilotNews::Stalled => Event::Stalled,
            PilotNews::Note(text) => Event::Note { text },
            PilotNews::Probes(state) => {
                let probes = LostProbe::of(&state);
                if probes.is_empty() {
                    return;
                }
                self.steering.lost_probes = probes.iter().map(LostProbe::sentence).collect();
                Event::LostProbes { probes }
            }
        };
        self.report.tell(&event);
    }
}

/// One run of frames a line: the first and how many.
fn write_frames(path: &std::path::Path, frames: &[Run]) -> std::io::Result<()> {
    let mut text = String::new();
    for run in frames {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{} {}", run.first, run.count);
    }
    std::fs::write(path, text)
}

fn may_pause(class: Class) -> bool {
    !class.stays_live()
}
