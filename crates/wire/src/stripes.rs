//! One stream over several connections: in chunks, each of which says where it belongs.
//!
//! Whatever way and however late a chunk comes, the stream is put together in order; so everything
//! above is as it is over one connection, and the newest content of a page comes last.

use std::collections::BTreeMap;

use crate::WireError;

/// Bytes before a chunk: its position, its length.
pub const CHUNK_HEADER: usize = 12;

/// The longest chunk. Short: what goes over a slow connection holds up what comes after it.
pub const CHUNK_MAX: usize = 64 << 10;

/// The header of a chunk of `length` bytes that begins at `position` in the stream.
///
/// # Panics
/// If it is longer than [`CHUNK_MAX`].
pub fn chunk_header(position: u64, length: usize) -> [u8; CHUNK_HEADER] {
    assert!(length <= CHUNK_MAX, "a chunk beyond the protocol's limit");
    let mut header = [0; CHUNK_HEADER];
    header[..8].copy_from_slice(&position.to_be_bytes());
    #[expect(clippy::cast_possible_truncation, reason = "bounded by CHUNK_MAX")]
    header[8..].copy_from_slice(&(length as u32).to_be_bytes());
    header
}

/// Puts the stream together.
#[derive(Debug)]
pub struct Assembler {
    /// Where the stream goes on.
    position: u64,
    /// Chunks that came too early, by their positions.
    early: BTreeMap<u64, Vec<u8>>,
    /// Bytes of those.
    kept: u64,
    /// How far ahead of the position a chunk may reach, and how much is kept.
    window: u64,
}

impl Assembler {
    /// For a stream that goes on at `position`, from a sender that sends at most `window` bytes
    /// without being told that they have come.
    pub fn new(position: u64, window: u64) -> Self {
        Assembler {
            position,
            early: BTreeMap::new(),
            kept: 0,
            window,
        }
    }

    /// Where the stream goes on.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Takes a chunk off the front of what one connection has brought, and tells how many bytes it
    /// took; `None` asks for more. What is next in the stream is appended to `stream`.
    pub fn take(&mut self, input: &[u8], stream: &mut Vec<u8>) -> Result<Option<usize>, WireError> {
        let Some((header, rest)) = input.split_first_chunk::<CHUNK_HEADER>() else {
            return Ok(None);
        };
        let [position @ .., a, b, c, d] = *header;
        let position = u64::from_be_bytes(position);
        let announced = u32::from_be_bytes([a, b, c, d]);
        let length = usize::try_from(announced)
            .ok()
            .filter(|length| (1..=CHUNK_MAX).contains(length))
            .ok_or(WireError::TooLong(announced))?;
        let end = position.checked_add(u64::from(announced));
        // Nothing comes twice: what is resumed begins anew.
        let is_expected = position >= self.position
            && end.is_some_and(|end| end <= self.position.saturating_add(self.window));
        if !is_expected {
            return Err(WireError::BadPosition);
        }
        let Some(bytes) = rest.get(..length) else {
            return Ok(None);
        };
        if position == self.position {
            self.append(bytes, stream);
            while let Some(next) = self.early.remove(&self.position) {
                self.kept -= next.len() as u64;
                self.append(&next, stream);
            }
            // One that overlaps another has been passed by.
            if self
                .early
                .keys()
                .next()
                .is_some_and(|next| *next < self.position)
            {
                return Err(WireError::BadPosition);
            }
        } else {
            self.kept += u64::from(announced);
            let twice = self.early.insert(position, bytes.to_vec()).is_some();
            if twice || self.kept > self.window {
                return Err(WireError::BadPosition);
            }
        }
        Ok(Some(CHUNK_HEADER + length))
    }

    fn append(&mut self, bytes: &[u8], stream: &mut Vec<u8>) {
        stream.extend_from_slice(bytes);
        self.position += bytes.len() as u64;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn chunk(position: u64, bytes: &[u8]) -> Vec<u8> {
        [&chunk_header(position, bytes.len())[..], bytes].concat()
    }

    #[test]
    fn what_does_not_belong_there_is_refused() {
        let mut stream = Vec::new();
        let mut refuse = |assembler: &mut Assembler, chunk: &[u8]| {
            assembler.take(chunk, &mut stream).unwrap_err()
        };
        let mut assembler = Assembler::new(100, 50);
        for (position, bytes) in [
            (99, &b"a"[..]),
            (150, b"a"),
            (145, b"123456"),
            (u64::MAX, b"a"),
        ] {
            let refused = refuse(&mut assembler, &chunk(position, bytes));
            assert_eq!(refused, WireError::BadPosition, "{position}");
        }
        let endless = [&100u64.to_be_bytes()[..], &[0xff; 4]].concat();
        assert_eq!(
            refuse(&mut assembler, &endless),
            WireError::TooLong(u32::MAX)
        );
        assert_eq!(
            refuse(&mut assembler, &chunk(100, b"")),
            WireError::TooLong(0)
        );
        let mut sink = Vec::new();
        assembler.take(&chunk(110, b"early"), &mut sink).unwrap();
        let twice = assembler.take(&chunk(110, b"later"), &mut sink);
        assert_eq!(twice, Err(WireError::BadPosition));
        assert!(sink.is_empty() && stream.is_empty());

        let mut assembler = Assembler::new(0, 50);
        assembler
            .take(&chunk(10, b"0123456789"), &mut sink)
            .unwrap();
        assembler.take(&chunk(12, b"2345"), &mut sink).unwrap();
        let overlap = assembler.take(&chunk(0, b".........."), &mut sink);
        assert_eq!(overlap, Err(WireError::BadPosition));
        let mut assembler = Assembler::new(0, 50);
        let mut crowd = (1..).map(|at| assembler.take(&chunk(at, &[1; 20]), &mut sink));
        assert_eq!(
            crowd.find(Result::is_err),
            Some(Err(WireError::BadPosition))
        );
    }

    proptest! {
        /// Whatever the lengths, the connections, and who is late: the stream comes out, in order,
        /// and no more is kept than the window.
        #[test]
        fn the_stream_comes_out_in_order(
            lengths in prop::collection::vec(1usize..200, 1..100),
            connections in prop::collection::vec(0usize..5, 100),
            turns in prop::collection::vec((0usize..5, 1usize..300), 1..600),
            begins in 0u64..1000,
        ) {
            let total: usize = lengths.iter().sum();
            let bytes: Vec<u8> = (0..251u8).cycle().take(total).collect();
            let mut pipes = vec![Vec::new(); 5];
            let mut at = 0;
            for (length, connection) in lengths.iter().zip(&connections) {
                let piece = &bytes[at..at + length];
                pipes[*connection].extend(chunk(begins + at as u64, piece));
                at += length;
            }
            let mut assembler = Assembler::new(begins, total as u64);
            let mut inputs = vec![Vec::new(); 5];
            let mut stream = Vec::new();
            // At the end everything comes.
            let rest = (0..5).map(|connection| (connection, usize::MAX));
            for (connection, count) in turns.into_iter().chain(rest) {
                let count = count.min(pipes[connection].len());
                let input = &mut inputs[connection];
                input.extend(pipes[connection].drain(..count));
                let mut used = 0;
                while let Some(count) = assembler.take(&input[used..], &mut stream).unwrap() {
                    used += count;
                }
                input.drain(..used);
                prop_assert_eq!(&stream[..], &bytes[..stream.len()]);
                prop_assert_eq!(assembler.position(), begins + stream.len() as u64);
                let early: usize = assembler.early.values().map(Vec::len).sum();
                prop_assert!(stream.len() + early <= total);
            }
            prop_assert_eq!(stream, bytes);
        }
    }
}
