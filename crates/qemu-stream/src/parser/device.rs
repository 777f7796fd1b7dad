//! The opaque device part and its end.
//!
//! Device sections have no lengths, so the part is handed out as raw bytes, and its end is found
//! by what ends it: the EOF byte and the VMDESCRIPTION, `00 06`, a be32 length and a JSON text of
//! that length which describes devices. Whatever could be the beginning of that is held back
//! until it is decided; bytes that only looked like it are device state after all. The decision
//! rests on the bytes alone, never on how they were cut into pieces. One that claims to be longer
//! than what is left can only be told by the stream's closing: see [`Parser::close`].
//!
//! A guest that plants such a text in a device's state ends its own stream early, and then the
//! bytes that follow end the migration: it harms nobody else.

use super::{MAX_VMDESC, Parser, State, Step};
use crate::event::raw;
use crate::{Emitter, Event};

/// EOF byte, VMDESCRIPTION byte and length.
const HEADER: usize = 6;

/// What a description cannot be without.
const KEY: &[u8] = b"\"devices\"";

/// The description that may have begun at the front of the unconsumed input.
#[derive(Debug, Default)]
pub(super) struct Candidate {
    /// Its length, once known; so that growing input is not searched again and again.
    length: Option<usize>,
    /// What earlier candidates have taught about the same bytes.
    text: Text,
}

/// What is known about the bytes that candidates have spanned.
///
/// A guest can write device state in which every seventh byte begins a candidate of megabytes.
/// Each byte is nevertheless checked only once, so that deciding stays linear. Positions are
/// offsets in the stream; candidates come in ascending order of where they begin.
#[derive(Debug, Default)]
struct Text {
    /// Everything between the beginning of the candidate last checked and here is valid UTF-8.
    valid_to: u64,
    /// Whether what stands at `valid_to` is not UTF-8.
    invalid: bool,
    /// No [`KEY`] lies between the beginning of the candidate last searched and here.
    without_key_to: u64,
}

impl Text {
    /// Whether `text`, which begins at `start`, describes devices.
    fn describes_devices(&mut self, start: u64, text: &[u8]) -> bool {
        text.first() == Some(&b'{')
            && text.last() == Some(&b'}')
            && self.is_utf8(start, text)
            && self.has_key(start, text)
    }

    /// `text` begins and ends with ASCII: so no character is cut in two at either end, and what
    /// was found from an earlier beginning on holds from this one on too.
    fn is_utf8(&mut self, start: u64, text: &[u8]) -> bool {
        let end = start + text.len() as u64;
        if self.valid_to < start {
            self.valid_to = start;
            self.invalid = false;
        }
        if !self.invalid && self.valid_to < end {
            let unchecked = after(text, self.valid_to - start);
            match std::str::from_utf8(unchecked) {
                Ok(_) => self.valid_to = end,
                Err(error) => {
                    self.valid_to += error.valid_up_to() as u64;
                    self.invalid = true;
                }
            }
        }
        self.valid_to >= end
    }

    fn has_key(&mut self, start: u64, text: &[u8]) -> bool {
        let end = start + text.len() as u64;
        if self.without_key_to >= end {
            return false;
        }
        // The key may have begun in what was searched.
        let from = self.without_key_to.saturating_sub(KEY.len() as u64 - 1);
        let unsearched = after(text, from.saturating_sub(start));
        self.without_key_to = end;
        unsearched.windows(KEY.len()).any(|window| window == KEY)
    }
}

/// `text` without its first `count` bytes.
fn after(text: &[u8], count: u64) -> &[u8] {
    usize::try_from(count)
        .ok()
        .and_then(|count| text.get(count..))
        .unwrap_or_default()
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
            let text = input.get(HEADER..HEADER + length);
            if text.is_none() && !self.closed {
                return Ok(None);
            }
            self.description.length = None;
            let start = self.offset + HEADER as u64;
            if let Some(text) = text
                && self.description.text.describes_devices(start, text)
            {
                self.state = State::Done;
                let vmdesc = Some(text);
                return Ok(Some((HEADER + length, Event::End { vmdesc })));
            }
            from = 1;
        }
        let undecided = (from..input.len())
            .map(|at| (at, self.beginning(&input[at..])))
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

    #[inline]
    fn beginning(&self, bytes: &[u8]) -> Beginning {
        match beginning(bytes) {
            // Nothing more comes: all that is left to be are the ends that `finish` knows.
            Beginning::Undecided if self.closed && !ends_without_text(bytes) => {
                Beginning::DeviceState
            }
            beginning => beginning,
        }
    }
}

/// Whether these last bytes of a stream end it without a description, or with an empty one.
pub(super) fn ends_without_text(rest: &[u8]) -> bool {
    rest == [raw::EOF] || rest == Emitter::END_WITHOUT_DESCRIPTION
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
