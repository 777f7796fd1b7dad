//! One migration seen from the destination: the loop that feeds the engine and does what it asks.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant, SystemTime};

use hypervisor::{Incoming, RunState, Saved, VmFacts};
use migrate::{
    Destination, DestinationAction, DestinationPhase, Fault, KeepAlive, Liveness, Outputs,
};
use qemu_stream::return_path::ReturnPathParser;
use rustix::event::{PollFd, PollFlags};
use wire::{AbortCode, Frame, Hello, Ledger, Message, Started, put_control};

use super::Receiver;
use super::cut::Cut;
use super::faults::Faults;
use super::joined::Joined;
use super::newcomer::Newcomer;
use super::outcome::code_of;
use super::start::Start;
use crate::agent::Thawing;
use crate::buffer::{Filled, Input, Output};
use crate::exit::Exit;
use crate::guardian::Keeper;
use crate::net::{Channel, Link};
use crate::poll::wait;
use crate::random;
use crate::report::{Event, bytes, session_name};
use crate::send::{Failure, failed};

/// Bytes waiting for QEMU beyond which nothing more is read from the link.
const WAITING_MAX: usize = 512 << 10;
/// Bytes that the source may not have acknowledged yet: little is sent to it.
const KEPT_MAX: usize = 1 << 20;
/// Received bytes after which the source gets a word, so that it need not keep them.
const ACK_EVERY: u64 = 1 << 20;
/// How long a started VM's relay waits for a source that may not know yet.
pub(super) const LINGER: Duration = Duration::from_secs(60);
/// Guest memory that a source may describe beyond twice what this QEMU has: firmware, video
/// memory and the like.
const MEMORY_SLACK: u64 = 1 << 30;
/// The name under which QEMU knows its end of the stream.
const STREAM_FD: &str = "unmoor-incoming";

/// How a session ended.
pub(super) enum Ending {
    /// The QEMU here has been used, one way or the other.
    Over(Exit),
    /// QEMU has not been touched: another source may try.
    Untouched(Failure),
}

/// A migration to here.
pub(super) struct Session<'r, 'a> {
    pub(super) receiver: &'r mut Receiver<'a>,
    pub(super) engine: Destination,
    /// Absent after a loss, while the source may have committed.
    pub(super) link: Option<Connection>,
    /// A connection that was lost and may be resumed.
    pub(super) cut: Option<Cut>,
    /// Somebody who has not said yet what for.
    pub(super) newcomer: Option<Newcomer>,
    /// Somebody with a verdict, while the source's connection does not seem to be lost.
    pub(super) verdict: Option<Newcomer>,
    /// Connections that will be used together.
    pub(super) joined: Joined,
    /// What a source has to show that comes back.
    pub(super) ticket: Option<[u8; 32]>,
    pub(super) to_peer: Output,
    pub(super) to_qemu: Output,
    pub(super) qemu: Option<Qemu>,
    pub(super) saved: Option<Saved>,
    pub(super) session: Option<[u8; 16]>,
    pub(super) committed: Option<Duration>,
    pub(super) resumed: Option<Duration>,
    /// The VM is about to run before all of its memory is here.
    pub(super) start: Option<Start>,
    /// The agent is asked to thaw what was frozen.
    pub(super) thawing: Option<Thawing>,
    /// What the VM waits for.
    pub(super) faults: Faults,
    pub(super) linger_until: Option<Instant>,
    /// Whether the VM runs here.
    pub(super) running: bool,
    /// Processes that the agent thawed.
    pub(super) thawed: Option<u32>,
    /// Starts another half if this one dies while memory follows.
    pub(super) keeper: Option<Keeper>,
}

/// What is spoken over with the source.
pub(super) struct Connection {
    pub(super) channel: Channel,
    pub(super) input: Input,
    decoder: wire::Decoder,
    pub(super) alive: KeepAlive,
    /// Nothing has been read of it here.
    is_fresh: bool,
}

pub(super) struct Qemu {
    pub(super) socket: UnixStream,
    pub(super) input: Input,
    pub(super) parser: ReturnPathParser,
    pub(super) closed: bool,
}

/// Why the loop was left.
pub(super) enum Stop {
    Failed(Failure),
    /// The connection is gone; what that means depends on the phase.
    LinkLost(String),
    /// The VM runs here, and nobody has what has not come.
    MemoryLost(Failure),
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        Stop::Failed(failure)
    }
}

impl<'r, 'a> Session<'r, 'a> {
    pub(super) fn new(receiver: &'r mut Receiver<'a>, link: Link) -> Self {
        let mut session = Self::without_link(receiver, Destination::new());
        session.connect(link, Input::default());
        session
    }

    /// Nobody has connected yet.
    pub(super) fn without_link(receiver: &'r mut Receiver<'a>, engine: Destination) -> Self {
        Session {
            receiver,
            engine,
            link: None,
            cut: None,
            newcomer: None,
            verdict: None,
            joined: Joined::default(),
            ticket: None,
            to_peer: Output::default(),
            to_qemu: Output::default(),
            qemu: None,
            saved: None,
            session: None,
            committed: None,
            resumed: None,
            start: None,
            thawing: None,
            faults: Faults::default(),
            linger_until: None,
            running: false,
            thawed: None,
            keeper: None,
        }
    }

    /// Begins to speak over a connection, of which something has been read.
    pub(super) fn connect(&mut self, link: Link, input: Input) {
        self.to_peer.clear();
        self.engine.connected(self.to_peer.tail());
        let mut ledger = Ledger::new(KEPT_MAX, ACK_EVERY);
        ledger.received(input.unread().len());
        self.link = Some(Connection {
            channel: Channel::new(link, ledger),
            input,
            decoder: wire::Decoder::new(),
            alive: KeepAlive::new(self.receiver.args.net.peer_timeout, Instant::now()),
            is_fresh: true,
        });
    }

    /// The whole migration, to one stated outcome.
    pub(super) fn run(mut self) -> Ending {
        loop {
            match self.drive() {
                Ok(()) => return self.moved(None),
                Err(Stop::LinkLost(why)) if self.can_be_resumed() => self.cut_off(why),
                Err(Stop::LinkLost(why)) if self.engine.phase().may_be_committed() => {
                    self.link = None;
                    self.to_peer.clear();
                    if !self.hear_the_verdict() {
                        self.on_loss(&why);
                    }
                }
                Err(Stop::MemoryLost(failure)) => return self.memory_is_lost(&failure),
                // What has come cannot be gone on with: it is asked for again, on a new connection.
                Err(Stop::Failed(failure))
                    if self.engine.phase() > DestinationPhase::Ready
                        && self.engine.needs_the_source()
                        && self.link.is_some()
                        && !self.lost_qemu() =>
                {
                    self.ticket = None;
                    self.link = None;
                    self.to_peer.clear();
                    self.on_loss(&failure.to_string());
                }
                Err(Stop::LinkLost(why)) => {
                    return self.give_up(&Failure::Failed(why), AbortCode::Other);
                }
                Err(Stop::Failed(failure)) => {
                    return match self.engine.phase() {
                        phase
                            if phase > DestinationPhase::Ready
                                && self.engine.needs_the_source() =>
                        {
                            self.memory_is_lost(&failure)
                        }
                        DestinationPhase::Starting => self.starting_failed(&failure),
                        phase if phase > DestinationPhase::Starting => {
                            self.moved(Some(failure.to_string()))
                        }
                        _ => self.give_up(&failure, code_of(&failure)),
                    };
                }
            }
        }
    }

    fn on_loss(&mut self, why: &str) {
        let text = if self.engine.phase() == DestinationPhase::Ready {
            format!(
                "{why}, and it is not known whether the source has committed: the VM waits here, not running, until the source or its guardian says so, or you do: `unmoor resolve {}`",
                self.session.map(session_name).unwrap_or_default()
            )
        } else if self.engine.needs_the_source() {
            format!(
                "{why}, and the VM here needs {} that have not come: waiting for the source or its guardian",
                bytes(self.engine.awaited_bytes())
            )
        } else {
            self.linger_until = Some(Instant::now() + LINGER);
            format!("{why} after the commit; waiting a little for the source to ask")
        };
        self.receiver.report.tell(&Event::Note { text });
    }

    fn drive(&mut self) -> Result<(), Stop> {
        loop {
            if self.act()? {
                return Ok(());
            }
            self.engine.flush(self.to_qemu.tail());
            if let Some(connection) = &mut self.link
                && let Some(upto) = connection.channel.owes()
            {
                put_control(&Message::Ack(upto), self.to_peer.tail());
            }
            self.send()?;
            if self.take_frames()? {
                continue;
            }
            let Some(deadline) = self.on_time()? else {
                return Ok(());
            };
            self.wait_and_read(deadline)?;
        }
    }

    /// Does what the engine asks for; true when the source knows the outcome.
    fn act(&mut self) -> Result<bool, Stop> {
        while let Some(action) = self.engine.next_action() {
            match action {
                DestinationAction::Admit(hello) => self.admit(&hello)?,
                DestinationAction::OpenQemu => self.open_qemu()?,
                DestinationAction::Committed => {
                    self.committed = wall_clock();
                    self.receiver.report.tell(&Event::Committed);
                    if self.engine.needs_the_source() {
                        crate::hurry();
                        self.have_a_keeper();
                    }
                }
                DestinationAction::Started => self.started()?,
                DestinationAction::Starting => self.start = Some(Start::default()),
                DestinationAction::Arrived => self.arrived(),
                DestinationAction::Finish => return Ok(true),
            }
        }
        Ok(false)
    }

    /// Before QEMU hears of the commit: should this process die, another takes over.
    pub(super) fn have_a_keeper(&mut self) {
        let Some(takeover) = self.takeover() else {
            return;
        };
        match Keeper::start(takeover) {
            Ok(keeper) => self.keeper = Some(keeper),
            Err(error) => self.receiver.report.tell(&Event::Note {
                text: format!(
                    "there is no guardian ({error}): if this process dies before all memory has come, the VM here is lost"
                ),
            }),
        }
    }

    fn admit(&mut self, hello: &Hello) -> Result<(), Stop> {
        let peer = self.link.as_ref().map(|c| c.channel.peer().to_string());
        self.session = Some(hello.session);
        self.receiver.report.tell(&Event::Connected {
            peer: peer.unwrap_or_default(),
            session: session_name(hello.session),
            path: self
                .link
                .as_ref()
                .map(|c| c.channel.describe())
                .unwrap_or_default(),
        });
        // The source compares; here only that it speaks of a VM at all.
        let _: VmFacts = serde_json::from_str(&hello.vm_facts).map_err(|error| {
            Failure::Failed(format!("the source describes its VM unreadably: {error}"))
        })?;
        let facts = serde_json::to_string(&self.receiver.facts).map_err(|e| failed(&e))?;
        let limit = self
            .receiver
            .facts
            .memory_bytes
            .saturating_mul(2)
            .saturating_add(MEMORY_SLACK);
        self.engine
            .accept(crate::SOFTWARE, facts, limit, self.to_peer.tail());
        if self.engine.can_resume() {
            let ticket = random().map_err(|e| failed(&e))?;
            put_control(&Message::Ticket(ticket), self.to_peer.tail());
            self.ticket = Some(ticket);
        } else if let Some(connection) = &mut self.link {
            connection.channel.keep_no_copies();
        }
        Ok(())
    }

    fn open_qemu(&mut self) -> Result<(), Stop> {
        let vm = &mut self.receiver.vm;
        let plan = Saved::plan_destination(vm, self.engine.may_follow()).map_err(|e| failed(&e))?;
        self.saved = Some(plan.clone());
        plan.apply(vm).map_err(|e| failed(&e))?;
        let (ours, qemus) = UnixStream::pair().map_err(|e| failed(&e))?;
        ours.set_nonblocking(true).map_err(|e| failed(&e))?;
        vm.send_fd(STREAM_FD, OwnedFd::from(qemus).as_fd())
            .map_err(|e| failed(&e))?;
        self.qemu = Some(Qemu {
            socket: ours,
            input: Input::default(),
            parser: ReturnPathParser::new(),
            closed: false,
        });
        vm.migrate_incoming(&format!("fd:{STREAM_FD}"))
            .map_err(|e| failed(&e))?;
        Ok(())
    }

    /// QEMU says that it has started the VM, or left it paused.
    fn started(&mut self) -> Result<(), Stop> {
        let vm = &mut self.receiver.vm;
        let running = vm.status().map_err(|e| failed(&e))? == RunState::Running;
        // The RESUME event, if any, came before the answer.
        self.read_monitor()?;
        self.has_started(running)
    }

    /// The VM runs, or is left paused.
    pub(super) fn has_started(&mut self, running: bool) -> Result<(), Stop> {
        let resume_after = match (self.resumed, self.committed) {
            (Some(resumed), Some(committed)) => resumed.saturating_sub(committed),
            _ => Duration::ZERO,
        };
        let started = Started {
            running,
            resume_after_us: micros(resume_after),
        };
        self.running = running;
        self.engine.started(started, self.to_peer.tail());
        if running {
            // The source need not wait for what follows.
            self.send()?;
            self.thaw();
        }
        if self.link.is_none() && !self.engine.needs_the_source() {
            self.linger_until = Some(Instant::now() + LINGER);
        }
        Ok(())
    }

    fn send(&mut self) -> Result<(), Stop> {
        if let Some(qemu) = &mut self.qemu
            && let Err(error) = self.to_qemu.drain(&mut qemu.socket, usize::MAX)
        {
            return Err(self.qemu_lost(&error.to_string()).into());
        }
        if let Some(connection) = &mut self.link {
            let sent = connection
                .channel
                .send(&mut self.to_peer, usize::MAX)
                .map_err(|error| {
                    Stop::LinkLost(format!("the connection to the source was lost: {error}"))
                })?;
            if sent > 0 {
                connection.alive.on_sent(Instant::now());
            }
        } else if self.cut.is_none() {
            self.to_peer.clear();
        }
        Ok(())
    }

    /// Everything that is due by the clock; returns when to come back, or `None` when a started
    /// VM's source has not asked for long enough.
    fn on_time(&mut self) -> Result<Option<Instant>, Stop> {
        let now = Instant::now();
        if self.linger_until.is_some_and(|until| now >= until) {
            return Ok(None);
        }
        let ask_at = self.ask_whether_it_runs(now)?;
        let next = self.on_time_of_the_link(now)?;
        Ok(Some(ask_at.map_or(next, |at| at.min(next))))
    }

    fn on_time_of_the_link(&mut self, now: Instant) -> Result<Instant, Stop> {
        let hour = now + Duration::from_secs(3600);
        if let Some(cut) = &self.cut {
            if self.must_wait_for_the_source() {
                return Ok(hour);
            }
            let limit = self.receiver.args.net.reconnect;
            if now < cut.since + limit {
                return Ok(cut.since + limit);
            }
            let limit = humantime::format_duration(limit);
            let why = format!("{}, and did not come back within {limit}", cut.why);
            self.cut = None;
            return Err(Stop::LinkLost(why));
        }
        let Some(connection) = &mut self.link else {
            return Ok(self.linger_until.unwrap_or(hour));
        };
        if self.to_qemu.len() >= WAITING_MAX {
            // It is this side that does not listen: QEMU cannot keep up.
            connection.alive.on_heard(now);
        }
        match connection.alive.check(now) {
            Liveness::Lost => Err(Stop::LinkLost(format!(
                "the source has been silent for {}",
                humantime::format_duration(self.receiver.args.net.peer_timeout)
            ))),
            Liveness::SendNow => {
                put_control(&Message::KeepAlive, self.to_peer.tail());
                connection.alive.on_sent(now);
                Ok(now)
            }
            Liveness::Fine(at) => Ok(at),
        }
    }

    fn wait_and_read(&mut self, deadline: Instant) -> Result<(), Stop> {
        if let Some(connection) = &mut self.link
            && std::mem::take(&mut connection.is_fresh)
        {
            // What the source has said may have come with the last of its handshake: then the socket
            // announces nothing.
            return self.read_link();
        }
        let receiver = &self.receiver;
        let is_open = self.lets_in();
        let mut fds = vec![
            PollFd::from_borrowed_fd(receiver.signals.fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(receiver.vm.fd(), PollFlags::IN),
        ];
        fds.extend(receiver.door.fds(is_open));
        let door_ends = fds.len();
        fds.extend(receiver.control.fds());
        let control_ends = fds.len();
        let reads = self.to_qemu.len() < WAITING_MAX;
        let link_from = fds.len();
        if let Some(connection) = &self.link {
            fds.extend(connection.channel.poll(reads, !self.to_peer.is_empty()));
        }
        let link = link_from..fds.len();
        let newcomer_at = self.newcomer.as_ref().map(|newcomer| {
            fds.push(newcomer.fd());
            fds.len() - 1
        });
        let mut qemu_flags = PollFlags::IN;
        if !self.to_qemu.is_empty() {
            qemu_flags |= PollFlags::OUT;
        }
        let qemu_at = self.qemu.as_ref().filter(|qemu| !qemu.closed).map(|qemu| {
            fds.push(PollFd::new(&qemu.socket, qemu_flags));
            fds.len() - 1
        });
        let thaw_at = self.thawing.as_ref().map(|thawing| {
            fds.push(PollFd::from_borrowed_fd(thawing.fd(), PollFlags::IN));
            fds.len() - 1
        });
        let knocked = receiver.door.deadline();
        let deadline = knocked.map_or(deadline, |at| at.min(deadline));
        let word_by = self.newcomer.as_ref().map(Newcomer::deadline);
        let deadline = word_by.map_or(deadline, |at| at.min(deadline));
        wait(&mut fds, Some(deadline)).map_err(|e| failed(&e))?;
        let ready: Vec<PollFlags> = fds.iter().map(PollFd::revents).collect();
        drop(fds);
        let readable = PollFlags::IN | PollFlags::HUP | PollFlags::ERR;

        if !ready[0].is_empty() && self.receiver.signals.take() {
            self.on_signal()?;
        }
        if thaw_at.is_some_and(|at| !ready[at].is_empty()) {
            self.has_thawed();
        }
        if !ready[1].is_empty() || self.receiver.vm.has_queued() {
            self.read_monitor()?;
        }
        // QEMU first: its reason for closing the stream is worth more than the peer's silence.
        if qemu_at.is_some_and(|at| ready[at].intersects(readable)) {
            self.read_qemu()?;
        }
        if ready[door_ends..control_ends]
            .iter()
            .any(|flags| !flags.is_empty())
        {
            self.hear()?;
        }
        let knocks = ready[2..door_ends].iter().any(|flags| !flags.is_empty());
        if knocks || knocked.is_some_and(|at| at <= Instant::now()) {
            self.another_connection(is_open)?;
        }
        if newcomer_at.is_some_and(|at| !ready[at].is_empty())
            || word_by.is_some_and(|at| at <= Instant::now())
        {
            self.hear_the_newcomer()?;
        }
        if ready[link].iter().any(|flags| flags.intersects(readable))
            && self.to_qemu.len() < WAITING_MAX
        {
            self.read_link()?;
        }
        Ok(())
    }

    fn read_monitor(&mut self) -> Result<(), Stop> {
        let incoming = match self.receiver.vm.process() {
            Ok(incoming) => incoming,
            Err(error) => {
                return Err(Failure::Failed(format!(
                    "the QEMU here has ended: {error}; its log says why"
                ))
                .into());
            }
        };
        for one in incoming {
            match one {
                Incoming::Event(event) if event.name == "RESUME" => {
                    self.resumed = Some(event.timestamp);
                    self.is_known_to_run(true)?;
                }
                Incoming::Event(_) => {}
                Incoming::Reply { id, result } => self.hear_whether_it_runs(id, result)?,
            }
        }
        Ok(())
    }

    fn read_link(&mut self) -> Result<(), Stop> {
        let Some(connection) = &mut self.link else {
            return Ok(());
        };
        match connection.channel.receive(&mut connection.input) {
            Ok(Filled::Some(_)) => connection.alive.on_heard(Instant::now()),
            Ok(Filled::WouldBlock) => return Ok(()),
            Ok(Filled::Closed) => {
                return Err(Stop::LinkLost("the source closed the connection".into()));
            }
            Err(error) => {
                return Err(Stop::LinkLost(format!(
                    "the connection to the source was lost: {error}"
                )));
            }
        }
        Ok(())
    }

    /// Decodes what has arrived, as long as QEMU keeps up: a frame of a few bytes may describe
    /// many zero pages, each of which becomes a record for QEMU. Tells whether there was anything
    /// to do.
    fn take_frames(&mut self) -> Result<bool, Stop> {
        let Some(connection) = &mut self.link else {
            return Ok(false);
        };
        let mut any = false;
        let before = self.engine.phase();
        while self.to_qemu.len() < WAITING_MAX
            && let Some((used, frame)) = connection
                .decoder
                .next(connection.input.unread())
                .map_err(|e| failed(&Fault::from(e)))?
        {
            if let Frame::Control(Message::Ack(upto)) = frame {
                let acknowledged = connection.channel.acknowledged(upto);
                acknowledged.map_err(|e| failed(&Fault::from(e)))?;
                connection.input.consume(used);
                any = true;
                continue;
            }
            let phase = self.engine.phase();
            let needs_it = phase > DestinationPhase::Ready && self.engine.needs_the_source();
            let mut outputs = Outputs {
                peer: self.to_peer.tail(),
                qemu: self.to_qemu.tail(),
            };
            self.engine
                .frame(&frame, &mut outputs)
                .map_err(|fault| match fault {
                    Fault::PeerAborted { code, reason } => {
                        let why = format!("the source gave up: {reason}");
                        match code {
                            _ if needs_it => Stop::MemoryLost(Failure::Failed(why)),
                            AbortCode::Cancelled => Failure::Cancelled(why).into(),
                            _ => Failure::Failed(why).into(),
                        }
                    }
                    fault => failed(&fault).into(),
                })?;
            connection.input.consume(used);
            any = true;
        }
        self.faults.note(&self.engine.fault_news());
        if self.engine.phase() != before {
            let phase = self.engine.phase().describe();
            self.receiver.report.tell(&Event::Phase { phase });
        }
        Ok(any)
    }

    fn read_qemu(&mut self) -> Result<(), Stop> {
        let Some(qemu) = &mut self.qemu else {
            return Ok(());
        };
        match qemu.input.fill(&mut qemu.socket) {
            Ok(Filled::Some(_)) => {}
            Ok(Filled::WouldBlock) => return Ok(()),
            Ok(Filled::Closed) => {
                qemu.closed = true;
                if self.engine.phase() < DestinationPhase::Started || self.engine.needs_the_source()
                {
                    return Err(self.qemu_lost("it closed its stream").into());
                }
                return Ok(());
            }
            Err(error) => return Err(self.qemu_lost(&error.to_string()).into()),
        }
        while let Some((used, message)) = qemu
            .parser
            .next(qemu.input.unread())
            .map_err(|e| failed(&Fault::from(e)))?
        {
            let mut outputs = Outputs {
                peer: self.to_peer.tail(),
                qemu: self.to_qemu.tail(),
            };
            self.engine
                .return_path(&message, &mut outputs)
                .map_err(|e| failed(&e))?;
            qemu.input.consume(used);
        }
        self.faults.note(&self.engine.fault_news());
        if self.engine.phase() == DestinationPhase::Ready {
            self.receiver.report.tell(&Event::Ready);
        }
        Ok(())
    }

    /// QEMU reads no more: nothing that comes now would reach it.
    pub(super) fn lost_qemu(&self) -> bool {
        self.qemu.as_ref().is_none_or(|qemu| qemu.closed)
    }

    /// QEMU has let go of the stream: with its own words, if it still has any.
    fn qemu_lost(&mut self, what: &str) -> Failure {
        let words = self
            .receiver
            .vm
            .migration_info()
            .ok()
            .and_then(|info| info.error_desc);
        Failure::Failed(match words {
            Some(words) => format!("the destination QEMU refused the VM: {words}"),
            None => format!(
                "the destination QEMU refused the VM ({what}): its log says why; most often it was started with other devices than the source"
            ),
        })
    }
}

pub(super) fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// The clock that QEMU stamps its events with.
pub(super) fn wall_clock() -> Option<Duration> {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .ok()
}
