//! One migration seen from the source: the loop that feeds the engine and does what it asks.

use std::time::{Duration, Instant, SystemTime};

use hypervisor::{Incoming, MigrationInfo, MigrationStatus, RunState, Saved, Vm, VmFacts};
use migrate::{KeepAlive, Liveness, Source, SourceAction, SourcePhase};
use rustix::event::{PollFd, PollFlags};
use wire::{AbortCode, Frame, Message, Started, put_control};

use super::audit::Auditor;
use super::cut::Cut;
use super::hook::Hook;
use super::meter::Meter;
use super::outlet::{Outlet, Sent};
use super::owned::Owned;
use super::settle::Settled;
use super::steer::Steering;
use super::stream::QemuStream;
use super::{Failure, failed, ledger};
use crate::LAST_WORDS_LIMIT;
use crate::args::SendArgs;
use crate::buffer::{Filled, Input};
use crate::control::{Control, Role};
use crate::exit::Exit;
use crate::guardian::{Guardian, Watch};
use crate::guest_ram::GuestRam;
use crate::net::{Channel, Connector, Link};
use crate::pace::Pace;
use crate::poll::wait;
use crate::report::{Audited, Event, Report, session_name};
use crate::signals::Signals;

/// Time between two progress reports.
const PROGRESS_EVERY: Duration = Duration::from_millis(500);
/// Time between two samples for a written report.
const SAMPLE_EVERY: Duration = Duration::from_millis(100);
/// Longest wait for the destination to say that it has thawed what was frozen. The VM runs there
/// already.
const THAW_LIMIT: Duration = Duration::from_secs(8);

/// A migration from here.
pub(crate) struct Session<'a> {
    pub(super) args: &'a SendArgs,
    pub(super) connector: Connector,
    pub(super) report: &'a mut dyn Report,
    pub(super) signals: Signals,
    pub(super) engine: Source,
    pub(super) steering: Steering,
    pub(super) channel: Channel,
    /// While the connection is lost.
    pub(super) cut: Option<Cut>,
    /// What the destination wants to see of a source that comes back.
    pub(super) ticket: Option<[u8; 32]>,
    /// Connections to use.
    pub(super) connections: u8,
    /// Tries to open them so far.
    pub(super) attempt: u32,
    pub(super) vm: Vm,
    pub(super) facts: VmFacts,
    pub(super) session: [u8; 16],
    pub(super) input: Input,
    pub(super) output: Outlet,
    pub(super) decoder: wire::Decoder,
    pub(super) qemu: Option<QemuStream>,
    /// Somebody else who manages the VM.
    pub(super) owned: Option<Owned>,
    pub(super) guardian: Option<Guardian>,
    /// What it watches.
    pub(super) watch: Option<Watch>,
    pub(super) saved: Option<Saved>,
    /// Whether the VM ran when the migration began.
    pub(super) was_running: bool,
    pub(super) destination_qemu: String,
    /// The VM's memory, where it can be read from outside.
    pub(super) ram: Option<GuestRam>,
    /// It has turned out that it cannot: what is held takes this host's memory.
    pub(super) copies_are_made: bool,
    pub(super) auditor: Option<Auditor>,
    /// What an audit has found.
    pub(super) audited: Option<Audited>,
    pub(super) hook: Option<Hook>,
    pub(super) hook_time: Option<Duration>,
    /// Whoever is spoken with has known the VM from the first word on.
    pub(super) is_same_peer: bool,
    /// The destination has given the VM up before it heard of the commit.
    given_up_there: bool,
    /// What an operator has decided where the destination does not answer: whether the VM runs here.
    pub(super) decided: Option<bool>,
    /// How the VM has started at the destination.
    pub(super) started: Option<Started>,
    pub(super) alive: KeepAlive,
    pub(super) pace: Option<Pace>,
    /// The limit in force, in bytes a second.
    pub(super) bandwidth: Option<u64>,
    pub(super) control: Control,
    pub(super) times: Times,
    pub(super) meters: Meters,
    pub(super) query: Query,
}

/// When things happened.
pub(super) struct Times {
    pub(super) begun: Instant,
    pub(super) migrate: Option<Instant>,
    /// QEMU's STOP event, on the wall clock that QEMU stamps events with.
    pub(super) stopped: Option<Duration>,
    pub(super) committed: Option<Duration>,
    /// The VM runs at the destination, on the wall clock, where somebody else has started it.
    pub(super) runs: Option<Duration>,
    /// The VM is known to run at the destination.
    pub(super) finished: Option<Instant>,
    /// Memory that followed is known to be there, on the wall clock.
    pub(super) free: Option<Duration>,
    next_report: Instant,
    next_sample: Instant,
    next_pass: Instant,
}

/// Counters and rates.
pub(super) struct Meters {
    pub(super) wire_bytes: u64,
    pub(super) wire: Meter,
    pub(super) memory: Meter,
    pub(super) passes: u64,
    passes_told: u64,
}

/// The poll of `query-migrate`: asked without waiting, since QEMU does not answer while the last
/// memory is written.
pub(super) struct Query {
    pub(super) pending: Option<hypervisor::Id>,
    pub(super) info: Option<MigrationInfo>,
}

/// What one turn of the loop found.
enum Turn {
    Go,
    Finished(Started),
}

impl<'a> Session<'a> {
    #[expect(clippy::too_many_arguments, reason = "called once, by `prepare`")]
    pub(crate) fn new(
        args: &'a SendArgs,
        connector: Connector,
        report: &'a mut dyn Report,
        signals: Signals,
        vm: Vm,
        facts: VmFacts,
        link: Link,
        session: [u8; 16],
        engine: Source,
        steering: Steering,
    ) -> Self {
        let now = Instant::now();
        let control = Control::open_or_tell(Role::Send, report);
        Session {
            args,
            connector,
            report,
            signals,
            engine,
            steering,
            channel: Channel::new(link, ledger()),
            cut: None,
            ticket: None,
            connections: args.connections,
            attempt: 0,
            vm,
            facts,
            session,
            input: Input::default(),
            output: Outlet::default(),
            decoder: wire::Decoder::new(),
            qemu: None,
            owned: None,
            guardian: None,
            watch: None,
            saved: None,
            was_running: false,
            destination_qemu: String::new(),
            ram: None,
            copies_are_made: false,
            auditor: None,
            audited: None,
            hook: None,
            hook_time: None,
            is_same_peer: true,
            given_up_there: false,
            decided: None,
            started: None,
            alive: KeepAlive::new(args.how.net.peer_timeout, now),
            pace: None,
            bandwidth: None,
            control,
            times: Times {
                begun: now,
                migrate: None,
                stopped: None,
                committed: None,
                runs: None,
                finished: None,
                free: None,
                next_report: now,
                next_sample: now,
                next_pass: now,
            },
            meters: Meters {
                wire_bytes: 0,
                wire: Meter::new(now),
                memory: Meter::new(now),
                passes: 0,
                passes_told: 0,
            },
            query: Query {
                pending: None,
                info: None,
            },
        }
    }

    /// The whole migration, to one stated outcome.
    pub(crate) fn run(mut self) -> Exit {
        match self.drive() {
            Ok(started) => self.moved(started),
            Err(failure)
                if self.engine.phase() < SourcePhase::Committed
                    || self.given_up_there
                    || self.owned.is_some() =>
            {
                self.stay(&failure)
            }
            Err(_) if let Some(run) = self.decided => self.resolved(run),
            Err(failure) if self.must_go_on() => self.leave_it_to_the_guardian(&failure),
            Err(failure) => match self.settle(&failure) {
                Settled::Moved(started) => self.moved(started),
                Settled::Unknown(why) => self.in_doubt(&why),
            },
        }
    }

    fn drive(&mut self) -> Result<Started, Failure> {
        let facts = match &self.owned {
            Some(owned) => owned.errand(self.args.agent.is_some()),
            None => serde_json::to_string(&self.facts).map_err(|e| failed(&e))?,
        };
        self.engine
            .greet(crate::SOFTWARE, facts, self.output.tail());
        loop {
            if let Turn::Finished(started) = self.act()? {
                // Best effort: the destination waits a little for the answer to be fetched.
                let _ = self.output.send_all(&mut self.channel, LAST_WORDS_LIMIT);
                let started = self.let_owner_complete(started)?;
                self.times.finished.get_or_insert_with(Instant::now);
                self.await_thaw();
                return Ok(started);
            }
            self.come_back()?;
            self.steer()?;
            // What was read before reading had to stop.
            if self.may_read() {
                self.take_events()?;
            }
            self.audit()?;
            self.pump()?;
            self.engine.flush(self.output.tail());
            if let Some(upto) = self.channel.owes() {
                put_control(&Message::Ack(upto), self.output.tail());
            }
            self.send()?;
            // A socket that has taken everything announces nothing: nobody would wake us for what
            // is still held.
            while self.output.is_empty() && self.has_due() {
                self.pump()?;
                self.engine.flush(self.output.tail());
                self.send()?;
            }
            let mut deadline = self.on_time()?;
            if self.is_auditing() {
                deadline = Instant::now();
            }
            self.wait_and_read(deadline)?;
        }
    }

    /// Does what the engine asks for.
    fn act(&mut self) -> Result<Turn, Failure> {
        while let Some(action) = self.engine.next_action() {
            match action {
                SourceAction::Start(accept) => self.start_qemu(&accept)?,
                SourceAction::Audit => self.begin_audit()?,
                SourceAction::Decide => {
                    self.report.tell(&Event::Ready);
                    match &self.args.before_commit {
                        Some(command) => {
                            let hook = Hook::start(command, &session_name(self.session));
                            self.hook = Some(hook.map_err(|error| {
                                Failure::Failed(format!("cannot run --before-commit: {error}"))
                            })?);
                        }
                        None => self.commit()?,
                    }
                }
                SourceAction::Finish(started) => return Ok(Turn::Finished(started)),
                SourceAction::Runs(started) => self.runs(started),
                SourceAction::Arrived(followed) => {
                    self.arrived(followed);
                    if let Some(started) = self.started {
                        return Ok(Turn::Finished(started));
                    }
                }
            }
        }
        Ok(Turn::Go)
    }

    /// The last step before the point of no return.
    pub(super) fn commit(&mut self) -> Result<(), Failure> {
        if self.owned.is_some() {
            // Nothing is decided by it: the owner does, when QEMU completes.
            self.committed();
            return Ok(());
        }
        if let Some(cut) = &mut self.cut {
            // The outcome of a commit that cannot be sent would be in doubt for nothing.
            cut.then_commit = true;
            return Ok(());
        }
        if self.was_running {
            // Somebody with another monitor may have resumed the VM meanwhile.
            let state = self.vm.status().map_err(|e| failed(&e))?;
            // QEMU says `completed` a moment before it calls this rest; nothing but rest follows.
            if !matches!(state, RunState::PostMigrate | RunState::FinishMigrate) {
                return Err(Failure::Failed(format!(
                    "the source VM should rest for the commit but is {state}: somebody else has resumed it"
                )));
            }
        }
        let follow = self.to_go_on();
        let Some(guardian) = &mut self.guardian else {
            return Err(Failure::Failed("there is no guardian".into()));
        };
        guardian.commit(follow).map_err(|error| {
            Failure::Failed(format!("the guardian did not record the commit: {error}"))
        })?;
        self.committed();
        Ok(())
    }

    fn committed(&mut self) {
        self.engine.commit_recorded(self.output.tail());
        if self.must_go_on() {
            self.hurry();
            crate::hurry();
        }
        self.times.committed = wall_clock();
        self.report.tell(&Event::Committed);
    }

    /// Writes what waits, as far as link and bandwidth limit allow.
    fn send(&mut self) -> Result<(), Failure> {
        if self.owned.is_some() {
            self.tell_qemu()?;
        }
        self.output.advance();
        let now = Instant::now();
        let is_limited = self.is_limited();
        let limit = match &mut self.pace {
            Some(pace) if is_limited => pace.allowance(now),
            _ => usize::MAX,
        };
        // What is encrypted already goes whatever the limit.
        let nothing_to_send = !self.output.waits_for_link() || limit == 0;
        if nothing_to_send && !self.channel.wants_write() {
            let waits = !self.output.is_empty() && self.channel.is_up();
            self.steering.link_rate.sent(now, 0, waits);
            return Ok(());
        }
        let Sent { wire, plain } = match self.output.send(&mut self.channel, limit) {
            Ok(sent) => sent,
            Err(error) => return self.cut_off(&self.peer_lost(&error)),
        };
        // What waits for a connection says nothing of the link.
        let waits = !self.output.is_empty() && self.channel.is_up();
        self.steering.link_rate.sent(now, plain as u64, waits);
        if wire > 0 {
            self.alive.on_sent(now);
            self.meters.wire_bytes += wire as u64;
            if let Some(pace) = &mut self.pace {
                pace.spend(wire);
            }
        }
        Ok(())
    }

    pub(super) fn vm_runs(&self) -> bool {
        self.times.stopped.is_none()
    }

    /// Whether the limit of what may be sent is in force: not while the VM stands.
    fn is_limited(&self) -> bool {
        self.vm_runs() || self.must_go_on()
    }

    /// Everything that is due by the clock; returns when to come back.
    fn on_time(&mut self) -> Result<Instant, Failure> {
        let now = Instant::now();
        let committed = self.engine.phase() >= SourcePhase::Committed;
        let mut next = match self.alive.check(now) {
            _ if let Some(cut) = &self.cut => cut.next,
            Liveness::Lost => {
                self.cut_off(&format!(
                    "the destination has been silent for {}",
                    humantime::format_duration(self.args.how.net.peer_timeout)
                ))?;
                now
            }
            Liveness::SendNow => {
                self.engine.flush(self.output.tail());
                put_control(&Message::KeepAlive, self.output.tail());
                self.alive.on_sent(now);
                now
            }
            Liveness::Fine(at) => at,
        };
        let lets_complete = self.steering.pilot.lets_complete();
        let watched = self.engine.watch_switchover(now, lets_complete);
        watched.map_err(|e| failed(&e))?;
        if let Some(timeout) = self.args.how.timeout
            && !committed
        {
            let ends = self.times.begun + timeout;
            if now >= ends {
                return Err(Failure::Cancelled(format!(
                    "not moved within --timeout {}",
                    humantime::format_duration(timeout)
                )));
            }
            next = next.min(ends);
        }
        if let Some(pace) = &self.pace
            && self.output.waits_for_link()
            && self.is_limited()
        {
            next = next.min(now + pace.wait().max(Duration::from_millis(1)));
        }
        if self.qemu.is_some() && (!committed || self.must_go_on()) {
            if now >= self.times.next_report {
                self.times.next_report = now + PROGRESS_EVERY;
                self.progress(now)?;
            }
            if now >= self.times.next_sample {
                self.times.next_sample = now + SAMPLE_EVERY;
                self.tell_sample();
                self.tell_pass(now);
                if committed {
                    self.hurry();
                }
            }
            next = next.min(self.times.next_report).min(self.times.next_sample);
        }
        if let Some(at) = self.steering.deadline()
            && !committed
        {
            next = next.min(at);
        }
        Ok(next)
    }

    fn wait_and_read(&mut self, deadline: Instant) -> Result<(), Failure> {
        let paced = self.pace.is_some() && self.is_limited();
        let waits = self.output.waits_for_link() && !paced;
        let mut fds = vec![
            PollFd::from_borrowed_fd(self.signals.fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(self.vm.fd(), PollFlags::IN),
        ];
        let link_from = fds.len();
        fds.extend(self.channel.poll(true, waits));
        let link = link_from..fds.len();
        let reading = self.qemu.as_ref().filter(|_| self.may_read());
        let qemu_at = reading.map(|qemu| {
            fds.push(PollFd::from_borrowed_fd(qemu.fd(), PollFlags::IN));
            fds.len() - 1
        });
        let hook_at = self.hook.as_ref().map(|hook| {
            fds.push(PollFd::from_borrowed_fd(hook.fd(), PollFlags::IN));
            fds.len() - 1
        });
        let agent_at = self.steering.poll().map(|(line, flags)| {
            fds.push(PollFd::from_borrowed_fd(line.fd(), flags));
            fds.len() - 1
        });
        let control_from = fds.len();
        fds.extend(self.control.fds());
        let control_to = fds.len();
        fds.extend(self.owned.iter().flat_map(Owned::fds));
        let owned = control_to..fds.len();
        // Whatever is done by then is passed on with the next turn.
        fds.extend(
            self.output
                .fd()
                .map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)),
        );
        wait(&mut fds, Some(deadline)).map_err(|e| failed(&e))?;
        let ready: Vec<PollFlags> = fds.iter().map(PollFd::revents).collect();
        drop(fds);
        let is_ready = |at: usize| !ready[at].is_empty();

        if is_ready(0) && self.signals.take() {
            self.on_signal()?;
        }
        if is_ready(1) || self.vm.has_queued() {
            self.read_monitor()?;
        }
        let readable = PollFlags::IN | PollFlags::HUP | PollFlags::ERR;
        if ready[link].iter().any(|flags| flags.intersects(readable)) {
            self.read_link()?;
        }
        if agent_at.is_some_and(is_ready) {
            self.read_agent();
        }
        if qemu_at.is_some_and(is_ready) {
            self.read_qemu()?;
        }
        if hook_at.is_some_and(is_ready) {
            self.read_hook()?;
        }
        if (control_from..control_to).any(is_ready) {
            self.hear();
        }
        if owned.into_iter().any(is_ready) {
            self.look_at_owner()?;
        }
        match self.decided {
            Some(_) => Err(Failure::Cancelled("by `unmoor resolve`".into())),
            None => Ok(()),
        }
    }

    pub(super) fn on_signal(&mut self) -> Result<(), Failure> {
        if self.engine.phase() < SourcePhase::Committed {
            return Err(Failure::Cancelled("cancelled by a signal".into()));
        }
        self.report.tell(&Event::Note {
            text: "the commit has been sent and cannot be taken back; waiting for the destination"
                .into(),
        });
        Ok(())
    }

    fn read_monitor(&mut self) -> Result<(), Failure> {
        let incoming = self.vm.process().map_err(|error| {
            Failure::Failed(format!("the source QEMU's monitor failed: {error}"))
        })?;
        for one in incoming {
            match one {
                Incoming::Event(event) => self.on_monitor_event(&event)?,
                Incoming::Reply { id, result } if Some(id) == self.query.pending => {
                    self.query.pending = None;
                    if let Ok(value) = result {
                        self.query.info = Some(MigrationInfo::from_value(&value));
                    }
                }
                Incoming::Reply { .. } => {}
            }
        }
        Ok(())
    }

    fn on_monitor_event(&mut self, event: &hypervisor::Event) -> Result<(), Failure> {
        if self.times.migrate.is_none() {
            return Ok(());
        }
        match event.name.as_str() {
            "MIGRATION" => match MigrationStatus::of_event(event) {
                Some(MigrationStatus::Completed) => self.engine.qemu_completed(),
                Some(MigrationStatus::Failed | MigrationStatus::Cancelled) => {
                    return Err(self.qemu_failed("QEMU gave the migration up"));
                }
                _ => {}
            },
            "MIGRATION_PASS" => {
                self.synchronised(event.timestamp);
                if let Some(pass) = event.data.get("pass").and_then(serde_json::Value::as_u64) {
                    self.meters.passes = pass;
                    self.tell_pass(Instant::now());
                }
            }
            "STOP" => {
                self.times.stopped = Some(event.timestamp);
                self.tell_sample();
                self.report.tell(&Event::Stopped);
            }
            "RESUME" if self.engine.phase() >= SourcePhase::Committed => {
                self.report.tell(&Event::Note {
                    text: "somebody has resumed the VM here, although it belongs to the destination: stop it at once (`stop` on its monitor)".into(),
                });
            }
            "RESUME" => self.times.stopped = None,
            _ => {}
        }
        Ok(())
    }

    /// Tells which pass QEMU is in, if that is news: of passes that are short only the newest, as often
    /// as samples are taken.
    fn tell_pass(&mut self, now: Instant) {
        let pass = self.meters.passes;
        if pass > self.meters.passes_told && now >= self.times.next_pass {
            self.meters.passes_told = pass;
            self.times.next_pass = now + SAMPLE_EVERY;
            self.report.tell(&Event::Pass { pass });
        }
    }

    fn read_link(&mut self) -> Result<(), Failure> {
        match self.channel.receive(&mut self.input) {
            Ok(Filled::Some(_)) => self.alive.on_heard(Instant::now()),
            Ok(Filled::WouldBlock) => return Ok(()),
            Ok(Filled::Closed) => return self.cut_off("the destination closed the connection"),
            Err(error) => return self.cut_off(&self.peer_lost(&error)),
        }
        self.take_frames()
    }

    pub(super) fn take_frames(&mut self) -> Result<(), Failure> {
        while let Some((used, frame)) = self
            .decoder
            .next(self.input.unread())
            .map_err(|e| failed(&e))?
        {
            match frame {
                Frame::Control(Message::Ack(upto)) => {
                    self.channel.acknowledged(upto).map_err(|e| failed(&e))?;
                    self.input.consume(used);
                    continue;
                }
                Frame::Control(Message::Ticket(ticket)) => {
                    self.ticket = Some(ticket);
                    self.input.consume(used);
                    self.spread()?;
                    continue;
                }
                _ => {}
            }
            // Who has heard of the commit does not say so any more: the VM does not run there, and will
            // not. Another that waits there now cannot know.
            self.given_up_there = self.is_same_peer
                && self.engine.phase() == SourcePhase::Committed
                && matches!(frame, Frame::Control(Message::Abort { .. }));
            self.engine
                .frame(frame, self.output.tail())
                .map_err(|fault| match fault {
                    migrate::Fault::PeerAborted {
                        code: AbortCode::Mismatch | AbortCode::Busy,
                        reason,
                    } => Failure::Refused(format!("the destination refused: {reason}")),
                    fault => failed(&fault),
                })?;
            self.input.consume(used);
        }
        Ok(())
    }

    /// The VM runs at the destination: waits a little to hear that what was frozen does, too. If
    /// nothing is heard, the guest thaws by itself.
    fn await_thaw(&mut self) {
        if self.steering.pilot.frozen().next().is_none() || !self.engine.hears_of_thaw() {
            return;
        }
        let deadline = Instant::now() + THAW_LIMIT;
        while self.engine.thawed().is_none() && Instant::now() < deadline {
            let Some(fd) = self.channel.fd() else {
                return;
            };
            let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
            let ready = wait(&mut fds, Some(deadline));
            if !matches!(ready, Ok(1..)) || self.read_link().is_err() {
                return;
            }
        }
    }

    fn read_hook(&mut self) -> Result<(), Failure> {
        let Some(hook) = &mut self.hook else {
            return Ok(());
        };
        let Some(status) = hook.ended().map_err(|e| failed(&e))? else {
            return Ok(());
        };
        self.hook_time = Some(hook.begun.elapsed());
        self.hook = None;
        if status.success() {
            self.commit()
        } else {
            Err(Failure::Failed(format!(
                "--before-commit failed ({status})"
            )))
        }
    }

    fn peer_lost(&self, error: &std::io::Error) -> String {
        format!(
            "the connection to {} was lost: {error}",
            self.channel.peer()
        )
    }
}

/// The clock that QEMU stamps its events with.
pub(super) fn wall_clock() -> Option<Duration> {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .ok()
}
