//! What the fuzz target runs: any bytes at all may come from a peer.

use wire::{Form, MAX_PAYLOAD, PackedFrame};

use crate::{Decompressor, Recollection};

/// Small, so that slots are used again and again.
const PAGE: usize = 16;

/// Unpacks frames, each a byte of method and form, two of the plain length, one of the content's, and
/// the content; recalled batches go to one recollection. No more may come out than may be.
pub fn unpack(mut data: &[u8]) {
    let mut decompressor = Decompressor::default();
    let mut recollection = Recollection::default();
    while let Some((&[kind, a, b, length], rest)) = data.split_first_chunk::<4>() {
        let length = usize::from(length).min(rest.len());
        let (content, rest) = rest.split_at(length);
        data = rest;
        let form = match kind & 1 {
            0 => Form::Pages,
            _ => Form::Recalled,
        };
        let plain_length = usize::from(u16::from_be_bytes([a, b]));
        let frame = PackedFrame {
            method: kind >> 1,
            form,
            plain_length,
            content,
        };
        let Ok(plain) = decompressor.unpack(&frame) else {
            continue;
        };
        assert_eq!(plain.len(), plain_length);
        if form == Form::Recalled {
            let mut out = Vec::new();
            let _ = recollection.recall(plain, PAGE, &mut out);
            assert!(out.len() <= MAX_PAYLOAD + PAGE + 8);
        }
    }
}

/// An input that gets past the first checks.
pub fn seed() -> Vec<u8> {
    let page = [7; PAGE];
    let whole = [&[0, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0][..], &page].concat();
    let same = [0, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0];
    let difference = [&[0, 0, 0, 0, 0, 1, 3, 0, 0, 0, 0][..], &[0; PAGE]].concat();
    let frame = |content: &[u8]| {
        let length = u8::try_from(content.len()).unwrap_or(u8::MAX);
        [&[1, 0, length, length], content].concat()
    };
    [frame(&whole), frame(&same), frame(&difference)].concat()
}
