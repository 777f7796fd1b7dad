//! `unmoord`: carries the migrations of VMs that libvirt manages.
//!
//! ```text
//! libvirtd, source ──► slots ──► source ══ TLS ══ door ──► destination ──► QEMU, destination
//!                       (a thread for each migration, on each host; `board` knows them all)
//! ```
//!
//! libvirt owns the decision where the VM runs, and it needs nothing of ours for that: it takes the
//! source QEMU's word that its migration has completed, and starts the destination then. QEMU gives
//! that word when the destination's QEMU has told it, on its return path, that everything is loaded;
//! the relay passes that on, and lets the destination's QEMU come to the end of its stream only when all
//! memory is proven equal. Whatever is lost on the way, a connection, a daemon, a QEMU, ends the stream
//! before its end: libvirt then lets the VM go on at the source.

mod args;
mod board;
mod destination;
mod domain;
mod figures;
mod hello;
mod name;
mod slots;
mod source;

use std::io;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use wire::AbortCode;

pub use args::{DaemonArgs, Peer};
use board::{Board, Entry, News};
pub(crate) use domain::DomainName;
pub(crate) use hello::{Errand, Place};
pub use name::Name;
use slots::{Slots, Visitor};

use crate::control::{Answer, Control, Request, Role};
use crate::exit::Exit;
use crate::net::{Channel, ConnectError, Connector, Door, Link, Protection, host_of, refuse};
use crate::poll::wait;
use crate::report::serve_metrics;
use crate::send::{Failure, failed};
use crate::signals::Signals;

/// Longest wait for the connection to the destination.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// Bytes waiting for the link, or for QEMU, beyond which nothing more is read.
const WAITING_MAX: usize = 512 << 10;
/// Longest wait for the source QEMU to let go, once it has heard that everything is loaded.
const END_LIMIT: Duration = Duration::from_secs(10);

/// What each migration has of the daemon.
#[derive(Debug)]
struct Carrier {
    args: Arc<DaemonArgs>,
    board: Arc<Board>,
    /// Readable when the daemon ends.
    stop: UnixStream,
    /// At the source the socket that libvirt came to, at the destination the folder of QEMU's.
    socket: PathBuf,
    /// The socket's name in its folder.
    name: Name,
}

/// What has been carried.
#[derive(Debug, Clone, Copy)]
struct Carried {
    wire_bytes: u64,
    pages: u64,
}

/// The daemon.
struct Daemon {
    args: Arc<DaemonArgs>,
    board: Arc<Board>,
    own: Name,
    signals: Signals,
    door: Door,
    slots: Slots,
    control: Control,
    /// Every thread has the other end; they hear that this one is gone.
    stop: (UnixStream, UnixStream),
    threads: Vec<JoinHandle<()>>,
}

/// Runs the program.
pub fn run(args: &DaemonArgs) -> Exit {
    crate::keep_to_itself();
    match Daemon::open(args) {
        Ok(daemon) => daemon.serve(),
        Err(failure) => {
            eprintln!("unmoord: {failure}");
            failure.exit()
        }
    }
}

impl Daemon {
    fn open(args: &DaemonArgs) -> Result<Self, Failure> {
        let signals = Signals::install().map_err(|e| failed(&e))?;
        let own = match &args.name {
            Some(name) => name.clone(),
            None => host_name()?,
        };
        let protection = Protection::from_args(&args.net);
        // A certificate that is missing is found now, and not by the first VM.
        for peer in &args.peers {
            Connector::new(&protection, host_of(&peer.address), None)?;
        }
        let door = Door::open(&args.listen, &protection, &args.tls_allow)?;
        let slots = Slots::open(&args.sockets, &own, &args.peers, args.slots)?;
        let board = Arc::new(Board::new(args.json, usize::from(args.sessions)));
        if let Some(address) = args.metrics {
            serve_metrics(address, board.figures().registry())
                .map_err(|error| Failure::Refused(format!("--metrics {address}: {error}")))?;
        }
        let control = Control::open("daemon").unwrap_or_else(|error| {
            board.tell(&News::Note {
                text: format!("`unmoor status` cannot be used, for there is no socket: {error}"),
            });
            Control::default()
        });
        Ok(Daemon {
            args: Arc::new(args.clone()),
            board,
            own,
            signals,
            door,
            slots,
            control,
            stop: UnixStream::pair().map_err(|e| failed(&e))?,
            threads: Vec::new(),
        })
    }

    fn serve(mut self) -> Exit {
        if let Ok(address) = self.door.address() {
            self.board.tell(&News::Listening {
                address: address.to_string(),
                sockets: self.args.sockets.display().to_string(),
            });
        }
        let exit = loop {
            match self.turn() {
                Ok(true) => {}
                Ok(false) => break Exit::Success,
                Err(error) => {
                    eprintln!("unmoord: {error}");
                    break Exit::Failed;
                }
            }
        };
        // Those that are moving hear of it, and say so to the other host.
        drop(self.stop.0);
        for thread in self.threads {
            let _ = thread.join();
        }
        exit
    }

    /// Waits for something, and sees to it; false when a signal has come.
    fn turn(&mut self) -> io::Result<bool> {
        let mut fds = vec![PollFd::from_borrowed_fd(self.signals.fd(), PollFlags::IN)];
        fds.extend(self.door.fds(true));
        fds.extend(self.slots.fds());
        fds.extend(self.control.fds());
        wait(&mut fds, self.door.deadline())?;
        drop(fds);
        if self.signals.take() {
            return Ok(false);
        }
        self.threads.retain(|thread| !thread.is_finished());
        self.answer();
        while let Some(link) = self.door.look(true)? {
            self.receive(link);
        }
        if let Some(text) = self.door.news() {
            self.board.tell(&News::Note { text });
        }
        for visitor in self.slots.look()? {
            self.send(visitor);
        }
        Ok(true)
    }

    fn answer(&mut self) {
        let board = &self.board;
        self.control.serve(|request| match request {
            Request::Status => Answer::All {
                running: board.running(),
            },
            Request::Tune { .. } => Answer::Refused {
                why: "unmoord has one limit for all, --bandwidth; `virsh migrate-setspeed` changes QEMU's own".into(),
            },
            Request::Resolve { .. } => Answer::Refused {
                why: "libvirt decides where this VM runs".into(),
            },
        });
    }

    /// A VM moves to here.
    fn receive(&mut self, mut link: Link) {
        let folder = self.args.sockets.join(self.own.as_str());
        let Some(entry) = self.board.enter(Role::Receive, &folder) else {
            let reason = "as many VMs are moving there as may (--sessions)".to_owned();
            refuse(&mut link, AbortCode::Busy, reason);
            return;
        };
        self.start(folder, self.own.clone(), move |carrier| {
            let mut half = destination::Session::new(carrier, &entry, link);
            let outcome = Outcome::of(|| half.run());
            let (session, socket) = half.names();
            drop(half);
            // Whoever hears that it is over finds a place.
            drop(entry);
            outcome.tell(&carrier.board, Role::Receive, session, socket);
        });
    }

    /// A VM moves from here.
    fn send(&mut self, visitor: Visitor) {
        let socket = visitor.socket.display().to_string();
        let Some(entry) = self.board.enter(Role::Send, &visitor.socket) else {
            self.board.tell(&News::Failed {
                session: String::new(),
                role: Role::Send,
                socket,
                error: "as many VMs are moving here as may (--sessions)".into(),
            });
            return;
        };
        self.start(visitor.socket, visitor.name, move |carrier| {
            let outcome = Outcome::of(|| send(carrier, &entry, &visitor.peer, visitor.qemu));
            let session = entry.session().unwrap_or_default();
            drop(entry);
            outcome.tell(&carrier.board, Role::Send, session, socket);
        });
    }

    /// Begins a migration. That one cannot begin is no reason for the others to end.
    fn start(&mut self, socket: PathBuf, name: Name, work: impl FnOnce(&Carrier) + Send + 'static) {
        let (args, board) = (Arc::clone(&self.args), Arc::clone(&self.board));
        let thread = self.stop.1.try_clone().and_then(|stop| {
            let carrier = Carrier {
                args,
                board,
                stop,
                socket,
                name,
            };
            let thread = std::thread::Builder::new().name("migration".into());
            thread.spawn(move || work(&carrier))
        });
        match thread {
            Ok(thread) => self.threads.push(thread),
            Err(error) => self.board.tell(&News::Note {
                text: format!("a VM cannot move, for there is no thread for it: {error}"),
            }),
        }
    }
}

/// A migration from here: connects, and carries.
fn send(
    carrier: &Carrier,
    entry: &Entry,
    peer: &Peer,
    qemu: UnixStream,
) -> Result<Carried, Failure> {
    let protection = Protection::from_args(&carrier.args.net);
    let connector = Connector::new(&protection, host_of(&peer.address), None)?;
    let link = connector.connect(&peer.address, CONNECT_LIMIT, None);
    let link = link.map_err(|error| match error {
        ConnectError::Connect { address, error } => Failure::Failed(format!(
            "cannot connect to {address}: {error}; is unmoord running there?"
        )),
        error => error.into(),
    })?;
    let limit = match (carrier.args.bandwidth, link.from()) {
        (Some(limit), Some(from)) => {
            let limit = limit.bytes_per_second(from);
            Some(limit.map_err(Failure::Refused)?)
        }
        _ => None,
    };
    source::Session::new(carrier, entry, qemu, link, limit)?.run()
}

/// There is no connection any more, and none will be made again.
fn lost(channel: &Channel, why: &str) -> Failure {
    let peer = channel.peer();
    Failure::Failed(format!("the connection to {peer} was lost: {why}"))
}

/// How a migration ended, and how long it took.
struct Outcome {
    result: Result<Carried, Failure>,
    took: Duration,
}

impl Outcome {
    fn of(work: impl FnOnce() -> Result<Carried, Failure>) -> Self {
        let begun = Instant::now();
        let result = work();
        Outcome {
            result,
            took: begun.elapsed(),
        }
    }

    fn tell(self, board: &Board, role: Role, session: String, socket: String) {
        board.tell(&match self.result {
            Ok(carried) => News::Carried {
                session,
                role,
                socket,
                total_ms: self.took.as_secs_f64() * 1000.0,
                wire_bytes: carried.wire_bytes,
                pages: carried.pages,
            },
            Err(failure) => News::Failed {
                session,
                role,
                socket,
                error: failure.to_string(),
            },
        });
    }
}

/// This host's name up to the first dot.
fn host_name() -> Result<Name, Failure> {
    let system = rustix::system::uname();
    let full = system.nodename().to_string_lossy();
    let short = full.split('.').next().unwrap_or_default();
    short.parse().map_err(|error| {
        Failure::Refused(format!("the host's name will not do: {error}; give --name"))
    })
}
