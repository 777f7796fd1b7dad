//! One migration from here: what QEMU writes goes to the destination's daemon.

use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use migrate::{KeepAlive, Liveness, Source, SourceAction, SourcePhase};
use pack::History;
use qemu_stream::Parser;
use rustix::event::{PollFd, PollFlags};
use wire::{AbortCode, Frame, Message, put_control};

use super::board::{Entry, News};
use super::hello::Errand;
use super::{Carried, Carrier, END_LIMIT, WAITING_MAX, lost};
use crate::LAST_WORDS_LIMIT;
use crate::buffer::{Filled, Input, Output};
use crate::control::Role;
use crate::net::{Channel, Link};
use crate::pace::Pace;
use crate::poll::wait;
use crate::report::session_name;
use crate::send::outlet::Outlet;
use crate::send::{Failure, failed, ledger};

/// Memory for pages that the destination has, so that others can be told by them.
const HISTORY: usize = 64 << 20;
/// Bytes of a guest page: pages of other sizes are not told by others.
const PAGE: usize = 4096;

/// A migration from here.
pub(super) struct Session<'a> {
    carrier: &'a Carrier,
    entry: &'a Entry,
    engine: Source,
    channel: Channel,
    output: Outlet,
    from_peer: Input,
    decoder: wire::Decoder,
    qemu: UnixStream,
    from_qemu: Input,
    parser: Parser,
    to_qemu: Output,
    /// The destination takes part.
    has_begun: bool,
    alive: KeepAlive,
    pace: Option<Pace>,
    wire_bytes: u64,
}

impl<'a> Session<'a> {
    /// A migration that QEMU's end `qemu` begins, to the peer at the other end of `link`.
    pub(super) fn new(
        carrier: &'a Carrier,
        entry: &'a Entry,
        qemu: UnixStream,
        link: Link,
        limit: Option<u64>,
    ) -> Result<Self, Failure> {
        let session: [u8; 16] = crate::random().map_err(|e| failed(&e))?;
        let seed = u64::from_le_bytes(crate::random().map_err(|e| failed(&e))?);
        let mut engine = Source::new(session, seed);
        engine.serve_return_path();
        qemu.set_nonblocking(true).map_err(|e| failed(&e))?;
        let now = Instant::now();
        entry.update(|status| {
            status.session = Some(session_name(session));
            status.peer = Some(link.peer().to_string());
            status.path = Some(link.describe());
            status.bandwidth_bytes_per_s = limit;
        });
        carrier.board.tell(&News::Began {
            session: session_name(session),
            role: Role::Send,
            socket: carrier.socket.display().to_string(),
            path: link.describe(),
        });
        Ok(Session {
            carrier,
            entry,
            engine,
            channel: Channel::new(link, ledger()),
            output: Outlet::default(),
            from_peer: Input::default(),
            decoder: wire::Decoder::new(),
            qemu,
            from_qemu: Input::default(),
            parser: Parser::new(),
            to_qemu: Output::default(),
            has_begun: false,
            alive: KeepAlive::new(carrier.args.net.peer_timeout, now),
            pace: limit.map(|limit| Pace::new(limit, now)),
            wire_bytes: 0,
        })
    }

    /// The whole migration.
    pub(super) fn run(mut self) -> Result<Carried, Failure> {
        let outcome = self.drive();
        if let Err(failure) = &outcome {
            let code = match failure {
                Failure::Cancelled(_) => AbortCode::Cancelled,
                _ => AbortCode::Other,
            };
            self.engine
                .abort(code, &failure.to_string(), self.output.tail());
        }
        // Best effort: the peer sees the connection close.
        let _ = self.output.send_all(&mut self.channel, LAST_WORDS_LIMIT);
        drop(self.qemu);
        self.channel.part(LAST_WORDS_LIMIT);
        outcome
    }

    fn drive(&mut self) -> Result<Carried, Failure> {
        let errand = Errand {
            socket: self.carrier.name.clone(),
            once: false,
            thaw: None,
        };
        let tail = self.output.tail();
        self.engine.greet(crate::SOFTWARE, errand.write(), tail);
        loop {
            if self.act()? {
                self.let_qemu_complete()?;
                return Ok(Carried {
                    wire_bytes: self.wire_bytes,
                    pages: self.engine.digest().pages,
                });
            }
            self.take_events()?;
            let watched = self.engine.watch_switchover(Instant::now(), true);
            watched.map_err(|e| failed(&e))?;
            self.engine.flush(self.output.tail());
            let next = self.on_time()?;
            let paced = self.send()?;
            self.wait_and_read(paced.map_or(next, |at| at.min(next)))?;
        }
    }

    /// Does what the engine asks for; true when the destination's QEMU has loaded everything.
    fn act(&mut self) -> Result<bool, Failure> {
        while let Some(action) = self.engine.next_action() {
            match action {
                SourceAction::Start(_) => self.begin()?,
                // There is nothing to decide here: QEMU has stopped the VM, everything is proven
                // equal, and libvirt starts it there only when QEMU has completed.
                SourceAction::Decide => self.engine.commit_recorded(self.output.tail()),
                SourceAction::Finish(_) => return Ok(true),
                SourceAction::Audit | SourceAction::Runs(_) | SourceAction::Arrived(_) => {
                    return Err(Failure::Failed("memory was to follow".into()));
                }
            }
        }
        Ok(false)
    }

    fn begin(&mut self) -> Result<(), Failure> {
        self.channel.keep_no_copies();
        let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let history = self
            .engine
            .can_recall()
            .then(|| History::new(PAGE, HISTORY));
        if self.engine.can_pack() {
            self.output
                .pack(self.carrier.args.compress, history, threads.min(4))
                .map_err(|error| Failure::Failed(format!("cannot start threads: {error}")))?;
        }
        self.has_begun = true;
        Ok(())
    }

    fn may_read(&self) -> bool {
        self.has_begun && self.output.len() < WAITING_MAX + self.output.appetite()
    }

    /// Gives what QEMU has written to the engine.
    fn take_events(&mut self) -> Result<(), Failure> {
        while self.may_read()
            && let Some((used, event)) = self
                .parser
                .next(self.from_qemu.unread())
                .map_err(|e| failed(&e))?
        {
            self.engine
                .event(
                    &event,
                    self.parser.blocks(),
                    self.parser.page_size(),
                    self.output.tail(),
                )
                .map_err(|e| failed(&e))?;
            self.from_qemu.consume(used);
        }
        self.engine.take_for_qemu(self.to_qemu.tail());
        Ok(())
    }

    /// Writes what waits; when to go on, if a limit holds it up.
    fn send(&mut self) -> Result<Option<Instant>, Failure> {
        self.output.advance();
        self.to_qemu
            .drain(&mut self.qemu, usize::MAX)
            .map_err(|error| given_up(&error.to_string()))?;
        let now = Instant::now();
        // In the last pass the VM stands already, but nothing in the stream says so.
        let runs = self.engine.phase() <= SourcePhase::Memory;
        let pace = self.pace.as_mut().filter(|_| runs);
        let limit = pace.map_or(usize::MAX, |pace| pace.allowance(now));
        if limit > 0 || self.channel.wants_write() {
            let sent = self.output.send(&mut self.channel, limit);
            let sent = sent.map_err(|error| lost(&self.channel, &error.to_string()))?;
            if sent.wire > 0 {
                self.alive.on_sent(now);
                self.wire_bytes += sent.wire as u64;
                if let Some(pace) = &mut self.pace {
                    pace.spend(sent.wire);
                }
            }
        }
        let waits = runs && self.output.waits_for_link();
        Ok(self
            .pace
            .filter(|_| waits)
            .map(|pace| now + pace.wait().max(Duration::from_millis(1))))
    }

    fn on_time(&mut self) -> Result<Instant, Failure> {
        let now = Instant::now();
        self.entry.update(|status| {
            self.engine.phase().describe().clone_into(&mut status.phase);
            status.wire_bytes = Some(self.wire_bytes);
            status.link_bytes_per_s = self.output.link_rate();
        });
        match self.alive.check(now) {
            Liveness::Fine(at) => Ok(at),
            Liveness::SendNow => {
                put_control(&Message::KeepAlive, self.output.tail());
                self.alive.on_sent(now);
                Ok(now)
            }
            Liveness::Lost => Err(lost(&self.channel, "it has been silent for too long")),
        }
    }

    fn wait_and_read(&mut self, deadline: Instant) -> Result<(), Failure> {
        let mut qemu = PollFlags::empty();
        if self.may_read() {
            qemu |= PollFlags::IN;
        }
        if !self.to_qemu.is_empty() {
            qemu |= PollFlags::OUT;
        }
        let mut fds = vec![
            PollFd::new(&self.carrier.stop, PollFlags::IN),
            PollFd::new(&self.qemu, qemu),
        ];
        let waits = self.output.waits_for_link() && self.pace.is_none();
        let link = fds.len();
        fds.extend(self.channel.poll(true, waits));
        let threads = fds.len();
        fds.extend(
            self.output
                .fd()
                .map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)),
        );
        wait(&mut fds, Some(deadline)).map_err(|e| failed(&e))?;
        let ready: Vec<PollFlags> = fds.iter().map(PollFd::revents).collect();
        drop(fds);
        if !ready[0].is_empty() {
            return Err(Failure::Cancelled("unmoord was told to end".into()));
        }
        if ready[1].intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) {
            self.read_qemu()?;
        }
        if ready[link..threads]
            .iter()
            .any(|flags| flags.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR))
        {
            self.read_link()?;
        }
        Ok(())
    }

    fn read_qemu(&mut self) -> Result<(), Failure> {
        match self.from_qemu.fill(&mut self.qemu) {
            Ok(Filled::Some(_) | Filled::WouldBlock) => Ok(()),
            // It completes only when it has heard that everything is loaded.
            Ok(Filled::Closed) => Err(given_up("it closed its stream")),
            Err(error) => Err(given_up(&error.to_string())),
        }
    }

    fn read_link(&mut self) -> Result<(), Failure> {
        match self.channel.receive(&mut self.from_peer) {
            Ok(Filled::Some(_)) => self.alive.on_heard(Instant::now()),
            Ok(Filled::WouldBlock) => return Ok(()),
            Ok(Filled::Closed) => return Err(lost(&self.channel, "it was closed")),
            Err(error) => return Err(lost(&self.channel, &error.to_string())),
        }
        while let Some((used, frame)) = self
            .decoder
            .next(self.from_peer.unread())
            .map_err(|e| failed(&e))?
        {
            match frame {
                Frame::Control(Message::Ack(upto)) => {
                    self.channel.acknowledged(upto).map_err(|e| failed(&e))?;
                }
                frame => {
                    let heard = self.engine.frame(frame, self.output.tail());
                    heard.map_err(|e| failed(&e))?;
                }
            }
            self.from_peer.consume(used);
        }
        self.engine.take_for_qemu(self.to_qemu.tail());
        Ok(())
    }

    /// QEMU hears that everything is loaded, and the destination that it has; then QEMU completes and lets
    /// go.
    fn let_qemu_complete(&mut self) -> Result<(), Failure> {
        let deadline = Instant::now() + END_LIMIT;
        self.engine.take_for_qemu(self.to_qemu.tail());
        self.to_qemu
            .drain(&mut self.qemu, usize::MAX)
            .map_err(|error| given_up(&error.to_string()))?;
        let last_words = self.output.len() as u64;
        // Best effort: it knows that everything is loaded.
        let sent = self.output.send_all(&mut self.channel, LAST_WORDS_LIMIT);
        if sent.is_ok() {
            self.wire_bytes += last_words;
        }
        loop {
            let mut flags = PollFlags::IN;
            if !self.to_qemu.is_empty() {
                flags |= PollFlags::OUT;
            }
            let mut fds = [PollFd::new(&self.qemu, flags)];
            if wait(&mut fds, Some(deadline)).map_err(|e| failed(&e))? == 0 {
                return Ok(());
            }
            self.to_qemu
                .drain(&mut self.qemu, usize::MAX)
                .map_err(|error| given_up(&error.to_string()))?;
            match self.from_qemu.fill(&mut self.qemu) {
                Ok(Filled::Some(_) | Filled::WouldBlock) => {}
                Ok(Filled::Closed) | Err(_) => return Ok(()),
            }
        }
    }
}

fn given_up(how: &str) -> Failure {
    Failure::Cancelled(format!(
        "the source QEMU has given the migration up ({how}): libvirt says why"
    ))
}
