//! The two ends of a byte stream between a socket and a sans-IO parser.

use std::io::{self, ErrorKind, Read, Write};

/// Bytes asked for in one read.
const READ_SIZE: usize = 256 << 10;
/// Consumed bytes at the front of an output after which it is compacted.
const COMPACT_AT: usize = 256 << 10;

/// What a non-blocking read brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Filled {
    /// So many bytes.
    Some(usize),
    /// Nothing yet.
    WouldBlock,
    /// The peer has closed the stream.
    Closed,
}

/// Bytes that have been read and not yet parsed.
///
/// A parser borrows events from [`unread`](Input::unread); what it leaves is moved to the front
/// at the next read. So the buffer never holds more than one read beyond what the parser refuses
/// to take, and parsers bound that.
#[derive(Debug, Default)]
pub(crate) struct Input {
    bytes: Vec<u8>,
    /// Valid bytes are `start..end`.
    start: usize,
    end: usize,
}

impl Input {
    pub(crate) fn unread(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    pub(crate) fn consume(&mut self, count: usize) {
        debug_assert!(count <= self.end - self.start);
        self.start += count;
    }

    /// Bytes that have come another way.
    pub(crate) fn append(&mut self, more: &[u8]) {
        self.bytes.truncate(self.end);
        self.bytes.extend_from_slice(more);
        self.end = self.bytes.len();
    }

    /// Appends what `more` appends.
    pub(crate) fn grow(
        &mut self,
        more: impl FnOnce(&mut Vec<u8>) -> io::Result<()>,
    ) -> io::Result<()> {
        self.bytes.truncate(self.end);
        self.bytes.drain(..self.start);
        self.start = 0;
        let result = more(&mut self.bytes);
        self.end = self.bytes.len();
        result
    }

    /// Reads once.
    pub(crate) fn fill(&mut self, from: &mut impl Read) -> io::Result<Filled> {
        self.bytes.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        if self.bytes.len() < self.end + READ_SIZE {
            self.bytes.resize(self.end + READ_SIZE, 0);
        }
        let result = from.read(&mut self.bytes[self.end..self.end + READ_SIZE]);
        match result {
            Ok(0) => Ok(Filled::Closed),
            Ok(count) => {
                self.end += count;
                Ok(Filled::Some(count))
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(Filled::WouldBlock),
            Err(error) if error.kind() == ErrorKind::Interrupted => Ok(Filled::WouldBlock),
            Err(error) => Err(error),
        }
    }
}

/// Bytes that wait to be written.
#[derive(Debug, Default)]
pub(crate) struct Output {
    bytes: Vec<u8>,
    start: usize,
}

impl Output {
    /// Where the engine appends.
    pub(crate) fn tail(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    pub(crate) fn len(&self) -> usize {
        self.bytes.len() - self.start
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(crate) fn clear(&mut self) {
        self.bytes.clear();
        self.start = 0;
    }

    /// What is next.
    pub(crate) fn front(&self) -> &[u8] {
        &self.bytes[self.start..]
    }

    /// So much of it has gone.
    pub(crate) fn consume(&mut self, count: usize) {
        debug_assert!(count <= self.len());
        self.start += count;
        if self.is_empty() {
            self.clear();
        } else if self.start >= COMPACT_AT {
            self.bytes.drain(..self.start);
            self.start = 0;
        }
    }

    /// Writes at most `limit` bytes and tells how many went out; 0 if the socket is full.
    pub(crate) fn drain(&mut self, to: &mut impl Write, limit: usize) -> io::Result<usize> {
        let mut written = 0;
        while written < limit && !self.is_empty() {
            let count = (limit - written).min(self.len());
            let upto = self.start + count;
            match to.write(&self.bytes[self.start..upto]) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(count) => {
                    self.consume(count);
                    written += count;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(written)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives or takes a few bytes at a time, then would block.
    struct Trickle {
        data: Vec<u8>,
        step: usize,
    }

    impl Read for Trickle {
        fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            let count = self.step.min(self.data.len()).min(buf.len());
            buf[..count].copy_from_slice(&self.data[..count]);
            self.data.drain(..count);
            Ok(count)
        }
    }

    impl Write for Trickle {
        fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
            if self.step == 0 {
                return Err(ErrorKind::WouldBlock.into());
            }
            let count = self.step.min(buf.len());
            self.step -= count;
            self.data.extend_from_slice(&buf[..count]);
            Ok(count)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_is_not_consumed_stays_in_front() {
        let mut from = Trickle {
            data: b"abcdef".to_vec(),
            step: 4,
        };
        let mut input = Input::default();
        assert_eq!(input.fill(&mut from).unwrap(), Filled::Some(4));
        input.consume(3);
        assert_eq!(input.unread(), b"d");
        assert_eq!(input.fill(&mut from).unwrap(), Filled::Some(2));
        assert_eq!(input.unread(), b"def");
        assert_eq!(input.fill(&mut from).unwrap(), Filled::Closed);
    }

    #[test]
    fn an_output_drains_in_order_within_its_limits() {
        let mut to = Trickle {
            data: vec![],
            step: 5,
        };
        let mut output = Output::default();
        output.tail().extend_from_slice(b"0123456789");
        assert_eq!(output.drain(&mut to, 3).unwrap(), 3);
        assert_eq!(output.drain(&mut to, 100).unwrap(), 2);
        assert_eq!(output.drain(&mut to, 100).unwrap(), 0);
        assert_eq!(output.len(), 5);
        to.step = 100;
        assert_eq!(output.drain(&mut to, usize::MAX).unwrap(), 5);
        assert!(output.is_empty());
        assert_eq!(to.data, b"0123456789");
    }
}
