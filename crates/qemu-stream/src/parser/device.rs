//! The opaque device part and its end.
//!
//! Device sections have no lengths, so the part is handed out as raw bytes, and its end is found
//! by what ends it: the EOF byte and the VMDESCRIPTION, `00 06`, a be32 length and a JSON text of
//! that length which describes devices. Whatever could be the beginning of that is held back
//! until it is decided; bytes that only looked like it are device state after all. The decision
//! rests on the bytes alone, never on how they were cut into pieces.
//!
//! A guest that plants such a text in a device's state ends its own stream early, and then the
//! bytes that follow end the migration: it harms nobody else.

use super::{MAX_VMDESC, Parser, State, Step};
use crate::Event;
use crate::event::raw;

/// EOF byte, VMDESCRIPTION byte and length.
const HEADER: usize = 6;

/// The description that may have begun at the front of the unconsumed input.
#[derive(Debug, Default)]
pub(super) struct Candidate {
    /// Its length, once known; so that growing input is not searched again and again.
    length: Option<usize>,
}

/// What a stretch of bytes may be the beginning of.
#[derive(Debug, PartialEq, Eq)]
enum Beginning {
    DeviceState,
    /// Too short to tell.
    Undecided,
    Description(usize),
}

impl Parser {
    pub(super) fn device<'a>(&mut self, input: &'a [u8]) -> Step<'a> {
        let mut from = 0;
        if let Some(length) = self.description.length {
            let Some(text) = input.get(HEADER..HEADER + length) else {
                return Ok(None);
            };
            self.description.length = None;
            if describes_devices(text) {
                self.state = State::Done;
                let vmdesc = Some(text);
                return Ok(Some((HEADER + length, Event::End { vmdesc })));
            }
            from = 1;
        }
        let undecided = (from..input.len())
            .map(|at| (at, beginning(&input[at..])))
            .find(|(_, beginning)| *beginning != Beginning::DeviceState);
        match undecided {
            Some((0, Beginning::Description(length))) => {
                self.description.length = Some(length);
                self.device(input)
            }
            Some((0, _)) => Ok(None),
            Some((at, _)) => Ok(Some((at, Event::Device(&input[..at])))),
            None if input.is_empty() => Ok(None),
            None => Ok(Some((input.len(), Event::Device(input)))),
        }
    }
}

#[inline]
fn beginning(bytes: &[u8]) -> Beginning {
    use Beginning as B;
    match *bytes {
        [first, ..] if first != raw::EOF => B::DeviceState,
        [_, second, ..] if second != raw::VMDESCRIPTION => B::DeviceState,
        [_, _, a, b, c, d, ref text @ ..] => {
            let length = u32::from_be_bytes([a, b, c, d]) as usize;
            match text.first() {
                // An empty description, which only the end of the stream can tell.
                None if length == 0 => B::Undecided,
                _ if length == 0 || length > MAX_VMDESC => B::DeviceState,
                None => B::Undecided,
                Some(b'{') => B::Description(length),
                Some(_) => B::DeviceState,
            }
        }
        _ => B::Undecided,
    }
}

fn describes_devices(text: &[u8]) -> bool {
    text.first() == Some(&b'{')
        && text.last() == Some(&b'}')
        && std::str::from_utf8(text).is_ok_and(|text| text.contains("\"devices\""))
}
