//! Frames on a byte stream that may begin and break off anywhere.

use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

/// Longest frame on the wire, without its delimiters.
pub const FRAME_MAX: usize = 64 * 1024;
const DELIMITER: u8 = 0;
const CHECKSUM: usize = 4;

/// A message that does not fit a frame.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("a message of {0} bytes does not fit a frame")]
pub struct TooLarge(pub usize);

/// Puts a message.
pub fn encode<T: Serialize>(message: &T, out: &mut Vec<u8>) -> Result<(), TooLarge> {
    // Serialising into memory fails for nothing that derives it.
    let mut body = postcard::to_stdvec(message).unwrap_or_default();
    body.extend_from_slice(&crc32fast::hash(&body).to_le_bytes());
    let stuffed = cobs::encode_vec(&body);
    if stuffed.len() > FRAME_MAX {
        return Err(TooLarge(body.len()));
    }
    // The first delimiter ends whatever somebody before us has left unfinished.
    out.push(DELIMITER);
    out.extend_from_slice(&stuffed);
    out.push(DELIMITER);
    Ok(())
}

/// Takes bytes in any pieces, gives whole messages.
#[derive(Debug, Default)]
pub struct Decoder {
    pending: Vec<u8>,
    /// How much of `pending` holds no delimiter, or has been taken.
    taken: usize,
    searched: usize,
    /// A frame that is too long: skip to its end.
    skipping: bool,
    skipped: u64,
}

impl Decoder {
    /// A decoder that knows nothing yet.
    pub fn new() -> Self {
        Decoder::default()
    }

    /// Takes bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        self.pending.drain(..self.taken);
        self.searched -= self.taken;
        self.taken = 0;
        self.pending.extend_from_slice(bytes);
    }

    /// The next message that is understood; nothing if more bytes are needed.
    pub fn take<T: DeserializeOwned>(&mut self) -> Option<T> {
        loop {
            let end = self.pending[self.searched..]
                .iter()
                .position(|byte| *byte == DELIMITER);
            let Some(end) = end.map(|at| self.searched + at) else {
                self.searched = self.pending.len();
                if self.searched - self.taken > FRAME_MAX {
                    self.skipping = true;
                    self.taken = self.searched;
                }
                return None;
            };
            let frame = &self.pending[self.taken..end];
            let message = match self.skipping || frame.len() > FRAME_MAX {
                true => None,
                false => decode(frame),
            };
            let was_empty = frame.is_empty() && !self.skipping;
            self.skipping = false;
            self.taken = end + 1;
            self.searched = self.taken;
            if message.is_some() {
                return message;
            }
            self.skipped += u64::from(!was_empty);
        }
    }

    /// Frames that were not understood.
    pub fn skipped(&self) -> u64 {
        self.skipped
    }
}

fn decode<T: DeserializeOwned>(frame: &[u8]) -> Option<T> {
    let body = cobs::decode_vec(frame).ok()?;
    let (message, checksum) = body.split_at_checked(body.len().checked_sub(CHECKSUM)?)?;
    let checksum = u32::from_le_bytes(checksum.try_into().ok()?);
    // A fuzzer cannot guess checksums, and would test nothing else.
    (cfg!(fuzzing) || crc32fast::hash(message) == checksum).then_some(())?;
    let (message, rest) = postcard::take_from_bytes(message).ok()?;
    rest.is_empty().then_some(message)
}
