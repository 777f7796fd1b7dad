//! One monitor connection.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
    SocketFlags, SocketType, connect, sendmsg, socket_with,
};
use serde_json::{Value, json};

use crate::{Codec, Error, Event, Message};

/// Longest wait for the answer to a command. QEMU answers in milliseconds, except while it writes
/// the last memory with the VM stopped.
const ANSWER_LIMIT: Duration = Duration::from_secs(20);

/// Names a command that was submitted without waiting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Id(u64);

/// What arrives unasked, or asked for without waiting.
#[derive(Debug)]
pub enum Incoming {
    /// An event.
    Event(Event),
    /// The answer to [`Client::submit`]; QEMU's words if it refused.
    Reply {
        /// Which command.
        id: Id,
        /// What it came to.
        result: Result<Value, String>,
    },
}

/// A connection to QEMU's monitor, after its greeting.
///
/// [`execute`](Client::execute) waits for the answer and keeps what arrives meanwhile for
/// [`process`](Client::process); [`submit`](Client::submit) does not wait. For use in a poll
/// loop, wait for [`fd`](Client::fd) *and* look at [`has_queued`](Client::has_queued).
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    /// Who made the socket.
    process: Option<u32>,
    codec: Codec,
    queued: VecDeque<Incoming>,
    next_id: u64,
    greeting: Value,
}

impl Client {
    /// Connects to the socket at `path` and waits up to `limit` for its turn and the greeting.
    pub fn connect(path: &Path, limit: Duration) -> Result<Self, Error> {
        let deadline = Instant::now() + limit;
        let stream = open(path, deadline)?;
        let process = rustix::net::sockopt::socket_peercred(&stream).ok();
        let process = process.and_then(|peer| u32::try_from(peer.pid.as_raw_nonzero().get()).ok());
        Self::greet(stream, process, deadline).map_err(|error| match error {
            Error::Io(error) if error.kind() == ErrorKind::TimedOut => Error::Busy {
                path: path.to_owned(),
            },
            error => error,
        })
    }

    /// Speaks over a socket at whose other end somebody passes on what QEMU says.
    pub fn over(stream: UnixStream, limit: Duration) -> Result<Self, Error> {
        Self::greet(stream, None, Instant::now() + limit)
    }

    fn greet(stream: UnixStream, process: Option<u32>, deadline: Instant) -> Result<Self, Error> {
        stream.set_nonblocking(true)?;
        let mut client = Client {
            stream,
            process,
            codec: Codec::new(),
            queued: VecDeque::new(),
            next_id: 1,
            greeting: Value::Null,
        };
        client.greeting = loop {
            match client.codec.next_message()? {
                Some(Message::Greeting(greeting)) => break greeting,
                Some(_) => return Err(Error::NotQmp("no greeting".into())),
                None => {}
            }
            if !client.wait_readable(deadline)? {
                return Err(io::Error::from(ErrorKind::TimedOut).into());
            }
            client.read()?;
        };
        client.execute("qmp_capabilities", &json!({}))?;
        Ok(client)
    }

    /// What QEMU said of itself.
    pub fn greeting(&self) -> &Value {
        &self.greeting
    }

    /// Who made the socket, if this host can see that process.
    pub fn process_id(&self) -> Option<u32> {
        self.process
    }

    /// Readable when there is something to [`process`](Client::process).
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    /// Whether [`process`](Client::process) has something although nothing is readable.
    pub fn has_queued(&self) -> bool {
        !self.queued.is_empty()
    }

    /// Sends a command and does not wait for the answer, which [`process`](Client::process) will
    /// bring.
    pub fn submit(&mut self, command: &str, arguments: &Value) -> Result<Id, Error> {
        let id = self.next_id;
        self.next_id += 1;
        let line = Codec::command(command, arguments, id);
        self.write(&line, Instant::now() + ANSWER_LIMIT)?;
        Ok(Id(id))
    }

    /// Takes everything that has arrived, without waiting.
    pub fn process(&mut self) -> Result<Vec<Incoming>, Error> {
        let end = self.read_all();
        while let Some(message) = self.codec.next_message()? {
            self.queue(message);
        }
        match end {
            // What came before the end is worth hearing; the end comes again at the next call.
            Err(error) if self.queued.is_empty() => Err(error),
            _ => Ok(self.queued.drain(..).collect()),
        }
    }

    /// Sends a command and waits for its answer.
    pub fn execute(&mut self, command: &str, arguments: &Value) -> Result<Value, Error> {
        self.execute_with_fd(command, arguments, None)
    }

    /// As [`execute`](Client::execute), with a descriptor that goes along to QEMU.
    pub fn execute_with_fd(
        &mut self,
        command: &str,
        arguments: &Value,
        fd: Option<BorrowedFd<'_>>,
    ) -> Result<Value, Error> {
        let id = self.next_id;
        self.next_id += 1;
        let line = Codec::command(command, arguments, id);
        let deadline = Instant::now() + ANSWER_LIMIT;
        let rest = match fd {
            Some(fd) => &line[self.send_with_fd(&line, fd, deadline)?..],
            None => &line[..],
        };
        self.write(rest, deadline)?;
        loop {
            while let Some(message) = self.codec.next_message()? {
                match message {
                    Message::Return {
                        id: Some(of),
                        value,
                    } if of == id => return Ok(value),
                    Message::Refusal { id: Some(of), desc } if of == id => {
                        return Err(Error::Refused {
                            command: command.to_owned(),
                            desc,
                        });
                    }
                    other => self.queue(other),
                }
            }
            if !self.wait_readable(deadline)? {
                return Err(Error::Timeout {
                    command: command.to_owned(),
                });
            }
            self.read()?;
        }
    }

    /// Waits for something to arrive; false if nothing has by `deadline`.
    pub fn wait_readable(&self, deadline: Instant) -> Result<bool, Error> {
        self.wait(PollFlags::IN, deadline)
    }

    fn wait(&self, flags: PollFlags, deadline: Instant) -> Result<bool, Error> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let left = Timespec {
                tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: left.subsec_nanos().into(),
            };
            match poll(&mut [PollFd::new(&self.stream, flags)], Some(&left)) {
                Ok(ready) => return Ok(ready > 0),
                Err(Errno::INTR) => {}
                Err(error) => return Err(io::Error::from(error).into()),
            }
        }
    }

    fn queue(&mut self, message: Message) {
        let reply = |id: Option<u64>, result| id.map(|id| Incoming::Reply { id: Id(id), result });
        let incoming = match message {
            Message::Event(event) => Some(Incoming::Event(event)),
            Message::Return { id, value } => reply(id, Ok(value)),
            Message::Refusal { id, desc } => reply(id, Err(desc)),
            Message::Greeting(_) => None,
        };
        self.queued.extend(incoming);
    }

    /// Reads until nothing is left.
    fn read_all(&mut self) -> Result<(), Error> {
        while self.read()? {}
        Ok(())
    }

    /// Reads once; false if nothing was there.
    fn read(&mut self) -> Result<bool, Error> {
        let mut buffer = [0; 16 << 10];
        match self.stream.read(&mut buffer) {
            Ok(0) => Err(Error::Closed),
            Ok(count) => {
                self.codec.push(&buffer[..count]);
                Ok(true)
            }
            Err(error)
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) =>
            {
                Ok(false)
            }
            Err(error) if error.kind() == ErrorKind::ConnectionReset => Err(Error::Closed),
            Err(error) => Err(error.into()),
        }
    }

    fn write(&mut self, mut bytes: &[u8], deadline: Instant) -> Result<(), Error> {
        while !bytes.is_empty() {
            let count = self.when_writable(deadline, |mut stream| stream.write(bytes))?;
            bytes = &bytes[count..];
        }
        Ok(())
    }

    fn send_with_fd(
        &mut self,
        line: &[u8],
        fd: BorrowedFd<'_>,
        deadline: Instant,
    ) -> Result<usize, Error> {
        let fds = [fd];
        self.when_writable(deadline, |stream| {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut ancillary = SendAncillaryBuffer::new(&mut space);
            if !ancillary.push(SendAncillaryMessage::ScmRights(&fds)) {
                return Err(io::Error::other("no room for a descriptor"));
            }
            let line = [IoSlice::new(line)];
            Ok(sendmsg(stream, &line, &mut ancillary, SendFlags::NOSIGNAL)?)
        })
    }

    /// Tries to send until the socket has room.
    fn when_writable(
        &self,
        deadline: Instant,
        mut send: impl FnMut(&UnixStream) -> io::Result<usize>,
    ) -> Result<usize, Error> {
        loop {
            let error = match send(&self.stream) {
                Ok(count) => return Ok(count),
                Err(error) => error,
            };
            match error.kind() {
                ErrorKind::Interrupted => {}
                ErrorKind::WouldBlock => {
                    if !self.wait(PollFlags::OUT, deadline)? {
                        return Err(io::Error::from(ErrorKind::TimedOut).into());
                    }
                }
                ErrorKind::BrokenPipe | ErrorKind::ConnectionReset => return Err(Error::Closed),
                _ => return Err(error.into()),
            }
        }
    }
}

/// Connects by `deadline`.
///
/// QEMU's socket has room for two clients that wait to be served. `connect` lets the next one wait
/// for as long as the socket's send timeout says: for ever, unless it is set.
fn open(path: &Path, deadline: Instant) -> Result<UnixStream, Error> {
    let failed = |error: Errno| {
        let path = path.to_owned();
        match error {
            Errno::NOENT => Error::NoSocket { path },
            Errno::CONNREFUSED => Error::Dead { path },
            Errno::AGAIN => Error::Busy { path },
            _ => Error::Connect {
                path,
                error: error.into(),
            },
        }
    };
    let address = SocketAddrUnix::new(path).map_err(failed)?;
    let flags = SocketFlags::CLOEXEC;
    let socket =
        socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).map_err(failed)?;
    loop {
        // No time at all would mean no limit.
        let left = deadline
            .saturating_duration_since(Instant::now())
            .max(Duration::from_millis(1));
        set_socket_timeout(&socket, Timeout::Send, Some(left)).map_err(failed)?;
        match connect(&socket, &address) {
            Ok(()) => return Ok(UnixStream::from(socket)),
            Err(Errno::INTR) => {}
            Err(error) => return Err(failed(error)),
        }
    }
}
