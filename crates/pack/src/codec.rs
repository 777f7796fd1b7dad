//! Compressing a batch, and the way back.

use std::collections::HashMap;

use wire::{Form, MAX_PAYLOAD, PackedFrame, put_packed};

use crate::Method;

/// A packed batch that is no smaller than this share of the plain one is not worth the peer's time.
const WORTH_IT: (usize, usize) = (31, 32);

/// Why a packed frame could not be unpacked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PackError {
    /// Compressed in a way that this release does not know.
    #[error("the peer compresses by method {0}, which this release does not know")]
    UnknownMethod(u8),
    /// The content is damaged, or is not of the length that it says.
    #[error("a compressed batch cannot be unpacked")]
    Damaged,
}

/// Compresses batches; one for each thread.
#[derive(Default)]
pub struct Compressor {
    zstd: HashMap<u8, zstd::bulk::Compressor<'static>>,
    scratch: Vec<u8>,
}

impl std::fmt::Debug for Compressor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Compressor").finish_non_exhaustive()
    }
}

impl Compressor {
    /// Appends the packed frame of `plain`, a pages frame's payload; false, with nothing appended, if
    /// that would not be smaller.
    pub fn compress(&mut self, method: Method, plain: &[u8], out: &mut Vec<u8>) -> bool {
        self.put(method, Form::Pages, plain, out)
    }

    /// Appends the packed frame of a recalled batch, as it is if it cannot be compressed.
    pub fn compress_recalled(&mut self, method: Method, plain: &[u8], out: &mut Vec<u8>) {
        if !self.put(method, Form::Recalled, plain, out) {
            put_packed(0, Form::Recalled, plain.len(), plain, out);
        }
    }

    fn put(&mut self, method: Method, form: Form, plain: &[u8], out: &mut Vec<u8>) -> bool {
        let room = match method {
            Method::Lz4 => lz4_flex::block::get_maximum_output_size(plain.len()),
            Method::Zstd(_) => zstd::zstd_safe::compress_bound(plain.len()),
        };
        if self.scratch.len() < room {
            self.scratch.resize(room, 0);
        }
        let scratch = self.scratch.as_mut_slice();
        let packed = match method {
            Method::Lz4 => lz4_flex::block::compress_into(plain, scratch).ok(),
            Method::Zstd(level) => {
                let compressor = self.zstd.entry(level).or_insert_with(|| {
                    let mut compressor = zstd::bulk::Compressor::default();
                    // Only a level out of range is refused, and zstd clamps those.
                    let _ = compressor.set_compression_level(level.into());
                    compressor
                });
                compressor.compress_to_buffer(plain, scratch).ok()
            }
        };
        let Some(length) = packed.filter(|length| is_worth_it(*length, plain.len())) else {
            return false;
        };
        let packed = &self.scratch[..length];
        put_packed(method.number(), form, plain.len(), packed, out);
        true
    }
}

pub(crate) fn is_worth_it(packed: usize, plain: usize) -> bool {
    packed * WORTH_IT.1 < plain * WORTH_IT.0
}

/// Unpacks batches.
#[derive(Default)]
pub struct Decompressor {
    zstd: zstd::bulk::Decompressor<'static>,
    plain: Vec<u8>,
}

impl std::fmt::Debug for Decompressor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Decompressor").finish_non_exhaustive()
    }
}

impl Decompressor {
    /// The payload that was packed. Needs no more memory than a frame may be long, whatever the frame
    /// says.
    pub fn unpack(&mut self, frame: &PackedFrame<'_>) -> Result<&[u8], PackError> {
        let length = frame.plain_length;
        if self.plain.len() < length {
            self.plain.resize(length.min(MAX_PAYLOAD), 0);
        }
        let plain = self.plain.get_mut(..length).ok_or(PackError::Damaged)?;
        let unpacked = match frame.method {
            0 if frame.content.len() == length => {
                plain.copy_from_slice(frame.content);
                Some(length)
            }
            0 => None,
            1 => lz4_flex::block::decompress_into(frame.content, plain).ok(),
            2 => self.zstd.decompress_to_buffer(frame.content, plain).ok(),
            other => return Err(PackError::UnknownMethod(other)),
        };
        match unpacked {
            Some(count) if count == length => Ok(&self.plain[..length]),
            _ => Err(PackError::Damaged),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use wire::{Decoder, Frame, Preamble};

    use super::*;
    use crate::noise;

    const METHODS: [Method; 4] = [
        Method::Lz4,
        Method::Zstd(1),
        Method::Zstd(3),
        Method::Zstd(19),
    ];

    /// The packed frame as the peer decodes it.
    fn decoded<T>(frame: &[u8], then: impl FnOnce(PackedFrame<'_>) -> T) -> T {
        let mut preamble = Vec::new();
        Preamble::OURS.put(&mut preamble);
        let mut decoder = Decoder::new();
        decoder.next(&preamble).unwrap();
        match decoder.next(frame).unwrap() {
            Some((used, Frame::Packed(packed))) if used == frame.len() => then(packed),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn noise_is_left_as_it_is() {
        let noise = noise(256 << 10);
        for method in METHODS {
            let mut out = vec![7];
            assert!(!Compressor::default().compress(method, &noise, &mut out));
            assert_eq!(out, [7], "{method}");
        }
    }

    #[test]
    fn what_is_not_what_it_says_is_refused() {
        let plain = vec![5; 100_000];
        for method in METHODS {
            let mut out = Vec::new();
            assert!(Compressor::default().compress(method, &plain, &mut out));
            decoded(&out, |packed| {
                let mut decompressor = Decompressor::default();
                for plain_length in [0, 99_999, 100_001, MAX_PAYLOAD] {
                    let wrong = PackedFrame {
                        plain_length,
                        ..packed
                    };
                    assert_eq!(decompressor.unpack(&wrong), Err(PackError::Damaged));
                }
                let short = &packed.content[..packed.content.len() - 1];
                let cut = PackedFrame {
                    content: short,
                    ..packed
                };
                assert_eq!(decompressor.unpack(&cut), Err(PackError::Damaged));
                let other = PackedFrame {
                    method: 9,
                    ..packed
                };
                assert_eq!(
                    decompressor.unpack(&other),
                    Err(PackError::UnknownMethod(9))
                );
                // None of it has spoilt anything.
                assert_eq!(decompressor.unpack(&packed), Ok(&plain[..]));
            });
        }
    }

    proptest! {
        /// What is packed comes back, batch after batch through the same compressor.
        #[test]
        fn batches_come_back(
            batches in prop::collection::vec((0usize..4, 0usize..2, 1usize..40_000, any::<u8>()), 1..20),
        ) {
            let mut compressor = Compressor::default();
            let mut decompressor = Decompressor::default();
            for (method, kind, length, fill) in batches {
                let mut plain = vec![fill; length];
                if kind == 1 {
                    plain[..length / 2].copy_from_slice(&noise(length / 2));
                }
                let mut out = Vec::new();
                if compressor.compress(METHODS[method], &plain, &mut out) {
                    prop_assert!(out.len() < plain.len() + 16);
                    let same = decoded(&out, |packed| {
                        decompressor.unpack(&packed).map(|bytes| bytes == &plain[..])
                    });
                    prop_assert_eq!(same, Ok(true));
                } else {
                    prop_assert!(out.is_empty());
                }
            }
        }

        /// Nothing that a peer sends makes it panic, or take more than it may.
        #[test]
        fn garbage_is_refused(
            method in 0u8..4,
            plain_length in 0usize..=MAX_PAYLOAD,
            content in prop::collection::vec(any::<u8>(), 0..400),
        ) {
            let frame = PackedFrame { method, form: Form::Pages, plain_length, content: &content };
            if let Ok(plain) = Decompressor::default().unpack(&frame) {
                prop_assert_eq!(plain.len(), plain_length);
            }
        }
    }
}
