//! Frames: the decoder, and the writers of control and device frames.

use crate::{
    FRAME_HEADER, MAX_PAYLOAD, Message, PackedFrame, PagesFrame, Preamble, WireError, ZerosFrame,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    Control = 1,
    Pages = 2,
    Zeros = 3,
    Device = 4,
    Packed = 5,
}

/// What a peer sent.
#[derive(Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    /// The versions that it offers: always first, and once.
    Preamble(Preamble),
    /// A control message.
    Control(Message),
    /// Pages.
    Pages(PagesFrame<'a>),
    /// Runs of zero pages.
    Zeros(ZerosFrame<'a>),
    /// Device state.
    Device(&'a [u8]),
    /// Pages, compressed.
    Packed(PackedFrame<'a>),
}

/// Decodes what a peer sends.
#[derive(Debug, Default)]
pub struct Decoder {
    preamble_seen: bool,
}

impl Decoder {
    /// A decoder at the start of a connection.
    pub fn new() -> Self {
        Self::default()
    }

    /// Decodes one frame off the front of `input` and tells how many bytes it took; `None` asks
    /// for more input, which never needs to exceed `FRAME_HEADER + MAX_PAYLOAD` bytes. Keep what
    /// was not taken at the front of the next input.
    pub fn next<'a>(&mut self, input: &'a [u8]) -> Result<Option<(usize, Frame<'a>)>, WireError> {
        if !self.preamble_seen {
            return Ok(Preamble::parse(input)?.map(|preamble| {
                self.preamble_seen = true;
                (Preamble::LEN, Frame::Preamble(preamble))
            }));
        }
        let Some((header, rest)) = input.split_first_chunk::<FRAME_HEADER>() else {
            return Ok(None);
        };
        let [kind, 0, 0, 0, a, b, c, d] = *header else {
            return Err(WireError::BadHeader);
        };
        let announced = u32::from_be_bytes([a, b, c, d]);
        let length = usize::try_from(announced)
            .ok()
            .filter(|length| *length <= MAX_PAYLOAD)
            .ok_or(WireError::TooLong(announced))?;
        if !(1..=5).contains(&kind) {
            return Err(WireError::UnknownKind(kind));
        }
        let Some(payload) = rest.get(..length) else {
            return Ok(None);
        };
        let frame = match kind {
            1 => Frame::Control(control(payload)?),
            2 => Frame::Pages(PagesFrame::parse(payload)?),
            3 => Frame::Zeros(ZerosFrame::parse(payload)?),
            4 => Frame::Device(payload),
            _ => Frame::Packed(PackedFrame::parse(payload)?),
        };
        Ok(Some((FRAME_HEADER + length, frame)))
    }
}

fn control(payload: &[u8]) -> Result<Message, WireError> {
    match postcard::take_from_bytes(payload) {
        Ok((message, [])) => Ok(message),
        _ => Err(WireError::BadMessage),
    }
}

/// Appends a control message to `out`.
///
/// # Panics
/// If the message is larger than [`MAX_PAYLOAD`]: the callers bound what they put into one.
pub fn put_control(message: &Message, out: &mut Vec<u8>) {
    let frame_at = frame_header(Kind::Control, out);
    // Appending to a Vec cannot fail, and no message holds a type that postcard cannot write.
    #[expect(clippy::expect_used, reason = "see above")]
    let encoded = postcard::to_extend(message, std::mem::take(out)).expect("encodes");
    *out = encoded;
    patch_length(frame_at, out);
}

/// Appends device state to `out`, in as many frames as it takes.
pub fn put_device(bytes: &[u8], out: &mut Vec<u8>) {
    for piece in bytes.chunks(MAX_PAYLOAD) {
        let frame_at = frame_header(Kind::Device, out);
        out.extend_from_slice(piece);
        patch_length(frame_at, out);
    }
}

/// A frame that this side has written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OwnFrame<'a> {
    /// All of it.
    pub bytes: &'a [u8],
    /// Its payload, if that is a batch of pages.
    pub pages: Option<&'a [u8]>,
}

/// The frames that were put into `bytes` by the writers of this crate, one after another.
pub fn own_frames(mut bytes: &[u8]) -> impl Iterator<Item = OwnFrame<'_>> {
    std::iter::from_fn(move || {
        let &[kind, _, _, _, a, b, c, d] = bytes.first_chunk::<FRAME_HEADER>()?;
        let length = usize::try_from(u32::from_be_bytes([a, b, c, d])).ok()?;
        let (frame, rest) = bytes.split_at_checked(FRAME_HEADER + length)?;
        bytes = rest;
        Some(OwnFrame {
            bytes: frame,
            pages: (kind == Kind::Pages as u8).then_some(&frame[FRAME_HEADER..]),
        })
    })
}

/// Begins a frame; [`patch_length`] ends it.
pub(crate) fn frame_header(kind: Kind, out: &mut Vec<u8>) -> usize {
    let frame_at = out.len();
    out.extend_from_slice(&[kind as u8, 0, 0, 0, 0, 0, 0, 0]);
    frame_at
}

pub(crate) fn patch_length(frame_at: usize, out: &mut [u8]) {
    let length = out.len() - frame_at - FRAME_HEADER;
    assert!(length <= MAX_PAYLOAD, "a frame beyond the protocol's limit");
    #[expect(clippy::cast_possible_truncation, reason = "bounded by MAX_PAYLOAD")]
    let length = (length as u32).to_be_bytes();
    out[frame_at + 4..frame_at + FRAME_HEADER].copy_from_slice(&length);
}
