//! The codec as its users see it.
#![expect(
    clippy::cast_possible_truncation,
    clippy::unwrap_used,
    reason = "small test data, and a panic is how a test fails"
)]

use proptest::prelude::*;
use wire::{
    BatchWriter, Decoder, Digest, FRAME_HEADER, Form, Frame, MAX_PAYLOAD, Message, Preamble,
    WireError, ZERO_PAGES_MAX, fuzz_entry, own_frames, put_control, put_device, put_packed,
};

const PAGE: usize = 64;

/// Decodes everything in `bytes`; panics on an error or a rest.
fn decode_all(bytes: &[u8], mut each: impl FnMut(Frame<'_>)) {
    let mut decoder = Decoder::new();
    let mut at = 0;
    while at < bytes.len() {
        let (used, frame) = decoder.next(&bytes[at..]).unwrap().expect("whole frames");
        each(frame);
        at += used;
    }
}

fn connection() -> Vec<u8> {
    let mut out = Vec::new();
    Preamble::OURS.put(&mut out);
    out
}

fn error_of(frame: &[u8]) -> WireError {
    let mut decoder = Decoder::new();
    let preamble = connection();
    decoder.next(&preamble).unwrap();
    decoder.next(frame).unwrap_err()
}

#[test]
fn control_and_device_frames_round_trip() {
    let messages = [
        Message::KeepAlive,
        Message::Ready(Digest {
            pages: 7,
            sum: u128::MAX,
        }),
        Message::Through(vec![1, 2, 3]),
    ];
    let device: Vec<u8> = (0..MAX_PAYLOAD + 5).map(|i| (i % 251) as u8).collect();
    let mut out = connection();
    for message in &messages {
        put_control(message, &mut out);
    }
    put_device(&device, &mut out);
    let (mut seen, mut bytes) = (Vec::new(), Vec::new());
    decode_all(&out, |frame| match frame {
        Frame::Control(message) => seen.push(message),
        Frame::Device(piece) => bytes.extend_from_slice(piece),
        Frame::Preamble(preamble) => assert_eq!(preamble, Preamble::OURS),
        other => panic!("{other:?}"),
    });
    assert_eq!(seen, messages);
    assert_eq!(bytes, device);
}

#[test]
fn a_length_beyond_the_bound_is_refused_before_its_payload_arrives() {
    assert_eq!(
        error_of(&[4, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]),
        WireError::TooLong(u32::MAX)
    );
}

#[test]
fn malformed_frames_are_refused() {
    assert_eq!(
        error_of(&[9, 0, 0, 0, 0, 0, 0, 0]),
        WireError::UnknownKind(9)
    );
    assert_eq!(error_of(&[1, 1, 0, 0, 0, 0, 0, 0]), WireError::BadHeader);
    assert_eq!(
        error_of(&[1, 0, 0, 0, 0, 0, 0, 1, 200]),
        WireError::BadMessage
    );
    // A message followed by bytes that belong to nothing.
    assert_eq!(
        error_of(&[1, 0, 0, 0, 0, 0, 0, 2, 9, 0]),
        WireError::BadMessage
    );
    assert_eq!(
        error_of(&[2, 0, 0, 0, 0, 0, 0, 2, 0, 0]),
        WireError::BadBatch
    );
    assert_eq!(
        error_of(&[3, 0, 0, 0, 0, 0, 0, 3, 0, 0, 1]),
        WireError::BadBatch
    );
}

#[test]
fn a_packed_frame_says_how_long_it_is_when_it_is_unpacked() {
    let mut out = connection();
    put_packed(2, Form::Recalled, MAX_PAYLOAD, b"content", &mut out);
    decode_all(&out, |frame| match frame {
        Frame::Packed(packed) => {
            assert_eq!((packed.method, packed.plain_length), (2, MAX_PAYLOAD));
            assert_eq!(packed.form, Form::Recalled);
            assert_eq!(packed.content, b"content");
        }
        Frame::Preamble(_) => {}
        other => panic!("{other:?}"),
    });
    let announced = (MAX_PAYLOAD as u32 + 1).to_be_bytes();
    let head = [[5, 0, 0, 0, 0, 0, 0, 8, 1, 0, 0, 0].as_slice(), &announced].concat();
    assert_eq!(error_of(&head), WireError::TooLong(MAX_PAYLOAD as u32 + 1));
    for head in [[1, 0, 1, 0], [1, 2, 0, 0]] {
        let reserved = [&[5, 0, 0, 0, 0, 0, 0, 8], &head[..], &[0; 4]].concat();
        assert_eq!(error_of(&reserved), WireError::BadBatch);
    }
    assert_eq!(
        error_of(&[5, 0, 0, 0, 0, 0, 0, 2, 1, 0]),
        WireError::BadBatch
    );
}

#[test]
fn frames_of_ones_own_are_told_apart() {
    let mut out = Vec::new();
    put_control(&Message::KeepAlive, &mut out);
    let pages_at = out.len();
    let mut batch = BatchWriter::new(PAGE);
    batch.page(0, 5, &[1; PAGE], &mut out);
    batch.flush(&mut out);
    let device_at = out.len();
    put_device(&[1, 2, 3], &mut out);
    let frames: Vec<_> = own_frames(&out).collect();
    assert_eq!(frames.len(), 3);
    assert_eq!(frames[1].bytes, &out[pages_at..device_at]);
    assert_eq!(
        frames[1].pages,
        Some(&out[pages_at + FRAME_HEADER..device_at])
    );
    assert_eq!((frames[0].pages, frames[2].pages), (None, None));
}

#[test]
fn alternating_pages_and_zero_pages_share_two_frames() {
    let mut out = connection();
    let mut batch = BatchWriter::new(PAGE);
    for index in 0..20 {
        if index % 2 == 0 {
            batch.page(0, index, &[1; PAGE], &mut out);
        } else {
            batch.zero(0, index, &mut out);
        }
    }
    batch.flush(&mut out);
    let mut frames = 0;
    decode_all(&out, |_| frames += 1);
    assert_eq!(frames, 1 + 2);
}

#[test]
fn consecutive_zero_pages_cost_one_run_a_frame() {
    let mut out = Vec::new();
    let mut batch = BatchWriter::new(PAGE);
    for index in 0..3 * ZERO_PAGES_MAX {
        batch.zero(3, index, &mut out);
    }
    batch.flush(&mut out);
    assert_eq!(out.len(), 3 * (FRAME_HEADER + 2 + 8));
}

#[test]
fn a_frame_cannot_describe_endless_zero_pages() {
    let frame = |counts: &[u32]| {
        let mut frame = vec![3, 0, 0, 0, 0, 0, 0, 2 + 8 * counts.len() as u8, 0, 0];
        for count in counts {
            frame.extend([0; 4]);
            frame.extend(count.to_be_bytes());
        }
        frame
    };
    assert_eq!(error_of(&frame(&[ZERO_PAGES_MAX + 1])), WireError::BadBatch);
    assert_eq!(error_of(&frame(&[ZERO_PAGES_MAX, 1])), WireError::BadBatch);
    assert_eq!(error_of(&frame(&[u32::MAX, u32::MAX])), WireError::BadBatch);
    assert_eq!(error_of(&frame(&[0])), WireError::BadBatch);
}

proptest! {
    /// Whatever order pages are put in, replaying the frames leaves each page with the content
    /// that was put last.
    #[test]
    fn the_newest_content_wins(
        puts in prop::collection::vec((0u16..3, 0u32..40, 0u8..4, prop::bool::weighted(0.02)), 0..400)
    ) {
        let mut out = connection();
        let mut batch = BatchWriter::new(PAGE);
        let mut expected = std::collections::BTreeMap::new();
        for (block, index, fill, flush) in puts {
            if fill == 0 {
                batch.zero(block, index, &mut out);
            } else {
                batch.page(block, index, &[fill; PAGE], &mut out);
            }
            expected.insert((block, index), fill);
            if flush {
                batch.flush(&mut out);
            }
        }
        batch.flush(&mut out);
        let mut seen = std::collections::BTreeMap::new();
        decode_all(&out, |frame| match frame {
            Frame::Pages(pages) => {
                for (index, content) in pages.iter(PAGE).unwrap() {
                    seen.insert((pages.block, index), content[0]);
                }
            }
            Frame::Zeros(zeros) => {
                for run in zeros.iter() {
                    for index in run.first..run.first + run.count {
                        seen.insert((zeros.block, index), 0);
                    }
                }
            }
            _ => {}
        });
        prop_assert_eq!(seen, expected);
    }

    #[test]
    fn garbage_never_panics(data in prop::collection::vec(any::<u8>(), 0..300)) {
        fuzz_entry::decode(&data);
    }

    #[test]
    fn garbage_after_a_preamble_never_panics(
        data in prop::collection::vec((1u8..6, prop::collection::vec(any::<u8>(), 0..60)), 0..8)
    ) {
        let mut bytes = connection();
        for (kind, payload) in data {
            bytes.extend([kind, 0, 0, 0, 0, 0, 0, payload.len() as u8]);
            bytes.extend(payload);
        }
        fuzz_entry::decode(&bytes);
    }
}
