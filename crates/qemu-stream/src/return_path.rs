//! What a destination QEMU sends back on the same socket.
//!
//! ```text
//! message  be16 type, be16 length, payload
//! ```

use crate::ParseError;
use crate::reader::Reader;

/// The longest payload that QEMU accepts from itself, in bytes.
const PAYLOAD_MAX: u16 = 512;
/// The longest bitmap of received pages that is taken, in bytes: that of an 8 TiB block.
const BITMAP_MAX: u64 = 256 << 20;
/// Ends a bitmap.
const BITMAP_END: u64 = 0x0123_4567_89ab_cdef;

/// One message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Message<'a> {
    /// The load has ended, 0 meaning well, and whether to start the VM has been decided.
    Shut(u32),
    /// The answer to a PING: everything before it has been loaded.
    Pong(u32),
    /// Post-copy asks for pages.
    RequestPages {
        /// The RAM block; absent if it is that of the last request.
        block: Option<&'a [u8]>,
        /// Offset in the block in bytes.
        start: u64,
        /// Length in bytes.
        length: u32,
    },
    /// Post-copy recovery tells what was received.
    ReceivedBitmap {
        /// The RAM block.
        block: &'a [u8],
        /// One bit a page, in little-endian 64-bit words.
        bitmap: &'a [u8],
    },
    /// Post-copy recovery goes on.
    ResumeAck(u32),
    /// The destination's devices are ready for the switchover.
    SwitchoverAck,
}

/// An incremental parser of one return path.
#[derive(Debug, Default)]
pub struct ReturnPathParser {
    offset: u64,
}

impl ReturnPathParser {
    /// A parser at the start of a return path.
    pub fn new() -> Self {
        Self::default()
    }

    /// Parses one message off the front of `input` and tells how many bytes it took; `None` asks
    /// for more input.
    pub fn next<'a>(
        &mut self,
        input: &'a [u8],
    ) -> Result<Option<(usize, Message<'a>)>, ParseError> {
        let mut reader = Reader::new(input);
        let (Some(kind), Some(length)) = (reader.be16(), reader.be16()) else {
            return Ok(None);
        };
        let fixed = match kind {
            1 | 2 | 6 => Some(4),
            4 => Some(12),
            7 => Some(0),
            3 | 5 => None,
            _ => return Err(self.corrupt(format!("an unknown message {kind}"))),
        };
        if length > PAYLOAD_MAX || fixed.is_some_and(|fixed| fixed != length) {
            return Err(self.corrupt(format!("a message {kind} of {length} bytes")));
        }
        let Some(payload) = reader.bytes(length.into()) else {
            return Ok(None);
        };
        let mut body = Reader::new(payload);
        let malformed = || self.corrupt(format!("a malformed message {kind}"));
        let message = match kind {
            1 => Message::Shut(body.be32().ok_or_else(malformed)?),
            2 => Message::Pong(body.be32().ok_or_else(malformed)?),
            6 => Message::ResumeAck(body.be32().ok_or_else(malformed)?),
            3 | 4 => {
                let start = body.be64().ok_or_else(malformed)?;
                let length = body.be32().ok_or_else(malformed)?;
                let block = match kind {
                    3 => Some(body.str8().ok_or_else(malformed)?),
                    _ => None,
                };
                Message::RequestPages {
                    block,
                    start,
                    length,
                }
            }
            5 => {
                let block = body.str8().ok_or_else(malformed)?;
                // The bitmap stands outside the announced length.
                let Some(size) = reader.be64() else {
                    return Ok(None);
                };
                let Some(size) = usize::try_from(size)
                    .ok()
                    .filter(|size| *size as u64 <= BITMAP_MAX)
                else {
                    return Err(self.corrupt(format!("a bitmap of {size} bytes")));
                };
                let (Some(bitmap), Some(end)) = (reader.bytes(size), reader.be64()) else {
                    return Ok(None);
                };
                if end != BITMAP_END {
                    return Err(self.corrupt("a bitmap without its end mark"));
                }
                Message::ReceivedBitmap { block, bitmap }
            }
            _ => Message::SwitchoverAck,
        };
        if body.used() != payload.len() {
            return Err(malformed());
        }
        self.offset += reader.used() as u64;
        Ok(Some((reader.used(), message)))
    }

    fn corrupt(&self, what: impl Into<String>) -> ParseError {
        ParseError::Corrupt {
            offset: self.offset,
            what: format!("the return path holds {}", what.into()),
        }
    }
}

impl Message<'_> {
    /// Appends the message.
    ///
    /// # Panics
    /// If a block's name is longer than 255 bytes.
    pub fn put(&self, out: &mut Vec<u8>) {
        let mut payload = Vec::new();
        let mut tail = Vec::new();
        let name = |name: &[u8], payload: &mut Vec<u8>| {
            payload.push(u8::try_from(name.len()).expect("a name of 8 bits"));
            payload.extend_from_slice(name);
        };
        let kind: u16 = match *self {
            Message::Shut(value) => {
                payload.extend(value.to_be_bytes());
                1
            }
            Message::Pong(value) => {
                payload.extend(value.to_be_bytes());
                2
            }
            Message::RequestPages {
                block,
                start,
                length,
            } => {
                payload.extend(start.to_be_bytes());
                payload.extend(length.to_be_bytes());
                match block {
                    Some(block) => {
                        name(block, &mut payload);
                        3
                    }
                    None => 4,
                }
            }
            Message::ReceivedBitmap { block, bitmap } => {
                name(block, &mut payload);
                tail.extend((bitmap.len() as u64).to_be_bytes());
                tail.extend_from_slice(bitmap);
                tail.extend(BITMAP_END.to_be_bytes());
                5
            }
            Message::ResumeAck(value) => {
                payload.extend(value.to_be_bytes());
                6
            }
            Message::SwitchoverAck => 7,
        };
        let length = u16::try_from(payload.len()).expect("a short payload");
        out.extend_from_slice(&kind.to_be_bytes());
        out.extend_from_slice(&length.to_be_bytes());
        out.extend_from_slice(&payload);
        out.extend_from_slice(&tail);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip(message: Message<'_>) {
        let mut bytes = Vec::new();
        message.put(&mut bytes);
        for cut in 0..bytes.len() {
            assert_eq!(ReturnPathParser::new().next(&bytes[..cut]), Ok(None));
        }
        let parsed = ReturnPathParser::new().next(&bytes);
        assert_eq!(parsed, Ok(Some((bytes.len(), message))));
    }

    #[test]
    fn every_message_round_trips() {
        round_trip(Message::Shut(1));
        round_trip(Message::Pong(0xdead_beef));
        round_trip(Message::RequestPages {
            block: Some(b"pc.ram"),
            start: 1 << 40,
            length: 4096,
        });
        round_trip(Message::RequestPages {
            block: None,
            start: 0,
            length: 2 << 20,
        });
        round_trip(Message::ReceivedBitmap {
            block: b"pc.ram",
            bitmap: &[0xff; 16],
        });
        round_trip(Message::ResumeAck(1));
        round_trip(Message::SwitchoverAck);
    }

    #[test]
    fn golden_bytes() {
        let mut bytes = Vec::new();
        Message::Pong(0x77).put(&mut bytes);
        Message::Shut(0).put(&mut bytes);
        assert_eq!(bytes, [0, 2, 0, 4, 0, 0, 0, 0x77, 0, 1, 0, 4, 0, 0, 0, 0]);
    }

    #[test]
    fn malformed_messages_are_refused() {
        let bitmap_too_long =
            [&[0, 5, 0, 2, 1, b'x'][..], &(BITMAP_MAX + 1).to_be_bytes()].concat();
        for bytes in [
            &[0, 9, 0, 0][..],
            &[0, 1, 0, 5, 0, 0, 0, 0, 0],
            &[0, 3, 2, 1],
            // A name that leaves the payload.
            &[0, 3, 0, 13, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9],
            &bitmap_too_long,
        ] {
            assert!(
                matches!(
                    ReturnPathParser::new().next(bytes),
                    Err(ParseError::Corrupt { .. })
                ),
                "{bytes:?}"
            );
        }
    }
}
