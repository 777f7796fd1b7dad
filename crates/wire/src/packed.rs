//! Frames whose payload is compressed. How is no business of this crate.

use crate::decode::{Kind, frame_header, patch_length};
use crate::{MAX_PAYLOAD, WireError};

/// Bytes before the content: the method, the form, two zeros, the plain length.
const HEAD: usize = 8;

/// A batch of pages, compressed or told by others, as received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PackedFrame<'a> {
    /// How it is compressed.
    pub method: u8,
    /// What it is, once it is plain.
    pub form: Form,
    /// Length in bytes once it is plain: [`MAX_PAYLOAD`] at most.
    pub plain_length: usize,
    /// The compressed bytes.
    pub content: &'a [u8],
}

impl<'a> PackedFrame<'a> {
    pub(crate) fn parse(payload: &'a [u8]) -> Result<Self, WireError> {
        let Some((&[method, form, 0, 0, a, b, c, d], content)) =
            payload.split_first_chunk::<HEAD>()
        else {
            return Err(WireError::BadBatch);
        };
        let announced = u32::from_be_bytes([a, b, c, d]);
        let plain_length = usize::try_from(announced)
            .ok()
            .filter(|length| *length <= MAX_PAYLOAD)
            .ok_or(WireError::TooLong(announced))?;
        let form = match form {
            0 => Form::Pages,
            1 => Form::Recalled,
            _ => return Err(WireError::BadBatch),
        };
        Ok(PackedFrame {
            method,
            form,
            plain_length,
            content,
        })
    }
}

/// What a packed frame's content is, once it is plain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Form {
    /// A pages frame's payload.
    Pages = 0,
    /// Pages told by what the peer has already.
    Recalled = 1,
}

/// Appends a packed frame to `out`.
///
/// # Panics
/// If either length is beyond [`MAX_PAYLOAD`].
pub fn put_packed(method: u8, form: Form, plain_length: usize, content: &[u8], out: &mut Vec<u8>) {
    assert!(plain_length <= MAX_PAYLOAD, "more than a frame's payload");
    let frame_at = frame_header(Kind::Packed, out);
    out.extend_from_slice(&[method, form as u8, 0, 0]);
    #[expect(clippy::cast_possible_truncation, reason = "bounded by MAX_PAYLOAD")]
    out.extend_from_slice(&(plain_length as u32).to_be_bytes());
    out.extend_from_slice(content);
    patch_length(frame_at, out);
}
