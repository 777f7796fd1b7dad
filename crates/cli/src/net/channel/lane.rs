//! One of a channel's links, with what is under way on it.

use std::io::{self, ErrorKind};

use wire::{Assembler, CHUNK_HEADER, CHUNK_MAX, chunk_header};

use crate::buffer::{Filled, Input};
use crate::net::Link;

/// A link, the chunk that goes out on it, and the chunks that come in.
#[derive(Debug)]
pub(super) struct Lane {
    pub(super) link: Link,
    /// A chunk, of which so much has gone out.
    chunk: Vec<u8>,
    gone: usize,
    input: Input,
}

impl Lane {
    pub(super) fn new(link: Link) -> Self {
        Lane {
            link,
            chunk: Vec::new(),
            gone: 0,
            input: Input::default(),
        }
    }

    /// Whether something waits here for the socket.
    pub(super) fn wants_write(&self) -> bool {
        self.gone < self.chunk.len() || self.link.wants_write()
    }

    /// Writes what is left of the last chunk; true if there is room for another.
    pub(super) fn flush(&mut self) -> io::Result<bool> {
        self.link.write(&[])?;
        while self.gone < self.chunk.len() {
            match self.link.write(&self.chunk[self.gone..])? {
                0 => return Ok(false),
                count => self.gone += count,
            }
        }
        Ok(!self.link.wants_write())
    }

    /// Takes the next chunk off the front of `bytes`, which belong at `position`, and tells how long
    /// it is. There must be room.
    pub(super) fn load(&mut self, position: u64, bytes: &[u8]) -> usize {
        let count = bytes.len().min(CHUNK_MAX);
        self.chunk.clear();
        self.chunk.reserve(CHUNK_HEADER + count);
        self.chunk.extend_from_slice(&chunk_header(position, count));
        self.chunk.extend_from_slice(&bytes[..count]);
        self.gone = 0;
        count
    }

    /// Bytes that have been read before.
    pub(super) fn came_ahead(&mut self, bytes: &[u8]) {
        self.input.append(bytes);
    }

    /// Reads once, and passes on what is next in the stream.
    pub(super) fn receive_chunks(
        &mut self,
        assembler: &mut Assembler,
        stream: &mut Input,
    ) -> io::Result<()> {
        let filled = self.link.receive(&mut self.input)?;
        stream.grow(|stream| {
            while let Some(used) = assembler
                .take(self.input.unread(), stream)
                .map_err(io::Error::other)?
            {
                self.input.consume(used);
            }
            Ok(())
        })?;
        match filled {
            Filled::Closed => Err(ErrorKind::UnexpectedEof.into()),
            Filled::Some(_) | Filled::WouldBlock => Ok(()),
        }
    }

    /// Nothing comes on this link; that it was closed is found out.
    pub(super) fn expect_silence(&mut self) -> io::Result<()> {
        match self.link.receive(&mut self.input)? {
            Filled::WouldBlock => Ok(()),
            Filled::Closed => Err(ErrorKind::UnexpectedEof.into()),
            Filled::Some(_) => Err(io::Error::other("the peer speaks where it should not")),
        }
    }
}
