//! One migration to here: what the source's daemon sends goes to the QEMU that libvirt has started.

use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use migrate::{Destination, DestinationAction, DestinationPhase, KeepAlive, Liveness, Outputs};
use qemu_stream::return_path::ReturnPathParser;
use rustix::event::{PollFd, PollFlags};
use wire::{AbortCode, Capabilities, Frame, Hello, Ledger, Message, Started, Thawed, put_control};

use super::board::{Entry, News};
use super::domain::{DomainName, channel_folders};
use super::hello::{Errand, Place};
use super::{Carried, Carrier, WAITING_MAX, lost};
use crate::LAST_WORDS_LIMIT;
use crate::agent::{Thawing, could_not_thaw};
use crate::buffer::{Filled, Input, Output};
use crate::control::Role;
use crate::net::{Channel, Link};
use crate::poll::wait;
use crate::report::session_name;
use crate::send::{Failure, failed};

/// Bytes that the source may not have acknowledged before the session's terms are known.
const KEPT_MAX: usize = 1 << 20;
/// Received bytes after which the source gets a word, if it listens for that.
const ACK_EVERY: u64 = 1 << 20;

/// A migration to here.
pub(super) struct Session<'a> {
    carrier: &'a Carrier,
    entry: &'a Entry,
    engine: Destination,
    channel: Channel,
    from_peer: Input,
    decoder: wire::Decoder,
    to_peer: Output,
    qemu: Option<Qemu>,
    to_qemu: Output,
    alive: KeepAlive,
    wire_bytes: u64,
    session: String,
    /// What QEMU's socket is, once the source has said so.
    socket: PathBuf,
    /// That is there for this migration alone.
    once: bool,
    /// The VM in which processes are to be thawed.
    thaw: Option<DomainName>,
    thawing: Option<Thawing>,
    /// The source knows that everything is loaded.
    is_known: bool,
}

struct Qemu {
    stream: UnixStream,
    input: Input,
    parser: ReturnPathParser,
}

impl<'a> Session<'a> {
    pub(super) fn new(carrier: &'a Carrier, entry: &'a Entry, link: Link) -> Self {
        entry.update(|status| {
            status.peer = Some(link.peer().to_string());
            status.path = Some(link.describe());
        });
        let mut session = Session {
            carrier,
            entry,
            engine: Destination::with(Capabilities::OF_A_MANAGED_VM),
            channel: Channel::new(link, Ledger::new(KEPT_MAX, ACK_EVERY)),
            from_peer: Input::default(),
            decoder: wire::Decoder::new(),
            to_peer: Output::default(),
            qemu: None,
            to_qemu: Output::default(),
            alive: KeepAlive::new(carrier.args.net.peer_timeout, Instant::now()),
            wire_bytes: 0,
            session: String::new(),
            socket: carrier.socket.clone(),
            once: false,
            thaw: None,
            thawing: None,
            is_known: false,
        };
        session.engine.connected(session.to_peer.tail());
        session
    }

    /// The session's name and QEMU's socket, as far as they are known.
    pub(super) fn names(&self) -> (String, String) {
        (self.session.clone(), self.socket.display().to_string())
    }

    /// The whole migration.
    pub(super) fn run(&mut self) -> Result<Carried, Failure> {
        let outcome = match self.drive() {
            // Everything is loaded and proven equal, and the source may have let its QEMU complete:
            // libvirt knows where the VM runs.
            Err(_) if self.engine.phase() >= DestinationPhase::Started => Ok(()),
            outcome => outcome,
        };
        if let Err(failure) = &outcome {
            self.engine
                .abort(AbortCode::Other, &failure.to_string(), self.to_peer.tail());
        }
        // Best effort: the peer sees the connection close.
        let _ = self.channel.send_all(&mut self.to_peer, LAST_WORDS_LIMIT);
        self.qemu = None;
        if self.once {
            // A QEMU that libvirt has ended leaves it behind.
            let _ = std::fs::remove_file(&self.socket);
        }
        self.channel.part(LAST_WORDS_LIMIT);
        outcome.map(|()| Carried {
            wire_bytes: self.wire_bytes,
            pages: self.engine.pages(),
        })
    }

    /// Goes on until the source knows that everything is loaded, and what was frozen is thawed.
    fn drive(&mut self) -> Result<(), Failure> {
        // What the source has said may have come with the last of its handshake: then the socket
        // announces nothing.
        self.read_link()?;
        loop {
            self.act()?;
            if self.is_known && self.thawing.is_none() {
                return Ok(());
            }
            self.engine.flush(self.to_qemu.tail());
            self.send()?;
            if self.take_frames()? {
                continue;
            }
            let deadline = self.on_time()?;
            self.wait_and_read(deadline)?;
        }
    }

    /// Does what the engine asks for.
    fn act(&mut self) -> Result<(), Failure> {
        while let Some(action) = self.engine.next_action() {
            match action {
                DestinationAction::Admit(hello) => self.admit(&hello)?,
                DestinationAction::OpenQemu => self.open_qemu()?,
                DestinationAction::Committed => {}
                // libvirt starts it, once the source's QEMU has completed.
                DestinationAction::Started => {
                    let started = Started {
                        running: false,
                        resume_after_us: 0,
                    };
                    self.engine.started(started, self.to_peer.tail());
                    self.begin_to_thaw();
                }
                DestinationAction::Finish => self.is_known = true,
                DestinationAction::Starting | DestinationAction::Arrived => {
                    return Err(Failure::Failed("memory was to follow".into()));
                }
            }
        }
        Ok(())
    }

    /// The VM hears of it as soon as libvirt lets it run.
    fn begin_to_thaw(&mut self) {
        let Some(vm) = &self.thaw else {
            return;
        };
        let Some(agent) = vm.agent(&channel_folders()) else {
            return self.tell_thawed(
                Err("no socket of its channel is there".into()),
                Duration::ZERO,
            );
        };
        match Thawing::begin(agent, self.carrier.args.net.peer_timeout) {
            Ok(thawing) => self.thawing = Some(thawing),
            Err(error) => self.tell_thawed(Err(error.to_string()), Duration::ZERO),
        }
    }

    fn tell_thawed(&mut self, thawed: Result<usize, String>, took: Duration) {
        if let Err(error) = &thawed {
            self.carrier.board.tell(&News::Note {
                text: could_not_thaw(error),
            });
        }
        let thawed = Thawed {
            processes: thawed.ok().and_then(|count| u32::try_from(count).ok()),
            after_us: u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
        };
        self.engine.thawed(thawed, self.to_peer.tail());
    }

    fn admit(&mut self, hello: &Hello) -> Result<(), Failure> {
        self.session = session_name(hello.session);
        let errand = Errand::read(&hello.vm_facts)?;
        self.socket = self.carrier.socket.join(errand.socket.as_str());
        self.once = errand.once;
        self.thaw = errand.thaw;
        let (session, socket) = self.names();
        self.entry.update(|status| {
            status.session = Some(session.clone());
            status.qmp.clone_from(&socket);
        });
        self.carrier.board.tell(&News::Began {
            session,
            role: Role::Receive,
            socket,
            path: self.channel.describe(),
        });
        // No VM has more memory than this host twice.
        let host = rustix::system::sysinfo();
        let limit = u64::from(host.mem_unit).saturating_mul(host.totalram.saturating_mul(2));
        let place = Place {
            name: self.carrier.name.clone(),
        };
        let tail = self.to_peer.tail();
        self.engine
            .accept(crate::SOFTWARE, place.write(), limit, tail);
        self.channel.keep_no_copies();
        Ok(())
    }

    /// libvirt has told the QEMU here to wait at the socket before it told the source's to write.
    fn open_qemu(&mut self) -> Result<(), Failure> {
        let open = || -> std::io::Result<UnixStream> {
            let stream = UnixStream::connect(&self.socket)?;
            stream.set_nonblocking(true)?;
            Ok(stream)
        };
        let stream = open().map_err(|error| {
            Failure::Failed(format!(
                "no QEMU waits at {} at the destination ({error}): the same path has to be libvirt's migrateuri there",
                self.socket.display()
            ))
        })?;
        self.qemu = Some(Qemu {
            stream,
            input: Input::default(),
            parser: ReturnPathParser::new(),
        });
        Ok(())
    }

    fn send(&mut self) -> Result<(), Failure> {
        if let Some(qemu) = &mut self.qemu
            && let Err(error) = self.to_qemu.drain(&mut qemu.stream, usize::MAX)
        {
            return Err(let_go(&error.to_string()));
        }
        let sent = self.channel.send(&mut self.to_peer, usize::MAX);
        if sent.map_err(|error| lost(&self.channel, &error.to_string()))? > 0 {
            self.alive.on_sent(Instant::now());
        }
        Ok(())
    }

    /// Decodes what has arrived, as long as QEMU keeps up; tells whether there was anything to do.
    fn take_frames(&mut self) -> Result<bool, Failure> {
        let mut any = false;
        while self.to_qemu.len() < WAITING_MAX
            && let Some((used, frame)) = self
                .decoder
                .next(self.from_peer.unread())
                .map_err(|e| failed(&e))?
        {
            match &frame {
                Frame::Control(Message::Ack(upto)) => {
                    self.channel.acknowledged(*upto).map_err(|e| failed(&e))?;
                }
                frame => {
                    let mut outputs = Outputs {
                        peer: self.to_peer.tail(),
                        qemu: self.to_qemu.tail(),
                    };
                    let heard = self.engine.frame(frame, &mut outputs);
                    heard.map_err(|e| failed(&e))?;
                }
            }
            self.from_peer.consume(used);
            any = true;
        }
        Ok(any)
    }

    fn on_time(&mut self) -> Result<Instant, Failure> {
        let now = Instant::now();
        self.entry
            .update(|status| self.engine.phase().describe().clone_into(&mut status.phase));
        if self.to_qemu.len() >= WAITING_MAX {
            // It is this side that does not listen: QEMU cannot keep up.
            self.alive.on_heard(now);
        }
        match self.alive.check(now) {
            Liveness::Fine(at) => Ok(at),
            Liveness::SendNow => {
                put_control(&Message::KeepAlive, self.to_peer.tail());
                self.alive.on_sent(now);
                Ok(now)
            }
            Liveness::Lost => Err(lost(&self.channel, "it has been silent for too long")),
        }
    }

    fn wait_and_read(&mut self, deadline: Instant) -> Result<(), Failure> {
        let reads = self.to_qemu.len() < WAITING_MAX;
        let mut fds = vec![PollFd::new(&self.carrier.stop, PollFlags::IN)];
        if let Some(qemu) = &self.qemu {
            let flags = match self.to_qemu.is_empty() {
                true => PollFlags::IN,
                false => PollFlags::IN | PollFlags::OUT,
            };
            fds.push(PollFd::new(&qemu.stream, flags));
        }
        let link = fds.len();
        fds.extend(self.channel.poll(reads, !self.to_peer.is_empty()));
        let thaw = fds.len();
        fds.extend(
            self.thawing
                .as_ref()
                .map(|thawing| PollFd::from_borrowed_fd(thawing.fd(), PollFlags::IN)),
        );
        wait(&mut fds, Some(deadline)).map_err(|e| failed(&e))?;
        let ready: Vec<PollFlags> = fds.iter().map(PollFd::revents).collect();
        drop(fds);
        let readable = PollFlags::IN | PollFlags::HUP | PollFlags::ERR;
        if !ready[0].is_empty() {
            return Err(Failure::Cancelled("unmoord was told to end".into()));
        }
        // QEMU first: its end is worth more than the peer's silence.
        if ready[1..link]
            .iter()
            .any(|flags| flags.intersects(readable))
        {
            self.read_qemu()?;
        }
        if ready[thaw..].iter().any(|flags| !flags.is_empty())
            && let Some(thawing) = self.thawing.take()
        {
            let (thawed, took) = thawing.outcome();
            self.tell_thawed(thawed, took);
        }
        if reads
            && ready[link..thaw]
                .iter()
                .any(|flags| flags.intersects(readable))
        {
            self.read_link()?;
        }
        Ok(())
    }

    fn read_qemu(&mut self) -> Result<(), Failure> {
        let Some(qemu) = &mut self.qemu else {
            return Ok(());
        };
        match qemu.input.fill(&mut qemu.stream) {
            Ok(Filled::Some(_)) => {}
            Ok(Filled::WouldBlock) => return Ok(()),
            // It has everything, and nothing more to say.
            Ok(Filled::Closed) if self.engine.phase() >= DestinationPhase::Started => {
                self.qemu = None;
                return Ok(());
            }
            Ok(Filled::Closed) => return Err(let_go("it closed its stream")),
            Err(error) => return Err(let_go(&error.to_string())),
        }
        while let Some((used, message)) = qemu
            .parser
            .next(qemu.input.unread())
            .map_err(|e| failed(&e))?
        {
            let mut outputs = Outputs {
                peer: self.to_peer.tail(),
                qemu: self.to_qemu.tail(),
            };
            let heard = self.engine.return_path(&message, &mut outputs);
            heard.map_err(|e| failed(&e))?;
            qemu.input.consume(used);
        }
        Ok(())
    }

    fn read_link(&mut self) -> Result<(), Failure> {
        match self.channel.receive(&mut self.from_peer) {
            Ok(Filled::Some(count)) => {
                self.alive.on_heard(Instant::now());
                self.wire_bytes += count as u64;
            }
            Ok(Filled::WouldBlock) => {}
            Ok(Filled::Closed) => return Err(lost(&self.channel, "it was closed")),
            Err(error) => return Err(lost(&self.channel, &error.to_string())),
        }
        Ok(())
    }
}

fn let_go(how: &str) -> Failure {
    Failure::Failed(format!(
        "the destination QEMU has let go of the VM ({how}): libvirt has ended it, or its log says why, in /var/log/libvirt/qemu"
    ))
}
