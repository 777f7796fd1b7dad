//! The agent's channel in a poll loop: nothing here waits.

use std::io::{ErrorKind, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use depgraph::ProcessId;
use guest_proto::{Answer, Host, ProtocolError, Request, ThawReason};

use super::AgentError;
use crate::buffer::Output;

/// What came.
#[derive(Debug)]
pub(crate) enum Heard {
    /// A part of the answer, and whether it is the last.
    Answer(Answer, bool),
    /// The agent cannot do what was asked.
    Refused(String),
    /// It has thawed processes by itself.
    Thawed(Vec<ProcessId>, ThawReason),
}

/// A conversation.
#[derive(Debug)]
pub(crate) struct Line {
    stream: UnixStream,
    host: Host,
    output: Output,
}

impl Line {
    /// Connects to QEMU's end of the channel.
    pub(crate) fn connect(path: &Path) -> Result<Self, AgentError> {
        let stream = UnixStream::connect(path).map_err(|source| AgentError::Connect {
            path: path.display().to_string(),
            source,
        })?;
        stream.set_nonblocking(true)?;
        let session = u64::from_ne_bytes(crate::random()?);
        Ok(Line {
            stream,
            host: Host::new(session),
            output: Output::default(),
        })
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    /// Whether there is something to be written when there is room.
    pub(crate) fn waits(&self) -> bool {
        !self.output.is_empty()
    }

    /// Asks; what is still to come to the question before is skipped.
    pub(crate) fn ask(&mut self, request: Request) -> Result<(), AgentError> {
        self.host
            .ask(request, self.output.tail())
            .map_err(|error| std::io::Error::new(ErrorKind::InvalidInput, error))?;
        self.send()
    }

    /// Writes what waits, as far as there is room.
    pub(crate) fn send(&mut self) -> Result<(), AgentError> {
        self.output.drain(&mut self.stream, usize::MAX)?;
        Ok(())
    }

    /// Takes what has arrived.
    pub(crate) fn receive(&mut self) -> Result<Vec<Heard>, AgentError> {
        let mut buffer = [0; 64 * 1024];
        match self.stream.read(&mut buffer) {
            Ok(0) => return Err(AgentError::Closed),
            Ok(count) => self.host.push(&buffer[..count]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
        let mut heard = Vec::new();
        loop {
            let answer = self.host.answer();
            // News that came before an answer is told before it.
            while let Some(news) = self.host.news() {
                if let Answer::News { thawed, reason } = news {
                    heard.push(Heard::Thawed(thawed, reason));
                }
            }
            match answer {
                Ok(Some((answer, last))) => heard.push(Heard::Answer(answer, last)),
                Ok(None) => return Ok(heard),
                Err(ProtocolError::Failed(failure)) => {
                    heard.push(Heard::Refused(failure.message));
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}
